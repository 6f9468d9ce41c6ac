//! What to take and what to hand over: orphans at once, forced moves at once, voluntary ones as the stabilizers agree.

use std::collections::BTreeMap;

use crate::placement::{Counts, Move};
use crate::records::SlotRecord;
use crate::room::{Caps, Keeper, Room, let_go};
use crate::stabilizer::{MoveFacts, hold_back};
use crate::store::ChangeKind;
use crate::{FencingToken, NodeId, Slot, Stance, Timestamp, WorkloadName};

use super::Engine;
use super::api::{Action, Event, StopReason};
use super::outbox::Lane;
use super::session::Phase;
use super::tenure::{Made, Promise, Run};

/// How many moves may be under way in the cluster, where its settings are not known yet.
const MOVE_BUDGET_UNKNOWN: u32 = 1;

impl Engine {
    /// Compares what is with what should be.
    pub(super) fn look_at_plan(&mut self, now: Timestamp) {
        if self.is_paging() || self.view.generation() != self.generation() {
            return;
        }
        self.drop_promises(now);
        self.take_orphans(now);
        self.pass_over_idle(now);
        self.let_go(now);
        self.shed(now);
    }

    /// Forgets offers that this node has accepted and that ended without a transfer. That the time of an offer is
    /// over says nothing as long as the view is older: the transfer may have been made in time.
    fn drop_promises(&mut self, now: Timestamp) {
        let ended = |slot: &Slot, promise: &Promise| {
            let offer = self.view.slot(slot).and_then(|record| record.offer.as_ref());
            let stands = offer.is_some_and(|offer| offer.id == promise.offer && offer.expires_at > self.synced_at);
            !stands && !self.outbox.has(slot, Lane::Answer)
        };
        let promises = self.slots.iter().filter_map(|(slot, local)| Some((slot, local.promise.as_ref()?)));
        let ended: Vec<Slot> =
            promises.filter(|(slot, promise)| ended(slot, promise)).map(|(slot, _)| slot.clone()).collect();
        for slot in ended {
            self.drop_promise(now, &slot);
        }
    }

    fn take_orphans(&mut self, now: Timestamp) {
        let node = self.node().clone();
        if self.shutdown.is_some() {
            return;
        }
        if now < self.quiet_until {
            self.tick_at = self.tick_at.min(self.quiet_until);
            return;
        }
        let wanted = self.view.planner().wanted_by(&node);
        if wanted.is_empty() || self.waits_for_others(now) {
            return;
        }
        let mut room = self.room();
        for slot in wanted {
            let busy = self.slots.get(&slot).is_some_and(|local| local.tenure.is_some() || local.promise.is_some());
            let caps = self.caps(&slot.workload);
            let taken = self.outbox.has(&slot, Lane::Lease) || self.view.holder_is_newer(&slot);
            if busy || taken || self.is_reserved(now, &slot) || !room.take(caps, &slot) {
                continue;
            }
            let token = self.view.slot(&slot).map_or(FencingToken::NONE, |record| record.token);
            let kind = ChangeKind::Acquire { operation: self.operation() };
            self.outbox.push(&slot, Lane::Lease, token, kind, now);
        }
    }

    /// After an outage all sessions have ended at once: for one heartbeat interval a slot is left to the node that
    /// held it, so that everybody finds its own again.
    fn is_reserved(&mut self, now: Timestamp, slot: &Slot) -> bool {
        let Phase::Open(open) = &self.phase else { return true };
        let until = open.opened_at + self.config.timing.heartbeat_interval;
        if !open.after_loss || now >= until {
            return false;
        }
        let holder = self.view.slot(slot).and_then(|record| record.holder.as_ref());
        let reserved = holder.is_some_and(|holder| holder.node != self.info.node);
        if reserved {
            self.tick_at = self.tick_at.min(until);
        }
        reserved
    }

