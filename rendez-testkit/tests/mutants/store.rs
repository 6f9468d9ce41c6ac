//! The model of the contract behind a lock, with a place to be wrong at each request.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rendez_core::*;
use rendez_testkit::conformance::{Access, Fault, Fixture, OwnServer, Trouble};
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

/// One way of being wrong: what is not said here is right.
pub(crate) struct Mutant {
    pub(crate) name: &'static str,
    pub(crate) open: fn(&mut Cluster, StoreTime, OpenRequest) -> Result<Opening, StoreError>,
    pub(crate) heartbeat: fn(&mut Cluster, StoreTime, HeartbeatRequest) -> Result<Beat, StoreError>,
    pub(crate) close: fn(&mut Cluster, StoreTime, CloseRequest) -> Result<(), StoreError>,
    pub(crate) change: fn(&mut Cluster, StoreTime, ChangeRequest) -> Result<ChangeReply, StoreError>,
    pub(crate) snapshot: fn(&mut Cluster, StoreTime, SnapshotRequest) -> Result<SnapshotPage, StoreError>,
    pub(crate) administer: fn(&mut Cluster, StoreTime, AdminRequest) -> Result<AdminOutcome, StoreError>,
    /// Under which name a cluster is kept.
    pub(crate) cluster: fn(&str) -> String,
    /// Whether a hint is passed on.
    pub(crate) tells: fn(WatchHint) -> bool,
    pub(crate) has_watch: bool,
    /// Batches are made in two halves, with other requests between.
    pub(crate) halves: bool,
    /// A request that meets a stall is done and said not to have happened.
    pub(crate) lies_in_a_stall: bool,
    /// Snapshots are read from an older state, which must be kept.
    pub(crate) lags: bool,
    pub(crate) restart: fn(&mut StoreModel),
    pub(crate) capabilities: fn(&mut Capabilities),
}

/// One cluster, and what mutants remember.
pub(crate) struct Cluster {
    pub(crate) model: StoreModel,
    /// As it was before the last request that may have changed it.
    pub(crate) before: StoreModel,
    /// Any number.
    pub(crate) count: u64,
    hints: broadcast::Sender<WatchHint>,
}

pub(crate) struct MutantFixture {
    mutant: &'static Mutant,
    shared: MutantStore,
}

impl MutantFixture {
    pub(crate) fn new(mutant: &'static Mutant) -> Self {
        Self { mutant, shared: MutantStore::new(mutant) }
    }
}

#[async_trait]
impl Fixture for MutantFixture {
    fn name(&self) -> &str {
        self.mutant.name
    }

    fn lacks(&self, fault: Fault) -> Option<&'static str> {
        match fault {
            Fault::Restart | Fault::RestartEmpty | Fault::Stall => None,
            _ => Some("not of interest here"),
        }
    }

    fn patience(&self) -> Duration {
        Duration::from_millis(100)
    }

    async fn store(&self) -> Result<Arc<dyn LeaseStore>, Trouble> {
        Ok(Arc::new(self.shared.clone()))
    }

    async fn own_server(&self) -> Result<Box<dyn OwnServer>, Trouble> {
        Ok(Box::new(Own(MutantStore::new(self.mutant))))
    }
}

struct Own(MutantStore);

#[async_trait]
impl OwnServer for Own {
    async fn connect(&self, _: Access) -> Result<Arc<dyn LeaseStore>, StoreError> {
        Ok(Arc::new(self.0.clone()))
    }

    async fn restart(&mut self) -> Result<(), Trouble> {
        self.0.clusters().values_mut().for_each(|cluster| (self.0.mutant.restart)(&mut cluster.model));
        Ok(())
    }

    async fn restart_empty(&mut self) -> Result<(), Trouble> {
        self.0.clusters().values_mut().for_each(|cluster| cluster.model.lose_everything());
        Ok(())
    }

    async fn stall(&mut self) -> Result<(), Trouble> {
        self.0.stalled.send_replace(true);
        Ok(())
    }

    async fn resume(&mut self) -> Result<(), Trouble> {
        self.0.stalled.send_replace(false);
        Ok(())
    }
}

#[derive(Clone)]
struct MutantStore {
    mutant: &'static Mutant,
    clusters: Arc<Mutex<BTreeMap<String, Cluster>>>,
    stalled: watch::Sender<bool>,
    zero: (Instant, StoreTime),
}

