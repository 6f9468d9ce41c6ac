//! Starting, sharing, handing over, shutting down, dropping.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rendez::{DriverError, SlotContext, StopReason, StoppedReason};

use crate::store::TestStore;
use crate::support::{Diary, PATIENCE, config, eventually, idle, inbox, node, owns};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_runs_everything_and_a_shutdown_gives_it_all_back() {
    let store = TestStore::new();
    let handle = node(&store, "a", 8).runner(idle).start().await.unwrap();
    owns(&handle, 8).await;
    assert_eq!(handle.owned().slots().cloned().collect::<Vec<_>>(), (0..8).map(inbox).collect::<Vec<_>>());
    assert_eq!(store.held().len(), 8);
    let lease = handle.lease(&inbox(3)).unwrap();
    assert_eq!(lease.token(), store.slot(&inbox(3)).unwrap().token);

    assert_eq!(handle.shutdown().await, Ok(StoppedReason::Clean));
    assert_eq!(handle.shutdown().await, Ok(StoppedReason::Clean), "again is fine");
    assert_eq!((store.held().len(), store.sessions_alive()), (0, 0));
    assert!(handle.owned().is_empty() && lease.check().is_err());
    assert!(store.slot(&inbox(3)).unwrap().holder.is_none(), "it was released, not left to expire");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_a_node_after_its_shutdown() {
    let store = TestStore::new();
    let metrics = tokio::runtime::Handle::current().metrics();
    let before = metrics.num_alive_tasks();
    let handle = node(&store, "a", 8).runner(idle).start().await.unwrap();
    owns(&handle, 8).await;
    assert!(metrics.num_alive_tasks() > before + 8);
    handle.shutdown().await.unwrap();
    eventually("no task is left", || metrics.num_alive_tasks() == before).await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_current_thread_runtime_is_enough_for_two_nodes() {
    let store = TestStore::new();
    let a = node(&store, "a", 4).runner(idle).start().await.unwrap();
    owns(&a, 4).await;
    let b = node(&store, "b", 4).runner(idle).start().await.unwrap();
    assert_eq!(a.shutdown().await, Ok(StoppedReason::Clean));
    owns(&b, 4).await;
    assert_eq!(b.shutdown().await, Ok(StoppedReason::Clean));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_move_gently_with_their_checkpoints_and_never_run_twice() {
    let store = TestStore::new();
    let running: Arc<[AtomicUsize; 6]> = Arc::default();
    let seen = Arc::new(AtomicUsize::new(0));
    let runner = {
        let (running, seen) = (running.clone(), seen.clone());
        move |ctx: SlotContext| {
            let (running, seen) = (running.clone(), seen.clone());
            async move {
                let me = &running[ctx.slot().unit as usize];
                assert_eq!(me.fetch_add(1, Ordering::SeqCst), 0, "{} runs twice", ctx.slot());
                if ctx.checkpoint().is_some_and(|left| left == ctx.slot().to_string().as_bytes()) {
                    seen.fetch_add(1, Ordering::SeqCst);
                }
                ctx.cancelled().await;
                tokio::time::sleep(Duration::from_millis(20)).await; // a last piece of work
                ctx.leave_checkpoint(ctx.slot().to_string()).unwrap();
                me.fetch_sub(1, Ordering::SeqCst);
            }
        }
    };
    let diary = Diary::default();
    let a = node(&store, "a", 6).runner(runner.clone()).on_event(diary.hook()).start().await.unwrap();
    owns(&a, 6).await;
    let b = node(&store, "b", 6).runner(runner).on_event(diary.hook()).start().await.unwrap();
    a.shutdown().await.unwrap();
    owns(&b, 6).await;
    assert_eq!(seen.load(Ordering::SeqCst), 6, "every checkpoint has arrived");
    b.shutdown().await.unwrap();
    let panicked = |end: &rendez::RunnerEnd| matches!(end, rendez::RunnerEnd::Panicked(_));
    assert!(!diary.has(|event| matches!(event, rendez::Event::Ended { end, .. } if panicked(end))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_the_last_handle_stops_the_runners_and_leaves_the_leases_to_expire() {
    let store = TestStore::new();
    let stopped = Arc::new(AtomicUsize::new(0));
    let count = stopped.clone();
    let runner = move |ctx: SlotContext| {
        let count = count.clone();
        async move {
            ctx.cancelled().await;
            if ctx.stop_reason() == Some(StopReason::Shutdown) {
                count.fetch_add(1, Ordering::SeqCst);
            }
        }
    };
    let a = node(&store, "a", 3).runner(runner).start().await.unwrap();
    let clone = a.clone();
    owns(&a, 3).await;
    drop(a);
    assert_eq!(clone.owned().len(), 3, "one handle is enough");
    let token = store.slot(&inbox(0)).unwrap().token;
    drop(clone);
    eventually("the runners are told to stop", || stopped.load(Ordering::SeqCst) == 3).await;
    assert!(store.slot(&inbox(0)).unwrap().holder.is_some(), "nothing is released");

    let b = node(&store, "b", 3).runner(idle).start().await.unwrap();
    owns(&b, 3).await;
    assert!(b.lease(&inbox(0)).unwrap().token() > token);
    b.shutdown().await.unwrap();
}

#[test]
fn a_handle_says_that_its_runtime_is_gone() {
    let store = TestStore::new();
    let theirs = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let handle = theirs.block_on(async {
        let handle = node(&store, "a", 2).runner(idle).start().await.unwrap();
        owns(&handle, 2).await;
        handle
    });
    theirs.shutdown_timeout(PATIENCE);
    let ours = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let gone = DriverError::RuntimeGone { node: handle.node().clone() };
    assert_eq!(ours.block_on(handle.stopped()), Err(gone.clone()));
    assert_eq!(ours.block_on(handle.shutdown()), Err(gone));
    assert!(handle.owned().is_empty() && ours.block_on(handle.set_health(true)).is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_ends_although_store_and_runners_do_not_answer() {
    let store = TestStore::new();
    let mut config = config();
    config.drain_timeout = Duration::from_millis(500);
    let release = Arc::new(std::sync::Barrier::new(2));
    let gate = release.clone();
    let runner = move |_: SlotContext| {
        let gate = gate.clone();
        async move {
            gate.wait(); // blocks its thread
        }
    };
    let handle = node(&store, "a", 1).engine_config(config).runner(runner).start().await.unwrap();
    owns(&handle, 1).await;
    for operation in ["heartbeat", "change", "close"] {
        store.always(operation, crate::store::Fault::Hangs);
    }
    let ended = tokio::time::timeout(PATIENCE, handle.shutdown()).await.expect("it ends");
    assert_eq!(ended, Ok(StoppedReason::DrainTimeout { running: vec![inbox(0)] }));
    assert_eq!(handle.owned().len(), 1, "it still runs, and is not hidden");
    release.wait();
    eventually("it is gone", || handle.owned().is_empty()).await;
}
