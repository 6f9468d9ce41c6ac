//! What happens in a world, as data: the oracles judge it, a hash stands for it, people read it.
//!
//! Facts are what an observer of all nodes and of the store sees, at the moment when it is so. Times of facts are the
//! world's own, in nanoseconds. Nothing in here decides or judges anything.

use std::fmt::{self, Write as _};
use std::hash::{Hash, Hasher};

use rendez_core::{Conflict, FencingToken, Generation, OperationId, SessionId, Slot};
use serde::Serialize;

use crate::faults::Fault;

/// A slot's number in a world, in the order of a trace's time lines: facts are many, and names are long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct SlotNo(pub u32);

impl fmt::Display for SlotNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {}", self.0)
    }
}

/// Which request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum CallKind {
    /// An opening.
    Open,
    /// A heartbeat.
    Heartbeat,
    /// A heartbeat that reads on, because the last answer had no room for all changes.
    ReadsOn,
    /// Changes of slots.
    Change,
    /// A page of a snapshot.
    Snapshot,
    /// A closing.
    Close,
}

/// What changed a slot's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum By {
    /// An acquisition.
    Acquire,
    /// A release.
    Release,
    /// An offer, its end or its answer.
    Offer,
    /// A transfer.
    Transfer,
    /// A checkpoint.
    Checkpoint,
    /// A re-adoption.
    Readopt,
    /// An operator.
    Operator,
    /// A failover, or the loss of everything.
    Loss,
}

/// What matters of a slot's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize)]
pub struct Lease {
    /// Its token.
    #[serde(serialize_with = "number")]
    pub token: FencingToken,
    /// The session that holds it.
    #[serde(serialize_with = "text_of_some")]
    pub holder: Option<SessionId>,
    /// The request that granted it.
    #[serde(serialize_with = "text_of_some")]
    pub granted_by: Option<OperationId>,
}

/// What a request asks of a slot, for the histories of the slots that are chosen for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum Ask {
    /// What its record is.
    Reads,
    /// To take it.
    Acquires {
        /// The request's own name.
        #[serde(serialize_with = "display")]
        operation: OperationId,
    },
    /// To let it go.
    Releases,
    /// To offer it.
    Offers {
        /// The offer's name.
        #[serde(serialize_with = "display")]
        offer: OperationId,
        /// To whom.
        #[serde(serialize_with = "display")]
        to: SessionId,
    },
    /// To take an offer back.
    Withdraws {
        /// Which.
        #[serde(serialize_with = "display")]
        offer: OperationId,
    },
    /// To accept an offer.
    Accepts {
        /// Which.
        #[serde(serialize_with = "display")]
        offer: OperationId,
    },
    /// To refuse an offer.
    Refuses {
        /// Which.
        #[serde(serialize_with = "display")]
        offer: OperationId,
    },
    /// To hand it over.
    Transfers {
        /// The request's own name.
        #[serde(serialize_with = "display")]
        operation: OperationId,
        /// The offer that it follows on.
        #[serde(serialize_with = "display")]
        offer: OperationId,
    },
    /// To keep a checkpoint.
    Saves,
    /// To take it back after a loss of data.
    Readopts,
}

/// An offer that stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Standing {
    /// Its name.
    #[serde(serialize_with = "display")]
    pub offer: OperationId,
    /// To whom it is made.
    #[serde(serialize_with = "display")]
    pub to: SessionId,
    /// Whether that one is ready.
    pub ready: bool,
}

/// A slot's record, as an answer shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize)]
pub struct Shown {
    /// Its lease.
    pub lease: Lease,
    /// The offer that stands.
    pub offer: Option<Standing>,
}

/// Why a session is not there any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum SessionEnd {
    /// It was not extended in time.
    Expired,
    /// It was closed, or replaced by its own process.
    Closed,
    /// The store has lost it.
    Lost,
}

/// How data were lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Loss {
    /// All of them, and nobody says so.
    Everything,
    /// The server has restarted, with all that it had.
    Restart,
    /// The last writes, in a failover.
    LastWrites,
}

/// How a process came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Gone {
    /// It was killed.
    Killed,
    /// It has ended itself, for the sake of a runner that would not end.
    Terminated,
    /// It has shut down.
    Stopped,
}

