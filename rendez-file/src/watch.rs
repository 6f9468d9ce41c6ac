//! Hints between processes: each change that others should hear of is a write to one small file.
//!
//! On Linux the kernel tells of it (inotify); elsewhere, and where the kernel has no more to give, the file is read every
//! [`POLL_INTERVAL`]. A hint is always one for everybody.

use std::fs::Metadata;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use rendez_core::{Watch, WatchHint};

use crate::files::identity;

/// How often the file is read where nobody tells of its changes.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How often it is looked at whether the watched file is still the cluster's.
#[cfg(target_os = "linux")]
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// Ends when the cluster's folder is removed; the caller opens another.
pub(crate) struct Hints {
    path: PathBuf,
    file: (u64, u64),
    source: Source,
}

enum Source {
    #[cfg(target_os = "linux")]
    Kernel(tokio::io::unix::AsyncFd<rustix::fd::OwnedFd>),
    Poll(Option<String>),
}

impl Hints {
    /// Watches a file that exists.
    pub(crate) async fn open(path: PathBuf) -> std::io::Result<Self> {
        #[cfg(target_os = "linux")]
        match watch_kernel(&path) {
            Ok(kernel) => {
                let file = identity(&tokio::fs::metadata(&path).await?);
                return Ok(Self { path, file, source: Source::Kernel(kernel) });
            }
            Err(error) => tracing::debug!(%error, "no inotify: hints are polled for"),
        }
        let seen = tokio::fs::read_to_string(&path).await.ok();
        let file = identity(&tokio::fs::metadata(&path).await?);
        Ok(Self { path, file, source: Source::Poll(seen) })
    }

    /// Whether the watched file is still the cluster's.
    async fn is_current(&self) -> bool {
        let there: Option<Metadata> = tokio::fs::metadata(&self.path).await.ok();
        there.is_some_and(|there| identity(&there) == self.file)
    }
}

#[async_trait]
impl Watch for Hints {
    async fn next(&mut self) -> Option<WatchHint> {
        loop {
            match &mut self.source {
                #[cfg(target_os = "linux")]
                Source::Kernel(kernel) => {
                    if let Ok(ready) = tokio::time::timeout(CHECK_INTERVAL, kernel.readable()).await {
                        let mut ready = ready.ok()?;
                        match drain(ready.get_inner()) {
                            Drained::Changed => return Some(WatchHint::Everyone),
                            Drained::Gone => return None,
                            Drained::Nothing => ready.clear_ready(),
                        }
                    }
                }
                Source::Poll(seen) => {
                    tokio::time::sleep(POLL_INTERVAL).await;
                    let now = tokio::fs::read_to_string(&self.path).await.ok();
                    if now.is_some() && *seen != now {
                        *seen = now;
                        return Some(WatchHint::Everyone);
                    }
                }
            }
            if !self.is_current().await {
                return None;
            }
        }
    }
}

#[cfg(target_os = "linux")]
fn watch_kernel(path: &std::path::Path) -> std::io::Result<tokio::io::unix::AsyncFd<rustix::fd::OwnedFd>> {
    use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
    let kernel = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    add_watch(
        &kernel,
        path,
        WatchFlags::MODIFY | WatchFlags::ATTRIB | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF,
    )?;
    // Deprecated for types whose descriptor may become another one; an `OwnedFd`'s cannot, and the successor is `unsafe`.
    #[allow(deprecated)]
    tokio::io::unix::AsyncFd::new(kernel)
}

#[cfg(target_os = "linux")]
enum Drained {
    Changed,
    Gone,
    Nothing,
}

/// Reads all that the kernel has to tell. Many changes are one hint.
#[cfg(target_os = "linux")]
fn drain(kernel: &rustix::fd::OwnedFd) -> Drained {
    use rustix::fs::inotify::{ReadFlags, Reader};
    use rustix::io::Errno;
    let mut buffer = [std::mem::MaybeUninit::uninit(); 1024];
    let mut reader = Reader::new(kernel, &mut buffer);
    let mut drained = Drained::Nothing;
    loop {
        match reader.next() {
            Ok(event) => {
                let events = event.events();
                if events.intersects(ReadFlags::IGNORED | ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF) {
                    return Drained::Gone;
                }
                // An attribute changes when the last name is removed while others have the file open.
                if events.intersects(ReadFlags::MODIFY | ReadFlags::QUEUE_OVERFLOW) {
                    drained = Drained::Changed;
                }
            }
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) => return drained,
            Err(_) => return Drained::Gone,
        }
    }
}
