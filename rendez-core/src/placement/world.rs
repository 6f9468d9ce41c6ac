//! What the planner knows: nodes, workloads, holders, pins and refusals, by dense index.
//!
//! Names are looked up here once and are small numbers from then on. Nothing is decided here but what the hard
//! rules permit for one pair; who gets a slot is the policies' business.

use std::collections::{BTreeMap, BTreeSet};

use super::score;
use super::spec::{LoadFactor, NodeSpec, Obstacle, Policy, Reason, WorkloadSpec};
use crate::{NodeId, Slot, UNITS_MAX, WorkloadName};

/// The index of no node.
pub(super) const NONE: u32 = u32::MAX;

/// A slot, by index of its workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) load: u32,
    pub(super) unit: u32,
}

/// A node: alive if it has a spec; otherwise only mentioned by holders, pins or refusals.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: Option<NodeId>,
    pub(super) hash: u64,
    pub(super) weight: u32,
    pub(super) accepts: bool,
    /// The most slots that it holds; `u32::MAX` for any number.
    pub(super) capacity: u32,
    pub(super) spec: Option<NodeSpec>,
    /// How many holders, pins and refusals name it.
    mentions: u32,
}

/// What the rules permit for a node and a workload, whatever the unit's own pins and refusals say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Pair {
    /// The node may hold the units below this.
    pub(super) units: u32,
    /// The most units that it may hold at a time.
    pub(super) cap: u32,
    /// How much the node is preferred, where the policy asks.
    pub(super) priority: u32,
}

/// A workload: it exists if it has a spec; otherwise only holders, pins or refusals mention it.
#[derive(Debug, Default)]
pub(super) struct Load {
    pub(super) name: Option<WorkloadName>,
    pub(super) spec: Option<WorkloadSpec>,
    /// Units, 0 while it does not exist or is paused.
    pub(super) units: u32,
    /// By unit.
    pub(super) hashes: Vec<u64>,
    /// By unit; may be longer than the workload has units.
    pub(super) holders: Vec<u32>,
    /// By unit.
    pub(super) pins: BTreeMap<u32, u32>,
    /// Unit and node.
    pub(super) refused: BTreeSet<(u32, u32)>,
    /// By node.
    pub(super) pairs: Vec<Pair>,
    held: u32,
}

impl Load {
    pub(super) fn holder(&self, unit: u32) -> u32 {
        self.holders.get(unit as usize).copied().unwrap_or(NONE)
    }

    /// No pin and no refusal anywhere in this workload.
    pub(super) fn is_plain(&self) -> bool {
        self.pins.is_empty() && self.refused.is_empty()
    }
}

/// The rules that one node must pass to take one slot, in the order in which they are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rule {
    /// It runs the unit.
    Runs,
    /// It is in the workload's zones and has its labels.
    Fits,
    /// It is not leaving.
    Stays,
    /// It takes new slots.
    Accepts,
    /// It has not refused this one.
    Willing,
}

/// All inputs of the plan.
#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) policy: Policy,
    pub(super) load_factor: LoadFactor,
    pub(super) nodes: Vec<Node>,
    pub(super) loads: Vec<Load>,
    node_index: BTreeMap<NodeId, u32>,
    load_index: BTreeMap<WorkloadName, u32>,
    free_nodes: Vec<u32>,
    free_loads: Vec<u32>,
    /// By node index: its place in the order of ids.
    pub(super) node_rank: Vec<u32>,
    /// By workload index: its place in the order of names.
    pub(super) load_rank: Vec<u32>,
    /// Node indices in the order of ids.
    pub(super) nodes_by_rank: Vec<u32>,
    /// Workload indices in the order of names.
    pub(super) loads_by_rank: Vec<u32>,
    /// Indices of workloads with units to place, in the order of names.
    pub(super) order: Vec<u32>,
    ranks_stale: bool,
}

impl World {
    pub(super) fn node(&self, id: &NodeId) -> Option<u32> {
        self.node_index.get(id).copied()
    }

