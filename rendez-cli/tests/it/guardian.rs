//! The guardian and its keepers, with a test in the place of the agent.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::processes::{PATIENCE, boot_ns, parent_of, pids_in, runs, signal, wait_for};

const STOP_LEAD: Duration = Duration::from_millis(1500);
const KILL_LEAD: Duration = Duration::from_millis(700);

/// Ignores `SIGTERM`, and leaves two processes behind that forked twice in sessions of their own, one of them without
/// environment.
const STUBBORN: &str = r#"
trap '' TERM
echo $$ >> "$PIDS"
leave='sh -c "echo \$\$ >> $PIDS; while :; do sleep 0.05; done" & exit 0'
setsid sh -c "$leave"
env -i PIDS="$PIDS" PATH="$PATH" setsid sh -c "$leave"
while :; do sleep 0.05; done
"#;

struct Agent {
    guardian: Child,
    says: UnixStream,
    hears: BufReader<UnixStream>,
    folder: tempfile::TempDir,
}

impl Agent {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let output = File::create(folder.path().join("out")).unwrap();
        Self::build(folder, Stdio::from(output))
    }

    fn with_output(output: Stdio) -> Self {
        Self::build(tempfile::tempdir().unwrap(), output)
    }

    fn build(folder: tempfile::TempDir, output: Stdio) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        let guardian = Command::new(env!("CARGO_BIN_EXE_rendez"))
            .arg("guardian")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(output)
            .stderr(File::create(folder.path().join("err")).unwrap())
            .spawn()
            .unwrap();
        let hears = BufReader::new(ours.try_clone().unwrap());
        let mut agent = Self { guardian, says: ours, hears, folder };
        let ready = agent.hear();
        assert!(ready["ready"]["folder"].is_string(), "{ready}");
        agent.say(json!({"hello": {
            "cluster": "c",
            "stop_lead_ns": STOP_LEAD.as_nanos() as u64,
            "kill_lead_ns": KILL_LEAD.as_nanos() as u64,
            "session_ttl_ns": 10_000_000_000_u64,
            "session_ttl_max_ns": 10_000_000_000_u64,
        }}));
        agent
    }

    fn say(&mut self, order: Value) {
        self.says.write_all(format!("{order}\n").as_bytes()).unwrap();
    }

    fn hear(&mut self) -> Value {
        let mut line = String::new();
        self.hears.read_line(&mut line).expect("nothing was said in time");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    /// Starts a shell script; returns the process of its command.
    fn start(&mut self, child: u64, script: &str, deadline_ns: u64) -> i32 {
        let pids = self.folder.path().join(format!("pids-{child}"));
        self.say(json!({"start": {
            "child": child,
            "name": format!("inbox/{child}"),
            "command": ["sh", "-c", script],
            "environment": [["PIDS", pids], ["RENDEZ_SLOT", format!("inbox/{child}")]],
            "deadline_ns": deadline_ns,
        }}));
        let report = self.hear();
        assert_eq!(report["started"]["child"], child, "{report}");
        i32::try_from(report["started"]["pid"].as_i64().unwrap()).unwrap()
    }

    /// Starts the stubborn script; returns all its processes.
    fn start_stubborn(&mut self, child: u64, deadline_ns: u64) -> Vec<i32> {
        let leader = self.start(child, STUBBORN, deadline_ns);
        let mut pids = pids_in(&self.folder.path().join(format!("pids-{child}")), 3);
        pids.retain(|pid| *pid != leader);
        pids.push(leader);
        pids
    }

    fn hear_end(&mut self, child: u64) -> Value {
        let report = self.hear();
        assert_eq!(report["ended"]["child"], child, "{report}");
        report["ended"]["end"].clone()
    }

    fn output(&self, of: &str) -> String {
        fs::read_to_string(self.folder.path().join(of)).unwrap()
    }

    fn guardian_pid(&self) -> i32 {
        i32::try_from(self.guardian.id()).unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.says.shutdown(std::net::Shutdown::Both);
        if self.guardian.try_wait().is_ok_and(|end| end.is_none()) {
            signal(self.guardian_pid(), Signal::CONT);
        }
        let _ = self.guardian.wait();
    }
}

fn in_(duration: Duration) -> u64 {
    boot_ns() + duration.as_nanos() as u64
}

fn far() -> u64 {
    in_(Duration::from_secs(600))
}

/// Waits until none of them runs, and says when that was.
fn all_gone(pids: &[i32]) -> u64 {
    wait_for(&format!("the end of {pids:?}"), || pids.iter().all(|pid| !runs(*pid)).then(boot_ns))
}

#[test]
fn a_child_has_its_environment_and_its_output_is_marked() {
    let mut agent = Agent::new();
    let deadline = far();
    let script = r#"echo "$RENDEZ_SLOT"; cat "$RENDEZ_DEADLINE_FILE"; printf 'to err\377' >&2; exit 3"#;
    agent.start(7, script, deadline);
    assert_eq!(agent.hear_end(7), json!({"exited": {"code": 3}}));
    let out = format!("inbox/7 | inbox/7\ninbox/7 | {deadline}\n");
    wait_for("the output", || (agent.output("out") == out && agent.output("err").ends_with('\n')).then_some(()));
    assert_eq!(agent.output("err"), "inbox/7 | to err\u{fffd}\n");
}

