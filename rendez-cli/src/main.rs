//! The command `rendez`.

mod cli;
mod guardian;

fn main() -> std::process::ExitCode {
    cli::main()
}
