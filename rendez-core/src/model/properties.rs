//! Random histories: what must hold after every request, whatever the requests are.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::{
    Change, ChangeKind, ChangeOutcome, ClusterSettings, Incarnation, NodeInfo, OperationId, SlotChange, WorkloadRecord,
};

const TTL: Duration = Duration::from_secs(10);
const NODES: u8 = 4;
const UNITS: u32 = 3;

/// One step of a history. Sessions, tokens and offers are picked among those that were ever seen, the stale ones too.
#[derive(Debug, Clone)]
enum Step {
    Wait(u64),
    Open { node: u8, incarnation: u8, named: bool },
    Heartbeat { session: u8, weight: Option<u32> },
    Close { session: u8 },
    Change { session: u8, unit: u32, token: u8, kind: u8, other: u8 },
    Put { key: u8, exists: bool },
    Force { unit: u32, token: u8, now: bool },
    Restart,
    RollBack,
    LoseEverything,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        24 => (0..4_000_u64).prop_map(Step::Wait),
        36 => (0..NODES, 0..2_u8, any::<bool>())
            .prop_map(|(node, incarnation, named)| Step::Open { node, incarnation, named }),
        36 => (any::<u8>(), prop::option::of(1..4_u32))
            .prop_map(|(session, weight)| Step::Heartbeat { session, weight }),
        6 => any::<u8>().prop_map(|session| Step::Close { session }),
        180 => (any::<u8>(), 0..UNITS, any::<u8>(), any::<u8>(), any::<u8>())
            .prop_map(|(session, unit, token, kind, other)| Step::Change { session, unit, token, kind, other }),
        12 => (any::<u8>(), any::<bool>()).prop_map(|(key, exists)| Step::Put { key, exists }),
        6 => (0..UNITS, any::<u8>(), any::<bool>()).prop_map(|(unit, token, now)| Step::Force { unit, token, now }),
        1 => Just(Step::Restart),
        1 => Just(Step::RollBack),
        1 => Just(Step::LoseEverything),
    ]
}

/// What can be sent, and sent again.
#[derive(Debug, Clone)]
enum Request {
    Call(Call),
    Admin(AdminRequest),
}

fn send(store: &mut StoreModel, now: StoreTime, request: &Request) -> String {
    match request {
        Request::Call(call) => format!("{:?}", store.call(now, call)),
        Request::Admin(request) => format!("{:?}", store.administer(now, request)),
    }
}

type View = BTreeMap<String, Change>;

fn apply(view: &mut View, change: Change) {
    let (key, gone) = match &change {
        Change::Session(id, record) => (Key::Session(*id), record.is_none()),
        Change::Slot(slot, record) => (Key::Slot(slot.clone()), record.is_none()),
        Change::Record(key, record) => (Key::Record(key.clone()), record.is_none()),
    };
    if gone {
        view.remove(&key.to_text());
    } else {
        view.insert(key.to_text(), change);
    }
}

fn snapshot(store: &mut StoreModel, now: StoreTime) -> View {
    let (mut view, mut cursor) = (View::new(), None);
    loop {
        let request = SnapshotRequest { known: known(store), session: None, cursor };
        let page = store.snapshot(now, &request).unwrap();
        page.items.into_iter().for_each(|item| apply(&mut view, item));
        cursor = page.next;
        if cursor.is_none() {
            return view;
        }
    }
}

fn known(store: &StoreModel) -> Known {
    Known { generation: store.generation(), token: FencingToken::NONE, session_ttl_max: TTL }
}

/// The store, and all that was ever seen of it.
struct History {
    store: StoreModel,
    /// Knows of the store only what its effects tell.
    follower: StoreModel,
    now: StoreTime,
    operations: u128,
    sessions: Vec<SessionId>,
    tokens: BTreeMap<u32, Vec<FencingToken>>,
    offers: Vec<OperationId>,
    views: Vec<(Generation, Revision, View)>,
    granted: BTreeSet<FencingToken>,
    backups: Vec<StoreModel>,
    /// How often a change of each kind has changed something.
    made: BTreeMap<String, u32>,
}

