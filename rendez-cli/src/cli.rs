//! The command line: what there is, and who does it.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::guardian;

#[derive(Debug, Parser)]
#[command(name = "rendez", version, about = "Runs each slot of work in exactly one place")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Guards the children of an agent.
    #[command(hide = true)]
    Guardian,
    /// Keeps one child of an agent.
    #[command(hide = true)]
    Keeper {
        /// The slot, for people who list processes.
        name: String,
    },
    /// Becomes the command of a child.
    #[command(hide = true)]
    ExecChild(guardian::ExecChild),
}

/// Does what the command line says.
pub(crate) fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Guardian => helper("guardian", guardian::guardian()),
        Command::Keeper { name } => helper(&format!("keeper of {name}"), guardian::keeper()),
        Command::ExecChild(args) => guardian::exec_child(&args),
    }
}

fn helper(name: &str, result: std::io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rendez {name}: {error}");
            ExitCode::FAILURE
        }
    }
}
