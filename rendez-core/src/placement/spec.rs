//! What the planner is told and what it answers, in words of the library.
//!
//! Only plain data belongs here: no indices, no hashes, no decisions.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{NodeId, Slot, WorkloadName, ZoneName};

/// How slots are matched with nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Policy {
    /// Every node gets its part by weight, of each workload and of all together, and held slots move only where
    /// that makes the spread better.
    #[default]
    Balanced,
    /// Each slot belongs to the node with the highest score, whoever holds it. Small workloads spread badly.
    Rendezvous,
    /// Units and so many [virtual nodes](super::circle) of each node stand on a circle; each unit belongs to the first
    /// virtual node clockwise, whoever holds it. With few virtual nodes counts differ widely.
    Ring(VirtualNodes),
    /// Who holds a slot keeps it as long as it may; an orphan goes to the node of the highest priority, and among equals
    /// to the one with the best score. A node that joins gets nothing that is held: for leadership, not for load.
    Sticky,
}

impl Policy {
    /// Its name in configurations.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Balanced => "balanced",
            Self::Rendezvous => "rendezvous",
            Self::Ring(_) => "ring",
            Self::Sticky => "sticky",
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Balanced | Self::Rendezvous | Self::Sticky => f.write_str(self.as_str()),
            Self::Ring(virtual_nodes) => write!(f, "ring:{}", virtual_nodes.get()),
        }
    }
}

/// A text that names no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// There is no policy of this name.
    #[error("there is no such policy: write balanced, rendezvous, ring, ring:64 or sticky")]
    Unknown,
    /// What follows `ring:` cannot be.
    #[error("the number of virtual nodes cannot be: {0}")]
    VirtualNodes(VirtualNodesError),
}

impl FromStr for Policy {
    type Err = PolicyError;

    /// Reads a policy as configurations name it: `balanced`, `rendezvous`, `sticky`, `ring` or, with the number of virtual
    /// nodes of a node of weight 1, `ring:64`.
    fn from_str(text: &str) -> Result<Self, PolicyError> {
        match text {
            "balanced" => Ok(Self::Balanced),
            "rendezvous" => Ok(Self::Rendezvous),
            "sticky" => Ok(Self::Sticky),
            "ring" => Ok(Self::Ring(VirtualNodes::default())),
            other => {
                let count = other.strip_prefix("ring:").ok_or(PolicyError::Unknown)?;
                // What is no number is refused like one that is too large.
                let count = count.parse().unwrap_or(u32::MAX);
                VirtualNodes::new(count).map(Self::Ring).map_err(PolicyError::VirtualNodes)
            }
        }
    }
}

/// How many virtual nodes a node of weight 1 has on a ring: 1 to 1024, 8 unless set. A node of weight `w` has `w` times as
/// many, up to [`POINTS_MAX`](super::circle::POINTS_MAX): keep weights small on a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct VirtualNodes(u32);

/// A number of virtual nodes outside of the permitted range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("use {} to {} virtual nodes", VirtualNodes::MIN.0, VirtualNodes::MAX.0)]
pub struct VirtualNodesError;

impl VirtualNodes {
    /// The fewest.
    pub const MIN: Self = Self(1);
    /// The most.
    pub const MAX: Self = Self(1024);

    /// Takes a number of virtual nodes.
    ///
    /// # Errors
    /// [`VirtualNodesError`] if it is below [`VirtualNodes::MIN`] or above [`VirtualNodes::MAX`].
    pub const fn new(count: u32) -> Result<Self, VirtualNodesError> {
        if count < Self::MIN.0 || count > Self::MAX.0 { Err(VirtualNodesError) } else { Ok(Self(count)) }
    }

    /// How many a node of weight 1 has.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// How many a node of this weight has.
    #[must_use]
    pub const fn of_weight(self, weight: u32) -> u32 {
        let (count, most) = (self.0.saturating_mul(weight), super::circle::POINTS_MAX);
        if count < most { count } else { most }
    }
}

impl Default for VirtualNodes {
    fn default() -> Self {
        Self(8)
    }
}

