//! Operators: their records are compared and set, their force is for one token.

use std::sync::Arc;
use std::time::Duration;

use rendez_core::{
    AdminRequest, ClusterSettings, Declared, ErrorKind, FencingToken, NodeWish, OpenRequest, Record, RecordKey,
    Revision, UNITS_MAX, WorkloadRecord,
};

use super::super::Failure;
use super::super::case::{Outcome, cases, ensure, ensure_eq};
use super::super::stage::{NONE, Stage, acquire, kind, opened, release, slot, slot_of};

cases! { "records";
    every_kind_comes_back_as_it_was,
    a_write_is_compared_and_set,
    writing_the_same_changes_nothing,
    of_concurrent_writers_one_wins,
    what_cannot_be_is_refused,
    operators_need_no_session,
    a_deleted_workload_takes_its_free_slots_along,
    a_declared_workload_keeps_its_slots,
    force_asks_the_holder_of_that_token,
    force_now_does_not_wait,
    force_of_a_free_slot_changes_nothing,
}

fn workload(units: u32) -> Option<Record> {
    Some(Record::Workload(WorkloadRecord::new(units)))
}

async fn every_kind_comes_back_as_it_was(stage: Stage) -> Outcome {
    let mut settings = ClusterSettings::new(stage.ttl());
    settings.cold_start_hold = Duration::from_secs(3);
    settings.move_budget = u32::MAX;
    let mut jobs = WorkloadRecord::new(UNITS_MAX);
    jobs.paused = true;
    jobs.cap_per_node = Some(4_000_000_000);
    jobs.zones.insert("z 1".parse().map_err(Failure::new)?);
    jobs.labels.insert("\u{1f980}\"\n".to_owned(), "\\u0000".to_owned());
    jobs.policy = Some(rendez_core::placement::Policy::Rendezvous);
    let mut wish = NodeWish::default();
    (wish.cordon, wish.drain, wish.weight) = (true, true, Some(u32::MAX));
    let name = |name: &str| name.parse().map_err(Failure::new);
    let written = [
        (RecordKey::Settings, Record::Settings(settings)),
        (RecordKey::Workload("jobs".parse().map_err(Failure::new)?), Record::Workload(jobs)),
        (RecordKey::Node(name("a")?), Record::Node(wish)),
        (RecordKey::Pin(slot(UNITS_MAX - 1)?), Record::Pin(name("b")?)),
    ];
    for (key, record) in &written {
        ensure!(stage.put(key.clone(), Some(record.clone()), Some(Revision(0))).await?, "{key:?} was refused");
    }
    let (stamp, view) = stage.snapshot(None).await?;
    ensure_eq!(view.records.len(), written.len(), "how many records there are");
    for (key, record) in &written {
        let read = view.records.get(key);
        ensure_eq!(read.map(|read| &read.record), Some(record), "{key:?}");
        ensure!(read.is_some_and(|read| read.revision > Revision(0) && read.revision <= stamp.revision), "{read:?}");
    }
    Ok(())
}

async fn a_write_is_compared_and_set(stage: Stage) -> Outcome {
    let key = RecordKey::Workload("jobs".parse().map_err(Failure::new)?);
    let read = || {
        let (stage, key) = (stage.clone(), key.clone());
        async move { Outcome::Ok(stage.view().await?.records.get(&key).cloned()) }
    };
    ensure!(!stage.put(key.clone(), workload(1), Some(Revision(5))).await?, "there is none to compare with");
    ensure!(stage.put(key.clone(), workload(1), Some(Revision(0))).await?, "there is none, as expected");
    ensure!(!stage.put(key.clone(), workload(2), Some(Revision(0))).await?, "there is one by now");
    let Some(first) = read().await? else { return Err(Failure::new("the record is missing")) };
    ensure_eq!(Some(first.record.clone()), workload(1), "the record after refused writes");
    let wrong = Revision(first.revision.0 + 1);
    ensure!(!stage.put(key.clone(), workload(2), Some(wrong)).await?, "it has another revision");
    ensure!(!stage.put(key.clone(), None, Some(wrong)).await?, "it has another revision");
    ensure!(stage.put(key.clone(), workload(2), Some(first.revision)).await?, "it has this revision");
    let Some(second) = read().await? else { return Err(Failure::new("the record is missing")) };
    ensure!(second.revision > first.revision && Some(second.record) == workload(2), "the record after the write");
    ensure!(!stage.put(key.clone(), None, Some(first.revision)).await?, "it had this revision before");
    ensure!(stage.put(key.clone(), workload(3), None).await?, "nothing is compared");
    ensure!(stage.put(key.clone(), None, None).await?, "nothing is compared");
    ensure_eq!(read().await?, None, "the record after its deletion");
    ensure!(stage.put(key.clone(), None, Some(Revision(0))).await?, "it is gone, as expected");
    ensure!(!stage.put(key, None, Some(second.revision)).await?, "it is gone");
    Ok(())
}

