//! Kubernetes: the test kit's server of the Lease API, in this process. What happens to the etcd behind an API server shows here
//! as answers that do not come.

use std::net::SocketAddr;

use async_trait::async_trait;
use fastrand::Rng;
use rendez_testkit::measure::Failure;
use rendez_testkit::servers::{KubernetesServer, Verb};

use crate::fault::ServerFault;
use crate::judge::Promise;
use crate::store::{Expectation, Server, Store, Struck};

const USER: &str = "app";
const RIGHTS: [Verb; 6] = [Verb::Get, Verb::List, Verb::Watch, Verb::Create, Verb::Update, Verb::Delete];
const ABSENT: &str = "this server cannot do that";

pub(crate) struct Kubernetes;

#[async_trait]
impl Store for Kubernetes {
    fn name(&self) -> &'static str {
        "kubernetes"
    }

    fn expects(&self, fault: ServerFault) -> Expectation {
        match fault {
            ServerFault::Emptied => Expectation::May {
                breaks: &[Promise::NoOverlap],
                because: "a node that remembers nothing may ask first, and then nobody waits; `cold_start_hold` excludes it",
            },
            ServerFault::Failover | ServerFault::FailoverLossy | ServerFault::OldPrimary => Expectation::Absent(
                "an API server keeps nothing: for its clients the failover of its etcd is `stalled`",
            ),
            ServerFault::Full | ServerFault::ReadOnly => Expectation::Absent(
                "what an API server answers then is a test of rendez-kubernetes; this server is in memory",
            ),
            ServerFault::Evicting => Expectation::Absent("an API server throws no Lease away"),
            ServerFault::ClockForward | ServerFault::ClockBack => {
                Expectation::Absent("nobody asks the API server's clock: expiry is observed on the nodes' own")
            }
            ServerFault::Certificate => Expectation::Absent("the test kit's server speaks no TLS"),
            ServerFault::Stalled
            | ServerFault::Restarted
            | ServerFault::EmptiedHeld
            | ServerFault::ConnectionsKilled
            | ServerFault::Credentials => Expectation::Kept,
        }
    }

    async fn start(&self, fault: Option<ServerFault>, _: &mut Rng) -> Result<Box<dyn Server>, Failure> {
        let server = KubernetesServer::start().await?;
        let url = match fault {
            Some(ServerFault::Credentials) => server.add_user(USER, &RIGHTS)?,
            _ => server.url(),
        };
        Ok(Box::new(Api { server, url }))
    }
}

struct Api {
    server: KubernetesServer,
    url: String,
}

#[async_trait]
impl Server for Api {
    fn addr(&self) -> Option<SocketAddr> {
        self.server.http_url().strip_prefix("http://")?.parse().ok()
    }

    fn url(&self, _: usize) -> String {
        self.url.clone()
    }

    fn url_through(&self, _: usize, proxy: SocketAddr) -> Result<String, Failure> {
        Ok(self.server.url_at(proxy)?)
    }

    async fn strike(&mut self, fault: ServerFault) -> Result<Struck, Failure> {
        match fault {
            ServerFault::Stalled => self.server.stall(),
            ServerFault::Restarted | ServerFault::Emptied | ServerFault::EmptiedHeld => {
                self.server.stall();
                self.server.restart();
            }
            ServerFault::ConnectionsKilled => {
                self.strike_again(fault).await?;
                return Ok(Struck::Answers);
            }
            ServerFault::Credentials => {
                self.server.add_user(USER, &[])?;
                self.server.restart();
                return Ok(Struck::Answers);
            }
            ServerFault::Failover
            | ServerFault::FailoverLossy
            | ServerFault::OldPrimary
            | ServerFault::Full
            | ServerFault::ReadOnly
            | ServerFault::Evicting
            | ServerFault::ClockForward
            | ServerFault::ClockBack
            | ServerFault::Certificate => return Err(ABSENT.into()),
        }
        Ok(Struck::Silent)
    }

    async fn strike_again(&mut self, fault: ServerFault) -> Result<(), Failure> {
        if fault == ServerFault::ConnectionsKilled {
            self.server.restart();
        }
        Ok(())
    }

    async fn heal(&mut self, fault: ServerFault) -> Result<(), Failure> {
        match fault {
            ServerFault::Emptied | ServerFault::EmptiedHeld => self.server.restart_empty(),
            ServerFault::Credentials => drop(self.server.add_user(USER, &RIGHTS)?),
            ServerFault::Stalled
            | ServerFault::Restarted
            | ServerFault::ConnectionsKilled
            | ServerFault::Failover
            | ServerFault::FailoverLossy
            | ServerFault::OldPrimary
            | ServerFault::Full
            | ServerFault::ReadOnly
            | ServerFault::Evicting
            | ServerFault::ClockForward
            | ServerFault::ClockBack
            | ServerFault::Certificate => {}
        }
        self.server.resume();
        Ok(())
    }
}
