//! `rendez-probe` and `rendez-check` as programs.

use std::path::Path;
use std::process::{Child, Command, Output};

use rendez_testkit::checker::{Report, check_files};
use rendez_testkit::records::{Record, RecordKind};
use rendez_testkit::servers::{READY_BOUND, wait_until};
use rendez_testkit::sink::{SinkServer, TokenSink};

fn probe(file: &Path, token: u64, options: &[&str]) -> Command {
    let mut probe = Command::new(env!("CARGO_BIN_EXE_rendez-probe"));
    probe.arg(file).args(options);
    probe.env("RENDEZ_SLOT", "my inbox/3").env("RENDEZ_TOKEN", token.to_string()).env("RENDEZ_NODE", "node a");
    probe
}

/// What was written so far; a line may just be under way.
fn records(file: &Path) -> Vec<Record> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| line.parse().unwrap()).collect()
}

async fn wait_for(file: &Path, what: &str, is: impl Fn(&[Record]) -> bool) -> Vec<Record> {
    let look = async || {
        let records = records(file);
        if is(&records) { Ok(records) } else { Err(format!("{} records", records.len())) }
    };
    wait_until(what, READY_BOUND, look).await.unwrap()
}

fn count(records: &[Record], kind: RecordKind) -> usize {
    records.iter().filter(|record| record.kind == kind).count()
}

fn signal(child: &Child, signal: &str) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

fn check(file: &Path) -> Report {
    check_files([file]).unwrap()
}

#[tokio::test]
async fn it_begins_lives_and_ends_when_it_is_asked_to() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("records");
    let mut child = probe(&file, 7, &["--stop-ms", "60", "--exit-code", "9"]).spawn().unwrap();
    let before = wait_for(&file, "signs of life", |records| count(records, RecordKind::Alive) >= 2).await;
    assert_eq!(before[0].kind, RecordKind::Begin);
    assert_eq!(before[0].slot.to_string(), "my inbox/3");
    assert_eq!((before[0].token.get(), before[0].node.as_str(), before[0].pid), (7, "node a", child.id()));
    let asked = rendez_testkit::clock::now();
    signal(&child, "-TERM");
    assert_eq!(child.wait().unwrap().code(), Some(9));
    let records = records(&file);
    let last = records.last().unwrap();
    assert_eq!(last.kind, RecordKind::End);
    assert!(last.at.since(asked).as_millis() >= 60);
    check(&file).assert_good();
    assert_eq!(check(&file).summary.runs_without_end, 0);
}

#[tokio::test]
async fn it_ends_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("records");
    let status = probe(&file, 1, &["--exit-after-ms", "30", "--exit-code", "3"]).status().unwrap();
    assert_eq!(status.code(), Some(3));
    let records = records(&file);
    assert_eq!((count(&records, RecordKind::Begin), count(&records, RecordKind::End)), (1, 1));
}

#[tokio::test]
async fn it_may_ignore_the_request_and_a_kill_leaves_its_last_sign_of_life() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("records");
    let mut child = probe(&file, 1, &["--ignore-term"]).spawn().unwrap();
    wait_for(&file, "its begin", |records| !records.is_empty()).await;
    signal(&child, "-TERM");
    let now = records(&file).len();
    wait_for(&file, "more signs of life", |records| records.len() >= now + 3).await;
    child.kill().unwrap();
    child.wait().unwrap();
    let report = check(&file);
    report.assert_good();
    assert_eq!(report.summary.runs_without_end, 1);
}

#[tokio::test]
async fn a_descendant_outlives_it_and_is_held_against_it() {
    for fork in ["--fork", "--fork-detached"] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("records");
        let mut child = probe(&file, 1, &[fork]).spawn().unwrap();
        let id = child.id();
        let of_descendant = |records: &[Record]| records.iter().filter(|record| record.pid != id).count();
        let records = wait_for(&file, "the descendant", |records| of_descendant(records) >= 1).await;
        let descendant = records.iter().find(|record| record.pid != id).unwrap().pid;
        signal(&child, "-TERM");
        child.wait().unwrap();
        let now = of_descendant(&self::records(&file));
        wait_for(&file, "the descendant to go on", |records| of_descendant(records) >= now + 2).await;
        // A second run while the descendant of the first one lives: that is an overlap.
        assert!(probe(&file, 2, &["--exit-after-ms", "0"]).status().unwrap().success());
        let now = of_descendant(&self::records(&file));
        wait_for(&file, "the descendant to go on", |records| of_descendant(records) >= now + 2).await;
        assert!(Command::new("kill").args(["-KILL", &descendant.to_string()]).status().unwrap().success());
        let report = check(&file);
        assert!(report.mistakes.is_empty() && report.violations.len() == 1, "{report}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_sink_sees_its_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let sink = TokenSink::new();
    let server = SinkServer::tcp(sink.clone()).await.unwrap();
    let addr = server.addr().unwrap().to_string();
    for (token, accepted) in [(5, true), (4, false), (6, true)] {
        let options = ["--exit-after-ms", "0", "--sink", &addr];
        assert!(probe(&folder.path().join("records"), token, &options).status().unwrap().success());
        assert!(sink.log().iter().filter(|entry| entry.token.get() == token).all(|entry| entry.accepted == accepted));
    }
    assert!(!sink.refused().is_empty());
}

#[test]
fn it_refuses_to_run_without_a_slot_or_with_unknown_options() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("records");
    assert_eq!(probe(&file, 1, &["--no-such-option"]).output().unwrap().status.code(), Some(2));
    let output = probe(&file, 1, &[]).env_remove("RENDEZ_SLOT").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("RENDEZ_SLOT"));
    assert!(!file.exists());
}

#[test]
fn the_checking_program_tells_good_from_broken_from_unsound() {
    let folder = tempfile::tempdir().unwrap();
    let run = |words: &[&str]| -> Output {
        let mut check = Command::new(env!("CARGO_BIN_EXE_rendez-check"));
        check.args(words).current_dir(folder.path()).output().unwrap()
    };
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("good", "begin w/0 1 a 10 100\nend w/0 1 a 10 200\n");
    write("more", "begin w/0 2 b 10 200\n");
    write("overlap", "begin w/0 3 b 11 199\n");
    write("restart", "begin w/0 1 a 12 300\nend w/0 1 a 12 400\n");
    write("garbage", "begin w/0 3 b 11 250\n\u{0}\u{1}\n");
    for (words, code, says) in [
        (&["good", "more"][..], 0, "good: no overlap, and tokens rise"),
        (&["good", "overlap"], 5, "BROKEN: 1 violations"),
        (&["good", "restart"], 5, "the later run's token is not higher"),
        (&["--allow-restarts", "good", "restart"], 0, "good:"),
        (&["good", "garbage"], 1, "garbage:2: "),
        (&["good", "missing"], 1, ""),
        (&[], 2, ""),
        (&["--wrong", "good"], 2, ""),
    ] {
        let output = run(words);
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {text}");
        assert!(text.contains(says), "{words:?}: {text}");
    }
}
