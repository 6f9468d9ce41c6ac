//! What one change does to one slot's record: its conflicts, in the order of [`Conflict`], and its effect.
//!
//! Pure, and the same for every store that decides in Rust: the model, and stores that read records, decide, and write
//! them back if nobody was faster. Stores that decide in the server (scripts, functions) say the same in their own
//! language and are compared with this.

use std::time::Duration;

use bytes::Bytes;

use super::{ChangeKind, Conflict, SlotChange, WatchHint};
use crate::model::TOKEN_MAX;
use crate::{
    FencingToken, Holder, NodeId, Offer, OperationId, REFUSALS_MAX, Refused, SessionId, SlotRecord, StoreTime,
};

/// On whose behalf a change is made, and when.
#[derive(Debug, Clone, Copy)]
pub struct Actor<'a> {
    /// The store's clock.
    pub now: StoreTime,
    /// The acting session; it lives.
    pub session: SessionId,
    /// Its node.
    pub node: &'a NodeId,
    /// It is the quiet time after a loss of data.
    pub quiet: bool,
    /// The acting node knows the current generation.
    pub generation_known: bool,
}

/// What a decision needs to know beside the slot's own record.
pub trait Surroundings {
    /// The node of a session, if that lives.
    fn node_of(&self, session: SessionId) -> Option<NodeId>;

    /// A token for the next grant of the slot: higher than every one that it ever had.
    fn next_token(&mut self) -> FencingToken;
}

/// What is to be done to a slot's record. The store gives a written record its revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It is as it should be; nothing is written.
    Unchanged,
    /// The checkpoint alone is written; the revision stays, for that concerns nobody but the holder.
    Checkpoint(Bytes),
    /// The record is written, and those who should hear of it at once are told.
    Write(Box<SlotRecord>, Option<WatchHint>),
}

type Decided = Result<Decision, Conflict>;

fn write(record: SlotRecord, hint: Option<WatchHint>) -> Decided {
    Ok(Decision::Write(Box::new(record), hint))
}

