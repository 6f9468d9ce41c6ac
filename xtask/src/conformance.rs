//! `cargo xtask conformance`: which cases the stores are put through, and what became of each.
//!
//! Every package with a test program `conformance` takes part. What that program prints is read here, and nothing of
//! the suite is known.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use crate::{Failure, run, servers};

const USAGE: &str = "write `cargo xtask conformance [--store NAME] [--list]`";

/// One case of one store, as a test program prints it.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    store: String,
    case: String,
    /// Why it cannot be run.
    skipped: Option<String>,
    /// What came of it, where it was run.
    outcome: Option<String>,
}

impl Line {
    /// Reads `[reason] store::group::case: test` or `test [reason] store::group::case ... outcome`.
    fn parse(line: &str) -> Option<Self> {
        let (text, outcome) = match line.strip_prefix("test ") {
            Some(rest) => rest.rsplit_once(" ... ").map(|(text, outcome)| (text, Some(outcome.trim().to_owned())))?,
            None => (line.strip_suffix(": test")?, None),
        };
        let (skipped, name) = match text.strip_prefix('[') {
            Some(rest) => rest.split_once(']').map(|(reason, name)| (Some(reason.to_owned()), name))?,
            None => (None, text),
        };
        let (store, case) = name.trim().split_once("::")?;
        Some(Self { store: store.to_owned(), case: case.to_owned(), skipped, outcome })
    }

    fn outcome(&self) -> String {
        match (&self.skipped, &self.outcome) {
            (Some(reason), _) => format!("skipped: {reason}"),
            (None, Some(outcome)) => outcome.clone(),
            (None, None) => String::new(),
        }
    }
}

/// Lists the cases or runs them: a line `store case outcome` each, then a summary.
pub(crate) fn conformance(words: &[&str]) -> Result<(), Failure> {
    let (mut store, mut list) = (None, false);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match *word {
            "--list" => list = true,
            "--store" => match words.next() {
                Some(name) => store = Some((*name).to_owned()),
                None => return Err(Failure(format!("--store wants a name: {USAGE}"))),
            },
            other => return Err(Failure(format!("{other:?} is unknown: {USAGE}"))),
        }
    }
    servers::ensure()?;
    let mut arguments: Vec<String> = store.iter().map(|name| format!("{name}::")).collect();
    if list {
        arguments.push("--list".to_owned());
    }
    let wanted = |line: &Line| store.as_ref().is_none_or(|name| *name == line.store);
    let (lines, done) = programs(&arguments, |line| {
        if wanted(line) {
            println!("{} {} {}", line.store, line.case, line.outcome());
        }
    })?;
    let lines: Vec<Line> = lines.into_iter().filter(wanted).collect();
    if lines.is_empty() {
        return Err(Failure(format!("there is no such store: {USAGE}")));
    }
    println!("\n{}", summary(&lines));
    done
}

/// How many cases each store has, and which are skipped, for those who are about to run all tests.
pub(crate) fn overview() -> Result<String, Failure> {
    let (lines, done) = programs(&["--list".to_owned()], |_| {})?;
    done.map(|()| summary(&lines))
}

/// Runs all test programs of this name; what is no case is passed on. Says as well whether all succeeded.
fn programs(arguments: &[String], mut seen: impl FnMut(&Line)) -> Result<(Vec<Line>, Result<(), Failure>), Failure> {
    let words = ["test", "--workspace", "--all-features", "--no-fail-fast", "--test", "conformance", "--"];
    let mut command = run::cargo(&words);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
    let failed = |error: std::io::Error| Failure(format!("the test programs `conformance` did not run: {error}"));
    let mut child = command.spawn().map_err(failed)?;
    let mut lines = Vec::new();
    for text in child.stdout.take().into_iter().flat_map(|out| BufReader::new(out).lines()) {
        let text = text.map_err(failed)?;
        match Line::parse(&text) {
            Some(line) => {
                seen(&line);
                lines.push(line);
            }
            // The failures, each with its last requests.
            None if !text.is_empty() && !text.starts_with("running ") => println!("{text}"),
            None => {}
        }
    }
    let status = child.wait().map_err(failed)?;
    let done = if status.success() { Ok(()) } else { Err(Failure("stores do not conform, see above".to_owned())) };
    Ok((lines, done))
}

/// Cases by store, then those that are skipped.
fn summary(lines: &[Line]) -> String {
    let mut stores: BTreeMap<&str, (usize, usize, usize)> = BTreeMap::new();
    for line in lines {
        let (all, skipped, failed) = stores.entry(&line.store).or_default();
        *all += 1;
        *skipped += usize::from(line.skipped.is_some());
        *failed += usize::from(line.skipped.is_none() && line.outcome.as_ref().is_some_and(|outcome| outcome != "ok"));
    }
    let mut text = String::from("conformance, cases by store:\n");
    for (store, (all, skipped, failed)) in &stores {
        text += &format!("  {store:20} {all:4}, of these {skipped} skipped");
        if *failed > 0 {
            text += &format!(", {failed} FAILED");
        }
        text.push('\n');
    }
    if lines.iter().any(|line| line.skipped.is_some()) {
        text += "skipped:\n";
    }
    for line in lines {
        if let Some(reason) = &line.skipped {
            text += &format!("  {}::{}: {reason}\n", line.store, line.case);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_runs_are_read() {
        let line = |skipped: Option<&str>, outcome: Option<&str>| Line {
            store: "redis".to_owned(),
            case: "open::a".to_owned(),
            skipped: skipped.map(str::to_owned),
            outcome: outcome.map(str::to_owned),
        };
        for (text, expected) in [
            ("redis::open::a: test", line(None, None)),
            ("[it has none: see x] redis::open::a: test", line(Some("it has none: see x"), None)),
            ("test redis::open::a    ... ok", line(None, Some("ok"))),
            ("test redis::open::a    ... FAILED", line(None, Some("FAILED"))),
            ("test [no, never]   redis::open::a ... ignored", line(Some("no, never"), Some("ignored"))),
        ] {
            assert_eq!(Line::parse(text), Some(expected), "{text}");
        }
        for text in ["", "running 3 tests", "test result: ok. 3 passed", "  expected 1", "3 tests, 0 benchmarks"] {
            assert_eq!(Line::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_summary_counts_by_store_and_names_what_is_skipped() {
        let texts = ["test a::g::x ... ok", "test a::g::y ... FAILED", "test [why] b::g::x ... ignored"];
        let lines: Vec<Line> = texts.iter().filter_map(|text| Line::parse(text)).collect();
        let summary = summary(&lines);
        for part in ["a                       2, of these 0 skipped, 1 FAILED", "  b::g::x: why\n"] {
            assert!(summary.contains(part), "{summary}");
        }
    }
}
