//! What a program implements: the answer to one request.

use std::error::Error;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use crate::{Envelope, RequestError};

/// Any error, as handlers return it. A [`RequestError`] in it reaches the caller as it is, unless it says that somebody was
/// not reached: then it is of a request that the handler made, and its text is the handler's own error. Of other errors
/// the text reaches the caller.
pub type BoxError = Box<dyn Error + Send + Sync + 'static>;

/// Answers requests. One handler serves all shards of a node, many requests at once.
///
/// An async closure is one:
///
/// ```
/// use rendez_router::{BoxError, Envelope, RequestContext};
///
/// # fn takes(_: impl rendez_router::Handler) {}
/// takes(|_: RequestContext, request: Envelope| async move { Ok::<_, BoxError>(request.into_data()) });
/// ```
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Answers a request. Its future is dropped at an await point when its time is over or its caller has gone.
    ///
    /// # Errors
    /// Whatever the caller shall see.
    async fn handle(&self, ctx: RequestContext, request: Envelope) -> Result<Bytes, RequestError>;

    /// Called once, when nobody will call [`handle`](Self::handle) again and no call of it runs any more: where a
    /// handler is one key's ([`KeyHandler`](crate::KeyHandler)), when the key is forgotten.
    async fn close(&self) {}
}

/// What a handler's closure may answer: anything that can be bytes, or an error of any type.
pub trait Answer {
    /// The answer as the caller shall see it.
    ///
    /// # Errors
    /// The handler's own.
    fn into_answer(self) -> Result<Bytes, RequestError>;
}

impl<B: Into<Bytes>, E: Into<BoxError>> Answer for Result<B, E> {
    fn into_answer(self) -> Result<Bytes, RequestError> {
        self.map(Into::into).map_err(|error| request_error(error.into()))
    }
}

#[async_trait]
impl<F, Fut> Handler for F
where
    F: Fn(RequestContext, Envelope) -> Fut + Send + Sync + 'static,
    Fut: Future + Send,
    Fut::Output: Answer,
{
    async fn handle(&self, ctx: RequestContext, request: Envelope) -> Result<Bytes, RequestError> {
        self(ctx, request).await.into_answer()
    }
}

/// A handler's error as the caller shall see it.
pub(crate) fn request_error(error: BoxError) -> RequestError {
    match error.downcast::<RequestError>() {
        Ok(error) => *error,
        Err(error) => RequestError::Handler { message: with_sources(&*error), code: None },
    }
}

/// An error's text, with those below it that it does not say itself.
fn with_sources(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(below) = source {
        let said = below.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        source = below.source();
    }
    text
}

/// What a handler knows of a request beside its envelope. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RequestContext {
    node: Arc<str>,
    deadline: Instant,
    #[cfg(feature = "live")]
    lease: Option<rendez::SlotLease>,
}

impl RequestContext {
    /// For a request that ends by then. For those who write a transport: the node is filled in by [`Node`](crate::Node).
    #[must_use]
    pub fn new(deadline: Instant) -> Self {
        Self {
            node: Arc::default(),
            deadline,
            #[cfg(feature = "live")]
            lease: None,
        }
    }

    pub(crate) fn on(self, node: Arc<str>) -> Self {
        Self { node, ..self }
    }

    #[cfg(feature = "live")]
    pub(crate) fn under(self, lease: rendez::SlotLease) -> Self {
        Self { lease: Some(lease), ..self }
    }

    /// The lease that the request's slot is held by, where slots are [served by lease](crate::ServedSlots): check it
    /// before side effects, and give its token to whatever is written to.
    #[cfg(feature = "live")]
    #[must_use]
    pub fn lease(&self) -> Option<&rendez::SlotLease> {
        self.lease.as_ref()
    }

    /// The node that serves the request.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    /// When the handler is dropped, at the latest.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// How long the handler may still take. Give it to requests that it makes itself.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::num::ParseIntError);

    #[test]
    fn errors_reach_the_caller_whole() {
        let own = RequestError::handler("gone", "it is gone");
        assert_eq!(Err::<Bytes, _>(own.clone()).into_answer(), Err(own.clone()));
        assert_eq!(Err::<Bytes, BoxError>(own.clone().into()).into_answer(), Err(own));
        let other = Err::<Bytes, _>(Outer("x".parse::<u32>().unwrap_err())).into_answer().unwrap_err();
        assert_eq!(other.to_string(), "the handler failed: outer: invalid digit found in string");
    }
}
