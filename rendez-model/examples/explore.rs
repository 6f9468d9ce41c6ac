//! Explores the protocol in a world of one's own choice, and prints what was found.
//!
//! `explore NODES SLOTS [key=value ...] [depth=N]`: the keys are those of `Bounds` (`sessions`, `grants`,
//! `requests`, `replies`, `crashes`, `ttl`, `offer_ttl`, and `opened`, `duplicates`, `handoffs`, `giving_up`, `late`, `note_how`, `alike`, `eager` with 0 or 1).

use std::time::Instant;

use rendez_model::{Bounds, Protocol};
use stateright::{Checker, Model};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |word: &str| -> u8 { word.parse().unwrap_or_else(|_| panic!("{word:?} is no number up to 255")) };
    let (keyed, sizes): (Vec<&String>, Vec<&String>) = words.iter().partition(|word| word.contains('='));
    let size = |at: usize| sizes.get(at).map_or(2, |word| usize::from(number(word)));
    let mut bounds = Bounds::new(size(0), size(1));
    let mut depth = 0;
    for (key, value) in keyed.iter().filter_map(|word| word.split_once('=')) {
        let value = number(value);
        match key {
            "sessions" => bounds.sessions_max = value,
            "grants" => bounds.grants_max = value,
            "requests" => bounds.requests_max = value.into(),
            "replies" => bounds.replies_max = value.into(),
            "crashes" => bounds.crashes_max = value,
            "ttl" => bounds.ttl = value,
            "offer_ttl" => bounds.offer_ttl = value,
            "opened" => bounds.opened = value > 0,
            "note_how" => bounds.note_how = value > 0,
            "alike" => bounds.alike = value > 0,
            "eager" => bounds.eager = value > 0,
            "duplicates" => bounds.duplicates = value > 0,
            "handoffs" => bounds.handoffs = value > 0,
            "giving_up" => bounds.giving_up = value > 0,
            "late" => bounds.late_expiry = value > 0,
            "depth" => depth = usize::from(value),
            _ => panic!("the key {key:?} is unknown"),
        }
    }
    println!("{bounds:?}");
    let mut checker = Protocol::new(bounds).checker();
    if depth > 0 {
        checker = checker.target_max_depth(depth);
    }
    let began = Instant::now();
    let checker = checker.spawn_bfs().join();
    println!(
        "{} states, {} steps, depth {}, {:.1} s, {}",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        began.elapsed().as_secs_f64(),
        if depth == 0 { "all of them" } else { "all of them to that depth" }
    );
    for (name, path) in checker.discoveries() {
        let acts = path.into_actions();
        println!("\n{name} ({} steps)", acts.len());
        acts.iter().for_each(|act| println!("  {act:?}"));
    }
}
