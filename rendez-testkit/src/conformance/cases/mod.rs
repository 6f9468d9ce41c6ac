//! The cases: what the contract says, one sentence a function.

mod acquire;

use super::Case;

/// All groups, in the order of the contract.
pub(super) const GROUPS: &[&[Case]] = &[acquire::CASES];
