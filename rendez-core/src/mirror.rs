//! A copy of a cluster's records, kept by those stores that have no server-side change log: a watch tells the copy what
//! happens, and the copy answers what has changed and who holds what.
//!
//! Pure: it is told, it never asks. How old it is, its keeper must know.

use std::collections::{BTreeMap, BTreeSet};

use crate::change_index::{ChangeIndex, Key};
use crate::{
    Change, ClusterSettings, FencingToken, Held, NodeId, Record, RecordKey, Revision, SessionId, SessionRecord, Slot,
    SlotRecord, StoreTime, Sync, Versioned, WatchHint, WorkloadName,
};

/// All records of a cluster as of one revision, with what changed before it as far back as is remembered.
///
/// ```
/// use rendez_core::{Change, Mirror, RecordKey, Revision, Sync, Versioned, WorkloadRecord, Record, WatchHint};
/// let mut mirror = Mirror::new(100);
/// mirror.load(Revision(7), Vec::new());
/// let record = Versioned { record: Record::Workload(WorkloadRecord::new(4)), revision: Revision(9) };
/// let change = Change::Record(RecordKey::Workload("inbox".parse().unwrap()), Some(record));
/// assert_eq!(mirror.apply(Revision(9), vec![change]), [WatchHint::Everyone]);
/// assert!(matches!(mirror.sync(None, Revision(7), 10), Sync::Changes { changes, .. } if changes.len() == 1));
/// assert_eq!(mirror.sync(None, Revision(6), 10), Sync::Snapshot);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    tombstones_max: usize,
    /// Of the last change.
    revision: Revision,
    /// Nothing changed between `revision` and this one.
    covered: Revision,
    /// The largest token of any slot that was ever seen.
    token: FencingToken,
    /// The latest moment that any record names as past.
    time: StoreTime,
    sessions: BTreeMap<SessionId, Session>,
    by_node: BTreeMap<NodeId, SessionId>,
    slots: BTreeMap<Slot, SlotRecord>,
    records: BTreeMap<RecordKey, Versioned>,
    index: Option<ChangeIndex>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Session {
    record: SessionRecord,
    held: Held,
}

impl Mirror {
    /// A mirror that was told nothing yet, and that will remember this many deleted keys.
    #[must_use]
    pub fn new(tombstones_max: usize) -> Self {
        Self {
            tombstones_max,
            revision: Revision(0),
            covered: Revision(0),
            token: FencingToken::NONE,
            time: StoreTime::default(),
            sessions: BTreeMap::new(),
            by_node: BTreeMap::new(),
            slots: BTreeMap::new(),
            records: BTreeMap::new(),
            index: None,
        }
    }

    // --- being told ---

    /// These are all records there are at this revision, not lower than the mirror's. What the mirror has and they
    /// have not was deleted meanwhile.
    pub fn load(&mut self, at: Revision, all: Vec<Change>) {
        let mut gone: BTreeSet<Key> = BTreeSet::new();
        gone.extend(self.sessions.keys().map(|id| Key::Session(*id)));
        gone.extend(self.slots.keys().map(|slot| Key::Slot(slot.clone())));
        gone.extend(self.records.keys().map(|key| Key::Record(key.clone())));
        let mut changed: BTreeMap<Revision, Vec<Change>> = BTreeMap::new();
        for change in all {
            let (key, revision, before) = match &change {
                Change::Session(id, record) => (
                    Key::Session(*id),
                    record.as_ref().map(|record| record.revision),
                    self.sessions.get(id).map(|session| session.record.revision),
                ),
                Change::Slot(slot, record) => (
                    Key::Slot(slot.clone()),
                    record.as_ref().map(|record| record.revision),
                    self.slots.get(slot).map(|record| record.revision),
                ),
                Change::Record(key, record) => (
                    Key::Record(key.clone()),
                    record.as_ref().map(|record| record.revision),
                    self.records.get(key).map(|record| record.revision),
                ),
            };
            let Some(revision) = revision else { continue };
            gone.remove(&key);
            if before != Some(revision) {
                changed.entry(revision).or_default().push(change);
            }
        }
        let tombstones_max = self.tombstones_max;
        let index = self.index.get_or_insert_with(|| ChangeIndex::new(tombstones_max, at));
        // Sessions first: a slot counts for a session that is there.
        let mut slots = Vec::new();
        let mut index = std::mem::replace(index, ChangeIndex::new(0, at));
        for (revision, changes) in changed {
            for change in changes {
                match change {
                    Change::Slot(..) => slots.push((revision, change)),
                    Change::Session(..) | Change::Record(..) => self.take(&mut index, revision, change),
                }
            }
        }
        slots.into_iter().for_each(|(revision, change)| self.take(&mut index, revision, change));
        for key in gone {
            let change = match key {
                Key::Session(id) => Change::Session(id, None),
                Key::Slot(slot) => Change::Slot(slot, None),
                Key::Record(key) => Change::Record(key, None),
            };
            self.take(&mut index, at, change);
        }
        self.index = Some(index);
        self.revision = self.revision.max(at);
        self.covered = self.covered.max(at);
    }

