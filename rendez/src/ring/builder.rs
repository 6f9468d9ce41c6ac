//! What a node of a ring is made from, checked, and started.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rendez_core::placement::{VirtualNodes, VirtualNodesError};
use rendez_core::{DynamicWorkloads, EngineConfig, ErrorKind, LeaseStore, NameError, NodeId, WorkloadName};

use super::agreement::{RingSizes, Wanted, agree};
use super::id::{RingId, RingIdError};
use super::{PARTITIONS, PARTITIONS_MAX, Ring};
use crate::{Coordinator, CoordinatorBuilder, RunnerFactory, SlotContext, StartError};

/// How many partitions a ring has unless it is told.
const PARTITIONS_DEFAULT: u32 = 1024;

/// How long a session lives unless it is told.
const SESSION_TTL_DEFAULT: Duration = Duration::from_secs(30);

/// The most partitions that a node offers in one heartbeat interval: they are small and many.
const SHED_BUDGET: u32 = 256;

type Configure = Box<dyn FnOnce(CoordinatorBuilder) -> CoordinatorBuilder + Send>;

/// What a node of a ring is made from; begins with [`Ring::builder`]. Needed are a store and the ring's name. What is wrong
/// is told by [`start`](RingBuilder::start).
#[must_use = "nothing happens before `start`"]
pub struct RingBuilder {
    store: Option<Arc<dyn LeaseStore>>,
    ring: Option<Result<RingId, RingIdError>>,
    node: Option<Result<NodeId, NameError>>,
    partitions: u32,
    virtual_nodes: u32,
    session_ttl: Duration,
    connect_timeout: Duration,
    runner: Option<Arc<dyn RunnerFactory>>,
    configure: Option<Configure>,
}

/// Why a node did not join a ring. Nothing of it runs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// Something needed was not given.
    #[error("{what} is missing: call `.{what}(...)` before `.start()`")]
    Missing {
        /// The builder's method.
        what: &'static str,
    },
    /// The ring's name is refused.
    #[error(transparent)]
    RingId(#[from] RingIdError),
    /// The node's id is refused.
    #[error("the node's id is refused: {0}")]
    NodeId(NameError),
    /// The number of partitions cannot be.
    #[error("{partitions} partitions cannot be: use 1 to {PARTITIONS_MAX}")]
    Partitions {
        /// The number that was given.
        partitions: u32,
    },
    /// The number of virtual nodes cannot be.
    #[error("{virtual_nodes} virtual nodes cannot be: {error}")]
    VirtualNodes {
        /// The number that was given.
        virtual_nodes: u32,
        /// What would do.
        error: VirtualNodesError,
    },
    /// The ring has agreed on other sizes. They stay as they are.
    #[error(
        "the ring {ring} has {agreed}, and this node was to join with {wanted}: give it the ring's own sizes, or name \
         another ring"
    )]
    Sizes {
        /// The ring.
        ring: RingId,
        /// What this node was told.
        wanted: RingSizes,
        /// What the ring has.
        agreed: RingSizes,
    },
    /// The ring permits no session TTL as long as this.
    #[error(
        "a session TTL of {wanted:?} is longer than the longest of the ring {ring}, {longest:?}, which its first node has \
         set: use that or less"
    )]
    SessionTtl {
        /// The ring.
        ring: RingId,
        /// What this node was told.
        wanted: Duration,
        /// The longest that the ring permits.
        longest: Duration,
    },
    /// There is a cluster of this name in the store, and it is no ring. Nothing in it was changed.
    #[error("{ring} is a cluster in this store, and no ring: name another ring")]
    NotARing {
        /// The name.
        ring: RingId,
    },
    /// The store did not say what the ring has agreed on.
    #[error("the store does not answer about the ring {ring} ({kind}): {message}")]
    Store {
        /// The ring.
        ring: RingId,
        /// What kind of error.
        kind: ErrorKind,
        /// What happened.
        message: String,
    },
    /// The node itself did not start.
    #[error(transparent)]
    Start(#[from] StartError),
}

impl RingBuilder {
    pub(super) fn new() -> Self {
        Self {
            store: None,
            ring: None,
            node: None,
            partitions: PARTITIONS_DEFAULT,
            virtual_nodes: VirtualNodes::default().get(),
            session_ttl: SESSION_TTL_DEFAULT,
            connect_timeout: Duration::from_secs(5),
            runner: None,
            configure: None,
        }
    }

    /// The store where the ring lives.
    pub fn store(self, store: impl LeaseStore) -> Self {
        self.shared_store(Arc::new(store))
    }

    /// The store where the ring lives, shared with others: the nodes of one process can share its connections.
    pub fn shared_store(mut self, store: Arc<dyn LeaseStore>) -> Self {
        self.store = Some(store);
        self
    }

    /// The ring's name: see [`RingId`].
    pub fn ring_id(mut self, ring: impl AsRef<str>) -> Self {
        self.ring = Some(RingId::new(ring));
        self
    }

    /// The node's id, 1 to 200 bytes without control characters; `node-` and eight random letters and digits unless set. A
    /// node that keeps its id over a restart gets the same partitions again.
    pub fn node_id(mut self, node: impl AsRef<str>) -> Self {
        self.node = Some(NodeId::new(node));
        self
    }

