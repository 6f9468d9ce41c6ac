//! The thread that does one cluster's requests, one batch after another: it waits for the lock, so that no task must.
//!
//! Requests that come while it waits are done under one lock and, if any of them needs it, one fsync.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use rendez_core::StoreError;
use tokio::sync::oneshot;

use crate::errors::Failure;
use crate::lock::Lock;
use crate::state::{Answer, Request, State};

/// The most requests that wait for one cluster's thread.
pub(crate) const WAITING_MAX: usize = 256;

/// The most requests under one lock, and the most bytes: others wait meanwhile.
const BATCH_MAX: usize = 64;
const BATCH_BYTES_MAX: usize = 64 * 1024;

/// A thread that has had nothing to do for this long ends, and the state in memory with it: several heartbeats of a long TTL.
pub(crate) const IDLE_MAX: Duration = Duration::from_secs(30);

/// Whether a request has been begun. Who gives up waiting for it learns from this whether it may have happened.
#[derive(Debug, Default)]
pub(crate) struct Stage(AtomicU8);

const WAITING: u8 = 0;
const BEGUN: u8 = 1;
const GIVEN_UP: u8 = 2;

impl Stage {
    /// Begins it, unless it was given up.
    fn begin(&self) -> bool {
        self.0.compare_exchange(WAITING, BEGUN, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Gives it up: it will not happen. Says no if it has been begun.
    pub(crate) fn give_up(&self) -> bool {
        self.0.compare_exchange(WAITING, GIVEN_UP, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// A request and who waits for its answer.
pub(crate) struct Job {
    pub(crate) request: Request,
    pub(crate) stage: Arc<Stage>,
    pub(crate) reply: oneshot::Sender<Result<Answer, StoreError>>,
}

impl Job {
    fn answer(self, answer: Result<Answer, StoreError>) {
        // Who has given up does not hear it.
        let _ = self.reply.send(answer);
    }
}

/// Does requests until nobody can send any more, or `retire` agrees to end after a time without any.
pub(crate) fn work(
    jobs: &Receiver<Job>,
    mut lock: Lock,
    mut state: State,
    mut retire: impl FnMut(&Receiver<Job>) -> Option<Job>,
) {
    loop {
        let first = match jobs.recv_timeout(IDLE_MAX) {
            Ok(job) => job,
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => match retire(jobs) {
                Some(job) => job,
                None => return,
            },
        };
        batch(first, jobs, &mut lock, &mut state);
    }
}

fn batch(first: Job, jobs: &Receiver<Job>, lock: &mut Lock, state: &mut State) {
    let held = lock.acquire();
    let mut waiting = vec![first];
    waiting.extend(jobs.try_iter().take(BATCH_MAX - 1));
    let held = match held {
        Ok(held) => held,
        Err(failure) => return refuse(waiting, &failure),
    };
    waiting.retain(|job| !job.reply.is_closed());
    if waiting.is_empty() {
        return;
    }
    if let Err(failure) = state.follow() {
        return refuse(waiting, &failure);
    }
    let mut waiting = waiting.into_iter().peekable();
    while waiting.peek().is_some() {
        let mut done = Vec::new();
        while state.pending_bytes() < BATCH_BYTES_MAX
            && let Some(job) = waiting.next()
        {
            if job.stage.begin() {
                let answer = state.run(&job.request);
                done.push((job, answer));
            }
        }
        if let Err(failure) = state.commit() {
            refuse(done.into_iter().map(|(job, _)| job).collect(), &failure);
            return refuse(waiting.collect(), &failure);
        }
        for (job, answer) in done {
            job.answer(answer);
        }
        state.hint();
    }
    state.fold();
    drop(held);
}

/// The requests that have not been begun have not happened, whatever befell the others; they are told the same failure,
/// which asks for no less care.
fn refuse(jobs: Vec<Job>, failure: &Failure) {
    for job in jobs {
        job.answer(Err(failure.clone().into()));
    }
}
