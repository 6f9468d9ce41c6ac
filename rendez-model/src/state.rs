//! What one state of the model consists of: the store, the nodes, what is on its way between them, and what runs.
//!
//! Data only. Everything is small and bounded, so that a state is a few hundred bytes and equal situations are equal
//! values: times are counted back from their end, and the names of requests are used again once nothing mentions them.

use std::fmt;

/// The most nodes that a state has room for.
pub const NODES_MAX: usize = 3;

/// The most slots that a state has room for.
pub const SLOTS_MAX: usize = 2;

/// The largest token that the model counts to.
pub const TOKEN_MAX: u8 = 7;

/// A session: the `nth` that the store drew for this node. Never drawn twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Session {
    /// Whose it is.
    pub node: u8,
    /// Which of the node's.
    pub nth: u8,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", letter(self.node), self.nth)
    }
}

/// The name of a request; its retry bears the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Operation {
    /// Who has drawn it.
    pub node: u8,
    /// What it is about: a slot, or [`OPENING`](Self::OPENING).
    pub about: u8,
    /// Which of those that something still mentions.
    pub nth: u8,
}

impl Operation {
    /// An operation that opens a session.
    pub const OPENING: u8 = u8::MAX;
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.about {
            Self::OPENING => write!(f, "op({} opening #{})", letter(self.node), self.nth),
            slot => write!(f, "op({} slot {slot} #{})", letter(self.node), self.nth),
        }
    }
}

pub(crate) fn letter(node: u8) -> char {
    char::from(b'a' + node)
}

// --- the store ---

/// A slot's record in the store; token 0 stands for a slot that was never granted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Record {
    /// The token of the last grant.
    pub token: u8,
    /// The request that made it.
    pub granted_by: Option<Operation>,
    /// Who holds the slot.
    pub holder: Option<Session>,
    /// The pending offer.
    pub offer: Option<Offer>,
    /// How the last grant came about. The store does not know this; the judge does.
    pub how: How,
}

/// An offer in a record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Offer {
    /// Its name.
    pub id: Operation,
    /// The session that it is made to.
    pub to: Session,
    /// Ticks until it ends.
    pub left: u8,
    /// Accepted.
    pub ready: bool,
}

/// How a grant came about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum How {
    /// Nobody held the slot.
    #[default]
    Free,
    /// Its holder took it anew.
    Anew,
    /// Its holder's session had ended.
    Expiry,
    /// Its holder handed it over.
    Handoff,
}

/// A session in the store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Kept {
    /// Its name.
    pub id: Session,
    /// The process lifetime that opened it.
    pub incarnation: u8,
    /// The request that opened it.
    pub opened_by: Operation,
    /// Ticks until it may end.
    pub left: u8,
}

/// All that the store keeps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Store {
    /// The session of each node, if one lives.
    pub sessions: [Option<Kept>; NODES_MAX],
    /// How many were drawn for each node.
    pub drawn: [u8; NODES_MAX],
    /// The slots' records.
    pub slots: [Record; SLOTS_MAX],
}

// --- what is on its way ---

/// What a change does; as `rendez_core::ChangeKind`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// Take the slot.
    Acquire(Operation),
    /// Let go.
    Release,
    /// Offer the slot to a session.
    Offer(Operation, Session),
    /// Take an offer back.
    Withdraw(Operation),
    /// Say that one is ready for an offer.
    Accept(Operation),
    /// Refuse an offer.
    Refuse(Operation),
    /// Hand the slot over, by the second, an offer.
    Transfer(Operation, Operation),
}

/// A change of one slot, on behalf of a session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Change {
    /// Who acts.
    pub session: Session,
    /// The slot.
    pub slot: u8,
    /// The token that it must have.
    pub token: u8,
    /// What to do.
    pub kind: Kind,
}

/// A request on its way to the store. `age` is the time since it was sent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Request {
    /// Opens a session.
    Open {
        /// For whom.
        node: u8,
        /// The process lifetime.
        incarnation: u8,
        /// The name of the opening, the same for all its tries.
        operation: Operation,
        /// The session that it replaces.
        replaces: Option<Session>,
        /// Ticks since this try was sent.
        age: u8,
    },
    /// Extends a session.
    Beat {
        /// Which.
        session: Session,
        /// Ticks since it was sent.
        age: u8,
    },
    /// Changes a slot.
    Change(Change),
}

/// A slot's record as a reply shows it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Shown {
    /// The record.
    pub record: Record,
    /// Nobody held it, or its holder's session had ended.
    pub free: bool,
}

/// A reply on its way to a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Reply {
    /// A session was opened.
    Opened {
        /// By this opening.
        operation: Operation,
        /// The session.
        session: Session,
        /// Ticks since the try that this answers was sent.
        age: u8,
        /// The slots.
        shown: [Shown; SLOTS_MAX],
    },
    /// A live session has the node's name.
    InUse {
        /// Told to this opening.
        operation: Operation,
        /// The session that lives.
        session: Session,
        /// It is of the same process lifetime.
        own: bool,
    },
    /// A session was extended.
    Beat {
        /// Which.
        session: Session,
        /// Ticks since the heartbeat was sent.
        age: u8,
        /// The slots.
        shown: [Shown; SLOTS_MAX],
    },
    /// The session does not live.
    Lost(Session),
    /// What became of a change.
    Changed {
        /// The change.
        change: Change,
        /// It is done.
        done: bool,
        /// The slot after it.
        shown: Shown,
    },
}

