//! Where a case plays: a cluster of its own in the store, and short words for the requests.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rendez_core::{
    AdminOutcome, AdminRequest, Beat, Capabilities, Change, ChangeKind, ChangeOutcome, ChangeReply, ChangeRequest,
    CloseRequest, ClusterName, ClusterSettings, Conflict, ErrorKind, FencingToken, HeartbeatRequest, Incarnation,
    Known, LeaseStore, NodeId, NodeInfo, OpenRequest, Opening, OperationId, Record, RecordKey, Revision, SessionId,
    SessionRecord, Slot, SlotChange, SlotRecord, SnapshotRequest, Stamp, StoreError, Sync, Versioned, Watch,
};
use tokio::time::Instant;

use super::case::Outcome;
use super::record::{Log, Recorder};
use super::{Access, Case, Failure, Fixture, OwnServer};

/// No token: that of a slot that was never granted.
pub(super) const NONE: FencingToken = FencingToken::NONE;

/// The TTL of sessions that no case wants to see end, where the store permits it.
const TTL_LONG: Duration = Duration::from_secs(40);
/// The TTL of sessions that end while a case waits, where the store permits it.
const TTL_SHORT: Duration = Duration::from_millis(1000);
/// How much later than the store declares a session's end may be seen by us: a busy machine.
const LATENESS_MARGIN: Duration = Duration::from_secs(8);
/// How long a case waits for what needs no time: a hint, a server that is back.
pub(super) const SOON: Duration = Duration::from_secs(15);

/// A case's place. Each has its own cluster; a clone is the same place with the same handle.
#[derive(Clone)]
pub(super) struct Stage {
    pub(super) fixture: Arc<dyn Fixture>,
    pub(super) store: Arc<dyn LeaseStore>,
    pub(super) capabilities: Capabilities,
    pub(super) cluster: ClusterName,
    /// What requests say that they know.
    pub(super) known: Known,
    /// The server, where the case has one of its own.
    server: Option<Arc<tokio::sync::Mutex<Box<dyn OwnServer>>>>,
    log: Log,
}

/// All records of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct View {
    pub(super) sessions: BTreeMap<SessionId, SessionRecord>,
    pub(super) slots: BTreeMap<Slot, SlotRecord>,
    pub(super) records: BTreeMap<RecordKey, Versioned>,
}

impl View {
    pub(super) fn apply(&mut self, change: Change) {
        match change {
            Change::Session(id, record) => put(&mut self.sessions, id, record),
            Change::Slot(slot, record) => put(&mut self.slots, slot, record),
            Change::Record(key, record) => put(&mut self.records, key, record),
        }
    }
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

impl Stage {
    pub(super) async fn set(case: &Case, fixture: Arc<dyn Fixture>) -> Outcome<Self> {
        let log = Log::default();
        let (store, server) = if case.needs.is_empty() {
            (fixture.store().await?, None)
        } else {
            let server = fixture.own_server().await?;
            (server.connect(Access::Full).await?, Some(Arc::new(tokio::sync::Mutex::new(server))))
        };
        let capabilities = store.capabilities();
        let store = Arc::new(Recorder { store, log: log.clone() });
        Ok(Self { fixture, store, capabilities, cluster: fresh_cluster()?, known: Known::default(), server, log })
    }

    pub(super) fn log(&self) -> Log {
        self.log.clone()
    }

    /// The server of the case's own. Held until the guard is dropped.
    pub(super) async fn server(&self) -> Outcome<tokio::sync::MutexGuard<'_, Box<dyn OwnServer>>> {
        let server = self.server.as_ref().ok_or_else(|| Failure::new("the case names no fault that it needs"))?;
        Ok(server.lock().await)
    }

    /// The same cluster through another handle, with a connection of its own.
    pub(super) async fn again(&self) -> Outcome<Self> {
        let store = match &self.server {
            Some(server) => server.lock().await.connect(Access::Full).await?,
            None => self.fixture.store().await?,
        };
        Ok(self.through(store))
    }

    /// The same cluster through this handle.
    pub(super) fn through(&self, store: Arc<dyn LeaseStore>) -> Self {
        let store = Arc::new(Recorder { store, log: self.log.clone() });
        Self { store, ..self.clone() }
    }

    /// The same stage, whose requests say that they know this.
    pub(super) fn knowing(&self, known: Known) -> Self {
        Self { known, ..self.clone() }
    }

    /// A fresh cluster through the same handle, to begin a case again.
    pub(super) fn anew(&self) -> Outcome<Self> {
        Ok(self.elsewhere(fresh_cluster()?))
    }

    /// Another cluster through the same handle.
    pub(super) fn elsewhere(&self, cluster: ClusterName) -> Self {
        Self { cluster, known: Known::default(), ..self.clone() }
    }

