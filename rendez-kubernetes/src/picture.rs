//! What one handle knows of a cluster: the mirror of its records, the versions of its Leases, and since when each
//! session is seen as it is.
//!
//! It is told what is read and what the watch says; it asks nobody. Whatever it shows is a state that the cluster once had,
//! and all that led to it: the watch tells everything in order.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use k8s_openapi::api::coordination::v1::Lease;
use rendez_core::{
    Change, FencingToken, Generation, Mirror, RecordKey, Revision, SessionId, Slot, StoreError, WatchHint,
};

use crate::encode::{self, Base, Meta, NodeValue, Object, Quiet, Value};
use crate::errors::again;
use crate::keys::{Keys, Name};

/// The most deleted records that are remembered. Who has seen less takes a snapshot.
const TOMBSTONES_MAX: usize = 4096;

/// The most unreadable Leases that are remembered; one is enough to stop.
const DAMAGE_MAX: usize = 64;

/// How long a quiet time still counts that should be over: somebody is about to take it away.
const QUIET_LATE: Duration = Duration::from_millis(500);

/// By what part of its TTL a session is given more time than that: clocks run at different rates.
const RATE_MARGIN: u32 = 100;

/// A Lease as it was last seen.
#[derive(Debug)]
struct Seen {
    base: Base,
    what: What,
}

#[derive(Debug)]
enum What {
    Meta,
    /// Since when it is seen unchanged.
    Node(Arc<NodeValue>, Instant),
    Slot(Slot, Option<Bytes>),
    Record(RecordKey),
}

/// A session that has not been extended for too long.
#[derive(Debug, Clone)]
pub(crate) struct Overdue {
    pub(crate) lease: String,
    pub(crate) base: Base,
}

/// What a list has shown: by it a picture is known to be as new.
#[derive(Debug)]
pub(crate) struct Listing {
    version: u64,
    newest: u64,
    leases: HashSet<String>,
}

impl Listing {
    pub(crate) fn new(version: u64, all: &[Lease]) -> Self {
        let newest = all.iter().filter_map(encode::version).max().unwrap_or(0);
        Self { version, newest, leases: all.iter().filter_map(|lease| lease.metadata.name.clone()).collect() }
    }

    /// Whether the picture shows all that has happened until the list was made.
    pub(crate) fn is_shown(&self, picture: &Picture) -> bool {
        let covered = picture.mirror.covered().0;
        let is_there =
            |(lease, seen): (&String, &Seen)| seen.base.version > self.version || self.leases.contains(lease);
        covered >= self.version || (covered >= self.newest && picture.leases.iter().all(is_there))
    }
}

pub(crate) struct Picture {
    pub(crate) mirror: Mirror,
    leases: HashMap<String, Seen>,
    by_session: HashMap<SessionId, String>,
    meta: Option<Meta>,
    /// The quiet time that stands, and since when it is seen.
    quiet: Option<(Quiet, Instant)>,
    /// Everything was read once.
    pub(crate) loaded: bool,
    /// It begins in the past: it is not used before it shows this.
    behind: Option<Listing>,
    /// What was read cannot be gone on from: read everything again.
    pub(crate) reload: bool,
    /// The server shows less than it has shown before, in what says to be the same data.
    pub(crate) went_back: bool,
    /// The latest version that any answer has shown.
    reached: u64,
    /// Why there is no watch now.
    trouble: Option<StoreError>,
    /// The Leases that cannot be read.
    damage: BTreeMap<String, StoreError>,
}

impl Picture {
    pub(crate) fn new() -> Self {
        Self {
            mirror: Mirror::new(TOMBSTONES_MAX),
            leases: HashMap::new(),
            by_session: HashMap::new(),
            meta: None,
            quiet: None,
            loaded: false,
            behind: None,
            reload: true,
            went_back: false,
            reached: 0,
            trouble: None,
            damage: BTreeMap::new(),
        }
    }

    // --- answering ---

    pub(crate) fn meta(&self) -> Option<&Meta> {
        self.meta.as_ref()
    }

    pub(crate) fn generation(&self) -> Option<Generation> {
        self.meta.as_ref().map(|meta| meta.lineage.generation())
    }

    /// No token up to this one is granted again, whether it ever was or not.
    pub(crate) fn floor(&self) -> FencingToken {
        FencingToken::new(self.meta.as_ref().map_or(0, |meta| meta.floor))
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet.is_some()
    }

    /// How long nothing is granted yet.
    pub(crate) fn quiet_left(&self) -> Duration {
        self.quiet.map_or(Duration::ZERO, |(quiet, noted)| quiet.lasts.saturating_sub(noted.elapsed()).max(QUIET_LATE))
    }

    /// Whether the quiet time has stood for as long as it lasts.
    pub(crate) fn is_quiet_over(&self) -> bool {
        self.quiet.is_some_and(|(quiet, noted)| noted.elapsed() >= quiet.lasts)
    }

