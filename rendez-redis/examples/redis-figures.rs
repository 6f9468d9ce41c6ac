//! Prints what requests cost a real server: its CPU, the number of commands, and the time they take.
//!
//! `cargo run --release -p rendez-redis --example redis-figures`; needs `redis-server`.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rendez_core::{
    ChangeKind, ChangeOutcome, ChangeRequest, ClusterName, ClusterSettings, FencingToken, HeartbeatRequest,
    Incarnation, Known, LeaseStore, NodeId, NodeInfo, OpenRequest, Opening, OperationId, Revision, SessionId, Slot,
    SlotChange, SnapshotRequest, WorkloadName,
};
use rendez_redis::{RedisOptions, RedisStore};
use rendez_testkit::servers::RedisServer;

const TTL: Duration = Duration::from_secs(600);
const BEATS: u32 = 5000;

struct Bench {
    server: RedisServer,
    store: RedisStore,
    cluster: ClusterName,
    operations: u128,
}

/// What the server has spent.
#[derive(Debug, Clone, Copy)]
struct Spent {
    cpu: Duration,
    scripts: u64,
    in_scripts: Duration,
}

type Outcome<T> = Result<T, Box<dyn Error>>;

impl Bench {
    async fn spent(&self) -> Outcome<Spent> {
        let number = async |field: &str| -> Outcome<f64> { Ok(self.server.info(field).await?.parse()?) };
        let cpu = number("used_cpu_user").await? + number("used_cpu_sys").await?;
        let stats = self.server.info("cmdstat_evalsha").await.unwrap_or_default();
        let part = |name: &str| {
            let value = stats.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
            value.and_then(|value| value.parse::<u64>().ok()).unwrap_or(0)
        };
        Ok(Spent {
            cpu: Duration::from_secs_f64(cpu),
            scripts: part("calls"),
            in_scripts: Duration::from_micros(part("usec")),
        })
    }

    fn operation(&mut self) -> OperationId {
        self.operations += 1;
        OperationId::from_bits(self.operations)
    }

    async fn open(&mut self, node: &str) -> Outcome<SessionId> {
        let request = OpenRequest {
            known: Known::default(),
            operation: self.operation(),
            incarnation: Incarnation::from_bits(self.operations),
            replaces: None,
            ttl: TTL,
            info: Arc::new(NodeInfo::new(NodeId::new(node)?, ClusterSettings::new(TTL))),
        };
        match self.store.open(&self.cluster, &request).await? {
            Opening::Opened { session, .. } => Ok(session),
            Opening::InUse { .. } => Err("the node is in use".into()),
        }
    }

    /// Makes one change of each slot, in batches, and answers the tokens after it.
    async fn each(
        &mut self,
        session: SessionId,
        slots: &[(Slot, FencingToken)],
        mut kind: impl FnMut(OperationId, usize) -> ChangeKind,
    ) -> Outcome<Vec<(Slot, FencingToken)>> {
        let mut after = Vec::new();
        for (batch, part) in slots.chunks(512).enumerate() {
            let mut changes = Vec::new();
            for (place, (slot, token)) in part.iter().enumerate() {
                let kind = kind(self.operation(), batch * 512 + place);
                changes.push(SlotChange { slot: slot.clone(), token: *token, kind });
            }
            let request = ChangeRequest { known: Known::default(), session, changes };
            for (outcome, (slot, _)) in self.store.change(&self.cluster, &request).await?.outcomes.iter().zip(part) {
                match outcome {
                    ChangeOutcome::Done(Some(record)) => after.push((slot.clone(), record.token)),
                    other => return Err(format!("{slot}: {other:?}").into()),
                }
            }
        }
        Ok(after)
    }

    fn report(what: &str, per: u32, before: Spent, after: Spent, took: Duration) {
        let cpu = (after.cpu - before.cpu) / per;
        let script = (after.in_scripts - before.in_scripts) / per;
        let commands = after.scripts - before.scripts;
        println!(
            "{what:48} {took:>10.1?} in all, {commands:>5} commands; each: {cpu:>9.1?} CPU, {script:>9.1?} in scripts"
        );
    }

    /// What the plainest commands cost on this machine at this moment: to compare with.
    async fn baseline(&self) -> Outcome<()> {
        let client = rendez_redis::redis::Client::open(self.server.url())?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        for (what, mut command) in [
            ("for comparison: SET key value PX", rendez_redis::redis::cmd("SET")),
            ("for comparison: a script of one TIME", rendez_redis::redis::cmd("EVAL")),
            ("for comparison: a script of one INFO replication", rendez_redis::redis::cmd("EVAL")),
        ] {
            match what.rsplit(' ').next() {
                Some("PX") => command.arg("key").arg("value").arg("PX").arg(100_000),
                Some("TIME") => command.arg("return redis.call('TIME')").arg(0),
                _ => command.arg("return #redis.call('INFO', 'replication')").arg(0),
            };
            let (before, started) = (self.spent().await?, Instant::now());
            for _ in 0..BEATS {
                command.exec_async(&mut connection).await?;
            }
            let took = started.elapsed();
            Self::report(what, BEATS, before, self.spent().await?, took);
        }
        Ok(())
    }

