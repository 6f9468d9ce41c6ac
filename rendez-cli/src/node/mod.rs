//! A node whose slots run as child processes under a guardian: what `rendez agent` and `rendez elect` have in common.
//!
//! The driver decides which slots; [`child`] runs their commands under the guardian; here they are brought together,
//! and signals and ends are turned into an orderly end.

mod child;
mod command;
mod tell;

use std::sync::Arc;
use std::time::Duration;

use rendez::{Handle, OverrunPolicy, ResolvedConfig, RunnerFactory, StartError, StoppedReason};
use tokio::sync::Notify;
use tokio::time::Instant;

pub(crate) use child::{ChildRun, Children, Output};
pub(crate) use command::Template;

use crate::exit::{Exit, Failure};
use crate::guardian::{Aftermath, Guardian, GuardianSetup, HeldSession};
use crate::stop::Stop;
use crate::store_url::StoreUrl;

/// What the driver takes longer than its drain timeout to end, at most, after the guardian is gone.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// The pause before another life, and how long it may grow while lives are short.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// What a node is made from, checked.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) config: ResolvedConfig,
    pub(crate) store: StoreUrl,
}

/// Makes the runners of a life, whose children are this guardian's.
type MakeRunners<'a> = &'a (dyn Fn(&Guardian) -> Arc<dyn RunnerFactory> + Sync);

/// Runs a node until it is told to end by a signal, or by `enough`. Says whether it was a signal.
pub(crate) fn run(plan: &Plan, runners: MakeRunners<'_>, enough: &Notify) -> Result<bool, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Exit::Failure, format!("cannot start: {error}")))?;
    let result = runtime.block_on(lives(plan, runners, enough));
    // Whatever still runs belongs to a node that has ended.
    runtime.shutdown_background();
    result
}

