//! What the members of a ring must agree on: made by the first of them, checked by all others.
//!
//! Two records of the cluster say it: the one workload, whose units are the partitions and whose policy has the virtual
//! nodes, and the settings that every cluster has. Each is written with a compare-and-set that expects nothing to be there:
//! of any number of first members exactly one writes it, and all read what stands there then. Nothing here opens a session.

use std::fmt;
use std::time::Duration;

use rendez_core::placement::{Policy, VirtualNodes};
use rendez_core::{
    AdminRequest, ClusterSettings, ClusterView, ErrorKind, LeaseStore, Record, RecordKey, Revision, StoreError,
    WorkloadName, WorkloadRecord,
};
use tokio::time::{Instant, sleep, timeout};

use super::id::RingId;
use super::{PARTITIONS, RingError};
use crate::reading::read_cluster;

/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// The first pause after a request that failed, and the longest: it doubles.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The most voluntary moves under way at once in a ring. Partitions are small and many.
const MOVE_BUDGET: u32 = 256;

/// What is agreed once for a ring, by its first member, and holds as long as the ring's records are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingSizes {
    /// How many partitions there are.
    pub partitions: u32,
    /// How many virtual nodes a node of weight 1 has.
    pub virtual_nodes: VirtualNodes,
}

impl fmt::Display for RingSizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} partitions and {} virtual nodes", self.partitions, self.virtual_nodes.get())
    }
}

impl RingSizes {
    /// What the ring that is seen here has agreed on; nothing if it is none, or none yet.
    #[must_use]
    pub fn of(view: &ClusterView) -> Option<Self> {
        let key = RecordKey::Workload(WorkloadName::new(PARTITIONS).ok()?);
        let Record::Workload(workload) = &view.record(&key)?.record else { return None };
        match workload.policy? {
            Policy::Ring(virtual_nodes) => Some(Self { partitions: workload.units, virtual_nodes }),
            _ => None,
        }
    }
}

/// What a member wants of a ring that is not there yet.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) workload: WorkloadName,
    pub(super) sizes: RingSizes,
    pub(super) session_ttl: Duration,
}

/// What a look at the ring comes to.
enum Found {
    /// All is there, and as wanted: the settings that the members share.
    Agreed(ClusterSettings),
    /// This was not there, and is now, whoever wrote it.
    Written,
}

/// Why a try has failed, and whether another may do better.
enum Failed {
    ForGood(RingError),
    Store(StoreError),
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Makes the ring if there is none, and returns the settings that its members share.
///
/// # Errors
/// [`RingError::Sizes`], [`RingError::SessionTtl`] or [`RingError::NotARing`] if it is another's; [`RingError::Store`] if the
/// store has not answered in time. What was agreed before stays as it was.
pub(super) async fn agree(
    store: &dyn LeaseStore,
    ring: &RingId,
    wanted: &Wanted,
    patience: Duration,
) -> Result<ClusterSettings, RingError> {
    let until = Instant::now() + patience;
    let mut pause = PAUSE_MIN;
    loop {
        let error = match look(store, ring, wanted).await {
            Ok(Found::Agreed(settings)) => return Ok(settings),
            Ok(Found::Written) if Instant::now() < until => continue,
            Ok(Found::Written) => StoreError::new(ErrorKind::Conflict, "somebody deletes the ring's records"),
            Err(Failed::ForGood(error)) => return Err(error),
            Err(Failed::Store(error)) => error,
        };
        let hopeless = matches!(error.kind(), ErrorKind::Fatal | ErrorKind::Unsupported);
        if hopeless || Instant::now() + pause >= until {
            return Err(RingError::Store { ring: ring.clone(), kind: error.kind(), message: error.to_string() });
        }
        sleep(pause.mul_f64(0.5 + 0.5 * fastrand::f64())).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Looks at what is there, and writes the first thing that is missing.
async fn look(store: &dyn LeaseStore, ring: &RingId, wanted: &Wanted) -> Result<Found, Failed> {
    let view = read_cluster(store, ring.cluster(), REQUEST_TIMEOUT).await?;
    let of_a_ring = |policy: Policy| matches!(policy, Policy::Ring(_));
    let key = RecordKey::Workload(wanted.workload.clone());
    let others = view.settings().is_some_and(|settings| !of_a_ring(settings.policy));
    let agreed = match RingSizes::of(&view) {
        Some(agreed) if !others => agreed,
        None if !others && view.record(&key).is_none() => {
            let mut record = WorkloadRecord::new(wanted.sizes.partitions);
            record.policy = Some(Policy::Ring(wanted.sizes.virtual_nodes));
            return write(store, ring, key, Record::Workload(record)).await;
        }
        _ => return Err(Failed::ForGood(RingError::NotARing { ring: ring.clone() })),
    };
    if agreed != wanted.sizes {
        return Err(Failed::ForGood(RingError::Sizes { ring: ring.clone(), wanted: wanted.sizes, agreed }));
    }
    let Some(settings) = view.settings() else {
        let mut settings = ClusterSettings::new(wanted.session_ttl);
        settings.policy = Policy::Ring(agreed.virtual_nodes);
        settings.move_budget = MOVE_BUDGET;
        return write(store, ring, RecordKey::Settings, Record::Settings(settings)).await;
    };
    // A shorter TTL than the longest is none of the others' business.
    if wanted.session_ttl > settings.session_ttl_max {
        let (wanted, longest) = (wanted.session_ttl, settings.session_ttl_max);
        return Err(Failed::ForGood(RingError::SessionTtl { ring: ring.clone(), wanted, longest }));
    }
    Ok(Found::Agreed(settings.clone()))
}

async fn write(store: &dyn LeaseStore, ring: &RingId, key: RecordKey, record: Record) -> Result<Found, Failed> {
    let request = AdminRequest::Put { key, record: Some(record), expect: Some(Revision(0)) };
    let answer = timeout(REQUEST_TIMEOUT, store.administer(ring.cluster(), &request)).await;
    // A refusal says that another was first: what it wrote is read next.
    answer.unwrap_or_else(|_| Err(StoreError::new(ErrorKind::Ambiguous, "no answer in time")))?;
    Ok(Found::Written)
}
