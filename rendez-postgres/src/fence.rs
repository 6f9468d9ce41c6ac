//! Transactions of the user's own that a stale owner cannot commit.
//!
//! Only `check_token` of the schema is called here, over the user's own connection; the store has no part in it.

use rendez_core::{FencingToken, StaleToken, StoreError};
use tokio_postgres::Transaction;
use tokio_postgres::error::SqlState;

use crate::options::PostgresOptions;
use crate::schema::Schema;

/// A resource that remembers the highest fencing token that some transaction has shown for it.
///
/// Give each thing that is written in the name of one slot a resource, and begin each transaction that writes it with
/// [`check`](Self::check). A process that was paused and does not know yet that its slot has a new owner is then refused (promise S3),
/// whatever clocks, sessions and the lease store do. Until the transaction ends, others with the same resource wait: so a token that
/// was checked before a newer owner came is also written before.
///
/// The resource lives in the schema of the store, which must be in the database that is written to; the lease itself may live in any
/// store. Without a store there, run [`migration`](crate::migration) once.
///
/// ```no_run
/// # async fn example(mut client: tokio_postgres::Client, token: rendez_core::FencingToken) -> Result<(), Box<dyn std::error::Error>> {
/// use rendez_postgres::Fence;
/// let fence = Fence::new("my-cluster/inbox/3");
/// let transaction = client.transaction().await?;
/// fence.check(&transaction, token).await?;
/// transaction.execute("UPDATE totals SET total = total + 1 WHERE inbox = 3", &[]).await?;
/// transaction.commit().await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Fence {
    resource: String,
    statement: String,
}

/// Why a token was not let through. The transaction has failed and can only be rolled back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FenceError {
    /// A newer owner has written. Trying again is of no use.
    #[error(transparent)]
    Stale(#[from] StaleToken),
    /// What the client says.
    #[error(transparent)]
    Postgres(#[from] tokio_postgres::Error),
}

impl Fence {
    /// A resource of this name in the default schema. Nothing is read or written yet.
    #[must_use]
    pub fn new(resource: impl Into<String>) -> Self {
        let schema = PostgresOptions::default().schema;
        Self { resource: resource.into(), statement: format!("SELECT \"{schema}\".check_token($1, $2)") }
    }

    /// The same in another schema: the one that the store has as its option.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Fatal`](rendez_core::ErrorKind::Fatal) for a name that no store's schema can have.
    pub fn in_schema(self, schema: &str) -> Result<Self, StoreError> {
        let function = Schema::new(schema)?.of("check_token");
        Ok(Self { resource: self.resource, statement: format!("SELECT {function}($1, $2)") })
    }

    /// Lets `token` through if it is not lower than any that was seen for the resource, and waits for other transactions that have
    /// checked theirs. To be called first in the transaction, before what it reads and writes.
    ///
    /// One statement. Dropping the future leaves the transaction in doubt; it is to be rolled back.
    ///
    /// # Errors
    ///
    /// [`FenceError`]; after [`FenceError::Stale`] the runner should end.
    pub async fn check(&self, transaction: &Transaction<'_>, token: FencingToken) -> Result<(), FenceError> {
        let number = i64::try_from(token.get()).unwrap_or(i64::MAX);
        match transaction.execute(&self.statement, &[&self.resource, &number]).await {
            Ok(_) => Ok(()),
            Err(error) => match stale(&error, token) {
                Some(stale) => Err(stale.into()),
                None => Err(error.into()),
            },
        }
    }
}

/// Serialization failures have the same code, but no number as their detail.
fn stale(error: &tokio_postgres::Error, token: FencingToken) -> Option<StaleToken> {
    let said = error.as_db_error().filter(|said| *said.code() == SqlState::T_R_SERIALIZATION_FAILURE)?;
    let seen = FencingToken::new(said.detail()?.parse().ok()?);
    Some(StaleToken { token, seen })
}
