//! Sessions that no clock of the store ends: whoever has seen one unchanged for its TTL ends it, as on Kubernetes.
//!
//! A session bears a number that changes with each write. The process of a node notes, on its own clock, since when it has
//! seen which number; when that is longer ago than the TTL, it ends the session by a request that names the number. A
//! session that was extended meanwhile has another one, and lives. If nobody looks, none ever ends.

use std::collections::BTreeMap;
use std::time::Duration;

use rendez_core::{SessionId, Timestamp};

/// Who is asking, and what its clock shows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Observer {
    /// Its node.
    pub(crate) node: usize,
    /// Which of the node's processes.
    pub(crate) life: u32,
    /// Its clock.
    pub(crate) clock: Timestamp,
    /// The process runs, and hears the answer.
    pub(crate) hears: bool,
}

/// The state of a session in the store.
#[derive(Debug, Clone, Copy)]
struct Written {
    number: u64,
    /// When it was written, in the world's time.
    at: u64,
    ttl: Duration,
}

/// What one process has seen.
#[derive(Debug, Default)]
struct Notes {
    life: u32,
    /// Each session's number, and since when.
    seen: BTreeMap<SessionId, (u64, Timestamp)>,
}

/// All sessions' numbers, and what the nodes have seen of them.
#[derive(Debug)]
pub(crate) struct Observers {
    /// What is added to a TTL before a session is ended, for clocks that run fast and for whoever is slow.
    margin_ppm: u32,
    slowness: Duration,
    /// Never given twice, not even after a loss of data.
    numbers: u64,
    written: BTreeMap<SessionId, Written>,
    notes: BTreeMap<usize, Notes>,
}

impl Observers {
    /// Observers whose clock rates differ by this at most from the owners', and who wait for this much longer than they must.
    pub(crate) fn new(clock_rate_error_ppm: u32, slowness: Duration) -> Self {
        Self {
            margin_ppm: 2 * clock_rate_error_ppm,
            slowness,
            numbers: 0,
            written: BTreeMap::new(),
            notes: BTreeMap::new(),
        }
    }

    /// How long a session must have been seen unchanged.
    fn patience(&self, ttl: Duration) -> Duration {
        ttl + ttl * self.margin_ppm / 1_000_000 + self.slowness
    }

    /// How much later than a TTL after the last heartbeat a session may end, where others look this often.
    pub(crate) fn lateness(&self, ttl: Duration, looks_every: Duration) -> Duration {
        // Twice the margin: the observer's clock may run slow as well.
        looks_every + self.slowness + ttl * self.margin_ppm * 2 / 1_000_000
    }

    /// A session was opened or extended.
    pub(crate) fn wrote(&mut self, now: u64, session: SessionId, ttl: Duration) {
        self.numbers += 1;
        self.written.insert(session, Written { number: self.numbers, at: now, ttl });
    }

    /// These are the sessions that there are.
    pub(crate) fn keep_only(&mut self, sessions: &[(SessionId, Duration)]) {
        if self.written.len() != sessions.len() {
            self.written.retain(|session, _| sessions.iter().any(|(kept, _)| kept == session));
        }
    }

    /// The store is where it was before: nothing is as anybody has seen it.
    pub(crate) fn rolled_back(&mut self, now: u64, sessions: &[(SessionId, Duration)]) {
        self.written.clear();
        for (session, ttl) in sessions {
            self.wrote(now, *session, *ttl);
        }
    }

    /// The sessions that this one ends now, because it has seen them unchanged for too long and they still are so.
    pub(crate) fn ends(&self, observer: &Observer) -> Vec<SessionId> {
        let notes = self.notes.get(&observer.node).filter(|notes| notes.life == observer.life && observer.hears);
        let due = |(session, (number, since)): (&SessionId, &(u64, Timestamp))| {
            let written = self.written.get(session).filter(|written| written.number == *number)?;
            (observer.clock.since(*since) >= self.patience(written.ttl)).then_some(*session)
        };
        notes.into_iter().flat_map(|notes| &notes.seen).filter_map(due).collect()
    }

