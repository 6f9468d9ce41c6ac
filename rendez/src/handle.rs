//! What a program holds of a node that runs.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rendez_core::{
    ClusterName, Command, Declared, DynamicWorkloads, Event, FencingToken, Generation, NodeId, SessionId, Slot, Status,
    StoppedReason, UNITS_MAX, WorkloadName,
};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::coordinator::with_elections;
use crate::election::{Election, Seats};
use crate::lease::SlotLease;

/// The slots that run on this node, sorted; a picture of one moment.
#[derive(Debug, Default)]
pub struct Owned(Vec<SlotLease>);

impl Owned {
    pub(crate) fn new(leases: impl Iterator<Item = SlotLease>) -> Self {
        Self(leases.collect())
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Their leases, in the order of the slots.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &SlotLease> {
        self.0.iter()
    }

    /// The slots, in order.
    pub fn slots(&self) -> impl ExactSizeIterator<Item = &Slot> {
        self.0.iter().map(SlotLease::slot)
    }

    /// The lease of this slot, if it was among them. [`SlotLease::check`] says whether it still holds.
    #[must_use]
    pub fn get(&self, slot: &Slot) -> Option<&SlotLease> {
        self.0.binary_search_by(|lease| lease.slot().cmp(slot)).ok().map(|at| &self.0[at])
    }
}

/// What [`Events::next`] brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// Something has happened.
    Event(Event),
    /// So many events were dropped, because they were not fetched in time.
    Missed(u64),
}

/// The events of a node, from the moment of [`Handle::events`] on.
#[derive(Debug)]
pub struct Events(broadcast::Receiver<Event>);

