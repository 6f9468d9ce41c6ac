//! What a program implements: the code of one slot, and what makes it.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;

use async_trait::async_trait;
use rendez_core::Slot;

use crate::SlotContext;

/// Any error, as runners and factories return it. Only its text is used, unless it is a [`Crashed`].
pub type BoxError = Box<dyn Error + Send + Sync + 'static>;

/// The code of one slot, made anew by a [`RunnerFactory`] for every start.
///
/// Its life, always in this order and all in one task of its own:
///
/// 1. [`run`](Runner::run) is polled until it returns. Returning while nobody asked for it, with or without an
///    error, and panicking mean: start again after a pause.
/// 2. When the slot shall end here, [`SlotContext::cancelled`] completes. From then on the stop budget
///    ([`Timing::stop_budget`](rendez_core::Timing::stop_budget)) runs.
/// 3. [`stop`](Runner::stop) is called, if `run` has returned after it was told to.
/// 4. Whatever is left when the budget is over is aborted: its future is dropped at its next await point.
/// 5. Only then, when nothing of it runs any more, is the lease let go or handed over.
///
/// A runner that blocks its thread cannot be aborted: it keeps its lease, is reported as an overrun, and ends the
/// process if the lease is lost meanwhile (see [`OverrunPolicy`](crate::OverrunPolicy)). Move blocking work to
/// [`tokio::task::spawn_blocking`] and await its end. Tasks and threads that a runner spawns and does not await are
/// beyond anybody's control: await them before returning.
#[async_trait]
pub trait Runner: Send {
    /// Does the slot's work until it is told to end.
    ///
    /// # Errors
    /// Any error counts as a failure of the runner: it is told as an event and the runner is made anew after a pause.
    async fn run(&mut self, ctx: SlotContext) -> Result<(), BoxError>;

    /// Cleans up after [`run`](Runner::run) has returned because it was told to; the lease still holds. It shares the
    /// stop budget with `run`, and is dropped at an await point when that is over.
    ///
    /// # Errors
    /// An error is told as the runner's end; the slot is let go all the same.
    async fn stop(&mut self, ctx: SlotContext) -> Result<(), BoxError> {
        let _ = ctx;
        Ok(())
    }

    /// Whether this runner ends itself when it is aborted.
    ///
    /// Ordinarily (`false`) an abort drops the future of `run`. A runner that owns something that outlives a dropped
    /// future, such as a child process, says `true`: then an abort only completes [`SlotContext::aborted`], and `run`
    /// must kill what it owns, wait for its end, and return at once. Until it returns it counts as running.
    fn ends_itself(&self) -> bool {
        false
    }
}

/// Makes runners. One factory serves all slots of a node.
///
/// An async closure or function over a [`SlotContext`] is a factory too; its future is the runner:
///
/// ```
/// # fn takes(_: impl rendez::RunnerFactory) {}
/// takes(|ctx: rendez::SlotContext| async move {
///     while !ctx.is_cancelled() {
///         tokio::time::sleep(std::time::Duration::from_millis(10)).await; // the slot's work
///     }
/// });
/// ```
#[async_trait]
pub trait RunnerFactory: Send + Sync + 'static {
    /// Makes the runner for a slot that this node has just been granted. Called in the runner's own task, so a slow
    /// one delays no other slot; stop and abort reach it as they reach [`Runner::run`].
    ///
    /// # Errors
    /// Counts as a failure of the runner: it is tried again after a pause.
    async fn make(&self, ctx: &SlotContext) -> Result<Box<dyn Runner>, BoxError>;

    /// Prepares for a slot that another node offers and still runs: fill caches, open connections; no side effects.
    /// The slot is handed over only when this has returned. The default is ready at once.
    ///
    /// The future is dropped when the offer ends; [`cool_down`](RunnerFactory::cool_down) is called then.
    ///
    /// # Errors
    /// The node refuses the slot for a while, and its owner keeps it.
    async fn warm_up(&self, slot: &Slot) -> Result<(), BoxError> {
        let _ = slot;
        Ok(())
    }

    /// Undoes [`warm_up`](RunnerFactory::warm_up) for a slot that does not come. Dropped at an await point when the
    /// node stops.
    async fn cool_down(&self, slot: &Slot) {
        let _ = slot;
    }
}

/// An error that says: the runner's code did not fail, it crashed, such as a child process that died by a signal. It
/// is told as [`RunnerEnd::Panicked`](rendez_core::RunnerEnd::Panicked).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Crashed(pub String);

/// What the future of a closure may return: nothing, or a result with an error of any type.
pub trait RunnerOutput {
    /// The output as a runner's result.
    ///
    /// # Errors
    /// The runner's own.
    fn into_result(self) -> Result<(), BoxError>;
}

impl RunnerOutput for () {
    fn into_result(self) -> Result<(), BoxError> {
        Ok(())
    }
}

impl<E: Into<BoxError>> RunnerOutput for Result<(), E> {
    fn into_result(self) -> Result<(), BoxError> {
        self.map_err(Into::into)
    }
}

#[async_trait]
impl<F, Fut> RunnerFactory for F
where
    F: Fn(SlotContext) -> Fut + Send + Sync + 'static,
    Fut: Future + Send + 'static,
    Fut::Output: RunnerOutput,
{
    async fn make(&self, ctx: &SlotContext) -> Result<Box<dyn Runner>, BoxError> {
        let work = self(ctx.clone());
        Ok(Box::new(FutureRunner { work: Some(Box::pin(async move { work.await.into_result() })) }))
    }
}

/// The runner that a closure's future makes. It runs once.
struct FutureRunner {
    work: Option<Work>,
}

type Work = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;

#[async_trait]
impl Runner for FutureRunner {
    async fn run(&mut self, _ctx: SlotContext) -> Result<(), BoxError> {
        match self.work.take() {
            Some(work) => work.await,
            None => Ok(()),
        }
    }
}
