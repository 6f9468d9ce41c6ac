//! Nodes of one service that are added, drained and killed while callers ask. Shared by the tests and by the example that
//! prints figures.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rendez::{Coordinator, EngineConfig, Handle, LeaseStore, MemoryStore, SlotContext};
use rendez_router::{
    BoxError, Client, Envelope, FollowedOwners, MemoryTransport, Node, RequestContext, RequestError, ServedSlots,
};
#[cfg(feature = "nats")]
use rendez_router::{NatsTransport, async_nats};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

use crate::ledger::{Asked, Book, Ledger, Promise};

/// The slots of the service.
pub(crate) const SLOTS: u32 = 32;

/// The keys that callers ask for.
const KEYS: u32 = 1000;

/// So long a killed node's leases last.
const SESSION_TTL: Duration = Duration::from_secs(6);

/// So long a request may take. Longer than it takes to replace a node that was killed.
const REQUEST_TTL: Duration = Duration::from_secs(20);

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(90);

/// What carries the requests.
#[derive(Clone)]
pub(crate) enum Carrier {
    Memory(MemoryTransport),
    #[cfg(feature = "nats")]
    Nats {
        url: String,
        prefix: String,
    },
}

impl Carrier {
    /// A node, over a connection of its own.
    async fn node(&self) -> Result<rendez_router::NodeBuilder, BoxError> {
        Ok(match self {
            Self::Memory(transport) => Node::builder(transport.clone()),
            #[cfg(feature = "nats")]
            Self::Nats { url, prefix } => Node::builder(NatsTransport::new(async_nats::connect(url).await?, prefix)?),
        })
    }

    async fn client(&self) -> Result<rendez_router::ClientBuilder, BoxError> {
        Ok(match self {
            Self::Memory(transport) => Client::builder(transport.clone(), SLOTS),
            #[cfg(feature = "nats")]
            Self::Nats { url, prefix } => {
                Client::builder(NatsTransport::new(async_nats::connect(url).await?, prefix)?, SLOTS)
            }
        })
    }
}

/// A process of the service, as far as one process can have several: everything of it runs in a runtime of its own.
pub(crate) struct Member {
    handle: Handle,
    node: Option<Node>,
    slots: ServedSlots,
    runtime: Option<Runtime>,
}

impl Member {
    pub(crate) async fn start(
        store: &MemoryStore,
        carrier: &Carrier,
        id: String,
        slots: ServedSlots,
    ) -> Result<Self, BoxError> {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (store, carrier, own) = (store.clone(), carrier.clone(), slots.clone());
        let started = runtime.spawn(async move {
            let handle = Coordinator::builder()
                .store(store.clone())
                .cluster("users")
                .node_id(&id)
                .workload("users", SLOTS)
                .engine_config(config())
                .runner(own.clone())
                .start()
                .await?;
            let node = carrier.node().await?.id(&id).slots(own).owners(owners(&store)?).start().await?;
            Ok::<_, BoxError>((handle, node))
        });
        let (handle, node) = started.await??;
        Ok(Self { handle, node: Some(node), slots, runtime: Some(runtime) })
    }

    /// Everything of it ends at once, at its next await point, and without a word to anybody.
    pub(crate) fn kill(self) {
        drop(self);
    }

    /// Hands its slots over, and ends.
    async fn drain(mut self) -> Result<(), BoxError> {
        self.handle.drain(true).await?;
        until("it has nothing left", || self.slots.shards().is_empty()).await?;
        self.shutdown().await
    }

    pub(crate) async fn shutdown(&mut self) -> Result<(), BoxError> {
        self.handle.shutdown().await?;
        if let Some(node) = self.node.take() {
            node.shutdown().await;
        }
        Ok(())
    }

