//! `rendez elect`: a command that runs in one place at a time, and what a script learns of its end.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::processes::{descendants_of, freeze_all, signal, signal_if_there, try_for, wait_for};

/// A folder with the store, and with what the leaders write.
struct Stage(tempfile::TempDir);

/// A candidate that is killed when the test ends.
struct Candidate {
    process: Child,
    folder: PathBuf,
}

impl Stage {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn store(&self) -> String {
        format!("file:{}", self.path("store").display())
    }

    /// Runs `script` in a shell while leading.
    fn stand(&self, node: &str, options: &[&str], script: &str) -> Candidate {
        let out = fs::File::create(self.path(&format!("{node}.out"))).unwrap();
        let errors = fs::File::create(self.path(&format!("{node}.err"))).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_rendez"))
            .args(["elect", "--store", &self.store(), "--node", node, "--session-ttl", "3s"])
            .args(options)
            .args(["boss", "--", "sh", "-c", script])
            .current_dir(self.0.path())
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(errors)
            .spawn()
            .unwrap();
        Candidate { process, folder: self.0.path().to_owned() }
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn wait_for_line(&self, name: &str, line: &str) {
        let there = || self.read(name).lines().any(|known| known == line).then_some(());
        wait_for(&format!("{line:?} in {name}, which has {:?}", self.read(name)), there);
    }
}

impl Candidate {
    fn pid(&self) -> i32 {
        i32::try_from(self.process.id()).unwrap()
    }

    fn exit_code(&mut self) -> Option<i32> {
        let status = try_for(|| self.process.try_wait().unwrap());
        let said =
            || fs::read_dir(&self.folder).unwrap().filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok());
        status.unwrap_or_else(|| panic!("waited in vain for its end: {:?}", said().collect::<Vec<_>>())).code()
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        let all = descendants_of(self.pid());
        all.iter().chain([&self.pid()]).for_each(|pid| {
            signal_if_there(*pid, Signal::CONT);
            signal_if_there(*pid, Signal::KILL);
        });
        let _ = self.process.wait();
    }
}

/// Writes its name and token, twice: when it begins and when it has been told to end.
const WORK: &str = "echo begin $RENDEZ_NODE $RENDEZ_TOKEN >> log; \
                    trap 'echo end $RENDEZ_NODE $RENDEZ_TOKEN >> log; exit 0' TERM; while :; do sleep 0.05; done";

/// Nobody begins before the last one has ended, and tokens rise.
fn judge(log: &str) -> Vec<String> {
    let (mut inside, mut highest, mut order) = (None, 0, Vec::new());
    for line in log.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let token: u64 = words[2].parse().unwrap();
        match words[0] {
            "begin" => {
                assert_eq!(inside, None, "two at once: {log}");
                assert!(token > highest, "a token fell: {log}");
                (inside, highest) = (Some(words[1].to_owned()), token);
                order.push(words[1].to_owned());
            }
            _ => assert_eq!(inside.take().as_deref(), Some(words[1]), "{log}"),
        }
    }
    order
}

#[test]
fn the_commands_end_is_the_exit_code_and_its_output_is_all_there_is() {
    let stage = Stage::new();
    let mut said = stage.stand("a", &[], "echo out {token}-$RENDEZ_TOKEN; echo err >&2; exit 7");
    assert_eq!(said.exit_code(), Some(7));
    let out = stage.read("a.out");
    let (filled, from_environment) = out.trim().strip_prefix("out ").unwrap().split_once('-').unwrap();
    assert_eq!(filled, from_environment);
    assert!(filled.parse::<u64>().unwrap() > 0);
    assert_eq!(stage.read("a.err"), "err\n");
    assert_eq!(stage.stand("b", &[], "true").exit_code(), Some(0));
    assert_eq!(stage.stand("c", &[], "kill -KILL $$").exit_code(), Some(137));
}

#[test]
fn one_runs_at_a_time_and_the_next_follows_whoever_goes() {
    let stage = Stage::new();
    let mut first = stage.stand("a", &[], WORK);
    wait_for("the first", || stage.read("log").starts_with("begin a").then_some(()));
    let low = stage.stand("b", &[], WORK);
    let mut high = stage.stand("c", &["--priority", "5"], WORK);
    let mut late = stage.stand("d", &["--wait", "100ms"], WORK);
    assert_eq!(late.exit_code(), Some(75), "{}", stage.read("d.err"));
    assert!(stage.read("d.err").contains("gave up waiting"), "{}", stage.read("d.err"));
    let three = || {
        let status = Command::new(env!("CARGO_BIN_EXE_rendez"))
            .args(["status", "--store", &stage.store(), "--cluster", "elections", "--json"])
            .output()
            .unwrap();
        let told: serde_json::Value = serde_json::from_slice(&status.stdout).ok()?;
        (told["nodes"].as_array()?.len() == 3).then_some(())
    };
    wait_for("all three to stand", three);
    // Whoever leads on has heard of the others by a heartbeat: without one for a session TTL it would not lead any more.
    std::thread::sleep(Duration::from_millis(3500));
    let explained = Command::new(env!("CARGO_BIN_EXE_rendez"))
        .args(["explain", "--store", &stage.store(), "--cluster", "elections", "boss/0"])
        .output()
        .unwrap();
    let explained = String::from_utf8(explained.stdout).unwrap();
    assert!(
        explained.contains("policy sticky") && explained.contains("whoever holds the slot keeps it"),
        "{explained}"
    );
    signal(first.pid(), Signal::TERM);
    assert_eq!(first.exit_code(), Some(0));
    assert!(!stage.read("a.err").contains("at once"), "it hands over, and kills nothing: {}", stage.read("a.err"));
    wait_for("the preferred one", || stage.read("log").contains("begin c").then_some(()));
    signal(high.pid(), Signal::INT);
    assert_eq!(high.exit_code(), Some(0));
    assert!(!stage.read("c.err").contains("at once"), "{}", stage.read("c.err"));
    wait_for("the last", || stage.read("log").contains("begin b").then_some(()));
    assert_eq!(judge(&stage.read("log")), ["a", "c", "b"]);
    drop(low);
}

