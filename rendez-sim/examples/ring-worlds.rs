//! Rings for long: many worlds with the policy `ring`, and one in which things go wrong for hours. Prints what became of them.
//!
//! `cargo run --profile sim -p rendez-sim --example ring-worlds [SEEDS [HOURS]]`; 1000 seeds of each kind and 8 hours of the
//! world's time unless given; a world has bounded steps, and ten hours nearly use them up. Ends with 1 if a promise was broken.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Instant;

use rendez_sim::run::run;
use rendez_sim::{Fault, Faults, Kind, Scenario, Variant};

const PARTITIONS: u32 = 128;
const NODES: usize = 5;

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1).map(|word| word.parse().expect("numbers: SEEDS HOURS"));
    let (seeds, hours): (u64, u64) = (words.next().unwrap_or(1000), words.next().unwrap_or(8));
    let begin = Instant::now();
    let (mut worlds, mut steps, mut broken, mut happened) = (0, 0, 0, BTreeSet::new());
    let mut judge = |what: String, scenario: Scenario| {
        let outcome = run(&scenario);
        worlds += 1;
        steps += outcome.steps;
        happened.extend(outcome.happened.iter());
        if let Some(why) = outcome.broken {
            broken += 1;
            println!("{what}: {why}\n{scenario}");
        }
    };
    for kind in Kind::ALL {
        for seed in 1..=seeds {
            let scenario = Scenario::of(kind, seed);
            let variant = scenario.variant.with_policy(Variant::RING);
            judge(format!("{kind} {seed}"), Scenario { variant, ..scenario });
        }
    }
    let many = begin.elapsed();
    // Clocks that break what is assumed of them take most promises about runs along.
    let faults: Faults = Fault::ALL.into_iter().filter(|fault| *fault != Fault::ClockJumps).collect();
    let long = Scenario {
        nodes: NODES,
        workloads: vec![PARTITIONS],
        faults,
        trouble_s: hours * 3600,
        variant: Variant(Variant::RING),
        ..Scenario::default()
    };
    judge(format!("{hours} hours"), long);
    println!(
        "{worlds} worlds, {steps} steps, {} kinds of faults, {broken} promises broken; {many:.0?} for {seeds} seeds of each \
         kind, {:.0?} for {NODES} nodes and {PARTITIONS} partitions in which things went wrong for {hours} hours",
        happened.len(),
        begin.elapsed() - many
    );
    if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
