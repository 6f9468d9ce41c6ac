//! How stores behave, as models around the model of the contract: lost writes, late expiry, forgetful logs.
//!
//! Everything that a store here does is within what stores of this kind declare; what breaks the contract itself is
//! planted as a bug, never a behaviour.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rendez_core::{
    AdminOutcome, AdminRequest, Call, Capabilities, Change, CloseRequest, DUE_MAX, Due, Known, Opening, Reply,
    Revision, SessionId, Slot, StoreError, StoreModel, StoreTime, Sync,
};

use crate::observers::{Observer, Observers};

/// The store's clock at the beginning of a world, in microseconds.
const EPOCH_MICROS: u64 = 1_700_000_000_000_000;

/// How often a replica takes over what the store has.
const COPY_EVERY: u64 = 100_000_000;

/// How a store behaves.
#[derive(Debug, Clone, Default)]
pub(crate) struct Behaviour {
    /// It fails over to replicas that lag behind by this much at most.
    pub(crate) replica_lag: Option<Duration>,
    /// Sessions live for this much longer than what their nodes are told.
    pub(crate) lateness: Duration,
    /// Its log may lack changes of who holds what.
    pub(crate) forgetful: bool,
    /// Millionths by which its clock runs fast (or slow).
    pub(crate) rate: i64,
}

/// A store in a world.
#[derive(Debug)]
pub(crate) struct SimStore {
    pub(crate) model: StoreModel,
    behaviour: Behaviour,
    /// What replicas have, oldest first.
    copies: VecDeque<(u64, StoreModel)>,
    /// Changes that the log lacks for a session.
    forgotten: BTreeMap<(SessionId, Slot), Revision>,
    /// Those who end sessions, where the store's clock does not.
    observers: Option<Observers>,
    /// The sessions that they have ended.
    ended: u64,
}

impl SimStore {
    pub(crate) fn new(
        seed: u64,
        capabilities: Capabilities,
        behaviour: Behaviour,
        observers: Option<Observers>,
    ) -> Self {
        let model = StoreModel::new(seed, capabilities);
        Self { model, behaviour, copies: VecDeque::new(), forgotten: BTreeMap::new(), observers, ended: 0 }
    }

    /// The store's clock at a time of the world.
    pub(crate) fn clock(&self, now: u64) -> StoreTime {
        let gained = i128::from(now) * i128::from(self.behaviour.rate) / 1_000_000;
        StoreTime::from_micros(EPOCH_MICROS + now.saturating_add_signed(gained as i64) / 1000)
    }

    /// The world's time when a session ends for those who were told its TTL.
    pub(crate) fn ends(&self, now: u64, session: SessionId) -> Option<u64> {
        if let Some(observers) = &self.observers {
            return observers.ends_after(session);
        }
        let (_, _, ends) = self.model.sessions().find(|(id, _, _)| *id == session)?;
        let left = ends.since(self.clock(now)).as_nanos() as i128;
        let left = left * 1_000_000 / i128::from(1_000_000 + self.behaviour.rate);
        Some((now + left as u64).saturating_sub(self.behaviour.lateness.as_nanos() as u64))
    }

    /// Whether observers have ended sessions.
    pub(crate) fn observers_end(&self) -> bool {
        self.ended > 0
    }

    fn sessions(&self) -> Vec<(SessionId, Duration)> {
        self.model.sessions().map(|(session, record, _)| (session, record.ttl)).collect()
    }

    /// Carries a request out, as this store does it.
    pub(crate) fn call(&mut self, now: u64, call: &Call, observer: &Observer) -> Result<Reply, StoreError> {
        if self.observers.is_none() {
            return self.carry_out(now, call);
        }
        let looks = matches!(call, Call::Open(_) | Call::Heartbeat(_));
        if looks {
            self.end_sessions(now, observer);
        }
        self.model.keep_sessions(self.clock(now));
        let reply = self.carry_out(now, call);
        let sessions = self.sessions();
        let Some(observers) = &mut self.observers else { return reply };
        observers.keep_only(&sessions);
        let written = match (call, &reply) {
            (_, Ok(Reply::Open(Opening::Opened { session, ttl, .. }))) => Some((*session, *ttl)),
            (Call::Heartbeat(request), Ok(Reply::Heartbeat(beat))) => Some((request.session, beat.ttl)),
            (_, _) => None,
        };
        if let Some((session, ttl)) = written {
            observers.wrote(now, session, ttl);
        }
        if looks {
            observers.sees(observer);
        }
        reply.map(|reply| match reply {
            Reply::Open(Opening::InUse { stamp, session, incarnation, remaining }) => {
                let remaining = observers.remaining(observer, session).unwrap_or(remaining);
                Reply::Open(Opening::InUse { stamp, session, incarnation, remaining })
            }
            Reply::Heartbeat(mut beat) => {
                let (own, within) = match call {
                    Call::Heartbeat(request) => (Some(request.session), request.due_within),
                    Call::Open(_) | Call::Change(_) | Call::Snapshot(_) | Call::Close(_) => (None, Duration::ZERO),
                };
                let due = observers.due(observer, within, DUE_MAX).into_iter();
                let due = due.filter(|(_, session)| Some(*session) != own);
                beat.due = due.map(|(remaining, session)| Due { session, remaining }).collect();
                Reply::Heartbeat(beat)
            }
            Reply::Open(opening) => Reply::Open(opening),
            Reply::Change(reply) => Reply::Change(reply),
            Reply::Snapshot(page) => Reply::Snapshot(page),
            Reply::Close => Reply::Close,
        })
    }