// --- a node ---

/// One node; as `rendez_core::Engine`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Node {
    /// Its process lifetime: how often it has crashed.
    pub incarnation: u8,
    /// Where its session stands.
    pub phase: Phase,
    /// The session that it held last.
    pub last: Option<Session>,
    /// What it does about each slot.
    pub slots: [Local; SLOTS_MAX],
}

/// Where a node's session stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Phase {
    /// There is none.
    #[default]
    Closed,
    /// It is being opened.
    Opening(Operation),
    /// It is open.
    Open {
        /// Its name.
        session: Session,
        /// Ticks until the node's own deadline.
        left: u8,
    },
}

/// One slot as a node knows it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Local {
    /// The slot's token, if it seemed free when it was seen last.
    pub seen: Option<u8>,
    /// The largest token that it has ended or offered to give back.
    pub floor: u8,
    /// The lease.
    pub tenure: Option<Tenure>,
    /// An offer of another node that it gets ready for or has accepted.
    pub promise: Option<Promise>,
    /// The change of the lease that is to be made or under way: the token that it names, and what it does.
    pub lease: Option<(u8, Kind)>,
    /// The same for the answer to an offer.
    pub answer: Option<(u8, Kind)>,
}

/// A lease and its runner.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Tenure {
    /// Its token.
    pub token: u8,
    /// The session that the grant names.
    pub session: Session,
    /// The lease is gone; only its runner is left.
    pub gone: bool,
    /// Ticks until its own deadline, where that is not the session's.
    pub until: Option<u8>,
    /// Where its runner is.
    pub run: Run,
    /// The offer that this node has made.
    pub offer: Option<Made>,
}

/// Where a runner is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Run {
    /// There is none; it may be started.
    Waiting,
    /// It runs.
    Running,
    /// It was told to stop.
    Stopping(Why),
    /// It is gone for good.
    Over(Then),
}

impl Run {
    /// Whether, as the node knows it, code of the slot may be running.
    #[must_use]
    pub fn is_alive(self) -> bool {
        match self {
            Self::Running | Self::Stopping(_) => true,
            Self::Waiting | Self::Over(_) => false,
        }
    }
}

/// Why a runner is told to stop.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Why {
    /// The session was not extended in time.
    Deadline,
    /// The lease is gone.
    Lost,
    /// The receiver of an offer is ready.
    Handoff,
}

/// What to do with a lease whose runner is gone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Then {
    /// Let it go.
    Release,
    /// Hand it over by this offer.
    Transfer(Operation),
    /// Take it anew.
    Reacquire,
}

/// An offer that a node has made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Made {
    /// Its name.
    pub id: Operation,
    /// The store has taken it.
    pub stands: bool,
    /// The receiver is ready, by what was seen last.
    pub ready: bool,
}

/// An offer of another node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Promise {
    /// Its name.
    pub offer: Operation,
    /// The slot's token.
    pub token: u8,
    /// It was answered.
    pub warm: bool,
}

// --- everything ---

/// A promise that a step of the store has broken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Broken {
    /// S1: a grant to a session that does not live.
    GrantedToTheDead,
    /// S4: a grant whose token is not higher than the one before.
    TokenNotRaised,
    /// S5: a live holder's slot was taken from it.
    Stolen,
    /// S6: a lease was given back while a runner of the slot ran on the node.
    GivenBackWhileRunning,
    /// S8: a request of a dead session, or with an old token, has changed the slot.
    StaleTookEffect,
    /// S9: the retry of a request has granted again.
    GrantedTwice,
}

/// One state of the model.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct State {
    /// The store.
    pub store: Store,
    /// The nodes.
    pub nodes: [Node; NODES_MAX],
    /// Requests on their way, in order, none twice.
    pub requests: Vec<Request>,
    /// Replies on their way, in order, none twice.
    pub replies: Vec<Reply>,
    /// What runs in truth, whatever the nodes think: for each node and slot a bit for each token.
    pub runs: [[u8; SLOTS_MAX]; NODES_MAX],
    /// What the last step has broken.
    pub broken: Option<Broken>,
}

impl State {
    /// How many runners of a slot run in truth.
    #[must_use]
    pub fn running(&self, slot: usize) -> u32 {
        self.runs.iter().map(|of| of[slot].count_ones()).sum()
    }