#[test]
fn a_program_that_is_not_there_says_so() {
    let mut agent = Agent::new();
    agent.say(json!({"start": {"child": 1, "name": "a/0", "command": ["/no/such"], "deadline_ns": far()}}));
    agent.hear();
    assert_eq!(agent.hear_end(1), json!({"exited": {"code": 127}}));
    wait_for("the message", || agent.output("err").contains("a/0 | rendez: cannot run /no/such: ").then_some(()));
}

#[test]
fn a_child_whose_deadline_has_come_is_not_started() {
    let mut agent = Agent::new();
    let deadline_ns = in_(KILL_LEAD / 2);
    agent.say(json!({"start": {"child": 1, "name": "a/0", "command": ["true"], "deadline_ns": deadline_ns}}));
    let end = agent.hear_end(1);
    assert!(end["not_started"]["why"].as_str().unwrap().contains("deadline"), "{end}");
}

#[test]
fn a_child_that_is_told_to_stop_ends_and_the_others_go_on() {
    let mut agent = Agent::new();
    let stays = agent.start(1, "while :; do sleep 0.05; done", far());
    let goes = agent.start(2, "while :; do sleep 0.05; done", far());
    agent.say(json!({"stop": {"child": 2, "kill_at_ns": far()}}));
    assert_eq!(agent.hear_end(2), json!("terminated"));
    assert!(!runs(goes) && runs(stays));
}

#[test]
fn a_child_that_ignores_the_signal_is_killed_with_all_that_it_started() {
    let mut agent = Agent::new();
    let pids = agent.start_stubborn(1, far());
    let kill_at_ns = in_(Duration::from_millis(300));
    agent.say(json!({"stop": {"child": 1, "kill_at_ns": kill_at_ns}}));
    assert_eq!(agent.hear_end(1), json!({"killed": {"at_deadline": false}}));
    assert!(boot_ns() >= kill_at_ns);
    assert!(pids.iter().all(|pid| !runs(*pid)), "the end was told before all was gone");
}

#[test]
fn a_command_that_exits_leaves_nothing_behind() {
    let mut agent = Agent::new();
    let script = r#"setsid sh -c 'trap "" TERM; echo $$ >> "$PIDS"; while :; do sleep 0.05; done' &
        while ! [ -s "$PIDS" ]; do sleep 0.02; done"#;
    agent.start(1, script, far());
    let pids = pids_in(&agent.folder.path().join("pids-1"), 1);
    assert_eq!(agent.hear_end(1), json!({"exited": {"code": 0}}));
    assert!(!runs(pids[0]));
}

/// By its keeper, or by the guardian with its keeper: after a standstill of the machine either may be the first to run.
fn assert_ended_at_deadline(end: &Value) {
    assert!(*end == json!({"killed": {"at_deadline": true}}) || *end == json!("keeper_died"), "{end}");
}

#[test]
fn a_frozen_agent_changes_nothing_about_the_deadline() {
    let mut agent = Agent::new();
    let deadline = in_(Duration::from_secs(4));
    let pids = agent.start_stubborn(1, deadline);
    // From here on the agent says nothing.
    assert!(all_gone(&pids) < deadline);
    assert_ended_at_deadline(&agent.hear_end(1));
}

#[test]
fn a_child_is_told_to_stop_before_its_deadline_without_the_agent() {
    let mut agent = Agent::new();
    let deadline = in_(Duration::from_secs(3));
    agent.start(1, "trap 'echo told; exit 0' TERM; while :; do sleep 0.05; done", deadline);
    assert_eq!(agent.hear_end(1), json!({"exited": {"code": 0}}));
    assert!(boot_ns() < deadline);
    wait_for("the output", || (agent.output("out") == "inbox/1 | told\n").then_some(()));
}

#[test]
fn an_extended_deadline_is_kept_and_can_be_read() {
    let mut agent = Agent::new();
    let first = in_(Duration::from_secs(3));
    let script = r#"echo "$RENDEZ_DEADLINE_FILE" > "$PIDS.file"; while :; do sleep 0.05; done"#;
    let (one, two) = (agent.start(1, script, first), agent.start(2, script, first));
    let second = in_(Duration::from_secs(7));
    agent.say(json!({"extend": {"child": 1, "deadline_ns": second}}));
    let file = wait_for("the name of the deadline file", || {
        fs::read_to_string(agent.folder.path().join("pids-1.file")).ok().filter(|name| name.ends_with('\n'))
    });
    wait_for("the new deadline", || {
        let text = fs::read_to_string(file.trim()).unwrap();
        assert!(text == format!("{first}\n") || text == format!("{second}\n"), "{text:?}");
        (text == format!("{second}\n")).then_some(())
    });
    assert!(all_gone(&[two]) < first);
    wait_for("the first deadline", || (boot_ns() > first).then_some(()));
    assert!(runs(one), "it was ended at its old deadline");
    assert!(all_gone(&[one]) < second);
    wait_for("the removal of the deadline file", || (!fs::exists(file.trim()).unwrap()).then_some(()));
}

