//! Changes of slots that are to be made, in batches, until the store has said what became of each.
//!
//! An unanswered change is sent again as it was, with the same operation id; nothing here decides what to change.

use std::collections::BTreeMap;

use crate::store::{ChangeKind, SlotChange};
use crate::{FencingToken, Slot, Timestamp};

use super::api::{RequestId, Ticket};

/// At most this many batches are under way at once.
pub(super) const BATCHES_MAX: usize = 4;

/// What a change is about; a slot has at most one change of each lane under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Lane {
    /// The lease: acquire, offer, release, transfer, re-adopt.
    Lease,
    /// The answer to an offer of another node.
    Answer,
    /// The checkpoint of a runner.
    Checkpoint(Ticket),
}

#[derive(Debug)]
struct Entry {
    token: FencingToken,
    kind: ChangeKind,
    /// Not before this time.
    at: Timestamp,
    sent: Option<RequestId>,
}

/// Changes that are to be made or under way.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    entries: BTreeMap<(Slot, Lane), Entry>,
    batches: BTreeMap<RequestId, Vec<(Slot, Lane)>>,
    unsent: usize,
}

impl Outbox {
    /// Whether a change of this lane is waiting or under way.
    pub(super) fn has(&self, slot: &Slot, lane: Lane) -> bool {
        self.kind(slot, lane).is_some()
    }

    /// The change of this lane that is waiting or under way.
    pub(super) fn kind(&self, slot: &Slot, lane: Lane) -> Option<&ChangeKind> {
        self.entries.get(&(slot.clone(), lane)).map(|entry| &entry.kind)
    }

    /// Whether anything waits or is under way.
    pub(super) fn is_busy(&self) -> bool {
        !self.entries.is_empty()
    }

    /// Whether anything waits to be sent.
    pub(super) fn has_unsent(&self) -> bool {
        self.unsent > 0
    }

    /// Slots with a change of their lease that is waiting or under way: perhaps taken, or not given back yet.
    pub(super) fn changing(&self) -> impl Iterator<Item = &Slot> {
        self.entries.keys().filter(|(_, lane)| *lane == Lane::Lease).map(|(slot, _)| slot)
    }

    /// Slots whose re-adoption waits to be sent, for the first time or again.
    pub(super) fn unsent_readoptions(&self) -> impl Iterator<Item = &Slot> {
        let waiting = |entry: &Entry| entry.sent.is_none() && matches!(entry.kind, ChangeKind::Readopt);
        let entries = (self.unsent > 0).then_some(&self.entries).into_iter().flatten();
        entries.filter(move |(_, entry)| waiting(entry)).map(|((slot, _), _)| slot)
    }

    /// Adds a change. The lane must be free.
    pub(super) fn push(&mut self, slot: &Slot, lane: Lane, token: FencingToken, kind: ChangeKind, at: Timestamp) {
        let entry = Entry { token, kind, at, sent: None };
        let old = self.entries.insert((slot.clone(), lane), entry);
        debug_assert!(old.is_none(), "two changes in one lane of {slot}");
        self.unsent += 1;
    }

    /// Takes back a change that was not sent yet.
    pub(super) fn cancel_unsent(&mut self, slot: &Slot, lane: Lane) -> bool {
        let key = (slot.clone(), lane);
        let unsent = self.entries.get(&key).is_some_and(|entry| entry.sent.is_none());
        if unsent {
            self.entries.remove(&key);
            self.unsent -= 1;
        }
        unsent
    }

    /// The next batch to send, of at most this many changes; nothing if there is none, or enough are under way.
    pub(super) fn batch(&mut self, now: Timestamp, request: RequestId, changes_max: usize) -> Option<Vec<SlotChange>> {
        if self.unsent == 0 || self.batches.len() >= BATCHES_MAX {
            return None;
        }
        let mut keys = Vec::new();
        let mut changes = Vec::new();
        let mut saving = None;
        for (key, entry) in &mut self.entries {
            if changes.len() == changes_max {
                break;
            }
            let first = is_first_of_slot(key, &mut saving);
            if first && entry.sent.is_none() && entry.at <= now {
                entry.sent = Some(request);
                keys.push(key.clone());
                changes.push(SlotChange { slot: key.0.clone(), token: entry.token, kind: entry.kind.clone() });
            }
        }
        if changes.is_empty() {
            return None;
        }
        self.unsent -= changes.len();
        self.batches.insert(request, keys);
        Some(changes)
    }

