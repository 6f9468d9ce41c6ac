//! How even plans are and how much they move, over many random worlds. `-- --nocapture` prints the table.

mod placement_support;

use std::collections::BTreeMap;

use placement_support::{Dice, Plan, plan_of, workload};
use rendez_core::placement::{LoadFactor, NodeSpec, Planner, Policy, Runs, WorkloadSpec};
use rendez_core::{NodeId, WorkloadName, ZoneName};

/// A kind of world: what its workloads and nodes are like.
struct Kind {
    title: &'static str,
    workloads: fn(&mut Dice) -> Vec<WorkloadSpec>,
    nodes: u32,
    node: fn(&mut Dice, u32) -> NodeSpec,
}

/// What was measured, summed up over rounds.
#[derive(Default)]
struct Sums {
    rounds: f64,
    fullest: f64,
    emptiest: f64,
    join: f64,
    leave: f64,
    heavier: f64,
    heavier_ideal: f64,
    back: f64,
}

fn units(units: u32) -> WorkloadSpec {
    WorkloadSpec { units, ..WorkloadSpec::default() }
}

fn equal(_: &mut Dice, _: u32) -> NodeSpec {
    NodeSpec { weight: 100, ..NodeSpec::default() }
}

fn weighted(dice: &mut Dice, _: u32) -> NodeSpec {
    NodeSpec { weight: 20 * (1 + dice.below(10)), ..NodeSpec::default() }
}

fn capped(dice: &mut Dice, index: u32) -> NodeSpec {
    let mut spec = weighted(dice, index);
    // The share is 20 on average, and every third node cannot have it.
    spec.capacity = index.is_multiple_of(3).then(|| 12 + dice.below(6));
    spec
}

fn zoned(_: &mut Dice, index: u32) -> NodeSpec {
    let zone = ZoneName::new(format!("z{}", index % 3)).unwrap();
    NodeSpec { weight: 100, zone: Some(zone), ..NodeSpec::default() }
}

fn mixed(dice: &mut Dice) -> Vec<WorkloadSpec> {
    (0..20).map(|_| units(1 + dice.below(32))).collect()
}

fn mixed_in_zones(dice: &mut Dice) -> Vec<WorkloadSpec> {
    let mut workloads = mixed(dice);
    for spec in &mut workloads {
        if dice.one_in(2) {
            spec.zones.insert(ZoneName::new(format!("z{}", dice.below(3))).unwrap());
        }
    }
    workloads
}

const KINDS: [Kind; 8] = [
    Kind { title: "1 workload, 200 units, 10 nodes", workloads: |_| vec![units(200)], nodes: 10, node: equal },
    Kind { title: "20 workloads of 1 to 32, 8 nodes", workloads: mixed, nodes: 8, node: equal },
    Kind { title: "150 workloads of 1, 10 nodes", workloads: |_| vec![units(1); 150], nodes: 10, node: equal },
    Kind { title: "12 units, 4 to 5 nodes", workloads: |_| vec![units(12)], nodes: 4, node: equal },
    Kind { title: "200 units, weights 1 to 10", workloads: |_| vec![units(200)], nodes: 10, node: weighted },
    Kind { title: "20 workloads, weights 1 to 10", workloads: mixed, nodes: 8, node: weighted },
    Kind { title: "200 units, weights, capacities", workloads: |_| vec![units(200)], nodes: 10, node: capped },
    Kind { title: "20 workloads, half in one of 3 zones", workloads: mixed_in_zones, nodes: 9, node: zoned },
];

type Shares = BTreeMap<Option<WorkloadName>, BTreeMap<NodeId, f64>>;

struct World {
    planner: Planner,
    workloads: BTreeMap<WorkloadName, WorkloadSpec>,
    specs: BTreeMap<NodeId, NodeSpec>,
    plan: Plan,
}

impl World {
    fn set(&mut self, id: &NodeId, spec: NodeSpec) {
        self.planner.set_node(id, spec.clone());
        self.specs.insert(id.clone(), spec);
    }

    fn remove(&mut self, id: &NodeId) {
        self.planner.remove_node(id);
        self.specs.remove(id);
    }

    /// Each node's share of all workloads together, under no name, and of each workload.
    fn shares(&mut self) -> Shares {
        let mut shares: Shares =
            [(None, self.planner.summary().into_iter().map(|it| (it.node, it.share)).collect())].into();
        // Parts of workloads are known without a planner only where nothing else keeps nodes from them.
        let capped = self.specs.values().any(|node| node.capacity.is_some());
        for (name, spec) in self.workloads.iter().filter(|_| !capped) {
            let zones = &spec.zones;
            let fits =
                |node: &NodeSpec| zones.is_empty() || node.zone.as_ref().is_some_and(|zone| zones.contains(zone));
            let takers: BTreeMap<_, _> = self.specs.iter().filter(|(_, node)| fits(node)).collect();
            let whole: u32 = takers.values().map(|node| node.weight).sum();
            let part = |node: &NodeSpec| f64::from(spec.units) * f64::from(node.weight) / f64::from(whole);
            shares.insert(Some(name.clone()), takers.iter().map(|(id, node)| ((*id).clone(), part(node))).collect());
        }
        shares
    }