    /// How many slots it serves.
    pub(crate) fn held(&self) -> usize {
        self.slots.shards().len()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn config() -> EngineConfig {
    let mut config = EngineConfig::for_ttl(SESSION_TTL);
    // Nobody waits for calm here.
    config.stabilizers.settling = Duration::ZERO;
    config.stabilizers.cooldown = Duration::ZERO;
    config.stabilizers.runtime_min = Duration::ZERO;
    config
}

fn owners(store: &MemoryStore) -> Result<FollowedOwners, BoxError> {
    let store: Arc<dyn LeaseStore> = Arc::new(store.clone());
    Ok(FollowedOwners::follow(store, "users".parse()?, "users".parse()?))
}

/// Waits until it is so.
async fn until(what: &str, mut so: impl FnMut() -> bool) -> Result<(), BoxError> {
    let begun = Instant::now();
    while !so() {
        if begun.elapsed() > LONG {
            return Err(format!("not so after {LONG:?}: {what}").into());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// A handler that writes down what it does: most take 1 ms, one of 16 takes 40.
fn writing(ledger: &Ledger) -> ServedSlots {
    let ledger = ledger.clone();
    ServedSlots::new(move |_: SlotContext| {
        let ledger = ledger.clone();
        async move {
            Ok::<_, BoxError>(move |ctx: RequestContext, request: Envelope| {
                let ledger = ledger.clone();
                async move {
                    let number = std::str::from_utf8(request.data())?.parse()?;
                    let token = ctx.lease().ok_or("a request without a lease")?.token().get();
                    let running = ledger.run(number, request.shard(), token, ctx.node());
                    let takes = if number.is_multiple_of(16) { 40 } else { 1 };
                    tokio::time::sleep(Duration::from_millis(takes)).await;
                    running.finish();
                    Ok::<_, BoxError>(request.into_data())
                }
            })
        }
    })
}

/// Callers that ask without a pause until they are told to end.
struct Load {
    over: Arc<AtomicBool>,
    callers: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(client: &Client, ledger: &Ledger, plan: &Plan) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let repeats = plan.promise == Promise::OnceATenure;
        let callers = (0..plan.callers).map(|caller| {
            let (client, ledger, over) = (client.clone(), ledger.clone(), over.clone());
            tokio::spawn(async move {
                let mut dice = fastrand::Rng::with_seed(caller);
                while !over.load(Ordering::SeqCst) {
                    let (number, began) = (ledger.number(), Instant::now());
                    let (key, data) = (format!("user-{}", dice.u32(..KEYS)), number.to_string());
                    let scoped = client.key(key);
                    let scoped = if repeats { scoped.with_idempotency_key(&data) } else { scoped };
                    let answer = scoped.request_as("Write", data.clone()).await;
                    let outcome = answer.and_then(|answer| {
                        let other = || RequestError::handler("wrong_answer", "it is another request's");
                        if answer == data { Ok(()) } else { Err(other()) }
                    });
                    ledger.told(Asked { number, began, ended: Instant::now(), outcome });
                }
            })
        });
        Self { callers: callers.collect(), over }
    }

    async fn end(self) -> Result<(), BoxError> {
        self.over.store(true, Ordering::SeqCst);
        for caller in self.callers {
            caller.await?;
        }
        Ok(())
    }
}

/// How a run goes.
pub(crate) struct Plan {
    pub(crate) carrier: Carrier,
    pub(crate) callers: u64,
    /// How long a request waits for an owner.
    pub(crate) patience: Duration,
    /// [`Promise::OnceATenure`]: requests have idempotency keys.
    pub(crate) promise: Promise,
}

/// What a run has brought.
pub(crate) struct Outcome {
    pub(crate) book: Book,
    /// What should not have been.
    pub(crate) faults: Vec<String>,
    /// So many requests were begun.
    pub(crate) issued: u64,
    /// What was done to the nodes, and from when until when.
    pub(crate) phases: Vec<(&'static str, Instant, Instant)>,
}

impl Outcome {
    /// The phase that a request belongs to: if it failed, what was done to the nodes while it was under way; else that in
    /// which it began.
    fn phase_of(&self, asked: &Asked) -> Option<usize> {
        let while_under_way = |(_, from, _): &(_, Instant, _)| (asked.began..asked.ended).contains(from);
        let began_in = |(_, from, to): &(_, Instant, Instant)| (*from..*to).contains(&asked.began);
        let done = asked.outcome.is_err().then(|| self.phases.iter().position(while_under_way)).flatten();
        done.or_else(|| self.phases.iter().position(began_in))
    }
}

/// How many requests a phase had, how many of them failed and with what, and how long answers took.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (runs, still) = (self.book.runs(), self.book.standstill_max());
        writeln!(f, "  {} requests, {runs} runs of handlers; nothing went on for {still:.1?} at most", self.issued)?;
        for (number, (name, from, to)) in self.phases.iter().enumerate() {
            let own = || self.book.requests().iter().filter(move |asked| self.phase_of(asked) == Some(number));
            let mut times: Vec<Duration> = own().filter(|asked| asked.outcome.is_ok()).map(Asked::took).collect();
            times.sort_unstable();
            let at = |permille: usize| times.get(times.len() * permille / 1000).or(times.last()).copied();
            let at = |permille| at(permille).unwrap_or_default();
            let (lasted, all) = (*to - *from, own().count());
            let failed = all - times.len();
            let share = 100.0 * failed as f64 / all.max(1) as f64;
            write!(f, "  {name:<26} {lasted:>6.1?} {all:>6} requests, {failed:>3} failed ({share:.2} %)")?;
            write!(f, "  p50 {:>7.1?}  p99 {:>7.1?}  longest {:>7.1?}", at(500), at(990), at(1000))?;
            let mut errors: BTreeMap<String, usize> = BTreeMap::new();
            for error in own().filter_map(|asked| asked.outcome.as_ref().err()) {
                let text = format!("{error:?}");
                let name = text.split(' ').next().unwrap_or(&text);
                *errors.entry(format!("{name}, ran: {:?}", error.ran())).or_default() += 1;
            }
            for (error, count) in errors {
                write!(f, "\n  {:<26} {count} × {error}", "")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// Three nodes under load; one is added, one killed, one drained, one killed and another one added in its place.
pub(crate) async fn run(plan: Plan) -> Result<Outcome, BoxError> {
    let (store, ledger) = (MemoryStore::new(), Ledger::open());
    let mut cluster = Cluster { store, carrier: plan.carrier.clone(), ledger, members: Vec::new(), started: 0 };
    for _ in 0..3 {
        cluster.add().await?;
    }
    cluster.settled().await?;
    let client = cluster.carrier.client().await?.owners(owners(&cluster.store)?);
    let client = client.patience(plan.patience).ttl(REQUEST_TTL).build()?;
    let load = Load::start(&client, &cluster.ledger, &plan);
    let (mut phases, mut begun) = (Vec::new(), Instant::now());
    let mut over = |phase| {
        let now = Instant::now();
        phases.push((phase, std::mem::replace(&mut begun, now), now));
    };
    cluster.answered().await?;
    over("three nodes");
    cluster.add().await?;
    cluster.settled().await?;
    over("a fourth is added");
    cluster.kill();
    cluster.settled().await?;
    over("one is killed");
    cluster.members.remove(0).drain().await?;
    cluster.settled().await?;
    over("one is drained");
    cluster.kill();
    cluster.add().await?;
    cluster.settled().await?;
    over("one is killed, one joins");
    cluster.answered().await?;
    load.end().await?;
    over("calm");
    for mut member in cluster.members.drain(..) {
        member.shutdown().await?;
    }
    // What has nobody to answer any more ends by itself.
    until("no handler runs", || cluster.ledger.running() == 0).await?;
    let issued = cluster.ledger.number();
    let book = cluster.ledger.close();
    let faults = book.faults(issued, plan.promise, config().timing.pause_allowance);
    Ok(Outcome { book, faults, issued, phases })
}

struct Cluster {
    store: MemoryStore,
    carrier: Carrier,
    ledger: Ledger,
    members: Vec<Member>,
    started: usize,
}

impl Cluster {
    async fn add(&mut self) -> Result<(), BoxError> {
        self.started += 1;
        let id = format!("node-{}", self.started);
        self.members.push(Member::start(&self.store, &self.carrier, id, writing(&self.ledger)).await?);
        Ok(())
    }

    /// Kills the one that is there longest.
    fn kill(&mut self) {
        self.members.remove(0).kill();
    }

    /// Every slot is served, every node has a part, and requests are answered.
    async fn settled(&self) -> Result<(), BoxError> {
        let all = || self.members.iter().map(Member::held).sum::<usize>() == SLOTS as usize;
        until("all slots are served", || all() && self.members.iter().all(|member| member.held() > 0)).await
    }

    /// Some time goes by, in which requests are answered.
    async fn answered(&self) -> Result<(), BoxError> {
        let (before, begun) = (self.ledger.answered(), Instant::now());
        let calm = || begun.elapsed() > Duration::from_secs(1) && self.ledger.answered() > before + 200;
        until("requests are answered", calm).await
    }
}
