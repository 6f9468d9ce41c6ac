//! The last step before a command runs: settings that a process can only make for itself, then `exec`.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use rustix::process::{Resource, Rlimit, Signal, getppid, getrlimit, set_parent_process_death_signal, setrlimit};

/// Arguments of the hidden subcommand `exec-child`.
#[derive(Debug, clap::Args)]
pub(crate) struct ExecChild {
    /// The process that must be the parent.
    #[arg(long)]
    pub(crate) parent: i32,
    /// The soft limit of open files to go back to.
    #[arg(long)]
    pub(crate) open_files: Option<u64>,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<std::ffi::OsString>,
}

/// Becomes the command, which the kernel then kills when its keeper dies. Returns only if that is impossible.
pub(crate) fn exec_child(args: &ExecChild) -> ExitCode {
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        eprintln!("rendez: cannot bind the command to its keeper: {error}");
        return ExitCode::from(126);
    }
    // The parent may have died before the signal was asked for.
    if getppid().is_none_or(|parent| parent.as_raw_nonzero().get() != args.parent) {
        return ExitCode::from(126);
    }
    if let Some(current) = args.open_files {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(current), ..getrlimit(Resource::Nofile) });
    }
    let Some((program, arguments)) = args.command.split_first() else { return ExitCode::from(126) };
    let error = Command::new(program).args(arguments).exec();
    eprintln!("rendez: cannot run {}: {error}", program.display());
    ExitCode::from(if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 })
}
