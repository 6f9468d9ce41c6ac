//! One PostgreSQL server, and its streaming replicas.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use super::guarded::{GuardedProcess, LOG};
use super::port::PortLease;
use super::postgres_programs::{Programs, quoted_value};
use super::program;
use super::redis::{Restart, START_ATTEMPTS_MAX, url_part};
use super::small_disk::SmallDisk;
use super::tls::TlsFiles;
use super::wait::{Patience, READY_BOUND, wait_until};
use super::wrong_clock::{self, WrongClock};
use super::{ServerError, log_tail};

const URL_VARIABLE: &str = "RENDEZ_TEST_POSTGRES_URL";
/// The superuser, for the harness by a socket without password, for clients with [`SUPERUSER_PASSWORD`].
pub(super) const SUPERUSER: &str = "postgres";
pub(super) const SUPERUSER_PASSWORD: &str = "postgres";
const DATABASE: &str = "postgres";
/// What a fresh server takes is about 40 MB.
const DATA_BYTES_MIN: u64 = 64 << 20;
/// How long a dropped server may take to tidy up before it is killed.
const FAREWELL_BOUND: Duration = Duration::from_secs(5);
/// What killed servers leave outside of their folder: a small segment of shared memory, named in their pid file, and what
/// shares their clock.
const FAREWELL: &str = r#"set -- $(sed -n 7p "$folder/data/postmaster.pid"); ipcrm -m "$2"; umount -l "$folder/data"
    rm -f "/dev/shm/sem.faketime_sem_$$" "/dev/shm/faketime_shm_$$""#;

/// Whether a primary waits for a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replication {
    /// Commits do not wait: what a primary has confirmed can be missing on a promoted replica.
    Asynchronous,
    /// Commits wait until the replica has them on its disk.
    Synchronous,
}

/// A PostgreSQL server: its own one on a free port, or the one of `RENDEZ_TEST_POSTGRES_URL`.
///
/// It is gone when this handle is dropped, also when the test panics or is killed. Own servers are copies of one
/// template and share its system identifier until they are [restarted empty](Restart::Empty).
///
/// ```no_run
/// # async fn example() -> Result<(), rendez_testkit::servers::ServerError> {
/// use rendez_testkit::servers::{PostgresServer, Replication, Restart};
///
/// let mut primary = PostgresServer::builder().start().await?;
/// primary.create_user("app", "word").await?;
/// println!("{}", primary.url_for("app", "word")?); // postgres://app:word@127.0.0.1:12345/postgres
/// let replica = primary.start_replica(Replication::Asynchronous).await?;
/// primary.stop()?; // SIGSTOP, its sessions too
/// replica.promote().await?;
/// primary.resume()?; // and there are two
/// primary.restart(Restart::Empty).await?; // same port
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct PostgresServer {
    place: Place,
}

#[derive(Debug)]
enum Place {
    Own(Box<Own>),
    External { url: String },
}

#[derive(Debug)]
struct Own {
    // Dropped first: the process must be gone before its data, its port and its folder are.
    process: Postmaster,
    settings: PostgresServerBuilder,
    programs: Programs,
    tls: Option<TlsFiles>,
    /// The replicas that commits wait for.
    synchronous: Vec<String>,
    port: PortLease,
    /// The small file system of the data, if there is one.
    mount: Option<SmallDisk>,
    folder: TempDir,
}

/// The process. Ended in good order it leaves nothing behind; killed, it leaves shared memory.
#[derive(Debug)]
struct Postmaster {
    process: GuardedProcess,
    data: PathBuf,
}

/// How an own PostgreSQL server is to be.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct PostgresServerBuilder {
    lines: Vec<String>,
    tls: bool,
    fsync: bool,
    data_bytes_max: Option<u64>,
    clock_of_its_own: bool,
}

impl PostgresServer {
    /// The server of `RENDEZ_TEST_POSTGRES_URL` if that is set, else an own one.
    ///
    /// Others may use the server of the environment at the same time: choose names of your own, and do not expect
    /// to be able to stop it.
    ///
    /// # Errors
    /// [`ServerError`] says what is missing or what the server logged.
    pub async fn start() -> Result<Self, ServerError> {
        Self::at(std::env::var(URL_VARIABLE).ok()).await
    }

