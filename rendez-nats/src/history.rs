//! Whether the data are those that the nodes know, and what is written when they are not.
//!
//! Decides only; `cluster.rs` reads and writes.

use std::time::Duration;

use rendez_core::{Generation, Heard, Known, Lineage, TOKEN_FLOOR_STEP, TOKEN_MAX};

use crate::encode::{LAYOUT, Meta};

/// What is found in the store, and what this process remembers of it.
#[derive(Debug, Clone)]
pub(crate) struct Found<'a> {
    pub(crate) cluster: &'a str,
    pub(crate) meta: Option<&'a Meta>,
    /// The sequence of the write that proves it fresh.
    pub(crate) revision: u64,
    /// When the bucket that answered was made: another bucket of that name has another time.
    pub(crate) bucket: u64,
    /// How long the standing quiet time was meant to last.
    pub(crate) quiet: Option<Duration>,
    /// The server has forgotten what it told this process before.
    pub(crate) went_back: bool,
    /// The largest token, and the latest revision, that this process has seen in these data.
    pub(crate) seen: (u64, u64),
}

/// What is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) meta: Meta,
    /// The quiet time that begins.
    pub(crate) quiet: Option<Duration>,
}

/// Compares what is found with what a node knows. Nothing is to be written in ordinary times.
///
/// `clock` is the server's clock in microseconds: fresh data begin with it as the tokens' base, so that tokens do not fall
/// when a cluster's data are gone with everybody who remembers them. `quiet_time` is how long a quiet time must last.
pub(crate) fn judge(
    found: &Found<'_>,
    known: &Known,
    fresh: Generation,
    clock: u64,
    quiet_time: Duration,
) -> Option<Verdict> {
    let floor = |token: u64| token.saturating_sub(found.revision).min(TOKEN_MAX);
    let Some(meta) = found.meta else {
        let mut lineage = Lineage::new(fresh);
        let lost = known.generation.is_some();
        known.generation.into_iter().for_each(|reported| lineage.remember(reported));
        let base = clock.max(floor(known.token.get())) + if lost { TOKEN_FLOOR_STEP } else { 0 };
        let base = base.min(TOKEN_MAX);
        let floor = if lost { base + found.revision } else { known.token.get() };
        let cluster = found.cluster.to_owned();
        let meta = Meta { layout: LAYOUT, cluster, lineage, base, floor, bucket: found.bucket, opened: false };
        return Some(Verdict { meta, quiet: lost.then_some(quiet_time) });
    };
    let heard = meta.lineage.hear(known);
    let mut after = meta.clone();
    let reported = floor(known.token.get());
    if reported > after.base {
        (after.base, after.floor) = (reported, after.floor.max(known.token.get()));
    }
    if heard == Heard::Unknown || found.went_back || meta.bucket != found.bucket {
        after.lineage.renew(fresh);
        known.generation.into_iter().for_each(|reported| after.lineage.remember(reported));
        let (token, revision) = found.seen;
        after.base = after.base.max(floor(token)).max(floor(meta.base.saturating_add(revision)));
        after.base = (after.base + TOKEN_FLOOR_STEP).min(TOKEN_MAX);
        after.floor = after.base + found.revision;
        after.bucket = found.bucket;
        return Some(Verdict { meta: after, quiet: Some(quiet_time) });
    }
    let longer = found.quiet.is_some_and(|standing| heard == Heard::Ancestor && quiet_time > standing);
    (longer || after != *meta).then_some(Verdict { meta: after, quiet: longer.then_some(quiet_time) })
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

    fn found(meta: Option<&Meta>, revision: u64) -> Found<'_> {
        Found { cluster: "c", meta, revision, bucket: 5, quiet: None, went_back: false, seen: (0, 0) }
    }

    fn ask(found: &Found<'_>, known: &Known) -> Option<Verdict> {
        judge(found, known, generation(99), CLOCK, QUIET)
    }

    fn fresh() -> Meta {
        ask(&found(None, 10), &known(None, 0)).unwrap().meta
    }

    #[test]
    fn fresh_data_begin_at_the_clock_and_wait_only_if_somebody_knew_others() {
        let verdict = ask(&found(None, 10), &known(None, 0)).unwrap();
        assert_eq!((verdict.meta.base, verdict.quiet), (CLOCK, None));
        let verdict = ask(&found(None, 10), &known(Some(7), 5 * CLOCK)).unwrap();
        assert!(verdict.meta.base + 10 >= 5 * CLOCK + TOKEN_FLOOR_STEP);
        assert_eq!(verdict.quiet, Some(QUIET));
        assert_eq!(verdict.meta.lineage.hear(&known(Some(7), 0)), Heard::Ancestor);
    }

    #[test]
    fn in_ordinary_times_nothing_is_written() {
        let meta = fresh();
        assert_eq!(ask(&found(Some(&meta), 20), &known(None, 0)), None);
        assert_eq!(ask(&found(Some(&meta), 20), &known(Some(99), CLOCK + 20)), None);
        let raised = ask(&found(Some(&meta), 20), &known(Some(99), CLOCK + 30)).unwrap();
        assert_eq!((raised.meta.base, raised.quiet), (CLOCK + 10, None));
    }

    #[test]
    fn other_data_are_a_new_generation_above_every_token_that_anybody_knows() {
        let meta = fresh();
        let another_bucket = Found { bucket: 6, ..found(Some(&meta), 20) };
        let gone_back = Found { went_back: true, seen: (CLOCK + 5000, 4000), ..found(Some(&meta), 20) };
        for (found, known) in [
            (&found(Some(&meta), 20), known(Some(7), 0)),
            (&another_bucket, known(Some(99), 0)),
            (&gone_back, known(Some(99), CLOCK + 4500)),
        ] {
            let verdict = judge(found, &known, generation(100), CLOCK, QUIET).unwrap();
            assert_eq!((verdict.meta.lineage.generation(), verdict.quiet), (generation(100), Some(QUIET)));
            let lowest = verdict.meta.base + found.revision + 1;
            assert!(lowest > (CLOCK + 5000).max(known.token.get()) && lowest > TOKEN_FLOOR_STEP);
            assert_eq!(verdict.meta.bucket, found.bucket);
            // The next who comes from before finds that it is known.
            let after = Found { meta: Some(&verdict.meta), went_back: false, ..found.clone() };
            assert_eq!(ask(&after, &known), None);
        }
    }

    #[test]
    fn who_comes_from_before_with_a_longer_session_lengthens_the_quiet_time() {
        let mut meta = fresh();
        meta.lineage.renew(generation(100));
        let quiet = |lasts| Found { quiet: Some(lasts), ..found(Some(&meta), 20) };
        assert_eq!(ask(&quiet(QUIET), &known(Some(99), 0)), None);
        assert_eq!(ask(&quiet(QUIET / 2), &known(Some(99), 0)).unwrap().quiet, Some(QUIET));
        assert_eq!(ask(&quiet(QUIET / 2), &known(Some(100), 0)), None);
        assert_eq!(ask(&found(Some(&meta), 20), &known(Some(99), 0)), None, "it is over");
    }
}
