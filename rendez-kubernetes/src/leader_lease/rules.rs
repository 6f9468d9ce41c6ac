//! The rules: client-go's leader election, and where this one is stricter.
//!
//! Pure: what time it is, what stands on the server and what became of a write come in; what to do next, and when, comes out. Late,
//! repeated and reordered calls are harmless. No request is sent here, no clock is read, and no time stamp of anybody else
//! decides anything.
//!
//! What is client-go's: the record; a change of it, seen, begins a new wait on the own clock; an empty holder may be followed at once;
//! `leaseTransitions` rises with the holder; `acquireTime` stays while the holder renews; a release empties the holder
//! and leaves a duration of 1 s.
//!
//! What is stricter:
//! - Leadership ends at the moment before its last successful write was sent + the renew deadline, whatever happened since, and what has
//!   lapsed is over: leading again is a new tenure with a higher token.
//! - A Lease counts as ours only if *this process* has written exactly what stands there. The own identity alone proves nothing.
//! - A write whose outcome is unknown is neither done nor not done until the Lease was read again.
//! - Others are waited for by the longer of their duration and ours and a hundredth, also after their Lease was deleted.
//! - Every write names uid and version; a Lease that was deleted is never brought back by a late write.

use std::time::Duration;

use kube::api::DynamicObject;
use rendez_core::{FencingToken, Timestamp};

use super::Leader;
use super::lease::{Observed, Record, first, is_later};
use super::options::LeaderLeaseOptions;

/// Writes whose outcome is unknown that are remembered. One more, and the oldest is forgotten: if it has happened it will look like
/// somebody else's, and is waited for.
const UNRESOLVED_MAX: usize = 8;

/// `leaseTransitions` is a 32-bit number.
const TRANSITIONS_MAX: i64 = i32::MAX as i64;

/// What a release leaves as the Lease's duration.
const RELEASED_SECONDS: i64 = 1;

/// What to do next.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    /// Read the Lease.
    Read,
    /// Write this: over the version that it names, or as a new Lease if it has no uid.
    Write(Box<DynamicObject>),
    /// Nothing, before this moment.
    Wait(Timestamp),
    /// Nothing any more.
    Over,
}

/// What became of a write.
#[derive(Debug)]
pub(crate) enum Wrote {
    /// It happened, and this stands there now.
    Done(Box<Observed>),
    /// It did not happen: another version stands there, or none.
    Conflict,
    /// It may have happened, or may yet.
    Unknown(String),
    /// It did not happen.
    Failed(Failure),
}

/// Why something did not happen.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    /// Trying again soon cannot help.
    pub(crate) fatal: bool,
    /// What the server asks for.
    pub(crate) retry_after: Option<Duration>,
    pub(crate) message: String,
}

/// One time of leading: from an acquisition to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tenure {
    pub(crate) token: FencingToken,
    pub(crate) deadline: Timestamp,
}

/// What people are told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct View {
    pub(crate) leader: Option<Leader>,
    pub(crate) tenure: Option<Tenure>,
    pub(crate) trouble: Option<String>,
}

/// What a write was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Acquire,
    Renew,
    Release,
}

/// A write that is on its way, or whose outcome is unknown.
#[derive(Debug, Clone)]
struct Sent {
    purpose: Purpose,
    /// The Lease that it replaces; none if it makes one.
    uid: Option<String>,
    record: Record,
    /// A moment before it was sent.
    at: Timestamp,
}

impl Sent {
    /// Whether this is what it wrote. No two writes of a process have the same `renewTime`.
    fn has_made(&self, seen: &Observed) -> bool {
        self.record == seen.record && self.uid.as_ref().is_none_or(|uid| *uid == seen.uid)
    }
}

/// What the program wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    TakePart,
    /// Give up, and go on as a candidate. Tried until the moment named.
    Resign(Timestamp),
    /// Give up, and end. The same.
    Stop(Timestamp),
}

