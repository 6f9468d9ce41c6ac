//! Random histories, sent to NATS and to the model of the contract: they must answer the same, in all that does not
//! hang on NATS' own numbers and clock. Sessions end by being closed.

mod support;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rendez_core::*;
use rendez_nats::NatsStore;
use rendez_testkit::conformance::differential::until_met;
use rendez_testkit::servers::NatsServer;
use support::options;

const NODES: u8 = 4;
const UNITS: u32 = 4;
/// Below this, a heartbeat asks for that few changes.
const SMALL: u32 = 3;
const TTL: Duration = Duration::from_secs(600);
const LONG: Duration = Duration::from_secs(600);

#[derive(Debug, Clone)]
enum Step {
    Open { node: u8, incarnation: u8, named: bool },
    Heartbeat { session: u8, weight: Option<u32>, most: u32 },
    Close { session: u8 },
    Change { session: u8, changes: Vec<(u32, u8, u8, u8)> },
    Put { key: u8, exists: bool, expect: u8 },
    Force { unit: u32, token: u8, now: bool },
    Repeat,
}

fn step() -> impl Strategy<Value = Step> {
    let change = (0..UNITS, any::<u8>(), any::<u8>(), any::<u8>());
    prop_oneof![
        20 => (0..NODES, 0..2_u8, any::<bool>())
            .prop_map(|(node, incarnation, named)| Step::Open { node, incarnation, named }),
        25 => (any::<u8>(), prop::option::weighted(0.2, 0..4_u32), 0..6_u32)
            .prop_map(|(session, weight, most)| Step::Heartbeat { session, weight, most }),
        6 => any::<u8>().prop_map(|session| Step::Close { session }),
        100 => (any::<u8>(), prop::collection::vec(change, 1..4))
            .prop_map(|(session, changes)| Step::Change { session, changes }),
        10 => (any::<u8>(), any::<bool>(), any::<u8>()).prop_map(|(key, exists, expect)| Step::Put { key, exists, expect }),
        6 => (0..UNITS, any::<u8>(), any::<bool>()).prop_map(|(unit, token, now)| Step::Force { unit, token, now }),
        15 => Just(Step::Repeat),
    ]
}

/// What one of the two sides has said so far, in its own words.
#[derive(Default)]
struct Side {
    generation: Option<Generation>,
    /// In the order of their openings.
    sessions: Vec<SessionId>,
    /// Of each slot, in the order of their grants.
    tokens: BTreeMap<Slot, Vec<FencingToken>>,
    /// What heartbeats have told, and up to where.
    view: BTreeMap<String, Change>,
    since: Option<Revision>,
}

impl Side {
    fn session(&self, id: SessionId) -> String {
        self.sessions
            .iter()
            .position(|known| *known == id)
            .map_or("a stranger".to_owned(), |at| format!("session {at}"))
    }

    fn learn(&mut self, stamp: &Stamp) {
        self.generation = Some(stamp.generation);
    }

    fn token(&mut self, slot: &Slot, token: FencingToken) -> String {
        if token == FencingToken::NONE {
            return "none".to_owned();
        }
        let tokens = self.tokens.entry(slot.clone()).or_default();
        if let Some(at) = tokens.iter().position(|known| *known == token) {
            return format!("token {at}");
        }
        assert!(tokens.last().is_none_or(|last| *last < token), "{slot}: {token} after {tokens:?}");
        tokens.push(token);
        format!("token {}", tokens.len() - 1)
    }

