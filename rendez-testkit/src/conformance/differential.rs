//! Random histories, sent to a store and to the model of the contract at the same moments: they must answer the same.
//!
//! What a store may choose is not compared: how it names sessions and generations, how large tokens and revisions are
//! (only which are equal, and for tokens which is larger), and the time. [`Exactly`](Comparison::Exactly) compares
//! that too, for stores that draw tokens and revisions as the model does.
//!
//! Only what the model says belongs here; no store is known.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rendez_core::*;

/// How strictly answers are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// All that the contract says; what a store may choose is left out.
    Freely,
    /// Whole answers, with tokens, revisions, digests and times.
    Exactly,
}

/// The future of a fault.
pub type Done<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What histories may do to the server, and what it tells beside its answers. A fault that cannot be is never tried.
pub trait World: Send + std::marker::Sync {
    /// Lets the server say from now on that data may have been lost, though none were.
    fn restart<'a>(&'a self, cluster: &'a ClusterName) -> Option<Done<'a, ()>>;

    /// Deletes everything of a cluster, unnoticed.
    fn lose_everything<'a>(&'a self, cluster: &'a ClusterName) -> Option<Done<'a, ()>>;

    /// When the server carried out a request whose answer does not tell the time. `last` is the time of the last one
    /// that did. Without it, both sides are read after such a request; [`Comparison::Exactly`] wants it.
    fn now<'a>(&'a self, cluster: &'a ClusterName, last: StoreTime) -> Option<Done<'a, StoreTime>>;
}

/// A server to which nothing is done.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoFaults;

impl World for NoFaults {
    fn restart<'a>(&'a self, _: &'a ClusterName) -> Option<Done<'a, ()>> {
        None
    }

    fn lose_everything<'a>(&'a self, _: &'a ClusterName) -> Option<Done<'a, ()>> {
        None
    }

    fn now<'a>(&'a self, _: &'a ClusterName, _: StoreTime) -> Option<Done<'a, StoreTime>> {
        None
    }
}

/// How many histories are tried unless `PROPTEST_CASES` says another number.
const HISTORIES: u32 = 200;
/// The most steps of a history.
const STEPS_MAX: usize = 150;
const NODES: u8 = 4;
const UNITS: u32 = 4;
/// The TTL of sessions that live on, compared exactly: short enough for a quiet time to end now and then.
const LONG: Duration = Duration::from_secs(2);
/// The same, compared freely.
const SLOW: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_millis(25);

#[derive(Debug, Clone)]
enum Step {
    Wait,
    Open { node: u8, incarnation: u8, named: bool, short: bool, known: u8 },
    Heartbeat { session: u8, weight: Option<u32>, since: u8, most: u32, known: u8 },
    Close { session: u8 },
    Change { session: u8, changes: Vec<(u32, u8, u8, u8)>, known: u8 },
    Put { key: u8, exists: bool, expect: u8 },
    Force { unit: u32, token: u8, now: bool },
    Snapshot { session: u8 },
    Repeat,
    Restart,
    LoseEverything,
}

fn step() -> impl Strategy<Value = Step> {
    let change = (0..UNITS, any::<u8>(), any::<u8>(), any::<u8>());
    prop_oneof![
        4 => Just(Step::Wait),
        30 => (0..NODES, 0..2_u8, any::<bool>(), prop::bool::weighted(0.2), any::<u8>())
            .prop_map(|(node, incarnation, named, short, known)| Step::Open { node, incarnation, named, short, known }),
        30 => (any::<u8>(), prop::option::weighted(0.2, 0..4_u32), any::<u8>(), 0..8_u32, any::<u8>())
            .prop_map(|(session, weight, since, most, known)| Step::Heartbeat { session, weight, since, most, known }),
        6 => any::<u8>().prop_map(|session| Step::Close { session }),
        120 => (any::<u8>(), prop::collection::vec(change, 1..4), any::<u8>())
            .prop_map(|(session, changes, known)| Step::Change { session, changes, known }),
        12 => (any::<u8>(), any::<bool>(), any::<u8>()).prop_map(|(key, exists, expect)| Step::Put { key, exists, expect }),
        6 => (0..UNITS, any::<u8>(), any::<bool>()).prop_map(|(unit, token, now)| Step::Force { unit, token, now }),
        10 => any::<u8>().prop_map(|session| Step::Snapshot { session }),
        20 => Just(Step::Repeat),
        1 => Just(Step::Restart),
        1 => Just(Step::LoseEverything),
    ]
}

