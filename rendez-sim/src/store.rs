//! How stores behave, as models around the model of the contract: lost writes, late expiry, forgetful logs.
//!
//! Everything that a store here does is within what stores of this kind declare; what breaks the contract itself is
//! planted as a bug, never a behaviour.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rendez_core::{
    AdminOutcome, AdminRequest, Call, Capabilities, Change, Opening, Reply, Revision, SessionId, Slot, StoreError,
    StoreModel, StoreTime, Sync,
};

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
}

impl SimStore {
    pub(crate) fn new(seed: u64, capabilities: Capabilities, behaviour: Behaviour) -> Self {
        let model = StoreModel::new(seed, capabilities);
        Self { model, behaviour, copies: VecDeque::new(), forgotten: BTreeMap::new() }
    }

    /// The store's clock at a time of the world.
    pub(crate) fn clock(&self, now: u64) -> StoreTime {
        let gained = i128::from(now) * i128::from(self.behaviour.rate) / 1_000_000;
        StoreTime::from_micros(EPOCH_MICROS + now.saturating_add_signed(gained as i64) / 1000)
    }

    /// The world's time when a session ends for those who were told its TTL.
    pub(crate) fn ends(&self, now: u64, session: SessionId) -> Option<u64> {
        let (_, _, ends) = self.model.sessions().find(|(id, _, _)| *id == session)?;
        let left = ends.since(self.clock(now)).as_nanos() as i128;
        let left = left * 1_000_000 / i128::from(1_000_000 + self.behaviour.rate);
        Some((now + left as u64).saturating_sub(self.behaviour.lateness.as_nanos() as u64))
    }

    /// Carries a request out, as this store does it.
    pub(crate) fn call(&mut self, now: u64, call: &Call) -> Result<Reply, StoreError> {
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
        // The newer replicas have lost as well.
        self.copies.retain(|(copied, _)| *copied <= at);
        now - at
    }
}
