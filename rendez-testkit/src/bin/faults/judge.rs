//! What the records of one run prove.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use rendez_core::{FencingToken, Slot, Timestamp};
use rendez_testkit::checker::{Report, Run, Violation};
use rendez_testkit::sink::SinkEntry;

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Promise {
    /// S2: runs of a slot do not overlap.
    NoOverlap,
    /// S3: a sink that checks tokens accepts nothing stale.
    SinkRefuses,
    /// S4: tokens of a slot rise.
    TokensRise,
    /// S7: no run goes on beyond its deadline.
    Deadline,
    /// L1 and L2: everything runs again, and is spread as it should be.
    Recovers,
    /// L5: who is told to end, ends.
    Ends,
    /// L7: nobody has to be started again.
    NoRestart,
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::NoOverlap => "S2",
            Self::SinkRefuses => "S3",
            Self::TokensRise => "S4",
            Self::Deadline => "S7",
            Self::Recovers => "L1/L2",
            Self::Ends => "L5",
            Self::NoRestart => "L7",
        })
    }
}

/// A promise that was broken, and how that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Broken {
    pub(crate) promise: Promise,
    pub(crate) how: String,
}

impl Broken {
    pub(crate) fn new(promise: Promise, how: impl Into<String>) -> Self {
        Self { promise, how: how.into() }
    }
}

/// A time in which some nodes could extend no session.
#[derive(Debug, Clone)]
pub(crate) struct Silence {
    pub(crate) nodes: Vec<String>,
    /// The last heartbeat that was answered was sent before.
    pub(crate) from: Timestamp,
    pub(crate) to: Timestamp,
}

/// What the records say against the promises.
pub(crate) fn broken(report: &Report, silences: &[Silence], ttl: Duration, sink: &[SinkEntry]) -> Vec<Broken> {
    let violations = report.violations.iter().map(|violation| match violation {
        Violation::Overlap { .. } => Broken::new(Promise::NoOverlap, violation.to_string()),
        Violation::TokenNotHigher { .. } => Broken::new(Promise::TokensRise, violation.to_string()),
    });
    let mut broken: Vec<Broken> = violations.collect();
    broken.extend(silences.iter().flat_map(|silence| overdue(report, silence, ttl)));
    broken.extend(stale(sink));
    broken
}

/// Runs that were seen when the sessions of their nodes were over.
fn overdue(report: &Report, silence: &Silence, ttl: Duration) -> Vec<Broken> {
    let deadline = silence.from + ttl;
    let runs = report.runs.values().flatten().filter(|run| silence.nodes.iter().any(|node| node == run.node.as_str()));
    let late = runs.filter(|run| run.begin < silence.to && run.until.min(silence.to) > deadline);
    late.map(|run| {
        let by = run.until.min(silence.to).since(deadline);
        Broken::new(
            Promise::Deadline,
            format!("{} {} on {} ran for {by:?} after its deadline", run.slot, run.token, run.node),
        )
    })
    .collect()
}

/// Accepted writes with a token below one that was accepted before.
fn stale(sink: &[SinkEntry]) -> Vec<Broken> {
    let mut highest: BTreeMap<&Slot, FencingToken> = BTreeMap::new();
    let mut broken = Vec::new();
    for entry in sink.iter().filter(|entry| entry.accepted) {
        let before = highest.entry(&entry.slot).or_insert(entry.token);
        if entry.token < *before {
            let how = format!("{}: a write with {} was accepted after one with {before}", entry.slot, entry.token);
            broken.push(Broken::new(Promise::SinkRefuses, how));
        }
        *before = entry.token.max(*before);
    }
    broken
}

/// The longest time for which two runs of a slot overlapped.
pub(crate) fn longest_overlap(report: &Report) -> Duration {
    let times = report.violations.iter().map(|violation| match violation {
        Violation::Overlap { by, .. } => *by,
        Violation::TokenNotHigher { .. } => Duration::ZERO,
    });
    times.max().unwrap_or_default()
}

