//! Prints what requests cost a real server: its CPU, messages and bytes, and the time they take. The server syncs before each
//! acknowledgement, so a write is an fsync, but for those that it takes together.
//!
//! `cargo run --release -p rendez-nats --example nats-figures`; the servers come from `cargo xtask servers`.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use rendez_core::{
    ChangeKind, ChangeOutcome, ChangeRequest, CloseRequest, ClusterName, ClusterSettings, FencingToken,
    HeartbeatRequest, Incarnation, Known, LeaseStore, NodeId, NodeInfo, OpenRequest, Opening, OperationId, SessionId,
    Slot, SlotChange, SnapshotRequest, WatchHint, WorkloadName,
};
use rendez_nats::async_nats::{self, Client, jetstream};
use rendez_nats::{NatsOptions, NatsStore};
use rendez_testkit::servers::NatsServer;

const TTL: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_secs(2);
const BEATS: u32 = 2000;
const TAKEOVERS: usize = 20;

struct Bench {
    server: NatsServer,
    /// The store's own client.
    client: Client,
    store: NatsStore,
    cluster: ClusterName,
    operations: u128,
}

/// What was spent.
#[derive(Debug, Clone, Copy)]
struct Spent {
    cpu: f64,
    sent: u64,
    received: u64,
    bytes: u64,
}

type Outcome<T> = Result<T, Box<dyn Error>>;

/// The kernel counts a process's time in hundredths of a second.
const TICKS: f64 = 100.0;

