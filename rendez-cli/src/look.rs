//! A look into a cluster: one snapshot of its store, from which is planned as every node does. Changes nothing.

use std::time::Duration;

use rendez::ClusterName;
use rendez_core::ClusterView;

use crate::cluster_args::{ClusterArgs, resolve};
use crate::exit::{Exit, Failure};
use crate::store_url::StoreUrl;

/// A request for one page may take this long.
const PAGE_TIMEOUT: Duration = Duration::from_secs(2);

/// The cluster that the arguments name, and what its store knows of it.
pub(crate) fn look(args: &ClusterArgs) -> Result<(ClusterName, ClusterView), Failure> {
    let config = resolve(&args.config()?)?;
    let url = StoreUrl::of(&config)?;
    if !url.is_shared() {
        return Err(Failure::new(Exit::Usage, "the store memory: lives inside one agent and cannot be looked into"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Exit::Failure, format!("cannot start: {error}")))?;
    let view = runtime.block_on(async {
        let store = url.connect(config.connect_timeout, PAGE_TIMEOUT).await?;
        rendez::read_cluster(&*store, &config.cluster, PAGE_TIMEOUT)
            .await
            .map_err(|error| Failure::new(Exit::Store, error))
    })?;
    Ok((config.cluster, view))
}
