//! One cluster as one handle sees it: its picture, the writes that prove the picture fresh, compare-and-set on its keys,
//! and what is written when data were lost.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_TTL, NATS_ROLLUP};
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use rendez_core::{
    Capabilities, ClusterName, ErrorKind, FencingToken, Generation, Holder, Known, Stamp, StoreError, TOKEN_MAX,
    WatchHint, quiet_time,
};
use tokio::sync::{Notify, broadcast, watch};

use crate::connect::Link;
use crate::encode::{self, QuietValue};
use crate::errors::{self, Put, Stage};
use crate::history::{Found, judge};
use crate::keys::{Keys, Name};
use crate::options::fatal;
use crate::picture::{Life, Picture, TOMBSTONE_LIVES};
use crate::watch::follow;

/// Hints that a slow listener has not taken yet; more become one for everybody.
const HINTS_MAX: usize = 256;

/// A picture that nobody has asked for in this time is dropped, and made again when somebody does.
const IDLE_MAX: Duration = Duration::from_secs(300);

/// How long to wait before a bucket without a leader, or none at all, is asked again.
const NO_LEADER_WAIT: Duration = Duration::from_millis(50);

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
    cluster: ClusterName,
    pub(crate) keys: Keys,
    pub(crate) link: Arc<Link>,
    pub(crate) hints: broadcast::Sender<WatchHint>,
    /// The watch may be dead without having ended.
    pub(crate) suspect: Suspect,
    /// Somebody waits for a picture.
    pub(crate) wanted: Notify,
    picture: Mutex<Picture>,
    changed: watch::Sender<u64>,
    asked_at: Mutex<Instant>,
    /// How many servers keep the bucket; 0 if that is not known yet.
    replicas: AtomicUsize,
}

/// A suspicion that stands until it is looked into.
pub(crate) struct Suspect(watch::Sender<bool>);

impl Suspect {
    pub(crate) fn store(&self, stands: bool) {
        self.0.send_replace(stands);
    }

    pub(crate) async fn raised(&self) {
        let mut listener = self.0.subscribe();
        // The sender lives as long as this.
        let _ = listener.wait_for(|stands| *stands).await;
    }
}

/// How a key is written.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct How {
    /// The sequence of the last write that is replaced.
    pub(crate) expect: Option<u64>,
    pub(crate) ttl: Option<Duration>,
    /// Earlier writes of the key are not kept.
    pub(crate) alone: bool,
    /// It is a deletion.
    pub(crate) delete: bool,
}

impl How {
    pub(crate) fn replacing(expect: u64) -> Self {
        Self { expect: Some(expect), ..Self::default() }
    }

    pub(crate) fn deleting(expect: u64) -> Self {
        Self { expect: Some(expect), ttl: Some(TOMBSTONE_LIVES), alone: true, delete: true }
    }

    pub(crate) fn alone(self) -> Self {
        Self { alone: true, ..self }
    }

    pub(crate) fn living(self, ttl: Duration) -> Self {
        Self { ttl: Some(ttl), ..self }
    }

    fn headers(self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(expect) = self.expect {
            headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, expect.to_string());
        }
        if let Some(ttl) = self.ttl {
            headers.insert(NATS_MESSAGE_TTL, format!("{}s", whole_seconds(ttl)));
        }
        if self.alone {
            headers.insert(NATS_ROLLUP, "sub");
        }
        if self.delete {
            headers.insert("KV-Operation", "DEL");
        }
        headers
    }
}

