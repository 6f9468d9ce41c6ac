//! The watch: keeps a cluster's picture up to date, ends what is over, and passes hints on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::stream::TryStreamExt as _;
use kube::api::{WatchEvent, WatchParams};
use rendez_core::{ErrorKind, StoreError, Watch, WatchHint};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::cluster::{Cluster, Shared};
use crate::errors::{Stage, Wrong, sort, timed_out};
use crate::picture::Listing;

/// How far back a picture begins, in the server's versions: the watch then tells it what happened since, so that it can
/// answer who has seen the cluster through another handle before.
const HISTORY: u64 = 5000;

/// How long to wait before a broken watch is tried again: at first, and at most. A request that needs it cuts it short.
const WAIT_MIN: Duration = Duration::from_millis(50);
const WAIT_MAX: Duration = Duration::from_secs(2);

/// How often is looked whether the cluster is still asked for.
const IDLE_CHECK: Duration = Duration::from_secs(10);

/// By how much observers are late on purpose, at most, each by its own measure: mostly one of them ends a session, and
/// not all at once.
const SPREAD_MS_MAX: u64 = 200;

/// How soon what is over and stands is tried to be ended again.
const TRY_AGAIN: Duration = Duration::from_millis(500);

/// How long the server keeps one watch open.
const WATCH_SECONDS: u32 = 290;

/// Follows a cluster until nobody has asked for it for a while.
pub(crate) async fn follow(shared: Arc<Shared>) {
    let mut wait = WAIT_MIN;
    loop {
        match follow_once(&shared, &mut wait).await {
            Ok(Ended::Idle) => return,
            Ok(Ended::ByServer) => {
                // Something in between may end each at once.
                tokio::time::sleep(WAIT_MIN).await;
                continue;
            }
            Err(error) => {
                tracing::debug!(server = shared.server.name, %error, "the watch ended");
                shared.with(|picture| picture.set_trouble(Some(error)));
            }
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            // Whoever needs it cuts the wait short, though never to nothing.
            () = async {
                tokio::time::sleep(WAIT_MIN).await;
                shared.wanted.notified().await;
            } => {}
        }
        wait = (wait * 2).min(WAIT_MAX);
        if shared.is_idle() {
            return;
        }
    }
}

enum Ended {
    /// Nobody asks any more.
    Idle,
    /// As all watches end.
    ByServer,
}

async fn follow_once(shared: &Shared, wait: &mut Duration) -> Result<Ended, StoreError> {
    // A suspicion was about the watch before this one.
    tokio::select! {
        biased;
        () = shared.suspect.notified() => {}
        () = std::future::ready(()) => {}
    }
    let limit = shared.server.options.connect_timeout;
    let late = |_| timed_out(Stage::Reading, &shared.server.name, limit);
    if shared.read(|picture| picture.reload) {
        tokio::time::timeout(limit, load(shared)).await.map_err(late)??;
        *wait = WAIT_MIN;
    }
    let from = shared.read(|picture| picture.mirror.covered().0);
    let how = WatchParams::default().labels(&shared.keys.selector()).timeout(WATCH_SECONDS);
    let begun = tokio::time::timeout(limit, shared.server.api.watch(&how, &from.to_string())).await;
    let stream = begun.map_err(late)?.map_err(|error| failed(shared, error))?;
    let mut stream = std::pin::pin!(stream);
    shared.with(|picture| picture.set_trouble(None));
    *wait = WAIT_MIN;
    let spread = Duration::from_millis(fastrand::u64(..SPREAD_MS_MAX));
    let mut idle_check = Instant::now() + IDLE_CHECK;
    let mut next_try = Instant::now();
    loop {
        // A moment and no time to wait, which each event would put off. The watch is heard first: who stood still is told
        // what it has missed before it judges anybody.
        let end = shared.read(|picture| picture.next_end()).map(|end| (end + spread).max(next_try));
        let end = end.map_or(idle_check, |end| end.min(idle_check));
        tokio::select! {
            biased;
            event = stream.try_next() => match event.map_err(|error| failed(shared, error))? {
                Some(event) => hear(shared, event)?,
                None => return Ok(Ended::ByServer),
            },
            () = shared.suspect.notified() => {
                // It may be dead without having ended.
                return Err(StoreError::new(ErrorKind::Transient, "the watch has fallen behind"));
            }
            () = tokio::time::sleep_until(end.into()) => {
                next_try = Instant::now() + TRY_AGAIN;
                let limit = shared.server.options.operation_timeout;
                // Who asks for the cluster meets the same trouble, and is told.
                let _ = tokio::time::timeout(limit, shared.send_ends()).await;
                if idle_check <= Instant::now() {
                    if shared.is_idle() {
                        return Ok(Ended::Idle);
                    }
                    idle_check = Instant::now() + IDLE_CHECK;
                }
            }
        }
    }
}

