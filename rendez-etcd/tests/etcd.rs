//! The store on real servers: what etcd does beside answering requests.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rendez_core::*;
use rendez_etcd::{EtcdStore, FENCED_OPERATIONS_MAX, Fence, FenceError, TlsFiles, etcd_client};
use rendez_testkit::proxy::Proxy;
use rendez_testkit::servers::{EtcdCluster, EtcdRight, EtcdServer, RedisServer, Restart};
use support::*;

/// Longer than anything here should take, even on a busy machine.
const BOUND: Duration = Duration::from_secs(30);

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
    let store = EtcdStore::connect(&world.server().url(), options()).await.unwrap();
    World { known: world.known.clone(), ..World::on(store) }
}

async fn ends(world: &World, session: SessionId) -> bool {
    let (_, items) = world.snapshot(None).await;
    !items.iter().any(|item| matches!(item, Change::Session(id, _) if *id == session))
}

#[tokio::test]
async fn a_session_ends_late_but_never_early_and_everybody_hears_of_it() {
    let world = World::new().await;
    let other = another(&world).await;
    let (ttl, second) = (millis(2500), Duration::from_secs(3));
    let Opening::Opened { session: a, ttl: granted, .. } =
        world.try_open(OpenRequest { ttl, ..open_request("a") }).await.unwrap()
    else {
        panic!("in use")
    };
    assert_eq!(granted, second, "whole seconds");
    assert_eq!(kind(world.try_open(OpenRequest { ttl: millis(1999), ..open_request("x") }).await), ErrorKind::Fatal);
    let b = other.open("b").await;
    let at = slot("w/1");
    let token = world.acquire(a, &at, FencingToken::NONE).await;
    let mut watch = other.store.watch(&other.cluster).await.unwrap();
    let sent = Instant::now();
    let beat = world.beat(a).await.unwrap();
    assert_eq!(beat.ttl, second);
    loop {
        let hint = tokio::time::timeout(BOUND, watch.next()).await.unwrap().unwrap();
        if hint == WatchHint::Everyone && ends(&other, a).await {
            break;
        }
    }
    assert!(sent.elapsed() >= second, "it ended after {:?}", sent.elapsed());
    assert_eq!(kind(world.beat(a).await), ErrorKind::Lost);
    assert!(other.acquire(b, &at, token).await > token);
}

#[tokio::test]
async fn a_revoked_lease_is_a_lost_session_though_etcd_answers_success() {
    let world = World::new().await;
    let (a, b) = (world.open("a").await, world.open("b").await);
    world.beat(a).await.unwrap();
    let lease = format!("{:x}", a.bits() & u128::from(u64::MAX));
    world.server().control(&["lease", "revoke", &lease]).await.unwrap();
    assert_eq!(kind(world.beat(a).await), ErrorKind::Lost);
    let acquired = world.changes(a, vec![(slot("w/0"), FencingToken::NONE, acquire())]).await;
    assert_eq!(kind(acquired), ErrorKind::Lost);
    world.close(a).await;
    // The stream of keep-alives that it shared goes on.
    world.beat(b).await.unwrap();
    // No key is left that would keep the name.
    world.open("a").await;
}

