//! What can go wrong with a request, in words that survive the way back to the caller.

use std::fmt;

use rendez_core::{FencingToken, NodeId};
use serde::{Deserialize, Serialize};

use crate::HEADER_PREFIX;

/// Why a request failed.
///
/// It is the same value on the node and at the caller: transports carry it as it is. [`ran`](Self::ran) says whether
/// the handler may have run, and so whether trying again can do the work twice.
///
/// ```
/// use rendez_router::{Ran, RequestError};
///
/// let error = RequestError::NoShardSubscriber { shard: 7 };
/// assert_eq!(error.ran(), Ran::No);
/// let wire = serde_json::to_string(&error).unwrap();
/// assert_eq!(wire, r#"{"error":"no_shard_subscriber","shard":7}"#);
/// assert_eq!(serde_json::from_str::<RequestError>(&wire).unwrap(), error);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "error", rename_all = "snake_case")]
#[non_exhaustive]
pub enum RequestError {
    /// The transport was closed.
    #[error("the transport is closed")]
    TransportClosed,
    /// Nobody serves the shard.
    #[error("nobody serves shard {shard}")]
    NoShardSubscriber {
        /// The shard.
        shard: u32,
    },
    /// Nobody answers as this node.
    #[error("nobody answers as node {node}")]
    NoSuchNode {
        /// The node.
        node: NodeId,
    },
    /// The node that was asked does not own the shard's slot at this moment: it did not run.
    #[error("the node that was asked does not own shard {shard} now{}", held_by(holder.as_ref()))]
    NotOwner {
        /// The shard.
        shard: u32,
        /// Who does, as far as that node knows.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        holder: Option<NodeId>,
        /// With this token.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token: Option<FencingToken>,
    },
    /// Nobody owned the shard's slot for as long as was waited for an owner.
    #[error("nobody owned shard {shard} for {millis} ms")]
    NoOwner {
        /// The shard.
        shard: u32,
        /// How long was waited.
        millis: u64,
    },
    /// The slot was taken from the node while the handler ran: it was dropped.
    #[error("the node lost shard {shard} while the handler ran, and dropped it: it may have had effects")]
    OwnershipLost {
        /// The shard.
        shard: u32,
    },
    /// There is no such shard.
    #[error("there is no shard {shard}: this client knows {shards}, from 0 on")]
    NoSuchShard {
        /// The shard that was asked for.
        shard: u32,
        /// How many there are.
        shards: u32,
    },
    /// Its time was over before a handler began.
    #[error("the request's time was over before its handler began")]
    EnvelopeExpired,
    /// The handler did not end in time, and was dropped.
    #[error("the handler did not end within {millis} ms and was dropped: it may have had effects")]
    HandlerTimeout {
        /// How long it had.
        millis: u64,
    },
    /// No answer came in time.
    #[error("no answer came within {millis} ms: the handler may have run")]
    NoReply {
        /// How long was waited.
        millis: u64,
    },
    /// The connection broke while the answer was awaited.
    #[error("the connection broke before an answer came: {why}")]
    Disconnected {
        /// How.
        why: String,
    },
    /// A header, or a message type, begins as those of this library do.
    #[error("{name:?} begins with {HEADER_PREFIX:?}, which is kept for the library's own: use another name")]
    ReservedHeader {
        /// Its name.
        name: String,
    },
    /// An empty key.
    #[error("a request by key needs a key: this one is empty")]
    KeyRequired,
    /// A handler for each key was sent a request that has none.
    #[error("the handler works by key, and the request has none: send it with a key, not to a shard")]
    MissingKeyHeader,
    /// The idempotency key was another message's before.
    #[error("the idempotency key {key:?} came with another message before: use a fresh one for each request")]
    IdempotencyKeyReused {
        /// The key.
        key: String,
    },
    /// The node remembers as many answers of requests with idempotency keys as it may; see
    /// [`AnswersKept`](crate::AnswersKept).
    #[error("the node remembers as many answers for shard {shard} as it may: nothing was done")]
    MemoryFull {
        /// The shard.
        shard: u32,
    },
    /// An earlier copy of the request was dropped while its handler ran.
    #[error(
        "an earlier copy of the request was dropped while its handler ran: it may have had effects, and is not run again \
         under this idempotency key"
    )]
    Interrupted,
    /// As many requests as the node takes are waiting already.
    #[error("{what} is full, with {most} waiting: nothing was done")]
    Overloaded {
        /// What is full.
        what: String,
        /// How many may wait.
        most: u64,
    },
    /// The handler knows no such message.
    #[error("the handler knows no message {message_type:?}")]
    UnknownMessageType {
        /// The type that was sent.
        message_type: String,
    },
    /// The handler's own error.
    #[error("the handler failed: {message}")]
    Handler {
        /// What it said.
        message: String,
        /// The handler's own code for it, for programs.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<String>,
    },
    /// The handler panicked.
    #[error("the handler panicked: {message}")]
    HandlerPanicked {
        /// What it said.
        message: String,
    },
    /// A message could not be written, or is too large to be sent.
    #[error("{what} cannot be written: {why}")]
    Encode {
        /// Which of the two messages.
        what: Part,
        /// Why.
        why: String,
    },
    /// A message could not be read.
    #[error("{what} cannot be read: {why}")]
    Decode {
        /// Which of the two messages.
        what: Part,
        /// Why.
        why: String,
    },
}

