//! Candidates of one election, whose leader is killed, told to go, or cut off with the store.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use rendez_core::Timestamp;
use rendez_testkit::agents::{Agent, AgentStage, CLUSTER};
use rendez_testkit::clock;
use rendez_testkit::measure::{Failure, Measurement, Samples};
use rendez_testkit::records::Record;
use rendez_testkit::servers::{AnyServer, StoreKind};
use rustix::process::Signal;

use crate::observer::Observer;
use crate::stage::{INTERVAL, TTL, TTL_OPTIONS, beyond_child_start, judged, next_run, program, this_run};

const CANDIDATES: usize = 5;
const KILLS: usize = 50;
const RESIGNATIONS: usize = 10;
const STANDSTILLS: usize = 3;
const STANDSTILL: Duration = Duration::from_millis(4500);

const PATIENCE: Duration = Duration::from_secs(90);
const LOOK: Duration = Duration::from_millis(5);

/// Five candidates; whoever leads is taken away, again and again.
pub(crate) struct Election(pub(crate) StoreKind);

/// The candidates, and what they write.
struct Candidates {
    folder: AgentStage,
    all: Vec<Agent>,
    started: usize,
}

impl Candidates {
    fn add(&mut self) -> Result<(), Failure> {
        let node = format!("candidate-{}", self.started);
        self.started += 1;
        self.all.push(self.folder.stand(&node, &[&TTL_OPTIONS[..], &["--stay"]].concat(), &["--alive-ms", "20"])?);
        Ok(())
    }

    /// Waits until another leads than the one with this record, and says which and with what record.
    async fn leader(&mut self, after: Option<&Record>) -> Result<(usize, Record), Failure> {
        let begin = Instant::now();
        loop {
            for (at, candidate) in self.all.iter_mut().enumerate() {
                let leads = candidate.running()?.into_iter().find(|now| after.is_none_or(|old| now.token > old.token));
                if let Some(record) = leads {
                    return Ok((at, record));
                }
            }
            if begin.elapsed() > PATIENCE {
                let said: String = self.all.iter().map(Agent::said).collect();
                return Err(format!("waited in vain for a leader: {said}").into());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// One more candidate, of which all have heard.
    async fn replace(&mut self, observer: &Observer) -> Result<(), Failure> {
        self.add()?;
        let node = self.all.last().map(Agent::node).unwrap_or_default().to_owned();
        let begin = Instant::now();
        while observer.session(&node).await.is_err() {
            if begin.elapsed() > PATIENCE {
                return Err(format!("{node} opens no session").into());
            }
            tokio::time::sleep(LOOK).await;
        }
        tokio::time::sleep(2 * INTERVAL).await;
        Ok(())
    }
}

#[async_trait]
impl Measurement for Election {
    fn name(&self) -> &'static str {
        "election"
    }

    fn about(&self) -> &'static str {
        "kill -9 of all processes of the leader, 5 candidates: from its session's end until another leads, less a child's start"
    }

    fn is_baseline(&self) -> bool {
        false
    }

    async fn run(&self) -> Result<Samples, Failure> {
        let mut server = AnyServer::start(self.0).await?;
        let mut observer = Observer::new(&server.url(), CLUSTER).await?;
        let folder = AgentStage::new(program()?, server.url(), 1)?;
        let mut candidates = Candidates { folder, all: Vec::new(), started: 0 };
        for _ in 0..CANDIDATES {
            candidates.add()?;
        }
        let mut led = candidates.leader(None).await?;
        observer.watch_ends(TTL, INTERVAL).await?;
        tokio::time::sleep(2 * INTERVAL).await;

        let mut killed: Vec<(Timestamp, Timestamp, Record)> = Vec::new();
        for _ in 0..KILLS {
            let (at, before) = led;
            let mut victim = candidates.all.remove(at);
            let session = observer.session(victim.node()).await?;
            let dead = victim.lose_host()?;
            led = candidates.leader(Some(&before)).await?;
            killed.push((dead, observer.session_end(session).await?, before));
            candidates.replace(&observer).await?;
        }
        let mut told = Vec::new();
        for _ in 0..RESIGNATIONS {
            let (at, before) = led;
            let leaver = candidates.all.remove(at);
            leaver.signal(Signal::TERM)?;
            led = candidates.leader(Some(&before)).await?;
            told.push(before);
            candidates.replace(&observer).await?;
        }
        let mut frozen = Vec::new();
        // A folder of one host cannot stand still by itself.
        for _ in 0..if self.0 == StoreKind::File { 0 } else { STANDSTILLS } {
            let at = clock::now();
            server.stop()?;
            tokio::time::sleep(STANDSTILL).await;
            server.resume()?;
            let back = clock::now();
            let before = led.1;
            led = candidates.leader(Some(&before)).await?;
            frozen.push((at, back, before));
            tokio::time::sleep(4 * INTERVAL).await;
        }

        let report = candidates.folder.judge()?;
        let (mut times, mut whole, mut early) = (Vec::new(), Vec::new(), 0);
        for (dead, end, before) in &killed {
            let next = next_run(&report, before)?.begin;
            early += usize::from(next < *end);
            times.push(next.since(*end));
            whole.push(next.since(*dead));
        }
        let mut gaps = Vec::new();
        for before in &told {
            gaps.push(next_run(&report, before)?.begin.since(this_run(&report, before)?.until));
        }
        let (mut outlived, mut again) = (0, Vec::new());
        for (at, back, before) in &frozen {
            // The last heartbeat was sent before the store stood still.
            outlived += usize::from(this_run(&report, before)?.until > *at + TTL);
            again.push(next_run(&report, before)?.begin.since(*back));
        }
        let mut samples = beyond_child_start(&times)?
            .and("since the kill", "from the kill until another leads", Samples::times(whole))
            .and(
                "told to go",
                "SIGTERM: from the end of its command to the begin of the next one's",
                Samples::times(gaps),
            )
            .note(format!(
                "{KILLS} kills, {RESIGNATIONS} signals, {} standstills of the store of {STANDSTILL:?}",
                frozen.len()
            ));
        if !again.is_empty() {
            samples = samples.and(
                "after a standstill",
                "from the store's return until somebody leads",
                Samples::times(again),
            );
        }
        if early > 0 {
            samples = samples.broken(format!("{early} times another led before the session's end"));
        }
        if outlived > 0 {
            samples = samples.broken(format!("{outlived} leaders outlived their deadline while the store stood still"));
        }
        Ok(judged(samples, &[report]))
    }
}
