//! The data of one cluster, and the few operations that keep its parts in step.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Hints, TOKEN_MAX};
use crate::change_index::{ChangeIndex, Key};
use crate::store::{Actor, Decision, Surroundings};
use crate::{
    Change, ChangeOutcome, ClusterSettings, FencingToken, Generation, Held, Lineage, NodeId, OperationId, Record,
    RecordKey, Revision, SessionId, SessionRecord, Slot, SlotChange, SlotRecord, StoreTime, Versioned, WorkloadName,
};

/// A session and what only the store knows about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Session {
    pub(super) record: SessionRecord,
    pub(super) opened_by: OperationId,
    pub(super) expires_at: StoreTime,
    pub(super) held: Held,
}

/// A time in which nothing is granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Quiet {
    pub(super) from: StoreTime,
    pub(super) lasts: Duration,
}

/// All that a store keeps of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cluster {
    pub(super) lineage: Lineage,
    /// The history of the server that this was last written in.
    pub(super) history: u64,
    pub(super) quiet: Option<Quiet>,
    /// Whether a session was ever opened.
    pub(super) opened: bool,
    pub(super) revision: Revision,
    /// No token up to this one is granted again.
    pub(super) token: FencingToken,
    /// At every request, these live: the expired ones are removed first.
    pub(super) sessions: BTreeMap<SessionId, Session>,
    by_expiry: BTreeSet<(StoreTime, SessionId)>,
    by_node: BTreeMap<NodeId, SessionId>,
    pub(super) slots: BTreeMap<Slot, SlotRecord>,
    pub(super) records: BTreeMap<RecordKey, Versioned>,
    pub(super) index: ChangeIndex,
}

impl Cluster {
    pub(super) fn new(generation: Generation, history: u64, tombstones_max: usize, recording: bool) -> Self {
        Self {
            lineage: Lineage::new(generation),
            history,
            quiet: None,
            opened: false,
            revision: Revision(0),
            token: FencingToken::NONE,
            sessions: BTreeMap::new(),
            by_expiry: BTreeSet::new(),
            by_node: BTreeMap::new(),
            slots: BTreeMap::new(),
            records: BTreeMap::new(),
            index: ChangeIndex::new(tombstones_max, Revision(0)).recording(recording),
        }
    }

    /// Nothing is granted for this long from now, or longer if it was so before.
    pub(super) fn be_quiet(&mut self, now: StoreTime, lasts: Duration) {
        let lasts = lasts.max(self.quiet_left(now));
        self.quiet = Some(Quiet { from: now, lasts }).filter(|quiet| !quiet.lasts.is_zero());
    }

    /// Lets the quiet time pass. Where the clock has gone back behind its beginning, it is counted from there, so
    /// that it is neither cut short nor drawn out.
    pub(super) fn pass_quiet(&mut self, now: StoreTime) {
        self.quiet = self.quiet.map(|quiet| Quiet { from: quiet.from.min(now), ..quiet });
        self.quiet = self.quiet.filter(|quiet| now < quiet.from + quiet.lasts);
    }

    pub(super) fn quiet_left(&self, now: StoreTime) -> Duration {
        self.quiet.map_or(Duration::ZERO, |quiet| (quiet.from + quiet.lasts).since(now))
    }

    pub(super) fn next_revision(&mut self) -> Revision {
        self.revision.0 += 1;
        self.revision
    }

    /// Draws a token higher than every one before; the caller has made sure that there is one.
    pub(super) fn next_token(&mut self, now: StoreTime) -> FencingToken {
        self.token = FencingToken::new((1 + self.token.get().max(now.as_micros())).min(TOKEN_MAX));
        self.token
    }

    pub(super) fn settings(&self) -> Option<&ClusterSettings> {
        match &self.records.get(&RecordKey::Settings)?.record {
            Record::Settings(settings) => Some(settings),
            Record::Workload(_) | Record::Node(_) | Record::Pin(_) => None,
        }
    }

    // --- sessions ---