#[tokio::test]
async fn an_opening_is_retried_refused_and_replaced() {
    let world = World::new().await;
    let other = another(&world).await;
    let request = open_request("a");
    let (first, _) = opened(world.try_open(request.clone()).await.unwrap());
    assert_eq!(opened(other.try_open(request.clone()).await.unwrap()).0, first, "the same request");
    let Opening::InUse { session, incarnation, remaining, .. } = other.try_open(open_request("a")).await.unwrap()
    else {
        panic!("two sessions of one node")
    };
    assert_eq!((session, incarnation), (first, request.incarnation));
    assert!(remaining <= TTL && remaining > TTL / 2, "{remaining:?}");
    let again = OpenRequest { operation: operation(), replaces: Some(first), ..request.clone() };
    let (second, _) = opened(other.try_open(again).await.unwrap());
    assert_ne!(first, second);
    assert_eq!(kind(world.beat(first).await), ErrorKind::Lost);
    other.beat(second).await.unwrap();
    // Its lease does not linger either.
    let leases = world.server().control(&["lease", "list"]).await.unwrap();
    assert!(leases.contains("found 1 leases"), "{leases}");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_who_want_a_slot_one_gets_it_and_tokens_never_repeat() {
    let world = World::new().await;
    let slots: Vec<Slot> = (0..40).map(|unit| slot(&format!("w/{unit}"))).collect();
    let mut tasks = Vec::new();
    for node in 0..5 {
        let world = another(&world).await;
        let slots = slots.clone();
        tasks.push(async move {
            let session = world.open(&format!("n{node}")).await;
            let mut grants = Vec::new();
            for round in 0..6 {
                let seen = world.slots().await;
                let token = |at: &Slot| seen.get(at).map_or(FencingToken::NONE, |record| record.token);
                let wanted = slots.iter().skip((node + round) % 3).step_by(2);
                let changes = wanted.map(|at| (at.clone(), token(at), acquire())).collect();
                let reply = until("acquiring", async || world.changes(session, Vec::clone(&changes)).await).await;
                let mut back = Vec::new();
                for ((at, _, _), outcome) in changes.iter().zip(reply.outcomes) {
                    if let ChangeOutcome::Done(Some(record)) = outcome {
                        grants.push((at.clone(), record.token, session));
                        back.push((at.clone(), record.token, release()));
                    }
                }
                if round < 5 {
                    let reply = until("releasing", async || world.changes(session, back.clone()).await).await;
                    reply.outcomes.into_iter().for_each(|outcome| {
                        done(outcome);
                    });
                }
            }
            grants
        });
    }
    let mut all: BTreeMap<(Slot, FencingToken), SessionId> = BTreeMap::new();
    for grants in futures_util::future::join_all(tasks).await {
        for (at, token, session) in grants {
            let before = all.insert((at.clone(), token), session);
            assert_eq!(before, None, "{at} was granted twice with {token}");
        }
    }
    for (at, record) in world.slots().await {
        let last = all.range((at.clone(), FencingToken::NONE)..=(at.clone(), FencingToken::new(u64::MAX))).next_back();
        let (&(_, token), session) = last.unwrap();
        assert_eq!(record.token, token, "{at}");
        assert!(record.holder.is_none_or(|holder| holder.session == *session));
    }
}

#[tokio::test]
async fn a_checkpoint_goes_with_its_slot_and_to_nobody_else() {
    let world = World::new().await;
    let other = another(&world).await;
    let (a, b) = (world.open("a").await, other.open("b").await);
    let at = slot("w/0");
    let token = world.acquire(a, &at, FencingToken::NONE).await;
    let before = world.beat(b).await.unwrap().stamp.revision;
    let saved = ChangeKind::SaveCheckpoint { checkpoint: "half way".into() };
    assert_eq!(done(world.change(a, &at, token, saved).await).checkpoint.as_deref(), Some(b"half way".as_slice()));
    let mut known = world.beat_request(b);
    known.since = Some(before);
    known.known.generation = Some(world.beat(b).await.unwrap().stamp.generation);
    let told = world.store.heartbeat(&world.cluster, &known).await.unwrap();
    assert_eq!(changes(&told.sync).0, [], "a checkpoint wakes nobody");
    let id = operation();
    done(world.change(a, &at, token, offer(id, b, TTL, false)).await);
    done(other.change(b, &at, token, ChangeKind::Accept { offer: id }).await);
    let transfer = ChangeKind::Transfer { operation: operation(), offer: id, checkpoint: None };
    let given = done(world.change(a, &at, token, transfer).await);
    assert!(given.token > token && given.checkpoint.is_none());
    let mut request = known.clone();
    request.session = b;
    let told = other.store.heartbeat(&other.cluster, &request).await.unwrap();
    let told = changes(&told.sync).0.iter().find_map(|change| match change {
        Change::Slot(_, Some(record)) => record.checkpoint.clone(),
        _ => None,
    });
    assert_eq!(told.as_deref(), Some(b"half way".as_slice()));
    assert!(other.slots().await[&at].checkpoint.is_none());
    let (_, items) = other.snapshot(Some(b)).await;
    let own = items.iter().find_map(|item| match item {
        Change::Slot(_, Some(record)) => record.checkpoint.clone(),
        _ => None,
    });
    assert_eq!(own.as_deref(), Some(b"half way".as_slice()));
}

#[tokio::test]
async fn hints_reach_those_whom_they_concern() {
    let world = World::new().await;
    let other = another(&world).await;
    let (a, b) = (world.open("a").await, other.open("b").await);
    let at = slot("w/0");
    let token = world.acquire(a, &at, FencingToken::NONE).await;
    let mut watch = other.store.watch(&other.cluster).await.unwrap();
    let mut heard = async |wanted| {
        while tokio::time::timeout(BOUND, watch.next()).await.unwrap().unwrap() != wanted {}
    };
    let id = operation();
    done(world.change(a, &at, token, offer(id, b, TTL, false)).await);
    heard(WatchHint::Session(b)).await;
    done(other.change(b, &at, token, ChangeKind::Accept { offer: id }).await);
    heard(WatchHint::Session(a)).await;
    let transfer = ChangeKind::Transfer { operation: operation(), offer: id, checkpoint: None };
    let token = done(world.change(a, &at, token, transfer).await).token;
    heard(WatchHint::Session(b)).await;
    done(other.change(b, &at, token, release()).await);
    heard(WatchHint::Everyone).await;
    let key = RecordKey::Workload("w".try_into().unwrap());
    world.put(key, Some(Record::Workload(WorkloadRecord::new(4))), None).await;
    heard(WatchHint::Everyone).await;
}

#[tokio::test]
async fn a_restarted_server_is_found_again_and_has_forgotten_nothing() {
    let mut world = World::new().await;
    let a = world.open("a").await;
    let at = slot("w/0");
    let token = world.acquire(a, &at, FencingToken::NONE).await;
    let before = world.beat(a).await.unwrap();
    world.known.generation = Some(before.stamp.generation);
    world.server.as_mut().unwrap().restart(Restart::Crashed).await.unwrap();
    let after = until("the session to live on", async || world.beat(a).await).await;
    assert_eq!((after.stamp.generation, after.held), (before.stamp.generation, before.held));
    assert_eq!(after.stamp.quiet, Duration::ZERO);
    let again = until("acquiring", async || world.changes(a, vec![(at.clone(), token, acquire())]).await).await;
    assert!(done(again.outcomes.into_iter().next().unwrap()).token > token);
}

#[tokio::test]
async fn what_happened_behind_a_cut_watch_is_told_also_after_a_compaction() {
    let server = EtcdServer::builder().start().await.unwrap();
    let proxy = Proxy::start(server.addr().unwrap()).await.unwrap();
    let direct = World::with(server).await;
    let store = EtcdStore::connect(&format!("etcd://{}", proxy.addr()), options()).await.unwrap();
    let mut cut = World::on(store);
    let (a, b) = (cut.open("a").await, direct.open("b").await);
    for unit in 0..3 {
        direct.acquire(b, &slot(&format!("gone/{unit}")), FencingToken::NONE).await;
    }
    let stamp = cut.beat(a).await.unwrap().stamp;
    cut.known.generation = Some(stamp.generation);
    proxy.freeze();
    let at = slot("w/0");
    direct.acquire(b, &at, FencingToken::NONE).await;
    direct.close(b).await;
    direct.put(RecordKey::Workload("gone".try_into().unwrap()), None, None).await;
    assert_eq!(kind(cut.beat(a).await), ErrorKind::Ambiguous, "a frozen server says nothing");
    direct.server().compact().await.unwrap();
    proxy.heal().await.unwrap();
    let mut request = cut.beat_request(a);
    request.since = Some(stamp.revision);
    let told = until("an answer", async || cut.store.heartbeat(&cut.cluster, &request).await).await;
    let told: Vec<String> = changes(&told.sync)
        .0
        .iter()
        .map(|change| match change {
            Change::Session(id, record) => format!("{} {}", if *id == a { "a" } else { "b" }, record.is_some()),
            Change::Slot(slot, record) => format!("{slot} {}", record.is_some()),
            Change::Record(key, record) => format!("{key:?} {}", record.is_some()),
        })
        .collect();
    for change in ["b false", "gone/0 false", "gone/1 false", "gone/2 false", "w/0 true"] {
        assert!(told.iter().any(|it| it == change), "{change} is not in {told:?}");
    }
}

#[tokio::test]
async fn a_compaction_alone_disturbs_nobody() {
    let world = World::new().await;
    let a = world.open("a").await;
    for round in 0..5 {
        let at = slot(&format!("w/{round}"));
        world.acquire(a, &at, FencingToken::NONE).await;
        world.server().compact().await.unwrap();
        assert_eq!(world.beat(a).await.unwrap().held.count, round + 1);
    }
}

#[tokio::test]
async fn a_stopped_leader_costs_time_but_no_session_and_its_late_answers_extend_nothing() {
    let member = EtcdServer::builder().timings(millis(100), millis(500));
    let mut cluster = EtcdCluster::builder().member(member).start().await.unwrap();
    let world = World::on(EtcdStore::connect(&cluster.url(), options()).await.unwrap());
    let old = cluster.leader().await.unwrap();
    let mut patient = options();
    patient.operation_timeout = BOUND;
    let at_old = World::on(EtcdStore::connect(&cluster.members[old].url(), patient).await.unwrap());
    let survivor = world.open("survivor").await;
    let (victim, stamp) =
        opened(at_old.try_open(OpenRequest { ttl: Duration::from_secs(2), ..open_request("victim") }).await.unwrap());
    at_old.beat(victim).await.unwrap();
    let token = world.acquire(survivor, &slot("w/0"), FencingToken::NONE).await;
    cluster.members[old].stop().unwrap();
    // On its way to a leader that stands still, and there it waits.
    let late = tokio::spawn(async move { at_old.beat(victim).await });
    cluster.wait_for_another_leader(old).await.unwrap();
    let beat = until("a heartbeat", async || world.beat(survivor).await).await;
    assert_eq!((beat.stamp.generation, beat.stamp.quiet), (stamp.generation, Duration::ZERO));
    // One of the members that are tried stands still: any request may fail, and the next ones must not.
    until("the end of the other session", async || {
        world.beat(survivor).await.map_err(|error| error.to_string())?;
        let request = SnapshotRequest { known: world.known.clone(), session: None, cursor: None };
        let page = world.store.snapshot(&world.cluster, &request).await.map_err(|error| error.to_string())?;
        match page.items.iter().any(|item| matches!(item, Change::Session(id, _) if *id == victim)) {
            true => Err("it lives".to_owned()),
            false => Ok(()),
        }
    })
    .await;
    let again = until("acquiring", async || world.changes(survivor, vec![(slot("w/0"), token, acquire())]).await).await;
    assert!(done(again.outcomes.into_iter().next().unwrap()).token > token);
    cluster.members[old].resume().unwrap();
    let late = late.await.unwrap();
    assert!(late.is_err(), "a deposed leader extended a session that was dead: {late:?}");
}

#[tokio::test]
async fn a_full_database_ends_no_session() {
    let server = EtcdServer::builder().quota_bytes(4 << 20).start().await.unwrap();
    let world = World::with(server).await;
    let (a, b) = (world.open("a").await, world.open("b").await);
    let at = slot("w/0");
    let token = world.acquire(a, &at, FencingToken::NONE).await;
    world.server().fill().await.unwrap();
    assert_eq!(world.beat(a).await.unwrap().held.count, 1);
    assert_eq!(kind(world.try_open(open_request("c")).await), ErrorKind::Throttled);
    let acquired = world.changes(a, vec![(slot("w/1"), FencingToken::NONE, acquire())]).await;
    let error = acquired.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Throttled);
    assert!(error.message().contains("quota"), "{error}");
    world.close(b).await;
    world.server().make_room().await.unwrap();
    assert_eq!(kind(world.beat(b).await), ErrorKind::Lost);
    let again = until("acquiring", async || world.changes(a, vec![(at.clone(), token, acquire())]).await).await;
    assert!(done(again.outcomes.into_iter().next().unwrap()).token > token);
}

