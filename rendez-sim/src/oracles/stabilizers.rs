//! The rules that hold voluntary moves back, as far as the store's history shows them.

use std::collections::BTreeMap;

use rendez_core::FencingToken;

use super::Oracle;
use crate::trace::{Fact, Lease, SlotNo};

/// What clocks may differ by over a cooldown, in nanoseconds.
const SLACK: u64 = 200_000_000;

/// L3: what was moved voluntarily is not moved voluntarily again before its cooldown is over, and nothing is where
/// voluntary moves are switched off or the policy has none. What the store has forgotten does not count.
#[derive(Debug)]
pub struct MovesAreHeldBack {
    cooldown: u64,
    shedding: bool,
    moved: BTreeMap<SlotNo, u64>,
}

impl MovesAreHeldBack {
    /// For this cooldown in nanoseconds, with voluntary moves or without.
    #[must_use]
    pub fn new(cooldown: u64, shedding: bool) -> Self {
        Self { cooldown, shedding, moved: BTreeMap::new() }
    }
}

impl Oracle for MovesAreHeldBack {
    fn promise(&self) -> &'static str {
        "L3"
    }

    fn see(&mut self, at: u64, fact: &Fact) -> Result<(), String> {
        match fact {
            Fact::Loses { .. } => self.moved.clear(),
            Fact::ClockBreaks { .. } => self.cooldown = 0,
            // Deleted with its workload.
            Fact::Changes { slot, after: Lease { token: FencingToken::NONE, .. }, .. } => {
                self.moved.remove(slot);
            }
            Fact::Changes { slot, moved: true, .. } => {
                if !self.shedding {
                    return Err(format!("{slot} is moved voluntarily where nothing should be"));
                }
                if let Some(before) = self.moved.insert(*slot, at)
                    && at + SLACK < before + self.cooldown
                {
                    return Err(format!("{slot} is moved again after {} ns", at - before));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::trace::{By, Loss};

    fn transfers(moved: bool) -> Fact {
        match changes(By::Transfer, 1, lease(5, 1), lease(6, 2)) {
            Fact::Changes { slot, by, session, named, before, after, holds, .. } => {
                Fact::Changes { slot, by, session, named, before, after, holds, moved }
            }
            other => other,
        }
    }

    #[test]
    fn moves_are_held_back() {
        check(
            || MovesAreHeldBack::new(2 * S, true),
            &[
                &[transfers(true), Fact::Calm, transfers(true)],
                &[transfers(true), transfers(false), transfers(true)],
                &[transfers(true), Fact::Loses { loss: Loss::LastWrites }, transfers(true)],
                &[transfers(true), changes(By::Operator, 0, lease(6, 0), lease(0, 0)), transfers(true)],
                &[Fact::ClockBreaks { node: 1 }, transfers(true), transfers(true)],
            ],
            &[(&[transfers(true), transfers(true)], "is moved again after 1000000000 ns")],
        );
        check(
            || MovesAreHeldBack::new(2 * S, false),
            &[&[transfers(false), transfers(false)]],
            &[(&[transfers(true)], "where nothing should be")],
        );
    }
}
