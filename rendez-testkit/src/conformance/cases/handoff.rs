//! Offers and transfers: from one live session to another, with no moment without a holder.

use std::time::Duration;

use rendez_core::{ChangeKind, Conflict, ErrorKind, FencingToken, Held};

use super::super::case::{Outcome, cases, ensure, ensure_eq};
use super::super::stage::{NONE, Stage, acquire, kind, offer, operation, release, slot, transfer};

cases! { "handoff";
    an_offer_that_is_accepted_is_transferred,
    an_offer_holds_what_the_giver_said,
    an_offer_is_replaced_by_the_next,
    an_offer_is_withdrawn_by_its_giver_only,
    an_offer_is_accepted_by_its_receiver_only,
    an_offer_that_is_refused_ends_and_the_node_is_passed_over,
    an_offer_ends_by_itself,
    an_offer_to_nobody_is_refused,
    an_offer_of_what_one_does_not_hold_is_refused,
    a_transfer_that_was_not_accepted_is_refused,
    a_transfer_with_a_stale_token_is_refused,
    a_transfer_that_was_delayed_does_nothing,
    a_transfer_to_a_dead_session_is_refused,
    a_transfer_from_a_dead_session_is_lost,
    a_forced_transfer_begins_no_cooldown,
    the_retry_of_an_offer_does_not_undo_its_acceptance,
    what_the_giver_releases_can_be_offered_no_more,
}

