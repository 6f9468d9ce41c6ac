//! What tests of rendez need: real servers that break on demand, a network that does, and a judge.
//!
//! - [`conformance`] asks any store whether it keeps the store contract;
//! - [`servers`] starts real servers on free ports and stops, kills and restarts them;
//! - [`proxy`] stands in front of any address and delays, cuts, freezes or loses;
//! - [`records`] is what runners write down themselves, and [`checker`] tells from it whether the promises held;
//! - [`probe`] finds `rendez-probe`, a child process that writes such records;
//! - [`agents`] starts `rendez agent` with such children, and [`processes`] looks at processes from outside;
//! - [`sink`] is a resource that checks fencing tokens;
//! - [`stage`] has short words for the requests of a store's own tests;
//! - [`measure`] is the frame for measurements.
//!
//! This crate is for tests only and is not published. What is here stays independent of the stores and of the
//! driver, so that a mistake there cannot hide behind the same mistake here.

pub mod agents;
pub mod checker;
pub mod clock;
pub mod conformance;
mod encoding;
pub mod measure;
pub mod probe;
pub mod processes;
pub mod proxy;
pub mod records;
pub mod servers;
pub mod sink;
pub mod stage;