/// One participant.
#[derive(Debug)]
pub(crate) struct Rules {
    options: LeaderLeaseOptions,
    random: fastrand::Rng,
    /// What stands on the server as far as is known; nothing if there is no Lease, or none was read yet.
    seen: Option<Observed>,
    /// What is known is not enough to go on.
    must_read: bool,
    /// What was seen is what this process has written last, with itself as the holder.
    own: bool,
    tenure: Option<Tenure>,
    unresolved: Vec<Sent>,
    /// Until when somebody else may believe that he leads.
    busy_until: Timestamp,
    /// When that may be taken: the same, and a little at random.
    take_at: Timestamp,
    renew_at: Timestamp,
    /// When to read again if nothing was heard.
    look_at: Timestamp,
    /// Nothing is sent before.
    not_before: Timestamp,
    /// Conflicts and unknown outcomes in a row.
    setbacks: u32,
    watching: bool,
    stand_back_until: Timestamp,
    wish: Wish,
    /// How the last giving up ended, until somebody asks.
    ended: Option<Result<(), String>>,
    over: bool,
    transitions_seen: i64,
    renewed_last: i64,
    trouble: Option<String>,
}

impl Rules {
    /// A participant that knows nothing yet. The seed is for its random pauses alone.
    pub(crate) fn new(options: LeaderLeaseOptions, seed: u64) -> Self {
        Self {
            options,
            random: fastrand::Rng::with_seed(seed),
            seen: None,
            must_read: true,
            own: false,
            tenure: None,
            unresolved: Vec::new(),
            busy_until: Timestamp::ZERO,
            take_at: Timestamp::ZERO,
            renew_at: Timestamp::ZERO,
            look_at: Timestamp::ZERO,
            not_before: Timestamp::ZERO,
            setbacks: 0,
            watching: false,
            stand_back_until: Timestamp::ZERO,
            wish: Wish::TakePart,
            ended: None,
            over: false,
            transitions_seen: 0,
            renewed_last: i64::MIN,
            trouble: None,
        }
    }

    // --- what to do ---

    /// What to do now. A write that is answered counts as sent from here on. `wall` is microseconds since 1970, for people.
    pub(crate) fn next(&mut self, now: Timestamp, wall: i64) -> Step {
        self.lapse(now);
        let leave_until = match self.wish {
            Wish::TakePart => Timestamp::NEVER,
            Wish::Resign(until) | Wish::Stop(until) => {
                if !self.own && !self.must_read {
                    self.end_wish(now, Ok(()));
                } else if now >= until {
                    let why = self.trouble.clone().unwrap_or_else(|| "no answer".to_owned());
                    self.end_wish(now, Err(why));
                }
                until
            }
        };
        if self.over {
            return Step::Over;
        }
        if now < self.not_before {
            let lapses = self.tenure.map_or(Timestamp::NEVER, |tenure| tenure.deadline);
            return Step::Wait(self.not_before.min(leave_until).min(lapses));
        }
        if self.must_read {
            return Step::Read;
        }
        if self.own { self.next_of_holder(now, wall) } else { self.next_of_candidate(now, wall) }
    }

    fn next_of_holder(&mut self, now: Timestamp, wall: i64) -> Step {
        // A write from before a resignation may have come late.
        if self.wish != Wish::TakePart || now < self.stand_back_until {
            return self.release(now, wall);
        }
        match self.tenure {
            Some(_) if now >= self.renew_at => self.renew(now, wall),
            Some(tenure) => Step::Wait(self.renew_at.min(tenure.deadline)),
            // It has lapsed, and nobody has taken it.
            None => self.next_of_candidate(now, wall),
        }
    }

    fn next_of_candidate(&mut self, now: Timestamp, wall: i64) -> Step {
        let may = self.options.may_lead && self.transitions_seen < TRANSITIONS_MAX;
        let take_at = if may { self.take_at.max(self.stand_back_until) } else { Timestamp::NEVER };
        if now >= take_at {
            self.acquire(now, wall)
        } else if now >= self.look_at {
            Step::Read
        } else {
            Step::Wait(take_at.min(self.look_at))
        }
    }

    /// When what [`view`](Self::view) says changes next by itself.
    pub(crate) fn changes_at(&self, now: Timestamp) -> Timestamp {
        let at = self.tenure.map_or(self.busy_until, |tenure| tenure.deadline);
        if at > now { at } else { Timestamp::NEVER }
    }

    // --- what is written ---

