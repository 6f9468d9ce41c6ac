//! The store's time, which Kubernetes does not tell: the wall clock as it stood when the handle was made, going on with the clock
//! that neither steps nor stops. Offers, refusals and cooldowns end by it; nothing about safety does.
//!
//! And the node's own clock, by which an election's deadlines are kept.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rendez_core::{StoreTime, Timestamp};

/// One handle's clock.
#[derive(Debug)]
pub(crate) struct Clock {
    /// What to add to the time since the machine's start, in microseconds.
    offset: u64,
}

impl Clock {
    pub(crate) fn new() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { offset: micros(wall.saturating_sub(boot_time())) }
    }

    /// Now, but never before `seen`: the latest moment that any record of the cluster names.
    pub(crate) fn now(&self, seen: StoreTime) -> StoreTime {
        StoreTime::from_micros(self.offset + micros(boot_time())).max(seen)
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// This moment on the node's own clock, which goes on while the system is suspended.
pub(crate) fn boot_now() -> Timestamp {
    Timestamp::ZERO + boot_time()
}

/// The time since the machine's start, suspended times included.
fn boot_time() -> Duration {
    #[cfg(target_os = "linux")]
    let id = rustix::time::ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    let id = rustix::time::ClockId::Monotonic;
    let time = rustix::time::clock_gettime(id);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_shows_the_wall_clocks_time_and_never_falls_behind_what_was_seen() {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let now = Clock::new().now(StoreTime::default());
        assert!(now.as_micros().abs_diff(micros(wall)) < 60_000_000);
        let later = StoreTime::from_micros(now.as_micros() + 3_600_000_000);
        assert_eq!(Clock::new().now(later), later);
    }
}
