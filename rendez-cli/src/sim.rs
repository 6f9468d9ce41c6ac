//! `rendez sim`: the engine that ships in many worlds in virtual time, judged by its promises.
//!
//! A world is decided by its seed alone, so whatever goes wrong in one can be seen again.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;
use rendez_sim::oracles::Broken;
use rendez_sim::run::{Many, Summary, run_many, run_traced, run_twice};
use rendez_sim::shrink::shrink;
use rendez_sim::{Kind, Scenario};
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag::{register, register_conditional_default};

use crate::exit::{Exit, Failure};

/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// The options of `rendez sim`.
#[derive(Debug, Args)]
pub(crate) struct SimArgs {
    /// Run this many worlds
    #[arg(long, value_name = "N", default_value_t = 1000)]
    seeds: u64,
    /// The first seed; fresh ones unless given
    #[arg(long, value_name = "S")]
    first: Option<u64>,
    /// Stop after this time, however many worlds are left
    #[arg(long, value_name = "T")]
    seconds: Option<u64>,
    /// On so many threads; on all processors unless given
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Which worlds the seeds choose from: plain, minds or swarm
    #[arg(long, value_name = "KIND", default_value = "swarm")]
    kind: Kind,
    /// Run one world, twice, and print the hash of its trace
    #[arg(long, value_name = "S", conflicts_with_all = ["seeds", "first", "seconds", "threads"])]
    seed: Option<u64>,
    /// Run the world of a scenario file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seed", "seeds", "first", "seconds", "threads", "kind"])]
    scenario: Option<PathBuf>,
    /// With one world: tell what happens in it, as a time line for each slot
    #[arg(long)]
    trace: bool,
    /// Print JSON: the summary, or with --trace all facts of one world, one a line
    #[arg(long)]
    json: bool,
}

/// Runs what the command line asks for.
pub(crate) fn sim(args: &SimArgs) -> Result<(), Failure> {
    let one = match (&args.scenario, args.seed) {
        (Some(path), _) => {
            let text = std::fs::read_to_string(path)
                .map_err(|error| Failure::new(Exit::Usage, format!("cannot read {}: {error}", path.display())))?;
            let scenario: Scenario =
                text.parse().map_err(|why| Failure::new(Exit::Usage, format!("{}: {why}", path.display())))?;
            Some((scenario, format!("rendez sim --scenario {}", path.display())))
        }
        (None, Some(seed)) => Some((Scenario::of(args.kind, seed), replay(args.kind, seed))),
        (None, None) => None,
    };
    match one {
        Some((scenario, replay)) => one_world(&scenario, &replay, args),
        None if args.trace => Err(Failure::new(Exit::Usage, "--trace needs --seed or --scenario")),
        None => many_worlds(args),
    }
}

/// The command that shows a world again.
fn replay(kind: Kind, seed: u64) -> String {
    format!("rendez sim --kind {kind} --seed {seed}")
}

fn one_world(scenario: &Scenario, replay: &str, args: &SimArgs) -> Result<(), Failure> {
    silence_panics();
    if args.trace {
        let (outcome, trace) = run_traced(scenario, true);
        print!("{}", if args.json { trace.json_lines() } else { trace.time_lines() });
        return verdict(scenario, replay, outcome.broken);
    }
    let outcome = run_twice(scenario);
    if args.json {
        let broken = outcome.broken.as_ref().map(ToString::to_string);
        let hash = format!("{:016x}", outcome.hash);
        println!("{}", json!({ "hash": hash, "steps": outcome.steps, "broken": broken }));
    } else {
        print!("{scenario}");
        println!("# {} steps; the trace's hash, twice: {:016x}", outcome.steps, outcome.hash);
    }
    verdict(scenario, replay, outcome.broken)
}

/// What a broken promise leads to: the command that shows it again, and a smaller scenario that breaks the same.
fn verdict(scenario: &Scenario, replay: &str, broken: Option<Broken>) -> Result<(), Failure> {
    let Some(broken) = broken else { return Ok(()) };
    let smaller = shrink(scenario).map_or_else(String::new, |shrunk| {
        let lines: Vec<String> = shrunk.scenario.to_string().lines().map(|line| format!("  {line}")).collect();
        format!(
            "\na smaller scenario that breaks it ({} worlds were tried; save it, then `rendez sim --scenario FILE`):\n{}\
             \n  # {}",
            shrunk.worlds,
            lines.join("\n"),
            shrunk.broken
        )
    });
    let words = format!("a promise was broken: {broken}\nto see it again: {replay} --trace{smaller}");
    Err(Failure::new(Exit::PromiseBroken, words))
}

/// Becomes true with the first Ctrl-C or SIGTERM: what was run counts, and is told. The second one ends the process.
fn interruption() -> Result<Arc<AtomicBool>, Failure> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        register_conditional_default(signal, Arc::clone(&interrupted))
            .and_then(|_| register(signal, Arc::clone(&interrupted)))
            .map_err(|error| Failure::new(Exit::Failure, format!("cannot listen to signals: {error}")))?;
    }
    Ok(interrupted)
}

