//! Hints: what functions notify, heard on a connection of its own.

use std::pin::Pin;

use async_trait::async_trait;
use futures_util::{Stream, StreamExt};
use rendez_core::{Watch, WatchHint};
use tokio_postgres::{AsyncMessage, Client, Error};

/// What a connection says when nobody asks.
pub(crate) type Messages = Pin<Box<dyn Stream<Item = Result<AsyncMessage, Error>> + Send>>;

/// Ends when its connection does; the caller opens another.
pub(crate) struct Hints {
    messages: Messages,
    /// The connection lives as long as this.
    _client: Client,
}

impl Hints {
    pub(crate) fn new(client: Client, messages: Messages) -> Self {
        Self { messages, _client: client }
    }
}

#[async_trait]
impl Watch for Hints {
    async fn next(&mut self) -> Option<WatchHint> {
        loop {
            match self.messages.next().await? {
                Ok(AsyncMessage::Notification(notification)) => match notification.payload() {
                    "*" => return Some(WatchHint::Everyone),
                    session => {
                        // A uuid as PostgreSQL writes it.
                        if let Ok(session) = session.replace('-', "").parse() {
                            return Some(WatchHint::Session(session));
                        }
                    }
                },
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(%error, "the watch's connection has ended");
                    return None;
                }
            }
        }
    }
}
