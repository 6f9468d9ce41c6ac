//! PostgreSQL: one server, or a primary with a standby where another one shall take its place.

use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use fastrand::Rng;
use rendez_testkit::measure::Failure;
use rendez_testkit::servers::{PostgresServer, Replication, Restart};

use crate::fault::ServerFault;
use crate::judge::Promise;
use crate::store::{Expectation, Server, Store, Struck, between};

const USER: &str = "app";
const PASSWORD: &str = "word";
const ALONE: &str = "one server alone cannot do that";
const MANY: &str = "that is for one server alone";
const DISK_BYTES: u64 = 160 << 20;
/// How far the standby may be behind, as the nodes are told, and how long it is at most.
const LAG_MAX: &str = "3s";
const LAG_MAX_MS: u64 = 2000;

pub(crate) struct Postgres;

#[async_trait]
impl Store for Postgres {
    fn name(&self) -> &'static str {
        "postgres"
    }

    fn expects(&self, fault: ServerFault) -> Expectation {
        match fault {
            ServerFault::Emptied => Expectation::May {
                breaks: &[Promise::NoOverlap],
                because: "a node that remembers nothing may ask first, and then nobody waits; `cold_start_hold` excludes it",
            },
            ServerFault::OldPrimary => Expectation::May {
                breaks: &[Promise::NoOverlap, Promise::TokensRise],
                because: "an old primary that nobody has stopped accepts writes, and nodes that are connected to it stay there; \
                          a synchronous standby, or stopping it before the promotion, excludes it",
            },
            ServerFault::ClockForward => Expectation::May {
                breaks: &[Promise::NoOverlap],
                because: "sessions end early by the step, and their nodes run on until their own deadline; a slewed clock \
                          excludes it",
            },
            ServerFault::Evicting => Expectation::Absent("PostgreSQL throws nothing away"),
            ServerFault::Stalled
            | ServerFault::Restarted
            | ServerFault::EmptiedHeld
            | ServerFault::Failover
            | ServerFault::FailoverLossy
            | ServerFault::Full
            | ServerFault::ReadOnly
            | ServerFault::ClockBack
            | ServerFault::ConnectionsKilled
            | ServerFault::Credentials
            | ServerFault::Certificate => Expectation::Kept,
        }
    }

    async fn start(&self, fault: Option<ServerFault>, dice: &mut Rng) -> Result<Box<dyn Server>, Failure> {
        let alone = PostgresServer::builder();
        let mut step_seconds = 0;
        let (alone, user) = match fault {
            Some(ServerFault::Failover) => return Pair::start(Replication::Synchronous, dice).await,
            Some(ServerFault::FailoverLossy | ServerFault::OldPrimary) => {
                return Pair::start(Replication::Asynchronous, dice).await;
            }
            Some(ServerFault::Full) => (alone.data_bytes_max(DISK_BYTES), None),
            Some(ServerFault::Certificate) => (alone.tls(), None),
            Some(ServerFault::ClockForward) => {
                step_seconds = dice.i64(2..=60);
                (alone.clock_of_its_own(), None)
            }
            Some(ServerFault::ClockBack) => {
                step_seconds = -dice.i64(2..=30);
                (alone.clock_of_its_own(), None)
            }
            Some(ServerFault::Credentials) => (alone, Some(USER)),
            None
            | Some(
                ServerFault::Stalled
                | ServerFault::Restarted
                | ServerFault::Emptied
                | ServerFault::EmptiedHeld
                | ServerFault::ReadOnly
                | ServerFault::Evicting
                | ServerFault::ConnectionsKilled,
            ) => (alone, None),
        };
        let server = alone.start().await?;
        if let Some(user) = user {
            server.create_user(user, PASSWORD).await?;
            server.query(&format!("GRANT CREATE ON DATABASE postgres TO {user}")).await?;
        }
        Ok(Box::new(Alone { server, user, step_seconds, exhaust: dice.bool() }))
    }
}

