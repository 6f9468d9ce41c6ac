//! What can happen next, and what must never be: the model as [`stateright`] wants it.

use stateright::{Model, Property};

use crate::node::{Acting, STOP_LEAD};
use crate::state::{
    Broken, How, Kind, Made, NODES_MAX, Operation, Phase, Reply, Request, Run, SLOTS_MAX, Session, State, Why, put,
};
use crate::store::Names;
use crate::{Bounds, Fault};

/// The promises that are checked in every state.
pub const PROMISES: [&str; 7] = [
    "S1 a grant goes to a live session",
    "S2 at most one run of a slot",
    "S4 the token of a grant rises",
    "S5 a live holder's slot is never taken",
    "S6 a lease is given back only when no runner of the slot runs on the node",
    "S8 a stale request does nothing",
    "S9 a retry has the effect of one",
];

/// What must be found to happen: a model in which nothing happens keeps every promise.
pub const EXAMPLES: [&str; 4] = [
    "a slot runs after a handoff",
    "a slot runs after its holder's session ended",
    "a slot runs again where it was stopped for its deadline",
    "a slot runs after it was given back",
];

/// The protocol in a bounded world.
#[derive(Debug, Clone)]
pub struct Protocol {
    /// The bounds.
    pub bounds: Bounds,
    names: Names,
}

impl Protocol {
    /// The protocol in this world.
    ///
    /// # Panics
    /// If a state has no room for it.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        assert!((1..=NODES_MAX).contains(&bounds.nodes), "1 to {NODES_MAX} nodes");
        assert!((1..=SLOTS_MAX).contains(&bounds.slots), "1 to {SLOTS_MAX} slots");
        assert!(bounds.ttl > STOP_LEAD, "a session of one tick leaves no time to run");
        assert!(bounds.grants_max < crate::state::TOKEN_MAX, "fewer than {} grants", crate::state::TOKEN_MAX);
        Self { bounds, names: Names::new() }
    }
}

/// One step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// A tick passes everywhere.
    Tick,
    /// The store removes a session whose time is over.
    Expire(Session),
    /// The store carries out a request, which may arrive again if it is kept.
    Serve {
        /// The request.
        request: Request,
        /// It stays on its way.
        keep: bool,
    },
    /// A request is lost.
    LoseRequest(Request),
    /// A node gets a reply.
    Answer(Reply),
    /// A reply is lost.
    LoseReply(Reply),
    /// A node opens a session, or tries again.
    Open(usize),
    /// A node sends a heartbeat.
    Beat(usize),
    /// A node sends a change of its lease again.
    RetryLease(usize, usize),
    /// A node sends its answer to an offer again.
    RetryAnswer(usize, usize),
    /// A node tries for a slot that it saw free.
    Acquire(usize, usize),
    /// A node starts its runner.
    Start(usize, usize),
    /// A runner, with this token, ends after it was told to.
    Ended(usize, usize, u8),
    /// A runner has failed too often.
    GivenUp(usize, usize, u8),
    /// A node tells a runner to stop for its deadline.
    StopForDeadline(usize, usize),
    /// A node offers a slot to a session.
    Offer(usize, usize, Session),
    /// A node takes its offer back.
    Withdraw(usize, usize),
    /// A node accepts or refuses an offer.
    WarmedUp(usize, usize, bool),
    /// A node's process ends at once, with its runners, and starts anew.
    Crash(usize),
}

impl Model for Protocol {
    type State = State;
    type Action = Act;

    fn init_states(&self) -> Vec<State> {
        let mut state = State::default();
        for local in state.nodes.iter_mut().flat_map(|node| &mut node.slots) {
            local.seen = Some(0);
        }
        if self.bounds.opened {
            for at in 0..self.bounds.nodes {
                for act in [Act::Open(at), Act::Serve { request: first_opening(at), keep: false }] {
                    self.step(&mut state, act);
                }
                if let Some(reply) = state.replies.pop() {
                    self.answer(&mut state, reply);
                }
            }
            state.tidy();
        }
        vec![state]
    }

