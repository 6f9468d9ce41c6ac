//! Keeping the view: snapshots page by page, and hints.

use crate::Timestamp;
use crate::store::{Change, Cursor, SnapshotPage, SnapshotRequest, Stamp, WatchHint};

use super::Engine;
use super::api::{Call, Event, RequestId};
use super::session::Phase;

/// The most changes in one answer.
pub(super) const CHANGES_MAX: u32 = 4096;

/// A snapshot that is being read.
#[derive(Debug, Default)]
pub(super) struct Paging {
    first: Option<Stamp>,
    items: Vec<Change>,
    cursor: Option<Cursor>,
    request: Option<RequestId>,
}

impl Engine {
    pub(super) fn is_paging(&self) -> bool {
        self.paging.is_some()
    }

    /// Begins to read everything anew.
    pub(super) fn take_snapshot(&mut self) {
        self.paging = Some(Paging::default());
    }

    pub(super) fn paging_due(&self) -> Timestamp {
        let waiting = self.paging.as_ref().is_some_and(|paging| paging.request.is_none());
        if waiting && matches!(self.phase, Phase::Open(_)) { self.backoff_until } else { Timestamp::NEVER }
    }

    pub(super) fn send_page(&mut self, now: Timestamp) {
        if now < self.paging_due() {
            return;
        }
        let (Some(paging), Phase::Open(open)) = (&self.paging, &self.phase) else { return };
        let snapshot =
            SnapshotRequest { known: self.known.clone(), session: Some(open.id), cursor: paging.cursor.clone() };
        let request = self.send(Call::Snapshot(snapshot));
        if let Some(paging) = &mut self.paging {
            paging.request = Some(request);
        }
    }

    /// A page could not be read. False if it was another request.
    pub(super) fn page_failed(&mut self, _now: Timestamp, request: RequestId) -> bool {
        let Some(paging) = self.paging.as_mut().filter(|paging| paging.request == Some(request)) else { return false };
        // From the beginning: the place between two pages may be what went wrong.
        *paging = Paging::default();
        true
    }

    pub(super) fn on_page(&mut self, now: Timestamp, request: RequestId, page: SnapshotPage) {
        if self.paging.as_ref().is_none_or(|paging| paging.request != Some(request)) {
            return;
        }
        if !self.take_stamp(now, request, &page.stamp) {
            self.take_snapshot();
            return;
        }
        let Some(paging) = &mut self.paging else { return };
        if paging.request != Some(request) {
            return; // the stamp was that of a new generation, and reading has begun anew
        }
        paging.request = None;
        let first = paging.first.get_or_insert_with(|| page.stamp.clone());
        if first.generation != page.stamp.generation {
            *paging = Paging::default();
            return;
        }
        paging.items.extend(page.items);
        paging.cursor = page.next;
        if paging.cursor.is_some() {
            return;
        }
        let Some(Paging { first: Some(first), items, .. }) = self.paging.take() else { return };
        self.synced_at = first.now;
        let first = Stamp { now: page.stamp.now, ..first };
        self.view.restart(now, first, items);
        self.view.set_own(now, self.info.clone());
        self.plan_dirty = true;
        self.want_sync(now);
        let mut slots: Vec<_> = self.slots.keys().cloned().collect();
        if let Some((session, _)) = self.session() {
            slots.extend(self.view.held_by(session).cloned());
            // Made before or while this was read: no change will tell of them.
            let mine = self
                .view
                .offers(now)
                .filter(|(_, record)| record.offer.as_ref().is_some_and(|offer| offer.to == session));
            slots.extend(mine.map(|(slot, _)| slot.clone()));
        }
        for slot in &slots {
            self.look_at_slot(now, slot);
        }
        self.tell_settings();
    }

    pub(super) fn on_hint(&mut self, now: Timestamp, hint: WatchHint) {
        let Phase::Open(open) = &self.phase else { return };
        let bucket = match hint {
            WatchHint::Session(session) if session != open.id => return,
            WatchHint::Session(_) => &mut self.hints_own,
            WatchHint::Everyone => &mut self.hints_everyone,
        };
        let from = bucket.take(now).err().unwrap_or(now);
        self.want_sync(from);
    }

    pub(super) fn tell_settings(&mut self) {
        let differ = self.view.settings_differ();
        if differ != self.settings_differ_told {
            self.settings_differ_told.clone_from(&differ);
            self.tell(Event::SettingsDiffer { nodes: differ });
        }
    }

    /// Whether a just opened session leaves orphans alone still, so that nodes that start together share the work at
    /// once: for the start delay, and in a cluster whose first node has just come until that long after the last one, but
    /// no longer than a heartbeat interval after the first. Then it looks once more who is there.
    pub(super) fn waits_for_others(&mut self, now: Timestamp) -> bool {
        let Phase::Open(open) = &mut self.phase else { return true };
        let (delay, interval) = (self.config.stabilizers.start_delay, self.config.timing.heartbeat_interval);
        // Should the store's time stand still, or no heartbeat be answered.
        let until = open.opened_at + delay.max(interval);
        if open.after_loss || delay.is_zero() || now >= until {
            return false;
        }
        let opened = || self.view.sessions().map(|(_, record)| record.opened_at);
        let own = self.view.session(open.id).map(|record| record.opened_at);
        let begin = opened().min().zip(opened().max()).zip(own).map(|((first, last), own)| {
            let others = (last + delay).min(first + interval);
            others.max(own + delay)
        });
        if begin.is_some_and(|begin| self.synced_at >= begin) {
            return false;
        }
        open.waits = true;
        self.tick_at = self.tick_at.min(until);
        if let Some(begin) = begin {
            self.want_sync(now + begin.since(self.view.store_now(now)));
        }
        true
    }
}
