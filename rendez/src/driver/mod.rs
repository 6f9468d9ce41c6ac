//! The driver: the one task that owns the engine. It is active and decides nothing.
//!
//! At every wake it looks at the deadlines before anything else, since the process may have been paused; then it
//! feeds what has happened, all that is there already, so that changes go out in batches; then it carries out what
//! the engine wants. It never waits for a store, a runner or a receiver of events.

mod calls;
mod events;
mod measure;
mod policy;
mod runners;
#[cfg(test)]
mod tests;
mod warm_ups;
mod watch;
mod watchdog;

use std::any::Any;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use rendez_core::{
    Action, Capabilities, CheckpointError, ClusterName, Engine, EngineConfig, EngineSetup, ErrorKind, Event,
    Incarnation, Input, LeaseStore, NodeId, NodeInfo, Opening, Reply, RunnerEnd, StoppedReason, Ticket, Timestamp,
    Timing, WatchHint,
};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use self::calls::{Answer, Calls};
use self::measure::{Meter, guarded};
use self::runners::{Ended, Runners};
use self::warm_ups::{WarmUps, Warmed};
use self::watch::WatchTask;
use self::watchdog::Watchdog;
use crate::boot_time;
use crate::context::{Saving, SlotContext};
use crate::coordinator::{OnEvent, StartError};
use crate::election::Seats;
use crate::handle::{DriverError, EVENTS_KEPT, Handle, Order, Owned, Published};
use crate::lease::SlotLease;
use crate::metrics::{Metrics, SLOTS_RUNNING, WAKE_LATENESS_SECONDS};
use crate::policy::OverrunPolicy;
use crate::runner::RunnerFactory;

/// The longest sleep: tokio's clock stands still while the system is suspended, the deadlines' does not.
const WAKE_MAX: Duration = Duration::from_secs(1);

/// The shortest sleep; tokio's timers are no finer.
const WAKE_MIN: Duration = Duration::from_millis(1);

/// The most inputs that are fed before actions are carried out.
const BATCH_MAX: usize = 4096;

/// The most commands that wait for the driver; senders wait beyond that.
const ORDERS_MAX: usize = 64;

/// The most checkpoints that wait for the driver; runners wait beyond that.
const SAVINGS_MAX: usize = 256;

/// How much longer than the drain timeout a shutdown may take before the driver is ended by force.
const SHUTDOWN_SLACK: Duration = Duration::from_secs(1);

/// How long the driver looks after runners that go on after their deadline, when the node has stopped.
const LEFTOVERS_MAX: Duration = Duration::from_secs(10);

/// Everything a node is made from, checked.
pub(crate) struct Plan {
    pub(crate) store: Arc<dyn LeaseStore>,
    pub(crate) factory: Arc<dyn RunnerFactory>,
    pub(crate) cluster: ClusterName,
    pub(crate) info: NodeInfo,
    pub(crate) capabilities: Capabilities,
    pub(crate) config: EngineConfig,
    pub(crate) connect_timeout: Duration,
    pub(crate) overrun: OverrunPolicy,
    pub(crate) metrics: Arc<dyn Metrics>,
    pub(crate) on_event: Option<OnEvent>,
    pub(crate) seats: Seats,
}

/// Starts a node and waits for its first session.
pub(crate) async fn start(plan: Plan) -> Result<Handle, StartError> {
    let runtime = tokio::runtime::Handle::try_current().map_err(|_| StartError::NoRuntime)?;
    let incarnation = draw_incarnation()?;
    let (orders_sender, orders) = mpsc::channel(ORDERS_MAX);
    let (events, _) = broadcast::channel(EVENTS_KEPT);
    let (opened_sender, opened) = oneshot::channel();
    let published = Arc::new(Published::new(plan.cluster.clone(), plan.info.node.clone(), plan.seats.clone()));
    let shutdown_max = shutdown_max(&plan.config);
    let handle = Handle::new(published.clone(), orders_sender, events.downgrade(), shutdown_max);
    let driver = Driver::new(plan, incarnation, orders, events, opened_sender, published);
    runtime.spawn(driver.live());
    match opened.await {
        Ok(Ok(())) => Ok(handle),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(StartError::Ended { why: "its task is gone".to_owned() }),
    }
}

fn draw_incarnation() -> Result<Incarnation, StartError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| StartError::Ended { why: format!("the system has no randomness: {error}") })?;
    Ok(Incarnation::from_bits(u128::from_le_bytes(bytes)))
}

