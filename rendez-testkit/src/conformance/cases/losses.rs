//! When data were lost, or may have been: nothing is granted until whoever held it has ended, and who runs stays.

use std::sync::Arc;
use std::time::Duration;

use rendez_core::{
    Beat, ChangeKind, ClusterSettings, Conflict, ErrorKind, Fencing, FencingToken, Generation, Known, NodeInfo,
    OpenRequest, SessionId, Stamp, StoreError, TOKEN_FLOOR_STEP,
};
use tokio::time::Instant;

use super::super::Failure;
use super::super::case::{Outcome, cases, ensure, ensure_eq};
use super::super::stage::{NONE, SOON, Stage, acquire, kind, name, opened, operation, release, slot, transfer};

cases! { "losses";
    a_report_of_another_generation_sets_off_a_quiet_time,
    a_report_counts_even_where_the_request_is_refused,
    one_loss_is_one_quiet_time,
    a_late_report_of_the_past_can_lengthen_the_quiet_time,
    in_the_quiet_time_nothing_is_granted,
    what_runs_is_readopted_in_the_quiet_time,
    readopting_has_its_conditions,
    the_quiet_time_covers_the_longest_ttl_that_anybody_knows,
    a_new_cluster_waits_where_the_settings_say_so,
    a_restart_loses_nothing_or_sets_off_a_quiet_time [Restart],
    tokens_rise_across_a_restart [Restart],
    who_remembers_notices_that_everything_was_lost [RestartEmpty],
    who_remembers_nothing_takes_an_empty_store_for_a_new_cluster [RestartEmpty],
    tokens_rise_across_a_failover [FailOver],
}

/// The TTL of sessions in clusters that lose their data, where the store permits it: short, so that the quiet time is,
/// and long enough that a slow machine loses none.
const TTL: Duration = Duration::from_secs(3);
/// A second is added to every quiet time.
const MARGIN: Duration = Duration::from_secs(1);
/// Rounding of times to what a store counts in.
const ROUNDING: Duration = Duration::from_millis(2);

/// A cluster of short sessions, so that its quiet time is short.
async fn open_in_short(stage: &Stage, node: &str) -> Outcome<SessionId> {
    let ttl = stage.granted(TTL);
    let info = NodeInfo::new(name(node)?, ClusterSettings::new(ttl));
    opened(&stage.try_open(&OpenRequest { ttl, info: Arc::new(info), ..stage.open_request(node)? }).await?)
}

/// The same stage, which remembers this much.
fn knowing(stage: &Stage, generation: Generation, token: FencingToken) -> Stage {
    stage.knowing(Known { generation: Some(generation), token, session_ttl_max: stage.granted(TTL) })
}

fn foreign() -> Generation {
    Generation::from_bits(fastrand::u128(1..))
}

async fn a_report_of_another_generation_sets_off_a_quiet_time(stage: Stage) -> Outcome {
    let a = stage.open("a").await?;
    let token = stage.acquire(a, &slot(0)?, NONE).await?;
    let before = stage.beat(a).await?;
    ensure_eq!(before.stamp.quiet, Duration::ZERO, "the quiet time in ordinary times");
    let beat = knowing(&stage, foreign(), NONE).beat(a).await?;
    ensure!(beat.stamp.generation != before.stamp.generation, "a report of another generation draws a new one");
    let lasts = stage.ttl() + stage.capabilities.replica_lag_max + MARGIN;
    let quiet = beat.stamp.quiet;
    ensure!(!quiet.is_zero() && quiet <= lasts + ROUNDING, "{quiet:?} of quiet, at most {lasts:?} was expected");
    ensure!(quiet + SOON > lasts, "{quiet:?} of quiet, {lasts:?} was expected");
    let floor = before.stamp.token.get().max(token.get()) + TOKEN_FLOOR_STEP;
    ensure!(beat.stamp.token.get() >= floor, "the floor of the tokens is {}, not {floor}", beat.stamp.token);
    ensure_eq!(beat.held, before.held, "what the session holds");
    Ok(())
}

