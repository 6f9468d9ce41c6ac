//! The node's session: opening it, extending it in time, noticing its end, and closing it.
//!
//! Deadlines are counted from the moment before a request is sent. An error never extends one. A session that was
//! reported lost, or whose deadline has passed, is dead to the node for ever.

use std::sync::Arc;
use std::time::Duration;

use crate::store::{Beat, CloseRequest, ErrorKind, HeartbeatRequest, OpenRequest, Opening, Stamp, StoreError, Sync};
use crate::{Generation, NodeInfo, OperationId, Revision, SessionId, Slot, Timestamp};

use super::api::{Action, Call, CheckpointError, Event, RequestId, StopReason, StoppedReason};
use super::outbox::Lane;
use super::tenure::Run;
use super::{Engine, sync};

/// Where the node's session stands.
#[derive(Debug)]
pub(super) enum Phase {
    /// There is none; it is to be opened.
    Closed,
    /// It is being opened.
    Opening(InOpening),
    /// It is open.
    Open(Open),
    /// It is being closed, at the end of a shutdown.
    Closing(Option<RequestId>),
    /// The engine is done.
    Done,
}

#[derive(Debug)]
pub(super) struct InOpening {
    /// The same for all tries.
    operation: OperationId,
    /// What the node tells about itself; the same for all tries, whatever changes meanwhile.
    info: Arc<NodeInfo>,
    /// The try under way and when it was sent.
    sent: Option<(RequestId, Timestamp)>,
    not_before: Timestamp,
}

#[derive(Debug)]
pub(super) struct Open {
    pub(super) id: SessionId,
    /// Good until then.
    pub(super) deadline: Timestamp,
    pub(super) opened_at: Timestamp,
    /// The last session came to its end against the node's will.
    pub(super) after_loss: bool,
    /// It leaves orphans alone for a moment, for others may be coming.
    pub(super) waits: bool,
    /// The heartbeat under way.
    beat: Option<SentBeat>,
    /// When the next heartbeat is due.
    next_beat: Timestamp,
    /// No heartbeat before this time, whatever is wanted: the last one failed.
    not_before: Timestamp,
    /// When to look at all runners' deadlines next.
    look_at: Timestamp,
}

#[derive(Debug)]
struct SentBeat {
    request: RequestId,
    at: Timestamp,
    since: Option<Revision>,
    info: Option<Arc<NodeInfo>>,
}

/// A session that the store reported lost, until the next opening says whether the store has lost its data.
#[derive(Debug)]
pub(super) struct LostSession {
    generation: Option<Generation>,
}

impl Engine {
    /// Deadlines of the session: everything that must not wait for anything else.
    pub(super) fn mind_session(&mut self, now: Timestamp) {
        if let Phase::Open(open) = &self.phase {
            let (id, deadline, look_at) = (open.id, open.deadline, open.look_at);
            if now >= deadline {
                self.end_session(now, id, "it was not extended in time", None);
                self.mark_all_gone(now);
            } else if now >= look_at {
                let abort_from = deadline.saturating_sub(self.config.runners.abort_grace);
                let next = if look_at < abort_from { abort_from } else { deadline };
                if let Phase::Open(open) = &mut self.phase {
                    open.look_at = next;
                }
                self.mind_all(now);
            }
        }
        self.mind_shutdown(now);
    }

    /// When the session wants something next.
    pub(super) fn session_due(&self) -> Timestamp {
        match &self.phase {
            Phase::Closed | Phase::Opening(_) if self.shutdown.is_some() => Timestamp::NEVER,
            Phase::Closed => self.backoff_until,
            Phase::Opening(opening) if opening.sent.is_none() => opening.not_before.max(self.backoff_until),
            Phase::Closing(None) => self.backoff_until,
            Phase::Open(open) => {
                let beat = if open.beat.is_none() { self.beat_due(open) } else { Timestamp::NEVER };
                open.look_at.min(open.deadline).min(beat)
            }
            Phase::Opening(_) | Phase::Closing(_) | Phase::Done => Timestamp::NEVER,
        }
    }

    fn beat_due(&self, open: &Open) -> Timestamp {
        let hinted = if self.sync_wanted { self.sync_from } else { Timestamp::NEVER };
        open.next_beat.min(hinted).min(self.due_at).max(open.not_before)
    }

