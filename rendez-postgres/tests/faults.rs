//! What happens when connections, servers, disks, rights and plans fail.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use rendez_core::*;
use rendez_postgres::tokio_postgres::{self, NoTls};
use rendez_postgres::{PostgresOptions, PostgresStore, Standbys, TlsFiles};
use rendez_testkit::proxy::Proxy;
use rendez_testkit::servers::{PgBouncer, PostgresServer, Replication, Restart, wait_until};
use support::*;

const NONE: FencingToken = FencingToken::NONE;
const BOUND: Duration = Duration::from_secs(60);

/// Asks until it works; every failure on the way must be one that says: ask again.
async fn persist<T>(what: &str, mut ask: impl AsyncFnMut() -> Result<T, StoreError>) -> T {
    let begun = Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) => {
                let again = [ErrorKind::Transient, ErrorKind::Ambiguous, ErrorKind::Throttled].contains(&error.kind());
                assert!(again && begun.elapsed() < BOUND, "{what}: {error:?}");
                tokio::time::sleep(millis(50)).await;
            }
        }
    }
}

fn fails(result: Result<PostgresStore, StoreError>, kind: ErrorKind, word: &str) -> StoreError {
    let error = result.err().unwrap();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.message().contains(word), "{word}: {error}");
    error
}

// Connections.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_connection_leaves_the_outcome_open_and_the_retry_has_the_effect_of_one() {
    let world = Arc::new(World::new().await);
    let session = world.open("a").await;
    let killer = Arc::clone(&world);
    let killing = tokio::spawn(async move {
        for _ in 0..15 {
            killer
                .sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'rendez'")
                .await;
        }
    });
    let (mut failed, mut tokens) = (0, Vec::new());
    let mut unit = 0;
    while !killing.is_finished() || unit < 50 {
        let at = Slot::new("w".try_into().unwrap(), unit);
        unit += 1;
        let kind = acquire();
        let reply = persist("acquiring", async || {
            let reply = world.changes(session, vec![(at.clone(), NONE, kind.clone())]).await;
            failed += usize::from(reply.is_err());
            reply
        });
        tokens.push(done(reply.await.outcomes[0].clone()).token);
    }
    killing.await.unwrap();
    assert!(failed > 0, "none of {unit} requests met a kill");
    assert!(tokens.windows(2).all(|pair| pair[0] < pair[1]));
    let beat = persist("a heartbeat", async || world.beat(session).await).await;
    assert_eq!(beat.held.count, u64::from(unit));
    assert_eq!(world.slots().await.len(), unit as usize);
}

#[tokio::test]
async fn lost_replies_and_frozen_servers_are_ambiguous_within_the_timeout() {
    let mut world = World::new().await;
    let proxy = Proxy::start(world.server().addr().unwrap()).await.unwrap();
    let url = world.server().url().replace(&world.server().addr().unwrap().to_string(), &proxy.addr().to_string());
    world.store = PostgresStore::connect(&url, options()).await.unwrap();
    let session = world.open("a").await;
    let at = slot("w/0");
    let kind = acquire();
    proxy.drop_replies();
    let error = world.changes(session, vec![(at.clone(), NONE, kind.clone())]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Ambiguous, "{error}");
    proxy.heal().await.unwrap();
    let reply = persist("again", async || world.changes(session, vec![(at.clone(), NONE, kind.clone())]).await).await;
    let token = done(reply.outcomes[0].clone()).token;
    assert_eq!(world.slots().await[&at].token, token);

    let mut short = options();
    short.operation_timeout = millis(400);
    let patient = std::mem::replace(&mut world.store, PostgresStore::connect(&url, short).await.unwrap());
    world.server.as_mut().unwrap().stop().unwrap();
    for _ in 0..3 {
        let begun = Instant::now();
        let error = world.beat(session).await.unwrap_err();
        assert!([ErrorKind::Ambiguous, ErrorKind::Transient].contains(&error.kind()), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(20), "no request waits much longer than its timeout");
    }
    world.server.as_mut().unwrap().resume().unwrap();
    persist("after the freeze", async || world.beat(session).await).await;
    world.store = patient;
    persist("whose connection was cut before", async || world.beat(session).await).await;
}