async fn a_report_counts_even_where_the_request_is_refused(stage: Stage) -> Outcome {
    let a = stage.open("a").await?;
    let before = stage.beat(a).await?.stamp;
    let nobody = SessionId::from_bits(fastrand::u128(1..));
    let answer = knowing(&stage, foreign(), NONE).try_beat(nobody).await;
    ensure_eq!(kind(answer)?, ErrorKind::Lost, "a heartbeat of a session that never was");
    let after = stage.beat(a).await?.stamp;
    ensure!(
        after.generation != before.generation && !after.quiet.is_zero(),
        "what it reported was not heard: {after:?}"
    );
    let knowing = knowing(&stage, foreign(), NONE);
    let mut request = knowing.beat_request(a);
    request.info = Some(Arc::new(knowing.info("b")?));
    let answer = stage.store.heartbeat(&stage.cluster, &request).await;
    ensure_eq!(kind(answer)?, ErrorKind::Fatal, "a heartbeat that makes its session another node's");
    let last = stage.beat(a).await?.stamp;
    ensure!(last.generation != after.generation && !last.quiet.is_zero(), "what it reported was not heard: {last:?}");
    Ok(())
}

async fn one_loss_is_one_quiet_time(stage: Stage) -> Outcome {
    let a = stage.open("a").await?;
    let first = stage.beat(a).await?.stamp.generation;
    let lost = foreign();
    let second = knowing(&stage, lost, NONE).beat(a).await?.stamp;
    // Others report the same, and what was current before; then it is known that they are the past.
    for known in [lost, first, second.generation, lost] {
        let stamp = knowing(&stage, known, NONE).beat(a).await?.stamp;
        ensure_eq!(stamp.generation, second.generation, "the generation after one more report of the past");
        ensure!(stamp.quiet <= second.quiet, "the quiet time began anew: {second:?}, then {stamp:?}");
    }
    let again = knowing(&stage, foreign(), NONE).beat(a).await?.stamp;
    ensure!(again.generation != second.generation, "a report of yet another generation is another loss");
    Ok(())
}

async fn a_late_report_of_the_past_can_lengthen_the_quiet_time(stage: Stage) -> Outcome {
    let a = stage.open("a").await?;
    let past = stage.beat(a).await?.stamp.generation;
    let lost = knowing(&stage, foreign(), NONE).beat(a).await?.stamp;
    let longer = stage.ttl() + Duration::from_secs(500);
    ensure!(longer <= stage.capabilities.ttl_max, "no room for a longer TTL");
    let mut late = knowing(&stage, past, NONE);
    late.known.session_ttl_max = longer;
    let told = late.beat(a).await?.stamp;
    ensure_eq!(told.generation, lost.generation, "the generation after a report of the past");
    let lasts = longer + stage.capabilities.replica_lag_max + MARGIN;
    let quiet = told.quiet;
    ensure!(quiet <= lasts + ROUNDING && quiet + SOON > lasts, "{quiet:?} of quiet, {lasts:?} was expected");
    // Who knows only of short leases does not shorten it, nor does who knows the present.
    for known in [past, lost.generation] {
        let after = knowing(&stage, known, NONE).beat(a).await?.stamp.quiet;
        ensure!(after <= quiet && after + SOON > quiet, "{quiet:?} of quiet became {after:?}");
    }
    Ok(())
}

async fn in_the_quiet_time_nothing_is_granted(stage: Stage) -> Outcome {
    let (a, b) = (stage.open("a").await?, stage.open("b").await?);
    let (mine, offered, at) = (slot(0)?, slot(1)?, slot(2)?);
    let retry = ChangeKind::Acquire { operation: operation() };
    let token = stage.done(a, &mine, NONE, retry.clone()).await?.token;
    let moving = stage.acquire(a, &offered, NONE).await?;
    let id = stage.offered(a, b, &offered, moving).await?;
    let stamp = knowing(&stage, foreign(), NONE).beat(a).await?.stamp;
    let stage = knowing(&stage, stamp.generation, NONE);
    stage.refused(b, &at, NONE, acquire(), Conflict::Quiet).await?;
    stage.refused(a, &mine, NONE, retry, Conflict::Quiet).await?;
    stage.refused(a, &mine, token, acquire(), Conflict::Quiet).await?;
    stage.refused(a, &offered, moving, transfer(id), Conflict::Quiet).await?;
    // What ends or prepares goes on.
    stage.open("c").await?;
    stage.done(a, &mine, token, release()).await?;
    stage.done(a, &offered, moving, ChangeKind::Withdraw { offer: id }).await.map(drop)
}

