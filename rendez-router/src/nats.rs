//! Requests over NATS: a subject for each shard, `PREFIX.SHARD`, and for each node that is asked by name, `PREFIX.node.NODE`.
//!
//! What an envelope says beside its message travels in headers: `x-rendez-type`, `x-rendez-ttl` (milliseconds that are left
//! when it is sent), `x-rendez-shard` where the subject does not say it, `x-rendez-key` and `x-rendez-idempotency-key`. An answer is the message's payload; an error is the header `x-rendez-error`, as JSON.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::client::{RequestError as NatsError, RequestErrorKind};
use async_nats::{HeaderMap, HeaderName, HeaderValue, Message, Request, Subject, Subscriber};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::error::Part;
use crate::serve::{Bounds, Places, millis};
use crate::transport::{Address, ClientTransport, Running, ServerTransport, Subscription};
use crate::{DEFAULT_TTL, Envelope, Handler, RequestError};

const TYPE: &str = "x-rendez-type";
const TTL: &str = "x-rendez-ttl";
const KEY: &str = "x-rendez-key";
const IDEMPOTENCY_KEY: &str = "x-rendez-idempotency-key";
const SHARD: &str = "x-rendez-shard";
const ERROR: &str = "x-rendez-error";

/// The header of a message that is for nobody.
const FILLER: &str = "x-rendez-filler";

/// A subscription ends after so many more messages, on the server and here alike: what the server has sent already is
/// among them. Ending it at once would lose that, for the client does not wait for it. Those that nobody sends are sent here;
/// of several nodes that serve the shard each gets some.
const FILLERS: u64 = 64;

/// After this more are sent, should others have got them; after twice that again, and so on.
const FILL_AGAIN: Duration = Duration::from_millis(50);

/// Without a connection they do not come.
const ENDING_MAX: Duration = Duration::from_secs(3);

/// Of several nodes that serve a shard, NATS gives a request to one.
const QUEUE: &str = "rendez";

/// Carries requests over NATS, through your own client. Clones are the same one.
///
/// ```no_run
/// # async fn start() -> Result<(), Box<dyn std::error::Error>> {
/// use rendez_router::{Client, NatsTransport, async_nats};
///
/// let nats = async_nats::connect("nats://localhost").await?;
/// let transport = NatsTransport::new(nats, "users")?;
/// let client = Client::builder(transport, 256).build()?;
/// # Ok(())
/// # }
/// ```
///
/// - Nobody there is said at once: NATS knows whether anybody listens.
/// - A request waits for its answer as long as its time to live, [`DEFAULT_TTL`] if it has none; then it is
///   [`RequestError::NoReply`], and the handler may have run. Dropping the request's future does not stop a handler.
/// - The time to live counts from the moment a node receives it: what a message waits on its way, or in a client that is
///   connecting anew, is not counted.
/// - An answer that NATS would refuse, because it is larger than `max_payload`, reaches the caller as an error.
///
/// Rights that are needed: nodes subscribe to `PREFIX.>` and publish to `_INBOX.>` and `PREFIX.>`; clients publish to `PREFIX.>` and subscribe to `_INBOX.>`.
#[derive(Clone)]
pub struct NatsTransport(Arc<Shared>);

/// A [`NatsTransport`] before it is made.
#[derive(Debug, Clone)]
#[must_use = "nothing is made before `build`"]
pub struct NatsTransportBuilder {
    client: async_nats::Client,
    prefix: String,
    bounds: Bounds,
}

/// Why a transport over NATS cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NatsTransportError {
    /// The prefix is no subject.
    #[error(
        "the prefix {prefix:?} is no subject of NATS: use words joined by dots, without spaces, control characters, `*` \
         and `>`"
    )]
    Prefix {
        /// What was given.
        prefix: String,
    },
}

