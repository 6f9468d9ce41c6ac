//! The data of one cluster, and what each request does to them. No clock and no lock may come in here.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rendez_core::{
    Actor, AdminOutcome, AdminRequest, Beat, Capabilities, Change, ChangeOutcome, ChangeReply, ChangeRequest,
    CloseRequest, ClusterSettings, DUE_MAX, Decision, Due, ErrorKind, FencingToken, Generation, HeartbeatRequest, Held,
    Known, NodeId, OpenRequest, Opening, OperationId, Record, RecordKey, Revision, SessionId, SessionRecord, Slot,
    SlotChange, SlotRecord, SnapshotPage, SnapshotRequest, Stamp, StoreError, StoreTime, Surroundings, Sync,
    TOKEN_FLOOR_STEP, TOKEN_MAX, Versioned, WatchHint,
};

/// The generations that are known as the past; reports of older ones set off a new quiet time.
const PAST_MAX: usize = 64;
/// The deletions that are remembered; who asks for changes from before them is sent to a snapshot.
const DELETIONS_MAX: usize = 4096;
/// What is added to every quiet time.
const QUIET_MARGIN: Duration = Duration::from_secs(1);

pub(crate) fn capabilities() -> Capabilities {
    Capabilities::strict("shelf")
}

struct Session {
    record: SessionRecord,
    opened_by: OperationId,
    ends_at: StoreTime,
}

/// One cluster; fresh until its first request.
pub(crate) struct Cluster {
    generation: Generation,
    past: VecDeque<Generation>,
    /// When the quiet time began and how long it lasts.
    quiet: Option<(StoreTime, Duration)>,
    opened: bool,
    now: StoreTime,
    revision: Revision,
    token: FencingToken,
    sessions: BTreeMap<SessionId, Session>,
    slots: BTreeMap<Slot, SlotRecord>,
    records: BTreeMap<RecordKey, Versioned>,
    /// What was deleted when, and the last deletion that was forgotten.
    deleted: VecDeque<(Revision, Change)>,
    forgotten: Revision,
    hints: Vec<WatchHint>,
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            generation: Generation::from_bits(fastrand::u128(1..)),
            past: VecDeque::new(),
            quiet: None,
            opened: false,
            now: StoreTime::default(),
            revision: Revision(0),
            token: FencingToken::NONE,
            sessions: BTreeMap::new(),
            slots: BTreeMap::new(),
            records: BTreeMap::new(),
            deleted: VecDeque::new(),
            forgotten: Revision(0),
            hints: Vec::new(),
        }
    }
}

fn fatal(message: impl Into<String>) -> StoreError {
    StoreError::new(ErrorKind::Fatal, message)
}

fn lost(session: SessionId) -> StoreError {
    StoreError::new(ErrorKind::Lost, format!("the session {session} does not live: open a new one"))
}

impl Cluster {
    /// The clock by which everything is judged: it never goes back.
    pub(crate) fn tick(&mut self, wall: StoreTime) -> StoreTime {
        self.now = self.now.max(wall);
        self.now
    }

    pub(crate) fn take_hints(&mut self) -> Vec<WatchHint> {
        std::mem::take(&mut self.hints)
    }

    // --- the requests ---

    pub(crate) fn open(&mut self, now: StoreTime, request: &OpenRequest) -> Result<Opening, StoreError> {
        capabilities().check_open(request)?;
        self.enter(now, &request.known)?;
        let settings = self.settings().unwrap_or(&request.info.settings).clone();
        let standing = self.sessions.iter().find(|(_, session)| session.record.info.node == request.info.node);
        let standing = standing.map(|(id, session)| (*id, session.opened_by, session.record.clone(), session.ends_at));
        if let Some((id, opened_by, record, _)) = &standing
            && *opened_by == request.operation
        {
            self.extend(*id, now);
            let (session, ttl) = (*id, record.ttl);
            return Ok(Opening::Opened { stamp: self.stamp(now), session, ttl, settings });
        }
        if request.ttl > settings.session_ttl_max {
            return Err(fatal(format!("the cluster's settings permit TTLs up to {:?}", settings.session_ttl_max)));
        }
        if let Some((session, _, record, ends_at)) = standing {
            let incarnation = record.incarnation;
            if incarnation != request.incarnation || request.replaces != Some(session) {
                let remaining = ends_at.since(now);
                return Ok(Opening::InUse { stamp: self.stamp(now), session, incarnation, remaining });
            }
            self.end(session);
            self.hints.push(WatchHint::Everyone);
        }
        if self.settings().is_none() {
            self.write_record(RecordKey::Settings, Record::Settings(settings.clone()));
        }
        if !std::mem::replace(&mut self.opened, true) && !settings.cold_start_hold.is_zero() {
            self.quiet = Some((now, settings.cold_start_hold));
        }
        let session = SessionId::from_bits(fastrand::u128(1..));
        let record = SessionRecord {
            incarnation: request.incarnation,
            opened_at: now,
            ttl: request.ttl,
            info: Arc::clone(&request.info),
            revision: self.next_revision(),
        };
        let entry = Session { record, opened_by: request.operation, ends_at: now + request.ttl };
        self.sessions.insert(session, entry);
        Ok(Opening::Opened { stamp: self.stamp(now), session, ttl: request.ttl, settings })
    }

