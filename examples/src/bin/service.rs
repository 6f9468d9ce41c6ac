//! A service as one would deploy it: configured from its environment, on Redis, stopped by Ctrl-C or SIGTERM.
//!
//! ```sh
//! export RENDEZ_CONFIG_STORE=redis://127.0.0.1:6379 RENDEZ_CONFIG_CLUSTER=feeds
//! export RENDEZ_CONFIG_WORKLOADS='{ feed = 8 }'
//! cargo run -p rendez-examples --bin service     # in as many terminals as you like
//! ```

use std::time::Duration;

use rendez::redis::{RedisOptions, RedisStore};
use rendez::{BoxError, Config, SlotContext};
use tokio::signal::unix::{SignalKind, signal};

async fn poll_feed(ctx: SlotContext) -> Result<(), BoxError> {
    println!("{} is ours under token {}", ctx.slot(), ctx.token());
    loop {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            () = ctx.cancelled() => {
                println!("{} goes: {}", ctx.slot(), ctx.stop_reason().map_or(String::new(), |why| why.to_string()));
                return Ok(());
            }
        }
        ctx.check()?; // is it still ours? Then do it, and hand the token to whatever takes the result.
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let config = Config::from_env()?;
    let url = config.resolve()?.store.ok_or("set RENDEZ_CONFIG_STORE, for example to redis://127.0.0.1:6379")?;
    let store = RedisStore::connect(&url, RedisOptions::default()).await?;
    let node = config.builder()?.store(store).runner(poll_feed).start().await?;
    println!("{} takes part in {}", node.node(), node.cluster());
    let mut told_to_end = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = told_to_end.recv() => {}
        stopped = node.stopped() => return Ok(stopped.map(|_| ())?),
    }
    println!("{:?}", node.shutdown().await?);
    Ok(())
}
