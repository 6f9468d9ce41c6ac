//! A store on a server of its own, and what its tests say beside the words of all stages.
#![allow(dead_code, unreachable_pub)]

use std::time::Duration;

use rendez_core::{ClusterName, Known};
use rendez_postgres::{PostgresOptions, PostgresStore, Standbys};
use rendez_testkit::servers::PostgresServer;
pub use rendez_testkit::stage::*;

/// No lag: the quiet time is the longest TTL and a second.
pub fn options() -> PostgresOptions {
    let mut options = PostgresOptions::default();
    options.standbys = Standbys::None;
    options.operation_timeout = Duration::from_secs(3);
    options
}

pub struct World {
    pub server: Option<PostgresServer>,
    pub store: PostgresStore,
    pub cluster: ClusterName,
    pub known: Known,
}

impl World {
    pub async fn new() -> Self {
        Self::with(PostgresServer::builder().start().await.unwrap()).await
    }

    pub async fn with(server: PostgresServer) -> Self {
        let store = PostgresStore::connect(&server.url(), options()).await.unwrap();
        Self { server: Some(server), ..Self::on(store) }
    }

    pub fn on(store: PostgresStore) -> Self {
        let cluster = ClusterName::new("test").unwrap();
        Self { server: None, store, cluster, known: Known::default() }
    }

    pub fn server(&self) -> &PostgresServer {
        self.server.as_ref().unwrap()
    }

    /// Runs SQL as superuser.
    pub async fn sql(&self, text: &str) -> String {
        self.server().query(text).await.unwrap().trim().to_owned()
    }
}

impl Stage for World {
    type Store = PostgresStore;

    fn store(&self) -> &PostgresStore {
        &self.store
    }

    fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    fn known(&self) -> &Known {
        &self.known
    }
}
