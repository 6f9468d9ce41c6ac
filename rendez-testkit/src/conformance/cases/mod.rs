//! The cases: what the contract says, one sentence a function.

mod acquire;
mod batches;
mod handoff;
mod heartbeat;
mod names;
mod open;
mod reading;
mod release;
mod tokens;
mod watch;

use super::Case;

/// All groups, in the order of the contract.
pub(super) const GROUPS: &[&[Case]] = &[
    open::CASES,
    heartbeat::CASES,
    acquire::CASES,
    release::CASES,
    handoff::CASES,
    tokens::CASES,
    batches::CASES,
    reading::CASES,
    watch::CASES,
    names::CASES,
];