/// Something that has happened.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub enum Fact {
    /// A process starts.
    Begins {
        /// Of which node.
        node: usize,
    },
    /// Which version of the protocol a process speaks, where they differ.
    Speaks {
        /// Of which node.
        node: usize,
        /// The version.
        version: u32,
        /// The others know it.
        known: bool,
    },
    /// A process is gone, and all its runners with it.
    Goes {
        /// Of which node.
        node: usize,
        /// How.
        how: Gone,
    },
    /// A process stands still.
    Freezes {
        /// Of which node.
        node: usize,
        /// Until when.
        until: u64,
    },
    /// It goes on; runners past their deadlines were ended before anything else.
    Thaws {
        /// Of which node.
        node: usize,
    },
    /// A node's clock does what is not assumed of it.
    ClockBreaks {
        /// Of which node.
        node: usize,
    },
    /// A node is told to shut down, and has this long.
    ShutsDown {
        /// Which node.
        node: usize,
        /// How long.
        within: u64,
    },
    /// A node is told another cap.
    Caps {
        /// Which node.
        node: usize,
        /// The cap from now on.
        cap: Option<u32>,
    },
    /// Something goes wrong.
    Trouble {
        /// What.
        fault: Fault,
        /// A number that says more about it.
        detail: u64,
    },
    /// The store does not answer.
    StoreAway {
        /// Until when.
        until: u64,
        /// It refuses at once, instead of leaving requests unanswered.
        refuses: bool,
    },
    /// From now on nothing goes wrong any more.
    Calm,

    /// A node sends a request.
    Sends {
        /// Which node.
        node: usize,
        /// What.
        call: CallKind,
        /// Under which session.
        #[serde(serialize_with = "text_of_some")]
        session: Option<SessionId>,
        /// The leases that it gives back, or offers to, by it.
        gives: Vec<(SlotNo, FencingToken)>,
        /// The leases that it takes back by it.
        readopts: Vec<(SlotNo, FencingToken)>,
    },
    /// A node takes in a reply.
    Hears {
        /// Which node.
        node: usize,
        /// The reply was made in the store's present generation.
        present: bool,
    },

    /// A request about a slot whose history is judged has come to the store.
    Asks {
        /// Its number in the world.
        ask: u64,
        /// The slot.
        slot: SlotNo,
        /// On whose behalf; a reader need not say.
        #[serde(serialize_with = "text_of_some")]
        session: Option<SessionId>,
        /// The token that it names.
        #[serde(serialize_with = "number")]
        named: FencingToken,
        /// What it asks.
        what: Ask,
    },
    /// The answer to such a request is taken in by its node.
    Answers {
        /// The request's number.
        ask: u64,
        /// The slot.
        slot: SlotNo,
        /// Why nothing was done.
        #[serde(serialize_with = "debug_of_some")]
        refused: Option<Conflict>,
        /// The record as the answer shows it.
        shows: Shown,
    },

    /// The store opens a session.
    Opens {
        /// For which node.
        node: usize,
        /// The session.
        #[serde(serialize_with = "text")]
        session: SessionId,
        /// When it ends unless it is extended.
        ends: u64,
    },
    /// The store extends a session.
    Extends {
        /// The session.
        #[serde(serialize_with = "text")]
        session: SessionId,
        /// When it ends unless it is extended again.
        ends: u64,
    },
    /// A session is not there any more.
    Closes {
        /// The session.
        #[serde(serialize_with = "text")]
        session: SessionId,
        /// Why.
        why: SessionEnd,
        /// The node that has closed it itself.
        by: Option<usize>,
    },
    /// The store answers that a session holds a slot.
    Grants {
        /// The slot.
        slot: SlotNo,
        /// The session.
        #[serde(serialize_with = "text")]
        session: SessionId,
        /// The token.
        #[serde(serialize_with = "number")]
        token: FencingToken,
    },
    /// A slot's record changes.
    Changes {
        /// The slot.
        slot: SlotNo,
        /// By what.
        by: By,
        /// The session that asked for it.
        #[serde(serialize_with = "text_of_some")]
        session: Option<SessionId>,
        /// The token that the request named.
        #[serde(serialize_with = "number")]
        named: FencingToken,
        /// The record before.
        before: Lease,
        /// The record after.
        after: Lease,
        /// The node that holds it now, and how many slots its session holds.
        holds: Option<(usize, u64)>,
        /// It counts as a voluntary move.
        moved: bool,
    },
    /// The store has lost data, or may have.
    Loses {
        /// What.
        loss: Loss,
    },
    /// The store has lost everything, and whoever came first remembered no token above this one.
    Remembers {
        /// The token.
        #[serde(serialize_with = "number")]
        token: FencingToken,
    },
    /// An operator takes a lease away without waiting for its runner.
    Tears {
        /// The slot.
        slot: SlotNo,
        /// The token.
        #[serde(serialize_with = "number")]
        token: FencingToken,
    },

    /// A runner starts.
    Starts {
        /// On which node.
        node: usize,
        /// Its slot.
        slot: SlotNo,
        /// Its token.
        #[serde(serialize_with = "number")]
        token: FencingToken,
        /// Until when it may run.
        deadline: u64,
        /// The session that the node believes in.
        #[serde(serialize_with = "text_of_some")]
        session: Option<SessionId>,
    },
    /// A node's runners may run longer.
    Prolongs {
        /// Which node.
        node: usize,
        /// Until when.
        deadline: u64,
        /// All but these.
        except: Vec<SlotNo>,
        /// The session that the node believes in.
        #[serde(serialize_with = "text_of_some")]
        session: Option<SessionId>,
        /// When the heartbeat was sent whose answer this follows from.
        sent_at: u64,
    },
    /// A runner is told to stop.
    Stops {
        /// On which node.
        node: usize,
        /// Its slot.
        slot: SlotNo,
        /// Its token.
        #[serde(serialize_with = "number")]
        token: FencingToken,
        /// The lease is to be given back after that.
        returns: bool,
    },
    /// A runner is aborted.
    Aborts {
        /// On which node.
        node: usize,
        /// Its slot.
        slot: SlotNo,
        /// Its token.
        #[serde(serialize_with = "number")]
        token: FencingToken,
        /// Whether it ends by that.
        obeys: bool,
    },
    /// A runner is gone.
    Ends {
        /// On which node.
        node: usize,
        /// Its slot.
        slot: SlotNo,
        /// Its token.
        #[serde(serialize_with = "number")]
        token: FencingToken,
        /// It was told to.
        told: bool,
    },
    /// A node wants to end its process for the sake of a runner.
    Terminates {
        /// Which node.
        node: usize,
        /// The runner's slot.
        slot: SlotNo,
        /// Whether the runner does as it is told.
        obeys: bool,
    },
    /// A runner writes to a sink that checks tokens.
    Writes {
        /// The slot.
        slot: SlotNo,
        /// Its token.
        #[serde(serialize_with = "number")]
        token: FencingToken,
        /// Whether the sink takes it.
        accepted: bool,
    },
    /// A node learns of a generation of the store that it did not know as the present one.
    Enters {
        /// Which node.
        node: usize,
        /// The generation.
        #[serde(serialize_with = "display")]
        generation: Generation,
    },
    /// A node tells people something.
    Tells {
        /// Which node.
        node: usize,
        /// The event's name.
        event: &'static str,
        /// Its slot, if it has one.
        slot: Option<SlotNo>,
    },
    /// How a world looks that should have come to rest.
    Rests {
        /// Slots with a runner.
        running: u64,
        /// Slots that should have one.
        wanted: u64,
        /// Moves and starts so far.
        moves: u64,
        /// Slots that some node has prepared for in vain.
        warm: u64,
        /// Sessions in the store, beyond those of live nodes.
        sessions_beyond: u64,
        /// Slots in the store, beyond those that exist.
        slots_beyond: u64,
        /// Whether this follows on another rest, with nothing between.
        again: bool,
    },
    /// A node is killed in a world at rest, and its slots must be taken within this time.
    Probes {
        /// Which node.
        node: usize,
        /// Until when all slots that can run must run.
        until: u64,
    },
    /// After a probe, all runs again.
    Recovers,
}

