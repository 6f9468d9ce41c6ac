//! Measures, and prints a table: `measure [--store STORE] [list | NAME...]`. Run it by `cargo xtask measure`.
//!
//! One file a subject; each adds its measurements to the list below.

use std::process::ExitCode;

use rendez_testkit::measure::{Measurement, print_list, run};
use rendez_testkit::servers::StoreKind;

mod baseline;
mod calls;
mod crash;
mod election;
mod frozen;
mod link;
mod moves;
mod nodes;
mod observer;
mod stage;
mod start;

/// What can be measured on a store of this kind.
fn list(store: StoreKind) -> Vec<Box<dyn Measurement>> {
    let mut list: Vec<Box<dyn Measurement>> = vec![
        Box::new(baseline::ChildStart),
        Box::new(crash::CrashRelease(store)),
        Box::new(crash::LostHost(store)),
        Box::new(moves::Handover(store)),
        Box::new(moves::Join(store)),
        Box::new(start::ColdStart(store)),
        Box::new(election::Election(store)),
    ];
    if store != StoreKind::File {
        list.push(Box::new(frozen::StoreFrozen(store)));
    }
    if store == StoreKind::Redis {
        list.push(Box::new(baseline::RedisRoundTrip));
        list.push(Box::new(calls::SteadyCalls));
        list.push(Box::new(link::SlowLink));
    }
    list
}

#[tokio::main]
async fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut store = StoreKind::Redis;
    if let ["--store", name, ..] = words[..] {
        store = match name.parse() {
            Ok(store) => store,
            Err(error) => {
                eprintln!("measure: {error}");
                return ExitCode::from(2);
            }
        };
        words.drain(..2);
    }
    let list = list(store);
    let mut out = std::io::stdout();
    let done = match words[..] {
        ["list"] => print_list(&list, &mut out).map_err(Into::into),
        _ => {
            println!("store: {store}");
            let names: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            run(&list, &names, &mut out).await
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("measure: {failure}");
            ExitCode::FAILURE
        }
    }
}
