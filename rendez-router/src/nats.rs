//! Requests over NATS: a subject for each shard, `PREFIX.SHARD`, and for each node that is asked by name, `PREFIX.node.NODE`.
//!
//! A request's payload is one line of text, and then the message. The line's words are the milliseconds that the request has
//! left when it is sent, its message's type, and, where there is one, `key=KEY`, `idempotency-key=KEY` and `shard=SHARD` (where
//! the subject does not say it): `30000 GetUser key=user-123`. What could not stand there is escaped as in a URL. The
//! program's own headers are headers of NATS. An answer is the message's payload; an error is the header `x-rendez-error`, as JSON.
//!
//! (A line, not headers: three of them cost a quarter of the requests a second.)

use std::fmt::{self, Write};
use std::pin::pin;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::client::{RequestError as NatsError, RequestErrorKind};
use async_nats::{HeaderMap, HeaderName, HeaderValue, Message, Request, Subject, Subscriber};
use async_trait::async_trait;
use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::error::Part;
use crate::serve::{Bounds, Places, millis};
use crate::transport::{Address, ClientTransport, Running, ServerTransport, Subscription};
use crate::{DEFAULT_TTL, Envelope, Handler, RequestError};

/// The words of the first line that have names.
const KEY: &str = "key=";
const IDEMPOTENCY_KEY: &str = "idempotency-key=";
const SHARD: &str = "shard=";

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

    /// Sends what helps a subscription to its end.
    async fn fill(&self, subject: &Subject) {
        for _ in 0..FILLERS {
            let mut headers = HeaderMap::new();
            headers.insert(HeaderName::from_static(FILLER), HeaderValue::from(""));
            // Whatever is wrong, the end comes anyway.
            let _ = self.client.publish_with_headers(subject.clone(), headers, Bytes::new()).await;
        }
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
        Box::pin(self.client.publish_with_headers(to, headers, Bytes::new())).await
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
        let (headers, payload) = write(to, &envelope, ttl)?;
        let mut request = Request::new().payload(payload).timeout(Some(ttl));
        if let Some(headers) = headers {
            request = request.headers(headers);
        }
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
        let (subject, (headers, payload)) = (self.0.subject(to), write(to, &envelope, ttl)?);
        let sent = match headers {
            Some(headers) => self.0.client.publish_with_headers(subject, headers, payload).await,
            None => self.0.client.publish(subject, payload).await,
        };
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
        let (served, ended) = (Arc::new(Served { shared: self.0.clone(), to, handler }), end.clone());
        tokio::spawn(async move {
            receive(&served, subscriber, &ended).await;
            drop(counted);
        });
        Ok(Subscription::new(running, move || end.cancel()))
    }

    async fn close(&self) {
        ClientTransport::close(self).await;
    }
}

/// An address that is served.
struct Served {
    shared: Arc<Shared>,
    to: Address,
    handler: Arc<dyn Handler>,
}

impl Served {
    /// Answers one message; for a task of its own. What is read and called at once, and what is in a box, the task need not
    /// carry: it is moved several times before it runs.
    fn answer(self: Arc<Self>, mut message: Message, counted: TaskTrackerToken) -> impl Future<Output = ()> + Send {
        let reply = message.reply.take();
        let envelope = read(&self.to, message);
        async move {
            let (_counted, places, to) = (counted, &self.shared.places, &self.to);
            let place = match (&envelope, places.free()) {
                (Ok(envelope), None) => Box::pin(places.wait(envelope.expires_at())).await,
                (Err(error), _) => Err(error.clone()),
                (Ok(_), Some(place)) => Ok(place),
            };
            let answer = match (place, envelope) {
                (Ok(_place), Ok(envelope)) => places.run(&*self.handler, envelope).await,
                (Err(error), _) | (_, Err(error)) => Err(error),
            };
            let Some(reply) = reply else {
                if let Err(error) = answer {
                    tracing::warn!(?to, %error, "a notification failed");
                }
                return;
            };
            if let Err(error) = Box::pin(self.shared.reply(reply, answer)).await {
                tracing::warn!(?to, %error, "an answer could not be sent");
            }
        }
    }
}

