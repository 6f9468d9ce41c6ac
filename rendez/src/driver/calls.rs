//! Requests to the store: each in a task of its own, each answered exactly once and in time.
//!
//! A store that hangs, blocks its thread or panics costs its own request and nothing else.

use std::sync::Arc;
use std::time::Duration;

use rendez_core::{Call, ChangeKind, ClusterName, ErrorKind, LeaseStore, Reply, RequestId, StoreError};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, Span};

use super::measure::Meter;
use super::panic_text;
use crate::boot_time;
use crate::metrics::STORE_CALL_SECONDS;

/// The most changes and snapshot pages under way at once. Openings, heartbeats and closings never wait.
const CALLS_AT_ONCE_MAX: usize = 32;

/// The answer to one request.
pub(super) struct Answer {
    pub(super) request: RequestId,
    pub(super) result: Result<Reply, StoreError>,
}

pub(super) struct Calls {
    store: Arc<dyn LeaseStore>,
    cluster: ClusterName,
    meter: Meter,
    permits: Arc<Semaphore>,
    tasks: JoinSet<Answer>,
}

impl Calls {
    pub(super) fn new(store: Arc<dyn LeaseStore>, cluster: ClusterName, meter: Meter) -> Self {
        let permits = Arc::new(Semaphore::new(CALLS_AT_ONCE_MAX));
        Self { store, cluster, meter, permits, tasks: JoinSet::new() }
    }

    /// Sends a request; its answer comes out of [`next`](Self::next) at about `timeout` at the latest.
    pub(super) fn send(&mut self, request: RequestId, call: Call, timeout: Duration) {
        let operation = operation(&call);
        let span = span(&call);
        let permits = waits(&call).then(|| self.permits.clone());
        let (store, cluster, meter) = (self.store.clone(), self.cluster.clone(), self.meter.clone());
        let sent = boot_time();
        let task = async move {
            // A task inside of the task, so that a store that blocks its thread cannot hold the answer back.
            let work = AbortOnDropHandle::new(tokio::spawn(
                async move {
                    let _permit = match permits {
                        Some(permits) => permits.acquire_owned().await.ok(),
                        None => None,
                    };
                    perform(&*store, &cluster, call).await
                }
                .instrument(Span::current()),
            ));
            let result = match tokio::time::timeout(timeout, work).await {
                Ok(Ok(result)) => result,
                Ok(Err(error)) if error.is_panic() => {
                    let why = panic_text(&*error.into_panic());
                    tracing::error!(operation, why, "the store panicked");
                    Err(StoreError::new(ErrorKind::Ambiguous, format!("the store panicked in {operation}: {why}")))
                }
                Ok(Err(_)) => Err(StoreError::new(ErrorKind::Ambiguous, "the request was aborted")),
                Err(_) => Err(StoreError::new(
                    ErrorKind::Ambiguous,
                    format!("the store has not answered {operation} within {timeout:?}"),
                )),
            };
            let outcome = result.as_ref().map_or_else(|error| error.kind().as_str(), |_| "ok");
            meter.record(&STORE_CALL_SECONDS, &[operation, outcome], boot_time().since(sent).as_secs_f64());
            if let Err(error) = &result {
                tracing::debug!(operation, kind = outcome, %error, "the store did not do it");
            }
            Answer { request, result }
        };
        self.tasks.spawn(task.instrument(span));
    }

    /// The next answer; waits for ever where nothing is under way. Cancelling it loses nothing.
    pub(super) async fn next(&mut self) -> Answer {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(answer)) => return answer,
                // Aborted, or a panic outside of the store's code, which the engine's own timeouts must make up for.
                Some(Err(error)) => tracing::error!(%error, "a request's task is gone"),
                None => std::future::pending().await,
            }
        }
    }

    /// The next answer that is there already.
    pub(super) fn try_next(&mut self) -> Option<Answer> {
        loop {
            match self.tasks.try_join_next()? {
                Ok(answer) => return Some(answer),
                Err(error) => tracing::error!(%error, "a request's task is gone"),
            }
        }
    }

    /// Drops whatever is under way: its outcome is unknown.
    pub(super) async fn shutdown(&mut self) {
        self.tasks.shutdown().await;
    }
}

async fn perform(store: &dyn LeaseStore, cluster: &ClusterName, call: Call) -> Result<Reply, StoreError> {
    match call {
        Call::Open(request) => store.open(cluster, &request).await.map(Reply::Open),
        Call::Heartbeat(request) => store.heartbeat(cluster, &request).await.map(Reply::Heartbeat),
        Call::Change(request) => store.change(cluster, &request).await.map(Reply::Change),
        Call::Snapshot(request) => store.snapshot(cluster, &request).await.map(Reply::Snapshot),
        Call::Close(request) => store.close(cluster, &request).await.map(|()| Reply::Close),
    }
}

fn operation(call: &Call) -> &'static str {
    match call {
        Call::Open(_) => "open",
        Call::Heartbeat(_) => "heartbeat",
        Call::Change(_) => "change",
        Call::Snapshot(_) => "snapshot",
        Call::Close(_) => "close",
    }
}

/// Whether a request waits for its turn among the others.
fn waits(call: &Call) -> bool {
    match call {
        Call::Change(_) | Call::Snapshot(_) => true,
        Call::Open(_) | Call::Heartbeat(_) | Call::Close(_) => false,
    }
}

fn span(call: &Call) -> Span {
    match call {
        Call::Open(_) => tracing::debug_span!("open"),
        Call::Heartbeat(_) => tracing::debug_span!("heartbeat"),
        Call::Change(request) => {
            let changes = request.changes.len();
            if request.changes.iter().any(|change| matches!(change.kind, ChangeKind::Acquire { .. })) {
                tracing::debug_span!("acquire", changes)
            } else {
                tracing::debug_span!("change", changes)
            }
        }
        Call::Snapshot(_) => tracing::debug_span!("snapshot"),
        Call::Close(_) => tracing::debug_span!("close"),
    }
}
