//! The store: requests into reads and compare-and-sets of Leases, their answers back.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use kube::Client;
use rendez_core::{
    AdminOutcome, AdminRequest, Beat, Capabilities, ChangeReply, ChangeRequest, CloseRequest, ClusterName,
    ClusterSettings, Cursor, Decision, Fencing, FencingToken, HeartbeatRequest, Known, LeaseStore, OpenRequest,
    Opening, Record, RecordKey, Revision, SessionId, SessionRecord, Slot, SnapshotPage, SnapshotRequest, StoreError,
    Sync, Watch, WorkloadName,
};

use crate::change::{self, CHANGES_MAX};
use crate::clock::Clock;
use crate::cluster::{Cluster, Handle, Shared};
use crate::connect;
use crate::encode::{Base, Draft, Meta, NodeValue, Quiet};
use crate::errors::{Stage, Wrong, lost, timed_out};
use crate::keys::Name;
use crate::options::{Address, KubernetesOptions, Namespace, fatal};
use crate::watch::Hints;

/// Records in one page of a snapshot: they come from the mirror.
const PAGE_RECORDS: usize = 2000;

/// How much later than its TTL a session is ended by who has watched it: a margin for clocks of different rates, an
/// observer's own measure of lateness, and a round trip.
const EXPIRY_LATENESS_MAX: Duration = Duration::from_secs(2);

/// A [`LeaseStore`] in the Leases of a Kubernetes namespace. Clones share their client and their pictures of clusters.
#[derive(Clone)]
pub struct KubernetesStore {
    inner: Arc<Inner>,
}

struct Inner {
    handle: Handle,
    clusters: Mutex<HashMap<ClusterName, Arc<Cluster>>>,
}

impl fmt::Debug for KubernetesStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let server = &self.inner.handle.server;
        f.debug_struct("KubernetesStore")
            .field("server", &server.name)
            .field("options", &server.options)
            .finish_non_exhaustive()
    }
}

impl KubernetesStore {
    /// Connects to `kubernetes:NAMESPACE[?kubeconfig=FILE&context=NAME]`: to the server that the kubeconfig file names,
    /// or from within a pod with its service account. What the address says wins over the options.
    ///
    /// # Errors
    /// [`Fatal`](rendez_core::ErrorKind::Fatal) for an address, credentials or rights that cannot work;
    /// [`Transient`](rendez_core::ErrorKind::Transient) for a server that does not answer. No message holds a credential.
    pub async fn connect(url: &str, options: KubernetesOptions) -> Result<Self, StoreError> {
        options.check()?;
        Ok(Self::on(connect::connect(Address::parse(url)?, options).await?))
    }

    /// Goes on with a client of your own, for the Leases of one namespace. Let it not retry by itself
    /// (`Config::default_retry`): how long a request may take is counted here. It must be used in the runtime that it was
    /// made in.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn from_client(client: Client, namespace: &str, options: KubernetesOptions) -> Result<Self, StoreError> {
        let namespace = Namespace::parse(namespace)?;
        let server = connect::look_at(client, "the given client's address".to_owned(), &namespace, options).await?;
        Ok(Self::on(server))
    }

    fn on(server: connect::Server) -> Self {
        let handle = Handle { server: Arc::new(server), clock: Arc::new(Clock::new()), rest: Arc::default() };
        Self { inner: Arc::new(Inner { handle, clusters: Mutex::default() }) }
    }

    fn cluster(&self, name: &ClusterName) -> Arc<Cluster> {
        let mut clusters = self.inner.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cluster) = clusters.get(name).filter(|cluster| !cluster.is_over()) {
            cluster.shared.touch();
            return Arc::clone(cluster);
        }
        clusters.retain(|_, cluster| !cluster.is_over());
        let cluster = Arc::new(Cluster::new(&self.inner.handle, name));
        clusters.insert(name.clone(), Arc::clone(&cluster));
        cluster
    }

    /// Carries a request out within the operation timeout. Out of time, one that writes is asked again with the same
    /// operation, whichever step it had reached.
    async fn within<T, F>(
        &self,
        name: &ClusterName,
        stage: Stage,
        carry_out: impl FnOnce(Work) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let server = &self.inner.handle.server;
        let limit = server.options.operation_timeout;
        let work = Work { cluster: self.cluster(name), capabilities: self.capabilities() };
        match tokio::time::timeout(limit, carry_out(work)).await {
            Ok(done) => done,
            Err(_) => Err(timed_out(stage, &server.name, limit)),
        }
    }
}

