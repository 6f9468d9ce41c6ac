//! Tokens: they rise with every grant of a slot, for ever.

use rendez_core::{AdminRequest, ErrorKind, FencingToken, Known, Record, RecordKey, TOKEN_MAX, WorkloadRecord};
use tokio::time::Instant;

use super::super::case::{Outcome, cases, ensure, ensure_eq};
use super::super::stage::{NONE, Stage, acquire, kind, release, slot, slot_of, transfer};

cases! { "tokens";
    they_rise_across_everything_that_happens_to_a_slot,
    they_rise_across_the_end_of_a_session,
    they_rise_across_the_deletion_of_the_workload,
    they_rise_above_what_nodes_report,
    a_reported_token_that_cannot_be_is_refused,
    the_stamp_holds_the_largest,
    they_rise_for_concurrent_grants,
}

async fn they_rise_across_everything_that_happens_to_a_slot(stage: Stage) -> Outcome {
    let (a, b, at) = (stage.open("a").await?, stage.open("b").await?, slot(0)?);
    let mut seen = vec![NONE];
    let mut token = NONE;
    for _ in 0..3 {
        token = stage.acquire(a, &at, token).await?;
        seen.push(token);
        token = stage.acquire(a, &at, token).await?;
        seen.push(token);
        let id = stage.offered(a, b, &at, token).await?;
        token = stage.done(a, &at, token, transfer(id)).await?.token;
        seen.push(token);
        stage.done(b, &at, token, release()).await?;
        token = stage.acquire(b, &at, token).await?;
        seen.push(token);
        let force = AdminRequest::ForceRelease { slot: at.clone(), token, now: true };
        ensure!(stage.administer(&force).await?, "the operator was refused");
    }
    ensure!(seen.is_sorted_by(|before, after| before < after), "tokens rise with every grant: {seen:?}");
    ensure!(seen.iter().all(|token| token.get() <= TOKEN_MAX), "tokens stay below 2^53: {seen:?}");
    Ok(())
}

async fn they_rise_across_the_end_of_a_session(stage: Stage) -> Outcome {
    let at = slot(0)?;
    let b = stage.open("b").await?;
    let (a, first) = stage.open_short_with("a", &at).await?;
    stage.wait_for_end(a, Instant::now() + stage.ttl_short()).await?;
    let second = stage.acquire(b, &at, first).await?;
    ensure!(second > first, "{first}, then {second}");
    stage.close(b).await?;
    let c = stage.open("c").await?;
    let third = stage.acquire(c, &at, second).await?;
    ensure!(third > second, "{second}, then {third}");
    Ok(())
}

async fn they_rise_across_the_deletion_of_the_workload(stage: Stage) -> Outcome {
    let (a, at) = (stage.open("a").await?, slot_of("jobs", 3)?);
    let key = RecordKey::Workload(at.workload.clone());
    let mut highest = NONE;
    for _ in 0..3 {
        stage.put(key.clone(), Some(Record::Workload(WorkloadRecord::new(4))), None).await?;
        let token = stage.acquire(a, &at, NONE).await?;
        ensure!(token > highest, "{highest} before the workload was deleted, {token} after it");
        highest = stage.acquire(a, &at, token).await?;
        stage.done(a, &at, highest, release()).await?;
        ensure!(stage.put(key.clone(), None, None).await?, "the deletion was refused");
        ensure_eq!(stage.record(&at).await?, None, "the slot of a deleted workload");
    }
    Ok(())
}

async fn they_rise_above_what_nodes_report(stage: Stage) -> Outcome {
    let (a, one, two) = (stage.open("a").await?, slot(0)?, slot(1)?);
    let first = stage.acquire(a, &one, NONE).await?;
    let reported = FencingToken::new(first.get() + 1_000_000_000);
    let mut knowing = stage.clone();
    knowing.known = Known { token: reported, ..Known::default() };
    knowing.beat(a).await?;
    let second = stage.acquire(a, &two, NONE).await?;
    ensure!(second > reported, "a node reports {reported}, and {second} is granted");
    let third = stage.acquire(a, &one, first).await?;
    ensure!(third > reported, "a node reports {reported}, and {third} is granted");
    Ok(())
}

async fn a_reported_token_that_cannot_be_is_refused(stage: Stage) -> Outcome {
    let (a, at) = (stage.open("a").await?, slot(0)?);
    let mut lying = stage.clone();
    for token in [TOKEN_MAX + 1, u64::MAX] {
        lying.known.token = FencingToken::new(token);
        ensure_eq!(kind(lying.try_beat(a).await)?, ErrorKind::Fatal, "a heartbeat that reports {token}");
        let came = kind(lying.try_change(a, &at, NONE, acquire()).await)?;
        ensure_eq!(came, ErrorKind::Fatal, "a change that reports {token}");
    }
    ensure_eq!(stage.record(&at).await?, None, "the slot's record");
    stage.acquire(a, &at, NONE).await.map(drop)
}

async fn the_stamp_holds_the_largest(stage: Stage) -> Outcome {
    let (a, b) = (stage.open("a").await?, stage.open("b").await?);
    for unit in 0..3 {
        let token = stage.acquire(a, &slot(unit)?, NONE).await?;
        let stamp = stage.beat(b).await?.stamp;
        ensure!(stamp.token >= token && stamp.token.get() <= TOKEN_MAX, "{token} was granted, the stamp is {stamp:?}");
        ensure!(stage.snapshot(None).await?.0.token >= token, "a snapshot's stamp lags behind a grant");
    }
    Ok(())
}

async fn they_rise_for_concurrent_grants(stage: Stage) -> Outcome {
    let mut granting = tokio::task::JoinSet::new();
    for number in 0..4_u32 {
        let stage = stage.again().await?;
        let session = stage.open(&format!("n{number}")).await?;
        granting.spawn(async move {
            let mut seen = Vec::new();
            for unit in 0..6 {
                let at = slot(number * 100 + unit)?;
                let first = stage.acquire(session, &at, NONE).await?;
                seen.extend([(at.clone(), first), (at.clone(), stage.acquire(session, &at, first).await?)]);
            }
            Outcome::Ok(seen)
        });
    }
    for seen in granting.join_all().await {
        let seen = seen?;
        for pair in seen.chunks(2) {
            ensure!(pair[0].1 < pair[1].1, "tokens of one slot: {pair:?}");
        }
    }
    Ok(())
}
