//! What one handle knows of a cluster: the mirror of its records and the few keys beside them, as of one revision.
//!
//! It is told what is read and what the watch says; it asks nobody.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use etcd_client::{EventType, KeyValue};
use rendez_core::{Change, FencingToken, Generation, Mirror, Revision, SessionId, StoreError, Versioned, WatchHint};

use crate::encode::{self, Meta};
use crate::errors::again;
use crate::keys::{Keys, Name};

/// The most deleted keys that are remembered. Who has seen less takes a snapshot.
const TOMBSTONES_MAX: usize = 4096;

/// The most unreadable keys that are remembered; one is enough to stop.
const DAMAGE_MAX: usize = 64;

/// How long a quiet time still counts that should be over: the server ends it, and late.
const QUIET_LATE: Duration = Duration::from_millis(500);

/// A key and when it was last written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Written<T> {
    pub(crate) value: T,
    pub(crate) revision: i64,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Quiet {
    pub(crate) revision: i64,
    pub(crate) lasts: Duration,
    noted: Instant,
}

pub(crate) struct Picture {
    pub(crate) mirror: Mirror,
    pub(crate) meta: Option<Written<Meta>>,
    /// When any request last wrote: all but ends of sessions and of the quiet time.
    pub(crate) head: i64,
    pub(crate) quiet: Option<Quiet>,
    /// Everything was read once.
    pub(crate) loaded: bool,
    /// What was read cannot be gone on from: read everything again.
    pub(crate) reload: bool,
    /// The latest revision that a linearizable answer has shown.
    pub(crate) reached: i64,
    /// Why there is no watch now.
    trouble: Option<StoreError>,
    /// The keys that cannot be read.
    damage: BTreeMap<Vec<u8>, StoreError>,
}

impl Picture {
    pub(crate) fn new() -> Self {
        Self {
            mirror: Mirror::new(TOMBSTONES_MAX),
            meta: None,
            head: 0,
            quiet: None,
            loaded: false,
            reload: true,
            reached: 0,
            trouble: None,
            damage: BTreeMap::new(),
        }
    }

    pub(crate) fn meta_revision(&self) -> i64 {
        self.meta.as_ref().map_or(0, |meta| meta.revision)
    }

    pub(crate) fn generation(&self) -> Option<Generation> {
        self.meta.as_ref().map(|meta| meta.value.lineage.generation())
    }

    /// No token up to this one is granted again, whether it ever was or not.
    pub(crate) fn floor(&self) -> FencingToken {
        FencingToken::new(self.meta.as_ref().map_or(0, |meta| meta.value.floor))
    }

    pub(crate) fn quiet_revision(&self) -> i64 {
        self.quiet.map_or(0, |quiet| quiet.revision)
    }

    /// How long nothing is granted yet.
    pub(crate) fn quiet_left(&self) -> Duration {
        self.quiet.map_or(Duration::ZERO, |quiet| quiet.lasts.saturating_sub(quiet.noted.elapsed()).max(QUIET_LATE))
    }

    pub(crate) fn reach(&mut self, revision: i64) {
        self.reached = self.reached.max(revision);
    }

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

    /// Everything there is, at one revision.
    pub(crate) fn load(&mut self, keys: &Keys, revision: i64, all: &[KeyValue]) {
        let generation = self.generation();
        let before = std::mem::replace(self, Self::new());
        let mut changes = Vec::new();
        for kv in all {
            if let Some(name) = keys.parse(kv.key()) {
                changes.extend(self.take(&name, kv));
            }
        }
        let same = self.generation() == generation;
        if same && before.mirror.covered() <= Revision(unsigned(revision)) {
            self.mirror = before.mirror;
        }
        // The quiet time is counted from when it was first seen.
        if let (Some(old), Some(new)) = (before.quiet, &mut self.quiet)
            && old.revision == new.revision
        {
            new.noted = old.noted;
        }
        self.mirror.load(Revision(unsigned(revision)), changes);
        self.reached = if same { before.reached.max(revision) } else { revision };
        (self.loaded, self.reload) = (true, false);
    }