impl TryFrom<u32> for VirtualNodes {
    type Error = VirtualNodesError;
    fn try_from(count: u32) -> Result<Self, VirtualNodesError> {
        Self::new(count)
    }
}

impl From<VirtualNodes> for u32 {
    fn from(count: VirtualNodes) -> u32 {
        count.0
    }
}

/// How far from its share a node may be, in thousandths: 1000 keeps every node within its share rounded down
/// and up, 1250 lets it have a quarter more or a fifth less before a held slot moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct LoadFactor(u32);

/// A load factor outside of the permitted range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a load factor of {permille} thousandths is refused: use {} to {}", LoadFactor::EXACT.0, LoadFactor::MAX.0)]
pub struct LoadFactorError {
    /// The thousandths that were given.
    pub permille: u32,
}

impl LoadFactor {
    /// Every node within its share, rounded down and up.
    pub const EXACT: Self = Self(1000);
    /// The widest: a hundred times the share.
    pub const MAX: Self = Self(100_000);

    /// Takes a factor in thousandths.
    ///
    /// # Errors
    /// [`LoadFactorError`] if it is below [`LoadFactor::EXACT`] or above [`LoadFactor::MAX`].
    pub const fn from_permille(permille: u32) -> Result<Self, LoadFactorError> {
        if permille < Self::EXACT.0 || permille > Self::MAX.0 {
            Err(LoadFactorError { permille })
        } else {
            Ok(Self(permille))
        }
    }

    /// The factor in thousandths.
    #[must_use]
    pub const fn permille(self) -> u32 {
        self.0
    }
}

impl Default for LoadFactor {
    fn default() -> Self {
        Self::EXACT
    }
}

impl TryFrom<u32> for LoadFactor {
    type Error = LoadFactorError;
    fn try_from(permille: u32) -> Result<Self, LoadFactorError> {
        Self::from_permille(permille)
    }
}

impl From<LoadFactor> for u32 {
    fn from(factor: LoadFactor) -> u32 {
        factor.0
    }
}

/// Which units of a workload a node can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runs {
    /// It runs the units below this one.
    pub units: u32,
    /// The most units of this workload that it runs at a time.
    pub cap: Option<u32>,
    /// How much it is preferred for orphans where the policy is [`Policy::Sticky`].
    pub priority: u32,
}

impl Runs {
    /// Every unit, as many as come, with no preference.
    pub const ALL: Self = Self { units: u32::MAX, cap: None, priority: 0 };
}

/// One live node, as its session and the operator's records describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSpec {
    /// Its part of the work, relative to the other nodes'. 0 counts as 1: use [`accepts`](Self::accepts) for a
    /// node that should get nothing.
    pub weight: u32,
    /// The failure domain that it is in.
    pub zone: Option<ZoneName>,
    /// The most slots that it holds at a time, of all workloads.
    pub capacity: Option<u32>,
    /// False while it takes nothing new (cordoned, unhealthy); it keeps what it holds.
    pub accepts: bool,
    /// True while everything that it holds should go elsewhere (draining, shutting down); it takes nothing.
    pub leaving: bool,
    /// The workloads that it can run. It is no candidate for others.
    pub runs: BTreeMap<WorkloadName, Runs>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl Default for NodeSpec {
    fn default() -> Self {
        Self {
            weight: 1,
            zone: None,
            capacity: None,
            accepts: true,
            leaving: false,
            runs: BTreeMap::new(),
            labels: BTreeMap::new(),
        }
    }
}

/// One workload, as its record describes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WorkloadSpec {
    /// How many units it has.
    pub units: u32,
    /// True while nothing of it should run.
    pub paused: bool,
    /// The most units of it that one node holds at a time.
    pub cap_per_node: Option<u32>,
    /// The zones that it may run in; empty for any.
    pub zones: BTreeSet<ZoneName>,
    /// The labels that a node must have, all of them.
    pub labels: BTreeMap<String, String>,
    /// Its own policy; the cluster's if there is none.
    pub policy: Option<Policy>,
}

