//! Planted mistakes: the checker must find what each of them breaks.

use rendez_model::{Bounds, Fault, PROMISES, Protocol};
use stateright::{Checker, HasDiscoveries, Model};

const S1: &str = PROMISES[0];
const S2: &str = PROMISES[1];
const S4: &str = PROMISES[2];
const S5: &str = PROMISES[3];
const S6: &str = PROMISES[4];
const S8: &str = PROMISES[5];
const S9: &str = PROMISES[6];

/// Two nodes that have their sessions, and one slot.
fn small() -> Bounds {
    Bounds { opened: true, giving_up: false, handoffs: false, late_expiry: false, ..Bounds::new(2, 1) }
}

/// A mistake may break several promises; this one it must break.
fn breaks(fault: Fault, promise: &'static str, bounds: Bounds) {
    let model = Protocol::new(Bounds { fault: Some(fault), ..bounds });
    let checker = model.checker().finish_when(HasDiscoveries::AllOf([promise].into())).spawn_bfs().join();
    let states = checker.unique_state_count();
    let path =
        checker.discovery(promise).unwrap_or_else(|| panic!("{fault:?} does not break {promise} in {states} states"));
    println!("{fault:?}: {promise}, after {states} states, in {} steps", path.into_actions().len());
}

#[test]
fn each_planted_mistake_is_found() {
    let handoffs = Bounds { handoffs: true, ..small() };
    for (fault, promise, bounds) in [
        (Fault::HandsOverBeforeStop, S6, handoffs),
        (Fault::DeadlineFromReply, S2, small()),
        (Fault::ExtendsUnanswered, S2, small()),
        (Fault::FloorForgotten, S2, Bounds { giving_up: true, replies_max: 2, ..small() }),
        (Fault::StartsOnOffer, S2, handoffs),
        (Fault::RetryGrantsAgain, S9, small()),
        (Fault::TransferToTheDead, S1, Bounds { offer_ttl: 2, ..handoffs }),
        (Fault::HolderNotLookedAt, S5, Bounds { eager: true, ..small() }),
        (Fault::TokenNotRaised, S4, Bounds { giving_up: true, ..small() }),
        (Fault::TokenNotCompared, S8, Bounds { giving_up: true, requests_max: 2, ..small() }),
        (Fault::OpeningRetriedDoesNotExtend, S2, Bounds { opened: false, ..small() }),
        (Fault::SessionsEndEarly, S2, small()),
    ] {
        breaks(fault, promise, bounds);
    }
}

#[test]
fn no_mistake_is_left_out() {
    let named = include_str!("faults.rs");
    for fault in Fault::ALL {
        assert!(named.contains(&format!("(Fault::{fault:?}, ")), "{fault:?} is not looked for");
    }
}
