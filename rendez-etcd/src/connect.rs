//! Connections: to one member at a time, made when they are needed, checked, shared, and left for the next member when
//! they fail. Making one goes on in the background if the request that wanted it gives up.

mod fitness;
#[cfg_attr(not(feature = "tls"), path = "connect/no_tls.rs")]
mod tls;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use etcd_client::{Client, ConnectOptions, KvClient, LeaseClient, WatchClient};
use rendez_core::{ErrorKind, StoreError};

use crate::errors::{Stage, explain, timed_out};
use crate::options::{Address, EtcdOptions};

/// The largest answer that is taken: a page of a load, or what a watch tells at once.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// etcd drops clients that ping more often than every five seconds.
const PING_INTERVAL: Duration = Duration::from_secs(6);
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// A connection that requests share.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) kv: KvClient,
    pub(crate) lease: LeaseClient,
    pub(crate) watch: WatchClient,
    /// It changes with every new connection.
    pub(crate) epoch: u64,
}

impl Link {
    fn new(client: &Client, epoch: u64) -> Self {
        Self {
            kv: client.kv_client().max_decoding_message_size(MESSAGE_BYTES_MAX),
            lease: client.lease_client(),
            watch: client.watch_client().max_decoding_message_size(MESSAGE_BYTES_MAX),
            epoch,
        }
    }
}

enum Source {
    Members(Address),
    /// The user's own client finds its members by itself.
    Given(Box<Client>),
}

struct Current {
    epoch: u64,
    link: Option<Link>,
    /// The member that is tried first.
    member: usize,
}

struct Failure {
    at: Instant,
    kind: ErrorKind,
    message: String,
}

/// Makes and keeps the connection.
pub(crate) struct Connector {
    source: Source,
    pub(crate) options: EtcdOptions,
    pub(crate) name: String,
    current: Mutex<Current>,
    making: tokio::sync::Mutex<Option<Failure>>,
}

impl Connector {
    pub(crate) fn to_members(address: Address, options: EtcdOptions) -> Arc<Self> {
        let name = address.endpoints.join(",");
        // Handles that start together do not all crowd the first member.
        let member = fastrand::usize(..address.endpoints.len().max(1));
        Self::new(Source::Members(address), options, name, member)
    }

    pub(crate) fn given(client: Client, options: EtcdOptions) -> Arc<Self> {
        Self::new(Source::Given(Box::new(client)), options, "the given client's address".to_owned(), 0)
    }

    fn new(source: Source, options: EtcdOptions, name: String, member: usize) -> Arc<Self> {
        let current = Mutex::new(Current { epoch: 0, link: None, member });
        Arc::new(Self { source, options, name, current, making: tokio::sync::Mutex::new(None) })
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn present(&self) -> Option<Link> {
        self.current().link.clone()
    }

    /// The connection, made if there is none.
    pub(crate) async fn link(self: &Arc<Self>) -> Result<Link, StoreError> {
        if let Some(present) = self.present() {
            return Ok(present);
        }
        let asked = Instant::now();
        let this = Arc::clone(self);
        let made = tokio::spawn(async move { this.make(asked).await }).await;
        made.unwrap_or_else(|error| {
            Err(StoreError::new(ErrorKind::Transient, "the making of an etcd connection ended").with_source(error))
        })
    }

    /// Throws a connection away, unless another has taken its place; the next one goes to the next member.
    pub(crate) fn discard(&self, epoch: u64) {
        let mut current = self.current();
        if current.epoch == epoch && current.link.take().is_some() {
            current.member += 1;
        }
    }

    async fn make(&self, asked: Instant) -> Result<Link, StoreError> {
        let mut failure = self.making.lock().await;
        if let Some(present) = self.present() {
            return Ok(present);
        }
        // Whoever waited while another's attempt failed shares that failure.
        if let Some(failure) = failure.as_ref().filter(|failure| failure.at > asked) {
            return Err(StoreError::new(failure.kind, failure.message.clone()));
        }
        match self.connect().await {
            Ok(client) => {
                *failure = None;
                let mut current = self.current();
                current.epoch += 1;
                let link = Link::new(&client, current.epoch);
                current.link = Some(link.clone());
                Ok(link)
            }
            Err(error) => {
                *failure =
                    Some(Failure { at: Instant::now(), kind: error.kind(), message: error.message().to_owned() });
                Err(error)
            }
        }
    }

    /// Tries the members in turn. One that is unreachable must not hide one that answers, and what is wrong for good
    /// is said rather than what may pass.
    async fn connect(&self) -> Result<Client, StoreError> {
        let limit = self.options.connect_timeout;
        let address = match &self.source {
            Source::Members(address) => address,
            Source::Given(client) => {
                let looked = tokio::time::timeout(limit, self.look_at(client, &self.name)).await;
                return looked.unwrap_or_else(|_| Err(timed_out(Stage::Connecting, &self.name, limit)));
            }
        };
        let count = address.endpoints.len();
        let first = self.current().member;
        let each = limit / u32::try_from(count).unwrap_or(u32::MAX);
        let mut worst: Option<StoreError> = None;
        for turn in 0..count {
            let member = (first + turn) % count;
            let endpoint = &address.endpoints[member];
            let made = tokio::time::timeout(each, self.member(address, endpoint)).await;
            match made.unwrap_or_else(|_| Err(timed_out(Stage::Connecting, endpoint, each))) {
                Ok(client) => {
                    self.current().member = member;
                    return Ok(client);
                }
                Err(error) => {
                    if worst.as_ref().is_none_or(|worst| worst.kind() != ErrorKind::Fatal) {
                        worst = Some(error);
                    }
                }
            }
        }
        Err(worst.unwrap_or_else(|| timed_out(Stage::Connecting, &self.name, limit)))
    }

    async fn member(&self, address: &Address, endpoint: &str) -> Result<Client, StoreError> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(self.options.connect_timeout)
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        let login = match (&self.options.username, &self.options.password) {
            (Some(user), password) => Some((user.clone(), password.clone().unwrap_or_default())),
            (None, _) => address.login.clone(),
        };
        if let Some((user, password)) = login {
            options = options.with_user(user, password);
        }
        if address.tls {
            options = tls::secure(options, &self.options)?;
        }
        let scheme = if address.tls { "https" } else { "http" };
        let client = Client::connect([format!("{scheme}://{endpoint}")], Some(options)).await;
        let client = client.map_err(|error| explain(error, Stage::Connecting, endpoint))?;
        self.look_at(&client, endpoint).await
    }

    /// Looks whether a server fits.
    async fn look_at(&self, client: &Client, server: &str) -> Result<Client, StoreError> {
        let mut maintenance = client.maintenance_client();
        match maintenance.status().await {
            Ok(status) => fitness::check(status.version(), status.errors(), server)?,
            Err(error) => {
                let error = explain(error, Stage::Connecting, server);
                // Newer servers answer this to administrators only.
                if !error.message().contains("permission denied") {
                    return Err(error);
                }
                tracing::warn!(server, "the user may not ask for etcd's version: it cannot be checked");
            }
        }
        Ok(client.clone())
    }
}
