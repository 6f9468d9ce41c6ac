//! Two owners of one slot write in transactions of their own, and what the check of their tokens costs.
//!
//! `cargo run --release -p rendez-postgres --example postgres-fence [postgres://…]`; without an address it starts PostgreSQL.

use std::error::Error;
use std::time::Instant;

use rendez_core::FencingToken;
use rendez_postgres::tokio_postgres::{self, Client, NoTls};
use rendez_postgres::{Fence, FenceError, PostgresOptions, PostgresStore};
use rendez_testkit::measure::beside;
use rendez_testkit::servers::PostgresServer;

const WRITES: usize = 500;

/// The transaction that only the owner of the slot may commit.
async fn set(client: &mut Client, owner: Option<(&Fence, FencingToken)>, text: &str) -> Result<(), FenceError> {
    let transaction = client.transaction().await?;
    if let Some((fence, token)) = owner {
        fence.check(&transaction, token).await?;
    }
    transaction.execute("UPDATE state SET text = $1 WHERE inbox = 3", &[&text]).await?;
    transaction.commit().await?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let server = PostgresServer::builder().start().await?;
    let url = std::env::args().nth(1).unwrap_or_else(|| server.url());
    // Makes the schema; a program that has a store has done so already.
    PostgresStore::connect(&url, PostgresOptions::default()).await?;
    let (mut client, connection) = tokio_postgres::connect(&url, NoTls).await?;
    tokio::spawn(connection);
    client.batch_execute("CREATE TEMPORARY TABLE state AS SELECT 3 AS inbox, 'new' AS text").await?;

    // In a runner the token is `ctx.token()`.
    let (before, after) = (FencingToken::new(1), FencingToken::new(2));
    let fence = Fence::new("my-cluster/inbox/3");
    set(&mut client, Some((&fence, before)), "anna's").await?;
    set(&mut client, Some((&fence, after)), "ben's, after anna was paused").await?;
    match set(&mut client, Some((&fence, before)), "anna's, who has just woken up").await {
        Err(FenceError::Stale(stale)) => println!("anna's late transaction is refused: {stale}"),
        other => return Err(format!("{other:?}").into()),
    }
    let text: String = client.query_one("SELECT text FROM state", &[]).await?.get(0);
    println!("what stands there: {text:?}");

    let (mut plain, mut fenced) = (Vec::new(), Vec::new());
    for _ in 0..WRITES {
        let begun = Instant::now();
        set(&mut client, None, "x").await?;
        plain.push(begun.elapsed());
        let begun = Instant::now();
        set(&mut client, Some((&fence, after)), "x").await?;
        fenced.push(begun.elapsed());
    }
    println!("{}", beside(("a transaction of one update", &plain), ("with the check", &fenced)));
    Ok(())
}