/// Gives what comes to the handler, until the subscription has ended, all that had come before is answered, and the answers
/// have reached the server: a connection that is dropped takes what it has not sent with it.
async fn receive(served: &Arc<Served>, mut messages: Subscriber, end: &CancellationToken) {
    let (shared, mut received, answers) = (&served.shared, 0_u64, Running::default());
    let take = |message: Message| {
        if message.headers.as_ref().is_some_and(|headers| headers.get(FILLER).is_some()) {
            return;
        }
        tokio::spawn(served.clone().answer(message, answers.one()));
    };
    // Made once: it takes a lock.
    let mut ended = pin!(end.cancelled());
    let open = loop {
        // Looking at the end takes locks: not for each of many.
        if received.is_multiple_of(FILLERS) && end.is_cancelled() {
            break true;
        }
        tokio::select! {
            biased;
            message = messages.next() => match message {
                Some(message) => {
                    received += 1;
                    take(message);
                }
                None => break false,
            },
            () = &mut ended => break true,
        }
    };
    if open && messages.unsubscribe_after(received + FILLERS).await.is_ok() {
        let (subject, begun, mut pause) = (shared.subject(&served.to), Instant::now(), FILL_AGAIN);
        shared.fill(&subject).await;
        let mut fill_at = Instant::now() + pause;
        loop {
            tokio::select! {
                biased;
                message = messages.next() => match message {
                    Some(message) => take(message),
                    None => break,
                },
                () = sleep_until(fill_at) => {
                    if begun.elapsed() >= ENDING_MAX {
                        break;
                    }
                    shared.fill(&subject).await;
                    pause *= 2;
                    fill_at = Instant::now() + pause;
                }
            }
        }
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

/// An envelope as the headers that the program gave it, if any, and a payload.
fn write(to: &Address, envelope: &Envelope, ttl: Duration) -> Result<(Option<HeaderMap>, Bytes), RequestError> {
    let words = [Some(envelope.message_type()), envelope.key(), envelope.idempotency_key()];
    let words_len: usize = words.iter().flatten().map(|word| word.len()).sum();
    // Nothing is longer, unless much is escaped.
    const REST_MAX: usize = 80;
    let mut line = String::with_capacity(words_len + REST_MAX + envelope.data().len());
    let _ = write!(line, "{} ", millis(ttl).max(1));
    escape(envelope.message_type(), &mut line);
    for (name, word) in [(KEY, envelope.key()), (IDEMPOTENCY_KEY, envelope.idempotency_key())] {
        if let Some(word) = word {
            line.push(' ');
            line.push_str(name);
            escape(word, &mut line);
        }
    }
    if !matches!(to, Address::Shard(_)) {
        let _ = write!(line, " {SHARD}{}", envelope.shard());
    }
    line.push('\n');
    let mut payload = line.into_bytes();
    payload.extend_from_slice(envelope.data());
    if envelope.headers().is_empty() {
        return Ok((None, payload.into()));
    }
    let mut headers = HeaderMap::new();
    for (name, value) in envelope.headers().iter() {
        let refused = |why: String| RequestError::Encode {
            what: Part::Request,
            why: format!("NATS refuses the header {name:?}: {why}"),
        };
        let value = HeaderValue::from_str(value).map_err(|why| refused(why.to_string()))?;
        headers.insert(HeaderName::from_str(name).map_err(|why| refused(why.to_string()))?, value);
    }
    Ok((Some(headers), payload.into()))
}

/// An envelope from what came.
fn read(to: &Address, message: Message) -> Result<Envelope, RequestError> {
    let unreadable = |why: &str| RequestError::Decode { what: Part::Request, why: why.to_owned() };
    let mut data = message.payload;
    let end = data.iter().position(|byte| *byte == b'\n').ok_or_else(|| unreadable("it has no first line"))?;
    let line = std::str::from_utf8(&data[..end]).map_err(|_| unreadable("its first line is no text"))?;
    let mut words = line.split(' ');
    let ttl = words.next().and_then(|ttl| ttl.parse().ok());
    let ttl = ttl.ok_or_else(|| unreadable("its first line does not begin with a number of milliseconds"))?;
    let message_type = words.next().map(unescaped).ok_or_else(|| unreadable("its first line says no type"))?;
    let (mut key, mut idempotency_key) = (None, None);
    let mut shard = match to {
        Address::Shard(shard) => Some(*shard),
        Address::Node(_) => None,
    };
    for word in words {
        if let Some(word) = word.strip_prefix(KEY) {
            key = Some(unescaped(word));
        } else if let Some(word) = word.strip_prefix(IDEMPOTENCY_KEY) {
            idempotency_key = Some(unescaped(word));
        } else if let Some(number) = word.strip_prefix(SHARD) {
            shard = shard.or_else(|| number.parse().ok());
        }
        // Others may be of a later version.
    }
    let shard = shard.ok_or_else(|| unreadable("its first line says no shard"))?;
    data.advance(end + 1);
    let mut envelope = Envelope::new(shard, message_type, data).with_ttl(Duration::from_millis(ttl));
    if let Some(key) = key {
        envelope = envelope.with_key(key);
    }
    if let Some(key) = idempotency_key {
        envelope = envelope.with_idempotency_key(key);
    }
    for (name, values) in message.headers.iter().flat_map(HeaderMap::iter) {
        let name: &str = name.as_ref();
        if let Some(value) = values.last() {
            envelope = envelope.with_header(name.to_owned(), value.as_str().to_owned());
        }
    }
    Ok(envelope)
}

/// Keys and types may be any text: control characters, spaces and `%` are escaped as in a URL.
fn escape(text: &str, into: &mut String) {
    if text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'%') {
        return into.push_str(text);
    }
    for letter in text.chars() {
        if letter.is_control() || letter.is_whitespace() || letter == '%' {
            let mut bytes = [0; 4];
            for byte in letter.encode_utf8(&mut bytes).bytes() {
                let _ = write!(into, "%{byte:02X}");
            }
        } else {
            into.push(letter);
        }
    }
}

/// A node's id as one word of a subject: what may not stand there is escaped too.
fn token(node: &str) -> String {
    let mut escaped = String::with_capacity(node.len());
    escape(node, &mut escaped);
    escaped.replace('.', "%2E").replace('*', "%2A").replace('>', "%3E")
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
    fn any_text_passes_through_a_line() {
        for text in
            ["user-123", "", " ", " a b ", "100%", "%41", "a\r\nb", "schlüssel 🔑", "\u{7f}\u{85}", "%", "%%2", "a=b"]
        {
            let mut word = String::new();
            escape(text, &mut word);
            assert!(!word.contains(|letter: char| letter.is_control() || letter.is_whitespace()), "{word:?}");
            assert_eq!(unescaped(&word), text, "{word:?}");
        }
        assert_eq!(token("user-123"), "user-123");
        assert_eq!(token("a.b *>%"), "a%2Eb%20%2A%3E%25");
    }

    fn came(payload: impl Into<Bytes>) -> Message {
        let (subject, payload) = (Subject::from("a"), payload.into());
        Message { subject, payload, reply: None, headers: None, status: None, description: None, length: 0 }
    }

    #[test]
    fn a_request_is_a_line_and_its_message() {
        let ttl = Duration::from_secs(30);
        let (shard, node) = (Address::Shard(3), Address::Node("node-1".parse().unwrap()));
        let plain = Envelope::new(3, "GetUser", "{}\n").with_key("user-123");
        assert_eq!(write(&shard, &plain, ttl).unwrap(), (None, "30000 GetUser key=user-123\n{}\n".into()));
        let all = Envelope::new(3, "", "").with_key("a b").with_idempotency_key("ü%");
        let payload = write(&node, &all, Duration::from_micros(1)).unwrap().1;
        assert_eq!(payload, "1  key=a%20b idempotency-key=ü%25 shard=3\n");
        let back = read(&node, came(payload)).unwrap();
        assert_eq!((back.shard(), back.message_type(), &back.data()[..]), (3, "", &b""[..]));
        assert_eq!((back.key(), back.idempotency_key()), (Some("a b"), Some("ü%")));
        assert!(back.ttl().is_some_and(|ttl| ttl <= Duration::from_millis(1)));
        let back = read(&shard, came("7 Get new=1 key=\nx\ny")).unwrap();
        assert_eq!((back.shard(), back.key(), &back.data()[..]), (3, Some(""), &b"x\ny"[..]));
        for (payload, why) in [
            (&b"7 Get"[..], "it has no first line"),
            (b"7 G\xff\n", "is no text"),
            (b"Get 7\n", "milliseconds"),
            (b"7\n", "says no type"),
            (b"7 Get\n", "says no shard"),
            (b"7 Get shard=x\n", "says no shard"),
        ] {
            let error = read(&node, came(payload)).unwrap_err();
            assert!(error.to_string().contains(why) && error.ran() == crate::Ran::No, "{error}");
        }
    }
}
