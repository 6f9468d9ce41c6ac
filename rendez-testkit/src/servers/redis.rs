//! One Redis server.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::guarded::{GuardedProcess, LOG};
use super::port::PortLease;
use super::resp::{RespClient, RespValue};
use super::tls::TlsFiles;
use super::wait::{Patience, READY_BOUND, wait_until};
use super::{INSTALL_REDIS, ServerError, find_program, log_tail};

const URL_VARIABLE: &str = "RENDEZ_TEST_REDIS_URL";
/// The harness' own user: it works whatever a test does to the others. Any password is right.
pub(super) const HARNESS_USER: &str = "rendez-testkit";
pub(super) const START_ATTEMPTS_MAX: usize = 8;

/// What a restarted server finds on its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// Everything: the server writes its data to disk before it ends. An orderly restart.
    Saved,
    /// What its persistence settings had written until then: the server is killed. Without append-only file and
    /// without a save, that is nothing.
    Crashed,
    /// Nothing: the server is killed and its disk is wiped.
    Empty,
}

/// A Redis server: its own one on a free port, or the one of `RENDEZ_TEST_REDIS_URL`.
///
/// It is gone when this handle is dropped, also when the test panics or is killed.
///
/// ```no_run
/// # async fn example() -> Result<(), rendez_testkit::servers::ServerError> {
/// use rendez_testkit::servers::{RedisServer, Restart};
///
/// let mut redis = RedisServer::builder().password("secret").append_only(true).start().await?;
/// println!("{}", redis.url()); // redis://:secret@127.0.0.1:12345
/// redis.command(&["SET", "key", "value"]).await?;
/// redis.stop()?; // SIGSTOP
/// redis.resume()?;
/// redis.restart(Restart::Empty).await?; // same port
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct RedisServer {
    place: Place,
}

#[derive(Debug)]
enum Place {
    Own(Box<Own>),
    External { url: String },
}

#[derive(Debug)]
struct Own {
    // Dropped first: the process must be gone before its port and its folder are.
    process: GuardedProcess,
    settings: RedisServerBuilder,
    tls: Option<TlsFiles>,
    port: PortLease,
    folder: TempDir,
}

/// How an own Redis server is to be.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct RedisServerBuilder {
    lines: Vec<String>,
    password: Option<String>,
    users: Vec<(String, String)>,
    tls: bool,
    append_only: bool,
    max_memory: Option<(u64, String)>,
    replica_of: Option<SocketAddr>,
}

impl RedisServer {
    /// The server of `RENDEZ_TEST_REDIS_URL` if that is set, else an own one without password or persistence.
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
    pub fn builder() -> RedisServerBuilder {
        RedisServerBuilder::default()
    }

    /// The URL for the default user, with its password if it has one.
    #[must_use]
    pub fn url(&self) -> String {
        match &self.place {
            Place::External { url } => url.clone(),
            Place::Own(own) => {
                let password = own.settings.password.as_deref();
                own.url(&password.map(|password| format!(":{}@", url_part(password))).unwrap_or_default())
            }
        }
    }

