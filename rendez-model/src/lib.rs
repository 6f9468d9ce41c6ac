//! A small model of the protocol, for [`stateright`] to explore to the last state.
//!
//! The simulator asks a few million random worlds; this asks *every* course of events, in a world small enough for that:
//! up to three nodes and two slots, one clock, messages that are lost, doubled, delayed and overtaken, sessions that
//! end, crashes, handoffs.
//!
//! # What is checked are the rules that ship
//!
//! What a request does to a slot is decided by [`rendez_core::Actor::decide`] itself, with the tokens and sessions of the
//! model as its surroundings. The few lines about sessions stand in `store`; random histories of the model are told to
//! [`rendez_core::StoreModel`] request by request, and both must agree on every session and every slot.
//!
//! The node's side, in `node`, is the engine written down once more without clocks, maps and plans. It is *not* the engine:
//! each function there names the one of [`rendez_core::Engine`] that it stands for, and has to be kept in step by hand.
//!
//! # What is abstracted
//!
//! - *Time* goes in ticks, the same for all: the difference of clock rates (ρ) is left out, so V is the TTL. A session
//!   ends in the store with its last tick or, with `late_expiry`, at any time after it; the node's own deadline is exact.
//! - *Runners* end by their deadline: time does not pass while one would outlive it. This is the stop budget and the pause
//!   allowance, and without it no lease system keeps S2. A runner that was told to stop ends at any time until then.
//! - *Plan, stabilizers, pacing and backoff* are left out: whatever they could decide may happen at any time. An orphan may
//!   be tried for by every node that saw it free; every slot may be offered to every node; an offer may be accepted, refused or
//!   left lying; a heartbeat, and the retry of any request, may be sent at any time or never.
//! - *Replies* to heartbeats and openings show all slots at once, as they were when the store answered. They may come in any
//!   order and count for the try that they answer; the engine takes only that of its last try. More can happen here, not less.
//! - *A change counts as sent* as long as its request or a reply to it is on its way. The engine finds out by its timeout.
//! - *The view* is reduced to what a step asks of it: the token of a slot that seemed free when it was last shown. What was
//!   shown of a slot while a node holds it is not kept for afterwards; another heartbeat may show it.
//! - *Left out:* loss of data and generations, operators' wishes and force, checkpoints, refusals' duration, caps, the closing of a
//!   session, shutdown, runners that ignore stop (overruns), pauses beyond the allowance. The simulator has all of them.
//!
//! # What bounds the exploration
//!
//! [`Bounds`] says how many sessions a node may open, how many grants a slot may have and how much may be on its way at once.
//! Within them every state is reached: time has no end, and messages may be as late as they like. Taken out of a state is
//! what nothing can ask for any more (`State::tidy`: messages of dead sessions, replies that nobody waits for, names and floors that
//! nothing refers to), and states that differ in names only count as one. States are told apart by a hash of 64 bits.
//!
//! # How it is known to look
//!
//! Each [`Fault`] is a mistake that one could make in a store or an engine. For each, a test insists that a broken promise is
//! found.

mod judge;
mod node;
mod protocol;
pub mod state;
mod store;
mod symmetry;

pub use protocol::{Act, EXAMPLES, PROMISES, Protocol};

/// How large the world is, and what may happen in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The nodes, up to [`NODES_MAX`](state::NODES_MAX).
    pub nodes: usize,
    /// The slots, up to [`SLOTS_MAX`](state::SLOTS_MAX).
    pub slots: usize,
    /// How long a session lives, in ticks; at least 2.
    pub ttl: u8,
    /// How long an offer stands, in ticks.
    pub offer_ttl: u8,
    /// The most sessions of each node.
    pub sessions_max: u8,
    /// The most grants of each slot, up to [`TOKEN_MAX`](state::TOKEN_MAX).
    pub grants_max: u8,
    /// The most requests that are on their way at once.
    pub requests_max: usize,
    /// The most replies that are on their way at once.
    pub replies_max: usize,
    /// The most crashes of all nodes together.
    pub crashes_max: u8,
    /// All nodes have a session at the beginning.
    pub opened: bool,
    /// Nodes also try for slots that they saw held, which the engine never does: the store alone must refuse them.
    pub eager: bool,
    /// Requests may arrive more than once.
    pub duplicates: bool,
    /// Slots may be offered.
    pub handoffs: bool,
    /// Runners may fail so often that their slot is given back.
    pub giving_up: bool,
    /// The store may notice the end of a session late.
    pub late_expiry: bool,
    /// Note how grants came about, for the [`EXAMPLES`]; many more states.
    pub note_how: bool,
    /// Of states that differ only in the names of nodes and slots, one stands for all. Traces change names on the way.
    pub alike: bool,
    /// A mistake that was planted.
    pub fault: Option<Fault>,
}

impl Bounds {
    /// A world of this size in which everything may happen, tightly bounded.
    #[must_use]
    pub fn new(nodes: usize, slots: usize) -> Self {
        Self {
            nodes,
            slots,
            ttl: 2,
            offer_ttl: 1,
            sessions_max: 1,
            grants_max: 2,
            requests_max: 1,
            replies_max: 1,
            crashes_max: 0,
            opened: false,
            eager: false,
            duplicates: true,
            handoffs: true,
            giving_up: true,
            late_expiry: true,
            note_how: false,
            alike: true,
            fault: None,
        }
    }
}

/// A mistake that is planted to see that it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A node hands its slot over while its runner still runs.
    HandsOverBeforeStop,
    /// A node counts its deadline from the arrival of a reply, not from the sending of the request.
    DeadlineFromReply,
    /// A node counts a heartbeat as answered once it is sent.
    ExtendsUnanswered,
    /// A node starts again on a token that it has given back, when a late reply shows it.
    FloorForgotten,
    /// A node starts its runner when it accepts an offer, before it is granted the slot.
    StartsOnOffer,
    /// The store grants once more when an acquisition is tried again.
    RetryGrantsAgain,
    /// The store does not look whether the receiver of a slot lives.
    TransferToTheDead,
    /// The store does not look whether the holder of a slot lives before it gives it to another.
    HolderNotLookedAt,
    /// The store grants without raising the token.
    TokenNotRaised,
    /// The store does not compare the token that a change names.
    TokenNotCompared,
    /// The store answers the retry of an opening without extending the session.
    OpeningRetriedDoesNotExtend,
    /// The store ends a session before its time.
    SessionsEndEarly,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::HandsOverBeforeStop,
        Self::DeadlineFromReply,
        Self::ExtendsUnanswered,
        Self::FloorForgotten,
        Self::StartsOnOffer,
        Self::RetryGrantsAgain,
        Self::TransferToTheDead,
        Self::HolderNotLookedAt,
        Self::TokenNotRaised,
        Self::TokenNotCompared,
        Self::OpeningRetriedDoesNotExtend,
        Self::SessionsEndEarly,
    ];
}
