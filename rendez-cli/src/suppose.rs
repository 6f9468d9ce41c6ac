//! The changes that `rendez predict` is asked about, read from the command line.

use rendez_core::forecast::{Joining, Supposition};
use rendez_core::placement::{LoadFactor, Policy, PolicyError};
use rendez_core::{NodeId, UNITS_MAX, WorkloadName, ZoneName};

/// What to suppose; each may be given many times, and all are supposed together: first who goes, then who comes, then the
/// rest.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Changes")]
pub(crate) struct Changes {
    /// The session of this node ends
    #[arg(long, value_name = "NODE")]
    goes: Vec<NodeId>,
    /// A node comes that runs all workloads which any live node runs: NODE, or for example
    /// NODE:weight=2,zone=z,capacity=10,label.KEY=VALUE
    #[arg(long, value_name = "NODE[:KEY=VALUE,…]", value_parser = joining)]
    joins: Vec<Joining>,
    /// A node has this weight
    #[arg(long, value_name = "NODE=WEIGHT", value_parser = weight)]
    weight: Vec<(NodeId, u32)>,
    /// A node is in this zone
    #[arg(long, value_name = "NODE=ZONE", value_parser = zone)]
    zone: Vec<(NodeId, ZoneName)>,
    /// A node holds this many slots at most, or any number: none
    #[arg(long, value_name = "NODE=N|none", value_parser = capacity)]
    capacity: Vec<(NodeId, Capacity)>,
    /// A node is drained: it takes nothing new and hands everything off
    #[arg(long, value_name = "NODE")]
    drain: Vec<NodeId>,
    /// A node is cordoned: it takes nothing new and keeps what it holds
    #[arg(long, value_name = "NODE")]
    cordon: Vec<NodeId>,
    /// A workload has this many units
    #[arg(long, value_name = "WORKLOAD=N", value_parser = units)]
    units: Vec<(WorkloadName, u32)>,
    /// The cluster and all of its nodes have this policy
    #[arg(long, value_name = "balanced|rendezvous|ring[:N]", value_parser = policy)]
    policy: Option<Policy>,
    /// The cluster and all of its nodes have this load factor, in thousandths: 1000 or more
    #[arg(long, value_name = "PERMILLE", value_parser = load_factor)]
    load_factor: Option<LoadFactor>,
}

/// The most slots that a node holds, if there is a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Capacity(Option<u32>);

impl Changes {
    /// All of them, in the order in which they are supposed.
    pub(crate) fn suppositions(&self) -> Vec<Supposition> {
        let mut all: Vec<Supposition> = Vec::new();
        all.extend(self.goes.iter().cloned().map(Supposition::Goes));
        all.extend(self.joins.iter().cloned().map(Supposition::Joins));
        all.extend(self.weight.iter().map(|(node, weight)| Supposition::Weight(node.clone(), *weight)));
        all.extend(self.zone.iter().map(|(node, zone)| Supposition::Zone(node.clone(), zone.clone())));
        all.extend(self.capacity.iter().map(|(node, most)| Supposition::Capacity(node.clone(), most.0)));
        all.extend(self.drain.iter().cloned().map(Supposition::Drain));
        all.extend(self.cordon.iter().cloned().map(Supposition::Cordon));
        all.extend(self.units.iter().map(|(workload, units)| Supposition::Units(workload.clone(), *units)));
        all.extend(self.policy.map(Supposition::Policy));
        all.extend(self.load_factor.map(Supposition::LoadFactor));
        all
    }
}

/// The keys of a node that joins. Names may hold any sign, so what follows a colon is a setting only if it begins like one.
const KEYS: [&str; 4] = ["weight=", "zone=", "capacity=", "label."];

fn joining(text: &str) -> Result<Joining, String> {
    let at =
        text.match_indices(':').map(|(at, _)| at).find(|at| KEYS.iter().any(|key| text[at + 1..].starts_with(key)));
    let wrong = || "write NODE, or for example NODE:weight=2,zone=z,capacity=10,label.KEY=VALUE".to_owned();
    let (name, settings) = match at {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None if text.rsplit_once(':').is_some_and(|(_, rest)| rest.is_empty() || rest.contains('=')) => {
            return Err(wrong());
        }
        None => (text, None),
    };
    let mut joining = Joining::new(NodeId::new(name).map_err(|error| error.to_string())?);
    for setting in settings.into_iter().flat_map(|settings| settings.split(',')) {
        let (key, value) = setting.split_once('=').ok_or_else(wrong)?;
        match key {
            "weight" => joining.weight = at_least_one("weight", value)?,
            "zone" => joining.zone = Some(ZoneName::new(value).map_err(|error| error.to_string())?),
            "capacity" => joining.capacity = most(value)?.0,
            _ => match key.strip_prefix("label.").filter(|key| !key.is_empty()) {
                Some(key) => drop(joining.labels.insert(key.to_owned(), value.to_owned())),
                None => return Err(format!("a node that joins has no {key:?}: {}", wrong())),
            },
        }
    }
    Ok(joining)
}

