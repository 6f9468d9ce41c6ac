//! The requests of the store contract and their replies, as data: drivers send them, the engine and the model
//! speak them, simulators delay, double and lose them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::records::{ClusterSettings, NodeInfo, Record, RecordKey, SessionRecord, SlotRecord, Versioned};
use crate::{FencingToken, Generation, Incarnation, OperationId, Revision, SessionId, Slot, StoreTime};

/// What the asking node remembers. A store that has lost data learns from it that it has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Known {
    /// The last generation that this process saw in this cluster.
    pub generation: Option<Generation>,
    /// The largest token of any slot that it has seen.
    pub token: FencingToken,
    /// The cluster's longest session TTL as it knows it: after a loss of data the quiet time is counted from it.
    pub session_ttl_max: Duration,
}

/// What every reply begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// The generation that the reply was made in.
    pub generation: Generation,
    /// The cluster's revision after the request.
    pub revision: Revision,
    /// The store's clock.
    pub now: StoreTime,
    /// The largest token of any slot of the cluster.
    pub token: FencingToken,
    /// How long nothing will be granted yet, after a loss of data; zero in ordinary times.
    pub quiet: Duration,
}

/// Opens a session.
///
/// A live session of the same node stands in the way unless it is of the same incarnation and named by `replaces`
/// (it is then closed), or was opened by this very `operation` (the request is then a retry: the session is
/// extended and answered again).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenRequest {
    /// What the node remembers.
    pub known: Known,
    /// This request; its retries bear the same id.
    pub operation: OperationId,
    /// The process lifetime that asks.
    pub incarnation: Incarnation,
    /// The session that this one replaces, dead or alive.
    pub replaces: Option<SessionId>,
    /// How long the session lives after each heartbeat.
    pub ttl: Duration,
    /// What the others shall know about the node. Its settings become the cluster's if there are none yet.
    pub info: Arc<NodeInfo>,
}

/// The answer to an [`OpenRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opening {
    /// The session is open.
    Opened {
        /// The reply's stamp.
        stamp: Stamp,
        /// The fresh session.
        session: SessionId,
        /// How long it lives after each heartbeat: what the store granted, which may differ from what was asked.
        ttl: Duration,
        /// The cluster's settings.
        settings: ClusterSettings,
    },
    /// A live session has the node's id.
    InUse {
        /// The reply's stamp.
        stamp: Stamp,
        /// The session that lives.
        session: SessionId,
        /// The process that holds it; one's own, if it was opened by a request that `replaces` does not know of.
        incarnation: Incarnation,
        /// How long it lives if it is not extended.
        remaining: Duration,
    },
}

/// Extends a session, and asks what has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeartbeatRequest {
    /// What the node remembers.
    pub known: Known,
    /// The session to extend.
    pub session: SessionId,
    /// The revision (of the generation in `known`) that the node has seen; nothing if it has no view yet.
    pub since: Option<Revision>,
    /// The most changes to answer with.
    pub changes_max: u32,
    /// Name the sessions that end within this time.
    pub due_within: Duration,
    /// What the others shall know about the node, if that has changed.
    pub info: Option<Arc<NodeInfo>>,
}

/// The answer to a [`HeartbeatRequest`]: the session lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    /// The reply's stamp.
    pub stamp: Stamp,
    /// How long the session lives from the moment of this request on the store's clock.
    pub ttl: Duration,
    /// What the store thinks that this session holds.
    pub held: Held,
    /// What has changed.
    pub sync: Sync,
    /// The sessions that end within the time that was asked for, soonest first, the asking one not among them; at
    /// most 64.
    pub due: Vec<Due>,
}

/// A session that will end unless it is extended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// The session.
    pub session: SessionId,
    /// How long it lives, from the moment of the reply on the store's clock.
    pub remaining: Duration,
}

/// Count and digest of the leases of one session: the store keeps them up with each change, the node computes them
/// from its view, and a difference means that the view is wrong.
///
/// ```
/// use rendez_core::{FencingToken, Held, Slot};
/// let slot: Slot = "inbox/3".parse().unwrap();
/// let mut held = Held::default();
/// held.add(&slot, FencingToken::new(7));
/// held.remove(&slot, FencingToken::new(7));
/// assert_eq!(held, Held::default());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    /// How many.
    pub count: u64,
    /// The sum of [`Held::part`] over them, modulo [`Held::MODULUS`].
    pub digest: u64,
}

impl Held {
    /// A prime below 2^32, so that stores whose only number is the double can compute the digest.
    pub const MODULUS: u64 = 4_294_967_291;

