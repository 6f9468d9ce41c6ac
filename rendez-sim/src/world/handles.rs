//! What tests of single rules do with a world, and ask of it.

use std::collections::BTreeMap;
use std::time::Duration;

use rendez_core::{
    AdminOutcome, AdminRequest, CloseRequest, ClusterView, Command, FencingToken, Known, Slot, Status, StoreModel,
};

use super::{MS, S, World};
use crate::scenario::Scenario;
use crate::trace::Gone;

impl World {
    /// The world of a scenario whose facts nobody takes down or judges: it goes the same way as a judged one, and large ones
    /// go faster.
    #[must_use]
    pub fn unjudged(scenario: Scenario) -> Self {
        let mut world = Self::new(scenario, false);
        world.judged = false;
        world
    }

    /// All nodes start at once, at the beginning.
    pub fn start_together(&mut self) {
        self.start_apart(Duration::ZERO);
    }

    /// The nodes start one after another, this long apart.
    pub fn start_apart(&mut self, by: Duration) {
        let by = by.as_nanos() as u64;
        (0..).zip(&mut self.nodes).for_each(|(place, node)| node.start_at = place * by);
    }

    /// Lets this much time pass.
    pub fn run_for(&mut self, seconds: u64) {
        self.run_until(self.now + seconds * S);
    }

    /// Lets time pass until something is so, in steps of 10 ms; returns how long it took.
    ///
    /// # Panics
    /// If it is not so after two minutes, or a promise is broken meanwhile.
    pub fn run_until_so(&mut self, words: &str, mut so: impl FnMut(&Self) -> bool) -> Duration {
        let begun = self.now;
        while !so(self) {
            assert!(self.now <= begun + 120 * S, "not so after 120 s: {words}; {:?}", self.shares());
            assert_eq!(self.broken, None);
            self.run_until(self.now + 10 * MS);
        }
        Duration::from_nanos(self.now - begun)
    }

    /// An operator writes.
    pub fn administer(&mut self, request: &AdminRequest) -> AdminOutcome {
        self.carry_out(request)
    }

    /// A program says something to its node.
    pub fn command(&mut self, node: usize, command: Command) {
        self.tell(node, command);
    }

    /// A node's process is gone, and stays so.
    pub fn kill(&mut self, node: usize) {
        self.goes(node, Gone::Killed, u64::MAX / 2);
    }

    /// A node whose process is gone is started again.
    pub fn start_again(&mut self, node: usize) {
        self.nodes[node].start_at = self.now;
    }

    /// Somebody who is sure that a killed process is gone closes its session.
    ///
    /// # Panics
    /// If it has no session.
    pub fn close_session_of(&mut self, node: usize) {
        let id = self.nodes[node].id.clone();
        let open = self.store.model.sessions().find(|(_, record, _)| record.info.node == id);
        let session = open.map(|(session, _, _)| session).expect("its session is open");
        let known = Known { generation: self.store.model.generation(), ..Known::default() };
        let at = self.store.clock(self.now);
        self.store.model.close(at, &CloseRequest { known, session }).expect("the model takes it");
        self.spread_hints();
    }

    /// The node that runs a slot, and the token that it runs with.
    #[must_use]
    pub fn runs(&self, slot: &Slot) -> Option<(usize, FencingToken)> {
        self.nodes.iter().enumerate().find_map(|(index, node)| {
            let runner = node.process.as_ref()?.runners.get(slot)?;
            Some((index, runner.token))
        })
    }

    /// The status as a node tells it.
    ///
    /// # Panics
    /// If the node does not live.
    pub fn status(&mut self, node: usize) -> Status {
        let now = self.local(node);
        self.nodes[node].process.as_mut().expect("it is alive").engine.status(now)
    }

    /// How much time has passed, in nanoseconds.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.now
    }

    /// How often a node's process was started.
    #[must_use]
    pub fn life(&self, node: usize) -> u32 {
        self.nodes[node].life
    }

    /// The requests so far, by kind, and the timers that have ended.
    #[must_use]
    pub fn calls(&self) -> BTreeMap<&'static str, u64> {
        self.calls.clone()
    }

    /// The slots handed over so far.
    #[must_use]
    pub fn moves(&self) -> u64 {
        self.moves
    }

    /// The store answers nobody for a while.
    pub fn store_away(&mut self, seconds: u64) {
        self.store_is_away(self.now + seconds * S);
    }

    /// What a node that lives knows of the cluster.
    #[must_use]
    pub fn view(&self, node: usize) -> Option<&ClusterView> {
        self.nodes[node].process.as_ref().map(|process| process.engine.view())
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &StoreModel {
        &self.store.model
    }

    /// How many slots each node runs.
    #[must_use]
    pub fn shares(&self) -> Vec<usize> {
        self.nodes.iter().map(|node| node.process.as_ref().map_or(0, |process| process.runners.len())).collect()
    }
}
