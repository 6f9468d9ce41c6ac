//! A handle that remembers the last requests and their answers, for the message of a failure.

use std::collections::VecDeque;
use std::fmt::{self, Debug, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use rendez_core::{
    AdminOutcome, AdminRequest, Beat, Capabilities, ChangeReply, ChangeRequest, CloseRequest, ClusterName,
    HeartbeatRequest, LeaseStore, OpenRequest, Opening, SnapshotPage, SnapshotRequest, StoreError, Watch,
};

/// The last exchanges that a failure shows.
const EXCHANGES_KEPT: usize = 8;
/// How much of a request or an answer is shown.
const TEXT_BYTES_MAX: usize = 900;

/// The last exchanges of a case.
#[derive(Clone, Default)]
pub(super) struct Log(Arc<Mutex<VecDeque<Exchange>>>);

struct Exchange {
    number: u64,
    asked: String,
    answered: String,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Exchange>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, request: &dyn Debug) -> u64 {
        let mut exchanges = self.lock();
        let number = exchanges.back().map_or(1, |last| last.number + 1);
        exchanges.push_back(Exchange { number, asked: text(request), answered: "(nothing)".to_owned() });
        if exchanges.len() > EXCHANGES_KEPT {
            exchanges.pop_front();
        }
        number
    }

    fn answer<T: Debug>(&self, number: u64, answer: &Result<T, StoreError>) {
        let answered = match answer {
            Ok(answer) => text(answer),
            Err(error) => format!("error, {}: {error}", error.kind()),
        };
        if let Some(exchange) = self.lock().iter_mut().find(|exchange| exchange.number == number) {
            exchange.answered = answered;
        }
    }
}

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the last requests:")?;
        for Exchange { number, asked, answered } in self.lock().iter() {
            write!(f, "\n  {number}. asked    {asked}\n     answered {answered}")?;
        }
        Ok(())
    }
}

/// The beginning of what would be printed, without printing the rest.
fn text(value: &dyn Debug) -> String {
    struct Beginning(String);
    impl fmt::Write for Beginning {
        fn write_str(&mut self, part: &str) -> fmt::Result {
            if self.0.len() > TEXT_BYTES_MAX {
                return Err(fmt::Error);
            }
            self.0.push_str(part);
            Ok(())
        }
    }
    let mut beginning = Beginning(String::new());
    if write!(beginning, "{value:?}").is_err() {
        beginning.0.push('…');
    }
    beginning.0
}

/// The handle that cases use.
pub(super) struct Recorder {
    pub(super) store: Arc<dyn LeaseStore>,
    pub(super) log: Log,
}

impl Recorder {
    async fn keep<T: Debug>(
        &self,
        request: &(dyn Debug + Send + Sync),
        answer: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        let number = self.log.ask(request);
        let answer = answer.await;
        self.log.answer(number, &answer);
        answer
    }
}

#[async_trait]
impl LeaseStore for Recorder {
    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }

    async fn open(&self, cluster: &ClusterName, request: &OpenRequest) -> Result<Opening, StoreError> {
        self.keep(request, self.store.open(cluster, request)).await
    }

    async fn heartbeat(&self, cluster: &ClusterName, request: &HeartbeatRequest) -> Result<Beat, StoreError> {
        self.keep(request, self.store.heartbeat(cluster, request)).await
    }

    async fn close(&self, cluster: &ClusterName, request: &CloseRequest) -> Result<(), StoreError> {
        self.keep(request, self.store.close(cluster, request)).await
    }

    async fn change(&self, cluster: &ClusterName, request: &ChangeRequest) -> Result<ChangeReply, StoreError> {
        self.keep(request, self.store.change(cluster, request)).await
    }

    async fn snapshot(&self, cluster: &ClusterName, request: &SnapshotRequest) -> Result<SnapshotPage, StoreError> {
        self.keep(request, self.store.snapshot(cluster, request)).await
    }

    async fn administer(&self, cluster: &ClusterName, request: &AdminRequest) -> Result<AdminOutcome, StoreError> {
        self.keep(request, self.store.administer(cluster, request)).await
    }

    async fn watch(&self, cluster: &ClusterName) -> Result<Box<dyn Watch>, StoreError> {
        let answer = self.store.watch(cluster).await;
        let number = self.log.ask(&"watch");
        self.log.answer(
            number,
            &answer.as_ref().map(|_| "a watch").map_err(|error| StoreError::new(error.kind(), error.message())),
        );
        answer
    }
}
