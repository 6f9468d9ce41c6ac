//! A world that is led to where it comes to rest, step by step.

use std::collections::{BTreeMap, BTreeSet};

use crate::placement::{Desired, Reason, Unplaced};
use crate::records::{Holder, SlotRecord, Stance};
use crate::room::{Caps, Keeper, Room, let_go};
use crate::store::Change;
use crate::{ClusterView, FencingToken, NodeId, OperationId, Revision, Slot, Timestamp, WorkloadName};

use super::{Forecast, NodeForecast, Step, StepCause, StuckSlot, Totals, UnplacedSlot};

/// So many times the plan is looked at anew. It is its own fixed point, so that more than a few are only needed where moves
/// wait for the room that others make.
const ROUNDS_MAX: usize = 64;

/// A world that is led to where it comes to rest.
pub(super) struct Run {
    world: ClusterView,
    now: Timestamp,
    pub(super) steps: Vec<Step>,
}

impl Run {
    pub(super) fn new(world: ClusterView, now: Timestamp) -> Self {
        Self { world, now, steps: Vec::new() }
    }

    pub(super) fn settle(&mut self) {
        self.finish_offers();
        for _ in 0..ROUNDS_MAX {
            let before = self.steps.len();
            // Orphans wait for no move, and what must not run waits for nothing.
            self.take_orphans();
            self.let_go();
            self.move_on();
            if self.steps.len() == before {
                return;
            }
        }
    }

    /// The live nodes, by name.
    fn nodes(&self) -> Vec<NodeId> {
        let live: BTreeSet<NodeId> = self.world.sessions().map(|(_, record)| record.info.node.clone()).collect();
        live.into_iter().collect()
    }

    fn held_by(&self, node: &NodeId) -> Vec<Slot> {
        let session = self.world.session_of(node);
        session.into_iter().flat_map(|id| self.world.held_by(id)).cloned().collect()
    }

    fn room_of(&self, node: &NodeId) -> Room {
        Room::taken_by(&self.held_by(node))
    }

    fn capacity_of(&self, node: &NodeId) -> Option<u32> {
        self.world.session(self.world.session_of(node)?)?.info.capacity
    }

    fn caps(&self, node: &NodeId, workload: &WorkloadName) -> Caps {
        Caps { capacity: self.capacity_of(node), of_workload: self.world.cap(node, workload) }
    }

    fn finish_offers(&mut self) {
        let offers = self.world.offers(self.now).filter_map(|(slot, record)| {
            let offer = self.world.standing_offer(self.now, record)?;
            let to = self.world.session(offer.to)?.info.node.clone();
            Some((slot.clone(), Some(to), StepCause::UnderWay { forced: offer.forced }))
        });
        let steps = offers.collect();
        self.make(steps);
    }

    fn take_orphans(&mut self) {
        let mut steps = Vec::new();
        for node in self.nodes() {
            let wanted = self.world.planner().wanted_by(&node);
            let mut room = self.room_of(&node);
            for slot in wanted {
                if room.take(self.caps(&node, &slot.workload), &slot) {
                    let before = self.world.slot(&slot).and_then(|record| record.holder.as_ref());
                    let why = if before.is_some() { StepCause::TakenOver } else { StepCause::Taken };
                    steps.push((slot, Some(node.clone()), why));
                }
            }
        }
        self.make(steps);
    }

    fn let_go(&mut self) {
        let reasons = self.reasons();
        let mut steps = Vec::new();
        for node in self.nodes() {
            let held = self.held_by(&node);
            let session = self.world.session_of(&node).and_then(|id| self.world.session(id));
            let Some(info) = session.map(|record| record.info.clone()) else { continue };
            let keeper = Keeper {
                node: &node,
                capacity: info.capacity,
                draining: info.stance == Stance::Draining || self.world.wish(&node).drain,
                held: &held,
                staying: &held.iter().cloned().collect(),
            };
            for slot in let_go(&mut self.world, &keeper) {
                let why = StepCause::LetGo(self.reason(&reasons, &slot));
                steps.push((slot, None, why));
            }
        }
        self.make(steps);
    }

    /// Makes the moves for which there is room: first those that no rule holds back.
    fn move_on(&mut self) {
        let mut rooms: BTreeMap<NodeId, Room> = BTreeMap::new();
        let mut moves = Vec::new();
        for node in self.nodes() {
            rooms.insert(node.clone(), self.room_of(&node));
            let leaving = self.world.planner().leaving(&node).into_iter();
            let possible = leaving.filter(|planned| planned.has_room || !planned.cause.is_voluntary());
            moves.extend(possible.map(|planned| (node.clone(), planned)));
        }
        moves.sort_by_key(|(_, planned)| planned.cause.is_voluntary());
        let mut steps = Vec::new();
        for (from, planned) in moves {
            let caps = self.caps(&planned.to, &planned.slot.workload);
            if !rooms.get_mut(&planned.to).is_some_and(|room| room.take(caps, &planned.slot)) {
                continue;
            }
            if let Some(room) = rooms.get_mut(&from) {
                room.count_out(&planned.slot);
            }
            let voluntary = planned.cause.is_voluntary();
            let why = if voluntary { StepCause::Voluntary } else { StepCause::Forced(planned.cause) };
            steps.push((planned.slot, Some(planned.to), why));
        }
        self.make(steps);
    }

    /// Why the plan has no place for slots of its own.
    fn reasons(&mut self) -> BTreeMap<Slot, Reason> {
        self.world.planner().unplaced().into_iter().map(|unplaced| (unplaced.slot, unplaced.reason)).collect()
    }

