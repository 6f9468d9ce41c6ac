//! What people and programs are told about a cluster: who is there, who runs what, and why where that is not as it
//! should be.
//!
//! Made from a view, by the plan that every node makes from the same records. Only plain data: how it is printed is
//! for whoever prints it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

use crate::placement::{Cause, Desired, Reason};
use crate::stabilizer::HeldBack;
use crate::{ClusterView, FencingToken, NodeId, SessionId, Slot, Stance, Timestamp, WorkloadName, ZoneName};

/// A cluster, as one reader sees it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Status {
    /// The live nodes, by name.
    pub nodes: Vec<NodeStatus>,
    /// The workloads, by name.
    pub workloads: Vec<WorkloadStatus>,
    /// The slots.
    pub slots: Vec<SlotStatus>,
    /// Nodes that were started with other settings than the cluster's: while there are any, only orphans move.
    pub settings_differ: Vec<NodeId>,
}

/// A live node.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct NodeStatus {
    /// Its name.
    pub node: NodeId,
    /// Its session.
    pub session: SessionId,
    /// Its weight, as the plan uses it.
    pub weight: u32,
    /// The failure domain that it is in.
    pub zone: Option<ZoneName>,
    /// What it may be given.
    pub state: NodeState,
    /// How many slots it holds.
    pub holds: u32,
    /// How many should be its part.
    pub share: f64,
}

/// What a node may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NodeState {
    /// Its share.
    Active,
    /// Nothing new: it or an operator says so.
    Cordoned,
    /// Nothing new: it is not well.
    Unhealthy,
    /// Nothing, and it hands off what it holds.
    Draining,
}

impl NodeState {
    /// The word used in tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Cordoned => "cordoned",
            Self::Unhealthy => "unhealthy",
            Self::Draining => "draining",
        }
    }
}

/// A workload, counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WorkloadStatus {
    /// Its name.
    pub workload: WorkloadName,
    /// How many units it has.
    pub units: u32,
    /// How many of them a live node holds.
    pub held: u32,
    /// How many of them nobody holds.
    pub orphans: u32,
    /// How many of them another node should hold, or none.
    pub misplaced: u32,
}

/// A slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SlotStatus {
    /// The slot.
    pub slot: Slot,
    /// The live node that holds it.
    pub holder: Option<NodeId>,
    /// The token of its last grant.
    pub token: FencingToken,
    /// The node that should hold it.
    pub desired: Option<NodeId>,
    /// Why it is an orphan or misplaced; nothing where all is well.
    #[serde(serialize_with = "as_words")]
    pub why: Option<Why>,
}

pub(crate) fn as_words<S: serde::Serializer>(why: &Option<Why>, serializer: S) -> Result<S::Ok, S::Error> {
    match why {
        Some(why) => serializer.collect_str(why),
        None => serializer.serialize_none(),
    }
}

/// Why a slot is an orphan or misplaced.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Why {
    /// No node may take it.
    Nobody(Reason),
    /// A node is about to take it.
    Awaited(NodeId),
    /// It is offered to another node, which gets ready or waits for its runner to end.
    Offered(NodeId),
    /// It will move, for this cause. Where a rule holds the move back, this says which; only the slot's own holder
    /// knows all of them.
    Moves {
        /// Where to.
        to: NodeId,
        /// Why.
        cause: Cause,
        /// What holds it back.
        held_back: Option<HeldBack>,
    },
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nobody(reason) => fmt::Display::fmt(reason, f),
            Self::Awaited(node) => write!(f, "{node} is about to take it"),
            Self::Offered(node) => write!(f, "it is offered to {node}"),
            Self::Moves { to, cause, held_back } => {
                match cause {
                    Cause::Policy => write!(f, "it will move to {to} for a better spread")?,
                    Cause::Leaving => write!(f, "it goes to {to}: its holder is leaving")?,
                    Cause::Pin => write!(f, "it goes to {to}, to which it is pinned")?,
                    Cause::Rule => write!(f, "it goes to {to}: its holder may not run it any more")?,
                    Cause::Cap => write!(f, "it goes to {to}: its holder is over a cap")?,
                    Cause::MakesRoom => write!(f, "it goes to {to}: its holder makes room for an orphan")?,
                }
                match held_back {
                    Some(reason) => write!(f, "; it waits: {reason}"),
                    None => Ok(()),
                }
            }
        }
    }
}

