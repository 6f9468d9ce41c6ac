//! Whether a server can hold leases, and the making of the schema where it is missing.

use deadpool_postgres::Client;
use rendez_core::{ErrorKind, StoreError};
use tokio_postgres::types::Type;
use tokio_postgres::{Error, IsolationLevel};

use super::MIGRATION_TIMEOUT;
use crate::errors::{Stage, explain};
use crate::options::{PostgresOptions, Standbys, fatal, millis};
use crate::schema::{FUNCTIONS, LAYOUT, Schema};

/// The oldest version with all that the functions use.
const VERSION_MIN: i32 = 120_000;

/// What a server tells about itself.
pub(super) struct Found {
    version: i32,
    standby: bool,
    encoding: String,
    fsync: String,
    synchronous_commit: String,
    synchronous_standbys: String,
    isolation: String,
    /// Layout and functions of the schema, if it is there.
    installed: Option<(i32, i32)>,
}

pub(super) async fn look(client: &Client, schema: &Schema) -> Result<Found, Error> {
    let text = "SELECT current_setting('server_version_num')::int, pg_is_in_recovery(), \
                current_setting('server_encoding'), current_setting('fsync'), current_setting('synchronous_commit'), \
                current_setting('synchronous_standby_names'), current_setting('transaction_isolation'), \
                to_regprocedure($1) IS NOT NULL";
    let name = schema.of("installed()");
    let row = client.query_typed_one(text, &[(&name, Type::TEXT)]).await?;
    let installed = if row.try_get(7)? { Some(installed(client, schema).await?) } else { None };
    Ok(Found {
        version: row.try_get(0)?,
        standby: row.try_get(1)?,
        encoding: row.try_get(2)?,
        fsync: row.try_get(3)?,
        synchronous_commit: row.try_get(4)?,
        synchronous_standbys: row.try_get(5)?,
        isolation: row.try_get(6)?,
        installed,
    })
}

async fn installed(client: &Client, schema: &Schema) -> Result<(i32, i32), Error> {
    let text = format!("SELECT version, functions FROM {}", schema.of("installed()"));
    let row = client.query_typed_one(&text, &[]).await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

impl Found {
    /// Says whether the server keeps what it has committed.
    pub(super) fn check(&self, name: &str, options: &PostgresOptions) -> Result<bool, StoreError> {
        if self.version < VERSION_MIN {
            let major = self.version / 10_000;
            return Err(fatal(format!("PostgreSQL at {name} is version {major}: 12 or newer is wanted")));
        }
        if self.standby {
            return Err(StoreError::new(
                ErrorKind::Transient,
                format!("PostgreSQL at {name} is a standby: connect to the primary, or name all servers in the URL"),
            ));
        }
        if self.encoding != "UTF8" {
            return Err(fatal(format!(
                "the database at {name} has the encoding {}: names want UTF8, use another database",
                self.encoding
            )));
        }
        if self.isolation != "read committed" {
            return Err(fatal(format!(
                "transactions at {name} are {:?} by default: ALTER ROLE … SET default_transaction_isolation = 'read \
                 committed' for the store's user",
                self.isolation
            )));
        }
        if self.synchronous_commit == "off" {
            return Err(fatal(format!(
                "PostgreSQL at {name} has synchronous_commit off and may forget leases: ALTER ROLE … SET \
                 synchronous_commit = on for the store's user"
            )));
        }
        let waits = !self.synchronous_standbys.is_empty() && self.synchronous_commit != "local";
        if options.standbys == Standbys::Synchronous && !waits {
            return Err(fatal(format!(
                "PostgreSQL at {name} waits for no standby: set synchronous_standby_names there (and \
                 synchronous_commit not to local), or the option standbys to asynchronous"
            )));
        }
        let durable = self.fsync == "on";
        if !durable {
            tracing::warn!(server = name, "fsync is off: a crash of the machine may lose leases");
        }
        Ok(durable)
    }

    /// Whether the schema is there with functions that are new enough; a layout that is unknown is refused.
    pub(super) fn is_installed(&self, name: &str) -> Result<bool, StoreError> {
        is_current(self.installed, name)
    }
}

fn is_current(installed: Option<(i32, i32)>, name: &str) -> Result<bool, StoreError> {
    match installed {
        None => Ok(false),
        Some((LAYOUT, functions)) => Ok(functions >= FUNCTIONS),
        Some((layout, _)) => Err(fatal(format!(
            "the schema at {name} has layout {layout}, this release knows layout {LAYOUT}: use a release that fits, or \
             another schema"
        ))),
    }
}

pub(super) fn not_installed(name: &str, schema: &Schema) -> StoreError {
    fatal(format!(
        "PostgreSQL at {name}: the schema {:?} is not there or is older than this release, and making it is \
         switched off: let an administrator run the migration",
        schema.name()
    ))
}

/// Makes what is missing, in one transaction. Whoever comes at the same time waits for it and finds all done.
pub(super) async fn migrate(client: &mut Client, schema: &Schema, name: &str) -> Result<(), StoreError> {
    let explained = |error| explain(error, Stage::Connecting, name).0;
    let begun = client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start().await;
    let transaction = begun.map_err(explained)?;
    let limit = millis(MIGRATION_TIMEOUT);
    let patience = format!(
        "SET LOCAL statement_timeout = {limit}; SET LOCAL lock_timeout = {limit}; \
         SET LOCAL idle_in_transaction_session_timeout = {limit}; SET LOCAL client_min_messages = warning"
    );
    transaction.batch_execute(&patience).await.map_err(explained)?;
    let lock = schema.lock();
    let locked = transaction.query_typed("SELECT pg_advisory_xact_lock($1)", &[(&lock, Type::INT8)]).await;
    locked.map_err(explained)?;
    let question = format!(
        "SELECT to_regprocedure('{}') IS NOT NULL, to_regnamespace('\"{}\"') IS NOT NULL",
        schema.of("installed()"),
        schema.name()
    );
    let row = transaction.query_typed_one(&question, &[]).await.map_err(explained)?;
    let (functions, namespace): (bool, bool) = (row.try_get(0).map_err(explained)?, row.try_get(1).map_err(explained)?);
    if functions {
        let text = format!("SELECT version, functions FROM {}", schema.of("installed()"));
        let row = transaction.query_typed_one(&text, &[]).await.map_err(explained)?;
        let installed = (row.try_get(0).map_err(explained)?, row.try_get(1).map_err(explained)?);
        if is_current(Some(installed), name)? {
            return Ok(());
        }
    } else {
        // `IF NOT EXISTS` would want the right to create schemas even where there is nothing to create.
        if !namespace {
            transaction.batch_execute(&format!("CREATE SCHEMA \"{}\"", schema.name())).await.map_err(explained)?;
        }
        transaction.batch_execute(&schema.tables()).await.map_err(explained)?;
    }
    transaction.batch_execute(&schema.functions()).await.map_err(explained)?;
    transaction.commit().await.map_err(explained)?;
    tracing::info!(server = name, schema = schema.name(), "the schema was made");
    Ok(())
}
