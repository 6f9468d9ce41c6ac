//! Prints what requests cost a real server: its CPU, transactions, log bytes, fsyncs, and the time they take.
//!
//! `cargo run --release -p rendez-postgres --example postgres-figures`; needs PostgreSQL's server programs.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rendez_core::{
    ChangeKind, ChangeOutcome, ChangeRequest, ClusterName, ClusterSettings, FencingToken, HeartbeatRequest,
    Incarnation, Known, LeaseStore, NodeId, NodeInfo, OpenRequest, Opening, OperationId, Revision, SessionId, Slot,
    SlotChange, SnapshotRequest, WorkloadName,
};
use rendez_postgres::tokio_postgres::{self, Client, NoTls};
use rendez_postgres::{PostgresOptions, PostgresStore};
use rendez_testkit::servers::PostgresServer;

const TTL: Duration = Duration::from_secs(600);
const BEATS: u32 = 1000;
const ROUNDS: u32 = 20;

/// What the store takes in one request.
const BATCH: usize = 1024;

/// The server writes its statistics at most once a second.
const STATISTICS: Duration = Duration::from_millis(1500);

struct Bench {
    server: PostgresServer,
    store: PostgresStore,
    client: Client,
    cluster: ClusterName,
    operations: u128,
}

/// What the server has spent.
#[derive(Debug, Clone, Copy)]
struct Spent {
    cpu: Duration,
    wal_bytes: u64,
    commits: u64,
    fsyncs: u64,
}

type Outcome<T> = Result<T, Box<dyn Error>>;

impl Bench {
    async fn spent(&self) -> Outcome<Spent> {
        let cpu = processor_time(self.server.process_id()?)?;
        let row = self.client.query_typed_one("SELECT (pg_current_wal_insert_lsn() - '0/0')::int8", &[]).await?;
        let wal_bytes = row.try_get::<_, i64>(0)?;
        tokio::time::sleep(STATISTICS).await;
        let text = "SELECT xact_commit, (SELECT wal_sync FROM pg_stat_wal) FROM pg_stat_database \
                    WHERE datname = current_database()";
        let row = self.client.query_typed_one(text, &[]).await?;
        Ok(Spent {
            cpu,
            wal_bytes: wal_bytes.try_into()?,
            commits: row.try_get::<_, i64>(0)?.try_into()?,
            fsyncs: row.try_get::<_, i64>(1)?.try_into()?,
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
        for (batch, part) in slots.chunks(BATCH).enumerate() {
            let mut changes = Vec::new();
            for (place, (slot, token)) in part.iter().enumerate() {
                let kind = kind(self.operation(), batch * BATCH + place);
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
        let wal = (after.wal_bytes - before.wal_bytes) / u64::from(per);
        let fsyncs = after.fsyncs - before.fsyncs;
        // The transactions that ask for the figures are three.
        let commits = (after.commits - before.commits).saturating_sub(3);
        println!(
            "{what:46} {took:>9.1?} in all, {commits:>4} transactions, {fsyncs:>4} fsyncs; each: {:>8.1?}, {cpu:>8.1?} \
             CPU, {wal:>5} WAL bytes",
            took / per
        );
    }

    /// What the plainest statements cost on this machine at this moment: to compare with.
    async fn baseline(&self) -> Outcome<()> {
        self.client.batch_execute("CREATE TABLE plain (id int PRIMARY KEY, n bigint) WITH (fillfactor = 50)").await?;
        self.client.batch_execute("INSERT INTO plain VALUES (1, 0)").await?;
        for (what, text) in [
            ("for comparison: SELECT 1", "SELECT 1"),
            ("for comparison: UPDATE one row", "UPDATE plain SET n = n + 1 WHERE id = 1"),
        ] {
            let (before, started) = (self.spent().await?, Instant::now());
            for _ in 0..BEATS {
                self.client.query_typed(text, &[]).await?;
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

/// The processor time of a process and its children that live.
fn processor_time(parent: u32) -> Outcome<Duration> {
    let mut ticks = 0;
    for entry in std::fs::read_dir("/proc")? {
        let Ok(text) = std::fs::read_to_string(entry?.path().join("stat")) else { continue };
        let Some((before, after)) = text.rsplit_once(") ") else { continue };
        let fields: Vec<&str> = after.split(' ').collect();
        let own = before.split(' ').next().and_then(|id| id.parse().ok()) == Some(parent);
        if own || fields.get(1).and_then(|id| id.parse().ok()) == Some(parent) {
            for at in [11, 12] {
                ticks += fields.get(at).and_then(|ticks| ticks.parse::<u64>().ok()).unwrap_or(0);
            }
        }
    }
    // The kernel tells in hundredths of a second.
    Ok(Duration::from_millis(ticks * 10))
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let server = PostgresServer::builder().fsync(true).start().await?;
    let mut options = PostgresOptions::default();
    options.operation_timeout = Duration::from_secs(10);
    let store = PostgresStore::connect(&server.url(), options).await?;
    let (client, connection) = tokio_postgres::connect(&server.url(), NoTls).await?;
    tokio::spawn(connection);
    println!("{}", server.query("SELECT version()").await?.trim());
    let mut bench = Bench { server, store, client, cluster: ClusterName::new("figures")?, operations: 0 };
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
    let (mut thousand, mut times) = (Vec::new(), Vec::new());
    let before = bench.spent().await?;
    for round in 0..ROUNDS {
        let free = free(10_000 + round * 1000, 11_000 + round * 1000);
        let started = Instant::now();
        thousand = bench.each(a, &free, |operation, _| ChangeKind::Acquire { operation }).await?;
        times.push(started.elapsed());
    }
    times.sort_unstable();
    Bench::report("acquiring 1000 free slots", ROUNDS, before, bench.spent().await?, times.iter().sum());
    println!("{:46} {:>9.1?} at best, {:.1?} p50", "", times[0], times[times.len() / 2]);

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
    let took = started.elapsed();
    Bench::report("offering, accepting, transferring 1000 slots", 1000, before, bench.spent().await?, took);

    let request = rendez_core::CloseRequest { known: Known::default(), session: b };
    bench.store.close(&bench.cluster, &request).await?;
    let (before, started) = (bench.spent().await?, Instant::now());
    bench.each(a, &moved, |operation, _| ChangeKind::Acquire { operation }).await?;
    let took = started.elapsed();
    Bench::report("taking over 1000 orphans", 1000, before, bench.spent().await?, took);

    for index in 0..8 {
        let part = free(30_000 + index * 12_000, 30_000 + (index + 1) * 12_000);
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
    let took = started.elapsed();
    Bench::report(&format!("a snapshot of {items} records"), 1, before, bench.spent().await?, took);
    println!("{:48} {longest:>10.1?}", "its slowest page");
    Ok(())
}
