//! A store on a server of its own, and what its tests say beside the words of all stages.
#![allow(dead_code, unreachable_pub)]

use std::time::Duration;

use rendez_core::{ClusterName, Known};
use rendez_etcd::{EtcdOptions, EtcdStore};
use rendez_testkit::servers::EtcdServer;
pub use rendez_testkit::stage::*;

pub fn options() -> EtcdOptions {
    let mut options = EtcdOptions::default();
    options.operation_timeout = Duration::from_secs(3);
    options
}

pub struct World {
    pub server: Option<EtcdServer>,
    pub store: EtcdStore,
    pub cluster: ClusterName,
    pub known: Known,
}

impl World {
    pub async fn new() -> Self {
        Self::with(EtcdServer::builder().start().await.unwrap()).await
    }

    pub async fn with(server: EtcdServer) -> Self {
        let store = EtcdStore::connect(&server.url(), options()).await.unwrap();
        Self { server: Some(server), ..Self::on(store) }
    }

    pub fn on(store: EtcdStore) -> Self {
        let cluster = ClusterName::new("test").unwrap();
        Self { server: None, store, cluster, known: Known::default() }
    }

    pub fn server(&self) -> &EtcdServer {
        self.server.as_ref().unwrap()
    }
}

impl Stage for World {
    type Store = EtcdStore;

    fn store(&self) -> &EtcdStore {
        &self.store
    }

    fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    fn known(&self) -> &Known {
        &self.known
    }
}