#[tokio::test]
async fn a_statement_that_takes_too_long_is_ended_by_the_server() {
    let world = World::new().await;
    let session = world.open("a").await;
    let mut patient = options();
    patient.operation_timeout = millis(300);
    let store = PostgresStore::connect(&world.server().url(), patient).await.unwrap();
    let (mut client, connection) = tokio_postgres::connect(&world.server().url(), NoTls).await.unwrap();
    tokio::spawn(connection);
    let lock = client.transaction().await.unwrap();
    lock.batch_execute("SELECT FROM rendez.session FOR UPDATE").await.unwrap();
    // A heartbeat waits for its own row only, and not for ever, also on the server.
    let error = store.heartbeat(&world.cluster, &world.beat_request(session)).await.unwrap_err();
    assert!([ErrorKind::Ambiguous, ErrorKind::Transient].contains(&error.kind()), "{error}");
    wait_until("the server to give up", BOUND, async || {
        let waiting = world.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'").await;
        if waiting == "0" { Ok(()) } else { Err(waiting) }
    })
    .await
    .unwrap();
    lock.rollback().await.unwrap();
    persist("the row is free", async || store.heartbeat(&world.cluster, &world.beat_request(session)).await).await;
}

#[tokio::test]
async fn a_deadlock_with_somebody_elses_transaction_is_transient() {
    let server = PostgresServer::builder().config("deadlock_timeout = '500ms'").start().await.unwrap();
    let world = Arc::new(World::with(server).await);
    let session = world.open("a").await;
    let (mut client, connection) = tokio_postgres::connect(&world.server().url(), NoTls).await.unwrap();
    tokio::spawn(connection);
    client.batch_execute("SET deadlock_timeout = '60s'").await.unwrap();
    let theirs = client.transaction().await.unwrap();
    theirs.batch_execute("SELECT FROM rendez.session FOR UPDATE").await.unwrap();
    let ours = Arc::clone(&world);
    let kind = acquire();
    let again = kind.clone();
    let change = tokio::spawn(async move { ours.changes(session, vec![(slot("w/0"), NONE, kind)]).await });
    wait_until("the change to wait", BOUND, async || {
        let waiting = world.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'").await;
        if waiting == "1" { Ok(()) } else { Err(waiting) }
    })
    .await
    .unwrap();
    // Against the order of locks; they wait more patiently, so that it is ours that is ended.
    theirs.batch_execute("SELECT FROM rendez.cluster FOR UPDATE").await.unwrap();
    let error = change.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    assert!(error.message().contains("40P01") || error.message().contains("55P03"), "{error}");
    theirs.rollback().await.unwrap();
    assert!(world.slots().await.is_empty());
    world.changes(session, vec![(slot("w/0"), NONE, again)]).await.unwrap();
}

#[tokio::test]
async fn too_many_connections_are_throttled() {
    let server = PostgresServer::builder();
    let server =
        server.config("max_connections = 6").config("superuser_reserved_connections = 0").start().await.unwrap();
    let world = World::with(server).await;
    let url = world.server().url();
    let mut others = Vec::new();
    let refused = loop {
        match tokio_postgres::connect(&url, NoTls).await {
            Ok((client, connection)) => {
                tokio::spawn(connection);
                others.push(client);
                assert!(others.len() < 20);
            }
            Err(_) => break PostgresStore::connect(&url, options()).await,
        }
    };
    fails(refused, ErrorKind::Throttled, "53300");
    drop(others);
    persist("room again", async || PostgresStore::connect(&url, options()).await).await;
}

// Servers.

