//! Running other programs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Failure;

/// The root of the workspace.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// The target directory, wherever cargo was told to have it: this program stands in the folder of a profile in there.
pub(crate) fn target() -> Result<PathBuf, Failure> {
    let this = std::env::current_exe().map_err(|error| Failure(format!("where this program is: {error}")))?;
    let target = this.ancestors().nth(2).map(Path::to_owned);
    target.ok_or_else(|| Failure(format!("{} stands in no target directory", this.display())))
}

/// A cargo command at the root of the workspace, with the cargo that runs this.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    command
}

/// Runs a command in the open; it must succeed.
pub(crate) fn step(mut command: Command) -> Result<(), Failure> {
    let line = line(&command);
    eprintln!("+ {line}");
    match command.stdin(Stdio::null()).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure(format!("`{line}` failed: {status}"))),
        Err(error) => Err(Failure(format!("`{line}` did not start: {error}"))),
    }
}

/// Runs a command and returns what it printed; on failure, what it complained about.
pub(crate) fn output(command: &mut Command) -> Result<String, Failure> {
    let line = line(command);
    match command.stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(output) => {
            let complaint = String::from_utf8_lossy(&output.stderr);
            Err(Failure(format!("`{line}` failed: {}\n{complaint}", output.status)))
        }
        Err(error) => Err(Failure(format!("`{line}` did not start: {error}"))),
    }
}

/// Whether a command can be run with success, without showing what it prints.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// Whether a program is on `PATH`.
pub(crate) fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Makes sure that a component of the toolchain is there, which a minimal installation lacks.
pub(crate) fn component(subcommand: &str, component: &str) -> Result<(), Failure> {
    if succeeds(&mut cargo(&[subcommand, "--version"])) {
        return Ok(());
    }
    let line = format!("rustup component add {component}");
    if !has("rustup") {
        return Err(Failure(format!("`cargo {subcommand}` is missing: type `{line}`, or install it otherwise")));
    }
    let mut add = Command::new("rustup");
    add.args(["component", "add", component]).current_dir(root());
    step(add)
}

fn line(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