#[test]
fn a_killed_leaders_command_is_gone_before_the_next_begins() {
    let stage = Stage::new();
    // It would not end by itself, and has started others that would not either.
    let stubborn = "trap '' TERM; echo $$ >> pids; (trap '' TERM; while :; do sleep 1; done) & echo $! >> pids; \
                    while :; do sleep 1; done";
    let first = stage.stand("a", &[], stubborn);
    let children = crate::processes::pids_in(&stage.path("pids"), 2);
    let second = stage.stand(
        "b",
        &[],
        "for pid in $(cat pids); do kill -0 $pid 2>/dev/null && echo alive >> found; done; \
                                        echo begun >> found; sleep 600",
    );
    signal(first.pid(), Signal::KILL);
    stage.wait_for_line("found", "begun");
    assert_eq!(stage.read("found"), "begun\n");
    assert!(children.iter().all(|pid| !crate::processes::runs(*pid)));
    drop((first, second));
}

#[test]
fn who_was_frozen_for_too_long_finds_its_command_gone_and_says_so() {
    let stage = Stage::new();
    let mut first = stage.stand("a", &[], WORK);
    wait_for("the first", || stage.read("log").starts_with("begin a").then_some(()));
    let second = stage.stand("b", &[], WORK);
    let all = freeze_all(first.pid());
    wait_for("the second, when the first one's session has ended", || {
        stage.read("log").contains("begin b").then_some(())
    });
    all.iter().rev().for_each(|pid| signal_if_there(*pid, Signal::CONT));
    assert_eq!(first.exit_code(), Some(75), "{}", stage.read("a.err"));
    assert!(stage.read("a.err").contains("leadership of \"boss\" was lost"), "{}", stage.read("a.err"));
    drop(second);
}

#[test]
fn who_stays_stands_again() {
    let stage = Stage::new();
    let first = stage.stand("a", &["--stay"], WORK);
    wait_for("the first", || stage.read("log").starts_with("begin a").then_some(()));
    let all = freeze_all(first.pid());
    let mut second = stage.stand("b", &[], WORK);
    wait_for("the second", || stage.read("log").contains("begin b").then_some(()));
    all.iter().rev().for_each(|pid| signal_if_there(*pid, Signal::CONT));
    signal(second.pid(), Signal::TERM);
    assert_eq!(second.exit_code(), Some(0));
    let again = || (stage.read("log").matches("begin a").count() == 2).then_some(());
    wait_for("the first one again", again);
    drop(first);
}

#[test]
fn what_cannot_be_is_said() {
    let rendez = |args: &[&str]| Command::new(env!("CARGO_BIN_EXE_rendez")).arg("elect").args(args).output().unwrap();
    let stage = Stage::new();
    let here = |path: &Path| format!("file:{}", path.display());
    for (args, what) in [
        (vec!["boss", "--", "true"], "--store"),
        (vec!["--store", "memory:", "boss"], "COMMAND"),
        (vec!["--store", "memory:", "--", "true"], "NAME"),
        (vec!["--store", "memory:", "boss", "--", "/no/such/program"], "/no/such/program"),
        (vec!["--store", "memory:", "--session-ttl", "1ms", "boss", "--", "true"], "heartbeat_interval"),
        (vec!["--store", "memory:", "a\nb", "--", "true"], "control"),
    ] {
        let output = rendez(&args);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
        assert!(error.contains(what), "{args:?}: {error}");
    }
    let taken = stage.stand("a", &[], WORK);
    wait_for("the first", || stage.read("log").starts_with("begin a").then_some(()));
    let store = here(&stage.path("store"));
    let twin = rendez(&["--store", &store, "--node", "a", "--no-wait", "--session-ttl", "3s", "boss", "--", "true"]);
    assert_eq!(twin.status.code(), Some(4), "{}", String::from_utf8_lossy(&twin.stderr));
    drop(taken);
}