    pub(super) fn load(&self, name: &WorkloadName) -> Option<u32> {
        self.load_index.get(name).copied()
    }

    pub(super) fn place(&self, slot: &Slot) -> Option<Place> {
        let load = self.load(&slot.workload)?;
        Some(Place { load, unit: slot.unit })
    }

    pub(super) fn node_id(&self, node: u32) -> Option<&NodeId> {
        self.nodes.get(node as usize)?.id.as_ref()
    }

    pub(super) fn slot(&self, place: Place) -> Option<Slot> {
        let name = self.loads.get(place.load as usize)?.name.clone()?;
        Some(Slot::new(name, place.unit))
    }

    /// Live nodes, in the order of ids.
    pub(super) fn live(&self) -> impl Iterator<Item = u32> {
        self.node_index.values().copied().filter(|node| self.nodes[*node as usize].spec.is_some())
    }

    pub(super) fn is_live(&self, node: u32) -> bool {
        self.nodes.get(node as usize).is_some_and(|node| node.spec.is_some())
    }

    /// Whether a cap can keep a node from a slot of this workload.
    pub(super) fn is_capped(&self, load: u32) -> bool {
        let entry = &self.loads[load as usize];
        self.live().any(|node| {
            let pair = entry.pairs[node as usize];
            self.nodes[node as usize].capacity != u32::MAX || pair.cap < pair.units
        })
    }

    pub(super) fn policy_of(&self, load: &Load) -> Policy {
        load.spec.as_ref().and_then(|spec| spec.policy).unwrap_or(self.policy)
    }

    /// Whether the rules let this node go on holding this slot.
    pub(super) fn may_hold(&self, place: Place, node: u32) -> bool {
        let load = &self.loads[place.load as usize];
        if load.pairs.get(node as usize).is_none_or(|pair| place.unit >= pair.units) {
            return false;
        }
        load.pins.is_empty() || load.pins.get(&place.unit).is_none_or(|pin| *pin == node)
    }

    /// Whether the rules let this node take this slot, or keep it if it holds it. Caps are not looked at.
    pub(super) fn may_take(&self, place: Place, node: u32) -> bool {
        if !self.may_hold(place, node) {
            return false;
        }
        let load = &self.loads[place.load as usize];
        if load.holder(place.unit) == node {
            return true;
        }
        self.nodes[node as usize].accepts && (load.refused.is_empty() || !load.refused.contains(&(place.unit, node)))
    }

    /// Whether a slot stays where it is whatever the policy says: its holder may keep it and takes nothing new.
    pub(super) fn is_kept(&self, place: Place) -> bool {
        let holder = self.loads[place.load as usize].holder(place.unit);
        holder != NONE && !self.nodes[holder as usize].accepts && self.may_hold(place, holder)
    }

    pub(super) fn set_node(&mut self, id: &NodeId, spec: NodeSpec) -> u32 {
        let node = self.mention_node(id);
        let entry = &mut self.nodes[node as usize];
        entry.weight = spec.weight.max(1);
        entry.accepts = spec.accepts && !spec.leaving;
        entry.capacity = spec.capacity.unwrap_or(u32::MAX);
        entry.spec = Some(spec);
        for load in 0..self.loads.len() {
            self.judge(load, node as usize);
        }
        node
    }

    pub(super) fn remove_node(&mut self, id: &NodeId) -> Option<u32> {
        let node = self.node(id).filter(|node| self.is_live(*node))?;
        self.nodes[node as usize].spec = None;
        for load in &mut self.loads {
            if let Some(pair) = load.pairs.get_mut(node as usize) {
                *pair = Pair::default();
            }
        }
        self.forget_node(node);
        Some(node)
    }

