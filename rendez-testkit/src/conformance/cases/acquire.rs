//! Acquiring: whoever gets a slot, and with which token.

use rendez_core::{ChangeKind, ChangeOutcome, Conflict, ErrorKind};

use super::super::case::{Outcome, cases, ensure, ensure_eq};
use super::super::stage::{NONE, Stage, acquire, kind, operation, release, slot};

cases! { "acquire";
    a_free_slot_is_granted,
    a_slot_that_is_held_is_refused_and_nothing_changes,
    the_retry_of_an_acquisition_answers_the_same_grant,
    the_retry_of_a_lost_race_takes_nothing,
    a_new_acquisition_of_ones_own_slot_raises_the_token,
    a_stale_token_takes_nothing,
    a_dead_session_gets_nothing,
    an_orphan_is_taken,
    a_released_slot_is_taken_with_its_token_only,
    of_many_at_once_one_wins,
}

async fn a_free_slot_is_granted(stage: Stage) -> Outcome {
    let (a, at) = (stage.open("a").await?, slot(0)?);
    let id = operation();
    let record = stage.done(a, &at, NONE, ChangeKind::Acquire { operation: id }).await?;
    ensure!(record.is_held_by(a), "the record after the grant names another holder: {record:?}");
    ensure_eq!(record.granted_by, id, "the request that made the grant");
    ensure!(record.token > NONE, "a grant has a token");
    let holder = record.holder.as_ref().map(|holder| holder.node.as_str().to_owned());
    ensure_eq!(holder.as_deref(), Some("a"), "the holder's node");
    ensure_eq!((record.freed_at, record.offer.clone(), record.force), (None, None, None), "what a fresh grant has not");
    ensure_eq!(stage.record(&at).await?, Some(record), "what others read");
    ensure_eq!(stage.beat(a).await?.held.count, 1, "what the session holds");
    Ok(())
}