fn held_by(holder: Option<&NodeId>) -> String {
    holder.map_or_else(String::new, |holder| format!("; {holder} does"))
}

/// A message of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Part {
    /// What was sent; no handler has worked on it.
    Request,
    /// What was answered; the handler has run.
    Reply,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Request => "the request",
            Self::Reply => "the reply",
        })
    }
}

/// Whether a failed request's handler has run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ran {
    /// No: trying again does nothing twice.
    No,
    /// It may have, in part or whole.
    Maybe,
    /// It ran to its end, and this is its answer.
    Yes,
}

impl RequestError {
    /// Whether the handler has run.
    #[must_use]
    pub fn ran(&self) -> Ran {
        match self {
            Self::TransportClosed
            | Self::NoShardSubscriber { .. }
            | Self::NoSuchShard { .. }
            | Self::NoSuchNode { .. }
            | Self::NotOwner { .. }
            | Self::NoOwner { .. }
            | Self::EnvelopeExpired
            | Self::ReservedHeader { .. }
            | Self::KeyRequired
            | Self::MissingKeyHeader
            | Self::Overloaded { .. }
            | Self::UnknownMessageType { .. }
            | Self::IdempotencyKeyReused { .. }
            | Self::MemoryFull { .. }
            | Self::Encode { what: Part::Request, .. }
            | Self::Decode { what: Part::Request, .. } => Ran::No,
            Self::HandlerTimeout { .. }
            | Self::HandlerPanicked { .. }
            | Self::OwnershipLost { .. }
            | Self::Interrupted
            | Self::NoReply { .. }
            | Self::Disconnected { .. } => Ran::Maybe,
            Self::Handler { .. } | Self::Encode { what: Part::Reply, .. } | Self::Decode { what: Part::Reply, .. } => {
                Ran::Yes
            }
        }
    }

    /// The error of a handler that may have passed on that of a request of its own: who could not be reached was not the
    /// handler, which has run. Its caller, or the client on its behalf, would try again.
    pub(crate) fn said_by_handler(self) -> Self {
        match self {
            Self::TransportClosed
            | Self::NoShardSubscriber { .. }
            | Self::NoSuchShard { .. }
            | Self::NoSuchNode { .. }
            | Self::NotOwner { .. }
            | Self::NoOwner { .. }
            | Self::OwnershipLost { .. }
            | Self::NoReply { .. }
            | Self::Disconnected { .. }
            | Self::ReservedHeader { .. }
            | Self::KeyRequired
            | Self::IdempotencyKeyReused { .. }
            | Self::MemoryFull { .. }
            | Self::Interrupted => Self::Handler { message: self.to_string(), code: None },
            // A handler's own, or one that it may give as its own: nothing was done.
            Self::EnvelopeExpired
            | Self::HandlerTimeout { .. }
            | Self::MissingKeyHeader
            | Self::Overloaded { .. }
            | Self::UnknownMessageType { .. }
            | Self::Handler { .. }
            | Self::HandlerPanicked { .. }
            | Self::Encode { .. }
            | Self::Decode { .. } => self,
        }
    }

    /// A handler's own error, with a code that programs can tell apart.
    #[must_use]
    pub fn handler(code: impl Into<String>, message: impl fmt::Display) -> Self {
        Self::Handler { message: message.to_string(), code: Some(code.into()) }
    }
}
