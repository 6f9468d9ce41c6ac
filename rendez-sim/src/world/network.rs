//! Between nodes and store: requests and replies that are lost, late and doubled; and what the store makes of them, told
//! as facts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rendez_core::{
    AdminRequest, Call, ChangeKind, ChangeOutcome, ErrorKind, FencingToken, Input, Opening, Reply, RequestId,
    SessionId, Slot, SlotChange, SlotRecord, Stamp, StoreError, WatchHint,
};

use super::{MS, S, What, World};
use crate::faults::Fault;
use crate::observers::Observer;
use crate::trace::{By, CallKind, Fact, Lease, Loss, SessionEnd};

/// The slots that a request is about, with their records before it.
type Touched = BTreeMap<Slot, Option<SlotRecord>>;

impl World {
    /// A node's request goes on its way, and its time begins to run.
    pub(super) fn send(&mut self, index: usize, life: u32, request: RequestId, call: Call, timeout: Duration) {
        let (kind, name, session) = match &call {
            Call::Open(_) => (CallKind::Open, "open", None),
            Call::Heartbeat(request) => {
                let reads_on = self.process(index, life).is_some_and(|process| std::mem::take(&mut process.reads_on));
                let kind = if reads_on { CallKind::ReadsOn } else { CallKind::Heartbeat };
                (kind, "heartbeat", Some(request.session))
            }
            Call::Change(request) => (CallKind::Change, "change", Some(request.session)),
            Call::Snapshot(request) => (CallKind::Snapshot, "snapshot", request.session),
            Call::Close(request) => (CallKind::Close, "close", Some(request.session)),
        };
        *self.calls.entry(name).or_default() += 1;
        let (mut gives, mut readopts) = (Vec::new(), Vec::new());
        if let Call::Change(request) = &call {
            for change in &request.changes {
                let list = match by(change) {
                    By::Release | By::Transfer => &mut gives,
                    By::Readopt => &mut readopts,
                    By::Acquire | By::Offer | By::Checkpoint | By::Operator | By::Loss => continue,
                };
                let number = self.slot_no(&change.slot);
                list.push((number, change.token));
            }
        }
        self.fact(Fact::Sends { node: index, call: kind, session, gives, readopts });

        let faulty = self.suffers(Fault::Messages);
        let delay = self.delay(faulty);
        let lost = faulty && self.dice.one_in(40);
        if !lost {
            let answer = !(faulty && self.dice.one_in(30));
            if faulty && self.dice.one_in(30) {
                let late = self.dice.below(15 * S);
                let call = Box::new(call.clone());
                self.at(self.now + late, What::Arrive { node: index, life, request, call, answer: false });
            }
            if self.nodes[index].mute_until <= self.now {
                let call = Box::new(call);
                self.at(self.now + delay, What::Arrive { node: index, life, request, call, answer });
            }
            self.happened.add_if(faulty && !answer, Fault::Messages);
        }
        self.happened.add_if(lost, Fault::Messages);
        let result = Box::new(Err(StoreError::new(ErrorKind::Ambiguous, "no answer in time")));
        let at = self.now + timeout.as_nanos() as u64;
        self.at(at, What::Answer { node: index, life, request, result });
    }

    fn delay(&mut self, faulty: bool) -> u64 {
        let usual = 200_000 + self.dice.below(2 * MS);
        if faulty && self.dice.one_in(20) { usual + self.dice.below(S) } else { usual }
    }