    /// The slot's factor in the digest: the low 32 bits of its XXH64.
    #[must_use]
    pub fn factor(slot: &Slot) -> u32 {
        let mut name = Vec::with_capacity(slot.workload.as_str().len() + 8);
        name.extend_from_slice(slot.workload.as_str().as_bytes());
        name.push(0xFF);
        name.extend_from_slice(slot.unit.to_string().as_bytes());
        xxhash_rust::xxh64::xxh64(&name, 0) as u32
    }

    /// One lease's part: `factor · (token mod 1048573 + 1) mod MODULUS`. All products stay below 2^53.
    #[must_use]
    pub fn part(factor: u32, token: FencingToken) -> u64 {
        u64::from(factor) * (token.get() % 1_048_573 + 1) % Self::MODULUS
    }

    /// Counts a lease in.
    pub fn add(&mut self, slot: &Slot, token: FencingToken) {
        self.count += 1;
        self.digest = (self.digest + Self::part(Self::factor(slot), token)) % Self::MODULUS;
    }

    /// Counts a lease out that was counted in.
    pub fn remove(&mut self, slot: &Slot, token: FencingToken) {
        self.count = self.count.saturating_sub(1);
        self.digest = (self.digest + Self::MODULUS - Self::part(Self::factor(slot), token)) % Self::MODULUS;
    }

    /// Follows a slot from its old holder and token to the new ones; `with` finds what a session holds, if it lives.
    pub(crate) fn follow(
        slot: &Slot,
        before: Option<(SessionId, FencingToken)>,
        after: Option<(SessionId, FencingToken)>,
        mut with: impl FnMut(SessionId, &dyn Fn(&mut Self)),
    ) {
        if before == after {
            return;
        }
        if let Some((session, token)) = before {
            with(session, &|held| held.remove(slot, token));
        }
        if let Some((session, token)) = after {
            with(session, &|held| held.add(slot, token));
        }
    }
}

/// What has changed since a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sync {
    /// These records, each as it is now, oldest change first.
    Changes {
        /// The records.
        changes: Vec<Change>,
        /// The revision that is reached with them.
        up_to: Revision,
        /// There is more: ask again from `up_to`.
        more: bool,
    },
    /// The store cannot tell any more (another generation, or too long ago): take a snapshot.
    Snapshot,
    /// Nothing was asked.
    NotAsked,
}

/// One record as it is now; nothing where it was deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A session was opened, has told something new about itself, or has ended.
    Session(SessionId, Option<SessionRecord>),
    /// A slot has changed, or was deleted with its workload.
    Slot(Slot, Option<SlotRecord>),
    /// An operator has written.
    Record(RecordKey, Option<Versioned>),
}

/// Ends a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloseRequest {
    /// What the node remembers.
    pub known: Known,
    /// The session to end.
    pub session: SessionId,
}

/// Changes slots on behalf of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeRequest {
    /// What the node remembers.
    pub known: Known,
    /// The session that acts; it must live.
    pub session: SessionId,
    /// The changes, made in order.
    pub changes: Vec<SlotChange>,
}

/// One change of one slot: a compare-and-set on its token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotChange {
    /// The slot.
    pub slot: Slot,
    /// The token that the slot must have; [`FencingToken::NONE`] if it was never granted.
    pub token: FencingToken,
    /// What to do.
    pub kind: ChangeKind,
}

