//! Requests while nodes are added, drained and killed.

use std::time::Duration;

use rendez_router::{MemoryTransport, Ran};

use crate::cluster::{Carrier, Plan, run};
use crate::ledger::Promise;

/// Callers wait as long as it takes to replace a killed node.
const PATIENCE: Duration = Duration::from_secs(20);

async fn judged(carrier: Carrier) {
    let outcome = run(Plan { carrier, callers: 8, patience: PATIENCE }).await.unwrap();
    let faults = outcome.book.faults(outcome.issued, Promise::Once, outcome.pause_allowance);
    assert_eq!(faults, [""; 0], "{outcome}");
    // Who waits for an owner hears of a kill only if its request was on the killed node just then.
    let (mut answered, mut maybe) = (0, 0);
    for asked in outcome.book.requests() {
        match &asked.outcome {
            Ok(()) => answered += 1,
            Err(error) if error.ran() == Ran::Maybe => maybe += 1,
            Err(error) => panic!("request {}: {error}", asked.number),
        }
    }
    assert!(answered > 400 && maybe < answered / 10, "{outcome}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_come_and_go_and_die_under_load() {
    judged(Carrier::Memory(MemoryTransport::new())).await;
}

#[cfg(feature = "nats")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_come_and_go_and_die_under_load_over_nats() {
    let place = crate::nats::Place::new().await;
    let (url, prefix) = place.address();
    judged(Carrier::Nats { url, prefix }).await;
}
