//! The harness against real Redis servers.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rendez_testkit::servers::{
    READY_BOUND, RedisCluster, RedisSentinelSet, RedisServer, RespClient, RespValue, Restart, ServerError, wait_until,
};

async fn get(server: &RedisServer, key: &str) -> RespValue {
    server.command(&["GET", key]).await.unwrap()
}

fn value(text: &str) -> RespValue {
    RespValue::Bytes(text.as_bytes().to_vec())
}

fn lives(pid: u32) -> bool {
    // A zombie has no command line.
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

#[tokio::test]
async fn a_server_is_gone_when_its_handle_is_dropped() {
    let server = RedisServer::builder().start().await.unwrap();
    let (addr, pid) = (server.addr().unwrap(), server.process_id().unwrap());
    let mut client = RespClient::connect(addr).await.unwrap();
    assert_eq!(client.command(&["PING"]).await.unwrap(), RespValue::Status("PONG".into()));
    assert_eq!(server.url(), format!("redis://{addr}"));
    drop(server);
    assert!(!lives(pid));
    assert!(client.command(&["PING"]).await.is_err());
}

#[tokio::test]
async fn a_server_is_gone_after_a_panic() {
    let server = RedisServer::builder().start().await.unwrap();
    let pid = server.process_id().unwrap();
    let panicked = tokio::spawn(async move {
        let _server = server;
        panic!("on purpose");
    });
    assert!(panicked.await.is_err());
    assert!(!lives(pid));
}

#[tokio::test]
async fn servers_die_with_a_killed_test_process_also_when_stopped() {
    let mut holder =
        Command::new(env!("CARGO_BIN_EXE_rendez-servers")).arg("redis").stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    let lines: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let pid: u32 = lines[1].parse().unwrap();
    assert!(lives(pid));
    let data = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
    assert!(data.ends_with("data") && data.is_dir());
    assert!(Command::new("kill").args(["-STOP", &lines[1]]).status().unwrap().success());
    holder.kill().unwrap();
    holder.wait().unwrap();
    wait_until("the server to die", READY_BOUND, async || if lives(pid) { Err("it lives") } else { Ok(()) })
        .await
        .unwrap();
    let folder = data.parent().unwrap();
    wait_until("its folder to go", READY_BOUND, async || if folder.exists() { Err("it is there") } else { Ok(()) })
        .await
        .unwrap();
}

#[tokio::test]
async fn several_servers_are_named_for_the_environment_and_end_with_the_input() {
    let mut holder = Command::new(env!("CARGO_BIN_EXE_rendez-servers"));
    holder.args(["--until-end-of-input", "redis", "redis-sentinel"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut holder = holder.spawn().unwrap();
    let lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    let lines: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let addr = lines[0].strip_prefix("RENDEZ_TEST_REDIS_URL=redis://").unwrap().parse().unwrap();
    assert!(lines[1].starts_with("RENDEZ_TEST_REDIS_SENTINEL_URL=redis-sentinel://127.0.0.1:"));
    assert_eq!(lines.len(), 2);
    let mut client = RespClient::connect(addr).await.unwrap();
    client.command(&["PING"]).await.unwrap();
    drop(holder.stdin.take());
    assert!(holder.wait().unwrap().success());
    assert!(client.command(&["PING"]).await.is_err());
}

#[tokio::test]
async fn a_stopped_server_is_silent_and_a_resumed_one_answers() {
    let mut server = RedisServer::builder().start().await.unwrap();
    let mut client = RespClient::connect(server.addr().unwrap()).await.unwrap();
    server.stop().unwrap();
    let pid = server.process_id().unwrap();
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    assert!(state.contains(") T "), "{state}");
    {
        let ping = client.command(&["PING"]);
        tokio::pin!(ping);
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut ping).await.is_err());
        server.resume().unwrap();
        assert!(ping.await.is_ok());
    }
    server.kill().unwrap();
    assert!(!lives(pid));
    assert!(matches!(server.stop(), Err(ServerError::Config(_))));
}

#[tokio::test]
async fn a_restart_keeps_the_port_and_the_data_that_it_should() {
    let mut server = RedisServer::builder().start().await.unwrap();
    let addr = server.addr().unwrap();
    server.command(&["SET", "key", "kept"]).await.unwrap();
    server.restart(Restart::Saved).await.unwrap();
    assert_eq!(get(&server, "key").await, value("kept"));
    server.command(&["SET", "key", "not saved"]).await.unwrap();
    server.restart(Restart::Crashed).await.unwrap();
    assert_eq!(get(&server, "key").await, value("kept"));
    server.restart(Restart::Empty).await.unwrap();
    assert_eq!(get(&server, "key").await, RespValue::Nil);
    assert_eq!(server.addr().unwrap(), addr);
    assert!(RespClient::connect(addr).await.is_ok());
}

#[tokio::test]
async fn an_append_only_file_survives_a_crash() {
    let mut server = RedisServer::builder().append_only(true).start().await.unwrap();
    server.command(&["SET", "key", "value"]).await.unwrap();
    server.restart(Restart::Crashed).await.unwrap();
    assert_eq!(get(&server, "key").await, value("value"));
}

#[tokio::test]
async fn passwords_and_users_are_enforced_and_stand_in_the_urls() {
    let password = "p \"\\:@/#%\u{e9}";
    let server = RedisServer::builder().password(password).user("reader", "on >r ~{x}* +get +ping").start();
    let server = server.await.unwrap();
    let mut client = RespClient::connect(server.addr().unwrap()).await.unwrap();
    assert!(matches!(client.send(&["PING"]).await.unwrap(), RespValue::Error(code) if code.starts_with("NOAUTH")));
    client.command(&["AUTH", password]).await.unwrap();
    client.command(&["SET", "{x}1", "v"]).await.unwrap();
    client.command(&["AUTH", "reader", "r"]).await.unwrap();
    assert_eq!(client.command(&["GET", "{x}1"]).await.unwrap(), value("v"));
    assert!(matches!(client.send(&["SET", "{x}1", "w"]).await.unwrap(), RespValue::Error(_)));
    let addr = server.addr().unwrap();
    assert_eq!(server.url(), format!("redis://:p%20%22%5C%3A%40%2F%23%25%C3%A9@{addr}"));
    assert_eq!(server.url_for("reader", "r").unwrap(), format!("redis://reader:r@{addr}"));
}

#[tokio::test]
async fn memory_limit_and_policy_reach_the_server() {
    let server = RedisServer::builder().max_memory(2_000_000, "allkeys-lru").config("maxclients 50").start();
    let server = server.await.unwrap();
    assert_eq!(server.info("maxmemory_policy").await.unwrap(), "allkeys-lru");
    assert_eq!(server.info("maxmemory").await.unwrap(), "2000000");
    assert_eq!(server.info("maxclients").await.unwrap(), "50");
}

#[tokio::test]
async fn tls_is_spoken_with_certificates_of_the_own_authority() {
    let server = RedisServer::builder().tls().config("tls-auth-clients yes").start().await.unwrap();
    let tls = server.tls().unwrap();
    let port = server.addr().unwrap().port().to_string();
    let ping = |cert: Option<(&Path, &Path)>| {
        let mut client = Command::new("redis-cli");
        client.args(["-h", "localhost", "-p", &port, "--tls", "--sni", "localhost", "--cacert"]).arg(&tls.ca);
        if let Some((cert, key)) = cert {
            client.arg("--cert").arg(cert).arg("--key").arg(key);
        }
        String::from_utf8(client.arg("PING").stdin(Stdio::null()).output().unwrap().stdout).unwrap()
    };
    assert_eq!(ping(Some((&tls.client_cert, &tls.client_key))), "PONG\n");
    assert_ne!(ping(None), "PONG\n");
    assert!(server.url().starts_with("rediss://127.0.0.1:"));
}

#[tokio::test]
async fn a_server_that_cannot_start_says_why() {
    let error = RedisServer::builder().config("no-such-setting 1").start().await.unwrap_err();
    assert!(matches!(error, ServerError::Ended { .. }));
    assert!(error.to_string().contains("no-such-setting"), "{error}");
}

#[tokio::test]
async fn a_replica_follows() {
    let primary = RedisServer::builder().password("secret").start().await.unwrap();
    primary.command(&["SET", "key", "value"]).await.unwrap();
    let replica = primary.start_replica().await.unwrap();
    assert_eq!(get(&replica, "key").await, value("value"));
    assert_eq!(replica.info("role").await.unwrap(), "slave");
}

#[tokio::test]
async fn sentinels_replace_a_killed_primary() {
    let mut set = RedisSentinelSet::builder().replicas(2).start().await.unwrap();
    assert_eq!(set.url().matches(':').count(), 1 + set.sentinels.len());
    assert_eq!(set.primary().await.unwrap(), 0);
    set.sentinels[0].kill();
    set.sentinels[0].restart().await.unwrap();
    set.wait_ready().await.unwrap();
    set.servers[0].kill().unwrap();
    let new = set.wait_for_failover(0).await.unwrap();
    set.servers[new].command(&["SET", "key", "value"]).await.unwrap();
    // The old one comes back as a replica.
    set.servers[0].restart(Restart::Crashed).await.unwrap();
    let follows =
        wait_until("the old primary to follow", READY_BOUND, async || match set.servers[0].info("role").await {
            Ok(role) if role == "slave" => Ok(()),
            other => Err(format!("{other:?}")),
        });
    follows.await.unwrap();
    set.servers[0].wait_in_step().await.unwrap();
    assert_eq!(get(&set.servers[0], "key").await, value("value"));
}

#[tokio::test]
async fn a_cluster_replaces_a_killed_primary() {
    let mut cluster = RedisCluster::builder().start().await.unwrap();
    assert_eq!(cluster.servers.len(), 6);
    let old = cluster.primary_of("{a}").await.unwrap();
    assert!(old < 3);
    cluster.servers[old].command(&["SET", "{a}", "value"]).await.unwrap();
    assert_eq!(cluster.servers[old].command(&["WAIT", "1", "0"]).await.unwrap(), RespValue::Integer(1));
    cluster.servers[old].kill().unwrap();
    let new = cluster.wait_for_failover("{a}", old).await.unwrap();
    assert_eq!(new, old + 3);
    assert_eq!(get(&cluster.servers[new], "{a}").await, value("value"));
    cluster.servers[old].restart(Restart::Crashed).await.unwrap();
    cluster.wait_ready().await.unwrap();
}
