//! Writes to Redis that a stale owner cannot make.
//!
//! Only the user's own data is touched here, over the user's own connection; the store has no part in it.

use std::sync::LazyLock;

use redis::aio::ConnectionLike;
use redis::{Arg, Pipeline, RedisError, Script, Value};
use rendez_core::{FencingToken, StaleToken};

/// How many words all commands of a fenced write may have together: the server's scripts have room for some thousand.
pub const FENCED_WORDS_MAX: usize = 4096;

static SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/fence.lua")));

/// A key that remembers the highest fencing token that something in Redis has been written under.
///
/// Give each thing that is written in the name of one slot a fence, and write it through the fence only. A process
/// that was paused and does not know yet that its slot has a new owner is then refused (promise S3), whatever clocks,
/// sessions and the lease store do. That holds as long as Redis keeps the fence's key: a failover that loses writes may lose
/// the fence's last ones too, so use `WAIT` or `min-replicas-to-write` where that matters, and let no eviction take it.
///
/// On Redis Cluster all keys of a write must be in the fence's hash slot, so use a hash tag: `{inbox/3}:fence`,
/// `{inbox/3}:total`. A fence's key has no expiry; remove it when the thing that it guards is gone.
///
/// ```no_run
/// # async fn example(mut connection: redis::aio::MultiplexedConnection, token: rendez_core::FencingToken) {
/// use rendez_redis::{Fence, FenceError};
/// let fence = Fence::new("{inbox/3}:fence");
/// let mut writes = redis::pipe();
/// writes.incr("{inbox/3}:total", 1).rpush("{inbox/3}:log", "one more");
/// match fence.write(&mut connection, token, &writes).await {
///     Ok(answers) => println!("done: {answers:?}"),
///     Err(FenceError::Stale(stale)) => println!("stop: {stale}"),
///     Err(other) => println!("perhaps done, perhaps not: {other}"),
/// }
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Fence {
    key: Vec<u8>,
}

/// Why a fenced write was not made, or may not have been.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FenceError {
    /// A newer owner has written. Nothing was written.
    #[error(transparent)]
    Stale(#[from] StaleToken),
    /// The commands have more than [`FENCED_WORDS_MAX`] words. Nothing was written.
    #[error(
        "the commands have {words} words, more than the {FENCED_WORDS_MAX} of one fenced write; nothing was written"
    )]
    TooLong {
        /// How many they have.
        words: usize,
    },
    /// What the client says. After a timeout or a lost connection the write may have been made. If the server refused one of the
    /// commands, those before it are done: scripts are not rolled back.
    #[error(transparent)]
    Redis(#[from] RedisError),
}

impl Fence {
    /// The fence in this key. Nothing is read or written yet.
    #[must_use]
    pub fn new(key: impl AsRef<[u8]>) -> Self {
        Self { key: key.as_ref().to_vec() }
    }

    /// Carries the commands out, in one script, if `token` is not lower than any that this fence has seen. Returns the
    /// commands' answers in their order.
    ///
    /// One round trip. Dropping the future after it was polled leaves open whether the write is made; the write of an older
    /// token stays refused in either case once a newer one was seen.
    ///
    /// # Errors
    ///
    /// [`FenceError`]; after [`FenceError::Stale`] the runner should end.
    pub async fn write(
        &self,
        connection: &mut impl ConnectionLike,
        token: FencingToken,
        commands: &Pipeline,
    ) -> Result<Vec<Value>, FenceError> {
        let mut invocation = SCRIPT.prepare_invoke();
        invocation.key(&self.key).arg(token.to_digits());
        let mut words_in_all = 0;
        for command in commands.cmd_iter() {
            let words: Vec<&[u8]> = command
                .args_iter()
                .filter_map(|word| match word {
                    Arg::Simple(word) => Some(word),
                    // A cursor: only the scanning commands have one, and they write nothing.
                    _ => None,
                })
                .collect();
            words_in_all += words.len();
            invocation.arg(words.len());
            for word in words {
                invocation.arg(word);
            }
        }
        if words_in_all > FENCED_WORDS_MAX {
            return Err(FenceError::TooLong { words: words_in_all });
        }
        let answer: (u8, Value) = invocation.invoke_async(connection).await?;
        match answer {
            (1, answers) => Ok(redis::from_redis_value(answers).map_err(RedisError::from)?),
            (_, seen) => {
                let digits: Vec<u8> = redis::from_redis_value(seen).map_err(RedisError::from)?;
                let unreadable =
                    || RedisError::from((redis::ErrorKind::UnexpectedReturnType, "the fence holds no token"));
                let seen = FencingToken::from_digits(&digits).ok_or_else(unreadable)?;
                Err(StaleToken { token, seen }.into())
            }
        }
    }
}
