//! Random steps, and the requests that they become in the words of both sides.
//!
//! Nothing is sent or compared here.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use rendez_core::*;

use super::names::Names;
use super::pair::Pair;
use super::{Comparison, NODES, UNITS};

/// From here on, a heartbeat's number means that it asks for changes.
const ASKING: u8 = 60;
/// From here on, it asks for changes from longer ago.
const EARLIER: u8 = 180;
/// From here on, a number means that an operator expects the revision that a record has.
const CAREFUL: u8 = 200;

#[derive(Debug, Clone)]
pub(super) enum Step {
    Wait,
    Open { node: u8, incarnation: u8, named: bool, short: bool, known: u8 },
    Heartbeat { session: u8, weight: Option<u32>, since: u8, most: u32, known: u8 },
    Close { session: u8 },
    Change { session: u8, changes: Vec<(u32, u8, u8, u8)>, known: u8 },
    Put { key: u8, exists: bool, expect: u8 },
    Force { unit: u32, token: u8, now: bool },
    Snapshot { session: u8 },
    Repeat,
    Restart,
    LoseEverything,
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let change = (0..UNITS, any::<u8>(), any::<u8>(), any::<u8>());
    prop_oneof![
        4 => Just(Step::Wait),
        30 => (0..NODES, 0..2_u8, any::<bool>(), prop::bool::weighted(0.2), any::<u8>())
            .prop_map(|(node, incarnation, named, short, known)| Step::Open { node, incarnation, named, short, known }),
        30 => (any::<u8>(), prop::option::weighted(0.2, 0..4_u32), any::<u8>(), 0..8_u32, any::<u8>())
            .prop_map(|(session, weight, since, most, known)| Step::Heartbeat { session, weight, since, most, known }),
        6 => any::<u8>().prop_map(|session| Step::Close { session }),
        120 => (any::<u8>(), prop::collection::vec(change, 1..4), any::<u8>())
            .prop_map(|(session, changes, known)| Step::Change { session, changes, known }),
        12 => (any::<u8>(), any::<bool>(), any::<u8>()).prop_map(|(key, exists, expect)| Step::Put { key, exists, expect }),
        6 => (0..UNITS, any::<u8>(), any::<bool>()).prop_map(|(unit, token, now)| Step::Force { unit, token, now }),
        10 => any::<u8>().prop_map(|session| Step::Snapshot { session }),
        20 => Just(Step::Repeat),
        1 => Just(Step::Restart),
        1 => Just(Step::LoseEverything),
    ]
}

impl Step {
    /// What must be known on both sides before the step can become requests.
    pub(super) fn needs(&self) -> Needs {
        match self {
            Self::Heartbeat { since, .. } if *since >= ASKING => Needs::View,
            Self::Put { expect, .. } if *expect >= CAREFUL => Needs::Revisions,
            Self::Wait
            | Self::Open { .. }
            | Self::Heartbeat { .. }
            | Self::Close { .. }
            | Self::Change { .. }
            | Self::Put { .. }
            | Self::Force { .. }
            | Self::Snapshot { .. }
            | Self::Repeat
            | Self::Restart
            | Self::LoseEverything => Needs::Nothing,
        }
    }
}

/// What must be known before a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    Nothing,
    /// A view, to ask for changes of it.
    View,
    /// The revisions that records have now.
    Revisions,
}

/// A request in the words of one of the two sides: their sessions and generations have different names.
#[derive(Debug, Clone)]
pub(super) enum Request {
    Call(Call),
    Admin(AdminRequest),
}

fn pick<T: Clone>(from: &[T], at: u8) -> Option<T> {
    // The latest ones are the most interesting.
    let back = usize::from(at) * usize::from(at) / 256 * from.len() / 256;
    from.len().checked_sub(1 + back).map(|place| from[place].clone())
}

impl Pair {
    fn operation(&mut self) -> OperationId {
        self.operations += 1;
        OperationId::from_bits(self.operations)
    }