    pub(crate) fn heartbeat(&mut self, now: StoreTime, request: &HeartbeatRequest) -> Result<Beat, StoreError> {
        capabilities().check_heartbeat(request)?;
        self.enter(now, &request.known)?;
        let record = self.sessions.get(&request.session).ok_or_else(|| lost(request.session))?.record.clone();
        if let Some(info) = request.info.as_ref().filter(|info| **info != record.info) {
            if info.node != record.info.node {
                return Err(fatal("a session cannot become another node's: open another one"));
            }
            let revision = self.next_revision();
            if let Some(session) = self.sessions.get_mut(&request.session) {
                session.record.info = Arc::clone(info);
                session.record.revision = revision;
            }
            self.hints.push(WatchHint::Everyone);
        }
        self.extend(request.session, now);
        let mut held = Held::default();
        for (slot, record) in self.slots.iter().filter(|(_, record)| record.is_held_by(request.session)) {
            held.add(slot, record.token);
        }
        let others = self.sessions.iter().filter(|(id, _)| **id != request.session);
        let mut due: Vec<_> =
            others.map(|(id, session)| Due { session: *id, remaining: session.ends_at.since(now) }).collect();
        due.retain(|due| due.remaining <= request.due_within);
        due.sort_by_key(|due| due.remaining);
        due.truncate(DUE_MAX);
        Ok(Beat { stamp: self.stamp(now), ttl: record.ttl, held, sync: self.sync(request), due })
    }

    pub(crate) fn close(&mut self, now: StoreTime, request: &CloseRequest) -> Result<(), StoreError> {
        self.enter(now, &request.known)?;
        if self.end(request.session) {
            self.hints.push(WatchHint::Everyone);
        }
        Ok(())
    }

    pub(crate) fn change(&mut self, now: StoreTime, request: &ChangeRequest) -> Result<ChangeReply, StoreError> {
        capabilities().check_change(request)?;
        self.enter(now, &request.known)?;
        let session = self.sessions.get(&request.session).ok_or_else(|| lost(request.session))?;
        if self.token.get().max(now.as_micros()) > TOKEN_MAX - request.changes.len() as u64 {
            return Err(fatal("the tokens of this cluster cannot rise any more: use another cluster"));
        }
        let node = session.record.info.node.clone();
        let actor = Actor {
            now,
            session: request.session,
            node: &node,
            quiet: self.quiet.is_some(),
            generation_known: request.known.generation == Some(self.generation),
        };
        let outcomes = request.changes.iter().map(|change| self.change_one(&actor, change)).collect();
        Ok(ChangeReply { stamp: self.stamp(now), outcomes })
    }

    pub(crate) fn snapshot(&mut self, now: StoreTime, request: &SnapshotRequest) -> Result<SnapshotPage, StoreError> {
        self.enter(now, &request.known)?;
        // Everything stands on one page, so no cursor is ours.
        if request.cursor.is_some() {
            return Err(StoreError::new(ErrorKind::Conflict, "the cursor is of no snapshot of this store"));
        }
        let items = self.living(request.session).map(|(_, item)| item).collect();
        Ok(SnapshotPage { stamp: self.stamp(now), items, next: None })
    }

    pub(crate) fn administer(&mut self, now: StoreTime, request: &AdminRequest) -> Result<AdminOutcome, StoreError> {
        capabilities().check_admin(request)?;
        self.enter(now, &Known::default())?;
        let done = match request {
            AdminRequest::Put { key, record, expect } => self.put(key, record.as_ref(), *expect),
            AdminRequest::ForceRelease { slot, token, now: at_once } => {
                match self.slots.get(slot).map(|record| record.force(now, *token, *at_once)) {
                    Some(Ok(decision)) => {
                        self.carry_out(slot, decision);
                        true
                    }
                    Some(Err(_)) | None => false,
                }
            }
        };
        let stamp = self.stamp(now);
        Ok(if done { AdminOutcome::Done(stamp) } else { AdminOutcome::Refused(stamp) })
    }

