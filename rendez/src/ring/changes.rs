//! What a node of a ring gets and loses, one partition at a time.

use std::collections::VecDeque;
use std::sync::Arc;

use rendez_core::{FencingToken, Slot};
use tokio::sync::watch;

use crate::handle::{Outcome, Owned};

/// A change of what a node of a ring owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingChange {
    /// Its runner for this partition has started.
    Gained {
        /// The partition.
        partition: u32,
        /// The token of its lease.
        token: FencingToken,
    },
    /// Its runner for this partition is gone, or must be.
    Lost {
        /// The partition.
        partition: u32,
        /// The token that its lease had.
        token: FencingToken,
    },
}

/// The changes of what a node owns, beginning with what it owns when they are first asked for.
///
/// Nothing is kept for a slow reader but the difference between what it was told and what is: it may not hear of a
/// partition that came and went meanwhile, and it always ends at what is so. It slows nothing down.
#[derive(Debug)]
pub struct RingChanges {
    owned: watch::Receiver<Arc<Owned>>,
    outcome: watch::Receiver<Outcome>,
    told: Arc<Owned>,
    due: VecDeque<RingChange>,
}

impl RingChanges {
    pub(super) fn new(owned: watch::Receiver<Arc<Owned>>, outcome: watch::Receiver<Outcome>) -> Self {
        Self { owned, outcome, told: Arc::default(), due: VecDeque::new() }
    }

    /// The next change, or nothing when the node has stopped and all is told. Of what changed at once, losses come first.
    ///
    /// Cancelling it loses nothing.
    pub async fn next(&mut self) -> Option<RingChange> {
        loop {
            if let Some(change) = self.due.pop_front() {
                return Some(change);
            }
            // In this order: nothing changes any more once it has stopped.
            let stopped = self.outcome.borrow().is_some();
            let now = self.owned.borrow_and_update().clone();
            self.due.extend(difference(&self.told, &now));
            self.told = now;
            if self.due.is_empty() {
                if stopped {
                    return None;
                }
                let changed = tokio::select! {
                    changed = self.owned.changed() => changed,
                    changed = self.outcome.changed() => changed,
                };
                // Its node is gone for good.
                changed.ok()?;
            }
        }
    }
}

fn difference(before: &Owned, after: &Owned) -> Vec<RingChange> {
    let has = |owned: &Owned, slot: &Slot, token| owned.get(slot).is_some_and(|lease| lease.token() == token);
    let lost = before.iter().filter(|lease| !has(after, lease.slot(), lease.token()));
    let gained = after.iter().filter(|lease| !has(before, lease.slot(), lease.token()));
    let lost = lost.map(|lease| RingChange::Lost { partition: lease.slot().unit, token: lease.token() });
    lost.chain(gained.map(|lease| RingChange::Gained { partition: lease.slot().unit, token: lease.token() })).collect()
}
