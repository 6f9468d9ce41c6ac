//! The library in a process of its own, frozen as a whole.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rendez::{BoxError, Config, SlotContext, StoreUrl};
use rendez_testkit::clock;
use rendez_testkit::records::{Record, RecordKind, RecordWriter};
use rendez_testkit::servers::{AnyServer, StoreKind};
use rendez_testkit::sink::{self, SinkServer, TokenSink};
use rustix::process::Signal;

use crate::processes::signal;
use crate::stage::{Stage, TTL};

/// Set for the process that [`a_node_to_freeze`] is.
const NODE: &str = "RENDEZ_TEST_NODE";
/// Between two side effects, and from the look at the lease to the effect.
const STEP: Duration = Duration::from_millis(50);

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
    let config = Config::new().cluster("c").node_id(node).session_ttl(TTL).workload("inbox", 4).resolve().unwrap();
    let timeout = config.engine.timing.operation_timeout;
    let store = StoreUrl::parse(&url).unwrap().connect(timeout, config.connect_timeout).await.unwrap();
    let runner = move |ctx: SlotContext| run(ctx, records.clone(), sink.clone());
    let handle = config.builder().shared_store(store).runner(runner).start().await.unwrap();
    // Nothing of a failed test may run for ever.
    tokio::time::sleep(Duration::from_secs(120)).await;
    drop(handle);
}

/// Looks at the lease, then has something done by a thread that nobody can call back.
async fn run(ctx: SlotContext, records: PathBuf, sink: String) -> Result<(), BoxError> {
    let mut writer = RecordWriter::open(&records)?;
    // The time is taken before the look: what is written down was true then.
    let mut write = |kind| -> Result<(), BoxError> {
        let at = clock::now();
        ctx.check()?;
        let (slot, node) = (ctx.slot().clone(), ctx.node().clone());
        Ok(writer.write(&Record { kind, slot, token: ctx.token(), node, pid: std::process::id(), at })?)
    };
    write(RecordKind::Begin)?;
    while !ctx.is_cancelled() {
        write(RecordKind::Alive)?;
        let line = sink::request(ctx.slot(), ctx.token(), ctx.node().as_str());
        let sink = sink.clone();
        let in_flight = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
            std::thread::sleep(STEP);
            let mut sink = BufReader::new(TcpStream::connect(sink)?);
            sink.get_mut().write_all(line.as_bytes())?;
            sink.read_line(&mut String::new()).map(drop)
        });
        in_flight.await??;
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
        slots.into_iter().map(|entry| entry.slot.clone()).collect::<std::collections::BTreeSet<_>>().len()
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
    assert!(refused.len() <= 4, "more than what was in flight: {refused:?}");
    stage.report().assert_good();
}