/// A request in the words of one of the two sides: their sessions and generations have different names.
#[derive(Debug, Clone)]
enum Request {
    Call(Call),
    Admin(AdminRequest),
}

/// What one side has called things so far, in the order of their first appearance.
struct Names {
    sessions: Vec<SessionId>,
    generations: Vec<Generation>,
    tokens: Vec<FencingToken>,
}

impl Default for Names {
    fn default() -> Self {
        Self { sessions: Vec::new(), generations: Vec::new(), tokens: vec![FencingToken::NONE] }
    }
}

/// The words whose content both sides may choose, each with what stands instead of it.
const CHOSEN: [&str; 6] = ["SessionId(", "Generation(", "FencingToken(", "Revision(", "StoreTime(", "digest: "];

impl Names {
    /// The text with all names replaced by their numbers.
    fn plain(&mut self, text: &str, comparison: Comparison) -> String {
        let words = if comparison == Comparison::Exactly { &CHOSEN[..2] } else { &CHOSEN[..] };
        let mut plain = String::new();
        let mut rest = text;
        while let Some((found, word)) = words.iter().filter_map(|word| Some((rest.find(word)?, *word))).min() {
            let open = found + word.len();
            plain.push_str(&rest[..open]);
            let end = rest[open..].find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(rest.len() - open);
            let content = &rest[open..open + end];
            match word {
                "SessionId(" => plain += &content.parse().map_or(0, |id| at(&mut self.sessions, id)).to_string(),
                "Generation(" => plain += &content.parse().map_or(0, |id| at(&mut self.generations, id)).to_string(),
                "FencingToken(" => {
                    let token = FencingToken::new(content.parse().unwrap_or(u64::MAX));
                    plain += &at(&mut self.tokens, token).to_string();
                }
                _ => plain.push('_'),
            }
            rest = &rest[open + end..];
        }
        plain + rest
    }
}

fn at<T: PartialEq>(list: &mut Vec<T>, item: T) -> usize {
    if let Some(place) = list.iter().position(|known| *known == item) {
        return place;
    }
    list.push(item);
    list.len() - 1
}

fn pick<T: Clone>(from: &[T], at: u8) -> Option<T> {
    // The latest ones are the most interesting.
    let back = usize::from(at) * usize::from(at) / 256 * from.len() / 256;
    from.len().checked_sub(1 + back).map(|place| from[place].clone())
}

struct Pair {
    store: Arc<dyn LeaseStore>,
    comparison: Comparison,
    cluster: ClusterName,
    model: StoreModel,
    /// The store's, the model's.
    names: (Names, Names),
    revisions: Vec<(Revision, Revision)>,
    /// Of operators' records: the store's revision for each of the model's.
    written: BTreeMap<Revision, Revision>,
    offers: Vec<OperationId>,
    operations: u128,
    last: Option<(Request, Request)>,
    now: StoreTime,
    times: Times,
    /// Which changes were made and which conflicts met.
    met: BTreeSet<String>,
}

/// The TTLs that the store permits: long ones, and short ones that end in between if it ends them to the moment.
#[derive(Debug, Clone, Copy)]
struct Times {
    long: Duration,
    short: Duration,
}

impl Times {
    fn of(capabilities: &Capabilities, comparison: Comparison) -> Self {
        let fast = capabilities.ttl_min <= SHORT && capabilities.ttl_granularity <= Duration::from_millis(1);
        let prompt = capabilities.expiry_lateness_max.is_zero() && comparison == Comparison::Exactly;
        // Compared freely, both sides need not see the same moment: then no session may end in between.
        let long = if comparison == Comparison::Exactly { LONG } else { SLOW };
        let long = long.clamp(capabilities.ttl_min, capabilities.ttl_max);
        Self { long, short: if fast && prompt { SHORT } else { long } }
    }
}

