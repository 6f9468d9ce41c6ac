//! Prints what a rolling update does to the slots: `rolling NODES SLOTS SECONDS`, with so many seconds from the return of one
//! node to the end of the next.

use std::time::Duration;

use rendez_sim::Variant;
use rendez_sim::figures::rolling_update;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, otherwise: u32| words.get(at).map_or(otherwise, |word| word.parse().expect("a number"));
    let (nodes, slots, between_s) = (number(0, 20), number(1, 2000), number(2, 2));
    println!("{nodes} nodes, {slots} slots, each node shut down and started again in turn, {between_s} s apart");
    for (words, variant) in [
        ("the rules that ship", 0),
        ("rendezvous, with stabilizers", Variant::RENDEZVOUS),
        ("balanced, moves at once", Variant::AT_ONCE),
        ("rendezvous, moves at once", Variant::RENDEZVOUS | Variant::AT_ONCE),
    ] {
        match rolling_update(nodes as usize, slots, between_s.into(), Variant(variant)) {
            Ok(rolling) => {
                let ms = |nanos: u64| Duration::from_nanos(nanos).as_secs_f64() * 1000.0;
                println!(
                    "{words:<30} moves a slot: median {}, max {} ({:.2} on average); without an owner: median {:.1} ms, max \
                     {:.1} ms; over after {:.0} s",
                    rolling.moves.0,
                    rolling.moves.1,
                    rolling.moves_in_all as f64 / f64::from(slots.max(1)),
                    ms(rolling.gap.0),
                    ms(rolling.gap.1),
                    ms(rolling.took) / 1000.0
                );
            }
            Err(why) => println!("{words:<30} {why}"),
        }
    }
}
