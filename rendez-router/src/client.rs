//! A client: knows which shard a key belongs to, and asks whoever serves it.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::dispatch::encode;
use crate::error::Part;
use crate::hash::{SHARDS_MAX, shard_of_key};
use crate::node::{NODE_INFO, NodeInfo};
use crate::owners::Owners;
use crate::repeat::{REPEAT_AFTER_DEFAULT, repeat};
use crate::serve::millis;
use crate::transport::{Address, ClientTransport};
use crate::{Envelope, Headers, Message, RequestError};

/// How long a request may take, unless it says otherwise.
pub const DEFAULT_TTL: Duration = Duration::from_secs(30);

/// How long a request waits for an owner, unless said otherwise.
pub const PATIENCE_DEFAULT: Duration = Duration::from_secs(2);

/// How many notifications are under way at once, unless said otherwise.
pub const NOTIFICATIONS_DEFAULT: usize = 1024;

/// How long between two tries of a request that nobody ran, without news of its owner.
const PAUSE_MIN: Duration = Duration::from_millis(2);
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// Sends requests to whoever serves the key's shard. Cheap to clone.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    transport: Arc<dyn ClientTransport>,
    shards: u32,
    seed: String,
    headers: Headers,
    ttl: Option<Duration>,
    propagate: Option<Propagate>,
    owners: Option<Arc<dyn Owners>>,
    patience: Duration,
    repeat_after: Duration,
    notifications: usize,
    /// A place for each notification that is under way.
    telling: Arc<Semaphore>,
}

type Propagate = Box<dyn Fn(&mut Headers) + Send + Sync>;

/// A [`Client`] before it is made.
#[must_use = "nothing is made before `build`"]
pub struct ClientBuilder(Inner);

/// Why a client cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// So many shards cannot be.
    #[error("{shards} shards cannot be: use 1 to {SHARDS_MAX}, and the same number for all nodes and clients")]
    Shards {
        /// So many.
        shards: u32,
    },
    /// A header for all requests is refused.
    #[error(transparent)]
    Header(RequestError),
}

impl ClientBuilder {
    /// Another way to spread keys over shards: all clients and nodes of a service use the same; empty unless set.
    pub fn seed(mut self, seed: impl Into<String>) -> Self {
        self.0.seed = seed.into();
        self
    }

    /// A header of every request.
    pub fn header(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Cow<'static, str>>) -> Self {
        self.0.headers.set(name, value);
        self
    }

    /// How long a request may take, unless it says otherwise; [`DEFAULT_TTL`] unless set. With `None` it may take as long as
    /// the transport permits.
    pub fn ttl(mut self, ttl: impl Into<Option<Duration>>) -> Self {
        self.0.ttl = ttl.into();
        self
    }

    /// Called for every request, in the task that sends it: adds headers that depend on where it comes from, such as
    /// `traceparent` of the W3C's trace context.
    pub fn propagate(mut self, headers: impl Fn(&mut Headers) + Send + Sync + 'static) -> Self {
        self.0.propagate = Some(Box::new(headers));
        self
    }

    /// Asks the node that owns the shard's slot now, in place of whoever serves a fixed shard.
    pub fn owners(self, owners: impl Owners) -> Self {
        self.shared_owners(Arc::new(owners))
    }

    /// The same, with owners that are shared with others.
    pub fn shared_owners(mut self, owners: Arc<dyn Owners>) -> Self {
        self.0.owners = Some(owners);
        self
    }

    /// How long a request waits for an owner: while a slot is handed over, or when nobody owns it; [`PATIENCE_DEFAULT`]
    /// unless set, and never longer than the request's time.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.0.patience = patience;
        self
    }

    /// After how long without an answer a request with an
    /// [idempotency key](ScopedClient::with_idempotency_key) is sent again, and after twice that once more, and so on;
    /// [`REPEAT_AFTER_DEFAULT`] unless set, at least 10 ms.
    pub fn repeat_after(mut self, time: Duration) -> Self {
        self.0.repeat_after = time;
        self
    }

    /// How many notifications are under way at once where their answers are waited for: with [`owners`](Self::owners), and
    /// with idempotency keys. More are refused ([`RequestError::Overloaded`]); [`NOTIFICATIONS_DEFAULT`] unless set.
    pub fn max_notifications(mut self, notifications: usize) -> Self {
        self.0.notifications = notifications.min(Semaphore::MAX_PERMITS);
        self.0.telling = Arc::new(Semaphore::new(self.0.notifications));
        self
    }

    /// Makes it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn build(self) -> Result<Client, ClientError> {
        let shards = self.0.shards;
        if !(1..=SHARDS_MAX).contains(&shards) {
            return Err(ClientError::Shards { shards });
        }
        let envelope = Envelope::new(0, "", Bytes::new()).with_headers(self.0.headers.clone());
        envelope.validate().map_err(ClientError::Header)?;
        Ok(Client(Arc::new(self.0)))
    }
}

