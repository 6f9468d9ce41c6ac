//! Nodes that serve what they hold by lease, and clients that follow them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use rendez::{Coordinator, EngineConfig, Handle, LeaseStore, MemoryStore, SlotContext};
use rendez_core::FencingToken;
use rendez_router::*;
use tokio::sync::{Semaphore, watch};

use crate::cluster::{self, Carrier};
use crate::{LONG, until};

const UNITS: u32 = 12;

/// What requests write to: refuses an owner that another one has followed.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<BTreeMap<u32, (FencingToken, u64)>>>);

impl Sink {
    /// Adds one to the slot's number.
    fn add(&self, shard: u32, token: FencingToken) -> Result<u64, RequestError> {
        let mut slots = self.0.lock().unwrap();
        let slot = slots.entry(shard).or_default();
        if token < slot.0 {
            return Err(RequestError::handler("stale", format!("{token} after {}", slot.0)));
        }
        *slot = (token, slot.1 + 1);
        Ok(slot.1)
    }

    fn total(&self) -> u64 {
        self.0.lock().unwrap().values().map(|slot| slot.1).sum()
    }
}

/// A process: its part of the slots, and what serves them.
struct Member {
    handle: Handle,
    node: Node,
    slots: ServedSlots,
}

impl Member {
    async fn start(
        store: &MemoryStore,
        transport: impl ServerTransport,
        id: &str,
        config: EngineConfig,
        slots: ServedSlots,
    ) -> Self {
        let handle = Coordinator::builder()
            .store(store.clone())
            .cluster("users")
            .node_id(id)
            .workload("users", UNITS)
            .engine_config(config)
            .runner(slots.clone())
            .start()
            .await
            .unwrap();
        let node = Node::builder(transport).id(id).slots(slots.clone()).owners(owners(store));
        Self { handle, node: node.start().await.unwrap(), slots }
    }

    async fn shutdown(self) {
        self.handle.shutdown().await.unwrap();
        self.node.shutdown().await;
    }
}

fn owners(store: &MemoryStore) -> FollowedOwners {
    let store: Arc<dyn LeaseStore> = Arc::new(store.clone());
    FollowedOwners::follow(store, "users".parse().unwrap(), "users".parse().unwrap())
}

fn config() -> EngineConfig {
    let mut config = EngineConfig::for_ttl(Duration::from_secs(10));
    // Tests do not wait for calm.
    config.stabilizers.settling = Duration::ZERO;
    config.stabilizers.cooldown = Duration::ZERO;
    config.stabilizers.runtime_min = Duration::ZERO;
    config
}

/// Each request adds one to its slot's number.
fn adding(sink: &Sink) -> ServedSlots {
    let sink = sink.clone();
    ServedSlots::new(move |_: SlotContext| {
        let sink = sink.clone();
        async move {
            Ok::<_, BoxError>(move |ctx: RequestContext, request: Envelope| {
                let sink = sink.clone();
                async move {
                    // Requests take their time, so that slots leave while some run.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    let lease = ctx.lease().ok_or("no lease")?;
                    lease.check()?;
                    let number = sink.add(request.shard(), lease.token())?;
                    Ok::<_, BoxError>(number.to_string())
                }
            })
        }
    })
}

/// Callers that ask without a pause until they are told to end, and count what became of it.
struct Load {
    over: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    callers: Vec<tokio::task::JoinHandle<Vec<RequestError>>>,
}

