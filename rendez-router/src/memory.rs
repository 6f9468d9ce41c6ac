//! The transport inside of one process: for tests, and for services that are one process.
//!
//! A handler runs in its caller's task, so that a request costs no hop between threads, and a caller that goes takes its
//! handler with it.

use std::collections::HashMap;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{FutureExt, poll};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use crate::transport::{ClientTransport, Running, ServerTransport, Subscription};
use crate::{Envelope, Handler, RequestContext, RequestError};

/// How many handlers run at once, unless said otherwise.
pub const HANDLERS_DEFAULT: usize = 100;

/// How many requests wait for a handler to end, unless said otherwise.
pub const WAITING_DEFAULT: usize = 10_000;

/// How long a handler may take, unless said otherwise.
pub const HANDLER_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

/// A transport inside of one process. Clones are the same one.
///
/// At most [`max_concurrent_handlers`](MemoryTransportBuilder::max_concurrent_handlers) run at once; more requests wait
/// their turn, as long as their time permits. A handler that sends requests through the same transport keeps its place
/// meanwhile: give such a service more places than it can need, for its requests may wait for each other until their time is
/// over.
#[derive(Clone)]
pub struct MemoryTransport(Arc<Shared>);

/// A [`MemoryTransport`] before it is made.
#[derive(Debug, Clone)]
#[must_use = "nothing is made before `build`"]
pub struct MemoryTransportBuilder {
    handlers: usize,
    waiting: usize,
    handler_timeout: Duration,
}

struct Shared {
    shards: RwLock<HashMap<u32, Vec<Subscriber>>>,
    places: Semaphore,
    handlers: usize,
    waiting: AtomicUsize,
    waiting_max: usize,
    handler_timeout: Duration,
    closed: AtomicBool,
    running: Running,
    last: AtomicU64,
}

#[derive(Clone)]
struct Subscriber {
    number: u64,
    handler: Arc<dyn Handler>,
    running: Running,
}

impl MemoryTransport {
    /// With the default bounds.
    #[must_use]
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// With other bounds.
    pub fn builder() -> MemoryTransportBuilder {
        MemoryTransportBuilder {
            handlers: HANDLERS_DEFAULT,
            waiting: WAITING_DEFAULT,
            handler_timeout: HANDLER_TIMEOUT_DEFAULT,
        }
    }

    /// How many handlers run now.
    #[must_use]
    pub fn running(&self) -> usize {
        self.0.handlers - self.0.places.available_permits()
    }
}

impl Default for MemoryTransport {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryTransport")
            .field("running", &self.running())
            .field("closed", &self.0.closed.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}

impl MemoryTransportBuilder {
    /// So many handlers run at once, at least 1; [`HANDLERS_DEFAULT`] unless set.
    pub fn max_concurrent_handlers(mut self, handlers: usize) -> Self {
        self.handlers = handlers.clamp(1, Semaphore::MAX_PERMITS);
        self
    }

    /// So many requests wait for a place; [`WAITING_DEFAULT`] unless set. More are refused at once.
    pub fn max_waiting(mut self, waiting: usize) -> Self {
        self.waiting = waiting;
        self
    }

    /// So long a handler may take, the wait for its place not counted; [`HANDLER_TIMEOUT_DEFAULT`] unless set.
    pub fn handler_timeout(mut self, timeout: Duration) -> Self {
        self.handler_timeout = timeout;
        self
    }

