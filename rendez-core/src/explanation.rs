//! Why one slot is where it is.
//!
//! Told from a view: the plan's reasons, the records, and the stabilizers as far as the store knows what they look at.
//! Nothing is decided here. What only the slot's own holder knows is named and left open.

use std::time::Duration;

use serde::Serialize;

use crate::forecast::listed;
use crate::placement::{Candidate, Cause, Desired, Obstacle, Policy, Reason};
use crate::records::{Record, RecordKey, Refused, SlotRecord};
use crate::stabilizer::{HeldBack, MoveFacts, all_that_hold_back};
use crate::status::{NodeState, Why, as_words};
use crate::{
    ClusterView, FencingToken, NodeId, SessionId, Slot, Stabilizers, Status, StoreTime, Timestamp, WorkloadName,
};

/// Why a slot is where it is.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Explanation {
    /// The slot.
    pub slot: Slot,
    /// The store's clock when this was so.
    pub now: StoreTime,
    /// How the slot is placed.
    pub policy: Policy,
    /// Who holds it.
    pub holder: Option<Holding>,
    /// Who held it last and is not there any more.
    pub last_holder: Option<NodeId>,
    /// The token of its last grant.
    pub token: FencingToken,
    /// When it was last granted.
    pub taken_at: Option<StoreTime>,
    /// When it was last released, if that was after it was taken.
    pub freed_at: Option<StoreTime>,
    /// When it last moved voluntarily.
    pub moved_at: Option<StoreTime>,
    /// The node that an operator has pinned it to.
    pub pinned_to: Option<NodeId>,
    /// The node that the plan names for it.
    pub desired: Option<NodeId>,
    /// The node that takes it now if it is an orphan: another than `desired` where that has no room yet.
    pub taker: Option<NodeId>,
    /// Why it is an orphan or misplaced; nothing where all is well.
    #[serde(serialize_with = "as_words")]
    pub why: Option<Why>,
    /// Why it should leave its holder and cannot: nobody else may take it.
    pub kept: Option<Reason>,
    /// The offer that stands.
    pub offer: Option<StandingOffer>,
    /// The live nodes, in the order of their scores for the slot, the best first.
    pub candidates: Vec<Ranked>,
    /// What holds it back, if its holder should hand it over and has not offered it yet.
    pub waiting: Option<Waiting>,
}

/// A node that holds a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Holding {
    /// The node.
    pub node: NodeId,
    /// The session that the lease hangs on.
    pub session: SessionId,
    /// When the slot was granted to it.
    pub since: StoreTime,
}

/// An offer that stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct StandingOffer {
    /// Who it is made to.
    pub to: NodeId,
    /// The slot must leave its holder.
    pub forced: bool,
    /// The receiver has said that it is ready.
    pub ready: bool,
    /// When it ends by itself.
    pub expires_at: StoreTime,
}

/// A node as a candidate for the slot.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Ranked {
    /// What the plan makes of it.
    #[serde(flatten)]
    pub candidate: Candidate,
    /// What it may be given.
    pub state: NodeState,
    /// Until when it refuses the slot.
    pub refused_until: Option<StoreTime>,
}

/// A slot that should move, and has not been offered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Waiting {
    /// Where it should go.
    pub to: NodeId,
    /// Why it should.
    pub cause: Cause,
    /// All rules that hold it back for certain, the first first. The store does not know when nodes went, how long the
    /// runner has run and what its holder has offered lately: a rule that is not here may hold it back all the same.
    pub held_back: Vec<HeldBack>,
    /// No rule that is known lets it go before; nothing if one of them does not end by itself, or none is known.
    pub not_before: Option<StoreTime>,
}

/// Why there is nothing to explain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExplainError {
    /// There is no such workload.
    #[error("there is no workload {workload}; there are: {}", listed(known))]
    NoSuchWorkload {
        /// The workload that was named.
        workload: WorkloadName,
        /// Those that exist.
        known: Vec<WorkloadName>,
    },
    /// The workload has fewer units.
    #[error("there is no slot {slot}: {} has the units 0 to {}", slot.workload, units.saturating_sub(1))]
    NoSuchUnit {
        /// The slot that was named.
        slot: Slot,
        /// How many units the workload has.
        units: u32,
    },
}