impl Actor<'_> {
    /// Decides about one change of one slot, whose record (with its checkpoint) is `before`.
    ///
    /// # Errors
    /// Why the change is refused: then nothing is written.
    pub fn decide(
        &self,
        before: Option<&SlotRecord>,
        change: &SlotChange,
        surroundings: &mut dyn Surroundings,
    ) -> Result<Decision, Conflict> {
        let token = change.token;
        let decided = match &change.kind {
            ChangeKind::Acquire { operation } => self.acquire(before, token, *operation, surroundings),
            ChangeKind::Release { checkpoint, refuse_for } => {
                self.release(before, token, checkpoint.as_ref(), *refuse_for)
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
                self.offer(before, token, offer, surroundings)
            }
            ChangeKind::Withdraw { offer } => self.withdraw(before, token, *offer),
            ChangeKind::Accept { offer } => self.accept(before, token, *offer),
            ChangeKind::Refuse { offer, refuse_for } => self.refuse(before, token, *offer, *refuse_for),
            ChangeKind::Transfer { operation, offer, checkpoint } => {
                self.transfer(before, token, *operation, *offer, checkpoint.as_ref(), surroundings)
            }
            ChangeKind::SaveCheckpoint { checkpoint } => {
                self.own(before, token).map(|_| Decision::Checkpoint(checkpoint.clone()))
            }
            ChangeKind::Readopt => self.readopt(before, token),
        };
        decided.map(|mut decision| {
            if let Decision::Write(record, _) = &mut decision {
                record.refusals.retain(|refused| refused.until > self.now);
            }
            decision
        })
    }

    fn acquire(
        &self,
        before: Option<&SlotRecord>,
        token: FencingToken,
        operation: OperationId,
        surroundings: &mut dyn Surroundings,
    ) -> Decided {
        if self.quiet {
            return Err(Conflict::Quiet);
        }
        if before.is_some_and(|slot| slot.granted_by == operation && slot.is_held_by(self.session)) {
            return Ok(Decision::Unchanged);
        }
        if token_of(before) != token {
            return Err(Conflict::Token);
        }
        let holder = before.and_then(|slot| slot.holder.as_ref());
        if holder.is_some_and(|holder| holder.session != self.session && surroundings.node_of(holder.session).is_some())
        {
            return Err(Conflict::Held);
        }
        let token = surroundings.next_token();
        write(self.granted(before.cloned(), token, operation, self.holder()), None)
    }

    fn release(
        &self,
        before: Option<&SlotRecord>,
        token: FencingToken,
        checkpoint: Option<&Bytes>,
        refuse_for: Option<Duration>,
    ) -> Decided {
        let Some(slot) = before else {
            return if token == FencingToken::NONE { Ok(Decision::Unchanged) } else { Err(Conflict::Token) };
        };
        if slot.token != token {
            return Err(Conflict::Token);
        }
        if slot.holder.is_none() {
            return Ok(Decision::Unchanged);
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
        write(slot, Some(WatchHint::Everyone))
    }

    fn offer(
        &self,
        before: Option<&SlotRecord>,
        token: FencingToken,
        offer: Offer,
        surroundings: &dyn Surroundings,
    ) -> Decided {
        let slot = self.own(before, token)?;
        if slot.offer.as_ref().is_some_and(|standing| standing.id == offer.id) {
            return Ok(Decision::Unchanged);
        }
        if offer.to == self.session || surroundings.node_of(offer.to).is_none() {
            return Err(Conflict::ReceiverGone);
        }
        let hint = WatchHint::Session(offer.to);
        write(SlotRecord { offer: Some(offer), ..slot.clone() }, Some(hint))
    }

    fn withdraw(&self, before: Option<&SlotRecord>, token: FencingToken, offer: OperationId) -> Decided {
        let slot = self.own(before, token)?;
        if slot.offer.as_ref().is_none_or(|standing| standing.id != offer) {
            return Ok(Decision::Unchanged);
        }
        write(SlotRecord { offer: None, ..slot.clone() }, None)
    }

    fn accept(&self, before: Option<&SlotRecord>, token: FencingToken, offer: OperationId) -> Decided {
        let slot = with_token(before, token)?;
        let offer = self.offered_to_me(slot, offer)?;
        if offer.ready {
            return Ok(Decision::Unchanged);
        }
        write(SlotRecord { offer: Some(Offer { ready: true, ..offer.clone() }), ..slot.clone() }, hint_giver(slot))
    }

    fn refuse(
        &self,
        before: Option<&SlotRecord>,
        token: FencingToken,
        offer: OperationId,
        refuse_for: Duration,
    ) -> Decided {
        let slot = with_token(before, token)?;
        self.offered_to_me(slot, offer)?;
        let hint = hint_giver(slot);
        let mut slot = SlotRecord { offer: None, ..slot.clone() };
        self.add_refusal(&mut slot, refuse_for);
        write(slot, hint)
    }

    fn transfer(
        &self,
        before: Option<&SlotRecord>,
        token: FencingToken,
        operation: OperationId,
        offer: OperationId,
        checkpoint: Option<&Bytes>,
        surroundings: &mut dyn Surroundings,
    ) -> Decided {
        if self.quiet {
            return Err(Conflict::Quiet);
        }
        if before.is_some_and(|slot| slot.granted_by == operation) {
            return Ok(Decision::Unchanged);
        }
        let slot = self.own(before, token)?;
        let Some(offer) = slot.offer.as_ref().filter(|standing| standing.id == offer) else {
            return Err(Conflict::Offer);
        };
        let Some(node) = surroundings.node_of(offer.to) else {
            return Err(Conflict::ReceiverGone);
        };
        if offer.expires_at <= self.now || !offer.ready {
            return Err(Conflict::Offer);
        }
        let holder = Holder { session: offer.to, node };
        let hint = WatchHint::Session(offer.to);
        let moved_at = if offer.forced { slot.moved_at } else { Some(self.now) };
        let checkpoint = checkpoint.or(slot.checkpoint.as_ref()).cloned();
        let before = SlotRecord { moved_at, checkpoint, ..slot.clone() };
        let token = surroundings.next_token();
        write(self.granted(Some(before), token, operation, holder), Some(hint))
    }

    fn readopt(&self, before: Option<&SlotRecord>, token: FencingToken) -> Decided {
        let standing = token_of(before);
        if token < standing || token == FencingToken::NONE || token.get() > TOKEN_MAX {
            return Err(Conflict::Token);
        }
        if token == standing {
            // Without a holder it was let go: a late copy of a re-adoption must not bring it back.
            let holder = before.and_then(|slot| slot.holder.as_ref()).ok_or(Conflict::NotHolder)?;
            if holder.node != *self.node {
                return Err(Conflict::Held);
            }
        }
        if !self.quiet || !self.generation_known {
            return Err(Conflict::NotQuiet);
        }
        match before {
            Some(slot) if slot.token == token && slot.is_held_by(self.session) => Ok(Decision::Unchanged),
            Some(slot) if slot.token == token => {
                let holder = Some(self.holder());
                write(SlotRecord { holder, freed_at: None, offer: None, ..slot.clone() }, None)
            }
            before => write(self.granted(before.cloned(), token, NO_OPERATION, self.holder()), None),
        }
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

    /// The slot, if it has this token and the acting session holds it.
    fn own<'a>(&self, slot: Option<&'a SlotRecord>, token: FencingToken) -> Result<&'a SlotRecord, Conflict> {
        if token_of(slot) != token {
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

fn token_of(slot: Option<&SlotRecord>) -> FencingToken {
    slot.map_or(FencingToken::NONE, |slot| slot.token)
}

/// The slot, if it has this token. A slot without a record has no offer either.
fn with_token(slot: Option<&SlotRecord>, token: FencingToken) -> Result<&SlotRecord, Conflict> {
    match slot {
        Some(slot) if slot.token == token => Ok(slot),
        None if token == FencingToken::NONE => Err(Conflict::Offer),
        Some(_) | None => Err(Conflict::Token),
    }
}

fn hint_giver(slot: &SlotRecord) -> Option<WatchHint> {
    slot.holder.as_ref().map(|holder| WatchHint::Session(holder.session))
}

impl SlotRecord {
    /// What an operator's [`ForceRelease`](super::AdminRequest::ForceRelease) of this token does to the record.
    ///
    /// # Errors
    /// [`Conflict::Token`] if the slot has another one.
    pub fn force(&self, now: StoreTime, token: FencingToken, at_once: bool) -> Result<Decision, Conflict> {
        if self.token != token {
            return Err(Conflict::Token);
        }
        if self.holder.is_none() || (self.force == Some(token) && !at_once) {
            return Ok(Decision::Unchanged);
        }
        let mut record = Self { force: Some(token), ..self.clone() };
        if at_once {
            record.holder = None;
            record.freed_at = Some(now);
            record.offer = None;
        }
        write(record, Some(WatchHint::Everyone))
    }

    /// The record as a session may see it: the checkpoint is for the holder only.
    #[must_use]
    pub fn seen_by(&self, reader: Option<SessionId>) -> Self {
        let own = reader.is_some_and(|reader| self.is_held_by(reader));
        let checkpoint = self.checkpoint.clone().filter(|_| own);
        Self { checkpoint, ..self.clone() }
    }
}
