//! The cases: what the contract says, one sentence a function.

mod acquire;
mod handoff;
mod heartbeat;
mod open;
mod release;

use super::Case;

/// All groups, in the order of the contract.
pub(super) const GROUPS: &[&[Case]] = &[open::CASES, heartbeat::CASES, acquire::CASES, release::CASES, handoff::CASES];
