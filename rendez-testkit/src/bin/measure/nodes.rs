//! What the measurements with library nodes share: nodes in this process, with runners that only wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rendez::{Coordinator, Event, Handle, SlotContext, StoreUrl, Timing};
use rendez_testkit::measure::Failure;
use tokio::task::JoinSet;

const PATIENCE: Duration = Duration::from_secs(120);

/// Nodes of one cluster.
pub(crate) struct Nodes {
    pub(crate) handles: Vec<Handle>,
    pub(crate) tally: Arc<Tally>,
}

/// How often something happened, on all nodes together.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    started: AtomicU64,
    stopping: AtomicU64,
    lost: AtomicU64,
    trouble: AtomicU64,
}

/// The numbers of a [`Tally`] at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) started: u64,
    pub(crate) stopping: u64,
    pub(crate) lost: u64,
    pub(crate) trouble: u64,
}

impl Tally {
    fn take(&self, event: &Event) {
        let what = match event {
            Event::Started { .. } => &self.started,
            Event::Stopping { .. } => &self.stopping,
            Event::SessionLost { .. } => &self.lost,
            Event::StoreTrouble { .. } => &self.trouble,
            _ => return,
        };
        what.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count(&self) -> Count {
        let now = |number: &AtomicU64| number.load(Ordering::Relaxed);
        Count {
            started: now(&self.started),
            stopping: now(&self.stopping),
            lost: now(&self.lost),
            trouble: now(&self.trouble),
        }
    }
}

impl Nodes {
    /// Starts so many nodes at once, with default settings; returns when all have their session.
    pub(crate) async fn start(url: &str, cluster: &str, count: usize, units: u32) -> Result<Self, Failure> {
        let tally = Arc::new(Tally::default());
        let mut starting = JoinSet::new();
        for node in 0..count {
            let (url, cluster, tally) = (url.to_owned(), cluster.to_owned(), Arc::clone(&tally));
            starting.spawn(async move {
                let timeout = Timing::default().operation_timeout;
                let store = StoreUrl::parse(&url)?.connect(timeout, PATIENCE).await?;
                let builder =
                    Coordinator::builder().shared_store(store).cluster(cluster).node_id(format!("node-{node}"));
                let builder = builder.workload("inbox", units).runner(idle).on_event(move |event| tally.take(event));
                Ok::<Handle, Failure>(builder.start().await?)
            });
        }
        let mut handles = Vec::new();
        while let Some(handle) = starting.join_next().await {
            handles.push(handle??);
        }
        Ok(Self { handles, tally })
    }

    /// How many slots each node runs.
    pub(crate) fn counts(&self) -> Vec<usize> {
        self.handles.iter().map(|handle| handle.owned().len()).collect()
    }

    /// Waits until so many slots run.
    pub(crate) async fn own(&self, slots: usize) -> Result<(), Failure> {
        let begin = Instant::now();
        loop {
            let counts = self.counts();
            if counts.iter().sum::<usize>() >= slots {
                return Ok(());
            }
            if begin.elapsed() > PATIENCE {
                return Err(format!("waited in vain for {slots} slots: {counts:?}, {:?}", self.tally.count()).into());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Ends all nodes at once, in order.
    pub(crate) async fn shutdown(self) -> Result<(), Failure> {
        let mut ending = JoinSet::new();
        for handle in self.handles {
            ending.spawn(async move { handle.shutdown().await.map(drop) });
        }
        while let Some(ended) = ending.join_next().await {
            ended??;
        }
        Ok(())
    }
}

async fn idle(ctx: SlotContext) {
    ctx.cancelled().await;
}
