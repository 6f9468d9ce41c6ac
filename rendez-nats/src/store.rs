//! The store: requests into compare-and-set writes, their acknowledgements back.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::Client;
use async_trait::async_trait;
use futures_util::StreamExt as _;
use futures_util::stream;
use rendez_core::{
    AdminOutcome, AdminRequest, Beat, Capabilities, ChangeOutcome, ChangeReply, ChangeRequest, CloseRequest,
    ClusterName, Cursor, Decision, ErrorKind, Fencing, FencingToken, Generation, HeartbeatRequest, Holder, Known,
    LeaseStore, OpenRequest, Opening, Record, RecordKey, Revision, SessionRecord, Slot, SnapshotPage, SnapshotRequest,
    Stamp, StoreError, Sync, Watch, WorkloadName,
};

use crate::change::{self, CHANGES_MAX, WRITES_AT_ONCE_MAX};
use crate::cluster::{Cluster, How, Shared, StageCell, check_known, set_stage, whole_seconds};
use crate::connect::Link;
use crate::encode::{self, Meta, SessionValue, SlotValue};
use crate::errors::{Put, Stage, lost, timed_out};
use crate::keys::{Name, session_id};
use crate::options::{Address, NatsOptions, fatal};
use crate::picture::{Picture, Standing};
use crate::watch::Hints;

/// Records in one page of a snapshot: they come from the mirror.
const PAGE_RECORDS: usize = 2000;

/// The most slots of a deleted workload that are deleted at once.
const DELETIONS_MAX: usize = 256;

/// How late it is known that a key has expired: servers delete it some milliseconds late, and are asked for it seven
/// times a second.
const EXPIRY_LATENESS_MAX: Duration = Duration::from_millis(1000);

/// A [`LeaseStore`] in NATS JetStream. Clones share their connection and their pictures of clusters.
#[derive(Clone)]
pub struct NatsStore {
    inner: Arc<Inner>,
}

struct Inner {
    link: Arc<Link>,
    clusters: Mutex<HashMap<ClusterName, Arc<Cluster>>>,
}

impl fmt::Debug for NatsStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsStore")
            .field("server", &self.inner.link.name)
            .field("options", &self.inner.link.options)
            .finish_non_exhaustive()
    }
}

impl NatsStore {
    /// Connects to `nats://[user:password@]host[:4222],host2…`, or `natss://…` for TLS, and looks whether the server
    /// fits.
    ///
    /// # Errors
    /// [`ErrorKind::Fatal`] for a URL, credentials or a server that cannot work; [`ErrorKind::Transient`] for servers
    /// that do not answer. No message holds the password.
    pub async fn connect(url: &str, options: NatsOptions) -> Result<Self, StoreError> {
        let address = Address::parse(url)?;
        options.check()?;
        Ok(Self::with(Link::to_servers(&address, options).await?))
    }

    /// Takes a client of your own: its servers, credentials and certificates. It must be connected.
    ///
    /// What it sends while it has no connection it may send late; nothing here is harmed by that.
    ///
    /// # Errors
    /// [`ErrorKind::Fatal`] for options or a server that cannot work.
    pub fn from_client(client: Client, options: NatsOptions) -> Result<Self, StoreError> {
        options.check()?;
        Ok(Self::with(Link::given(client, options)?))
    }

    fn with(link: Link) -> Self {
        Self { inner: Arc::new(Inner { link: Arc::new(link), clusters: Mutex::new(HashMap::new()) }) }
    }

