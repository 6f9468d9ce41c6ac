//! The end of a world: everything heals, it comes to rest, and then one node is killed to see how it is taken over.

use std::collections::BTreeSet;

use rendez_core::NodeId;

use super::{MS, S, World};
use crate::faults::Fault;
use crate::trace::{Fact, Gone};

/// Stuck runners end, drain timeouts and the quiet time pass, refusals and cooldowns end, restarts are paced: then it
/// converges. All of these are below 60 s, and no more than five of them can wait for each other.
const CONVERGES_WITHIN: u64 = 300 * S;

/// How long nothing may move after that.
const STAYS_FOR: u64 = 100 * S;

impl World {
    /// Ends all faults, waits for the bound, and tells how the world looks then.
    pub(super) fn heal_and_check(&mut self) {
        self.calm = true;
        self.fact(Fact::Calm);
        if let Some((_, loss)) = self.doom.take() {
            self.lose(loss);
        }
        if self.store_down_until > self.now {
            self.store_refuses = false;
            self.store_is_away(self.now);
        }
        for node in &mut self.nodes {
            node.start_at = node.start_at.min(self.now + S);
            (node.mute_until, node.deaf_until) = (0, 0);
        }
        self.replace_strangers(S);
        if [Fault::Wishes, Fault::Programs, Fault::Zones].into_iter().any(|fault| self.has(fault)) {
            self.settle_minds();
        }
        self.run_until(self.now + CONVERGES_WITHIN);
        self.tell_rest(false);
        self.run_until(self.now + STAYS_FOR);
        self.tell_rest(true);
        self.probe();
    }

    /// Kills a node and looks how fast it is taken over (L1).
    fn probe(&mut self) {
        let victim = (self.scenario.seed % self.scenario.nodes as u64) as usize;
        // Where a twin waits for the id, who runs what in the end hangs on when it gets it.
        if self.scenario.nodes < 2 || self.has(Fault::Twins) || self.broken.is_some() {
            return;
        }
        let lateness = self.store.model.capabilities().expiry_lateness_max;
        let bound = self.config.timing.takeover_max(lateness).as_nanos() as u64;
        // Clocks may run slow, all of them by less than the bound of the configuration.
        let until = self.now + bound + bound / 1000 + MS;
        self.fact(Fact::Probes { node: victim, until });
        self.goes(victim, Gone::Killed, u64::MAX / 2);
        while self.running() < self.wanted() && self.now <= until && self.broken.is_none() {
            self.run_until(self.now + 10 * MS);
        }
        if self.running() == self.wanted() {
            self.fact(Fact::Recovers);
        }
        self.run_until(self.now + 2 * S);
    }

    fn running(&self) -> u64 {
        self.nodes.iter().filter_map(|node| node.process.as_ref()).map(|process| process.runners.len() as u64).sum()
    }

    fn live_ids(&self) -> BTreeSet<&NodeId> {
        self.nodes.iter().filter(|node| node.process.is_some()).map(|node| &node.id).collect()
    }

    /// How many slots should run: all that there are, or all that there is room for.
    fn wanted(&self) -> u64 {
        let nodes = self.live_ids().len() as u64;
        let room = self.scenario.capacity.map_or(u64::MAX, |capacity| u64::from(capacity) * nodes);
        if nodes == 0 { 0 } else { u64::from(self.scenario.slots()).min(room) }
    }

    fn tell_rest(&mut self, again: bool) {
        let running = self.running();
        let warm = self.nodes.iter().filter_map(|node| node.process.as_ref()).map(|it| it.warm.len() as u64).sum();
        let sessions = self.store.model.sessions().count() as u64;
        let units = &self.scenario.workloads;
        // A program that changes its mind declares one unit more at most.
        let beyond = |slot: &rendez_core::Slot| {
            !units.iter().enumerate().any(|(number, units)| {
                slot.workload.as_str().strip_prefix('w').and_then(|text| text.parse().ok()) == Some(number)
                    && slot.unit <= *units
            })
        };
        let slots_beyond = self.store.model.slots().filter(|(slot, _)| beyond(slot)).count() as u64;
        self.fact(Fact::Rests {
            running,
            wanted: self.wanted(),
            moves: self.moves + self.starts,
            warm,
            sessions_beyond: sessions.saturating_sub(self.live_ids().len() as u64),
            slots_beyond,
            again,
        });
    }
}
