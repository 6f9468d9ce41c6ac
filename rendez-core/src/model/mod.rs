//! The executable model of the store contract.
//!
//! What a store must answer to which request is said here in code, for one cluster: every other store is compared
//! with it, the simulator runs on it, and the memory store is it behind a lock. Deterministic: time is an argument
//! and the only chance is the seed. No I/O and no clock may ever come in here.
//!
//! What the contract's text leaves open is settled so:
//! - A slot of a dead session is not touched: an orphan is a slot whose holder does not exist.
//! - In the quiet time an acquisition or a transfer is refused even if it is the retry of one that was made before:
//!   what was granted before the loss and has not started is void.
//! - Writing what a record says already changes nothing, so that a repeated write has the effect of one.
//! - Deleting a workload's record deletes the slots of the workload that no live session holds, unless a live
//!   session declares the workload itself.
//! - A report from before the loss that comes during the quiet time lengthens it if the reporting node knows a
//!   longer session TTL.
//! - `cold_start_hold` begins with the first session that is ever opened in the cluster.

mod cluster;
mod effects;
mod hints;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use crate::change_index::Key;
use crate::store::Actor;
use cluster::{Cluster, Quiet, Session};
pub use effects::Effects;
use effects::Frame;
use hints::Hints;

use crate::{
    AdminOutcome, AdminRequest, Beat, Call, Capabilities, ChangeReply, ChangeRequest, CloseRequest, Cursor, Due,
    ErrorKind, FencingToken, Generation, Heard, HeartbeatRequest, Held, Known, OpenRequest, Opening, Record, RecordKey,
    Reply, Revision, SessionId, SessionRecord, Slot, SlotRecord, SnapshotPage, SnapshotRequest, Stamp, StoreError,
    StoreTime, Sync, Versioned, WatchHint, quiet_time,
};

/// The largest token: doubles, the only numbers of some stores, are exact up to here.
pub const TOKEN_MAX: u64 = (1 << 53) - 1;

/// How far a new generation raises the floor of the tokens.
pub const TOKEN_FLOOR_STEP: u64 = 1 << 30;

/// The most sessions that a heartbeat's reply names as due.
pub const DUE_MAX: usize = 64;

/// The most deleted keys that are remembered unless [`StoreModel::with_tombstones_max`] says another number.
const TOMBSTONES_MAX: usize = 4096;

/// One cluster in a store, as the contract wants it.
///
/// ```
/// use std::time::Duration;
/// use rendez_core::{Capabilities, ClusterSettings, Incarnation, Known, NodeId, NodeInfo, OpenRequest, OperationId};
/// use rendez_core::{Opening, StoreModel, StoreTime};
///
/// let mut store = StoreModel::new(1, Capabilities::strict("model"));
/// let ttl = Duration::from_secs(10);
/// let opening = store.open(StoreTime::from_micros(1_000), &OpenRequest {
///     known: Known::default(),
///     operation: OperationId::from_bits(1),
///     incarnation: Incarnation::from_bits(1),
///     replaces: None,
///     ttl,
///     info: NodeInfo::new(NodeId::new("a")?, ClusterSettings::new(ttl)).into(),
/// })?;
/// assert!(matches!(opening, Opening::Opened { .. }));
/// assert_eq!(store.sessions().count(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreModel {
    capabilities: Capabilities,
    server: Server,
    hints: Hints,
    /// What the effects that were last taken say beside the records.
    taken: Frame,
}

impl StoreModel {
    /// An empty store. Stores with different seeds draw different generations.
    #[must_use]
    pub fn new(seed: u64, capabilities: Capabilities) -> Self {
        Self { capabilities, server: Server::new(seed), hints: Hints::default(), taken: Frame::default() }
    }

    /// The same store, empty, with room for this many deleted keys: who asks for changes from before the oldest of
    /// them is sent to the snapshot.
    #[must_use]
    pub fn with_tombstones_max(mut self, tombstones_max: usize) -> Self {
        self.server.tombstones_max = tombstones_max;
        self.server.cluster = None;
        self
    }

    /// What the store can do and promise.
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// The hints of the requests since the last time, none of them twice.
    pub fn take_hints(&mut self) -> Vec<WatchHint> {
        self.hints.take()
    }

    // --- the requests ---