struct Shared {
    client: async_nats::Client,
    prefix: String,
    places: Places,
    closed: AtomicBool,
    /// Ends all subscriptions.
    end: CancellationToken,
    /// What this process serves.
    serving: Running,
    /// What it waits for.
    asking: Running,
}

impl NatsTransport {
    /// With the default bounds. Services that share a NATS have prefixes of their own.
    ///
    /// # Errors
    /// [`NatsTransportError`].
    pub fn new(client: async_nats::Client, prefix: impl Into<String>) -> Result<Self, NatsTransportError> {
        Self::builder(client, prefix).build()
    }

    /// With other bounds.
    pub fn builder(client: async_nats::Client, prefix: impl Into<String>) -> NatsTransportBuilder {
        NatsTransportBuilder { client, prefix: prefix.into(), bounds: Bounds::default() }
    }
}

impl NatsTransportBuilder {
    /// So many handlers run at once in this process, at least 1; [`HANDLERS_DEFAULT`](crate::HANDLERS_DEFAULT) unless set.
    pub fn max_concurrent_handlers(mut self, handlers: usize) -> Self {
        self.bounds.handlers = handlers;
        self
    }

    /// So many requests wait for a place in this process; [`WAITING_DEFAULT`](crate::WAITING_DEFAULT) unless set.
    pub fn max_waiting(mut self, waiting: usize) -> Self {
        self.bounds.waiting = waiting;
        self
    }

    /// So long a handler may take; [`HANDLER_TIMEOUT_DEFAULT`](crate::HANDLER_TIMEOUT_DEFAULT) unless set.
    pub fn handler_timeout(mut self, timeout: Duration) -> Self {
        self.bounds.handler_timeout = timeout;
        self
    }

    /// Makes it.
    ///
    /// # Errors
    /// [`NatsTransportError`].
    pub fn build(self) -> Result<NatsTransport, NatsTransportError> {
        let forbidden = |letter: char| letter.is_whitespace() || letter.is_control() || matches!(letter, '*' | '>');
        if self.prefix.contains(forbidden) || self.prefix.split('.').any(str::is_empty) {
            return Err(NatsTransportError::Prefix { prefix: self.prefix });
        }
        Ok(NatsTransport(Arc::new(Shared {
            client: self.client,
            prefix: self.prefix,
            places: Places::new(self.bounds),
            closed: AtomicBool::new(false),
            end: CancellationToken::new(),
            serving: Running::default(),
            asking: Running::default(),
        })))
    }
}

impl Shared {
    fn subject(&self, to: &Address) -> Subject {
        Subject::from(match to {
            Address::Shard(shard) => format!("{}.{shard}", self.prefix),
            Address::Node(node) => format!("{}.node.{}", self.prefix, token(node.as_str())),
        })
    }

    fn open(&self) -> Result<(), RequestError> {
        if self.closed.load(Ordering::SeqCst) { Err(RequestError::TransportClosed) } else { Ok(()) }
    }

    /// Answers one message, in a task of its own.
    async fn answer(&self, to: &Address, handler: &dyn Handler, message: Message) {
        let reply = message.reply.clone();
        let answer = match read(to, message) {
            Ok(envelope) => self.handle(handler, envelope).await,
            Err(error) => Err(error),
        };
        let Some(reply) = reply else {
            if let Err(error) = answer {
                tracing::warn!(?to, %error, "a notification failed");
            }
            return;
        };
        if let Err(error) = self.reply(reply, answer).await {
            tracing::warn!(?to, %error, "an answer could not be sent");
        }
    }

    /// Sends what helps a subscription to its end.
    async fn fill(&self, subject: &Subject) {
        for _ in 0..FILLERS {
            let mut headers = HeaderMap::new();
            headers.insert(HeaderName::from_static(FILLER), HeaderValue::from(""));
            // Whatever is wrong, the end comes anyway.
            let _ = self.client.publish_with_headers(subject.clone(), headers, Bytes::new()).await;
        }
    }