/// Leases have whole seconds, and one at least.
fn whole_seconds(duration: Duration) -> Duration {
    Duration::from_secs((duration.as_secs() + u64::from(duration.subsec_nanos() > 0)).max(1))
}

/// One request that is being carried out.
struct Work {
    cluster: Arc<Cluster>,
    capabilities: Capabilities,
}

impl Work {
    fn shared(&self) -> &Shared {
        &self.cluster.shared
    }

    /// What every request begins with; see [`Shared::enter`].
    async fn enter(&self, known: &Known, fresh: bool) -> Result<(), StoreError> {
        self.shared().enter(known, &self.capabilities, fresh).await
    }

    // --- opening ---

    async fn open(self, request: &OpenRequest) -> Result<Opening, StoreError> {
        let (shared, info) = (self.shared(), &request.info);
        let keys = &shared.keys;
        let (name, settings_name) = (Name::Node(info.node.clone()), Name::Record(RecordKey::Settings));
        let (lease, settings_lease) = (keys.lease(&name), keys.lease(&settings_name));
        self.enter(&request.known, true).await?;
        shared.settle_all([lease.clone(), settings_lease.clone()]).await?;
        loop {
            let (standing, remaining, settings, meta, left) = shared.read(|picture| {
                let standing = picture.node(&lease).map(|(base, value)| (base.clone(), Arc::clone(value)));
                let settings = picture.mirror.settings().cloned();
                let remaining = picture.remaining(&lease).unwrap_or_default();
                (standing, remaining, settings, picture.meta().cloned(), picture.quiet_left())
            });
            let Some(meta) = meta else {
                // The cluster's data were deleted just now.
                self.enter(&request.known, true).await?;
                continue;
            };
            let wanted = settings.clone().unwrap_or_else(|| info.settings.clone());
            if let Some((base, value)) = standing.as_ref().filter(|(_, value)| value.opened_by == request.operation) {
                match self.extend(&name, base, value, None).await? {
                    Some(_) => return Ok(self.opened(request, value, wanted)),
                    None => continue,
                }
            }
            if request.ttl > wanted.session_ttl_max {
                return Err(fatal(format!(
                    "a session TTL of {:?} is longer than the cluster's settings permit: use {:?} or less, or raise \
                     session_ttl_max in the cluster's settings",
                    request.ttl, wanted.session_ttl_max
                )));
            }
            if let Some((_, value)) = &standing
                && (value.record.incarnation != request.incarnation || request.replaces != Some(value.session))
            {
                return Ok(Opening::InUse {
                    stamp: shared.stamp(&request.known, FencingToken::NONE),
                    session: value.session,
                    incarnation: value.record.incarnation,
                    remaining,
                });
            }
            // In this order, so that no session lives without settings, and none is the first without the hold.
            if settings.is_none() {
                let draft = Draft { keys, name: &settings_name, base: None, now: shared.now() };
                self.put(&settings_lease, &draft.record(&Record::Settings(wanted.clone()))?).await?;
                continue;
            }
            if !meta.opened {
                let hold = wanted.cold_start_hold;
                let quiet = if hold > left { Some(Quiet::new(hold)) } else { meta.quiet };
                shared.write_meta(&Meta { opened: true, quiet, ..meta }).await?;
                continue;
            }
            let record = SessionRecord {
                incarnation: request.incarnation,
                opened_at: shared.now(),
                ttl: whole_seconds(request.ttl),
                info: Arc::clone(info),
                revision: Revision(0),
            };
            let session = SessionId::from_bits(fastrand::u128(1..));
            let value = NodeValue { session, opened_by: request.operation, record };
            let base = standing.as_ref().map(|(base, _)| base);
            let draft = Draft { keys, name: &name, base, now: shared.now() };
            if self.put(&lease, &draft.node(&value, true, None)?).await?.is_some() {
                return Ok(self.opened(request, &value, wanted));
            }
        }
    }

    fn opened(&self, request: &OpenRequest, value: &NodeValue, settings: ClusterSettings) -> Opening {
        let stamp = self.shared().stamp(&request.known, FencingToken::NONE);
        Opening::Opened { stamp, session: value.session, ttl: value.record.ttl, settings }
    }

