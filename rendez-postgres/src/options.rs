//! Where the server is and how to speak to it. Nothing here opens a connection.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use rendez_core::{ErrorKind, StoreError, TlsFiles};
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

/// What stands by to take over from the server, and so what a failover can lose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standbys {
    /// Nothing: what is committed is on the server's own disk, and no other server ever continues from less.
    None,
    /// Standbys that may lag: a failover may lose what was committed in the last
    /// [`replica_lag_max`](PostgresOptions::replica_lag_max).
    Asynchronous,
    /// A commit waits for a standby; the server's `synchronous_standby_names` must say so.
    Synchronous,
}

/// How to speak to PostgreSQL. The defaults suit any server, and promise what asynchronous standbys leave.
#[derive(Clone)]
#[non_exhaustive]
pub struct PostgresOptions {
    /// The schema of the store's tables and functions; default `rendez`.
    pub schema: String,
    /// Make the schema, and replace functions of an older release, where that is needed; default yes. Otherwise an
    /// administrator runs what [`migration`](crate::migration) returns.
    pub migrate: bool,
    /// How long a request may take before its outcome counts as unknown; default 500 ms.
    pub operation_timeout: Duration,
    /// How long a connection may take to be made and logged in; default 2 s.
    pub connect_timeout: Duration,
    /// The most connections for requests; default 4. The watch has one more.
    pub connections_max: usize,
    /// What stands by to take over; default [`Standbys::Asynchronous`].
    pub standbys: Standbys,
    /// How far asynchronous standbys may lag behind, with the time that an isolated old primary may still answer: a
    /// part of the quiet time after a loss of data; default 10 s.
    pub replica_lag_max: Duration,
    /// The URL leads to a pooler that gives connections out by the transaction (pgbouncer): no settings are sent with
    /// the login, and there is no watch unless `listen_url` is set. Default no.
    pub pooled: bool,
    /// The address of the server itself, for the watch, where the other is a pooler's. May hold a password.
    pub listen_url: Option<String>,
    /// User and password, where they shall not stand in the URL. They win over the URL's.
    pub username: Option<String>,
    /// See `username`.
    pub password: Option<String>,
    /// Certificates; with them TLS is spoken whatever the URL says. Checking cannot be switched off.
    pub tls: Option<TlsFiles>,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self {
            schema: "rendez".to_owned(),
            migrate: true,
            operation_timeout: Duration::from_millis(500),
            connect_timeout: Duration::from_secs(2),
            connections_max: 4,
            standbys: Standbys::Asynchronous,
            replica_lag_max: Duration::from_secs(10),
            pooled: false,
            listen_url: None,
            username: None,
            password: None,
            tls: None,
        }
    }
}

impl fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresOptions")
            .field("schema", &self.schema)
            .field("migrate", &self.migrate)
            .field("operation_timeout", &self.operation_timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("connections_max", &self.connections_max)
            .field("standbys", &self.standbys)
            .field("replica_lag_max", &self.replica_lag_max)
            .field("pooled", &self.pooled)
            .field("listen_url", &self.listen_url.is_some())
            .field("username", &self.username)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

const KEYS: &str = "schema, migrate, operation_timeout, connect_timeout, connections_max, standbys, replica_lag_max, \
                    pooled, listen_url, username, password, tls_authorities_file, tls_certificate_file, tls_key_file";

/// More connections than this help nobody.
const CONNECTIONS_MAX: usize = 64;

impl PostgresOptions {
    /// Sets an option from text: times as `250ms` or `10s`, switches as `true` or `false`, certificates as the path
    /// of a PEM file.
    ///
    /// # Errors
    /// [`ErrorKind::Fatal`] for a key that does not exist (the message lists those that do) and for a value that cannot
    /// be; a value is never repeated, for it may be a secret.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), StoreError> {
        match key {
            "schema" => self.schema = value.to_owned(),
            "migrate" => self.migrate = switch(key, value)?,
            "operation_timeout" => self.operation_timeout = time(key, value)?,
            "connect_timeout" => self.connect_timeout = time(key, value)?,
            "connections_max" => {
                self.connections_max =
                    value.parse().map_err(|_| fatal("the option connections_max wants a number, for example 4"))?;
            }
            "standbys" => {
                self.standbys = match value {
                    "none" => Standbys::None,
                    "asynchronous" => Standbys::Asynchronous,
                    "synchronous" => Standbys::Synchronous,
                    _ => return Err(fatal("the option standbys is one of none, asynchronous, synchronous")),
                };
            }
            "replica_lag_max" => self.replica_lag_max = time(key, value)?,
            "pooled" => self.pooled = switch(key, value)?,
            "listen_url" => self.listen_url = Some(value.to_owned()),
            "username" => self.username = Some(value.to_owned()),
            "password" => self.password = Some(value.to_owned()),
            "tls_authorities_file" => {
                self.tls.get_or_insert_default().authorities = Some(file(key, value)?);
            }
            "tls_certificate_file" => {
                self.tls.get_or_insert_default().client.get_or_insert_default().0 = file(key, value)?;
            }
            "tls_key_file" => {
                self.tls.get_or_insert_default().client.get_or_insert_default().1 = file(key, value)?;
            }
            _ => return Err(fatal(format!("PostgreSQL has no option {key:?}: there are {KEYS}"))),
        }
        Ok(())
    }

    pub(crate) fn check(&self) -> Result<(), StoreError> {
        if self.operation_timeout.is_zero() || self.connect_timeout.is_zero() {
            return Err(fatal("the timeouts of the PostgreSQL store must not be zero"));
        }
        if !(1..=CONNECTIONS_MAX).contains(&self.connections_max) {
            return Err(fatal(format!("connections_max must be 1 to {CONNECTIONS_MAX}")));
        }
        let client = self.tls.as_ref().and_then(|tls| tls.client.as_ref());
        if client.is_some_and(|(certificate, key)| certificate.is_empty() || key.is_empty()) {
            return Err(fatal("a client's certificate and its key belong together: set both"));
        }
        Ok(())
    }
}

