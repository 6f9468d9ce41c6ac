//! A store on a server of its own, and what its tests say beside the words of all stages.
#![allow(dead_code, unreachable_pub)]

use std::time::Duration;

use rendez_core::{ClusterName, Known};
use rendez_nats::{NatsOptions, NatsStore};
use rendez_testkit::servers::NatsServer;
pub use rendez_testkit::stage::*;

pub fn options() -> NatsOptions {
    let mut options = NatsOptions::default();
    options.operation_timeout = Duration::from_secs(3);
    options
}

pub struct World {
    pub server: Option<NatsServer>,
    pub store: NatsStore,
    pub cluster: ClusterName,
    pub known: Known,
}

impl World {
    pub async fn new() -> Self {
        Self::with(NatsServer::builder().start().await.unwrap()).await
    }

    pub async fn with(server: NatsServer) -> Self {
        let store = NatsStore::connect(&server.url(), options()).await.unwrap();
        Self { server: Some(server), ..Self::on(store) }
    }

    pub fn on(store: NatsStore) -> Self {
        let cluster = ClusterName::new("test").unwrap();
        Self { server: None, store, cluster, known: Known::default() }
    }

    pub fn server(&self) -> &NatsServer {
        self.server.as_ref().unwrap()
    }
}

impl Stage for World {
    type Store = NatsStore;

    fn store(&self) -> &NatsStore {
        &self.store
    }

    fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    fn known(&self) -> &Known {
        &self.known
    }
}
