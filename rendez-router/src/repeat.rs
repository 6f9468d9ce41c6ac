//! A request that repeats itself, because its idempotency key permits it.
//!
//! When and how often is decided here; that a repeated request does not run again is the node's part (`answers`).

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until};

use crate::error::Ran;
use crate::{DEFAULT_TTL, Envelope, RequestError};

/// After how long without an answer a request with an idempotency key is sent again, unless said otherwise.
pub const REPEAT_AFTER_DEFAULT: Duration = Duration::from_secs(1);

/// How long after an error; then twice as long each time, up to `repeat_after`.
const PAUSE_MIN: Duration = Duration::from_millis(10);

/// Sends a request, and again after `repeat_after` without an answer, and after twice that, and so on, until one of the
/// copies is answered or the request's time is over. The copies that were sent go on being waited for.
///
/// An error that leaves open whether the handler ran is not the last word, unless the node said it of this very request: it
/// would say so again. Once there was one, an error of a later copy that did not run is none of the request.
pub(crate) async fn repeat<F>(
    send: impl Fn(Envelope) -> F,
    envelope: Envelope,
    repeat_after: Duration,
) -> Result<Bytes, RequestError>
where
    F: Future<Output = Result<Bytes, RequestError>>,
{
    let envelope = if envelope.expires_at().is_some() { envelope } else { envelope.with_ttl(DEFAULT_TTL) };
    let expires_at = envelope.expires_at();
    let (mut copies, mut perhaps) = (FuturesUnordered::new(), None);
    copies.push(send(envelope.clone()));
    let repeat_after = repeat_after.max(PAUSE_MIN);
    let (mut pause, mut pause_after_error) = (repeat_after, PAUSE_MIN);
    let mut next = Instant::now() + pause;
    loop {
        // Another copy would come too late.
        let last_sent = expires_at.is_some_and(|at| at <= next);
        tokio::select! {
            biased;
            Some(answer) = copies.next() => {
                let error = match answer {
                    Err(error) if goes_on(&error) => error,
                    answer => return answer,
                };
                if error.ran() == Ran::Maybe {
                    perhaps.get_or_insert_with(|| error.clone());
                }
                if !copies.is_empty() {
                    continue;
                }
                let perhaps = perhaps.clone().ok_or(error)?;
                next = next.min(Instant::now() + pause_after_error);
                pause_after_error = (pause_after_error * 2).min(repeat_after);
                if expires_at.is_some_and(|at| at <= next) {
                    return Err(perhaps);
                }
            }
            () = sleep_until(next), if !last_sent => {
                copies.push(send(envelope.clone()));
                pause *= 2;
                next = Instant::now() + pause;
            }
        }
    }
}

/// Whether another copy may have another answer. What a node says of a handler that ran, it says again.
fn goes_on(error: &RequestError) -> bool {
    match error.ran() {
        Ran::No => true,
        Ran::Maybe => matches!(
            error,
            RequestError::NoReply { .. } | RequestError::Disconnected { .. } | RequestError::OwnershipLost { .. }
        ),
        Ran::Yes => false,
    }
}