    // --- what every request begins with ---

    /// Takes in what the node reports, notices a loss of data, and ends the sessions whose time is over.
    fn enter(&mut self, now: StoreTime, known: &Known) -> Result<(), StoreError> {
        if known.token.get() > TOKEN_MAX {
            return Err(fatal(format!("the reported token {} cannot be", known.token)));
        }
        self.token = self.token.max(known.token);
        self.quiet = self.quiet.filter(|(from, lasts)| now < *from + *lasts);
        if let Some(reported) = known.generation.filter(|reported| *reported != self.generation) {
            let lasts = self.quiet_time(known);
            if self.past.contains(&reported) {
                // Not news; but a node that knows a longer TTL lengthens the quiet time.
                self.quiet = self.quiet.map(|(from, before)| (from, before.max(lasts)));
            } else {
                let before = std::mem::replace(&mut self.generation, Generation::from_bits(fastrand::u128(1..)));
                self.past.extend([before, reported]);
                while self.past.len() > PAST_MAX {
                    self.past.pop_front();
                }
                self.token = FencingToken::new((self.token.get() + TOKEN_FLOOR_STEP).min(TOKEN_MAX));
                let left = self.quiet.map_or(Duration::ZERO, |(from, lasts)| (from + lasts).since(now));
                self.quiet = Some((now, lasts.max(left)));
            }
        }
        let ended: Vec<_> =
            self.sessions.iter().filter(|(_, session)| session.ends_at <= now).map(|(id, _)| *id).collect();
        for session in ended {
            self.end(session);
        }
        Ok(())
    }

    /// The longest that a runner from before the loss may still run.
    fn quiet_time(&self, known: &Known) -> Duration {
        let settings = self.settings().map_or(Duration::ZERO, |settings| settings.session_ttl_max);
        let sessions = self.sessions.values().map(|session| session.record.ttl).max().unwrap_or_default();
        known.session_ttl_max.max(settings).max(sessions).min(capabilities().ttl_max) + QUIET_MARGIN
    }

    fn stamp(&self, now: StoreTime) -> Stamp {
        let quiet = self.quiet.map_or(Duration::ZERO, |(from, lasts)| (from + lasts).since(now));
        Stamp { generation: self.generation, revision: self.revision, now, token: self.token, quiet }
    }

    fn next_revision(&mut self) -> Revision {
        self.revision.0 += 1;
        self.revision
    }

    fn settings(&self) -> Option<&ClusterSettings> {
        match &self.records.get(&RecordKey::Settings)?.record {
            Record::Settings(settings) => Some(settings),
            Record::Workload(_) | Record::Node(_) | Record::Pin(_) => None,
        }
    }

    // --- writing ---

    fn extend(&mut self, session: SessionId, now: StoreTime) {
        if let Some(session) = self.sessions.get_mut(&session) {
            session.ends_at = now + session.record.ttl;
        }
    }

    /// Ends a session; what it held is an orphan by that. Says whether there was one.
    fn end(&mut self, session: SessionId) -> bool {
        let existed = self.sessions.remove(&session).is_some();
        if existed {
            self.remember_deletion(Change::Session(session, None));
        }
        existed
    }

    fn change_one(&mut self, actor: &Actor<'_>, change: &SlotChange) -> ChangeOutcome {
        let before = self.slots.get(&change.slot).cloned();
        let refused = match actor.decide(before.as_ref(), change, self) {
            Ok(decision) => {
                self.carry_out(&change.slot, decision);
                None
            }
            Err(conflict) => Some(conflict),
        };
        let record = self.slots.get(&change.slot).map(|record| record.seen_by(Some(actor.session)));
        match refused {
            None => ChangeOutcome::Done(record),
            Some(conflict) => ChangeOutcome::Refused(conflict, record),
        }
    }

    fn carry_out(&mut self, slot: &Slot, decision: Decision) {
        match decision {
            Decision::Unchanged => {}
            Decision::Checkpoint(checkpoint) => {
                if let Some(record) = self.slots.get_mut(slot) {
                    record.checkpoint = Some(checkpoint);
                }
            }
            Decision::Write(mut record, hint) => {
                record.revision = self.next_revision();
                self.token = self.token.max(record.token);
                self.slots.insert(slot.clone(), *record);
                self.hints.extend(hint);
            }
        }
    }

