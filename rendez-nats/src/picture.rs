//! What one handle knows of a cluster: the mirror of its records and the few keys beside them, as of one sequence.
//!
//! It is told what the bucket's consumer says; it asks nobody.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rendez_core::{
    Change, Due, FencingToken, Generation, Holder, Mirror, NodeId, OperationId, Revision, SessionId, Slot, SlotRecord,
    StoreError, StoreTime, Versioned, WatchHint,
};

use crate::encode::{self, Meta, SessionValue};
use crate::errors::{again, damaged};
use crate::keys::{Name, decided_at};

/// The most deleted keys that are remembered. Who has seen less takes a snapshot.
const TOMBSTONES_MAX: usize = 4096;

/// How long the server keeps what is written in the place of a deleted key. Who has heard nothing for half of it reads
/// everything anew.
pub(crate) const TOMBSTONE_LIVES: Duration = Duration::from_secs(3600);

/// How far back what was just read can be asked for changes, at most.
const HISTORY: Duration = Duration::from_secs(5);

/// The most sessions that a heartbeat names as about to end.
const DUE_MAX: usize = 64;

/// The most unreadable keys that are remembered; one is enough to stop.
const DAMAGE_MAX: usize = 64;

/// How long a quiet time still counts that should be over, until its key is seen to be gone.
const QUIET_LATE: Duration = Duration::from_millis(500);

/// How long after its time a key is first looked for, and how often again: the server deletes it a little late.
const CLAIM_AFTER: Duration = Duration::from_millis(10);
pub(crate) const CLAIM_INTERVAL: Duration = Duration::from_millis(150);

/// The most keys that are looked for at once.
pub(crate) const CLAIMS_MAX: usize = 64;

/// What a consumer tells: one write.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) name: Option<Name>,
    pub(crate) sequence: u64,
    /// By the clock of the server that led, in microseconds since 1970.
    pub(crate) published: u64,
    /// Nothing where the key was deleted.
    pub(crate) value: Option<Bytes>,
}

/// A key and when it was last written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Written<T> {
    pub(crate) value: T,
    pub(crate) sequence: u64,
}

#[derive(Debug, Clone, Copy)]
struct Quiet {
    lasts: Duration,
    /// On the servers' clock, in microseconds.
    ends: u64,
    look: Option<Instant>,
}

/// A node's session, as its key tells.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    pub(crate) value: SessionValue,
    /// When it ends unless it is extended: on the servers' clock, in microseconds.
    ends: u64,
    look: Option<Instant>,
}

/// The servers' clock, as their answers show it. It does not go back.
#[derive(Debug, Clone, Copy)]
struct Clock {
    micros: u64,
    at: Instant,
}

impl Clock {
    fn now(&self) -> u64 {
        self.micros.saturating_add(micros(self.at.elapsed()))
    }
}

/// Whether a session lives, as far as the picture shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    Lives,
    /// Its node's key was written by somebody else after it: that is final.
    Dead,
    /// The key is gone or older than the session: not heard of it yet, or ended long ago.
    Unknown,
}

pub(crate) struct Picture {
    cluster: String,
    pub(crate) mirror: Mirror,
    pub(crate) meta: Option<Written<Meta>>,
    quiet: Option<Quiet>,
    sessions: BTreeMap<NodeId, Standing>,
    nodes: BTreeMap<SessionId, NodeId>,
    /// The sequences of the last writes of all keys, deletions included.
    last: BTreeMap<Name, u64>,
    /// They stand beside the mirror: a checkpoint alone is no change that anybody hears of.
    checkpoints: BTreeMap<Slot, Bytes>,
    deletions: VecDeque<(Instant, Name, u64)>,
    clock: Option<Clock>,
    /// How much longer than its TTL a session's key lives.
    pub(crate) margin: Duration,
    /// When the bucket was made, in nanoseconds since 1970.
    pub(crate) bucket: u64,
    /// Everything was read once.
    pub(crate) loaded: bool,
    /// What was read cannot be gone on from: read everything again.
    pub(crate) reload: bool,
    /// The latest sequence that an acknowledgement has named.
    pub(crate) reached: u64,
    /// The server has forgotten what it had told or acknowledged, in this generation: the largest token and sequence
    /// that were seen before.
    pub(crate) forgotten: Option<(Option<Generation>, u64, u64)>,
    /// The last write that was told: its sequence and the server's time.
    pub(crate) told: (u64, u64),
    /// When the consumer was last known to tell everything.
    pub(crate) heard: Instant,
    /// Why there is no watch now.
    trouble: Option<StoreError>,
    /// The keys that cannot be read.
    damage: BTreeMap<Name, StoreError>,
}

