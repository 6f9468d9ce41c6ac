//! A node's side: what `rendez_core::Engine` does, without its clock, its plan and its pacing.
//!
//! Each function bears the name of the one in the engine that it stands for, and does the same to the same fields in the
//! same order. What the engine decides by plan, pace or chance is an action of its own in `protocol`, allowed whenever
//! the engine might do it.

use crate::state::{
    Change, Kind, Local, Made, Node, Operation, Phase, Promise, Record, Reply, Request, Run, SLOTS_MAX, Session, Shown,
    State, Tenure, Then, Why, put,
};
use crate::{Bounds, Fault};

/// How many ticks before the deadline a runner is told to stop.
pub(crate) const STOP_LEAD: u8 = 1;

/// A node of a state, with what its actions need.
pub(crate) struct Acting<'a> {
    pub(crate) state: &'a mut State,
    pub(crate) bounds: &'a Bounds,
    pub(crate) at: usize,
}

impl Node {
    /// `Engine::session`: the open session and the ticks until its deadline.
    pub(crate) fn session(&self) -> Option<(Session, u8)> {
        match self.phase {
            Phase::Open { session, left } => Some((session, left)),
            Phase::Closed | Phase::Opening(_) => None,
        }
    }

    /// `Engine::deadline_of`: the ticks until the runner of a tenure must be gone.
    pub(crate) fn deadline_of(&self, tenure: &Tenure) -> u8 {
        tenure.until.unwrap_or(self.session().map_or(0, |(_, left)| left))
    }
}