    /// Asks the store as soon as the pacing allows.
    pub(super) fn want_sync(&mut self, from: Timestamp) {
        self.sync_from = if self.sync_wanted { self.sync_from.min(from) } else { from };
        self.sync_wanted = true;
    }

    /// Sends the opening, the heartbeat or the closing that is due.
    pub(super) fn send_session_request(&mut self, now: Timestamp) {
        if matches!(self.phase, Phase::Closed) {
            if self.shutdown.is_some() {
                return;
            }
            let operation = self.operation();
            let info = self.info.clone();
            self.phase = Phase::Opening(InOpening { operation, info, sent: None, not_before: Timestamp::ZERO });
        }
        match &self.phase {
            Phase::Opening(opening) => {
                let due = opening.not_before.max(self.backoff_until);
                if opening.sent.is_some() || now < due || self.shutdown.is_some() {
                    return;
                }
                let open = OpenRequest {
                    known: self.known.clone(),
                    operation: opening.operation,
                    incarnation: self.incarnation,
                    replaces: self.last_session,
                    ttl: self.config.timing.session_ttl,
                    info: opening.info.clone(),
                };
                let request = self.send(Call::Open(open));
                if let Phase::Opening(opening) = &mut self.phase {
                    opening.sent = Some((request, now));
                }
            }
            Phase::Open(open) => {
                if open.beat.is_some() || now < self.beat_due(open) {
                    return;
                }
                let session = open.id;
                let since = self.view.revision().filter(|_| !self.is_paging());
                let since = since.filter(|_| self.view.generation() == self.known.generation);
                let info = self.info_dirty.then(|| self.info.clone());
                let timing = &self.config.timing;
                let (interval, jitter) = (timing.heartbeat_interval, timing.heartbeat_jitter_permille);
                let heartbeat = HeartbeatRequest {
                    known: self.known.clone(),
                    session,
                    since,
                    changes_max: sync::CHANGES_MAX,
                    due_within: interval + interval * jitter / 1000 + timing.operation_timeout,
                    info: info.clone(),
                };
                let spread = interval * jitter / 1000;
                let next = now + interval.saturating_sub(spread) + self.chance.up_to(spread * 2);
                self.sync_wanted = false;
                self.due_at = Timestamp::NEVER;
                let request = self.send(Call::Heartbeat(heartbeat));
                if let Phase::Open(open) = &mut self.phase {
                    open.next_beat = next;
                    open.beat = Some(SentBeat { request, at: now, since, info });
                }
            }
            Phase::Closing(None) if now >= self.backoff_until => {
                let Some(session) = self.last_session else { return };
                let close = CloseRequest { known: self.known.clone(), session };
                let request = self.send(Call::Close(close));
                self.phase = Phase::Closing(Some(request));
            }
            Phase::Closed | Phase::Closing(_) | Phase::Done => {}
        }
    }

    pub(super) fn on_opened(&mut self, now: Timestamp, request: RequestId, opening: Opening) {
        let Phase::Opening(state) = &mut self.phase else { return };
        let Some((_, sent_at)) = state.sent.filter(|(sent, _)| *sent == request) else { return };
        state.sent = None;
        match opening {
            Opening::InUse { session, incarnation, .. } if incarnation == self.incarnation => {
                // An opening of our own whose answer never came: replace it.
                self.last_session = Some(session);
                state.not_before = now;
            }
            Opening::InUse { incarnation, remaining, .. } => {
                state.not_before = now + remaining + Duration::from_millis(1);
                if self.config.give_up_if_in_use {
                    self.phase = Phase::Done;
                    self.actions.push_back(Action::Stopped(StoppedReason::InUse { incarnation, remaining }));
                } else if !std::mem::replace(&mut self.in_use_told, true) {
                    self.tell(Event::NodeIdInUse { incarnation, remaining });
                }
            }
            Opening::Opened { stamp, session, ttl, settings } => {
                let deadline = sent_at + self.config.timing.validity(ttl);
                self.info_dirty = state.info != self.info;
                self.last_session = Some(session);
                self.in_use_told = false;
                if now >= deadline {
                    self.phase = Phase::Closed;
                    return;
                }
                self.known.session_ttl_max = settings.session_ttl_max;
                let lost = self.lost.take();
                let interval = self.config.timing.heartbeat_interval;
                self.phase = Phase::Open(Open {
                    id: session,
                    deadline,
                    opened_at: now,
                    after_loss: lost.is_some(),
                    waits: false,
                    beat: None,
                    next_beat: sent_at + interval,
                    not_before: Timestamp::ZERO,
                    look_at: deadline.saturating_sub(self.config.timing.stop_lead()),
                });
                self.actions.push_back(Action::Session(Some((session, stamp.generation))));
                self.tell(Event::SessionOpened { session });
                let same_data = lost.is_some_and(|lost| lost.generation == Some(stamp.generation));
                self.take_stamp(now, request, &stamp);
                if same_data || self.quiet_until <= now {
                    // The store remembers, and yet the session is gone: so are its leases.
                    self.mark_all_gone(now);
                }
                if self.view.generation() == Some(stamp.generation) {
                    self.want_sync(now);
                } else {
                    self.take_snapshot();
                }
                self.plan_dirty = true;
            }
        }
    }

