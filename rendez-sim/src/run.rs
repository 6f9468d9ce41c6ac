//! Running worlds: one with its verdict, or many on all processors with a summary.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::faults::{Fault, Faults};
use crate::oracles::{Broken, Overlap};
use crate::scenario::{Kind, Scenario};
use crate::trace::Trace;
use crate::world::World;

/// What became of a world.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Stands for all that happened.
    pub hash: u64,
    /// The promise that was broken.
    pub broken: Option<Broken>,
    /// The faults that did happen.
    pub happened: Faults,
    /// The steps that the world took.
    pub steps: u64,
    /// How far runs have overlapped because an assumption was broken on purpose.
    pub overlap: Overlap,
}

/// Runs the world of a scenario. An engine that panics has broken a promise too.
#[must_use]
pub fn run(scenario: &Scenario) -> Outcome {
    run_traced(scenario, false).0
}

/// The same, and all its facts.
#[must_use]
pub fn run_traced(scenario: &Scenario, keep: bool) -> (Outcome, Trace) {
    let mut world = World::new(scenario.clone(), keep);
    let panicked = catch_unwind(AssertUnwindSafe(|| world.run())).err().map(|panic| {
        let words = panic.downcast_ref::<String>().cloned();
        words.or_else(|| panic.downcast_ref::<&str>().map(|words| (*words).to_owned())).unwrap_or_default()
    });
    let (steps, _, _) = world.counts();
    let broken = match panicked {
        Some(words) => Some(Broken { promise: "no panic", at: 0, words }),
        None => world.broken().cloned(),
    };
    let outcome =
        Outcome { hash: world.trace().hash(), broken, happened: world.happened(), steps, overlap: world.overlap() };
    (outcome, world.into_trace())
}

/// Runs a scenario twice and insists on the same hash.
#[must_use]
pub fn run_twice(scenario: &Scenario) -> Outcome {
    let (first, second) = (run(scenario), run(scenario));
    if first.hash != second.hash && first.broken.is_none() {
        let words = format!("{:016x}, then {:016x}", first.hash, second.hash);
        return Outcome { broken: Some(Broken { promise: "the same seed, the same trace", at: 0, words }), ..first };
    }
    first
}

/// Which worlds to run.
#[derive(Debug, Clone)]
pub struct Many {
    /// Of which kind.
    pub kind: Kind,
    /// The first seed.
    pub first: u64,
    /// How many.
    pub seeds: u64,
    /// On how many threads.
    pub threads: usize,
    /// Every so many seeds, one is run twice to see that its trace is the same.
    pub twice_every: u64,
    /// Stop after this many broken promises.
    pub broken_max: usize,
}

impl Many {
    /// These seeds, on one thread.
    #[must_use]
    pub fn new(kind: Kind, first: u64, seeds: u64) -> Self {
        Self { kind, first, seeds, threads: 1, twice_every: 16, broken_max: 5 }
    }
}

/// What became of many worlds.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// How many were run.
    pub seeds: u64,
    /// How many of them twice.
    pub twice: u64,
    /// The steps that they took.
    pub steps: u64,
    /// In how many each fault happened.
    pub alone: BTreeMap<Fault, u64>,
    /// In how many both of two faults happened.
    pub pairs: BTreeMap<(Fault, Fault), u64>,
    /// In how many nothing went wrong.
    pub quiet: u64,
    /// Overlaps where an assumption was broken on purpose.
    pub overlap: Overlap,
    /// The seeds that broke a promise, smallest first.
    pub broken: BTreeMap<u64, Broken>,
}

impl Summary {
    fn add(&mut self, seed: u64, outcome: Outcome, twice: bool) {
        self.seeds += 1;
        self.twice += u64::from(twice);
        self.steps += outcome.steps;
        let faults: Vec<Fault> = outcome.happened.iter().collect();
        self.quiet += u64::from(faults.is_empty());
        for (at, one) in faults.iter().enumerate() {
            *self.alone.entry(*one).or_default() += 1;
            for other in &faults[at + 1..] {
                *self.pairs.entry((*one, *other)).or_default() += 1;
            }
        }
        self.overlap.times += outcome.overlap.times;
        self.overlap.nanos += outcome.overlap.nanos;
        self.overlap.longest = self.overlap.longest.max(outcome.overlap.longest);
        if let Some(broken) = outcome.broken {
            self.broken.insert(seed, broken);
        }
    }

    /// How many pairs of faults there are.
    #[must_use]
    pub const fn pairs_possible() -> usize {
        Fault::ALL.len() * (Fault::ALL.len() - 1) / 2
    }
}

/// Runs many worlds. After each, `goes_on` is told how many were run and says whether to go on.
///
/// The seeds are handed to the threads in their order; each world is run by one thread, so threads change nothing in it.
pub fn run_many(many: &Many, goes_on: impl Fn(u64) -> bool + Sync) -> Summary {
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let summary = Mutex::new(Summary::default());
    std::thread::scope(|scope| {
        for _ in 0..many.threads.max(1) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= many.seeds {
                        break;
                    }
                    let seed = many.first.wrapping_add(number);
                    let scenario = Scenario::of(many.kind, seed);
                    let twice = many.twice_every > 0 && number % many.twice_every == 0;
                    let outcome = if twice { run_twice(&scenario) } else { run(&scenario) };
                    let mut summary = summary.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    summary.add(seed, outcome, twice);
                    if summary.broken.len() >= many.broken_max || !goes_on(summary.seeds) {
                        stop.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    summary.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}
