//! Random worlds for the placement tests, kept in the plainest form, and what is true of them by definition.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::{BTreeMap, BTreeSet};

use rendez_core::placement::score::{Rating, node_hash, slot_hash};
use rendez_core::placement::{LoadFactor, NodeSpec, Planner, Policy, Runs, WorkloadSpec};
use rendez_core::{NodeId, Slot, WorkloadName, ZoneName};

/// A small generator, so that a world is its seed.
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed ^ 0x5DEE_CE66_D1CE_4E5B)
    }

    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((x ^ (x >> 31)) % u64::from(bound)) as u32
    }

    pub(crate) fn one_in(&mut self, many: u32) -> bool {
        self.below(many) == 0
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.below(at as u32 + 1) as usize);
        }
    }
}

/// All inputs of a plan.
#[derive(Debug, Clone, Default)]
pub(crate) struct World {
    pub(crate) policy: Policy,
    pub(crate) load_factor: LoadFactor,
    pub(crate) nodes: BTreeMap<NodeId, NodeSpec>,
    pub(crate) workloads: BTreeMap<WorkloadName, WorkloadSpec>,
    pub(crate) holders: BTreeMap<Slot, NodeId>,
    pub(crate) pins: BTreeMap<Slot, NodeId>,
    pub(crate) refused: BTreeSet<(Slot, NodeId)>,
}

/// Who should own what, of all slots that exist.
pub(crate) type Plan = BTreeMap<Slot, Option<NodeId>>;

/// The priorities that nodes may have: those below this.
pub(crate) const PRIORITIES: u32 = 3;

/// The policies that workloads may have of their own.
const POLICIES: [Policy; 3] = [Policy::Balanced, Policy::Rendezvous, Policy::Sticky];

/// What kinds of trouble a random world may have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trouble {
    pub(crate) caps: bool,
    pub(crate) rules: bool,
    pub(crate) cordons: bool,
    pub(crate) pins: bool,
    pub(crate) load_factor: bool,
    /// Workloads with policies of their own.
    pub(crate) mixed: bool,
}

impl Trouble {
    pub(crate) const NONE: Self =
        Self { caps: false, rules: false, cordons: false, pins: false, load_factor: false, mixed: false };
    pub(crate) const ALL: Self =
        Self { caps: true, rules: true, cordons: true, pins: true, load_factor: true, mixed: true };
}

pub(crate) fn node(index: u32) -> NodeId {
    NodeId::new(format!("node-{index}")).unwrap()
}

pub(crate) fn workload(index: u32) -> WorkloadName {
    WorkloadName::new(format!("w{index}")).unwrap()
}

pub(crate) fn random_node(dice: &mut Dice, trouble: Trouble, workloads: u32) -> NodeSpec {
    let mut spec = NodeSpec { weight: 1 + dice.below(3), ..NodeSpec::default() };
    for index in 0..workloads {
        if trouble.rules && dice.one_in(6) {
            continue;
        }
        let units = if trouble.rules && dice.one_in(6) { 1 + dice.below(4) } else { u32::MAX };
        let cap = (trouble.caps && dice.one_in(4)).then(|| dice.below(4));
        spec.runs.insert(workload(index), Runs { units, cap, priority: dice.below(PRIORITIES) });
    }
    if trouble.caps && dice.one_in(4) {
        spec.capacity = Some(dice.below(8));
    }
    if trouble.rules {
        spec.zone = (!dice.one_in(4)).then(|| ZoneName::new(format!("z{}", dice.below(2))).unwrap());
        if dice.one_in(2) {
            spec.labels.insert("disk".into(), "fast".into());
        }
    }
    if trouble.cordons {
        spec.accepts = !dice.one_in(5);
        spec.leaving = dice.one_in(8);
    }
    spec
}

pub(crate) fn random_workload(dice: &mut Dice, trouble: Trouble) -> WorkloadSpec {
    let mut spec = WorkloadSpec { units: 1 + dice.below(7), ..WorkloadSpec::default() };
    if trouble.rules {
        spec.paused = dice.one_in(10);
        if dice.one_in(4) {
            spec.zones.insert(ZoneName::new("z0").unwrap());
        }
        if dice.one_in(6) {
            spec.labels.insert("disk".into(), "fast".into());
        }
    }
    spec.policy = (trouble.mixed && dice.one_in(2)).then(|| POLICIES[dice.below(3) as usize]);
    spec.cap_per_node = (trouble.caps && dice.one_in(4)).then(|| 1 + dice.below(4));
    spec
}

impl World {
    pub(crate) fn random(dice: &mut Dice, trouble: Trouble, policy: Policy) -> Self {
        let mut world = Self { policy, ..Self::default() };
        if trouble.load_factor && dice.one_in(3) {
            world.load_factor = LoadFactor::from_permille(1000 + dice.below(600)).unwrap();
        }
        let (nodes, workloads) = (1 + dice.below(5), 1 + dice.below(4));
        for index in 0..workloads {
            world.workloads.insert(workload(index), random_workload(dice, trouble));
        }
        for index in 0..nodes {
            world.nodes.insert(node(index), random_node(dice, trouble, workloads));
        }
        for slot in world.slots() {
            if !dice.one_in(3) {
                // Some are held by a node that is gone.
                world.holders.insert(slot.clone(), node(dice.below(nodes + 1)));
            }
            if trouble.pins && dice.one_in(8) {
                world.pins.insert(slot.clone(), node(dice.below(nodes + 1)));
            }
            if trouble.pins && dice.one_in(8) {
                world.refused.insert((slot, node(dice.below(nodes))));
            }
        }
        world
    }

