//! What the measurements with agents share: a server, agents that come and go, and waiting for what shall happen.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rendez_core::{Slot, Timestamp};
use rendez_testkit::agents::{Agent, AgentStage, CLUSTER};
use rendez_testkit::checker::{Report, Run};
use rendez_testkit::clock;
use rendez_testkit::measure::{Failure, Samples};
use rendez_testkit::records::Record;
use rendez_testkit::servers::{AnyServer, StoreKind};

use crate::baseline;
use crate::observer::Observer;

/// How many slots the agents share.
pub(crate) const SLOTS: usize = 12;
/// The session TTL of the agents that do not have the default, in the agent's words and as a time.
pub(crate) const TTL_OPTIONS: [&str; 2] = ["--session-ttl", "3s"];
pub(crate) const TTL: Duration = Duration::from_secs(3);
/// A fifth of it.
pub(crate) const INTERVAL: Duration = Duration::from_millis(600);

const PATIENCE: Duration = Duration::from_secs(90);
const LOOK: Duration = Duration::from_millis(10);

/// Agents on one server.
pub(crate) struct Stage {
    pub(crate) server: AnyServer,
    pub(crate) observer: Observer,
    pub(crate) agents: Vec<Agent>,
    folder: AgentStage,
    options: Vec<&'static str>,
    probe_options: Vec<&'static str>,
    started: usize,
}

impl Stage {
    /// So many agents, started at once, that run all slots, each of them some.
    pub(crate) async fn new(
        store: StoreKind,
        agents: usize,
        options: &[&'static str],
        probe_options: &[&'static str],
    ) -> Result<Self, Failure> {
        let server = AnyServer::start(store).await?;
        let units = u32::try_from(SLOTS)?;
        let folder = AgentStage::new(program()?, server.url(), units)?;
        let observer = Observer::new(&server.url(), CLUSTER).await?;
        let options = [options, &["--drain-timeout", "20s"]].concat();
        // Seldom, so that the probes leave the processors to what is measured.
        let probe_options = [&["--alive-ms", "100"], probe_options].concat();
        let mut stage = Self { server, observer, agents: Vec::new(), folder, options, probe_options, started: 0 };
        for _ in 0..agents {
            stage.start_agent()?;
        }
        stage.wait("all agents to run some of all slots", |all| all.iter().all(|of| !of.is_empty())).await?;
        Ok(stage)
    }

    /// Starts one more agent and returns when.
    pub(crate) fn start_agent(&mut self) -> Result<Timestamp, Failure> {
        let node = format!("node-{}", self.started);
        self.started += 1;
        let at = clock::now();
        self.agents.push(self.folder.start(&node, &self.options, &self.probe_options)?);
        Ok(at)
    }

    /// Starts one more agent, and returns when all know it.
    pub(crate) async fn replace(&mut self) -> Result<(), Failure> {
        self.start_agent()?;
        let node = self.agents.last().map(Agent::node).unwrap_or_default().to_owned();
        let begin = Instant::now();
        while self.observer.session(&node).await.is_err() {
            self.still(begin, &format!("the session of {node}"))?;
            tokio::time::sleep(LOOK).await;
        }
        tokio::time::sleep(2 * INTERVAL).await;
        Ok(())
    }

    /// Waits until all slots run, and how they are spread is right: the first records of the runs of each agent.
    pub(crate) async fn wait(
        &mut self,
        what: &str,
        mut right: impl FnMut(&[Vec<Record>]) -> bool,
    ) -> Result<(), Failure> {
        let begin = Instant::now();
        loop {
            let running = self.running()?;
            let slots: BTreeSet<&Slot> = running.iter().flatten().map(|record| &record.slot).collect();
            if slots.len() == SLOTS && right(&running) {
                return Ok(());
            }
            let counts: Vec<usize> = running.iter().map(Vec::len).collect();
            self.still(begin, &format!("{what}; they run {counts:?}"))?;
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What the agents run.
    pub(crate) fn running(&mut self) -> Result<Vec<Vec<Record>>, Failure> {
        Ok(self.agents.iter_mut().map(Agent::running).collect::<Result<_, _>>()?)
    }

    /// Takes the agent out that runs most, with what it runs.
    pub(crate) fn take_fullest(&mut self) -> Result<(Agent, Vec<Record>), Failure> {
        let running = self.running()?;
        let fullest = (0..running.len()).max_by_key(|at| running[*at].len()).ok_or("there is no agent")?;
        let runs = running.into_iter().nth(fullest).unwrap_or_default();
        Ok((self.agents.remove(fullest), runs))
    }

    /// All that was written down, judged.
    pub(crate) fn judge(&self) -> Result<Report, Failure> {
        Ok(self.folder.judge()?)
    }

    fn still(&self, begin: Instant, what: &str) -> Result<(), Failure> {
        if begin.elapsed() < PATIENCE {
            return Ok(());
        }
        let said: String = self.agents.iter().map(|agent| format!("\n{}:\n{}", agent.node(), agent.said())).collect();
        Err(format!("waited in vain for {what}{said}").into())
    }
}

/// The run of the same slot that began next after the one with this first record.
pub(crate) fn next_run<'a>(report: &'a Report, first: &Record) -> Result<&'a Run, Failure> {
    let of_slot = report.runs.get(&first.slot).map(Vec::as_slice).unwrap_or_default();
    let at = of_slot.iter().position(|run| run.token == first.token && run.pid == first.pid);
    Ok(at.and_then(|at| of_slot.get(at + 1)).ok_or_else(|| format!("nothing ran after {first}"))?)
}

/// The same run.
pub(crate) fn this_run<'a>(report: &'a Report, first: &Record) -> Result<&'a Run, Failure> {
    let mut of_slot = report.runs.get(&first.slot).into_iter().flatten();
    let run = of_slot.find(|run| run.token == first.token && run.pid == first.pid);
    Ok(run.ok_or_else(|| format!("{first} stands in no file"))?)
}

/// Times beyond the bare start of a child.
pub(crate) fn beyond_child_start(times: &[Duration]) -> Result<Samples, Failure> {
    let start = baseline::child_start()?;
    Ok(Samples::times(times.iter().map(|time| time.saturating_sub(start))))
}

/// The samples, and what the records say against the product.
pub(crate) fn judged(samples: Samples, reports: &[Report]) -> Samples {
    let runs: usize = reports.iter().map(|report| report.summary.runs).sum();
    let samples = samples.note(format!("{runs} runs were written down and judged"));
    reports.iter().filter(|report| !report.is_good()).fold(samples, |samples, bad| samples.broken(bad.to_string()))
}

/// The program `rendez`, which stands beside this one.
pub(crate) fn program() -> Result<PathBuf, Failure> {
    let path = std::env::current_exe()?.with_file_name("rendez");
    if path.is_file() {
        return Ok(path);
    }
    Err(format!("{} is missing: run this by `cargo xtask measure`", path.display()).into())
}