    /// A slot's record without numbers and times of this side's own.
    fn slot(&mut self, slot: &Slot, record: Option<&SlotRecord>) -> String {
        let Some(record) = record else { return "nothing".to_owned() };
        let force = record.force.map(|token| self.token(slot, token));
        let token = self.token(slot, record.token);
        let holder = record.holder.as_ref().map(|holder| (self.session(holder.session), holder.node.clone()));
        let offer = record.offer.as_ref().map(|offer| {
            (offer.id, self.session(offer.to), offer.giver_total, offer.giver_of_workload, offer.forced, offer.ready)
        });
        let refusals: BTreeSet<&NodeId> = record.refusals.iter().map(|refused| &refused.node).collect();
        format!(
            "{token} by {} {holder:?} freed {} moved {} {offer:?} {refusals:?} {force:?} {:?}",
            record.granted_by,
            record.freed_at.is_some(),
            record.moved_at.is_some(),
            record.checkpoint
        )
    }

    fn change(&mut self, change: &Change) -> (String, String) {
        match change {
            Change::Slot(slot, record) => (format!("slot {slot}"), self.slot(slot, record.as_ref())),
            Change::Session(id, record) => {
                let name = self.session(*id);
                (name, record.as_ref().map_or("nothing".to_owned(), |it| format!("{} {:?}", it.incarnation, it.info)))
            }
            Change::Record(key, record) => {
                (format!("{key:?}"), record.as_ref().map_or("nothing".to_owned(), |it| format!("{:?}", it.record)))
            }
        }
    }

    fn all<'a>(&mut self, items: impl IntoIterator<Item = &'a Change>) -> BTreeMap<String, String> {
        items.into_iter().map(|item| self.change(item)).collect()
    }

    fn apply(&mut self, sync: &Sync) -> bool {
        let Sync::Changes { changes, up_to, more } = sync else { return false };
        assert!(self.since.is_none_or(|since| *up_to >= since));
        self.since = Some(*up_to);
        for change in changes {
            let gone = match change {
                Change::Slot(_, record) => record.is_none(),
                Change::Session(_, record) => record.is_none(),
                Change::Record(_, record) => record.is_none(),
            };
            let key = match change {
                Change::Slot(slot, _) => format!("slot {slot}"),
                Change::Session(id, _) => format!("session {id}"),
                Change::Record(key, _) => format!("{key:?}"),
            };
            // What others hold comes without its checkpoint; only what everybody sees is compared.
            if gone {
                self.view.remove(&key)
            } else {
                self.view.insert(key, change.clone())
            };
        }
        *more
    }
}

#[derive(Debug, Clone)]
enum Request {
    Call(Call),
    Admin(AdminRequest),
}

struct Pair {
    /// Two handles, each with its own mirror: requests go through either.
    stores: [NatsStore; 2],
    cluster: ClusterName,
    model: StoreModel,
    theirs: Side,
    own: Side,
    offers: Vec<OperationId>,
    operations: u128,
    last: Option<(Request, Request)>,
    now: u64,
    turns: u16,
    met: BTreeSet<String>,
}

fn pick<T: Clone>(from: &[T], at: u8) -> Option<T> {
    // The latest ones are the most interesting.
    let back = usize::from(at) * usize::from(at) / 256 * from.len() / 256;
    from.len().checked_sub(1 + back).map(|place| from[place].clone())
}

fn slot(unit: u32) -> Slot {
    if unit == 0 { "declared/0".parse().unwrap() } else { Slot::new("w".try_into().unwrap(), unit) }
}

impl Pair {
    fn operation(&mut self) -> OperationId {
        self.operations += 1;
        OperationId::from_bits(self.operations)
    }

    fn both(&self, place: usize) -> (SessionId, SessionId) {
        (self.theirs.sessions[place], self.own.sessions[place])
    }

    fn session(&self, which: u8) -> Option<(SessionId, SessionId)> {
        let places: Vec<usize> = (0..self.own.sessions.len()).collect();
        pick(&places, which).map(|place| self.both(place))
    }

    fn named(&self, id: SessionId) -> Option<(SessionId, SessionId)> {
        self.own.sessions.iter().position(|known| *known == id).map(|place| self.both(place))
    }

    fn known(&self) -> (Known, Known) {
        let known = |side: &Side| Known { generation: side.generation, session_ttl_max: LONG, ..Known::default() };
        (known(&self.theirs), known(&self.own))
    }

