//! A disk so small that it can be filled, in memory. Only root can mount one.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{ServerError, program};

const FILLING: &str = "filling";
const BLOCK_BYTES: usize = 1 << 20;
/// The last bytes are taken in pieces that small.
const CRUMB_BYTES: usize = 4 << 10;

/// A file system of its own in a folder, unmounted on drop.
#[derive(Debug)]
pub struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    /// Mounts a disk of this size on an empty folder.
    ///
    /// # Errors
    /// [`ServerError::Config`] if this is not root, [`ServerError::Answer`] with the complaint of `mount`.
    pub async fn mount(folder: &Path, bytes: u64) -> Result<Self, ServerError> {
        if !rustix::process::geteuid().is_root() {
            return Err(ServerError::Config("a data directory of limited size must be mounted: be root".to_owned()));
        }
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "rendez-testkit"]).arg(folder);
        program::run(mount).await?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Fills it to its last byte, with a file of its own.
    ///
    /// # Errors
    /// [`ServerError::Io`] if it cannot be written for another reason than that it is full.
    pub fn fill(&self) -> Result<(), ServerError> {
        let path = self.filling();
        let what = || ServerError::io(format!("write {}", path.display()));
        let mut file = OpenOptions::new().create(true).append(true).open(&path).map_err(what())?;
        for bytes in [BLOCK_BYTES, CRUMB_BYTES] {
            let block = vec![b'x'; bytes];
            loop {
                match file.write(&block) {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                    Err(error) => return Err(what()(error)),
                }
            }
        }
        Ok(())
    }

    /// Makes room again.
    ///
    /// # Errors
    /// [`ServerError::Io`] if it was not filled.
    pub fn make_room(&self) -> Result<(), ServerError> {
        let path = self.filling();
        fs::remove_file(&path).map_err(ServerError::io(format!("remove {}", path.display())))
    }

    fn filling(&self) -> PathBuf {
        self.folder.join(FILLING)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process that still ends must not keep it. What fails here is seen in the list of mounts.
        let _ = Command::new("umount").arg("-l").arg(&self.folder).status();
    }
}
