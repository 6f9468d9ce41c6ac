//! One NATS server with JetStream, alone or as a member of a cluster.

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
use super::wait::{Patience, READY_BOUND};
use super::{INSTALL_NATS, ServerError, log_tail};

const URL_VARIABLE: &str = "RENDEZ_TEST_NATS_URL";
/// Where `cargo xtask servers` puts the versions, below the target directory.
const PROGRAM: &str = "packages/bin/nats-server";
/// The port for other members is this far from the clients'; both belong to the lease.
const PEER_OFFSET: u16 = 10_000;
/// A member that is stopped takes connections and never answers.
const LOOK_BOUND: Duration = Duration::from_millis(500);
const PAGE_BYTES_MAX: u64 = 4 << 20;

/// Which NATS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NatsVersion {
    /// 2.15.
    #[default]
    V2_15,
    /// 2.11, the first with TTLs of keys.
    V2_11,
    /// 2.10, which takes such a TTL and ignores it.
    V2_10,
}

impl NatsVersion {
    fn folder(self) -> &'static str {
        match self {
            Self::V2_15 => "servers/nats-2.15",
            Self::V2_11 => "servers/nats-2.11",
            Self::V2_10 => "servers/nats-2.10",
        }
    }
}

/// What a user may publish and subscribe to: subjects.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NatsRights {
    /// Subjects to publish to.
    pub publish: Vec<String>,
    /// Subjects to subscribe to.
    pub subscribe: Vec<String>,
}

/// A NATS server: its own one on a free port, or the one of `RENDEZ_TEST_NATS_URL`.
///
/// It is gone when this handle is dropped, also when the test panics or is killed.
///
/// ```no_run
/// # async fn example() -> Result<(), rendez_testkit::servers::ServerError> {
/// use rendez_testkit::servers::{NatsServer, Restart};
///
/// let mut nats = NatsServer::builder().user("root", "secret", None).start().await?;
/// println!("{}", nats.url_for("root", "secret")?); // nats://root:secret@127.0.0.1:12345
/// nats.stop()?; // SIGSTOP
/// nats.resume()?;
/// nats.restart(Restart::Empty).await?; // same port
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct NatsServer {
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
    settings: NatsServerBuilder,
    seat: Seat,
    cluster: Vec<u16>,
    tls: Option<TlsFiles>,
}

/// What a server has before it runs: a cluster's members must know each other's ports first.
#[derive(Debug)]
pub(super) struct Seat {
    name: String,
    port: PortLease,
    pages: PortLease,
    folder: TempDir,
}

/// How an own NATS server is to be.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct NatsServerBuilder {
    version: NatsVersion,
    users: Vec<(String, String, Option<NatsRights>)>,
    token: Option<String>,
    nkeys: Vec<String>,
    without_jetstream: bool,
    file_bytes_max: Option<u64>,
    synced: bool,
    tls: bool,
    client_certificates: bool,
}

impl NatsServer {
    /// The server of `RENDEZ_TEST_NATS_URL` if that is set, else an own one without users.
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
    pub fn builder() -> NatsServerBuilder {
        NatsServerBuilder::default()
    }