    fn cluster(&self, name: &ClusterName) -> Arc<Cluster> {
        let mut clusters = self.inner.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cluster) = clusters.get(name).filter(|cluster| !cluster.is_over()) {
            cluster.shared.touch();
            return Arc::clone(cluster);
        }
        clusters.retain(|_, cluster| !cluster.is_over());
        let cluster = Arc::new(Cluster::new(Arc::clone(&self.inner.link), name));
        clusters.insert(name.clone(), Arc::clone(&cluster));
        cluster
    }

    /// Carries a request out within the operation timeout.
    async fn within<T, F>(&self, name: &ClusterName, carry_out: impl FnOnce(Work) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let link = &self.inner.link;
        let (began, limit) = (Instant::now(), link.options.operation_timeout);
        let stage = Arc::new(StageCell::new(Stage::Connecting));
        let done = tokio::time::timeout(limit, async {
            link.ready().await?;
            set_stage(&stage, Stage::Reading);
            let cluster = self.cluster(name);
            carry_out(Work { cluster, stage: Arc::clone(&stage), capabilities: self.capabilities() }).await
        });
        match done.await {
            Ok(done) => done,
            Err(_) => {
                let stage = *stage.lock().unwrap_or_else(PoisonError::into_inner);
                Err(link.denied_since(began).unwrap_or_else(|| timed_out(stage, &link.name, limit)))
            }
        }
    }
}

/// One request that is being carried out.
struct Work {
    cluster: Arc<Cluster>,
    stage: Arc<StageCell>,
    capabilities: Capabilities,
}

/// What an opening decides from.
struct Door {
    meta: Option<(Meta, u64)>,
    standing: Option<Standing>,
    /// Of the last write of the node's key.
    last: u64,
    settings: Option<rendez_core::ClusterSettings>,
    settings_last: u64,
    remaining: Duration,
    covered: u64,
    now: rendez_core::StoreTime,
    quiet_left: Duration,
    quiet_last: u64,
}

impl Work {
    fn shared(&self) -> &Shared {
        &self.cluster.shared
    }

    async fn enter(&self, known: &Known) -> Result<(), StoreError> {
        self.shared().enter(known, &self.capabilities, &self.stage).await
    }

    /// Writes a key and waits until the picture shows it.
    async fn write(&self, name: &Name, value: bytes::Bytes, how: How) -> Result<Put, StoreError> {
        set_stage(&self.stage, Stage::Writing);
        let put = self.shared().put(name, value, how, Stage::Writing).await?;
        match put {
            Put::Done(sequence) => self.shared().see(sequence).await?,
            Put::Missed(_) => self.shared().sync().await?,
        }
        Ok(put)
    }

    fn stamp(&self, known: &Known) -> Stamp {
        let shared = self.shared();
        shared.read(|picture| shared.stamp(picture, known, FencingToken::NONE))
    }

    // --- opening ---

