//! Reading: snapshots are whole, changes are all told, and who is too late is sent to a snapshot.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rendez_core::{
    Change, Cursor, ErrorKind, Generation, HeartbeatRequest, Record, RecordKey, Revision, SnapshotRequest, Sync,
    WorkloadRecord,
};

use super::super::Failure;
use super::super::case::{Outcome, cases, ensure, ensure_eq};
use super::super::stage::{NONE, Stage, View, acquire, is_gone, kind, release, slot, slot_of};

cases! { "reading";
    an_empty_cluster_is_read,
    a_snapshot_holds_everything_once_all_pages_are_read,
    a_snapshot_taken_while_things_change_is_whole_with_the_changes_since,
    a_cursor_that_cannot_be_is_a_conflict,
    nothing_is_told_that_was_not_asked_for,
    changes_come_oldest_first_and_each_record_once,
    changes_come_in_pages,
    every_kind_of_change_is_told,
    what_was_deleted_is_told,
    no_change_of_concurrent_writers_is_missed,
    who_is_too_late_is_sent_to_a_snapshot_or_told_everything,
    who_knows_another_generation_is_sent_to_a_snapshot,
    revisions_rise_with_every_change,
    the_clock_does_not_go_back,
}

async fn an_empty_cluster_is_read(stage: Stage) -> Outcome {
    let (first, view) = stage.snapshot(None).await?;
    ensure_eq!(view, View::default(), "the records of an empty cluster");
    let (second, _) = stage.snapshot(None).await?;
    ensure_eq!((first.generation, first.revision), (second.generation, second.revision), "reading changes nothing");
    Ok(())
}

async fn a_snapshot_holds_everything_once_all_pages_are_read(stage: Stage) -> Outcome {
    let most = u32::try_from(stage.capabilities.changes_max).unwrap_or(u32::MAX);
    let mut sessions = BTreeSet::new();
    for number in 0..5 {
        sessions.insert(stage.open(&format!("n{number}")).await?);
    }
    let Some(first) = sessions.first().copied() else { return Ok(()) };
    let total = most.min(512) * 2 + 7;
    for from in (0..total).step_by(most as usize) {
        let batch = (from..total.min(from + most))
            .map(|unit| Ok(rendez_core::SlotChange { slot: slot(unit)?, token: NONE, kind: acquire() }));
        stage.changes(first, batch.collect::<Outcome<_>>()?).await?;
    }
    for number in 0..5 {
        let key = RecordKey::Workload(format!("w{number}").parse().map_err(Failure::new)?);
        stage.put(key, Some(Record::Workload(WorkloadRecord::new(number))), None).await?;
    }
    let view = stage.view().await?;
    ensure_eq!(view.sessions.into_keys().collect::<BTreeSet<_>>(), sessions, "the sessions");
    let units: Vec<_> = view.slots.keys().map(|slot| slot.unit).collect();
    ensure_eq!(units.len(), total as usize, "how many slots a snapshot holds");
    ensure_eq!(view.records.len(), 6, "the operators' records: settings and five workloads");
    Ok(())
}

async fn a_snapshot_taken_while_things_change_is_whole_with_the_changes_since(stage: Stage) -> Outcome {
    let (a, b) = (stage.open("a").await?, stage.open("b").await?);
    let most = stage.capabilities.changes_max.min(512);
    let mut tokens = Vec::new();
    for unit in 0..most as u32 + 60 {
        tokens.push(stage.acquire(a, &slot(unit)?, NONE).await?);
    }
    // Something changes after each page: what was read already, and what is read later.
    let (mut view, mut cursor, mut first, mut round) = (View::default(), None, None, 0_usize);
    loop {
        let request = SnapshotRequest { known: stage.known.clone(), session: None, cursor };
        let page = stage.store.snapshot(&stage.cluster, &request).await?;
        first.get_or_insert(page.stamp);
        page.items.into_iter().for_each(|item| view.apply(item));
        cursor = page.next;
        for at in [round, tokens.len() - 1 - round] {
            stage.done(a, &slot(at as u32)?, tokens[at], release()).await?;
        }
        stage.acquire(b, &slot_of("new", round as u32)?, NONE).await?;
        stage.open(&format!("c{round}")).await?;
        round += 1;
        if cursor.is_none() {
            break;
        }
        ensure!(round < 25, "a snapshot of {} slots has {round} pages", tokens.len());
    }
    let Some(first) = first else { return Err(Failure::new("a snapshot has a page")) };
    stage.sync(b, &first, 512, &mut view).await?;
    ensure_eq!(view, stage.view().await?, "the snapshot and the changes since, and what is");
    Ok(())
}