    /// A heartbeat was answered: the session lives.
    pub(super) fn on_beat(&mut self, now: Timestamp, request: RequestId, beat: Beat) {
        let Phase::Open(open) = &mut self.phase else { return };
        let Some(sent) = open.beat.take_if(|sent| sent.request == request) else { return };
        let session = open.id;
        if sent.info.is_some_and(|info| info == self.info) {
            self.info_dirty = false;
        }
        if !self.take_stamp(now, request, &beat.stamp) {
            self.want_sync(now);
            return;
        }
        self.due_at = beat.due.first().map_or(Timestamp::NEVER, |due| now + due.remaining + Duration::from_millis(1));
        let mut touched = Vec::new();
        let mut confirmed = false;
        match beat.sync {
            Sync::Changes { changes, up_to, more } if !self.is_paging() && sent.since == self.view.revision() => {
                let stamp = Stamp { revision: up_to, ..beat.stamp };
                // A plan made of half of what has changed would be made again after each page of it.
                let changed = !changes.is_empty() || self.reads_on;
                self.reads_on = changed && more;
                self.plan_dirty |= changed && !more;
                let synced_at = stamp.now;
                touched.extend(self.view.apply(now, stamp, changes));
                if more {
                    self.want_sync(now);
                } else {
                    self.synced_at = synced_at;
                    // Whoever waits for others looks at how new this answer is, whether or not anything has changed.
                    if let Phase::Open(open) = &mut self.phase {
                        self.plan_dirty |= std::mem::take(&mut open.waits);
                    }
                    confirmed = self.view.digest_of(session) == beat.held;
                    if !confirmed {
                        self.take_snapshot();
                    }
                }
            }
            Sync::Snapshot => self.take_snapshot(),
            Sync::Changes { .. } | Sync::NotAsked => {}
        }
        self.extend(now, sent.at + self.config.timing.validity(beat.ttl), confirmed);
        // A heartbeat that was delayed on its way may have set back what this one has told.
        self.info_dirty |= self.view.session(session).is_some_and(|record| record.info != self.info);
        for slot in &touched {
            self.look_at_slot(now, slot);
        }
        self.tell_settings();
    }

    /// Moves the session's deadline, and with it those of the runners whose leases the store has confirmed.
    fn extend(&mut self, now: Timestamp, deadline: Timestamp, confirmed: bool) {
        let Phase::Open(open) = &mut self.phase else { return };
        let (session, before) = (open.id, open.deadline);
        if deadline > before {
            open.deadline = deadline;
            open.look_at = deadline.saturating_sub(self.config.timing.stop_lead());
        }
        let deadline = open.deadline;
        let mut except: Vec<Slot> = Vec::new();
        let mut changed: Vec<Slot> = Vec::new();
        for (slot, local) in &mut self.slots {
            let Some(tenure) = &mut local.tenure else { continue };
            let record = self.view.slot_as_synced(slot).filter(|record| record.token == tenure.token);
            let held = record.is_some_and(|record| record.is_held_by(session));
            if matches!(tenure.run, Run::Waiting { .. }) {
                changed.push(slot.clone()); // there may be time enough for a start now
            }
            if confirmed && held && !tenure.gone && tenure.session == session {
                tenure.deadline = None;
                continue;
            }
            if tenure.deadline.is_none() {
                tenure.deadline = Some(before);
                changed.push(slot.clone());
            }
            if tenure.run.is_alive() {
                except.push(slot.clone());
            }
        }
        self.actions.push_back(Action::Extend { deadline, except });
        for slot in changed {
            self.set_alarm(now, &slot);
        }
    }