struct Alone {
    server: PostgresServer,
    /// Who the agents are, if not the superuser.
    user: Option<&'static str>,
    /// How far the clock steps.
    step_seconds: i64,
    /// Whether a full disk is so full that the server cannot write its log.
    exhaust: bool,
}

impl Alone {
    async fn run(&self, sql: &str) -> Result<(), Failure> {
        self.server.query(sql).await?;
        Ok(())
    }

    async fn kill_connections(&self) -> Result<(), Failure> {
        let others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                      WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
        self.run(others).await
    }
}

#[async_trait]
impl Server for Alone {
    fn addr(&self) -> Option<SocketAddr> {
        self.server.addr().ok()
    }

    fn url(&self, _: usize) -> String {
        match self.user {
            Some(user) => self.server.url_for(user, PASSWORD).unwrap_or_default(),
            None => self.server.url(),
        }
    }

    fn options(&self) -> Vec<(&'static str, String)> {
        let authority = self.server.tls().map(|tls| tls.ca.display().to_string());
        authority.map(|path| ("tls_authorities_file", path)).into_iter().collect()
    }

    async fn strike(&mut self, fault: ServerFault) -> Result<Struck, Failure> {
        match fault {
            ServerFault::Stalled => {
                self.server.stop()?;
                return Ok(Struck::Silent);
            }
            ServerFault::Restarted | ServerFault::Emptied | ServerFault::EmptiedHeld => {
                self.server.kill()?;
                return Ok(Struck::Silent);
            }
            ServerFault::Full => {
                self.server.fill()?;
                // What it has reserved for its log lasts longer than any run; used up, the server ends.
                let message = "SELECT pg_logical_emit_message(false, 'a', repeat('x', 1000000))";
                while self.exhaust && self.run(message).await.is_ok() {}
            }
            ServerFault::ReadOnly => {
                self.run("ALTER SYSTEM SET default_transaction_read_only = on").await?;
                self.run("SELECT pg_reload_conf()").await?;
            }
            ServerFault::ClockForward | ServerFault::ClockBack => self.server.set_clock(self.step_seconds)?,
            ServerFault::ConnectionsKilled => self.kill_connections().await?,
            ServerFault::Credentials => {
                self.run(&format!("ALTER ROLE {USER} NOLOGIN")).await?;
                self.kill_connections().await?;
            }
            ServerFault::Certificate => {
                self.server.tls().ok_or("no TLS")?.expire_server()?;
                self.server.restart(Restart::Crashed).await?;
            }
            ServerFault::Failover | ServerFault::FailoverLossy | ServerFault::OldPrimary | ServerFault::Evicting => {
                return Err(ALONE.into());
            }
        }
        Ok(Struck::Answers)
    }

    async fn strike_again(&mut self, fault: ServerFault) -> Result<(), Failure> {
        if fault == ServerFault::ConnectionsKilled { self.kill_connections().await } else { Ok(()) }
    }

    async fn heal(&mut self, fault: ServerFault) -> Result<(), Failure> {
        match fault {
            ServerFault::Stalled => self.server.resume()?,
            ServerFault::Restarted => self.server.restart(Restart::Crashed).await?,
            ServerFault::Emptied | ServerFault::EmptiedHeld => self.server.restart(Restart::Empty).await?,
            ServerFault::Full => {
                self.server.make_room()?;
                // It has ended, for it could not write its log; somebody starts it.
                if self.exhaust {
                    self.server.restart(Restart::Crashed).await?;
                }
            }
            ServerFault::ReadOnly => {
                self.run("ALTER SYSTEM RESET default_transaction_read_only").await?;
                self.run("SELECT pg_reload_conf()").await?;
            }
            ServerFault::ClockForward => self.server.set_clock(0)?,
            // Back to the right time would be a step forward.
            ServerFault::ClockBack | ServerFault::ConnectionsKilled => {}
            ServerFault::Credentials => self.run(&format!("ALTER ROLE {USER} LOGIN")).await?,
            ServerFault::Certificate => {
                self.server.tls().ok_or("no TLS")?.renew_server()?;
                self.server.restart(Restart::Crashed).await?;
            }
            ServerFault::Failover | ServerFault::FailoverLossy | ServerFault::OldPrimary | ServerFault::Evicting => {
                return Err(ALONE.into());
            }
        }
        Ok(())
    }
}