/// One life after the other: who loses the guardian, and is certain that nothing of its children is left, takes part
/// anew with another one.
async fn lives(plan: &Plan, runners: MakeRunners<'_>, enough: &Notify) -> Result<bool, Failure> {
    let mut stop = Asked::listen(enough)?;
    let mut pause = PAUSE_MIN;
    loop {
        let begin = Instant::now();
        match live(plan, runners, &mut stop).await? {
            End::Asked => return Ok(stop.signalled),
            End::GuardianKilled => {
                tracing::error!("the guardian was killed, and its children with it: starting anew in {pause:?}");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.asked() => return Ok(stop.signalled),
        }
        pause = if begin.elapsed() > PAUSE_MAX { PAUSE_MIN } else { (pause * 2).min(PAUSE_MAX) };
    }
}

/// How a life ends that may be followed by another.
enum End {
    /// It was told to end, and has let go of everything.
    Asked,
    /// The guardian is gone, and nothing of the children is left.
    GuardianKilled,
}

async fn live(plan: &Plan, runners: MakeRunners<'_>, stop: &mut Asked<'_>) -> Result<End, Failure> {
    let engine = &plan.config.engine;
    let timing = engine.timing.clone();
    let guardian = Guardian::start(GuardianSetup {
        store: plan.store.is_shared().then(|| plan.store.clone()),
        cluster: plan.config.cluster.to_string(),
        stop_lead: timing.stop_lead(),
        kill_lead: engine.runners.abort_grace.max(timing.pause_allowance / 2),
        session_ttl: timing.session_ttl,
        session_ttl_max: plan.config.info.settings.session_ttl_max,
    })
    .map_err(|error| Failure::new(Exit::Failure, format!("cannot start the guardian: {error}")))?;

    let handle = tokio::select! {
        started = start(plan, runners, &guardian) => started?,
        () = stop.asked() => {
            guardian.leave().await;
            return Ok(End::Asked);
        }
        aftermath = guardian.gone() => return guardian_gone(aftermath),
    };
    let telling = tokio::spawn(tell_session(handle.clone(), guardian.clone()));
    let result = serve(&handle, &guardian, stop).await;
    // A node that ends as its last handle is dropped has no session any more; for the guardian it has one until that
    // is closed.
    telling.abort();
    let _ = telling.await;
    result
}

/// Reaches the store and opens the session.
async fn start(plan: &Plan, runners: MakeRunners<'_>, guardian: &Guardian) -> Result<Handle, Failure> {
    let (begin, connect_timeout) = (Instant::now(), plan.config.connect_timeout);
    let store = plan.store.connect(connect_timeout, plan.config.engine.timing.operation_timeout).await?;
    let left = connect_timeout.saturating_sub(begin.elapsed()).max(Duration::from_millis(100));
    let (killer, node) = (guardian.clone(), plan.config.info.node.clone());
    let builder = plan
        .config
        .builder()
        .shared_store(store)
        .connect_timeout(left)
        .on_event(move |event| tell::tell(&node, event))
        .overrun_policy(OverrunPolicy::call(move |slot, _| {
            tracing::error!("the child of {slot} outlives its lease: killing the guardian and all children");
            killer.kill_guardian();
        }));
    builder.shared_runner(runners(guardian)).start().await.map_err(start_failure)
}

fn start_failure(error: StartError) -> Failure {
    let exit = match &error {
        StartError::Missing { .. } | StartError::Name { .. } | StartError::Invalid { .. } | StartError::Timing(_) => {
            Exit::Usage
        }
        StartError::Refused { .. } | StartError::NoAnswer { .. } => Exit::Store,
        StartError::InUse { .. } => Exit::InUse,
        _ => Exit::Failure,
    };
    Failure::new(exit, error)
}

/// The guardian always knows which session to close if this process dies.
async fn tell_session(handle: Handle, guardian: Guardian) {
    let mut changes = handle.session_changes();
    drop(handle);
    loop {
        let session = *changes.borrow_and_update();
        guardian.session(session.map(|(session, generation)| HeldSession { session, generation }));
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Until the node has ended, by itself or because it was told to.
async fn serve(handle: &Handle, guardian: &Guardian, stop: &mut Asked<'_>) -> Result<End, Failure> {
    tokio::select! {
        outcome = handle.stopped() => return ended(outcome, guardian).await.map(|()| End::Asked),
        aftermath = guardian.gone() => return without_guardian(handle, aftermath).await,
        () = stop.asked() => tracing::info!("handing everything over; once more, and it ends at once"),
    }
    tokio::select! {
        outcome = handle.shutdown() => ended(outcome, guardian).await.map(|()| End::Asked),
        aftermath = guardian.gone() => without_guardian(handle, aftermath).await.map(|_| End::Asked),
        () = stop.signal() => {
            // Nothing is quicker and as certain: the guardian kills the children, then closes the session.
            tracing::warn!("ending at once: the guardian kills the children and lets go of the slots");
            Ok(End::Asked)
        }
    }
}

async fn ended(outcome: Result<StoppedReason, rendez::DriverError>, guardian: &Guardian) -> Result<(), Failure> {
    match outcome {
        Ok(StoppedReason::Clean) => {
            guardian.leave().await;
            Ok(())
        }
        Ok(StoppedReason::DrainTimeout { running }) => {
            let slots: Vec<String> = running.iter().map(ToString::to_string).collect();
            let what =
                if slots.is_empty() { "its session was not closed in time".to_owned() } else { slots.join(", ") };
            Err(Failure::new(Exit::Failure, format!("the drain timeout has passed; what was left is killed: {what}")))
        }
        Ok(StoppedReason::InUse { incarnation, remaining }) => {
            let message =
                format!("another process ({incarnation}) has the node's id, its session lives for {remaining:?}");
            Err(Failure::new(Exit::InUse, message))
        }
        Ok(reason) => Err(Failure::new(Exit::Failure, format!("the node has stopped: {reason:?}"))),
        Err(error) => Err(Failure::new(Exit::Failure, error)),
    }
}

/// The children are gone with the guardian, or that is not certain.
async fn without_guardian(handle: &Handle, aftermath: Aftermath) -> Result<End, Failure> {
    if aftermath == Aftermath::Clean {
        // The runners have ended, so that the slots can be let go properly.
        let _ = tokio::time::timeout(LAST_WORDS, handle.shutdown()).await;
    }
    guardian_gone(aftermath)
}

fn guardian_gone(aftermath: Aftermath) -> Result<End, Failure> {
    match aftermath {
        Aftermath::Clean => Ok(End::GuardianKilled),
        Aftermath::Uncertain => Err(Failure::new(
            Exit::PromiseBroken,
            "the guardian was killed, and some of what it guarded could not be: it may outlive its lease",
        )),
    }
}

/// What asks the node to end: signals, or that it has done enough.
struct Asked<'a> {
    signals: Stop,
    enough: &'a Notify,
    /// Whether a signal has asked.
    signalled: bool,
}

impl<'a> Asked<'a> {
    fn listen(enough: &'a Notify) -> Result<Self, Failure> {
        Ok(Self { signals: Stop::listen()?, enough, signalled: false })
    }

    /// The next time that somebody asks. Cancelling it loses none.
    async fn asked(&mut self) {
        let enough = self.enough;
        tokio::select! {
            () = self.signal() => {}
            () = enough.notified() => {}
        }
    }

    /// The next signal. Cancelling it loses none.
    async fn signal(&mut self) {
        self.signals.asked().await;
        self.signalled = true;
    }
}
