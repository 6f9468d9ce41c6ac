//! Commands that fail, end, do not end, or take their time, beside others that do not care.

use rendez_testkit::servers::RedisServer;
use rustix::process::Signal;

use crate::stage::{Running, Stage};

/// The slots of the workload that behaves.
fn good(running: &Running) -> Running {
    running
        .iter()
        .filter(|(slot, _)| slot.starts_with("good/"))
        .map(|(slot, run)| (slot.clone(), run.clone()))
        .collect()
}

/// A command that gets these options for the workload that does not behave.
fn bad(options: &str) -> String {
    format!("case {{workload}} in bad) exec \"$@\" {options};; *) exec \"$@\";; esac")
}

/// A slot whose command ends again and again, on one node, then on the other.
async fn ends(options: &str, said: &str) {
    let redis = RedisServer::builder().start().await.unwrap();
    let stage = Stage::new(&redis.url());
    let launch = |node| stage.agent(node).script(&bad(options)).set("give_up_after", "3");
    let one = launch("one").workloads(&["good=4", "bad=1"]).start();
    let before = stage.wait("the good slots", |running| good(running).len() == 4);
    stage.wait_that("one node to give it up", || one.says("bad/0 is given up after 3 failures in a row"));
    for words in [said, "bad/0 starts again in", "(1 failures in a row)", "(2 failures in a row)"] {
        assert!(one.says(words), "{words:?} is not in {}", one.said());
    }
    // It runs nothing else, so that there is no other reason to move anything.
    let two = launch("two").workloads(&["bad=1"]).start();
    stage.wait_that("the other one to give it up", || two.says("bad/0 is given up after 3 failures in a row"));
    stage.wait_that("the orphan and its reason", || {
        let orphans = stage.orphans();
        orphans.len() == 1 && orphans[0].contains("every node that could run it has refused it")
    });
    assert_eq!(good(&stage.running()), good(&before));
    drop((one, two));
    let report = stage.report();
    report.assert_good();
    let runs = &report.runs[&"bad/0".parse().unwrap()];
    for node in ["one", "two"] {
        assert_eq!(runs.iter().filter(|run| run.node.as_str() == node).count(), 3, "{runs:?}");
    }
}

#[tokio::test]
async fn a_command_that_fails_is_given_up_and_another_node_tries() {
    ends("--exit-after-ms 0 --exit-code 3", "bad/0 has ended: it failed: its command exited with code 3").await;
}

#[tokio::test]
async fn a_command_that_ends_at_once_is_given_up_and_another_node_tries() {
    ends("--exit-after-ms 0", "bad/0 has ended").await;
}

#[tokio::test]
async fn a_command_that_ignores_its_stop_is_killed_with_its_descendants_before_the_next_one_begins() {
    let redis = RedisServer::builder().start().await.unwrap();
    let stage = Stage::new(&redis.url());
    let launch = |node| stage.agent(node).script(&bad("--ignore-term --fork")).workloads(&["good=4", "bad=2"]);
    let mut one = launch("one").start();
    stage.wait_for_slots(6);
    let two = launch("two").start();
    stage.wait_that("the other node", || two.says("takes part now"));
    one.signal(Signal::TERM);
    assert_eq!(one.exit_code(), Some(0), "{}", one.said());
    stage.wait_for_shares(&[("two", 6)]);
    drop((one, two));
    let report = stage.report();
    report.assert_good();
    let killed = report.runs.iter().filter(|(slot, _)| slot.workload.as_str() == "bad");
    assert!(killed.flat_map(|(_, runs)| runs).all(|run| !run.ended));
}

#[tokio::test]
async fn a_command_that_takes_long_to_stop_delays_no_other_slot() {
    let redis = RedisServer::builder().start().await.unwrap();
    let stage = Stage::new(&redis.url());
    let launch = |node| {
        let launch = stage.agent(node).script(&bad("--stop-ms 5000")).workloads(&["good=4", "bad=1"]);
        launch.ttl("24s").option("--stop-budget", "10s")
    };
    let mut one = launch("one").start();
    stage.wait_for_slots(5);
    let two = launch("two").start();
    stage.wait_that("the other node", || two.says("takes part now"));
    one.signal(Signal::TERM);
    assert_eq!(one.exit_code(), Some(0), "{}", one.said());
    stage.wait_for_shares(&[("two", 5)]);
    drop((one, two));
    let report = stage.report();
    report.assert_good();
    let slow = &report.runs[&"bad/0".parse().unwrap()];
    let slow = slow.iter().rev().find(|run| run.node.as_str() == "one").unwrap();
    assert!(slow.ended, "it was killed: {slow:?}");
    for (slot, runs) in report.runs.iter().filter(|(slot, _)| slot.workload.as_str() == "good") {
        assert!(runs.last().unwrap().begin < slow.until, "{slot} waited for {slow:?}: {runs:?}");
    }
}

#[tokio::test]
async fn what_an_ended_command_leaves_behind_is_gone_before_it_starts_again() {
    let redis = RedisServer::builder().start().await.unwrap();
    let stage = Stage::new(&redis.url());
    let one = stage.agent("one").script(&bad("--exit-after-ms 200 --fork")).workloads(&["good=2", "bad=2"]).start();
    stage.wait_that("a third try", || one.said().matches("(2 failures in a row)").count() == 2);
    let before = good(&stage.running());
    stage.wait_that("a fourth try", || one.said().matches("(3 failures in a row)").count() == 2);
    assert_eq!(good(&stage.running()), before);
    drop(one);
    stage.report().assert_good();
}

#[tokio::test]
async fn a_command_that_takes_longer_to_stop_than_it_may_is_killed() {
    let redis = RedisServer::builder().start().await.unwrap();
    let stage = Stage::new(&redis.url());
    let launch = |node| stage.agent(node).script(&bad("--stop-ms 20000")).workloads(&["good=4", "bad=2"]).ttl("10s");
    let mut one = launch("one").start();
    stage.wait_for_slots(6);
    let two = launch("two").start();
    stage.wait_that("the other node", || two.says("takes part now"));
    one.signal(Signal::TERM);
    assert_eq!(one.exit_code(), Some(0), "{}", one.said());
    stage.wait_for_shares(&[("two", 6)]);
    drop((one, two));
    let report = stage.report();
    report.assert_good();
    let bad = report.runs.iter().filter(|(slot, _)| slot.workload.as_str() == "bad");
    assert!(bad.flat_map(|(_, runs)| runs).all(|run| !run.ended));
}
