//! Requests while nodes are added, drained and killed: how many fail, how, and how long the others take; in memory and over
//! a NATS server that it starts itself. It ends with an error if anything was that the router promises not to be.
//!
//! `cargo run --release -p rendez-router --features live,nats --example router-faults`

#[path = "../tests/it/cluster.rs"]
mod cluster;
#[path = "../tests/it/ledger.rs"]
mod ledger;

use std::time::Duration;

use rendez_router::{BoxError, MemoryTransport, PATIENCE_DEFAULT};
use rendez_testkit::servers::NatsServer;

use crate::cluster::{Carrier, Plan, run};
use crate::ledger::Promise;

const CALLERS: u64 = 16;

/// Longer than a killed node's leases last.
const PATIENT: Duration = Duration::from_secs(20);

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let server = NatsServer::start().await?;
    let mut faults = Vec::new();
    let plans = [
        (PATIENCE_DEFAULT, Promise::Once, "without idempotency keys"),
        (PATIENT, Promise::Once, "without idempotency keys"),
        (PATIENT, Promise::OnceATenure, "with idempotency keys"),
    ];
    for (patience, promise, keys) in plans {
        let nats = Carrier::Nats { url: server.url(), prefix: format!("faults.{:016x}", fastrand::u64(..)) };
        for (name, carrier) in [("in memory", Carrier::Memory(MemoryTransport::new())), ("over NATS", nats)] {
            let outcome = run(Plan { carrier, callers: CALLERS, patience, promise }).await?;
            println!("{name}, {CALLERS} callers, who wait for an owner for {patience:?}, {keys}");
            print!("{outcome}");
            faults.extend(outcome.faults);
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(faults.join("\n").into()) }
}