    async fn at(url: Option<String>) -> Result<Self, ServerError> {
        match url {
            Some(url) if !url.is_empty() => Ok(Self { place: Place::External { url } }),
            Some(_) | None => Self::builder().start().await,
        }
    }

    /// Starts to describe an own server; the environment does not override it.
    pub fn builder() -> PostgresServerBuilder {
        PostgresServerBuilder::default()
    }

    /// The URL for the superuser, with its password.
    #[must_use]
    pub fn url(&self) -> String {
        match &self.place {
            Place::External { url } => url.clone(),
            Place::Own(own) => own.url(SUPERUSER, SUPERUSER_PASSWORD),
        }
    }

    /// The URL for another user.
    ///
    /// # Errors
    /// [`ServerError::External`] if the server is not ours.
    pub fn url_for(&self, user: &str, password: &str) -> Result<String, ServerError> {
        Ok(self.own("choose the user of")?.url(user, password))
    }

    /// The address of the port that clients use.
    ///
    /// # Errors
    /// [`ServerError::External`] if the server is not ours.
    pub fn addr(&self) -> Result<SocketAddr, ServerError> {
        Ok(self.own("take the address of")?.port.addr())
    }

    /// Where the certificates are, if the server was asked to speak TLS.
    #[must_use]
    pub fn tls(&self) -> Option<&TlsFiles> {
        match &self.place {
            Place::Own(own) => own.tls.as_ref(),
            Place::External { .. } => None,
        }
    }

    /// The id of the process that is the parent of all sessions.
    ///
    /// # Errors
    /// [`ServerError::External`] if the server is not ours.
    pub fn process_id(&self) -> Result<u32, ServerError> {
        Ok(self.own("take the process of")?.process.process.id())
    }

    /// Runs SQL as superuser through `psql`; returns what it printed: a line a row, columns separated by `|`.
    ///
    /// # Errors
    /// [`ServerError::Answer`] with the complaint, [`ServerError::External`] if the server is not ours.
    pub async fn query(&self, sql: &str) -> Result<String, ServerError> {
        self.own("control")?.query(sql).await
    }

    /// Runs SQL through `psql` at any URL, as a client does.
    ///
    /// # Errors
    /// As [`query`](Self::query), and [`ServerError::Missing`].
    pub async fn query_at(url: &str, sql: &str) -> Result<String, ServerError> {
        let mut command = Programs::find()?.client("psql");
        command.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", url, "-c", sql]);
        program::run(command).await
    }

    /// Adds a user that can log in with a password and has no rights; give it some with [`query`](Self::query).
    ///
    /// # Errors
    /// As [`query`](Self::query).
    pub async fn create_user(&self, name: &str, password: &str) -> Result<(), ServerError> {
        let (name, password) = (name.replace('"', "\"\""), quoted_value(password));
        self.query(&format!("CREATE ROLE \"{name}\" LOGIN PASSWORD {password}")).await.map(drop)
    }

    /// Fills the small disk to its last byte, with a file beside the server's own.
    ///
    /// Rows that need no new page are still written until the segment of the log is used up that the server has
    /// reserved (16 MiB). Then it panics, finds no room to recover, and ends.
    ///
    /// # Errors
    /// [`ServerError::Config`] without [`PostgresServerBuilder::data_bytes_max`].
    pub fn fill(&self) -> Result<(), ServerError> {
        let own = self.own("fill")?;
        match &own.mount {
            Some(disk) => disk.fill(),
            None => Err(ServerError::Config("this server's disk is everybody's: ask for a small one".to_owned())),
        }
    }

    /// Makes room again after [`fill`](Self::fill). A server that has ended meanwhile comes back by a
    /// [`restart`](Self::restart).
    ///
    /// # Errors
    /// [`ServerError::Io`] if the disk was not filled.
    pub fn make_room(&self) -> Result<(), ServerError> {
        match &self.own("make room for")?.mount {
            Some(disk) => disk.make_room(),
            None => Err(ServerError::Config("this server's disk was not filled".to_owned())),
        }
    }

    /// Sets the clock that the server sees so far forward, or back: all at once, and until it is set again.
    ///
    /// # Errors
    /// [`ServerError::Config`] without [`PostgresServerBuilder::clock_of_its_own`].
    pub fn set_clock(&self, seconds_ahead: i64) -> Result<(), ServerError> {
        let own = self.own("set the clock of")?;
        if !own.settings.clock_of_its_own {
            return Err(ServerError::Config("this server's clock is everybody's: ask for one of its own".to_owned()));
        }
        WrongClock::new(own.folder.path()).set(seconds_ahead)
    }

