//! Where the program `rendez-probe` is.
//!
//! It is the child of supervisors in tests: it takes `RENDEZ_SLOT`, `RENDEZ_TOKEN` and `RENDEZ_NODE` from its
//! environment and writes [run records](crate::records) into the file that it is given. `rendez-probe --help` lists
//! what else it can do.

use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The path of a program of this crate, for tests of other crates; built if it is not there.
///
/// Tests of this crate use `env!("CARGO_BIN_EXE_rendez-probe")` instead, which is always up to date.
///
/// # Errors
/// The program is not there and cannot be built; the message holds the line to type.
pub fn program(name: &str) -> io::Result<PathBuf> {
    let this = std::env::current_exe()?;
    // Programs stand in the folder of the profile, tests one deeper, in `deps`.
    let folder = this.ancestors().skip(1).find(|folder| !folder.ends_with("deps"));
    let folder = folder.ok_or_else(|| io::Error::other("this program stands in no folder"))?;
    let path = folder.join(name);
    if path.is_file() {
        return Ok(path);
    }
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(profile) => profile,
    };
    let build = ["build", "--quiet", "--package", "rendez-testkit", "--bins", "--profile", profile];
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(build)
        .args(folder.parent().map(|target| format!("--target-dir={}", target.display())))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null())
        .status();
    if path.is_file() {
        return Ok(path);
    }
    let line = "cargo build --package rendez-testkit --bins";
    Err(io::Error::other(format!("{} is missing: type `{line}` (tried it: {built:?})", path.display())))
}

/// The path of `rendez-probe`; see [`program`].
///
/// # Errors
/// As [`program`].
pub fn path() -> io::Result<PathBuf> {
    program("rendez-probe")
}