    /// A request arrives at the store.
    pub(super) fn arrive(&mut self, node: usize, life: u32, request: RequestId, call: &Call, answer: bool) {
        if self.now < self.store_down_until {
            if self.store_refuses {
                let at = self.now + self.delay(false);
                let result = Box::new(Err(StoreError::new(ErrorKind::Transient, "it is not there")));
                self.at(at, What::Answer { node, life, request, result });
            }
            return;
        }
        self.store.replicate(self.now);
        let touched = match call {
            Call::Change(request) if self.judged => self.touched(&request.changes),
            Call::Change(_) | Call::Open(_) | Call::Heartbeat(_) | Call::Snapshot(_) | Call::Close(_) => Touched::new(),
        };
        let empty = self.store.model.generation().is_none();
        let before = (self.store.model.generation(), self.store.model.revision());
        let hears = answer && self.nodes[node].deaf_until <= self.now && {
            let now = self.now;
            self.process(node, life).is_some_and(|process| process.paused_until <= now)
        };
        let observer = Observer { node, life, clock: self.local(node), hears };
        let result = self.store.call(self.now, call, &observer);
        self.happened.add_if(self.store.observers_end(), Fault::ObservedExpiry);
        if let Ok(reply) = &result {
            self.traffic.count(reply);
        }
        if empty {
            // Lost in full, and who comes first remembers nothing, or has missed the generations with the highest
            // tokens: here they may fall, and the store says so.
            self.fact(Fact::Remembers { token: self.store.model.token() });
        }
        if self.judged {
            self.tell_asks(node, life, request, call, &result, answer);
            if before != (self.store.model.generation(), self.store.model.revision()) {
                self.tell_sessions(node, call);
            }
            self.tell_effect(node, call, result.as_ref().ok(), touched);
        }
        self.spread_hints();
        if answer && self.nodes[node].deaf_until <= self.now {
            let faulty = self.suffers(Fault::Messages);
            let mut at = self.now + self.delay(faulty);
            let doomed = self.doom.is_some() && matches!(call, Call::Change(_)) && result.is_ok();
            if doomed {
                at = self.now + 20 * MS + self.more.below(440 * MS);
                self.trouble(Fault::LateReplies, at - self.now);
            }
            self.at(at, What::Answer { node, life, request, result: Box::new(result) });
            if doomed && let Some((_, loss)) = self.doom.take() {
                self.lose(loss);
            }
        }
    }

    pub(super) fn answer(&mut self, node: usize, life: u32, request: RequestId, result: Result<Reply, StoreError>) {
        if self.process(node, life).is_some_and(|process| process.waiting.remove(&request)) {
            self.input(node, life, Input::Reply(request, result));
        }
    }

    pub(super) fn spread_hints(&mut self) {
        for hint in self.store.model.take_hints() {
            self.spread_hint(hint);
        }
    }

    fn spread_hint(&mut self, hint: WatchHint) {
        for index in 0..self.nodes.len() {
            let life = self.nodes[index].life;
            let dropped = self.suffers(Fault::Hints) && self.dice.one_in(3);
            self.happened.add_if(dropped, Fault::Hints);
            if !dropped {
                let at = self.now + 200_000 + self.dice.below(MS);
                if self.nodes[index].deaf_until <= self.now {
                    self.at(at, What::Hint { node: index, life, hint });
                }
            }
        }
    }

    /// The store loses data, or may have.
    pub(super) fn lose(&mut self, loss: Loss) {
        let before: Vec<(Slot, SlotRecord)> =
            self.store.model.slots().map(|(slot, record)| (slot.clone(), record.clone())).collect();
        let generation = self.store.model.generation();
        match loss {
            Loss::Everything => {
                self.store.model.lose_everything();
                self.trouble(Fault::Losses, 0);
            }
            Loss::Restart => {
                self.store.model.restart();
                self.trouble(Fault::Losses, 1);
            }
            Loss::LastWrites => {
                let which = self.more.roll();
                let lag = self.store.fail_over(self.now, which);
                self.trouble(Fault::Failovers, lag);
            }
        }
        self.old_generations = [generation, self.store.model.generation()];
        self.fact(Fact::Loses { loss });
        self.tell_sessions_because(|_| (SessionEnd::Lost, None));
        let before = before.into_iter().map(|(slot, record)| (slot, Some(record))).collect();
        self.tell_records(before, By::Loss);
        if loss == Loss::LastWrites {
            // Watches are opened anew.
            self.spread_hint(WatchHint::Everyone);
        }
    }