#[tokio::test]
async fn a_user_with_the_documented_rights_can_do_everything_and_others_are_refused() {
    let mut server = EtcdServer::builder().root_password("r00t").start().await.unwrap();
    server.create_user("app", "w@rd", &[EtcdRight::ReadWrite("rendez/".to_owned())]).await.unwrap();
    server.create_user("reader", "word", &[EtcdRight::Read("rendez/".to_owned())]).await.unwrap();
    server.create_user("stranger", "word", &[EtcdRight::ReadWrite("elsewhere/".to_owned())]).await.unwrap();
    let connect = async |user: &str, password: &str| {
        EtcdStore::connect(&server.url_for(user, password).unwrap(), options()).await
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

    for (user, what) in [("reader", "one that may not write"), ("stranger", "one of another prefix")] {
        let other = World::on(connect(user, "word").await.unwrap());
        let error = other.try_open(open_request("c")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Fatal, "{what}: {error}");
        assert!(error.message().contains("docs/stores/etcd.md"), "{error}");
    }
    let error = connect("app", "hidden").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fatal);
    assert!(error.message().contains("user and password") && !error.message().contains("hidden"), "{error}");
    let nobody = EtcdStore::connect(&format!("etcd://{}", server.addr().unwrap()), options()).await;
    let refused = match nobody {
        Ok(store) => World::on(store).try_open(open_request("c")).await.map(drop),
        Err(error) => Err(error),
    };
    assert_eq!(kind(refused), ErrorKind::Fatal, "no login");

    // The server forgets who has logged in: the store logs in again by itself.
    server.restart(Restart::Saved).await.unwrap();
    until("the login to be renewed", async || world.beat(a).await).await;
}

