//! L4: no storms. After an outage of any length, client calls in the first second stay under twice the steady rate or 8
//! a node, whichever is more; one opening, one snapshot and one batch of acquisitions a node come on top. The same while a
//! store refuses: errors that come at once make no storm. What slots that change hands cost is not the outage's.

use std::collections::BTreeSet;

use super::Oracle;
use crate::trace::{By, CallKind, Fact};

const SECOND: u64 = 1_000_000_000;

/// L4. Pages, batches and what follows a full answer are counted out: their number hangs on how much there is to read
/// and to take. Hints may bring a node to ask four times an interval; where intervals are short this is beyond the 8, and
/// comes on top. So does one heartbeat for each step of a handoff that names the node on its other side: an offer, its
/// answer, the transfer.
#[derive(Debug)]
pub struct CallsInBounds {
    /// The most heartbeats and openings of a node, on average.
    most: usize,
    away_until: Option<u64>,
    refuses: bool,
    /// In which second of a store that refuses the calls were counted.
    second: u64,
    calls: usize,
    /// Steps of handoffs in the same time.
    steps: usize,
    nodes: BTreeSet<usize>,
    /// Those that have lived since the counting began.
    counted: BTreeSet<usize>,
}

impl CallsInBounds {
    /// For nodes that send a heartbeat in each interval of so many nanoseconds.
    #[must_use]
    pub fn new(interval: u64) -> Self {
        let hinted = usize::try_from(4 * SECOND / interval.max(1)).unwrap_or(usize::MAX);
        Self {
            most: 8 + 1 + hinted,
            away_until: None,
            refuses: false,
            second: 0,
            calls: 0,
            steps: 0,
            nodes: BTreeSet::new(),
            counted: BTreeSet::new(),
        }
    }
}

impl Oracle for CallsInBounds {
    fn promise(&self) -> &'static str {
        "L4"
    }

    fn see(&mut self, at: u64, fact: &Fact) -> Result<(), String> {
        match fact {
            Fact::StoreAway { until, refuses } => {
                self.away_until = Some(*until);
                self.refuses = *refuses;
                (self.calls, self.steps) = (0, 0);
                self.counted.clone_from(&self.nodes);
            }
            Fact::Begins { node } => {
                self.nodes.insert(*node);
                self.counted.insert(*node);
            }
            Fact::Goes { node, .. } => {
                self.nodes.remove(node);
            }
            Fact::Changes { by: By::Offer | By::Transfer, .. } => self.steps += 1,
            Fact::Sends { call: CallKind::Open | CallKind::Heartbeat, .. }
                if self.away_until.is_some_and(|until| at < until + SECOND && (at >= until || self.refuses)) =>
            {
                let second = at / SECOND;
                if self.refuses && second != self.second {
                    (self.second, self.calls, self.steps) = (second, 0, 0);
                    self.counted.clone_from(&self.nodes);
                }
                self.calls += 1;
                let (calls, nodes) = (self.calls, self.counted.len().max(1));
                if calls > self.most * nodes + self.steps {
                    return Err(format!(
                        "{nodes} nodes send {calls} calls in one second, when the store is away or just back"
                    ));
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
        let mut oracle = CallsInBounds::new(10 * S);
        for node in [1, 2] {
            oracle.see(0, &Fact::Begins { node }).unwrap();
        }
        for _ in 0..100 {
            oracle.see(S, &sends(1)).unwrap(); // in ordinary times
        }
        oracle.see(S, &Fact::StoreAway { until: 9 * S, refuses: false }).unwrap();
        for _ in 0..9 {
            oracle.see(9 * S, &sends(1)).unwrap();
            oracle.see(9 * S, &sends(2)).unwrap();
        }
        oracle.see(10 * S, &sends(1)).unwrap();
        let held = lease(1, 1);
        oracle.see(9 * S, &changes(By::Offer, 1, held, held)).unwrap();
        oracle.see(10 * S - 1, &sends(2)).unwrap(); // the offer is for this one
        let said = oracle.see(10 * S - 1, &sends(2)).unwrap_err();
        let mut oracle = CallsInBounds::new(10 * S);
        oracle.see(0, &Fact::StoreAway { until: 99 * S, refuses: true }).unwrap();
        for second in 1..9 {
            (0..9).for_each(|_| oracle.see(second * S, &sends(1)).unwrap());
        }
        assert!(oracle.see(8 * S, &sends(1)).is_err());
        assert_eq!(said, "2 nodes send 20 calls in one second, when the store is away or just back");
    }
}
