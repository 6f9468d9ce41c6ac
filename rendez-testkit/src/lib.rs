//! What tests of rendez need: real servers that break on demand.
//!
//! This crate is for tests only and is not published. It stays independent of the stores and of the driver, so
//! that a mistake there cannot hide behind the same mistake here.

pub mod servers;
