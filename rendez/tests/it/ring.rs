//! Nodes of a ring: how they agree, what their coming and going moves, and what a cut network does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use rendez::core::placement::{Policy, VirtualNodes};
use rendez::core::{
    AdminOutcome, AdminRequest, Beat, ChangeReply, ChangeRequest, CloseRequest, HeartbeatRequest, OpenRequest, Opening,
    Record as StoreRecord, RecordKey, SnapshotPage, SnapshotRequest,
};
use rendez::{
    Capabilities, ClusterName, CommandError, FencingToken, LeaseStore, Measurement, MemoryStore, Metrics, NodeId,
    OverrunPolicy, Ring, RingBuilder, RingChange, RingError, RingSizes, SlotContext, StoreError, Watch, read_cluster,
    shard_of_key,
};
use rendez_testkit::checker::{Checker, Report};
use rendez_testkit::clock;
use rendez_testkit::records::{Record, RecordKind};
use tokio::sync::watch;

use crate::support::{PATIENCE, eventually};

const RING: &str = "orders";
const PARTITIONS: u32 = 128;
const TTL: Duration = Duration::from_secs(6);
/// How often a runner writes down that it still runs.
const ALIVE: Duration = Duration::from_millis(50);

/// A node's way to the store, which can be cut.
#[derive(Clone)]
struct Link {
    store: MemoryStore,
    open: watch::Sender<bool>,
}

impl Link {
    fn to(store: &MemoryStore) -> Self {
        Self { store: store.clone(), open: watch::Sender::new(true) }
    }

    fn cut(&self) {
        self.open.send_replace(false);
    }

    fn heal(&self) {
        self.open.send_replace(true);
    }

    /// Requests that are under way when it is cut, and those that come then, are never answered.
    async fn over<T>(&self, request: impl Future<Output = T>) -> T {
        let mut open = self.open.subscribe();
        if *open.borrow_and_update() {
            tokio::select! {
                answer = request => return answer,
                _ = open.changed() => {}
            }
        }
        std::future::pending().await
    }
}

#[async_trait]
impl LeaseStore for Link {
    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }

    async fn open(&self, cluster: &ClusterName, request: &OpenRequest) -> Result<Opening, StoreError> {
        self.over(self.store.open(cluster, request)).await
    }

    async fn heartbeat(&self, cluster: &ClusterName, request: &HeartbeatRequest) -> Result<Beat, StoreError> {
        self.over(self.store.heartbeat(cluster, request)).await
    }

    async fn close(&self, cluster: &ClusterName, request: &CloseRequest) -> Result<(), StoreError> {
        self.over(self.store.close(cluster, request)).await
    }

    async fn change(&self, cluster: &ClusterName, request: &ChangeRequest) -> Result<ChangeReply, StoreError> {
        self.over(self.store.change(cluster, request)).await
    }

    async fn snapshot(&self, cluster: &ClusterName, request: &SnapshotRequest) -> Result<SnapshotPage, StoreError> {
        self.over(self.store.snapshot(cluster, request)).await
    }

    async fn administer(&self, cluster: &ClusterName, request: &AdminRequest) -> Result<AdminOutcome, StoreError> {
        self.over(self.store.administer(cluster, request)).await
    }

    async fn watch(&self, cluster: &ClusterName) -> Result<Box<dyn Watch>, StoreError> {
        self.over(self.store.watch(cluster)).await
    }
}

/// What the runners write down themselves.
#[derive(Clone, Default)]
struct Records(Arc<Mutex<String>>);

impl Records {
    fn write(&self, kind: RecordKind, ctx: &SlotContext) {
        let (slot, token, node) = (ctx.slot().clone(), ctx.token(), ctx.node().clone());
        // The time is taken in here, so that the lines are in order.
        let mut text = self.0.lock().unwrap();
        let record = Record { kind, slot, token, node, pid: std::process::id(), at: clock::now() };
        *text += &format!("{record}\n");
    }

    async fn run(self, ctx: SlotContext) {
        self.write(RecordKind::Begin, &ctx);
        while tokio::time::timeout(ALIVE, ctx.cancelled()).await.is_err() {
            self.write(RecordKind::Alive, &ctx);
        }
        self.write(RecordKind::End, &ctx);
    }

    fn report(&self) -> Report {
        let mut checker = Checker::new().allow_restarts();
        checker.read("records", &self.0.lock().unwrap());
        checker.finish()
    }
}

fn builder(store: impl LeaseStore) -> RingBuilder {
    let builder = Ring::builder().store(store).ring_id(RING).partitions(PARTITIONS).session_ttl(TTL);
    builder.connect_timeout(PATIENCE).configure(|node| node.overrun_policy(OverrunPolicy::Report))
}

