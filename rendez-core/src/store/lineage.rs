//! The generations of a cluster's data: the present one, and those that it knows as its own past.
//!
//! Pure, and the same for every store that decides in Rust. How a store finds out by itself that data are missing is
//! its own business.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Known;
use crate::Generation;

/// The most generations that a cluster remembers as its own past. A report of an older one sets off a new generation.
const ANCESTORS_MAX: usize = 64;

/// What is added to every quiet time.
pub(crate) const QUIET_MARGIN: Duration = Duration::from_secs(1);

/// The present generation and those before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    generation: Generation,
    /// Oldest first.
    #[serde(default, skip_serializing_if = "VecDeque::is_empty")]
    ancestors: VecDeque<Generation>,
}

/// What a reported generation is to the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// The present one, or none was reported.
    Present,
    /// One that ended: this loss is known already.
    Ancestor,
    /// One that these data know nothing of: they are not those that the reporter has seen.
    Unknown,
}

impl Lineage {
    /// The lineage of fresh data.
    #[must_use]
    pub fn new(generation: Generation) -> Self {
        Self { generation, ancestors: VecDeque::new() }
    }

    /// The present generation.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// What the generation that a node knows is to these data.
    #[must_use]
    pub fn hear(&self, known: &Known) -> Heard {
        match known.generation {
            Some(reported) if self.ancestors.contains(&reported) => Heard::Ancestor,
            Some(reported) if reported != self.generation => Heard::Unknown,
            Some(_) | None => Heard::Present,
        }
    }

    /// A new generation begins.
    pub fn renew(&mut self, fresh: Generation) {
        let before = std::mem::replace(&mut self.generation, fresh);
        self.remember(before);
    }

    /// Reports of this generation set off nothing any more.
    pub fn remember(&mut self, generation: Generation) {
        if generation != self.generation && !self.ancestors.contains(&generation) {
            self.ancestors.push_back(generation);
        }
        while self.ancestors.len() > ANCESTORS_MAX {
            self.ancestors.pop_front();
        }
    }
}

/// How long nothing may be granted after a loss of data: the longest that a runner from before it may still run. The
/// session TTLs are those that the reporting node, the settings and the live sessions name.
#[must_use]
pub fn quiet_time(session_ttls: impl IntoIterator<Item = Duration>, ttl_max: Duration, lag: Duration) -> Duration {
    session_ttls.into_iter().max().unwrap_or_default().min(ttl_max) + lag + QUIET_MARGIN
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(generation: u128) -> Known {
        Known { generation: Some(Generation::from_bits(generation)), ..Known::default() }
    }

    #[test]
    fn what_is_known_of_the_past_is_bounded_and_no_news() {
        let mut lineage = Lineage::new(Generation::from_bits(0));
        assert_eq!(lineage.hear(&Known::default()), Heard::Present);
        for generation in 1..=70 {
            assert_eq!(lineage.hear(&known(generation)), Heard::Unknown);
            lineage.renew(Generation::from_bits(generation));
        }
        assert_eq!(lineage.hear(&known(70)), Heard::Present);
        assert_eq!(lineage.hear(&known(69)), Heard::Ancestor);
        assert_eq!(lineage.hear(&known(70 - 65)), Heard::Unknown);
        lineage.remember(Generation::from_bits(1000));
        assert_eq!(lineage.hear(&known(1000)), Heard::Ancestor);
    }

    #[test]
    fn the_quiet_time_outlasts_the_longest_session() {
        let seconds = Duration::from_secs;
        assert_eq!(quiet_time([seconds(3), seconds(9)], seconds(60), seconds(2)), seconds(12));
        assert_eq!(quiet_time([seconds(90)], seconds(60), Duration::ZERO), seconds(61));
    }
}