    fn requests(&mut self, step: &Step) -> Option<(Request, Request)> {
        let known = self.known();
        let call = |theirs, model| Some((Request::Call(theirs), Request::Call(model)));
        match step {
            Step::Open { node, incarnation, named, .. } => {
                let name: NodeId = format!("n{node}").parse().unwrap();
                let standing = self.model.sessions().find(|(_, record, _)| record.info.node == name);
                let standing = standing.map(|(id, ..)| id).filter(|_| *named).and_then(|id| self.named(id)).unzip();
                let mut info = NodeInfo::new(name, ClusterSettings::new(LONG));
                if node % 2 == 0 {
                    info.workloads.insert("declared".try_into().unwrap(), Declared { units: 4, cap: None });
                }
                let theirs = OpenRequest {
                    known: known.0,
                    operation: self.operation(),
                    incarnation: Incarnation::from_bits(u128::from(*incarnation)),
                    replaces: standing.0,
                    ttl: TTL,
                    info: Arc::new(info),
                };
                let model = OpenRequest { known: known.1, replaces: standing.1, ..theirs.clone() };
                call(Call::Open(theirs), Call::Open(model))
            }
            Step::Heartbeat { session, weight, most } => {
                let session = self.session(*session)?;
                let record = self.model.sessions().find(|(id, ..)| *id == session.1);
                let info = record.zip(*weight).map(|((_, record, _), weight)| {
                    let mut info = (*record.info).clone();
                    info.weight = weight;
                    if weight == 3 {
                        info.node = "other".try_into().unwrap();
                    }
                    Arc::new(info)
                });
                let theirs = HeartbeatRequest {
                    known: known.0,
                    session: session.0,
                    since: self.theirs.since,
                    changes_max: if *most < SMALL { *most } else { 4096 },
                    due_within: Duration::ZERO,
                    info,
                };
                let model =
                    HeartbeatRequest { known: known.1, session: session.1, since: self.own.since, ..theirs.clone() };
                call(Call::Heartbeat(theirs), Call::Heartbeat(model))
            }
            Step::Close { session } => {
                let session = self.session(*session)?;
                call(
                    Call::Close(CloseRequest { known: known.0, session: session.0 }),
                    Call::Close(CloseRequest { known: known.1, session: session.1 }),
                )
            }
            Step::Change { session, changes } => {
                let mut session = self.session(*session)?;
                let (mut theirs, mut model) = (Vec::new(), Vec::new());
                for (unit, token, kind, other) in changes {
                    let (actor, changes) = self.change(session, *unit, *token, *kind, *other, theirs.is_empty());
                    session = actor;
                    theirs.push(changes.0);
                    model.push(changes.1);
                }
                call(
                    Call::Change(ChangeRequest { known: known.0, session: session.0, changes: theirs }),
                    Call::Change(ChangeRequest { known: known.1, session: session.1, changes: model }),
                )
            }
            Step::Put { key, exists, expect } => {
                let (name, units) = match key % 4 {
                    0 => ("declared", 4),
                    1 => ("w", 4),
                    _ => ("other", u32::from(*key)),
                };
                let key = RecordKey::Workload(name.try_into().unwrap());
                let record = exists.then(|| Record::Workload(WorkloadRecord::new(units)));
                let of = |side: &Side| match expect {
                    0..150 => None,
                    150..200 => Some(Revision(0)),
                    _ => match side.view.get(&format!("{key:?}")) {
                        Some(Change::Record(_, Some(record))) => Some(record.revision),
                        _ => None,
                    },
                };
                let put =
                    |expect| Request::Admin(AdminRequest::Put { key: key.clone(), record: record.clone(), expect });
                Some((put(of(&self.theirs)), put(of(&self.own))))
            }
            Step::Force { unit, token, now } => {
                let slot = slot(*unit);
                let (theirs, model) = self.tokens(&slot, *token);
                let force = |token| Request::Admin(AdminRequest::ForceRelease { slot: slot.clone(), token, now: *now });
                Some((force(theirs), force(model)))
            }
            Step::Repeat => self.last.clone(),
        }
    }

