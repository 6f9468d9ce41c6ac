//! One handler for each type of message.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;

use async_trait::async_trait;
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Part;
use crate::handler::request_error;
use crate::{BoxError, Envelope, Handler, Message, RequestContext, RequestError};

/// A handler that gives each type of message to a handler of its own.
///
/// ```
/// use rendez_router::{BoxError, Dispatch, Message, RequestContext};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct GetUser {
///     id: String,
/// }
/// impl Message for GetUser {}
///
/// #[derive(Serialize, Deserialize)]
/// struct User {
///     name: String,
/// }
///
/// let handler = Dispatch::new().on(|_: RequestContext, get: GetUser| async move {
///     Ok::<_, BoxError>(User { name: format!("User {}", get.id) })
/// });
/// # fn takes(_: impl rendez_router::Handler) {}
/// # takes(handler);
/// ```
#[derive(Default)]
pub struct Dispatch {
    handlers: HashMap<String, Box<dyn Handler>>,
}

impl Dispatch {
    /// Knows no message yet, and answers all with [`RequestError::UnknownMessageType`].
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Answers messages of a type with what this closure says.
    #[must_use]
    pub fn on<M, R, E, F, Fut>(self, work: F) -> Self
    where
        M: Message + DeserializeOwned + 'static,
        R: Serialize + Send + 'static,
        E: Into<BoxError> + Send + 'static,
        F: Fn(RequestContext, M) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, E>> + Send + 'static,
    {
        self.on_type(M::message_type(), typed(work))
    }

    /// Gives messages with this name of their type to a handler, in place of the one before.
    #[must_use]
    pub fn on_type(mut self, message_type: impl Into<String>, handler: impl Handler) -> Self {
        self.handlers.insert(message_type.into(), Box::new(handler));
        self
    }
}

#[async_trait]
impl Handler for Dispatch {
    async fn handle(&self, ctx: RequestContext, request: Envelope) -> Result<Bytes, RequestError> {
        match self.handlers.get(request.message_type()) {
            Some(handler) => handler.handle(ctx, request).await,
            None => Err(RequestError::UnknownMessageType { message_type: request.message_type().to_owned() }),
        }
    }

    async fn close(&self) {
        for handler in self.handlers.values() {
            handler.close().await;
        }
    }
}

impl fmt::Debug for Dispatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names: Vec<&String> = self.handlers.keys().collect();
        names.sort_unstable();
        f.debug_tuple("Dispatch").field(&names).finish()
    }
}

/// A handler of one type of message, read and answered as JSON, whatever name the type travels under.
pub fn typed<M, R, E, F, Fut>(work: F) -> impl Handler
where
    M: DeserializeOwned + Send + 'static,
    R: Serialize + Send + 'static,
    E: Into<BoxError> + Send + 'static,
    F: Fn(RequestContext, M) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, E>> + Send + 'static,
{
    Typed { work, message: PhantomData::<fn(M)> }
}

struct Typed<M, F> {
    work: F,
    message: PhantomData<fn(M)>,
}

#[async_trait]
impl<M, R, E, F, Fut> Handler for Typed<M, F>
where
    M: DeserializeOwned + Send + 'static,
    R: Serialize + Send + 'static,
    E: Into<BoxError> + Send + 'static,
    F: Fn(RequestContext, M) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, E>> + Send + 'static,
{
    async fn handle(&self, ctx: RequestContext, request: Envelope) -> Result<Bytes, RequestError> {
        let message = serde_json::from_slice(request.data())
            .map_err(|error| RequestError::Decode { what: Part::Request, why: error.to_string() })?;
        let answer = (self.work)(ctx, message).await.map_err(|error| request_error(error.into()))?;
        encode(&answer, Part::Reply)
    }
}

pub(crate) fn encode(message: &impl Serialize, what: Part) -> Result<Bytes, RequestError> {
    serde_json::to_vec(message).map(Bytes::from).map_err(|error| RequestError::Encode { what, why: error.to_string() })
}