/// How many slots another child had to run between the fault's beginning and the moment when all was well again.
pub(crate) fn interrupted(report: &Report, from: Timestamp, to: Timestamp) -> usize {
    let anew = |of_slot: &&Vec<Run>| of_slot.iter().any(|run| from < run.begin && run.begin <= to);
    report.runs.values().filter(anew).count()
}

/// The longest time without a run of a slot that ended after this moment.
pub(crate) fn longest_gap(report: &Report, from: Timestamp) -> Duration {
    let mut longest = Duration::ZERO;
    for of_slot in report.runs.values() {
        let mut until = None;
        for run in of_slot {
            if let Some(until) = until
                && run.begin > from
                && run.begin > until
            {
                longest = longest.max(run.begin.since(until));
            }
            until = until.max(Some(run.until));
        }
    }
    longest
}

#[cfg(test)]
mod tests {
    use rendez_testkit::checker::Checker;

    use super::*;

    fn report(text: &str) -> Report {
        let mut checker = Checker::new();
        checker.read("x", text);
        checker.finish()
    }

    fn at(ns: u64) -> Timestamp {
        Timestamp::from_nanos(ns)
    }

    fn promises(broken: &[Broken]) -> Vec<Promise> {
        broken.iter().map(|broken| broken.promise).collect()
    }

    #[test]
    fn overlaps_falling_tokens_and_stale_writes_are_told_apart() {
        let ttl = Duration::from_nanos(50);
        let bad = report("begin w/0 2 a 1 100\nend w/0 2 a 1 200\nbegin w/0 1 b 2 150\nend w/0 1 b 2 160\n");
        assert_eq!(promises(&broken(&bad, &[], ttl, &[])), [Promise::NoOverlap, Promise::TokensRise]);
        assert_eq!(longest_overlap(&bad), Duration::from_nanos(10));
        let entry = |token: u64, accepted| SinkEntry {
            slot: "w/0".parse().unwrap(),
            token: FencingToken::new(token),
            payload: String::new(),
            accepted,
            at: at(0),
        };
        let good = [entry(1, true), entry(3, true), entry(2, false), entry(3, true)];
        assert!(broken(&report(""), &[], ttl, &good).is_empty());
        let bad = [entry(3, true), entry(2, true)];
        assert_eq!(promises(&broken(&report(""), &[], ttl, &bad)), [Promise::SinkRefuses]);
    }

    #[test]
    fn in_a_silence_nothing_of_its_nodes_runs_beyond_the_deadline() {
        let silences = [Silence { nodes: vec!["a".to_owned()], from: at(100), to: at(300) }];
        let judge = |text: &str| promises(&broken(&report(text), &silences, Duration::from_nanos(50), &[]));
        assert_eq!(judge("begin w/0 1 a 1 10\nend w/0 1 a 1 151\n"), [Promise::Deadline]);
        assert_eq!(judge("begin w/0 1 a 1 200\nalive w/0 1 a 1 210\n"), [Promise::Deadline]);
        for good in [
            "begin w/0 1 a 1 10\nend w/0 1 a 1 150\n",
            "begin w/0 1 b 1 10\nend w/0 1 b 1 400\n",
            "begin w/0 1 a 1 300\nend w/0 1 a 1 400\n",
        ] {
            assert_eq!(judge(good), [], "{good}");
        }
    }

    #[test]
    fn interruptions_and_gaps_are_counted_from_the_fault_on() {
        let report = report(
            "begin w/0 1 a 1 10\nend w/0 1 a 1 120\nbegin w/0 2 b 2 170\nend w/0 2 b 2 900\n\
             begin w/1 1 a 3 10\nend w/1 1 a 3 900\nbegin w/2 1 a 4 10\nend w/2 1 a 4 40\nbegin w/2 2 b 5 95\nend w/2 2 b 5 900\n",
        );
        assert_eq!(interrupted(&report, at(100), at(500)), 1);
        assert_eq!(longest_gap(&report, at(100)), Duration::from_nanos(50));
        assert_eq!(longest_gap(&report, at(50)), Duration::from_nanos(55));
    }
}
