//! Agents as real processes, whose children are `rendez-probe` and write down themselves when they run.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rendez_core::{FencingToken, Slot, Timestamp};
use rustix::process::Signal;

use crate::checker::{Checker, Report};
use crate::processes::{descendants_of, runs, signal};
use crate::records::{Record, RecordKind};
use crate::{clock, probe};

/// The cluster that all agents of a stage are in.
pub const CLUSTER: &str = "stage";
/// The workload that they run.
pub const WORKLOAD: &str = "inbox";
/// The election that candidates stand in.
pub const ELECTION: &str = "boss";
const RECORDS: &str = "records";

/// Agents of one cluster, with a folder for what they write.
#[derive(Debug)]
pub struct AgentStage {
    program: PathBuf,
    store: String,
    units: u32,
    folder: tempfile::TempDir,
}

impl AgentStage {
    /// A stage for the agents of a program, a store and a workload of so many units.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn new(program: impl Into<PathBuf>, store: impl Into<String>, units: u32) -> io::Result<Self> {
        Ok(Self { program: program.into(), store: store.into(), units, folder: tempfile::tempdir()? })
    }

    /// Where everything is written.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts an agent whose children are `rendez-probe`, with options for the agent and for the probe.
    ///
    /// # Errors
    /// A program is missing or does not start.
    pub fn start(&self, node: &str, options: &[&str], probe_options: &[&str]) -> io::Result<Agent> {
        self.start_at(&self.store, node, options, probe_options, &[])
    }

    /// The same with another address of the store, for example through a proxy, and more environment.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_at(
        &self,
        store: &str,
        node: &str,
        options: &[&str],
        probe_options: &[&str],
        environment: &[(&str, &str)],
    ) -> io::Result<Agent> {
        let probe = probe::path()?;
        let records = self.folder.path().join(format!("{{node}}.{RECORDS}"));
        let mut command = vec![text(&probe)?, text(&records)?];
        command.extend(probe_options);
        self.launch(store, node, options, &command, environment)
    }

    /// Starts a candidate of the election, `rendez elect`, that runs `rendez-probe` while it leads.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn stand(&self, node: &str, options: &[&str], probe_options: &[&str]) -> io::Result<Agent> {
        let (probe, records) = (probe::path()?, self.records_of(node));
        let mut command = Command::new(&self.program);
        command.arg("elect").args(self.of_node(&self.store, node)).args(options).arg(ELECTION).arg("--");
        self.spawn(node, command.arg(probe).arg(records).args(probe_options))
    }

    /// Starts an agent with another command and more environment.
    ///
    /// # Errors
    /// The program is missing or does not start.
    pub fn start_with(
        &self,
        node: &str,
        options: &[&str],
        command: &[&str],
        environment: &[(&str, &str)],
    ) -> io::Result<Agent> {
        self.launch(&self.store, node, options, command, environment)
    }

    fn launch(
        &self,
        store: &str,
        node: &str,
        options: &[&str],
        command: &[&str],
        environment: &[(&str, &str)],
    ) -> io::Result<Agent> {
        let mut agent = Command::new(&self.program);
        agent.envs(environment.iter().copied()).arg("agent").args(self.of_node(store, node));
        agent.args(["--workload", &format!("{WORKLOAD}={}", self.units)]).args(options).arg("--").args(command);
        self.spawn(node, &mut agent)
    }

    fn of_node<'a>(&self, store: &'a str, node: &'a str) -> [&'a str; 6] {
        ["--store", store, "--cluster", CLUSTER, "--node", node]
    }

    fn records_of(&self, node: &str) -> PathBuf {
        self.folder.path().join(format!("{node}.{RECORDS}"))
    }

    fn spawn(&self, node: &str, command: &mut Command) -> io::Result<Agent> {
        // Appended to: the same node may be started again.
        let append = |path: &Path| OpenOptions::new().create(true).append(true).open(path);
        let file = |kind: &str| self.folder.path().join(format!("{node}.{kind}"));
        let (out, err, records) = (file("out"), file("err"), self.records_of(node));
        let process = command.stdin(Stdio::null()).stdout(append(&out)?).stderr(append(&err)?).spawn()?;
        Ok(Agent { node: node.to_owned(), process, out, err, records: LiveRecords::new([records]) })
    }

    /// Leaves the folder and all that was written there behind, for a person to look at; returns where it is.
    pub fn keep(&mut self) -> &Path {
        self.folder.disable_cleanup(true);
        self.folder.path()
    }

    /// Judges all records that were written on this stage.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn judge(&self) -> io::Result<Report> {
        self.judge_by(Checker::new())
    }

    /// The same by another checker, for example one that allows restarts.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn judge_by(&self, mut checker: Checker) -> io::Result<Report> {
        for entry in fs::read_dir(self.folder.path())? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == RECORDS) {
                checker.read_file(&path)?;
            }
        }
        Ok(checker.finish())
    }
}