impl Bench {
    fn spent_by(&self, client: &Client) -> Outcome<Spent> {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.server.process_id()?))?;
        let after_name = text.rsplit(')').next().unwrap_or_default();
        let mut times = after_name.split_whitespace().skip(11);
        let mut next = || times.next().and_then(|time| time.parse::<f64>().ok()).unwrap_or_default();
        let statistics = client.statistics();
        Ok(Spent {
            cpu: (next() + next()) / TICKS,
            sent: statistics.out_messages.load(Relaxed),
            received: statistics.in_messages.load(Relaxed),
            bytes: statistics.out_bytes.load(Relaxed) + statistics.in_bytes.load(Relaxed),
        })
    }

    fn spent(&self) -> Outcome<Spent> {
        self.spent_by(&self.client)
    }

    fn operation(&mut self) -> OperationId {
        self.operations += 1;
        OperationId::from_bits(self.operations)
    }

    async fn open(&mut self, node: &str, ttl: Duration) -> Outcome<SessionId> {
        let request = OpenRequest {
            known: Known::default(),
            operation: self.operation(),
            incarnation: Incarnation::from_bits(self.operations),
            replaces: None,
            ttl,
            info: Arc::new(NodeInfo::new(NodeId::new(node)?, ClusterSettings::new(TTL))),
        };
        match self.store.open(&self.cluster, &request).await? {
            Opening::Opened { session, .. } => Ok(session),
            Opening::InUse { .. } => Err("the node is in use".into()),
        }
    }

    /// Makes one change of each slot, in requests that are under way together, and answers the tokens after it.
    async fn each(
        &mut self,
        session: SessionId,
        slots: &[(Slot, FencingToken)],
        mut kind: impl FnMut(OperationId, usize) -> ChangeKind,
    ) -> Outcome<Vec<(Slot, FencingToken)>> {
        let most = self.store.capabilities().changes_max;
        let mut requests = Vec::new();
        for (batch, part) in slots.chunks(most).enumerate() {
            let mut changes = Vec::new();
            for (place, (slot, token)) in part.iter().enumerate() {
                let kind = kind(self.operation(), batch * most + place);
                changes.push(SlotChange { slot: slot.clone(), token: *token, kind });
            }
            requests.push(ChangeRequest { known: Known::default(), session, changes });
        }
        let mut after = Vec::new();
        for some in requests.chunks(2) {
            let replies = some.iter().map(|request| self.store.change(&self.cluster, request));
            for (reply, request) in futures_util::future::join_all(replies).await.into_iter().zip(some) {
                for (outcome, change) in reply?.outcomes.iter().zip(&request.changes) {
                    match outcome {
                        ChangeOutcome::Done(Some(record)) => after.push((change.slot.clone(), record.token)),
                        other => return Err(format!("{}: {other:?}", change.slot).into()),
                    }
                }
            }
        }
        Ok(after)
    }

    fn report(what: &str, per: u32, before: Spent, after: Spent, took: Duration) {
        let each = |after: u64, before: u64| (after - before) as f64 / f64::from(per);
        println!(
            "{what:46} {:>9.1?}; each: {:>8.1} µs CPU, {:>7.2} messages sent, {:>7.2} received, {:>8.0} bytes",
            took / per,
            (after.cpu - before.cpu) / f64::from(per) * 1e6,
            each(after.sent, before.sent),
            each(after.received, before.received),
            each(after.bytes, before.bytes),
        );
    }

    /// What the plainest write costs on this machine at this moment: to compare with.
    async fn baseline(&self) -> Outcome<()> {
        let client = async_nats::connect(self.server.addr()?.to_string()).await?;
        let context = jetstream::new(client.clone());
        let config =
            jetstream::stream::Config { name: "plain".to_owned(), max_messages_per_subject: 1, ..Default::default() };
        context.create_stream(config).await?;
        let (before, started) = (self.spent_by(&client)?, Instant::now());
        for _ in 0..BEATS {
            context.publish("plain", "value".into()).await?.await?;
        }
        Self::report("for comparison: a write", BEATS, before, self.spent_by(&client)?, started.elapsed());
        Ok(())
    }

    async fn beats(&self, what: &str, session: SessionId) -> Outcome<()> {
        let mut request = HeartbeatRequest {
            known: Known::default(),
            session,
            since: None,
            changes_max: 4096,
            due_within: Duration::from_secs(2),
            info: None,
        };
        let stamp = self.store.heartbeat(&self.cluster, &request).await?.stamp;
        request.known.generation = Some(stamp.generation);
        request.since = Some(stamp.revision);
        let (before, started) = (self.spent()?, Instant::now());
        for _ in 0..BEATS {
            self.store.heartbeat(&self.cluster, &request).await?;
        }
        Self::report(what, BEATS, before, self.spent()?, started.elapsed());
        Ok(())
    }

    /// A session that is not extended any more, and another node that waits for its end with the watch.
    async fn takeovers(&mut self, survivor: SessionId, mut slots: Vec<(Slot, FencingToken)>) -> Outcome<()> {
        let mut after = Vec::new();
        for round in 0..TAKEOVERS {
            let dying = self.open(&format!("dying {round}"), SHORT).await?;
            slots = self.each(dying, &slots, |operation, _| ChangeKind::Acquire { operation }).await?;
            let request = HeartbeatRequest {
                known: Known::default(),
                session: dying,
                since: None,
                changes_max: 0,
                due_within: Duration::ZERO,
                info: None,
            };
            let mut watch = self.store.watch(&self.cluster).await?;
            let sent = Instant::now();
            self.store.heartbeat(&self.cluster, &request).await?;
            loop {
                let hint = watch.next().await.ok_or("the watch ended")?;
                if hint == WatchHint::Everyone && self.session_is_gone(dying).await? {
                    break;
                }
            }
            slots = self.each(survivor, &slots, |operation, _| ChangeKind::Acquire { operation }).await?;
            after.push(sent.elapsed().saturating_sub(SHORT));
            let released =
                self.each(survivor, &slots, |_, _| ChangeKind::Release { checkpoint: None, refuse_for: None }).await?;
            slots = released;
        }
        after.sort();
        println!(
            "takeover of {} slots after the session's end: p50 {:.1?}, max {:.1?}, of {TAKEOVERS}",
            slots.len(),
            after[after.len() / 2],
            after[after.len() - 1]
        );
        Ok(())
    }

    async fn session_is_gone(&self, session: SessionId) -> Outcome<bool> {
        let request = SnapshotRequest { known: Known::default(), session: None, cursor: None };
        let page = self.store.snapshot(&self.cluster, &request).await?;
        let is_it = |item: &rendez_core::Change| matches!(item, rendez_core::Change::Session(id, _) if *id == session);
        Ok(!page.items.iter().any(is_it))
    }
}