    // --- times ---

    /// The TTL that the store grants where this one is wanted.
    pub(super) fn granted(&self, ttl: Duration) -> Duration {
        let step = self.capabilities.ttl_granularity.max(Duration::from_micros(1)).as_micros();
        let ttl = ttl.clamp(self.capabilities.ttl_min, self.capabilities.ttl_max).as_micros();
        let micros = u64::try_from(ttl.div_ceil(step) * step).unwrap_or(u64::MAX);
        Duration::from_micros(micros).min(self.capabilities.ttl_max)
    }

    /// A TTL that outlasts the case.
    pub(super) fn ttl(&self) -> Duration {
        self.granted(TTL_LONG)
    }

    /// A TTL to wait for the end of.
    pub(super) fn ttl_short(&self) -> Duration {
        self.granted(TTL_SHORT)
    }

    /// The longest that the end of a session may be seen late.
    pub(super) fn lateness(&self) -> Duration {
        self.capabilities.expiry_lateness_max + LATENESS_MARGIN
    }

    // --- sessions ---

    pub(super) fn info(&self, node: &str) -> Outcome<NodeInfo> {
        Ok(NodeInfo::new(name(node)?, ClusterSettings::new(self.ttl())))
    }

    pub(super) fn open_request(&self, node: &str) -> Outcome<OpenRequest> {
        Ok(OpenRequest {
            known: self.known.clone(),
            operation: operation(),
            incarnation: Incarnation::from_bits(fastrand::u128(..)),
            replaces: None,
            ttl: self.ttl(),
            info: Arc::new(self.info(node)?),
        })
    }

    pub(super) async fn try_open(&self, request: &OpenRequest) -> Result<Opening, StoreError> {
        self.store.open(&self.cluster, request).await
    }

    pub(super) async fn open(&self, node: &str) -> Outcome<SessionId> {
        opened(&self.try_open(&self.open_request(node)?).await?)
    }

    /// A session that ends soon unless it is extended.
    pub(super) async fn open_short(&self, node: &str) -> Outcome<SessionId> {
        opened(&self.try_open(&OpenRequest { ttl: self.ttl_short(), ..self.open_request(node)? }).await?)
    }

    /// A session that ends soon, and a slot that it got meanwhile: again where this machine was too slow for that.
    pub(super) async fn open_short_with(&self, node: &str, slot: &Slot) -> Outcome<(SessionId, FencingToken)> {
        let mut token = self.record(slot).await?.map_or(NONE, |record| record.token);
        for _ in 0..50 {
            let session = self.open_short(node).await?;
            match self.try_change(session, slot, token, acquire()).await {
                Ok(ChangeOutcome::Done(Some(record))) => return Ok((session, record.token)),
                Err(error) if error.kind() == ErrorKind::Lost => {
                    token = self.record(slot).await?.map_or(NONE, |record| record.token);
                }
                came => return Err(Failure::new(format_args!("the slot is free, and {came:?} came"))),
            }
        }
        Err(Failure::new(format_args!("sessions of {:?} end before they get a slot", self.ttl_short())))
    }

    /// A session that is no more.
    pub(super) async fn open_dead(&self, node: &str) -> Outcome<SessionId> {
        let session = self.open(node).await?;
        self.close(session).await?;
        Ok(session)
    }

    pub(super) fn beat_request(&self, session: SessionId) -> HeartbeatRequest {
        HeartbeatRequest {
            known: self.known.clone(),
            session,
            since: None,
            changes_max: 512,
            due_within: Duration::ZERO,
            info: None,
        }
    }

    pub(super) async fn try_beat(&self, session: SessionId) -> Result<Beat, StoreError> {
        self.store.heartbeat(&self.cluster, &self.beat_request(session)).await
    }

    pub(super) async fn beat(&self, session: SessionId) -> Outcome<Beat> {
        Ok(self.try_beat(session).await?)
    }

    pub(super) async fn close(&self, session: SessionId) -> Outcome {
        Ok(self.store.close(&self.cluster, &CloseRequest { known: self.known.clone(), session }).await?)
    }

