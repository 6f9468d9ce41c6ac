//! The store on real servers: what NATS does beside answering requests, and what must be known of it.

mod support;

use std::time::{Duration, Instant};

use rendez_core::*;
use rendez_nats::async_nats::jetstream::message::PublishMessage;
use rendez_nats::async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use rendez_nats::async_nats::jetstream::{self, Context};
use rendez_nats::{NatsStore, TlsFiles, async_nats};
use rendez_testkit::servers::{NatsCluster, NatsRights, NatsServer, NatsVersion, RedisServer, Restart};
use support::*;

/// Longer than anything here should take, even on a busy machine.
const BOUND: Duration = Duration::from_secs(30);

/// The stream of the worlds' cluster.
const STREAM: &str = "KV_rendez_test";

/// Asks until it is so.
async fn until<T, E: std::fmt::Debug>(what: &str, mut ask: impl AsyncFnMut() -> Result<T, E>) -> T {
    let started = Instant::now();
    loop {
        match ask().await {
            Ok(done) => return done,
            Err(error) => assert!(started.elapsed() < BOUND, "{what}: {error:?}"),
        }
        tokio::time::sleep(millis(20)).await;
    }
}

async fn another(world: &World) -> World {
    let store = NatsStore::connect(&world.server().url(), options()).await.unwrap();
    World { known: world.known.clone(), ..World::on(store) }
}

async fn ends(world: &World, session: SessionId) -> bool {
    let (_, items) = world.snapshot(None).await;
    !items.iter().any(|item| matches!(item, Change::Session(id, _) if *id == session))
}

/// A bare client, for what the store would not do.
async fn context(server: &NatsServer) -> Context {
    jetstream::new(async_nats::connect(server.addr().unwrap().to_string()).await.unwrap())
}

/// A bucket as the store makes it.
fn bucket(name: &str) -> Config {
    Config {
        name: format!("KV_{name}"),
        subjects: vec![format!("$KV.{name}.>")],
        max_messages_per_subject: 8,
        discard: DiscardPolicy::New,
        allow_rollup: true,
        allow_message_ttl: true,
        ..Config::default()
    }
}

/// Makes a bucket, where another of its name may still be being deleted.
async fn made(context: &Context, config: Config) {
    until("the bucket to be made", async || context.create_stream(config.clone()).await).await;
}

/// Writes a key; answers the sequence, or the number of the error and what it says.
async fn put(context: &Context, key: &str, ttl: Option<&str>, expect: Option<u64>) -> Result<u64, (u64, String)> {
    let mut message = PublishMessage::build().payload("x".into());
    if let Some(ttl) = ttl {
        message = message.header("Nats-TTL", ttl);
    }
    if let Some(expect) = expect {
        message = message.header("Nats-Expected-Last-Subject-Sequence", expect.to_string().as_str());
    }
    match context.send_publish(format!("$KV.{key}"), message).await.unwrap().await {
        Ok(ack) => Ok(ack.sequence),
        Err(error) => {
            let source = std::error::Error::source(&error).expect("an answer of the server");
            let inner = source.downcast_ref::<jetstream::Error>().expect("an error of JetStream");
            Err((inner.error_code().0, inner.to_string()))
        }
    }
}

// --- what the servers do, which the store goes by ---