#[test]
fn when_the_agent_is_gone_everything_is_killed_at_once() {
    let mut agent = Agent::new();
    let mut pids = agent.start_stubborn(1, far());
    pids.extend(agent.start_stubborn(2, far()));
    agent.says.shutdown(std::net::Shutdown::Both).unwrap();
    all_gone(&pids);
    assert!(agent.guardian.wait().unwrap().success());
}

#[test]
fn when_the_guardian_is_killed_the_keepers_kill() {
    let mut agent = Agent::new();
    let pids = agent.start_stubborn(1, far());
    agent.guardian.kill().unwrap();
    all_gone(&pids);
}

#[test]
fn a_frozen_guardian_changes_nothing_about_the_deadline() {
    let mut agent = Agent::new();
    let deadline = in_(Duration::from_secs(4));
    let pids = agent.start_stubborn(1, deadline);
    signal(agent.guardian_pid(), Signal::STOP);
    assert!(all_gone(&pids) < deadline);
    signal(agent.guardian_pid(), Signal::CONT);
    assert_eq!(agent.hear_end(1), json!({"killed": {"at_deadline": true}}));
}

#[test]
fn a_keeper_that_is_killed_loses_its_child_and_no_other() {
    let mut agent = Agent::new();
    let stays = agent.start(1, "while :; do sleep 0.05; done", far());
    let pids = agent.start_stubborn(2, far());
    let keeper = parent_of(*pids.last().unwrap());
    assert_eq!(parent_of(keeper), agent.guardian_pid());
    signal(keeper, Signal::KILL);
    assert_eq!(agent.hear_end(2), json!("keeper_died"));
    assert!(pids.iter().all(|pid| !runs(*pid)));
    assert!(runs(stays));
}

#[test]
fn a_keeper_that_is_frozen_is_no_way_past_the_deadline() {
    let mut agent = Agent::new();
    let deadline = in_(Duration::from_secs(4));
    let pids = agent.start_stubborn(1, deadline);
    signal(parent_of(*pids.last().unwrap()), Signal::STOP);
    assert!(all_gone(&pids) < deadline);
    assert_eq!(agent.hear_end(1), json!("keeper_died"));
}

#[test]
fn all_frozen_together_and_woken_late_kill_first() {
    let mut agent = Agent::new();
    let deadline = in_(Duration::from_secs(3));
    let pids = agent.start_stubborn(1, deadline);
    let keeper = parent_of(*pids.last().unwrap());
    for pid in [agent.guardian_pid(), keeper].iter().chain(&pids) {
        signal(*pid, Signal::STOP);
    }
    wait_for("the deadline", || (boot_ns() > deadline).then_some(()));
    // The children stay frozen, and are killed all the same.
    signal(keeper, Signal::CONT);
    signal(agent.guardian_pid(), Signal::CONT);
    all_gone(&pids);
    assert_ended_at_deadline(&agent.hear_end(1));
}

#[test]
fn signals_for_the_agent_do_not_reach_guardian_and_keepers() {
    let mut agent = Agent::new();
    let child = agent.start(1, "while :; do sleep 0.05; done", far());
    for pid in [agent.guardian_pid(), parent_of(child)] {
        for which in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
            signal(pid, which);
        }
    }
    agent.say(json!({"stop": {"child": 1, "kill_at_ns": far()}}));
    assert_eq!(agent.hear_end(1), json!("terminated"));
    // Nor are they ignored by the command, which died of one of them.
    assert!(!runs(child));
}

#[test]
fn a_place_that_takes_no_output_holds_nothing_up() {
    // Nobody reads what the children say.
    let (full, _unread) = UnixStream::pair().unwrap();
    let mut agent = Agent::with_output(Stdio::from(OwnedFd::from(full)));
    let child =
        agent.start(1, "trap '' TERM; while :; do echo aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa; done", far());
    std::thread::sleep(Duration::from_secs(1));
    agent.say(json!({"stop": {"child": 1, "kill_at_ns": in_(Duration::from_millis(100))}}));
    assert_eq!(agent.hear_end(1), json!({"killed": {"at_deadline": false}}));
    assert!(!runs(child));
}

#[test]
fn the_command_dies_with_guardian_and_keeper_killed_at_once() {
    let mut agent = Agent::new();
    let child = agent.start(1, "trap '' TERM; while :; do sleep 0.05; done", far());
    let keeper = parent_of(child);
    // Frozen first, so that neither can do anything about the other's end.
    signal(agent.guardian_pid(), Signal::STOP);
    signal(keeper, Signal::STOP);
    agent.guardian.kill().unwrap();
    signal(keeper, Signal::KILL);
    all_gone(&[child]);
}
