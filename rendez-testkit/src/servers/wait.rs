//! Waiting for conditions, never for time.

use std::fmt::Display;
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
pub async fn wait_until<T, Seen: Display>(
    condition: &str,
    bound: Duration,
    mut look: impl AsyncFnMut() -> Result<T, Seen>,
) -> Result<T, ServerError> {
    let start = Instant::now();
    loop {
        let seen = match look().await {
            Ok(value) => return Ok(value),
            Err(seen) => seen,
        };
        let waited = start.elapsed();
        if waited > bound {
            return Err(ServerError::Timeout { condition: condition.to_owned(), waited, seen: seen.to_string() });
        }
        tokio::time::sleep(POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_ends_with_the_first_success_and_tells_the_last_failure() {
        let mut looks = 0;
        let value = wait_until("three looks", READY_BOUND, async || {
            looks += 1;
            if looks == 3 { Ok(looks) } else { Err("not yet") }
        });
        assert_eq!(value.await.unwrap(), 3);
        let error = wait_until("never", Duration::ZERO, async || Err::<(), _>("closed")).await.unwrap_err();
        assert!(error.to_string().contains("for never, last seen: closed"), "{error}");
    }
}
