//! The watch: keeps a cluster's picture up to date in the background, passes hints on, and finds out that keys have
//! expired, which the servers do in silence.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, push};
use async_nats::jetstream::message::Message;
use async_nats::jetstream::stream::Stream;
use async_nats::{StatusCode, Subscriber};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;
use rendez_core::{ErrorKind, StoreError, Watch, WatchHint};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::bucket;
use crate::cluster::{Cluster, Shared};
use crate::errors::{Stage, timed_out};
use crate::keys::Name;
use crate::picture::{CLAIMS_MAX, TOMBSTONE_LIVES, Told};

/// How often the server speaks up where nothing happens, and how long it may keep silent before it counts as gone.
const IDLE_HEARTBEAT: Duration = Duration::from_secs(1);
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// How long the server keeps a consumer that nobody listens to.
const CONSUMER_LIVES: Duration = Duration::from_secs(10);

/// How long to wait before a broken watch is tried again: at first, and at most. A request that needs it cuts it short.
const WAIT_MIN: Duration = Duration::from_millis(50);
const WAIT_MAX: Duration = Duration::from_secs(1);

/// How often is looked whether the cluster is still asked for.
const IDLE_CHECK: Duration = Duration::from_secs(10);

/// What a client's deletion of a key says, and what a server's does.
const OPERATION: &str = "KV-Operation";
const MARKER: &str = "Nats-Marker-Reason";

/// Follows a cluster until nobody has asked for it for a while.
pub(crate) async fn follow(shared: Arc<Shared>) {
    let mut wait = WAIT_MIN;
    loop {
        let Err(error) = follow_once(&shared, &mut wait).await else { return };
        tracing::debug!(server = shared.link.name, %error, "the watch ended");
        shared.with(|picture| picture.set_trouble(Some(error)));
        tokio::time::sleep(WAIT_MIN).await;
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = shared.wanted.notified() => {}
        }
        wait = (wait * 2).min(WAIT_MAX);
        if shared.is_idle() {
            return;
        }
    }
}

fn transient(what: impl Into<String>) -> StoreError {
    StoreError::new(ErrorKind::Transient, what)
}

/// Ends without an error when nobody asks any more.
async fn follow_once(shared: &Arc<Shared>, wait: &mut Duration) -> Result<(), StoreError> {
    let link = &shared.link;
    link.ready().await?;
    link.check()?;
    // A suspicion was about the watch before this one.
    shared.suspect.store(false);
    let limit = link.options.connect_timeout;
    let by_default = link.replicas_by_default();
    let asked = link.options.replicas;
    let mut bucket = bucket::ensure(&link.context, &shared.keys, asked, by_default, &link.name, limit).await?;
    let info = bucket.cached_info();
    let made = u64::try_from(info.created.unix_timestamp_nanos()).unwrap_or(0);
    let replicas = info.config.num_replicas;
    let reload = shared.with(|picture| {
        if picture.bucket != made {
            // Nothing that was known says anything about this one.
            picture.begin_anew(made);
        }
        picture.reload |= picture.heard.elapsed() > TOMBSTONE_LIVES / 2;
        picture.reload
    });
    shared.set_replicas(replicas);
    let mut told = Telling::begin(shared, &mut bucket, reload).await?;
    if reload {
        load(shared, &mut told).await?;
        shared.hint(WatchHint::Everyone);
    } else {
        resume(shared, &mut told).await?;
    }
    // Suspicions up to here were about what has just been made.
    shared.suspect.store(false);
    shared.with(|picture| picture.set_trouble(None));
    *wait = WAIT_MIN;
    let mut idle_check = Instant::now() + IDLE_CHECK;
    loop {
        let (overdue, next) = shared.overdue();
        if !overdue.is_empty() {
            tokio::spawn(claim_all(Arc::clone(shared), overdue));
        }
        let look = next.map_or(idle_check, |next| Instant::from_std(next).min(idle_check));
        let message = tokio::select! {
            message = told.next() => Some(message?),
            () = shared.suspect.raised() => {
                // It may be dead without having ended.
                shared.wanted.notify_one();
                return Err(transient("the bucket's consumer has fallen behind"));
            }
            () = sleep_until(look) => None,
        };
        match message {
            Some(told) => {
                let (hints, reload) = shared.with(|picture| (picture.apply(&told), picture.reload));
                hints.into_iter().for_each(|hint| shared.hint(hint));
                if reload {
                    shared.wanted.notify_one();
                    return Err(transient("the cluster's data are others: reading them anew"));
                }
            }
            None if Instant::now() >= idle_check => {
                if shared.is_idle() {
                    return Ok(());
                }
                idle_check = Instant::now() + IDLE_CHECK;
            }
            None => {}
        }
    }
}

/// Takes the place of keys that should have expired, where they have.
async fn claim_all(shared: Arc<Shared>, overdue: Vec<Name>) {
    let claims = overdue.into_iter().map(|name| {
        let shared = Arc::clone(&shared);
        async move {
            // It is looked again.
            let _ = timeout(shared.link.options.operation_timeout, shared.claim(&name)).await;
        }
    });
    stream::iter(claims).buffer_unordered(CLAIMS_MAX).collect::<Vec<()>>().await;
}

/// Writes something of our own, behind which whatever is there by then was told.
async fn mark(shared: &Shared) -> Result<u64, StoreError> {
    let limit = shared.link.options.connect_timeout;
    let at = timeout(limit, shared.publish_sync()).await;
    let at = at.map_err(|_| timed_out(Stage::Reading, &shared.link.name, limit))??;
    Ok(at)
}

