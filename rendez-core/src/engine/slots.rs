//! One slot's life on this node: granted, started, stopped, ended, given back.
//!
//! A lease is given back only when its runner is gone; a runner is started only on a token higher than any that this
//! node has ended or offered to give back, and never beside another runner of the slot.

use std::time::Duration;

use bytes::Bytes;

use crate::records::SlotRecord;
use crate::store::{ChangeKind, ChangeOutcome, ChangeReply, Conflict};
use crate::{FencingToken, OperationId, Slot, Timestamp};

use super::Engine;
use super::api::{Action, CheckpointError, Event, RequestId, RunnerEnd, StopReason};
use super::outbox::Lane;
use super::tenure::{Local, Promise, Refuse, Run, Tenure, Then};

impl Engine {
    /// Until when the runner of a tenure may run.
    pub(super) fn deadline_of(&self, tenure: &Tenure) -> Timestamp {
        let session = self.session().map_or(Timestamp::ZERO, |(_, deadline)| deadline);
        tenure.deadline.unwrap_or(session)
    }

    /// A grant has come in: by an acquisition, or seen in the view after a transfer.
    fn granted(&mut self, now: Timestamp, slot: &Slot, record: &SlotRecord, received: bool) {
        let Some((session, _)) = self.session() else { return };
        let local = self.slots.entry(slot.clone()).or_default();
        let promised = local.promise.take().is_some();
        local.tenure = Some(Tenure {
            token: record.token,
            session,
            gone: false,
            deadline: None,
            run: Run::Waiting { from: now },
            failures: 0,
            checkpoint: record.checkpoint.clone(),
            offer: None,
            overrun_told: false,
            terminate_told: false,
        });
        let (slot, token) = (slot.clone(), record.token);
        self.waiting.remove(&slot);
        self.tell(match received || promised {
            true => Event::Received { slot: slot.clone(), token },
            false => Event::Acquired { slot: slot.clone(), token },
        });
        self.mind(now, &slot);
    }

    /// Compares a slot's record with what this node does about it, and does what follows.
    pub(super) fn look_at_slot(&mut self, now: Timestamp, slot: &Slot) {
        let Some(record) = self.view.slot(slot).cloned() else { return };
        let Some((session, _)) = self.session() else { return };
        let mine = record.is_held_by(session);
        let offered = record.offer.as_ref().is_some_and(|offer| offer.to == session);
        if !mine && !offered && !self.slots.contains_key(slot) {
            return; // the others' slots need no remembering
        }
        let local = self.slots.entry(slot.clone()).or_default();
        let floor = local.floor;
        match &mut local.tenure {
            Some(tenure) if !tenure.gone => {
                if record.token > tenure.token || (record.token == tenure.token && !mine && self.quiet_until <= now) {
                    self.tell_return(slot, &record);
                    self.lease_gone(now, slot);
                    if self.slots.get(slot).is_none_or(|local| local.tenure.is_none()) {
                        // The newer lease may be this node's own, taken by a request that was not answered.
                        self.look_at_slot(now, slot);
                    }
                    return;
                }
                if record.token < tenure.token {
                    return; // an older record: of a store that has lost data
                }
                if record.force == Some(tenure.token) {
                    self.stop(now, slot, StopReason::Forced);
                    return;
                }
                if let Some(made) = &mut tenure.offer {
                    match record.offer.as_ref().filter(|offer| offer.id == made.id) {
                        Some(offer) => {
                            made.stands = true;
                            if offer.ready {
                                let to = made.to_node.clone();
                                self.stop(now, slot, StopReason::Handoff { to });
                            }
                        }
                        None if made.stands => tenure.offer = None,
                        None => {}
                    }
                }
            }
            Some(_) => {}
            None if mine && !self.outbox.has(slot, Lane::Lease) => {
                if record.token > floor && self.quiet_until <= now {
                    self.granted(now, slot, &record, true);
                } else {
                    let local = self.slots.entry(slot.clone()).or_default();
                    local.floor = floor.max(record.token);
                    let release = ChangeKind::Release { checkpoint: None, refuse_for: None };
                    self.outbox.push(slot, Lane::Lease, record.token, release, now.max(self.quiet_until));
                }
            }
            None => self.consider_offer(now, slot, &record),
        }
    }

