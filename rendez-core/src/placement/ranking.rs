//! The candidates for one slot, and what speaks against each.
//!
//! Nothing is decided here: the plan is made, and this says of it what the rules and the counts behind it were.

use super::draft::Bid;
use super::spec::{Candidate, Counts, Obstacle, Policy};
use super::world::{NONE, Place};
use crate::Slot;

use super::planner::Planner;
use super::ring;

impl Planner {
    /// Every live node as a candidate for a slot, in the order of their scores for it, the best first; under the policy `sticky`
    /// in that of their priorities before; of a ring, in the order in which they come clockwise. Empty where there is no such slot to place, because its workload is paused
    /// or does not have it.
    ///
    /// What speaks against a node is as the plan has it: a node is full if it is so once everything has gone as
    /// planned.
    pub fn candidates(&mut self, slot: &Slot) -> Vec<Candidate> {
        self.plan();
        let Some(place) =
            self.world.place(slot).filter(|place| place.unit < self.world.loads[place.load as usize].units)
        else {
            return Vec::new();
        };
        let chosen = self.owners[place.load as usize][place.unit as usize];
        let planned = self.planned(place.load);
        let mut nodes: Vec<u32> = self.world.live().collect();
        match self.world.policy_of(&self.world.loads[place.load as usize]) {
            Policy::Balanced | Policy::Rendezvous => {
                nodes.sort_by_key(|node| std::cmp::Reverse(Bid::new(&self.world, place, *node)));
            }
            Policy::Sticky => {
                let priority = |node: u32| self.world.loads[place.load as usize].pairs[node as usize].priority;
                nodes.sort_by_key(|node| std::cmp::Reverse((priority(*node), Bid::new(&self.world, place, *node))));
            }
            Policy::Ring(virtual_nodes) => ring::sort_clockwise(&self.world, virtual_nodes, place, &mut nodes),
        }
        let named = nodes.into_iter().filter_map(|node| {
            let id = self.world.node_id(node)?.clone();
            let planned = planned[node as usize];
            let against = if node == chosen { None } else { Some(self.obstacle(place, node, chosen, planned)) };
            let (held, bands) = (self.held(&id, &slot.workload), self.bands(&id, &slot.workload));
            Some(Candidate { node: id, against, held, planned, bands })
        });
        named.collect()
    }

    /// The policy that a slot is placed by.
    #[must_use]
    pub fn policy_of(&self, slot: &Slot) -> Policy {
        let load = self.world.place(slot).map(|place| &self.world.loads[place.load as usize]);
        load.map_or(self.world.policy, |load| self.world.policy_of(load))
    }

    /// By node: what it has of all workloads and of this one, once everything has gone as planned.
    fn planned(&self, load: u32) -> Vec<Counts> {
        let mut counts = vec![Counts::default(); self.world.nodes.len()];
        for at in &self.world.order {
            let units = 0..self.world.loads[*at as usize].units;
            for node in units.filter_map(|unit| self.owner(Place { load: *at, unit })) {
                counts[node as usize].total += 1;
                counts[node as usize].of_workload += u32::from(*at == load);
            }
        }
        counts
    }

    /// What keeps a node from a slot that the plan gives to another, or to none.
    fn obstacle(&self, place: Place, node: u32, chosen: u32, planned: Counts) -> Obstacle {
        let load = &self.world.loads[place.load as usize];
        if let Some(rule) = self.world.obstacle(place, node) {
            return rule;
        }
        if chosen != NONE && self.world.is_kept(place) {
            return Obstacle::HolderKeeps;
        }
        if chosen != NONE && chosen == load.holder(place.unit) && self.world.policy_of(load) == Policy::Sticky {
            return Obstacle::HolderStays;
        }
        let (capacity, cap) = (self.world.nodes[node as usize].capacity, load.pairs[node as usize].cap);
        if planned.total >= capacity {
            return Obstacle::Capacity { most: capacity };
        }
        if planned.of_workload >= cap {
            return Obstacle::Cap { most: cap };
        }
        match self.world.policy_of(load) {
            Policy::Balanced => Obstacle::NoGain,
            Policy::Rendezvous | Policy::Sticky => Obstacle::Outranked,
            Policy::Ring(_) => Obstacle::FurtherOnTheRing,
        }
    }
}
