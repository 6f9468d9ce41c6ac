//! What a node that runs nothing learns from the store: whose session ends when, and who was granted what.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rendez::core::{
    Change, HeartbeatRequest, Incarnation, Known, NodeInfo, OpenRequest, Opening, OperationId, SessionId,
    SessionRecord, SlotRecord, SnapshotRequest, StoreTime, Sync,
};
use rendez::{ClusterName, ClusterSettings, LeaseStore, NodeId, Slot, StoreUrl, Timestamp};
use rendez_testkit::clock;
use rendez_testkit::measure::Failure;
use tokio::task::JoinHandle;

const OPERATION_TIMEOUT: Duration = Duration::from_secs(2);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(30);

/// A reader of one cluster.
pub(crate) struct Observer {
    store: Arc<dyn LeaseStore>,
    cluster: ClusterName,
    /// When sessions end or have ended, on the clock of records.
    ends: Arc<Mutex<BTreeMap<SessionId, Timestamp>>>,
    watching: Option<JoinHandle<()>>,
}

impl Drop for Observer {
    fn drop(&mut self) {
        if let Some(watching) = &self.watching {
            watching.abort();
        }
    }
}

/// What a cluster's records are at one moment.
struct Records {
    sessions: BTreeMap<SessionId, SessionRecord>,
    slots: BTreeMap<Slot, SlotRecord>,
    /// One moment on both clocks.
    now: (StoreTime, Timestamp),
}

impl Observer {
    pub(crate) async fn new(url: &str, cluster: &str) -> Result<Self, Failure> {
        let store = StoreUrl::parse(url)?.connect(OPERATION_TIMEOUT, CONNECT_TIMEOUT).await?;
        Ok(Self { store, cluster: cluster.parse()?, ends: Arc::default(), watching: None })
    }

    /// The node's session.
    pub(crate) async fn session(&self, node: &str) -> Result<SessionId, Failure> {
        let records = self.records().await?;
        let found = records.sessions.iter().find(|(_, record)| record.info.node.as_str() == node);
        Ok(*found.ok_or_else(|| format!("the node {node} has no session"))?.0)
    }

    /// When the lease of a slot was last granted, on the clock of records.
    pub(crate) async fn granted(&self, slot: &Slot) -> Result<Timestamp, Failure> {
        let records = self.records().await?;
        let record = records.slots.get(slot).ok_or_else(|| format!("{slot} was never granted"))?;
        let (store, ours) = records.now;
        Ok(ours.saturating_sub(store.since(record.taken_at)))
    }

    /// From now on, notes when sessions end: it takes part in the cluster as a node that can run nothing.
    pub(crate) async fn watch_ends(&mut self, ttl: Duration, interval: Duration) -> Result<(), Failure> {
        let info = NodeInfo::new(NodeId::new("observer")?, ClusterSettings::new(ttl));
        let request = OpenRequest {
            known: Known::default(),
            operation: OperationId::from_bits(rand()),
            incarnation: Incarnation::from_bits(rand()),
            replaces: None,
            ttl,
            info: info.into(),
        };
        let Opening::Opened { stamp, session, .. } = self.store.open(&self.cluster, &request).await? else {
            return Err("the observer's name is in use".into());
        };
        let mut watch = self.store.watch(&self.cluster).await?;
        let (store, cluster, ends) = (Arc::clone(&self.store), self.cluster.clone(), Arc::clone(&self.ends));
        let due_is_told = store.capabilities().due;
        let known = Known { generation: Some(stamp.generation), token: stamp.token, session_ttl_max: ttl };
        let mut since = stamp.revision;
        self.watching = Some(tokio::spawn(async move {
            loop {
                let _ = tokio::time::timeout(interval, watch.next()).await;
                let request = HeartbeatRequest {
                    known: known.clone(),
                    session,
                    since: Some(since),
                    changes_max: u32::MAX,
                    due_within: Duration::from_secs(3600),
                    info: None,
                };
                let Ok(beat) = store.heartbeat(&cluster, &request).await else { continue };
                let now = clock::now();
                let mut ends = ends.lock().unwrap_or_else(PoisonError::into_inner);
                ends.extend(beat.due.iter().map(|due| (due.session, now + due.remaining)));
                if let Sync::Changes { changes, up_to, .. } = beat.sync {
                    since = up_to;
                    for change in changes {
                        if let (Change::Session(session, None), false) = (change, due_is_told) {
                            ends.entry(session).or_insert(now);
                        }
                    }
                }
            }
        }));
        Ok(())
    }

    /// When a session has ended, on the clock of records: as the store had told before, or as it was seen.
    pub(crate) async fn session_end(&self, session: SessionId) -> Result<Timestamp, Failure> {
        let begin = clock::now();
        loop {
            let known = self.ends.lock().unwrap_or_else(PoisonError::into_inner).get(&session).copied();
            if let Some(end) = known.filter(|end| *end <= clock::now()) {
                return Ok(end);
            }
            if clock::now().since(begin) > PATIENCE {
                return Err(format!("the end of the session {session} was not seen").into());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn records(&self) -> Result<Records, Failure> {
        let (mut sessions, mut slots) = (BTreeMap::new(), BTreeMap::new());
        let mut request = SnapshotRequest { known: Known::default(), session: None, cursor: None };
        loop {
            let page = self.store.snapshot(&self.cluster, &request).await?;
            let now = (page.stamp.now, clock::now());
            for item in page.items {
                match item {
                    Change::Session(id, Some(record)) => drop(sessions.insert(id, record)),
                    Change::Slot(slot, Some(record)) => drop(slots.insert(slot, record)),
                    Change::Session(_, None) | Change::Slot(_, None) | Change::Record(..) => {}
                }
            }
            request.cursor = page.next;
            if request.cursor.is_none() {
                return Ok(Records { sessions, slots, now });
            }
        }
    }
}

/// Different for each observer of a run.
fn rand() -> u128 {
    u128::from(clock::now().as_nanos()) << 32 | u128::from(std::process::id())
}
