//! Cancelling: a request that is dropped at any await point happened or not; asking again settles it.

use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use rendez_core::{ChangeKind, CloseRequest, Held, Record, RecordKey, SlotChange, WorkloadRecord};

use super::super::Failure;
use super::super::case::{Outcome, cases, ensure, ensure_eq};
use super::super::stage::{NONE, Stage, opened, operation, release, slot};

cases! { "cancelling";
    an_opening,
    an_acquisition,
    a_release,
    a_batch,
    a_close,
    an_operators_record,
    reading,
    does_not_harm_the_handle,
}

/// How many times a request is polled at most before it is dropped.
const POLLS_MAX: usize = 12;

/// Polls a request so many times, with as much time between as chance wants, and drops it.
async fn poll<T>(request: impl Future<Output = T>, times: usize) -> Option<T> {
    let mut request = pin!(request);
    for _ in 0..times {
        if let Poll::Ready(answer) = futures_util::poll!(request.as_mut()) {
            return Some(answer);
        }
        match fastrand::u8(0..3) {
            0 => tokio::time::sleep(Duration::from_millis(1)).await,
            _ => tokio::task::yield_now().await,
        }
    }
    None
}

async fn an_opening(stage: Stage) -> Outcome {
    for times in 0..POLLS_MAX {
        let request = stage.open_request(&format!("n{times}"))?;
        let answered = poll(stage.try_open(&request), times).await.transpose()?;
        let session = opened(&stage.again().await?.try_open(&request).await?)?;
        if let Some(opening) = answered {
            ensure_eq!(opened(&opening)?, session, "the session of a request that was answered, and of its retry");
        }
        stage.beat(session).await?;
        let count = stage.view().await?.sessions.len();
        ensure_eq!(count, times + 1, "how many sessions there are after {} openings", times + 1);
    }
    Ok(())
}

async fn an_acquisition(stage: Stage) -> Outcome {
    let a = stage.open("a").await?;
    let mut held = Held::default();
    for times in 0..POLLS_MAX {
        let (at, kind) = (slot(times as u32)?, ChangeKind::Acquire { operation: operation() });
        let answered = poll(stage.change(a, &at, NONE, kind.clone()), times).await.transpose()?;
        let record = stage.again().await?.done(a, &at, NONE, kind).await?;
        if let Some(outcome) = answered {
            ensure_eq!(super::super::stage::done(outcome)?, record, "the answer, and that of the retry");
        }
        held.add(&at, record.token);
        ensure_eq!(stage.beat(a).await?.held, held, "what the session holds after {times} polls");
        ensure_eq!(stage.record(&at).await?, Some(record), "the record");
    }
    Ok(())
}

async fn a_release(stage: Stage) -> Outcome {
    let a = stage.open("a").await?;
    for times in 0..POLLS_MAX {
        let at = slot(times as u32)?;
        let token = stage.acquire(a, &at, NONE).await?;
        poll(stage.change(a, &at, token, release()), times).await.transpose()?;
        let record = stage.again().await?.done(a, &at, token, release()).await?;
        ensure_eq!((record.holder, record.token), (None, token), "holder and token after {times} polls");
        ensure_eq!(stage.beat(a).await?.held, Held::default(), "what the session holds");
    }
    Ok(())
}

async fn a_batch(stage: Stage) -> Outcome {
    let a = stage.open("a").await?;
    let size = stage.capabilities.changes_max.min(40) as u32;
    for times in 0..POLLS_MAX {
        let batch = (0..size).map(|unit| {
            let kind = ChangeKind::Acquire { operation: operation() };
            Ok(SlotChange { slot: slot(times as u32 * 1000 + unit)?, token: NONE, kind })
        });
        let batch = batch.collect::<Outcome<Vec<_>>>()?;
        poll(stage.changes(a, batch.clone()), times).await.transpose()?;
        if stage.capabilities.whole_batches {
            // All of it at one moment, or nothing; a request that is still on its way may come between two looks.
            let held = stage.beat(a).await?.held.count;
            ensure_eq!(held % u64::from(size), 0, "a part of a batch was made");
        }
        let outcomes = stage.again().await?.changes(a, batch).await?.outcomes;
        for outcome in outcomes {
            super::super::stage::done(outcome)?;
        }
        ensure_eq!(stage.beat(a).await?.held.count, u64::from(size) * (times as u64 + 1), "what the session holds");
    }
    Ok(())
}

async fn a_close(stage: Stage) -> Outcome {
    for times in 0..POLLS_MAX {
        let session = stage.open(&format!("n{times}")).await?;
        let request = CloseRequest { known: stage.known.clone(), session };
        poll(stage.store.close(&stage.cluster, &request), times).await.transpose()?;
        stage.again().await?.close(session).await?;
        ensure!(!stage.lives(session).await?, "the session lives after it was closed");
    }
    ensure_eq!(stage.view().await?.sessions.len(), 0, "the sessions that are left");
    Ok(())
}

async fn an_operators_record(stage: Stage) -> Outcome {
    for times in 0..POLLS_MAX {
        let key = RecordKey::Workload(format!("w{times}").parse().map_err(Failure::new)?);
        let record = Some(Record::Workload(WorkloadRecord::new(7)));
        poll(stage.put(key.clone(), record.clone(), None), times).await.transpose()?;
        ensure!(stage.again().await?.put(key.clone(), record.clone(), None).await?, "the retry was refused");
        let read = stage.view().await?.records.remove(&key).map(|read| read.record);
        ensure_eq!(read, record, "the record after {times} polls");
    }
    Ok(())
}

async fn reading(stage: Stage) -> Outcome {
    let a = stage.open("a").await?;
    stage.acquire(a, &slot(0)?, NONE).await?;
    let before = stage.snapshot(Some(a)).await?;
    for times in 0..POLLS_MAX {
        poll(stage.snapshot(Some(a)), times).await.transpose()?;
        poll(stage.beat(a), times).await.transpose()?;
        poll(stage.watch(), times).await.transpose()?;
    }
    let after = stage.snapshot(Some(a)).await?;
    ensure_eq!((after.0.revision, after.1), (before.0.revision, before.1), "what was read and dropped");
    Ok(())
}

async fn does_not_harm_the_handle(stage: Stage) -> Outcome {
    let a = stage.open("a").await?;
    for times in 0..60 {
        let (at, kind) = (slot(times)?, ChangeKind::Acquire { operation: operation() });
        poll(stage.change(a, &at, NONE, kind.clone()), fastrand::usize(0..4)).await.transpose()?;
        // The same handle: answers must not be mixed up with those of requests that were dropped.
        let record = stage.done(a, &at, NONE, kind).await?;
        ensure!(record.is_held_by(a), "the record of {at}: {record:?}");
        ensure_eq!(stage.beat(a).await?.held.count, u64::from(times) + 1, "what the session holds");
    }
    Ok(())
}
