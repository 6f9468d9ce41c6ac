//! The library in a process of its own, frozen as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rendez::{BoxError, Config, FencingToken, Slot, SlotContext, StoreUrl};
use rendez_testkit::clock;
use rendez_testkit::records::{Record, RecordKind, RecordWriter};
use rendez_testkit::servers::{AnyServer, StoreKind};
use rendez_testkit::sink::{self, SinkServer, TokenSink};
use rustix::process::Signal;
use tokio::task::JoinSet;

use crate::ledger::Ledger;
use crate::processes::signal;
use crate::stage::{Stage, TTL};

/// Set for the process that [`a_node_to_freeze`] is.
const NODE: &str = "RENDEZ_TEST_NODE";
/// From the look at the lease to the side effect.
const STEP: Duration = Duration::from_millis(50);
/// So many side effects of a slot are in flight at once, one half way while another begins: whenever the process is
/// frozen, one is.
const IN_FLIGHT: usize = 2;
/// How often a process is frozen at most until it is caught as it should be.
const ROUNDS_MAX: usize = 10;

/// Not a test, unless it is started by one of those that freeze it.
#[test]
fn a_node_to_freeze() {
    let Ok(node) = std::env::var(NODE) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(serve(&node));
}

async fn serve(node: &str) {
    let variable = |name: &str| std::env::var(name).unwrap();
    let (url, records, sink) = (variable("NODE_STORE"), PathBuf::from(variable("NODE_RECORDS")), variable("NODE_SINK"));
    let sink = Sink::parse(&sink, &url).unwrap();
    let config = Config::new().cluster("c").node_id(node).session_ttl(TTL).workload("inbox", 4).resolve().unwrap();
    let timeout = config.engine.timing.operation_timeout;
    let store = StoreUrl::parse(&url).unwrap().connect(timeout, config.connect_timeout).await.unwrap();
    let runner = move |ctx: SlotContext| run(ctx, records.clone(), sink.clone());
    let handle = config.builder().shared_store(store).runner(runner).start().await.unwrap();
    // Nothing of a failed test may run for ever.
    tokio::time::sleep(Duration::from_secs(120)).await;
    drop(handle);
}

/// What the side effects go to.
#[derive(Clone)]
enum Sink {
    /// A server that checks tokens, at this address.
    Server(String),
    /// The ledger in the store itself; what its fences have answered is written into this file.
    Ledger { store: StoreKind, url: String, answers: PathBuf },
}

impl Sink {
    /// `ADDRESS`, or the kind of the store and the file with a space between.
    fn parse(text: &str, url: &str) -> Result<Self, BoxError> {
        Ok(match text.split_once(' ') {
            None => Self::Server(text.to_owned()),
            Some((store, answers)) => {
                Self::Ledger { store: store.parse()?, url: url.to_owned(), answers: PathBuf::from(answers) }
            }
        })
    }

    fn write(&self, slot: &Slot, token: FencingToken, node: &str) -> Result<(), BoxError> {
        match self {
            Self::Server(address) => {
                let mut server = BufReader::new(TcpStream::connect(address)?);
                server.get_mut().write_all(sink::request(slot, token, node).as_bytes())?;
                server.read_line(&mut String::new())?;
            }
            Self::Ledger { store, url, answers } => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                let answer = runtime.block_on(async {
                    let mut ledger = Ledger::open(*store, url).await?;
                    ledger.write(slot, token).await
                })?;
                let line = match answer {
                    Ok(()) => format!("{node} {slot} {token} accepted\n"),
                    Err(stale) => format!("{node} {slot} {token} {}\n", stale.seen),
                };
                OpenOptions::new().append(true).create(true).open(answers)?.write_all(line.as_bytes())?;
            }
        }
        Ok(())
    }
}

/// Looks at the lease, then has something done by a thread that nobody can call back.
async fn run(ctx: SlotContext, records: PathBuf, sink: Sink) -> Result<(), BoxError> {
    let mut writer = RecordWriter::open(&records)?;
    // The time is taken before the look: what is written down was true then.
    let mut write = |kind| -> Result<(), BoxError> {
        let at = clock::now();
        ctx.check()?;
        let (slot, node) = (ctx.slot().clone(), ctx.node().clone());
        Ok(writer.write(&Record { kind, slot, token: ctx.token(), node, pid: std::process::id(), at })?)
    };
    write(RecordKind::Begin)?;
    let mut in_flight = JoinSet::new();
    while !ctx.is_cancelled() {
        write(RecordKind::Alive)?;
        let (slot, token, node) = (ctx.slot().clone(), ctx.token(), ctx.node().clone());
        let sink = sink.clone();
        in_flight.spawn_blocking(move || {
            std::thread::sleep(STEP);
            sink.write(&slot, token, node.as_str())
        });
        tokio::time::sleep(STEP / 2).await;
        if in_flight.len() == IN_FLIGHT
            && let Some(done) = in_flight.join_next().await
        {
            done??;
        }
    }
    while let Some(done) = in_flight.join_next().await {
        done??;
    }
    write(RecordKind::End)
}

struct Node(Child);

