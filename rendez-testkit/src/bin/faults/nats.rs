//! NATS 2.15 with JetStream: one server, or a cluster of three of which one fails.

use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use fastrand::Rng;
use rendez_testkit::measure::Failure;
use rendez_testkit::servers::{NatsCluster, NatsServer, Restart};

use crate::fault::{Fault, ServerFault};
use crate::judge::Promise;
use crate::store::{Expectation, Server, Store, Struck};

const ALONE: &str = "one server alone cannot do that";
const MANY: &str = "that is for one server alone";
/// Longer than the servers of a cluster take to choose another leader.
const REPLACED_AFTER: Duration = Duration::from_secs(8);

pub(crate) struct Nats;

#[async_trait]
impl Store for Nats {
    fn name(&self) -> &'static str {
        "nats"
    }

    fn expects(&self, fault: ServerFault) -> Expectation {
        match fault {
            ServerFault::Emptied => Expectation::May {
                breaks: &[Promise::NoOverlap],
                because: "a node that remembers nothing may ask first, and then nobody waits; `cold_start_hold` excludes it",
            },
            ServerFault::FailoverLossy => {
                Expectation::Absent("a leader has what a majority acknowledged, or it is not elected")
            }
            ServerFault::Full => Expectation::Absent("a test of rendez-nats fills one"),
            ServerFault::Evicting => Expectation::Absent("a bucket that throws data away is refused when it is opened"),
            ServerFault::ClockForward | ServerFault::ClockBack => {
                Expectation::Absent("a Go program does not ask libfaketime")
            }
            ServerFault::ConnectionsKilled => Expectation::Absent(
                "NATS has no command for it; `reset` closes them on the way, `restarted` at the server",
            ),
            ServerFault::Credentials => {
                Expectation::Absent("users stand in a file that this server reads at its start: that is `restarted`")
            }
            ServerFault::Stalled
            | ServerFault::Restarted
            | ServerFault::EmptiedHeld
            | ServerFault::Failover
            | ServerFault::OldPrimary
            | ServerFault::ReadOnly
            | ServerFault::Certificate => Expectation::Kept,
        }
    }

    fn refuses_newcomers(&self, fault: Fault) -> bool {
        // A server without JetStream is named as the unfit one that it is.
        fault == Fault::Server(ServerFault::ReadOnly) || fault.refuses_newcomers()
    }

    async fn start(&self, fault: Option<ServerFault>, dice: &mut Rng) -> Result<Box<dyn Server>, Failure> {
        let alone = NatsServer::builder();
        let alone = match fault {
            Some(ServerFault::Failover | ServerFault::OldPrimary) => {
                let cluster = NatsCluster::builder().start().await?;
                let which = dice.usize(..cluster.members.len());
                return Ok(Box::new(Members { cluster, which }));
            }
            Some(ServerFault::Certificate) => alone.tls(),
            None
            | Some(
                ServerFault::Stalled
                | ServerFault::Restarted
                | ServerFault::Emptied
                | ServerFault::EmptiedHeld
                | ServerFault::FailoverLossy
                | ServerFault::Full
                | ServerFault::ReadOnly
                | ServerFault::Evicting
                | ServerFault::ClockForward
                | ServerFault::ClockBack
                | ServerFault::ConnectionsKilled
                | ServerFault::Credentials,
            ) => alone,
        };
        Ok(Box::new(Alone { server: alone.start().await? }))
    }
}

struct Alone {
    server: NatsServer,
}

#[async_trait]
impl Server for Alone {
    fn addr(&self) -> Option<SocketAddr> {
        self.server.addr().ok()
    }

    fn url(&self, _: usize) -> String {
        self.server.url()
    }

    fn options(&self) -> Vec<(&'static str, String)> {
        let authority = self.server.tls().map(|tls| tls.ca.display().to_string());
        authority.map(|path| ("tls_authorities_file", path)).into_iter().collect()
    }

    async fn strike(&mut self, fault: ServerFault) -> Result<Struck, Failure> {
        match fault {
            ServerFault::Stalled => self.server.stop()?,
            ServerFault::Restarted | ServerFault::Emptied | ServerFault::EmptiedHeld => self.server.kill()?,
            // Nothing can be written, nor read.
            ServerFault::ReadOnly => self.server.restart_with_jetstream(false).await?,
            ServerFault::Certificate => {
                self.server.tls().ok_or("no TLS")?.expire_server()?;
                self.server.restart(Restart::Crashed).await?;
            }
            ServerFault::Failover
            | ServerFault::FailoverLossy
            | ServerFault::OldPrimary
            | ServerFault::Full
            | ServerFault::Evicting
            | ServerFault::ClockForward
            | ServerFault::ClockBack
            | ServerFault::ConnectionsKilled
            | ServerFault::Credentials => return Err(ALONE.into()),
        }
        Ok(Struck::Silent)
    }

    async fn heal(&mut self, fault: ServerFault) -> Result<(), Failure> {
        match fault {
            ServerFault::Stalled => self.server.resume()?,
            ServerFault::Restarted => self.server.restart(Restart::Crashed).await?,
            ServerFault::ReadOnly => self.server.restart_with_jetstream(true).await?,
            ServerFault::Emptied | ServerFault::EmptiedHeld => self.server.restart(Restart::Empty).await?,
            ServerFault::Certificate => {
                self.server.tls().ok_or("no TLS")?.renew_server()?;
                self.server.restart(Restart::Crashed).await?;
            }
            ServerFault::Failover
            | ServerFault::FailoverLossy
            | ServerFault::OldPrimary
            | ServerFault::Full
            | ServerFault::Evicting
            | ServerFault::ClockForward
            | ServerFault::ClockBack
            | ServerFault::ConnectionsKilled
            | ServerFault::Credentials => return Err(ALONE.into()),
        }
        Ok(())
    }
}

/// Of which one fails: the bucket's leader in one of three runs.
struct Members {
    cluster: NatsCluster,
    which: usize,
}

#[async_trait]
impl Server for Members {
    fn addr(&self) -> Option<SocketAddr> {
        None
    }

    fn url(&self, _: usize) -> String {
        self.cluster.url()
    }

    async fn strike(&mut self, fault: ServerFault) -> Result<Struck, Failure> {
        let member = &mut self.cluster.members[self.which];
        match fault {
            ServerFault::OldPrimary => {
                member.stop()?;
                tokio::time::sleep(REPLACED_AFTER).await;
                member.resume()?;
            }
            ServerFault::Failover => member.kill()?,
            ServerFault::Stalled
            | ServerFault::Restarted
            | ServerFault::Emptied
            | ServerFault::EmptiedHeld
            | ServerFault::FailoverLossy
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
        if fault == ServerFault::Failover {
            self.cluster.members[self.which].restart(Restart::Crashed).await?;
        }
        Ok(self.cluster.wait_ready().await?)
    }
}
