//! Promises about what becomes of a world once nothing goes wrong any more.

use super::Oracle;
use crate::trace::Fact;

/// L1 and L2: whatever has happened, all slots that can run do run within the bound that the world has waited for (so
/// no restart is needed, L7), and a node that is killed then is taken over within the bound of L1.
#[derive(Debug, Default)]
pub struct ComesToRest {
    recovers_by: Option<u64>,
}

impl Oracle for ComesToRest {
    fn promise(&self) -> &'static str {
        "L1"
    }

    fn see(&mut self, at: u64, fact: &Fact) -> Result<(), String> {
        match fact {
            Fact::Rests { running, wanted, .. } if running != wanted => {
                return Err(format!("{running} slots run where {wanted} should"));
            }
            Fact::Probes { until, .. } => self.recovers_by = Some(*until),
            Fact::Recovers => self.recovers_by = None,
            _ => {}
        }
        match self.recovers_by {
            Some(until) if at > until => Err("a killed node's slots were not taken in time".to_owned()),
            Some(_) | None => Ok(()),
        }
    }
}

/// L3: no moves after convergence.
#[derive(Debug, Default)]
pub struct StaysAtRest {
    moves: u64,
}

impl Oracle for StaysAtRest {
    fn promise(&self) -> &'static str {
        "L3"
    }

    fn see(&mut self, _at: u64, fact: &Fact) -> Result<(), String> {
        let Fact::Rests { moves, again, .. } = fact else { return Ok(()) };
        let before = std::mem::replace(&mut self.moves, *moves);
        if *again && before != *moves {
            return Err(format!("{} moves and starts after convergence", moves - before));
        }
        Ok(())
    }
}

/// L8, as far as a world can see it: dead nodes leave no session behind, removed slots no record, and nobody stays
/// prepared for what does not come.
#[derive(Debug, Default)]
pub struct LeavesNothing;

impl Oracle for LeavesNothing {
    fn promise(&self) -> &'static str {
        "L8"
    }

    fn see(&mut self, _at: u64, fact: &Fact) -> Result<(), String> {
        match fact {
            Fact::Rests { warm: 1.., .. } => Err("a node is still prepared for slots that do not come".to_owned()),
            Fact::Rests { sessions_beyond: 1.., .. } => Err("sessions of dead nodes are left in the store".to_owned()),
            Fact::Rests { slots_beyond: 1.., .. } => Err("slots that do not exist are left in the store".to_owned()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn rests(running: u64, moves: u64, again: bool) -> Fact {
        Fact::Rests { running, wanted: 3, moves, warm: 0, sessions_beyond: 0, slots_beyond: 0, again }
    }

    #[test]
    fn comes_to_rest() {
        let probes = |seconds| Fact::Probes { node: 1, until: seconds * S };
        check(
            ComesToRest::default,
            &[&[rests(3, 0, false), probes(4), Fact::Calm, Fact::Recovers, rests(3, 9, false)]],
            &[
                (&[rests(2, 0, false)], "2 slots run where 3 should"),
                (&[rests(4, 0, false)], "4 slots run where 3 should"),
                (&[probes(2), Fact::Calm, Fact::Calm], "not taken in time"),
            ],
        );
    }

    #[test]
    fn stays_at_rest() {
        check(
            StaysAtRest::default,
            &[&[rests(3, 7, false), rests(3, 7, true), rests(3, 9, false), rests(3, 9, true)]],
            &[(&[rests(3, 7, false), rests(3, 8, true)], "1 moves and starts")],
        );
    }

    #[test]
    fn leaves_nothing() {
        let left = |warm, sessions_beyond, slots_beyond| Fact::Rests {
            running: 3,
            wanted: 3,
            moves: 0,
            warm,
            sessions_beyond,
            slots_beyond,
            again: false,
        };
        check(
            LeavesNothing::default,
            &[&[left(0, 0, 0)]],
            &[
                (&[left(1, 0, 0)], "prepared"),
                (&[left(0, 2, 0)], "sessions of dead nodes"),
                (&[left(0, 0, 1)], "slots that do not exist"),
            ],
        );
    }
}