    /// All slots that exist and are not paused, in order.
    pub(crate) fn slots(&self) -> Vec<Slot> {
        let running = self.workloads.iter().filter(|(_, spec)| !spec.paused);
        running.flat_map(|(name, spec)| (0..spec.units).map(|unit| Slot::new(name.clone(), unit))).collect()
    }

    /// A planner that was told all of this, in an order of the dice.
    pub(crate) fn planner(&self, dice: &mut Dice) -> Planner {
        enum Step<'a> {
            Node(&'a NodeId, &'a NodeSpec),
            Workload(&'a WorkloadName, &'a WorkloadSpec),
            Holder(&'a Slot, &'a NodeId),
            Pin(&'a Slot, &'a NodeId),
            Refused(&'a Slot, &'a NodeId),
        }
        let mut steps: Vec<_> = self.nodes.iter().map(|(id, spec)| Step::Node(id, spec)).collect();
        steps.extend(self.workloads.iter().map(|(name, spec)| Step::Workload(name, spec)));
        steps.extend(self.holders.iter().map(|(slot, id)| Step::Holder(slot, id)));
        steps.extend(self.pins.iter().map(|(slot, id)| Step::Pin(slot, id)));
        steps.extend(self.refused.iter().map(|(slot, id)| Step::Refused(slot, id)));
        dice.shuffle(&mut steps);
        let mut planner = Planner::new(self.policy, self.load_factor);
        for step in steps {
            match step {
                Step::Node(id, spec) => planner.set_node(id, spec.clone()),
                Step::Workload(name, spec) => planner.set_workload(name, spec.clone()),
                Step::Holder(slot, id) => planner.set_holder(slot, Some(id)),
                Step::Pin(slot, id) => planner.set_pin(slot, Some(id)),
                Step::Refused(slot, id) => planner.exclude(slot, id, true),
            }
        }
        planner
    }

    pub(crate) fn may_hold(&self, slot: &Slot, id: &NodeId) -> bool {
        let (Some(spec), Some(wanted)) = (self.nodes.get(id), self.workloads.get(&slot.workload)) else { return false };
        let runs = spec.runs.get(&slot.workload).is_some_and(|runs| slot.unit < runs.units);
        let zone = wanted.zones.is_empty() || spec.zone.as_ref().is_some_and(|zone| wanted.zones.contains(zone));
        let labels = wanted.labels.iter().all(|(key, value)| spec.labels.get(key) == Some(value));
        let pin = self.pins.get(slot).is_none_or(|pin| pin == id);
        runs && zone && labels && pin && !spec.leaving
    }

    pub(crate) fn may_take(&self, slot: &Slot, id: &NodeId) -> bool {
        let held = self.holders.get(slot) == Some(id);
        let willing = self.nodes.get(id).is_some_and(|spec| spec.accepts);
        self.may_hold(slot, id) && (held || willing && !self.refused.contains(&(slot.clone(), id.clone())))
    }

    /// Held by a node that takes nothing new and may keep it.
    pub(crate) fn is_kept(&self, slot: &Slot) -> bool {
        let holder = self.holders.get(slot);
        holder.is_some_and(|id| self.may_hold(slot, id) && !self.nodes[id].accepts)
    }

    pub(crate) fn cap(&self, name: &WorkloadName, id: &NodeId) -> u32 {
        let own = self.nodes[id].runs.get(name).and_then(|runs| runs.cap).unwrap_or(u32::MAX);
        own.min(self.workloads[name].cap_per_node.unwrap_or(u32::MAX))
    }

    pub(crate) fn capacity(&self, id: &NodeId) -> u32 {
        self.nodes[id].capacity.unwrap_or(u32::MAX)
    }

    /// Whether section by section of the score's definition this pair is better than that one.
    pub(crate) fn is_better(&self, this: (&Slot, &NodeId), that: (&Slot, &NodeId)) -> bool {
        let rating = |(slot, id): (&Slot, &NodeId)| {
            let hash = slot_hash(slot.workload.as_str(), slot.unit);
            Rating::of(hash, node_hash(id.as_str()), self.nodes[id].weight)
        };
        let order = rating(this).cmp(&rating(that));
        order.then(that.1.cmp(this.1)).then(that.0.cmp(this.0)).is_gt()
    }

    pub(crate) fn held_by_live(&self, slot: &Slot) -> Option<&NodeId> {
        self.holders.get(slot).filter(|id| self.nodes.contains_key(*id))
    }
}

pub(crate) fn plan_of(planner: &mut Planner) -> Plan {
    planner.assignments().map(|(slot, owner)| (slot, owner.cloned())).collect()
}
