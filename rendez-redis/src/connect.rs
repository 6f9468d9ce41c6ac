//! Connections: made when they are needed, checked, shared, and thrown away when they fail.
//!
//! Making one goes on in the background if the request that wanted it gives up, so that a slow handshake is not begun
//! again and again.

mod fitness;
mod sentinel;
#[cfg_attr(not(feature = "tls"), path = "connect/no_tls.rs")]
mod tls;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{MultipleNodeRoutingInfo, Route, RoutingInfo, SingleNodeRoutingInfo, SlotAddr};
use redis::{AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ProtocolVersion, RedisError, Value};
use rendez_core::{ErrorKind, StoreError};

use self::sentinel::Sentinels;
use crate::errors::{Stage, explain, timed_out};
use crate::options::{Endpoint, RedisOptions, fatal};

/// A connection that requests share.
#[derive(Clone)]
pub(crate) enum Link {
    Server(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Link {
    /// Sends a command; with `replicas`, waits on the same connection until that many have what it wrote. Answers how
    /// many have, if that was asked.
    pub(crate) async fn request(
        &mut self,
        key: &str,
        command: Cmd,
        replicas: Option<(u32, Duration)>,
    ) -> Result<(Value, Option<u64>), RedisError> {
        let Some((replicas, within)) = replicas else {
            let value = match self {
                Self::Server(connection) => connection.req_packed_command(&command).await?,
                Self::Cluster(connection) => connection.req_packed_command(&command).await?,
            };
            return Ok((value.extract_error()?, None));
        };
        let mut pipeline = redis::pipe();
        pipeline.add_command(command).cmd("WAIT").arg(replicas).arg(millis(within));
        let values = match self {
            Self::Server(connection) => connection.req_packed_commands(&pipeline, 0, 2).await?,
            Self::Cluster(connection) => {
                let route = SingleNodeRoutingInfo::SpecificNode(Route::with_key(key, SlotAddr::Master));
                connection.route_pipeline(pipeline, 0, 2, route).await?
            }
        };
        let mut values = values.into_iter();
        let mut next = || values.next().unwrap_or(Value::Nil).extract_error();
        let (value, have) = (next()?, next()?);
        match have {
            Value::Int(have) => Ok((value, Some(u64::try_from(have).unwrap_or(0)))),
            _ => Err((redis::ErrorKind::UnexpectedReturnType, "WAIT answered no number").into()),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1)
}

struct Current {
    epoch: u64,
    link: Option<Link>,
    /// The address that Sentinel named for it.
    addr: Option<(String, u16)>,
    checked_at: Instant,
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
    sentinels: Option<Sentinels>,
}

/// How often Sentinel is asked whether the primary is still the one, while requests are made.
const SENTINEL_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How often the cluster's client follows redirections and tries again by itself, within the operation's timeout.
const CLUSTER_RETRIES: u32 = 3;
const CLUSTER_RETRY_WAIT_MS_MAX: u64 = 100;

impl Connector {
    pub(crate) fn new(endpoint: Endpoint, options: RedisOptions) -> Arc<Self> {
        let name = endpoint.name();
        let sentinels = match &endpoint {
            Endpoint::Sentinel { sentinels, service, .. } => Some(Sentinels::new(sentinels.clone(), service.clone())),
            Endpoint::Single(_) | Endpoint::Cluster(_) => None,
        };
        let current = Current { epoch: 0, link: None, addr: None, checked_at: Instant::now() };
        Arc::new(Self {
            endpoint,
            options,
            name,
            current: Mutex::new(current),
            making: tokio::sync::Mutex::new(None),
            sentinels,
        })
    }

    fn current(&self) -> std::sync::MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn present(&self) -> Option<(u64, Link)> {
        let current = self.current();
        current.link.clone().map(|link| (current.epoch, link))
    }

    /// The connection, made if there is none.
    pub(crate) async fn link(self: &Arc<Self>) -> Result<(u64, Link), StoreError> {
        if let Some(present) = self.present() {
            self.check_primary();
            return Ok(present);
        }
        let asked = Instant::now();
        let this = Arc::clone(self);
        let made = tokio::spawn(async move { this.make(asked).await }).await;
        made.unwrap_or_else(|error| {
            Err(StoreError::new(ErrorKind::Transient, "the making of a Redis connection ended").with_source(error))
        })
    }

    /// Asks the sentinels in the background whether another server is the primary now: the old one may still answer,
    /// cut off from everybody else.
    fn check_primary(self: &Arc<Self>) {
        if self.sentinels.is_none() {
            return;
        }
        let (epoch, addr) = {
            let mut current = self.current();
            if current.checked_at.elapsed() < SENTINEL_CHECK_INTERVAL {
                return;
            }
            current.checked_at = Instant::now();
            (current.epoch, current.addr.clone())
        };
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let Some(sentinels) = &this.sentinels else { return };
            match sentinels.primary(&this).await {
                Ok(found) if Some(&found) != addr.as_ref() => {
                    tracing::info!(service = this.name, "Sentinel names another primary: reconnecting");
                    this.discard(epoch);
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(service = this.name, %error, "Sentinel did not answer"),
            }
        });
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
            Ok((link, addr)) => {
                *failure = None;
                let mut current = self.current();
                let epoch = current.epoch + 1;
                *current = Current { epoch, link: Some(link.clone()), addr, checked_at: Instant::now() };
                Ok((epoch, link))
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
        let mut current = self.current();
        if current.epoch == epoch {
            current.link = None;
        }
    }

    async fn connect(&self) -> Result<(Link, Option<(String, u16)>), StoreError> {
        match &self.endpoint {
            Endpoint::Single(info) => Ok((Link::Server(self.server(info.clone()).await?), None)),
            Endpoint::Sentinel { .. } => {
                let (info, addr) = self.primary().await?;
                Ok((Link::Server(self.server(info).await?), Some(addr)))
            }
            Endpoint::Cluster(nodes) => Ok((Link::Cluster(self.cluster(nodes).await?), None)),
        }
    }

    /// The server that the sentinels name as primary now.
    async fn primary(&self) -> Result<(ConnectionInfo, (String, u16)), StoreError> {
        let (Some(sentinels), Endpoint::Sentinel { node, sentinels: infos, .. }) = (&self.sentinels, &self.endpoint)
        else {
            return Err(fatal("no sentinels"));
        };
        let addr = sentinels.primary(self).await?;
        let tls = infos.iter().any(|info| matches!(info.addr(), ConnectionAddr::TcpTls { .. }));
        let (host, port) = addr.clone();
        let place = if tls {
            ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
        } else {
            ConnectionAddr::Tcp(host, port)
        };
        let info = redis::IntoConnectionInfo::into_connection_info(place);
        let info = info.map_err(|error| self.unfit(error, &self.name))?;
        Ok((info.set_redis_settings(node.clone()), addr))
    }

    /// Connects to one server and looks whether it fits.
    async fn server(&self, info: ConnectionInfo) -> Result<MultiplexedConnection, StoreError> {
        let name = info.addr().to_string();
        let mut connection = self.open(info).await.map_err(|error| self.unfit(error, &name))?;
        let mut text = String::new();
        for section in fitness::SECTIONS {
            match redis::cmd("INFO").arg(section).query_async::<String>(&mut connection).await {
                Ok(part) => text.push_str(&part),
                Err(error) if error.code() == Some("NOPERM") => {
                    fitness::warn_unknown(&name);
                    return Ok(connection);
                }
                Err(error) => return Err(self.unfit(error, &name)),
            }
        }
        fitness::check(&text, &name)?;
        Ok(connection)
    }

    /// Opens a connection on which requests bring their own limits.
    async fn open(&self, info: ConnectionInfo) -> Result<MultiplexedConnection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.options.connect_timeout))
            .set_response_timeout(None);
        let client = tls::client(info, &self.options)?;
        client.get_multiplexed_async_connection_with_config(&config).await
    }