fn many_worlds(args: &SimArgs) -> Result<(), Failure> {
    silence_panics();
    let interrupted = interruption()?;
    let first = args.first.unwrap_or_else(fresh);
    let threads = args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let many = Many { threads, broken_max: 1, ..Many::new(args.kind, first, args.seeds) };
    if !args.json {
        println!("worlds: {}, first seed {first}, {} seeds, {threads} threads", args.kind, args.seeds);
    }
    let (begun, told) = (Instant::now(), AtomicU64::new(0));
    let until = args.seconds.map(Duration::from_secs);
    let progress = !args.json && std::io::stderr().is_terminal();
    let summary = run_many(&many, |seeds| {
        let gone = begun.elapsed();
        let tick = gone.as_secs() / TELL_EVERY.as_secs();
        if progress && told.fetch_max(tick, Ordering::Relaxed) < tick {
            eprintln!("  {seeds} seeds, {:.0} an hour", an_hour(seeds, gone));
        }
        until.is_none_or(|until| gone < until) && !interrupted.load(Ordering::Relaxed)
    });
    let gone = begun.elapsed();
    if args.json {
        println!("{}", as_json(&summary, args.kind, first, threads, gone));
    } else {
        print!("{}", as_text(&summary, threads, gone));
    }
    match summary.broken.into_iter().next() {
        Some((seed, broken)) => verdict(&Scenario::of(args.kind, seed), &replay(args.kind, seed), Some(broken)),
        None => Ok(()),
    }
}

/// An engine that panics is told as a broken promise, not as a crash of this program.
fn silence_panics() {
    std::panic::set_hook(Box::new(|_| ()));
}

/// A first seed that nobody has run before.
fn fresh() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Round, so that people can type it.
    now.as_millis() as u64 / 1000 * 1_000_000
}

fn an_hour(seeds: u64, gone: Duration) -> f64 {
    seeds as f64 * 3600.0 / gone.as_secs_f64().max(0.001)
}

fn as_text(summary: &Summary, threads: usize, gone: Duration) -> String {
    let runs = summary.seeds + summary.twice;
    let mut text = format!(
        "{} seeds in {:.1?}, {} of them twice with the same trace; {:.0} worlds an hour, {:.0} a thread\n",
        summary.seeds,
        gone,
        summary.twice,
        an_hour(runs, gone),
        an_hour(runs, gone) / threads as f64
    );
    let alone: Vec<String> = summary.alone.iter().map(|(fault, worlds)| format!("{fault} {worlds}")).collect();
    text += &format!("faults that happened, by worlds: {}\n", alone.join(", "));
    text += &format!("pairs of faults: {} of {}", summary.pairs.len(), Summary::pairs_possible());
    if let Some(((one, other), worlds)) = summary.pairs.iter().min_by_key(|(_, worlds)| **worlds) {
        text += &format!(", each in {worlds} worlds or more ({one} with {other})");
    }
    text.push('\n');
    let overlap = summary.overlap;
    if overlap.times > 0 {
        let (all, longest) = (Duration::from_nanos(overlap.nanos), Duration::from_nanos(overlap.longest));
        text += &format!(
            "where clocks did what is not assumed of them, runs overlapped {} times, for {all:.1?} in all and {longest:.1?} \
             at most\n",
            overlap.times
        );
    }
    if summary.broken.is_empty() {
        text += "no promise was broken\n";
    }
    text
}

fn as_json(summary: &Summary, kind: Kind, first: u64, threads: usize, gone: Duration) -> serde_json::Value {
    let alone: serde_json::Map<String, serde_json::Value> =
        summary.alone.iter().map(|(fault, worlds)| (fault.name().to_owned(), (*worlds).into())).collect();
    let pairs: serde_json::Map<String, serde_json::Value> =
        summary.pairs.iter().map(|((one, other), worlds)| (format!("{one} {other}"), (*worlds).into())).collect();
    let broken: serde_json::Map<String, serde_json::Value> =
        summary.broken.iter().map(|(seed, broken)| (seed.to_string(), broken.to_string().into())).collect();
    json!({
        "kind": kind.name(),
        "first": first,
        "seeds": summary.seeds,
        "twice": summary.twice,
        "steps": summary.steps,
        "seconds": gone.as_secs_f64(),
        "threads": threads,
        "worlds_an_hour": an_hour(summary.seeds + summary.twice, gone),
        "faults": alone,
        "pairs": pairs,
        "pairs_possible": Summary::pairs_possible(),
        "overlaps": summary.overlap.times,
        "overlap_seconds": summary.overlap.nanos as f64 / 1e9,
        "overlap_longest_seconds": summary.overlap.longest as f64 / 1e9,
        "broken": broken,
    })
}
