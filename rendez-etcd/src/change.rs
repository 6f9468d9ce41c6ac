//! Changes of slots: decided from the picture, and made in one transaction that holds what they were decided from.
//!
//! Why tokens rise strictly, for ever: every token that a transaction writes at revision C is at most `base` + C, for
//! whoever writes a higher one than `base` + (a revision read before) + 1 raises `base` in the same transaction. A slot
//! that has a record is compared with it, so its next token is above its last. A slot without a record was never granted,
//! or was deleted at a revision D by a transaction that wrote `meta`. The granting transaction compares `meta`, so
//! its decision was made at D or later; the revision R that it draws from is at least D, and `base` + R + 1 is above the
//! last token, which was at most `base` + D. A new generation raises `base` above all tokens that are known.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use etcd_client::{Compare, CompareOp, KeyValue, Txn, TxnOp};
use rendez_core::{
    Actor, ChangeKind, ChangeOutcome, ChangeReply, ChangeRequest, Conflict, Decision, FencingToken, Known, Mirror,
    NodeId, Revision, SessionId, Slot, SlotRecord, StoreError, Surroundings, TOKEN_MAX,
};

use crate::cluster::{Answer, Shared};
use crate::encode;
use crate::keys::Keys;
use crate::options::fatal;
use crate::picture::{Picture, unsigned};

/// The most changes in one request: each compares two keys and writes or reads two, a transaction has two more of
/// either, and servers permit 128.
pub(crate) const CHANGES_MAX: usize = 63;

/// What is to be sent, and what to answer if it takes effect.
pub(crate) struct Plan {
    pub(crate) txn: Txn,
    pub(crate) writes: bool,
    outcomes: Vec<Outcome>,
    /// The slots whose checkpoint is read.
    checkpoints: Vec<Slot>,
    receivers: Vec<SessionId>,
    token: FencingToken,
    session: SessionId,
}

struct Outcome {
    slot: Slot,
    conflict: Option<Conflict>,
    record: Option<SlotRecord>,
    /// The record is a new one: its revision is the transaction's.
    written: bool,
}

/// What a transaction that did not take effect has found instead.
pub(crate) struct Missed {
    pub(crate) head: i64,
    pub(crate) meta: i64,
    pub(crate) session_lives: bool,
    /// Receivers that are dead.
    pub(crate) dead: Vec<SessionId>,
}

/// One slot while the changes of a request are gone through.
struct Draft {
    before: i64,
    record: Option<SlotRecord>,
    written: bool,
    checkpoint: Option<Bytes>,
}

struct Around<'a> {
    mirror: &'a Mirror,
    dead: &'a BTreeSet<SessionId>,
    asked: std::cell::RefCell<BTreeMap<SessionId, bool>>,
    before: FencingToken,
    lowest: u64,
}

impl Surroundings for Around<'_> {
    fn node_of(&self, session: SessionId) -> Option<NodeId> {
        let record = self.mirror.session(session).filter(|_| !self.dead.contains(&session));
        self.asked.borrow_mut().insert(session, record.is_some());
        record.map(|record| record.info.node.clone())
    }

    fn next_token(&mut self) -> FencingToken {
        self.before = FencingToken::new(self.lowest.max(self.before.get() + 1).min(TOKEN_MAX));
        self.before
    }
}

