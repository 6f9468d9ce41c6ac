//! A store on a server of its own, and short words for its requests.
#![allow(dead_code, unreachable_pub)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rendez_core::*;
use rendez_nats::{NatsOptions, NatsStore};
use rendez_testkit::servers::NatsServer;

pub const TTL: Duration = Duration::from_secs(30);
pub const TTL_MAX: Duration = Duration::from_secs(60);

static IDS: AtomicU64 = AtomicU64::new(1);

pub fn operation() -> OperationId {
    OperationId::from_bits(0xabc << 96 | u128::from(IDS.fetch_add(1, Ordering::Relaxed)))
}

pub fn incarnation() -> Incarnation {
    Incarnation::from_bits(0xdef << 96 | u128::from(IDS.fetch_add(1, Ordering::Relaxed)))
}

pub fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

pub fn slot(text: &str) -> Slot {
    text.parse().unwrap()
}

pub fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub fn options() -> NatsOptions {
    let mut options = NatsOptions::default();
    options.operation_timeout = Duration::from_secs(3);
    options
}

pub fn open_request(name: &str) -> OpenRequest {
    OpenRequest {
        known: Known::default(),
        operation: operation(),
        incarnation: incarnation(),
        replaces: None,
        ttl: TTL,
        info: Arc::new(NodeInfo::new(node(name), ClusterSettings::new(TTL_MAX))),
    }
}

pub struct World {
    pub server: Option<NatsServer>,
    pub store: NatsStore,
    pub cluster: ClusterName,
    pub known: Known,
}

impl World {
    pub async fn new() -> Self {
        Self::with(NatsServer::builder().start().await.unwrap()).await
    }

    pub async fn with(server: NatsServer) -> Self {
        let store = NatsStore::connect(&server.url(), options()).await.unwrap();
        Self { server: Some(server), ..Self::on(store) }
    }

    pub fn on(store: NatsStore) -> Self {
        let cluster = ClusterName::new("test").unwrap();
        Self { server: None, store, cluster, known: Known::default() }
    }

    pub fn server(&self) -> &NatsServer {
        self.server.as_ref().unwrap()
    }

    pub async fn try_open(&self, mut request: OpenRequest) -> Result<Opening, StoreError> {
        if request.known == Known::default() {
            request.known = self.known.clone();
        }
        self.store.open(&self.cluster, &request).await
    }

    pub async fn open(&self, name: &str) -> SessionId {
        opened(self.try_open(open_request(name)).await.unwrap()).0
    }

    pub async fn open_for(&self, name: &str, ttl: Duration) -> SessionId {
        opened(self.try_open(OpenRequest { ttl, ..open_request(name) }).await.unwrap()).0
    }

    pub fn beat_request(&self, session: SessionId) -> HeartbeatRequest {
        HeartbeatRequest {
            known: self.known.clone(),
            session,
            since: None,
            changes_max: 512,
            due_within: Duration::ZERO,
            info: None,
        }
    }

    pub async fn beat(&self, session: SessionId) -> Result<Beat, StoreError> {
        self.store.heartbeat(&self.cluster, &self.beat_request(session)).await
    }

    pub async fn beat_since(&self, session: SessionId, since: Revision, changes_max: u32) -> Beat {
        let mut request = self.beat_request(session);
        request.since = Some(since);
        request.changes_max = changes_max;
        self.store.heartbeat(&self.cluster, &request).await.unwrap()
    }

    pub async fn close(&self, session: SessionId) {
        self.store.close(&self.cluster, &CloseRequest { known: self.known.clone(), session }).await.unwrap();
    }

    pub async fn changes(
        &self,
        session: SessionId,
        changes: Vec<(Slot, FencingToken, ChangeKind)>,
    ) -> Result<ChangeReply, StoreError> {
        let changes = changes.into_iter().map(|(slot, token, kind)| SlotChange { slot, token, kind }).collect();
        self.store.change(&self.cluster, &ChangeRequest { known: self.known.clone(), session, changes }).await
    }

    pub async fn change(&self, session: SessionId, at: &Slot, token: FencingToken, kind: ChangeKind) -> ChangeOutcome {
        let reply = self.changes(session, vec![(at.clone(), token, kind)]).await.unwrap();
        assert_eq!(reply.outcomes.len(), 1);
        reply.outcomes.into_iter().next().unwrap()
    }

    /// Takes a slot and answers its token.
    pub async fn acquire(&self, session: SessionId, at: &Slot, token: FencingToken) -> FencingToken {
        let outcome = self.change(session, at, token, ChangeKind::Acquire { operation: operation() }).await;
        done(outcome).token
    }

    pub async fn snapshot(&self, session: Option<SessionId>) -> (Stamp, Vec<Change>) {
        let mut items = Vec::new();
        let mut cursor = None;
        let mut first = None;
        loop {
            let request = SnapshotRequest { known: self.known.clone(), session, cursor };
            let page = self.store.snapshot(&self.cluster, &request).await.unwrap();
            first.get_or_insert(page.stamp);
            items.extend(page.items);
            cursor = page.next;
            if cursor.is_none() {
                return (first.unwrap(), items);
            }
        }
    }

    pub async fn slots(&self) -> BTreeMap<Slot, SlotRecord> {
        let (_, items) = self.snapshot(None).await;
        items
            .into_iter()
            .filter_map(|item| match item {
                Change::Slot(slot, record) => Some((slot, record.unwrap())),
                _ => None,
            })
            .collect()
    }

    pub async fn put(&self, key: RecordKey, record: Option<Record>, expect: Option<Revision>) -> AdminOutcome {
        self.store.administer(&self.cluster, &AdminRequest::Put { key, record, expect }).await.unwrap()
    }
}

pub fn opened(opening: Opening) -> (SessionId, Stamp) {
    match opening {
        Opening::Opened { session, stamp, .. } => (session, stamp),
        Opening::InUse { .. } => panic!("{opening:?}"),
    }
}

pub fn done(outcome: ChangeOutcome) -> SlotRecord {
    match outcome {
        ChangeOutcome::Done(Some(record)) => record,
        _ => panic!("{outcome:?}"),
    }
}

pub fn conflict(outcome: &ChangeOutcome) -> Conflict {
    match outcome {
        ChangeOutcome::Refused(conflict, _) => *conflict,
        ChangeOutcome::Done(_) => panic!("{outcome:?}"),
    }
}

pub fn changes(sync: &Sync) -> (&[Change], Revision, bool) {
    match sync {
        Sync::Changes { changes, up_to, more } => (changes, *up_to, *more),
        other => panic!("{other:?}"),
    }
}

pub fn kind<T: std::fmt::Debug>(result: Result<T, StoreError>) -> ErrorKind {
    result.unwrap_err().kind()
}

pub fn acquire() -> ChangeKind {
    ChangeKind::Acquire { operation: operation() }
}

pub fn release() -> ChangeKind {
    ChangeKind::Release { checkpoint: None, refuse_for: None }
}

pub fn offer(id: OperationId, to: SessionId, expires_in: Duration, forced: bool) -> ChangeKind {
    ChangeKind::Offer { operation: id, to, expires_in, giver_total: 7, giver_of_workload: 3, forced }
}
