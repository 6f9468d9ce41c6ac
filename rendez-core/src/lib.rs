//! The pure core of rendez.
//!
//! Identifiers, time, placement, the engine, the store contract and its executable model. There is no clock,
//! no randomness, no I/O and no runtime in here: time and entropy are arguments, so that everything can be run
//! again from its inputs. What needs any of those belongs into the crate `rendez`.

mod ids;
mod name;
pub mod placement;
mod slot;
mod time;

pub use ids::{FencingToken, Generation, IdError, Incarnation, OperationId, Revision, SessionId};
pub use name::{ClusterName, NAME_BYTES_MAX, NameError, NodeId, WorkloadName, ZoneName};
pub use slot::{Slot, SlotError, UNITS_MAX};
pub use time::{StoreTime, Timestamp};