    /// A batch was answered: takes its changes out, in the order in which they were sent.
    pub(super) fn answered(&mut self, request: RequestId) -> Option<Vec<(Slot, Lane, FencingToken, ChangeKind)>> {
        let keys = self.batches.remove(&request)?;
        let taken = keys.into_iter().map(|key| {
            let entry = self.entries.remove(&key).expect("a change under way has its entry");
            (key.0, key.1, entry.token, entry.kind)
        });
        Some(taken.collect())
    }

    /// A batch was not answered: its changes will be sent again, not before this time.
    pub(super) fn unanswered(&mut self, request: RequestId, again_at: Timestamp) -> bool {
        let Some(keys) = self.batches.remove(&request) else { return false };
        self.unsent += keys.len();
        for key in keys {
            let entry = self.entries.get_mut(&key).expect("a change under way has its entry");
            entry.sent = None;
            entry.at = again_at;
        }
        true
    }

    /// When the next change may be sent.
    pub(super) fn next(&self) -> Timestamp {
        if self.unsent == 0 || self.batches.len() >= BATCHES_MAX {
            return Timestamp::NEVER;
        }
        let mut saving = None;
        let first = self.entries.iter().filter(|(key, _)| is_first_of_slot(key, &mut saving));
        let unsent = first.filter(|(_, entry)| entry.sent.is_none());
        unsent.map(|(_, entry)| entry.at).min().unwrap_or(Timestamp::NEVER)
    }

    /// Drops everything: the session that it was for is dead. Returns the checkpoints that are not saved.
    pub(super) fn clear(&mut self) -> Vec<Ticket> {
        let tickets = self.entries.keys().filter_map(|(_, lane)| match lane {
            Lane::Checkpoint(ticket) => Some(*ticket),
            Lane::Lease | Lane::Answer => None,
        });
        let tickets = tickets.collect();
        *self = Self::default();
        tickets
    }
}

/// Whether a change need not wait for another one of its slot. The checkpoints of a slot are saved one after the other,
/// oldest first, or the retry of an earlier one could come to lie over a later one. Asked for all changes in order.
fn is_first_of_slot<'a>(key: &'a (Slot, Lane), saving: &mut Option<&'a Slot>) -> bool {
    match key.1 {
        Lane::Lease | Lane::Answer => true,
        Lane::Checkpoint(_) => saving.replace(&key.0) != Some(&key.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unanswered_checkpoint_is_saved_before_the_next_one_of_its_slot() {
        let mut outbox = Outbox::default();
        let slots: [Slot; 2] = ["w/0".parse().unwrap(), "w/1".parse().unwrap()];
        let at = Timestamp::from_nanos;
        let save = |text: &'static str| ChangeKind::SaveCheckpoint { checkpoint: text.as_bytes().into() };
        let push = |outbox: &mut Outbox, slot: &Slot, ticket, text| {
            outbox.push(slot, Lane::Checkpoint(Ticket(ticket)), FencingToken::new(1), save(text), at(0));
        };
        push(&mut outbox, &slots[0], 1, "older");
        push(&mut outbox, &slots[0], 2, "newer");
        push(&mut outbox, &slots[1], 3, "other");
        let kinds =
            |batch: Option<Vec<SlotChange>>| batch.map(|batch| batch.into_iter().map(|c| c.kind).collect::<Vec<_>>());
        assert_eq!(kinds(outbox.batch(at(1), RequestId(1), 9)), Some(vec![save("older"), save("other")]));
        assert_eq!(outbox.next(), Timestamp::NEVER, "nothing to do before the answer");
        assert!(outbox.unanswered(RequestId(1), at(5)));
        assert_eq!(outbox.next(), at(5));
        assert_eq!(kinds(outbox.batch(at(1), RequestId(2), 9)), None);
        assert_eq!(kinds(outbox.batch(at(5), RequestId(3), 9)), Some(vec![save("older"), save("other")]));
        assert_eq!(outbox.answered(RequestId(3)).map(|all| all.len()), Some(2));
        assert_eq!(kinds(outbox.batch(at(5), RequestId(4), 9)), Some(vec![save("newer")]));
    }
}
