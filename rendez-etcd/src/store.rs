//! The store: requests into reads, transactions and keep-alives, their answers back.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{Client, Compare, CompareOp, KeyValue, PutOptions, Txn, TxnOp};
use rendez_core::{
    AdminOutcome, AdminRequest, Beat, Capabilities, Change, ChangeReply, ChangeRequest, CloseRequest, ClusterName,
    ClusterSettings, Cursor, Decision, ErrorKind, FencingToken, Generation, HeartbeatRequest, Known, LeaseStore,
    OpenRequest, Opening, Record, RecordKey, Revision, SessionId, SessionRecord, Slot, SnapshotPage, SnapshotRequest,
    Stamp, StoreError, Sync, Watch, WorkloadName,
};

use crate::change::{self, CHANGES_MAX};
use crate::clock::Clock;
use crate::cluster::{Answer, Cluster, Shared, StageCell, set_stage, whole_seconds};
use crate::connect::{Connector, Link};
use crate::encode::{self, Meta, NodeValue, SessionValue};
use crate::errors::{Stage, damaged, lost, timed_out};
use crate::keep_alive::KeepAlives;
use crate::options::{Address, EtcdOptions, fatal};
use crate::picture::{Picture, Written, unsigned};
use crate::watch::Hints;

/// Records in one page of a snapshot: they come from the mirror.
const PAGE_RECORDS: usize = 2000;

/// The most operations of one transaction that servers permit.
const OPERATIONS_MAX: usize = 128;

/// The most slots of a deleted workload that are deleted at once: each is compared, and deleted with its checkpoint.
const DELETIONS_MAX: usize = 60;

/// How late the server ends a lease: it looks every half second, and revokes through its log.
const EXPIRY_LATENESS_MAX: Duration = Duration::from_millis(1500);

/// A [`LeaseStore`] in etcd. Clones share their connection and their pictures of clusters.
#[derive(Clone)]
pub struct EtcdStore {
    inner: Arc<Inner>,
}

struct Inner {
    connector: Arc<Connector>,
    keep_alives: KeepAlives,
    clock: Arc<Clock>,
    clusters: Mutex<HashMap<ClusterName, Arc<Cluster>>>,
}

impl fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdStore")
            .field("server", &self.inner.connector.name)
            .field("options", &self.inner.connector.options)
            .finish_non_exhaustive()
    }
}

impl EtcdStore {
    /// Connects to `etcd://[user:password@]host[:2379],host2…[/prefix]`, or `etcds://…` for TLS, and looks whether the
    /// server fits.
    ///
    /// # Errors
    /// [`ErrorKind::Fatal`] for a URL, credentials or a server that cannot work; [`ErrorKind::Transient`] for servers
    /// that do not answer. No message holds the password.
    pub async fn connect(url: &str, mut options: EtcdOptions) -> Result<Self, StoreError> {
        let mut address = Address::parse(url)?;
        if let Some(prefix) = address.prefix.take() {
            options.prefix = prefix;
        }
        options.check()?;
        Self::with(Connector::to_members(address, options)).await
    }