    /// Whether a session lives, without extending it.
    pub(super) async fn lives(&self, session: SessionId) -> Outcome<bool> {
        match self.changes(session, Vec::new()).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::Lost => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until a session has ended, and fails if that takes too long after the given moment.
    pub(super) async fn wait_for_end(&self, session: SessionId, ends_at: Instant) -> Outcome {
        loop {
            if !self.lives(session).await? {
                return Ok(());
            }
            if Instant::now() > ends_at + self.lateness() {
                return Err(Failure::new(format_args!(
                    "{session} should have ended {:?} ago and still lives; the store declares {:?} at most",
                    Instant::now() - ends_at,
                    self.capabilities.expiry_lateness_max
                )));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    // --- slots ---

    pub(super) async fn changes(
        &self,
        session: SessionId,
        changes: Vec<SlotChange>,
    ) -> Result<ChangeReply, StoreError> {
        let request = ChangeRequest { known: self.known.clone(), session, changes };
        self.store.change(&self.cluster, &request).await
    }

    pub(super) async fn try_change(
        &self,
        session: SessionId,
        slot: &Slot,
        token: FencingToken,
        kind: ChangeKind,
    ) -> Result<ChangeOutcome, StoreError> {
        let reply = self.changes(session, vec![SlotChange { slot: slot.clone(), token, kind }]).await?;
        let count = reply.outcomes.len();
        reply.outcomes.into_iter().next().filter(|_| count == 1).ok_or_else(|| {
            StoreError::new(ErrorKind::Fatal, format!("one change was asked for and {count} outcomes came"))
        })
    }

    pub(super) async fn change(
        &self,
        session: SessionId,
        slot: &Slot,
        token: FencingToken,
        kind: ChangeKind,
    ) -> Outcome<ChangeOutcome> {
        Ok(self.try_change(session, slot, token, kind).await?)
    }

    /// Makes a change that must be done, and answers the record after it.
    pub(super) async fn done(
        &self,
        session: SessionId,
        slot: &Slot,
        token: FencingToken,
        kind: ChangeKind,
    ) -> Outcome<SlotRecord> {
        done(self.change(session, slot, token, kind).await?)
    }

    /// Makes a change that must be refused for this reason, and must leave the slot's record as it is.
    pub(super) async fn refused(
        &self,
        session: SessionId,
        slot: &Slot,
        token: FencingToken,
        kind: ChangeKind,
        conflict: Conflict,
    ) -> Outcome {
        let before = self.record(slot).await?;
        let what = format!("{kind:?} of {slot} with token {token}");
        match self.change(session, slot, token, kind).await? {
            ChangeOutcome::Refused(came, record) if came == conflict => {
                let record = record.map(|record| record.seen_by(None));
                if record != before {
                    return Err(Failure::new(format_args!(
                        "{what} was refused: the answer must hold the record as it is\n  expected {before:?}\n  came     {record:?}"
                    )));
                }
            }
            came => {
                return Err(Failure::new(format_args!(
                    "{what}\n  expected it to be refused: {conflict:?}\n  came     {came:?}"
                )));
            }
        }
        let after = self.record(slot).await?;
        if after != before {
            return Err(Failure::new(format_args!(
                "{what} was refused and yet changed the record\n  before {before:?}\n  after  {after:?}"
            )));
        }
        Ok(())
    }

    /// Takes a slot and answers its token.
    pub(super) async fn acquire(&self, session: SessionId, slot: &Slot, token: FencingToken) -> Outcome<FencingToken> {
        Ok(self.done(session, slot, token, acquire()).await?.token)
    }

    /// Offers a slot and has it accepted; answers the offer's name.
    pub(super) async fn offered(
        &self,
        giver: SessionId,
        taker: SessionId,
        slot: &Slot,
        token: FencingToken,
    ) -> Outcome<OperationId> {
        let id = operation();
        self.done(giver, slot, token, offer(id, taker, self.ttl())).await?;
        self.done(taker, slot, token, ChangeKind::Accept { offer: id }).await?;
        Ok(id)
    }

    // --- reading ---

    /// The whole cluster as a session (or nobody) sees it, and the stamp of the first page.
    pub(super) async fn snapshot(&self, session: Option<SessionId>) -> Outcome<(Stamp, View)> {
        let (mut view, mut cursor, mut first) = (View::default(), None, None);
        loop {
            let request = SnapshotRequest { known: self.known.clone(), session, cursor };
            let page = self.store.snapshot(&self.cluster, &request).await?;
            let stamp = first.get_or_insert(page.stamp).clone();
            for item in page.items {
                if is_gone(&item) {
                    return Err(Failure::new(format_args!("a snapshot holds what is, and not {item:?}")));
                }
                view.apply(item);
            }
            cursor = page.next;
            if cursor.is_none() {
                return Ok((stamp, view));
            }
        }
    }

    pub(super) async fn view(&self) -> Outcome<View> {
        Ok(self.snapshot(None).await?.1)
    }

    /// A slot's record as everybody sees it.
    pub(super) async fn record(&self, slot: &Slot) -> Outcome<Option<SlotRecord>> {
        Ok(self.view().await?.slots.remove(slot))
    }

    /// Brings a view from a revision of a generation up to now, by asking as often as needed; answers the revision.
    pub(super) async fn sync(
        &self,
        session: SessionId,
        since: &Stamp,
        changes_max: u32,
        view: &mut View,
    ) -> Outcome<Revision> {
        let mut at = since.revision;
        loop {
            let mut request = self.beat_request(session);
            request.known.generation = Some(since.generation);
            request.since = Some(at);
            request.changes_max = changes_max;
            match self.store.heartbeat(&self.cluster, &request).await?.sync {
                Sync::Changes { changes, up_to, more } => {
                    if up_to < at || (more && up_to == at) {
                        return Err(Failure::new(format_args!("the changes since {at} lead to {up_to}, more: {more}")));
                    }
                    changes.into_iter().for_each(|change| view.apply(change));
                    at = up_to;
                    if !more {
                        return Ok(at);
                    }
                }
                came => return Err(Failure::new(format_args!("changes since {at} were expected, {came:?} came"))),
            }
        }
    }

    // --- operators ---

    pub(super) async fn put(&self, key: RecordKey, record: Option<Record>, expect: Option<Revision>) -> Outcome<bool> {
        let request = AdminRequest::Put { key, record, expect };
        self.administer(&request).await
    }

    /// Says whether it was done.
    pub(super) async fn administer(&self, request: &AdminRequest) -> Outcome<bool> {
        match self.store.administer(&self.cluster, request).await? {
            AdminOutcome::Done(_) => Ok(true),
            AdminOutcome::Refused(_) => Ok(false),
        }
    }

    /// A watch of this cluster, or nothing where the store has none and says so.
    pub(super) async fn watch(&self) -> Outcome<Option<Box<dyn Watch>>> {
        match self.store.watch(&self.cluster).await {
            Ok(watch) if self.capabilities.watch => Ok(Some(watch)),
            Err(error) if !self.capabilities.watch && error.kind() == ErrorKind::Unsupported => Ok(None),
            Err(error) => Err(error.into()),
            Ok(_) => Err(Failure::new("the store says that it has no watch, and opens one")),
        }
    }
}

/// A name that is as hostile as names may be, and no other case's.
fn fresh_cluster() -> Outcome<ClusterName> {
    let random = fastrand::u64(..);
    ClusterName::new(format!("{random:016x}{{x}}:*?[a-z]/../%2F ;'\"\\`$(x) --.\u{1f980}\u{e9}"))
        .map_err(|error| Failure::new(error))
}

pub(super) fn is_gone(change: &Change) -> bool {
    match change {
        Change::Session(_, record) => record.is_none(),
        Change::Slot(_, record) => record.is_none(),
        Change::Record(_, record) => record.is_none(),
    }
}

pub(super) fn operation() -> OperationId {
    OperationId::from_bits(fastrand::u128(1..))
}

pub(super) fn name(node: &str) -> Outcome<NodeId> {
    NodeId::new(node).map_err(|error| Failure::new(error))
}

/// A slot of the workload that most cases use.
pub(super) fn slot(unit: u32) -> Outcome<Slot> {
    slot_of("work", unit)
}

pub(super) fn slot_of(workload: &str, unit: u32) -> Outcome<Slot> {
    Ok(Slot::new(workload.parse().map_err(|error| Failure::new(error))?, unit))
}

#[track_caller]
pub(super) fn opened(opening: &Opening) -> Outcome<SessionId> {
    match opening {
        Opening::Opened { session, .. } => Ok(*session),
        Opening::InUse { .. } => Err(Failure::new(format_args!("a session was expected, {opening:?} came"))),
    }
}

#[track_caller]
pub(super) fn done(outcome: ChangeOutcome) -> Outcome<SlotRecord> {
    match outcome {
        ChangeOutcome::Done(Some(record)) => Ok(record),
        came => Err(Failure::new(format_args!("a change was expected to be done, {came:?} came"))),
    }
}

/// The kind of the error that an answer must be.
#[track_caller]
pub(super) fn kind<T: std::fmt::Debug>(answer: Result<T, StoreError>) -> Outcome<ErrorKind> {
    match answer {
        Err(error) => Ok(error.kind()),
        Ok(came) => Err(Failure::new(format_args!("an error was expected, {came:?} came"))),
    }
}

pub(super) fn acquire() -> ChangeKind {
    ChangeKind::Acquire { operation: operation() }
}

pub(super) fn release() -> ChangeKind {
    ChangeKind::Release { checkpoint: None, refuse_for: None }
}

pub(super) fn offer(id: OperationId, to: SessionId, expires_in: Duration) -> ChangeKind {
    ChangeKind::Offer { operation: id, to, expires_in, giver_total: 7, giver_of_workload: 3, forced: false }
}

pub(super) fn transfer(offer: OperationId) -> ChangeKind {
    ChangeKind::Transfer { operation: operation(), offer, checkpoint: None }
}
