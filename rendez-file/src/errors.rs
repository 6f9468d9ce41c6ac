//! What an error of the file system means to the caller.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rendez_core::{ErrorKind, StoreError};

/// Something that went wrong with the files. One failure may concern several requests, so it can be told many times.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) kind: ErrorKind,
    message: String,
    source: Option<Arc<io::Error>>,
}

impl Failure {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// A failure before anything was written.
    pub(crate) fn io(what: &str, path: &Path, error: io::Error) -> Self {
        let (kind, advice) = classify(&error);
        let message = format!("the file store: {what} {}: {error}{advice}", path.display());
        Self { kind, message, source: Some(Arc::new(error)) }
    }

    /// The same, when it cannot be told any more whether what was written is there.
    pub(crate) fn or_ambiguous(mut self) -> Self {
        if self.kind != ErrorKind::Fatal {
            self.kind = ErrorKind::Ambiguous;
        }
        self
    }

    /// A file that cannot be believed.
    pub(crate) fn damaged(path: &Path, what: impl fmt::Display) -> Self {
        let message = format!(
            "the file store: {} is damaged: {what}. Nothing was changed. Stop all processes of this cluster, keep a copy of \
             the folder, and restore it from a backup; or remove the cluster's folder, which forgets its slots and tokens",
            path.display()
        );
        Self::new(ErrorKind::Fatal, message)
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        let error = StoreError::new(failure.kind, failure.message);
        match failure.source {
            Some(source) => error.with_source(Shared(source)),
            None => error,
        }
    }
}

#[derive(Debug)]
struct Shared(Arc<io::Error>);

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl std::error::Error for Shared {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.0)
    }
}

fn classify(error: &io::Error) -> (ErrorKind, &'static str) {
    use io::ErrorKind as K;
    match error.kind() {
        K::StorageFull => (ErrorKind::Throttled, ": the disk is full, make room"),
        K::QuotaExceeded => (ErrorKind::Throttled, ": the disk quota is used up"),
        K::FileTooLarge => (ErrorKind::Throttled, ": the limit of a file's size is reached"),
        K::OutOfMemory => (ErrorKind::Throttled, ""),
        K::PermissionDenied => {
            (ErrorKind::Fatal, ": give the user who runs this the right to read, write and enter the folder")
        }
        K::ReadOnlyFilesystem => (ErrorKind::Fatal, ": it is mounted read-only"),
        K::NotADirectory | K::IsADirectory | K::InvalidFilename => (ErrorKind::Fatal, ""),
        _ => match rustix::io::Errno::from_io_error(error) {
            Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) => {
                (ErrorKind::Throttled, ": raise the limit of open files")
            }
            _ => (ErrorKind::Transient, ""),
        },
    }
}

/// The folder's lock was not to be had in time.
pub(crate) fn locked(folder: &Path, after: std::time::Duration) -> StoreError {
    StoreError::new(
        ErrorKind::Transient,
        format!(
            "the file store: the lock of {} was not free within {after:?}: another process holds it (lslocks tells which)",
            folder.display()
        ),
    )
}

/// The request was begun, and the disk did not answer in time.
pub(crate) fn slow(folder: &Path, after: std::time::Duration) -> StoreError {
    StoreError::new(
        ErrorKind::Ambiguous,
        format!("the file store: {} did not answer within {after:?}: is its disk slow?", folder.display()),
    )
}

/// A path with its failure, for calls that are tried with `?`.
pub(crate) fn at<'a>(what: &'a str, path: &'a Path) -> impl Fn(io::Error) -> Failure + 'a {
    let path: PathBuf = path.to_owned();
    move |error| Failure::io(what, &path, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errors_kind_says_what_to_do() {
        let kind = |error: rustix::io::Errno| Failure::io("x", Path::new("/x"), error.into()).kind;
        use rustix::io::Errno;
        assert_eq!(kind(Errno::NOSPC), ErrorKind::Throttled);
        assert_eq!(kind(Errno::DQUOT), ErrorKind::Throttled);
        assert_eq!(kind(Errno::MFILE), ErrorKind::Throttled);
        assert_eq!(kind(Errno::ACCESS), ErrorKind::Fatal);
        assert_eq!(kind(Errno::ROFS), ErrorKind::Fatal);
        assert_eq!(kind(Errno::NAMETOOLONG), ErrorKind::Fatal);
        assert_eq!(kind(Errno::IO), ErrorKind::Transient);
        let full = Failure::io("x", Path::new("/x"), Errno::NOSPC.into()).or_ambiguous();
        assert_eq!(StoreError::from(full).kind(), ErrorKind::Ambiguous);
    }
}
