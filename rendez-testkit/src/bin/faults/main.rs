//! Runs every store against every real fault that applies to it, with agents under load, and judges what they wrote down:
//! `faults [--store NAME] [--fault NAME] [--runs N] [--seed S] [--list] [--markdown]`. Run it by `cargo xtask faults`.
//!
//! A run needs some twenty seconds, most of which it waits, so several go on at a time. What is particular to a store stands
//! in the file with its name; a new one implements [`store::Store`] and is named in [`store::ALL`].

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

mod etcd;
mod fault;
mod file;
mod judge;
mod kubernetes;
mod memory;
mod nats;
mod nodes;
mod postgres;
mod redis;
mod run;
mod stalls;
mod store;
mod table;

use fault::Fault;
use stalls::Stalls;
use store::Expectation;
use table::Cell;

const USAGE: &str = "\
usage: cargo xtask faults [OPTION...]

  --store NAME      only this store
  --fault NAME      only this fault
  --runs N          so often each cell (1)
  --seed S          the first run's seed; the next ones count up (1)
  --parallel N      so many runs at a time (4)
  --minutes N       begins no run after so many minutes
  --list            lists all cells, with what is promised, and runs none
  --markdown        prints the table for a page

Exit code: 0 if everything came out as it was said beforehand, 1 if not, 2 for usage.
";

#[derive(Debug, Clone)]
struct Wish {
    store: Option<String>,
    fault: Option<Fault>,
    runs: u64,
    seed: u64,
    parallel: usize,
    minutes: Option<u64>,
    list: bool,
    markdown: bool,
}

fn main() -> ExitCode {
    let wish = match wish(std::env::args().skip(1)) {
        Ok(wish) => wish,
        Err(error) => {
            eprintln!("faults: {error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let cells = match cells(&wish) {
        Ok(cells) => cells,
        Err(error) => {
            eprintln!("faults: {error}");
            return ExitCode::from(2);
        }
    };
    if wish.list {
        print!("{}", table::list(&cells));
        return ExitCode::SUCCESS;
    }
    // Some calls wait for processes without giving way to others.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2 + wish.parallel).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("faults: {error}");
            return ExitCode::FAILURE;
        }
    };
    let cells = runtime.block_on(run_all(cells, &wish));
    print!("\n{}", if wish.markdown { table::markdown(&cells) } else { table::table(&cells) });
    let bad = cells.iter().filter(|cell| cell.is_bad()).count();
    let runs: usize = cells.iter().map(|cell| cell.runs.len()).sum();
    let applying = cells.iter().filter(|cell| !matches!(cell.expectation, Expectation::Absent(_))).count();
    println!("\n{runs} runs of {applying} cells; {bad} cells did not come out as it was said");
    if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn wish(mut words: impl Iterator<Item = String>) -> Result<Wish, String> {
    let mut wish =
        Wish { store: None, fault: None, runs: 1, seed: 1, parallel: 4, minutes: None, list: false, markdown: false };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} wants a value"));
        let number = |text: String| text.parse::<u64>().map_err(|_| format!("{text:?} is no number"));
        match word.as_str() {
            "--store" => wish.store = Some(value()?),
            "--fault" => wish.fault = Some(value()?.parse()?),
            "--runs" => wish.runs = number(value()?)?,
            "--seed" => wish.seed = number(value()?)?,
            "--parallel" => wish.parallel = usize::try_from(number(value()?)?.clamp(1, 64)).unwrap_or(1),
            "--minutes" => wish.minutes = Some(number(value()?)?),
            "--list" => wish.list = true,
            "--markdown" => wish.markdown = true,
            _ => return Err(format!("unknown option {word}")),
        }
    }
    Ok(wish)
}

fn cells(wish: &Wish) -> Result<Vec<Cell>, String> {
    let wanted = |name: &str| wish.store.as_deref().is_none_or(|wanted| wanted == name);
    let stores: Vec<_> = store::ALL.iter().copied().filter(|store| wanted(store.name())).collect();
    if stores.is_empty() {
        let names: Vec<&str> = store::ALL.iter().map(|store| store.name()).collect();
        return Err(format!("there is no such store: use {}", names.join(", ")));
    }
    let faults: Vec<Fault> = Fault::all().filter(|fault| wish.fault.is_none_or(|wanted| wanted == *fault)).collect();
    Ok(stores.iter().flat_map(|&store| faults.iter().map(move |&fault| Cell::new(store, fault))).collect())
}

/// One run of every cell, then the next one of every cell, so that all have as many when time is up.
async fn run_all(mut cells: Vec<Cell>, wish: &Wish) -> Vec<Cell> {
    let end = wish.minutes.map(|minutes| Instant::now() + Duration::from_secs(60 * minutes));
    let stalls = Stalls::watch();
    let places = Arc::new(Semaphore::new(wish.parallel));
    let mut running = JoinSet::new();
    let interrupt = tokio::signal::ctrl_c();
    tokio::pin!(interrupt);
    let applying = (0..cells.len()).filter(|at| !matches!(cells[*at].expectation, Expectation::Absent(_)));
    let applying: Vec<usize> = applying.collect();
    let mut wanted = (0..wish.runs).flat_map(|n| applying.iter().map(move |at| (*at, wish.seed + n)));
    loop {
        tokio::select! {
            // Dropping what runs ends its servers and agents.
            _ = &mut interrupt => return cells,
            place = Arc::clone(&places).acquire_owned() => {
                let late = end.is_some_and(|end| Instant::now() > end);
                let next = wanted.next().filter(|_| !late);
                let (Some((at, seed)), Ok(place)) = (next, place) else { break };
                let (store, fault) = (cells[at].store, cells[at].fault);
                let (stalls, begun) = (stalls.clone(), Instant::now());
                running.spawn(async move {
                    let done = run::run(store, fault, seed).await.map_err(|failure| failure.to_string());
                    drop(place);
                    let done = match stalls.since(begun) {
                        Some(stall) => Err(format!("the whole machine stood still for {stall:.1?}: run it again")),
                        None => done,
                    };
                    (at, seed, done)
                });
            }
            Some(done) = running.join_next() => take(&mut cells, done),
        }
    }
    while let Some(done) = running.join_next().await {
        take(&mut cells, done);
    }
    cells
}

type Done = Result<(usize, u64, Result<run::Outcome, String>), tokio::task::JoinError>;

fn take(cells: &mut [Cell], done: Done) {
    match done {
        Ok((at, seed, Ok(outcome))) => {
            println!("{}", table::line(&cells[at], seed, &outcome));
            cells[at].runs.push((seed, outcome));
        }
        Ok((at, seed, Err(failure))) => {
            println!("{}/{} seed {seed}: NOT JUDGED: {failure}", cells[at].store.name(), cells[at].fault);
            cells[at].failed.push((seed, failure));
        }
        Err(error) => println!("a run has ended badly: {error}"),
    }
}