fn number<S: serde::Serializer>(token: &FencingToken, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(token.get())
}

fn display<T: fmt::Display, S: serde::Serializer>(id: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

fn debug_of_some<T: fmt::Debug, S: serde::Serializer>(what: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
    match what {
        Some(what) => serializer.collect_str(&format_args!("{what:?}")),
        None => serializer.serialize_none(),
    }
}

fn text<S: serde::Serializer>(session: &SessionId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(session)
}

fn text_of_some<T: fmt::Display, S: serde::Serializer>(id: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
    match id {
        Some(id) => serializer.collect_str(id),
        None => serializer.serialize_none(),
    }
}

/// A hash that is the same on every platform and in every build.
#[derive(Debug, Clone, Copy)]
struct Mixer(u64);

impl Mixer {
    fn mix(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517C_C1B7_2722_0A95);
    }
}

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        let mut z = self.0;
        z = (z ^ (z >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        z ^ (z >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.mix(u64::from(*byte)));
    }

    fn write_u8(&mut self, i: u8) {
        self.mix(u64::from(i));
    }

    fn write_u32(&mut self, i: u32) {
        self.mix(u64::from(i));
    }

    fn write_u64(&mut self, i: u64) {
        self.mix(i);
    }

    fn write_u128(&mut self, i: u128) {
        self.mix((i >> 64) as u64);
        self.mix(i as u64);
    }

    fn write_usize(&mut self, i: usize) {
        self.mix(i as u64);
    }

    fn write_isize(&mut self, i: isize) {
        self.mix(i as u64);
    }
}