    /// An operator's request is carried out.
    pub(super) fn carry_out(&mut self, request: &AdminRequest) -> rendez_core::AdminOutcome {
        let empty = self.store.model.generation().is_none();
        let before: BTreeMap<Slot, Option<SlotRecord>> =
            self.store.model.slots().map(|(slot, record)| (slot.clone(), Some(record.clone()))).collect();
        let outcome = self.store.administer(self.now, request).expect("a request that the model takes");
        if empty {
            self.fact(Fact::Remembers { token: self.store.model.token() }); // an operator remembers nothing
        }
        self.tell_sessions_because(|_| (SessionEnd::Expired, None));
        if let AdminRequest::ForceRelease { slot, .. } = request
            && let Some(holder) = before.get(slot).and_then(|record| record.as_ref()?.holder.as_ref())
        {
            self.store.forget_change(holder.session, slot);
        }
        self.tell_records(before, By::Operator);
        self.spread_hints();
        outcome
    }

    /// The slots that changes are about, with their records.
    fn touched(&self, changes: &[SlotChange]) -> Touched {
        let slots = changes.iter().map(|change| &change.slot);
        slots.map(|slot| (slot.clone(), self.store.model.slot(slot).cloned())).collect()
    }

    /// Tells which sessions have come and gone by a request.
    fn tell_sessions(&mut self, node: usize, call: &Call) {
        let closed = match call {
            Call::Close(request) => Some((request.session, Some(node))),
            Call::Open(request) => request.replaces.map(|session| (session, None)),
            Call::Heartbeat(_) | Call::Change(_) | Call::Snapshot(_) => None,
        };
        self.tell_sessions_because(|session| match closed {
            Some((closed, by)) if closed == session => (SessionEnd::Closed, by),
            Some(_) | None => (SessionEnd::Expired, None),
        });
    }

    fn tell_sessions_because(&mut self, why: impl Fn(SessionId) -> (SessionEnd, Option<usize>)) {
        let present: BTreeSet<SessionId> = self.store.model.sessions().map(|(id, _, _)| id).collect();
        let gone: Vec<SessionId> = self.sessions.difference(&present).copied().collect();
        for session in gone {
            self.sessions.remove(&session);
            let (why, by) = why(session);
            self.fact(Fact::Closes { session, why, by });
        }
        // A failover to an older state can bring one back.
        let back: Vec<SessionId> = present.difference(&self.sessions).copied().collect();
        for session in back {
            if let (Some(node), Some(ends)) =
                (self.session_nodes.get(&session).copied(), self.store.ends(self.now, session))
            {
                self.sessions.insert(session);
                self.fact(Fact::Opens { node, session, ends });
            }
        }
    }

    /// Tells what a request has done, by comparing what was with what is.
    fn tell_effect(&mut self, node: usize, call: &Call, reply: Option<&Reply>, touched: Touched) {
        match (call, reply) {
            (Call::Open(_), Some(Reply::Open(Opening::Opened { session, .. }))) => {
                self.session_nodes.insert(*session, node);
                self.sessions.insert(*session);
                if let Some(ends) = self.store.ends(self.now, *session) {
                    self.fact(Fact::Opens { node, session: *session, ends });
                }
            }
            (Call::Heartbeat(request), Some(_)) => {
                if let Some(ends) = self.store.ends(self.now, request.session) {
                    self.fact(Fact::Extends { session: request.session, ends });
                }
            }
            (Call::Change(request), _) => {
                let outcomes = match reply {
                    Some(Reply::Change(reply)) => reply.outcomes.as_slice(),
                    Some(_) | None => &[],
                };
                for (slot, before) in touched {
                    let lease_changed = lease(before.as_ref()) != lease(self.store.model.slot(&slot));
                    let cause = cause(&slot, lease_changed, &request.changes, outcomes);
                    let Some((by, named)) = cause else { continue };
                    self.tell_record(&slot, by, Some(request.session), named, before.as_ref());
                }
                if let Some(Reply::Change(reply)) = reply {
                    for (change, outcome) in request.changes.iter().zip(&reply.outcomes) {
                        let grants = matches!(change.kind, ChangeKind::Acquire { .. } | ChangeKind::Readopt);
                        if let (true, ChangeOutcome::Done(Some(record))) = (grants, outcome) {
                            let slot = self.slot_no(&change.slot);
                            self.fact(Fact::Grants { slot, session: request.session, token: record.token });
                        }
                    }
                }
            }
            (Call::Open(_) | Call::Heartbeat(_) | Call::Snapshot(_) | Call::Close(_), _) => {}
        }
    }