    /// Carries out whichever request it is.
    ///
    /// # Errors
    /// Those of the request.
    pub fn call(&mut self, now: StoreTime, call: &Call) -> Result<Reply, StoreError> {
        Ok(match call {
            Call::Open(request) => Reply::Open(self.open(now, request)?),
            Call::Heartbeat(request) => Reply::Heartbeat(self.heartbeat(now, request)?),
            Call::Change(request) => Reply::Change(self.change(now, request)?),
            Call::Snapshot(request) => Reply::Snapshot(self.snapshot(now, request)?),
            Call::Close(request) => {
                self.close(now, request)?;
                Reply::Close
            }
        })
    }

    /// See [`LeaseStore::open`](crate::LeaseStore::open).
    ///
    /// # Errors
    /// [`ErrorKind::Fatal`] for a TTL, a protocol version, a weight or settings that are not permitted.
    pub fn open(&mut self, now: StoreTime, request: &OpenRequest) -> Result<Opening, StoreError> {
        self.capabilities.check_open(request)?;
        let cluster = self.server.enter(now, &request.known, &self.capabilities)?;
        let standing = cluster.session_of(&request.info.node);
        let standing = standing.and_then(|id| cluster.sessions.get(&id).map(|session| (id, session)));
        if let Some((id, session)) = standing
            && session.opened_by == request.operation
        {
            let ttl = session.record.ttl;
            cluster.extend_session(id, now);
            let settings = cluster.settings().unwrap_or(&request.info.settings).clone();
            return Ok(Opening::Opened { stamp: stamp(cluster, now), session: id, ttl, settings });
        }
        let settings = cluster.settings().unwrap_or(&request.info.settings).clone();
        if request.ttl > settings.session_ttl_max {
            return Err(fatal(format!(
                "a session TTL of {:?} is longer than the cluster's settings permit: use {:?} or less, or raise \
                 session_ttl_max in the cluster's settings",
                request.ttl, settings.session_ttl_max
            )));
        }
        if let Some((id, session)) = standing {
            let incarnation = session.record.incarnation;
            if incarnation != request.incarnation || request.replaces != Some(id) {
                let remaining = session.expires_at.since(now);
                return Ok(Opening::InUse { stamp: stamp(cluster, now), session: id, incarnation, remaining });
            }
            cluster.remove_session(id);
            self.hints.push(WatchHint::Everyone);
        }
        if cluster.settings().is_none() {
            cluster.write_record(&RecordKey::Settings, Record::Settings(settings.clone()));
        }
        if !cluster.opened {
            cluster.be_quiet(now, settings.cold_start_hold);
        }
        let revision = cluster.next_revision();
        let high_bits = cluster.lineage.generation().bits() >> 64 << 64;
        let id = SessionId::from_bits(high_bits | u128::from(revision.0));
        let record = SessionRecord {
            incarnation: request.incarnation,
            opened_at: now,
            ttl: request.ttl,
            info: Arc::clone(&request.info),
            revision,
        };
        let session =
            Session { record, opened_by: request.operation, expires_at: now + request.ttl, held: Held::default() };
        cluster.insert_session(id, session);
        Ok(Opening::Opened { stamp: stamp(cluster, now), session: id, ttl: request.ttl, settings })
    }

    /// See [`LeaseStore::heartbeat`](crate::LeaseStore::heartbeat).
    ///
    /// # Errors
    /// [`ErrorKind::Lost`] if the session does not live, [`ErrorKind::Fatal`] for information that cannot be.
    pub fn heartbeat(&mut self, now: StoreTime, request: &HeartbeatRequest) -> Result<Beat, StoreError> {
        self.capabilities.check_heartbeat(request)?;
        let cluster = self.server.enter(now, &request.known, &self.capabilities)?;
        let session = cluster.sessions.get(&request.session).ok_or_else(|| lost(request.session))?;
        let (ttl, held) = (session.record.ttl, session.held);
        if let Some(info) = request.info.as_ref().filter(|info| **info != session.record.info) {
            if info.node != session.record.info.node {
                return Err(fatal(format!(
                    "the session of node {:?} cannot become one of node {:?}: open another session",
                    session.record.info.node, info.node
                )));
            }
            let revision = cluster.next_revision();
            if let Some(session) = cluster.sessions.get_mut(&request.session) {
                session.record.info = Arc::clone(info);
                session.record.revision = revision;
            }
            cluster.index.written(Key::Session(request.session), revision);
            self.hints.push(WatchHint::Everyone);
        }
        cluster.extend_session(request.session, now);
        let due = cluster.by_expiry().take_while(|(at, _)| at.since(now) <= request.due_within);
        let due = due.filter(|(_, session)| *session != request.session);
        let due = due.take(DUE_MAX).map(|(at, session)| Due { session, remaining: at.since(now) }).collect();
        Ok(Beat { stamp: stamp(cluster, now), ttl, held, sync: sync(cluster, &self.capabilities, request), due })
    }

