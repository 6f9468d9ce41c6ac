//! Requests while nodes are added, drained and killed.

use std::time::Duration;

use rendez_router::{MemoryTransport, Ran};

use crate::cluster::{Carrier, Outcome, Plan, run};
use crate::ledger::Promise;

/// Callers wait as long as it takes to replace a killed node.
const PATIENCE: Duration = Duration::from_secs(20);

async fn judged(carrier: Carrier, promise: Promise) -> Outcome {
    let outcome = run(Plan { carrier, callers: 8, patience: PATIENCE, promise }).await.unwrap();
    assert_eq!(outcome.faults, [""; 0], "{outcome}");
    let answered = outcome.book.requests().iter().filter(|asked| asked.outcome.is_ok()).count();
    assert!(answered > 400, "{outcome}");
    outcome
}

/// Who waits for an owner hears of a kill only if its request was on the killed node just then.
fn only_what_ran_failed(outcome: &Outcome) {
    let errors: Vec<_> = outcome.book.requests().iter().filter_map(|asked| asked.outcome.as_ref().err()).collect();
    assert!(errors.iter().all(|error| error.ran() == Ran::Maybe), "{outcome}");
    assert!(errors.len() < outcome.book.requests().len() / 10, "{outcome}");
}

fn nothing_failed(outcome: &Outcome) {
    assert!(outcome.book.requests().iter().all(|asked| asked.outcome.is_ok()), "{outcome}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_come_and_go_and_die_under_load() {
    only_what_ran_failed(&judged(Carrier::Memory(MemoryTransport::new()), Promise::Once).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_idempotency_keys_no_request_fails() {
    nothing_failed(&judged(Carrier::Memory(MemoryTransport::new()), Promise::OnceATenure).await);
}

#[cfg(feature = "nats")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_come_and_go_and_die_under_load_over_nats() {
    let place = crate::nats::Place::new().await;
    let (url, prefix) = place.address();
    only_what_ran_failed(&judged(Carrier::Nats { url, prefix }, Promise::Once).await);
}

#[cfg(feature = "nats")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_idempotency_keys_no_request_fails_over_nats() {
    let place = crate::nats::Place::new().await;
    let (url, prefix) = place.address();
    nothing_failed(&judged(Carrier::Nats { url, prefix }, Promise::OnceATenure).await);
}
