//! Requests that find the node that owns their key.
//!
//! A service keeps state by key: users, tenants, devices. Each key belongs to one *shard* of a fixed number, and each shard
//! is served by one node. A [`Client`] knows which shard a key belongs to and sends the request there; a [`Node`] serves
//! its shards with a [`Handler`]; a [`Transport`] carries the requests between them.
//!
//! ```
//! use bytes::Bytes;
//! use rendez_router::{BoxError, Client, Envelope, MemoryTransport, Node, RequestContext};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! let transport = MemoryTransport::new();
//! let node = Node::builder(transport.clone())
//!     .id("node-1")
//!     .shards(0..16)
//!     .handler(|_: RequestContext, request: Envelope| async move {
//!         Ok::<_, BoxError>(format!("hello {}", request.key().unwrap_or("nobody")))
//!     })
//!     .start()
//!     .await?;
//!
//! let client = Client::builder(transport, 16).build()?;
//! let reply = client.request_key("user-123", "GetUser", Bytes::new()).await?;
//! assert_eq!(reply, "hello user-123");
//!
//! node.shutdown().await; // takes no more requests, and waits for those that it has
//! # Ok(())
//! # }
//! ```
//!
//! # What to know
//!
//! - **At most once.** A request is sent once. [`RequestError::ran`] says of each failure whether the handler may have
//!   run; trying again is the caller's decision. A request with an
//!   [idempotency key](ScopedClient::with_idempotency_key) repeats itself, and its node answers a copy with what it has
//!   answered before.
//! - **Time.** Every request has a time to live ([`DEFAULT_TTL`] unless it is given one), which travels with it: a node does
//!   not begin what has expired, and drops a handler whose time is over. Nodes' clocks are not compared: what travels is
//!   what is left.
//! - **Cancellation.** Dropping a request's future drops its handler at the next await point, where the transport can
//!   tell; see [`ClientTransport::request`].
//! - **Backpressure.** Everything that queues is bounded. Who finds a queue full is told so at once
//!   ([`RequestError::Overloaded`]), and nothing was done.
//! - **Reserved names.** Headers and message types that begin with [`HEADER_PREFIX`] are the library's own, for what it says
//!   itself over transports that know only headers. A user's header of that name would be taken for one of them, so it is
//!   refused ([`Envelope::validate`]).
//! - **Order.** Requests of one caller may overtake each other. [`ActorHandler`] works on one message of a key at a time, in the
//!   order of their arrival.
//!
//! # Which shard, which node
//!
//! [`shard_of_key`] is part of this crate's interface: it never changes. Which node serves which shard is yours to say;
//! [`shards_of_node`] shares them among a fixed list of nodes. With the feature `live` it is the leases that say it: a shard is a
//! slot of a workload, a node serves the slots that it holds at the moment, and a client follows the [`Owners`].
//!
//! # Features
//!
//! - `live`: `ServedSlots`, for nodes that serve exactly the slots that they hold by lease.
//! - `nats`: `NatsTransport`, which carries requests over NATS.
//! - `tower`: clients are services of `tower`, and a service can be a handler, as `ServiceHandler`.

mod actor;
mod answers;
mod client;
mod dispatch;
mod envelope;
mod error;
mod handler;
mod hash;
mod key_handler;
mod memory;
mod message;
#[cfg(feature = "nats")]
mod nats;
mod node;
mod owners;
mod repeat;
mod serve;
#[cfg(feature = "live")]
mod slots;
pub mod testing;
#[cfg(feature = "tower")]
mod tower;
mod transport;

pub use actor::{Actor, ActorHandler, ActorOptions, MAILBOX_DEFAULT};
pub use answers::{ANSWER_BYTES_KEPT_DEFAULT, ANSWERS_KEPT_DEFAULT, ANSWERS_KEPT_FOR_DEFAULT, AnswersKept};
#[cfg(feature = "nats")]
pub use async_nats;
pub use client::{
    Client, ClientBuilder, ClientError, DEFAULT_TTL, NOTIFICATIONS_DEFAULT, PATIENCE_DEFAULT, ScopedClient, TypedClient,
};
pub use dispatch::{Dispatch, typed};
pub use envelope::{Envelope, HEADER_PREFIX, Headers};
pub use error::{Part, Ran, RequestError};
pub use handler::{Answer, BoxError, Handler, RequestContext};
pub use hash::{SHARDS_MAX, shard_of_key, shards_of_node};
pub use key_handler::{KEYS_DEFAULT, KeyHandler, KeyHandlerBuilder};
pub use memory::{MemoryTransport, MemoryTransportBuilder};
pub use message::Message;
#[cfg(feature = "nats")]
pub use nats::{NatsTransport, NatsTransportBuilder, NatsTransportError};
pub use node::{Node, NodeBuilder, NodeError, NodeInfo};
pub use owners::{FollowedOwners, Owner, Owners};
pub use repeat::REPEAT_AFTER_DEFAULT;
pub use serve::{HANDLER_TIMEOUT_DEFAULT, HANDLERS_DEFAULT, WAITING_DEFAULT};
#[cfg(feature = "live")]
pub use slots::ServedSlots;
#[cfg(feature = "tower")]
pub use tower::{ServedRequest, ServiceHandler};
pub use transport::{Address, ClientTransport, Running, ServerTransport, Subscription, Transport};
