//! Leader election: who leads, since when, for whom it is to be seen, and when it ends.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rendez::{
    Candidacy, Coordinator, Election, ElectionBuilder, ElectionError, ErrorKind, FencingToken, Handle, MemoryStore,
    StandaloneElection, StartError,
};

use crate::store::{Fault, TestStore};
use crate::support::{PATIENCE, config, eventually, idle, inbox, node, owns};

fn candidate(store: &TestStore, name: &str) -> ElectionBuilder {
    Election::builder("boss").store(store.clone()).cluster("test").node_id(name).session_ttl(Duration::from_secs(3))
}

/// A node with elections and nothing else.
async fn voter(store: &TestStore, name: &str, elections: &[(&str, Candidacy)]) -> Handle {
    let mut node = Coordinator::builder().store(store.clone()).cluster("test").node_id(name).engine_config(config());
    for (election, candidacy) in elections {
        node = node.election_with(election, *candidacy);
    }
    node.connect_timeout(PATIENCE).start().await.unwrap()
}

async fn leads(election: &Election) {
    tokio::time::timeout(PATIENCE, election.wait_for_leadership()).await.unwrap().unwrap();
}

async fn hears(election: &Election, leader: &str) {
    let known = || election.leader().is_some_and(|known| known.node.as_str() == leader);
    eventually(&format!("{} hears that {leader} leads", election.node()), known).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_leads_all_know_who_and_the_next_follows_when_it_stops() {
    let store = TestStore::new();
    let first = candidate(&store, "a").start().await.unwrap();
    leads(&first).await;
    let (token, lease) = (first.token().unwrap(), first.lease().unwrap());
    assert_eq!((first.name(), lease.token(), lease.slot().to_string().as_str()), ("boss", token, "boss/0"));
    let second = candidate(&store, "b").start().await.unwrap();
    let watcher = candidate(&store, "w").may_lead(false).start().await.unwrap();
    for election in [&first, &second, &watcher] {
        hears(election, "a").await;
        assert_eq!(election.leader().unwrap().token, token);
    }
    assert!(first.is_leader() && !second.is_leader() && !watcher.is_leader());
    assert_eq!((second.token(), second.lease().is_none()), (None, true));
    let refused = watcher.wait_for_leadership().await.unwrap_err();
    assert!(matches!(refused, ElectionError::MayNotLead { ref node } if node.as_str() == "w"), "{refused}");

    first.shutdown().await.unwrap();
    assert!(!first.is_leader());
    let stopped = first.wait_for_leadership().await.unwrap_err();
    assert!(matches!(stopped, ElectionError::Stopped { ref node } if node.as_str() == "a"), "{stopped}");
    leads(&second).await;
    hears(&watcher, "b").await;
    assert!(second.token().unwrap() > token);

    // Nobody is left who may lead.
    second.shutdown().await.unwrap();
    eventually("nobody leads", || watcher.leader().is_none()).await;
    watcher.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_let_go_when_the_last_handle_goes() {
    let store = TestStore::new();
    let first = candidate(&store, "a").start().await.unwrap();
    leads(&first).await;
    let clone = first.clone();
    drop(first);
    assert!(clone.is_leader());
    let free: Election = (*clone).clone();
    drop(clone);
    eventually("it is let go, not left to expire", || {
        let record = store.slot(&"boss/0".parse().unwrap());
        record.is_some_and(|record| record.holder.is_none())
    })
    .await;
    eventually("the session is closed", || store.sessions_alive() == 0).await;
    assert!(!free.is_leader());
    let stopped = tokio::time::timeout(PATIENCE, free.wait_for_leadership()).await.unwrap();
    assert!(matches!(stopped, Err(ElectionError::Stopped { .. })));
    eventually("it cannot resign any more", || free.leader().is_none()).await;
    assert!(matches!(free.resign().await, Err(ElectionError::Stopped { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_resigns_is_followed_by_another_and_does_not_come_back_at_once() {
    let store = TestStore::new();
    let preferred = candidate(&store, "a").priority(9).start().await.unwrap();
    leads(&preferred).await;
    let before = preferred.token().unwrap();
    let other = candidate(&store, "b").start().await.unwrap();
    hears(&other, "a").await;
    other.resign().await.unwrap(); // leads nothing: nothing happens
    let leader_changes = preferred.changes();
    preferred.resign().await.unwrap();
    assert!(!preferred.is_leader());
    leads(&other).await;
    assert!(other.token().unwrap() > before);
    hears(&preferred, "b").await;
    assert!(leader_changes.has_changed().unwrap());
    // Not while the other leads, however preferred.
    tokio::time::sleep(config().timing.session_ttl + Duration::from_secs(1)).await;
    assert!(other.is_leader() && !preferred.is_leader());
    preferred.shutdown().await.unwrap();
    other.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_resigns_alone_leads_again_after_a_while() {
    let store = TestStore::new();
    let alone = candidate(&store, "a").start().await.unwrap();
    leads(&alone).await;
    let before = alone.token().unwrap();
    alone.resign().await.unwrap();
    assert!(!alone.is_leader());
    leads(&alone).await;
    assert!(alone.token().unwrap() > before);
    alone.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_preferred_candidate_leads_next_and_steals_nothing() {
    let store = TestStore::new();
    let first = candidate(&store, "a").start().await.unwrap();
    leads(&first).await;
    let low = candidate(&store, "b").priority(1).start().await.unwrap();
    let high = candidate(&store, "c").priority(2).start().await.unwrap();
    for election in [&low, &high] {
        hears(election, "a").await;
    }
    eventually("the first hears of both", || store.sessions_alive() == 3).await;
    let status = || async { first.handle().status().await.unwrap().nodes.len() };
    while status().await < 3 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(first.is_leader());
    first.shutdown().await.unwrap();
    leads(&high).await;
    assert!(!low.is_leader());
    high.shutdown().await.unwrap();
    leads(&low).await;
    low.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_elections_share_a_session_and_stand_beside_other_slots() {
    let store = TestStore::new();
    let a = node(&store, "a", 3).runner(idle).election("x").election_with("y", Candidacy::new().with_priority(1));
    let a = a.start().await.unwrap();
    owns(&a, 5).await;
    assert_eq!(store.sessions_alive(), 1);
    let (x, y) = (a.election("x").unwrap(), a.election("y").unwrap());
    assert!(x.is_leader() && y.is_leader() && a.election("z").is_none());
    assert_ne!(x.token(), y.token());
    // What the program declares anew does not end its elections, and may not be called like one.
    let many = [(inbox(0).workload, rendez::Declared::new(4))].into();
    a.set_workloads(many).await.unwrap();
    owns(&a, 6).await;
    let taken = [("x".parse().unwrap(), rendez::Declared::new(4))].into();
    let refused = a.set_workloads(taken).await.unwrap_err().to_string();
    assert!(refused.contains("x is an election"), "{refused}");

    // Another node gets its part of the slots and none of the leadership.
    let b = node(&store, "b", 4).runner(idle).election("x").election("y").start().await.unwrap();
    eventually("the slots are shared", || b.owned().len() == 3 || b.owned().len() == 2).await;
    assert!(b.owned().iter().all(|lease| lease.slot().workload.as_str() == "inbox"));
    assert!(x.is_leader() && y.is_leader());
    let next = b.election("x").unwrap();
    x.resign().await.unwrap();
    leads(&next).await;
    assert!(y.is_leader() && a.election("y").unwrap().is_leader());
    a.shutdown().await.unwrap();
    b.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trouble_with_the_store_is_borne_until_the_deadline_and_not_longer() {
    let store = TestStore::new();
    let first = candidate(&store, "a").start().await.unwrap();
    leads(&first).await;
    let (lease, before) = (first.lease().unwrap(), first.lease().unwrap().deadline());
    store.once("heartbeat", Fault::Fails(ErrorKind::Transient));
    store.once("heartbeat", Fault::HangsAfterwards);
    eventually("it leads on, renewed after errors", || store.faults_left() == 0 && lease.deadline() > before).await;
    assert!(first.is_leader());

    let mut changes = first.changes();
    for operation in ["heartbeat", "open", "change", "snapshot"] {
        store.always(operation, Fault::Fails(ErrorKind::Transient));
    }
    let ended = tokio::time::timeout(PATIENCE, changes.wait_for(|state| !state.leading)).await;
    ended.unwrap().unwrap();
    assert!(!first.is_leader());
    assert!(rendez::boot_time() < lease.deadline() + Duration::from_secs(1) || lease.check().is_err());
    store.heal();
    leads(&first).await;
    assert!(first.token().unwrap() > lease.token());
    first.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_that_is_led_ends_before_the_next_leader_begins() {
    let store = TestStore::new();
    let (first, second) = (candidate(&store, "a"), candidate(&store, "b"));
    let first = first.start().await.unwrap();
    leads(&first).await;
    let second = second.start().await.unwrap();
    let (working, after) = (Arc::new(AtomicUsize::new(0)), Duration::from_millis(300));
    let work = |election: StandaloneElection| {
        let working = working.clone();
        tokio::spawn(async move {
            election
                .lead(|lease| async move {
                    assert_eq!(working.fetch_add(1, Ordering::SeqCst), 0, "two at work");
                    lease.cancelled().await;
                    tokio::time::sleep(after).await;
                    working.fetch_sub(1, Ordering::SeqCst);
                    lease.token()
                })
                .await
        })
    };
    let (one, two) = (work(first.clone()), work(second.clone()));
    eventually("the first works", || working.load(Ordering::SeqCst) == 1).await;
    first.resign().await.unwrap();
    let first_token = one.await.unwrap().unwrap();
    leads(&second).await;
    eventually("the second works", || working.load(Ordering::SeqCst) == 1).await;
    second.shutdown().await.unwrap();
    assert!(two.await.unwrap().unwrap() > first_token);
    first.shutdown().await.unwrap();
}

/// Says when it is dropped.
struct OnDrop(Arc<AtomicBool>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_that_does_not_stop_is_dropped_before_leadership_leaves() {
    let store = TestStore::new();
    let first = candidate(&store, "a").start().await.unwrap();
    leads(&first).await;
    let (token, dropped) = (first.token().unwrap(), Arc::new(AtomicBool::new(false)));
    let guard = OnDrop(dropped.clone());
    let led = {
        let first = first.clone();
        tokio::spawn(async move {
            first
                .lead(|_| async move {
                    let _guard = guard;
                    std::future::pending::<()>().await;
                })
                .await
        })
    };
    let second = candidate(&store, "b").start().await.unwrap();
    hears(&second, "a").await;
    first.resign().await.unwrap();
    leads(&second).await;
    assert!(dropped.load(Ordering::SeqCst), "dropped before another leads");
    assert_eq!(led.await.unwrap(), Err(ElectionError::Lost { token }));
    first.shutdown().await.unwrap();
    second.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_leader_is_followed_when_its_session_ends_and_never_before() {
    let store = TestStore::new();
    let seen: Arc<Mutex<Vec<(String, FencingToken)>>> = Arc::default();
    let mut first = Some(voter(&store, "a", &[("boss", Candidacy::new())]).await);
    let election = first.as_ref().unwrap().election("boss").unwrap();
    leads(&election).await;
    seen.lock().unwrap().push(("a".to_owned(), election.token().unwrap()));
    let second = voter(&store, "b", &[("boss", Candidacy::new())]).await;
    let next = second.election("boss").unwrap();
    hears(&next, "a").await;
    // The node goes without a word: its lease is left to expire.
    let deadline = election.lease().unwrap().deadline();
    drop(first.take());
    leads(&next).await;
    assert!(rendez::boot_time() >= deadline && !election.is_leader());
    seen.lock().unwrap().push(("b".to_owned(), next.token().unwrap()));
    let seen = seen.lock().unwrap().clone();
    assert!(seen[0].1 < seen[1].1, "{seen:?}");
    second.shutdown().await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_is_said_before_the_store_is_touched() {
    let missing = Election::builder("boss").cluster("c").node_id("a").start().await.unwrap_err();
    assert_eq!(missing, StartError::Missing { what: "store" });
    let store = MemoryStore::new();
    let named = Election::builder("").store(store.clone()).cluster("c").node_id("a").start().await.unwrap_err();
    assert!(matches!(named, StartError::Name { what: "election", .. }), "{named}");
    let twice =
        Coordinator::builder().store(store).cluster("c").node_id("a").workload("x", 2).runner(idle).election("x");
    let twice = twice.start().await.unwrap_err().to_string();
    assert!(twice.contains("x is declared as a workload and as an election"), "{twice}");
}