#[tokio::test]
async fn a_standby_is_refused_and_found_out_among_several() {
    let mut primary = PostgresServer::builder().start().await.unwrap();
    let replica = primary.start_replica(Replication::Asynchronous).await.unwrap();
    // Also where the schema is there already.
    let store = PostgresStore::connect(&primary.url(), options()).await.unwrap();
    replica.wait_in_step(&primary).await.unwrap();
    fails(PostgresStore::connect(&replica.url(), options()).await, ErrorKind::Transient, "standby");
    assert_eq!(store.capabilities().fencing, Fencing::BestEffort, "fsync is off on servers for tests");
    let both = format!("{},{}", replica.addr().unwrap(), primary.addr().unwrap());
    let url = primary.url().replace(&primary.addr().unwrap().to_string(), &both);
    let world = World { server: Some(primary), ..World::on(PostgresStore::connect(&url, options()).await.unwrap()) };
    world.open("a").await;
}

#[tokio::test]
async fn a_promoted_standby_that_lags_brings_a_new_generation_and_a_quiet_time() {
    let mut primary = PostgresServer::builder().start().await.unwrap();
    let replica = primary.start_replica(Replication::Asynchronous).await.unwrap();
    let both = format!("{},{}", primary.addr().unwrap(), replica.addr().unwrap());
    let url = primary.url().replace(&primary.addr().unwrap().to_string(), &both);
    let mut lagging = options();
    lagging.standbys = Standbys::Asynchronous;
    lagging.replica_lag_max = Duration::from_secs(2);
    let mut world = World::on(PostgresStore::connect(&url, lagging).await.unwrap());
    let session = world.open("a").await;
    let kept = world.acquire(session, &slot("w/0"), NONE).await;
    replica.wait_in_step(&primary).await.unwrap();
    // From here on it lags.
    replica.query("ALTER SYSTEM SET primary_conninfo = ''").await.unwrap();
    replica.query("SELECT pg_reload_conf()").await.unwrap();
    wait_until("the replica to be cut off", BOUND, async || {
        let streams = primary.query("SELECT count(*) FROM pg_stat_replication").await.unwrap();
        if streams.trim() == "0" { Ok(()) } else { Err(streams) }
    })
    .await
    .unwrap();
    let lost = world.acquire(session, &slot("w/1"), NONE).await;
    let before = world.beat(session).await.unwrap();
    assert_eq!(before.held.count, 2);
    world.known = Known { generation: Some(before.stamp.generation), token: lost, session_ttl_max: TTL_MAX };
    primary.kill().unwrap();
    replica.promote().await.unwrap();
    let beat = persist("the promoted one", async || world.beat(session).await).await;
    assert_ne!(beat.stamp.generation, before.stamp.generation);
    assert_eq!(beat.held.count, 1, "the other grant was lost");
    let whole = TTL_MAX + Duration::from_secs(3);
    assert!(beat.stamp.quiet <= whole && beat.stamp.quiet > whole - Duration::from_secs(30), "{:?}", beat.stamp.quiet);
    let refused = world.change(session, &slot("w/2"), NONE, acquire()).await;
    assert_eq!(conflict(&refused), Conflict::Quiet);
    // Who ran it goes on under its token, which the store had forgotten.
    world.known.generation = Some(beat.stamp.generation);
    let record = done(world.change(session, &slot("w/1"), lost, ChangeKind::Readopt).await);
    assert!(record.token == lost && lost > kept && beat.stamp.token > lost);
}