async fn what_the_store_knows_of_servers(version: NatsVersion) {
    let server = NatsServer::builder().version(version).start().await.unwrap();
    let context = context(&server).await;
    // A TTL has whole seconds, one at least, and a bucket must be made for it.
    context.create_stream(bucket("plain")).await.unwrap();
    context.create_stream(Config { allow_message_ttl: false, ..bucket("without") }).await.unwrap();
    assert_eq!(put(&context, "plain.a", Some("500ms"), None).await.unwrap_err().0, 10165);
    assert_eq!(put(&context, "without.a", Some("1s"), None).await.unwrap_err().0, 10166);
    // A key that expires leaves nothing, so whoever wants to know it writes over nothing: not before its time.
    let sent = Instant::now();
    put(&context, "plain.b", Some("1s"), Some(0)).await.unwrap();
    let free = until("the key to expire", async || put(&context, "plain.b", None, Some(0)).await).await;
    assert!(sent.elapsed() >= Duration::from_secs(1), "expired after {:?}", sent.elapsed());
    // Who extends it late misses, and hears what is there.
    let late = put(&context, "plain.b", Some("1s"), Some(1)).await.unwrap_err();
    assert_eq!((late.0, late.1.contains(&format!("wrong last sequence: {free}"))), (10071, true), "{late:?}");
    // Where the bucket leaves markers, a key lives as long as a marker does, whatever its TTL, and after that
    // creation misses: the marker's sequence would have to be named.
    let marked = Config { subject_delete_marker_ttl: Some(Duration::from_secs(3)), ..bucket("marked") };
    context.create_stream(marked).await.unwrap();
    let sent = Instant::now();
    let first = put(&context, "marked.a", Some("1s"), Some(0)).await.unwrap();
    let marker = until("the marker", async || match put(&context, "marked.a", None, Some(0)).await {
        Ok(_) => panic!("created over a marker"),
        Err((10071, text)) => {
            let last = text.rsplit("sequence: ").next().unwrap_or_default();
            let last: u64 = last.split(' ').next().unwrap_or_default().parse().map_err(|_| text.clone())?;
            if last > first { Ok(last) } else { Err(text) }
        }
        Err(other) => panic!("{other:?}"),
    })
    .await;
    assert!(sent.elapsed() >= Duration::from_secs(3), "a TTL of 1 s ended after {:?}", sent.elapsed());
    put(&context, "marked.a", None, Some(marker)).await.unwrap();
}

#[tokio::test]
async fn what_the_store_knows_of_servers_is_so() {
    what_the_store_knows_of_servers(NatsVersion::V2_15).await;
}

#[tokio::test]
async fn what_the_store_knows_of_servers_is_so_on_the_oldest_one() {
    what_the_store_knows_of_servers(NatsVersion::V2_11).await;
}