/// Says why a slot is where it is. `rules` are those of the node that holds it.
///
/// # Errors
/// [`ExplainError`] if there is no such slot, and nobody holds it.
pub fn explain(
    view: &mut ClusterView,
    now: Timestamp,
    slot: &Slot,
    rules: &Stabilizers,
) -> Result<Explanation, ExplainError> {
    exists(view, slot)?;
    let record = view.slot(slot).cloned();
    let holder = view.holder(slot).cloned();
    let waiting = holder.as_ref().and_then(|holder| waiting(view, now, slot, holder, rules));
    let known = waiting.iter().filter_map(|waiting| Some((slot.clone(), waiting.held_back.first()?.clone()))).collect();
    let status = Status::of(view, now, &known);
    let why = match status.slots.iter().find(|status| status.slot == *slot) {
        Some(status) => status.why.clone(),
        // Of a paused workload only what is held has a status.
        None => match view.planner().desired(slot) {
            Desired::Nobody(reason) => Some(Why::Nobody(reason)),
            Desired::Node(_) => None,
        },
    };
    let refusals: Vec<Refused> = record.as_ref().map(|record| record.refusals.clone()).unwrap_or_default();
    let store_now = view.store_now(now);
    let candidates = view.planner().candidates(slot).into_iter().map(|candidate| {
        let state = status.nodes.iter().find(|status| status.node == candidate.node);
        let refused = refusals.iter().find(|refused| refused.node == candidate.node && refused.until > store_now);
        Ranked {
            state: state.map_or(NodeState::Active, |status| status.state),
            refused_until: refused.map(|refused| refused.until),
            candidate,
        }
    });
    let candidates = candidates.collect();
    let held = record.as_ref().and_then(|record| record.holder.as_ref().map(|holder| (record, holder)));
    Ok(Explanation {
        slot: slot.clone(),
        now: store_now,
        policy: view.planner().policy_of(slot),
        last_holder: held.filter(|_| holder.is_none()).map(|(_, holder)| holder.node.clone()),
        holder: held.filter(|_| holder.is_some()).map(|(record, holder)| Holding {
            node: holder.node.clone(),
            session: holder.session,
            since: record.taken_at,
        }),
        token: record.as_ref().map_or(FencingToken::NONE, |record| record.token),
        taken_at: record.as_ref().filter(|record| record.token != FencingToken::NONE).map(|record| record.taken_at),
        freed_at: record.as_ref().and_then(|record| record.freed_at),
        moved_at: record.as_ref().and_then(|record| record.moved_at),
        pinned_to: pin(view, slot),
        desired: view.planner().desired(slot).node().cloned(),
        taker: view.planner().taker(slot).cloned(),
        why,
        kept: view
            .planner()
            .unplaced()
            .into_iter()
            .find(|it| it.slot == *slot && it.holder.is_some())
            .map(|it| it.reason),
        offer: record.as_ref().and_then(|record| offer(view, now, record)),
        candidates,
        waiting,
    })
}

fn exists(view: &ClusterView, slot: &Slot) -> Result<(), ExplainError> {
    if view.holder(slot).is_some() {
        return Ok(());
    }
    match view.workloads().find(|(name, _)| **name == slot.workload) {
        Some((_, spec)) if slot.unit < spec.units => Ok(()),
        Some((_, spec)) => Err(ExplainError::NoSuchUnit { slot: slot.clone(), units: spec.units }),
        None => {
            let known = view.workloads().map(|(name, _)| name.clone()).collect();
            Err(ExplainError::NoSuchWorkload { workload: slot.workload.clone(), known })
        }
    }
}

fn pin(view: &ClusterView, slot: &Slot) -> Option<NodeId> {
    match &view.record(&RecordKey::Pin(slot.clone()))?.record {
        Record::Pin(node) => Some(node.clone()),
        Record::Settings(_) | Record::Workload(_) | Record::Node(_) => None,
    }
}

fn offer(view: &ClusterView, now: Timestamp, record: &SlotRecord) -> Option<StandingOffer> {
    let offer = view.standing_offer(now, record)?;
    let to = view.session(offer.to)?.info.node.clone();
    Some(StandingOffer { to, forced: offer.forced, ready: offer.ready, expires_at: offer.expires_at })
}

