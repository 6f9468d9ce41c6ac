//! The file in which a child finds its deadline: boot-time nanoseconds, decimal, replaced atomically.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rendez_core::Timestamp;

/// A child's deadline file. Removed when it is dropped.
pub(crate) struct DeadlineFile {
    path: PathBuf,
    next: PathBuf,
}

impl DeadlineFile {
    pub(crate) fn create(path: PathBuf, deadline: Timestamp) -> io::Result<Self> {
        let next = path.with_extension("next");
        let file = Self { path, next };
        file.replace(deadline)?;
        Ok(file)
    }

    /// Readers see the old content or the new one, and never a part.
    pub(crate) fn replace(&self, deadline: Timestamp) -> io::Result<()> {
        fs::write(&self.next, format!("{}\n", deadline.as_nanos()))?;
        fs::rename(&self.next, &self.path)
    }
}

impl Drop for DeadlineFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(&self.next);
    }
}

/// A fresh private folder for the files of one guardian, in memory where there is such a place: whoever keeps
/// deadlines must not wait for a disk.
pub(crate) fn folder() -> io::Result<tempfile::TempDir> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let shared_memory = Path::new("/dev/shm").to_path_buf();
    let places = runtime.into_iter().chain([shared_memory, std::env::temp_dir()]);
    let mut failed = io::Error::from(io::ErrorKind::NotFound);
    for place in places {
        match tempfile::Builder::new().prefix("rendez-").tempdir_in(place) {
            Ok(folder) => return Ok(folder),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}