    /// Connects with a client of your own: its members, credentials and certificates. Let it require a leader
    /// (`ConnectOptions::with_require_leader`), so that a member that is cut off does not keep it waiting.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn from_client(client: Client, options: EtcdOptions) -> Result<Self, StoreError> {
        options.check()?;
        Self::with(Connector::given(client, options)).await
    }

    async fn with(connector: Arc<Connector>) -> Result<Self, StoreError> {
        connector.link().await?;
        let keep_alives = KeepAlives::new(Arc::clone(&connector));
        let clusters = Mutex::new(HashMap::new());
        Ok(Self { inner: Arc::new(Inner { connector, keep_alives, clock: Arc::new(Clock::new()), clusters }) })
    }

    fn cluster(&self, name: &ClusterName) -> Arc<Cluster> {
        let mut clusters = self.inner.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cluster) = clusters.get(name).filter(|cluster| !cluster.is_over()) {
            cluster.shared.touch();
            return Arc::clone(cluster);
        }
        clusters.retain(|_, cluster| !cluster.is_over());
        let cluster = Arc::new(Cluster::new(Arc::clone(&self.inner.connector), Arc::clone(&self.inner.clock), name));
        clusters.insert(name.clone(), Arc::clone(&cluster));
        cluster
    }

    /// Carries a request out within the operation timeout.
    async fn within<T, F>(&self, name: &ClusterName, carry_out: impl FnOnce(Work) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let connector = &self.inner.connector;
        let limit = connector.options.operation_timeout;
        let stage = Arc::new(StageCell::new(Stage::Connecting));
        let epoch = Arc::new(Mutex::new(None));
        let done = tokio::time::timeout(limit, async {
            let link = connector.link().await?;
            *epoch.lock().unwrap_or_else(PoisonError::into_inner) = Some(link.epoch);
            set_stage(&stage, Stage::Reading);
            let work = Work {
                store: self.clone(),
                cluster: self.cluster(name),
                link,
                stage: Arc::clone(&stage),
                capabilities: self.capabilities(),
            };
            carry_out(work).await
        });
        match done.await {
            Ok(done) => done,
            Err(_) => {
                if let Some(epoch) = *epoch.lock().unwrap_or_else(PoisonError::into_inner) {
                    connector.discard(epoch);
                }
                let stage = *stage.lock().unwrap_or_else(PoisonError::into_inner);
                Err(timed_out(stage, &connector.name, limit))
            }
        }
    }
}

/// The lease of a session: its id's low half.
fn lease_of(session: SessionId) -> i64 {
    (session.bits() & u128::from(u64::MAX)) as i64
}

fn session_id(generation: Generation, lease: i64) -> SessionId {
    SessionId::from_bits((generation.bits() >> 64 << 64) | u128::from(lease.unsigned_abs()))
}

/// One request that is being carried out.
struct Work {
    store: EtcdStore,
    cluster: Arc<Cluster>,
    link: Link,
    stage: Arc<StageCell>,
    capabilities: Capabilities,
}

/// What an opening reads before it decides.
struct Door {
    meta: Written<Meta>,
    node: Option<Written<NodeValue>>,
    settings: Option<ClusterSettings>,
}

impl Work {
    fn shared(&self) -> &Shared {
        &self.cluster.shared
    }

    async fn enter(&self, known: &Known, session: Option<SessionId>) -> Result<crate::cluster::Look, StoreError> {
        self.shared().enter(&self.link, known, session, &self.capabilities, &self.stage).await
    }

    /// Sends a transaction that writes.
    async fn write(&self, txn: Txn) -> Result<Answer, StoreError> {
        set_stage(&self.stage, Stage::Writing);
        let answer = self.shared().send(&self.link, txn, Stage::Writing).await?;
        set_stage(&self.stage, Stage::Reading);
        Ok(answer)
    }

    fn stamp(&self, known: &Known) -> Stamp {
        let shared = self.shared();
        shared.read(|picture| shared.stamp(picture, known, picture.mirror.revision().0, FencingToken::NONE))
    }

    /// Waits until the picture shows a write of one's own.
    async fn see(&self, revision: i64) -> Result<(), StoreError> {
        let seen = Revision(unsigned(revision));
        self.shared().wait(|picture| (!picture.reload && picture.mirror.covered() >= seen).then_some(())).await
    }

    // --- opening ---

    async fn open(self, request: &OpenRequest) -> Result<Opening, StoreError> {
        // Out of time, an opening is asked again with the same operation, whichever step it had reached.
        set_stage(&self.stage, Stage::Writing);
        let steps = StageCell::new(Stage::Writing);
        self.shared().enter(&self.link, &request.known, None, &self.capabilities, &steps).await?;
        // A lease that was granted and is not used yet.
        let mut granted: Option<(i64, u64)> = None;
        let opening = self.open_with(request, &mut granted).await;
        if let Some((lease, _)) = granted {
            let unused = match &opening {
                Ok(Opening::Opened { session, .. }) => lease_of(*session) != lease,
                Ok(Opening::InUse { .. }) => true,
                Err(error) => error.kind() != ErrorKind::Ambiguous,
            };
            if unused {
                // It ends by itself if this does not reach the server.
                let _ = self.shared().revoke(&self.link, lease).await;
            }
        }
        opening
    }

