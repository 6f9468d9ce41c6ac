//! One run of a cell: a healthy beginning, the fault under load, its end, and the judgement.

use std::fmt;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rendez_testkit::clock;
use rendez_testkit::measure::Failure;
use rendez_testkit::processes::signal;
use rendez_testkit::proxy::{Direction, Proxy};
use rendez_testkit::sink::{SinkServer, TokenSink};
use rustix::process::Signal;

use crate::fault::{Fault, NetworkFault, NodeFault, ServerFault};
use crate::judge::{self, Broken, Promise, Silence};
use crate::nodes::{NODES, Nodes, RECOVERY_BOUND, TTL};
use crate::store::{Server, Store, Struck, between};

/// How long everything goes on after it was well again, so that what comes late is seen too.
const AFTERWARDS: Duration = Duration::from_secs(2);
/// From one single byte to the next.
const TRICKLE: Duration = Duration::from_millis(1);

/// What happens to the nodes meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Churn {
    Join,
    Leave,
    Die,
}

/// How children end when they are told to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Children {
    AtOnce,
    After(Duration),
    Never,
}

/// What the dice have chosen.
#[derive(Debug, Clone)]
struct Plan {
    /// The node that the fault strikes; for the network perhaps all.
    victim: usize,
    all: bool,
    churn: Churn,
    /// Whether that happens before the fault or during it.
    churn_first: bool,
    children: Children,
    moment: Duration,
    churn_after: Duration,
    /// How long the fault lasts, one time after the other, and how long it is good between them.
    lasts: Vec<Duration>,
    between: Duration,
    delays: [Duration; 2],
}

/// What one run has shown.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(crate) plan: String,
    pub(crate) broken: Vec<Broken>,
    /// How many of the slots had to be run by another child.
    pub(crate) interrupted: usize,
    pub(crate) longest_gap: Duration,
    pub(crate) longest_overlap: Duration,
    /// From the fault's end until everything ran.
    pub(crate) recovered: Duration,
    /// Writes that the sink has refused.
    pub(crate) refused: usize,
}

impl Plan {
    fn choose(fault: Fault, newcomers: bool, dice: &mut Rng) -> Self {
        let churn = match dice.u8(..3) {
            0 if newcomers => Churn::Join,
            0 | 1 => Churn::Leave,
            _ => Churn::Die,
        };
        let slow = fault == Fault::Node(NodeFault::SlowStop);
        let children = match dice.u8(..3) {
            0 if !slow => Children::AtOnce,
            0 | 1 => Children::After(between(dice, 200, if slow { 3000 } else { 500 })),
            _ => Children::Never,
        };
        let times = if fault.comes_again() && dice.u8(..3) == 0 { dice.usize(2..=3) } else { 1 };
        Self {
            victim: dice.usize(..NODES),
            all: dice.bool(),
            churn,
            churn_first: dice.bool(),
            children,
            moment: between(dice, 0, 1500),
            churn_after: between(dice, 0, 1500),
            lasts: (0..times).map(|_| lasting(fault, dice)).collect(),
            between: between(dice, 200, 2500),
            delays: [between(dice, 20, 120), between(dice, 20, 120)],
        }
    }
}

/// How long a fault lasts.
fn lasting(fault: Fault, dice: &mut Rng) -> Duration {
    match fault {
        Fault::Node(NodeFault::AgentFrozen | NodeFault::HostFrozen) => TTL + between(dice, 500, 4000),
        Fault::Node(NodeFault::AgentKilled | NodeFault::HostLost | NodeFault::SlowStop) => between(dice, 300, 3000),
        // Longer than the quiet time after a failover, or shorter.
        Fault::Server(ServerFault::OldPrimary) => between(dice, 2000, 16_000),
        // Shorter than a session, or longer.
        Fault::Network(_) | Fault::Server(_) if dice.bool() => between(dice, 500, 2500),
        Fault::Network(_) | Fault::Server(_) => TTL + between(dice, 500, 4000),
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let churn = match self.churn {
            Churn::Join => "one joins",
            Churn::Leave => "one leaves",
            Churn::Die => "one dies",
        };
        let when = if self.churn_first { "before" } else { "after its beginning" };
        let children = match self.children {
            Children::AtOnce => "at once".to_owned(),
            Children::After(time) => format!("after {time:?}"),
            Children::Never => "when killed".to_owned(),
        };
        let Self { victim, lasts, churn_after, .. } = self;
        write!(f, "node-{victim}, lasts {lasts:?}, {churn} {churn_after:?} {when}, children end {children}")
    }
}

