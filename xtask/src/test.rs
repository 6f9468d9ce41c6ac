//! `cargo xtask test`.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use crate::{Failure, conformance, run, servers};

/// The servers that tests share. A test that stops, fills or wipes a server starts its own.
const SHARED: &[&str] = &["redis", "redis-sentinel", "redis-cluster", "etcd", "postgres", "nats", "nats-cluster"];

/// Installs what is missing, says which cases the stores are put through, and runs all tests; the last thing printed is
/// the test runner's own summary.
pub(crate) fn test(arguments: &[&str]) -> Result<(), Failure> {
    servers::ensure()?;
    let tests = ["--workspace", "--all-features"];
    let mut shared = Shared::start(&tests)?;
    // Documentation tests first: the runner of the others cannot run them, and its summary is to come last.
    // Should they fail, the others are run all the same: one run shows everything.
    let documentation = run::step(run::cargo(&[&["test", "--doc", "--quiet"], &tests[..]].concat()));
    println!("{}", conformance::overview()?);
    let variables = shared.variables()?;
    let with_servers = |arguments: &[&str]| {
        let mut command = run::cargo(arguments);
        command.envs(variables.iter().map(|(name, url)| (name, url)));
        run::step(command)
    };
    if run::succeeds(&mut run::cargo(&["nextest", "--version"])) {
        with_servers(&[&["nextest", "run"], &tests[..], arguments].concat())?;
    } else {
        eprintln!(
            "xtask: cargo-nextest is not installed; `cargo test` runs the same tests, one program after the other.\n\
             To get it, type `cargo install cargo-nextest --locked` (it builds for some minutes)."
        );
        let targets = ["--lib", "--bins", "--tests", "--examples"];
        with_servers(&[&["test", "--no-fail-fast"], &tests[..], &targets[..], arguments].concat())?;
    }
    documentation
}

/// The program that keeps the shared servers. It ends them when its input ends, so also when this one is killed.
struct Shared {
    holder: Option<Child>,
}

impl Shared {
    /// Starts it, without waiting for its servers; the environment may already name some, which are left to it.
    fn start(build: &[&str]) -> Result<Self, Failure> {
        let given = |name: &&&str| std::env::var_os(variable(name)).is_some_and(|url| !url.is_empty());
        let names: Vec<&str> = SHARED.iter().filter(|name| !given(name)).copied().collect();
        if names.is_empty() {
            return Ok(Self { holder: None });
        }
        // Built with the features that the tests are built with, so that nothing is built twice.
        run::step(run::cargo(&[&["build", "--quiet"], build, &["--bin", "rendez-servers"]].concat()))?;
        let program = std::env::current_exe().map(|this| this.with_file_name("rendez-servers"));
        let program = program.map_err(|error| Failure(format!("where this program is: {error}")))?;
        let mut holder = std::process::Command::new(&program);
        holder.arg("--until-end-of-input").args(names).stdin(Stdio::piped()).stdout(Stdio::piped());
        let holder = holder.spawn().map_err(|error| Failure(format!("start {}: {error}", program.display())))?;
        Ok(Self { holder: Some(holder) })
    }

    /// Waits for the servers; returns the variables of the environment that name them.
    fn variables(&mut self) -> Result<Vec<(String, String)>, Failure> {
        let Some(output) = self.holder.as_mut().and_then(|holder| holder.stdout.take()) else {
            return Ok(Vec::new());
        };
        let mut variables = Vec::new();
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            match line.split_once('=') {
                Some((name, url)) => variables.push((name.to_owned(), url.to_owned())),
                None => return Ok(variables),
            }
        }
        Err(Failure("the servers that tests share did not start, for the reason above".to_owned()))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(holder) = &mut self.holder {
            // Waiting closes its input first.
            if let Err(error) = holder.wait() {
                eprintln!("xtask: the servers that tests share may be running: {error}");
            }
        }
    }
}

fn variable(name: &str) -> String {
    format!("RENDEZ_TEST_{}_URL", name.replace('-', "_").to_uppercase())
}
