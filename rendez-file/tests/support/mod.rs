//! A store in a folder of its own, and what its tests say beside the words of all stages.
#![allow(dead_code, unreachable_pub)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rendez_core::{ClusterName, Known, StoreTime};
use rendez_file::{FileOptions, FileStore};
pub use rendez_testkit::stage::*;
use tempfile::TempDir;

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
}

impl Stage for World {
    type Store = FileStore;

    fn store(&self) -> &FileStore {
        &self.store
    }

    fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    fn known(&self) -> &Known {
        &self.known
    }
}
