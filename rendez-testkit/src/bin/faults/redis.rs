//! Redis: one server, or a primary with replicas behind Sentinel, or a Redis Cluster where another one shall take its place.

use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use fastrand::Rng;
use rendez_testkit::agents::CLUSTER;
use rendez_testkit::measure::Failure;
use rendez_testkit::servers::{RedisCluster, RedisSentinelSet, RedisServer, Restart};

use crate::fault::ServerFault;
use crate::judge::Promise;
use crate::store::{Expectation, Server, Store, Struck, between};

const USER: &str = "app";
const PASSWORD: &str = "word";
const ALONE: &str = "one server alone cannot do that";
const MANY: &str = "that is for one server alone";

pub(crate) struct Redis;

#[async_trait]
impl Store for Redis {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn expects(&self, fault: ServerFault) -> Expectation {
        match fault {
            ServerFault::Emptied => Expectation::May {
                breaks: &[Promise::NoOverlap],
                because: "a node that remembers nothing may ask first, and then nobody waits; `cold_start_hold` excludes it",
            },
            ServerFault::OldPrimary => Expectation::May {
                breaks: &[Promise::NoOverlap, Promise::TokensRise],
                because: "an old primary accepts writes until it is told that it was replaced; `min-replicas-to-write` \
                          or the option `min_replicas` excludes it",
            },
            ServerFault::ClockForward | ServerFault::ClockBack => {
                Expectation::Absent("libfaketime does not work with Debian's Redis (jemalloc)")
            }
            ServerFault::Stalled
            | ServerFault::Restarted
            | ServerFault::EmptiedHeld
            | ServerFault::Failover
            | ServerFault::FailoverLossy
            | ServerFault::Full
            | ServerFault::ReadOnly
            | ServerFault::Evicting
            | ServerFault::ConnectionsKilled
            | ServerFault::Credentials
            | ServerFault::Certificate => Expectation::Kept,
        }
    }

    async fn start(&self, fault: Option<ServerFault>, dice: &mut Rng) -> Result<Box<dyn Server>, Failure> {
        let alone = RedisServer::builder();
        let (alone, user) = match fault {
            Some(ServerFault::Failover) if dice.bool() => {
                return Ok(Box::new(Cluster { cluster: RedisCluster::builder().start().await?, old: 0 }));
            }
            Some(ServerFault::Failover | ServerFault::FailoverLossy | ServerFault::OldPrimary) => {
                let set = RedisSentinelSet::builder().start().await?;
                return Ok(Box::new(Sentinels { set, old: 0, lag: between(dice, 300, 2000) }));
            }
            Some(ServerFault::Restarted) => (alone.append_only(true), None),
            Some(ServerFault::Certificate) => (alone.append_only(true).tls(), None),
            Some(ServerFault::Credentials) => {
                (alone.user(USER, format!("on >{PASSWORD} ~rendez:* &rendez:* +@all")), Some(USER))
            }
            None
            | Some(
                ServerFault::Stalled
                | ServerFault::Emptied
                | ServerFault::EmptiedHeld
                | ServerFault::Full
                | ServerFault::ReadOnly
                | ServerFault::Evicting
                | ServerFault::ClockForward
                | ServerFault::ClockBack
                | ServerFault::ConnectionsKilled,
            ) => (alone, None),
        };
        Ok(Box::new(Alone { server: alone.start().await?, user }))
    }
}

struct Alone {
    server: RedisServer,
    /// Who the agents are, if not the default user.
    user: Option<&'static str>,
}

