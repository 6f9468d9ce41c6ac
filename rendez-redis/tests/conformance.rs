//! The Redis store keeps the store contract: on one server, behind Sentinel, in a cluster.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rendez_core::{ClusterName, LeaseStore, StoreError};
use rendez_redis::{RedisOptions, RedisStore};
use rendez_testkit::conformance::{self, Access, Fault, Fixture, OwnServer, Trouble};
use rendez_testkit::servers::{PortLease, RedisCluster, RedisSentinelSet, RedisServer, Restart};
use tokio::sync::OnceCell;

/// What `docs/stores/redis.md` asks for.
const RIGHTS: &str = "resetchannels ~rendez:* &rendez:* -@all +eval +evalsha +info +wait +select \
                      +subscribe +unsubscribe +publish +time +exists +del +hget +hset +hdel +hmget +hgetall +hlen \
                      +hscan +zadd +zrem +zscore +zcard +zrange +zrevrange +zrangebyscore +zremrangebyscore \
                      +zremrangebyrank";
const PASSWORD: &str = "right";
/// Small enough that a case fills it in no time.
const MEMORY_BYTES: u64 = 8_000_000;

/// No lag: the quiet time is the longest TTL and a second.
fn options() -> RedisOptions {
    let mut options = RedisOptions::default();
    options.replica_lag_max = Duration::ZERO;
    options.operation_timeout = Duration::from_secs(3);
    options
}

/// The same for handles of servers that break: they give up sooner.
fn brisk() -> RedisOptions {
    let mut options = options();
    options.operation_timeout = Duration::from_millis(800);
    options
}

const PATIENCE: Duration = Duration::from_secs(4);

async fn handle(url: &str) -> Result<Arc<dyn LeaseStore>, Trouble> {
    Ok(Arc::new(RedisStore::connect(url, options()).await?))
}

async fn brisk_handle(url: &str) -> Result<Arc<dyn LeaseStore>, StoreError> {
    Ok(Arc::new(RedisStore::connect(url, brisk()).await?))
}

/// The URL that the environment names.
fn given(variable: &str) -> Option<String> {
    std::env::var(variable).ok().filter(|url| !url.is_empty())
}

// --- one server ---

#[derive(Default)]
struct Standalone {
    shared: OnceCell<RedisServer>,
}

#[async_trait]
impl Fixture for Standalone {
    fn name(&self) -> &str {
        "redis"
    }

    fn lacks(&self, fault: Fault) -> Option<&'static str> {
        match fault {
            Fault::FailOver => Some("one server has no replica: see redis-sentinel and redis-cluster"),
            Fault::Restart
            | Fault::RestartEmpty
            | Fault::Stall
            | Fault::Full
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
        // The server of RENDEZ_TEST_REDIS_URL, if that is set.
        let server = self.shared.get_or_try_init(RedisServer::start).await?;
        handle(&server.url()).await
    }

    async fn own_server(&self) -> Result<Box<dyn OwnServer>, Trouble> {
        let server = RedisServer::builder()
            .password(PASSWORD)
            .user("least", format!("on >{PASSWORD} {RIGHTS}"))
            .append_only(true)
            .max_memory(MEMORY_BYTES, "noeviction")
            .start()
            .await?;
        Ok(Box::new(OwnStandalone { server, nowhere: PortLease::take()? }))
    }
}

struct OwnStandalone {
    server: RedisServer,
    /// A port that is ours and that nobody listens on.
    nowhere: PortLease,
}

fn trouble(error: impl std::fmt::Display) -> StoreError {
    StoreError::new(rendez_core::ErrorKind::Unsupported, format!("the fixture: {error}"))
}