    /// This one sees all sessions as they are now.
    pub(crate) fn sees(&mut self, observer: &Observer) {
        if !observer.hears {
            return;
        }
        let notes = self.notes.entry(observer.node).or_default();
        if notes.life != observer.life {
            *notes = Notes { life: observer.life, ..Notes::default() };
        }
        let seen = std::mem::take(&mut notes.seen);
        let note = |(session, written): (&SessionId, &Written)| {
            let before = seen.get(session).filter(|(number, _)| *number == written.number);
            (*session, (written.number, before.map_or(observer.clock, |(_, since)| *since)))
        };
        notes.seen = self.written.iter().map(note).collect();
    }

    /// For how long this one will let a session live that is not extended. What it has not seen has all its time before it.
    pub(crate) fn remaining(&self, observer: &Observer, session: SessionId) -> Option<Duration> {
        let written = self.written.get(&session)?;
        let notes = self.notes.get(&observer.node).filter(|notes| notes.life == observer.life);
        let seen = notes.and_then(|notes| notes.seen.get(&session));
        let unchanged = seen.map_or(Duration::ZERO, |(_, since)| observer.clock.since(*since));
        Some(self.patience(written.ttl).saturating_sub(unchanged))
    }

    /// The sessions that this one will end soonest, with their time, at most so many.
    pub(crate) fn due(&self, observer: &Observer, within: Duration, most: usize) -> Vec<(Duration, SessionId)> {
        let all = self.written.keys().filter_map(|session| Some((self.remaining(observer, *session)?, *session)));
        let mut due: Vec<(Duration, SessionId)> = all.filter(|(remaining, _)| *remaining <= within).collect();
        due.sort_unstable();
        due.truncate(most);
        due
    }

    /// The world's time before which nobody ends a session.
    pub(crate) fn ends_after(&self, session: SessionId) -> Option<u64> {
        let written = self.written.get(&session)?;
        Some(written.at + u64::try_from(written.ttl.as_nanos()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    fn at(node: usize, seconds: u64) -> Observer {
        Observer { node, life: 1, clock: Timestamp::from_nanos(seconds * 1_000_000_000), hears: true }
    }

    #[test]
    fn a_session_ends_when_it_was_seen_unchanged_for_its_ttl_and_not_before() {
        let (session, mut all) = (SessionId::from_bits(7), Observers::new(1000, Duration::ZERO));
        all.wrote(0, session, TTL);
        all.sees(&at(1, 100));
        assert_eq!(all.ends(&at(1, 110)), [], "clocks may differ");
        assert_eq!(all.ends(&at(1, 111)), [session]);
        assert_eq!(all.ends(&at(2, 999)), [], "who has not looked ends nothing");
        assert_eq!(all.ends(&Observer { life: 2, ..at(1, 999) }), [], "nor who has forgotten");
        assert_eq!(all.ends(&Observer { hears: false, ..at(1, 999) }), []);
        all.sees(&at(2, 500));
        assert_eq!(all.ends(&at(2, 505)), [], "who looks late counts from then");
        assert_eq!(all.ends(&at(2, 511)), [session]);
        all.wrote(1, session, TTL);
        assert_eq!(all.ends(&at(1, 999)), [], "it has changed since");
        all.sees(&at(1, 999));
        assert_eq!(all.ends(&at(1, 1009)), []);
        assert_eq!(all.ends(&at(1, 1010)), [session]);
    }

    #[test]
    fn what_is_due_is_named_soonest_first() {
        let (one, other) = (SessionId::from_bits(1), SessionId::from_bits(2));
        let mut all = Observers::new(0, Duration::ZERO);
        all.wrote(0, other, TTL);
        all.sees(&at(1, 100));
        all.wrote(0, one, TTL);
        all.sees(&at(1, 103));
        let seconds = Duration::from_secs;
        assert_eq!(all.due(&at(1, 104), seconds(9), 9), [(seconds(6), other), (seconds(9), one)]);
        assert_eq!(all.due(&at(1, 104), seconds(8), 9), [(seconds(6), other)]);
        assert_eq!(all.due(&at(1, 104), seconds(9), 1), [(seconds(6), other)]);
        assert_eq!(all.remaining(&at(2, 104), one), Some(seconds(10)), "this one begins to look now");
        all.rolled_back(3, &[(one, TTL)]);
        assert_eq!((all.ends(&at(1, 999)), all.ends_after(one)), (vec![], Some(10_000_000_003)));
    }
}
