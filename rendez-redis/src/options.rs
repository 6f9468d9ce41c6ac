//! Where the servers are and how to speak to them. Nothing here opens a connection.

use std::fmt;
use std::time::Duration;

use redis::{ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo};
use rendez_core::{ErrorKind, StoreError, TlsFiles};

/// How to speak to Redis. The defaults suit one server, or a primary with replicas and no acknowledgement.
#[derive(Clone)]
#[non_exhaustive]
pub struct RedisOptions {
    /// What all keys begin with; default `rendez`.
    pub prefix: String,
    /// How long a request may take before its outcome counts as unknown; default 500 ms.
    pub operation_timeout: Duration,
    /// How long a connection may take to be made, logged in and checked; default 2 s.
    pub connect_timeout: Duration,
    /// How far replicas may lag behind, with the time that an isolated primary still answers (`min-replicas-max-lag`
    /// plus one second): a part of the quiet time after a loss of data; default 3 s.
    pub replica_lag_max: Duration,
    /// How many replicas must have a write before it counts as done; default none.
    pub min_replicas: u32,
    /// How long to wait for them; after that the outcome is unknown. Must be below `operation_timeout`; half of that
    /// unless set.
    pub acknowledge_timeout: Option<Duration>,
    /// User and password, where they shall not stand in the URL. They win over the URL's.
    pub username: Option<String>,
    /// See `username`.
    pub password: Option<String>,
    /// User and password of the sentinels, which are not those of the servers.
    pub sentinel_username: Option<String>,
    /// See `sentinel_username`.
    pub sentinel_password: Option<String>,
    /// Certificates for `rediss`; the system's authorities if absent. Checking cannot be switched off.
    pub tls: Option<TlsFiles>,
}

impl Default for RedisOptions {
    fn default() -> Self {
        Self {
            prefix: "rendez".to_owned(),
            operation_timeout: Duration::from_millis(500),
            connect_timeout: Duration::from_secs(2),
            replica_lag_max: Duration::from_secs(3),
            min_replicas: 0,
            acknowledge_timeout: None,
            username: None,
            password: None,
            sentinel_username: None,
            sentinel_password: None,
            tls: None,
        }
    }
}

impl fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisOptions")
            .field("prefix", &self.prefix)
            .field("operation_timeout", &self.operation_timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("replica_lag_max", &self.replica_lag_max)
            .field("min_replicas", &self.min_replicas)
            .field("acknowledge_timeout", &self.acknowledge_timeout)
            .field("username", &self.username)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

impl RedisOptions {
    /// Sets an option by its name, from text: what a command line or a file says. Times are written as `250ms`.
    ///
    /// # Errors
    /// [`ErrorKind::Fatal`] for a name that there is not, or a value that it cannot have. The value may be a password, so
    /// no message holds it.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), StoreError> {
        let wrong = |what: &str| fatal(format!("the option {key} of the Redis store: {what}"));
        let time = || {
            let time = value.parse::<jiff::SignedDuration>().ok().and_then(|time| Duration::try_from(time).ok());
            time.ok_or_else(|| wrong("write a time, for example 250ms"))
        };
        let file = || std::fs::read(value).map_err(|error| wrong("the file cannot be read").with_source(error));
        match key {
            "prefix" => value.clone_into(&mut self.prefix),
            "username" => self.username = Some(value.to_owned()),
            "password" => self.password = Some(value.to_owned()),
            "sentinel_username" => self.sentinel_username = Some(value.to_owned()),
            "sentinel_password" => self.sentinel_password = Some(value.to_owned()),
            "min_replicas" => self.min_replicas = value.parse().map_err(|_| wrong("write a number"))?,
            "acknowledge_timeout" => self.acknowledge_timeout = Some(time()?),
            "replica_lag_max" => self.replica_lag_max = time()?,
            "operation_timeout" => self.operation_timeout = time()?,
            "connect_timeout" => self.connect_timeout = time()?,
            "tls_authorities_file" => self.tls.get_or_insert_default().authorities = Some(file()?),
            "tls_certificate_file" => {
                self.tls.get_or_insert_default().client.get_or_insert_default().0 = file()?;
            }
            "tls_key_file" => self.tls.get_or_insert_default().client.get_or_insert_default().1 = file()?,
            _ => {
                return Err(wrong(
                    "there is no such option: use prefix, username, password, sentinel_username, sentinel_password, \
                     min_replicas, acknowledge_timeout, replica_lag_max, operation_timeout, connect_timeout, \
                     tls_authorities_file, tls_certificate_file or tls_key_file",
                ));
            }
        }
        Ok(())
    }

    pub(crate) fn acknowledge_within(&self) -> Duration {
        self.acknowledge_timeout.unwrap_or(self.operation_timeout / 2)
    }

    pub(crate) fn check(&self) -> Result<(), StoreError> {
        if self.prefix.is_empty() || self.prefix.len() > 200 {
            return Err(fatal("the prefix of Redis keys must have 1 to 200 bytes"));
        }
        if self.operation_timeout.is_zero() || self.connect_timeout.is_zero() {
            return Err(fatal("the timeouts of the Redis store must not be zero"));
        }
        let acknowledge_timeout = self.acknowledge_within();
        if self.min_replicas > 0 && acknowledge_timeout >= self.operation_timeout {
            return Err(fatal(format!(
                "acknowledge_timeout ({acknowledge_timeout:?}) must be below operation_timeout ({:?})",
                self.operation_timeout
            )));
        }
        Ok(())
    }
}

