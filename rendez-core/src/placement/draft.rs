//! A placement while it is worked out: which slot is where, and how many each node has.
//!
//! What all policies need to place slots within the caps belongs here; what makes one placement better than
//! another does not.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::field::Field;
use super::score::{Rating, exponential};
use super::world::{NONE, Place, World};

/// Who should own what: by workload and unit, node indices.
pub(super) type Owners = Vec<Vec<u32>>;

/// How many slots of one workload each node has.
#[derive(Debug)]
pub(super) enum Tally {
    /// By node: for workloads with many units.
    Dense(Vec<u32>),
    /// Sorted by node, only those with some: for workloads with few.
    Sparse(Vec<(u32, u32)>),
}

impl Tally {
    fn new(units: u32, nodes: usize) -> Self {
        if units as usize >= nodes / 8 { Self::Dense(vec![0; nodes]) } else { Self::Sparse(Vec::new()) }
    }

    pub(super) fn get(&self, node: u32) -> u32 {
        match self {
            Self::Dense(counts) => counts[node as usize],
            Self::Sparse(counts) => counts.binary_search_by_key(&node, |(node, _)| *node).map_or(0, |at| counts[at].1),
        }
    }

    fn entry(&mut self, node: u32) -> &mut u32 {
        match self {
            Self::Dense(counts) => &mut counts[node as usize],
            Self::Sparse(counts) => {
                let at = match counts.binary_search_by_key(&node, |(node, _)| *node) {
                    Ok(at) => at,
                    Err(at) => {
                        counts.insert(at, (node, 0));
                        at
                    }
                };
                &mut counts[at].1
            }
        }
    }
}

/// A placement while it is worked out.
#[derive(Debug)]
pub(super) struct Draft<'w> {
    pub(super) world: &'w World,
    pub(super) owners: &'w mut Owners,
    /// By node: slots of all workloads.
    pub(super) total: Vec<u32>,
    /// By workload.
    pub(super) counts: Vec<Tally>,
    fields: Vec<Option<Field>>,
}

impl<'w> Draft<'w> {
    /// A draft in which nothing is counted yet; `owners` is not looked at.
    pub(super) fn new(world: &'w World, owners: &'w mut Owners) -> Self {
        let nodes = world.nodes.len();
        let counts = world.loads.iter().map(|load| Tally::new(load.units, nodes)).collect();
        let fields = world.loads.iter().map(|_| None).collect();
        Self { world, owners, total: vec![0; nodes], counts, fields }
    }

    /// Counts the slots of these workloads as their owners say.
    pub(super) fn count_all(&mut self, loads: &[u32]) {
        for load in loads {
            for owner in &self.owners[*load as usize] {
                if *owner != NONE {
                    self.total[*owner as usize] += 1;
                    *self.counts[*load as usize].entry(*owner) += 1;
                }
            }
        }
    }

    pub(super) fn owner(&self, place: Place) -> u32 {
        self.owners[place.load as usize][place.unit as usize]
    }

    pub(super) fn count(&self, load: u32, node: u32) -> u32 {
        self.counts[load as usize].get(node)
    }

    /// Gives a slot that nobody has to a node.
    pub(super) fn put(&mut self, place: Place, node: u32) {
        self.owners[place.load as usize][place.unit as usize] = node;
        self.total[node as usize] += 1;
        *self.counts[place.load as usize].entry(node) += 1;
    }

    /// Takes a slot from the node that has it.
    pub(super) fn take(&mut self, place: Place) {
        let node = std::mem::replace(&mut self.owners[place.load as usize][place.unit as usize], NONE);
        self.total[node as usize] -= 1;
        *self.counts[place.load as usize].entry(node) -= 1;
    }

    /// Whether the caps let a node have one more of this workload.
    pub(super) fn has_room(&self, load: u32, node: u32) -> bool {
        self.total[node as usize] < self.world.nodes[node as usize].capacity && self.has_room_of(load, node)
    }

    /// The same, for the workload's cap alone.
    pub(super) fn has_room_of(&self, load: u32, node: u32) -> bool {
        let load_entry = &self.world.loads[load as usize];
        load_entry.pairs.get(node as usize).is_some_and(|pair| self.count(load, node) < pair.cap)
    }

    /// Gives slots that nobody has to nodes, best pair of all first, as long as `open` says that a node may have
    /// one more of a workload. A node that is closed once must stay so. Returns the slots that are left over.
    pub(super) fn fill(&mut self, slots: &[Place], open: impl Fn(&Self, u32, u32) -> bool) -> Vec<Place> {
        let mut left = Vec::new();
        let mut bids = Vec::with_capacity(slots.len());
        for load in self.fields.iter_mut() {
            *load = None;
        }
        for place in slots {
            match self.bid(*place, &open) {
                Some(bid) => bids.push(bid),
                None => left.push(*place),
            }
        }
        let mut bids = BinaryHeap::from(bids);
        while let Some(bid) = bids.pop() {
            let node = self.world.nodes_by_rank[bid.node_rank as usize];
            let place = Place { load: self.world.loads_by_rank[bid.load_rank as usize], unit: bid.unit };
            if open(self, place.load, node) {
                self.put(place, node);
            } else {
                match self.bid(place, &open) {
                    Some(bid) => bids.push(bid),
                    None => left.push(place),
                }
            }
        }
        left
    }

    /// The best pair of a slot and an open node.
    fn bid(&mut self, place: Place, open: &impl Fn(&Self, u32, u32) -> bool) -> Option<Bid> {
        let world = self.world;
        let load = &world.loads[place.load as usize];
        let mut field = self.fields[place.load as usize].take();
        let field = field.get_or_insert_with(|| {
            let mut field = Field::takers(world, load);
            field.retain(|node| open(self, place.load, node));
            field
        });
        let mut closed = 0;
        let best = field.best(&world.node_rank, load.hashes[place.unit as usize], |node| {
            if !open(self, place.load, node) {
                closed += 1;
                return false;
            }
            world.may_take(place, node)
        });
        // Each closed node that is met again costs the time of an exact comparison.
        if closed > 1 + field.len() / 256 {
            field.retain(|node| open(self, place.load, node));
        }
        self.fields[place.load as usize] = Some(std::mem::take(field));
        Some(Bid::rated(world, place, best?.node, best?.rating))
    }
}

/// A pair of a slot and a node, in the order of scores: the greatest is the best.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bid {
    rating: Rating,
    /// Worked out once, for the many comparisons with pairs of other weights.
    exponential: u64,
    node_rank: u32,
    load_rank: u32,
    unit: u32,
}

impl Bid {
    pub(super) fn new(world: &World, place: Place, node: u32) -> Self {
        let entry = &world.nodes[node as usize];
        let slot = world.loads[place.load as usize].hashes[place.unit as usize];
        Self::rated(world, place, node, Rating::of(slot, entry.hash, entry.weight))
    }

    pub(super) fn rating(&self) -> Rating {
        self.rating
    }

    fn rated(world: &World, place: Place, node: u32, rating: Rating) -> Self {
        Self {
            rating,
            exponential: exponential(rating.h),
            node_rank: world.node_rank[node as usize],
            load_rank: world.load_rank[place.load as usize],
            unit: place.unit,
        }
    }
}

impl Ord for Bid {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rating
            .cmp_with(self.exponential, &other.rating, other.exponential)
            .then(other.node_rank.cmp(&self.node_rank))
            .then(other.load_rank.cmp(&self.load_rank))
            .then(other.unit.cmp(&self.unit))
    }
}

impl PartialOrd for Bid {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
