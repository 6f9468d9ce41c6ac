//! One cluster as one handle sees it: its picture, the reads that prove the picture fresh, and what is written when data
//! were lost.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use etcd_client::{Compare, CompareOp, GetOptions, KeyValue, LeaseGrantOptions, PutOptions, Txn, TxnOp, TxnOpResponse};
use rendez_core::{
    Capabilities, ClusterName, ErrorKind, FencingToken, Generation, Known, SessionId, Stamp, StoreError, StoreTime,
    TOKEN_MAX, WatchHint, quiet_time,
};
use tokio::sync::{Notify, broadcast, watch};

use crate::clock::Clock;
use crate::connect::{Connector, Link};
use crate::encode::{self, Meta, QuietValue};
use crate::errors::{self, Stage, explain};
use crate::history::{Found, judge};
use crate::keys::Keys;
use crate::options::fatal;
use crate::picture::{Picture, Seen, Written, unsigned};
use crate::watch::follow;

/// Hints that a slow listener has not taken yet; more become one for everybody.
const HINTS_MAX: usize = 256;

/// A picture that nobody has asked for in this time is dropped, and made again when somebody does.
const IDLE_MAX: Duration = Duration::from_secs(300);

/// Who wants to know how far the request has come, should time run out.
pub(crate) type StageCell = Mutex<Stage>;