pub(crate) fn fatal(message: impl Into<String>) -> StoreError {
    StoreError::new(ErrorKind::Fatal, message)
}

/// Where the servers are.
#[derive(Clone)]
pub(crate) enum Endpoint {
    Single(ConnectionInfo),
    Sentinel { sentinels: Vec<ConnectionInfo>, service: String, node: RedisConnectionInfo },
    Cluster(Vec<ConnectionInfo>),
}

const FORMS: &str = "redis://[user:password@]host[:port][/db], rediss://… (TLS), \
                     redis-sentinel://[user:password@]host[:port],…/service[/db], redis-cluster://host[:port],…";

impl Endpoint {
    /// Reads a URL. No message of an error holds any part of it that may be secret.
    pub(crate) fn parse(url: &str, options: &RedisOptions) -> Result<Self, StoreError> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| fatal(format!("no Redis URL: write {FORMS}")))?;
        if url.contains('#') {
            return Err(fatal(
                "a Redis URL must not have a fragment (#insecure is refused: name an authority instead)",
            ));
        }
        let (plain, kind) = match scheme {
            "redis" | "rediss" => (scheme, "single"),
            "redis-sentinel" => ("redis", "sentinel"),
            "rediss-sentinel" => ("rediss", "sentinel"),
            "redis-cluster" => ("redis", "cluster"),
            "rediss-cluster" => ("rediss", "cluster"),
            _ => return Err(fatal(format!("unknown scheme of a Redis URL: write {FORMS}"))),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, hosts) = authority.rsplit_once('@').map_or(("", authority), |(login, hosts)| (login, hosts));
        let login = if login.is_empty() { String::new() } else { format!("{login}@") };
        let info = |login: &str, host: &str, path: &str| {
            if host.is_empty() {
                return Err(fatal(format!("a Redis URL without a host: write {FORMS}")));
            }
            let resp3 = match path.split_once('?') {
                Some((_, query)) if query.contains("protocol=") => "",
                Some(_) => "&protocol=resp3",
                None => "?protocol=resp3",
            };
            let one = format!("{plain}://{login}{host}/{path}{resp3}");
            // The error of the parser may hold the URL, and with it the password.
            one.as_str()
                .into_connection_info()
                .map_err(|_| fatal(format!("a Redis URL that cannot be read: write {FORMS}")))
        };
        match kind {
            "single" => Ok(Self::Single(with_login(info(&login, hosts, path)?, options))),
            "cluster" => {
                let nodes: Result<Vec<_>, _> =
                    hosts.split(',').map(|host| Ok(with_login(info(&login, host, path)?, options))).collect();
                Ok(Self::Cluster(nodes?))
            }
            _ => {
                let (path, query) = path.split_once('?').map_or((path, String::new()), |(p, q)| (p, format!("?{q}")));
                let (service, db) = path.split_once('/').unwrap_or((path, ""));
                if service.is_empty() {
                    return Err(fatal(
                        "a redis-sentinel URL without the service's name: write redis-sentinel://host/service",
                    ));
                }
                let first = hosts.split(',').next().unwrap_or_default();
                let node = with_login(info(&login, first, &format!("{db}{query}"))?, options);
                let mut sentinel_login = RedisConnectionInfo::default();
                if let Some(user) = &options.sentinel_username {
                    sentinel_login = sentinel_login.set_username(user);
                }
                if let Some(password) = &options.sentinel_password {
                    sentinel_login = sentinel_login.set_password(password);
                }
                let sentinels: Result<Vec<_>, _> = hosts
                    .split(',')
                    .map(|host| {
                        let host = if host.rsplit(']').next().is_some_and(|end| end.contains(':')) {
                            host.to_owned()
                        } else {
                            format!("{host}:26379")
                        };
                        Ok(info("", &host, "")?.set_redis_settings(sentinel_login.clone()))
                    })
                    .collect();
                Ok(Self::Sentinel {
                    sentinels: sentinels?,
                    service: service.to_owned(),
                    node: node.redis_settings().clone(),
                })
            }
        }
    }

    /// The servers' names, for messages; without user and password.
    pub(crate) fn name(&self) -> String {
        let list =
            |infos: &[ConnectionInfo]| infos.iter().map(|info| info.addr().to_string()).collect::<Vec<_>>().join(",");
        match self {
            Self::Single(info) => info.addr().to_string(),
            Self::Sentinel { sentinels, service, .. } => format!("{service} (sentinels {})", list(sentinels)),
            Self::Cluster(nodes) => format!("cluster {}", list(nodes)),
        }
    }
}

fn with_login(info: ConnectionInfo, options: &RedisOptions) -> ConnectionInfo {
    // One right less to ask for.
    let mut settings = info.redis_settings().clone().set_skip_set_lib_name();
    if let Some(user) = &options.username {
        settings = settings.set_username(user);
    }
    if let Some(password) = &options.password {
        settings = settings.set_password(password);
    }
    info.set_redis_settings(settings)
}
