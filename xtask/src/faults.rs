//! `cargo xtask faults`.

use std::process::Command;

use crate::{Failure, run, servers};

/// Builds the programs and runs the matrix, with assertions on: what is measured here is right or wrong, not how fast.
pub(crate) fn faults(arguments: &[&str]) -> Result<(), Failure> {
    // A list needs no server.
    if !arguments.contains(&"--list") {
        servers::ensure()?;
    }
    let build = ["build", "--quiet", "--package", "rendez-testkit", "--package", "rendez-cli", "--bins"];
    let features = ["--features", "rendez-testkit/faults,rendez-cli/etcd,rendez-cli/kubernetes,rendez-cli/nats"];
    run::step(run::cargo(&[&build[..], &features].concat()))?;
    let mut program = Command::new(run::target()?.join("debug/faults"));
    program.args(arguments).current_dir(run::root());
    run::step(program)
}
