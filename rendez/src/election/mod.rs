//! Leader election: one slot that whoever holds it keeps, on the same sessions and leases as all slots.
//!
//! What a program sees of an election stands here, what the node does about it in `seat`, and an election that needs no
//! other slots in `standalone`.

mod seat;
mod standalone;

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use rendez_core::{Command, FencingToken, NodeId};
use tokio::sync::{mpsc, oneshot, watch};

use crate::handle::{Order, Published};
use crate::lease::SlotLease;
pub(crate) use seat::{Seat, Seats, WithElections};
pub use standalone::{ELECTION_CLUSTER, ELECTION_TTL, ElectionBuilder, StandaloneElection};

/// How a node stands in an election.
///
/// ```
/// use rendez::Candidacy;
///
/// let preferred = Candidacy::new().with_priority(10);
/// let watcher = Candidacy::observer();
/// # assert!(preferred.may_lead && !watcher.may_lead);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Candidacy {
    /// How much this node is preferred when there is no leader; the greater the more. A leader of a lower priority stays.
    pub priority: u32,
    /// Whether it may ever lead; otherwise it only learns who does.
    pub may_lead: bool,
}

impl Candidacy {
    /// A candidate like all others: priority 0.
    #[must_use]
    pub const fn new() -> Self {
        Self { priority: 0, may_lead: true }
    }

    /// Never leads, and learns who does.
    #[must_use]
    pub const fn observer() -> Self {
        Self { priority: 0, may_lead: false }
    }

    /// Preferred so much.
    #[must_use]
    pub const fn with_priority(self, priority: u32) -> Self {
        Self { priority, ..self }
    }
}

impl Default for Candidacy {
    fn default() -> Self {
        Self::new()
    }
}

/// Who leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    /// The node.
    pub node: NodeId,
    /// The token of its leadership: higher than that of every earlier one.
    pub token: FencingToken,
}

/// What is known of an election at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ElectionState {
    /// Who leads, as this node last heard; nobody while there is no leader.
    pub leader: Option<Leader>,
    /// Whether this node leads: its lease has been confirmed, and it was not told to end.
    pub leading: bool,
}

/// Why an election has nothing more to say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ElectionError {
    /// The node has stopped; it leads nothing.
    #[error("node {node} has stopped: it leads nothing any more")]
    Stopped {
        /// The node.
        node: NodeId,
    },
    /// This node is an observer.
    #[error("node {node} may not lead: it was started as an observer")]
    MayNotLead {
        /// The node.
        node: NodeId,
    },
    /// Leadership ended, and the work that went with it was dropped at an await point.
    #[error("leadership under token {token} has ended: the work was dropped")]
    Lost {
        /// The token of the leadership.
        token: FencingToken,
    },
}

/// One election, as a node takes part in it. Cheap to clone.
///
/// An election *is* a workload of one unit with the policy [`Sticky`](rendez_core::placement::Policy::Sticky): its slot
/// `NAME/0` is to be seen like all slots, can be pinned and forced like them, and costs no request of its own: the
/// heartbeat of the node's session renews it with everything else that the node holds.
///
/// At most one node leads at a time, as long as nodes keep time; who was paused for too long notices at the next
/// [`is_leader`](Self::is_leader), but not *while* it is paused: hand the [token](Self::token) to whatever the leader writes to.
///
/// It does not keep the node running: see [`Handle`](crate::Handle) for that, or [`Election::builder`] for an election alone.
#[derive(Clone)]
pub struct Election {
    seat: Arc<Seat>,
    published: Arc<Published>,
    orders: mpsc::WeakSender<Order>,
}

impl Election {
    pub(crate) fn new(seat: Arc<Seat>, published: Arc<Published>, orders: mpsc::WeakSender<Order>) -> Self {
        Self { seat, published, orders }
    }

