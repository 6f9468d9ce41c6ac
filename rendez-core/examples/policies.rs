//! The policies side by side: how even they are, and what a node that comes or goes moves. Prints a table in Markdown.
//!
//! `cargo run --release -p rendez-core --example policies`; with `-- --small`, fewer rounds and nodes.
//!
//! All rows have 1024 units of one workload, nodes of equal weight, and the same random names. Parts are measured against
//! the mean: the fullest and the emptiest node. A join ideally moves `units / nodes` with the new node counted, a leave what
//! the node had; `moved by others` is what neither came from nor went to the node that changed. Times are of one planner that
//! works out a plan from scratch, and after one node has changed.

use std::hint::black_box;
use std::time::{Duration, Instant};

use rendez_core::placement::{LoadFactor, NodeSpec, Planner, Runs, WorkloadSpec};
use rendez_core::{NodeId, Slot, WorkloadName};

const UNITS: u32 = 1024;

/// A policy, and the most that a node may have in thousandths of the mean, if there is a cap.
struct Row {
    title: &'static str,
    policy: &'static str,
    cap: Option<u32>,
}

const ROWS: [Row; 8] = [
    Row { title: "ring, 8 virtual nodes", policy: "ring:8", cap: None },
    Row { title: "ring, 64", policy: "ring:64", cap: None },
    Row { title: "ring, 256", policy: "ring:256", cap: None },
    Row { title: "ring, 8, cap 1.25", policy: "ring:8", cap: Some(1250) },
    Row { title: "rendezvous", policy: "rendezvous", cap: None },
    Row { title: "rendezvous, cap 1.25", policy: "rendezvous", cap: Some(1250) },
    Row { title: "balanced, load factor 1.25", policy: "balanced", cap: None },
    Row { title: "balanced", policy: "balanced", cap: None },
];

#[derive(Default)]
struct Sums {
    fullest: f64,
    worst: f64,
    emptiest: f64,
    join: f64,
    join_others: f64,
    leave: f64,
    leave_others: f64,
    full: Duration,
    change: Duration,
}

fn main() {
    let small = std::env::args().any(|arg| arg == "--small");
    let sizes: &[(u32, u32)] = if small { &[(5, 3), (20, 1)] } else { &[(5, 200), (20, 100), (300, 10)] };
    for (nodes, rounds) in sizes {
        println!("\n{nodes} nodes, {UNITS} units, {rounds} sets of names\n");
        println!(
            "| policy | fullest (worst) | emptiest | join: moved / ideal | by others | leave: moved / ideal | by others | \
             plan from scratch | after a change |"
        );
        println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
        for row in &ROWS {
            let mut dice = 0x5EED;
            let mut sums = Sums::default();
            (0..*rounds).for_each(|_| round(row, *nodes, &mut dice, &mut sums));
            let mean = |sum: f64| sum / f64::from(*rounds);
            println!(
                "| {} | {:.2} ({:.2}) | {:.2} | {:.2} | {:.1} | {:.2} | {:.1} | {:.2?} | {:.2?} |",
                row.title,
                mean(sums.fullest),
                sums.worst,
                mean(sums.emptiest),
                mean(sums.join),
                mean(sums.join_others),
                mean(sums.leave),
                mean(sums.leave_others),
                sums.full / *rounds,
                sums.change / *rounds,
            );
        }
    }
}

fn round(row: &Row, nodes: u32, dice: &mut u64, sums: &mut Sums) {
    let workload = WorkloadName::new("partitions").expect("a plain name");
    let names: Vec<NodeId> = (0..=nodes).map(|_| name(dice)).collect();
    let (new, old) = names.split_last().expect("there is one");
    let spec = || NodeSpec { runs: [(workload.clone(), Runs::ALL)].into(), ..NodeSpec::default() };
    let units = |nodes: u32| WorkloadSpec {
        units: UNITS,
        cap_per_node: row.cap.map(|cap| (UNITS * cap).div_ceil(1000 * nodes)),
        ..WorkloadSpec::default()
    };
    let factor = if row.title.contains("load factor") { 1250 } else { 1000 };
    let factor = LoadFactor::from_permille(factor).expect("it is permitted");
    let policy = row.policy.parse().expect("there is such a policy");
    let mut planner = Planner::new(policy, factor);
    planner.set_workload(&workload, units(nodes));
    old.iter().for_each(|node| planner.set_node(node, spec()));
    sums.full += timed(&mut planner);
    let before = hold_all(&mut planner);

    let part = f64::from(UNITS) / f64::from(nodes);
    let counts = || old.iter().map(|node| before.iter().filter(|owner| *owner == node).count() as f64 / part);
    let fullest = counts().fold(0.0, f64::max);
    sums.fullest += fullest;
    sums.worst = sums.worst.max(fullest);
    sums.emptiest += counts().fold(f64::MAX, f64::min);

    // An operator who caps nodes keeps the cap in step with their number.
    planner.set_workload(&workload, units(nodes + 1));
    planner.set_node(new, spec());
    sums.change += timed(&mut planner);
    let with = hold_all(&mut planner);
    let (moved, others) = moves(&before, &with, new);
    sums.join += f64::from(moved) / (f64::from(UNITS) / f64::from(nodes + 1));
    sums.join_others += f64::from(others);

    let has = with.iter().filter(|owner| *owner == new).count().max(1) as f64;
    planner.set_workload(&workload, units(nodes));
    planner.remove_node(new);
    let (moved, others) = moves(&with, &owners(&mut planner), new);
    sums.leave += f64::from(moved) / has;
    sums.leave_others += f64::from(others);
}

/// How many have moved, and how many of them neither from nor to this node.
fn moves(before: &[NodeId], after: &[NodeId], changed: &NodeId) -> (u32, u32) {
    let moved = || before.iter().zip(after).filter(|(was, is)| was != is);
    (moved().count() as u32, moved().filter(|(was, is)| *was != changed && *is != changed).count() as u32)
}

fn owners(planner: &mut Planner) -> Vec<NodeId> {
    planner.assignments().filter_map(|(_, node)| node.cloned()).collect()
}

fn hold_all(planner: &mut Planner) -> Vec<NodeId> {
    let all: Vec<(Slot, NodeId)> =
        planner.assignments().filter_map(|(slot, node)| Some((slot, node?.clone()))).collect();
    all.iter().for_each(|(slot, node)| planner.set_holder(slot, Some(node)));
    all.into_iter().map(|(_, node)| node).collect()
}

fn timed(planner: &mut Planner) -> Duration {
    let begin = Instant::now();
    black_box(planner.wanted().len());
    begin.elapsed()
}

/// `node-` and eight letters, as nodes name themselves.
fn name(dice: &mut u64) -> NodeId {
    let mut letter = || {
        *dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'a' + ((*dice >> 33) % 26) as u8)
    };
    NodeId::new((0..8).fold("node-".to_owned(), |name, _| name + &letter().to_string())).expect("a plain name")
}