    /// The slot's present token, or an earlier one.
    fn tokens(&self, slot: &Slot, which: u8) -> (FencingToken, FencingToken) {
        let (Some(theirs), Some(model)) = (self.theirs.tokens.get(slot), self.own.tokens.get(slot)) else {
            return Default::default();
        };
        let places: Vec<usize> = (0..model.len().min(theirs.len())).collect();
        let present = self.model.slot(slot).map(|record| record.token);
        let place = match present {
            Some(token) if which >= 24 => model.iter().position(|known| *known == token),
            None if which >= 24 => None,
            Some(_) | None => pick(&places, which * 10),
        };
        place.map_or_else(Default::default, |place| (theirs[place], model[place]))
    }

    /// Mostly, the one acts that can: a first change chooses the actor.
    fn change(
        &mut self,
        mut session: (SessionId, SessionId),
        unit: u32,
        token: u8,
        kind: u8,
        other: u8,
        choose: bool,
    ) -> ((SessionId, SessionId), (SlotChange, SlotChange)) {
        let slot = slot(unit);
        let operation = self.operation();
        let record = self.model.slot(&slot).cloned();
        let standing = record.as_ref().and_then(|record| record.offer.clone());
        let kind = match &standing {
            Some(offer) if (80..180).contains(&other) => {
                if offer.ready {
                    6
                } else {
                    4
                }
            }
            _ => kind % 9,
        };
        let token = self.tokens(&slot, token);
        if choose && other < 200 {
            let actor = match kind {
                1..=3 | 6..=7 => record.as_ref().and_then(|record| record.holder.as_ref()).map(|holder| holder.session),
                4 | 5 => standing.as_ref().map(|offer| offer.to),
                _ => None,
            };
            session = actor.and_then(|id| self.named(id)).unwrap_or(session);
        }
        let offer = standing.map(|offer| offer.id).or_else(|| pick(&self.offers, other)).unwrap_or(operation);
        let checkpoint = Some(Bytes::from(vec![other, b'\t', 0, 255])).filter(|_| other.is_multiple_of(3));
        let to = self.session(other).unwrap_or(session);
        if kind == 2 {
            self.offers.push(operation);
        }
        let of = |to: SessionId| match kind {
            0 => ChangeKind::Acquire { operation },
            1 => ChangeKind::Release {
                checkpoint: checkpoint.clone(),
                refuse_for: Some(LONG).filter(|_| other.is_multiple_of(2)),
            },
            2 => ChangeKind::Offer {
                operation,
                to,
                expires_in: if other.is_multiple_of(5) { Duration::ZERO } else { LONG },
                giver_total: other.into(),
                giver_of_workload: kind.into(),
                forced: other.is_multiple_of(2),
            },
            3 => ChangeKind::Withdraw { offer },
            4 => ChangeKind::Accept { offer },
            5 => ChangeKind::Refuse { offer, refuse_for: LONG },
            6 => ChangeKind::Transfer { operation, offer, checkpoint: checkpoint.clone() },
            7 => ChangeKind::SaveCheckpoint { checkpoint: checkpoint.clone().unwrap_or_default() },
            _ => ChangeKind::Readopt,
        };
        let change = |token, to| SlotChange { slot: slot.clone(), token, kind: of(to) };
        (session, (change(token.0, to.0), change(token.1, to.1)))
    }

