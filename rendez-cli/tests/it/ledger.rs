//! A list of entries for each slot, kept in the very store of the leases and written through its fences only.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use rendez::file::{Fence as FileFence, FenceError as FileFenceError};
use rendez::postgres::tokio_postgres::{self, NoTls};
use rendez::postgres::{Fence as PostgresFence, FenceError as PostgresFenceError};
use rendez::redis::{Fence as RedisFence, FenceError as RedisFenceError, redis};
use rendez::{BoxError, FencingToken, Slot};
use rendez_core::StaleToken;
use rendez_testkit::servers::StoreKind;

/// Where entries are written, and through what.
pub(crate) enum Ledger {
    Redis(redis::Client),
    #[cfg(feature = "etcd")]
    Etcd(Box<rendez::etcd::etcd_client::Client>),
    Postgres(tokio_postgres::Client),
    File(PathBuf),
}

type Written = Result<Result<(), StaleToken>, BoxError>;

impl Ledger {
    pub(crate) async fn open(store: StoreKind, url: &str) -> Result<Self, BoxError> {
        Ok(match store {
            StoreKind::Redis => Self::Redis(redis::Client::open(url)?),
            #[cfg(feature = "etcd")]
            StoreKind::Etcd => {
                let address = url.strip_prefix("etcd://").ok_or("no address of etcd")?;
                Self::Etcd(Box::new(rendez::etcd::etcd_client::Client::connect([address], None).await?))
            }
            #[cfg(not(feature = "etcd"))]
            StoreKind::Etcd => return Err("built without etcd".into()),
            StoreKind::Kubernetes | StoreKind::Nats => return Err(format!("{store} has no fences").into()),
            StoreKind::Postgres => {
                let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
                tokio::spawn(connection);
                Self::Postgres(client)
            }
            StoreKind::File => {
                Self::File(Path::new(url.strip_prefix("file:").ok_or("no path")?).with_extension("ledger"))
            }
        })
    }

    /// Makes what entries need, once.
    pub(crate) async fn prepare(&self) -> Result<(), BoxError> {
        match self {
            Self::Postgres(client) => {
                let table = "CREATE TABLE ledger (at bigserial, slot text, token bigint)";
                client.batch_execute(table).await?;
            }
            Self::File(folder) => std::fs::create_dir(folder)?,
            Self::Redis(_) => {}
            #[cfg(feature = "etcd")]
            Self::Etcd(_) => {}
        }
        Ok(())
    }

    /// Adds an entry, if the fence lets it through.
    pub(crate) async fn write(&mut self, slot: &Slot, token: FencingToken) -> Written {
        match self {
            Self::Redis(client) => {
                let mut connection = client.get_multiplexed_async_connection().await?;
                let mut commands = redis::pipe();
                commands.rpush("{ledger}:entries", format!("{slot} {token}"));
                match RedisFence::new(format!("{{ledger}}:{slot}")).write(&mut connection, token, &commands).await {
                    Ok(_) => Ok(Ok(())),
                    Err(RedisFenceError::Stale(stale)) => Ok(Err(stale)),
                    Err(other) => Err(other.into()),
                }
            }
            #[cfg(feature = "etcd")]
            Self::Etcd(client) => {
                use rendez::etcd::etcd_client::TxnOp;
                use rendez::etcd::{Fence, FenceError};
                let entry = format!("/ledger/{slot}/{:016x}", rand());
                let operations = vec![TxnOp::put(entry, token.to_string(), None)];
                match Fence::new(format!("/fences/{slot}")).write(&mut client.kv_client(), token, operations).await {
                    Ok(_) => Ok(Ok(())),
                    Err(FenceError::Stale(stale)) => Ok(Err(stale)),
                    Err(other) => Err(other.into()),
                }
            }
            Self::Postgres(client) => {
                let transaction = client.transaction().await?;
                match PostgresFence::new(format!("ledger/{slot}")).check(&transaction, token).await {
                    Ok(()) => {}
                    Err(PostgresFenceError::Stale(stale)) => return Ok(Err(stale)),
                    Err(other) => return Err(other.into()),
                }
                let number = i64::try_from(token.get())?;
                let entry = "INSERT INTO ledger (slot, token) VALUES ($1, $2)";
                transaction.execute(entry, &[&slot.to_string(), &number]).await?;
                transaction.commit().await?;
                Ok(Ok(()))
            }
            Self::File(folder) => {
                let name = slot.to_string().replace('/', "-");
                let append = || {
                    let path = folder.join("entries");
                    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path)?;
                    // One call: other slots are written at the same time, through other fences.
                    file.write_all(format!("{slot} {token}\n").as_bytes())
                };
                match FileFence::at(folder.join(format!("{name}.fence"))).write(token, append) {
                    Ok(()) => Ok(Ok(())),
                    Err(FileFenceError::Stale(stale)) => Ok(Err(stale)),
                    Err(other) => Err(other.into()),
                }
            }
        }
    }

    /// All entries, in the order in which they were written.
    pub(crate) async fn entries(&mut self) -> Result<Vec<(Slot, FencingToken)>, BoxError> {
        let lines: Vec<String> = match self {
            Self::Redis(client) => {
                let mut connection = client.get_multiplexed_async_connection().await?;
                redis::cmd("LRANGE").arg("{ledger}:entries").arg(0).arg(-1).query_async(&mut connection).await?
            }
            #[cfg(feature = "etcd")]
            Self::Etcd(client) => {
                use rendez::etcd::etcd_client::{GetOptions, SortOrder, SortTarget};
                let options = GetOptions::new().with_prefix().with_sort(SortTarget::Create, SortOrder::Ascend);
                let found = client.get("/ledger/", Some(options)).await?;
                let line = |key: &str, token: &str| {
                    let slot =
                        key.strip_prefix("/ledger/").and_then(|rest| rest.rsplit_once('/')).map(|(slot, _)| slot);
                    slot.map(|slot| format!("{slot} {token}")).ok_or_else(|| BoxError::from(key))
                };
                found.kvs().iter().map(|kv| line(kv.key_str()?, kv.value_str()?)).collect::<Result<_, _>>()?
            }
            Self::Postgres(client) => {
                let rows = client.query("SELECT slot || ' ' || token FROM ledger ORDER BY at", &[]).await?;
                rows.iter().map(|row| row.get(0)).collect()
            }
            Self::File(folder) => std::fs::read_to_string(folder.join("entries"))?.lines().map(str::to_owned).collect(),
        };
        let parse = |line: &String| -> Result<(Slot, FencingToken), BoxError> {
            let (slot, token) = line.rsplit_once(' ').ok_or("no token")?;
            Ok((slot.parse()?, FencingToken::new(token.parse()?)))
        };
        lines.iter().map(parse).collect()
    }
}

/// A number that no other entry has.
#[cfg(feature = "etcd")]
fn rand() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(std::process::id())
}
