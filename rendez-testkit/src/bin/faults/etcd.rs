//! etcd 3.5: one server, or a cluster of three where the leader or a majority fails.

use std::net::SocketAddr;

use async_trait::async_trait;
use fastrand::Rng;
use rendez_testkit::measure::Failure;
use rendez_testkit::servers::{EtcdCluster, EtcdRight, EtcdServer, EtcdServerBuilder, EtcdVersion, Restart};

use crate::fault::ServerFault;
use crate::judge::Promise;
use crate::store::{Expectation, Server, Store, Struck};

const USER: &str = "app";
const PASSWORD: &str = "word";
const ALONE: &str = "one server alone cannot do that";
const MANY: &str = "that is for one server alone";
const QUOTA_BYTES: u64 = 4 << 20;

pub(crate) struct Etcd;

fn member() -> EtcdServerBuilder {
    EtcdServer::builder().version(EtcdVersion::V3_5)
}

#[async_trait]
impl Store for Etcd {
    fn name(&self) -> &'static str {
        "etcd"
    }

    fn expects(&self, fault: ServerFault) -> Expectation {
        match fault {
            ServerFault::Emptied => Expectation::May {
                breaks: &[Promise::NoOverlap],
                because: "a node that remembers nothing may ask first, and then nobody waits; `cold_start_hold` excludes it",
            },
            ServerFault::OldPrimary => Expectation::May {
                breaks: &[Promise::NoOverlap],
                because: "before 3.4.30 and 3.5.12 a stalled leader that wakes up may end all leases too early \
                          (this is 3.5.1)",
            },
            ServerFault::FailoverLossy => {
                Expectation::Absent("a leader has what was acknowledged, or it is not elected")
            }
            ServerFault::Evicting => Expectation::Absent("etcd throws nothing away"),
            ServerFault::ClockForward | ServerFault::ClockBack => Expectation::Absent(
                "etcd counts leases on a clock that cannot be set, and a Go program does not ask libfaketime",
            ),
            ServerFault::ConnectionsKilled => Expectation::Absent(
                "etcd has no command for it; `reset` closes them on the way, `restarted` at the server",
            ),
            ServerFault::Stalled
            | ServerFault::Restarted
            | ServerFault::EmptiedHeld
            | ServerFault::Failover
            | ServerFault::Full
            | ServerFault::ReadOnly
            | ServerFault::Credentials
            | ServerFault::Certificate => Expectation::Kept,
        }
    }

    async fn start(&self, fault: Option<ServerFault>, _: &mut Rng) -> Result<Box<dyn Server>, Failure> {
        let (alone, user) = match fault {
            Some(ServerFault::Failover | ServerFault::OldPrimary | ServerFault::ReadOnly) => {
                let cluster = EtcdCluster::builder().member(member()).start().await?;
                return Ok(Box::new(Members { cluster, down: Vec::new() }));
            }
            Some(ServerFault::Full) => (member().quota_bytes(QUOTA_BYTES), None),
            Some(ServerFault::Certificate) => (member().tls(), None),
            Some(ServerFault::Credentials) => (member().root_password("secret"), Some(USER)),
            None
            | Some(
                ServerFault::Stalled
                | ServerFault::Restarted
                | ServerFault::Emptied
                | ServerFault::EmptiedHeld
                | ServerFault::FailoverLossy
                | ServerFault::Evicting
                | ServerFault::ClockForward
                | ServerFault::ClockBack
                | ServerFault::ConnectionsKilled,
            ) => (member(), None),
        };
        let server = alone.start().await?;
        if let Some(user) = user {
            server.create_user(user, PASSWORD, &[EtcdRight::ReadWrite("rendez/".to_owned())]).await?;
        }
        Ok(Box::new(Alone { server, user }))
    }
}

struct Alone {
    server: EtcdServer,
    /// Who the agents are, where there are users.
    user: Option<&'static str>,
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
            ServerFault::Full => self.server.fill().await?,
            ServerFault::Credentials => drop(self.server.control(&["user", "revoke-role", USER, USER]).await?),
            ServerFault::Certificate => {
                self.server.tls().ok_or("no TLS")?.expire_server()?;
                self.server.restart(Restart::Crashed).await?;
            }
            ServerFault::Failover
            | ServerFault::FailoverLossy
            | ServerFault::OldPrimary
            | ServerFault::ReadOnly
            | ServerFault::Evicting
            | ServerFault::ClockForward
            | ServerFault::ClockBack
            | ServerFault::ConnectionsKilled => return Err(ALONE.into()),
        }
        Ok(Struck::Answers)
    }

    async fn heal(&mut self, fault: ServerFault) -> Result<(), Failure> {
        match fault {
            ServerFault::Stalled => self.server.resume()?,
            ServerFault::Restarted => self.server.restart(Restart::Crashed).await?,
            ServerFault::Emptied | ServerFault::EmptiedHeld => self.server.restart(Restart::Empty).await?,
            ServerFault::Full => self.server.make_room().await?,
            ServerFault::Credentials => drop(self.server.control(&["user", "grant-role", USER, USER]).await?),
            ServerFault::Certificate => {
                self.server.tls().ok_or("no TLS")?.renew_server()?;
                self.server.restart(Restart::Crashed).await?;
            }
            ServerFault::Failover
            | ServerFault::FailoverLossy
            | ServerFault::OldPrimary
            | ServerFault::ReadOnly
            | ServerFault::Evicting
            | ServerFault::ClockForward
            | ServerFault::ClockBack
            | ServerFault::ConnectionsKilled => return Err(ALONE.into()),
        }
        Ok(())
    }
}

struct Members {
    cluster: EtcdCluster,
    down: Vec<usize>,
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
        let leader = self.cluster.leader().await?;
        match fault {
            ServerFault::OldPrimary => {
                self.cluster.members[leader].stop()?;
                self.cluster.wait_for_another_leader(leader).await?;
                self.cluster.members[leader].resume()?;
                return Ok(Struck::Answers);
            }
            // Without a majority nothing is written, and nothing read that counts.
            ServerFault::ReadOnly => self.down = vec![leader, (leader + 1) % self.cluster.members.len()],
            ServerFault::Failover => self.down = vec![leader],
            ServerFault::Stalled
            | ServerFault::Restarted
            | ServerFault::Emptied
            | ServerFault::EmptiedHeld
            | ServerFault::FailoverLossy
            | ServerFault::Full
            | ServerFault::Evicting
            | ServerFault::ClockForward
            | ServerFault::ClockBack
            | ServerFault::ConnectionsKilled
            | ServerFault::Credentials
            | ServerFault::Certificate => return Err(MANY.into()),
        }
        for place in &self.down {
            self.cluster.members[*place].kill()?;
        }
        Ok(if fault == ServerFault::ReadOnly { Struck::Silent } else { Struck::Answers })
    }

    async fn heal(&mut self, _: ServerFault) -> Result<(), Failure> {
        for place in std::mem::take(&mut self.down) {
            self.cluster.members[place].restart(Restart::Crashed).await?;
        }
        Ok(self.cluster.wait_ready().await?)
    }
}