    async fn open_with(&self, request: &OpenRequest, granted: &mut Option<(i64, u64)>) -> Result<Opening, StoreError> {
        let (shared, info) = (self.shared(), &*request.info);
        let keys = &shared.keys;
        loop {
            let door = self.door(request).await?;
            let settings = door.settings.clone().unwrap_or_else(|| info.settings.clone());
            let standing = door.node.as_ref();
            if let Some(standing) = standing.map(|node| &node.value)
                && standing.opened_by == request.operation
            {
                let kept = self.store.inner.keep_alives.extend(&self.link, lease_of(standing.session)).await?;
                if kept.ttl.is_none() {
                    // It dies just now: look again.
                    tokio::task::yield_now().await;
                    continue;
                }
                let (session, ttl) = (standing.session, standing.ttl);
                return Ok(Opening::Opened { stamp: self.stamp(&request.known), session, ttl, settings });
            }
            if request.ttl > settings.session_ttl_max {
                return Err(fatal(format!(
                    "a session TTL of {:?} is longer than the cluster's settings permit: use {:?} or less, or raise \
                     session_ttl_max in the cluster's settings",
                    request.ttl, settings.session_ttl_max
                )));
            }
            if let Some(NodeValue { session, incarnation, ttl, .. }) = standing.map(|node| &node.value)
                && (*incarnation != request.incarnation || request.replaces != Some(*session))
            {
                let mut lease = self.link.lease.clone();
                let left = lease.time_to_live(lease_of(*session), None).await.ok();
                let left = left.and_then(|left| u64::try_from(left.ttl()).ok()).map(Duration::from_secs);
                return Ok(Opening::InUse {
                    stamp: self.stamp(&request.known),
                    session: *session,
                    incarnation: *incarnation,
                    remaining: left.unwrap_or(*ttl).min(*ttl),
                });
            }
            let (lease, ttl) = match *granted {
                Some(granted) => granted,
                None => {
                    let fresh = shared.grant(&self.link, whole_seconds(request.ttl)).await?;
                    *granted = Some(fresh);
                    fresh
                }
            };
            let ttl = Duration::from_secs(ttl);
            let session = session_id(door.meta.value.lineage.generation(), lease);
            let record = SessionRecord {
                incarnation: request.incarnation,
                opened_at: shared.now(shared.read(|picture| picture.mirror.time())),
                ttl,
                info: Arc::clone(&request.info),
                revision: Revision(0),
            };
            let value = encode::json(&SessionValue { opened_by: request.operation, record })?;
            let node = NodeValue { session, incarnation: request.incarnation, opened_by: request.operation, ttl };
            let with_lease = || Some(PutOptions::new().with_lease(lease));
            let mut then = vec![
                TxnOp::put(keys.session(session), value, with_lease()),
                TxnOp::put(keys.node(&info.node), encode::json(&node)?, with_lease()),
                TxnOp::put(keys.head(), Vec::new(), None),
            ];
            if let Some(standing) = standing {
                then.push(TxnOp::delete(keys.session(standing.value.session), None));
            }
            if door.settings.is_none() {
                let record = encode::json(&Record::Settings(settings.clone()))?;
                then.push(TxnOp::put(keys.record(&RecordKey::Settings), record, None));
            }
            if !door.meta.value.opened {
                let meta = Meta { opened: true, ..door.meta.value.clone() };
                then.push(TxnOp::put(keys.meta(), encode::json(&meta)?, None));
                let hold = settings.cold_start_hold;
                let stands = shared.read(|picture| picture.quiet_left());
                if hold > stands {
                    then.push(shared.begin_quiet(&self.link, hold).await?);
                }
            }
            let settings_key = keys.record(&RecordKey::Settings);
            let compare_settings = match door.settings {
                Some(_) => Compare::create_revision(settings_key, CompareOp::Greater, 0),
                None => Compare::create_revision(settings_key, CompareOp::Equal, 0),
            };
            let same = [
                Compare::mod_revision(keys.meta(), CompareOp::Equal, door.meta.revision),
                Compare::mod_revision(
                    keys.node(&info.node),
                    CompareOp::Equal,
                    standing.map_or(0, |standing| standing.revision),
                ),
                compare_settings,
            ];
            let answer = self.write(Txn::new().when(same).and_then(then)).await?;
            if !answer.succeeded {
                continue;
            }
            if let Some(standing) = standing {
                // Its keys are gone already; what is left ends by itself.
                let _ = shared.revoke(&self.link, lease_of(standing.value.session)).await;
            }
            self.see(answer.revision).await?;
            return Ok(Opening::Opened { stamp: self.stamp(&request.known), session, ttl, settings });
        }
    }

