//! Judges run records: did two runners of a slot ever overlap, and did the tokens rise?
//!
//! Only what is certain is held against a run: it lasts from its `begin` to its `end`, or, where that is missing,
//! to the last `alive` of anybody in it. An interval holds its begin and not its end, so a run may begin in the very
//! nanosecond in which another ends. What is reported beyond the promises (gaps, moves, time without a runner) is
//! therefore, after a kill, an upper bound.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use rendez_core::{FencingToken, NodeId, Slot, Timestamp};

use crate::records::{Record, RecordKind};

/// Reads records, then tells what they prove.
///
/// ```
/// use rendez_testkit::checker::Checker;
/// let mut checker = Checker::new();
/// checker.read("a.log", "begin inbox/0 1 a 10 100\nend inbox/0 1 a 10 200\n");
/// checker.read("b.log", "begin inbox/0 2 b 11 199\nalive inbox/0 2 b 11 250\n");
/// let report = checker.finish();
/// assert!(!report.is_good());
/// assert!(report.violations[0].to_string().contains("overlap by at least 1ns"));
/// ```
#[derive(Debug, Default)]
pub struct Checker {
    restarts_allowed: bool,
    records: Vec<(Place, Record)>,
    mistakes: Vec<Mistake>,
}

/// A line of a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file's name as it was given.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
}

/// Something that cannot stand in records, so that nothing can be concluded from them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Where it stands.
    pub place: Place,
    /// What is wrong with it.
    pub what: String,
}

/// One run of a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The slot.
    pub slot: Slot,
    /// The token it was run under.
    pub token: FencingToken,
    /// The node that ran it.
    pub node: NodeId,
    /// The process that began it.
    pub pid: u32,
    /// When it began.
    pub begin: Timestamp,
    /// Until when it certainly ran.
    pub until: Timestamp,
    /// Whether it said that it ended.
    pub ended: bool,
    /// Where it begins.
    pub place: Place,
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// Two runs of a slot at the same time (S2).
    Overlap {
        /// The run that began first.
        first: Run,
        /// The one that began before the first was over.
        second: Run,
        /// For how long both ran, at least.
        by: Duration,
    },
    /// A run began with a token that is not higher than the one before (S4).
    TokenNotHigher {
        /// The run that began first.
        first: Run,
        /// The one that should have a higher token.
        second: Run,
    },
}

/// What happened, beside the promises.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// How many slots were run.
    pub slots: usize,
    /// How many runs there were.
    pub runs: usize,
    /// How many of them did not say that they ended: killed, or still running.
    pub runs_without_end: usize,
    /// How often a slot went from one node to another.
    pub moves: usize,
    /// The same for the slot that moved most.
    pub moves_of_a_slot_max: usize,
    /// The times between a run and the next one of its slot.
    pub gaps: usize,
    /// Their median.
    pub gap_p50: Duration,
    /// The longest.
    pub gap_max: Duration,
    /// The sum of all gaps: slot time without a runner between the first and the last run of each slot.
    pub orphan_time: Duration,
    /// The same for the slot that was alone longest.
    pub orphan_time_of_a_slot_max: Duration,
    /// From the end of a slot's last run to the last record of all, for the slot where that is longest.
    pub idle_at_the_end_max: Duration,
}

/// What the records prove.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Lines that cannot be; as long as there are any, the rest proves nothing.
    pub mistakes: Vec<Mistake>,
    /// Broken promises.
    pub violations: Vec<Violation>,
    /// What happened.
    pub summary: Summary,
    /// All runs, by slot, in the order in which they began.
    pub runs: BTreeMap<Slot, Vec<Run>>,
}

/// Checks files; the same as the program `rendez-check`.
///
/// # Errors
/// A file cannot be read; the message names it.
pub fn check_files<P: AsRef<Path>>(files: impl IntoIterator<Item = P>) -> io::Result<Report> {
    let mut checker = Checker::new();
    for file in files {
        checker.read_file(file.as_ref())?;
    }
    Ok(checker.finish())
}

impl Checker {
    /// A checker that has read nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Accepts that the same node runs a slot again under the same token, after the run before: a supervisor that
    /// restarts a crashed child and keeps the lease. Overlaps remain violations.
    #[must_use]
    pub fn allow_restarts(mut self) -> Self {
        self.restarts_allowed = true;
        self
    }

