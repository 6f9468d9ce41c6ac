//! Ports that no other test takes, also while their server is down.
//!
//! "Bind to port 0 and look" hands out ephemeral ports: while a server is being restarted, any outgoing
//! connection of the machine may take its port. So ports come from below the ephemeral range, and a lock file for
//! each keeps other test processes away for as long as the lease lives.

use std::fs::{File, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU16, Ordering};

use rustix::fs::{FlockOperation, flock};

use super::ServerError;

/// The first port that is tried, and the number of them.
const FIRST: u16 = 10_000;
const COUNT: u16 = 10_000;
/// Redis Cluster's second port is this far from the first. Both belong to the lease.
const BUS_OFFSET: u16 = 10_000;

/// A port on 127.0.0.1 that stays reserved among all test processes of this machine until it is dropped.
#[derive(Debug)]
pub struct PortLease {
    port: u16,
    _lock: File,
}

impl PortLease {
    /// Takes a port that is free now.
    ///
    /// # Errors
    /// [`ServerError::Config`] if all ports are taken, [`ServerError::Io`] if the lock files cannot be made.
    pub fn take() -> Result<Self, ServerError> {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let folder = lock_folder();
        std::fs::create_dir_all(&folder).map_err(ServerError::io(format!("create {}", folder.display())))?;
        // Processes start at different places, so that they rarely meet.
        let start = (std::process::id().wrapping_mul(0x9E37_79B9) >> 16) as u16;
        for _ in 0..COUNT {
            let step = NEXT.fetch_add(1, Ordering::Relaxed);
            let port = FIRST + start.wrapping_add(step) % COUNT;
            let path = folder.join(port.to_string());
            let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
            let lock = lock.map_err(ServerError::io(format!("open {}", path.display())))?;
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
                && is_free(port)
                && is_free(port + BUS_OFFSET)
            {
                return Ok(Self { port, _lock: lock });
            }
        }
        Err(ServerError::Config(format!("no free port between {FIRST} and {}", FIRST + COUNT)))
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address on 127.0.0.1.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }
}

fn lock_folder() -> PathBuf {
    let user = rustix::process::getuid().as_raw();
    std::env::temp_dir().join(format!("rendez-testkit-ports-{user}"))
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn leases_are_disjoint_and_below_the_ephemeral_range() {
        let leases: Vec<PortLease> = (0..50).map(|_| PortLease::take().unwrap()).collect();
        let ports: BTreeSet<u16> = leases.iter().map(PortLease::port).collect();
        assert_eq!(ports.len(), leases.len());
        assert!(ports.iter().all(|port| port + BUS_OFFSET < 32_768));
    }
}
