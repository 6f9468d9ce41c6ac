//! The command line: what there is, and who does it.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
#[cfg(target_os = "linux")]
use tracing_subscriber::EnvFilter;

#[cfg(target_os = "linux")]
use crate::agent::{self, AgentArgs};
use crate::demo;
#[cfg(target_os = "linux")]
use crate::elect::{self, ElectArgs};
use crate::exit::finish;
use crate::explain::{self, ExplainArgs};
#[cfg(target_os = "linux")]
use crate::guardian;
use crate::predict::{self, PredictArgs};
use crate::ring::{self, RingCommand};
use crate::sim::{self, SimArgs};
use crate::status::{self, StatusArgs};

/// Runs each slot of work in exactly one place, through leases in a store
#[derive(Debug, Parser)]
#[command(name = "rendez", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 fine, 1 failure, 2 usage, 3 store, 4 node name in use, 5 promise broken";

#[derive(Debug, Subcommand)]
enum Command {
    /// Take part in a cluster, and run one child process for each slot that this node owns
    #[cfg(target_os = "linux")]
    Agent(Box<AgentArgs>),
    /// Run a command only while leading: in one place at a time, and gone before another may begin
    #[cfg(target_os = "linux")]
    Elect(Box<ElectArgs>),
    /// Say who is there, who runs what, and why where that is not as it should be
    Status(StatusArgs),
    /// Say which slots would move if something changed, without changing anything
    Predict(Box<PredictArgs>),
    /// Say why one slot is where it is, and what keeps it from being elsewhere
    Explain(ExplainArgs),
    /// Take part in a ring of virtual nodes, or watch one
    #[command(subcommand)]
    Ring(RingCommand),
    /// Show in a few seconds what this is about: nodes start, die, join and leave, and no slot ever runs twice
    Demo,
    /// Run the protocol in many worlds in virtual time, with all that can go wrong, and judge it by its promises
    Sim(SimArgs),
    /// Guards the children of an agent
    #[cfg(target_os = "linux")]
    #[command(hide = true)]
    Guardian,
    /// Keeps one child of an agent
    #[cfg(target_os = "linux")]
    #[command(hide = true)]
    Keeper {
        /// The slot, for people who list processes
        name: String,
    },
    /// Becomes the command of a child
    #[cfg(target_os = "linux")]
    #[command(hide = true)]
    ExecChild(guardian::ExecChild),
}

/// Does what the command line says.
pub(crate) fn main() -> ExitCode {
    match Cli::parse().command {
        #[cfg(target_os = "linux")]
        Command::Agent(args) => {
            log_to_stderr("info,rendez::driver=warn,rendez::driver::events=off");
            finish(agent::agent(*args))
        }
        #[cfg(target_os = "linux")]
        Command::Elect(args) => {
            log_to_stderr(elect::LOG_FILTER);
            elect::elect(*args).unwrap_or_else(|failure| finish(Err(failure)))
        }
        Command::Status(args) => finish(status::status(&args)),
        Command::Predict(args) => finish(predict::predict(&args)),
        Command::Explain(args) => finish(explain::explain(&args)),
        Command::Ring(command) => finish(ring::ring(&command)),
        Command::Demo => finish(demo::demo()),
        Command::Sim(args) => finish(sim::sim(&args)),
        #[cfg(target_os = "linux")]
        Command::Guardian => helper("guardian", guardian::guardian()),
        #[cfg(target_os = "linux")]
        Command::Keeper { name } => helper(&format!("keeper of {name}"), guardian::keeper()),
        #[cfg(target_os = "linux")]
        Command::ExecChild(args) => guardian::exec_child(&args),
    }
}

/// What happens, for people; `RUST_LOG` chooses how much of it.
#[cfg(target_os = "linux")]
fn log_to_stderr(unless_chosen: &str) {
    // The driver's events are told by the node itself, in sentences.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(unless_chosen));
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(terminal)
        .with_target(false)
        .init();
}

#[cfg(target_os = "linux")]
fn helper(name: &str, result: std::io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rendez {name}: {error}");
            ExitCode::FAILURE
        }
    }
}
