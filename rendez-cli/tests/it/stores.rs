//! Redis that stands still, comes back without its data, or fails over, under agents that nobody restarts.

use std::collections::BTreeMap;

use rendez_core::{FencingToken, Slot};
use rendez_testkit::clock;
use rendez_testkit::servers::{RedisCluster, RedisSentinelSet, RedisServer, Restart};
use rustix::process::Signal;

use crate::processes::runs;
use crate::stage::{Agent, Stage, TTL, shares_of};

const SLOTS: usize = 8;

/// Two agents that share all slots.
fn two(stage: &Stage, set: &[(&str, &str)]) -> [Agent; 2] {
    let agents = ["one", "two"].map(|node| {
        let launch = stage.agent(node).workloads(&["inbox=8"]);
        set.iter().fold(launch, |launch, (key, value)| launch.set(key, value)).start()
    });
    stage.wait_for_shares(&[("one", SLOTS / 2), ("two", SLOTS / 2)]);
    agents
}

/// The highest token of each slot that was ever run.
fn tokens(stage: &Stage) -> BTreeMap<Slot, FencingToken> {
    let report = stage.report();
    report.runs.into_iter().map(|(slot, runs)| (slot, runs.iter().map(|run| run.token).max().unwrap())).collect()
}

/// All runs again, in the same agents; then one is told to end, so that the other has new tokens for what it had.
fn judge(stage: &Stage, agents: [Agent; 2]) {
    stage.wait_for_slots(SLOTS);
    let [mut one, mut two] = agents;
    assert!(one.goes_on() && two.goes_on());
    let before = tokens(stage);
    one.signal(Signal::TERM);
    assert_eq!(one.exit_code(), Some(0), "{}", one.said());
    stage.wait_for_shares(&[("two", SLOTS)]);
    let after = tokens(stage);
    assert!(before.iter().any(|(slot, token)| after[slot] > *token), "nothing was handed over");
    assert!(two.goes_on());
    drop((one, two));
    stage.report().assert_good();
}

/// Waits until no child of before runs any more.
fn wait_for_the_end_of_all(stage: &Stage) {
    stage.wait("the end of all", |running| running.is_empty());
}

#[tokio::test]
async fn a_short_freeze_of_the_store_is_not_noticed_by_the_children() {
    let mut redis = RedisServer::builder().start().await.unwrap();
    let stage = Stage::new(&redis.url());
    let agents = ["one", "two"].map(|node| stage.agent(node).ttl("20s").set("runtime_min", "1s").start());
    let before = stage.wait_for_shares(&[("one", 2), ("two", 2)]);
    redis.stop().unwrap();
    let stopped = clock::now();
    // Heartbeats are sent every 4 s, and fail after half a second.
    stage.wait_that("both to notice", || agents.iter().all(|agent| agent.says("the store is in trouble")));
    redis.resume().unwrap();
    stage.wait_that("both to be back", || agents.iter().all(|agent| agent.says("the store answers again")));
    // Sessions that were lost would end their children by now.
    std::thread::sleep(TTL);
    assert_eq!(stage.running(), before);
    drop(agents);
    let report = stage.report();
    report.assert_good();
    assert!(report.runs.values().flatten().all(|run| run.begin < stopped), "{report}");
}

#[tokio::test]
async fn a_long_freeze_of_the_store_ends_every_child_by_its_deadline() {
    let mut redis = RedisServer::builder().start().await.unwrap();
    let stage = Stage::new(&redis.url());
    let agents = ["one", "two"]
        .map(|node| stage.agent(node).workloads(&["inbox=8"]).probe(&["--ignore-term", "--fork"]).start());
    let before = stage.wait_for_shares(&[("one", SLOTS / 2), ("two", SLOTS / 2)]);
    redis.stop().unwrap();
    let stopped = clock::now();
    wait_for_the_end_of_all(&stage);
    std::thread::sleep((stopped + 2 * TTL).since(clock::now()));
    assert!(before.values().all(|(_, pid)| !runs(*pid)));
    for run in stage.report().runs.values().flatten() {
        assert!(run.until <= stopped + TTL, "{run:?} went on after its deadline");
    }
    redis.resume().unwrap();
    judge(&stage, agents);
}

#[tokio::test]
async fn an_empty_restart_while_children_run_loses_nothing_but_time() {
    let mut redis = RedisServer::builder().start().await.unwrap();
    let stage = Stage::new(&redis.url());
    let agents = two(&stage, &[]);
    redis.restart(Restart::Empty).await.unwrap();
    stage.wait_that("both to notice", || agents.iter().all(|agent| agent.says("may have lost data")));
    judge(&stage, agents);
}