    /// Passes over nodes that leave an orphan lying for longer than the grace: the next in rank takes it.
    fn pass_over_idle(&mut self, now: Timestamp) {
        if now < self.quiet_until {
            self.waiting.clear();
            return;
        }
        let grace = self.config.stabilizers.candidate_grace;
        let mut waiting: BTreeMap<Slot, (NodeId, Timestamp)> = BTreeMap::new();
        for (slot, node) in self.view.planner().wanted() {
            if node != *self.node() && !self.view.holder_is_newer(&slot) {
                let before = self.waiting.get(&slot).filter(|(before, _)| *before == node);
                let since = before.map_or(now, |(_, since)| *since);
                waiting.insert(slot, (node, since));
            }
        }
        self.waiting = waiting;
        let idle: Vec<(Slot, NodeId)> = self
            .waiting
            .iter()
            .filter(|(_, (_, since))| now.since(*since) >= grace)
            .map(|(slot, (node, _))| (slot.clone(), node.clone()))
            .collect();
        for (slot, node) in &idle {
            self.waiting.remove(slot);
            self.view.pass_over(now, slot, node, now + self.config.runners.refuse_for);
        }
        if !idle.is_empty() {
            self.plan_dirty = true;
        }
        if let Some(first) = self.waiting.values().map(|(_, since)| *since + grace).min() {
            self.tick_at = self.tick_at.min(first);
        }
    }

    /// Stops what shall not run here, though nobody else can take it.
    fn let_go(&mut self, now: Timestamp) {
        let node = self.node().clone();
        let held = self.held_slots();
        let staying = held.iter().filter(|slot| !self.is_ending(slot)).cloned().collect();
        let keeper = Keeper {
            node: &node,
            capacity: self.info.capacity,
            draining: self.info.stance == Stance::Draining || self.view.wish(&node).drain,
            held: &held,
            staying: &staying,
        };
        for slot in let_go(&mut self.view, &keeper) {
            self.stop(now, &slot, StopReason::Unwanted);
        }
    }

    /// Whether the runner of a slot was told to stop, or is gone for good.
    fn is_ending(&self, slot: &Slot) -> bool {
        let tenure = self.slots.get(slot).and_then(|local| local.tenure.as_ref());
        tenure.is_some_and(|tenure| matches!(tenure.run, Run::Stopping { .. } | Run::Over { .. }))
    }

    /// How much room is left under the node's caps (S11), with all that is under way counted in: all that this node
    /// holds, was promised, or may have without knowing.
    fn room(&self) -> Room {
        let mut room = Room::default();
        for (slot, local) in &self.slots {
            if local.tenure.as_ref().is_some_and(|tenure| !tenure.gone) || local.promise.is_some() {
                room.count(slot);
            }
        }
        for slot in self.outbox.changing() {
            if self.slots.get(slot).is_none_or(|local| local.tenure.is_none() && local.promise.is_none()) {
                room.count(slot);
            }
        }
        room
    }

    fn caps(&self, workload: &WorkloadName) -> Caps {
        Caps { capacity: self.info.capacity, of_workload: self.view.cap(&self.info.node, workload) }
    }

    /// The slots of live leases.
    fn held_slots(&self) -> Vec<Slot> {
        let live = self.slots.iter().filter(|(_, local)| local.tenure.as_ref().is_some_and(|tenure| !tenure.gone));
        live.map(|(slot, _)| slot.clone()).collect()
    }

