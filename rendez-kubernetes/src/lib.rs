//! The Kubernetes store of rendez: sessions and slots as `coordination.k8s.io/v1` Leases, readable with `kubectl get lease`.
//!
//! A change of a slot is a compare-and-set of its Lease, and a heartbeat one update of the node's Lease, however many slots
//! the node holds: what has changed comes from a mirror of the cluster that a watch keeps up to date. A session ends when
//! somebody has seen its Lease unchanged for its TTL, on the clock of who looks; no time stamp of another machine counts.
//! [`LeaderLease`] is another thing: leader election on one Lease, by the rules of client-go, beside the store and without it.
//! `docs/stores/kubernetes.md` describes the rights that are needed, every Lease, and what can and cannot be promised.
//!
//! ```no_run
//! # async fn example() -> Result<(), rendez_core::StoreError> {
//! use rendez_kubernetes::{KubernetesOptions, KubernetesStore};
//! let store = KubernetesStore::connect("kubernetes:my-namespace", KubernetesOptions::default()).await?;
//! # Ok(()) }
//! ```

mod change;
mod clock;
mod cluster;
mod connect;
mod encode;
mod errors;
mod history;
mod keys;
mod leader_lease;
mod options;
mod picture;
mod store;
mod watch;

pub use k8s_openapi;
pub use kube;
pub use leader_lease::{Leader, LeaderLease, LeaderLeaseOptions, LeaderState, Leading};
pub use options::KubernetesOptions;
pub use store::KubernetesStore;
