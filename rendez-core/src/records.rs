//! What a store keeps of a cluster: sessions, slots, and the records that operators write.
//!
//! Every node reads the same records and decides from them alone. Nothing here decides anything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::placement::{LoadFactor, Policy};
use crate::{
    FencingToken, Incarnation, NodeId, OperationId, Revision, SessionId, Slot, StoreTime, WorkloadName, ZoneName,
};

/// The version of the protocol that this release speaks; a session carries it.
pub const PROTOCOL_VERSION: u32 = 1;

/// The largest checkpoint, in bytes.
pub const CHECKPOINT_BYTES_MAX: usize = 4096;

/// The most refusals that one slot's record keeps; the one that ends first gives way.
pub const REFUSALS_MAX: usize = 16;

/// What a node tells the others about itself; its session carries it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NodeInfo {
    /// The node's name.
    pub node: NodeId,
    /// The protocol version that it speaks.
    pub protocol: u32,
    /// Its part of the work, relative to the other nodes; at least 1.
    pub weight: u32,
    /// The failure domain that it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<ZoneName>,
    /// Free labels that workloads may ask for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The most slots that it holds, of all workloads together; no limit if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<u32>,
    /// The workloads that its program declares, and how many units of each.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub workloads: BTreeMap<WorkloadName, Declared>,
    /// The workloads kept in the store that it can run.
    #[serde(default)]
    pub dynamic: DynamicWorkloads,
    /// What it may be given.
    #[serde(default)]
    pub stance: Stance,
    /// Whether it feels well; an unhealthy node is given nothing new.
    #[serde(default = "yes")]
    pub healthy: bool,
    /// The settings that it was started with; where they differ from the cluster's record, only orphans move.
    pub settings: ClusterSettings,
}

fn yes() -> bool {
    true
}

impl NodeInfo {
    /// A healthy, active node of weight 1 that runs nothing yet.
    #[must_use]
    pub fn new(node: NodeId, settings: ClusterSettings) -> Self {
        Self {
            node,
            protocol: PROTOCOL_VERSION,
            weight: 1,
            zone: None,
            labels: BTreeMap::new(),
            capacity: None,
            workloads: BTreeMap::new(),
            dynamic: DynamicWorkloads::None,
            stance: Stance::Active,
            healthy: true,
            settings,
        }
    }
}

/// A workload as a node's program declares it.
///
/// ```
/// use rendez_core::{Declared, placement::Policy};
///
/// let inbox = Declared::new(16).with_cap(4);
/// let scheduler = Declared::new(1).with_policy(Policy::Sticky).with_priority(10);
/// # assert_eq!((inbox.cap, scheduler.priority), (Some(4), 10));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Declared {
    /// The node can run the units below this.
    pub units: u32,
    /// The most units of this workload on this node; no limit if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cap: Option<u32>,
    /// How the workload is placed; the cluster's policy if absent. A workload's record in the store counts before it.
    /// Where live nodes declare different ones, the greatest in the order of [`Policy`] counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// How much this node is preferred to others for the workload's orphans; the greater the more. Only
    /// [`Policy::Sticky`] looks at it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: u32,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Declared {
    /// All of a workload's units, as many at once as come.
    #[must_use]
    pub const fn new(units: u32) -> Self {
        Self { units, cap: None, policy: None, priority: 0 }
    }

    /// With so many units at once at most.
    #[must_use]
    pub const fn with_cap(self, cap: u32) -> Self {
        Self { cap: Some(cap), ..self }
    }

    /// With a policy of its own.
    #[must_use]
    pub const fn with_policy(self, policy: Policy) -> Self {
        Self { policy: Some(policy), ..self }
    }

    /// With this node preferred so much.
    #[must_use]
    pub const fn with_priority(self, priority: u32) -> Self {
        Self { priority, ..self }
    }
}

impl From<u32> for Declared {
    fn from(units: u32) -> Self {
        Self::new(units)
    }
}

/// Which of the workloads that are kept in the store a node can run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DynamicWorkloads {
    /// None of them.
    #[default]
    None,
    /// All of them.
    All,
    /// Those with these names.
    Only(BTreeSet<WorkloadName>),
}

/// What a node wants of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stance {
    /// It takes its share.
    #[default]
    Active,
    /// It takes no new slots and keeps what it holds.
    Cordoned,
    /// It takes no new slots and hands everything off.
    Draining,
}

/// A live session, as the others see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    /// The process lifetime that opened it.
    pub incarnation: Incarnation,
    /// When it was opened.
    pub opened_at: StoreTime,
    /// How long it lives after a heartbeat.
    pub ttl: Duration,
    /// What the node tells about itself.
    pub info: Arc<NodeInfo>,
    /// When this record last changed; heartbeats do not change it. Not a part of the record's JSON: the store knows it.
    #[serde(skip)]
    pub revision: Revision,
}

/// Who holds a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The session that the lease hangs on. A slot whose holder is a session that does not exist is an orphan.
    pub session: SessionId,
    /// The node of that session.
    pub node: NodeId,
}

/// A slot's record. It is never deleted while its workload exists, so that the token survives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotRecord {
    /// The token of the last grant.
    pub token: FencingToken,
    /// The request that made the last grant.
    pub granted_by: OperationId,
    /// Who holds the slot; nobody after a release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<Holder>,
    /// When it was last granted.
    pub taken_at: StoreTime,
    /// When it was last released, if that was after it was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freed_at: Option<StoreTime>,
    /// When it last changed hands voluntarily: the cooldown counts from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_at: Option<StoreTime>,
    /// The pending offer to another node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offer: Option<Offer>,
    /// Nodes that have refused the slot for a while.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<Refused>,
    /// The token that an operator has asked to be let go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub force: Option<FencingToken>,
    /// What the last runner left for the next. Given to the holder's own session only. Not a part of the record's JSON:
    /// bytes are kept beside it.
    #[serde(skip)]
    pub checkpoint: Option<Bytes>,
    /// When this record last changed. Not a part of the record's JSON: the store knows it.
    #[serde(skip)]
    pub revision: Revision,
}

