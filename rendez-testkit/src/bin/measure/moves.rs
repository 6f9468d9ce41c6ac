//! Agents that come, and agents that are told to go.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use rendez_testkit::checker::Report;
use rendez_testkit::measure::{Failure, Measurement, Samples};
use rendez_testkit::servers::StoreKind;
use rustix::process::Signal;

use crate::stage::{SLOTS, Stage, TTL_OPTIONS, beyond_child_start, judged, next_run, this_run};

/// An agent is told to end.
pub(crate) struct Handover(pub(crate) StoreKind);

#[async_trait]
impl Measurement for Handover {
    fn name(&self) -> &'static str {
        "handover"
    }

    fn about(&self) -> &'static str {
        "SIGTERM of 1 of 3 agents, children stop in 500 ms: between the two runs of a slot, less a child's start"
    }

    fn is_baseline(&self) -> bool {
        false
    }

    async fn run(&self) -> Result<Samples, Failure> {
        const ROUNDS: usize = 8;
        let mut stage = Stage::new(self.0, 3, &TTL_OPTIONS, &["--stop-ms", "500"]).await?;
        let (mut moved, mut shutdowns) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let (mut leaver, runs) = stage.take_fullest()?;
            let begin = Instant::now();
            leaver.signal(Signal::TERM)?;
            let status = loop {
                if let Some(status) = leaver.ended()? {
                    break status;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            };
            shutdowns.push(begin.elapsed());
            if !status.success() {
                return Err(format!("the agent ended with {status}: {}", leaver.said()).into());
            }
            moved.extend(runs);
            stage.wait("the other agents to run everything", |_| true).await?;
            stage.replace().await?;
        }
        let report = stage.judge()?;
        let mut gaps = Vec::new();
        for run in &moved {
            gaps.push(next_run(&report, run)?.begin.since(this_run(&report, run)?.until));
        }
        let samples = beyond_child_start(&gaps)?
            .and("with the start", "between the two runs of a slot", Samples::times(gaps.iter().copied()))
            .and("shutdown", "from SIGTERM to the end of the agent", Samples::times(shutdowns))
            .note(format!("{ROUNDS} shutdowns; goals: p50 20 ms, a shutdown about a second"));
        Ok(judged(samples, &[report]))
    }
}

/// A fourth agent comes.
pub(crate) struct Join(pub(crate) StoreKind);

#[async_trait]
impl Measurement for Join {
    fn name(&self) -> &'static str {
        "join"
    }

    fn about(&self) -> &'static str {
        "a 4th agent joins 3, default settings: from its start until one of its slots runs there"
    }

    fn is_baseline(&self) -> bool {
        false
    }

    async fn run(&self) -> Result<Samples, Failure> {
        // Nearly all of it is waiting, so they can wait together.
        const CLUSTERS: usize = 7;
        let joins: Vec<_> = (0..CLUSTERS).map(|_| tokio::spawn(join(self.0))).collect();
        let (mut times, mut moves, mut balanced, mut reports) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for join in joins {
            let joined = join.await??;
            times.extend(joined.times);
            moves.push(joined.moves as f64);
            balanced.push(joined.balanced);
            reports.push(joined.report);
        }
        let share = SLOTS / 4;
        let samples = Samples::times(times)
            .and("moves", "slots that began anywhere after the join", Samples::numbers("slots", moves))
            .and("balanced", "from its start until each agent runs its share", Samples::times(balanced))
            .note(format!("{CLUSTERS} joins; goal: {share} moves"));
        Ok(judged(samples, &reports))
    }
}

struct Joined {
    times: Vec<Duration>,
    moves: usize,
    balanced: Duration,
    report: Report,
}

async fn join(store: StoreKind) -> Result<Joined, Failure> {
    /// Longer than a runner must have run before it may be moved.
    const QUIET: Duration = Duration::from_secs(12);
    /// To see whether anything more moves.
    const AFTER: Duration = Duration::from_secs(6);
    let mut stage = Stage::new(store, 3, &[], &[]).await?;
    let even = |count: usize| move |all: &[Vec<_>]| all.iter().all(|of| of.len() == count);
    stage.wait("a share for each of 3", even(SLOTS / 3)).await?;
    tokio::time::sleep(QUIET).await;
    let (start, begin) = (stage.start_agent()?, Instant::now());
    stage.wait("a share for each of 4", even(SLOTS / 4)).await?;
    let balanced = begin.elapsed();
    tokio::time::sleep(AFTER).await;
    let report = stage.judge()?;
    let joiner = stage.agents.last().map(|agent| agent.node().to_owned()).unwrap_or_default();
    let moved: Vec<_> = report.runs.values().flatten().filter(|run| run.begin > start).collect();
    let there = moved.iter().filter(|run| run.node.as_str() == joiner);
    let times = there.map(|run| run.begin.since(start)).collect();
    Ok(Joined { times, moves: moved.len(), balanced, report })
}