    /// The election's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.seat.slot().workload.as_str()
    }

    /// This node, as the others know it.
    #[must_use]
    pub fn node(&self) -> &NodeId {
        &self.published.node
    }

    /// Whether this node leads at this moment: nearly free, no I/O. Never true past the deadline of its lease, whatever the
    /// store and the network do, and false as soon as the node is told to end its leadership, before anybody else can lead.
    ///
    /// Call it before each side effect. A leader whose process is paused right after this call finds out only at the next.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.lease().is_some()
    }

    /// The fencing token of this node's leadership, while it leads.
    #[must_use]
    pub fn token(&self) -> Option<FencingToken> {
        self.lease().map(|lease| lease.token())
    }

    /// The lease of this node's leadership, while it leads.
    #[must_use]
    pub fn lease(&self) -> Option<SlotLease> {
        self.seat.lease()
    }

    /// Who leads, as this node last heard: the same for leaders, candidates and observers, up to a heartbeat late, and
    /// as long as the store does not answer what was known before. Costs the store nothing.
    #[must_use]
    pub fn leader(&self) -> Option<Leader> {
        self.seat.state().borrow().leader.clone()
    }

    /// What is known of the election, each time it changes; the latest only. It goes on as long as a clone of this election is
    /// kept; when the node has stopped, nobody is known to lead.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<ElectionState> {
        self.seat.state().subscribe()
    }

    /// Completes when this node leads, at once if it does. Cancelling it changes nothing.
    ///
    /// # Errors
    /// [`ElectionError::Stopped`], [`ElectionError::MayNotLead`].
    pub async fn wait_for_leadership(&self) -> Result<SlotLease, ElectionError> {
        self.leadership(|lease, _| lease).await
    }

    /// Does this once this node leads, and returns what comes of it. When leadership shall end (a resignation, a shutdown, a
    /// store that does not answer), [`SlotLease::cancelled`] completes; the slot leaves this node only after the work has
    /// returned. Work that is not done when the stop budget ([`Timing::stop_budget`](rendez_core::Timing::stop_budget)) is
    /// over is dropped at its next await point. Several may be under way at once.
    ///
    /// ```no_run
    /// # async fn example(election: rendez::Election) {
    /// while let Ok(()) | Err(rendez::ElectionError::Lost { .. }) = election
    ///     .lead(|lease| async move {
    ///         while !lease.is_cancelled() {
    ///             // What only the leader does, under `lease.token()`.
    ///             tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    ///         }
    ///     })
    ///     .await
    /// {}
    /// # }
    /// ```
    ///
    /// Cancelling it drops the work.
    ///
    /// # Errors
    /// [`ElectionError::Lost`] if the work was dropped; otherwise as in
    /// [`wait_for_leadership`](Self::wait_for_leadership).
    pub async fn lead<F, Fut>(&self, work: F) -> Result<Fut::Output, ElectionError>
    where
        F: FnOnce(SlotLease) -> Fut + Send,
        Fut: Future + Send,
    {
        let (lease, counted) = self.leadership(|lease, work| (lease, work.one())).await?;
        let (aborting, token) = (lease.aborting().clone(), lease.token());
        let outcome = {
            let work = work(lease);
            tokio::select! {
                biased;
                () = aborting.cancelled() => Err(ElectionError::Lost { token }),
                output = work => Ok(output),
            }
        };
        // Only now may the slot leave.
        drop(counted);
        outcome
    }

    /// Lets leadership go, if this node has it, and completes when it has ended here: [`is_leader`](Self::is_leader) is false
    /// at once, work under way in [`lead`](Self::lead) has its stop budget, and then the others take over, which takes them
    /// milliseconds. For the time of a session TTL this node does not lead again, also if nobody else stands.
    ///
    /// Cancelling it leaves open whether the node resigns.
    ///
    /// # Errors
    /// [`ElectionError::Stopped`].
    pub async fn resign(&self) -> Result<(), ElectionError> {
        let Some(orders) = self.orders.upgrade() else { return Err(self.stopped()) };
        let (taken, answer) = oneshot::channel();
        let command = Command::Resign(self.seat.slot().clone());
        orders.send(Order::Command { command, taken }).await.map_err(|_| self.stopped())?;
        answer.await.map_err(|_| self.stopped())?;
        // What was ordered is on its way to the runner: it leaves the seat empty, or the node ends.
        self.seat.vacant().await;
        Ok(())
    }

    /// Waits for this node's leadership, and looks at it before it can end.
    async fn leadership<T>(&self, look: impl Fn(SlotLease, &seat::Work) -> T) -> Result<T, ElectionError> {
        if !self.seat.may_lead() {
            return Err(ElectionError::MayNotLead { node: self.node().clone() });
        }
        let mut outcome = self.published.outcome.subscribe();
        tokio::select! {
            biased;
            seen = self.seat.leadership(look) => Ok(seen),
            _ = outcome.wait_for(Option::is_some) => Err(self.stopped()),
        }
    }

    fn stopped(&self) -> ElectionError {
        ElectionError::Stopped { node: self.node().clone() }
    }
}

impl fmt::Debug for Election {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Election")
            .field("name", &self.name())
            .field("node", self.node())
            .field("state", &*self.seat.state().borrow())
            .finish_non_exhaustive()
    }
}
