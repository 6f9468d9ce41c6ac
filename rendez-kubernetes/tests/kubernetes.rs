//! What an API server does beside answering requests, and what its people do to it.

mod role;
mod support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rendez_core::*;
use rendez_kubernetes::{KubernetesStore, kube};
use rendez_testkit::servers::{KubernetesServer, Verb};
use serde_json::Value;
use support::*;

/// Longer than anything here should take, even on a busy machine.
const BOUND: Duration = Duration::from_secs(30);
const NONE: FencingToken = FencingToken::NONE;

async fn another(world: &World) -> World {
    let store = KubernetesStore::connect(&world.server().url(), options()).await.unwrap();
    World { known: world.known.clone(), ..World::on(store) }
}

async fn lives(world: &World, session: SessionId) -> bool {
    let (_, items) = world.snapshot(None).await;
    items.iter().any(|item| matches!(item, Change::Session(id, _) if *id == session))
}

/// Waits until it is so.
async fn until(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !is().await {
        assert!(started.elapsed() < BOUND, "{what}");
        tokio::time::sleep(millis(20)).await;
    }
}

/// The Lease of this name.
fn lease(world: &World, name: &str) -> Option<Value> {
    world.server().leases().into_iter().find(|lease| lease["metadata"]["name"] == name)
}

fn version(lease: &Value) -> u64 {
    lease["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_session_ends_late_but_never_early_and_everybody_hears_of_it() {
    let world = World::new().await;
    let other = another(&world).await;
    let request = OpenRequest { ttl: millis(1500), ..open_request("a") };
    let Opening::Opened { session: a, ttl, .. } = world.try_open(request).await.unwrap() else { panic!("in use") };
    assert_eq!(ttl, Duration::from_secs(2), "whole seconds");
    assert_eq!(kind(world.try_open(OpenRequest { ttl: millis(999), ..open_request("x") }).await), ErrorKind::Fatal);
    let b = other.open("b").await;
    let at = slot("w/1");
    let token = world.acquire(a, &at, NONE).await;
    let mut watch = other.store.watch(&other.cluster).await.unwrap();
    let sent = Instant::now();
    assert_eq!(world.beat(a).await.unwrap().ttl, ttl);
    // Nobody asks: who watches ends it.
    loop {
        let hint = tokio::time::timeout(BOUND, watch.next()).await.unwrap().unwrap();
        if hint == WatchHint::Everyone && lease(&world, "rendez.test.node.a").is_none() {
            break;
        }
    }
    assert!(sent.elapsed() >= ttl, "it ended after {:?}", sent.elapsed());
    assert_eq!(kind(world.beat(a).await), ErrorKind::Lost);
    assert!(other.acquire(b, &at, token).await > token);
}

#[tokio::test]
async fn a_busy_watch_does_not_put_off_the_end_of_anybody() {
    let world = World::new().await;
    let (_, b) = (world.open_for("a", Duration::from_secs(1)).await, world.open("b").await);
    let started = Instant::now();
    // Heartbeats end nobody, and each is told to the watch.
    while lease(&world, "rendez.test.node.a").is_some() {
        world.beat(b).await.unwrap();
        assert!(started.elapsed() < BOUND, "the session of who is silent never ends");
    }
}

#[tokio::test]
async fn time_stamps_of_others_end_nothing_and_prolong_nothing() {
    let world = World::new().await;
    let other = another(&world).await;
    let (a, b) = (world.open_for("a", Duration::from_secs(8)).await, world.open_for("b", Duration::from_secs(2)).await);
    assert!(lives(&other, a).await && lives(&other, b).await);
    // A node whose clock is decades behind, and one whose clock is decades ahead.
    for (node, time) in [("a", "1990-01-01T00:00:00.000000Z"), ("b", "2090-01-01T00:00:00.000000Z")] {
        let mut lease = lease(&world, &format!("rendez.test.node.{node}")).unwrap();
        lease["spec"]["renewTime"] = time.into();
        lease["spec"]["acquireTime"] = time.into();
        world.server().replace(&lease).await.unwrap();
    }
    until("the end of the session that nobody extends", async || !lives(&other, b).await).await;
    assert!(lives(&other, a).await);
    world.beat(a).await.unwrap();
}

/// An observer that stood still for longer than a session lives has seen nothing change, for it has seen nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_observer_that_stood_still_ends_nobody() {
    let world = World::new().await;
    let ttl = Duration::from_secs(2);
    let a = world.open_for("a", ttl).await;
    let url = world.server().url();
    let observer = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let other = World::on(KubernetesStore::connect(&url, options()).await.unwrap());
            assert!(lives(&other, a).await);
            // The whole runtime stands, and with it the watch.
            std::thread::sleep(ttl * 2);
            assert!(lives(&other, a).await, "it was extended all the while");
        });
    });
    while !observer.is_finished() {
        world.beat(a).await.unwrap();
        tokio::time::sleep(ttl / 10).await;
    }
    observer.join().unwrap();
    world.beat(a).await.unwrap();
}

