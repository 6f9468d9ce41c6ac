//! The store: requests to the thread of their cluster, and the answers back.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use async_trait::async_trait;
use rendez_core::{
    AdminOutcome, AdminRequest, Beat, Call, Capabilities, ChangeReply, ChangeRequest, CloseRequest, ClusterName,
    ErrorKind, HeartbeatRequest, LeaseStore, OpenRequest, Opening, Reply, SnapshotPage, SnapshotRequest, StoreError,
    Watch,
};
use tokio::sync::oneshot;

use crate::clock::{Clock, SystemClock};
use crate::connect::prepare;
use crate::errors::{Failure, locked, slow};
use crate::keys;
use crate::lock::Lock;
use crate::options::{FileOptions, fatal, parse_url};
use crate::state::{Answer, Request, State};
use crate::watch::Hints;
use crate::worker::{Job, Stage, WAITING_MAX, work};

/// A [`LeaseStore`] in a folder, for the processes of one host. Clones share their threads: one a cluster in use.
#[derive(Clone)]
pub struct FileStore {
    shared: Arc<Shared>,
}

struct Shared {
    root: PathBuf,
    options: FileOptions,
    clock: Arc<dyn Clock>,
    workers: Mutex<HashMap<ClusterName, SyncSender<Job>>>,
}

impl fmt::Debug for FileStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileStore")
            .field("folder", &self.shared.root)
            .field("options", &self.shared.options)
            .finish_non_exhaustive()
    }
}

impl FileStore {
    /// Opens the folder of a `file:PATH` URL. It is made if its parent exists.
    ///
    /// # Errors
    /// [`ErrorKind::Fatal`] for a folder that cannot serve: no folder, somebody else's, not writable, on a network file
    /// system, of another layout. [`ErrorKind::Throttled`] where there is no room.
    pub async fn connect(url: &str, options: FileOptions) -> Result<Self, StoreError> {
        Self::open(parse_url(url)?, options).await
    }

    /// Opens a folder. It is made if its parent exists.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn open(folder: impl AsRef<Path>, options: FileOptions) -> Result<Self, StoreError> {
        let clock = SystemClock::new()
            .map_err(|error| fatal("the file store: this host does not tell when it was started").with_source(error))?;
        Self::with_clock(folder.as_ref(), options, Arc::new(clock)).await
    }

    pub(crate) async fn with_clock(
        folder: &Path,
        options: FileOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, StoreError> {
        options.check()?;
        // What the working directory is later does not matter.
        let root = std::path::absolute(folder)
            .map_err(|error| fatal(format!("{} names no folder", folder.display())).with_source(error))?;
        let limit = options.operation_timeout;
        let (path, wanted) = (root.clone(), options.clone());
        let prepared = tokio::task::spawn_blocking(move || prepare(&path, &wanted));
        match tokio::time::timeout(limit, prepared).await {
            Ok(Ok(prepared)) => prepared?,
            Ok(Err(error)) => return Err(fatal("the file store cannot look at its folder").with_source(error)),
            Err(_) => {
                let what = format!("the file store: {} did not answer within {limit:?}", root.display());
                return Err(StoreError::new(ErrorKind::Transient, what));
            }
        }
        Ok(Self { shared: Arc::new(Shared { root, options, clock, workers: Mutex::default() }) })
    }

    async fn request(&self, cluster: &ClusterName, request: Request) -> Result<Answer, StoreError> {
        let limit = self.shared.options.operation_timeout;
        let stage = Arc::new(Stage::default());
        let (reply, answer) = oneshot::channel();
        self.shared.send(cluster, Job { request, stage: Arc::clone(&stage), reply })?;
        let folder = || keys::cluster_folder(&self.shared.root, cluster);
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => {
                let what = format!("the file store: the thread of {} has ended", folder().display());
                Err(StoreError::new(ErrorKind::Ambiguous, what))
            }
            Err(_) if stage.give_up() => Err(locked(&folder(), limit)),
            Err(_) => Err(slow(&folder(), limit)),
        }
    }

    async fn call(&self, cluster: &ClusterName, call: Call) -> Result<Reply, StoreError> {
        match self.request(cluster, Request::Call(call)).await? {
            Answer::Call(reply) => Ok(reply),
            Answer::Admin(_) | Answer::Watch => Err(unexpected()),
        }
    }
}

/// Cannot be seen: each request has an answer of its kind.
fn unexpected() -> StoreError {
    fatal("the file store gave an answer of another kind")
}