    /// Freezes the server with all its sessions (SIGSTOP); returns when they stand still. Its sockets stay open and
    /// silent.
    ///
    /// # Errors
    /// [`ServerError`] if it has ended or is not ours.
    pub fn stop(&mut self) -> Result<(), ServerError> {
        self.own_mut("stop")?.process.process.stop()
    }

    /// Lets a stopped server go on (SIGCONT).
    ///
    /// # Errors
    /// [`ServerError`] if it has ended or is not ours.
    pub fn resume(&mut self) -> Result<(), ServerError> {
        self.own_mut("resume")?.process.process.resume()
    }

    /// Kills the server and its sessions (SIGKILL); returns when they are gone. [`restart`](Self::restart) brings
    /// it back.
    ///
    /// # Errors
    /// [`ServerError::External`] if it is not ours.
    pub fn kill(&mut self) -> Result<(), ServerError> {
        self.own_mut("kill")?.process.process.kill();
        Ok(())
    }

    /// Ends the server if it runs and starts it again on the same port, with the same settings; returns when it
    /// answers.
    ///
    /// [`Restart::Saved`] ends all sessions and writes everything (a fast shutdown), [`Restart::Crashed`] kills and
    /// lets the server recover. After [`Restart::Empty`] it is a fresh one: no user but the superuser, another
    /// system identifier, and no replica of before can follow it.
    ///
    /// # Errors
    /// [`ServerError`] if it is not ours or does not start; it may be down then.
    pub async fn restart(&mut self, how: Restart) -> Result<(), ServerError> {
        let own = self.own_mut("restart")?;
        match how {
            Restart::Saved => own.end().await?,
            Restart::Crashed => own.process.process.kill(),
            Restart::Empty => {
                own.process.process.kill();
                own.process.forget();
                own.synchronous.clear();
                for entry in entries(&own.data())? {
                    let removed = if entry.is_dir() { fs::remove_dir_all(&entry) } else { fs::remove_file(&entry) };
                    removed.map_err(ServerError::io(format!("remove {}", entry.display())))?;
                }
                own.programs.make_data(own.folder.path(), &own.data()).await?;
            }
        }
        own.write_config()?;
        own.process.process = spawn(&own.programs, &own.settings, own.folder.path())?;
        own.wait_ready().await
    }

    /// Starts another server that follows this one; returns when it streams, and, if it is synchronous, when
    /// commits wait for it.
    ///
    /// # Errors
    /// [`ServerError`] if this one is not ours or the other does not start.
    pub async fn start_replica(&mut self, replication: Replication) -> Result<Self, ServerError> {
        let own = self.own_mut("replicate")?;
        // A small disk is for one server; its replica has enough.
        let settings = PostgresServerBuilder { data_bytes_max: None, ..own.settings.clone() };
        let replica = settings.start_from(Some(own.folder.path()), own.port.port()).await?;
        let name = cluster_name(replica.own("name")?.port.port());
        let state = match replication {
            Replication::Asynchronous => "async",
            Replication::Synchronous => {
                own.synchronous.push(name.clone());
                own.write_config()?;
                own.process.process.signal(Signal::HUP)?;
                "sync"
            }
        };
        let look = format!("SELECT state, sync_state FROM pg_stat_replication WHERE application_name = '{name}'");
        wait_until("a replica to stream", READY_BOUND, async || match own.query(&look).await {
            Ok(row) if row == format!("streaming|{state}") => Ok(()),
            Ok(row) => Err(format!("its state is {row:?}")),
            Err(error) => Err(error.to_string()),
        })
        .await?;
        replica.wait_in_step(self).await?;
        Ok(replica)
    }

    /// Returns when this replica shows all that the primary has committed until now.
    ///
    /// # Errors
    /// [`ServerError::Timeout`] if that does not happen.
    pub async fn wait_in_step(&self, primary: &Self) -> Result<(), ServerError> {
        let place = primary.query("SELECT pg_current_wal_lsn()").await?;
        let look = format!("SELECT pg_last_wal_replay_lsn() >= '{place}'");
        wait_until("a replica to be in step", READY_BOUND, async || match self.query(&look).await {
            Ok(yes) if yes == "t" => Ok(()),
            Ok(no) => Err(no),
            Err(error) => Err(error.to_string()),
        })
        .await
    }

