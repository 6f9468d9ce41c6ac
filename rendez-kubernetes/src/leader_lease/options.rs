//! What an election needs to know, and whether that can work. Nothing here opens a connection.

use std::time::Duration;

use rendez_core::StoreError;

use crate::options::{Namespace, fatal};

/// The longest name of a Lease, and the longest identity, in bytes.
const NAME_BYTES_MAX: usize = 253;

/// What the names of the store's own Leases begin with.
const STORE_PREFIX: &str = "rendez.";

/// The shortest pause between two tries: below this a server that is in trouble would be asked too often.
const RETRY_INTERVAL_MIN: Duration = Duration::from_millis(50);

/// An election: which Lease, who takes part, and the three times.
///
/// ```
/// use std::time::Duration;
/// use rendez_kubernetes::LeaderLeaseOptions;
/// let mut options = LeaderLeaseOptions::new("my-namespace", "my-controller", "pod-7f3c_x1");
/// options.lease_duration = Duration::from_secs(30);
/// options.renew_interval = Duration::from_secs(10);
/// options.check().unwrap();
/// assert_eq!(options.renew_deadline(), Duration::from_secs(20));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaderLeaseOptions {
    /// The namespace of the Lease.
    pub namespace: String,
    /// The name of the Lease, which all participants share.
    pub name: String,
    /// Who this participant is, as `kubectl get lease` shows it. It must be another for each process, also for the next one in the
    /// same pod: see [`unique_identity`](Self::unique_identity).
    pub identity: String,
    /// How long others wait for a leader that they do not hear of; default 15 s. Whole seconds, as the Lease has them.
    pub lease_duration: Duration,
    /// How often the leader renews; default 5 s.
    pub renew_interval: Duration,
    /// How long after a failure, and how often without a watch, is tried again; default 2 s. Up to a fifth is added at random, so that
    /// participants that start together do not stay together.
    pub retry_interval: Duration,
    /// Whether this participant may lead; default true. If not, it writes nothing and only tells who leads.
    pub may_lead: bool,
}

impl LeaderLeaseOptions {
    /// An election with the default times.
    #[must_use]
    pub fn new(namespace: impl Into<String>, name: impl Into<String>, identity: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            identity: identity.into(),
            lease_duration: Duration::from_secs(15),
            renew_interval: Duration::from_secs(5),
            retry_interval: Duration::from_secs(2),
            may_lead: true,
        }
    }

    /// An identity that no other process has: the given name (that of the pod, say), `_`, and 64 random bits.
    ///
    /// client-go takes a Lease that bears its own identity for its own, whoever holds it: two Go processes of one identity
    /// both lead. A participant of this library never does that, but it cannot keep a Go process of its identity from it.
    #[must_use]
    pub fn unique_identity(name: &str) -> String {
        format!("{name}_{:016x}", fastrand::u64(..))
    }

    /// How long after its last renewal that succeeded, counted from before that was sent, a leader leads: two thirds of the lease duration,
    /// 10 s of 15. The last third is for what it was doing to end, and for clocks of different rates.
    #[must_use]
    pub fn renew_deadline(&self) -> Duration {
        self.lease_duration * 2 / 3
    }

    /// How long a request may take before its outcome counts as unknown: a quarter of the renew deadline.
    pub(crate) fn request_timeout(&self) -> Duration {
        self.renew_deadline() / 4
    }

    /// Whether this can work. [`start`](super::LeaderLease::start) asks it as well.
    ///
    /// # Errors
    /// [`Fatal`](rendez_core::ErrorKind::Fatal), with what would be right.
    pub fn check(&self) -> Result<(), StoreError> {
        Namespace::parse(&self.namespace)?;
        if !is_subdomain(&self.name) {
            return Err(fatal(format!(
                "no Lease can have the name {:?}: use up to {NAME_BYTES_MAX} letters a-z, digits, dashes and dots, with a letter or a \
                 digit at each end of each part",
                self.name
            )));
        }
        if self.name.starts_with(STORE_PREFIX) {
            return Err(fatal(format!(
                "names that begin with {STORE_PREFIX:?} are those of the Kubernetes store's own Leases: call this one \
                 otherwise than {:?}",
                self.name
            )));
        }
        let identity = &self.identity;
        if identity.is_empty() || identity.len() > NAME_BYTES_MAX || identity.chars().any(char::is_control) {
            return Err(fatal(format!(
                "the identity {identity:?} cannot be used: it must have 1 to {NAME_BYTES_MAX} bytes and no control characters"
            )));
        }
        let seconds = self.lease_duration.as_secs();
        if seconds == 0 || self.lease_duration.subsec_nanos() > 0 || i32::try_from(seconds).is_err() {
            return Err(fatal(format!(
                "a lease duration of {:?} cannot stand in a Lease: use whole seconds, one at least",
                self.lease_duration
            )));
        }
        if self.retry_interval < RETRY_INTERVAL_MIN {
            return Err(fatal(format!(
                "a retry interval of {:?} is too short: use {RETRY_INTERVAL_MIN:?} or more",
                self.retry_interval
            )));
        }
        if self.renew_interval < self.retry_interval {
            return Err(fatal(format!(
                "the renew interval of {:?} is shorter than the retry interval of {:?}: a failure would be followed by a \
                 longer pause than a success; make it as long at least",
                self.renew_interval, self.retry_interval
            )));
        }
        let needed = self.renew_interval.saturating_add(self.retry_interval.saturating_mul(2));
        if needed > self.renew_deadline() {
            return Err(fatal(format!(
                "a renewal that fails must be tried twice more before the leader gives up: the renew interval and two \
                 retry intervals, {needed:?}, must fit into {:?}, two thirds of the lease duration; shorten them, or make the lease \
                 duration {} s at least",
                self.renew_deadline(),
                (needed * 3 / 2).as_secs_f64().ceil()
            )));
        }
        Ok(())
    }
}

