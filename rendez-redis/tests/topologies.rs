//! Servers of every kind, and what is not a server that fits.

mod support;

use std::time::{Duration, Instant};

use rendez_core::*;
use rendez_redis::{RedisOptions, RedisStore, TlsFiles};
use rendez_testkit::servers::{RedisCluster, RedisSentinelSet, RedisServer};
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const NONE: FencingToken = FencingToken::NONE;

/// Longer than anything here should take, even on a busy machine.
const BOUND: Duration = Duration::from_secs(30);

/// What `docs/stores/redis.md` asks for.
const RIGHTS: &str = "resetchannels ~rendez:* &rendez:* -@all +eval +evalsha +info +wait +select \
                      +subscribe +unsubscribe +publish +time +exists +del +hget +hset +hdel +hmget +hgetall +hlen \
                      +hscan +zadd +zrem +zscore +zcard +zrange +zrevrange +zrangebyscore +zremrangebyscore \
                      +zremrangebyrank";

/// Every request once.
async fn round(world: &World) {
    let (a, b) = (world.open("a").await, world.open("b").await);
    let mut watch = world.store.watch(&world.cluster).await.unwrap();
    let at = slot("w/0");
    let token = world.acquire(a, &at, NONE).await;
    let id = operation();
    done(world.change(a, &at, token, offer(id, b, TTL, false)).await);
    let heard = tokio::time::timeout(Duration::from_secs(5), watch.next()).await.expect("no hint");
    assert_eq!(heard, Some(WatchHint::Session(b)));
    done(world.change(b, &at, token, ChangeKind::Accept { offer: id }).await);
    let checkpoint = Some(bytes::Bytes::from_static(b"left"));
    let moved = ChangeKind::Transfer { operation: operation(), offer: id, checkpoint };
    let token = done(world.change(a, &at, token, moved).await).token;
    let workload = RecordKey::Workload("jobs".try_into().unwrap());
    world.put(workload.clone(), Some(Record::Workload(WorkloadRecord::new(4))), None).await;
    world.put(workload, None, None).await;
    let settings = Record::Settings(ClusterSettings::new(TTL_MAX));
    world.put(RecordKey::Settings, Some(settings), None).await;
    let (stamp, items) = world.snapshot(Some(b)).await;
    assert!(items.len() >= 4);
    let mut request = world.beat_request(b);
    request.known.generation = Some(stamp.generation);
    request.since = Some(Revision(0));
    request.due_within = TTL;
    let beat = world.store.heartbeat(&world.cluster, &request).await.unwrap();
    assert!(!changes(&beat.sync).0.is_empty() && beat.due.len() == 1 && beat.held.count == 1);
    let force = AdminRequest::ForceRelease { slot: at, token, now: true };
    assert!(matches!(world.store.administer(&world.cluster, &force).await.unwrap(), AdminOutcome::Done(_)));
    world.close(a).await;
    world.close(b).await;
}

/// Beats until it is answered; only the errors that a failover makes are allowed meanwhile.
async fn beat_until_answered(world: &World, session: SessionId) -> Result<Beat, StoreError> {
    let started = Instant::now();
    loop {
        match world.beat(session).await {
            Err(error) if matches!(error.kind(), ErrorKind::Transient | ErrorKind::Ambiguous) => {
                assert!(started.elapsed() < BOUND, "after {:?}: {error}", started.elapsed());
                tokio::time::sleep(millis(50)).await;
            }
            other => return other,
        }
    }
}

/// For requests that nobody will answer.
fn brisk() -> RedisOptions {
    let mut options = options();
    options.operation_timeout = millis(500);
    options.connect_timeout = millis(1000);
    options
}

async fn refused(url: &str, options: RedisOptions) -> StoreError {
    // On a busy machine too.
    let limit = options.connect_timeout + BOUND;
    let started = Instant::now();
    let error = RedisStore::connect(url, options).await.unwrap_err();
    assert!(started.elapsed() < limit, "{:?}", started.elapsed());
    error
}

