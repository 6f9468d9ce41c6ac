//! The store in memory: the model of the contract behind a lock, for tests, demonstrations and single processes.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use rendez_core::{
    AdminOutcome, AdminRequest, Beat, Capabilities, ChangeReply, ChangeRequest, CloseRequest, ClusterName,
    HeartbeatRequest, LeaseStore, OpenRequest, Opening, SnapshotPage, SnapshotRequest, StoreError, StoreModel,
    StoreTime, Timestamp, Watch, WatchHint,
};
use tokio::sync::{broadcast, watch};

use crate::clock::boot_time;

/// The most hints that a watch lags behind; then it is told that everything may have changed.
const HINTS_KEPT: usize = 256;

/// A store that lives and dies with the process. A clone is the same store.
///
/// It keeps every promise of the contract, since nothing but the process's end can make it forget. To see how nodes
/// bear a store that does worse, let it [stall](Self::stall), [lag](Self::set_latency) or [lose its
/// data](Self::lose_everything).
#[derive(Clone)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

struct Shared {
    capabilities: Capabilities,
    seed: u64,
    clock: StoreClock,
    clusters: Mutex<BTreeMap<ClusterName, Cluster>>,
    faults: watch::Sender<Faults>,
}

struct Cluster {
    model: StoreModel,
    hints: broadcast::Sender<WatchHint>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Faults {
    stalled: bool,
    latency: Duration,
}

/// The boot-time clock, set once by the wall clock: it does not step, and goes on while the system is suspended.
#[derive(Clone, Copy)]
struct StoreClock {
    zero: StoreTime,
    zero_at: Timestamp,
}

impl StoreClock {
    fn start() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { zero: StoreTime::default() + wall, zero_at: boot_time() }
    }

    fn now(self) -> StoreTime {
        self.zero + boot_time().since(self.zero_at)
    }
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        let mut seed = [0; 8];
        // Without a source of randomness, two stores of one process may draw the same generations: nothing mixes them.
        let _ = getrandom::fill(&mut seed);
        Self::with_capabilities(u64::from_ne_bytes(seed), Capabilities::strict("memory"))
    }

    /// An empty store that says this about itself, and draws its generations from this seed.
    #[must_use]
    pub fn with_capabilities(seed: u64, capabilities: Capabilities) -> Self {
        let shared = Shared {
            capabilities,
            seed,
            clock: StoreClock::start(),
            clusters: Mutex::default(),
            faults: watch::Sender::new(Faults::default()),
        };
        Self { shared: Arc::new(shared) }
    }

    /// From now on requests hang: none takes effect before [`resume`](Self::resume), and none at all whose caller has
    /// gone away by then.
    pub fn stall(&self) {
        self.shared.faults.send_modify(|faults| faults.stalled = true);
    }

    /// Lets the hanging requests go on, and all later ones.
    pub fn resume(&self) {
        self.shared.faults.send_modify(|faults| faults.stalled = false);
    }

    /// From now on every request takes this long: half of it on its way to the store, half of it on the way back.
    pub fn set_latency(&self, latency: Duration) {
        self.shared.faults.send_modify(|faults| faults.latency = latency);
    }

    /// Forgets everything, in all clusters. Nodes that remember set off a quiet time.
    pub fn lose_everything(&self) {
        self.clusters().values_mut().for_each(|cluster| cluster.model.lose_everything());
    }

    /// Says from now on that data may have been lost, though none were: as after a server's restart.
    pub fn restart(&self) {
        self.clusters().values_mut().for_each(|cluster| cluster.model.restart());
    }

    /// Looks at what the store keeps of a cluster, for tests and demonstrations; nothing if it was never asked about
    /// it. The store answers nobody else meanwhile.
    pub fn inspect<T>(&self, cluster: &ClusterName, look: impl FnOnce(&StoreModel, StoreTime) -> T) -> Option<T> {
        let clusters = self.clusters();
        clusters.get(cluster).map(|cluster| look(&cluster.model, self.shared.clock.now()))
    }

    fn clusters(&self) -> MutexGuard<'_, BTreeMap<ClusterName, Cluster>> {
        // Whoever panicked was looking, not writing.
        self.shared.clusters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_cluster<T>(&self, cluster: &ClusterName, act: impl FnOnce(&mut Cluster) -> T) -> T {
        let mut clusters = self.clusters();
        if let Some(cluster) = clusters.get_mut(cluster) {
            return act(cluster);
        }
        let seed = self.shared.seed.wrapping_add(clusters.len() as u64);
        let fresh = Cluster {
            model: StoreModel::new(seed, self.shared.capabilities.clone()),
            hints: broadcast::Sender::new(HINTS_KEPT),
        };
        act(clusters.entry(cluster.clone()).or_insert(fresh))
    }

    /// Carries out a request as late as the faults want it. It takes effect between the two waits or, if it is
    /// cancelled in the first, not at all.
    async fn request<T>(&self, cluster: &ClusterName, act: impl FnOnce(&mut StoreModel, StoreTime) -> T + Send) -> T {
        let mut faults = self.shared.faults.subscribe();
        let latency = faults.borrow_and_update().latency;
        wait(latency / 2).await;
        // The sender is in `self`, so this cannot end before the store is resumed.
        let _ = faults.wait_for(|faults| !faults.stalled).await;
        let reply = self.with_cluster(cluster, |cluster| {
            let reply = act(&mut cluster.model, self.shared.clock.now());
            for hint in cluster.model.take_hints() {
                // An error says that nobody watches.
                let _ = cluster.hints.send(hint);
            }
            reply
        });
        wait(latency / 2).await;
        reply
    }
}

