//! A store in a folder of its own, and short words for its requests.
#![allow(dead_code, unreachable_pub)]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rendez_core::*;
use rendez_file::{FileOptions, FileStore};
use tempfile::TempDir;

pub const TTL: Duration = Duration::from_secs(30);
pub const TTL_MAX: Duration = Duration::from_secs(60);

static IDS: AtomicU64 = AtomicU64::new(1);

pub fn operation() -> OperationId {
    OperationId::from_bits(0xabc << 96 | u128::from(IDS.fetch_add(1, Ordering::Relaxed)))
}

pub fn incarnation() -> Incarnation {
    Incarnation::from_bits(0xdef << 96 | u128::from(IDS.fetch_add(1, Ordering::Relaxed)))
}

pub fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

pub fn slot(text: &str) -> Slot {
    text.parse().unwrap()
}

pub fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A busy machine's disk may be slow.
pub fn options() -> FileOptions {
    let mut options = FileOptions::default();
    options.operation_timeout = Duration::from_secs(20);
    options
}

/// The folder of a cluster whose name has no more to escape than blanks.
pub fn cluster_folder(root: &Path, name: &str) -> PathBuf {
    root.join("rendez-1").join(name.replace(' ', "%20"))
}

/// The folder's lock, as another process has it. Given back when it is dropped.
pub fn lock(folder: &Path) -> std::fs::File {
    let file = std::fs::File::open(folder.join("lock")).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    file
}

/// The journal that is in use; look for it under the lock.
pub fn journal(folder: &Path) -> PathBuf {
    only_journal(folder).unwrap()
}

/// The journal that is in use, if anything was ever written.
fn only_journal(folder: &Path) -> Option<PathBuf> {
    let journals = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut journals: Vec<_> = journals.filter(|path| path.extension().is_some_and(|end| end == "jsonl")).collect();
    assert!(journals.len() <= 1, "{journals:?}");
    journals.pop()
}

/// The moment of the last request that has changed anything; nothing where all were refused.
pub fn last_moment(folder: &Path) -> Option<StoreTime> {
    let at = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok()?["at"].as_u64();
    if !folder.join("lock").exists() {
        return None;
    }
    let _lock = lock(folder);
    let snapshot = std::fs::read_to_string(folder.join("snapshot.json")).ok()?;
    let lines = std::fs::read_to_string(only_journal(folder)?).ok()?;
    let last = lines.lines().last().and_then(at).max(at(snapshot.lines().next()?))?;
    Some(StoreTime::from_micros(last))
}

pub fn open_request(name: &str) -> OpenRequest {
    OpenRequest {
        known: Known::default(),
        operation: operation(),
        incarnation: incarnation(),
        replaces: None,
        ttl: TTL,
        info: Arc::new(NodeInfo::new(node(name), ClusterSettings::new(TTL_MAX))),
    }
}

