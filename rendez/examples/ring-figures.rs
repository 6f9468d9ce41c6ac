//! What a ring of five nodes, 8 virtual nodes and 1024 partitions costs PostgreSQL, and how it behaves: prints figures.
//!
//! `cargo run -p rendez --features postgres --example ring-figures [SESSION_TTL_SECONDS [CONNECTIONS [NODES]]]`: starts a
//! PostgreSQL of its own, on this machine. Each node has a store, and so connections, of its own, or all share one store of
//! so many connections; all are tasks of this process. Every partition has
//! a runner that writes down when it runs; that no partition ran twice is judged from that at the end.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rendez::postgres::{PostgresOptions, PostgresStore};
use rendez::{BoxError, Ring, SlotContext, read_cluster};
use rendez_testkit::checker::Checker;
use rendez_testkit::clock;
use rendez_testkit::records::{Record, RecordKind};
use rendez_testkit::servers::PostgresServer;

const NODES_DEFAULT: u32 = 5;
const PARTITIONS: usize = 1024;
const RING: &str = "figures";

/// Each step is over long before this.
const STEP_MAX: Duration = Duration::from_secs(300);

/// How often a runner writes down that it still runs.
const ALIVE: Duration = Duration::from_secs(1);

/// What the runners write down.
#[derive(Clone, Default)]
struct Records(Arc<Mutex<String>>);

