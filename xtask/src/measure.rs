//! `cargo xtask measure`.

use crate::{Failure, run};

/// Builds and runs the measuring program, which is allowed to be heavy.
pub(crate) fn measure(names: &[&str]) -> Result<(), Failure> {
    crate::servers::ensure()?;
    // All programs of the package: the measurements start some of them.
    run::step(run::cargo(&["build", "--release", "--quiet", "--package", "rendez-testkit", "--bins"]))?;
    let program = ["run", "--release", "--quiet", "--package", "rendez-testkit", "--bin", "measure", "--"];
    run::step(run::cargo(&[&program[..], names].concat()))
}