impl Acting<'_> {
    pub(crate) fn node(&self) -> &Node {
        &self.state.nodes[self.at]
    }

    fn node_mut(&mut self) -> &mut Node {
        &mut self.state.nodes[self.at]
    }

    pub(crate) fn local(&self, slot: usize) -> &Local {
        &self.node().slots[slot]
    }

    pub(crate) fn local_mut(&mut self, slot: usize) -> &mut Local {
        &mut self.node_mut().slots[slot]
    }

    fn tenure(&self, slot: usize) -> Option<Tenure> {
        self.local(slot).tenure
    }

    fn tenure_mut(&mut self, slot: usize) -> Option<&mut Tenure> {
        self.local_mut(slot).tenure.as_mut()
    }

    pub(crate) fn fresh(&self, slot: usize) -> Operation {
        self.state.fresh(self.at, slot as u8)
    }

    // --- the outbox ---

    /// `Outbox::push`, and the first sending if there is room on the way; else it is sent later.
    pub(crate) fn push(&mut self, slot: usize, token: u8, kind: Kind) {
        let entry = Some((token, kind));
        match kind {
            Kind::Accept(_) | Kind::Refuse(_) => self.local_mut(slot).answer = entry,
            Kind::Acquire(_) | Kind::Release | Kind::Offer(..) | Kind::Withdraw(_) | Kind::Transfer(..) => {
                self.local_mut(slot).lease = entry;
            }
        }
        self.send(slot, token, kind);
    }

    /// Sends a change, for the first time or again. False if that changes nothing, or nothing more fits on the way.
    pub(crate) fn send(&mut self, slot: usize, token: u8, kind: Kind) -> bool {
        let Some((session, _)) = self.node().session() else { return false };
        let change = Change { session, slot: slot as u8, token, kind };
        self.state.requests.len() < self.bounds.requests_max && put(&mut self.state.requests, Request::Change(change))
    }

    /// `Outbox::cancel_unsent`: a change counts as sent while its request or a reply to it is on its way.
    fn cancel_unsent(&mut self, slot: usize) {
        let Some((token, kind)) = self.local(slot).lease else { return };
        let this = |change: &Change| {
            usize::from(change.session.node) == self.at
                && usize::from(change.slot) == slot
                && (change.token, change.kind) == (token, kind)
        };
        let asked =
            self.state.requests.iter().any(|request| matches!(request, Request::Change(change) if this(change)));
        let told =
            self.state.replies.iter().any(|reply| matches!(reply, Reply::Changed { change, .. } if this(change)));
        if !asked && !told {
            self.local_mut(slot).lease = None;
        }
    }

    // --- session.rs ---

    /// `Engine::on_opened`.
    pub(crate) fn on_opened(&mut self, operation: Operation, session: Session, age: u8, shown: [Shown; SLOTS_MAX]) {
        if self.node().phase != Phase::Opening(operation) {
            return;
        }
        self.node_mut().last = Some(session);
        let left = self.validity(age);
        if left == 0 {
            self.node_mut().phase = Phase::Closed;
            return;
        }
        self.node_mut().phase = Phase::Open { session, left };
        self.mark_all_gone();
        for (slot, shown) in shown.iter().enumerate() {
            self.learn(slot, shown);
        }
    }

    /// The answer that another session has the node's name: replaced if it is of this very process, else waited for.
    pub(crate) fn on_in_use(&mut self, operation: Operation, session: Session, own: bool) {
        if own && self.node().phase == Phase::Opening(operation) {
            self.node_mut().last = Some(session);
        }
    }

    /// `Engine::on_beat`.
    pub(crate) fn on_beat(&mut self, of: Session, age: u8, shown: [Shown; SLOTS_MAX]) {
        let deadline = self.validity(age);
        match &mut self.node_mut().phase {
            Phase::Open { session, left } if *session == of => *left = deadline.max(*left),
            Phase::Open { .. } | Phase::Closed | Phase::Opening(_) => return,
        }
        for (slot, shown) in shown.iter().enumerate().take(self.bounds.slots) {
            self.learn(slot, shown);
            self.drop_promises(slot, &shown.record);
            self.mind_return(slot);
            self.look_at_slot(slot, &shown.record);
        }
    }

    /// How long a session is good that was opened or extended by a request of this age: counted from its sending.
    fn validity(&self, age: u8) -> u8 {
        let counted = if self.bounds.fault == Some(Fault::DeadlineFromReply) { 0 } else { age };
        self.bounds.ttl.saturating_sub(counted)
    }

    /// `Engine::session_reported_lost`: runners keep their deadline until the next opening.
    pub(crate) fn session_reported_lost(&mut self, of: Session) {
        if self.node().session().is_some_and(|(session, _)| session == of) {
            self.end_session();
        }
    }

    /// `Engine::mind_session`, when the deadline is reached.
    pub(crate) fn session_not_extended(&mut self) {
        self.end_session();
        self.mark_all_gone();
    }

    fn end_session(&mut self) {
        let Some((session, left)) = self.node().session() else { return };
        let node = self.node_mut();
        node.phase = Phase::Closed;
        node.last = Some(session);
        for local in &mut node.slots {
            (local.lease, local.answer, local.promise) = (None, None, None);
            if let Some(tenure) = &mut local.tenure {
                tenure.offer = None;
                tenure.until = tenure.until.or(Some(left));
            }
        }
    }

    fn mark_all_gone(&mut self) {
        (0..self.bounds.slots).for_each(|slot| self.lease_gone(slot));
    }

    // --- slots.rs ---

    /// What was seen of a slot that one holds says nothing about the time after that.
    fn learn(&mut self, slot: usize, shown: &Shown) {
        let seems_free = shown.free || self.bounds.eager;
        self.local_mut(slot).seen = seems_free.then_some(shown.record.token);
    }

    fn granted(&mut self, slot: usize, token: u8) {
        let Some((session, _)) = self.node().session() else { return };
        let local = self.local_mut(slot);
        (local.promise, local.seen) = (None, None);
        local.tenure = Some(Tenure { token, session, gone: false, until: None, run: Run::Waiting, offer: None });
    }

    /// `Engine::look_at_slot`.
    fn look_at_slot(&mut self, slot: usize, record: &Record) {
        let Some((session, _)) = self.node().session() else { return };
        let mine = record.holder == Some(session);
        let floor = self.floor(slot);
        match self.tenure(slot) {
            Some(tenure) if !tenure.gone => {
                if record.token > tenure.token || (record.token == tenure.token && !mine) {
                    self.lease_gone(slot);
                    if self.tenure(slot).is_none() {
                        self.look_at_slot(slot, record);
                    }
                    return;
                }
                if record.token < tenure.token {
                    return;
                }
                let Some(made) = tenure.offer else { return };
                let offer = match record.offer.filter(|offer| offer.id == made.id) {
                    Some(offer) => Some(Made { stands: true, ready: offer.ready, ..made }),
                    None if made.stands => None,
                    None => Some(made),
                };
                if let Some(tenure) = self.tenure_mut(slot) {
                    tenure.offer = offer;
                }
                if offer.is_some_and(|made| made.ready) {
                    self.stop(slot, Why::Handoff);
                }
            }
            Some(_) => {}
            None if mine && self.local(slot).lease.is_none() => {
                if record.token > floor {
                    self.granted(slot, record.token);
                } else {
                    let local = self.local_mut(slot);
                    local.floor = local.floor.max(record.token);
                    self.push(slot, record.token, Kind::Release);
                }
            }
            None => self.consider_offer(slot, record),
        }
    }

    fn floor(&self, slot: usize) -> u8 {
        if self.bounds.fault == Some(Fault::FloorForgotten) { 0 } else { self.local(slot).floor }
    }

    /// Whether `Engine::mind_runner` would start the runner of a slot.
    pub(crate) fn may_start(&self, slot: usize) -> bool {
        let (Some((session, _)), Some(tenure)) = (self.node().session(), self.tenure(slot)) else { return false };
        tenure.run == Run::Waiting
            && session == tenure.session
            && !tenure.gone
            && tenure.token > self.floor(slot)
            && self.node().deadline_of(&tenure) > STOP_LEAD
    }

    /// Starts it.
    pub(crate) fn start(&mut self, slot: usize) {
        if let Some(tenure) = self.tenure_mut(slot) {
            tenure.run = Run::Running;
            let token = tenure.token;
            self.state.runs[self.at][slot] |= 1 << token;
        }
    }

    /// Whether `Engine::mind_runner` would tell a runner to stop because its deadline is near.
    pub(crate) fn is_due(&self, slot: usize) -> bool {
        self.tenure(slot)
            .is_some_and(|tenure| tenure.run == Run::Running && self.node().deadline_of(&tenure) <= STOP_LEAD)
    }

    /// `Engine::stop`.
    pub(crate) fn stop(&mut self, slot: usize, why: Why) {
        let skips = self.bounds.fault == Some(Fault::HandsOverBeforeStop) && why == Why::Handoff;
        let Some(tenure) = self.tenure_mut(slot) else { return };
        match &mut tenure.run {
            Run::Running if skips => self.over(slot, why),
            Run::Running => tenure.run = Run::Stopping(why),
            Run::Waiting => self.over(slot, why),
            Run::Stopping(before) => {
                if *before == Why::Deadline {
                    *before = why;
                }
            }
            Run::Over(then) => {
                if *then == Then::Reacquire && why != Why::Deadline {
                    *then = Then::Release;
                }
            }
        }
    }

    /// `Engine::lease_gone`.
    fn lease_gone(&mut self, slot: usize) {
        self.cancel_unsent(slot);
        let deadline = self.node().session().map_or(0, |(_, left)| left);
        let local = self.local_mut(slot);
        let Some(tenure) = &mut local.tenure else { return };
        local.floor = local.floor.max(tenure.token);
        tenure.gone = true;
        tenure.offer = None;
        if tenure.run.is_alive() {
            tenure.until = tenure.until.or(Some(deadline));
            self.stop(slot, Why::Lost);
        } else {
            local.tenure = None;
        }
    }

    /// `Engine::on_ended`, for a runner that was told to stop.
    pub(crate) fn on_ended(&mut self, slot: usize, token: u8) {
        self.state.runs[self.at][slot] &= !(1 << token);
        let Some(tenure) = self.tenure(slot).filter(|tenure| tenure.token == token) else { return };
        match tenure.run {
            Run::Stopping(_) if tenure.gone => self.forget(slot),
            Run::Stopping(why) => self.over(slot, why),
            Run::Waiting | Run::Running | Run::Over(_) => {}
        }
    }

    /// `Engine::on_ended`, for one that has failed too often: the lease is given back.
    pub(crate) fn on_given_up(&mut self, slot: usize, token: u8) {
        self.state.runs[self.at][slot] &= !(1 << token);
        self.end_tenure(slot, Then::Release);
    }

    fn over(&mut self, slot: usize, why: Why) {
        let Some(tenure) = self.tenure(slot) else { return };
        match why {
            Why::Handoff => match tenure.offer.filter(|made| made.ready) {
                Some(made) => self.end_tenure(slot, Then::Transfer(made.id)),
                None => self.end_tenure(slot, Then::Release),
            },
            Why::Deadline => self.end_tenure(slot, Then::Reacquire),
            Why::Lost => self.forget(slot),
        }
    }

    fn end_tenure(&mut self, slot: usize, then: Then) {
        let local = self.local_mut(slot);
        let Some(tenure) = &mut local.tenure else { return };
        local.floor = local.floor.max(tenure.token);
        tenure.run = Run::Over(then);
        self.mind_return(slot);
    }

    fn forget(&mut self, slot: usize) {
        let local = self.local_mut(slot);
        if let Some(tenure) = local.tenure.take() {
            local.floor = local.floor.max(tenure.token);
        }
    }

    /// `Engine::mind_return`.
    fn mind_return(&mut self, slot: usize) {
        let Some((session, _)) = self.node().session() else { return };
        let Some(tenure) = self.tenure(slot) else { return };
        let Run::Over(then) = tenure.run else { return };
        if self.local(slot).lease.is_some() {
            return;
        }
        if tenure.session != session {
            self.lease_gone(slot);
            return;
        }
        let kind = match then {
            Then::Release => Kind::Release,
            Then::Transfer(offer) => Kind::Transfer(self.fresh(slot), offer),
            Then::Reacquire => Kind::Acquire(self.fresh(slot)),
        };
        self.push(slot, tenure.token, kind);
    }

    /// `Engine::on_changed` and `Engine::on_outcome`.
    pub(crate) fn on_changed(&mut self, change: Change, done: bool, shown: Shown) {
        let slot = usize::from(change.slot);
        if self.node().session().is_none_or(|(session, _)| session != change.session) {
            return;
        }
        let local = self.local_mut(slot);
        let entry = Some((change.token, change.kind));
        if local.lease == entry {
            local.lease = None;
        } else if local.answer == entry {
            local.answer = None;
        } else {
            return;
        }
        self.learn(slot, &shown);
        self.on_outcome(slot, change, done, &shown.record);
        self.mind_return(slot);
        self.look_at_slot(slot, &shown.record);
    }

    fn on_outcome(&mut self, slot: usize, change: Change, done: bool, record: &Record) {
        let floor = self.floor(slot);
        let local = self.local_mut(slot);
        let is_over = |tenure: &Tenure| matches!(tenure.run, Run::Over(_));
        match change.kind {
            Kind::Acquire(_) => {
                if local.tenure.as_ref().is_some_and(is_over) {
                    local.tenure = None;
                }
                let mine = done && record.holder == Some(change.session);
                if mine && local.tenure.is_none() && record.token > floor {
                    self.granted(slot, record.token);
                }
            }
            Kind::Release => drop(local.tenure.take_if(|tenure| is_over(tenure))),
            Kind::Transfer(..) => {
                let Some(tenure) = &mut local.tenure else { return };
                match tenure.run {
                    Run::Over(Then::Transfer(_)) if done => local.tenure = None,
                    Run::Over(Then::Transfer(_)) => tenure.run = Run::Over(Then::Release),
                    Run::Over(Then::Release | Then::Reacquire) | Run::Waiting | Run::Running | Run::Stopping(_) => {}
                }
            }
            Kind::Offer(operation, _) => {
                let Some(tenure) = &mut local.tenure else { return };
                if let Some(made) = tenure.offer.filter(|made| made.id == operation) {
                    tenure.offer = done.then_some(Made { stands: true, ..made });
                }
            }
            Kind::Accept(offer) => {
                if !done {
                    local.promise = local.promise.filter(|promise| promise.offer != offer);
                }
            }
            Kind::Withdraw(_) | Kind::Refuse(_) => {}
        }
    }

    // --- moves.rs ---

    /// `Engine::drop_promises`.
    fn drop_promises(&mut self, slot: usize, record: &Record) {
        let local = self.local_mut(slot);
        let stands = |promise: &Promise| record.offer.is_some_and(|offer| offer.id == promise.offer && offer.left > 0);
        if local.answer.is_none() {
            local.promise = local.promise.filter(stands);
        }
    }

    /// `Engine::consider_offer`; that the plan agrees is left open, and told by the answer.
    fn consider_offer(&mut self, slot: usize, record: &Record) {
        let Some((session, _)) = self.node().session() else { return };
        let Some(offer) = record.offer.filter(|offer| offer.to == session && !offer.ready && offer.left > 0) else {
            return;
        };
        let local = self.local_mut(slot);
        if local.promise.is_some_and(|promise| promise.offer == offer.id) || local.answer.is_some() {
            return;
        }
        local.promise = Some(Promise { offer: offer.id, token: record.token, warm: false });
    }

    /// `Engine::on_warmed_up` and `Engine::answer_offer`.
    pub(crate) fn on_warmed_up(&mut self, slot: usize, ready: bool) {
        let local = self.local_mut(slot);
        let Some(promise) = &mut local.promise else { return };
        promise.warm = true;
        let (offer, token) = (promise.offer, promise.token);
        if ready {
            self.push(slot, token, Kind::Accept(offer));
            if self.bounds.fault == Some(Fault::StartsOnOffer) {
                self.state.runs[self.at][slot] |= 1 << (token + 1);
            }
        } else {
            local.promise = None;
            self.push(slot, token, Kind::Refuse(offer));
        }
    }
}