async fn a_slot_that_is_held_is_refused_and_nothing_changes(stage: Stage) -> Outcome {
    let (a, b, at) = (stage.open("a").await?, stage.open("b").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    stage.refused(b, &at, token, acquire(), Conflict::Held).await?;
    stage.refused(b, &at, NONE, acquire(), Conflict::Token).await?;
    ensure_eq!(stage.beat(a).await?.held.count, 1, "what the holder holds");
    ensure_eq!(stage.beat(b).await?.held.count, 0, "what the other one holds");
    Ok(())
}

async fn the_retry_of_an_acquisition_answers_the_same_grant(stage: Stage) -> Outcome {
    let (a, at) = (stage.open("a").await?, slot(0)?);
    let request = ChangeKind::Acquire { operation: operation() };
    let first = stage.done(a, &at, NONE, request.clone()).await?;
    // Through another connection, as after a lost one, and whatever token it names.
    let other = stage.again().await?;
    ensure_eq!(other.done(a, &at, NONE, request.clone()).await?, first, "the answer to the retry");
    ensure_eq!(other.done(a, &at, first.token, request).await?, first, "the answer to the retry");
    ensure_eq!(stage.beat(a).await?.held.count, 1, "what the session holds");
    Ok(())
}

async fn the_retry_of_a_lost_race_takes_nothing(stage: Stage) -> Outcome {
    let (a, b, at) = (stage.open("a").await?, stage.open("b").await?, slot(0)?);
    let late = ChangeKind::Acquire { operation: operation() };
    let token = stage.done(a, &at, NONE, late.clone()).await?.token;
    stage.done(a, &at, token, release()).await?;
    // The request that was granted before comes once more, when the slot is free, and when somebody else has it.
    stage.refused(a, &at, NONE, late.clone(), Conflict::Token).await?;
    let token = stage.acquire(b, &at, token).await?;
    stage.refused(a, &at, NONE, late.clone(), Conflict::Token).await?;
    stage.refused(a, &at, token, late, Conflict::Held).await
}

async fn a_new_acquisition_of_ones_own_slot_raises_the_token(stage: Stage) -> Outcome {
    let (a, at) = (stage.open("a").await?, slot(0)?);
    let first = stage.acquire(a, &at, NONE).await?;
    let second = stage.acquire(a, &at, first).await?;
    ensure!(second > first, "a new request for one's own slot must raise the token: {first}, then {second}");
    let held = stage.beat(a).await?.held;
    let mut expected = rendez_core::Held::default();
    expected.add(&at, second);
    ensure_eq!(held, expected, "count and digest after the second grant");
    Ok(())
}

async fn a_stale_token_takes_nothing(stage: Stage) -> Outcome {
    let (a, b, at) = (stage.open("a").await?, stage.open("b").await?, slot(0)?);
    let first = stage.acquire(a, &at, NONE).await?;
    stage.done(a, &at, first, release()).await?;
    let second = stage.acquire(b, &at, first).await?;
    stage.done(b, &at, second, release()).await?;
    for stale in [NONE, first] {
        stage.refused(a, &at, stale, acquire(), Conflict::Token).await?;
    }
    let future = rendez_core::FencingToken::new(second.get() + 1);
    stage.refused(a, &at, future, acquire(), Conflict::Token).await
}

async fn a_dead_session_gets_nothing(stage: Stage) -> Outcome {
    let (a, at) = (stage.open("a").await?, slot(0)?);
    let dead = stage.open_dead("b").await?;
    ensure_eq!(kind(stage.try_change(dead, &at, NONE, acquire()).await)?, ErrorKind::Lost, "the error for the dead");
    let stranger = rendez_core::SessionId::from_bits(fastrand::u128(..));
    ensure_eq!(kind(stage.try_change(stranger, &at, NONE, acquire()).await)?, ErrorKind::Lost, "for the unborn");
    ensure_eq!(stage.record(&at).await?, None, "the slot's record");
    stage.acquire(a, &at, NONE).await.map(drop)
}

async fn an_orphan_is_taken(stage: Stage) -> Outcome {
    let (a, b, at) = (stage.open("a").await?, stage.open("b").await?, slot(0)?);
    let first = stage.acquire(a, &at, NONE).await?;
    stage.close(a).await?;
    let orphan = stage.record(&at).await?;
    ensure!(orphan.is_some_and(|slot| slot.token == first), "the token of an orphan stays");
    let second = stage.acquire(b, &at, first).await?;
    ensure!(second > first, "tokens rise when an orphan is taken: {first}, then {second}");
    Ok(())
}

async fn a_released_slot_is_taken_with_its_token_only(stage: Stage) -> Outcome {
    let (a, b, at) = (stage.open("a").await?, stage.open("b").await?, slot(0)?);
    let first = stage.acquire(a, &at, NONE).await?;
    stage.done(a, &at, first, release()).await?;
    stage.refused(b, &at, NONE, acquire(), Conflict::Token).await?;
    let record = stage.done(b, &at, first, acquire()).await?;
    ensure!(record.token > first && record.freed_at.is_none(), "a grant after a release: {record:?}");
    Ok(())
}

async fn of_many_at_once_one_wins(stage: Stage) -> Outcome {
    for round in 0..4 {
        let at = slot(round)?;
        let mut racing = tokio::task::JoinSet::new();
        for racer in 0..6 {
            let (stage, at) = (stage.again().await?, at.clone());
            let session = stage.open(&format!("n{round}-{racer}")).await?;
            racing.spawn(async move { (session, stage.change(session, &at, NONE, acquire()).await) });
        }
        let mut winners = Vec::new();
        for (session, outcome) in racing.join_all().await {
            match outcome? {
                ChangeOutcome::Done(_) => winners.push(session),
                ChangeOutcome::Refused(Conflict::Token, Some(_)) => {}
                came => ensure!(false, "the losers are told that the token is another one, not {came:?}"),
            }
        }
        ensure_eq!(winners.len(), 1, "the winners of one slot");
        let record = stage.record(&at).await?;
        ensure!(record.is_some_and(|slot| slot.is_held_by(winners[0])), "the record must name the winner");
    }
    Ok(())
}
