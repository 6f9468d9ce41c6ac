//! Connections: handles are independent, errors say what to do next, and what is back is used again.

use std::time::Duration;

use rendez_core::{
    AdminRequest, ChangeKind, ErrorKind, Record, RecordKey, SnapshotRequest, StoreError, WorkloadRecord,
};
use tokio::time::Instant;

use super::super::case::{Outcome, cases, ensure, ensure_eq};
use super::super::stage::{NONE, SOON, Stage, View, acquire, kind, opened, operation, release, slot, transfer};
use super::super::{Access, Failure};

cases! { "connections";
    two_handles_are_the_same_store,
    one_handle_serves_many_tasks,
    capabilities_are_possible_and_constant,
    a_server_that_stands_still_leaves_the_outcome_open [Stall],
    an_opening_that_was_not_answered_is_asked_again [Stall],
    a_short_stall_harms_nothing [Stall],
    handles_come_back_after_a_restart [Restart],
    a_watch_ends_or_goes_on_after_a_restart [Restart],
    a_server_that_is_not_there_is_tried_again_later [Unreachable],
    wrong_credentials_are_fatal [WrongCredentials],
    an_unfit_server_is_refused_at_the_start [Unfit],
    the_least_rights_do_everything [LeastRights],
    a_full_server_ends_no_session [Full],
    a_layout_of_another_release_is_refused_and_left_alone [ForeignLayout],
}

async fn two_handles_are_the_same_store(stage: Stage) -> Outcome {
    let other = stage.again().await?;
    let a = stage.open("a").await?;
    let token = other.acquire(a, &slot(0)?, NONE).await?;
    ensure_eq!(other.beat(a).await?.held.count, 1, "what the other handle says of the session");
    ensure_eq!(stage.view().await?, other.view().await?, "what both read");
    stage.done(a, &slot(0)?, token, release()).await?;
    other.close(a).await?;
    ensure_eq!(kind(stage.try_beat(a).await)?, ErrorKind::Lost, "a session that the other handle closed");
    Ok(())
}

async fn one_handle_serves_many_tasks(stage: Stage) -> Outcome {
    let mut acting = tokio::task::JoinSet::new();
    for number in 0..12 {
        let stage = stage.clone();
        acting.spawn(async move {
            let session = stage.open(&format!("n{number}")).await?;
            for unit in 0..8 {
                let at = slot(number * 100 + unit)?;
                let record = stage.done(session, &at, NONE, acquire()).await?;
                ensure!(record.is_held_by(session), "the answer to somebody else's request: {record:?}");
                let held = stage.beat(session).await?.held.count;
                ensure_eq!(held, u64::from(unit) + 1, "what the session of the task holds");
            }
            Outcome::Ok(())
        });
    }
    for ended in acting.join_all().await {
        ended?;
    }
    Ok(())
}

async fn capabilities_are_possible_and_constant(stage: Stage) -> Outcome {
    let capabilities = &stage.capabilities;
    ensure!(!capabilities.name.is_empty(), "a store has a name");
    ensure!(capabilities.changes_max > 0, "a request holds at least one change");
    ensure!(!capabilities.ttl_min.is_zero(), "a session of no time cannot be");
    ensure!(capabilities.ttl_min <= capabilities.ttl_max, "the TTLs: {capabilities:?}");
    ensure!(!capabilities.ttl_granularity.is_zero(), "a TTL is a multiple of something");
    ensure!(
        capabilities.watch || capabilities.due,
        "the end of a session must be heard of in one way: {capabilities:?}"
    );
    stage.open("a").await?;
    ensure_eq!(stage.store.capabilities(), *capabilities, "the capabilities later on");
    ensure_eq!(stage.again().await?.store.capabilities(), *capabilities, "the capabilities of another handle");
    Ok(())
}

/// Asks a server that is stalled: in the end the outcome is unknown, whether the store says so or the case gives up.
async fn unanswered<T>(stage: &Stage, request: impl Future<Output = Result<T, StoreError>>) -> Outcome {
    match tokio::time::timeout(stage.fixture.patience(), request).await {
        // Given up: what becomes of it is unknown.
        Err(_) => Ok(()),
        Ok(Err(error)) => {
            ensure_eq!(error.kind(), ErrorKind::Ambiguous, "the error of a request that may have happened ({error})");
            Ok(())
        }
        Ok(Ok(_)) => Err(Failure::new("a server that stands still has answered")),
    }
}

