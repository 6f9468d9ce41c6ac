//! L5: shutdown ends within the drain timeout.

use std::collections::BTreeMap;

use super::Oracle;
use crate::trace::Fact;

/// What the difference of clocks may make of the timeout.
const SLACK: u64 = 100_000_000;

/// L5. A process that does not run cannot end: while it is frozen the time waits for it.
#[derive(Debug, Default)]
pub struct ShutsDownInTime {
    by: BTreeMap<usize, u64>,
    frozen: BTreeMap<usize, u64>,
}

impl Oracle for ShutsDownInTime {
    fn promise(&self) -> &'static str {
        "L5"
    }

    fn see(&mut self, at: u64, fact: &Fact) -> Result<(), String> {
        match fact {
            Fact::ShutsDown { node, within } => {
                let begins = self.frozen.get(node).copied().unwrap_or(0).max(at);
                self.by.entry(*node).or_insert(begins + within + SLACK);
            }
            Fact::Freezes { node, until } => {
                self.frozen.insert(*node, *until);
                if let Some(by) = self.by.get_mut(node) {
                    *by = (*by).max(*until + SLACK);
                }
            }
            Fact::Thaws { node } => {
                self.frozen.remove(node);
            }
            // What a clock that jumps makes of the timeout is not promised.
            Fact::ClockBreaks { node } => {
                self.by.remove(node);
            }
            Fact::Goes { node, .. } => {
                self.by.remove(node);
                self.frozen.remove(node);
            }
            _ => {}
        }
        match self.by.iter().find(|(_, by)| at > **by) {
            Some((node, by)) => Err(format!("n{node} should have ended {} ns ago", at - by)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::trace::Gone;

    #[test]
    fn shuts_down_in_time() {
        let shuts = || Fact::ShutsDown { node: 1, within: 2 * S };
        let goes = || Fact::Goes { node: 1, how: Gone::Stopped };
        let wait = || Fact::Calm;
        check(
            ShutsDownInTime::default,
            &[
                &[shuts(), wait(), wait(), goes(), wait(), wait()],
                &[shuts(), Fact::Freezes { node: 1, until: 5 * S }, wait(), wait(), wait(), goes()][..5],
                &[
                    Fact::Freezes { node: 1, until: 5 * S },
                    shuts(),
                    wait(),
                    wait(),
                    Fact::Thaws { node: 1 },
                    wait(),
                    goes(),
                ],
            ],
            &[(&[shuts(), wait(), wait(), wait()], "n1 should have ended")],
        );
    }
}
