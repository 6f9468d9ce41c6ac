//! What a node knows of a lease whose slot it runs; shared by the driver, the runner and the handle without a lock
//! on the path of [`SlotLease::check`].

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rendez_core::{FencingToken, Slot, StopReason, Timestamp};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock::boot_time;

/// The lease of one slot that runs on this node. Cheap to clone; all clones see the same.
#[derive(Clone)]
pub struct SlotLease(Arc<State>);

struct State {
    slot: Slot,
    token: FencingToken,
    /// Nanoseconds of the boot-time clock.
    deadline: AtomicU64,
    /// The lease is lost, or its runner is gone.
    gone: AtomicBool,
    deadlines: watch::Sender<Timestamp>,
    stopping: CancellationToken,
    aborting: CancellationToken,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    why: Option<StopReason>,
    abort_at: Option<Timestamp>,
    checkpoint: Option<Bytes>,
}

/// The lease is gone: whatever its runner would do now, another node may do at the same time. Do not go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the lease of {slot} (token {token}) is gone: do not go on")]
#[non_exhaustive]
pub struct LeaseLost {
    /// The slot.
    pub slot: Slot,
    /// The token that the lease had.
    pub token: FencingToken,
}

impl SlotLease {
    pub(crate) fn new(slot: Slot, token: FencingToken, deadline: Timestamp) -> Self {
        Self(Arc::new(State {
            slot,
            token,
            deadline: AtomicU64::new(deadline.as_nanos()),
            gone: AtomicBool::new(false),
            deadlines: watch::Sender::new(deadline),
            stopping: CancellationToken::new(),
            aborting: CancellationToken::new(),
            told: Mutex::default(),
        }))
    }

    /// The slot.
    #[must_use]
    pub fn slot(&self) -> &Slot {
        &self.0.slot
    }

    /// The fencing token: hand it to whatever the slot's work writes to.
    #[must_use]
    pub fn token(&self) -> FencingToken {
        self.0.token
    }

    /// Until when the runner may run, as known now, on the boot-time clock ([`boot_time`](crate::boot_time)). It moves
    /// forward with every heartbeat that succeeds, and never back.
    #[must_use]
    pub fn deadline(&self) -> Timestamp {
        Timestamp::from_nanos(self.0.deadline.load(Ordering::Acquire))
    }

    /// Each new [`deadline`](Self::deadline), the latest only; for whoever hands it on to another process.
    #[must_use]
    pub fn deadline_changes(&self) -> watch::Receiver<Timestamp> {
        self.0.deadlines.subscribe()
    }

    /// How long the runner may run, as known now; zero if the lease is gone.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        if self.0.gone.load(Ordering::Acquire) {
            return Duration::ZERO;
        }
        self.deadline().since(boot_time())
    }

    /// Whether the lease holds at this moment: two atomic loads and one reading of the clock, no lock, no I/O.
    ///
    /// Call it before each side effect. It narrows the gap and cannot close it: the process can be paused between
    /// this call and the effect. Only a sink that compares [`token`](Self::token)s closes it.
    ///
    /// # Errors
    /// [`LeaseLost`] if the deadline has passed, the store has said that the lease is gone, or the runner was aborted
    /// or has ended. Final: a lost lease never comes back; the slot may, with another token.
    pub fn check(&self) -> Result<(), LeaseLost> {
        self.check_for(Duration::ZERO)
    }

    /// Whether the lease will hold for this long, whatever happens to the store meanwhile: for a side effect whose
    /// duration is known.
    ///
    /// # Errors
    /// [`LeaseLost`] if it may not. That is final for a duration of zero only.
    pub fn check_for(&self, duration: Duration) -> Result<(), LeaseLost> {
        if !self.0.gone.load(Ordering::Acquire) && boot_time() + duration < self.deadline() {
            return Ok(());
        }
        Err(LeaseLost { slot: self.0.slot.clone(), token: self.0.token })
    }

    /// Completes when the runner is told to stop; at once if it already was. Cancelling it changes nothing.
    pub async fn cancelled(&self) {
        self.0.stopping.cancelled().await;
    }

    /// Whether the runner was told to stop. The lease still holds then, unless [`check`](Self::check) says otherwise.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.stopping.is_cancelled()
    }

    /// Why the runner was told to stop, if it was; the latest reason if there were several.
    #[must_use]
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.told().why.clone()
    }

    /// When the runner is aborted, if it was told to stop.
    #[must_use]
    pub fn abort_at(&self) -> Option<Timestamp> {
        self.told().abort_at
    }

    pub(crate) fn stopping(&self) -> &CancellationToken {
        &self.0.stopping
    }

    pub(crate) fn aborting(&self) -> &CancellationToken {
        &self.0.aborting
    }

    pub(crate) fn extend(&self, deadline: Timestamp) {
        let before = self.0.deadline.fetch_max(deadline.as_nanos(), Ordering::AcqRel);
        if before < deadline.as_nanos() {
            self.0.deadlines.send_replace(deadline);
        }
    }

    pub(crate) fn stop(&self, why: StopReason, abort_at: Timestamp) {
        if why == StopReason::Lost {
            self.0.gone.store(true, Ordering::Release);
        }
        {
            let mut told = self.told();
            told.abort_at = Some(told.abort_at.map_or(abort_at, |earlier| earlier.min(abort_at)));
            told.why = Some(why);
        }
        self.0.stopping.cancel();
    }

    pub(crate) fn abort(&self) {
        self.0.gone.store(true, Ordering::Release);
        self.0.stopping.cancel();
        self.0.aborting.cancel();
    }

    pub(crate) fn end(&self) {
        self.0.gone.store(true, Ordering::Release);
    }

    pub(crate) fn leave(&self, checkpoint: Bytes) {
        self.told().checkpoint = Some(checkpoint);
    }

    pub(crate) fn take_left(&self) -> Option<Bytes> {
        self.told().checkpoint.take()
    }

    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.0.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SlotLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotLease")
            .field("slot", &self.0.slot)
            .field("token", &self.0.token)
            .field("deadline", &self.deadline())
            .field("gone", &self.0.gone)
            .field("cancelled", &self.is_cancelled())
            .finish()
    }
}
