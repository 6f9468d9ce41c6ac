//! Keep-alives: one stream for all sessions of a handle, replaced when it or its server fails.
//!
//! The server answers the keep-alives of a stream in their order.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use etcd_client::{Error, LeaseKeepAliveStream, LeaseKeeper};
use rendez_core::{ErrorKind, StoreError};
use tokio::sync::{mpsc, oneshot};

use crate::connect::{Connector, Link};
use crate::errors::{Stage, explain, timed_out};

/// The most keep-alives that wait to be sent; a handle rarely has more than one session.
const WAITING_MAX: usize = 1024;

/// What the server said to one keep-alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kept {
    /// For how long the lease lives, in seconds; nothing if it is dead.
    pub(crate) ttl: Option<u64>,
    /// The term of the last entry that the answering member had applied.
    pub(crate) term: u64,
}

struct Ask {
    lease: i64,
    answer: oneshot::Sender<Result<Kept, StoreError>>,
}

/// Sends keep-alives for whoever asks.
pub(crate) struct KeepAlives {
    connector: Arc<Connector>,
    stream: Mutex<Option<(u64, mpsc::Sender<Ask>)>>,
}

impl KeepAlives {
    pub(crate) fn new(connector: Arc<Connector>) -> Self {
        Self { connector, stream: Mutex::new(None) }
    }

    /// Extends a lease, once.
    pub(crate) async fn extend(&self, link: &Link, lease: i64) -> Result<Kept, StoreError> {
        let gone = || {
            self.connector.discard(link.epoch);
            StoreError::new(
                ErrorKind::Ambiguous,
                format!("etcd at {}: the stream of keep-alives ended", self.connector.name),
            )
        };
        let (answer, answered) = oneshot::channel();
        let stream = self.stream(link);
        stream.send(Ask { lease, answer }).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    fn stream(&self, link: &Link) -> mpsc::Sender<Ask> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        match stream.as_ref() {
            Some((epoch, sender)) if *epoch == link.epoch && !sender.is_closed() => sender.clone(),
            Some(_) | None => {
                let (sender, asks) = mpsc::channel(WAITING_MAX);
                tokio::spawn(serve(link.clone(), asks, Arc::clone(&self.connector)));
                *stream = Some((link.epoch, sender.clone()));
                sender
            }
        }
    }
}

/// Serves one stream until it breaks or nobody has it any more. What was asked and not answered then hears of the end
/// because its channel closes.
async fn serve(mut link: Link, mut asks: mpsc::Receiver<Ask>, connector: Arc<Connector>) {
    let mut open: Option<(LeaseKeeper, LeaseKeepAliveStream)> = None;
    let mut waiting: VecDeque<Ask> = VecDeque::new();
    loop {
        let Some((keeper, stream)) = &mut open else {
            let Some(ask) = asks.recv().await else { return };
            // The first keep-alive is a part of the stream's opening. What it answers beside the TTL is lost, so that a
            // second one follows.
            let limit = connector.options.connect_timeout;
            let opened = tokio::time::timeout(limit, link.lease.keep_alive(ask.lease)).await;
            let Ok(opened) = opened else {
                connector.discard(link.epoch);
                let _ = ask.answer.send(Err(timed_out(Stage::Writing, &connector.name, limit)));
                return;
            };
            match opened {
                Ok((mut keeper, stream)) => {
                    if keeper.keep_alive().await.is_err() {
                        return;
                    }
                    waiting.push_back(ask);
                    open = Some((keeper, stream));
                }
                Err(Error::LeaseKeepAliveError(_)) => {
                    let _ = ask.answer.send(Ok(Kept { ttl: None, term: 0 }));
                }
                Err(error) => {
                    connector.discard(link.epoch);
                    let _ = ask.answer.send(Err(explain(error, Stage::Writing, &connector.name)));
                    return;
                }
            }
            continue;
        };
        tokio::select! {
            ask = asks.recv() => {
                let Some(ask) = ask else { return };
                keeper.id = ask.lease;
                if keeper.keep_alive().await.is_err() {
                    return;
                }
                waiting.push_back(ask);
            }
            message = stream.message() => {
                let message = match message {
                    Ok(Some(message)) => message,
                    Ok(None) => return,
                    Err(error) => {
                        connector.discard(link.epoch);
                        if let Some(ask) = waiting.pop_front() {
                            let _ = ask.answer.send(Err(explain(error, Stage::Writing, &connector.name)));
                        }
                        return;
                    }
                };
                let Some(ask) = waiting.pop_front() else { continue };
                if ask.lease != message.id() {
                    // The order is lost: nothing on this stream can be believed.
                    return;
                }
                let ttl = u64::try_from(message.ttl()).ok().filter(|ttl| *ttl > 0);
                let term = message.header().map_or(0, etcd_client::ResponseHeader::raft_term);
                let _ = ask.answer.send(Ok(Kept { ttl, term }));
            }
        }
    }
}