    /// Sends a request to both and compares the answers.
    async fn send(&mut self, requests: &(Request, Request)) -> Result<(), TestCaseError> {
        self.now += 1000;
        let now = StoreTime::from_micros(self.now);
        self.turns = self.turns.wrapping_mul(25_173).wrapping_add(13_849);
        let (store, cluster) = (self.stores[usize::from(self.turns >> 15)].clone(), self.cluster.clone());
        let theirs = match &requests.0 {
            Request::Call(call) => answer(&store, &cluster, call).await.map(Answered::Reply),
            Request::Admin(request) => store.administer(&cluster, request).await.map(Answered::Admin),
        };
        let model = match &requests.1 {
            Request::Call(call) => self.model.call(now, call).map(Answered::Reply),
            Request::Admin(request) => self.model.administer(now, request).map(Answered::Admin),
        };
        if let (Ok(Answered::Reply(Reply::Change(reply))), Request::Call(Call::Change(request))) = (&model, &requests.1)
        {
            for (change, outcome) in request.changes.iter().zip(&reply.outcomes) {
                self.met.insert(match outcome {
                    ChangeOutcome::Done(_) => word(&change.kind),
                    ChangeOutcome::Refused(conflict, _) => word(conflict),
                });
            }
        }
        let theirs = plain(&mut self.theirs, &requests.0, theirs);
        let model = plain(&mut self.own, &requests.1, model);
        prop_assert_eq!(&theirs, &model, "the store, the model: {:?}", requests);
        Ok(())
    }

    /// Compares all that everybody sees, and what heartbeats have told with it.
    async fn compare(&mut self) -> Result<(), TestCaseError> {
        let (theirs, own) = self.known();
        let mut items = Vec::new();
        let mut cursor = None;
        loop {
            let request = SnapshotRequest { known: theirs.clone(), session: None, cursor };
            let page = self.stores[0].snapshot(&self.cluster, &request).await.unwrap();
            items.extend(page.items);
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        let request = SnapshotRequest { known: own, session: None, cursor: None };
        let model = self.model.snapshot(StoreTime::from_micros(self.now), &request).unwrap();
        let (theirs, model) = (self.theirs.all(&items), self.own.all(&model.items));
        prop_assert_eq!(&theirs, &model);
        Ok(())
    }
}

enum Answered {
    Reply(Reply),
    Admin(AdminOutcome),
}

async fn answer(store: &NatsStore, cluster: &ClusterName, call: &Call) -> Result<Reply, StoreError> {
    Ok(match call {
        Call::Open(request) => Reply::Open(store.open(cluster, request).await?),
        Call::Heartbeat(request) => Reply::Heartbeat(store.heartbeat(cluster, request).await?),
        Call::Change(request) => Reply::Change(store.change(cluster, request).await?),
        Call::Snapshot(request) => Reply::Snapshot(store.snapshot(cluster, request).await?),
        Call::Close(request) => {
            store.close(cluster, request).await?;
            Reply::Close
        }
    })
}

/// An answer in words that both sides share.
fn plain(side: &mut Side, request: &Request, answer: Result<Answered, StoreError>) -> String {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return format!("{:?}", error.kind()),
    };
    match (answer, request) {
        (Answered::Reply(Reply::Open(Opening::Opened { stamp, session, ttl, settings })), _) => {
            side.learn(&stamp);
            if !side.sessions.contains(&session) {
                side.sessions.push(session);
            }
            side.since.get_or_insert(stamp.revision);
            format!("opened {} {ttl:?} {settings:?} {:?}", side.session(session), stamp.quiet)
        }
        (Answered::Reply(Reply::Open(Opening::InUse { stamp, session, incarnation, .. })), _) => {
            side.learn(&stamp);
            format!("in use {} {incarnation}", side.session(session))
        }
        (Answered::Reply(Reply::Heartbeat(beat)), Request::Call(Call::Heartbeat(request))) => {
            side.learn(&beat.stamp);
            let told = beat.sync.clone();
            let more = side.apply(&told);
            // What it says of the asking session's slots, with their checkpoints.
            let mut own = BTreeMap::new();
            // With little room the two tell in different steps, for an opening that replaces a session is one write here.
            if !more && request.changes_max >= SMALL {
                let Sync::Changes { .. } = told else { return format!("{:?}", word(&told)) };
                let mut held = Held::default();
                let view: Vec<Change> = side.view.values().cloned().collect();
                for change in view {
                    if let Change::Slot(slot, Some(record)) = &change
                        && record.is_held_by(request.session)
                    {
                        held.add(slot, record.token);
                        let seen = SlotRecord { checkpoint: None, ..record.clone() };
                        own.insert(slot.to_string(), side.slot(slot, Some(&seen)));
                    }
                }
                assert_eq!(held, beat.held, "what heartbeats have told is not what the session holds");
                return format!("alive {:?} {own:?}", beat.ttl);
            }
            "alive".to_owned()
        }
        (Answered::Reply(Reply::Change(reply)), Request::Call(Call::Change(request))) => {
            side.learn(&reply.stamp);
            let mut words = Vec::new();
            for (change, outcome) in request.changes.iter().zip(&reply.outcomes) {
                words.push(match outcome {
                    ChangeOutcome::Done(record) => format!("done {}", side.slot(&change.slot, record.as_ref())),
                    ChangeOutcome::Refused(conflict, record) => {
                        format!("{conflict:?} {}", side.slot(&change.slot, record.as_ref()))
                    }
                });
            }
            words.join("; ")
        }
        (Answered::Reply(Reply::Close), _) => "closed".to_owned(),
        (Answered::Admin(AdminOutcome::Done(stamp)), _) => {
            side.learn(&stamp);
            "done".to_owned()
        }
        (Answered::Admin(AdminOutcome::Refused(stamp)), _) => {
            side.learn(&stamp);
            "refused".to_owned()
        }
        (Answered::Reply(reply), _) => format!("{reply:?}"),
    }
}

