//! The store's watch: opened again and again, because every hint saves time and none is needed.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use rendez_core::{ClusterName, ErrorKind, LeaseStore, StoreError, Timing, WatchHint};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::measure::Meter;
use super::panic_text;
use crate::boot_time;
use crate::metrics::WATCH_OPENINGS_TOTAL;

/// The most hints that wait for the driver; the watch itself waits beyond that.
const HINTS_MAX: usize = 256;

/// The longest pause before the watch is opened again, in heartbeat intervals.
const PAUSE_MAX_HEARTBEATS: u32 = 5;

pub(super) struct WatchTask {
    hints: mpsc::Receiver<WatchHint>,
    _task: AbortOnDropHandle<()>,
}

impl WatchTask {
    pub(super) fn spawn(store: Arc<dyn LeaseStore>, cluster: ClusterName, timing: &Timing, meter: Meter) -> Self {
        let (sender, hints) = mpsc::channel(HINTS_MAX);
        let watcher = Watcher {
            store,
            cluster,
            hints: sender,
            open_timeout: timing.operation_timeout * 4,
            pause_min: timing.backoff_min,
            pause_max: (timing.heartbeat_interval * PAUSE_MAX_HEARTBEATS).max(timing.backoff_min),
            meter,
        };
        Self { hints, _task: AbortOnDropHandle::new(tokio::spawn(watcher.watch())) }
    }

    /// The next hint; waits for ever where the store has no watch. Cancelling it loses nothing.
    pub(super) async fn next(&mut self) -> WatchHint {
        match self.hints.recv().await {
            Some(hint) => hint,
            None => std::future::pending().await,
        }
    }

    pub(super) fn try_next(&mut self) -> Option<WatchHint> {
        self.hints.try_recv().ok()
    }
}

struct Watcher {
    store: Arc<dyn LeaseStore>,
    cluster: ClusterName,
    hints: mpsc::Sender<WatchHint>,
    open_timeout: Duration,
    pause_min: Duration,
    pause_max: Duration,
    meter: Meter,
}

impl Watcher {
    async fn watch(self) {
        let mut pause = self.pause_min;
        loop {
            let began = boot_time();
            let result = match AssertUnwindSafe(self.once()).catch_unwind().await {
                Ok(result) => result,
                Err(panic) => Err(StoreError::new(ErrorKind::Transient, panic_text(&*panic))),
            };
            match &result {
                Ok(()) if self.hints.is_closed() => return,
                Ok(()) => tracing::debug!("the watch has ended and is opened again"),
                Err(error) if error.kind() == ErrorKind::Unsupported => {
                    tracing::debug!(%error, "the store has no watch: heartbeats tell what has changed");
                    return;
                }
                Err(error) => tracing::debug!(kind = error.kind().as_str(), %error, "the watch cannot be opened"),
            }
            // One that has lasted is opened again soon; one that keeps ending is not, whatever its opening says.
            if boot_time().since(began) > self.pause_max {
                pause = self.pause_min;
            }
            tokio::time::sleep(pause.mul_f64(0.5 + 0.5 * fastrand::f64())).await;
            pause = (pause * 2).min(self.pause_max);
        }
    }

    /// Opens the watch and hands on its hints until it ends.
    async fn once(&self) -> Result<(), StoreError> {
        let opening = tokio::time::timeout(self.open_timeout, self.store.watch(&self.cluster)).await;
        let opening = opening.unwrap_or_else(|_| {
            Err(StoreError::new(ErrorKind::Transient, format!("no answer within {:?}", self.open_timeout)))
        });
        let outcome = opening.as_ref().map_or_else(|error| error.kind().as_str(), |_| "ok");
        self.meter.record(&WATCH_OPENINGS_TOTAL, &[outcome], 1.0);
        let mut watch = opening?;
        // Whatever happened while there was no watch.
        let mut hint = Some(WatchHint::Everyone);
        while let Some(told) = hint {
            if self.hints.send(told).await.is_err() {
                return Ok(());
            }
            hint = watch.next().await;
        }
        Ok(())
    }
}
