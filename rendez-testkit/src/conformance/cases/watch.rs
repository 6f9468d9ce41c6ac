//! The watch: a hint that saves latency. Where there is none, that is said and nothing happens.

use std::time::Duration;

use rendez_core::{AdminRequest, ChangeKind, Record, RecordKey, SessionId, Watch, WatchHint};
use tokio::time::Instant;

use super::super::Failure;
use super::super::case::{Outcome, cases, ensure, ensure_eq};
use super::super::stage::{NONE, SOON, Stage, offer, operation, release, slot, transfer};

cases! { "watch";
    without_one_the_store_says_so_and_nothing_changes,
    everybody_hears_what_was_let_go,
    everybody_hears_of_the_operator,
    the_receiver_hears_of_an_offer_and_of_its_slot,
    the_giver_hears_of_the_answer,
    every_watch_hears,
    a_cancelled_wait_loses_no_hint,
    where_no_session_is_named_as_due_its_end_is_heard_of,
    many_watches_come_and_go,
}

/// Waits for a hint that concerns everybody or this session.
async fn hears(watch: &mut Box<dyn Watch>, whom: Option<SessionId>, of: &str) -> Outcome {
    let waited = tokio::time::timeout(SOON, async {
        loop {
            match watch.next().await {
                Some(WatchHint::Everyone) => return Ok(()),
                Some(WatchHint::Session(session)) if Some(session) == whom => return Ok(()),
                Some(WatchHint::Session(_)) => {}
                None => return Err(Failure::new(format_args!("the watch has ended before it told of {of}"))),
            }
        }
    });
    waited.await.map_err(|_| Failure::new(format_args!("no hint of {of} came within {SOON:?}")))?
}

/// Lets pass what earlier changes have caused.
async fn quiet(watch: &mut Box<dyn Watch>) {
    while let Ok(Some(_)) = tokio::time::timeout(Duration::from_millis(150), watch.next()).await {}
}

async fn without_one_the_store_says_so_and_nothing_changes(stage: Stage) -> Outcome {
    stage.open("a").await?;
    let before = stage.snapshot(None).await?;
    // Whether it is answered as the capabilities say is looked at in there.
    drop(stage.watch().await?);
    let after = stage.snapshot(None).await?;
    ensure_eq!((after.0.revision, after.1), (before.0.revision, before.1), "what asking for a watch changed");
    Ok(())
}