    fn actions(&self, state: &State, acts: &mut Vec<Act>) {
        if state.broken.is_some() || (0..SLOTS_MAX).any(|slot| state.running(slot) > 1) {
            return; // what follows from a broken promise shows nothing more
        }
        if self.may_tick(state) {
            acts.push(Act::Tick);
        }
        let early = self.bounds.fault == Some(Fault::SessionsEndEarly);
        acts.extend(state.store.sessions.iter().flatten().filter(|s| s.left == 0 || early).map(|s| Act::Expire(s.id)));
        for request in &state.requests {
            acts.push(Act::Serve { request: *request, keep: false });
            if self.bounds.duplicates {
                acts.push(Act::Serve { request: *request, keep: true });
            }
            acts.push(Act::LoseRequest(*request));
        }
        for reply in &state.replies {
            acts.push(Act::Answer(*reply));
            acts.push(Act::LoseReply(*reply));
        }
        let crashed: u8 = state.nodes.iter().map(|node| node.incarnation).sum();
        for node in 0..self.bounds.nodes {
            match state.nodes[node].phase {
                Phase::Open { .. } => acts.push(Act::Beat(node)),
                Phase::Closed | Phase::Opening(_) => acts.push(Act::Open(node)),
            }
            if crashed < self.bounds.crashes_max {
                acts.push(Act::Crash(node));
            }
            for slot in 0..self.bounds.slots {
                self.slot_actions(state, node, slot, acts);
            }
        }
    }

    fn next_state(&self, before: &State, act: Act) -> Option<State> {
        let mut state = before.clone();
        if !self.step(&mut state, act) {
            return None;
        }
        state.tidy();
        let state = state.closed_up();
        Some(if self.bounds.alike { state.representative(self.bounds.nodes, self.bounds.slots) } else { state })
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let [s1, s2, s4, s5, s6, s8, s9] = PROMISES;
        let [handoff, expiry, anew, returned] = EXAMPLES;
        let mut properties = vec![
            Property::always(s1, |_, state: &State| state.broken != Some(Broken::GrantedToTheDead)),
            Property::always(s2, |_, state: &State| (0..SLOTS_MAX).all(|slot| state.running(slot) <= 1)),
            Property::always(s4, |_, state: &State| state.broken != Some(Broken::TokenNotRaised)),
            Property::always(s5, |_, state: &State| state.broken != Some(Broken::Stolen)),
            Property::always(s6, |_, state: &State| state.broken != Some(Broken::GivenBackWhileRunning)),
            Property::always(s8, |_, state: &State| state.broken != Some(Broken::StaleTookEffect)),
            Property::always(s9, |_, state: &State| state.broken != Some(Broken::GrantedTwice)),
        ];
        // Only where it is noted how grants came about.
        let examples = [
            Property::sometimes(handoff, |_, state: &State| runs_after(state, How::Handoff, 2)),
            Property::sometimes(expiry, |_, state: &State| runs_after(state, How::Expiry, 2)),
            Property::sometimes(anew, |_, state: &State| runs_after(state, How::Anew, 2)),
            Property::sometimes(returned, |_, state: &State| runs_after(state, How::Free, 2)),
        ];
        properties.extend(examples.into_iter().filter(|_| self.bounds.note_how));
        properties
    }
}

/// The first opening of a node.
fn first_opening(at: usize) -> Request {
    let operation = Operation { node: at as u8, about: Operation::OPENING, nth: 0 };
    Request::Open { node: at as u8, incarnation: 0, operation, replaces: None, age: 0 }
}

/// Whether a slot runs under a grant of this kind, with a token of at least this.
fn runs_after(state: &State, how: How, token: u8) -> bool {
    (0..SLOTS_MAX).any(|slot| {
        let record = &state.store.slots[slot];
        let holder = record.holder.map_or(0, |holder| usize::from(holder.node));
        record.how == how && record.token >= token && state.runs[holder][slot] == 1 << record.token
    })
}

impl Protocol {
    /// Time does not pass while a runner would outlive its deadline.
    fn may_tick(&self, state: &State) -> bool {
        state.nodes.iter().all(|node| {
            let tenures = node.slots.iter().filter_map(|local| local.tenure.as_ref());
            tenures.into_iter().all(|tenure| !tenure.run.is_alive() || node.deadline_of(tenure) > 1)
        })
    }

