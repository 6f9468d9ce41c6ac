//! Retries: the reply was lost, the request is sent again, and the effect is that of one.

use std::sync::Arc;
use std::time::Duration;

use rendez_core::{
    AdminRequest, ChangeKind, ChangeOutcome, HeartbeatRequest, Known, NodeWish, OpenRequest, Record, RecordKey,
    Revision, SessionId, Slot, WorkloadRecord,
};

use super::super::Failure;
use super::super::case::{Outcome, cases, ensure, ensure_eq};
use super::super::stage::{NONE, Stage, View, acquire, offer, operation, release, slot, slot_of, transfer};

cases! { "retries";
    of_an_opening,
    of_a_replacing_opening,
    of_a_heartbeat,
    of_a_close,
    of_an_acquisition,
    of_a_release,
    of_an_offer,
    of_a_withdrawal,
    of_an_acceptance,
    of_a_refusal,
    of_a_transfer,
    of_a_checkpoint,
    of_an_operators_record,
    of_a_deletion,
    of_a_forced_release,
    of_a_whole_batch,
}

/// The world after a request, and after its retry through another connection: the same, but for the clock.
async fn same(stage: &Stage, before: &(Revision, View)) -> Outcome {
    let (stamp, view) = stage.snapshot(None).await?;
    ensure_eq!(view, before.1, "the records after the retry");
    ensure_eq!(stamp.revision, before.0, "the revision after the retry");
    Ok(())
}

async fn world(stage: &Stage) -> Outcome<(Revision, View)> {
    let (stamp, view) = stage.snapshot(None).await?;
    Ok((stamp.revision, view))
}

/// Makes a change twice: both are done, and the second one changes nothing.
async fn twice(
    stage: &Stage,
    session: SessionId,
    slot: &Slot,
    token: rendez_core::FencingToken,
    kind: ChangeKind,
) -> Outcome {
    let first = stage.change(session, slot, token, kind.clone()).await?;
    ensure!(matches!(first, ChangeOutcome::Done(_)), "the request was to be done, {first:?} came");
    let before = world(stage).await?;
    let held = stage.beat(session).await?.held;
    let second = stage.again().await?.change(session, slot, token, kind).await?;
    ensure_eq!(second, first, "the answer to the retry");
    same(stage, &before).await?;
    ensure_eq!(stage.beat(session).await?.held, held, "what the session holds after the retry");
    Ok(())
}

async fn of_an_opening(stage: Stage) -> Outcome {
    let request = stage.open_request("a")?;
    stage.try_open(&request).await?;
    let before = world(&stage).await?;
    for _ in 0..2 {
        let opening = stage.again().await?.try_open(&request).await?;
        let session = super::super::stage::opened(&opening)?;
        ensure!(before.1.sessions.contains_key(&session), "the retry has opened another session");
    }
    same(&stage, &before).await
}

async fn of_a_replacing_opening(stage: Stage) -> Outcome {
    let first = stage.open_request("a")?;
    let session = super::super::stage::opened(&stage.try_open(&first).await?)?;
    let request = OpenRequest { operation: operation(), replaces: Some(session), ..first };
    let fresh = super::super::stage::opened(&stage.try_open(&request).await?)?;
    let before = world(&stage).await?;
    let retry = super::super::stage::opened(&stage.again().await?.try_open(&request).await?)?;
    ensure_eq!(retry, fresh, "the session that the retry answers");
    same(&stage, &before).await
}

async fn of_a_heartbeat(stage: Stage) -> Outcome {
    let a = stage.open("a").await?;
    let mut info = stage.info("a")?;
    info.weight = 5;
    let request = HeartbeatRequest { info: Some(Arc::new(info)), ..stage.beat_request(a) };
    stage.store.heartbeat(&stage.cluster, &request).await?;
    let before = world(&stage).await?;
    stage.again().await?.store.heartbeat(&stage.cluster, &request).await?;
    same(&stage, &before).await
}

async fn of_a_close(stage: Stage) -> Outcome {
    let a = stage.open("a").await?;
    stage.acquire(a, &slot(0)?, NONE).await?;
    stage.close(a).await?;
    let before = world(&stage).await?;
    stage.again().await?.close(a).await?;
    same(&stage, &before).await
}

async fn of_an_acquisition(stage: Stage) -> Outcome {
    let a = stage.open("a").await?;
    twice(&stage, a, &slot(0)?, NONE, acquire()).await
}

