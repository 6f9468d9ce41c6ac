//! Slots that are held by lease, and served while they are held.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rendez::{Runner, RunnerFactory, SlotContext, SlotLease};
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::answers::{Answers, AnswersKept};
use crate::owners::Owners;
use crate::transport::Running;
use crate::{BoxError, Envelope, Handler, RequestContext, RequestError};

/// Serves the slots of one workload that this process holds by lease, each with a handler of its own: the
/// [`RunnerFactory`] of a [`Coordinator`](rendez::Coordinator), and what a [`Node`](crate::Node) serves. Clones are the same one.
///
/// A request is admitted only while the lease of its slot holds here ([`SlotLease::check`]); otherwise its caller gets
/// [`RequestError::NotOwner`], and a client that knows the [`Owners`] tries the owner. When the slot shall leave, no more
/// requests are admitted, those that run end, the handler is [closed](Handler::close), and only then is the lease handed over:
/// all within the stop budget. Requests that are left then are dropped ([`RequestError::OwnershipLost`]).
///
/// A process that is paused for longer than its lease cannot keep any of this: give
/// [`token`](SlotLease::token) of [`RequestContext::lease`] to whatever the handler writes to.
///
/// ```
/// use std::sync::Arc;
/// use rendez::{Coordinator, MemoryStore, SlotContext};
/// use rendez_router::{BoxError, Client, Envelope, FollowedOwners, MemoryTransport, Node, RequestContext, ServedSlots};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BoxError> {
/// let (store, transport) = (MemoryStore::new(), MemoryTransport::new());
/// let slots = ServedSlots::new(|slot: SlotContext| async move {
///     // Load what belongs to the slot; what is saved under `slot.token()` is the last owner's.
///     Ok::<_, BoxError>(|ctx: RequestContext, _: Envelope| async move {
///         Ok::<_, BoxError>(format!("{} serves it", ctx.node()))
///     })
/// });
/// let member = Coordinator::builder()
///     .store(store.clone())
///     .cluster("users")
///     .node_id("node-1")
///     .workload("users", 16)
///     .runner(slots.clone())
///     .start()
///     .await?;
/// let node = Node::builder(transport.clone()).id("node-1").slots(slots).start().await?;
///
/// let owners = FollowedOwners::follow(Arc::new(store), "users".parse()?, "users".parse()?);
/// let client = Client::builder(transport, 16).owners(owners).build()?;
/// assert_eq!(client.request_key("user-123", "Get", "").await?, "node-1 serves it");
///
/// member.shutdown().await?; // hands the slots over, each after its last request
/// node.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ServedSlots(Arc<Registry>);

type Make = Box<dyn Fn(SlotContext) -> BoxFuture<'static, Result<Arc<dyn Handler>, BoxError>> + Send + Sync>;

struct Registry {
    make: Make,
    served: RwLock<HashMap<u32, Arc<Served>>>,
}

/// A slot that is held and served.
struct Served {
    lease: SlotLease,
    handler: Arc<dyn Handler>,
    /// They go with the tenure; the bounds are the node's, which may not be there yet.
    answers: OnceLock<Answers>,
    running: Running,
    abort: CancellationToken,
}