    /// What changed at one revision, all of it. Answers whom that concerns. What is not newer than the mirror is
    /// passed over: a watch may tell a thing twice.
    pub fn apply(&mut self, at: Revision, changes: Vec<Change>) -> Vec<WatchHint> {
        let mut hints = Vec::new();
        let Some(mut index) = self.index.take_if(|_| at > self.covered) else { return hints };
        for change in changes {
            if let Some(hint) = self.hint(&change)
                && !hints.contains(&hint)
            {
                hints.push(hint);
            }
            self.take(&mut index, at, change);
        }
        self.index = Some(index);
        (self.revision, self.covered) = (at, at);
        hints
    }

    /// The mirror's keeper knows that nothing changed up to this revision.
    pub fn advance(&mut self, to: Revision) {
        self.covered = self.covered.max(to);
    }

    fn take(&mut self, index: &mut ChangeIndex, at: Revision, change: Change) {
        match change {
            Change::Session(id, Some(record)) => {
                self.time = self.time.max(record.opened_at);
                index.written(Key::Session(id), at);
                self.by_node.insert(record.info.node.clone(), id);
                match self.sessions.get_mut(&id) {
                    Some(session) => session.record = record,
                    None => {
                        self.sessions.insert(id, Session { record, held: Held::default() });
                    }
                }
            }
            Change::Session(id, None) => {
                let Some(session) = self.sessions.remove(&id) else { return };
                index.deleted(Key::Session(id), at);
                let node = &session.record.info.node;
                if self.by_node.get(node) == Some(&id) {
                    self.by_node.remove(node);
                }
            }
            Change::Slot(slot, after) => {
                match &after {
                    Some(record) => {
                        self.token = self.token.max(record.token);
                        let times = [Some(record.taken_at), record.freed_at, record.moved_at];
                        self.time = times.into_iter().flatten().fold(self.time, StoreTime::max);
                        index.written(Key::Slot(slot.clone()), at);
                    }
                    None if self.slots.contains_key(&slot) => index.deleted(Key::Slot(slot.clone()), at),
                    None => return,
                }
                let held = |record: &SlotRecord| Some((record.holder.as_ref()?.session, record.token));
                let held_after = after.as_ref().and_then(held);
                let before = match after {
                    Some(record) => self.slots.insert(slot.clone(), record),
                    None => self.slots.remove(&slot),
                };
                let held_before = before.as_ref().and_then(held);
                Held::follow(&slot, held_before, held_after, |id, change| {
                    if let Some(session) = self.sessions.get_mut(&id) {
                        change(&mut session.held);
                    }
                });
            }
            Change::Record(key, Some(record)) => {
                index.written(Key::Record(key.clone()), at);
                self.records.insert(key, record);
            }
            Change::Record(key, None) => {
                if self.records.remove(&key).is_some() {
                    index.deleted(Key::Record(key), at);
                }
            }
        }
    }

