//! Connections: made when they are needed, checked, shared, and thrown away when they fail.
//!
//! Making one goes on in the background if the request that wanted it gives up, so that a slow handshake is not begun
//! again and again.

mod fitness;
#[cfg_attr(not(feature = "tls"), path = "connect/no_tls.rs")]
mod tls;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use deadpool_postgres::{Client, Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime};
use futures_util::{StreamExt, future, stream};
use rendez_core::{ErrorKind, Fencing, StoreError};
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{NoTls, Row, Socket};

use crate::errors::{Stage, explain, timed_out, unpooled};
use crate::options::{Endpoint, PostgresOptions, Standbys};
use crate::schema::Schema;
use crate::watch::{Hints, Messages};

/// A parameter of a request, and its type: the statement is prepared, run and forgotten in one round trip, which
/// poolers understand.
pub(crate) type Parameter<'a> = (&'a (dyn tokio_postgres::types::ToSql + Sync), tokio_postgres::types::Type);

/// How long the making of the schema may take, all waiting for others who make it included.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(30);

/// Makes and keeps the connections.
pub(crate) struct Connector {
    pool: Pool,
    listen: Option<Endpoint>,
    pub(crate) options: PostgresOptions,
    pub(crate) schema: Schema,
    pub(crate) name: String,
    pub(crate) fencing: Fencing,
    /// The server was found to fit, and nothing has happened since that could have brought another.
    ready: AtomicBool,
    preparing: tokio::sync::Mutex<()>,
}

impl Connector {
    pub(crate) async fn connect(endpoint: Endpoint, options: PostgresOptions) -> Result<Arc<Self>, StoreError> {
        let config = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = if endpoint.tls {
            Manager::from_config(endpoint.config.clone(), tls::connect(&options)?, config)
        } else {
            Manager::from_config(endpoint.config.clone(), NoTls, config)
        };
        let pool = Pool::builder(manager)
            .max_size(options.connections_max)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(options.operation_timeout))
            .create_timeout(Some(options.connect_timeout))
            .build()
            .map_err(|error| {
                StoreError::new(ErrorKind::Fatal, "no pool of connections can be made").with_source(error)
            })?;
        let listen = match &options.listen_url {
            Some(url) => Some(Endpoint::parse(url, &options, false)?),
            None if options.pooled => None,
            None => Some(endpoint.clone()),
        };
        Self::with_pool(pool, listen, endpoint.name, options).await
    }

    pub(crate) async fn with_pool(
        pool: Pool,
        listen: Option<Endpoint>,
        name: String,
        options: PostgresOptions,
    ) -> Result<Arc<Self>, StoreError> {
        let schema = Schema::new(&options.schema)?;
        let mut connector = Self {
            pool,
            listen,
            options,
            schema,
            name,
            fencing: Fencing::BestEffort,
            ready: AtomicBool::new(false),
            preparing: tokio::sync::Mutex::new(()),
        };
        let mut client = connector.take().await?;
        let durable = connector.prepare(&mut client).await?;
        connector.fencing = match connector.options.standbys {
            Standbys::None if durable => Fencing::Strict,
            Standbys::Synchronous if durable => Fencing::Acknowledged,
            Standbys::None | Standbys::Synchronous | Standbys::Asynchronous => Fencing::BestEffort,
        };
        drop(client);
        Ok(Arc::new(connector))
    }

    pub(crate) fn has_watch(&self) -> bool {
        self.listen.is_some()
    }

    /// Sends a request on a connection that fits, within the operation timeout.
    pub(crate) async fn query(
        self: &Arc<Self>,
        statement: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, StoreError> {
        let limit = self.options.operation_timeout;
        let mut stage = Stage::Connecting;
        let mut client = None;
        let outcome = tokio::time::timeout(limit, async {
            let used = client.insert(self.client().await?);
            stage = Stage::Requesting;
            used.query_typed(statement, parameters).await.map_err(|error| {
                let (error, unusable) = explain(error, Stage::Requesting, &self.name);
                (error, unusable).into()
            })
        })
        .await;
        let failed: Failed = match outcome {
            Ok(Ok(rows)) => return Ok(rows),
            Ok(Err(failed)) => failed,
            Err(_) => Failed { error: timed_out(stage, &self.name, limit), unusable: true },
        };
        if failed.unusable {
            // An answer that is still on its way must not be taken for the next one's.
            if let Some(client) = client {
                drop(Object::take(client));
            }
            self.ready.store(false, Ordering::Release);
        }
        Err(failed.error)
    }

    /// A connection to a server that fits.
    async fn client(self: &Arc<Self>) -> Result<Client, StoreError> {
        let idle = self.pool.status().available > 0;
        if idle && self.ready.load(Ordering::Acquire) {
            return self.take().await;
        }
        let this = Arc::clone(self);
        let made = tokio::spawn(async move {
            let mut client = this.take().await?;
            if !this.ready.load(Ordering::Acquire) {
                let _one_by_one = this.preparing.lock().await;
                if !this.ready.load(Ordering::Acquire)
                    && let Err(error) = this.prepare(&mut client).await
                {
                    drop(Object::take(client));
                    return Err(error);
                }
            }
            Ok(client)
        });
        made.await.unwrap_or_else(|error| {
            let what = format!("PostgreSQL at {}: the making of a connection ended", self.name);
            Err(StoreError::new(ErrorKind::Transient, what).with_source(error))
        })
    }

    async fn take(&self) -> Result<Client, StoreError> {
        self.pool.get().await.map_err(|error| unpooled(error, &self.name, self.options.connect_timeout))
    }

    /// Looks whether the server fits, and makes the schema if it is not there. Says whether the server keeps what it
    /// has committed.
    async fn prepare(&self, client: &mut Client) -> Result<bool, StoreError> {
        let explained = |error| explain(error, Stage::Connecting, &self.name).0;
        let looked = tokio::time::timeout(self.options.connect_timeout, fitness::look(client, &self.schema));
        let found = looked.await.map_err(|_| timed_out(Stage::Connecting, &self.name, self.options.connect_timeout))?;
        let found = found.map_err(explained)?;
        let durable = found.check(&self.name, &self.options)?;
        if !found.is_installed(&self.name)? {
            if !self.options.migrate {
                return Err(fitness::not_installed(&self.name, &self.schema));
            }
            let made = tokio::time::timeout(MIGRATION_TIMEOUT, fitness::migrate(client, &self.schema, &self.name));
            made.await.map_err(|_| timed_out(Stage::Connecting, &self.name, MIGRATION_TIMEOUT))??;
        }
        self.ready.store(true, Ordering::Release);
        Ok(durable)
    }

    /// A connection of its own that hears a channel.
    pub(crate) async fn listen(&self, channel: &str) -> Result<Hints, StoreError> {
        let Some(endpoint) = &self.listen else {
            return Err(StoreError::new(
                ErrorKind::Unsupported,
                format!("PostgreSQL at {}: no watch through a pooler: set listen_url to the server itself", self.name),
            ));
        };
        let limit = self.options.connect_timeout;
        let made = async {
            if endpoint.tls {
                listen_with(endpoint, tls::connect(&self.options)?, channel).await
            } else {
                listen_with(endpoint, NoTls, channel).await
            }
        };
        let made = tokio::time::timeout(limit, made).await;
        made.unwrap_or_else(|_| Err(timed_out(Stage::Connecting, &endpoint.name, limit)))
    }
}

