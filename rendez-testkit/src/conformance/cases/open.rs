//! Opening: fresh sessions, one a node, for a TTL that is permitted.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rendez_core::{
    ClusterSettings, ErrorKind, OpenRequest, Opening, PROTOCOL_VERSION, Record, RecordKey, SessionId, UNITS_MAX,
};
use tokio::time::Instant;

use super::super::Failure;
use super::super::case::{Outcome, cases, ensure, ensure_eq};
use super::super::stage::{NONE, Stage, kind, opened, operation, slot};

cases! { "open";
    a_session_is_listed_with_what_its_node_tells,
    every_session_has_a_fresh_id,
    a_name_that_is_in_use_is_refused_with_its_holder,
    ones_own_session_that_is_not_named_stands_in_the_way,
    the_retry_of_an_opening_answers_the_same_session,
    the_retry_of_an_opening_extends,
    ones_own_session_is_replaced,
    a_session_of_another_process_is_not_replaced,
    a_dead_session_is_replaced_by_anybody,
    of_two_processes_with_one_name_one_gets_in,
    a_ttl_that_cannot_be_is_refused,
    the_shortest_ttl_is_granted,
    a_ttl_is_rounded_up_and_reported,
    a_ttl_longer_than_the_settings_permit_is_refused,
    the_first_nodes_settings_are_the_clusters,
    a_node_that_cannot_be_is_refused,
    many_nodes_open_at_once,
}

async fn a_session_is_listed_with_what_its_node_tells(stage: Stage) -> Outcome {
    let mut info = stage.info("a")?;
    info.weight = 3;
    info.labels.insert("k".to_owned(), String::new());
    info.workloads.insert("w/1 {x}".parse().map_err(Failure::new)?, rendez_core::Declared::new(9).with_cap(2));
    let request = OpenRequest { info: Arc::new(info), ..stage.open_request("a")? };
    let Opening::Opened { stamp, session, ttl, settings } = stage.try_open(&request).await? else {
        return Err(Failure::new("a session was expected"));
    };
    let (read, view) = stage.snapshot(None).await?;
    ensure_eq!((read.generation, read.revision), (stamp.generation, stamp.revision), "the opening's stamp");
    let Some(record) = view.sessions.get(&session) else { return Err(Failure::new("the session is not listed")) };
    ensure_eq!(record.info, request.info, "what the node tells");
    ensure_eq!((record.incarnation, record.ttl), (request.incarnation, ttl), "incarnation and TTL");
    ensure!(record.opened_at <= read.now && record.revision <= read.revision, "its times: {record:?}, now {read:?}");
    let kept = view.records.get(&RecordKey::Settings).map(|versioned| &versioned.record);
    ensure_eq!(kept, Some(&Record::Settings(settings)), "the cluster's settings");
    ensure_eq!(stamp.quiet, Duration::ZERO, "a new cluster waits for nobody");
    Ok(())
}

async fn every_session_has_a_fresh_id(stage: Stage) -> Outcome {
    let mut ids = BTreeSet::new();
    for _ in 0..8 {
        for node in ["a", "b", "c"] {
            let session = stage.open(node).await?;
            ensure!(ids.insert(session), "{session} was given out twice");
            ensure!(session != SessionId::from_bits(0), "a session has an id");
            stage.close(session).await?;
        }
    }
    Ok(())
}

async fn in_use(stage: &Stage, request: &OpenRequest, session: SessionId) -> Outcome<Duration> {
    let before = stage.snapshot(None).await?;
    match stage.try_open(request).await? {
        Opening::InUse { session: standing, remaining, .. } if standing == session => {
            let after = stage.snapshot(None).await?;
            ensure_eq!((after.0.revision, after.1), (before.0.revision, before.1), "what a refused opening changed");
            Ok(remaining)
        }
        came => Err(Failure::new(format_args!("the name is {session}'s, and {came:?} came"))),
    }
}

async fn a_name_that_is_in_use_is_refused_with_its_holder(stage: Stage) -> Outcome {
    let first = stage.open_request("a")?;
    let session = opened(&stage.try_open(&first).await?)?;
    let second = stage.open_request("a")?;
    let remaining = in_use(&stage, &second, session).await?;
    ensure!(remaining <= stage.ttl() && !remaining.is_zero(), "it lives {remaining:?} if it is not extended");
    let Opening::InUse { incarnation, .. } = stage.try_open(&second).await? else {
        return Err(Failure::new("the name is in use"));
    };
    ensure_eq!(incarnation, first.incarnation, "the process that holds the name");
    stage.open("b").await?;
    stage.close(session).await?;
    opened(&stage.try_open(&second).await?).map(drop)
}

async fn ones_own_session_that_is_not_named_stands_in_the_way(stage: Stage) -> Outcome {
    let first = stage.open_request("a")?;
    let session = opened(&stage.try_open(&first).await?)?;
    let request = OpenRequest { operation: operation(), ..first.clone() };
    in_use(&stage, &request, session).await?;
    let wrong = OpenRequest { replaces: Some(SessionId::from_bits(5)), ..request };
    in_use(&stage, &wrong, session).await.map(drop)
}

