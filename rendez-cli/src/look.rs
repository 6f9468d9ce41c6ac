//! A look into a cluster: one snapshot of its store, from which is planned as every node does. Changes nothing.

use std::time::Duration;

use rendez::{ClusterName, ErrorKind};
use rendez_core::{ClusterView, Known, LeaseStore, SnapshotRequest};

use crate::cluster_args::{ClusterArgs, resolve};
use crate::exit::{Exit, Failure};
use crate::store_url::StoreUrl;

/// A request for one page may take this long.
const PAGE_TIMEOUT: Duration = Duration::from_secs(2);

/// So many times a reading begins anew because the store's generation has changed meanwhile.
const READINGS_MAX: u32 = 3;

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
        read(&*store, &config.cluster).await
    })?;
    Ok((config.cluster, view))
}

async fn read(store: &dyn LeaseStore, cluster: &ClusterName) -> Result<ClusterView, Failure> {
    let mut readings = 0;
    'reading: loop {
        readings += 1;
        let (mut first, mut items, mut cursor) = (None, Vec::new(), None);
        loop {
            let request = SnapshotRequest { known: Known::default(), session: None, cursor };
            let page = match tokio::time::timeout(PAGE_TIMEOUT, store.snapshot(cluster, &request)).await {
                Ok(Ok(page)) => page,
                Ok(Err(error)) if error.kind() == ErrorKind::Conflict && readings < READINGS_MAX => continue 'reading,
                Ok(Err(error)) => return Err(Failure::new(Exit::Store, error)),
                Err(_) => {
                    return Err(Failure::new(Exit::Store, format!("no answer from the store in {PAGE_TIMEOUT:?}")));
                }
            };
            items.extend(page.items);
            let stamp = first.get_or_insert(page.stamp).clone();
            cursor = page.next;
            if cursor.is_none() {
                return Ok(ClusterView::from_snapshot(rendez::boot_time(), stamp, items));
            }
        }
    }
}
