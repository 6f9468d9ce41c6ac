//! What goes into the engine and what comes out of it, as data.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::records::{DynamicWorkloads, NodeInfo};
use crate::store::{
    Beat, ChangeReply, ChangeRequest, CloseRequest, HeartbeatRequest, OpenRequest, Opening, SnapshotPage,
    SnapshotRequest, StoreError, WatchHint,
};
use crate::{
    Declared, ErrorKind, FencingToken, Generation, Incarnation, NodeId, OperationId, SessionId, Slot, Timestamp,
    WorkloadName,
};

/// Names one request to the store; never used twice by one engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// Names one saving of a checkpoint; drawn by the driver, rising: those of one slot are saved in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// One call of a method of [`LeaseStore`](crate::LeaseStore).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// [`open`](crate::LeaseStore::open).
    Open(OpenRequest),
    /// [`heartbeat`](crate::LeaseStore::heartbeat).
    Heartbeat(HeartbeatRequest),
    /// [`change`](crate::LeaseStore::change).
    Change(ChangeRequest),
    /// [`snapshot`](crate::LeaseStore::snapshot).
    Snapshot(SnapshotRequest),
    /// [`close`](crate::LeaseStore::close).
    Close(CloseRequest),
}

/// The answer to a [`Call`], with the same variants.
#[derive(Debug)]
pub enum Reply {
    /// To an opening.
    Open(Opening),
    /// To a heartbeat.
    Heartbeat(Beat),
    /// To changes.
    Change(ChangeReply),
    /// To a page.
    Snapshot(SnapshotPage),
    /// To a closing.
    Close,
}

/// What has happened.
#[derive(Debug)]
pub enum Input {
    /// A request was answered, or given up after its timeout ([`ErrorKind::Ambiguous`](crate::ErrorKind::Ambiguous)).
    /// Every [`Action::Send`] wants exactly one; later and unknown ones change nothing.
    Reply(RequestId, Result<Reply, StoreError>),
    /// The watch has something, or was opened anew (then [`WatchHint::Everyone`]).
    Hint(WatchHint),
    /// A runner is gone: nothing of its code runs any more.
    RunnerEnded {
        /// Its slot.
        slot: Slot,
        /// The token that it was started with.
        token: FencingToken,
        /// How it ended.
        end: RunnerEnd,
        /// What it leaves for the next one.
        checkpoint: Option<Bytes>,
    },
    /// The answer to an [`Action::WarmUp`].
    WarmedUp {
        /// The slot.
        slot: Slot,
        /// The offer that it was for.
        offer: OperationId,
        /// Whether this node can take the slot.
        ready: bool,
    },
    /// A runner wants to save a checkpoint; answered by [`Action::CheckpointSaved`].
    SaveCheckpoint {
        /// Its slot.
        slot: Slot,
        /// Its token.
        token: FencingToken,
        /// What to save.
        checkpoint: Bytes,
        /// The name of this saving.
        ticket: Ticket,
    },
    /// The program wants something.
    Command(Command),
}

/// How a runner ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunnerEnd {
    /// It returned without an error.
    Returned,
    /// It returned an error, or could not be made.
    Failed(String),
    /// It panicked, or its process died by a signal that nobody sent.
    Panicked(String),
    /// It was aborted.
    Aborted,
}

impl fmt::Display for RunnerEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Returned => f.write_str("it returned"),
            Self::Failed(why) => write!(f, "it failed: {why}"),
            Self::Panicked(why) => write!(f, "it panicked: {why}"),
            Self::Aborted => f.write_str("it was aborted"),
        }
    }
}

/// What the program wants of its node.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Command {
    /// Another weight, at least 1; small changes are kept back (hysteresis).
    SetWeight(u32),
    /// Whether the node feels well.
    SetHealth(bool),
    /// Another cap of all slots together.
    SetCapacity(Option<u32>),
    /// Other declared workloads.
    SetWorkloads(BTreeMap<WorkloadName, Declared>),
    /// Other dynamic workloads that it can run.
    SetDynamic(DynamicWorkloads),
    /// Take no new slots (or do again), and keep what is held.
    Cordon(bool),
    /// Hand everything off and take nothing new (or take the share again).
    Drain(bool),
    /// Let go of a slot in favour of the others, once its runner has ended: for the time of a session TTL this node does not
    /// take it again. Nothing happens if this node does not hold it, or lets it go already.
    Resign(Slot),
    /// Hand everything off, let go of what nobody takes, close the session, and end with [`Action::Stopped`].
    Shutdown,
}

