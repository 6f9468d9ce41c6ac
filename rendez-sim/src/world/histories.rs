//! The histories of a few slots, as their nodes see them: which requests have come to the store, and what was answered.
//!
//! Every world judges some of its slots, chosen by its seed; all of them would cost more than they show.

use rendez_core::{
    Call, Change, ChangeKind, ChangeOutcome, FencingToken, Reply, RequestId, Slot, SlotRecord, StoreError, Sync,
};

use super::World;
use super::network::lease;
use super::node::workload;
use crate::dice::Dice;
use crate::scenario::Scenario;
use crate::trace::{Ask, Fact, Shown, Standing};

/// The most slots of a world whose histories are judged.
const WATCHED_MAX: u32 = 3;

/// Chooses slots of a scenario.
pub(super) fn choose(scenario: &Scenario) -> Vec<Slot> {
    let mut dice = Dice::new(scenario.seed ^ 0x1157_041E);
    let mut watched = Vec::new();
    for _ in 0..WATCHED_MAX.min(scenario.slots()) {
        let number = dice.below(scenario.workloads.len() as u64) as usize;
        let unit = dice.below(u64::from(scenario.workloads[number])) as u32;
        let slot = Slot::new(workload(number), unit);
        if !watched.contains(&slot) {
            watched.push(slot);
        }
    }
    watched
}

impl World {
    /// A request has come to the store, which has carried it out.
    pub(super) fn tell_asks(
        &mut self,
        node: usize,
        life: u32,
        request: RequestId,
        call: &Call,
        result: &Result<Reply, StoreError>,
        answer: bool,
    ) {
        let mut asks = Vec::new();
        match (call, result) {
            (Call::Change(request), Ok(_)) => {
                for (at, change) in request.changes.iter().enumerate() {
                    if self.watched.contains(&change.slot) {
                        asks.push((at, change.slot.clone(), Some(request.session), change.token, asked(&change.kind)));
                    }
                }
            }
            (Call::Heartbeat(_), Ok(Reply::Heartbeat(beat))) => {
                if let Sync::Changes { changes, .. } = &beat.sync {
                    asks.extend(self.read(changes));
                }
            }
            (Call::Snapshot(_), Ok(Reply::Snapshot(page))) => asks.extend(self.read(&page.items)),
            (Call::Open(_) | Call::Heartbeat(_) | Call::Change(_) | Call::Snapshot(_) | Call::Close(_), _) => {}
        }
        if asks.is_empty() {
            return;
        }
        let mut asked = Vec::new();
        for (at, slot, session, named, what) in asks {
            let slot = self.slot_no(&slot);
            self.asks += 1;
            asked.push((at, self.asks, slot));
            self.fact(Fact::Asks { ask: self.asks, slot, session, named, what });
        }
        if answer && let Some(process) = self.process(node, life) {
            process.asked.insert(request, asked);
        }
    }

    /// The reads of chosen slots that records in an answer are.
    fn read(&self, changes: &[Change]) -> Vec<(usize, Slot, Option<rendez_core::SessionId>, FencingToken, Ask)> {
        let reads = changes.iter().enumerate().filter_map(|(at, change)| match change {
            Change::Slot(slot, _) if self.watched.contains(slot) => {
                Some((at, slot.clone(), None, FencingToken::NONE, Ask::Reads))
            }
            Change::Slot(..) | Change::Session(..) | Change::Record(..) => None,
        });
        reads.collect()
    }

    /// A node takes in an answer.
    pub(super) fn tell_answers(
        &mut self,
        node: usize,
        life: u32,
        request: RequestId,
        result: &Result<Reply, StoreError>,
    ) {
        let asked = self.process(node, life).and_then(|process| process.asked.remove(&request));
        let (Some(asked), Ok(reply)) = (asked, result) else { return };
        for (at, ask, slot) in asked {
            let (refused, record) = match reply {
                Reply::Change(reply) => match reply.outcomes.get(at) {
                    Some(ChangeOutcome::Done(record)) => (None, record.as_ref()),
                    Some(ChangeOutcome::Refused(conflict, record)) => (Some(*conflict), record.as_ref()),
                    None => continue,
                },
                Reply::Heartbeat(beat) => match &beat.sync {
                    Sync::Changes { changes, .. } => (None, record_of(changes, at)),
                    Sync::Snapshot | Sync::NotAsked => continue,
                },
                Reply::Snapshot(page) => (None, record_of(&page.items, at)),
                Reply::Open(_) | Reply::Close => continue,
            };
            let shows = shown(record);
            self.fact(Fact::Answers { ask, slot, refused, shows });
        }
    }
}

fn record_of(changes: &[Change], at: usize) -> Option<&SlotRecord> {
    match changes.get(at) {
        Some(Change::Slot(_, record)) => record.as_ref(),
        Some(Change::Session(..) | Change::Record(..)) | None => None,
    }
}

fn shown(record: Option<&SlotRecord>) -> Shown {
    let offer = record.and_then(|record| record.offer.as_ref());
    let offer = offer.map(|offer| Standing { offer: offer.id, to: offer.to, ready: offer.ready });
    Shown { lease: lease(record), offer }
}

fn asked(kind: &ChangeKind) -> Ask {
    match kind {
        ChangeKind::Acquire { operation } => Ask::Acquires { operation: *operation },
        ChangeKind::Release { .. } => Ask::Releases,
        ChangeKind::Offer { operation, to, .. } => Ask::Offers { offer: *operation, to: *to },
        ChangeKind::Withdraw { offer } => Ask::Withdraws { offer: *offer },
        ChangeKind::Accept { offer } => Ask::Accepts { offer: *offer },
        ChangeKind::Refuse { offer, .. } => Ask::Refuses { offer: *offer },
        ChangeKind::Transfer { operation, offer, .. } => Ask::Transfers { operation: *operation, offer: *offer },
        ChangeKind::SaveCheckpoint { .. } => Ask::Saves,
        ChangeKind::Readopt => Ask::Readopts,
    }
}