    /// What a watch has told, all of one or more revisions. Answers whom it concerns, and whether everything must be
    /// read again.
    pub(crate) fn apply(&mut self, keys: &Keys, events: &[etcd_client::Event]) -> Vec<WatchHint> {
        let mut revisions: BTreeMap<i64, Vec<&etcd_client::Event>> = BTreeMap::new();
        for event in events {
            if let Some(kv) = event.kv() {
                revisions.entry(kv.mod_revision()).or_default().push(event);
            }
        }
        let mut hints = Vec::new();
        for (revision, events) in revisions {
            if Revision(unsigned(revision)) <= self.mirror.covered() {
                continue;
            }
            let mut changes = Vec::new();
            for event in events {
                let Some(kv) = event.kv() else { continue };
                let Some(name) = keys.parse(kv.key()) else { continue };
                match event.event_type() {
                    EventType::Put => changes.extend(self.take(&name, kv)),
                    EventType::Delete => {
                        self.damage.remove(kv.key());
                        changes.extend(self.delete(name));
                    }
                }
            }
            let told = self.mirror.apply(Revision(unsigned(revision)), changes);
            self.reach(revision);
            hints.extend(told);
        }
        hints
    }

    /// Takes a key in, or notes that it cannot be read, until it is written anew or deleted.
    fn take(&mut self, name: &Name, kv: &KeyValue) -> Option<Change> {
        match self.put(name, kv) {
            Ok(change) => {
                self.damage.remove(kv.key());
                change
            }
            Err(error) => {
                if self.damage.len() < DAMAGE_MAX {
                    self.damage.insert(kv.key().to_vec(), error);
                }
                None
            }
        }
    }

    fn put(&mut self, name: &Name, kv: &KeyValue) -> Result<Option<Change>, StoreError> {
        let (value, at) = (kv.value(), kv.mod_revision());
        let revision = Revision(unsigned(at));
        Ok(match name {
            Name::Meta => {
                let meta = encode::meta(value)?;
                if self.generation().is_some_and(|before| before != meta.lineage.generation()) {
                    self.reload = true;
                }
                self.meta = Some(Written { value: meta, revision: at });
                None
            }
            Name::Head => {
                self.head = at;
                None
            }
            Name::Quiet => {
                let lasts = encode::quiet(value)?.lasts;
                self.quiet = Some(Quiet { revision: at, lasts, noted: Instant::now() });
                None
            }
            Name::Node => None,
            Name::Session(id) => {
                let mut record = encode::session(value)?.record;
                record.revision = revision;
                Some(Change::Session(*id, Some(record)))
            }
            Name::Slot(slot) => {
                let mut record = encode::slot(value)?;
                record.revision = revision;
                Some(Change::Slot(slot.clone(), Some(record)))
            }
            Name::Record(key) => {
                let record = encode::record(value)?;
                if !record.fits(key) {
                    return Err(crate::errors::damaged("an operator's record"));
                }
                Some(Change::Record(key.clone(), Some(Versioned { record, revision })))
            }
        })
    }

    fn delete(&mut self, name: Name) -> Option<Change> {
        match name {
            Name::Meta => {
                // What follows is another history.
                self.reload = true;
                None
            }
            Name::Head => {
                self.head = 0;
                None
            }
            Name::Quiet => {
                self.quiet = None;
                None
            }
            Name::Node => None,
            Name::Session(id) => Some(Change::Session(id, None)),
            Name::Slot(slot) => Some(Change::Slot(slot, None)),
            Name::Record(key) => Some(Change::Record(key, None)),
        }
    }

    /// Whether it shows everything that a linearizable read has found. Sessions only come by writes that move the head,
    /// so an equal head and an equal number of sessions are the same sessions.
    pub(crate) fn shows(&self, seen: &Seen) -> bool {
        if !self.loaded || self.reload || self.generation() != seen.generation {
            return false;
        }
        unsigned(seen.revision) <= self.mirror.covered().0
            || (self.head == seen.head
                && self.meta_revision() == seen.meta
                && self.quiet_revision() == seen.quiet
                && i64::try_from(self.mirror.sessions_count()).is_ok_and(|count| count == seen.sessions))
    }

    pub(crate) fn has_session(&self, id: SessionId) -> bool {
        self.mirror.session(id).is_some()
    }
}

/// What a linearizable read has found: by these numbers a picture is known to be as new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) revision: i64,
    pub(crate) generation: Option<Generation>,
    pub(crate) head: i64,
    pub(crate) meta: i64,
    pub(crate) quiet: i64,
    pub(crate) sessions: i64,
}

pub(crate) fn unsigned(revision: i64) -> u64 {
    u64::try_from(revision).unwrap_or(0)
}
