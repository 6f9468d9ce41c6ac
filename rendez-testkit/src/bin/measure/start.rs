//! Many nodes that start at once.

use std::time::Instant;

use async_trait::async_trait;
use rendez_testkit::measure::{Failure, Measurement, Samples};
use rendez_testkit::servers::{AnyServer, StoreKind};

use crate::nodes::Nodes;

/// A cluster comes up.
pub(crate) struct ColdStart(pub(crate) StoreKind);

#[async_trait]
impl Measurement for ColdStart {
    fn name(&self) -> &'static str {
        "cold-start"
    }

    fn about(&self) -> &'static str {
        "10 library nodes start at once: until all of 1000 slots run"
    }

    fn is_baseline(&self) -> bool {
        false
    }

    async fn run(&self) -> Result<Samples, Failure> {
        const ROUNDS: usize = 20;
        const NODES: usize = 10;
        const SLOTS: u32 = 1000;
        let server = AnyServer::start(self.0).await?;
        let (mut times, mut fullest, mut emptiest, mut ends) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let share = f64::from(SLOTS) / NODES as f64;
        for round in 0..ROUNDS {
            let begin = Instant::now();
            let nodes = Nodes::start(&server.url(), &format!("cold-{round}"), NODES, SLOTS).await?;
            nodes.own(SLOTS as usize).await?;
            times.push(begin.elapsed());
            let counts = nodes.counts();
            fullest.push(counts.iter().copied().max().unwrap_or_default() as f64 / share);
            emptiest.push(1.0 - counts.iter().copied().min().unwrap_or_default() as f64 / share);
            let begin = Instant::now();
            nodes.shutdown().await?;
            ends.push(begin.elapsed());
        }
        Ok(Samples::times(times)
            .and("fullest", "what the fullest node runs then", Samples::numbers("shares", fullest))
            .and("emptiest", "what the emptiest node lacks then", Samples::numbers("shares", emptiest))
            .and("end", "all nodes told to end at once: until all have", Samples::times(ends))
            .note("goal: about a second"))
    }
}
