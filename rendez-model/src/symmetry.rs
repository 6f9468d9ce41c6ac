//! Nodes and slots are alike, and so are requests: of all states that differ only in what is called what, one stands for
//! all.
//!
//! Names only. Whatever has a node or a slot in it must be renamed here, or states would be taken for alike that are not;
//! a test compares a world with and without this.

use std::cell::Cell;

use crate::state::{
    Change, Kept, Kind, Local, Made, NODES_MAX, Node, Offer, Operation, Phase, Promise, Record, Reply, Request, Run,
    SLOTS_MAX, Session, Shown, State, Tenure, Then,
};

/// New names: what was node `n` is now node `nodes[n]`, and so for slots.
struct Names {
    nodes: [u8; NODES_MAX],
    slots: [u8; SLOTS_MAX],
    /// Which requests were met, by node and subject: a bit for each number. Those numbers are closed up.
    used: Cell<Used>,
    closing_up: Option<Used>,
}

type Used = [[u32; SLOTS_MAX + 1]; NODES_MAX];

/// Where the requests about openings are counted.
const OPENINGS: usize = SLOTS_MAX;

impl Names {
    fn new(nodes: [u8; NODES_MAX], slots: [u8; SLOTS_MAX]) -> Self {
        Self { nodes, slots, used: Cell::new(Used::default()), closing_up: None }
    }
}

