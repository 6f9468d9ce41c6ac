//! From the address of a store to the store, for programs whose users choose one. What a store needs beside its
//! address belongs into its own options; nothing here knows a protocol.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
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
/// | `etcd://`, `etcds://` | etcd | `etcd` |
/// | `postgres://`, `postgresql://` | PostgreSQL | `postgres` |
/// | `kubernetes:` | Leases in a Kubernetes namespace | `kubernetes` |
/// | `nats://`, `natss://` | NATS JetStream | `nats` |
/// | `file:` | a folder of this host | `file` |
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
    options: Options,
    store: Store,
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreUrl").field("store", &self.store.name).finish_non_exhaustive()
    }
}

type Options = BTreeMap<String, String>;
type Connecting = Pin<Box<dyn Future<Output = Result<Arc<dyn LeaseStore>, StoreError>> + Send>>;

/// A store that this program was built with.
#[derive(Clone, Copy)]
struct Store {
    name: &'static str,
    /// Whether the options can be.
    check: fn(&Options) -> Result<(), StoreError>,
    /// Connects to an address with these options and this operation timeout, where they say no other.
    connect: fn(String, Options, Duration) -> Connecting,
}

/// A store, how its addresses begin, and itself if its feature is on.
struct Scheme {
    feature: &'static str,
    prefixes: &'static [&'static str],
    store: Option<Store>,
}

/// What a store's crate brings: a type of options with `set` and the field `operation_timeout`, and a store with `connect`.
#[cfg_attr(
    not(any(
        feature = "redis",
        feature = "etcd",
        feature = "postgres",
        feature = "kubernetes",
        feature = "nats",
        feature = "file"
    )),
    allow(unused_macros)
)]
macro_rules! store_of {
    ($name:literal, $store:path, $options:path) => {{
        fn options(texts: &Options, operation_timeout: Duration) -> Result<$options, StoreError> {
            let mut options = <$options>::default();
            options.operation_timeout = operation_timeout;
            texts.iter().try_for_each(|(key, value)| options.set(key, value))?;
            Ok(options)
        }
        Some(Store {
            name: $name,
            check: |texts| options(texts, Duration::from_secs(1)).map(drop),
            connect: |url, texts, operation_timeout| {
                Box::pin(async move {
                    let store = <$store>::connect(&url, options(&texts, operation_timeout)?).await?;
                    Ok(Arc::new(store) as Arc<dyn LeaseStore>)
                })
            },
        })
    }};
}

fn schemes() -> [Scheme; 7] {
    [
        Scheme { feature: "", prefixes: &["memory:"], store: Some(MEMORY) },
        Scheme {
            feature: "redis",
            prefixes: &[
                "redis://",
                "rediss://",
                "redis-sentinel://",
                "rediss-sentinel://",
                "redis-cluster://",
                "rediss-cluster://",
            ],
            #[cfg(feature = "redis")]
            store: store_of!("redis", rendez_redis::RedisStore, rendez_redis::RedisOptions),
            #[cfg(not(feature = "redis"))]
            store: None,
        },
        Scheme {
            feature: "etcd",
            prefixes: &["etcd://", "etcds://"],
            #[cfg(feature = "etcd")]
            store: store_of!("etcd", rendez_etcd::EtcdStore, rendez_etcd::EtcdOptions),
            #[cfg(not(feature = "etcd"))]
            store: None,
        },
        Scheme {
            feature: "postgres",
            prefixes: &["postgres://", "postgresql://"],
            #[cfg(feature = "postgres")]
            store: store_of!("postgres", rendez_postgres::PostgresStore, rendez_postgres::PostgresOptions),
            #[cfg(not(feature = "postgres"))]
            store: None,
        },
        Scheme {
            feature: "kubernetes",
            prefixes: &["kubernetes:"],
            #[cfg(feature = "kubernetes")]
            store: store_of!("kubernetes", rendez_kubernetes::KubernetesStore, rendez_kubernetes::KubernetesOptions),
            #[cfg(not(feature = "kubernetes"))]
            store: None,
        },
        Scheme {
            feature: "nats",
            prefixes: &["nats://", "natss://"],
            #[cfg(feature = "nats")]
            store: store_of!("nats", rendez_nats::NatsStore, rendez_nats::NatsOptions),
            #[cfg(not(feature = "nats"))]
            store: None,
        },
        Scheme {
            feature: "file",
            prefixes: &["file:"],
            #[cfg(feature = "file")]
            store: store_of!("file", rendez_file::FileStore, rendez_file::FileOptions),
            #[cfg(not(feature = "file"))]
            store: None,
        },
    ]
}