    /// Makes it.
    #[must_use]
    pub fn build(self) -> MemoryTransport {
        MemoryTransport(Arc::new(Shared {
            shards: RwLock::default(),
            places: Semaphore::new(self.handlers),
            handlers: self.handlers,
            waiting: AtomicUsize::new(0),
            waiting_max: self.waiting,
            handler_timeout: self.handler_timeout,
            closed: AtomicBool::new(false),
            running: Running::default(),
            last: AtomicU64::new(0),
        }))
    }
}

impl Shared {
    /// Who serves the shard: of several, who came last.
    fn subscriber(&self, shard: u32) -> Result<Subscriber, RequestError> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(RequestError::TransportClosed);
        }
        let shards = self.shards.read().unwrap_or_else(PoisonError::into_inner);
        let last = shards.get(&shard).and_then(|subscribers| subscribers.last());
        last.cloned().ok_or(RequestError::NoShardSubscriber { shard })
    }

    /// Waits for a place among those that run.
    async fn place(&self, expires_at: Option<Instant>) -> Result<SemaphorePermit<'_>, RequestError> {
        let Some(_waiting) = Waiting::one(&self.waiting, self.waiting_max) else {
            let most = self.waiting_max as u64;
            return Err(RequestError::Overloaded { what: "the transport".to_owned(), most });
        };
        let place = async { self.places.acquire().await.map_err(|_| RequestError::TransportClosed) };
        match expires_at {
            Some(at) => timeout_at(at, place).await.unwrap_or(Err(RequestError::EnvelopeExpired)),
            None => place.await,
        }
    }

    async fn serve(&self, envelope: Envelope) -> Result<Bytes, RequestError> {
        // Counted before it is looked whether it is closed: who closes waits for those that were counted in time.
        let _running = self.running.one();
        let expires_at = envelope.expires_at();
        let mut subscriber = self.subscriber(envelope.shard())?;
        let _place = match self.places.try_acquire() {
            Ok(place) => place,
            Err(_) => {
                let place = self.place(expires_at).await?;
                // It may have changed meanwhile.
                subscriber = self.subscriber(envelope.shard())?;
                place
            }
        };
        let _its_own = subscriber.running.one();
        let now = Instant::now();
        if expires_at.is_some_and(|at| at <= now) {
            return Err(RequestError::EnvelopeExpired);
        }
        let deadline = now.checked_add(self.handler_timeout).into_iter().chain(expires_at).min();
        let deadline = deadline.unwrap_or(now + FAR);
        let work = subscriber.handler.handle(RequestContext::new(deadline), envelope);
        let mut work = pin!(AssertUnwindSafe(work).catch_unwind());
        // Many handlers answer at once: they need no timer.
        let worked = match poll!(&mut work) {
            Poll::Ready(worked) => Ok(worked),
            Poll::Pending => timeout_at(deadline, work).await,
        };
        match worked {
            Ok(Ok(answer)) => answer,
            Ok(Err(panic)) => Err(RequestError::HandlerPanicked { message: panic_text(&*panic) }),
            Err(_) => {
                let millis = u64::try_from((deadline - now).as_millis()).unwrap_or(u64::MAX);
                Err(RequestError::HandlerTimeout { millis })
            }
        }
    }
}

/// Further away than anything waits for, and not beyond what the clock can count.
const FAR: Duration = Duration::from_secs(86_400 * 365);

#[async_trait]
impl ClientTransport for MemoryTransport {
    async fn request(&self, envelope: Envelope) -> Result<Bytes, RequestError> {
        self.0.serve(envelope).await
    }

    async fn notify(&self, envelope: Envelope) -> Result<(), RequestError> {
        self.0.subscriber(envelope.shard())?;
        let shared = self.0.clone();
        // Counted from now on, so that closing does not overtake it.
        let running = shared.running.one();
        tokio::spawn(async move {
            let (shard, message_type) = (envelope.shard(), envelope.message_type().to_owned());
            if let Err(error) = shared.serve(envelope).await {
                tracing::warn!(shard, message_type, %error, "a notification failed");
            }
            drop(running);
        });
        Ok(())
    }

    async fn close(&self) {
        self.0.closed.store(true, Ordering::SeqCst);
        self.0.running.ended().await;
    }
}

#[async_trait]
impl ServerTransport for MemoryTransport {
    async fn subscribe(&self, shard: u32, handler: Arc<dyn Handler>) -> Result<Subscription, RequestError> {
        if self.0.closed.load(Ordering::SeqCst) {
            return Err(RequestError::TransportClosed);
        }
        let number = self.0.last.fetch_add(1, Ordering::Relaxed);
        let running = Running::default();
        let subscriber = Subscriber { number, handler, running: running.clone() };
        let mut shards = self.0.shards.write().unwrap_or_else(PoisonError::into_inner);
        shards.entry(shard).or_default().push(subscriber);
        let shared = self.0.clone();
        Ok(Subscription::new(running, move || {
            let mut shards = shared.shards.write().unwrap_or_else(PoisonError::into_inner);
            if let Some(subscribers) = shards.get_mut(&shard) {
                subscribers.retain(|subscriber| subscriber.number != number);
                if subscribers.is_empty() {
                    shards.remove(&shard);
                }
            }
        }))
    }

    async fn close(&self) {
        ClientTransport::close(self).await;
    }
}

/// One of those that wait.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn one(waiting: &'a AtomicUsize, most: usize) -> Option<Self> {
        let one_more = |count| (count < most).then_some(count + 1);
        waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).ok().map(|_| Self(waiting))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&'static str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "it says nothing".to_owned())
}
