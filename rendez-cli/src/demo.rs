//! `rendez demo`: the main thing, in one process, on the store in memory.
//!
//! Nodes start, one dies, one joins, one leaves, and it is told as it happens. At the end the runs are checked: the
//! exit code is 0 only if no slot ever ran twice at a time.

mod runs;

use std::collections::BTreeMap;
use std::time::Duration;

use rendez::{Coordinator, EngineConfig, Handle, MemoryStore, Slot, SlotContext, Timing};

use crate::exit::{Exit, Failure};
use runs::{Runs, Verdict};

const CLUSTER: &str = "demo";
const WORKLOADS: [(&str, u32); 2] = [("inbox", 8), ("cron", 2)];
const SESSION_TTL: Duration = Duration::from_secs(2);

/// Each step is over long before this.
const STEP_MAX: Duration = Duration::from_secs(15);

/// Nothing has moved for this long: the step is over.
const CALM: Duration = Duration::from_millis(700);

/// Plays and tells the story.
pub(crate) fn demo() -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Exit::Failure, format!("cannot start: {error}")))?;
    runtime.block_on(play())
}

async fn play() -> Result<(), Failure> {
    let slots: u32 = WORKLOADS.iter().map(|(_, units)| units).sum();
    let stage = Stage { store: MemoryStore::new(), runs: Runs::default() };
    let work: Vec<String> = WORKLOADS.iter().map(|(name, units)| format!("{units} units of {name}")).collect();
    println!("Work of which each unit must run in exactly one place at a time: {}.", work.join(", "));
    println!("Three nodes share it through leases in a store (here: in memory). Session TTL: {SESSION_TTL:?}.\n");

    println!("Nodes anna, ben and cora start.");
    let (anna, ben, cora) = tokio::try_join!(stage.start("anna"), stage.start("ben"), stage.start("cora"))?;
    stage.settle(slots, &["anna", "ben", "cora"]).await?;

    println!(
        "\nben dies without a word. His slots are taken when his session ends, {SESSION_TTL:?} after his last heartbeat."
    );
    drop(ben);
    stage.settle(slots, &["anna", "cora"]).await?;

    println!("\ndave joins. The others hand him his part: each slot stops there before it starts here.");
    let dave = stage.start("dave").await?;
    stage.settle(slots, &["anna", "cora", "dave"]).await?;

    println!("\nanna shuts down. What she runs is handed over before she goes.");
    anna.shutdown().await.map_err(|error| Failure::new(Exit::Failure, error))?;
    stage.settle(slots, &["cora", "dave"]).await?;

    println!("\nThe others shut down too.");
    let (one, two) = tokio::join!(cora.shutdown(), dave.shutdown());
    one.and(two).map_err(|error| Failure::new(Exit::Failure, error))?;
    stage.judge()
}

struct Stage {
    store: MemoryStore,
    runs: Runs,
}

impl Stage {
    async fn start(&self, node: &str) -> Result<Handle, Failure> {
        let runs = self.runs.clone();
        let mut builder = Coordinator::builder()
            .store(self.store.clone())
            .cluster(CLUSTER)
            .node_id(node)
            .engine_config(quick())
            .runner(move |ctx: SlotContext| work(ctx, runs.clone()));
        for (workload, units) in WORKLOADS {
            builder = builder.workload(workload, units);
        }
        builder.start().await.map_err(|error| Failure::new(Exit::Failure, format!("{node} did not start: {error}")))
    }

    /// Waits until every slot runs, on each of these nodes and on no other, and nothing moves any more.
    async fn settle(&self, slots: u32, nodes: &[&str]) -> Result<(), Failure> {
        let settled = async {
            loop {
                tokio::time::sleep(Duration::from_millis(50)).await;
                let running = self.runs.running();
                let count: usize = running.values().map(Vec::len).sum();
                let all_there = running.keys().map(String::as_str).eq(nodes.iter().copied());
                if count == slots as usize && all_there && self.runs.calm_for() >= CALM {
                    return running;
                }
            }
        };
        let running = tokio::time::timeout(STEP_MAX, settled).await.map_err(|_| {
            let running = self.runs.running();
            Failure::new(Exit::Failure, format!("after {STEP_MAX:?} the slots have not settled: {running:?}"))
        })?;
        tell(&running);
        Ok(())
    }

    fn judge(&self) -> Result<(), Failure> {
        let Verdict { runs, broken, longest_gap } = self.runs.judge();
        if !broken.is_empty() {
            return Err(Failure::new(Exit::PromiseBroken, format!("a promise was broken:\n  {}", broken.join("\n  "))));
        }
        println!("\nChecked: in {runs} runs no slot ever ran twice at a time, and its token rose with every run.");
        if let Some((slot, gap)) = longest_gap {
            println!("The longest time that a slot had no runner: {slot}, {gap:.1?}.");
        }
        Ok(())
    }
}

fn tell(running: &BTreeMap<String, Vec<Slot>>) {
    for (node, slots) in running {
        let slots: Vec<String> = slots.iter().map(ToString::to_string).collect();
        println!("  => {node} runs {}", slots.join(", "));
    }
}

/// The work of a slot: here, only to be there.
async fn work(ctx: SlotContext, runs: Runs) {
    let run = runs.begin(ctx.slot(), ctx.token(), ctx.node());
    ctx.cancelled().await;
    drop(run);
}

/// Times that suit a demonstration: moves are held back for tenths of seconds, not for minutes.
fn quick() -> EngineConfig {
    let mut config = EngineConfig::for_timing(Timing::for_ttl(SESSION_TTL));
    config.stabilizers.cooldown = Duration::from_millis(500);
    config.stabilizers.runtime_min = Duration::from_millis(500);
    config.stabilizers.settling = Duration::from_millis(200);
    config
}
