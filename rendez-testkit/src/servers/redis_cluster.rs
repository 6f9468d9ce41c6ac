//! A Redis Cluster.

use super::ServerError;
use super::redis::{RedisServer, RedisServerBuilder};
use super::resp::RespValue;
use super::wait::{READY_BOUND, wait_until};

const KEY_SLOTS: usize = 16_384;

/// Primaries that share the key space, each with its replicas.
///
/// ```no_run
/// # async fn example() -> Result<(), rendez_testkit::servers::ServerError> {
/// use rendez_testkit::servers::RedisCluster;
///
/// let mut cluster = RedisCluster::builder().start().await?; // 3 primaries, 3 replicas
/// println!("{}", cluster.url()); // redis-cluster://127.0.0.1:1,127.0.0.1:2,...
/// let old = cluster.primary_of("{orders}").await?;
/// cluster.servers[old].kill()?;
/// let new = cluster.wait_for_failover("{orders}", old).await?;
/// assert_ne!(old, new);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct RedisCluster {
    /// The servers: at the start, first all primaries, then their replicas.
    pub servers: Vec<RedisServer>,
}

/// How a cluster is to be.
#[derive(Debug, Clone)]
#[must_use]
pub struct RedisClusterBuilder {
    primaries: usize,
    replicas: usize,
    node_timeout_ms: u64,
    server: RedisServerBuilder,
}

impl RedisCluster {
    /// Starts to describe a cluster; three primaries with one replica each unless said otherwise.
    pub fn builder() -> RedisClusterBuilder {
        RedisClusterBuilder { primaries: 3, replicas: 1, node_timeout_ms: 1000, server: RedisServer::builder() }
    }

    /// The store URL: all servers.
    #[must_use]
    pub fn url(&self) -> String {
        let hosts = self.servers.iter().filter_map(|server| server.addr().ok()).map(|addr| addr.to_string());
        format!("redis-cluster://{}", hosts.collect::<Vec<_>>().join(","))
    }

    /// The place in [`servers`](Self::servers) of the primary that a majority says to own this key.
    ///
    /// # Errors
    /// [`ServerError::Answer`] if no majority agrees at the moment.
    pub async fn primary_of(&self, key: &str) -> Result<usize, ServerError> {
        let mut votes = vec![0; self.servers.len()];
        for server in &self.servers {
            let Ok(port) = owner_port(server, key).await else {
                continue;
            };
            for (vote, server) in votes.iter_mut().zip(&self.servers) {
                *vote += usize::from(i64::from(server.addr()?.port()) == port);
            }
        }
        votes.iter().position(|count| *count > self.servers.len() / 2).ok_or_else(|| ServerError::Answer {
            request: format!("CLUSTER SLOTS, for key {key}"),
            answer: format!("votes {votes:?}, no majority"),
        })
    }

    /// Returns the place of the new primary of this key when a majority names another one than `old` and it
    /// calls the cluster sound.
    ///
    /// # Errors
    /// [`ServerError::Timeout`] if that does not happen.
    pub async fn wait_for_failover(&self, key: &str, old: usize) -> Result<usize, ServerError> {
        wait_until("the cluster to choose another primary", READY_BOUND, async || {
            let new = self.primary_of(key).await.map_err(|error| error.to_string())?;
            if new == old {
                return Err("the old primary is still the one".to_owned());
            }
            state(&self.servers[new]).await.map(|()| new)
        })
        .await
    }

    /// Returns when every server calls the cluster sound and knows everybody, and every replica is in step.
    ///
    /// # Errors
    /// [`ServerError::Timeout`] if that does not happen.
    pub async fn wait_ready(&self) -> Result<(), ServerError> {
        wait_until("a sound cluster", READY_BOUND, async || {
            for server in &self.servers {
                state(server).await?;
                known(server, self.servers.len()).await?;
                let role = server.info("role").await.map_err(|error| error.to_string())?;
                if role == "slave" {
                    let link = server.info("master_link_status").await.map_err(|error| error.to_string())?;
                    if link != "up" {
                        return Err(format!("the link of a replica is {link}"));
                    }
                }
            }
            Ok(())
        })
        .await
    }
}

