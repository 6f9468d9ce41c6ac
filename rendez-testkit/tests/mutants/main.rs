//! The suite has teeth: stores that are wrong in one way each are caught, and the one that is right is not.

mod list;
mod store;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rendez_testkit::conformance;
use tokio::task::JoinSet;

use list::{FAITHFUL, MUTANTS};
use store::{Mutant, MutantFixture};

/// How many mutants are judged beside each other: none of them ever waits.
const THREADS: usize = 2;

/// The cases that a store fails, and how many it was put through.
struct Verdict {
    failed: BTreeMap<String, String>,
    cases: usize,
}

/// Puts a store through the whole suite. In virtual time: nobody waits, and no machine is too slow.
fn judge(mutant: &'static Mutant) -> Verdict {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let fixture = Arc::new(MutantFixture::new(mutant));
        let mut running = JoinSet::new();
        for case in conformance::cases() {
            if case.needs().iter().any(|fault| conformance::Fixture::lacks(&*fixture, *fault).is_some()) {
                continue;
            }
            let fixture = Arc::clone(&fixture);
            running.spawn(async move { (case.name(), conformance::check(case, fixture).await) });
        }
        let mut verdict = Verdict { failed: BTreeMap::new(), cases: running.len() };
        while let Some(ended) = running.join_next().await {
            let (name, outcome) = ended.unwrap();
            if let Err(failure) = outcome {
                verdict.failed.insert(name, failure.to_string());
            }
        }
        verdict
    })
}

#[test]
fn a_store_that_is_right_passes() {
    let verdict = judge(&FAITHFUL);
    assert!(verdict.cases > 150, "{} cases", verdict.cases);
    let failed: Vec<_> = verdict.failed.iter().map(|(name, failure)| format!("{name}: {failure}")).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}

#[test]
fn every_mutant_is_caught() {
    let next = AtomicUsize::new(0);
    let caught = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some(mutant) = MUTANTS.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let failed: Vec<String> = judge(mutant).failed.into_keys().collect();
                    caught.lock().unwrap().insert(mutant.name, failed);
                }
            });
        }
    });
    let caught = caught.into_inner().unwrap();
    assert_eq!(caught.len(), MUTANTS.len(), "two mutants have one name");
    println!("{:58} case that caught it (and how many others)", "mutant");
    for mutant in MUTANTS {
        match caught[mutant.name].as_slice() {
            [] => println!("{:58} NONE", mutant.name),
            [only] => println!("{:58} {only}", mutant.name),
            [first, others @ ..] => println!("{:58} {first} (+{})", mutant.name, others.len()),
        }
    }
    let missed: Vec<_> = caught.iter().filter(|(_, cases)| cases.is_empty()).map(|(name, _)| name).collect();
    assert!(missed.is_empty(), "no case catches: {missed:?}");
}