/// Where a request goes.
#[derive(Debug, Clone)]
enum To {
    Key(Arc<str>),
    Shard(u32),
}

/// What one request says beside its message.
#[derive(Debug, Clone, Default)]
struct Options {
    headers: Headers,
    ttl: Option<Duration>,
    idempotency_key: Option<Arc<str>>,
}

impl Client {
    /// Begins a client of a service with this many shards.
    pub fn builder(transport: impl ClientTransport, shards: u32) -> ClientBuilder {
        ClientBuilder(Inner {
            transport: Arc::new(transport),
            shards,
            seed: String::new(),
            headers: Headers::default(),
            ttl: Some(DEFAULT_TTL),
            propagate: None,
            owners: None,
            patience: PATIENCE_DEFAULT,
            repeat_after: REPEAT_AFTER_DEFAULT,
            notifications: NOTIFICATIONS_DEFAULT,
            telling: Arc::new(Semaphore::new(NOTIFICATIONS_DEFAULT)),
        })
    }

    /// How many shards the service has.
    #[must_use]
    pub fn shards(&self) -> u32 {
        self.0.shards
    }

    /// The shard of a key.
    #[must_use]
    pub fn shard_of(&self, key: &str) -> u32 {
        shard_of_key(key, self.0.shards, &self.0.seed)
    }

    /// Requests for a key.
    #[must_use]
    pub fn key(&self, key: impl AsRef<str>) -> ScopedClient {
        ScopedClient { client: self.clone(), to: To::Key(key.as_ref().into()), options: Options::default() }
    }

    /// Requests for a shard.
    #[must_use]
    pub fn shard(&self, shard: u32) -> ScopedClient {
        ScopedClient { client: self.clone(), to: To::Shard(shard), options: Options::default() }
    }

    /// Asks whoever serves the key's shard. Dropping the future: see [`ClientTransport::request`].
    ///
    /// # Errors
    /// [`RequestError`]; whether the handler has run is in [`RequestError::ran`].
    pub async fn request_key(
        &self,
        key: &str,
        message_type: impl Into<Cow<'static, str>>,
        data: impl Into<Bytes>,
    ) -> Result<Bytes, RequestError> {
        self.request(Envelope::new(0, message_type, data).with_key(key)).await
    }

    /// Tells whoever serves the key's shard, and waits for no answer. It may be lost.
    ///
    /// With [`owners`](ClientBuilder::owners) it is tried again, in a task of its own, as a request is: it finds the owner of
    /// a slot that moves. What becomes of it then is told to `tracing`. It runs once at most.
    ///
    /// # Errors
    /// Why it could not be sent, as far as that is known here.
    pub async fn notify_key(
        &self,
        key: &str,
        message_type: impl Into<Cow<'static, str>>,
        data: impl Into<Bytes>,
    ) -> Result<(), RequestError> {
        self.notify(Envelope::new(0, message_type, data).with_key(key)).await
    }

    /// Asks whoever serves a shard. Dropping the future: see [`ClientTransport::request`].
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn request_shard(
        &self,
        shard: u32,
        message_type: impl Into<Cow<'static, str>>,
        data: impl Into<Bytes>,
    ) -> Result<Bytes, RequestError> {
        self.request(Envelope::new(shard, message_type, data)).await
    }

