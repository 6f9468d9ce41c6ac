//! Worlds whose policy is `ring`: all that can go wrong, and hundreds of nodes.

use std::collections::BTreeSet;

use rendez_sim::run::run;
use rendez_sim::{Kind, Scenario, Variant, World};

fn ring(scenario: Scenario) -> Scenario {
    // In place of the policy that the seed has drawn, beside whatever else it has.
    Scenario { variant: scenario.variant.with_policy(Variant::RING), ..scenario }
}

#[test]
fn promises_hold_on_a_ring_whatever_goes_wrong() {
    let mut happened = BTreeSet::new();
    for kind in Kind::ALL {
        for seed in 1..=60 {
            let scenario = ring(Scenario::of(kind, seed));
            let outcome = run(&scenario);
            assert_eq!(outcome.broken, None, "{kind} {seed}:\n{scenario}");
            happened.extend(outcome.happened.iter());
        }
    }
    assert!(happened.len() > 15, "only {happened:?} have happened");
}

#[test]
fn two_hundred_nodes_share_a_thousand_partitions_and_take_over_from_one_that_dies() {
    let scenario = ring(Scenario { nodes: 200, workloads: vec![1024], ..Scenario::default() });
    let mut world = World::new(scenario, false);
    world.run_for(120);
    assert_eq!(world.broken(), None);
    let shares = world.shares();
    assert_eq!(shares.iter().sum::<usize>(), 1024);
    let fullest = (0..shares.len()).max_by_key(|node| shares[*node]).unwrap();
    world.kill(fullest);
    world.run_for(60);
    assert_eq!(world.broken(), None);
    assert_eq!(world.shares().iter().sum::<usize>(), 1024);
}