    /// Why nobody may take a slot.
    fn reason(&mut self, reasons: &BTreeMap<Slot, Reason>, slot: &Slot) -> Reason {
        match (reasons.get(slot), self.world.planner().desired(slot)) {
            (Some(reason), _) => reason.clone(),
            (None, Desired::Nobody(reason)) => reason,
            (None, Desired::Node(_)) => Reason::AllFull,
        }
    }

    /// Makes steps that have been decided from one plan.
    fn make(&mut self, mut steps: Vec<(Slot, Option<NodeId>, StepCause)>) {
        // All at once, or nearly: what cannot wait stands first.
        steps.sort_by(|(one, _, why), (other, _, because)| {
            (*why == StepCause::Voluntary, one).cmp(&(*because == StepCause::Voluntary, other))
        });
        let mut changes = Vec::new();
        for (slot, to, why) in steps {
            let known = self.world.slot(&slot).cloned();
            let from = known.as_ref().and_then(|record| record.holder.as_ref()).map(|holder| holder.node.clone());
            let session = to.as_ref().and_then(|node| self.world.session_of(node));
            let holder = session.zip(to.clone()).map(|(session, node)| Holder { session, node });
            let record = SlotRecord { holder, offer: None, ..known.unwrap_or_else(|| self.never_granted()) };
            changes.push(Change::Slot(slot.clone(), Some(record)));
            self.steps.push(Step { slot, from, to, why, anyway: false });
        }
        self.world.suppose(self.now, changes);
    }

    fn never_granted(&self) -> SlotRecord {
        SlotRecord {
            token: FencingToken::NONE,
            granted_by: OperationId::from_bits(0),
            holder: None,
            taken_at: self.world.store_now(self.now),
            freed_at: None,
            moved_at: None,
            offer: None,
            refusals: Vec::new(),
            force: None,
            checkpoint: None,
            revision: Revision::default(),
        }
    }

    /// What has happened since this view.
    pub(super) fn forecast(mut self, before: &ClusterView) -> Forecast {
        let mut slots = before.known_slots();
        slots.extend(self.world.known_slots());
        let mut counts: BTreeMap<NodeId, (Option<u32>, Option<u32>)> = BTreeMap::new();
        for (_, record) in before.sessions() {
            counts.entry(record.info.node.clone()).or_default().0 = Some(0);
        }
        for (_, record) in self.world.sessions() {
            counts.entry(record.info.node.clone()).or_default().1 = Some(0);
        }
        let reasons = self.reasons();
        let stopped: BTreeSet<Slot> =
            self.steps.iter().filter(|step| step.to.is_none()).map(|step| step.slot.clone()).collect();
        let mut totals = Totals::default();
        for slot in &slots {
            let (old, new) = (before.holder(slot).cloned(), self.world.holder(slot).cloned());
            if let Some(count) = old.as_ref().and_then(|node| counts.get_mut(node)?.0.as_mut()) {
                *count += 1;
            }
            if let Some(count) = new.as_ref().and_then(|node| counts.get_mut(node)?.1.as_mut()) {
                *count += 1;
            }
            totals.stay += u32::from(old.is_some() && old == new);
            if old.is_some() && new.is_none() && !stopped.contains(slot) {
                let why = StepCause::Orphaned(self.reason(&reasons, slot));
                self.steps.push(Step { slot: slot.clone(), from: old, to: None, why, anyway: false });
            }
        }
        let unplaced: Vec<UnplacedSlot> = self.world.planner().unplaced().into_iter().map(UnplacedSlot::from).collect();
        totals.slots = slots.iter().filter(|slot| exists(before, slot) || exists(&self.world, slot)).count() as u32;
        totals.unplaced = unplaced.len() as u32;
        let moves = self.steps.iter().filter(|step| step.to.is_some() && step.from.is_some());
        for step in moves {
            totals.moves += 1;
            totals.voluntary += u32::from(step.why == StepCause::Voluntary);
            totals.anyway += u32::from(step.anyway);
        }
        let stuck = self.stuck();
        Forecast {
            nodes: self.node_forecasts(counts),
            unplaced,
            stuck,
            settings_differ: self.world.settings_differ(),
            totals,
            steps: self.steps,
        }
    }

    fn node_forecasts(&mut self, counts: BTreeMap<NodeId, (Option<u32>, Option<u32>)>) -> Vec<NodeForecast> {
        let summaries: BTreeMap<_, _> =
            self.world.planner().summary().into_iter().map(|summary| (summary.node.clone(), summary)).collect();
        let named = counts.into_iter().map(|(node, (before, after))| {
            let summary = summaries.get(&node);
            NodeForecast {
                before,
                after,
                share: summary.map(|summary| summary.share),
                band: summary.map(|summary| summary.band),
                node,
            }
        });
        named.collect()
    }

    /// What the plan would still move.
    fn stuck(&mut self) -> Vec<StuckSlot> {
        let mut stuck = Vec::new();
        for node in self.nodes() {
            let orphans = self.world.planner().wanted_by(&node).into_iter();
            stuck.extend(orphans.map(|slot| StuckSlot { slot, holder: None, to: node.clone() }));
            let moves = self.world.planner().leaving(&node).into_iter();
            stuck.extend(moves.map(|planned| StuckSlot {
                slot: planned.slot,
                holder: Some(node.clone()),
                to: planned.to,
            }));
        }
        stuck.sort_by(|one, other| one.slot.cmp(&other.slot));
        stuck
    }
}

impl From<Unplaced> for UnplacedSlot {
    fn from(unplaced: Unplaced) -> Self {
        Self { slot: unplaced.slot, holder: unplaced.holder, reason: unplaced.reason }
    }
}

/// Whether a slot is a unit of a workload, or held all the same.
fn exists(view: &ClusterView, slot: &Slot) -> bool {
    view.holder(slot).is_some() || view.workloads().any(|(name, spec)| *name == slot.workload && slot.unit < spec.units)
}
