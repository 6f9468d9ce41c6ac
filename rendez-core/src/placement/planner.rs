//! The planner: what the engine tells and asks.
//!
//! It takes changes one by one in any order, works the plan out when it is asked for, and answers in names. The
//! plan depends on nothing but what it was told last, so nodes that were told the same agree. How slots are
//! matched belongs to the policies, what binds a pair to the world.

use std::collections::BTreeSet;

use super::draft::{Draft, Owners};
use super::ring::Circles;
use super::shares::{Shares, pools};
use super::spec::{
    Band, Bands, Counts, Desired, LoadFactor, Move, NodeSpec, NodeSummary, Policy, Reason, Unplaced, WorkloadSpec,
};
use super::steps::Steps;
use super::world::{NONE, Place, World};
use super::{balanced, rendezvous, ring, sticky};
use crate::{NodeId, Slot, WorkloadName};

/// Decides who should own what.
///
/// ```
/// use rendez_core::placement::{LoadFactor, NodeSpec, Planner, Policy, Runs, WorkloadSpec};
/// use rendez_core::{NodeId, Slot, WorkloadName};
///
/// let inbox = WorkloadName::new("inbox").unwrap();
/// let mut planner = Planner::new(Policy::Balanced, LoadFactor::EXACT);
/// planner.set_workload(&inbox, WorkloadSpec { units: 4, ..WorkloadSpec::default() });
/// for id in ["a", "b"] {
///     let runs = [(inbox.clone(), Runs::ALL)].into();
///     planner.set_node(&NodeId::new(id).unwrap(), NodeSpec { runs, ..NodeSpec::default() });
/// }
/// let a = NodeId::new("a").unwrap();
/// let wanted = planner.wanted_by(&a);
/// assert_eq!(wanted.len(), 2);
/// for slot in &wanted {
///     planner.set_holder(slot, Some(&a));
/// }
/// assert!(planner.wanted_by(&a).is_empty());
/// assert_eq!(planner.desired(&wanted[0]).node(), Some(&a));
/// ```
#[derive(Debug)]
pub struct Planner {
    pub(super) world: World,
    pub(super) owners: Owners,
    stale: Stale,
    /// Whether caps bound what rendezvous and ring placed last.
    capped: bool,
    circles: Circles,
    steps: Steps,
    shares: Option<Shares>,
}

impl Planner {
    /// A planner that knows of no nodes and no workloads.
    #[must_use]
    pub fn new(policy: Policy, load_factor: LoadFactor) -> Self {
        let mut world = World::default();
        world.policy = policy;
        world.load_factor = load_factor;
        Self {
            world,
            owners: Owners::new(),
            stale: Stale { all: true, ..Stale::default() },
            capped: false,
            circles: Circles::default(),
            steps: Steps::default(),
            shares: None,
        }
    }

    /// Sets the policy of the workloads that have none of their own, and the load factor.
    pub fn set_policy(&mut self, policy: Policy, load_factor: LoadFactor) {
        if (self.world.policy, self.world.load_factor) != (policy, load_factor) {
            self.world.policy = policy;
            self.world.load_factor = load_factor;
            self.stale.all = true;
        }
    }

    /// Says that a node is alive, and what it is like now.
    pub fn set_node(&mut self, node: &NodeId, spec: NodeSpec) {
        let known = self.world.node(node).and_then(|index| self.world.nodes[index as usize].spec.as_ref());
        if known != Some(&spec) {
            self.stale.nodes.insert(self.world.set_node(node, spec));
        }
    }

    /// Says that a node's session has ended. What it held is orphaned.
    pub fn remove_node(&mut self, node: &NodeId) {
        self.stale.nodes.extend(self.world.remove_node(node));
    }

    /// Says that a workload exists, and what it is like now.
    pub fn set_workload(&mut self, workload: &WorkloadName, spec: WorkloadSpec) {
        let known = self.world.load(workload).and_then(|index| self.world.loads[index as usize].spec.as_ref());
        if known != Some(&spec) {
            self.stale.loads.insert(self.world.set_workload(workload, spec));
        }
    }

    /// Says that a workload exists no more.
    pub fn remove_workload(&mut self, workload: &WorkloadName) {
        self.stale.loads.extend(self.world.remove_workload(workload));
    }

