//! The store's side. What happens to a slot is decided by the rules that ship, `rendez_core::Actor::decide`; sessions
//! are a few lines here, and a test compares both with `rendez_core::StoreModel` request by request.

use std::time::Duration;

use rendez_core::{
    Actor, ChangeKind, Decision, FencingToken, Holder, NodeId, Offer as CoreOffer, OperationId, Revision, SessionId,
    Slot, SlotChange, SlotRecord, StoreTime, Surroundings, WorkloadName,
};

use crate::state::{
    Change, How, Kept, Kind, NODES_MAX, Offer, Operation, Record, Reply, Request, SLOTS_MAX, Session, Shown, State,
    Store,
};
use crate::{Bounds, Fault, judge};

/// The moment at which everything happens: times are counted back from their end.
pub(crate) const NOW: StoreTime = StoreTime::from_micros(1_000_000);

/// How long a tick is, where the rules want a time.
pub(crate) const TICK: Duration = Duration::from_secs(1);

/// The names that the rules want, made once.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    pub(crate) nodes: [NodeId; NODES_MAX],
    pub(crate) slots: [Slot; SLOTS_MAX],
}

impl Names {
    pub(crate) fn new() -> Self {
        let workload = || "w".parse::<WorkloadName>().expect("a plain name is a name");
        Self {
            nodes: ["a", "b", "c"].map(|name| name.parse().expect("a plain name is a name")),
            slots: [Slot::new(workload(), 0), Slot::new(workload(), 1)],
        }
    }
}

impl Store {
    /// Whether a session lives.
    #[must_use]
    pub fn is_alive(&self, session: Session) -> bool {
        self.sessions[usize::from(session.node)].is_some_and(|kept| kept.id == session)
    }

    /// A slot's record as a node reads it: only what the engine looks at, so that replies that say the same are equal.
    fn shown(&self, slot: usize, reader: Session) -> Shown {
        let Record { token, holder, offer, .. } = self.slots[slot];
        let mine = holder == Some(reader);
        let offer =
            offer.filter(|offer| mine || offer.to == reader).map(|offer| Offer { left: offer.left.min(1), ..offer });
        let free = holder.is_none_or(|holder| !self.is_alive(holder));
        Shown { record: Record { token, holder: holder.filter(|_| mine), offer, ..Record::default() }, free }
    }

    fn all_shown(&self, reader: Session) -> [Shown; SLOTS_MAX] {
        std::array::from_fn(|slot| self.shown(slot, reader))
    }

    fn extend(&mut self, session: Session, ttl: u8) {
        if let Some(kept) = &mut self.sessions[usize::from(session.node)] {
            kept.left = ttl;
        }
    }
}

impl State {
    /// The store carries out a request. Returns the answer; nothing at all if a bound forbids to go on.
    pub(crate) fn serve(&mut self, bounds: &Bounds, names: &Names, request: Request) -> Option<Reply> {
        match request {
            Request::Open { node, incarnation, operation, replaces, age } => {
                self.open(bounds, node, incarnation, operation, replaces, age)
            }
            Request::Beat { session, age } => {
                if !self.store.is_alive(session) {
                    return Some(Reply::Lost(session));
                }
                self.store.extend(session, bounds.ttl);
                Some(Reply::Beat { session, age, shown: self.store.all_shown(session) })
            }
            Request::Change(change) => {
                if !self.store.is_alive(change.session) {
                    return Some(Reply::Lost(change.session));
                }
                let slot = usize::from(change.slot);
                let before = self.store;
                let done = self.store.change(bounds, names, change)?;
                self.broken = judge::judge(&before, &mut self.store, &self.runs, change);
                if !bounds.note_how {
                    self.store.slots[slot].how = How::default();
                }
                Some(Reply::Changed { change, done, shown: self.store.shown(slot, change.session) })
            }
        }
    }

    fn open(
        &mut self,
        bounds: &Bounds,
        node: u8,
        incarnation: u8,
        operation: Operation,
        replaces: Option<Session>,
        age: u8,
    ) -> Option<Reply> {
        let at = usize::from(node);
        if let Some(kept) = self.store.sessions[at] {
            let session = kept.id;
            if kept.opened_by == operation {
                if bounds.fault != Some(Fault::OpeningRetriedDoesNotExtend) {
                    self.store.extend(session, bounds.ttl);
                }
                return Some(Reply::Opened { operation, session, age, shown: self.store.all_shown(session) });
            }
            if kept.incarnation != incarnation || replaces != Some(session) {
                return Some(Reply::InUse { operation, session, own: kept.incarnation == incarnation });
            }
        }
        if self.store.drawn[at] >= bounds.sessions_max {
            return None;
        }
        let session = Session { node, nth: self.store.drawn[at] };
        self.store.drawn[at] += 1;
        self.store.sessions[at] = Some(Kept { id: session, incarnation, opened_by: operation, left: bounds.ttl });
        Some(Reply::Opened { operation, session, age, shown: self.store.all_shown(session) })
    }
}