#[tokio::test]
async fn an_empty_restart_after_all_children_have_ended() {
    let mut redis = RedisServer::builder().start().await.unwrap();
    let stage = Stage::new(&redis.url());
    let agents = two(&stage, &[]);
    redis.kill().unwrap();
    wait_for_the_end_of_all(&stage);
    let before = tokens(&stage);
    redis.restart(Restart::Empty).await.unwrap();
    stage.wait_for_slots(SLOTS);
    let after = tokens(&stage);
    assert!(before.iter().all(|(slot, token)| after[slot] > *token), "{before:?}\n{after:?}");
    judge(&stage, agents);
}

#[tokio::test]
async fn a_restart_from_the_append_only_file() {
    let mut redis = RedisServer::builder().append_only(true).start().await.unwrap();
    let stage = Stage::new(&redis.url());
    let agents = two(&stage, &[]);
    redis.restart(Restart::Crashed).await.unwrap();
    stage.wait_that("both to notice", || agents.iter().all(|agent| agent.says("may have lost data")));
    judge(&stage, agents);
}

#[tokio::test]
async fn a_flush_while_slots_move() {
    let redis = RedisServer::builder().start().await.unwrap();
    let stage = Stage::new(&redis.url());
    let agents = two(&stage, &[]);
    let third = stage.agent("three").workloads(&["inbox=8"]).start();
    stage.wait_that("the third node", || third.says("takes part now"));
    redis.command(&["FLUSHALL"]).await.unwrap();
    stage.wait_that("all to notice", || agents.iter().all(|agent| agent.says("may have lost data")));
    redis.command(&["FLUSHALL"]).await.unwrap();
    stage.wait("all to run in the end", |running| {
        running.len() == SLOTS && running.values().any(|(node, _)| node == "three")
    });
    drop(third);
    judge(&stage, agents);
}

/// The primary dies while a third node joins; the old one comes back.
async fn fail_over(replicas: usize, set: &[(&str, &str)]) {
    let mut servers = RedisSentinelSet::builder().replicas(replicas).start().await.unwrap();
    let stage = Stage::new(&servers.url());
    let agents = two(&stage, set);
    let third = stage.agent("three").workloads(&["inbox=8"]);
    let third = set.iter().fold(third, |launch, (key, value)| launch.set(key, value)).start();
    stage.wait_that("the third node", || third.says("takes part now"));
    let old = servers.primary().await.unwrap();
    servers.servers[old].kill().unwrap();
    let new = servers.wait_for_failover(old).await.unwrap();
    assert_ne!(old, new);
    stage.wait_that("the new generation", || agents.iter().all(|agent| agent.says("may have lost data")));
    servers.servers[old].restart(Restart::Crashed).await.unwrap();
    stage.wait("all to run in the end", |running| {
        running.len() == SLOTS && running.values().any(|(node, _)| node == "three")
    });
    drop(third);
    judge(&stage, agents);
}

#[tokio::test]
async fn a_sentinel_failover_while_slots_move() {
    fail_over(1, &[]).await;
}

#[tokio::test]
async fn a_sentinel_failover_with_acknowledgement_while_slots_move() {
    fail_over(2, &[("store_options", "{ min_replicas = \"1\" }")]).await;
}

/// A restart that takes less time than the sessions have left: every child goes on, though nothing is granted.
async fn interrupts_nobody(how: Restart) {
    let mut redis = RedisServer::builder().start().await.unwrap();
    let stage = Stage::new(&redis.url());
    let agents = ["one", "two"].map(|node| stage.agent(node).ttl("15s").set("runtime_min", "1s").start());
    let before = stage.wait_for_shares(&[("one", 2), ("two", 2)]);
    let restarted = clock::now();
    redis.restart(how).await.unwrap();
    let goes_on = "goes on across the store's loss of data";
    stage.wait_that("all to be adopted again", || {
        agents.iter().map(|agent| agent.said().matches(goes_on).count()).sum::<usize>() == before.len()
    });
    // Their old deadlines are over then.
    std::thread::sleep((restarted + 6 * TTL).since(clock::now()));
    assert_eq!(stage.running(), before);
    drop(agents);
    stage.report().assert_good();
}

#[tokio::test]
async fn an_orderly_restart_interrupts_nobody() {
    interrupts_nobody(Restart::Saved).await;
}

#[tokio::test]
async fn a_quick_empty_restart_interrupts_nobody() {
    interrupts_nobody(Restart::Empty).await;
}

