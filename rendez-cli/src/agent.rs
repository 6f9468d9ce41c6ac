//! `rendez agent`: one child process for each slot that this node owns.

use std::sync::Arc;
use std::time::Duration;

use rendez::{DynamicWorkloads, RunnerFactory, SlotContext, WorkloadName};
use rendez_core::UNITS_MAX;
use tokio::sync::Notify;

use crate::cluster_args::{ClusterArgs, resolve};
use crate::exit::{Exit, Failure};
use crate::guardian::Guardian;
use crate::node::{self, Children, Plan, Template};
use crate::store_url::StoreUrl;

/// Runs the agent until it is told to end.
pub(crate) fn agent(args: AgentArgs) -> Result<(), Failure> {
    let (plan, command) = args.plan()?;
    let runners = |guardian: &Guardian| -> Arc<dyn RunnerFactory> {
        match &command {
            Some(command) => Arc::new(Children::new(guardian.clone(), command.clone())),
            None => Arc::new(hold),
        }
    };
    node::run(&plan, &runners, &Notify::new()).map(|_| ())
}

/// What runs where there is no command.
async fn hold(ctx: SlotContext) {
    tracing::info!(slot = %ctx.slot(), token = %ctx.token(), "holding it: there is no command to run");
    ctx.cancelled().await;
}

/// Arguments of `rendez agent`.
#[derive(Debug, clap::Args)]
pub(crate) struct AgentArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// This node's name, unique in its cluster and best the same after a restart; the host's with a random end unless given
    #[arg(long)]
    node: Option<String>,
    /// A kind of work and how many units it has, for example inbox=12; may be repeated
    #[arg(long = "workload", value_name = "NAME=UNITS", value_parser = parse_workload)]
    workloads: Vec<(WorkloadName, u32)>,
    /// Also run the workloads that are kept in the store
    #[arg(long)]
    dynamic: bool,
    /// This node's part of the work, relative to the other nodes; 1 unless given
    #[arg(long)]
    weight: Option<u32>,
    /// The failure domain that this node is in
    #[arg(long)]
    zone: Option<String>,
    /// A label that workloads may ask for; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    /// The most slots of all workloads together
    #[arg(long)]
    capacity: Option<u32>,
    /// After this time without a heartbeat the node counts as dead; 10s unless given
    #[arg(long, value_name = "TIME", value_parser = crate::duration::parse)]
    session_ttl: Option<Duration>,
    /// From one heartbeat to the next; a fifth of the session TTL unless given
    #[arg(long, value_name = "TIME", value_parser = crate::duration::parse)]
    heartbeat_interval: Option<Duration>,
    /// When a request to the store counts as unanswered; a twentieth of the session TTL, 500ms at most, unless given
    #[arg(long, value_name = "TIME", value_parser = crate::duration::parse)]
    operation_timeout: Option<Duration>,
    /// How long a child may take to end after SIGTERM; three tenths of the session TTL unless given
    #[arg(long, value_name = "TIME", value_parser = crate::duration::parse)]
    stop_budget: Option<Duration>,
    /// How long this host may be paused without harm; a tenth of the session TTL unless given
    #[arg(long, value_name = "TIME", value_parser = crate::duration::parse)]
    pause_allowance: Option<Duration>,
    /// How long handing everything over may take at the end; 30s unless given
    #[arg(long, value_name = "TIME", value_parser = crate::duration::parse)]
    drain_timeout: Option<Duration>,
    /// Give up at once if another process has this node's name, instead of waiting for its end
    #[arg(long)]
    no_wait: bool,
    /// The command to run for each slot; {slot}, {workload}, {unit}, {token}, {node}, {cluster} are filled in. Without
    /// one the slots are only held
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl AgentArgs {
    /// Checks everything that can be checked without a store.
    fn plan(self) -> Result<(Plan, Option<Template>), Failure> {
        let mut config = self.cluster.config()?;
        for (name, units) in &self.workloads {
            config = config.workload(name, *units);
        }
        for (key, value) in self.labels {
            config = config.label(key, value);
        }
        if let Some(node) = self.node {
            config = config.node_id(node);
        }
        if let Some(zone) = self.zone {
            config = config.zone(zone);
        }
        if let Some(weight) = self.weight {
            config = config.weight(weight);
        }
        if let Some(capacity) = self.capacity {
            config = config.capacity(Some(capacity));
        }
        if let Some(time) = self.session_ttl {
            config = config.session_ttl(time);
        }
        if let Some(time) = self.heartbeat_interval {
            config = config.heartbeat_interval(time);
        }
        if let Some(time) = self.operation_timeout {
            config = config.operation_timeout(time);
        }
        if let Some(time) = self.stop_budget {
            config = config.stop_budget(time);
        }
        if let Some(time) = self.pause_allowance {
            config = config.pause_allowance(time);
        }
        if let Some(time) = self.drain_timeout {
            config = config.drain_timeout(time);
        }
        if self.dynamic {
            config = config.dynamic_workloads(DynamicWorkloads::All);
        }
        if self.no_wait {
            config = config.give_up_if_in_use(true);
        }
        let config = resolve(&config)?;
        let usage = |message: &str| Failure::new(Exit::Usage, message);
        if config.info.workloads.is_empty() && config.info.dynamic == DynamicWorkloads::None {
            return Err(usage("there is nothing to run: give --workload NAME=UNITS, or --dynamic"));
        }
        let store = StoreUrl::of(&config)?;
        let command = match self.command {
            command if command.is_empty() => None,
            command => Some(Template::new(command).map_err(|wrong| usage(&wrong))?),
        };
        Ok((Plan { config, store }, command))
    }
}

fn parse_workload(text: &str) -> Result<(WorkloadName, u32), String> {
    let (name, units) = text.rsplit_once('=').ok_or_else(|| "write NAME=UNITS, for example inbox=12".to_owned())?;
    let name = WorkloadName::new(name).map_err(|error| error.to_string())?;
    match units.parse() {
        Ok(count) if (1..=UNITS_MAX).contains(&count) => Ok((name, count)),
        Ok(_) | Err(_) => Err(format!("{units:?} cannot be a number of units: use 1 to {UNITS_MAX}")),
    }
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        Some(_) | None => Err("write KEY=VALUE, for example disk=ssd".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_are_read_and_nonsense_is_refused() {
        assert_eq!(parse_workload("inbox=12").unwrap().1, 12);
        assert_eq!(parse_workload("a=b=1").unwrap().0.as_str(), "a=b");
        for text in ["x=0", "x=-1", "x=99999999999", "x=99999999999999999999999", "x", "=3", "x=", "x=1.5", "x= 1"] {
            assert!(parse_workload(text).is_err(), "{text}");
        }
    }
}