fn switch(key: &str, value: &str) -> Result<bool, StoreError> {
    value.parse().map_err(|_| fatal(format!("the option {key} is true or false")))
}

fn time(key: &str, value: &str) -> Result<Duration, StoreError> {
    let parsed = value.parse::<jiff::SignedDuration>().ok().and_then(|time| Duration::try_from(time).ok());
    parsed.ok_or_else(|| fatal(format!("the option {key} wants a time, for example 250ms, 10s or \"1m 30s\"")))
}

fn file(key: &str, path: &str) -> Result<Vec<u8>, StoreError> {
    std::fs::read(path)
        .map_err(|error| fatal(format!("the file that {key} names cannot be read: {error}")).with_source(error))
}

pub(crate) fn fatal(message: impl Into<String>) -> StoreError {
    StoreError::new(ErrorKind::Fatal, message)
}

const FORMS: &str = "postgres://[user[:password]@]host[:port][,host…]/database[?sslmode=require]";

/// A dead peer is noticed within about ten seconds, with or without a request on its way.
const KEEPALIVES_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVES_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVES_RETRIES: u32 = 3;

/// Where a server is, and how to log in.
#[derive(Clone)]
pub(crate) struct Endpoint {
    pub(crate) config: Config,
    pub(crate) tls: bool,
    pub(crate) name: String,
}

impl Endpoint {
    /// Reads a URL. No message of an error holds any part of it that may be secret.
    pub(crate) fn parse(url: &str, options: &PostgresOptions, pooled: bool) -> Result<Self, StoreError> {
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err(fatal(format!("no PostgreSQL URL: write {FORMS}")));
        }
        let (plain, mode) = without_sslmode(url);
        let tls = match mode.as_deref() {
            None => options.tls.is_some(),
            Some("disable") if options.tls.is_none() => false,
            Some("disable") => return Err(fatal("sslmode=disable and certificates: leave one of them out")),
            Some("require" | "verify-ca" | "verify-full") => true,
            Some(_) => {
                return Err(fatal(
                    "sslmode is require (certificates are always checked, so verify-ca and verify-full say the same) \
                     or disable: prefer and allow would promise nothing",
                ));
            }
        };
        // The parser's error may hold the URL, and with it the password.
        let config =
            Config::from_str(&plain).map_err(|_| fatal(format!("a URL that cannot be read: write {FORMS}")))?;
        Self::with_config(config, tls, options, pooled)
    }

    /// Adds what every connection of the store has.
    pub(crate) fn with_config(
        mut config: Config,
        tls: bool,
        options: &PostgresOptions,
        pooled: bool,
    ) -> Result<Self, StoreError> {
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(fatal(format!("a PostgreSQL URL without a host: write {FORMS}")));
        }
        if let Some(user) = &options.username {
            config.user(user);
        }
        if let Some(password) = &options.password {
            config.password(password);
        }
        if config.get_user().is_none() {
            return Err(fatal(format!("a PostgreSQL URL without a user: write {FORMS}")));
        }
        if config.get_application_name().is_none() {
            config.application_name("rendez");
        }
        config.ssl_mode(if tls { SslMode::Require } else { SslMode::Disable });
        config.connect_timeout(options.connect_timeout);
        config.tcp_user_timeout(options.operation_timeout.max(KEEPALIVES_IDLE));
        config.keepalives(true).keepalives_idle(KEEPALIVES_IDLE);
        config.keepalives_interval(KEEPALIVES_INTERVAL).keepalives_retries(KEEPALIVES_RETRIES);
        if config.get_hosts().len().max(config.get_hostaddrs().len()) > 1 {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        if !pooled {
            // A pooler would refuse them, or give them to the connection of somebody else.
            let limit = millis(options.operation_timeout);
            let own = format!(
                "-c statement_timeout={limit} -c idle_in_transaction_session_timeout={limit} \
                 -c default_transaction_isolation=read\\ committed"
            );
            let all = config.get_options().map_or(own.clone(), |theirs| format!("{theirs} {own}"));
            config.options(all);
        }
        let name = name(&config);
        Ok(Self { config, tls, name })
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).clamp(1, i32::MAX as u64)
}