    /// Tells whoever serves a shard, and waits for no answer. It may be lost.
    ///
    /// # Errors
    /// Why it could not be sent, as far as that is known here.
    pub async fn notify_shard(
        &self,
        shard: u32,
        message_type: impl Into<Cow<'static, str>>,
        data: impl Into<Bytes>,
    ) -> Result<(), RequestError> {
        self.notify(Envelope::new(shard, message_type, data)).await
    }

    /// Asks with an envelope that the program has made. A key says which shard it is for; without one the envelope does.
    /// The client's headers and its time to live are added where the envelope has none. Dropping the future: see
    /// [`ClientTransport::request`].
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn request(&self, envelope: Envelope) -> Result<Bytes, RequestError> {
        let envelope = self.0.complete(envelope)?;
        self.0.request(envelope).await
    }

    /// Tells with an envelope that the program has made, and waits for no answer. It may be lost.
    ///
    /// # Errors
    /// Why it could not be sent, as far as that is known here.
    pub async fn notify(&self, envelope: Envelope) -> Result<(), RequestError> {
        let envelope = self.0.complete(envelope)?;
        self.0.notify(envelope).await
    }
}

impl Inner {
    /// With what the client says for all requests, if it may be sent.
    fn complete(&self, mut envelope: Envelope) -> Result<Envelope, RequestError> {
        let shard = match envelope.key() {
            Some("") => return Err(RequestError::KeyRequired),
            Some(key) => shard_of_key(key, self.shards, &self.seed),
            None => envelope.shard(),
        };
        if shard >= self.shards {
            return Err(RequestError::NoSuchShard { shard, shards: self.shards });
        }
        let mut headers = self.headers.clone();
        if let Some(propagate) = &self.propagate {
            propagate(&mut headers);
        }
        headers.set_all(envelope.take_headers());
        envelope = envelope.with_shard(shard).with_headers(headers);
        if let Some(ttl) = self.ttl.filter(|_| !envelope.has_ttl()) {
            envelope = envelope.with_ttl(ttl);
        }
        match envelope.validate() {
            Err(RequestError::ReservedHeader { name }) if name == NODE_INFO => Ok(envelope),
            valid => valid.map(|()| envelope),
        }
    }

    async fn request(&self, envelope: Envelope) -> Result<Bytes, RequestError> {
        if envelope.idempotency_key().is_none() {
            return self.send(envelope).await;
        }
        // In a box: others need not carry its state.
        Box::pin(repeat(|copy| self.send(copy), envelope, self.repeat_after)).await
    }

    /// Sends it, once.
    async fn send(&self, envelope: Envelope) -> Result<Bytes, RequestError> {
        match &self.owners {
            None => self.transport.request(&Address::Shard(envelope.shard()), envelope).await,
            Some(owners) => self.ask_owner(&**owners, envelope).await,
        }
    }

    /// Without owners it is sent once, and forgotten. With them it is a request whose answer nobody waits for: who reaches
    /// the wrong node hears so, and asks the right one.
    async fn notify(self: &Arc<Self>, envelope: Envelope) -> Result<(), RequestError> {
        let shard = envelope.shard();
        match &self.owners {
            None if envelope.idempotency_key().is_none() => {
                return self.transport.notify(&Address::Shard(shard), envelope).await;
            }
            None => {}
            Some(owners) if owners.owner(shard).is_some() => {}
            Some(_) => return Err(RequestError::NoOwner { shard, millis: 0 }),
        }
        let place = self.telling.clone().try_acquire_owned().map_err(|_| RequestError::Overloaded {
            what: "the client, with notifications".to_owned(),
            most: self.notifications as u64,
        })?;
        let client = self.clone();
        tokio::spawn(async move {
            let message_type = envelope.message_type().to_owned();
            if let Err(error) = client.request(envelope).await {
                tracing::warn!(shard, message_type, %error, "a notification failed");
            }
            drop(place);
        });
        Ok(())
    }