    /// Whom a change concerns that is about to be made.
    fn hint(&self, change: &Change) -> Option<WatchHint> {
        match change {
            Change::Session(id, None) => self.sessions.contains_key(id).then_some(WatchHint::Everyone),
            Change::Session(id, Some(_)) => self.sessions.contains_key(id).then_some(WatchHint::Everyone),
            Change::Record(..) => Some(WatchHint::Everyone),
            Change::Slot(_, None) => None,
            Change::Slot(slot, Some(after)) => {
                let before = self.slots.get(slot);
                let offer = |record: &SlotRecord| record.offer.clone().map(|offer| (offer.id, offer.to, offer.ready));
                let holder = |record: &SlotRecord| record.holder.as_ref().map(|holder| holder.session);
                let (offered, had) = (offer(after), before.and_then(offer));
                let (holds, held) = (holder(after), before.and_then(holder));
                if (holds.is_none() && held.is_some()) || after.force != before.and_then(|before| before.force) {
                    return Some(WatchHint::Everyone);
                }
                match (had, offered) {
                    (Some((_, to, _)), None) if holds != held && holds == Some(to) => Some(WatchHint::Session(to)),
                    (had, Some((id, to, _))) if had.is_none_or(|(before, ..)| before != id) => {
                        Some(WatchHint::Session(to))
                    }
                    // Answered: the giver waits for it.
                    (Some((_, _, false)), Some((_, _, true))) | (Some(_), None) if holds == held => {
                        holds.map(WatchHint::Session)
                    }
                    (Some(_) | None, Some(_) | None) => None,
                }
            }
        }
    }

    // --- answering ---

    /// The revision of the last change, or of the load.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The revision up to which it is known to be true: not lower than that of the last change.
    #[must_use]
    pub fn covered(&self) -> Revision {
        self.covered
    }

    /// The largest token that it has seen.
    #[must_use]
    pub fn token(&self) -> FencingToken {
        self.token
    }

    /// The latest moment that any record names as past.
    #[must_use]
    pub fn time(&self) -> StoreTime {
        self.time
    }

    /// A live session's record.
    #[must_use]
    pub fn session(&self, id: SessionId) -> Option<&SessionRecord> {
        self.sessions.get(&id).map(|session| &session.record)
    }

    /// The live sessions.
    pub fn sessions(&self) -> impl Iterator<Item = (SessionId, &SessionRecord)> {
        self.sessions.iter().map(|(id, session)| (*id, &session.record))
    }

    /// How many sessions live.
    #[must_use]
    pub fn sessions_count(&self) -> usize {
        self.sessions.len()
    }

    /// The node's live session.
    #[must_use]
    pub fn session_of(&self, node: &NodeId) -> Option<SessionId> {
        self.by_node.get(node).copied()
    }

    /// What a live session holds.
    #[must_use]
    pub fn held(&self, id: SessionId) -> Option<Held> {
        self.sessions.get(&id).map(|session| session.held)
    }

    /// A slot's record.
    #[must_use]
    pub fn slot(&self, slot: &Slot) -> Option<&SlotRecord> {
        self.slots.get(slot)
    }

    /// The slots of a workload that have a record.
    pub fn slots_of(&self, workload: &WorkloadName) -> impl Iterator<Item = (&Slot, &SlotRecord)> {
        self.slots.range(Slot::new(workload.clone(), 0)..=Slot::new(workload.clone(), u32::MAX))
    }

    /// An operator's record.
    #[must_use]
    pub fn record(&self, key: &RecordKey) -> Option<&Versioned> {
        self.records.get(key)
    }

    /// The cluster's settings, if there are any.
    #[must_use]
    pub fn settings(&self) -> Option<&ClusterSettings> {
        match &self.records.get(&RecordKey::Settings)?.record {
            Record::Settings(settings) => Some(settings),
            Record::Workload(_) | Record::Node(_) | Record::Pin(_) => None,
        }
    }

