//! Random histories, sent to PostgreSQL and to the model of the contract at the same moments: they must answer the
//! same.

mod support;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rendez_core::*;
use rendez_postgres::PostgresStore;
use rendez_postgres::tokio_postgres::{Client, NoTls};
use rendez_testkit::conformance::differential::until_met;
use rendez_testkit::servers::PostgresServer;
use support::options;

const NODES: u8 = 4;
const UNITS: u32 = 4;
const LONG: Duration = Duration::from_secs(2);
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
        12 => (any::<u8>(), any::<bool>(), any::<u8>())
            .prop_map(|(key, exists, expect)| Step::Put { key, exists, expect }),
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
#[derive(Default)]
struct Names {
    sessions: Vec<SessionId>,
    generations: Vec<Generation>,
}

impl Names {
    fn session(&mut self, id: SessionId) -> usize {
        at(&mut self.sessions, id)
    }

    fn generation(&mut self, id: Generation) -> usize {
        at(&mut self.generations, id)
    }

    /// The text with all names replaced by their numbers.
    fn plain(&mut self, text: &str) -> String {
        let mut plain = String::new();
        let mut rest = text;
        while let Some(found) = ["SessionId(", "Generation("].iter().filter_map(|word| rest.find(word)).min() {
            let open = found + rest[found..].find('(').unwrap_or(0) + 1;
            plain.push_str(&rest[..open]);
            let digits = &rest[open..open + 32];
            let number = if rest[found..].starts_with("SessionId") {
                self.session(digits.parse().unwrap())
            } else {
                self.generation(digits.parse().unwrap())
            };
            plain.push_str(&number.to_string());
            rest = &rest[open + 32..];
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
    store: PostgresStore,
    cluster: ClusterName,
    model: StoreModel,
    /// PostgreSQL's, the model's.
    names: (Names, Names),
    tokens: Vec<FencingToken>,
    revisions: Vec<Revision>,
    offers: Vec<OperationId>,
    operations: u128,
    last: Option<(Request, Request)>,
    now: StoreTime,
    /// Which changes were made and which conflicts met.
    met: BTreeSet<String>,
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
        let (postgres, model) = match which {
            0..10 => (None, None),
            10..30 => pick(&all, which * 8).unzip(),
            30..32 => (Some(Generation::from_bits(which.into())), Some(Generation::from_bits(which.into()))),
            _ => all.last().copied().unzip(),
        };
        let token =
            if which.is_multiple_of(3) { pick(&self.tokens, which).unwrap_or_default() } else { FencingToken::NONE };
        let session_ttl_max = [LONG, LONG * 2, Duration::ZERO][usize::from(which) % 3];
        let known = |generation| Known { generation, token, session_ttl_max };
        (known(postgres), known(model))
    }

    fn requests(&mut self, step: &Step) -> Option<(Request, Request)> {
        let call = |postgres, model| Some((Request::Call(postgres), Request::Call(model)));
        match step {
            Step::Open { node, incarnation, named, short, known } => {
                let name: NodeId = format!("n{node}").parse().unwrap();
                let standing = self.model.sessions().find(|(_, record, _)| record.info.node == name);
                let standing = standing.map(|(id, ..)| id).filter(|_| *named);
                let place = standing.and_then(|id| self.names.1.sessions.iter().position(|known| *known == id));
                let replaced = place.map(|place| (self.names.0.sessions[place], self.names.1.sessions[place])).unzip();
                let known = self.known(*known);
                let mut info = NodeInfo::new(name, ClusterSettings::new(LONG));
                if node % 2 == 0 {
                    info.workloads.insert("declared".try_into().unwrap(), Declared { units: 4, cap: None });
                }
                let postgres = OpenRequest {
                    known: known.0,
                    operation: self.operation(),
                    incarnation: Incarnation::from_bits(u128::from(*incarnation)),
                    replaces: replaced.0,
                    ttl: if *short { SHORT } else { LONG },
                    info: Arc::new(info),
                };
                let model = OpenRequest { known: known.1, replaces: replaced.1, ..postgres.clone() };
                call(Call::Open(postgres), Call::Open(model))
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
                let postgres = HeartbeatRequest {
                    known: known.0,
                    session: session.0,
                    since: if *since < 60 { None } else { pick(&self.revisions, since - 60) },
                    changes_max: most * most,
                    due_within: LONG,
                    info,
                };
                let model = HeartbeatRequest { known: known.1, session: session.1, ..postgres.clone() };
                call(Call::Heartbeat(postgres), Call::Heartbeat(model))
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
                let (mut postgres, mut model) = (Vec::new(), Vec::new());
                for (unit, token, kind, other) in changes {
                    let (actor, changes) = self.change(session, *unit, *token, *kind, *other, postgres.is_empty());
                    session = actor;
                    postgres.push(changes.0);
                    model.push(changes.1);
                }
                call(
                    Call::Change(ChangeRequest { known: known.0, session: session.0, changes: postgres }),
                    Call::Change(ChangeRequest { known: known.1, session: session.1, changes: model }),
                )
            }
            Step::Put { key, exists, expect } => {
                let workload = |name: &str, units| {
                    let record = Record::Workload(WorkloadRecord::new(units));
                    (RecordKey::Workload(name.try_into().unwrap()), record)
                };
                let node: NodeId = "n0".parse().unwrap();
                let (key, record) = match key % 8 {
                    0 => workload("declared", 4),
                    1 => workload("w", 4),
                    2 => {
                        let mut settings = ClusterSettings::new(if *key < 128 { LONG } else { SHORT });
                        settings.cold_start_hold = if *key < 64 { SHORT } else { Duration::ZERO };
                        (RecordKey::Settings, Record::Settings(settings))
                    }
                    3 => (RecordKey::Node(node.clone()), Record::Node(NodeWish::default())),
                    4 => (RecordKey::Pin(slot(1)), Record::Pin(node)),
                    _ => workload("other", u32::from(*key)),
                };
                let expect = match expect {
                    0..150 => None,
                    150..200 => Some(Revision(0)),
                    _ => self.model.records().find(|(found, _)| **found == key).map(|(_, found)| found.revision),
                };
                let record = exists.then_some(record);
                let request = Request::Admin(AdminRequest::Put { key, record, expect });
                Some((request.clone(), request))
            }
            Step::Force { unit, token, now } => {
                let slot = slot(*unit);
                let token = if *token < 200 {
                    self.model.slot(&slot).map_or(FencingToken::NONE, |record| record.token)
                } else {
                    pick(&self.tokens, *token)?
                };
                let request = Request::Admin(AdminRequest::ForceRelease { slot, token, now: *now });
                Some((request.clone(), request))
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
            pick(&self.tokens, token).unwrap_or_default()
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
                expires_in: if other.is_multiple_of(5) { SHORT } else { LONG },
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
        let postgres = SlotChange { slot: slot.clone(), token, kind: of(to.0) };
        (session, (postgres, SlotChange { slot, token, kind: of(to.1) }))
    }

    /// Sends a request to both and compares the answers.
    async fn send(&mut self, client: &Client, requests: &(Request, Request)) -> Result<(), TestCaseError> {
        let (postgres, now) = self.postgres(&requests.0).await;
        // Where the answer does not tell the time, it is that of its last write, or shortly before now.
        self.now = match now {
            Some(now) => now,
            None => {
                let text = format!(
                    "SELECT touched_at, least((extract(epoch FROM clock_timestamp()) * 1000000)::bigint, \
                     (SELECT min(expires_at) - 1 FROM rendez.session s WHERE s.cluster = c.id)) \
                     FROM rendez.cluster c WHERE name = '{}'",
                    self.cluster
                );
                let answer = client.query_typed(&text, &[]).await.unwrap();
                let time = |at: usize| StoreTime::from_micros(answer[0].get::<_, i64>(at).try_into().unwrap());
                if time(0) > self.now { time(0) } else { time(1) }
            }
        };
        let model = self.model(&requests.1);
        if let Ok((stamp, _)) = &model {
            self.learn(stamp);
        }
        let postgres = postgres.map(|answer| self.names.0.plain(&answer));
        let model = model.map(|(_, answer)| self.names.1.plain(&answer));
        prop_assert_eq!(postgres, model, "postgres, model: {:?}", requests);
        Ok(())
    }

    async fn postgres(&self, request: &Request) -> (Result<String, ErrorKind>, Option<StoreTime>) {
        let (store, cluster) = (&self.store, &self.cluster);
        let mut now = None;
        let mut stamped = |stamp: &Stamp| now = Some(stamp.now);
        let answer = match request {
            Request::Call(Call::Open(request)) => store.open(cluster, request).await.map(|opening| {
                match &opening {
                    Opening::Opened { stamp, .. } | Opening::InUse { stamp, .. } => stamped(stamp),
                }
                format!("{opening:?}")
            }),
            Request::Call(Call::Heartbeat(request)) => store.heartbeat(cluster, request).await.map(|beat| {
                stamped(&beat.stamp);
                format!("{beat:?}")
            }),
            Request::Call(Call::Change(request)) => store.change(cluster, request).await.map(|reply| {
                stamped(&reply.stamp);
                format!("{reply:?}")
            }),
            Request::Call(Call::Snapshot(request)) => store.snapshot(cluster, request).await.map(|page| {
                stamped(&page.stamp);
                assert_eq!(page.next, None);
                format!("{:?} {:?}", page.stamp, sorted(page.items))
            }),
            Request::Call(Call::Close(request)) => store.close(cluster, request).await.map(|()| "closed".to_owned()),
            Request::Admin(request) => store.administer(cluster, request).await.map(|outcome| {
                match &outcome {
                    AdminOutcome::Done(stamp) | AdminOutcome::Refused(stamp) => stamped(stamp),
                }
                format!("{outcome:?}")
            }),
        };
        (answer.map_err(|error| error.kind()), now)
    }

    fn model(&mut self, request: &Request) -> Result<(Option<Stamp>, String), ErrorKind> {
        let now = self.now;
        let answer = match request {
            Request::Call(call) => self.model.call(now, call).map(|reply| match reply {
                Reply::Open(opening) => {
                    let stamp = match &opening {
                        Opening::Opened { stamp, .. } | Opening::InUse { stamp, .. } => stamp.clone(),
                    };
                    (Some(stamp), format!("{opening:?}"))
                }
                Reply::Heartbeat(beat) => (Some(beat.stamp.clone()), format!("{beat:?}")),
                Reply::Change(reply) => {
                    if let Call::Change(request) = call {
                        for (change, outcome) in request.changes.iter().zip(&reply.outcomes) {
                            self.met.insert(match outcome {
                                ChangeOutcome::Done(_) => word(&change.kind),
                                ChangeOutcome::Refused(conflict, _) => word(conflict),
                            });
                        }
                    }
                    (Some(reply.stamp.clone()), format!("{reply:?}"))
                }
                Reply::Snapshot(page) => {
                    (Some(page.stamp.clone()), format!("{:?} {:?}", page.stamp, sorted(page.items)))
                }
                Reply::Close => (None, "closed".to_owned()),
            }),
            Request::Admin(request) => self.model.administer(now, request).map(|outcome| {
                let stamp = match &outcome {
                    AdminOutcome::Done(stamp) | AdminOutcome::Refused(stamp) => stamp.clone(),
                };
                (Some(stamp), format!("{outcome:?}"))
            }),
        };
        answer.map_err(|error| error.kind())
    }

    fn learn(&mut self, stamp: &Option<Stamp>) {
        if let Some(stamp) = stamp {
            self.tokens.push(stamp.token);
            self.revisions.push(stamp.revision);
        }
    }
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

#[test]
fn postgres_answers_as_the_model_does() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (_server, store, client) = runtime.block_on(async {
        let server = PostgresServer::builder().start().await.unwrap();
        let store = PostgresStore::connect(&server.url(), options()).await.unwrap();
        let (client, connection) = rendez_postgres::tokio_postgres::connect(&server.url(), NoTls).await.unwrap();
        tokio::spawn(connection);
        (server, store, client)
    });
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(200);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 2000, ..Config::default() };
    let number = Cell::new(0_u32);
    let met = RefCell::new(BTreeSet::new());
    let round = || {
        TestRunner::new(config.clone()).run(&prop::collection::vec(step(), 1..150), |steps| {
            number.set(number.get() + 1);
            runtime.block_on(async {
                let mut pair = Pair {
                    store: store.clone(),
                    cluster: ClusterName::new(format!("case {}", number.get())).unwrap(),
                    model: StoreModel::new(number.get().into(), store.capabilities()),
                    names: Default::default(),
                    tokens: Vec::new(),
                    revisions: Vec::new(),
                    offers: Vec::new(),
                    operations: 0,
                    last: None,
                    met: BTreeSet::new(),
                    now: StoreTime::default(),
                };
                for step in &steps {
                    match step {
                        Step::Wait => tokio::time::sleep(Duration::from_millis(15)).await,
                        Step::Restart => {
                            let text = "UPDATE rendez.cluster SET history = '0/00000000' WHERE name = '{}'";
                            client.batch_execute(&text.replace("{}", pair.cluster.as_str())).await.unwrap();
                            pair.model.restart();
                        }
                        Step::LoseEverything => {
                            for table in ["session", "session_info", "slot", "record", "tombstone"] {
                                let text = format!(
                                    "DELETE FROM rendez.{table} USING rendez.cluster c \
                                 WHERE cluster = c.id AND c.name = '{}'",
                                    pair.cluster
                                );
                                client.batch_execute(&text).await.unwrap();
                            }
                            let text = format!("DELETE FROM rendez.cluster WHERE name = '{}'", pair.cluster);
                            client.batch_execute(&text).await.unwrap();
                            pair.model.lose_everything();
                        }
                        other => {
                            let Some(requests) = pair.requests(other) else { continue };
                            pair.send(&client, &requests).await?;
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
