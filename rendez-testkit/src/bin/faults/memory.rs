//! The memory store: no server and one process, so nothing real can fail under it.

use async_trait::async_trait;
use fastrand::Rng;
use rendez_testkit::measure::Failure;

use crate::fault::{Fault, ServerFault};
use crate::store::{Expectation, Server, Store};

const REASON: &str = "one process only: its faults are the simulator's (`cargo xtask sim`)";

pub(crate) struct Memory;

#[async_trait]
impl Store for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn expects(&self, _: ServerFault) -> Expectation {
        Expectation::Absent(REASON)
    }

    fn lacks(&self, _: Fault) -> Option<&'static str> {
        Some(REASON)
    }

    async fn start(&self, _: Option<ServerFault>, _: &mut Rng) -> Result<Box<dyn Server>, Failure> {
        Err(REASON.into())
    }
}
