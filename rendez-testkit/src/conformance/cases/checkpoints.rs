//! Checkpoints: fenced, bounded, for the holder's eyes only.

use bytes::Bytes;
use rendez_core::{CHECKPOINT_BYTES_MAX, ChangeKind, Conflict, ErrorKind, SessionId, Slot};

use super::super::case::{Outcome, cases, ensure_eq};
use super::super::stage::{NONE, Stage, acquire, kind, release, slot};

cases! { "checkpoints";
    one_is_saved_and_given_to_the_next_holder,
    one_is_handed_over,
    what_is_left_at_the_release_counts,
    none_is_shown_to_others,
    saving_wakes_nobody,
    a_stale_or_foreign_one_is_refused,
    they_are_bounded,
    any_bytes_come_back,
}

fn save(bytes: impl Into<Bytes>) -> ChangeKind {
    ChangeKind::SaveCheckpoint { checkpoint: bytes.into() }
}

/// What a session is shown of a slot's checkpoint.
async fn shown(stage: &Stage, session: SessionId, slot: &Slot) -> Outcome<Option<Bytes>> {
    Ok(stage.snapshot(Some(session)).await?.1.slots.remove(slot).and_then(|record| record.checkpoint))
}

async fn one_is_saved_and_given_to_the_next_holder(stage: Stage) -> Outcome {
    let (a, b, at) = (stage.open("a").await?, stage.open("b").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    ensure_eq!(shown(&stage, a, &at).await?, None, "the checkpoint of a fresh slot");
    stage.done(a, &at, token, save("one")).await?;
    stage.done(a, &at, token, save("two")).await?;
    ensure_eq!(shown(&stage, a, &at).await?.as_deref(), Some(&b"two"[..]), "what the holder is shown");
    stage.close(a).await?;
    let record = stage.done(b, &at, token, acquire()).await?;
    ensure_eq!(record.checkpoint.as_deref(), Some(&b"two"[..]), "what comes with the grant");
    Ok(())
}

async fn one_is_handed_over(stage: Stage) -> Outcome {
    let (a, b) = (stage.open("a").await?, stage.open("b").await?);
    for (unit, given, expected) in [(0, None, &b"saved"[..]), (1, Some("left"), b"left")] {
        let at = slot(unit)?;
        let token = stage.acquire(a, &at, NONE).await?;
        stage.done(a, &at, token, save("saved")).await?;
        let offer = stage.offered(a, b, &at, token).await?;
        let operation = super::super::stage::operation();
        let moved = ChangeKind::Transfer { operation, offer, checkpoint: given.map(Bytes::from) };
        let record = stage.done(a, &at, token, moved).await?;
        ensure_eq!(record.checkpoint, None, "what the giver is shown after the transfer");
        ensure_eq!(shown(&stage, b, &at).await?.as_deref(), Some(expected), "what the receiver is shown");
        ensure_eq!(shown(&stage, a, &at).await?, None, "what the giver is shown");
    }
    Ok(())
}

async fn what_is_left_at_the_release_counts(stage: Stage) -> Outcome {
    let (a, b) = (stage.open("a").await?, stage.open("b").await?);
    for (unit, left, expected) in [(0, None, &b"saved"[..]), (1, Some(""), b""), (2, Some("left"), b"left")] {
        let at = slot(unit)?;
        let token = stage.acquire(a, &at, NONE).await?;
        stage.done(a, &at, token, save("saved")).await?;
        let let_go = ChangeKind::Release { checkpoint: left.map(Bytes::from), refuse_for: None };
        ensure_eq!(stage.done(a, &at, token, let_go).await?.checkpoint, None, "what a free slot's record shows");
        let record = stage.done(b, &at, token, acquire()).await?;
        ensure_eq!(record.checkpoint.as_deref(), Some(expected), "what comes with the next grant, left: {left:?}");
    }
    Ok(())
}

async fn none_is_shown_to_others(stage: Stage) -> Outcome {
    let (a, b, at) = (stage.open("a").await?, stage.open("b").await?, slot(0)?);
    let (stamp, mut view) = stage.snapshot(None).await?;
    let token = stage.acquire(a, &at, NONE).await?;
    stage.done(a, &at, token, save("secret")).await?;
    ensure_eq!(shown(&stage, b, &at).await?, None, "what another session is shown");
    ensure_eq!(stage.record(&at).await?.and_then(|record| record.checkpoint), None, "what nobody's snapshot shows");
    stage.sync(b, &stamp, 512, &mut view).await?;
    ensure_eq!(view.slots.remove(&at).and_then(|record| record.checkpoint), None, "what the changes tell another");
    stage.sync(a, &stamp, 512, &mut view).await?;
    let own = view.slots.remove(&at).and_then(|record| record.checkpoint);
    ensure_eq!(own.as_deref(), Some(&b"secret"[..]), "what the changes tell the holder");
    let refused = stage.change(b, &at, token, acquire()).await?;
    let rendez_core::ChangeOutcome::Refused(_, record) = refused else {
        return Err(super::super::Failure::new("the slot is held"));
    };
    ensure_eq!(record.and_then(|record| record.checkpoint), None, "what a refusal shows");
    Ok(())
}

async fn saving_wakes_nobody(stage: Stage) -> Outcome {
    let (a, at) = (stage.open("a").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    let before = stage.snapshot(None).await?;
    stage.done(a, &at, token, save("x")).await?;
    let after = stage.snapshot(None).await?;
    ensure_eq!((after.0.revision, after.1), (before.0.revision, before.1), "revision and records after saving");
    Ok(())
}

async fn a_stale_or_foreign_one_is_refused(stage: Stage) -> Outcome {
    let (a, b, at) = (stage.open("a").await?, stage.open("b").await?, slot(0)?);
    let first = stage.acquire(a, &at, NONE).await?;
    stage.done(a, &at, first, save("first")).await?;
    let second = stage.acquire(a, &at, first).await?;
    stage.refused(a, &at, first, save("late"), Conflict::Token).await?;
    stage.refused(b, &at, second, save("foreign"), Conflict::NotHolder).await?;
    stage.refused(a, &slot(1)?, NONE, save("nothing held"), Conflict::NotHolder).await?;
    ensure_eq!(shown(&stage, a, &at).await?.as_deref(), Some(&b"first"[..]), "the checkpoint after refused ones");
    stage.done(a, &at, second, release()).await?;
    stage.refused(a, &at, second, save("released"), Conflict::NotHolder).await?;
    let third = stage.done(b, &at, second, acquire()).await?;
    ensure_eq!(third.checkpoint.as_deref(), Some(&b"first"[..]), "what comes with the next grant");
    Ok(())
}

async fn they_are_bounded(stage: Stage) -> Outcome {
    let (a, at) = (stage.open("a").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    let largest = Bytes::from(vec![7; CHECKPOINT_BYTES_MAX]);
    let larger = Bytes::from(vec![8; CHECKPOINT_BYTES_MAX + 1]);
    stage.done(a, &at, token, save(largest.clone())).await?;
    let left = ChangeKind::Release { checkpoint: Some(larger.clone()), refuse_for: None };
    for kept in [save(larger), left] {
        ensure_eq!(
            kind(stage.try_change(a, &at, token, kept).await)?,
            ErrorKind::Fatal,
            "a checkpoint that is too large"
        );
    }
    ensure_eq!(shown(&stage, a, &at).await?, Some(largest), "the checkpoint after it");
    Ok(())
}

async fn any_bytes_come_back(stage: Stage) -> Outcome {
    let (a, at) = (stage.open("a").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    let all: Vec<u8> = (0..=255).collect();
    for bytes in [vec![], vec![0], vec![0xff, 0xfe, 0], b"\r\n\"'\\%{}".to_vec(), all] {
        stage.done(a, &at, token, save(bytes.clone())).await?;
        ensure_eq!(shown(&stage, a, &at).await?, Some(Bytes::from(bytes)), "the checkpoint");
    }
    Ok(())
}
