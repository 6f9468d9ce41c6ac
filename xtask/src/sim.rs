//! `cargo xtask sim`: the simulator on fresh seeds, and the same seeds in two builds.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::{Failure, run};

/// How many fresh seeds, unless another number is given.
const SEEDS: u64 = 10_000;

/// How many seeds of each kind are compared between builds.
const COMPARED: &str = "20";

/// Runs fresh seeds on all processors, and insists that the same seed makes the same trace in a quick build with
/// assertions and in an optimised one without.
pub(crate) fn sim(words: &[&str]) -> Result<(), Failure> {
    let seeds = match words {
        [] => SEEDS,
        [number] => number.parse().map_err(|_| Failure(format!("{number:?} is no number of seeds")))?,
        _ => return Err(Failure("sim takes one number, how many seeds".to_owned())),
    };
    let seeds = seeds.to_string();
    let first = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() * 1_000_000;
    let first = first.to_string();
    for kind in ["plain", "minds", "swarm"] {
        let hashes = ["hashes", kind, "1", COMPARED];
        let (quick, optimised) = (run::output(&mut hunt("dev", &hashes))?, run::output(&mut hunt("sim", &hashes))?);
        if quick != optimised || quick.is_empty() {
            let differ: Vec<&str> = quick.lines().filter(|line| !optimised.lines().any(|it| it == *line)).collect();
            return Err(Failure(format!(
                "these seeds have another trace in an optimised build: {}",
                differ.join("; ")
            )));
        }
    }
    eprintln!("the first {COMPARED} seeds of each kind have the same traces in both builds");
    run::step(hunt("sim", &["many", "swarm", &first, &seeds]))
}

fn hunt(profile: &str, words: &[&str]) -> std::process::Command {
    let build = ["run", "--quiet", "--profile", profile, "--package", "rendez-sim", "--example", "hunt", "--"];
    run::cargo(&[&build[..], words].concat())
}
