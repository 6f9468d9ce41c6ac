//! What a runner is given.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rendez_core::{
    CHECKPOINT_BYTES_MAX, CheckpointError, ClusterName, FencingToken, NodeId, Slot, StopReason, Timestamp,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::lease::{LeaseLost, SlotLease};

/// What a runner is given: its slot, its lease, and the way to save a checkpoint. Cheap to clone.
///
/// A clone that outlives its runner is harmless: [`check`](Self::check) fails for ever.
#[derive(Clone)]
pub struct SlotContext(Arc<Inner>);

struct Inner {
    lease: SlotLease,
    cluster: ClusterName,
    node: NodeId,
    checkpoint: Option<Bytes>,
    savings: mpsc::Sender<Saving>,
}

/// A checkpoint on its way to the driver.
pub(crate) struct Saving {
    pub(crate) slot: Slot,
    pub(crate) token: FencingToken,
    pub(crate) checkpoint: Bytes,
    pub(crate) saved: oneshot::Sender<Result<(), CheckpointError>>,
}

impl SlotContext {
    pub(crate) fn new(
        lease: SlotLease,
        cluster: ClusterName,
        node: NodeId,
        checkpoint: Option<Bytes>,
        savings: mpsc::Sender<Saving>,
    ) -> Self {
        Self(Arc::new(Inner { lease, cluster, node, checkpoint, savings }))
    }

    /// The slot to work on.
    #[must_use]
    pub fn slot(&self) -> &Slot {
        self.0.lease.slot()
    }

    /// The fencing token of this run: higher than that of every earlier run of the slot, on any node. Hand it to
    /// whatever the slot's work writes to, and let that refuse a lower one.
    #[must_use]
    pub fn token(&self) -> FencingToken {
        self.0.lease.token()
    }

    /// The cluster.
    #[must_use]
    pub fn cluster(&self) -> &ClusterName {
        &self.0.cluster
    }

    /// The node that this is.
    #[must_use]
    pub fn node(&self) -> &NodeId {
        &self.0.node
    }

    /// The lease, for code that needs nothing else.
    #[must_use]
    pub fn lease(&self) -> &SlotLease {
        &self.0.lease
    }

    /// Completes when the slot shall end here; at once if it already shall. Cancelling it changes nothing.
    pub async fn cancelled(&self) {
        self.0.lease.cancelled().await;
    }

    /// Whether the slot shall end here.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.lease.is_cancelled()
    }

    /// A token that is cancelled when the slot shall end here; for code that takes one. Cancelling it affects
    /// nothing but itself.
    #[must_use]
    pub fn cancellation_token(&self) -> CancellationToken {
        self.0.lease.stopping().child_token()
    }

    /// Completes when the runner is aborted; of use to a runner that
    /// [ends itself](crate::Runner::ends_itself) only, as others do not live to see it. Cancelling it changes nothing.
    pub async fn aborted(&self) {
        self.0.lease.aborting().cancelled().await;
    }

    /// Whether the runner was aborted.
    #[must_use]
    pub fn is_aborted(&self) -> bool {
        self.0.lease.aborting().is_cancelled()
    }

    /// When the runner is aborted, if it was told to stop; on the boot-time clock ([`boot_time`](crate::boot_time)).
    #[must_use]
    pub fn abort_at(&self) -> Option<Timestamp> {
        self.0.lease.abort_at()
    }

    /// Why the slot shall end here, if it shall; the latest reason if there were several.
    #[must_use]
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.0.lease.stop_reason()
    }

    /// Until when this runner may run, as known now: see [`SlotLease::deadline`].
    #[must_use]
    pub fn deadline(&self) -> Timestamp {
        self.0.lease.deadline()
    }

    /// Each new [`deadline`](Self::deadline), the latest only; for whoever hands it on to another process.
    #[must_use]
    pub fn deadline_changes(&self) -> watch::Receiver<Timestamp> {
        self.0.lease.deadline_changes()
    }

    /// How long this runner may run, as known now; zero if the lease is gone.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.0.lease.remaining()
    }

    /// Whether the lease holds at this moment; cheap enough to call before every side effect. See
    /// [`SlotLease::check`] for what it can promise and what it cannot.
    ///
    /// # Errors
    /// [`LeaseLost`]: final. End the runner without any further side effect.
    pub fn check(&self) -> Result<(), LeaseLost> {
        self.0.lease.check()
    }

    /// Whether the lease will hold for this long, whatever happens to the store meanwhile.
    ///
    /// # Errors
    /// [`LeaseLost`] if it may not.
    pub fn check_for(&self, duration: Duration) -> Result<(), LeaseLost> {
        self.0.lease.check_for(duration)
    }

    /// What the last runner of this slot left, on whichever node it ran.
    #[must_use]
    pub fn checkpoint(&self) -> Option<&Bytes> {
        self.0.checkpoint.as_ref()
    }

    /// Saves a checkpoint in the store for the slot's next runner, in place of the last one. At most
    /// [`CHECKPOINT_BYTES_MAX`] bytes: a position, not the data. Costs a store request: every few seconds is fine,
    /// every message is not.
    ///
    /// Cancelling it leaves open whether the checkpoint is saved.
    ///
    /// # Errors
    /// [`CheckpointError`] says whether it may be saved all the same. The runner may go on after
    /// [`CheckpointError::Store`], and must not after [`CheckpointError::LeaseGone`].
    pub async fn save_checkpoint(&self, checkpoint: impl AsRef<[u8]> + Send) -> Result<(), CheckpointError> {
        let checkpoint = within_limit(checkpoint.as_ref())?;
        if self.check().is_err() {
            return Err(CheckpointError::LeaseGone);
        }
        let (saved, answer) = oneshot::channel();
        let saving = Saving { slot: self.slot().clone(), token: self.token(), checkpoint, saved };
        self.0.savings.send(saving).await.map_err(|_| CheckpointError::LeaseGone)?;
        answer.await.unwrap_or(Err(CheckpointError::LeaseGone))
    }

    /// Leaves a checkpoint that goes with the slot when this runner has ended: it costs no request of its own, and
    /// is lost if the node crashes before. The last one counts; it also replaces what
    /// [`save_checkpoint`](Self::save_checkpoint) has saved.
    ///
    /// # Errors
    /// [`CheckpointError::TooLarge`]; what was left before stays.
    pub fn leave_checkpoint(&self, checkpoint: impl AsRef<[u8]>) -> Result<(), CheckpointError> {
        self.0.lease.leave(within_limit(checkpoint.as_ref())?);
        Ok(())
    }
}

/// A copy of its own, so that no destructor of the program's runs in the driver.
fn within_limit(checkpoint: &[u8]) -> Result<Bytes, CheckpointError> {
    let bytes = checkpoint.len();
    if bytes > CHECKPOINT_BYTES_MAX {
        return Err(CheckpointError::TooLarge { bytes });
    }
    Ok(Bytes::copy_from_slice(checkpoint))
}

impl fmt::Debug for SlotContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotContext")
            .field("cluster", &self.0.cluster)
            .field("node", &self.0.node)
            .field("lease", &self.0.lease)
            .finish_non_exhaustive()
    }
}