impl Cluster {
    pub(crate) fn new(link: Arc<Link>, name: &ClusterName) -> Self {
        let shared = Arc::new(Shared {
            cluster: name.clone(),
            keys: Keys::new(&link.options.prefix, name),
            link,
            hints: broadcast::Sender::new(HINTS_MAX),
            suspect: Suspect(watch::Sender::new(false)),
            wanted: Notify::new(),
            picture: Mutex::new(Picture::new(name.as_str())),
            changed: watch::Sender::new(0),
            asked_at: Mutex::new(Instant::now()),
            replicas: AtomicUsize::new(0),
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

    /// The keys whose time is over, and when the next one's is.
    pub(crate) fn overdue(&self) -> (Vec<Name>, Option<Instant>) {
        self.picture().overdue()
    }

    /// The consumer has said that nothing has happened.
    pub(crate) fn read_heard(&self) {
        self.picture().heard = Instant::now();
    }

    pub(crate) fn set_replicas(&self, replicas: usize) {
        self.replicas.store(replicas, Ordering::Relaxed);
        let margin = self.key_ttl(Duration::ZERO);
        self.picture().margin = margin;
    }

    /// How long a session's key lives that was granted this time: servers' clocks may be apart.
    pub(crate) fn key_ttl(&self, ttl: Duration) -> Duration {
        let many = self.replicas.load(Ordering::Relaxed) != 1;
        if many { ttl + self.link.options.clock_skew_max } else { ttl }
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
                if let Some(trouble) = picture.trouble() {
                    self.wanted.notify_one();
                    if trouble.kind() == ErrorKind::Fatal {
                        suspicion.holds = false;
                        return Err(trouble);
                    }
                }
            }
            if changed.changed().await.is_err() {
                return Err(StoreError::new(ErrorKind::Transient, "the cluster is followed no more"));
            }
        }
    }

    /// Waits until the picture shows everything up to a sequence.
    pub(crate) async fn see(&self, sequence: u64) -> Result<(), StoreError> {
        let shown = |picture: &mut Picture| {
            (picture.loaded && !picture.reload && picture.mirror.covered().0 >= sequence).then_some(())
        };
        self.wait(shown).await
    }

    /// Writes a key, if it was written last when that is expected.
    pub(crate) async fn put(&self, name: &Name, value: Bytes, how: How, stage: Stage) -> Result<Put, StoreError> {
        let subject = self.keys.subject(name);
        let message = PublishMessage::build().payload(value).headers(how.headers());
        let newest = self.read(Picture::newest);
        let sent = self.link.context.send_publish(subject, message).await;
        let acked = match sent {
            Ok(acked) => acked.await,
            Err(error) => Err(error),
        };
        match acked {
            Ok(ack) => {
                if ack.sequence > newest {
                    self.picture().reach(ack.sequence);
                } else {
                    // It has told more than this before: it has lost data.
                    self.with(Picture::went_back);
                    self.suspect.store(true);
                }
                Ok(Put::Done(ack.sequence))
            }
            Err(error) => {
                let put = errors::put(&error, stage, &self.link.name)?;
                if let (Put::Missed(found), Some(expected)) = (put, how.expect) {
                    self.with(|picture| picture.missed(name, expected, found));
                }
                Ok(put)
            }
        }
    }

    /// A write that changes nothing. Its acknowledgement proves that the leader leads, and the picture that shows it is
    /// as new as that.
    pub(crate) async fn publish_sync(&self) -> Result<u64, StoreError> {
        match self.put(&Name::Sync, Bytes::new(), How::default(), Stage::Reading).await? {
            Put::Done(sequence) => Ok(sequence),
            Put::Missed(_) => Err(StoreError::new(ErrorKind::Transient, "NATS compared what it was not asked to")),
        }
    }

    /// Waits for a picture that is as new as this moment.
    pub(crate) async fn sync(&self) -> Result<(), StoreError> {
        // While there is none, there may be no bucket yet either.
        self.see(0).await?;
        let at = loop {
            match self.publish_sync().await {
                Ok(at) => break at,
                Err(error) if error.kind() == ErrorKind::Transient => {
                    // No leader, or no bucket: the watch finds out which, and makes one.
                    self.suspect.store(true);
                    self.wanted.notify_one();
                    if let Some(trouble) = self.read(Picture::trouble).filter(|it| it.kind() == ErrorKind::Fatal) {
                        return Err(trouble);
                    }
                    tokio::time::sleep(NO_LEADER_WAIT).await;
                }
                Err(error) => return Err(error),
            }
        };
        self.see(at).await
    }

    /// What every request begins with: a picture that is as new as this moment, in a generation that is the data's and
    /// has heard what the node knows.
    pub(crate) async fn enter(
        &self,
        known: &Known,
        capabilities: &Capabilities,
        stage: &StageCell,
    ) -> Result<(), StoreError> {
        check_known(known)?;
        loop {
            self.sync().await?;
            if !self.correct(known, capabilities, stage).await? {
                return Ok(());
            }
        }
    }

    /// Writes what must be where data were lost or a node knows more. Says whether there was anything to write.
    pub(crate) async fn correct(
        &self,
        known: &Known,
        capabilities: &Capabilities,
        stage: &StageCell,
    ) -> Result<bool, StoreError> {
        let fresh = Generation::from_bits(fastrand::u128(1..));
        let (verdict, had_data, meta_at, quiet_at) = self.read(|picture| {
            let sessions = picture.mirror.sessions().map(|(_, record)| record.ttl);
            let settings = picture.mirror.settings().map(|settings| settings.session_ttl_max);
            let ttls = sessions.chain(settings).chain([known.session_ttl_max]);
            let quiet = quiet_time(ttls, capabilities.ttl_max, capabilities.replica_lag_max);
            let forgotten = picture.forgotten.filter(|(of, ..)| *of == picture.generation());
            let found = Found {
                cluster: self.cluster.as_str(),
                meta: picture.meta.as_ref().map(|meta| &meta.value),
                revision: picture.newest(),
                bucket: picture.bucket,
                quiet: picture.quiet(),
                went_back: forgotten.is_some(),
                seen: forgotten.map_or((0, 0), |(_, token, sequence)| (token, sequence)),
            };
            let verdict = judge(&found, known, fresh, picture.clock(), quiet);
            (verdict, picture.meta.is_some(), picture.last(&Name::Meta), picture.last(&Name::Quiet))
        });
        let Some(verdict) = verdict else { return Ok(false) };
        if verdict.meta.lineage.generation() == fresh && had_data {
            tracing::warn!(
                server = self.link.name,
                "the bucket's data are not those that were known: a new generation begins, with a quiet time"
            );
        }
        set_stage(stage, Stage::Writing);
        // The quiet time first: nobody must see the new generation without it.
        if let Some(lasts) = verdict.quiet
            && !self.begin_quiet(lasts, quiet_at).await?
        {
            return Ok(true);
        }
        let put = self.put(&Name::Meta, encode::json(&verdict.meta)?, How::replacing(meta_at), Stage::Writing).await?;
        set_stage(stage, Stage::Reading);
        if let Put::Done(sequence) = put {
            self.see_or_reload(sequence).await?;
        }
        Ok(true)
    }

    /// A write of `meta` may have the picture read anew.
    async fn see_or_reload(&self, sequence: u64) -> Result<(), StoreError> {
        self.wait(|picture| (picture.mirror.covered().0 >= sequence && !picture.reload).then_some(())).await
    }

    /// Writes the key of a quiet time, which the server deletes when it is over. Says whether nobody was faster.
    pub(crate) async fn begin_quiet(&self, lasts: Duration, expect: u64) -> Result<bool, StoreError> {
        let value = encode::json(&QuietValue { lasts })?;
        let how = How::replacing(expect).alone().living(self.key_ttl(lasts));
        let put = self.put(&Name::Quiet, value, how, Stage::Writing).await?;
        if put == Put::Missed(Some(0)) {
            // The one before is over, and nobody has said so yet.
            self.claim(&Name::Quiet).await?;
        }
        Ok(matches!(put, Put::Done(_)))
    }

    /// Takes the place of a key that has expired, so that everybody hears of it. It is decided by the bucket's leader
    /// whether it has: this succeeds only where there is nothing any more.
    pub(crate) async fn claim(&self, name: &Name) -> Result<Put, StoreError> {
        self.put(name, Bytes::new(), How::deleting(0), Stage::Writing).await
    }

    /// Finds out whether a session that the picture does not show has ended, for certain.
    pub(crate) async fn settle(&self, holder: &Holder) -> Result<(), StoreError> {
        let name = Name::Session(holder.node.clone());
        let (last, other) = self.read(|picture| (picture.last(&name), picture.standing(&holder.node).is_some()));
        if !other {
            // What was there is older than the session: only if nothing was written since, the session is gone.
            self.put(&name, Bytes::new(), How::deleting(last), Stage::Writing).await?;
        }
        self.sync().await
    }

    pub(crate) fn is_unknown(&self, holder: &Holder) -> bool {
        self.read(|picture| picture.life_of(holder)) == Life::Unknown
    }

    pub(crate) fn stamp(&self, picture: &Picture, known: &Known, token: FencingToken) -> Stamp {
        let none = Generation::from_bits(0);
        Stamp {
            generation: picture.generation().unwrap_or(none),
            revision: picture.mirror.revision(),
            now: picture.now(),
            token: picture.mirror.token().max(known.token).max(token).max(picture.floor()),
            quiet: picture.quiet_left(),
        }
    }
}

pub(crate) fn check_known(known: &Known) -> Result<(), StoreError> {
    if known.token.get() > TOKEN_MAX {
        return Err(fatal(format!("the reported token {} cannot be: the last one is {TOKEN_MAX}", known.token)));
    }
    Ok(())
}

pub(crate) fn set_stage(cell: &StageCell, stage: Stage) {
    *cell.lock().unwrap_or_else(PoisonError::into_inner) = stage;
}

/// Keys live for whole seconds, and one at least.
pub(crate) fn whole_seconds(duration: Duration) -> u64 {
    (duration.as_secs() + u64::from(duration.subsec_nanos() > 0)).max(1)
}

/// A waiter that was cut off: the watch may be dead.
struct Suspicion<'a> {
    shared: &'a Shared,
    holds: bool,
}

impl Drop for Suspicion<'_> {
    fn drop(&mut self) {
        if self.holds {
            self.shared.suspect.store(true);
        }
    }
}