    /// Removes the sessions that have ended. The slots that they held are not touched: they are orphans now.
    pub(super) fn reap(&mut self, now: StoreTime) {
        while let Some((_, session)) = self.by_expiry.first().copied().filter(|(at, _)| *at <= now) {
            self.remove_session(session);
        }
    }

    pub(super) fn insert_session(&mut self, id: SessionId, session: Session) {
        self.by_expiry.insert((session.expires_at, id));
        self.by_node.insert(session.record.info.node.clone(), id);
        self.index.written(Key::Session(id), session.record.revision);
        self.sessions.insert(id, session);
        self.opened = true;
    }

    /// Says whether there was one.
    pub(super) fn remove_session(&mut self, id: SessionId) -> bool {
        let Some(session) = self.sessions.remove(&id) else { return false };
        self.by_expiry.remove(&(session.expires_at, id));
        self.by_node.remove(&session.record.info.node);
        let revision = self.next_revision();
        self.index.deleted(Key::Session(id), revision);
        true
    }

    pub(super) fn extend_session(&mut self, id: SessionId, now: StoreTime) {
        if let Some(session) = self.sessions.get_mut(&id) {
            self.by_expiry.remove(&(session.expires_at, id));
            session.expires_at = now + session.record.ttl;
            self.by_expiry.insert((session.expires_at, id));
            self.index.touched(Key::Session(id));
        }
    }

    /// Puts in a session that was read: a new one, or a new state of one that is known.
    pub(super) fn restore_session(&mut self, id: SessionId, mut session: Session) {
        if let Some(before) = self.sessions.remove(&id) {
            self.by_expiry.remove(&(before.expires_at, id));
            session.held = before.held;
        }
        self.by_expiry.insert((session.expires_at, id));
        self.by_node.insert(session.record.info.node.clone(), id);
        self.index.restore(Key::Session(id), Some(session.record.revision), true);
        self.sessions.insert(id, session);
    }

    /// Moves a session's end as it was read.
    pub(super) fn restore_expiry(&mut self, id: SessionId, expires_at: StoreTime) {
        if let Some(session) = self.sessions.get_mut(&id) {
            self.by_expiry.remove(&(session.expires_at, id));
            session.expires_at = expires_at;
            self.by_expiry.insert((expires_at, id));
        }
    }

    /// Lets sessions live on whose time is over.
    pub(super) fn keep_expired(&mut self, now: StoreTime) {
        const LATER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
        while let Some((at, session)) = self.by_expiry.first().copied() {
            if at > now {
                break;
            }
            self.restore_expiry(session, now + LATER);
        }
    }

    /// Takes out a session whose end was read.
    pub(super) fn forget_session(&mut self, id: SessionId, at: Option<Revision>) {
        if let Some(session) = self.sessions.remove(&id) {
            self.by_expiry.remove(&(session.expires_at, id));
            // Another session of the node may have taken its place.
            if self.by_node.get(&session.record.info.node) == Some(&id) {
                self.by_node.remove(&session.record.info.node);
            }
        }
        self.index.restore(Key::Session(id), at, false);
    }

    pub(super) fn session_of(&self, node: &NodeId) -> Option<SessionId> {
        self.by_node.get(node).copied()
    }

    /// The sessions by the moment of their end, soonest first.
    pub(super) fn by_expiry(&self) -> impl Iterator<Item = (StoreTime, SessionId)> {
        self.by_expiry.iter().copied()
    }

    // --- slots ---

    /// Writes a slot's record under a fresh revision.
    pub(super) fn write_slot(&mut self, slot: &Slot, mut record: SlotRecord) {
        record.revision = self.next_revision();
        self.index.written(Key::Slot(slot.clone()), record.revision);
        self.put_slot(slot, record);
    }

