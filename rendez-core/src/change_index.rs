//! What changed when: one entry a key, so that it grows with the records and not with time.
//!
//! Answers "what changed since" and pages of everything, for whoever has the records: the model of the contract and
//! the mirror. The records themselves never stand here.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Change, RecordKey, Revision, SessionId, Slot, Sync};

/// The name of anything that has a revision, in the order in which snapshots go through them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Record(RecordKey),
    Session(SessionId),
    Slot(Slot),
}

impl Key {
    /// A text from which [`parse`](Self::parse) makes the key again.
    pub(crate) fn to_text(&self) -> String {
        match self {
            Self::Record(RecordKey::Settings) => "settings ".to_owned(),
            Self::Record(RecordKey::Workload(name)) => format!("workload {name}"),
            Self::Record(RecordKey::Node(name)) => format!("node {name}"),
            Self::Record(RecordKey::Pin(slot)) => format!("pin {slot}"),
            Self::Session(session) => format!("session {session}"),
            Self::Slot(slot) => format!("slot {slot}"),
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
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

/// The last change of every key, and of the keys that were deleted lately. Several keys may change at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChangeIndex {
    keys: BTreeSet<(Revision, Key)>,
    latest: BTreeMap<Key, Revision>,
    tombstones: BTreeSet<(Revision, Key)>,
    tombstones_max: usize,
    floor: Revision,
    /// The keys that were touched since they were last taken; nothing unless somebody wants to know.
    touched: Option<BTreeSet<Key>>,
}

impl ChangeIndex {
    /// An empty index that knows of every change after `floor`.
    pub(crate) fn new(tombstones_max: usize, floor: Revision) -> Self {
        Self {
            keys: BTreeSet::new(),
            latest: BTreeMap::new(),
            tombstones: BTreeSet::new(),
            tombstones_max,
            floor,
            touched: None,
        }
    }

    /// The same index, which remembers the keys that are touched until they are taken.
    pub(crate) fn recording(mut self, recording: bool) -> Self {
        self.touched = recording.then(BTreeSet::new);
        self
    }

    /// Notes that the key was written at this revision, not lower than its last.
    pub(crate) fn written(&mut self, key: Key, at: Revision) {
        self.moved(key, at);
    }

    /// Notes that the key was deleted at this revision. Of too many deleted keys the oldest is forgotten.
    pub(crate) fn deleted(&mut self, key: Key, at: Revision) {
        self.moved(key.clone(), at);
        self.tombstones.insert((at, key));
        while self.tombstones.len() > self.tombstones_max {
            let Some(oldest) = self.tombstones.pop_first() else { break };
            self.floor = oldest.0;
            self.keys.remove(&oldest);
            self.latest.remove(&oldest.1);
        }
    }

    /// Notes that something about the key has changed which has no revision.
    pub(crate) fn touched(&mut self, key: Key) {
        if let Some(touched) = &mut self.touched {
            touched.insert(key);
        }
    }

    /// The keys that were touched since the last time.
    pub(crate) fn take_touched(&mut self) -> BTreeSet<Key> {
        self.touched.as_mut().map(std::mem::take).unwrap_or_default()
    }

    pub(crate) fn floor(&self) -> Revision {
        self.floor
    }

    /// When the key last changed; nothing if that was a deletion that is forgotten.
    pub(crate) fn revision_of(&self, key: &Key) -> Option<Revision> {
        self.latest.get(key).copied()
    }

    /// All keys in their own order, the deleted ones among them.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.latest.keys()
    }

    /// Puts in a change that was read: of a key that exists, or of a deleted one, whose revision may be forgotten.
    pub(crate) fn restore(&mut self, key: Key, at: Option<Revision>, exists: bool) {
        match at {
            Some(at) => {
                self.moved(key.clone(), at);
                if !exists {
                    self.tombstones.insert((at, key));
                }
            }
            None => {
                if let Some(before) = self.latest.remove(&key) {
                    let before = (before, key);
                    self.keys.remove(&before);
                    self.tombstones.remove(&before);
                }
            }
        }
    }

    /// Forgets the deletions up to this revision.
    pub(crate) fn forget_up_to(&mut self, floor: Revision) {
        while let Some(oldest) = self.tombstones.first().filter(|oldest| oldest.0 <= floor).cloned() {
            self.tombstones.remove(&oldest);
            self.keys.remove(&oldest);
            self.latest.remove(&oldest.1);
        }
        self.floor = self.floor.max(floor);
    }

    fn moved(&mut self, key: Key, at: Revision) {
        self.touched(key.clone());
        if let Some(before) = self.latest.insert(key.clone(), at) {
            let before = (before, key.clone());
            self.keys.remove(&before);
            self.tombstones.remove(&before);
        }
        self.keys.insert((at, key));
    }

    /// Whether all changes after this revision are known.
    fn reaches_back_to(&self, since: Revision) -> bool {
        since >= self.floor
    }

    /// The keys that changed after this revision, oldest change first.
    fn after(&self, since: Revision) -> impl Iterator<Item = (Revision, &Key)> {
        // No key stands before this one.
        let from = (Revision(since.0.saturating_add(1)), Key::Record(RecordKey::Settings));
        self.keys.range(from..).map(|(at, key)| (*at, key))
    }

    /// What changed since a revision, up to `now`, read by `read`: about `most` records at once. The changes of one
    /// revision are never told apart, or else nobody could ask for the rest of them.
    pub(crate) fn sync(&self, since: Revision, now: Revision, most: usize, read: impl Fn(&Key) -> Change) -> Sync {
        if since > now || !self.reaches_back_to(since) {
            return Sync::Snapshot;
        }
        let (mut changes, mut up_to) = (Vec::new(), since);
        for (revision, key) in self.after(since) {
            if changes.len() >= most && (revision > up_to || changes.is_empty()) {
                return Sync::Changes { changes, up_to, more: true };
            }
            changes.push(read(key));
            up_to = revision;
        }
        Sync::Changes { changes, up_to: now, more: false }
    }

    /// The records after this key (from the first if there is none) in the order of the keys, and the last key's name
    /// if there are more.
    pub(crate) fn page(
        &self,
        after: Option<&Key>,
        most: usize,
        read: impl Fn(&Key) -> Change,
    ) -> (Vec<Change>, Option<Key>) {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        let (mut items, mut last) = (Vec::new(), None::<&Key>);
        for key in self.latest.range::<Key, _>((from, Unbounded)).map(|(key, _)| key) {
            if items.len() >= most.max(1) {
                return (items, last.cloned());
            }
            let item = read(key);
            let exists = match &item {
                Change::Session(_, record) => record.is_some(),
                Change::Slot(_, record) => record.is_some(),
                Change::Record(_, record) => record.is_some(),
            };
            if exists {
                items.push(item);
                last = Some(key);
            }
        }
        (items, None)
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
        let mut index = ChangeIndex::new(1, Revision(0));
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
    fn the_changes_of_one_revision_are_told_together() {
        let mut index = ChangeIndex::new(8, Revision(0));
        for (unit, at) in [(0, 1), (1, 2), (2, 2), (3, 2), (4, 3)] {
            index.written(slot(unit), Revision(at));
        }
        let told = |since, most| {
            let read = |key: &Key| match key {
                Key::Slot(slot) => Change::Slot(slot.clone(), None),
                Key::Record(_) | Key::Session(_) => unreachable!(),
            };
            match index.sync(Revision(since), Revision(9), most, read) {
                Sync::Changes { changes, up_to, more } => (changes.len(), up_to.0, more),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(told(0, 0), (0, 0, true));
        assert_eq!(told(0, 1), (1, 1, true));
        assert_eq!(told(1, 1), (3, 2, true));
        assert_eq!(told(0, 2), (4, 2, true));
        assert_eq!(told(2, 1), (1, 9, false));
        assert_eq!(told(9, 1), (0, 9, false));
        assert_eq!(index.sync(Revision(10), Revision(9), 1, |_| unreachable!()), Sync::Snapshot);
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