    async fn door(&self, request: &OpenRequest) -> Result<Door, StoreError> {
        let keys = &self.shared().keys;
        let reads = [keys.meta(), keys.node(&request.info.node), keys.record(&RecordKey::Settings)];
        let reads: Vec<TxnOp> = reads.into_iter().map(|key| TxnOp::get(key, None)).collect();
        let mut answer = self.shared().send(&self.link, Txn::new().and_then(reads), Stage::Reading).await?;
        let (meta, node, settings) = (answer.one(), answer.one(), answer.one());
        let gone = || StoreError::new(ErrorKind::Transient, "the cluster's data were deleted just now");
        let meta = meta.ok_or_else(gone)?;
        let meta = Written { value: encode::meta(meta.value())?, revision: meta.mod_revision() };
        let node = match node {
            Some(kv) => Some(Written { value: encode::node(kv.value())?, revision: kv.mod_revision() }),
            None => None,
        };
        let settings = match settings.map(|kv| encode::record(kv.value())).transpose()? {
            Some(Record::Settings(settings)) => Some(settings),
            Some(Record::Workload(_) | Record::Node(_) | Record::Pin(_)) => {
                return Err(damaged("the cluster's settings"));
            }
            None => None,
        };
        Ok(Door { meta, node, settings })
    }

    // --- heartbeats ---

    async fn heartbeat(self, request: &HeartbeatRequest) -> Result<Beat, StoreError> {
        let (shared, session) = (self.shared(), request.session);
        if !shared.read(|picture| picture.loaded && !picture.reload && picture.has_session(session)) {
            // Only a session of this cluster may have its lease extended.
            let look = self.enter(&request.known, Some(session)).await?;
            look.session.ok_or_else(lost)?;
        }
        set_stage(&self.stage, Stage::Writing);
        let kept = self.store.inner.keep_alives.extend(&self.link, lease_of(session)).await?;
        set_stage(&self.stage, Stage::Reading);
        // A leader that was deposed and does not know it yet still answers keep-alives, which extend nothing. Whoever
        // answers this read was confirmed by a majority after that: the same term means the same leader.
        let look = self.enter(&request.known, Some(session)).await?;
        let Some(key) = look.session else { return Err(lost()) };
        let again = |why: &str| StoreError::new(ErrorKind::Transient, format!("{why}: the session was not extended"));
        let ttl = kept.ttl.ok_or_else(|| again("etcd knows the session and not its lease"))?;
        if kept.term != look.term {
            return Err(again("etcd's leader has changed"));
        }
        if let Some(info) = &request.info {
            self.tell(session, key, info).await?;
        }
        let (mut sync, held, stamp) = shared.read(|picture| {
            let stamp = shared.stamp(picture, &request.known, picture.mirror.revision().0, FencingToken::NONE);
            (self.sync(picture, request, &stamp), picture.mirror.held(session), stamp)
        });
        let held = held.ok_or_else(lost)?;
        if let Sync::Changes { changes, .. } = &mut sync {
            self.add_checkpoints(Some(session), changes).await?;
        }
        Ok(Beat { stamp, ttl: Duration::from_secs(ttl), held, sync, due: Vec::new() })
    }

