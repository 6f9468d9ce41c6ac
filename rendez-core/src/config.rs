//! What a node is told about times, stabilizers and runners, and whether that can work.
//!
//! Checked once, before anything starts. Nothing here knows where the values came from.

use std::time::Duration;

/// The times of the protocol. Start from [`Timing::for_ttl`], which scales everything with the session's TTL.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timing {
    /// How long a session lives in the store after each heartbeat.
    pub session_ttl: Duration,
    /// From the sending of one heartbeat to the sending of the next.
    pub heartbeat_interval: Duration,
    /// How much earlier or later a heartbeat is sent, in thousandths of the interval.
    pub heartbeat_jitter_permille: u32,
    /// After this time a request counts as unanswered.
    pub operation_timeout: Duration,
    /// How many tries in a row the deadline leaves room for.
    pub heartbeat_attempts: u32,
    /// The first pause after a failed request; it doubles up to one heartbeat interval.
    pub backoff_min: Duration,
    /// How long a runner may take to end after it was told to.
    pub stop_budget: Duration,
    /// How long a process may be paused without any harm.
    pub pause_allowance: Duration,
    /// How far clock rates of node and store may differ, in millionths (ρ).
    pub clock_rate_error_ppm: u32,
}

impl Default for Timing {
    fn default() -> Self {
        Self::for_ttl(Duration::from_secs(10))
    }
}

impl Timing {
    /// The defaults for a session TTL: heartbeats every fifth of it, a stop budget of three tenths, a pause allowance
    /// and (up to 500 ms) an operation timeout of a tenth and a twentieth.
    ///
    /// ```
    /// use std::time::Duration;
    /// let timing = rendez_core::Timing::for_ttl(Duration::from_secs(10));
    /// assert_eq!(timing.heartbeat_interval, Duration::from_secs(2));
    /// assert_eq!(timing.stop_budget, Duration::from_secs(3));
    /// timing.validate().unwrap();
    /// ```
    #[must_use]
    pub fn for_ttl(session_ttl: Duration) -> Self {
        Self {
            session_ttl,
            heartbeat_interval: session_ttl / 5,
            heartbeat_jitter_permille: 100,
            operation_timeout: (session_ttl / 20).min(Duration::from_millis(500)),
            heartbeat_attempts: 3,
            backoff_min: (session_ttl / 100).clamp(Duration::from_millis(1), Duration::from_millis(100)),
            stop_budget: session_ttl * 3 / 10,
            pause_allowance: session_ttl / 10,
            clock_rate_error_ppm: 1000,
        }
    }

