//! The store of the tests: the memory store of one cluster, and faults on demand.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use rendez::core::{
    AdminOutcome, AdminRequest, Beat, ChangeReply, ChangeRequest, CloseRequest, HeartbeatRequest, OpenRequest, Opening,
    SlotRecord, SnapshotPage, SnapshotRequest,
};
use rendez::{Capabilities, ClusterName, ErrorKind, LeaseStore, MemoryStore, Slot, StoreError, Watch, WatchHint};
use tokio::sync::watch;

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
    memory: MemoryStore,
    faults: Mutex<Faults>,
    /// How many times all watches were ended.
    watches_ended: watch::Sender<u32>,
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

/// The cluster of the tests.
pub(crate) fn cluster() -> ClusterName {
    ClusterName::new("test").unwrap()
}

impl TestStore {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner {
            memory: MemoryStore::with_capabilities(7, Capabilities::strict("test")),
            faults: Mutex::default(),
            watches_ended: watch::Sender::new(0),
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
        self.0.watches_ended.send_modify(|times| *times += 1);
    }

    pub(crate) fn watches_opened(&self) -> usize {
        self.0.watches.load(Ordering::SeqCst)
    }

    pub(crate) fn without_watch(&self) {
        self.0.no_watch.store(true, Ordering::SeqCst);
    }

    pub(crate) fn slot(&self, slot: &Slot) -> Option<SlotRecord> {
        self.0.memory.inspect(&cluster(), |model, _| model.slot(slot).cloned()).flatten()
    }

    /// Slots that name a holder whose session lives.
    pub(crate) fn held(&self) -> Vec<Slot> {
        let held = self.0.memory.inspect(&cluster(), |model, now| {
            let alive = |record: &SlotRecord| record.holder.as_ref().is_some_and(|h| model.is_alive(now, h.session));
            model.slots().filter(|(_, record)| alive(record)).map(|(slot, _)| slot.clone()).collect()
        });
        held.unwrap_or_default()
    }

    pub(crate) fn sessions_alive(&self) -> usize {
        let alive = self.0.memory.inspect(&cluster(), |model, now| {
            model.sessions().filter(|(session, _, _)| model.is_alive(now, *session)).count()
        });
        alive.unwrap_or(0)
    }

    /// Does a request, or what shall happen instead.
    async fn call<T>(
        &self,
        operation: &'static str,
        request: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let fault = {
            let mut faults = lock(&self.0.faults);
            let once = faults.once.get_mut(operation).and_then(VecDeque::pop_front);
            once.or_else(|| faults.always.get(operation).copied())
        };
        match fault {
            Some(Fault::Fails(kind)) => Err(StoreError::new(kind, "it was told to fail")),
            Some(Fault::Panics) => panic!("the store was told to panic"),
            Some(Fault::Hangs) => std::future::pending().await,
            Some(Fault::HangsAfterwards) => {
                let _ = request.await;
                std::future::pending().await
            }
            None => request.await,
        }
    }
}

#[async_trait]
impl LeaseStore for TestStore {
    fn capabilities(&self) -> Capabilities {
        self.0.memory.capabilities()
    }

    async fn open(&self, cluster: &ClusterName, request: &OpenRequest) -> Result<Opening, StoreError> {
        self.call("open", self.0.memory.open(cluster, request)).await
    }

    async fn heartbeat(&self, cluster: &ClusterName, request: &HeartbeatRequest) -> Result<Beat, StoreError> {
        self.call("heartbeat", self.0.memory.heartbeat(cluster, request)).await
    }

    async fn close(&self, cluster: &ClusterName, request: &CloseRequest) -> Result<(), StoreError> {
        self.call("close", self.0.memory.close(cluster, request)).await
    }

    async fn change(&self, cluster: &ClusterName, request: &ChangeRequest) -> Result<ChangeReply, StoreError> {
        self.call("change", self.0.memory.change(cluster, request)).await
    }

    async fn snapshot(&self, cluster: &ClusterName, request: &SnapshotRequest) -> Result<SnapshotPage, StoreError> {
        self.call("snapshot", self.0.memory.snapshot(cluster, request)).await
    }

    async fn administer(&self, cluster: &ClusterName, request: &AdminRequest) -> Result<AdminOutcome, StoreError> {
        self.0.memory.administer(cluster, request).await
    }

    async fn watch(&self, cluster: &ClusterName) -> Result<Box<dyn Watch>, StoreError> {
        self.0.watches.fetch_add(1, Ordering::SeqCst);
        if self.0.no_watch.load(Ordering::SeqCst) {
            return Err(StoreError::new(ErrorKind::Unsupported, "there is no watch"));
        }
        let ended = self.0.watches_ended.subscribe();
        Ok(Box::new(TestWatch { memory: self.0.memory.watch(cluster).await?, ended }))
    }
}

struct TestWatch {
    memory: Box<dyn Watch>,
    ended: watch::Receiver<u32>,
}

#[async_trait]
impl Watch for TestWatch {
    async fn next(&mut self) -> Option<WatchHint> {
        tokio::select! {
            _ = self.ended.changed() => None,
            hint = self.memory.next() => hint,
        }
    }
}