    /// Takes out what can have no effect any more, so that situations that differ in nothing else are equal: messages of
    /// sessions that are dead to everybody, replies that nobody waits for, the name of a grant's request once no try of it
    /// is left.
    pub(crate) fn tidy(&mut self) {
        let Self { store, nodes, requests, replies, .. } = self;
        let current =
            |session: Session| nodes[usize::from(session.node)].session().is_some_and(|(open, _)| open == session);
        requests.retain(|request| match request {
            Request::Open { .. } => true,
            Request::Beat { session, .. } | Request::Change(Change { session, .. }) => {
                current(*session) || store.is_alive(*session)
            }
        });
        replies.retain(|reply| match reply {
            Reply::Opened { operation, .. } | Reply::InUse { operation, .. } => {
                nodes[usize::from(operation.node)].phase == Phase::Opening(*operation)
            }
            Reply::Beat { session, .. } | Reply::Lost(session) => current(*session),
            Reply::Changed { change, .. } => {
                let local = &nodes[usize::from(change.session.node)].slots[usize::from(change.slot)];
                let entry = Some((change.token, change.kind));
                current(change.session) && (local.lease == entry || local.answer == entry)
            }
        });
        for (slot, record) in store.slots.iter_mut().enumerate() {
            let by = |kind: Kind| match kind {
                Kind::Acquire(id) | Kind::Transfer(id, _) => record.granted_by == Some(id),
                Kind::Release | Kind::Offer(..) | Kind::Withdraw(_) | Kind::Accept(_) | Kind::Refuse(_) => false,
            };
            let tried = requests.iter().any(|request| matches!(request, Request::Change(change) if by(change.kind)))
                || nodes.iter().any(|node| node.slots[slot].lease.is_some_and(|(_, kind)| by(kind)));
            if !tried {
                record.granted_by = None;
            }
        }
        // A floor is asked for where a lease is shown that was given back, or is being given back.
        for node in nodes.iter_mut() {
            let open = node.session().map(|(session, _)| session);
            for (slot, local) in node.slots.iter_mut().enumerate() {
                let asked = |record: &Record| {
                    open.is_some() && record.holder == open && (1..=local.floor).contains(&record.token)
                };
                let shown = |reply: &Reply| match reply {
                    Reply::Opened { shown, .. } | Reply::Beat { shown, .. } => asked(&shown[slot].record),
                    Reply::Changed { change, shown, .. } => usize::from(change.slot) == slot && asked(&shown.record),
                    Reply::InUse { .. } | Reply::Lost(_) => false,
                };
                if !asked(&store.slots[slot]) && !replies.iter().any(shown) {
                    local.floor = 0;
                }
            }
        }
    }

    /// A name for a request that nothing mentions: no message, no record and no node.
    pub(crate) fn fresh(&self, node: usize, about: u8) -> Operation {
        let name = |nth| Operation { node: node as u8, about, nth };
        (0..=u8::MAX).map(name).find(|operation| !self.mentions(*operation)).unwrap_or(name(u8::MAX))
    }

    fn mentions(&self, operation: Operation) -> bool {
        let in_record = |record: &Record| {
            record.granted_by == Some(operation) || record.offer.is_some_and(|offer| offer.id == operation)
        };
        let in_kind = |kind: Kind| match kind {
            Kind::Acquire(id) | Kind::Offer(id, _) | Kind::Withdraw(id) | Kind::Accept(id) | Kind::Refuse(id) => {
                id == operation
            }
            Kind::Transfer(id, offer) => id == operation || offer == operation,
            Kind::Release => false,
        };
        let in_request = |request: &Request| match request {
            Request::Open { operation: id, .. } => *id == operation,
            Request::Beat { .. } => false,
            Request::Change(change) => in_kind(change.kind),
        };
        let in_reply = |reply: &Reply| match reply {
            Reply::Opened { operation: id, shown, .. } => {
                *id == operation || shown.iter().any(|shown| in_record(&shown.record))
            }
            Reply::InUse { operation: id, .. } => *id == operation,
            Reply::Beat { shown, .. } => shown.iter().any(|shown| in_record(&shown.record)),
            Reply::Lost(_) => false,
            Reply::Changed { change, shown, .. } => in_kind(change.kind) || in_record(&shown.record),
        };
        let in_tenure = |tenure: &Tenure| {
            tenure.offer.is_some_and(|made| made.id == operation) || tenure.run == Run::Over(Then::Transfer(operation))
        };
        let in_local = |local: &Local| {
            local.tenure.as_ref().is_some_and(in_tenure)
                || local.promise.is_some_and(|promise| promise.offer == operation)
                || local.lease.is_some_and(|(_, kind)| in_kind(kind))
                || local.answer.is_some_and(|(_, kind)| in_kind(kind))
        };
        let in_node = |node: &Node| node.phase == Phase::Opening(operation) || node.slots.iter().any(in_local);
        self.store.slots.iter().any(in_record)
            || self.store.sessions.iter().flatten().any(|kept| kept.opened_by == operation)
            || self.requests.iter().any(in_request)
            || self.replies.iter().any(in_reply)
            || self.nodes.iter().any(in_node)
    }
}

/// Puts a message among the others, in order. Says whether it is new.
pub(crate) fn put<T: Ord>(messages: &mut Vec<T>, message: T) -> bool {
    match messages.binary_search(&message) {
        Ok(_) => false,
        Err(at) => {
            messages.insert(at, message);
            true
        }
    }
}