    /// Writes a Lease. Answers its version, which the picture then shows; nothing if somebody was faster, which the picture
    /// then shows too.
    async fn put(
        &self,
        lease: &str,
        next: &k8s_openapi::api::coordination::v1::Lease,
    ) -> Result<Option<u64>, StoreError> {
        let shared = self.shared();
        match shared.put(next).await {
            Ok(version) => shared.see(version).await.map(|()| Some(version)),
            Err(Wrong::Conflict | Wrong::NotFound) => shared.settle(lease).await.map(|()| None),
            Err(Wrong::Gone(error) | Wrong::Other(error)) => Err(error),
        }
    }

    // --- heartbeats ---

    /// Extends a session: its Lease changes, if it is still this version. With news about the node they are written too.
    async fn extend(
        &self,
        name: &Name,
        base: &Base,
        value: &NodeValue,
        news: Option<&NodeValue>,
    ) -> Result<Option<u64>, StoreError> {
        let shared = self.shared();
        let draft = Draft { keys: &shared.keys, name, base: Some(base), now: shared.now() };
        let next = match news {
            Some(news) => draft.node(news, false, None)?,
            None => draft.node(value, false, Some(value.record.revision))?,
        };
        self.put(&shared.keys.lease(name), &next).await
    }

    async fn heartbeat(self, request: &HeartbeatRequest) -> Result<Beat, StoreError> {
        let (shared, session) = (self.shared(), request.session);
        self.enter(&request.known, false).await?;
        let ttl = loop {
            let standing = shared.read(|picture| {
                let (base, value) = picture.node(picture.lease_of(session)?)?;
                Some((base.clone(), Arc::clone(value)))
            });
            let Some((base, value)) = standing else {
                // The picture may be older than the session.
                match shared.find(session).await? {
                    Some(_) => continue,
                    None => return Err(lost()),
                }
            };
            let news = match &request.info {
                Some(info) if info.node != value.record.info.node => {
                    return Err(fatal(format!(
                        "the session of node {:?} cannot become one of node {:?}: open another session",
                        value.record.info.node, info.node
                    )));
                }
                Some(info) if *info != value.record.info => {
                    let record = SessionRecord { info: Arc::clone(info), ..value.record.clone() };
                    Some(NodeValue { record, ..(*value).clone() })
                }
                Some(_) | None => None,
            };
            let name = Name::Node(value.record.info.node.clone());
            if self.extend(&name, &base, &value, news.as_ref()).await?.is_some() {
                break value.record.ttl;
            }
        };
        // The picture now shows all that has happened before the heartbeat: also another generation.
        self.enter(&request.known, false).await?;
        let stamp = shared.stamp(&request.known, FencingToken::NONE);
        let (held, sync) = shared.read(|picture| {
            let sync = match request.since {
                None => Sync::NotAsked,
                Some(_) if request.known.generation != Some(stamp.generation) => Sync::Snapshot,
                Some(since) => {
                    let most = usize::try_from(request.changes_max).unwrap_or(usize::MAX);
                    let mut sync = picture.mirror.sync(Some(session), since, most);
                    if let Sync::Changes { changes, .. } = &mut sync {
                        picture.add_checkpoints(&shared.keys, Some(session), changes);
                    }
                    sync
                }
            };
            (picture.mirror.held(session), sync)
        });
        Ok(Beat { stamp, ttl, held: held.ok_or_else(lost)?, sync, due: Vec::new() })
    }

    // --- closing ---

    async fn close(self, request: &CloseRequest) -> Result<(), StoreError> {
        let shared = self.shared();
        self.enter(&request.known, true).await?;
        loop {
            let Some(lease) = shared.find(request.session).await? else { return Ok(()) };
            let Some(base) = shared.read(|picture| picture.base(&lease).cloned()) else { return Ok(()) };
            match shared.delete(&lease, &base).await {
                Ok(()) => {
                    return shared.wait(|picture| picture.lease_of(request.session).is_none().then_some(())).await;
                }
                // It was extended meanwhile, or somebody else has ended it.
                Err(Wrong::Conflict | Wrong::NotFound) => {}
                Err(Wrong::Gone(error) | Wrong::Other(error)) => return Err(error),
            }
        }
    }

    // --- changes ---

    async fn change(self, request: &ChangeRequest) -> Result<ChangeReply, StoreError> {
        let shared = self.shared();
        let (entered, found) = futures_util::join!(self.enter(&request.known, true), shared.find(request.session));
        entered?;
        if found?.is_none() || shared.read(|picture| picture.lease_of(request.session).is_none()) {
            return Err(lost());
        }
        change::make(shared, request).await
    }

    // --- snapshots ---

