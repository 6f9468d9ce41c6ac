//! `cargo xtask test`.

use crate::{Failure, conformance, run, servers};

/// Installs what is missing, says which cases the stores are put through, and runs all tests; the last thing printed is the test runner's own summary.
pub(crate) fn test(arguments: &[&str]) -> Result<(), Failure> {
    servers::ensure()?;
    let tests = ["--workspace", "--all-features"];
    // Documentation tests first: the runner of the others cannot run them, and its summary is to come last.
    // Should they fail, the others are run all the same: one run shows everything.
    let documentation = run::step(run::cargo(&[&["test", "--doc", "--quiet"], &tests[..]].concat()));
    println!("{}", conformance::overview()?);
    if run::succeeds(&mut run::cargo(&["nextest", "--version"])) {
        run::step(run::cargo(&[&["nextest", "run"], &tests[..], arguments].concat()))?;
    } else {
        eprintln!(
            "xtask: cargo-nextest is not installed; `cargo test` runs the same tests, one program after the other.\n\
             To get it, type `cargo install cargo-nextest --locked` (it builds for some minutes)."
        );
        let targets = ["--lib", "--bins", "--tests", "--examples"];
        run::step(run::cargo(&[&["test", "--no-fail-fast"], &tests[..], &targets[..], arguments].concat()))?;
    }
    documentation
}
