//! L4: no storms. After an outage of any length, client calls in the first second stay under twice the steady rate or 8
//! a node, whichever is more; one opening, one snapshot and one batch of acquisitions a node come on top.

use std::collections::BTreeMap;

use super::Oracle;
use crate::trace::{CallKind, Fact};

const SECOND: u64 = 1_000_000_000;

/// The most heartbeats and openings of a node in the first second after an outage: 8, and the opening on top.
const CALLS_MAX: u32 = 8 + 1;

/// L4, for each node. Pages and batches are counted out: their number hangs on how much there is to read and to take.
#[derive(Debug, Default)]
pub struct CallsInBounds {
    away_until: u64,
    calls: BTreeMap<usize, u32>,
}

impl Oracle for CallsInBounds {
    fn promise(&self) -> &'static str {
        "L4"
    }

    fn see(&mut self, at: u64, fact: &Fact) -> Result<(), String> {
        match fact {
            Fact::StoreAway { until } => {
                self.away_until = *until;
                self.calls.clear();
            }
            Fact::Begins { node } => {
                self.calls.remove(node);
            }
            Fact::Sends { node, call: CallKind::Open | CallKind::Heartbeat, .. }
                if (self.away_until..self.away_until + SECOND).contains(&at) && self.away_until > 0 =>
            {
                let calls = self.calls.entry(*node).or_default();
                *calls += 1;
                if *calls > CALLS_MAX {
                    return Err(format!("n{node} sends {calls} calls in the first second after an outage"));
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

    #[test]
    fn calls_in_bounds() {
        let sends = |node| Fact::Sends {
            node,
            call: CallKind::Heartbeat,
            session: Some(session(1)),
            gives: Vec::new(),
            readopts: Vec::new(),
        };
        let mut oracle = CallsInBounds::default();
        for _ in 0..100 {
            oracle.see(S, &sends(1)).unwrap(); // in ordinary times
        }
        oracle.see(S, &Fact::StoreAway { until: 9 * S }).unwrap();
        for _ in 0..CALLS_MAX {
            oracle.see(9 * S, &sends(1)).unwrap();
            oracle.see(9 * S, &sends(2)).unwrap();
        }
        oracle.see(10 * S, &sends(1)).unwrap();
        let said = oracle.see(10 * S - 1, &sends(2)).unwrap_err();
        assert_eq!(said, "n2 sends 10 calls in the first second after an outage");
    }
}
