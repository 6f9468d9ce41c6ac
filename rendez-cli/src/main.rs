//! The command `rendez`.

mod agent;
mod cli;
mod exit;
mod guardian;
mod store_url;

fn main() -> std::process::ExitCode {
    cli::main()
}
