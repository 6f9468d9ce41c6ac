//! Whole histories: each request takes effect at one moment, and what is counted agrees with what is.

use std::sync::{Arc, Mutex, PoisonError};

use rendez_core::{ChangeKind, ChangeOutcome, Conflict, FencingToken, Held, SessionId, SlotRecord};
use todc_utils::linearizability::WGLChecker;
use todc_utils::linearizability::history::{Action, History};
use todc_utils::specifications::Specification;

use super::super::Failure;
use super::super::case::{Outcome, cases, ensure, ensure_eq};
use super::super::stage::{NONE, Stage, acquire, offer, operation, release, slot, transfer};

cases! { "histories";
    of_one_slot_are_linearizable,
    count_and_digest_agree_with_the_records,
    count_and_digest_agree_after_concurrent_changes,
    a_slot_has_one_live_holder_at_every_moment,
}

/// What is known of a slot: its token, and who holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Seen {
    token: FencingToken,
    holder: Option<SessionId>,
}

impl Seen {
    fn of(record: Option<&SlotRecord>) -> Self {
        record.map_or_else(Self::default, |record| Self {
            token: record.token,
            holder: record.holder.as_ref().map(|holder| holder.session),
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Acquire,
    Release,
    Read,
}

/// A request on one slot with its answer, which is not known at its call.
#[derive(Debug, Clone, Copy)]
struct Step {
    session: SessionId,
    what: What,
    named: FencingToken,
    answer: Option<(Option<Conflict>, Seen)>,
}

/// A slot whose holders never end: the rules of acquiring and releasing, once more and on their own.
struct OneSlot;

impl Specification for OneSlot {
    type State = Seen;
    type Operation = Step;

    fn init() -> Seen {
        Seen::default()
    }

    fn apply(step: &Step, state: &Seen) -> (bool, Seen) {
        let Some((refused, seen)) = step.answer else { return (false, *state) };
        let held_by_other = state.holder.is_some_and(|holder| holder != step.session);
        let expected = match step.what {
            What::Read => None,
            What::Acquire | What::Release if step.named != state.token => Some(Conflict::Token),
            What::Acquire => held_by_other.then_some(Conflict::Held),
            What::Release => held_by_other.then_some(Conflict::NotHolder),
        };
        let next = match (step.what, expected) {
            (What::Acquire, None) => Seen { token: seen.token, holder: Some(step.session) },
            (What::Release, None) => Seen { holder: None, ..*state },
            (What::Read, None) | (_, Some(_)) => *state,
        };
        let risen = step.what != What::Acquire || expected.is_some() || seen.token > state.token;
        (refused == expected && seen == next && risen, next)
    }
}

async fn of_one_slot_are_linearizable(stage: Stage) -> Outcome {
    // Few requests a round: where no order explains the answers, all orders are tried.
    const TASKS: usize = 4;
    const STEPS: usize = 8;
    for round in 0..6 {
        let history = Arc::new(Mutex::new(Vec::new()));
        let mut acting = tokio::task::JoinSet::new();
        for task in 0..TASKS {
            let stage = stage.again().await?;
            let session = stage.open(&format!("n{round}-{task}")).await?;
            let (history, at) = (Arc::clone(&history), slot(round)?);
            let write = move |action| history.lock().unwrap_or_else(PoisonError::into_inner).push((task, action));
            acting.spawn(async move {
                let mut named = NONE;
                for _ in 0..STEPS {
                    let what = [What::Acquire, What::Release, What::Read][fastrand::usize(0..3)];
                    let mut step = Step { session, what, named, answer: None };
                    write(Action::Call(step));
                    let (refused, seen) = match what {
                        What::Read => (None, Seen::of(stage.record(&at).await?.as_ref())),
                        What::Acquire | What::Release => {
                            let kind = if what == What::Acquire { acquire() } else { release() };
                            match stage.change(session, &at, named, kind).await? {
                                ChangeOutcome::Done(record) => (None, Seen::of(record.as_ref())),
                                ChangeOutcome::Refused(conflict, record) => (Some(conflict), Seen::of(record.as_ref())),
                            }
                        }
                    };
                    named = seen.token;
                    step.answer = Some((refused, seen));
                    write(Action::Response(step));
                }
                Outcome::Ok(())
            });
        }
        for ended in acting.join_all().await {
            ended?;
        }
        let history = std::mem::take(&mut *history.lock().unwrap_or_else(PoisonError::into_inner));
        let shown =
            || history.iter().map(|(task, action)| format!("{task}: {action:?}")).collect::<Vec<_>>().join("\n  ");
        ensure!(
            WGLChecker::<OneSlot>::is_linearizable(History::from_actions(history.clone())),
            "no order of these requests explains their answers:\n  {}",
            shown()
        );
    }
    Ok(())
}

/// Makes a change that may be done or not.
async fn act(stage: &Stage, sessions: &[SessionId], me: usize, units: u32) -> Outcome {
    let (session, at) = (sessions[me], slot(fastrand::u32(0..units))?);
    let record = stage.record(&at).await?;
    let token = record.as_ref().map_or(NONE, |record| record.token);
    let standing = record.as_ref().and_then(|record| record.offer.clone());
    let other = sessions[fastrand::usize(0..sessions.len())];
    let kind = match (fastrand::u8(0..8), standing) {
        (0..=2, _) => acquire(),
        (3, _) => release(),
        (4, None) => offer(operation(), other, stage.ttl()),
        (_, Some(offer)) if offer.ready => transfer(offer.id),
        (_, Some(offer)) => ChangeKind::Accept { offer: offer.id },
        (_, None) => acquire(),
    };
    stage.change(session, &at, token, kind).await.map(drop)
}

/// For each session: what the store counts, and what its records say.
async fn counted(stage: &Stage, sessions: &[SessionId]) -> Outcome {
    let view = stage.view().await?;
    for session in sessions {
        let mut held = Held::default();
        for (slot, record) in &view.slots {
            if record.is_held_by(*session) {
                held.add(slot, record.token);
            }
        }
        ensure_eq!(stage.beat(*session).await?.held, held, "what {session} holds: counted, and in the records");
    }
    Ok(())
}

async fn count_and_digest_agree_with_the_records(stage: Stage) -> Outcome {
    let mut sessions = Vec::new();
    for number in 0..4 {
        sessions.push(stage.open(&format!("n{number}")).await?);
    }
    for step in 0..160 {
        let me = fastrand::usize(0..sessions.len());
        act(&stage, &sessions, me, 8).await?;
        if step % 40 == 39 {
            counted(&stage, &sessions).await?;
            // One comes back under another session.
            stage.close(sessions[me]).await?;
            sessions[me] = stage.open(&format!("n{me}")).await?;
            counted(&stage, &sessions).await?;
        }
    }
    Ok(())
}

async fn count_and_digest_agree_after_concurrent_changes(stage: Stage) -> Outcome {
    let mut sessions = Vec::new();
    for number in 0..5 {
        sessions.push(stage.open(&format!("n{number}")).await?);
    }
    let mut acting = tokio::task::JoinSet::new();
    for me in 0..sessions.len() {
        let (stage, sessions) = (stage.again().await?, sessions.clone());
        acting.spawn(async move {
            for _ in 0..40 {
                act(&stage, &sessions, me, 4).await?;
            }
            Outcome::Ok(())
        });
    }
    for ended in acting.join_all().await {
        ended?;
    }
    counted(&stage, &sessions).await
}

async fn a_slot_has_one_live_holder_at_every_moment(stage: Stage) -> Outcome {
    // Each task writes down when it certainly held the slot: from the answer to its grant to the moment before it
    // asks to let go. No two of these may overlap, and tokens rise with them.
    let at = slot(0)?;
    let spans = Arc::new(Mutex::new(Vec::new()));
    let mut acting = tokio::task::JoinSet::new();
    for task in 0..5 {
        let (stage, at, spans) = (stage.again().await?, at.clone(), Arc::clone(&spans));
        acting.spawn(async move {
            let session = stage.open(&format!("n{task}")).await?;
            let mut named = NONE;
            for _ in 0..25 {
                match stage.change(session, &at, named, acquire()).await? {
                    ChangeOutcome::Done(Some(record)) => {
                        let from = tokio::time::Instant::now();
                        tokio::task::yield_now().await;
                        let span = (from, tokio::time::Instant::now(), record.token);
                        spans.lock().unwrap_or_else(PoisonError::into_inner).push(span);
                        stage.done(session, &at, record.token, release()).await?;
                        named = record.token;
                    }
                    ChangeOutcome::Refused(_, record) => named = Seen::of(record.as_ref()).token,
                    came @ ChangeOutcome::Done(None) => return Err(Failure::new(format_args!("{came:?}"))),
                }
            }
            Outcome::Ok(())
        });
    }
    for ended in acting.join_all().await {
        ended?;
    }
    let mut spans = std::mem::take(&mut *spans.lock().unwrap_or_else(PoisonError::into_inner));
    ensure!(spans.len() > 5, "somebody must get the slot: {} grants", spans.len());
    spans.sort_by_key(|(from, ..)| *from);
    for pair in spans.windows(2) {
        ensure!(pair[0].1 <= pair[1].0, "two holders at once: {pair:?}");
        ensure!(pair[0].2 < pair[1].2, "the tokens of two grants, one after the other: {pair:?}");
    }
    Ok(())
}
