//! The promises hold in every state of these worlds. Each is small enough for a test; `examples/explore.rs` takes
//! larger ones.

use rendez_model::{Bounds, EXAMPLES, PROMISES, Protocol};
use stateright::{Checker, HasDiscoveries, Model};

/// Explores a world to its last state, or to a depth, and insists on so many states: a world that has shrunk proves less.
fn holds(bounds: Bounds, depth: Option<usize>, at_least: usize) {
    let checker = Protocol::new(bounds).checker();
    let checker = depth.map_or_else(|| Protocol::new(bounds).checker(), |depth| checker.target_max_depth(depth));
    let checker = checker.spawn_bfs().join();
    for promise in PROMISES {
        if let Some(path) = checker.discovery(promise) {
            panic!("{promise} is broken: {:#?}", path.into_actions());
        }
    }
    let (states, depth) = (checker.unique_state_count(), checker.max_depth());
    println!("{states} states, depth {depth}");
    assert!(states >= at_least, "only {states} states");
}

/// Whatever two nodes and a lossy network that doubles can do with one slot, from the first opening on, where the store
/// notices ends late.
#[test]
fn openings_expiry_and_retries() {
    holds(Bounds { handoffs: false, giving_up: false, ..Bounds::new(2, 1) }, None, 20_000);
}

#[test]
fn crashes_and_second_sessions() {
    let bounds =
        Bounds { handoffs: false, giving_up: false, duplicates: false, late_expiry: false, ..Bounds::new(2, 1) };
    holds(Bounds { sessions_max: 2, crashes_max: 1, grants_max: 1, ..bounds }, None, 200_000);
}

#[test]
fn handoffs() {
    let bounds = Bounds { opened: true, giving_up: false, duplicates: false, late_expiry: false, ..Bounds::new(2, 1) };
    holds(bounds, None, 50_000);
}

/// Three nodes, two slots, everything: to a depth only.
#[test]
fn three_nodes_and_two_slots() {
    holds(Bounds { opened: true, eager: true, ..Bounds::new(3, 2) }, Some(9), 10_000);
}

#[test]
fn names_do_not_matter() {
    let bounds = Bounds { handoffs: false, giving_up: false, grants_max: 1, late_expiry: false, ..Bounds::new(2, 1) };
    let count = |alike| {
        let checker = Protocol::new(Bounds { alike, ..bounds }).checker().spawn_bfs().join();
        checker.unique_state_count()
    };
    let (one_for_all, each) = (count(true), count(false));
    assert!(one_for_all < each && each <= 2 * one_for_all, "{one_for_all} stand for {each}");
}

/// The model is not empty: what it is about does happen.
#[test]
fn what_shall_happen_can_happen() {
    let bounds = Bounds { opened: true, late_expiry: false, duplicates: false, note_how: true, ..Bounds::new(2, 1) };
    let wanted = HasDiscoveries::AllOf(EXAMPLES.into_iter().collect());
    let checker = Protocol::new(bounds).checker().finish_when(wanted).spawn_bfs().join();
    for example in EXAMPLES {
        assert!(checker.discovery(example).is_some(), "{example}: never");
    }
}
