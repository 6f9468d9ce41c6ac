//! Heartbeats: they extend what lives, and nothing else; they bring what nodes tell each other.

use std::sync::Arc;
use std::time::Duration;

use rendez_core::{Change, DUE_MAX, ErrorKind, HeartbeatRequest, OpenRequest};
use tokio::time::Instant;

use super::super::case::{Outcome, cases, ensure, ensure_eq};
use super::super::stage::{NONE, Stage, View, kind, name, opened, slot};

cases! { "heartbeat";
    a_session_lives_as_long_as_it_is_extended,
    a_session_ends_never_early_and_no_later_than_declared,
    a_heartbeat_after_the_end_is_lost_for_ever,
    a_heartbeat_that_was_delayed_until_after_the_close_revives_nothing,
    a_heartbeat_grants_the_ttl_of_the_opening,
    a_heartbeat_changes_no_record,
    what_a_node_tells_reaches_the_others,
    what_a_node_told_before_is_no_news,
    a_session_cannot_become_another_nodes,
    an_impossible_node_is_refused_and_not_extended,
    sessions_that_are_due_are_named_soonest_first,
    closing_twice_is_no_error,
    closing_one_session_touches_no_other,
    a_node_that_does_not_come_back_leaves_the_membership,
}

async fn a_session_lives_as_long_as_it_is_extended(stage: Stage) -> Outcome {
    let ttl = stage.ttl_short();
    let mut sent = Instant::now();
    let mut session = stage.open_short("a").await?;
    let mut since = Instant::now();
    while since.elapsed() < ttl * 2 {
        tokio::time::sleep(ttl / 5).await;
        let now = Instant::now();
        match stage.try_beat(session).await {
            Ok(_) => sent = now,
            Err(error) => {
                ensure_eq!(error.kind(), ErrorKind::Lost, "the error of a heartbeat");
                let silent = sent.elapsed();
                ensure!(silent >= ttl, "the session was extended {silent:?} ago for {ttl:?} and is lost");
                // This machine stood still for longer than the session lives: begin again.
                (sent, since) = (Instant::now(), Instant::now());
                session = stage.open_short("a").await?;
            }
        }
    }
    Ok(())
}