impl Records {
    fn write(&self, kind: RecordKind, ctx: &SlotContext) {
        let (slot, token, node) = (ctx.slot().clone(), ctx.token(), ctx.node().clone());
        let mut text = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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

    /// What was written since a place, judged, and the place of now.
    fn judge(&self, what: &str, from: usize) -> usize {
        let text = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut checker = Checker::new().allow_restarts();
        checker.read("records", &text);
        let report = checker.finish();
        let since = |run: &&rendez_testkit::checker::Run| run.place.line > from;
        let gaps = report.runs.values().flat_map(|runs| runs.windows(2));
        let mut gaps: Vec<Duration> =
            gaps.filter(|pair| since(&&pair[1])).map(|pair| pair[1].begin.since(pair[0].until)).collect();
        gaps.sort_unstable();
        let at = |part: usize| gaps.get((gaps.len().max(1) - 1) * part / 100).copied().unwrap_or_default();
        let (median, most) = (at(50), at(100));
        println!(
            "   {what}: {} runs began after another, without a runner for {median:.1?} (median), {most:.1?} (longest)",
            gaps.len()
        );
        println!("   partitions that ran twice: {}", report.violations.len());
        text.lines().count()
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let ttl = Duration::from_secs(std::env::args().nth(1).map_or(Ok(30), |word| word.parse())?);
    let shared = std::env::args().nth(2).map(|word| word.parse::<usize>()).transpose()?;
    let nodes = std::env::args().nth(3).map_or(Ok(NODES_DEFAULT), |word| word.parse())?;
    // Each node listens on one, beside those for requests.
    let server = PostgresServer::builder().config(format!("max_connections = {}", 100 + nodes * 5)).start().await?;
    let stores = match shared {
        Some(connections) => Stores::Shared(connect(&server, connections).await?),
        None => Stores::OneANode(server.url()),
    };
    let records = Records::default();
    println!(
        "{nodes} nodes, 8 virtual nodes, {PARTITIONS} partitions, session TTL {ttl:?}; PostgreSQL on this machine\n"
    );

    let begin = Instant::now();
    let starts =
        (1..=nodes).map(|number| tokio::spawn(start(stores.clone(), format!("n{number}"), ttl, records.clone())));
    let mut rings = Vec::new();
    for start in starts.collect::<Vec<_>>() {
        rings.push(start.await??);
    }
    println!("1. all at once on an empty database: sessions open after {:.2?}", begin.elapsed());
    let all_owned = at_rest(&server, &rings).await?;
    println!("   every partition has an owner after {:.2?}", all_owned.duration_since(begin));
    println!("   every partition with the node that the plan names after {:.2?}", begin.elapsed());
    let counts: BTreeMap<_, _> =
        rings.iter().map(|ring| (ring.node().clone(), ring.owned_partitions().len())).collect();
    let (least, most) = (counts.values().min().unwrap_or(&0), counts.values().max().unwrap_or(&0));
    println!("   a node has {least} to {most}");
    let mut place = records.judge("start", 0);

    // What the start has left to say is said by then.
    tokio::time::sleep(ttl).await;
    let window = Duration::from_secs(60);
    let (before, since) = (commits(&server).await?, Instant::now());
    tokio::time::sleep(window).await;
    // The question is one of them.
    let statements = commits(&server).await?.saturating_sub(before + 1);
    let rate = statements as f64 / since.elapsed().as_secs_f64();
    println!("2. at rest: {statements} statements in {window:?}, {rate:.2} a second");
    let connections =
        server.query("select count(*) from pg_stat_activity where backend_type = 'client backend'").await?;
    println!("   connections, with this question's own: {connections}");

    let begin = Instant::now();
    let sixth = start(stores.clone(), format!("n{}", nodes + 1), ttl, records.clone()).await?;
    rings.push(sixth);
    at_rest(&server, &rings).await?;
    let has = rings[nodes as usize].owned_partitions().len();
    println!("3. one more joins: it has its {has} partitions after {:.1?}", begin.elapsed());
    place = records.judge("join", place);

    let begin = Instant::now();
    let leaver = rings.remove(0);
    let had = leaver.owned_partitions().len();
    leaver.leave().await?;
    println!("4. n1 leaves and hands {had} partitions over: {:.2?}", begin.elapsed());
    at_rest(&server, &rings).await?;
    place = records.judge("leave", place);

    let begin = Instant::now();
    let dead = rings.remove(0);
    let had = dead.owned_partitions().len();
    println!("5. {} goes without a word, with {had} partitions", dead.node());
    drop(dead);
    let all_owned = at_rest(&server, &rings).await?;
    println!("   taken over after {:.1?}", all_owned.duration_since(begin));
    records.judge("crash", place);
    for ring in &rings {
        ring.leave().await?;
    }
    Ok(())
}

/// Where the nodes get their way to the database from.
#[derive(Clone)]
enum Stores {
    /// From this address, each for itself.
    OneANode(String),
    Shared(Arc<PostgresStore>),
}

async fn connect(server: &PostgresServer, connections: usize) -> Result<Arc<PostgresStore>, BoxError> {
    let mut options = PostgresOptions::default();
    options.connections_max = connections;
    Ok(Arc::new(PostgresStore::connect(&server.url(), options).await?))
}

async fn start(stores: Stores, node: String, ttl: Duration, records: Records) -> Result<Ring, BoxError> {
    let store = match stores {
        Stores::OneANode(url) => Arc::new(PostgresStore::connect(&url, PostgresOptions::default()).await?),
        Stores::Shared(store) => store,
    };
    let runner = move |ctx: SlotContext| records.clone().run(ctx);
    let builder = Ring::builder().shared_store(store).ring_id(RING).node_id(node).session_ttl(ttl);
    Ok(builder.connect_timeout(Duration::from_secs(60)).runner(runner).start().await?)
}

/// Waits until the nodes own all partitions, each of them what the plan gives it; returns since when all have owners.
async fn at_rest(server: &PostgresServer, rings: &[Ring]) -> Result<Instant, BoxError> {
    let until = Instant::now() + STEP_MAX;
    let store = PostgresStore::connect(&server.url(), PostgresOptions::default()).await?;
    let mut all_owned = None;
    loop {
        let owned: BTreeMap<u32, _> = rings
            .iter()
            .flat_map(|ring| ring.owned_partitions().iter().map(|it| (it, ring.node().clone())).collect::<Vec<_>>())
            .collect();
        if owned.len() == PARTITIONS {
            let since = *all_owned.get_or_insert_with(Instant::now);
            // A look that is not answered in time is made again.
            if let Ok(mut view) = read_cluster(&store, rings[0].id().cluster(), Duration::from_secs(2)).await {
                let planned = view.planner().assignments().all(|(slot, node)| owned.get(&slot.unit) == node);
                if planned && view.sessions().count() == rings.len() {
                    return Ok(since);
                }
            }
        }
        if Instant::now() > until {
            return Err("the ring does not come to rest".into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Transactions of the database; each of the store's statements is one.
async fn commits(server: &PostgresServer) -> Result<u64, BoxError> {
    // What backends have counted is told to others at intervals.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let text =
        server.query("select xact_commit + xact_rollback from pg_stat_database where datname = 'postgres'").await?;
    Ok(text.trim().parse()?)
}
