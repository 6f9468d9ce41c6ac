//! One change of one slot: its conflicts, in the order of [`Conflict`], and its effect.

use std::time::Duration;

use bytes::Bytes;

use super::cluster::{Cluster, seen_by};
use super::{Hints, TOKEN_MAX};
use crate::{
    ChangeKind, ChangeOutcome, Conflict, FencingToken, Holder, NodeId, Offer, OperationId, REFUSALS_MAX, Refused,
    SessionId, Slot, SlotChange, SlotRecord, StoreTime, WatchHint,
};

/// On whose behalf, and when.
pub(super) struct Acting<'a> {
    pub(super) now: StoreTime,
    /// The acting session; it lives.
    pub(super) session: SessionId,
    pub(super) node: &'a NodeId,
    /// It is the quiet time.
    pub(super) quiet: bool,
    /// The acting node knows the current generation.
    pub(super) generation_known: bool,
}

/// What is to be written; nothing if it is done already.
type Step = Option<SlotRecord>;

impl Acting<'_> {
    pub(super) fn make(&self, cluster: &mut Cluster, hints: &mut Hints, change: &SlotChange) -> ChangeOutcome {
        let result = match &change.kind {
            ChangeKind::Acquire { operation } => self.acquire(cluster, change, *operation),
            ChangeKind::Release { checkpoint, refuse_for } => {
                self.release(cluster, hints, change, checkpoint.as_ref(), *refuse_for)
            }
            ChangeKind::Offer { operation, to, expires_in, giver_total, giver_of_workload, forced } => {
                let offer = Offer {
                    id: *operation,
                    to: *to,
                    expires_at: self.now + *expires_in,
                    giver_total: *giver_total,
                    giver_of_workload: *giver_of_workload,
                    forced: *forced,
                    ready: false,
                };
                self.offer(cluster, hints, change, offer)
            }
            ChangeKind::Withdraw { offer } => self.withdraw(cluster, change, *offer),
            ChangeKind::Accept { offer } => self.accept(cluster, hints, change, *offer),
            ChangeKind::Refuse { offer, refuse_for } => self.refuse(cluster, hints, change, *offer, *refuse_for),
            ChangeKind::Transfer { operation, offer, checkpoint } => {
                self.transfer(cluster, hints, change, *operation, *offer, checkpoint.as_ref())
            }
            ChangeKind::SaveCheckpoint { checkpoint } => return self.save_checkpoint(cluster, change, checkpoint),
            ChangeKind::Readopt => self.readopt(cluster, change),
        };
        let slot = &change.slot;
        let result = result.map(|step| {
            if let Some(mut record) = step {
                record.refusals.retain(|refused| refused.until > self.now);
                cluster.write_slot(slot, record);
            }
        });
        self.outcome(cluster, slot, result)
    }

    fn outcome(&self, cluster: &Cluster, slot: &Slot, result: Result<(), Conflict>) -> ChangeOutcome {
        let record = cluster.slots.get(slot).map(|record| seen_by(record, Some(self.session)));
        match result {
            Ok(()) => ChangeOutcome::Done(record),
            Err(conflict) => ChangeOutcome::Refused(conflict, record),
        }
    }

    fn acquire(&self, cluster: &mut Cluster, change: &SlotChange, operation: OperationId) -> Result<Step, Conflict> {
        if self.quiet {
            return Err(Conflict::Quiet);
        }
        let before = cluster.slots.get(&change.slot).cloned();
        if before.as_ref().is_some_and(|slot| slot.granted_by == operation && slot.is_held_by(self.session)) {
            return Ok(None);
        }
        if before.as_ref().map_or(FencingToken::NONE, |slot| slot.token) != change.token {
            return Err(Conflict::Token);
        }
        let holder = before.as_ref().and_then(|slot| slot.holder.as_ref());
        if holder.is_some_and(|holder| holder.session != self.session && cluster.sessions.contains_key(&holder.session))
        {
            return Err(Conflict::Held);
        }
        let token = cluster.next_token(self.now);
        Ok(Some(self.granted(before, token, operation, self.holder())))
    }

    fn release(
        &self,
        cluster: &Cluster,
        hints: &mut Hints,
        change: &SlotChange,
        checkpoint: Option<&Bytes>,
        refuse_for: Option<Duration>,
    ) -> Result<Step, Conflict> {
        let Some(slot) = cluster.slots.get(&change.slot) else {
            return if change.token == FencingToken::NONE { Ok(None) } else { Err(Conflict::Token) };
        };
        if slot.token != change.token {
            return Err(Conflict::Token);
        }
        if slot.holder.is_none() {
            return Ok(None);
        }
        if !slot.is_held_by(self.session) {
            return Err(Conflict::NotHolder);
        }
        let mut slot = slot.clone();
        slot.holder = None;
        slot.freed_at = Some(self.now);
        slot.offer = None;
        slot.force = None;
        slot.checkpoint = checkpoint.cloned().or(slot.checkpoint);
        if let Some(refuse_for) = refuse_for {
            self.add_refusal(&mut slot, refuse_for);
        }
        hints.push(WatchHint::Everyone);
        Ok(Some(slot))
    }

    fn offer(&self, cluster: &Cluster, hints: &mut Hints, change: &SlotChange, offer: Offer) -> Result<Step, Conflict> {
        let slot = self.own(cluster, change)?;
        if slot.offer.as_ref().is_some_and(|standing| standing.id == offer.id) {
            return Ok(None);
        }
        if offer.to == self.session || !cluster.sessions.contains_key(&offer.to) {
            return Err(Conflict::ReceiverGone);
        }
        hints.push(WatchHint::Session(offer.to));
        Ok(Some(SlotRecord { offer: Some(offer), ..slot.clone() }))
    }

    fn withdraw(&self, cluster: &Cluster, change: &SlotChange, offer: OperationId) -> Result<Step, Conflict> {
        let slot = self.own(cluster, change)?;
        if slot.offer.as_ref().is_none_or(|standing| standing.id != offer) {
            return Ok(None);
        }
        Ok(Some(SlotRecord { offer: None, ..slot.clone() }))
    }

    fn accept(
        &self,
        cluster: &Cluster,
        hints: &mut Hints,
        change: &SlotChange,
        offer: OperationId,
    ) -> Result<Step, Conflict> {
        let slot = with_token(cluster, change)?;
        let offer = self.offered_to_me(slot, offer)?;
        if offer.ready {
            return Ok(None);
        }
        hint_giver(hints, slot);
        Ok(Some(SlotRecord { offer: Some(Offer { ready: true, ..offer.clone() }), ..slot.clone() }))
    }

    fn refuse(
        &self,
        cluster: &Cluster,
        hints: &mut Hints,
        change: &SlotChange,
        offer: OperationId,
        refuse_for: Duration,
    ) -> Result<Step, Conflict> {
        let slot = with_token(cluster, change)?;
        self.offered_to_me(slot, offer)?;
        hint_giver(hints, slot);
        let mut slot = SlotRecord { offer: None, ..slot.clone() };
        self.add_refusal(&mut slot, refuse_for);
        Ok(Some(slot))
    }

    fn transfer(
        &self,
        cluster: &mut Cluster,
        hints: &mut Hints,
        change: &SlotChange,
        operation: OperationId,
        offer: OperationId,
        checkpoint: Option<&Bytes>,
    ) -> Result<Step, Conflict> {
        if self.quiet {
            return Err(Conflict::Quiet);
        }
        if cluster.slots.get(&change.slot).is_some_and(|slot| slot.granted_by == operation) {
            return Ok(None);
        }
        let slot = self.own(cluster, change)?;
        let Some(offer) = slot.offer.as_ref().filter(|standing| standing.id == offer) else {
            return Err(Conflict::Offer);
        };
        let Some(receiver) = cluster.sessions.get(&offer.to) else {
            return Err(Conflict::ReceiverGone);
        };
        if offer.expires_at <= self.now || !offer.ready {
            return Err(Conflict::Offer);
        }
        let holder = Holder { session: offer.to, node: receiver.record.info.node.clone() };
        hints.push(WatchHint::Session(offer.to));
        let moved_at = if offer.forced { slot.moved_at } else { Some(self.now) };
        let checkpoint = checkpoint.or(slot.checkpoint.as_ref()).cloned();
        let before = SlotRecord { moved_at, checkpoint, ..slot.clone() };
        let token = cluster.next_token(self.now);
        Ok(Some(self.granted(Some(before), token, operation, holder)))
    }

    /// The only change that leaves the revision as it is: a checkpoint concerns nobody but the holder.
    fn save_checkpoint(&self, cluster: &mut Cluster, change: &SlotChange, checkpoint: &Bytes) -> ChangeOutcome {
        let result = self.own(cluster, change).map(|_| ());
        if let (Ok(()), Some(slot)) = (result, cluster.slots.get_mut(&change.slot)) {
            slot.checkpoint = Some(checkpoint.clone());
        }
        self.outcome(cluster, &change.slot, result)
    }

    fn readopt(&self, cluster: &mut Cluster, change: &SlotChange) -> Result<Step, Conflict> {
        let before = cluster.slots.get(&change.slot).cloned();
        let token = before.as_ref().map_or(FencingToken::NONE, |slot| slot.token);
        if change.token < token || change.token == FencingToken::NONE || change.token.get() > TOKEN_MAX {
            return Err(Conflict::Token);
        }
        let holder = before.as_ref().and_then(|slot| slot.holder.as_ref());
        if change.token == token && holder.is_some_and(|holder| holder.node != *self.node) {
            return Err(Conflict::Held);
        }
        if !self.quiet || !self.generation_known {
            return Err(Conflict::NotQuiet);
        }
        cluster.token = cluster.token.max(change.token);
        Ok(match before {
            Some(slot) if slot.token == change.token && slot.is_held_by(self.session) => None,
            Some(slot) if slot.token == change.token => {
                Some(SlotRecord { holder: Some(self.holder()), freed_at: None, offer: None, ..slot })
            }
            before => Some(self.granted(before, change.token, NO_OPERATION, self.holder())),
        })
    }

    fn holder(&self) -> Holder {
        Holder { session: self.session, node: self.node.clone() }
    }

    /// The record of a slot after a grant.
    fn granted(
        &self,
        before: Option<SlotRecord>,
        token: FencingToken,
        operation: OperationId,
        holder: Holder,
    ) -> SlotRecord {
        let (moved_at, refusals, checkpoint, revision) = match before {
            Some(slot) => (slot.moved_at, slot.refusals, slot.checkpoint, slot.revision),
            None => Default::default(),
        };
        SlotRecord {
            token,
            granted_by: operation,
            holder: Some(holder),
            taken_at: self.now,
            freed_at: None,
            moved_at,
            offer: None,
            refusals,
            force: None,
            checkpoint,
            revision,
        }
    }

    /// The slot, if it has the change's token and the acting session holds it.
    fn own<'a>(&self, cluster: &'a Cluster, change: &SlotChange) -> Result<&'a SlotRecord, Conflict> {
        let slot = cluster.slots.get(&change.slot);
        if slot.map_or(FencingToken::NONE, |slot| slot.token) != change.token {
            return Err(Conflict::Token);
        }
        slot.filter(|slot| slot.is_held_by(self.session)).ok_or(Conflict::NotHolder)
    }

    /// The offer, if it stands and is made to the acting session.
    fn offered_to_me<'a>(&self, slot: &'a SlotRecord, offer: OperationId) -> Result<&'a Offer, Conflict> {
        let mine =
            |standing: &&Offer| standing.id == offer && standing.to == self.session && standing.expires_at > self.now;
        slot.offer.as_ref().filter(mine).ok_or(Conflict::Offer)
    }

    /// Passes the acting node over for a while. Of too many refusals, the one that ends first gives way.
    fn add_refusal(&self, slot: &mut SlotRecord, refuse_for: Duration) {
        slot.refusals.retain(|refused| refused.until > self.now && refused.node != *self.node);
        slot.refusals.push(Refused { node: self.node.clone(), until: self.now + refuse_for });
        if slot.refusals.len() > REFUSALS_MAX
            && let Some(first) = (0..slot.refusals.len()).min_by_key(|at| slot.refusals[*at].until)
        {
            slot.refusals.remove(first);
        }
    }
}

/// What a record says that was made by a re-adoption: no request has granted its token in this generation.
const NO_OPERATION: OperationId = OperationId::from_bits(0);

/// The slot, if it has the change's token. A slot without a record has no offer either.
fn with_token<'a>(cluster: &'a Cluster, change: &SlotChange) -> Result<&'a SlotRecord, Conflict> {
    match cluster.slots.get(&change.slot) {
        Some(slot) if slot.token == change.token => Ok(slot),
        None if change.token == FencingToken::NONE => Err(Conflict::Offer),
        Some(_) | None => Err(Conflict::Token),
    }
}

fn hint_giver(hints: &mut Hints, slot: &SlotRecord) {
    if let Some(holder) = &slot.holder {
        hints.push(WatchHint::Session(holder.session));
    }
}
