//! The watch: keeps a cluster's picture up to date in the background, and passes hints on.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{GetOptions, KeyValue, WatchOptions};
use rendez_core::{ErrorKind, StoreError, Watch, WatchHint};
use tokio::sync::broadcast::{self, error::RecvError};

use crate::cluster::{Cluster, Shared};
use crate::connect::Link;
use crate::errors::{Stage, explain, is_compacted, timed_out};

/// The keys of one page of a load.
const PAGE_KEYS: i64 = 2000;

/// How far back a fresh picture begins, in etcd's revisions: the watch then tells it what happened since, so that it can
/// answer who has seen the cluster through another handle before.
const HISTORY: i64 = 5000;

/// How long to wait before a broken watch is tried again: at first, and at most. A request that needs it cuts it short.
const WAIT_MIN: Duration = Duration::from_millis(50);
const WAIT_MAX: Duration = Duration::from_secs(2);

/// How often is looked whether the cluster is still asked for.
const IDLE_CHECK: Duration = Duration::from_secs(10);

/// Follows a cluster until nobody has asked for it for a while.
pub(crate) async fn follow(shared: Arc<Shared>) {
    let mut wait = WAIT_MIN;
    loop {
        let Err(error) = follow_once(&shared, &mut wait).await else { return };
        tracing::debug!(server = shared.connector.name, %error, "the watch ended");
        shared.with(|picture| picture.set_trouble(Some(error)));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = shared.wanted.notified() => {}
        }
        wait = (wait * 2).min(WAIT_MAX);
        if shared.is_idle() {
            return;
        }
    }
}

/// Ends without an error when nobody asks any more.
async fn follow_once(shared: &Shared, wait: &mut Duration) -> Result<(), StoreError> {
    let link = shared.connector.link().await?;
    shared.watching.store(link.epoch, Ordering::SeqCst);
    // A suspicion was about the watch before this one.
    tokio::select! {
        biased;
        () = shared.suspect.notified() => {}
        () = std::future::ready(()) => {}
    }
    let failed = |error| {
        shared.connector.discard(link.epoch);
        explain(error, Stage::Reading, &shared.connector.name)
    };
    if shared.read(|picture| picture.reload) {
        load(shared, &link).await?;
        *wait = WAIT_MIN;
    }
    let from = shared.read(|picture| picture.mirror.covered().0) + 1;
    let (start, end) = shared.keys.range();
    let options = WatchOptions::new().with_range(end).with_start_revision(i64::try_from(from).unwrap_or(i64::MAX));
    let limit = shared.connector.options.connect_timeout;
    let mut client = link.watch.clone();
    let begun = tokio::time::timeout(limit, async {
        let mut stream = client.watch(start, Some(options)).await?;
        Ok((stream.message().await?, stream))
    });
    let Ok(begun) = begun.await else {
        shared.connector.discard(link.epoch);
        return Err(timed_out(Stage::Reading, &shared.connector.name, limit));
    };
    let (first, mut stream) = begun.map_err(failed)?;
    let mut next = first;
    loop {
        let Some(message) = next else {
            shared.connector.discard(link.epoch);
            return Err(StoreError::new(ErrorKind::Transient, "etcd's watch ended"));
        };
        if message.canceled() {
            if message.compact_revision() > 0 {
                // What happened meanwhile is forgotten by the server.
                shared.with(|picture| picture.reload = true);
            } else if !message.cancel_reason().contains("permission denied") {
                shared.connector.discard(link.epoch);
            }
            shared.wanted.notify_one();
            let denied = message.cancel_reason().contains("permission denied");
            let kind = if denied { ErrorKind::Fatal } else { ErrorKind::Transient };
            return Err(StoreError::new(kind, format!("etcd has ended the watch: {}", message.cancel_reason())));
        }
        let (hints, reload) = shared.with(|picture| {
            picture.set_trouble(None);
            (picture.apply(&shared.keys, message.events()), picture.reload)
        });
        *wait = WAIT_MIN;
        hints.into_iter().for_each(|hint| shared.hint(hint));
        if reload {
            shared.wanted.notify_one();
            return Err(StoreError::new(ErrorKind::Transient, "the cluster's data are others: reading them anew"));
        }
        next = loop {
            tokio::select! {
                message = stream.message() => break message.map_err(failed)?,
                () = shared.suspect.notified() => {
                    // It may be dead without having ended.
                    shared.connector.discard(link.epoch);
                    shared.wanted.notify_one();
                    return Err(StoreError::new(ErrorKind::Transient, "etcd's watch has fallen behind"));
                }
                () = tokio::time::sleep(IDLE_CHECK) => {
                    if shared.is_idle() {
                        return Ok(());
                    }
                }
            }
        };
    }
}

/// Reads everything as of one revision.
async fn load(shared: &Shared, link: &Link) -> Result<(), StoreError> {
    let limit = shared.connector.options.connect_timeout;
    let (start, end) = shared.keys.range();
    let (mut from, mut revision, mut all) = (start.into_bytes(), 0, Vec::<KeyValue>::new());
    if !shared.read(|picture| picture.loaded) {
        let mut client = link.kv.clone();
        let head = tokio::time::timeout(limit, client.get(shared.keys.head(), None)).await;
        if let Ok(Ok(head)) = head {
            revision = (head.header().map_or(0, etcd_client::ResponseHeader::revision) - HISTORY).max(1);
        }
    }
    loop {
        // Without a revision this is a linearizable read; the pages after it are of its revision.
        let options = GetOptions::new().with_range(end.clone()).with_limit(PAGE_KEYS).with_revision(revision);
        let mut client = link.kv.clone();
        let page = tokio::time::timeout(limit, client.get(from.clone(), Some(options))).await;
        let Ok(page) = page else {
            shared.connector.discard(link.epoch);
            return Err(timed_out(Stage::Reading, &shared.connector.name, limit));
        };
        let mut page = match page {
            Ok(page) => page,
            // Compacted: from the beginning, as it is now.
            Err(error) if is_compacted(&error) && revision != 0 => {
                (from, revision) = (shared.keys.range().0.into_bytes(), 0);
                all.clear();
                continue;
            }
            Err(error) => {
                shared.connector.discard(link.epoch);
                return Err(explain(error, Stage::Reading, &shared.connector.name));
            }
        };
        if revision == 0 {
            revision = page.header().map_or(0, etcd_client::ResponseHeader::revision);
        }
        all.append(&mut page.take_kvs());
        let Some(last) = all.last().filter(|_| page.more()) else { break };
        from = last.key().to_vec();
        from.push(0);
    }
    shared.with(|picture| picture.load(&shared.keys, revision, &all));
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