    fn sync(&self, picture: &Picture, request: &HeartbeatRequest, stamp: &Stamp) -> Sync {
        let Some(since) = request.since else { return Sync::NotAsked };
        if request.known.generation != Some(stamp.generation) {
            return Sync::Snapshot;
        }
        let most = usize::try_from(request.changes_max).unwrap_or(usize::MAX);
        picture.mirror.sync(Some(request.session), since, most)
    }

    /// Writes what a node tells about itself, if that is news.
    async fn tell(
        &self,
        session: SessionId,
        mut key: KeyValue,
        info: &Arc<rendez_core::NodeInfo>,
    ) -> Result<(), StoreError> {
        let keys = &self.shared().keys;
        loop {
            let mut value = encode::session(key.value())?;
            if value.record.info == *info {
                return Ok(());
            }
            if value.record.info.node != info.node {
                return Err(fatal(format!(
                    "the session of node {:?} cannot become one of node {:?}: open another session",
                    value.record.info.node, info.node
                )));
            }
            value.record.info = Arc::clone(info);
            let name = keys.session(session);
            let put = PutOptions::new().with_ignore_lease();
            let txn = Txn::new()
                .when([Compare::mod_revision(name.clone(), CompareOp::Equal, key.mod_revision())])
                .and_then([
                    TxnOp::put(name.clone(), encode::json(&value)?, Some(put)),
                    TxnOp::put(keys.head(), Vec::new(), None),
                ])
                .or_else([TxnOp::get(name, None)]);
            let mut answer = self.write(txn).await?;
            if answer.succeeded {
                return self.see(answer.revision).await;
            }
            key = answer.one().ok_or_else(lost)?;
        }
    }

    /// Reads the checkpoints of the slots that the reader holds.
    async fn add_checkpoints(&self, reader: Option<SessionId>, changes: &mut [Change]) -> Result<(), StoreError> {
        let Some(reader) = reader else { return Ok(()) };
        let mut own: Vec<(&Slot, &mut Option<Bytes>)> = Vec::new();
        for change in changes {
            if let Change::Slot(slot, Some(record)) = change
                && record.is_held_by(reader)
            {
                own.push((slot, &mut record.checkpoint));
            }
        }
        for part in own.chunks_mut(OPERATIONS_MAX) {
            let keys = &self.shared().keys;
            let reads: Vec<TxnOp> = part.iter().map(|(slot, _)| TxnOp::get(keys.checkpoint(slot), None)).collect();
            let mut answer = self.shared().send(&self.link, Txn::new().and_then(reads), Stage::Reading).await?;
            for (_, checkpoint) in part {
                **checkpoint = answer.one().map(|kv| Bytes::copy_from_slice(kv.value()));
            }
        }
        Ok(())
    }

    // --- changes ---

    async fn change(self, request: &ChangeRequest) -> Result<ChangeReply, StoreError> {
        let shared = self.shared();
        if !shared.read(|picture| is_at_hand(picture, request)) {
            let look = self.enter(&request.known, Some(request.session)).await?;
            look.session.ok_or_else(lost)?;
        }
        let mut dead = BTreeSet::new();
        loop {
            let planned = shared.read(|picture| change::plan(shared, picture, request, &dead))?;
            let Some(mut plan) = planned else {
                let look = self.enter(&request.known, Some(request.session)).await?;
                look.session.ok_or_else(lost)?;
                continue;
            };
            let txn = std::mem::take(&mut plan.txn);
            let answer =
                if plan.writes { self.write(txn).await? } else { shared.send(&self.link, txn, Stage::Writing).await? };
            if answer.succeeded {
                let revision = answer.revision;
                shared.with(|picture| picture.reach(revision));
                return Ok(plan.reply(shared, &request.known, answer));
            }
            // Somebody was faster: nothing was written. The picture is about to show it.
            let missed = plan.missed(answer);
            if !missed.session_lives {
                return Err(lost());
            }
            dead.extend(missed.dead);
            shared
                .wait(|picture| {
                    let shown = picture.head >= missed.head && picture.meta_revision() >= missed.meta;
                    (shown && !picture.reload).then_some(())
                })
                .await?;
            tokio::task::yield_now().await;
        }
    }

