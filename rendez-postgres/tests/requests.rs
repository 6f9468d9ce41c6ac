//! What the random histories do not reach: bounds, names, hints, and requests that meet each other.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rendez_core::*;
use rendez_postgres::tokio_postgres::{self, Client, NoTls};
use rendez_postgres::{Fence, FenceError, PostgresStore};
use support::*;

const NONE: FencingToken = FencingToken::NONE;

const HOSTILE: [&str; 12] = [
    "'; DROP SCHEMA rendez CASCADE; --",
    "\"quoted\"",
    "$1",
    "{a,b}",
    "NULL",
    "\\x00",
    "a/b/0",
    " ",
    "%_",
    "näme 🦀",
    "*",
    "{\"a\":1}",
];

async fn client(world: &World) -> Client {
    let (client, connection) = tokio_postgres::connect(&world.server().url(), NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn acquire_all(world: &World, session: SessionId, workload: &str, units: u32) {
    let units: Vec<u32> = (0..units).collect();
    for part in units.chunks(1024) {
        let list = part.iter().map(|unit| (Slot::new(workload.try_into().unwrap(), *unit), NONE, acquire())).collect();
        let reply = world.changes(session, list).await.unwrap();
        assert!(reply.outcomes.iter().all(|outcome| matches!(outcome, ChangeOutcome::Done(Some(_)))));
    }
}

#[tokio::test]
async fn heartbeats_do_not_wait_for_the_cluster_and_changes_do_not_wait_for_ever() {
    let world = World::new().await;
    let session = world.open("a").await;
    let mut blocker = client(&world).await;
    let lock = blocker.transaction().await.unwrap();
    lock.batch_execute("SELECT FROM rendez.cluster FOR UPDATE").await.unwrap();
    world.beat(session).await.unwrap();
    let refused = world.changes(session, vec![(slot("w/0"), NONE, acquire())]).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Transient, "{refused}");
    world.beat(session).await.unwrap();
    lock.rollback().await.unwrap();
    assert!(world.slots().await.is_empty());
    world.acquire(session, &slot("w/0"), NONE).await;
}

#[tokio::test]
async fn a_heartbeat_writes_one_row_within_its_page_whatever_is_held() {
    let world = World::new().await;
    let session = world.open("a").await;
    acquire_all(&world, session, "w", 2000).await;
    for _ in 0..200 {
        assert_eq!(world.beat(session).await.unwrap().held.count, 2000);
    }
    // The server counts when a connection has been quiet for a moment.
    let look = "SELECT n_tup_upd >= 200 AND n_tup_hot_upd >= n_tup_upd - 2, n_tup_upd, n_tup_hot_upd \
                FROM pg_stat_user_tables WHERE relname = 'session'";
    rendez_testkit::servers::wait_until("hot updates only", Duration::from_secs(30), async || {
        let seen = world.sql(look).await;
        if seen.starts_with('t') { Ok(()) } else { Err(seen) }
    })
    .await
    .unwrap();
    let others = "SELECT sum(n_tup_upd) FROM pg_stat_user_tables WHERE relname IN ('slot', 'session_info', 'record')";
    assert_eq!(world.sql(others).await, "0");
}

/// What a node believes: the slots of its session, kept up by the changes that heartbeats bring.
#[derive(Default)]
struct View(BTreeMap<Slot, SlotRecord>);

impl View {
    fn take_in(&mut self, list: &[Change]) {
        for change in list {
            if let Change::Slot(slot, record) = change {
                match record {
                    Some(record) => self.0.insert(slot.clone(), record.clone()),
                    None => self.0.remove(slot),
                };
            }
        }
    }

    fn held(&self, session: SessionId) -> Held {
        let mut held = Held::default();
        for (slot, record) in self.0.iter().filter(|(_, record)| record.is_held_by(session)) {
            held.add(slot, record.token);
        }
        held
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_a_heartbeat_says_is_of_one_moment_while_everybody_changes_everything() {
    let mut world = World::new().await;
    let (a, b) = (world.open("a").await, world.open("b").await);
    world.known.generation = Some(world.beat(a).await.unwrap().stamp.generation);
    let world = Arc::new(world);
    let done = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    for (number, session) in [(0_u32, a), (1, a), (2, b), (3, b)] {
        let (world, done) = (Arc::clone(&world), Arc::clone(&done));
        tasks.push(tokio::spawn(async move {
            let mut round = 0_u32;
            while !done.load(Ordering::Relaxed) {
                round += 1;
                let list: Vec<_> =
                    (0..5).map(|at| Slot::new("w".try_into().unwrap(), (round + number + at) % 12)).collect();
                let records = world.slots().await;
                let wish = |slot: &Slot| match records.get(slot) {
                    Some(record) if record.is_held_by(session) && round.is_multiple_of(2) => (record.token, release()),
                    Some(record) => (record.token, acquire()),
                    None => (NONE, acquire()),
                };
                let list = list.iter().map(|slot| (slot.clone(), wish(slot).0, wish(slot).1)).collect();
                world.changes(session, list).await.unwrap();
                let first = slot("w/0");
                if let Some(record) = world.slots().await.get(&first) {
                    let request = AdminRequest::ForceRelease { slot: first, token: record.token, now: number == 3 };
                    world.store.administer(&world.cluster, &request).await.unwrap();
                }
            }
        }));
    }
    let (mut view, mut since, mut seen) = (View::default(), Revision(0), 0);
    while seen < 400 {
        let beat = world.beat_since(a, since, 512).await;
        let (list, up_to, more) = changes(&beat.sync);
        seen += list.len();
        view.take_in(list);
        since = up_to;
        if !more {
            assert_eq!(view.held(a), beat.held, "at {since}");
        }
    }
    done.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    // No revision became visible after a later one: what was followed is what is there.
    let beat = world.beat_since(a, since, 512).await;
    view.take_in(changes(&beat.sync).0);
    let there = world.slots().await;
    assert_eq!(view.0.len(), there.len());
    for (slot, record) in &there {
        assert_eq!((view.0[slot].revision, view.0[slot].token), (record.revision, record.token), "{slot}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_session_that_ends_is_extended_or_taken_over_and_never_both() {
    let world = Arc::new(World::new().await);
    let b = world.open("b").await;
    let (mut taken, mut kept) = (0, 0);
    for round in 0_u32..3000 {
        if round >= 100 && taken > 0 && kept > 0 {
            break;
        }
        let a = world.open_for("a", millis(20)).await;
        let at = Slot::new("w".try_into().unwrap(), round);
        let token = match world.changes(a, vec![(at.clone(), NONE, acquire())]).await {
            Ok(reply) => done(reply.outcomes[0].clone()).token,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Lost);
                continue;
            }
        };
        tokio::time::sleep(millis(13) + Duration::from_micros(u64::from(round % 150) * 70)).await;
        let (one, two) = (Arc::clone(&world), Arc::clone(&world));
        let beating = tokio::spawn(async move { one.beat(a).await });
        let taking = tokio::spawn(async move { two.change(b, &at, token, acquire()).await });
        let (beaten, outcome) = (beating.await.unwrap(), taking.await.unwrap());
        match (beaten, outcome) {
            (Ok(beat), ChangeOutcome::Done(_)) => {
                // Only if the session was extended first and then ended before the slot was taken, which takes its TTL.
                let record = world.slots().await.remove(&Slot::new("w".try_into().unwrap(), round)).unwrap();
                assert!(record.taken_at.since(beat.stamp.now) >= millis(20), "{beat:?} {record:?}");
                taken += 1;
            }
            (Err(error), ChangeOutcome::Done(_)) => {
                assert_eq!(error.kind(), ErrorKind::Lost);
                taken += 1;
            }
            (Ok(_), ChangeOutcome::Refused(conflict, _)) => {
                assert_eq!(conflict, Conflict::Held);
                kept += 1;
            }
            (Err(error), ChangeOutcome::Refused(conflict, _)) => {
                // Lost after the other had looked.
                assert_eq!((error.kind(), conflict), (ErrorKind::Lost, Conflict::Held));
            }
        }
        world.close(a).await;
    }
    assert!(taken > 0 && kept > 0, "{taken} {kept}");
}

#[tokio::test]
async fn a_thousand_changes_may_be_one_request_also_of_one_slot() {
    let world = World::new().await;
    let (a, b) = (world.open("a").await, world.open("b").await);
    acquire_all(&world, a, "many", 1024).await;
    assert_eq!(world.beat(a).await.unwrap().held.count, 1024);
    let too_many = (0..1025).map(|unit| (Slot::new("w".try_into().unwrap(), unit), NONE, acquire())).collect();
    assert_eq!(kind(world.changes(a, too_many).await), ErrorKind::Fatal);
    // Each stands or falls alone: every second names a token that is gone.
    let first = world.acquire(a, &slot("w/0"), NONE).await;
    let list = (0..400).map(|_| (slot("w/0"), first, acquire())).collect();
    let outcomes = world.changes(a, list).await.unwrap().outcomes;
    assert!(done(outcomes[0].clone()).token > first);
    assert!(outcomes[1..].iter().all(|outcome| conflict(outcome) == Conflict::Token));
    // Taken by the one, free slots and held ones in one request.
    let list = (1020..1030).map(|unit| (Slot::new("many".try_into().unwrap(), unit), NONE, acquire())).collect();
    let outcomes = world.changes(b, list).await.unwrap().outcomes;
    assert_eq!(outcomes.iter().filter(|outcome| matches!(outcome, ChangeOutcome::Done(_))).count(), 6);
    assert_eq!((world.beat(a).await.unwrap().held.count, world.beat(b).await.unwrap().held.count), (1025, 6));
}

#[tokio::test]
async fn a_snapshot_comes_in_pages_and_is_whole_with_the_changes_since() {
    let mut world = World::new().await;
    let a = world.open("a").await;
    world.put(RecordKey::Workload("w".try_into().unwrap()), Some(Record::Workload(WorkloadRecord::new(3))), None).await;
    acquire_all(&world, a, "w", 2500).await;
    world.known.generation = Some(world.beat(a).await.unwrap().stamp.generation);
    let mut request = SnapshotRequest { known: world.known.clone(), session: Some(a), cursor: None };
    let (mut view, mut first, mut pages, mut others) = (View::default(), None, 0, 0);
    loop {
        let page = world.store.snapshot(&world.cluster, &request).await.unwrap();
        assert!(page.items.len() <= 1024);
        others += page.items.iter().filter(|item| !matches!(item, Change::Slot(..))).count();
        view.take_in(&page.items);
        first.get_or_insert(page.stamp);
        // Between two pages: one slot before, one behind the place, and a new one.
        let at = Slot::new("w".try_into().unwrap(), pages * 800);
        if let Some(record) = world.slots().await.get(&at) {
            world.change(a, &at, record.token, release()).await;
        }
        world.acquire(a, &Slot::new("v".try_into().unwrap(), pages), NONE).await;
        pages += 1;
        request.cursor = page.next;
        if request.cursor.is_none() {
            break;
        }
    }
    assert_eq!((pages, others), (3, 3), "settings, workload, session");
    let beat = world.beat_since(a, first.unwrap().revision, 512).await;
    view.take_in(changes(&beat.sync).0);
    assert_eq!((view.0.len(), view.held(a)), (2503, beat.held));
    // A place of another generation is nowhere.
    request.cursor =
        world.store.snapshot(&world.cluster, &SnapshotRequest { cursor: None, ..request.clone() }).await.unwrap().next;
    world.sql("UPDATE rendez.cluster SET history = '0/00000000'").await;
    assert_eq!(kind(world.store.snapshot(&world.cluster, &request).await), ErrorKind::Conflict);
}

#[tokio::test]
async fn a_deleted_workload_of_any_size_goes_and_what_is_remembered_of_it_is_bounded() {
    let mut world = World::new().await;
    let (a, b) = (world.open("a").await, world.open("b").await);
    acquire_all(&world, a, "w", 9000).await;
    let kept = world.acquire(b, &slot("w/9000"), NONE).await;
    world.close(a).await;
    let before = world.beat(b).await.unwrap().stamp;
    world.known.generation = Some(before.generation);
    let key = RecordKey::Workload("w".try_into().unwrap());
    assert!(matches!(world.put(key.clone(), None, None).await, AdminOutcome::Done(_)));
    assert_eq!(world.slots().await.keys().cloned().collect::<Vec<_>>(), [slot("w/9000")]);
    assert_eq!(world.sql("SELECT count(*) FROM rendez.tombstone").await, "4096");
    assert_eq!(world.sql("SELECT tombstones FROM rendez.cluster").await, "4096");
    assert_eq!(world.beat_since(b, before.revision, 512).await.sync, Sync::Snapshot);
    // What is deleted and there again is told once, as it is.
    let now = world.beat(b).await.unwrap().stamp.revision;
    let list = (8000..8010).map(|unit| (Slot::new("w".try_into().unwrap(), unit), NONE, acquire())).collect();
    let reply = world.changes(b, list).await.unwrap();
    assert!(reply.outcomes.iter().all(|outcome| done(outcome.clone()).token > kept), "tokens rise across deletion");
    assert_eq!(world.sql("SELECT tombstones FROM rendez.cluster").await, "4086");
    let beat = world.beat_since(b, Revision(now.0 - 3000), 5000).await;
    let (list, _, more) = changes(&beat.sync);
    assert!(more && list.len() == 1024 && list.iter().all(|item| matches!(item, Change::Slot(_, None))));
    let beat = world.beat_since(b, now, 5000).await;
    assert_eq!(changes(&beat.sync).0.len(), 10);
}

#[tokio::test]
async fn refusals_are_bounded_and_the_first_to_end_gives_way() {
    let world = World::new().await;
    let owner = world.open("owner").await;
    let at = slot("w/0");
    let token = world.acquire(owner, &at, NONE).await;
    for number in 0..18_u64 {
        let other = world.open(&format!("n{number}")).await;
        let id = operation();
        world.change(owner, &at, token, offer(id, other, TTL, false)).await;
        let refuse_for = Duration::from_secs(100 + number * 7 % 18);
        done(world.change(other, &at, token, ChangeKind::Refuse { offer: id, refuse_for }).await);
    }
    let refused = world.slots().await.remove(&at).unwrap().refusals;
    let names: Vec<_> = refused.iter().map(|refused| refused.node.to_string()).collect();
    let mut expected = Vec::new();
    for number in 0..18 {
        expected.push(number);
        if expected.len() > 16 {
            let first = (0..expected.len()).min_by_key(|at| expected[*at] * 7 % 18).unwrap();
            expected.remove(first);
        }
    }
    assert_eq!(names, expected.iter().map(|number| format!("n{number}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn hostile_names_come_back_as_they_were_and_clusters_do_not_meet() {
    let world = World::new().await;
    for (number, name) in HOSTILE.iter().enumerate() {
        let cluster = ClusterName::new(name).unwrap();
        let world = World { cluster, ..World::on(world.store.clone()) };
        let mut info = NodeInfo::new(node(name), ClusterSettings::new(TTL_MAX));
        info.labels.insert((*name).to_owned(), "\u{0}\"\\".to_owned());
        info.workloads.insert((*name).try_into().unwrap(), Declared::new(3));
        let request = OpenRequest { info: Arc::new(info.clone()), ..open_request("x") };
        let session = opened(world.try_open(request).await.unwrap()).0;
        let at = Slot::new((*name).try_into().unwrap(), 7);
        let token = world.acquire(session, &at, NONE).await;
        let checkpoint = bytes::Bytes::from(name.as_bytes().to_vec());
        world.change(session, &at, token, ChangeKind::SaveCheckpoint { checkpoint: checkpoint.clone() }).await;
        let refuse_for = Some(TTL);
        let free = slot("free/1");
        let other = world.acquire(session, &free, NONE).await;
        world.change(session, &free, other, ChangeKind::Release { checkpoint: None, refuse_for }).await;
        let pin = RecordKey::Pin(at.clone());
        world.put(pin.clone(), Some(Record::Pin(node(name))), None).await;
        let (_, items) = world.snapshot(Some(session)).await;
        assert_eq!(items.len(), 5, "{name}");
        for item in items {
            match item {
                Change::Session(id, record) => assert_eq!((id, &*record.unwrap().info), (session, &info)),
                Change::Slot(found, record) if found == at => {
                    let record = record.unwrap();
                    assert_eq!(
                        (record.checkpoint, record.holder.unwrap().node),
                        (Some(checkpoint.clone()), node(name))
                    );
                }
                Change::Slot(_, record) => assert_eq!(record.unwrap().refusals[0].node, node(name)),
                Change::Record(RecordKey::Settings, _) => {}
                Change::Record(key, record) => {
                    assert_eq!((key, record.unwrap().record), (pin.clone(), Record::Pin(node(name))));
                }
            }
        }
        // Declared, so its slots stay.
        let key = RecordKey::Workload((*name).try_into().unwrap());
        world.put(key, None, None).await;
        assert_eq!(world.slots().await.len(), 2);
        assert_eq!(sessions(&world.store).await, number + 1);
    }
}

/// How many sessions there are in all of these clusters together.
async fn sessions(store: &PostgresStore) -> usize {
    let mut count = 0;
    for name in HOSTILE {
        let world = World { cluster: ClusterName::new(name).unwrap(), ..World::on(store.clone()) };
        let (_, items) = world.snapshot(None).await;
        count += items.iter().filter(|item| matches!(item, Change::Session(..))).count();
    }
    count
}

async fn hint(watch: &mut Box<dyn Watch>) -> Option<WatchHint> {
    tokio::time::timeout(Duration::from_secs(20), watch.next()).await.expect("a hint")
}

#[tokio::test]
async fn hints_are_sent_when_something_is_free_and_never_for_heartbeats() {
    let world = World::new().await;
    let mut watch = world.store.watch(&world.cluster).await.unwrap();
    let other = World { cluster: "other".parse().unwrap(), ..World::on(world.store.clone()) };
    let stranger = other.open("x").await;
    other.close(stranger).await;
    let (a, b) = (world.open("a").await, world.open("b").await);
    let at = slot("w/0");
    let token = world.acquire(a, &at, NONE).await;
    world.beat(a).await.unwrap();
    let id = operation();
    world.change(a, &at, token, offer(id, b, TTL, false)).await;
    assert_eq!(hint(&mut watch).await, Some(WatchHint::Session(b)), "openings, grants and others' ends are no hints");
    world.change(b, &at, token, ChangeKind::Accept { offer: id }).await;
    assert_eq!(hint(&mut watch).await, Some(WatchHint::Session(a)));
    world.change(a, &at, token, ChangeKind::Transfer { operation: operation(), offer: id, checkpoint: None }).await;
    assert_eq!(hint(&mut watch).await, Some(WatchHint::Session(b)));
    let token = world.slots().await[&at].token;
    world.change(b, &at, token, release()).await;
    assert_eq!(hint(&mut watch).await, Some(WatchHint::Everyone));
    world.put(RecordKey::Node(node("a")), Some(Record::Node(NodeWish::default())), None).await;
    assert_eq!(hint(&mut watch).await, Some(WatchHint::Everyone));
    world.close(a).await;
    assert_eq!(hint(&mut watch).await, Some(WatchHint::Everyone));
    // The watch ends with its connection.
    world.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'").await;
    assert_eq!(hint(&mut watch).await, None);
    let mut watch = world.store.watch(&world.cluster).await.unwrap();
    world.close(b).await;
    assert_eq!(hint(&mut watch).await, Some(WatchHint::Everyone));
}

#[tokio::test]
async fn a_users_transaction_fails_with_a_stale_token() {
    let world = World::new().await;
    let mut client = client(&world).await;
    client.batch_execute("CREATE TABLE sink (text text)").await.unwrap();
    let write = "INSERT INTO sink VALUES ('x')";
    for (token, accepted) in [(5, true), (7, true), (7, true), (5, false), (6, false), (8, true)] {
        let transaction = client.transaction().await.unwrap();
        transaction.batch_execute(write).await.unwrap();
        match Fence::new("w/0").check(&transaction, FencingToken::new(token)).await {
            Ok(()) => assert!(accepted, "{token}"),
            Err(FenceError::Stale(stale)) => assert!(!accepted && stale.seen > stale.token, "{token}: {stale}"),
            Err(other) => panic!("{token}: {other}"),
        }
        transaction.commit().await.ok();
    }
    assert_eq!(world.sql("SELECT count(*) FROM sink").await, "4");
    client.batch_execute("SELECT rendez.check_token('w/1', 1)").await.unwrap();
}
