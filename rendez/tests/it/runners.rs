//! Runners that fail, panic, return, ignore their stop, or block.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use rendez::{BoxError, CheckpointError, Crashed, Event, Runner, RunnerEnd, RunnerFactory, SlotContext, StoppedReason};

use crate::store::TestStore;
use crate::support::{Diary, eventually, idle, inbox, node, owns};

fn ended(event: &Event, unit: u32, wanted: &RunnerEnd) -> bool {
    matches!(event, Event::Ended { slot, end, .. } if *slot == inbox(unit) && end == wanted)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_way_to_end_is_told_and_the_runner_is_started_again_beside_a_calm_one() {
    let store = TestStore::new();
    let tries = Arc::new(AtomicUsize::new(0));
    let calm = Arc::new(AtomicUsize::new(0));
    let (counter, calm_counter) = (tries.clone(), calm.clone());
    let runner = move |ctx: SlotContext| {
        let (tries, calm) = (counter.clone(), calm_counter.clone());
        async move {
            if ctx.slot().unit == 1 {
                calm.fetch_add(1, Ordering::SeqCst);
                ctx.cancelled().await;
                return Ok(());
            }
            match tries.fetch_add(1, Ordering::SeqCst) {
                0 => panic!("first try {}", 1),
                1 => Err::<(), BoxError>("second try".into()),
                2 => Ok(()),
                3 => Err(Crashed("signal 9".to_owned()).into()),
                _ => {
                    ctx.cancelled().await;
                    Ok(())
                }
            }
        }
    };
    let diary = Diary::default();
    let handle = node(&store, "a", 2).runner(runner).on_event(diary.hook()).start().await.unwrap();
    eventually("the fifth try", || tries.load(Ordering::SeqCst) == 5).await;
    for end in [
        RunnerEnd::Panicked("first try 1".to_owned()),
        RunnerEnd::Failed("second try".to_owned()),
        RunnerEnd::Returned,
        RunnerEnd::Panicked("signal 9".to_owned()),
    ] {
        diary.tells("each end", |event| ended(event, 0, &end)).await;
    }
    owns(&handle, 2).await;
    assert_eq!(calm.load(Ordering::SeqCst), 1, "the other slot was not disturbed");
    handle.shutdown().await.unwrap();
}

struct Factory {
    made: AtomicUsize,
    log: Arc<std::sync::Mutex<Vec<String>>>,
}

struct Logging(Arc<std::sync::Mutex<Vec<String>>>);

#[async_trait]
impl RunnerFactory for Factory {
    async fn make(&self, ctx: &SlotContext) -> Result<Box<dyn Runner>, BoxError> {
        match self.made.fetch_add(1, Ordering::SeqCst) {
            0 => Err(format!("cannot make {}", ctx.slot()).into()),
            1 => panic!("the factory panics"),
            _ => Ok(Box::new(Logging(self.log.clone()))),
        }
    }
}

#[async_trait]
impl Runner for Logging {
    async fn run(&mut self, ctx: SlotContext) -> Result<(), BoxError> {
        self.0.lock().unwrap().push("run".to_owned());
        ctx.cancelled().await;
        self.0.lock().unwrap().push("told".to_owned());
        Ok(())
    }

    async fn stop(&mut self, ctx: SlotContext) -> Result<(), BoxError> {
        assert!(ctx.check().is_ok(), "the lease still holds");
        tokio::task::yield_now().await;
        self.0.lock().unwrap().push("stop".to_owned());
        Ok(())
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        self.0.lock().unwrap().push("drop".to_owned());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_factory_may_fail_and_a_runner_is_run_stopped_and_dropped_in_this_order() {
    let store = TestStore::new();
    let (diary, log) = (Diary::default(), Arc::default());
    let factory = Factory { made: AtomicUsize::new(0), log: Arc::clone(&log) };
    let handle = node(&store, "a", 1).runner(factory).on_event(diary.hook()).start().await.unwrap();
    diary.tells("the failure", |event| ended(event, 0, &RunnerEnd::Failed("cannot make inbox/0".to_owned()))).await;
    diary.tells("the panic", |event| ended(event, 0, &RunnerEnd::Panicked("the factory panics".to_owned()))).await;
    eventually("it runs", || log.lock().unwrap().len() == 1).await;
    handle.shutdown().await.unwrap();
    assert_eq!(*log.lock().unwrap(), ["run", "told", "stop", "drop"]);
}

struct Hanging;

#[async_trait]
impl RunnerFactory for Hanging {
    async fn make(&self, _: &SlotContext) -> Result<Box<dyn Runner>, BoxError> {
        std::future::pending().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_factory_that_hangs_is_aborted_when_its_slot_shall_end() {
    let store = TestStore::new();
    let diary = Diary::default();
    let handle = node(&store, "a", 1).runner(Hanging).on_event(diary.hook()).start().await.unwrap();
    owns(&handle, 1).await;
    handle.set_workloads(Default::default()).await.unwrap();
    diary.tells("the abort", |event| ended(event, 0, &RunnerEnd::Aborted)).await;
    eventually("the slot is free", || store.held().is_empty()).await;
    handle.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_that_ignores_its_stop_is_aborted_before_its_slot_is_given_back() {
    struct Bomb(Arc<AtomicBool>);
    impl Drop for Bomb {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let store = TestStore::new();
    let (diary, dropped) = (Diary::default(), Arc::new(AtomicBool::new(false)));
    let flag = dropped.clone();
    let runner = move |ctx: SlotContext| {
        let bomb = Bomb(flag.clone());
        async move {
            let _bomb = bomb;
            ctx.leave_checkpoint("so far").unwrap();
            std::future::pending::<()>().await;
        }
    };
    let handle = node(&store, "a", 1).runner(runner).on_event(diary.hook()).start().await.unwrap();
    owns(&handle, 1).await;
    handle.set_workloads(Default::default()).await.unwrap();
    diary.tells("the abort", |event| ended(event, 0, &RunnerEnd::Aborted)).await;
    assert!(dropped.load(Ordering::SeqCst));
    handle.shutdown().await.unwrap();
    assert_eq!(store.slot(&inbox(0)).unwrap().checkpoint.as_deref(), Some(&b"so far"[..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_runner_that_blocks_its_thread_keeps_its_lease_and_is_reported() {
    let store = TestStore::new();
    let (diary, free) = (Diary::default(), Arc::new(AtomicBool::new(false)));
    let flag = free.clone();
    let runner = move |_: SlotContext| {
        let free = flag.clone();
        async move {
            while !free.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    };
    let handle = node(&store, "a", 1).runner(runner).on_event(diary.hook()).start().await.unwrap();
    owns(&handle, 1).await;
    handle.set_workloads(Default::default()).await.unwrap();
    diary.tells("the overrun", |event| matches!(event, Event::Overrun { slot, .. } if *slot == inbox(0))).await;
    assert_eq!(store.held(), [inbox(0)], "not released while it runs");
    assert_eq!(handle.owned().len(), 1);
    free.store(true, Ordering::SeqCst);
    eventually("the slot is free", || store.held().is_empty()).await;
    assert_eq!(handle.shutdown().await, Ok(StoppedReason::Clean));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_runner_that_outlives_its_lost_lease_is_handed_to_the_policy() {
    let store = TestStore::new();
    let (free, called) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (flag, call) = (free.clone(), called.clone());
    let runner = move |ctx: SlotContext| {
        let free = flag.clone();
        async move {
            while !free.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
            }
            assert!(ctx.check().is_err(), "it can know");
        }
    };
    let policy = rendez::OverrunPolicy::call(move |slot, _| {
        assert_eq!(*slot, inbox(0));
        call.store(true, Ordering::SeqCst);
        panic!("and its own panic does no harm");
    });
    let handle = node(&store, "a", 1).runner(runner).overrun_policy(policy).start().await.unwrap();
    owns(&handle, 1).await;
    store.always("heartbeat", crate::store::Fault::Hangs);
    eventually("the policy is asked", || called.load(Ordering::SeqCst)).await;
    free.store(true, Ordering::SeqCst);
    store.heal();
    handle.shutdown().await.unwrap();
}

/// Set in the process that shall end itself.
const OVERRUN: &str = "RENDEZ_TEST_OVERRUN";

#[test]
fn an_overrun_of_a_lost_lease_ends_the_process_unless_something_else_was_chosen() {
    if std::env::var_os(OVERRUN).is_none() {
        let mut me = std::process::Command::new(std::env::current_exe().unwrap());
        me.args(["--exact", "runners::an_overrun_of_a_lost_lease_ends_the_process_unless_something_else_was_chosen"]);
        let ended = me.env(OVERRUN, "1").output().unwrap();
        assert_eq!(ended.status.code(), Some(rendez::EXIT_CODE_OVERRUN), "{ended:?}");
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = TestStore::new();
        let builder = node(&store, "a", 1).overrun_policy(rendez::OverrunPolicy::default());
        let builder = builder.runner(|_: SlotContext| async { std::thread::sleep(crate::support::PATIENCE * 2) });
        let handle = builder.start().await.unwrap();
        owns(&handle, 1).await;
        store.always("heartbeat", crate::store::Fault::Hangs);
        eventually("the end of the process", || false).await;
    });
}

#[test]
fn a_runtime_that_its_runners_block_is_noticed_from_outside() {
    let store = TestStore::new();
    let free = Arc::new(AtomicBool::new(false));
    let (flag, call) = (free.clone(), free.clone());
    let runner = move |ctx: SlotContext| {
        let free = flag.clone();
        async move {
            while !free.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
            }
            ctx.cancelled().await;
        }
    };
    let policy = rendez::OverrunPolicy::call(move |slot, _| {
        assert_eq!(*slot, inbox(0));
        call.store(true, Ordering::SeqCst);
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let handle = node(&store, "a", 1).runner(runner).overrun_policy(policy).start().await.unwrap();
        // Blocked as soon as the slot has come, until the policy is asked.
        eventually("it was asked", || free.load(Ordering::SeqCst)).await;
        owns(&handle, 1).await;
        handle.shutdown().await.unwrap();
    });
}

struct Warm {
    log: Arc<std::sync::Mutex<Vec<String>>>,
    ready: AtomicBool,
}

#[async_trait]
impl RunnerFactory for Warm {
    async fn make(&self, ctx: &SlotContext) -> Result<Box<dyn Runner>, BoxError> {
        self.log.lock().unwrap().push(format!("make {}", ctx.slot()));
        idle.make(ctx).await
    }

    async fn warm_up(&self, slot: &rendez::Slot) -> Result<(), BoxError> {
        self.log.lock().unwrap().push(format!("warm up {slot}"));
        match self.ready.load(Ordering::SeqCst) {
            true => Ok(()),
            false => panic!("not ready"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offered_slot_is_warmed_up_before_it_comes_and_refused_if_that_fails() {
    let store = TestStore::new();
    let cold = Arc::new(Warm { log: Arc::default(), ready: AtomicBool::new(false) });
    let warm = Arc::new(Warm { log: Arc::default(), ready: AtomicBool::new(true) });
    let a = node(&store, "a", 2).runner(idle).start().await.unwrap();
    owns(&a, 2).await;
    let diary = Diary::default();
    let c = node(&store, "c", 2).shared_runner(cold.clone()).on_event(diary.hook()).start().await.unwrap();
    a.drain(true).await.unwrap();
    diary.tells("the refusal", |event| matches!(event, Event::OfferRefused { .. })).await;
    c.cordon(true).await.unwrap();
    let b = node(&store, "b", 2).shared_runner(warm.clone()).start().await.unwrap();
    owns(&b, 2).await;
    let log = warm.log.lock().unwrap().clone();
    for unit in 0..2 {
        let at = |what: &str| log.iter().position(|line| *line == format!("{what} inbox/{unit}"));
        assert!(at("warm up").is_some() && at("warm up") < at("make"), "{log:?}");
    }
    assert!(cold.log.lock().unwrap().iter().all(|line| line.starts_with("warm up")));
    for node in [a, b, c] {
        node.shutdown().await.unwrap();
    }
}

/// A runner that must see to its end itself, as one with a child process.
struct Keeper(Arc<AtomicBool>);

#[async_trait]
impl Runner for Keeper {
    async fn run(&mut self, ctx: SlotContext) -> Result<(), BoxError> {
        ctx.aborted().await;
        assert!(ctx.check().is_err());
        tokio::time::sleep(Duration::from_millis(20)).await; // waits for its child's end
        self.0.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn ends_itself(&self) -> bool {
        true
    }
}

struct Keepers(Arc<AtomicBool>);

#[async_trait]
impl RunnerFactory for Keepers {
    async fn make(&self, _: &SlotContext) -> Result<Box<dyn Runner>, BoxError> {
        Ok(Box::new(Keeper(self.0.clone())))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_that_ends_itself_is_asked_to_and_waited_for() {
    let store = TestStore::new();
    let (diary, done) = (Diary::default(), Arc::new(AtomicBool::new(false)));
    let builder = node(&store, "a", 1).runner(Keepers(done.clone())).on_event(diary.hook());
    let handle = builder.start().await.unwrap();
    owns(&handle, 1).await;
    handle.set_workloads(Default::default()).await.unwrap();
    diary.tells("its end", |event| ended(event, 0, &RunnerEnd::Aborted)).await;
    assert!(done.load(Ordering::SeqCst));
    eventually("the slot is free", || store.held().is_empty()).await;
    handle.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_saved_checkpoint_survives_the_runner_and_a_leaked_context_is_harmless() {
    let store = TestStore::new();
    let leaked: Arc<std::sync::Mutex<Vec<SlotContext>>> = Arc::default();
    let keep = leaked.clone();
    let runner = move |ctx: SlotContext| {
        let keep = keep.clone();
        async move {
            keep.lock().unwrap().push(ctx.clone());
            if ctx.checkpoint().is_none() {
                let large = ctx.save_checkpoint(vec![0; 4097]).await;
                assert_eq!(large, Err(CheckpointError::TooLarge { bytes: 4097 }));
                while ctx.save_checkpoint("at 17").await.is_err() {}
                panic!("and then it crashes");
            }
            ctx.cancelled().await;
        }
    };
    let a = node(&store, "a", 1).runner(runner.clone()).start().await.unwrap();
    eventually("it is saved", || store.slot(&inbox(0)).is_some_and(|record| record.checkpoint.is_some())).await;
    a.shutdown().await.unwrap();
    for ctx in leaked.lock().unwrap().drain(..) {
        assert!(ctx.check().is_err() && ctx.remaining().is_zero());
    }

    let b = node(&store, "b", 1).runner(runner).start().await.unwrap();
    owns(&b, 1).await;
    eventually("it runs", || !leaked.lock().unwrap().is_empty()).await;
    let ctx = leaked.lock().unwrap()[0].clone();
    assert_eq!(ctx.checkpoint().map(|left| &left[..]), Some(&b"at 17"[..]));
    assert!(ctx.check().is_ok() && ctx.check_for(Duration::from_secs(3600)).is_err());
    b.shutdown().await.unwrap();
    assert_eq!(ctx.save_checkpoint("too late").await, Err(CheckpointError::LeaseGone));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadlines_move_on_while_the_store_answers() {
    let store = TestStore::new();
    let handle = node(&store, "a", 1).runner(idle).start().await.unwrap();
    owns(&handle, 1).await;
    let lease = handle.lease(&inbox(0)).unwrap();
    let mut changes = lease.deadline_changes();
    let first = *changes.borrow_and_update();
    tokio::time::timeout(crate::support::PATIENCE, changes.changed()).await.unwrap().unwrap();
    assert!(*changes.borrow() > first && lease.deadline() >= *changes.borrow());
    handle.shutdown().await.unwrap();
}