/// What holds a slot back that should leave this node. In the plan an offer counts as done: what is offered is not here.
fn waiting(
    view: &mut ClusterView,
    now: Timestamp,
    slot: &Slot,
    holder: &NodeId,
    rules: &Stabilizers,
) -> Option<Waiting> {
    let planned = view.planner().leaving(holder).into_iter().find(|planned| planned.slot == *slot)?;
    let mut waiting = Waiting { to: planned.to, cause: planned.cause, held_back: Vec::new(), not_before: None };
    if !planned.cause.is_voluntary() {
        return Some(waiting);
    }
    let store_now = view.store_now(now);
    let record = view.slot(slot)?.clone();
    let is_well = |node: &NodeId| {
        let session = view.session_of(node).and_then(|id| view.session(id));
        session.is_some_and(|record| record.info.healthy)
    };
    let unhealthy = [holder, &waiting.to].into_iter().find(|node| !is_well(node));
    let settings_differ = view.settings_differ().into_iter().next();
    let last_join = view.sessions().map(|(_, record)| record.opened_at).max().unwrap_or_default();
    let under_way = view.offers(now).filter(|(_, record)| record.offer.as_ref().is_some_and(|offer| !offer.forced));
    let under_way = under_way.count() as u32;
    let move_budget = view.settings().map_or(u32::MAX, |settings| settings.move_budget);
    let slots_after = view.planner().held(holder, &slot.workload).total.saturating_sub(1);
    let facts = MoveFacts {
        settings_differ: settings_differ.as_ref(),
        unhealthy,
        full: (!planned.has_room).then_some(&waiting.to),
        refused: view.refused_lately(now, slot, rules.candidate_grace),
        // Nodes that went, and other changes, are later than the store can tell; a runner starts after the grant. What
        // these times hold back is held back at least as long.
        since_membership: store_now.since(last_join),
        since_move: record.moved_at.map(|at| store_now.since(at)),
        runtime: store_now.since(record.taken_at),
        slots_after,
        // Known to the holder only.
        offered: 0,
        under_way,
        move_budget,
    };
    waiting.held_back = all_that_hold_back(rules, &facts);
    let remaining: Option<Vec<_>> = waiting.held_back.iter().map(remaining).collect();
    waiting.not_before = remaining.and_then(|times| times.into_iter().max()).map(|longest| store_now + longest);
    Some(waiting)
}

/// How much longer a rule holds back, if that is only a matter of time.
fn remaining(rule: &HeldBack) -> Option<Duration> {
    match rule {
        HeldBack::Settling { remaining }
        | HeldBack::Cooldown { remaining }
        | HeldBack::RuntimeMin { remaining }
        | HeldBack::Refused { remaining, .. } => Some(*remaining),
        HeldBack::SheddingOff
        | HeldBack::SettingsDiffer { .. }
        | HeldBack::Unhealthy { .. }
        | HeldBack::NoRoom { .. }
        | HeldBack::SlotsMin
        | HeldBack::ShedBudget
        | HeldBack::MoveBudget => None,
    }
}

impl Ranked {
    /// What keeps the node from the slot, in words; nothing for the node that the plan names.
    #[must_use]
    pub fn against(&self, now: StoreTime) -> Option<String> {
        Some(match self.candidate.against.as_ref()? {
            Obstacle::AcceptsNothing => format!("it takes nothing new: it is {}", self.state.as_str()),
            Obstacle::Refused => match self.refused_until {
                Some(until) => format!("it refuses the slot for another {:.1?}", until.since(now)),
                None => Obstacle::Refused.to_string(),
            },
            other @ (Obstacle::RunsNothingOfIt
            | Obstacle::RunsBelow { .. }
            | Obstacle::Zone
            | Obstacle::Labels { .. }
            | Obstacle::Leaving
            | Obstacle::PinnedTo { .. }
            | Obstacle::Capacity { .. }
            | Obstacle::Cap { .. }
            | Obstacle::HolderKeeps
            | Obstacle::HolderStays
            | Obstacle::NoGain
            | Obstacle::Outranked
            | Obstacle::FurtherOnTheRing) => other.to_string(),
        })
    }
}
