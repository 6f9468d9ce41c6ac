//! The policy `ring` over many sets of names: how even, how much moves, and with hundreds of nodes. `-- --nocapture` prints
//! the figures.

mod placement_support;

use std::collections::{BTreeMap, BTreeSet};

use placement_support::{Dice, workload};
use rendez_core::placement::{LoadFactor, NodeSpec, Obstacle, Planner, Policy, Runs, VirtualNodes, WorkloadSpec};
use rendez_core::{NodeId, Slot};

const PARTITIONS: u32 = 1024;

/// By partition.
type Owners = Vec<NodeId>;

fn spec(weight: u32) -> NodeSpec {
    NodeSpec { weight, runs: [(workload(0), Runs::ALL)].into(), ..NodeSpec::default() }
}

fn ring(virtual_nodes: u32, nodes: &[NodeId]) -> Planner {
    let policy = Policy::Ring(VirtualNodes::new(virtual_nodes).unwrap());
    let mut planner = Planner::new(policy, LoadFactor::EXACT);
    planner.set_workload(&workload(0), WorkloadSpec { units: PARTITIONS, ..WorkloadSpec::default() });
    nodes.iter().for_each(|node| planner.set_node(node, spec(1)));
    planner
}

fn owners(planner: &mut Planner) -> Owners {
    planner.assignments().map(|(_, node)| node.unwrap().clone()).collect()
}

/// Everybody holds what is theirs.
fn hold_all(planner: &mut Planner) -> Owners {
    let owners: Vec<_> = planner.assignments().map(|(slot, node)| (slot, node.unwrap().clone())).collect();
    owners.iter().for_each(|(slot, node)| planner.set_holder(slot, Some(node)));
    owners.into_iter().map(|(_, node)| node).collect()
}

fn names(dice: &mut Dice, count: usize) -> Vec<NodeId> {
    let mut names = BTreeSet::new();
    while names.len() < count {
        names.insert(NodeId::new(format!("node-{:08x}", dice.below(u32::MAX))).unwrap());
    }
    names.into_iter().collect()
}

/// The fullest node by what it would have if all were equal.
fn fullest(owners: &Owners, nodes: usize) -> f64 {
    let mut counts: BTreeMap<&NodeId, u32> = BTreeMap::new();
    owners.iter().for_each(|node| *counts.entry(node).or_default() += 1);
    f64::from(*counts.values().max().unwrap()) * nodes as f64 / f64::from(PARTITIONS)
}

#[test]
fn no_two_sets_of_names_share_a_layout_and_the_fullest_node_is_as_full_as_arcs_make_it() {
    let dice = &mut Dice::new(1);
    // Of n nodes with v virtual nodes each, one's part scatters around 1/n by nearly 1/√v of it.
    for (virtual_nodes, mean_max, worst_max) in [(8, 1.55, 2.7), (64, 1.20, 1.6), (256, 1.10, 1.35)] {
        let rounds = 400;
        let (mut sum, mut worst) = (0.0, 0.0_f64);
        let mut layouts = BTreeSet::new();
        for _ in 0..rounds {
            let nodes = names(dice, 5);
            let owners = owners(&mut ring(virtual_nodes, &nodes));
            let full = fullest(&owners, 5);
            sum += full;
            worst = worst.max(full);
            // Who is meant by a name makes no difference here.
            layouts.insert(owners.iter().map(|node| nodes.binary_search(node).unwrap()).collect::<Vec<_>>());
        }
        let mean = sum / f64::from(rounds);
        println!("5 nodes, {virtual_nodes} virtual nodes: the fullest has {mean:.2} of its part, {worst:.2} at worst");
        assert!(mean < mean_max && worst < worst_max, "{virtual_nodes}: {mean:.3} on average, {worst:.3} at worst");
        assert_eq!(layouts.len(), rounds as usize, "layouts coincide");
    }
}