    fn session(&self, which: u8) -> Option<(SessionId, SessionId)> {
        let all: Vec<_> = self.names.0.sessions.iter().copied().zip(self.names.1.sessions.iter().copied()).collect();
        pick(&all, which)
    }

    fn known(&self, which: u8) -> (Known, Known) {
        let all: Vec<_> =
            self.names.0.generations.iter().copied().zip(self.names.1.generations.iter().copied()).collect();
        let (store, model) = match which {
            0..10 => (None, None),
            10..30 => pick(&all, which * 8).unzip(),
            30..32 => (Some(Generation::from_bits(which.into())), Some(Generation::from_bits(which.into()))),
            _ => all.last().copied().unzip(),
        };
        let tokens = self.tokens(None, which).filter(|_| which.is_multiple_of(3)).unwrap_or_default();
        let long = self.times.long;
        let session_ttl_max = [long, long * 2, Duration::ZERO][usize::from(which) % 3];
        let known = |generation, token| Known { generation, token, session_ttl_max };
        (known(store, tokens.0), known(model, tokens.1))
    }

    /// A token that was seen (of this slot, or of any), as both sides call it.
    fn tokens(&self, slot: Option<&Slot>, which: u8) -> Option<(FencingToken, FencingToken)> {
        let (store, model) = (&self.names.0.tokens, &self.names.1.tokens);
        let both = store.iter().zip(model).filter(|((of, _), _)| slot.is_none_or(|slot| slot == of));
        let mut all = vec![(FencingToken::NONE, FencingToken::NONE)];
        all.extend(both.map(|((_, store), (_, model))| (*store, *model)));
        pick(&all, which)
    }

    /// One that the slot may have had. Where both sides draw the same tokens, those of other slots are as good.
    fn tokens_of(&self, slot: &Slot, which: u8) -> Option<(FencingToken, FencingToken)> {
        self.tokens(Some(slot).filter(|_| self.comparison == Comparison::Freely), which)
    }

    /// The slot's present token, as both sides call it.
    fn present(&self, slot: &Slot) -> (FencingToken, FencingToken) {
        let token = self.model.slot(slot).map_or(FencingToken::NONE, |record| record.token);
        let place = self.names.1.tokens.iter().position(|(of, known)| of == slot && *known == token);
        place.map_or((token, token), |place| (self.names.0.tokens[place].1, token))
    }

    /// Since when a heartbeat asks, as both sides call it.
    fn since(&self, which: u8) -> Option<(Revision, Revision)> {
        if which < ASKING {
            return None;
        }
        if self.comparison == Comparison::Exactly {
            return pick(&self.revisions, which - ASKING);
        }
        // What lies before it must have been told already.
        let told = self.told.0.since().zip(self.told.1.since())?;
        let earlier = self.revisions.iter().filter(|(store, model)| *store <= told.0 && *model <= told.1);
        let earlier: Vec<_> = earlier.copied().collect();
        if which < EARLIER { Some(told) } else { pick(&earlier, (which - EARLIER) * 3).or(Some(told)) }
    }

    /// What an operator may write.
    fn record(&self, which: u8) -> (RecordKey, Record) {
        let workload = |name: &str, units| {
            (RecordKey::Workload(name.try_into().unwrap()), Record::Workload(WorkloadRecord::new(units)))
        };
        let node: NodeId = "n0".parse().unwrap();
        match which % 8 {
            0 => workload("declared", 4),
            1 => workload("w", 4),
            2 if self.writes_settings => {
                let mut settings = ClusterSettings::new(if which < 128 { self.times.long } else { self.times.low });
                settings.cold_start_hold = if which < 64 { self.times.short } else { Duration::ZERO };
                (RecordKey::Settings, Record::Settings(settings))
            }
            3 => (RecordKey::Node(node), Record::Node(NodeWish::default())),
            4 => (RecordKey::Pin(slot(1)), Record::Pin(node)),
            _ => workload("other", u32::from(which)),
        }
    }