fn slot(unit: u32) -> Slot {
    Slot::new("w".parse().unwrap(), unit)
}

fn pick<T: Copy>(from: &[T], at: u8) -> Option<T> {
    // The latest ones are the most interesting.
    (!from.is_empty()).then(|| from[from.len() - 1 - usize::from(at) * usize::from(at) / 256 * from.len() / 256])
}

impl History {
    fn new() -> Self {
        let mut capabilities = Capabilities::strict("model");
        capabilities.changes_max = 4;
        Self {
            store: StoreModel::new(7, capabilities.clone()).with_tombstones_max(3).recording(),
            follower: StoreModel::new(8, capabilities).with_tombstones_max(3).recording(),
            now: StoreTime::from_micros(1_000_000_000),
            operations: 0,
            sessions: Vec::new(),
            tokens: BTreeMap::new(),
            offers: Vec::new(),
            views: Vec::new(),
            granted: BTreeSet::new(),
            backups: Vec::new(),
            made: BTreeMap::new(),
        }
    }

    fn request(&mut self, step: &Step) -> Option<Request> {
        self.operations += 1;
        let operation = OperationId::from_bits(self.operations);
        let known = known(&self.store);
        Some(match *step {
            Step::Open { node, incarnation, named } => {
                let name: crate::NodeId = format!("n{node}").parse().unwrap();
                let standing = self.store.sessions().find(|(_, record, _)| record.info.node == name);
                Request::Call(Call::Open(OpenRequest {
                    known,
                    operation,
                    incarnation: Incarnation::from_bits(u128::from(incarnation)),
                    replaces: standing.map(|(id, ..)| id).filter(|_| named),
                    ttl: TTL,
                    info: Arc::new(NodeInfo::new(name, ClusterSettings::new(TTL))),
                }))
            }
            Step::Heartbeat { session, weight } => {
                let session = pick(&self.sessions, session)?;
                let info = self.store.sessions().find(|(id, ..)| *id == session).map(|(_, record, _)| &record.info);
                let info = info.zip(weight).map(|(info, weight)| Arc::new(NodeInfo { weight, ..(**info).clone() }));
                Request::Call(Call::Heartbeat(HeartbeatRequest {
                    known,
                    session,
                    since: None,
                    changes_max: 10,
                    due_within: TTL,
                    info,
                }))
            }
            Step::Close { session } => {
                Request::Call(Call::Close(CloseRequest { known, session: pick(&self.sessions, session)? }))
            }
            Step::Change { session, unit, token, kind, other } => {
                let mut session = pick(&self.sessions, session)?;
                let record = self.store.slot(&slot(unit));
                let standing = record.and_then(|record| record.offer.as_ref());
                let kind = match standing {
                    Some(offer) if (80..180).contains(&other) => {
                        if offer.ready {
                            6
                        } else {
                            4
                        }
                    }
                    Some(_) | None => kind % 9,
                };
                let mut token = if token < 32 {
                    pick(self.tokens.get(&unit).map_or(&[], |tokens| tokens), token).unwrap_or_default()
                } else {
                    record.map_or(FencingToken::NONE, |record| record.token)
                };
                let offer = standing.map(|offer| offer.id).or_else(|| pick(&self.offers, other)).unwrap_or(operation);
                let checkpoint = Some(Bytes::copy_from_slice(&[other])).filter(|_| other % 3 == 0);
                let refuse_for = Duration::from_secs(u64::from(other % 8));
                // Mostly, the one acts that can.
                let holder = record.and_then(|record| record.holder.as_ref()).map(|holder| holder.session);
                if other < 200 && matches!(kind, 1..=3 | 6..=7) {
                    session = holder.unwrap_or(session);
                } else if other < 200 && matches!(kind, 4 | 5) {
                    session = standing.map_or(session, |offer| offer.to);
                }
                let kind = match kind {
                    0 => ChangeKind::Acquire { operation },
                    1 => ChangeKind::Release { checkpoint, refuse_for: Some(refuse_for).filter(|_| other % 2 == 0) },
                    2 => ChangeKind::Offer {
                        operation,
                        to: pick(&self.sessions, other)?,
                        expires_in: refuse_for * 2,
                        giver_total: 1,
                        giver_of_workload: 1,
                        forced: other % 5 == 0,
                    },
                    3 => ChangeKind::Withdraw { offer },
                    4 => ChangeKind::Accept { offer },
                    5 => ChangeKind::Refuse { offer, refuse_for },
                    6 => ChangeKind::Transfer { operation, offer, checkpoint },
                    7 => ChangeKind::SaveCheckpoint { checkpoint: Bytes::copy_from_slice(&[other]) },
                    _ => ChangeKind::Readopt,
                };
                if matches!(kind, ChangeKind::Readopt) && other % 2 == 0 {
                    token = pick(self.tokens.get(&unit).map_or(&[], |tokens| tokens), 0).unwrap_or_default();
                }
                let changes = vec![SlotChange { slot: slot(unit), token, kind }];
                Request::Call(Call::Change(ChangeRequest { known, session, changes }))
            }
            Step::Put { key, exists } => {
                let (key, record) = match key % 3 {
                    0 => (RecordKey::Workload("w".parse().unwrap()), Record::Workload(WorkloadRecord::new(UNITS))),
                    1 => (RecordKey::Pin(slot(0)), Record::Pin("n0".parse().unwrap())),
                    _ => (RecordKey::Node("n1".parse().unwrap()), Record::Node(crate::NodeWish::default())),
                };
                Request::Admin(AdminRequest::Put { key, record: Some(record).filter(|_| exists), expect: None })
            }
            Step::Force { unit, token, now } => {
                let token = pick(self.tokens.get(&unit)?, token)?;
                Request::Admin(AdminRequest::ForceRelease { slot: slot(unit), token, now })
            }
            Step::Wait(_) | Step::Restart | Step::RollBack | Step::LoseEverything => return None,
        })
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Wait(ms) => self.now = self.now + Duration::from_millis(*ms),
            Step::Restart => self.store.restart(),
            Step::LoseEverything => self.store.lose_everything(),
            Step::RollBack => {
                if let Some(backup) = self.backups.pop() {
                    self.store.roll_back(&backup);
                }
            }
            Step::Open { .. }
            | Step::Heartbeat { .. }
            | Step::Close { .. }
            | Step::Change { .. }
            | Step::Put { .. }
            | Step::Force { .. } => {
                if let Some(request) = self.request(step) {
                    self.send(&request);
                }
            }
        }
        match step {
            // Effects cannot say that.
            Step::LoseEverything | Step::RollBack => {
                let _ = self.store.take_effects();
                self.follower = self.store.clone();
            }
            _ => self.follow(),
        }
        if self.operations.is_multiple_of(16) {
            self.backups.push(self.store.clone());
        }
    }

    /// The effects, written and read again, bring a follower to the same state; so does the whole, from nothing.
    fn follow(&mut self) {
        let effects = self.store.take_effects();
        let text = serde_json::to_string(&effects).unwrap();
        self.follower.apply(serde_json::from_str(&text).unwrap());
        assert_eq!(self.follower.server.cluster, self.store.server.cluster, "{text}");
        assert!(self.store.take_effects().is_empty() && self.follower.take_effects().is_empty());
        if effects.is_empty() {
            return;
        }
        let whole = serde_json::to_string(&self.store.whole()).unwrap();
        let mut fresh = StoreModel::new(9, self.store.capabilities().clone()).with_tombstones_max(3).recording();
        fresh.apply(serde_json::from_str(&whole).unwrap());
        assert_eq!(fresh.server.cluster, self.store.server.cluster, "{whole}");
    }

    fn send(&mut self, request: &Request) {
        let now = self.now;
        // The node reports the largest token that anybody has seen, as a store that loses data wants it.
        let mut request = request.clone();
        if let Request::Call(call) = &mut request {
            let seen = self.granted.last().copied().unwrap_or_default();
            match call {
                Call::Open(request) => request.known.token = seen,
                Call::Heartbeat(request) => request.known.token = seen,
                Call::Change(request) => request.known.token = seen,
                Call::Snapshot(_) | Call::Close(_) => {}
            }
        }
        // A request before it, so that what has expired is gone and a loss was noticed.
        snapshot(&mut self.store, now);
        let before = self.store.clone();
        let reply = match &request {
            Request::Call(call) => self.store.call(now, call).ok(),
            Request::Admin(admin) => {
                self.store.administer(now, admin).unwrap();
                None
            }
        };
        self.store.take_hints();
        self.check_changes(&before, &request, reply.as_ref());
        if let Some(Reply::Open(Opening::Opened { session, .. })) = &reply {
            assert!(!self.sessions.contains(session), "a session id is never used again");
            self.sessions.push(*session);
        }
        if let Request::Call(Call::Change(request)) = &request
            && let ChangeKind::Offer { operation, .. } = request.changes[0].kind
        {
            self.offers.push(operation);
        }

        // S9: the same request again has no further effect, except that refusing an ended offer is a conflict.
        let once = self.store.clone();
        let again = send(&mut self.store, now, &request);
        self.store.take_hints();
        assert_eq!(self.store, once, "{request:?} twice: {again}");
    }

    /// S4, S5, S8: every slot's record has changed only as the request and its time permit.
    fn check_changes(&mut self, before: &StoreModel, request: &Request, reply: Option<&Reply>) {
        let done = match reply {
            Some(Reply::Change(reply)) => matches!(reply.outcomes[..], [ChangeOutcome::Done(_)]),
            _ => false,
        };
        for unit in 0..UNITS {
            let (old, new) = (before.slot(&slot(unit)), self.store.slot(&slot(unit)));
            if old == new {
                continue;
            }
            let owner = before.owner(self.now, &slot(unit));
            let Some(new) = new else {
                assert_eq!(owner, None, "a held slot is not deleted");
                assert!(matches!(request, Request::Admin(AdminRequest::Put { record: None, .. })));
                continue;
            };
            let old_token = old.map_or(FencingToken::NONE, |old| old.token);
            let change = match request {
                Request::Admin(AdminRequest::ForceRelease { token, .. }) => {
                    assert_eq!((old_token, new.token), (*token, *token));
                    continue;
                }
                Request::Call(Call::Change(change)) => change,
                other => panic!("{other:?} must not change slots"),
            };
            let (acting, change) = (change.session, &change.changes[0]);
            assert!(done, "what is refused changes nothing");
            assert!(before.is_alive(self.now, acting), "the dead change nothing");
            let kind = format!("{:?}", change.kind);
            let kind = kind.split(' ').next().unwrap_or_default().to_owned();
            *self.made.entry(kind).or_default() += 1;
            match &change.kind {
                ChangeKind::Readopt => {
                    assert!(before.quiet(self.now) > Duration::ZERO);
                    assert!(new.token >= old_token && new.is_held_by(acting));
                    continue;
                }
                ChangeKind::Acquire { .. } => assert!(owner.is_none_or(|owner| owner == acting), "stolen"),
                ChangeKind::Transfer { .. } => {
                    assert_eq!(owner, Some(acting));
                    assert!(self.store.owner(self.now, &slot(unit)).is_some(), "there is no moment without a holder");
                }
                ChangeKind::Accept { .. } | ChangeKind::Refuse { .. } => {
                    assert_eq!(old.and_then(|old| old.offer.as_ref()).map(|offer| offer.to), Some(acting));
                }
                ChangeKind::Release { .. }
                | ChangeKind::Offer { .. }
                | ChangeKind::Withdraw { .. }
                | ChangeKind::SaveCheckpoint { .. } => assert_eq!(owner, Some(acting)),
            }
            assert_eq!(change.token, old_token, "a stale token changes nothing");
            if matches!(change.kind, ChangeKind::Acquire { .. } | ChangeKind::Transfer { .. }) {
                assert_eq!(before.quiet(self.now), Duration::ZERO);
                assert!(self.granted.last().is_none_or(|last| new.token > *last), "tokens rise in the whole cluster");
                self.granted.insert(new.token);
                self.tokens.entry(unit).or_default().push(new.token);
            } else {
                assert_eq!(new.token, old_token);
            }
        }
    }

    fn check_state(&mut self) {
        let view = snapshot(&mut self.store, self.now);
        // The digests are those of the slots.
        let mut held: BTreeMap<SessionId, Held> = self.store.sessions().map(|(id, ..)| (id, Held::default())).collect();
        let mut nodes = BTreeSet::new();
        for (_, record, ends) in self.store.sessions() {
            assert!(nodes.insert(record.info.node.clone()), "one session a node");
            assert!(ends > self.now, "the dead are removed");
        }
        for (slot, record) in self.store.slots() {
            assert!(record.token <= self.store.token() && record.refusals.len() <= crate::REFUSALS_MAX);
            if let Some(holder) = &record.holder
                && let Some(held) = held.get_mut(&holder.session)
            {
                held.add(slot, record.token);
            }
        }
        for (session, held) in held {
            assert_eq!(self.store.held(session), Some(held));
        }
        // Every record has a revision of its own.
        let revisions = view.values().map(|change| match change {
            Change::Session(_, record) => record.as_ref().unwrap().revision,
            Change::Slot(_, record) => record.as_ref().unwrap().revision,
            Change::Record(_, record) => record.as_ref().unwrap().revision,
        });
        let revisions: BTreeSet<Revision> = revisions.collect();
        assert_eq!(revisions.len(), view.len());
        assert!(revisions.last().is_none_or(|last| *last <= self.store.revision()));
        self.check_sync(&view);
        let generation = self.store.generation().unwrap();
        self.views.retain(|(of, ..)| *of == generation);
        self.views.push((generation, self.store.revision(), view));
    }

    /// Whoever goes on from an older view by its changes sees what a snapshot shows.
    fn check_sync(&mut self, now_seen: &View) {
        let Some(reader) = self.store.sessions().map(|(id, ..)| id).next() else { return };
        for (generation, since, view) in self.views.iter().rev().step_by(3).take(5) {
            let (mut view, mut since) = (view.clone(), *since);
            let complete = loop {
                let request = HeartbeatRequest {
                    known: Known { generation: Some(*generation), ..known(&self.store) },
                    session: reader,
                    since: Some(since),
                    changes_max: 3,
                    due_within: Duration::ZERO,
                    info: None,
                };
                // Without a trace: the heartbeat extends the session.
                match self.store.clone().heartbeat(self.now, &request).unwrap().sync {
                    Sync::Changes { changes, up_to, more } => {
                        assert!(changes.len() <= 3 && up_to >= since);
                        changes.into_iter().for_each(|change| apply(&mut view, without_checkpoint(change)));
                        since = up_to;
                        if !more {
                            break true;
                        }
                    }
                    Sync::Snapshot => break false,
                    Sync::NotAsked => panic!("it was asked"),
                }
            };
            if complete {
                assert_eq!(&view, now_seen);
                assert_eq!(since, self.store.revision());
            }
        }
    }
}

fn without_checkpoint(change: Change) -> Change {
    match change {
        Change::Slot(slot, Some(record)) => Change::Slot(slot, Some(SlotRecord { checkpoint: None, ..record })),
        other => other,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn every_history_keeps_the_promises(steps in prop::collection::vec(step(), 1..150)) {
        let mut history = History::new();
        for step in &steps {
            history.step(step);
            history.check_state();
        }
    }
}

/// The generator above is worth nothing if nothing happens in its histories.
#[test]
fn histories_are_rich() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let (mut grants, mut made) = (0, BTreeMap::<String, u32>::new());
    for _ in 0..100 {
        let steps = prop::collection::vec(step(), 150).new_tree(&mut runner).unwrap().current();
        let mut history = History::new();
        steps.iter().for_each(|step| history.step(step));
        for (kind, count) in history.made {
            *made.entry(kind).or_default() += count;
        }
        grants += history.granted.len();
    }
    assert!(grants > 300, "{grants} grants");
    assert!(made.len() == 9 && made.values().all(|count| *count >= 5), "{made:?}");
}