/// An agent that was started; killed when this is dropped, and then its guardian kills its children.
#[derive(Debug)]
pub struct Agent {
    node: String,
    process: Child,
    out: PathBuf,
    err: PathBuf,
    records: LiveRecords,
}

impl Agent {
    /// An agent that was started otherwise, with the files that it writes to; its children write no records.
    #[must_use]
    pub fn of(process: Child, out: PathBuf, err: PathBuf) -> Self {
        Self { node: String::new(), process, out, err, records: LiveRecords::new([]) }
    }

    /// Its node's name.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Its process; not the guardian's and not a keeper's.
    #[must_use]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.process.id()).unwrap_or(i32::MAX)
    }

    /// What its children have written to their standard output.
    #[must_use]
    pub fn out(&self) -> String {
        fs::read_to_string(&self.out).unwrap_or_default()
    }

    /// What it has written to its standard error.
    #[must_use]
    pub fn said(&self) -> String {
        fs::read_to_string(&self.err).unwrap_or_default()
    }

    /// The first records of the children that run now.
    ///
    /// # Errors
    /// The records cannot be read.
    pub fn running(&mut self) -> io::Result<Vec<Record>> {
        self.records.running()
    }

    /// Sends a signal to the agent alone.
    ///
    /// # Errors
    /// It is not there any more.
    pub fn signal(&self, which: Signal) -> io::Result<()> {
        signal(self.pid(), which)
    }

    /// How it ended, if it did.
    ///
    /// # Errors
    /// The operating system does not say.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.process.try_wait()
    }

    /// Kills everything at one moment: agent, guardian, keepers and children; as if the host were lost. Returns that
    /// moment.
    ///
    /// # Errors
    /// The processes cannot be found.
    pub fn lose_host(&mut self) -> io::Result<Timestamp> {
        // Frozen first, so that none of them acts on the end of another.
        let frozen = self.freeze_host()?;
        let at = clock::now();
        for pid in frozen {
            let _gone = signal(pid, Signal::KILL);
        }
        self.process.wait()?;
        Ok(at)
    }

    /// Freezes everything: agent, guardian, keepers and children; as if the host stood still. Returns their ids, the
    /// children's last. [`signal`] them to go on, in any order.
    ///
    /// # Errors
    /// The processes cannot be found.
    pub fn freeze_host(&self) -> io::Result<Vec<i32>> {
        let agent = self.pid();
        let mut frozen = Vec::new();
        loop {
            let found = [agent].into_iter().chain(descendants_of(agent)?);
            let fresh: Vec<i32> = found.filter(|pid| !frozen.contains(pid)).collect();
            if fresh.is_empty() {
                return Ok(frozen);
            }
            for pid in fresh {
                let _gone = signal(pid, Signal::STOP);
                frozen.push(pid);
            }
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            let _ = io::stderr().write_all(self.said().as_bytes());
        }
    }
}

/// Files of records that are still written to: which runs have begun and not ended.
#[derive(Debug)]
pub struct LiveRecords {
    files: Vec<(PathBuf, u64)>,
    begun: BTreeMap<(Slot, FencingToken, u32), Record>,
}

impl LiveRecords {
    /// Looks at these files, which need not be there yet.
    #[must_use]
    pub fn new(files: impl IntoIterator<Item = PathBuf>) -> Self {
        Self { files: files.into_iter().map(|file| (file, 0)).collect(), begun: BTreeMap::new() }
    }

    /// The first record of each run that has not ended and whose process is there.
    ///
    /// # Errors
    /// A file cannot be read, or holds something else.
    pub fn running(&mut self) -> io::Result<Vec<Record>> {
        self.read_on()?;
        self.begun.retain(|_, record| i32::try_from(record.pid).is_ok_and(runs));
        Ok(self.begun.values().cloned().collect())
    }

    fn read_on(&mut self) -> io::Result<()> {
        for (path, read) in &mut self.files {
            let mut file = match File::open(path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            file.seek(SeekFrom::Start(*read))?;
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
                *read += line.len() as u64;
                let record: Record = line.trim_end_matches('\n').parse().map_err(io::Error::other)?;
                let run = (record.slot.clone(), record.token, record.pid);
                match record.kind {
                    RecordKind::Begin => drop(self.begun.insert(run, record)),
                    RecordKind::Alive => {}
                    RecordKind::End => drop(self.begun.remove(&run)),
                }
            }
        }
        Ok(())
    }
}

fn text(path: &Path) -> io::Result<&str> {
    path.to_str().ok_or_else(|| io::Error::other(format!("{} is no text", path.display())))
}
