//! Two nodes in one process count, each slot its own number, and hand the numbers over when one of them leaves.
//!
//! `cargo run -p rendez-examples --bin counters`; ends by itself.

use std::time::Duration;

use rendez::{BoxError, CheckpointError, Coordinator, EngineConfig, Handle, MemoryStore, SlotContext};

/// Counts on from where the last owner of the slot has stopped.
async fn count(ctx: SlotContext) -> Result<(), BoxError> {
    let before = ctx.checkpoint().and_then(|left| String::from_utf8(left.to_vec()).ok());
    let mut number: u64 = before.and_then(|text| text.parse().ok()).unwrap_or(0);
    println!("{} begins to count {} at {number} under token {}", ctx.node(), ctx.slot(), ctx.token());
    while !ctx.is_cancelled() {
        ctx.check()?; // before each side effect
        number += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    leave(&ctx, number)?;
    Ok(())
}

/// What is left here travels with the slot to its next owner.
fn leave(ctx: &SlotContext, number: u64) -> Result<(), CheckpointError> {
    println!("{} stops at {number} with {}", ctx.node(), ctx.slot());
    ctx.leave_checkpoint(number.to_string())
}

async fn start(store: &MemoryStore, name: &str) -> Result<Handle, BoxError> {
    let node = Coordinator::builder()
        .store(store.clone())
        .cluster("counters")
        .node_id(name)
        .workload("counter", 4)
        .engine_config(EngineConfig::for_ttl(Duration::from_secs(1)))
        .runner(count)
        .start()
        .await?;
    Ok(node)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let store = MemoryStore::new();
    let (anna, ben) = tokio::try_join!(start(&store, "anna"), start(&store, "ben"))?;
    anna.owned_changes().wait_for(|owned| owned.len() == 2).await?;
    ben.owned_changes().wait_for(|owned| owned.len() == 2).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    println!("-- anna leaves --");
    anna.shutdown().await?;
    ben.owned_changes().wait_for(|owned| owned.len() == 4).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    ben.shutdown().await?;
    Ok(())
}
