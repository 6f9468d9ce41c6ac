//! `rendez status`: who is there, who runs what, and why where that is not as it should be.
//!
//! Reads one snapshot and plans from it as every node does. Changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use rendez::{ClusterName, ErrorKind, NodeId, Slot};
use rendez_core::placement::{Cause, Desired};
use rendez_core::{ClusterView, Known, LeaseStore, SnapshotRequest, Stance};
use serde::Serialize;

use crate::cluster_args::{ClusterArgs, resolve};
use crate::exit::{Exit, Failure};
use crate::store_url::StoreUrl;

/// Arguments of `rendez status`.
#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// As JSON, for programs
    #[arg(long)]
    json: bool,
}

/// A request for one page may take this long.
const PAGE_TIMEOUT: Duration = Duration::from_secs(2);

/// So many times a reading begins anew because the store's generation has changed meanwhile.
const READINGS_MAX: u32 = 3;

/// Prints the state of a cluster.
pub(crate) fn status(args: &StatusArgs) -> Result<(), Failure> {
    let config = resolve(&args.cluster.config()?)?;
    let (url, cluster) = (StoreUrl::of(&config)?, &config.cluster);
    if !url.is_shared() {
        return Err(Failure::new(Exit::Usage, "the store memory: lives inside one agent and cannot be looked into"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Exit::Failure, format!("cannot start: {error}")))?;
    let mut view = runtime.block_on(async {
        let store = url.connect(config.connect_timeout, PAGE_TIMEOUT).await?;
        read(&*store, cluster).await
    })?;
    let status = Status::of(cluster, &mut view);
    let text = if args.json {
        serde_json::to_string_pretty(&status).map_err(|error| Failure::new(Exit::Failure, error))? + "\n"
    } else {
        status.table()
    };
    // A reader that has seen enough (`| head`) is no failure.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(())
}

async fn read(store: &dyn LeaseStore, cluster: &ClusterName) -> Result<ClusterView, Failure> {
    let mut readings = 0;
    'reading: loop {
        readings += 1;
        let (mut first, mut items, mut cursor) = (None, Vec::new(), None);
        loop {
            let request = SnapshotRequest { known: Known::default(), session: None, cursor };
            let page = match tokio::time::timeout(PAGE_TIMEOUT, store.snapshot(cluster, &request)).await {
                Ok(Ok(page)) => page,
                Ok(Err(error)) if error.kind() == ErrorKind::Conflict && readings < READINGS_MAX => continue 'reading,
                Ok(Err(error)) => return Err(Failure::new(Exit::Store, error)),
                Err(_) => {
                    return Err(Failure::new(Exit::Store, format!("no answer from the store in {PAGE_TIMEOUT:?}")));
                }
            };
            items.extend(page.items);
            let stamp = first.get_or_insert(page.stamp).clone();
            cursor = page.next;
            if cursor.is_none() {
                return Ok(ClusterView::from_snapshot(rendez::boot_time(), stamp, items));
            }
        }
    }
}

#[derive(Debug, Serialize)]
struct Status {
    cluster: String,
    nodes: Vec<NodeStatus>,
    workloads: Vec<WorkloadStatus>,
    slots: Vec<SlotStatus>,
    /// Nodes that were started with other settings than the cluster's: while there are any, only orphans move.
    settings_differ: Vec<String>,
}

#[derive(Debug, Serialize)]
struct NodeStatus {
    node: String,
    session: String,
    weight: u32,
    zone: Option<String>,
    state: &'static str,
    holds: u32,
    share: f64,
}

#[derive(Debug, Default, Serialize)]
struct WorkloadStatus {
    workload: String,
    units: u32,
    held: u32,
    orphans: u32,
    misplaced: u32,
}

#[derive(Debug, Serialize)]
struct SlotStatus {
    slot: String,
    holder: Option<String>,
    token: u64,
    desired: Option<String>,
    /// Why it is an orphan or misplaced; nothing where all is well.
    reason: Option<String>,
}

impl Status {
    fn of(cluster: &ClusterName, view: &mut ClusterView) -> Self {
        let slots = slots(view);
        Self {
            cluster: cluster.to_string(),
            nodes: nodes(view),
            workloads: workloads(&slots),
            settings_differ: view.settings_differ().iter().map(ToString::to_string).collect(),
            slots: slots.into_iter().map(|(_, status)| status).collect(),
        }
    }