#[tokio::test]
async fn servers_that_ignore_the_ttls_of_keys_are_refused() {
    let server = NatsServer::builder().version(NatsVersion::V2_10).start().await.unwrap();
    let error = NatsStore::connect(&server.url(), options()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fatal);
    assert!(error.message().contains("2.10") && error.message().contains("use 2.11 or newer"), "{error}");
    let client = async_nats::connect(server.addr().unwrap().to_string()).await.unwrap();
    assert_eq!(NatsStore::from_client(client, options()).unwrap_err().kind(), ErrorKind::Fatal);
    // Why: the server takes the TTL, and the key stays.
    let context = context(&server).await;
    context.create_stream(Config { allow_message_ttl: false, ..bucket("old") }).await.unwrap();
    let first = put(&context, "old.a", Some("1s"), Some(0)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    put(&context, "old.a", None, Some(first)).await.unwrap();
    // And it leaves what it does not know out of its answer, by which buckets are judged.
    let echoed = context.create_stream(bucket("asked")).await;
    assert!(echoed.is_err() || !echoed.unwrap().cached_info().config.allow_message_ttl);
}

#[tokio::test]
async fn buckets_that_would_lose_slots_or_sessions_are_refused_with_the_reason() {
    let server = NatsServer::builder().start().await.unwrap();
    let context = context(&server).await;
    let right = || bucket("rendez_test");
    let second = Duration::from_secs(1);
    for (config, why) in [
        (Config { allow_message_ttl: false, ..right() }, "allow_msg_ttl"),
        (Config { subject_delete_marker_ttl: Some(second), ..right() }, "subject_delete_marker_ttl"),
        (Config { max_age: 60 * second, ..right() }, "max_age"),
        (Config { max_messages_per_subject: 1, ..right() }, "history"),
        (Config { discard: DiscardPolicy::Old, ..right() }, "discard"),
        (Config { storage: StorageType::Memory, ..right() }, "memory"),
        (Config { allow_rollup: false, ..right() }, "rollup"),
        (Config { subjects: vec!["$KV.rendez_test.meta".to_owned()], ..right() }, "subjects"),
    ] {
        made(&context, config).await;
        let world = World::on(NatsStore::connect(&server.url(), options()).await.unwrap());
        let error = world.try_open(open_request("a")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Fatal, "{why}: {error}");
        assert!(error.message().contains(why) && error.message().contains(STREAM), "{why}: {error}");
        context.delete_stream(STREAM).await.unwrap();
    }
    made(&context, right()).await;
    let mut three = options();
    three.replicas = Some(3);
    let world = World::on(NatsStore::connect(&server.url(), three).await.unwrap());
    assert_eq!(kind(world.try_open(open_request("a")).await), ErrorKind::Fatal, "too few replicas");
    // Made by an operator, as it should be.
    let world = World::on(NatsStore::connect(&server.url(), options()).await.unwrap());
    world.open("a").await;
}

// --- sessions ---

#[tokio::test]
async fn a_session_ends_late_but_never_early_and_everybody_hears_of_it() {
    let world = World::new().await;
    let other = another(&world).await;
    let (ttl, two) = (millis(1500), Duration::from_secs(2));
    let Opening::Opened { session: a, ttl: granted, .. } =
        world.try_open(OpenRequest { ttl, ..open_request("a") }).await.unwrap()
    else {
        panic!("in use")
    };
    assert_eq!(granted, two, "whole seconds");
    assert_eq!(kind(world.try_open(OpenRequest { ttl: millis(999), ..open_request("x") }).await), ErrorKind::Fatal);
    let b = other.open("b").await;
    let at = slot("w/1");
    let token = world.acquire(a, &at, FencingToken::NONE).await;
    let mut watch = other.store.watch(&other.cluster).await.unwrap();
    tokio::time::sleep(millis(500)).await;
    let sent = Instant::now();
    let beat = world.beat(a).await.unwrap();
    assert_eq!(beat.ttl, two);
    loop {
        let hint = tokio::time::timeout(BOUND, watch.next()).await.unwrap().unwrap();
        if hint == WatchHint::Everyone && ends(&other, a).await {
            break;
        }
    }
    assert!(sent.elapsed() >= two, "it ended after {:?}", sent.elapsed());
    assert_eq!(kind(world.beat(a).await), ErrorKind::Lost);
    assert!(other.acquire(b, &at, token).await > token);
}

#[tokio::test]
async fn who_died_while_nobody_looked_is_found_dead_and_its_node_may_return() {
    let mut world = World::new().await;
    let at = slot("w/1");
    let second = Duration::from_secs(1);
    let a = world.open_for("a", second).await;
    let token = world.acquire(a, &at, FencingToken::NONE).await;
    let server = world.server.take().unwrap();
    // No handle is left that could look whether the session's key is gone.
    drop(world);
    let context = context(&server).await;
    let stream = context.get_stream(STREAM).await.unwrap();
    until("the key to expire", async || {
        let last = stream.get_last_raw_message_by_subject("$KV.rendez_test.session.a").await;
        if last.is_err() { Ok(()) } else { Err("it is there") }
    })
    .await;
    let world = World::with(server).await;
    let b = world.open("b").await;
    assert!(world.acquire(b, &at, token).await > token);
    world.open("a").await;
}

/// Heartbeats that arrive as their sessions end, while another handle looks whether they have.
async fn a_heartbeat_at_the_last_moment(url: &str) {
    const SESSIONS: u64 = 120;
    let mut exact = options();
    exact.clock_skew_max = Duration::ZERO;
    let store = NatsStore::connect(url, exact.clone()).await.unwrap();
    let looking = World::on(NatsStore::connect(url, exact).await.unwrap());
    looking.snapshot(None).await;
    let mut beats = tokio::task::JoinSet::new();
    for n in 0..SESSIONS {
        let world = World::on(store.clone());
        beats.spawn(async move {
            tokio::time::sleep(millis(n * 10)).await;
            let session = world.open_for(&format!("n{n}"), Duration::from_secs(1)).await;
            world.beat(session).await.unwrap();
            // Not earlier than it can end, and not so late that it always has.
            tokio::time::sleep(millis(985 + n % 40)).await;
            if let Err(error) = world.beat(session).await {
                assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
                return false;
            }
            // It was extended, so it lives for all of its time.
            tokio::time::sleep(millis(600)).await;
            let beat = world.beat(session).await;
            assert!(beat.is_ok(), "a session ended though its heartbeat was acknowledged: {beat:?}");
            true
        });
    }
    let mut lived = 0;
    while let Some(one) = beats.join_next().await {
        lived += u64::from(one.unwrap());
    }
    assert!(lived > 0, "all came too late to tell anything");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heartbeat_at_the_last_moment_counts_or_is_lost() {
    let server = NatsServer::builder().start().await.unwrap();
    a_heartbeat_at_the_last_moment(&server.url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heartbeat_at_the_last_moment_counts_or_is_lost_with_replicas() {
    let cluster = NatsCluster::builder().start().await.unwrap();
    a_heartbeat_at_the_last_moment(&cluster.url()).await;
}

#[tokio::test]
async fn a_session_of_one_cluster_cannot_be_touched_through_another() {
    let world = World::new().await;
    let a = world.open("a").await;
    let stranger = World { cluster: "other".try_into().unwrap(), ..another(&world).await };
    stranger.open("b").await;
    assert_eq!(kind(stranger.beat(a).await), ErrorKind::Lost);
    stranger.close(a).await;
    world.beat(a).await.unwrap();
}

#[tokio::test]
async fn a_key_deleted_by_hand_is_a_lost_session_and_heartbeats_in_flight_do_not_bring_it_back() {
    let world = World::new().await;
    let (a, b) = (world.open("a").await, world.open("b").await);
    world.beat(a).await.unwrap();
    let context = context(world.server()).await;
    let deletion = PublishMessage::build().header("KV-Operation", "DEL");
    context.send_publish("$KV.rendez_test.session.a", deletion).await.unwrap().await.unwrap();
    assert_eq!(kind(world.beat(a).await), ErrorKind::Lost);
    assert_eq!(kind(world.changes(a, vec![(slot("w/0"), FencingToken::NONE, acquire())]).await), ErrorKind::Lost);
    world.close(a).await;
    world.beat(b).await.unwrap();
    let again = world.open("a").await;
    assert_ne!(a, again);
}

// --- servers that fail ---

#[tokio::test]
async fn a_bucket_whose_leader_stands_still_costs_time_but_no_session() {
    let mut cluster = NatsCluster::builder().start().await.unwrap();
    let world = World::on(NatsStore::connect(&cluster.url(), options()).await.unwrap());
    let (a, stamp) = opened(world.try_open(open_request("a")).await.unwrap());
    let token = world.acquire(a, &slot("w/0"), FencingToken::NONE).await;
    let hosts: Vec<String> = cluster.members.iter().map(|member| member.addr().unwrap().to_string()).collect();
    let bare = jetstream::new(async_nats::connect(hosts).await.unwrap());
    let stream = bare.get_stream(STREAM).await.unwrap();
    let old = stream.cached_info().cluster.as_ref().unwrap().leader.clone().unwrap();
    assert_eq!(stream.cached_info().config.num_replicas, 3);
    cluster.member(&old).unwrap().stop().unwrap();
    let beat = until("a heartbeat", async || world.beat(a).await).await;
    assert_eq!((beat.stamp.generation, beat.stamp.quiet, beat.held.count), (stamp.generation, Duration::ZERO, 1));
    let again = until("acquiring", async || world.changes(a, vec![(slot("w/0"), token, acquire())]).await).await;
    let token = done(again.outcomes.into_iter().next().unwrap()).token;
    cluster.member(&old).unwrap().resume().unwrap();
    let again = until("acquiring", async || world.changes(a, vec![(slot("w/0"), token, acquire())]).await).await;
    assert!(done(again.outcomes.into_iter().next().unwrap()).token > token);
    // The old leader may still be finding its place.
    let beat = until("a heartbeat", async || world.beat(a).await).await;
    assert_eq!((beat.stamp.generation, beat.held.count), (stamp.generation, 1));
}

#[tokio::test]
async fn a_full_jetstream_ends_no_session_at_once_and_says_what_to_do() {
    let server = NatsServer::builder().file_bytes_max(4 << 20).start().await.unwrap();
    let world = World::with(server).await;
    let (a, at) = (world.open("a").await, slot("w/0"));
    let token = world.acquire(a, &at, FencingToken::NONE).await;
    let context = context(world.server()).await;
    context.create_stream(Config { name: "filling".to_owned(), max_bytes: -1, ..Config::default() }).await.unwrap();
    let mut size = 512 << 10;
    while size > 32 {
        let filled = context.publish("filling", vec![b'x'; size].into()).await.unwrap().await;
        if filled.is_err() {
            size /= 2;
        }
    }
    let error = until("the store to be full", async || {
        match world.changes(a, vec![(slot("w/1"), FencingToken::NONE, acquire())]).await {
            Err(error) if error.kind() == ErrorKind::Throttled => Ok(error),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert!(error.message().contains("make room"), "{error}");
    assert_eq!(kind(world.beat(a).await), ErrorKind::Throttled);
    context.delete_stream("filling").await.unwrap();
    let again = until("acquiring", async || world.changes(a, vec![(at.clone(), token, acquire())]).await).await;
    assert!(done(again.outcomes.into_iter().next().unwrap()).token > token);
    assert_eq!(world.beat(a).await.unwrap().held.count, 1);
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[tokio::test]
async fn data_that_went_back_are_a_new_generation_above_all_tokens() {
    let mut world = World::new().await;
    let (a, stamp) = opened(world.try_open(open_request("a")).await.unwrap());
    let at = slot("w/0");
    let first = world.acquire(a, &at, FencingToken::NONE).await;
    world.known = Known { generation: Some(stamp.generation), token: first, session_ttl_max: TTL };
    let saved = tempfile::tempdir().unwrap();
    let mut server = world.server.take().unwrap();
    server.restart(Restart::Saved).await.unwrap();
    server.kill().unwrap();
    copy(&server.data().unwrap(), saved.path());
    server.restart(Restart::Saved).await.unwrap();
    let last = until("acquiring", async || world.changes(a, vec![(at.clone(), first, acquire())]).await).await;
    let last = done(last.outcomes.into_iter().next().unwrap()).token;
    server.kill().unwrap();
    std::fs::remove_dir_all(server.data().unwrap()).unwrap();
    copy(saved.path(), &server.data().unwrap());
    server.restart(Restart::Saved).await.unwrap();
    // The session is in the older data too, so it may live on: in another generation, which grants nothing yet.
    let beat = until("a heartbeat", async || world.beat(a).await).await;
    assert_ne!(beat.stamp.generation, stamp.generation);
    assert!(beat.stamp.quiet > Duration::ZERO);
    assert!(beat.stamp.token > last, "{} after {last}", beat.stamp.token);
    world.known.generation = Some(beat.stamp.generation);
    assert_eq!(conflict(&world.change(a, &at, first, acquire()).await), Conflict::Quiet);
    assert_eq!(done(world.change(a, &at, last, ChangeKind::Readopt).await).token, last);
}

#[tokio::test]
async fn a_deleted_bucket_is_made_anew_in_a_new_generation() {
    let mut world = World::new().await;
    let (a, stamp) = opened(world.try_open(open_request("a")).await.unwrap());
    let at = slot("w/0");
    let token = world.acquire(a, &at, FencingToken::NONE).await;
    world.known = Known { generation: Some(stamp.generation), token, session_ttl_max: TTL };
    context(world.server()).await.delete_stream(STREAM).await.unwrap();
    until("a word about the session", async || match world.beat(a).await {
        Err(error) if error.kind() == ErrorKind::Lost => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let (b, after) = opened(world.try_open(open_request("a")).await.unwrap());
    assert_ne!(after.generation, stamp.generation);
    assert!(after.quiet > Duration::ZERO && after.token > token);
    world.known.generation = Some(after.generation);
    assert_eq!(conflict(&world.change(b, &at, FencingToken::NONE, acquire()).await), Conflict::Quiet);
    assert_eq!(done(world.change(b, &at, token, ChangeKind::Readopt).await).token, token);
}

// --- tokens ---

#[tokio::test]
async fn tokens_rise_across_the_deletion_of_a_large_workload() {
    const UNITS: u32 = 700;
    let world = World::new().await;
    let a = world.open("a").await;
    let at = |unit: u32| Slot::new("w".try_into().unwrap(), unit);
    let key = RecordKey::Workload("w".try_into().unwrap());
    let mut last = FencingToken::NONE;
    for _ in 0..2 {
        world.put(key.clone(), Some(Record::Workload(WorkloadRecord::new(UNITS))), None).await;
        for from in (0..UNITS).step_by(100) {
            let units = from..from + 100;
            let changes = units.clone().map(|unit| (at(unit), FencingToken::NONE, acquire())).collect();
            let records: Vec<_> = world.changes(a, changes).await.unwrap().outcomes.into_iter().map(done).collect();
            assert!(records.iter().all(|record| record.token > last), "lower than {last}");
            let most = records.iter().map(|record| record.token).max().unwrap();
            let tokens: std::collections::BTreeSet<_> = records.iter().map(|record| record.token).collect();
            assert_eq!(tokens.len(), records.len(), "unique");
            let changes = records.iter().zip(units).map(|(record, unit)| (at(unit), record.token, release())).collect();
            world.changes(a, changes).await.unwrap().outcomes.into_iter().for_each(|it| drop(done(it)));
            last = most;
        }
        world.put(key.clone(), None, None).await;
        assert_eq!(world.slots().await.len(), 0);
    }
}

// --- who may ---

/// What `docs/stores/nats.md` asks for, for one cluster.
fn least_rights() -> NatsRights {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    NatsRights {
        publish: words(&[
            "$KV.rendez_test.>",
            "$JS.API.STREAM.INFO.KV_rendez_test",
            "$JS.API.STREAM.CREATE.KV_rendez_test",
            "$JS.API.CONSUMER.CREATE.KV_rendez_test.>",
            "$JS.FC.KV_rendez_test.>",
        ]),
        subscribe: words(&["_INBOX.>"]),
    }
}

#[tokio::test]
async fn a_user_with_the_documented_rights_can_do_everything_and_others_are_refused() {
    let only_reads = NatsRights {
        publish: least_rights().publish.into_iter().filter(|it| !it.starts_with("$KV")).collect(),
        ..least_rights()
    };
    let elsewhere = NatsRights { publish: vec!["elsewhere.>".to_owned()], ..least_rights() };
    let server = NatsServer::builder()
        .user("app", "w@rd", Some(least_rights()))
        .user("reader", "word", Some(only_reads))
        .user("stranger", "word", Some(elsewhere))
        .start()
        .await
        .unwrap();
    let connect = async |user: &str, password: &str| {
        NatsStore::connect(&server.url_for(user, password).unwrap(), options()).await
    };
    let world = World::on(connect("app", "w@rd").await.unwrap());
    let mut watch = world.store.watch(&world.cluster).await.unwrap();
    let (a, b) = (world.open("a").await, world.open("b").await);
    let at = slot("w/0");
    let token = world.acquire(a, &at, FencingToken::NONE).await;
    world.beat(a).await.unwrap();
    let id = operation();
    done(world.change(a, &at, token, offer(id, b, TTL, false)).await);
    done(world.change(b, &at, token, ChangeKind::Accept { offer: id }).await);
    let checkpoint = Some("c".into());
    let transfer = ChangeKind::Transfer { operation: operation(), offer: id, checkpoint };
    let token = done(world.change(a, &at, token, transfer).await).token;
    let force = AdminRequest::ForceRelease { slot: at.clone(), token, now: true };
    assert!(matches!(world.store.administer(&world.cluster, &force).await.unwrap(), AdminOutcome::Done(_)));
    let key = RecordKey::Workload("w".try_into().unwrap());
    world.put(key.clone(), Some(Record::Workload(WorkloadRecord::new(4))), None).await;
    world.put(key, None, None).await;
    assert_eq!(world.slots().await.len(), 0);
    world.close(b).await;
    tokio::time::timeout(BOUND, watch.next()).await.unwrap().unwrap();

    for (user, what) in [("reader", "one that may not write"), ("stranger", "one of other subjects")] {
        let store = NatsStore::connect(&server.url_for(user, "word").unwrap(), options()).await.unwrap();
        let error = World::on(store).try_open(open_request("c")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Fatal, "{what}: {error}");
        assert!(error.message().contains("docs/stores/nats.md"), "{error}");
    }
    for refused in [
        connect("app", "hidden").await,
        NatsStore::connect(&format!("nats://{}", server.addr().unwrap()), options()).await,
    ] {
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Fatal);
        assert!(error.message().contains("check user, password") && !error.message().contains("hidden"), "{error}");
    }
}

#[tokio::test]
async fn tokens_and_nkeys_let_in() {
    let server = NatsServer::builder().token("let me in").start().await.unwrap();
    let mut with = options();
    with.set("token", "let me in").unwrap();
    World::on(NatsStore::connect(&server.url(), with).await.unwrap()).open("a").await;
    assert_eq!(kind(NatsStore::connect(&server.url(), options()).await), ErrorKind::Fatal);

    let pair = nkeys::KeyPair::new_user();
    let server = NatsServer::builder().nkey(pair.public_key()).start().await.unwrap();
    let mut with = options();
    with.set("nkey", &pair.seed().unwrap()).unwrap();
    World::on(NatsStore::connect(&server.url(), with).await.unwrap()).open("a").await;
    let mut wrong = options();
    wrong.set("nkey", &nkeys::KeyPair::new_user().seed().unwrap()).unwrap();
    assert_eq!(kind(NatsStore::connect(&server.url(), wrong).await), ErrorKind::Fatal);
}

#[tokio::test]
async fn tls_needs_the_right_authority() {
    let server = NatsServer::builder().tls().client_certificates().start().await.unwrap();
    let files = server.tls().unwrap();
    let read = |path: &std::path::Path| std::fs::read(path).unwrap();
    let mut good = options();
    let client = Some((read(&files.client_cert), read(&files.client_key)));
    let tls = TlsFiles { authorities: Some(read(&files.ca)), client };
    good.tls = Some(tls.clone());
    let world = World::on(NatsStore::connect(&server.url(), good).await.unwrap());
    let a = world.open("a").await;
    world.beat(a).await.unwrap();
    let mut strange = options();
    strange.tls = Some(TlsFiles { authorities: None, ..tls.clone() });
    let error = NatsStore::connect(&server.url(), strange).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fatal, "an authority that is not trusted: {error}");
    assert!(error.message().contains("certificate"), "{error}");
    let mut nameless = options();
    nameless.tls = Some(TlsFiles { client: None, ..tls });
    assert!(NatsStore::connect(&server.url(), nameless).await.is_err(), "without a certificate of the client");
    let plain = server.url().replace("natss://", "nats://");
    assert!(NatsStore::connect(&plain, options()).await.is_err(), "without TLS");
}

#[tokio::test]
async fn what_is_no_nats_is_named_so() {
    let mut quick = options();
    quick.connect_timeout = millis(700);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = listener.local_addr().unwrap();
    let error = NatsStore::connect(&format!("nats://{silent}"), quick.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient);
    assert!(error.message().contains("is it a NATS server"), "{error}");
    drop(listener);
    let redis = RedisServer::builder().start().await.unwrap();
    let error = NatsStore::connect(&format!("nats://{}", redis.addr().unwrap()), quick).await.unwrap_err();
    assert!(error.message().contains("is it a NATS server"), "{error}");
}

#[tokio::test]
async fn a_client_of_ones_own_can_be_used() {
    let server = NatsServer::builder().start().await.unwrap();
    let client = async_nats::connect(server.addr().unwrap().to_string()).await.unwrap();
    let world = World::on(NatsStore::from_client(client, options()).unwrap());
    let a = world.open("a").await;
    assert_eq!(world.beat(a).await.unwrap().held.count, 0);
}