async fn join(store: impl LeaseStore, node: &str, records: &Records) -> Ring {
    let records = records.clone();
    let builder = builder(store).node_id(node).runner(move |ctx| records.clone().run(ctx));
    builder.start().await.unwrap()
}

/// Waits until these nodes own all partitions, each of them what the plan gives it.
async fn settled(store: &MemoryStore, nodes: &[&Ring]) -> BTreeMap<u32, (NodeId, FencingToken)> {
    let look = async {
        loop {
            let cluster = nodes[0].id().cluster();
            let mut view = read_cluster(store, cluster, PATIENCE).await.unwrap();
            let planned: Vec<_> = view.planner().assignments().map(|(slot, node)| (slot.unit, node.cloned())).collect();
            let owned: BTreeMap<_, _> = nodes.iter().flat_map(|node| tokens(node)).collect();
            let count: usize = nodes.iter().map(|node| node.owned_partitions().len()).sum();
            let rest = planned.iter().all(|(unit, node)| owned.get(unit).map(|(node, _)| node) == node.as_ref());
            if rest && count == owned.len() && count == PARTITIONS as usize && view.sessions().count() == nodes.len() {
                return owned;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, look).await.unwrap_or_else(|_| panic!("never at rest: {nodes:?}"))
}

fn tokens(ring: &Ring) -> Vec<(u32, (NodeId, FencingToken))> {
    let owned = ring.owned_partitions();
    owned.tokens().map(|(partition, token)| (partition, (ring.node().clone(), token))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_start_at_once_on_an_empty_store_share_all_partitions() {
    let (store, records) = (MemoryStore::new(), Records::default());
    let names = ["a", "b", "c", "d", "e"];
    let joining = names.map(|name| {
        let (store, records) = (store.clone(), records.clone());
        tokio::spawn(async move { join(store, name, &records).await })
    });
    let mut rings = Vec::new();
    for ring in joining {
        rings.push(ring.await.unwrap());
    }
    let owners = settled(&store, &rings.iter().collect::<Vec<_>>()).await;
    let used: BTreeSet<_> = owners.values().map(|(node, _)| node.as_str()).collect();
    assert_eq!(used, names.into());
    for ring in &rings {
        ring.leave().await.unwrap();
    }
    let report = records.report();
    report.assert_good();
    assert_eq!(report.summary.slots, PARTITIONS as usize);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_joins_or_leaves_moves_its_own_partitions_and_disturbs_no_other() {
    let (store, records) = (MemoryStore::new(), Records::default());
    let (a, b) = (join(store.clone(), "a", &records).await, join(store.clone(), "b", &records).await);
    let before = settled(&store, &[&a, &b]).await;
    let c = join(store.clone(), "c", &records).await;
    let with_c = settled(&store, &[&a, &b, &c]).await;
    let moved: Vec<_> = before.iter().filter(|(partition, owner)| with_c[partition] != **owner).collect();
    assert!(!moved.is_empty() && moved.len() < PARTITIONS as usize, "{} moved", moved.len());
    // What did not go to the new node is where it was, and under its old token: nobody touched it.
    for (partition, owner) in &moved {
        assert_eq!(with_c[partition].0.as_str(), "c", "{partition} went from {owner:?} to {:?}", with_c[partition]);
    }
    b.leave().await.unwrap();
    let without_b = settled(&store, &[&a, &c]).await;
    for (partition, owner) in &with_c {
        let stays = without_b[partition] == *owner;
        assert_eq!(stays, owner.0.as_str() != "b", "{partition}: {owner:?}, then {:?}", without_b[partition]);
    }
    drop((a, c));
    records.report().assert_good();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_cut_off_loses_its_partitions_and_joins_again_by_itself() {
    let (store, records) = (MemoryStore::new(), Records::default());
    let link = Link::to(&store);
    let cut = join(link.clone(), "cut", &records).await;
    let (b, c) = (join(store.clone(), "b", &records).await, join(store.clone(), "c", &records).await);
    let before = settled(&store, &[&cut, &b, &c]).await;
    let mine: BTreeSet<u32> = cut.owned_partitions().iter().collect();
    assert!(!mine.is_empty());

    link.cut();
    eventually("the node to stop what it can no longer hold", || cut.owned_partitions().is_empty()).await;
    let session = cut.handle().session_changes();
    eventually("the node to say that it has no session", || session.borrow().is_none()).await;
    let meanwhile = settled(&store, &[&b, &c]).await;
    for (partition, owner) in &before {
        let (node, token) = &meanwhile[partition];
        if mine.contains(partition) {
            assert!(node.as_str() != "cut" && *token > owner.1, "{partition}: {owner:?}, then {node} {token}");
        } else {
            assert_eq!((node, token), (&owner.0, &owner.1), "{partition} was touched");
        }
    }

    link.heal();
    let after = settled(&store, &[&cut, &b, &c]).await;
    assert!(session.borrow().is_some());
    let again: BTreeSet<u32> = cut.owned_partitions().iter().collect();
    assert_eq!(again, mine, "the same node has the same places on the circle");
    assert!(mine.iter().all(|partition| after[partition].1 > meanwhile[partition].1));
    drop((cut, b, c));
    // No partition ran twice, whoever thought what of whom.
    records.report().assert_good();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sizes_are_agreed_once_and_checked() {
    let store = MemoryStore::new();
    // Of those that disagree from the very first, one wins, and the others are told what it has set.
    let different = [(64, 4), (64, 8), (128, 8), (256, 2)].map(|(partitions, virtual_nodes)| {
        let builder = builder(store.clone()).partitions(partitions).virtual_nodes(virtual_nodes);
        tokio::spawn(async move { (partitions, virtual_nodes, builder.start().await) })
    });
    let (mut first, mut refused) = (None, Vec::new());
    for start in different {
        match start.await.unwrap() {
            (_, _, Ok(ring)) => assert!(first.replace(ring).is_none(), "two sizes at once"),
            (partitions, virtual_nodes, Err(error)) => refused.push((partitions, virtual_nodes, error)),
        }
    }
    let first = first.expect("somebody is first");
    let agreed = first.sizes();
    assert_eq!(refused.len(), 3);
    for (partitions, virtual_nodes, error) in refused {
        let wanted = RingSizes { partitions, virtual_nodes: VirtualNodes::new(virtual_nodes).unwrap() };
        assert_eq!(error, RingError::Sizes { ring: first.id().clone(), wanted, agreed });
        let said = format!("{} partitions and {} virtual nodes", agreed.partitions, agreed.virtual_nodes.get());
        assert!(error.to_string().contains(&said), "{error}");
    }
    let same = || builder(store.clone()).partitions(agreed.partitions).virtual_nodes(agreed.virtual_nodes.get());
    let longer = same().session_ttl(TTL * 2).start().await.unwrap_err();
    let expected = RingError::SessionTtl { ring: first.id().clone(), wanted: TTL * 2, longest: TTL };
    assert_eq!(longer, expected);
    let shorter = same().session_ttl(TTL / 2).start().await.unwrap();
    assert_ne!(shorter.node(), first.node(), "ids that nobody gave differ");
    // And settings that differ hold no move back.
    assert_eq!(shorter.handle().status().await.unwrap().settings_differ, []);
    first.leave().await.unwrap();
    shorter.leave().await.unwrap();
    // It is the ring that has agreed, not its nodes: with none left it holds all the same.
    let late = builder(store.clone()).partitions(agreed.partitions + 1).start().await.unwrap_err();
    assert!(matches!(late, RingError::Sizes { .. }), "{late}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_is_refused_and_leaves_nothing_behind() {
    let store = MemoryStore::new();
    let refused = |builder: RingBuilder| async move { builder.start().await.unwrap_err() };
    assert_eq!(refused(Ring::builder().ring_id("r")).await, RingError::Missing { what: "store" });
    assert_eq!(refused(Ring::builder().store(store.clone())).await, RingError::Missing { what: "ring_id" });
    assert!(matches!(refused(builder(store.clone()).ring_id("my-ring")).await, RingError::RingId(_)));
    assert!(matches!(refused(builder(store.clone()).node_id("")).await, RingError::NodeId(_)));
    for partitions in [0, rendez::PARTITIONS_MAX + 1] {
        assert_eq!(refused(builder(store.clone()).partitions(partitions)).await, RingError::Partitions { partitions });
    }
    for virtual_nodes in [0, 1025] {
        let error = refused(builder(store.clone()).virtual_nodes(virtual_nodes)).await;
        assert!(matches!(error, RingError::VirtualNodes { .. }), "{error}");
    }
    assert!(matches!(refused(builder(store.clone()).session_ttl(Duration::ZERO)).await, RingError::Start(_)));
    assert_eq!(store.inspect(&RING.parse().unwrap(), |model, _| model.revision()), None, "the store was touched");

    // A cluster that is no ring stays as it is.
    let other = rendez::Coordinator::builder().store(store.clone()).cluster(RING).node_id("n");
    let other = other.connect_timeout(PATIENCE).start().await.unwrap();
    let error = refused(builder(store.clone())).await;
    assert!(matches!(&error, RingError::NotARing { ring } if ring.as_str() == RING), "{error}");
    let view = read_cluster(&store, other.cluster(), PATIENCE).await.unwrap();
    assert_eq!(view.record(&RecordKey::Workload(rendez::PARTITIONS.parse().unwrap())), None);
    other.shutdown().await.unwrap();

    // Nor does a node join that is never answered.
    let link = Link::to(&MemoryStore::new());
    link.cut();
    let error = refused(builder(link).connect_timeout(Duration::from_millis(100))).await;
    assert!(matches!(error, RingError::Store { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_keys_and_changes_can_be_asked_for() {
    let store = MemoryStore::new();
    let a = builder(store.clone()).node_id("a").start().await.unwrap();
    let mut changes = a.changes();
    let mut known: BTreeMap<u32, FencingToken> = BTreeMap::new();
    let follow = |known: &mut BTreeMap<u32, FencingToken>, change| match change {
        RingChange::Gained { partition, token } => {
            assert!(known.insert(partition, token).is_none(), "{partition} twice");
        }
        RingChange::Lost { partition, token } => assert_eq!(known.remove(&partition), Some(token)),
    };
    while known.len() < PARTITIONS as usize {
        follow(&mut known, changes.next().await.unwrap());
    }
    let b = builder(store.clone()).node_id("b").start().await.unwrap();
    let owners = settled(&store, &[&a, &b]).await;
    let of_a = |owners: &BTreeMap<u32, (NodeId, FencingToken)>| -> BTreeMap<u32, FencingToken> {
        let mine = owners.iter().filter(|(_, (node, _))| node == a.node());
        mine.map(|(partition, (_, token))| (*partition, *token)).collect()
    };
    while known != of_a(&owners) {
        follow(&mut known, changes.next().await.unwrap());
    }
    for (partition, (node, token)) in &owners {
        // What a node knows of others' partitions comes with its heartbeats.
        let told = async {
            while a.node_of_partition(*partition).await.unwrap().as_ref() != Some(node) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, told).await.expect("it hears of every owner");
        assert_eq!(a.lease(*partition).map(|lease| lease.token()), (node == a.node()).then_some(*token));
        assert_eq!(a.owned_partitions().contains(*partition), node == a.node());
    }
    let beyond = a.node_of_partition(PARTITIONS).await;
    assert!(matches!(&beyond, Err(CommandError::Invalid { what }) if what.contains("0 to 127")), "{beyond:?}");
    for key in ["", "customer-17", "schlüssel 🔑"] {
        assert_eq!(a.partition_of_key(key), shard_of_key(key, PARTITIONS, ""));
        assert_eq!(a.partition_of_key(key), b.partition_of_key(key));
    }
    a.leave().await.unwrap();
    while let Some(change) = changes.next().await {
        follow(&mut known, change);
    }
    assert_eq!(known, BTreeMap::new());
    assert!(a.changes().next().await.is_none() && a.owned_partitions().is_empty());
    assert!(matches!(a.node_of_partition(0).await, Err(CommandError::Stopped { .. })));
    b.leave().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ring_is_two_records_that_anybody_may_read() {
    let store = MemoryStore::new();
    let ring = builder(store.clone()).virtual_nodes(16).start().await.unwrap();
    let view = read_cluster(&store, ring.id().cluster(), PATIENCE).await.unwrap();
    assert_eq!(RingSizes::of(&view), Some(ring.sizes()));
    let record = view.record(&RecordKey::Workload(rendez::PARTITIONS.parse().unwrap())).unwrap();
    let StoreRecord::Workload(workload) = &record.record else { panic!("{record:?}") };
    assert_eq!((workload.units, workload.policy), (PARTITIONS, Some(Policy::Ring(VirtualNodes::new(16).unwrap()))));
    assert_eq!(view.settings().unwrap().session_ttl_max, TTL);
    ring.leave().await.unwrap();
}

#[derive(Default)]
struct Numbers(Mutex<BTreeMap<String, f64>>);

impl Metrics for Numbers {
    fn record(&self, measured: Measurement<'_>) {
        let name = format!("{}{:?}", measured.metric.name, measured.labels);
        self.0.lock().unwrap().insert(name, measured.value);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ring_tells_its_renewals_its_partitions_and_its_events_as_numbers() {
    let numbers = Arc::new(Numbers::default());
    let hook = numbers.clone();
    let ring = builder(MemoryStore::new()).configure(move |node| node.metrics(hook)).start().await.unwrap();
    let value = |name: &str| numbers.0.lock().unwrap().get(name).copied();
    eventually("all partitions", || value("rendez_slots_running[]") == Some(f64::from(PARTITIONS))).await;
    ring.leave().await.unwrap();
    for name in ["rendez_store_call_seconds[\"heartbeat\", \"ok\"]", "rendez_events_total[\"acquired\"]"] {
        assert!(value(name).is_some(), "{name} of {:?}", numbers.0);
    }
    assert_eq!(value("rendez_slots_running[]"), Some(0.0));
}
