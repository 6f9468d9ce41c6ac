//! The etcd store keeps the store contract: on one server, and on a cluster of three.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rendez_core::{ClusterName, LeaseStore, StoreError};
use rendez_etcd::{EtcdOptions, EtcdStore};
use rendez_testkit::conformance::{self, Access, Fault, Fixture, OwnServer, Trouble};
use rendez_testkit::servers::{EtcdCluster, EtcdRight, EtcdServer, PortLease, Restart};
use tokio::sync::OnceCell;

const PASSWORD: &str = "right";
const PATIENCE: Duration = Duration::from_secs(4);

fn options(operation_timeout: Duration) -> EtcdOptions {
    let mut options = EtcdOptions::default();
    options.operation_timeout = operation_timeout;
    options
}

async fn handle(url: &str) -> Result<Arc<dyn LeaseStore>, Trouble> {
    Ok(Arc::new(EtcdStore::connect(url, options(Duration::from_secs(3))).await?))
}

/// For servers that break: it gives up sooner.
async fn brisk_handle(url: &str) -> Result<Arc<dyn LeaseStore>, StoreError> {
    Ok(Arc::new(EtcdStore::connect(url, options(Duration::from_millis(800))).await?))
}

fn trouble(error: impl std::fmt::Display) -> StoreError {
    StoreError::new(rendez_core::ErrorKind::Unsupported, format!("the fixture: {error}"))
}

// --- one server ---

#[derive(Default)]
struct Alone {
    shared: OnceCell<EtcdServer>,
}

#[async_trait]
impl Fixture for Alone {
    fn name(&self) -> &str {
        "etcd"
    }

    fn lacks(&self, fault: Fault) -> Option<&'static str> {
        match fault {
            Fault::FailOver => Some("one server has no other: see etcd-cluster"),
            Fault::Unfit => Some("no setting of a server makes it unfit, only its age"),
            Fault::Full => Some("a full etcd takes no put, so no slot can be let go: see tests/etcd.rs"),
            Fault::Restart
            | Fault::RestartEmpty
            | Fault::Stall
            | Fault::ForeignLayout
            | Fault::Unreachable
            | Fault::WrongCredentials
            | Fault::LeastRights => None,
        }
    }

    fn patience(&self) -> Duration {
        PATIENCE
    }

    async fn store(&self) -> Result<Arc<dyn LeaseStore>, Trouble> {
        // The server of RENDEZ_TEST_ETCD_URL, if that is set.
        let server = self.shared.get_or_try_init(EtcdServer::start).await?;
        handle(&server.url()).await
    }

    async fn own_server(&self) -> Result<Box<dyn OwnServer>, Trouble> {
        let server = EtcdServer::builder().root_password(PASSWORD).start().await?;
        // What `docs/stores/etcd.md` asks for.
        server.create_user("least", PASSWORD, &[EtcdRight::ReadWrite("rendez/".to_owned())]).await?;
        Ok(Box::new(OwnAlone { server, nowhere: PortLease::take()? }))
    }
}

struct OwnAlone {
    server: EtcdServer,
    /// A port that is ours and that nobody listens on.
    nowhere: PortLease,
}

#[async_trait]
impl OwnServer for OwnAlone {
    async fn connect(&self, access: Access) -> Result<Arc<dyn LeaseStore>, StoreError> {
        let url = match access {
            Access::Full => self.server.url(),
            Access::LeastRights => self.server.url_for("least", PASSWORD).map_err(trouble)?,
            Access::WrongCredentials => self.server.url_for("least", "wrong").map_err(trouble)?,
            Access::Unreachable => format!("etcd://{}", self.nowhere.addr()),
        };
        brisk_handle(&url).await
    }

    async fn restart(&mut self) -> Result<(), Trouble> {
        Ok(self.server.restart(Restart::Crashed).await?)
    }

    async fn restart_empty(&mut self) -> Result<(), Trouble> {
        Ok(self.server.restart(Restart::Empty).await?)
    }

    async fn stall(&mut self) -> Result<(), Trouble> {
        Ok(self.server.stop()?)
    }

    async fn resume(&mut self) -> Result<(), Trouble> {
        Ok(self.server.resume()?)
    }

    async fn write_foreign_layout(&mut self, _: &ClusterName) -> Result<(), Trouble> {
        // The server is one cluster's alone: how its name is encoded does not matter.
        let keys = self.server.control(&["get", "--prefix", "rendez//", "--keys-only"]).await?;
        for key in keys.lines().filter(|key| key.ends_with("/meta")) {
            self.server.control(&["put", key, r#"{"layout":7,"of":"a later release"}"#]).await?;
        }
        Ok(())
    }
}

// --- three servers ---

#[derive(Default)]
struct Three {
    shared: OnceCell<EtcdCluster>,
}

#[async_trait]
impl Fixture for Three {
    fn name(&self) -> &str {
        "etcd-cluster"
    }

    fn lacks(&self, fault: Fault) -> Option<&'static str> {
        match fault {
            Fault::FailOver => None,
            Fault::Restart
            | Fault::RestartEmpty
            | Fault::Stall
            | Fault::Full
            | Fault::Unfit
            | Fault::ForeignLayout
            | Fault::Unreachable
            | Fault::WrongCredentials
            | Fault::LeastRights => Some("the same as on one server: see etcd"),
        }
    }

    fn patience(&self) -> Duration {
        PATIENCE
    }

    async fn store(&self) -> Result<Arc<dyn LeaseStore>, Trouble> {
        let cluster = self.shared.get_or_try_init(|| EtcdCluster::builder().start()).await?;
        handle(&cluster.url()).await
    }

    async fn own_server(&self) -> Result<Box<dyn OwnServer>, Trouble> {
        Ok(Box::new(OwnThree(EtcdCluster::builder().start().await?)))
    }
}

struct OwnThree(EtcdCluster);

#[async_trait]
impl OwnServer for OwnThree {
    async fn connect(&self, _: Access) -> Result<Arc<dyn LeaseStore>, StoreError> {
        brisk_handle(&self.0.url()).await
    }

    async fn fail_over(&mut self, _: &ClusterName) -> Result<(), Trouble> {
        let old = self.0.leader().await?;
        self.0.members[old].kill()?;
        self.0.wait_for_another_leader(old).await?;
        Ok(())
    }
}

fn main() -> ExitCode {
    conformance::main(vec![Box::new(Alone::default()), Box::new(Three::default())])
}