    async fn open(self, request: &OpenRequest) -> Result<Opening, StoreError> {
        // Out of time, an opening is asked again with the same operation, whichever step it had reached.
        set_stage(&self.stage, Stage::Writing);
        let steps = StageCell::new(Stage::Writing);
        self.shared().enter(&request.known, &self.capabilities, &steps).await?;
        let (shared, info) = (self.shared(), &*request.info);
        let key = Name::Session(info.node.clone());
        loop {
            let door = shared.read(|picture| self.door(picture, request, &key));
            let Some((meta, meta_last)) = &door.meta else {
                self.enter(&request.known).await?;
                continue;
            };
            let settings = door.settings.clone().unwrap_or_else(|| info.settings.clone());
            if let Some(standing) = door.standing.as_ref().filter(|it| it.opened_by() == request.operation) {
                let value = encode::json(&standing.extended())?;
                let (session, ttl) = (standing.value.session, standing.value.record.ttl);
                let how = How::replacing(door.last).living(shared.key_ttl(ttl));
                match self.write(&key, value, how).await? {
                    Put::Done(_) => {
                        return Ok(Opening::Opened { stamp: self.stamp(&request.known), session, ttl, settings });
                    }
                    Put::Missed(found) => self.claim_if_gone(&key, found).await?,
                }
                continue;
            }
            if request.ttl > settings.session_ttl_max {
                return Err(fatal(format!(
                    "a session TTL of {:?} is longer than the cluster's settings permit: use {:?} or less, or raise \
                     session_ttl_max in the cluster's settings",
                    request.ttl, settings.session_ttl_max
                )));
            }
            if let Some(standing) = &door.standing
                && (standing.value.record.incarnation != request.incarnation
                    || request.replaces != Some(standing.value.session))
            {
                if door.remaining.is_zero() && matches!(shared.claim(&key).await?, Put::Done(_)) {
                    shared.sync().await?;
                    continue;
                }
                return Ok(Opening::InUse {
                    stamp: self.stamp(&request.known),
                    session: standing.value.session,
                    incarnation: standing.value.record.incarnation,
                    remaining: door.remaining,
                });
            }
            if door.settings.is_none() {
                let name = Name::Record(RecordKey::Settings);
                let record = encode::json(&Record::Settings(settings))?;
                self.write(&name, record, How::replacing(door.settings_last)).await?;
                continue;
            }
            if !meta.opened {
                let hold = settings.cold_start_hold;
                if hold > door.quiet_left && !shared.begin_quiet(hold, door.quiet_last).await? {
                    shared.sync().await?;
                    continue;
                }
                let meta = Meta { opened: true, ..meta.clone() };
                self.write(&Name::Meta, encode::json(&meta)?, How::replacing(*meta_last)).await?;
                continue;
            }
            let ttl = Duration::from_secs(whole_seconds(request.ttl));
            let record = SessionRecord {
                incarnation: request.incarnation,
                opened_at: door.now,
                ttl,
                info: Arc::clone(&request.info),
                revision: Revision(0),
            };
            let session = session_id(door.covered);
            let value = SessionValue { session, opened_by: request.operation, at: None, after: door.last, record };
            // Alone, so that nothing is left beneath it when it expires.
            let how = How::replacing(door.last).alone().living(shared.key_ttl(ttl));
            if let Put::Done(_) = self.write(&key, encode::json(&value)?, how).await? {
                return Ok(Opening::Opened { stamp: self.stamp(&request.known), session, ttl, settings });
            }
        }
    }

    fn door(&self, picture: &Picture, request: &OpenRequest, key: &Name) -> Door {
        let standing = picture.standing(&request.info.node).cloned();
        Door {
            meta: picture.meta.as_ref().map(|meta| (meta.value.clone(), meta.sequence)),
            remaining: standing.as_ref().map_or(Duration::ZERO, |standing| picture.remaining(standing)),
            standing,
            last: picture.last(key),
            settings: picture.mirror.settings().cloned(),
            settings_last: picture.last(&Name::Record(RecordKey::Settings)),
            covered: picture.mirror.covered().0,
            now: picture.now(),
            quiet_left: picture.quiet_left(),
            quiet_last: picture.last(&Name::Quiet),
        }
    }

    /// The server has no write of a session's key any more: it has expired.
    async fn claim_if_gone(&self, key: &Name, found: Option<u64>) -> Result<(), StoreError> {
        if found == Some(0) {
            self.shared().claim(key).await?;
            self.shared().sync().await?;
        }
        Ok(())
    }

    // --- heartbeats ---

    async fn heartbeat(self, request: &HeartbeatRequest) -> Result<Beat, StoreError> {
        let (shared, session) = (self.shared(), request.session);
        check_known(&request.known)?;
        let mut heard = false;
        if !shared.read(|picture| picture.loaded && !picture.reload && picture.session(session).is_some()) {
            self.enter(&request.known).await?;
            heard = true;
        }
        let ttl = loop {
            let found = shared.read(|picture| {
                let (node, standing) = picture.session(session)?;
                let key = Name::Session(node.clone());
                Some((picture.last(&key), key, standing.clone()))
            });
            let value = found.ok_or_else(lost).and_then(|(last, key, standing)| {
                let value = told(&standing, request)?;
                Ok((last, key, value))
            });
            let (last, key, value) = match value {
                Ok(value) => value,
                Err(refused) if heard => return Err(refused),
                // What the node knows is heard all the same.
                Err(_) => {
                    self.enter(&request.known).await?;
                    heard = true;
                    continue;
                }
            };
            let ttl = value.record.ttl;
            let how = How::replacing(last).living(shared.key_ttl(ttl));
            match self.write(&key, encode::json(&value)?, how).await? {
                Put::Done(_) => break ttl,
                Put::Missed(found) => {
                    let same = shared.read(|picture| picture.last(&key) == last);
                    if same && found == Some(0) {
                        // Gone, and nobody may write over what is gone: let everybody know.
                        self.claim_if_gone(&key, found).await?;
                        self.enter(&request.known).await?;
                        return Err(lost());
                    }
                }
            }
        };
        set_stage(&self.stage, Stage::Reading);
        if shared.correct(&request.known, &self.capabilities, &self.stage).await? {
            self.enter(&request.known).await?;
        }
        let (sync, held, stamp, due) = shared.read(|picture| {
            let stamp = shared.stamp(picture, &request.known, FencingToken::NONE);
            let due = picture.due(request.due_within, session);
            (sync(picture, request, &stamp), picture.mirror.held(session), stamp, due)
        });
        let held = held.ok_or_else(lost)?;
        Ok(Beat { stamp, ttl, held, sync, due })
    }

