//! The cases: what the contract says, one sentence a function.

mod acquire;
mod batches;
mod cancelling;
mod checkpoints;
mod connections;
mod handoff;
mod heartbeat;
mod histories;
mod losses;
mod names;
mod open;
mod reading;
mod records;
mod release;
mod retries;
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
    retries::CASES,
    tokens::CASES,
    batches::CASES,
    checkpoints::CASES,
    records::CASES,
    reading::CASES,
    watch::CASES,
    names::CASES,
    histories::CASES,
    cancelling::CASES,
    connections::CASES,
    losses::CASES,
];
