//! From the address of a store to the store, for programs whose users choose one. What a store needs beside its
//! address belongs into its own options; nothing here knows a protocol.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rendez_core::{ErrorKind, LeaseStore, StoreError};

use crate::MemoryStore;

/// Where a store is, with its options as text: what a command line or a configuration file says.
///
/// | begins with | store | feature |
/// | --- | --- | --- |
/// | `memory:` | [`MemoryStore`], new and empty: for one process alone | |
/// | `redis://`, `rediss://`, `redis-sentinel://`, `rediss-sentinel://`, `redis-cluster://`, `rediss-cluster://` | Redis | `redis` |
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), rendez::StoreError> {
/// use std::time::Duration;
/// let url = rendez::StoreUrl::parse("memory:")?;
/// let store = url.connect(Duration::from_millis(500), Duration::from_secs(5)).await?;
/// assert_eq!(store.capabilities().name, "memory");
/// # Ok(()) }
/// ```
///
/// It may hold a password, so it is never shown.
#[derive(Clone)]
pub struct StoreUrl {
    url: String,
    options: BTreeMap<String, String>,
    kind: Kind,
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreUrl").field("kind", &self.kind).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Memory,
    Redis,
}

/// How an address begins, which store that is, and the feature that brings it.
const SCHEMES: &[(&str, Kind, &str)] = &[
    ("memory:", Kind::Memory, ""),
    ("redis://", Kind::Redis, "redis"),
    ("rediss://", Kind::Redis, "redis"),
    ("redis-sentinel://", Kind::Redis, "redis"),
    ("rediss-sentinel://", Kind::Redis, "redis"),
    ("redis-cluster://", Kind::Redis, "redis"),
    ("rediss-cluster://", Kind::Redis, "redis"),
];

impl Kind {
    /// Whether the program was built with it.
    fn is_built(self) -> bool {
        match self {
            Self::Memory => true,
            Self::Redis => cfg!(feature = "redis"),
        }
    }
}

impl StoreUrl {
    /// Takes the address of a store, without options.
    ///
    /// # Errors
    /// [`ErrorKind::Fatal`] for an address that begins like none, or like one whose feature is missing in this
    /// program. No message holds the address.
    pub fn parse(url: &str) -> Result<Self, StoreError> {
        let Some((_, kind, feature)) = SCHEMES.iter().find(|(scheme, ..)| url.starts_with(scheme)) else {
            let usable: Vec<&str> =
                SCHEMES.iter().filter(|(_, kind, _)| kind.is_built()).map(|(scheme, ..)| *scheme).collect();
            return Err(fatal(format!("this is no store that can be used here: begin with {}", usable.join(", "))));
        };
        if !kind.is_built() {
            return Err(fatal(format!(
                "this program was built without that store: build it with the feature {feature}"
            )));
        }
        Ok(Self { url: url.to_owned(), options: BTreeMap::new(), kind: *kind })
    }

    /// Adds options by name, as the store's page lists them; times as `250ms`.
    ///
    /// # Errors
    /// [`ErrorKind::Fatal`] for an option that the store does not have, or a value that it cannot have. No message
    /// holds a value, for it may be a password.
    pub fn with_options(mut self, options: &BTreeMap<String, String>) -> Result<Self, StoreError> {
        self.options.extend(options.iter().map(|(key, value)| (key.clone(), value.clone())));
        match self.kind {
            Kind::Memory => match self.options.keys().next() {
                Some(key) => Err(fatal(format!("store option {key}: the memory store has no options"))),
                None => Ok(self),
            },
            Kind::Redis => {
                #[cfg(feature = "redis")]
                self.redis(Duration::from_secs(1), Duration::from_secs(1))?;
                Ok(self)
            }
        }
    }

    /// Whether other processes can reach the same store.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.kind != Kind::Memory
    }

    /// Connects, once. `operation_timeout` is that of each later request: the one of [`Timing`](crate::Timing).
    ///
    /// Cancelling it leaves nothing behind.
    ///
    /// # Errors
    /// Those of the store: [`ErrorKind::Fatal`] for what cannot work, [`ErrorKind::Transient`] where it does not answer.
    pub async fn connect(
        &self,
        operation_timeout: Duration,
        connect_timeout: Duration,
    ) -> Result<Arc<dyn LeaseStore>, StoreError> {
        #[cfg(not(feature = "redis"))]
        let _ = (operation_timeout, connect_timeout);
        match self.kind {
            Kind::Memory => Ok(Arc::new(MemoryStore::new())),
            #[cfg(feature = "redis")]
            Kind::Redis => {
                let options = self.redis(operation_timeout, connect_timeout)?;
                Ok(Arc::new(rendez_redis::RedisStore::connect(&self.url, options).await?))
            }
            #[cfg(not(feature = "redis"))]
            Kind::Redis => Err(fatal("this program was built without the feature redis")),
        }
    }

    #[cfg(feature = "redis")]
    fn redis(
        &self,
        operation_timeout: Duration,
        connect_timeout: Duration,
    ) -> Result<rendez_redis::RedisOptions, StoreError> {
        let mut redis = rendez_redis::RedisOptions::default();
        redis.operation_timeout = operation_timeout;
        redis.connect_timeout = redis.connect_timeout.min(connect_timeout);
        // Short sessions have short timeouts; what was not chosen must not be what refuses them.
        redis.acknowledge_timeout = redis.acknowledge_timeout.min(operation_timeout / 2);
        self.options.iter().try_for_each(|(key, value)| redis.set(key, value))?;
        Ok(redis)
    }
}

fn fatal(message: impl Into<String>) -> StoreError {
    StoreError::new(ErrorKind::Fatal, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_used_is_refused_without_its_text() {
        for url in ["", "redis", "http://secret@host", "etcd:/secret", "memory"] {
            let said = StoreUrl::parse(url).unwrap_err().to_string();
            assert!(said.contains("begin with memory:") && !said.contains("secret"), "{said}");
        }
        let options = BTreeMap::from([("prefix".to_owned(), "secret".to_owned())]);
        let said = StoreUrl::parse("memory:").unwrap().with_options(&options).unwrap_err().to_string();
        assert!(said.contains("prefix") && !said.contains("secret"), "{said}");
    }

    #[cfg(feature = "redis")]
    #[test]
    fn options_are_the_stores() {
        let with = |key: &str, value: &str| {
            let options = BTreeMap::from([(key.to_owned(), value.to_owned())]);
            StoreUrl::parse("redis://h").unwrap().with_options(&options).map_err(|error| error.to_string())
        };
        assert!(with("prefix", "mine").is_ok());
        let said = with("secret", "secret-value").unwrap_err();
        assert!(said.contains("min_replicas") && !said.contains("secret-value"), "{said}");
        let said = with("replica_lag_max", "soon").unwrap_err();
        assert!(said.contains("250ms") && !said.contains("soon"), "{said}");
    }

    #[cfg(not(feature = "redis"))]
    #[test]
    fn a_store_that_was_not_built_in_names_its_feature() {
        assert!(StoreUrl::parse("redis://h").unwrap_err().to_string().contains("feature redis"));
    }
}
