//! A store's own tests in short words: open a session, take a slot, offer it, read everything.
//!
//! A test says with [`Stage`] which handle asks which cluster and what it claims to know; the words are here. They panic
//! where a test has no use for going on: when a request fails that the word takes for granted. Words that are about a
//! failure, like [`Stage::try_open`], answer it.
//!
//! Nothing here judges a store: that is [`conformance`](crate::conformance). And nothing knows one.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rendez_core::{
    AdminOutcome, AdminRequest, Beat, Change, ChangeKind, ChangeOutcome, ChangeReply, ChangeRequest, CloseRequest,
    ClusterName, ClusterSettings, Conflict, ErrorKind, FencingToken, HeartbeatRequest, Incarnation, Known, LeaseStore,
    NodeId, NodeInfo, OpenRequest, Opening, OperationId, Record, RecordKey, Revision, SessionId, Slot, SlotChange,
    SlotRecord, SnapshotRequest, Stamp, StoreError, Sync,
};

/// The TTL of sessions, unless a test wants another.
pub const TTL: Duration = Duration::from_secs(30);
/// The longest session TTL of clusters.
pub const TTL_MAX: Duration = Duration::from_secs(60);

static IDS: AtomicU64 = AtomicU64::new(1);

/// A handle of a store, the cluster that it is asked about, and what requests say that they know.
pub trait Stage: Send + std::marker::Sync {
    /// The store.
    type Store: LeaseStore;

    /// The handle.
    fn store(&self) -> &Self::Store;

    /// The cluster.
    fn cluster(&self) -> &ClusterName;

    /// What requests say that they know.
    fn known(&self) -> &Known;

    /// Opens a session as a test wants it; without any knowledge of its own, it knows what all requests do.
    fn try_open(&self, mut request: OpenRequest) -> impl Future<Output = Result<Opening, StoreError>> + Send {
        async move {
            if request.known == Known::default() {
                request.known = self.known().clone();
            }
            self.store().open(self.cluster(), &request).await
        }
    }

    /// Opens a session of this node.
    fn open(&self, name: &str) -> impl Future<Output = SessionId> + Send {
        self.open_for(name, TTL)
    }

    /// Opens a session of this node that lives this long.
    fn open_for(&self, name: &str, ttl: Duration) -> impl Future<Output = SessionId> + Send {
        let request = OpenRequest { ttl, ..open_request(name) };
        async move { opened(self.try_open(request).await.unwrap()).0 }
    }

    /// A heartbeat that asks for nothing.
    fn beat_request(&self, session: SessionId) -> HeartbeatRequest {
        HeartbeatRequest {
            known: self.known().clone(),
            session,
            since: None,
            changes_max: 512,
            due_within: Duration::ZERO,
            info: None,
        }
    }

    /// Sends a heartbeat that asks for nothing.
    fn beat(&self, session: SessionId) -> impl Future<Output = Result<Beat, StoreError>> + Send {
        async move { self.store().heartbeat(self.cluster(), &self.beat_request(session)).await }
    }

    /// Sends a heartbeat that asks for at most so many changes since a revision.
    fn beat_since(&self, session: SessionId, since: Revision, changes_max: u32) -> impl Future<Output = Beat> + Send {
        let request = HeartbeatRequest { since: Some(since), changes_max, ..self.beat_request(session) };
        async move { self.store().heartbeat(self.cluster(), &request).await.unwrap() }
    }

    /// Closes a session.
    fn close(&self, session: SessionId) -> impl Future<Output = ()> + Send {
        let request = CloseRequest { known: self.known().clone(), session };
        async move { self.store().close(self.cluster(), &request).await.unwrap() }
    }

    /// Changes slots that have these tokens.
    fn changes(
        &self,
        session: SessionId,
        changes: Vec<(Slot, FencingToken, ChangeKind)>,
    ) -> impl Future<Output = Result<ChangeReply, StoreError>> + Send {
        let changes = changes.into_iter().map(|(slot, token, kind)| SlotChange { slot, token, kind }).collect();
        let request = ChangeRequest { known: self.known().clone(), session, changes };
        async move { self.store().change(self.cluster(), &request).await }
    }

    /// Changes a slot that has this token.
    fn change(
        &self,
        session: SessionId,
        at: &Slot,
        token: FencingToken,
        kind: ChangeKind,
    ) -> impl Future<Output = ChangeOutcome> + Send {
        async move {
            let mut reply = self.changes(session, vec![(at.clone(), token, kind)]).await.unwrap();
            assert_eq!(reply.outcomes.len(), 1);
            reply.outcomes.remove(0)
        }
    }

