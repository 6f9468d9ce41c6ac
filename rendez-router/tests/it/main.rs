//! Requests over the transport in memory, from client to handler and back.

mod actors;
#[cfg(feature = "live")]
mod cluster;
#[cfg(feature = "live")]
mod faults;
mod idempotency;
mod keys;
#[cfg(feature = "live")]
mod ledger;
#[cfg(feature = "live")]
mod live;
mod memory;
mod messages;
#[cfg(feature = "nats")]
mod nats;
mod nodes;
#[cfg(feature = "tower")]
mod tower;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rendez_router::{BoxError, Client, Envelope, Handler, MemoryTransport, Node, RequestContext};

/// A node that serves all of 16 shards.
async fn node(transport: &MemoryTransport, handler: impl Handler) -> Node {
    Node::builder(transport.clone()).id("node-1").shards(0..16).handler(handler).start().await.unwrap()
}

/// The same, with a handler that the test keeps.
async fn node_with(transport: &MemoryTransport, handler: Arc<dyn Handler>) -> Node {
    Node::builder(transport.clone()).id("node-1").shards(0..16).shared_handler(handler).start().await.unwrap()
}

fn client(transport: &MemoryTransport) -> Client {
    Client::builder(transport.clone(), 16).build().unwrap()
}

/// Answers with what it was sent.
async fn echo(_: RequestContext, request: Envelope) -> Result<Bytes, BoxError> {
    Ok(request.into_data())
}

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// Waits until it is so.
async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let wait = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LONG, wait).await.unwrap_or_else(|_| panic!("not so after {LONG:?}: {what}"));
}
