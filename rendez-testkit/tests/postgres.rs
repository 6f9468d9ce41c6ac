//! The harness against real PostgreSQL servers.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use rendez_testkit::servers::{PgBouncer, PostgresServer, READY_BOUND, Replication, Restart, ServerError, wait_until};

async fn at(url: &str, sql: &str) -> Result<String, ServerError> {
    PostgresServer::query_at(url, sql).await
}

fn lives(pid: u32) -> bool {
    // A zombie has no command line.
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

/// The segment of shared memory that a server holds outside of its folder.
fn segment(data: &std::path::Path) -> String {
    let text = std::fs::read_to_string(data.join("postmaster.pid")).unwrap();
    text.lines().nth(6).unwrap().split_whitespace().nth(1).unwrap().to_owned()
}

fn segment_exists(id: &str) -> bool {
    let list = std::fs::read_to_string("/proc/sysvipc/shm").unwrap();
    list.lines().any(|line| line.split_whitespace().nth(1) == Some(id))
}

fn data_folder(pid: u32) -> std::path::PathBuf {
    std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap()
}

#[tokio::test]
async fn a_server_is_gone_when_its_handle_is_dropped() {
    for killed in [false, true] {
        let mut server = PostgresServer::builder().start().await.unwrap();
        let pid = server.process_id().unwrap();
        let segment = segment(&data_folder(pid));
        assert!(segment_exists(&segment));
        if killed {
            server.kill().unwrap();
        }
        drop(server);
        assert!(!lives(pid));
        assert!(!segment_exists(&segment));
    }
}

#[tokio::test]
async fn servers_die_with_a_killed_test_process_also_when_stopped() {
    let mut holder =
        Command::new(env!("CARGO_BIN_EXE_rendez-servers")).arg("postgres").stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    let lines: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let pid: u32 = lines[1].parse().unwrap();
    let data = data_folder(pid);
    let segment = segment(&data);
    let children: Vec<String> = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .unwrap()
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    assert!(!children.is_empty());
    assert!(Command::new("kill").arg("-STOP").arg(&lines[1]).args(&children).status().unwrap().success());
    holder.kill().unwrap();
    holder.wait().unwrap();
    wait_until("all processes to die", READY_BOUND, async || {
        match children.iter().find(|child| lives(child.parse().unwrap())) {
            Some(child) => Err(format!("{child} lives")),
            None if lives(pid) => Err("the server lives".to_owned()),
            None => Ok(()),
        }
    })
    .await
    .unwrap();
    wait_until("its folder and its memory to go", READY_BOUND, async || {
        if data.exists() || segment_exists(&segment) { Err("they are there") } else { Ok(()) }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_stopped_server_is_silent_also_in_sessions_that_it_had() {
    let mut server = PostgresServer::builder().start().await.unwrap();
    let (url, sleeper) = (server.url(), "SELECT pg_sleep(0.3), 'awake'");
    let session = tokio::spawn(async move { at(&url, sleeper).await });
    let busy = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    wait_until("the session", READY_BOUND, async || match server.query(busy).await {
        Ok(count) if count == "1" => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await
    .unwrap();
    server.stop().unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!session.is_finished());
    server.resume().unwrap();
    assert_eq!(session.await.unwrap().unwrap(), "|awake");
}

#[tokio::test]
async fn a_restart_keeps_the_port_and_the_data_that_it_should() {
    let mut server = PostgresServer::builder().config("max_connections = 17").start().await.unwrap();
    let url = server.url();
    assert_eq!(at(&url, "SHOW max_connections").await.unwrap(), "17");
    assert_eq!(at(&url, "SHOW fsync").await.unwrap(), "off");
    server.query("CREATE TABLE kept (x int); INSERT INTO kept VALUES (7)").await.unwrap();
    for how in [Restart::Saved, Restart::Crashed] {
        server.restart(how).await.unwrap();
        assert_eq!(at(&url, "SELECT x FROM kept").await.unwrap(), "7");
    }
    let identifier = "SELECT system_identifier FROM pg_control_system()";
    let before = at(&url, identifier).await.unwrap();
    server.restart(Restart::Empty).await.unwrap();
    assert_ne!(at(&url, identifier).await.unwrap(), before);
    let error = at(&url, "SELECT x FROM kept").await.unwrap_err();
    assert!(error.to_string().contains("does not exist"), "{error}");
}

#[tokio::test]
async fn users_need_their_password_and_have_no_rights_at_first() {
    let server = PostgresServer::builder().fsync(true).tls().start().await.unwrap();
    let password = "p '\"\\:@/#%\u{e9}";
    server.create_user("app \"1", password).await.unwrap();
    server.query("CREATE TABLE secret (x int)").await.unwrap();
    let url = server.url_for("app \"1", password).unwrap();
    let ssl = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    assert_eq!(at(&url, ssl).await.unwrap(), "t");
    assert!(at(&url, "TABLE secret").await.unwrap_err().to_string().contains("permission denied"));
    assert!(at(&url.replace("require", "disable"), ssl).await.is_err());
    let verified =
        format!("{}&sslrootcert={}", url.replace("require", "verify-full"), server.tls().unwrap().ca.display());
    assert_eq!(at(&verified, ssl).await.unwrap(), "t");
    let wrong = server.url_for("app \"1", "wrong").unwrap();
    let error = at(&wrong, ssl).await.unwrap_err().to_string();
    assert!(error.contains("password authentication failed"), "{error}");
    assert_eq!(server.query("SHOW fsync").await.unwrap(), "on");
}

#[tokio::test]
async fn a_replica_follows_and_is_promoted_beside_its_old_primary() {
    let mut primary = PostgresServer::builder().start().await.unwrap();
    primary.query("CREATE TABLE t (x int)").await.unwrap();
    let replica = primary.start_replica(Replication::Asynchronous).await.unwrap();
    primary.query("INSERT INTO t VALUES (1)").await.unwrap();
    replica.wait_in_step(&primary).await.unwrap();
    assert_eq!(at(&replica.url(), "SELECT x FROM t").await.unwrap(), "1");
    assert!(at(&replica.url(), "INSERT INTO t VALUES (2)").await.unwrap_err().to_string().contains("read-only"));
    primary.stop().unwrap();
    replica.promote().await.unwrap();
    replica.query("INSERT INTO t VALUES (2)").await.unwrap();
    primary.resume().unwrap();
    primary.query("INSERT INTO t VALUES (3)").await.unwrap();
    // Of the file that is being written: what the control file says lags behind a promotion.
    let timeline = "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)";
    assert_ne!(replica.query(timeline).await.unwrap(), primary.query(timeline).await.unwrap());
}

#[tokio::test]
async fn commits_wait_for_a_synchronous_replica() {
    let mut primary = PostgresServer::builder().start().await.unwrap();
    let mut replica = primary.start_replica(Replication::Synchronous).await.unwrap();
    primary.query("CREATE TABLE t (x int)").await.unwrap();
    replica.stop().unwrap();
    let url = primary.url();
    let insert = tokio::spawn(async move { at(&url, "INSERT INTO t VALUES (1)").await });
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    wait_until("the commit to wait", READY_BOUND, async || match primary.query(waiting).await {
        Ok(count) if count == "1" => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await
    .unwrap();
    replica.resume().unwrap();
    insert.await.unwrap().unwrap();
}

#[tokio::test]
async fn transactions_through_pgbouncer_share_sessions() {
    let server = PostgresServer::builder().start().await.unwrap();
    server.create_user("app", "word").await.unwrap();
    let bouncer = PgBouncer::start(&server, &[("app", "word")], 1).await.unwrap();
    let who = "SELECT pg_backend_pid()";
    let url = bouncer.url_for("app", "word");
    assert_eq!(at(&url, who).await.unwrap(), at(&url, who).await.unwrap());
    assert!(at(&bouncer.url_for("app", "wrong"), who).await.is_err());
    assert_eq!(at(&bouncer.url(), "SELECT current_user").await.unwrap(), "postgres");
}

#[tokio::test]
async fn a_small_disk_is_full_or_says_that_it_needs_root() {
    let started = PostgresServer::builder().data_bytes_max(96 << 20).start().await;
    if !rustix::process::geteuid().is_root() {
        assert!(started.unwrap_err().to_string().contains("be root"));
        return;
    }
    let server = started.unwrap();
    let data = data_folder(server.process_id().unwrap());
    server.query("CREATE TABLE t (x text); INSERT INTO t VALUES ('kept')").await.unwrap();
    server.fill().unwrap();
    // More than what the server's files have left; it fits without the filling.
    let insert = "INSERT INTO t SELECT repeat(md5(n::text), 30) FROM generate_series(1, 2000) n";
    let error = server.query(insert).await.unwrap_err().to_string();
    assert!(error.contains("No space left on device") || error.contains("Check free disk space"), "{error}");
    assert_eq!(server.query("SELECT x FROM t").await.unwrap(), "kept");
    server.make_room().unwrap();
    server.query(insert).await.unwrap();
    drop(server);
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    assert!(!mounts.contains(&data.display().to_string()), "{mounts}");
    assert!(!data.exists());
}

const SMALL_DISK: &str = "RENDEZ_TEST_SMALL_DISK";

/// The part of the next test that is killed; without the variable there is nothing to hold.
#[tokio::test]
async fn holder_of_a_small_disk() {
    if std::env::var_os(SMALL_DISK).is_some() {
        let server = PostgresServer::builder().data_bytes_max(96 << 20).start().await.unwrap();
        println!("\nholds {}", server.process_id().unwrap());
        std::future::pending::<()>().await;
    }
}

#[tokio::test]
async fn a_small_disk_goes_with_a_killed_test_process() {
    // Nobody else can mount one.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let mut holder = Command::new(std::env::current_exe().unwrap());
    holder.args(["--exact", "holder_of_a_small_disk", "--nocapture"]).env(SMALL_DISK, "1").stdout(Stdio::piped());
    let mut holder = holder.spawn().unwrap();
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines().map_while(Result::ok);
    let pid = lines.find_map(|line| line.strip_prefix("holds ")?.parse().ok()).unwrap();
    let data = data_folder(pid);
    let mounted = || std::fs::read_to_string("/proc/mounts").unwrap().contains(&data.display().to_string());
    assert!(mounted());
    holder.kill().unwrap();
    holder.wait().unwrap();
    wait_until("the disk to go", READY_BOUND, async || {
        if mounted() || data.exists() || lives(pid) { Err("it is there") } else { Ok(()) }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn without_room_for_its_log_a_server_ends_and_comes_back_with_what_it_confirmed() {
    // Nobody else can mount a small disk.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let mut server = PostgresServer::builder().data_bytes_max(96 << 20).start().await.unwrap();
    server.query("CREATE TABLE t (x int); INSERT INTO t VALUES (0)").await.unwrap();
    server.fill().unwrap();
    let update = "UPDATE t SET x = x + 1; SELECT pg_logical_emit_message(false, 'a', repeat('x', 1000000))";
    let mut confirmed = 0;
    let error = loop {
        match server.query(update).await {
            Ok(_) => confirmed += 1,
            Err(error) => break error.to_string(),
        }
        assert!(confirmed < 100);
    };
    assert!(error.contains("PANIC") || error.contains("server closed the connection"), "{error}");
    assert!(matches!(server.restart(Restart::Crashed).await, Err(ServerError::Ended { .. })));
    server.make_room().unwrap();
    server.restart(Restart::Crashed).await.unwrap();
    let found: i32 = server.query("SELECT x FROM t").await.unwrap().parse().unwrap();
    // The last one may have been written without a word.
    assert!(found == confirmed || found == confirmed + 1, "{found} of {confirmed}");
}

#[tokio::test]
async fn a_clock_of_its_own_steps_for_the_sessions_that_are_there_too() {
    let server = PostgresServer::builder().clock_of_its_own().start().await.unwrap();
    let ahead = async || {
        let real = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let seen: u64 =
            server.query("SELECT extract(epoch FROM clock_timestamp())::bigint").await.unwrap().parse().unwrap();
        i64::try_from(seen).unwrap() - i64::try_from(real).unwrap()
    };
    // Between two looks a busy machine may lose some seconds.
    let near = |ahead: i64, wanted: i64| (wanted - 2..wanted + 60).contains(&ahead);
    assert!(near(ahead().await, 0));
    let url = server.url();
    let session = "SELECT extract(epoch FROM clock_timestamp())::bigint AS before, pg_sleep(3); \
                   SELECT extract(epoch FROM clock_timestamp())::bigint";
    let session = tokio::spawn(async move { at(&url, session).await });
    let busy = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    wait_until("the session", READY_BOUND, async || match server.query(busy).await {
        Ok(count) if count == "1" => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await
    .unwrap();
    server.set_clock(1000).unwrap();
    assert!(near(ahead().await, 1000));
    let seen = session.await.unwrap().unwrap();
    let times: Vec<i64> = seen.split(['|', '\n']).filter_map(|word| word.parse().ok()).collect();
    assert!(times[1] - times[0] >= 1000, "{seen}");
    server.set_clock(-1000).unwrap();
    assert!(near(ahead().await, -1000));
    server.set_clock(0).unwrap();
    assert!(near(ahead().await, 0));
}

#[tokio::test]
async fn a_clock_that_is_everybodys_is_not_set() {
    let server = PostgresServer::builder().start().await.unwrap();
    assert!(matches!(server.set_clock(60), Err(ServerError::Config(_))));
}

#[tokio::test]
async fn a_certificate_that_has_expired_is_refused_until_it_is_renewed() {
    let mut server = PostgresServer::builder().tls().start().await.unwrap();
    let ca = server.tls().unwrap().ca.display().to_string();
    let url = format!("{}&sslrootcert={ca}", server.url().replace("require", "verify-full"));
    assert_eq!(at(&url, "SELECT 1").await.unwrap(), "1");
    server.tls().unwrap().expire_server().unwrap();
    server.restart(Restart::Saved).await.unwrap();
    let error = at(&url, "SELECT 1").await.unwrap_err().to_string();
    assert!(error.contains("certificate verify failed"), "{error}");
    server.tls().unwrap().renew_server().unwrap();
    server.restart(Restart::Saved).await.unwrap();
    assert_eq!(at(&url, "SELECT 1").await.unwrap(), "1");
}

#[tokio::test]
async fn a_disk_that_is_everybodys_is_not_filled() {
    let server = PostgresServer::builder().start().await.unwrap();
    assert!(matches!(server.fill(), Err(ServerError::Config(_))));
}

#[tokio::test]
async fn a_server_that_cannot_start_says_why() {
    let error = PostgresServer::builder().config("no_such_setting = 1").start().await.unwrap_err();
    assert!(matches!(error, ServerError::Ended { .. }));
    assert!(error.to_string().contains("no_such_setting"), "{error}");
}