    /// The version of a Lease.
    pub(crate) fn base(&self, lease: &str) -> Option<&Base> {
        self.leases.get(lease).map(|seen| &seen.base)
    }

    pub(crate) fn version(&self, lease: &str) -> Option<u64> {
        self.base(lease).map(|base| base.version)
    }

    pub(crate) fn reach(&mut self, version: u64) {
        self.reached = self.reached.max(version);
    }

    /// What stands in a node's Lease.
    pub(crate) fn node(&self, lease: &str) -> Option<(&Base, &Arc<NodeValue>)> {
        match self.leases.get(lease)? {
            Seen { base, what: What::Node(value, _) } => Some((base, value)),
            Seen { what: What::Meta | What::Slot(..) | What::Record(_), .. } => None,
        }
    }

    /// The Lease of a live session.
    pub(crate) fn lease_of(&self, session: SessionId) -> Option<&String> {
        self.by_session.get(&session)
    }

    /// How long a session lives if it is not extended.
    pub(crate) fn remaining(&self, lease: &str) -> Option<Duration> {
        match self.leases.get(lease)? {
            Seen { what: What::Node(value, since), .. } => {
                Some(lifetime(value).saturating_sub(since.elapsed()).min(value.record.ttl))
            }
            Seen { what: What::Meta | What::Slot(..) | What::Record(_), .. } => None,
        }
    }

    /// The nodes' Leases, with what stands in them and since when.
    fn nodes(&self) -> impl Iterator<Item = (&String, &Base, &NodeValue, Instant)> {
        self.by_session.values().filter_map(|lease| match self.leases.get(lease)? {
            Seen { base, what: What::Node(value, since) } => Some((lease, base, &**value, *since)),
            Seen { what: What::Meta | What::Slot(..) | What::Record(_), .. } => None,
        })
    }

    /// The sessions that were seen unchanged for longer than they live.
    pub(crate) fn overdue(&self) -> Vec<Overdue> {
        let over = self.nodes().filter(|(_, _, value, since)| since.elapsed() >= lifetime(value));
        over.map(|(lease, base, ..)| Overdue { lease: lease.clone(), base: base.clone() }).collect()
    }

    /// When the next session or the quiet time ends, if it is not extended.
    pub(crate) fn next_end(&self) -> Option<Instant> {
        let sessions = self.nodes().map(|(_, _, value, since)| since + lifetime(value));
        sessions.chain(self.quiet.map(|(quiet, noted)| noted + quiet.lasts)).min()
    }

    /// Somebody else has extended it, though nobody has told yet.
    pub(crate) fn observe_anew(&mut self, lease: &str) {
        if let Some(Seen { what: What::Node(_, since), .. }) = self.leases.get_mut(lease) {
            *since = Instant::now();
        }
    }

    /// A slot's checkpoint.
    pub(crate) fn checkpoint(&self, lease: &str) -> Option<Bytes> {
        match self.leases.get(lease)? {
            Seen { what: What::Slot(_, checkpoint), .. } => checkpoint.clone(),
            Seen { what: What::Meta | What::Node(..) | What::Record(_), .. } => None,
        }
    }

    /// Adds the checkpoints of the slots that the reader holds.
    pub(crate) fn add_checkpoints(&self, keys: &Keys, reader: Option<SessionId>, changes: &mut [Change]) {
        let Some(reader) = reader else { return };
        for change in changes {
            if let Change::Slot(slot, Some(record)) = change
                && record.is_held_by(reader)
            {
                record.checkpoint = self.checkpoint(&keys.slot(slot));
            }
        }
    }

    // --- trouble ---

    pub(crate) fn set_trouble(&mut self, trouble: Option<StoreError>) {
        self.trouble = trouble;
    }

    /// Why the picture cannot be used or does not come up to date, if that is known.
    pub(crate) fn trouble(&self) -> Option<StoreError> {
        self.damage.values().next().or(self.trouble.as_ref()).map(again)
    }

    pub(crate) fn damage(&self) -> Option<StoreError> {
        self.damage.values().next().map(again)
    }

    // --- being told ---

    /// Whether it shows a state that is not of a past before it was first asked for.
    pub(crate) fn is_ready(&self) -> bool {
        self.loaded && !self.reload && self.behind.is_none()
    }

    fn catch_up(&mut self) {
        if self.behind.as_ref().is_some_and(|listing| listing.is_shown(self)) {
            self.behind = None;
        }
    }