    pub(super) fn set_workload(&mut self, name: &WorkloadName, spec: WorkloadSpec) -> u32 {
        let load = self.mention_load(name);
        let entry = &mut self.loads[load as usize];
        let units = spec.units.min(UNITS_MAX);
        let known = entry.hashes.len() as u32;
        entry.hashes.truncate(units as usize);
        entry.hashes.extend((known..units).map(|unit| score::slot_hash(name.as_str(), unit)));
        entry.hashes.shrink_to_fit();
        entry.units = if spec.paused { 0 } else { units };
        if entry.holders.len() < units as usize {
            entry.holders.resize(units as usize, NONE);
        }
        entry.spec = Some(spec);
        for node in 0..self.nodes.len() {
            self.judge(load as usize, node);
        }
        self.ranks_stale = true;
        load
    }

    pub(super) fn remove_workload(&mut self, name: &WorkloadName) -> Option<u32> {
        let load = self.load(name).filter(|load| self.loads[*load as usize].spec.is_some())?;
        let entry = &mut self.loads[load as usize];
        entry.spec = None;
        entry.units = 0;
        entry.hashes = Vec::new();
        entry.pairs.fill(Pair::default());
        self.ranks_stale = true;
        self.forget_load(load);
        Some(load)
    }

    /// Notes who holds a slot; returns the slot if that is news.
    pub(super) fn set_holder(&mut self, slot: &Slot, holder: Option<&NodeId>) -> Option<Place> {
        if slot.unit >= UNITS_MAX {
            return None;
        }
        let known = self.place(slot).map_or(NONE, |place| self.loads[place.load as usize].holder(place.unit));
        if known == holder.map_or(NONE, |id| self.node(id).unwrap_or(NONE - 1)) {
            return None;
        }
        let load = self.mention_load(&slot.workload);
        let node = holder.map_or(NONE, |id| self.mention_node(id));
        if node != NONE {
            self.nodes[node as usize].mentions += 1;
        }
        let entry = &mut self.loads[load as usize];
        if entry.holders.len() <= slot.unit as usize {
            entry.holders.resize(slot.unit as usize + 1, NONE);
        }
        entry.holders[slot.unit as usize] = node;
        entry.held = entry.held + u32::from(node != NONE) - u32::from(known != NONE);
        self.unmention_node(known);
        self.forget_load(load);
        Some(Place { load, unit: slot.unit })
    }

    /// Notes an operator's pin; returns the slot if that is news.
    pub(super) fn set_pin(&mut self, slot: &Slot, pin: Option<&NodeId>) -> Option<Place> {
        let load = self.mention_load(&slot.workload);
        let node = pin.map(|id| self.mention_node(id));
        if let Some(node) = node {
            self.nodes[node as usize].mentions += 1;
        }
        let pins = &mut self.loads[load as usize].pins;
        let known = match node {
            Some(node) => pins.insert(slot.unit, node),
            None => pins.remove(&slot.unit),
        };
        if let Some(known) = known {
            self.unmention_node(known);
        }
        self.forget_load(load);
        (known != node).then_some(Place { load, unit: slot.unit })
    }

    /// Notes that a node refused a slot, or that it may be asked again; returns the slot if that is news.
    pub(super) fn exclude(&mut self, slot: &Slot, id: &NodeId, refused: bool) -> Option<Place> {
        let load = self.mention_load(&slot.workload);
        let node = self.mention_node(id);
        let set = &mut self.loads[load as usize].refused;
        let pair = (slot.unit, node);
        let news = if refused { set.insert(pair) } else { set.remove(&pair) };
        if news && refused {
            self.nodes[node as usize].mentions += 1;
        } else if news {
            self.unmention_node(node);
        } else {
            self.forget_node(node);
        }
        self.forget_load(load);
        news.then_some(Place { load, unit: slot.unit })
    }

    /// Brings the orders of names up to date.
    pub(super) fn refresh(&mut self) {
        if !self.ranks_stale {
            return;
        }
        self.ranks_stale = false;
        self.node_rank.resize(self.nodes.len(), NONE);
        self.nodes_by_rank = self.node_index.values().copied().collect();
        for (rank, node) in self.nodes_by_rank.iter().enumerate() {
            self.node_rank[*node as usize] = rank as u32;
        }
        self.load_rank.resize(self.loads.len(), NONE);
        self.loads_by_rank = self.load_index.values().copied().collect();
        self.order.clear();
        for (rank, load) in self.loads_by_rank.iter().enumerate() {
            self.load_rank[*load as usize] = rank as u32;
            if self.loads[*load as usize].units > 0 {
                self.order.push(*load);
            }
        }
    }