/// Reads the last write of each key.
async fn load(shared: &Shared, told: &mut Telling) -> Result<(), StoreError> {
    let target = mark(shared).await?;
    let mut all = Vec::new();
    loop {
        let one = told.next().await?;
        let sequence = one.sequence;
        all.push(one);
        if sequence >= target {
            shared.with(|picture| picture.load(&all, sequence));
            return Ok(());
        }
    }
}

/// Goes on behind the last write that was told, if that is still what it was: other data may have taken its place.
async fn resume(shared: &Shared, told: &mut Telling) -> Result<(), StoreError> {
    mark(shared).await?;
    let first = told.next().await?;
    let same = shared.with(|picture| {
        let same = picture.told == (first.sequence, first.published);
        picture.reload |= !same;
        !picture.reload
    });
    if same { Ok(()) } else { Err(transient("the bucket has forgotten where its telling broke off: reading it anew")) }
}

/// A consumer of the bucket that is told every write, in order.
struct Telling {
    shared: Arc<Shared>,
    messages: Subscriber,
    /// How many messages the consumer has delivered.
    delivered: u64,
    /// When it last said anything.
    heard: Instant,
}

impl Telling {
    async fn begin(shared: &Arc<Shared>, bucket: &mut Stream, reload: bool) -> Result<Self, StoreError> {
        let link = &shared.link;
        let inbox = link.client.new_inbox();
        let failed = |error: &dyn std::fmt::Display| transient(format!("NATS at {}: no consumer: {error}", link.name));
        let messages = link.client.subscribe(inbox.clone()).await.map_err(|error| failed(&error))?;
        let start_sequence = shared.read(|picture| picture.told.0);
        let config = push::Config {
            deliver_subject: inbox,
            name: Some(format!("rendez-{:016x}", fastrand::u64(..))),
            deliver_policy: if reload {
                DeliverPolicy::LastPerSubject
            } else {
                DeliverPolicy::ByStartSequence { start_sequence }
            },
            ack_policy: AckPolicy::None,
            max_deliver: 1,
            filter_subject: shared.keys.all(),
            flow_control: true,
            idle_heartbeat: IDLE_HEARTBEAT,
            num_replicas: 1,
            memory_storage: true,
            inactive_threshold: CONSUMER_LIVES,
            ..push::Config::default()
        };
        let limit = link.options.connect_timeout;
        let made = timeout(limit, bucket.create_consumer(config)).await;
        let made = made.map_err(|_| timed_out(Stage::Reading, &link.name, limit))?;
        made.map_err(|error| failed(&error))?;
        Ok(Self { shared: Arc::clone(shared), messages, delivered: 0, heard: Instant::now() })
    }

    /// The next write. Cancelling it loses none.
    async fn next(&mut self) -> Result<Told, StoreError> {
        loop {
            let next = timeout_at(self.heard + SILENCE_MAX, self.messages.next()).await;
            let next = next.map_err(|_| transient("the bucket's consumer is silent"))?;
            let message = next.ok_or_else(|| transient("the bucket's consumer has ended"))?;
            self.heard = Instant::now();
            match message.status {
                None => return self.read(message),
                Some(StatusCode::IDLE_HEARTBEAT) => self.control(&message)?,
                Some(status) => return Err(transient(format!("the bucket's consumer has ended: {status}"))),
            }
        }
    }

    fn read(&mut self, message: async_nats::Message) -> Result<Told, StoreError> {
        let shared = &self.shared;
        let context = shared.link.context.clone();
        let message = Message { message, context };
        let info = message.info().map_err(|error| transient(format!("a message without its place: {error}")))?;
        if info.consumer_sequence != self.delivered + 1 {
            return Err(transient("the bucket's consumer has lost messages"));
        }
        let published = u64::try_from(info.published.unix_timestamp_nanos() / 1000).unwrap_or(0);
        let sequence = info.stream_sequence;
        self.delivered += 1;
        let headers = message.headers.as_ref();
        let deleted = headers.is_some_and(|headers| headers.get(OPERATION).is_some() || headers.get(MARKER).is_some());
        let value = (!deleted).then(|| message.payload.clone());
        Ok(Told { name: shared.keys.parse(&message.subject), sequence, published, value })
    }

    /// The server asks whether we keep up, or says that nothing has happened.
    fn control(&self, message: &async_nats::Message) -> Result<(), StoreError> {
        let header = |name: &str| message.headers.as_ref().and_then(|headers| headers.get(name));
        if let Some(last) = header("Nats-Last-Consumer")
            && last.as_str().parse() != Ok(self.delivered)
        {
            return Err(transient("the bucket's consumer has lost messages"));
        }
        let stalled = header("Nats-Consumer-Stalled").map(|subject| subject.as_str().to_owned());
        let answer = message.reply.as_ref().map(ToString::to_string).or(stalled);
        if let Some(subject) = answer {
            let client = self.shared.link.client.clone();
            tokio::spawn(async move {
                // Unanswered, the server asks again.
                let _ = client.publish(subject, Bytes::new()).await;
            });
        } else {
            self.shared.read_heard();
        }
        Ok(())
    }
}

/// Passes hints on; keeps the cluster's picture alive.
pub(crate) struct Hints {
    hints: broadcast::Receiver<WatchHint>,
    _cluster: Arc<Cluster>,
}

impl Hints {
    pub(crate) fn new(cluster: Arc<Cluster>) -> Self {
        Self { hints: cluster.shared.hints.subscribe(), _cluster: cluster }
    }
}

#[async_trait]
impl Watch for Hints {
    async fn next(&mut self) -> Option<WatchHint> {
        match self.hints.recv().await {
            Ok(hint) => Some(hint),
            Err(RecvError::Lagged(_)) => Some(WatchHint::Everyone),
            Err(RecvError::Closed) => None,
        }
    }
}
