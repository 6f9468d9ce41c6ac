//! Answers that a node remembers, so that a request that is repeated under its idempotency key does not run again.
//!
//! What a handler says of itself is sorted here too, because every request of a program's handler passes. Who repeats, and
//! when, is the client's part (`repeat`).

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;
use xxhash_rust::xxh64::xxh64;

use crate::error::Ran;
use crate::{Envelope, Handler, RequestContext, RequestError};

/// How many answers a node remembers for a shard, unless said otherwise.
pub const ANSWERS_KEPT_DEFAULT: usize = 10_000;

/// How many bytes of answers a node remembers for a shard, unless said otherwise.
pub const ANSWER_BYTES_KEPT_DEFAULT: usize = 16 << 20;

/// How long a node remembers an answer, unless said otherwise: twice as long as requests repeat themselves.
pub const ANSWERS_KEPT_FOR_DEFAULT: Duration = Duration::from_secs(60);

/// How many answers of requests with an idempotency key a node remembers for each of its shards, and how long.
///
/// An answer is never forgotten early: when the memory is full of younger ones, a request with a new key is refused
/// ([`RequestError::MemoryFull`]), and nothing was done. So `count` over `time` is the rate of such requests that a shard
/// can take for long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct AnswersKept {
    /// So many answers, those that are not there yet included; [`ANSWERS_KEPT_DEFAULT`] unless set.
    pub count: usize,
    /// So many bytes of answers and keys; [`ANSWER_BYTES_KEPT_DEFAULT`] unless set. Answers that are not there yet can go
    /// beyond it.
    pub bytes: usize,
    /// So long after it was given, or until the request's time is over, if that is later;
    /// [`ANSWERS_KEPT_FOR_DEFAULT`] unless set.
    pub time: Duration,
}

impl Default for AnswersKept {
    fn default() -> Self {
        Self { count: ANSWERS_KEPT_DEFAULT, bytes: ANSWER_BYTES_KEPT_DEFAULT, time: ANSWERS_KEPT_FOR_DEFAULT }
    }
}

type Answer = Result<Bytes, RequestError>;

/// What one shard's node remembers. It lives as long as the node serves the shard.
pub(crate) struct Answers {
    bounds: AnswersKept,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    entries: HashMap<Id, Entry>,
    /// Those that were answered, in the order in which they are forgotten.
    ends: BTreeMap<(Instant, u64), Id>,
    bytes: usize,
    last: u64,
}

/// What makes two requests the same one. Two users may have used the same words as their idempotency key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Id {
    idempotency_key: Box<str>,
    key: Option<Box<str>>,
    message_type: Box<str>,
}

struct Entry {
    /// Of the message.
    digest: u64,
    bytes: usize,
    /// None while the handler runs.
    answer: watch::Sender<Option<Answer>>,
}

/// How a request with an idempotency key goes on.
enum Begun<'a> {
    /// The handler runs.
    First(Running<'a>),
    /// It has run, or runs: this will be its answer.
    Again(watch::Receiver<Option<Answer>>),
}

impl Answers {
    pub(crate) fn new(bounds: AnswersKept) -> Self {
        Self { bounds, state: Mutex::default() }
    }

    /// The handler's answer to a request, or the one that it gave before.
    pub(crate) async fn answer(&self, handler: &dyn Handler, ctx: RequestContext, request: Envelope) -> Answer {
        if request.idempotency_key().is_none() {
            return handler.handle(ctx, request).await.map_err(RequestError::said_by_handler);
        }
        match self.begin(&request)? {
            Begun::First(running) => {
                let answer = handler.handle(ctx, request).await.map_err(RequestError::said_by_handler);
                running.answered(&answer);
                answer
            }
            Begun::Again(mut answer) => match answer.wait_for(Option::is_some).await {
                Ok(answer) => answer.clone().unwrap_or(Err(RequestError::Interrupted)),
                // The shard has left this node meanwhile.
                Err(_) => Err(RequestError::Interrupted),
            },
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, request: &Envelope) -> Result<Begun<'_>, RequestError> {
        let id = Id::of(request);
        let digest = xxh64(request.data(), 0);
        let mut state = self.state();
        state.forget(Instant::now());
        if let Some(entry) = state.entries.get(&id) {
            return if entry.digest == digest {
                Ok(Begun::Again(entry.answer.subscribe()))
            } else {
                Err(RequestError::IdempotencyKeyReused { key: id.idempotency_key.into() })
            };
        }
        if state.entries.len() >= self.bounds.count || state.bytes >= self.bounds.bytes {
            return Err(RequestError::MemoryFull { shard: request.shard() });
        }
        let bytes = id.len();
        state.bytes += bytes;
        state.entries.insert(id.clone(), Entry { digest, bytes, answer: watch::Sender::new(None) });
        Ok(Begun::First(Running { answers: self, id: Some(id), expires_at: request.expires_at() }))
    }

    fn keep(&self, id: Id, expires_at: Option<Instant>, answer: &Answer) {
        let now = Instant::now();
        let mut state = self.state();
        // Nothing was done: the next one may try.
        if answer.as_ref().is_err_and(|error| error.ran() == Ran::No) {
            state.remove(&id, Some(answer));
            return;
        }
        let (answer, bytes) = match answer {
            // A copy: the answer's own bytes may be part of something large.
            Ok(answer) => (Ok(Bytes::copy_from_slice(answer)), answer.len()),
            Err(error) => (Err(error.clone()), error.to_string().len()),
        };
        let Some(entry) = state.entries.get_mut(&id) else { return };
        entry.bytes += bytes;
        entry.answer.send_replace(Some(answer));
        state.bytes += bytes;
        state.last += 1;
        let until = now.checked_add(self.bounds.time).into_iter().chain(expires_at).max();
        let end = (until.unwrap_or(now), state.last);
        state.ends.insert(end, id);
    }
}

impl State {
    /// Forgets what has been kept for long enough.
    fn forget(&mut self, now: Instant) {
        while let Some(first) = self.ends.first_entry() {
            if first.key().0 > now {
                break;
            }
            let id = first.remove();
            self.remove(&id, None);
        }
    }

    /// Forgets one; those that wait for it get the answer.
    fn remove(&mut self, id: &Id, answer: Option<&Answer>) {
        if let Some(entry) = self.entries.remove(id) {
            self.bytes -= entry.bytes;
            if let Some(answer) = answer {
                entry.answer.send_replace(Some(answer.clone()));
            }
        }
    }
}

impl Id {
    fn of(request: &Envelope) -> Self {
        Self {
            idempotency_key: request.idempotency_key().unwrap_or_default().into(),
            key: request.key().map(Into::into),
            message_type: request.message_type().into(),
        }
    }

    fn len(&self) -> usize {
        self.idempotency_key.len() + self.key.as_ref().map_or(0, |key| key.len()) + self.message_type.len()
    }
}

/// The first of the requests with its key. Dropped without an answer (its time is over, its caller has gone, its handler
/// has panicked), it leaves behind that nobody knows what the handler has done.
struct Running<'a> {
    answers: &'a Answers,
    id: Option<Id>,
    expires_at: Option<Instant>,
}

impl Running<'_> {
    fn answered(mut self, answer: &Answer) {
        if let Some(id) = self.id.take() {
            self.answers.keep(id, self.expires_at, answer);
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            self.answers.keep(id, self.expires_at, &Err(RequestError::Interrupted));
        }
    }
}