#[async_trait]
impl OwnServer for OwnStandalone {
    async fn connect(&self, access: Access) -> Result<Arc<dyn LeaseStore>, StoreError> {
        let url = match access {
            Access::Full => self.server.url(),
            Access::LeastRights => self.server.url_for("least", PASSWORD).map_err(trouble)?,
            Access::WrongCredentials => self.server.url_for("least", "wrong").map_err(trouble)?,
            Access::Unreachable => format!("redis://{}", self.nowhere.addr()),
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

    async fn fill(&mut self) -> Result<(), Trouble> {
        self.server.command(&["CONFIG", "SET", "maxmemory", "1"]).await?;
        Ok(())
    }

    async fn make_unfit(&mut self) -> Result<(), Trouble> {
        self.server.command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).await?;
        Ok(())
    }

    async fn write_foreign_layout(&mut self, cluster: &ClusterName) -> Result<(), Trouble> {
        // The first word of the state is the version of the layout. The server is one cluster's alone: how its name is
        // encoded does not matter.
        let _ = cluster;
        let keys = self.server.command(&["KEYS", "*:meta"]).await?;
        for key in keys.items() {
            let key = key.text();
            self.server.command(&["HSET", &key, "state", "7 of a later release"]).await?;
        }
        Ok(())
    }
}

// --- Sentinel ---

#[derive(Default)]
struct Sentinel {
    shared: OnceCell<RedisSentinelSet>,
}

/// What the sets of several servers cannot do to order.
fn many_lack(fault: Fault) -> Option<&'static str> {
    match fault {
        Fault::FailOver => None,
        Fault::Restart | Fault::RestartEmpty | Fault::Stall => Some("its death is a failover: see FailOver"),
        Fault::Full | Fault::Unfit | Fault::ForeignLayout | Fault::WrongCredentials | Fault::LeastRights => {
            Some("the same as on one server: see redis")
        }
        Fault::Unreachable => Some("the same as on one server: see redis"),
    }
}

#[async_trait]
impl Fixture for Sentinel {
    fn name(&self) -> &str {
        "redis-sentinel"
    }

    fn lacks(&self, fault: Fault) -> Option<&'static str> {
        many_lack(fault)
    }

    fn patience(&self) -> Duration {
        PATIENCE
    }

    async fn store(&self) -> Result<Arc<dyn LeaseStore>, Trouble> {
        if let Some(url) = given("RENDEZ_TEST_REDIS_SENTINEL_URL") {
            return handle(&url).await;
        }
        let set = self.shared.get_or_try_init(|| RedisSentinelSet::builder().start()).await?;
        handle(&set.url()).await
    }

    async fn own_server(&self) -> Result<Box<dyn OwnServer>, Trouble> {
        Ok(Box::new(OwnSentinel(RedisSentinelSet::builder().start().await?)))
    }
}

struct OwnSentinel(RedisSentinelSet);

#[async_trait]
impl OwnServer for OwnSentinel {
    async fn connect(&self, _: Access) -> Result<Arc<dyn LeaseStore>, StoreError> {
        brisk_handle(&self.0.url()).await
    }

    async fn fail_over(&mut self, _: &ClusterName) -> Result<(), Trouble> {
        let old = self.0.primary().await?;
        self.0.servers[old].kill()?;
        self.0.wait_for_failover(old).await?;
        Ok(())
    }
}

// --- Redis Cluster ---

#[derive(Default)]
struct Cluster {
    shared: OnceCell<RedisCluster>,
}

#[async_trait]
impl Fixture for Cluster {
    fn name(&self) -> &str {
        "redis-cluster"
    }

    fn lacks(&self, fault: Fault) -> Option<&'static str> {
        many_lack(fault)
    }

    fn patience(&self) -> Duration {
        PATIENCE
    }

    async fn store(&self) -> Result<Arc<dyn LeaseStore>, Trouble> {
        if let Some(url) = given("RENDEZ_TEST_REDIS_CLUSTER_URL") {
            return handle(&url).await;
        }
        let cluster = self.shared.get_or_try_init(|| RedisCluster::builder().start()).await?;
        handle(&cluster.url()).await
    }

    async fn own_server(&self) -> Result<Box<dyn OwnServer>, Trouble> {
        Ok(Box::new(OwnCluster(RedisCluster::builder().start().await?)))
    }
}

struct OwnCluster(RedisCluster);

#[async_trait]
impl OwnServer for OwnCluster {
    async fn connect(&self, _: Access) -> Result<Arc<dyn LeaseStore>, StoreError> {
        brisk_handle(&self.0.url()).await
    }

    async fn fail_over(&mut self, _: &ClusterName) -> Result<(), Trouble> {
        // The server whose keys are the cluster's.
        for place in 0..self.0.servers.len() {
            let keys = self.0.servers[place].command(&["KEYS", "rendez:*:meta"]).await?;
            let role = self.0.servers[place].info("role").await?;
            if let (Some(key), "master") = (keys.items().first(), role.as_str()) {
                let key = key.text();
                self.0.servers[place].kill()?;
                self.0.wait_for_failover(&key, place).await?;
                return Ok(());
            }
        }
        Err("no server has data".into())
    }
}

fn main() -> ExitCode {
    conformance::main(vec![
        Box::new(Standalone::default()),
        Box::new(Sentinel::default()),
        Box::new(Cluster::default()),
    ])
}