    /// Asks the owner. A node that says that it is not the owner did not run the request: then it is asked where that node
    /// points to, or, when there is news, whoever owns the slot then.
    async fn ask_owner(&self, owners: &dyn Owners, envelope: Envelope) -> Result<Bytes, RequestError> {
        let (shard, begun) = (envelope.shard(), Instant::now());
        let patient_until = envelope.expires_at().into_iter().chain(begun.checked_add(self.patience)).min();
        let mut changes = owners.changes();
        let (mut pause, mut pointed_to) = (PAUSE_MIN, None);
        loop {
            changes.borrow_and_update();
            let known = owners.owner(shard).map(|owner| owner.node);
            let pointed = pointed_to.take();
            let follows = pointed.is_some();
            let refused = match pointed.or(known) {
                None => RequestError::NoOwner { shard, millis: millis(begun.elapsed()) },
                Some(node) => match self.transport.request(&Address::Node(node.clone()), envelope.clone()).await {
                    Err(refused @ (RequestError::NotOwner { .. } | RequestError::NoSuchNode { .. })) => {
                        if let RequestError::NotOwner { holder: Some(holder), .. } = &refused
                            && !follows
                            && *holder != node
                        {
                            pointed_to = Some(holder.clone());
                            continue;
                        }
                        refused
                    }
                    answer => return answer,
                },
            };
            let now = Instant::now();
            if patient_until.is_some_and(|until| until <= now) {
                return Err(refused);
            }
            let next = patient_until.map_or(now + pause, |until| until.min(now + pause));
            // Without news it is asked anew all the same: they may be late.
            let _ = timeout_at(next, changes.changed()).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

/// Requests for one key, or one shard. Cheap to clone.
///
/// ```
/// # async fn of(client: rendez_router::Client) -> Result<(), rendez_router::RequestError> {
/// use std::time::Duration;
///
/// let tenant = client.key("tenant-123").with_ttl(Duration::from_secs(2)).with_header("user", "ada");
/// let reply = tenant.request_as("Bill", "{}").await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ScopedClient {
    client: Client,
    to: To,
    options: Options,
}

impl ScopedClient {
    /// With a header, in place of one of the client's of the same name.
    #[must_use]
    pub fn with_header(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Cow<'static, str>>) -> Self {
        self.options.headers.set(name, value);
        self
    }

    /// With so long for each request.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.options.ttl = Some(ttl);
        self
    }

    /// With a key that is the next request's own, such as a fresh random id, and **that request repeats itself**: when no
    /// answer comes for [`repeat_after`](ClientBuilder::repeat_after), when the connection breaks or when the shard leaves
    /// its node, it is sent again, until its time is over.
    ///
    /// What is guaranteed: of all copies of a request that reach one node while it has the shard, one runs; the others wait
    /// for its answer and get it, errors of the handler included, for as long as the node
    /// [remembers](crate::AnswersKept) it. This is also so for a request that the program itself sends again with the
    /// same key, or that another client sends.
    ///
    /// What is not: when the shard moves to another node, or its node ends, the memory is gone, and a copy that comes then
    /// runs again. A handler that must exclude this too keeps the key ([`Envelope::idempotency_key`]) with its own state, in the
    /// same transaction as what it does.
    ///
    /// A notification with it repeats itself in the same way, in a task of its own.
    ///
    /// The same key with another message is refused ([`RequestError::IdempotencyKeyReused`]); another message type, and
    /// the same key of another `key`, are other requests.
    ///
    /// ```
    /// # async fn of(client: rendez_router::Client) -> Result<(), rendez_router::RequestError> {
    /// let account = client.key("account-7");
    /// // A name for this payment, made before the first try and kept until it is known what became of it.
    /// let payment = account.with_idempotency_key("payment-5d1f0c");
    /// let receipt = payment.request_as("Pay", "100").await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with_idempotency_key(mut self, key: impl AsRef<str>) -> Self {
        self.options.idempotency_key = Some(key.as_ref().into());
        self
    }

    /// The shard that is asked.
    #[must_use]
    pub fn shard(&self) -> u32 {
        match &self.to {
            To::Key(key) => self.client.shard_of(key),
            To::Shard(shard) => *shard,
        }
    }

