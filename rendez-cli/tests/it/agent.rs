//! The agent against a real Redis server, with real children that write down when they run.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rendez_testkit::checker::Checker;
use rendez_testkit::probe;
use rendez_testkit::servers::RedisServer;
use rustix::process::Signal;
use serde_json::Value;

use crate::processes::{parent_of, runs, signal, wait_for};

/// Four slots, with a session that does not end while a test waits.
const SLOTS: u32 = 4;
const LONG_TTL: &str = "120s";

struct Stage {
    redis: RedisServer,
    folder: tempfile::TempDir,
}

impl Stage {
    async fn new() -> Self {
        Self { redis: RedisServer::builder().start().await.unwrap(), folder: tempfile::tempdir().unwrap() }
    }

    fn agent(&self, node: &str, ttl: &str, probe_options: &[&str]) -> Agent {
        let records = self.folder.path().join(format!("{node}.records"));
        let probe = probe::path().unwrap();
        let place = self.folder.path().join("{node}.records");
        let mut command = vec![probe.to_str().unwrap(), place.to_str().unwrap()];
        command.extend(probe_options);
        self.agent_with(node, ttl, &command, records)
    }

    fn agent_with(&self, node: &str, ttl: &str, command: &[&str], records: PathBuf) -> Agent {
        let err = self.folder.path().join(format!("{node}.err"));
        let out = self.folder.path().join(format!("{node}.out"));
        let process = Command::new(env!("CARGO_BIN_EXE_rendez"))
            .env("RENDEZ_CONFIG_ZONE", "hunter2")
            .args(["agent", "--store", &self.redis.url(), "--cluster", "c", "--node", node, "--session-ttl", ttl])
            .args(["--workload", &format!("inbox={SLOTS}"), "--drain-timeout", "10s", "--connect-timeout", "20s", "--"])
            .args(command)
            .stdin(Stdio::null())
            .stdout(File::create(&out).unwrap())
            .stderr(File::create(&err).unwrap())
            .spawn()
            .unwrap();
        Agent { process, records, out, err }
    }

    /// Judges all records that there are.
    fn check(&self) {
        let mut checker = Checker::new();
        for entry in fs::read_dir(self.folder.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "records") {
                checker.read_file(&path).unwrap();
            }
        }
        checker.finish().assert_good();
    }

    fn status(&self) -> Value {
        let output = Command::new(env!("CARGO_BIN_EXE_rendez"))
            .args(["status", "--store", &self.redis.url(), "--cluster", "c", "--json"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

struct Agent {
    process: Child,
    records: PathBuf,
    out: PathBuf,
    err: PathBuf,
}

impl Agent {
    fn pid(&self) -> i32 {
        i32::try_from(self.process.id()).unwrap()
    }

    /// The slots that its children have begun and not ended, with their processes, of which some may be dead.
    fn begun(&self) -> Vec<(String, i32)> {
        begun(&self.records)
    }

    /// The slots that its children run now.
    fn running(&self) -> BTreeSet<String> {
        self.begun().into_iter().filter(|(_, pid)| runs(*pid)).map(|(slot, _)| slot).collect()
    }

    fn wait_until_it_runs(&self, count: u32) -> Vec<i32> {
        wait_for(&format!("{count} slots; it says: {}", self.said()), || {
            (self.running().len() == count as usize).then_some(())
        });
        self.begun().into_iter().map(|(_, pid)| pid).filter(|pid| runs(*pid)).collect()
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.err).unwrap_or_default()
    }

    fn signal(&self, which: Signal) {
        signal(self.pid(), which);
    }

    fn exit_code(&mut self) -> Option<i32> {
        let status =
            wait_for(&format!("the agent's end; it says: {}", self.said()), || self.process.try_wait().unwrap());
        status.code()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            let _ = std::io::stderr().write_all(self.said().as_bytes());
        }
    }
}

/// `begin SLOT TOKEN NODE PID TIME` without its `end`.
fn begun(records: &Path) -> Vec<(String, i32)> {
    let text = fs::read_to_string(records).unwrap_or_default();
    let mut begun: Vec<(String, String, i32)> = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["begin", slot, token, _, pid, _] => begun.push((slot.to_owned(), token.to_owned(), pid.parse().unwrap())),
            ["end", slot, token, ..] => begun.retain(|(s, t, _)| s != slot || t != token),
            _ => {}
        }
    }
    begun.into_iter().map(|(slot, _, pid)| (slot, pid)).collect()
}

#[tokio::test]
async fn two_agents_share_and_one_that_is_told_to_end_hands_over() {
    let stage = Stage::new().await;
    let mut one = stage.agent("one", "5s", &[]);
    one.wait_until_it_runs(SLOTS);
    let two = stage.agent("two", "5s", &[]);
    wait_for("both to run", || (!two.running().is_empty() && !one.running().is_empty()).then_some(()));
    wait_for("all slots to run", || (two.running().len() + one.running().len() == SLOTS as usize).then_some(()));
    one.signal(Signal::TERM);
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
    let one = stage.agent("one", LONG_TTL, &["--ignore-term", "--fork-detached"]);
    one.wait_until_it_runs(SLOTS);
    let two = stage.agent("two", LONG_TTL, &[]);
    wait_for("the other node", || (stage.status()["nodes"].as_array().unwrap().len() == 2).then_some(()));
    one.signal(Signal::KILL);
    // The session would live for two minutes.
    two.wait_until_it_runs(SLOTS);
    assert!(one.running().is_empty());
    drop(two);
    stage.check();
}

