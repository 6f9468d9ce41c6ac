//! Making a failing scenario smaller: fewer faults, nodes, slots, less time, as long as the same promise breaks.

use crate::faults::{Fault, Faults};
use crate::oracles::Broken;
use crate::run::run;
use crate::scenario::{Scenario, Variant};

/// How many other seeds are tried for each step: a smaller world has other dice, and may need another seed to fail.
const SEEDS: u64 = 40;

/// The most worlds that are run for one shrinking.
const WORLDS_MAX: u32 = 6000;

/// A scenario as small as it was found, the promise that it breaks, and how many worlds it took to find.
#[derive(Debug, Clone)]
pub struct Shrunk {
    /// The scenario.
    pub scenario: Scenario,
    /// What it breaks.
    pub broken: Broken,
    /// The worlds that were run.
    pub worlds: u32,
}

/// Makes a scenario smaller that breaks a promise. Nothing if it breaks none.
#[must_use]
pub fn shrink(scenario: &Scenario) -> Option<Shrunk> {
    shrink_by(scenario, &|scenario| run(scenario).broken)
}

fn shrink_by(scenario: &Scenario, judge: &dyn Fn(&Scenario) -> Option<Broken>) -> Option<Shrunk> {
    let broken = judge(scenario)?;
    let mut best = Shrunk { scenario: scenario.clone(), broken, worlds: 1 };
    loop {
        let smaller = smaller(&best.scenario).into_iter().find_map(|candidate| best.same_breaks(&candidate, judge));
        match smaller {
            Some((scenario, broken)) => (best.scenario, best.broken) = (scenario, broken),
            None => return Some(best),
        }
    }
}

impl Shrunk {
    /// Tries a smaller scenario with its own seed and some others.
    fn same_breaks(
        &mut self,
        candidate: &Scenario,
        judge: &dyn Fn(&Scenario) -> Option<Broken>,
    ) -> Option<(Scenario, Broken)> {
        for other in 0..=SEEDS {
            if self.worlds >= WORLDS_MAX {
                return None;
            }
            self.worlds += 1;
            let seed = if other == 0 { candidate.seed } else { other };
            let scenario = Scenario { seed, ..candidate.clone() };
            if let Some(broken) = judge(&scenario).filter(|broken| broken.promise == self.broken.promise) {
                return Some((scenario, broken));
            }
        }
        None
    }
}

/// Scenarios that are a bit smaller, the boldest first.
fn smaller(scenario: &Scenario) -> Vec<Scenario> {
    let mut all = Vec::new();
    let faults: Vec<Fault> = scenario.faults.iter().collect();
    if faults.len() > 3 {
        let (one, other) = faults.split_at(faults.len() / 2);
        for half in [one, other] {
            all.push(Scenario { faults: half.iter().copied().collect::<Faults>(), ..scenario.clone() });
        }
    }
    for fault in faults {
        all.push(Scenario { faults: scenario.faults.without(fault), ..scenario.clone() });
    }
    for nodes in [scenario.nodes / 2, scenario.nodes - 1] {
        if (1..scenario.nodes).contains(&nodes) {
            all.push(Scenario { nodes, ..scenario.clone() });
        }
    }
    for (at, units) in scenario.workloads.iter().enumerate() {
        if scenario.workloads.len() > 1 {
            let mut workloads = scenario.workloads.clone();
            workloads.remove(at);
            all.push(Scenario { workloads, ..scenario.clone() });
        }
        for fewer in [units / 2, units - 1] {
            if (1..*units).contains(&fewer) {
                let mut workloads = scenario.workloads.clone();
                workloads[at] = fewer;
                all.push(Scenario { workloads, ..scenario.clone() });
            }
        }
    }
    if scenario.capacity.is_some() {
        all.push(Scenario { capacity: None, ..scenario.clone() });
    }
    if scenario.variant != Variant(0) {
        all.push(Scenario { variant: Variant(0), ..scenario.clone() });
    }
    if scenario.ttl_ms != 10_000 {
        all.push(Scenario { ttl_ms: 10_000, ..scenario.clone() });
    }
    for trouble_s in [scenario.trouble_s / 2, scenario.trouble_s * 3 / 4] {
        if (21..scenario.trouble_s).contains(&trouble_s) {
            all.push(Scenario { trouble_s, ..scenario.clone() });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Kind;

    fn breaks(when: impl Fn(&Scenario) -> bool) -> impl Fn(&Scenario) -> Option<Broken> {
        move |scenario| when(scenario).then(|| Broken { promise: "S2", at: 0, words: String::new() })
    }

    #[test]
    fn what_does_not_matter_is_taken_away() {
        let seed = (0..).find(|seed| {
            let scenario = Scenario::of(Kind::Swarm, *seed);
            let faults = scenario.faults;
            faults.has(Fault::Twins) && faults.has(Fault::Zones) && scenario.nodes > 4 && scenario.slots() > 9
        });
        let scenario = Scenario::of(Kind::Swarm, seed.unwrap());
        let judge = breaks(|scenario| {
            let faults = scenario.faults;
            faults.has(Fault::Twins) && faults.has(Fault::Zones) && scenario.nodes >= 2 && scenario.slots() >= 3
        });
        let shrunk = shrink_by(&scenario, &judge).unwrap();
        assert_eq!(shrunk.scenario.faults.to_string(), "twins zones");
        assert_eq!((shrunk.scenario.nodes, shrunk.scenario.slots()), (2, 3));
        assert!((21..43).contains(&shrunk.scenario.trouble_s));
        assert_eq!((shrunk.scenario.capacity, shrunk.scenario.variant), (None, Variant(0)));
    }

    #[test]
    fn a_smaller_world_may_need_another_seed() {
        let scenario = Scenario { seed: 1000, ..Scenario::default() };
        let judge = breaks(|scenario| scenario.nodes == 3 || scenario.seed == 17);
        let shrunk = shrink_by(&scenario, &judge).unwrap();
        assert_eq!((shrunk.scenario.seed, shrunk.scenario.nodes), (17, 1));
    }

    #[test]
    fn what_breaks_nothing_is_not_shrunk() {
        assert!(shrink_by(&Scenario::default(), &breaks(|_| false)).is_none());
    }
}