    /// How long a session is good from the sending of a heartbeat, by the TTL that the store granted:
    /// `V = TTL·(1−ρ)/(1+ρ)`.
    #[must_use]
    pub fn validity(&self, granted_ttl: Duration) -> Duration {
        let rate = u64::from(self.clock_rate_error_ppm);
        let nanos = granted_ttl.as_nanos() * u128::from(1_000_000 - rate.min(999_999)) / u128::from(1_000_000 + rate);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// How long before the session's deadline runners are told to stop.
    #[must_use]
    pub fn stop_lead(&self) -> Duration {
        self.stop_budget + self.pause_allowance
    }

    /// The time that must fit into a session's validity:
    /// `interval·(1+jitter) + attempts·(operation timeout + backoff) + stop budget + pause allowance`.
    #[must_use]
    pub fn time_needed(&self) -> Duration {
        let jitter = self.heartbeat_interval * self.heartbeat_jitter_permille.min(1000) / 1000;
        let tries = (self.operation_timeout + self.backoff_min) * self.heartbeat_attempts;
        self.heartbeat_interval + jitter + tries + self.stop_lead()
    }

    /// How long a slot of a crashed node is without an owner at most (L1), where its next owner can take it at once
    /// and the store ends sessions this late.
    #[must_use]
    pub fn takeover_max(&self, expiry_lateness: Duration) -> Duration {
        self.session_ttl + expiry_lateness + self.heartbeat_interval + self.operation_timeout * 2
    }

    /// Whether these times can work.
    ///
    /// # Errors
    /// [`TimingError`] names the value, or the inequality with its numbers and the nearest TTL that would do.
    pub fn validate(&self) -> Result<(), TimingError> {
        for (key, value) in [
            ("session_ttl", self.session_ttl),
            ("heartbeat_interval", self.heartbeat_interval),
            ("operation_timeout", self.operation_timeout),
            ("backoff_min", self.backoff_min),
        ] {
            if value < Duration::from_millis(1) {
                return Err(TimingError::TooShort { key, value });
            }
        }
        if self.session_ttl > Duration::from_secs(24 * 3600) {
            return Err(TimingError::TooLong { key: "session_ttl", value: self.session_ttl });
        }
        for (key, value, max) in [
            ("heartbeat_jitter_permille", self.heartbeat_jitter_permille, 500),
            ("clock_rate_error_ppm", self.clock_rate_error_ppm, 100_000),
        ] {
            if value > max {
                return Err(TimingError::TooLarge { key, value, max });
            }
        }
        if !(1..=100).contains(&self.heartbeat_attempts) {
            return Err(TimingError::Attempts { value: self.heartbeat_attempts });
        }
        let (needed, validity) = (self.time_needed(), self.validity(self.session_ttl));
        if needed > validity {
            let rate = self.clock_rate_error_ppm;
            let enough = needed.as_nanos() * u128::from(1_000_000 + rate) / u128::from(1_000_000 - rate);
            let enough_ms = u64::try_from(enough.div_ceil(1_000_000)).unwrap_or(u64::MAX);
            return Err(TimingError::DoesNotFit {
                timing: Box::new(self.clone()),
                needed,
                validity,
                session_ttl_enough: Duration::from_millis(enough_ms),
            });
        }
        Ok(())
    }
}

/// Why times cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TimingError {
    /// A time is zero or nearly so.
    #[error("{key} = {value:?} is too short: use 1ms or more")]
    TooShort {
        /// Which.
        key: &'static str,
        /// The value that was given.
        value: Duration,
    },
    /// A time is too long.
    #[error("{key} = {value:?} is too long: use 24h or less")]
    TooLong {
        /// Which.
        key: &'static str,
        /// The value that was given.
        value: Duration,
    },
    /// A number is too large.
    #[error("{key} = {value} is too large: use {max} or less")]
    TooLarge {
        /// Which.
        key: &'static str,
        /// The value that was given.
        value: u32,
        /// The largest that is accepted.
        max: u32,
    },
    /// A number must not be zero.
    #[error("{key} = 0 cannot be: use 1 or more")]
    Zero {
        /// Which.
        key: &'static str,
    },
    /// The number of attempts cannot be.
    #[error("heartbeat_attempts = {value} cannot be: use 1 to 100")]
    Attempts {
        /// The value that was given.
        value: u32,
    },
    /// A session would end before its heartbeats, their retries and the stopping of runners have had their time.
    #[error(
        "a session_ttl of {:?} is good for {validity:?}, and that is too short: heartbeat_interval·(1+jitter) + \
         heartbeat_attempts·(operation_timeout + backoff_min) + stop_budget + pause_allowance = \
         {:?}·{:.3} + {}·({:?} + {:?}) + {:?} + {:?} = {needed:?}; \
         use a session_ttl of {session_ttl_enough:?} or more, or shorten one of these",
        timing.session_ttl, timing.heartbeat_interval, 1.0 + f64::from(timing.heartbeat_jitter_permille) / 1000.0,
        timing.heartbeat_attempts, timing.operation_timeout, timing.backoff_min, timing.stop_budget, timing.pause_allowance
    )]
    DoesNotFit {
        /// The times.
        timing: Box<Timing>,
        /// The sum that must fit.
        needed: Duration,
        /// How long a session is good.
        validity: Duration,
        /// The shortest session TTL that would do with the rest as it is.
        session_ttl_enough: Duration,
    },
}

/// The rules that hold voluntary moves back. None of them ever holds back the taking of an orphan, a drain, a
/// shutdown or a pin.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stabilizers {
    /// Whether slots are moved voluntarily at all.
    pub shedding: bool,
    /// A slot that was moved voluntarily is not moved again for this long. Taking an orphan starts no cooldown.
    pub cooldown: Duration,
    /// A runner is not shed before it has run this long.
    pub runtime_min: Duration,
    /// The most slots that this node offers in one heartbeat interval.
    pub shed_budget: u32,
    /// A node does not shed below this many slots.
    pub slots_min: u32,
    /// Nothing is shed for this long after a node has come, gone or changed what it may be given, so that a rolling
    /// update moves a slot as few times as can be.
    pub settling: Duration,
    /// The most slots that one batch of acquisitions asks for; batches follow each other without a pause.
    pub acquire_limit: u32,
    /// A node that has just opened its session waits this long before its first acquisition, so that nodes that start
    /// together share the work at once. In a cluster whose first node has just come it waits until nobody has come for
    /// this long, but no longer than a heartbeat interval after the first.
    pub start_delay: Duration,
    /// How long a slot's first choice may leave it lying before the next in rank takes it.
    pub candidate_grace: Duration,
    /// How much a weight that the program sets must differ, in thousandths, before the others are told.
    pub weight_hysteresis_permille: u32,
}