async fn wait(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("faults", &*self.shared.faults.borrow()).finish_non_exhaustive()
    }
}

#[async_trait]
impl LeaseStore for MemoryStore {
    fn capabilities(&self) -> Capabilities {
        self.shared.capabilities.clone()
    }

    async fn open(&self, cluster: &ClusterName, request: &OpenRequest) -> Result<Opening, StoreError> {
        self.request(cluster, |model, now| model.open(now, request)).await
    }

    async fn heartbeat(&self, cluster: &ClusterName, request: &HeartbeatRequest) -> Result<Beat, StoreError> {
        self.request(cluster, |model, now| model.heartbeat(now, request)).await
    }

    async fn close(&self, cluster: &ClusterName, request: &CloseRequest) -> Result<(), StoreError> {
        self.request(cluster, |model, now| model.close(now, request)).await
    }

    async fn change(&self, cluster: &ClusterName, request: &ChangeRequest) -> Result<ChangeReply, StoreError> {
        self.request(cluster, |model, now| model.change(now, request)).await
    }

    async fn snapshot(&self, cluster: &ClusterName, request: &SnapshotRequest) -> Result<SnapshotPage, StoreError> {
        self.request(cluster, |model, now| model.snapshot(now, request)).await
    }

    async fn administer(&self, cluster: &ClusterName, request: &AdminRequest) -> Result<AdminOutcome, StoreError> {
        self.request(cluster, |model, now| model.administer(now, request)).await
    }

    async fn watch(&self, cluster: &ClusterName) -> Result<Box<dyn Watch>, StoreError> {
        let hints = self.with_cluster(cluster, |cluster| cluster.hints.subscribe());
        Ok(Box::new(MemoryWatch { hints }))
    }
}

struct MemoryWatch {
    hints: broadcast::Receiver<WatchHint>,
}

