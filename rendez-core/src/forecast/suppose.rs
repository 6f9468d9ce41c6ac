//! What is supposed, and the changes of records that make it true.
//!
//! What follows from them is for the plan to say.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::placement::{LoadFactor, Policy};
use crate::records::{
    ClusterSettings, Declared, DynamicWorkloads, NodeInfo, NodeWish, Record, RecordKey, SessionRecord, Versioned,
    WorkloadRecord,
};
use crate::store::Change;
use crate::{ClusterView, Incarnation, NodeId, Revision, SessionId, Timestamp, WorkloadName, ZoneName};

/// Something that could happen to a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Supposition {
    /// A node's session ends.
    Goes(NodeId),
    /// A node comes.
    Joins(Joining),
    /// An operator gives a node another weight.
    Weight(NodeId, u32),
    /// A node is in another zone.
    Zone(NodeId, ZoneName),
    /// A node may hold so many slots of all workloads; any number if there is none.
    Capacity(NodeId, Option<u32>),
    /// An operator drains a node.
    Drain(NodeId),
    /// An operator cordons a node.
    Cordon(NodeId),
    /// A workload has so many units: every node that declares it declares so many, or its record says so.
    Units(WorkloadName, u32),
    /// The cluster, and every node in it, has another policy.
    Policy(Policy),
    /// The cluster, and every node in it, has another load factor.
    LoadFactor(LoadFactor),
}

/// A node that comes. It runs every workload that any node runs which lives before all suppositions: as many units as the
/// one that declares the most, and with that one's cap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joining {
    /// Its name.
    pub node: NodeId,
    /// Its weight.
    pub weight: u32,
    /// The failure domain that it is in.
    pub zone: Option<ZoneName>,
    /// The most slots that it holds.
    pub capacity: Option<u32>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl Joining {
    /// A node of weight 1 without limits.
    #[must_use]
    pub const fn new(node: NodeId) -> Self {
        Self { node, weight: 1, zone: None, capacity: None, labels: BTreeMap::new() }
    }
}

/// Why something cannot be supposed. Nothing was worked out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ForecastError {
    /// The node is not alive.
    #[error("no node {node} is alive; alive: {}", listed(live))]
    NoSuchNode {
        /// The node that was named.
        node: NodeId,
        /// Those that are alive.
        live: Vec<NodeId>,
    },
    /// The node that shall join is there.
    #[error("{node} is alive already: a node that joins needs another name, or let it go first")]
    IsAlive {
        /// That node.
        node: NodeId,
    },
    /// Nothing says what a node that joins would run.
    #[error("no node is alive that shows what {node} would run")]
    NobodyToFollow {
        /// The node that shall join.
        node: NodeId,
    },
    /// There is no such workload.
    #[error("there is no workload {workload}; there are: {}", listed(known))]
    NoSuchWorkload {
        /// The workload that was named.
        workload: WorkloadName,
        /// Those that exist.
        known: Vec<WorkloadName>,
    },
    /// No node has ever taken part in the cluster.
    #[error("the cluster has no settings yet: no node has ever taken part in it")]
    NoSettings,
}

/// Names in a message.
pub(crate) fn listed<T: fmt::Display>(names: &[T]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// What a node that joins runs.
pub(super) struct Model {
    ttl: Duration,
    info: Option<NodeInfo>,
}

impl Model {
    pub(super) fn of(view: &ClusterView) -> Self {
        let mut model = Self { ttl: Duration::ZERO, info: None };
        for (_, record) in view.sessions() {
            model.ttl = model.ttl.max(record.ttl);
            let info = &record.info;
            let joined = model.info.get_or_insert_with(|| NodeInfo::new(info.node.clone(), info.settings.clone()));
            for (name, declared) in &info.workloads {
                let most = joined.workloads.entry(name.clone()).or_insert(Declared::new(0));
                if most.units < declared.units {
                    *most = *declared;
                }
            }
            joined.dynamic = either(&joined.dynamic, &info.dynamic);
        }
        model
    }
}

fn either(one: &DynamicWorkloads, other: &DynamicWorkloads) -> DynamicWorkloads {
    match (one, other) {
        (DynamicWorkloads::All, _) | (_, DynamicWorkloads::All) => DynamicWorkloads::All,
        (DynamicWorkloads::None, names) | (names, DynamicWorkloads::None) => names.clone(),
        (DynamicWorkloads::Only(one), DynamicWorkloads::Only(other)) => DynamicWorkloads::Only(one | other),
    }
}

/// The changes of records that make a supposition true.
pub(super) fn changes(
    world: &ClusterView,
    now: Timestamp,
    model: &Model,
    supposition: &Supposition,
) -> Result<Vec<Change>, ForecastError> {
    let one = |change: Change| Ok(vec![change]);
    match supposition {
        Supposition::Goes(node) => one(Change::Session(session(world, node)?.0, None)),
        Supposition::Joins(joining) => one(joins(world, now, model, joining)?),
        Supposition::Zone(node, zone) => one(told(world, node, |info| info.zone = Some(zone.clone()))?),
        Supposition::Capacity(node, capacity) => one(told(world, node, |info| info.capacity = *capacity)?),
        Supposition::Weight(node, weight) => one(wished(world, node, |wish| wish.weight = Some(*weight))?),
        Supposition::Drain(node) => one(wished(world, node, |wish| wish.drain = true)?),
        Supposition::Cordon(node) => one(wished(world, node, |wish| wish.cordon = true)?),
        Supposition::Units(workload, units) => units_of(world, workload, *units),
        Supposition::Policy(policy) => settings(world, |settings| settings.policy = *policy),
        Supposition::LoadFactor(factor) => settings(world, |settings| settings.load_factor = *factor),
    }
}

fn session<'a>(world: &'a ClusterView, node: &NodeId) -> Result<(SessionId, &'a SessionRecord), ForecastError> {
    world.sessions().find(|(_, record)| record.info.node == *node).ok_or_else(|| {
        let mut live: Vec<NodeId> = world.sessions().map(|(_, record)| record.info.node.clone()).collect();
        live.sort();
        ForecastError::NoSuchNode { node: node.clone(), live }
    })
}