    /// Everything there is, or was, at one version. It is not to be used before it shows `behind`.
    pub(crate) fn load(&mut self, keys: &Keys, version: u64, all: &[Lease], behind: Option<Listing>) {
        let before = std::mem::replace(self, Self::new());
        let mut changes = Vec::new();
        for lease in all {
            changes.extend(self.take(keys, lease));
        }
        let same = before.generation().is_some() && self.generation() == before.generation();
        if before.mirror.covered() <= Revision(version) && (same || !before.loaded) {
            self.mirror = before.mirror;
        } else if same && before.reached > version {
            self.went_back = true;
        }
        if !self.went_back && same {
            // What is unchanged was seen before.
            for (lease, seen) in &mut self.leases {
                if let (What::Node(_, since), Some(Seen { base, what: What::Node(_, first) })) =
                    (&mut seen.what, before.leases.get(lease))
                    && *base == seen.base
                {
                    *since = *first;
                }
            }
            if let (Some((new, noted)), Some((old, first))) = (&mut self.quiet, before.quiet)
                && new.id == old.id
            {
                *noted = first;
            }
        }
        self.mirror.load(Revision(version), changes);
        self.reached = if same && !self.went_back { before.reached.max(version) } else { version };
        (self.loaded, self.reload, self.behind) = (true, false, behind);
        self.catch_up();
    }

    /// One event of the watch: a Lease was written, or deleted. Answers whom it concerns.
    pub(crate) fn apply(&mut self, keys: &Keys, lease: &Lease, deleted: bool) -> Vec<WatchHint> {
        let Some(version) = encode::version(lease).map(Revision) else { return Vec::new() };
        if version <= self.mirror.covered() {
            return Vec::new();
        }
        let changes = if deleted { self.delete(lease) } else { self.take(keys, lease) };
        let hints = if changes.is_empty() {
            self.mirror.advance(version);
            Vec::new()
        } else {
            self.mirror.apply(version, changes)
        };
        self.catch_up();
        hints
    }

    /// All up to this version was told.
    pub(crate) fn advance(&mut self, version: u64) {
        self.mirror.advance(Revision(version));
        self.catch_up();
    }

    /// Takes a Lease in, or notes that it cannot be read, until it is written anew or deleted.
    fn take(&mut self, keys: &Keys, lease: &Lease) -> Vec<Change> {
        let called = lease.metadata.name.clone().unwrap_or_default();
        match encode::read(keys, lease) {
            Ok(object) => {
                self.damage.remove(&called);
                self.put(object)
            }
            Err(error) => {
                if self.damage.len() < DAMAGE_MAX {
                    self.damage.insert(called, error);
                }
                Vec::new()
            }
        }
    }

    fn put(&mut self, object: Object) -> Vec<Change> {
        let Object { lease, base, name, value } = object;
        let mut changes = Vec::new();
        let what = match (name, value) {
            (_, Value::Meta(meta)) => {
                let noted = match (meta.quiet, self.quiet) {
                    (Some(new), Some((old, noted))) if new.id == old.id => Some((new, noted)),
                    (Some(new), _) => Some((new, Instant::now())),
                    (None, _) => None,
                };
                if self.generation().is_some_and(|before| before != meta.lineage.generation()) {
                    self.went_back = false;
                }
                (self.quiet, self.meta) = (noted, Some(meta));
                What::Meta
            }
            (_, Value::Node(value)) => {
                let id = value.session;
                let before = self.node(&lease).map(|(_, before)| Arc::clone(before));
                if let Some(before) = before.as_ref().filter(|before| before.session != id) {
                    self.by_session.remove(&before.session);
                    changes.push(Change::Session(before.session, None));
                }
                if before.is_none_or(|before| before.session != id || before.record != value.record) {
                    changes.push(Change::Session(id, Some(value.record.clone())));
                }
                self.by_session.insert(id, lease.clone());
                What::Node(Arc::from(value), Instant::now())
            }
            (Name::Slot(slot), Value::Slot(record, checkpoint)) => {
                if self.mirror.slot(&slot) != Some(&*record) {
                    changes.push(Change::Slot(slot.clone(), Some(*record)));
                }
                What::Slot(slot, checkpoint)
            }
            (Name::Record(key), Value::Record(record)) => {
                changes.push(Change::Record(key.clone(), Some(record)));
                What::Record(key)
            }
            // A name and its value are read together.
            (Name::Meta | Name::Node(_) | Name::Slot(_) | Name::Record(_), Value::Slot(..) | Value::Record(_)) => {
                return changes;
            }
        };
        self.leases.insert(lease, Seen { base, what });
        changes
    }

    fn delete(&mut self, lease: &Lease) -> Vec<Change> {
        let called = lease.metadata.name.as_deref().unwrap_or_default();
        self.damage.remove(called);
        match self.leases.remove(called) {
            None => Vec::new(),
            Some(Seen { what: What::Meta, .. }) => {
                (self.meta, self.quiet) = (None, None);
                Vec::new()
            }
            Some(Seen { what: What::Node(value, _), .. }) => {
                self.by_session.remove(&value.session);
                vec![Change::Session(value.session, None)]
            }
            Some(Seen { what: What::Slot(slot, _), .. }) => vec![Change::Slot(slot, None)],
            Some(Seen { what: What::Record(key), .. }) => vec![Change::Record(key, None)],
        }
    }
}

/// How long a session lives after it was last seen to change.
fn lifetime(value: &NodeValue) -> Duration {
    value.record.ttl + value.record.ttl / RATE_MARGIN
}