/// Beats until the quiet time is over.
async fn wait_out(stage: &Stage, session: SessionId) -> Outcome {
    let started = Instant::now();
    loop {
        let Beat { stamp, .. } = stage.beat(session).await?;
        if stamp.quiet.is_zero() {
            return Ok(());
        }
        ensure!(started.elapsed() < SOON + stamp.quiet, "the quiet time does not end: {stamp:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn what_runs_is_readopted_in_the_quiet_time(stage: Stage) -> Outcome {
    let (held, free) = (slot(0)?, slot(1)?);
    let a = open_in_short(&stage, "a").await?;
    let token = stage.acquire(a, &held, NONE).await?;
    let lost = FencingToken::new(token.get() + 1000);
    let stamp = knowing(&stage, foreign(), lost).beat(a).await?.stamp;
    let stage = knowing(&stage, stamp.generation, NONE);
    // What the record says, and a grant that the store has forgotten.
    for (at, token) in [(&held, token), (&free, lost)] {
        let record = stage.done(a, at, token, ChangeKind::Readopt).await?;
        ensure!(record.is_held_by(a) && record.token == token, "a re-adopted slot: {record:?}");
        ensure_eq!(stage.done(a, at, token, ChangeKind::Readopt).await?, record, "the retry");
    }
    let mut expected = rendez_core::Held::default();
    expected.add(&held, token);
    expected.add(&free, lost);
    ensure_eq!(stage.beat(a).await?.held, expected, "what the session holds");
    wait_out(&stage, a).await?;
    ensure_eq!(stage.beat(a).await?.held, expected, "what it holds when the quiet time is over");
    stage.refused(a, &held, token, ChangeKind::Readopt, Conflict::NotQuiet).await?;
    let next = stage.acquire(a, &slot(2)?, NONE).await?;
    ensure!(next > lost && next.get() > token.get() + TOKEN_FLOOR_STEP, "tokens rise: {token}, {lost}, then {next}");
    Ok(())
}

async fn readopting_has_its_conditions(stage: Stage) -> Outcome {
    let (a, b, at) = (stage.open("a").await?, stage.open("b").await?, slot(0)?);
    let first = stage.acquire(a, &at, NONE).await?;
    let token = stage.acquire(a, &at, first).await?;
    stage.refused(a, &at, token, ChangeKind::Readopt, Conflict::NotQuiet).await?;
    let old = stage.beat(a).await?.stamp.generation;
    let stamp = knowing(&stage, foreign(), NONE).beat(a).await?.stamp;
    let now = knowing(&stage, stamp.generation, NONE);
    stage.refused(a, &at, token, ChangeKind::Readopt, Conflict::NotQuiet).await?;
    knowing(&stage, old, NONE).refused(a, &at, token, ChangeKind::Readopt, Conflict::NotQuiet).await?;
    now.refused(a, &at, first, ChangeKind::Readopt, Conflict::Token).await?;
    now.refused(b, &slot(1)?, NONE, ChangeKind::Readopt, Conflict::Token).await?;
    now.refused(b, &at, token, ChangeKind::Readopt, Conflict::Held).await?;
    // A higher token is a later grant that was forgotten: it wins over the record.
    let later = FencingToken::new(token.get() + 5);
    let record = now.done(b, &at, later, ChangeKind::Readopt).await?;
    ensure!(record.is_held_by(b) && record.token == later, "a later grant: {record:?}");
    now.refused(a, &at, token, ChangeKind::Readopt, Conflict::Token).await?;
    // A copy that arrives after the release brings nothing back.
    now.done(b, &at, later, release()).await?;
    now.refused(b, &at, later, ChangeKind::Readopt, Conflict::NotHolder).await?;
    now.done(b, &at, FencingToken::new(later.get() + 1), ChangeKind::Readopt).await?;
    ensure_eq!((now.beat(a).await?.held.count, now.beat(b).await?.held.count), (0, 1), "what both hold");
    Ok(())
}

async fn the_quiet_time_covers_the_longest_ttl_that_anybody_knows(stage: Stage) -> Outcome {
    let a = stage.open("a").await?;
    let longer = stage.ttl() + Duration::from_secs(500);
    ensure!(longer <= stage.capabilities.ttl_max, "no room for a longer TTL");
    let mut knowing = knowing(&stage, foreign(), NONE);
    knowing.known.session_ttl_max = longer;
    let quiet = knowing.beat(a).await?.stamp.quiet;
    let lasts = longer + stage.capabilities.replica_lag_max + MARGIN;
    ensure!(quiet <= lasts + ROUNDING && quiet + SOON > lasts, "{quiet:?} of quiet, {lasts:?} was expected");
    Ok(())
}

async fn a_new_cluster_waits_where_the_settings_say_so(stage: Stage) -> Outcome {
    let mut settings = ClusterSettings::new(stage.ttl());
    settings.cold_start_hold = Duration::from_secs(30);
    // A look at it before does not count as its beginning.
    stage.view().await?;
    let info = Arc::new(NodeInfo::new(name("a")?, settings));
    let opening = stage.try_open(&OpenRequest { info, ..stage.open_request("a")? }).await?;
    let session = opened(&opening)?;
    let quiet = stage.beat(session).await?.stamp.quiet;
    ensure!(!quiet.is_zero() && quiet <= Duration::from_secs(30), "{quiet:?} of quiet, 30 s were expected");
    stage.refused(session, &slot(0)?, NONE, acquire(), Conflict::Quiet).await?;
    stage.open("b").await?;
    let later = stage.beat(session).await?.stamp.quiet;
    ensure!(later <= quiet, "the next session began it anew: {quiet:?}, then {later:?}");
    Ok(())
}

/// Asks until the server answers; a session may be lost.
async fn beat_again(stage: &Stage, session: SessionId) -> Outcome<Option<Beat>> {
    let started = Instant::now();
    loop {
        match stage.try_beat(session).await {
            Ok(beat) => return Ok(Some(beat)),
            Err(error) if error.kind() == ErrorKind::Lost => return Ok(None),
            Err(error) => passing(error, started).await?,
        }
    }
}

async fn passing(error: StoreError, started: Instant) -> Outcome {
    if !matches!(error.kind(), ErrorKind::Transient | ErrorKind::Ambiguous) || started.elapsed() > SOON {
        return Err(error.into());
    }
    tokio::time::sleep(Duration::from_millis(30)).await;
    Ok(())
}

/// After whatever has happened: another generation begins with a quiet time, the same one has lost nothing.
fn sound(before: &Stamp, after: &Stamp) -> Outcome {
    if after.generation == before.generation {
        ensure!(after.revision >= before.revision && after.token >= before.token, "{before:?}, then {after:?}");
    } else {
        ensure!(after.token.get() >= before.token.get() + TOKEN_FLOOR_STEP, "{before:?}, then {after:?}");
    }
    Ok(())
}

async fn a_restart_loses_nothing_or_sets_off_a_quiet_time(stage: Stage) -> Outcome {
    // Long sessions: whatever the restart takes, they live.
    let (a, at) = (stage.open("a").await?, slot(0)?);
    let token = stage.acquire(a, &at, NONE).await?;
    let before = stage.beat(a).await?.stamp;
    let view = stage.view().await?;
    stage.server().await?.restart().await?;
    let stage = knowing(&stage, before.generation, before.token);
    let Some(beat) = beat_again(&stage, a).await? else {
        return Err(Failure::new("a session was lost by a restart that keeps what was acknowledged"));
    };
    ensure_eq!(stage.view().await?, view, "the records after the restart");
    ensure_eq!(beat.held.count, 1, "what the session holds");
    sound(&before, &beat.stamp)?;
    if beat.stamp.generation == before.generation {
        ensure_eq!(beat.stamp.quiet, Duration::ZERO, "the quiet time where nothing was lost");
        stage.acquire(a, &at, token).await?;
    } else {
        ensure!(!beat.stamp.quiet.is_zero(), "another generation without a quiet time: {:?}", beat.stamp);
        stage.refused(a, &slot(1)?, NONE, acquire(), Conflict::Quiet).await?;
        let stage = knowing(&stage, beat.stamp.generation, NONE);
        stage.done(a, &at, token, ChangeKind::Readopt).await?;
    }
    Ok(())
}

async fn tokens_rise_across_a_restart(stage: Stage) -> Outcome {
    let at = slot(0)?;
    let mut highest = NONE;
    for round in 0..2 {
        let a = open_in_short(&stage, &format!("n{round}")).await?;
        wait_out(&stage, a).await?;
        let token = stage.acquire(a, &at, highest).await?;
        ensure!(token > highest, "{highest} before the restart, {token} after it");
        highest = token;
        stage.server().await?.restart().await?;
        beat_again(&stage, a).await?;
        // A store that has lost nothing still says that it holds the slot.
        stage.close(a).await?;
    }
    Ok(())
}

async fn who_remembers_notices_that_everything_was_lost(stage: Stage) -> Outcome {
    let a = open_in_short(&stage, "a").await?;
    let token = stage.acquire(a, &slot(0)?, NONE).await?;
    let before = stage.beat(a).await?.stamp;
    stage.server().await?.restart_empty().await?;
    let stage = knowing(&stage, before.generation, before.token.max(token));
    ensure!(beat_again(&stage, a).await?.is_none(), "a session has survived the loss of everything");
    let again = open_in_short(&stage, "a").await?;
    ensure!(again != a, "a session's id was given out twice");
    let stamp = stage.beat(again).await?.stamp;
    ensure!(stamp.generation != before.generation, "the generation after the loss of everything");
    sound(&before, &stamp)?;
    ensure!(!stamp.quiet.is_zero(), "whoever held a slot may run it still: {stamp:?}");
    stage.refused(again, &slot(1)?, NONE, acquire(), Conflict::Quiet).await?;
    let now = knowing(&stage, stamp.generation, NONE);
    let record = now.done(again, &slot(0)?, token, ChangeKind::Readopt).await?;
    ensure_eq!(record.token, token, "the token of what was re-adopted");
    wait_out(&now, again).await?;
    let next = now.acquire(again, &slot(1)?, NONE).await?;
    ensure!(next.get() > before.token.get() + TOKEN_FLOOR_STEP, "{} before the loss, {next} after it", before.token);
    Ok(())
}

async fn who_remembers_nothing_takes_an_empty_store_for_a_new_cluster(stage: Stage) -> Outcome {
    let a = open_in_short(&stage, "a").await?;
    let highest = stage.acquire(a, &slot(0)?, NONE).await?;
    let before = stage.beat(a).await?.stamp;
    stage.server().await?.restart_empty().await?;
    beat_again(&stage, a).await?;
    let b = open_in_short(&stage, "b").await?;
    let fresh = stage.beat(b).await?.stamp;
    ensure!(fresh.generation != before.generation, "the generation after the loss of everything");
    ensure_eq!(fresh.quiet, Duration::ZERO, "the quiet time where nobody remembers");
    let next = stage.acquire(b, &slot(0)?, NONE).await?;
    let clock_stood = fresh.now <= before.now;
    ensure!(next > highest || clock_stood, "where nobody remembers the clock does: {highest} before, {next} after");
    // Then somebody does.
    let late = knowing(&stage, before.generation, before.token).beat(b).await?.stamp;
    ensure!(late.generation != fresh.generation && !late.quiet.is_zero(), "somebody remembers: {late:?}");
    Ok(())
}

async fn tokens_rise_across_a_failover(stage: Stage) -> Outcome {
    let at = slot(0)?;
    let a = stage.open("a").await?;
    let token = stage.acquire(a, &at, NONE).await?;
    let before = stage.beat(a).await?.stamp;
    let cluster = stage.cluster.clone();
    stage.server().await?.fail_over(&cluster).await?;
    let stage = knowing(&stage, before.generation, before.token.max(token));
    let beat = beat_again(&stage, a).await?;
    if beat.is_none() {
        let lossless = stage.capabilities.fencing == Fencing::Strict;
        ensure!(!lossless, "a store of strict fencing has lost a session in a failover");
    }
    let b = stage.open("b").await?;
    let stamp = stage.beat(b).await?.stamp;
    sound(&before, &stamp)?;
    if stamp.generation == before.generation {
        let next = stage.acquire(b, &slot(1)?, NONE).await?;
        ensure!(next > NONE && beat.is_some(), "the same generation has lost nothing");
    } else {
        ensure!(!stamp.quiet.is_zero(), "another generation without a quiet time: {stamp:?}");
        stage.refused(b, &slot(1)?, NONE, acquire(), Conflict::Quiet).await?;
        let now = knowing(&stage, stamp.generation, NONE);
        if beat.is_some() {
            let record = now.done(a, &at, token, ChangeKind::Readopt).await?;
            ensure_eq!(record.token, token, "the token of what was re-adopted");
        }
    }
    Ok(())
}
