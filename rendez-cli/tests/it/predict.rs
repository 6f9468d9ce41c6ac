//! `rendez predict` and `rendez explain` on clusters that run: what is predicted is what then happens.

use std::collections::BTreeMap;
use std::process::{Command, Output};
use std::time::Duration;

use rendez::StoreUrl;
use rendez_core::{Change, ClusterName, Known, Revision, SnapshotRequest};
use rendez_testkit::servers::{AnyServer, StoreKind};
use rustix::process::Signal;
use serde_json::Value;

use crate::stage::{Running, Stage};

/// Longer than a store in a file needs for anything.
const STORE_TIMEOUT: Duration = Duration::from_secs(10);

async fn file_store() -> AnyServer {
    AnyServer::start(StoreKind::File).await.unwrap()
}

fn rendez(stage: &Stage, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rendez"));
    command.arg(args[0]).args(["--store", stage.url(), "--cluster", "c"]).args(&args[1..]).output().unwrap()
}

/// The standard output as JSON.
fn told(stage: &Stage, args: &[&str]) -> Value {
    let output = rendez(stage, &[args, &["--json"]].concat());
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn refused(stage: &Stage, args: &[&str]) -> String {
    let output = rendez(stage, args);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
    error
}

/// All that the store holds, and its revision.
async fn contents(stage: &Stage) -> (Revision, Vec<Change>) {
    let store = StoreUrl::parse(stage.url()).unwrap().connect(STORE_TIMEOUT, STORE_TIMEOUT).await.unwrap();
    let cluster = ClusterName::new("c").unwrap();
    let (mut items, mut cursor) = (Vec::new(), None);
    loop {
        let request = SnapshotRequest { known: Known::default(), session: None, cursor };
        let page = store.snapshot(&cluster, &request).await.unwrap();
        items.extend(page.items);
        cursor = page.next;
        if cursor.is_none() {
            return (page.stamp.revision, items);
        }
    }
}

/// Waits until so many nodes are there and so many slots where they should be, and the store says so too.
fn wait_for_rest(stage: &Stage, nodes: usize, slots: usize) {
    stage.wait("everything to be at its place", |running| {
        let status = stage.status();
        if running.len() != slots || status["nodes"].as_array().unwrap().len() != nodes {
            return false;
        }
        let slots_known = status["slots"].as_array().unwrap();
        let runs_at = |slot: &Value| running.get(slot["slot"].as_str().unwrap()).map(|(node, _)| node.as_str());
        slots_known.iter().all(|slot| slot["why"].is_null() && runs_at(slot) == slot["holder"].as_str())
    });
}

fn nodes_of(running: &Running) -> BTreeMap<String, String> {
    running.iter().map(|(slot, (node, _))| (slot.clone(), node.clone())).collect()
}

/// Where everything is once the steps of a forecast have been made.
fn led_on(before: &Running, forecast: &Value) -> BTreeMap<String, String> {
    let mut nodes = nodes_of(before);
    for step in forecast["steps"].as_array().unwrap() {
        let slot = step["slot"].as_str().unwrap().to_owned();
        assert_eq!(step["from"].as_str(), nodes.get(&slot).map(String::as_str), "{step}");
        nodes.insert(slot, step["to"].as_str().unwrap().to_owned());
    }
    nodes
}

fn after_of(forecast: &Value) -> BTreeMap<String, u64> {
    let nodes = forecast["nodes"].as_array().unwrap().iter();
    nodes.filter_map(|node| Some((node["node"].as_str().unwrap().to_owned(), node["after"].as_u64()?))).collect()
}

// Shares without a fraction: which node has one more than the others would depend on who acts first.

#[tokio::test]
async fn what_is_predicted_of_a_node_that_goes_is_what_happens_and_nothing_is_written() {
    let server = file_store().await;
    let stage = Stage::new(&server.url());
    let agent = |node| stage.agent(node).ttl("15s").workloads(&["inbox=6", "feed=6"]).start();
    let agents = ["one", "two", "three"].map(agent);
    wait_for_rest(&stage, 3, 12);
    let before = stage.running();

    let stored = contents(&stage).await;
    let forecast = told(&stage, &["predict", "--goes", "one"]);
    assert_eq!(contents(&stage).await, stored);
    assert_eq!(forecast["revision"].as_u64(), Some(stored.0.0));
    let lost = before.values().filter(|(node, _)| node == "one").count();
    let steps = forecast["steps"].as_array().unwrap();
    assert_eq!(steps.len(), lost, "{forecast}");
    assert!(steps.iter().all(|step| step["why"] == "taken_over" && step["from"] == "one"), "{forecast}");
    assert_eq!(forecast["totals"]["stay"].as_u64(), Some(12 - lost as u64));
    assert_eq!(forecast["totals"]["voluntary"].as_u64(), Some(0));

    agents[0].signal(Signal::KILL);
    let expected = led_on(&before, &forecast);
    stage.wait("what was predicted", |running| nodes_of(running) == expected);
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    expected.values().for_each(|node| *counts.entry(node.clone()).or_default() += 1);
    assert_eq!(after_of(&forecast), counts);
    // And there it stays.
    wait_for_rest(&stage, 2, 12);
    assert_eq!(nodes_of(&stage.running()), expected);
    drop(agents);
    stage.report().assert_good();
}

#[tokio::test]
async fn what_is_predicted_of_a_node_that_joins_is_what_happens() {
    let server = file_store().await;
    let stage = Stage::new(&server.url());
    // Stabilizers are not what this is about, nor is a node that a busy machine holds up.
    let agent = |node| {
        let launch = stage.agent(node).ttl("15s").workloads(&["inbox=10", "feed=5"]);
        launch.set("cooldown", "1s").set("runtime_min", "1s").set("settling", "1s")
    };
    let mut agents: Vec<_> = ["one", "two", "three"].map(|node| agent(node).start()).into();
    wait_for_rest(&stage, 3, 15);
    let before = stage.running();

    let forecast = told(&stage, &["predict", "--joins", "four:weight=2"]);
    let steps = forecast["steps"].as_array().unwrap();
    assert!(!steps.is_empty() && steps.iter().all(|step| step["why"] == "voluntary"), "{forecast}");
    assert_eq!(forecast["totals"]["voluntary"].as_u64(), Some(steps.len() as u64));
    agents.push(agent("four").option("--weight", "2").start());
    let expected = led_on(&before, &forecast);
    stage.wait("what was predicted", |running| nodes_of(running) == expected);
    wait_for_rest(&stage, 4, 15);
    assert_eq!(nodes_of(&stage.running()), expected);
    // Without a change nothing happens any more.
    assert_eq!(told(&stage, &["predict"])["steps"], Value::Array(Vec::new()));
    drop(agents);
    stage.report().assert_good();
}

#[tokio::test]
async fn a_slot_is_explained_and_what_holds_its_move_back_is_named() {
    let server = file_store().await;
    let stage = Stage::new(&server.url());
    // Once a second node is there, a slot should move; it will not for a long time.
    let agent = |node| stage.agent(node).ttl("15s").set("settling", "1h").start();
    let one = agent("one");
    stage.wait_for_shares(&[("one", 4)]);
    let told_at_rest = told(&stage, &["explain", "inbox/2"]);
    assert_eq!(told_at_rest["holder"]["node"], "one");
    assert_eq!((&told_at_rest["desired"], &told_at_rest["why"]), (&Value::from("one"), &Value::Null));
    let listed = stage.status()["slots"].as_array().unwrap()[2].clone();
    assert_eq!(told_at_rest["token"], listed["token"]);

    let two = agent("two");
    let moving = || {
        let slots = stage.status()["slots"].as_array().unwrap().clone();
        let moving = slots.iter().find(|slot| slot["desired"] == "two");
        moving.map(|slot| slot["slot"].as_str().unwrap().to_owned())
    };
    stage.wait_that("a slot that should move", || moving().is_some());
    let moving = moving().unwrap();
    let explain = |settling: &str, json: bool| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rendez"));
        command.args(["explain", "--store", stage.url(), "--cluster", "c", &moving]);
        command.args(json.then_some("--json")).env("RENDEZ_CONFIG_SETTLING", settling);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let held: Value = serde_json::from_str(&explain("1h", true)).unwrap();
    assert_eq!((&held["waiting"]["to"], &held["waiting"]["cause"]), (&Value::from("two"), &Value::from("policy")));
    let settling = held["waiting"]["held_back"][0]["settling"]["remaining"]["secs"].as_u64().unwrap();
    assert!((3000..3600).contains(&settling), "{held}");
    assert!(held["waiting"]["not_before"].as_u64().unwrap() > held["now"].as_u64().unwrap());
    let text = explain("1h", false);
    for words in ["held by     one", "plan        two", "nodes came or went lately", "only its holder knows the rest"] {
        assert!(text.contains(words), "{words:?} is not in {text}");
    }
    let candidates = held["candidates"].as_array().unwrap();
    assert_eq!(candidates.len(), 2);
    let against = |node: &str| &candidates.iter().find(|it| it["node"] == node).unwrap()["against"];
    assert_eq!((against("one"), against("two")), (&Value::from("no_gain"), &Value::Null));

    assert!(refused(&stage, &["explain", "inbox/4"]).contains("inbox has the units 0 to 3"));
    assert!(refused(&stage, &["explain", "feed/0"]).contains("there are: inbox"));
    assert!(refused(&stage, &["explain", "inbox"]).contains("WORKLOAD/UNIT"));
    for change in ["--goes=three", "--weight=three=2", "--drain=three", "--zone=three=z", "--capacity=three=none"] {
        assert!(refused(&stage, &["predict", change]).contains("no node three is alive; alive: one, two"), "{change}");
    }
    assert!(refused(&stage, &["predict", "--joins", "one"]).contains("alive already"));
    assert!(refused(&stage, &["predict", "--units", "feed=2"]).contains("there are: inbox"));
    drop((one, two));
    stage.report().assert_good();
}