struct Pair {
    primary: PostgresServer,
    standby: PostgresServer,
    /// The standby of the promoted one.
    next: Option<PostgresServer>,
    how: Replication,
    /// How long the standby gets nothing before the primary dies.
    lag: Duration,
}

impl Pair {
    async fn start(how: Replication, dice: &mut Rng) -> Result<Box<dyn Server>, Failure> {
        let alone = PostgresServer::builder();
        let primary = match how {
            Replication::Asynchronous => alone,
            // Any standby, also of the one that is promoted: it is refused as long as it waits for none.
            Replication::Synchronous => alone.config("synchronous_standby_names = '*'"),
        };
        let mut primary = primary.start().await?;
        let standby = primary.start_replica(how).await?;
        Ok(Box::new(Self { primary, standby, next: None, how, lag: between(dice, 300, LAG_MAX_MS) }))
    }
}

#[async_trait]
impl Server for Pair {
    fn addr(&self) -> Option<SocketAddr> {
        None
    }

    fn url(&self, node: usize) -> String {
        let standby = self.standby.addr().map(|addr| addr.to_string()).unwrap_or_default();
        let primary = self.primary.addr().map(|addr| addr.to_string()).unwrap_or_default();
        // Every second node asks the standby first: should there be two primaries, some nodes are with each.
        let both = if node.is_multiple_of(2) { format!("{primary},{standby}") } else { format!("{standby},{primary}") };
        self.primary.url().replace(&primary, &both)
    }

    fn options(&self) -> Vec<(&'static str, String)> {
        match self.how {
            Replication::Synchronous => vec![("standbys", "synchronous".to_owned())],
            Replication::Asynchronous => {
                vec![("standbys", "asynchronous".to_owned()), ("replica_lag_max", LAG_MAX.to_owned())]
            }
        }
    }

    async fn strike(&mut self, fault: ServerFault) -> Result<Struck, Failure> {
        match fault {
            ServerFault::OldPrimary => {
                self.primary.stop()?;
                self.standby.promote().await?;
                self.primary.resume()?;
            }
            ServerFault::FailoverLossy => {
                // What is in no socket cannot arrive late.
                self.standby.query("ALTER SYSTEM SET primary_conninfo = 'host=/nowhere'").await?;
                self.standby.query("SELECT pg_reload_conf()").await?;
                tokio::time::sleep(self.lag).await;
                self.primary.kill()?;
            }
            ServerFault::Failover => self.primary.kill()?,
            ServerFault::Stalled
            | ServerFault::Restarted
            | ServerFault::Emptied
            | ServerFault::EmptiedHeld
            | ServerFault::Full
            | ServerFault::ReadOnly
            | ServerFault::Evicting
            | ServerFault::ClockForward
            | ServerFault::ClockBack
            | ServerFault::ConnectionsKilled
            | ServerFault::Credentials
            | ServerFault::Certificate => return Err(MANY.into()),
        }
        Ok(Struck::Answers)
    }

    async fn heal(&mut self, fault: ServerFault) -> Result<(), Failure> {
        if fault == ServerFault::OldPrimary {
            // Late, but at last somebody stops it.
            return Ok(self.primary.kill()?);
        }
        self.standby.promote().await?;
        if self.how == Replication::Synchronous {
            self.next = Some(self.standby.start_replica(self.how).await?);
        }
        Ok(())
    }
}
