//! The promises, each as a checker of its own over the facts of a trace.
//!
//! A checker knows nothing of worlds and engines: it sees facts in their order, keeps what it needs of them, and says
//! in words what breaks its promise. What a promise exempts stands in its checker, with the reason. Two promises have none
//! here: S10 (names cannot collide) is a matter of the codecs of each store and judged by the conformance suite; L7 (no
//! restart is ever needed) is judged by L1: worlds without restarts must come to rest like all others.

mod calls;
mod caps;
mod history;
mod leases;
mod others;
mod rest;
mod runs;
mod shutdown;
mod sinks;
mod stabilizers;
#[cfg(test)]
mod testing;
mod versions;

pub use calls::CallsInBounds;
pub use caps::WithinCaps;
pub use history::Linearizable;
pub use leases::{NotStolen, OnceOnly, OneHolder, StaleDoesNothing, TokensRise};
pub use others::DelaysNoOther;
pub use rest::{ComesToRest, LeavesNothing, StaysAtRest};
pub use runs::{AtMostOneRun, GivenBackAtRest, NeverGoesBack, Overlap, RunsOnLease, TakenBackWhileRunning};
pub use shutdown::ShutsDownInTime;
pub use sinks::SinksAreFenced;
pub use stabilizers::MovesAreHeldBack;
pub use versions::UnknownVersionsAreRefused;

use std::time::Duration;

use rendez_core::EngineConfig;

use crate::trace::Fact;

/// A checker of one promise.
pub trait Oracle: std::fmt::Debug {
    /// The promise: `S1`.
    fn promise(&self) -> &'static str;

    /// Takes in the next fact.
    ///
    /// # Errors
    /// What breaks the promise.
    fn see(&mut self, at: u64, fact: &Fact) -> Result<(), String>;
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// Which.
    pub promise: &'static str,
    /// When, in nanoseconds of the world.
    pub at: u64,
    /// How.
    pub words: String,
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} broken at {:.6} s: {}", self.promise, self.at as f64 / 1e9, self.words)
    }
}

/// All checkers.
#[derive(Debug)]
pub struct Oracles {
    all: Vec<Box<dyn Oracle>>,
    at_most_one_run: AtMostOneRun,
    strict: bool,
}

impl Oracles {
    /// All checkers, for nodes with this configuration and this cap at first, where held slots stay (`sticky`) or not.
    /// Strict ones excuse nothing that clocks do.
    #[must_use]
    pub fn new(config: &EngineConfig, sticky: bool, cap: Option<u32>, strict: bool) -> Self {
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let ttl = nanos(config.timing.session_ttl);
        let rules = &config.stabilizers;
        Self {
            all: vec![
                Box::new(Linearizable::default()),
                Box::new(OneHolder::default()),
                Box::new(SinksAreFenced::default()),
                Box::new(TokensRise::default()),
                Box::new(NotStolen::default()),
                Box::new(GivenBackAtRest::default()),
                Box::new(RunsOnLease::new(ttl, nanos(config.runners.abort_grace))),
                Box::new(TakenBackWhileRunning::default()),
                Box::new(NeverGoesBack::default()),
                Box::new(StaleDoesNothing::default()),
                Box::new(OnceOnly::default()),
                Box::new(WithinCaps::new(ttl, cap)),
                Box::new(ComesToRest::default()),
                Box::new(StaysAtRest::default()),
                Box::new(MovesAreHeldBack::new(nanos(rules.cooldown), rules.shedding && !sticky)),
                Box::new(CallsInBounds::new(nanos(config.timing.heartbeat_interval))),
                Box::new(ShutsDownInTime::default()),
                Box::new(LeavesNothing),
                Box::new(DelaysNoOther::new(config)),
                Box::new(UnknownVersionsAreRefused::new(nanos(config.timing.heartbeat_interval))),
            ],
            at_most_one_run: AtMostOneRun::default(),
            strict,
        }
    }

    /// Shows a fact to all.
    ///
    /// # Errors
    /// The first promise that it breaks.
    pub fn see(&mut self, at: u64, fact: &Fact) -> Result<(), Broken> {
        if self.strict && matches!(fact, Fact::ClockBreaks { .. }) {
            return Ok(());
        }
        let broken = |promise| move |words| Broken { promise, at, words };
        self.at_most_one_run.see(at, fact).map_err(broken("S2"))?;
        self.all.iter_mut().try_for_each(|oracle| oracle.see(at, fact).map_err(broken(oracle.promise())))
    }

    /// How far runs have overlapped because an assumption was broken on purpose.
    #[must_use]
    pub fn overlap(&self) -> Overlap {
        self.at_most_one_run.overlap()
    }
}
