//! The harness against real etcd servers.

use std::time::Duration;

use rendez_testkit::servers::{
    EtcdCluster, EtcdRight, EtcdServer, EtcdServerBuilder, EtcdVersion, READY_BOUND, Restart, ServerError, wait_until,
};

fn quick() -> EtcdServerBuilder {
    EtcdServer::builder().timings(Duration::from_millis(20), Duration::from_millis(200))
}

async fn get(server: &EtcdServer, key: &str) -> String {
    server.control(&["get", "--print-value-only", key]).await.unwrap()
}

fn lives(pid: u32) -> bool {
    // A zombie has no command line.
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

#[tokio::test]
async fn both_versions_run_stop_and_are_gone_when_dropped() {
    for (version, number) in [(EtcdVersion::Installed, "3."), (EtcdVersion::V3_5, "3.5.")] {
        let mut server = quick().version(version).start().await.unwrap();
        let status = server.control(&["endpoint", "status", "--write-out", "json"]).await.unwrap();
        assert!(status.contains(&format!("\"version\":\"{number}")), "{status}");
        assert_eq!(server.url(), format!("etcd://{}", server.addr().unwrap()));
        server.stop().unwrap();
        assert!(matches!(server.metric("etcd_server_is_leader").await, Err(ServerError::Timeout { .. })));
        server.resume().unwrap();
        wait_until("an answer", READY_BOUND, async || server.metric("etcd_server_is_leader").await).await.unwrap();
        let pid = server.process_id().unwrap();
        drop(server);
        assert!(!lives(pid));
    }
}

#[tokio::test]
async fn a_restart_keeps_the_port_and_the_data_that_it_should() {
    let mut server = quick().start().await.unwrap();
    let addr = server.addr().unwrap();
    server.control(&["put", "key", "kept"]).await.unwrap();
    for how in [Restart::Saved, Restart::Crashed] {
        server.restart(how).await.unwrap();
        assert_eq!(get(&server, "key").await, "kept");
    }
    assert_eq!(server.revision().await.unwrap(), 2);
    server.restart(Restart::Empty).await.unwrap();
    assert_eq!(get(&server, "key").await, "");
    assert_eq!(server.revision().await.unwrap(), 1);
    assert_eq!(server.addr().unwrap(), addr);
}

#[tokio::test]
async fn users_have_the_rights_that_they_were_given_also_after_a_wipe() {
    let mut server = quick().tls().root_password("s:e/c@r%t").start().await.unwrap();
    assert_eq!(server.url(), format!("etcds://root:s%3Ae%2Fc%40r%25t@{}", server.addr().unwrap()));
    let rights = [EtcdRight::ReadWrite("own/".to_owned()), EtcdRight::Read("seen/".to_owned())];
    server.create_user("app", "word", &rights).await.unwrap();
    let tls = server.tls().unwrap().clone();
    let endpoint = format!("https://{}", server.addr().unwrap());
    let put = |key: &str, user: &str| {
        let mut client = std::process::Command::new("etcdctl");
        client.env("ETCDCTL_API", "3").args(["--endpoints", &endpoint, "--user", user, "--cacert"]).arg(&tls.ca);
        client.args(["put", key, "value"]).output().unwrap().status.success()
    };
    assert!(put("own/key", "app:word"));
    assert!(!put("seen/key", "app:word"));
    assert!(!put("own/key", "app:wrong"));
    server.restart(Restart::Empty).await.unwrap();
    assert!(!put("own/key", "app:word"));
    server.control(&["put", "own/key", "value"]).await.unwrap();
    let server = quick().client_certificates().start().await.unwrap();
    let mut client = std::process::Command::new("etcdctl");
    client.env("ETCDCTL_API", "3").arg(format!("--endpoints=https://{}", server.addr().unwrap()));
    client.arg("--cacert").arg(&server.tls().unwrap().ca).args(["put", "key", "value"]);
    assert!(!client.output().unwrap().status.success());
    server.control(&["put", "key", "value"]).await.unwrap();
}

#[tokio::test]
async fn a_full_server_refuses_to_write_until_there_is_room() {
    let mut server = quick().quota_bytes(2 << 20).start().await.unwrap();
    server.fill().await.unwrap();
    assert!(server.control(&["alarm", "list"]).await.unwrap().contains("NOSPACE"));
    server.restart(Restart::Crashed).await.unwrap();
    assert!(server.control(&["put", "key", "value"]).await.is_err());
    server.make_room().await.unwrap();
    server.control(&["put", "key", "value"]).await.unwrap();
}

#[tokio::test]
async fn compacted_revisions_are_gone() {
    let server = quick().start().await.unwrap();
    server.control(&["put", "key", "1"]).await.unwrap();
    server.control(&["put", "key", "2"]).await.unwrap();
    assert_eq!(server.compact().await.unwrap(), 3);
    let error = server.control(&["get", "key", "--rev=2"]).await.unwrap_err();
    assert!(error.to_string().contains("compacted"), "{error}");
}

#[tokio::test]
async fn a_server_that_cannot_start_says_why() {
    let error = quick().argument("--no-such-flag").start().await.unwrap_err();
    assert!(matches!(error, ServerError::Ended { .. }));
    assert!(error.to_string().contains("no-such-flag"), "{error}");
}

#[tokio::test]
async fn a_cluster_replaces_a_stopped_leader_and_can_lose_everything() {
    let mut cluster = EtcdCluster::builder().member(quick().root_password("secret").tls()).start().await.unwrap();
    assert_eq!(cluster.url().matches(',').count(), 2);
    let old = cluster.leader().await.unwrap();
    cluster.members[old].control(&["put", "key", "value"]).await.unwrap();
    cluster.members[old].stop().unwrap();
    let new = cluster.wait_for_another_leader(old).await.unwrap();
    assert_eq!(get(&cluster.members[new], "key").await, "value");
    cluster.members[old].resume().unwrap();
    cluster.wait_ready().await.unwrap();
    assert!(matches!(cluster.members[old].restart(Restart::Empty).await, Err(ServerError::Config(_))));
    cluster.members[old].restart(Restart::Saved).await.unwrap();
    cluster.restart(Restart::Empty).await.unwrap();
    assert_eq!(get(&cluster.members[old], "key").await, "");
}