impl Pair {
    fn operation(&mut self) -> OperationId {
        self.operations += 1;
        OperationId::from_bits(self.operations)
    }

    fn session(&self, which: u8) -> Option<(SessionId, SessionId)> {
        let all: Vec<_> = self.names.0.sessions.iter().copied().zip(self.names.1.sessions.iter().copied()).collect();
        pick(&all, which)
    }

    fn known(&self, which: u8) -> (Known, Known) {
        let all: Vec<_> =
            self.names.0.generations.iter().copied().zip(self.names.1.generations.iter().copied()).collect();
        let (store, model) = match which {
            0..10 => (None, None),
            10..30 => pick(&all, which * 8).unzip(),
            30..32 => (Some(Generation::from_bits(which.into())), Some(Generation::from_bits(which.into()))),
            _ => all.last().copied().unzip(),
        };
        let tokens = self.tokens(which).filter(|_| which.is_multiple_of(3)).unwrap_or_default();
        let known = |generation, token| Known { generation, token, session_ttl_max: self.times.long };
        (known(store, tokens.0), known(model, tokens.1))
    }

    /// A token that was seen, as both sides call it.
    fn tokens(&self, which: u8) -> Option<(FencingToken, FencingToken)> {
        let (store, model) = (&self.names.0.tokens, &self.names.1.tokens);
        pick(&store.iter().copied().zip(model.iter().copied()).collect::<Vec<_>>(), which)
    }

    /// What the store calls a token of the model.
    fn theirs(&self, token: FencingToken) -> FencingToken {
        let place = self.names.1.tokens.iter().position(|known| *known == token);
        place.and_then(|place| self.names.0.tokens.get(place).copied()).unwrap_or(token)
    }