fn joins(world: &ClusterView, now: Timestamp, model: &Model, joining: &Joining) -> Result<Change, ForecastError> {
    let node = joining.node.clone();
    if world.session_of(&node).is_some() {
        return Err(ForecastError::IsAlive { node });
    }
    let Some(info) = &model.info else { return Err(ForecastError::NobodyToFollow { node }) };
    let mut info = NodeInfo { node, ..info.clone() };
    info.weight = joining.weight.max(1);
    info.zone = joining.zone.clone();
    info.capacity = joining.capacity;
    info.labels = joining.labels.clone();
    if let Some(settings) = world.settings() {
        info.settings = settings.clone();
    }
    // Any id that no session has: nobody but this forecast ever sees it.
    let free = (0..).map(SessionId::from_bits).find(|id| world.session(*id).is_none());
    let record = SessionRecord {
        incarnation: Incarnation::from_bits(0),
        opened_at: world.store_now(now),
        ttl: model.ttl,
        info: Arc::new(info),
        revision: Revision::default(),
    };
    Ok(Change::Session(free.unwrap_or(SessionId::from_bits(0)), Some(record)))
}

/// A node tells something else about itself.
fn told(world: &ClusterView, node: &NodeId, tell: impl FnOnce(&mut NodeInfo)) -> Result<Change, ForecastError> {
    let (id, record) = session(world, node)?;
    Ok(retold(id, record, tell))
}

fn retold(id: SessionId, record: &SessionRecord, tell: impl FnOnce(&mut NodeInfo)) -> Change {
    let mut record = record.clone();
    tell(Arc::make_mut(&mut record.info));
    Change::Session(id, Some(record))
}

/// An operator wishes something else for a node.
fn wished(world: &ClusterView, node: &NodeId, wish: impl FnOnce(&mut NodeWish)) -> Result<Change, ForecastError> {
    session(world, node)?;
    let mut record = world.wish(node);
    wish(&mut record);
    Ok(written(RecordKey::Node(node.clone()), Record::Node(record)))
}

fn written(key: RecordKey, record: Record) -> Change {
    Change::Record(key, Some(Versioned { record, revision: Revision::default() }))
}

fn units_of(world: &ClusterView, workload: &WorkloadName, units: u32) -> Result<Vec<Change>, ForecastError> {
    let declaring = world.sessions().filter(|(_, record)| record.info.workloads.contains_key(workload));
    let mut changes: Vec<Change> = declaring
        .map(|(id, record)| {
            retold(id, record, |info| {
                if let Some(declared) = info.workloads.get_mut(workload) {
                    declared.units = units;
                }
            })
        })
        .collect();
    let key = RecordKey::Workload(workload.clone());
    if let Some(Versioned { record: Record::Workload(record), .. }) = world.record(&key) {
        changes.push(written(key, Record::Workload(WorkloadRecord { units, ..record.clone() })));
    }
    if changes.is_empty() {
        let known = world.workloads().map(|(name, _)| name.clone()).collect();
        return Err(ForecastError::NoSuchWorkload { workload: workload.clone(), known });
    }
    Ok(changes)
}

fn settings(world: &ClusterView, set: impl Fn(&mut ClusterSettings)) -> Result<Vec<Change>, ForecastError> {
    let mut settings = world.settings().cloned().ok_or(ForecastError::NoSettings)?;
    set(&mut settings);
    let sessions = world.sessions().map(|(id, record)| retold(id, record, |info| set(&mut info.settings)));
    let mut changes: Vec<Change> = sessions.collect();
    changes.push(written(RecordKey::Settings, Record::Settings(settings)));
    Ok(changes)
}
