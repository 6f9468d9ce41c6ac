//! Changes of slots: decided from the picture, each made by a compare-and-set on its slot's key.
//!
//! Why tokens rise strictly, for ever: a grant's token is `base` + the sequence of the write that made it, and the
//! writer takes `base` from its picture. Sequences rise, and `base` never falls: so a later grant whose writer has seen
//! at least the `base` of the earlier one has the higher token. Where the slot has a record, its writer's `base` was
//! written before it, and who has seen the record has seen that `base` too; a grant made over another record misses. A
//! slot without a record was never granted, or deleted by a write that came after the grant; a grant over a deletion
//! that was not seen misses as well, for it expects another last write. Re-adopted tokens are below `base`, which a new
//! generation raises above everything that is known.

use std::collections::BTreeSet;

use bytes::Bytes;
use rendez_core::{
    Actor, ChangeKind, ChangeOutcome, ChangeRequest, Decision, FencingToken, Holder, NodeId, SessionId, Slot,
    SlotRecord, StoreError, Surroundings, TOKEN_MAX,
};

use crate::encode::{self, SlotValue};
use crate::keys::Name;
use crate::options::fatal;
use crate::picture::{Life, Picture};

/// The most changes in one request: on a server that syncs before each acknowledgement they are made within the
/// operation timeout, if the disk is not very slow.
pub(crate) const CHANGES_MAX: usize = 128;

/// The most writes of one request that wait for their acknowledgement at once.
pub(crate) const WRITES_AT_ONCE_MAX: usize = 128;

/// What a request comes to, as far as the picture shows.
pub(crate) struct Plan {
    /// The changes that need no write, by their place in the request.
    pub(crate) settled: Vec<(usize, ChangeOutcome)>,
    pub(crate) writes: Vec<Write>,
    /// Holders of whom it must be found out first whether they live.
    pub(crate) unknown: Vec<Holder>,
    /// Nothing can be granted before this token counts as reported.
    pub(crate) report: Option<FencingToken>,
}

/// One write of one slot.
pub(crate) struct Write {
    pub(crate) place: usize,
    pub(crate) name: Name,
    pub(crate) expect: u64,
    pub(crate) bytes: Bytes,
    base: Option<u64>,
    at: Option<u64>,
    record: SlotRecord,
}

impl Write {
    /// What became of the change, once it is written.
    pub(crate) fn done(&self, sequence: u64, reader: SessionId) -> ChangeOutcome {
        let mut record = self.record.clone();
        encode::written(&mut record, self.base, self.at, sequence);
        ChangeOutcome::Done(Some(record.seen_by(Some(reader))))
    }
}

struct Around<'a> {
    picture: &'a Picture,
    next: FencingToken,
    granted: bool,
}

impl Surroundings for Around<'_> {
    fn node_of(&self, session: SessionId) -> Option<NodeId> {
        self.picture.mirror.session(session).map(|record| record.info.node.clone())
    }

    /// What it will be is known when it is written; this is lower.
    fn next_token(&mut self) -> FencingToken {
        self.granted = true;
        self.next
    }
}

/// Decides about the changes at these places, up to the first that names a slot again. Nothing if the acting session does not live.
pub(crate) fn plan(
    picture: &Picture,
    request: &ChangeRequest,
    open: &BTreeSet<usize>,
) -> Result<Option<Plan>, StoreError> {
    let mirror = &picture.mirror;
    let (Some(meta), Some(session)) = (&picture.meta, mirror.session(request.session)) else { return Ok(None) };
    let node = session.info.node.clone();
    let actor = Actor {
        now: picture.now(),
        session: request.session,
        node: &node,
        quiet: picture.quiet().is_some(),
        generation_known: request.known.generation == Some(meta.value.lineage.generation()),
    };
    let base = meta.value.base;
    let lowest = base + picture.newest() + 1;
    if lowest > TOKEN_MAX - request.changes.len() as u64 {
        return Err(fatal(format!(
            "tokens of this cluster cannot rise any more: the next would be {lowest}, and {TOKEN_MAX} is the last; use \
             another cluster name"
        )));
    }
    let mut plan = Plan { settled: Vec::new(), writes: Vec::new(), unknown: Vec::new(), report: None };
    let mut seen: BTreeSet<&Slot> = BTreeSet::new();
    for place in open {
        let Some(change) = request.changes.get(*place) else { continue };
        if !seen.insert(&change.slot) {
            // It is decided from what the one before has left, and what follows comes after both.
            break;
        }
        let before = picture.slot(&change.slot);
        let before = before.as_ref();
        let holder = before.and_then(|slot| slot.holder.as_ref());
        if let (ChangeKind::Acquire { .. }, Some(holder)) = (&change.kind, holder)
            && holder.session != request.session
            && picture.life_of(holder) == Life::Unknown
        {
            plan.unknown.push(holder.clone());
            continue;
        }
        if let Some(before) = before.filter(|before| before.token.get() >= lowest) {
            plan.report = plan.report.max(Some(before.token));
        }
        let mut around = Around { picture, next: FencingToken::new(lowest), granted: false };
        let (record, at) = match actor.decide(before, change, &mut around) {
            Err(conflict) => {
                let record = before.map(|record| record.seen_by(Some(request.session)));
                plan.settled.push((*place, ChangeOutcome::Refused(conflict, record)));
                continue;
            }
            Ok(Decision::Unchanged) => {
                let record = before.map(|record| record.seen_by(Some(request.session)));
                plan.settled.push((*place, ChangeOutcome::Done(record)));
                continue;
            }
            Ok(Decision::Checkpoint(checkpoint)) => {
                let Some(before) = before else { continue };
                let same = before.checkpoint.as_ref() == Some(&checkpoint);
                let record = SlotRecord { checkpoint: Some(checkpoint), ..before.clone() };
                if same {
                    plan.settled.push((*place, ChangeOutcome::Done(Some(record))));
                    continue;
                }
                (record, Some(before.revision.0))
            }
            Ok(Decision::Write(record, _)) => (*record, None),
        };
        let name = Name::Slot(change.slot.clone());
        let value = SlotValue { base: around.granted.then_some(base), at, record };
        let (expect, bytes) = (picture.last(&name), encode::slot_bytes(&value)?);
        let SlotValue { base, at, record } = value;
        plan.writes.push(Write { place: *place, name, expect, bytes, base, at, record });
    }
    Ok(Some(plan))
}

/// The slots of a workload that nobody who lives holds, with the sequences of their last writes; and the holders of whom
/// that is not known. None where a live session declares the workload.
pub(crate) fn unheld(
    picture: &Picture,
    workload: &rendez_core::WorkloadName,
    most: usize,
) -> (Vec<(Name, u64)>, Vec<Holder>) {
    let mirror = &picture.mirror;
    let (mut free, mut unknown) = (Vec::new(), Vec::new());
    if mirror.sessions().any(|(_, session)| session.info.workloads.contains_key(workload)) {
        return (free, unknown);
    }
    for (slot, record) in mirror.slots_of(workload) {
        if free.len() + unknown.len() >= most {
            break;
        }
        let name = Name::Slot(slot.clone());
        match record.holder.as_ref().map(|holder| (picture.life_of(holder), holder)) {
            Some((Life::Lives, _)) => {}
            Some((Life::Unknown, holder)) => unknown.push(holder.clone()),
            Some((Life::Dead, _)) | None => free.push((name.clone(), picture.last(&name))),
        }
    }
    (free, unknown)
}
