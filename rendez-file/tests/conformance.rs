//! The file store keeps the store contract.

mod support;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rendez_core::{
    AdminRequest, ClusterName, ErrorKind, LeaseStore, Record, RecordKey, StoreError, WorkloadName, WorkloadRecord,
};
use rendez_file::FileStore;
use rendez_testkit::conformance::{self, Access, Fault, Fixture, OwnServer, Trouble};
use support::{Disk, lock, options};
use tempfile::TempDir;
use tokio::sync::OnceCell;

#[derive(Default)]
struct Folder {
    shared: OnceCell<TempDir>,
}

#[async_trait]
impl Fixture for Folder {
    fn name(&self) -> &str {
        "file"
    }

    fn lacks(&self, fault: Fault) -> Option<&'static str> {
        match fault {
            Fault::RestartEmpty | Fault::Stall | Fault::Unfit | Fault::ForeignLayout => None,
            Fault::Full if Disk::mount("size=1m").is_ok() => None,
            Fault::Full => Some("only root can mount a small disk"),
            Fault::Restart => Some("there is no server that could end; a boot of the host has its own tests"),
            Fault::FailOver => Some("there is one host"),
            Fault::Unreachable => Some("a folder has no address"),
            Fault::WrongCredentials | Fault::LeastRights => Some("whoever runs the tests is who uses the files"),
        }
    }

    fn patience(&self) -> Duration {
        // Shorter than the handles' own: a request that waits for the lock is given up by the case.
        Duration::from_millis(200)
    }

    async fn store(&self) -> Result<Arc<dyn LeaseStore>, Trouble> {
        if let Some(url) = std::env::var("RENDEZ_TEST_FILE_URL").ok().filter(|url| !url.is_empty()) {
            return Ok(Arc::new(FileStore::connect(&url, options()).await?));
        }
        let shared = self.shared.get_or_try_init(|| async { tempfile::tempdir() }).await?;
        Ok(Arc::new(FileStore::open(shared.path(), options()).await?))
    }

    async fn own_server(&self) -> Result<Box<dyn OwnServer>, Trouble> {
        let place = match Disk::mount("size=8m") {
            Ok(disk) => Place::Disk(disk),
            Err(_) => Place::Folder(tempfile::tempdir()?),
        };
        Ok(Box::new(Own { place, locks: Vec::new() }))
    }
}

enum Place {
    Disk(Disk),
    Folder(TempDir),
}

struct Own {
    place: Place,
    /// While it is stalled, the locks of all clusters that have data.
    locks: Vec<File>,
}

impl Own {
    fn place(&self) -> &Path {
        match &self.place {
            Place::Disk(disk) => disk.path(),
            Place::Folder(folder) => folder.path(),
        }
    }

    fn root(&self) -> PathBuf {
        self.place().join("store")
    }
}

/// The folders of all clusters below one.
fn clusters(folder: &Path) -> Result<Vec<PathBuf>, Trouble> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(clusters(&path)?);
        } else if path.ends_with("snapshot.json") {
            found.push(folder.to_owned());
        }
    }
    Ok(found)
}

/// The name of a cluster stands in its snapshot.
fn name(folder: &Path) -> Result<ClusterName, Trouble> {
    let snapshot = fs::read_to_string(folder.join("snapshot.json"))?;
    let head: serde_json::Value = serde_json::from_str(snapshot.lines().next().unwrap_or_default())?;
    Ok(head["cluster"].as_str().ok_or("a snapshot without a name")?.parse()?)
}

#[async_trait]
impl OwnServer for Own {
    async fn connect(&self, _: Access) -> Result<Arc<dyn LeaseStore>, StoreError> {
        Ok(Arc::new(FileStore::open(self.root(), options()).await?))
    }

    async fn restart_empty(&mut self) -> Result<(), Trouble> {
        for folder in clusters(&self.root())? {
            let _lock = lock(&folder);
            fs::remove_dir_all(&folder)?;
        }
        Ok(())
    }

    async fn stall(&mut self) -> Result<(), Trouble> {
        self.locks = clusters(&self.root())?.iter().map(|folder| lock(folder)).collect();
        Ok(())
    }

    async fn resume(&mut self) -> Result<(), Trouble> {
        self.locks.clear();
        Ok(())
    }

    async fn fill(&mut self) -> Result<(), Trouble> {
        support::fill(&self.place().join("filler"));
        // What was set aside for the journals is used up to the part that only heartbeats may use.
        for folder in clusters(&self.root())? {
            let (store, cluster) = (FileStore::open(self.root(), options()).await?, name(&folder)?);
            for number in 0.. {
                let key = RecordKey::Workload(WorkloadName::new(format!("filler {number}"))?);
                let record = Some(Record::Workload(WorkloadRecord::new(1)));
                match store.administer(&cluster, &AdminRequest::Put { key, record, expect: None }).await {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::Throttled => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    async fn make_unfit(&mut self) -> Result<(), Trouble> {
        if self.root().exists() {
            fs::remove_dir_all(self.root())?;
        }
        fs::write(self.root(), "no folder")?;
        Ok(())
    }

    async fn write_foreign_layout(&mut self, cluster: &ClusterName) -> Result<(), Trouble> {
        for folder in clusters(&self.root())? {
            if name(&folder)? == *cluster {
                let _lock = lock(&folder);
                support::write_layout(&folder, 7);
            }
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    conformance::main(vec![Box::new(Folder::default())])
}