    pub(super) fn requests(&mut self, step: &Step) -> Option<(Request, Request)> {
        let call = |store, model| Some((Request::Call(store), Request::Call(model)));
        match step {
            Step::Open { node, incarnation, named, short, known } => {
                let name: NodeId = format!("n{node}").parse().unwrap();
                let standing = self.model.sessions().find(|(_, record, _)| record.info.node == name);
                let standing = standing.map(|(id, ..)| id).filter(|_| *named);
                let place = standing.and_then(|id| self.names.1.sessions.iter().position(|known| *known == id));
                let replaced = place.map(|place| (self.names.0.sessions[place], self.names.1.sessions[place])).unzip();
                let known = self.known(*known);
                let mut info = NodeInfo::new(name, ClusterSettings::new(self.times.long));
                if node % 2 == 0 {
                    info.workloads.insert("declared".try_into().unwrap(), Declared::new(4));
                }
                let store = OpenRequest {
                    known: known.0,
                    operation: self.operation(),
                    incarnation: Incarnation::from_bits(u128::from(*incarnation)),
                    replaces: replaced.0,
                    ttl: if *short { self.times.short } else { self.times.long },
                    info: Arc::new(info),
                };
                let model = OpenRequest { known: known.1, replaces: replaced.1, ..store.clone() };
                call(Call::Open(store), Call::Open(model))
            }
            Step::Heartbeat { session, weight, since, most, known } => {
                let session = self.session(*session)?;
                let record = self.model.sessions().find(|(id, ..)| *id == session.1);
                let info = record.zip(*weight).map(|((_, record, _), weight)| {
                    let mut info = (*record.info).clone();
                    info.weight = weight;
                    if weight == 3 {
                        info.node = "other".try_into().unwrap();
                    }
                    Arc::new(info)
                });
                let known = self.known(*known);
                let since = self.since(*since).unzip();
                let store = HeartbeatRequest {
                    known: known.0,
                    session: session.0,
                    since: since.0,
                    changes_max: most * most,
                    due_within: self.times.long,
                    info,
                };
                let model = HeartbeatRequest { known: known.1, session: session.1, since: since.1, ..store.clone() };
                call(Call::Heartbeat(store), Call::Heartbeat(model))
            }
            Step::Close { session } => {
                let session = self.session(*session)?;
                let known = self.known(255);
                call(
                    Call::Close(CloseRequest { known: known.0, session: session.0 }),
                    Call::Close(CloseRequest { known: known.1, session: session.1 }),
                )
            }
            Step::Change { session, changes, known } => {
                let mut session = self.session(*session)?;
                let known = self.known(*known);
                let (mut store, mut model) = (Vec::new(), Vec::new());
                for (unit, token, kind, other) in changes {
                    let (actor, changes) = self.change(session, *unit, *token, *kind, *other, store.is_empty());
                    session = actor;
                    store.push(changes.0);
                    model.push(changes.1);
                }
                call(
                    Call::Change(ChangeRequest { known: known.0, session: session.0, changes: store }),
                    Call::Change(ChangeRequest { known: known.1, session: session.1, changes: model }),
                )
            }
            Step::Put { key, exists, expect } => {
                let (key, record) = self.record(*key);
                let expect = match expect {
                    0..150 => None,
                    150..CAREFUL => Some(Revision(0)),
                    _ => self.model.records().find(|(found, _)| **found == key).map(|(_, found)| found.revision),
                };
                let record = exists.then_some(record);
                let put =
                    |expect| Request::Admin(AdminRequest::Put { key: key.clone(), record: record.clone(), expect });
                let theirs = expect.map(|revision| self.written.get(&revision).copied().unwrap_or(revision));
                Some((put(theirs), put(expect)))
            }
            Step::Force { unit, token, now } => {
                let slot = slot(*unit);
                let token = if *token < 200 { self.present(&slot) } else { self.tokens_of(&slot, *token)? };
                let force = |token| AdminRequest::ForceRelease { slot: slot.clone(), token, now: *now };
                Some((Request::Admin(force(token.0)), Request::Admin(force(token.1))))
            }
            Step::Snapshot { session } => {
                let session = self.session(*session).unzip();
                let known = self.known(255);
                call(
                    Call::Snapshot(SnapshotRequest { known: known.0, session: session.0, cursor: None }),
                    Call::Snapshot(SnapshotRequest { known: known.1, session: session.1, cursor: None }),
                )
            }
            Step::Repeat => self.last.clone(),
            Step::Wait | Step::Restart | Step::LoseEverything => None,
        }
    }

