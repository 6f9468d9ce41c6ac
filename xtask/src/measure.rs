//! `cargo xtask measure`.

use std::process::Command;

use crate::{Failure, run};

/// Builds and runs the measuring program, which is allowed to be heavy.
pub(crate) fn measure(names: &[&str]) -> Result<(), Failure> {
    crate::servers::ensure()?;
    // All programs: the measurements start some of them.
    let build = ["build", "--release", "--quiet", "--package", "rendez-testkit", "--package", "rendez-cli", "--bins"];
    let features = [
        "--features",
        "rendez-testkit/measure-etcd,rendez-testkit/measure-nats,rendez-cli/etcd,rendez-cli/kubernetes,rendez-cli/nats",
    ];
    run::step(run::cargo(&[&build[..], &features].concat()))?;
    let mut program = Command::new(run::target()?.join("release/measure"));
    program.args(names).current_dir(run::root());
    run::step(program)
}