#[tokio::test]
async fn a_heartbeat_is_one_update_that_changes_something_and_a_dead_one_brings_nothing_back() {
    let world = World::new().await;
    let a = world.open("a").await;
    for unit in 0..5 {
        world.acquire(a, &slot(&format!("w/{unit}")), NONE).await;
    }
    world.beat(a).await.unwrap();
    let requests = || Verb::ALL.map(|verb| world.server().requests(verb));
    let (before, mut last) = (requests(), version(&lease(&world, "rendez.test.node.a").unwrap()));
    for _ in 0..3 {
        world.beat(a).await.unwrap();
        let now = version(&lease(&world, "rendez.test.node.a").unwrap());
        assert!(now > last, "an update that changes nothing is no sign of life");
        last = now;
    }
    let mut expected = before;
    expected[Verb::Update as usize] += 3;
    assert_eq!(requests(), expected, "get, list, watch, create, update, delete");
    world.server().delete("rendez.test.node.a").await.unwrap();
    assert_eq!(kind(world.beat(a).await), ErrorKind::Lost);
    assert_eq!(kind(world.changes(a, Vec::new()).await), ErrorKind::Lost);
    world.close(a).await;
    assert!(lease(&world, "rendez.test.node.a").is_none(), "the dead session was brought back");
    let again = world.open("a").await;
    assert_ne!(again, a);
    assert_eq!(kind(world.beat(a).await), ErrorKind::Lost);
    world.beat(again).await.unwrap();
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
    let stranger = World { cluster: "other".try_into().unwrap(), ..another(&world).await };
    stranger.open("b").await;
    assert_eq!(kind(stranger.beat(second).await), ErrorKind::Lost, "a session of another cluster");
    stranger.close(second).await;
    world.beat(second).await.unwrap();
}

#[tokio::test]
async fn leases_read_well() {
    let world = World::new().await;
    let (a, b) = (world.open("worker-a").await, world.open("Worker B").await);
    let at = slot("inbox/3");
    let token = world.acquire(a, &at, NONE).await;
    let spec = |name: &str| lease(&world, name).unwrap()["spec"].clone();
    let held = spec("rendez.test.slot.inbox.3");
    assert_eq!((&held["holderIdentity"], &held["leaseTransitions"]), (&"worker-a".into(), &1.into()));
    assert!(held["acquireTime"].is_string() && held["renewTime"].is_string());
    let node = spec("rendez.test.node.worker-a");
    assert_eq!((&node["holderIdentity"], &node["leaseDurationSeconds"]), (&"worker-a".into(), &30.into()));
    world.change(a, &at, token, release()).await;
    assert!(spec("rendez.test.slot.inbox.3")["holderIdentity"].is_null());
    world.acquire(b, &at, token).await;
    let held = spec("rendez.test.slot.inbox.3");
    assert_eq!((&held["holderIdentity"], &held["leaseTransitions"]), (&"Worker B".into(), &2.into()));
    for lease in world.server().leases() {
        assert_eq!(lease["metadata"]["labels"]["rendez.dev/cluster"], "test", "{lease}");
    }
    let kinds = |lease: Value| lease["metadata"]["labels"]["rendez.dev/kind"].as_str().map(str::to_owned);
    let kinds: BTreeSet<String> = world.server().leases().into_iter().filter_map(kinds).collect();
    assert_eq!(kinds.iter().map(String::as_str).collect::<Vec<_>>(), ["meta", "node", "settings", "slot"]);
}

