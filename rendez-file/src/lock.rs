//! The lock of one cluster's folder. The kernel drops it when its holder dies, so it is never stale.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rendez_core::ErrorKind;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::errors::{Failure, at};
use crate::files::{create_folders, identity};
use crate::keys;

/// How often a lock file may be replaced under our hands before we give up.
const TRIES_MAX: usize = 100;

/// The lock of a folder that may be removed and made anew at any time.
#[derive(Debug)]
pub(crate) struct Lock {
    root: PathBuf,
    folder: PathBuf,
    file: Option<Arc<File>>,
}

/// The lock is ours until this is dropped.
#[derive(Debug)]
pub(crate) struct Held(Arc<File>);

impl Held {
    /// Waits until the file's lock is ours, for as long as it takes.
    pub(crate) fn wait(file: Arc<File>) -> io::Result<Self> {
        loop {
            match flock(&*file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Self(file)),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Closing it would not do: a child that is just being started may have it too.
        if let Err(error) = flock(&*self.0, FlockOperation::Unlock) {
            tracing::warn!(%error, "the file store's lock cannot be given back");
        }
    }
}

impl Lock {
    /// The lock of a folder below `root`; makes nothing yet.
    pub(crate) fn new(root: &Path, folder: &Path) -> Self {
        Self { root: root.to_owned(), folder: folder.to_owned(), file: None }
    }

    /// Waits until the lock is ours, for as long as it takes. Makes the folder where it does not exist.
    pub(crate) fn acquire(&mut self) -> Result<Held, Failure> {
        let path = self.folder.join(keys::LOCK);
        for _ in 0..TRIES_MAX {
            let file = match self.file.take() {
                Some(file) => file,
                None => Arc::new(self.open(&path)?),
            };
            let held = Held::wait(Arc::clone(&file)).map_err(at("cannot lock", &path))?;
            let ours = file.metadata().map_err(at("cannot look at", &path))?;
            // A folder that was removed takes its lock with it: then this one excludes nobody.
            match fs::metadata(&path) {
                Ok(there) if identity(&there) == identity(&ours) => {
                    self.file = Some(file);
                    return Ok(held);
                }
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(Failure::io("cannot look at", &path, error)),
            }
        }
        let what = format!("the file store: {} is removed again and again: who does that?", path.display());
        Err(Failure::new(ErrorKind::Transient, what))
    }

    fn open(&self, path: &Path) -> Result<File, Failure> {
        let open = || OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        match open() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                create_folders(&self.root, &self.folder).map_err(at("cannot make", &self.folder))?;
                open().map_err(at("cannot open", path))
            }
            other => other.map_err(at("cannot open", path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_folders_lock_is_not_believed() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("cluster");
        let (mut one, mut two) = (Lock::new(place.path(), &folder), Lock::new(place.path(), &folder));
        drop(one.acquire().unwrap());
        fs::remove_dir_all(&folder).unwrap();
        let held = two.acquire().unwrap();
        let probe = File::open(folder.join(keys::LOCK)).unwrap();
        assert_eq!(flock(&probe, FlockOperation::NonBlockingLockExclusive), Err(Errno::WOULDBLOCK));
        drop(held);
        // Were the first still to use its old file, both would have it now.
        let held = one.acquire().unwrap();
        assert_eq!(flock(&probe, FlockOperation::NonBlockingLockExclusive), Err(Errno::WOULDBLOCK));
        drop(held);
        assert_eq!(flock(&probe, FlockOperation::NonBlockingLockExclusive), Ok(()));
    }
}