    /// Does what is due for a slot, and sets its next alarm.
    pub(super) fn mind(&mut self, now: Timestamp, slot: &Slot) {
        self.mind_runner(now, slot);
        self.mind_return(now, slot);
        self.set_alarm(now, slot);
    }

    pub(super) fn mind_all(&mut self, now: Timestamp) {
        let slots: Vec<Slot> = self.slots.keys().cloned().collect();
        for slot in slots {
            self.mind(now, &slot);
        }
    }

    fn mind_runner(&mut self, now: Timestamp, slot: &Slot) {
        let Some(local) = self.slots.get(slot) else { return };
        let Some(tenure) = &local.tenure else { return };
        let deadline = self.deadline_of(tenure);
        let stop_at = deadline.saturating_sub(self.config.timing.stop_lead());
        let token = tenure.token;
        match &tenure.run {
            Run::Waiting { from } => {
                let open = self.session().is_some_and(|(session, _)| session == tenure.session);
                let may = open && !tenure.gone && token > local.floor && now >= self.quiet_until;
                if may && now >= *from && now < stop_at {
                    self.start(now, slot, deadline);
                }
            }
            Run::Running { .. } => {
                if now >= stop_at {
                    let why = if tenure.gone { StopReason::Lost } else { StopReason::Deadline };
                    self.stop(now, slot, why);
                    self.mind_runner(now, slot);
                }
            }
            Run::Stopping { abort_at, aborted_at, .. } => {
                let abort_at = (*abort_at).min(deadline.saturating_sub(self.config.runners.abort_grace));
                match *aborted_at {
                    None if now >= abort_at => self.abort_now(now, slot),
                    None => {}
                    Some(aborted_at) => {
                        let overrun_at = aborted_at + self.config.runners.abort_grace;
                        let over = now >= overrun_at;
                        let dead = now >= overrun_at.max(deadline);
                        let (told, terminate_told) = (tenure.overrun_told, tenure.terminate_told);
                        if over && !told {
                            let age = now.since(aborted_at);
                            self.tell(Event::Overrun { slot: slot.clone(), token, age });
                        }
                        if dead && !terminate_told {
                            self.actions.push_back(Action::Terminate { slot: slot.clone(), token });
                        }
                        if let Some(tenure) = self.slots.get_mut(slot).and_then(|local| local.tenure.as_mut()) {
                            tenure.overrun_told = told || over;
                            tenure.terminate_told = terminate_told || dead;
                        }
                    }
                }
            }
            Run::Over { .. } => {}
        }
    }

    fn start(&mut self, now: Timestamp, slot: &Slot, deadline: Timestamp) {
        let Some(tenure) = self.slots.get_mut(slot).and_then(|local| local.tenure.as_mut()) else { return };
        tenure.run = Run::Running { since: now };
        let (token, checkpoint) = (tenure.token, tenure.checkpoint.clone());
        let slot = slot.clone();
        self.tell(Event::Started { slot: slot.clone(), token });
        self.actions.push_back(Action::Start { slot, token, deadline, checkpoint });
    }

    /// Ends a tenure: tells its runner to stop, or goes on at once if there is none. A runner that already stops is
    /// left to it; only the loss of its lease is remembered.
    pub(super) fn stop(&mut self, now: Timestamp, slot: &Slot, why: StopReason) {
        let budget = self.config.timing.stop_budget;
        let Some(tenure) = self.slots.get_mut(slot).and_then(|local| local.tenure.as_mut()) else { return };
        let token = tenure.token;
        match &mut tenure.run {
            Run::Running { .. } => {
                let abort_at = now + budget;
                tenure.run = Run::Stopping { why: why.clone(), abort_at, aborted_at: None };
                self.tell(Event::Stopping { slot: slot.clone(), token, why: why.clone() });
                self.actions.push_back(Action::Stop { slot: slot.clone(), token, why, abort_at });
            }
            Run::Waiting { .. } => self.over(now, slot, &why, None),
            Run::Stopping { why: before, abort_at, .. } => {
                // A runner that stops for its deadline would be started again: not if it shall not run here.
                if *before == StopReason::Deadline {
                    before.clone_from(&why);
                }
                if why == StopReason::Lost {
                    let abort_at = *abort_at;
                    self.actions.push_back(Action::Stop { slot: slot.clone(), token, why, abort_at });
                }
            }
            Run::Over { then } => {
                if matches!(then, Then::Reacquire) && why != StopReason::Deadline {
                    *then = Then::Release { checkpoint: None, refuse: Refuse::after(&why) };
                }
            }
        }
        self.set_alarm(now, slot);
    }