    /// How many partitions the ring has, 1 to [`PARTITIONS_MAX`]; 1024 unless set. The same for all of its nodes.
    pub fn partitions(mut self, partitions: u32) -> Self {
        self.partitions = partitions;
        self
    }

    /// How many virtual nodes a node of weight 1 has, 1 to 1024; 8 unless set. The same for all nodes of the ring.
    pub fn virtual_nodes(mut self, virtual_nodes: u32) -> Self {
        self.virtual_nodes = virtual_nodes;
        self
    }

    /// How long the node's session lives without a heartbeat, and so how long its partitions lie after a crash; 30 s unless
    /// set. The first node's is the longest that the ring permits.
    pub fn session_ttl(mut self, session_ttl: Duration) -> Self {
        self.session_ttl = session_ttl;
        self
    }

    /// How long [`start`](Self::start) waits for the store's answers; 5 s unless set.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// What runs for each partition that the node owns: an async closure over a [`SlotContext`], whose slot's unit is the
    /// partition, or a [`RunnerFactory`]. Unless set nothing runs, and partitions are merely owned.
    ///
    /// A partition leaves the node only after its runner has ended. Whoever works on what
    /// [`Ring::owned_partitions`] says, without a runner, is not waited for: it must look at the lease before each
    /// side effect.
    pub fn runner(self, factory: impl RunnerFactory) -> Self {
        self.shared_runner(Arc::new(factory))
    }

    /// What runs for each partition, shared with others.
    pub fn shared_runner(mut self, factory: Arc<dyn RunnerFactory>) -> Self {
        self.runner = Some(factory);
        self
    }

    /// All else that can be set of a node: weight, zone, metrics, hooks, times. Called last. What makes the ring (the
    /// cluster, the workload, the cluster's settings) is not to be changed here.
    ///
    /// ```
    /// # use rendez::Ring;
    /// let builder = Ring::builder().configure(|node| node.weight(2).zone("eu-1"));
    /// ```
    pub fn configure(mut self, with: impl FnOnce(CoordinatorBuilder) -> CoordinatorBuilder + Send + 'static) -> Self {
        self.configure = Some(match self.configure.take() {
            Some(first) => Box::new(move |builder| with(first(builder))),
            None => Box::new(with),
        });
        self
    }

    /// Agrees with the other nodes on the ring's sizes, opens the session, and returns when it is open. Partitions come
    /// afterwards, by themselves. Any number of nodes may start at once, also on an empty store.
    ///
    /// Cancelling it ends the node; a session that was opened meanwhile ends with its TTL.
    ///
    /// # Errors
    /// [`RingError`]. What concerns this builder alone is told before the store is touched.
    pub async fn start(self) -> Result<Ring, RingError> {
        let store = self.store.ok_or(RingError::Missing { what: "store" })?;
        let ring = self.ring.ok_or(RingError::Missing { what: "ring_id" })??;
        let node = self.node.unwrap_or_else(|| NodeId::new(generated_id())).map_err(RingError::NodeId)?;
        if self.partitions == 0 || self.partitions > PARTITIONS_MAX {
            return Err(RingError::Partitions { partitions: self.partitions });
        }
        let virtual_nodes = VirtualNodes::new(self.virtual_nodes)
            .map_err(|error| RingError::VirtualNodes { virtual_nodes: self.virtual_nodes, error })?;
        let config = engine_config(self.session_ttl);
        config.validate().map_err(StartError::from)?;
        let workload = WorkloadName::new(PARTITIONS).map_err(|error| StartError::Name { what: "workload", error })?;
        let sizes = RingSizes { partitions: self.partitions, virtual_nodes };
        let wanted = Wanted { workload: workload.clone(), sizes, session_ttl: self.session_ttl };
        let settings = agree(&*store, &ring, &wanted, self.connect_timeout).await?;
        let runner = self.runner.unwrap_or_else(|| Arc::new(|ctx: SlotContext| async move { ctx.cancelled().await }));
        let builder = Coordinator::builder()
            .shared_store(store)
            .cluster(ring.as_str())
            .node_id(node.as_str())
            .dynamic_workloads(DynamicWorkloads::Only([workload.clone()].into()))
            .shared_runner(runner)
            .engine_config(config)
            .cluster_settings(settings)
            .connect_timeout(self.connect_timeout);
        let builder = match self.configure {
            Some(configure) => configure(builder),
            None => builder,
        };
        Ok(Ring::new(builder.start().await?, ring, workload, sizes))
    }
}

/// A ring's plan hangs on the nodes alone, so moves follow each other without going to and fro: runners need no least
/// time, and a partition that has moved waits for one TTL.
fn engine_config(session_ttl: Duration) -> EngineConfig {
    let mut config = EngineConfig::for_ttl(session_ttl);
    config.stabilizers.runtime_min = Duration::ZERO;
    config.stabilizers.cooldown = session_ttl;
    config.stabilizers.shed_budget = SHED_BUDGET;
    config
}

fn generated_id() -> String {
    std::iter::repeat_with(fastrand::alphanumeric)
        .take(8)
        .fold("node-".to_owned(), |id, letter| id + &letter.to_string())
}

impl fmt::Debug for RingBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingBuilder")
            .field("ring", &self.ring)
            .field("node", &self.node)
            .field("partitions", &self.partitions)
            .field("virtual_nodes", &self.virtual_nodes)
            .finish_non_exhaustive()
    }
}
