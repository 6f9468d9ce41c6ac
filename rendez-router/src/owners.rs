//! Who owns which shard now, for clients: read from the store, and kept up to date by its watch.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rendez_core::{
    ClusterName, ClusterView, ErrorKind, FencingToken, Known, LeaseStore, NodeId, SnapshotRequest, StoreError,
    Timestamp, Watch, WorkloadName,
};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;

/// How long one page of a reading may take, and the opening of a watch.
const PAGE_TIMEOUT: Duration = Duration::from_secs(2);

/// Readings follow each other at least after this: hints come in swarms.
const PAUSE_MIN: Duration = Duration::from_millis(10);

/// Readings follow each other at most after this, hints or not; and so do tries while the store does not answer.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Who owns a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The node.
    pub node: NodeId,
    /// The token of its lease.
    pub token: FencingToken,
}

/// Who owns which shard now, as far as is known. It may be late: the node that is asked decides whether it owns the shard.
pub trait Owners: Send + Sync + 'static {
    /// Who owns a shard; none if nobody is known to.
    fn owner(&self, shard: u32) -> Option<Owner>;

    /// Counts up with every change.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// Follows a workload's owners in a store, without taking part: for clients that are no nodes.
///
/// At every hint of the store's watch, and every second, it reads all records of the cluster: a few pages for some
/// thousand slots. It never writes. Dropping it ends the following.
pub struct FollowedOwners {
    known: Arc<Picture>,
    _task: AbortOnDropHandle<()>,
}

struct Picture {
    owners: RwLock<HashMap<u32, Owner>>,
    changes: watch::Sender<u64>,
}

impl FollowedOwners {
    /// Begins to follow. Nobody is known to own anything until the first reading; trouble with the store is told to
    /// `tracing` and tried again, and what was known before stays.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn follow(store: Arc<dyn LeaseStore>, cluster: ClusterName, workload: WorkloadName) -> Self {
        let known = Arc::new(Picture { owners: RwLock::default(), changes: watch::Sender::new(0) });
        let follower = Follower { store, cluster, workload, known: known.clone() };
        Self { known, _task: AbortOnDropHandle::new(tokio::spawn(follower.follow())) }
    }
}

impl Owners for FollowedOwners {
    fn owner(&self, shard: u32) -> Option<Owner> {
        self.known.owners.read().unwrap_or_else(PoisonError::into_inner).get(&shard).cloned()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.known.changes.subscribe()
    }
}

impl fmt::Debug for FollowedOwners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = self.known.owners.read().unwrap_or_else(PoisonError::into_inner).len();
        f.debug_struct("FollowedOwners").field("known", &known).finish_non_exhaustive()
    }
}

struct Follower {
    store: Arc<dyn LeaseStore>,
    cluster: ClusterName,
    workload: WorkloadName,
    known: Arc<Picture>,
}

impl Follower {
    async fn follow(self) {
        let mut watch: Option<Box<dyn Watch>> = None;
        let mut pause = PAUSE_MIN;
        loop {
            // Opened before the reading, so that nothing that happens in between is missed.
            if watch.is_none() {
                watch = self.open_watch().await;
            }
            let read_at = Instant::now();
            match self.read().await {
                Ok(owners) => {
                    self.publish(owners);
                    pause = PAUSE_MIN;
                }
                Err(error) => {
                    tracing::debug!(%error, workload = %self.workload, "the owners could not be read");
                    sleep(pause.mul_f64(0.5 + 0.5 * fastrand::f64())).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                    continue;
                }
            }
            sleep_until(read_at + PAUSE_MIN).await;
            if let Some(open) = &mut watch {
                // None: it has ended.
                if let Ok(None) = timeout(PAUSE_MAX, open.next()).await {
                    watch = None;
                    sleep_until(read_at + PAUSE_MIN * 10).await;
                }
            } else {
                sleep_until(read_at + PAUSE_MAX).await;
            }
        }
    }

    async fn open_watch(&self) -> Option<Box<dyn Watch>> {
        match timeout(PAGE_TIMEOUT, self.store.watch(&self.cluster)).await {
            Ok(Ok(watch)) => Some(watch),
            Ok(Err(error)) => {
                tracing::debug!(%error, workload = %self.workload, "there is no watch: the owners are read every second");
                None
            }
            Err(_) => None,
        }
    }

    async fn read(&self) -> Result<HashMap<u32, Owner>, StoreError> {
        let (mut first, mut items, mut cursor) = (None, Vec::new(), None);
        loop {
            let request = SnapshotRequest { known: Known::default(), session: None, cursor };
            let page = timeout(PAGE_TIMEOUT, self.store.snapshot(&self.cluster, &request)).await;
            let page = page.unwrap_or_else(|_| Err(StoreError::new(ErrorKind::Transient, "no answer in time")))?;
            items.extend(page.items);
            let stamp = first.get_or_insert(page.stamp).clone();
            cursor = page.next;
            if cursor.is_none() {
                // What is read hangs on no time of this process.
                let view = ClusterView::from_snapshot(Timestamp::from_nanos(0), stamp, items);
                return Ok(self.owners(&view));
            }
        }
    }

    fn owners(&self, view: &ClusterView) -> HashMap<u32, Owner> {
        let held = view.sessions().flat_map(|(session, record)| {
            view.held_by(session).filter_map(|slot| {
                let token = view.slot(slot)?.token;
                let own = slot.workload == self.workload;
                own.then(|| (slot.unit, Owner { node: record.info.node.clone(), token }))
            })
        });
        held.collect()
    }

    fn publish(&self, owners: HashMap<u32, Owner>) {
        let mut known = self.known.owners.write().unwrap_or_else(PoisonError::into_inner);
        if *known != owners {
            *known = owners;
            drop(known);
            self.known.changes.send_modify(|count| *count += 1);
        }
    }
}
