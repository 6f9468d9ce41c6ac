//! What would happen if: the moves that a change would bring about, worked out without making it.
//!
//! A change is made to a copy of a view's records, and the copy is then led to where it comes to rest, by the plan that
//! every node makes and the rules by which nodes take, give and let go. When something happens belongs to the stabilizers
//! of each node; a forecast says what, and in which order.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::placement::{Band, Cause, Desired, LoadFactor, Policy, Reason};
use crate::records::{
    ClusterSettings, Declared, DynamicWorkloads, Holder, NodeInfo, NodeWish, Record, RecordKey, SessionRecord,
    SlotRecord, Stance, Versioned, WorkloadRecord,
};
use crate::room::{Caps, Keeper, Room, let_go};
use crate::store::Change;
use crate::{
    ClusterView, FencingToken, Incarnation, NodeId, OperationId, Revision, SessionId, Slot, Timestamp, WorkloadName,
    ZoneName,
};

/// So many times the plan is looked at anew. It is its own fixed point, so that more than a few are only needed where moves
/// wait for the room that others make.
const ROUNDS_MAX: usize = 64;

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

/// What would happen.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Forecast {
    /// What happens, in its order.
    pub steps: Vec<Step>,
    /// Every node that lives before or after, by name.
    pub nodes: Vec<NodeForecast>,
    /// The slots that nobody may take once all has happened, held or not.
    pub unplaced: Vec<UnplacedSlot>,
    /// The slots that should go to a node which never gets room for them.
    pub stuck: Vec<StuckSlot>,
    /// Nodes that were started with other settings than the cluster's: while there are any, only orphans move.
    pub settings_differ: Vec<NodeId>,
    /// The counts.
    pub totals: Totals,
}

/// One slot goes from one place to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Step {
    /// The slot.
    pub slot: Slot,
    /// Who holds it, or held it last, dead or alive.
    pub from: Option<NodeId>,
    /// Who gets it; nobody where it is let go.
    pub to: Option<NodeId>,
    /// Why.
    pub why: StepCause,
    /// It would happen without the change as well.
    pub anyway: bool,
}

/// Why a slot goes from one place to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StepCause {
    /// Nobody held it.
    Taken,
    /// The session of its holder is over.
    TakenOver,
    /// It is offered already.
    UnderWay {
        /// It must leave its holder.
        forced: bool,
    },
    /// It must leave its holder. No stabilizer holds it back.
    Forced(Cause),
    /// The spread gets better. Stabilizers may hold it back for a while.
    Voluntary,
    /// Its holder lets it go, though nobody can take it.
    LetGo(Reason),
    /// The session of its holder is over, and nobody may take it.
    Orphaned(Reason),
}

impl fmt::Display for StepCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Taken => f.write_str("taken: nobody holds it"),
            Self::TakenOver => f.write_str("taken over: its holder's session is over"),
            Self::UnderWay { forced: true } => f.write_str("under way: offered, as it must leave its holder"),
            Self::UnderWay { forced: false } => f.write_str("under way: offered for a better spread"),
            Self::Forced(Cause::Leaving) => f.write_str("forced: its holder is leaving"),
            Self::Forced(Cause::Pin) => f.write_str("forced: it is pinned there"),
            Self::Forced(Cause::Rule) => f.write_str("forced: its holder may not run it any more"),
            Self::Forced(Cause::Cap) => f.write_str("forced: its holder is over a cap"),
            Self::Voluntary | Self::Forced(Cause::Policy) => f.write_str("voluntary: the spread gets better"),
            Self::LetGo(reason) => write!(f, "let go: {reason}"),
            Self::Orphaned(reason) => write!(f, "orphaned: {reason}"),
        }
    }
}

/// One node before and after.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct NodeForecast {
    /// The node.
    pub node: NodeId,
    /// How many slots it holds now; nothing if it is not there yet.
    pub before: Option<u32>,
    /// How many it holds then; nothing if it is there no more.
    pub after: Option<u32>,
    /// How many should then be its part.
    pub share: Option<f64>,
    /// From how many to how many that may be.
    pub band: Option<Band>,
}

/// A slot that nobody may take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct UnplacedSlot {
    /// The slot.
    pub slot: Slot,
    /// Who keeps it although it should not; none for an orphan.
    pub holder: Option<NodeId>,
    /// Why nobody may take it.
    pub reason: Reason,
}