/// The facts of a world: always as a hash, and in full if that is wanted.
#[derive(Debug, Clone)]
pub struct Trace {
    hash: Mixer,
    facts: u64,
    kept: Option<Vec<(u64, Fact)>>,
    slots: Vec<Slot>,
}

impl Trace {
    /// An empty trace that keeps the facts, or only their hash.
    #[must_use]
    pub fn new(keep: bool) -> Self {
        Self { hash: Mixer(0), facts: 0, kept: keep.then(Vec::new), slots: Vec::new() }
    }

    /// Gives a slot its number.
    pub(crate) fn name(&mut self, slot: &Slot) -> SlotNo {
        self.slots.push(slot.clone());
        SlotNo(self.slots.len() as u32 - 1)
    }

    /// Takes a fact in.
    pub(crate) fn push(&mut self, at: u64, fact: &Fact) {
        at.hash(&mut self.hash);
        fact.hash(&mut self.hash);
        self.facts += 1;
        if let Some(kept) = &mut self.kept {
            kept.push((at, fact.clone()));
        }
    }

    /// Stands for all facts and their order: the same seed gives the same hash, in every build.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash.finish()
    }

    /// How many facts there were.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.facts
    }

    /// Whether nothing has happened.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.facts == 0
    }

    /// The facts with their times, if they were kept.
    #[must_use]
    pub fn facts(&self) -> &[(u64, Fact)] {
        self.kept.as_deref().unwrap_or_default()
    }

    /// The name of a slot.
    #[must_use]
    pub fn slot(&self, slot: SlotNo) -> String {
        self.slots.get(slot.0 as usize).map_or_else(|| format!("slot {}", slot.0), ToString::to_string)
    }

    /// The facts as JSON, one a line.
    #[must_use]
    pub fn json_lines(&self) -> String {
        #[derive(Serialize)]
        struct Line<'a> {
            at_ns: u64,
            fact: &'a Fact,
        }
        let names: Vec<String> = self.slots.iter().map(ToString::to_string).collect();
        let mut text = serde_json::json!({ "slots": names }).to_string();
        text.push('\n');
        for (at, fact) in self.facts() {
            let _ = writeln!(text, "{}", serde_json::json!(Line { at_ns: *at, fact }));
        }
        text
    }

    /// What happened, for people: a time line for each slot, with what concerns all of them in each.
    #[must_use]
    pub fn time_lines(&self) -> String {
        let mut text = String::new();
        for number in 0..self.slots.len() as u32 {
            let slot = SlotNo(number);
            let mut lines = String::new();
            let mut own = false;
            for (at, fact) in self.facts() {
                let about = fact.is_about(slot);
                if about || fact.is_about_all() {
                    own |= about;
                    let _ = writeln!(lines, "{:>12.6} {}", seconds(*at), self.words(fact));
                }
            }
            if own {
                let _ = writeln!(text, "== {}\n{lines}", self.slot(slot));
            }
        }
        text
    }

    /// Everything in its order, for people.
    #[must_use]
    pub fn story(&self) -> String {
        let mut text = String::new();
        for (at, fact) in self.facts() {
            let _ = writeln!(text, "{:>12.6} {}", seconds(*at), self.words(fact));
        }
        text
    }

    fn words(&self, fact: &Fact) -> String {
        let slot = |slot: &SlotNo| self.slot(*slot);
        let short = |session: &SessionId| format!("{:x}", session.bits() as u64);
        let holder = |lease: &Lease| match &lease.holder {
            Some(session) => format!("{} of {}", lease.token, short(session)),
            None => format!("{} of nobody", lease.token),
        };
        match fact {
            Fact::Begins { node } => format!("n{node} starts"),
            Fact::Speaks { node, version, known } => {
                format!("n{node} speaks version {version}{}", if *known { "" } else { ", which nobody knows" })
            }
            Fact::Goes { node, how } => format!("n{node} is gone: {how:?}"),
            Fact::Freezes { node, until } => format!("n{node} is frozen until {:.6}", seconds(*until)),
            Fact::Thaws { node } => format!("n{node} goes on"),
            Fact::ClockBreaks { node } => format!("the clock of n{node} jumps"),
            Fact::ShutsDown { node, .. } => format!("n{node} is told to shut down"),
            Fact::Caps { node, cap } => format!("n{node} is told the cap {cap:?}"),
            Fact::Trouble { fault, detail } => format!("trouble: {fault} ({detail})"),
            Fact::StoreAway { until, refuses } => {
                format!("the store {} until {:.6}", if *refuses { "refuses" } else { "is away" }, seconds(*until))
            }
            Fact::Calm => "nothing goes wrong any more".to_owned(),
            Fact::Sends { node, call, session, gives, readopts } => {
                let list = |slots: &[(SlotNo, FencingToken)]| {
                    let slots: Vec<String> = slots.iter().map(|(no, token)| format!("{} {token}", slot(no))).collect();
                    slots.join(", ")
                };
                let session = session.as_ref().map_or_else(String::new, |session| format!(" for {}", short(session)));
                let gives = if gives.is_empty() { String::new() } else { format!(", gives {}", list(gives)) };
                let takes = if readopts.is_empty() { String::new() } else { format!(", re-adopts {}", list(readopts)) };
                format!("n{node} sends {call:?}{session}{gives}{takes}")
            }
            Fact::Hears { node, present } => {
                format!("n{node} takes in a reply{}", if *present { "" } else { " of an older generation" })
            }
            Fact::Asks { ask, slot: no, named, what, .. } => {
                format!("request {ask} about {} {named} comes to the store: {what:?}", slot(no))
            }
            Fact::Answers { ask, slot: no, refused, shows } => {
                let refused = refused.map_or_else(String::new, |why| format!(", refused: {why:?}"));
                format!("request {ask} is answered: {} is {}{refused}", slot(no), holder(&shows.lease))
            }
            Fact::Opens { node, session, ends } => {
                format!("the store opens {} for n{node} until {:.6}", short(session), seconds(*ends))
            }
            Fact::Extends { session, ends } => format!("{} lives until {:.6}", short(session), seconds(*ends)),
            Fact::Closes { session, why, by } => {
                let by = by.map_or_else(String::new, |node| format!(" by n{node}"));
                format!("{} has ended: {why:?}{by}", short(session))
            }
            Fact::Grants { slot: no, session, token } => {
                format!("the store says that {} holds {} {token}", short(session), slot(no))
            }
            Fact::Changes { slot: no, by, before, after, .. } => {
                format!("{}: {} -> {} by {by:?}", slot(no), holder(before), holder(after))
            }
            Fact::Loses { loss } => format!("the store: {loss:?}"),
            Fact::Remembers { token } => format!("nobody remembers tokens above {token}"),
            Fact::Tears { slot: no, token } => format!("an operator takes {} {token} away at once", slot(no)),
            Fact::Starts { node, slot: no, token, deadline, .. } => {
                format!("n{node} starts {} {token} until {:.6}", slot(no), seconds(*deadline))
            }
            Fact::Prolongs { node, deadline, except, .. } => {
                let but: Vec<String> = except.iter().map(slot).collect();
                let but = if but.is_empty() { String::new() } else { format!(" but {}", but.join(", ")) };
                format!("n{node} may run until {:.6}{but}", seconds(*deadline))
            }
            Fact::Stops { node, slot: no, token, .. } => format!("n{node} stops {} {token}", slot(no)),
            Fact::Aborts { node, slot: no, token, obeys } => {
                format!("n{node} aborts {} {token}{}", slot(no), if *obeys { "" } else { ", which goes on" })
            }
            Fact::Ends { node, slot: no, token, .. } => format!("n{node}: {} {token} has ended", slot(no)),
            Fact::Terminates { node, slot: no, .. } => format!("n{node} ends itself for {}", slot(no)),
            Fact::Writes { slot: no, token, accepted } => {
                format!("{} {token} writes, and is {}", slot(no), if *accepted { "accepted" } else { "refused" })
            }
            Fact::Enters { node, generation } => format!("n{node} enters generation {generation}"),
            Fact::Tells { node, event, slot: no } => {
                format!("n{node}: {event} {}", no.as_ref().map(slot).unwrap_or_default())
            }
            Fact::Rests { running, wanted, moves, .. } => {
                format!("at rest: {running} of {wanted} run after {moves} moves and starts")
            }
            Fact::Probes { node, until } => format!("n{node} is killed; all must run at {:.6}", seconds(*until)),
            Fact::Recovers => "all run".to_owned(),
        }
    }
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

