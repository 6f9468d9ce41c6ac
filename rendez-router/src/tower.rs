//! Both ends as services of `tower`, so that its layers fit: retries, limits, timeouts and the like.
//!
//! Clients are services of envelopes, or of messages of one type; a service can be a node's [`Handler`]. Nothing else belongs
//! here: what a request is and does, it is and does without tower, too.

use std::fmt;
use std::future::poll_fn;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::de::DeserializeOwned;
use tower_service::Service;

use crate::handler::request_error;
use crate::{BoxError, Client, Envelope, Handler, Message, RequestContext, RequestError, ScopedClient, TypedClient};

/// Always ready: who finds a queue full hears so in the answer ([`RequestError::Overloaded`]), and nothing was done. A request
/// is sent when its future is first polled; dropping it: see [`ClientTransport::request`](crate::ClientTransport::request).
impl Service<Envelope> for Client {
    type Response = Bytes;
    type Error = RequestError;
    type Future = BoxFuture<'static, Result<Bytes, RequestError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), RequestError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Envelope) -> Self::Future {
        let client = self.clone();
        Box::pin(async move { client.request(request).await })
    }
}

/// As for [`Client`]; the envelopes go to this client's key or shard, whatever they say.
impl Service<Envelope> for ScopedClient {
    type Response = Bytes;
    type Error = RequestError;
    type Future = BoxFuture<'static, Result<Bytes, RequestError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), RequestError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Envelope) -> Self::Future {
        let client = self.clone();
        Box::pin(async move { client.request_envelope(request).await })
    }
}

/// As for [`Client`], with messages and answers of one type.
impl<M, R> Service<M> for TypedClient<M, R>
where
    M: Message + 'static,
    R: DeserializeOwned + 'static,
{
    type Response = R;
    type Error = RequestError;
    type Future = BoxFuture<'static, Result<R, RequestError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), RequestError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, message: M) -> Self::Future {
        let client = self.clone();
        Box::pin(async move { client.request(&message).await })
    }
}

/// A request as a service on a node gets it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ServedRequest {
    /// The request.
    pub envelope: Envelope,
    /// What is known of it beside.
    pub context: RequestContext,
}

/// A service as a node's [`Handler`]. Each request has a clone of it, which is waited for until it is ready and then called:
/// all within the request's time.
///
/// An error is the handler's own; a [`RequestError`] reaches the caller as described at [`BoxError`].
///
/// ```
/// use std::time::Duration;
/// use rendez_router::{BoxError, ServedRequest, ServiceHandler};
/// use tower::{ServiceBuilder, service_fn};
///
/// let service = ServiceBuilder::new()
///     .concurrency_limit(10)
///     .timeout(Duration::from_secs(1))
///     .service(service_fn(|request: ServedRequest| async move { Ok::<_, BoxError>(request.envelope.into_data()) }));
/// let handler = ServiceHandler::new(service);
/// # fn takes(_: impl rendez_router::Handler) {}
/// # takes(handler);
/// ```
pub struct ServiceHandler<S>(Mutex<S>);

impl<S> ServiceHandler<S> {
    /// Answers requests with this service.
    pub fn new(service: S) -> Self {
        Self(Mutex::new(service))
    }
}

#[async_trait]
impl<S> Handler for ServiceHandler<S>
where
    S: Service<ServedRequest> + Clone + Send + 'static,
    S::Response: Into<Bytes> + Send,
    S::Error: Into<BoxError> + Send,
    S::Future: Send,
{
    async fn handle(&self, context: RequestContext, envelope: Envelope) -> Result<Bytes, RequestError> {
        let own = |error: S::Error| request_error(error.into());
        let mut service = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        poll_fn(|cx| service.poll_ready(cx)).await.map_err(own)?;
        service.call(ServedRequest { envelope, context }).await.map(Into::into).map_err(own)
    }
}

impl<S> fmt::Debug for ServiceHandler<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceHandler").finish_non_exhaustive()
    }
}
