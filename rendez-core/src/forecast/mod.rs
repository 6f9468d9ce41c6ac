//! What would happen if: the moves that a change would bring about, worked out without making it.
//!
//! A change is made to a copy of a view's records, and the copy is then led to where it comes to rest, by the plan that
//! every node makes and the rules by which nodes take, give and let go. When something happens belongs to the stabilizers
//! of each node; a forecast says what, and in which order.

mod run;
mod suppose;

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

use crate::placement::{Band, Cause, Reason};
use crate::{ClusterView, NodeId, Slot, Timestamp};

use run::Run;
pub(crate) use suppose::listed;
pub use suppose::{ForecastError, Joining, Supposition};
use suppose::{Model, changes};

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
            Self::Forced(Cause::MakesRoom) => f.write_str("forced: its holder makes room for an orphan"),
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