    fn acquire(&mut self, now: Timestamp, wall: i64) -> Step {
        let renewed = self.renewed(wall);
        let record = Record {
            holder: self.options.identity.clone(),
            duration_seconds: Some(self.seconds()),
            acquired: Some(renewed),
            renewed: Some(renewed),
            transitions: self.transitions_seen + 1,
        };
        self.send(Purpose::Acquire, record, now)
    }

    fn renew(&mut self, now: Timestamp, wall: i64) -> Step {
        let renewed = Some(self.renewed(wall));
        let before = self.seen.as_ref().map(|seen| seen.record.clone()).unwrap_or_default();
        let record = Record { duration_seconds: Some(self.seconds()), renewed, ..before };
        self.send(Purpose::Renew, record, now)
    }

    fn release(&mut self, now: Timestamp, wall: i64) -> Step {
        self.tenure = None;
        let renewed = Some(self.renewed(wall));
        let transitions = self.seen.as_ref().map_or(0, |seen| seen.record.transitions);
        let record = Record {
            holder: String::new(),
            duration_seconds: Some(RELEASED_SECONDS),
            acquired: renewed,
            renewed,
            transitions,
        };
        self.send(Purpose::Release, record, now)
    }

    fn send(&mut self, purpose: Purpose, record: Record, at: Timestamp) -> Step {
        let object = match &self.seen {
            Some(seen) => seen.with(&record),
            None => first(&self.options.name, &record),
        };
        if self.unresolved.len() == UNRESOLVED_MAX {
            self.unresolved.remove(0);
        }
        self.unresolved.push(Sent { purpose, uid: object.metadata.uid.clone(), record, at });
        Step::Write(Box::new(object))
    }

    fn seconds(&self) -> i64 {
        i64::try_from(self.options.lease_duration.as_secs()).unwrap_or(i64::MAX)
    }

    /// The wall clock's time, but later than in any write before: an update that changes nothing has no new version, and is no sign of
    /// life.
    fn renewed(&mut self, wall: i64) -> i64 {
        self.renewed_last = wall.max(self.renewed_last.saturating_add(1));
        self.renewed_last
    }

    // --- what has become of it ---

    /// The answer to a read: the Lease, or that there is none.
    pub(crate) fn read(&mut self, now: Timestamp, found: Option<Observed>) {
        self.lapse(now);
        self.trouble = None;
        self.must_read = false;
        match (found, &self.seen) {
            // The watch was faster: it has told of a later version while this answer was on its way.
            (Some(found), Some(seen)) if seen.is_later_than(&found.uid, &found.version) => {}
            (Some(found), _) => self.observe(now, found),
            (None, _) => self.absent(now),
        }
    }

    /// A read failed.
    pub(crate) fn read_failed(&mut self, now: Timestamp, failure: Failure) {
        self.lapse(now);
        self.wait_after(now, failure);
    }

    /// The answer to the last write.
    pub(crate) fn wrote(&mut self, now: Timestamp, outcome: Wrote) {
        self.lapse(now);
        match outcome {
            Wrote::Done(found) => {
                self.trouble = None;
                // What the watch has told meanwhile has told of this write, too.
                if let Some(sent) = self.unresolved.pop() {
                    self.must_read = false;
                    self.transitions_seen = self.transitions_seen.max(found.record.transitions);
                    self.seen = Some(*found);
                    self.confirm(now, &sent);
                }
            }
            Wrote::Conflict => {
                self.unresolved.pop();
                self.set_back(now);
            }
            Wrote::Unknown(why) => {
                self.trouble = Some(why);
                self.set_back(now);
            }
            Wrote::Failed(failure) => {
                self.unresolved.pop();
                self.wait_after(now, failure);
            }
        }
    }

    /// The watch tells of a version.
    pub(crate) fn heard(&mut self, now: Timestamp, told: Observed) {
        self.lapse(now);
        match &self.seen {
            Some(seen) if told.is_later_than(&seen.uid, &seen.version) => self.observe(now, told),
            // It may be old: a watch may begin with what a server remembers.
            Some(seen) if seen.uid == told.uid => {}
            Some(_) | None => self.must_read = true,
        }
    }

