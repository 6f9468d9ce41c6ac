//! A Redis primary with replicas, watched by Sentinels.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use tempfile::TempDir;

use super::guarded::{GuardedProcess, LOG};
use super::port::PortLease;
use super::redis::{HARNESS_USER, RedisServer, RedisServerBuilder};
use super::resp::{RespClient, RespValue};
use super::wait::{Patience, READY_BOUND, wait_until};
use super::{INSTALL_REDIS, ServerError, find_program, log_tail};

const SENTINELS: usize = 3;
const QUORUM: usize = 2;

/// One Sentinel process.
#[derive(Debug)]
pub struct Sentinel {
    // Dropped first: the process must be gone before its port and its folder are.
    process: GuardedProcess,
    port: PortLease,
    folder: TempDir,
}

/// A primary, its replicas, and three Sentinels that fail over fast (about 2 s after a death).
///
/// ```no_run
/// # async fn example() -> Result<(), rendez_testkit::servers::ServerError> {
/// use rendez_testkit::servers::RedisSentinelSet;
///
/// let mut set = RedisSentinelSet::builder().replicas(2).start().await?;
/// println!("{}", set.url()); // redis-sentinel://127.0.0.1:1,127.0.0.1:2,127.0.0.1:3/main
/// let old = set.primary().await?;
/// set.servers[old].kill()?;
/// let new = set.wait_for_failover(old).await?;
/// assert_ne!(old, new);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct RedisSentinelSet {
    /// The servers; at the start, the primary is the first.
    pub servers: Vec<RedisServer>,
    /// The Sentinels.
    pub sentinels: Vec<Sentinel>,
}

/// How a set of Sentinels and servers is to be.
#[derive(Debug, Clone)]
#[must_use]
pub struct RedisSentinelSetBuilder {
    replicas: usize,
    down_after_ms: u64,
    server: RedisServerBuilder,
}

impl RedisSentinelSet {
    /// The name under which the Sentinels know the primary.
    pub const SERVICE: &str = "main";

    /// Starts to describe a set; one replica unless said otherwise.
    pub fn builder() -> RedisSentinelSetBuilder {
        RedisSentinelSetBuilder { replicas: 1, down_after_ms: 1000, server: RedisServer::builder() }
    }

    /// The store URL: all Sentinels and the service.
    #[must_use]
    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.sentinels.iter().map(|sentinel| sentinel.port.addr().to_string()).collect();
        format!("redis-sentinel://{}/{}", hosts.join(","), Self::SERVICE)
    }

    /// The place in [`servers`](Self::servers) of the server that a majority of the Sentinels names as primary.
    ///
    /// # Errors
    /// [`ServerError::Answer`] if no majority agrees at the moment.
    pub async fn primary(&self) -> Result<usize, ServerError> {
        let mut votes = vec![0; self.servers.len()];
        for sentinel in &self.sentinels {
            let Ok(named) = sentinel.command(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", Self::SERVICE]).await else {
                continue;
            };
            let port = named.items().get(1).map(RespValue::text).unwrap_or_default();
            for (vote, server) in votes.iter_mut().zip(&self.servers) {
                *vote += usize::from(server.addr()?.port().to_string() == port);
            }
        }
        votes.iter().position(|votes| *votes > SENTINELS / 2).ok_or_else(|| ServerError::Answer {
            request: "SENTINEL GET-MASTER-ADDR-BY-NAME".to_owned(),
            answer: format!("votes {votes:?}, no majority"),
        })
    }

    /// Returns the place of the new primary when a majority names another one than `old`, and it says so itself.
    ///
    /// # Errors
    /// [`ServerError::Timeout`] if that does not happen.
    pub async fn wait_for_failover(&self, old: usize) -> Result<usize, ServerError> {
        wait_until("the Sentinels to choose another primary", READY_BOUND, async || {
            let new = self.primary().await.map_err(|error| error.to_string())?;
            if new == old {
                return Err("the old primary is still the one".to_owned());
            }
            match self.servers[new].info("role").await {
                Ok(role) if role == "master" => Ok(new),
                Ok(role) => Err(format!("server {new} is {role}")),
                Err(error) => Err(error.to_string()),
            }
        })
        .await
    }

    /// Returns when all Sentinels know each other and all replicas, and see nobody down.
    ///
    /// # Errors
    /// [`ServerError::Timeout`] if that does not happen.
    pub async fn wait_ready(&self) -> Result<(), ServerError> {
        let replicas = (self.servers.len() - 1).to_string();
        let others = (SENTINELS - 1).to_string();
        for sentinel in &self.sentinels {
            wait_until("a Sentinel to know everybody", READY_BOUND, async || {
                let ask = async {
                    let state = sentinel.command(&["SENTINEL", "MASTER", Self::SERVICE]).await?;
                    let list = sentinel.command(&["SENTINEL", "REPLICAS", Self::SERVICE]).await?;
                    Ok::<_, ServerError>((state, list))
                };
                let (state, list) = ask.await.map_err(|error| format!("{error}; its log:\n{}", sentinel.log()))?;
                let field = |name: &str| state.field(name).map(RespValue::text).unwrap_or_default();
                let good = |replica: &RespValue| {
                    let text = |name: &str| replica.field(name).map(RespValue::text).unwrap_or_default();
                    text("flags") == "slave" && text("master-link-status") == "ok"
                };
                let known = field("num-slaves") == replicas && field("num-other-sentinels") == others;
                if known && field("flags") == "master" && list.items().iter().all(good) {
                    return Ok(());
                }
                Err(format!("{state}\n{:?}", list.items().iter().map(RespValue::to_string).collect::<Vec<_>>()))
            })
            .await?;
        }
        Ok(())
    }
}