    /// Says who holds a slot. A slot whose holder is no live node counts as an orphan.
    pub fn set_holder(&mut self, slot: &Slot, holder: Option<&NodeId>) {
        self.stale.places.extend(self.world.set_holder(slot, holder));
    }

    /// Pins a slot to a node, alive or not, or lets it go.
    pub fn set_pin(&mut self, slot: &Slot, node: Option<&NodeId>) {
        self.stale.places.extend(self.world.set_pin(slot, node));
    }

    /// Says that a node has refused a slot or did not take it in time, so that the next in rank is asked, or that
    /// it may be asked again. A node that holds the slot may keep it all the same.
    pub fn exclude(&mut self, slot: &Slot, node: &NodeId, excluded: bool) {
        self.stale.places.extend(self.world.exclude(slot, node, excluded));
    }

    /// Who should own a slot.
    ///
    /// A held slot that should leave its holder but can go nowhere keeps its holder;
    /// [`unplaced`](Self::unplaced) says why. Of a paused workload, nobody should own anything.
    pub fn desired(&mut self, slot: &Slot) -> Desired<'_> {
        self.plan();
        let Some(place) = self.world.place(slot) else { return Desired::Nobody(Reason::NoSuchSlot) };
        match self.owner(place).and_then(|node| self.world.node_id(node)) {
            Some(node) => Desired::Node(node),
            None => Desired::Nobody(self.world.why_not(place)),
        }
    }

    /// The orphans that this node should take, in the order of slots. Where the node that should own an orphan is full
    /// with what it holds, another that has room stands in for it: orphans wait for no move.
    pub fn wanted_by(&mut self, node: &NodeId) -> Vec<Slot> {
        self.plan();
        let Some(index) = self.world.node(node) else { return Vec::new() };
        let mine = self.steps.orphans.iter().filter(|(_, taker)| *taker == index);
        mine.filter_map(|(place, _)| self.world.slot(*place)).collect()
    }

    /// The node that should take a slot now, if it is an orphan that anybody may take. It may be another than the one
    /// that should own it: see [`wanted_by`](Self::wanted_by).
    pub fn taker(&mut self, slot: &Slot) -> Option<&NodeId> {
        self.plan();
        let place = self.world.place(slot)?;
        let (_, taker) = self.steps.orphans.iter().find(|(wanted, _)| *wanted == place)?;
        self.world.node_id(*taker)
    }

    /// All orphans that a node should take, in the order of slots, with that node: what
    /// [`wanted_by`](Self::wanted_by) says for each node, in one pass.
    pub fn wanted(&mut self) -> Vec<(Slot, NodeId)> {
        self.plan();
        let all = self.steps.orphans.iter();
        all.filter_map(|(place, taker)| Some((self.world.slot(*place)?, self.world.node_id(*taker)?.clone()))).collect()
    }

    /// The slots that this node holds and another should have, in the order of slots.
    pub fn leaving(&mut self, node: &NodeId) -> Vec<Move> {
        self.plan();
        let Some(index) = self.world.node(node) else { return Vec::new() };
        let mine = self
            .steps
            .moves
            .iter()
            .filter(|step| self.world.loads[step.place.load as usize].holder(step.place.unit) == index);
        let named = mine.filter_map(|step| {
            let (slot, to) = (self.world.slot(step.place)?, self.world.node_id(step.to)?.clone());
            Some(Move { slot, to, cause: step.cause, has_room: step.has_room })
        });
        named.collect()
    }

    /// The slots that nobody may take, in the order of slots: orphans, and held ones that should leave their
    /// holder. Slots of paused workloads are among them only while they are held.
    pub fn unplaced(&mut self) -> Vec<Unplaced> {
        self.plan();
        let all = self.steps.unplaced.iter().filter_map(|place| {
            let holder = self.world.loads[place.load as usize].holder(place.unit);
            let holder = self.world.node_id(holder).filter(|_| self.world.is_live(holder)).cloned();
            Some(Unplaced { slot: self.world.slot(*place)?, holder, reason: self.world.why_not(*place) })
        });
        all.collect()
    }

    /// Every slot that exists, in order, with the node that should own it.
    pub fn assignments(&mut self) -> impl Iterator<Item = (Slot, Option<&NodeId>)> {
        self.plan();
        self.world.loads_by_rank.iter().flat_map(|load| {
            let units = self.world.loads[*load as usize].units;
            (0..units).filter_map(|unit| {
                let place = Place { load: *load, unit };
                let owner = self.owner(place).and_then(|node| self.world.node_id(node));
                Some((self.world.slot(place)?, owner))
            })
        })
    }

    /// How many slots a node should have: in all, and of a workload. None if it takes nothing of it.
    pub fn bands(&mut self, node: &NodeId, workload: &WorkloadName) -> Option<Bands> {
        self.share_out();
        let (node, load) = (self.world.node(node)?, self.world.load(workload)?);
        let shares = self.shares.as_ref()?;
        let takes = self.world.nodes[node as usize].accepts;
        let permitted = self.world.loads[load as usize].pairs.get(node as usize).is_some_and(|pair| pair.units > 0);
        (takes && permitted)
            .then(|| Bands { total: shares.total(node), of_workload: shares.of_load(&self.world, load, node) })
    }

    /// How many slots a node holds: in all, and of a workload. An offer carries this for its giver.
    #[must_use]
    pub fn held(&self, node: &NodeId, workload: &WorkloadName) -> Counts {
        let Some(index) = self.world.node(node) else { return Counts::default() };
        let mut counts = Counts::default();
        for load in &self.world.loads {
            let units = &load.holders[..load.holders.len().min(load.units as usize)];
            let held = units.iter().filter(|holder| **holder == index).count() as u32;
            counts.total += held;
            if load.name.as_ref() == Some(workload) {
                counts.of_workload = held;
            }
        }
        counts
    }

    /// Whether the receiver of an offer should agree to it: the move is forced, or the spread gets better, or
    /// this node's own plan has the same move and the giver has as many as its records say. The last is for the
    /// moves of a chain, of which one alone makes nothing better.
    ///
    /// The counts are as in [`lowers_phi`](Self::lowers_phi).
    pub fn agrees_to(&mut self, slot: &Slot, giver: (&NodeId, Counts), receiver: (&NodeId, Counts)) -> bool {
        if self.desired(slot).node() == Some(receiver.0) {
            let planned = self.leaving(giver.0).into_iter().find(|it| it.slot == *slot);
            if planned.is_some_and(|it| !it.cause.is_voluntary() || self.held(giver.0, &slot.workload) == giver.1) {
                return true;
            }
        }
        let permitted = self.world.place(slot).zip(self.world.node(receiver.0));
        permitted.is_some_and(|(place, node)| self.world.may_take(place, node))
            && self.lowers_phi(&slot.workload, giver, receiver)
    }

    /// Whether the spread gets better if one slot of a workload moves from a giver to a receiver that have this
    /// many, what was promised to the receiver counted in. Caps and rules are not looked at.
    pub fn lowers_phi(
        &mut self,
        workload: &WorkloadName,
        giver: (&NodeId, Counts),
        receiver: (&NodeId, Counts),
    ) -> bool {
        let any = Bands { total: Band::ANY, of_workload: Band::ANY };
        let Some(to) = self.bands(receiver.0, workload) else { return false };
        let from = self.bands(giver.0, workload).unwrap_or(any);
        let loss = 2 * from.total.on_loss(giver.1.total) + from.of_workload.on_loss(giver.1.of_workload);
        let gain = 2 * to.total.on_gain(receiver.1.total) + to.of_workload.on_gain(receiver.1.of_workload);
        loss + gain < 0
    }

    /// Every live node, in the order of ids: its share, its band, what it holds and what it should hold.
    pub fn summary(&mut self) -> Vec<NodeSummary> {
        self.plan();
        self.share_out();
        let mut held = vec![0; self.world.nodes.len()];
        let mut desired = vec![0; self.world.nodes.len()];
        for load in &self.world.order {
            let units = 0..self.world.loads[*load as usize].units;
            for node in units.filter_map(|unit| self.owner(Place { load: *load, unit })) {
                desired[node as usize] += 1;
            }
        }
        for load in &self.world.loads {
            for node in load.holders.iter().filter(|node| **node != NONE) {
                held[*node as usize] += 1;
            }
        }
        let Some(shares) = &self.shares else { return Vec::new() };
        let summaries = self.world.live().filter_map(|node| {
            let (held, desired) = (held[node as usize], desired[node as usize]);
            let (share, band) = if self.world.nodes[node as usize].accepts {
                (shares.exact(node), shares.total(node))
            } else {
                (f64::from(desired), Band { low: desired, high: desired })
            };
            Some(NodeSummary { node: self.world.node_id(node)?.clone(), share, band, held, desired })
        });
        summaries.collect()
    }

    /// Works the shares out if anything has changed.
    fn share_out(&mut self) {
        self.plan();
        if self.shares.is_none() {
            let world = &self.world;
            let mut kept = vec![0; world.loads.len()];
            for load in &world.order {
                let units = 0..world.loads[*load as usize].units;
                kept[*load as usize] =
                    units.filter(|unit| world.is_kept(Place { load: *load, unit: *unit })).count() as u32;
            }
            self.shares = Some(Shares::of(world, &pools(world, &kept)));
        }
    }

    /// Who should own a slot: who the plan says, or else who has it and can give it to nobody.
    pub(super) fn owner(&self, place: Place) -> Option<u32> {
        let owner = *self.owners.get(place.load as usize)?.get(place.unit as usize)?;
        if owner != NONE {
            return Some(owner);
        }
        let holder = self.world.loads[place.load as usize].holder(place.unit);
        self.world.is_live(holder).then_some(holder)
    }

    /// Works the plan out if anything has changed.
    pub(super) fn plan(&mut self) {
        if self.stale.is_empty() {
            return;
        }
        let stale = std::mem::take(&mut self.stale);
        self.shares = None;
        self.world.refresh();
        let world = &self.world;
        self.owners.resize_with(world.loads.len(), Vec::new);
        for (owners, load) in self.owners.iter_mut().zip(&world.loads) {
            owners.resize(load.units as usize, NONE);
        }
        let (mut by_score, mut by_ring, mut by_share, mut by_holder) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for load in &world.order {
            match world.policy_of(&world.loads[*load as usize]) {
                Policy::Rendezvous => by_score.push(*load),
                Policy::Ring(_) => by_ring.push(*load),
                Policy::Balanced => by_share.push(*load),
                Policy::Sticky => by_holder.push(*load),
            }
        }
        let whoever_holds = [&*by_score, &*by_ring].concat();
        let was_capped = std::mem::replace(&mut self.capped, whoever_holds.iter().any(|load| world.is_capped(*load)));
        self.circles.refresh(world, &by_ring, stale.all || !stale.nodes.is_empty());
        if !self.capped {
            let all = stale.all || was_capped || stale.nodes.len() * 8 > world.nodes.len();
            let (anew, kept): (Vec<u32>, Vec<u32>) =
                by_score.iter().partition(|load| all || stale.loads.contains(load));
            rendezvous::place_all(world, &mut self.owners, &anew);
            if !stale.nodes.is_empty() {
                rendezvous::place_changed(world, &mut self.owners, &kept, &stale.nodes);
            }
            rendezvous::place_some(world, &mut self.owners, &kept, stale.places.clone());
            let all = stale.all || was_capped || !stale.nodes.is_empty();
            let (anew, kept): (Vec<u32>, Vec<u32>) = by_ring.iter().partition(|load| all || stale.loads.contains(load));
            ring::place_all(world, &self.circles, &mut self.owners, &anew);
            ring::place_some(world, &self.circles, &mut self.owners, &kept, &stale.places);
        }
        if self.capped || !by_share.is_empty() || !by_holder.is_empty() {
            let mut draft = Draft::new(world, &mut self.owners);
            // Leadership before load: where both want the last room of a node, it is the other that goes elsewhere.
            sticky::place(&mut draft, &by_holder);
            if self.capped {
                rendezvous::place_within_caps(&mut draft, &by_score);
                ring::place_within_caps(&mut draft, &self.circles, &by_ring, &whoever_holds);
            } else {
                draft.count_all(&whoever_holds);
            }
            self.shares = Some(balanced::place(&mut draft, &by_share));
        }
        self.steps = Steps::of(world, &self.owners);
    }
}

/// What has changed since the plan was worked out.
#[derive(Debug, Default)]
struct Stale {
    all: bool,
    nodes: BTreeSet<u32>,
    loads: BTreeSet<u32>,
    places: Vec<Place>,
}

impl Stale {
    fn is_empty(&self) -> bool {
        !self.all && self.nodes.is_empty() && self.loads.is_empty() && self.places.is_empty()
    }
}