    /// Reads the stamp of a reply. False if the reply must not be used: it is of another generation, and the request was
    /// sent before this node knew the present one. Then it may be of an earlier one, which the node need never have heard
    /// of. A store that is told of the present generation answers in it or in one that follows.
    pub(super) fn take_stamp(&mut self, now: Timestamp, request: RequestId, stamp: &Stamp) -> bool {
        // Of whichever generation: it was granted once, and must not be again.
        self.known.token = self.known.token.max(stamp.token);
        if self.known.generation != Some(stamp.generation) {
            if request < self.generation_from {
                return false;
            }
            self.new_generation(now, stamp);
        }
        self.quiet_until = if stamp.quiet.is_zero() { Timestamp::ZERO } else { now + stamp.quiet };
        true
    }

    /// The store may have lost data: nothing that was granted before and not started counts; what runs goes on until
    /// its old deadline, or longer if the store takes it back.
    fn new_generation(&mut self, now: Timestamp, stamp: &Stamp) {
        self.generation_from = RequestId(self.next_request);
        if self.known.generation.replace(stamp.generation).is_none() {
            return;
        }
        self.tell(Event::NewGeneration { generation: stamp.generation, quiet: stamp.quiet });
        self.clear_outbox();
        self.take_snapshot();
        let session_deadline = self.session().map(|(_, deadline)| deadline);
        let mut readopt = Vec::new();
        let mut void = Vec::new();
        // Their deadline is their own from now on, and the session's alarm minds it no more.
        let mut stopping = Vec::new();
        let promised: Vec<Slot> =
            self.slots.iter().filter(|(_, local)| local.promise.is_some()).map(|(slot, _)| slot.clone()).collect();
        for slot in promised {
            self.drop_promise(now, &slot);
        }
        for (slot, local) in &mut self.slots {
            let Some(tenure) = &mut local.tenure else { continue };
            tenure.offer = None;
            if tenure.deadline.is_none() {
                tenure.deadline = session_deadline;
            }
            match tenure.run {
                Run::Running { .. } if !tenure.gone => readopt.push((slot.clone(), tenure.token)),
                Run::Running { .. } | Run::Stopping { .. } => stopping.push(slot.clone()),
                Run::Waiting { .. } | Run::Over { .. } => void.push((slot.clone(), tenure.token)),
            }
        }
        for slot in stopping {
            self.set_alarm(now, &slot);
        }
        for (slot, token) in void {
            let local = self.slots.entry(slot.clone()).or_default();
            local.floor = local.floor.max(token);
            local.tenure = None;
            self.set_alarm(now, &slot);
        }
        for (slot, token) in readopt {
            if !stamp.quiet.is_zero() {
                self.outbox.push(&slot, Lane::Lease, token, crate::ChangeKind::Readopt, now);
            }
            self.set_alarm(now, &slot);
        }
    }

    /// A request of the session itself failed. False if it was another request.
    pub(super) fn session_request_failed(&mut self, now: Timestamp, request: RequestId, error: &StoreError) -> bool {
        match &mut self.phase {
            Phase::Opening(opening) => {
                let mine = opening.sent.take_if(|(sent, _)| *sent == request).is_some();
                if mine && error.kind() == ErrorKind::Lost {
                    self.phase = Phase::Closed;
                }
                mine
            }
            Phase::Open(open) => {
                if open.beat.take_if(|sent| sent.request == request).is_none() {
                    return false;
                }
                if error.kind() == ErrorKind::Lost {
                    self.session_reported_lost(now, error.message());
                } else {
                    let retry_at = self.backoff_until;
                    if let Phase::Open(open) = &mut self.phase {
                        open.not_before = retry_at;
                        open.next_beat = open.next_beat.min(retry_at);
                    }
                    self.want_sync(retry_at);
                }
                true
            }
            Phase::Closing(closing) => {
                let mine = closing.take_if(|sent| *sent == request).is_some();
                if mine && error.kind() == ErrorKind::Lost {
                    self.on_closed(request);
                }
                mine
            }
            Phase::Closed | Phase::Done => false,
        }
    }

    /// The store does not know the session. Its runners keep their deadlines until the next opening tells whether
    /// the store has lost its data.
    pub(super) fn session_reported_lost(&mut self, now: Timestamp, why: &str) {
        let Phase::Open(open) = &self.phase else { return };
        let (id, deadline) = (open.id, open.deadline);
        let young = now.since(open.opened_at) < self.config.timing.backoff_min;
        self.end_session(now, id, why, Some(deadline));
        self.backoff_until = if young { now + self.config.timing.backoff_min } else { now };
        if self.shutdown.is_some() {
            self.mark_all_gone(now); // no other session will be opened
        }
    }

