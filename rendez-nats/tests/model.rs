//! Random histories, sent to NATS and to the model of the contract: they must answer the same, in all that does not hang
//! on NATS's own numbers and clock. Two handles take turns, each with its own mirror.

mod support;

use std::sync::Arc;

use rendez_core::LeaseStore;
use rendez_nats::NatsStore;
use rendez_testkit::conformance::differential::{self, Comparison, NoFaults};
use rendez_testkit::servers::NatsServer;
use support::options;

const HISTORIES: u32 = 60;

#[test]
fn nats_answers_as_the_model_does() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let server = runtime.block_on(NatsServer::builder().start()).unwrap();
    let connect =
        || -> Arc<dyn LeaseStore> { Arc::new(runtime.block_on(NatsStore::connect(&server.url(), options())).unwrap()) };
    differential::run(&runtime, &[connect(), connect()], HISTORIES, Comparison::Freely, &NoFaults);
}