fn shutdown_max(config: &EngineConfig) -> Duration {
    config.drain_timeout + config.timing.stop_lead() + config.timing.operation_timeout * 2 + SHUTDOWN_SLACK
}

struct Driver {
    engine: Engine,
    node: NodeId,
    cluster: ClusterName,
    timing: Timing,
    store: Arc<dyn LeaseStore>,
    overrun: OverrunPolicy,
    on_event: Option<OnEvent>,
    meter: Meter,
    published: Arc<Published>,
    events: broadcast::Sender<Event>,
    orders: mpsc::Receiver<Order>,
    savings: mpsc::Receiver<Saving>,
    savings_sender: mpsc::Sender<Saving>,
    tickets: HashMap<Ticket, oneshot::Sender<Result<(), CheckpointError>>>,
    last_ticket: u64,
    calls: Calls,
    runners: Runners,
    warm_ups: WarmUps,
    /// Begins with the first session.
    watch: Option<WatchTask>,
    /// Runners that could not be started.
    unstarted: Vec<Ended>,
    owned_changed: bool,
    starting: Option<Starting>,
    watchdog: Watchdog,
}

/// What is known of the first session before it is open.
struct Starting {
    opened: oneshot::Sender<Result<(), StartError>>,
    /// When to give up; never once the store has answered.
    give_up_at: Timestamp,
    timeout: Duration,
    store: &'static str,
    last_error: Option<String>,
}

/// Something has happened.
enum Happened {
    Time,
    Answer(Answer),
    Ended(Ended),
    Warmed(Warmed),
    Hint(WatchHint),
    Order(Order),
    Saving(Saving),
    NoHandles,
    Killed,
}

/// Why the driver ends.
enum End {
    Engine(StoppedReason),
    /// Nobody holds a handle any more.
    NoHandles,
    /// A shutdown has taken too long.
    Killed,
    NotStarted(StartError),
    Panicked(String),
}

impl Driver {
    fn new(
        plan: Plan,
        incarnation: Incarnation,
        orders: mpsc::Receiver<Order>,
        events: broadcast::Sender<Event>,
        opened: oneshot::Sender<Result<(), StartError>>,
        published: Arc<Published>,
    ) -> Self {
        let meter = Meter::new(plan.metrics);
        let (savings_sender, savings) = mpsc::channel(SAVINGS_MAX);
        let (node, timing) = (plan.info.node.clone(), plan.config.timing.clone());
        let now = boot_time();
        let starting = Starting {
            opened,
            give_up_at: now + plan.connect_timeout,
            timeout: plan.connect_timeout,
            store: plan.capabilities.name,
            last_error: None,
        };
        let setup = EngineSetup {
            info: plan.info,
            incarnation,
            capabilities: plan.capabilities,
            config: plan.config,
            seed: incarnation.bits() as u64,
        };
        Self {
            engine: Engine::new(now, setup),
            calls: Calls::new(plan.store.clone(), plan.cluster.clone(), meter.clone()),
            runners: Runners::new(plan.factory.clone(), meter.clone()),
            warm_ups: WarmUps::new(plan.factory),
            node,
            cluster: plan.cluster,
            timing,
            store: plan.store,
            watchdog: Watchdog::spawn(published.clone(), plan.overrun.clone()),
            overrun: plan.overrun,
            on_event: plan.on_event,
            meter,
            published,
            events,
            orders,
            savings,
            savings_sender,
            tickets: HashMap::new(),
            last_ticket: 0,
            watch: None,
            unstarted: Vec::new(),
            owned_changed: false,
            starting: Some(starting),
        }
    }

    /// The node's whole life.
    async fn live(mut self) {
        // Dropped with the runtime, or by a panic on the way out, it still says that the node is gone.
        let last_word = LastWord(self.published.clone());
        let end = caught(self.drive()).await;
        self.wind_down(end).await;
        drop(self);
        drop(last_word);
    }

    async fn drive(&mut self) -> End {
        let mut happened = Happened::Time;
        loop {
            self.watchdog.looking();
            self.engine.handle_timeout(boot_time());
            if let Some(end) = self.take_in(happened) {
                return end;
            }
            for _ in 1..BATCH_MAX {
                let Some(happened) = self.happened_already() else { break };
                if let Some(end) = self.take_in(happened) {
                    return end;
                }
            }
            while let Some(action) = self.engine.poll_action(boot_time()) {
                if let Some(end) = self.carry_out(action) {
                    return end;
                }
            }
            if let Some(end) = self.give_up_starting() {
                return end;
            }
            self.publish_owned();
            for seat in self.published.seats.values() {
                seat.hear(self.engine.view());
            }
            happened = self.wait().await;
        }
    }