    fn requests(&mut self, step: &Step) -> Option<(Request, Request)> {
        let call = |store, model| Some((Request::Call(store), Request::Call(model)));
        match step {
            Step::Open { node, incarnation, named, short, known } => {
                let name: NodeId = format!("n{node}").parse().unwrap();
                let standing = self.model.sessions().find(|(_, record, _)| record.info.node == name);
                let standing = standing.map(|(id, ..)| id).filter(|_| *named);
                let place = standing.and_then(|id| self.names.1.sessions.iter().position(|known| *known == id));
                let replaced = place.map(|place| (self.names.0.sessions[place], self.names.1.sessions[place])).unzip();
                let known = self.known(*known);
                let mut info = NodeInfo::new(name, ClusterSettings::new(self.times.long));
                if node % 2 == 0 {
                    info.workloads.insert("declared".try_into().unwrap(), Declared { units: 4, cap: None });
                }
                let store = OpenRequest {
                    known: known.0,
                    operation: self.operation(),
                    incarnation: Incarnation::from_bits(u128::from(*incarnation)),
                    replaces: replaced.0,
                    ttl: if *short { self.times.short } else { self.times.long },
                    info: Arc::new(info),
                };
                let model = OpenRequest { known: known.1, replaces: replaced.1, ..store.clone() };
                call(Call::Open(store), Call::Open(model))
            }
            Step::Heartbeat { session, weight, since, most, known } => {
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
                let known = self.known(*known);
                let since_both = if *since < 60 { None } else { pick(&self.revisions, since - 60) };
                let store = HeartbeatRequest {
                    known: known.0,
                    session: session.0,
                    since: since_both.map(|(store, _)| store),
                    changes_max: most * most,
                    due_within: self.times.long,
                    info,
                };
                let model = HeartbeatRequest {
                    known: known.1,
                    session: session.1,
                    since: since_both.map(|(_, model)| model),
                    ..store.clone()
                };
                call(Call::Heartbeat(store), Call::Heartbeat(model))
            }
            Step::Close { session } => {
                let session = self.session(*session)?;
                let known = self.known(255);
                call(
                    Call::Close(CloseRequest { known: known.0, session: session.0 }),
                    Call::Close(CloseRequest { known: known.1, session: session.1 }),
                )
            }
            Step::Change { session, changes, known } => {
                let mut session = self.session(*session)?;
                let known = self.known(*known);
                let (mut store, mut model) = (Vec::new(), Vec::new());
                for (unit, token, kind, other) in changes {
                    let (actor, changes) = self.change(session, *unit, *token, *kind, *other, store.is_empty());
                    session = actor;
                    store.push(changes.0);
                    model.push(changes.1);
                }
                call(
                    Call::Change(ChangeRequest { known: known.0, session: session.0, changes: store }),
                    Call::Change(ChangeRequest { known: known.1, session: session.1, changes: model }),
                )
            }
            Step::Put { key, exists, expect } => {
                let (key, record) = match key % 4 {
                    0 => ("declared", 4),
                    1 => ("w", 4),
                    _ => ("other", u32::from(*key)),
                };
                let key = RecordKey::Workload(key.try_into().unwrap());
                let expect = match expect {
                    0..150 => None,
                    150..200 => Some(Revision(0)),
                    _ => self.model.records().find(|(found, _)| **found == key).map(|(_, found)| found.revision),
                };
                let record = exists.then(|| Record::Workload(WorkloadRecord::new(record)));
                let put =
                    |expect| Request::Admin(AdminRequest::Put { key: key.clone(), record: record.clone(), expect });
                let theirs = expect.map(|revision| self.written.get(&revision).copied().unwrap_or(revision));
                Some((put(theirs), put(expect)))
            }
            Step::Force { unit, token, now } => {
                let slot = slot(*unit);
                let token = if *token < 200 {
                    self.model.slot(&slot).map_or(FencingToken::NONE, |record| record.token)
                } else {
                    self.tokens(*token)?.1
                };
                let force = |token| AdminRequest::ForceRelease { slot: slot.clone(), token, now: *now };
                Some((Request::Admin(force(self.theirs(token))), Request::Admin(force(token))))
            }
            Step::Snapshot { session } => {
                let session = self.session(*session).unzip();
                let known = self.known(255);
                call(
                    Call::Snapshot(SnapshotRequest { known: known.0, session: session.0, cursor: None }),
                    Call::Snapshot(SnapshotRequest { known: known.1, session: session.1, cursor: None }),
                )
            }
            Step::Repeat => self.last.clone(),
            Step::Wait | Step::Restart | Step::LoseEverything => None,
        }
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
        let token = if token < 24 {
            self.tokens(token).unwrap_or_default().1
        } else {
            record.as_ref().map_or(FencingToken::NONE, |record| record.token)
        };
        let both = |names: &(Names, Names), id: SessionId| {
            let place = names.1.sessions.iter().position(|known| *known == id);
            place.map(|place| (names.0.sessions[place], id))
        };
        if choose && other < 200 {
            let actor = match kind {
                1..=3 | 6..=7 => record.as_ref().and_then(|record| record.holder.as_ref()).map(|holder| holder.session),
                4 | 5 => standing.as_ref().map(|offer| offer.to),
                _ => None,
            };
            session = actor.and_then(|id| both(&self.names, id)).unwrap_or(session);
        }
        let offer = standing.map(|offer| offer.id).or_else(|| pick(&self.offers, other)).unwrap_or(operation);
        let checkpoint = Some(Bytes::from(vec![other, b'\t', 0, 255])).filter(|_| other.is_multiple_of(3));
        let refuse_for = Duration::from_millis(u64::from(other % 8) * 10);
        let to = self.session(other).unwrap_or(session);
        if kind == 2 {
            self.offers.push(operation);
        }
        let of = |to: SessionId| match kind {
            0 => ChangeKind::Acquire { operation },
            1 => ChangeKind::Release {
                checkpoint: checkpoint.clone(),
                refuse_for: Some(refuse_for).filter(|_| other.is_multiple_of(2)),
            },
            2 => ChangeKind::Offer {
                operation,
                to,
                expires_in: if other.is_multiple_of(5) { self.times.short } else { self.times.long },
                giver_total: other.into(),
                giver_of_workload: kind.into(),
                forced: other.is_multiple_of(2),
            },
            3 => ChangeKind::Withdraw { offer },
            4 => ChangeKind::Accept { offer },
            5 => ChangeKind::Refuse { offer, refuse_for },
            6 => ChangeKind::Transfer { operation, offer, checkpoint: checkpoint.clone() },
            7 => ChangeKind::SaveCheckpoint { checkpoint: checkpoint.clone().unwrap_or_default() },
            _ => ChangeKind::Readopt,
        };
        let store = SlotChange { slot: slot.clone(), token: self.theirs(token), kind: of(to.0) };
        (session, (store, SlotChange { slot, token, kind: of(to.1) }))
    }

