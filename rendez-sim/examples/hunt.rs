//! Hunts for broken promises: `hunt KIND FIRST SEEDS STARTS` runs seeds from `FIRST` until one breaks a promise, and
//! again from a million further on, `STARTS` times. Prints for each how many seeds it took, which broke, and what.

use rendez_sim::Kind;
use rendez_sim::run::{Many, run_many};

/// From one start to the next.
const STRIDE: u64 = 1_000_000;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let usage = "usage: hunt KIND FIRST SEEDS STARTS";
    let kind: Kind = words.first().and_then(|word| word.parse().ok()).expect(usage);
    let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok()).expect(usage);
    let (first, seeds, starts) = (number(1), number(2), number(3));
    std::panic::set_hook(Box::new(|_| ()));
    for start in 0..starts {
        let many = Many { twice_every: 0, broken_max: 1, ..Many::new(kind, first + start * STRIDE, seeds) };
        let summary = run_many(&many, |_| true);
        match summary.broken.iter().next() {
            Some((seed, broken)) => println!("caught {} {seed} {broken}", summary.seeds),
            None => println!("missed {}", summary.seeds),
        }
    }
}