impl SlotRecord {
    /// Whether this session holds the slot.
    #[must_use]
    pub fn is_held_by(&self, session: SessionId) -> bool {
        self.holder.as_ref().is_some_and(|holder| holder.session == session)
    }
}

/// A holder's offer to hand its slot to another session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The request that made it.
    pub id: OperationId,
    /// The session that it is made to.
    pub to: SessionId,
    /// When it ends by itself, on the store's clock.
    pub expires_at: StoreTime,
    /// How many slots the giver counted as its own, this one among them.
    pub giver_total: u32,
    /// How many of this workload.
    pub giver_of_workload: u32,
    /// The slot must leave its holder (drain, pin, a hard rule), so balance does not matter.
    pub forced: bool,
    /// The receiver has said that it is ready.
    pub ready: bool,
}

/// A node that has refused a slot, and for how long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Who.
    pub node: NodeId,
    /// Until when, on the store's clock.
    pub until: StoreTime,
}

/// The name of a record that operators write.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RecordKey {
    /// The settings that all nodes of the cluster share.
    Settings,
    /// A dynamic workload.
    Workload(WorkloadName),
    /// An operator's wishes for a node.
    Node(NodeId),
    /// A slot that is pinned to a node.
    Pin(Slot),
}

/// A record that operators write, with the same variants as its [`RecordKey`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// The settings that all nodes of the cluster share.
    Settings(ClusterSettings),
    /// A dynamic workload.
    Workload(WorkloadRecord),
    /// An operator's wishes for a node.
    Node(NodeWish),
    /// The node that a slot is pinned to.
    Pin(NodeId),
}

impl Record {
    /// Whether this is the kind of record that the key names.
    #[must_use]
    pub fn fits(&self, key: &RecordKey) -> bool {
        matches!(
            (key, self),
            (RecordKey::Settings, Self::Settings(_))
                | (RecordKey::Workload(_), Self::Workload(_))
                | (RecordKey::Node(_), Self::Node(_))
                | (RecordKey::Pin(_), Self::Pin(_))
        )
    }
}

/// A record and when it last changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// The record.
    pub record: Record,
    /// When it last changed; what a compare-and-set names.
    pub revision: Revision,
}

/// The settings that placement and safety depend on. The first node of a cluster writes them; from then on the
/// record in the store counts, and nodes that were started with others say so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ClusterSettings {
    /// How slots are placed where a workload says nothing else.
    #[serde(default)]
    pub policy: Policy,
    /// How far from its share a node may be before slots move.
    #[serde(default)]
    pub load_factor: LoadFactor,
    /// The longest session TTL; longer ones are refused. The quiet time after a loss of data is counted from it.
    pub session_ttl_max: Duration,
    /// The most voluntary moves under way at once in the whole cluster.
    pub move_budget: u32,
    /// How long a cluster without a trace in the store waits before its first grant; none unless set.
    #[serde(default)]
    pub cold_start_hold: Duration,
}

impl ClusterSettings {
    /// The defaults, for sessions of up to this TTL.
    #[must_use]
    pub fn new(session_ttl_max: Duration) -> Self {
        Self {
            policy: Policy::default(),
            load_factor: LoadFactor::default(),
            session_ttl_max,
            move_budget: 64,
            cold_start_hold: Duration::ZERO,
        }
    }
}

/// A workload that is kept in the store and can change while nodes run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct WorkloadRecord {
    /// How many units it has. Where a live node's program declares the workload, its units count and the rest of
    /// this record is added to it.
    pub units: u32,
    /// Nothing of it runs while this is set.
    #[serde(default)]
    pub paused: bool,
    /// The most units of it on one node; no limit if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cap_per_node: Option<u32>,
    /// The zones that it may run in; any if empty.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub zones: BTreeSet<ZoneName>,
    /// The labels that a node must have to run it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// How it is placed; the cluster's policy if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
}

impl WorkloadRecord {
    /// A workload of this many units that any node may run which accepts dynamic workloads.
    #[must_use]
    pub fn new(units: u32) -> Self {
        Self { units, ..Self::default() }
    }
}

/// What an operator wants of a node, whatever the node says itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct NodeWish {
    /// Take no new slots, keep what is held.
    #[serde(default)]
    pub cordon: bool,
    /// Take no new slots and hand everything off.
    #[serde(default)]
    pub drain: bool,
    /// The weight to use instead of the node's own; at least 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slots_json_is_short_and_leaves_to_the_store_what_the_store_keeps() {
        let mut slot = SlotRecord {
            token: FencingToken::new(7),
            granted_by: OperationId::from_bits(1),
            holder: Some(Holder { session: SessionId::from_bits(2), node: "a".parse().unwrap() }),
            taken_at: StoreTime::from_micros(3),
            freed_at: None,
            moved_at: None,
            offer: None,
            refusals: Vec::new(),
            force: None,
            checkpoint: Some(Bytes::from_static(b"x")),
            revision: Revision(9),
        };
        let json = serde_json::to_string(&slot).unwrap();
        assert_eq!(
            json,
            r#"{"token":7,"granted_by":"00000000000000000000000000000001","holder":{"session":"00000000000000000000000000000002","node":"a"},"taken_at":3}"#
        );
        slot.checkpoint = None;
        slot.revision = Revision(0);
        assert_eq!(serde_json::from_str::<SlotRecord>(&json).unwrap(), slot);
    }
}
