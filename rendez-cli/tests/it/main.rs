//! Tests of the command `rendez` with real processes.

mod guardian;
mod processes;