    /// Mostly, the one acts that can: a first change chooses the actor.
    fn change(
        &mut self,
        mut session: (SessionId, SessionId),
        unit: u32,
        token: u8,
        kind: u8,
        other: u8,
        choose: bool,
    ) -> ((SessionId, SessionId), (SlotChange, SlotChange)) {
        let slot = slot(unit);
        let operation = self.operation();
        let record = self.model.slot(&slot).cloned();
        let standing = record.as_ref().and_then(|record| record.offer.clone());
        let kind = match &standing {
            Some(offer) if (80..180).contains(&other) => {
                if offer.ready {
                    6
                } else {
                    4
                }
            }
            _ => kind % 9,
        };
        let token =
            if token < 24 { self.tokens_of(&slot, token * 10).unwrap_or_default() } else { self.present(&slot) };
        let both = |names: &(Names, Names), id: SessionId| {
            let place = names.1.sessions.iter().position(|known| *known == id);
            place.map(|place| (names.0.sessions[place], id))
        };
        if choose && other < 200 {
            let actor = match kind {
                1..=3 | 6..=7 => record.as_ref().and_then(|record| record.holder.as_ref()).map(|holder| holder.session),
                4 | 5 => standing.as_ref().map(|offer| offer.to),
                _ => None,
            };
            session = actor.and_then(|id| both(&self.names, id)).unwrap_or(session);
        }
        let offer = standing.map(|offer| offer.id).or_else(|| pick(&self.offers, other)).unwrap_or(operation);
        let checkpoint = Some(Bytes::from(vec![other, b'\t', 0, 255])).filter(|_| other.is_multiple_of(3));
        let refuse_for = match self.comparison {
            Comparison::Exactly => Duration::from_millis(u64::from(other % 8) * 10),
            // It has ended at once for both sides, or it never does.
            Comparison::Freely if other % 8 < 2 => Duration::ZERO,
            Comparison::Freely => self.times.long,
        };
        let to = self.session(other).unwrap_or(session);
        if kind == 2 {
            self.offers.push(operation);
        }
        let of = |to: SessionId| match kind {
            0 => ChangeKind::Acquire { operation },
            1 => ChangeKind::Release {
                checkpoint: checkpoint.clone(),
                refuse_for: Some(refuse_for).filter(|_| other.is_multiple_of(2)),
            },
            2 => ChangeKind::Offer {
                operation,
                to,
                expires_in: if other.is_multiple_of(5) { self.times.moment } else { self.times.long },
                giver_total: other.into(),
                giver_of_workload: kind.into(),
                forced: other.is_multiple_of(2),
            },
            3 => ChangeKind::Withdraw { offer },
            4 => ChangeKind::Accept { offer },
            5 => ChangeKind::Refuse { offer, refuse_for },
            6 => ChangeKind::Transfer { operation, offer, checkpoint: checkpoint.clone() },
            7 => ChangeKind::SaveCheckpoint { checkpoint: checkpoint.clone().unwrap_or_default() },
            _ => ChangeKind::Readopt,
        };
        let store = SlotChange { slot: slot.clone(), token: token.0, kind: of(to.0) };
        (session, (store, SlotChange { slot, token: token.1, kind: of(to.1) }))
    }
}

fn slot(unit: u32) -> Slot {
    if unit == 0 { "declared/0".parse().unwrap() } else { Slot::new("w".try_into().unwrap(), unit) }
}
