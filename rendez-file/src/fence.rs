//! Writes to files that a stale owner cannot make.
//!
//! Only the user's own files and the fence beside them are touched here; the store has no part in it.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rendez_core::{FencingToken, StaleToken};

use crate::files::{sync, sync_folder};
use crate::lock::Held;

/// What a fence's lock is called beside it, and the file that becomes the fence.
const LOCK_SUFFIX: &str = ".lock";
const NEW_SUFFIX: &str = ".new";

/// A small file that remembers the highest fencing token that something on this host has been written under.
///
/// Give each thing that is written in the name of one slot a fence, and write it through the fence only. A process
/// that was paused and does not know yet that its slot has a new owner is then refused (promise S3), whatever clocks,
/// sessions and the lease store do. The fence holds for all processes of this host, and on a file system whose locks work: on a network
/// file system it may not.
///
/// The calls block; on an asynchronous runtime use `spawn_blocking`.
///
/// ```
/// use std::io::Write as _;
/// use rendez_file::{Fence, FenceError};
/// # use rendez_core::FencingToken;
/// # let folder = tempfile::tempdir()?;
/// let fence = Fence::at(folder.path().join("inbox-3.fence"));
/// let log = folder.path().join("inbox-3.log");
/// let append = |line: &str| -> std::io::Result<()> {
///     let mut file = std::fs::OpenOptions::new().append(true).create(true).open(&log)?;
///     writeln!(file, "{line}")
/// };
/// fence.write(FencingToken::new(5), || append("the first owner"))?;
/// fence.write(FencingToken::new(7), || append("the next"))?;
/// let late = fence.write(FencingToken::new(5), || append("never written"));
/// assert!(matches!(late, Err(FenceError::Stale(_))));
/// assert_eq!(std::fs::read_to_string(&log)?, "the first owner\nthe next\n");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Fence {
    path: PathBuf,
}

/// Why a fenced write was not made, or was made in part.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FenceError {
    /// A newer owner has written. Nothing was written.
    #[error(transparent)]
    Stale(#[from] StaleToken),
    /// The fence's file holds something else. Nothing was written.
    #[error(
        "{path} holds no fencing token but something else; nothing was written. Choose a file of its own for the fence"
    )]
    NoFence {
        /// The file.
        path: PathBuf,
    },
    /// The fence could not be locked, read or raised. The write was not begun.
    #[error("the fence {path}: {error}")]
    Fence {
        /// The file at fault.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The write itself failed; what of it was done is the writer's to say.
    #[error(transparent)]
    Write(io::Error),
}

impl Fence {
    /// The fence in this file. Nothing is read or written yet; beside it there will be a file of the same name with `.lock` at its end.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Calls `write` if `token` is not lower than any that this fence has seen. No other write through this fence begins before it
    /// has returned, so it should be short: others wait, however long it takes.
    ///
    /// A token that is seen for the first time is on the disk before `write` is called.
    ///
    /// # Errors
    ///
    /// [`FenceError`]; after [`FenceError::Stale`] the runner should end.
    pub fn write<T>(&self, token: FencingToken, write: impl FnOnce() -> io::Result<T>) -> Result<T, FenceError> {
        let lock = self.beside(LOCK_SUFFIX);
        let _held = acquire(&lock).map_err(failed(&lock))?;
        let seen = match fs::read(&self.path) {
            Ok(found) => Some(
                FencingToken::from_digits(found.trim_ascii_end())
                    .ok_or_else(|| FenceError::NoFence { path: self.path.clone() })?,
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(&self.path)(error)),
        };
        if let Some(seen) = seen.filter(|seen| *seen > token) {
            return Err(StaleToken { token, seen }.into());
        }
        if seen != Some(token) {
            self.raise(token)?;
        }
        write().map_err(FenceError::Write)
    }

    fn raise(&self, token: FencingToken) -> Result<(), FenceError> {
        let new = self.beside(NEW_SUFFIX);
        let make = || {
            let mut file = File::create(&new)?;
            writeln!(file, "{}", token.to_digits())?;
            sync(&file)?;
            fs::rename(&new, &self.path)
        };
        make().map_err(failed(&new))?;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        sync_folder(folder).map_err(failed(folder))
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = OsString::from(&self.path);
        name.push(suffix);
        name.into()
    }
}

fn failed(path: &Path) -> impl Fn(io::Error) -> FenceError + '_ {
    |error| FenceError::Fence { path: path.to_owned(), error }
}

/// Waits until the lock is ours. The file is never removed, so there is one lock only.
fn acquire(path: &Path) -> io::Result<Held> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    Held::wait(Arc::new(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(number: u64) -> FencingToken {
        FencingToken::new(number)
    }

    #[test]
    fn a_lower_token_writes_nothing_and_is_told_what_was_seen() {
        let folder = tempfile::tempdir().unwrap();
        let fence = Fence::at(folder.path().join("fence"));
        let mut written = Vec::new();
        for (number, accepted) in [(9, true), (10, true), (10, true), (9, false), (u64::MAX, true), (10, false)] {
            let done = fence.write(token(number), || {
                written.push(number);
                Ok(())
            });
            assert_eq!(done.is_ok(), accepted, "{number}: {done:?}");
        }
        assert_eq!(written, [9, 10, 10, u64::MAX]);
        let refused = fence.write(token(9), || Ok(())).unwrap_err();
        assert!(
            matches!(refused, FenceError::Stale(stale) if stale.seen == token(u64::MAX) && stale.token == token(9))
        );
    }

    #[test]
    fn one_write_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let fence = Fence::at(folder.path().join("fence"));
        let counter = folder.path().join("counter");
        fs::write(&counter, "0").unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        // A look and a write apart: two at once would lose one.
                        let add = || {
                            let number: u64 = fs::read_to_string(&counter)?.parse().unwrap_or(0);
                            std::thread::yield_now();
                            fs::write(&counter, (number + 1).to_string())
                        };
                        fence.write(token(1), add).unwrap();
                    }
                });
            }
        });
        assert_eq!(fs::read_to_string(&counter).unwrap(), "200");
    }

    #[test]
    fn a_failed_write_leaves_the_token_seen_and_a_file_that_is_no_fence_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let fence = Fence::at(folder.path().join("fence"));
        let failed = fence.write(token(7), || Err::<(), _>(io::Error::other("no")));
        assert!(matches!(failed, Err(FenceError::Write(_))));
        assert!(matches!(fence.write(token(6), || Ok(())), Err(FenceError::Stale(_))));
        let other = folder.path().join("data");
        fs::write(&other, "precious").unwrap();
        assert!(matches!(Fence::at(&other).write(token(7), || Ok(())), Err(FenceError::NoFence { .. })));
        assert_eq!(fs::read_to_string(&other).unwrap(), "precious");
        let nowhere = Fence::at(folder.path().join("no/where")).write(token(7), || Ok(())).unwrap_err();
        assert!(nowhere.to_string().contains("no/where"), "{nowhere}");
    }
}