    /// Sends a request to both and compares the answers.
    async fn send(&mut self, world: &dyn World, requests: &(Request, Request)) -> Result<(), TestCaseError> {
        let theirs = self.ask(&requests.0).await;
        let told = theirs.as_ref().ok().and_then(|answer| answer.stamp.as_ref()).map(|stamp| stamp.now);
        let mut read = None;
        self.now = match (told, world.now(&self.cluster, self.now)) {
            (Some(now), _) => now,
            (None, Some(asked)) => asked.await,
            // Read right after it, on both sides.
            (None, None) => {
                let answer = self.ask(&Request::Call(Call::Snapshot(anonymous()))).await;
                let now = answer.as_ref().ok().and_then(|answer| answer.stamp.as_ref()).map(|stamp| stamp.now);
                read = Some(answer);
                now.unwrap_or(self.now)
            }
        };
        let ours = self.answer(&requests.1);
        self.compare(theirs, ours, requests)?;
        if let Some(theirs) = read {
            let ours = self.answer(&Request::Call(Call::Snapshot(anonymous())));
            self.compare(theirs, ours, requests)?;
        }
        Ok(())
    }

    fn compare(
        &mut self,
        theirs: Result<Answer, ErrorKind>,
        ours: Result<Answer, ErrorKind>,
        requests: &(Request, Request),
    ) -> Result<(), TestCaseError> {
        if let (Ok(theirs), Ok(ours)) = (&theirs, &ours) {
            if let (Some(theirs), Some(ours)) = (&theirs.stamp, &ours.stamp) {
                self.revisions.push((theirs.revision, ours.revision));
            }
            for (key, revision) in &ours.written {
                let same = theirs.written.iter().find(|(other, _)| other == key);
                self.written.extend(same.map(|(_, theirs)| (*revision, *theirs)));
            }
        }
        let theirs = theirs.map(|answer| self.names.0.plain(&answer.text(self.comparison), self.comparison));
        let ours = ours.map(|answer| self.names.1.plain(&answer.text(self.comparison), self.comparison));
        prop_assert_eq!(theirs, ours, "the store, the model: {:?}", requests);
        // Tokens have the same order on both sides.
        if let (Some(theirs), Some(ours)) = (self.names.0.tokens.last(), self.names.1.tokens.last()) {
            for (before, same) in self.names.0.tokens.iter().zip(&self.names.1.tokens) {
                prop_assert_eq!(before.cmp(theirs), same.cmp(ours), "the order of tokens: {:?}", requests);
            }
        }
        Ok(())
    }

    async fn ask(&self, request: &Request) -> Result<Answer, ErrorKind> {
        let (store, cluster) = (&self.store, &self.cluster);
        let answer = match request {
            Request::Call(Call::Open(request)) => store.open(cluster, request).await.map(Answer::opening),
            Request::Call(Call::Heartbeat(request)) => store.heartbeat(cluster, request).await.map(Answer::beat),
            Request::Call(Call::Change(request)) => store.change(cluster, request).await.map(Answer::changed),
            Request::Call(Call::Snapshot(request)) => {
                let mut request = request.clone();
                let first = store.snapshot(cluster, &request).await;
                match first {
                    Err(error) => Err(error),
                    Ok(mut page) => loop {
                        request.cursor = page.next.take();
                        if request.cursor.is_none() {
                            break Ok(Answer::page(page));
                        }
                        match store.snapshot(cluster, &request).await {
                            Ok(more) => {
                                page.items.extend(more.items);
                                page.next = more.next;
                            }
                            Err(error) => break Err(error),
                        }
                    },
                }
            }
            Request::Call(Call::Close(request)) => store.close(cluster, request).await.map(|()| Answer::closed()),
            Request::Admin(request) => store.administer(cluster, request).await.map(Answer::administered),
        };
        answer.map_err(|error| error.kind())
    }

