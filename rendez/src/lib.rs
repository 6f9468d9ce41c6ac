//! Slots that run in exactly one place at a time, through leases in a store.
//!
//! A node takes part in a cluster with [`Coordinator::builder`], gives it a [`Runner`] (or just an async closure), and
//! holds a [`Handle`]. This crate brings what the engine of [`rendez_core`] leaves out: tokio, the clock, the runners'
//! tasks. It decides nothing itself.

mod clock;
mod config;
mod context;
mod coordinator;
mod driver;
mod handle;
mod lease;
mod memory;
mod metrics;
mod policy;
mod runner;

pub use rendez_core as core;

pub use clock::boot_time;
pub use config::{Config, ConfigError, ConfigProblem, ENVIRONMENT_PREFIX, Place, ResolvedConfig};
pub use context::SlotContext;
pub use coordinator::{Coordinator, CoordinatorBuilder, StartError};
pub use handle::{CommandError, DriverError, EVENTS_KEPT, Events, Handle, Owned, Told};
pub use lease::{LeaseLost, SlotLease};
pub use memory::MemoryStore;
pub use metrics::{
    EVENTS_TOTAL, METRICS, Measurement, Metric, MetricKind, Metrics, NoMetrics, RUNNER_SECONDS, RUNNER_STOP_SECONDS,
    SLOTS_RUNNING, STORE_CALL_SECONDS, WAKE_LATENESS_SECONDS, WATCH_OPENINGS_TOTAL,
};
pub use policy::{EXIT_CODE_OVERRUN, OverrunHook, OverrunPolicy};
pub use rendez_core::{
    Capabilities, CheckpointError, ClusterName, ClusterSettings, Declared, DynamicWorkloads, EngineConfig, ErrorKind,
    Event, FencingToken, Incarnation, LeaseStore, NodeId, RunnerEnd, SessionId, Slot, StopReason, StoppedReason,
    StoreError, Timestamp, Timing, TimingError, Watch, WatchHint, WorkloadName, ZoneName,
};
pub use runner::{BoxError, Crashed, Runner, RunnerFactory, RunnerOutput};