    // --- snapshots ---

    async fn snapshot(self, request: &SnapshotRequest) -> Result<SnapshotPage, StoreError> {
        let shared = self.shared();
        self.enter(&request.known, None).await?;
        let gone = || {
            let what = "the data may have been lost since this snapshot was begun: begin it again";
            StoreError::new(ErrorKind::Conflict, what)
        };
        let stamp = self.stamp(&request.known);
        let place = match &request.cursor {
            None => None,
            Some(Cursor(text)) => {
                let (generation, place) = text.split_once(' ').ok_or_else(gone)?;
                let same = generation.parse() == Ok(stamp.generation);
                Some(place.to_owned()).filter(|_| same).ok_or_else(gone).map(Some)?
            }
        };
        let page = shared.read(|picture| picture.mirror.page(request.session, place.as_deref(), PAGE_RECORDS));
        let (mut items, next) = page.ok_or_else(gone)?;
        self.add_checkpoints(request.session, &mut items).await?;
        let next = next.map(|place| Cursor(format!("{} {place}", stamp.generation)));
        Ok(SnapshotPage { stamp, items, next })
    }

    // --- operators ---

    async fn administer(self, request: &AdminRequest) -> Result<AdminOutcome, StoreError> {
        match request {
            AdminRequest::Put { key, record, expect } => self.put(key, record.as_ref(), *expect).await,
            AdminRequest::ForceRelease { slot, token, now } => self.force(slot, *token, *now).await,
        }
    }

    fn done(&self, done: bool) -> AdminOutcome {
        let stamp = self.stamp(&Known::default());
        if done { AdminOutcome::Done(stamp) } else { AdminOutcome::Refused(stamp) }
    }

    async fn put(
        &self,
        key: &RecordKey,
        record: Option<&Record>,
        expect: Option<Revision>,
    ) -> Result<AdminOutcome, StoreError> {
        let shared = self.shared();
        let keys = &shared.keys;
        loop {
            self.enter(&Known::default(), None).await?;
            let (before, meta) = shared.read(|picture| (picture.mirror.record(key).cloned(), picture.meta_revision()));
            let revision = before.as_ref().map_or(Revision(0), |before| before.revision);
            if expect.is_some_and(|expect| expect != revision) {
                return Ok(self.done(false));
            }
            let unchanged = match (record, &before) {
                (Some(record), Some(before)) => *record == before.record,
                (Some(_), None) | (None, Some(_)) => false,
                (None, None) => !matches!(key, RecordKey::Workload(_)),
            };
            if unchanged {
                return Ok(self.done(true));
            }
            let name = keys.record(key);
            let mut same = vec![
                Compare::mod_revision(name.clone(), CompareOp::Equal, i64::try_from(revision.0).unwrap_or(i64::MAX)),
                Compare::mod_revision(keys.meta(), CompareOp::Equal, meta),
            ];
            let mut then = vec![TxnOp::put(keys.head(), Vec::new(), None)];
            let mut more = false;
            match (key, record) {
                (_, Some(record)) => then.push(TxnOp::put(name, encode::json(record)?, None)),
                (key, None) => {
                    if before.is_some() {
                        then.push(TxnOp::delete(name, None));
                    }
                    if let RecordKey::Workload(workload) = key {
                        more = self.delete_slots(workload, &mut same, &mut then)?;
                    }
                    if then.len() == 1 {
                        return Ok(self.done(true));
                    }
                }
            }
            let answer = self.write(Txn::new().when(same).and_then(then)).await?;
            if !answer.succeeded {
                tokio::task::yield_now().await;
                continue;
            }
            self.see(answer.revision).await?;
            if let (RecordKey::Workload(workload), true) = (key, more) {
                self.delete_more_slots(workload).await?;
            }
            return Ok(self.done(true));
        }
    }

