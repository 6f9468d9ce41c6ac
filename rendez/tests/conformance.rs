//! The memory store keeps the store contract.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rendez::{LeaseStore, MemoryStore, StoreError};
use rendez_testkit::conformance::{self, Access, Fault, Fixture, OwnServer, Trouble};

#[derive(Default)]
struct Memory {
    shared: MemoryStore,
}

#[async_trait]
impl Fixture for Memory {
    fn name(&self) -> &str {
        "memory"
    }

    fn lacks(&self, fault: Fault) -> Option<&'static str> {
        match fault {
            Fault::Restart | Fault::RestartEmpty | Fault::Stall => None,
            Fault::FailOver => Some("there is no other server"),
            Fault::Full => Some("it has no limit"),
            Fault::Unfit => Some("there is nothing to set up"),
            Fault::ForeignLayout => Some("its data live and die with the release"),
            Fault::Unreachable => Some("it has no address"),
            Fault::WrongCredentials | Fault::LeastRights => Some("it knows no users"),
        }
    }

    fn patience(&self) -> Duration {
        Duration::from_millis(100)
    }

    async fn store(&self) -> Result<Arc<dyn LeaseStore>, Trouble> {
        Ok(Arc::new(self.shared.clone()))
    }

    async fn own_server(&self) -> Result<Box<dyn OwnServer>, Trouble> {
        Ok(Box::new(Own(MemoryStore::new())))
    }
}

struct Own(MemoryStore);

#[async_trait]
impl OwnServer for Own {
    async fn connect(&self, _: Access) -> Result<Arc<dyn LeaseStore>, StoreError> {
        Ok(Arc::new(self.0.clone()))
    }

    async fn restart(&mut self) -> Result<(), Trouble> {
        self.0.restart();
        Ok(())
    }

    async fn restart_empty(&mut self) -> Result<(), Trouble> {
        self.0.lose_everything();
        Ok(())
    }

    async fn stall(&mut self) -> Result<(), Trouble> {
        self.0.stall();
        Ok(())
    }

    async fn resume(&mut self) -> Result<(), Trouble> {
        self.0.resume();
        Ok(())
    }
}

fn main() -> ExitCode {
    conformance::main(vec![Box::new(Memory::default())])
}