impl Picture {
    pub(crate) fn new(cluster: &str) -> Self {
        Self {
            cluster: cluster.to_owned(),
            mirror: Mirror::new(TOMBSTONES_MAX),
            meta: None,
            quiet: None,
            sessions: BTreeMap::new(),
            nodes: BTreeMap::new(),
            last: BTreeMap::new(),
            checkpoints: BTreeMap::new(),
            deletions: VecDeque::new(),
            clock: None,
            margin: Duration::ZERO,
            bucket: 0,
            loaded: false,
            reload: true,
            reached: 0,
            forgotten: None,
            told: (0, 0),
            heard: Instant::now(),
            trouble: None,
            damage: BTreeMap::new(),
        }
    }

    // --- being asked ---

    pub(crate) fn generation(&self) -> Option<Generation> {
        self.meta.as_ref().map(|meta| meta.value.lineage.generation())
    }

    /// No token up to this one is granted again, whether it ever was or not.
    pub(crate) fn floor(&self) -> FencingToken {
        FencingToken::new(self.meta.as_ref().map_or(0, |meta| meta.value.floor))
    }

    /// The sequence of the key's last write, deletions included; 0 if there was none.
    pub(crate) fn last(&self, name: &Name) -> u64 {
        self.last.get(name).copied().unwrap_or(0)
    }

    /// The latest sequence that is known to be there.
    pub(crate) fn newest(&self) -> u64 {
        self.mirror.covered().0.max(self.reached)
    }

    pub(crate) fn clock(&self) -> u64 {
        self.clock.map_or(0, |clock| clock.now())
    }

    /// The servers' time, but never before the latest moment that any record names.
    pub(crate) fn now(&self) -> StoreTime {
        StoreTime::from_micros(self.clock()).max(self.mirror.time())
    }

    /// How long the standing quiet time was meant to last.
    pub(crate) fn quiet(&self) -> Option<Duration> {
        self.quiet.map(|quiet| quiet.lasts)
    }

    /// How long nothing is granted yet.
    pub(crate) fn quiet_left(&self) -> Duration {
        let left = |quiet: Quiet| Duration::from_micros(quiet.ends.saturating_sub(self.clock())).max(QUIET_LATE);
        self.quiet.map_or(Duration::ZERO, left)
    }

    /// A slot's record, with its checkpoint.
    pub(crate) fn slot(&self, slot: &Slot) -> Option<SlotRecord> {
        let record = self.mirror.slot(slot)?.clone();
        Some(SlotRecord { checkpoint: self.checkpoints.get(slot).cloned(), ..record })
    }

    /// Gives the reader the checkpoints of the slots that it holds.
    pub(crate) fn add_checkpoints(&self, reader: Option<SessionId>, changes: &mut [Change]) {
        for change in changes {
            if let Change::Slot(slot, Some(record)) = change
                && reader.is_some_and(|reader| record.is_held_by(reader))
            {
                record.checkpoint = self.checkpoints.get(slot).cloned();
            }
        }
    }

    pub(crate) fn standing(&self, node: &NodeId) -> Option<&Standing> {
        self.sessions.get(node)
    }

    /// A session's node and what stands in its key.
    pub(crate) fn session(&self, id: SessionId) -> Option<(&NodeId, &Standing)> {
        let node = self.nodes.get(&id)?;
        self.sessions.get(node).map(|standing| (node, standing))
    }

    /// How long a session lives if it is not extended.
    pub(crate) fn remaining(&self, standing: &Standing) -> Duration {
        Duration::from_micros(standing.ends.saturating_sub(self.clock())).min(standing.value.record.ttl)
    }

    /// The sessions that end within this time, soonest first, but not the one that asks.
    pub(crate) fn due(&self, within: Duration, asking: SessionId) -> Vec<Due> {
        let until = self.clock().saturating_add(micros(within));
        // By their TTL: that the key lives longer is the store's lateness.
        let others = self.sessions.values().filter(|it| it.value.session != asking);
        let others = others.map(|it| (it.ends.saturating_sub(micros(self.margin)), it.value.session));
        let mut others: Vec<_> = others.filter(|(ends, _)| *ends <= until).collect();
        others.sort_unstable();
        let left = |ends: u64| Duration::from_micros(ends.saturating_sub(self.clock()));
        others.into_iter().take(DUE_MAX).map(|(ends, session)| Due { session, remaining: left(ends) }).collect()
    }

    pub(crate) fn life_of(&self, holder: &Holder) -> Life {
        if self.nodes.contains_key(&holder.session) {
            return Life::Lives;
        }
        if self.last(&Name::Session(holder.node.clone())) > decided_at(holder.session) {
            return Life::Dead;
        }
        Life::Unknown
    }

