//! Batches: each change stands or falls alone, all are made at one moment, and there is a largest one.

use rendez_core::{ChangeKind, ChangeOutcome, Conflict, ErrorKind, FencingToken, Held, SlotChange, UNITS_MAX};

use super::super::Failure;
use super::super::case::{Outcome, cases, ensure, ensure_eq};
use super::super::stage::{NONE, Stage, acquire, done, kind, operation, release, slot};

cases! { "batches";
    an_empty_one_is_answered,
    each_change_stands_or_falls_alone,
    changes_of_one_slot_are_made_in_order,
    the_same_request_twice_in_one_batch_has_the_effect_of_one,
    the_largest_is_accepted,
    a_larger_one_is_refused_and_does_nothing,
    one_that_holds_what_cannot_be_is_refused_and_does_nothing,
    the_retry_of_one_answers_the_same,
    ten_thousand_slots_change_hands,
}

fn change(unit: u32, token: FencingToken, kind: ChangeKind) -> Outcome<SlotChange> {
    Ok(SlotChange { slot: slot(unit)?, token, kind })
}

async fn an_empty_one_is_answered(stage: Stage) -> Outcome {
    let a = stage.open("a").await?;
    let before = stage.snapshot(None).await?.0.revision;
    let reply = stage.changes(a, Vec::new()).await?;
    ensure_eq!((reply.outcomes, reply.stamp.revision), (Vec::new(), before), "the answer to nothing");
    let dead = stage.open_dead("b").await?;
    ensure_eq!(kind(stage.changes(dead, Vec::new()).await)?, ErrorKind::Lost, "nothing, asked by the dead");
    Ok(())
}

async fn each_change_stands_or_falls_alone(stage: Stage) -> Outcome {
    let (a, b) = (stage.open("a").await?, stage.open("b").await?);
    let token = stage.acquire(b, &slot(1)?, NONE).await?;
    let mine = stage.acquire(a, &slot(2)?, NONE).await?;
    let batch = vec![
        change(0, NONE, acquire())?,
        change(1, token, acquire())?,
        change(2, mine, release())?,
        change(3, FencingToken::new(5), acquire())?,
        change(4, NONE, acquire())?,
    ];
    let outcomes = stage.changes(a, batch).await?.outcomes;
    let refused: Vec<_> = outcomes
        .iter()
        .map(|outcome| match outcome {
            ChangeOutcome::Done(_) => None,
            ChangeOutcome::Refused(conflict, _) => Some(*conflict),
        })
        .collect();
    ensure_eq!(refused, [None, Some(Conflict::Held), None, Some(Conflict::Token), None], "the outcomes, in order");
    let held: Vec<_> = stage.view().await?.slots.into_iter().filter(|(_, slot)| slot.is_held_by(a)).collect();
    ensure_eq!(held.iter().map(|(slot, _)| slot.unit).collect::<Vec<_>>(), [0, 4], "what the session holds");
    // And one in which nothing is done.
    let before = stage.snapshot(None).await?;
    let reply = stage.changes(a, vec![change(1, token, acquire())?, change(0, NONE, acquire())?]).await?;
    ensure!(reply.outcomes.iter().all(|outcome| matches!(outcome, ChangeOutcome::Refused(..))), "{reply:?}");
    ensure_eq!(reply.stamp.revision, before.0.revision, "the revision after a batch that changed nothing");
    ensure_eq!(stage.view().await?, before.1, "the records after it");
    Ok(())
}

async fn changes_of_one_slot_are_made_in_order(stage: Stage) -> Outcome {
    let (a, b) = (stage.open("a").await?, stage.open("b").await?);
    let token = stage.acquire(a, &slot(0)?, NONE).await?;
    let offer = operation();
    let batch = vec![
        change(0, token, super::super::stage::offer(offer, b, stage.ttl()))?,
        change(0, token, ChangeKind::Withdraw { offer })?,
        change(0, token, release())?,
        change(0, token, acquire())?,
        change(0, token, release())?,
    ];
    let outcomes = stage.changes(a, batch).await?.outcomes;
    let [offered, withdrawn, released, taken, late] = <[ChangeOutcome; 5]>::try_from(outcomes)
        .map_err(|came| Failure::new(format_args!("five outcomes were expected, {came:?} came")))?;
    ensure!(done(offered)?.offer.is_some(), "the record after the first change");
    ensure_eq!(done(withdrawn)?.offer, None, "the offer after the second change");
    ensure_eq!(done(released)?.holder, None, "the holder after the third change");
    let taken = done(taken)?;
    ensure!(taken.token > token && taken.is_held_by(a), "the record after the fourth change: {taken:?}");
    ensure_eq!(late, ChangeOutcome::Refused(Conflict::Token, Some(taken.clone())), "the last change is stale by then");
    let mut held = Held::default();
    held.add(&slot(0)?, taken.token);
    ensure_eq!(stage.beat(a).await?.held, held, "what the session holds");
    Ok(())
}