#[tokio::test]
async fn a_user_with_the_least_rights_can_do_everything() {
    let rules = format!("on >secret {RIGHTS}");
    let server = RedisServer::builder().user("app", rules).start().await.unwrap();
    let url = server.url_for("app", "secret").unwrap();
    let world = World::on(RedisStore::connect(&url, options()).await.unwrap());
    round(&world).await;
    // The names of other clusters and prefixes are closed to it.
    let mut elsewhere = options();
    elsewhere.prefix = "other".to_owned();
    let world = World::on(RedisStore::connect(&url, elsewhere).await.unwrap());
    assert_eq!(kind(world.try_open(open_request("a")).await), ErrorKind::Fatal);
}

#[tokio::test]
async fn without_the_right_to_info_it_works_and_knows_less() {
    let rules = format!("on >secret {} -info", RIGHTS);
    let server = RedisServer::builder().user("app", rules).start().await.unwrap();
    let url = server.url_for("app", "secret").unwrap();
    let world = World::on(RedisStore::connect(&url, options()).await.unwrap());
    round(&world).await;
    let generation = world.snapshot(None).await.0.generation;
    // Somebody who may ask adds the replication id, and nothing was lost by that.
    let other = World::on(RedisStore::connect(&server.url(), options()).await.unwrap());
    assert_eq!(other.snapshot(None).await.0.generation, generation);
    let stored = server.command(&["HGET", "rendez:{test}:meta", "state"]).await.unwrap().text();
    assert_eq!(stored.split(' ').nth(9), Some(server.info("master_replid").await.unwrap().as_str()));
}

#[tokio::test]
async fn credentials_that_are_wrong_are_fatal_and_never_shown() {
    let server = RedisServer::builder().password("right").user("app", "on >right +@all").start().await.unwrap();
    let addr = server.addr().unwrap();
    for login in [":hush1234@", "app:hush1234@", "nobody:hush1234@", ""] {
        for query in ["", "?protocol=resp2"] {
            let url = format!("redis://{login}{addr}/{query}");
            let error = refused(&url, options()).await;
            assert_eq!(error.kind(), ErrorKind::Fatal, "{login}: {error:?}");
            assert!(!format!("{error:?} {error}").contains("hush1234"), "{error:?}");
        }
    }
    for url in [
        "redis://x:hush1234@bad host/",
        "redis://:hush1234@host:99999999/",
        "nonsense",
        "http://:hush1234@x/",
        "redis-sentinel://:hush1234@host/",
        "redis-cluster://:hush1234@/",
        "rediss://:hush1234@host/#insecure",
    ] {
        let error = refused(url, options()).await;
        assert_eq!(error.kind(), ErrorKind::Fatal, "{url}");
        assert!(!format!("{error:?} {error}").contains("hush1234"), "{error:?}");
    }
    let mut options = options();
    options.password = Some("right".to_owned());
    let store = RedisStore::connect(&format!("redis://{addr}"), options).await.unwrap();
    assert!(!format!("{store:?}").contains("right"));
    round(&World::on(store)).await;
}

#[tokio::test]
async fn a_client_of_ones_own_and_another_database() {
    let server = RedisServer::builder().start().await.unwrap();
    let url = format!("{}/3", server.url().trim_end_matches('/'));
    let client = rendez_redis::redis::Client::open(url.as_str()).unwrap();
    let world = World::on(RedisStore::from_client(client, options()).await.unwrap());
    round(&world).await;
    let keys = server.command(&["INFO", "keyspace"]).await.unwrap().text();
    assert!(keys.contains("db3:keys=7") && !keys.contains("db0"), "{keys}");
    assert_eq!(world.store.capabilities().fencing, Fencing::BestEffort);
}

#[tokio::test]
async fn a_server_that_evicts_is_refused() {
    for policy in ["allkeys-lru", "allkeys-random"] {
        let server = RedisServer::builder().max_memory(100_000_000, policy).start().await.unwrap();
        let error = refused(&server.url(), options()).await;
        assert_eq!(error.kind(), ErrorKind::Fatal);
        assert!(error.message().contains("set it to noeviction"), "{error}");
    }
    let server = RedisServer::builder().max_memory(100_000_000, "volatile-ttl").start().await.unwrap();
    RedisStore::connect(&server.url(), options()).await.unwrap();
}