    /// The keys whose time is over and that may be gone, and when to ask again. Each is named once an interval.
    pub(crate) fn overdue(&mut self) -> (Vec<Name>, Option<Instant>) {
        let (now, clock) = (Instant::now(), self.clock());
        let mut names = Vec::new();
        let mut next: Option<Instant> = None;
        let sessions = self.sessions.iter_mut().map(|(node, it)| (Some(node), it.ends, &mut it.look));
        let quiet = self.quiet.iter_mut().map(|it| (None, it.ends, &mut it.look));
        for (node, ends, look) in sessions.chain(quiet) {
            let left = Duration::from_micros(ends.saturating_sub(clock)) + CLAIM_AFTER;
            let mut due = look.unwrap_or(now + left).max(now + left.saturating_sub(CLAIM_AFTER));
            if due <= now && names.len() < CLAIMS_MAX {
                names.push(node.map_or(Name::Quiet, |node| Name::Session(node.clone())));
                due = now + CLAIM_INTERVAL;
                *look = Some(due);
            } else {
                *look = Some(due);
            }
            next = Some(next.map_or(due, |next| next.min(due)));
        }
        (names, next)
    }

    // --- being told ---

    pub(crate) fn set_trouble(&mut self, trouble: Option<StoreError>) {
        self.trouble = trouble;
    }

    /// Why the picture cannot be used or does not come up to date, if that is known.
    pub(crate) fn trouble(&self) -> Option<StoreError> {
        self.damage.values().next().or(self.trouble.as_ref()).map(again)
    }

    pub(crate) fn damage(&self) -> Option<StoreError> {
        self.damage.values().next().map(again)
    }

    /// A write was acknowledged.
    pub(crate) fn reach(&mut self, sequence: u64) {
        self.reached = self.reached.max(sequence);
    }

    /// It is another bucket.
    pub(crate) fn begin_anew(&mut self, made: u64) {
        let (clock, margin) = (self.clock, self.margin);
        *self = Self { bucket: made, clock, margin, ..Self::new(&self.cluster) };
    }

    /// The server shows less than it has shown before.
    pub(crate) fn went_back(&mut self) {
        if self.forgotten.is_none() {
            self.forgotten = Some((self.generation(), self.mirror.token().get(), self.newest()));
        }
        self.reload = true;
        self.reached = 0;
    }

    /// The server names another last write of a key than the one that was expected. Says whether the picture knew
    /// nothing of it and never will: a deletion that was forgotten there or here.
    pub(crate) fn missed(&mut self, name: &Name, expected: u64, found: Option<u64>) -> bool {
        if self.last(name) != expected || self.has(name) {
            return false;
        }
        match found {
            Some(0) => self.last.remove(name).is_some(),
            Some(found) if found <= self.mirror.covered().0 => {
                self.last.insert(name.clone(), found);
                true
            }
            Some(_) | None => false,
        }
    }

    fn has(&self, name: &Name) -> bool {
        match name {
            Name::Sync => true,
            Name::Meta => self.meta.is_some(),
            Name::Quiet => self.quiet.is_some(),
            Name::Session(node) => self.sessions.contains_key(node),
            Name::Slot(slot) => self.mirror.slot(slot).is_some(),
            Name::Record(key) => self.mirror.record(key).is_some(),
        }
    }

    /// Everything there is, at one sequence: what was told until then.
    pub(crate) fn load(&mut self, all: &[Told], sequence: u64) {
        let all = &last_of_each(all)[..];
        let generation = self.generation();
        let mut before = std::mem::replace(self, Self::new(&self.cluster));
        (self.bucket, self.clock, self.margin) = (before.bucket, before.clock, before.margin);
        for told in all {
            self.hear_clock(told.published);
        }
        let mut changes = Vec::new();
        for told in all {
            changes.extend(self.take(told));
        }
        if before.loaded && self.generation() == generation && self.is_older_than(&before) {
            before.went_back();
        }
        let last = changes.iter().filter_map(revision_of).chain(deletions(all)).max().unwrap_or(Revision(0));
        let same = self.generation() == generation && before.forgotten.is_none();
        if before.forgotten.as_ref().is_some_and(|(of, ..)| *of == self.generation()) {
            self.forgotten = before.forgotten;
        }
        if same && before.loaded && before.mirror.covered() <= Revision(sequence) {
            let live: BTreeSet<&Name> =
                all.iter().filter(|told| told.value.is_some()).flat_map(|it| &it.name).collect();
            // What went without a word went by now.
            let gone = before.last.keys().any(|name| before.has(name) && !live.contains(name));
            let at = if gone { Revision(sequence) } else { before.mirror.revision().max(last) };
            self.mirror = before.mirror;
            self.mirror.load(at, changes);
            self.mirror.advance(Revision(sequence));
        } else {
            self.mirror.load(self.known_since(all).min(last), changes);
            self.mirror.apply(last, Vec::new());
            self.mirror.advance(Revision(sequence));
        }
        self.reached = if same { before.reached } else { 0 };
        self.told = all.last().map_or((0, 0), |last| (last.sequence, last.published));
        (self.loaded, self.reload, self.heard) = (true, false, Instant::now());
    }