// --- changes of slots, by the rules that ship ---

impl Store {
    /// Makes one change of one slot. Says whether it is done; nothing if a bound forbids it.
    fn change(&mut self, bounds: &Bounds, names: &Names, mut change: Change) -> Option<bool> {
        let at = usize::from(change.slot);
        let mut before = self.slots[at];
        match (bounds.fault, change.kind) {
            (Some(Fault::TokenNotCompared), _) => change.token = before.token,
            (Some(Fault::RetryGrantsAgain), Kind::Acquire(operation)) if before.granted_by == Some(operation) => {
                before.granted_by = None;
                change.token = before.token;
            }
            (Some(_) | None, _) => {}
        }
        let node = &names.nodes[usize::from(change.session.node)];
        let session = session_id(change.session);
        let actor = Actor { now: NOW, session, node, quiet: false, generation_known: true };
        let record = record_of(&before, names);
        let asked = change_of(&change, bounds, names);
        let mut surrounded = Surrounded { store: self, names, bounds, slot: at, acting: change.session, beyond: false };
        let decided = actor.decide(record.as_ref(), &asked, &mut surrounded);
        if surrounded.beyond {
            return None;
        }
        match decided {
            Err(_) => Some(false),
            Ok(Decision::Unchanged | Decision::Checkpoint(_)) => Some(true),
            Ok(Decision::Write(record, _)) => {
                self.slots[at] = read(&record, self.slots[at]);
                Some(true)
            }
        }
    }
}

struct Surrounded<'a> {
    store: &'a Store,
    names: &'a Names,
    bounds: &'a Bounds,
    slot: usize,
    acting: Session,
    /// A grant was asked for that the bounds do not permit.
    beyond: bool,
}

impl Surroundings for Surrounded<'_> {
    fn node_of(&self, session: SessionId) -> Option<NodeId> {
        let session = session_of(session);
        let holds = self.store.slots[self.slot].holder == Some(session);
        let lives = match self.bounds.fault {
            Some(Fault::TransferToTheDead) if !holds => true,
            Some(Fault::HolderNotLookedAt) if holds && session != self.acting => false,
            Some(_) | None => self.store.is_alive(session),
        };
        lives.then(|| self.names.nodes[usize::from(session.node)].clone())
    }

    fn next_token(&mut self) -> FencingToken {
        let before = self.store.slots[self.slot].token;
        self.beyond = before >= self.bounds.grants_max;
        let same = self.bounds.fault == Some(Fault::TokenNotRaised) && before > 0;
        FencingToken::new(u64::from(if same { before } else { before + 1 }))
    }
}

// --- the model's small numbers and the names that the rules want ---

pub(crate) fn session_id(session: Session) -> SessionId {
    SessionId::from_bits(u128::from(session.node) << 8 | u128::from(session.nth))
}

fn session_of(id: SessionId) -> Session {
    let [.., node, nth] = id.bits().to_be_bytes();
    Session { node, nth }
}

/// Never 0, which no request may be named.
pub(crate) fn operation_id(operation: Operation) -> OperationId {
    let Operation { node, about, nth } = operation;
    OperationId::from_bits(1 << 24 | u128::from(node) << 16 | u128::from(about) << 8 | u128::from(nth))
}

/// What stands where no request is known that made a grant.
const NO_OPERATION: OperationId = OperationId::from_bits(0);

fn operation_of(id: OperationId) -> Operation {
    let [.., node, about, nth] = id.bits().to_be_bytes();
    Operation { node, about, nth }
}

/// The kind of a change as the rules know it.
pub(crate) fn kind_of(kind: Kind, bounds: &Bounds, session: impl Fn(Session) -> SessionId) -> ChangeKind {
    match kind {
        Kind::Acquire(operation) => ChangeKind::Acquire { operation: operation_id(operation) },
        Kind::Release => ChangeKind::Release { checkpoint: None, refuse_for: None },
        Kind::Offer(operation, to) => ChangeKind::Offer {
            operation: operation_id(operation),
            to: session(to),
            expires_in: TICK * u32::from(bounds.offer_ttl),
            giver_total: 1,
            giver_of_workload: 1,
            forced: false,
        },
        Kind::Withdraw(offer) => ChangeKind::Withdraw { offer: operation_id(offer) },
        Kind::Accept(offer) => ChangeKind::Accept { offer: operation_id(offer) },
        Kind::Refuse(offer) => ChangeKind::Refuse { offer: operation_id(offer), refuse_for: TICK },
        Kind::Transfer(operation, offer) => {
            ChangeKind::Transfer { operation: operation_id(operation), offer: operation_id(offer), checkpoint: None }
        }
    }
}