    async fn close(self, request: &CloseRequest) -> Result<(), StoreError> {
        let shared = self.shared();
        self.enter(&request.known).await?;
        loop {
            let found = shared.read(|picture| {
                let (node, _) = picture.session(request.session)?;
                let key = Name::Session(node.clone());
                Some((picture.last(&key), key))
            });
            let Some((last, key)) = found else { return Ok(()) };
            match self.write(&key, bytes::Bytes::new(), How::deleting(last)).await? {
                Put::Done(_) => return Ok(()),
                Put::Missed(found) => self.claim_if_gone(&key, found).await?,
            }
        }
    }

    // --- changes ---

    async fn change(self, request: &ChangeRequest) -> Result<ChangeReply, StoreError> {
        let shared = self.shared();
        // Out of time, whichever step it had reached, it is asked again with the same operations.
        set_stage(&self.stage, Stage::Writing);
        let steps = StageCell::new(Stage::Writing);
        shared.enter(&request.known, &self.capabilities, &steps).await?;
        let generation = shared.read(Picture::generation);
        let mut outcomes: Vec<Option<ChangeOutcome>> = request.changes.iter().map(|_| None).collect();
        let mut open: BTreeSet<usize> = (0..request.changes.len()).collect();
        let mut token = FencingToken::NONE;
        loop {
            let planned = shared.read(|picture| change::plan(picture, request, &open))?;
            let plan = planned.ok_or_else(lost)?;
            if let Some(token) = plan.report {
                self.enter(&Known { token, ..request.known.clone() }).await?;
                continue;
            }
            for (place, outcome) in plan.settled {
                open.remove(&place);
                outcomes[place] = Some(outcome);
            }
            self.settle(&plan.unknown).await?;
            let (reached, missed) = self.write_all(request, plan.writes, &mut open, &mut outcomes).await?;
            // Beside one's own writes, the picture then shows who had ended before them.
            shared.see(reached).await?;
            if open.is_empty() {
                break;
            }
            if missed {
                // Somebody was faster: decide anew from what is there now.
                shared.sync().await?;
            }
        }
        let (lives, same) =
            shared.read(|picture| (picture.session(request.session).is_some(), picture.generation() == generation));
        if !lives {
            return Err(lost());
        }
        if !same {
            let what = "a new generation of the cluster's data began meanwhile: ask again";
            return Err(StoreError::new(ErrorKind::Ambiguous, what));
        }
        let outcomes: Vec<ChangeOutcome> = outcomes.into_iter().flatten().collect();
        for outcome in &outcomes {
            if let ChangeOutcome::Done(Some(record)) = outcome {
                token = token.max(record.token);
            }
        }
        let stamp = shared.read(|picture| shared.stamp(picture, &request.known, token));
        Ok(ChangeReply { stamp, outcomes })
    }