fn word(debug: &impl std::fmt::Debug) -> String {
    format!("{debug:?}").split(|c: char| !c.is_alphabetic()).next().unwrap_or_default().to_owned()
}

#[test]
fn nats_answers_as_the_model_does() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let server = runtime.block_on(NatsServer::builder().start()).unwrap();
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(60);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 500, ..Config::default() };
    let number = Cell::new(0_u32);
    let met = RefCell::new(BTreeSet::new());
    let round = || {
        TestRunner::new(config.clone()).run(&prop::collection::vec(step(), 1..120), |steps| {
            number.set(number.get() + 1);
            runtime.block_on(async {
                let connect = async || NatsStore::connect(&server.url(), options()).await.unwrap();
                let stores = [connect().await, connect().await];
                let cluster = ClusterName::new(format!("case {}", number.get())).unwrap();
                for store in &stores {
                    let request = SnapshotRequest { known: Known::default(), session: None, cursor: None };
                    store.snapshot(&cluster, &request).await.unwrap();
                }
                let mut capabilities = stores[0].capabilities();
                // Only that heartbeats of the model tell as much at once.
                capabilities.changes_max = 512;
                let mut pair = Pair {
                    stores,
                    cluster,
                    model: StoreModel::new(number.get().into(), capabilities),
                    theirs: Side::default(),
                    own: Side::default(),
                    offers: Vec::new(),
                    operations: 0,
                    last: None,
                    now: 1_000_000,
                    turns: 0,
                    met: BTreeSet::new(),
                };
                for (at, step) in steps.iter().enumerate() {
                    let Some(requests) = pair.requests(step) else { continue };
                    pair.send(&requests).await?;
                    pair.last = Some(requests);
                    if at % 10 == 9 {
                        pair.compare().await?;
                    }
                }
                pair.compare().await?;
                met.borrow_mut().append(&mut pair.met);
                Ok(())
            })
        })
    };
    let words = "Acquire Release Offer Withdraw Accept Refuse Transfer SaveCheckpoint \
                 Token Held NotHolder ReceiverGone Offer NotQuiet";
    until_met(words, &met, round);
}