    fn write_record(&mut self, key: RecordKey, record: Record) {
        let revision = self.next_revision();
        self.records.insert(key, Versioned { record, revision });
    }

    fn put(&mut self, key: &RecordKey, record: Option<&Record>, expect: Option<Revision>) -> bool {
        let before = self.records.get(key);
        let revision = before.map_or(Revision(0), |before| before.revision);
        if expect.is_some_and(|expect| expect != revision) {
            return false;
        }
        match record {
            // Writing what is there changes nothing: a repeated write has the effect of one.
            Some(record) if before.is_some_and(|before| before.record == *record) => return true,
            Some(record) => self.write_record(key.clone(), record.clone()),
            None => {
                if self.records.remove(key).is_some() {
                    self.remember_deletion(Change::Record(key.clone(), None));
                }
                if let RecordKey::Workload(workload) = key {
                    let declared = self.sessions.values().any(|it| it.record.info.workloads.contains_key(workload));
                    let held = |slot: &SlotRecord| {
                        slot.holder.as_ref().is_some_and(|holder| self.sessions.contains_key(&holder.session))
                    };
                    let doomed = self.slots.iter().filter(|(slot, record)| slot.workload == *workload && !held(record));
                    let doomed: Vec<_> = doomed.filter(|_| !declared).map(|(slot, _)| slot.clone()).collect();
                    for slot in doomed {
                        self.slots.remove(&slot);
                        self.remember_deletion(Change::Slot(slot, None));
                    }
                }
            }
        }
        self.hints.push(WatchHint::Everyone);
        true
    }

    fn remember_deletion(&mut self, what: Change) {
        let revision = self.next_revision();
        self.deleted.push_back((revision, what));
        while self.deleted.len() > DELETIONS_MAX {
            if let Some((forgotten, _)) = self.deleted.pop_front() {
                self.forgotten = forgotten;
            }
        }
    }

    // --- reading ---

    /// All records that exist, as a session may see them, with their revisions.
    fn living(&self, reader: Option<SessionId>) -> impl Iterator<Item = (Revision, Change)> {
        let records = self.records.iter().map(|(key, it)| (it.revision, Change::Record(key.clone(), Some(it.clone()))));
        let sessions =
            self.sessions.iter().map(|(id, it)| (it.record.revision, Change::Session(*id, Some(it.record.clone()))));
        let slots = self
            .slots
            .iter()
            .map(move |(slot, it)| (it.revision, Change::Slot(slot.clone(), Some(it.seen_by(reader)))));
        records.chain(sessions).chain(slots)
    }

    /// Whether a record of this name exists (again).
    fn exists(&self, change: &Change) -> bool {
        match change {
            Change::Session(id, _) => self.sessions.contains_key(id),
            Change::Slot(slot, _) => self.slots.contains_key(slot),
            Change::Record(key, _) => self.records.contains_key(key),
        }
    }

    fn sync(&self, request: &HeartbeatRequest) -> Sync {
        let Some(since) = request.since else { return Sync::NotAsked };
        let same = request.known.generation == Some(self.generation);
        if !same || since > self.revision || since < self.forgotten {
            return Sync::Snapshot;
        }
        let deleted = self.deleted.iter().filter(|(_, change)| !self.exists(change)).cloned();
        let mut changed: Vec<_> = self.living(Some(request.session)).chain(deleted).collect();
        changed.retain(|(revision, _)| *revision > since);
        changed.sort_by_key(|(revision, _)| *revision);
        let most = capabilities().changes_max.min(usize::try_from(request.changes_max).unwrap_or(usize::MAX));
        let more = changed.len() > most;
        changed.truncate(most);
        let last = changed.last().map_or(since, |(revision, _)| *revision);
        let up_to = if more { last } else { self.revision };
        Sync::Changes { changes: changed.into_iter().map(|(_, change)| change).collect(), up_to, more }
    }
}

/// What [`Actor::decide`] wants to know.
impl Surroundings for Cluster {
    fn node_of(&self, session: SessionId) -> Option<NodeId> {
        self.sessions.get(&session).map(|session| session.record.info.node.clone())
    }

    fn next_token(&mut self) -> FencingToken {
        self.token = FencingToken::new(1 + self.token.get().max(self.now.as_micros()));
        self.token
    }
}
