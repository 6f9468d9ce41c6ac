//! Rings: of processes on a real PostgreSQL, and as `rendez ring` tells of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rendez::postgres::{PostgresOptions, PostgresStore};
use rendez::{BoxError, Ring, SlotContext, StoreUrl};
use rendez_testkit::clock;
use rendez_testkit::proxy::Proxy;
use rendez_testkit::records::{Record, RecordKind, RecordWriter};
use rendez_testkit::servers::{AnyServer, PostgresServer, StoreKind};
use rustix::process::Signal;
use serde_json::Value;

use crate::processes::signal;
use crate::stage::{Stage, shares_of};

/// Set for the process that [`a_node_of_a_ring`] is.
const NODE: &str = "RENDEZ_TEST_RING_NODE";
const RING: &str = "orders";
const PARTITIONS: usize = 1024;
const NODES: [&str; 5] = ["n1", "n2", "n3", "n4", "n5"];
const TTL: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a runner writes down that it still runs.
const ALIVE: Duration = Duration::from_millis(500);

/// Not a test, unless it is started by one: a process with one node of a ring.
#[test]
fn a_node_of_a_ring() {
    let Ok(node) = std::env::var(NODE) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(take_part(&node));
}

async fn take_part(node: &str) {
    let variable = |name: &str| std::env::var(name).unwrap();
    let (url, records) = (variable("NODE_STORE"), PathBuf::from(variable("NODE_RECORDS")));
    let store = StoreUrl::parse(&url).unwrap().connect(Duration::from_millis(500), PATIENCE).await.unwrap();
    let ring = Ring::builder()
        .shared_store(store)
        .ring_id(RING)
        .node_id(node)
        .session_ttl(TTL)
        .connect_timeout(PATIENCE)
        .runner(move |ctx| run(ctx, records.clone()))
        .start()
        .await
        .unwrap();
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
    // Nothing of a failed test may run for ever.
    let _ = tokio::time::timeout(Duration::from_secs(300), term.recv()).await;
    ring.leave().await.unwrap();
}

async fn run(ctx: SlotContext, records: PathBuf) -> Result<(), BoxError> {
    let mut writer = RecordWriter::open(&records)?;
    let mut write = |kind| -> Result<(), BoxError> {
        let at = clock::now();
        // What is written down as running runs under a lease that holds.
        if kind == RecordKind::Alive {
            ctx.check()?;
        }
        let (slot, node) = (ctx.slot().clone(), ctx.node().clone());
        Ok(writer.write(&Record { kind, slot, token: ctx.token(), node, pid: std::process::id(), at })?)
    };
    write(RecordKind::Begin)?;
    while tokio::time::timeout(ALIVE, ctx.cancelled()).await.is_err() {
        write(RecordKind::Alive)?;
    }
    write(RecordKind::End)
}

/// A process with a node; killed when dropped.
struct Node {
    process: Child,
    said: PathBuf,
}

impl Node {
    fn start(stage: &Stage, node: &str) -> Self {
        Self::start_at(stage, node, stage.url())
    }

    /// With a way of its own to the store.
    fn start_at(stage: &Stage, node: &str, url: &str) -> Self {
        let said = stage.records(node).with_extension("err");
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["ring::a_node_of_a_ring", "--exact", "--nocapture"]).env(NODE, node);
        command.env("NODE_STORE", url).env("NODE_RECORDS", stage.records(node));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&said).unwrap());
        Self { process: command.spawn().unwrap(), said }
    }

    fn signal(&self, which: Signal) {
        signal(i32::try_from(self.process.id()).unwrap(), which);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("{}", fs::read_to_string(&self.said).unwrap_or_default());
        }
    }
}