impl Stabilizers {
    /// The defaults for these times.
    #[must_use]
    pub fn for_timing(timing: &Timing) -> Self {
        Self {
            shedding: true,
            cooldown: timing.session_ttl * 6,
            runtime_min: timing.session_ttl,
            shed_budget: 32,
            slots_min: 0,
            settling: timing.heartbeat_interval * 2,
            acquire_limit: 512,
            start_delay: (timing.heartbeat_interval / 5).min(Duration::from_millis(300)),
            candidate_grace: timing.heartbeat_interval + timing.operation_timeout * 2,
            weight_hysteresis_permille: 50,
        }
    }
}

/// What happens to runners that end by themselves, and to those that do not end.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RunnerPolicy {
    /// The first pause before a runner that ended by itself is started again; it doubles each time.
    pub restart_backoff_min: Duration,
    /// The longest such pause.
    pub restart_backoff_max: Duration,
    /// A runner that has run this long has its pause reset.
    pub restart_reset_after: Duration,
    /// After this many failures in a row the slot is given up, so that another node may try; never if absent.
    pub give_up_after: Option<u32>,
    /// How long a node refuses a slot that it gave up.
    pub refuse_for: Duration,
    /// How long an aborted runner may take to be gone before it counts as an overrun.
    pub abort_grace: Duration,
}

impl RunnerPolicy {
    /// The defaults for these times.
    #[must_use]
    pub fn for_timing(timing: &Timing) -> Self {
        Self {
            restart_backoff_min: Duration::from_millis(100),
            restart_backoff_max: Duration::from_secs(30),
            restart_reset_after: Duration::from_secs(60),
            give_up_after: Some(5),
            refuse_for: Duration::from_secs(60),
            abort_grace: (timing.pause_allowance / 2).min(Duration::from_millis(500)),
        }
    }
}

/// Everything that the engine is told at start.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineConfig {
    /// The times of the protocol.
    pub timing: Timing,
    /// The rules that hold voluntary moves back.
    pub stabilizers: Stabilizers,
    /// What happens to runners that end, or do not.
    pub runners: RunnerPolicy,
    /// How long an offer stands.
    pub offer_ttl: Duration,
    /// How long a drain or a shutdown may take; after that a shutdown lets everything go.
    pub drain_timeout: Duration,
    /// Give up at once where another process has the node's id, instead of waiting for its end.
    pub give_up_if_in_use: bool,
}

impl EngineConfig {
    /// The defaults for these times.
    #[must_use]
    pub fn for_timing(timing: Timing) -> Self {
        Self {
            stabilizers: Stabilizers::for_timing(&timing),
            runners: RunnerPolicy::for_timing(&timing),
            offer_ttl: timing.session_ttl * 2 + timing.stop_budget,
            drain_timeout: Duration::from_secs(30),
            give_up_if_in_use: false,
            timing,
        }
    }

    /// The defaults for a session TTL.
    #[must_use]
    pub fn for_ttl(session_ttl: Duration) -> Self {
        Self::for_timing(Timing::for_ttl(session_ttl))
    }

    /// Whether this can work.
    ///
    /// # Errors
    /// See [`Timing::validate`].
    pub fn validate(&self) -> Result<(), TimingError> {
        self.timing.validate()?;
        for (key, value) in [
            ("restart_backoff_min", self.runners.restart_backoff_min),
            ("restart_backoff_max", self.runners.restart_backoff_max),
            ("offer_ttl", self.offer_ttl),
            ("drain_timeout", self.drain_timeout),
            ("candidate_grace", self.stabilizers.candidate_grace),
        ] {
            if value < Duration::from_millis(1) {
                return Err(TimingError::TooShort { key, value });
            }
        }
        for (key, value) in
            [("acquire_limit", self.stabilizers.acquire_limit), ("shed_budget", self.stabilizers.shed_budget)]
        {
            if value == 0 {
                return Err(TimingError::Zero { key });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_work_for_every_reasonable_ttl() {
        for ms in [100, 500, 1000, 3000, 10_000, 60_000, 3_600_000] {
            EngineConfig::for_ttl(Duration::from_millis(ms)).validate().unwrap();
        }
    }

    #[test]
    fn what_cannot_work_is_refused_with_the_numbers_and_what_would_do() {
        let mut timing = Timing { stop_budget: Duration::from_secs(9), ..Timing::default() };
        let error = timing.validate().unwrap_err();
        let TimingError::DoesNotFit { session_ttl_enough, .. } = error else { panic!("{error}") };
        let text = error.to_string();
        assert!(text.contains("9s") && text.contains("use a session_ttl of 14.029s"), "{text}");
        timing.session_ttl = session_ttl_enough;
        timing.validate().unwrap();
        timing.session_ttl -= Duration::from_millis(1);
        timing.validate().unwrap_err();
    }

    #[test]
    fn the_validity_is_never_longer_than_the_ttl_on_the_fastest_store_clock() {
        let timing = Timing { clock_rate_error_ppm: 1000, ..Timing::default() };
        assert_eq!(timing.validity(Duration::from_secs(1001)).as_secs(), 999);
    }
}