async fn of_a_release(stage: Stage) -> Outcome {
    let (a, at) = (stage.open("a").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    let checkpoint = Some(bytes::Bytes::from_static(b"left"));
    let kind = ChangeKind::Release { checkpoint, refuse_for: Some(Duration::from_secs(60)) };
    let first = stage.done(a, &at, token, kind.clone()).await?;
    let before = world(&stage).await?;
    let second = stage.again().await?.done(a, &at, token, kind).await?;
    ensure_eq!((second.holder.clone(), second.refusals.clone()), (None, first.refusals), "the answer to the retry");
    same(&stage, &before).await
}

async fn of_an_offer(stage: Stage) -> Outcome {
    let (a, b, at) = (stage.open("a").await?, stage.open("b").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    twice(&stage, a, &at, token, offer(operation(), b, stage.ttl())).await
}

async fn of_a_withdrawal(stage: Stage) -> Outcome {
    let (a, b, at) = (stage.open("a").await?, stage.open("b").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    let id = stage.offered(a, b, &at, token).await?;
    twice(&stage, a, &at, token, ChangeKind::Withdraw { offer: id }).await
}

async fn of_an_acceptance(stage: Stage) -> Outcome {
    let (a, b, at) = (stage.open("a").await?, stage.open("b").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    let id = operation();
    stage.done(a, &at, token, offer(id, b, stage.ttl())).await?;
    twice(&stage, b, &at, token, ChangeKind::Accept { offer: id }).await
}

async fn of_a_refusal(stage: Stage) -> Outcome {
    let (a, b, at) = (stage.open("a").await?, stage.open("b").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    let id = operation();
    stage.done(a, &at, token, offer(id, b, stage.ttl())).await?;
    let kind = ChangeKind::Refuse { offer: id, refuse_for: Duration::from_secs(60) };
    stage.done(b, &at, token, kind.clone()).await?;
    // The offer is gone, and the retry is told so: it changes nothing.
    let before = world(&stage).await?;
    stage.again().await?.refused(b, &at, token, kind, rendez_core::Conflict::Offer).await?;
    same(&stage, &before).await
}

async fn of_a_transfer(stage: Stage) -> Outcome {
    let (a, b, at) = (stage.open("a").await?, stage.open("b").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    let id = stage.offered(a, b, &at, token).await?;
    twice(&stage, a, &at, token, transfer(id)).await?;
    ensure_eq!(stage.beat(b).await?.held.count, 1, "what the receiver holds");
    Ok(())
}

async fn of_a_checkpoint(stage: Stage) -> Outcome {
    let (a, at) = (stage.open("a").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    let checkpoint = bytes::Bytes::from_static(b"so far");
    twice(&stage, a, &at, token, ChangeKind::SaveCheckpoint { checkpoint }).await
}

async fn of_an_operators_record(stage: Stage) -> Outcome {
    stage.open("a").await?;
    let key = RecordKey::Node("a".parse().map_err(Failure::new)?);
    let record = Some(Record::Node(NodeWish::default()));
    ensure!(stage.put(key.clone(), record.clone(), None).await?, "the write was refused");
    let before = world(&stage).await?;
    ensure!(stage.again().await?.put(key.clone(), record.clone(), None).await?, "the retry was refused");
    same(&stage, &before).await?;
    // One that was compared is told that it is so no more; nothing changes.
    stage.again().await?.put(key, record, Some(Revision(0))).await?;
    same(&stage, &before).await
}

async fn of_a_deletion(stage: Stage) -> Outcome {
    let (a, at) = (stage.open("a").await?, slot_of("jobs", 0)?);
    let key = RecordKey::Workload(at.workload.clone());
    stage.put(key.clone(), Some(Record::Workload(WorkloadRecord::new(1))), None).await?;
    let token = stage.acquire(a, &at, NONE).await?;
    stage.done(a, &at, token, release()).await?;
    ensure!(stage.put(key.clone(), None, None).await?, "the deletion was refused");
    let before = world(&stage).await?;
    ensure!(stage.again().await?.put(key, None, None).await?, "the retry was refused");
    same(&stage, &before).await
}

async fn of_a_forced_release(stage: Stage) -> Outcome {
    let a = stage.open("a").await?;
    for (unit, now) in [(0, false), (1, true)] {
        let at = slot(unit)?;
        let token = stage.acquire(a, &at, NONE).await?;
        let request = AdminRequest::ForceRelease { slot: at, token, now };
        ensure!(stage.administer(&request).await?, "the operator was refused");
        let before = world(&stage).await?;
        ensure!(stage.again().await?.administer(&request).await?, "the retry was refused");
        same(&stage, &before).await?;
    }
    Ok(())
}

async fn of_a_whole_batch(stage: Stage) -> Outcome {
    let (a, b) = (stage.open("a").await?, stage.open("b").await?);
    let (one, two, three) = (slot(1)?, slot(2)?, slot(3)?);
    let first = stage.acquire(a, &one, NONE).await?;
    let second = stage.acquire(a, &two, NONE).await?;
    let id = stage.offered(a, b, &two, second).await?;
    let batch = vec![
        rendez_core::SlotChange { slot: one, token: first, kind: release() },
        rendez_core::SlotChange { slot: two, token: second, kind: transfer(id) },
        rendez_core::SlotChange { slot: three, token: NONE, kind: acquire() },
    ];
    stage.changes(a, batch.clone()).await?;
    let before = world(&stage).await?;
    let mut again = stage.again().await?;
    // A retry may know more by now.
    again.known = Known { session_ttl_max: stage.ttl(), ..Known::default() };
    let outcomes = again.changes(a, batch).await?.outcomes;
    ensure!(outcomes.iter().all(|outcome| matches!(outcome, ChangeOutcome::Done(_))), "the retry: {outcomes:?}");
    same(&stage, &before).await
}