#[tokio::test]
async fn what_is_no_etcd_is_named_so() {
    let mut quick = options();
    quick.connect_timeout = millis(700);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = listener.local_addr().unwrap();
    let error = EtcdStore::connect(&format!("etcd://{silent}"), quick.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient);
    assert!(error.message().contains("is it an etcd server"), "{error}");
    drop(listener);
    let error = EtcdStore::connect(&format!("etcd://{silent}"), quick.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    let redis = RedisServer::builder().start().await.unwrap();
    let error = EtcdStore::connect(&format!("etcd://{}", redis.addr().unwrap()), quick).await.unwrap_err();
    assert!(error.message().contains("is it an etcd server"), "{error}");
}

#[tokio::test]
async fn one_member_that_is_down_hides_not_the_others() {
    let world = World::new().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (silent, addr) = (listener.local_addr().unwrap(), world.server().addr().unwrap());
    for url in [format!("etcd://{silent},{addr}"), format!("etcd://{addr},{silent}")] {
        for _ in 0..4 {
            let store = EtcdStore::connect(&url, options()).await.unwrap();
            World::on(store).snapshot(None).await;
        }
    }
}

#[tokio::test]
async fn tls_needs_the_right_authority() {
    let server = EtcdServer::builder().tls().client_certificates().start().await.unwrap();
    let files = server.tls().unwrap();
    let read = |path: &std::path::Path| std::fs::read(path).unwrap();
    let mut good = options();
    let client = Some((read(&files.client_cert), read(&files.client_key)));
    let tls = TlsFiles { authorities: Some(read(&files.ca)), client };
    good.tls = Some(tls.clone());
    let store = EtcdStore::connect(&server.url(), good).await.unwrap();
    let world = World::on(store);
    let a = world.open("a").await;
    world.beat(a).await.unwrap();
    for broken in [None, Some(TlsFiles { authorities: None, ..tls.clone() }), Some(TlsFiles { client: None, ..tls })] {
        let mut options = options();
        options.tls = broken;
        let error = EtcdStore::connect(&server.url(), options).await.unwrap_err();
        assert!(error.message().contains("certificate"), "{:?}: {error}", error.kind());
    }
    let error = EtcdStore::connect(&server.url(), options()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fatal, "an authority that is not trusted: {error}");
    let plain = server.url().replace("etcds://", "etcd://");
    assert!(EtcdStore::connect(&plain, options()).await.is_err());
}

#[tokio::test]
async fn names_that_look_like_keys_stay_names() {
    let world = World::new().await;
    let names = ["a/b", "a%2Fb", "..", "meta", "*{x}", " ", "\u{1f980}", "slot/a/0"];
    for cluster in names {
        let world = World { cluster: cluster.try_into().unwrap(), ..another(&world).await };
        let session = world.open(cluster).await;
        let slots: Vec<Slot> = names.iter().map(|name| Slot::new((*name).try_into().unwrap(), 7)).collect();
        for at in &slots {
            world.acquire(session, at, FencingToken::NONE).await;
        }
        for at in &slots {
            world.put(RecordKey::Pin(at.clone()), Some(Record::Pin(cluster.try_into().unwrap())), None).await;
        }
        let (_, items) = world.snapshot(None).await;
        let mut found: Vec<&Slot> = items
            .iter()
            .filter_map(|item| match item {
                Change::Slot(slot, Some(_)) => Some(slot),
                _ => None,
            })
            .collect();
        let mut wanted: Vec<&Slot> = slots.iter().collect();
        found.sort();
        wanted.sort();
        assert_eq!(found, wanted, "{cluster}");
        assert_eq!(items.len(), 2 * names.len() + 2, "{cluster}: pins, slots, the settings, the session");
    }
}

#[tokio::test]
async fn what_others_wrote_below_the_prefix_is_left_alone_or_named() {
    let world = World::new().await;
    let a = world.open("a").await;
    let server = world.server();
    for key in ["rendez//test/something", "rendez//test/zz", "rendez/test", "rendez//testing/meta"] {
        server.control(&["put", key, "mine"]).await.unwrap();
    }
    world.beat(a).await.unwrap();
    world.acquire(a, &slot("w/0"), FencingToken::NONE).await;
    assert_eq!(server.control(&["get", "--print-value-only", "rendez//test/zz"]).await.unwrap().trim(), "mine");
    server.control(&["put", "rendez//test/slot/w/1", "mine"]).await.unwrap();
    let error = until("the foreign record to be seen", async || match world.beat(a).await {
        Ok(_) => Err("not yet"),
        Err(error) => Ok(error),
    })
    .await;
    assert_eq!(error.kind(), ErrorKind::Fatal);
    assert!(error.message().contains("another prefix"), "{error}");
    // Put right by hand, it does no more harm, nor to those who come later.
    server.control(&["del", "rendez//test/slot/w/1"]).await.unwrap();
    until("the key to be gone", async || world.beat(a).await).await;
    another(&world).await.beat(a).await.unwrap();
}

#[tokio::test]
async fn an_unknown_layout_is_refused_before_anything_is_written() {
    let world = World::new().await;
    let server = world.server();
    server.control(&["put", "rendez//test/meta", r#"{"layout":2}"#]).await.unwrap();
    let before = server.revision().await.unwrap();
    let error = world.try_open(open_request("a")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fatal);
    assert!(error.message().contains("layout 2"), "{error}");
    let key = RecordKey::Workload("w".try_into().unwrap());
    let put = AdminRequest::Put { key, record: None, expect: None };
    assert_eq!(kind(world.store.administer(&world.cluster, &put).await), ErrorKind::Fatal);
    assert_eq!(server.revision().await.unwrap(), before);
}

#[tokio::test]
async fn lost_data_are_a_new_generation_in_which_only_running_work_goes_on() {
    let mut server = EtcdServer::builder().start().await.unwrap();
    for empty in [false, true] {
        let store = EtcdStore::connect(&server.url(), options()).await.unwrap();
        let mut world = World::on(store);
        let mut request = open_request("a");
        let mut info = NodeInfo::clone(&request.info);
        info.settings = ClusterSettings::new(Duration::from_secs(2));
        (request.info, request.ttl) = (Arc::new(info), Duration::from_secs(2));
        let (a, stamp) = opened(until("opening", async || world.try_open(request.clone()).await).await);
        let (kept, void) = (slot("w/0"), slot("w/1"));
        let token = world.acquire(a, &kept, FencingToken::NONE).await;
        let other = world.acquire(a, &void, FencingToken::NONE).await;
        world.known = Known {
            generation: Some(stamp.generation),
            token: token.max(other),
            session_ttl_max: Duration::from_secs(2),
        };
        if empty {
            server.restart(Restart::Empty).await.unwrap();
        } else {
            server.control(&["del", "--prefix", "rendez/"]).await.unwrap();
        }
        let lost = until("a word about the session", async || match world.beat(a).await {
            Err(error) if error.kind() == ErrorKind::Lost => Ok(()),
            other => Err(format!("{other:?}")),
        });
        lost.await;
        let lost_at = Instant::now();
        let again = OpenRequest { operation: operation(), known: world.known.clone(), ..request.clone() };
        let (b, after) = opened(until("opening", async || world.try_open(again.clone()).await).await);
        assert_ne!(after.generation, stamp.generation, "empty: {empty}");
        assert!(after.quiet > Duration::ZERO && after.quiet <= Duration::from_secs(3), "{:?}", after.quiet);
        world.known.generation = Some(after.generation);
        assert_eq!(conflict(&world.change(b, &void, FencingToken::NONE, acquire()).await), Conflict::Quiet);
        let adopted = done(world.change(b, &kept, token, ChangeKind::Readopt).await);
        assert_eq!(adopted.token, token);
        assert_eq!(world.beat(b).await.unwrap().held.count, 1);
        let granted = until("the end of the quiet time", async || {
            world.beat(b).await.map_err(|error| error.to_string())?;
            match world.change(b, &void, FencingToken::NONE, acquire()).await {
                ChangeOutcome::Done(Some(record)) => Ok(record.token),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        // From the moment of the loss to the first grant.
        assert!(lost_at.elapsed() > Duration::from_secs(2), "after {:?}", lost_at.elapsed());
        assert!(granted > token.max(other));
        let again = done(world.change(b, &kept, token, acquire()).await);
        assert!(again.token > token);
        world.close(b).await;
        server.control(&["del", "--prefix", "rendez/"]).await.unwrap();
    }
}

/// The new data have more revisions than the old ones had, by the time somebody who has seen the old ones asks again.
#[tokio::test]
async fn lost_data_whose_successors_have_grown_meanwhile_are_read_anew() {
    let mut world = World::new().await;
    let (_, stamp) = opened(world.try_open(open_request("a")).await.unwrap());
    // What everybody knows makes the quiet time long enough for all: nothing has to be written for the one who comes late.
    world.known = Known { generation: Some(stamp.generation), token: FencingToken::NONE, session_ttl_max: TTL_MAX };
    let seen = world.server().revision().await.unwrap();
    world.server.as_mut().unwrap().restart(Restart::Empty).await.unwrap();
    // Another node of before comes first: the new data know the generation that was lost.
    let mut other = another(&world).await;
    let (b, stamp) = opened(until("opening", async || other.try_open(open_request("b")).await).await);
    assert_ne!(Some(stamp.generation), world.known.generation);
    other.known.generation = Some(stamp.generation);
    let mut round = 0;
    while world.server().revision().await.unwrap() <= seen + 5 {
        other.put(RecordKey::Pin(slot(&format!("w/{round}"))), Some(Record::Pin(node("b"))), None).await;
        round += 1;
    }
    let (a, stamp) = opened(until("opening", async || world.try_open(open_request("a")).await).await);
    assert_eq!(Some(stamp.generation), other.known.generation);
    world.known.generation = Some(stamp.generation);
    assert!(world.beat(a).await.is_ok() && other.beat(b).await.is_ok());
}

#[tokio::test]
async fn tokens_rise_across_the_deletion_of_a_large_workload() {
    let world = World::new().await;
    let a = world.open("a").await;
    let slots: Vec<Slot> = (0..150).map(|unit| slot(&format!("w/{unit}"))).collect();
    let take = async |world: &World| {
        let mut tokens = BTreeMap::new();
        for part in slots.chunks(world.store.capabilities().changes_max) {
            let changes = part.iter().map(|at| (at.clone(), FencingToken::NONE, acquire())).collect();
            for (at, outcome) in part.iter().zip(world.changes(a, changes).await.unwrap().outcomes) {
                tokens.insert(at.clone(), done(outcome).token);
            }
        }
        tokens
    };
    let first = take(&world).await;
    for part in slots.chunks(50) {
        let changes = part.iter().map(|at| (at.clone(), first[at], release())).collect();
        world.changes(a, changes).await.unwrap();
    }
    let kept = world.acquire(a, &slots[7], first[&slots[7]]).await;
    let key = RecordKey::Workload("w".try_into().unwrap());
    world.put(key.clone(), Some(Record::Workload(WorkloadRecord::new(150))), None).await;
    world.put(key, None, None).await;
    assert_eq!(world.slots().await.into_keys().collect::<Vec<_>>(), [slots[7].clone()], "what is held stays");
    done(world.change(a, &slots[7], kept, release()).await);
    world.put(RecordKey::Workload("w".try_into().unwrap()), None, None).await;
    let second = take(&world).await;
    for (at, token) in second {
        assert!(token > first[&at] && (at != slots[7] || token > kept), "{at}");
    }
}

#[tokio::test]
async fn a_reported_token_is_never_granted_again() {
    let mut world = World::new().await;
    let a = world.open("a").await;
    let at = slot("w/0");
    let token = world.acquire(a, &at, FencingToken::NONE).await;
    world.known.token = FencingToken::new(token.get() + 1_000_000);
    let next = world.acquire(a, &at, token).await;
    assert!(next > world.known.token);
    world.known.token = FencingToken::NONE;
    let other = another(&world).await;
    assert!(other.acquire(a, &slot("w/1"), FencingToken::NONE).await > next, "by whoever asks");
    world.known.token = FencingToken::new(TOKEN_MAX + 1);
    assert_eq!(kind(world.beat(a).await), ErrorKind::Fatal);
    let end = Known { token: FencingToken::new(TOKEN_MAX), ..Known::default() };
    let request =
        ChangeRequest { known: end, session: a, changes: vec![SlotChange { slot: at, token: next, kind: acquire() }] };
    assert_eq!(kind(other.store.change(&other.cluster, &request).await), ErrorKind::Fatal);
}

#[tokio::test]
async fn the_first_session_of_a_cluster_waits_if_its_settings_say_so() {
    let world = World::new().await;
    let mut request = open_request("a");
    let mut info = NodeInfo::clone(&request.info);
    info.settings.cold_start_hold = Duration::from_secs(2);
    request.info = Arc::new(info);
    let began = Instant::now();
    let (a, stamp) = opened(world.try_open(request).await.unwrap());
    assert!(stamp.quiet > Duration::ZERO);
    let at = slot("w/0");
    assert_eq!(conflict(&world.change(a, &at, FencingToken::NONE, acquire()).await), Conflict::Quiet);
    until("the first grant", async || match world.change(a, &at, FencingToken::NONE, acquire()).await {
        ChangeOutcome::Done(_) => Ok(()),
        other => Err(other),
    })
    .await;
    assert!(began.elapsed() >= Duration::from_secs(2), "after {:?}", began.elapsed());
    let b = world.open("b").await;
    world.acquire(b, &slot("w/1"), FencingToken::NONE).await;
}

#[tokio::test]
async fn the_largest_request_fits_one_transaction() {
    let world = World::new().await;
    let a = world.open("a").await;
    let most = world.store.capabilities().changes_max;
    let mut receivers = Vec::new();
    for node in 0..most {
        receivers.push(world.open(&format!("n{node}")).await);
    }
    let slots: Vec<Slot> = (0..most).map(|unit| slot(&format!("w/{unit}"))).collect();
    let all = async |session, kind: &dyn Fn(usize) -> (FencingToken, ChangeKind)| {
        let changes = slots.iter().enumerate().map(|(at, slot)| {
            let (token, kind) = kind(at);
            (slot.clone(), token, kind)
        });
        world.changes(session, changes.collect()).await.unwrap().outcomes.into_iter().map(done).collect::<Vec<_>>()
    };
    let taken = all(a, &|_| (FencingToken::NONE, acquire())).await;
    assert!(taken.iter().all(|record| record.revision == taken[0].revision), "at one moment");
    let id = |at: usize| OperationId::from_bits(1000 + at as u128);
    all(a, &|at| (taken[at].token, offer(id(at), receivers[at], TTL, false))).await;
    for (at, receiver) in receivers.iter().enumerate() {
        done(world.change(*receiver, &slots[at], taken[at].token, ChangeKind::Accept { offer: id(at) }).await);
    }
    let checkpoint = || Some(vec![7; CHECKPOINT_BYTES_MAX].into());
    let moved = all(a, &|at| {
        let transfer = ChangeKind::Transfer { operation: operation(), offer: id(at), checkpoint: checkpoint() };
        (taken[at].token, transfer)
    })
    .await;
    assert!(moved.iter().zip(&receivers).all(|(record, receiver)| record.is_held_by(*receiver)));
    let too_many = (0..=most).map(|unit| (slot(&format!("x/{unit}")), FencingToken::NONE, acquire())).collect();
    assert_eq!(kind(world.changes(a, too_many).await), ErrorKind::Fatal);
}

#[tokio::test]
async fn a_client_of_ones_own_can_be_used() {
    let server = EtcdServer::builder().start().await.unwrap();
    let client = etcd_client::Client::connect([server.addr().unwrap().to_string()], None).await.unwrap();
    let mut elsewhere = options();
    elsewhere.set("prefix", "/my/own").unwrap();
    let mut world = World::on(EtcdStore::from_client(client, elsewhere).await.unwrap());
    let a = world.open("a").await;
    world.beat(a).await.unwrap();
    let keys = server.control(&["get", "--prefix", "/my/own//test/", "--keys-only"]).await.unwrap();
    assert!(keys.contains("/my/own//test/meta") && keys.contains("/my/own//test/node/a"), "{keys}");
    let url = format!("{}//my/own", server.url());
    world.store = EtcdStore::connect(&url, options()).await.unwrap();
    world.beat(a).await.unwrap();
}

#[tokio::test]
async fn a_newer_etcd_does_as_well() {
    let builder = EtcdServer::builder().version(rendez_testkit::servers::EtcdVersion::V3_5);
    let world = World::with(builder.start().await.unwrap()).await;
    let a = world.open_for("a", Duration::from_secs(2)).await;
    let b = world.open("b").await;
    let at = slot("w/0");
    let token = world.acquire(a, &at, FencingToken::NONE).await;
    world.beat(a).await.unwrap();
    let sent = Instant::now();
    world.beat(a).await.unwrap();
    let taken = until("the takeover", async || match world.change(b, &at, token, acquire()).await {
        ChangeOutcome::Done(Some(record)) => Ok(record),
        other => Err(other),
    })
    .await;
    assert!(sent.elapsed() >= Duration::from_secs(2) && taken.token > token);
    assert_eq!(kind(world.beat(a).await), ErrorKind::Lost);
}

#[tokio::test]
async fn a_fence_lets_the_newest_token_write_and_no_older_one() {
    use etcd_client::TxnOp;
    let world = World::new().await;
    let address = world.server().url().replace("etcd://", "");
    let client = etcd_client::Client::connect([address], None).await.unwrap();
    let mut kv = client.kv_client();
    let fence = Fence::new("/fence");
    let huge = u64::MAX;
    for (number, accepted) in
        [(9, true), (10, true), (10, true), (9, false), (huge - 1, true), (huge, true), (huge - 1, false)]
    {
        let operations = vec![TxnOp::put(format!("/data/{number}"), "x", None), TxnOp::get("/data/9", None)];
        match fence.write(&mut kv, FencingToken::new(number), operations).await {
            Ok(answers) => assert!(accepted && answers.len() == 2, "{number}: {answers:?}"),
            Err(FenceError::Stale(stale)) => assert!(!accepted && stale.seen > stale.token, "{number}: {stale}"),
            Err(other) => panic!("{number}: {other}"),
        }
    }
    // As many as go in, and what was refused has left no trace.
    let many = |count| (0..count).map(|at| TxnOp::put(format!("/many/{at}"), "x", None)).collect::<Vec<_>>();
    fence.write(&mut kv, FencingToken::new(huge), many(FENCED_OPERATIONS_MAX)).await.unwrap();
    let refused = fence.write(&mut kv, FencingToken::new(huge), many(FENCED_OPERATIONS_MAX + 1)).await;
    assert!(matches!(refused, Err(FenceError::TooLong { .. })), "{refused:?}");
    assert!(matches!(fence.write(&mut kv, FencingToken::new(3), many(1)).await, Err(FenceError::Stale(_))));
    kv.put("/data/other", "zebra", None).await.unwrap();
    let refused = Fence::new("/data/other").write(&mut kv, FencingToken::new(3), Vec::new()).await;
    assert!(matches!(refused, Err(FenceError::NoFence)), "{refused:?}");
}