fn weight(text: &str) -> Result<(NodeId, u32), String> {
    let (node, weight) = pair(text, "NODE=WEIGHT")?;
    Ok((node, at_least_one("weight", weight)?))
}

fn zone(text: &str) -> Result<(NodeId, ZoneName), String> {
    let (node, zone) = pair(text, "NODE=ZONE")?;
    Ok((node, ZoneName::new(zone).map_err(|error| error.to_string())?))
}

fn capacity(text: &str) -> Result<(NodeId, Capacity), String> {
    let (node, capacity) = pair(text, "NODE=N or NODE=none")?;
    Ok((node, most(capacity)?))
}

fn units(text: &str) -> Result<(WorkloadName, u32), String> {
    let (workload, units) = text.rsplit_once('=').ok_or("write WORKLOAD=N")?;
    let workload = WorkloadName::new(workload).map_err(|error| error.to_string())?;
    let units = units.parse().ok().filter(|units| *units <= UNITS_MAX);
    Ok((workload, units.ok_or_else(|| format!("units are a number from 0 to {UNITS_MAX}"))?))
}

fn policy(text: &str) -> Result<Policy, String> {
    text.parse().map_err(|error: PolicyError| error.to_string())
}

fn load_factor(text: &str) -> Result<LoadFactor, String> {
    let permille = text.parse().map_err(|_| "write a number of thousandths, 1000 or more".to_owned())?;
    LoadFactor::from_permille(permille).map_err(|error| error.to_string())
}

/// Names may hold any sign; what is behind the last `=` is the value.
fn pair<'a>(text: &'a str, form: &str) -> Result<(NodeId, &'a str), String> {
    let (node, value) = text.rsplit_once('=').ok_or_else(|| format!("write {form}"))?;
    Ok((NodeId::new(node).map_err(|error| error.to_string())?, value))
}

fn at_least_one(what: &str, value: &str) -> Result<u32, String> {
    value.parse().ok().filter(|value| *value > 0).ok_or_else(|| format!("a {what} is a number of 1 or more"))
}

fn most(value: &str) -> Result<Capacity, String> {
    match value {
        "none" => Ok(Capacity(None)),
        _ => Ok(Capacity(Some(
            at_least_one("capacity", value).map_err(|_| "a capacity is a number of 1 or more, or none".to_owned())?,
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_joins_is_read_with_all_that_is_said_of_it() {
        let read = joining("d:weight=2,zone=z,capacity=10,label.gpu=a=b").unwrap();
        assert_eq!((read.node.as_str(), read.weight, read.capacity), ("d", 2, Some(10)));
        assert_eq!((read.zone.unwrap().as_str(), read.labels["gpu"].as_str()), ("z", "a=b"));
        assert_eq!(joining("10.0.0.1:8080").unwrap().node.as_str(), "10.0.0.1:8080");
        assert_eq!(joining("h:1:weight=3").unwrap(), Joining { weight: 3, ..Joining::new("h:1".parse().unwrap()) });
        for text in
            ["", "d:", "d:wieght=2", "d:weight=0", "d:weight=2,", "d:weight=2,x=1", "d:capacity=0", "d:label.=x"]
        {
            assert!(joining(text).is_err(), "{text}");
        }
    }

    #[test]
    fn pairs_are_read_and_nonsense_is_refused_with_what_would_be_right() {
        assert_eq!(weight("a=b=3"), Ok(("a=b".parse().unwrap(), 3)));
        assert_eq!(capacity("a=none"), Ok(("a".parse().unwrap(), Capacity(None))));
        assert_eq!(units("inbox=0"), Ok(("inbox".parse().unwrap(), 0)));
        for (error, right) in [
            (weight("a").unwrap_err(), "NODE=WEIGHT"),
            (weight("a=0").unwrap_err(), "1 or more"),
            (capacity("a=0").unwrap_err(), "or none"),
            (zone("a=").unwrap_err(), "empty"),
            (units("x=1000001").unwrap_err(), "1000000"),
            (policy("best").unwrap_err(), "balanced, rendezvous, ring"),
            (load_factor("999").unwrap_err(), "1000 to 100000"),
        ] {
            assert!(error.contains(right), "{error}");
        }
    }
}
