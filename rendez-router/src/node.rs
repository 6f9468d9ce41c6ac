//! A node: serves shards with a handler.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryFutureExt;
use futures_util::future::join_all;
use rendez_core::{NameError, NodeId};
use serde::{Deserialize, Serialize};
use tracing::{Instrument, Span};

use crate::answers::{Answers, AnswersKept};
use crate::dispatch::encode;
use crate::error::Part;
#[cfg(feature = "live")]
use crate::owners::Owners;
#[cfg(feature = "live")]
use crate::slots::ServedSlots;
use crate::transport::{Address, ServerTransport, Subscription};
use crate::{Envelope, Handler, RequestContext, RequestError};

/// The message that every node answers itself.
pub(crate) const NODE_INFO: &str = "x-rendez-node-info";

/// The header of the W3C's trace context.
const TRACE_PARENT: &str = "traceparent";

/// A node that serves its shards. Dropping it takes no more requests; those that run go on, unless what drops it is the end
/// of their runtime. [`shutdown`](Self::shutdown) also waits for them.
#[derive(Debug)]
pub struct Node {
    subscriptions: Vec<Subscription>,
    serving: Arc<Serving>,
}

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NodeInfo {
    /// Its id.
    pub node_id: NodeId,
    /// The shards that it serves, in order.
    pub shards: Vec<u32>,
}

/// A [`Node`] before it serves.
#[must_use = "nothing is served before `start`"]
pub struct NodeBuilder {
    transport: Arc<dyn ServerTransport>,
    id: Option<Result<NodeId, NameError>>,
    shards: Option<Shards>,
    handler: Option<(Arc<dyn Handler>, Closes)>,
    kept: AnswersKept,
    #[cfg(feature = "live")]
    owners: Option<Arc<dyn Owners>>,
}

/// Whether a node closes its handler when it is shut down.
type Closes = bool;

/// What a node serves.
enum Shards {
    /// Always these: whoever wants one asks for the shard.
    Fixed(BTreeSet<u32>),
    /// What it owns at the moment: whoever wants one asks the node.
    #[cfg(feature = "live")]
    Live(ServedSlots),
}

impl Shards {
    fn now(&self) -> Vec<u32> {
        match self {
            Self::Fixed(shards) => shards.iter().copied().collect(),
            #[cfg(feature = "live")]
            Self::Live(slots) => slots.shards(),
        }
    }

    fn addresses(&self, #[cfg_attr(not(feature = "live"), expect(unused))] node: &NodeId) -> Vec<Address> {
        match self {
            Self::Fixed(shards) => shards.iter().map(|shard| Address::Shard(*shard)).collect(),
            #[cfg(feature = "live")]
            Self::Live(_) => vec![Address::Node(node.clone())],
        }
    }
}

/// Why a node does not serve.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// Something needed was not given.
    #[error("{what} is missing: call `.{what}(...)` before `.start()`")]
    Missing {
        /// The builder's method.
        what: &'static str,
    },
    /// A handler for all of what has handlers of its own.
    #[cfg(feature = "live")]
    #[error("slots that are served by lease have handlers of their own: leave `.handler(...)` out")]
    HandlerBesideSlots,
    /// The id is refused.
    #[error("the id of the node is refused: {0}")]
    Id(#[from] NameError),
    /// The transport refuses. What was subscribed to before it did has ended again.
    #[error("the transport refuses {address:?}: {error}")]
    Transport {
        /// The address.
        address: Address,
        /// Why.
        error: RequestError,
    },
}

