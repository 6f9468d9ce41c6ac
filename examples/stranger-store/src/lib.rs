//! A store for rendez that rendez does not ship, written against `rendez-core` only.
//!
//! It keeps its data in the process, behind one lock: what is to be seen here is how little a store must decide
//! itself. What happens to a slot is [`Actor::decide`](rendez_core::Actor::decide)'s business, what no store accepts
//! is [`Capabilities`]'; a store brings sessions, revisions, the clock, and the notice that data were lost. A store in
//! a database has a transaction where this one has its lock.

mod cluster;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use rendez_core::{
    AdminOutcome, AdminRequest, Beat, Capabilities, ChangeReply, ChangeRequest, CloseRequest, ClusterName,
    HeartbeatRequest, LeaseStore, OpenRequest, Opening, SnapshotPage, SnapshotRequest, StoreError, StoreTime, Watch,
    WatchHint,
};
use tokio::sync::broadcast;

use cluster::Cluster;

/// The most hints that a watch lags behind; then it is told that everything may have changed.
const HINTS_KEPT: usize = 256;

/// The store. A clone is the same one.
#[derive(Clone, Default)]
pub struct ShelfStore {
    clusters: Arc<Mutex<BTreeMap<ClusterName, Entry>>>,
}

struct Entry {
    cluster: Cluster,
    hints: broadcast::Sender<WatchHint>,
}

impl Default for Entry {
    fn default() -> Self {
        Self { cluster: Cluster::default(), hints: broadcast::Sender::new(HINTS_KEPT) }
    }
}

impl ShelfStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets everything, as a server does that comes back without its disk.
    pub fn forget_everything(&self) {
        self.lock().values_mut().for_each(|entry| entry.cluster = Cluster::default());
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ClusterName, Entry>> {
        self.clusters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One request, at one moment: the lock is the transaction.
    fn at_once<T>(&self, name: &ClusterName, act: impl FnOnce(&mut Cluster, StoreTime) -> T) -> T {
        let mut clusters = self.lock();
        let entry = clusters.entry(name.clone()).or_default();
        let now =
            entry.cluster.tick(StoreTime::default() + SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
        let reply = act(&mut entry.cluster, now);
        for hint in entry.cluster.take_hints() {
            // An error says that nobody watches.
            let _ = entry.hints.send(hint);
        }
        reply
    }
}

#[async_trait]
impl LeaseStore for ShelfStore {
    fn capabilities(&self) -> Capabilities {
        cluster::capabilities()
    }

    async fn open(&self, cluster: &ClusterName, request: &OpenRequest) -> Result<Opening, StoreError> {
        self.at_once(cluster, |cluster, now| cluster.open(now, request))
    }

    async fn heartbeat(&self, cluster: &ClusterName, request: &HeartbeatRequest) -> Result<Beat, StoreError> {
        self.at_once(cluster, |cluster, now| cluster.heartbeat(now, request))
    }

    async fn close(&self, cluster: &ClusterName, request: &CloseRequest) -> Result<(), StoreError> {
        self.at_once(cluster, |cluster, now| cluster.close(now, request))
    }

    async fn change(&self, cluster: &ClusterName, request: &ChangeRequest) -> Result<ChangeReply, StoreError> {
        self.at_once(cluster, |cluster, now| cluster.change(now, request))
    }

    async fn snapshot(&self, cluster: &ClusterName, request: &SnapshotRequest) -> Result<SnapshotPage, StoreError> {
        self.at_once(cluster, |cluster, now| cluster.snapshot(now, request))
    }

    async fn administer(&self, cluster: &ClusterName, request: &AdminRequest) -> Result<AdminOutcome, StoreError> {
        self.at_once(cluster, |cluster, now| cluster.administer(now, request))
    }

    async fn watch(&self, cluster: &ClusterName) -> Result<Box<dyn Watch>, StoreError> {
        Ok(Box::new(ShelfWatch(self.lock().entry(cluster.clone()).or_default().hints.subscribe())))
    }
}

struct ShelfWatch(broadcast::Receiver<WatchHint>);

#[async_trait]
impl Watch for ShelfWatch {
    async fn next(&mut self) -> Option<WatchHint> {
        match self.0.recv().await {
            Ok(hint) => Some(hint),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(WatchHint::Everyone),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}