#[async_trait]
impl Watch for MemoryWatch {
    async fn next(&mut self) -> Option<WatchHint> {
        match self.hints.recv().await {
            Ok(hint) => Some(hint),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(WatchHint::Everyone),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use rendez_core::{ClusterSettings, Incarnation, Known, NodeInfo, OperationId, SessionId};

    use super::*;

    fn name(cluster: &str) -> ClusterName {
        cluster.parse().unwrap()
    }

    fn request(node: &str) -> OpenRequest {
        let ttl = Duration::from_secs(10);
        OpenRequest {
            known: Known::default(),
            operation: OperationId::from_bits(1),
            incarnation: Incarnation::from_bits(1),
            replaces: None,
            ttl,
            info: Arc::new(NodeInfo::new(node.parse().unwrap(), ClusterSettings::new(ttl))),
        }
    }

    async fn open(store: &MemoryStore, cluster: &str, node: &str) -> SessionId {
        match store.open(&name(cluster), &request(node)).await.unwrap() {
            Opening::Opened { session, .. } => session,
            Opening::InUse { .. } => panic!("in use"),
        }
    }

    async fn is_pending<T>(future: impl Future<Output = T>) -> bool {
        tokio::time::timeout(Duration::from_millis(20), future).await.is_err()
    }

    #[tokio::test]
    async fn a_clone_is_the_same_store_and_clusters_are_apart() {
        let store = MemoryStore::new();
        let a = open(&store, "one", "a").await;
        assert_ne!(open(&store.clone(), "two", "a").await, a);
        let sessions = |cluster| store.inspect(&name(cluster), |model, _| model.sessions().count());
        assert_eq!((sessions("one"), sessions("two"), sessions("three")), (Some(1), Some(1), None));
        let now = store.inspect(&name("one"), |_, now| now).unwrap();
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        assert!(wall.as_micros().abs_diff(u128::from(now.as_micros())) < 60_000_000);
    }

    #[tokio::test]
    async fn a_stalled_store_answers_when_it_is_resumed_and_forgets_who_has_gone() {
        let store = MemoryStore::new();
        store.stall();
        assert!(is_pending(open(&store, "c", "gone")).await);
        let waiting = tokio::spawn({
            let store = store.clone();
            async move { open(&store, "c", "a").await }
        });
        assert!(is_pending(std::future::pending::<()>()).await);
        assert_eq!(store.inspect(&name("c"), |_, _| ()), None);
        store.resume();
        let session = waiting.await.unwrap();
        let sessions = store.inspect(&name("c"), |model, _| model.sessions().map(|(id, ..)| id).collect::<Vec<_>>());
        assert_eq!(sessions, Some(vec![session]));
    }

    #[tokio::test]
    async fn a_slow_store_takes_effect_before_it_answers() {
        let store = MemoryStore::new();
        store.set_latency(Duration::from_millis(60));
        let late = tokio::time::timeout(Duration::from_millis(45), open(&store, "c", "a")).await;
        assert!(late.is_err());
        assert_eq!(store.inspect(&name("c"), |model, _| model.sessions().count()), Some(1));
    }

    #[tokio::test]
    async fn watches_hear_of_their_own_cluster_and_of_everything_when_they_lag() {
        let store = MemoryStore::new();
        let session = open(&store, "c", "a").await;
        let mut watch = store.watch(&name("c")).await.unwrap();
        let mut other = store.watch(&name("d")).await.unwrap();
        let close = CloseRequest { known: Known::default(), session };
        store.close(&name("c"), &close).await.unwrap();
        assert_eq!(watch.next().await, Some(WatchHint::Everyone));
        assert!(is_pending(other.next()).await);
        assert!(is_pending(watch.next()).await);
        for _ in 0..=HINTS_KEPT {
            store.with_cluster(&name("c"), |cluster| {
                cluster.hints.send(WatchHint::Session(session)).unwrap();
            });
        }
        assert_eq!(watch.next().await, Some(WatchHint::Everyone));
        assert_eq!(watch.next().await, Some(WatchHint::Session(session)));
    }

    #[tokio::test]
    async fn who_remembers_notices_that_everything_was_lost() {
        let store = MemoryStore::new();
        let session = open(&store, "c", "a").await;
        let generation = store.inspect(&name("c"), |model, _| model.generation()).unwrap();
        store.lose_everything();
        let known = Known { generation, session_ttl_max: Duration::from_secs(10), ..Known::default() };
        store.close(&name("c"), &CloseRequest { known, session }).await.unwrap();
        let quiet = store.inspect(&name("c"), |model, now| model.quiet(now)).unwrap();
        assert!(quiet > Duration::from_secs(10), "{quiet:?}");
    }
}