    /// Makes a replica a primary; returns when it is one. The old primary is not told.
    ///
    /// # Errors
    /// As [`query`](Self::query), for example if it is no replica.
    pub async fn promote(&self) -> Result<(), ServerError> {
        let request = format!("SELECT pg_promote(true, {})", READY_BOUND.as_secs());
        match self.query(&request).await? {
            done if done == "t" => Ok(()),
            answer => Err(ServerError::Answer { request, answer }),
        }
    }

    /// What [`PgBouncer`](super::PgBouncer) needs to stand in front.
    pub(super) fn behind(&self) -> Result<(SocketAddr, &Programs), ServerError> {
        let own = self.own("stand in front of")?;
        Ok((own.port.addr(), &own.programs))
    }

    fn own(&self, action: &'static str) -> Result<&Own, ServerError> {
        match &self.place {
            Place::Own(own) => Ok(own),
            Place::External { .. } => Err(ServerError::External { action, variable: URL_VARIABLE }),
        }
    }

    fn own_mut(&mut self, action: &'static str) -> Result<&mut Own, ServerError> {
        match &mut self.place {
            Place::Own(own) => Ok(own),
            Place::External { .. } => Err(ServerError::External { action, variable: URL_VARIABLE }),
        }
    }
}

impl PostgresServerBuilder {
    /// Adds one line to the server's configuration, for example `max_connections = 10`. They come last and win.
    pub fn config(mut self, line: impl Into<String>) -> Self {
        self.lines.push(line.into());
        self
    }

    /// Speaks TLS on the port, and nothing else, with certificates made for this server.
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Waits for the disk at each commit. Without it a killed *process* loses nothing all the same.
    pub fn fsync(mut self, yes: bool) -> Self {
        self.fsync = yes;
        self
    }

    /// Puts the data on a disk (in memory) of this size, at least 64 MiB, so that it can be full. Only root can
    /// mount that.
    pub fn data_bytes_max(mut self, bytes: u64) -> Self {
        self.data_bytes_max = Some(bytes);
        self
    }

    /// Gives the server a wall clock of its own, right at first, by `libfaketime`; see [`PostgresServer::set_clock`].
    pub fn clock_of_its_own(mut self) -> Self {
        self.clock_of_its_own = true;
        self
    }

    /// Starts the server on a free port; returns when it answers.
    ///
    /// # Errors
    /// [`ServerError::Missing`] with the line to type, [`ServerError::Ended`] with what the server logged,
    /// [`ServerError::Config`] if a small disk is wanted and this is not root.
    pub async fn start(self) -> Result<PostgresServer, ServerError> {
        self.start_from(None, 0).await
    }

    /// With the data of the primary whose socket is in the folder and has this port, or with fresh data.
    async fn start_from(self, primary: Option<&Path>, port: u16) -> Result<PostgresServer, ServerError> {
        if let Some(line) = self.lines.iter().find(|line| line.contains(['\n', '\r'])) {
            return Err(ServerError::Config(format!("{line:?} is not one line of configuration")));
        }
        let mut attempt = 1;
        loop {
            let started = self.start_once(primary, port).await;
            match started {
                // Somebody outside of the harness took the port between the look and the start.
                Err(ServerError::Ended { log, .. })
                    if log.contains("Address already in use") && attempt < START_ATTEMPTS_MAX => {}
                other => return other,
            }
            attempt += 1;
        }
    }

