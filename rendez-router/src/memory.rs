//! The transport inside of one process: for tests, and for services that are one process.
//!
//! A handler runs in its caller's task, so that a request costs no hop between threads, and a caller that goes takes its
//! handler with it.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::serve::{Bounds, Places};
use crate::transport::{Address, ClientTransport, Running, ServerTransport, Subscription};
use crate::{Envelope, Handler, RequestError};

/// A transport inside of one process. Clones are the same one.
///
/// At most [`max_concurrent_handlers`](MemoryTransportBuilder::max_concurrent_handlers) run at once; more requests wait
/// their turn, as long as their time permits. A handler that sends requests through the same transport keeps its place
/// meanwhile: give such a service more places than it can need, for its requests may wait for each other until their time is
/// over.
#[derive(Clone)]
pub struct MemoryTransport(Arc<Shared>);

/// A [`MemoryTransport`] before it is made.
#[derive(Debug, Clone, Default)]
#[must_use = "nothing is made before `build`"]
pub struct MemoryTransportBuilder(Bounds);

struct Shared {
    addresses: RwLock<HashMap<Address, Vec<Subscriber>>>,
    places: Places,
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
        MemoryTransportBuilder::default()
    }

    /// How many handlers run now.
    #[must_use]
    pub fn running(&self) -> usize {
        self.0.places.running()
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
    /// So many handlers run at once, at least 1; [`HANDLERS_DEFAULT`](crate::HANDLERS_DEFAULT) unless set.
    pub fn max_concurrent_handlers(mut self, handlers: usize) -> Self {
        self.0.handlers = handlers;
        self
    }

    /// So many requests wait for a place; [`WAITING_DEFAULT`](crate::WAITING_DEFAULT) unless set. More are refused at once.
    pub fn max_waiting(mut self, waiting: usize) -> Self {
        self.0.waiting = waiting;
        self
    }

    /// So long a handler may take, the wait for its place not counted; [`HANDLER_TIMEOUT_DEFAULT`](crate::HANDLER_TIMEOUT_DEFAULT) unless set.
    pub fn handler_timeout(mut self, timeout: Duration) -> Self {
        self.0.handler_timeout = timeout;
        self
    }

    /// Makes it.
    #[must_use]
    pub fn build(self) -> MemoryTransport {
        MemoryTransport(Arc::new(Shared {
            addresses: RwLock::default(),
            places: Places::new(self.0),
            closed: AtomicBool::new(false),
            running: Running::default(),
            last: AtomicU64::new(0),
        }))
    }
}

impl Shared {
    /// Who is there: of several, who came last.
    fn subscriber(&self, to: &Address) -> Result<Subscriber, RequestError> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(RequestError::TransportClosed);
        }
        let addresses = self.addresses.read().unwrap_or_else(PoisonError::into_inner);
        let last = addresses.get(to).and_then(|subscribers| subscribers.last());
        last.cloned().ok_or_else(|| to.nobody())
    }

    async fn serve(&self, to: &Address, envelope: Envelope) -> Result<Bytes, RequestError> {
        // Counted before it is looked whether it is closed: who closes waits for those that were counted in time.
        let _running = self.running.one();
        let mut subscriber = self.subscriber(to)?;
        let _place = match self.places.free() {
            Some(place) => place,
            None => {
                let place = self.places.wait(envelope.expires_at()).await?;
                // It may have changed meanwhile.
                subscriber = self.subscriber(to)?;
                place
            }
        };
        let _its_own = subscriber.running.one();
        self.places.run(&*subscriber.handler, envelope).await
    }
}

#[async_trait]
impl ClientTransport for MemoryTransport {
    async fn request(&self, to: &Address, envelope: Envelope) -> Result<Bytes, RequestError> {
        self.0.serve(to, envelope).await
    }

    async fn notify(&self, to: &Address, envelope: Envelope) -> Result<(), RequestError> {
        self.0.subscriber(to)?;
        let (shared, to) = (self.0.clone(), to.clone());
        // Counted from now on, so that closing does not overtake it.
        let running = shared.running.one();
        tokio::spawn(async move {
            let (shard, message_type) = (envelope.shard(), envelope.message_type().to_owned());
            if let Err(error) = shared.serve(&to, envelope).await {
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
    async fn subscribe(&self, to: Address, handler: Arc<dyn Handler>) -> Result<Subscription, RequestError> {
        if self.0.closed.load(Ordering::SeqCst) {
            return Err(RequestError::TransportClosed);
        }
        let number = self.0.last.fetch_add(1, Ordering::Relaxed);
        let running = Running::default();
        let subscriber = Subscriber { number, handler, running: running.clone() };
        self.0
            .addresses
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(to.clone())
            .or_default()
            .push(subscriber);
        let shared = self.0.clone();
        Ok(Subscription::new(running, move || {
            let mut addresses = shared.addresses.write().unwrap_or_else(PoisonError::into_inner);
            if let Some(subscribers) = addresses.get_mut(&to) {
                subscribers.retain(|subscriber| subscriber.number != number);
                if subscribers.is_empty() {
                    addresses.remove(&to);
                }
            }
        }))
    }

    async fn close(&self) {
        ClientTransport::close(self).await;
    }
}