#[tokio::test]
async fn a_watch_that_expires_in_its_stream_is_begun_anew_and_nothing_is_missed() {
    let world = World::new().await;
    let other = another(&world).await;
    let (a, b) = (world.open("a").await, other.open("b").await);
    let (stamp, _) = world.snapshot(None).await;
    let known = Known { generation: Some(stamp.generation), ..Known::default() };
    let world = World { known, ..world };
    let mut since = stamp.revision;
    let mut seen = BTreeSet::new();
    for unit in 0..6 {
        if unit % 2 == 1 {
            world.server().expire_watches();
        }
        let at = slot(&format!("w/{unit}"));
        other.acquire(b, &at, NONE).await;
        match world.beat_since(a, since, 512).await.sync {
            Sync::Changes { changes, up_to, .. } => {
                seen.extend(changes.into_iter().map(|change| format!("{change:?}")));
                since = up_to;
            }
            // Honest too: what happened is not known any more.
            Sync::Snapshot => since = world.snapshot(None).await.0.revision,
            Sync::NotAsked => panic!("changes were asked for"),
        }
        assert!(world.slots().await.contains_key(&at), "{at} was missed");
        assert!(lives(&world, b).await && lives(&other, a).await, "a session has ended with a watch");
    }
    assert!(!seen.is_empty());
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_is_ambiguous_and_its_retry_has_the_effect_of_one() {
    let world = World::new().await;
    let a = world.open("a").await;
    let at = slot("w/0");
    let take = acquire();
    world.server().lose_answers(1, Duration::ZERO);
    assert_eq!(kind(world.changes(a, vec![(at.clone(), NONE, take.clone())]).await), ErrorKind::Ambiguous);
    let record = done(world.change(a, &at, NONE, take).await);
    assert_eq!(lease(&world, "rendez.test.slot.w.0").unwrap()["spec"]["leaseTransitions"], 1);
    // A server whose storage stands still takes 34 s to say so: nobody waits for that.
    world.server().lose_answers(1, Duration::from_secs(34));
    let started = Instant::now();
    assert_eq!(kind(world.changes(a, vec![(at.clone(), record.token, release())]).await), ErrorKind::Ambiguous);
    assert!(started.elapsed() < Duration::from_secs(20));
    assert_eq!(done(world.change(a, &at, record.token, release()).await).holder, None);
    // Of a batch, one write is not answered: nobody may take the whole for undone.
    let batch: Vec<_> = (10..18).map(|unit| (slot(&format!("w/{unit}")), NONE, acquire())).collect();
    world.server().lose_answers(1, Duration::ZERO);
    assert_eq!(kind(world.changes(a, batch.clone()).await), ErrorKind::Ambiguous);
    let reply = world.changes(a, batch).await.unwrap();
    assert!(reply.outcomes.into_iter().all(|outcome| done(outcome).is_held_by(a)));
    for unit in 10..18 {
        let lease = lease(&world, &format!("rendez.test.slot.w.{unit}")).unwrap();
        assert_eq!(lease["spec"]["leaseTransitions"], 1, "{lease}");
    }
    assert_eq!(world.beat(a).await.unwrap().held.count, 8);
}

#[tokio::test]
async fn a_server_that_wants_to_be_left_alone_is() {
    let world = World::new().await;
    let a = world.open("a").await;
    world.server().throttle(1, 1);
    let error = world.beat(a).await.unwrap_err();
    assert_eq!((error.kind(), error.retry_after()), (ErrorKind::Throttled, Some(Duration::from_secs(1))));
    let asked = Instant::now();
    let before = world.server().requests(Verb::Update);
    let error = world.beat(a).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Throttled);
    assert!(error.retry_after().is_some_and(|after| after <= Duration::from_secs(1)), "{error:?}");
    assert_eq!(world.server().requests(Verb::Update), before, "it was asked before its time");
    until("the end of the wish", async || world.beat(a).await.is_ok()).await;
    assert!(asked.elapsed() >= millis(500));
}

