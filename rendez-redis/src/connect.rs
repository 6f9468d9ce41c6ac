//! Connections: made when they are needed, checked, shared, and thrown away when they fail.
//!
//! Making one goes on in the background if the request that wanted it gives up, so that a slow handshake is not begun
//! again and again.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster_async::ClusterConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, InfoDict, IntoConnectionInfo, Pipeline,
    ProtocolVersion, RedisError, RedisFuture, Value,
};
use rendez_core::{ErrorKind, StoreError};

use crate::errors::{Stage, explain, timed_out};
use crate::options::{Endpoint, RedisOptions, fatal};

/// A connection that requests share.
#[derive(Clone)]
pub(crate) enum Link {
    Server(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl ConnectionLike for Link {
    fn req_packed_command<'a>(&'a mut self, command: &'a redis::Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Server(connection) => connection.req_packed_command(command),
            Self::Cluster(connection) => connection.req_packed_command(command),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Server(connection) => connection.req_packed_commands(pipeline, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Server(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}

struct Current {
    epoch: u64,
    link: Option<Link>,
}

struct Failure {
    at: Instant,
    kind: ErrorKind,
    message: String,
}

/// Makes and keeps the connection.
pub(crate) struct Connector {
    endpoint: Endpoint,
    pub(crate) options: RedisOptions,
    pub(crate) name: String,
    current: Mutex<Current>,
    making: tokio::sync::Mutex<Option<Failure>>,
}

impl Connector {
    pub(crate) fn new(endpoint: Endpoint, options: RedisOptions) -> Arc<Self> {
        let name = endpoint.name();
        Arc::new(Self {
            endpoint,
            options,
            name,
            current: Mutex::new(Current { epoch: 0, link: None }),
            making: tokio::sync::Mutex::new(None),
        })
    }

    fn present(&self) -> Option<(u64, Link)> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.link.clone().map(|link| (current.epoch, link))
    }

    /// The connection, made if there is none.
    pub(crate) async fn link(self: &Arc<Self>) -> Result<(u64, Link), StoreError> {
        if let Some(present) = self.present() {
            return Ok(present);
        }
        let asked = Instant::now();
        let this = Arc::clone(self);
        let made = tokio::spawn(async move { this.make(asked).await }).await;
        made.unwrap_or_else(|error| {
            Err(StoreError::new(ErrorKind::Transient, "the making of a Redis connection ended").with_source(error))
        })
    }

    async fn make(&self, asked: Instant) -> Result<(u64, Link), StoreError> {
        let mut failure = self.making.lock().await;
        if let Some(present) = self.present() {
            return Ok(present);
        }
        // Whoever waited while another's attempt failed shares that failure.
        if let Some(failure) = failure.as_ref().filter(|failure| failure.at > asked) {
            return Err(StoreError::new(failure.kind, failure.message.clone()));
        }
        let limit = self.options.connect_timeout;
        let made = tokio::time::timeout(limit, self.connect()).await;
        match made.unwrap_or_else(|_| Err(timed_out(Stage::Connecting, &self.name, limit))) {
            Ok(link) => {
                *failure = None;
                let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
                current.epoch += 1;
                current.link = Some(link.clone());
                Ok((current.epoch, link))
            }
            Err(error) => {
                *failure =
                    Some(Failure { at: Instant::now(), kind: error.kind(), message: error.message().to_owned() });
                Err(error)
            }
        }
    }

    /// Throws a connection away, unless another has taken its place.
    pub(crate) fn discard(&self, epoch: u64) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.epoch == epoch {
            current.link = None;
        }
    }

    async fn connect(&self) -> Result<Link, StoreError> {
        match &self.endpoint {
            Endpoint::Single(info) => Ok(Link::Server(self.server(info.clone()).await?)),
            Endpoint::Sentinel { .. } | Endpoint::Cluster(_) => Err(fatal("not yet")),
        }
    }

    /// Connects to one server and looks whether it fits.
    async fn server(&self, info: ConnectionInfo) -> Result<MultiplexedConnection, StoreError> {
        let name = info.addr().to_string();
        let client = self.client(info)?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.options.connect_timeout))
            .set_response_timeout(Some(self.options.connect_timeout));
        let connection = client.get_multiplexed_async_connection_with_config(&config).await;
        let mut connection = connection.map_err(|error| self.unfit(error, &name))?;
        fitness(&mut connection, &name).await?;
        // From here on every request brings its own limit.
        connection.set_response_timeout(Duration::from_secs(3600));
        Ok(connection)
    }

    fn unfit(&self, error: RedisError, name: &str) -> StoreError {
        explain(error, Stage::Connecting, name).0
    }