    /// Asks, and gives the answer as it is.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn request<M: Message>(&self, message: &M) -> Result<Bytes, RequestError> {
        self.request_as(M::message_type(), encode(message, Part::Request)?).await
    }

    /// Tells, and waits for no answer. It may be lost.
    ///
    /// # Errors
    /// Why it could not be sent, as far as that is known here.
    pub async fn notify<M: Message>(&self, message: &M) -> Result<(), RequestError> {
        self.notify_as(M::message_type(), encode(message, Part::Request)?).await
    }

    /// Asks with bytes under a type's name.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn request_as(
        &self,
        message_type: impl Into<Cow<'static, str>>,
        data: impl Into<Bytes>,
    ) -> Result<Bytes, RequestError> {
        self.request_envelope(Envelope::new(0, message_type, data)).await
    }

    /// Tells with bytes under a type's name, and waits for no answer. It may be lost.
    ///
    /// # Errors
    /// Why it could not be sent, as far as that is known here.
    pub async fn notify_as(
        &self,
        message_type: impl Into<Cow<'static, str>>,
        data: impl Into<Bytes>,
    ) -> Result<(), RequestError> {
        self.client.notify(self.addressed(Envelope::new(0, message_type, data))).await
    }

    /// Who serves the shard.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn node_info(&self) -> Result<NodeInfo, RequestError> {
        decode(&self.request_as(NODE_INFO, Bytes::new()).await?)
    }

    /// Requests of one type, with answers of one type.
    #[must_use]
    pub fn typed<M: Message, R: DeserializeOwned>(&self) -> TypedClient<M, R> {
        TypedClient { scoped: self.clone(), types: PhantomData }
    }

    pub(crate) async fn request_envelope(&self, envelope: Envelope) -> Result<Bytes, RequestError> {
        self.client.request(self.addressed(envelope)).await
    }

    /// An envelope for this key or shard, with what this client says where the envelope says nothing.
    fn addressed(&self, mut envelope: Envelope) -> Envelope {
        envelope = match &self.to {
            To::Key(key) => envelope.with_key(&**key),
            To::Shard(shard) => envelope.without_key().with_shard(*shard),
        };
        if !self.options.headers.is_empty() {
            let mut headers = self.options.headers.clone();
            headers.set_all(envelope.take_headers());
            envelope = envelope.with_headers(headers);
        }
        if let Some(ttl) = self.options.ttl.filter(|_| !envelope.has_ttl()) {
            envelope = envelope.with_ttl(ttl);
        }
        match &self.options.idempotency_key {
            Some(key) if envelope.idempotency_key().is_none() => envelope.with_idempotency_key(&**key),
            _ => envelope,
        }
    }
}

/// Requests of one type, with answers of one type: both JSON.
///
/// ```
/// # use rendez_router::{Client, Message, RequestError};
/// # #[derive(serde::Serialize)]
/// # struct GetUser { id: String }
/// # impl Message for GetUser {}
/// # #[derive(serde::Deserialize)]
/// # struct User { name: String }
/// # async fn of(client: Client) -> Result<(), RequestError> {
/// let users = client.key("user-123").typed::<GetUser, User>();
/// let user = users.request(&GetUser { id: "123".to_owned() }).await?;
/// println!("{}", user.name);
/// # Ok(())
/// # }
/// ```
pub struct TypedClient<M, R> {
    scoped: ScopedClient,
    types: PhantomData<fn(M) -> R>,
}

impl<M: Message, R: DeserializeOwned> TypedClient<M, R> {
    /// Asks.
    ///
    /// # Errors
    /// [`RequestError`]; [`RequestError::Decode`] of the reply if it is of another type: the handler has run.
    pub async fn request(&self, message: &M) -> Result<R, RequestError> {
        decode(&self.scoped.request(message).await?)
    }
}

impl<M, R> Clone for TypedClient<M, R> {
    fn clone(&self) -> Self {
        Self { scoped: self.scoped.clone(), types: PhantomData }
    }
}

fn decode<R: DeserializeOwned>(reply: &Bytes) -> Result<R, RequestError> {
    serde_json::from_slice(reply).map_err(|error| RequestError::Decode { what: Part::Reply, why: error.to_string() })
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("shards", &self.0.shards).field("ttl", &self.0.ttl).finish_non_exhaustive()
    }
}

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBuilder").field("shards", &self.0.shards).finish_non_exhaustive()
    }
}

impl fmt::Debug for ScopedClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScopedClient").field("to", &self.to).field("options", &self.options).finish_non_exhaustive()
    }
}

impl<M, R> fmt::Debug for TypedClient<M, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TypedClient").field(&self.scoped).finish()
    }
}