#[test]
fn who_joins_or_leaves_takes_or_gives_its_own_and_nobody_else_moves() {
    let dice = &mut Dice::new(2);
    for count in [1, 2, 5, 20] {
        for _ in 0..20 {
            let mut nodes = names(dice, count + 1);
            dice.shuffle(&mut nodes);
            let new = nodes.pop().unwrap();
            let mut planner = ring(8, &nodes);
            let before = hold_all(&mut planner);
            planner.set_node(&new, spec(1));
            let with = hold_all(&mut planner);
            for (was, is) in before.iter().zip(&with) {
                assert!(is == was || *is == new, "{was} gives to {is} as {new} comes");
            }
            assert!(with.contains(&new));
            planner.remove_node(&new);
            assert_eq!(owners(&mut planner), before, "what was its own goes back to where it was");
        }
    }
}

#[test]
fn candidates_stand_in_the_order_in_which_they_come_clockwise() {
    let nodes = names(&mut Dice::new(6), 6);
    let mut planner = ring(8, &nodes);
    for partition in [0, 17, 1023] {
        let slot = Slot::new(workload(0), partition);
        let order: Vec<NodeId> = planner.candidates(&slot).into_iter().map(|it| it.node).collect();
        // Whoever goes, the next in this order is it.
        let mut left = ring(8, &nodes);
        for node in &order {
            assert_eq!(left.desired(&slot).node(), Some(node), "{partition}: {order:?}");
            left.remove_node(node);
        }
        let against: Vec<_> = planner.candidates(&slot).into_iter().skip(1).map(|it| it.against).collect();
        assert_eq!(against, vec![Some(Obstacle::FurtherOnTheRing); 5]);
    }
}

#[test]
fn parts_follow_weights() {
    let dice = &mut Dice::new(3);
    let (mut heavy, rounds) = (0, 200);
    for _ in 0..rounds {
        let nodes = names(dice, 4);
        let mut planner = ring(64, &nodes);
        planner.set_node(&nodes[0], spec(3));
        heavy += owners(&mut planner).iter().filter(|node| **node == nodes[0]).count();
    }
    // Three of six parts.
    let part = heavy as f64 / f64::from(rounds * PARTITIONS);
    assert!((0.48..0.52).contains(&part), "{part}");
}

#[test]
fn a_heavier_node_takes_and_nobody_else_moves() {
    let nodes = names(&mut Dice::new(4), 5);
    let mut planner = ring(8, &nodes);
    let before = hold_all(&mut planner);
    planner.set_node(&nodes[0], spec(2));
    let after = owners(&mut planner);
    let moved: Vec<_> = before.iter().zip(&after).filter(|(was, is)| was != is).collect();
    assert!(!moved.is_empty() && moved.iter().all(|(_, is)| **is == nodes[0]));
    // However heavy it is, its virtual nodes are bounded.
    planner.set_node(&nodes[0], spec(u32::MAX));
    assert!(owners(&mut planner).iter().filter(|node| **node == nodes[0]).count() > 1000);
}

#[test]
fn three_hundred_nodes_come_and_go_and_each_change_moves_only_what_is_its() {
    let dice = &mut Dice::new(5);
    let mut nodes = names(dice, 300);
    dice.shuffle(&mut nodes);
    let mut planner = ring(8, &nodes[..1]);
    let mut before = hold_all(&mut planner);
    let mut moves = 0;
    for node in &nodes[1..] {
        planner.set_node(node, spec(1));
        let after = hold_all(&mut planner);
        moves += before.iter().zip(&after).filter(|(was, is)| was != is).count();
        assert!(before.iter().zip(&after).all(|(was, is)| was == is || is == node));
        before = after;
    }
    let all = fullest(&before, 300);
    println!("300 nodes, 8 virtual nodes: the fullest has {all:.2} of its part; {moves} moves as they came one by one");
    for node in &nodes[..200] {
        planner.remove_node(node);
        let after = owners(&mut planner);
        assert!(before.iter().zip(&after).all(|(was, is)| (was == node) == (was != is)));
        // The new holders take what is orphaned.
        before = hold_all(&mut planner);
    }
    let left: BTreeSet<_> = before.iter().collect();
    assert!(left.is_subset(&nodes[200..].iter().collect()));
    // As one who knows only those that are left plans it.
    assert_eq!(before, owners(&mut ring(8, &nodes[200..])));
}