/// Who should own a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Desired<'a> {
    /// This node.
    Node(&'a NodeId),
    /// Nobody, and why.
    Nobody(Reason),
}

impl<'a> Desired<'a> {
    /// The node, if there is one.
    #[must_use]
    pub fn node(&self) -> Option<&'a NodeId> {
        match self {
            Self::Node(node) => Some(node),
            Self::Nobody(_) => None,
        }
    }
}

/// Why no node may take a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// There is no such workload, or it has fewer units.
    NoSuchSlot,
    /// The workload is paused.
    Paused,
    /// No node is alive.
    NoNodes,
    /// None of the nodes runs this unit of this workload.
    NoneRunsIt,
    /// Nodes run it, but none of them is in the workload's zones and has its labels.
    ZoneOrLabels,
    /// Nodes could run it, but all of them are cordoned, unhealthy or leaving.
    NoneAccepts,
    /// All that could take it have refused it or did not take it in time.
    AllRefused,
    /// All that could take it are at their caps, and no exchange makes room.
    AllFull,
    /// It is pinned to a node that is not alive.
    PinnedToAbsent(NodeId),
    /// It is pinned to a node that may not take it.
    Pinned {
        /// That node.
        node: NodeId,
        /// What keeps it from taking the slot.
        because: Box<Reason>,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchSlot => f.write_str("there is no such slot"),
            Self::Paused => f.write_str("the workload is paused"),
            Self::NoNodes => f.write_str("no node is alive"),
            Self::NoneRunsIt => f.write_str("no node runs it"),
            Self::ZoneOrLabels => f.write_str("no node that runs it is in its zones and has its labels"),
            Self::NoneAccepts => f.write_str("every node that could run it is cordoned, unhealthy or leaving"),
            Self::AllRefused => f.write_str("every node that could run it has refused it or did not take it in time"),
            Self::AllFull => f.write_str("every node that could run it is at its cap"),
            Self::PinnedToAbsent(node) => write!(f, "it is pinned to {node}, which is not alive"),
            Self::Pinned { node, because } => write!(f, "it is pinned to {node}, which cannot take it: {because}"),
        }
    }
}

/// What keeps one node from being the one that should own a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Obstacle {
    /// It does not run the workload.
    RunsNothingOfIt,
    /// It runs only the units below this one.
    RunsBelow {
        /// How many it runs.
        units: u32,
    },
    /// It is in none of the workload's zones.
    Zone,
    /// It has not all of the workload's labels.
    Labels {
        /// Those that it has not, as `key=value`.
        missing: Vec<String>,
    },
    /// It is draining or shutting down.
    Leaving,
    /// It takes nothing new: cordoned or unhealthy.
    AcceptsNothing,
    /// It has refused the slot, or did not take it in time.
    Refused,
    /// The slot is pinned to another node.
    PinnedTo {
        /// That node.
        node: NodeId,
    },
    /// It has as many slots as it may hold.
    Capacity {
        /// So many.
        most: u32,
    },
    /// It has as many units of the workload as it may hold.
    Cap {
        /// So many.
        most: u32,
    },
    /// The slot stays with its holder, which takes nothing new and keeps what it has.
    HolderKeeps,
    /// The slot stays with its holder as long as that may hold it: the policy is [`Policy::Sticky`].
    HolderStays,
    /// It could run the slot, but the spread would get no better.
    NoGain,
    /// It could run the slot, but another has a higher priority or a better score.
    Outranked,
    /// It could run the slot, but a virtual node of another comes first on the ring.
    FurtherOnTheRing,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RunsNothingOfIt => f.write_str("it does not run the workload"),
            Self::RunsBelow { units } => write!(f, "it runs only the units below {units}"),
            Self::Zone => f.write_str("it is in none of the workload's zones"),
            Self::Labels { missing } => write!(f, "it has not the labels {}", missing.join(", ")),
            Self::Leaving => f.write_str("it is leaving"),
            Self::AcceptsNothing => f.write_str("it takes nothing new"),
            Self::Refused => f.write_str("it has refused the slot"),
            Self::PinnedTo { node } => write!(f, "the slot is pinned to {node}"),
            Self::Capacity { most } => write!(f, "it is full: its capacity is {most}"),
            Self::Cap { most } => write!(f, "it is full: it may hold {most} of the workload"),
            Self::HolderKeeps => f.write_str("the holder takes nothing new and keeps what it has"),
            Self::HolderStays => f.write_str("whoever holds the slot keeps it"),
            Self::NoGain => f.write_str("the spread would get no better"),
            Self::Outranked => f.write_str("another node ranks higher"),
            Self::FurtherOnTheRing => f.write_str("another node comes first on the ring"),
        }
    }
}