/// A slot whose way is never free.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct StuckSlot {
    /// The slot.
    pub slot: Slot,
    /// Who holds it.
    pub holder: Option<NodeId>,
    /// Who should.
    pub to: NodeId,
}

/// Counts over a forecast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Totals {
    /// The slots that exist before or after.
    pub slots: u32,
    /// Those of them that a node holds before, and the same one after.
    pub stay: u32,
    /// Steps to another node.
    pub moves: u32,
    /// Those of them that are voluntary, and not under way yet.
    pub voluntary: u32,
    /// Those of them that would be made without the change as well.
    pub anyway: u32,
    /// The slots that nobody may take once all has happened, held or not.
    pub unplaced: u32,
}

/// What would happen to a cluster if all this was so, one after the other.
///
/// The steps are those of nodes that act at the same time on the same records. Where they act one after the other, and
/// another place is as good as the one named here, a slot may find that: every node has its part all the same.
///
/// ```
/// use rendez_core::{ClusterView, Timestamp};
/// let quiet = rendez_core::forecast::predict(&ClusterView::new(), Timestamp::ZERO, &[]).unwrap();
/// assert!(quiet.steps.is_empty() && quiet.nodes.is_empty());
/// ```
///
/// # Errors
/// [`ForecastError`] if a supposition names what is not there.
pub fn predict(view: &ClusterView, now: Timestamp, suppositions: &[Supposition]) -> Result<Forecast, ForecastError> {
    let mut world = view.fork(now);
    let model = Model::of(view);
    for supposition in suppositions {
        let changes = changes(&world, now, &model, supposition)?;
        world.suppose(now, changes);
    }
    let mut run = Run::new(world, now);
    run.settle();
    let anyway: BTreeSet<(Slot, Option<NodeId>, Option<NodeId>)> = if suppositions.is_empty() {
        BTreeSet::new()
    } else {
        let mut run = Run::new(view.fork(now), now);
        run.settle();
        run.steps.into_iter().map(|step| (step.slot, step.from, step.to)).collect()
    };
    for step in &mut run.steps {
        step.anyway =
            suppositions.is_empty() || anyway.contains(&(step.slot.clone(), step.from.clone(), step.to.clone()));
    }
    Ok(run.forecast(view))
}

/// What a node that joins runs.
struct Model {
    ttl: Duration,
    info: Option<NodeInfo>,
}

