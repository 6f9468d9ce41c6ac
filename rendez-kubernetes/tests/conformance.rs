//! The Kubernetes store keeps the store contract: on the test kit's server, or on the namespace of a real one that
//! `RENDEZ_TEST_KUBERNETES_URL` names.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rendez_core::{ClusterName, LeaseStore, StoreError};
use rendez_kubernetes::{KubernetesOptions, KubernetesStore};
use rendez_testkit::conformance::{self, Access, Fault, Fixture, OwnServer, Trouble};
use rendez_testkit::servers::{KubernetesServer, PortLease};
use tokio::sync::OnceCell;

mod role;

const PATIENCE: Duration = Duration::from_secs(6);

fn options(operation_timeout: Duration) -> KubernetesOptions {
    let mut options = KubernetesOptions::default();
    options.operation_timeout = operation_timeout;
    options
}

/// For servers that break: it gives up sooner.
async fn brisk_handle(url: &str) -> Result<Arc<dyn LeaseStore>, StoreError> {
    Ok(Arc::new(KubernetesStore::connect(url, options(Duration::from_millis(800))).await?))
}

#[derive(Default)]
struct OneNamespace {
    shared: OnceCell<Shared>,
}

enum Shared {
    Real(String),
    Own(KubernetesServer),
}

#[async_trait]
impl Fixture for OneNamespace {
    fn name(&self) -> &str {
        "kubernetes"
    }

    fn lacks(&self, fault: Fault) -> Option<&'static str> {
        match fault {
            Fault::FailOver => Some("another API server asks the same etcd: there is nothing to lose on the way"),
            Fault::Unfit => Some("no setting of an API server makes its Leases unfit"),
            Fault::Full => Some(
                "a full etcd takes no update, so no session can be extended either: its answer is tested in src/errors.rs",
            ),
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
        let shared = self.shared.get_or_try_init(|| async {
            Ok::<Shared, Trouble>(match KubernetesServer::from_environment() {
                Some(url) => Shared::Real(url),
                None => Shared::Own(KubernetesServer::start().await?),
            })
        });
        let url = match shared.await? {
            Shared::Real(url) => url.clone(),
            Shared::Own(server) => server.url(),
        };
        Ok(Arc::new(KubernetesStore::connect(&url, options(Duration::from_secs(5))).await?))
    }

    async fn own_server(&self) -> Result<Box<dyn OwnServer>, Trouble> {
        let server = KubernetesServer::start().await?;
        let nowhere = PortLease::take()?;
        let least = server.add_user("least", &role::verbs()?)?;
        let wrong = server.url_with_token("wrong")?;
        let unreachable = server.url_at(nowhere.addr())?;
        Ok(Box::new(Own { server, least, wrong, unreachable, _nowhere: nowhere }))
    }
}

struct Own {
    server: KubernetesServer,
    least: String,
    wrong: String,
    unreachable: String,
    /// A port that is ours and that nobody listens on.
    _nowhere: PortLease,
}

#[async_trait]
impl OwnServer for Own {
    async fn connect(&self, access: Access) -> Result<Arc<dyn LeaseStore>, StoreError> {
        match access {
            Access::Full => brisk_handle(&self.server.url()).await,
            Access::LeastRights => brisk_handle(&self.least).await,
            Access::WrongCredentials => brisk_handle(&self.wrong).await,
            Access::Unreachable => brisk_handle(&self.unreachable).await,
        }
    }

    async fn restart(&mut self) -> Result<(), Trouble> {
        self.server.restart();
        Ok(())
    }

    async fn restart_empty(&mut self) -> Result<(), Trouble> {
        self.server.restart_empty();
        Ok(())
    }

    async fn stall(&mut self) -> Result<(), Trouble> {
        self.server.stall();
        Ok(())
    }

    async fn resume(&mut self) -> Result<(), Trouble> {
        self.server.resume();
        Ok(())
    }

    async fn write_foreign_layout(&mut self, _: &ClusterName) -> Result<(), Trouble> {
        // The server is one cluster's alone: how its name is encoded does not matter.
        for mut lease in self.server.leases() {
            if lease["metadata"]["labels"]["rendez.dev/kind"] == "meta" {
                lease["metadata"]["annotations"]["rendez.dev/record"] = r#"{"layout":7,"of":"a later release"}"#.into();
                self.server.replace(&lease).await.map_err(|refusal| refusal.message)?;
            }
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    conformance::main(vec![Box::new(OneNamespace::default())])
}