/// A cluster that is followed. The following ends when the last holder drops it.
pub(crate) struct Cluster {
    pub(crate) shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What requests and the watch share.
pub(crate) struct Shared {
    pub(crate) keys: Keys,
    pub(crate) connector: Arc<Connector>,
    pub(crate) hints: broadcast::Sender<WatchHint>,
    /// The watch may be dead without having ended.
    pub(crate) suspect: Notify,
    /// The connection that the watch is on.
    pub(crate) watching: AtomicU64,
    /// Somebody waits for a picture.
    pub(crate) wanted: Notify,
    picture: Mutex<Picture>,
    changed: watch::Sender<u64>,
    asked_at: Mutex<Instant>,
    clock: Arc<Clock>,
}

/// What a linearizable read has found.
pub(crate) struct Look {
    pub(crate) seen: Seen,
    /// The term of the last entry that the answering member had applied.
    pub(crate) term: u64,
    pub(crate) meta: Option<Written<Meta>>,
    /// The session that was asked for.
    pub(crate) session: Option<KeyValue>,
    etcd: u64,
    quiet: Option<Duration>,
}

impl Cluster {
    pub(crate) fn new(connector: Arc<Connector>, clock: Arc<Clock>, name: &ClusterName) -> Self {
        let shared = Arc::new(Shared {
            keys: Keys::new(&connector.options.prefix, name),
            connector,
            hints: broadcast::Sender::new(HINTS_MAX),
            suspect: Notify::new(),
            watching: AtomicU64::new(0),
            wanted: Notify::new(),
            picture: Mutex::new(Picture::new()),
            changed: watch::Sender::new(0),
            asked_at: Mutex::new(Instant::now()),
            clock,
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

    pub(crate) fn now(&self, seen: StoreTime) -> StoreTime {
        self.clock.now(seen)
    }

    /// Waits until the picture is as wanted. What is wrong for good is not waited out; who waits too long is cut off by
    /// the request's timeout, and the watch is then suspected.
    pub(crate) async fn wait<T>(&self, mut wanted: impl FnMut(&mut Picture) -> Option<T>) -> Result<T, StoreError> {
        let mut changed = self.changed.subscribe();
        let mut suspicion = Suspicion { shared: self, holds: true };
        loop {
            changed.mark_unchanged();
            {
                let mut picture = self.picture();
                if let Some(damage) = picture.damage() {
                    suspicion.holds = false;
                    return Err(damage);
                }
                if let Some(found) = wanted(&mut picture) {
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

    /// Waits until the picture shows what a read has found, and then knows that it is as new as that read.
    pub(crate) async fn settle(&self, look: &Look) -> Result<(), StoreError> {
        self.wait(|picture| {
            picture.shows(&look.seen).then(|| {
                picture.mirror.advance(rendez_core::Revision(unsigned(look.seen.revision)));
                picture.reach(look.seen.revision);
            })
        })
        .await
    }

    fn explain(&self, link: &Link, error: etcd_client::Error, stage: Stage) -> StoreError {
        let error = explain(error, stage, &self.connector.name);
        if matches!(error.kind(), ErrorKind::Transient | ErrorKind::Ambiguous) {
            self.connector.discard(link.epoch);
        }
        error
    }

    /// Sends a transaction.
    pub(crate) async fn send(&self, link: &Link, txn: Txn, stage: Stage) -> Result<Answer, StoreError> {
        let answer = link.kv.clone().txn(txn).await.map_err(|error| self.explain(link, error, stage))?;
        let header = answer.header();
        Ok(Answer {
            succeeded: answer.succeeded(),
            revision: header.map_or(0, etcd_client::ResponseHeader::revision),
            term: header.map_or(0, etcd_client::ResponseHeader::raft_term),
            etcd: header.map_or(0, etcd_client::ResponseHeader::cluster_id),
            responses: answer.op_responses().into_iter(),
        })
    }

    pub(crate) async fn grant(&self, link: &Link, ttl: u64) -> Result<(i64, u64), StoreError> {
        let ttl = i64::try_from(ttl).unwrap_or(i64::MAX);
        loop {
            // Drawn here, so that it is never one that was there before, whatever the servers' clocks did.
            let id = fastrand::i64(1..i64::MAX);
            let granted = link.lease.clone().grant(ttl, Some(LeaseGrantOptions::new().with_id(id))).await;
            match granted {
                Ok(granted) => return Ok((granted.id(), unsigned(granted.ttl()))),
                Err(error) if errors::is_lease_taken(&error) => {}
                // A lease that nobody uses ends by itself.
                Err(error) => return Err(self.explain(link, error, Stage::Reading)),
            }
        }
    }

    /// Ends a lease and deletes the keys that hang on it. One that does not live is no error.
    pub(crate) async fn revoke(&self, link: &Link, lease: i64) -> Result<(), StoreError> {
        match link.lease.clone().revoke(lease).await {
            Ok(_) => Ok(()),
            Err(error) if errors::is_no_lease(&error) => Ok(()),
            Err(error) => Err(self.explain(link, error, Stage::Writing)),
        }
    }

    /// Reads, linearizably, by what a picture can be judged.
    pub(crate) async fn look(&self, link: &Link, session: Option<SessionId>) -> Result<Look, StoreError> {
        let keys = &self.keys;
        let (from, to) = keys.sessions();
        let count = GetOptions::new().with_range(to).with_count_only();
        let mut reads = vec![
            TxnOp::get(keys.meta(), None),
            TxnOp::get(keys.head(), Some(GetOptions::new().with_keys_only())),
            TxnOp::get(keys.quiet(), None),
            TxnOp::get(from, Some(count)),
        ];
        reads.extend(session.map(|session| TxnOp::get(keys.session(session), None)));
        let mut answer = self.send(link, Txn::new().and_then(reads), Stage::Reading).await?;
        let (meta, head, quiet) = (answer.one(), answer.one(), answer.one());
        let sessions = answer.count();
        let session = answer.one();
        let meta = match meta {
            Some(kv) => Some(Written { value: encode::meta(kv.value())?, revision: kv.mod_revision() }),
            None => None,
        };
        let at = |kv: &Option<KeyValue>| kv.as_ref().map_or(0, KeyValue::mod_revision);
        let seen = Seen {
            revision: answer.revision,
            generation: meta.as_ref().map(|meta| meta.value.lineage.generation()),
            head: at(&head),
            meta: meta.as_ref().map_or(0, |meta| meta.revision),
            quiet: at(&quiet),
            sessions,
        };
        let quiet = quiet.map(|kv| encode::quiet(kv.value())).transpose()?.map(|quiet| quiet.lasts);
        Ok(Look { seen, term: answer.term, meta, session, etcd: answer.etcd, quiet })
    }

    /// What every request begins with: a picture that is as new as this moment, in a generation that is the data's and
    /// has heard what the node knows.
    pub(crate) async fn enter(
        &self,
        link: &Link,
        known: &Known,
        session: Option<SessionId>,
        capabilities: &Capabilities,
        stage: &StageCell,
    ) -> Result<Look, StoreError> {
        if known.token.get() > TOKEN_MAX {
            return Err(fatal(format!("the reported token {} cannot be: the last one is {TOKEN_MAX}", known.token)));
        }
        // A connection that was given up has taken the watch with it, though nobody has said so yet.
        let watching = self.watching.load(Ordering::SeqCst);
        if watching != 0 && watching < link.epoch && self.watching.swap(0, Ordering::SeqCst) == watching {
            self.suspect.notify_one();
        }
        loop {
            let before = self.read(|picture| (picture.meta.clone(), picture.head, picture.reached));
            let look = self.look(link, session).await?;
            let went_back = self.went_back(&before, &look);
            // A watch from here on would wait for a revision that is far off, or for a write that it has missed.
            if went_back || look.seen.revision < before.2 || self.is_of_others(&look) {
                self.read_anew();
            }
            let fresh = Generation::from_bits(fastrand::u128(1..));
            let clock = self.now(StoreTime::default()).as_micros();
            let seen = self.read(|picture| (picture.mirror.token().get(), picture.mirror.covered().0));
            let found = Found {
                meta: look.meta.as_ref().map(|meta| &meta.value),
                revision: unsigned(look.seen.revision),
                etcd: look.etcd,
                quiet: look.quiet,
                went_back,
                seen: (seen.0, seen.1.max(unsigned(before.2))),
            };
            let quiet = self.read(|picture| {
                let sessions = picture.mirror.sessions().map(|(_, record)| record.ttl);
                let settings = picture.mirror.settings().map(|settings| settings.session_ttl_max);
                let ttls = sessions.chain(settings).chain([known.session_ttl_max]);
                quiet_time(ttls, capabilities.ttl_max, capabilities.replica_lag_max)
            });
            let Some(verdict) = judge(&found, known, fresh, clock, quiet) else {
                self.settle(&look).await?;
                return Ok(look);
            };
            if verdict.meta.lineage.generation() == fresh && look.meta.is_some() {
                tracing::warn!(
                    server = self.connector.name,
                    "etcd's data are not those that were known: a new generation begins, with a quiet time"
                );
            }
            let mut puts = vec![
                TxnOp::put(self.keys.meta(), encode::json(&verdict.meta)?, None),
                TxnOp::put(self.keys.head(), Vec::new(), None),
            ];
            if let Some(lasts) = verdict.quiet {
                puts.push(self.begin_quiet(link, lasts).await?);
            }
            let same = Compare::mod_revision(self.keys.meta(), CompareOp::Equal, look.seen.meta);
            set_stage(stage, Stage::Writing);
            self.send(link, Txn::new().when([same]).and_then(puts), Stage::Writing).await?;
            set_stage(stage, Stage::Reading);
        }
    }

    fn read_anew(&self) {
        if !self.with(|picture| std::mem::replace(&mut picture.reload, true)) {
            self.suspect.notify_one();
        }
    }

    /// Whether the server shows less than it has shown before, in what says to be the same data.
    fn went_back(&self, before: &(Option<Written<Meta>>, i64, i64), look: &Look) -> bool {
        let (Some(meta), Some(found)) = (&before.0, &look.meta) else { return false };
        meta.value.lineage.generation() == found.value.lineage.generation()
            && (look.seen.revision < before.2 || look.seen.head < before.1 || found.revision < meta.revision)
    }

    /// Whether the picture is of other data than the server's: it reaches beyond the write that began the server's
    /// generation, and does not show it. Data that were lost are followed by others that soon have as many revisions.
    fn is_of_others(&self, look: &Look) -> bool {
        self.read(|picture| {
            let reaches = look.seen.meta > 0 && unsigned(look.seen.meta) <= picture.mirror.covered().0;
            picture.loaded && reaches && picture.generation() != look.seen.generation
        })
    }

    /// The write that begins a quiet time: a key that the server deletes when it is over.
    pub(crate) async fn begin_quiet(&self, link: &Link, lasts: Duration) -> Result<TxnOp, StoreError> {
        let (lease, _) = self.grant(link, whole_seconds(lasts)).await?;
        let value = encode::json(&QuietValue { lasts })?;
        Ok(TxnOp::put(self.keys.quiet(), value, Some(PutOptions::new().with_lease(lease))))
    }

    pub(crate) fn stamp(&self, picture: &Picture, known: &Known, revision: u64, token: FencingToken) -> Stamp {
        let none = Generation::from_bits(0);
        Stamp {
            generation: picture.meta.as_ref().map_or(none, |meta| meta.value.lineage.generation()),
            revision: rendez_core::Revision(revision),
            now: self.now(picture.mirror.time()),
            token: picture.mirror.token().max(known.token).max(token).max(picture.floor()),
            quiet: picture.quiet_left(),
        }
    }
}

pub(crate) fn set_stage(cell: &StageCell, stage: Stage) {
    *cell.lock().unwrap_or_else(PoisonError::into_inner) = stage;
}

/// Leases have whole seconds, and two at least.
pub(crate) fn whole_seconds(duration: Duration) -> u64 {
    (duration.as_secs() + u64::from(duration.subsec_nanos() > 0)).max(2)
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

/// The answer to a transaction, taken apart from the front.
pub(crate) struct Answer {
    pub(crate) succeeded: bool,
    pub(crate) revision: i64,
    pub(crate) term: u64,
    pub(crate) etcd: u64,
    responses: std::vec::IntoIter<TxnOpResponse>,
}

impl Answer {
    /// The key that the next part has read.
    pub(crate) fn one(&mut self) -> Option<KeyValue> {
        match self.responses.next()? {
            TxnOpResponse::Get(mut get) => get.take_kvs().into_iter().next(),
            TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
        }
    }

    /// How many keys the next part has counted.
    pub(crate) fn count(&mut self) -> i64 {
        match self.responses.next() {
            Some(TxnOpResponse::Get(get)) => get.count(),
            Some(TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_)) | None => 0,
        }
    }
}
