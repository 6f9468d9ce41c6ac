//! `cargo xtask measure`.

use crate::{Failure, run};

/// Builds and runs the measuring program, which is allowed to be heavy.
pub(crate) fn measure(names: &[&str]) -> Result<(), Failure> {
    crate::servers::ensure()?;
    // All programs: the measurements start some of them.
    let feature = ["--features", "rendez-testkit/measure-etcd,rendez-cli/etcd"];
    let build = ["build", "--release", "--quiet", "--package", "rendez-testkit", "--package", "rendez-cli", "--bins"];
    run::step(run::cargo(&[&build[..], &feature].concat()))?;
    let program = ["run", "--release", "--quiet", "--package", "rendez-testkit", "--package", "rendez-cli"];
    run::step(run::cargo(&[&program[..], &feature, &["--bin", "measure", "--"], names].concat()))
}