    /// Reads a file of records.
    ///
    /// # Errors
    /// The file cannot be read, or holds more than text; the message names it.
    pub fn read_file(&mut self, path: &Path) -> io::Result<()> {
        let name = path.display().to_string();
        let text =
            fs::read(path).map_err(|error| io::Error::new(error.kind(), format!("cannot read {name}: {error}")))?;
        self.read(&name, &String::from_utf8_lossy(&text));
        Ok(())
    }

    /// Reads a text of records; `file` is the name for messages.
    pub fn read(&mut self, file: &str, text: &str) {
        for (index, line) in text.split_inclusive('\n').enumerate() {
            let place = Place { file: file.to_owned(), line: index + 1 };
            match line.strip_suffix('\n') {
                None => self.mistake(place, format!("the last line is cut off: {line:?}")),
                Some(line) => match line.parse() {
                    Ok(record) => self.records.push((place, record)),
                    Err(error) => self.mistake(place, error.to_string()),
                },
            }
        }
    }

    /// Tells what the records prove.
    #[must_use]
    pub fn finish(mut self) -> Report {
        let records = std::mem::take(&mut self.records);
        let last = records.iter().map(|(_, record)| record.at).max().unwrap_or_default();
        let mut runs: BTreeMap<Slot, Vec<Building>> = BTreeMap::new();
        for (place, record) in &records {
            if record.kind == RecordKind::Begin {
                self.begin(&mut runs, place, record);
            }
        }
        for of_slot in runs.values_mut() {
            of_slot.sort_by_key(|building| (building.run.begin, building.run.token));
        }
        for (place, record) in &records {
            match record.kind {
                RecordKind::Begin => {}
                RecordKind::Alive | RecordKind::End => self.go_on(&mut runs, place, record),
            }
        }
        let runs: BTreeMap<Slot, Vec<Run>> = runs
            .into_iter()
            .map(|(slot, of_slot)| (slot, of_slot.into_iter().map(|building| building.run).collect()))
            .collect();
        let violations = runs.values().flat_map(|of_slot| self.judge(of_slot)).collect();
        self.mistakes.sort_by(|a, b| a.place.cmp(&b.place));
        Report { mistakes: self.mistakes, violations, summary: summarize(&runs, last), runs }
    }

    fn mistake(&mut self, place: Place, what: String) {
        self.mistakes.push(Mistake { place, what });
    }

    fn begin(&mut self, runs: &mut BTreeMap<Slot, Vec<Building>>, place: &Place, record: &Record) {
        let of_slot = runs.entry(record.slot.clone()).or_default();
        let same = |building: &&Building| building.run.token == record.token && building.run.pid == record.pid;
        if let Some(before) = of_slot.iter().find(same) {
            let what = format!("this run began before, in {}: {record}", before.run.place);
            return self.mistake(place.clone(), what);
        }
        let run = Run {
            slot: record.slot.clone(),
            token: record.token,
            node: record.node.clone(),
            pid: record.pid,
            begin: record.at,
            until: record.at,
            ended: false,
            place: place.clone(),
        };
        of_slot.push(Building { run, last: BTreeMap::from([(record.pid, record.at)]) });
    }

    fn go_on(&mut self, runs: &mut BTreeMap<Slot, Vec<Building>>, place: &Place, record: &Record) {
        let mut candidates = runs.get_mut(&record.slot).into_iter().flatten().filter(|b| b.run.token == record.token);
        // A descendant has no begin of its own: it belongs to the last run before it.
        let building = match candidates.by_ref().position(|b| b.run.pid == record.pid) {
            Some(_) => find(runs, record, |run| run.pid == record.pid),
            None if record.kind == RecordKind::Alive => find(runs, record, |run| run.begin <= record.at),
            None => None,
        };
        let Some(building) = building else {
            return self.mistake(place.clone(), format!("there is no begin for this: {record}"));
        };
        let run = &mut building.run;
        let last = building.last.entry(record.pid).or_insert(run.begin);
        let what = if run.node != record.node {
            format!("the run began on node {:?}: {record}", run.node)
        } else if run.ended && run.pid == record.pid {
            format!("the run has ended: {record}")
        } else if record.at < *last {
            format!("the process wrote a later time before: {record}")
        } else {
            *last = record.at;
            run.until = run.until.max(record.at);
            run.ended |= record.kind == RecordKind::End;
            return;
        };
        self.mistake(place.clone(), what);
    }