    /// Deletes the slots of a workload that no live session holds, unless a live session declares the workload: adds
    /// what must hold for that and what is to be done. Says whether there are more slots.
    fn delete_slots(
        &self,
        workload: &WorkloadName,
        same: &mut Vec<Compare>,
        then: &mut Vec<TxnOp>,
    ) -> Result<bool, StoreError> {
        let shared = self.shared();
        let keys = &shared.keys;
        shared.read(|picture| {
            let (mirror, Some(meta)) = (&picture.mirror, &picture.meta) else { return Ok(false) };
            if mirror.sessions().any(|(_, session)| session.info.workloads.contains_key(workload)) {
                return Ok(false);
            }
            let mut free = mirror.slots_of(workload).filter(|(_, record)| {
                record.holder.as_ref().is_none_or(|holder| mirror.session(holder.session).is_none())
            });
            let doomed: Vec<(&Slot, &rendez_core::SlotRecord)> = free.by_ref().take(DELETIONS_MAX).collect();
            if doomed.is_empty() {
                return Ok(false);
            }
            // No session has come or told anything about itself: none declares the workload now.
            let (from, to) = keys.sessions();
            let last = i64::try_from(mirror.covered().0).unwrap_or(i64::MAX);
            same.push(Compare::mod_revision(from, CompareOp::Less, last.saturating_add(1)).with_range(to));
            for (slot, record) in doomed {
                let at = i64::try_from(record.revision.0).unwrap_or(i64::MAX);
                same.push(Compare::mod_revision(keys.slot(slot), CompareOp::Equal, at));
                then.push(TxnOp::delete(keys.slot(slot), None));
                then.push(TxnOp::delete(keys.checkpoint(slot), None));
            }
            // Grants that were decided before this must not be made: see the module `change`.
            let deletions = meta.value.deletions + 1;
            let meta = Meta { deletions, ..meta.value.clone() };
            then.push(TxnOp::put(keys.meta(), encode::json(&meta)?, None));
            Ok(free.next().is_some())
        })
    }

    /// Goes on with a workload whose record is deleted. Ends early where the workload has come back.
    async fn delete_more_slots(&self, workload: &WorkloadName) -> Result<(), StoreError> {
        let shared = self.shared();
        let keys = &shared.keys;
        loop {
            self.enter(&Known::default(), None).await?;
            let meta = shared.read(|picture| picture.meta_revision());
            let name = keys.record(&RecordKey::Workload(workload.clone()));
            let mut same = vec![
                Compare::create_revision(name, CompareOp::Equal, 0),
                Compare::mod_revision(keys.meta(), CompareOp::Equal, meta),
            ];
            let mut then = vec![TxnOp::put(keys.head(), Vec::new(), None)];
            let more = self.delete_slots(workload, &mut same, &mut then)?;
            if then.len() == 1
                || shared.read(|picture| picture.mirror.record(&RecordKey::Workload(workload.clone())).is_some())
            {
                return Ok(());
            }
            let answer = self.write(Txn::new().when(same).and_then(then)).await?;
            if answer.succeeded {
                self.see(answer.revision).await?;
                if !more {
                    return Ok(());
                }
            }
        }
    }