    fn answer(&mut self, request: &Request) -> Result<Answer, ErrorKind> {
        let now = self.now;
        let answer = match request {
            Request::Call(call) => self.model.call(now, call).map(|reply| match reply {
                Reply::Open(opening) => Answer::opening(opening),
                Reply::Heartbeat(beat) => Answer::beat(beat),
                Reply::Change(reply) => {
                    if let Call::Change(request) = call {
                        for (change, outcome) in request.changes.iter().zip(&reply.outcomes) {
                            self.met.insert(match outcome {
                                ChangeOutcome::Done(_) => word(&change.kind),
                                ChangeOutcome::Refused(conflict, _) => word(conflict),
                            });
                        }
                    }
                    Answer::changed(reply)
                }
                Reply::Snapshot(page) => Answer::page(page),
                Reply::Close => Answer::closed(),
            }),
            Request::Admin(request) => self.model.administer(now, request).map(Answer::administered),
        };
        answer.map_err(|error| error.kind())
    }
}

/// An answer in words, its stamp apart.
struct Answer {
    stamp: Option<Stamp>,
    /// Times that count down, which both sides see at moments of their own.
    counts_down: String,
    rest: String,
    written: Vec<(RecordKey, Revision)>,
}

impl Answer {
    fn new(stamp: Stamp, rest: String) -> Self {
        Self { stamp: Some(stamp), counts_down: String::new(), rest, written: Vec::new() }
    }

    fn opening(opening: Opening) -> Self {
        match opening {
            Opening::Opened { stamp, session, ttl, settings } => {
                Self::new(stamp, format!("opened {session:?} {ttl:?} {settings:?}"))
            }
            Opening::InUse { stamp, session, incarnation, remaining } => Self {
                counts_down: format!("{remaining:?}"),
                ..Self::new(stamp, format!("in use {session:?} {incarnation:?}"))
            },
        }
    }

    fn beat(beat: Beat) -> Self {
        let Beat { stamp, ttl, held, sync, due } = beat;
        let who: Vec<_> = due.iter().map(|due| due.session).collect();
        let counts_down = format!("{due:?}");
        // How far one page leads may be another revision; what it leads to is compared with the next answers.
        let rest = format!("{ttl:?} {held:?} {sync:?} {who:?}");
        Self { counts_down, ..Self::new(stamp, rest) }
    }

    fn changed(reply: ChangeReply) -> Self {
        let rest = format!("{:?}", reply.outcomes);
        Self::new(reply.stamp, rest)
    }

    fn page(page: SnapshotPage) -> Self {
        let written = page.items.iter().filter_map(|item| match item {
            Change::Record(key, Some(record)) => Some((key.clone(), record.revision)),
            Change::Record(_, None) | Change::Session(..) | Change::Slot(..) => None,
        });
        let written = written.collect();
        Self { written, ..Self::new(page.stamp, format!("{:?}", sorted(page.items))) }
    }

    fn closed() -> Self {
        Self { stamp: None, counts_down: String::new(), rest: "closed".to_owned(), written: Vec::new() }
    }

    fn administered(outcome: AdminOutcome) -> Self {
        match outcome {
            AdminOutcome::Done(stamp) => Self::new(stamp, "done".to_owned()),
            AdminOutcome::Refused(stamp) => Self::new(stamp, "refused".to_owned()),
        }
    }

    fn text(&self, comparison: Comparison) -> String {
        match comparison {
            Comparison::Exactly => format!("{:?} {} {}", self.stamp, self.rest, self.counts_down),
            Comparison::Freely => {
                let stamp = self.stamp.as_ref().map(|stamp| (stamp.generation, stamp.quiet.is_zero()));
                format!("{stamp:?} {}", self.rest)
            }
        }
    }
}

fn anonymous() -> SnapshotRequest {
    SnapshotRequest { known: Known::default(), session: None, cursor: None }
}