#[tokio::test]
async fn each_right_of_the_manifest_is_needed_and_no_other() {
    let server = KubernetesServer::start().await.unwrap();
    let all = role::verbs().unwrap();
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    async fn everything(url: &str) -> Result<(), StoreError> {
        let world = World::on(KubernetesStore::connect(url, options()).await?);
        let (a, _) = opened(world.try_open(open_request("a")).await?);
        world.store.watch(&world.cluster).await?;
        let reply = world.changes(a, vec![(slot("w/0"), NONE, acquire())]).await?;
        let token = done(reply.outcomes[0].clone()).token;
        world.beat(a).await?;
        world.changes(a, vec![(slot("w/0"), token, release())]).await?;
        let request = SnapshotRequest { known: Known::default(), session: Some(a), cursor: None };
        world.store.snapshot(&world.cluster, &request).await?;
        let key = RecordKey::Workload("w".parse().unwrap());
        for record in [Some(Record::Workload(WorkloadRecord::new(1))), None] {
            let put = AdminRequest::Put { key: key.clone(), record, expect: None };
            world.store.administer(&world.cluster, &put).await?;
        }
        world.store.close(&world.cluster, &CloseRequest { known: Known::default(), session: a }).await
    }
    everything(&server.add_user("least", &all).unwrap()).await.unwrap();
    for missing in &all {
        let rest: Vec<Verb> = all.iter().copied().filter(|verb| verb != missing).collect();
        let url = server.add_user(&format!("without-{}", missing.as_str()), &rest).unwrap();
        let error = everything(&url).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Fatal, "without {missing:?}: {error}");
        assert!(error.message().contains("docs/stores/kubernetes.md"), "{error}");
        // What was left is removed by somebody who may.
        for lease in server.leases() {
            server.delete(lease["metadata"]["name"].as_str().unwrap()).await.unwrap();
        }
    }
}

#[tokio::test]
async fn what_somebody_deletes_by_hand_is_noticed_as_far_as_anybody_remembers() {
    let world = World::new().await;
    assert_eq!(world.store.capabilities().fencing, Fencing::BestEffort);
    let a = world.open("a").await;
    let at = slot("w/0");
    let token = world.acquire(a, &at, NONE).await;
    // A slot: its next token is above all that anybody has seen, and above the clock.
    world.server().delete("rendez.test.slot.w.0").await.unwrap();
    until("the slot to be gone", async || world.slots().await.is_empty()).await;
    assert_eq!(world.beat(a).await.unwrap().held.count, 0, "the node is told that it holds nothing");
    let next = world.acquire(a, &at, NONE).await;
    assert!(next > token);
    // What holds for the whole: who remembers sets off a quiet time.
    let stamp = world.beat(a).await.unwrap().stamp;
    let world = World { known: Known { generation: Some(stamp.generation), ..Known::default() }, ..world };
    world.server().delete("rendez.test.meta").await.unwrap();
    until("another generation", async || world.beat(a).await.unwrap().stamp.generation != stamp.generation).await;
    let after = world.beat(a).await.unwrap().stamp;
    assert!(!after.quiet.is_zero() && after.token.get() >= next.get() + TOKEN_FLOOR_STEP, "{after:?}");
    let outcome = world.change(a, &slot("w/1"), NONE, acquire()).await;
    assert_eq!(conflict(&outcome), Conflict::Quiet);
}

#[tokio::test]
async fn data_that_went_back_are_a_new_generation() {
    let world = World::new().await;
    let a = world.open("a").await;
    let token = world.acquire(a, &slot("w/0"), NONE).await;
    let stamp = world.beat(a).await.unwrap().stamp;
    let kept = world.server().leases();
    world.server().let_others_write(1000);
    for unit in 1..5 {
        world.acquire(a, &slot(&format!("w/{unit}")), NONE).await;
    }
    // What a restored backup looks like: the same Leases of some while ago, and a counter that is behind.
    world.server().restart_empty();
    for mut lease in kept {
        lease["metadata"]["uid"] = Value::Null;
        world.server().replace(&lease).await.unwrap();
    }
    let world = World { known: Known { generation: Some(stamp.generation), token, ..Known::default() }, ..world };
    let look = SnapshotRequest { known: world.known.clone(), session: None, cursor: None };
    until("another generation", async || match world.store.snapshot(&world.cluster, &look).await {
        Ok(page) => page.stamp.generation != stamp.generation && !page.stamp.quiet.is_zero(),
        // Its connections were cut.
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
            false
        }
    })
    .await;
}

