//! The driver with real runners, a real clock and a store that can be made to misbehave.
//!
//! Nothing here asserts how long anything takes: tests wait for what must come, for a generous time.

mod elections;
mod handle;
mod life;
mod ring;
mod runners;
mod start;
mod store;
mod support;
mod trouble;