    /// A client with the options' certificates.
    fn client(&self, info: ConnectionInfo) -> Result<Client, StoreError> {
        let name = info.addr().to_string();
        if let ConnectionAddr::TcpTls { .. } = info.addr() {
            return tls::client(info, &self.options, &name);
        }
        Client::open(info).map_err(|error| self.unfit(error, &name))
    }

    /// A connection of its own that hears a channel.
    pub(crate) async fn subscribe(&self, channel: &str) -> Result<redis::aio::PubSubStream, StoreError> {
        let Endpoint::Single(info) = &self.endpoint else { return Err(fatal("not yet")) };
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP2);
        let info = info.clone().set_redis_settings(settings);
        let name = info.addr().to_string();
        let client = self.client(info)?;
        let limit = self.options.connect_timeout;
        let subscribed = tokio::time::timeout(limit, async {
            let mut connection = client.get_async_pubsub().await?;
            connection.subscribe(channel).await?;
            Ok(connection.into_on_message())
        });
        match subscribed.await {
            Ok(result) => result.map_err(|error| self.unfit(error, &name)),
            Err(_) => Err(timed_out(Stage::Connecting, &name, limit)),
        }
    }
}

/// The oldest version with all that the scripts use.
const VERSION_MIN: (u32, u32) = (6, 2);

/// Whether a server can hold leases: its version, its role, and that it does not evict them.
async fn fitness(connection: &mut impl ConnectionLike, name: &str) -> Result<(), StoreError> {
    let mut info = InfoDict::new("");
    let mut forbidden = false;
    let mut text = String::new();
    for section in ["server", "memory", "replication"] {
        match redis::cmd("INFO").arg(section).query_async::<String>(connection).await {
            Ok(part) => text.push_str(&part),
            Err(error) if error.code() == Some("NOPERM") => forbidden = true,
            Err(error) => return Err(explain(error, Stage::Connecting, name).0),
        }
    }
    if forbidden {
        tracing::warn!(
            server = name,
            "the user may not run INFO: version, eviction policy and role are not checked, and a failover is not \
             noticed by the server's replication id"
        );
        return Ok(());
    }
    info = { let _ = info; InfoDict::new(&text) };
    let version: Option<String> = info.get("redis_version");
    let Some(version) = version else {
        return Err(fatal(format!("the server at {name} names no redis_version: Redis 6.2 or newer is wanted")));
    };
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let number = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if number < VERSION_MIN {
        return Err(fatal(format!("Redis at {name} is version {version}: 6.2 or newer is wanted")));
    }
    match info.get::<String>("maxmemory_policy").as_deref() {
        // Keys without a TTL are never evicted by the volatile policies, and ours have none.
        Some("noeviction") => {}
        Some(policy) if policy.starts_with("volatile-") => {}
        Some(policy) => {
            return Err(fatal(format!(
                "Redis at {name} has maxmemory-policy {policy} and may evict leases: set it to noeviction"
            )));
        }
        None => tracing::warn!(server = name, "the server does not tell its maxmemory-policy: it must be noeviction"),
    }
    match info.get::<String>("role").as_deref() {
        Some("master") | None => Ok(()),
        Some(role) => Err(StoreError::new(
            ErrorKind::Transient,
            format!("Redis at {name} is a {role}, not the primary: connect to the primary, or through Sentinel"),
        )),
    }
}

#[cfg(feature = "tls")]
mod tls {
    use redis::{ClientTlsConfig, TlsCertificates};

    use super::{Client, ConnectionInfo, RedisOptions, StoreError, fatal};

    pub(super) fn client(info: ConnectionInfo, options: &RedisOptions, name: &str) -> Result<Client, StoreError> {
        // Fails if the program has chosen a provider: then that one is used.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let certificates = certificates(options);
        let built = match certificates {
            Some(certificates) => Client::build_with_tls(info, certificates),
            None => Client::open(info),
        };
        built.map_err(|error| fatal(format!("the certificates for Redis at {name} cannot be used: {error}")))
    }

    pub(super) fn certificates(options: &RedisOptions) -> Option<TlsCertificates> {
        options.tls.as_ref().map(|files| TlsCertificates {
            client_tls: files
                .client
                .clone()
                .map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key }),
            root_cert: files.authorities.clone(),
        })
    }
}

#[cfg(not(feature = "tls"))]
mod tls {
    use super::{Client, ConnectionInfo, RedisOptions, StoreError, fatal};

    pub(super) fn client(_: ConnectionInfo, _: &RedisOptions, name: &str) -> Result<Client, StoreError> {
        Err(fatal(format!("Redis at {name} wants TLS: build rendez-redis with the feature `tls`")))
    }
}
