//! Versions of the protocol: a node that speaks one that the others do not know is refused, and harms nobody.
//!
//! There is one version so far. Where there are two, mixed nodes must agree on the lowest: that belongs here as well.

use std::collections::{BTreeMap, VecDeque};

use super::Oracle;
use crate::trace::{CallKind, Fact};

/// The most openings of a refused node in one heartbeat interval: the first ones follow each other soon.
const OPENINGS_MAX: usize = 8;

/// A node of an unknown version is given no session, it runs nothing, and it does not keep the store busy.
#[derive(Debug)]
pub struct UnknownVersionsAreRefused {
    interval: u64,
    /// Nodes that speak an unknown version, and when they have asked for a session lately.
    strangers: BTreeMap<usize, VecDeque<u64>>,
}

impl UnknownVersionsAreRefused {
    /// For nodes that send a heartbeat in each interval of so many nanoseconds.
    #[must_use]
    pub fn new(interval: u64) -> Self {
        Self { interval, strangers: BTreeMap::new() }
    }
}

impl Oracle for UnknownVersionsAreRefused {
    fn promise(&self) -> &'static str {
        "versions"
    }

    fn see(&mut self, at: u64, fact: &Fact) -> Result<(), String> {
        match fact {
            Fact::Speaks { node, known: false, .. } => {
                self.strangers.insert(*node, VecDeque::new());
            }
            Fact::Goes { node, .. } => {
                self.strangers.remove(node);
            }
            // A session of the node's process from before, by a request that was late, is none of this one's.
            Fact::Tells { node, event: "session_opened", .. } if self.strangers.contains_key(node) => {
                return Err(format!("n{node} is given a session, and speaks a version that nobody knows"));
            }
            Fact::Starts { node, slot, .. } if self.strangers.contains_key(node) => {
                return Err(format!("n{node} starts {slot}, and speaks a version that nobody knows"));
            }
            Fact::Sends { node, call: CallKind::Open, .. } => {
                let Some(asked) = self.strangers.get_mut(node) else { return Ok(()) };
                asked.push_back(at);
                while asked.front().is_some_and(|first| first + self.interval < at) {
                    asked.pop_front();
                }
                if asked.len() > OPENINGS_MAX {
                    return Err(format!("n{node}, which is refused, asks {} times in one interval", asked.len()));
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
    use crate::trace::Gone;

    #[test]
    fn unknown_versions_are_refused() {
        let speaks = |known| Fact::Speaks { node: 1, version: 2, known };
        let goes = || Fact::Goes { node: 1, how: Gone::Killed };
        let asks =
            || Fact::Sends { node: 1, call: CallKind::Open, session: None, gives: Vec::new(), readopts: Vec::new() };
        let opened = || Fact::Tells { node: 1, event: "session_opened", slot: None };
        let often = |times| [vec![speaks(false)], vec![asks(); times]].concat();
        check(
            || UnknownVersionsAreRefused::new(20 * S),
            &[
                &[speaks(true), opened(), starts(1, 5)],
                &[speaks(false), opens(1), starts(2, 5), goes(), speaks(true), opened()],
                &often(8),
            ],
            &[
                (&[speaks(false), asks(), opened()], "is given a session"),
                (&[speaks(false), starts(1, 5)], "n1 starts slot 0"),
                (&often(9), "asks 9 times"),
            ],
        );
        check(|| UnknownVersionsAreRefused::new(2 * S), &[&often(99)], &[]);
    }
}