/// A workload was deleted and its slot made anew by somebody whose picture was older: the answer, which would have been given with
/// a higher token, was lost. The retry must not be content with what stands there.
#[tokio::test]
async fn the_retry_of_a_grant_below_the_floor_gets_a_token_above_it() {
    let world = World::new().await;
    let a = world.open("a").await;
    let at = slot("w/0");
    let acquire = ChangeKind::Acquire { operation: operation() };
    let ChangeOutcome::Done(Some(record)) = world.change(a, &at, NONE, acquire.clone()).await else { panic!() };
    let floor = record.token.get() + 1_000_000_000;
    let mut meta = lease(&world, "rendez.test.meta").unwrap();
    let annotation = &mut meta["metadata"]["annotations"]["rendez.dev/record"];
    let mut content: Value = serde_json::from_str(annotation.as_str().unwrap()).unwrap();
    content["floor"] = floor.into();
    *annotation = content.to_string().into();
    world.server().replace(&meta).await.unwrap();
    let ChangeOutcome::Done(Some(again)) = world.change(a, &at, NONE, acquire).await else { panic!() };
    assert!(again.token.get() > floor, "{} is not above the floor {floor}", again.token);
    assert_eq!(world.slots().await[&at].token, again.token);
}

#[tokio::test]
async fn tokens_rise_across_the_deletion_of_a_large_workload() {
    let world = World::new().await;
    let other = another(&world).await;
    let (a, b) = (world.open("a").await, other.open("b").await);
    let key = RecordKey::Workload("w".parse().unwrap());
    world.put(key.clone(), Some(Record::Workload(WorkloadRecord::new(200))), None).await;
    let units: Vec<u32> = (0..200).collect();
    let mut tokens = vec![NONE; 200];
    for round in 0..2 {
        for part in units.chunks(world.store.capabilities().changes_max) {
            let batch = part.iter().map(|unit| (slot(&format!("w/{unit}")), NONE, acquire())).collect();
            for (unit, outcome) in part.iter().zip(other.changes(b, batch).await.unwrap().outcomes) {
                let token = done(outcome).token;
                assert!(token > tokens[*unit as usize], "round {round}, w/{unit}");
                tokens[*unit as usize] = token;
            }
        }
        for part in units.chunks(world.store.capabilities().changes_max) {
            let batch = part.iter().map(|unit| (slot(&format!("w/{unit}")), tokens[*unit as usize], release()));
            other.changes(b, batch.collect()).await.unwrap();
        }
        assert!(matches!(world.put(key.clone(), None, None).await, AdminOutcome::Done(_)));
        assert_eq!(world.slots().await.len(), 0);
        world.beat(a).await.unwrap();
    }
}

#[tokio::test]
async fn a_reported_token_is_never_granted_again() {
    let world = World::new().await;
    let a = world.open("a").await;
    let far = FencingToken::new(TOKEN_MAX - 100);
    let knowing = World { known: Known { token: far, ..Known::default() }, ..another(&world).await };
    knowing.beat(a).await.unwrap();
    let token = world.acquire(a, &slot("w/0"), NONE).await;
    assert!(token > far);
    let last =
        World { known: Known { token: FencingToken::new(TOKEN_MAX), ..Known::default() }, ..another(&world).await };
    last.beat(a).await.unwrap();
    assert_eq!(kind(world.changes(a, vec![(slot("w/1"), NONE, acquire())]).await), ErrorKind::Fatal);
}

