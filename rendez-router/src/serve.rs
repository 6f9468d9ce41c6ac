//! What every transport does on the node's side: how many handlers run, how long, and what becomes of a panic.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, poll};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use crate::{Envelope, Handler, RequestContext, RequestError};

/// How many handlers run at once, unless said otherwise.
pub const HANDLERS_DEFAULT: usize = 100;

/// How many requests wait for a handler to end, unless said otherwise.
pub const WAITING_DEFAULT: usize = 10_000;

/// How long a handler may take, unless said otherwise.
pub const HANDLER_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

/// Further away than anything waits for, and not beyond what the clock can count.
const FAR: Duration = Duration::from_secs(86_400 * 365);

#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) handlers: usize,
    pub(crate) waiting: usize,
    pub(crate) handler_timeout: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { handlers: HANDLERS_DEFAULT, waiting: WAITING_DEFAULT, handler_timeout: HANDLER_TIMEOUT_DEFAULT }
    }
}

/// The places that handlers run in.
pub(crate) struct Places {
    free: Semaphore,
    waiting: AtomicUsize,
    bounds: Bounds,
}

impl Places {
    pub(crate) fn new(mut bounds: Bounds) -> Self {
        bounds.handlers = bounds.handlers.clamp(1, Semaphore::MAX_PERMITS);
        Self { free: Semaphore::new(bounds.handlers), waiting: AtomicUsize::new(0), bounds }
    }

    /// How many are taken.
    pub(crate) fn running(&self) -> usize {
        self.bounds.handlers - self.free.available_permits()
    }

    /// A place at once, if one is free.
    pub(crate) fn free(&self) -> Option<SemaphorePermit<'_>> {
        self.free.try_acquire().ok()
    }

    /// A place as soon as one is free.
    pub(crate) async fn wait(&self, expires_at: Option<Instant>) -> Result<SemaphorePermit<'_>, RequestError> {
        let Some(_waiting) = Waiting::one(&self.waiting, self.bounds.waiting) else {
            let most = self.bounds.waiting as u64;
            return Err(RequestError::Overloaded { what: "the transport".to_owned(), most });
        };
        let place = async { self.free.acquire().await.map_err(|_| RequestError::TransportClosed) };
        match expires_at {
            Some(at) => timeout_at(at, place).await.unwrap_or(Err(RequestError::EnvelopeExpired)),
            None => place.await,
        }
    }

    /// Runs a handler, in a place that the caller has taken.
    pub(crate) fn run<'a>(
        &self,
        handler: &'a dyn Handler,
        envelope: Envelope,
    ) -> impl Future<Output = Result<Bytes, RequestError>> + Send + use<'a> {
        let (now, expires_at) = (Instant::now(), envelope.expires_at());
        let deadline = now.checked_add(self.bounds.handler_timeout).into_iter().chain(expires_at).min();
        let deadline = deadline.unwrap_or(now + FAR);
        // Not in the future: it need not carry the envelope.
        let work = if expires_at.is_some_and(|at| at <= now) {
            Err(RequestError::EnvelopeExpired)
        } else {
            Ok(handler.handle(RequestContext::new(deadline), envelope))
        };
        async move { Self::work(work?, now, deadline).await }
    }

    async fn work(
        work: impl Future<Output = Result<Bytes, RequestError>>,
        now: Instant,
        deadline: Instant,
    ) -> Result<Bytes, RequestError> {
        let mut work = pin!(AssertUnwindSafe(work).catch_unwind());
        // Many handlers answer at once: they need no timer.
        let worked = match poll!(&mut work) {
            Poll::Ready(worked) => Ok(worked),
            // In a box, so that those who answer at once do not carry it around.
            Poll::Pending => Box::pin(timeout_at(deadline, work)).await,
        };
        match worked {
            Ok(Ok(answer)) => answer,
            Ok(Err(panic)) => Err(RequestError::HandlerPanicked { message: panic_text(&*panic) }),
            Err(_) => Err(RequestError::HandlerTimeout { millis: millis(deadline - now) }),
        }
    }
}

/// One of those that wait.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn one(waiting: &'a AtomicUsize, most: usize) -> Option<Self> {
        let one_more = |count| (count < most).then_some(count + 1);
        waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).ok().map(|_| Self(waiting))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&'static str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "it says nothing".to_owned())
}

/// Milliseconds, rounded up.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}