    fn slot_actions(&self, state: &State, at: usize, slot: usize, acts: &mut Vec<Act>) {
        let node = &state.nodes[at];
        let local = &node.slots[slot];
        let open = node.session().is_some();
        for token in (0..=self.bounds.grants_max).filter(|token| state.runs[at][slot] & (1 << token) != 0) {
            let run = local.tenure.filter(|tenure| tenure.token == token).map(|tenure| tenure.run);
            match run {
                Some(Run::Running) if self.bounds.giving_up => acts.push(Act::GivenUp(at, slot, token)),
                Some(Run::Running) => {}
                Some(Run::Stopping(_) | Run::Waiting | Run::Over(_)) | None => acts.push(Act::Ended(at, slot, token)),
            }
        }
        let mut state = state.clone();
        let acting = Acting { state: &mut state, bounds: &self.bounds, at };
        if acting.may_start(slot) {
            acts.push(Act::Start(at, slot));
        }
        if acting.is_due(slot) {
            acts.push(Act::StopForDeadline(at, slot));
        }
        if !open {
            return;
        }
        if local.lease.is_some() {
            acts.push(Act::RetryLease(at, slot));
        }
        if local.answer.is_some() {
            acts.push(Act::RetryAnswer(at, slot));
        }
        if local.promise.is_some_and(|promise| !promise.warm) && local.answer.is_none() {
            acts.extend([Act::WarmedUp(at, slot, true), Act::WarmedUp(at, slot, false)]);
        }
        let free = local.tenure.is_none() && local.promise.is_none() && local.lease.is_none();
        if free && local.seen.is_some_and(|token| token < self.bounds.grants_max) {
            acts.push(Act::Acquire(at, slot));
        }
        let held = local.tenure.filter(|tenure| {
            let steady = matches!(tenure.run, Run::Running | Run::Waiting);
            self.bounds.handoffs && !tenure.gone && steady && local.lease.is_none()
        });
        match held.map(|tenure| tenure.offer) {
            Some(None) if local.tenure.is_some_and(|tenure| tenure.token < self.bounds.grants_max) => {
                let others =
                    acting.state.store.sessions.iter().flatten().filter(|kept| usize::from(kept.id.node) != at);
                acts.extend(others.map(|kept| Act::Offer(at, slot, kept.id)));
            }
            Some(Some(_)) => acts.push(Act::Withdraw(at, slot)),
            Some(None) | None => {}
        }
    }

    /// Makes a step. False if it changes nothing or goes beyond the bounds.
    pub(crate) fn step(&self, state: &mut State, act: Act) -> bool {
        let bounds = &self.bounds;
        match act {
            Act::Tick => {
                self.tick(state);
                true
            }
            Act::Expire(session) => {
                state.store.sessions[usize::from(session.node)] = None;
                true
            }
            Act::Serve { request, keep } => {
                if !keep {
                    state.requests.retain(|other| *other != request);
                }
                let Some(reply) = state.serve(bounds, &self.names, request) else { return false };
                // A heartbeat's answer that is as old as the session is long comes to a session that is dead to its node.
                let in_vain = matches!(reply, Reply::Beat { age, .. } if age >= bounds.ttl);
                if !in_vain && state.replies.len() < bounds.replies_max {
                    put(&mut state.replies, reply);
                }
                true
            }
            Act::LoseRequest(request) => {
                state.requests.retain(|other| *other != request);
                true
            }
            Act::Answer(reply) => {
                state.replies.retain(|other| *other != reply);
                self.answer(state, reply);
                true
            }
            Act::LoseReply(reply) => {
                state.replies.retain(|other| *other != reply);
                true
            }
            Act::Open(at) => {
                let operation = match state.nodes[at].phase {
                    Phase::Opening(operation) => operation,
                    Phase::Closed | Phase::Open { .. } => state.fresh(at, Operation::OPENING),
                };
                let node = &mut state.nodes[at];
                node.phase = Phase::Opening(operation);
                let (incarnation, replaces) = (node.incarnation, node.last);
                let request = Request::Open { node: at as u8, incarnation, operation, replaces, age: 0 };
                state.requests.len() < bounds.requests_max && put(&mut state.requests, request)
            }
            Act::Beat(at) => {
                let Phase::Open { session, left } = &mut state.nodes[at].phase else { return false };
                let request = Request::Beat { session: *session, age: 0 };
                if bounds.fault == Some(Fault::ExtendsUnanswered) {
                    *left = bounds.ttl;
                }
                state.requests.len() < bounds.requests_max && put(&mut state.requests, request)
            }
            Act::Crash(at) => {
                let incarnation = state.nodes[at].incarnation + 1;
                state.nodes[at] = crate::state::Node { incarnation, ..Default::default() };
                state.nodes[at].slots.iter_mut().for_each(|local| local.seen = Some(0));
                state.runs[at] = [0; SLOTS_MAX];
                true
            }
            Act::RetryLease(at, slot)
            | Act::RetryAnswer(at, slot)
            | Act::Acquire(at, slot)
            | Act::Start(at, slot)
            | Act::Ended(at, slot, _)
            | Act::GivenUp(at, slot, _)
            | Act::StopForDeadline(at, slot)
            | Act::Offer(at, slot, _)
            | Act::Withdraw(at, slot)
            | Act::WarmedUp(at, slot, _) => self.step_of_slot(&mut Acting { state, bounds, at }, slot, act),
        }
    }