    /// Connects to a Redis Cluster and looks whether all its primaries fit.
    async fn cluster(&self, nodes: &[ConnectionInfo]) -> Result<ClusterConnection, StoreError> {
        let builder = redis::cluster::ClusterClientBuilder::new(nodes.to_vec())
            .connection_timeout(self.options.connect_timeout)
            .response_timeout(self.options.operation_timeout)
            .overall_response_timeout(None)
            .retries(CLUSTER_RETRIES)
            .max_retry_wait(CLUSTER_RETRY_WAIT_MS_MAX);
        let unfit = |error| self.unfit(error, &self.name);
        let client = tls::cluster(builder, nodes, &self.options).build().map_err(unfit)?;
        let mut connection = client.get_async_connection().await.map_err(unfit)?;
        let mut texts = std::collections::BTreeMap::<String, String>::new();
        for section in fitness::SECTIONS {
            let mut command = redis::cmd("INFO");
            command.arg(section);
            let route = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
            let answer = connection.route_command(command, route).await.and_then(Value::extract_error);
            let answers = match answer {
                Ok(answers) => redis::from_redis_value::<Vec<(String, String)>>(answers),
                Err(error) if error.code() == Some("NOPERM") => {
                    fitness::warn_unknown(&self.name);
                    return Ok(connection);
                }
                Err(error) => return Err(unfit(error)),
            };
            for (server, part) in answers.map_err(|error| unfit(error.into()))? {
                texts.entry(server).or_default().push_str(&part);
            }
        }
        for (server, text) in texts {
            fitness::check(&text, &server)?;
        }
        Ok(connection)
    }

    fn unfit(&self, error: RedisError, name: &str) -> StoreError {
        explain(error, Stage::Connecting, name).0
    }

    /// A connection of its own that hears a channel.
    pub(crate) async fn subscribe(&self, channel: &str) -> Result<redis::aio::PubSubStream, StoreError> {
        let limit = self.options.connect_timeout;
        let subscribed = tokio::time::timeout(limit, async {
            match &self.endpoint {
                Endpoint::Single(info) => self.subscribe_at(info.clone(), channel).await,
                Endpoint::Sentinel { .. } => self.subscribe_at(self.primary().await?.0, channel).await,
                // In a cluster every server hears what is published at any.
                Endpoint::Cluster(nodes) => {
                    let mut last = fatal("a cluster without servers");
                    for node in nodes {
                        let within = limit / u32::try_from(nodes.len()).unwrap_or(u32::MAX);
                        match tokio::time::timeout(within, self.subscribe_at(node.clone(), channel)).await {
                            Ok(Ok(messages)) => return Ok(messages),
                            Ok(Err(error)) => last = error,
                            Err(_) => last = timed_out(Stage::Connecting, &node.addr().to_string(), within),
                        }
                    }
                    Err(last)
                }
            }
        });
        subscribed.await.unwrap_or_else(|_| Err(timed_out(Stage::Connecting, &self.name, limit)))
    }

    async fn subscribe_at(&self, info: ConnectionInfo, channel: &str) -> Result<redis::aio::PubSubStream, StoreError> {
        let name = info.addr().to_string();
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP2);
        let made = async {
            let client: Client = tls::client(info.set_redis_settings(settings), &self.options)?;
            let mut connection = client.get_async_pubsub().await?;
            connection.subscribe(channel).await?;
            Ok(connection.into_on_message())
        };
        made.await.map_err(|error| self.unfit(error, &name))
    }
}
