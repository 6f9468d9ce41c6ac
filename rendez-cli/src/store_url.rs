//! From the address of a store to the store. No message holds the address, which may hold a password.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rendez::{ErrorKind, LeaseStore, MemoryStore, ResolvedConfig};
use rendez_redis::{RedisOptions, RedisStore};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout_at};

use crate::exit::{Exit, Failure};

const SCHEMES: [&str; 6] =
    ["redis://", "rediss://", "redis-sentinel://", "rediss-sentinel://", "redis-cluster://", "rediss-cluster://"];

/// A store that lives in this very process: to try a command out, alone.
const MEMORY: &str = "memory:";

/// The pauses between two tries to reach a store.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Where a store is, and how to speak to it. It may hold a password, so it is never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoreUrl {
    url: String,
    #[serde(default)]
    options: BTreeMap<String, String>,
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreUrl(..)")
    }
}

impl StoreUrl {
    /// The store of a configuration, if it is one that this program can speak to.
    pub(crate) fn of(config: &ResolvedConfig) -> Result<Self, Failure> {
        let usage = |message: String| Failure::new(Exit::Usage, message);
        let Some(url) = config.store.clone() else {
            return Err(usage("which store? give --store URL or --store-file PATH".to_owned()));
        };
        if url != MEMORY && !SCHEMES.iter().any(|scheme| url.starts_with(scheme)) {
            let schemes = SCHEMES.join(", ");
            return Err(usage(format!(
                "this is no store that can be used here: begin with {schemes}, or write {MEMORY}"
            )));
        }
        let store = Self { url, options: config.store_options.clone() };
        store.redis_options(config.engine.timing.operation_timeout).map_err(usage)?;
        Ok(store)
    }

    /// Whether other processes can reach it too.
    pub(crate) fn is_shared(&self) -> bool {
        self.url != MEMORY
    }

    /// Reaches the store. What may pass is tried again until the time is over.
    pub(crate) async fn connect(
        &self,
        within: Duration,
        operation_timeout: Duration,
    ) -> Result<Arc<dyn LeaseStore>, Failure> {
        if !self.is_shared() {
            return Ok(Arc::new(MemoryStore::new()));
        }
        let mut options = self.redis_options(operation_timeout).map_err(|what| Failure::new(Exit::Usage, what))?;
        options.connect_timeout = options.connect_timeout.min(within);
        let give_up_at = Instant::now() + within;
        let mut pause = PAUSE_MIN;
        let mut last = "it does not answer".to_owned();
        loop {
            match timeout_at(give_up_at, RedisStore::connect(&self.url, options.clone())).await {
                Ok(Ok(store)) => return Ok(Arc::new(store)),
                Ok(Err(error)) if matches!(error.kind(), ErrorKind::Fatal | ErrorKind::Unsupported) => {
                    return Err(Failure::new(Exit::Store, format!("the store refuses: {error}")));
                }
                Ok(Err(error)) => last = error.to_string(),
                Err(_) => {}
            }
            if Instant::now() + pause >= give_up_at {
                return Err(Failure::new(Exit::Store, format!("no answer from the store within {within:?}: {last}")));
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// The table `store_options` of the configuration.
    fn redis_options(&self, operation_timeout: Duration) -> Result<RedisOptions, String> {
        let mut redis = RedisOptions::default();
        redis.operation_timeout = operation_timeout;
        // Short sessions have short timeouts; what was not chosen must not be what refuses them.
        redis.acknowledge_timeout = redis.acknowledge_timeout.min(operation_timeout / 2);
        for (key, value) in &self.options {
            // The value may be a password: it is not repeated.
            let wrong = |what: &str| format!("store_options.{key}: {what}");
            let time = || crate::duration::parse(value).map_err(|_| wrong("write a time, for example 250ms"));
            match key.as_str() {
                "prefix" => redis.prefix.clone_from(value),
                "username" => redis.username = Some(value.clone()),
                "password" => redis.password = Some(value.clone()),
                "sentinel_username" => redis.sentinel_username = Some(value.clone()),
                "sentinel_password" => redis.sentinel_password = Some(value.clone()),
                "min_replicas" => redis.min_replicas = value.parse().map_err(|_| wrong("write a number"))?,
                "acknowledge_timeout" => redis.acknowledge_timeout = time()?,
                "replica_lag_max" => redis.replica_lag_max = time()?,
                "connect_timeout" => redis.connect_timeout = time()?,
                _ => {
                    return Err(wrong(
                        "there is no such option: use prefix, username, password, sentinel_username, \
                         sentinel_password, min_replicas, acknowledge_timeout, replica_lag_max or connect_timeout",
                    ));
                }
            }
        }
        Ok(redis)
    }
}