    async fn start_once(&self, primary: Option<&Path>, primary_port: u16) -> Result<PostgresServer, ServerError> {
        let programs = Programs::find()?;
        let folder = TempDir::with_prefix("rendez-postgres-").map_err(ServerError::io("create a folder"))?;
        programs.give(folder.path())?;
        let data = folder.path().join("data");
        fs::create_dir(&data).map_err(ServerError::io(format!("create {}", data.display())))?;
        let mount = match self.data_bytes_max {
            Some(bytes) => Some(small_disk(&data, bytes).await?),
            None => None,
        };
        programs.give(&data)?;
        let private = fs::set_permissions(&data, fs::Permissions::from_mode(0o700));
        private.map_err(ServerError::io(format!("change the mode of {}", data.display())))?;
        match primary {
            None => programs.copy_data(&data).await?,
            Some(primary) => {
                let mut copy = programs.server("pg_basebackup");
                copy.arg("-D").arg(&data).arg("-h").arg(primary).args(["-p", &primary_port.to_string()]);
                copy.args(["-U", SUPERUSER, "-X", "stream", "-R", "-c", "fast", "-N"]);
                program::run(copy).await?;
            }
        }
        let tls = if self.tls { Some(TlsFiles::create(folder.path())?) } else { None };
        if let Some(tls) = &tls {
            // The server reads its key only if nobody else can.
            let private = fs::set_permissions(&tls.server_key, fs::Permissions::from_mode(0o600));
            private.map_err(ServerError::io(format!("change the mode of {}", tls.server_key.display())))?;
            programs.give(&tls.server_key)?;
        }
        let port = PortLease::take()?;
        let settings = self.clone();
        write_config(&settings, folder.path(), port.port(), tls.as_ref(), &[])?;
        let process = Postmaster { process: spawn(&programs, &settings, folder.path())?, data };
        let synchronous = Vec::new();
        let mut own = Own { process, settings, programs, tls, synchronous, port, mount, folder };
        own.wait_ready().await?;
        Ok(PostgresServer { place: Place::Own(Box::new(own)) })
    }
}