    async fn handle(&self, handler: &dyn Handler, envelope: Envelope) -> Result<Bytes, RequestError> {
        let _place = match self.places.free() {
            Some(place) => place,
            None => self.places.wait(envelope.expires_at()).await?,
        };
        self.places.run(handler, envelope).await
    }

    async fn reply(
        &self,
        to: Subject,
        answer: Result<Bytes, RequestError>,
    ) -> Result<(), async_nats::client::PublishError> {
        let error = match answer {
            Ok(data) => match self.client.publish(to.clone(), data).await {
                Err(error) if error.kind() == async_nats::client::PublishErrorKind::MaxPayloadExceeded => {
                    RequestError::Encode { what: Part::Reply, why: format!("it is too large: {error}") }
                }
                sent => return sent,
            },
            Err(error) => error,
        };
        let text = serde_json::to_string(&error).unwrap_or_default();
        let mut headers = HeaderMap::new();
        // JSON has no line breaks of its own, and escapes those in texts.
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.insert(ERROR, value);
        }
        self.client.publish_with_headers(to, headers, Bytes::new()).await
    }
}

#[async_trait]
impl ClientTransport for NatsTransport {
    async fn request(&self, to: &Address, envelope: Envelope) -> Result<Bytes, RequestError> {
        let _asking = self.0.asking.one();
        self.0.open()?;
        let ttl = envelope.ttl().unwrap_or(DEFAULT_TTL);
        if ttl.is_zero() {
            return Err(RequestError::EnvelopeExpired);
        }
        let headers = write(to, &envelope, ttl)?;
        let request = Request::new().headers(headers).payload(envelope.into_data()).timeout(Some(ttl));
        let message = self.0.client.send_request(self.0.subject(to), request).await;
        let message = message.map_err(|error| failed(&error, to, ttl))?;
        match message.headers.as_ref().and_then(|headers| headers.get(ERROR)) {
            None => Ok(message.payload),
            Some(error) => Err(serde_json::from_str(error.as_str())
                .unwrap_or_else(|why| RequestError::Decode { what: Part::Reply, why: why.to_string() })),
        }
    }

    /// Sends it, and does not know whether anybody listens.
    async fn notify(&self, to: &Address, envelope: Envelope) -> Result<(), RequestError> {
        let _asking = self.0.asking.one();
        self.0.open()?;
        let ttl = envelope.ttl().unwrap_or(DEFAULT_TTL);
        let (subject, headers) = (self.0.subject(to), write(to, &envelope, ttl)?);
        let sent = self.0.client.publish_with_headers(subject, headers, envelope.into_data()).await;
        sent.map_err(|error| RequestError::Encode { what: Part::Request, why: error.to_string() })
    }

    async fn close(&self) {
        self.0.closed.store(true, Ordering::SeqCst);
        self.0.end.cancel();
        self.0.serving.ended().await;
        self.0.asking.ended().await;
        // What was said last shall arrive; without a connection it does not.
        let _ = self.0.client.flush().await;
    }
}

#[async_trait]
impl ServerTransport for NatsTransport {
    async fn subscribe(&self, to: Address, handler: Arc<dyn Handler>) -> Result<Subscription, RequestError> {
        self.0.open()?;
        let subscribed = self.0.client.queue_subscribe(self.0.subject(&to), QUEUE.to_owned()).await;
        let subscriber = subscribed.map_err(|error| RequestError::Disconnected { why: error.to_string() })?;
        let (end, running) = (self.0.end.child_token(), Running::default());
        let counted = (running.one(), self.0.serving.one());
        let (shared, ended) = (self.0.clone(), end.clone());
        tokio::spawn(async move {
            receive(&shared, &to, &handler, subscriber, &ended).await;
            drop(counted);
        });
        Ok(Subscription::new(running, move || end.cancel()))
    }

    async fn close(&self) {
        ClientTransport::close(self).await;
    }
}

