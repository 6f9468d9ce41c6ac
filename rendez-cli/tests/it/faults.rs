//! Nodes that join, leave, freeze, die, are full, or have one name.

use std::collections::BTreeSet;

use rendez_core::Timestamp;
use rendez_testkit::clock;
use rendez_testkit::servers::RedisServer;
use rustix::process::Signal;

use crate::processes::{descendants_of, freeze_all, parent_of, signal_if_there};
use crate::stage::{Launch, Running, Stage, TTL, shares_of};

async fn redis() -> RedisServer {
    RedisServer::builder().start().await.unwrap()
}

/// The slots that one node runs.
pub(crate) fn of<'a>(running: &'a Running, node: &str) -> BTreeSet<&'a String> {
    running.iter().filter(|(_, (runner, _))| runner == node).map(|(slot, _)| slot).collect()
}

pub(crate) fn sleep_until(time: Timestamp) {
    std::thread::sleep(time.since(clock::now()));
}

#[tokio::test]
async fn a_cap_leaves_orphans_with_a_reason() {
    let redis = redis().await;
    let stage = Stage::new(&redis.url());
    let agent = |node| stage.agent(node).workloads(&["inbox=12"]).option("--capacity", "3").start();
    let agents = ["one", "two", "three"].map(agent);
    stage.wait_for_shares(&[("one", 3), ("two", 3), ("three", 3)]);
    stage.wait_that("three orphans with their reason", || {
        let orphans = stage.orphans();
        orphans.len() == 3 && orphans.iter().all(|orphan| orphan.contains("every node that could run it is at its cap"))
    });
    drop(agents);
    stage.report().assert_good();
}

#[tokio::test]
async fn what_a_full_node_cannot_take_runs_on_the_next() {
    let redis = redis().await;
    let stage = Stage::new(&redis.url());
    let agent = |node| stage.agent(node).workloads(&["inbox=12"]);
    let full = agent("full").option("--capacity", "1").start();
    stage.wait_for_slots(1);
    let others = [agent("one").start(), agent("two").start()];
    let running = stage.wait_for_slots(12);
    assert_eq!(shares_of(&running).get("full"), Some(&1), "{running:?}");
    drop((full, others));
    stage.report().assert_good();
}

#[tokio::test]
async fn of_two_processes_with_one_name_the_second_waits_for_the_end_of_the_first() {
    let redis = redis().await;
    let stage = Stage::new(&redis.url());
    let launch = |name: &'static str| -> Launch<'_> { stage.agent("one").name(name) };
    let first = launch("first").start();
    let before = stage.wait_for_slots(4);
    let second = launch("second").start();
    stage.wait_that("the second to say why it waits", || second.says("is node one: waiting until its session ends"));
    assert!(first.said().matches("takes part now").count() == 1 && !second.says("takes part now"));
    // Longer than a session lives without heartbeats.
    sleep_until(clock::now() + 2 * TTL);
    assert_eq!(stage.running(), before);
    assert!(!stage.records("second").exists());

    let mut all = freeze_all(first.pid());
    all.extend(descendants_of(first.pid()));
    all.iter().for_each(|pid| signal_if_there(*pid, Signal::KILL));
    let after = stage.wait("the second to take over", |running| {
        running.len() == 4 && running.iter().all(|(slot, run)| before[slot] != *run)
    });
    assert!(after.values().all(|(_, pid)| descends(*pid, second.pid())), "{after:?}");
    drop((first, second));
    stage.report().assert_good();
}

fn descends(mut pid: i32, from: i32) -> bool {
    while pid > 1 && pid != from {
        pid = parent_of(pid);
    }
    pid == from
}

