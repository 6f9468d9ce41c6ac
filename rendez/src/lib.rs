//! Slots that run in exactly one place at a time, through leases in a store.
//!
//! A service runs N copies, and some of its work must run in one place at a time: partitions, tenants, feeds, one
//! leader. Each copy is a *node* of a *cluster*, declares *workloads* of so many *units*, and brings the code that
//! processes one *slot* (one unit of a workload). The nodes share the slots among them, move them gently when nodes
//! come and go, and take over what a crashed node held. There is no manager; all of it lives in a store that you have.
//!
//! ```
//! use rendez::{BoxError, Coordinator, MemoryStore, SlotContext};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! let node = Coordinator::builder()
//!     .store(MemoryStore::new())
//!     .cluster("demo")
//!     .node_id("worker-1")
//!     .workload("inbox", 4)
//!     .runner(|ctx: SlotContext| async move {
//!         while !ctx.is_cancelled() {
//!             ctx.check()?; // before each side effect; and give `ctx.token()` to whatever it writes to
//!             println!("{} does its work under token {}", ctx.slot(), ctx.token());
//!             tokio::time::sleep(std::time::Duration::from_millis(50)).await;
//!         }
//!         Ok::<(), BoxError>(())
//!     })
//!     .start()
//!     .await?;
//! # node.owned_changes().wait_for(|owned| owned.len() == 4).await?;
//! node.shutdown().await?; // hands everything over; dropping `node` would leave it to expire
//! # Ok(())
//! # }
//! ```
//!
//! Start more copies with other node ids, and they share the four slots.
//!
//! # What to know
//!
//! - **Fencing.** While a node keeps its promises no slot runs twice at once. A process that is paused for longer than
//!   the pause allowance (a stalled machine, `SIGSTOP`) cannot keep them, in this or any other lease system. Then only
//!   the [token](SlotContext::token) helps: the sink remembers the highest it has seen and refuses lower ones. Each store's
//!   crate has a `Fence` that does so for what is written to such a store; `docs/fencing.md` is about those and others.
//! - **Stopping.** A slot leaves a node only after its runner has ended: [`SlotContext::cancelled`], then the stop
//!   budget, then an abort. See [`Runner`].
//! - **Overruns.** Code that blocks its thread can be neither stopped nor aborted. It keeps its lease and is reported;
//!   if the lease is lost meanwhile, the process is ended. See [`OverrunPolicy`].
//! - **Runtime.** tokio, multi-thread or current-thread. No global state: several nodes can live in one process.
//!
//! - **Seeing what happens.** [`Handle::events`], the metrics of [`METRICS`], and `tracing`: each runner in a span
//!   `slot` (its slot and token), each request in a span such as `heartbeat` or `acquire`.
//!
//! # Features
//!
//! - `redis`: the store for Redis and Valkey, as `rendez::redis`.
//! - `etcd`: the store for etcd, as `rendez::etcd`; to build it `protoc` is needed.
//! - `kubernetes`: the store in Leases of a Kubernetes namespace, as `rendez::kubernetes`.
//! - `postgres`: the store for PostgreSQL, as `rendez::postgres`.
//! - `nats`: the store for NATS JetStream, as `rendez::nats`.
//! - `file`: the store in a folder of one host, as `rendez::file`.
//!
//! [`MemoryStore`] is always there.
//!
//! Where to look next: [`Coordinator::builder`], [`Election::builder`], [`Ring`], [`SlotContext`], [`RunnerFactory`], [`Handle`],
//! [`METRICS`].
//!
//! This crate brings what the engine of [`rendez_core`] leaves out: tokio, the clock, the runners' tasks. It decides
//! nothing itself.

mod clock;
mod config;
mod context;
mod coordinator;
mod driver;
mod election;
mod handle;
mod lease;
mod memory;
mod metrics;
mod policy;
mod reading;
mod ring;
mod runner;
mod store_url;

pub use rendez_core as core;
#[cfg(feature = "etcd")]
pub use rendez_etcd as etcd;
#[cfg(feature = "file")]
pub use rendez_file as file;
#[cfg(feature = "kubernetes")]
pub use rendez_kubernetes as kubernetes;
#[cfg(feature = "nats")]
pub use rendez_nats as nats;
#[cfg(feature = "postgres")]
pub use rendez_postgres as postgres;
#[cfg(feature = "redis")]
pub use rendez_redis as redis;

pub use clock::boot_time;
pub use config::{Config, ConfigError, ConfigProblem, ENVIRONMENT_PREFIX, Place, ResolvedConfig};
pub use context::SlotContext;
pub use coordinator::{Coordinator, CoordinatorBuilder, StartError};
pub use election::{
    Candidacy, ELECTION_CLUSTER, ELECTION_TTL, Election, ElectionBuilder, ElectionError, ElectionState, Leader,
    StandaloneElection,
};
pub use handle::{CommandError, DriverError, EVENTS_KEPT, Events, Handle, Owned, Told};
pub use lease::{LeaseLost, SlotLease};
pub use memory::MemoryStore;
pub use metrics::{
    EVENTS_TOTAL, METRICS, Measurement, Metric, MetricKind, Metrics, NoMetrics, RUNNER_SECONDS, RUNNER_STOP_SECONDS,
    SLOTS_RUNNING, STORE_CALL_SECONDS, WAKE_LATENESS_SECONDS, WATCH_OPENINGS_TOTAL,
};
pub use policy::{EXIT_CODE_OVERRUN, OverrunHook, OverrunPolicy};
pub use reading::read_cluster;
pub use rendez_core::{
    Capabilities, CheckpointError, ClusterName, ClusterSettings, Declared, DynamicWorkloads, EngineConfig, ErrorKind,
    Event, FencingToken, Incarnation, LeaseStore, NodeId, RunnerEnd, SessionId, Slot, Status, StopReason,
    StoppedReason, StoreError, Timestamp, Timing, TimingError, Watch, WatchHint, WorkloadName, ZoneName, shard_of_key,
};
pub use ring::{
    OwnedPartitions, PARTITIONS, PARTITIONS_MAX, RING_ID_BYTES_MAX, Ring, RingBuilder, RingChange, RingChanges,
    RingError, RingId, RingIdError, RingSizes,
};
pub use runner::{BoxError, Crashed, Runner, RunnerFactory, RunnerOutput};
pub use store_url::StoreUrl;

/// The examples of the project's README, compiled.
#[cfg(all(doctest, feature = "redis"))]
#[doc = include_str!("../../README.md")]
struct Readme;

/// The example of the page about elections, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../docs/elections.md")]
struct Elections;

/// The example of the page about rings, compiled.
#[cfg(all(doctest, feature = "postgres"))]
#[doc = include_str!("../../docs/ring.md")]
struct Rings;

/// The example of the page about fenced writes, compiled.
#[cfg(all(doctest, feature = "redis"))]
#[doc = include_str!("../../docs/fencing.md")]
struct Fencing;