/// Decides about all changes. Nothing if the picture does not show the acting session.
pub(crate) fn plan(
    shared: &Shared,
    picture: &Picture,
    request: &ChangeRequest,
    dead: &BTreeSet<SessionId>,
) -> Result<Option<Plan>, StoreError> {
    let (keys, mirror) = (&shared.keys, &picture.mirror);
    let (Some(meta), Some(session)) = (&picture.meta, mirror.session(request.session)) else { return Ok(None) };
    let node = session.info.node.clone();
    let now = shared.now(mirror.time());
    let actor = Actor {
        now,
        session: request.session,
        node: &node,
        quiet: picture.quiet.is_some(),
        generation_known: request.known.generation == Some(meta.value.lineage.generation()),
    };
    // The revision that the tokens draw from.
    let reached = unsigned(picture.reached).max(mirror.covered().0);
    let lowest = (meta.value.base + reached + 1).max(request.known.token.get() + 1);
    if lowest > TOKEN_MAX - request.changes.len() as u64 {
        return Err(fatal(format!(
            "tokens of this cluster cannot rise any more: the next would be {lowest}, and {TOKEN_MAX} is the last; use \
             another cluster name"
        )));
    }
    let mut drafts: BTreeMap<Slot, Draft> = BTreeMap::new();
    let mut outcomes = Vec::with_capacity(request.changes.len());
    let mut receivers: BTreeMap<SessionId, bool> = BTreeMap::new();
    for change in &request.changes {
        let draft = drafts.entry(change.slot.clone()).or_insert_with(|| {
            let record = mirror.slot(&change.slot).cloned();
            let before = record.as_ref().map_or(0, |record| i64::try_from(record.revision.0).unwrap_or(i64::MAX));
            Draft { before, record, written: false, checkpoint: None }
        });
        let before = draft.record.as_ref().map_or(FencingToken::NONE, |record| record.token);
        let mut around = Around { mirror, dead, asked: Default::default(), before, lowest };
        let decided = actor.decide(draft.record.as_ref(), change, &mut around);
        // They must be as they were thought to be. Only a dead holder needs no such care: one that the picture has not,
        // though it shows its slot, is dead, and that is final.
        let is_final = matches!(change.kind, ChangeKind::Acquire { .. });
        receivers.extend(around.asked.into_inner().into_iter().filter(|(_, lives)| *lives || !is_final));
        let conflict = match decided {
            Ok(Decision::Unchanged) => None,
            Ok(Decision::Checkpoint(checkpoint)) => {
                if let Some(record) = &mut draft.record {
                    record.checkpoint = Some(checkpoint.clone());
                }
                draft.checkpoint = Some(checkpoint);
                None
            }
            Ok(Decision::Write(record, _)) => {
                draft.checkpoint = record.checkpoint.clone().or(draft.checkpoint.take());
                (draft.record, draft.written) = (Some(*record), true);
                None
            }
            Err(conflict) => Some(conflict),
        };
        let record = draft.record.as_ref().map(|record| record.seen_by(Some(request.session)));
        let written = draft.written;
        outcomes.push(Outcome { slot: change.slot.clone(), conflict, record, written });
    }
    receivers.remove(&request.session);

    let mut compares = vec![
        exists(keys.session(request.session), true),
        Compare::mod_revision(keys.meta(), CompareOp::Equal, meta.revision),
    ];
    compares.extend(receivers.iter().map(|(id, lives)| exists(keys.session(*id), *lives)));
    let own_without = |outcome: &&Outcome| {
        outcome.record.as_ref().is_some_and(|it| it.is_held_by(request.session) && it.checkpoint.is_none())
    };
    let checkpoints: BTreeSet<Slot> = outcomes.iter().filter(own_without).map(|it| it.slot.clone()).collect();
    let checkpoints: Vec<Slot> = checkpoints.into_iter().collect();
    let mut then: Vec<TxnOp> = checkpoints.iter().map(|slot| TxnOp::get(keys.checkpoint(slot), None)).collect();
    let mut token = FencingToken::NONE;
    let mut writes = false;
    for (slot, draft) in drafts {
        compares.push(Compare::mod_revision(keys.slot(&slot), CompareOp::Equal, draft.before));
        if let Some(record) = draft.record.as_ref().filter(|_| draft.written) {
            token = token.max(record.token);
            then.push(TxnOp::put(keys.slot(&slot), encode::json(record)?, None));
            writes = true;
        }
        if let Some(checkpoint) = draft.checkpoint {
            then.push(TxnOp::put(keys.checkpoint(&slot), checkpoint.to_vec(), None));
        }
    }
    if writes {
        then.push(TxnOp::put(keys.head(), Vec::new(), None));
    } else {
        // Without any read of its own, etcd would answer from whatever the asked member has.
        then.push(TxnOp::get(keys.head(), None));
    }
    if token.get() > meta.value.base + reached + 1 {
        let mut raised = meta.value.clone();
        raised.base = token.get() - (reached + 1);
        then.push(TxnOp::put(keys.meta(), encode::json(&raised)?, None));
    }
    let receivers: Vec<SessionId> = receivers.into_keys().collect();
    let txn = Txn::new().when(compares).and_then(then).or_else(instead(keys, request.session, &receivers));
    Ok(Some(Plan { txn, writes, outcomes, checkpoints, receivers, token, session: request.session }))
}

fn exists(key: String, exists: bool) -> Compare {
    let operator = if exists { CompareOp::Greater } else { CompareOp::Equal };
    Compare::create_revision(key, operator, 0)
}

fn instead(keys: &Keys, session: SessionId, receivers: &[SessionId]) -> Vec<TxnOp> {
    let all = [keys.head(), keys.meta(), keys.session(session)].into_iter();
    all.chain(receivers.iter().map(|id| keys.session(*id))).map(|key| TxnOp::get(key, None)).collect()
}

impl Plan {
    /// The reply, once the transaction has taken effect.
    pub(crate) fn reply(self, shared: &Shared, known: &Known, mut answer: Answer) -> ChangeReply {
        let revision = Revision(unsigned(answer.revision));
        let mut checkpoints: BTreeMap<Slot, Bytes> = BTreeMap::new();
        for slot in self.checkpoints {
            if let Some(kv) = answer.one() {
                checkpoints.insert(slot, Bytes::copy_from_slice(kv.value()));
            }
        }
        let outcomes = self.outcomes.into_iter().map(|outcome| {
            let record = outcome.record.map(|mut record| {
                if outcome.written {
                    record.revision = revision;
                }
                if record.checkpoint.is_none() && record.is_held_by(self.session) {
                    record.checkpoint = checkpoints.get(&outcome.slot).cloned();
                }
                record
            });
            (outcome.conflict, record)
        });
        let outcomes: Vec<ChangeOutcome> = outcomes
            .map(|(conflict, record)| match conflict {
                None => ChangeOutcome::Done(record),
                Some(conflict) => ChangeOutcome::Refused(conflict, record),
            })
            .collect();
        let token = self.token;
        let stamp = shared.read(|picture| {
            let last = if self.writes { revision } else { picture.mirror.revision() };
            shared.stamp(picture, known, last.0, token)
        });
        ChangeReply { stamp, outcomes }
    }

    /// What stood in the way.
    pub(crate) fn missed(&self, mut answer: Answer) -> Missed {
        let at = |kv: Option<KeyValue>| kv.map_or(0, |kv| kv.mod_revision());
        let (head, meta) = (at(answer.one()), at(answer.one()));
        let session_lives = answer.one().is_some();
        let dead = self.receivers.iter().copied().filter(|_| answer.one().is_none()).collect();
        Missed { head, meta, session_lives, dead }
    }
}
