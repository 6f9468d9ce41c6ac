//! The command `rendez`.
//!
//! `agent` and its helpers are for Linux only, because nothing else can tell for certain that all descendants of a
//! process are gone.

#![cfg_attr(not(target_os = "linux"), allow(dead_code))]

#[cfg(target_os = "linux")]
mod agent;
mod cli;
mod cluster_args;
mod demo;
mod duration;
#[cfg(target_os = "linux")]
mod elect;
mod exit;
mod explain;
#[cfg(target_os = "linux")]
mod guardian;
mod look;
#[cfg(target_os = "linux")]
mod node;
mod predict;
mod print;
mod ring;
mod sim;
mod status;
mod stop;
mod store_url;
mod suppose;

fn main() -> std::process::ExitCode {
    cli::main()
}
