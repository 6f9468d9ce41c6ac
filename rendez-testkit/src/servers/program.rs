//! Programs that are run to their end: the command line clients of the servers, and what prepares their data.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::ServerError;

/// How long such a program may take. Far more than it needs: a loaded machine must not fail a test.
pub(super) const PROGRAM_BOUND: Duration = Duration::from_secs(60);

/// Runs a program and returns what it printed, without the white space around it.
///
/// It is killed if the future is dropped.
///
/// # Errors
/// [`ServerError::Answer`] with what it complained about, [`ServerError::Timeout`] after [`PROGRAM_BOUND`].
pub(super) async fn run(command: Command) -> Result<String, ServerError> {
    let request = line(&command);
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let Ok(output) = tokio::time::timeout(PROGRAM_BOUND, command.output()).await else {
        return Err(ServerError::Timeout {
            condition: format!("the end of {request}"),
            waited: PROGRAM_BOUND,
            seen: "it was running".to_owned(),
        });
    };
    let output = output.map_err(ServerError::io(format!("start {request}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let complaint = [output.stderr, output.stdout].concat();
    let complaint = String::from_utf8_lossy(&complaint);
    Err(ServerError::Answer { request, answer: format!("{} ({})", complaint.trim(), output.status) })
}

/// The target directory of the build that this program comes from: what is costly to make is kept below it.
pub(super) fn target_folder() -> Result<PathBuf, ServerError> {
    let this = std::env::current_exe().map_err(ServerError::io("find this program"))?;
    // Programs stand in the folder of the profile, tests one deeper, in `deps`, and examples in `examples`.
    let profile = this.ancestors().skip(1).find(|folder| !folder.ends_with("deps") && !folder.ends_with("examples"));
    let target = profile.and_then(|profile| profile.parent());
    let target = target.ok_or_else(|| ServerError::Config(format!("{} is in no target directory", this.display())))?;
    Ok(target.to_owned())
}

fn line(command: &Command) -> String {
    let name = PathBuf::from(command.get_program());
    let name = name.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let words = command.get_args().map(|word| word.to_string_lossy().into_owned());
    std::iter::once(name).chain(words).collect::<Vec<_>>().join(" ")
}
