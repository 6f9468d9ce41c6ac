//! Tests of the command `rendez` with real processes.

mod agent;
mod demo;
mod each_store;
mod elect;
mod faults;
mod guardian;
mod ledger;
mod library;
mod matrix;
mod network;
mod predict;
mod processes;
mod ring;
mod runners;
mod sim;
mod stage;
mod stores;
mod usage;