impl Events {
    /// The next event, or nothing when the node has stopped. At most [`EVENTS_KEPT`] are kept for a receiver that
    /// does not fetch them; then the oldest are dropped, and [`Told::Missed`] says how many.
    ///
    /// Cancelling it loses nothing.
    pub async fn next(&mut self) -> Option<Told> {
        match self.0.recv().await {
            Ok(event) => Some(Told::Event(event)),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(Told::Missed(missed)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

/// How many events are kept for a receiver that does not fetch them.
pub const EVENTS_KEPT: usize = 1024;

/// The node's driver is gone without having been asked to end. Its runners were cancelled and aborted; its leases end
/// with the session's TTL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DriverError {
    /// It panicked: a bug in this library. The runners were told to stop and aborted.
    #[error("the driver of node {node} panicked, and its runners were ended: {message}")]
    Panicked {
        /// The node.
        node: NodeId,
        /// What it said.
        message: String,
    },
    /// The runtime that it ran in was shut down.
    #[error("the runtime of node {node} was shut down")]
    RuntimeGone {
        /// The node.
        node: NodeId,
    },
}

/// The node does not take commands any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// The node has stopped; the command changed nothing.
    #[error("node {node} has stopped")]
    Stopped {
        /// The node.
        node: NodeId,
    },
    /// The command cannot be carried out; it changed nothing.
    #[error("{what}")]
    Invalid {
        /// What is wrong with it, and what would do.
        what: String,
    },
}

pub(crate) type Outcome = Option<Result<StoppedReason, DriverError>>;

/// What a handle asks of the driver.
#[derive(Debug)]
pub(crate) enum Order {
    /// To carry out a command, and to say when it is taken in.
    Command { command: Command, taken: oneshot::Sender<()> },
    /// To tell the cluster's status.
    Status { told: oneshot::Sender<Status> },
    /// To tell who holds a slot.
    Holder { slot: Slot, told: oneshot::Sender<Option<(NodeId, FencingToken)>> },
}

/// What the driver lets others see.
pub(crate) struct Published {
    pub(crate) cluster: ClusterName,
    pub(crate) node: NodeId,
    pub(crate) seats: Seats,
    pub(crate) owned: ArcSwap<Owned>,
    pub(crate) owned_changes: watch::Sender<Arc<Owned>>,
    pub(crate) session: watch::Sender<Option<(SessionId, Generation)>>,
    pub(crate) outcome: watch::Sender<Outcome>,
    /// Ends the driver whatever the engine says.
    pub(crate) kill: CancellationToken,
}

/// What a program holds of a node that runs. Cheap to clone; all clones are the same node.
///
/// **When the last handle is dropped, the node ends**: its runners are told to stop, aborted when their stop budget is
/// over, and its leases are *not* released: the other nodes take its slots when its session ends, a TTL later.
/// [`shutdown`](Handle::shutdown) hands everything over instead, at once. A [`SlotContext`](crate::SlotContext) keeps
/// no node alive.
#[derive(Clone)]
pub struct Handle {
    published: Arc<Published>,
    orders: mpsc::Sender<Order>,
    events: broadcast::WeakSender<Event>,
    shutdown_max: Duration,
}

impl Handle {
    pub(crate) fn new(
        published: Arc<Published>,
        orders: mpsc::Sender<Order>,
        events: broadcast::WeakSender<Event>,
        shutdown_max: Duration,
    ) -> Self {
        Self { published, orders, events, shutdown_max }
    }

    /// The cluster.
    #[must_use]
    pub fn cluster(&self) -> &ClusterName {
        &self.published.cluster
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> &NodeId {
        &self.published.node
    }

    /// The slots whose runners run on this node now: nearly free, no lock, no I/O.
    #[must_use]
    pub fn owned(&self) -> Arc<Owned> {
        self.published.owned.load_full()
    }

    /// The lease of a slot, if it runs on this node and its lease holds at this moment: nearly free.
    #[must_use]
    pub fn lease(&self, slot: &Slot) -> Option<SlotLease> {
        let owned = self.published.owned.load();
        owned.get(slot).filter(|lease| lease.check().is_ok()).cloned()
    }

    /// [`owned`](Self::owned), each time it changes; the latest only.
    #[must_use]
    pub fn owned_changes(&self) -> watch::Receiver<Arc<Owned>> {
        self.published.owned_changes.subscribe()
    }

    /// An election that the node was started with; nothing if it was not. It does not keep the node running.
    #[must_use]
    pub fn election(&self, name: &str) -> Option<Election> {
        let seat = self.published.seats.iter().find(|(known, _)| known.as_str() == name)?.1;
        Some(Election::new(seat.clone(), self.published.clone(), self.orders.downgrade()))
    }

    /// The session that the node holds now, and the store's generation; for whoever closes it on the node's behalf
    /// after the whole process and all that it started are gone. The latest only.
    #[must_use]
    pub fn session_changes(&self) -> watch::Receiver<Option<(SessionId, Generation)>> {
        self.published.session.subscribe()
    }

    /// What happens from now on. Each call gives a receiver of its own; none of them slows the node down.
    #[must_use]
    pub fn events(&self) -> Events {
        Events(match self.events.upgrade() {
            Some(events) => events.subscribe(),
            None => broadcast::channel(1).1,
        })
    }

    /// The cluster as this node sees it now: nodes, workloads, and slots with their holder, token, desired owner and
    /// the reason of every orphan and every misplacement. Costs the store nothing. Cancelling it changes nothing.
    ///
    /// # Errors
    /// [`CommandError::Stopped`].
    pub async fn status(&self) -> Result<Status, CommandError> {
        let stopped = || CommandError::Stopped { node: self.node().clone() };
        let (told, telling) = oneshot::channel();
        self.orders.send(Order::Status { told }).await.map_err(|_| stopped())?;
        telling.await.map_err(|_| stopped())
    }

    /// The live node that holds a slot, and the token of its lease, as this node sees it now: one look-up in what it knows,
    /// where [`status`](Self::status) tells of all slots. Costs the store nothing. Cancelling it changes nothing.
    ///
    /// # Errors
    /// [`CommandError::Stopped`].
    pub async fn holder(&self, slot: &Slot) -> Result<Option<(NodeId, FencingToken)>, CommandError> {
        let stopped = || CommandError::Stopped { node: self.node().clone() };
        let (told, telling) = oneshot::channel();
        self.orders.send(Order::Holder { slot: slot.clone(), told }).await.map_err(|_| stopped())?;
        telling.await.map_err(|_| stopped())
    }

    /// Sets the node's weight, its part of the work relative to the other nodes. Changes below
    /// [`weight_hysteresis_permille`](rendez_core::Stabilizers::weight_hysteresis_permille) are kept back.
    ///
    /// Like all commands it returns when the node has taken it in, not when the others have heard of it; cancelling
    /// it leaves open whether the node has.
    ///
    /// # Errors
    /// [`CommandError::Invalid`] for 0; [`CommandError::Stopped`].
    pub async fn set_weight(&self, weight: u32) -> Result<(), CommandError> {
        if weight == 0 {
            return Err(CommandError::Invalid { what: "a weight of 0 cannot be: use 1 or more, or drain".to_owned() });
        }
        self.order(Command::SetWeight(weight)).await
    }

    /// Says whether the node feels well; an unhealthy node is given nothing new. Cancelling: see
    /// [`set_weight`](Self::set_weight).
    ///
    /// # Errors
    /// [`CommandError::Stopped`].
    pub async fn set_health(&self, healthy: bool) -> Result<(), CommandError> {
        self.order(Command::SetHealth(healthy)).await
    }

    /// Sets the most slots of all workloads together; `None` for no limit. What is held beyond it is handed off.
    /// Cancelling: see [`set_weight`](Self::set_weight).
    ///
    /// # Errors
    /// [`CommandError::Stopped`].
    pub async fn set_capacity(&self, capacity: Option<u32>) -> Result<(), CommandError> {
        self.order(Command::SetCapacity(capacity)).await
    }

    /// Replaces the workloads that this program declares; its elections stay. Cancelling: see
    /// [`set_weight`](Self::set_weight).
    ///
    /// # Errors
    /// [`CommandError::Invalid`] for more than [`UNITS_MAX`] units, or the name of an election; [`CommandError::Stopped`].
    pub async fn set_workloads(&self, workloads: BTreeMap<WorkloadName, Declared>) -> Result<(), CommandError> {
        if let Some((name, declared)) = workloads.iter().find(|(_, declared)| declared.units > UNITS_MAX) {
            let units = declared.units;
            return Err(CommandError::Invalid {
                what: format!("{units} units of {name} are too many: use {UNITS_MAX} or less"),
            });
        }
        let seats = &self.published.seats;
        if let Some(name) = workloads.keys().find(|name| seats.contains_key(*name)) {
            let what = format!("{name} is an election of this node: give the workload another name");
            return Err(CommandError::Invalid { what });
        }
        self.order(Command::SetWorkloads(with_elections(workloads, seats))).await
    }

    /// Replaces the workloads kept in the store that this node can run. Cancelling: see
    /// [`set_weight`](Self::set_weight).
    ///
    /// # Errors
    /// [`CommandError::Stopped`].
    pub async fn set_dynamic(&self, dynamic: DynamicWorkloads) -> Result<(), CommandError> {
        self.order(Command::SetDynamic(dynamic)).await
    }

    /// Takes no new slots and keeps what is held, or (with `false`) takes its share again. Cancelling: see
    /// [`set_weight`](Self::set_weight).
    ///
    /// # Errors
    /// [`CommandError::Stopped`].
    pub async fn cordon(&self, cordon: bool) -> Result<(), CommandError> {
        self.order(Command::Cordon(cordon)).await
    }

    /// Takes no new slots and hands everything off, keeping each slot until another node takes it; or (with `false`)
    /// takes its share again. Returns when the node has taken it in: [`owned_changes`](Self::owned_changes) tells how
    /// far it is. Cancelling: see [`set_weight`](Self::set_weight).
    ///
    /// # Errors
    /// [`CommandError::Stopped`].
    pub async fn drain(&self, drain: bool) -> Result<(), CommandError> {
        self.order(Command::Drain(drain)).await
    }

    /// Hands everything off, lets go of what nobody takes, closes the session, and returns how it ended: within
    /// [`drain_timeout`](rendez_core::EngineConfig::drain_timeout) and a little more, whatever the store and the runners do.
    /// Runners that ignore stop and abort are named in [`StoppedReason::DrainTimeout`]; the node's tasks go on looking
    /// after those until their leases end.
    ///
    /// Calling it again, or from several places, is fine. Once it was polled the shutdown goes on even if this
    /// future is dropped, as long as a handle is kept; [`stopped`](Self::stopped) tells its end.
    ///
    /// # Errors
    /// [`DriverError`] if the node had ended, or ends meanwhile, in another way.
    pub async fn shutdown(&self) -> Result<StoppedReason, DriverError> {
        let order = async {
            // An error means that it has stopped already: then the outcome says how.
            let _ = self.order(Command::Shutdown).await;
            self.stopped().await
        };
        match tokio::time::timeout(self.shutdown_max, order).await {
            Ok(outcome) => outcome,
            Err(_) => {
                self.published.kill.cancel();
                self.stopped().await
            }
        }
    }

    /// Completes when the node has stopped, with how it ended; at once if it already has. Cancelling it changes
    /// nothing.
    ///
    /// # Errors
    /// [`DriverError`] if nobody had asked it to.
    pub async fn stopped(&self) -> Result<StoppedReason, DriverError> {
        let mut outcome = self.published.outcome.subscribe();
        match outcome.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(outcome)) => outcome.clone(),
            Ok(None) | Err(_) => Err(DriverError::RuntimeGone { node: self.node().clone() }),
        }
    }

    /// How the node has ended, once it has.
    pub(crate) fn outcome_changes(&self) -> watch::Receiver<Outcome> {
        self.published.outcome.subscribe()
    }

    async fn order(&self, command: Command) -> Result<(), CommandError> {
        let stopped = || CommandError::Stopped { node: self.node().clone() };
        let (taken, answer) = oneshot::channel();
        self.orders.send(Order::Command { command, taken }).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("cluster", self.cluster())
            .field("node", self.node())
            .field("owned", &self.owned().len())
            .finish_non_exhaustive()
    }
}