    /// Offers slots that should live elsewhere.
    fn shed(&mut self, now: Timestamp) {
        self.held_back.clear();
        if now < self.quiet_until {
            return;
        }
        let node = self.node().clone();
        let moves = self.view.planner().leaving(&node);
        self.withdraw_stale(now);
        if self.shutdown.is_some() {
            self.stop_unplaceable(now, &moves);
        }
        if moves.is_empty() {
            return;
        }
        if now.since(self.offered.0) >= self.config.timing.heartbeat_interval {
            self.offered = (now, 0);
        }
        let settings_differ = self.view.settings_differ().into_iter().next();
        let move_budget = self.view.settings().map_or(MOVE_BUDGET_UNKNOWN, |settings| settings.move_budget);
        let mut under_way = self.view.offers(now).filter(|(_, record)| is_voluntary(record)).count() as u32;
        let mut counts = BTreeMap::new();
        let mut going = self.slots.values().filter(|local| is_going(local)).count() as u32;
        for Move { slot, to, cause, has_room } in moves {
            let free = self.slots.get(&slot).and_then(|local| local.tenure.as_ref()).is_some_and(|tenure| {
                !tenure.gone
                    && tenure.offer.is_none()
                    && matches!(tenure.run, Run::Running { .. } | Run::Waiting { .. })
            });
            let Some(to_session) = self.view.session_of(&to) else { continue };
            if !free || self.outbox.has(&slot, Lane::Lease) {
                continue;
            }
            let forced = !cause.is_voluntary();
            let mine = *counts.entry(slot.workload.clone()).or_insert_with(|| self.room().counts(&slot.workload));
            if !forced {
                let receiver_well = self.view.session(to_session).is_some_and(|record| record.info.healthy);
                let unhealthy = match (self.info.healthy, receiver_well) {
                    (false, _) => Some(&node),
                    (true, false) => Some(&to),
                    (true, true) => None,
                };
                let moved_at = self.view.slot(&slot).and_then(|record| record.moved_at);
                let facts = MoveFacts {
                    settings_differ: settings_differ.as_ref(),
                    unhealthy,
                    full: (!has_room).then_some(&to),
                    refused: self.view.refused_lately(now, &slot, self.config.stabilizers.candidate_grace),
                    since_membership: now.since(self.view.membership_changed_at()),
                    since_move: moved_at.map(|at| self.view.store_now(now).since(at)),
                    runtime: self.runtime(now, &slot),
                    slots_after: mine.total.saturating_sub(going + 1),
                    offered: self.offered.1,
                    under_way,
                    move_budget,
                };
                if let Some(reason) = hold_back(&self.config.stabilizers, &facts) {
                    self.held_back.insert(slot, reason);
                    continue;
                }
                self.offered.1 += 1;
                under_way += 1;
            }
            going += 1;
            let giver = Counts { total: mine.total, of_workload: mine.of_workload };
            if let Some(counted) = counts.get_mut(&slot.workload) {
                counted.of_workload = counted.of_workload.saturating_sub(1);
            }
            for counted in counts.values_mut() {
                counted.total = counted.total.saturating_sub(1);
            }
            self.offer(now, &slot, to_session, &to, giver, forced);
        }
    }

    fn offer(
        &mut self,
        now: Timestamp,
        slot: &Slot,
        to: crate::SessionId,
        to_node: &NodeId,
        giver: Counts,
        forced: bool,
    ) {
        let id = self.operation();
        let Some(tenure) = self.slots.get_mut(slot).and_then(|local| local.tenure.as_mut()) else { return };
        tenure.offer = Some(Made { id, to, to_node: to_node.clone(), at: now, stands: false });
        let token = tenure.token;
        let kind = ChangeKind::Offer {
            operation: id,
            to,
            expires_in: self.config.offer_ttl,
            giver_total: giver.total,
            giver_of_workload: giver.of_workload,
            forced,
        };
        self.outbox.push(slot, Lane::Lease, token, kind, now);
        self.tell(Event::Offered { slot: slot.clone(), to: to_node.clone(), forced });
    }

