//! The server programs that tests start, and how a machine gets them.

use std::path::Path;
use std::process::Command;

use crate::{Failure, run};

mod python_packages;

/// Programs (or files, seen from a folder of programs), the Debian packages that bring them, and the services that those would leave running.
#[derive(Clone, Copy)]
struct Need {
    programs: &'static [&'static str],
    packages: &'static [&'static str],
    services: &'static [&'static str],
}

const SERVERS: &[Need] = &[
    Need {
        programs: &["redis-server", "redis-sentinel", "redis-cli"],
        packages: &["redis-server", "redis-sentinel", "redis-tools"],
        services: &["redis-server", "redis-sentinel"],
    },
    Need { programs: &["etcd", "etcdctl"], packages: &["etcd-server", "etcd-client"], services: &["etcd"] },
    Need {
        programs: &["postgres", "initdb", "pg_basebackup", "psql"],
        packages: &["postgresql"],
        services: &["postgresql"],
    },
    Need { programs: &["pgbouncer"], packages: &["pgbouncer"], services: &["pgbouncer"] },
    Need { programs: &["faketime"], packages: &["faketime"], services: &[] },
];

/// What a build needs: the client of etcd is made from the interface's description.
/// Debian keeps the descriptions that every other one includes in a package of their own.
const TOOLS: &[Need] = &[Need {
    programs: &["protoc", "../include/google/protobuf/descriptor.proto"],
    packages: &["protobuf-compiler", "libprotobuf-dev"],
    services: &[],
}];

/// Where Debian puts servers that are not for everybody's `PATH`: PostgreSQL, by version, and pgbouncer.
const POSTGRES: &str = "/usr/lib/postgresql";
const SYSTEM: &str = "/usr/sbin";

/// Installs what builds and tests need and what is missing, or says what to type.
pub(crate) fn ensure() -> Result<(), Failure> {
    ensure_all(&[TOOLS, SERVERS].concat())?;
    python_packages::ensure()
}

/// The same for what the build of all crates needs.
pub(crate) fn ensure_tools() -> Result<(), Failure> {
    ensure_all(TOOLS)
}

fn ensure_all(needs: &[Need]) -> Result<(), Failure> {
    let missing: Vec<&Need> = needs.iter().filter(|need| !need.programs.iter().all(|program| has(program))).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().flat_map(|need| need.packages).copied().collect();
    let services: Vec<&str> = missing.iter().flat_map(|need| need.services).copied().collect();
    install(&packages, &services)?;
    match missing.iter().flat_map(|need| need.programs).find(|program| !has(program)) {
        Some(program) => Err(Failure(format!("{program} is missing even after the installation"))),
        None => Ok(()),
    }
}

/// Installs packages and ends the services that come with them.
fn install(packages: &[&str], services: &[&str]) -> Result<(), Failure> {
    let Some(prefix) = apt_get() else {
        return Err(Failure(refusal(packages)));
    };
    let apt = |arguments: &[&str]| {
        let mut command = command(prefix, "apt-get");
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        run::step(command).map_err(|failure| Failure(format!("{failure}\n{}", refusal(packages))))
    };
    apt(&["update"])?;
    apt(&[&["install", "-y", "--no-install-recommends"], packages].concat())?;
    // No test uses the services of the packages.
    if !services.is_empty() && Path::new("/run/systemd/system").exists() {
        let mut disable = command(prefix, "systemctl");
        disable.args(["disable", "--now"]).args(services);
        if let Err(failure) = run::step(disable) {
            eprintln!("xtask: the services that came with the packages may be running: {failure}");
        }
    }
    Ok(())
}

/// Whether a program is on `PATH` or where Debian hides it.
fn has(program: &str) -> bool {
    let versions = std::fs::read_dir(POSTGRES).into_iter().flatten().flatten();
    let mut folders = versions.map(|version| version.path().join("bin")).chain([SYSTEM.into()]);
    run::has(program) || folders.any(|folder| folder.join(program).is_file())
}

/// What comes before `apt-get`, where it can be used without asking anybody.
fn apt_get() -> Option<&'static [&'static str]> {
    if !run::has("apt-get") {
        return None;
    }
    let root = run::output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    if root {
        return Some(&[]);
    }
    let sudo = run::has("sudo") && run::succeeds(Command::new("sudo").args(["-n", "true"]));
    sudo.then_some(&["sudo", "-n", "--preserve-env=DEBIAN_FRONTEND"])
}

fn command(prefix: &[&str], program: &str) -> Command {
    match prefix {
        [] => Command::new(program),
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
    }
}

fn refusal(packages: &[&str]) -> String {
    format!(
        "builds and tests need programs that are missing here and that cannot be installed without you: type\n    \
         sudo apt-get install -y {}\nor install them in the way of your system",
        packages.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_holds_the_line_to_type() {
        let needs = [TOOLS, SERVERS].concat();
        let packages: Vec<&str> = needs.iter().flat_map(|need| need.packages).copied().collect();
        let line = "apt-get install -y protobuf-compiler libprotobuf-dev redis-server redis-sentinel redis-tools \
                    etcd-server etcd-client postgresql pgbouncer faketime\n";
        assert!(refusal(&packages).contains(line), "{}", refusal(&packages));
    }
}