impl Fact {
    fn is_about(&self, wanted: SlotNo) -> bool {
        match self {
            Self::Asks { slot, .. }
            | Self::Answers { slot, .. }
            | Self::Grants { slot, .. }
            | Self::Changes { slot, .. }
            | Self::Tears { slot, .. }
            | Self::Starts { slot, .. }
            | Self::Stops { slot, .. }
            | Self::Aborts { slot, .. }
            | Self::Ends { slot, .. }
            | Self::Terminates { slot, .. }
            | Self::Writes { slot, .. } => *slot == wanted,
            Self::Tells { slot, .. } => *slot == Some(wanted),
            Self::Sends { gives, readopts, .. } => gives.iter().chain(readopts).any(|(slot, _)| *slot == wanted),
            Self::Prolongs { except, .. } => except.contains(&wanted),
            Self::Begins { .. }
            | Self::Speaks { .. }
            | Self::Goes { .. }
            | Self::Freezes { .. }
            | Self::Thaws { .. }
            | Self::ClockBreaks { .. }
            | Self::ShutsDown { .. }
            | Self::Caps { .. }
            | Self::Trouble { .. }
            | Self::StoreAway { .. }
            | Self::Calm
            | Self::Hears { .. }
            | Self::Enters { .. }
            | Self::Opens { .. }
            | Self::Extends { .. }
            | Self::Closes { .. }
            | Self::Loses { .. }
            | Self::Remembers { .. }
            | Self::Rests { .. }
            | Self::Probes { .. }
            | Self::Recovers => false,
        }
    }