    async fn force(&self, slot: &Slot, token: FencingToken, at_once: bool) -> Result<AdminOutcome, StoreError> {
        let shared = self.shared();
        let keys = &shared.keys;
        loop {
            self.enter(&Known::default(), None).await?;
            let (before, meta, time) = shared
                .read(|picture| (picture.mirror.slot(slot).cloned(), picture.meta_revision(), picture.mirror.time()));
            let Some(before) = before else { return Ok(self.done(false)) };
            let record = match before.force(shared.now(time), token, at_once) {
                Err(_) => return Ok(self.done(false)),
                Ok(Decision::Unchanged | Decision::Checkpoint(_)) => return Ok(self.done(true)),
                Ok(Decision::Write(record, _)) => record,
            };
            let at = i64::try_from(before.revision.0).unwrap_or(i64::MAX);
            let txn = Txn::new()
                .when([
                    Compare::mod_revision(keys.slot(slot), CompareOp::Equal, at),
                    Compare::mod_revision(keys.meta(), CompareOp::Equal, meta),
                ])
                .and_then([
                    TxnOp::put(keys.slot(slot), encode::json(&*record)?, None),
                    TxnOp::put(keys.head(), Vec::new(), None),
                ]);
            let answer = self.write(txn).await?;
            if answer.succeeded {
                self.see(answer.revision).await?;
                return Ok(self.done(true));
            }
        }
    }
}

/// Whether a change can be decided without asking the server first: the transaction finds out if the picture is old.
fn is_at_hand(picture: &Picture, request: &ChangeRequest) -> bool {
    let Some(meta) = picture.meta.as_ref().filter(|_| picture.loaded && !picture.reload) else { return false };
    let known = &request.known;
    let generation = meta.value.lineage.generation();
    known.generation.is_none_or(|reported| reported == generation)
        && known.token.get() <= meta.value.base + unsigned(picture.reached)
        && picture.has_session(request.session)
}

#[async_trait]
impl LeaseStore for EtcdStore {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::strict("etcd");
        capabilities.due = false;
        capabilities.expiry_lateness_max = EXPIRY_LATENESS_MAX;
        capabilities.ttl_min = Duration::from_secs(2);
        capabilities.ttl_granularity = Duration::from_secs(1);
        capabilities.changes_max = CHANGES_MAX;
        capabilities
    }

    async fn open(&self, cluster: &ClusterName, request: &OpenRequest) -> Result<Opening, StoreError> {
        self.capabilities().check_open(request)?;
        self.within(cluster, |work| work.open(request)).await
    }

    async fn heartbeat(&self, cluster: &ClusterName, request: &HeartbeatRequest) -> Result<Beat, StoreError> {
        self.capabilities().check_heartbeat(request)?;
        self.within(cluster, |work| work.heartbeat(request)).await
    }

    async fn close(&self, cluster: &ClusterName, request: &CloseRequest) -> Result<(), StoreError> {
        self.within(cluster, |work| async move {
            // Only a session of this cluster may have its lease ended.
            let look = work.enter(&request.known, Some(request.session)).await?;
            if look.session.is_none() {
                return Ok(());
            }
            set_stage(&work.stage, Stage::Writing);
            work.shared().revoke(&work.link, lease_of(request.session)).await
        })
        .await
    }

    async fn change(&self, cluster: &ClusterName, request: &ChangeRequest) -> Result<ChangeReply, StoreError> {
        self.capabilities().check_change(request)?;
        if request.known.token.get() > rendez_core::TOKEN_MAX {
            return Err(fatal(format!("the reported token {} cannot be", request.known.token)));
        }
        self.within(cluster, |work| work.change(request)).await
    }

    async fn snapshot(&self, cluster: &ClusterName, request: &SnapshotRequest) -> Result<SnapshotPage, StoreError> {
        self.within(cluster, |work| work.snapshot(request)).await
    }

    async fn administer(&self, cluster: &ClusterName, request: &AdminRequest) -> Result<AdminOutcome, StoreError> {
        self.capabilities().check_admin(request)?;
        self.within(cluster, |work| work.administer(request)).await
    }

    async fn watch(&self, cluster: &ClusterName) -> Result<Box<dyn Watch>, StoreError> {
        self.within(cluster, |work| async move {
            let hints = Hints::new(Arc::clone(&work.cluster));
            work.shared().wait(|picture| (picture.loaded && !picture.reload).then_some(())).await?;
            Ok(Box::new(hints) as Box<dyn Watch>)
        })
        .await
    }
}
