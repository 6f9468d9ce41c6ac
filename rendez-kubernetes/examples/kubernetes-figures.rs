//! Prints what requests cost: requests to the API server by kind, bytes both ways (watches counted in), and the time they
//! take against the test kit's server, which answers at once and writes no disk. On a real one a write takes what its
//! etcd takes, and how many there are is the same.
//!
//! `cargo run --release -p rendez-kubernetes --example kubernetes-figures`.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rendez_core::{
    ChangeKind, ChangeOutcome, ChangeRequest, CloseRequest, ClusterName, ClusterSettings, FencingToken,
    HeartbeatRequest, Incarnation, Known, LeaseStore, NodeId, NodeInfo, OpenRequest, Opening, OperationId, SessionId,
    Slot, SlotChange, SnapshotRequest, WatchHint, WorkloadName,
};
use rendez_kubernetes::{KubernetesOptions, KubernetesStore};
use rendez_testkit::servers::{KubernetesServer, Verb};

const TTL: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_secs(2);
const BEATS: u32 = 500;
const TAKEOVERS: usize = 20;
/// The other nodes that watch the cluster, as in an ordinary one: each is sent every change.
const WATCHERS: usize = 2;

struct Bench {
    server: KubernetesServer,
    store: KubernetesStore,
    cluster: ClusterName,
    operations: u128,
}

/// What the server was asked so far.
#[derive(Debug, Clone, Copy)]
struct Asked {
    requests: [usize; Verb::ALL.len()],
    bytes: (usize, usize),
}

type Outcome<T> = Result<T, Box<dyn Error>>;
type Slots = Vec<(Slot, FencingToken)>;

impl Bench {
    fn asked(&self) -> Asked {
        Asked { requests: Verb::ALL.map(|verb| self.server.requests(verb)), bytes: self.server.bytes() }
    }