async fn the_retry_of_an_opening_answers_the_same_session(stage: Stage) -> Outcome {
    let request = stage.open_request("a")?;
    let session = opened(&stage.try_open(&request).await?)?;
    let before = stage.snapshot(None).await?;
    let again = opened(&stage.again().await?.try_open(&request).await?)?;
    ensure_eq!(again, session, "the session that a retry answers");
    let after = stage.snapshot(None).await?;
    ensure_eq!((after.0.revision, after.1), (before.0.revision, before.1), "revision and records after the retry");
    Ok(())
}

async fn the_retry_of_an_opening_extends(stage: Stage) -> Outcome {
    let ttl = stage.ttl_short();
    let request = OpenRequest { ttl, ..stage.open_request("a")? };
    for _ in 0..8 {
        let session = opened(&stage.try_open(&request).await?)?;
        tokio::time::sleep(ttl * 2 / 3).await;
        let sent = Instant::now();
        let retried = opened(&stage.try_open(&request).await?)?;
        if retried != session {
            // This machine stood still for longer than the session lives.
            stage.close(retried).await?;
            continue;
        }
        tokio::time::sleep(ttl * 2 / 3).await;
        let lives = stage.lives(session).await?;
        if sent.elapsed() < ttl {
            ensure!(lives, "the retry {:?} ago must have extended the session for {ttl:?}", sent.elapsed());
            return Ok(());
        }
        stage.close(session).await?;
    }
    Err(Failure::new("this machine is too slow for a session of this TTL"))
}

async fn ones_own_session_is_replaced(stage: Stage) -> Outcome {
    let first = stage.open_request("a")?;
    let session = opened(&stage.try_open(&first).await?)?;
    let at = slot(0)?;
    let token = stage.acquire(session, &at, NONE).await?;
    let request = OpenRequest { operation: operation(), replaces: Some(session), ..first };
    let fresh = opened(&stage.try_open(&request).await?)?;
    ensure!(fresh != session, "a replaced session's id was given out again");
    ensure!(!stage.lives(session).await?, "the replaced session must be closed");
    ensure_eq!(stage.view().await?.sessions.keys().collect::<Vec<_>>(), [&fresh], "the sessions");
    ensure_eq!(stage.beat(fresh).await?.held.count, 0, "what the fresh session holds");
    ensure_eq!(opened(&stage.try_open(&request).await?)?, fresh, "the retry");
    let second = stage.acquire(fresh, &at, token).await?;
    ensure!(second > token, "the slot of the replaced session is an orphan");
    Ok(())
}

async fn a_session_of_another_process_is_not_replaced(stage: Stage) -> Outcome {
    let session = stage.open("a").await?;
    let request = OpenRequest { replaces: Some(session), ..stage.open_request("a")? };
    in_use(&stage, &request, session).await?;
    ensure!(stage.lives(session).await?, "the session of the other process must live");
    Ok(())
}

async fn a_dead_session_is_replaced_by_anybody(stage: Stage) -> Outcome {
    let dead = stage.open_dead("a").await?;
    let request = OpenRequest { replaces: Some(dead), ..stage.open_request("a")? };
    let session = opened(&stage.try_open(&request).await?)?;
    ensure!(session != dead, "a session's id was given out twice");
    Ok(())
}

async fn of_two_processes_with_one_name_one_gets_in(stage: Stage) -> Outcome {
    for round in 0..4 {
        let mut racing = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let stage = stage.again().await?;
            let request = stage.open_request(&format!("n{round}"))?;
            racing.spawn(async move { stage.try_open(&request).await });
        }
        let (mut winner, mut told) = (BTreeSet::new(), BTreeSet::new());
        for opening in racing.join_all().await {
            match opening? {
                Opening::Opened { session, .. } => winner.insert(session),
                Opening::InUse { session, .. } => told.insert(session),
            };
        }
        ensure_eq!(winner.len(), 1, "how many got in");
        ensure_eq!(told, winner, "whom the others were told of");
    }
    Ok(())
}

async fn a_ttl_that_cannot_be_is_refused(stage: Stage) -> Outcome {
    let (min, max) = (stage.capabilities.ttl_min, stage.capabilities.ttl_max);
    let short = min.saturating_sub(Duration::from_nanos(1));
    let mut request = stage.open_request("a")?;
    for ttl in [Duration::ZERO, short, max + Duration::from_nanos(1), Duration::MAX] {
        request.ttl = ttl;
        ensure_eq!(kind(stage.try_open(&request).await)?, ErrorKind::Fatal, "a TTL of {ttl:?}");
    }
    ensure_eq!(stage.view().await?, Default::default(), "what refused openings left");
    Ok(())
}

async fn the_shortest_ttl_is_granted(stage: Stage) -> Outcome {
    let request = OpenRequest { ttl: stage.capabilities.ttl_min, ..stage.open_request("a")? };
    let sent = Instant::now();
    let session = opened(&stage.try_open(&request).await?)?;
    stage.wait_for_end(session, Instant::now() + stage.capabilities.ttl_min).await?;
    ensure!(sent.elapsed() >= stage.capabilities.ttl_min, "it ended after {:?}", sent.elapsed());
    Ok(())
}