/// A live node, looked at as the owner of one slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Candidate {
    /// The node.
    pub node: NodeId,
    /// What keeps it from the slot; nothing for the node that the plan names.
    pub against: Option<Obstacle>,
    /// What it holds.
    pub held: Counts,
    /// What it has if everything goes as planned.
    pub planned: Counts,
    /// What its part is. None if it takes nothing of the workload.
    pub bands: Option<Bands>,
}

/// Why a held slot should move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Cause {
    /// The spread gets better: stabilizers may hold this move back.
    Policy,
    /// Its holder is draining or shutting down.
    Leaving,
    /// It is pinned to another node.
    Pin,
    /// Its holder may not run it any more: the workload, the unit, the zone or a label.
    Rule,
    /// Its holder is over a cap.
    Cap,
    /// An orphan that nobody else has room for needs its place; or, where the policy moves nothing by itself, a slot that is
    /// pinned to its holder.
    MakesRoom,
}

impl Cause {
    /// Whether the move is a proposal that stabilizers may hold back.
    #[must_use]
    pub const fn is_voluntary(self) -> bool {
        matches!(self, Self::Policy)
    }
}

/// A held slot that should be elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// The slot.
    pub slot: Slot,
    /// Where it should go.
    pub to: NodeId,
    /// Why.
    pub cause: Cause,
    /// Whether that node has room for it now, within its caps. A voluntary move waits until it has.
    pub has_room: bool,
}

/// A slot that nobody may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unplaced {
    /// The slot.
    pub slot: Slot,
    /// Who holds it although it should not, because there is nowhere to go; none for an orphan.
    pub holder: Option<NodeId>,
    /// Why nobody may take it.
    pub reason: Reason,
}

/// From how many to how many slots a node should have, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Band {
    /// The fewest.
    pub low: u32,
    /// The most.
    pub high: u32,
}

impl Band {
    /// The band that no count is outside of.
    pub const ANY: Self = Self { low: 0, high: u32::MAX };

    /// How far a count is outside of the band.
    #[must_use]
    pub const fn distance(self, count: u32) -> u32 {
        if count < self.low { self.low - count } else { count.saturating_sub(self.high) }
    }

    /// What the distance changes by if one more is added to this many.
    #[must_use]
    pub const fn on_gain(self, count: u32) -> i32 {
        if count < self.low {
            -1
        } else if count >= self.high {
            1
        } else {
            0
        }
    }

    /// What the distance changes by if one is taken from this many.
    #[must_use]
    pub const fn on_loss(self, count: u32) -> i32 {
        if count > self.high {
            -1
        } else if count <= self.low {
            1
        } else {
            0
        }
    }
}

/// How much one node should have: in all, and of one workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Bands {
    /// Slots of all workloads.
    pub total: Band,
    /// Slots of the one workload.
    pub of_workload: Band,
}

/// How much one node has: in all, and of one workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Slots of all workloads.
    pub total: u32,
    /// Slots of the one workload.
    pub of_workload: u32,
}

/// One node in a [summary](super::Planner::summary).
#[derive(Debug, Clone, PartialEq)]
pub struct NodeSummary {
    /// The node.
    pub node: NodeId,
    /// Its share of all slots, for display.
    pub share: f64,
    /// The band of that share.
    pub band: Band,
    /// How many slots it holds.
    pub held: u32,
    /// How many slots it should hold.
    pub desired: u32,
}
