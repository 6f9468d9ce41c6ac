//! Two owners of one slot write through a fence, and what the fence costs.
//!
//! `cargo run --release -p rendez-redis --example redis-fence [redis://HOST]`; without an address it starts `redis-server`.

use std::error::Error;
use std::time::Instant;

use rendez_core::FencingToken;
use rendez_redis::redis::{self, Pipeline};
use rendez_redis::{Fence, FenceError};
use rendez_testkit::measure::beside;
use rendez_testkit::servers::RedisServer;

const WRITES: usize = 2000;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let server = RedisServer::builder().start().await?;
    let url = std::env::args().nth(1).unwrap_or_else(|| server.url());
    let mut connection = redis::Client::open(url)?.get_multiplexed_async_connection().await?;

    // In a runner the token is `ctx.token()`.
    let (before, after) = (FencingToken::new(1), FencingToken::new(2));
    let fence = Fence::new("{inbox/3}:fence");
    let add = |name: &str| -> Pipeline {
        let mut writes = redis::pipe();
        writes.rpush("{inbox/3}:log", name);
        writes
    };
    fence.write(&mut connection, before, &add("anna")).await?;
    fence.write(&mut connection, after, &add("ben, after anna was paused")).await?;
    match fence.write(&mut connection, before, &add("anna, who has just woken up")).await {
        Err(FenceError::Stale(stale)) => println!("anna's late write is refused: {stale}"),
        other => return Err(format!("{other:?}").into()),
    }
    let log: Vec<String> =
        redis::cmd("LRANGE").arg("{inbox/3}:log").arg(0).arg(-1).query_async(&mut connection).await?;
    println!("what was written: {log:?}");

    let (mut plain, mut fenced) = (Vec::new(), Vec::new());
    for _ in 0..WRITES {
        let begun = Instant::now();
        redis::cmd("SET").arg("{inbox/3}:state").arg("x").exec_async(&mut connection).await?;
        plain.push(begun.elapsed());
        let begun = Instant::now();
        fence.write(&mut connection, after, redis::pipe().set("{inbox/3}:state", "x")).await?;
        fenced.push(begun.elapsed());
    }
    println!("{}", beside(("a SET", &plain), ("through the fence", &fenced)));
    Ok(())
}