    /// Why nobody may take this slot, given that nobody may.
    pub(super) fn why_not(&self, place: Place) -> Reason {
        let load = &self.loads[place.load as usize];
        let Some(spec) = load.spec.as_ref().filter(|spec| place.unit < spec.units.min(UNITS_MAX)) else {
            return Reason::NoSuchSlot;
        };
        if spec.paused {
            return Reason::Paused;
        }
        let Some(pin) = load.pins.get(&place.unit) else {
            return self.why_none_of(place, self.live());
        };
        match self.node_id(*pin).filter(|_| self.is_live(*pin)) {
            Some(id) => {
                let because = self.why_none_of(place, std::iter::once(*pin));
                Reason::Pinned { node: id.clone(), because: Box::new(because) }
            }
            None => match self.node_id(*pin) {
                Some(id) => Reason::PinnedToAbsent(id.clone()),
                None => Reason::NoNodes,
            },
        }
    }

    /// The last rule that still had a candidate before it is the one to blame.
    fn why_none_of(&self, place: Place, nodes: impl Iterator<Item = u32>) -> Reason {
        // No rule at all is further than the last of them.
        let furthest = nodes.map(|node| self.rule_against(place, node).map_or((1, None), |it| (0, Some(it.0)))).max();
        match furthest {
            None => Reason::NoNodes,
            Some((_, Some(Rule::Runs))) => Reason::NoneRunsIt,
            Some((_, Some(Rule::Fits))) => Reason::ZoneOrLabels,
            Some((_, Some(Rule::Stays | Rule::Accepts))) => Reason::NoneAccepts,
            Some((_, Some(Rule::Willing))) => Reason::AllRefused,
            Some((_, None)) => Reason::AllFull,
        }
    }

    /// The first rule that keeps a live node from taking a slot, pins and caps aside.
    fn rule_against(&self, place: Place, node: u32) -> Option<(Rule, Obstacle)> {
        let load = &self.loads[place.load as usize];
        let entry = &self.nodes[node as usize];
        let (Some(spec), Some(name), Some(wanted)) = (&entry.spec, &load.name, &load.spec) else {
            return Some((Rule::Runs, Obstacle::RunsNothingOfIt));
        };
        let Some(runs) = spec.runs.get(name) else { return Some((Rule::Runs, Obstacle::RunsNothingOfIt)) };
        if place.unit >= runs.units {
            return Some((Rule::Runs, Obstacle::RunsBelow { units: runs.units }));
        }
        if !fits_zone(spec, wanted) {
            return Some((Rule::Fits, Obstacle::Zone));
        }
        let missing: Vec<String> = missing_labels(spec, wanted).map(|(key, value)| format!("{key}={value}")).collect();
        if !missing.is_empty() {
            return Some((Rule::Fits, Obstacle::Labels { missing }));
        }
        if spec.leaving {
            return Some((Rule::Stays, Obstacle::Leaving));
        }
        if !entry.accepts {
            return Some((Rule::Accepts, Obstacle::AcceptsNothing));
        }
        load.refused.contains(&(place.unit, node)).then_some((Rule::Willing, Obstacle::Refused))
    }

    /// What keeps a live node from a slot, caps aside: nothing exactly where [`may_take`](Self::may_take) says so.
    pub(super) fn obstacle(&self, place: Place, node: u32) -> Option<Obstacle> {
        let load = &self.loads[place.load as usize];
        // Who holds a slot need not take it.
        let holds = load.holder(place.unit) == node;
        let rule = self.rule_against(place, node).filter(|(rule, _)| !holds || *rule < Rule::Accepts);
        let pin = load.pins.get(&place.unit).filter(|pin| **pin != node).and_then(|pin| self.node_id(*pin));
        rule.map(|(_, obstacle)| obstacle).or_else(|| pin.map(|pin| Obstacle::PinnedTo { node: pin.clone() }))
    }