#[tokio::test]
async fn a_checkpoint_goes_with_its_slot_and_to_nobody_else() {
    let world = World::new().await;
    let other = another(&world).await;
    let (a, b) = (world.open("a").await, other.open("b").await);
    let at = slot("w/0");
    let token = world.acquire(a, &at, NONE).await;
    let revision = world.slots().await[&at].revision;
    let checkpoint = bytes::Bytes::from(vec![7; CHECKPOINT_BYTES_MAX]);
    let saved = done(world.change(a, &at, token, ChangeKind::SaveCheckpoint { checkpoint: checkpoint.clone() }).await);
    assert_eq!((saved.checkpoint.as_ref(), saved.revision), (Some(&checkpoint), revision));
    let record = other.slots().await[&at].clone();
    assert_eq!((record.checkpoint, record.revision), (None, revision), "it concerns nobody else");
    world.change(a, &at, token, release()).await;
    let taken = done(other.change(b, &at, token, acquire()).await);
    assert_eq!(taken.checkpoint, Some(checkpoint));
}

#[tokio::test]
async fn what_others_wrote_is_named_and_other_clusters_go_on() {
    let world = World::new().await;
    let a = world.open("a").await;
    let foreign = serde_json::json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": { "name": "made-by-hand", "labels": { "rendez.dev/cluster": "test", "rendez.dev/kind": "slot" } },
        "spec": { "holderIdentity": "somebody" },
    });
    world.server().replace(&foreign).await.unwrap();
    until("it to be noticed", async || match world.beat(a).await {
        Ok(_) => false,
        Err(error) => error.kind() == ErrorKind::Fatal && error.message().contains("made-by-hand"),
    })
    .await;
    let elsewhere = World { cluster: "other".try_into().unwrap(), ..another(&world).await };
    elsewhere.open("a").await;
    world.server().delete("made-by-hand").await.unwrap();
    until("it to be well", async || world.beat(a).await.is_ok()).await;
    // One that stands where a Lease of ours is to be, and that our watch is not told of.
    let mut hidden = foreign;
    hidden["metadata"] = serde_json::json!({ "name": "rendez.test.node.b" });
    world.server().replace(&hidden).await.unwrap();
    let error = world.try_open(open_request("b")).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Fatal && error.message().contains("rendez.test.node.b"), "{error}");
    until("it to be well again", async || world.beat(a).await.is_ok()).await;
}

#[tokio::test]
async fn a_client_of_ones_own_can_be_used() {
    let server = KubernetesServer::start().await.unwrap();
    let mut config = kube::Config::new(server.http_url().parse().unwrap());
    config.auth_info =
        kube::config::AuthInfo { token: Some(server.admin_token().to_owned().into()), ..Default::default() };
    config.default_retry = false;
    let client = kube::Client::try_from(config).unwrap();
    let store = KubernetesStore::from_client(client.clone(), server.namespace(), options()).await.unwrap();
    let world = World::on(store);
    let a = world.open("a").await;
    world.beat(a).await.unwrap();
    let missing = KubernetesStore::from_client(client, "not-mine", options()).await;
    assert_eq!(kind(missing), ErrorKind::Fatal);
}

#[tokio::test]
async fn what_is_no_api_server_is_named_so() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").await;
            });
        }
    });
    let server = KubernetesServer::start().await.unwrap();
    let error = KubernetesStore::connect(&server.url_at(addr).unwrap(), options()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fatal, "{error}");
    assert!(error.message().contains("is it a Kubernetes API server?"), "{error}");
    serving.abort();
    let error = KubernetesStore::connect("kubernetes:a?kubeconfig=/no/such/file", options()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fatal, "{error}");
}

#[tokio::test]
async fn of_many_who_want_a_slot_one_gets_it() {
    let world = World::new().await;
    let at = slot("w/0");
    let mut acting = tokio::task::JoinSet::new();
    for number in 0..6 {
        let (other, at) = (another(&world).await, at.clone());
        acting.spawn(async move {
            let session = other.open(&format!("n{number}")).await;
            matches!(other.change(session, &at, NONE, acquire()).await, ChangeOutcome::Done(_))
        });
    }
    let winners = acting.join_all().await.into_iter().filter(|won| *won).count();
    assert_eq!(winners, 1);
    assert_eq!(lease(&world, "rendez.test.slot.w.0").unwrap()["spec"]["leaseTransitions"], 1);
}
