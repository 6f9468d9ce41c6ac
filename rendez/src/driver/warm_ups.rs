//! Preparations for slots that other nodes offer.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use rendez_core::{OperationId, Slot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::panic_text;
use crate::runner::RunnerFactory;

/// A preparation that has ended.
pub(super) struct Warmed {
    pub(super) slot: Slot,
    pub(super) offer: OperationId,
    pub(super) ready: bool,
}

pub(super) struct WarmUps {
    factory: Arc<dyn RunnerFactory>,
    tasks: JoinSet<Option<Warmed>>,
    /// The latest offer of each slot that is prepared for or was prepared for.
    current: HashMap<Slot, WarmUp>,
}

struct WarmUp {
    offer: OperationId,
    running: bool,
    /// Cool down as soon as nothing runs.
    cool_down: bool,
    cancel: CancellationToken,
}

impl WarmUps {
    pub(super) fn new(factory: Arc<dyn RunnerFactory>) -> Self {
        Self { factory, tasks: JoinSet::new(), current: HashMap::new() }
    }

    pub(super) fn warm_up(&mut self, slot: Slot, offer: OperationId) {
        let cancel = CancellationToken::new();
        let warm_up = WarmUp { offer, running: true, cool_down: false, cancel: cancel.clone() };
        if let Some(earlier) = self.current.insert(slot.clone(), warm_up) {
            earlier.cancel.cancel();
        }
        let factory = self.factory.clone();
        self.tasks.spawn(async move {
            let ready = tokio::select! {
                biased;
                () = cancel.cancelled() => false,
                result = AssertUnwindSafe(factory.warm_up(&slot)).catch_unwind() => match result {
                    Ok(Ok(())) => true,
                    Ok(Err(error)) => {
                        tracing::warn!(%slot, %error, "cannot prepare for an offered slot");
                        false
                    }
                    Err(panic) => {
                        tracing::error!(%slot, why = panic_text(&*panic), "the warm-up of an offered slot panicked");
                        false
                    }
                },
            };
            Some(Warmed { slot, offer, ready })
        });
    }

    /// Ends the preparation for a slot, then cools down.
    pub(super) fn cool_down(&mut self, slot: Slot) {
        match self.current.get_mut(&slot) {
            Some(warm_up) if warm_up.running => {
                warm_up.cool_down = true;
                warm_up.cancel.cancel();
            }
            _ => {
                self.current.remove(&slot);
                self.spawn_cool_down(slot);
            }
        }
    }

    /// The slot has come: what was prepared is the runner's now.
    pub(super) fn arrived(&mut self, slot: &Slot) {
        self.current.remove(slot);
    }

    /// The next preparation that ended; waits for ever where there is none. Cancelling it loses nothing.
    pub(super) async fn next(&mut self) -> Warmed {
        loop {
            match self.tasks.join_next().await {
                Some(ended) => {
                    if let Some(warmed) = self.ended(ended.ok().flatten()) {
                        return warmed;
                    }
                }
                None => std::future::pending().await,
            }
        }
    }

    pub(super) fn try_next(&mut self) -> Option<Warmed> {
        loop {
            let ended = self.tasks.try_join_next()?;
            if let Some(warmed) = self.ended(ended.ok().flatten()) {
                return Some(warmed);
            }
        }
    }

    fn ended(&mut self, warmed: Option<Warmed>) -> Option<Warmed> {
        let warmed = warmed?;
        let cool_down = match self.current.get_mut(&warmed.slot) {
            Some(warm_up) if warm_up.offer == warmed.offer => {
                warm_up.running = false;
                warm_up.cool_down
            }
            _ => false,
        };
        if cool_down {
            self.current.remove(&warmed.slot);
            self.spawn_cool_down(warmed.slot.clone());
        }
        Some(warmed)
    }

    fn spawn_cool_down(&mut self, slot: Slot) {
        let factory = self.factory.clone();
        self.tasks.spawn(async move {
            if let Err(panic) = AssertUnwindSafe(factory.cool_down(&slot)).catch_unwind().await {
                tracing::error!(%slot, why = panic_text(&*panic), "the cool-down of a slot panicked");
            }
            None
        });
    }

    /// Drops all preparations.
    pub(super) async fn shutdown(&mut self) {
        self.current.clear();
        self.tasks.shutdown().await;
    }
}