    /// Takes back offers whose receiver is gone or leaves them lying, so that another node gets the next one.
    fn withdraw_stale(&mut self, now: Timestamp) {
        let patience = self.config.timing.heartbeat_interval * 2 + self.config.timing.operation_timeout * 2;
        let mut stale: Vec<(Slot, FencingToken, Made, bool)> = Vec::new();
        for (slot, local) in &self.slots {
            let Some(tenure) = local.tenure.as_ref().filter(|tenure| !tenure.gone) else { continue };
            let Some(made) = tenure.offer.as_ref().filter(|_| !matches!(tenure.run, Run::Over { .. })) else {
                continue;
            };
            let gone = self.view.session(made.to).is_none();
            let idle = now.since(made.at) >= self.config.offer_ttl.max(patience);
            if (gone || idle) && !self.outbox.has(slot, Lane::Lease) {
                stale.push((slot.clone(), tenure.token, made.clone(), gone));
            }
        }
        for (slot, token, made, gone) in stale {
            if !gone {
                self.view.pass_over(now, &slot, &made.to_node, now + self.config.stabilizers.candidate_grace);
            }
            if let Some(tenure) = self.slots.get_mut(&slot).and_then(|local| local.tenure.as_mut())
                && matches!(tenure.run, Run::Running { .. } | Run::Waiting { .. })
            {
                tenure.offer = None;
                self.outbox.push(&slot, Lane::Lease, token, ChangeKind::Withdraw { offer: made.id }, now);
            }
        }
    }

    /// During a shutdown, what nobody else can take is let go at once.
    fn stop_unplaceable(&mut self, now: Timestamp, moves: &[Move]) {
        for slot in self.held_slots() {
            let offered = self.slots[&slot].tenure.as_ref().is_some_and(|tenure| tenure.offer.is_some());
            if !offered && !moves.iter().any(|planned| planned.slot == slot) {
                self.stop(now, &slot, StopReason::Shutdown);
            }
        }
    }

    /// Looks at an offer that another node has made to this one.
    pub(super) fn consider_offer(&mut self, now: Timestamp, slot: &Slot, record: &SlotRecord) {
        let Some((session, _)) = self.session() else { return };
        let Some(offer) = record.offer.as_ref().filter(|offer| offer.to == session && !offer.ready) else { return };
        let local = self.slots.entry(slot.clone()).or_default();
        if local.promise.as_ref().is_some_and(|promise| promise.offer == offer.id)
            || self.outbox.has(slot, Lane::Answer)
            || offer.expires_at <= self.view.store_now(now)
        {
            return;
        }
        let Some(giver) = record.holder.as_ref().map(|holder| holder.node.clone()) else { return };
        let node = self.node().clone();
        let refuse = if self.shutdown.is_some() {
            Some("this node shuts down")
        } else if !self.room().take(self.caps(&slot.workload), slot) {
            Some("this node is at its cap")
        } else {
            let given = Counts { total: offer.giver_total, of_workload: offer.giver_of_workload };
            let mine = self.room().counts(&slot.workload);
            let planner = self.view.planner();
            // In this node's plan the offer counts as done: what it would keep, it takes. What must leave its giver
            // it also takes if it would rather see it elsewhere: its view may not show yet why the giver must.
            let kept = planner.desired(slot).node() == Some(&node);
            let rather = |planned: &Move| planned.slot == *slot && planned.cause.is_voluntary();
            let agreed = kept
                || (offer.forced && planner.leaving(&node).iter().any(rather))
                || planner.agrees_to(slot, (&giver, given), (&node, mine));
            (!agreed).then_some("by this node's plan it belongs elsewhere")
        };
        let id = offer.id;
        match refuse {
            Some(why) => self.answer_offer(now, slot, id, Some(why)),
            None => {
                self.slots.entry(slot.clone()).or_default().promise = Some(Promise { offer: id, warm: false });
                self.actions.push_back(Action::WarmUp { slot: slot.clone(), offer: id });
            }
        }
    }
}

fn is_voluntary(record: &SlotRecord) -> bool {
    record.offer.as_ref().is_some_and(|offer| !offer.forced)
}

fn is_going(local: &super::tenure::Local) -> bool {
    local.tenure.as_ref().is_some_and(|tenure| !tenure.gone && tenure.offer.is_some())
}
