//! The agent against a real Redis server, with real children that write down when they run.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use rendez::Slot;
use rendez_testkit::agents::{Agent, AgentStage, CLUSTER};
use rendez_testkit::servers::RedisServer;
use rustix::process::Signal;
use serde_json::Value;

use crate::processes::{parent_of, runs, signal, try_for, wait_for};

/// Four slots, with a session that does not end while a test waits.
const SLOTS: u32 = 4;
const LONG_TTL: &str = "120s";

struct Stage {
    redis: RedisServer,
    agents: AgentStage,
}

impl Stage {
    async fn new() -> Self {
        let redis = RedisServer::builder().start().await.unwrap();
        let agents = AgentStage::new(env!("CARGO_BIN_EXE_rendez"), redis.url(), SLOTS).unwrap();
        Self { redis, agents }
    }

    fn agent(&self, node: &str, ttl: &str, probe_options: &[&str]) -> Agent {
        self.agents.start(node, &options(ttl), probe_options).unwrap()
    }

    /// Judges all records that there are.
    fn check(&self) {
        self.agents.judge().unwrap().assert_good();
    }

    fn status(&self) -> Value {
        let output = Command::new(env!("CARGO_BIN_EXE_rendez"))
            .args(["status", "--store", &self.redis.url(), "--cluster", CLUSTER, "--json"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

fn options(ttl: &str) -> [&str; 6] {
    ["--session-ttl", ttl, "--drain-timeout", "10s", "--connect-timeout", "20s"]
}

/// What tests ask of an agent; they wait, and panic where it is in vain.
trait AgentExt {
    /// The slots that its children run now.
    fn slots(&mut self) -> BTreeSet<Slot>;
    /// Waits until it runs so many slots, and returns the children.
    fn wait_until_it_runs(&mut self, count: u32) -> Vec<i32>;
    fn exit_code(&mut self) -> Option<i32>;
}

impl AgentExt for Agent {
    fn slots(&mut self) -> BTreeSet<Slot> {
        self.running().unwrap().into_iter().map(|record| record.slot).collect()
    }

    fn wait_until_it_runs(&mut self, count: u32) -> Vec<i32> {
        let found = try_for(|| (self.slots().len() == count as usize).then_some(()));
        assert!(found.is_some(), "waited in vain for {count} slots; it says: {}", self.said());
        self.running().unwrap().into_iter().map(|record| i32::try_from(record.pid).unwrap()).collect()
    }

    fn exit_code(&mut self) -> Option<i32> {
        let status = try_for(|| self.ended().unwrap());
        status.unwrap_or_else(|| panic!("waited in vain for the agent's end; it says: {}", self.said())).code()
    }
}

#[tokio::test]
async fn two_agents_share_and_one_that_is_told_to_end_hands_over() {
    let stage = Stage::new().await;
    let mut one = stage.agent("one", "5s", &[]);
    one.wait_until_it_runs(SLOTS);
    let mut two = stage.agent("two", "5s", &[]);
    wait_for("both to run", || (!two.slots().is_empty() && !one.slots().is_empty()).then_some(()));
    wait_for("all slots to run", || (two.slots().len() + one.slots().len() == SLOTS as usize).then_some(()));
    one.signal(Signal::TERM).unwrap();
    assert_eq!(one.exit_code(), Some(0), "{}", one.said());
    two.wait_until_it_runs(SLOTS);
    let status = stage.status();
    assert_eq!(status["nodes"].as_array().unwrap().len(), 1, "{status:#}");
    assert_eq!(status["workloads"][0]["held"], SLOTS, "{status:#}");
    drop(two);
    stage.check();
}

#[tokio::test]
async fn when_an_agent_is_killed_its_slots_are_free_at_once_and_nothing_overlaps() {
    let stage = Stage::new().await;
    let mut one = stage.agent("one", LONG_TTL, &["--ignore-term", "--fork-detached"]);
    one.wait_until_it_runs(SLOTS);
    let mut two = stage.agent("two", LONG_TTL, &[]);
    wait_for("the other node", || (stage.status()["nodes"].as_array().unwrap().len() == 2).then_some(()));
    one.signal(Signal::KILL).unwrap();
    // The session would live for two minutes.
    two.wait_until_it_runs(SLOTS);
    assert!(one.slots().is_empty());
    drop(two);
    stage.check();
}

#[tokio::test]
async fn a_frozen_agent_overlaps_with_nobody_and_comes_back() {
    let stage = Stage::new().await;
    let mut one = stage.agent("one", "3s", &["--ignore-term", "--fork-detached"]);
    one.wait_until_it_runs(SLOTS);
    let mut two = stage.agent("two", "3s", &[]);
    wait_for("the other node", || (stage.status()["nodes"].as_array().unwrap().len() == 2).then_some(()));
    one.signal(Signal::STOP).unwrap();
    two.wait_until_it_runs(SLOTS);
    assert!(one.slots().is_empty());
    one.signal(Signal::CONT).unwrap();
    wait_for("its return", || (!one.slots().is_empty()).then_some(()));
    drop((one, two));
    stage.check();
}

#[tokio::test]
async fn an_outage_of_the_store_is_ridden_out() {
    let mut stage = Stage::new().await;
    let mut one = stage.agent("one", "3s", &[]);
    let before = one.wait_until_it_runs(SLOTS);
    stage.redis.stop().unwrap();
    wait_for("the end of all children", || before.iter().all(|pid| !runs(*pid)).then_some(()));
    stage.redis.resume().unwrap();
    one.wait_until_it_runs(SLOTS);
    drop(one);
    stage.check();
}

#[tokio::test]
async fn when_the_guardian_is_killed_the_agent_kills_says_so_and_goes_on_with_another() {
    let stage = Stage::new().await;
    let mut one = stage.agent("one", LONG_TTL, &["--ignore-term", "--fork-detached"]);
    let children = one.wait_until_it_runs(SLOTS);
    let guardian = parent_of(parent_of(children[0]));
    assert_eq!(parent_of(guardian), one.pid());
    signal(guardian, Signal::KILL);
    wait_for("the end of the children", || children.iter().all(|pid| !runs(*pid)).then_some(()));
    wait_for("its words", || one.said().contains("the guardian was killed").then_some(()));
    // Its slots were let go properly, and its name too: that session would live for two minutes.
    let again = one.wait_until_it_runs(SLOTS);
    assert!(again.iter().all(|pid| parent_of(parent_of(*pid)) != guardian));
    drop(one);
    stage.check();
}

#[tokio::test]
async fn told_twice_it_ends_at_once_and_lets_go_all_the_same() {
    let stage = Stage::new().await;
    let mut one = stage.agent("one", LONG_TTL, &["--ignore-term"]);
    one.wait_until_it_runs(SLOTS);
    one.signal(Signal::TERM).unwrap();
    wait_for("the first answer", || one.said().contains("once more").then_some(()));
    one.signal(Signal::TERM).unwrap();
    assert_eq!(one.exit_code(), Some(0), "{}", one.said());
    let mut two = stage.agent("two", LONG_TTL, &[]);
    two.wait_until_it_runs(SLOTS);
    drop((one, two));
    stage.check();
}

#[tokio::test]
async fn commands_have_their_placeholders_and_environment() {
    let stage = Stage::new().await;
    let script =
        "echo \"{slot} {unit} $RENDEZ_CLUSTER/$RENDEZ_NODE $RENDEZ_SLOT [$RENDEZ_CONFIG_ZONE]\"; exec sleep 60";
    let environment = [("RENDEZ_CONFIG_ZONE", "hunter2")];
    let one = stage.agents.start_with("one", &options("5s"), &["sh", "-c", script], &environment).unwrap();
    let expected = format!("inbox/3 | inbox/3 3 {CLUSTER}/one inbox/3 []\n");
    wait_for("the line of a child", || one.out().contains(&expected).then_some(()));
}

#[tokio::test]
async fn a_name_in_use_and_stores_that_refuse_have_exit_codes_of_their_own() {
    let stage = Stage::new().await;
    let mut one = stage.agent("one", "5s", &[]);
    one.wait_until_it_runs(SLOTS);
    let rendez = |store: &str, more: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_rendez"))
            .args(["agent", "--store", store, "--cluster", CLUSTER, "--node", "one", "--workload", "inbox=4"])
            .args(["--session-ttl", "5s", "--connect-timeout", "2s"])
            .args(more)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = rendez(&stage.redis.url(), &["--no-wait"]);
    assert_eq!(code, Some(4), "{said}");
    let (code, said) = rendez(&format!("{}/9999", stage.redis.url().trim_end_matches('/')), &[]);
    assert_eq!(code, Some(3), "{said}");

    let locked = RedisServer::builder().password("right").start().await.unwrap();
    let (code, said) = rendez(&locked.url().replace("right", "hunter2"), &[]);
    assert_eq!(code, Some(3), "{said}");
    assert!(!said.contains("hunter2") && !said.contains("right"), "{said}");

    let no_redis = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = no_redis.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in no_redis.incoming().flatten() {
            let _ = stream.write_all(b"220 mail.example.org ESMTP\r\n");
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let (code, said) = rendez(&format!("redis://127.0.0.1:{port}"), &[]);
    assert_eq!(code, Some(3), "{said}");
}

#[test]
fn a_command_can_be_tried_out_without_a_server() {
    let folder = tempfile::tempdir().unwrap();
    let (out, err) = (folder.path().join("out"), folder.path().join("err"));
    let process = Command::new(env!("CARGO_BIN_EXE_rendez"))
        .args(["agent", "--store", "memory:", "--cluster", "c", "--workload", "x=1", "--session-ttl", "3s", "--"])
        .args(["sh", "-c", "echo here; exec sleep 60"])
        .stdout(File::create(&out).unwrap())
        .stderr(File::create(&err).unwrap())
        .spawn()
        .unwrap();
    let mut agent = Agent::of(process, out, err);
    wait_for("the line of the child", || (agent.out() == "x/0 | here\n").then_some(()));
    agent.signal(Signal::TERM).unwrap();
    assert_eq!(agent.exit_code(), Some(0), "{}", agent.said());
}
