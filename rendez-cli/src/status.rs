//! `rendez status`: who is there, who runs what, and why where that is not as it should be.
//!
//! Reads one snapshot and plans from it as every node does. Changes nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use rendez::{ClusterName, FencingToken, NodeId};
use rendez_core::Status;
use serde::Serialize;

use crate::cluster_args::ClusterArgs;
use crate::exit::Failure;
use crate::look::look;
use crate::print::{columns, print};

/// Arguments of `rendez status`.
#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// As JSON, for programs
    #[arg(long)]
    json: bool,
}

/// Prints the state of a cluster.
pub(crate) fn status(args: &StatusArgs) -> Result<(), Failure> {
    let (cluster, mut view) = look(&args.cluster)?;
    let cluster = &cluster;
    let status = Status::of(&mut view, rendez::boot_time(), &BTreeMap::new());
    print(args.json, &Report { cluster, status: &status }, || table(cluster, &status))
}

/// What is printed as JSON.
#[derive(Debug, Serialize)]
struct Report<'a> {
    cluster: &'a ClusterName,
    #[serde(flatten)]
    status: &'a Status,
}

fn table(cluster: &ClusterName, status: &Status) -> String {
    let mut text = format!("cluster {cluster}\n");
    if status.nodes.is_empty() {
        text.push_str("no node is alive\n");
    } else {
        let rows = status.nodes.iter().map(|node| {
            let zone = node.zone.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
            let share = format!("{:.1}", node.share);
            let state = node.state.as_str().to_owned();
            [node.node.to_string(), state, node.weight.to_string(), zone, node.holds.to_string(), share]
        });
        text += &columns(["NODE", "STATE", "WEIGHT", "ZONE", "HOLDS", "SHARE"], rows);
    }
    if !status.workloads.is_empty() {
        let rows = status.workloads.iter().map(|workload| {
            let counts = [workload.units, workload.held, workload.orphans, workload.misplaced];
            let [units, held, orphans, misplaced] = counts.map(|count| count.to_string());
            [workload.workload.to_string(), units, held, orphans, misplaced]
        });
        text += &columns(["WORKLOAD", "UNITS", "HELD", "ORPHANS", "MISPLACED"], rows);
    }
    if !status.slots.is_empty() {
        let or_nobody = |node: &Option<NodeId>| node.as_ref().map_or_else(|| "nobody".to_owned(), ToString::to_string);
        let rows = status.slots.iter().map(|slot| {
            let granted = slot.token != FencingToken::NONE;
            let token = if granted { slot.token.to_string() } else { "-".to_owned() };
            let why = slot.why.as_ref().map(ToString::to_string).unwrap_or_default();
            [slot.slot.to_string(), or_nobody(&slot.holder), token, or_nobody(&slot.desired), why]
        });
        text += &columns(["SLOT", "HOLDER", "TOKEN", "DESIRED", "WHY"], rows);
    }
    if !status.settings_differ.is_empty() {
        let nodes: Vec<&str> = status.settings_differ.iter().map(NodeId::as_str).collect();
        let _ = writeln!(text, "started with other settings, so that only orphans move: {}", nodes.join(", "));
    }
    text
}
