//! Changes of slots: each slot's part of a batch is decided from the picture, and made by one compare-and-set of its Lease.
//!
//! Why a decision that writes needs no fresher picture: the picture is a state that the cluster once had. If the slot's
//! Lease is still the version that it shows, the decision is as good now as it was then, but for the sessions: a dead
//! one stays dead, and that the acting and the receiving ones live was asked anew for this request. A decision that
//! writes nothing has no such comparison, so it is made again from a picture that is as new as now.
//!
//! Why tokens rise strictly: a slot's next token is above its last one, which the compared Lease holds. A slot without a
//! Lease was never granted, or was deleted with its workload: then its last token is at most the floor that was written
//! before the deletion, so the floor is read again after a Lease was made, and a token below it is replaced before it is
//! answered. A Lease that somebody deletes by hand is remembered by nobody but those who know its token: that is why
//! the store is `best_effort`.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use rendez_core::{
    Actor, ChangeKind, ChangeOutcome, ChangeReply, ChangeRequest, Conflict, Decision, ErrorKind, FencingToken, NodeId,
    Revision, SessionId, Slot, SlotChange, SlotRecord, StoreError, Surroundings, TOKEN_MAX,
};

use crate::cluster::{CALLS_AT_ONCE, Shared};
use crate::encode::{Base, Draft};
use crate::errors::{Wrong, lost};
use crate::keys::Name;
use crate::options::fatal;
use crate::picture::Picture;

/// The most changes in one request: each may be a write of its own, and all must fit into one operation timeout.
pub(crate) const CHANGES_MAX: usize = 64;

/// The changes of one slot, with their places in the request.
type Part<'a> = (Slot, Vec<(usize, &'a SlotChange)>);

/// What became of one slot's changes.
struct Made {
    outcomes: Vec<(usize, ChangeOutcome)>,
    /// The version that was written.
    written: Option<u64>,
    /// The Lease is a new one.
    created: bool,
    token: FencingToken,
}

/// A slot's changes, decided.
struct Plan {
    base: Option<Base>,
    record: Option<SlotRecord>,
    checkpoint: Option<Bytes>,
    /// The record is a new one; or else at most its checkpoint is.
    written: bool,
    granted: bool,
    saved: bool,
    outcomes: Vec<(usize, Option<Conflict>, Option<SlotRecord>, bool)>,
    /// The sessions that were asked for.
    asked: BTreeSet<SessionId>,
}

struct Around<'a> {
    picture: &'a Picture,
    asked: RefCell<BTreeSet<SessionId>>,
    before: FencingToken,
    lowest: u64,
}

impl Surroundings for Around<'_> {
    fn node_of(&self, session: SessionId) -> Option<NodeId> {
        self.asked.borrow_mut().insert(session);
        self.picture.mirror.session(session).map(|record| record.info.node.clone())
    }

    fn next_token(&mut self) -> FencingToken {
        self.before = FencingToken::new((self.lowest.max(self.before.get()) + 1).min(TOKEN_MAX));
        self.before
    }
}

/// Makes all changes of a request. The picture shows its session, and is as new as the request in what concerns that
/// and the whole cluster.
pub(crate) async fn make(shared: &Shared, request: &ChangeRequest) -> Result<ChangeReply, StoreError> {
    let mut parts: BTreeMap<Slot, Vec<(usize, &SlotChange)>> = BTreeMap::new();
    for (place, change) in request.changes.iter().enumerate() {
        parts.entry(change.slot.clone()).or_default().push((place, change));
    }
    settle_receivers(shared, request).await?;
    let making: Vec<_> = parts.into_iter().map(|part| make_part(shared, request, part)).collect();
    let made: Vec<Result<Made, StoreError>> = stream::iter(making).buffer_unordered(CALLS_AT_ONCE).collect().await;
    let written = made.iter().flatten().filter_map(|made| made.written).max();
    let mut outcomes: BTreeMap<usize, ChangeOutcome> = BTreeMap::new();
    let (mut token, mut created, mut failed) = (FencingToken::NONE, false, None::<StoreError>);
    for made in made {
        match made {
            Ok(made) => {
                token = token.max(made.token);
                created |= made.created;
                outcomes.extend(made.outcomes);
            }
            Err(error) if failed.as_ref().is_none_or(|worst| weight(worst) < weight(&error)) => failed = Some(error),
            Err(_) => {}
        }
    }
    match failed {
        // A part of the batch was made: nobody may take the whole for undone.
        Some(error) if written.is_some() && error.kind() != ErrorKind::Fatal => {
            let what = format!("a part of the changes was made, another failed: {}", error.message());
            return Err(StoreError::new(ErrorKind::Ambiguous, what).with_source(error));
        }
        Some(error) => return Err(error),
        None => {}
    }
    if let Some(version) = written {
        shared.see(version).await?;
    }
    if created {
        shared.settle(&shared.keys.meta()).await?;
    }
    raise_what_is_too_low(shared, request, &mut outcomes).await?;
    Ok(ChangeReply { stamp: shared.stamp(&request.known, token), outcomes: outcomes.into_values().collect() })
}