    /// The URL for another user.
    ///
    /// # Errors
    /// [`ServerError::External`] if the server is not ours.
    pub fn url_for(&self, user: &str, password: &str) -> Result<String, ServerError> {
        Ok(self.own("choose the user of")?.url(&format!("{}:{}@", url_part(user), url_part(password))))
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

    /// The server's process id.
    ///
    /// # Errors
    /// [`ServerError::External`] if the server is not ours.
    pub fn process_id(&self) -> Result<u32, ServerError> {
        Ok(self.own("take the process of")?.process.id())
    }

    /// A new connection for the harness, past TLS, proxies and access rules.
    ///
    /// # Errors
    /// [`ServerError::Io`] if the server is down, [`ServerError::External`] if it is not ours.
    pub async fn control(&self) -> Result<RespClient, ServerError> {
        self.own("control")?.control().await
    }

    /// Runs one command through [`control`](Self::control).
    ///
    /// # Errors
    /// As [`RespClient::command`] and [`control`](Self::control).
    pub async fn command(&self, words: &[&str]) -> Result<RespValue, ServerError> {
        self.control().await?.command(words).await
    }

    /// One field of `INFO`, for example `master_link_status`.
    ///
    /// # Errors
    /// As [`command`](Self::command), and [`ServerError::Answer`] if there is no such field.
    pub async fn info(&self, field: &str) -> Result<String, ServerError> {
        let text = self.command(&["INFO", "everything"]).await?.text();
        let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        value.map(str::to_owned).ok_or_else(|| ServerError::Answer {
            request: format!("INFO, field {field}"),
            answer: "no such field".to_owned(),
        })
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

    /// Ends the server if it runs and starts it again on the same port, with the same settings; returns when it
    /// answers.
    ///
    /// # Errors
    /// [`ServerError`] if it is not ours, cannot save or does not start; it may be down then.
    pub async fn restart(&mut self, how: Restart) -> Result<(), ServerError> {
        let own = self.own_mut("restart")?;
        match how {
            Restart::Saved => {
                own.control().await?.command(&["SAVE"]).await?;
                own.process.kill();
            }
            Restart::Crashed => own.process.kill(),
            Restart::Empty => {
                own.process.kill();
                wipe(&own.data())?;
            }
        }
        own.process = spawn(own.folder.path())?;
        own.wait_ready().await
    }

    /// Starts another server that replicates this one; returns when the two are in step.
    ///
    /// # Errors
    /// [`ServerError`] if this one is not ours or speaks TLS, or the other does not start.
    pub async fn start_replica(&self) -> Result<Self, ServerError> {
        let own = self.own("replicate")?;
        if own.tls.is_some() {
            return Err(ServerError::Config("replicas of a server that speaks TLS are not supported".to_owned()));
        }
        let mut settings = own.settings.clone();
        settings.replica_of = Some(own.port.addr());
        let replica = settings.start().await?;
        replica.wait_in_step().await?;
        Ok(replica)
    }

    /// Returns when this replica's link to its primary is up.
    ///
    /// # Errors
    /// [`ServerError::Timeout`] if that does not happen.
    pub async fn wait_in_step(&self) -> Result<(), ServerError> {
        wait_until("the link of a replica to its primary", READY_BOUND, async || {
            match self.info("master_link_status").await {
                Ok(status) if status == "up" => Ok(()),
                Ok(status) => Err(status),
                Err(error) => Err(error.to_string()),
            }
        })
        .await
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

impl RedisServerBuilder {
    /// Adds one line to the server's configuration, for example `maxclients 10`.
    pub fn config(mut self, line: impl Into<String>) -> Self {
        self.lines.push(line.into());
        self
    }

    /// Sets the default user's password.
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.password = Some(password.into());
        self
    }

    /// Adds a user with access rules, for example `("app", "on >secret ~{x}* &* +@read")`; `default` changes the
    /// default user.
    pub fn user(mut self, name: impl Into<String>, rules: impl Into<String>) -> Self {
        self.users.push((name.into(), rules.into()));
        self
    }

    /// Speaks TLS on the port, and nothing else, with certificates made for this server. A client's certificate
    /// is checked if it presents one; `config("tls-auth-clients yes")` demands one.
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Keeps an append-only file, written before each answer; without it nothing is persisted.
    pub fn append_only(mut self, yes: bool) -> Self {
        self.append_only = yes;
        self
    }

    /// Limits the memory, and says what happens at the limit: `noeviction`, `allkeys-lru` and so on.
    pub fn max_memory(mut self, bytes: u64, policy: impl Into<String>) -> Self {
        self.max_memory = Some((bytes, policy.into()));
        self
    }

    /// Starts the server on a free port; returns when it answers.
    ///
    /// # Errors
    /// [`ServerError::Missing`] with the line to type, [`ServerError::Ended`] with what the server logged.
    pub async fn start(self) -> Result<RedisServer, ServerError> {
        if let Some(line) = self.lines.iter().find(|line| line.contains(['\n', '\r'])) {
            return Err(ServerError::Config(format!("{line:?} is not one line of configuration")));
        }
        let mut attempt = 1;
        loop {
            let started = self.start_once().await;
            match started {
                // Somebody outside of the harness took the port between the look and the start.
                Err(ServerError::Ended { log, .. })
                    if log.contains("Address already in use") && attempt < START_ATTEMPTS_MAX => {}
                other => return other,
            }
            attempt += 1;
        }
    }

    async fn start_once(&self) -> Result<RedisServer, ServerError> {
        let folder = TempDir::with_prefix("rendez-redis-").map_err(ServerError::io("create a folder"))?;
        let data = folder.path().join("data");
        fs::create_dir(&data).map_err(ServerError::io(format!("create {}", data.display())))?;
        let tls = if self.tls { Some(TlsFiles::create(folder.path())?) } else { None };
        let port = PortLease::take()?;
        let config = folder.path().join("redis.conf");
        let text = self.file(folder.path(), port.port(), tls.as_ref());
        fs::write(&config, text).map_err(ServerError::io(format!("write {}", config.display())))?;
        let process = spawn(folder.path())?;
        let mut own = Own { process, settings: self.clone(), tls, port, folder };
        own.wait_ready().await?;
        Ok(RedisServer { place: Place::Own(Box::new(own)) })
    }

    fn file(&self, folder: &Path, port: u16, tls: Option<&TlsFiles>) -> String {
        let folder = folder.display();
        let mut text = format!(
            "bind 127.0.0.1\n\
             dir {folder}/data\n\
             unixsocket {folder}/control\n\
             daemonize no\n\
             save \"\"\n\
             repl-diskless-sync yes\n\
             repl-diskless-sync-delay 0\n\
             repl-ping-replica-period 1\n\
             user {HARNESS_USER} on nopass ~* &* +@all\n\
             masteruser {HARNESS_USER}\n\
             masterauth any\n"
        );
        let mut line = |line: String| text.extend([line.as_str(), "\n"]);
        match tls {
            None => line(format!("port {port}")),
            Some(tls) => {
                line("port 0".to_owned());
                line(format!("tls-port {port}"));
                line(format!("tls-ca-cert-file {}", tls.ca.display()));
                line(format!("tls-cert-file {}", tls.server_cert.display()));
                line(format!("tls-key-file {}", tls.server_key.display()));
                line("tls-auth-clients optional".to_owned());
            }
        }
        if self.append_only {
            line("appendonly yes".to_owned());
            line("appendfsync always".to_owned());
        }
        if let Some(password) = &self.password {
            line(format!("requirepass {}", quoted(password)));
        }
        for (name, rules) in &self.users {
            line(format!("user {name} {rules}"));
        }
        if let Some((bytes, policy)) = &self.max_memory {
            line(format!("maxmemory {bytes}"));
            line(format!("maxmemory-policy {policy}"));
        }
        if let Some(primary) = self.replica_of {
            line(format!("replicaof {} {}", primary.ip(), primary.port()));
        }
        // Last, so that they win.
        self.lines.iter().cloned().for_each(line);
        text
    }
}

impl Own {
    fn url(&self, user_part: &str) -> String {
        let scheme = if self.tls.is_some() { "rediss" } else { "redis" };
        format!("{scheme}://{user_part}{}", self.port.addr())
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    async fn control(&self) -> Result<RespClient, ServerError> {
        let mut client = RespClient::connect_unix(&self.folder.path().join("control")).await?;
        client.command(&["AUTH", HARNESS_USER, "any"]).await?;
        Ok(client)
    }

    async fn wait_ready(&mut self) -> Result<(), ServerError> {
        let log = self.folder.path().join(LOG);
        let mut patience = Patience::new("a Redis server to answer", READY_BOUND);
        loop {
            // An answer without a live process would be some other server's.
            if self.process.exit_status()?.is_some() {
                return Err(ServerError::Ended { server: "a Redis server".to_owned(), log: log_tail(&log) });
            }
            let error = match self.ping().await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            patience.pause(format!("{error}; its log:\n{}", log_tail(&log))).await?;
        }
    }

    async fn ping(&self) -> Result<RespValue, ServerError> {
        self.control().await?.command(&["PING"]).await
    }
}

fn spawn(folder: &Path) -> Result<GuardedProcess, ServerError> {
    let mut command = Command::new(find_program("redis-server", INSTALL_REDIS)?);
    command.arg(folder.join("redis.conf"));
    GuardedProcess::spawn(&command, folder)
}

pub(super) fn wipe(data: &Path) -> Result<(), ServerError> {
    let what = || ServerError::io(format!("wipe {}", data.display()));
    fs::remove_dir_all(data).map_err(what())?;
    fs::create_dir(data).map_err(what())
}

/// A word of Redis' configuration file, with every byte that could mean something escaped.
fn quoted(word: &str) -> String {
    let mut text = String::from("\"");
    for byte in word.bytes() {
        if byte.is_ascii_alphanumeric() {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text.push('"');
    text
}

/// A part of a URL, with every byte that could mean something escaped.
pub(super) fn url_part(part: &str) -> String {
    let mut text = String::new();
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_of_the_environment_has_its_url_and_is_left_alone() {
        let mut server = RedisServer::at(Some("redis://elsewhere:1".to_owned())).await.unwrap();
        assert_eq!(server.url(), "redis://elsewhere:1");
        for refused in [server.stop(), server.kill(), server.restart(Restart::Empty).await] {
            assert!(refused.unwrap_err().to_string().contains(URL_VARIABLE));
        }
    }

    #[tokio::test]
    async fn without_one_an_own_server_is_started() {
        for unset in [None, Some(String::new())] {
            assert!(RedisServer::at(unset).await.unwrap().process_id().is_ok());
        }
    }
}
