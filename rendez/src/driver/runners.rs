//! The runners' tasks: one a slot; none can delay another, and each one's end is told only when nothing of it runs.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use bytes::Bytes;
use rendez_core::{FencingToken, RunnerEnd, Slot, StopReason, Timestamp};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tracing::Instrument;

use super::measure::Meter;
use super::panic_text;
use crate::boot_time;
use crate::context::SlotContext;
use crate::lease::SlotLease;
use crate::metrics::{RUNNER_SECONDS, RUNNER_STOP_SECONDS};
use crate::runner::{BoxError, Crashed, RunnerFactory};

/// A runner that is gone.
pub(super) struct Ended {
    pub(super) slot: Slot,
    pub(super) token: FencingToken,
    pub(super) end: RunnerEnd,
    pub(super) checkpoint: Option<Bytes>,
}

pub(super) struct Runners {
    factory: Arc<dyn RunnerFactory>,
    meter: Meter,
    tasks: JoinSet<RunnerEnd>,
    slots: HashMap<Id, Slot>,
    running: BTreeMap<Slot, Running>,
}

struct Running {
    lease: SlotLease,
    started: Timestamp,
    told: Option<Timestamp>,
    task: AbortHandle,
    abortion: Arc<Abortion>,
}

impl Runners {
    pub(super) fn new(factory: Arc<dyn RunnerFactory>, meter: Meter) -> Self {
        Self { factory, meter, tasks: JoinSet::new(), slots: HashMap::new(), running: BTreeMap::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.running.len()
    }

    pub(super) fn leases(&self) -> impl Iterator<Item = &SlotLease> {
        self.running.values().map(|running| &running.lease)
    }

    pub(super) fn runs(&self, slot: &Slot) -> bool {
        self.running.contains_key(slot)
    }

    /// Starts a runner; there must be none of its slot.
    pub(super) fn start(&mut self, ctx: SlotContext) {
        let lease = ctx.lease().clone();
        let (slot, token) = (lease.slot().clone(), lease.token());
        let span = tracing::info_span!("slot", %slot, %token);
        let abortion = Arc::new(Abortion::default());
        let work = run(self.factory.clone(), ctx, abortion.clone());
        let task = self.tasks.spawn(work.instrument(span));
        self.slots.insert(task.id(), slot.clone());
        self.running.insert(slot, Running { lease, started: boot_time(), told: None, task, abortion });
    }

    /// All but these may run until this deadline.
    pub(super) fn extend(&self, deadline: Timestamp, mut except: Vec<Slot>) {
        except.sort_unstable();
        for (slot, running) in &self.running {
            if except.binary_search(slot).is_err() {
                running.lease.extend(deadline);
            }
        }
    }

    pub(super) fn stop(&mut self, slot: &Slot, token: FencingToken, why: StopReason, abort_at: Timestamp) {
        if let Some(running) = self.running.get_mut(slot).filter(|running| running.lease.token() == token) {
            running.told.get_or_insert_with(boot_time);
            running.lease.stop(why, abort_at);
        }
    }

    pub(super) fn abort(&mut self, slot: &Slot, token: FencingToken) {
        if let Some(running) = self.running.get_mut(slot).filter(|running| running.lease.token() == token) {
            running.abort();
        }
    }

    /// Tells every runner to stop, within this time but before its deadline; says when the last one's time is over.
    pub(super) fn stop_all(&mut self, abort_at: Timestamp) -> Timestamp {
        let mut last = Timestamp::ZERO;
        for running in self.running.values_mut() {
            let abort_at = abort_at.min(running.lease.deadline());
            last = last.max(abort_at);
            if running.told.is_none() {
                running.told = Some(boot_time());
                running.lease.stop(StopReason::Shutdown, abort_at);
            }
        }
        last
    }

    /// Aborts the runners whose deadline has come, or all of them.
    pub(super) fn abort_due(&mut self, now: Timestamp, all: bool) {
        for running in self.running.values_mut() {
            if all || running.lease.deadline() <= now {
                running.abort();
            }
        }
    }

    /// The next runner that is gone; waits for ever where there is none. Cancelling it loses nothing.
    pub(super) async fn next(&mut self) -> Ended {
        loop {
            match self.tasks.join_next_with_id().await {
                Some(joined) => {
                    if let Some(ended) = self.ended(joined) {
                        return ended;
                    }
                }
                None => std::future::pending().await,
            }
        }
    }

    pub(super) fn try_next(&mut self) -> Option<Ended> {
        loop {
            let joined = self.tasks.try_join_next_with_id()?;
            if let Some(ended) = self.ended(joined) {
                return Some(ended);
            }
        }
    }

    fn ended(&mut self, joined: Result<(Id, RunnerEnd), JoinError>) -> Option<Ended> {
        let (id, end) = match joined {
            Ok((id, end)) => (id, end),
            Err(error) => {
                let id = error.id();
                match error.try_into_panic() {
                    Ok(panic) => (id, RunnerEnd::Panicked(panic_text(&*panic))),
                    Err(_) => (id, RunnerEnd::Aborted),
                }
            }
        };
        let slot = self.slots.remove(&id)?;
        let running = self.running.remove(&slot)?;
        running.lease.end();
        let now = boot_time();
        self.meter.record(&RUNNER_SECONDS, &[end_name(&end)], now.since(running.started).as_secs_f64());
        if let Some(told) = running.told {
            self.meter.record(&RUNNER_STOP_SECONDS, &[], now.since(told).as_secs_f64());
        }
        Some(Ended { slot, token: running.lease.token(), end, checkpoint: running.lease.take_left() })
    }
}

impl Running {
    fn abort(&mut self) {
        self.lease.abort();
        if self.abortion.abort() {
            self.task.abort();
        }
    }
}

/// Who ends a runner that is aborted: the runtime, by dropping its future, or the runner itself.
#[derive(Default)]
struct Abortion(AtomicU8);

impl Abortion {
    const OPEN: u8 = 0;
    const BY_ITSELF: u8 = 1;
    const ABORTED: u8 = 2;

