//! The PostgreSQL store of rendez: sessions, leases and fencing tokens in PostgreSQL ≥ 12.
//!
//! Every request is one call of a function in a schema of its own: one statement, one transaction, judged by the
//! server's clock. A heartbeat writes one row for a whole node, however many slots it holds.
//! `docs/stores/postgres.md` describes how to set a server up, every table, and what can and cannot be promised on it.
//!
//! ```no_run
//! # async fn example() -> Result<(), rendez_core::StoreError> {
//! use rendez_postgres::{PostgresOptions, PostgresStore};
//! let store = PostgresStore::connect("postgres://app@localhost/app", PostgresOptions::default()).await?;
//! # Ok(()) }
//! ```

mod connect;
mod encode;
mod errors;
mod fence;
mod options;
mod schema;
mod store;
mod watch;

pub use deadpool_postgres;
pub use fence::{Fence, FenceError};
pub use options::{PostgresOptions, Standbys};
pub use rendez_core::TlsFiles;
pub use schema::migration;
pub use store::PostgresStore;
pub use tokio_postgres;