    /// Lets a held slot go in favour of the others.
    pub(super) fn resign(&mut self, now: Timestamp, slot: &Slot) {
        let held = |local: &Local| local.tenure.as_ref().is_some_and(|tenure| !tenure.gone);
        if self.slots.get(slot).is_some_and(held) {
            self.stop(now, slot, StopReason::Resigned);
            self.mind(now, slot);
        }
    }

    /// Aborts a runner, if there is one.
    pub(super) fn abort_now(&mut self, now: Timestamp, slot: &Slot) {
        if let Some(Tenure { run: Run::Running { .. }, .. }) = self.slots.get(slot).and_then(|l| l.tenure.as_ref()) {
            self.stop(now, slot, StopReason::Lost);
        }
        let Some(tenure) = self.slots.get_mut(slot).and_then(|local| local.tenure.as_mut()) else { return };
        if let Run::Stopping { aborted_at: aborted_at @ None, .. } = &mut tenure.run {
            *aborted_at = Some(now);
            let token = tenure.token;
            self.actions.push_back(Action::Abort { slot: slot.clone(), token });
            self.set_alarm(now, slot);
        }
    }

    /// Tells of a return of a lease that the records show before its request is answered.
    fn tell_return(&mut self, slot: &Slot, record: &SlotRecord) {
        let tenure = self.slots.get(slot).and_then(|local| local.tenure.as_ref());
        let Some((token, Run::Over { then })) = tenure.map(|tenure| (tenure.token, &tenure.run)) else { return };
        let asked = self.outbox.kind(slot, Lane::Lease);
        if let Some(ChangeKind::Release { .. }) = asked
            && record.token == token
            && record.holder.is_none()
        {
            self.tell(Event::Released { slot: slot.clone(), token });
        } else if let (Some(ChangeKind::Transfer { operation, .. }), Then::Transfer { offer, .. }) = (asked, then)
            && record.granted_by == *operation
        {
            let to = offer.to_node.clone();
            self.tell(Event::HandedOver { slot: slot.clone(), to });
        }
    }

    /// The lease is gone. A runner that still runs is told to stop; it keeps the slot until it has ended.
    pub(super) fn lease_gone(&mut self, now: Timestamp, slot: &Slot) {
        self.outbox.cancel_unsent(slot, Lane::Lease);
        let Some(local) = self.slots.get_mut(slot) else { return };
        let Some(tenure) = &mut local.tenure else { return };
        local.floor = local.floor.max(tenure.token);
        tenure.gone = true;
        tenure.offer = None;
        self.plan_dirty = true;
        if tenure.run.is_alive() {
            if tenure.deadline.is_none() {
                let deadline = self.session().map_or(now, |(_, deadline)| deadline);
                if let Some(tenure) = self.slots.get_mut(slot).and_then(|local| local.tenure.as_mut()) {
                    tenure.deadline = Some(deadline);
                }
            }
            self.stop(now, slot, StopReason::Lost);
            self.mind(now, slot);
        } else {
            local.tenure = None;
            self.set_alarm(now, slot);
        }
    }

