//! Agents on one store, whose children write down when they run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rendez_testkit::checker::{Checker, Report};
use rendez_testkit::probe;
use rustix::process::Signal;
use serde_json::Value;

use crate::processes::{runs, signal};

/// Longer than any recovery takes, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);
/// Records are read as a whole at each look.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// The session TTL of all agents unless they are given another.
pub(crate) const TTL: Duration = Duration::from_secs(3);

/// Who runs what: the node and the process of each slot.
pub(crate) type Running = BTreeMap<String, (String, i32)>;

/// A cluster in a store, with a folder for what its agents leave.
pub(crate) struct Stage {
    url: String,
    folder: tempfile::TempDir,
}

impl Stage {
    pub(crate) fn new(url: &str) -> Self {
        Self { url: url.to_owned(), folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// An agent that is not started yet; it runs four slots.
    pub(crate) fn agent(&self, node: &str) -> Launch<'_> {
        Launch {
            stage: self,
            store: self.url.clone(),
            node: node.to_owned(),
            name: node.to_owned(),
            workloads: vec!["inbox=4".to_owned()],
            words: vec!["--session-ttl".to_owned(), format!("{}ms", TTL.as_millis())],
            variables: Vec::new(),
            probe: vec!["--alive-ms".to_owned(), "50".to_owned()],
            script: None,
        }
    }

    /// Where the children of an agent write.
    pub(crate) fn records(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.records"))
    }

    /// What runs now, whoever started it.
    pub(crate) fn running(&self) -> Running {
        let mut running = Running::new();
        for path in self.files() {
            for (slot, node, pid) in begun(&path) {
                if runs(pid) {
                    running.insert(slot, (node, pid));
                }
            }
        }
        running
    }

    /// Waits for a state of what runs.
    pub(crate) fn wait(&self, what: &str, is: impl Fn(&Running) -> bool) -> Running {
        let begin = Instant::now();
        loop {
            let running = self.running();
            if is(&running) {
                return running;
            }
            assert!(begin.elapsed() < PATIENCE, "waited in vain for {what}; {running:?} run\n{}", self.said());
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    /// Waits until so many slots run.
    pub(crate) fn wait_for_slots(&self, count: usize) -> Running {
        self.wait(&format!("{count} slots"), |running| running.len() == count)
    }

    /// Waits until each of these nodes runs so many slots, and no other any.
    pub(crate) fn wait_for_shares(&self, shares: &[(&str, usize)]) -> Running {
        let wanted: BTreeMap<String, usize> = shares.iter().map(|(node, count)| ((*node).to_owned(), *count)).collect();
        self.wait(&format!("{shares:?}"), |running| shares_of(running) == wanted)
    }

    /// Waits for anything else.
    pub(crate) fn wait_that(&self, what: &str, is: impl Fn() -> bool) {
        self.wait(what, |_| is());
    }

    /// What the records prove so far.
    pub(crate) fn report(&self) -> Report {
        let mut checker = Checker::new().allow_restarts();
        for path in self.files() {
            checker.read_file(&path).unwrap();
        }
        checker.finish()
    }

    /// The state as an operator sees it.
    pub(crate) fn status(&self) -> Value {
        let output = Command::new(env!("CARGO_BIN_EXE_rendez"))
            .args(["status", "--store", &self.url, "--cluster", "c", "--json"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// All that the state says about each slot that nobody holds.
    pub(crate) fn orphans(&self) -> Vec<String> {
        let status = self.status();
        let slots = status["slots"].as_array().unwrap().iter();
        slots.filter(|slot| slot["holder"].is_null()).map(Value::to_string).collect()
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "records")).collect()
    }

    fn said(&self) -> String {
        let entries = fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().path());
        let logs = entries.filter(|path| path.extension().is_some_and(|extension| extension == "err"));
        logs.map(|path| format!("{}:\n{}", path.display(), fs::read_to_string(&path).unwrap_or_default())).collect()
    }
}

/// How many slots each node runs.
pub(crate) fn shares_of(running: &Running) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for (node, _) in running.values() {
        *shares.entry(node.clone()).or_default() += 1;
    }
    shares
}

/// An agent that is not started yet.
#[must_use]
pub(crate) struct Launch<'a> {
    stage: &'a Stage,
    store: String,
    node: String,
    name: String,
    workloads: Vec<String>,
    words: Vec<String>,
    variables: Vec<(String, String)>,
    probe: Vec<String>,
    script: Option<String>,
}

impl Launch<'_> {
    /// Another name for the files than the node's.
    pub(crate) fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Another way to the store.
    pub(crate) fn store(mut self, url: &str) -> Self {
        url.clone_into(&mut self.store);
        self
    }