impl Load {
    fn start(client: &Client, callers: u64) -> Self {
        let (over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let callers: Vec<_> = (0..callers)
            .map(|caller| {
                let (client, over, answered) = (client.clone(), over.clone(), answered.clone());
                tokio::spawn(async move {
                    let (mut dice, mut errors) = (fastrand::Rng::with_seed(caller), Vec::new());
                    while !over.load(Ordering::SeqCst) {
                        let key = format!("user-{}", dice.u32(..1000));
                        match client.request_key(&key, "Add", "").await {
                            Ok(_) => drop(answered.fetch_add(1, Ordering::SeqCst)),
                            Err(error) => errors.push(error),
                        }
                    }
                    errors
                })
            })
            .collect();
        Self { over, answered, callers }
    }

    fn answered(&self) -> usize {
        self.answered.load(Ordering::SeqCst)
    }

    async fn end(self) -> (usize, Vec<RequestError>) {
        self.over.store(true, Ordering::SeqCst);
        let mut errors = Vec::new();
        for caller in self.callers {
            errors.extend(caller.await.unwrap());
        }
        (self.answered.load(Ordering::SeqCst), errors)
    }
}

async fn rolling_update<T, F>(store: MemoryStore, transport: impl Fn() -> F)
where
    T: Transport,
    F: Future<Output = T>,
{
    let sink = Sink::default();
    let client = Client::builder(transport().await, UNITS).owners(owners(&store)).patience(LONG).ttl(LONG);
    let client = client.build().unwrap();
    let mut members = Vec::new();
    for number in 0..3 {
        let id = format!("node-{number}");
        members.push(Member::start(&store, transport().await, &id, config(), adding(&sink)).await);
    }
    until("all share", || members.iter().all(|member| !member.slots.shards().is_empty())).await;
    let load = Load::start(&client, 8);
    for (number, member) in members.iter_mut().enumerate() {
        let id = format!("node-{number}-new");
        let new = Member::start(&store, transport().await, &id, config(), adding(&sink)).await;
        until("the new one has a part", || !new.slots.shards().is_empty()).await;
        let before = load.answered();
        until("requests are answered", || load.answered() > before + 50).await;
        std::mem::replace(member, new).shutdown().await;
    }
    let before = load.answered();
    until("requests are answered", || load.answered() > before + 50).await;
    let (answered, errors) = load.end().await;
    assert_eq!(errors, [], "of {answered}");
    // Each has run once.
    assert_eq!(sink.total(), answered as u64);
    for member in members {
        member.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_update_fails_no_request() {
    let transport = MemoryTransport::new();
    rolling_update(MemoryStore::new(), || std::future::ready(transport.clone())).await;
}

#[cfg(feature = "nats")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_update_fails_no_request_over_nats() {
    let place = crate::nats::Place::new().await;
    rolling_update(MemoryStore::new(), || place.transport()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_crash_each_failure_is_told_and_nothing_runs_under_an_old_token() {
    let (store, transport, sink) = (MemoryStore::new(), MemoryTransport::new(), Sink::default());
    let short = EngineConfig::for_ttl(Duration::from_secs(3));
    let client = Client::builder(transport.clone(), UNITS).owners(owners(&store)).patience(Duration::from_millis(50));
    let client = client.build().unwrap();
    let one = Member::start(&store, transport.clone(), "node-1", short.clone(), adding(&sink)).await;
    until("one has all", || one.slots.shards().len() == UNITS as usize).await;
    let two = Member::start(&store, transport.clone(), "node-2", short, adding(&sink)).await;
    until("both share", || one.slots.shards().len() == two.slots.shards().len()).await;
    let load = Load::start(&client, 4);
    until("requests are answered", || load.answered() > 50).await;
    // It ends without a word: its leases stay until they expire.
    drop(one);
    until("the other has all", || two.slots.shards().len() == UNITS as usize).await;
    let before = load.answered();
    until("requests are answered", || load.answered() > before + 200).await;
    let (answered, errors) = load.end().await;
    assert!(!errors.is_empty(), "for a while nobody owned half of the slots");
    for error in &errors {
        let told = matches!(
            error,
            RequestError::NoOwner { .. } | RequestError::NoSuchNode { .. } | RequestError::NotOwner { .. }
        );
        assert!(told || error.ran() == Ran::Maybe, "{error}");
    }
    let maybe = errors.iter().filter(|error| error.ran() == Ran::Maybe).count();
    let ran = usize::try_from(sink.total()).unwrap();
    assert!((answered..=answered + maybe).contains(&ran), "{ran} ran, {answered} answered, {maybe} perhaps");
    two.shutdown().await;
}

#[tokio::test]
async fn the_wrong_node_refuses_and_points_to_the_owner() {
    let (store, transport, sink) = (MemoryStore::new(), MemoryTransport::new(), Sink::default());
    let one = Member::start(&store, transport.clone(), "node-1", config(), adding(&sink)).await;
    until("one has all", || one.slots.shards().len() == UNITS as usize).await;
    let two = Member::start(&store, transport.clone(), "node-2", config(), adding(&sink)).await;
    until("both share", || !two.slots.shards().is_empty() && one.slots.shards().len() == 6).await;
    let shard = two.slots.shards()[0];
    let known = owners(&store);
    until("it is known", || known.owner(shard).is_some_and(|owner| owner.node.as_str() == "node-2")).await;
    let ask = || async {
        transport.request(&Address::Node("node-1".parse().unwrap()), Envelope::new(shard, "Add", "")).await
    };
    let expected = known.owner(shard).unwrap();
    let refused = RequestError::NotOwner { shard, holder: Some(expected.node), token: Some(expected.token) };
    let mut last = Ok(Bytes::new());
    for _ in 0..1000 {
        last = ask().await;
        if last == Err(refused.clone()) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The node that was asked may hear of it a moment later than this test; it never runs the request.
    assert_eq!(last, Err(refused));
    assert_eq!(sink.total(), 0);
    assert_eq!(two.node.info().shards, two.slots.shards());
    one.shutdown().await;
    two.shutdown().await;
}

/// Owners as somebody knows them who has not heard of anything for long.
struct Stale(watch::Sender<u64>, &'static str);

impl Owners for Stale {
    fn owner(&self, _: u32) -> Option<Owner> {
        Some(Owner { node: self.1.parse().unwrap(), token: FencingToken::new(1) })
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }
}

#[tokio::test]
async fn a_notification_that_reaches_the_wrong_node_is_tried_at_the_owner() {
    let (store, transport, sink) = (MemoryStore::new(), MemoryTransport::new(), Sink::default());
    let one = Member::start(&store, transport.clone(), "node-1", config(), adding(&sink)).await;
    until("one has all", || one.slots.shards().len() == UNITS as usize).await;
    let two = Member::start(&store, transport.clone(), "node-2", config(), adding(&sink)).await;
    until("both share", || two.slots.shards().len() == 6 && one.slots.shards().len() == 6).await;
    let stale = Stale(watch::Sender::new(0), "node-1");
    let client = Client::builder(transport.clone(), UNITS).owners(stale).patience(LONG).ttl(LONG).build().unwrap();
    for shard in 0..UNITS {
        client.notify_shard(shard, "Add", "").await.unwrap();
    }
    until("all have run", || sink.total() == u64::from(UNITS)).await;
    let slots = sink.0.lock().unwrap().clone();
    assert!((0..UNITS).all(|shard| slots[&shard].1 == 1), "{slots:?}");
    // Nobody waits, so it is bounded how many there are.
    let nobody = Stale(watch::Sender::new(0), "node-3");
    let client = Client::builder(transport, UNITS).owners(nobody).patience(LONG).max_notifications(2).build().unwrap();
    for _ in 0..2 {
        client.notify_shard(3, "Add", "").await.unwrap();
    }
    let full = RequestError::Overloaded { what: "the client, with notifications".to_owned(), most: 2 };
    assert_eq!(client.notify_shard(3, "Add", "").await, Err(full));
    one.shutdown().await;
    two.shutdown().await;
}

async fn notifications_while_slots_move<T, F>(transport: impl Fn() -> F)
where
    T: Transport,
    F: Future<Output = T>,
{
    const EACH: u64 = 400;
    let (store, sink) = (MemoryStore::new(), Sink::default());
    let client = Client::builder(transport().await, UNITS).owners(owners(&store)).patience(LONG).ttl(LONG);
    let client = client.build().unwrap();
    let mut now = Member::start(&store, transport().await, "node-0", config(), adding(&sink)).await;
    until("it has all", || now.slots.shards().len() == UNITS as usize).await;
    // The client may hear of it a moment later.
    while client.request_shard(0, "Add", "").await.is_err() {}
    let begun = sink.total();
    for number in 1..4 {
        let telling = tokio::spawn({
            let client = client.clone();
            async move {
                for told in 0..EACH {
                    client.notify_key(&format!("user-{told}"), "Add", "").await.unwrap();
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        });
        let new = Member::start(&store, transport().await, &format!("node-{number}"), config(), adding(&sink)).await;
        until("the new one has a part", || !new.slots.shards().is_empty()).await;
        std::mem::replace(&mut now, new).shutdown().await;
        telling.await.unwrap();
    }
    until("all have run", || sink.total() >= begun + 3 * EACH).await;
    now.shutdown().await;
    assert_eq!(sink.total(), begun + 3 * EACH);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_notification_is_lost_while_slots_move() {
    let transport = MemoryTransport::new();
    notifications_while_slots_move(|| std::future::ready(transport.clone())).await;
}

#[cfg(feature = "nats")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_notification_is_lost_while_slots_move_over_nats() {
    let place = crate::nats::Place::new().await;
    notifications_while_slots_move(|| place.transport()).await;
}

/// An idempotency key is the node's to remember, for as long as it has the slot, and the handler's beyond that.
#[tokio::test]
async fn answers_are_remembered_for_one_tenure_of_a_slot() {
    let (store, transport, sink) = (MemoryStore::new(), MemoryTransport::new(), Sink::default());
    let one = Member::start(&store, transport.clone(), "node-1", config(), adding(&sink)).await;
    until("one has all", || one.slots.shards().len() == UNITS as usize).await;
    let client = Client::builder(transport.clone(), UNITS).owners(owners(&store)).patience(LONG).ttl(LONG);
    let once = client.build().unwrap().shard(3).with_idempotency_key("k");
    for _ in 0..2 {
        assert_eq!(once.request_as("Add", "").await.unwrap(), "1");
    }
    let two = Member::start(&store, transport, "node-2", config(), adding(&sink)).await;
    one.shutdown().await;
    for _ in 0..2 {
        assert_eq!(once.request_as("Add", "").await.unwrap(), "2");
    }
    assert_eq!(sink.total(), 2);
    two.shutdown().await;
}

#[tokio::test]
async fn slots_have_handlers_of_their_own() {
    let node = Node::builder(MemoryTransport::new()).slots(adding(&Sink::default())).handler(crate::echo);
    assert_eq!(node.start().await.unwrap_err(), NodeError::HandlerBesideSlots);
}

#[tokio::test]
async fn without_an_owner_a_request_fails_soon() {
    let (store, transport) = (MemoryStore::new(), MemoryTransport::new());
    let client = Client::builder(transport, UNITS).owners(owners(&store)).patience(Duration::from_millis(30));
    let client = client.build().unwrap();
    let error = client.request_shard(3, "Add", "").await.unwrap_err();
    assert!(matches!(error, RequestError::NoOwner { shard: 3, millis } if millis >= 29), "{error}");
    assert_eq!(error.ran(), Ran::No);
    assert_eq!(client.notify_shard(3, "Add", "").await, Err(RequestError::NoOwner { shard: 3, millis: 0 }));
}

/// A request that never ends: the slot leaves all the same when the stop budget is over, and the caller hears of it.
#[tokio::test]
async fn a_request_that_outlasts_the_stop_budget_is_dropped() {
    let (store, transport) = (MemoryStore::new(), MemoryTransport::new());
    let (begun, dropped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    struct Drops(Arc<AtomicUsize>);
    impl Drop for Drops {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let (counted, gone) = (begun.clone(), dropped.clone());
    let slots = ServedSlots::new(move |_: SlotContext| {
        let (begun, dropped) = (counted.clone(), gone.clone());
        async move {
            Ok::<_, BoxError>(move |_: RequestContext, _: Envelope| {
                begun.fetch_add(1, Ordering::SeqCst);
                let drops = Drops(dropped.clone());
                async move {
                    let _drops = drops;
                    std::future::pending::<()>().await;
                    Ok::<_, BoxError>("")
                }
            })
        }
    });
    let member = Member::start(&store, transport.clone(), "node-1", config(), slots).await;
    until("it has all", || member.slots.shards().len() == UNITS as usize).await;
    let client = Client::builder(transport, UNITS).owners(owners(&store)).ttl(LONG).build().unwrap();
    let request = tokio::spawn(async move { client.request_shard(3, "Wait", "").await });
    until("it runs", || begun.load(Ordering::SeqCst) == 1).await;
    member.handle.shutdown().await.unwrap();
    assert_eq!(dropped.load(Ordering::SeqCst), 1);
    assert_eq!(request.await.unwrap(), Err(RequestError::OwnershipLost { shard: 3 }));
    member.node.shutdown().await;
}

/// In memory a handler runs in its caller's task, which does not end with the node's runtime.
#[tokio::test]
async fn a_node_that_dies_takes_its_requests_along() {
    let (store, transport, begun) = (MemoryStore::new(), MemoryTransport::new(), Arc::new(AtomicUsize::new(0)));
    let counted = begun.clone();
    let slots = ServedSlots::new(move |_: SlotContext| {
        let begun = counted.clone();
        async move {
            Ok::<_, BoxError>(move |_: RequestContext, _: Envelope| {
                begun.fetch_add(1, Ordering::SeqCst);
                std::future::pending::<Result<Bytes, BoxError>>()
            })
        }
    });
    let carrier = Carrier::Memory(transport.clone());
    let member = cluster::Member::start(&store, &carrier, "node-1".to_owned(), slots).await.unwrap();
    until("it has all", || member.held() == cluster::SLOTS as usize).await;
    let client = Client::builder(transport, cluster::SLOTS).owners(owners(&store)).ttl(LONG).build().unwrap();
    let request = tokio::spawn(async move { client.request_shard(3, "Wait", "").await });
    until("it runs", || begun.load(Ordering::SeqCst) == 1).await;
    member.kill();
    assert_eq!(request.await.unwrap(), Err(RequestError::OwnershipLost { shard: 3 }));
}

/// A slot that leaves waits for its requests, and its handler is closed before the lease is handed over.
#[tokio::test]
async fn a_slot_leaves_after_its_last_request_and_the_closing_of_its_handler() {
    struct Slow {
        go: Arc<Semaphore>,
        closed: Arc<AtomicUsize>,
        begun: Arc<AtomicUsize>,
    }
    #[async_trait::async_trait]
    impl Handler for Slow {
        async fn handle(&self, _: RequestContext, _: Envelope) -> Result<Bytes, RequestError> {
            self.begun.fetch_add(1, Ordering::SeqCst);
            self.go.acquire().await.unwrap().forget();
            Ok("done".into())
        }

        async fn close(&self) {
            self.closed.fetch_add(1, Ordering::SeqCst);
        }
    }
    let (store, transport) = (MemoryStore::new(), MemoryTransport::new());
    let go = Arc::new(Semaphore::new(0));
    let (closed, begun) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (its_go, its_closed, its_begun) = (go.clone(), closed.clone(), begun.clone());
    let slots = ServedSlots::new(move |_: SlotContext| {
        let slow = Slow { go: its_go.clone(), closed: its_closed.clone(), begun: its_begun.clone() };
        async move { Ok::<_, BoxError>(slow) }
    });
    let member = Member::start(&store, transport.clone(), "node-1", config(), slots).await;
    until("it has all", || member.slots.shards().len() == UNITS as usize).await;
    let client = Client::builder(transport, UNITS).owners(owners(&store)).ttl(LONG).build().unwrap();
    let request = tokio::spawn(async move { client.request_shard(3, "Wait", "").await });
    until("it runs", || begun.load(Ordering::SeqCst) == 1).await;
    let shutdown = {
        let handle = member.handle.clone();
        tokio::spawn(async move { handle.shutdown().await })
    };
    until("the others are closed", || closed.load(Ordering::SeqCst) == UNITS as usize - 1).await;
    assert!(!shutdown.is_finished() && !request.is_finished());
    go.add_permits(1);
    assert_eq!(request.await.unwrap().unwrap(), "done");
    shutdown.await.unwrap().unwrap();
    assert_eq!(closed.load(Ordering::SeqCst), UNITS as usize);
    member.node.shutdown().await;
}