async fn an_offer_that_is_accepted_is_transferred(stage: Stage) -> Outcome {
    let (a, b, at) = (stage.open("a").await?, stage.open("b").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    let id = stage.offered(a, b, &at, token).await?;
    let operation = operation();
    let record = stage.done(a, &at, token, ChangeKind::Transfer { operation, offer: id, checkpoint: None }).await?;
    ensure!(record.is_held_by(b), "the receiver must hold the slot: {record:?}");
    ensure_eq!(record.holder.as_ref().map(|holder| holder.node.as_str()), Some("b"), "the new holder's node");
    ensure!(record.token > token, "a transfer raises the token");
    ensure_eq!((record.granted_by, record.offer.clone()), (operation, None), "the grant and the offer after it");
    ensure_eq!(record.moved_at, Some(record.taken_at), "when it changed hands");
    ensure_eq!(stage.record(&at).await?, Some(record.clone()), "what others read");
    let mut held = Held::default();
    ensure_eq!(stage.beat(a).await?.held, held, "what the giver holds");
    held.add(&at, record.token);
    ensure_eq!(stage.beat(b).await?.held, held, "what the receiver holds");
    stage.refused(a, &at, record.token, release(), Conflict::NotHolder).await?;
    stage.done(b, &at, record.token, release()).await.map(drop)
}

async fn an_offer_holds_what_the_giver_said(stage: Stage) -> Outcome {
    let (a, b, at) = (stage.open("a").await?, stage.open("b").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    let id = operation();
    let request = ChangeKind::Offer {
        operation: id,
        to: b,
        expires_in: Duration::from_secs(30),
        giver_total: 4_000_000_000,
        giver_of_workload: 3,
        forced: true,
    };
    let record = stage.done(a, &at, token, request).await?;
    let Some(offer) = record.offer.clone() else {
        return Err(super::super::Failure::new("the offer is missing"));
    };
    ensure_eq!((offer.id, offer.to, offer.ready, offer.forced), (id, b, false, true), "the offer");
    ensure_eq!((offer.giver_total, offer.giver_of_workload), (4_000_000_000, 3), "the giver's counts");
    ensure!(record.is_held_by(a) && record.token == token, "an offer moves nothing: {record:?}");
    ensure_eq!(stage.record(&at).await?, Some(record), "what others read");
    Ok(())
}

async fn an_offer_is_replaced_by_the_next(stage: Stage) -> Outcome {
    let (a, b, c, at) = (stage.open("a").await?, stage.open("b").await?, stage.open("c").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    let first = stage.offered(a, b, &at, token).await?;
    let second = operation();
    let record = stage.done(a, &at, token, offer(second, c, stage.ttl())).await?;
    ensure_eq!(record.offer.map(|offer| (offer.id, offer.to, offer.ready)), Some((second, c, false)), "the offer");
    stage.refused(a, &at, token, transfer(first), Conflict::Offer).await?;
    stage.refused(b, &at, token, ChangeKind::Accept { offer: first }, Conflict::Offer).await?;
    stage.done(c, &at, token, ChangeKind::Accept { offer: second }).await.map(drop)
}

async fn an_offer_is_withdrawn_by_its_giver_only(stage: Stage) -> Outcome {
    let (a, b, at) = (stage.open("a").await?, stage.open("b").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    let id = stage.offered(a, b, &at, token).await?;
    stage.refused(b, &at, token, ChangeKind::Withdraw { offer: id }, Conflict::NotHolder).await?;
    let other = ChangeKind::Withdraw { offer: operation() };
    let record = stage.done(a, &at, token, other).await?;
    ensure!(record.offer.is_some_and(|offer| offer.ready), "withdrawing another offer leaves this one");
    let record = stage.done(a, &at, token, ChangeKind::Withdraw { offer: id }).await?;
    ensure_eq!(record.offer, None, "the offer after it was withdrawn");
    ensure_eq!(stage.done(a, &at, token, ChangeKind::Withdraw { offer: id }).await?, record, "withdrawn twice");
    stage.refused(a, &at, token, transfer(id), Conflict::Offer).await?;
    stage.refused(b, &at, token, ChangeKind::Accept { offer: id }, Conflict::Offer).await
}

async fn an_offer_is_accepted_by_its_receiver_only(stage: Stage) -> Outcome {
    let (a, b, c, at) = (stage.open("a").await?, stage.open("b").await?, stage.open("c").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    let id = operation();
    stage.done(a, &at, token, offer(id, b, stage.ttl())).await?;
    for session in [a, c] {
        stage.refused(session, &at, token, ChangeKind::Accept { offer: id }, Conflict::Offer).await?;
        let refuse = ChangeKind::Refuse { offer: id, refuse_for: Duration::from_secs(5) };
        stage.refused(session, &at, token, refuse, Conflict::Offer).await?;
    }
    stage.refused(b, &at, token, ChangeKind::Accept { offer: operation() }, Conflict::Offer).await?;
    stage.refused(b, &at, NONE, ChangeKind::Accept { offer: id }, Conflict::Token).await?;
    let first = stage.done(b, &at, token, ChangeKind::Accept { offer: id }).await?;
    ensure!(first.offer.as_ref().is_some_and(|offer| offer.ready), "an accepted offer is ready: {first:?}");
    ensure_eq!(stage.done(b, &at, token, ChangeKind::Accept { offer: id }).await?, first, "accepted twice");
    Ok(())
}

async fn an_offer_that_is_refused_ends_and_the_node_is_passed_over(stage: Stage) -> Outcome {
    let (a, b, at) = (stage.open("a").await?, stage.open("b").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    let id = operation();
    stage.done(a, &at, token, offer(id, b, stage.ttl())).await?;
    let refuse = ChangeKind::Refuse { offer: id, refuse_for: Duration::from_secs(60) };
    let record = stage.done(b, &at, token, refuse.clone()).await?;
    ensure_eq!(record.offer, None, "the offer after it was refused");
    ensure!(record.is_held_by(a), "the giver keeps the slot");
    let nodes: Vec<_> = record.refusals.iter().map(|refused| refused.node.as_str()).collect();
    ensure_eq!(nodes, ["b"], "who has refused");
    stage.refused(b, &at, token, refuse, Conflict::Offer).await?;
    stage.refused(a, &at, token, transfer(id), Conflict::Offer).await
}

async fn an_offer_ends_by_itself(stage: Stage) -> Outcome {
    let (a, b) = (stage.open("a").await?, stage.open("b").await?);
    let (waiting, ready) = (slot(0)?, slot(1)?);
    let lasts = Duration::from_millis(300);
    let (one, two) = (operation(), operation());
    let token = stage.acquire(a, &waiting, NONE).await?;
    let other = stage.acquire(a, &ready, NONE).await?;
    // Again where this machine is so slow that it ends before it is accepted.
    for _ in 0..50 {
        stage.done(a, &ready, other, offer(two, b, lasts)).await?;
        match stage.change(b, &ready, other, ChangeKind::Accept { offer: two }).await? {
            rendez_core::ChangeOutcome::Done(_) => break,
            rendez_core::ChangeOutcome::Refused(..) => {
                stage.done(a, &ready, other, ChangeKind::Withdraw { offer: two }).await?;
            }
        }
    }
    stage.done(a, &waiting, token, offer(one, b, lasts)).await?;
    tokio::time::sleep(lasts + Duration::from_millis(50)).await;
    stage.refused(b, &waiting, token, ChangeKind::Accept { offer: one }, Conflict::Offer).await?;
    let refuse = ChangeKind::Refuse { offer: one, refuse_for: Duration::from_secs(5) };
    stage.refused(b, &waiting, token, refuse, Conflict::Offer).await?;
    stage.refused(a, &ready, other, transfer(two), Conflict::Offer).await?;
    stage.done(a, &waiting, token, release()).await.map(drop)
}

async fn an_offer_to_nobody_is_refused(stage: Stage) -> Outcome {
    let (a, at) = (stage.open("a").await?, slot(0)?);
    let dead = stage.open_dead("b").await?;
    let token = stage.acquire(a, &at, NONE).await?;
    for to in [a, dead, rendez_core::SessionId::from_bits(7)] {
        stage.refused(a, &at, token, offer(operation(), to, stage.ttl()), Conflict::ReceiverGone).await?;
    }
    Ok(())
}

async fn an_offer_of_what_one_does_not_hold_is_refused(stage: Stage) -> Outcome {
    let (a, b, at) = (stage.open("a").await?, stage.open("b").await?, slot(0)?);
    stage.refused(a, &at, NONE, offer(operation(), b, stage.ttl()), Conflict::NotHolder).await?;
    let token = stage.acquire(a, &at, NONE).await?;
    stage.refused(b, &at, token, offer(operation(), a, stage.ttl()), Conflict::NotHolder).await?;
    stage.refused(a, &at, NONE, offer(operation(), b, stage.ttl()), Conflict::Token).await
}

async fn a_transfer_that_was_not_accepted_is_refused(stage: Stage) -> Outcome {
    let (a, b, at) = (stage.open("a").await?, stage.open("b").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    stage.refused(a, &at, token, transfer(operation()), Conflict::Offer).await?;
    let id = operation();
    stage.done(a, &at, token, offer(id, b, stage.ttl())).await?;
    stage.refused(a, &at, token, transfer(id), Conflict::Offer).await?;
    stage.done(b, &at, token, ChangeKind::Accept { offer: id }).await?;
    stage.refused(b, &at, token, transfer(id), Conflict::NotHolder).await?;
    stage.refused(a, &at, token, transfer(operation()), Conflict::Offer).await
}

async fn a_transfer_with_a_stale_token_is_refused(stage: Stage) -> Outcome {
    let (a, b, at) = (stage.open("a").await?, stage.open("b").await?, slot(0)?);
    let first = stage.acquire(a, &at, NONE).await?;
    let second = stage.acquire(a, &at, first).await?;
    let id = stage.offered(a, b, &at, second).await?;
    for stale in [NONE, first, FencingToken::new(second.get() + 1)] {
        stage.refused(a, &at, stale, transfer(id), Conflict::Token).await?;
    }
    Ok(())
}

async fn a_transfer_that_was_delayed_does_nothing(stage: Stage) -> Outcome {
    let (a, b, at) = (stage.open("a").await?, stage.open("b").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    let id = stage.offered(a, b, &at, token).await?;
    let late = transfer(id);
    stage.done(a, &at, token, late.clone()).await?;
    let moved = stage.record(&at).await?.map_or(NONE, |slot| slot.token);
    // A retry is done, as before; once the slot is released and taken again, it is nothing.
    let retry = stage.done(a, &at, token, late.clone()).await?;
    ensure_eq!(retry.token, moved, "the token after the retry of a transfer");
    stage.refused(a, &at, token, transfer(id), Conflict::Token).await?;
    stage.done(b, &at, moved, release()).await?;
    let again = stage.acquire(b, &at, moved).await?;
    stage.refused(a, &at, token, late.clone(), Conflict::Token).await?;
    stage.refused(a, &at, again, late, Conflict::NotHolder).await
}

async fn a_transfer_to_a_dead_session_is_refused(stage: Stage) -> Outcome {
    let (a, b, at) = (stage.open("a").await?, stage.open("b").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    let id = stage.offered(a, b, &at, token).await?;
    stage.close(b).await?;
    stage.refused(a, &at, token, transfer(id), Conflict::ReceiverGone).await?;
    // Not even if the node is back under another session.
    stage.open("b").await?;
    stage.refused(a, &at, token, transfer(id), Conflict::ReceiverGone).await?;
    stage.done(a, &at, token, release()).await.map(drop)
}

async fn a_transfer_from_a_dead_session_is_lost(stage: Stage) -> Outcome {
    let (a, b, at) = (stage.open("a").await?, stage.open("b").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    let id = stage.offered(a, b, &at, token).await?;
    stage.close(a).await?;
    let before = stage.record(&at).await?;
    ensure_eq!(kind(stage.try_change(a, &at, token, transfer(id)).await)?, ErrorKind::Lost, "a dead giver's transfer");
    ensure_eq!(stage.record(&at).await?, before, "the record after it");
    stage.done(b, &at, token, acquire()).await.map(drop)
}

async fn a_forced_transfer_begins_no_cooldown(stage: Stage) -> Outcome {
    let (a, b, at) = (stage.open("a").await?, stage.open("b").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    let id = operation();
    let forced = ChangeKind::Offer {
        operation: id,
        to: b,
        expires_in: stage.ttl(),
        giver_total: 1,
        giver_of_workload: 1,
        forced: true,
    };
    stage.done(a, &at, token, forced).await?;
    stage.done(b, &at, token, ChangeKind::Accept { offer: id }).await?;
    let record = stage.done(a, &at, token, transfer(id)).await?;
    ensure_eq!(record.moved_at, None, "when it changed hands voluntarily");
    Ok(())
}

async fn the_retry_of_an_offer_does_not_undo_its_acceptance(stage: Stage) -> Outcome {
    let (a, b, at) = (stage.open("a").await?, stage.open("b").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    let id = operation();
    let request = offer(id, b, stage.ttl());
    stage.done(a, &at, token, request.clone()).await?;
    let accepted = stage.done(b, &at, token, ChangeKind::Accept { offer: id }).await?;
    let retry = stage.again().await?.done(a, &at, token, request).await?;
    ensure_eq!(retry, accepted, "the record after the retry of the offer");
    stage.done(a, &at, token, transfer(id)).await.map(drop)
}

async fn what_the_giver_releases_can_be_offered_no_more(stage: Stage) -> Outcome {
    let (a, b, at) = (stage.open("a").await?, stage.open("b").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    let id = stage.offered(a, b, &at, token).await?;
    stage.done(a, &at, token, release()).await?;
    stage.refused(a, &at, token, transfer(id), Conflict::NotHolder).await?;
    let late = offer(operation(), b, stage.ttl());
    stage.refused(a, &at, token, late, Conflict::NotHolder).await?;
    let record = stage.done(b, &at, token, acquire()).await?;
    ensure_eq!(record.offer, None, "the offer after the next grant");
    Ok(())
}