impl Node {
    /// Begins a node. Needed are shards and a handler; or, with the feature `live`, slots.
    pub fn builder(transport: impl ServerTransport) -> NodeBuilder {
        NodeBuilder {
            transport: Arc::new(transport),
            id: None,
            shards: None,
            handler: None,
            kept: AnswersKept::default(),
            #[cfg(feature = "live")]
            owners: None,
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &NodeId {
        &self.serving.id
    }

    /// What it answers to [`ScopedClient::node_info`](crate::ScopedClient::node_info).
    #[must_use]
    pub fn info(&self) -> NodeInfo {
        self.serving.info()
    }

    /// Takes no more requests, waits for those that it has (their time is bounded by the transport), and closes its handler.
    /// Dropping the future leaves the node without new requests, and its handler open.
    pub async fn shutdown(mut self) {
        let mut subscriptions = std::mem::take(&mut self.subscriptions);
        // All end before the first is waited for.
        subscriptions.iter_mut().for_each(Subscription::end);
        join_all(subscriptions.into_iter().map(Subscription::drain)).await;
        if self.serving.closes {
            self.serving.handler.close().await;
        }
    }
}

impl NodeBuilder {
    /// The node's id, 1 to 200 bytes without control characters; `node-` and six random letters and digits unless set.
    pub fn id(mut self, id: impl AsRef<str>) -> Self {
        self.id = Some(NodeId::new(id));
        self
    }

    /// The shards that it serves, in place of those that were given before.
    pub fn shards(mut self, shards: impl IntoIterator<Item = u32>) -> Self {
        self.shards = Some(Shards::Fixed(shards.into_iter().collect()));
        self
    }

    /// Serves the slots that this process holds by lease, in place of fixed shards. They have handlers of their own, so the
    /// node is given none. Those who ask need to know the [`Owners`](crate::Owners). The node's id is that of the
    /// coordinator.
    #[cfg(feature = "live")]
    pub fn slots(mut self, slots: ServedSlots) -> Self {
        self.shards = Some(Shards::Live(slots));
        self
    }

    /// With [`slots`](Self::slots): says to callers who ask the wrong node who owns the slot, as far as is known here.
    #[cfg(feature = "live")]
    pub fn owners(mut self, owners: impl Owners) -> Self {
        self.owners = Some(Arc::new(owners));
        self
    }

    /// What answers the requests; closed when the node is shut down.
    pub fn handler(mut self, handler: impl Handler) -> Self {
        self.handler = Some((Arc::new(handler), true));
        self
    }

    /// What answers the requests, shared with others, such as other nodes: this one does not close it.
    pub fn shared_handler(mut self, handler: Arc<dyn Handler>) -> Self {
        self.handler = Some((handler, false));
        self
    }

    /// How many answers of requests with an [idempotency key](crate::ScopedClient::with_idempotency_key) are remembered, and
    /// how long.
    pub fn answers_kept(mut self, kept: AnswersKept) -> Self {
        self.kept = kept;
        self
    }

    /// Begins to serve.
    ///
    /// # Errors
    /// [`NodeError`]; nothing is served then.
    pub async fn start(self) -> Result<Node, NodeError> {
        let shards = self.shards.ok_or(NodeError::Missing { what: "shards" })?;
        let (handler, closes) = match &shards {
            Shards::Fixed(shards) => {
                let (handler, closes) = self.handler.ok_or(NodeError::Missing { what: "handler" })?;
                let answers = shards.iter().map(|shard| (*shard, Answers::new(self.kept))).collect();
                (Arc::new(Remembering { handler, answers }) as Arc<dyn Handler>, closes)
            }
            #[cfg(feature = "live")]
            Shards::Live(_) if self.handler.is_some() => return Err(NodeError::HandlerBesideSlots),
            #[cfg(feature = "live")]
            Shards::Live(slots) => (Arc::new(slots.handler(self.owners, self.kept)) as Arc<dyn Handler>, true),
        };
        let id = self.id.unwrap_or_else(|| NodeId::new(generated_id()))?;
        let addresses = shards.addresses(&id);
        let serving = Arc::new(Serving { node: id.as_str().into(), id, shards, handler, closes });
        let mut subscriptions = Vec::with_capacity(addresses.len());
        for address in addresses {
            let subscribed = self.transport.subscribe(address.clone(), serving.clone()).await;
            subscriptions.push(subscribed.map_err(|error| NodeError::Transport { address, error })?);
        }
        tracing::debug!(node = %serving.id, addresses = subscriptions.len(), "the node serves");
        Ok(Node { subscriptions, serving })
    }
}

fn generated_id() -> String {
    std::iter::repeat_with(fastrand::alphanumeric)
        .take(6)
        .fold("node-".to_owned(), |id, letter| id + &letter.to_string())
}

/// The program's handler, with the answers that the node remembers for each of its shards.
struct Remembering {
    handler: Arc<dyn Handler>,
    answers: HashMap<u32, Answers>,
}

impl Handler for Remembering {
    // Written out, so that most requests carry little around.
    fn handle<'a, 'b>(&'a self, ctx: RequestContext, request: Envelope) -> Answering<'b>
    where
        'a: 'b,
        Self: 'b,
    {
        match request.idempotency_key().and_then(|_| self.answers.get(&request.shard())) {
            Some(answers) => Box::pin(answers.answer(&*self.handler, ctx, request)),
            None => Box::pin(self.handler.handle(ctx, request).map_err(RequestError::said_by_handler)),
        }
    }

    fn close<'a, 'b>(&'a self) -> Pin<Box<dyn Future<Output = ()> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        self.handler.close()
    }
}

/// The program's handler, with what every node does itself.
struct Serving {
    id: NodeId,
    /// The same, for requests.
    node: Arc<str>,
    shards: Shards,
    handler: Arc<dyn Handler>,
    closes: Closes,
}

impl Serving {
    fn info(&self) -> NodeInfo {
        NodeInfo { node_id: self.id.clone(), shards: self.shards.now() }
    }

    /// What a subscriber that listens to spans sees of a request.
    fn span(&self, request: &Envelope) -> Span {
        tracing::debug_span!(
            "request",
            node = &*self.node,
            shard = request.shard(),
            message_type = request.message_type(),
            key = request.key(),
            traceparent = request.header(TRACE_PARENT),
        )
    }
}

impl Handler for Serving {
    // Written out, so that the program's own future is passed on and not wrapped once more.
    fn handle<'a, 'b>(&'a self, ctx: RequestContext, request: Envelope) -> Answering<'b>
    where
        'a: 'b,
        Self: 'b,
    {
        if request.message_type() == NODE_INFO {
            let info = encode(&self.info(), Part::Reply);
            return Box::pin(async { info });
        }
        let span = self.span(&request);
        let answering = self.handler.handle(ctx.on(self.node.clone()), request);
        if span.is_disabled() { answering } else { Box::pin(answering.instrument(span)) }
    }
}

type Answering<'a> = Pin<Box<dyn Future<Output = Result<Bytes, RequestError>> + Send + 'a>>;

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serving").field("node", &self.node).finish_non_exhaustive()
    }
}

impl fmt::Debug for NodeBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeBuilder").field("id", &self.id).finish_non_exhaustive()
    }
}
