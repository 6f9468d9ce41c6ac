//! The contract on one real server: every request, every conflict, and what happens when data is lost.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rendez_core::*;
use rendez_redis::{FENCED_WORDS_MAX, Fence, FenceError, RedisStore};
use rendez_testkit::servers::{RedisServer, Restart};
use support::*;

const NONE: FencingToken = FencingToken::NONE;

// Sessions.

#[tokio::test]
async fn an_opening_brings_settings_and_a_fresh_session() {
    let world = World::new().await;
    let mut request = open_request("a");
    let Opening::Opened { session, ttl, settings, stamp } = world.try_open(request.clone()).await.unwrap() else {
        panic!()
    };
    assert_eq!((ttl, settings), (TTL, ClusterSettings::new(TTL_MAX)));
    assert_eq!(stamp.quiet, Duration::ZERO);
    // The retry has the effect of one.
    let again = opened(world.try_open(request.clone()).await.unwrap());
    assert_eq!(again.0, session);
    assert_eq!(again.1.revision, stamp.revision);
    // Another request of the same process must name what it replaces.
    request.operation = operation();
    match world.try_open(request.clone()).await.unwrap() {
        Opening::InUse { session: other, incarnation, remaining, .. } => {
            assert_eq!((other, incarnation), (session, request.incarnation));
            assert!(remaining <= TTL && remaining > TTL - Duration::from_secs(5));
        }
        other => panic!("{other:?}"),
    }
    request.replaces = Some(session);
    let (replacement, _) = opened(world.try_open(request.clone()).await.unwrap());
    assert_ne!(replacement, session);
    assert_eq!(kind(world.beat(session).await), ErrorKind::Lost);
    world.beat(replacement).await.unwrap();
    // Another process cannot replace it, even if it knows its name.
    let other = OpenRequest { replaces: Some(replacement), ..open_request("a") };
    assert!(matches!(world.try_open(other).await.unwrap(), Opening::InUse { .. }));
    // The settings of the first are the cluster's.
    let mut info = NodeInfo::new(node("b"), ClusterSettings::new(Duration::from_secs(99)));
    info.weight = 3;
    let request = OpenRequest { info: Arc::new(info.clone()), ..open_request("b") };
    let Opening::Opened { settings, session, .. } = world.try_open(request.clone()).await.unwrap() else { panic!() };
    assert_eq!(settings, ClusterSettings::new(TTL_MAX));
    let (_, items) = world.snapshot(None).await;
    let found = items.iter().find_map(|item| match item {
        Change::Session(id, Some(record)) if *id == session => Some(record.clone()),
        _ => None,
    });
    let found = found.unwrap();
    assert_eq!((&*found.info, found.incarnation, found.ttl), (&info, request.incarnation, TTL));
}

#[tokio::test]
async fn ttl_protocol_and_token_are_checked_at_the_opening() {
    let world = World::new().await;
    for ttl in [millis(9), Duration::from_secs(24 * 3600 + 1), TTL_MAX + millis(1)] {
        let request = OpenRequest { ttl, ..open_request("a") };
        assert_eq!(kind(world.try_open(request).await), ErrorKind::Fatal, "{ttl:?}");
    }
    let mut info = NodeInfo::new(node("a"), ClusterSettings::new(TTL_MAX));
    info.protocol = 9;
    let request = OpenRequest { info: Arc::new(info), ..open_request("a") };
    assert_eq!(kind(world.try_open(request).await), ErrorKind::Fatal);
    let session = world.open("a").await;
    // The record counts, not what the second node brings.
    let mut request = open_request("b");
    request.info = Arc::new(NodeInfo::new(node("b"), ClusterSettings::new(Duration::from_secs(600))));
    request.ttl = Duration::from_secs(120);
    assert_eq!(kind(world.try_open(request).await), ErrorKind::Fatal);
    let mut beat = world.beat_request(session);
    beat.known.token = FencingToken::new(1 << 53);
    assert_eq!(kind(world.store.heartbeat(&world.cluster, &beat).await), ErrorKind::Fatal);
    beat.known.token = FencingToken::new((1 << 53) - 2);
    assert_eq!(world.store.heartbeat(&world.cluster, &beat).await.unwrap().stamp.token.get(), (1 << 53) - 2);
    // The last token that can be counted to, and no further; nothing of the request has happened.
    let last = world.acquire(session, &slot("w/0"), NONE).await;
    assert_eq!(last.get(), (1 << 53) - 1);
    let reply = world.changes(session, vec![(slot("w/1"), NONE, acquire())]).await;
    assert_eq!(kind(reply), ErrorKind::Fatal);
    assert_eq!(world.slots().await.len(), 1);
}

#[tokio::test]
async fn a_session_ends_unless_it_is_extended_and_its_end_is_final() {
    let world = World::new().await;
    let short = world.open_for("a", millis(400)).await;
    let long = world.open("b").await;
    let at = slot("w/0");
    let token = world.acquire(short, &at, NONE).await;
    for _ in 0..3 {
        tokio::time::sleep(millis(200)).await;
        world.beat(short).await.unwrap();
    }
    assert_eq!(conflict(&world.change(long, &at, token, acquire()).await), Conflict::Held);
    let since = world.beat(long).await.unwrap().stamp;
    tokio::time::sleep(millis(450)).await;
    assert_eq!(kind(world.beat(short).await), ErrorKind::Lost);
    assert_eq!(kind(world.changes(short, vec![(at.clone(), token, release())]).await), ErrorKind::Lost);
    world.close(short).await;
    // The slot is an orphan and keeps its token; its record names the dead session still.
    let record = world.slots().await.remove(&at).unwrap();
    assert_eq!((record.token, record.holder.unwrap().session), (token, short));
    let next = world.acquire(long, &at, token).await;
    assert!(next > token);
    let mut world = world;
    world.known.generation = Some(since.generation);
    let beat = world.beat_since(long, since.revision, 10).await;
    let (list, ..) = changes(&beat.sync);
    assert!(list.contains(&Change::Session(short, None)), "{list:?}");
    // Its node is free for another process, whose session has another name.
    assert_ne!(world.open("a").await, short);
}

#[tokio::test]
async fn the_dead_are_dead_before_they_are_reaped() {
    let world = World::new().await;
    let watcher = world.open("watcher").await;
    let mut sessions = Vec::new();
    for i in 0..250 {
        sessions.push(world.open_for(&format!("n{i}"), millis(3000)).await);
    }
    let victim = *sessions.last().unwrap();
    let at = slot("w/0");
    let token = world.acquire(victim, &at, NONE).await;
    tokio::time::sleep(millis(3100)).await;
    // One request reaps 100 at most, and this one is the last to be reaped.
    let taken = world.acquire(watcher, &at, token).await;
    assert!(taken > token);
    let alive = world.command(&["ZCARD", &world.key("expiry")]).await;
    assert!(alive.contains("152"), "{alive}");
    for _ in 0..3 {
        world.beat(watcher).await.unwrap();
    }
    assert!(world.command(&["ZCARD", &world.key("expiry")]).await.contains('2'));
    // Session, node and generation; nothing is left of the dead.
    assert!(world.command(&["HLEN", &world.key("sessions")]).await.contains('3'));
}