#[tokio::test]
async fn nodes_that_are_all_told_to_end_at_once_end() {
    let redis = redis().await;
    let stage = Stage::new(&redis.url());
    let agent = |node| stage.agent(node).workloads(&["inbox=9"]).start();
    let mut agents = ["one", "two", "three"].map(agent);
    stage.wait_for_shares(&[("one", 3), ("two", 3), ("three", 3)]);
    agents.iter().for_each(|agent| agent.signal(Signal::TERM));
    for agent in &mut agents {
        assert_eq!(agent.exit_code(), Some(0), "{}", agent.said());
    }
    assert!(stage.running().is_empty());
    let status = stage.status();
    assert!(status["nodes"].as_array().unwrap().is_empty(), "{status:#}");
    drop(agents);
    stage.report().assert_good();
}

#[tokio::test]
async fn two_of_three_nodes_that_die_at_once_leave_all_to_the_third() {
    let redis = redis().await;
    let stage = Stage::new(&redis.url());
    let agent = |node| stage.agent(node).workloads(&["inbox=9"]).probe(&["--ignore-term", "--fork-detached"]).start();
    let agents = ["one", "two", "three"].map(agent);
    let before = stage.wait_for_shares(&[("one", 3), ("two", 3), ("three", 3)]);
    agents[..2].iter().for_each(|agent| agent.signal(Signal::KILL));
    let after = stage.wait_for_shares(&[("three", 9)]);
    assert!(of(&before, "three").iter().all(|slot| before[*slot] == after[*slot]), "{before:?}\n{after:?}");
    drop(agents);
    stage.report().assert_good();
}

#[tokio::test]
async fn a_node_whose_guardian_stands_still_lets_go_and_takes_another() {
    let redis = redis().await;
    let stage = Stage::new(&redis.url());
    let agent = |node| stage.agent(node).probe(&["--ignore-term", "--fork-detached"]).start();
    let (mut one, two) = (agent("one"), agent("two"));
    let before = stage.wait_for_shares(&[("one", 2), ("two", 2)]);
    let guardian = parent_of(parent_of(before[*of(&before, "one").first().unwrap()].1));
    assert_eq!(parent_of(guardian), one.pid());
    signal_if_there(guardian, Signal::STOP);
    stage.wait("all that it ran to run anew", |running| {
        running.len() == 4 && of(&before, "one").iter().all(|slot| running[*slot] != before[*slot])
    });
    assert!(one.says("the guardian has not answered"), "{}", one.said());
    one.signal(Signal::TERM);
    assert_eq!(one.exit_code(), Some(0), "{}", one.said());
    drop((one, two));
    stage.report().assert_good();
}

#[tokio::test]
async fn a_guardian_that_stands_still_for_a_moment_is_forgiven() {
    let redis = redis().await;
    let stage = Stage::new(&redis.url());
    let mut one = stage.agent("one").ttl("20s").start();
    let before = stage.wait_for_slots(4);
    let guardian = parent_of(parent_of(before["inbox/0"].1));
    signal_if_there(guardian, Signal::STOP);
    sleep_until(clock::now() + TTL);
    signal_if_there(guardian, Signal::CONT);
    sleep_until(clock::now() + TTL);
    assert_eq!(stage.running(), before);
    one.signal(Signal::TERM);
    assert_eq!(one.exit_code(), Some(0), "{}", one.said());
    stage.report().assert_good();
}

#[tokio::test]
async fn children_whose_keepers_are_frozen_are_killed_all_the_same() {
    let redis = redis().await;
    let stage = Stage::new(&redis.url());
    let agent = |node| stage.agent(node).probe(&["--ignore-term", "--fork"]).start();
    let (mut one, two) = (agent("one"), agent("two"));
    let before = stage.wait_for_shares(&[("one", 2), ("two", 2)]);
    for slot in of(&before, "one") {
        signal_if_there(parent_of(before[slot].1), Signal::STOP);
    }
    one.signal(Signal::TERM);
    let code = one.exit_code();
    stage.wait_for_shares(&[("two", 4)]);
    drop((one, two));
    stage.report().assert_good();
    assert_eq!(code, Some(0));
}
