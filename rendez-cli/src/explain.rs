//! `rendez explain`: why one slot is where it is, and what keeps it from being elsewhere.
//!
//! Reads one snapshot and asks the core. Changes nothing, and takes no part in the cluster.

use std::fmt::Write as _;

use rendez::{ClusterName, FencingToken, Slot, Timing};
use rendez_core::explanation::{self, Explanation, Ranked, Waiting};
use rendez_core::placement::Band;
use rendez_core::{ClusterView, Revision, Stabilizers};
use serde::Serialize;

use crate::cluster_args::{ClusterArgs, resolve};
use crate::exit::{Exit, Failure};
use crate::look::look;
use crate::print::{columns, print};

/// Arguments of `rendez explain`.
#[derive(Debug, clap::Args)]
pub(crate) struct ExplainArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// The slot, for example inbox/3
    #[arg(value_name = "SLOT")]
    slot: Slot,
    /// As JSON, for programs
    #[arg(long)]
    json: bool,
}

/// Prints why a slot is where it is.
pub(crate) fn explain(args: &ExplainArgs) -> Result<(), Failure> {
    let (cluster, mut view) = look(&args.cluster)?;
    let rules = rules(&args.cluster, &view, &args.slot)?;
    let explanation = explanation::explain(&mut view, rendez::boot_time(), &args.slot, &rules)
        .map_err(|error| Failure::new(Exit::Usage, error))?;
    let revision = view.revision().unwrap_or_default();
    let report = Report { cluster: &cluster, revision, explanation: &explanation };
    print(args.json, &report, || text(&report))
}

/// What is printed as JSON.
#[derive(Debug, Serialize)]
struct Report<'a> {
    cluster: &'a ClusterName,
    revision: Revision,
    #[serde(flatten)]
    explanation: &'a Explanation,
}

/// The stabilizers of the slot's holder, as far as they can be known: what the configuration of this command says, and for
/// the rest what follows from the TTL of the holder's session.
fn rules(args: &ClusterArgs, view: &ClusterView, slot: &Slot) -> Result<Stabilizers, Failure> {
    let session = view.holder(slot).and_then(|node| view.session_of(node));
    match session.and_then(|id| view.session(id)) {
        Some(record) => Ok(resolve(&args.config()?.session_ttl(record.ttl))?.engine.stabilizers),
        // Nothing holds an orphan back.
        None => Ok(Stabilizers::for_timing(&Timing::default())),
    }
}

fn text(report: &Report<'_>) -> String {
    let Report { cluster, revision, explanation } = report;
    let told = explanation;
    let ago = |at: rendez_core::StoreTime| format!("{:.1?} ago", told.now.since(at));
    let mut text = format!("{} in cluster {cluster}, as of revision {revision}\n\n", told.slot);
    match (&told.holder, &told.last_holder) {
        (Some(holder), _) => {
            let _ = writeln!(
                text,
                "held by     {}, granted {}, session {}",
                holder.node,
                ago(holder.since),
                holder.session
            );
        }
        (None, Some(last)) => {
            let _ = writeln!(text, "held by     nobody: the session of {last} is over");
        }
        (None, None) => text += "held by     nobody\n",
    }
    if told.token != FencingToken::NONE {
        let _ = writeln!(text, "token       {}", told.token);
    }
    if let Some(at) = told.moved_at {
        let _ = writeln!(text, "last moved  {} (voluntarily)", ago(at));
    }
    if let Some(at) = told.freed_at {
        let _ = writeln!(text, "let go      {}", ago(at));
    }
    let named = told.desired.as_ref().map_or("nobody", |node| node.as_str());
    let _ = writeln!(text, "plan        {named} (policy {})", told.policy);
    if let Some(node) = &told.pinned_to {
        let _ = writeln!(text, "pinned to   {node}");
    }
    if let Some(taker) = told.taker.as_ref().filter(|taker| told.desired.as_ref() != Some(taker)) {
        let _ = writeln!(text, "now         {taker} takes it: {named} has no room for it yet");
    }
    if let Some(offer) = &told.offer {
        let ready = if offer.ready { "which is ready for it" } else { "which has not answered yet" };
        let left = offer.expires_at.since(told.now);
        let _ = writeln!(text, "offered     to {}, {ready}; the offer ends in {left:.1?}", offer.to);
    }
    match (&told.why, &told.kept) {
        (Some(why), _) => {
            let _ = writeln!(text, "why         {why}");
        }
        (None, Some(reason)) => {
            let _ = writeln!(text, "why         it should leave its holder, but {reason}");
        }
        (None, None) => text += "why         it is where it should be\n",
    }
    if let Some(waiting) = &told.waiting {
        text += &waits(told, waiting);
    }
    text + &candidates(told)
}

fn waits(told: &Explanation, waiting: &Waiting) -> String {
    if !waiting.cause.is_voluntary() {
        return "\nno rule holds this move back: it is offered as soon as its holder sees that it must\n".to_owned();
    }
    let mut text = String::new();
    if waiting.held_back.is_empty() {
        text += "\nno rule that the store knows of holds this move back\n";
    } else {
        text += "\nheld back, by the rules in their order:\n";
        for rule in &waiting.held_back {
            let _ = writeln!(text, "  {rule}");
        }
    }
    if let Some(at) = waiting.not_before {
        let _ = writeln!(text, "it moves in {:.1?} at the earliest", at.since(told.now));
    }
    text + "only its holder knows the rest: when nodes went, how long its runner has run, what it has offered lately,\n\
            and its own rules where they differ from this configuration\n"
}

fn candidates(told: &Explanation) -> String {
    if told.candidates.is_empty() {
        return String::new();
    }
    let of = told.slot.workload.to_string().to_uppercase();
    let rows = told.candidates.iter().enumerate().map(|(at, ranked)| row(told, at + 1, ranked));
    columns(["RANK", "NODE", "STATE", "HOLDS", "PLANNED", "BAND", &format!("OF {of}"), "BAND", "AGAINST IT"], rows)
}

fn row(told: &Explanation, rank: usize, ranked: &Ranked) -> [String; 9] {
    let Ranked { candidate, state, .. } = ranked;
    let band = |band: Option<Band>| band.map_or_else(|| "-".to_owned(), |it| format!("{} to {}", it.low, it.high));
    let against = ranked.against(told.now).unwrap_or_else(|| "nothing: the plan names it".to_owned());
    [
        rank.to_string(),
        candidate.node.to_string(),
        state.as_str().to_owned(),
        candidate.held.total.to_string(),
        candidate.planned.total.to_string(),
        band(candidate.bands.map(|bands| bands.total)),
        candidate.planned.of_workload.to_string(),
        band(candidate.bands.map(|bands| bands.of_workload)),
        against,
    ]
}