impl RedisClusterBuilder {
    /// How many primaries share the key space; fail-over needs three.
    pub fn primaries(mut self, primaries: usize) -> Self {
        self.primaries = primaries;
        self
    }

    /// How many replicas each primary has.
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.replicas = replicas;
        self
    }

    /// After how long a silent server counts as down.
    pub fn node_timeout_ms(mut self, node_timeout_ms: u64) -> Self {
        self.node_timeout_ms = node_timeout_ms;
        self
    }

    /// How each server is to be. TLS is not supported here.
    pub fn server(mut self, server: RedisServerBuilder) -> Self {
        self.server = server;
        self
    }

    /// Starts everything; returns when the cluster is sound and every replica is in step.
    ///
    /// # Errors
    /// As [`RedisServerBuilder::start`].
    pub async fn start(self) -> Result<RedisCluster, ServerError> {
        if self.primaries == 0 {
            return Err(ServerError::Config("a cluster needs at least one primary".to_owned()));
        }
        let mut servers = Vec::new();
        for _ in 0..self.primaries * (1 + self.replicas) {
            let server = self.server.clone().config("cluster-enabled yes");
            let server = server.config(format!("cluster-node-timeout {}", self.node_timeout_ms));
            servers.push(server.start().await?);
        }
        let cluster = RedisCluster { servers };
        self.join(&cluster).await?;
        cluster.wait_ready().await?;
        Ok(cluster)
    }

    async fn join(&self, cluster: &RedisCluster) -> Result<(), ServerError> {
        let servers = &cluster.servers;
        let first = servers[0].addr()?;
        for (place, server) in servers.iter().enumerate() {
            // Different epochs from the start spare the cluster the time to sort out equal ones.
            server.command(&["CLUSTER", "SET-CONFIG-EPOCH", &(place + 1).to_string()]).await?;
            if place > 0 {
                server.command(&["CLUSTER", "MEET", &first.ip().to_string(), &first.port().to_string()]).await?;
            }
        }
        for (place, server) in servers[..self.primaries].iter().enumerate() {
            let from = place * KEY_SLOTS / self.primaries;
            let to = (place + 1) * KEY_SLOTS / self.primaries;
            let slots: Vec<String> = (from..to).map(|slot| slot.to_string()).collect();
            let mut words = vec!["CLUSTER", "ADDSLOTS"];
            words.extend(slots.iter().map(String::as_str));
            server.command(&words).await?;
        }
        wait_until("the servers of a cluster to know each other", READY_BOUND, async || {
            for server in servers {
                known(server, servers.len()).await?;
            }
            Ok::<_, String>(())
        })
        .await?;
        for (place, server) in servers[self.primaries..].iter().enumerate() {
            let primary = servers[place % self.primaries].command(&["CLUSTER", "MYID"]).await?.text();
            server.command(&["CLUSTER", "REPLICATE", &primary]).await?;
        }
        Ok(())
    }
}

async fn owner_port(server: &RedisServer, key: &str) -> Result<i64, ServerError> {
    let mut client = server.control().await?;
    let RespValue::Integer(slot) = client.command(&["CLUSTER", "KEYSLOT", key]).await? else {
        return Ok(-1);
    };
    let ranges = client.command(&["CLUSTER", "SLOTS"]).await?;
    for range in ranges.items() {
        if let [RespValue::Integer(from), RespValue::Integer(to), primary, ..] = range.items()
            && (*from..=*to).contains(&slot)
            && let Some(RespValue::Integer(port)) = primary.items().get(1)
        {
            return Ok(*port);
        }
    }
    Ok(-1)
}

async fn state(server: &RedisServer) -> Result<(), String> {
    let info = server.command(&["CLUSTER", "INFO"]).await.map_err(|error| error.to_string())?.text();
    if info.contains("cluster_state:ok") { Ok(()) } else { Err(info) }
}

/// Whether a server knows as many others, all after a completed handshake.
async fn known(server: &RedisServer, servers: usize) -> Result<(), String> {
    let nodes = server.command(&["CLUSTER", "NODES"]).await.map_err(|error| error.to_string())?.text();
    let good = nodes.lines().filter(|line| !line.contains("handshake") && !line.contains("noaddr")).count();
    if good == servers { Ok(()) } else { Err(nodes) }
}