#[tokio::test]
async fn a_commit_that_waits_for_its_standby_is_ambiguous_until_it_has_it() {
    let mut primary = PostgresServer::builder().fsync(true).start().await.unwrap();
    let mut waiting = options();
    waiting.standbys = Standbys::Synchronous;
    fails(PostgresStore::connect(&primary.url(), waiting.clone()).await, ErrorKind::Fatal, "synchronous_standby_names");
    let mut replica = primary.start_replica(Replication::Synchronous).await.unwrap();
    waiting.operation_timeout = millis(700);
    let mut world = World::on(PostgresStore::connect(&primary.url(), waiting).await.unwrap());
    assert_eq!(world.store.capabilities().fencing, Fencing::Acknowledged);
    assert_eq!(world.store.capabilities().replica_lag_max, Duration::ZERO);
    let session = persist("opening", async || world.try_open(open_request("a")).await).await;
    let session = opened(session).0;
    world.known.generation = Some(persist("beat", async || world.beat(session).await).await.stamp.generation);
    replica.stop().unwrap();
    let kind = acquire();
    let asked = async |world: &World| world.changes(session, vec![(slot("w/0"), NONE, kind.clone())]).await;
    let error = asked(&world).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Ambiguous, "{error}");
    replica.resume().unwrap();
    let reply = persist("the standby is back", async || asked(&world).await).await;
    done(reply.outcomes[0].clone());
    drop(primary);
}

#[tokio::test]
async fn restarts_lose_nothing_and_an_empty_one_is_noticed_by_who_remembers() {
    let mut world = World::new().await;
    let session = world.open("a").await;
    let token = world.acquire(session, &slot("w/0"), NONE).await;
    let stamp = world.beat(session).await.unwrap().stamp;
    world.known = Known { generation: Some(stamp.generation), token: stamp.token, session_ttl_max: TTL_MAX };
    for how in [Restart::Saved, Restart::Crashed] {
        world.server.as_mut().unwrap().restart(how).await.unwrap();
        let beat = persist("after a restart", async || world.beat(session).await).await;
        assert_eq!((beat.stamp.generation, beat.stamp.quiet, beat.held.count), (stamp.generation, Duration::ZERO, 1));
    }
    world.server.as_mut().unwrap().restart(Restart::Empty).await.unwrap();
    let beginning = Instant::now();
    let error = loop {
        match world.beat(session).await {
            Err(error) if error.kind() == ErrorKind::Lost => break error,
            Err(error) if beginning.elapsed() < BOUND && error.kind() != ErrorKind::Fatal => {
                tokio::time::sleep(millis(50)).await;
            }
            other => panic!("{other:?}"),
        }
    };
    assert!(error.message().contains("does not live"));
    let (again, after) = opened(world.try_open(open_request("a")).await.unwrap());
    assert_ne!(after.generation, stamp.generation);
    assert!(after.quiet > Duration::from_secs(50) && after.token > token, "{after:?}");
    world.known.generation = Some(after.generation);
    assert_eq!(done(world.change(again, &slot("w/0"), token, ChangeKind::Readopt).await).token, token);
    // Who remembers nothing takes another cluster of it for new.
    let other = World { cluster: "other".parse().unwrap(), ..World::on(world.store.clone()) };
    let (_, stamp) = opened(other.try_open(open_request("b")).await.unwrap());
    assert_eq!(stamp.quiet, Duration::ZERO);
}

#[tokio::test]
async fn data_that_is_restored_from_a_dump_is_another_history() {
    let world = World::new().await;
    let session = world.open("a").await;
    world.acquire(session, &slot("w/0"), NONE).await;
    let before = world.beat(session).await.unwrap().stamp;
    // What a dump would bring from another server: the same timeline, another system.
    world.sql("UPDATE rendez.cluster SET history = '1/' || split_part(history, '/', 2)").await;
    world.beat(session).await.unwrap();
    let refused = world.changes(session, vec![(slot("w/1"), NONE, acquire())]).await.unwrap();
    assert_eq!(conflict(&refused.outcomes[0]), Conflict::Quiet);
    assert_ne!(refused.stamp.generation, before.generation);
}

