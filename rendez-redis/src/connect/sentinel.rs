//! Which server is the primary, by the majority of the sentinels that answer.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use futures_util::future::join_all;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, ConnectionInfo};
use rendez_core::{ErrorKind, StoreError};

use super::Connector;
use crate::errors::{Stage, explain, timed_out};
use crate::options::fatal;

/// The sentinels, with a connection to each that answered.
pub(super) struct Sentinels {
    service: String,
    sentinels: Vec<Sentinel>,
}

struct Sentinel {
    info: ConnectionInfo,
    connection: Mutex<Option<MultiplexedConnection>>,
}

impl Sentinels {
    pub(super) fn new(infos: Vec<ConnectionInfo>, service: String) -> Self {
        let sentinels = infos.into_iter().map(|info| Sentinel { info, connection: Mutex::new(None) }).collect();
        Self { service, sentinels }
    }

    /// Asks all at once.
    pub(super) async fn primary(&self, connector: &Connector) -> Result<(String, u16), StoreError> {
        // Half of the time is for the server itself.
        let within = connector.options.connect_timeout / 2;
        let asked = self.sentinels.iter().map(|sentinel| async move {
            match tokio::time::timeout(within, sentinel.ask(&self.service, connector)).await {
                Ok(answer) => answer,
                Err(_) => {
                    sentinel.forget();
                    Err(timed_out(Stage::Connecting, &sentinel.info.addr().to_string(), within))
                }
            }
        });
        let mut votes = BTreeMap::<(String, u16), usize>::new();
        let mut unknown = 0;
        let mut last = None;
        for answer in join_all(asked).await {
            match answer {
                Ok(Some(addr)) => *votes.entry(addr).or_default() += 1,
                Ok(None) => unknown += 1,
                Err(error) => last = Some(error),
            }
        }
        if let Some((addr, _)) = votes.into_iter().max_by_key(|(_, count)| *count) {
            return Ok(addr);
        }
        if unknown > 0 {
            return Err(fatal(format!("the sentinels know no service {:?}", self.service)));
        }
        Err(last.unwrap_or_else(|| StoreError::new(ErrorKind::Fatal, "a redis-sentinel URL without sentinels")))
    }
}

impl Sentinel {
    async fn ask(&self, service: &str, connector: &Connector) -> Result<Option<(String, u16)>, StoreError> {
        let name = self.info.addr().to_string();
        let present = self.connection.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut connection = match present {
            Some(connection) => connection,
            None => {
                let opened = connector.open(self.info.clone()).await;
                opened.map_err(|error| explain(error, Stage::Connecting, &name).0)?
            }
        };
        let mut question = Cmd::new();
        question.arg("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(service);
        match question.query_async(&mut connection).await {
            Ok(answer) => {
                *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
                Ok(answer)
            }
            Err(error) => {
                self.forget();
                Err(explain(error, Stage::Connecting, &name).0)
            }
        }
    }

    fn forget(&self) {
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
