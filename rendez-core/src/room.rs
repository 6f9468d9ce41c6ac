//! How much room there is under a node's caps, and what a node lets go although nobody else can take it.
//!
//! Counting only: what is counted is for the caller to say. A node counts what it holds, was promised or may have without
//! knowing; a forecast counts what is held.

use std::collections::{BTreeMap, BTreeSet};

use crate::placement::{Counts, Desired, Reason};
use crate::{ClusterView, NodeId, Slot, WorkloadName};

/// The most that a node may hold; no limit where there is no number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caps {
    /// Of all workloads together.
    pub(crate) capacity: Option<u32>,
    /// Of the one workload that is asked about.
    pub(crate) of_workload: Option<u32>,
}

/// What a node has, counted against its caps.
#[derive(Debug, Default)]
pub(crate) struct Room {
    total: u32,
    of_workload: BTreeMap<WorkloadName, u32>,
}

impl Room {
    /// What is taken by these slots.
    pub(crate) fn taken_by<'a>(slots: impl IntoIterator<Item = &'a Slot>) -> Self {
        let mut room = Self::default();
        for slot in slots {
            room.count(slot);
        }
        room
    }

    pub(crate) fn count(&mut self, slot: &Slot) {
        self.total += 1;
        *self.of_workload.entry(slot.workload.clone()).or_default() += 1;
    }

    pub(crate) fn count_out(&mut self, slot: &Slot) {
        self.total = self.total.saturating_sub(1);
        let of_workload = self.of_workload.entry(slot.workload.clone()).or_default();
        *of_workload = of_workload.saturating_sub(1);
    }

    pub(crate) fn counts(&self, workload: &WorkloadName) -> Counts {
        Counts { total: self.total, of_workload: self.of_workload.get(workload).copied().unwrap_or_default() }
    }

    /// Whether what is counted is beyond a cap that concerns this slot.
    pub(crate) fn is_over(&self, caps: Caps, slot: &Slot) -> bool {
        caps.capacity.is_some_and(|capacity| self.total > capacity)
            || caps.of_workload.is_some_and(|cap| self.counts(&slot.workload).of_workload > cap)
    }

    /// Counts one more slot in, if there is room for it.
    pub(crate) fn take(&mut self, caps: Caps, slot: &Slot) -> bool {
        let full = caps.capacity.is_some_and(|capacity| self.total >= capacity)
            || caps.of_workload.is_some_and(|cap| self.counts(&slot.workload).of_workload >= cap);
        if !full {
            self.count(slot);
        }
        !full
    }
}

/// A node that holds slots.
#[derive(Debug)]
pub(crate) struct Keeper<'a> {
    /// The node.
    pub(crate) node: &'a NodeId,
    /// The most slots of all workloads that it may hold.
    pub(crate) capacity: Option<u32>,
    /// Whether it hands everything off.
    pub(crate) draining: bool,
    /// The slots of its live leases.
    pub(crate) held: &'a [Slot],
    /// Those of them whose end is not under way.
    pub(crate) staying: &'a BTreeSet<Slot>,
}

/// What shall not stay with its holder though nobody else can take it: paused workloads, removed units, what is beyond
/// a cap that was lowered, what the node cannot run any more. A drain, and a pin to a node that cannot take the slot,
/// keep it where it is until another node takes it.
pub(crate) fn let_go(view: &mut ClusterView, keeper: &Keeper<'_>) -> Vec<Slot> {
    let mut unwanted: Vec<Slot> = Vec::new();
    // Units that are beyond the end of their workload, or whose workload is gone, are in no plan.
    for slot in keeper.held {
        if matches!(view.planner().desired(slot), Desired::Nobody(Reason::Paused | Reason::NoSuchSlot)) {
            unwanted.push(slot.clone());
        }
    }
    if keeper.draining {
        return unwanted;
    }
    // In the plan an offer counts as done. Only what is beyond a cap in truth is let go.
    let mut room = Room::taken_by(keeper.staying);
    for unplaced in view.planner().unplaced() {
        let pinned = matches!(unplaced.reason, Reason::PinnedToAbsent(_) | Reason::Pinned { .. });
        let slot = unplaced.slot;
        if unplaced.holder.as_ref() != Some(keeper.node) || pinned || !keeper.staying.contains(&slot) {
            continue;
        }
        let caps = Caps { capacity: keeper.capacity, of_workload: view.cap(keeper.node, &slot.workload) };
        if !view.may_run(keeper.node, &slot) || room.is_over(caps, &slot) {
            room.count_out(&slot);
            unwanted.push(slot);
        }
    }
    unwanted
}
