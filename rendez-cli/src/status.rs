//! `rendez status`: who is there, who runs what, and why where that is not as it should be.
//!
//! Reads one snapshot and plans from it as every node does. Changes nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use rendez::{ClusterName, ErrorKind, FencingToken, NodeId};
use rendez_core::{ClusterView, Known, LeaseStore, SnapshotRequest, Status};
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
    let status = Status::of(&mut view, rendez::boot_time(), &BTreeMap::new());
    let text = if args.json {
        serde_json::to_string_pretty(&Report { cluster, status: &status })
            .map_err(|error| Failure::new(Exit::Failure, error))?
            + "\n"
    } else {
        table(cluster, &status)
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