impl Model {
    fn of(view: &ClusterView) -> Self {
        let mut model = Self { ttl: Duration::ZERO, info: None };
        for (_, record) in view.sessions() {
            model.ttl = model.ttl.max(record.ttl);
            let info = &record.info;
            let joined = model.info.get_or_insert_with(|| NodeInfo::new(info.node.clone(), info.settings.clone()));
            for (name, declared) in &info.workloads {
                let most = joined.workloads.entry(name.clone()).or_insert(Declared { units: 0, cap: None });
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
fn changes(
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

/// A world that is led to where it comes to rest.
struct Run {
    world: ClusterView,
    now: Timestamp,
    steps: Vec<Step>,
}

impl Run {
    fn new(world: ClusterView, now: Timestamp) -> Self {
        Self { world, now, steps: Vec::new() }
    }

    fn settle(&mut self) {
        self.finish_offers();
        for _ in 0..ROUNDS_MAX {
            let before = self.steps.len();
            // Orphans wait for no move, and what must not run waits for nothing.
            self.take_orphans();
            self.let_go();
            self.move_on();
            if self.steps.len() == before {
                return;
            }
        }
    }

    /// The live nodes, by name.
    fn nodes(&self) -> Vec<NodeId> {
        let live: BTreeSet<NodeId> = self.world.sessions().map(|(_, record)| record.info.node.clone()).collect();
        live.into_iter().collect()
    }

    fn held_by(&self, node: &NodeId) -> Vec<Slot> {
        let session = self.world.session_of(node);
        session.into_iter().flat_map(|id| self.world.held_by(id)).cloned().collect()
    }

    fn room_of(&self, node: &NodeId) -> Room {
        Room::taken_by(&self.held_by(node))
    }

    fn capacity_of(&self, node: &NodeId) -> Option<u32> {
        self.world.session(self.world.session_of(node)?)?.info.capacity
    }

    fn caps(&self, node: &NodeId, workload: &WorkloadName) -> Caps {
        Caps { capacity: self.capacity_of(node), of_workload: self.world.cap(node, workload) }
    }

    fn finish_offers(&mut self) {
        let offers = self.world.offers(self.now).filter_map(|(slot, record)| {
            let offer = self.world.standing_offer(self.now, record)?;
            let to = self.world.session(offer.to)?.info.node.clone();
            Some((slot.clone(), Some(to), StepCause::UnderWay { forced: offer.forced }))
        });
        let steps = offers.collect();
        self.make(steps);
    }

    fn take_orphans(&mut self) {
        let mut steps = Vec::new();
        for node in self.nodes() {
            let wanted = self.world.planner().wanted_by(&node);
            let mut room = self.room_of(&node);
            for slot in wanted {
                if room.take(self.caps(&node, &slot.workload), &slot) {
                    let before = self.world.slot(&slot).and_then(|record| record.holder.as_ref());
                    let why = if before.is_some() { StepCause::TakenOver } else { StepCause::Taken };
                    steps.push((slot, Some(node.clone()), why));
                }
            }
        }
        self.make(steps);
    }

    fn let_go(&mut self) {
        let reasons = self.reasons();
        let mut steps = Vec::new();
        for node in self.nodes() {
            let held = self.held_by(&node);
            let session = self.world.session_of(&node).and_then(|id| self.world.session(id));
            let Some(info) = session.map(|record| record.info.clone()) else { continue };
            let keeper = Keeper {
                node: &node,
                capacity: info.capacity,
                draining: info.stance == Stance::Draining || self.world.wish(&node).drain,
                held: &held,
                staying: &held.iter().cloned().collect(),
            };
            for slot in let_go(&mut self.world, &keeper) {
                let why = StepCause::LetGo(self.reason(&reasons, &slot));
                steps.push((slot, None, why));
            }
        }
        self.make(steps);
    }

    /// Makes the moves for which there is room: first those that no rule holds back.
    fn move_on(&mut self) {
        let mut rooms: BTreeMap<NodeId, Room> = BTreeMap::new();
        let mut moves = Vec::new();
        for node in self.nodes() {
            rooms.insert(node.clone(), self.room_of(&node));
            moves.extend(self.world.planner().leaving(&node).into_iter().map(|planned| (node.clone(), planned)));
        }
        moves.sort_by_key(|(_, planned)| planned.cause.is_voluntary());
        let mut steps = Vec::new();
        for (from, planned) in moves {
            let caps = self.caps(&planned.to, &planned.slot.workload);
            if !rooms.get_mut(&planned.to).is_some_and(|room| room.take(caps, &planned.slot)) {
                continue;
            }
            if let Some(room) = rooms.get_mut(&from) {
                room.count_out(&planned.slot);
            }
            let voluntary = planned.cause.is_voluntary();
            let why = if voluntary { StepCause::Voluntary } else { StepCause::Forced(planned.cause) };
            steps.push((planned.slot, Some(planned.to), why));
        }
        self.make(steps);
    }

    /// Why the plan has no place for slots of its own.
    fn reasons(&mut self) -> BTreeMap<Slot, Reason> {
        self.world.planner().unplaced().into_iter().map(|unplaced| (unplaced.slot, unplaced.reason)).collect()
    }

    /// Why nobody may take a slot.
    fn reason(&mut self, reasons: &BTreeMap<Slot, Reason>, slot: &Slot) -> Reason {
        match (reasons.get(slot), self.world.planner().desired(slot)) {
            (Some(reason), _) => reason.clone(),
            (None, Desired::Nobody(reason)) => reason,
            (None, Desired::Node(_)) => Reason::AllFull,
        }
    }

    /// Makes steps that have been decided from one plan.
    fn make(&mut self, mut steps: Vec<(Slot, Option<NodeId>, StepCause)>) {
        // All at once, or nearly: what cannot wait stands first.
        steps.sort_by(|(one, _, why), (other, _, because)| {
            (*why == StepCause::Voluntary, one).cmp(&(*because == StepCause::Voluntary, other))
        });
        let mut changes = Vec::new();
        for (slot, to, why) in steps {
            let known = self.world.slot(&slot).cloned();
            let from = known.as_ref().and_then(|record| record.holder.as_ref()).map(|holder| holder.node.clone());
            let session = to.as_ref().and_then(|node| self.world.session_of(node));
            let holder = session.zip(to.clone()).map(|(session, node)| Holder { session, node });
            let record = SlotRecord { holder, offer: None, ..known.unwrap_or_else(|| self.never_granted()) };
            changes.push(Change::Slot(slot.clone(), Some(record)));
            self.steps.push(Step { slot, from, to, why, anyway: false });
        }
        self.world.suppose(self.now, changes);
    }

    fn never_granted(&self) -> SlotRecord {
        SlotRecord {
            token: FencingToken::NONE,
            granted_by: OperationId::from_bits(0),
            holder: None,
            taken_at: self.world.store_now(self.now),
            freed_at: None,
            moved_at: None,
            offer: None,
            refusals: Vec::new(),
            force: None,
            checkpoint: None,
            revision: Revision::default(),
        }
    }

    /// What has happened since this view.
    fn forecast(mut self, before: &ClusterView) -> Forecast {
        let mut slots = before.known_slots();
        slots.extend(self.world.known_slots());
        let mut counts: BTreeMap<NodeId, (Option<u32>, Option<u32>)> = BTreeMap::new();
        for (_, record) in before.sessions() {
            counts.entry(record.info.node.clone()).or_default().0 = Some(0);
        }
        for (_, record) in self.world.sessions() {
            counts.entry(record.info.node.clone()).or_default().1 = Some(0);
        }
        let reasons = self.reasons();
        let stopped: BTreeSet<Slot> =
            self.steps.iter().filter(|step| step.to.is_none()).map(|step| step.slot.clone()).collect();
        let mut totals = Totals::default();
        for slot in &slots {
            let (old, new) = (before.holder(slot).cloned(), self.world.holder(slot).cloned());
            if let Some(count) = old.as_ref().and_then(|node| counts.get_mut(node)?.0.as_mut()) {
                *count += 1;
            }
            if let Some(count) = new.as_ref().and_then(|node| counts.get_mut(node)?.1.as_mut()) {
                *count += 1;
            }
            totals.stay += u32::from(old.is_some() && old == new);
            if old.is_some() && new.is_none() && !stopped.contains(slot) {
                let why = StepCause::Orphaned(self.reason(&reasons, slot));
                self.steps.push(Step { slot: slot.clone(), from: old, to: None, why, anyway: false });
            }
        }
        let unplaced: Vec<UnplacedSlot> = self.world.planner().unplaced().into_iter().map(UnplacedSlot::from).collect();
        totals.slots = slots.iter().filter(|slot| exists(before, slot) || exists(&self.world, slot)).count() as u32;
        totals.unplaced = unplaced.len() as u32;
        let moves = self.steps.iter().filter(|step| step.to.is_some() && step.from.is_some());
        for step in moves {
            totals.moves += 1;
            totals.voluntary += u32::from(step.why == StepCause::Voluntary);
            totals.anyway += u32::from(step.anyway);
        }
        let stuck = self.stuck();
        Forecast {
            nodes: self.node_forecasts(counts),
            unplaced,
            stuck,
            settings_differ: self.world.settings_differ(),
            totals,
            steps: self.steps,
        }
    }

    fn node_forecasts(&mut self, counts: BTreeMap<NodeId, (Option<u32>, Option<u32>)>) -> Vec<NodeForecast> {
        let summaries: BTreeMap<_, _> =
            self.world.planner().summary().into_iter().map(|summary| (summary.node.clone(), summary)).collect();
        let named = counts.into_iter().map(|(node, (before, after))| {
            let summary = summaries.get(&node);
            NodeForecast {
                before,
                after,
                share: summary.map(|summary| summary.share),
                band: summary.map(|summary| summary.band),
                node,
            }
        });
        named.collect()
    }

    /// What the plan would still move.
    fn stuck(&mut self) -> Vec<StuckSlot> {
        let mut stuck = Vec::new();
        for node in self.nodes() {
            let orphans = self.world.planner().wanted_by(&node).into_iter();
            stuck.extend(orphans.map(|slot| StuckSlot { slot, holder: None, to: node.clone() }));
            let moves = self.world.planner().leaving(&node).into_iter();
            stuck.extend(moves.map(|planned| StuckSlot {
                slot: planned.slot,
                holder: Some(node.clone()),
                to: planned.to,
            }));
        }
        stuck.sort_by(|one, other| one.slot.cmp(&other.slot));
        stuck
    }
}

impl From<crate::placement::Unplaced> for UnplacedSlot {
    fn from(unplaced: crate::placement::Unplaced) -> Self {
        Self { slot: unplaced.slot, holder: unplaced.holder, reason: unplaced.reason }
    }
}

/// Whether a slot is a unit of a workload, or held all the same.
fn exists(view: &ClusterView, slot: &Slot) -> bool {
    view.holder(slot).is_some() || view.workloads().any(|(name, spec)| *name == slot.workload && slot.unit < spec.units)
}