async fn a_ttl_is_rounded_up_and_reported(stage: Stage) -> Outcome {
    let step = stage.capabilities.ttl_granularity;
    for (node, more) in [("a", Duration::ZERO), ("b", step / 3), ("c", step * 2 / 3)] {
        let asked = stage.ttl_short() + more;
        let Opening::Opened { ttl, .. } =
            stage.try_open(&OpenRequest { ttl: asked, ..stage.open_request(node)? }).await?
        else {
            return Err(Failure::new("a session was expected"));
        };
        // Times are kept in whole microseconds.
        let slack = Duration::from_micros(1);
        ensure!(
            ttl + slack >= asked && ttl <= asked + step + slack,
            "{ttl:?} was granted for {asked:?}, step {step:?}"
        );
    }
    Ok(())
}

async fn a_ttl_longer_than_the_settings_permit_is_refused(stage: Stage) -> Outcome {
    stage.open("a").await?;
    let request = OpenRequest { ttl: stage.ttl() + Duration::from_secs(1), ..stage.open_request("b")? };
    ensure!(request.ttl <= stage.capabilities.ttl_max, "no room for a longer TTL");
    let before = stage.view().await?;
    ensure_eq!(kind(stage.try_open(&request).await)?, ErrorKind::Fatal, "a TTL above session_ttl_max");
    ensure_eq!(stage.view().await?, before, "what a refused opening left");
    let settings = Record::Settings(ClusterSettings::new(request.ttl));
    ensure!(stage.put(RecordKey::Settings, Some(settings), None).await?, "the operator's write was refused");
    opened(&stage.try_open(&request).await?).map(drop)
}

async fn the_first_nodes_settings_are_the_clusters(stage: Stage) -> Outcome {
    let settings = |budget| {
        let mut settings = ClusterSettings::new(stage.ttl());
        settings.move_budget = budget;
        settings
    };
    for (node, own, expected) in [("a", 5, 5), ("b", 9, 5)] {
        let mut info = stage.info(node)?;
        info.settings = settings(own);
        let request = OpenRequest { info: Arc::new(info), ..stage.open_request(node)? };
        let Opening::Opened { settings: told, .. } = stage.try_open(&request).await? else {
            return Err(Failure::new("a session was expected"));
        };
        ensure_eq!(told, settings(expected), "the settings that node {node} is told");
    }
    let mut changed = settings(7);
    changed.policy = rendez_core::placement::Policy::Rendezvous;
    stage.put(RecordKey::Settings, Some(Record::Settings(changed.clone())), None).await?;
    let Opening::Opened { settings: told, .. } = stage.try_open(&stage.open_request("c")?).await? else {
        return Err(Failure::new("a session was expected"));
    };
    ensure_eq!(told, changed, "the settings after an operator has written them");
    Ok(())
}

async fn a_node_that_cannot_be_is_refused(stage: Stage) -> Outcome {
    let mut wrong = Vec::new();
    for (protocol, weight) in [(0, 1), (PROTOCOL_VERSION + 1, 1), (u32::MAX, 1), (1, 0)] {
        let mut info = stage.info("a")?;
        (info.protocol, info.weight) = (protocol, weight);
        wrong.push(info);
    }
    let mut info = stage.info("a")?;
    info.workloads.insert("w".parse().map_err(Failure::new)?, rendez_core::Declared::new(UNITS_MAX + 1));
    wrong.push(info);
    let mut info = stage.info("a")?;
    info.settings.session_ttl_max = Duration::ZERO;
    wrong.push(info);
    for info in wrong {
        let what = format!("{info:?}");
        let request = OpenRequest { info: Arc::new(info), ..stage.open_request("a")? };
        ensure_eq!(kind(stage.try_open(&request).await)?, ErrorKind::Fatal, "{what}");
    }
    let mut request = stage.open_request("a")?;
    request.known.token = rendez_core::FencingToken::new(rendez_core::TOKEN_MAX + 1);
    ensure_eq!(kind(stage.try_open(&request).await)?, ErrorKind::Fatal, "a reported token that cannot be");
    ensure_eq!(stage.view().await?, Default::default(), "what refused openings left");
    Ok(())
}

async fn many_nodes_open_at_once(stage: Stage) -> Outcome {
    let mut opening = tokio::task::JoinSet::new();
    let handles = [stage.again().await?, stage.again().await?, stage.again().await?];
    for number in 0..30 {
        let stage = handles[number % handles.len()].clone();
        opening.spawn(async move { stage.open(&format!("n{number}")).await });
    }
    let mut ids = BTreeSet::new();
    for session in opening.join_all().await {
        ids.insert(session?);
    }
    ensure_eq!(ids.len(), 30, "different sessions");
    ensure_eq!(stage.view().await?.sessions.into_keys().collect::<BTreeSet<_>>(), ids, "the sessions that are listed");
    Ok(())
}