    fn table(&self) -> String {
        let mut text = format!("cluster {}\n", self.cluster);
        if self.nodes.is_empty() {
            text.push_str("no node is alive\n");
        } else {
            let rows = self.nodes.iter().map(|node| {
                let zone = node.zone.clone().unwrap_or_else(|| "-".to_owned());
                let share = format!("{:.1}", node.share);
                [node.node.clone(), node.state.to_owned(), node.weight.to_string(), zone, node.holds.to_string(), share]
            });
            text += &columns(["NODE", "STATE", "WEIGHT", "ZONE", "HOLDS", "SHARE"], rows);
        }
        if !self.workloads.is_empty() {
            let rows = self.workloads.iter().map(|workload| {
                let WorkloadStatus { workload, units, held, orphans, misplaced } = workload;
                [workload.clone(), units.to_string(), held.to_string(), orphans.to_string(), misplaced.to_string()]
            });
            text += &columns(["WORKLOAD", "UNITS", "HELD", "ORPHANS", "MISPLACED"], rows);
        }
        if !self.slots.is_empty() {
            let or_nobody = |node: &Option<String>| node.clone().unwrap_or_else(|| "nobody".to_owned());
            let rows = self.slots.iter().map(|slot| {
                let token = if slot.token == 0 { "-".to_owned() } else { slot.token.to_string() };
                let reason = slot.reason.clone().unwrap_or_default();
                [slot.slot.clone(), or_nobody(&slot.holder), token, or_nobody(&slot.desired), reason]
            });
            text += &columns(["SLOT", "HOLDER", "TOKEN", "DESIRED", "WHY"], rows);
        }
        if !self.settings_differ.is_empty() {
            let nodes = self.settings_differ.join(", ");
            let _ = writeln!(text, "started with other settings, so that only orphans move: {nodes}");
        }
        text
    }
}

fn nodes(view: &mut ClusterView) -> Vec<NodeStatus> {
    let summaries: BTreeMap<_, _> =
        view.planner().summary().into_iter().map(|summary| (summary.node.clone(), summary)).collect();
    let mut nodes: Vec<NodeStatus> = view
        .sessions()
        .map(|(session, record)| {
            let info = &record.info;
            let wish = view.wish(&info.node);
            let summary = summaries.get(&info.node);
            NodeStatus {
                node: info.node.to_string(),
                session: session.to_string(),
                weight: wish.weight.unwrap_or(info.weight),
                zone: info.zone.as_ref().map(ToString::to_string),
                state: match info.stance {
                    _ if wish.drain => "draining",
                    Stance::Draining => "draining",
                    Stance::Active if wish.cordon => "cordoned",
                    Stance::Cordoned => "cordoned",
                    Stance::Active if !info.healthy => "unhealthy",
                    Stance::Active => "active",
                },
                holds: summary.map_or(0, |summary| summary.held),
                share: summary.map_or(0.0, |summary| summary.share),
            }
        })
        .collect();
    nodes.sort_by(|one, other| one.node.cmp(&other.node));
    nodes
}

fn slots(view: &mut ClusterView) -> Vec<(Slot, SlotStatus)> {
    let mut all: BTreeMap<Slot, Option<NodeId>> =
        view.planner().assignments().map(|(slot, node)| (slot, node.cloned())).collect();
    // What is still held, though there is no such slot any more.
    let held: BTreeSet<Slot> = view.sessions().flat_map(|(session, _)| view.held_by(session)).cloned().collect();
    for slot in held {
        all.entry(slot).or_default();
    }
    let mut causes: BTreeMap<Slot, Cause> = BTreeMap::new();
    let live: Vec<NodeId> = view.sessions().map(|(_, record)| record.info.node.clone()).collect();
    for node in live {
        causes.extend(view.planner().leaving(&node).into_iter().map(|a_move| (a_move.slot, a_move.cause)));
    }
    all.into_iter()
        .map(|(slot, desired)| {
            let holder = view.holder(&slot).cloned();
            let reason = match (&holder, &desired) {
                (Some(holder), Some(desired)) if holder == desired => None,
                (_, None) => match view.planner().desired(&slot) {
                    Desired::Node(_) => None,
                    Desired::Nobody(reason) => Some(reason.to_string()),
                },
                (None, Some(desired)) => Some(format!("{desired} is about to take it")),
                (Some(_), Some(desired)) => Some(match causes.get(&slot) {
                    Some(Cause::Policy) | None => format!("it will move to {desired} for a better spread"),
                    Some(Cause::Leaving) => format!("it goes to {desired}: its holder is leaving"),
                    Some(Cause::Pin) => format!("it goes to {desired}, to which it is pinned"),
                    Some(Cause::Rule) => format!("it goes to {desired}: its holder may not run it any more"),
                    Some(Cause::Cap) => format!("it goes to {desired}: its holder is over a cap"),
                    // The cause is newer than this crate.
                    Some(_) => format!("it goes to {desired}"),
                }),
            };
            let status = SlotStatus {
                slot: slot.to_string(),
                token: view.slot(&slot).map_or(0, |record| record.token.get()),
                holder: holder.map(|node| node.to_string()),
                desired: desired.map(|node| node.to_string()),
                reason,
            };
            (slot, status)
        })
        .collect()
}

fn workloads(slots: &[(Slot, SlotStatus)]) -> Vec<WorkloadStatus> {
    let mut workloads: BTreeMap<String, WorkloadStatus> = BTreeMap::new();
    for (slot, status) in slots {
        let name = slot.workload.to_string();
        let workload = workloads.entry(name.clone()).or_default();
        workload.workload = name;
        workload.units += 1;
        match (&status.holder, &status.desired) {
            (Some(holder), desired) => {
                workload.held += 1;
                workload.misplaced += u32::from(desired.as_ref() != Some(holder));
            }
            (None, _) => workload.orphans += 1,
        }
    }
    workloads.into_values().collect()
}

/// A table with a blank line before it.
fn columns<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let mut text = "\n".to_owned();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    text
}
