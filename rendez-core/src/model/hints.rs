//! The watch hints that requests leave behind.

use crate::WatchHint;

/// The most hints that are kept; more become one hint for everybody.
const HINTS_MAX: usize = 64;

/// Hints that were not fetched yet: none twice, and not without bound.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Hints(Vec<WatchHint>);

impl Hints {
    pub(super) fn push(&mut self, hint: WatchHint) {
        if self.0.contains(&hint) {
            return;
        }
        if self.0.len() >= HINTS_MAX {
            self.0.clear();
            self.0.push(WatchHint::Everyone);
        } else {
            self.0.push(hint);
        }
    }

    pub(super) fn take(&mut self) -> Vec<WatchHint> {
        std::mem::take(&mut self.0)
    }
}