/// Runs a cell once.
pub(crate) async fn run(store: &dyn Store, fault: Fault, seed: u64) -> Result<Outcome, Failure> {
    let mut dice = dice(store.name(), fault.as_str(), seed);
    let plan = Plan::choose(fault, !store.refuses_newcomers(fault), &mut dice);
    let server = store.start(fault.of_server(), &mut dice).await?;
    let sink = TokenSink::new();
    let sink_server = SinkServer::tcp(sink.clone()).await?;
    let sink_addr = sink_server.addr().ok_or("the sink has no address")?.to_string();
    let probe = match plan.children {
        Children::AtOnce => Vec::new(),
        Children::After(time) => vec!["--stop-ms".to_owned(), time.as_millis().to_string()],
        Children::Never => vec!["--ignore-term".to_owned()],
    };
    let hold = fault == Fault::Server(ServerFault::EmptiedHeld);
    let nodes = Nodes::new(&*server, &sink_addr, &probe, hold)?;
    let mut run = Run { fault, plan, dice, server, nodes, struck: None };
    match run.go(&sink).await {
        Ok(mut outcome) => {
            if outcome.broken.iter().any(|broken| store.expectation(fault).is_surprised_by(broken.promise)) {
                outcome.plan = format!("{}; kept in {}", outcome.plan, run.nodes.keep().display());
            }
            Ok(outcome)
        }
        Err(failure) => Err(format!("{failure} ({}; kept in {})", run.plan, run.nodes.keep().display()).into()),
    }
}

/// A run under way.
struct Run {
    fault: Fault,
    plan: Plan,
    dice: Rng,
    server: Box<dyn Server>,
    nodes: Nodes,
    struck: Option<Blow>,
}

/// What the fault's beginning leaves to its end.
enum Blow {
    /// A node is down and shall be started again.
    Down(String),
    /// These processes stand still.
    Frozen(Vec<i32>),
    /// The network, or the server, is bad.
    Elsewhere,
}

impl Run {
    async fn go(&mut self, sink: &TokenSink) -> Result<Outcome, Failure> {
        let proxied = matches!(self.fault, Fault::Network(_));
        for _ in 0..NODES {
            self.nodes.join(&*self.server, proxied).await?;
        }
        if let Err(seen) = self.nodes.wait_spread(RECOVERY_BOUND).await? {
            return Err(format!("no healthy beginning: {seen}").into());
        }
        tokio::time::sleep(self.plan.moment).await;

        if self.plan.churn_first {
            self.churn(proxied).await?;
            tokio::time::sleep(self.plan.churn_after).await;
        }
        let before = clock::now();
        let mut silences = Vec::new();
        for (time, lasts) in self.plan.lasts.clone().into_iter().enumerate() {
            if time > 0 {
                tokio::time::sleep(self.plan.between).await;
            }
            let silent = self.strike().await?;
            let (struck, end) = (clock::now(), Instant::now() + lasts);
            if time == 0 && !self.plan.churn_first {
                tokio::time::sleep(self.plan.churn_after.min(lasts)).await;
                self.churn(proxied).await?;
            }
            self.go_on_until(end).await?;
            let healing = clock::now();
            self.heal().await?;
            silences.extend(silent.map(|nodes| Silence { nodes, from: struck, to: healing }));
        }

        let mut broken = Vec::new();
        let begin = Instant::now();
        let recovered = match self.nodes.wait_spread(RECOVERY_BOUND).await? {
            Ok(all_run) => all_run,
            Err(seen) => {
                broken.push(Broken::new(Promise::Recovers, seen));
                begin.elapsed()
            }
        };
        let well = clock::now();
        tokio::time::sleep(AFTERWARDS).await;
        broken.extend(self.nodes.wait_left(true).await?);
        broken.extend(self.nodes.restarts_needed()?);
        broken.extend(self.nodes.end().await?);

        let report = self.nodes.judge()?;
        if let Some(mistake) = report.mistakes.first() {
            return Err(format!("the records are wrong: {mistake:?}").into());
        }
        broken.extend(judge::broken(&report, &silences, TTL, &sink.log()));
        Ok(Outcome {
            plan: self.plan.to_string(),
            broken,
            interrupted: judge::interrupted(&report, before, well),
            longest_gap: judge::longest_gap(&report, before),
            longest_overlap: judge::longest_overlap(&report),
            recovered,
            refused: sink.refused().len(),
        })
    }

