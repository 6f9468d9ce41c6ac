//! A handler for each key, made when it is first needed, and closed when it was not needed for long.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::num::NonZeroUsize;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use lru::LruCache;
use tokio::runtime::Handle;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use crate::handler::request_error;
use crate::{BoxError, Envelope, Handler, RequestContext, RequestError};

/// The most keys that have a handler at once, unless said otherwise.
pub const KEYS_DEFAULT: usize = 1024;

/// Gives each key a handler of its own.
///
/// It is made at the key's first request; however many of those come at once, one is made. Of more than
/// [`capacity`](KeyHandlerBuilder::capacity) keys the one that was asked for longest ago loses its handler: no new request
/// reaches it, those that run end, and then it is [closed](Handler::close). A key that is asked for again meanwhile waits for
/// that, so that a key never has two handlers. (One whose requests still run keeps its handler instead.)
///
/// ```
/// use rendez_router::{BoxError, Envelope, KeyHandler, RequestContext};
///
/// let handler = KeyHandler::new(|key: String| async move {
///     // Load what belongs to the key.
///     Ok::<_, BoxError>(move |_: RequestContext, _: Envelope| {
///         let reply = format!("tenant: {key}");
///         async move { Ok::<_, BoxError>(reply) }
///     })
/// });
/// # fn takes(_: impl rendez_router::Handler) {}
/// # takes(handler);
/// ```
pub struct KeyHandler(Arc<Keys>);

/// A [`KeyHandler`] before it is made.
#[must_use = "nothing is made before `build`"]
pub struct KeyHandlerBuilder {
    make: Make,
    capacity: NonZeroUsize,
    on_close: Option<OnClose>,
}

type Make = Box<dyn Fn(String) -> BoxFuture<'static, Result<Arc<dyn Handler>, RequestError>> + Send + Sync>;
type OnClose = Box<dyn Fn(&str) + Send + Sync>;

struct Keys {
    make: Make,
    on_close: Option<OnClose>,
    state: Mutex<State>,
}

struct State {
    /// Those that requests may use.
    known: LruCache<Arc<str>, Arc<Entry>>,
    /// Those that were evicted: in use still, or being closed.
    leaving: HashMap<Arc<str>, Arc<Entry>>,
}

#[derive(Default)]
struct Entry {
    handler: OnceCell<Arc<dyn Handler>>,
    /// How many requests use it; changed under the state's lock.
    uses: Mutex<usize>,
    closed: CancellationToken,
}

impl KeyHandler {
    /// Makes a handler for a key with this closure, for up to [`KEYS_DEFAULT`] keys at once.
    pub fn new<F, Fut, H, E>(make: F) -> Self
    where
        F: Fn(String) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<H, E>> + Send + 'static,
        H: Handler,
        E: Into<BoxError>,
    {
        Self::builder(make).build()
    }

    /// The same, with other bounds and a hook.
    pub fn builder<F, Fut, H, E>(make: F) -> KeyHandlerBuilder
    where
        F: Fn(String) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<H, E>> + Send + 'static,
        H: Handler,
        E: Into<BoxError>,
    {
        let make = move |key: String| {
            let making = make(key);
            async move {
                let made = making.await.map_err(|error| request_error(error.into()))?;
                Ok(Arc::new(made) as Arc<dyn Handler>)
            }
            .boxed()
        };
        let capacity = NonZeroUsize::new(KEYS_DEFAULT).unwrap_or(NonZeroUsize::MIN);
        KeyHandlerBuilder { make: Box::new(make), capacity, on_close: None }
    }

    /// How many keys have a handler now, those that are being closed included.
    #[must_use]
    pub fn len(&self) -> usize {
        let state = self.0.state();
        state.known.len() + state.leaving.len()
    }

    /// Whether no key has one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl KeyHandlerBuilder {
    /// So many keys have a handler at once; 0 counts as 1. Beyond it are only those that are being closed.
    pub fn capacity(mut self, keys: usize) -> Self {
        self.capacity = NonZeroUsize::new(keys).unwrap_or(NonZeroUsize::MIN);
        self
    }

    /// Called with the key after a handler was closed. It must not block.
    pub fn on_close(mut self, hook: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.on_close = Some(Box::new(hook));
        self
    }

    /// Makes it.
    #[must_use]
    pub fn build(self) -> KeyHandler {
        let state = State { known: LruCache::new(self.capacity), leaving: HashMap::new() };
        KeyHandler(Arc::new(Keys { make: self.make, on_close: self.on_close, state: Mutex::new(state) }))
    }
}