    async fn snapshot(self, request: &SnapshotRequest) -> Result<SnapshotPage, StoreError> {
        let shared = self.shared();
        self.enter(&request.known, true).await?;
        if request.cursor.is_none() {
            shared.settle_everything().await?;
        }
        let gone = || {
            let what = "the data may have been lost since this snapshot was begun: begin it again";
            StoreError::new(rendez_core::ErrorKind::Conflict, what)
        };
        let stamp = shared.stamp(&request.known, FencingToken::NONE);
        let place = match &request.cursor {
            None => None,
            Some(Cursor(text)) => {
                let (generation, place) = text.split_once(' ').ok_or_else(gone)?;
                let same = generation.parse() == Ok(stamp.generation);
                Some(place.to_owned()).filter(|_| same).ok_or_else(gone).map(Some)?
            }
        };
        let page = shared.read(|picture| {
            let (mut items, next) = picture.mirror.page(request.session, place.as_deref(), PAGE_RECORDS)?;
            picture.add_checkpoints(&shared.keys, request.session, &mut items);
            Some((items, next))
        });
        let (items, next) = page.ok_or_else(gone)?;
        let next = next.map(|place| Cursor(format!("{} {place}", stamp.generation)));
        Ok(SnapshotPage { stamp, items, next })
    }

    // --- operators ---

    async fn administer(self, request: &AdminRequest) -> Result<AdminOutcome, StoreError> {
        self.enter(&Known::default(), true).await?;
        let done = match request {
            AdminRequest::Put { key, record: Some(record), expect } => self.write(key, record, *expect).await?,
            AdminRequest::Put { key, record: None, expect } => self.remove(key, *expect).await?,
            AdminRequest::ForceRelease { slot, token, now } => self.force(slot, *token, *now).await?,
        };
        let stamp = self.shared().stamp(&Known::default(), FencingToken::NONE);
        Ok(if done { AdminOutcome::Done(stamp) } else { AdminOutcome::Refused(stamp) })
    }

    /// Writes a record. Says whether it had the expected revision.
    async fn write(&self, key: &RecordKey, record: &Record, expect: Option<Revision>) -> Result<bool, StoreError> {
        let shared = self.shared();
        let name = Name::Record(key.clone());
        let lease = shared.keys.lease(&name);
        shared.settle(&lease).await?;
        loop {
            let (base, before) =
                shared.read(|picture| (picture.base(&lease).cloned(), picture.mirror.record(key).cloned()));
            let revision = before.as_ref().map_or(Revision(0), |before| before.revision);
            if expect.is_some_and(|expect| expect != revision) {
                return Ok(false);
            }
            if before.is_some_and(|before| before.record == *record) {
                return Ok(true);
            }
            let draft = Draft { keys: &shared.keys, name: &name, base: base.as_ref(), now: shared.now() };
            if self.put(&lease, &draft.record(record)?).await?.is_some() {
                return Ok(true);
            }
        }
    }

    /// Deletes a record, and with a workload's its slots. Says whether it had the expected revision.
    async fn remove(&self, key: &RecordKey, expect: Option<Revision>) -> Result<bool, StoreError> {
        let shared = self.shared();
        let lease = shared.keys.record(key);
        shared.settle(&lease).await?;
        loop {
            let base = shared.read(|picture| picture.base(&lease).cloned());
            let revision = base.as_ref().map_or(Revision(0), |base| Revision(base.version));
            if expect.is_some_and(|expect| expect != revision) {
                return Ok(false);
            }
            let Some(base) = base else { break };
            match shared.delete(&lease, &base).await {
                Ok(()) => {
                    shared.wait(|picture| (picture.base(&lease) != Some(&base)).then_some(())).await?;
                    break;
                }
                Err(Wrong::Conflict | Wrong::NotFound) => shared.settle(&lease).await?,
                Err(Wrong::Gone(error) | Wrong::Other(error)) => return Err(error),
            }
        }
        if let RecordKey::Workload(workload) = key {
            self.delete_slots(workload).await?;
        }
        Ok(true)
    }

