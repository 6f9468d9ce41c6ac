//! A server for any store that ships, by name: for tests and measurements that are the same on all of them.

use std::fmt;
use std::str::FromStr;

use super::{EtcdServer, KubernetesServer, NatsServer, PostgresServer, RedisServer, ServerError};

/// A kind of store that processes can share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StoreKind {
    /// One Redis server.
    Redis,
    /// One etcd server.
    Etcd,
    /// One PostgreSQL server.
    Postgres,
    /// The Lease API of a Kubernetes API server, in this process.
    Kubernetes,
    /// One NATS server with JetStream.
    Nats,
    /// A folder of this machine.
    File,
}

impl StoreKind {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Redis, Self::Etcd, Self::Postgres, Self::Kubernetes, Self::Nats, Self::File];

    /// Its name, as in the addresses of stores.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Etcd => "etcd",
            Self::Postgres => "postgres",
            Self::Kubernetes => "kubernetes",
            Self::Nats => "nats",
            Self::File => "file",
        }
    }
}

impl fmt::Display for StoreKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for StoreKind {
    type Err = ServerError;

    fn from_str(name: &str) -> Result<Self, ServerError> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|kind| kind.as_str()).collect();
            ServerError::Config(format!("there is no store {name:?}: use {}", names.join(", ")))
        })
    }
}

/// A store's server of one's own, gone when this is dropped.
#[derive(Debug)]
pub enum AnyServer {
    /// See [`StoreKind::Redis`].
    Redis(RedisServer),
    /// See [`StoreKind::Etcd`].
    Etcd(EtcdServer),
    /// See [`StoreKind::Postgres`].
    Postgres(PostgresServer),
    /// See [`StoreKind::Kubernetes`].
    Kubernetes(KubernetesServer),
    /// See [`StoreKind::Nats`].
    Nats(NatsServer),
    /// See [`StoreKind::File`].
    File(tempfile::TempDir),
}

impl AnyServer {
    /// Starts one.
    ///
    /// # Errors
    /// Those of the server.
    pub async fn start(kind: StoreKind) -> Result<Self, ServerError> {
        Ok(match kind {
            StoreKind::Redis => Self::Redis(RedisServer::builder().start().await?),
            StoreKind::Etcd => Self::Etcd(EtcdServer::builder().start().await?),
            StoreKind::Postgres => Self::Postgres(PostgresServer::builder().start().await?),
            StoreKind::Kubernetes => Self::Kubernetes(KubernetesServer::start().await?),
            StoreKind::Nats => Self::Nats(NatsServer::builder().start().await?),
            StoreKind::File => {
                Self::File(tempfile::tempdir().map_err(ServerError::io("cannot make a folder for the store"))?)
            }
        })
    }

    /// Lets it stand still: connections stay open, nothing is answered.
    ///
    /// # Errors
    /// Those of the server; a folder has none.
    pub fn stop(&mut self) -> Result<(), ServerError> {
        match self {
            Self::Redis(server) => server.stop(),
            Self::Etcd(server) => server.stop(),
            Self::Postgres(server) => server.stop(),
            Self::Kubernetes(server) => {
                server.stall();
                Ok(())
            }
            Self::Nats(server) => server.stop(),
            Self::File(_) => Err(ServerError::Config("a folder cannot stand still".to_owned())),
        }
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// Those of the server; a folder has none.
    pub fn resume(&mut self) -> Result<(), ServerError> {
        match self {
            Self::Redis(server) => server.resume(),
            Self::Etcd(server) => server.resume(),
            Self::Postgres(server) => server.resume(),
            Self::Kubernetes(server) => {
                server.resume();
                Ok(())
            }
            Self::Nats(server) => server.resume(),
            Self::File(_) => Err(ServerError::Config("a folder cannot stand still".to_owned())),
        }
    }

    /// The store's address.
    #[must_use]
    pub fn url(&self) -> String {
        match self {
            Self::Redis(server) => server.url(),
            Self::Etcd(server) => server.url(),
            Self::Postgres(server) => server.url(),
            Self::Kubernetes(server) => server.url(),
            Self::Nats(server) => server.url(),
            Self::File(folder) => format!("file:{}", folder.path().join("store").display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_known_by_its_name() {
        for kind in StoreKind::ALL {
            assert_eq!(kind.as_str().parse::<StoreKind>().unwrap(), kind);
        }
        let refused = "mysql".parse::<StoreKind>().unwrap_err().to_string();
        assert!(refused.contains("redis, etcd, postgres, kubernetes, nats, file"), "{refused}");
    }
}