#[tokio::main]
async fn main() -> Outcome<()> {
    // Synced as in production.
    let server = NatsServer::builder().synced().start().await?;
    let mut options = NatsOptions::default();
    options.operation_timeout = Duration::from_secs(10);
    let client = async_nats::connect(server.addr()?.to_string()).await?;
    let store = NatsStore::from_client(client.clone(), options)?;
    let mut bench = Bench { server, client, store, cluster: ClusterName::new("figures")?, operations: 0 };
    let workload = WorkloadName::new("inbox")?;
    let free = |from: u32, to: u32| {
        (from..to).map(|unit| (Slot::new(workload.clone(), unit), FencingToken::NONE)).collect::<Vec<_>>()
    };
    bench.baseline().await?;
    let a = bench.open("a", TTL).await?;
    let b = bench.open("b", TTL).await?;
    let mut held = 0;
    for count in [10, 1000, 10_000] {
        bench.each(a, &free(held, count), |operation, _| ChangeKind::Acquire { operation }).await?;
        held = count;
        bench.beats(&format!("heartbeat of a node that holds {count}"), a).await?;
    }
    let thousand = free(10_000, 11_000);
    let (before, started) = (bench.spent()?, Instant::now());
    let thousand = bench.each(a, &thousand, |operation, _| ChangeKind::Acquire { operation }).await?;
    Bench::report("acquiring 1000 free slots", 1, before, bench.spent()?, started.elapsed());

    let offers: Vec<_> = (0..1000).map(|number| OperationId::from_bits(1 << 100 | number)).collect();
    let (before, started) = (bench.spent()?, Instant::now());
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
    let transferring = middle.elapsed();
    Bench::report("offering, accepting, transferring 1000 slots", 1, before, bench.spent()?, started.elapsed());
    println!("{:46} {transferring:>9.1?}", "of which transferring");

    let request = CloseRequest { known: Known::default(), session: b };
    bench.store.close(&bench.cluster, &request).await?;
    let (before, started) = (bench.spent()?, Instant::now());
    bench.each(a, &moved, |operation, _| ChangeKind::Acquire { operation }).await?;
    Bench::report("acquiring 1000 orphans", 1, before, bench.spent()?, started.elapsed());

    let small = ClusterName::new("takeover")?;
    bench.cluster = small;
    let survivor = bench.open("survivor", TTL).await?;
    bench.takeovers(survivor, free(0, 1000)).await?;
    bench.cluster = ClusterName::new("figures")?;

    for index in 0..4 {
        let part = free(11_000 + index * 22_000, 11_000 + (index + 1) * 22_000);
        bench.each(a, &part, |operation, _| ChangeKind::Acquire { operation }).await?;
    }
    let mut options = NatsOptions::default();
    options.operation_timeout = Duration::from_secs(30);
    let (before, started) = (bench.spent()?, Instant::now());
    let fresh = NatsStore::from_client(bench.client.clone(), options)?;
    let (mut cursor, mut items) = (None, 0);
    loop {
        let request = SnapshotRequest { known: Known::default(), session: None, cursor };
        let page = fresh.snapshot(&bench.cluster, &request).await?;
        items += page.items.len();
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    let what = format!("a fresh handle's snapshot of {items} records");
    Bench::report(&what, 1, before, bench.spent()?, started.elapsed());
    Ok(())
}