    /// Waits for the next thing to happen.
    async fn wait(&mut self) -> Happened {
        let give_up_at = self.starting.as_ref().map_or(Timestamp::NEVER, |starting| starting.give_up_at);
        let wake_at = self.engine.poll_timeout().min(give_up_at);
        let slept_from = boot_time();
        let pause = wake_at.since(slept_from).clamp(WAKE_MIN, WAKE_MAX);
        let watch = async {
            match &mut self.watch {
                Some(watch) => watch.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.published.kill.cancelled() => Happened::Killed,
            answer = self.calls.next() => Happened::Answer(answer),
            ended = self.runners.next() => Happened::Ended(ended),
            order = self.orders.recv() => order.map_or(Happened::NoHandles, Happened::Order),
            warmed = self.warm_ups.next() => Happened::Warmed(warmed),
            Some(saving) = self.savings.recv() => Happened::Saving(saving),
            hint = watch => Happened::Hint(hint),
            () = tokio::time::sleep(pause) => {
                let late = boot_time().since(slept_from + pause);
                self.meter.record(&WAKE_LATENESS_SECONDS, &[], late.as_secs_f64());
                Happened::Time
            }
        }
    }

    /// Something else that has happened already.
    fn happened_already(&mut self) -> Option<Happened> {
        if let Some(ended) = self.unstarted.pop() {
            return Some(Happened::Ended(ended));
        }
        if let Some(answer) = self.calls.try_next() {
            return Some(Happened::Answer(answer));
        }
        if let Some(ended) = self.runners.try_next() {
            return Some(Happened::Ended(ended));
        }
        match self.orders.try_recv() {
            Ok(order) => return Some(Happened::Order(order)),
            Err(mpsc::error::TryRecvError::Disconnected) => return Some(Happened::NoHandles),
            Err(mpsc::error::TryRecvError::Empty) => {}
        }
        if let Some(warmed) = self.warm_ups.try_next() {
            return Some(Happened::Warmed(warmed));
        }
        if let Ok(saving) = self.savings.try_recv() {
            return Some(Happened::Saving(saving));
        }
        self.watch.as_mut()?.try_next().map(Happened::Hint)
    }

    /// Tells the engine.
    fn take_in(&mut self, happened: Happened) -> Option<End> {
        let input = match happened {
            Happened::Time => return None,
            Happened::NoHandles => return Some(End::NoHandles),
            Happened::Killed => return Some(End::Killed),
            Happened::Answer(Answer { request, result }) => {
                if let Some(end) = self.first_answer(&result) {
                    return Some(end);
                }
                Input::Reply(request, result)
            }
            Happened::Ended(Ended { slot, token, end, checkpoint }) => {
                self.owned_changed = true;
                tracing::debug!(%slot, %token, %end, "a runner has ended");
                Input::RunnerEnded { slot, token, end, checkpoint }
            }
            Happened::Warmed(Warmed { slot, offer, ready }) => Input::WarmedUp { slot, offer, ready },
            Happened::Hint(hint) => Input::Hint(hint),
            Happened::Order(Order::Status { told }) => {
                // Whoever asked may have gone.
                let _ = told.send(self.engine.status(boot_time()));
                return None;
            }
            Happened::Order(Order::Holder { slot, told }) => {
                let view = self.engine.view();
                let held = view.holder(&slot).zip(view.slot(&slot));
                // Whoever asked may have gone.
                let _ = told.send(held.map(|(node, record)| (node.clone(), record.token)));
                return None;
            }
            Happened::Order(Order::Command { command, taken }) => {
                self.engine.handle(boot_time(), Input::Command(command));
                // Whoever asked may have gone.
                let _ = taken.send(());
                return None;
            }
            Happened::Saving(Saving { slot, token, checkpoint, saved }) => {
                self.last_ticket += 1;
                let ticket = Ticket(self.last_ticket);
                self.tickets.insert(ticket, saved);
                Input::SaveCheckpoint { slot, token, checkpoint, ticket }
            }
        };
        self.engine.handle(boot_time(), input);
        None
    }

    /// Before the first session: what an answer of the store means for the start.
    fn first_answer(&mut self, result: &Result<Reply, rendez_core::StoreError>) -> Option<End> {
        let starting = self.starting.as_mut()?;
        match result {
            Ok(Reply::Open(Opening::Opened { .. } | Opening::InUse { .. })) => starting.give_up_at = Timestamp::NEVER,
            Err(error) if matches!(error.kind(), ErrorKind::Fatal | ErrorKind::Unsupported) => {
                let (kind, message) = (error.kind(), runners::error_text(error));
                return Some(End::NotStarted(StartError::Refused { kind, message }));
            }
            Err(error) => starting.last_error = Some(runners::error_text(error)),
            Ok(_) => {}
        }
        None
    }

    fn give_up_starting(&self) -> Option<End> {
        let starting = self.starting.as_ref()?;
        if starting.opened.is_closed() {
            return Some(End::NoHandles);
        }
        (starting.give_up_at <= boot_time()).then(|| {
            let last = starting.last_error.clone().unwrap_or_else(|| "it has not answered at all".to_owned());
            End::NotStarted(StartError::NoAnswer { store: starting.store, timeout: starting.timeout, last })
        })
    }

    /// Does one thing for the engine, without waiting for anything.
    fn carry_out(&mut self, action: Action) -> Option<End> {
        match action {
            Action::Send { request, call, timeout } => self.calls.send(request, call, timeout),
            Action::Start { slot, token, deadline, checkpoint } => {
                self.start_runner(SlotLease::new(slot, token, deadline), checkpoint);
            }
            Action::Extend { deadline, except } => self.runners.extend(deadline, except),
            Action::Stop { slot, token, why, abort_at } => self.runners.stop(&slot, token, why, abort_at),
            Action::Abort { slot, token } => self.runners.abort(&slot, token),
            Action::WarmUp { slot, offer } => self.warm_ups.warm_up(slot, offer),
            Action::CoolDown { slot } => self.warm_ups.cool_down(slot),
            Action::CheckpointSaved { ticket, result } => {
                if let Some(saved) = self.tickets.remove(&ticket) {
                    // The runner may have gone.
                    let _ = saved.send(result);
                }
            }
            Action::Session(session) => {
                self.published.session.send_replace(session);
            }
            Action::Tell(event) => self.tell(event),
            Action::Terminate { slot, token } => policy::terminate(&self.overrun, &slot, token),
            Action::Stopped(StoppedReason::InUse { incarnation, remaining }) if self.starting.is_some() => {
                return Some(End::NotStarted(StartError::InUse { incarnation, remaining }));
            }
            Action::Stopped(reason) => return Some(End::Engine(reason)),
        }
        None
    }

    fn start_runner(&mut self, lease: SlotLease, checkpoint: Option<bytes::Bytes>) {
        let (slot, token) = (lease.slot().clone(), lease.token());
        self.warm_ups.arrived(&slot);
        if self.runners.runs(&slot) {
            tracing::error!(%slot, %token, "the engine wants a second runner of a slot: refused");
            let end = RunnerEnd::Failed("another runner of the slot runs".to_owned());
            self.unstarted.push(Ended { slot, token, end, checkpoint: None });
            return;
        }
        let (cluster, node) = (self.cluster.clone(), self.node.clone());
        self.runners.start(SlotContext::new(lease, cluster, node, checkpoint, self.savings_sender.clone()));
        self.owned_changed = true;
    }

    fn tell(&mut self, event: Event) {
        events::log(&self.node, &event);
        self.meter.record(&crate::metrics::EVENTS_TOTAL, &[event.name()], 1.0);
        if matches!(event, Event::SessionOpened { .. }) {
            self.session_opened();
        }
        if let Some(hook) = &self.on_event {
            guarded("the event hook", || hook(&event));
        }
        // Nobody may listen.
        let _ = self.events.send(event);
    }

    fn session_opened(&mut self) {
        if let Some(starting) = self.starting.take() {
            // If whoever started it has gone, so has the last handle.
            let _ = starting.opened.send(Ok(()));
        }
        if self.watch.is_none() {
            let (store, cluster) = (self.store.clone(), self.cluster.clone());
            self.watch = Some(WatchTask::spawn(store, cluster, &self.timing, self.meter.clone()));
        }
    }

    fn publish_owned(&mut self) {
        if !std::mem::take(&mut self.owned_changed) {
            return;
        }
        let owned = Arc::new(Owned::new(self.runners.leases().cloned()));
        self.meter.record(&SLOTS_RUNNING, &[], self.runners.len() as f64);
        self.published.owned.store(owned.clone());
        self.published.owned_changes.send_replace(owned);
    }

    /// Ends everything that the driver has started, and says how the node ended.
    async fn wind_down(&mut self, end: End) {
        if let End::Panicked(message) = &end {
            tracing::error!(node = %self.node, message, "the driver panicked: all runners are told to stop");
        }
        let last_abort = self.runners.stop_all(boot_time() + self.timing.stop_budget);
        self.watch = None;
        self.calls.shutdown().await;
        // One that blocks its thread cannot be waited for.
        let _ = tokio::time::timeout(SHUTDOWN_SLACK, self.warm_ups.shutdown()).await;
        self.tickets.clear();
        self.published.session.send_replace(None);
        // A shutdown that is over its time does not wait for runners.
        let told = matches!(end, End::Engine(_) | End::Killed | End::Panicked(_));
        if told {
            self.tell_end(&end);
        }
        self.end_runners(last_abort).await;
        if !told {
            self.tell_end(&end);
        }
        if let (End::NotStarted(error), Some(starting)) = (end, self.starting.take()) {
            // Whoever started it may have gone.
            let _ = starting.opened.send(Err(error));
        }
    }

    fn tell_end(&mut self, end: &End) {
        let killed = || StoppedReason::DrainTimeout {
            running: self.runners.leases().map(|lease| lease.slot().clone()).collect(),
        };
        let outcome = match end {
            End::Engine(reason) => Ok(reason.clone()),
            End::NoHandles | End::Killed => Ok(killed()),
            End::NotStarted(error) => {
                tracing::warn!(node = %self.node, %error, "the node does not start");
                Ok(killed())
            }
            End::Panicked(message) => Err(DriverError::Panicked { node: self.node.clone(), message: message.clone() }),
        };
        tracing::info!(node = %self.node, ?outcome, "the node has stopped");
        self.published.outcome.send_replace(Some(outcome));
    }

    /// Waits for the runners that were told to stop, aborts them when their time is over, and sees to those that
    /// outlive their deadline.
    async fn end_runners(&mut self, last_abort: Timestamp) {
        let mut outlived_at = Timestamp::NEVER;
        while !self.runners.is_empty() {
            self.watchdog.looking();
            let now = boot_time();
            self.runners.abort_due(now, now >= last_abort);
            let deadline = self.runners.leases().map(SlotLease::deadline).max().unwrap_or(now);
            if now >= deadline && outlived_at == Timestamp::NEVER {
                outlived_at = now;
                for lease in self.runners.leases() {
                    policy::terminate(&self.overrun, lease.slot(), lease.token());
                }
            }
            if now.since(outlived_at) >= LEFTOVERS_MAX {
                break;
            }
            // The deadline is another process's business too: look again soon.
            let pause = last_abort.max(now).since(now).clamp(WAKE_MIN, WAKE_MAX / 10);
            tokio::select! {
                ended = self.runners.next() => {
                    tracing::debug!(slot = %ended.slot, end = %ended.end, "a runner has ended");
                    self.owned_changed = true;
                }
                () = tokio::time::sleep(pause) => {}
            }
            self.publish_owned();
        }
    }
}

/// Drives on; a panic is an end like others.
async fn caught(drive: impl Future<Output = End>) -> End {
    match AssertUnwindSafe(drive).catch_unwind().await {
        Ok(end) => end,
        Err(panic) => End::Panicked(panic_text(&*panic)),
    }
}

/// Says, when everything else has failed to, that the node is gone.
struct LastWord(Arc<Published>);

impl Drop for LastWord {
    fn drop(&mut self) {
        self.0.owned.store(Arc::default());
        for seat in self.0.seats.values() {
            seat.forget();
        }
        self.0.owned_changes.send_if_modified(|owned| {
            let changed = !owned.is_empty();
            *owned = Arc::default();
            changed
        });
        self.0.outcome.send_if_modified(|outcome| {
            let unknown = outcome.is_none();
            outcome.get_or_insert_with(|| Err(DriverError::RuntimeGone { node: self.0.node.clone() }));
            unknown
        });
    }
}

impl Published {
    fn new(cluster: ClusterName, node: NodeId, seats: Seats) -> Self {
        Self {
            cluster,
            node,
            seats,
            owned: arc_swap::ArcSwap::default(),
            owned_changes: tokio::sync::watch::Sender::default(),
            session: tokio::sync::watch::Sender::new(None),
            outcome: tokio::sync::watch::Sender::new(None),
            kill: CancellationToken::new(),
        }
    }
}

/// What a panic said.
fn panic_text(panic: &(dyn Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&'static str>() {
        return (*text).to_owned();
    }
    panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "it panicked without a text".to_owned())
}
