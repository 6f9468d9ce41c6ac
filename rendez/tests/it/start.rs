//! What a start refuses, waits for, and says.

use std::time::Duration;

use rendez::{Coordinator, ErrorKind, Event, StartError};

use crate::store::{Fault, TestStore};
use crate::support::{Diary, eventually, idle, node, owns};

#[tokio::test]
async fn what_is_missing_or_wrong_is_told_before_the_store_is_touched() {
    let store = TestStore::new();
    store.always("open", Fault::Panics);
    let begun = || node(&store, "a", 1).runner(idle);
    for (builder, wanted) in [
        (Coordinator::builder(), "store is missing: call `.store(...)` before `.start()`"),
        (Coordinator::builder().store(store.clone()), "cluster is missing"),
        (Coordinator::builder().store(store.clone()).cluster("c"), "node_id is missing"),
        (node(&store, "a", 1), "runner is missing"),
        (begun().node_id(""), "the name of the node is refused: a name must not be empty"),
        (begun().workload("a\nb", 1), "the name of the workload is refused"),
        (begun().zone("z".repeat(300)), "the name of the zone is refused"),
        (begun().weight(0), "a weight of 0 cannot be: use 1 or more"),
        (begun().workload("huge", 2_000_000), "2000000 units of huge are too many: use 1000000 or less"),
        (begun().connect_timeout(Duration::ZERO), "a connect_timeout of 0 cannot be"),
        (begun().engine_config(rendez::EngineConfig::for_ttl(Duration::from_secs(90_000))), "use 24h or less"),
    ] {
        let error = builder.start().await.unwrap_err();
        assert!(error.to_string().contains(wanted), "{error}: not {wanted:?}");
    }
}

#[test]
fn without_a_runtime_there_is_an_error_and_no_panic() {
    let start = node(&TestStore::new(), "a", 1).runner(idle).start();
    let mut start = std::pin::pin!(start);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let std::task::Poll::Ready(result) = start.as_mut().poll(&mut context) else { panic!("it waits") };
    assert_eq!(result.unwrap_err(), StartError::NoRuntime);
}

#[tokio::test]
async fn a_store_that_refuses_or_does_not_answer_gives_one_clear_error() {
    let store = TestStore::new();
    store.always("open", Fault::Fails(ErrorKind::Fatal));
    let error = node(&store, "a", 1).runner(idle).start().await.unwrap_err();
    assert_eq!(error.to_string(), "the store refuses (fatal): it was told to fail");

    let quick = Duration::from_millis(300);
    for (fault, wanted) in [
        (Fault::Fails(ErrorKind::Transient), "no answer from the store test within 300ms: it was told to fail"),
        (Fault::Hangs, "no answer from the store test within 300ms: the store has not answered open within"),
    ] {
        store.always("open", fault);
        let error = node(&store, "a", 1).runner(idle).connect_timeout(quick).start().await.unwrap_err();
        assert!(error.to_string().starts_with(wanted), "{error}");
    }
    let metrics = tokio::runtime::Handle::current().metrics();
    eventually("nothing of them runs", || metrics.num_alive_tasks() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_gets_over_panics_errors_and_lost_answers_of_the_store() {
    let store = TestStore::new();
    for fault in [Fault::Panics, Fault::Fails(ErrorKind::Throttled), Fault::HangsAfterwards] {
        store.once("open", fault);
    }
    let handle = node(&store, "a", 2).runner(idle).start().await.unwrap();
    owns(&handle, 2).await;
    assert_eq!((store.faults_left(), store.sessions_alive()), (0, 1));
    handle.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_process_with_a_nodes_id_gives_up_or_waits_as_it_was_told() {
    let store = TestStore::new();
    let first = node(&store, "a", 2).runner(idle).start().await.unwrap();
    owns(&first, 2).await;

    let error = node(&store, "a", 2).runner(idle).give_up_if_in_use(true).start().await.unwrap_err();
    assert!(matches!(error, StartError::InUse { .. }), "{error}");

    let diary = Diary::default();
    let waiting = node(&store, "a", 2).runner(idle).on_event(diary.hook()).connect_timeout(Duration::from_millis(500));
    let waiting = tokio::spawn(waiting.start());
    diary.tells("that it waits", |event| matches!(event, Event::NodeIdInUse { .. })).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(!waiting.is_finished(), "an answer is an answer: the connect timeout is over");
    first.shutdown().await.unwrap();
    let second = waiting.await.unwrap().unwrap();
    owns(&second, 2).await;
    second.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_is_given_up_leaves_nothing_behind() {
    let store = TestStore::new();
    store.always("open", Fault::Hangs);
    let metrics = tokio::runtime::Handle::current().metrics();
    let before = metrics.num_alive_tasks();
    let start = node(&store, "a", 1).runner(idle).start();
    assert!(tokio::time::timeout(Duration::from_millis(50), start).await.is_err());
    eventually("nothing of it runs", || metrics.num_alive_tasks() == before).await;
}