async fn writing_the_same_changes_nothing(stage: Stage) -> Outcome {
    let key = RecordKey::Workload("jobs".parse().map_err(Failure::new)?);
    stage.put(key.clone(), workload(3), None).await?;
    let before = stage.snapshot(None).await?;
    ensure!(stage.put(key.clone(), workload(3), None).await?, "the same was refused");
    stage.put(RecordKey::Node("nobody".parse().map_err(Failure::new)?), None, None).await?;
    let after = stage.snapshot(None).await?;
    ensure_eq!((after.0.revision, after.1), (before.0.revision, before.1), "revision and records");
    Ok(())
}

async fn of_concurrent_writers_one_wins(stage: Stage) -> Outcome {
    let key = RecordKey::Workload("jobs".parse().map_err(Failure::new)?);
    let mut expected = Revision(0);
    for _ in 0..3 {
        let mut racing = tokio::task::JoinSet::new();
        for writer in 0..6 {
            let (stage, key) = (stage.again().await?, key.clone());
            let units = writer + u32::try_from(expected.0).unwrap_or(0) * 10 + 1;
            racing.spawn(async move { (units, stage.put(key, workload(units), Some(expected)).await) });
        }
        let mut winners = Vec::new();
        for (units, done) in racing.join_all().await {
            if done? {
                winners.push(units);
            }
        }
        ensure_eq!(winners.len(), 1, "how many writers of one revision won");
        let record = stage.view().await?.records.remove(&key);
        ensure_eq!(record.as_ref().map(|read| read.record.clone()), workload(winners[0]), "what was written");
        expected = record.map(|read| read.revision).unwrap_or_default();
    }
    Ok(())
}

async fn what_cannot_be_is_refused(stage: Stage) -> Outcome {
    stage.open("a").await?;
    let before = stage.view().await?;
    let name = || "a".parse().map_err(Failure::new);
    let mut weightless = NodeWish::default();
    weightless.weight = Some(0);
    let jobs = RecordKey::Workload("jobs".parse().map_err(Failure::new)?);
    for (key, record) in [
        (RecordKey::Settings, Record::Pin(name()?)),
        (RecordKey::Settings, Record::Settings(ClusterSettings::new(Duration::ZERO))),
        (RecordKey::Settings, Record::Settings(ClusterSettings::new(Duration::MAX))),
        (jobs.clone(), Record::Workload(WorkloadRecord::new(UNITS_MAX + 1))),
        (jobs, Record::Node(NodeWish::default())),
        (RecordKey::Node(name()?), Record::Node(weightless)),
        (RecordKey::Pin(slot(0)?), Record::Workload(WorkloadRecord::new(1))),
        (RecordKey::Pin(slot(UNITS_MAX)?), Record::Pin(name()?)),
    ] {
        let request = AdminRequest::Put { key, record: Some(record), expect: None };
        let came = kind(stage.store.administer(&stage.cluster, &request).await)?;
        ensure_eq!(came, ErrorKind::Fatal, "{request:?}");
    }
    ensure_eq!(stage.view().await?, before, "the records after it");
    Ok(())
}

async fn operators_need_no_session(stage: Stage) -> Outcome {
    let key = RecordKey::Workload("jobs".parse().map_err(Failure::new)?);
    ensure!(stage.put(key.clone(), workload(2), None).await?, "the first write of a cluster was refused");
    let (stamp, view) = stage.snapshot(None).await?;
    ensure_eq!(view.records.keys().collect::<Vec<_>>(), [&key], "the records");
    let a = stage.open("a").await?;
    ensure_eq!(stage.beat(a).await?.stamp.generation, stamp.generation, "the generation after the first session");
    ensure_eq!(stage.view().await?.records.len(), 2, "the workload and the first node's settings");
    Ok(())
}

async fn a_deleted_workload_takes_its_free_slots_along(stage: Stage) -> Outcome {
    let (a, b) = (stage.open("a").await?, stage.open("b").await?);
    let slots = [slot_of("jobs", 0)?, slot_of("jobs", 1)?, slot_of("jobs", 2)?, slot_of("other", 0)?];
    let key = RecordKey::Workload(slots[0].workload.clone());
    stage.put(key.clone(), workload(3), None).await?;
    for (session, at) in [a, b, a, b].into_iter().zip(&slots) {
        stage.acquire(session, at, NONE).await?;
    }
    let token = stage.record(&slots[2]).await?.map_or(NONE, |record| record.token);
    stage.done(a, &slots[2], token, release()).await?;
    stage.close(b).await?;
    ensure!(stage.put(key.clone(), None, None).await?, "the deletion was refused");
    let left: Vec<_> = stage.view().await?.slots.into_keys().collect();
    ensure_eq!(left, [slots[0].clone(), slots[3].clone()], "what is held stays, and what is of another workload");
    ensure_eq!(stage.beat(a).await?.held.count, 1, "what the session holds");
    stage.close(a).await?;
    ensure!(stage.put(key, None, None).await?, "deleting again was refused");
    ensure_eq!(stage.view().await?.slots.into_keys().collect::<Vec<_>>(), [slots[3].clone()], "what is left then");
    Ok(())
}

