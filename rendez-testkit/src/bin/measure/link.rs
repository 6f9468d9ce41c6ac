//! A server that is far away.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use rendez_testkit::measure::{Failure, Measurement, Samples};
use rendez_testkit::proxy::{Direction, Proxy};
use rendez_testkit::servers::RedisServer;

use crate::nodes::Nodes;

/// Very many slots on one node, over a slow link.
pub(crate) struct SlowLink;

#[async_trait]
impl Measurement for SlowLink {
    fn name(&self) -> &'static str {
        "slow-link"
    }

    fn about(&self) -> &'static str {
        "a library node, 2 ms to the server and 2 ms back: from its start until each next 1000 of 20000 slots run"
    }

    fn is_baseline(&self) -> bool {
        false
    }

    async fn run(&self) -> Result<Samples, Failure> {
        const SLOTS: u32 = 20_000;
        const STEP: usize = 1000;
        const DELAY: Duration = Duration::from_millis(2);
        /// Four of the default session TTLs.
        const WATCHED: Duration = Duration::from_secs(40);
        let redis = RedisServer::builder().start().await?;
        let proxy = Proxy::start(redis.addr()?).await?;
        proxy.set_delay(Direction::ToServer, DELAY);
        proxy.set_delay(Direction::ToClient, DELAY);
        let begin = Instant::now();
        let nodes = Nodes::start(&format!("redis://{}", proxy.addr()), "far", 1, SLOTS).await?;
        let mut times = Vec::new();
        for slots in (STEP..=SLOTS as usize).step_by(STEP) {
            nodes.own(slots).await?;
            times.push(begin.elapsed());
        }
        let before = nodes.tally.count();
        let mut owned_min = usize::MAX;
        let end = Instant::now() + WATCHED;
        while Instant::now() < end {
            owned_min = owned_min.min(nodes.counts().iter().sum());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let after = nodes.tally.count();
        let begin = Instant::now();
        nodes.shutdown().await?;
        let samples = Samples::times(times)
            .and("end", "told to end: until it has", Samples::times([begin.elapsed()]))
            .note(format!("{WATCHED:?} later: {after:?}; never fewer than {owned_min} slots"));
        if after.lost > 0 || after.stopping > 0 || after.started != before.started || owned_min < SLOTS as usize {
            return Ok(samples.broken("leases were lost or runners restarted"));
        }
        Ok(samples)
    }
}