impl RedisSentinelSetBuilder {
    /// How many replicas the primary has at the start; at least one.
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.replicas = replicas;
        self
    }

    /// After how long a silent server counts as down.
    pub fn down_after_ms(mut self, down_after_ms: u64) -> Self {
        self.down_after_ms = down_after_ms;
        self
    }

    /// How each server is to be. TLS is not supported here.
    pub fn server(mut self, server: RedisServerBuilder) -> Self {
        self.server = server;
        self
    }

    /// Starts everything; returns when all Sentinels know each other and all replicas.
    ///
    /// # Errors
    /// As [`RedisServerBuilder::start`].
    pub async fn start(self) -> Result<RedisSentinelSet, ServerError> {
        if self.replicas == 0 {
            return Err(ServerError::Config(
                "a set without replicas cannot fail over: ask for at least one".to_owned(),
            ));
        }
        let primary = self.server.clone().start().await?;
        let primary_addr = primary.addr()?;
        let mut servers = vec![primary];
        for _ in 0..self.replicas {
            let replica = servers[0].start_replica().await?;
            servers.push(replica);
        }
        let mut sentinels = Vec::new();
        for _ in 0..SENTINELS {
            sentinels.push(Sentinel::start(primary_addr, self.down_after_ms).await?);
        }
        let set = RedisSentinelSet { servers, sentinels };
        set.wait_ready().await?;
        Ok(set)
    }
}

impl Sentinel {
    async fn start(primary: SocketAddr, down_after_ms: u64) -> Result<Self, ServerError> {
        let folder = TempDir::with_prefix("rendez-sentinel-").map_err(ServerError::io("create a folder"))?;
        let port = PortLease::take()?;
        let service = RedisSentinelSet::SERVICE;
        let text = format!(
            "bind 127.0.0.1\n\
             port {}\n\
             dir {}\n\
             daemonize no\n\
             sentinel monitor {service} {} {} {QUORUM}\n\
             sentinel auth-user {service} {HARNESS_USER}\n\
             sentinel auth-pass {service} any\n\
             sentinel down-after-milliseconds {service} {down_after_ms}\n\
             sentinel failover-timeout {service} 3000\n\
             sentinel parallel-syncs {service} 1\n",
            port.port(),
            folder.path().display(),
            primary.ip(),
            primary.port(),
        );
        let config = folder.path().join("sentinel.conf");
        fs::write(&config, text).map_err(ServerError::io(format!("write {}", config.display())))?;
        let process = Self::spawn(&folder)?;
        let mut sentinel = Self { process, port, folder };
        sentinel.wait_ready().await?;
        Ok(sentinel)
    }

    /// The Sentinel's address.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.port.addr()
    }

    /// Freezes the Sentinel (SIGSTOP).
    ///
    /// # Errors
    /// [`ServerError`] if it has ended.
    pub fn stop(&mut self) -> Result<(), ServerError> {
        self.process.stop()
    }

    /// Lets a stopped Sentinel go on (SIGCONT).
    ///
    /// # Errors
    /// [`ServerError`] if it has ended.
    pub fn resume(&mut self) -> Result<(), ServerError> {
        self.process.resume()
    }

    /// Kills the Sentinel (SIGKILL); returns when it is gone.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts a killed Sentinel again on the same port, with what it had written to its configuration.
    ///
    /// # Errors
    /// [`ServerError`] if it does not start.
    pub async fn restart(&mut self) -> Result<(), ServerError> {
        self.process.kill();
        self.process = Self::spawn(&self.folder)?;
        self.wait_ready().await
    }

    /// Asks the Sentinel something.
    ///
    /// # Errors
    /// As [`RespClient::command`].
    pub async fn command(&self, words: &[&str]) -> Result<RespValue, ServerError> {
        RespClient::connect(self.port.addr()).await?.command(words).await
    }

    fn spawn(folder: &TempDir) -> Result<GuardedProcess, ServerError> {
        let mut command = Command::new(find_program("redis-server", INSTALL_REDIS)?);
        command.arg(folder.path().join("sentinel.conf")).arg("--sentinel");
        GuardedProcess::spawn(&command, folder.path())
    }

    fn log(&self) -> String {
        log_tail(&self.folder.path().join(LOG))
    }

    async fn wait_ready(&mut self) -> Result<(), ServerError> {
        let mut patience = Patience::new("a Sentinel to answer", READY_BOUND);
        loop {
            if self.process.exit_status()?.is_some() {
                return Err(ServerError::Ended { server: "a Sentinel".to_owned(), log: self.log() });
            }
            let error = match self.command(&["PING"]).await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            patience.pause(format!("{error}; its log:\n{}", self.log())).await?;
        }
    }
}