    /// What changed since a revision, for this reader: about `most` records at once, the changes of one revision never
    /// told apart.
    #[must_use]
    pub fn sync(&self, reader: Option<SessionId>, since: Revision, most: usize) -> Sync {
        let Some(index) = &self.index else { return Sync::Snapshot };
        // Another handle may have told a revision at which this mirror has seen no change.
        let now = if since > self.revision && since <= self.covered { since } else { self.revision };
        index.sync(since, now, most, |key| self.read(key, reader))
    }

    /// A page of all records, for this reader, after the place where the last one ended, and where this one ends if
    /// there are more. Nothing if there is no such place.
    #[must_use]
    pub fn page(
        &self,
        reader: Option<SessionId>,
        after: Option<&str>,
        most: usize,
    ) -> Option<(Vec<Change>, Option<String>)> {
        let after = match after {
            Some(text) => Some(Key::parse(text)?),
            None => None,
        };
        let Some(index) = &self.index else { return Some((Vec::new(), None)) };
        let (items, last) = index.page(after.as_ref(), most, |key| self.read(key, reader));
        Some((items, last.map(|key| key.to_text())))
    }

    fn read(&self, key: &Key, reader: Option<SessionId>) -> Change {
        match key {
            Key::Record(key) => Change::Record(key.clone(), self.records.get(key).cloned()),
            Key::Session(id) => Change::Session(*id, self.session(*id).cloned()),
            Key::Slot(slot) => Change::Slot(slot.clone(), self.slots.get(slot).map(|record| record.seen_by(reader))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::{
        AdminRequest, Capabilities, ChangeKind, ChangeRequest, CloseRequest, ClusterSettings, HeartbeatRequest,
        Incarnation, Known, NodeInfo, Offer, OpenRequest, Opening, OperationId, SlotChange, SnapshotRequest,
        StoreModel, WorkloadRecord,
    };

    const TTL: Duration = Duration::from_secs(10);

    fn slot(unit: u32) -> Slot {
        Slot::new("w".parse().unwrap(), unit)
    }

    fn session(number: u128) -> SessionId {
        SessionId::from_bits(number)
    }

    fn opened(node: &str, revision: u64) -> SessionRecord {
        SessionRecord {
            incarnation: Incarnation::from_bits(1),
            opened_at: StoreTime::from_micros(revision),
            ttl: TTL,
            info: Arc::new(NodeInfo::new(node.parse().unwrap(), ClusterSettings::new(TTL))),
            revision: Revision(revision),
        }
    }

    fn held(holder: u128, token: u64, revision: u64) -> SlotRecord {
        SlotRecord {
            token: FencingToken::new(token),
            granted_by: OperationId::from_bits(1),
            holder: Some(crate::Holder { session: session(holder), node: "n".parse().unwrap() }),
            taken_at: StoreTime::from_micros(revision),
            freed_at: None,
            moved_at: None,
            offer: None,
            refusals: Vec::new(),
            force: None,
            checkpoint: None,
            revision: Revision(revision),
        }
    }

    fn offered(to: u128, ready: bool, record: SlotRecord) -> SlotRecord {
        let offer = Offer {
            id: OperationId::from_bits(7),
            to: session(to),
            expires_at: StoreTime::from_micros(1),
            giver_total: 1,
            giver_of_workload: 1,
            forced: false,
            ready,
        };
        SlotRecord { offer: Some(offer), ..record }
    }

    #[test]
    fn hints_go_to_those_whom_a_change_concerns() {
        let mut mirror = Mirror::new(8);
        mirror.load(Revision(1), vec![Change::Session(session(1), Some(opened("a", 1)))]);
        let mut at = 1;
        let mut put = |mirror: &mut Mirror, record: SlotRecord| {
            at += 1;
            mirror
                .apply(Revision(at), vec![Change::Slot(slot(0), Some(SlotRecord { revision: Revision(at), ..record }))])
        };
        let (to, giver) = (WatchHint::Session(session(2)), WatchHint::Session(session(1)));
        assert_eq!(put(&mut mirror, held(1, 1, 0)), []);
        assert_eq!(put(&mut mirror, offered(2, false, held(1, 1, 0))), [to]);
        assert_eq!(put(&mut mirror, offered(2, true, held(1, 1, 0))), [giver]);
        assert_eq!(put(&mut mirror, held(2, 2, 0)), [to]);
        assert_eq!(
            put(&mut mirror, SlotRecord { force: Some(FencingToken::new(2)), ..held(2, 2, 0) }),
            [WatchHint::Everyone]
        );
        assert_eq!(put(&mut mirror, SlotRecord { holder: None, ..held(2, 2, 0) }), [WatchHint::Everyone]);
        assert_eq!(put(&mut mirror, offered(2, false, held(1, 3, 0))), [to]);
        // Refused or taken back: the giver looks.
        assert_eq!(put(&mut mirror, held(1, 3, 0)), [giver]);
        let ended = mirror.apply(Revision(90), vec![Change::Session(session(1), None)]);
        assert_eq!(ended, [WatchHint::Everyone]);
        assert_eq!(mirror.apply(Revision(91), vec![Change::Session(session(3), Some(opened("c", 91)))]), []);
    }

    #[test]
    fn what_was_told_already_is_passed_over() {
        let mut mirror = Mirror::new(8);
        assert_eq!(mirror.apply(Revision(5), vec![Change::Slot(slot(0), Some(held(1, 1, 5)))]), []);
        assert_eq!(mirror.slot(&slot(0)), None, "it was never loaded");
        mirror.load(Revision(5), vec![Change::Slot(slot(0), Some(held(1, 1, 5)))]);
        mirror.apply(Revision(4), vec![Change::Slot(slot(0), None)]);
        mirror.apply(Revision(5), vec![Change::Slot(slot(0), None)]);
        assert!(mirror.slot(&slot(0)).is_some());
        mirror.advance(Revision(9));
        mirror.advance(Revision(7));
        assert_eq!((mirror.revision(), mirror.covered()), (Revision(5), Revision(9)));
        let nothing = |up_to| Sync::Changes { changes: Vec::new(), up_to: Revision(up_to), more: false };
        assert_eq!(mirror.sync(None, Revision(5), 1), nothing(5));
        assert_eq!(mirror.sync(None, Revision(8), 1), nothing(8));
        assert_eq!(mirror.sync(None, Revision(10), 1), Sync::Snapshot);
        mirror.apply(Revision(9), vec![Change::Slot(slot(0), None)]);
        assert!(mirror.slot(&slot(0)).is_some(), "nothing changed up to there");
    }

    #[test]
    fn a_second_load_tells_what_came_and_what_went_meanwhile() {
        let mut mirror = Mirror::new(8);
        let one = |unit, token, revision| Change::Slot(slot(unit), Some(held(1, token, revision)));
        let a = Change::Session(session(1), Some(opened("a", 1)));
        mirror.load(Revision(5), vec![one(0, 1, 2), one(1, 2, 3), a.clone()]);
        assert_eq!(mirror.held(session(1)).unwrap().count, 2);
        mirror.load(Revision(9), vec![a, one(0, 1, 2), one(2, 7, 8)]);
        let Sync::Changes { changes, up_to, more: false } = mirror.sync(Some(session(1)), Revision(5), 10) else {
            panic!("the mirror forgot what it knew")
        };
        assert_eq!(changes, [one(2, 7, 8), Change::Slot(slot(1), None)]);
        assert_eq!(up_to, Revision(9));
        let mut expected = Held::default();
        expected.add(&slot(0), FencingToken::new(1));
        expected.add(&slot(2), FencingToken::new(7));
        assert_eq!(mirror.held(session(1)), Some(expected));
        assert_eq!(mirror.token(), FencingToken::new(7));
        assert_eq!(mirror.sync(None, Revision(4), 10), Sync::Snapshot);
        // A dead holder's slots stay, and count for nobody.
        mirror.load(Revision(12), vec![one(0, 1, 2), one(2, 7, 8)]);
        assert_eq!((mirror.held(session(1)), mirror.sessions_count()), (None, 0));
        assert!(mirror.slot(&slot(2)).unwrap().is_held_by(session(1)));
    }

    /// A mirror that follows a model must say what the model says.
    #[test]
    fn a_mirror_of_the_model_answers_as_the_model_does() {
        let mut model = StoreModel::new(1, Capabilities::strict("model"));
        let mut mirror = Mirror::new(4096);
        mirror.load(Revision(0), Vec::new());
        let now = StoreTime::from_micros(1_000_000);
        let open = |model: &mut StoreModel, node: &str, operation| {
            let request = OpenRequest {
                known: Known::default(),
                operation: OperationId::from_bits(operation),
                incarnation: Incarnation::from_bits(1),
                replaces: None,
                ttl: TTL,
                info: NodeInfo::new(node.parse().unwrap(), ClusterSettings::new(TTL)).into(),
            };
            match model.open(now, &request).unwrap() {
                Opening::Opened { session, stamp, .. } => (session, stamp.generation),
                Opening::InUse { .. } => panic!("in use"),
            }
        };
        let (a, generation) = open(&mut model, "a", 1);
        let (b, _) = open(&mut model, "b", 2);
        let known = Known { generation: Some(generation), ..Known::default() };
        let beat = |model: &mut StoreModel, since: Revision| {
            let request = HeartbeatRequest {
                known: known.clone(),
                session: a,
                since: Some(since),
                changes_max: 4096,
                due_within: Duration::ZERO,
                info: None,
            };
            model.heartbeat(now, &request).unwrap()
        };
        let mut random = 1_u64;
        for step in 0..2000_u128 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (pick, unit) = (random >> 60, (random >> 40) as u32 % 6);
            let slot = slot(unit);
            let token = model.slot(&slot).map_or(FencingToken::NONE, |record| record.token);
            let kind = match pick {
                0..7 => ChangeKind::Acquire { operation: OperationId::from_bits(100 + step) },
                7..11 => ChangeKind::Release { checkpoint: Some("c".into()), refuse_for: None },
                11 | 12 => ChangeKind::SaveCheckpoint { checkpoint: "d".into() },
                _ => ChangeKind::Withdraw { offer: OperationId::from_bits(1) },
            };
            let actor = if pick % 2 == 0 { a } else { b };
            let request =
                ChangeRequest { known: known.clone(), session: actor, changes: vec![SlotChange { slot, token, kind }] };
            model.change(now, &request).unwrap();
            if step % 97 == 0 {
                let key = RecordKey::Workload("w".parse().unwrap());
                let record = (step % 2 == 0).then(|| Record::Workload(WorkloadRecord::new(6)));
                model.administer(now, &AdminRequest::Put { key, record, expect: None }).unwrap();
            }
            let since = mirror.covered();
            let told = beat(&mut model, since);
            let Sync::Changes { changes, .. } = told.sync else { panic!("the model forgot") };
            for change in changes {
                let at = match &change {
                    Change::Session(_, record) => record.as_ref().map(|record| record.revision),
                    Change::Slot(_, record) => record.as_ref().map(|record| record.revision),
                    Change::Record(_, record) => record.as_ref().map(|record| record.revision),
                };
                let next = Revision(mirror.covered().0 + 1);
                mirror.apply(at.unwrap_or(next), vec![change]);
            }
            mirror.advance(told.stamp.revision);
            assert_eq!(mirror.held(a), Some(told.held), "step {step}");
            assert_eq!(mirror.token(), told.stamp.token, "step {step}");
        }
        let request = SnapshotRequest { known: known.clone(), session: None, cursor: None };
        let page = model.snapshot(now, &request).unwrap();
        let (mut items, mut place) = (Vec::new(), None);
        loop {
            let (part, next) = mirror.page(None, place.as_deref(), 3).unwrap();
            items.extend(part);
            place = next;
            if place.is_none() {
                break;
            }
        }
        assert_eq!(items, page.items);
        model.close(now, &CloseRequest { known: known.clone(), session: b }).unwrap();
        assert_eq!(mirror.page(None, Some("what"), 3), None);
    }
}