/// What to do. Actions are to be carried out in order; none of them may block the next.
#[derive(Debug)]
pub enum Action {
    /// Send a request, and bring the answer as [`Input::Reply`] after this time at the latest.
    Send {
        /// The name of the request.
        request: RequestId,
        /// The request.
        call: Call,
        /// When to give it up.
        timeout: Duration,
    },
    /// Start a runner. There is no other runner of the slot. Answered by [`Input::RunnerEnded`] once it is gone, also
    /// if it could not be made.
    Start {
        /// The slot.
        slot: Slot,
        /// The token of the lease.
        token: FencingToken,
        /// Until when it may run, unless [`Action::Extend`] says more.
        deadline: Timestamp,
        /// What the last runner left.
        checkpoint: Option<Bytes>,
    },
    /// All runners but these may run until this deadline. Never earlier than what was said before.
    Extend {
        /// The new deadline.
        deadline: Timestamp,
        /// The slots whose runners keep their old one.
        except: Vec<Slot>,
    },
    /// Tell a runner to stop. Told again with [`StopReason::Lost`] if its lease is lost while it stops.
    Stop {
        /// The slot.
        slot: Slot,
        /// The token that it was started with.
        token: FencingToken,
        /// Why.
        why: StopReason,
        /// When it will be aborted.
        abort_at: Timestamp,
    },
    /// Abort a runner that was told to stop.
    Abort {
        /// The slot.
        slot: Slot,
        /// The token that it was started with.
        token: FencingToken,
    },
    /// Prepare for a slot that is offered: no side effects. Answered by [`Input::WarmedUp`].
    WarmUp {
        /// The slot.
        slot: Slot,
        /// The offer.
        offer: OperationId,
    },
    /// A slot that was prepared for does not come.
    CoolDown {
        /// The slot.
        slot: Slot,
    },
    /// The answer to an [`Input::SaveCheckpoint`].
    CheckpointSaved {
        /// The name of the saving.
        ticket: Ticket,
        /// Whether it is saved.
        result: Result<(), CheckpointError>,
    },
    /// The session that this node holds now, and until when it is good; for whoever closes it on the node's behalf.
    /// Nothing after it was lost or closed.
    Session(Option<(SessionId, Generation)>),
    /// Tell people and metrics.
    Tell(Event),
    /// A runner has outlived the deadline of a lost session: end the process (the agent: kill the child).
    Terminate {
        /// The slot.
        slot: Slot,
        /// The token of the runner.
        token: FencingToken,
    },
    /// The engine is done: after a shutdown, or because it gives up.
    Stopped(StoppedReason),
}

/// Why a checkpoint was not saved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// Larger than [`CHECKPOINT_BYTES_MAX`](crate::CHECKPOINT_BYTES_MAX).
    #[error("a checkpoint of {bytes} bytes is too large: use {} or less", crate::CHECKPOINT_BYTES_MAX)]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The runner's lease is gone: nothing was saved.
    #[error("the lease is gone: nothing was saved")]
    LeaseGone,
    /// The store did not take it; whether it did in truth is known only if `kind` is not `ambiguous`.
    #[error("the store did not take the checkpoint ({kind}): {message}")]
    Store {
        /// What to do next.
        kind: ErrorKind,
        /// What happened.
        message: String,
    },
}

/// Why a runner is told to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// The slot goes to another node.
    Handoff {
        /// Which.
        to: NodeId,
    },
    /// The node shuts down and nobody takes the slot.
    Shutdown,
    /// The workload is paused, has fewer units, or cannot run here any more.
    Unwanted,
    /// The program has resigned.
    Resigned,
    /// An operator has asked for it.
    Forced,
    /// The lease could not be extended in time.
    Deadline,
    /// The session or the lease is gone.
    Lost,
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Handoff { to } => write!(f, "it goes to {to}"),
            Self::Shutdown => f.write_str("the node shuts down"),
            Self::Unwanted => f.write_str("it shall not run here"),
            Self::Resigned => f.write_str("the program has resigned"),
            Self::Forced => f.write_str("an operator asked for it"),
            Self::Deadline => f.write_str("its lease was not extended in time"),
            Self::Lost => f.write_str("its lease is gone"),
        }
    }
}

/// Why the engine is done.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoppedReason {
    /// Everything was handed over or let go, and the session is closed.
    Clean,
    /// The drain timeout has passed; what is left ends with its session.
    DrainTimeout {
        /// The slots whose runners still run.
        running: Vec<Slot>,
    },
    /// Another process has the node's id, and waiting was not wanted.
    InUse {
        /// The other process.
        incarnation: Incarnation,
        /// How long its session lives if it is not extended.
        remaining: Duration,
    },
}

