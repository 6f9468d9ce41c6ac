//! What stands in the keys: JSON. Checkpoints are bytes as they are.

use std::time::Duration;

use rendez_core::{Incarnation, Lineage, OperationId, Record, SessionId, SessionRecord, SlotRecord, StoreError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::errors::damaged;
use crate::options::fatal;

/// The layout that this release reads and writes.
pub(crate) const LAYOUT: u32 = 1;

/// `meta`: what holds for the whole cluster. Every grant compares its revision, so whoever writes it stops all grants
/// that were decided before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta {
    pub(crate) layout: u32,
    pub(crate) lineage: Lineage,
    /// No token is above this and the revision that wrote it.
    pub(crate) base: u64,
    /// The largest token that was set aside: reported by a node, or by a new generation.
    pub(crate) floor: u64,
    /// etcd's own name for the cluster of servers.
    pub(crate) etcd: u64,
    /// Whether a session was ever opened.
    pub(crate) opened: bool,
    /// How often slots were deleted.
    pub(crate) deletions: u64,
}

/// `session/ID`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SessionValue {
    pub(crate) opened_by: OperationId,
    pub(crate) record: SessionRecord,
}

/// `node/NODE`: enough to answer another opening.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeValue {
    pub(crate) session: SessionId,
    pub(crate) incarnation: Incarnation,
    pub(crate) opened_by: OperationId,
    pub(crate) ttl: Duration,
}

/// `quiet`: its presence counts, not what it says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct QuietValue {
    pub(crate) lasts: Duration,
}

pub(crate) fn json(value: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|error| fatal("a record cannot be written as JSON").with_source(error))
}

fn read<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|error| damaged(what).with_source(error))
}

/// Refuses a layout that this release does not know.
pub(crate) fn meta(bytes: &[u8]) -> Result<Meta, StoreError> {
    #[derive(Deserialize)]
    struct Version {
        layout: u32,
    }
    let Version { layout } = read(bytes, "the cluster's meta record")?;
    if layout != LAYOUT {
        return Err(fatal(format!(
            "the cluster's data in etcd has layout {layout}, this release knows layout {LAYOUT}: use a release that \
             knows it, or another cluster name"
        )));
    }
    read(bytes, "the cluster's meta record")
}

pub(crate) fn session(bytes: &[u8]) -> Result<SessionValue, StoreError> {
    read(bytes, "a session")
}

pub(crate) fn node(bytes: &[u8]) -> Result<NodeValue, StoreError> {
    read(bytes, "a node's session")
}

pub(crate) fn quiet(bytes: &[u8]) -> Result<QuietValue, StoreError> {
    read(bytes, "the quiet time")
}

pub(crate) fn slot(bytes: &[u8]) -> Result<SlotRecord, StoreError> {
    read(bytes, "a slot")
}

pub(crate) fn record(bytes: &[u8]) -> Result<Record, StoreError> {
    read(bytes, "an operator's record")
}