    /// Works out what the rules permit for one pair.
    fn judge(&mut self, load: usize, node: usize) {
        let entry = &mut self.loads[load];
        if entry.pairs.len() < self.nodes.len() {
            entry.pairs.resize(self.nodes.len(), Pair::default());
        }
        let permitted = || {
            let spec = self.nodes[node].spec.as_ref().filter(|spec| !spec.leaving)?;
            let wanted = entry.spec.as_ref()?;
            let runs = spec.runs.get(entry.name.as_ref()?)?;
            if !fits_zone_and_labels(spec, wanted) {
                return None;
            }
            let units = runs.units.min(entry.units);
            let cap = runs.cap.unwrap_or(u32::MAX).min(wanted.cap_per_node.unwrap_or(u32::MAX)).min(units);
            Some(Pair { units, cap, priority: runs.priority })
        };
        entry.pairs[node] = permitted().unwrap_or_default();
    }

    fn mention_node(&mut self, id: &NodeId) -> u32 {
        if let Some(node) = self.node(id) {
            return node;
        }
        let entry = Node {
            id: Some(id.clone()),
            hash: score::node_hash(id.as_str()),
            weight: 1,
            accepts: false,
            capacity: 0,
            spec: None,
            mentions: 0,
        };
        let node = match self.free_nodes.pop() {
            Some(node) => {
                self.nodes[node as usize] = entry;
                node
            }
            None => {
                self.nodes.push(entry);
                self.nodes.len() as u32 - 1
            }
        };
        self.node_index.insert(id.clone(), node);
        self.ranks_stale = true;
        node
    }

    fn unmention_node(&mut self, node: u32) {
        if node != NONE {
            self.nodes[node as usize].mentions -= 1;
            self.forget_node(node);
        }
    }

    /// Drops a node that is neither alive nor mentioned.
    fn forget_node(&mut self, node: u32) {
        let entry = &mut self.nodes[node as usize];
        if entry.spec.is_some() || entry.mentions > 0 {
            return;
        }
        if let Some(id) = entry.id.take() {
            self.node_index.remove(&id);
            self.free_nodes.push(node);
            self.ranks_stale = true;
        }
    }

    fn mention_load(&mut self, name: &WorkloadName) -> u32 {
        if let Some(load) = self.load(name) {
            return load;
        }
        let entry = Load { name: Some(name.clone()), ..Load::default() };
        let load = match self.free_loads.pop() {
            Some(load) => {
                self.loads[load as usize] = entry;
                load
            }
            None => {
                self.loads.push(entry);
                self.loads.len() as u32 - 1
            }
        };
        self.load_index.insert(name.clone(), load);
        self.ranks_stale = true;
        load
    }

    /// Drops a workload that neither exists nor is mentioned, and the holders' tail that nobody needs.
    fn forget_load(&mut self, load: u32) {
        let entry = &mut self.loads[load as usize];
        if entry.spec.is_some() || entry.held > 0 || !entry.is_plain() {
            return;
        }
        if let Some(name) = entry.name.take() {
            *entry = Load::default();
            self.load_index.remove(&name);
            self.free_loads.push(load);
            self.ranks_stale = true;
        }
    }
}

fn fits_zone_and_labels(node: &NodeSpec, workload: &WorkloadSpec) -> bool {
    fits_zone(node, workload) && missing_labels(node, workload).next().is_none()
}

fn fits_zone(node: &NodeSpec, workload: &WorkloadSpec) -> bool {
    workload.zones.is_empty() || node.zone.as_ref().is_some_and(|zone| workload.zones.contains(zone))
}

fn missing_labels<'a>(
    node: &'a NodeSpec,
    workload: &'a WorkloadSpec,
) -> impl Iterator<Item = (&'a String, &'a String)> {
    workload.labels.iter().filter(|(key, value)| node.labels.get(*key) != Some(value))
}
