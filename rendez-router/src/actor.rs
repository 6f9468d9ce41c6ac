//! Actors: state of one key that works on one message at a time.

use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout_at;

use crate::handler::request_error;
use crate::key_handler::{KEYS_DEFAULT, KeyHandler};
use crate::serve::{millis, panic_text};
use crate::{BoxError, Envelope, Handler, RequestContext, RequestError};

/// How many messages of a key wait, unless said otherwise.
pub const MAILBOX_DEFAULT: usize = 100;

/// State that belongs to one key, and works on one message at a time.
#[async_trait]
pub trait Actor: Send + 'static {
    /// Works on a message. It goes on when its caller has gone; when its time is over it is dropped at an await point, and the
    /// next message finds the state as it was left.
    ///
    /// # Errors
    /// Whatever the caller shall see. The actor stays.
    async fn receive(&mut self, ctx: RequestContext, message: Envelope) -> Result<Bytes, RequestError>;

    /// Called when the key is forgotten and its last message was worked on.
    async fn stop(&mut self) {}
}

/// How many actors there are, and how much waits for each.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ActorOptions {
    /// The most keys that have an actor at once; see [`KeyHandler`] for what happens beyond it.
    pub capacity: usize,
    /// The most messages that wait for one actor; more are refused ([`RequestError::Overloaded`]).
    pub mailbox: usize,
}

impl Default for ActorOptions {
    fn default() -> Self {
        Self { capacity: KEYS_DEFAULT, mailbox: MAILBOX_DEFAULT }
    }
}

/// Gives each key an [`Actor`], which works on its messages one at a time, in the order of their arrival.
///
/// An actor that panics is thrown away; the next message makes another.
///
/// ```
/// use bytes::Bytes;
/// use rendez_router::{Actor, ActorHandler, BoxError, Envelope, RequestContext, RequestError};
///
/// struct Counter(u64);
///
/// #[async_trait::async_trait]
/// impl Actor for Counter {
///     async fn receive(&mut self, _: RequestContext, _: Envelope) -> Result<Bytes, RequestError> {
///         self.0 += 1; // no lock: one message at a time
///         Ok(self.0.to_string().into())
///     }
/// }
///
/// let handler = ActorHandler::new(|_key: String| async { Ok::<_, BoxError>(Counter(0)) });
/// # fn takes(_: impl rendez_router::Handler) {}
/// # takes(handler);
/// ```
pub struct ActorHandler(KeyHandler);

impl ActorHandler {
    /// Makes the actor of a key with this closure.
    pub fn new<F, Fut, A, E>(make: F) -> Self
    where
        F: Fn(String) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<A, E>> + Send + 'static,
        A: Actor,
        E: Into<BoxError>,
    {
        Self::with(ActorOptions::default(), make)
    }

    /// The same, with other bounds.
    pub fn with<F, Fut, A, E>(options: ActorOptions, make: F) -> Self
    where
        F: Fn(String) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<A, E>> + Send + 'static,
        A: Actor,
        E: Into<BoxError>,
    {
        let make: Arc<Make<A>> = Arc::new(move |key| {
            let making = make(key);
            async move { making.await.map_err(|error| request_error(error.into())) }.boxed()
        });
        let mailbox = options.mailbox.max(1);
        let of_key = move |key: String| {
            let make = make.clone();
            async move {
                let actor = make(key.clone()).await?;
                Ok::<_, RequestError>(Mailbox::open(key, actor, make, mailbox))
            }
        };
        Self(KeyHandler::builder(of_key).capacity(options.capacity).build())
    }
}

type Make<A> = dyn Fn(String) -> BoxFuture<'static, Result<A, RequestError>> + Send + Sync;

#[async_trait]
impl Handler for ActorHandler {
    async fn handle(&self, ctx: RequestContext, request: Envelope) -> Result<Bytes, RequestError> {
        self.0.handle(ctx, request).await
    }

    async fn close(&self) {
        self.0.close().await;
    }
}

impl fmt::Debug for ActorHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ActorHandler").field("keys", &self.0.len()).finish_non_exhaustive()
    }
}

/// A message that waits for its actor.
struct Mail {
    ctx: RequestContext,
    message: Envelope,
    answer: oneshot::Sender<Result<Bytes, RequestError>>,
}

/// The way to one actor, which lives in a task of its own.
struct Mailbox {
    key: String,
    most: usize,
    open: Mutex<Option<(mpsc::Sender<Mail>, JoinHandle<()>)>>,
}

impl Mailbox {
    fn open<A: Actor>(key: String, actor: A, make: Arc<Make<A>>, most: usize) -> Self {
        let (sender, mails) = mpsc::channel(most);
        let task = tokio::spawn(work(key.clone(), actor, make, mails));
        Self { key, most, open: Mutex::new(Some((sender, task))) }
    }

    fn sender(&self) -> Option<mpsc::Sender<Mail>> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.as_ref().map(|(sender, _)| sender.clone())
    }
}

#[async_trait]
impl Handler for Mailbox {
    async fn handle(&self, ctx: RequestContext, message: Envelope) -> Result<Bytes, RequestError> {
        let gone = || RequestError::HandlerPanicked { message: "its actor has gone".to_owned() };
        let (answer, answered) = oneshot::channel();
        let sender = self.sender().ok_or_else(gone)?;
        sender.try_send(Mail { ctx, message, answer }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                RequestError::Overloaded { what: format!("the mailbox of {:?}", self.key), most: self.most as u64 }
            }
            mpsc::error::TrySendError::Closed(_) => gone(),
        })?;
        // Not kept: a mailbox that is closed waits for no sender.
        drop(sender);
        answered.await.unwrap_or_else(|_| Err(gone()))
    }

    async fn close(&self) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((sender, task)) = open {
            drop(sender);
            // It does not panic; with its runtime it may be gone.
            let _ = task.await;
        }
    }
}

/// The actor's task: one message after the other, until the mailbox is closed and empty.
async fn work<A: Actor>(key: String, actor: A, make: Arc<Make<A>>, mut mails: mpsc::Receiver<Mail>) {
    let mut actor = Some(actor);
    while let Some(Mail { ctx, message, answer }) = mails.recv().await {
        if answer.is_closed() {
            continue;
        }
        let answered = one(&key, &mut actor, &*make, ctx, message).await;
        // Whoever asked may have gone.
        let _ = answer.send(answered);
    }
    if let Some(mut actor) = actor
        && AssertUnwindSafe(actor.stop()).catch_unwind().await.is_err()
    {
        tracing::error!(key, "an actor panicked when it was stopped");
    }
}

async fn one<A: Actor>(
    key: &str,
    actor: &mut Option<A>,
    make: &Make<A>,
    ctx: RequestContext,
    message: Envelope,
) -> Result<Bytes, RequestError> {
    if ctx.remaining().is_zero() {
        return Err(RequestError::EnvelopeExpired);
    }
    let mut present = match actor.take() {
        Some(actor) => actor,
        None => make(key.to_owned()).await?,
    };
    let (deadline, has) = (ctx.deadline(), ctx.remaining());
    let worked = timeout_at(deadline, AssertUnwindSafe(present.receive(ctx, message)).catch_unwind()).await;
    match worked {
        Ok(Ok(answer)) => {
            *actor = Some(present);
            answer
        }
        Ok(Err(panic)) => Err(RequestError::HandlerPanicked { message: panic_text(&*panic) }),
        Err(_) => {
            *actor = Some(present);
            Err(RequestError::HandlerTimeout { millis: millis(has) })
        }
    }
}