/// The URL without the parameter that this crate reads itself, and that.
fn without_sslmode(url: &str) -> (String, Option<String>) {
    let Some((base, query)) = url.split_once('?') else { return (url.to_owned(), None) };
    let (mode, rest): (Vec<&str>, Vec<&str>) = query.split('&').partition(|part| part.starts_with("sslmode="));
    let mode = mode.last().and_then(|part| part.split_once('=')).map(|(_, mode)| mode.to_owned());
    (if rest.is_empty() { base.to_owned() } else { format!("{base}?{}", rest.join("&")) }, mode)
}

/// The servers' names, for messages; without user and password.
fn name(config: &Config) -> String {
    let ports = config.get_ports();
    let port = |at: usize| ports.get(at).or(ports.first()).copied().unwrap_or(5432);
    let hosts = config.get_hosts().iter().enumerate().map(|(at, host)| match host {
        Host::Tcp(host) => format!("{host}:{}", port(at)),
        #[cfg(unix)]
        Host::Unix(path) => format!("{}:{}", path.display(), port(at)),
    });
    let database = config.get_dbname().or(config.get_user()).unwrap_or_default();
    format!("{}/{database}", hosts.collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Endpoint, StoreError> {
        Endpoint::parse(url, &PostgresOptions::default(), false)
    }

    #[test]
    fn urls_say_where_and_whether_with_tls_and_never_tell_the_password() {
        let one = parse("postgres://u:secret@h:5433/db?application_name=x").unwrap();
        assert_eq!((one.name.as_str(), one.tls), ("h:5433/db", false));
        assert_eq!(one.config.get_application_name(), Some("x"));
        assert_eq!(one.config.get_target_session_attrs(), TargetSessionAttrs::Any);
        let two = parse("postgresql://u@a,b:5433/db?sslmode=verify-full&connect_timeout=1").unwrap();
        assert_eq!((two.name.as_str(), two.tls), ("a:5432,b:5433/db", true));
        assert_eq!(two.config.get_target_session_attrs(), TargetSessionAttrs::ReadWrite);
        for url in [
            "redis://u:secret@h",
            "secret",
            "postgres://u:secret@h:x/db",
            "postgres://h/db",
            "postgres://u:secret@h/db?secret=1",
            "postgres://u:secret@h/db?sslmode=prefer",
        ] {
            let error = parse(url).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Fatal, "{url}");
            assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
        }
    }

    #[test]
    fn nothing_is_sent_with_the_login_through_a_pooler() {
        let pooled = Endpoint::parse("postgres://u@h/db", &PostgresOptions::default(), true).unwrap();
        assert_eq!(pooled.config.get_options(), None);
        let direct = parse("postgres://u@h/db?options=-c%20work_mem%3D4MB").unwrap();
        let options = direct.config.get_options().unwrap();
        assert!(options.starts_with("-c work_mem=4MB -c statement_timeout=500 "), "{options}");
    }

    #[test]
    fn every_option_can_be_set_from_text_and_no_value_is_repeated() {
        let mut options = PostgresOptions::default();
        let pem = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(pem.path(), "pem").unwrap();
        let path = pem.path().to_str().unwrap();
        for key in KEYS.split(", ") {
            let value = match key {
                "migrate" | "pooled" => "true",
                "connections_max" => "7",
                "standbys" => "synchronous",
                key if key.ends_with("_file") => path,
                key if key.ends_with("timeout") || key == "replica_lag_max" => "250ms",
                _ => "text",
            };
            options.set(key, value).unwrap_or_else(|error| panic!("{key}: {error}"));
        }
        assert_eq!(options.connect_timeout, Duration::from_millis(250));
        assert_eq!((options.connections_max, options.standbys), (7, Standbys::Synchronous));
        assert_eq!(options.tls.as_ref().unwrap().client, Some((b"pem".to_vec(), b"pem".to_vec())));
        options.check().unwrap();
        for (key, value) in [
            ("nothing", "hush"),
            ("migrate", "hush"),
            ("operation_timeout", "hush"),
            ("operation_timeout", "-1s"),
            ("connections_max", "hush"),
            ("standbys", "hush"),
            ("tls_key_file", "/hush"),
        ] {
            let error = options.set(key, value).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Fatal);
            assert!(error.message().contains(key) && !error.message().contains("hush"), "{error}");
        }
        assert!(options.set("x", "").unwrap_err().message().contains("replica_lag_max"));
        assert!(!format!("{options:?}").contains("text\", password"), "{options:?}");
    }

    #[test]
    fn options_that_cannot_work_are_refused() {
        let wrong: [fn(&mut PostgresOptions); 4] = [
            |options| options.operation_timeout = Duration::ZERO,
            |options| options.connect_timeout = Duration::ZERO,
            |options| options.connections_max = 0,
            |options| options.tls = Some(TlsFiles { client: Some((vec![1], vec![])), ..TlsFiles::default() }),
        ];
        for change in wrong {
            let mut options = PostgresOptions::default();
            change(&mut options);
            assert_eq!(options.check().unwrap_err().kind(), ErrorKind::Fatal);
        }
    }
}
