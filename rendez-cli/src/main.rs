//! The command `rendez`.

mod agent;
mod cli;
mod cluster_args;
mod demo;
mod duration;
mod exit;
mod guardian;
mod status;
mod store_url;

fn main() -> std::process::ExitCode {
    cli::main()
}
