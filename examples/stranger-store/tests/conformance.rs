//! The example store keeps the store contract.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rendez_core::{LeaseStore, StoreError};
use rendez_testkit::conformance::{self, Access, Fault, Fixture, OwnServer, Trouble};
use stranger_store::ShelfStore;

#[derive(Default)]
struct Shelf {
    shared: ShelfStore,
}

#[async_trait]
impl Fixture for Shelf {
    fn name(&self) -> &str {
        "stranger"
    }

    fn lacks(&self, fault: Fault) -> Option<&'static str> {
        match fault {
            Fault::RestartEmpty => None,
            Fault::Restart | Fault::Stall | Fault::FailOver => Some("it lives and dies with the process"),
            Fault::Full => Some("it has no limit"),
            Fault::Unfit | Fault::ForeignLayout => Some("there is nothing to set up"),
            Fault::Unreachable | Fault::WrongCredentials | Fault::LeastRights => Some("nobody connects to it"),
        }
    }

    fn patience(&self) -> Duration {
        Duration::from_millis(100)
    }

    async fn store(&self) -> Result<Arc<dyn LeaseStore>, Trouble> {
        Ok(Arc::new(self.shared.clone()))
    }

    async fn own_server(&self) -> Result<Box<dyn OwnServer>, Trouble> {
        Ok(Box::new(Own(ShelfStore::new())))
    }
}

struct Own(ShelfStore);

#[async_trait]
impl OwnServer for Own {
    async fn connect(&self, _: Access) -> Result<Arc<dyn LeaseStore>, StoreError> {
        Ok(Arc::new(self.0.clone()))
    }

    async fn restart_empty(&mut self) -> Result<(), Trouble> {
        self.0.forget_everything();
        Ok(())
    }
}

fn main() -> ExitCode {
    conformance::main(vec![Box::new(Shelf::default())])
}