    /// Whether some key was written last before the write of it that was known already.
    fn is_older_than(&self, before: &Self) -> bool {
        before.last.iter().any(|(name, known)| self.last.get(name).is_some_and(|found| found < known))
    }

    /// From where on what was read tells every change: who has seen the cluster through another handle a moment ago can
    /// go on with this one. Of what was deleted before, the bucket may not tell any more.
    fn known_since(&self, all: &[&Told]) -> Revision {
        let begin = self.clock().saturating_sub(micros(HISTORY));
        let recent = all.iter().filter(|told| told.published >= begin).map(|told| told.sequence).min();
        let recent = Revision(recent.unwrap_or(u64::MAX).saturating_sub(1));
        // An opening may have taken the place of another session.
        let replaced = self.sessions.values().filter(|standing| standing.value.after > 0);
        let replaced = replaced.map(|standing| standing.value.record.revision);
        replaced.chain(deletions(all)).fold(recent, Revision::max)
    }

    /// One write. Answers whom it concerns.
    pub(crate) fn apply(&mut self, told: &Told) -> Vec<WatchHint> {
        self.heard = Instant::now();
        self.hear_clock(told.published);
        self.told = (told.sequence, told.published);
        let at = Revision(told.sequence);
        if at <= self.mirror.covered() {
            return Vec::new();
        }
        let changes = self.take(told);
        let hints = if changes.is_empty() { Vec::new() } else { self.mirror.apply(at, changes) };
        self.mirror.advance(at);
        hints
    }

    fn hear_clock(&mut self, published: u64) {
        if self.clock.is_none_or(|clock| clock.now() < published) {
            self.clock = Some(Clock { micros: published, at: Instant::now() });
        }
    }

    /// Takes a write in, or notes that it cannot be read, until the key is written anew or deleted.
    fn take(&mut self, told: &Told) -> Vec<Change> {
        let Some(name) = told.name.as_ref().filter(|name| **name != Name::Sync) else { return Vec::new() };
        self.last.insert(name.clone(), told.sequence);
        let taken = match &told.value {
            Some(value) => self.put(name, value, told),
            None => Ok(self.delete(name, told.sequence).into_iter().collect()),
        };
        match taken {
            Ok(changes) => {
                self.damage.remove(name);
                changes
            }
            Err(error) => {
                if self.damage.len() < DAMAGE_MAX {
                    self.damage.insert(name.clone(), error);
                }
                Vec::new()
            }
        }
    }

    fn put(&mut self, name: &Name, value: &Bytes, told: &Told) -> Result<Vec<Change>, StoreError> {
        let sequence = told.sequence;
        Ok(match name {
            Name::Sync => Vec::new(),
            Name::Meta => {
                let meta = encode::meta(value)?;
                if meta.cluster != self.cluster {
                    return Err(damaged("the cluster's meta record, which is another cluster's,"));
                }
                if self.loaded && self.generation().is_some_and(|before| before != meta.lineage.generation()) {
                    self.reload = true;
                }
                self.meta = Some(Written { value: meta, sequence });
                Vec::new()
            }
            Name::Quiet => {
                let lasts = encode::quiet(value)?.lasts;
                self.quiet = Some(Quiet { lasts, ends: told.published.saturating_add(micros(lasts)), look: None });
                Vec::new()
            }
            Name::Session(node) => {
                let value = encode::session(value, sequence)?;
                if value.record.info.node != *node {
                    return Err(damaged("a session"));
                }
                let (id, record) = (value.session, value.record.clone());
                let ends = told.published.saturating_add(micros(record.ttl + self.margin));
                let before = self.sessions.insert(node.clone(), Standing { value, ends, look: None });
                self.nodes.insert(id, node.clone());
                let gone = before.map(|before| before.value.session).filter(|before| *before != id);
                if let Some(gone) = gone {
                    self.nodes.remove(&gone);
                }
                // A heartbeat says nothing new, but the mirror may not have the session after a load.
                let new = self.mirror.session(id) != Some(&record);
                let gone = gone.map(|gone| Change::Session(gone, None));
                gone.into_iter().chain(new.then_some(Change::Session(id, Some(record)))).collect()
            }
            Name::Slot(slot) => {
                let mut record = encode::slot(value, sequence)?;
                match record.checkpoint.take() {
                    Some(checkpoint) => self.checkpoints.insert(slot.clone(), checkpoint),
                    None => self.checkpoints.remove(slot),
                };
                let new = self.mirror.slot(slot) != Some(&record);
                new.then(|| Change::Slot(slot.clone(), Some(record))).into_iter().collect()
            }
            Name::Record(key) => {
                let record = encode::record(value)?;
                if !record.fits(key) {
                    return Err(damaged("an operator's record"));
                }
                vec![Change::Record(key.clone(), Some(Versioned { record, revision: Revision(sequence) }))]
            }
        })
    }