const ORDERS: [[u8; NODES_MAX]; 6] = [[0, 1, 2], [1, 0, 2], [0, 2, 1], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
const SLOT_ORDERS: [[u8; SLOTS_MAX]; 2] = [[0, 1], [1, 0]];

impl State {
    /// The same with the numbers of requests closed up, where one between them is mentioned no more.
    pub(crate) fn closed_up(self) -> Self {
        let names = Names::new(ORDERS[0], SLOT_ORDERS[0]);
        let same = names.state(&self);
        let used = names.used.get();
        if used.as_flattened().iter().all(|bits| bits.wrapping_add(1) & bits == 0) {
            return same;
        }
        Names { closing_up: Some(used), ..names }.state(&self)
    }

    /// The least of all states that are like this one.
    pub(crate) fn representative(self, nodes: usize, slots: usize) -> Self {
        let mut least = self.clone();
        // The orders that leave alone the nodes that are not there come first.
        let orders = [1, 1, 2, 6][nodes];
        for nodes in &ORDERS[..orders] {
            for slots in &SLOT_ORDERS[..slots] {
                let other = Names::new(*nodes, *slots).state(&self);
                if other < least {
                    least = other;
                }
            }
        }
        least
    }
}

impl Names {
    fn node(&self, node: u8) -> u8 {
        self.nodes[usize::from(node)]
    }

    fn slot(&self, slot: u8) -> u8 {
        self.slots[usize::from(slot)]
    }

    fn by_node<T: Copy>(&self, of: &[T; NODES_MAX]) -> [T; NODES_MAX] {
        let mut renamed = *of;
        of.iter().zip(self.nodes).for_each(|(value, to)| renamed[usize::from(to)] = *value);
        renamed
    }

    fn by_slot<T: Copy>(&self, of: &[T; SLOTS_MAX]) -> [T; SLOTS_MAX] {
        let mut renamed = *of;
        of.iter().zip(self.slots).for_each(|(value, to)| renamed[usize::from(to)] = *value);
        renamed
    }

    fn state(&self, state: &State) -> State {
        let mut renamed = state.clone();
        let store = &mut renamed.store;
        store.sessions = self.by_node(&store.sessions.map(|kept| kept.map(|kept| self.kept(kept))));
        store.drawn = self.by_node(&store.drawn);
        store.slots = self.by_slot(&store.slots.map(|record| self.record(record)));
        renamed.nodes = self.by_node(&renamed.nodes.map(|node| self.of_node(node)));
        renamed.runs = self.by_node(&renamed.runs.map(|runs| self.by_slot(&runs)));
        renamed.requests.iter_mut().for_each(|request| *request = self.request(*request));
        renamed.replies.iter_mut().for_each(|reply| *reply = self.reply(*reply));
        renamed.requests.sort_unstable();
        renamed.replies.sort_unstable();
        renamed
    }

    fn session(&self, session: Session) -> Session {
        Session { node: self.node(session.node), ..session }
    }

    fn operation(&self, operation: Operation) -> Operation {
        let Operation { node, about, nth } = operation;
        let (at, bit) = (if about == Operation::OPENING { OPENINGS } else { usize::from(about) }, 1u32 << nth.min(31));
        let mut used = self.used.get();
        used[usize::from(node)][at] |= bit;
        self.used.set(used);
        let below = |used: &Used| (used[usize::from(node)][at] & (bit - 1)).count_ones() as u8;
        let about = if at == OPENINGS { about } else { self.slot(about) };
        Operation { node: self.node(node), about, nth: self.closing_up.as_ref().map_or(nth, below) }
    }

    fn kept(&self, kept: Kept) -> Kept {
        Kept { id: self.session(kept.id), opened_by: self.operation(kept.opened_by), ..kept }
    }

    fn record(&self, record: Record) -> Record {
        let offer = |offer: Offer| Offer { id: self.operation(offer.id), to: self.session(offer.to), ..offer };
        Record {
            granted_by: record.granted_by.map(|operation| self.operation(operation)),
            holder: record.holder.map(|session| self.session(session)),
            offer: record.offer.map(offer),
            ..record
        }
    }

    fn shown(&self, shown: Shown) -> Shown {
        Shown { record: self.record(shown.record), ..shown }
    }

    fn all_shown(&self, shown: [Shown; SLOTS_MAX]) -> [Shown; SLOTS_MAX] {
        self.by_slot(&shown.map(|shown| self.shown(shown)))
    }

    fn kind(&self, kind: Kind) -> Kind {
        match kind {
            Kind::Acquire(operation) => Kind::Acquire(self.operation(operation)),
            Kind::Release => Kind::Release,
            Kind::Offer(operation, to) => Kind::Offer(self.operation(operation), self.session(to)),
            Kind::Withdraw(offer) => Kind::Withdraw(self.operation(offer)),
            Kind::Accept(offer) => Kind::Accept(self.operation(offer)),
            Kind::Refuse(offer) => Kind::Refuse(self.operation(offer)),
            Kind::Transfer(operation, offer) => Kind::Transfer(self.operation(operation), self.operation(offer)),
        }
    }

    fn change(&self, change: Change) -> Change {
        Change {
            session: self.session(change.session),
            slot: self.slot(change.slot),
            kind: self.kind(change.kind),
            ..change
        }
    }

    fn request(&self, request: Request) -> Request {
        match request {
            Request::Open { node, incarnation, operation, replaces, age } => Request::Open {
                node: self.node(node),
                incarnation,
                operation: self.operation(operation),
                replaces: replaces.map(|session| self.session(session)),
                age,
            },
            Request::Beat { session, age } => Request::Beat { session: self.session(session), age },
            Request::Change(change) => Request::Change(self.change(change)),
        }
    }

    fn reply(&self, reply: Reply) -> Reply {
        match reply {
            Reply::Opened { operation, session, age, shown } => Reply::Opened {
                operation: self.operation(operation),
                session: self.session(session),
                age,
                shown: self.all_shown(shown),
            },
            Reply::InUse { operation, session, own } => {
                Reply::InUse { operation: self.operation(operation), session: self.session(session), own }
            }
            Reply::Beat { session, age, shown } => {
                Reply::Beat { session: self.session(session), age, shown: self.all_shown(shown) }
            }
            Reply::Lost(session) => Reply::Lost(self.session(session)),
            Reply::Changed { change, done, shown } => {
                Reply::Changed { change: self.change(change), done, shown: self.shown(shown) }
            }
        }
    }

    fn of_node(&self, node: Node) -> Node {
        let phase = match node.phase {
            Phase::Closed => Phase::Closed,
            Phase::Opening(operation) => Phase::Opening(self.operation(operation)),
            Phase::Open { session, left } => Phase::Open { session: self.session(session), left },
        };
        let last = node.last.map(|session| self.session(session));
        Node { phase, last, slots: self.by_slot(&node.slots.map(|local| self.local(local))), ..node }
    }

    fn local(&self, local: Local) -> Local {
        let entry = |(token, kind)| (token, self.kind(kind));
        Local {
            tenure: local.tenure.map(|tenure| self.tenure(tenure)),
            promise: local.promise.map(|promise| Promise { offer: self.operation(promise.offer), ..promise }),
            lease: local.lease.map(entry),
            answer: local.answer.map(entry),
            ..local
        }
    }

    fn tenure(&self, tenure: Tenure) -> Tenure {
        let run = match tenure.run {
            Run::Over(Then::Transfer(offer)) => Run::Over(Then::Transfer(self.operation(offer))),
            Run::Waiting | Run::Running | Run::Stopping(_) | Run::Over(Then::Release | Then::Reacquire) => tenure.run,
        };
        let offer = tenure.offer.map(|made| Made { id: self.operation(made.id), ..made });
        Tenure { session: self.session(tenure.session), run, offer, ..tenure }
    }
}
