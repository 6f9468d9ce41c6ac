//! Judges run records: `rendez-check [--allow-restarts] FILE...`
//!
//! Ends with 0 if all is good, 1 if a file cannot be read or holds what cannot be, 2 if it was called wrongly, and
//! 5 if a promise is broken.

use std::path::Path;
use std::process::ExitCode;

use rendez_testkit::checker::Checker;

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    let (options, files): (Vec<_>, Vec<_>) =
        words.into_iter().partition(|word| word.to_string_lossy().starts_with("--"));
    let mut checker = Checker::new();
    for option in &options {
        if option != "--allow-restarts" {
            return usage();
        }
        checker = checker.allow_restarts();
    }
    if files.is_empty() {
        return usage();
    }
    for file in &files {
        if let Err(error) = checker.read_file(Path::new(file)) {
            eprintln!("rendez-check: {error}");
            return ExitCode::FAILURE;
        }
    }
    let report = checker.finish();
    println!("{report}");
    match (report.mistakes.is_empty(), report.violations.is_empty()) {
        (true, true) => ExitCode::SUCCESS,
        (false, _) => ExitCode::FAILURE,
        (true, false) => ExitCode::from(5),
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: rendez-check [--allow-restarts] FILE...");
    ExitCode::from(2)
}