/// What a change does. Unless another thing is said, the acting session must hold the slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeKind {
    /// Take the slot: nobody holds it, or its holder's session does not live, or the acting session holds it itself.
    /// The token rises. A retry (the slot was last granted by this operation and the acting session holds it) answers
    /// the same grant again, whatever token it names.
    Acquire {
        /// This request.
        operation: OperationId,
    },
    /// Let go. A slot with this token that nobody holds counts as done.
    Release {
        /// What the runner left for the next one; what was saved before stays if absent.
        checkpoint: Option<Bytes>,
        /// The acting node refuses the slot for this long.
        refuse_for: Option<Duration>,
    },
    /// Offer the slot to another live session; an earlier offer is replaced.
    Offer {
        /// This request, and the offer's name.
        operation: OperationId,
        /// The session that it is made to.
        to: SessionId,
        /// How long it stands.
        expires_in: Duration,
        /// See [`Offer::giver_total`](crate::Offer::giver_total).
        giver_total: u32,
        /// See [`Offer::giver_of_workload`](crate::Offer::giver_of_workload).
        giver_of_workload: u32,
        /// See [`Offer::forced`](crate::Offer::forced).
        forced: bool,
    },
    /// Take the offer back; done if it stands no more.
    Withdraw {
        /// The offer.
        offer: OperationId,
    },
    /// Say that one is ready for an offer that stands. The acting session is the offer's receiver.
    Accept {
        /// The offer.
        offer: OperationId,
    },
    /// Refuse an offer; it ends, and the node is passed over for a while. The acting session is the offer's receiver.
    Refuse {
        /// The offer.
        offer: OperationId,
        /// For how long.
        refuse_for: Duration,
    },
    /// Hand the slot to the receiver of an offer that stands, is not expired and was accepted, and whose session
    /// lives. The token rises; the cooldown begins unless the offer was forced. A retry (the slot was last granted by
    /// this operation) is done.
    Transfer {
        /// This request.
        operation: OperationId,
        /// The offer.
        offer: OperationId,
        /// What the runner left for the next one; what was saved before stays if absent.
        checkpoint: Option<Bytes>,
    },
    /// Save a checkpoint; wakes nobody and changes no revision.
    SaveCheckpoint {
        /// At most [`CHECKPOINT_BYTES_MAX`](crate::CHECKPOINT_BYTES_MAX).
        checkpoint: Bytes,
    },
    /// After a loss of data: the acting node runs this slot with this token now. Accepted in the quiet time only, in
    /// the current generation (`known` names it), if the token is higher than the record's, or equal with a session of
    /// the same node as holder: an equal one without a holder was let go, and a late copy of this request must not
    /// bring it back. The token stays; the holder becomes the acting session.
    Readopt,
}

/// The answer to a [`ChangeRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeReply {
    /// The reply's stamp.
    pub stamp: Stamp,
    /// One outcome for each change, in order.
    pub outcomes: Vec<ChangeOutcome>,
}

/// What became of one change, and the slot's record after it (nothing if there is none).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeOutcome {
    /// It is done, now or by an earlier try.
    Done(Option<SlotRecord>),
    /// It changed nothing.
    Refused(Conflict, Option<SlotRecord>),
}

/// Why a change was refused. Each is tested in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Conflict {
    /// Data may have been lost lately: nothing is granted in the quiet time.
    Quiet,
    /// The slot has another token.
    Token,
    /// A live session holds the slot.
    Held,
    /// The acting session does not hold the slot.
    NotHolder,
    /// The receiving session does not live.
    ReceiverGone,
    /// The offer does not stand, is expired, is made to another session, or is not accepted.
    Offer,
    /// Re-adoption outside the quiet time, or in another generation.
    NotQuiet,
}

/// Reads one page of all records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotRequest {
    /// What the node remembers.
    pub known: Known,
    /// The session that reads, if any: it is given its own slots' checkpoints.
    pub session: Option<SessionId>,
    /// Where to go on; nothing for the first page.
    pub cursor: Option<Cursor>,
}

/// A place between two pages; opaque, the store's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor(pub String);

/// One page. The view is that of the *first* page's revision once all pages are read: what changed meanwhile may or
/// may not be in them, and comes again by asking for changes since that revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotPage {
    /// The reply's stamp, read before the page.
    pub stamp: Stamp,
    /// The records; a record may come twice.
    pub items: Vec<Change>,
    /// Where to go on; nothing after the last page.
    pub next: Option<Cursor>,
}

/// One change on behalf of an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminRequest {
    /// Write or delete a record.
    Put {
        /// Its name.
        key: RecordKey,
        /// Its new content; nothing deletes it. Must fit the key.
        record: Option<Record>,
        /// The revision that it must have; [`Revision`] 0 if it must not exist; nothing if that does not matter.
        expect: Option<Revision>,
    },
    /// Ask the holder of a slot to let it go, if the slot still has this token.
    ForceRelease {
        /// The slot.
        slot: Slot,
        /// The token that it must have.
        token: FencingToken,
        /// Do not wait for the holder: the slot is free at once, while its runner may still run. Dangerous.
        now: bool,
    },
}

/// The answer to an [`AdminRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminOutcome {
    /// It is done; the reply's stamp.
    Done(Stamp),
    /// The record's revision or the slot's token is another one; nothing has changed.
    Refused(Stamp),
}

/// A hint that something has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchHint {
    /// For everybody: a slot or a session was let go, or an operator has written.
    Everyone,
    /// For one session: it was offered or given a slot, or its offer was answered.
    Session(SessionId),
}