    /// A runner is gone.
    pub(super) fn on_ended(
        &mut self,
        now: Timestamp,
        slot: &Slot,
        token: FencingToken,
        end: RunnerEnd,
        checkpoint: Option<Bytes>,
    ) {
        let policy = self.config.runners.clone();
        let session = self.session().map(|(session, _)| session);
        let Some(tenure) = self.slots.get_mut(slot).and_then(|local| local.tenure.as_mut()) else { return };
        if tenure.token != token || !tenure.run.is_alive() {
            return;
        }
        self.actions.push_back(Action::Tell(Event::Ended { slot: slot.clone(), token, end }));
        if tenure.gone {
            self.forget(now, slot);
            return;
        }
        match &tenure.run {
            Run::Stopping { why, .. } => {
                let why = why.clone();
                self.over(now, slot, &why, checkpoint);
            }
            // The store has not taken it back yet, and takes back only what runs.
            Run::Running { .. } if session.is_some_and(|session| session != tenure.session) => {
                self.end_tenure(now, slot, Then::Release { checkpoint, refuse: Refuse::No });
            }
            Run::Running { since } => {
                if now.since(*since) >= policy.restart_reset_after {
                    tenure.failures = 0;
                }
                tenure.failures += 1;
                if checkpoint.is_some() {
                    tenure.checkpoint.clone_from(&checkpoint);
                }
                let failures = tenure.failures;
                if policy.give_up_after.is_some_and(|most| failures >= most) {
                    self.tell(Event::GaveUp { slot: slot.clone(), failures });
                    self.end_tenure(now, slot, Then::Release { checkpoint, refuse: Refuse::AfterFailures });
                } else {
                    let doubled = policy.restart_backoff_min * 2u32.saturating_pow(failures.saturating_sub(1).min(16));
                    let after = doubled.min(policy.restart_backoff_max);
                    tenure.run = Run::Waiting { from: now + after };
                    self.tell(Event::Restarting { slot: slot.clone(), failures, after });
                    self.set_alarm(now, slot);
                }
            }
            Run::Waiting { .. } | Run::Over { .. } => {}
        }
    }

    /// The runner of a tenure that was told to stop is gone (or never was): what becomes of the lease.
    fn over(&mut self, now: Timestamp, slot: &Slot, why: &StopReason, checkpoint: Option<Bytes>) {
        let Some(tenure) = self.slots.get(slot).and_then(|local| local.tenure.as_ref()) else { return };
        let then = match why {
            StopReason::Handoff { .. } | StopReason::Shutdown => match tenure.offer.clone() {
                Some(offer) if self.is_ready(slot, offer.id) => Then::Transfer { offer, checkpoint },
                Some(_) | None => Then::Release { checkpoint, refuse: Refuse::No },
            },
            StopReason::Unwanted | StopReason::Forced | StopReason::Resigned => {
                Then::Release { checkpoint, refuse: Refuse::after(why) }
            }
            StopReason::Deadline if self.shutdown.is_some() => Then::Release { checkpoint, refuse: Refuse::No },
            StopReason::Deadline => Then::Reacquire,
            StopReason::Lost => {
                self.forget(now, slot);
                return;
            }
        };
        self.end_tenure(now, slot, then);
    }

    fn is_ready(&self, slot: &Slot, offer: OperationId) -> bool {
        let standing = self.view.slot(slot).and_then(|record| record.offer.as_ref());
        standing.is_some_and(|standing| standing.id == offer && standing.ready)
    }

    fn end_tenure(&mut self, now: Timestamp, slot: &Slot, then: Then) {
        let Some(local) = self.slots.get_mut(slot) else { return };
        let Some(tenure) = &mut local.tenure else { return };
        local.floor = local.floor.max(tenure.token);
        tenure.run = Run::Over { then };
        self.plan_dirty = true;
        self.mind(now, slot);
    }

    /// Nothing of a tenure is left.
    fn forget(&mut self, now: Timestamp, slot: &Slot) {
        let Some(local) = self.slots.get_mut(slot) else { return };
        if let Some(tenure) = local.tenure.take() {
            local.floor = local.floor.max(tenure.token);
        }
        self.plan_dirty = true;
        self.set_alarm(now, slot);
        self.look_at_slot(now, slot);
    }