impl Status {
    /// The status that follows from a view. `held_back` names what the reader knows to hold moves back.
    #[must_use]
    pub fn of(view: &mut ClusterView, now: Timestamp, held_back: &BTreeMap<Slot, HeldBack>) -> Self {
        let slots = slots(view, now, held_back);
        Self { nodes: nodes(view), workloads: workloads(&slots), settings_differ: view.settings_differ(), slots }
    }
}

fn nodes(view: &mut ClusterView) -> Vec<NodeStatus> {
    let summaries: BTreeMap<_, _> =
        view.planner().summary().into_iter().map(|summary| (summary.node.clone(), summary)).collect();
    let mut nodes: Vec<NodeStatus> = view
        .sessions()
        .map(|(session, record)| {
            let info = &record.info;
            let wish = view.wish(&info.node);
            let summary = summaries.get(&info.node);
            NodeStatus {
                node: info.node.clone(),
                session,
                weight: wish.weight.unwrap_or(info.weight),
                zone: info.zone.clone(),
                state: match info.stance {
                    _ if wish.drain => NodeState::Draining,
                    Stance::Draining => NodeState::Draining,
                    Stance::Active if wish.cordon => NodeState::Cordoned,
                    Stance::Cordoned => NodeState::Cordoned,
                    Stance::Active if !info.healthy => NodeState::Unhealthy,
                    Stance::Active => NodeState::Active,
                },
                holds: summary.map_or(0, |summary| summary.held),
                share: summary.map_or(0.0, |summary| summary.share),
            }
        })
        .collect();
    nodes.sort_by(|one, other| one.node.cmp(&other.node));
    nodes
}

fn slots(view: &mut ClusterView, now: Timestamp, held_back: &BTreeMap<Slot, HeldBack>) -> Vec<SlotStatus> {
    let mut all: BTreeMap<Slot, Option<NodeId>> =
        view.planner().assignments().map(|(slot, node)| (slot, node.cloned())).collect();
    // What is still held, though there is no such slot any more.
    let held: BTreeSet<Slot> = view.sessions().flat_map(|(session, _)| view.held_by(session)).cloned().collect();
    for slot in held {
        all.entry(slot).or_default();
    }
    let mut causes: BTreeMap<Slot, Cause> = BTreeMap::new();
    let live: Vec<NodeId> = view.sessions().map(|(_, record)| record.info.node.clone()).collect();
    for node in live {
        causes.extend(view.planner().leaving(&node).into_iter().map(|planned| (planned.slot, planned.cause)));
    }
    let offered: BTreeMap<Slot, NodeId> = view
        .offers(now)
        .filter_map(|(slot, record)| {
            let receiver = view.session(record.offer.as_ref()?.to)?;
            Some((slot.clone(), receiver.info.node.clone()))
        })
        .collect();
    all.into_iter()
        .map(|(slot, desired)| {
            let holder = view.holder(&slot).cloned();
            let why = match (&holder, &desired) {
                (Some(holder), Some(desired)) if holder == desired => None,
                (_, None) => match view.planner().desired(&slot) {
                    Desired::Node(_) => None,
                    Desired::Nobody(reason) => Some(Why::Nobody(reason)),
                },
                (None, Some(desired)) => Some(Why::Awaited(desired.clone())),
                (Some(_), Some(desired)) => Some(match offered.get(&slot) {
                    Some(to) => Why::Offered(to.clone()),
                    None => Why::Moves {
                        to: desired.clone(),
                        cause: causes.get(&slot).copied().unwrap_or(Cause::Policy),
                        held_back: held_back.get(&slot).cloned(),
                    },
                }),
            };
            let token = view.slot(&slot).map_or(FencingToken::NONE, |record| record.token);
            SlotStatus { slot, holder, token, desired, why }
        })
        .collect()
}

fn workloads(slots: &[SlotStatus]) -> Vec<WorkloadStatus> {
    let mut workloads: BTreeMap<WorkloadName, WorkloadStatus> = BTreeMap::new();
    for status in slots {
        let name = &status.slot.workload;
        let workload = workloads.entry(name.clone()).or_insert_with(|| WorkloadStatus {
            workload: name.clone(),
            units: 0,
            held: 0,
            orphans: 0,
            misplaced: 0,
        });
        workload.units += 1;
        match &status.holder {
            Some(holder) => {
                workload.held += 1;
                workload.misplaced += u32::from(status.desired.as_ref() != Some(holder));
            }
            None => workload.orphans += 1,
        }
    }
    workloads.into_values().collect()
}