    /// The watch tells that a Lease is gone, and of its last version.
    pub(crate) fn heard_of_end(&mut self, now: Timestamp, uid: &str, version: &str) {
        self.lapse(now);
        match &self.seen {
            Some(seen) if seen.uid != uid => {}
            Some(seen) if is_later(version, &seen.version) => self.absent(now),
            Some(_) | None => self.must_read = true,
        }
    }

    /// Whether a watch tells what happens, from now on.
    pub(crate) fn set_watching(&mut self, now: Timestamp, watching: bool) {
        self.watching = watching;
        self.look_at = self.look_at.min(now + self.silence());
    }

    /// Gives up leading, and stands back for a lease duration, or until somebody else has led.
    pub(crate) fn resign(&mut self, now: Timestamp) {
        if self.wish == Wish::TakePart {
            self.leave(now, Wish::Resign(now + self.options.renew_deadline()));
        }
    }

    /// Gives up leading, and ends.
    pub(crate) fn stop(&mut self, now: Timestamp) {
        if !matches!(self.wish, Wish::Stop(_)) {
            self.leave(now, Wish::Stop(now + self.options.renew_deadline()));
        }
    }

    /// How the last giving up ended; once. An error says why nobody knows whether the Lease was released.
    pub(crate) fn take_ended(&mut self) -> Option<Result<(), String>> {
        self.ended.take()
    }

    /// What people are told at this moment.
    pub(crate) fn view(&self, now: Timestamp) -> View {
        let tenure = self.tenure.filter(|tenure| now < tenure.deadline && self.wish == Wish::TakePart);
        let leader = match (tenure, &self.seen) {
            (Some(tenure), _) => Some(Leader { identity: self.options.identity.clone(), until: tenure.deadline }),
            (None, Some(seen)) if !self.own && !seen.record.holder.is_empty() && now < self.busy_until => {
                Some(Leader { identity: seen.record.holder.clone(), until: self.busy_until })
            }
            (None, _) => None,
        };
        let exhausted = || format!("leaseTransitions of the Lease has reached {TRANSITIONS_MAX}: delete the Lease");
        let trouble = self.trouble.clone().or_else(|| (self.transitions_seen >= TRANSITIONS_MAX).then(exhausted));
        View { leader, tenure, trouble }
    }

    /// Whether somebody else holds the Lease in this one's name.
    pub(crate) fn is_impersonated(&self) -> bool {
        !self.own && self.seen.as_ref().is_some_and(|seen| seen.record.holder == self.options.identity)
    }

    // --- what follows ---

    /// What has lapsed is over, whatever is heard of it later.
    fn lapse(&mut self, now: Timestamp) {
        if self.tenure.is_some_and(|tenure| tenure.deadline <= now) {
            self.tenure = None;
        }
    }

    /// A version of the Lease that is as new as any that is known.
    fn observe(&mut self, now: Timestamp, found: Observed) {
        self.look_at = now + self.silence();
        self.transitions_seen = self.transitions_seen.max(found.record.transitions);
        let before = self.seen.as_ref();
        let same_lease = before.is_some_and(|seen| seen.uid == found.uid);
        if same_lease && before.is_some_and(|seen| seen.version == found.version) {
            return;
        }
        // What is ours stays ours while the five fields do. Of somebody else any change of the specification is a sign of life.
        let unchanged = same_lease
            && before.is_some_and(
                |seen| {
                    if self.own { seen.record == found.record } else { seen.spec() == found.spec() }
                },
            );
        let sent = self.unresolved.iter().find(|sent| sent.has_made(&found)).cloned();
        let (free, duration) = (found.record.holder.is_empty(), found.record.duration_seconds);
        self.seen = Some(found);
        match sent {
            Some(sent) => self.confirm(now, &sent),
            None => {
                // What was written over another version than this can happen no more.
                self.unresolved.clear();
                if !unchanged {
                    self.is_anothers(now, free, same_lease, duration);
                }
            }
        }
    }