/// Writes into a cluster's snapshot that it has another layout.
pub fn write_layout(folder: &Path, layout: u32) {
    let path = folder.join("snapshot.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let (head, state) = text.split_once('\n').unwrap();
    let rest = &head[r#"{"sum":"0123456789abcdef","#.len()..];
    let rest = rest.replacen("\"layout\":1", &format!("\"layout\":{layout}"), 1);
    let sum = xxhash_rust::xxh64::xxh64(rest.as_bytes(), 0);
    // Another file, as a release that folds a journal makes one.
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, format!("{{\"sum\":\"{sum:016x}\",{rest}\n{state}")).unwrap();
}

/// A small disk of our own, which only root can mount.
pub struct Disk(TempDir);

impl Disk {
    pub fn mount(options: &str) -> Result<Self, String> {
        let place = tempfile::tempdir().unwrap();
        let mut mount = std::process::Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", options, "none"]).arg(place.path()).output();
        match mounted {
            Ok(output) if output.status.success() => Ok(Self(place)),
            other => Err(format!("{other:?}")),
        }
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn remount(&self, options: &str) -> bool {
        let mut mount = std::process::Command::new("mount");
        mount.args(["-o", &format!("remount,{options}")]).arg(self.path()).output().unwrap().status.success()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

/// Writes into a file until nothing more goes in.
pub fn fill(path: &Path) {
    let mut file = std::fs::File::create(path).unwrap();
    for size in [65536, 4096, 512, 1] {
        while file.write_all(&vec![b'x'; size]).is_ok() {}
    }
}

pub struct World {
    /// Removed at the end.
    pub place: Option<TempDir>,
    pub root: PathBuf,
    pub store: FileStore,
    pub cluster: ClusterName,
    pub known: Known,
}

impl World {
    pub async fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("store");
        Self { place: Some(place), ..Self::at(&root, options()).await }
    }

    /// Another handle on a folder.
    pub async fn at(root: &Path, options: FileOptions) -> Self {
        let store = FileStore::open(root, options).await.unwrap();
        let cluster = ClusterName::new("test").unwrap();
        Self { place: None, root: root.to_owned(), store, cluster, known: Known::default() }
    }

    pub async fn other(&self) -> Self {
        Self::at(&self.root, options()).await
    }

    /// The same handle on another cluster.
    pub fn named(self, name: &str) -> Self {
        Self { cluster: ClusterName::new(name).unwrap(), ..self }
    }

    pub fn folder(&self) -> PathBuf {
        cluster_folder(&self.root, self.cluster.as_str())
    }

    pub async fn try_open(&self, mut request: OpenRequest) -> Result<Opening, StoreError> {
        if request.known == Known::default() {
            request.known = self.known.clone();
        }
        self.store.open(&self.cluster, &request).await
    }

    pub async fn open(&self, name: &str) -> SessionId {
        opened(self.try_open(open_request(name)).await.unwrap()).0
    }

    pub async fn open_for(&self, name: &str, ttl: Duration) -> SessionId {
        opened(self.try_open(OpenRequest { ttl, ..open_request(name) }).await.unwrap()).0
    }

    pub fn beat_request(&self, session: SessionId) -> HeartbeatRequest {
        HeartbeatRequest {
            known: self.known.clone(),
            session,
            since: None,
            changes_max: 512,
            due_within: Duration::ZERO,
            info: None,
        }
    }

    pub async fn beat(&self, session: SessionId) -> Result<Beat, StoreError> {
        self.store.heartbeat(&self.cluster, &self.beat_request(session)).await
    }

    pub async fn beat_since(&self, session: SessionId, since: Revision, changes_max: u32) -> Beat {
        let mut request = self.beat_request(session);
        request.since = Some(since);
        request.changes_max = changes_max;
        self.store.heartbeat(&self.cluster, &request).await.unwrap()
    }

    pub async fn close(&self, session: SessionId) {
        self.store.close(&self.cluster, &CloseRequest { known: self.known.clone(), session }).await.unwrap();
    }

    pub async fn changes(
        &self,
        session: SessionId,
        changes: Vec<(Slot, FencingToken, ChangeKind)>,
    ) -> Result<ChangeReply, StoreError> {
        let changes = changes.into_iter().map(|(slot, token, kind)| SlotChange { slot, token, kind }).collect();
        self.store.change(&self.cluster, &ChangeRequest { known: self.known.clone(), session, changes }).await
    }

    pub async fn change(&self, session: SessionId, at: &Slot, token: FencingToken, kind: ChangeKind) -> ChangeOutcome {
        let reply = self.changes(session, vec![(at.clone(), token, kind)]).await.unwrap();
        assert_eq!(reply.outcomes.len(), 1);
        reply.outcomes.into_iter().next().unwrap()
    }

    /// Takes a slot and answers its token.
    pub async fn acquire(&self, session: SessionId, at: &Slot, token: FencingToken) -> FencingToken {
        let outcome = self.change(session, at, token, ChangeKind::Acquire { operation: operation() }).await;
        done(outcome).token
    }

    pub async fn snapshot(&self, session: Option<SessionId>) -> (Stamp, Vec<Change>) {
        let mut items = Vec::new();
        let mut cursor = None;
        let mut first = None;
        loop {
            let request = SnapshotRequest { known: self.known.clone(), session, cursor };
            let page = self.store.snapshot(&self.cluster, &request).await.unwrap();
            first.get_or_insert(page.stamp);
            items.extend(page.items);
            cursor = page.next;
            if cursor.is_none() {
                return (first.unwrap(), items);
            }
        }
    }

    pub async fn slots(&self) -> BTreeMap<Slot, SlotRecord> {
        let (_, items) = self.snapshot(None).await;
        items
            .into_iter()
            .filter_map(|item| match item {
                Change::Slot(slot, record) => Some((slot, record.unwrap())),
                _ => None,
            })
            .collect()
    }

    pub async fn put(&self, key: RecordKey, record: Option<Record>, expect: Option<Revision>) -> AdminOutcome {
        self.store.administer(&self.cluster, &AdminRequest::Put { key, record, expect }).await.unwrap()
    }
}

pub fn opened(opening: Opening) -> (SessionId, Stamp) {
    match opening {
        Opening::Opened { session, stamp, .. } => (session, stamp),
        Opening::InUse { .. } => panic!("{opening:?}"),
    }
}

pub fn done(outcome: ChangeOutcome) -> SlotRecord {
    match outcome {
        ChangeOutcome::Done(Some(record)) => record,
        _ => panic!("{outcome:?}"),
    }
}

pub fn conflict(outcome: &ChangeOutcome) -> Conflict {
    match outcome {
        ChangeOutcome::Refused(conflict, _) => *conflict,
        ChangeOutcome::Done(_) => panic!("{outcome:?}"),
    }
}

pub fn changes(sync: &Sync) -> (&[Change], Revision, bool) {
    match sync {
        Sync::Changes { changes, up_to, more } => (changes, *up_to, *more),
        other => panic!("{other:?}"),
    }
}

pub fn kind<T: std::fmt::Debug>(result: Result<T, StoreError>) -> ErrorKind {
    result.unwrap_err().kind()
}

pub fn acquire() -> ChangeKind {
    ChangeKind::Acquire { operation: operation() }
}

pub fn release() -> ChangeKind {
    ChangeKind::Release { checkpoint: None, refuse_for: None }
}

pub fn offer(id: OperationId, to: SessionId, expires_in: Duration, forced: bool) -> ChangeKind {
    ChangeKind::Offer { operation: id, to, expires_in, giver_total: 7, giver_of_workload: 3, forced }
}
