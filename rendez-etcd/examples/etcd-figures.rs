//! Prints what requests cost a real server: remote calls, its CPU, bytes, fsyncs, and the time they take.
//!
//! `cargo run --release -p rendez-etcd --example etcd-figures`; needs `etcd` and `etcdctl`.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rendez_core::{
    ChangeKind, ChangeOutcome, ChangeRequest, CloseRequest, ClusterName, ClusterSettings, FencingToken,
    HeartbeatRequest, Incarnation, Known, LeaseStore, NodeId, NodeInfo, OpenRequest, Opening, OperationId, SessionId,
    Slot, SlotChange, SnapshotRequest, WatchHint, WorkloadName,
};
use rendez_etcd::{EtcdOptions, EtcdStore};
use rendez_testkit::servers::EtcdServer;

const TTL: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_secs(2);
const BEATS: u32 = 2000;
const TAKEOVERS: usize = 20;

struct Bench {
    server: EtcdServer,
    store: EtcdStore,
    cluster: ClusterName,
    operations: u128,
}

/// What the server has spent.
#[derive(Debug, Clone, Copy)]
struct Spent {
    cpu: f64,
    calls: f64,
    keep_alives: f64,
    bytes: f64,
    fsyncs: f64,
}

type Outcome<T> = Result<T, Box<dyn Error>>;

impl Bench {
    async fn spent(&self) -> Outcome<Spent> {
        let metric = async |name: &str| self.server.metric(name).await.unwrap_or(0.0);
        let received = async |method: &str| {
            let service = match method {
                "LeaseKeepAlive" | "LeaseGrant" | "LeaseRevoke" => "Lease",
                _ => "KV",
            };
            let kind = if method == "LeaseKeepAlive" { "bidi_stream" } else { "unary" };
            let labels =
                format!("grpc_method=\"{method}\",grpc_service=\"etcdserverpb.{service}\",grpc_type=\"{kind}\"");
            metric(&format!("grpc_server_msg_received_total{{{labels}}}")).await
        };
        let mut calls = 0.0;
        for method in ["Range", "Txn", "LeaseGrant", "LeaseRevoke"] {
            calls += received(method).await;
        }
        let bytes = metric("etcd_network_client_grpc_received_bytes_total").await
            + metric("etcd_network_client_grpc_sent_bytes_total").await;
        Ok(Spent {
            cpu: metric("process_cpu_seconds_total").await,
            calls,
            keep_alives: received("LeaseKeepAlive").await,
            bytes,
            fsyncs: metric("etcd_disk_wal_fsync_duration_seconds_count").await,
        })
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
        for some in requests.chunks(16) {
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
        let each = |after: f64, before: f64| (after - before) / f64::from(per);
        println!(
            "{what:46} {:>9.1?}; each: {:>8.1} µs CPU, {:>5.2} keep-alives, {:>5.2} other calls, {:>8.0} bytes, {:>5.2} fsyncs",
            took / per,
            each(after.cpu, before.cpu) * 1e6,
            each(after.keep_alives, before.keep_alives),
            each(after.calls, before.calls),
            each(after.bytes, before.bytes),
            each(after.fsyncs, before.fsyncs),
        );
    }

    /// What the plainest calls cost on this machine at this moment: to compare with.
    async fn baseline(&self) -> Outcome<()> {
        let addr = self.server.addr()?;
        let mut client = rendez_etcd::etcd_client::Client::connect([addr.to_string()], None).await?;
        let (before, started) = (self.spent().await?, Instant::now());
        for _ in 0..BEATS {
            client.get("no such key", None).await?;
        }
        Self::report("for comparison: a linearizable get", BEATS, before, self.spent().await?, started.elapsed());
        let (before, started) = (self.spent().await?, Instant::now());
        for _ in 0..BEATS {
            client.put("key", "value", None).await?;
        }
        Self::report("for comparison: a put", BEATS, before, self.spent().await?, started.elapsed());
        let lease = client.lease_grant(600, None).await?.id();
        let (mut keeper, mut stream) = client.lease_keep_alive(lease).await?;
        let (before, started) = (self.spent().await?, Instant::now());
        for _ in 0..BEATS {
            keeper.keep_alive().await?;
            stream.message().await?;
        }
        Self::report("for comparison: a keep-alive", BEATS, before, self.spent().await?, started.elapsed());
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
        let (before, started) = (self.spent().await?, Instant::now());
        for _ in 0..BEATS {
            self.store.heartbeat(&self.cluster, &request).await?;
        }
        Self::report(what, BEATS, before, self.spent().await?, started.elapsed());
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
    let server = EtcdServer::builder().fsync(true).start().await?;
    let mut options = EtcdOptions::default();
    options.operation_timeout = Duration::from_secs(10);
    let store = EtcdStore::connect(&server.url(), options).await?;
    let mut bench = Bench { server, store, cluster: ClusterName::new("figures")?, operations: 0 };
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
    let (before, started) = (bench.spent().await?, Instant::now());
    let thousand = bench.each(a, &thousand, |operation, _| ChangeKind::Acquire { operation }).await?;
    Bench::report("acquiring 1000 free slots", 1, before, bench.spent().await?, started.elapsed());

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
    let transferring = middle.elapsed();
    Bench::report("offering, accepting, transferring 1000 slots", 1, before, bench.spent().await?, started.elapsed());
    println!("{:46} {transferring:>9.1?}", "of which transferring");

    let request = CloseRequest { known: Known::default(), session: b };
    bench.store.close(&bench.cluster, &request).await?;
    let (before, started) = (bench.spent().await?, Instant::now());
    bench.each(a, &moved, |operation, _| ChangeKind::Acquire { operation }).await?;
    Bench::report("acquiring 1000 orphans", 1, before, bench.spent().await?, started.elapsed());

    let small = ClusterName::new("takeover")?;
    bench.cluster = small;
    let survivor = bench.open("survivor", TTL).await?;
    bench.takeovers(survivor, free(0, 1000)).await?;
    bench.cluster = ClusterName::new("figures")?;

    for index in 0..4 {
        let part = free(11_000 + index * 22_000, 11_000 + (index + 1) * 22_000);
        bench.each(a, &part, |operation, _| ChangeKind::Acquire { operation }).await?;
    }
    let mut options = EtcdOptions::default();
    options.operation_timeout = Duration::from_secs(30);
    let (before, started) = (bench.spent().await?, Instant::now());
    let fresh = EtcdStore::connect(&bench.server.url(), options).await?;
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
    Bench::report(&what, 1, before, bench.spent().await?, started.elapsed());
    Ok(())
}
