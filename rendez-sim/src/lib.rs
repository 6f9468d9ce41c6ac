//! A deterministic simulator: the engine that ships, in virtual time, with faults, judged by its promises.
//!
//! A seed stands for a [`Scenario`]; the scenario for a [`World`]; what happens in the world is a [`trace`], which the
//! [`oracles`] judge and whose hash is the same for the same seed, always and in every build. Nothing in here has a clock,
//! chance of its own, or maps whose order is not given.

pub mod corpus;
mod dice;
mod faults;
pub mod figures;
mod observers;
pub mod oracles;
pub mod run;
mod scenario;
pub mod shrink;
mod store;
pub mod trace;
mod world;

pub use dice::Dice;
pub use faults::{Fault, Faults};
pub use scenario::{Kind, Scenario, Variant};
pub use world::{Traffic, World};