impl MutantStore {
    fn new(mutant: &'static Mutant) -> Self {
        Self {
            mutant,
            clusters: Arc::default(),
            stalled: watch::Sender::new(false),
            zero: (Instant::now(), StoreTime::from_micros(1_790_000_000_000_000)),
        }
    }

    fn clusters(&self) -> MutexGuard<'_, BTreeMap<String, Cluster>> {
        self.clusters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, cluster: &ClusterName, act: impl FnOnce(&mut Cluster, StoreTime) -> T) -> T {
        let mut clusters = self.clusters();
        let cluster = clusters.entry((self.mutant.cluster)(cluster.as_str())).or_insert_with(|| {
            let model = StoreModel::new(fastrand::u64(..), self.capabilities());
            Cluster { before: model.clone(), model, count: 0, hints: broadcast::Sender::new(1000) }
        });
        let now = self.zero.1 + self.zero.0.elapsed();
        let reply = act(cluster, now);
        for hint in cluster.model.take_hints() {
            if (self.mutant.tells)(hint) {
                let _ = cluster.hints.send(hint);
            }
        }
        reply
    }

    async fn request<T>(
        &self,
        cluster: &ClusterName,
        act: impl FnOnce(&mut Cluster, StoreTime) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        // An await point like that of a request on its way.
        tokio::task::yield_now().await;
        if *self.stalled.borrow() && self.mutant.lies_in_a_stall {
            let _ = self.with(cluster, act);
            return Err(StoreError::new(ErrorKind::Transient, "it did not happen, or so they say"));
        }
        let mut stalled = self.stalled.subscribe();
        let _ = stalled.wait_for(|stalled| !stalled).await;
        self.with(cluster, act)
    }
}

#[async_trait]
impl LeaseStore for MutantStore {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::strict("mutant");
        (self.mutant.capabilities)(&mut capabilities);
        capabilities
    }

    async fn open(&self, cluster: &ClusterName, request: &OpenRequest) -> Result<Opening, StoreError> {
        self.request(cluster, |cluster, now| (self.mutant.open)(cluster, now, request.clone())).await
    }

    async fn heartbeat(&self, cluster: &ClusterName, request: &HeartbeatRequest) -> Result<Beat, StoreError> {
        self.request(cluster, |cluster, now| (self.mutant.heartbeat)(cluster, now, request.clone())).await
    }

    async fn close(&self, cluster: &ClusterName, request: &CloseRequest) -> Result<(), StoreError> {
        self.request(cluster, |cluster, now| (self.mutant.close)(cluster, now, request.clone())).await
    }

    async fn change(&self, cluster: &ClusterName, request: &ChangeRequest) -> Result<ChangeReply, StoreError> {
        let mut request = request.clone();
        let mut outcomes = Vec::new();
        if self.mutant.halves && request.changes.len() > 1 {
            let rest = request.changes.split_off(request.changes.len() / 2);
            let first = request.clone();
            outcomes = self.request(cluster, |cluster, now| cluster.model.change(now, &first)).await?.outcomes;
            request.changes = rest;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let reply = self
            .request(cluster, |cluster, now| {
                if self.mutant.lags {
                    cluster.before = cluster.model.clone();
                }
                (self.mutant.change)(cluster, now, request)
            })
            .await?;
        outcomes.extend(reply.outcomes);
        Ok(ChangeReply { outcomes, ..reply })
    }

    async fn snapshot(&self, cluster: &ClusterName, request: &SnapshotRequest) -> Result<SnapshotPage, StoreError> {
        self.request(cluster, |cluster, now| (self.mutant.snapshot)(cluster, now, request.clone())).await
    }

    async fn administer(&self, cluster: &ClusterName, request: &AdminRequest) -> Result<AdminOutcome, StoreError> {
        self.request(cluster, |cluster, now| (self.mutant.administer)(cluster, now, request.clone())).await
    }

    async fn watch(&self, cluster: &ClusterName) -> Result<Box<dyn Watch>, StoreError> {
        if !self.mutant.has_watch {
            return Err(StoreError::new(ErrorKind::Unsupported, "there is none"));
        }
        Ok(Box::new(MutantWatch(self.with(cluster, |cluster, _| cluster.hints.subscribe()))))
    }
}

struct MutantWatch(broadcast::Receiver<WatchHint>);

#[async_trait]
impl Watch for MutantWatch {
    async fn next(&mut self) -> Option<WatchHint> {
        match self.0.recv().await {
            Ok(hint) => Some(hint),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(WatchHint::Everyone),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}
