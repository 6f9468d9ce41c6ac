//! Hunts for broken promises where the command line would take too long to build: for chores.
//!
//! `hunt KIND FIRST SEEDS STARTS` runs seeds from `FIRST` until one breaks a promise, and again from a million further on,
//! `STARTS` times; prints for each how many seeds it took, which broke, and what. `hunt many KIND FIRST SEEDS` runs seeds on
//! all processors, and ends with code 5 if a promise breaks. `hunt hashes KIND FIRST SEEDS` prints the hash of each
//! seed's trace.

use rendez_sim::run::{Many, Summary, run, run_many};
use rendez_sim::{Kind, Scenario};

/// From one start to the next.
const STRIDE: u64 = 1_000_000;

const USAGE: &str = "usage: hunt KIND FIRST SEEDS STARTS | hunt many KIND FIRST SEEDS | hunt hashes KIND FIRST SEEDS";

/// The exit code of a broken promise, as the command line has it.
const PROMISE_BROKEN: i32 = 5;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    std::panic::set_hook(Box::new(|_| ()));
    match words[..] {
        ["hashes", kind, first, seeds] => hashes(kind.parse().expect(USAGE), number(first), number(seeds)),
        ["many", kind, first, seeds] => many(kind.parse().expect(USAGE), number(first), number(seeds)),
        [kind, first, seeds, starts] => hunt(kind.parse().expect(USAGE), number(first), number(seeds), number(starts)),
        _ => {
            eprintln!("{USAGE}");
            std::process::exit(2);
        }
    }
}

fn number(word: &str) -> u64 {
    word.parse().expect(USAGE)
}

fn many(kind: Kind, first: u64, seeds: u64) {
    println!("worlds: {kind}, first seed {first}, {seeds} seeds");
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let summary = run_many(&Many { threads, broken_max: 1, ..Many::new(kind, first, seeds) }, |_| true);
    let (covered, possible) = (summary.pairs.len(), Summary::pairs_possible());
    println!("{} seeds, {} of them twice; {covered} of {possible} pairs of faults", summary.seeds, summary.twice);
    for (seed, broken) in &summary.broken {
        println!("{broken}\nto see it again: cargo run -p rendez-cli -- sim --kind {kind} --seed {seed} --trace");
    }
    if !summary.broken.is_empty() {
        std::process::exit(PROMISE_BROKEN);
    }
}

fn hashes(kind: Kind, first: u64, seeds: u64) {
    for seed in first..first + seeds {
        println!("{kind} {seed} {:016x}", run(&Scenario::of(kind, seed)).hash);
    }
}

fn hunt(kind: Kind, first: u64, seeds: u64, starts: u64) {
    for start in 0..starts {
        let many = Many { twice_every: 0, broken_max: 1, ..Many::new(kind, first + start * STRIDE, seeds) };
        let summary = run_many(&many, |_| true);
        match summary.broken.iter().next() {
            Some((seed, broken)) => println!("caught {} {seed} {broken}", summary.seeds),
            None => println!("missed {}", summary.seeds),
        }
    }
}