    /// Tells how records differ from what they were before.
    fn tell_records(&mut self, before: BTreeMap<Slot, Option<SlotRecord>>, by: By) {
        let now: Vec<Slot> = self.store.model.slots().map(|(slot, _)| slot.clone()).collect();
        let mut all = before;
        for slot in now {
            all.entry(slot).or_default();
        }
        for (slot, before) in all {
            self.tell_record(&slot, by, None, FencingToken::NONE, before.as_ref());
        }
    }

    fn tell_record(
        &mut self,
        slot: &Slot,
        by: By,
        session: Option<SessionId>,
        named: FencingToken,
        before: Option<&SlotRecord>,
    ) {
        let record = self.store.model.slot(slot);
        if before.map(|record| record.revision) == record.map(|record| record.revision) && by != By::Loss {
            return;
        }
        let moved_at = |record: Option<&SlotRecord>| record.and_then(|record| record.moved_at);
        let moved = by == By::Transfer && moved_at(before) != moved_at(record);
        let (before, after) = (lease(before), lease(record));
        if before == after && session.is_none() {
            return;
        }
        let holds = after.holder.and_then(|holder| {
            let node = self.session_nodes.get(&holder).copied()?;
            Some((node, self.store.model.held(holder).unwrap_or_default().count))
        });
        let slot = self.slot_no(slot);
        self.fact(Fact::Changes { slot, by, session, named, before, after, holds, moved });
    }
}

pub(super) fn lease(record: Option<&SlotRecord>) -> Lease {
    record.map_or_else(Lease::default, |record| Lease {
        token: record.token,
        holder: record.holder.as_ref().map(|holder| holder.session),
        granted_by: Some(record.granted_by).filter(|operation| operation.bits() != 0),
    })
}

/// The stamp of a reply, if it bears one.
pub(super) fn stamp_of(reply: &Reply) -> Option<&Stamp> {
    match reply {
        Reply::Open(Opening::Opened { stamp, .. } | Opening::InUse { stamp, .. }) => Some(stamp),
        Reply::Heartbeat(beat) => Some(&beat.stamp),
        Reply::Change(reply) => Some(&reply.stamp),
        Reply::Snapshot(page) => Some(&page.stamp),
        Reply::Close => None,
    }
}

/// Which of a batch's changes has changed a slot's record, and the token that it named: one that was made rather than one
/// that was refused, and one of those that change leases if the lease has changed, else another. The retry of a transfer is
/// answered as made and changes nothing, while an answer to an offer beside it does.
fn cause(
    slot: &Slot,
    lease_changed: bool,
    changes: &[SlotChange],
    outcomes: &[ChangeOutcome],
) -> Option<(By, FencingToken)> {
    let mut best = None;
    for (at, change) in changes.iter().enumerate().filter(|(_, change)| change.slot == *slot) {
        let done = matches!(outcomes.get(at), Some(ChangeOutcome::Done(_)));
        let of_lease = !matches!(by(change), By::Checkpoint | By::Offer);
        let fits = (done, of_lease == lease_changed);
        if best.is_none_or(|(best, _)| fits > best) {
            best = Some((fits, (by(change), change.token)));
        }
    }
    best.map(|(_, cause)| cause)
}

fn by(change: &SlotChange) -> By {
    match &change.kind {
        ChangeKind::Acquire { .. } => By::Acquire,
        ChangeKind::Release { .. } => By::Release,
        ChangeKind::Offer { .. }
        | ChangeKind::Withdraw { .. }
        | ChangeKind::Accept { .. }
        | ChangeKind::Refuse { .. } => By::Offer,
        ChangeKind::Transfer { .. } => By::Transfer,
        ChangeKind::SaveCheckpoint { .. } => By::Checkpoint,
        ChangeKind::Readopt => By::Readopt,
    }
}