impl Shared {
    fn workers(&self) -> MutexGuard<'_, HashMap<ClusterName, SyncSender<Job>>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a request to its cluster's thread, which is started where there is none. Never waits.
    fn send(self: &Arc<Self>, cluster: &ClusterName, job: Job) -> Result<(), StoreError> {
        let mut workers = self.workers();
        let mut job = job;
        if let Some(worker) = workers.get(cluster) {
            match worker.try_send(job) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Full(_)) => {
                    let folder = keys::cluster_folder(&self.root, cluster);
                    let what = format!(
                        "the file store: {WAITING_MAX} requests wait for the lock of {}: another process holds it",
                        folder.display()
                    );
                    return Err(StoreError::new(ErrorKind::Transient, what));
                }
                Err(TrySendError::Disconnected(back)) => job = back,
            }
        }
        let worker = self.start(cluster)?;
        let sent = worker.try_send(job);
        workers.insert(cluster.clone(), worker);
        sent.map_err(|_| StoreError::new(ErrorKind::Transient, "the file store: a thread has ended at once"))
    }

    fn start(self: &Arc<Self>, cluster: &ClusterName) -> Result<SyncSender<Job>, StoreError> {
        let (sender, jobs) = sync_channel(WAITING_MAX);
        let folder = keys::cluster_folder(&self.root, cluster);
        let lock = Lock::new(&self.root, &folder);
        let state = State::new(
            folder,
            cluster.clone(),
            Arc::clone(&self.clock),
            capabilities(),
            self.options.journal_bytes_max,
        );
        let (shared, cluster) = (Arc::downgrade(self), cluster.clone());
        let started = std::thread::Builder::new()
            .name("rendez-file".to_owned())
            .spawn(move || work(&jobs, lock, state, |jobs| retire(&shared, &cluster, jobs)));
        started.map_err(|error| {
            StoreError::new(ErrorKind::Throttled, "the file store: no thread can be started").with_source(error)
        })?;
        Ok(sender)
    }
}

/// Takes an idle thread's name off the list, unless a request came at the last moment. Requests are sent under the same
/// lock, so none can be lost.
fn retire(shared: &Weak<Shared>, cluster: &ClusterName, jobs: &Receiver<Job>) -> Option<Job> {
    let shared = shared.upgrade()?;
    let mut workers = shared.workers();
    let late = jobs.try_recv().ok();
    if late.is_none() {
        workers.remove(cluster);
    }
    late
}

fn capabilities() -> Capabilities {
    Capabilities::strict("file")
}

#[async_trait]
impl LeaseStore for FileStore {
    fn capabilities(&self) -> Capabilities {
        capabilities()
    }

    async fn open(&self, cluster: &ClusterName, request: &OpenRequest) -> Result<Opening, StoreError> {
        match self.call(cluster, Call::Open(request.clone())).await? {
            Reply::Open(opening) => Ok(opening),
            Reply::Heartbeat(_) | Reply::Change(_) | Reply::Snapshot(_) | Reply::Close => Err(unexpected()),
        }
    }

    async fn heartbeat(&self, cluster: &ClusterName, request: &HeartbeatRequest) -> Result<Beat, StoreError> {
        match self.call(cluster, Call::Heartbeat(request.clone())).await? {
            Reply::Heartbeat(beat) => Ok(beat),
            Reply::Open(_) | Reply::Change(_) | Reply::Snapshot(_) | Reply::Close => Err(unexpected()),
        }
    }

    async fn close(&self, cluster: &ClusterName, request: &CloseRequest) -> Result<(), StoreError> {
        match self.call(cluster, Call::Close(request.clone())).await? {
            Reply::Close => Ok(()),
            Reply::Open(_) | Reply::Heartbeat(_) | Reply::Change(_) | Reply::Snapshot(_) => Err(unexpected()),
        }
    }

    async fn change(&self, cluster: &ClusterName, request: &ChangeRequest) -> Result<ChangeReply, StoreError> {
        match self.call(cluster, Call::Change(request.clone())).await? {
            Reply::Change(reply) => Ok(reply),
            Reply::Open(_) | Reply::Heartbeat(_) | Reply::Snapshot(_) | Reply::Close => Err(unexpected()),
        }
    }

    async fn snapshot(&self, cluster: &ClusterName, request: &SnapshotRequest) -> Result<SnapshotPage, StoreError> {
        match self.call(cluster, Call::Snapshot(request.clone())).await? {
            Reply::Snapshot(page) => Ok(page),
            Reply::Open(_) | Reply::Heartbeat(_) | Reply::Change(_) | Reply::Close => Err(unexpected()),
        }
    }

    async fn administer(&self, cluster: &ClusterName, request: &AdminRequest) -> Result<AdminOutcome, StoreError> {
        match self.request(cluster, Request::Admin(request.clone())).await? {
            Answer::Admin(outcome) => Ok(outcome),
            Answer::Call(_) | Answer::Watch => Err(unexpected()),
        }
    }

    async fn watch(&self, cluster: &ClusterName) -> Result<Box<dyn Watch>, StoreError> {
        self.request(cluster, Request::Watch).await?;
        let path = keys::cluster_folder(&self.shared.root, cluster).join(keys::HINTS);
        match Hints::open(path.clone()).await {
            Ok(hints) => Ok(Box::new(hints)),
            Err(error) => Err(Failure::io("cannot watch", &path, error).into()),
        }
    }
}
