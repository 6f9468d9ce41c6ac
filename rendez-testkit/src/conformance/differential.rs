//! Random histories, sent to a store and to the model of the contract at the same moments: they must answer the same.
//!
//! What a store may choose is not compared: how it names sessions and generations, how large tokens and revisions are
//! (only which tokens of a slot are equal and which is larger), the time, in how many steps heartbeats tell what has
//! changed (only what they have told in the end), and which sessions they name as due, if the store says that they
//! name none. [`Exactly`](Comparison::Exactly) compares that too, for stores that draw tokens and revisions as the
//! model does.
//!
//! Only what the model says belongs here; no store is known.

mod names;
mod pair;
mod steps;
mod told;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rendez_core::{ClusterName, LeaseStore, StoreTime};

use pair::Pair;

/// How strictly answers are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// All that the contract says; what a store may choose is left out.
    Freely,
    /// Whole answers, with tokens, revisions, digests and times.
    Exactly,
}

/// The future of a fault.
pub type Done<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What histories may do to the server, and what it tells beside its answers. A fault that cannot be is never tried.
pub trait World: Send + std::marker::Sync {
    /// Lets the server say from now on that data may have been lost, though none were.
    fn restart<'a>(&'a self, cluster: &'a ClusterName) -> Option<Done<'a, ()>>;

    /// Deletes everything of a cluster, unnoticed.
    fn lose_everything<'a>(&'a self, cluster: &'a ClusterName) -> Option<Done<'a, ()>>;

    /// When the server carried out a request whose answer does not tell the time. `last` is the time of the last one
    /// that did. Without it, both sides are read after such a request; [`Comparison::Exactly`] wants it.
    fn now<'a>(&'a self, cluster: &'a ClusterName, last: StoreTime) -> Option<Done<'a, StoreTime>>;

    /// Whether operators write settings, too. A store may remember a longer session TTL than there is now; then its
    /// quiet times are longer than the model's, which [`Comparison::Exactly`] would see.
    fn writes_settings(&self) -> bool {
        true
    }
}

/// A server to which nothing is done.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoFaults;

impl World for NoFaults {
    fn restart<'a>(&'a self, _: &'a ClusterName) -> Option<Done<'a, ()>> {
        None
    }

    fn lose_everything<'a>(&'a self, _: &'a ClusterName) -> Option<Done<'a, ()>> {
        None
    }

    fn now<'a>(&'a self, _: &'a ClusterName, _: StoreTime) -> Option<Done<'a, StoreTime>> {
        None
    }
}

/// The most steps of a history.
const STEPS_MAX: usize = 150;
const NODES: u8 = 4;
const UNITS: u32 = 4;

/// What histories must meet.
const WORDS: &str = "Acquire Release Offer Withdraw Accept Refuse Transfer SaveCheckpoint Readopt \
                     Quiet Token Held NotHolder ReceiverGone Offer NotQuiet";

/// So many rounds of random histories must meet everything that can happen.
const ROUNDS_MAX: usize = 5;

/// Runs rounds of random histories until each of these words was met, what was tried or what came of it: random requests
/// are worth something only if they get somewhere, and once in a while a round does not.
///
/// # Panics
/// With what a round has found, or with the words that were never met.
pub fn until_met<E: fmt::Display>(words: &str, met: &RefCell<BTreeSet<String>>, round: impl Fn() -> Result<(), E>) {
    let missed = || words.split_whitespace().filter(|word| !met.borrow().contains(*word)).collect::<Vec<_>>();
    for _ in 0..ROUNDS_MAX {
        if let Err(error) = round() {
            panic!("{error}");
        }
        if missed().is_empty() {
            return;
        }
    }
    panic!("never met: {:?}", missed());
}

/// Sends random histories to a store and to the model, and compares all answers: this many, unless `PROPTEST_CASES`
/// says another number. Each history has a cluster of its own. The handles are of one store and take turns, so that each
/// lives on what the others have written.
///
/// # Panics
/// Without a handle; with the shortest history that is found in which the two disagree; and if the histories together
/// leave a change or a conflict out, since then they are worth nothing.
pub fn run(
    runtime: &tokio::runtime::Runtime,
    handles: &[Arc<dyn LeaseStore>],
    histories: u32,
    comparison: Comparison,
    world: &dyn World,
) {
    assert!(!handles.is_empty(), "a store is asked through at least one handle");
    let capabilities = handles[0].capabilities();
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(histories);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 2000, ..Config::default() };
    let number = Cell::new(0_u32);
    let met = RefCell::new(BTreeSet::new());
    let run_id = fastrand::u64(..);
    let round = || {
        TestRunner::new(config.clone()).run(&prop::collection::vec(steps::step(), 1..STEPS_MAX), |steps| {
            number.set(number.get() + 1);
            runtime.block_on(async {
                let name = format!("differential {run_id:x} {}", number.get());
                let cluster = ClusterName::new(name).map_err(|error| TestCaseError::fail(error.to_string()))?;
                let mut pair = Pair::new(handles, &capabilities, comparison, cluster, number.get().into());
                pair.writes_settings = world.writes_settings();
                for step in &steps {
                    pair.take(world, step).await?;
                }
                pair.settle(world).await?;
                met.borrow_mut().append(&mut pair.met);
                Ok(())
            })
        })
    };
    let words = match comparison {
        Comparison::Exactly => WORDS.to_owned(),
        // A store that told every reader to read everything anew would be right, and slow.
        Comparison::Freely => format!("{WORDS} Told"),
    };
    until_met(&words, &met, round);
}
