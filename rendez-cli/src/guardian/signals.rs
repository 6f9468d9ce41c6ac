//! Signals of guardian and keepers: deaf to those meant for the agent, woken by the end of children.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM};

/// Readable after a child has ended.
pub(crate) struct ChildSignal(UnixStream);

impl ChildSignal {
    /// Takes the signals of this process. They are handled rather than ignored, so that commands start without it.
    pub(crate) fn take() -> io::Result<Self> {
        let nobody_looks = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT, SIGHUP, SIGQUIT] {
            signal_hook::flag::register(signal, Arc::clone(&nobody_looks))?;
        }
        let (ours, the_handlers) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        signal_hook::low_level::pipe::register(SIGCHLD, the_handlers)?;
        Ok(Self(ours))
    }

    /// Makes it unreadable again, until the next child ends.
    pub(crate) fn clear(&mut self) {
        let mut buffer = [0; 64];
        while matches!(self.0.read(&mut buffer), Ok(count) if count > 0) {}
    }
}

impl AsFd for ChildSignal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