/// Gives what comes to the handler, until the subscription has ended, all that had come before is answered, and the answers
/// have reached the server: a connection that is dropped takes what it has not sent with it.
async fn receive(
    shared: &Arc<Shared>,
    to: &Address,
    handler: &Arc<dyn Handler>,
    mut messages: Subscriber,
    end: &CancellationToken,
) {
    let (mut received, mut ending, mut pause, answers) = (0, None, FILL_AGAIN, Running::default());
    let (subject, mut fill_at) = (shared.subject(to), Instant::now());
    loop {
        let message = tokio::select! {
            biased;
            () = end.cancelled(), if ending.is_none() => {
                ending = Some(Instant::now() + ENDING_MAX);
                if messages.unsubscribe_after(received + FILLERS).await.is_err() {
                    break;
                }
                shared.fill(&subject).await;
                fill_at = Instant::now() + pause;
                continue;
            }
            message = messages.next() => message,
            () = sleep_until(fill_at), if ending.is_some() => {
                if ending.is_some_and(|at| at <= Instant::now()) {
                    break;
                }
                shared.fill(&subject).await;
                pause *= 2;
                fill_at = Instant::now() + pause;
                continue;
            }
        };
        let Some(message) = message else { break };
        received += 1;
        if message.headers.as_ref().is_some_and(|headers| headers.get(FILLER).is_some()) {
            continue;
        }
        let counted = answers.one();
        let (shared, handler, to) = (shared.clone(), handler.clone(), to.clone());
        tokio::spawn(async move {
            shared.answer(&to, &*handler, message).await;
            drop(counted);
        });
    }
    answers.ended().await;
    // Without a connection nobody hears them.
    let _ = shared.client.flush().await;
}

/// What went wrong on the caller's side.
fn failed(error: &NatsError, to: &Address, ttl: Duration) -> RequestError {
    match error.kind() {
        RequestErrorKind::NoResponders => to.nobody(),
        RequestErrorKind::TimedOut => RequestError::NoReply { millis: millis(ttl) },
        RequestErrorKind::MaxPayloadExceeded | RequestErrorKind::InvalidSubject => {
            RequestError::Encode { what: Part::Request, why: error.to_string() }
        }
        RequestErrorKind::Other => RequestError::Disconnected { why: error.to_string() },
    }
}

/// An envelope as headers.
fn write(to: &Address, envelope: &Envelope, ttl: Duration) -> Result<HeaderMap, RequestError> {
    let mut headers = HeaderMap::new();
    let own = |text: &str| HeaderValue::from(escaped(text));
    headers.insert(HeaderName::from_static(TYPE), own(envelope.message_type()));
    headers.insert(HeaderName::from_static(TTL), HeaderValue::from(millis(ttl).max(1)));
    if let Some(key) = envelope.key() {
        headers.insert(HeaderName::from_static(KEY), own(key));
    }
    if let Some(key) = envelope.idempotency_key() {
        headers.insert(HeaderName::from_static(IDEMPOTENCY_KEY), own(key));
    }
    if !matches!(to, Address::Shard(_)) {
        headers.insert(HeaderName::from_static(SHARD), HeaderValue::from(u64::from(envelope.shard())));
    }
    for (name, value) in envelope.headers().iter() {
        let refused = |why: String| RequestError::Encode {
            what: Part::Request,
            why: format!("NATS refuses the header {name:?}: {why}"),
        };
        let value = HeaderValue::from_str(value).map_err(|why| refused(why.to_string()))?;
        headers.insert(HeaderName::from_str(name).map_err(|why| refused(why.to_string()))?, value);
    }
    Ok(headers)
}