/// Who knows nothing of the cluster may ask first after a loss: a hold that is longer than a session excludes overlaps.
#[tokio::test]
async fn with_a_hold_newcomers_after_a_flush_wait_for_those_who_run() {
    let redis = RedisServer::builder().start().await.unwrap();
    let stage = Stage::new(&redis.url());
    let launch = |node| stage.agent(node).workloads(&["inbox=8"]).set("cold_start_hold", "4s");
    let mut agents = vec![launch("one").start(), launch("one").name("waits").start(), launch("two").start()];
    stage.wait_for_shares(&[("one", SLOTS / 2), ("two", SLOTS / 2)]);
    for node in ["three", "four"] {
        redis.command(&["FLUSHALL"]).await.unwrap();
        agents.push(launch(node).start());
        stage.wait("the newcomer to run something", |running| shares_of(running).contains_key(node));
    }
    stage.wait_for_slots(SLOTS);
    assert!(agents.iter_mut().all(Agent::goes_on));
    drop(agents);
    stage.report().assert_good();
}

#[tokio::test]
async fn a_node_that_is_frozen_while_the_store_loses_everything() {
    let redis = RedisServer::builder().start().await.unwrap();
    let stage = Stage::new(&redis.url());
    let agents = two(&stage, &[]);
    agents[0].signal(Signal::STOP);
    redis.command(&["FLUSHALL"]).await.unwrap();
    stage.wait_for_shares(&[("two", SLOTS)]);
    redis.command(&["FLUSHALL"]).await.unwrap();
    agents[0].signal(Signal::CONT);
    stage.wait("its return", |running| running.len() == SLOTS && shares_of(running).len() == 2);
    judge(&stage, agents);
}

/// The old primary stands still and wakes up when another one has long taken its place.
#[tokio::test]
async fn an_old_primary_that_wakes_up_is_left_alone() {
    let mut servers = RedisSentinelSet::builder().replicas(2).start().await.unwrap();
    let stage = Stage::new(&servers.url());
    let agents = two(&stage, &[("store_options", "{ min_replicas = \"1\" }")]);
    let old = servers.primary().await.unwrap();
    servers.servers[old].stop().unwrap();
    servers.wait_for_failover(old).await.unwrap();
    stage.wait_that("the new generation", || agents.iter().all(|agent| agent.says("may have lost data")));
    stage.wait_for_slots(SLOTS);
    servers.servers[old].resume().unwrap();
    servers.wait_ready().await.unwrap();
    judge(&stage, agents);
}

/// A node that ends, one that dies and one that joins, all while the store is away.
#[tokio::test]
async fn nodes_come_and_go_while_the_store_is_down() {
    let mut redis = RedisServer::builder().append_only(true).start().await.unwrap();
    let stage = Stage::new(&redis.url());
    let launch = |node| stage.agent(node).workloads(&["inbox=8"]).option("--drain-timeout", "5s");
    let mut ending = launch("ending").start();
    let dying = launch("dying").start();
    let staying = launch("staying").start();
    stage.wait("all to take part", |running| running.len() == SLOTS && shares_of(running).len() == 3);
    redis.kill().unwrap();
    ending.signal(Signal::TERM);
    dying.signal(Signal::KILL);
    let code = ending.exit_code();
    assert!(matches!(code, Some(0 | 1)), "{code:?}: {}", ending.said());
    let joining = launch("joining").option("--connect-timeout", "80s").start();
    stage.wait("the end of what ran", |running| running.is_empty());
    redis.restart(Restart::Crashed).await.unwrap();
    stage.wait_for_shares(&[("joining", SLOTS / 2), ("staying", SLOTS / 2)]);
    drop((dying, joining, staying));
    stage.report().assert_good();
}

/// Nothing that no replica has counts, so nothing runs for long; and nobody needs a restart afterwards.
#[tokio::test]
async fn without_the_replica_that_must_acknowledge_everything_ends_and_comes_back_with_it() {
    let mut servers = RedisSentinelSet::builder().start().await.unwrap();
    let stage = Stage::new(&servers.url());
    let agents = two(&stage, &[("store_options", "{ min_replicas = \"1\" }")]);
    let replica = 1 - servers.primary().await.unwrap();
    servers.servers[replica].kill().unwrap();
    wait_for_the_end_of_all(&stage);
    std::thread::sleep(TTL);
    assert!(stage.running().is_empty());
    servers.servers[replica].restart(Restart::Crashed).await.unwrap();
    judge(&stage, agents);
}

#[tokio::test]
async fn the_loss_of_the_node_of_a_redis_cluster_that_holds_the_keys() {
    let mut servers = RedisCluster::builder().start().await.unwrap();
    let stage = Stage::new(&servers.url());
    let agents = two(&stage, &[]);
    let key = "rendez:{c}:meta";
    let old = servers.primary_of(key).await.unwrap();
    servers.servers[old].kill().unwrap();
    servers.wait_for_failover(key, old).await.unwrap();
    stage.wait_that("the new generation", || agents.iter().all(|agent| agent.says("may have lost data")));
    judge(&stage, agents);
}
