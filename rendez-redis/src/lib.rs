//! The Redis store of rendez: sessions, leases and fencing tokens in Redis ≥ 6.2 and what speaks its language.
//!
//! Every request is one Lua script, judged by the server's clock; a heartbeat is one command for a whole node,
//! however many slots it holds. Standalone servers, Sentinel, Cluster and TLS are spoken.
//! `docs/stores/redis.md` describes how to set a server up, every key, and what can and cannot be promised on it.
//!
//! ```no_run
//! # async fn example() -> Result<(), rendez_core::StoreError> {
//! use rendez_redis::{RedisOptions, RedisStore};
//! let store = RedisStore::connect("redis://127.0.0.1:6379", RedisOptions::default()).await?;
//! # Ok(()) }
//! ```

mod connect;
mod encode;
mod errors;
mod fence;
mod keys;
mod options;
mod scripts;
mod store;
mod watch;

pub use fence::{FENCED_WORDS_MAX, Fence, FenceError};
pub use options::RedisOptions;
pub use redis;
pub use rendez_core::TlsFiles;
pub use store::RedisStore;
