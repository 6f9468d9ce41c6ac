//! A store on a server of its own, and what its tests say beside the words of all stages.
#![allow(dead_code, unreachable_pub)]

use std::time::Duration;

use rendez_core::{ClusterName, Known};
use rendez_redis::{RedisOptions, RedisStore};
use rendez_testkit::servers::RedisServer;
pub use rendez_testkit::stage::*;

/// No lag: the quiet time is the longest TTL and a second.
pub fn options() -> RedisOptions {
    let mut options = RedisOptions::default();
    options.replica_lag_max = Duration::ZERO;
    options.operation_timeout = Duration::from_secs(3);
    options
}

pub struct World {
    pub server: Option<RedisServer>,
    pub store: RedisStore,
    pub cluster: ClusterName,
    pub known: Known,
}

impl World {
    pub async fn new() -> Self {
        Self::with(RedisServer::builder().start().await.unwrap()).await
    }

    pub async fn with(server: RedisServer) -> Self {
        let store = RedisStore::connect(&server.url(), options()).await.unwrap();
        Self { server: Some(server), ..Self::on(store) }
    }

    pub fn on(store: RedisStore) -> Self {
        let cluster = ClusterName::new("test").unwrap();
        Self { server: None, store, cluster, known: Known::default() }
    }

    pub fn server(&self) -> &RedisServer {
        self.server.as_ref().unwrap()
    }

    pub async fn command(&self, words: &[&str]) -> String {
        self.server().command(words).await.unwrap().to_string()
    }

    pub fn key(&self, name: &str) -> String {
        format!("rendez:{{test}}:{name}")
    }
}

impl Stage for World {
    type Store = RedisStore;

    fn store(&self) -> &RedisStore {
        &self.store
    }

    fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    fn known(&self) -> &Known {
        &self.known
    }
}
