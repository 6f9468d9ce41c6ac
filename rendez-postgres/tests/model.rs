//! Random histories, sent to PostgreSQL and to the model of the contract at the same moments: they must answer the
//! same.

mod support;

use std::sync::Arc;

use rendez_core::*;
use rendez_postgres::PostgresStore;
use rendez_postgres::tokio_postgres::{Client, NoTls};
use rendez_testkit::conformance::differential::{self, Comparison, Done, World};
use rendez_testkit::servers::PostgresServer;
use support::options;

const HISTORIES: u32 = 120;

struct Server(Client);

impl World for Server {
    fn restart<'a>(&'a self, cluster: &'a ClusterName) -> Option<Done<'a, ()>> {
        Some(Box::pin(async move {
            let text = format!("UPDATE rendez.cluster SET history = '0/00000000' WHERE name = '{cluster}'");
            self.0.batch_execute(&text).await.unwrap();
        }))
    }

    fn lose_everything<'a>(&'a self, cluster: &'a ClusterName) -> Option<Done<'a, ()>> {
        Some(Box::pin(async move {
            for table in ["session", "session_info", "slot", "record", "tombstone"] {
                let text = format!(
                    "DELETE FROM rendez.{table} USING rendez.cluster c WHERE cluster = c.id AND c.name = '{cluster}'"
                );
                self.0.batch_execute(&text).await.unwrap();
            }
            let text = format!("DELETE FROM rendez.cluster WHERE name = '{cluster}'");
            self.0.batch_execute(&text).await.unwrap();
        }))
    }

    /// Where the answer does not tell the time, it is that of its last write, or shortly before now.
    fn now<'a>(&'a self, cluster: &'a ClusterName, last: StoreTime) -> Option<Done<'a, StoreTime>> {
        Some(Box::pin(async move {
            let text = format!(
                "SELECT touched_at, least((extract(epoch FROM clock_timestamp()) * 1000000)::bigint, \
                 (SELECT min(expires_at) - 1 FROM rendez.session s WHERE s.cluster = c.id)) \
                 FROM rendez.cluster c WHERE name = '{cluster}'"
            );
            let answer = self.0.query_typed(&text, &[]).await.unwrap();
            // Without a row, nothing was ever carried out.
            let Some(row) = answer.first() else { return last };
            let time = |at: usize| StoreTime::from_micros(row.get::<_, i64>(at).try_into().unwrap());
            if time(0) > last { time(0) } else { time(1) }
        }))
    }
}

#[test]
fn postgres_answers_as_the_model_does() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (_server, store, client) = runtime.block_on(async {
        let server = PostgresServer::builder().start().await.unwrap();
        let store = PostgresStore::connect(&server.url(), options()).await.unwrap();
        let (client, connection) = rendez_postgres::tokio_postgres::connect(&server.url(), NoTls).await.unwrap();
        tokio::spawn(connection);
        (server, store, client)
    });
    let store: Arc<dyn LeaseStore> = Arc::new(store);
    // It draws tokens and revisions as the model does, so whole answers can be compared.
    differential::run(&runtime, &[store], HISTORIES, Comparison::Exactly, &Server(client));
}