    /// Makes writes, several at once. Says the last sequence, and whether any of them missed.
    async fn write_all(
        &self,
        request: &ChangeRequest,
        writes: Vec<change::Write>,
        open: &mut BTreeSet<usize>,
        outcomes: &mut [Option<ChangeOutcome>],
    ) -> Result<(u64, bool), StoreError> {
        if writes.is_empty() {
            return Ok((0, false));
        }
        let shared = self.shared();
        let writes = writes.into_iter().map(|write| async move {
            let how = How::replacing(write.expect);
            let put = shared.put(&write.name, write.bytes.clone(), how, Stage::Writing).await;
            (write, put)
        });
        let mut writes = stream::iter(writes).buffer_unordered(WRITES_AT_ONCE_MAX);
        let (mut reached, mut missed, mut failed) = (0, false, None::<StoreError>);
        while let Some((write, put)) = writes.next().await {
            match put {
                Ok(Put::Done(sequence)) => {
                    reached = reached.max(sequence);
                    open.remove(&write.place);
                    outcomes[write.place] = Some(write.done(sequence, request.session));
                }
                Ok(Put::Missed(_)) => missed = true,
                // An unknown outcome says least, so it is the one to tell.
                Err(error) if error.kind() == ErrorKind::Ambiguous => failed = Some(error),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match failed {
            // Some of the others were made.
            Some(error) if reached > 0 && error.kind() == ErrorKind::Transient => {
                Err(StoreError::new(ErrorKind::Ambiguous, error.message()))
            }
            Some(error) => Err(error),
            None => Ok((reached, missed)),
        }
    }

    /// Finds out about sessions that the picture does not show.
    async fn settle(&self, holders: &[Holder]) -> Result<(), StoreError> {
        let shared = self.shared();
        for holder in holders {
            if shared.is_unknown(holder) {
                shared.settle(holder).await?;
            }
        }
        Ok(())
    }

    // --- snapshots ---

    async fn snapshot(self, request: &SnapshotRequest) -> Result<SnapshotPage, StoreError> {
        let shared = self.shared();
        self.enter(&request.known).await?;
        let gone = || {
            let what = "the data may have been lost since this snapshot was begun: begin it again";
            StoreError::new(ErrorKind::Conflict, what)
        };
        let place = |generation: Generation| match &request.cursor {
            None => Ok(None),
            Some(Cursor(text)) => {
                let (of, place) = text.split_once(' ').ok_or_else(gone)?;
                let same = of.parse() == Ok(generation);
                Some(place.to_owned()).filter(|_| same).ok_or_else(gone).map(Some)
            }
        };
        let (stamp, page) = shared.read(|picture| {
            let stamp = shared.stamp(picture, &request.known, FencingToken::NONE);
            let place = place(stamp.generation)?;
            let page = picture.mirror.page(request.session, place.as_deref(), PAGE_RECORDS);
            let (mut items, next) = page.ok_or_else(gone)?;
            picture.add_checkpoints(request.session, &mut items);
            Ok::<_, StoreError>((stamp, (items, next)))
        })?;
        let (items, next) = page;
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
        self.enter(&Known::default()).await?;
        let name = Name::Record(key.clone());
        loop {
            let (before, last) = shared.read(|picture| (picture.mirror.record(key).cloned(), picture.last(&name)));
            let revision = before.as_ref().map_or(Revision(0), |before| before.revision);
            if expect.is_some_and(|expect| expect != revision) {
                return Ok(self.done(false));
            }
            let put = match (record, &before) {
                (Some(record), Some(before)) if *record == before.record => return Ok(self.done(true)),
                (Some(record), Some(_) | None) => {
                    self.write(&name, encode::json(record)?, How::replacing(last)).await?
                }
                (None, Some(_)) => self.write(&name, bytes::Bytes::new(), How::deleting(last)).await?,
                (None, None) => Put::Done(0),
            };
            if let Put::Missed(_) = put {
                continue;
            }
            if let (RecordKey::Workload(workload), None) = (key, record) {
                self.delete_slots(workload).await?;
            }
            return Ok(self.done(true));
        }
    }

    /// Deletes the slots of a workload that no live session holds, unless a live session declares the workload. Ends
    /// early where the workload has come back.
    async fn delete_slots(&self, workload: &WorkloadName) -> Result<(), StoreError> {
        let shared = self.shared();
        let record = RecordKey::Workload(workload.clone());
        loop {
            let (free, unknown) = shared.read(|picture| {
                if picture.mirror.record(&record).is_some() {
                    return (Vec::new(), Vec::new());
                }
                change::unheld(picture, workload, DELETIONS_MAX)
            });
            if free.is_empty() && unknown.is_empty() {
                return Ok(());
            }
            self.settle(&unknown).await?;
            set_stage(&self.stage, Stage::Writing);
            let deletions = free.into_iter().map(|(name, last)| async move {
                shared.put(&name, bytes::Bytes::new(), How::deleting(last), Stage::Writing).await
            });
            let mut deletions = stream::iter(deletions).buffer_unordered(WRITES_AT_ONCE_MAX);
            while let Some(put) = deletions.next().await {
                put?;
            }
            shared.sync().await?;
        }
    }

    async fn force(&self, slot: &Slot, token: FencingToken, at_once: bool) -> Result<AdminOutcome, StoreError> {
        let shared = self.shared();
        self.enter(&Known::default()).await?;
        let name = Name::Slot(slot.clone());
        loop {
            let (before, last, now) = shared.read(|picture| (picture.slot(slot), picture.last(&name), picture.now()));
            let Some(before) = before else { return Ok(self.done(false)) };
            let record = match before.force(now, token, at_once) {
                Err(_) => return Ok(self.done(false)),
                Ok(Decision::Unchanged | Decision::Checkpoint(_)) => return Ok(self.done(true)),
                Ok(Decision::Write(record, _)) => *record,
            };
            let bytes = encode::slot_bytes(&SlotValue { base: None, at: None, record })?;
            if let Put::Done(_) = self.write(&name, bytes, How::replacing(last)).await? {
                return Ok(self.done(true));
            }
        }
    }
}

/// What a heartbeat writes: what the node tells about itself, if that is news.
fn told(standing: &Standing, request: &HeartbeatRequest) -> Result<SessionValue, StoreError> {
    let mut value = standing.extended();
    let Some(info) = request.info.as_ref().filter(|info| **info != value.record.info) else { return Ok(value) };
    if value.record.info.node != info.node {
        return Err(fatal(format!(
            "the session of node {:?} cannot become one of node {:?}: open another session",
            value.record.info.node, info.node
        )));
    }
    value.record.info = Arc::clone(info);
    value.at = None;
    Ok(value)
}

fn sync(picture: &Picture, request: &HeartbeatRequest, stamp: &Stamp) -> Sync {
    let Some(since) = request.since else { return Sync::NotAsked };
    if request.known.generation != Some(stamp.generation) {
        return Sync::Snapshot;
    }
    let most = usize::try_from(request.changes_max).unwrap_or(usize::MAX);
    let mut sync = picture.mirror.sync(Some(request.session), since, most);
    if let Sync::Changes { changes, .. } = &mut sync {
        picture.add_checkpoints(Some(request.session), changes);
    }
    sync
}

#[async_trait]
impl LeaseStore for NatsStore {
    fn capabilities(&self) -> Capabilities {
        let options = &self.inner.link.options;
        let mut capabilities = Capabilities::strict("nats");
        capabilities.fencing = if options.synced { Fencing::Strict } else { Fencing::Acknowledged };
        // Keys live for whole seconds.
        capabilities.expiry_lateness_max =
            EXPIRY_LATENESS_MAX + Duration::from_secs(whole_seconds(options.clock_skew_max));
        capabilities.ttl_min = Duration::from_secs(1);
        capabilities.ttl_granularity = Duration::from_secs(1);
        capabilities.changes_max = CHANGES_MAX;
        capabilities.whole_batches = false;
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
        self.within(cluster, |work| work.close(request)).await
    }

    async fn change(&self, cluster: &ClusterName, request: &ChangeRequest) -> Result<ChangeReply, StoreError> {
        self.capabilities().check_change(request)?;
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
