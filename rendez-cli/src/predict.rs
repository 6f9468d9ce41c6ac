//! `rendez predict`: which slots would move if something changed.
//!
//! Reads one snapshot and asks the core what follows. Changes nothing, and takes no part in the cluster.

use std::fmt::Write as _;

use rendez::{ClusterName, NodeId};
use rendez_core::Revision;
use rendez_core::forecast::{self, Forecast, NodeForecast, Step};
use serde::Serialize;

use crate::cluster_args::ClusterArgs;
use crate::exit::{Exit, Failure};
use crate::look::look;
use crate::print::{columns, print};
use crate::suppose::Changes;

/// Arguments of `rendez predict`.
#[derive(Debug, clap::Args)]
pub(crate) struct PredictArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    changes: Changes,
    /// As JSON, for programs
    #[arg(long)]
    json: bool,
}

/// Prints what would happen; without any change, what will.
pub(crate) fn predict(args: &PredictArgs) -> Result<(), Failure> {
    let (cluster, view) = look(&args.cluster)?;
    let suppositions = args.changes.suppositions();
    let forecast = forecast::predict(&view, rendez::boot_time(), &suppositions)
        .map_err(|error| Failure::new(Exit::Usage, error))?;
    let report = Report { cluster: &cluster, revision: view.revision().unwrap_or_default(), forecast: &forecast };
    print(args.json, &report, || table(&report, !suppositions.is_empty()))
}

/// What is printed as JSON.
#[derive(Debug, Serialize)]
struct Report<'a> {
    cluster: &'a ClusterName,
    revision: Revision,
    #[serde(flatten)]
    forecast: &'a Forecast,
}

/// `changed` says whether there is a change without which something would happen as well.
fn table(report: &Report<'_>, changed: bool) -> String {
    let Report { cluster, revision, forecast } = report;
    let mut text = format!("cluster {cluster}, as of revision {revision}\n");
    if !forecast.steps.is_empty() {
        let rows = forecast.steps.iter().map(|step| {
            let why = why(step, changed);
            [step.slot.to_string(), or_nobody(step.from.as_ref()), or_nobody(step.to.as_ref()), why]
        });
        text += &columns(["SLOT", "FROM", "TO", "WHY"], rows);
    }
    if !forecast.nodes.is_empty() {
        let rows = forecast.nodes.iter().map(node);
        text += &columns(["NODE", "BEFORE", "AFTER", "SHARE", "BAND"], rows);
    }
    if !forecast.unplaced.is_empty() {
        let rows = forecast.unplaced.iter().map(|unplaced| {
            [unplaced.slot.to_string(), or_nobody(unplaced.holder.as_ref()), unplaced.reason.to_string()]
        });
        text += &columns(["UNPLACED", "KEPT BY", "WHY"], rows);
    }
    if !forecast.stuck.is_empty() {
        let rows = forecast
            .stuck
            .iter()
            .map(|stuck| [stuck.slot.to_string(), or_nobody(stuck.holder.as_ref()), stuck.to.to_string()]);
        text += &columns(["WITHOUT A FREE WAY", "HELD BY", "SHOULD GO TO"], rows);
    }
    text += &summary(forecast, changed);
    text
}

fn node(node: &NodeForecast) -> [String; 5] {
    let or = |count: Option<u32>, none: &str| count.map_or_else(|| none.to_owned(), |count| count.to_string());
    let share = node.share.map_or_else(|| "-".to_owned(), |share| format!("{share:.1}"));
    let band = node.band.map_or_else(|| "-".to_owned(), |band| format!("{} to {}", band.low, band.high));
    [node.node.to_string(), or(node.before, "-"), or(node.after, "gone"), share, band]
}

fn why(step: &Step, changed: bool) -> String {
    let anyway = if step.anyway && changed { " (also without the change)" } else { "" };
    format!("{}{anyway}", step.why)
}

fn summary(forecast: &Forecast, changed: bool) -> String {
    let totals = forecast.totals;
    let mut text = format!("\n{} slots: {} stay, {} move", totals.slots, totals.stay, totals.moves);
    let _ = write!(text, " ({} of them voluntarily", totals.voluntary);
    if totals.anyway > 0 && changed {
        let _ = write!(text, ", {} without the change as well", totals.anyway);
    }
    let _ = writeln!(text, "), {} unplaced", totals.unplaced);
    if totals.voluntary > 0 {
        text += "voluntary moves take their time: cooldowns, settling and budgets of each node hold them back\n";
    }
    if !forecast.settings_differ.is_empty() {
        let nodes: Vec<&str> = forecast.settings_differ.iter().map(NodeId::as_str).collect();
        let _ = writeln!(
            text,
            "started with other settings, and as long as they are there no move is voluntary: {}",
            nodes.join(", ")
        );
    }
    text
}

fn or_nobody(node: Option<&NodeId>) -> String {
    node.map_or_else(|| "nobody".to_owned(), ToString::to_string)
}