/// Of several errors the one is told that leaves the most open, but for what can never work.
fn weight(error: &StoreError) -> u8 {
    match error.kind() {
        ErrorKind::Fatal => 2,
        ErrorKind::Ambiguous => 1,
        _ => 0,
    }
}

/// Offers and transfers go to sessions that must live now, and not only in the picture.
async fn settle_receivers(shared: &Shared, request: &ChangeRequest) -> Result<(), StoreError> {
    let receivers: BTreeSet<SessionId> = shared.read(|picture| {
        let receiver = |change: &SlotChange| match &change.kind {
            ChangeKind::Offer { to, .. } => Some(*to),
            ChangeKind::Transfer { .. } => {
                picture.mirror.slot(&change.slot).and_then(|slot| slot.offer.as_ref()).map(|offer| offer.to)
            }
            ChangeKind::Acquire { .. }
            | ChangeKind::Release { .. }
            | ChangeKind::Withdraw { .. }
            | ChangeKind::Accept { .. }
            | ChangeKind::Refuse { .. }
            | ChangeKind::SaveCheckpoint { .. }
            | ChangeKind::Readopt => None,
        };
        request.changes.iter().filter_map(receiver).collect()
    });
    for receiver in receivers {
        shared.find(receiver).await?;
    }
    Ok(())
}

async fn make_part(shared: &Shared, request: &ChangeRequest, part: Part<'_>) -> Result<Made, StoreError> {
    let (slot, changes) = part;
    let name = Name::Slot(slot.clone());
    let lease = shared.keys.lease(&name);
    let mut fresh = false;
    loop {
        let plan = shared.read(|picture| plan(shared, picture, request, &slot, &changes))?;
        if !plan.written && !plan.saved {
            if fresh {
                return Ok(plan.made(None));
            }
            // Nothing that is written will tell whether this is still so.
            shared.settle(&lease).await?;
            for session in &plan.asked {
                shared.find(*session).await?;
            }
            fresh = true;
            continue;
        }
        let Some(record) = &plan.record else { return Ok(plan.made(None)) };
        let draft = Draft { keys: &shared.keys, name: &name, base: plan.base.as_ref(), now: shared.now() };
        let told = (!plan.written).then_some(record.revision);
        let next = draft.slot(record, plan.checkpoint.as_ref(), plan.granted, told)?;
        match shared.put(&next).await {
            Ok(version) => return Ok(plan.made(Some(version))),
            // Somebody was faster: nothing was written.
            Err(Wrong::Conflict | Wrong::NotFound) => {
                shared.settle(&lease).await?;
                fresh = false;
            }
            Err(Wrong::Gone(error) | Wrong::Other(error)) => return Err(error),
        }
    }
}