    fn judge(&self, of_slot: &[Run]) -> Vec<Violation> {
        let mut violations = Vec::new();
        // Of all runs until now, the one that lasts longest and the one with the highest token.
        let mut longest: Option<&Run> = None;
        let mut highest: Option<&Run> = None;
        for run in of_slot {
            if let Some(first) = longest
                && run.begin < first.until
            {
                let by = first.until.min(run.until).since(run.begin);
                violations.push(Violation::Overlap { first: first.clone(), second: run.clone(), by });
            }
            if let Some(first) = highest {
                let restart = self.restarts_allowed && run.token == first.token && run.node == first.node;
                if run.token <= first.token && !restart {
                    violations.push(Violation::TokenNotHigher { first: first.clone(), second: run.clone() });
                }
            }
            if longest.is_none_or(|first| run.until > first.until) {
                longest = Some(run);
            }
            if highest.is_none_or(|first| run.token > first.token) {
                highest = Some(run);
            }
        }
        violations
    }
}

/// A run while its records are read, with the last time that each of its processes wrote.
#[derive(Debug)]
struct Building {
    run: Run,
    last: BTreeMap<u32, Timestamp>,
}

/// The last run of the record's slot and token for which `is` holds.
fn find<'a>(
    runs: &'a mut BTreeMap<Slot, Vec<Building>>,
    record: &Record,
    is: impl Fn(&Run) -> bool,
) -> Option<&'a mut Building> {
    let of_slot = runs.get_mut(&record.slot)?;
    of_slot.iter_mut().rev().find(|building| building.run.token == record.token && is(&building.run))
}

fn summarize(runs: &BTreeMap<Slot, Vec<Run>>, last: Timestamp) -> Summary {
    let mut summary = Summary { slots: runs.len(), ..Summary::default() };
    let mut gaps = Vec::new();
    for of_slot in runs.values() {
        summary.runs += of_slot.len();
        summary.runs_without_end += of_slot.iter().filter(|run| !run.ended).count();
        let mut moves = 0;
        let mut orphan_time = Duration::ZERO;
        let mut until = Timestamp::ZERO;
        let mut node = None;
        for run in of_slot {
            if let Some(node) = node {
                moves += usize::from(node != &run.node);
                let gap = run.begin.since(until);
                orphan_time += gap;
                gaps.push(gap);
            }
            until = until.max(run.until);
            node = Some(&run.node);
        }
        summary.moves += moves;
        summary.moves_of_a_slot_max = summary.moves_of_a_slot_max.max(moves);
        summary.orphan_time += orphan_time;
        summary.orphan_time_of_a_slot_max = summary.orphan_time_of_a_slot_max.max(orphan_time);
        summary.idle_at_the_end_max = summary.idle_at_the_end_max.max(last.since(until));
    }
    gaps.sort_unstable();
    summary.gaps = gaps.len();
    summary.gap_p50 = gaps.get(gaps.len().saturating_sub(1) / 2).copied().unwrap_or_default();
    summary.gap_max = gaps.last().copied().unwrap_or_default();
    summary
}

