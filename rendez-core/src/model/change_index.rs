//! What changed when: one entry a key, so that it grows with the records and not with time.

use std::collections::{BTreeMap, BTreeSet};

use crate::{RecordKey, Revision, SessionId, Slot};

/// The name of anything that has a revision, in the order in which snapshots go through them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Record(RecordKey),
    Session(SessionId),
    Slot(Slot),
}

impl Key {
    /// A text from which [`parse`](Self::parse) makes the key again.
    pub(super) fn to_text(&self) -> String {
        match self {
            Self::Record(RecordKey::Settings) => "settings ".to_owned(),
            Self::Record(RecordKey::Workload(name)) => format!("workload {name}"),
            Self::Record(RecordKey::Node(name)) => format!("node {name}"),
            Self::Record(RecordKey::Pin(slot)) => format!("pin {slot}"),
            Self::Session(session) => format!("session {session}"),
            Self::Slot(slot) => format!("slot {slot}"),
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let (kind, name) = text.split_once(' ')?;
        Some(match kind {
            "settings" => Self::Record(RecordKey::Settings),
            "workload" => Self::Record(RecordKey::Workload(name.parse().ok()?)),
            "node" => Self::Record(RecordKey::Node(name.parse().ok()?)),
            "pin" => Self::Record(RecordKey::Pin(name.parse().ok()?)),
            "session" => Self::Session(name.parse().ok()?),
            "slot" => Self::Slot(name.parse().ok()?),
            _ => return None,
        })
    }
}

/// The last change of every key, and of the keys that were deleted lately.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ChangeIndex {
    keys: BTreeMap<Revision, Key>,
    latest: BTreeMap<Key, Revision>,
    tombstones: BTreeSet<Revision>,
    tombstones_max: usize,
    floor: Revision,
    /// The keys that were touched since they were last taken; nothing unless somebody wants to know.
    touched: Option<BTreeSet<Key>>,
}

impl ChangeIndex {
    pub(super) fn new(tombstones_max: usize, recording: bool) -> Self {
        Self {
            touched: recording.then(BTreeSet::new),
            keys: BTreeMap::new(),
            latest: BTreeMap::new(),
            tombstones: BTreeSet::new(),
            tombstones_max,
            floor: Revision(0),
        }
    }

    /// Notes that the key was written at this revision, higher than any before.
    pub(super) fn written(&mut self, key: Key, at: Revision) {
        self.moved(key, at);
    }

    /// Notes that the key was deleted at this revision. Of too many deleted keys the oldest is forgotten.
    pub(super) fn deleted(&mut self, key: Key, at: Revision) {
        self.moved(key, at);
        self.tombstones.insert(at);
        while self.tombstones.len() > self.tombstones_max {
            let Some(oldest) = self.tombstones.pop_first() else { break };
            if let Some(key) = self.keys.remove(&oldest) {
                self.latest.remove(&key);
            }
            self.floor = oldest;
        }
    }

    /// Notes that something about the key has changed which has no revision.
    pub(super) fn touched(&mut self, key: Key) {
        if let Some(touched) = &mut self.touched {
            touched.insert(key);
        }
    }

    /// The keys that were touched since the last time.
    pub(super) fn take_touched(&mut self) -> BTreeSet<Key> {
        self.touched.as_mut().map(std::mem::take).unwrap_or_default()
    }

    pub(super) fn floor(&self) -> Revision {
        self.floor
    }

    /// When the key last changed; nothing if that was a deletion that is forgotten.
    pub(super) fn revision_of(&self, key: &Key) -> Option<Revision> {
        self.latest.get(key).copied()
    }

    /// Puts in a change that was read: of a key that exists, or of a deleted one, whose revision may be forgotten.
    pub(super) fn restore(&mut self, key: Key, at: Option<Revision>, exists: bool) {
        match at {
            Some(at) => {
                self.moved(key, at);
                if !exists {
                    self.tombstones.insert(at);
                }
            }
            None => {
                if let Some(before) = self.latest.remove(&key) {
                    self.keys.remove(&before);
                    self.tombstones.remove(&before);
                }
            }
        }
    }

    /// Forgets the deletions up to this revision.
    pub(super) fn forget_up_to(&mut self, floor: Revision) {
        while let Some(oldest) = self.tombstones.first().copied().filter(|oldest| *oldest <= floor) {
            self.tombstones.remove(&oldest);
            if let Some(key) = self.keys.remove(&oldest) {
                self.latest.remove(&key);
            }
        }
        self.floor = self.floor.max(floor);
    }

    fn moved(&mut self, key: Key, at: Revision) {
        self.touched(key.clone());
        if let Some(before) = self.latest.insert(key.clone(), at) {
            self.keys.remove(&before);
            self.tombstones.remove(&before);
        }
        self.keys.insert(at, key);
    }

    /// Whether all changes after this revision are known.
    pub(super) fn reaches_back_to(&self, since: Revision) -> bool {
        since >= self.floor
    }

    /// The keys that changed after this revision, oldest change first.
    pub(super) fn after(&self, since: Revision) -> impl Iterator<Item = (Revision, &Key)> {
        self.keys.range(Revision(since.0.saturating_add(1))..).map(|(at, key)| (*at, key))
    }

    /// The keys after this one (all if there is none) in their own order, the deleted ones among them.
    pub(super) fn keys_after(&self, key: Option<&Key>) -> impl Iterator<Item = &Key> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = key.map_or(Unbounded, Excluded);
        self.latest.range::<Key, _>((from, Unbounded)).map(|(key, _)| key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(unit: u32) -> Key {
        Key::Slot(Slot::new("w".parse().unwrap(), unit))
    }

    #[test]
    fn a_key_stands_in_it_once_and_old_tombstones_raise_the_floor() {
        let mut index = ChangeIndex::new(1, false);
        index.written(slot(0), Revision(1));
        index.written(slot(1), Revision(2));
        index.written(slot(0), Revision(3));
        let after = |index: &ChangeIndex, since| index.after(Revision(since)).map(|(at, _)| at.0).collect::<Vec<_>>();
        assert_eq!(after(&index, 0), [2, 3]);
        index.deleted(slot(0), Revision(4));
        assert!(index.reaches_back_to(Revision(0)));
        index.deleted(slot(1), Revision(5));
        assert!(!index.reaches_back_to(Revision(3)) && index.reaches_back_to(Revision(4)));
        index.written(slot(1), Revision(6));
        assert_eq!(after(&index, 4), [6]);
        assert_eq!((index.tombstones.len(), index.latest.len()), (0, 1));
    }

    #[test]
    fn a_key_survives_its_text() {
        let slot: Slot = "a b/{c} /7".parse().unwrap();
        for key in [
            Key::Record(RecordKey::Settings),
            Key::Record(RecordKey::Workload(" w ".parse().unwrap())),
            Key::Record(RecordKey::Node("node pin".parse().unwrap())),
            Key::Record(RecordKey::Pin(slot.clone())),
            Key::Session(SessionId::from_bits(7)),
            Key::Slot(slot),
        ] {
            assert_eq!(Key::parse(&key.to_text()), Some(key));
        }
        assert_eq!(Key::parse("what 1"), None);
    }
}