impl Node {
    fn start(stage: &Stage, node: &str, sink: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["library::a_node_to_freeze", "--exact"]).env(NODE, node);
        command.env("NODE_STORE", stage.url()).env("NODE_RECORDS", stage.records(node)).env("NODE_SINK", sink);
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }

    fn signal(&self, which: Signal) {
        signal(i32::try_from(self.0.id()).unwrap(), which);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// And what was in flight is refused by a sink that checks tokens.
pub(crate) async fn a_frozen_process_looks_at_its_deadlines_first(store: StoreKind) {
    let server = AnyServer::start(store).await.unwrap();
    let stage = Stage::new(&server.url());
    let sink = TokenSink::new();
    let server = SinkServer::tcp(sink.clone()).await.unwrap();
    let addr = server.addr().unwrap().to_string();
    let (one, two) = (Node::start(&stage, "one", &addr), Node::start(&stage, "two", &addr));
    stage.wait_for_shares(&[("one", 2), ("two", 2)]);
    one.signal(Signal::STOP);
    let frozen = clock::now();
    let newest = |node: &str| {
        let entries = sink.accepted();
        let mut slots: Vec<_> = entries.iter().filter(|entry| entry.at > frozen).collect();
        slots.retain(|entry| entry.payload == node);
        slots.into_iter().map(|entry| entry.slot.clone()).collect::<BTreeSet<_>>().len()
    };
    stage.wait_that("the other node to work on all slots", || newest("two") == 4);
    std::thread::sleep((frozen + 3 * TTL).since(clock::now()));
    assert!(sink.refused().is_empty(), "{:?}", sink.refused());
    one.signal(Signal::CONT);
    stage.wait_that("what was in flight to be refused", || !sink.refused().is_empty());
    stage.wait_that("its return", || newest("one") > 0);
    drop((one, two));
    let refused = sink.refused();
    assert!(refused.iter().all(|entry| entry.payload == "one"), "{refused:?}");
    assert!(refused.len() <= 2 * IN_FLIGHT, "more than what was in flight: {refused:?}");
    stage.report().assert_good();
}

/// What a fence of the store has answered to one of the nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    node: String,
    slot: Slot,
    token: FencingToken,
    /// The higher token for which it was refused.
    seen: Option<FencingToken>,
}

fn answers(path: &Path) -> Vec<Answer> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let parse = |line: &str| {
        let [node, slot, token, seen] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
        let number = |text: &str| FencingToken::new(text.parse().unwrap());
        let seen = Some(seen).filter(|seen| *seen != "accepted").map(number);
        Answer { node: node.to_owned(), slot: slot.parse().unwrap(), token: number(token), seen }
    };
    // The last line may be being written.
    text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).map(parse).collect()
}

/// With nothing but the store's own fences.
pub(crate) async fn a_fence_in_the_store_refuses_what_a_frozen_process_had_in_flight(store: StoreKind) {
    let server = AnyServer::start(store).await.unwrap();
    let stage = Stage::new(&server.url());
    let mut ledger = Ledger::open(store, &server.url()).await.unwrap();
    ledger.prepare().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("answers");
    let sink = format!("{store} {}", path.display());
    let (one, two) = (Node::start(&stage, "one", &sink), Node::start(&stage, "two", &sink));
    stage.wait_for_shares(&[("one", 2), ("two", 2)]);
    // For how many slots a node has written last.
    let writes = |node: &str| {
        let accepted = answers(&path).into_iter().filter(|answer| answer.seen.is_none());
        let last: BTreeMap<Slot, String> = accepted.map(|answer| (answer.slot, answer.node)).collect();
        last.values().filter(|last| *last == node).count()
    };
    let refused = || answers(&path).into_iter().filter(|answer| answer.seen.is_some()).collect::<Vec<_>>();
    let mut round = 0;
    while refused().is_empty() {
        round += 1;
        assert!(round <= ROUNDS_MAX, "nothing was refused");
        stage.wait_that("both nodes to write", || writes("one") == 2 && writes("two") == 2);
        one.signal(Signal::STOP);
        let newest = answers(&path).into_iter().map(|answer| answer.token).max().unwrap_or_default();
        // A fence of PostgreSQL or in a file is a lock while somebody writes. Frozen with one in its hands, a process keeps
        // its successor waiting, and what it writes then is the older of the two: it is frozen again.
        let frozen = clock::now();
        let patience = frozen + 4 * TTL;
        let what = "the other node to write for all slots, or to wait for a lock";
        stage.wait_that(what, || writes("two") == 4 || clock::now() > patience);
        one.signal(Signal::CONT);
        let is_back = |answer: &Answer| answer.node == "one" && answer.seen.is_none() && answer.token > newest;
        stage.wait_that("its return", || answers(&path).iter().any(is_back));
    }
    drop((one, two));
    for answer in refused() {
        assert!(answer.node == "one" && answer.seen > Some(answer.token), "{answer:?}");
    }
    // The ledger itself is the judge.
    let mut newest = BTreeMap::new();
    for (slot, token) in ledger.entries().await.unwrap() {
        let before = newest.insert(slot.clone(), token).unwrap_or_default();
        assert!(before <= token, "{slot} was written under {token} after {before}");
    }
    assert_eq!(newest.len(), 4);
    stage.report().assert_good();
}
