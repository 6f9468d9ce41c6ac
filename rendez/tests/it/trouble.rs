//! Stores that panic, hang, lose answers or have no watch: no restart is ever needed.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use rendez::{ErrorKind, Event, SlotContext, boot_time};

use crate::store::{Fault, TestStore};
use crate::support::{Diary, config, eventually, idle, inbox, node, owns};

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

/// Set in the process that is paused.
const PAUSED: &str = "RENDEZ_TEST_PAUSED";

#[test]
fn a_process_that_was_paused_beyond_its_lease_knows_so_before_it_goes_on() {
    if std::env::var_os(PAUSED).is_some() {
        return run_until_killed();
    }
    let mut me = Command::new(std::env::current_exe().unwrap());
    me.args(["--exact", "trouble::a_process_that_was_paused_beyond_its_lease_knows_so_before_it_goes_on"]);
    let mut child = me.arg("--nocapture").env(PAUSED, "1").stdout(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let signal = |name: &str| {
        let sent = Command::new("sh").args(["-c", &format!("kill -{name} {pid}")]).status().unwrap();
        assert!(sent.success());
    };
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut lines = lines.filter_map(|line| line.split_once("PAUSED ").map(|(_, what)| what.to_owned()));
    assert_eq!(lines.next().as_deref(), Some("runs"));
    signal("STOP");
    std::thread::sleep(config().timing.session_ttl * 3 / 2);
    signal("CONT");
    assert_eq!(lines.next().as_deref(), Some("runs"), "nothing was done under the old lease, and it came back alone");
    child.kill().unwrap();
    child.wait().unwrap();
}

fn run_until_killed() {
    let runner = |ctx: SlotContext| async move {
        println!("PAUSED runs");
        let mut last = boot_time();
        loop {
            let now = boot_time();
            if ctx.check().is_err() {
                return; // unless it is aborted first
            }
            if now.since(last) > config().timing.session_ttl {
                println!("PAUSED went on");
            }
            last = now;
            std::thread::sleep(Duration::from_millis(1));
            tokio::task::yield_now().await;
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let _handle = node(&TestStore::new(), "a", 1).runner(runner).start().await.unwrap();
        // Its parent kills it; without one it ends by itself.
        tokio::time::sleep(crate::support::PATIENCE * 2).await;
    });
}