async fn a_declared_workload_keeps_its_slots(stage: Stage) -> Outcome {
    let at = slot_of("jobs", 0)?;
    let mut info = stage.info("a")?;
    info.workloads.insert(at.workload.clone(), Declared::new(1));
    let request = OpenRequest { info: Arc::new(info), ..stage.open_request("a")? };
    let a = opened(&stage.try_open(&request).await?)?;
    let b = stage.open("b").await?;
    let token = stage.acquire(b, &at, NONE).await?;
    stage.done(b, &at, token, release()).await?;
    let key = RecordKey::Workload(at.workload.clone());
    ensure!(stage.put(key.clone(), None, None).await?, "the deletion was refused");
    ensure!(stage.record(&at).await?.is_some(), "a slot of a declared workload must stay");
    stage.close(a).await?;
    ensure!(stage.put(key, None, None).await?, "the deletion was refused");
    ensure_eq!(stage.record(&at).await?, None, "the slot when nobody declares its workload any more");
    Ok(())
}

async fn force_asks_the_holder_of_that_token(stage: Stage) -> Outcome {
    let (a, at) = (stage.open("a").await?, slot(0)?);
    let first = stage.acquire(a, &at, NONE).await?;
    let token = stage.acquire(a, &at, first).await?;
    let before = stage.record(&at).await?;
    for stale in [NONE, first, FencingToken::new(token.get() + 1)] {
        for now in [false, true] {
            let request = AdminRequest::ForceRelease { slot: at.clone(), token: stale, now };
            ensure!(!stage.administer(&request).await?, "a token that the slot has not: {stale}");
        }
    }
    let unknown = AdminRequest::ForceRelease { slot: slot(9)?, token: NONE, now: true };
    ensure!(!stage.administer(&unknown).await?, "a slot that was never granted");
    ensure_eq!(stage.record(&at).await?, before, "the record after refused requests");
    ensure!(stage.administer(&AdminRequest::ForceRelease { slot: at.clone(), token, now: false }).await?, "refused");
    let record = stage.record(&at).await?;
    ensure!(
        record.as_ref().is_some_and(|slot| slot.is_held_by(a) && slot.force == Some(token) && slot.token == token),
        "the holder is asked, and holds on: {record:?}"
    );
    let record = stage.done(a, &at, token, release()).await?;
    ensure_eq!(record.force, None, "the wish after the release");
    Ok(())
}

async fn force_now_does_not_wait(stage: Stage) -> Outcome {
    let (a, b, at) = (stage.open("a").await?, stage.open("b").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    let request = AdminRequest::ForceRelease { slot: at.clone(), token, now: true };
    ensure!(stage.administer(&request).await?, "the operator was refused");
    let record = stage.record(&at).await?;
    ensure!(
        record.as_ref().is_some_and(|slot| slot.holder.is_none() && slot.token == token && slot.freed_at.is_some()),
        "the slot is free at once, with its token: {record:?}"
    );
    ensure_eq!(stage.beat(a).await?.held.count, 0, "what the old holder holds");
    let next = stage.acquire(b, &at, token).await?;
    ensure!(next > token, "tokens rise: {token}, then {next}");
    ensure!(!stage.administer(&request).await?, "a late force is for another token");
    ensure!(stage.record(&at).await?.is_some_and(|slot| slot.is_held_by(b)), "a late force took the slot away");
    Ok(())
}

async fn force_of_a_free_slot_changes_nothing(stage: Stage) -> Outcome {
    let (a, at) = (stage.open("a").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    stage.done(a, &at, token, release()).await?;
    let before = stage.snapshot(None).await?;
    for now in [false, true] {
        let request = AdminRequest::ForceRelease { slot: at.clone(), token, now };
        ensure!(stage.administer(&request).await?, "a free slot with this token counts as let go");
    }
    let after = stage.snapshot(None).await?;
    ensure_eq!((after.0.revision, after.1), (before.0.revision, before.1), "revision and records");
    stage.done(a, &at, token, acquire()).await.map(drop)
}
