//! What travels: a message with its address, its headers and its time.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::RequestError;

/// How the names of this library's own headers and message types begin. It is refused for others.
pub const HEADER_PREFIX: &str = "x-rendez-";

/// Text that is often known when the program is compiled.
pub(crate) type Text = Cow<'static, str>;

/// A message with its address, its headers and its time.
///
/// ```
/// use std::time::Duration;
/// use rendez_router::Envelope;
///
/// let envelope = Envelope::new(3, "GetUser", "{}")
///     .with_header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
///     .with_ttl(Duration::from_secs(5));
/// assert!(envelope.validate().is_ok() && !envelope.is_expired());
/// assert!(Envelope::new(3, "GetUser", "{}").with_header("x-rendez-key", "a").validate().is_err());
/// ```
#[derive(Debug, Clone)]
pub struct Envelope {
    shard: u32,
    message_type: Text,
    data: Bytes,
    key: Option<Box<str>>,
    idempotency_key: Option<Box<str>>,
    headers: Headers,
    created_at: Instant,
    ttl: Option<Duration>,
}

impl Envelope {
    /// A message of this type for a shard; without headers, and without an end to its time.
    pub fn new(shard: u32, message_type: impl Into<Cow<'static, str>>, data: impl Into<Bytes>) -> Self {
        Self {
            shard,
            message_type: message_type.into(),
            data: data.into(),
            key: None,
            idempotency_key: None,
            headers: Headers::default(),
            created_at: Instant::now(),
            ttl: None,
        }
    }

    /// With a header, in place of one of the same name.
    #[must_use]
    pub fn with_header(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Cow<'static, str>>) -> Self {
        self.headers.set(name, value);
        self
    }

    /// With this time to live, counted from when the envelope was made.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// For this key; a client sees to it that the shard is the key's.
    #[must_use]
    pub fn with_key(mut self, key: impl Into<Box<str>>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// With a key that is this request's own: of several copies of the request that reach the same node, while it has
    /// the shard, one runs, and the others get its answer; see
    /// [`ScopedClient::with_idempotency_key`](crate::ScopedClient::with_idempotency_key).
    #[must_use]
    pub fn with_idempotency_key(mut self, key: impl Into<Box<str>>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    pub(crate) fn with_shard(mut self, shard: u32) -> Self {
        self.shard = shard;
        self
    }

    pub(crate) fn without_key(mut self) -> Self {
        self.key = None;
        self
    }

    /// Whether it has a time to live at all.
    pub(crate) fn has_ttl(&self) -> bool {
        self.ttl.is_some()
    }

    pub(crate) fn take_headers(&mut self) -> Headers {
        std::mem::take(&mut self.headers)
    }

    pub(crate) fn with_headers(mut self, headers: Headers) -> Self {
        self.headers = headers;
        self
    }

    /// The shard that it is for.
    #[must_use]
    pub fn shard(&self) -> u32 {
        self.shard
    }

    /// The type of the message.
    #[must_use]
    pub fn message_type(&self) -> &str {
        &self.message_type
    }

    /// The message.
    #[must_use]
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// The message, without the rest.
    #[must_use]
    pub fn into_data(self) -> Bytes {
        self.data
    }

    /// The key, if it was sent by key.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// The key that copies of this request share, if it has one. A handler that keeps it with what it has done can tell,
    /// also after the shard has moved, that it has done it.
    #[must_use]
    pub fn idempotency_key(&self) -> Option<&str> {
        self.idempotency_key.as_deref()
    }

    /// A header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)
    }

    /// All headers.
    #[must_use]
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// When it was made, here: a transport that crosses a network makes it anew on arrival, with the time that is left.
    #[must_use]
    pub fn created_at(&self) -> Instant {
        self.created_at
    }

    /// What is left of its time, zero if nothing; none if it has no end.
    #[must_use]
    pub fn ttl(&self) -> Option<Duration> {
        self.ttl.map(|ttl| ttl.saturating_sub(self.created_at.elapsed()))
    }

    /// When its time is over; none if it has no end, or one beyond what the clock can count.
    #[must_use]
    pub fn expires_at(&self) -> Option<Instant> {
        self.ttl.and_then(|ttl| self.created_at.checked_add(ttl))
    }

    /// Whether its time is over.
    #[must_use]
    pub fn is_expired(&self) -> bool {
        self.expires_at().is_some_and(|at| at <= Instant::now())
    }

    /// Whether it may be sent.
    ///
    /// # Errors
    /// [`RequestError::ReservedHeader`] if a header or the message type begins with [`HEADER_PREFIX`], in capitals or not.
    pub fn validate(&self) -> Result<(), RequestError> {
        let names = self.headers.iter().map(|(name, _)| name).chain([self.message_type()]);
        match names.into_iter().find(|name| is_reserved(name)) {
            Some(name) => Err(RequestError::ReservedHeader { name: name.to_owned() }),
            None => Ok(()),
        }
    }
}

/// Headers are compared as HTTP's are by those who pass them on.
fn is_reserved(name: &str) -> bool {
    name.get(..HEADER_PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(HEADER_PREFIX))
}

/// Headers: names and their values, in the order in which they were set. A name is there once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(Text, Text)>);

impl Headers {
    /// Sets a header, in place of one of the same name.
    pub fn set(&mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Cow<'static, str>>) {
        let (name, value) = (name.into(), value.into());
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, before)) => *before = value,
            None => self.0.push((name, value)),
        }
    }

    /// Sets all of another's.
    pub(crate) fn set_all(&mut self, others: Self) {
        if self.0.is_empty() {
            *self = others;
        } else {
            others.0.into_iter().for_each(|(name, value)| self.set(name, value));
        }
    }

    /// A header's value.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_names_are_found_wherever_they_stand() {
        let plain = || Envelope::new(0, "Get", "");
        assert_eq!(plain().with_header("x-rendezvous", "1").with_header("", "1").validate(), Ok(()));
        for envelope in [
            plain().with_header("x-rendez-key", "1"),
            plain().with_header("X-Rendez-Ttl", "1"),
            Envelope::new(0, "x-rendez-node-info", ""),
        ] {
            let error = envelope.validate().unwrap_err();
            assert!(matches!(error, RequestError::ReservedHeader { .. }), "{error}");
            assert!(error.to_string().contains("begins with \"x-rendez-\""), "{error}");
        }
    }

    #[test]
    fn a_name_is_there_once() {
        let mut headers = Headers::default();
        headers.set("a", "1");
        headers.set("b", "2");
        headers.set("a", "3");
        assert_eq!(headers.iter().collect::<Vec<_>>(), [("a", "3"), ("b", "2")]);
        assert_eq!((headers.get("a"), headers.get("c")), (Some("3"), None));
    }

    #[tokio::test(start_paused = true)]
    async fn time_runs_out() {
        let endless = Envelope::new(0, "Get", "");
        let envelope = endless.clone().with_ttl(Duration::from_secs(5));
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!((envelope.ttl(), envelope.is_expired()), (Some(Duration::from_secs(2)), false));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!((envelope.ttl(), envelope.is_expired()), (Some(Duration::ZERO), true));
        assert_eq!((endless.ttl(), endless.is_expired()), (None, false));
        assert!(!endless.with_ttl(Duration::MAX).is_expired());
    }
}