    /// Takes a slot that has this token, and answers its new one.
    fn acquire(&self, session: SessionId, at: &Slot, token: FencingToken) -> impl Future<Output = FencingToken> + Send {
        async move { done(self.change(session, at, token, acquire()).await).token }
    }

    /// All records, and the stamp of the first page.
    fn snapshot(&self, session: Option<SessionId>) -> impl Future<Output = (Stamp, Vec<Change>)> + Send {
        async move {
            let mut items = Vec::new();
            let mut cursor = None;
            let mut first = None;
            loop {
                let request = SnapshotRequest { known: self.known().clone(), session, cursor };
                let page = self.store().snapshot(self.cluster(), &request).await.unwrap();
                let stamp = first.get_or_insert(page.stamp).clone();
                items.extend(page.items);
                cursor = page.next;
                if cursor.is_none() {
                    return (stamp, items);
                }
            }
        }
    }

    /// All slots.
    fn slots(&self) -> impl Future<Output = BTreeMap<Slot, SlotRecord>> + Send {
        async move {
            let (_, items) = self.snapshot(None).await;
            let slots = items.into_iter().filter_map(|item| match item {
                Change::Slot(slot, record) => Some((slot, record.unwrap())),
                Change::Session(..) | Change::Record(..) => None,
            });
            slots.collect()
        }
    }

    /// Writes or deletes a record, as an operator does.
    fn put(
        &self,
        key: RecordKey,
        record: Option<Record>,
        expect: Option<Revision>,
    ) -> impl Future<Output = AdminOutcome> + Send {
        let request = AdminRequest::Put { key, record, expect };
        async move { self.store().administer(self.cluster(), &request).await.unwrap() }
    }
}

/// A fresh name for a request.
pub fn operation() -> OperationId {
    OperationId::from_bits(0xabc << 96 | u128::from(IDS.fetch_add(1, Ordering::Relaxed)))
}

/// A fresh name for a process lifetime.
pub fn incarnation() -> Incarnation {
    Incarnation::from_bits(0xdef << 96 | u128::from(IDS.fetch_add(1, Ordering::Relaxed)))
}

/// A node's name.
pub fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

/// A slot's name: `workload/unit`.
pub fn slot(text: &str) -> Slot {
    text.parse().unwrap()
}

/// So many milliseconds.
pub fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// How a fresh process opens the session of a node.
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

/// A session that must have been opened.
pub fn opened(opening: Opening) -> (SessionId, Stamp) {
    match opening {
        Opening::Opened { session, stamp, .. } => (session, stamp),
        Opening::InUse { .. } => panic!("{opening:?}"),
    }
}

/// The record after a change that must be done.
pub fn done(outcome: ChangeOutcome) -> SlotRecord {
    match outcome {
        ChangeOutcome::Done(Some(record)) => record,
        ChangeOutcome::Done(None) | ChangeOutcome::Refused(..) => panic!("{outcome:?}"),
    }
}

/// Why a change was refused that must be.
pub fn conflict(outcome: &ChangeOutcome) -> Conflict {
    match outcome {
        ChangeOutcome::Refused(conflict, _) => *conflict,
        ChangeOutcome::Done(_) => panic!("{outcome:?}"),
    }
}

/// What has changed, up to where it leads, and whether there is more.
pub fn changes(sync: &Sync) -> (&[Change], Revision, bool) {
    match sync {
        Sync::Changes { changes, up_to, more } => (changes, *up_to, *more),
        Sync::Snapshot | Sync::NotAsked => panic!("{sync:?}"),
    }
}

/// What kind of error it is that must be one.
pub fn kind<T: Debug>(result: Result<T, StoreError>) -> ErrorKind {
    result.unwrap_err().kind()
}

/// Take the slot.
pub fn acquire() -> ChangeKind {
    ChangeKind::Acquire { operation: operation() }
}

/// Let it go.
pub fn release() -> ChangeKind {
    ChangeKind::Release { checkpoint: None, refuse_for: None }
}

/// Offer it.
pub fn offer(id: OperationId, to: SessionId, expires_in: Duration, forced: bool) -> ChangeKind {
    ChangeKind::Offer { operation: id, to, expires_in, giver_total: 7, giver_of_workload: 3, forced }
}
