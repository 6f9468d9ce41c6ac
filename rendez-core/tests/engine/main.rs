//! The engine under property tests in virtual time: seeded worlds with faults, the promises checked after each step.
//!
//! `RENDEZ_SEEDS=1000 cargo test -p rendez-core --test engine` tries more seeds; a failure prints its scenario, and with
//! `RENDEZ_TRACE=1` what led to it.

mod world;

use proptest::prelude::*;
use world::{Faults, Scenario, World};

const S: u64 = 1_000_000_000;

fn run(scenario: Scenario) -> World {
    let mut world = World::new(scenario);
    world.run_until(150 * S);
    world.heal_and_check();
    world
}

#[test]
fn three_nodes_share_twelve_slots_evenly_and_nothing_moves_without_need() {
    let world = run(Scenario { seed: 1, nodes: 3, workloads: vec![12], capacity: None, faults: Faults::default() });
    assert_eq!(world.shares(), [4, 4, 4]);
}

#[test]
fn no_room_anywhere_leaves_the_rest_without_an_owner_and_the_caps_hold() {
    let world = run(Scenario { seed: 2, nodes: 3, workloads: vec![12], capacity: Some(3), faults: Faults::default() });
    assert_eq!(world.shares(), [3, 3, 3]);
}

fn scenarios() -> impl Strategy<Value = Scenario> {
    let faults = (any::<u64>(), any::<u16>()).prop_map(|(_, bits)| Faults {
        crashes: bits & 1 != 0,
        pauses: bits & 2 != 0,
        messages: bits & 4 != 0,
        outages: bits & 8 != 0,
        losses: bits & 16 != 0,
        runners: bits & 32 != 0,
        shutdowns: bits & 64 != 0,
        hints: bits & 128 != 0,
        clocks: bits & 256 != 0,
    });
    (any::<u64>(), 1usize..5, prop::collection::vec(1u32..6, 1..4), prop::option::of(2u32..6), faults)
        .prop_map(|(seed, nodes, workloads, capacity, faults)| Scenario { seed, nodes, workloads, capacity, faults })
}

fn seeds() -> u32 {
    std::env::var("RENDEZ_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(150)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: seeds(), max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn promises_hold_in_every_world(scenario in scenarios()) {
        run(scenario);
    }
}