#[tokio::test]
async fn a_full_disk_is_throttled_and_forgets_nothing() {
    let server = PostgresServer::builder().data_bytes_max(160 << 20).start().await.unwrap();
    let world = World::with(server).await;
    let session = world.open("a").await;
    let token = world.acquire(session, &slot("w/0"), NONE).await;
    world.sql("CREATE UNLOGGED TABLE filler (text text)").await;
    let mut full = false;
    for _ in 0..400 {
        let fill = "INSERT INTO filler SELECT repeat(md5(i::text), 60) FROM generate_series(1, 500) i";
        if world.server().query(fill).await.is_err() {
            full = true;
            break;
        }
    }
    assert!(full);
    // New rows want room; what is there can be extended or says that it cannot, and is there afterwards.
    let mut refused = None;
    for part in 0..40_u32 {
        let list = (0..1000).map(|unit| (Slot::new("fill".try_into().unwrap(), part * 1000 + unit), NONE, acquire()));
        if let Err(error) = world.changes(session, list.collect()).await {
            refused = Some(error);
            break;
        }
    }
    let refused = refused.expect("a full disk refuses at last");
    let kinds = [ErrorKind::Throttled, ErrorKind::Ambiguous, ErrorKind::Transient];
    assert!(kinds.contains(&refused.kind()), "{refused}");
    persist("room", async || {
        world.server().query("DROP TABLE IF EXISTS filler").await.ok();
        world.beat(session).await
    })
    .await;
    assert_eq!(world.slots().await[&slot("w/0")].token, token);
}

// Rights and fitness.

#[tokio::test]
async fn a_user_with_usage_and_execute_alone_can_do_everything() {
    let server = PostgresServer::builder().start().await.unwrap();
    let url = server.url_for("app", "word").unwrap();
    server.create_user("app", "word").await.unwrap();
    fails(PostgresStore::connect(&url, options()).await, ErrorKind::Fatal, "42501");
    PostgresStore::connect(&server.url(), options()).await.unwrap();
    fails(PostgresStore::connect(&url, options()).await, ErrorKind::Fatal, "docs/stores/postgres.md");
    server
        .query("GRANT USAGE ON SCHEMA rendez TO app; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA rendez TO app")
        .await
        .unwrap();
    let world = World { server: Some(server), ..World::on(PostgresStore::connect(&url, options()).await.unwrap()) };
    let mut watch = world.store.watch(&world.cluster).await.unwrap();
    let (a, b) = (world.open("a").await, world.open("b").await);
    let at = slot("w/0");
    let token = world.acquire(a, &at, NONE).await;
    let id = operation();
    world.change(a, &at, token, offer(id, b, TTL, false)).await;
    done(world.change(b, &at, token, ChangeKind::Accept { offer: id }).await);
    let moved = ChangeKind::Transfer { operation: operation(), offer: id, checkpoint: None };
    let token = done(world.change(a, &at, token, moved).await).token;
    assert_eq!(world.beat(b).await.unwrap().held.count, 1);
    let key = RecordKey::Workload("w".try_into().unwrap());
    world.put(key.clone(), Some(Record::Workload(WorkloadRecord::new(3))), None).await;
    let force = AdminRequest::ForceRelease { slot: at.clone(), token, now: true };
    assert!(matches!(world.store.administer(&world.cluster, &force).await, Ok(AdminOutcome::Done(_))));
    world.put(key, None, None).await;
    assert!(world.slots().await.is_empty());
    world.close(a).await;
    assert!(tokio::time::timeout(BOUND, watch.next()).await.unwrap().is_some());
    for forbidden in ["SELECT * FROM rendez.slot", "DELETE FROM rendez.session", "CREATE TABLE rendez.x (i int)"] {
        let error = PostgresServer::query_at(&url, forbidden).await.unwrap_err().to_string();
        assert!(error.contains("permission denied"), "{error}");
    }
    // The caller's search path leads nowhere.
    PostgresServer::query_at(
        &world.server().url(),
        "CREATE SCHEMA evil; GRANT ALL ON SCHEMA evil TO app; \
         CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS 'SELECT ''epoch''::timestamptz'; \
         ALTER ROLE app SET search_path = evil, pg_catalog",
    )
    .await
    .unwrap();
    let store = PostgresStore::connect(&url, options()).await.unwrap();
    let beat = store.heartbeat(&world.cluster, &world.beat_request(b)).await.unwrap();
    assert!(beat.stamp.now.as_micros() > 1_000_000_000_000_000);
}

