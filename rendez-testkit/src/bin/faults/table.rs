//! What came out, one row a cell.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use crate::fault::Fault;
use crate::judge::{Broken, Promise};
use crate::run::Outcome;
use crate::store::{Expectation, Store};

/// A store and a fault, with the runs that were made.
pub(crate) struct Cell {
    pub(crate) store: &'static dyn Store,
    pub(crate) fault: Fault,
    pub(crate) expectation: Expectation,
    /// Each with its seed.
    pub(crate) runs: Vec<(u64, Outcome)>,
    /// Runs that came to no judgement, each with its seed and the reason.
    pub(crate) failed: Vec<(u64, String)>,
}

impl Cell {
    pub(crate) fn new(store: &'static dyn Store, fault: Fault) -> Self {
        Self { store, fault, expectation: store.expectation(fault), runs: Vec::new(), failed: Vec::new() }
    }

    fn surprises(&self, broken: &Broken) -> bool {
        self.expectation.is_surprised_by(broken.promise)
    }

    /// Whether anything happened that fails the command.
    pub(crate) fn is_bad(&self) -> bool {
        !self.failed.is_empty()
            || self.runs.iter().flat_map(|(_, run)| &run.broken).any(|broken| self.surprises(broken))
    }

    /// The line that makes the run with this seed again.
    pub(crate) fn replay(&self, seed: u64) -> String {
        format!("cargo xtask faults --store {} --fault {} --seed {seed}", self.store.name(), self.fault)
    }

    /// In few words.
    pub(crate) fn verdict(&self) -> String {
        let promises: BTreeSet<(bool, Promise)> = self
            .runs
            .iter()
            .flat_map(|(_, run)| &run.broken)
            .map(|broken| (!self.surprises(broken), broken.promise))
            .collect();
        let mut words = Vec::new();
        for (said, promise) in promises {
            let has = |run: &Outcome| run.broken.iter().any(|broken| broken.promise == promise);
            let seeds: Vec<u64> = self.runs.iter().filter(|(_, run)| has(run)).map(|(seed, _)| *seed).collect();
            let count = format!("{promise} in {} of {}", seeds.len(), self.runs.len());
            let longest = self.runs.iter().map(|(_, run)| run.longest_overlap).max().unwrap_or_default();
            let longest =
                if promise == Promise::NoOverlap { format!(", longest {}", time(longest)) } else { String::new() };
            let replay = seeds.first().map(|seed| self.replay(*seed)).unwrap_or_default();
            words.push(match said {
                true => format!("{count}{longest}, as said"),
                false => format!("broken {count}{longest}: `{replay}`"),
            });
        }
        if let Some((seed, reason)) = self.failed.first() {
            words.push(format!("{} not judged: {reason}: `{}`", self.failed.len(), self.replay(*seed)));
        }
        if words.is_empty() && !self.runs.is_empty() {
            words.push("kept".to_owned());
        }
        words.join("; ")
    }

    fn times(&self, of: impl Fn(&Outcome) -> Duration) -> String {
        let mut times: Vec<Duration> = self.runs.iter().map(|(_, run)| of(run)).collect();
        times.sort_unstable();
        match (times.get(times.len() / 2), times.last()) {
            (Some(middle), Some(last)) => format!("{} / {}", time(*middle), time(*last)),
            (_, _) => "-".to_owned(),
        }
    }

    fn interrupted(&self) -> String {
        let mut counts: Vec<usize> = self.runs.iter().map(|(_, run)| run.interrupted).collect();
        counts.sort_unstable();
        match (counts.get(counts.len() / 2), counts.last()) {
            (Some(middle), Some(last)) => format!("{middle} / {last}"),
            (_, _) => "-".to_owned(),
        }
    }

    fn refused(&self) -> usize {
        self.runs.iter().map(|(_, run)| run.refused).sum()
    }
}

/// What a single run has shown.
pub(crate) fn line(cell: &Cell, seed: u64, outcome: &Outcome) -> String {
    let mut text = format!(
        "{}/{} seed {seed}: {}; {} of 12 anew, longest gap {}, all ran {} after the end",
        cell.store.name(),
        cell.fault,
        if outcome.broken.is_empty() { "kept" } else { "broken" },
        outcome.interrupted,
        time(outcome.longest_gap),
        time(outcome.recovered),
    );
    for broken in &outcome.broken {
        let said = if cell.surprises(broken) { "UNEXPECTED" } else { "as said" };
        let _ = write!(text, "\n    {said}: {}: {}", broken.promise, broken.how);
    }
    if !outcome.broken.is_empty() {
        let _ = write!(text, "\n    {}", outcome.plan);
    }
    text
}

/// All cells with what is said beforehand.
pub(crate) fn list(cells: &[Cell]) -> String {
    let mut text = String::new();
    for cell in cells {
        let said = match cell.expectation {
            Expectation::Kept => "kept".to_owned(),
            Expectation::May { breaks, because } => {
                let breaks: Vec<String> = breaks.iter().map(ToString::to_string).collect();
                format!("may break {}, because {because}", breaks.join(" and "))
            }
            Expectation::Absent(reason) => format!("absent: {reason}"),
        };
        let _ = writeln!(text, "{:<10} {:<20} {said}", cell.store.name(), cell.fault);
    }
    let faults: BTreeSet<Fault> = cells.iter().map(|cell| cell.fault).collect();
    let _ = writeln!(text);
    for fault in faults {
        let _ = writeln!(text, "{fault:<20} {}", fault.about());
    }
    text
}

/// The table for people at a terminal, or for a page.
pub(crate) fn table(cells: &[Cell], markdown: bool) -> String {
    let head = ["store", "fault", "runs", "outcome", "children anew", "longest gap", "all ran after", "refused"];
    let mut rows = vec![head.map(str::to_owned)];
    for cell in cells {
        let (verdict, runs) = match cell.expectation {
            Expectation::Absent(reason) => (format!("absent: {reason}"), "-".to_owned()),
            Expectation::Kept | Expectation::May { .. } => (cell.verdict(), cell.runs.len().to_string()),
        };
        rows.push([
            cell.store.name().to_owned(),
            cell.fault.to_string(),
            runs,
            verdict,
            cell.interrupted(),
            cell.times(|run| run.longest_gap),
            cell.times(|run| run.recovered),
            cell.refused().to_string(),
        ]);
    }
    let mut text = String::new();
    for (at, row) in rows.iter().enumerate() {
        let _ = match markdown {
            true => writeln!(text, "| {} |", row.join(" | ")),
            false => {
                let [store, fault, runs, verdict, rest @ ..] = row;
                let numbers: String = rest.iter().map(|cell| format!("{cell:>16}")).collect();
                writeln!(text, "{store:<10} {fault:<20} {runs:>4}  {numbers}  {verdict}")
            }
        };
        if markdown && at == 0 {
            let _ = writeln!(text, "|{}", " --- |".repeat(row.len()));
        }
    }
    text
}

fn time(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