    /// Deletes the slots of a workload that no live session holds, unless a live session declares the workload. Their
    /// tokens stay below the cluster's floor, which is raised before: see the module `change`.
    async fn delete_slots(&self, workload: &WorkloadName) -> Result<(), StoreError> {
        let shared = self.shared();
        let key = RecordKey::Workload(workload.clone());
        loop {
            shared.settle_everything().await?;
            let (doomed, highest, meta) = shared.read(|picture| {
                let mirror = &picture.mirror;
                let declared = mirror.sessions().any(|(_, session)| session.info.workloads.contains_key(workload));
                if declared || mirror.record(&key).is_some() {
                    return (Vec::new(), 0, None);
                }
                let free = mirror.slots_of(workload).filter(|(_, record)| {
                    record.holder.as_ref().is_none_or(|holder| mirror.session(holder.session).is_none())
                });
                let mut highest = 0;
                let doomed = free.filter_map(|(slot, record)| {
                    let lease = shared.keys.slot(slot);
                    let base = picture.base(&lease).cloned()?;
                    highest = highest.max(record.token.get());
                    Some((lease, base))
                });
                (doomed.collect::<Vec<(String, Base)>>(), highest, picture.meta().cloned())
            });
            let Some(meta) = meta.filter(|_| !doomed.is_empty()) else { return Ok(()) };
            if meta.floor < highest && !shared.write_meta(&Meta { floor: highest, ..meta }).await? {
                continue;
            }
            shared.delete_all(doomed).await?;
        }
    }

    async fn force(&self, slot: &Slot, token: FencingToken, at_once: bool) -> Result<bool, StoreError> {
        let shared = self.shared();
        let name = Name::Slot(slot.clone());
        let lease = shared.keys.lease(&name);
        shared.settle(&lease).await?;
        loop {
            let (base, before, checkpoint) = shared.read(|picture| {
                let before = picture.mirror.slot(slot).cloned();
                (picture.base(&lease).cloned(), before, picture.checkpoint(&lease))
            });
            let Some(before) = before else { return Ok(false) };
            let record = match before.force(shared.now(), token, at_once) {
                Err(_) => return Ok(false),
                Ok(Decision::Unchanged | Decision::Checkpoint(_)) => return Ok(true),
                Ok(Decision::Write(record, _)) => record,
            };
            let draft = Draft { keys: &shared.keys, name: &name, base: base.as_ref(), now: shared.now() };
            if self.put(&lease, &draft.slot(&record, checkpoint.as_ref(), false, None)?).await?.is_some() {
                return Ok(true);
            }
        }
    }
}

#[async_trait]
impl LeaseStore for KubernetesStore {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::strict("kubernetes");
        capabilities.fencing = Fencing::BestEffort;
        capabilities.due = false;
        capabilities.whole_batches = false;
        capabilities.expiry_lateness_max = EXPIRY_LATENESS_MAX;
        capabilities.ttl_min = Duration::from_secs(1);
        capabilities.ttl_granularity = Duration::from_secs(1);
        capabilities.changes_max = CHANGES_MAX;
        capabilities
    }

    async fn open(&self, cluster: &ClusterName, request: &OpenRequest) -> Result<Opening, StoreError> {
        self.capabilities().check_open(request)?;
        self.within(cluster, Stage::Writing, |work| work.open(request)).await
    }

    async fn heartbeat(&self, cluster: &ClusterName, request: &HeartbeatRequest) -> Result<Beat, StoreError> {
        self.capabilities().check_heartbeat(request)?;
        self.within(cluster, Stage::Writing, |work| work.heartbeat(request)).await
    }

    async fn close(&self, cluster: &ClusterName, request: &CloseRequest) -> Result<(), StoreError> {
        self.within(cluster, Stage::Writing, |work| work.close(request)).await
    }

    async fn change(&self, cluster: &ClusterName, request: &ChangeRequest) -> Result<ChangeReply, StoreError> {
        self.capabilities().check_change(request)?;
        self.within(cluster, Stage::Writing, |work| work.change(request)).await
    }

    async fn snapshot(&self, cluster: &ClusterName, request: &SnapshotRequest) -> Result<SnapshotPage, StoreError> {
        self.within(cluster, Stage::Reading, |work| work.snapshot(request)).await
    }

    async fn administer(&self, cluster: &ClusterName, request: &AdminRequest) -> Result<AdminOutcome, StoreError> {
        self.capabilities().check_admin(request)?;
        self.within(cluster, Stage::Writing, |work| work.administer(request)).await
    }

    async fn watch(&self, cluster: &ClusterName) -> Result<Box<dyn Watch>, StoreError> {
        self.within(cluster, Stage::Reading, |work| async move {
            let hints = Hints::new(Arc::clone(&work.cluster));
            work.shared().wait(|_| Some(())).await?;
            Ok(Box::new(hints) as Box<dyn Watch>)
        })
        .await
    }
}