#[tokio::test]
async fn a_schema_of_ones_own_and_one_that_an_administrator_made() {
    let server = PostgresServer::builder().start().await.unwrap();
    let mut own = options();
    own.schema = "x\"; DROP SCHEMA public; --".to_owned();
    fails(PostgresStore::connect(&server.url(), own.clone()).await, ErrorKind::Fatal, "schema's name");
    own.schema = "leases_2".to_owned();
    own.migrate = false;
    fails(PostgresStore::connect(&server.url(), own.clone()).await, ErrorKind::Fatal, "administrator");
    server.query(&format!("BEGIN; {} COMMIT", rendez_postgres::migration("leases_2").unwrap())).await.unwrap();
    let one = World::on(PostgresStore::connect(&server.url(), own).await.unwrap());
    let session = one.open("a").await;
    // The same cluster in another schema is another cluster, also for the watch.
    let two = World::on(PostgresStore::connect(&server.url(), options()).await.unwrap());
    let mut watch = one.store.watch(&one.cluster).await.unwrap();
    let other = two.open("a").await;
    two.close(other).await;
    let at = slot("w/0");
    let token = one.acquire(session, &at, NONE).await;
    one.change(session, &at, token, offer(operation(), one.open("b").await, TTL, false)).await;
    let hint = tokio::time::timeout(BOUND, watch.next()).await.unwrap();
    assert!(matches!(hint, Some(WatchHint::Session(_))), "{hint:?}");
    assert!(two.slots().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn eight_nodes_start_at_once_on_an_empty_database() {
    let server = PostgresServer::builder().start().await.unwrap();
    let starts = (0..8).map(|_| {
        let url = server.url();
        tokio::spawn(async move { PostgresStore::connect(&url, options()).await })
    });
    let starts: Vec<_> = starts.collect();
    for (number, start) in starts.into_iter().enumerate() {
        let world = World::on(start.await.unwrap().unwrap());
        world.open(&format!("n{number}")).await;
    }
    assert_eq!(server.query("SELECT count(*) FROM rendez.session").await.unwrap().trim(), "8");
}

#[tokio::test]
async fn an_unknown_layout_is_refused_and_left_alone_and_older_functions_are_replaced() {
    let world = World::new().await;
    let session = world.open("a").await;
    let url = world.server().url();
    world.sql("UPDATE rendez.layout SET version = 2").await;
    fails(PostgresStore::connect(&url, options()).await, ErrorKind::Fatal, "layout 2");
    world.sql("UPDATE rendez.layout SET version = 1, functions = 0").await;
    world.sql("DROP FUNCTION rendez.check_token").await;
    let mut fixed = options();
    fixed.migrate = false;
    fails(PostgresStore::connect(&url, fixed).await, ErrorKind::Fatal, "older");
    PostgresStore::connect(&url, options()).await.unwrap();
    world.sql("SELECT rendez.check_token('x', 1)").await;
    world.beat(session).await.unwrap();
    // A newer release's functions are called as they are.
    world.sql("UPDATE rendez.layout SET functions = 99").await;
    PostgresStore::connect(&url, options()).await.unwrap();
    assert_eq!(world.sql("SELECT functions FROM rendez.layout").await, "99");
    // Somebody else's table stands in the way.
    world.sql("CREATE SCHEMA taken; CREATE TABLE taken.session (i int)").await;
    let mut taken = options();
    taken.schema = "taken".to_owned();
    fails(PostgresStore::connect(&url, taken).await, ErrorKind::Fatal, "not rendez's");
    assert_eq!(world.sql("SELECT count(*) FROM pg_tables WHERE schemaname = 'taken'").await, "1");
}

#[tokio::test]
async fn a_schema_that_was_dropped_is_made_again() {
    let world = World::new().await;
    let session = world.open("a").await;
    world.sql("SET client_min_messages = warning; DROP SCHEMA rendez CASCADE").await;
    let begun = Instant::now();
    loop {
        let error = world.beat(session).await.unwrap_err();
        if error.kind() == ErrorKind::Lost {
            break;
        }
        assert!(error.kind() == ErrorKind::Transient && begun.elapsed() < BOUND, "{error}");
    }
    world.open("a").await;
}

#[tokio::test]
async fn settings_that_break_promises_are_refused() {
    let server = PostgresServer::builder().start().await.unwrap();
    server.create_user("app", "word").await.unwrap();
    let url = server.url_for("app", "word").unwrap();
    for (setting, word) in [("synchronous_commit = off", "synchronous_commit")] {
        server.query(&format!("ALTER ROLE app SET {setting}")).await.unwrap();
        fails(PostgresStore::connect(&url, options()).await, ErrorKind::Fatal, word);
        server.query("ALTER ROLE app RESET ALL").await.unwrap();
    }
    server.query("ALTER ROLE app SET default_transaction_isolation = 'repeatable read'").await.unwrap();
    let mut pooled = options();
    pooled.pooled = true;
    fails(PostgresStore::connect(&url, pooled).await, ErrorKind::Fatal, "default_transaction_isolation");
    // Without a pooler the store sets it itself, and gets as far as its missing rights.
    fails(PostgresStore::connect(&url, options()).await, ErrorKind::Fatal, "42501");
    server.query("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0").await.unwrap();
    let latin = format!("{}latin", server.url().strip_suffix("postgres").unwrap());
    fails(PostgresStore::connect(&latin, options()).await, ErrorKind::Fatal, "UTF8");
}

#[tokio::test]
async fn wrong_addresses_and_credentials_say_what_to_do_and_tell_no_password() {
    let server = PostgresServer::builder().start().await.unwrap();
    server.create_user("app", "word").await.unwrap();
    let url = server.url_for("app", "hush-hush").unwrap();
    let wrong_password = fails(PostgresStore::connect(&url, options()).await, ErrorKind::Fatal, "28P01");
    let wrong_user = fails(
        PostgresStore::connect(&server.url_for("nobody", "hush-hush").unwrap(), options()).await,
        ErrorKind::Fatal,
        "check user",
    );
    let database = format!("{}hush-no", server.url().strip_suffix("postgres").unwrap());
    fails(PostgresStore::connect(&database, options()).await, ErrorKind::Fatal, "3D000");
    let free = rendez_testkit::servers::PortLease::take().unwrap();
    let nobody = format!("postgres://app:hush-hush@{}/postgres", free.addr());
    let refused = fails(PostgresStore::connect(&nobody, options()).await, ErrorKind::Transient, "refused");
    let tls = fails(
        PostgresStore::connect(&format!("{url}?sslmode=require"), options()).await,
        ErrorKind::Fatal,
        "does not support TLS",
    );
    for error in [wrong_password, wrong_user, refused, tls] {
        assert!(!format!("{error} {error:?}").contains("hush-hush"), "{error:?}");
    }
    // Something that answers, but not as PostgreSQL does, and something that says nothing.
    let stranger = rendez_testkit::servers::RedisServer::builder().start().await.unwrap();
    let port = stranger.url().rsplit(':').next().unwrap().to_owned();
    let url = format!("postgres://app@127.0.0.1:{}/x", port.trim_end_matches('/'));
    let error = PostgresStore::connect(&url, options()).await.unwrap_err();
    assert!(error.message().contains("is it a PostgreSQL server"), "{error}");
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://app@{}/x", silent.local_addr().unwrap());
    let mut short = options();
    short.connect_timeout = millis(300);
    fails(PostgresStore::connect(&url, short).await, ErrorKind::Transient, "");
}

#[tokio::test]
async fn tls_with_authorities_of_ones_own_and_never_without_checking() {
    let server = PostgresServer::builder().tls().start().await.unwrap();
    let files = server.tls().unwrap();
    let read = |path: &std::path::Path| std::fs::read(path).unwrap();
    let url = server.url();
    let plain = url.split('?').next().unwrap().to_owned();
    fails(PostgresStore::connect(&plain, options()).await, ErrorKind::Fatal, "sslmode=require");
    let mut trusting = options();
    trusting.tls = Some(TlsFiles { authorities: Some(read(&files.ca)), ..TlsFiles::default() });
    let world = World::on(PostgresStore::connect(&plain, trusting.clone()).await.unwrap());
    let mut watch = world.store.watch(&world.cluster).await.unwrap();
    let session = world.open("a").await;
    world.close(session).await;
    assert!(tokio::time::timeout(BOUND, watch.next()).await.unwrap().is_some());
    let client = Some((read(&files.client_cert), read(&files.client_key)));
    trusting.tls = Some(TlsFiles { authorities: Some(read(&files.ca)), client });
    PostgresStore::connect(&plain, trusting.clone()).await.unwrap();
    // Another authority's servers are not trusted, nor is this one with the system's.
    trusting.tls = Some(TlsFiles { authorities: Some(read(&files.client_cert)), ..TlsFiles::default() });
    fails(PostgresStore::connect(&plain, trusting.clone()).await, ErrorKind::Fatal, "certificate");
    trusting.tls = Some(TlsFiles { authorities: Some(b"nonsense".to_vec()), ..TlsFiles::default() });
    fails(PostgresStore::connect(&plain, trusting).await, ErrorKind::Fatal, "no PEM text");
}

// Poolers, and clients of one's own.

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_pooler_that_gives_connections_out_by_the_transaction() {
    let server = PostgresServer::builder().start().await.unwrap();
    let bouncer = PgBouncer::start(&server, &[], 2).await.unwrap();
    let error = PostgresStore::connect(&bouncer.url(), options()).await.unwrap_err();
    assert!(error.message().contains("options"), "{error}");
    let mut pooled = options();
    pooled.pooled = true;
    pooled.connections_max = 8;
    let store = PostgresStore::connect(&bouncer.url(), pooled.clone()).await.unwrap();
    assert!(!store.capabilities().watch);
    assert_eq!(store.watch(&"x".parse().unwrap()).await.err().unwrap().kind(), ErrorKind::Unsupported);
    pooled.listen_url = Some(server.url());
    let world = Arc::new(World::on(PostgresStore::connect(&bouncer.url(), pooled).await.unwrap()));
    assert!(world.store.capabilities().watch);
    let mut watch = world.store.watch(&world.cluster).await.unwrap();
    let mut tasks = Vec::new();
    for number in 0..8_u32 {
        let world = Arc::clone(&world);
        tasks.push(tokio::spawn(async move {
            let session = world.open(&format!("n{number}")).await;
            for unit in 0..20 {
                world.acquire(session, &Slot::new("w".try_into().unwrap(), number * 100 + unit), NONE).await;
                assert_eq!(world.beat(session).await.unwrap().held.count, u64::from(unit) + 1);
            }
            world.close(session).await;
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(world.slots().await.len(), 160);
    assert!(tokio::time::timeout(BOUND, watch.next()).await.unwrap().is_some());
}

#[tokio::test]
async fn a_pool_and_a_configuration_of_ones_own() {
    use rendez_postgres::deadpool_postgres::{Manager, Pool};
    let server = PostgresServer::builder().start().await.unwrap();
    let config: tokio_postgres::Config = server.url().parse().unwrap();
    let pool = Pool::builder(Manager::new(config.clone(), NoTls)).max_size(2).build().unwrap();
    let world = World::on(PostgresStore::from_pool(pool, options()).await.unwrap());
    assert!(!world.store.capabilities().watch);
    let session = world.open("a").await;
    let world = World::on(PostgresStore::from_config(config, options()).await.unwrap());
    assert!(world.store.capabilities().watch);
    world.beat(session).await.unwrap();
    let debug = format!("{:?}", PostgresOptions::default());
    assert!(!debug.contains("password"), "{debug}");
}
