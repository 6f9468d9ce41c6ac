//! A server that stands still for a while.

use std::time::Duration;

use async_trait::async_trait;
use rendez_testkit::clock;
use rendez_testkit::measure::{Failure, Measurement, Samples};
use rendez_testkit::servers::StoreKind;

use crate::stage::{INTERVAL, Stage, TTL, TTL_OPTIONS, beyond_child_start, judged};

/// The store's server is frozen, shortly and for long.
pub(crate) struct StoreFrozen(pub(crate) StoreKind);

#[async_trait]
impl Measurement for StoreFrozen {
    fn name(&self) -> &'static str {
        "store-frozen"
    }

    fn about(&self) -> &'static str {
        "the store stands still for 4.5 s, TTL 3 s: from its return until a slot runs again, less a child's start"
    }

    fn is_baseline(&self) -> bool {
        false
    }

    async fn run(&self) -> Result<Samples, Failure> {
        const SHORT_ROUNDS: usize = 5;
        /// Less than what is left to a runner after the oldest heartbeat: the TTL less stop budget, pause allowance
        /// and an interval with its jitter.
        const SHORT: Duration = Duration::from_millis(1000);
        const LONG_ROUNDS: usize = 3;
        const LONG: Duration = Duration::from_millis(4500);
        let mut stage = Stage::new(self.0, 3, &TTL_OPTIONS, &[]).await?;
        tokio::time::sleep(2 * INTERVAL).await;
        let before = stage.judge()?.summary.runs;
        for _ in 0..SHORT_ROUNDS {
            stage.server.stop()?;
            tokio::time::sleep(SHORT).await;
            stage.server.resume()?;
            tokio::time::sleep(3 * INTERVAL).await;
        }
        let restarted = stage.judge()?.summary.runs - before;
        let (mut begins, mut all) = (Vec::new(), Vec::new());
        for _ in 0..LONG_ROUNDS {
            let frozen = clock::now();
            stage.server.stop()?;
            tokio::time::sleep(LONG).await;
            stage.server.resume()?;
            let back = clock::now();
            stage.wait("everything to run again", |_| true).await?;
            begins.push((frozen, back));
            tokio::time::sleep(4 * INTERVAL).await;
        }
        let report = stage.judge()?;
        let (mut times, mut late, mut ends) = (Vec::new(), 0, Vec::new());
        for (frozen, back) in begins {
            let mut latest = Duration::ZERO;
            for runs in report.runs.values() {
                let before = runs.iter().rfind(|run| run.begin < frozen).ok_or("a slot did not run")?;
                // The last heartbeat was sent before the server stood still.
                late += usize::from(before.until > frozen + TTL);
                ends.push(before.until.since(frozen));
                let next = runs.iter().find(|run| run.begin >= frozen).ok_or("a slot does not run again")?;
                times.push(next.begin.since(back));
                latest = latest.max(next.begin.since(back));
            }
            all.push(latest);
        }
        let mut samples = beyond_child_start(&times)?
            .and("all", "from its return until all slots run again", Samples::times(all))
            .and("end", "from the freeze to the last record of a runner", Samples::times(ends))
            .note(format!("goal: two intervals, {:?}", 2 * INTERVAL))
            .note(format!("{SHORT_ROUNDS} times frozen for {SHORT:?}: {restarted} runners restarted or moved"));
        if restarted > 0 {
            samples = samples.broken("a short standstill of the server moved or restarted runners");
        }
        if late > 0 {
            samples = samples.broken(format!("{late} runners outlived their deadline"));
        }
        Ok(judged(samples, &[report]))
    }
}