fn failed(shared: &Shared, error: kube::Error) -> StoreError {
    match sort(error, Stage::Reading, &shared.server.name) {
        Wrong::Gone(error) => {
            // What happened meanwhile is forgotten by the server, or never was.
            shared.with(|picture| picture.reload = true);
            shared.wanted.notify_one();
            error
        }
        wrong @ (Wrong::NotFound | Wrong::Conflict) => wrong.unexpected(),
        Wrong::Other(error) => error,
    }
}

fn hear(shared: &Shared, event: WatchEvent<k8s_openapi::api::coordination::v1::Lease>) -> Result<(), StoreError> {
    let hints = match event {
        WatchEvent::Added(lease) | WatchEvent::Modified(lease) => {
            shared.with(|picture| picture.apply(&shared.keys, &lease, false))
        }
        WatchEvent::Deleted(lease) => shared.with(|picture| picture.apply(&shared.keys, &lease, true)),
        WatchEvent::Bookmark(bookmark) => {
            if let Ok(version) = bookmark.metadata.resource_version.parse() {
                shared.with(|picture| picture.advance(version));
            }
            Vec::new()
        }
        // The answer's status was 200, and this is what became of it.
        WatchEvent::Error(status) => return Err(failed(shared, kube::Error::Api(status))),
    };
    hints.into_iter().for_each(|hint| shared.hint(hint));
    Ok(())
}

/// Reads everything as of one version: now, or the first time some while ago.
async fn load(shared: &Shared) -> Result<(), StoreError> {
    let selector = shared.keys.selector();
    let (now, all) = shared.list(&selector, None).await.map_err(Wrong::unexpected)?;
    if !shared.read(|picture| picture.loaded) {
        match shared.list(&selector, Some(now.saturating_sub(HISTORY).max(1))).await {
            Ok((then, past)) => {
                let behind = Listing::new(now, &all);
                shared.with(|picture| picture.load(&shared.keys, then, &past, Some(behind)));
                return Ok(());
            }
            // Where the past is forgotten already, it begins now.
            Err(Wrong::Gone(_)) => {}
            Err(wrong) => return Err(wrong.unexpected()),
        }
    }
    shared.with(|picture| picture.load(&shared.keys, now, &all, None));
    shared.hint(WatchHint::Everyone);
    Ok(())
}

/// Passes hints on; keeps the cluster's picture alive.
pub(crate) struct Hints {
    hints: broadcast::Receiver<WatchHint>,
    _cluster: Arc<Cluster>,
}

impl Hints {
    pub(crate) fn new(cluster: Arc<Cluster>) -> Self {
        Self { hints: cluster.shared.hints.subscribe(), _cluster: cluster }
    }
}

#[async_trait]
impl Watch for Hints {
    async fn next(&mut self) -> Option<WatchHint> {
        match self.hints.recv().await {
            Ok(hint) => Some(hint),
            Err(RecvError::Lagged(_)) => Some(WatchHint::Everyone),
            Err(RecvError::Closed) => None,
        }
    }
}