fn word(debug: &impl std::fmt::Debug) -> String {
    format!("{debug:?}").split(|c: char| !c.is_alphabetic()).next().unwrap_or_default().to_owned()
}

/// Sessions are named differently and so are in another order: by when they were opened.
fn sorted(mut items: Vec<Change>) -> Vec<Change> {
    items.sort_by_key(|item| match item {
        Change::Session(_, record) => (0, format!("{:020}", record.as_ref().map_or(0, |record| record.revision.0))),
        Change::Slot(slot, _) => (1, slot.to_string()),
        Change::Record(key, _) => (2, format!("{key:?}")),
    });
    items
}

fn slot(unit: u32) -> Slot {
    if unit == 0 { "declared/0".parse().unwrap() } else { Slot::new("w".try_into().unwrap(), unit) }
}

/// So many rounds of random histories must meet everything that can happen.
const ROUNDS_MAX: usize = 5;

/// Runs rounds of random histories until each of these words was met, what was tried or what came of it: random requests
/// are worth something only if they get somewhere, and once in a while a round does not.
///
/// # Panics
/// With what a round has found, or with the words that were never met.
pub fn until_met<E: fmt::Display>(words: &str, met: &RefCell<BTreeSet<String>>, round: impl Fn() -> Result<(), E>) {
    let missed = || words.split_whitespace().filter(|word| !met.borrow().contains(*word)).collect::<Vec<_>>();
    for _ in 0..ROUNDS_MAX {
        if let Err(error) = round() {
            panic!("{error}");
        }
        if missed().is_empty() {
            return;
        }
    }
    panic!("never met: {:?}", missed());
}

/// Sends random histories to a store and to the model, and compares all answers. Each history has a cluster of its
/// own, named after its number.
///
/// # Panics
/// With the shortest history that is found in which the two disagree; and if the histories together leave a change or
/// a conflict out, since then they are worth nothing.
pub fn run(runtime: &tokio::runtime::Runtime, store: &Arc<dyn LeaseStore>, comparison: Comparison, world: &dyn World) {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(HISTORIES);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 2000, ..Config::default() };
    let number = Cell::new(0_u32);
    let met = RefCell::new(BTreeSet::new());
    let run_id = fastrand::u64(..);
    let round = || {
        TestRunner::new(config.clone()).run(&prop::collection::vec(step(), 1..STEPS_MAX), |steps| {
            number.set(number.get() + 1);
            runtime.block_on(async {
                let name = format!("differential {run_id:x} {}", number.get());
                let mut pair = Pair {
                    store: Arc::clone(store),
                    comparison,
                    cluster: ClusterName::new(name).map_err(|error| TestCaseError::fail(error.to_string()))?,
                    model: StoreModel::new(number.get().into(), store.capabilities()),
                    names: Default::default(),
                    revisions: Vec::new(),
                    written: BTreeMap::new(),
                    offers: Vec::new(),
                    operations: 0,
                    last: None,
                    met: BTreeSet::new(),
                    now: StoreTime::default(),
                    times: Times::of(&store.capabilities(), comparison),
                };
                for step in &steps {
                    match step {
                        Step::Wait => tokio::time::sleep(Duration::from_millis(15)).await,
                        Step::Restart => {
                            if let Some(fault) = world.restart(&pair.cluster) {
                                fault.await;
                                pair.model.restart();
                            }
                        }
                        Step::LoseEverything => {
                            if let Some(fault) = world.lose_everything(&pair.cluster) {
                                fault.await;
                                pair.model.lose_everything();
                            }
                        }
                        other => {
                            let Some(requests) = pair.requests(other) else { continue };
                            pair.send(world, &requests).await?;
                            pair.last = Some(requests);
                        }
                    }
                }
                met.borrow_mut().append(&mut pair.met);
                Ok(())
            })
        })
    };
    let words = "Acquire Release Offer Withdraw Accept Refuse Transfer SaveCheckpoint Readopt \
                 Quiet Token Held NotHolder ReceiverGone Offer NotQuiet";
    until_met(words, &met, round);
}