impl ServedSlots {
    /// Makes the handler of a slot with this closure, each time this node gets the slot. An error is the runner's: it is
    /// tried again after a pause.
    pub fn new<F, Fut, H, E>(make: F) -> Self
    where
        F: Fn(SlotContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<H, E>> + Send + 'static,
        H: Handler,
        E: Into<BoxError>,
    {
        let make: Make = Box::new(move |ctx| {
            let making = make(ctx);
            async move { Ok(Arc::new(making.await.map_err(Into::into)?) as Arc<dyn Handler>) }.boxed()
        });
        Self(Arc::new(Registry { make, served: RwLock::default() }))
    }

    /// The shards that are served now, in order: the units of the slots that are held.
    #[must_use]
    pub fn shards(&self) -> Vec<u32> {
        let served = self.0.served.read().unwrap_or_else(PoisonError::into_inner);
        let mut shards: Vec<u32> = served.keys().copied().collect();
        shards.sort_unstable();
        shards
    }

    /// What a node does with a request.
    pub(crate) fn handler(&self, owners: Option<Arc<dyn Owners>>, kept: AnswersKept) -> impl Handler {
        Admitting { registry: self.0.clone(), owners, kept }
    }
}

impl Registry {
    /// The slot, if its lease holds here now; counted as one of its requests.
    fn admit(&self, shard: u32) -> Option<(Arc<Served>, TaskTrackerToken)> {
        let served = self.served.read().unwrap_or_else(PoisonError::into_inner);
        let slot = served.get(&shard)?;
        // Counted before the lock is let go: who takes the slot out of the registry waits for those that were counted.
        let counted = slot.running.one();
        slot.lease.check().is_ok().then(|| (slot.clone(), counted))
    }
}

/// Admits requests for slots that are held here.
struct Admitting {
    registry: Arc<Registry>,
    owners: Option<Arc<dyn Owners>>,
    kept: AnswersKept,
}

#[async_trait]
impl Handler for Admitting {
    async fn handle(&self, ctx: RequestContext, request: Envelope) -> Result<Bytes, RequestError> {
        let shard = request.shard();
        let Some((slot, _counted)) = self.registry.admit(shard) else {
            let owner = self.owners.as_ref().and_then(|owners| owners.owner(shard));
            let owner = owner.filter(|owner| owner.node.as_str() != ctx.node());
            let (holder, token) = owner.map(|owner| (owner.node, owner.token)).unzip();
            return Err(RequestError::NotOwner { shard, holder, token });
        };
        let answers = slot.answers.get_or_init(|| Answers::new(self.kept));
        tokio::select! {
            biased;
            () = slot.abort.cancelled() => Err(RequestError::OwnershipLost { shard }),
            answer = answers.answer(&*slot.handler, ctx.under(slot.lease.clone()), request) => answer,
        }
    }
}

#[async_trait]
impl RunnerFactory for ServedSlots {
    async fn make(&self, _: &SlotContext) -> Result<Box<dyn Runner>, BoxError> {
        Ok(Box::new(Serving(self.0.clone())))
    }
}

/// The runner of a slot: it serves as long as it runs.
struct Serving(Arc<Registry>);

#[async_trait]
impl Runner for Serving {
    async fn run(&mut self, ctx: SlotContext) -> Result<(), BoxError> {
        let handler = tokio::select! {
            made = (self.0.make)(ctx.clone()) => made?,
            () = ctx.aborted() => return Ok(()),
        };
        let slot = Arc::new(Served {
            lease: ctx.lease().clone(),
            handler,
            answers: OnceLock::new(),
            running: Running::default(),
            abort: CancellationToken::new(),
        });
        // Also when this is dropped with its runtime: requests may run in tasks that do not end with it.
        let _aborts = slot.abort.clone().drop_guard();
        let registered = Registered::new(&self.0, &slot);
        ctx.cancelled().await;
        drop(registered);
        let ended = async {
            slot.running.ended().await;
            slot.handler.close().await;
        };
        tokio::select! {
            () = ended => {}
            () = ctx.aborted() => {
                slot.abort.cancel();
                slot.running.ended().await;
            }
        }
        Ok(())
    }

    /// Its requests run in other tasks: it must see to their end itself.
    fn ends_itself(&self) -> bool {
        true
    }
}

/// A slot in the registry, until this is dropped.
struct Registered<'a> {
    registry: &'a Registry,
    slot: &'a Arc<Served>,
}

impl<'a> Registered<'a> {
    fn new(registry: &'a Registry, slot: &'a Arc<Served>) -> Self {
        let unit = slot.lease.slot().unit;
        registry.served.write().unwrap_or_else(PoisonError::into_inner).insert(unit, slot.clone());
        Self { registry, slot }
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        let unit = self.slot.lease.slot().unit;
        self.registry.served.write().unwrap_or_else(PoisonError::into_inner).remove(&unit);
    }
}

impl fmt::Debug for ServedSlots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServedSlots").field("shards", &self.shards()).finish_non_exhaustive()
    }
}