    fn delete(&mut self, name: &Name, sequence: u64) -> Option<Change> {
        self.note_deletion(name, sequence);
        match name {
            Name::Sync => None,
            Name::Meta => {
                // What follows is another history.
                self.reload |= self.loaded;
                self.meta = None;
                None
            }
            Name::Quiet => {
                self.quiet = None;
                None
            }
            Name::Session(node) => {
                let gone = self.sessions.remove(node)?.value.session;
                self.nodes.remove(&gone);
                Some(Change::Session(gone, None))
            }
            Name::Slot(slot) => {
                self.checkpoints.remove(slot);
                Some(Change::Slot(slot.clone(), None))
            }
            Name::Record(key) => Some(Change::Record(key.clone(), None)),
        }
    }

    /// Deletions are forgotten here when the server has forgotten them too.
    fn note_deletion(&mut self, name: &Name, sequence: u64) {
        self.deletions.push_back((Instant::now(), name.clone(), sequence));
        while let Some((at, name, sequence)) = self.deletions.front() {
            if at.elapsed() < TOMBSTONE_LIVES && self.deletions.len() <= TOMBSTONES_MAX {
                break;
            }
            if self.last.get(name) == Some(sequence) {
                self.last.remove(name);
            }
            self.deletions.pop_front();
        }
    }
}

/// The last write of each key: what is written while everything is read comes behind what stood there before.
fn last_of_each(all: &[Told]) -> Vec<&Told> {
    let last: BTreeMap<&Name, u64> = all.iter().filter_map(|told| Some((told.name.as_ref()?, told.sequence))).collect();
    all.iter().filter(|told| told.name.as_ref().is_none_or(|name| last.get(name) == Some(&told.sequence))).collect()
}

fn deletions(all: &[&Told]) -> impl Iterator<Item = Revision> {
    all.iter().filter(|told| told.value.is_none()).map(|told| Revision(told.sequence))
}

fn revision_of(change: &Change) -> Option<Revision> {
    match change {
        Change::Session(_, record) => record.as_ref().map(|record| record.revision),
        Change::Slot(_, record) => record.as_ref().map(|record| record.revision),
        Change::Record(_, record) => record.as_ref().map(|record| record.revision),
    }
}

/// A session's value as its next heartbeat writes it.
impl Standing {
    pub(crate) fn extended(&self) -> SessionValue {
        SessionValue { at: Some(self.value.record.revision.0), ..self.value.clone() }
    }

    pub(crate) fn opened_by(&self) -> OperationId {
        self.value.opened_by
    }
}

pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rendez_core::{Record, RecordKey};

    /// The consumer tells the last write of each key, and then whatever is written until it is told everything.
    #[test]
    fn what_is_deleted_while_everything_is_read_is_gone() {
        let key = RecordKey::Pin("w/1".parse().unwrap());
        let told = |name, sequence, value| Told { name: Some(name), sequence, published: sequence, value };
        let pin = encode::json(&Record::Pin("n".parse().unwrap())).unwrap();
        let all = [
            told(Name::Record(key.clone()), 5, Some(pin)),
            told(Name::Record(key.clone()), 6, None),
            told(Name::Sync, 7, Some(Bytes::new())),
        ];
        let mut fresh = Picture::new("c");
        fresh.load(&all, 7);
        assert_eq!(fresh.mirror.record(&key), None);
        let mut again = Picture::new("c");
        again.load(&all[..1], 5);
        assert!(again.mirror.record(&key).is_some());
        again.load(&all, 7);
        assert_eq!(again.mirror.record(&key), None);
        assert_eq!(again.last(&Name::Record(key)), 6);
    }
}
