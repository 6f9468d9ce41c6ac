//! The nodes of one run: agents with their children, on one server, each behind a proxy where the network fails.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rendez_testkit::agents::{Agent, AgentStage};
use rendez_testkit::checker::{Checker, Report};
use rendez_testkit::measure::Failure;
use rendez_testkit::proxy::Proxy;
use rustix::process::Signal;

use crate::judge::{Broken, Promise};
use crate::store::Server;

/// How many slots there are.
pub(crate) const SLOTS: usize = 12;
/// How many nodes there are when the fault comes.
pub(crate) const NODES: usize = 3;
/// The session TTL of all nodes.
pub(crate) const TTL: Duration = Duration::from_secs(4);
/// Within this time after a fault, everything runs and is spread again. The longest that was configured is about 15 s:
/// a session TTL, a quiet time after a loss, and two heartbeats; the rest is for a machine that is busy with other runs.
pub(crate) const RECOVERY_BOUND: Duration = Duration::from_secs(90);
/// Within this time a node ends that was told to: its drain timeout, and what the agent may take beyond it.
const END_BOUND: Duration = Duration::from_secs(45);
const LOOK: Duration = Duration::from_millis(20);

/// What all agents are given: a TTL that makes runs short, with the longest pause and the slowest server that fit into it.
const OPTIONS: &[&str] = &["--session-ttl", "4s", "--drain-timeout", "10s"];
const SETTINGS: &[(&str, &str)] = &[
    ("OPERATION_TIMEOUT", "400ms"),
    ("STOP_BUDGET", "600ms"),
    ("PAUSE_ALLOWANCE", "800ms"),
    // A node that starts while its server is away waits for it.
    ("CONNECT_TIMEOUT", "80s"),
    // So that slots are spread anew within the time that a run has.
    ("COOLDOWN", "1s"),
    ("RUNTIME_MIN", "1s"),
    ("SETTLING", "1s"),
];
const PROBE_OPTIONS: &[&str] = &["--alive-ms", "100", "--max-life-ms", "600000"];

/// The agents of one run.
pub(crate) struct Nodes {
    /// Those that take part, or are down and will be started again.
    pub(crate) nodes: Vec<Node>,
    /// Those that were told to end.
    leaving: Vec<Node>,
    stage: AgentStage,
    environment: Vec<(String, String)>,
    probe_options: Vec<String>,
    started: usize,
}

/// One of them.
pub(crate) struct Node {
    pub(crate) name: String,
    /// What stands between it and the server.
    pub(crate) proxy: Option<Proxy>,
    /// None while it is down.
    pub(crate) agent: Option<Agent>,
    url: String,
}

impl Nodes {
    /// None yet, for this server and sink.
    pub(crate) fn new(server: &dyn Server, sink: &str, probe: &[String], hold: bool) -> Result<Self, Failure> {
        let stage = AgentStage::new(program()?, server.url(0), u32::try_from(SLOTS)?)?;
        let key = |key: &str| format!("RENDEZ_CONFIG_{key}");
        let mut environment: Vec<(String, String)> =
            SETTINGS.iter().map(|(name, value)| (key(name), (*value).to_owned())).collect();
        let options = server.options();
        if !options.is_empty() {
            let pairs: Vec<String> = options.iter().map(|(name, value)| format!("{name} = \"{value}\"")).collect();
            environment.push((key("STORE_OPTIONS"), format!("{{ {} }}", pairs.join(", "))));
        }
        if hold {
            environment.push((key("COLD_START_HOLD"), format!("{}s", TTL.as_secs() + 1)));
        }
        let mut probe_options: Vec<String> = PROBE_OPTIONS.iter().map(|&option| option.to_owned()).collect();
        probe_options.extend(["--sink".to_owned(), sink.to_owned()]);
        probe_options.extend(probe.iter().cloned());
        Ok(Self { nodes: Vec::new(), leaving: Vec::new(), stage, environment, probe_options, started: 0 })
    }

    /// Adds a node, behind a proxy of its own if the server has an address and the network shall fail.
    pub(crate) async fn join(&mut self, server: &dyn Server, proxied: bool) -> Result<(), Failure> {
        let (proxy, url) = match server.addr() {
            Some(addr) if proxied => {
                let proxy = Proxy::start(addr).await?;
                let url = server.url_through(self.started, proxy.addr())?;
                (Some(proxy), url)
            }
            Some(_) | None => (None, server.url(self.started)),
        };
        let name = format!("node-{}", self.started);
        self.started += 1;
        self.nodes.push(Node { name, proxy, agent: None, url });
        self.start(self.nodes.len() - 1)
    }

    /// Starts a node that is down.
    pub(crate) fn start(&mut self, at: usize) -> Result<(), Failure> {
        let probe_options: Vec<&str> = self.probe_options.iter().map(String::as_str).collect();
        let environment: Vec<(&str, &str)> =
            self.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let node = &mut self.nodes[at];
        let agent = self.stage.start_at(&node.url, &node.name, OPTIONS, &probe_options, &environment)?;
        node.agent = Some(agent);
        Ok(())
    }