    /// Somebody else has written.
    fn is_anothers(&mut self, now: Timestamp, free: bool, same_lease: bool, duration: Option<i64>) {
        self.own = false;
        self.tenure = None;
        if !free {
            self.stand_back_until = Timestamp::ZERO;
            let seconds = u64::try_from(duration.unwrap_or(0)).unwrap_or(0);
            let lasts = self.options.lease_duration.max(Duration::from_secs(seconds));
            // Two clocks' rates differ by less than a hundredth.
            let until = now + lasts + lasts / 100;
            self.busy_until = if same_lease { until } else { until.max(self.busy_until) };
            self.take_at = self.busy_until + self.part_of(self.options.retry_interval / 10);
        } else if same_lease {
            // Released. A Lease that is another one says nothing about who held the one before.
            (self.busy_until, self.take_at) = (Timestamp::ZERO, Timestamp::ZERO);
        }
    }

    /// There is no Lease. Whoever held it may not know that yet, and is waited for.
    fn absent(&mut self, now: Timestamp) {
        self.look_at = now + self.silence();
        if self.seen.take().is_some() {
            self.own = false;
            self.tenure = None;
            // The others name a uid that is no more.
            self.unresolved.retain(|sent| sent.uid.is_none());
        }
    }

    /// A write of this process is what stands there.
    fn confirm(&mut self, now: Timestamp, sent: &Sent) {
        self.unresolved.clear();
        self.setbacks = 0;
        self.look_at = now + self.silence();
        (self.busy_until, self.take_at) = (Timestamp::ZERO, Timestamp::ZERO);
        let deadline = sent.at + self.options.renew_deadline();
        match sent.purpose {
            Purpose::Acquire => {
                self.own = true;
                let token = FencingToken::new(u64::try_from(sent.record.transitions).unwrap_or(0));
                self.tenure = (now >= self.stand_back_until).then_some(Tenure { token, deadline });
                self.renew_at = sent.at + self.options.renew_interval;
            }
            Purpose::Renew => {
                self.own = true;
                if let Some(tenure) = &mut self.tenure {
                    tenure.deadline = tenure.deadline.max(deadline);
                    self.renew_at = sent.at + self.options.renew_interval;
                }
            }
            Purpose::Release => {
                self.own = false;
                self.tenure = None;
            }
        }
        self.lapse(now);
    }

    /// A write did not bring what it should: the Lease is read again, at once the first time.
    fn set_back(&mut self, now: Timestamp) {
        self.must_read = true;
        if self.setbacks > 0 {
            self.not_before = now + self.pause();
        }
        self.setbacks = self.setbacks.saturating_add(1);
    }

    fn wait_after(&mut self, now: Timestamp, failure: Failure) {
        self.trouble = Some(failure.message);
        let mut pause = self.pause();
        let wanted = failure.retry_after.unwrap_or(Duration::ZERO);
        match self.tenure {
            // Whoever leads has less time than a server may ask for.
            Some(tenure) => pause = pause.max(wanted.min(tenure.deadline.since(now) / 2)),
            None if failure.fatal && self.wish == Wish::TakePart => {
                pause = pause.max(wanted).max(self.options.lease_duration);
            }
            None => pause = pause.max(wanted),
        }
        self.not_before = now + pause;
        self.look_at = self.not_before;
    }

    fn leave(&mut self, now: Timestamp, wish: Wish) {
        self.lapse(now);
        self.wish = wish;
        self.tenure = None;
        if !self.own && self.unresolved.is_empty() {
            self.end_wish(now, Ok(()));
            // Where nothing was held, nobody needs to be let past.
            self.stand_back_until = Timestamp::ZERO;
        } else {
            // What is on its way may have made this one the holder.
            self.must_read |= !self.unresolved.is_empty();
        }
    }

    fn end_wish(&mut self, now: Timestamp, ended: Result<(), String>) {
        self.over = matches!(self.wish, Wish::Stop(_));
        self.wish = Wish::TakePart;
        self.ended = Some(ended);
        self.stand_back_until = now + self.options.lease_duration;
        self.must_read |= self.seen.is_none();
    }

    /// A retry interval and up to a fifth.
    fn pause(&mut self) -> Duration {
        let interval = self.options.retry_interval;
        interval + self.part_of(interval / 5)
    }

    /// How long to go without hearing anything.
    fn silence(&mut self) -> Duration {
        if self.watching { self.options.renew_interval + self.options.retry_interval } else { self.pause() }
    }

    fn part_of(&mut self, most: Duration) -> Duration {
        Duration::from_nanos(self.random.u64(..=u64::try_from(most.as_nanos()).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod worlds;