    /// What belongs into the time line of every slot.
    fn is_about_all(&self) -> bool {
        match self {
            Self::Begins { .. }
            | Self::Speaks { .. }
            | Self::Goes { .. }
            | Self::Freezes { .. }
            | Self::Thaws { .. }
            | Self::ClockBreaks { .. }
            | Self::ShutsDown { .. }
            | Self::StoreAway { .. }
            | Self::Calm
            | Self::Opens { .. }
            | Self::Closes { .. }
            | Self::Loses { .. }
            | Self::Remembers { .. }
            | Self::Rests { .. }
            | Self::Probes { .. }
            | Self::Recovers => true,
            Self::Caps { .. }
            | Self::Trouble { .. }
            | Self::Sends { .. }
            | Self::Hears { .. }
            | Self::Enters { .. }
            | Self::Asks { .. }
            | Self::Answers { .. }
            | Self::Extends { .. }
            | Self::Grants { .. }
            | Self::Changes { .. }
            | Self::Tears { .. }
            | Self::Starts { .. }
            | Self::Prolongs { .. }
            | Self::Stops { .. }
            | Self::Aborts { .. }
            | Self::Ends { .. }
            | Self::Terminates { .. }
            | Self::Writes { .. }
            | Self::Tells { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace() -> Trace {
        let mut trace = Trace::new(true);
        let slot = trace.name(&"feed/3".parse().unwrap());
        trace.push(1_000_000_000, &Fact::Begins { node: 2 });
        trace.push(2_000_000_000, &Fact::Stops { node: 2, slot, token: FencingToken::new(7), returns: false });
        trace
    }

    #[test]
    fn the_hash_is_of_facts_times_and_order_and_the_same_everywhere() {
        let mut other = Trace::new(false);
        let slot = other.name(&"feed/3".parse().unwrap());
        other.push(1_000_000_000, &Fact::Begins { node: 2 });
        assert_ne!(other.hash(), trace().hash());
        other.push(2_000_000_001, &Fact::Stops { node: 2, slot, token: FencingToken::new(7), returns: false });
        assert_ne!(other.hash(), trace().hash());
        // The same on every platform and in every build.
        assert_eq!(format!("{:016x}", trace().hash()), "cabf4a34d75f3758");
    }

    #[test]
    fn people_and_programs_can_read_it() {
        let trace = trace();
        assert_eq!(trace.time_lines(), "== feed/3\n    1.000000 n2 starts\n    2.000000 n2 stops feed/3 7\n\n");
        let lines: Vec<serde_json::Value> =
            trace.json_lines().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[2]["fact"]["Stops"]["token"], 7);
    }
}
