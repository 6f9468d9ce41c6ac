//! Two owners of one slot write through a fence, and what the fence costs.
//!
//! `cargo run --release -p rendez-etcd --example etcd-fence [HOST:PORT]`; without an address it starts `etcd`.

use std::error::Error;
use std::time::Instant;

use rendez_core::FencingToken;
use rendez_etcd::etcd_client::{Client, TxnOp};
use rendez_etcd::{Fence, FenceError};
use rendez_testkit::measure::beside;
use rendez_testkit::servers::EtcdServer;

const WRITES: usize = 500;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let server = EtcdServer::builder().start().await?;
    let address = std::env::args().nth(1).unwrap_or_else(|| server.url().replace("etcd://", ""));
    let mut client = Client::connect([address], None).await?.kv_client();

    // In a runner the token is `ctx.token()`.
    let (before, after) = (FencingToken::new(1), FencingToken::new(2));
    let fence = Fence::new("/fences/inbox/3");
    let state = |text: &str| vec![TxnOp::put("/state/inbox/3", text, None)];
    fence.write(&mut client, before, state("anna's")).await?;
    fence.write(&mut client, after, state("ben's, after anna was paused")).await?;
    match fence.write(&mut client, before, state("anna's, who has just woken up")).await {
        Err(FenceError::Stale(stale)) => println!("anna's late write is refused: {stale}"),
        other => return Err(format!("{other:?}").into()),
    }
    let found = client.get("/state/inbox/3", None).await?;
    println!("what stands there: {:?}", found.kvs().first().map(|kv| kv.value_str()).transpose()?);

    let (mut plain, mut fenced) = (Vec::new(), Vec::new());
    for _ in 0..WRITES {
        let begun = Instant::now();
        client.put("/state/inbox/3", "x", None).await?;
        plain.push(begun.elapsed());
        let begun = Instant::now();
        fence.write(&mut client, after, state("x")).await?;
        fenced.push(begun.elapsed());
    }
    println!("{}", beside(("a put", &plain), ("through the fence", &fenced)));
    Ok(())
}