impl Own {
    fn url(&self, user: &str, password: &str) -> String {
        let query = if self.tls.is_some() { "?sslmode=require" } else { "" };
        url(user, password, self.port.addr(), query)
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn write_config(&self) -> Result<(), ServerError> {
        let port = self.port.port();
        write_config(&self.settings, self.folder.path(), port, self.tls.as_ref(), &self.synchronous)
    }

    async fn query(&self, sql: &str) -> Result<String, ServerError> {
        let mut command = self.programs.client("psql");
        command.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-U", SUPERUSER, "-d", DATABASE, "-h"]);
        command.arg(self.folder.path()).args(["-p", &self.port.port().to_string(), "-c", sql]);
        program::run(command).await
    }

    /// A fast shutdown. One that has ended already has nothing to save.
    async fn end(&mut self) -> Result<(), ServerError> {
        let process = &mut self.process.process;
        if process.exit_status()?.is_none() {
            process.signal(Signal::INT)?;
            let mut patience = Patience::new("a PostgreSQL server to end", READY_BOUND);
            while process.exit_status()?.is_none() {
                patience.pause("it runs".to_owned()).await?;
            }
        }
        process.kill();
        Ok(())
    }

    /// The server writes its state into the last line of its pid file.
    async fn wait_ready(&mut self) -> Result<(), ServerError> {
        let log = self.folder.path().join(LOG);
        let mut patience = Patience::new("a PostgreSQL server to answer", READY_BOUND);
        loop {
            if self.process.process.exit_status()?.is_some() {
                return Err(ServerError::Ended { server: "a PostgreSQL server".to_owned(), log: log_tail(&log) });
            }
            let text = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
            let lines: Vec<&str> = text.lines().map(str::trim).collect();
            // The file may be that of the process before.
            let pid = self.process.process.id().to_string();
            if lines.first() == Some(&pid.as_str()) && lines.get(7) == Some(&"ready") {
                return Ok(());
            }
            patience.pause(format!("{lines:?}; its log:\n{}", log_tail(&log))).await?;
        }
    }
}

impl Postmaster {
    /// Removes the shared memory of a process that was killed and will not be started again with its data.
    fn forget(&self) {
        let text = fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default();
        let segment = text.lines().nth(6).and_then(|line| line.split_whitespace().nth(1));
        if let Some(segment) = segment {
            // An error means that it is gone, which is what was wanted.
            let _ = Command::new("ipcrm").args(["-m", segment]).stderr(std::process::Stdio::null()).status();
        }
    }
}

impl Drop for Postmaster {
    fn drop(&mut self) {
        // An immediate shutdown writes nothing, but tidies up. Errors mean that the process has ended already.
        if self.process.resume().is_ok() && self.process.signal(Signal::QUIT).is_ok() {
            let start = std::time::Instant::now();
            while matches!(self.process.exit_status(), Ok(None)) && start.elapsed() < FAREWELL_BOUND {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        self.process.kill();
        self.forget();
        wrong_clock::forget(self.process.id());
    }
}

pub(super) fn url(user: &str, password: &str, addr: SocketAddr, query: &str) -> String {
    format!("postgres://{}:{}@{addr}/{DATABASE}{query}", url_part(user), url_part(password))
}

/// The name under which the primary knows a replica.
fn cluster_name(port: u16) -> String {
    format!("rendez_{port}")
}

async fn small_disk(data: &Path, bytes: u64) -> Result<SmallDisk, ServerError> {
    if bytes < DATA_BYTES_MIN {
        return Err(ServerError::Config(format!("PostgreSQL needs at least {DATA_BYTES_MIN} bytes, not {bytes}")));
    }
    SmallDisk::mount(data, bytes).await
}

fn spawn(programs: &Programs, settings: &PostgresServerBuilder, folder: &Path) -> Result<GuardedProcess, ServerError> {
    let mut command = if settings.clock_of_its_own {
        // The library is loaded when the user has been changed: what it shares must belong to the server's.
        let mut command = programs.as_user(Path::new("env"));
        command.args(WrongClock::new(folder).variables()?).arg(programs.path("postgres"));
        command
    } else {
        programs.server("postgres")
    };
    command.arg("-D").arg(folder.join("data")).current_dir(folder);
    GuardedProcess::spawn_with_farewell(&command, folder, FAREWELL)
}

fn write_config(
    settings: &PostgresServerBuilder,
    folder: &Path,
    port: u16,
    tls: Option<&TlsFiles>,
    synchronous: &[String],
) -> Result<(), ServerError> {
    let text = |path: &Path| quoted_value(&path.display().to_string());
    let on = |yes: bool| if yes { "on" } else { "off" };
    let mut lines = vec![
        "listen_addresses = '127.0.0.1'".to_owned(),
        format!("port = {port}"),
        format!("unix_socket_directories = {}", text(folder)),
        format!("cluster_name = '{}'", cluster_name(port)),
        format!("fsync = {}", on(settings.fsync)),
        format!("full_page_writes = {}", on(settings.fsync)),
        format!("synchronous_standby_names = '{}'", synchronous.join(", ")),
        // In the data's folder, so that it goes with it.
        "dynamic_shared_memory_type = mmap".to_owned(),
        "log_line_prefix = '%m [%p] %u '".to_owned(),
        "wal_retrieve_retry_interval = 100ms".to_owned(),
    ];
    if settings.data_bytes_max.is_some() {
        // Their shared memory is on the small disk too, and there a full one must stop writers only.
        lines.push("max_parallel_workers_per_gather = 0".to_owned());
    }
    let hosts = match tls {
        None => "host",
        Some(tls) => {
            lines.push("ssl = on".to_owned());
            lines.push(format!("ssl_ca_file = {}", text(&tls.ca)));
            lines.push(format!("ssl_cert_file = {}", text(&tls.server_cert)));
            lines.push(format!("ssl_key_file = {}", text(&tls.server_key)));
            "hostssl"
        }
    };
    // Last, so that they win.
    lines.extend(settings.lines.iter().cloned());
    let access =
        format!("local all all trust\nlocal replication all trust\n{hosts} all all 127.0.0.1/32 scram-sha-256\n");
    let data = folder.join("data");
    for (name, text) in [("postgresql.conf", lines.join("\n") + "\n"), ("pg_hba.conf", access)] {
        let path = data.join(name);
        // Written over, so that the file stays the server's.
        fs::write(&path, text).map_err(ServerError::io(format!("write {}", path.display())))?;
    }
    Ok(())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, ServerError> {
    let what = || ServerError::io(format!("read {}", folder.display()));
    let entries = fs::read_dir(folder).map_err(what())?;
    entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>().map_err(what())
}

/// Gives a file to the user that servers run as.
pub(super) fn give(path: &Path, user: Option<(u32, u32)>) -> Result<(), ServerError> {
    let Some((uid, gid)) = user else {
        return Ok(());
    };
    chown(path, Some(uid), Some(gid)).map_err(ServerError::io(format!("give {} away", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_of_the_environment_has_its_url_and_is_left_alone() {
        let mut server = PostgresServer::at(Some("postgres://elsewhere:1".to_owned())).await.unwrap();
        assert_eq!(server.url(), "postgres://elsewhere:1");
        for refused in [server.stop(), server.kill(), server.restart(Restart::Empty).await, server.promote().await] {
            assert!(refused.unwrap_err().to_string().contains(URL_VARIABLE));
        }
        assert!(matches!(server.query("SELECT 1").await, Err(ServerError::External { .. })));
    }
}
