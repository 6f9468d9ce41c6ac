//! What heartbeats have told one side: a view, and up to where it goes.
//!
//! The contract promises that all records come, each as it is now, and no word about how many at once: so sides are
//! compared when both have been told everything.

use rendez_core::*;

use super::super::stage::View;
use super::Comparison;
use super::names::Names;

#[derive(Default)]
pub(super) struct Told {
    /// Nothing before the first snapshot of a generation.
    begun: Option<(Generation, Revision)>,
    view: View,
}

/// How far an answer has brought a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reached {
    /// Nothing was asked.
    Nothing,
    /// There is more.
    Part,
    /// It is what the store has.
    All,
    /// It must be read anew.
    Anew,
}

impl Told {
    /// Begins with a snapshot.
    pub(super) fn of(page: &SnapshotPage) -> Self {
        let mut view = View::default();
        page.items.iter().for_each(|item| view.apply(item.clone()));
        Self { begun: Some((page.stamp.generation, page.stamp.revision)), view }
    }

    /// Up to where it was told everything.
    pub(super) fn since(&self) -> Option<Revision> {
        self.begun.map(|(_, since)| since)
    }

    /// What was told in another generation is worth nothing.
    pub(super) fn stay_in(&mut self, generation: Generation) {
        if self.begun.is_some_and(|(of, _)| of != generation) {
            *self = Self::default();
        }
    }

    /// # Errors
    /// With what no store may tell.
    pub(super) fn hear(&mut self, request: &HeartbeatRequest, beat: &Beat) -> Result<Reached, String> {
        let (changes, up_to, more) = match &beat.sync {
            Sync::NotAsked if request.since.is_none() => return Ok(Reached::Nothing),
            Sync::Snapshot if request.since.is_some() => return Ok(Reached::Anew),
            Sync::Changes { changes, up_to, more } => (changes, *up_to, *more),
            Sync::NotAsked | Sync::Snapshot => return Err("it does not say whether anything has changed".to_owned()),
        };
        let Some((asked, (generation, since))) = request.since.zip(self.begun) else {
            return Err("it tells changes that nobody has asked for".to_owned());
        };
        if request.known.generation != Some(generation) {
            return Err("it tells changes since a revision of another generation".to_owned());
        }
        if up_to < asked || (more && up_to == asked && request.changes_max > 0) {
            return Err(format!("it was asked for changes since {asked:?}, and leads to {up_to:?}, more: {more}"));
        }
        for change in changes {
            if let Change::Slot(slot, Some(record)) = change
                && record.checkpoint.is_some()
                && !record.is_held_by(request.session)
            {
                return Err(format!("it tells the checkpoint of {slot} to a session that does not hold it"));
            }
            self.view.apply(change.clone());
        }
        self.begun = Some((generation, since.max(up_to)));
        Ok(if more { Reached::Part } else { Reached::All })
    }

    /// What a session holds by this view.
    pub(super) fn held(&self, session: SessionId) -> Held {
        let mut held = Held::default();
        for (slot, record) in self.view.slots.iter().filter(|(_, record)| record.is_held_by(session)) {
            held.add(slot, record.token);
        }
        held
    }

    /// All records in words. Checkpoints are told to holders only, and not when they alone have changed.
    pub(super) fn text(&self, names: &mut Names) -> String {
        let View { sessions, slots, records } = self.view.clone();
        let sessions = sessions.into_iter().map(|(id, record)| Change::Session(id, Some(record)));
        let slots = slots.into_iter().map(|(slot, record)| Change::Slot(slot, Some(record.seen_by(None))));
        let records = records.into_iter().map(|(key, record)| Change::Record(key, Some(record)));
        let all: Vec<Change> = sessions.chain(slots).chain(records).collect();
        names.items(&all, Comparison::Freely)
    }
}
