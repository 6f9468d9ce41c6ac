//! Measures, and prints a table: `measure [list | NAME...]`. Run it by `cargo xtask measure`.
//!
//! One file a subject; each adds its measurements to the list below.

use std::process::ExitCode;

use rendez_testkit::measure::{Measurement, print_list, run};

mod baseline;
mod calls;
mod crash;
mod frozen;
mod link;
mod moves;
mod nodes;
mod stage;
mod start;

fn list() -> Vec<Box<dyn Measurement>> {
    vec![
        Box::new(baseline::ChildStart),
        Box::new(baseline::RedisRoundTrip),
        Box::new(crash::CrashRelease),
        Box::new(crash::LostHost),
        Box::new(moves::Handover),
        Box::new(moves::Join),
        Box::new(calls::SteadyCalls),
        Box::new(start::ColdStart),
        Box::new(link::SlowLink),
        Box::new(frozen::RedisFrozen),
    ]
}

#[tokio::main]
async fn main() -> ExitCode {
    let names: Vec<String> = std::env::args().skip(1).collect();
    let mut out = std::io::stdout();
    let done = match names.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["list"] => print_list(&list(), &mut out).map_err(Into::into),
        _ => run(&list(), &names, &mut out).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("measure: {failure}");
            ExitCode::FAILURE
        }
    }
}