    /// See [`LeaseStore::close`](crate::LeaseStore::close).
    ///
    /// # Errors
    /// [`ErrorKind::Fatal`] for a report that cannot be.
    pub fn close(&mut self, now: StoreTime, request: &CloseRequest) -> Result<(), StoreError> {
        let cluster = self.server.enter(now, &request.known, &self.capabilities)?;
        if cluster.remove_session(request.session) {
            self.hints.push(WatchHint::Everyone);
        }
        Ok(())
    }

    /// See [`LeaseStore::change`](crate::LeaseStore::change).
    ///
    /// # Errors
    /// [`ErrorKind::Lost`] if the session does not live, [`ErrorKind::Fatal`] for too many changes and for those that
    /// cannot be; in both cases nothing was changed.
    pub fn change(&mut self, now: StoreTime, request: &ChangeRequest) -> Result<ChangeReply, StoreError> {
        self.capabilities.check_change(request)?;
        let count = request.changes.len() as u64;
        let cluster = self.server.enter(now, &request.known, &self.capabilities)?;
        let session = cluster.sessions.get(&request.session).ok_or_else(|| lost(request.session))?;
        if cluster.token.get().max(now.as_micros()) > TOKEN_MAX - count {
            return Err(fatal(format!(
                "tokens of this cluster cannot rise any more: the largest is {}, the store's clock is at {} µs, and \
                 {TOKEN_MAX} is the last; use another cluster name",
                cluster.token,
                now.as_micros()
            )));
        }
        let node = session.record.info.node.clone();
        let actor = Actor {
            now,
            session: request.session,
            node: &node,
            quiet: cluster.quiet.is_some(),
            generation_known: request.known.generation == Some(cluster.lineage.generation()),
        };
        let hints = &mut self.hints;
        let outcomes = request.changes.iter().map(|change| cluster.change_slot(&actor, change, hints)).collect();
        Ok(ChangeReply { stamp: stamp(cluster, now), outcomes })
    }

