//! A store on a server of its own, and what its tests say beside the words of all stages.
#![allow(dead_code, unreachable_pub)]

use std::time::Duration;

use rendez_core::{ClusterName, Known};
use rendez_kubernetes::{KubernetesOptions, KubernetesStore};
use rendez_testkit::servers::KubernetesServer;
pub use rendez_testkit::stage::*;

pub fn options() -> KubernetesOptions {
    let mut options = KubernetesOptions::default();
    options.operation_timeout = Duration::from_secs(3);
    options
}

pub struct World {
    pub server: Option<KubernetesServer>,
    pub store: KubernetesStore,
    pub cluster: ClusterName,
    pub known: Known,
}

impl World {
    pub async fn new() -> Self {
        Self::with(KubernetesServer::start().await.unwrap()).await
    }

    pub async fn with(server: KubernetesServer) -> Self {
        let store = KubernetesStore::connect(&server.url(), options()).await.unwrap();
        Self { server: Some(server), ..Self::on(store) }
    }

    pub fn on(store: KubernetesStore) -> Self {
        let cluster = ClusterName::new("test").unwrap();
        Self { server: None, store, cluster, known: Known::default() }
    }

    pub fn server(&self) -> &KubernetesServer {
        self.server.as_ref().unwrap()
    }
}

impl Stage for World {
    type Store = KubernetesStore;

    fn store(&self) -> &KubernetesStore {
        &self.store
    }

    fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    fn known(&self) -> &Known {
        &self.known
    }
}