    /// Gives a lease back, or renews it, once its runner is gone.
    fn mind_return(&mut self, now: Timestamp, slot: &Slot) {
        let Some((session, _)) = self.session() else { return };
        if self.outbox.has(slot, Lane::Lease) {
            return;
        }
        let Some(tenure) = self.slots.get(slot).and_then(|local| local.tenure.as_ref()) else { return };
        let Run::Over { then } = &tenure.run else { return };
        let (token, then) = (tenure.token, then.clone());
        if tenure.session != session {
            self.lease_gone(now, slot);
            // A re-adoption that was not answered may have been made: then it is this session's, and is given back.
            self.look_at_slot(now, slot);
            return;
        }
        let kind = match then {
            Then::Release { checkpoint, refuse } => {
                let refuse_for = match refuse {
                    Refuse::No => None,
                    Refuse::AfterFailures => Some(self.config.runners.refuse_for),
                    Refuse::AfterResigning => Some(self.config.timing.session_ttl),
                };
                ChangeKind::Release { checkpoint, refuse_for }
            }
            Then::Transfer { offer, checkpoint } => {
                ChangeKind::Transfer { operation: self.operation(), offer: offer.id, checkpoint }
            }
            Then::Reacquire => ChangeKind::Acquire { operation: self.operation() },
        };
        // Nothing is granted in a quiet time. A request that was refused for it names a token that stays, so that a
        // copy of it that arrives after the quiet time would be granted when nobody counts on it any more.
        let asks = matches!(kind, ChangeKind::Acquire { .. });
        let from = if asks { now.max(self.quiet_until) } else { now };
        self.outbox.push(slot, Lane::Lease, token, kind, from);
    }

    /// Taken back is only what runs now and may run: a try that was not answered is not made again after that.
    pub(super) fn drop_idle_readoptions(&mut self, now: Timestamp) {
        let idle = |slot: &Slot| {
            let tenure = self.slots.get(slot).and_then(|local| local.tenure.as_ref());
            !tenure.is_some_and(|tenure| !tenure.gone && tenure.run.is_alive() && now < self.deadline_of(tenure))
        };
        let idle: Vec<Slot> = self.outbox.unsent_readoptions().filter(|slot| idle(slot)).cloned().collect();
        for slot in idle {
            self.outbox.cancel_unsent(&slot, Lane::Lease);
            self.mind(now, &slot);
        }
    }

    /// A batch of changes was answered.
    pub(super) fn on_changed(&mut self, now: Timestamp, request: RequestId, reply: ChangeReply) {
        let current = self.take_stamp(now, request, &reply.stamp);
        let Some(changes) = self.outbox.answered(request) else { return };
        if !current {
            return;
        }
        for ((slot, lane, token, kind), outcome) in changes.into_iter().zip(reply.outcomes) {
            let (done, conflict, record) = match outcome {
                ChangeOutcome::Done(record) => (true, None, record),
                ChangeOutcome::Refused(conflict, record) => (false, Some(conflict), record),
            };
            if let (Some(record), false) = (&record, matches!(kind, ChangeKind::SaveCheckpoint { .. })) {
                self.view.learn(now, &slot, record.clone());
                // What was planned and granted changes no plan: the last of many batches is soon enough.
                let as_planned = done && matches!(kind, ChangeKind::Acquire { .. });
                self.plan_dirty |= !as_planned || !self.outbox.has_unsent();
            }
            if conflict == Some(Conflict::Quiet) && !matches!(kind, ChangeKind::Acquire { .. }) {
                self.outbox.push(&slot, lane, token, kind, now.max(self.quiet_until));
                continue;
            }
            self.on_outcome(now, &slot, lane, kind, done, record.as_ref());
            self.mind(now, &slot);
            self.look_at_slot(now, &slot);
        }
    }