    /// Tells a node to end.
    pub(crate) fn leave(&mut self, at: usize) {
        let node = self.nodes.remove(at);
        if let Some(agent) = &node.agent {
            // An error means that it has ended already; how, is looked at later.
            let _gone = agent.signal(Signal::TERM);
        }
        self.leaving.push(node);
    }

    /// Loses a node with all its processes, for good.
    pub(crate) fn lose(&mut self, at: usize) -> Result<(), Failure> {
        if let Some(agent) = &mut self.nodes.remove(at).agent {
            agent.lose_host()?;
        }
        Ok(())
    }

    /// How many slots each node runs that takes part.
    pub(crate) fn shares(&mut self) -> Result<BTreeMap<String, usize>, Failure> {
        let mut shares = BTreeMap::new();
        for node in &mut self.nodes {
            let running = match &mut node.agent {
                Some(agent) => agent.running()?.len(),
                None => 0,
            };
            shares.insert(node.name.clone(), running);
        }
        Ok(shares)
    }

    /// Waits until every slot runs and every node has its even share; returns when the first of the two was so.
    /// `Err` in the result: it was not within the bound, and what was.
    pub(crate) async fn wait_spread(&mut self, bound: Duration) -> Result<Result<Duration, String>, Failure> {
        let begin = Instant::now();
        let mut all_run = None;
        loop {
            let shares = self.shares()?;
            if shares.values().sum::<usize>() == SLOTS {
                let all_run = *all_run.get_or_insert_with(|| begin.elapsed());
                let even = SLOTS / self.nodes.len()..=SLOTS.div_ceil(self.nodes.len());
                if shares.values().all(|share| even.contains(share)) {
                    return Ok(Ok(all_run));
                }
            }
            if begin.elapsed() > bound {
                return Ok(Err(format!("after {bound:?} {shares:?} run")));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Who has ended without being told to, or complains of itself.
    pub(crate) fn restarts_needed(&mut self) -> Result<Vec<Broken>, Failure> {
        let mut broken = Vec::new();
        for node in self.nodes.iter_mut().chain(&mut self.leaving) {
            let Some(agent) = &mut node.agent else { continue };
            if agent.said().contains("panicked at") {
                broken.push(Broken::new(Promise::NoRestart, format!("{} panicked", node.name)));
            }
        }
        for node in &mut self.nodes {
            let Some(agent) = &mut node.agent else { continue };
            if let Some(status) = agent.ended()? {
                let said = agent.said();
                let last = said.lines().last().unwrap_or_default();
                broken.push(Broken::new(Promise::NoRestart, format!("{} ended: {status}; {last}", node.name)));
            }
        }
        Ok(broken)
    }

    /// Waits for the end of those that were told to end; one that had no store may say that it could not hand over.
    pub(crate) async fn wait_left(&mut self, may_fail: bool) -> Result<Vec<Broken>, Failure> {
        let mut broken = Vec::new();
        let begin = Instant::now();
        for node in &mut self.leaving {
            let Some(agent) = &mut node.agent else { continue };
            let status = loop {
                match agent.ended()? {
                    Some(status) => break Some(status),
                    None if begin.elapsed() > END_BOUND => break None,
                    None => tokio::time::sleep(LOOK).await,
                }
            };
            let good = match status.map(|status| status.code()) {
                Some(Some(0)) => true,
                Some(Some(1)) => may_fail,
                Some(_) | None => false,
            };
            if !good {
                let said = agent.said();
                let last = said.lines().last().unwrap_or_default();
                broken.push(Broken::new(Promise::Ends, format!("{} was told to end: {status:?}; {last}", node.name)));
            }
        }
        self.leaving.clear();
        Ok(broken)
    }

    /// Tells all to end, and waits for it.
    pub(crate) async fn end(&mut self) -> Result<Vec<Broken>, Failure> {
        while !self.nodes.is_empty() {
            self.leave(0);
        }
        self.wait_left(false).await
    }

    /// What was written down. A child that a supervisor restarts keeps its token.
    pub(crate) fn judge(&self) -> Result<Report, Failure> {
        Ok(self.stage.judge_by(Checker::new().allow_restarts())?)
    }

    /// Keeps what was written; returns where.
    pub(crate) fn keep(&mut self) -> PathBuf {
        self.stage.keep().to_owned()
    }
}

/// The program `rendez`, which stands beside this one.
fn program() -> Result<PathBuf, Failure> {
    let path = std::env::current_exe()?.with_file_name("rendez");
    if path.is_file() {
        return Ok(path);
    }
    Err(format!("{} is missing: run this by `cargo xtask faults`", path.display()).into())
}
