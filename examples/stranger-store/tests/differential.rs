//! The example store answers random histories as the model of the contract does.

use std::sync::Arc;

use rendez_core::LeaseStore;
use rendez_testkit::conformance::differential::{self, Comparison, NoFaults};
use stranger_store::ShelfStore;

#[test]
fn it_answers_as_the_model_does() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let store: Arc<dyn LeaseStore> = Arc::new(ShelfStore::new());
    differential::run(&runtime, &[store], 100, Comparison::Freely, &NoFaults);
}