#[tokio::test]
async fn a_frozen_agent_overlaps_with_nobody_and_comes_back() {
    let stage = Stage::new().await;
    let one = stage.agent("one", "3s", &["--ignore-term", "--fork-detached"]);
    one.wait_until_it_runs(SLOTS);
    let two = stage.agent("two", "3s", &[]);
    wait_for("the other node", || (stage.status()["nodes"].as_array().unwrap().len() == 2).then_some(()));
    one.signal(Signal::STOP);
    two.wait_until_it_runs(SLOTS);
    assert!(one.running().is_empty());
    one.signal(Signal::CONT);
    wait_for("its return", || (!one.running().is_empty()).then_some(()));
    drop((one, two));
    stage.check();
}

#[tokio::test]
async fn an_outage_of_the_store_is_ridden_out() {
    let mut stage = Stage::new().await;
    let one = stage.agent("one", "3s", &[]);
    let before = one.wait_until_it_runs(SLOTS);
    stage.redis.stop().unwrap();
    wait_for("the end of all children", || before.iter().all(|pid| !runs(*pid)).then_some(()));
    stage.redis.resume().unwrap();
    one.wait_until_it_runs(SLOTS);
    drop(one);
    stage.check();
}

#[tokio::test]
async fn when_the_guardian_is_killed_the_agent_kills_and_says_so() {
    let stage = Stage::new().await;
    let mut one = stage.agent("one", LONG_TTL, &["--ignore-term", "--fork-detached"]);
    let children = one.wait_until_it_runs(SLOTS);
    let guardian = parent_of(parent_of(children[0]));
    assert_eq!(parent_of(guardian), one.pid());
    signal(guardian, Signal::KILL);
    assert_eq!(one.exit_code(), Some(1), "{}", one.said());
    assert!(one.running().is_empty());
    assert!(one.said().contains("the guardian was killed"), "{}", one.said());
    // Let go properly: the session would live for two minutes.
    let two = stage.agent("two", LONG_TTL, &[]);
    two.wait_until_it_runs(SLOTS);
    drop(two);
    stage.check();
}

#[tokio::test]
async fn told_twice_it_ends_at_once_and_lets_go_all_the_same() {
    let stage = Stage::new().await;
    let mut one = stage.agent("one", LONG_TTL, &["--ignore-term"]);
    one.wait_until_it_runs(SLOTS);
    one.signal(Signal::TERM);
    wait_for("the first answer", || one.said().contains("once more").then_some(()));
    one.signal(Signal::TERM);
    assert_eq!(one.exit_code(), Some(0), "{}", one.said());
    let two = stage.agent("two", LONG_TTL, &[]);
    two.wait_until_it_runs(SLOTS);
    drop((one, two));
    stage.check();
}

#[tokio::test]
async fn commands_have_their_placeholders_and_environment() {
    let stage = Stage::new().await;
    let script =
        "echo \"{slot} {unit} $RENDEZ_CLUSTER/$RENDEZ_NODE $RENDEZ_SLOT [$RENDEZ_CONFIG_ZONE]\"; exec sleep 60";
    let one = stage.agent_with("one", "5s", &["sh", "-c", script], PathBuf::new());
    let expected = "inbox/3 | inbox/3 3 c/one inbox/3 []\n";
    wait_for("the line of a child", || fs::read_to_string(&one.out).unwrap().contains(expected).then_some(()));
}

#[tokio::test]
async fn a_name_in_use_and_stores_that_refuse_have_exit_codes_of_their_own() {
    let stage = Stage::new().await;
    let one = stage.agent("one", "5s", &[]);
    one.wait_until_it_runs(SLOTS);
    let rendez = |store: &str, more: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_rendez"))
            .args(["agent", "--store", store, "--cluster", "c", "--node", "one", "--workload", "inbox=4"])
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
    let out = folder.path().join("out");
    let process = Command::new(env!("CARGO_BIN_EXE_rendez"))
        .args(["agent", "--store", "memory:", "--cluster", "c", "--workload", "x=1", "--session-ttl", "3s", "--"])
        .args(["sh", "-c", "echo here; exec sleep 60"])
        .stdout(File::create(&out).unwrap())
        .stderr(File::create(folder.path().join("err")).unwrap())
        .spawn()
        .unwrap();
    let mut agent = Agent { process, records: PathBuf::new(), err: folder.path().join("err"), out };
    wait_for("the line of the child", || (fs::read_to_string(&agent.out).unwrap() == "x/0 | here\n").then_some(()));
    agent.signal(Signal::TERM);
    assert_eq!(agent.exit_code(), Some(0), "{}", agent.said());
}