#[tokio::test]
async fn a_replica_is_refused_and_a_server_that_becomes_one_too() {
    let server = RedisServer::builder().start().await.unwrap();
    let replica = server.start_replica().await.unwrap();
    let error = refused(&replica.url(), options()).await;
    assert_eq!(error.kind(), ErrorKind::Transient);
    assert!(error.message().contains("replica"), "{error}");
    let mut world = World::on(RedisStore::connect(&server.url(), options()).await.unwrap());
    let a = world.open("a").await;
    world.known.generation = Some(world.beat(a).await.unwrap().stamp.generation);
    let addr = replica.addr().unwrap();
    replica.command(&["REPLICAOF", "NO", "ONE"]).await.unwrap();
    server.command(&["REPLICAOF", &addr.ip().to_string(), &addr.port().to_string()]).await.unwrap();
    for _ in 0..3 {
        assert_eq!(kind(world.beat(a).await), ErrorKind::Transient);
    }
    server.command(&["REPLICAOF", "NO", "ONE"]).await.unwrap();
    // The session is lost if the replica had not got it yet; a loss of data it is in any case.
    if let Err(error) = beat_until_answered(&world, a).await {
        assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
    }
    assert!(!world.snapshot(None).await.0.quiet.is_zero());
}

#[tokio::test]
async fn a_primary_that_misses_its_replicas_is_tried_again() {
    let server = RedisServer::builder().config("min-replicas-to-write 1").start().await.unwrap();
    let world = World::on(RedisStore::connect(&server.url(), options()).await.unwrap());
    assert_eq!(kind(world.try_open(open_request("a")).await), ErrorKind::Transient);
    server.command(&["CONFIG", "SET", "min-replicas-to-write", "0"]).await.unwrap();
    world.open("a").await;
}

#[tokio::test]
async fn what_is_not_a_redis_server_gives_one_clear_error_in_time() {
    // Nothing listens.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = free.local_addr().unwrap();
    drop(free);
    let error = refused(&format!("redis://{addr}"), options()).await;
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");

    for (answer, kinds) in [
        (Some("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"), [ErrorKind::Fatal, ErrorKind::Fatal]),
        (Some(""), [ErrorKind::Transient, ErrorKind::Fatal]),
        (None, [ErrorKind::Transient, ErrorKind::Transient]),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut buffer = [0; 512];
                let Ok(_) = stream.read(&mut buffer).await else { continue };
                match answer {
                    Some(text) => {
                        let _ = stream.write_all(text.as_bytes()).await;
                    }
                    None => kept.push(stream),
                }
            }
        });
        let error = refused(&format!("redis://{addr}"), brisk()).await;
        assert!(kinds.contains(&error.kind()), "{answer:?}: {error}");
        assert!(error.message().contains(&addr.to_string()), "{error}");
        let words = match answer {
            Some("") => "closed the connection",
            Some(_) => "does not speak the Redis protocol",
            None => "is it up?",
        };
        assert!(error.message().contains(words), "{error}");
        server.abort();
    }
}

#[tokio::test]
async fn a_frozen_server_leaves_the_outcome_unknown_and_is_used_again_when_it_goes_on() {
    let mut server = RedisServer::builder().start().await.unwrap();
    let mut world = World::on(RedisStore::connect(&server.url(), options()).await.unwrap());
    let a = world.open("a").await;
    let patient = std::mem::replace(&mut world.store, RedisStore::connect(&server.url(), brisk()).await.unwrap());
    let at = slot("w/0");
    server.stop().unwrap();
    let request = acquire();
    let change = vec![(at.clone(), NONE, request.clone())];
    let started = Instant::now();
    assert_eq!(kind(world.changes(a, change.clone()).await), ErrorKind::Ambiguous);
    assert!(started.elapsed() >= millis(500) && started.elapsed() < BOUND, "{:?}", started.elapsed());
    // The next one finds no connection: it did not happen.
    assert_eq!(kind(world.beat(a).await), ErrorKind::Transient);
    server.resume().unwrap();
    beat_until_answered(&world, a).await.unwrap();
    world.store = patient;
    // It was done by the first try, and the retry is answered the same.
    let record = done(world.change(a, &at, NONE, request.clone()).await);
    assert_eq!(done(world.change(a, &at, NONE, request).await), record);
}