async fn a_cursor_that_cannot_be_is_a_conflict(stage: Stage) -> Outcome {
    stage.open("a").await?;
    for text in ["", "nonsense", "0 0", "\u{1f980}/1/2", "00000000000000000000000000000000 slot x/1"] {
        let request =
            SnapshotRequest { known: stage.known.clone(), session: None, cursor: Some(Cursor(text.to_owned())) };
        let came = kind(stage.store.snapshot(&stage.cluster, &request).await)?;
        ensure_eq!(came, ErrorKind::Conflict, "the cursor {text:?}");
    }
    Ok(())
}

async fn nothing_is_told_that_was_not_asked_for(stage: Stage) -> Outcome {
    let a = stage.open("a").await?;
    ensure_eq!(stage.beat(a).await?.sync, Sync::NotAsked, "the changes of a heartbeat that asks for none");
    let (stamp, _) = stage.snapshot(None).await?;
    let mut request = stage.beat_request(a);
    request.known.generation = Some(stamp.generation);
    request.since = Some(stamp.revision);
    let sync = stage.store.heartbeat(&stage.cluster, &request).await?.sync;
    ensure_eq!(sync, Sync::Changes { changes: vec![], up_to: stamp.revision, more: false }, "changes where none were");
    Ok(())
}

async fn changes_come_oldest_first_and_each_record_once(stage: Stage) -> Outcome {
    let a = stage.open("a").await?;
    let (stamp, _) = stage.snapshot(None).await?;
    let mut tokens = Vec::new();
    for unit in 0..4 {
        tokens.push(stage.acquire(a, &slot(unit)?, NONE).await?);
    }
    stage.done(a, &slot(1)?, tokens[1], release()).await?;
    let mut request = stage.beat_request(a);
    request.known.generation = Some(stamp.generation);
    request.since = Some(stamp.revision);
    let beat = stage.store.heartbeat(&stage.cluster, &request).await?;
    let Sync::Changes { changes, up_to, more } = beat.sync else { return Err(Failure::new("changes were expected")) };
    let units: Vec<_> = changes
        .iter()
        .filter_map(|change| match change {
            Change::Slot(slot, Some(record)) => Some((slot.unit, record.revision)),
            Change::Slot(_, None) | Change::Session(..) | Change::Record(..) => None,
        })
        .collect();
    ensure_eq!(units.iter().map(|(unit, _)| *unit).collect::<Vec<_>>(), [0, 2, 3, 1], "the slots, oldest change first");
    ensure!(units.is_sorted_by_key(|(_, revision)| *revision), "the records' revisions: {units:?}");
    ensure_eq!((up_to, more), (beat.stamp.revision, false), "how far the changes lead");
    Ok(())
}

async fn changes_come_in_pages(stage: Stage) -> Outcome {
    let a = stage.open("a").await?;
    let (stamp, start) = stage.snapshot(None).await?;
    for unit in 0..10 {
        stage.acquire(a, &slot(unit)?, NONE).await?;
    }
    let (end, truth) = stage.snapshot(None).await?;
    for changes_max in [1, 3, 4, 10, 11, u32::MAX] {
        let mut view = start.clone();
        let up_to = stage.sync(a, &stamp, changes_max, &mut view).await?;
        ensure_eq!((up_to, &view), (end.revision, &truth), "what pages of {changes_max} lead to");
    }
    let mut request = stage.beat_request(a);
    request.known.generation = Some(stamp.generation);
    (request.since, request.changes_max) = (Some(stamp.revision), 4);
    let sync = stage.store.heartbeat(&stage.cluster, &request).await?.sync;
    ensure!(
        matches!(&sync, Sync::Changes { changes, more: true, .. } if !changes.is_empty() && changes.len() <= 4),
        "at most four changes and the word that there are more: {sync:?}"
    );
    Ok(())
}