    /// Aborts; says whether the future is to be dropped.
    fn abort(&self) -> bool {
        match self.0.compare_exchange(Self::OPEN, Self::ABORTED, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            Err(state) => state == Self::ABORTED,
        }
    }

    /// From now on the runner ends itself; says whether it may begin at all.
    fn take_over(&self) -> bool {
        self.0.compare_exchange(Self::OPEN, Self::BY_ITSELF, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

async fn run(factory: Arc<dyn RunnerFactory>, ctx: SlotContext, abortion: Arc<Abortion>) -> RunnerEnd {
    match run_to_the_end(&*factory, &ctx, &abortion).await {
        _ if ctx.is_aborted() => RunnerEnd::Aborted,
        Ok(()) => RunnerEnd::Returned,
        Err(error) => match error.downcast::<Crashed>() {
            Ok(crashed) => RunnerEnd::Panicked(crashed.0),
            Err(error) => RunnerEnd::Failed(error_text(&*error)),
        },
    }
}

async fn run_to_the_end(factory: &dyn RunnerFactory, ctx: &SlotContext, abortion: &Abortion) -> Result<(), BoxError> {
    // The task may begin late.
    if ctx.is_cancelled() || ctx.check().is_err() {
        return Ok(());
    }
    let mut runner = factory.make(ctx).await?;
    if ctx.is_cancelled() || ctx.check().is_err() {
        return Ok(());
    }
    if runner.ends_itself() && !abortion.take_over() {
        return Ok(());
    }
    let result = runner.run(ctx.clone()).await;
    if ctx.is_cancelled() && !ctx.is_aborted() {
        return result.and(runner.stop(ctx.clone()).await);
    }
    result
}

/// An error and what it came from, in one line.
pub(super) fn error_text(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

fn end_name(end: &RunnerEnd) -> &'static str {
    match end {
        RunnerEnd::Returned => "returned",
        RunnerEnd::Failed(_) => "failed",
        RunnerEnd::Panicked(_) => "panicked",
        RunnerEnd::Aborted => "aborted",
    }
}