fn show(stage: &Stage) -> Value {
    let output = rendez(&["ring", "show", "--once", "--json", "--store", stage.url(), RING]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Waits until each of these nodes, and no other, runs what the store says that it holds and should hold.
fn wait_for_rest(stage: &Stage, nodes: &[&str]) -> Value {
    let wanted: BTreeSet<&str> = nodes.iter().copied().collect();
    stage.wait(&format!("a ring of {nodes:?} at rest"), |running| {
        let shares = shares_of(running);
        running.len() == PARTITIONS && shares.keys().map(String::as_str).collect::<BTreeSet<_>>() == wanted && {
            let shown = show(stage);
            let members = shown["nodes"].as_array().unwrap();
            let at_rest = shown["orphans"] == 0 && shown["misplaced"] == 0 && members.len() == nodes.len();
            at_rest && members.iter().all(|it| it["holds"] == shares[it["node"].as_str().unwrap()])
        }
    });
    show(stage)
}

fn rendez(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rendez")).args(args).output().unwrap()
}

/// By partition: node and token.
fn owners(shown: &Value) -> Vec<(String, u64)> {
    let all = shown["owners"].as_array().unwrap().iter();
    all.map(|it| (it["node"].as_str().unwrap().to_owned(), it["token"].as_u64().unwrap())).collect()
}

/// On any store, each node with a way of its own to it.
pub(crate) async fn nodes_that_start_at_once_share_a_ring_and_one_leaves(store: StoreKind) {
    const FEW: usize = 48;
    let server = AnyServer::start(store).await.unwrap();
    let stage = Stage::new(&server.url());
    let join = |node: &'static str| {
        let (url, records) = (StoreUrl::parse(stage.url()).unwrap(), stage.records(node));
        tokio::spawn(async move {
            let ring = Ring::builder()
                .shared_store(url.connect(Duration::from_millis(500), PATIENCE).await.unwrap())
                .ring_id(RING)
                .node_id(node)
                .partitions(FEW as u32)
                .virtual_nodes(16)
                .session_ttl(TTL)
                .connect_timeout(PATIENCE)
                .runner(move |ctx| run(ctx, records.clone()));
            ring.start().await.unwrap()
        })
    };
    let mut rings = Vec::new();
    for joining in ["n1", "n2", "n3"].map(join) {
        rings.push(joining.await.unwrap());
    }
    let rest = |rings: &[Ring]| {
        stage.wait("a ring at rest", |running| {
            let shown = show(&stage);
            let held = shares_of(running);
            let owns = |ring: &Ring| held.get(ring.node().as_str()) == Some(&ring.owned_partitions().len());
            running.len() == FEW && shown["orphans"] == 0 && shown["misplaced"] == 0 && rings.iter().all(owns)
        });
    };
    rest(&rings);
    rings.remove(0).leave().await.unwrap();
    rest(&rings);
    for ring in &rings {
        ring.leave().await.unwrap();
    }
    stage.report().assert_good();
}

#[tokio::test]
async fn five_nodes_at_once_on_an_empty_postgres_own_every_partition_once_and_never_twice() {
    let server = PostgresServer::builder().start().await.unwrap();
    let stage = Stage::new(&server.url());
    // All at once, and nothing is there: no schema, no tables, no ring.
    let mut nodes: BTreeMap<&str, Node> = NODES.iter().map(|node| (*node, Node::start(&stage, node))).collect();
    let shown = wait_for_rest(&stage, &NODES);
    let before = owners(&shown);
    assert_eq!(before.len(), PARTITIONS);
    assert_eq!((&shown["partitions"], &shown["virtual_nodes"]), (&Value::from(1024), &Value::from(8)));

    // A node is killed: its partitions, and no others, are taken over, and not before its session's end.
    let lost: Vec<usize> = (0..PARTITIONS).filter(|partition| before[*partition].0 == "n3").collect();
    nodes["n3"].signal(Signal::KILL);
    nodes.remove("n3");
    let after = owners(&wait_for_rest(&stage, &["n1", "n2", "n4", "n5"]));
    for partition in 0..PARTITIONS {
        let (was, is) = (&before[partition], &after[partition]);
        if lost.contains(&partition) {
            assert!(is.0 != "n3" && is.1 > was.1, "{partition}: {was:?}, then {is:?}");
        } else {
            assert_eq!(is, was, "{partition} was touched");
        }
    }

    // It comes back, and gets the same partitions; then another leaves in order.
    nodes.insert("n3", Node::start(&stage, "n3"));
    let again = owners(&wait_for_rest(&stage, &NODES));
    let is_its = |owners: &[(String, u64)], partition: usize| owners[partition].0 == "n3";
    assert!((0..PARTITIONS).all(|partition| is_its(&again, partition) == is_its(&before, partition)));
    nodes["n1"].signal(Signal::TERM);
    wait_for_rest(&stage, &["n2", "n3", "n4", "n5"]);
    drop(nodes);
    // What the runners wrote down themselves: no partition ran twice, from the first moment on.
    let report = stage.report();
    report.assert_good();
    assert_eq!(report.summary.slots, PARTITIONS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_network_and_a_frozen_postgres_leave_no_partition_running_twice() {
    let mut server = PostgresServer::builder().start().await.unwrap();
    let stage = Stage::new(&server.url());
    let addr = server.addr().unwrap();
    let proxy = Proxy::start(addr).await.unwrap();
    let behind = server.url().replace(&addr.to_string(), &proxy.addr().to_string());
    assert_ne!(behind, server.url());
    let nodes = [("n1", &*behind), ("n2", stage.url()), ("n3", stage.url())];
    let nodes = nodes.map(|(node, url)| Node::start_at(&stage, node, url));
    let before = owners(&wait_for_rest(&stage, &["n1", "n2", "n3"]));

    // What the node has sent arrives when the network is back, long after its session's end.
    proxy.freeze();
    wait_for_rest(&stage, &["n2", "n3"]);
    proxy.heal().await.unwrap();
    let after = owners(&wait_for_rest(&stage, &["n1", "n2", "n3"]));
    let nodes_of = |owners: &[(String, u64)]| owners.iter().map(|(node, _)| node.clone()).collect::<Vec<_>>();
    assert_eq!(nodes_of(&after), nodes_of(&before), "every node has its places again");

    server.stop().unwrap();
    stage.wait("the end of every runner", |running| running.is_empty());
    server.resume().unwrap();
    let after = owners(&wait_for_rest(&stage, &["n1", "n2", "n3"]));
    assert_eq!(nodes_of(&after), nodes_of(&before));
    drop(nodes);
    stage.report().assert_good();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_nodes_of_one_process_do_with_one_connection_for_requests() {
    let server = PostgresServer::builder().start().await.unwrap();
    let mut options = PostgresOptions::default();
    options.connections_max = 1;
    options.operation_timeout = Duration::from_secs(2);
    let store = Arc::new(PostgresStore::connect(&server.url(), options).await.unwrap());
    let join = |node| {
        let ring = Ring::builder().shared_store(store.clone()).ring_id(RING).node_id(node).session_ttl(TTL);
        ring.connect_timeout(PATIENCE).start()
    };
    let mut rings = Vec::new();
    for ring in NODES.map(|node| tokio::spawn(join(node))) {
        rings.push(ring.await.unwrap().unwrap());
    }
    let owned = |rings: &[Ring]| rings.iter().map(|ring| ring.owned_partitions().len()).sum::<usize>();
    let all = async {
        while owned(&rings) < PARTITIONS {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("every partition has an owner");
    let question =
        "select count(*) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()";
    let connections: u32 = server.query(question).await.unwrap().trim().parse().unwrap();
    // Each node listens on one of its own.
    assert!(connections <= 1 + NODES.len() as u32, "{connections} connections");
    for ring in &rings {
        ring.leave().await.unwrap();
    }
}

#[tokio::test]
async fn what_is_shown_and_joined_on_the_command_line_is_one_ring() {
    let server = AnyServer::start(StoreKind::File).await.unwrap();
    let stage = Stage::new(&server.url());
    let said = stage.records("joined").with_extension("out");
    let join = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rendez"));
        command.args(["ring", "join", "--store", stage.url(), RING, "--session-ttl", "5s", "--partitions", "64"]);
        command.args(more);
        command
    };
    let none = rendez(&["ring", "show", "--once", "--store", stage.url(), RING]);
    let error = String::from_utf8(none.stderr).unwrap();
    assert!(none.status.code() == Some(1) && error.contains("there is no ring orders"), "{error}");

    let mut first = join(&["--node", "first"]);
    let first = first.stdout(File::create(&said).unwrap()).stderr(Stdio::null()).spawn().unwrap();
    let first = Node { process: first, said: said.clone() };
    let says = |words: &str| fs::read_to_string(&said).unwrap_or_default().contains(words);
    stage.wait_that("all partitions", || says("owns 64 of 64"));
    assert!(says("first has joined the ring orders (64 partitions and 8 virtual nodes)") && says("gained 64: 0-63"));

    let shown = show(&stage);
    assert_eq!((&shown["nodes"][0]["node"], &shown["nodes"][0]["holds"]), (&Value::from("first"), &Value::from(64)));
    assert_eq!((&shown["nodes"][0]["arcs"], &shown["orphans"]), (&Value::from(1), &Value::from(0)));
    let text = rendez(&["ring", "show", "--once", "--store", stage.url(), RING]).stdout;
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains(&format!("held  {}\n", "a".repeat(64))) && !text.contains('\u{1b}'), "{text}");

    // Who has other sizes is told those that were agreed.
    let output = join(&["--virtual-nodes", "16"]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && error.contains("64 partitions and 8 virtual nodes"), "{error}");
    let taken = join(&["--session-ttl", "1m"]).output().unwrap();
    assert_eq!(taken.status.code(), Some(2), "{}", String::from_utf8_lossy(&taken.stderr));

    first.signal(Signal::TERM);
    stage.wait_that("its end", || says("has left"));
    assert!(says("lost 64: 0-63") || says("leaving: every partition"));
    let shown = show(&stage);
    assert_eq!((&shown["nodes"], &shown["orphans"]), (&Value::Array(Vec::new()), &Value::from(64)));
}

#[test]
fn what_cannot_be_is_refused_before_the_store_is_touched() {
    let store = ["--store", "postgres://127.0.0.1:1/x"];
    for (args, words) in [
        (&["join", "my-ring"][..], "'-'"),
        (&["join", "1st"], "must not begin with '1'"),
        (&["show", ""], "empty"),
        (&["join", "orders", "--session-ttl", "soon"], "soon"),
        (&["join", "orders", "--partitions", "many"], "many"),
        (&["join"], "RING"),
    ] {
        let output = rendez(&[&["ring"], args, &store].concat());
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
        assert!(error.contains(words), "{args:?}: {error}");
    }
    let error = rendez(&["ring", "join", "orders"]).stderr;
    assert!(String::from_utf8(error).unwrap().contains("which store?"));
    let error = rendez(&["ring", "join", "orders", "--store", "memory:"]).stderr;
    assert!(String::from_utf8(error).unwrap().contains("one that others can reach"));
    let output = rendez(&["ring", "show", "orders", "--once", "--connect-timeout", "300ms", store[0], store[1]]);
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
}