    /// Lets everybody hold what they should; returns how many slots went from one node to another.
    fn settle(&mut self) -> f64 {
        let plan = plan_of(&mut self.planner);
        for (slot, owner) in &plan {
            self.planner.set_holder(slot, owner.as_ref());
        }
        let moved = plan.iter().filter(|(slot, owner)| self.plan.get(*slot).is_some_and(|known| known != *owner));
        let moved = moved.count() as f64;
        assert_eq!(plan_of(&mut self.planner), plan, "a plan is its own fixed point");
        self.plan = plan;
        moved
    }

    fn spread(&mut self, sums: &mut Sums) {
        let relative = self.planner.summary().into_iter().filter(|it| it.share > 0.0);
        let relative: Vec<_> = relative.map(|it| f64::from(it.desired) / it.share).collect();
        sums.fullest += relative.iter().copied().fold(f64::MIN, f64::max);
        sums.emptiest += relative.iter().copied().fold(f64::MAX, f64::min);
        sums.rounds += 1.0;
    }
}

/// The fewest slots that can move when shares change so: what nodes gain of all together, or of each workload.
fn ideal(before: &Shares, after: &Shares) -> f64 {
    let gains = after.iter().map(|(name, after)| {
        let gain = |id, share| share - before.get(name).and_then(|before| before.get(id)).copied().unwrap_or(0.0);
        (name.is_none(), after.iter().map(|(id, share)| gain(id, share).max(0.0)).sum::<f64>())
    });
    let (together, apart): (Vec<_>, Vec<_>) = gains.partition(|(together, _)| *together);
    let sum = |gains: Vec<(bool, f64)>| gains.into_iter().map(|(_, gain)| gain).sum::<f64>();
    sum(together).max(sum(apart))
}

fn measure(kind: &Kind, worlds: u64) -> Sums {
    let mut sums = Sums::default();
    for seed in 0..worlds {
        let dice = &mut Dice::new(seed * 77 + 5);
        let workloads = (kind.workloads)(dice);
        let runs: BTreeMap<_, _> = (0..workloads.len() as u32).map(|index| (workload(index), Runs::ALL)).collect();
        let node = |dice: &mut Dice, index| NodeSpec { runs: runs.clone(), ..(kind.node)(dice, index) };
        let planner = Planner::new(Policy::Balanced, LoadFactor::EXACT);
        let mut world = World { planner, workloads: BTreeMap::new(), specs: BTreeMap::new(), plan: Plan::new() };
        for (index, spec) in (0..).zip(workloads) {
            world.planner.set_workload(&workload(index), spec.clone());
            world.workloads.insert(workload(index), spec);
        }
        let id = |index| NodeId::new(format!("{seed}-node-{index}")).unwrap();
        for index in 0..kind.nodes {
            let spec = node(dice, index);
            world.set(&id(index), spec);
        }
        world.settle();
        for round in 0..4 {
            let (newcomer, spec) = (id(kind.nodes + round), node(dice, kind.nodes + round));
            let before = world.shares();
            world.set(&newcomer, spec);
            let fewest = ideal(&before, &world.shares());
            sums.join += world.settle() / fewest;
            world.spread(&mut sums);

            let heavy = world.specs.keys().nth(dice.below(kind.nodes) as usize).unwrap().clone();
            let (usual, before) = (world.specs[&heavy].clone(), world.shares());
            world.set(&heavy, NodeSpec { weight: usual.weight + usual.weight / 20, ..usual.clone() });
            sums.heavier_ideal += ideal(&before, &world.shares());
            sums.heavier += world.settle();
            world.set(&heavy, usual);
            world.settle();

            let gone = world.specs.keys().nth(dice.below(kind.nodes) as usize).unwrap().clone();
            let (spec, had) = (world.specs[&gone].clone(), world.plan.clone());
            let had: Vec<_> = had.into_iter().filter(|(_, owner)| owner.as_ref() == Some(&gone)).collect();
            let before = world.shares();
            world.remove(&gone);
            let fewest = ideal(&before, &world.shares()).max(had.len() as f64);
            sums.leave += world.settle() / fewest;
            world.set(&gone, spec);
            world.settle();
            let back = had.iter().filter(|(slot, _)| world.plan[slot].as_ref() == Some(&gone)).count();
            sums.back += back as f64 / had.len().max(1) as f64;
            let last = world.specs.keys().nth(dice.below(kind.nodes) as usize).unwrap().clone();
            world.remove(&last);
            world.settle();
        }
    }
    sums
}

#[test]
fn plans_are_even_and_move_little() {
    println!(
        "| load factor 1.0 | fullest ÷ share | emptiest | join: moves ÷ ideal | leave | weight +5 %: moves (ideal) | back to a returning node |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for kind in &KINDS {
        let sums = measure(kind, 8);
        let mean = |sum: f64| sum / sums.rounds;
        println!(
            "| {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} ({:.2}) | {:.0} % |",
            kind.title,
            mean(sums.fullest),
            mean(sums.emptiest),
            mean(sums.join),
            mean(sums.leave),
            mean(sums.heavier),
            mean(sums.heavier_ideal),
            100.0 * mean(sums.back),
        );
        assert!(mean(sums.join) <= 1.1, "{}: a join moves {:.2} times the ideal", kind.title, mean(sums.join));
        assert!(mean(sums.leave) <= 1.1, "{}: a leave moves {:.2} times the ideal", kind.title, mean(sums.leave));
        assert!(mean(sums.heavier) <= mean(sums.heavier_ideal) + 1.5, "{}: a weight moves too much", kind.title);
    }
}
