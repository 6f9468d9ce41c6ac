//! Writes to etcd that a stale owner cannot make.
//!
//! Only the user's own keys are touched here, over the user's own client; the store has no part in it.

use etcd_client::{Compare, CompareOp, KvClient, Txn, TxnOp, TxnOpResponse, TxnResponse};
use rendez_core::{FencingToken, StaleToken};

/// How many operations a fenced write may have: what servers allow unless told otherwise, less one for the fence.
pub const FENCED_OPERATIONS_MAX: usize = 127;

/// A key that remembers the highest fencing token that something in etcd has been written under.
///
/// Give each thing that is written in the name of one slot a fence, and write it through the fence only. A process
/// that was paused and does not know yet that its slot has a new owner is then refused (promise S3), whatever clocks,
/// sessions and the lease store do. Remove the key when the thing that it guards is gone.
///
/// ```no_run
/// # async fn example(client: etcd_client::Client, token: rendez_core::FencingToken) {
/// use etcd_client::TxnOp;
/// use rendez_etcd::{Fence, FenceError};
/// let fence = Fence::new("/fences/inbox/3");
/// match fence.write(&mut client.kv_client(), token, vec![TxnOp::put("/totals/inbox/3", "42", None)]).await {
///     Ok(_) => println!("done"),
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
    /// The fence's key holds something else. Nothing was written.
    #[error(
        "the key holds no fencing token but something else; nothing was written. Choose a key of its own for the fence"
    )]
    NoFence,
    /// There are more than [`FENCED_OPERATIONS_MAX`] operations. Nothing was written.
    #[error(
        "{operations} operations are more than the {FENCED_OPERATIONS_MAX} of one fenced write; nothing was written"
    )]
    TooLong {
        /// How many there are.
        operations: usize,
    },
    /// What the client says. After a timeout or a lost connection the write may have been made.
    #[error(transparent)]
    Etcd(#[from] etcd_client::Error),
}

impl Fence {
    /// The fence in this key. Nothing is read or written yet.
    #[must_use]
    pub fn new(key: impl Into<Vec<u8>>) -> Self {
        Self { key: key.into() }
    }

    /// Carries the operations out, in one transaction, if `token` is not lower than any that this fence has seen. None of them may touch
    /// the fence's key. The answer has those of the operations in their order.
    ///
    /// One round trip. Dropping the future after it was polled leaves open whether the write is made; the write of an older
    /// token stays refused in either case once a newer one was seen.
    ///
    /// # Errors
    ///
    /// [`FenceError`]; after [`FenceError::Stale`] the runner should end.
    pub async fn write(
        &self,
        client: &mut KvClient,
        token: FencingToken,
        operations: Vec<TxnOp>,
    ) -> Result<Vec<TxnOpResponse>, FenceError> {
        if operations.len() > FENCED_OPERATIONS_MAX {
            return Err(FenceError::TooLong { operations: operations.len() });
        }
        let key = self.key.as_slice();
        // A key that is not there is neither higher nor anything else, so the first write of all is the other branch.
        let newer = Compare::value(key, CompareOp::Greater, token.to_digits());
        let mut write = vec![TxnOp::put(key, token.to_digits(), None)];
        write.extend(operations);
        let transaction = Txn::new().when([newer]).and_then([TxnOp::get(key, None)]).or_else(write);
        let answer = client.txn(transaction).await?;
        if answer.succeeded() {
            let seen = seen(&answer).ok_or(FenceError::NoFence)?;
            return Err(StaleToken { token, seen }.into());
        }
        Ok(answer.op_responses().into_iter().skip(1).collect())
    }
}

/// The token that the refusal has read.
fn seen(answer: &TxnResponse) -> Option<FencingToken> {
    match answer.op_responses().into_iter().next()? {
        TxnOpResponse::Get(found) => FencingToken::from_digits(found.kvs().first()?.value()),
        TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
    }
}