async fn every_kind_of_change_is_told(stage: Stage) -> Outcome {
    let (watcher, a) = (stage.open("watcher").await?, stage.open("a").await?);
    let (mut stamp, mut view) = stage.snapshot(None).await?;
    let at = slot(0)?;
    let key = RecordKey::Pin(at.clone());
    let mut b = None;
    let mut token = NONE;
    for step in 0..9 {
        match step {
            0 => token = stage.acquire(a, &at, token).await?,
            1 => b = Some(stage.open("b").await?),
            2 => drop(stage.offered(a, b.unwrap_or(a), &at, token).await?),
            3 => drop(stage.done(a, &at, token, release()).await?),
            4 => drop(stage.put(key.clone(), Some(Record::Pin("b".parse().map_err(Failure::new)?)), None).await?),
            5 => drop(stage.put(key.clone(), None, None).await?),
            6 => token = stage.acquire(a, &at, token).await?,
            7 => {
                let force = rendez_core::AdminRequest::ForceRelease { slot: at.clone(), token, now: false };
                stage.administer(&force).await?;
            }
            _ => stage.close(a).await?,
        }
        stamp.revision = stage.sync(watcher, &stamp, 512, &mut view).await?;
        ensure_eq!(view, stage.view().await?, "what was told by step {step}, and what is");
    }
    Ok(())
}

async fn what_was_deleted_is_told(stage: Stage) -> Outcome {
    let (watcher, a) = (stage.open("watcher").await?, stage.open("a").await?);
    let at = slot_of("jobs", 0)?;
    let key = RecordKey::Workload(at.workload.clone());
    stage.put(key.clone(), Some(Record::Workload(WorkloadRecord::new(1))), None).await?;
    let token = stage.acquire(a, &at, NONE).await?;
    stage.done(a, &at, token, release()).await?;
    let (stamp, mut view) = stage.snapshot(None).await?;
    stage.put(key.clone(), None, None).await?;
    stage.close(a).await?;
    let mut request = stage.beat_request(watcher);
    request.known.generation = Some(stamp.generation);
    request.since = Some(stamp.revision);
    let Sync::Changes { changes, .. } = stage.store.heartbeat(&stage.cluster, &request).await?.sync else {
        return Err(Failure::new("changes were expected"));
    };
    ensure!(changes.iter().all(is_gone), "these are gone: {changes:?}");
    ensure_eq!(changes.len(), 3, "a record, a slot and a session");
    changes.into_iter().for_each(|change| view.apply(change));
    ensure_eq!(view, stage.view().await?, "what was told, and what is");
    Ok(())
}

async fn no_change_of_concurrent_writers_is_missed(stage: Stage) -> Outcome {
    const WRITERS: u32 = 4;
    const ROUNDS: u32 = 30;
    let watcher = stage.open("watcher").await?;
    let (mut stamp, mut view) = stage.snapshot(None).await?;
    let mut writing = tokio::task::JoinSet::new();
    for number in 0..WRITERS {
        let stage = stage.again().await?;
        writing.spawn(async move {
            let session = stage.open(&format!("n{number}")).await?;
            let mut token = vec![NONE; 3];
            for round in 0..ROUNDS {
                let unit = round % 3;
                let at = slot(number * 10 + unit)?;
                let before = token[unit as usize];
                token[unit as usize] = stage.acquire(session, &at, before).await?;
                if round % 4 == 3 {
                    stage.done(session, &at, token[unit as usize], release()).await?;
                }
            }
            Outcome::Ok(())
        });
    }
    let ended = Arc::new(AtomicBool::new(false));
    let reading = tokio::spawn({
        let (stage, ended) = (stage.again().await?, Arc::clone(&ended));
        async move {
            loop {
                let last = ended.load(Ordering::SeqCst);
                stamp.revision = stage.sync(watcher, &stamp, 5, &mut view).await?;
                if last {
                    return Outcome::Ok(view);
                }
            }
        }
    });
    for written in writing.join_all().await {
        written?;
    }
    ended.store(true, Ordering::SeqCst);
    let told = reading.await.map_err(Failure::new)??;
    ensure_eq!(told, stage.view().await?, "what was told bit by bit, and what is");
    Ok(())
}

