//! What the tests share.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rendez::{Coordinator, CoordinatorBuilder, EngineConfig, Event, Handle, OverrunPolicy, Slot};

use crate::store::TestStore;

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Times that make tests fast on a quiet machine, and that a busy one can still keep.
pub(crate) fn config() -> EngineConfig {
    let mut config = EngineConfig::for_ttl(Duration::from_secs(3));
    config.runners.restart_backoff_min = Duration::from_millis(20);
    config.drain_timeout = Duration::from_secs(20);
    config
}

/// A node of the cluster `test` with a workload `inbox`.
pub(crate) fn node(store: &TestStore, name: &str, units: u32) -> CoordinatorBuilder {
    Coordinator::builder()
        .store(store.clone())
        .cluster("test")
        .node_id(name)
        .workload("inbox", units)
        .engine_config(config())
        .connect_timeout(PATIENCE)
        .overrun_policy(OverrunPolicy::Report)
}

pub(crate) fn inbox(unit: u32) -> Slot {
    format!("inbox/{unit}").parse().unwrap()
}

/// Waits until something is so.
pub(crate) async fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let wait = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "{what}: not so after {PATIENCE:?}");
}

pub(crate) async fn owns(handle: &Handle, count: usize) {
    eventually(&format!("{} owns {count} slots", handle.node()), || handle.owned().len() == count).await;
}

/// Everything that a node has told, for `on_event`.
#[derive(Clone, Default)]
pub(crate) struct Diary(Arc<Mutex<Vec<Event>>>);

impl Diary {
    pub(crate) fn hook(&self) -> impl Fn(&Event) + Send + Sync + 'static {
        let diary = self.clone();
        move |event| diary.0.lock().unwrap().push(event.clone())
    }

    pub(crate) fn has(&self, wanted: impl Fn(&Event) -> bool) -> bool {
        self.0.lock().unwrap().iter().any(wanted)
    }

    pub(crate) async fn tells(&self, what: &str, wanted: impl Fn(&Event) -> bool) {
        eventually(what, || self.has(&wanted)).await;
    }
}

/// A runner that waits for its end.
pub(crate) async fn idle(ctx: rendez::SlotContext) {
    ctx.cancelled().await;
}