impl Alone {
    async fn run(&self, words: &str) -> Result<(), Failure> {
        self.server.command(&words.split(' ').collect::<Vec<_>>()).await?;
        Ok(())
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
            ServerFault::Full => self.run("CONFIG SET maxmemory 1").await?,
            ServerFault::ReadOnly => self.run("REPLICAOF 127.0.0.1 1").await?,
            ServerFault::Evicting => {
                self.run("CONFIG SET maxmemory-policy allkeys-lru").await?;
                self.run("CONFIG SET maxmemory 1").await?;
                // Refused in the end, for nothing is left to throw away by then.
                let _ = self.run("SET junk junk").await;
            }
            ServerFault::ConnectionsKilled => self.strike_again(fault).await?,
            ServerFault::Credentials => {
                self.run(&format!("ACL SETUSER {USER} off")).await?;
                self.run(&format!("CLIENT KILL USER {USER}")).await?;
            }
            ServerFault::Certificate => {
                self.server.tls().ok_or("no TLS")?.expire_server()?;
                self.server.restart(Restart::Crashed).await?;
            }
            ServerFault::Failover
            | ServerFault::FailoverLossy
            | ServerFault::OldPrimary
            | ServerFault::ClockForward
            | ServerFault::ClockBack => return Err(ALONE.into()),
        }
        Ok(Struck::Answers)
    }

    async fn strike_again(&mut self, fault: ServerFault) -> Result<(), Failure> {
        if fault == ServerFault::ConnectionsKilled {
            self.run("CLIENT KILL TYPE normal SKIPME yes").await?;
            self.run("CLIENT KILL TYPE pubsub SKIPME yes").await?;
        }
        Ok(())
    }

    async fn heal(&mut self, fault: ServerFault) -> Result<(), Failure> {
        match fault {
            ServerFault::Stalled => self.server.resume()?,
            ServerFault::Restarted => self.server.restart(Restart::Crashed).await?,
            ServerFault::Emptied | ServerFault::EmptiedHeld => self.server.restart(Restart::Empty).await?,
            ServerFault::Full => self.run("CONFIG SET maxmemory 0").await?,
            ServerFault::ReadOnly => self.run("REPLICAOF NO ONE").await?,
            ServerFault::Evicting => {
                self.run("CONFIG SET maxmemory 0").await?;
                self.run("CONFIG SET maxmemory-policy noeviction").await?;
            }
            ServerFault::ConnectionsKilled => {}
            ServerFault::Credentials => self.run(&format!("ACL SETUSER {USER} on")).await?,
            ServerFault::Certificate => {
                self.server.tls().ok_or("no TLS")?.renew_server()?;
                self.server.restart(Restart::Crashed).await?;
            }
            ServerFault::Failover
            | ServerFault::FailoverLossy
            | ServerFault::OldPrimary
            | ServerFault::ClockForward
            | ServerFault::ClockBack => return Err(ALONE.into()),
        }
        Ok(())
    }
}

struct Sentinels {
    set: RedisSentinelSet,
    old: usize,
    /// How long the replica gets nothing before the primary dies.
    lag: Duration,
}

#[async_trait]
impl Server for Sentinels {
    fn addr(&self) -> Option<SocketAddr> {
        None
    }

    fn url(&self, _: usize) -> String {
        self.set.url()
    }

    async fn strike(&mut self, fault: ServerFault) -> Result<Struck, Failure> {
        self.old = self.set.primary().await?;
        match fault {
            ServerFault::OldPrimary => {
                self.set.servers[self.old].stop()?;
                self.set.wait_for_failover(self.old).await?;
                self.set.servers[self.old].resume()?;
            }
            ServerFault::FailoverLossy => {
                let replica = &self.set.servers[1 - self.old];
                // It is refused when it connects anew: what is in no socket cannot arrive late.
                replica.command(&["CONFIG", "SET", "masteruser", "nobody"]).await?;
                replica.command(&["CLIENT", "KILL", "TYPE", "master"]).await?;
                tokio::time::sleep(self.lag).await;
                self.set.servers[self.old].kill()?;
            }
            ServerFault::Failover => self.set.servers[self.old].kill()?,
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
        if fault != ServerFault::OldPrimary {
            self.set.wait_for_failover(self.old).await?;
            for server in &self.set.servers {
                // One that is down reads it from its file.
                let _ = server.command(&["CONFIG", "SET", "masteruser", "rendez-testkit"]).await;
            }
            self.set.servers[self.old].restart(Restart::Crashed).await?;
        }
        Ok(self.set.wait_ready().await?)
    }
}

struct Cluster {
    cluster: RedisCluster,
    old: usize,
}

impl Cluster {
    fn key() -> String {
        format!("rendez:{{{CLUSTER}}}:meta")
    }
}

#[async_trait]
impl Server for Cluster {
    fn addr(&self) -> Option<SocketAddr> {
        None
    }

    fn url(&self, _: usize) -> String {
        self.cluster.url()
    }

    async fn strike(&mut self, _: ServerFault) -> Result<Struck, Failure> {
        self.old = self.cluster.primary_of(&Self::key()).await?;
        self.cluster.servers[self.old].kill()?;
        Ok(Struck::Answers)
    }

    async fn heal(&mut self, _: ServerFault) -> Result<(), Failure> {
        self.cluster.wait_for_failover(&Self::key(), self.old).await?;
        Ok(self.cluster.servers[self.old].restart(Restart::Crashed).await?)
    }
}
