//! The chores of this workspace, run as `cargo xtask CHORE`.
//!
//! Kept light, so that a fresh checkout builds it in seconds: what needs the other crates belongs into a program
//! of its own that is started from here.

use std::fmt;
use std::process::ExitCode;

mod architecture;
mod conformance;
mod faults;
mod measure;
mod mutants;
mod run;
mod servers;
mod sim;
mod source;
mod test;

const USAGE: &str = "\
usage: cargo xtask CHORE

  test [ARGUMENT...]     installs what the tests need where it can, then runs all tests; arguments go to the runner
  conformance [--store NAME] [--list]
                         puts the stores through the conformance suite, or lists its cases
  check                  formatting, lints, documentation, architecture
  servers                installs what builds and tests need where it can, and nothing else
  architecture           only the architecture: what may depend on what, and what the core may use
  measure [--store STORE] [NAME...]
                         prints measurements (on Redis unless another store is named); without a name, all of them;
                         `measure list` lists them
  faults [--store NAME] [--fault NAME] [--runs N] [--seed S] [--list] [--markdown]
                         runs every store against every real fault, with agents at work, and judges what was written down
  sim [SEEDS]            runs the simulator on fresh seeds, 10000 unless another number is given
  mutants [NAME...]      plants bugs one at a time, and sees that the simulator finds each
";

/// Why a chore failed, in words for the person who started it.
#[derive(Debug)]
struct Failure(String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["test", ref arguments @ ..] => test::test(arguments),
        ["conformance", ref words @ ..] => conformance::conformance(words),
        ["check"] => check(),
        ["servers"] => servers::ensure(),
        ["architecture"] => architecture::check(),
        ["measure", ref names @ ..] => measure::measure(names),
        ["faults", ref arguments @ ..] => faults::faults(arguments),
        ["sim", ref words @ ..] => sim::sim(words),
        ["mutants", ref names @ ..] => mutants::mutants(names),
        [] | ["help" | "-h" | "--help"] => {
            print!("{USAGE}");
            Ok(())
        }
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("xtask: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn check() -> Result<(), Failure> {
    servers::ensure_tools()?;
    run::component("fmt", "rustfmt")?;
    run::component("clippy", "clippy")?;
    run::step(run::cargo(&["fmt", "--all", "--check"]))?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"];
    run::step(run::cargo(&clippy))?;
    let mut doc = run::cargo(&["doc", "--workspace", "--no-deps", "--all-features", "--lib"]);
    doc.env("RUSTDOCFLAGS", "-D warnings");
    run::step(doc)?;
    architecture::check()
}