    /// A node joins, or one that the fault does not strike leaves or is lost for good.
    async fn churn(&mut self, proxied: bool) -> Result<(), Failure> {
        let victim = self.victim();
        let others: Vec<usize> = (0..self.nodes.nodes.len()).filter(|at| Some(*at) != victim).collect();
        match (self.plan.churn, self.dice.choice(others)) {
            (Churn::Join, _) => self.nodes.join(&*self.server, proxied).await?,
            (Churn::Leave, Some(at)) => self.nodes.leave(at),
            (Churn::Die, Some(at)) => self.nodes.lose(at)?,
            (Churn::Leave | Churn::Die, None) => {}
        }
        Ok(())
    }

    fn victim(&self) -> Option<usize> {
        let name = format!("node-{}", self.plan.victim);
        self.nodes.nodes.iter().position(|node| node.name == name)
    }

    /// Lets the fault begin. Returns the nodes that can extend no session from now on until its end, if there are any.
    async fn strike(&mut self) -> Result<Option<Vec<String>>, Failure> {
        let victim = self.victim().ok_or("the node to strike has left")?;
        let name = self.nodes.nodes[victim].name.clone();
        match self.fault {
            Fault::Node(fault) => {
                let silent = fault == NodeFault::AgentFrozen;
                self.struck = Some(self.strike_node(fault, victim)?);
                Ok(silent.then(|| vec![name]))
            }
            Fault::Network(fault) => {
                self.struck = Some(Blow::Elsewhere);
                for proxy in self.proxies() {
                    self.strike_network(fault, proxy).await;
                }
                let silent = match fault {
                    NetworkFault::Cut
                    | NetworkFault::Silent
                    | NetworkFault::RequestsLost
                    | NetworkFault::RepliesLost => true,
                    NetworkFault::ReplyLost
                    | NetworkFault::Latency
                    | NetworkFault::Trickle
                    | NetworkFault::HalfOpen
                    | NetworkFault::Reset => false,
                };
                Ok(silent.then(|| vec![name]))
            }
            Fault::Server(fault) => {
                self.struck = Some(Blow::Elsewhere);
                let all = || self.nodes.nodes.iter().map(|node| node.name.clone()).collect();
                Ok((self.server.strike(fault).await? == Struck::Silent).then(all))
            }
        }
    }

    fn strike_node(&mut self, fault: NodeFault, victim: usize) -> Result<Blow, Failure> {
        let node = &mut self.nodes.nodes[victim];
        let agent = node.agent.as_mut().ok_or("the node to strike is down")?;
        let name = node.name.clone();
        Ok(match fault {
            NodeFault::AgentKilled => {
                agent.signal(Signal::KILL)?;
                node.agent = None;
                Blow::Down(name)
            }
            NodeFault::HostLost => {
                agent.lose_host()?;
                node.agent = None;
                Blow::Down(name)
            }
            NodeFault::AgentFrozen => {
                agent.signal(Signal::STOP)?;
                Blow::Frozen(vec![agent.pid()])
            }
            NodeFault::HostFrozen => Blow::Frozen(agent.freeze_host()?),
            NodeFault::SlowStop => {
                agent.signal(Signal::TERM)?;
                Blow::Down(name)
            }
        })
    }

    async fn strike_network(&self, fault: NetworkFault, proxy: &Proxy) {
        match fault {
            NetworkFault::Cut => proxy.cut().await,
            NetworkFault::Silent => proxy.freeze(),
            NetworkFault::RequestsLost => proxy.drop_requests(),
            NetworkFault::RepliesLost => proxy.drop_replies(),
            NetworkFault::ReplyLost => proxy.lose_replies(2),
            NetworkFault::Latency => {
                proxy.set_delay(Direction::ToServer, self.plan.delays[0]);
                proxy.set_delay(Direction::ToClient, self.plan.delays[1]);
            }
            NetworkFault::Trickle => proxy.trickle(TRICKLE),
            NetworkFault::HalfOpen => proxy.abandon(),
            NetworkFault::Reset => proxy.reset().await,
        }
    }

    /// Those that the fault strikes: the node's, or all where it is nothing that one node has alone.
    fn proxies(&self) -> Vec<&Proxy> {
        let one = match self.fault {
            Fault::Network(
                NetworkFault::Cut | NetworkFault::Silent | NetworkFault::RequestsLost | NetworkFault::RepliesLost,
            ) => true,
            Fault::Network(
                NetworkFault::ReplyLost
                | NetworkFault::Latency
                | NetworkFault::Trickle
                | NetworkFault::HalfOpen
                | NetworkFault::Reset,
            ) => !self.plan.all,
            Fault::Node(_) | Fault::Server(_) => false,
        };
        let victim = self.victim();
        let nodes = self.nodes.nodes.iter().enumerate();
        nodes.filter(|(at, _)| !one || Some(*at) == victim).filter_map(|(_, node)| node.proxy.as_ref()).collect()
    }

