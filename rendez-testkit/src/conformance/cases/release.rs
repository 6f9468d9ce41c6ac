//! Releasing: the holder's own, once, and never a later lease.

use std::time::Duration;

use rendez_core::{ChangeKind, ChangeOutcome, Conflict, ErrorKind, FencingToken, REFUSALS_MAX};

use super::super::case::{Outcome, cases, ensure, ensure_eq};
use super::super::stage::{NONE, Stage, kind, offer, operation, release, slot};

cases! { "release";
    the_holder_lets_go,
    releasing_twice_changes_nothing,
    a_stale_token_releases_nothing,
    somebody_elses_slot_is_not_released,
    a_release_that_was_delayed_until_after_the_next_grant_does_nothing,
    a_slot_without_a_record_counts_as_released,
    a_dead_session_releases_nothing,
    a_release_ends_the_offer,
    a_refusal_is_kept_for_its_time,
    refusals_are_bounded,
}

async fn the_holder_lets_go(stage: Stage) -> Outcome {
    let (a, at) = (stage.open("a").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    let record = stage.done(a, &at, token, release()).await?;
    ensure_eq!((record.holder.clone(), record.token), (None, token), "holder and token after a release");
    ensure!(record.freed_at.is_some_and(|freed| freed >= record.taken_at), "when it was freed: {record:?}");
    ensure_eq!(stage.record(&at).await?, Some(record), "what others read");
    ensure_eq!(stage.beat(a).await?.held, rendez_core::Held::default(), "what the session holds");
    Ok(())
}

async fn releasing_twice_changes_nothing(stage: Stage) -> Outcome {
    let (a, b, at) = (stage.open("a").await?, stage.open("b").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    let first = stage.done(a, &at, token, release()).await?;
    let second = stage.again().await?.done(a, &at, token, release()).await?;
    ensure_eq!(second, first, "the record after the second release");
    ensure_eq!(stage.done(b, &at, token, release()).await?, first, "a free slot counts as released, whoever asks");
    Ok(())
}

async fn a_stale_token_releases_nothing(stage: Stage) -> Outcome {
    let (a, at) = (stage.open("a").await?, slot(0)?);
    let first = stage.acquire(a, &at, NONE).await?;
    let second = stage.acquire(a, &at, first).await?;
    for stale in [NONE, first, FencingToken::new(second.get() + 1)] {
        stage.refused(a, &at, stale, release(), Conflict::Token).await?;
    }
    ensure_eq!(stage.beat(a).await?.held.count, 1, "what the session holds");
    Ok(())
}

async fn somebody_elses_slot_is_not_released(stage: Stage) -> Outcome {
    let (a, b, at) = (stage.open("a").await?, stage.open("b").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    stage.refused(b, &at, token, release(), Conflict::NotHolder).await
}

async fn a_release_that_was_delayed_until_after_the_next_grant_does_nothing(stage: Stage) -> Outcome {
    let (a, b, at) = (stage.open("a").await?, stage.open("b").await?, slot(0)?);
    let first = stage.acquire(a, &at, NONE).await?;
    stage.done(a, &at, first, release()).await?;
    // The same session has it again; then another one.
    let second = stage.acquire(a, &at, first).await?;
    stage.refused(a, &at, first, release(), Conflict::Token).await?;
    stage.done(a, &at, second, release()).await?;
    stage.acquire(b, &at, second).await?;
    stage.refused(a, &at, first, release(), Conflict::Token).await?;
    stage.refused(a, &at, second, release(), Conflict::Token).await
}

async fn a_slot_without_a_record_counts_as_released(stage: Stage) -> Outcome {
    let (a, at) = (stage.open("a").await?, slot(0)?);
    ensure_eq!(stage.change(a, &at, NONE, release()).await?, ChangeOutcome::Done(None), "a release of nothing");
    stage.refused(a, &at, FencingToken::new(7), release(), Conflict::Token).await?;
    ensure_eq!(stage.record(&at).await?, None, "the slot's record");
    Ok(())
}

async fn a_dead_session_releases_nothing(stage: Stage) -> Outcome {
    let (a, at) = (stage.open("a").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    stage.close(a).await?;
    let before = stage.record(&at).await?;
    ensure_eq!(kind(stage.try_change(a, &at, token, release()).await)?, ErrorKind::Lost, "a dead session's release");
    ensure_eq!(stage.record(&at).await?, before, "the record after it");
    Ok(())
}

async fn a_release_ends_the_offer(stage: Stage) -> Outcome {
    let (a, b, at) = (stage.open("a").await?, stage.open("b").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    let id = operation();
    stage.done(a, &at, token, offer(id, b, stage.ttl())).await?;
    ensure_eq!(stage.done(a, &at, token, release()).await?.offer, None, "the offer after a release");
    stage.refused(b, &at, token, ChangeKind::Accept { offer: id }, Conflict::Offer).await
}

async fn a_refusal_is_kept_for_its_time(stage: Stage) -> Outcome {
    let (a, at) = (stage.open("a").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    let refuse = |millis| ChangeKind::Release { checkpoint: None, refuse_for: Some(Duration::from_millis(millis)) };
    let record = stage.done(a, &at, token, refuse(60_000)).await?;
    let refused: Vec<_> = record.refusals.iter().map(|refused| refused.node.as_str().to_owned()).collect();
    ensure_eq!(refused, ["a"], "who has refused");
    let lasts = record.refusals[0].until.since(record.freed_at.unwrap_or_default());
    ensure!(lasts.abs_diff(Duration::from_secs(60)) < Duration::from_millis(2), "the refusal lasts {lasts:?}");
    // It survives a grant, and each node has one.
    let record = stage.done(a, &at, token, super::super::stage::acquire()).await?;
    ensure_eq!(record.refusals.len(), 1, "the refusals after a grant");
    let record = stage.done(a, &at, record.token, refuse(1)).await?;
    ensure_eq!(record.refusals.len(), 1, "the refusals of a node");
    tokio::time::sleep(Duration::from_millis(20)).await;
    let record = stage.done(a, &at, record.token, super::super::stage::acquire()).await?;
    ensure_eq!(record.refusals, vec![], "the refusals after their time, at the next change");
    Ok(())
}

async fn refusals_are_bounded(stage: Stage) -> Outcome {
    let at = slot(0)?;
    let mut token = NONE;
    for number in 0..REFUSALS_MAX + 2 {
        let session = stage.open(&format!("n{number}")).await?;
        token = stage.acquire(session, &at, token).await?;
        // The second one ends first of all.
        let seconds = if number == 1 { 100 } else { 1000 + number as u64 };
        let refuse_for = Some(Duration::from_secs(seconds));
        stage.done(session, &at, token, ChangeKind::Release { checkpoint: None, refuse_for }).await?;
    }
    let record = stage.record(&at).await?;
    let nodes: Vec<_> = record.iter().flat_map(|slot| &slot.refusals).map(|refused| refused.node.as_str()).collect();
    ensure_eq!(nodes.len(), REFUSALS_MAX, "how many refusals are kept");
    ensure!(!nodes.contains(&"n0") && !nodes.contains(&"n1"), "those that end first give way: {nodes:?}");
    Ok(())
}
