//! Agents that end without a word.

use std::time::Duration;

use async_trait::async_trait;
use rendez_testkit::clock;
use rendez_testkit::measure::{Failure, Measurement, Samples};
use rendez_testkit::servers::StoreKind;
use rustix::process::Signal;

use crate::stage::{INTERVAL, Stage, TTL, TTL_OPTIONS, beyond_child_start, judged, next_run};

const ALL_RUN: &str = "the other agents to run everything";

/// Only the agent dies: its guardian is left.
pub(crate) struct CrashRelease(pub(crate) StoreKind);

#[async_trait]
impl Measurement for CrashRelease {
    fn name(&self) -> &'static str {
        "crash-release"
    }

    fn about(&self) -> &'static str {
        "kill -9 of 1 of 3 agents, TTL 3 s: until one of its slots runs elsewhere, less a child's start"
    }

    fn is_baseline(&self) -> bool {
        false
    }

    async fn run(&self) -> Result<Samples, Failure> {
        const ROUNDS: usize = 10;
        let mut stage = Stage::new(self.0, 3, &TTL_OPTIONS, &[]).await?;
        let (mut killed, mut granted) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let (victim, runs) = stage.take_fullest()?;
            let at = clock::now();
            victim.signal(Signal::KILL)?;
            stage.wait(ALL_RUN, |_| true).await?;
            for run in runs {
                granted.push(stage.observer.granted(&run.slot).await?.since(at));
                killed.push((at, run));
            }
            stage.replace().await?;
        }
        let report = stage.judge()?;
        let mut times = Vec::new();
        for (at, run) in killed {
            times.push(next_run(&report, &run)?.begin.since(at));
        }
        let samples = beyond_child_start(&times)?
            .and("granted", "until its lease was granted to another agent", Samples::times(granted))
            .note(format!("{ROUNDS} kills; goal: within 500 ms"));
        Ok(judged(samples, &[report]))
    }
}

/// The agent, its guardian, the keepers and the children die at one moment.
pub(crate) struct LostHost(pub(crate) StoreKind);

#[async_trait]
impl Measurement for LostHost {
    fn name(&self) -> &'static str {
        "lost-host"
    }

    fn about(&self) -> &'static str {
        "kill -9 of all processes of 1 of 3 agents: from its session's end until a slot runs elsewhere, less a child's start"
    }

    fn is_baseline(&self) -> bool {
        false
    }

    async fn run(&self) -> Result<Samples, Failure> {
        const KILLS: usize = 20;
        let mut stage = Stage::new(self.0, 3, &TTL_OPTIONS, &[]).await?;
        stage.observer.watch_ends(TTL, INTERVAL).await?;
        let (mut killed, mut granted) = (Vec::new(), Vec::new());
        for _ in 0..KILLS {
            let (mut victim, runs) = stage.take_fullest()?;
            let session = stage.observer.session(victim.node()).await?;
            let at = victim.lose_host()?;
            stage.wait(ALL_RUN, |_| true).await?;
            let end = stage.observer.session_end(session).await?;
            for run in runs {
                granted.push(stage.observer.granted(&run.slot).await?.since(end));
                killed.push((at, end, run));
            }
            stage.replace().await?;
        }
        let report = stage.judge()?;
        let (mut times, mut raw, mut whole, mut early) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for (at, end, run) in killed {
            let next = next_run(&report, &run)?.begin;
            early += usize::from(next < end);
            times.push(next.since(end));
            raw.push(next.since(end));
            whole.push(next.since(at));
        }
        let late = whole.iter().filter(|time| **time > TTL + Duration::from_secs(1)).count();
        let mut samples = beyond_child_start(&times)?
            .and(
                "granted",
                "from the session's end until the lease was granted to another agent",
                Samples::times(granted),
            )
            .and("with the start", "from the session's end until it runs", Samples::times(raw))
            .and("since the kill", "from the kill until it runs", Samples::times(whole))
            .note(format!(
                "{KILLS} kills; goals: p50 25 ms after the session's end; in all TTL + 1 s, missed by {late}"
            ));
        if early > 0 {
            samples = samples.broken(format!("{early} slots ran elsewhere before the session's end"));
        }
        Ok(judged(samples, &[report]))
    }
}