    async fn beats(&self, what: &str, session: SessionId, since: bool) -> Outcome<()> {
        let mut request = HeartbeatRequest {
            known: Known::default(),
            session,
            since: None,
            changes_max: 512,
            due_within: Duration::from_secs(2),
            info: None,
        };
        let stamp = self.store.heartbeat(&self.cluster, &request).await?.stamp;
        request.known.generation = Some(stamp.generation);
        request.since = since.then_some(Revision(stamp.revision.0));
        let (before, started) = (self.spent().await?, Instant::now());
        for _ in 0..BEATS {
            self.store.heartbeat(&self.cluster, &request).await?;
        }
        let took = started.elapsed();
        Self::report(what, BEATS, before, self.spent().await?, took);
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let server = RedisServer::builder().start().await?;
    let store = RedisStore::connect(&server.url(), RedisOptions::default()).await?;
    println!("redis {}", server.info("redis_version").await?);
    let mut bench = Bench { server, store, cluster: ClusterName::new("figures")?, operations: 0 };
    let workload = WorkloadName::new("inbox")?;
    let free = |from: u32, to: u32| {
        (from..to).map(|unit| (Slot::new(workload.clone(), unit), FencingToken::NONE)).collect::<Vec<_>>()
    };
    bench.baseline().await?;
    let a = bench.open("a").await?;
    let b = bench.open("b").await?;
    let mut held = 0;
    for count in [10, 1000, 10_000] {
        bench.each(a, &free(held, count), |operation, _| ChangeKind::Acquire { operation }).await?;
        held = count;
        bench.beats(&format!("heartbeat of a node that holds {count}"), a, true).await?;
    }
    let thousand = free(10_000, 11_000);
    let (before, started) = (bench.spent().await?, Instant::now());
    let thousand = bench.each(a, &thousand, |operation, _| ChangeKind::Acquire { operation }).await?;
    Bench::report("acquiring 1000 free slots", 1000, before, bench.spent().await?, started.elapsed());

    let offers: Vec<_> = (0..1000).map(|number| OperationId::from_bits(1 << 100 | number)).collect();
    let (before, started) = (bench.spent().await?, Instant::now());
    let offer = |_, at: usize| ChangeKind::Offer {
        operation: offers[at],
        to: b,
        expires_in: TTL,
        giver_total: 1,
        giver_of_workload: 1,
        forced: false,
    };
    bench.each(a, &thousand, offer).await?;
    bench.each(b, &thousand, |_, at| ChangeKind::Accept { offer: offers[at] }).await?;
    let middle = Instant::now();
    let moved = bench
        .each(a, &thousand, |operation, at| ChangeKind::Transfer { operation, offer: offers[at], checkpoint: None })
        .await?;
    println!("{:48} {:>10.1?} in all", "of which transferring", middle.elapsed());
    Bench::report(
        "offering, accepting, transferring 1000 slots",
        1000,
        before,
        bench.spent().await?,
        started.elapsed(),
    );

    let request = rendez_core::CloseRequest { known: Known::default(), session: b };
    bench.store.close(&bench.cluster, &request).await?;
    let (before, started) = (bench.spent().await?, Instant::now());
    bench.each(a, &moved, |operation, _| ChangeKind::Acquire { operation }).await?;
    Bench::report("taking over 1000 orphans", 1000, before, bench.spent().await?, started.elapsed());

    for index in 0..8 {
        let part = free(11_000 + index * 12_000, 11_000 + (index + 1) * 12_000);
        bench.each(a, &part, |operation, _| ChangeKind::Acquire { operation }).await?;
    }
    let (before, started) = (bench.spent().await?, Instant::now());
    let (mut cursor, mut items, mut longest) = (None, 0, Duration::ZERO);
    loop {
        let page = Instant::now();
        let request = SnapshotRequest { known: Known::default(), session: None, cursor };
        let page_read = bench.store.snapshot(&bench.cluster, &request).await?;
        longest = longest.max(page.elapsed());
        items += page_read.items.len();
        cursor = page_read.next;
        if cursor.is_none() {
            break;
        }
    }
    Bench::report(&format!("a snapshot of {items} records"), 1, before, bench.spent().await?, started.elapsed());
    println!("{:48} {longest:>10.1?}", "its slowest page");
    Ok(())
}
