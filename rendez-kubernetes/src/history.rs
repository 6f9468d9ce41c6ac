//! Whether the data are those that the nodes know, and what is written when they are not.
//!
//! Decides only; `cluster.rs` reads and writes.

use std::time::Duration;

use rendez_core::{Generation, Heard, Known, Lineage, TOKEN_FLOOR_STEP, TOKEN_MAX};

use crate::encode::{LAYOUT, Meta, Quiet};

/// What is found in the store, and what this process remembers of it.
#[derive(Debug, Clone)]
pub(crate) struct Found<'a> {
    pub(crate) meta: Option<&'a Meta>,
    /// The server has forgotten what it told this process before.
    pub(crate) went_back: bool,
    /// The largest token that this process has seen in these data.
    pub(crate) seen: u64,
}

/// Compares what is found with what a node knows. Answers what is to be written; nothing in ordinary times.
///
/// `clock` is the wall clock in microseconds: tokens of fresh data begin above it, so that they do not fall when a
/// cluster's data are gone with everybody who remembers them. `quiet_time` is how long a quiet time must last.
pub(crate) fn judge(
    found: &Found<'_>,
    known: &Known,
    fresh: Generation,
    clock: u64,
    quiet_time: Duration,
) -> Option<Meta> {
    let reported = known.token.get().min(TOKEN_MAX);
    let Some(meta) = found.meta else {
        let mut lineage = Lineage::new(fresh);
        let lost = known.generation.is_some();
        known.generation.into_iter().for_each(|reported| lineage.remember(reported));
        let floor = if lost { above(clock.max(reported).max(found.seen)) } else { reported };
        let quiet = lost.then(|| Quiet::new(quiet_time));
        return Some(Meta { layout: LAYOUT, lineage, floor, opened: false, quiet });
    };
    let heard = meta.lineage.hear(known);
    let mut after = meta.clone();
    if reported > meta.floor.max(found.seen) {
        after.floor = reported;
    }
    if heard == Heard::Unknown || found.went_back {
        after.lineage.renew(fresh);
        known.generation.into_iter().for_each(|reported| after.lineage.remember(reported));
        after.floor = above(after.floor.max(found.seen).max(reported).max(clock));
        after.quiet = Some(Quiet::new(quiet_time));
        return Some(after);
    }
    if heard == Heard::Ancestor && after.quiet.is_some_and(|standing| quiet_time > standing.lasts) {
        after.quiet = Some(Quiet::new(quiet_time));
    }
    (after != *meta).then_some(after)
}

fn above(token: u64) -> u64 {
    (token + TOKEN_FLOOR_STEP).min(TOKEN_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rendez_core::FencingToken;

    const QUIET: Duration = Duration::from_secs(11);
    const CLOCK: u64 = 1_000_000;

    fn generation(number: u128) -> Generation {
        Generation::from_bits(number)
    }

    fn known(number: Option<u128>, token: u64) -> Known {
        let generation = number.map(generation);
        Known { generation, token: FencingToken::new(token), session_ttl_max: Duration::ZERO }
    }

    fn found(meta: Option<&Meta>) -> Found<'_> {
        Found { meta, went_back: false, seen: 0 }
    }

    fn ask(found: &Found<'_>, known: &Known) -> Option<Meta> {
        judge(found, known, generation(99), CLOCK, QUIET)
    }

    fn fresh() -> Meta {
        ask(&found(None), &known(None, 0)).unwrap()
    }

    #[test]
    fn fresh_data_wait_only_if_somebody_knew_others() {
        assert_eq!(fresh().quiet, None);
        let meta = ask(&found(None), &known(Some(7), 5 * CLOCK)).unwrap();
        assert!(meta.floor >= 5 * CLOCK + TOKEN_FLOOR_STEP);
        assert_eq!(meta.quiet.unwrap().lasts, QUIET);
        assert_eq!(meta.lineage.hear(&known(Some(7), 0)), Heard::Ancestor);
    }

    #[test]
    fn in_ordinary_times_nothing_is_written() {
        let meta = fresh();
        assert_eq!(ask(&found(Some(&meta)), &known(None, 0)), None);
        assert_eq!(ask(&Found { seen: 50, ..found(Some(&meta)) }, &known(Some(99), 50)), None);
        let raised = ask(&found(Some(&meta)), &known(Some(99), 60)).unwrap();
        assert_eq!((raised.floor, raised.quiet), (60, None));
    }

    #[test]
    fn other_data_are_a_new_generation_above_every_token_that_anybody_knows() {
        let meta = fresh();
        let gone_back = Found { went_back: true, seen: 5 * CLOCK, ..found(Some(&meta)) };
        for (found, known) in [(&found(Some(&meta)), known(Some(7), 0)), (&gone_back, known(Some(99), 6 * CLOCK))] {
            let after = judge(found, &known, generation(100), CLOCK, QUIET).unwrap();
            assert_eq!((after.lineage.generation(), after.quiet.unwrap().lasts), (generation(100), QUIET));
            assert!(after.floor >= found.seen.max(known.token.get()) + TOKEN_FLOOR_STEP);
            // The next who comes from before finds that it is known.
            let again = Found { meta: Some(&after), went_back: false, ..found.clone() };
            assert_eq!(ask(&again, &known), None);
        }
    }

    #[test]
    fn who_comes_from_before_with_a_longer_session_lengthens_the_quiet_time() {
        let mut meta = fresh();
        meta.lineage.renew(generation(100));
        let mut quiet = |lasts: Option<Duration>| {
            meta.quiet = lasts.map(Quiet::new);
            meta.clone()
        };
        assert_eq!(ask(&found(Some(&quiet(Some(QUIET)))), &known(Some(99), 0)), None);
        let short = quiet(Some(QUIET / 2));
        assert_eq!(ask(&found(Some(&short)), &known(Some(99), 0)).unwrap().quiet.unwrap().lasts, QUIET);
        assert_eq!(ask(&found(Some(&short)), &known(Some(100), 0)), None);
        assert_eq!(ask(&found(Some(&quiet(None))), &known(Some(99), 0)), None, "it is over");
    }
}
