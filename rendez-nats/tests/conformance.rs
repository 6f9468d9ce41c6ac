//! The NATS store keeps the store contract: on one server, and on a cluster of three.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use rendez_core::{ClusterName, LeaseStore, StoreError};
use rendez_nats::async_nats::{self, jetstream};
use rendez_nats::{NatsOptions, NatsStore};
use rendez_testkit::conformance::{self, Access, Fault, Fixture, OwnServer, Trouble};
use rendez_testkit::servers::{
    NatsCluster, NatsRights, NatsServer, NatsServerBuilder, PortLease, READY_BOUND, Restart, wait_until,
};
use tokio::sync::OnceCell;

const PASSWORD: &str = "right";
const PATIENCE: Duration = Duration::from_secs(4);

fn options(operation_timeout: Duration) -> NatsOptions {
    let mut options = NatsOptions::default();
    options.operation_timeout = operation_timeout;
    options
}

async fn handle(url: &str) -> Result<Arc<dyn LeaseStore>, Trouble> {
    Ok(Arc::new(NatsStore::connect(url, options(Duration::from_secs(3))).await?))
}

/// For servers that break: it gives up sooner.
async fn brisk_handle(url: &str) -> Result<Arc<dyn LeaseStore>, StoreError> {
    Ok(Arc::new(NatsStore::connect(url, options(Duration::from_millis(800))).await?))
}

fn trouble(error: impl std::fmt::Display) -> StoreError {
    StoreError::new(rendez_core::ErrorKind::Unsupported, format!("the fixture: {error}"))
}

/// What `docs/stores/nats.md` asks for, for all clusters of a server.
fn least_rights() -> NatsRights {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    NatsRights {
        publish: words(&[
            "$KV.*.>",
            "$JS.API.STREAM.INFO.*",
            "$JS.API.STREAM.CREATE.*",
            "$JS.API.CONSUMER.CREATE.*.>",
            "$JS.FC.>",
        ]),
        subscribe: words(&["_INBOX.>"]),
    }
}

fn with_users() -> NatsServerBuilder {
    NatsServer::builder().user("root", PASSWORD, None).user("least", PASSWORD, Some(least_rights()))
}

// --- one server ---

#[derive(Default)]
struct Alone {
    shared: OnceCell<NatsServer>,
}

#[async_trait]
impl Fixture for Alone {
    fn name(&self) -> &str {
        "nats"
    }

    fn lacks(&self, fault: Fault) -> Option<&'static str> {
        match fault {
            Fault::FailOver => Some("one server has no other: see nats-cluster"),
            Fault::Full => Some("a full JetStream takes no write, so no slot can be let go: see tests/nats.rs"),
            Fault::Restart
            | Fault::RestartEmpty
            | Fault::Stall
            | Fault::Unfit
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
        // The server of RENDEZ_TEST_NATS_URL, if that is set.
        let server = self.shared.get_or_try_init(NatsServer::start).await?;
        handle(&server.url()).await
    }

    async fn own_server(&self) -> Result<Box<dyn OwnServer>, Trouble> {
        let server = with_users().start().await?;
        Ok(Box::new(OwnAlone { server, nowhere: PortLease::take()? }))
    }
}

struct OwnAlone {
    server: NatsServer,
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
            Access::Unreachable => format!("nats://{}", self.nowhere.addr()),
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

    async fn make_unfit(&mut self) -> Result<(), Trouble> {
        Ok(self.server.restart_with_jetstream(false).await?)
    }

    async fn write_foreign_layout(&mut self, _: &ClusterName) -> Result<(), Trouble> {
        // The server is one cluster's alone: how its name is encoded does not matter.
        let context = jetstream::new(client(&self.server.url()).await?);
        for stream in context.stream_names().try_collect::<Vec<_>>().await? {
            let bucket = stream.strip_prefix("KV_").ok_or("a stream that is no bucket")?;
            let layout = r#"{"layout":7,"of":"a later release"}"#;
            context.publish(format!("$KV.{bucket}.meta"), layout.into()).await?.await?;
        }
        Ok(())
    }
}

async fn client(url: &str) -> Result<async_nats::Client, Trouble> {
    let hosts = url.rsplit(['@', '/']).next().unwrap_or_default();
    let servers: Vec<String> = hosts.split(',').map(str::to_owned).collect();
    let login = url.contains('@').then(|| ("root".to_owned(), PASSWORD.to_owned()));
    let options = async_nats::ConnectOptions::new();
    let options = match login {
        Some((user, password)) => options.user_and_password(user, password),
        None => options,
    };
    Ok(options.connect(servers).await?)
}

// --- three servers ---

#[derive(Default)]
struct Three {
    shared: OnceCell<NatsCluster>,
}

#[async_trait]
impl Fixture for Three {
    fn name(&self) -> &str {
        "nats-cluster"
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
            | Fault::LeastRights => Some("the same as on one server: see nats"),
        }
    }

    fn patience(&self) -> Duration {
        PATIENCE
    }

    async fn store(&self) -> Result<Arc<dyn LeaseStore>, Trouble> {
        // A shared one, where each case has a process of its own.
        if let Some(url) = std::env::var("RENDEZ_TEST_NATS_CLUSTER_URL").ok().filter(|url| !url.is_empty()) {
            return handle(&url).await;
        }
        let cluster = self.shared.get_or_try_init(|| NatsCluster::builder().start()).await?;
        handle(&cluster.url()).await
    }

    async fn own_server(&self) -> Result<Box<dyn OwnServer>, Trouble> {
        Ok(Box::new(OwnThree(NatsCluster::builder().start().await?)))
    }
}

struct OwnThree(NatsCluster);

/// Who leads the only bucket of a cluster.
async fn leader(cluster: &NatsCluster) -> Result<String, Trouble> {
    let context = jetstream::new(client(&cluster.url()).await?);
    let names = context.stream_names().try_collect::<Vec<_>>().await?;
    let [name] = &names[..] else { return Err(format!("not one stream, but {names:?}").into()) };
    let stream = context.get_stream(name).await?;
    let leader = stream.cached_info().cluster.as_ref().and_then(|cluster| cluster.leader.clone());
    Ok(leader.ok_or("the bucket has no leader")?)
}

#[async_trait]
impl OwnServer for OwnThree {
    async fn connect(&self, _: Access) -> Result<Arc<dyn LeaseStore>, StoreError> {
        brisk_handle(&self.0.url()).await
    }

    async fn fail_over(&mut self, _: &ClusterName) -> Result<(), Trouble> {
        let old = leader(&self.0).await?;
        self.0.member(&old)?.kill()?;
        let cluster = &self.0;
        wait_until("the bucket to have another leader", READY_BOUND, async || match leader(cluster).await {
            Ok(new) if new != old => Ok(()),
            Ok(_) => Err("the old leader is still the one".to_owned()),
            Err(error) => Err(error.to_string()),
        })
        .await?;
        Ok(())
    }
}

fn main() -> ExitCode {
    conformance::main(vec![Box::new(Alone::default()), Box::new(Three::default())])
}
