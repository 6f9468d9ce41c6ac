//! How the command ends: the exit codes, and the failures that lead to them.

use std::fmt;
use std::process::ExitCode;

/// The exit codes of `rendez`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// It did not work.
    Failure = 1,
    /// What was asked for cannot be.
    Usage = 2,
    /// The store cannot be reached, or refuses.
    Store = 3,
    /// Another process has the node's id.
    InUse = 4,
    /// A promise was broken.
    PromiseBroken = 5,
}

/// Why the command ends with another code than 0, in words that hold no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self { exit, message: message.to_string() }
    }
}

/// Says a failure, and turns it into the process's exit code.
pub(crate) fn finish(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { exit, message }) => {
            eprintln!("rendez: {message}");
            ExitCode::from(exit as u8)
        }
    }
}