    fn report(&self, what: &str, per: u32, before: Asked, took: Duration) {
        let after = self.asked();
        let each = |after: usize, before: usize| (after - before) as f64 / f64::from(per);
        print!("{what:46} {:>9.1?}; each:", took / per);
        for (place, verb) in Verb::ALL.iter().enumerate() {
            let count = each(after.requests[place], before.requests[place]);
            if count > 0.0 {
                print!(" {count:.2} {},", verb.as_str());
            }
        }
        let (received, sent) = (each(after.bytes.0, before.bytes.0), each(after.bytes.1, before.bytes.1));
        println!(" {received:.0} bytes in, {sent:.0} out");
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

    /// Makes one change of each slot, one request after the other, and answers the tokens after it.
    async fn each(
        &mut self,
        session: SessionId,
        slots: &[(Slot, FencingToken)],
        mut kind: impl FnMut(OperationId, usize) -> ChangeKind,
    ) -> Outcome<Slots> {
        let most = self.store.capabilities().changes_max;
        let mut after = Vec::new();
        for (batch, part) in slots.chunks(most).enumerate() {
            let mut changes = Vec::new();
            for (place, (slot, token)) in part.iter().enumerate() {
                let kind = kind(self.operation(), batch * most + place);
                changes.push(SlotChange { slot: slot.clone(), token: *token, kind });
            }
            let request = ChangeRequest { known: Known::default(), session, changes };
            let reply = self.store.change(&self.cluster, &request).await?;
            for (outcome, change) in reply.outcomes.iter().zip(&request.changes) {
                match outcome {
                    ChangeOutcome::Done(Some(record)) => after.push((change.slot.clone(), record.token)),
                    other => return Err(format!("{}: {other:?}", change.slot).into()),
                }
            }
        }
        Ok(after)
    }

    async fn beats(&self, what: &str, session: SessionId) -> Outcome<()> {
        let mut request = HeartbeatRequest {
            known: Known::default(),
            session,
            since: None,
            changes_max: 4096,
            due_within: Duration::ZERO,
            info: None,
        };
        let stamp = self.store.heartbeat(&self.cluster, &request).await?.stamp;
        request.known.generation = Some(stamp.generation);
        request.since = Some(stamp.revision);
        let (before, started) = (self.asked(), Instant::now());
        for _ in 0..BEATS {
            self.store.heartbeat(&self.cluster, &request).await?;
        }
        self.report(what, BEATS, before, started.elapsed());
        Ok(())
    }

    /// A session that is not extended any more, and another node that waits for its end with the watch.
    async fn takeovers(&mut self, survivor: SessionId, mut slots: Slots) -> Outcome<()> {
        let mut after = Vec::new();
        for round in 0..TAKEOVERS {
            let dying = self.open(&format!("dying-{round}"), SHORT).await?;
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
            let lease = format!("rendez.{}.node.dying-{round}", self.cluster);
            loop {
                let hint = watch.next().await.ok_or("the watch ended")?;
                let is_gone = || !self.server.leases().iter().any(|it| it["metadata"]["name"] == lease.as_str());
                if hint == WatchHint::Everyone && is_gone() {
                    break;
                }
            }
            slots = self.each(survivor, &slots, |operation, _| ChangeKind::Acquire { operation }).await?;
            after.push(sent.elapsed().saturating_sub(SHORT));
            let release = |_, _| ChangeKind::Release { checkpoint: None, refuse_for: None };
            slots = self.each(survivor, &slots, release).await?;
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
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let server = KubernetesServer::start().await?;
    let mut options = KubernetesOptions::default();
    options.operation_timeout = Duration::from_secs(10);
    let connect = async || KubernetesStore::connect(&server.url(), options.clone()).await;
    let store = connect().await?;
    let cluster = ClusterName::new("figures")?;
    let mut watches = Vec::new();
    for _ in 0..WATCHERS {
        watches.push(connect().await?.watch(&cluster).await?);
    }
    let fresh = connect().await?;
    let mut bench = Bench { server, store, cluster, operations: 0 };
    let workload = WorkloadName::new("inbox")?;
    let free = |from: u32, to: u32| -> Slots {
        (from..to).map(|unit| (Slot::new(workload.clone(), unit), FencingToken::NONE)).collect()
    };
    let a = bench.open("a", TTL).await?;
    let b = bench.open("b", TTL).await?;
    println!("{} handles watch the cluster", WATCHERS + 1);
    let mut held = 0;
    for count in [10, 1000, 10_000] {
        bench.each(a, &free(held, count), |operation, _| ChangeKind::Acquire { operation }).await?;
        held = count;
        bench.beats(&format!("heartbeat of a node that holds {count}"), a).await?;
    }
    let thousand = free(10_000, 11_000);
    let (before, started) = (bench.asked(), Instant::now());
    let thousand = bench.each(a, &thousand, |operation, _| ChangeKind::Acquire { operation }).await?;
    bench.report("acquiring 1000 free slots", 1, before, started.elapsed());

    let offers: Vec<_> = (0..1000).map(|number| OperationId::from_bits(1 << 100 | number)).collect();
    let (before, started) = (bench.asked(), Instant::now());
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
    bench.report("offering, accepting, transferring 1000 slots", 1, before, started.elapsed());
    println!("{:46} {transferring:>9.1?}", "of which transferring");

    let request = CloseRequest { known: Known::default(), session: b };
    bench.store.close(&bench.cluster, &request).await?;
    let (before, started) = (bench.asked(), Instant::now());
    bench.each(a, &moved, |operation, _| ChangeKind::Acquire { operation }).await?;
    bench.report("acquiring 1000 orphans", 1, before, started.elapsed());

    let (before, started) = (bench.asked(), Instant::now());
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
    bench.report(&format!("a fresh handle's snapshot of {items} records"), 1, before, started.elapsed());
    drop(watches);

    bench.cluster = ClusterName::new("takeover")?;
    let survivor = bench.open("survivor", TTL).await?;
    bench.takeovers(survivor, free(0, 1000)).await
}
