//! What carries requests: a client's half, a server's half, and both.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use rendez_core::NodeId;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::{Envelope, Handler, RequestError};

/// Whom a request is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Address {
    /// Whoever serves this shard.
    Shard(u32),
    /// This node.
    Node(NodeId),
}

impl Address {
    /// What it means that nobody is there.
    #[must_use]
    pub fn nobody(&self) -> RequestError {
        match self {
            Self::Shard(shard) => RequestError::NoShardSubscriber { shard: *shard },
            Self::Node(node) => RequestError::NoSuchNode { node: node.clone() },
        }
    }
}

/// The half of a transport that sends.
#[async_trait]
pub trait ClientTransport: Send + Sync + 'static {
    /// Sends a request, and waits for the answer: once, never again by itself.
    ///
    /// Dropping the future gives the request up: what was not sent is not sent, and a handler in this process is dropped.
    /// One behind a network goes on until its time is over.
    ///
    /// # Errors
    /// The handler's own, or why it could not be reached.
    async fn request(&self, to: &Address, envelope: Envelope) -> Result<Bytes, RequestError>;

    /// Sends a message that nobody waits for. It may be lost.
    ///
    /// # Errors
    /// Why it could not be sent, as far as that is known here.
    async fn notify(&self, to: &Address, envelope: Envelope) -> Result<(), RequestError>;

    /// Sends nothing more, and waits for what is under way. Calling it again is fine.
    async fn close(&self);
}

/// The half of a transport that receives.
#[async_trait]
pub trait ServerTransport: Send + Sync + 'static {
    /// Gives the requests for an address to a handler, until the subscription ends.
    ///
    /// # Errors
    /// [`RequestError::TransportClosed`], or what is wrong with the connection.
    async fn subscribe(&self, to: Address, handler: Arc<dyn Handler>) -> Result<Subscription, RequestError>;

    /// Receives nothing more, and waits for handlers that run. Calling it again is fine.
    async fn close(&self);
}

/// Both halves.
pub trait Transport: ClientTransport + ServerTransport {}

impl<T: ClientTransport + ServerTransport> Transport for T {}

/// An address's requests come to a handler for as long as this is kept. Dropping it ends that at once; handlers that run
/// go on.
#[must_use = "dropping a subscription ends it"]
pub struct Subscription {
    end: Option<Box<dyn FnOnce() + Send + Sync>>,
    running: Running,
}

impl Subscription {
    /// For those who write a transport: `end` sees to it that no further request comes, and `running` counts those that do.
    pub fn new(running: Running, end: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self { end: Some(Box::new(end)), running }
    }

    /// Ends it: nothing new comes.
    pub fn end(&mut self) {
        if let Some(end) = self.end.take() {
            end();
        }
    }

    /// Ends it, and waits for the handlers that run. Cancelling the wait changes nothing: it has ended.
    pub async fn drain(mut self) {
        self.end();
        self.running.ended().await;
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("ended", &self.end.is_none())
            .field("running", &self.running.0.len())
            .finish()
    }
}

/// Counts what runs, so that somebody can wait for its end. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Running(TaskTracker);

impl Running {
    /// Counts one until what is returned is dropped.
    pub fn one(&self) -> TaskTrackerToken {
        self.0.token()
    }

    /// Waits until none is left. More may have begun meanwhile: see first to it that none can.
    pub async fn ended(&self) {
        self.0.close();
        self.0.wait().await;
    }
}