    fn on_outcome(
        &mut self,
        now: Timestamp,
        slot: &Slot,
        lane: Lane,
        kind: ChangeKind,
        done: bool,
        record: Option<&SlotRecord>,
    ) {
        let session = self.session().map(|(session, _)| session);
        match kind {
            ChangeKind::Acquire { .. } => {
                let local = self.slots.entry(slot.clone()).or_default();
                let floor = local.floor;
                if local.tenure.as_ref().is_some_and(|tenure| matches!(tenure.run, Run::Over { .. })) {
                    local.tenure = None; // it was taken anew, or is gone
                }
                let granted = record.filter(|record| done && session.is_some_and(|id| record.is_held_by(id)));
                if let Some(record) = granted.filter(|record| local.tenure.is_none() && record.token > floor) {
                    self.granted(now, slot, &record.clone(), false);
                }
            }
            ChangeKind::Release { .. } => {
                if let Some(local) = self.slots.get_mut(slot)
                    && let Some(tenure) = local.tenure.take_if(|tenure| matches!(tenure.run, Run::Over { .. }))
                    && done
                {
                    self.tell(Event::Released { slot: slot.clone(), token: tenure.token });
                }
            }
            ChangeKind::Transfer { .. } => {
                let Some(tenure) = self.slots.get_mut(slot).and_then(|local| local.tenure.as_mut()) else { return };
                let Run::Over { then } = &mut tenure.run else { return };
                let Then::Transfer { offer, checkpoint } = then.clone() else { return };
                if done {
                    if let Some(local) = self.slots.get_mut(slot) {
                        local.tenure = None;
                    }
                    self.tell(Event::HandedOver { slot: slot.clone(), to: offer.to_node });
                } else {
                    *then = Then::Release { checkpoint, refuse: Refuse::No };
                }
            }
            ChangeKind::Offer { operation, .. } => {
                let Some(tenure) = self.slots.get_mut(slot).and_then(|local| local.tenure.as_mut()) else { return };
                if let Some(made) = tenure.offer.as_mut().filter(|made| made.id == operation) {
                    made.stands = done;
                    if !done {
                        tenure.offer = None;
                    }
                }
            }
            ChangeKind::Accept { offer } => {
                let promise = self.slots.get(slot).and_then(|local| local.promise.as_ref());
                if !done && promise.is_some_and(|promise| promise.offer == offer) {
                    self.drop_promise(now, slot);
                }
            }
            ChangeKind::Readopt => {
                let Some(tenure) = self.slots.get_mut(slot).and_then(|local| local.tenure.as_mut()) else { return };
                match session.filter(|_| done) {
                    Some(session) => {
                        tenure.session = session;
                        let token = tenure.token;
                        self.tell(Event::Readopted { slot: slot.clone(), token });
                    }
                    None => self.lease_gone(now, slot),
                }
            }
            ChangeKind::SaveCheckpoint { .. } => {
                if let Lane::Checkpoint(ticket) = lane {
                    let result = if done { Ok(()) } else { Err(CheckpointError::LeaseGone) };
                    self.actions.push_back(Action::CheckpointSaved { ticket, result });
                }
            }
            ChangeKind::Withdraw { .. } | ChangeKind::Refuse { .. } => {}
        }
    }

    /// The answer to a warm-up.
    pub(super) fn on_warmed_up(&mut self, now: Timestamp, slot: &Slot, offer: OperationId, ready: bool) {
        let promise = self.slots.get_mut(slot).and_then(|local| local.promise.as_mut());
        let Some(promise) = promise.filter(|promise| promise.offer == offer && !promise.warm) else { return };
        promise.warm = true;
        if ready {
            self.answer_offer(now, slot, offer, None);
        } else {
            self.answer_offer(now, slot, offer, Some("it could not get ready"));
        }
    }

    /// What was prepared for an offer is not needed.
    pub(super) fn drop_promise(&mut self, now: Timestamp, slot: &Slot) {
        if self.slots.get_mut(slot).and_then(|local| local.promise.take()).is_some() {
            self.actions.push_back(Action::CoolDown { slot: slot.clone() });
            self.set_alarm(now, slot);
        }
    }

