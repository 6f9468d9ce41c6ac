//! What came out, one row a cell.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use crate::fault::Fault;
use crate::judge::{Broken, Promise};
use crate::run::Outcome;
use crate::store::{Expectation, Store};

/// What is counted in each run; of each but the last, the middle one and the largest of all runs.
const HEADS: [&str; 4] = ["children anew", "longest gap", "all ran after", "refused"];

/// How much of what was broken in a run is told: one fault often breaks the same for every slot.
const BROKEN_LINES_MAX: usize = 3;

/// How much of a failure's reason stands in the table.
const REASON_CHARS_MAX: usize = 120;

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
            // The whole of it stands in the run's own line.
            let reason: String = reason.lines().next().unwrap_or_default().chars().take(REASON_CHARS_MAX).collect();
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

    /// In the order of the heads.
    fn numbers(&self) -> [String; HEADS.len()] {
        let (gap, recovered) = (self.times(|run| run.longest_gap), self.times(|run| run.recovered));
        [self.interrupted(), gap, recovered, self.refused().to_string()]
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
    let mut worst_first: Vec<&Broken> = outcome.broken.iter().collect();
    worst_first.sort_by_key(|broken| !cell.surprises(broken));
    for broken in worst_first.into_iter().take(BROKEN_LINES_MAX) {
        let said = if cell.surprises(broken) { "UNEXPECTED" } else { "as said" };
        let _ = write!(text, "\n    {said}: {}: {}", broken.promise, broken.how);
    }
    if outcome.broken.len() > BROKEN_LINES_MAX {
        let _ = write!(text, "\n    and {} more", outcome.broken.len() - BROKEN_LINES_MAX);
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

/// The table for people at a terminal.
pub(crate) fn table(cells: &[Cell]) -> String {
    let mut text = String::new();
    let heads = HEADS.map(|head| format!("{head:>16}")).concat();
    let _ = writeln!(text, "{:<10} {:<20} {:>4} {heads}  outcome", "store", "fault", "runs");
    for cell in cells {
        let (store, fault) = (cell.store.name(), cell.fault);
        let _ = match cell.expectation {
            Expectation::Absent(reason) => writeln!(text, "{store:<10} {fault:<20} absent: {reason}"),
            Expectation::Kept | Expectation::May { .. } => {
                let numbers = cell.numbers().map(|number| format!("{number:>16}")).concat();
                writeln!(text, "{store:<10} {fault:<20} {:>4} {numbers}  {}", cell.runs.len(), cell.verdict())
            }
        };
    }
    text
}

/// The same for a page: a table a store, and below it what does not exist there.
pub(crate) fn markdown(cells: &[Cell]) -> String {
    let mut text = String::new();
    let mut stores: Vec<&str> = cells.iter().map(|cell| cell.store.name()).collect();
    stores.dedup();
    for store in stores {
        let of_store = cells.iter().filter(|cell| cell.store.name() == store);
        let mut rows = String::new();
        let mut absent: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for cell in of_store {
            match cell.expectation {
                Expectation::Absent(reason) => absent.entry(reason).or_default().push(format!("`{}`", cell.fault)),
                Expectation::Kept | Expectation::May { .. } => {
                    let numbers = cell.numbers().join(" | ");
                    let _ =
                        writeln!(rows, "| `{}` | {} | {} | {numbers} |", cell.fault, cell.runs.len(), cell.verdict());
                }
            }
        }
        let _ = writeln!(text, "### {store}\n");
        if !rows.is_empty() {
            let _ = writeln!(text, "| fault | runs | outcome | {} |", HEADS.join(" | "));
            let _ = writeln!(text, "|{}\n{rows}", " --- |".repeat(3 + HEADS.len()));
        }
        for (reason, faults) in absent {
            let _ = writeln!(text, "- {}: {reason}.", faults.join(", "));
        }
        let _ = writeln!(text);
    }
    text
}

fn time(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store;

    fn all() -> Vec<Cell> {
        store::ALL.iter().flat_map(|&store| Fault::all().map(move |fault| Cell::new(store, fault))).collect()
    }

    #[test]
    fn every_fault_stands_in_the_list_of_every_store_and_what_is_said_makes_sense() {
        let list = list(&all());
        for cell in all() {
            let row = format!("{:<10} {:<20} ", cell.store.name(), cell.fault);
            assert_eq!(list.matches(&row).count(), 1, "{row}");
            match cell.expectation {
                Expectation::Kept => {}
                Expectation::Absent(reason) => assert!(!reason.is_empty()),
                Expectation::May { breaks, because } => {
                    assert!(!breaks.is_empty() && !because.is_empty());
                    // These need no assumption, and no store may be excused from them.
                    assert!(!breaks.contains(&Promise::SinkRefuses) && !breaks.contains(&Promise::NoRestart));
                }
            }
            assert_eq!(cell.fault.as_str().parse::<Fault>(), Ok(cell.fault));
        }
    }

    #[test]
    fn what_was_said_beforehand_is_no_failure_and_anything_else_is_one_with_its_replay() {
        let fault = "host-frozen".parse::<Fault>().unwrap();
        let mut cell = Cell::new(store::ALL[0], fault);
        let outcome = |promise| Outcome {
            plan: String::new(),
            broken: vec![Broken::new(promise, "seen")],
            interrupted: 4,
            longest_gap: Duration::from_secs(2),
            longest_overlap: Duration::from_millis(1500),
            recovered: Duration::from_secs(1),
            refused: 3,
        };
        cell.runs.push((7, outcome(Promise::NoOverlap)));
        assert!(!cell.is_bad());
        assert_eq!(cell.verdict(), "S2 in 1 of 1, longest 1.5 s, as said");
        cell.runs.push((8, outcome(Promise::TokensRise)));
        assert!(cell.is_bad());
        let replay = "cargo xtask faults --store redis --fault host-frozen --seed 8";
        assert!(cell.verdict().contains(&format!("broken S4 in 1 of 2: `{replay}`")), "{}", cell.verdict());
        let page = markdown(&[cell]);
        assert!(page.contains("| `host-frozen` | 2 | "), "{page}");
        let mut cell = Cell::new(store::ALL[0], fault);
        cell.failed.push((9, "no server".to_owned()));
        assert!(cell.is_bad() && cell.verdict().contains("1 not judged: no server"));
    }
}