async fn a_session_ends_never_early_and_no_later_than_declared(stage: Stage) -> Outcome {
    let sent = Instant::now();
    let session = stage.open_short("a").await?;
    let ends_at = Instant::now() + stage.ttl_short();
    while stage.lives(session).await? {
        ensure!(
            Instant::now() < ends_at + stage.lateness(),
            "the session lives {:?} after its end; the store declares {:?}",
            Instant::now() - ends_at,
            stage.capabilities.expiry_lateness_max
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let lived = sent.elapsed();
    ensure!(lived >= stage.ttl_short(), "a session of {:?} ended after {lived:?}", stage.ttl_short());
    Ok(())
}

async fn a_heartbeat_after_the_end_is_lost_for_ever(stage: Stage) -> Outcome {
    let at = slot(0)?;
    let (dead, token) = stage.open_short_with("a", &at).await?;
    stage.wait_for_end(dead, Instant::now() + stage.ttl_short()).await?;
    for _ in 0..2 {
        ensure_eq!(kind(stage.try_beat(dead).await)?, ErrorKind::Lost, "a heartbeat after the end");
        ensure!(!stage.lives(dead).await?, "a heartbeat has revived a dead session");
    }
    let b = stage.open("b").await?;
    stage.acquire(b, &at, token).await?;
    ensure_eq!(kind(stage.try_beat(dead).await)?, ErrorKind::Lost, "a heartbeat after the takeover");
    let again = stage.open("a").await?;
    ensure!(again != dead, "a session's id was given out twice");
    ensure_eq!(kind(stage.try_beat(dead).await)?, ErrorKind::Lost, "after the node has come back");
    ensure!(!stage.view().await?.sessions.contains_key(&dead), "the dead session is still listed");
    Ok(())
}

async fn a_heartbeat_that_was_delayed_until_after_the_close_revives_nothing(stage: Stage) -> Outcome {
    let a = stage.open("a").await?;
    let mut late = stage.beat_request(a);
    let mut info = stage.info("a")?;
    info.weight = 9;
    late.info = Some(Arc::new(info));
    stage.close(a).await?;
    let before = stage.snapshot(None).await?;
    ensure_eq!(kind(stage.store.heartbeat(&stage.cluster, &late).await)?, ErrorKind::Lost, "a late heartbeat");
    let after = stage.snapshot(None).await?;
    ensure_eq!((after.0.revision, after.1), (before.0.revision, before.1), "revision and records after it");
    Ok(())
}

async fn a_heartbeat_grants_the_ttl_of_the_opening(stage: Stage) -> Outcome {
    for (node, ttl) in [("a", stage.ttl()), ("b", stage.granted(stage.ttl() / 2))] {
        let opening = stage.try_open(&OpenRequest { ttl, ..stage.open_request(node)? }).await?;
        let session = opened(&opening)?;
        let rendez_core::Opening::Opened { ttl: granted, .. } = opening else { return Ok(()) };
        ensure_eq!(stage.beat(session).await?.ttl, granted, "the TTL of a heartbeat");
        let listed = stage.view().await?.sessions.get(&session).map(|record| record.ttl);
        ensure_eq!(listed, Some(granted), "the TTL in the session's record");
    }
    Ok(())
}

async fn a_heartbeat_changes_no_record(stage: Stage) -> Outcome {
    let a = stage.open("a").await?;
    stage.acquire(a, &slot(0)?, NONE).await?;
    let before = stage.snapshot(Some(a)).await?;
    for _ in 0..3 {
        stage.beat(a).await?;
    }
    let after = stage.snapshot(Some(a)).await?;
    ensure_eq!(after.0.revision, before.0.revision, "the revision after heartbeats");
    ensure_eq!(after.1, before.1, "the records after heartbeats");
    Ok(())
}

async fn what_a_node_tells_reaches_the_others(stage: Stage) -> Outcome {
    let (a, b) = (stage.open("a").await?, stage.open("b").await?);
    let (stamp, mut view) = stage.snapshot(None).await?;
    let mut info = stage.info("a")?;
    info.weight = 7;
    info.healthy = false;
    info.capacity = Some(3);
    info.zone = Some("z\u{1f980}\"'".parse().map_err(super::super::Failure::new)?);
    info.labels.insert("disk\n".to_owned(), "ssd\0\u{7f}\"".to_owned());
    info.stance = rendez_core::Stance::Draining;
    let info = Arc::new(info);
    let mut request = stage.beat_request(a);
    request.info = Some(Arc::clone(&info));
    stage.store.heartbeat(&stage.cluster, &request).await?;
    let before = view.sessions.get(&a).cloned();
    stage.sync(b, &stamp, 512, &mut view).await?;
    ensure_eq!(view, stage.view().await?, "what the changes lead to, and what a snapshot holds");
    let (Some(before), Some(after)) = (before, view.sessions.get(&a)) else {
        return Err(super::super::Failure::new("the session is not listed"));
    };
    ensure_eq!(after.info, info, "what the others read");
    ensure!(after.revision > before.revision, "news have a new revision");
    ensure_eq!(
        (after.incarnation, after.opened_at, after.ttl),
        (before.incarnation, before.opened_at, before.ttl),
        "what stays of a session"
    );
    Ok(())
}

async fn what_a_node_told_before_is_no_news(stage: Stage) -> Outcome {
    let a = stage.open("a").await?;
    let mut info = stage.info("a")?;
    info.weight = 7;
    let mut request = stage.beat_request(a);
    request.info = Some(Arc::new(info));
    let first = stage.store.heartbeat(&stage.cluster, &request).await?.stamp.revision;
    let second = stage.store.heartbeat(&stage.cluster, &request).await?.stamp.revision;
    ensure_eq!(second, first, "the revision after telling the same again");
    Ok(())
}

async fn a_session_cannot_become_another_nodes(stage: Stage) -> Outcome {
    let a = stage.open("a").await?;
    let before = stage.snapshot(None).await?;
    let mut request = stage.beat_request(a);
    request.info = Some(Arc::new(stage.info("b")?));
    ensure_eq!(kind(stage.store.heartbeat(&stage.cluster, &request).await)?, ErrorKind::Fatal, "another node's name");
    let after = stage.snapshot(None).await?;
    ensure_eq!((after.0.revision, after.1), (before.0.revision, before.1), "revision and records after it");
    Ok(())
}

async fn an_impossible_node_is_refused_and_not_extended(stage: Stage) -> Outcome {
    let a = stage.open("a").await?;
    let before = stage.view().await?;
    for (protocol, weight) in [(0, 1), (rendez_core::PROTOCOL_VERSION + 1, 1), (1, 0)] {
        let mut info = stage.info("a")?;
        (info.protocol, info.weight) = (protocol, weight);
        let request = HeartbeatRequest { info: Some(Arc::new(info)), ..stage.beat_request(a) };
        let came = kind(stage.store.heartbeat(&stage.cluster, &request).await)?;
        ensure_eq!(came, ErrorKind::Fatal, "protocol {protocol}, weight {weight}");
    }
    ensure_eq!(stage.view().await?, before, "the records after it");
    Ok(())
}

async fn sessions_that_are_due_are_named_soonest_first(stage: Stage) -> Outcome {
    let asking = stage.open("asking").await?;
    let (short, long) = (stage.ttl(), stage.ttl() + stage.capabilities.ttl_granularity.max(Duration::from_secs(5)));
    ensure!(long <= stage.capabilities.ttl_max, "no room between the TTLs");
    // The cluster's settings are the first session's; they permit no longer TTL than its own.
    let settings = rendez_core::ClusterSettings::new(long);
    stage.put(rendez_core::RecordKey::Settings, Some(rendez_core::Record::Settings(settings)), None).await?;
    let late = opened(&stage.try_open(&OpenRequest { ttl: long, ..stage.open_request("late")? }).await?)?;
    let soon = opened(&stage.try_open(&OpenRequest { ttl: short, ..stage.open_request("soon")? }).await?)?;
    let due = |within| {
        let request = HeartbeatRequest { due_within: within, ..stage.beat_request(asking) };
        let stage = stage.clone();
        async move { stage.store.heartbeat(&stage.cluster, &request).await.map(|beat| beat.due) }
    };
    if !stage.capabilities.due {
        ensure_eq!(due(Duration::from_secs(3600)).await?, vec![], "what a store names that says that it names nobody");
        return Ok(());
    }
    let all = due(Duration::from_secs(3600)).await?;
    ensure_eq!(all.iter().map(|due| due.session).collect::<Vec<_>>(), [soon, late], "who is due, soonest first");
    ensure!(all[0].remaining <= short && all[1].remaining <= long, "the time left: {all:?}");
    ensure_eq!(due(Duration::ZERO).await?, vec![], "who is due within no time");
    let names: Vec<_> = (0..DUE_MAX + 3).map(|number| format!("n{number}")).collect();
    for node in &names {
        stage.open(node).await?;
    }
    let all = due(Duration::from_secs(3600)).await?;
    ensure_eq!(all.len(), DUE_MAX, "how many are named at most");
    ensure!(all.is_sorted_by_key(|due| due.remaining), "the order of those that are due: {all:?}");
    Ok(())
}

async fn closing_twice_is_no_error(stage: Stage) -> Outcome {
    let (a, b) = (stage.open("a").await?, stage.open("b").await?);
    stage.acquire(b, &slot(0)?, NONE).await?;
    stage.close(a).await?;
    // Its node is back, and somebody else is there: neither is meant by a late close.
    let again = stage.open("a").await?;
    let (before, view) = stage.snapshot(None).await?;
    stage.close(a).await?;
    stage.close(rendez_core::SessionId::from_bits(fastrand::u128(..))).await?;
    let (after, now) = stage.snapshot(None).await?;
    ensure_eq!((after.revision, now), (before.revision, view), "revision and records after closing what is closed");
    ensure!(stage.lives(again).await? && stage.lives(b).await?, "a late close has ended another session");
    Ok(())
}

async fn closing_one_session_touches_no_other(stage: Stage) -> Outcome {
    let (a, b) = (stage.open("a").await?, stage.open("b").await?);
    let (mine, theirs) = (slot(0)?, slot(1)?);
    let token = stage.acquire(a, &mine, NONE).await?;
    stage.acquire(b, &theirs, NONE).await?;
    let before = stage.view().await?;
    let (stamp, mut seen) = stage.snapshot(None).await?;
    stage.close(a).await?;
    let View { sessions, slots, records } = stage.view().await?;
    ensure_eq!(sessions.keys().collect::<Vec<_>>(), [&b], "the sessions that live");
    ensure_eq!(sessions.get(&b), before.sessions.get(&b), "the other session's record");
    ensure_eq!(slots.get(&theirs), before.slots.get(&theirs), "the other session's slot");
    ensure_eq!(records, before.records, "the operators' records");
    ensure_eq!(slots.get(&mine).map(|slot| slot.token), Some(token), "the token of the orphan");
    stage.sync(b, &stamp, 512, &mut seen).await?;
    ensure_eq!(seen, View { sessions, slots, records }, "what the changes tell, and what is");
    let name = name("a")?;
    let again = stage.open(name.as_str()).await?;
    ensure!(again != a, "a session's id was given out twice");
    Ok(())
}

async fn a_node_that_does_not_come_back_leaves_the_membership(stage: Stage) -> Outcome {
    let b = stage.open("b").await?;
    let a = stage.open_short("a").await?;
    let (stamp, mut view) = stage.snapshot(None).await?;
    if view.sessions.len() == 1 && !stage.lives(a).await? {
        // This machine was too slow to see it alive.
        return Box::pin(a_node_that_does_not_come_back_leaves_the_membership(stage.anew()?)).await;
    }
    ensure_eq!(view.sessions.len(), 2, "the members");
    stage.wait_for_end(a, Instant::now() + stage.ttl_short()).await?;
    ensure_eq!(stage.view().await?.sessions.keys().collect::<Vec<_>>(), [&b], "the members after its end");
    let mut request = stage.beat_request(b);
    request.known.generation = Some(stamp.generation);
    request.since = Some(stamp.revision);
    let rendez_core::Sync::Changes { changes, .. } = stage.store.heartbeat(&stage.cluster, &request).await?.sync else {
        return Err(super::super::Failure::new("changes were expected"));
    };
    ensure!(changes.contains(&Change::Session(a, None)), "the end of a session is a change: {changes:?}");
    stage.sync(b, &stamp, 512, &mut view).await?;
    ensure_eq!(view.sessions.keys().collect::<Vec<_>>(), [&b], "the members as the changes tell");
    Ok(())
}
