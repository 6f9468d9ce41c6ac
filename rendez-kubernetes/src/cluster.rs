//! One cluster as a handle follows it: the picture, its keeper, and what every request begins with.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{DeleteParams, ListParams, PostParams, Preconditions};
use rendez_core::{
    Capabilities, ClusterName, ErrorKind, FencingToken, Generation, Known, Revision, SessionId, Stamp, StoreError,
    StoreTime, TOKEN_MAX, WatchHint, quiet_time,
};
use tokio::sync::{Notify, broadcast, watch};

use crate::clock::Clock;
use crate::connect::Server;
use crate::encode::{self, Base, Draft, Meta};
use crate::errors::{Stage, Wrong, again, damaged, sort};
use crate::history::{Found, judge};
use crate::keys::{CLUSTER_LABEL, Keys, Name, SESSION_LABEL};
use crate::options::fatal;
use crate::picture::{Listing, Overdue, Picture};
use crate::watch::follow;

/// Hints that wait for a watcher before it is told that everything may have changed.
const HINTS_MAX: usize = 256;

/// How long a cluster is followed that nobody asks for.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// Leases in one page of a list.
const PAGE_LEASES: u32 = 500;

/// The most requests that one request of the contract has on their way at once: a batch is many Leases.
pub(crate) const CALLS_AT_ONCE: usize = 16;

/// What requests and the watch share.
pub(crate) struct Shared {
    pub(crate) keys: Keys,
    pub(crate) server: Arc<Server>,
    pub(crate) hints: broadcast::Sender<WatchHint>,
    /// The watch may be dead without having ended.
    pub(crate) suspect: Notify,
    /// Somebody waits for a picture.
    pub(crate) wanted: Notify,
    picture: Mutex<Picture>,
    changed: watch::Sender<u64>,
    asked_at: Mutex<Instant>,
    clock: Arc<Clock>,
    /// Until when the server wants to be left alone, and what it said.
    rest: Arc<Mutex<Option<(Instant, StoreError)>>>,
}

/// A followed cluster. Its keeper ends with it.
pub(crate) struct Cluster {
    pub(crate) shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What all clusters of a handle share.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(crate) server: Arc<Server>,
    pub(crate) clock: Arc<Clock>,
    pub(crate) rest: Arc<Mutex<Option<(Instant, StoreError)>>>,
}

impl Cluster {
    pub(crate) fn new(handle: &Handle, name: &ClusterName) -> Self {
        let shared = Arc::new(Shared {
            keys: Keys::new(name),
            server: Arc::clone(&handle.server),
            hints: broadcast::Sender::new(HINTS_MAX),
            suspect: Notify::new(),
            wanted: Notify::new(),
            picture: Mutex::new(Picture::new()),
            changed: watch::Sender::new(0),
            asked_at: Mutex::new(Instant::now()),
            clock: Arc::clone(&handle.clock),
            rest: Arc::clone(&handle.rest),
        });
        let task = tokio::spawn(follow(Arc::clone(&shared)));
        Self { shared, task }
    }

    /// Whether it is followed no more.
    pub(crate) fn is_over(&self) -> bool {
        self.task.is_finished()
    }
}

impl Shared {
    // --- the picture ---

