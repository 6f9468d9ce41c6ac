//! From the configuration to the store. No message holds the address, which may hold a password.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rendez::{ErrorKind, LeaseStore, ResolvedConfig};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout_at};

use crate::exit::{Exit, Failure};

/// The pauses between two tries to reach a store.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A [`rendez::StoreUrl`] that can be handed to another process. It may hold a password, so it is never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoreUrl {
    url: String,
    #[serde(default)]
    options: BTreeMap<String, String>,
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreUrl(..)")
    }
}

impl StoreUrl {
    /// The store of a configuration, if it is one that this program can speak to.
    pub(crate) fn of(config: &ResolvedConfig) -> Result<Self, Failure> {
        let Some(url) = config.store.clone() else {
            return Err(Failure::new(Exit::Usage, "which store? give --store URL or --store-file PATH"));
        };
        let store = Self { url, options: config.store_options.clone() };
        store.checked()?;
        Ok(store)
    }

    /// Whether other processes can reach it too.
    pub(crate) fn is_shared(&self) -> bool {
        self.checked().is_ok_and(|url| url.is_shared())
    }

    /// Reaches the store. What may pass is tried again until the time is over.
    pub(crate) async fn connect(
        &self,
        within: Duration,
        operation_timeout: Duration,
    ) -> Result<Arc<dyn LeaseStore>, Failure> {
        let url = self.checked()?;
        let give_up_at = Instant::now() + within;
        let mut pause = PAUSE_MIN;
        let mut last = "it does not answer".to_owned();
        loop {
            match timeout_at(give_up_at, url.connect(operation_timeout, within)).await {
                Ok(Ok(store)) => return Ok(store),
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

    fn checked(&self) -> Result<rendez::StoreUrl, Failure> {
        let url = rendez::StoreUrl::parse(&self.url).and_then(|url| url.with_options(&self.options));
        url.map_err(|error| Failure::new(Exit::Usage, error.to_string()))
    }
}