impl Keys {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key's entry, as one that is used.
    async fn entry(self: &Arc<Self>, key: &str) -> Use {
        loop {
            let closed = {
                let mut state = self.state();
                let found = match state.known.get(key) {
                    Some(entry) => Ok(entry.clone()),
                    None => match state.leaving.get(key) {
                        // It closes when its last use ends: this is one more.
                        Some(entry) if entry.uses() > 0 => Ok(self.keep(&mut state, key)),
                        Some(entry) => Err(entry.closed.clone()),
                        None => Ok(self.insert(&mut state, key.into(), Arc::default())),
                    },
                };
                match found {
                    Ok(entry) => {
                        *entry.uses_mut() += 1;
                        return Use { keys: self.clone(), key: key.into(), entry };
                    }
                    Err(closed) => closed,
                }
            };
            closed.cancelled().await;
        }
    }

    fn keep(self: &Arc<Self>, state: &mut State, key: &str) -> Arc<Entry> {
        match state.leaving.remove_entry(key) {
            Some((key, entry)) => self.insert(state, key, entry),
            None => self.insert(state, key.into(), Arc::default()),
        }
    }

    fn insert(self: &Arc<Self>, state: &mut State, key: Arc<str>, entry: Arc<Entry>) -> Arc<Entry> {
        if let Some((evicted, old)) = state.known.push(key, entry.clone()) {
            self.leave(state, evicted, old);
        }
        entry
    }

    /// Is evicted: closed at once if nobody uses it.
    fn leave(self: &Arc<Self>, state: &mut State, key: Arc<str>, entry: Arc<Entry>) {
        state.leaving.insert(key.clone(), entry.clone());
        if entry.uses() == 0 {
            self.close(key, entry);
        }
    }

    fn close(self: &Arc<Self>, key: Arc<str>, entry: Arc<Entry>) {
        let keys = self.clone();
        let closing = async move {
            if let Some(handler) = entry.handler.get() {
                let closed = AssertUnwindSafe(handler.close()).catch_unwind().await;
                if closed.is_err() {
                    tracing::error!(key = &*key, "a handler panicked when it was closed");
                }
                if let Some(hook) = &keys.on_close {
                    hook(&key);
                }
            }
            keys.state().leaving.remove(&key);
            entry.closed.cancel();
        };
        // Without a runtime everything ends.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(closing);
        }
    }
}

impl Entry {
    fn uses_mut(&self) -> MutexGuard<'_, usize> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn uses(&self) -> usize {
        *self.uses_mut()
    }
}

/// One request's use of an entry.
struct Use {
    keys: Arc<Keys>,
    key: Arc<str>,
    entry: Arc<Entry>,
}

impl Drop for Use {
    fn drop(&mut self) {
        let mut state = self.keys.state();
        let left = {
            let mut uses = self.entry.uses_mut();
            *uses -= 1;
            *uses
        };
        if left > 0 {
            return;
        }
        if state.leaving.get(&self.key).is_some_and(|entry| Arc::ptr_eq(entry, &self.entry)) {
            self.keys.close(self.key.clone(), self.entry.clone());
        } else if !self.entry.handler.initialized() {
            // None could be made: the next request tries again.
            state.known.pop(&self.key);
        }
    }
}

#[async_trait]
impl Handler for KeyHandler {
    async fn handle(&self, ctx: RequestContext, request: Envelope) -> Result<Bytes, RequestError> {
        let key = request.key().ok_or(RequestError::MissingKeyHeader)?;
        let used = self.0.entry(key).await;
        let handler = used.entry.handler.get_or_try_init(|| (self.0.make)(key.to_owned())).await?;
        handler.handle(ctx, request).await
    }

    async fn close(&self) {
        let closed: Vec<CancellationToken> = {
            let mut state = self.0.state();
            while let Some((key, entry)) = state.known.pop_lru() {
                self.0.leave(&mut state, key, entry);
            }
            state.leaving.values().map(|entry| entry.closed.clone()).collect()
        };
        join_all(closed.iter().map(CancellationToken::cancelled)).await;
    }
}

impl fmt::Debug for KeyHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyHandler").field("keys", &self.len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for KeyHandlerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyHandlerBuilder").field("capacity", &self.capacity).finish_non_exhaustive()
    }
}