async fn everybody_hears_what_was_let_go(stage: Stage) -> Outcome {
    let Some(mut watch) = stage.again().await?.watch().await? else { return Ok(()) };
    let (a, at) = (stage.open("a").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    quiet(&mut watch).await;
    stage.done(a, &at, token, release()).await?;
    hears(&mut watch, None, "a release").await?;
    quiet(&mut watch).await;
    stage.close(a).await?;
    hears(&mut watch, None, "the close of a session").await
}

async fn everybody_hears_of_the_operator(stage: Stage) -> Outcome {
    let Some(mut watch) = stage.again().await?.watch().await? else { return Ok(()) };
    let (a, at) = (stage.open("a").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    quiet(&mut watch).await;
    stage.put(RecordKey::Pin(at.clone()), Some(Record::Pin("b".parse().map_err(Failure::new)?)), None).await?;
    hears(&mut watch, None, "an operator's record").await?;
    quiet(&mut watch).await;
    stage.administer(&AdminRequest::ForceRelease { slot: at, token, now: false }).await?;
    hears(&mut watch, Some(a), "a forced release").await
}

async fn the_receiver_hears_of_an_offer_and_of_its_slot(stage: Stage) -> Outcome {
    let Some(mut watch) = stage.again().await?.watch().await? else { return Ok(()) };
    let (a, b, at) = (stage.open("a").await?, stage.open("b").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    quiet(&mut watch).await;
    let id = operation();
    stage.done(a, &at, token, offer(id, b, stage.ttl())).await?;
    hears(&mut watch, Some(b), "an offer").await?;
    stage.done(b, &at, token, ChangeKind::Accept { offer: id }).await?;
    quiet(&mut watch).await;
    stage.done(a, &at, token, transfer(id)).await?;
    hears(&mut watch, Some(b), "a transfer").await
}

async fn the_giver_hears_of_the_answer(stage: Stage) -> Outcome {
    let Some(mut watch) = stage.again().await?.watch().await? else { return Ok(()) };
    let (a, b, at) = (stage.open("a").await?, stage.open("b").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    for refuse in [false, true] {
        let id = operation();
        stage.done(a, &at, token, offer(id, b, stage.ttl())).await?;
        quiet(&mut watch).await;
        let answer = if refuse {
            ChangeKind::Refuse { offer: id, refuse_for: Duration::from_secs(1) }
        } else {
            ChangeKind::Accept { offer: id }
        };
        stage.done(b, &at, token, answer).await?;
        hears(&mut watch, Some(a), "the answer to an offer").await?;
    }
    Ok(())
}

async fn every_watch_hears(stage: Stage) -> Outcome {
    let mut watches = Vec::new();
    for _ in 0..3 {
        let Some(watch) = stage.again().await?.watch().await? else { return Ok(()) };
        watches.push(watch);
    }
    // A second one of one handle.
    watches.extend(stage.watch().await?);
    watches.extend(stage.watch().await?);
    let a = stage.open("a").await?;
    stage.close(a).await?;
    for watch in &mut watches {
        hears(watch, None, "the close of a session").await?;
    }
    Ok(())
}

async fn a_cancelled_wait_loses_no_hint(stage: Stage) -> Outcome {
    let Some(mut watch) = stage.again().await?.watch().await? else { return Ok(()) };
    for round in 0..5_u32 {
        let a = stage.open("a").await?;
        quiet(&mut watch).await;
        // Given up many times while the hint is on its way, and once before.
        stage.close(a).await?;
        let mut heard = false;
        for _ in 0..20 {
            let wait = Duration::from_micros(u64::from(round) * 40);
            if let Ok(hint) = tokio::time::timeout(wait, watch.next()).await {
                ensure!(hint.is_some(), "the watch has ended");
                heard = true;
                break;
            }
        }
        if !heard {
            hears(&mut watch, None, "the close of a session").await?;
        }
    }
    Ok(())
}

async fn where_no_session_is_named_as_due_its_end_is_heard_of(stage: Stage) -> Outcome {
    if stage.capabilities.due {
        // Then nodes know the moment themselves, and no hint is promised.
        let asking = stage.open("asking").await?;
        let a = stage.open_short("a").await?;
        let mut request = stage.beat_request(asking);
        request.due_within = stage.ttl_short();
        let due = stage.store.heartbeat(&stage.cluster, &request).await?.due;
        let lives = stage.lives(a).await?;
        ensure!(due.iter().any(|due| due.session == a) || !lives, "{a} is due and was not named: {due:?}");
        return Ok(());
    }
    ensure!(stage.capabilities.watch, "a store without due sessions needs a watch that tells of their end");
    let Some(mut watch) = stage.again().await?.watch().await? else { return Ok(()) };
    let a = stage.open_short("a").await?;
    let ends_at = Instant::now() + stage.ttl_short();
    quiet(&mut watch).await;
    hears(&mut watch, None, "the end of a session").await?;
    stage.wait_for_end(a, ends_at).await
}

async fn many_watches_come_and_go(stage: Stage) -> Outcome {
    let handle = stage.again().await?;
    for _ in 0..20 {
        let Some(watch) = handle.watch().await? else { return Ok(()) };
        drop(watch);
    }
    let Some(mut watch) = handle.watch().await? else { return Ok(()) };
    let a = stage.open("a").await?;
    stage.close(a).await?;
    hears(&mut watch, None, "the close of a session").await
}
