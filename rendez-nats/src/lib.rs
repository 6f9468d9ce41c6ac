//! The NATS JetStream store of rendez: sessions, leases and fencing tokens in one key-value bucket a cluster, on servers
//! ≥ 2.11.
//!
//! A session is a key with a TTL that each heartbeat writes anew, a slot a key that is changed by compare-and-set, and a
//! token the sequence of the write that granted it, above a stored base. What has changed comes from a mirror of the
//! bucket that a consumer keeps up to date. `docs/stores/nats.md` describes how to set servers up, every key, and what can
//! and cannot be promised on them.
//!
//! ```no_run
//! # async fn example() -> Result<(), rendez_core::StoreError> {
//! use rendez_nats::{NatsOptions, NatsStore};
//! let store = NatsStore::connect("nats://h1:4222,h2,h3", NatsOptions::default()).await?;
//! # Ok(()) }
//! ```

mod bucket;
mod change;
mod cluster;
mod connect;
mod encode;
mod errors;
mod history;
mod keys;
mod options;
mod picture;
mod store;
mod watch;

pub use async_nats;
pub use options::NatsOptions;
pub use rendez_core::TlsFiles;
pub use store::NatsStore;