    /// The URL, for the first user if the server has users.
    #[must_use]
    pub fn url(&self) -> String {
        match &self.place {
            Place::External { url } => url.clone(),
            Place::Own(own) => own.settings.url(own.settings.first_user(), &[own.seat.port.addr()]),
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

    /// The folder of its data.
    ///
    /// # Errors
    /// [`ServerError::External`] if the server is not ours.
    pub fn data(&self) -> Result<PathBuf, ServerError> {
        Ok(self.own("look at the data of")?.seat.data())
    }

    /// The server's process id.
    ///
    /// # Errors
    /// [`ServerError::External`] if the server is not ours.
    pub fn process_id(&self) -> Result<u32, ServerError> {
        Ok(self.own("take the process of")?.process.id())
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
    /// answers.
    ///
    /// # Errors
    /// [`ServerError`] if it is not ours or does not start; it may be down then. [`ServerError::Config`] for
    /// [`Restart::Empty`] of a cluster's member.
    pub async fn restart(&mut self, how: Restart) -> Result<(), ServerError> {
        let own = self.own_mut("restart")?;
        if how == Restart::Empty && own.cluster.len() > 1 {
            return Err(ServerError::Config("a member alone cannot lose its data: restart the cluster".to_owned()));
        }
        own.end(how).await?;
        own.begin()?;
        own.wait_ready().await
    }

    /// The same, with JetStream switched on or off from then on.
    ///
    /// # Errors
    /// As [`restart`](Self::restart).
    pub async fn restart_with_jetstream(&mut self, on: bool) -> Result<(), ServerError> {
        self.own_mut("restart")?.settings.without_jetstream = !on;
        self.restart(Restart::Saved).await
    }

    pub(super) async fn wait_ready(&mut self) -> Result<(), ServerError> {
        self.own_mut("wait for")?.wait_ready().await
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

impl NatsServerBuilder {
    /// Chooses the version.
    pub fn version(mut self, version: NatsVersion) -> Self {
        self.version = version;
        self
    }

    /// Adds a user, with just these rights or with all; from then on nobody else may connect.
    pub fn user(mut self, name: impl Into<String>, password: impl Into<String>, rights: Option<NatsRights>) -> Self {
        self.users.push((name.into(), password.into(), rights));
        self
    }

    /// Asks everybody for this token.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Lets in who has the seed of this public nkey.
    pub fn nkey(mut self, public: impl Into<String>) -> Self {
        self.nkeys.push(public.into());
        self
    }

    /// Limits the bytes that JetStream may keep on disk.
    pub fn file_bytes_max(mut self, bytes: u64) -> Self {
        self.file_bytes_max = Some(bytes);
        self
    }

    /// Waits for the disk before each acknowledgement (`sync_interval: always`). Without it a killed *process* loses
    /// nothing all the same.
    pub fn synced(mut self) -> Self {
        self.synced = true;
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

    /// Starts the server on a free port; returns when it answers.
    ///
    /// # Errors
    /// [`ServerError::Missing`] with the line to type, [`ServerError::Ended`] with what the server logged.
    pub async fn start(self) -> Result<NatsServer, ServerError> {
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

    async fn start_once(&self) -> Result<NatsServer, ServerError> {
        let mut server = self.begin(Seat::take("alone")?, Vec::new(), None)?;
        server.wait_ready().await?;
        Ok(server)
    }

    /// Starts a member without waiting for it. Members share certificates: a client must trust them all.
    pub(super) fn begin(
        &self,
        seat: Seat,
        cluster: Vec<u16>,
        tls: Option<&TlsFiles>,
    ) -> Result<NatsServer, ServerError> {
        let tls = match tls {
            Some(files) => Some(files.clone()),
            None if self.tls => Some(TlsFiles::create(seat.folder())?),
            None => None,
        };
        let process = self.spawn(&seat, &cluster, tls.as_ref())?;
        let own = Own { process, settings: self.clone(), seat, cluster, tls };
        Ok(NatsServer { place: Place::Own(Box::new(own)) })
    }

    pub(super) fn speaks_tls(&self) -> bool {
        self.tls
    }

    pub(super) fn first_user(&self) -> Option<(&str, &str)> {
        self.users.first().map(|(name, password, _)| (name.as_str(), password.as_str()))
    }

    pub(super) fn url(&self, user: Option<(&str, &str)>, addrs: &[SocketAddr]) -> String {
        let scheme = if self.tls { "natss" } else { "nats" };
        let user = user.map(|(name, password)| format!("{}:{}@", url_part(name), url_part(password)));
        let addrs: Vec<String> = addrs.iter().map(SocketAddr::to_string).collect();
        format!("{scheme}://{}{}", user.unwrap_or_default(), addrs.join(","))
    }

    fn spawn(&self, seat: &Seat, cluster: &[u16], tls: Option<&TlsFiles>) -> Result<GuardedProcess, ServerError> {
        let path = program::target_folder()?.join(self.version.folder()).join(PROGRAM);
        if !path.is_file() {
            return Err(ServerError::Missing { program: path.display().to_string(), install: INSTALL_NATS });
        }
        let file = seat.folder().join("nats.conf");
        fs::write(&file, self.configuration(seat, cluster, tls))
            .map_err(ServerError::io(format!("write {}", file.display())))?;
        let mut command = Command::new(path);
        command.arg("-c").arg(&file);
        GuardedProcess::spawn(&command, seat.folder())
    }

    fn configuration(&self, seat: &Seat, cluster: &[u16], tls: Option<&TlsFiles>) -> String {
        let mut text = String::new();
        let mut line = |line: String| {
            text.push_str(&line);
            text.push('\n');
        };
        line(format!("server_name: {}", quoted(&seat.name)));
        line(format!("listen: {}", quoted(&seat.port.addr().to_string())));
        line(format!("http: {}", quoted(&seat.pages.addr().to_string())));
        if !self.without_jetstream {
            line(format!("jetstream {{\n  store_dir: {}", path(&seat.data())));
            if let Some(bytes) = self.file_bytes_max {
                line(format!("  max_file_store: {bytes}"));
            }
            if self.synced {
                line("  sync_interval: always".to_owned());
            }
            line("}".to_owned());
        }
        if !cluster.is_empty() {
            let routes: Vec<String> = cluster.iter().map(|port| format!("\"nats://127.0.0.1:{port}\"")).collect();
            // Another cluster that had these ports before must not get in.
            let name = format!("rendez-{}-{}", std::process::id(), cluster[0]);
            line(format!(
                "cluster {{\n  name: \"{name}\"\n  listen: \"127.0.0.1:{}\"\n  routes: [{}]\n}}",
                seat.peer(),
                routes.join(", ")
            ));
        }
        if let Some(tls) = tls {
            line(format!("tls {{\n  cert_file: {}\n  key_file: {}", path(&tls.server_cert), path(&tls.server_key)));
            if self.client_certificates {
                line(format!("  ca_file: {}\n  verify: true", path(&tls.ca)));
            }
            line("}".to_owned());
        }
        if let Some(token) = &self.token {
            line(format!("authorization {{ token: {} }}", quoted(token)));
        }
        if !self.users.is_empty() || !self.nkeys.is_empty() {
            line("authorization {\n  users: [".to_owned());
            for (name, password, rights) in &self.users {
                let rights = rights.as_ref().map(|rights| {
                    let list = |subjects: &[String]| {
                        let all: Vec<String> = subjects.iter().map(|subject| quoted(subject)).collect();
                        all.join(", ")
                    };
                    format!(
                        ", permissions: {{publish: [{}], subscribe: [{}]}}",
                        list(&rights.publish),
                        list(&rights.subscribe)
                    )
                });
                let rights = rights.unwrap_or_default();
                line(format!("    {{user: {}, password: {}{rights}}}", quoted(name), quoted(password)));
            }
            self.nkeys.iter().for_each(|nkey| line(format!("    {{nkey: {nkey}}}")));
            line("  ]\n}".to_owned());
        }
        text
    }
}

fn quoted(word: &str) -> String {
    format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\""))
}

fn path(path: &Path) -> String {
    quoted(&path.display().to_string())
}

impl Seat {
    pub(super) fn take(name: &str) -> Result<Self, ServerError> {
        let folder = TempDir::with_prefix("rendez-nats-").map_err(ServerError::io("create a folder"))?;
        let seat = Self { name: name.to_owned(), port: PortLease::take()?, pages: PortLease::take()?, folder };
        fs::create_dir(seat.data()).map_err(ServerError::io(format!("create {}", seat.data().display())))?;
        Ok(seat)
    }

    /// The port that the other members know.
    pub(super) fn peer(&self) -> u16 {
        self.port.port() + PEER_OFFSET
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
                    let mut patience = Patience::new("a NATS server to end", READY_BOUND);
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

    async fn wait_ready(&mut self) -> Result<(), ServerError> {
        let log = self.seat.folder().join(LOG);
        let mut patience = Patience::new("a NATS server to be healthy", READY_BOUND);
        loop {
            // An answer without a live process would be some other server's.
            if self.process.exit_status()?.is_some() {
                return Err(ServerError::Ended { server: "a NATS server".to_owned(), log: log_tail(&log) });
            }
            let seen = match self.health().await {
                Ok(page) if page.contains("\"status\":\"ok\"") => return Ok(()),
                Ok(page) => page,
                Err(error) => error.to_string(),
            };
            patience.pause(format!("{seen}; its log:\n{}", log_tail(&log))).await?;
        }
    }

    /// The health page of the port for pages, which knows neither TLS nor users.
    async fn health(&self) -> Result<String, ServerError> {
        let addr = self.seat.pages.addr();
        let asked = async {
            let mut stream = TcpStream::connect(addr).await?;
            stream.write_all(format!("GET /healthz HTTP/1.0\r\nHost: {addr}\r\n\r\n").as_bytes()).await?;
            let mut page = Vec::new();
            stream.take(PAGE_BYTES_MAX).read_to_end(&mut page).await?;
            Ok(String::from_utf8_lossy(&page).into_owned())
        };
        match tokio::time::timeout(LOOK_BOUND, asked).await {
            Ok(page) => page.map_err(ServerError::io(format!("get the health of {addr}"))),
            Err(_) => Err(ServerError::Timeout {
                condition: format!("the health of {addr}"),
                waited: LOOK_BOUND,
                seen: "nothing".to_owned(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_of_the_environment_has_its_url_and_is_left_alone() {
        let mut server = NatsServer::at(Some("nats://elsewhere:1".to_owned())).await.unwrap();
        assert_eq!(server.url(), "nats://elsewhere:1");
        for refused in [server.stop(), server.kill(), server.restart(Restart::Empty).await] {
            assert!(refused.unwrap_err().to_string().contains(URL_VARIABLE));
        }
    }
}