/// Asks until the server answers, as long as it only cannot be reached.
async fn until_answered<T, F: Future<Output = Result<T, StoreError>>>(
    request: impl Fn() -> F,
) -> Result<T, StoreError> {
    let started = Instant::now();
    loop {
        match request().await {
            Err(error)
                if matches!(error.kind(), ErrorKind::Transient | ErrorKind::Ambiguous) && started.elapsed() < SOON =>
            {
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
            answer => return answer,
        }
    }
}

async fn a_server_that_stands_still_leaves_the_outcome_open(stage: Stage) -> Outcome {
    let (a, one, two) = (stage.open("a").await?, slot(1)?, slot(2)?);
    let token = stage.acquire(a, &two, NONE).await?;
    let take = ChangeKind::Acquire { operation: operation() };
    stage.server().await?.stall().await?;
    unanswered(&stage, stage.try_change(a, &one, NONE, take.clone())).await?;
    stage.server().await?.resume().await?;
    let record = until_answered(|| stage.try_change(a, &one, NONE, take.clone())).await?;
    let record = super::super::stage::done(record)?;
    ensure_eq!(stage.beat(a).await?.held.count, 2, "what the session holds after the retry");
    // Once more, for a request whose retry meets a later lease.
    stage.server().await?.stall().await?;
    unanswered(&stage, stage.try_change(a, &two, token, release())).await?;
    stage.server().await?.resume().await?;
    until_answered(|| stage.try_change(a, &two, token, release())).await?;
    stage.acquire(a, &two, token).await?;
    stage.refused(a, &two, token, release(), rendez_core::Conflict::Token).await?;
    ensure_eq!(stage.record(&one).await?, Some(record), "the slot whose request was repeated");
    Ok(())
}

async fn an_opening_that_was_not_answered_is_asked_again(stage: Stage) -> Outcome {
    stage.open("b").await?;
    let request = stage.open_request("a")?;
    stage.server().await?.stall().await?;
    unanswered(&stage, stage.try_open(&request)).await?;
    stage.server().await?.resume().await?;
    let session = opened(&until_answered(|| stage.try_open(&request)).await?)?;
    stage.beat(session).await?;
    ensure_eq!(stage.view().await?.sessions.len(), 2, "how many sessions there are");
    Ok(())
}

async fn a_short_stall_harms_nothing(stage: Stage) -> Outcome {
    let a = stage.open("a").await?;
    let before = stage.view().await?;
    let waiting = {
        let stage = stage.clone();
        async move { stage.try_beat(a).await }
    };
    stage.server().await?.stall().await?;
    let asked = tokio::spawn(waiting);
    tokio::time::sleep(stage.fixture.patience() / 20).await;
    stage.server().await?.resume().await?;
    let answer = asked.await.map_err(Failure::new)?;
    if let Err(error) = &answer {
        ensure_eq!(error.kind(), ErrorKind::Ambiguous, "the error of a request during a short stall ({error})");
    }
    until_answered(|| stage.try_beat(a)).await?;
    ensure_eq!(stage.view().await?, before, "the records after a short stall");
    Ok(())
}

async fn handles_come_back_after_a_restart(stage: Stage) -> Outcome {
    let other = stage.again().await?;
    let a = stage.open("a").await?;
    stage.acquire(a, &slot(0)?, NONE).await?;
    other.beat(a).await?;
    for round in 0..3 {
        stage.server().await?.restart().await?;
        for handle in [&stage, &other] {
            // Alive or lost; but the handle answers, without being made anew.
            let answer = until_answered(|| handle.try_beat(a)).await;
            if let Err(error) = answer {
                ensure_eq!(error.kind(), ErrorKind::Lost, "the error after restart {round} ({error})");
            }
        }
    }
    Ok(())
}

async fn a_watch_ends_or_goes_on_after_a_restart(stage: Stage) -> Outcome {
    let Some(mut watch) = stage.watch().await? else { return Ok(()) };
    stage.open("a").await?;
    stage.server().await?.restart().await?;
    // Told within a bound: either the watch ends, or it brings the hints of what happens from now on.
    let told = tokio::time::timeout(SOON, async {
        loop {
            let hint = tokio::time::timeout(Duration::from_millis(200), watch.next()).await;
            if let Ok(hint) = hint {
                return Outcome::Ok(hint);
            }
            let key = RecordKey::Workload("w".parse().map_err(Failure::new)?);
            let record = Some(Record::Workload(WorkloadRecord::new(fastrand::u32(0..1000))));
            let request = AdminRequest::Put { key, record, expect: None };
            until_answered(|| stage.store.administer(&stage.cluster, &request)).await?;
        }
    });
    told.await.map_err(|_| Failure::new("the watch neither ends nor brings hints after a restart"))??;
    // Another one works.
    let fresh = until_answered(|| stage.store.watch(&stage.cluster)).await?;
    drop(fresh);
    Ok(())
}

async fn a_server_that_is_not_there_is_tried_again_later(stage: Stage) -> Outcome {
    let started = Instant::now();
    let error = refusal(&stage, Access::Unreachable).await?;
    ensure_eq!(error.kind(), ErrorKind::Transient, "nobody listens ({error})");
    ensure!(started.elapsed() < SOON, "it took {:?} to say so", started.elapsed());
    Ok(())
}

/// The error of connecting, or of the first request where connecting is lazy.
async fn refusal(stage: &Stage, access: Access) -> Outcome<StoreError> {
    let connected = stage.server().await?.connect(access).await;
    let store = match connected {
        Err(error) => return Ok(error),
        Ok(store) => stage.through(store),
    };
    match store.try_open(&store.open_request("z")?).await {
        Err(error) => Ok(error),
        Ok(came) => Err(Failure::new(format_args!("{access:?} gets in: {came:?}"))),
    }
}

async fn wrong_credentials_are_fatal(stage: Stage) -> Outcome {
    let a = stage.open("a").await?;
    for _ in 0..3 {
        let started = Instant::now();
        let error = refusal(&stage, Access::WrongCredentials).await?;
        ensure_eq!(error.kind(), ErrorKind::Fatal, "wrong credentials ({error})");
        // Not after many tries: that would lock users out.
        ensure!(started.elapsed() < Duration::from_secs(5), "it took {:?} to say so", started.elapsed());
    }
    stage.beat(a).await?;
    ensure_eq!(stage.view().await?.sessions.len(), 1, "the sessions");
    Ok(())
}

async fn an_unfit_server_is_refused_at_the_start(stage: Stage) -> Outcome {
    stage.server().await?.make_unfit().await?;
    let connected = stage.server().await?.connect(Access::Full).await;
    match connected {
        Err(error) => {
            ensure_eq!(error.kind(), ErrorKind::Fatal, "a server that cannot hold leases ({error})");
            ensure!(!error.message().is_empty(), "the message says what is wrong");
            Ok(())
        }
        Ok(_) => Err(Failure::new("a server that cannot hold leases was accepted")),
    }
}

async fn the_least_rights_do_everything(stage: Stage) -> Outcome {
    let store = stage.server().await?.connect(Access::LeastRights).await?;
    let stage = stage.through(store);
    let (a, b, at) = (stage.open("a").await?, stage.open("b").await?, slot(0)?);
    drop(stage.watch().await?);
    let token = stage.acquire(a, &at, NONE).await?;
    let offer = stage.offered(a, b, &at, token).await?;
    let token = stage.done(a, &at, token, transfer(offer)).await?.token;
    let checkpoint = bytes::Bytes::from_static(b"x");
    stage.done(b, &at, token, ChangeKind::SaveCheckpoint { checkpoint }).await?;
    stage.done(b, &at, token, release()).await?;
    let key = RecordKey::Workload(at.workload.clone());
    let (stamp, mut view) = stage.snapshot(Some(a)).await?;
    stage.put(key.clone(), Some(Record::Workload(WorkloadRecord::new(1))), None).await?;
    stage.put(key, None, None).await?;
    let token = stage.acquire(a, &slot(1)?, NONE).await?;
    stage.administer(&AdminRequest::ForceRelease { slot: slot(1)?, token, now: true }).await?;
    let c = stage.open_short("c").await?;
    stage.wait_for_end(c, Instant::now() + stage.ttl_short()).await?;
    stage.sync(a, &stamp, 512, &mut view).await?;
    ensure_eq!(view, stage.view().await?, "what the changes tell, and what is");
    stage.close(a).await
}

async fn a_full_server_ends_no_session(stage: Stage) -> Outcome {
    let (a, b, at) = (stage.open("a").await?, stage.open("b").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    stage.server().await?.fill().await?;
    stage.beat(a).await?;
    let error = match stage.try_open(&stage.open_request("c")?).await {
        Err(error) => error,
        Ok(came) => return Err(Failure::new(format_args!("a full server was to refuse a session, {came:?} came"))),
    };
    ensure_eq!(error.kind(), ErrorKind::Throttled, "the error of a full server ({error})");
    stage.beat(b).await?;
    // What makes room works.
    stage.done(a, &at, token, release()).await?;
    stage.close(b).await
}

async fn a_layout_of_another_release_is_refused_and_left_alone(stage: Stage) -> Outcome {
    let a = stage.open("a").await?;
    stage.acquire(a, &slot(0)?, NONE).await?;
    let cluster = stage.cluster.clone();
    stage.server().await?.write_foreign_layout(&cluster).await?;
    for stage in [stage.clone(), stage.again().await?] {
        let request = SnapshotRequest { known: stage.known.clone(), session: None, cursor: None };
        let put = AdminRequest::Put { key: RecordKey::Settings, record: None, expect: None };
        for (what, came) in [
            ("an opening", kind(stage.try_open(&stage.open_request("b")?).await)?),
            ("a heartbeat", kind(stage.try_beat(a).await)?),
            ("a change", kind(stage.try_change(a, &slot(1)?, NONE, acquire()).await)?),
            ("a snapshot", kind(stage.store.snapshot(&stage.cluster, &request).await)?),
            ("an operator's write", kind(stage.store.administer(&stage.cluster, &put).await)?),
        ] {
            ensure_eq!(came, ErrorKind::Fatal, "{what} in data of another release");
        }
    }
    // Other clusters are not concerned.
    let other = stage.elsewhere("another".parse().map_err(Failure::new)?);
    ensure_eq!(other.view().await?, View::default(), "the records of another cluster");
    Ok(())
}
