//! Tests of the command `rendez` with real processes.

mod agent;
mod demo;
mod guardian;
mod processes;
mod usage;