const MEMORY: Store = Store {
    name: "memory",
    check: |texts| match texts.keys().next() {
        Some(key) => Err(fatal(format!("the memory store has no options, so not {key:?} either"))),
        None => Ok(()),
    },
    connect: |_, _, _| Box::pin(async { Ok(Arc::new(MemoryStore::new()) as Arc<dyn LeaseStore>) }),
};

impl StoreUrl {
    /// Takes the address of a store, without options.
    ///
    /// # Errors
    /// [`ErrorKind::Fatal`] for an address that begins like none, or like one whose feature is missing in this
    /// program. No message holds the address.
    pub fn parse(url: &str) -> Result<Self, StoreError> {
        let schemes = schemes();
        let Some(scheme) = schemes.iter().find(|scheme| scheme.prefixes.iter().any(|prefix| url.starts_with(prefix)))
        else {
            let built = schemes.iter().filter(|scheme| scheme.store.is_some());
            let usable: Vec<&str> = built.flat_map(|scheme| scheme.prefixes).copied().collect();
            return Err(fatal(format!("this is no store that can be used here: begin with {}", usable.join(", "))));
        };
        let Some(store) = scheme.store else {
            let feature = scheme.feature;
            return Err(fatal(format!(
                "this program was built without that store: build it with the feature {feature}"
            )));
        };
        Ok(Self { url: url.to_owned(), options: Options::new(), store })
    }

    /// Adds options by name, as the store's page lists them; times as `250ms`.
    ///
    /// # Errors
    /// [`ErrorKind::Fatal`] for an option that the store does not have, or a value that it cannot have. No message
    /// holds a value, for it may be a password.
    pub fn with_options(mut self, options: &BTreeMap<String, String>) -> Result<Self, StoreError> {
        self.options.extend(options.iter().map(|(key, value)| (key.clone(), value.clone())));
        (self.store.check)(&self.options)?;
        Ok(self)
    }

    /// Whether other processes can reach the same store.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.store.name != MEMORY.name
    }

    /// Connects, once. `operation_timeout` is that of each later request: the one of [`Timing`](crate::Timing).
    ///
    /// Cancelling it leaves nothing behind.
    ///
    /// # Errors
    /// Those of the store: [`ErrorKind::Fatal`] for what cannot work, [`ErrorKind::Transient`] where it does not answer
    /// within `connect_timeout`.
    pub async fn connect(
        &self,
        operation_timeout: Duration,
        connect_timeout: Duration,
    ) -> Result<Arc<dyn LeaseStore>, StoreError> {
        let connecting = (self.store.connect)(self.url.clone(), self.options.clone(), operation_timeout);
        tokio::time::timeout(connect_timeout, connecting).await.unwrap_or_else(|_| {
            let name = self.store.name;
            Err(StoreError::new(ErrorKind::Transient, format!("no answer from {name} within {connect_timeout:?}")))
        })
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
        for url in ["", "redis", "http://secret@host", "etc:/secret", "memory"] {
            let said = StoreUrl::parse(url).unwrap_err().to_string();
            assert!(said.contains("begin with memory:") && !said.contains("secret"), "{said}");
        }
        let options = BTreeMap::from([("prefix".to_owned(), "secret".to_owned())]);
        let said = StoreUrl::parse("memory:").unwrap().with_options(&options).unwrap_err().to_string();
        assert!(said.contains("prefix") && !said.contains("secret"), "{said}");
    }

    #[test]
    fn a_store_is_there_with_its_feature_and_is_asked_for_by_its_name_without() {
        for scheme in schemes() {
            for prefix in scheme.prefixes {
                match (StoreUrl::parse(&format!("{prefix}x")), scheme.store) {
                    (Ok(url), Some(store)) => {
                        assert_eq!((url.store.name, url.is_shared()), (store.name, store.name != "memory"));
                    }
                    (Err(error), None) => assert!(error.message().ends_with(scheme.feature), "{error}"),
                    (Ok(_), None) | (Err(_), Some(_)) => panic!("{prefix}"),
                }
            }
        }
    }

    #[test]
    fn options_are_the_stores_and_their_values_are_never_said() {
        for scheme in schemes() {
            let Some(store) = scheme.store.filter(|store| store.name != "memory") else { continue };
            let url = StoreUrl::parse(&format!("{}x", scheme.prefixes[0])).unwrap();
            let with = |key: &str, value: &str| {
                let options = BTreeMap::from([(key.to_owned(), value.to_owned())]);
                url.clone().with_options(&options).map(drop).map_err(|error| error.to_string())
            };
            assert_eq!(with("operation_timeout", "250ms"), Ok(()), "{}", store.name);
            let said = with("secret", "secret-value").unwrap_err();
            assert!(said.contains("operation_timeout") && !said.contains("secret-value"), "{said}");
            let said = with("operation_timeout", "soon").unwrap_err();
            assert!(said.contains("for example") && !said.contains("soon"), "{said}");
        }
    }
}