#[tokio::test]
async fn a_connection_that_was_cut_is_made_anew() {
    let server = RedisServer::builder().start().await.unwrap();
    let world = World::on(RedisStore::connect(&server.url(), options()).await.unwrap());
    let a = world.open("a").await;
    for _ in 0..5 {
        server.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await.unwrap();
        let mut failures = 0;
        while let Err(error) = world.beat(a).await {
            assert!(matches!(error.kind(), ErrorKind::Ambiguous | ErrorKind::Transient), "{error:?}");
            failures += 1;
            assert!(failures < 3);
        }
    }
}

#[tokio::test]
async fn tls_with_an_authority_of_ones_own_and_a_client_certificate() {
    let server = RedisServer::builder().tls().config("tls-auth-clients yes").start().await.unwrap();
    let files = server.tls().unwrap();
    let read = |path: &std::path::Path| std::fs::read(path).unwrap();
    let authorities = Some(read(&files.ca));
    let mut with = options();
    with.tls = Some(TlsFiles {
        authorities: authorities.clone(),
        client: Some((read(&files.client_cert), read(&files.client_key))),
    });
    let url = server.url();
    assert!(url.starts_with("rediss://"), "{url}");
    let world = World::on(RedisStore::connect(&url, with).await.unwrap());
    round(&world).await;
    // Without a certificate of its own, with the system's authorities, and without TLS.
    let mut without = options();
    without.tls = Some(TlsFiles { authorities, client: None });
    let error = refused(&url, without).await;
    println!("{:?}: {error}", error.kind());
    let error = refused(&url, options()).await;
    assert_eq!(error.kind(), ErrorKind::Fatal, "{error}");
    assert!(error.message().contains("certificate"), "{error}");
    let error = refused(&url.replace("rediss://", "redis://"), options()).await;
    println!("{error}");
}

#[tokio::test]
async fn a_write_counts_when_a_replica_has_it() {
    let server = RedisServer::builder().start().await.unwrap();
    let mut replica = server.start_replica().await.unwrap();
    let mut options = options();
    options.min_replicas = 1;
    options.acknowledge_timeout = Some(millis(1500));
    let world = World::on(RedisStore::connect(&server.url(), options.clone()).await.unwrap());
    assert_eq!(world.store.capabilities().fencing, Fencing::Acknowledged);
    round(&world).await;
    server.command(&["SCRIPT", "FLUSH"]).await.unwrap();
    let a = world.open("a").await;
    world.beat(a).await.unwrap();
    replica.stop().unwrap();
    let request = acquire();
    let at = slot("w/9");
    let left = world.changes(a, vec![(at.clone(), NONE, request.clone())]).await;
    assert_eq!(kind(left), ErrorKind::Ambiguous);
    replica.resume().unwrap();
    replica.wait_in_step().await.unwrap();
    let record = done(world.change(a, &at, NONE, request).await);
    assert!(record.is_held_by(a));
    // More than there are.
    options.min_replicas = 2;
    let world = World::on(RedisStore::connect(&server.url(), options).await.unwrap());
    assert_eq!(kind(world.try_open(open_request("b")).await), ErrorKind::Ambiguous);
}

