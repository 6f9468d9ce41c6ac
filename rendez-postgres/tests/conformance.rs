//! The PostgreSQL store keeps the store contract: on one server, behind a pooler, with a standby.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rendez_core::{ClusterName, LeaseStore, StoreError};
use rendez_postgres::{PostgresOptions, PostgresStore, Standbys};
use rendez_testkit::conformance::{self, Access, Fault, Fixture, OwnServer, Trouble};
use rendez_testkit::servers::{PgBouncer, PortLease, PostgresServer, Replication, Restart};
use tokio::sync::OnceCell;

/// What `docs/stores/postgres.md` asks for.
const RIGHTS: &str = "GRANT USAGE ON SCHEMA rendez TO app; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA rendez TO app";
const USER: &str = "app";
const PASSWORD: &str = "right";

/// Nothing lags: the quiet time is the longest TTL and a second.
fn options() -> PostgresOptions {
    let mut options = PostgresOptions::default();
    options.standbys = Standbys::None;
    options.operation_timeout = Duration::from_secs(3);
    options
}

/// The same for handles of servers that break: they give up sooner.
fn brisk() -> PostgresOptions {
    let mut options = options();
    options.operation_timeout = Duration::from_millis(800);
    options
}

const PATIENCE: Duration = Duration::from_secs(4);

async fn brisk_handle(url: &str) -> Result<Arc<dyn LeaseStore>, StoreError> {
    Ok(Arc::new(PostgresStore::connect(url, brisk()).await?))
}

fn trouble(error: impl std::fmt::Display) -> StoreError {
    StoreError::new(rendez_core::ErrorKind::Unsupported, format!("the fixture: {error}"))
}

// --- one server ---

#[derive(Default)]
struct Standalone {
    shared: OnceCell<PostgresServer>,
}

#[async_trait]
impl Fixture for Standalone {
    fn name(&self) -> &str {
        "postgres"
    }

    fn lacks(&self, fault: Fault) -> Option<&'static str> {
        match fault {
            Fault::FailOver => Some("one server has no standby: see postgres-standby"),
            Fault::Full => Some("a full disk stops the server at a moment of its own: see tests/faults.rs"),
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
        // The server of RENDEZ_TEST_POSTGRES_URL, if that is set.
        let server = self.shared.get_or_try_init(PostgresServer::start).await?;
        Ok(Arc::new(PostgresStore::connect(&server.url(), options()).await?))
    }

    async fn own_server(&self) -> Result<Box<dyn OwnServer>, Trouble> {
        let server = PostgresServer::builder().start().await?;
        server.create_user(USER, PASSWORD).await?;
        Ok(Box::new(OwnStandalone { server, nowhere: PortLease::take()? }))
    }
}

struct OwnStandalone {
    server: PostgresServer,
    /// A port that is ours and that nobody listens on.
    nowhere: PortLease,
}

#[async_trait]
impl OwnServer for OwnStandalone {
    async fn connect(&self, access: Access) -> Result<Arc<dyn LeaseStore>, StoreError> {
        let url = match access {
            Access::Full => self.server.url(),
            Access::LeastRights => {
                // The schema is the administrator's; the user is given its rights on it.
                PostgresStore::connect(&self.server.url(), brisk()).await?;
                self.server.query(RIGHTS).await.map_err(trouble)?;
                self.server.url_for(USER, PASSWORD).map_err(trouble)?
            }
            Access::WrongCredentials => self.server.url_for(USER, "wrong").map_err(trouble)?,
            Access::Unreachable => format!("postgres://{USER}@{}/postgres", self.nowhere.addr()),
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
        self.server.query("ALTER ROLE postgres SET synchronous_commit = off").await?;
        Ok(())
    }

    async fn write_foreign_layout(&mut self, cluster: &ClusterName) -> Result<(), Trouble> {
        // The server is one cluster's alone: its name need not be quoted.
        let _ = cluster;
        self.server.query("UPDATE rendez.cluster SET layout = 7").await?;
        Ok(())
    }
}

// --- behind a pooler ---

#[derive(Default)]
struct Pooled {
    shared: OnceCell<(PostgresServer, PgBouncer)>,
}

/// How many connections the pooler has to the server: fewer than its clients ask for.
const POOLED_SESSIONS: usize = 3;

#[async_trait]
impl Fixture for Pooled {
    fn name(&self) -> &str {
        "postgres-pgbouncer"
    }

    fn lacks(&self, _: Fault) -> Option<&'static str> {
        Some("the same as without a pooler: see postgres")
    }

    fn patience(&self) -> Duration {
        PATIENCE
    }

    async fn store(&self) -> Result<Arc<dyn LeaseStore>, Trouble> {
        let start = async || {
            let server = PostgresServer::builder().start().await?;
            let bouncer = PgBouncer::start(&server, &[], POOLED_SESSIONS).await?;
            Ok::<_, Trouble>((server, bouncer))
        };
        let (server, bouncer) = self.shared.get_or_try_init(start).await?;
        let mut options = options();
        options.pooled = true;
        options.listen_url = Some(server.url());
        Ok(Arc::new(PostgresStore::connect(&bouncer.url(), options).await?))
    }

    async fn own_server(&self) -> Result<Box<dyn OwnServer>, Trouble> {
        Err("no case has a fault here".into())
    }
}

// --- with a standby ---

#[derive(Default)]
struct WithStandby {
    shared: OnceCell<Pair>,
}

struct Pair {
    primary: PostgresServer,
    standby: PostgresServer,
}

impl Pair {
    async fn start() -> Result<Self, Trouble> {
        let mut primary = PostgresServer::builder().start().await?;
        let standby = primary.start_replica(Replication::Asynchronous).await?;
        Ok(Self { primary, standby })
    }

    /// Both, the standby first: whoever connects must find the primary.
    fn url(&self) -> Result<String, StoreError> {
        let (primary, standby) = (self.primary.addr().map_err(trouble)?, self.standby.addr().map_err(trouble)?);
        Ok(self.primary.url().replace(&primary.to_string(), &format!("{standby},{primary}")))
    }
}

#[async_trait]
impl Fixture for WithStandby {
    fn name(&self) -> &str {
        "postgres-standby"
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
            | Fault::LeastRights => Some("the same as on one server: see postgres"),
        }
    }

    fn patience(&self) -> Duration {
        PATIENCE
    }

    async fn store(&self) -> Result<Arc<dyn LeaseStore>, Trouble> {
        let pair = self.shared.get_or_try_init(Pair::start).await?;
        Ok(Arc::new(PostgresStore::connect(&pair.url()?, options()).await?))
    }

    async fn own_server(&self) -> Result<Box<dyn OwnServer>, Trouble> {
        Ok(Box::new(Pair::start().await?))
    }
}

#[async_trait]
impl OwnServer for Pair {
    async fn connect(&self, _: Access) -> Result<Arc<dyn LeaseStore>, StoreError> {
        brisk_handle(&self.url()?).await
    }

    async fn fail_over(&mut self, _: &ClusterName) -> Result<(), Trouble> {
        self.standby.wait_in_step(&self.primary).await?;
        self.primary.kill()?;
        Ok(self.standby.promote().await?)
    }
}

fn main() -> ExitCode {
    conformance::main(vec![
        Box::new(Standalone::default()),
        Box::new(Pooled::default()),
        Box::new(WithStandby::default()),
    ])
}