    fn end_session(&mut self, now: Timestamp, id: SessionId, why: &str, runners_until: Option<Timestamp>) {
        let deadline = self.session().map(|(_, deadline)| deadline);
        self.phase = Phase::Closed;
        self.last_session = Some(id);
        self.lost = Some(LostSession { generation: self.known.generation });
        self.clear_outbox();
        self.paging = None;
        self.due_at = Timestamp::NEVER;
        self.actions.push_back(Action::Session(None));
        self.tell(Event::SessionLost { session: id, why: why.to_owned() });
        let slots: Vec<Slot> = self.slots.keys().cloned().collect();
        for slot in slots {
            self.drop_promise(now, &slot);
            let Some(local) = self.slots.get_mut(&slot) else { continue };
            if let Some(tenure) = &mut local.tenure {
                tenure.offer = None;
                if tenure.deadline.is_none() {
                    tenure.deadline = runners_until.or(deadline);
                }
            }
            self.set_alarm(now, &slot);
        }
    }

    /// All leases are gone: runners stop, the rest is forgotten.
    fn mark_all_gone(&mut self, now: Timestamp) {
        let slots: Vec<Slot> = self.slots.keys().cloned().collect();
        for slot in slots {
            self.lease_gone(now, &slot);
        }
    }

    pub(super) fn clear_outbox(&mut self) {
        for ticket in self.outbox.clear() {
            self.actions.push_back(Action::CheckpointSaved { ticket, result: Err(CheckpointError::LeaseGone) });
        }
    }

    pub(super) fn begin_shutdown(&mut self, now: Timestamp) {
        if self.shutdown.is_none() {
            self.shutdown = Some(now);
            self.plan_dirty = true;
        }
    }

    /// When the shutdown loses its patience, or ends.
    pub(super) fn shutdown_due(&self) -> Timestamp {
        let Some(begun) = self.shutdown.filter(|_| !matches!(self.phase, Phase::Done)) else { return Timestamp::NEVER };
        if self.patience_told { begun + self.config.drain_timeout } else { begun + self.patience() }
    }

    /// How long a shutdown waits for successors before it lets go without them.
    fn patience(&self) -> Duration {
        (self.config.timing.heartbeat_interval * 2).min(self.config.drain_timeout / 3)
    }

    fn mind_shutdown(&mut self, now: Timestamp) {
        let Some(begun) = self.shutdown.filter(|_| !matches!(self.phase, Phase::Done)) else { return };
        if now >= begun + self.config.drain_timeout {
            let running: Vec<Slot> = self.running().map(|(slot, _)| slot.clone()).collect();
            for slot in &running {
                self.abort_now(now, slot);
            }
            self.phase = Phase::Done;
            self.actions.push_back(Action::Session(None));
            self.actions.push_back(Action::Stopped(StoppedReason::DrainTimeout { running }));
            return;
        }
        if now >= begun + self.patience() && !self.patience_told {
            self.patience_told = true;
            let slots: Vec<Slot> = self.slots.keys().cloned().collect();
            for slot in slots {
                self.stop(now, &slot, StopReason::Shutdown);
            }
        }
        let left = self.slots.values().any(|local| local.tenure.is_some());
        if left {
            return;
        }
        match &self.phase {
            Phase::Open(open) if !self.outbox.is_busy() => {
                self.last_session = Some(open.id);
                self.paging = None;
                self.phase = Phase::Closing(None);
                self.backoff_until = now;
            }
            Phase::Closed | Phase::Opening(_) => {
                self.phase = Phase::Done;
                self.actions.push_back(Action::Stopped(StoppedReason::Clean));
            }
            Phase::Open(_) | Phase::Closing(_) | Phase::Done => {}
        }
    }

    pub(super) fn on_closed(&mut self, request: RequestId) {
        let answered = match &self.phase {
            Phase::Closing(sent) => sent.is_none_or(|sent| sent == request),
            Phase::Closed | Phase::Opening(_) | Phase::Open(_) | Phase::Done => false,
        };
        if answered {
            self.phase = Phase::Done;
            self.actions.push_back(Action::Session(None));
            self.actions.push_back(Action::Stopped(StoppedReason::Clean));
        }
    }
}