    /// The workloads, in place of the four slots.
    pub(crate) fn workloads(mut self, workloads: &[&str]) -> Self {
        self.workloads = workloads.iter().map(|&workload| workload.to_owned()).collect();
        self
    }

    /// Another session TTL.
    pub(crate) fn ttl(mut self, ttl: &str) -> Self {
        ttl.clone_into(&mut self.words[1]);
        self
    }

    /// Another option of the agent.
    pub(crate) fn option(mut self, option: &str, value: &str) -> Self {
        self.words.extend([option.to_owned(), value.to_owned()]);
        self
    }

    /// A key of the configuration.
    pub(crate) fn set(mut self, key: &str, value: &str) -> Self {
        self.variables.push((format!("RENDEZ_CONFIG_{}", key.to_uppercase()), value.to_owned()));
        self
    }

    /// Options of the children.
    pub(crate) fn probe(mut self, options: &[&str]) -> Self {
        self.probe.extend(options.iter().map(|&option| option.to_owned()));
        self
    }

    /// A shell script as the command, with placeholders; `"$@"` is the usual command.
    pub(crate) fn script(mut self, script: &str) -> Self {
        self.script = Some(script.to_owned());
        self
    }

    pub(crate) fn start(self) -> Agent {
        let err = self.stage.folder.path().join(format!("{}.err", self.name));
        let mut command = Command::new(env!("CARGO_BIN_EXE_rendez"));
        command.args(["agent", "--store", &self.store, "--cluster", "c", "--node", &self.node]);
        command.args(&self.words).env("RENDEZ_CONFIG_CONNECT_TIMEOUT", "20s").envs(self.variables);
        for workload in &self.workloads {
            command.args(["--workload", workload]);
        }
        command.arg("--");
        if let Some(script) = &self.script {
            command.args(["sh", "-c", script, "sh"]);
        }
        command.arg(probe::path().unwrap()).arg(self.stage.records(&self.name)).args(&self.probe);
        let process =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&err).unwrap()).spawn().unwrap();
        Agent { process, err }
    }
}

/// A running agent; killed when dropped, and its children with it.
pub(crate) struct Agent {
    process: Child,
    err: PathBuf,
}

impl Agent {
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.process.id()).unwrap()
    }

    /// What stands on its standard error.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.err).unwrap_or_default()
    }

    pub(crate) fn says(&self, words: &str) -> bool {
        self.said().contains(words)
    }

    pub(crate) fn signal(&self, which: Signal) {
        signal(self.pid(), which);
    }

    /// Whether it goes on.
    pub(crate) fn goes_on(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }

    /// Waits for its end.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status.code();
            }
            assert!(begin.elapsed() < PATIENCE, "the agent does not end; it says: {}", self.said());
            std::thread::sleep(LOOK_INTERVAL);
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            let _ = std::io::stderr().write_all(self.said().as_bytes());
        }
    }
}

/// Slot, node and process of each `begin SLOT TOKEN NODE PID TIME` that is not followed by its `end`.
fn begun(records: &Path) -> BTreeSet<(String, String, i32)> {
    let text = fs::read_to_string(records).unwrap_or_default();
    let mut begun = BTreeSet::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        if let [kind, slot, _, node, pid, _] = words[..] {
            let run = (slot.to_owned(), node.to_owned(), pid.parse().unwrap());
            match kind {
                "begin" => begun.insert(run),
                "end" => begun.remove(&run),
                _ => false,
            };
        }
    }
    begun
}