    /// An observer ends the sessions that it has seen unchanged for too long.
    fn end_sessions(&mut self, now: u64, observer: &Observer) {
        let at = self.clock(now);
        for session in self.observers.as_ref().map(|observers| observers.ends(observer)).unwrap_or_default() {
            let known = Known { generation: self.model.generation(), ..Known::default() };
            self.model.keep_sessions(at);
            if self.model.close(at, &CloseRequest { known, session }).is_ok() {
                self.ended += 1;
            }
        }
    }

    fn carry_out(&mut self, now: u64, call: &Call) -> Result<Reply, StoreError> {
        let at = self.clock(now);
        let late = self.behaviour.lateness;
        let reply = match call {
            Call::Open(open) if !late.is_zero() => {
                let mut open = open.clone();
                open.ttl += late;
                self.model.call(at, &Call::Open(open))
            }
            Call::Open(_) | Call::Heartbeat(_) | Call::Change(_) | Call::Snapshot(_) | Call::Close(_) => {
                self.model.call(at, call)
            }
        };
        reply.map(|reply| match reply {
            Reply::Open(Opening::Opened { stamp, session, ttl, settings }) => {
                Reply::Open(Opening::Opened { stamp, session, ttl: ttl.saturating_sub(late), settings })
            }
            Reply::Heartbeat(mut beat) => {
                beat.ttl = beat.ttl.saturating_sub(late);
                if let (Call::Heartbeat(request), Sync::Changes { changes, .. }) = (call, &mut beat.sync)
                    && !self.forgotten.is_empty()
                {
                    changes.retain(|change| !self.is_forgotten(request.session, change));
                }
                Reply::Heartbeat(beat)
            }
            Reply::Open(opening) => Reply::Open(opening),
            Reply::Change(reply) => Reply::Change(reply),
            Reply::Snapshot(page) => Reply::Snapshot(page),
            Reply::Close => Reply::Close,
        })
    }

    pub(crate) fn administer(&mut self, now: u64, request: &AdminRequest) -> Result<AdminOutcome, StoreError> {
        if self.observers.is_some() {
            self.model.keep_sessions(self.clock(now));
        }
        self.model.administer(self.clock(now), request)
    }

    fn is_forgotten(&mut self, session: SessionId, change: &Change) -> bool {
        let Change::Slot(slot, Some(record)) = change else { return false };
        let forgotten = self.forgotten.remove(&(session, slot.clone()));
        forgotten == Some(record.revision)
    }

    /// The log will not tell a session of the last change of a slot, which concerns what it holds.
    pub(crate) fn forget_change(&mut self, session: SessionId, slot: &Slot) {
        if let Some(record) = self.model.slot(slot).filter(|_| self.behaviour.forgetful) {
            self.forgotten.insert((session, slot.clone()), record.revision);
        }
    }

    /// Lets replicas follow.
    pub(crate) fn replicate(&mut self, now: u64) {
        let Some(lag) = self.behaviour.replica_lag.map(|lag| lag.as_nanos() as u64) else { return };
        while self.copies.front().is_some_and(|(at, _)| at + lag < now) {
            self.copies.pop_front();
        }
        if self.copies.back().is_none_or(|(at, _)| at + COPY_EVERY <= now) {
            self.copies.push_back((now, self.model.clone()));
        }
    }

    /// Fails over to a replica; says how far that lags behind.
    pub(crate) fn fail_over(&mut self, now: u64, which: u64) -> u64 {
        self.replicate(now);
        let Some((at, copy)) = self.copies.get((which % self.copies.len().max(1) as u64) as usize).cloned() else {
            self.model.restart();
            return 0;
        };
        self.model.roll_back(&copy);
        let sessions = self.sessions();
        if let Some(observers) = &mut self.observers {
            observers.rolled_back(now, &sessions);
        }
        // The newer replicas have lost as well.
        self.copies.retain(|(copied, _)| *copied <= at);
        now - at
    }
}
