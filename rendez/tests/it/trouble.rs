//! Stores that panic, hang, lose answers or have no watch: no restart is ever needed.

use rendez::{ErrorKind, Event};

use crate::store::{Fault, TestStore};
use crate::support::{Diary, eventually, idle, inbox, node, owns};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn single_faults_of_every_request_cost_nothing_but_time() {
    let store = TestStore::new();
    for operation in ["snapshot", "change", "heartbeat", "close"] {
        for fault in [Fault::Panics, Fault::Fails(ErrorKind::Transient), Fault::HangsAfterwards] {
            store.once(operation, fault);
        }
    }
    let handle = node(&store, "a", 4).runner(idle).start().await.unwrap();
    owns(&handle, 4).await;
    handle.shutdown().await.unwrap();
    eventually("nothing is held", || store.held().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_outage_longer_than_the_session_everything_runs_again_under_new_tokens() {
    let store = TestStore::new();
    let diary = Diary::default();
    let handle = node(&store, "a", 4).runner(idle).on_event(diary.hook()).start().await.unwrap();
    owns(&handle, 4).await;
    let token = handle.lease(&inbox(0)).unwrap().token();
    for operation in ["open", "heartbeat", "change", "snapshot"] {
        store.always(operation, Fault::Fails(ErrorKind::Transient));
    }
    diary.tells("the loss", |event| matches!(event, Event::SessionLost { .. })).await;
    eventually("the runners are ended", || handle.owned().is_empty()).await;
    store.heal();
    owns(&handle, 4).await;
    assert!(handle.lease(&inbox(0)).is_some_and(|lease| lease.token() > token));
    handle.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_ends_is_opened_again() {
    let store = TestStore::new();
    let handle = node(&store, "a", 1).runner(idle).start().await.unwrap();
    for openings in 1..=3 {
        eventually("it is opened again", || store.watches_opened() >= openings).await;
        store.end_watches();
    }
    owns(&handle, 1).await;
    handle.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_without_a_watch_is_asked_for_it_once() {
    let store = TestStore::new();
    store.without_watch();
    let a = node(&store, "a", 4).runner(idle).start().await.unwrap();
    owns(&a, 4).await;
    let b = node(&store, "b", 4).runner(idle).start().await.unwrap();
    a.shutdown().await.unwrap();
    owns(&b, 4).await;
    assert_eq!(store.watches_opened(), 2);
    b.shutdown().await.unwrap();
}