fn is_subdomain(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.len() <= NAME_BYTES_MAX
        && name.split('.').all(|part| {
            let ends = [part.bytes().next(), part.bytes().next_back()];
            ends.iter().all(|end| end.is_some_and(plain)) && part.bytes().all(|byte| plain(byte) || byte == b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> LeaderLeaseOptions {
        LeaderLeaseOptions::new("n", "controller.example.com", "pod_1")
    }

    #[test]
    fn the_defaults_are_those_of_the_seed_and_can_work() {
        let options = options();
        let times = [options.lease_duration, options.renew_interval, options.retry_interval];
        assert_eq!(times.map(|time| time.as_secs()), [15, 5, 2]);
        assert_eq!(options.renew_deadline(), Duration::from_secs(10));
        options.check().unwrap();
    }

    #[test]
    fn what_cannot_work_is_refused_with_what_would() {
        type Change = fn(&mut LeaderLeaseOptions);
        let long: Change = |it| it.name = "a".repeat(254);
        let wrong: [(Change, &str); 16] = [
            (|it| it.namespace = "A".into(), "namespace"),
            (|it| it.name = String::new(), "letters a-z"),
            (|it| it.name = "a_b".into(), "letters a-z"),
            (|it| it.name = "a..b".into(), "letters a-z"),
            (|it| it.name = "-a".into(), "letters a-z"),
            (long, "letters a-z"),
            (|it| it.name = "rendez.orders.meta".into(), "store's own"),
            (|it| it.identity = String::new(), "1 to 253 bytes"),
            (|it| it.identity = "a\nb".into(), "control characters"),
            (|it| it.identity = "a".repeat(254), "1 to 253 bytes"),
            (|it| it.lease_duration = Duration::from_millis(1500), "whole seconds"),
            (|it| it.lease_duration = Duration::ZERO, "whole seconds"),
            (|it| it.retry_interval = Duration::from_millis(1), "50ms or more"),
            (|it| it.renew_interval = Duration::from_secs(1), "as long at least"),
            (|it| it.renew_interval = Duration::from_secs(7), "17 s at least"),
            (|it| it.retry_interval = Duration::from_secs(3), "17 s at least"),
        ];
        for (change, told) in wrong {
            let mut options = options();
            change(&mut options);
            let error = options.check().unwrap_err();
            assert_eq!(error.kind(), rendez_core::ErrorKind::Fatal);
            assert!(error.message().contains(told), "{error}");
        }
        // What the error says is right, is right.
        let mut options = options();
        (options.renew_interval, options.lease_duration) = (Duration::from_secs(7), Duration::from_secs(17));
        options.check().unwrap();
    }

    #[test]
    fn identities_are_drawn_anew() {
        let [a, b] = [(); 2].map(|()| LeaderLeaseOptions::unique_identity("pod"));
        assert!(a.starts_with("pod_") && a != b, "{a} {b}");
    }
}
