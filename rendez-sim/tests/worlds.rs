//! Whole worlds: the promises hold in all of them, and a seed means one world.

use std::fs;
use std::path::Path;

use rendez_sim::corpus::CASES;
use rendez_sim::run::{Many, run, run_many};
use rendez_sim::{Kind, Scenario, World};

fn shares(scenario: Scenario) -> Vec<usize> {
    let mut world = World::new(scenario, false);
    world.run_for(150);
    assert_eq!(world.broken(), None);
    world.shares()
}

#[test]
fn three_nodes_share_twelve_slots_evenly_and_nothing_moves_without_need() {
    assert_eq!(shares(Scenario::default()), [4, 4, 4]);
    assert_eq!(run(&Scenario::default()).broken, None);
}

#[test]
fn no_room_anywhere_leaves_the_rest_without_an_owner_and_the_caps_hold() {
    let scenario = Scenario { seed: 2, capacity: Some(3), ..Scenario::default() };
    assert_eq!(shares(scenario.clone()), [3, 3, 3]);
    assert_eq!(run(&scenario).broken, None);
}

#[test]
fn seeds_that_broke_a_promise_stay_mended() {
    for case in CASES {
        assert_eq!(run(&Scenario::of(case.kind, case.seed)).broken, None, "{case:?}");
    }
    let mut scenarios = 0;
    for file in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")).unwrap() {
        let path = file.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("# "), "{} says why it is here", path.display());
        assert_eq!(run(&text.parse().unwrap()).broken, None, "{}", path.display());
        scenarios += 1;
    }
    assert!(scenarios > 0);
}

#[test]
fn promises_hold_in_some_worlds_of_each_kind() {
    for kind in Kind::ALL {
        let summary = run_many(&Many { broken_max: 1, ..Many::new(kind, 1, 200) }, |_| true);
        assert!(summary.broken.is_empty(), "{kind}: {:?}", summary.broken);
        assert!(summary.twice > 0 && summary.seeds == 200);
    }
}

#[test]
fn threads_change_nothing() {
    let of = |threads| {
        let summary = run_many(&Many { threads, ..Many::new(Kind::Swarm, 7, 24) }, |_| true);
        (summary.seeds, summary.steps, summary.alone, summary.pairs, summary.overlap)
    };
    assert_eq!(of(1), of(3));
}