struct Failed {
    error: StoreError,
    unusable: bool,
}

impl From<(StoreError, bool)> for Failed {
    fn from((error, unusable): (StoreError, bool)) -> Self {
        Self { error, unusable }
    }
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self { error, unusable: false }
    }
}

async fn listen_with<T>(endpoint: &Endpoint, tls: T, channel: &str) -> Result<Hints, StoreError>
where
    T: MakeTlsConnect<Socket>,
    T::Stream: Send + 'static,
{
    let explained = |error| explain(error, Stage::Connecting, &endpoint.name).0;
    let (client, mut connection) = endpoint.config.connect(tls).await.map_err(explained)?;
    let mut messages: Messages = Box::pin(stream::poll_fn(move |context| connection.poll_message(context)));
    // The channel's name is made of letters, digits and underscores.
    let text = format!("LISTEN {channel}");
    {
        let heard = client.batch_execute(&text);
        futures_util::pin_mut!(heard);
        // The connection moves only while somebody asks it for messages. A hint that comes now is no loss: the watch
        // has only just begun.
        loop {
            match future::select(&mut heard, messages.next()).await {
                future::Either::Left((heard, _)) => break heard.map_err(explained)?,
                future::Either::Right((Some(Ok(_)), _)) => {}
                future::Either::Right((Some(Err(error)), _)) => return Err(explained(error)),
                future::Either::Right((None, _)) => {
                    let what = format!("PostgreSQL at {}: the connection of the watch was closed", endpoint.name);
                    return Err(StoreError::new(ErrorKind::Transient, what));
                }
            }
        }
    }
    Ok(Hints::new(client, messages))
}
