//! PgBouncer in front of a PostgreSQL server.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use tokio::net::TcpStream;

use super::guarded::{GuardedProcess, LOG};
use super::port::PortLease;
use super::postgres::{PostgresServer, SUPERUSER, SUPERUSER_PASSWORD, url};
use super::wait::{Patience, READY_BOUND};
use super::{INSTALL_PGBOUNCER, ServerError, find_program, is_executable, log_tail};

/// Where Debian has it: not on everybody's `PATH`.
const DEBIAN: &str = "/usr/sbin/pgbouncer";

/// PgBouncer in transaction pooling: the transactions of one client may run in different sessions of the server.
///
/// It is gone when this handle is dropped, also when the test panics or is killed.
#[derive(Debug)]
pub struct PgBouncer {
    // Dropped first: the process must be gone before its port and its folder are.
    process: GuardedProcess,
    port: PortLease,
    folder: TempDir,
}

impl PgBouncer {
    /// Starts it in front of a server, for the superuser and for these users with their passwords, with at most
    /// `sessions` sessions of the server for each; returns when it answers.
    ///
    /// # Errors
    /// [`ServerError::Missing`] with the line to type, [`ServerError::Ended`] with what it logged,
    /// [`ServerError::External`] if the server is not ours.
    pub async fn start(server: &PostgresServer, users: &[(&str, &str)], sessions: usize) -> Result<Self, ServerError> {
        let (behind, programs) = server.behind()?;
        let folder = TempDir::with_prefix("rendez-pgbouncer-").map_err(ServerError::io("create a folder"))?;
        let port = PortLease::take()?;
        let path = folder.path();
        let config = format!(
            "[databases]\n\
             * = host={} port={}\n\
             [pgbouncer]\n\
             listen_addr = 127.0.0.1\n\
             listen_port = {}\n\
             unix_socket_dir =\n\
             pool_mode = transaction\n\
             default_pool_size = {sessions}\n\
             max_client_conn = 1000\n\
             auth_type = scram-sha-256\n\
             auth_file = {}/users\n\
             ignore_startup_parameters = extra_float_digits\n",
            behind.ip(),
            behind.port(),
            port.port(),
            path.display(),
        );
        let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
        let users = [(SUPERUSER, SUPERUSER_PASSWORD)].into_iter().chain(users.iter().copied());
        let users: String = users.map(|(name, password)| format!("{} {}\n", quoted(name), quoted(password))).collect();
        for (name, text) in [("pgbouncer.ini", config), ("users", users)] {
            let file = path.join(name);
            fs::write(&file, text).map_err(ServerError::io(format!("write {}", file.display())))?;
            programs.give(&file)?;
        }
        programs.give(path)?;
        let mut command: Command = programs.as_user(&find()?);
        command.arg(path.join("pgbouncer.ini")).current_dir(path);
        let process = GuardedProcess::spawn(&command, path)?;
        let mut bouncer = Self { process, port, folder };
        bouncer.wait_ready().await?;
        Ok(bouncer)
    }

    /// The URL for the superuser, with its password.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_for(SUPERUSER, SUPERUSER_PASSWORD)
    }

    /// The URL for another user.
    #[must_use]
    pub fn url_for(&self, user: &str, password: &str) -> String {
        url(user, password, self.addr(), "")
    }

    /// The address of the port that clients use.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.port.addr()
    }

    async fn wait_ready(&mut self) -> Result<(), ServerError> {
        let log = self.log();
        let mut patience = Patience::new("PgBouncer to listen", READY_BOUND);
        loop {
            if self.process.exit_status()?.is_some() {
                return Err(ServerError::Ended { server: "PgBouncer".to_owned(), log: log_tail(&log) });
            }
            match TcpStream::connect(self.addr()).await {
                Ok(_) => return Ok(()),
                Err(error) => patience.pause(format!("{error}; its log:\n{}", log_tail(&log))).await?,
            }
        }
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join(LOG)
    }
}

fn find() -> Result<PathBuf, ServerError> {
    let debian = Path::new(DEBIAN);
    if is_executable(debian) { Ok(debian.to_owned()) } else { find_program("pgbouncer", INSTALL_PGBOUNCER) }
}
