//! Waiting for conditions, never for time.

use std::fmt::Display;
use std::future::Future;
use std::time::{Duration, Instant};

use super::ServerError;

/// How long a server may take to get ready. Far more than it needs: a loaded machine must not fail a test.
pub const READY_BOUND: Duration = Duration::from_secs(60);

const POLL: Duration = Duration::from_millis(10);

/// Asks again and again until the answer is `Ok`, for at most `bound`.
///
/// `look` answers `Err(what it saw)` as long as the condition does not hold.
///
/// # Errors
/// [`ServerError::Timeout`] with what was seen last.
pub async fn wait_until<T, Seen, Look>(
    condition: &str,
    bound: Duration,
    mut look: impl FnMut() -> Look,
) -> Result<T, ServerError>
where
    Seen: Display,
    Look: Future<Output = Result<T, Seen>>,
{
    let mut patience = Patience::new(condition, bound);
    loop {
        match look().await {
            Ok(value) => return Ok(value),
            Err(seen) => patience.pause(seen.to_string()).await?,
        }
    }
}

/// The same for loops that cannot be written as a closure.
#[derive(Debug)]
pub(super) struct Patience<'a> {
    condition: &'a str,
    bound: Duration,
    start: Instant,
}

impl<'a> Patience<'a> {
    pub(super) fn new(condition: &'a str, bound: Duration) -> Self {
        Self { condition, bound, start: Instant::now() }
    }

    /// Waits a little, or tells that it has been enough.
    pub(super) async fn pause(&mut self, seen: String) -> Result<(), ServerError> {
        let waited = self.start.elapsed();
        if waited > self.bound {
            return Err(ServerError::Timeout { condition: self.condition.to_owned(), waited, seen });
        }
        tokio::time::sleep(POLL).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn it_ends_with_the_first_success_and_tells_the_last_failure() {
        let looks = Cell::new(0);
        let value = wait_until("three looks", READY_BOUND, async || {
            looks.set(looks.get() + 1);
            if looks.get() == 3 { Ok(3) } else { Err("not yet") }
        });
        assert_eq!(value.await.unwrap(), 3);
        let error = wait_until("never", Duration::ZERO, async || Err::<(), _>("closed")).await.unwrap_err();
        assert!(error.to_string().contains("for never, last seen: closed"), "{error}");
    }
}
