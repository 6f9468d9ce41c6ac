//! The file store of rendez: sessions, leases and fencing tokens in a folder, for all processes of one host.
//!
//! No server: a lock that the kernel drops when its holder dies, one line of JSON a change, and a snapshot of all now and
//! then. A heartbeat is one short line without an fsync, however many slots the node holds. The requests are answered by
//! the model of the contract itself. `docs/stores/file.md` describes the folder, its costs, and what cannot be promised.
//!
//! ```no_run
//! # async fn example() -> Result<(), rendez_core::StoreError> {
//! use rendez_file::{FileOptions, FileStore};
//! let store = FileStore::connect("file:/var/lib/my-service/rendez", FileOptions::default()).await?;
//! # Ok(()) }
//! ```

#[cfg(test)]
mod boots;
mod clock;
mod connect;
mod encode;
mod errors;
mod fence;
mod files;
mod keys;
mod lock;
mod options;
mod state;
mod store;
mod watch;
mod worker;

pub use fence::{Fence, FenceError};
pub use options::FileOptions;
pub use store::FileStore;
