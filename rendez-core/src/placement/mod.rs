//! Placement: the pure function from nodes, workloads, policy and holders to who *should* own what.
//!
//! [`Planner`] is what the engine talks to. What a node or a workload is like goes in as [`NodeSpec`] and
//! [`WorkloadSpec`]; who should own a slot comes out as [`Desired`], with a [`Reason`] where that is nobody.
//! [`score`] and [`circle`] are the frozen arithmetic that all nodes share.
//!
//! Nothing here knows of time, sessions, tokens or requests: whether a move is made now is for the stabilizers,
//! whether it is safe is for the store.

mod balanced;
mod chains;
pub mod circle;
mod descent;
mod draft;
mod fair;
mod field;
mod planner;
mod ranking;
mod rendezvous;
mod rescue;
mod ring;
pub mod score;
mod settle;
mod shares;
mod spec;
mod steps;
mod sticky;
mod world;

pub use planner::Planner;
pub use spec::{
    Band, Bands, Candidate, Cause, Counts, Desired, LoadFactor, LoadFactorError, Move, NodeSpec, NodeSummary, Obstacle,
    Policy, PolicyError, Reason, Runs, Unplaced, VirtualNodes, VirtualNodesError, WorkloadSpec,
};