    fn step_of_slot(&self, acting: &mut Acting<'_>, slot: usize, act: Act) -> bool {
        match act {
            Act::RetryLease(..) => acting.local(slot).lease.is_some_and(|(token, kind)| acting.send(slot, token, kind)),
            Act::RetryAnswer(..) => {
                acting.local(slot).answer.is_some_and(|(token, kind)| acting.send(slot, token, kind))
            }
            Act::Acquire(..) => {
                let Some(token) = acting.local(slot).seen else { return false };
                let operation = acting.fresh(slot);
                acting.push(slot, token, Kind::Acquire(operation));
                true
            }
            Act::Start(..) => {
                acting.start(slot);
                true
            }
            Act::Ended(_, _, token) => {
                acting.on_ended(slot, token);
                true
            }
            Act::GivenUp(_, _, token) => {
                acting.on_given_up(slot, token);
                true
            }
            Act::StopForDeadline(..) => {
                acting.stop(slot, Why::Deadline);
                true
            }
            Act::Offer(_, _, to) => {
                let id = acting.fresh(slot);
                let Some(tenure) = &mut acting.local_mut(slot).tenure else { return false };
                tenure.offer = Some(Made { id, stands: false, ready: false });
                let token = tenure.token;
                acting.push(slot, token, Kind::Offer(id, to));
                true
            }
            Act::Withdraw(..) => {
                let Some(tenure) = &mut acting.local_mut(slot).tenure else { return false };
                let Some(made) = tenure.offer.take() else { return false };
                let token = tenure.token;
                acting.push(slot, token, Kind::Withdraw(made.id));
                true
            }
            Act::WarmedUp(_, _, ready) => {
                acting.on_warmed_up(slot, ready);
                true
            }
            Act::Tick
            | Act::Expire(_)
            | Act::Serve { .. }
            | Act::LoseRequest(_)
            | Act::Answer(_)
            | Act::LoseReply(_)
            | Act::Open(_)
            | Act::Beat(_)
            | Act::Crash(_) => false,
        }
    }

    fn answer(&self, state: &mut State, reply: Reply) {
        let at = match reply {
            Reply::Opened { operation, .. } | Reply::InUse { operation, .. } => operation.node,
            Reply::Beat { session, .. } | Reply::Lost(session) => session.node,
            Reply::Changed { change, .. } => change.session.node,
        };
        let mut node = Acting { state, bounds: &self.bounds, at: usize::from(at) };
        match reply {
            Reply::Opened { operation, session, age, shown } => node.on_opened(operation, session, age, shown),
            Reply::InUse { operation, session, own } => node.on_in_use(operation, session, own),
            Reply::Beat { session, age, shown } => node.on_beat(session, age, shown),
            Reply::Lost(session) => node.session_reported_lost(session),
            Reply::Changed { change, done, shown } => node.on_changed(change, done, shown),
        }
    }

    fn tick(&self, state: &mut State) {
        let ttl = self.bounds.ttl;
        for kept in &mut state.store.sessions {
            let Some(session) = kept else { continue };
            session.left = session.left.saturating_sub(1);
            if session.left == 0 && !self.bounds.late_expiry {
                *kept = None;
            }
        }
        for offer in state.store.slots.iter_mut().filter_map(|record| record.offer.as_mut()) {
            offer.left = offer.left.saturating_sub(1);
        }
        for request in &mut state.requests {
            match request {
                Request::Open { age, .. } | Request::Beat { age, .. } => *age = ttl.min(*age + 1),
                Request::Change(_) => {}
            }
        }
        for reply in &mut state.replies {
            match reply {
                Reply::Opened { age, .. } | Reply::Beat { age, .. } => *age = ttl.min(*age + 1),
                Reply::InUse { .. } | Reply::Lost(_) | Reply::Changed { .. } => {}
            }
        }
        state.replies.retain(|reply| !matches!(reply, Reply::Beat { age, .. } if *age >= ttl));
        // Older ones may have become alike.
        state.requests.sort_unstable();
        state.requests.dedup();
        state.replies.sort_unstable();
        state.replies.dedup();
        for at in 0..self.bounds.nodes {
            for tenure in state.nodes[at].slots.iter_mut().filter_map(|local| local.tenure.as_mut()) {
                tenure.until = tenure.until.map(|left| left.saturating_sub(1));
            }
            let over = match &mut state.nodes[at].phase {
                Phase::Open { left, .. } => {
                    *left = left.saturating_sub(1);
                    *left == 0
                }
                Phase::Closed | Phase::Opening(_) => false,
            };
            if over {
                Acting { state, bounds: &self.bounds, at }.session_not_extended();
            }
        }
    }
}
