//! What a node has to do with one slot: its lease and the runner that runs on it.

use bytes::Bytes;

use crate::{FencingToken, NodeId, OperationId, SessionId, Timestamp};

use super::api::StopReason;

/// One slot, as this node knows it beyond the records.
#[derive(Debug, Default)]
pub(super) struct Local {
    /// The largest token that this node has ended, or offered to give back. A runner needs a higher one.
    pub(super) floor: FencingToken,
    /// The lease, from its grant to its return; also a lost one as long as its runner is there.
    pub(super) tenure: Option<Tenure>,
    /// An offer of another node that this node is getting ready for, or has accepted.
    pub(super) promise: Option<Promise>,
    /// When to look at the slot again.
    pub(super) alarm: Option<Timestamp>,
}

/// A lease and its runner.
#[derive(Debug)]
pub(super) struct Tenure {
    pub(super) token: FencingToken,
    /// The session that the grant names; the present one after a re-adoption.
    pub(super) session: SessionId,
    /// The lease is gone; only its runner is left.
    pub(super) gone: bool,
    /// The deadline, where it is not the session's: what was last confirmed.
    pub(super) deadline: Option<Timestamp>,
    pub(super) run: Run,
    /// Failures of the runner in a row.
    pub(super) failures: u32,
    /// What the last runner left; taken by the first start.
    pub(super) checkpoint: Option<Bytes>,
    /// The offer that this node has made.
    pub(super) offer: Option<Made>,
    /// Whether an overrun was reported, and whether the process was told to end.
    pub(super) overrun_told: bool,
    pub(super) terminate_told: bool,
}

/// An offer that this node has made.
#[derive(Debug, Clone)]
pub(super) struct Made {
    pub(super) id: OperationId,
    pub(super) to: SessionId,
    pub(super) to_node: NodeId,
    pub(super) at: Timestamp,
    /// The store has taken it.
    pub(super) stands: bool,
}

/// Where the runner of a tenure is.
#[derive(Debug)]
pub(super) enum Run {
    /// There is none; it may be started from this time on.
    Waiting { from: Timestamp },
    /// It runs.
    Running { since: Timestamp },
    /// It was told to stop.
    Stopping { why: StopReason, abort_at: Timestamp, aborted_at: Option<Timestamp> },
    /// It is gone for good, and the lease is to be given back or renewed.
    Over { then: Then },
}

impl Run {
    /// Whether some code of the slot may be running.
    pub(super) fn is_alive(&self) -> bool {
        match self {
            Self::Running { .. } | Self::Stopping { .. } => true,
            Self::Waiting { .. } | Self::Over { .. } => false,
        }
    }
}

/// What to do with a lease whose runner is gone.
#[derive(Debug, Clone)]
pub(super) enum Then {
    /// Let it go.
    Release { checkpoint: Option<Bytes>, refuse: Refuse },
    /// Hand it to the receiver of this offer.
    Transfer { offer: Made, checkpoint: Option<Bytes> },
    /// Take it anew, with a higher token.
    Reacquire,
}

/// Whether a lease that is let go may come back to this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refuse {
    /// At once.
    No,
    /// When its runner may be well again.
    AfterFailures,
    /// When the others have had their turn.
    AfterResigning,
}

impl Refuse {
    /// What follows from the reason for which a runner was stopped.
    pub(super) fn after(why: &StopReason) -> Self {
        match why {
            StopReason::Resigned => Self::AfterResigning,
            StopReason::Handoff { .. }
            | StopReason::Shutdown
            | StopReason::Unwanted
            | StopReason::Forced
            | StopReason::Deadline
            | StopReason::Lost => Self::No,
        }
    }
}

/// An offer of another node.
#[derive(Debug, Clone)]
pub(super) struct Promise {
    pub(super) offer: OperationId,
    pub(super) warm: bool,
}