/// What people and metrics are told. None of it has to be acted upon.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A session is open.
    SessionOpened {
        /// The session.
        session: SessionId,
    },
    /// Another process has the node's id; said once.
    NodeIdInUse {
        /// The other process.
        incarnation: Incarnation,
        /// How long its session lives if it is not extended.
        remaining: Duration,
    },
    /// The session is gone: it was not extended in time, or the store does not know it any more.
    SessionLost {
        /// The session.
        session: SessionId,
        /// Why, for people.
        why: String,
    },
    /// The store may have lost data.
    NewGeneration {
        /// The new generation.
        generation: Generation,
        /// How long nothing will be granted.
        quiet: Duration,
    },
    /// A slot was taken.
    Acquired {
        /// The slot.
        slot: Slot,
        /// Its token.
        token: FencingToken,
    },
    /// A slot was handed over by another node.
    Received {
        /// The slot.
        slot: Slot,
        /// Its token.
        token: FencingToken,
    },
    /// A running slot was kept across a loss of data.
    Readopted {
        /// The slot.
        slot: Slot,
        /// Its token.
        token: FencingToken,
    },
    /// A runner is started.
    Started {
        /// The slot.
        slot: Slot,
        /// Its token.
        token: FencingToken,
    },
    /// A runner is told to stop.
    Stopping {
        /// The slot.
        slot: Slot,
        /// Its token.
        token: FencingToken,
        /// Why.
        why: StopReason,
    },
    /// A runner is gone.
    Ended {
        /// The slot.
        slot: Slot,
        /// Its token.
        token: FencingToken,
        /// How.
        end: RunnerEnd,
    },
    /// A runner that ended by itself will be started again.
    Restarting {
        /// The slot.
        slot: Slot,
        /// Failures in a row.
        failures: u32,
        /// After this pause.
        after: Duration,
    },
    /// A slot whose runner failed too often is given up.
    GaveUp {
        /// The slot.
        slot: Slot,
        /// Failures in a row.
        failures: u32,
    },
    /// A slot was let go.
    Released {
        /// The slot.
        slot: Slot,
        /// The token that it had.
        token: FencingToken,
    },
    /// A slot is offered to another node.
    Offered {
        /// The slot.
        slot: Slot,
        /// To whom.
        to: NodeId,
        /// Whether it must go.
        forced: bool,
    },
    /// A slot was handed over.
    HandedOver {
        /// The slot.
        slot: Slot,
        /// To whom.
        to: NodeId,
    },
    /// An offer of another node was refused.
    OfferRefused {
        /// The slot.
        slot: Slot,
        /// Why, for people.
        why: String,
    },
    /// A runner goes on after it was told to stop and aborted.
    Overrun {
        /// The slot.
        slot: Slot,
        /// Its token.
        token: FencingToken,
        /// Since it was aborted.
        age: Duration,
    },
    /// The store answers with errors; said when it begins, and when trying again turns out not to help.
    StoreTrouble {
        /// What kind.
        kind: ErrorKind,
        /// What happened.
        message: String,
    },
    /// The store answers again.
    StoreBack {
        /// How long it did not.
        after: Duration,
    },
    /// Nodes were started with other settings than the cluster's record: only orphans move.
    SettingsDiffer {
        /// Which nodes.
        nodes: Vec<NodeId>,
    },
    /// What the node tells about itself has changed.
    InfoChanged(Box<NodeInfo>),
}

impl Event {
    /// The event's name in metrics and logs.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::SessionOpened { .. } => "session_opened",
            Self::NodeIdInUse { .. } => "node_id_in_use",
            Self::SessionLost { .. } => "session_lost",
            Self::NewGeneration { .. } => "new_generation",
            Self::Acquired { .. } => "acquired",
            Self::Received { .. } => "received",
            Self::Readopted { .. } => "readopted",
            Self::Started { .. } => "started",
            Self::Stopping { .. } => "stopping",
            Self::Ended { .. } => "ended",
            Self::Restarting { .. } => "restarting",
            Self::GaveUp { .. } => "gave_up",
            Self::Released { .. } => "released",
            Self::Offered { .. } => "offered",
            Self::HandedOver { .. } => "handed_over",
            Self::OfferRefused { .. } => "offer_refused",
            Self::Overrun { .. } => "overrun",
            Self::StoreTrouble { .. } => "store_trouble",
            Self::StoreBack { .. } => "store_back",
            Self::SettingsDiffer { .. } => "settings_differ",
            Self::InfoChanged(_) => "info_changed",
        }
    }
}
