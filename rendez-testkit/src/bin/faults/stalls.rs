//! Notices when the whole machine stands still, as virtual ones do: nothing that happened then says anything of a store.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How often is looked.
const TICK: Duration = Duration::from_millis(100);

/// A run in which the machine stood still for this long is not judged: it is most of a session.
pub(crate) const STALL_MIN: Duration = Duration::from_secs(2);

/// The times at which the machine stood still.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stalls(Arc<Mutex<Vec<Stall>>>);

#[derive(Debug)]
struct Stall {
    ended: Instant,
    lasted: Duration,
}

impl Stalls {
    /// Begins to look, in a thread of its own, for as long as the program runs.
    pub(crate) fn watch() -> Self {
        let stalls = Self::default();
        let noted = stalls.clone();
        thread::spawn(move || {
            let mut last = Instant::now();
            loop {
                thread::sleep(TICK);
                let now = Instant::now();
                noted.note(last, now);
                last = now;
            }
        });
        stalls
    }

    fn note(&self, last: Instant, now: Instant) {
        let lasted = now - last;
        if lasted >= STALL_MIN {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Stall { ended: now, lasted });
        }
    }

    /// The longest of those that ended after this moment.
    pub(crate) fn since(&self, begun: Instant) -> Option<Duration> {
        let stalls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        stalls.iter().filter(|stall| stall.ended >= begun).map(|stall| stall.lasted).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_ends_within_a_run_and_is_long_counts() {
        let stalls = Stalls::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        stalls.note(at(10), at(11));
        stalls.note(at(20), at(25));
        assert_eq!(stalls.since(at(21)), Some(Duration::from_secs(5)));
        assert_eq!(stalls.since(at(26)), None);
    }
}