    /// See [`LeaseStore::snapshot`](crate::LeaseStore::snapshot).
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] for a cursor of another generation.
    pub fn snapshot(&mut self, now: StoreTime, request: &SnapshotRequest) -> Result<SnapshotPage, StoreError> {
        let cluster = self.server.enter(now, &request.known, &self.capabilities)?;
        let generation = cluster.lineage.generation();
        let after = request.cursor.as_ref().map(|Cursor(text)| {
            let (of, key) = text.split_once(' ')?;
            Key::parse(key).filter(|_| of.parse() == Ok(generation))
        });
        let after = match after {
            None => None,
            Some(Some(key)) => Some(key),
            Some(None) => {
                let what = "the data may have been lost since this snapshot was begun: begin it again";
                return Err(StoreError::new(ErrorKind::Conflict, what));
            }
        };
        let most = self.capabilities.changes_max;
        let (items, last) = cluster.index.page(after.as_ref(), most, |key| cluster.read(key, request.session));
        let next = last.map(|key| Cursor(format!("{generation} {}", key.to_text())));
        Ok(SnapshotPage { stamp: stamp(cluster, now), items, next })
    }

    /// See [`LeaseStore::administer`](crate::LeaseStore::administer).
    ///
    /// # Errors
    /// [`ErrorKind::Fatal`] for a record that does not fit its key or holds a value that cannot be.
    pub fn administer(&mut self, now: StoreTime, request: &AdminRequest) -> Result<AdminOutcome, StoreError> {
        self.capabilities.check_admin(request)?;
        let cluster = self.server.enter(now, &Known::default(), &self.capabilities)?;
        let done = match request {
            AdminRequest::Put { key, record, expect } => put(cluster, &mut self.hints, key, record.as_ref(), *expect),
            AdminRequest::ForceRelease { slot, token, now: at_once } => {
                force(cluster, &mut self.hints, now, slot, *token, *at_once)
            }
        };
        let stamp = stamp(cluster, now);
        Ok(if done { AdminOutcome::Done(stamp) } else { AdminOutcome::Refused(stamp) })
    }

    // --- what happens to data ---

    /// All data are gone and nobody says so: an accidental flush, or a restart without a disk.
    pub fn lose_everything(&mut self) {
        self.server.cluster = None;
        self.taken = Frame::default();
    }

    /// The server goes on in a new history with the data that it has: after a restart or a failover, writes that were
    /// acknowledged may be missing, or may not.
    pub fn restart(&mut self) {
        self.server.history = self.server.random.draw();
    }

    /// A failover to a replica that had got no further than `to`, an earlier state of this store.
    pub fn roll_back(&mut self, to: &Self) {
        self.server.cluster.clone_from(&to.server.cluster);
        self.taken.clone_from(&to.taken);
        self.restart();
    }

    // --- looking in from outside: for oracles and tests, never for a store's users ---

    /// The present generation, if there was any request since the data began.
    #[must_use]
    pub fn generation(&self) -> Option<Generation> {
        self.server.cluster.as_ref().map(|cluster| cluster.lineage.generation())
    }

    /// The present revision.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.server.cluster.as_ref().map_or(Revision(0), |cluster| cluster.revision)
    }

    /// The largest token, granted or set aside.
    #[must_use]
    pub fn token(&self) -> FencingToken {
        self.server.cluster.as_ref().map_or(FencingToken::NONE, |cluster| cluster.token)
    }

    /// How long nothing is granted yet.
    #[must_use]
    pub fn quiet(&self, now: StoreTime) -> Duration {
        self.server.cluster.as_ref().map_or(Duration::ZERO, |cluster| cluster.quiet_left(now))
    }

    /// The sessions that were not removed yet and when they end; some may have ended meanwhile.
    pub fn sessions(&self) -> impl Iterator<Item = (SessionId, &SessionRecord, StoreTime)> {
        let sessions = self.server.cluster.iter().flat_map(|cluster| &cluster.sessions);
        sessions.map(|(id, session)| (*id, &session.record, session.expires_at))
    }

    /// Whether a session lives.
    #[must_use]
    pub fn is_alive(&self, now: StoreTime, session: SessionId) -> bool {
        let session = self.server.cluster.as_ref().and_then(|cluster| cluster.sessions.get(&session));
        session.is_some_and(|session| now < session.expires_at)
    }

    /// Count and digest of the leases of a session that lives, as kept up with each change.
    #[must_use]
    pub fn held(&self, session: SessionId) -> Option<Held> {
        self.server.cluster.as_ref()?.sessions.get(&session).map(|session| session.held)
    }

    /// All slots that have a record, in order.
    pub fn slots(&self) -> impl Iterator<Item = (&Slot, &SlotRecord)> {
        self.server.cluster.iter().flat_map(|cluster| &cluster.slots)
    }

    /// A slot's record.
    #[must_use]
    pub fn slot(&self, slot: &Slot) -> Option<&SlotRecord> {
        self.server.cluster.as_ref()?.slots.get(slot)
    }

    /// The live session that holds a slot.
    #[must_use]
    pub fn owner(&self, now: StoreTime, slot: &Slot) -> Option<SessionId> {
        let holder = self.slot(slot)?.holder.as_ref()?;
        self.is_alive(now, holder.session).then_some(holder.session)
    }

    /// All records that operators have written, in order.
    pub fn records(&self) -> impl Iterator<Item = (&RecordKey, &Versioned)> {
        self.server.cluster.iter().flat_map(|cluster| &cluster.records)
    }
}

/// The data, and what the server knows beside them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Server {
    random: SplitMix64,
    /// The server's own name for the life of its data. The cluster keeps the one that it was last written in.
    history: u64,
    tombstones_max: usize,
    /// Whether changes are noted so that their effects can be taken.
    recording: bool,
    cluster: Option<Cluster>,
}

impl Server {
    fn new(seed: u64) -> Self {
        let mut random = SplitMix64(seed);
        Self { history: random.draw(), random, tombstones_max: TOMBSTONES_MAX, recording: false, cluster: None }
    }