    /// Puts a slot's record in, whose revision is noted already, and keeps up what its old and its new holder hold.
    pub(super) fn put_slot(&mut self, slot: &Slot, record: SlotRecord) {
        self.token = self.token.max(record.token);
        let (token, holder) = (record.token, record.holder.as_ref().map(|holder| holder.session));
        let before = self.slots.insert(slot.clone(), record);
        let before = before.and_then(|before| Some((before.holder?.session, before.token)));
        let after = holder.map(|session| (session, token));
        Held::follow(slot, before, after, |id, change| {
            if let Some(session) = self.sessions.get_mut(&id) {
                change(&mut session.held);
            }
        });
    }

    /// Makes one change of one slot.
    pub(super) fn change_slot(&mut self, actor: &Actor<'_>, change: &SlotChange, hints: &mut Hints) -> ChangeOutcome {
        let before = self.slots.get(&change.slot).cloned();
        let decided = actor.decide(before.as_ref(), change, &mut Surrounded { cluster: self, now: actor.now });
        let refused = decided.map(|decision| self.carry_out(&change.slot, decision, hints)).err();
        let record = self.slots.get(&change.slot).map(|record| record.seen_by(Some(actor.session)));
        match refused {
            None => ChangeOutcome::Done(record),
            Some(conflict) => ChangeOutcome::Refused(conflict, record),
        }
    }

    pub(super) fn carry_out(&mut self, slot: &Slot, decision: Decision, hints: &mut Hints) {
        match decision {
            Decision::Unchanged => {}
            Decision::Checkpoint(checkpoint) => {
                if let Some(record) = self.slots.get_mut(slot) {
                    record.checkpoint = Some(checkpoint);
                    self.index.touched(Key::Slot(slot.clone()));
                }
            }
            Decision::Write(record, hint) => {
                self.write_slot(slot, *record);
                hint.into_iter().for_each(|hint| hints.push(hint));
            }
        }
    }

    /// Deletes the slots of a workload that no live session holds, unless a live session declares the workload.
    pub(super) fn delete_slots_of(&mut self, workload: &WorkloadName) {
        if self.sessions.values().any(|session| session.record.info.workloads.contains_key(workload)) {
            return;
        }
        let range = Slot::new(workload.clone(), 0)..=Slot::new(workload.clone(), u32::MAX);
        let sessions = &self.sessions;
        let free = |record: &SlotRecord| !record.holder.as_ref().is_some_and(|h| sessions.contains_key(&h.session));
        let doomed: Vec<Slot> =
            self.slots.range(range).filter(|(_, record)| free(record)).map(|(slot, _)| slot.clone()).collect();
        for slot in doomed {
            self.slots.remove(&slot);
            let revision = self.next_revision();
            self.index.deleted(Key::Slot(slot), revision);
        }
    }

    // --- records of operators ---

    pub(super) fn write_record(&mut self, key: &RecordKey, record: Record) {
        let revision = self.next_revision();
        self.records.insert(key.clone(), Versioned { record, revision });
        self.index.written(Key::Record(key.clone()), revision);
    }

    /// Says whether there was one.
    pub(super) fn delete_record(&mut self, key: &RecordKey) -> bool {
        let existed = self.records.remove(key).is_some();
        if existed {
            let revision = self.next_revision();
            self.index.deleted(Key::Record(key.clone()), revision);
        }
        existed
    }

    // --- reading ---

    /// The record of a key as this session (if any) may see it: checkpoints are for the holder only.
    pub(super) fn read(&self, key: &Key, reader: Option<SessionId>) -> Change {
        match key {
            Key::Record(key) => Change::Record(key.clone(), self.records.get(key).cloned()),
            Key::Session(id) => Change::Session(*id, self.sessions.get(id).map(|session| session.record.clone())),
            Key::Slot(slot) => Change::Slot(slot.clone(), self.slots.get(slot).map(|record| record.seen_by(reader))),
        }
    }
}

struct Surrounded<'a> {
    cluster: &'a mut Cluster,
    now: StoreTime,
}

impl Surroundings for Surrounded<'_> {
    fn node_of(&self, session: SessionId) -> Option<NodeId> {
        self.cluster.sessions.get(&session).map(|session| session.record.info.node.clone())
    }

    fn next_token(&mut self) -> FencingToken {
        self.cluster.next_token(self.now)
    }
}