    /// Lets what comes again and again come again and again.
    async fn go_on_until(&mut self, end: Instant) -> Result<(), Failure> {
        loop {
            let pause = between(&mut self.dice, 200, 800);
            let left = end.saturating_duration_since(Instant::now());
            if left <= pause {
                tokio::time::sleep(left).await;
                return Ok(());
            }
            tokio::time::sleep(pause).await;
            match self.fault {
                Fault::Network(fault @ (NetworkFault::ReplyLost | NetworkFault::Reset)) => {
                    for proxy in self.proxies() {
                        self.strike_network(fault, proxy).await;
                    }
                }
                Fault::Server(fault) => self.server.strike_again(fault).await?,
                Fault::Node(_)
                | Fault::Network(
                    NetworkFault::Cut
                    | NetworkFault::Silent
                    | NetworkFault::RequestsLost
                    | NetworkFault::RepliesLost
                    | NetworkFault::Latency
                    | NetworkFault::Trickle
                    | NetworkFault::HalfOpen,
                ) => {}
            }
        }
    }

    async fn heal(&mut self) -> Result<(), Failure> {
        match self.struck.take() {
            Some(Blow::Down(name)) => {
                let at = self.nodes.nodes.iter().position(|node| node.name == name).ok_or("the node has gone")?;
                self.wait_down(at).await?;
                self.nodes.start(at)
            }
            Some(Blow::Frozen(mut pids)) => {
                self.dice.shuffle(&mut pids);
                for pid in pids {
                    // An error means that it was killed meanwhile.
                    let _gone = signal(pid, Signal::CONT);
                    tokio::time::sleep(between(&mut self.dice, 0, 10)).await;
                }
                Ok(())
            }
            Some(Blow::Elsewhere) | None => match self.fault {
                Fault::Server(fault) => self.server.heal(fault).await,
                Fault::Node(_) | Fault::Network(_) => {
                    for proxy in self.nodes.nodes.iter().filter_map(|node| node.proxy.as_ref()) {
                        proxy.heal().await?;
                    }
                    Ok(())
                }
            },
        }
    }

    /// A node that was told to end may take its time.
    async fn wait_down(&mut self, at: usize) -> Result<(), Failure> {
        let begin = Instant::now();
        while let Some(agent) = &mut self.nodes.nodes[at].agent {
            match agent.ended()? {
                Some(_) => self.nodes.nodes[at].agent = None,
                None if begin.elapsed() > RECOVERY_BOUND => return Err("the node to strike does not end".into()),
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
        Ok(())
    }
}

/// The same dice for the same cell and seed, on every machine.
fn dice(store: &str, fault: &str, seed: u64) -> Rng {
    const FNV_PRIME: u64 = 0x0100_0000_01b3;
    let name = store.bytes().chain([b'/']).chain(fault.bytes());
    let mixed = name.fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME));
    Rng::with_seed(mixed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_chooses_the_same_again_and_another_one_something_else() {
        let fault = Fault::Server(ServerFault::Stalled);
        let plan = |store: &str, seed| Plan::choose(fault, true, &mut dice(store, fault.as_str(), seed)).to_string();
        assert_eq!(plan("redis", 1), plan("redis", 1));
        let different = [plan("redis", 1), plan("redis", 2), plan("etcd", 1)];
        assert!(different[1..].iter().all(|plan| *plan != different[0]), "{different:?}");
    }

    #[test]
    fn a_frozen_node_stands_still_for_longer_than_its_session() {
        for fault in [NodeFault::AgentFrozen, NodeFault::HostFrozen].map(Fault::Node) {
            assert!((0..100).all(|seed| {
                Plan::choose(fault, true, &mut dice("x", "y", seed)).lasts.iter().all(|lasts| *lasts > TTL)
            }));
        }
    }

    #[test]
    fn nobody_joins_while_newcomers_are_refused() {
        let fault = Fault::Server(ServerFault::Credentials);
        let joins = |newcomers| {
            (0..100).any(|seed| Plan::choose(fault, newcomers, &mut dice("x", "y", seed)).churn == Churn::Join)
        };
        assert!(joins(true) && !joins(false));
    }
}
