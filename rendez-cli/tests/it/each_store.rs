//! What holds on every store: shares, crashes, lost hosts, leaving, joining, and being frozen.

use std::collections::BTreeSet;
use std::time::Duration;

use rendez_core::Timestamp;
use rendez_testkit::checker::Report;
use rendez_testkit::clock;
use rendez_testkit::servers::{AnyServer, StoreKind};
use rendez_testkit::sink::{SinkServer, TokenSink};
use rustix::process::Signal;

use crate::faults::{of, sleep_until};
use crate::library;
use crate::processes::{descendants_of, freeze_all, runs, signal_if_there};
use crate::ring;
use crate::stage::{Stage, TTL};

/// Tests that are the same on each of these stores.
macro_rules! on_each_store {
    ($($(#[$condition:meta])? $store:ident: $kind:ident,)*) => {
        $($(#[$condition])? mod $store {
            use rendez_testkit::servers::StoreKind;

            const STORE: StoreKind = StoreKind::$kind;

            #[tokio::test]
            async fn nodes_share_and_take_over_and_hand_over() {
                super::nodes_share_and_take_over_and_hand_over(STORE).await;
            }

            #[tokio::test]
            async fn a_node_that_joins_gets_its_share_and_nothing_else_moves() {
                super::a_node_that_joins_gets_its_share_and_nothing_else_moves(STORE).await;
            }

            #[tokio::test]
            async fn the_children_of_a_frozen_agent_are_gone_by_the_deadline() {
                super::the_children_of_a_frozen_agent_are_gone_by_the_deadline(STORE).await;
            }

            #[tokio::test]
            async fn frozen_with_its_children_a_node_kills_them_before_they_do_anything() {
                super::frozen_with_its_children_a_node_kills_them_before_they_do_anything(STORE).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn what_children_write_that_wake_up_first_is_refused_by_a_sink_that_checks_tokens() {
                super::what_children_write_that_wake_up_first_is_refused_by_a_sink_that_checks_tokens(STORE).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn nodes_that_start_at_once_share_a_ring_and_one_leaves() {
                super::ring::nodes_that_start_at_once_share_a_ring_and_one_leaves(STORE).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_frozen_process_looks_at_its_deadlines_first_and_what_was_in_flight_is_refused() {
                super::library::a_frozen_process_looks_at_its_deadlines_first(STORE).await;
            }
        })*
    };
}

/// Tests of the fences that stores have.
macro_rules! on_each_store_with_fences {
    ($($(#[$condition:meta])? $test:ident: $kind:ident,)*) => {
        $($(#[$condition])? #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            library::a_fence_in_the_store_refuses_what_a_frozen_process_had_in_flight(StoreKind::$kind).await;
        })*
    };
}

on_each_store_with_fences! {
    a_fence_in_redis_refuses_what_a_frozen_process_had_in_flight: Redis,
    #[cfg(feature = "etcd")]
    a_fence_in_etcd_refuses_what_a_frozen_process_had_in_flight: Etcd,
    a_fence_in_postgres_refuses_what_a_frozen_process_had_in_flight: Postgres,
    a_fence_in_a_file_refuses_what_a_frozen_process_had_in_flight: File,
}

on_each_store! {
    redis: Redis,
    #[cfg(feature = "etcd")]
    etcd: Etcd,
    postgres: Postgres,
    #[cfg(feature = "kubernetes")]
    kubernetes: Kubernetes,
    #[cfg(feature = "nats")]
    nats: Nats,
    file: File,
}

async fn nodes_share_and_take_over_and_hand_over(store: StoreKind) {
    let server = AnyServer::start(store).await.unwrap();
    let stage = Stage::new(&server.url());
    let agent = |node| stage.agent(node).ttl("15s").workloads(&["inbox=12"]).probe(&["--stop-ms", "500"]).start();
    let (one, mut two, three) = (agent("one"), agent("two"), agent("three"));
    let before = stage.wait_for_shares(&[("one", 4), ("two", 4), ("three", 4)]);

    let killed = clock::now();
    one.signal(Signal::KILL);
    let after = stage.wait_for_shares(&[("two", 6), ("three", 6)]);
    // The last heartbeat was at most an interval and a delay before: the session lives on for longer than this.
    assert!(clock::now().since(killed) < Duration::from_secs(10), "only the session's end has freed the slots");
    let stayed = after.iter().filter(|(slot, run)| before[*slot] == **run).count();
    assert_eq!(stayed, 8, "{before:?}\n{after:?}");

    two.signal(Signal::TERM);
    assert_eq!(two.exit_code(), Some(0), "{}", two.said());
    let before = stage.wait_for_shares(&[("three", 12)]);

    let four = agent("four");
    stage.wait_that("the fourth to take part", || stage.status()["nodes"].as_array().unwrap().len() == 2);
    let mut host = freeze_all(three.pid());
    host.extend(descendants_of(three.pid()));
    host.iter().for_each(|pid| signal_if_there(*pid, Signal::KILL));
    let after = stage.wait_for_shares(&[("four", 12)]);
    assert!(after.iter().all(|(slot, run)| before[slot] != *run));
    drop((one, two, three, four));
    stage.report().assert_good();
}

async fn a_node_that_joins_gets_its_share_and_nothing_else_moves(store: StoreKind) {
    let server = AnyServer::start(store).await.unwrap();
    let stage = Stage::new(&server.url());
    // Stabilizers are not what this is about, nor is a node that a busy machine holds up.
    let agent = |node| {
        let launch = stage.agent(node).ttl("15s").workloads(&["inbox=12"]);
        launch.set("cooldown", "1s").set("runtime_min", "1s").set("settling", "1s").start()
    };
    let mut agents: Vec<_> = ["one", "two", "three"].map(agent).into();
    let before = stage.wait_for_shares(&[("one", 4), ("two", 4), ("three", 4)]);
    agents.push(agent("four"));
    let after = stage.wait_for_shares(&[("one", 3), ("two", 3), ("three", 3), ("four", 3)]);
    let stayed = after.iter().filter(|(slot, run)| before[*slot] == **run).count();
    assert_eq!(stayed, 9, "{before:?}\n{after:?}");

    // By the next heartbeat everybody knows where everything is.
    std::thread::sleep(2 * TTL);
    agents[0].signal(Signal::TERM);
    assert_eq!(agents[0].exit_code(), Some(0), "{}", agents[0].said());
    let last = stage.wait_for_shares(&[("two", 4), ("three", 4), ("four", 4)]);
    let stayed = last.iter().filter(|(slot, run)| after[*slot] == **run).count();
    assert_eq!(stayed, 9, "{after:?}\n{last:?}");
    drop(agents);
    stage.report().assert_good();
}

async fn the_children_of_a_frozen_agent_are_gone_by_the_deadline(store: StoreKind) {
    let server = AnyServer::start(store).await.unwrap();
    let stage = Stage::new(&server.url());
    let agent = |node| stage.agent(node).probe(&["--ignore-term", "--fork-detached"]).start();
    let (one, two) = (agent("one"), agent("two"));
    let before = stage.wait_for_shares(&[("one", 2), ("two", 2)]);
    one.signal(Signal::STOP);
    let frozen = clock::now();
    stage.wait_for_shares(&[("two", 4)]);
    sleep_until(frozen + 3 * TTL);
    assert!(of(&before, "one").iter().all(|slot| !runs(before[*slot].1)));
    assert_ended_by_the_deadline(&stage.report(), "one", frozen);
    one.signal(Signal::CONT);
    stage.wait("its return", |running| running.len() == 4 && !of(running, "one").is_empty());
    drop((one, two));
    stage.report().assert_good();
}

/// Every run that a node had begun before some time was over one session TTL after it.
fn assert_ended_by_the_deadline(report: &Report, node: &str, since: Timestamp) {
    let runs = report.runs.values().flatten().filter(|run| run.node.as_str() == node && run.begin < since);
    for run in runs {
        assert!(run.until <= since + TTL, "{run:?} went on after its deadline");
    }
}

async fn frozen_with_its_children_a_node_kills_them_before_they_do_anything(store: StoreKind) {
    let server = AnyServer::start(store).await.unwrap();
    let stage = Stage::new(&server.url());
    let agent = |node| stage.agent(node).probe(&["--ignore-term"]).start();
    let (one, two) = (agent("one"), agent("two"));
    let before = stage.wait_for_shares(&[("one", 2), ("two", 2)]);
    let children: Vec<i32> = of(&before, "one").iter().map(|slot| before[*slot].1).collect();
    let frozen = freeze_all(one.pid());
    let since = clock::now();
    stage.wait_that("the other node to run all", || {
        let report = stage.report();
        report.runs.values().all(|runs| runs.last().is_some_and(|run| run.node.as_str() == "two"))
    });
    sleep_until(since + 3 * TTL);
    // The children stay frozen: who can only be killed has done nothing.
    frozen.iter().filter(|pid| !children.contains(pid)).for_each(|pid| signal_if_there(*pid, Signal::CONT));
    stage.wait_that("the end of the frozen children", || children.iter().all(|pid| !runs(*pid)));
    stage.wait("its return", |running| running.len() == 4 && !of(running, "one").is_empty());
    drop((one, two));
    stage.report().assert_good();
}

async fn what_children_write_that_wake_up_first_is_refused_by_a_sink_that_checks_tokens(store: StoreKind) {
    let server = AnyServer::start(store).await.unwrap();
    let stage = Stage::new(&server.url());
    let sink = TokenSink::new();
    let server = SinkServer::tcp(sink.clone()).await.unwrap();
    let addr = server.addr().unwrap().to_string();
    let agent = |node| stage.agent(node).probe(&["--ignore-term", "--sink", &addr]).start();
    let (one, two) = (agent("one"), agent("two"));
    let before = stage.wait_for_shares(&[("one", 2), ("two", 2)]);
    let children: Vec<i32> = of(&before, "one").iter().map(|slot| before[*slot].1).collect();
    let frozen = freeze_all(one.pid());
    let since = clock::now();
    stage.wait_that("the other node to run all", || {
        let report = stage.report();
        report.runs.values().all(|runs| runs.last().is_some_and(|run| run.node.as_str() == "two"))
    });
    sleep_until(since + 3 * TTL);
    assert!(sink.refused().is_empty());
    // The worst order: those whose lease is over first.
    children.iter().for_each(|pid| signal_if_there(*pid, Signal::CONT));
    stage.wait_that("what they write to be refused", || sink.refused().len() > 4);
    frozen.iter().rev().for_each(|pid| signal_if_there(*pid, Signal::CONT));
    stage.wait_that("their end", || children.iter().all(|pid| !runs(*pid)));
    stage.wait("its return", |running| running.len() == 4 && !of(running, "one").is_empty());
    drop((one, two));
    let writers: BTreeSet<String> = sink.refused().into_iter().map(|entry| entry.payload).collect();
    assert!(writers.iter().all(|pid| children.iter().any(|child| child.to_string() == *pid)), "{writers:?}");
    let woken = since + 3 * TTL;
    let late: Vec<_> = sink.accepted().into_iter().filter(|entry| entry.at >= woken).collect();
    assert!(late.iter().all(|entry| !writers.contains(&entry.payload)), "accepted from a node that was frozen");
}
