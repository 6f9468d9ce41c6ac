//! The pure core of rendez.
//!
//! Identifiers, time, placement, the engine, the store contract and its executable model. There is no clock,
//! no randomness, no I/O and no runtime in here: time and entropy are arguments, so that everything can be run
//! again from its inputs. What needs any of those belongs into the crate `rendez`.

mod change_index;
mod config;
mod engine;
pub mod explanation;
mod fence;
pub mod forecast;
mod ids;
mod key;
mod mirror;
mod model;
mod name;
pub mod placement;
mod records;
mod room;
mod slot;
pub mod stabilizer;
pub mod status;
mod store;
mod time;
mod view;

pub use config::{EngineConfig, RunnerPolicy, Stabilizers, Timing, TimingError};
pub use engine::{
    Action, Call, CheckpointError, Command, Engine, EngineSetup, Event, Input, Reply, RequestId, RunnerEnd, StopReason,
    StoppedReason, Ticket,
};
pub use fence::StaleToken;
pub use ids::{FencingToken, Generation, IdError, Incarnation, OperationId, Revision, SessionId};
pub use key::shard_of_key;
pub use mirror::Mirror;
pub use model::{DUE_MAX, Effects, StoreModel, TOKEN_FLOOR_STEP, TOKEN_MAX};
pub use name::{ClusterName, NAME_BYTES_MAX, NameError, NodeId, WorkloadName, ZoneName};
pub use records::{
    CHECKPOINT_BYTES_MAX, ClusterSettings, Declared, DynamicWorkloads, Holder, NodeInfo, NodeWish, Offer,
    PROTOCOL_VERSION, REFUSALS_MAX, Record, RecordKey, Refused, SessionRecord, SlotRecord, Stance, Versioned,
    WorkloadRecord,
};
pub use slot::{Slot, SlotError, UNITS_MAX};
pub use status::Status;
pub use store::{
    Actor, AdminOutcome, AdminRequest, Beat, Capabilities, Change, ChangeKind, ChangeOutcome, ChangeReply,
    ChangeRequest, CloseRequest, Conflict, Cursor, Decision, Due, ErrorKind, Fencing, Heard, HeartbeatRequest, Held,
    Known, LeaseStore, Lineage, OpenRequest, Opening, SlotChange, SnapshotPage, SnapshotRequest, Stamp, StoreError,
    Surroundings, Sync, TlsFiles, Watch, WatchHint, quiet_time,
};
pub use time::{StoreTime, Timestamp};
pub use view::ClusterView;
