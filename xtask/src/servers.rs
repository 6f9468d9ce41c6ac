//! The server programs that tests start, and how a machine gets them.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::{Failure, run};

/// Programs, the Debian packages that bring them, and the services that those would leave running.
struct Server {
    programs: &'static [&'static str],
    packages: &'static [&'static str],
    services: &'static [&'static str],
}

const SERVERS: &[Server] = &[Server {
    programs: &["redis-server", "redis-sentinel", "redis-cli"],
    packages: &["redis-server", "redis-sentinel", "redis-tools"],
    services: &["redis-server", "redis-sentinel"],
}];

/// Installs what is missing, or says what to type.
pub(crate) fn ensure() -> Result<(), Failure> {
    let missing: Vec<&Server> =
        SERVERS.iter().filter(|server| !server.programs.iter().all(|program| run::has(program))).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().flat_map(|server| server.packages).copied().collect();
    let Some(prefix) = apt_get() else {
        return Err(Failure(refusal(&packages)));
    };
    let apt = |arguments: &[&str]| {
        let mut command = command(prefix, "apt-get");
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        run::step(command).map_err(|failure| Failure(format!("{failure}\n{}", refusal(&packages))))
    };
    apt(&["update"])?;
    apt(&[&["install", "-y", "--no-install-recommends"], &packages[..]].concat())?;
    // The packages start services of their own, which no test uses.
    if Path::new("/run/systemd/system").exists() {
        let services: Vec<&str> = missing.iter().flat_map(|server| server.services).copied().collect();
        let mut disable = command(prefix, "systemctl");
        disable.args(["disable", "--now"]).args(services);
        if let Err(failure) = run::step(disable) {
            eprintln!("xtask: the services that came with the packages may be running: {failure}");
        }
    }
    let still = missing.iter().flat_map(|server| server.programs).find(|program| !run::has(program));
    match still {
        Some(program) => Err(Failure(format!("{program} is missing even after the installation"))),
        None => Ok(()),
    }
}

/// Servers that all test programs share, since they start slowly: gone when this is dropped.
pub(crate) struct Shared {
    processes: Vec<Child>,
    /// The variables that name them.
    pub(crate) variables: Vec<(&'static str, String)>,
}

/// What `rendez-servers` calls them, and the variable that names each. One that is set already is left alone.
const SHARED: &[(&str, &str)] =
    &[("redis-sentinel", "RENDEZ_TEST_REDIS_SENTINEL_URL"), ("redis-cluster", "RENDEZ_TEST_REDIS_CLUSTER_URL")];

impl Shared {
    /// Starts them; returns when they answer.
    pub(crate) fn start() -> Result<Self, Failure> {
        run::step(run::cargo(&["build", "--workspace", "--all-features", "--bin", "rendez-servers"]))?;
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| run::root().join("target"), PathBuf::from);
        let mut shared = Self { processes: Vec::new(), variables: Vec::new() };
        for (name, variable) in SHARED {
            if std::env::var_os(variable).is_some() {
                continue;
            }
            let failed = |error: std::io::Error| Failure(format!("`rendez-servers {name}` did not start: {error}"));
            let mut command = Command::new(target.join("debug/rendez-servers"));
            let command = command.arg(name).current_dir(run::root()).stdin(Stdio::null()).stdout(Stdio::piped());
            let mut process = command.spawn().map_err(failed)?;
            let out = process.stdout.take();
            shared.processes.push(process);
            // Its first line is the address; an empty one is the last.
            let mut url = String::new();
            for line in out.into_iter().flat_map(|out| BufReader::new(out).lines()) {
                let line = line.map_err(failed)?;
                if line.is_empty() {
                    break;
                }
                if url.is_empty() {
                    url = line;
                }
            }
            if url.trim().is_empty() {
                return Err(Failure(format!("`rendez-servers {name}` named no address")));
            }
            shared.variables.push((variable, url.trim().to_owned()));
        }
        Ok(shared)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for process in &mut self.processes {
            // Its servers end with it. An error says that it has ended before.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
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
        "the tests need servers that are missing here and that cannot be installed without you: type\n    \
         sudo apt-get install -y {}\nor install them in the way of your system",
        packages.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_holds_the_line_to_type() {
        let packages: Vec<&str> = SERVERS.iter().flat_map(|server| server.packages).copied().collect();
        assert!(refusal(&packages).contains("apt-get install -y redis-server redis-sentinel redis-tools"));
    }
}