#[tokio::test]
async fn a_sentinel_failover_is_followed_and_counts_as_a_loss() {
    let mut set = RedisSentinelSet::builder().replicas(1).start().await.unwrap();
    let mut world = World::on(RedisStore::connect(&set.url(), options()).await.unwrap());
    round(&world).await;
    let a = world.open("a").await;
    let at = slot("w/1");
    let token = world.acquire(a, &at, NONE).await;
    let before = world.beat(a).await.unwrap().stamp;
    world.known = Known { generation: Some(before.generation), token: before.token, session_ttl_max: TTL_MAX };
    let old = set.primary().await.unwrap();
    set.servers[old].kill().unwrap();
    let started = Instant::now();
    let beat = beat_until_answered(&world, a).await.unwrap();
    println!("answered {:?} after the primary's death", started.elapsed());
    assert_ne!(beat.stamp.generation, before.generation);
    assert!(beat.stamp.quiet > TTL_MAX - Duration::from_secs(5) && beat.stamp.token.get() >= token.get() + (1 << 30));
    assert_eq!(beat.held.count, 1);
    assert_eq!(conflict(&world.change(a, &slot("w/2"), NONE, acquire()).await), Conflict::Quiet);
    let error = refused(&format!("{}x", set.url()), options()).await;
    assert!(error.message().contains("know no service"), "{error}");
}

#[tokio::test]
async fn an_old_primary_that_still_answers_is_left_when_sentinel_names_another() {
    let set = RedisSentinelSet::builder().replicas(1).start().await.unwrap();
    let world = World::on(RedisStore::connect(&set.url(), options()).await.unwrap());
    let a = world.open("a").await;
    let before = world.beat(a).await.unwrap().stamp;
    let old = set.primary().await.unwrap();
    set.sentinels[0].command(&["SENTINEL", "FAILOVER", RedisSentinelSet::SERVICE]).await.unwrap();
    let new = set.wait_for_failover(old).await.unwrap();
    assert_ne!(old, new);
    let started = Instant::now();
    loop {
        let stamp = beat_until_answered(&world, a).await.unwrap().stamp;
        if stamp.generation != before.generation {
            break;
        }
        assert!(started.elapsed() < BOUND);
        tokio::time::sleep(millis(50)).await;
    }
    assert_eq!(set.servers[new].info("role").await.unwrap(), "master");
}

#[tokio::test]
async fn a_redis_cluster_and_its_failover() {
    let mut redis = RedisCluster::builder().primaries(3).replicas(1).start().await.unwrap();
    let store = RedisStore::connect(&redis.url(), options()).await.unwrap();
    // Clusters of many names, on all servers.
    for i in 0..8 {
        let mut world = World::on(store.clone());
        world.cluster = ClusterName::new(format!("c{i}{{x}}")).unwrap();
        round(&world).await;
    }
    let mut world = World::on(store);
    let a = world.open("a").await;
    world.acquire(a, &slot("w/0"), NONE).await;
    let before = world.beat(a).await.unwrap().stamp;
    world.known = Known { generation: Some(before.generation), token: before.token, session_ttl_max: TTL_MAX };
    let key = world.key("meta");
    let old = redis.primary_of(&key).await.unwrap();
    redis.servers[old].kill().unwrap();
    let started = Instant::now();
    let beat = beat_until_answered(&world, a).await.unwrap();
    println!("answered {:?} after the primary's death", started.elapsed());
    assert_ne!(beat.stamp.generation, before.generation);
    assert_eq!(beat.held.count, 1);
    // Acknowledged writes are routed to the same server.
    let mut options = options();
    options.min_replicas = 1;
    options.acknowledge_timeout = Some(millis(1500));
    let store = RedisStore::connect(&redis.url(), options).await.unwrap();
    for i in 0..8 {
        let mut world = World::on(store.clone());
        world.cluster = ClusterName::new(format!("d{i}")).unwrap();
        let home = redis.primary_of(&format!("rendez:{{d{i}}}:meta")).await.unwrap();
        let connected = redis.servers[home].info("connected_slaves").await.unwrap();
        let answer = world.try_open(open_request("a")).await;
        match connected.as_str() {
            "0" => assert_eq!(kind(answer), ErrorKind::Ambiguous),
            _ => {
                opened(answer.unwrap());
            }
        }
    }
}
