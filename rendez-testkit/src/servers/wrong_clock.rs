//! A wall clock that one process sees and that can be set, by `libfaketime`.
//!
//! It works on programs that ask the C library for the time: PostgreSQL does, Go programs such as etcd do not, and Debian's
//! Redis does not start with it.

use std::fs;
use std::path::{Path, PathBuf};

use super::{INSTALL_FAKETIME, ServerError};

/// Debian has it below the folder of the machine's architecture.
const LIBRARIES: &str = "/usr/lib";
const LIBRARY: &str = "faketime/libfaketime.so.1";
const SETTING: &str = "clock";

/// The clock of a server with this folder.
#[derive(Debug)]
pub(super) struct WrongClock {
    setting: PathBuf,
}

impl WrongClock {
    pub(super) fn new(folder: &Path) -> Self {
        Self { setting: folder.join(SETTING) }
    }

    /// The variables with which a program sees this clock, as `env` takes them; right, unless it was set.
    pub(super) fn variables(&self) -> Result<[String; 4], ServerError> {
        if !self.setting.exists() {
            self.set(0)?;
        }
        Ok([
            format!("LD_PRELOAD={}", library()?.display()),
            format!("FAKETIME_TIMESTAMP_FILE={}", self.setting.display()),
            // Read at every look, so that a step is one; and timers go on as they are.
            "FAKETIME_NO_CACHE=1".to_owned(),
            "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
        ])
    }

    /// Sets it so far ahead of the right time, or behind.
    pub(super) fn set(&self, seconds_ahead: i64) -> Result<(), ServerError> {
        // Replaced as a whole: nobody may read the half of it.
        let fresh = self.setting.with_extension("new");
        let what = || ServerError::io(format!("write {}", self.setting.display()));
        fs::write(&fresh, format!("{seconds_ahead:+}\n")).map_err(what())?;
        fs::rename(&fresh, &self.setting).map_err(what())
    }
}

/// Removes what a process with such a clock leaves behind when it is killed.
pub(super) fn forget(process_id: u32) {
    for name in ["sem.faketime_sem", "faketime_shm"] {
        // An error means that it is not there, as with every process that had none.
        let _ = fs::remove_file(format!("/dev/shm/{name}_{process_id}"));
    }
}

fn library() -> Result<PathBuf, ServerError> {
    let folders = fs::read_dir(LIBRARIES).into_iter().flatten().flatten();
    let mut libraries = folders.map(|folder| folder.path().join(LIBRARY));
    libraries
        .find(|library| library.is_file())
        .ok_or_else(|| ServerError::Missing { program: LIBRARY.to_owned(), install: INSTALL_FAKETIME })
}