async fn the_same_request_twice_in_one_batch_has_the_effect_of_one(stage: Stage) -> Outcome {
    let a = stage.open("a").await?;
    let take = change(0, NONE, acquire())?;
    let outcomes = stage.changes(a, vec![take.clone(), take.clone(), take]).await?.outcomes;
    ensure!(matches!(outcomes[0], ChangeOutcome::Done(_)), "the first: {outcomes:?}");
    ensure!(outcomes.iter().all(|outcome| *outcome == outcomes[0]), "the others are retries: {outcomes:?}");
    ensure_eq!(stage.beat(a).await?.held.count, 1, "what the session holds");
    Ok(())
}

async fn the_largest_is_accepted(stage: Stage) -> Outcome {
    let a = stage.open("a").await?;
    let most = u32::try_from(stage.capabilities.changes_max).unwrap_or(u32::MAX);
    ensure!(most > 0, "a store that permits no change");
    let batch: Vec<_> = (0..most).map(|unit| change(unit, NONE, acquire())).collect::<Outcome<_>>()?;
    let outcomes = stage.changes(a, batch).await?.outcomes;
    ensure_eq!(outcomes.len(), stage.capabilities.changes_max, "how many outcomes came");
    let mut held = Held::default();
    for (unit, outcome) in (0..).zip(outcomes) {
        held.add(&slot(unit)?, done(outcome)?.token);
    }
    ensure_eq!(stage.beat(a).await?.held, held, "what the session holds");
    Ok(())
}

async fn a_larger_one_is_refused_and_does_nothing(stage: Stage) -> Outcome {
    let a = stage.open("a").await?;
    let before = stage.view().await?;
    let most = u32::try_from(stage.capabilities.changes_max).unwrap_or(u32::MAX);
    let batch: Vec<_> = (0..=most).map(|unit| change(unit, NONE, acquire())).collect::<Outcome<_>>()?;
    ensure_eq!(kind(stage.changes(a, batch).await)?, ErrorKind::Fatal, "one change more than the largest batch");
    ensure_eq!(stage.view().await?, before, "the records after it");
    Ok(())
}

async fn one_that_holds_what_cannot_be_is_refused_and_does_nothing(stage: Stage) -> Outcome {
    let a = stage.open("a").await?;
    let before = stage.view().await?;
    let impossible = change(UNITS_MAX, NONE, acquire())?;
    let came = kind(stage.changes(a, vec![change(0, NONE, acquire())?, impossible]).await)?;
    ensure_eq!(came, ErrorKind::Fatal, "a unit that cannot be");
    ensure_eq!(stage.view().await?, before, "the records after it");
    stage.acquire(a, &slot(UNITS_MAX - 1)?, NONE).await.map(drop)
}

async fn the_retry_of_one_answers_the_same(stage: Stage) -> Outcome {
    let a = stage.open("a").await?;
    let batch: Vec<_> = (0..5).map(|unit| change(unit, NONE, acquire())).collect::<Outcome<_>>()?;
    let first = stage.changes(a, batch.clone()).await?;
    let second = stage.again().await?.changes(a, batch).await?;
    ensure_eq!(second.outcomes, first.outcomes, "the outcomes of the retry");
    ensure_eq!(second.stamp.revision, first.stamp.revision, "the revision after the retry");
    Ok(())
}

async fn ten_thousand_slots_change_hands(stage: Stage) -> Outcome {
    const SLOTS: u32 = 10_000;
    let (a, b) = (stage.open("a").await?, stage.open("b").await?);
    let units: Vec<u32> = (0..SLOTS).collect();
    let mut tokens = vec![NONE; units.len()];
    for session in [a, b] {
        let mut held = Held::default();
        for part in units.chunks(stage.capabilities.changes_max) {
            let batch = part.iter().map(|unit| change(*unit, tokens[*unit as usize], acquire()));
            let outcomes = stage.changes(session, batch.collect::<Outcome<_>>()?).await?.outcomes;
            ensure_eq!(outcomes.len(), part.len(), "how many outcomes came");
            for (unit, outcome) in part.iter().zip(outcomes) {
                let token = done(outcome)?.token;
                ensure!(token > tokens[*unit as usize], "tokens rise with every grant");
                tokens[*unit as usize] = token;
                held.add(&slot(*unit)?, token);
            }
            // They may take longer than a session lives.
            stage.beat(a).await.ok();
            stage.beat(b).await?;
        }
        ensure_eq!(stage.beat(session).await?.held, held, "count and digest of ten thousand slots");
        if session == a {
            stage.close(a).await?;
        }
    }
    let slots = stage.view().await?.slots;
    ensure_eq!(slots.len(), units.len(), "the slots of a snapshot");
    ensure!(slots.values().all(|slot| slot.is_held_by(b)), "they all belong to the second session");
    Ok(())
}