/// Decides about the changes of one slot, in their order.
fn plan(
    shared: &Shared,
    picture: &Picture,
    request: &ChangeRequest,
    slot: &Slot,
    changes: &[(usize, &SlotChange)],
) -> Result<Plan, StoreError> {
    let mirror = &picture.mirror;
    let node = mirror.session(request.session).map(|session| session.info.node.clone()).ok_or_else(lost)?;
    let now = shared.time(mirror.time());
    let actor = Actor {
        now,
        session: request.session,
        node: &node,
        quiet: picture.is_quiet(),
        generation_known: request.known.generation.is_some() && request.known.generation == picture.generation(),
    };
    let known = mirror.token().max(picture.floor()).max(request.known.token);
    let lowest = known.get().max(now.as_micros());
    if lowest > TOKEN_MAX - changes.len() as u64 {
        return Err(fatal(format!(
            "tokens of this cluster cannot rise any more: the largest is {lowest}, and {TOKEN_MAX} is the last; use \
             another cluster name"
        )));
    }
    let lease = shared.keys.slot(slot);
    let checkpoint = picture.checkpoint(&lease);
    let record = mirror.slot(slot).cloned().map(|record| SlotRecord { checkpoint: checkpoint.clone(), ..record });
    let mut plan = Plan {
        base: picture.base(&lease).cloned(),
        record,
        checkpoint,
        written: false,
        granted: false,
        saved: false,
        outcomes: Vec::with_capacity(changes.len()),
        asked: BTreeSet::new(),
    };
    for (place, change) in changes {
        let before = plan.record.as_ref().map_or(FencingToken::NONE, |record| record.token);
        let mut around = Around { picture, asked: RefCell::default(), before, lowest };
        let decided = actor.decide(plan.record.as_ref(), change, &mut around);
        plan.asked.extend(around.asked.into_inner());
        let conflict = match decided {
            Ok(Decision::Unchanged) => None,
            Ok(Decision::Checkpoint(checkpoint)) => {
                if let Some(record) = &mut plan.record {
                    record.checkpoint = Some(checkpoint.clone());
                }
                (plan.checkpoint, plan.saved) = (Some(checkpoint), true);
                None
            }
            Ok(Decision::Write(record, _)) => {
                plan.granted |= record.token != before;
                plan.checkpoint.clone_from(&record.checkpoint);
                (plan.record, plan.written) = (Some(*record), true);
                None
            }
            Err(conflict) => Some(conflict),
        };
        let seen = plan.record.as_ref().map(|record| record.seen_by(Some(request.session)));
        plan.outcomes.push((*place, conflict, seen, plan.written));
    }
    Ok(plan)
}

impl Plan {
    /// The answers, where this version was written, or nothing.
    fn made(self, version: Option<u64>) -> Made {
        let token = self.record.as_ref().map_or(FencingToken::NONE, |record| record.token);
        let created = self.base.is_none() && version.is_some();
        let outcomes = self.outcomes.into_iter().map(|(place, conflict, record, written)| {
            let record = record.map(|mut record| {
                if let Some(version) = version.filter(|_| written) {
                    record.revision = Revision(version);
                }
                record
            });
            let outcome = match conflict {
                None => ChangeOutcome::Done(record),
                Some(conflict) => ChangeOutcome::Refused(conflict, record),
            };
            (place, outcome)
        });
        Made { outcomes: outcomes.collect(), written: version, created, token }
    }
}

/// Slots whose Lease is a new one may have had another before, which was deleted with its workload: then the floor was
/// raised above its token before. What is not above the floor is granted again, with a token that is. So is what an
/// earlier try has granted and not answered; its request begins with a look at the floor.
async fn raise_what_is_too_low(
    shared: &Shared,
    request: &ChangeRequest,
    outcomes: &mut BTreeMap<usize, ChangeOutcome>,
) -> Result<(), StoreError> {
    for (place, change) in request.changes.iter().enumerate() {
        let Some(ChangeOutcome::Done(Some(record))) = outcomes.get(&place) else { continue };
        let is_grant = matches!(change.kind, ChangeKind::Acquire { .. });
        if !is_grant || !record.is_held_by(request.session) || record.token > shared.read(Picture::floor) {
            continue;
        }
        let again = raise(shared, request, &change.slot, record.token).await?;
        outcomes.insert(place, again);
    }
    Ok(())
}

async fn raise(
    shared: &Shared,
    request: &ChangeRequest,
    slot: &Slot,
    token: FencingToken,
) -> Result<ChangeOutcome, StoreError> {
    let name = Name::Slot(slot.clone());
    let lease = shared.keys.lease(&name);
    loop {
        let (base, record, checkpoint, floor) = shared.read(|picture| {
            let record = picture.mirror.slot(slot).cloned();
            (picture.base(&lease).cloned(), record, picture.checkpoint(&lease), picture.floor())
        });
        let Some(mut record) = record.filter(|record| record.token == token && record.is_held_by(request.session))
        else {
            return Ok(ChangeOutcome::Refused(Conflict::Token, shared.read(|p| p.mirror.slot(slot).cloned())));
        };
        record.token = FencingToken::new((floor.get() + 1).min(TOKEN_MAX));
        let draft = Draft { keys: &shared.keys, name: &name, base: base.as_ref(), now: shared.now() };
        match shared.put(&draft.slot(&record, checkpoint.as_ref(), false, None)?).await {
            Ok(version) => {
                shared.see(version).await?;
                record.revision = Revision(version);
                record.checkpoint = checkpoint;
                return Ok(ChangeOutcome::Done(Some(record)));
            }
            Err(Wrong::Conflict | Wrong::NotFound) => shared.settle(&lease).await?,
            Err(Wrong::Gone(error) | Wrong::Other(error)) => return Err(error),
        }
    }
}
