//! Reading a cluster's records without taking part.

use std::time::Duration;

use rendez_core::{ClusterName, ClusterView, ErrorKind, Known, LeaseStore, SnapshotRequest, StoreError};

use crate::clock::boot_time;

/// So many times a reading begins anew because the store's generation has changed meanwhile.
const READINGS_MAX: u32 = 3;

/// Reads all records of a cluster: what is planned from the view is what every node plans from the same records. Takes no
/// part in the cluster and changes nothing; a few requests for some thousand slots. Cancelling it is harmless.
///
/// # Errors
/// Those of the store, and [`ErrorKind::Transient`] if one page takes longer than `page_timeout`.
pub async fn read_cluster(
    store: &dyn LeaseStore,
    cluster: &ClusterName,
    page_timeout: Duration,
) -> Result<ClusterView, StoreError> {
    let mut readings = 0;
    'reading: loop {
        readings += 1;
        let (mut first, mut items, mut cursor) = (None, Vec::new(), None);
        loop {
            let request = SnapshotRequest { known: Known::default(), session: None, cursor };
            let page = match tokio::time::timeout(page_timeout, store.snapshot(cluster, &request)).await {
                Ok(Ok(page)) => page,
                Ok(Err(error)) if error.kind() == ErrorKind::Conflict && readings < READINGS_MAX => continue 'reading,
                Ok(Err(error)) => return Err(error),
                Err(_) => {
                    let message = format!("no answer from the store in {page_timeout:?}");
                    return Err(StoreError::new(ErrorKind::Transient, message));
                }
            };
            items.extend(page.items);
            let stamp = first.get_or_insert(page.stamp).clone();
            cursor = page.next;
            if cursor.is_none() {
                return Ok(ClusterView::from_snapshot(boot_time(), stamp, items));
            }
        }
    }
}