fn change_of(change: &Change, bounds: &Bounds, names: &Names) -> SlotChange {
    SlotChange {
        slot: names.slots[usize::from(change.slot)].clone(),
        token: FencingToken::new(u64::from(change.token)),
        kind: kind_of(change.kind, bounds, session_id),
    }
}

fn record_of(record: &Record, names: &Names) -> Option<SlotRecord> {
    let holder = |session: Session| {
        let node = names.nodes[usize::from(session.node)].clone();
        Holder { session: session_id(session), node }
    };
    let offer = |offer: Offer| CoreOffer {
        id: operation_id(offer.id),
        to: session_id(offer.to),
        expires_at: NOW + TICK * u32::from(offer.left),
        giver_total: 1,
        giver_of_workload: 1,
        forced: false,
        ready: offer.ready,
    };
    (record.token > 0).then(|| SlotRecord {
        token: FencingToken::new(u64::from(record.token)),
        granted_by: record.granted_by.map_or(NO_OPERATION, operation_id),
        holder: record.holder.map(holder),
        taken_at: NOW,
        freed_at: None,
        moved_at: None,
        offer: record.offer.map(offer),
        refusals: Vec::new(),
        force: None,
        checkpoint: None,
        revision: Revision(0),
    })
}

fn read(record: &SlotRecord, before: Record) -> Record {
    let offer = |offer: &CoreOffer| Offer {
        id: operation_of(offer.id),
        to: session_of(offer.to),
        left: u8::try_from(offer.expires_at.since(NOW).as_secs()).unwrap_or(u8::MAX),
        ready: offer.ready,
    };
    Record {
        token: u8::try_from(record.token.get()).unwrap_or(u8::MAX),
        granted_by: (record.granted_by != NO_OPERATION).then(|| operation_of(record.granted_by)),
        holder: record.holder.as_ref().map(|holder| session_of(holder.session)),
        offer: record.offer.as_ref().map(offer),
        how: before.how,
    }
}

#[cfg(test)]
mod tests {
    //! The store of the model and the model of the store answer alike.

    use std::collections::BTreeMap;
    use std::sync::Arc;

    use rendez_core::{
        Capabilities, ChangeOutcome, ChangeRequest, ClusterSettings, ErrorKind, HeartbeatRequest, Incarnation, Known,
        NodeInfo, OpenRequest, Opening, StoreModel,
    };
    use stateright::Model;

    use super::*;
    use crate::{Act, Protocol};

    /// A `StoreModel` that is told the same requests, and the names that it gave.
    struct Told {
        store: StoreModel,
        now: StoreTime,
        ttl: Duration,
        names: Names,
        sessions: BTreeMap<Session, SessionId>,
        tokens: [BTreeMap<u8, FencingToken>; SLOTS_MAX],
    }

    impl Told {
        fn new(bounds: &Bounds) -> Self {
            Self {
                store: StoreModel::new(1, Capabilities::strict("model")),
                now: NOW,
                ttl: TICK * u32::from(bounds.ttl),
                names: Names::new(),
                sessions: BTreeMap::new(),
                tokens: [(); SLOTS_MAX].map(|()| BTreeMap::from([(0, FencingToken::NONE)])),
            }
        }

