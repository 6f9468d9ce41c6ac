//! Hints: what scripts publish, heard on a connection of its own.

use std::pin::Pin;

use async_trait::async_trait;
use futures_util::{Stream, StreamExt};
use redis::Msg;
use rendez_core::{Watch, WatchHint};

/// Ends when its connection does; the caller opens another.
pub(crate) struct Hints {
    messages: Pin<Box<dyn Stream<Item = Msg> + Send>>,
}

impl Hints {
    pub(crate) fn new(messages: impl Stream<Item = Msg> + Send + 'static) -> Self {
        Self { messages: Box::pin(messages) }
    }
}

#[async_trait]
impl Watch for Hints {
    async fn next(&mut self) -> Option<WatchHint> {
        loop {
            let message = self.messages.next().await?;
            match message.get_payload_bytes() {
                b"*" => return Some(WatchHint::Everyone),
                payload => {
                    let session = std::str::from_utf8(payload).ok().and_then(|text| text.parse().ok());
                    if let Some(session) = session {
                        return Some(WatchHint::Session(session));
                    }
                }
            }
        }
    }
}
