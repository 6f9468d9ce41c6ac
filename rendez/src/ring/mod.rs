//! A ring of virtual nodes: so many partitions, shared among the nodes of a ring by their places on a circle.
//!
//! A ring is a cluster of its own, named by the ring's id, with one dynamic workload whose units are the partitions, placed
//! by the policy `ring`. Sessions, leases, handoffs and takeovers are those of every cluster. Here stands only what makes
//! that convenient: sizes that are agreed once, and questions in the words of partitions and keys. Nothing here decides
//! who owns what.

mod agreement;
mod builder;
mod changes;
mod id;

use std::fmt;
use std::sync::Arc;

use rendez_core::{FencingToken, NodeId, Slot, StoppedReason, WorkloadName, shard_of_key};

pub use agreement::RingSizes;
pub use builder::{RingBuilder, RingError};
pub use changes::{RingChange, RingChanges};
pub use id::{RING_ID_BYTES_MAX, RingId, RingIdError};

use crate::{CommandError, DriverError, Handle, Owned, SlotLease};

/// The most partitions of a ring.
pub const PARTITIONS_MAX: u32 = 65_536;

/// The workload whose units are a ring's partitions.
pub const PARTITIONS: &str = "partitions";

/// A node of a ring. Cheap to clone; all clones are the same node, and it ends when the last is dropped, as a [`Handle`]
/// does: [`leave`](Ring::leave) hands its partitions over instead.
///
/// ```
/// use rendez::{BoxError, MemoryStore, Ring, RingChange};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BoxError> {
/// let ring = Ring::builder().store(MemoryStore::new()).ring_id("orders").partitions(64).start().await?;
/// let mut changes = ring.changes();
/// while ring.owned_partitions().len() < 64 {
///     let Some(RingChange::Gained { partition, token }) = changes.next().await else { break };
///     println!("{partition} is ours, under the token {token}");
/// }
/// let partition = ring.partition_of_key("customer-17");
/// assert!(ring.owned_partitions().contains(partition));
/// assert_eq!(ring.node_of_partition(partition).await?.as_ref(), Some(ring.node()));
/// ring.leave().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Ring {
    handle: Handle,
    ring: RingId,
    workload: WorkloadName,
    sizes: RingSizes,
}

impl Ring {
    /// Begins a node of a ring.
    pub fn builder() -> RingBuilder {
        RingBuilder::new()
    }

    fn new(handle: Handle, ring: RingId, workload: WorkloadName, sizes: RingSizes) -> Self {
        Self { handle, ring, workload, sizes }
    }

    /// The ring's name.
    #[must_use]
    pub fn id(&self) -> &RingId {
        &self.ring
    }

    /// The node's id.
    #[must_use]
    pub fn node(&self) -> &NodeId {
        self.handle.node()
    }

    /// What the ring has agreed on.
    #[must_use]
    pub fn sizes(&self) -> RingSizes {
        self.sizes
    }

    /// The partitions that this node owns now and runs: nearly free, no lock, no I/O. A picture of one moment.
    #[must_use]
    pub fn owned_partitions(&self) -> OwnedPartitions {
        OwnedPartitions { owned: self.handle.owned(), workload: self.workload.clone() }
    }

    /// The lease of a partition, if this node owns it at this moment: nearly free. [`SlotLease::check`] before each
    /// side effect, and [`SlotLease::token`] with it, are what a lease is for.
    #[must_use]
    pub fn lease(&self, partition: u32) -> Option<SlotLease> {
        self.handle.lease(&self.slot(partition))
    }

    /// What this node gets and loses, beginning with all that it owns when first asked.
    #[must_use]
    pub fn changes(&self) -> RingChanges {
        RingChanges::new(self.handle.owned_changes(), self.handle.outcome_changes())
    }

    /// The partition of a key: the same in all programs and for ever ([`shard_of_key`] without a seed).
    #[must_use]
    pub fn partition_of_key(&self, key: &str) -> u32 {
        shard_of_key(key, self.sizes.partitions, "")
    }

    /// The live node that holds a partition, as far as this node knows; none while nobody does. It may be late: by a hint of
    /// the store's watch at best, by a heartbeat at worst. Costs the store nothing. Cancelling it changes nothing.
    ///
    /// # Errors
    /// [`CommandError::Invalid`] for a partition that the ring has not; [`CommandError::Stopped`].
    pub async fn node_of_partition(&self, partition: u32) -> Result<Option<NodeId>, CommandError> {
        if partition >= self.sizes.partitions {
            let last = self.sizes.partitions - 1;
            return Err(CommandError::Invalid {
                what: format!("there is no partition {partition}: the ring's are 0 to {last}"),
            });
        }
        self.handle.holder(&self.slot(partition)).await.map(|held| held.map(|(node, _)| node))
    }

    /// The node that the ring is told about and driven by: its status, its events, its weight, draining it.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Leaves the ring: hands every partition over, each to the next node on the circle, and closes the session. See
    /// [`Handle::shutdown`], also for what cancelling it does.
    ///
    /// # Errors
    /// [`DriverError`] if the node had ended, or ends meanwhile, in another way.
    pub async fn leave(&self) -> Result<StoppedReason, DriverError> {
        self.handle.shutdown().await
    }

    fn slot(&self, partition: u32) -> Slot {
        Slot::new(self.workload.clone(), partition)
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("ring", &self.ring)
            .field("node", self.node())
            .field("sizes", &self.sizes)
            .field("owned", &self.owned_partitions().len())
            .finish_non_exhaustive()
    }
}

/// The partitions that a node owns, sorted; a picture of one moment. Cheap to clone.
#[derive(Clone)]
pub struct OwnedPartitions {
    owned: Arc<Owned>,
    workload: WorkloadName,
}

impl OwnedPartitions {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.owned.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.owned.is_empty()
    }

    /// The partitions, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = u32> {
        self.owned.slots().map(|slot| slot.unit)
    }

    /// The partitions with their tokens, in order.
    pub fn tokens(&self) -> impl ExactSizeIterator<Item = (u32, FencingToken)> {
        self.owned.iter().map(|lease| (lease.slot().unit, lease.token()))
    }

    /// Whether a partition is among them.
    #[must_use]
    pub fn contains(&self, partition: u32) -> bool {
        self.owned.get(&Slot::new(self.workload.clone(), partition)).is_some()
    }
}

impl fmt::Debug for OwnedPartitions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}
