//! The file store: a folder of this host.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use async_trait::async_trait;
use fastrand::Rng;
use rendez_testkit::agents::CLUSTER;
use rendez_testkit::measure::Failure;
use rendez_testkit::servers::SmallDisk;
use rustix::fs::{FlockOperation, flock};

use crate::fault::{Fault, ServerFault};
use crate::judge::Promise;
use crate::store::{Expectation, Server, Store, Struck};

const DISK_BYTES: u64 = 8 << 20;
const NO_SERVER: &str = "there is no server";

pub(crate) struct File;

#[async_trait]
impl Store for File {
    fn name(&self) -> &'static str {
        "file"
    }

    fn lacks(&self, fault: Fault) -> Option<&'static str> {
        match fault {
            Fault::Network(_) => Some("there is no network: a folder of one host"),
            Fault::Node(_) | Fault::Server(_) => None,
        }
    }

    fn expects(&self, fault: ServerFault) -> Expectation {
        match fault {
            ServerFault::Stalled | ServerFault::Full | ServerFault::EmptiedHeld => Expectation::Kept,
            ServerFault::Emptied => Expectation::May {
                breaks: &[Promise::NoOverlap],
                because: "a node that remembers nothing may ask first, and then nobody waits; `cold_start_hold` excludes it",
            },
            ServerFault::Restarted | ServerFault::Failover | ServerFault::FailoverLossy | ServerFault::OldPrimary => {
                Expectation::Absent(NO_SERVER)
            }
            ServerFault::ConnectionsKilled | ServerFault::Certificate => {
                Expectation::Absent("there are no connections")
            }
            ServerFault::ReadOnly => Expectation::Absent(
                "a mounted disk with open files cannot be made read-only; a full one takes its place",
            ),
            ServerFault::Evicting => Expectation::Absent("a file system throws nothing away"),
            ServerFault::ClockForward | ServerFault::ClockBack => {
                Expectation::Absent("time is the kernel's since its boot, which nobody can set")
            }
            ServerFault::Credentials => {
                Expectation::Absent("rights are looked at when a file is opened, and never at all for root")
            }
        }
    }

    async fn start(&self, fault: Option<ServerFault>, _: &mut Rng) -> Result<Box<dyn Server>, Failure> {
        let folder = tempfile::tempdir()?;
        let small = fault == Some(ServerFault::Full);
        let disk = if small { Some(SmallDisk::mount(folder.path(), DISK_BYTES).await?) } else { None };
        Ok(Box::new(Folder { lock: None, disk, folder }))
    }
}

struct Folder {
    /// The cluster's lock, while it is held.
    lock: Option<fs::File>,
    // Dropped before the folder that it is mounted on.
    disk: Option<SmallDisk>,
    folder: tempfile::TempDir,
}

impl Folder {
    fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }
}

#[async_trait]
impl Server for Folder {
    fn addr(&self) -> Option<SocketAddr> {
        None
    }

    fn url(&self, _: usize) -> String {
        format!("file:{}", self.store().display())
    }

    async fn strike(&mut self, fault: ServerFault) -> Result<Struck, Failure> {
        match fault {
            // As a process does that stands still while it has the lock.
            ServerFault::Stalled => {
                let path = self.store().join("rendez-1").join(CLUSTER).join("lock");
                let file = fs::OpenOptions::new().write(true).open(path)?;
                let file = tokio::task::spawn_blocking(move || {
                    flock(&file, FlockOperation::LockExclusive)?;
                    Ok::<_, rustix::io::Errno>(file)
                });
                self.lock = Some(file.await??);
                Ok(Struck::Silent)
            }
            ServerFault::Emptied | ServerFault::EmptiedHeld => {
                // At one moment.
                let gone = self.folder.path().join("gone");
                fs::rename(self.store(), &gone)?;
                fs::remove_dir_all(&gone)?;
                Ok(Struck::Answers)
            }
            ServerFault::Full => {
                self.disk.as_ref().ok_or("there is no small disk")?.fill()?;
                Ok(Struck::Answers)
            }
            ServerFault::Restarted
            | ServerFault::Failover
            | ServerFault::FailoverLossy
            | ServerFault::OldPrimary
            | ServerFault::ReadOnly
            | ServerFault::Evicting
            | ServerFault::ClockForward
            | ServerFault::ClockBack
            | ServerFault::ConnectionsKilled
            | ServerFault::Credentials
            | ServerFault::Certificate => Err(NO_SERVER.into()),
        }
    }

    async fn heal(&mut self, _: ServerFault) -> Result<(), Failure> {
        self.lock = None;
        match &self.disk {
            Some(disk) => Ok(disk.make_room()?),
            None => Ok(()),
        }
    }
}
