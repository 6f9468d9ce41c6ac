//! From a URL to a store. No message holds the URL, which may hold a password.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rendez_core::{ErrorKind, LeaseStore};
use rendez_redis::{RedisOptions, RedisStore};
use tokio::time::{Instant, sleep, timeout_at};

use crate::exit::{Exit, Failure};

const SCHEMES: &str = "redis://, rediss://, redis-sentinel://, rediss-sentinel://, redis-cluster://, rediss-cluster://";

/// The pauses between two tries to reach a store.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Where a store is. It may hold a password, so it is never shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct StoreUrl(String);

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreUrl(..)")
    }
}

impl FromStr for StoreUrl {
    type Err = String;

    fn from_str(url: &str) -> Result<Self, String> {
        let url = url.trim();
        let known = SCHEMES.split(", ").any(|scheme| url.starts_with(scheme));
        if known { Ok(Self(url.to_owned())) } else { Err(format!("this is no store: begin the URL with {SCHEMES}")) }
    }
}

/// Which store, as the command line says it. One of both, because a password in arguments is seen by all.
#[derive(Debug, Clone, clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct StoreArgs {
    /// The store, for example redis://127.0.0.1:6379
    #[arg(long, value_name = "URL", value_parser = parse_hiding)]
    store: Option<StoreUrl>,
    /// A file with the store's URL, so that a password in it does not stand in the process list
    #[arg(long, value_name = "PATH")]
    store_file: Option<PathBuf>,
}

/// The parser of clap would repeat the URL in its message; so this one never fails and the URL is checked later.
fn parse_hiding(url: &str) -> Result<StoreUrl, std::convert::Infallible> {
    Ok(StoreUrl(url.to_owned()))
}

impl StoreArgs {
    /// The URL, checked.
    pub(crate) fn url(&self) -> Result<StoreUrl, Failure> {
        let url = match (&self.store, &self.store_file) {
            (Some(StoreUrl(url)), _) => url.clone(),
            (None, Some(path)) => read(path)?,
            (None, None) => String::new(),
        };
        url.parse().map_err(|error| Failure::new(Exit::Usage, error))
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path)
        .map_err(|error| Failure::new(Exit::Usage, format!("cannot read the store file {}: {error}", path.display())))
}

impl StoreUrl {
    /// The URL itself, for a process that shall reach the same store.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }

    /// Reaches the store. What may pass is tried again until the time is over.
    pub(crate) async fn connect(&self, within: Duration, operation_timeout: Duration) -> Result<Arc<dyn LeaseStore>, Failure> {
        let give_up_at = Instant::now() + within;
        let mut pause = PAUSE_MIN;
        let mut last = "it did not answer".to_owned();
        loop {
            let mut options = RedisOptions::default();
            options.operation_timeout = operation_timeout;
            options.connect_timeout = options.connect_timeout.min(within);
            match timeout_at(give_up_at, RedisStore::connect(&self.0, options)).await {
                Ok(Ok(store)) => return Ok(Arc::new(store)),
                Ok(Err(error)) if matches!(error.kind(), ErrorKind::Fatal | ErrorKind::Unsupported) => {
                    return Err(Failure::new(Exit::Store, format!("the store refuses: {error}")));
                }
                Ok(Err(error)) => last = error.to_string(),
                Err(_) => {}
            }
            if Instant::now() + pause >= give_up_at {
                return Err(Failure::new(Exit::Store, format!("no answer from the store within {within:?}: {last}")));
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}