async fn who_is_too_late_is_sent_to_a_snapshot_or_told_everything(stage: Stage) -> Outcome {
    let a = stage.open("a").await?;
    let (stamp, start) = stage.snapshot(None).await?;
    let mut tokens = [NONE; 3];
    for round in 0..40 {
        let b = stage.open("b").await?;
        let unit = round % 3;
        tokens[unit] = stage.acquire(b, &slot(unit as u32)?, tokens[unit]).await?;
        stage.close(b).await?;
    }
    for since in [Revision(0), Revision(1), stamp.revision] {
        let mut view = if since == stamp.revision { start.clone() } else { View::default() };
        let request = HeartbeatRequest {
            known: rendez_core::Known { generation: Some(stamp.generation), ..stage.known.clone() },
            since: Some(since),
            ..stage.beat_request(a)
        };
        match stage.store.heartbeat(&stage.cluster, &request).await?.sync {
            Sync::Snapshot => {}
            Sync::Changes { .. } if since.0 == 1 => {}
            Sync::Changes { .. } => {
                let from = rendez_core::Stamp { revision: since, ..stamp.clone() };
                stage.sync(a, &from, 512, &mut view).await?;
                ensure_eq!(view, stage.view().await?, "all changes since {since}, and what is");
            }
            Sync::NotAsked => return Err(Failure::new("changes were asked for")),
        }
    }
    Ok(())
}

async fn who_knows_another_generation_is_sent_to_a_snapshot(stage: Stage) -> Outcome {
    let a = stage.open("a").await?;
    let (stamp, _) = stage.snapshot(None).await?;
    let beat = |generation, since| {
        let mut request = stage.beat_request(a);
        request.known.generation = generation;
        request.since = Some(since);
        let stage = stage.clone();
        async move { stage.store.heartbeat(&stage.cluster, &request).await }
    };
    let sync = beat(None, stamp.revision).await?.sync;
    ensure_eq!(sync, Sync::Snapshot, "changes for a node that names no generation");
    let future = Revision(stamp.revision.0 + 1000);
    let sync = beat(Some(stamp.generation), future).await?.sync;
    ensure_eq!(sync, Sync::Snapshot, "changes since a revision that was not reached");
    // Last, since a report of another generation means that data were lost.
    let sync = beat(Some(Generation::from_bits(fastrand::u128(1..))), stamp.revision).await?.sync;
    ensure_eq!(sync, Sync::Snapshot, "changes since a revision of another generation");
    Ok(())
}

async fn revisions_rise_with_every_change(stage: Stage) -> Outcome {
    let a = stage.open("a").await?;
    let mut last = stage.snapshot(None).await?.0.revision;
    let mut token = NONE;
    for _ in 0..4 {
        token = stage.acquire(a, &slot(0)?, token).await?;
        let (stamp, view) = stage.snapshot(None).await?;
        let record = view.slots.get(&slot(0)?).map(|slot| slot.revision).unwrap_or_default();
        ensure!(
            record > last && record <= stamp.revision,
            "before {last}, the record {record}, now {}",
            stamp.revision
        );
        last = stamp.revision;
    }
    Ok(())
}

async fn the_clock_does_not_go_back(stage: Stage) -> Outcome {
    let (mut last, handles) = (None, [stage.clone(), stage.again().await?]);
    for round in 0..20 {
        let stamp = handles[round % 2].snapshot(None).await?.0;
        ensure!(Some(stamp.now) >= last, "the store's clock: {last:?}, then {:?}", stamp.now);
        last = Some(stamp.now);
    }
    Ok(())
}