    /// What every request begins with: find out whether data were lost, take in what the node reports, and remove
    /// the sessions that have ended.
    fn enter(
        &mut self,
        now: StoreTime,
        known: &Known,
        capabilities: &Capabilities,
    ) -> Result<&mut Cluster, StoreError> {
        if known.token.get() > TOKEN_MAX {
            return Err(fatal(format!("the reported token {} cannot be: the last one is {TOKEN_MAX}", known.token)));
        }
        let (random, history) = (&mut self.random, self.history);
        let (fresh, tombstones_max, recording) = (self.cluster.is_none(), self.tombstones_max, self.recording);
        let cluster =
            self.cluster.get_or_insert_with(|| Cluster::new(random.generation(), history, tombstones_max, recording));
        let heard = cluster.lineage.hear(known);
        cluster.token = cluster.token.max(known.token);
        cluster.pass_quiet(now);

        if heard == Heard::Unknown || cluster.history != history {
            if !fresh {
                cluster.lineage.renew(random.generation());
            }
            if let Some(reported) = known.generation {
                cluster.lineage.remember(reported);
            }
            cluster.history = history;
            cluster.token = FencingToken::new((cluster.token.get() + TOKEN_FLOOR_STEP).min(TOKEN_MAX));
            cluster.be_quiet(now, quiet_time_of(cluster, capabilities, known));
        } else if let Some(quiet) = cluster.quiet
            && heard == Heard::Ancestor
        {
            let lasts = quiet.lasts.max(quiet_time_of(cluster, capabilities, known));
            cluster.quiet = Some(Quiet { lasts, ..quiet });
        }
        cluster.reap(now);
        Ok(cluster)
    }
}

fn quiet_time_of(cluster: &Cluster, capabilities: &Capabilities, known: &Known) -> Duration {
    let settings = cluster.settings().map(|settings| settings.session_ttl_max);
    let sessions = cluster.sessions.values().map(|session| session.record.ttl);
    let ttls = sessions.chain(settings).chain([known.session_ttl_max]);
    quiet_time(ttls, capabilities.ttl_max, capabilities.replica_lag_max)
}

fn stamp(cluster: &Cluster, now: StoreTime) -> Stamp {
    Stamp {
        generation: cluster.lineage.generation(),
        revision: cluster.revision,
        now,
        token: cluster.token,
        quiet: cluster.quiet_left(now),
    }
}

fn sync(cluster: &Cluster, capabilities: &Capabilities, request: &HeartbeatRequest) -> Sync {
    let Some(since) = request.since else { return Sync::NotAsked };
    if request.known.generation != Some(cluster.lineage.generation()) {
        return Sync::Snapshot;
    }
    let most = capabilities.changes_max.min(usize::try_from(request.changes_max).unwrap_or(usize::MAX));
    cluster.index.sync(since, cluster.revision, most, |key| cluster.read(key, Some(request.session)))
}

/// Writes or deletes a record for an operator; says whether its revision was the expected one.
fn put(
    cluster: &mut Cluster,
    hints: &mut Hints,
    key: &RecordKey,
    record: Option<&Record>,
    expect: Option<Revision>,
) -> bool {
    let before = cluster.records.get(key);
    let revision = before.map_or(Revision(0), |before| before.revision);
    if expect.is_some_and(|expect| expect != revision) {
        return false;
    }
    match record {
        Some(record) if before.is_some_and(|before| before.record == *record) => return true,
        Some(record) => cluster.write_record(key, record.clone()),
        None => {
            let existed = cluster.delete_record(key);
            if let RecordKey::Workload(workload) = key {
                cluster.delete_slots_of(workload);
            } else if !existed {
                return true;
            }
        }
    }
    hints.push(WatchHint::Everyone);
    true
}

/// Asks the holder to let go, or lets go in its place; says whether the slot had the token.
fn force(
    cluster: &mut Cluster,
    hints: &mut Hints,
    now: StoreTime,
    slot: &Slot,
    token: FencingToken,
    at_once: bool,
) -> bool {
    let Some(before) = cluster.slots.get(slot) else { return false };
    let decided = before.force(now, token, at_once);
    decided.map(|decision| cluster.carry_out(slot, decision, hints)).is_ok()
}

fn fatal(message: impl Into<String>) -> StoreError {
    StoreError::new(ErrorKind::Fatal, message)
}

fn lost(session: SessionId) -> StoreError {
    StoreError::new(ErrorKind::Lost, format!("the session {session} does not live: open a new one"))
}

/// A small generator of numbers that look like chance: SplitMix64.
#[derive(Debug, Clone, PartialEq, Eq)]
struct SplitMix64(u64);

impl SplitMix64 {
    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn generation(&mut self) -> Generation {
        Generation::from_bits(u128::from(self.draw()) << 64 | u128::from(self.draw()))
    }
}
