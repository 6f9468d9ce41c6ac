//! One fault a store of those that `cargo xtask faults` runs through, so that each is seen by every run of the tests.

use std::time::Duration;

use rendez_testkit::clock;
use rendez_testkit::servers::{PostgresServer, RedisServer, Replication};
use rustix::fs::{FlockOperation, flock};

use crate::stage::{Agent, Stage, TTL, shares_of};

const SLOTS: usize = 8;

/// Two agents that share all slots.
fn two(stage: &Stage, set: &[(&str, &str)]) -> [Agent; 2] {
    let agents = ["one", "two"].map(|node| {
        let launch = stage.agent(node).workloads(&["inbox=8"]);
        set.iter().fold(launch, |launch, (key, value)| launch.set(key, value)).start()
    });
    stage.wait_for_shares(&[("one", SLOTS / 2), ("two", SLOTS / 2)]);
    agents
}

/// All runs again on both, and neither had to be started again.
fn judge(stage: &Stage, mut agents: [Agent; 2]) {
    stage.wait("all to run on both", |running| running.len() == SLOTS && shares_of(running).len() == 2);
    assert!(agents.iter_mut().all(Agent::goes_on));
    drop(agents);
    stage.report().assert_good();
}

fn wait_for_the_end_of_all(stage: &Stage) {
    stage.wait("the end of all", |running| running.is_empty());
}

/// Refused credentials are never tried again hot, and still nobody has to be started again when they are given back.
#[tokio::test]
async fn redis_credentials_that_are_revoked_and_given_back() {
    let rules = "on >word ~rendez:* &rendez:* +@all";
    let redis = RedisServer::builder().user("app", rules).start().await.unwrap();
    let stage = Stage::new(&redis.url_for("app", "word").unwrap());
    let agents = two(&stage, &[]);
    redis.command(&["ACL", "SETUSER", "app", "off"]).await.unwrap();
    redis.command(&["CLIENT", "KILL", "USER", "app"]).await.unwrap();
    let revoked = clock::now();
    wait_for_the_end_of_all(&stage);
    for run in stage.report().runs.values().flatten() {
        assert!(run.until <= revoked + TTL, "{run:?} went on after its deadline");
    }
    redis.command(&["ACL", "SETUSER", "app", "on"]).await.unwrap();
    judge(&stage, agents);
}

#[cfg(feature = "etcd")]
#[tokio::test]
async fn an_etcd_certificate_that_expires_and_is_renewed() {
    use rendez_testkit::servers::{EtcdServer, Restart};

    let mut etcd = EtcdServer::builder().tls().start().await.unwrap();
    let tls = etcd.tls().unwrap().clone();
    let stage = Stage::new(&etcd.url());
    let options = format!("{{ tls_authorities_file = \"{}\" }}", tls.ca.display());
    let agents = two(&stage, &[("store_options", &options)]);
    tls.expire_server().unwrap();
    etcd.restart(Restart::Crashed).await.unwrap();
    let expired = clock::now();
    wait_for_the_end_of_all(&stage);
    for run in stage.report().runs.values().flatten() {
        assert!(run.until <= expired + TTL, "{run:?} went on after its deadline");
    }
    tls.renew_server().unwrap();
    etcd.restart(Restart::Crashed).await.unwrap();
    judge(&stage, agents);
}

/// What the standby has not got was granted by nobody, for a quiet time that is longer than every session.
#[tokio::test]
async fn a_postgres_standby_that_lacks_the_last_writes_is_promoted() {
    let mut primary = PostgresServer::builder().start().await.unwrap();
    let standby = primary.start_replica(Replication::Asynchronous).await.unwrap();
    let (first, second) = (primary.addr().unwrap().to_string(), standby.addr().unwrap().to_string());
    let stage = Stage::new(&primary.url().replace(&first, &format!("{first},{second}")));
    let options = "{ standbys = \"asynchronous\", replica_lag_max = \"5s\" }";
    let agents = two(&stage, &[("store_options", options)]);
    standby.query("ALTER SYSTEM SET primary_conninfo = 'host=/nowhere'").await.unwrap();
    standby.query("SELECT pg_reload_conf()").await.unwrap();
    // A third node is granted slots that the standby will never hear of.
    let third = stage.agent("three").workloads(&["inbox=8"]).set("cooldown", "1s").set("runtime_min", "1s").start();
    stage.wait("the third to run something", |running| shares_of(running).contains_key("three"));
    primary.kill().unwrap();
    standby.promote().await.unwrap();
    stage.wait_that("the new generation", || agents.iter().all(|agent| agent.says("may have lost data")));
    stage.wait("all to run on all three", |running| running.len() == SLOTS && shares_of(running).len() == 3);
    drop(third);
    judge(&stage, agents);
}

/// A process that stands still while it has the lock of the folder keeps all others from it.
#[tokio::test]
async fn the_lock_of_a_folder_that_is_held_for_long() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let stage = Stage::new(&format!("file:{}", store.display()));
    let agents = two(&stage, &[]);
    let lock = std::fs::File::open(store.join("rendez-1/c/lock")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let locked = clock::now();
    wait_for_the_end_of_all(&stage);
    std::thread::sleep((locked + 2 * TTL).since(clock::now()).max(Duration::from_millis(1)));
    assert!(stage.running().is_empty());
    for run in stage.report().runs.values().flatten() {
        assert!(run.until <= locked + TTL, "{run:?} went on after its deadline");
    }
    drop(lock);
    judge(&stage, agents);
}