    fn picture(&self) -> MutexGuard<'_, Picture> {
        self.picture.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the picture.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Picture) -> T) -> T {
        read(&self.picture())
    }

    /// Changes the picture, and wakes those who wait for it.
    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut Picture) -> T) -> T {
        let done = change(&mut self.picture());
        self.changed.send_modify(|count| *count += 1);
        done
    }

    pub(crate) fn hint(&self, hint: WatchHint) {
        // Nobody may listen.
        let _ = self.hints.send(hint);
    }

    pub(crate) fn touch(&self) {
        *self.asked_at.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    pub(crate) fn is_idle(&self) -> bool {
        let asked_at = *self.asked_at.lock().unwrap_or_else(PoisonError::into_inner);
        self.hints.receiver_count() == 0 && asked_at.elapsed() >= IDLE_MAX
    }

    /// The store's time, never before what was seen.
    pub(crate) fn time(&self, seen: StoreTime) -> StoreTime {
        self.clock.now(seen)
    }

    /// The store's time, never before what the picture shows.
    pub(crate) fn now(&self) -> StoreTime {
        self.time(self.read(|picture| picture.mirror.time()))
    }

    /// Waits until the picture is as wanted. What is wrong for good is not waited out; who waits too long is cut off by
    /// the request's timeout, and the watch is then suspected.
    pub(crate) async fn wait<T>(&self, mut wanted: impl FnMut(&Picture) -> Option<T>) -> Result<T, StoreError> {
        let mut changed = self.changed.subscribe();
        let mut suspicion = Suspicion { shared: self, holds: true };
        loop {
            changed.mark_unchanged();
            {
                let picture = self.picture();
                if let Some(damage) = picture.damage() {
                    suspicion.holds = false;
                    return Err(damage);
                }
                if picture.is_ready()
                    && let Some(found) = wanted(&picture)
                {
                    suspicion.holds = false;
                    return Ok(found);
                }
                if let Some(trouble) = picture.trouble()
                    && trouble.kind() == ErrorKind::Fatal
                {
                    suspicion.holds = false;
                    self.wanted.notify_one();
                    return Err(trouble);
                }
            }
            self.wanted.notify_one();
            if changed.changed().await.is_err() {
                return Err(StoreError::new(ErrorKind::Transient, "the cluster is followed no more"));
            }
        }
    }

    /// Waits until the picture shows a write.
    pub(crate) async fn see(&self, version: u64) -> Result<(), StoreError> {
        self.with(|picture| picture.reach(version));
        self.wait(|picture| (picture.mirror.covered().0 >= version).then_some(())).await
    }

    // --- requests to the server ---

    /// Sends a request, unless the server has asked to be left alone.
    async fn call<T>(&self, stage: Stage, request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Wrong> {
        {
            let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((until, said)) = rest.as_ref() {
                let left = until.saturating_duration_since(Instant::now());
                if !left.is_zero() {
                    return Err(Wrong::Other(again(said).with_retry_after(left)));
                }
                *rest = None;
            }
        }
        let done = request.await.map_err(|error| sort(error, stage, &self.server.name));
        if let Err(Wrong::Other(error)) = &done
            && let Some(after) = error.retry_after()
        {
            let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
            *rest = Some((Instant::now() + after, again(error)));
        }
        done
    }

    pub(crate) async fn get(&self, lease: &str) -> Result<Option<Lease>, StoreError> {
        self.call(Stage::Reading, self.server.api.get_opt(lease)).await.map_err(Wrong::unexpected)
    }

    /// Makes a Lease, or writes over the version that it names. Answers its version.
    pub(crate) async fn put(&self, lease: &Lease) -> Result<u64, Wrong> {
        let (api, how) = (&self.server.api, PostParams::default());
        let name = lease.metadata.name.as_deref().unwrap_or_default();
        let done = match lease.metadata.uid {
            Some(_) => self.call(Stage::Writing, api.replace(name, &how, lease)).await?,
            None => self.call(Stage::Writing, api.create(&how, lease)).await?,
        };
        encode::version(&done).ok_or_else(|| Wrong::Other(fatal("a Lease came back whose version is no number")))
    }

    /// Deletes exactly this version of a Lease.
    pub(crate) async fn delete(&self, lease: &str, base: &Base) -> Result<(), Wrong> {
        let preconditions =
            Preconditions { uid: Some(base.uid.clone()), resource_version: Some(base.version.to_string()) };
        let how = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        self.call(Stage::Writing, self.server.api.delete(lease, &how)).await.map(drop)
    }

    /// Reads all Leases, as they are now or were at a version; answers the version as well.
    pub(crate) async fn list(&self, selector: &str, at: Option<u64>) -> Result<(u64, Vec<Lease>), Wrong> {
        let mut how = ListParams::default().labels(selector).limit(PAGE_LEASES);
        if let Some(at) = at {
            how = how.at(&at.to_string()).matching(kube::api::VersionMatch::Exact);
        }
        let mut all = Vec::new();
        loop {
            let page = self.call(Stage::Reading, self.server.api.list(&how)).await?;
            let version = page.metadata.resource_version.as_ref().and_then(|text| text.parse().ok());
            let version = version.ok_or_else(|| Wrong::Other(fatal("a list came whose version is no number")))?;
            all.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => {
                    how = ListParams::default().labels(selector).limit(PAGE_LEASES).continue_token(&token);
                }
                None => return Ok((version, all)),
            }
        }
    }

    // --- freshness ---

    /// Reads a Lease, and waits until the picture is as new as that, for this Lease.
    pub(crate) async fn settle(&self, lease: &str) -> Result<(), StoreError> {
        self.wait(|_| Some(())).await?;
        loop {
            let before = self.read(|picture| picture.version(lease));
            match self.get(lease).await? {
                Some(found) => {
                    // The watch tells of no Lease without the cluster's label.
                    let label = found.metadata.labels.as_ref().and_then(|labels| labels.get(CLUSTER_LABEL));
                    if label.is_none_or(|label| label != self.keys.cluster_label()) {
                        return Err(damaged(lease, "it has not the cluster's label"));
                    }
                    return self.see(encode::version(&found).unwrap_or(0)).await;
                }
                None if before.is_none() => return Ok(()),
                // It was deleted, once at least: look again when the picture shows something else.
                None => {
                    let gone = self
                        .wait(|picture| {
                            let now = picture.version(lease);
                            (now != before).then_some(now.is_none())
                        })
                        .await?;
                    if gone {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// The same for several Leases.
    pub(crate) async fn settle_all(&self, leases: impl IntoIterator<Item = String>) -> Result<(), StoreError> {
        let reads = leases.into_iter().map(|lease| async move { self.settle(&lease).await });
        stream::iter(reads).buffer_unordered(CALLS_AT_ONCE).try_collect().await
    }

    /// Reads everything, and waits until the picture is as new as that.
    pub(crate) async fn settle_everything(&self) -> Result<(), StoreError> {
        self.wait(|_| Some(())).await?;
        let (version, all) = self.list(&self.keys.selector(), None).await.map_err(Wrong::unexpected)?;
        let listing = Listing::new(version, &all);
        self.with(|picture| picture.reach(version));
        self.wait(|picture| listing.is_shown(picture).then_some(())).await
    }

    /// Finds the Lease of a live session, as of now. The picture shows it then.
    pub(crate) async fn find(&self, session: SessionId) -> Result<Option<String>, StoreError> {
        let known = self.read(|picture| picture.lease_of(session).cloned());
        let lease = match known {
            Some(lease) => lease,
            None => {
                let selector = format!("{},{SESSION_LABEL}={session}", self.keys.selector());
                let (_, found) = self.list(&selector, None).await.map_err(Wrong::unexpected)?;
                match found.into_iter().find_map(|lease| lease.metadata.name) {
                    Some(lease) => lease,
                    None => return Ok(None),
                }
            }
        };
        self.settle(&lease).await?;
        Ok(self.read(|picture| picture.lease_of(session).cloned()))
    }

    // --- what every request begins with ---

    /// A picture in a generation that is the data's and has heard what the node knows. With `fresh`, what holds for the
    /// whole cluster is as of now, and sessions whose time is over are ended; without, it is as the picture shows it, and
    /// nothing of others keeps the request waiting.
    pub(crate) async fn enter(
        &self,
        known: &Known,
        capabilities: &Capabilities,
        fresh: bool,
    ) -> Result<(), StoreError> {
        if known.token.get() > TOKEN_MAX {
            return Err(fatal(format!("the reported token {} cannot be: the last one is {TOKEN_MAX}", known.token)));
        }
        let meta = self.keys.meta();
        let mut settled = false;
        if fresh {
            self.settle(&meta).await?;
            settled = true;
        }
        loop {
            self.wait(|_| Some(())).await?;
            let drawn = Generation::from_bits(fastrand::u128(1..));
            let clock = self.now().as_micros();
            let verdict = self.read(|picture| {
                let sessions = picture.mirror.sessions().map(|(_, record)| record.ttl);
                let settings = picture.mirror.settings().map(|settings| settings.session_ttl_max);
                let ttls = sessions.chain(settings).chain([known.session_ttl_max]);
                let quiet = quiet_time(ttls, capabilities.ttl_max, capabilities.replica_lag_max);
                let found =
                    Found { meta: picture.meta(), went_back: picture.went_back, seen: picture.mirror.token().get() };
                judge(&found, known, drawn, clock, quiet)
            });
            let Some(next) = verdict else { break };
            if !settled {
                // The picture may just be old.
                self.settle(&meta).await?;
                settled = true;
                continue;
            }
            if next.lineage.generation() == drawn && self.read(|picture| picture.meta().is_some()) {
                tracing::warn!(
                    server = self.server.name,
                    "the cluster's Leases are not those that were known: a new generation begins, with a quiet time"
                );
            }
            self.write_meta(&next).await?;
        }
        if fresh { self.end_what_is_over().await } else { Ok(()) }
    }

    /// Writes what holds for the whole cluster. Where somebody was faster, that is seen when this returns, and the caller
    /// looks again. Says whether it was written.
    pub(crate) async fn write_meta(&self, meta: &Meta) -> Result<bool, StoreError> {
        let lease = self.keys.meta();
        let base = self.read(|picture| picture.base(&lease).cloned());
        let draft = Draft { keys: &self.keys, name: &Name::Meta, base: base.as_ref(), now: self.now() };
        match self.put(&draft.meta(meta)?).await {
            Ok(version) => self.see(version).await.map(|()| true),
            Err(Wrong::Conflict | Wrong::NotFound) => self.settle(&lease).await.map(|()| false),
            Err(Wrong::Gone(error) | Wrong::Other(error)) => Err(error),
        }
    }

    /// Ends the sessions and the quiet time that were seen unchanged for longer than they last.
    pub(crate) async fn end_what_is_over(&self) -> Result<(), StoreError> {
        let ends = self.read(Picture::overdue).into_iter().map(|overdue| async move {
            if self.send_end(&overdue).await? {
                let Overdue { lease, base } = overdue;
                self.wait(|picture| (picture.base(&lease) != Some(&base)).then_some(())).await?;
            }
            Ok(())
        });
        stream::iter(ends).buffer_unordered(CALLS_AT_ONCE).try_collect::<()>().await?;
        while self.read(Picture::is_quiet_over) {
            let Some(meta) = self.read(|picture| picture.meta().cloned()) else { return Ok(()) };
            self.write_meta(&Meta { quiet: None, ..meta }).await?;
        }
        Ok(())
    }

    /// The same for the watch's own task, which is told of the ends by the watch and so must not wait for them.
    pub(crate) async fn send_ends(&self) -> Result<(), StoreError> {
        let overdue = self.read(Picture::overdue);
        let ends = overdue.into_iter().map(|overdue| async move { self.send_end(&overdue).await });
        stream::iter(ends).buffer_unordered(CALLS_AT_ONCE).try_collect::<Vec<bool>>().await?;
        let over = self.read(|picture| {
            let meta = picture.meta().filter(|_| picture.is_quiet_over())?;
            Some((Meta { quiet: None, ..meta.clone() }, picture.base(&self.keys.meta()).cloned()))
        });
        let Some((meta, base)) = over else { return Ok(()) };
        let draft = Draft { keys: &self.keys, name: &Name::Meta, base: base.as_ref(), now: self.now() };
        match self.put(&draft.meta(&meta)?).await {
            // Somebody was faster.
            Ok(_) | Err(Wrong::Conflict | Wrong::NotFound) => Ok(()),
            Err(Wrong::Gone(error) | Wrong::Other(error)) => Err(error),
        }
    }

    /// Ends a session: its Lease is deleted if it is still the version that was seen for so long. That is the mark of its
    /// death: whoever has this session and extends it names a Lease that does not exist, and no slot is taken before.
    /// Says whether it is gone.
    async fn send_end(&self, Overdue { lease, base }: &Overdue) -> Result<bool, StoreError> {
        match self.delete(lease, base).await {
            Ok(()) | Err(Wrong::NotFound) => Ok(true),
            // It was extended, and nobody has told yet.
            Err(Wrong::Conflict) => {
                self.with(|picture| picture.observe_anew(lease));
                Ok(false)
            }
            Err(Wrong::Gone(error) | Wrong::Other(error)) => Err(error),
        }
    }

    pub(crate) fn stamp(&self, known: &Known, token: FencingToken) -> Stamp {
        self.read(|picture| {
            let none = Generation::from_bits(0);
            Stamp {
                generation: picture.generation().unwrap_or(none),
                revision: Revision(picture.mirror.revision().0),
                now: self.clock.now(picture.mirror.time()),
                token: picture.mirror.token().max(known.token).max(token).max(picture.floor()),
                quiet: picture.quiet_left(),
            }
        })
    }

    /// Deletes many Leases, each if it is still the version that is named; waits until the picture shows it.
    pub(crate) async fn delete_all(&self, doomed: Vec<(String, Base)>) -> Result<(), StoreError> {
        let names: BTreeSet<String> = doomed.iter().map(|(lease, _)| lease.clone()).collect();
        let ends = doomed.into_iter().map(|(lease, base)| async move {
            match self.delete(&lease, &base).await {
                // Somebody was faster, in whichever way.
                Ok(()) | Err(Wrong::NotFound | Wrong::Conflict) => Ok(()),
                Err(Wrong::Gone(error) | Wrong::Other(error)) => Err(error),
            }
        });
        stream::iter(ends).buffer_unordered(CALLS_AT_ONCE).try_collect::<()>().await?;
        self.settle_all(names).await
    }
}

/// A waiter that was cut off: the watch may be dead.
struct Suspicion<'a> {
    shared: &'a Shared,
    holds: bool,
}

impl Drop for Suspicion<'_> {
    fn drop(&mut self) {
        if self.holds {
            self.shared.suspect.notify_one();
        }
    }
}
