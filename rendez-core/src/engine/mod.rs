//! The engine: one node's side of the protocol, passive and decisive.
//!
//! It has no clock, sends nothing and runs nothing. Whoever drives it says what time it is and what has happened,
//! and carries out the actions that come out; the same inputs give the same actions. Calls that are late, repeated
//! or in another order are harmless.

mod api;

pub use api::{
    Action, Call, CheckpointError, Command, Event, Input, Reply, RequestId, RunnerEnd, StopReason, StoppedReason,
    Ticket,
};

use crate::{Capabilities, EngineConfig, FencingToken, Incarnation, NodeInfo, Slot, Timestamp};

/// What an engine is made from.
#[derive(Debug, Clone)]
pub struct EngineSetup {
    /// What the node tells about itself.
    pub info: NodeInfo,
    /// This process lifetime.
    pub incarnation: Incarnation,
    /// What the store can do.
    pub capabilities: Capabilities,
    /// Times, stabilizers, runner policy.
    pub config: EngineConfig,
    /// The engine's only source of chance.
    pub seed: u64,
}

/// One node's side of the protocol.
#[derive(Debug)]
pub struct Engine {
    setup: EngineSetup,
}

impl Engine {
    /// An engine that will open its session at once.
    #[must_use]
    pub fn new(_now: Timestamp, setup: EngineSetup) -> Self {
        Self { setup }
    }

    /// Takes in what has happened.
    pub fn handle(&mut self, _now: Timestamp, _input: Input) {}

    /// Does what is due at this time.
    pub fn handle_timeout(&mut self, _now: Timestamp) {}

    /// The next thing to do, if any.
    pub fn poll_action(&mut self, _now: Timestamp) -> Option<Action> {
        None
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) next.
    #[must_use]
    pub fn poll_timeout(&self) -> Timestamp {
        Timestamp::NEVER
    }

    /// The slots whose runners this node has started and not yet seen ending.
    pub fn running(&self) -> impl Iterator<Item = (&Slot, FencingToken)> {
        std::iter::empty()
    }

    /// What the node tells about itself now.
    #[must_use]
    pub fn info(&self) -> &NodeInfo {
        &self.setup.info
    }
}