#[tokio::test]
async fn due_sessions_are_named_soonest_first_without_the_asking_one() {
    let world = World::new().await;
    let asking = world.open_for("a", Duration::from_secs(5)).await;
    let first = world.open_for("b", Duration::from_secs(7)).await;
    let second = world.open_for("c", Duration::from_secs(9)).await;
    let _later = world.open_for("d", Duration::from_secs(40)).await;
    let mut request = world.beat_request(asking);
    request.due_within = Duration::from_secs(10);
    let beat = world.store.heartbeat(&world.cluster, &request).await.unwrap();
    assert_eq!(beat.due.iter().map(|due| due.session).collect::<Vec<_>>(), [first, second]);
    assert!(beat.due[0].remaining > Duration::from_secs(5) && beat.due[0].remaining <= Duration::from_secs(7));
    for i in 0..70 {
        world.open_for(&format!("n{i}"), Duration::from_secs(8)).await;
    }
    let beat = world.store.heartbeat(&world.cluster, &request).await.unwrap();
    assert_eq!(beat.due.len(), 64);
    assert_eq!(beat.due[0].session, first);
}

#[tokio::test]
async fn a_node_tells_something_new_with_its_heartbeat() {
    let mut world = World::new().await;
    let session = world.open("a").await;
    let stamp = world.beat(session).await.unwrap().stamp;
    world.known.generation = Some(stamp.generation);
    let mut watch = world.store.watch(&world.cluster).await.unwrap();
    let mut info = NodeInfo::new(node("a"), ClusterSettings::new(TTL_MAX));
    info.stance = Stance::Draining;
    info.labels.insert("stance".into(), "\"stance\":\"active\"\t}".into());
    let mut request = world.beat_request(session);
    request.info = Some(Arc::new(info.clone()));
    request.since = Some(stamp.revision);
    let beat = world.store.heartbeat(&world.cluster, &request).await.unwrap();
    let (list, up_to, more) = changes(&beat.sync);
    assert_eq!((up_to, more), (Revision(stamp.revision.0 + 1), false));
    match list {
        [Change::Session(id, Some(record))] => {
            assert_eq!((*id, &*record.info, record.revision), (session, &info, up_to))
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(hint(&mut watch).await, Some(WatchHint::Everyone));
    // Told again, it is nothing new.
    let again = world.store.heartbeat(&world.cluster, &request).await.unwrap();
    assert_eq!(again.stamp.revision, up_to);
}

// Slots.

#[tokio::test]
async fn acquiring_and_its_conflicts() {
    let world = World::new().await;
    let (a, b) = (world.open("a").await, world.open("b").await);
    let at = slot("w/0");
    let request = acquire();
    let first = done(world.change(a, &at, NONE, request.clone()).await);
    assert_eq!(first.holder, Some(Holder { session: a, node: node("a") }));
    assert!(first.token.get() >= first.taken_at.as_micros());
    // A retry answers the same, whatever token it names.
    assert_eq!(done(world.change(a, &at, NONE, request.clone()).await), first);
    assert_eq!(done(world.change(a, &at, first.token, request.clone()).await), first);
    assert_eq!(conflict(&world.change(b, &at, NONE, acquire()).await), Conflict::Token);
    assert_eq!(conflict(&world.change(b, &at, first.token, acquire()).await), Conflict::Held);
    // The retry of somebody else's request is no retry.
    assert_eq!(conflict(&world.change(b, &at, first.token, request).await), Conflict::Held);
    // Its own slot again: the token rises, and what it holds is counted once.
    let second = world.acquire(a, &at, first.token).await;
    assert!(second > first.token);
    let mut held = Held::default();
    held.add(&at, second);
    assert_eq!(world.beat(a).await.unwrap().held, held);
    // No two grants share a token, in one request or in many.
    let many = (0..100).map(|unit| (Slot::new("x".try_into().unwrap(), unit), NONE, acquire())).collect();
    let reply = world.changes(b, many).await.unwrap();
    let mut tokens: Vec<_> = reply.outcomes.into_iter().map(|outcome| done(outcome).token).collect();
    assert!(tokens.is_sorted() && tokens[0] > second);
    assert_eq!(reply.stamp.token, tokens[99]);
    tokens.dedup();
    assert_eq!(tokens.len(), 100);
}

#[tokio::test]
async fn tokens_rise_above_what_nodes_report() {
    let mut world = World::new().await;
    let a = world.open("a").await;
    let reported = FencingToken::new(4_000_000_000_000_000);
    world.known.token = reported;
    assert_eq!(world.beat(a).await.unwrap().stamp.token, reported);
    world.known.token = NONE;
    let token = world.acquire(a, &slot("w/0"), NONE).await;
    assert_eq!(token.get(), reported.get() + 1);
}

#[tokio::test]
async fn releasing_and_its_conflicts() {
    let world = World::new().await;
    let (a, b) = (world.open("a").await, world.open("b").await);
    let at = slot("w/0");
    assert_eq!(world.change(a, &at, NONE, release()).await, ChangeOutcome::Done(None));
    let token = world.acquire(a, &at, NONE).await;
    assert_eq!(conflict(&world.change(a, &at, NONE, release()).await), Conflict::Token);
    assert_eq!(conflict(&world.change(b, &at, token, release()).await), Conflict::NotHolder);
    let checkpoint = Bytes::from_static(b"\x00\xff\tbin\nary");
    let kind = ChangeKind::Release { checkpoint: Some(checkpoint.clone()), refuse_for: Some(TTL) };
    let record = done(world.change(a, &at, token, kind.clone()).await);
    assert_eq!((record.holder.clone(), record.token), (None, token));
    assert!(record.freed_at.is_some());
    assert_eq!(record.refusals.len(), 1);
    assert_eq!(record.refusals[0].node, node("a"));
    assert_eq!(record.checkpoint, None);
    assert_eq!(world.beat(a).await.unwrap().held, Held::default());
    // A retry changes nothing.
    assert_eq!(done(world.change(a, &at, token, kind).await), record);
    // The next one gets what was left, and only the holder does.
    let next = done(world.change(b, &at, token, acquire()).await);
    assert_eq!(next.checkpoint, Some(checkpoint.clone()));
    assert_eq!((next.freed_at, next.refusals.len()), (None, 1));
    let of = |items: Vec<Change>| {
        items.into_iter().find_map(|item| match item {
            Change::Slot(_, Some(record)) => Some(record.checkpoint),
            _ => None,
        })
    };
    assert_eq!(of(world.snapshot(Some(b)).await.1), Some(Some(checkpoint)));
    assert_eq!(of(world.snapshot(Some(a)).await.1), Some(None));
    assert_eq!(of(world.snapshot(None).await.1), Some(None));
}

#[tokio::test]
async fn a_checkpoint_is_saved_by_the_holder_and_changes_no_revision() {
    let world = World::new().await;
    let (a, b) = (world.open("a").await, world.open("b").await);
    let at = slot("w/0");
    let save = |text: &'static [u8]| ChangeKind::SaveCheckpoint { checkpoint: Bytes::from_static(text) };
    assert_eq!(conflict(&world.change(a, &at, NONE, save(b"1")).await), Conflict::NotHolder);
    let token = world.acquire(a, &at, NONE).await;
    let before = world.beat(a).await.unwrap().stamp.revision;
    assert_eq!(done(world.change(a, &at, token, save(b"2")).await).checkpoint, Some(Bytes::from_static(b"2")));
    assert_eq!(conflict(&world.change(b, &at, token, save(b"3")).await), Conflict::NotHolder);
    assert_eq!(conflict(&world.change(a, &at, NONE, save(b"4")).await), Conflict::Token);
    assert_eq!(world.beat(a).await.unwrap().stamp.revision, before);
    // What was saved before stays if a release brings nothing.
    world.change(a, &at, token, release()).await;
    let record = done(world.change(b, &at, token, acquire()).await);
    assert_eq!(record.checkpoint, Some(Bytes::from_static(b"2")));
    let large = ChangeKind::SaveCheckpoint { checkpoint: vec![0; CHECKPOINT_BYTES_MAX + 1].into() };
    assert_eq!(kind(world.changes(b, vec![(at, record.token, large)]).await), ErrorKind::Fatal);
}

#[tokio::test]
async fn a_handoff_from_offer_to_transfer() {
    let mut world = World::new().await;
    let (a, b) = (world.open("a").await, world.open("b").await);
    let at = slot("w/0");
    let token = world.acquire(a, &at, NONE).await;
    let stamp = world.beat(b).await.unwrap().stamp;
    world.known.generation = Some(stamp.generation);
    let mut watch = world.store.watch(&world.cluster).await.unwrap();
    let id = operation();
    let record = done(world.change(a, &at, token, offer(id, b, TTL, false)).await);
    let made = record.offer.unwrap();
    assert_eq!((made.id, made.to, made.giver_total, made.giver_of_workload), (id, b, 7, 3));
    assert_eq!((made.forced, made.ready), (false, false));
    assert_eq!(hint(&mut watch).await, Some(WatchHint::Session(b)));
    let accepted = done(world.change(b, &at, token, ChangeKind::Accept { offer: id }).await);
    assert!(accepted.offer.unwrap().ready);
    assert_eq!(hint(&mut watch).await, Some(WatchHint::Session(a)));
    // Retries: the offer stays ready.
    assert!(done(world.change(a, &at, token, offer(id, b, TTL, false)).await).offer.unwrap().ready);
    done(world.change(b, &at, token, ChangeKind::Accept { offer: id }).await);
    let checkpoint = Some(Bytes::from_static(b"left"));
    let transfer = ChangeKind::Transfer { operation: operation(), offer: id, checkpoint };
    let moved = done(world.change(a, &at, token, transfer.clone()).await);
    assert_eq!(moved.holder, Some(Holder { session: b, node: node("b") }));
    assert!(moved.token > token && moved.offer.is_none() && moved.moved_at.is_some());
    assert_eq!(moved.checkpoint, None);
    assert_eq!(hint(&mut watch).await, Some(WatchHint::Session(b)));
    assert_eq!(done(world.change(a, &at, token, transfer).await), moved);
    // Both ends count it right, and the receiver is given the checkpoint with its next sync.
    assert_eq!(world.beat(a).await.unwrap().held, Held::default());
    let beat = world.beat_since(b, stamp.revision, 10).await;
    let mut held = Held::default();
    held.add(&at, moved.token);
    assert_eq!(beat.held, held);
    match changes(&beat.sync).0 {
        [Change::Slot(_, Some(record))] => assert_eq!(record.checkpoint, Some(Bytes::from_static(b"left"))),
        other => panic!("{other:?}"),
    }
    // The former holder is out.
    assert_eq!(conflict(&world.change(a, &at, moved.token, release()).await), Conflict::NotHolder);
    assert_eq!(conflict(&world.change(a, &at, token, release()).await), Conflict::Token);
}

#[tokio::test]
async fn a_forced_handoff_starts_no_cooldown() {
    let world = World::new().await;
    let (a, b) = (world.open("a").await, world.open("b").await);
    let at = slot("w/0");
    let token = world.acquire(a, &at, NONE).await;
    let id = operation();
    world.change(a, &at, token, offer(id, b, TTL, true)).await;
    world.change(b, &at, token, ChangeKind::Accept { offer: id }).await;
    let transfer = ChangeKind::Transfer { operation: operation(), offer: id, checkpoint: None };
    assert_eq!(done(world.change(a, &at, token, transfer).await).moved_at, None);
}

#[tokio::test]
async fn every_conflict_of_a_handoff() {
    let world = World::new().await;
    let (a, b, c) = (world.open("a").await, world.open("b").await, world.open("c").await);
    let dead = world.open("dead").await;
    world.close(dead).await;
    let at = slot("w/0");
    let token = world.acquire(a, &at, NONE).await;
    let id = operation();
    let accept = ChangeKind::Accept { offer: id };
    let transfer = || ChangeKind::Transfer { operation: operation(), offer: id, checkpoint: None };
    let refuse = ChangeKind::Refuse { offer: id, refuse_for: TTL };
    assert_eq!(conflict(&world.change(a, &at, NONE, offer(id, b, TTL, false)).await), Conflict::Token);
    assert_eq!(conflict(&world.change(b, &at, token, offer(id, c, TTL, false)).await), Conflict::NotHolder);
    assert_eq!(conflict(&world.change(a, &at, token, offer(id, dead, TTL, false)).await), Conflict::ReceiverGone);
    assert_eq!(conflict(&world.change(a, &at, token, transfer()).await), Conflict::Offer);
    assert_eq!(conflict(&world.change(b, &at, token, accept.clone()).await), Conflict::Offer);
    done(world.change(a, &at, token, offer(id, b, TTL, false)).await);
    assert_eq!(conflict(&world.change(c, &at, token, accept.clone()).await), Conflict::Offer);
    assert_eq!(conflict(&world.change(b, &at, NONE, accept.clone()).await), Conflict::Token);
    assert_eq!(conflict(&world.change(a, &at, token, transfer()).await), Conflict::Offer);
    assert_eq!(conflict(&world.change(c, &at, token, transfer()).await), Conflict::NotHolder);
    assert_eq!(conflict(&world.change(a, &at, NONE, transfer()).await), Conflict::Token);
    // Another offer takes its place.
    let other = operation();
    done(world.change(a, &at, token, offer(other, c, TTL, false)).await);
    assert_eq!(conflict(&world.change(b, &at, token, accept.clone()).await), Conflict::Offer);
    // Taken back; done also if it stands no more.
    let withdraw = ChangeKind::Withdraw { offer: other };
    assert_eq!(conflict(&world.change(b, &at, token, withdraw.clone()).await), Conflict::NotHolder);
    assert_eq!(done(world.change(a, &at, token, withdraw.clone()).await).offer, None);
    assert_eq!(done(world.change(a, &at, token, withdraw).await).offer, None);
    // Refused: it ends, and the node is passed over for a while.
    done(world.change(a, &at, token, offer(id, b, TTL, false)).await);
    assert_eq!(conflict(&world.change(c, &at, token, refuse.clone()).await), Conflict::Offer);
    let refused = done(world.change(b, &at, token, refuse.clone()).await);
    assert_eq!((refused.offer, refused.refusals[0].node.clone()), (None, node("b")));
    assert_eq!(conflict(&world.change(b, &at, token, refuse).await), Conflict::Offer);
    // The receiver's end and the offer's own.
    done(world.change(a, &at, token, offer(id, c, TTL, false)).await);
    done(world.change(c, &at, token, accept.clone()).await);
    world.close(c).await;
    assert_eq!(conflict(&world.change(a, &at, token, transfer()).await), Conflict::ReceiverGone);
    let brief = operation();
    done(world.change(a, &at, token, offer(brief, b, millis(100), false)).await);
    done(world.change(b, &at, token, ChangeKind::Accept { offer: brief }).await);
    tokio::time::sleep(millis(120)).await;
    let late = ChangeKind::Transfer { operation: operation(), offer: brief, checkpoint: None };
    assert_eq!(conflict(&world.change(a, &at, token, late).await), Conflict::Offer);
    assert_eq!(conflict(&world.change(b, &at, token, ChangeKind::Accept { offer: brief }).await), Conflict::Offer);
}

#[tokio::test]
async fn refusals_are_bounded_and_end() {
    let world = World::new().await;
    let a = world.open("a").await;
    let at = slot("w/0");
    let token = world.acquire(a, &at, NONE).await;
    for i in 0..20 {
        let other = world.open(&format!("node number {i}, of \u{1f980}")).await;
        let id = operation();
        done(world.change(a, &at, token, offer(id, other, TTL, false)).await);
        let refuse_for = if i == 0 { millis(1) } else { Duration::from_secs(100 + i) };
        done(world.change(other, &at, token, ChangeKind::Refuse { offer: id, refuse_for }).await);
    }
    let record = world.slots().await.remove(&at).unwrap();
    assert_eq!(record.refusals.len(), REFUSALS_MAX);
    // Those that end first gave way.
    assert!(record.refusals.iter().all(|refusal| refusal.node.as_str() != "node number 3, of \u{1f980}"));
    assert!(record.refusals.iter().any(|refusal| refusal.node.as_str() == "node number 19, of \u{1f980}"));
}

#[tokio::test]
async fn one_batch_may_change_a_slot_more_than_once() {
    let world = World::new().await;
    let (a, b) = (world.open("a").await, world.open("b").await);
    let at = slot("w/0");
    let reply = world
        .changes(a, vec![(at.clone(), NONE, acquire()), (at.clone(), NONE, acquire()), (slot("w/1"), NONE, acquire())])
        .await
        .unwrap();
    let first = done(reply.outcomes[0].clone());
    assert_eq!(conflict(&reply.outcomes[1]), Conflict::Token);
    let second = done(reply.outcomes[2].clone());
    let mut held = Held::default();
    held.add(&at, first.token);
    held.add(&slot("w/1"), second.token);
    assert_eq!(world.beat(a).await.unwrap().held, held);
    let reply =
        world.changes(a, vec![(at.clone(), first.token, release()), (at.clone(), first.token, acquire())]).await;
    let again = done(reply.unwrap().outcomes[1].clone());
    assert_eq!(again.freed_at, None);
    assert_eq!(conflict(&world.change(b, &at, again.token, acquire()).await), Conflict::Held);
    let too_many = (0..513).map(|unit| (Slot::new("x".try_into().unwrap(), unit), NONE, acquire())).collect();
    assert_eq!(kind(world.changes(a, too_many).await), ErrorKind::Fatal);
}

// Operators.

#[tokio::test]
async fn records_are_compared_and_set() {
    let world = World::new().await;
    let a = world.open("a").await;
    let key = RecordKey::Workload("jobs".try_into().unwrap());
    let record = |units| Some(Record::Workload(WorkloadRecord::new(units)));
    let zero = Some(Revision(0));
    let AdminOutcome::Done(stamp) = world.put(key.clone(), record(3), zero).await else { panic!() };
    assert!(matches!(world.put(key.clone(), record(4), zero).await, AdminOutcome::Refused(_)));
    let AdminOutcome::Done(next) = world.put(key.clone(), record(5), Some(stamp.revision)).await else { panic!() };
    assert!(matches!(world.put(key.clone(), record(6), Some(stamp.revision)).await, AdminOutcome::Refused(_)));
    assert!(matches!(world.put(key.clone(), None, Some(stamp.revision)).await, AdminOutcome::Refused(_)));
    let of = |items: &[Change]| {
        items.iter().find_map(|item| match item {
            Change::Record(found, versioned) if *found == key => Some(versioned.clone()),
            _ => None,
        })
    };
    let expected = Versioned { record: record(5).unwrap(), revision: next.revision };
    assert_eq!(of(&world.snapshot(None).await.1), Some(Some(expected)));
    let mut watch = world.store.watch(&world.cluster).await.unwrap();
    assert!(matches!(world.put(key.clone(), None, Some(next.revision)).await, AdminOutcome::Done(_)));
    assert_eq!(hint(&mut watch).await, Some(WatchHint::Everyone));
    assert!(matches!(world.put(key.clone(), None, None).await, AdminOutcome::Done(_)));
    let mut request = world.beat_request(a);
    request.known.generation = Some(stamp.generation);
    request.since = Some(next.revision);
    let beat = world.store.heartbeat(&world.cluster, &request).await.unwrap();
    assert_eq!(changes(&beat.sync).0, [Change::Record(key.clone(), None)]);
    let unfit = AdminRequest::Put { key, record: Some(Record::Pin(node("a"))), expect: None };
    assert_eq!(kind(world.store.administer(&world.cluster, &unfit).await), ErrorKind::Fatal);
}

#[tokio::test]
async fn a_deleted_workload_takes_its_slots_along_but_none_that_is_held() {
    let world = World::new().await;
    let a = world.open("a").await;
    let key = RecordKey::Workload("[j]*obs".try_into().unwrap());
    world.put(key.clone(), Some(Record::Workload(WorkloadRecord::new(2000))), None).await;
    let workload = WorkloadName::new("[j]*obs").unwrap();
    let mut tokens = Vec::new();
    for batch in 0..4 {
        let wanted = (0..500).map(|i| (Slot::new(workload.clone(), batch * 500 + i), NONE, acquire())).collect();
        tokens.extend(world.changes(a, wanted).await.unwrap().outcomes.into_iter().map(|outcome| done(outcome).token));
    }
    world.acquire(a, &slot("jobs/0"), NONE).await;
    let releases = |range: std::ops::Range<u32>| {
        range.map(|unit| (Slot::new(workload.clone(), unit), tokens[unit as usize], release())).collect::<Vec<_>>()
    };
    for from in (1..1999).step_by(500) {
        world.changes(a, releases(from..(from + 500).min(1999))).await.unwrap();
    }
    world.put(key, None, None).await;
    let left = world.slots().await;
    let names: Vec<_> = left.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["[j]*obs/0", "[j]*obs/1999", "jobs/0"]);
    // Taken anew, a deleted slot's token still rises.
    assert!(world.acquire(a, &Slot::new(workload, 1), NONE).await > tokens[1999]);
}

#[tokio::test]
async fn an_operator_forces_a_release() {
    let world = World::new().await;
    let (a, b) = (world.open("a").await, world.open("b").await);
    let at = slot("w/0");
    let token = world.acquire(a, &at, NONE).await;
    let force = async |token, now| {
        let request = AdminRequest::ForceRelease { slot: at.clone(), token, now };
        world.store.administer(&world.cluster, &request).await.unwrap()
    };
    assert!(matches!(force(NONE, false).await, AdminOutcome::Refused(_)));
    let mut watch = world.store.watch(&world.cluster).await.unwrap();
    assert!(matches!(force(token, false).await, AdminOutcome::Done(_)));
    assert_eq!(hint(&mut watch).await, Some(WatchHint::Everyone));
    let record = world.slots().await.remove(&at).unwrap();
    assert!(record.is_held_by(a) && record.force == Some(token));
    assert!(matches!(force(token, true).await, AdminOutcome::Done(_)));
    let record = world.slots().await.remove(&at).unwrap();
    assert_eq!((record.holder, record.force, record.token), (None, Some(token), token));
    assert_eq!(world.beat(a).await.unwrap().held, Held::default());
    let next = world.acquire(b, &at, token).await;
    assert!(matches!(force(token, true).await, AdminOutcome::Refused(_)));
    assert_eq!(world.slots().await.remove(&at).unwrap().token, next);
}

// Sync and snapshots.

#[tokio::test]
async fn changes_come_in_pages_each_record_once() {
    let mut world = World::new().await;
    let a = world.open("a").await;
    let stamp = world.beat(a).await.unwrap().stamp;
    assert!(matches!(world.beat(a).await.unwrap().sync, Sync::NotAsked));
    // Without the generation that it belongs to, a revision says nothing.
    let mut request = world.beat_request(a);
    request.since = Some(stamp.revision);
    let beat = world.store.heartbeat(&world.cluster, &request).await.unwrap();
    assert!(matches!(beat.sync, Sync::Snapshot));
    world.known.generation = Some(stamp.generation);
    let beat = world.beat_since(a, stamp.revision, 10).await;
    assert_eq!(changes(&beat.sync), (&[][..], stamp.revision, false));
    for round in 0..2 {
        for unit in 0..25 {
            let at = Slot::new("w".try_into().unwrap(), unit);
            let token = world.slots().await.get(&at).map_or(NONE, |record| record.token);
            let _ = round;
            world.acquire(a, &at, token).await;
        }
    }
    let mut since = stamp.revision;
    let mut seen = Vec::new();
    let mut sizes = Vec::new();
    loop {
        let beat = world.beat_since(a, since, 10).await;
        let (list, up_to, more) = changes(&beat.sync);
        sizes.push(list.len());
        for change in list {
            let Change::Slot(slot, Some(record)) = change else { panic!("{change:?}") };
            assert!(record.revision > since && record.revision <= up_to);
            seen.push(slot.unit);
        }
        since = up_to;
        if !more {
            assert_eq!(up_to, beat.stamp.revision);
            break;
        }
    }
    assert_eq!(sizes, [10, 10, 5]);
    assert_eq!(seen, (0..25).collect::<Vec<_>>());
    // A revision that the store has not reached.
    let beat = world.beat_since(a, Revision(since.0 + 1), 10).await;
    assert!(matches!(beat.sync, Sync::Snapshot));
}

#[tokio::test]
async fn the_log_is_bounded_and_says_so_when_it_is_too_late() {
    let mut world = World::new().await;
    let a = world.open("a").await;
    let stamp = world.beat(a).await.unwrap().stamp;
    world.known.generation = Some(stamp.generation);
    for i in 0..600 {
        let session = world.open(&format!("n{}", i % 7)).await;
        world.close(session).await;
    }
    assert!(matches!(world.beat_since(a, stamp.revision, 4096).await.sync, Sync::Changes { .. }));
    let late = world.beat(a).await.unwrap().stamp;
    for i in 0..600 {
        let session = world.open(&format!("n{}", i % 7)).await;
        world.close(session).await;
    }
    assert!(matches!(world.beat_since(a, stamp.revision, 4096).await.sync, Sync::Snapshot));
    let beat = world.beat_since(a, late.revision, 4096).await;
    let (list, up_to, more) = changes(&beat.sync);
    assert_eq!((list.len(), more), (512, true));
    let beat = world.beat_since(a, up_to, 4096).await;
    let (list, _, more) = changes(&beat.sync);
    assert_eq!((list.len(), more), (88, false));
    let size = world.command(&["ZCARD", &world.key("log")]).await;
    assert!(size.contains("100"), "about a thousand: {size}");
}

#[tokio::test]
async fn a_snapshot_taken_while_things_change_is_whole_with_the_changes_since() {
    let world = World::new().await;
    let a = world.open("a").await;
    let generation = world.beat(a).await.unwrap().stamp.generation;
    let mut tokens = std::collections::BTreeMap::new();
    for batch in 0..6 {
        let wanted: Vec<_> = (0..500).map(|i| Slot::new("w".try_into().unwrap(), batch * 500 + i)).collect();
        let reply = world.changes(a, wanted.iter().map(|at| (at.clone(), NONE, acquire())).collect()).await.unwrap();
        tokens.extend(wanted.into_iter().zip(reply.outcomes.into_iter().map(|outcome| done(outcome).token)));
    }
    let (mut cursor, mut first, mut seen, mut pages) = (None, None, std::collections::BTreeMap::new(), 0);
    loop {
        let request = SnapshotRequest { known: Known::default(), session: None, cursor };
        let page = world.store.snapshot(&world.cluster, &request).await.unwrap();
        first.get_or_insert(page.stamp.revision);
        assert!(page.items.len() <= 1500, "{}", page.items.len());
        for item in page.items {
            if let Change::Slot(at, Some(record)) = item {
                seen.insert(at, record.token);
            }
        }
        pages += 1;
        // Change something, and add something, between the pages.
        let at = Slot::new("w".try_into().unwrap(), pages * 7);
        tokens.insert(at.clone(), world.acquire(a, &at, tokens[&at]).await);
        let at = Slot::new("w".try_into().unwrap(), 100_000 + pages);
        tokens.insert(at.clone(), world.acquire(a, &at, NONE).await);
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert!(pages >= 4, "{pages}");
    let mut request = world.beat_request(a);
    request.known.generation = Some(generation);
    request.since = first;
    let beat = world.store.heartbeat(&world.cluster, &request).await.unwrap();
    for change in changes(&beat.sync).0 {
        if let Change::Slot(at, Some(record)) = change {
            seen.insert(at.clone(), record.token);
        }
    }
    assert_eq!(seen, tokens);
    let bad = SnapshotRequest { known: Known::default(), session: None, cursor: Some(Cursor("nonsense".into())) };
    assert_eq!(kind(world.store.snapshot(&world.cluster, &bad).await), ErrorKind::Conflict);
    let cursor = Cursor(format!("{}/2/0", Generation::from_bits(5)));
    let bad = SnapshotRequest { known: Known::default(), session: None, cursor: Some(cursor) };
    assert_eq!(kind(world.store.snapshot(&world.cluster, &bad).await), ErrorKind::Conflict);
}

#[tokio::test]
async fn hostile_names_come_back_as_they_were_and_clusters_do_not_meet() {
    let names = [
        "a/b",
        "{x}",
        "}{",
        "*",
        "?[a-z]",
        "\\",
        "%2F",
        "a b",
        " ",
        "..",
        "\u{1f980}",
        "\u{e9}\u{301}",
        "generation",
        "node",
        "\"quoted\"",
        "'",
        "--",
        "$1",
        "session",
        "\u{200b}",
        "%s%d",
        &"x".repeat(200),
    ];
    let server = RedisServer::builder().start().await.unwrap();
    let store = RedisStore::connect(&server.url(), options()).await.unwrap();
    for (i, cluster) in names.iter().enumerate() {
        let mut world = World::on(store.clone());
        world.cluster = ClusterName::new(cluster).unwrap();
        assert!(world.snapshot(None).await.1.is_empty(), "{cluster}");
        let mut expected = Vec::new();
        for name in names.iter().skip(i % 3).step_by(3) {
            let session = world.open(name).await;
            let at = Slot::new(WorkloadName::new(name).unwrap(), 999_999);
            let token = world.acquire(session, &at, NONE).await;
            expected.push((at.clone(), token, node(name)));
            world.put(RecordKey::Pin(at), Some(Record::Pin(node(name))), None).await;
            world.put(RecordKey::Node(node(name)), Some(Record::Node(NodeWish::default())), None).await;
        }
        let slots = world.slots().await;
        assert_eq!(slots.len(), expected.len());
        for (at, token, holder) in &expected {
            let record = &slots[at];
            assert_eq!((record.token, &record.holder.as_ref().unwrap().node), (*token, holder));
        }
        let (_, items) = world.snapshot(None).await;
        let records = items.iter().filter(|item| matches!(item, Change::Record(..))).count();
        assert_eq!(records, 2 * expected.len() + 1);
    }
}

// Hints.

async fn hint(watch: &mut Box<dyn Watch>) -> Option<WatchHint> {
    tokio::time::timeout(Duration::from_secs(5), watch.next()).await.expect("no hint")
}

#[tokio::test]
async fn hints_are_sent_when_something_is_free_and_never_for_heartbeats() {
    let mut world = World::new().await;
    let mut watch = world.store.watch(&world.cluster).await.unwrap();
    let (a, b) = (world.open("a").await, world.open("b").await);
    let at = slot("w/0");
    let token = world.acquire(a, &at, NONE).await;
    world.beat(a).await.unwrap();
    let silent = tokio::time::timeout(millis(200), watch.next()).await;
    assert!(silent.is_err(), "{silent:?}");
    world.change(a, &at, token, release()).await;
    assert_eq!(hint(&mut watch).await, Some(WatchHint::Everyone));
    world.close(b).await;
    assert_eq!(hint(&mut watch).await, Some(WatchHint::Everyone));
    // The watch ends with its connection.
    world.server.as_mut().unwrap().kill().unwrap();
    assert_eq!(hint(&mut watch).await, None);
}

// Loss of data.

/// A holder of two slots, and somebody else.
struct Loss {
    world: World,
    holder: SessionId,
    tokens: Vec<(Slot, FencingToken)>,
    before: Stamp,
}

/// Long enough that a busy machine ends no session.
const LOSS_TTL: Duration = Duration::from_secs(3);

impl Loss {
    async fn new(server: RedisServer) -> Self {
        let mut world = World::with(server).await;
        let mut request = open_request("holder");
        request.info = Arc::new(NodeInfo::new(node("holder"), ClusterSettings::new(LOSS_TTL)));
        request.ttl = LOSS_TTL;
        let (holder, _) = opened(world.try_open(request).await.unwrap());
        let mut tokens = Vec::new();
        for at in [slot("w/0"), slot("w/1")] {
            tokens.push((at.clone(), world.acquire(holder, &at, NONE).await));
        }
        let before = world.beat(holder).await.unwrap().stamp;
        world.known = Known { generation: Some(before.generation), token: before.token, session_ttl_max: LOSS_TTL };
        Self { world, holder, tokens, before }
    }

    async fn reopen(&self, name: &str) -> (SessionId, Stamp) {
        let mut request = open_request(name);
        request.info = Arc::new(NodeInfo::new(node(name), ClusterSettings::new(LOSS_TTL)));
        request.ttl = LOSS_TTL;
        opened(self.world.try_open(request).await.unwrap())
    }

    fn assert_lost(&self, stamp: &Stamp) {
        assert_ne!(stamp.generation, self.before.generation);
        assert!(stamp.quiet > LOSS_TTL && stamp.quiet <= LOSS_TTL + millis(1001), "{stamp:?}");
        assert!(stamp.token.get() >= self.before.token.get() + (1 << 30), "{stamp:?}");
    }

    /// Re-adopts what was held, waits the quiet time out and looks that all goes on as ever.
    async fn recover(mut self, session: SessionId, stamp: Stamp) {
        let at = slot("fresh/0");
        self.world.known.generation = Some(stamp.generation);
        assert_eq!(conflict(&self.world.change(session, &at, NONE, acquire()).await), Conflict::Quiet);
        for (at, token) in &self.tokens {
            let record = done(self.world.change(session, at, *token, ChangeKind::Readopt).await);
            assert_eq!((record.token, record.holder.unwrap().session), (*token, session));
            // Again, and it is the same.
            done(self.world.change(session, at, *token, ChangeKind::Readopt).await);
        }
        let mut held = Held::default();
        for (at, token) in &self.tokens {
            held.add(at, *token);
        }
        loop {
            let beat = self.world.beat(session).await.unwrap();
            assert_eq!(beat.held, held);
            assert_eq!(beat.stamp.generation, stamp.generation, "one loss, one generation");
            if beat.stamp.quiet.is_zero() {
                break;
            }
            tokio::time::sleep(millis(50)).await;
        }
        let (readopted, token) = self.tokens[0].clone();
        let late =
            self.world.change(session, &readopted, FencingToken::new(token.get() + 1), ChangeKind::Readopt).await;
        assert_eq!(conflict(&late), Conflict::NotQuiet);
        let fresh = self.world.acquire(session, &at, NONE).await;
        assert!(fresh.get() >= self.before.token.get() + (1 << 30));
    }
}

fn plain() -> rendez_testkit::servers::RedisServerBuilder {
    RedisServer::builder().config("enable-debug-command yes")
}

#[tokio::test]
async fn a_node_that_remembers_notices_that_everything_was_flushed() {
    let loss = Loss::new(plain().start().await.unwrap()).await;
    loss.world.command(&["FLUSHALL"]).await;
    assert_eq!(kind(loss.world.beat(loss.holder).await), ErrorKind::Lost);
    let (session, stamp) = loss.reopen("holder").await;
    assert!(session != loss.holder);
    loss.assert_lost(&stamp);
    loss.recover(session, stamp).await;
}

#[tokio::test]
async fn a_node_that_remembers_nothing_takes_an_empty_store_for_a_new_cluster() {
    let mut loss = Loss::new(plain().start().await.unwrap()).await;
    loss.world.command(&["FLUSHALL"]).await;
    let remembered = std::mem::take(&mut loss.world.known);
    let (other, stamp) = loss.reopen("other").await;
    assert_eq!(stamp.quiet, Duration::ZERO);
    loss.world.acquire(other, &slot("w/0"), NONE).await;
    // The first that remembers sets the quiet time off; the next ones do not begin it again.
    loss.world.known = remembered;
    let (session, stamp) = loss.reopen("holder").await;
    loss.assert_lost(&stamp);
    let beat = loss.world.beat(session).await.unwrap();
    assert_eq!(beat.stamp.generation, stamp.generation);
}

#[tokio::test]
async fn a_new_cluster_waits_where_that_is_asked_for() {
    let world = World::new().await;
    // A look at it before does not count as its beginning.
    world.snapshot(None).await;
    let mut settings = ClusterSettings::new(TTL_MAX);
    settings.cold_start_hold = Duration::from_secs(7);
    let request = OpenRequest { info: Arc::new(NodeInfo::new(node("a"), settings)), ..open_request("a") };
    let (session, stamp) = opened(world.try_open(request).await.unwrap());
    assert!(stamp.quiet > Duration::from_secs(6) && stamp.quiet <= Duration::from_secs(7));
    assert_eq!(conflict(&world.change(session, &slot("w/0"), NONE, acquire()).await), Conflict::Quiet);
}

#[tokio::test]
async fn the_loss_of_any_one_key_is_noticed_by_whoever_comes_next() {
    for name in ["meta", "sessions", "expiry", "slots", "records", "log", "checkpoints"] {
        let mut loss = Loss::new(plain().start().await.unwrap()).await;
        assert_eq!(loss.world.command(&["DEL", &loss.world.key(name)]).await.trim(), "1", "{name}");
        // Somebody who remembers nothing.
        let remembered = std::mem::take(&mut loss.world.known);
        let (_, stamp) = loss.reopen("other").await;
        loss.assert_lost(&stamp);
        loss.world.known = remembered;
        // The holder's session lives if its record and its expiry do.
        match loss.world.beat(loss.holder).await {
            Ok(beat) => {
                assert!(!matches!(name, "sessions" | "expiry"), "{name}");
                assert!(matches!(beat.sync, Sync::NotAsked));
                let stamp = beat.stamp;
                let holder = loss.holder;
                loss.recover(holder, stamp).await;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Lost, "{name}");
                assert!(matches!(name, "sessions" | "expiry"), "{name}");
                let (session, stamp) = loss.reopen("holder").await;
                loss.recover(session, stamp).await;
            }
        }
    }
}

#[tokio::test]
async fn a_restart_with_nothing_and_a_restart_with_everything() {
    let mut loss = Loss::new(plain().start().await.unwrap()).await;
    loss.world.server.as_mut().unwrap().restart(Restart::Empty).await.unwrap();
    let (session, stamp) = reopen_after_restart(&loss).await;
    loss.assert_lost(&stamp);
    loss.recover(session, stamp).await;

    // Nothing was lost, but that cannot be known: the replication id is another one.
    let mut loss = Loss::new(plain().append_only(true).start().await.unwrap()).await;
    loss.world.server.as_mut().unwrap().restart(Restart::Crashed).await.unwrap();
    let (session, stamp) = reopen_after_restart(&loss).await;
    loss.assert_lost(&stamp);
    let slots = loss.world.slots().await;
    assert_eq!(slots.len(), 2);
    loss.recover(session, stamp).await;
}

async fn reopen_after_restart(loss: &Loss) -> (SessionId, Stamp) {
    // The connection that was open is found to be dead by the first request.
    let started = Instant::now();
    while let Err(error) = loss.world.beat(loss.holder).await {
        if error.kind() == ErrorKind::Lost {
            break;
        }
        assert!(matches!(error.kind(), ErrorKind::Ambiguous | ErrorKind::Transient), "{error:?}");
        assert!(started.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(millis(20)).await;
    }
    tokio::time::sleep(LOSS_TTL).await;
    // The quiet time has begun with the heartbeat: begin another for the whole of it to be seen.
    loss.world.command(&["DEBUG", "CHANGE-REPL-ID"]).await;
    loss.reopen("holder").await
}

#[tokio::test]
async fn another_replication_id_means_that_data_may_be_lost() {
    let loss = Loss::new(plain().start().await.unwrap()).await;
    loss.world.command(&["DEBUG", "CHANGE-REPL-ID"]).await;
    let stamp = loss.world.beat(loss.holder).await.unwrap().stamp;
    loss.assert_lost(&stamp);
    // The data is there: the records keep their tokens.
    assert_eq!(loss.world.slots().await[&slot("w/0")].token, loss.tokens[0].1);
    let mut request = loss.world.beat_request(loss.holder);
    request.since = Some(loss.before.revision);
    let beat = loss.world.store.heartbeat(&loss.world.cluster, &request).await.unwrap();
    assert!(matches!(beat.sync, Sync::Snapshot));
    let holder = loss.holder;
    loss.recover(holder, stamp).await;
}

#[tokio::test]
async fn readopting_and_its_conflicts() {
    let mut loss = Loss::new(plain().start().await.unwrap()).await;
    let (at, token) = loss.tokens[0].clone();
    let up = |token: FencingToken, by: u64| FencingToken::new(token.get() + by);
    let readopt = || ChangeKind::Readopt;
    assert_eq!(conflict(&loss.world.change(loss.holder, &at, token, readopt()).await), Conflict::NotQuiet);
    loss.world.command(&["DEBUG", "CHANGE-REPL-ID"]).await;
    // Not in the generation before.
    assert_eq!(conflict(&loss.world.change(loss.holder, &at, token, readopt()).await), Conflict::NotQuiet);
    let (other, stamp) = loss.reopen("other").await;
    loss.world.known.generation = Some(stamp.generation);
    let lower = FencingToken::new(token.get() - 1);
    assert_eq!(conflict(&loss.world.change(loss.holder, &at, lower, readopt()).await), Conflict::Token);
    assert_eq!(conflict(&loss.world.change(loss.holder, &slot("x/9"), NONE, readopt()).await), Conflict::Token);
    assert_eq!(conflict(&loss.world.change(other, &at, token, readopt()).await), Conflict::Held);
    // A higher token wins, and what both hold is counted right.
    let taken = done(loss.world.change(other, &at, up(token, 5), readopt()).await);
    assert_eq!((taken.token, taken.holder.unwrap().session), (up(token, 5), other));
    let mut held = Held::default();
    held.add(&at, up(token, 5));
    assert_eq!(loss.world.beat(other).await.unwrap().held, held);
    assert_eq!(loss.world.beat(loss.holder).await.unwrap().held.count, 1);
    // A record that was lost.
    let record = done(loss.world.change(other, &slot("x/9"), up(token, 6), readopt()).await);
    assert_eq!(record.token, up(token, 6));
    // What was let go is not taken back: neither by who let it go nor by another.
    done(loss.world.change(other, &at, up(token, 5), release()).await);
    for session in [other, loss.holder] {
        assert_eq!(conflict(&loss.world.change(session, &at, up(token, 5), readopt()).await), Conflict::NotHolder);
    }
}

#[tokio::test]
async fn an_unknown_layout_is_refused_and_left_alone() {
    let world = World::new().await;
    world.open("a").await;
    world.command(&["HSET", &world.key("meta"), "state", "2 whatever"]).await;
    let before = world.command(&["HGETALL", &world.key("meta")]).await;
    let error = world.try_open(open_request("b")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fatal);
    assert!(error.message().contains("layout \"2\""), "{error}");
    assert_eq!(world.command(&["HGETALL", &world.key("meta")]).await, before);
}

#[tokio::test]
async fn a_key_of_somebody_else_is_refused() {
    let world = World::new().await;
    world.command(&["SET", &world.key("slots"), "mine"]).await;
    let error = world.try_open(open_request("b")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fatal, "{error}");
    assert_eq!(world.command(&["GET", &world.key("slots")]).await.trim_matches(['"', '\n']), "mine");
}

// Full memory.

#[tokio::test]
async fn sessions_live_on_when_memory_is_full() {
    let world = World::with(plain().max_memory(0, "noeviction").start().await.unwrap()).await;
    let (a, b) = (world.open("a").await, world.open("b").await);
    let (at, other) = (slot("w/0"), slot("w/1"));
    let token = world.acquire(a, &at, NONE).await;
    world.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    world.beat(a).await.unwrap();
    let error = world.try_open(open_request("c")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Throttled, "{error}");
    let put = AdminRequest::Put { key: RecordKey::Pin(at.clone()), record: Some(Record::Pin(node("a"))), expect: None };
    assert_eq!(kind(world.store.administer(&world.cluster, &put).await), ErrorKind::Throttled);
    let delete = AdminRequest::Put { key: RecordKey::Pin(at.clone()), record: None, expect: None };
    world.store.administer(&world.cluster, &delete).await.unwrap();
    let id = operation();
    done(world.change(a, &at, token, offer(id, b, TTL, false)).await);
    done(world.change(b, &at, token, ChangeKind::Accept { offer: id }).await);
    let transfer = ChangeKind::Transfer { operation: operation(), offer: id, checkpoint: None };
    let moved = done(world.change(a, &at, token, transfer).await);
    done(world.change(b, &at, moved.token, release()).await);
    world.acquire(a, &other, NONE).await;
    world.close(b).await;
    world.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    world.open("c").await;
}

// Size.

#[tokio::test]
async fn ten_thousand_slots() {
    let mut world = World::new().await;
    let a = world.open("a").await;
    let mut held = Held::default();
    let mut tokens = Vec::new();
    for batch in 0..20 {
        let wanted: Vec<_> = (0..500).map(|i| Slot::new("w".try_into().unwrap(), batch * 500 + i)).collect();
        let reply = world.changes(a, wanted.iter().map(|at| (at.clone(), NONE, acquire())).collect()).await.unwrap();
        for (at, outcome) in wanted.into_iter().zip(reply.outcomes) {
            let token = done(outcome).token;
            held.add(&at, token);
            tokens.push((at, token));
        }
    }
    let beat = world.beat(a).await.unwrap();
    assert_eq!(beat.held, held);
    world.known.generation = Some(beat.stamp.generation);
    let b = world.open("b").await;
    world.close(a).await;
    for batch in tokens.chunks(512) {
        let reply = world.changes(b, batch.iter().map(|(at, token)| (at.clone(), *token, acquire())).collect()).await;
        assert!(reply.unwrap().outcomes.iter().all(|outcome| matches!(outcome, ChangeOutcome::Done(_))));
    }
    assert_eq!(world.beat(b).await.unwrap().held.count, 10_000);
    let (_, items) = world.snapshot(None).await;
    assert_eq!(items.iter().filter(|item| matches!(item, Change::Slot(..))).count(), 10_000);
}

#[tokio::test]
async fn scripts_are_sent_again_when_the_server_has_forgotten_them() {
    let world = World::new().await;
    let a = world.open("a").await;
    world.command(&["SCRIPT", "FLUSH"]).await;
    world.beat(a).await.unwrap();
    world.acquire(a, &slot("w/0"), NONE).await;
}

// Fences.

#[tokio::test]
async fn a_fence_lets_the_newest_token_write_and_no_older_one() {
    let world = World::new().await;
    let client = rendez_redis::redis::Client::open(world.server().url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let fence = Fence::new("{f}:fence");
    let mut writes = rendez_redis::redis::pipe();
    writes.incr("{f}:number", 1).get("{f}:nothing").rpush("{f}:list", &["a b", ""]);
    let huge = u64::MAX;
    for (number, accepted) in
        [(9, true), (10, true), (10, true), (9, false), (huge - 1, true), (huge, true), (huge - 1, false)]
    {
        match fence.write(&mut connection, FencingToken::new(number), &writes).await {
            Ok(answers) => assert!(accepted && answers.len() == 3, "{number}: {answers:?}"),
            Err(FenceError::Stale(stale)) => assert!(!accepted && stale.seen > stale.token, "{number}: {stale}"),
            Err(other) => panic!("{number}: {other}"),
        }
    }
    assert_eq!(world.command(&["GET", "{f}:number"]).await, "5");
    assert_eq!(world.command(&["LLEN", "{f}:list"]).await, "10");
}

#[tokio::test]
async fn a_fence_that_is_none_and_commands_that_fail_let_no_older_token_through() {
    let world = World::new().await;
    let client = rendez_redis::redis::Client::open(world.server().url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    world.command(&["SET", "data", "precious"]).await;
    let mut writes = rendez_redis::redis::pipe();
    writes.set("x", 1);
    let refused = Fence::new("data").write(&mut connection, FencingToken::new(7), &writes).await.unwrap_err();
    assert!(refused.to_string().contains("data is no fence"), "{refused}");
    assert_eq!(world.command(&["GET", "data"]).await, "precious");
    let fence = Fence::new("fence");
    let mut failing = rendez_redis::redis::pipe();
    failing.set("x", 1).rpush("x", "not a list").set("x", 2);
    let failed = fence.write(&mut connection, FencingToken::new(7), &failing).await.unwrap_err();
    assert!(failed.to_string().contains("WRONGTYPE"), "{failed}");
    assert_eq!(world.command(&["GET", "x"]).await, "1");
    let stale = fence.write(&mut connection, FencingToken::new(6), &writes).await;
    assert!(matches!(stale, Err(FenceError::Stale(_))), "{stale:?}");
    let mut long = rendez_redis::redis::pipe();
    long.rpush("list", vec!["x"; FENCED_WORDS_MAX]);
    let refused = fence.write(&mut connection, FencingToken::new(8), &long).await;
    assert!(matches!(refused, Err(FenceError::TooLong { .. })), "{refused:?}");
    let mut longest = rendez_redis::redis::pipe();
    longest.rpush("list", vec!["x"; FENCED_WORDS_MAX - 2]);
    fence.write(&mut connection, FencingToken::new(8), &longest).await.unwrap();
}
