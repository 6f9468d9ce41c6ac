//! The store contract: what a store must do so that the engine can keep its promises on top of it.
//!
//! A store is a set of atomic requests on the records of one cluster ([`records`](crate::SlotRecord)). Each request
//! takes effect at one moment or not at all, is judged by the store's own clock, and is harmless when it is late,
//! repeated or unanswered. [`StoreModel`](crate::StoreModel) says the same in code; where this text and the model
//! differ, the model counts.

mod capabilities;
mod checks;
mod error;
pub(crate) mod lineage;
mod messages;
mod slot_rules;
mod tls_files;

use async_trait::async_trait;

pub use capabilities::{Capabilities, Fencing};
pub use error::{ErrorKind, StoreError};
pub use lineage::{Heard, Lineage, quiet_time};
pub use messages::{
    AdminOutcome, AdminRequest, Beat, Change, ChangeKind, ChangeOutcome, ChangeReply, ChangeRequest, CloseRequest,
    Conflict, Cursor, Due, HeartbeatRequest, Held, Known, OpenRequest, Opening, SlotChange, SnapshotPage,
    SnapshotRequest, Stamp, Sync, WatchHint,
};
pub use slot_rules::{Actor, Decision, Surroundings};
pub use tls_files::TlsFiles;

use crate::ClusterName;

/// A place where sessions, slots and operators' records live, with atomic requests on them.
///
/// Implementations hold no state of the protocol: two handles to one server are the same store. Every method may
/// be cancelled at any await point; the outcome is then unknown, as after [`ErrorKind::Ambiguous`], and asking
/// again is safe. No method retries for longer than one operation timeout of its own client: when to try again is
/// the caller's business.
#[async_trait]
pub trait LeaseStore: Send + std::marker::Sync + 'static {
    /// What this store can do and promise. Constant for the lifetime of the handle.
    fn capabilities(&self) -> Capabilities;

    /// Opens a session for a node, or says which live session of another process stands in its way.
    ///
    /// # Errors
    /// [`ErrorKind::Fatal`] for a TTL, a protocol version or settings that the cluster does not permit.
    async fn open(&self, cluster: &ClusterName, request: &OpenRequest) -> Result<Opening, StoreError>;

    /// Extends a session that still lives, and brings what has changed.
    ///
    /// # Errors
    /// [`ErrorKind::Lost`] if the session does not live; that is final.
    async fn heartbeat(&self, cluster: &ClusterName, request: &HeartbeatRequest) -> Result<Beat, StoreError>;

    /// Ends a session; whatever it holds becomes an orphan at once. Closing a session that does not live is no error.
    ///
    /// # Errors
    /// Those of the connection.
    async fn close(&self, cluster: &ClusterName, request: &CloseRequest) -> Result<(), StoreError>;

    /// Makes changes to slots on behalf of a live session. Each change stands or falls alone; all are made at one
    /// moment, unless [`Capabilities::whole_batches`] says otherwise. At most [`Capabilities::changes_max`] a request.
    ///
    /// # Errors
    /// [`ErrorKind::Lost`] if the session does not live: then nothing was changed.
    async fn change(&self, cluster: &ClusterName, request: &ChangeRequest) -> Result<ChangeReply, StoreError>;

    /// Reads one page of all records. Needs no session.
    ///
    /// # Errors
    /// Those of the connection; [`ErrorKind::Conflict`] for a cursor of another generation: begin again.
    async fn snapshot(&self, cluster: &ClusterName, request: &SnapshotRequest) -> Result<SnapshotPage, StoreError>;

    /// Makes one change on behalf of an operator. Needs no session.
    ///
    /// # Errors
    /// Those of the connection. A comparison that fails is an outcome, no error.
    async fn administer(&self, cluster: &ClusterName, request: &AdminRequest) -> Result<AdminOutcome, StoreError>;

    /// Hears of changes early. Only a hint: hints may be dropped, merged or doubled.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if the store has no watch; those of the connection.
    async fn watch(&self, cluster: &ClusterName) -> Result<Box<dyn Watch>, StoreError>;
}

/// A stream of hints that something has changed.
#[async_trait]
pub trait Watch: Send {
    /// The next hint, or nothing when the watch has ended and a new one must be opened (hints may have been missed).
    ///
    /// Cancelling it loses no hint.
    async fn next(&mut self) -> Option<WatchHint>;
}