    /// Accepts an offer, or refuses it with a reason.
    pub(super) fn answer_offer(&mut self, now: Timestamp, slot: &Slot, offer: OperationId, refuse: Option<&str>) {
        let local = self.slots.entry(slot.clone()).or_default();
        if let Some(why) = refuse {
            // What was prepared for an earlier offer, which this one has replaced, is called off.
            if local.promise.as_ref().is_some_and(|promise| promise.offer != offer) {
                self.drop_promise(now, slot);
            } else {
                local.promise = None;
            }
            self.tell(Event::OfferRefused { slot: slot.clone(), why: why.to_owned() });
        } else if local.promise.is_none() {
            local.promise = Some(Promise { offer, warm: true });
        }
        let Some(record) = self.view.slot(slot) else { return };
        if self.outbox.has(slot, Lane::Answer) {
            return;
        }
        let kind = match refuse {
            None => ChangeKind::Accept { offer },
            // Only for a while: the next view may be another one.
            Some(_) => ChangeKind::Refuse { offer, refuse_for: self.config.stabilizers.candidate_grace },
        };
        self.outbox.push(slot, Lane::Answer, record.token, kind, now);
    }

    /// Sets the next alarm of a slot, and drops what needs no remembering.
    pub(super) fn set_alarm(&mut self, now: Timestamp, slot: &Slot) {
        let Some(local) = self.slots.get(slot) else { return };
        let at = local.tenure.as_ref().map_or(Timestamp::NEVER, |tenure| self.tenure_due(now, local, tenure));
        let at = if at == Timestamp::NEVER { None } else { Some(at.max(now)) };
        let Some(local) = self.slots.get_mut(slot) else { return };
        if local.alarm != at {
            if let Some(before) = local.alarm.take() {
                self.alarms.remove(&(before, slot.clone()));
            }
            if let Some(at) = at {
                local.alarm = Some(at);
                self.alarms.insert((at, slot.clone()));
            }
        }
        if local.tenure.is_none() && local.promise.is_none() && local.floor == FencingToken::NONE {
            self.slots.remove(slot);
        }
    }

    /// When a tenure wants something by itself. What hangs on the session's deadline comes from the session.
    fn tenure_due(&self, now: Timestamp, local: &Local, tenure: &Tenure) -> Timestamp {
        let lead = self.config.timing.stop_lead();
        let grace = self.config.runners.abort_grace;
        match &tenure.run {
            Run::Waiting { from } if token_may_start(local, tenure) => {
                let from = (*from).max(self.quiet_until).max(now);
                let deadline = self.deadline_of(tenure);
                let late = deadline.saturating_sub(lead) <= from;
                let open = self.session().is_some_and(|(session, _)| session == tenure.session);
                if late || !open { Timestamp::NEVER } else { from }
            }
            Run::Waiting { .. } | Run::Over { .. } => Timestamp::NEVER,
            Run::Running { .. } => tenure.deadline.map_or(Timestamp::NEVER, |deadline| deadline.saturating_sub(lead)),
            Run::Stopping { abort_at, aborted_at: None, .. } => {
                let fixed = tenure.deadline.map_or(Timestamp::NEVER, |deadline| deadline.saturating_sub(grace));
                (*abort_at).min(fixed)
            }
            Run::Stopping { aborted_at: Some(aborted_at), .. } => {
                let overrun_at = *aborted_at + grace;
                if !tenure.overrun_told {
                    overrun_at
                } else if !tenure.terminate_told {
                    tenure.deadline.map_or(Timestamp::NEVER, |deadline| overrun_at.max(deadline))
                } else {
                    Timestamp::NEVER
                }
            }
        }
    }

    /// How long the runner of a slot has run.
    pub(super) fn runtime(&self, now: Timestamp, slot: &Slot) -> Duration {
        match self.slots.get(slot).and_then(|local| local.tenure.as_ref()).map(|tenure| &tenure.run) {
            Some(Run::Running { since }) => now.since(*since),
            Some(Run::Waiting { .. } | Run::Stopping { .. } | Run::Over { .. }) | None => Duration::ZERO,
        }
    }
}

fn token_may_start(local: &Local, tenure: &Tenure) -> bool {
    !tenure.gone && tenure.token > local.floor
}