        /// Tells a request; the answer must be the same.
        fn serve(&mut self, bounds: &Bounds, request: Request, expected: Reply) {
            match request {
                Request::Open { node, incarnation, operation, replaces, .. } => {
                    let name = self.names.nodes[usize::from(node)].clone();
                    let opening = self.store.open(
                        self.now,
                        &OpenRequest {
                            known: Known::default(),
                            operation: operation_id(operation),
                            incarnation: Incarnation::from_bits(u128::from(incarnation)),
                            replaces: replaces.map(|session| self.sessions[&session]),
                            ttl: self.ttl,
                            info: Arc::new(NodeInfo::new(name, ClusterSettings::new(self.ttl))),
                        },
                    );
                    match (opening.unwrap(), expected) {
                        (Opening::Opened { session, .. }, Reply::Opened { session: ours, .. }) => {
                            assert_eq!(*self.sessions.entry(ours).or_insert(session), session);
                        }
                        (
                            Opening::InUse { session, incarnation: theirs, .. },
                            Reply::InUse { session: ours, own, .. },
                        ) => {
                            assert_eq!(self.sessions[&ours], session);
                            assert_eq!(theirs.bits() == u128::from(incarnation), own);
                        }
                        (opening, reply) => panic!("{opening:?} is not {reply:?}"),
                    }
                }
                Request::Beat { session, .. } => {
                    let beat = self.store.heartbeat(
                        self.now,
                        &HeartbeatRequest {
                            known: Known::default(),
                            session: self.sessions[&session],
                            since: None,
                            changes_max: 1,
                            due_within: TICK,
                            info: None,
                        },
                    );
                    match expected {
                        Reply::Lost(_) => assert_eq!(beat.unwrap_err().kind(), ErrorKind::Lost),
                        _ => drop(beat.unwrap()),
                    }
                }
                Request::Change(change) => {
                    let slot = usize::from(change.slot);
                    let changes = vec![SlotChange {
                        slot: self.names.slots[slot].clone(),
                        token: self.tokens[slot][&change.token],
                        kind: kind_of(change.kind, bounds, |session| self.sessions[&session]),
                    }];
                    let session = self.sessions[&change.session];
                    let changed =
                        self.store.change(self.now, &ChangeRequest { known: Known::default(), session, changes });
                    match expected {
                        Reply::Lost(_) => assert_eq!(changed.unwrap_err().kind(), ErrorKind::Lost),
                        Reply::Changed { done, .. } => {
                            let outcome = &changed.unwrap().outcomes[0];
                            assert_eq!(matches!(outcome, ChangeOutcome::Done(_)), done, "{change:?}: {outcome:?}");
                        }
                        reply => panic!("{reply:?} is no answer to a change"),
                    }
                }
            }
        }

        /// Both hold the same.
        fn compare(&mut self, ours: &Store) {
            for (session, id) in &self.sessions {
                assert_eq!(self.store.is_alive(self.now, *id), ours.is_alive(*session), "{session:?}");
            }
            for (slot, record) in ours.slots.iter().enumerate() {
                let theirs = self.store.slot(&self.names.slots[slot]);
                let token = theirs.map_or(FencingToken::NONE, |theirs| theirs.token);
                let tokens = &mut self.tokens[slot];
                assert_eq!(*tokens.entry(record.token).or_insert(token), token);
                assert!(tokens.values().is_sorted(), "{tokens:?}");
                let holder = theirs.and_then(|theirs| theirs.holder.as_ref()).map(|holder| holder.session);
                assert_eq!(holder, record.holder.map(|session| self.sessions[&session]));
                let offer = theirs.and_then(|theirs| theirs.offer.as_ref());
                let offer = offer.map(|offer| (offer.id, offer.to, offer.expires_at > self.now, offer.ready));
                let same =
                    |offer: Offer| (operation_id(offer.id), self.sessions[&offer.to], offer.left > 0, offer.ready);
                assert_eq!(offer, record.offer.map(same));
            }
        }
    }

    fn is_fair(act: &Act) -> bool {
        !matches!(
            act,
            Act::Tick | Act::LoseRequest(_) | Act::LoseReply(_) | Act::Crash(_) | Act::GivenUp(..) | Act::Withdraw(..)
        )
    }

    #[test]
    fn the_store_model_answers_every_request_alike() {
        let bounds = Bounds {
            ttl: 3,
            sessions_max: 100,
            grants_max: 6,
            requests_max: 3,
            replies_max: 3,
            crashes_max: 2,
            late_expiry: false,
            eager: true,
            offer_ttl: 3,
            ..Bounds::new(3, 2)
        };
        let model = Protocol::new(bounds);
        let (mut seed, mut served, mut handoffs) = (7_u64, 0, 0);
        for _ in 0..300 {
            let mut told = Told::new(&bounds);
            let mut state = model.init_states().remove(0);
            for _ in 0..400 {
                let mut acts = Vec::new();
                model.actions(&state, &mut acts);
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                // Mostly good weather, or little would come to its end.
                if seed >> 60 != 0 && acts.iter().any(is_fair) {
                    acts.retain(is_fair);
                }
                let act = acts[(seed >> 33) as usize % acts.len()];
                let mut next = state.clone();
                if !model.step(&mut next, act) {
                    continue;
                }
                match act {
                    Act::Tick => told.now = told.now + TICK,
                    Act::Serve { request, .. } => {
                        let expected = state.serve(&bounds, &told.names, request).unwrap();
                        told.serve(&bounds, request, expected);
                        served += 1;
                        let transfer = matches!(request, Request::Change(Change { kind: Kind::Transfer(..), .. }));
                        handoffs += u32::from(transfer && matches!(expected, Reply::Changed { done: true, .. }));
                    }
                    _ => {}
                }
                state = next;
                told.compare(&state.store);
            }
        }
        assert!(served > 10_000 && handoffs > 20, "{served} requests and {handoffs} handoffs prove little");
    }
}
