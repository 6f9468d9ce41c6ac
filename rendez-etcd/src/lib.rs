//! The etcd store of rendez: sessions, leases and fencing tokens in etcd ≥ 3.4.
//!
//! A session is an etcd lease, a change of slots one transaction, and a heartbeat one keep-alive and one small read, however
//! many slots the node holds: what has changed comes from a mirror of the cluster that a watch keeps up to date.
//! `docs/stores/etcd.md` describes how to set a server up, every key, and what can and cannot be promised on it.
//!
//! ```no_run
//! # async fn example() -> Result<(), rendez_core::StoreError> {
//! use rendez_etcd::{EtcdOptions, EtcdStore};
//! let store = EtcdStore::connect("etcd://h1:2379,h2,h3/rendez", EtcdOptions::default()).await?;
//! # Ok(()) }
//! ```

mod change;
mod clock;
mod cluster;
mod connect;
mod encode;
mod errors;
mod fence;
mod history;
mod keep_alive;
mod keys;
mod options;
mod picture;
mod store;
mod watch;

pub use etcd_client;
pub use fence::{FENCED_OPERATIONS_MAX, Fence, FenceError};
pub use options::EtcdOptions;
pub use rendez_core::TlsFiles;
pub use store::EtcdStore;
