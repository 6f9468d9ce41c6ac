//! S11: at the moment of a grant a node is within its caps.

use std::collections::BTreeMap;

use super::Oracle;
use crate::trace::{By, Fact};

/// S11, for the cap of all slots together. What was asked for under a cap that the node had lately may still come;
/// what is taken back after a loss of data was granted before it, perhaps under a higher cap.
#[derive(Debug)]
pub struct WithinCaps {
    /// How long what was asked for under an older cap may still come: a promise outlives its offer, which lives for
    /// two TTLs and a stop budget, by a heartbeat or two.
    lately: u64,
    first: Option<u32>,
    caps: BTreeMap<usize, Vec<(u64, Option<u32>)>>,
}

impl WithinCaps {
    /// For sessions of this TTL (in nanoseconds) and nodes with this cap at first.
    #[must_use]
    pub fn new(ttl: u64, cap: Option<u32>) -> Self {
        Self { lately: 4 * ttl, first: cap, caps: BTreeMap::new() }
    }

    /// The largest cap that a node had lately.
    fn largest(&self, at: u64, node: usize) -> Option<u32> {
        let caps = self.caps.get(&node).map(Vec::as_slice).unwrap_or_default();
        let mut largest = Some(0);
        let mut since_later = None;
        for (since, cap) in caps.iter().rev().chain([&(0, self.first)]) {
            let over = since_later.is_some_and(|later: u64| later + self.lately <= at);
            if !over {
                largest = largest.zip(*cap).map(|(largest, cap)| largest.max(cap));
            }
            since_later = Some(*since);
        }
        largest
    }
}

impl Oracle for WithinCaps {
    fn promise(&self) -> &'static str {
        "S11"
    }

    fn see(&mut self, at: u64, fact: &Fact) -> Result<(), String> {
        match fact {
            Fact::Caps { node, cap } => self.caps.entry(*node).or_default().push((at, *cap)),
            // A process starts with the cap that it was made with, whatever the one before was told.
            Fact::Begins { node } => {
                if let Some(caps) = self.caps.get_mut(node) {
                    caps.push((at, self.first));
                }
            }
            Fact::Changes {
                slot, by: By::Acquire | By::Transfer, before, after, holds: Some((node, holds)), ..
            } if before.holder != after.holder => {
                if let Some(cap) = self.largest(at, *node).filter(|cap| *holds > u64::from(*cap)) {
                    return Err(format!("n{node} holds {holds} of {cap} with {slot}"));
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
    use crate::trace::Lease;

    #[test]
    fn within_caps() {
        let given = |by, holds| Fact::Changes {
            slot: SLOT,
            by,
            session: Some(session(1)),
            named: token(0),
            before: Lease::default(),
            after: lease(5, 1),
            holds: Some((1, holds)),
            moved: false,
        };
        let caps = |cap| Fact::Caps { node: 1, cap };
        let wait = || Fact::Calm;
        check(
            || WithinCaps::new(S, Some(2)),
            &[
                &[given(By::Acquire, 2), caps(Some(3)), given(By::Transfer, 3)],
                &[caps(None), given(By::Acquire, 99)],
                &[caps(Some(1)), given(By::Acquire, 2)],
                &[given(By::Readopt, 9)],
                &[
                    caps(Some(1)),
                    Fact::Begins { node: 1 },
                    wait(),
                    wait(),
                    wait(),
                    wait(),
                    wait(),
                    given(By::Acquire, 2),
                ],
            ],
            &[
                (&[given(By::Acquire, 3)], "holds 3 of 2"),
                (&[given(By::Transfer, 3)], "holds 3 of 2"),
                (&[caps(Some(1)), wait(), wait(), wait(), given(By::Acquire, 2)], "holds 2 of 1"),
            ],
        );
    }
}
