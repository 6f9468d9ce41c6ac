//! Random histories, sent to Redis and to the model of the contract at the same moments: they must answer the same.

mod support;

use std::sync::Arc;

use rendez_core::*;
use rendez_redis::RedisStore;
use rendez_testkit::conformance::differential::{self, Comparison, Done, World};
use rendez_testkit::servers::RedisServer;
use support::options;

const HISTORIES: u32 = 200;

struct Server(RedisServer);

impl Server {
    fn key(&self, cluster: &ClusterName, name: &str) -> String {
        format!("rendez:{{{}}}:{name}", cluster.as_str().replace(' ', "%20"))
    }

    async fn clock(&self) -> StoreTime {
        let time = self.0.command(&["TIME"]).await.unwrap();
        let part = |at: usize| time.items()[at].text().parse::<u64>().unwrap();
        StoreTime::from_micros(part(0) * 1_000_000 + part(1))
    }
}

impl World for Server {
    fn restart<'a>(&'a self, _: &'a ClusterName) -> Option<Done<'a, ()>> {
        Some(Box::pin(async {
            self.0.command(&["DEBUG", "CHANGE-REPL-ID"]).await.unwrap();
        }))
    }

    fn lose_everything<'a>(&'a self, cluster: &'a ClusterName) -> Option<Done<'a, ()>> {
        Some(Box::pin(async move {
            for name in ["meta", "sessions", "expiry", "slots", "records", "log", "checkpoints"] {
                self.0.command(&["DEL", &self.key(cluster, name)]).await.unwrap();
            }
        }))
    }

    /// Where the answer does not tell the time, it is when a quiet time began, or shortly before now.
    fn now<'a>(&'a self, cluster: &'a ClusterName, last: StoreTime) -> Option<Done<'a, StoreTime>> {
        Some(Box::pin(async move {
            let state = self.0.command(&["HGET", &self.key(cluster, "meta"), "state"]).await.unwrap().text();
            let began = state.split(' ').nth(4).and_then(|began| began.parse().ok());
            let began = StoreTime::from_micros(began.unwrap_or(0));
            // The sessions that were not reaped had not ended.
            let range = ["ZRANGE", &self.key(cluster, "expiry"), "0", "0", "WITHSCORES"];
            let first = self.0.command(&range).await.unwrap();
            let first = first.items().get(1).and_then(|score| score.text().parse().ok()).unwrap_or(u64::MAX);
            let before = StoreTime::from_micros(first - 1).min(self.clock().await);
            if began > last { began } else { before }
        }))
    }

    /// Its state keeps the longest TTL that settings or sessions had, for they may be what is lost.
    fn writes_settings(&self) -> bool {
        false
    }
}

#[test]
fn redis_answers_as_the_model_does() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (server, store) = runtime.block_on(async {
        let server = RedisServer::builder().config("enable-debug-command yes").start().await.unwrap();
        let store = RedisStore::connect(&server.url(), options()).await.unwrap();
        (server, store)
    });
    let store: Arc<dyn LeaseStore> = Arc::new(store);
    // Redis draws tokens and revisions as the model does, so whole answers can be compared.
    differential::run(&runtime, &[store], HISTORIES, Comparison::Exactly, &Server(server));
}