impl Report {
    /// Whether the records are sound and no promise is broken.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.mistakes.is_empty() && self.violations.is_empty()
    }

    /// For tests: there is nothing to object.
    ///
    /// # Panics
    /// With the whole report, if there is.
    pub fn assert_good(&self) {
        assert!(self.is_good(), "{self}");
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { token, node, pid, begin, until, place, .. } = self;
        let close = if self.ended { "" } else { " at least" };
        write!(f, "token {token} on {node:?}, pid {pid}, {} to {}{close} ({place})", begin.as_nanos(), until.as_nanos())
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overlap { first, second, by } => {
                write!(f, "{}: runs overlap by at least {by:?}:\n  {first}\n  {second}", first.slot)
            }
            Self::TokenNotHigher { first, second } => {
                write!(f, "{}: the later run's token is not higher:\n  {first}\n  {second}", first.slot)
            }
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { slots, runs, runs_without_end, moves, moves_of_a_slot_max, gaps, gap_p50, gap_max, .. } = self;
        let Self { orphan_time, orphan_time_of_a_slot_max, idle_at_the_end_max, .. } = self;
        writeln!(f, "slots {slots}, runs {runs} ({runs_without_end} without an end)")?;
        writeln!(f, "moves {moves} (of one slot at most {moves_of_a_slot_max})")?;
        writeln!(f, "gaps between runs {gaps}: p50 {gap_p50:?}, max {gap_max:?}")?;
        writeln!(f, "time without a runner {orphan_time:?} (of one slot at most {orphan_time_of_a_slot_max:?})")?;
        write!(f, "from the last run of a slot to the last record at most {idle_at_the_end_max:?}")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for mistake in &self.mistakes {
            writeln!(f, "{mistake}")?;
        }
        for violation in &self.violations {
            writeln!(f, "{violation}")?;
        }
        writeln!(f, "{}", self.summary)?;
        match (self.mistakes.len(), self.violations.len()) {
            (0, 0) => f.write_str("good: no overlap, and tokens rise"),
            (0, broken) => write!(f, "BROKEN: {broken} violations"),
            (mistakes, broken) => write!(f, "UNSOUND: {mistakes} mistakes in the records, {broken} violations"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(text: &str) -> Report {
        let mut checker = Checker::new();
        checker.read("f", text);
        checker.finish()
    }

    const GOOD: &str = "begin w/0 1 a 10 100\nalive w/0 1 a 10 150\nend w/0 1 a 10 200\n\
                        begin w/0 2 b 11 200\nalive w/0 2 b 11 250\n\
                        begin w/0 7 a 10 300\nend w/0 7 a 10 400\n\
                        begin w/1 1 b 11 100\nend w/1 1 b 11 390\n";

    #[test]
    fn good_records_are_good_and_summed_up() {
        let report = report(GOOD);
        report.assert_good();
        assert_eq!(
            report.summary,
            Summary {
                slots: 2,
                runs: 4,
                runs_without_end: 1,
                moves: 2,
                moves_of_a_slot_max: 2,
                gaps: 2,
                gap_p50: Duration::ZERO,
                gap_max: Duration::from_nanos(50),
                orphan_time: Duration::from_nanos(50),
                orphan_time_of_a_slot_max: Duration::from_nanos(50),
                idle_at_the_end_max: Duration::from_nanos(10),
            }
        );
        assert!(report.to_string().ends_with("good: no overlap, and tokens rise"));
    }

    #[test]
    fn nothing_is_good() {
        report("").assert_good();
    }

    /// Bad records, and what the report must say.
    const BAD: &[(&str, &str)] = &[
        // Overlaps.
        ("begin w/0 1 a 10 100\nend w/0 1 a 10 200\nbegin w/0 2 b 11 199\n", "w/0: runs overlap by at least 0ns"),
        (
            "begin w/0 1 a 10 100\nend w/0 1 a 10 200\nbegin w/0 2 b 11 199\nend w/0 2 b 11 300\n",
            "w/0: runs overlap by at least 1ns",
        ),
        (
            "begin w/0 1 a 10 100\nalive w/0 1 a 10 200\nbegin w/0 2 b 11 150\nend w/0 2 b 11 160\n",
            "overlap by at least 10ns",
        ),
        (
            "begin w/0 2 b 11 150\nend w/0 2 b 11 160\nbegin w/0 1 a 10 100\nalive w/0 1 a 10 200\n",
            "overlap by at least 10ns",
        ),
        // A descendant outlives its runner.
        (
            "begin w/0 1 a 10 100\nend w/0 1 a 10 200\nalive w/0 1 a 99 300\nbegin w/0 2 b 11 250\nend w/0 2 b 11 400\n",
            "overlap by at least 50ns",
        ),
        // Tokens.
        ("begin w/0 2 a 10 100\nend w/0 2 a 10 200\nbegin w/0 2 b 11 200\nend w/0 2 b 11 300\n", "token is not higher"),
        ("begin w/0 2 a 10 100\nend w/0 2 a 10 200\nbegin w/0 1 b 11 200\nend w/0 1 b 11 300\n", "token is not higher"),
        (
            "begin w/0 9 a 10 100\nend w/0 9 a 10 200\nbegin w/0 10 b 11 200\nend w/0 10 b 11 300\n\
             begin w/0 9 b 12 300\nend w/0 9 b 12 400\n",
            "token is not higher",
        ),
        // Records that cannot be.
        ("end w/0 1 a 10 200\n", "f:1: there is no begin"),
        ("alive w/0 1 a 10 200\n", "f:1: there is no begin"),
        ("begin w/0 1 a 10 100\nend w/0 2 a 10 200\n", "f:2: there is no begin"),
        ("begin w/0 1 a 10 100\nend w/0 1 a 11 200\n", "f:2: there is no begin"),
        ("begin w/0 1 a 10 100\nbegin w/0 1 a 10 200\n", "f:2: this run began before, in f:1"),
        ("begin w/0 1 a 10 100\nend w/0 1 a 10 200\nend w/0 1 a 10 300\n", "f:3: the run has ended"),
        ("begin w/0 1 a 10 100\nend w/0 1 a 10 200\nalive w/0 1 a 10 300\n", "f:3: the run has ended"),
        ("begin w/0 1 a 10 100\nalive w/0 1 a 10 99\n", "f:2: the process wrote a later time"),
        ("begin w/0 1 a 10 100\nalive w/0 1 a 10 150\nend w/0 1 a 10 149\n", "f:3: the process wrote a later time"),
        ("begin w/0 1 a 10 100\nalive w/0 1 b 10 150\n", "f:2: the run began on node \"a\""),
        ("begin w/0 1 a 10 100\ngarbage\n", "f:2: 1 words instead of 6"),
        ("begin w/0 1 a 10 100\n\nend w/0 1 a 10 200\n", "f:2: 1 words instead of 6"),
        ("begin w/0 1 a 10 100\nend w/0 1 a 10 20", "f:2: the last line is cut off"),
        ("begin w/0 1 a 10 100\n\u{fffd}\n", "f:2: 1 words"),
    ];

    #[test]
    fn each_bad_text_is_found_exactly_once() {
        for (text, says) in BAD {
            let report = report(text);
            assert_eq!(report.mistakes.len() + report.violations.len(), 1, "{text}\n{report}");
            assert!(report.to_string().contains(says), "{text}\n{report}");
        }
    }

    #[test]
    fn runs_of_different_slots_and_touching_runs_do_not_overlap() {
        report("begin w/0 1 a 10 100\nend w/0 1 a 10 200\nbegin w/1 1 b 11 150\nend w/1 1 b 11 160\n").assert_good();
        report("begin w/0 1 a 10 100\nend w/0 1 a 10 200\nbegin w/0 2 b 11 200\n").assert_good();
    }

    #[test]
    fn a_long_run_is_found_to_overlap_runs_that_are_not_its_neighbours() {
        let report = report(
            "begin w/0 1 a 10 100\nend w/0 1 a 10 900\nbegin w/0 2 b 11 200\nend w/0 2 b 11 300\n\
             begin w/0 3 b 11 890\nend w/0 3 b 11 960\n",
        );
        let text = report.to_string();
        assert!(text.contains("by at least 100ns") && text.contains("by at least 10ns"), "{text}");
        assert_eq!(report.violations.len(), 2);
    }

    #[test]
    fn runs_of_several_files_are_judged_together() {
        let mut checker = Checker::new();
        checker.read("a", "begin w/0 1 a 10 100\nend w/0 1 a 10 200\n");
        checker.read("b", "begin w/0 2 b 10 150\nend w/0 2 b 10 300\n");
        let report = checker.finish();
        assert!(
            report.to_string().contains("overlap by at least 50ns") && report.to_string().contains("b:1"),
            "{report}"
        );
    }

    #[test]
    fn a_restart_under_the_same_token_is_good_only_where_it_is_allowed() {
        let restart = "begin w/0 1 a 10 100\nalive w/0 1 a 10 200\nbegin w/0 1 a 11 250\nend w/0 1 a 11 300\n";
        let allowing = |text: &str| {
            let mut checker = Checker::new().allow_restarts();
            checker.read("f", text);
            checker.finish()
        };
        assert!(!report(restart).is_good());
        allowing(restart).assert_good();
        assert!(!allowing(&restart.replace("begin w/0 1 a 11", "begin w/0 1 b 11")).is_good());
        assert!(!allowing(&restart.replace("250", "199")).is_good());
    }
}
