//! One of several instances, of which one leads. Run it in three terminals, and kill the one that leads:
//!
//! ```sh
//! INSTANCE_ID=instance-1 cargo run -p rendez-examples --bin leader
//! INSTANCE_ID=instance-2 cargo run -p rendez-examples --bin leader
//! INSTANCE_ID=instance-3 cargo run -p rendez-examples --bin leader
//! ```
//!
//! They meet in a folder of this host, or in the store that `STORE` names (`STORE=redis://localhost`). A leader that is
//! killed is followed when its session ends, 15 s later, or as `SESSION_TTL_MS` says; one that is told to go (Ctrl-C) at once.

use std::env::{self, VarError};
use std::time::Duration;

use rendez::{BoxError, ELECTION_TTL, Election, StoreUrl};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let id = env::var("INSTANCE_ID").map_err(|_| "say who this is: INSTANCE_ID=instance-1")?;
    let store =
        env::var("STORE").unwrap_or_else(|_| format!("file:{}", env::temp_dir().join("rendez-leader").display()));
    let ttl = match env::var("SESSION_TTL_MS") {
        Ok(ms) => Duration::from_millis(ms.parse().map_err(|_| format!("SESSION_TTL_MS={ms}: write milliseconds"))?),
        Err(VarError::NotPresent) => ELECTION_TTL,
        Err(error) => return Err(error.into()),
    };
    let store = StoreUrl::parse(&store)?.connect(ttl / 10, Duration::from_secs(5)).await?;
    let election = Election::builder("example").shared_store(store).node_id(&id).session_ttl(ttl).start().await?;
    println!("{id} stands");

    let mut changes = election.changes();
    let told = tokio::spawn(async move {
        let mut known = None;
        while changes.changed().await.is_ok() {
            let leader = changes.borrow_and_update().leader.clone();
            match &leader {
                _ if leader == known => continue, // this node has begun or ceased to lead: `work` says so
                Some(leader) => println!("{} leads", leader.node),
                None => println!("nobody leads"),
            }
            known = leader;
        }
    });
    tokio::select! {
        done = work(&id, &election) => done?,
        _ = tokio::signal::ctrl_c() => println!("{id} goes"),
    }
    election.shutdown().await?; // lets leadership go
    told.abort();
    Ok(())
}

/// The pattern of a leader that polls: wait, then work as long as it lasts.
async fn work(id: &str, election: &Election) -> Result<(), BoxError> {
    loop {
        let lease = election.wait_for_leadership().await?;
        println!("{id} begins to lead under token {}", lease.token());
        while election.is_leader() {
            // What only the leader does. What it writes to gets the token, and refuses lower ones.
            println!("{id} works under token {}", lease.token());
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        println!("{id} leads no more");
    }
}
