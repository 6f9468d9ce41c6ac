//! What a world costs: records that go from the store to nodes, and the time that engines take.
//!
//! The world has no clock. Who wants engines timed brings one; it changes nothing in what happens.

use rendez_core::{Reply, Sync};

use super::World;

/// Records that the store has told nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Pages of snapshots.
    pub pages: u64,
    /// Records in them.
    pub page_records: u64,
    /// Records in the answers to heartbeats.
    pub sync_records: u64,
    /// Answers to changes of slots: a record each.
    pub change_records: u64,
}

impl Traffic {
    pub(super) fn count(&mut self, reply: &Reply) {
        match reply {
            Reply::Heartbeat(beat) => {
                if let Sync::Changes { changes, .. } = &beat.sync {
                    self.sync_records += changes.len() as u64;
                }
            }
            Reply::Snapshot(page) => {
                self.pages += 1;
                self.page_records += page.items.len() as u64;
            }
            Reply::Change(reply) => self.change_records += reply.outcomes.len() as u64,
            Reply::Open(_) | Reply::Close => {}
        }
    }
}

/// The time that engines have taken, by a clock that was brought along.
#[derive(Debug, Default)]
pub(super) struct Meter {
    clock: Option<fn() -> u64>,
    nanos: u64,
}

impl Meter {
    pub(super) fn begin(&self) -> Option<(fn() -> u64, u64)> {
        self.clock.map(|clock| (clock, clock()))
    }

    pub(super) fn end(&mut self, begun: Option<(fn() -> u64, u64)>) {
        if let Some((clock, at)) = begun {
            self.nanos += clock().saturating_sub(at);
        }
    }
}

impl World {
    /// Times all engines from now on with this clock, which tells nanoseconds.
    pub fn time_engines(&mut self, clock: fn() -> u64) {
        self.meter.clock = Some(clock);
    }

    /// How long all engines together have taken, in nanoseconds of the clock that was brought along.
    #[must_use]
    pub fn engines_took(&self) -> u64 {
        self.meter.nanos
    }

    /// What the store has told nodes so far.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }
}