/// An envelope from what came.
fn read(to: &Address, message: Message) -> Result<Envelope, RequestError> {
    let unreadable = |why: &str| RequestError::Decode { what: Part::Request, why: why.to_owned() };
    let headers = message.headers.unwrap_or_default();
    let own = |name: &'static str| headers.get(name).map(|value| unescaped(value.as_str()));
    let message_type = own(TYPE).ok_or_else(|| unreadable("it has no header x-rendez-type"))?;
    let ttl =
        own(TTL).and_then(|ttl| ttl.parse().ok()).ok_or_else(|| unreadable("its header x-rendez-ttl is no number"))?;
    let shard = match to {
        Address::Shard(shard) => Some(*shard),
        Address::Node(_) => own(SHARD).and_then(|shard| shard.parse().ok()),
    };
    let shard = shard.ok_or_else(|| unreadable("its header x-rendez-shard is no number"))?;
    let mut envelope = Envelope::new(shard, message_type, message.payload).with_ttl(Duration::from_millis(ttl));
    if let Some(key) = own(KEY) {
        envelope = envelope.with_key(key);
    }
    if let Some(key) = own(IDEMPOTENCY_KEY) {
        envelope = envelope.with_idempotency_key(key);
    }
    for (name, values) in headers.iter() {
        let name: &str = name.as_ref();
        if let Some(value) = values.last().filter(|_| ![TYPE, TTL, KEY, IDEMPOTENCY_KEY, SHARD].contains(&name)) {
            envelope = envelope.with_header(name.to_owned(), value.as_str().to_owned());
        }
    }
    Ok(envelope)
}

/// Keys and types may be any text, a header's value may not: control characters, spaces at its ends and `%` are escaped
/// as in a URL.
fn escaped(text: &str) -> String {
    let last = text.chars().count().saturating_sub(1);
    let mut escaped = String::with_capacity(text.len());
    for (at, letter) in text.chars().enumerate() {
        let at_end = letter == ' ' && (at == 0 || at == last);
        if letter.is_control() || letter == '%' || at_end {
            let mut bytes = [0; 4];
            for byte in letter.encode_utf8(&mut bytes).bytes() {
                escaped.push_str(&format!("%{byte:02X}"));
            }
        } else {
            escaped.push(letter);
        }
    }
    escaped
}

/// A node's id as one word of a subject: what may not stand there is escaped too.
fn token(node: &str) -> String {
    let forbidden = |letter: char| letter.is_whitespace() || matches!(letter, '.' | '*' | '>');
    let mut token = String::with_capacity(node.len());
    for letter in escaped(node).chars() {
        if forbidden(letter) {
            let mut bytes = [0; 4];
            letter.encode_utf8(&mut bytes).bytes().for_each(|byte| token.push_str(&format!("%{byte:02X}")));
        } else {
            token.push(letter);
        }
    }
    token
}

/// The other way. What is no escape stays as it is.
fn unescaped(text: &str) -> String {
    if !text.contains('%') {
        return text.to_owned();
    }
    let (bytes, mut plain, mut at) = (text.as_bytes(), Vec::with_capacity(text.len()), 0);
    while at < bytes.len() {
        let escape = bytes.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        let byte = escape.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        plain.push(byte.unwrap_or(bytes[at]));
        at += if byte.is_some() { 3 } else { 1 };
    }
    String::from_utf8(plain).unwrap_or_else(|_| text.to_owned())
}

impl fmt::Debug for NatsTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsTransport")
            .field("prefix", &self.0.prefix)
            .field("running", &self.0.places.running())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_passes_through_a_header() {
        for text in ["user-123", "", " ", " a b ", "100%", "%41", "a\r\nb", "schlüssel 🔑", "\u{7f}\u{85}", "%", "%%2"]
        {
            let header = escaped(text);
            assert!(HeaderValue::from_str(&header).is_ok() && header.trim() == header, "{header:?}");
            assert_eq!(unescaped(&header), text, "{header:?}");
        }
        assert_eq!(escaped("user-123"), "user-123");
        assert_eq!(token("a.b *>%"), "a%2Eb%20%2A%3E%25");
    }
}
