//! The agent's command line, and what it comes to.

use std::collections::BTreeMap;
use std::time::Duration;

use rendez::{ClusterName, DynamicWorkloads, EngineConfig, NodeId, Timing, WorkloadName, ZoneName};
use rendez_core::UNITS_MAX;

use super::command::Template;
use crate::exit::{Exit, Failure};
use crate::store_url::{StoreArgs, StoreUrl};

/// Arguments of `rendez agent`.
#[derive(Debug, clap::Args)]
pub(crate) struct AgentArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// The cluster to take part in
    #[arg(long)]
    cluster: ClusterName,
    /// This node's name, unique in its cluster and the same after a restart; the host's name unless given
    #[arg(long)]
    node: Option<NodeId>,
    /// A kind of work and how many units it has, for example inbox=12; may be repeated
    #[arg(long = "workload", value_name = "NAME=UNITS", value_parser = parse_workload)]
    workloads: Vec<(WorkloadName, u32)>,
    /// Also run the workloads that are kept in the store
    #[arg(long)]
    dynamic: bool,
    /// This node's part of the work, relative to the other nodes
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    weight: u32,
    /// The failure domain that this node is in
    #[arg(long)]
    zone: Option<ZoneName>,
    /// A label that workloads may ask for; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    /// The most slots of all workloads together
    #[arg(long)]
    capacity: Option<u32>,
    /// After this time without a heartbeat the node counts as dead
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = crate::duration::parse)]
    session_ttl: Duration,
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
    /// How long handing everything over may take at the end
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = crate::duration::parse)]
    drain_timeout: Duration,
    /// How long to wait for the store at the start
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = crate::duration::parse)]
    connect_timeout: Duration,
    /// Give up at once if another process has this node's name, instead of waiting for its end
    #[arg(long)]
    no_wait: bool,
    /// The command to run for each slot; {slot}, {workload}, {unit}, {token}, {node}, {cluster} are filled in. Without
    /// one the slots are only held
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// What the agent shall do, checked.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) store: StoreUrl,
    pub(crate) cluster: ClusterName,
    pub(crate) node: NodeId,
    pub(crate) workloads: BTreeMap<WorkloadName, u32>,
    pub(crate) dynamic: DynamicWorkloads,
    pub(crate) weight: u32,
    pub(crate) zone: Option<ZoneName>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) capacity: Option<u32>,
    pub(crate) engine: EngineConfig,
    pub(crate) connect_timeout: Duration,
    pub(crate) command: Option<Template>,
}

impl AgentArgs {
    /// Checks everything that can be checked without a store.
    pub(crate) fn plan(self) -> Result<Plan, Failure> {
        let usage = |message: String| Failure::new(Exit::Usage, message);
        let engine = self.engine();
        engine.validate().map_err(|error| usage(error.to_string()))?;
        let store = self.store.url()?;
        let mut workloads = BTreeMap::new();
        for (name, units) in self.workloads {
            if workloads.insert(name.clone(), units).is_some() {
                return Err(usage(format!("the workload {name} is given twice: once is enough")));
            }
        }
        if workloads.is_empty() && !self.dynamic {
            return Err(usage("there is nothing to run: give --workload NAME=UNITS, or --dynamic".to_owned()));
        }
        let node = match self.node {
            Some(node) => node,
            None => host_name().ok_or_else(|| usage("this host has no usable name: give --node NAME".to_owned()))?,
        };
        let command = match self.command {
            command if command.is_empty() => None,
            command => Some(Template::new(command).map_err(usage)?),
        };
        Ok(Plan {
            store,
            cluster: self.cluster,
            node,
            workloads,
            dynamic: if self.dynamic { DynamicWorkloads::All } else { DynamicWorkloads::None },
            weight: self.weight,
            zone: self.zone,
            labels: self.labels.into_iter().collect(),
            capacity: self.capacity,
            engine,
            connect_timeout: self.connect_timeout,
            command,
        })
    }

    fn engine(&self) -> EngineConfig {
        let mut timing = Timing::for_ttl(self.session_ttl);
        let set = |value: &mut Duration, given: Option<Duration>| *value = given.unwrap_or(*value);
        set(&mut timing.heartbeat_interval, self.heartbeat_interval);
        set(&mut timing.operation_timeout, self.operation_timeout);
        set(&mut timing.stop_budget, self.stop_budget);
        set(&mut timing.pause_allowance, self.pause_allowance);
        let mut engine = EngineConfig::for_timing(timing);
        engine.drain_timeout = self.drain_timeout;
        engine.give_up_if_in_use = self.no_wait;
        engine
    }
}

fn host_name() -> Option<NodeId> {
    NodeId::new(rustix::system::uname().nodename().to_str().ok()?).ok()
}

fn parse_workload(text: &str) -> Result<(WorkloadName, u32), String> {
    let (name, units) =
        text.rsplit_once('=').ok_or_else(|| "write NAME=UNITS, for example inbox=12".to_owned())?;
    let name = WorkloadName::new(name).map_err(|error| error.to_string())?;
    let count = units.parse::<u64>().map_or_else(
        // Digits that overflow are a number too, and too large a one.
        |_| (!units.is_empty() && units.bytes().all(|byte| byte.is_ascii_digit())).then_some(u64::MAX),
        Some,
    );
    match count.map(u32::try_from) {
        Some(Ok(count)) if (1..=UNITS_MAX).contains(&count) => Ok((name, count)),
        Some(_) | None => Err(format!("{units:?} cannot be a number of units: use 1 to {UNITS_MAX}")),
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
