//! The store of the tests: the model of the contract, and faults on demand.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use rendez::core::{
    AdminOutcome, AdminRequest, Beat, Call, ChangeReply, ChangeRequest, CloseRequest, HeartbeatRequest, OpenRequest,
    Opening, Reply, SlotRecord, SnapshotPage, SnapshotRequest, StoreModel, StoreTime,
};
use rendez::{Capabilities, ClusterName, ErrorKind, LeaseStore, Slot, StoreError, Watch, WatchHint, boot_time};
use tokio::sync::broadcast;

/// What a request meets instead of the store.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    Fails(ErrorKind),
    Panics,
    Hangs,
    /// It is done, but the answer is lost.
    HangsAfterwards,
}

/// All clones are one store.
#[derive(Clone)]
pub(crate) struct TestStore(Arc<Inner>);

struct Inner {
    model: Mutex<StoreModel>,
    faults: Mutex<Faults>,
    hints: Mutex<broadcast::Sender<WatchHint>>,
    watches: AtomicUsize,
    no_watch: AtomicBool,
}

#[derive(Default)]
struct Faults {
    once: HashMap<&'static str, VecDeque<Fault>>,
    always: HashMap<&'static str, Fault>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn store_time() -> StoreTime {
    StoreTime::from_micros(1_790_000_000_000_000 + boot_time().as_nanos() / 1000)
}

impl TestStore {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner {
            model: Mutex::new(StoreModel::new(7, Capabilities::strict("test"))),
            faults: Mutex::default(),
            hints: Mutex::new(broadcast::Sender::new(64)),
            watches: AtomicUsize::new(0),
            no_watch: AtomicBool::new(false),
        }))
    }

    /// The next request of this kind meets a fault.
    pub(crate) fn once(&self, operation: &'static str, fault: Fault) {
        lock(&self.0.faults).once.entry(operation).or_default().push_back(fault);
    }

    /// All requests of this kind meet a fault.
    pub(crate) fn always(&self, operation: &'static str, fault: Fault) {
        lock(&self.0.faults).always.insert(operation, fault);
    }

    pub(crate) fn heal(&self) {
        *lock(&self.0.faults) = Faults::default();
    }

    /// Faults that were ordered once and not met yet.
    pub(crate) fn faults_left(&self) -> usize {
        lock(&self.0.faults).once.values().map(VecDeque::len).sum()
    }

    pub(crate) fn end_watches(&self) {
        *lock(&self.0.hints) = broadcast::Sender::new(64);
    }

    pub(crate) fn watches_opened(&self) -> usize {
        self.0.watches.load(Ordering::SeqCst)
    }

    pub(crate) fn without_watch(&self) {
        self.0.no_watch.store(true, Ordering::SeqCst);
    }

    pub(crate) fn slot(&self, slot: &Slot) -> Option<SlotRecord> {
        lock(&self.0.model).slot(slot).cloned()
    }

    /// Slots that name a holder whose session lives.
    pub(crate) fn held(&self) -> Vec<Slot> {
        let (model, now) = (lock(&self.0.model), store_time());
        let alive = |record: &SlotRecord| record.holder.as_ref().is_some_and(|h| model.is_alive(now, h.session));
        model.slots().filter(|(_, record)| alive(record)).map(|(slot, _)| slot.clone()).collect()
    }

    pub(crate) fn sessions_alive(&self) -> usize {
        let (model, now) = (lock(&self.0.model), store_time());
        model.sessions().filter(|(id, _, _)| model.is_alive(now, *id)).count()
    }

    async fn call(&self, operation: &'static str, call: Call) -> Result<Reply, StoreError> {
        let fault = {
            let mut faults = lock(&self.0.faults);
            let once = faults.once.get_mut(operation).and_then(VecDeque::pop_front);
            once.or_else(|| faults.always.get(operation).copied())
        };
        match fault {
            Some(Fault::Fails(kind)) => return Err(StoreError::new(kind, "it was told to fail")),
            Some(Fault::Panics) => panic!("the store was told to panic"),
            Some(Fault::Hangs) => std::future::pending().await,
            Some(Fault::HangsAfterwards) | None => {}
        }
        let result = {
            let mut model = lock(&self.0.model);
            let result = model.call(store_time(), &call);
            let hints = lock(&self.0.hints);
            for hint in model.take_hints() {
                let _ = hints.send(hint);
            }
            result
        };
        if matches!(fault, Some(Fault::HangsAfterwards)) {
            std::future::pending::<()>().await;
        }
        result
    }
}

#[async_trait]
impl LeaseStore for TestStore {
    fn capabilities(&self) -> Capabilities {
        lock(&self.0.model).capabilities().clone()
    }

    async fn open(&self, _: &ClusterName, request: &OpenRequest) -> Result<Opening, StoreError> {
        match self.call("open", Call::Open(request.clone())).await? {
            Reply::Open(opening) => Ok(opening),
            other => panic!("{other:?}"),
        }
    }

    async fn heartbeat(&self, _: &ClusterName, request: &HeartbeatRequest) -> Result<Beat, StoreError> {
        match self.call("heartbeat", Call::Heartbeat(request.clone())).await? {
            Reply::Heartbeat(beat) => Ok(beat),
            other => panic!("{other:?}"),
        }
    }

    async fn close(&self, _: &ClusterName, request: &CloseRequest) -> Result<(), StoreError> {
        self.call("close", Call::Close(request.clone())).await.map(|_| ())
    }

    async fn change(&self, _: &ClusterName, request: &ChangeRequest) -> Result<ChangeReply, StoreError> {
        match self.call("change", Call::Change(request.clone())).await? {
            Reply::Change(reply) => Ok(reply),
            other => panic!("{other:?}"),
        }
    }

    async fn snapshot(&self, _: &ClusterName, request: &SnapshotRequest) -> Result<SnapshotPage, StoreError> {
        match self.call("snapshot", Call::Snapshot(request.clone())).await? {
            Reply::Snapshot(page) => Ok(page),
            other => panic!("{other:?}"),
        }
    }

    async fn administer(&self, _: &ClusterName, request: &AdminRequest) -> Result<AdminOutcome, StoreError> {
        lock(&self.0.model).administer(store_time(), request)
    }

    async fn watch(&self, _: &ClusterName) -> Result<Box<dyn Watch>, StoreError> {
        self.0.watches.fetch_add(1, Ordering::SeqCst);
        if self.0.no_watch.load(Ordering::SeqCst) {
            return Err(StoreError::new(ErrorKind::Unsupported, "there is no watch"));
        }
        Ok(Box::new(TestWatch(lock(&self.0.hints).subscribe())))
    }
}

struct TestWatch(broadcast::Receiver<WatchHint>);

#[async_trait]
impl Watch for TestWatch {
    async fn next(&mut self) -> Option<WatchHint> {
        match self.0.recv().await {
            Ok(hint) => Some(hint),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(WatchHint::Everyone),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}
