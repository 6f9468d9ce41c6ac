//! What a node does about an election: the runner of its slot, and what that tells the program.
//!
//! The slot's runner *is* the leadership: it sits down when it starts, gets up when it is told to stop, and ends when the
//! work that was begun meanwhile has ended. So the lease leaves after the work.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use rendez_core::placement::Policy;
use rendez_core::{ClusterView, Declared, Slot, WorkloadName};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::{Candidacy, ElectionState, Leader};
use crate::SlotContext;
use crate::lease::SlotLease;
use crate::runner::{BoxError, Runner, RunnerFactory};

/// The elections that a node takes part in, by name.
pub(crate) type Seats = BTreeMap<WorkloadName, Arc<Seat>>;

/// One election, as this node takes part in it.
#[derive(Debug)]
pub(crate) struct Seat {
    slot: Slot,
    candidacy: Candidacy,
    /// The leadership that this node has. The lock of this channel orders beginnings of work and the end of leadership.
    work: watch::Sender<Option<Work>>,
    state: watch::Sender<ElectionState>,
}

/// A leadership, and how much is under way because of it.
#[derive(Debug, Clone)]
pub(crate) struct Work {
    lease: SlotLease,
    under_way: TaskTracker,
}

impl Work {
    /// Counts one piece of work, until what is returned is dropped.
    pub(super) fn one(&self) -> TaskTrackerToken {
        self.under_way.token()
    }
}

impl Seat {
    pub(crate) fn new(name: WorkloadName, candidacy: Candidacy) -> Self {
        Self { slot: Slot::new(name, 0), candidacy, work: watch::Sender::new(None), state: watch::Sender::default() }
    }

    /// What the node declares for it; nothing where it may not lead.
    pub(crate) fn declared(&self) -> Option<Declared> {
        let candidate = Declared::new(1).with_policy(Policy::Sticky).with_priority(self.candidacy.priority);
        self.candidacy.may_lead.then_some(candidate)
    }

    pub(super) fn slot(&self) -> &Slot {
        &self.slot
    }

    pub(super) fn may_lead(&self) -> bool {
        self.candidacy.may_lead
    }

    pub(super) fn state(&self) -> &watch::Sender<ElectionState> {
        &self.state
    }

    /// The lease, if it holds now and was not told to end.
    pub(super) fn lease(&self) -> Option<SlotLease> {
        holds(&self.work.borrow()).map(|work| work.lease.clone())
    }

    /// Looks at this node's leadership as soon as it has it, before it can end.
    pub(super) async fn leadership<T>(&self, look: impl Fn(SlotLease, &Work) -> T) -> T {
        let mut changes = self.work.subscribe();
        loop {
            if let Some(work) = holds(&changes.borrow_and_update()) {
                return look(work.lease.clone(), work);
            }
            // The sender lives as long as this does.
            let _ = changes.changed().await;
        }
    }

    /// Completes when nothing is under way because of a leadership that was told to end.
    pub(super) async fn vacant(&self) {
        let ending = self.work.borrow().clone();
        if let Some(work) = ending {
            let mut changes = self.work.subscribe();
            let token = work.lease.token();
            let _ = changes.wait_for(|now| now.as_ref().is_none_or(|now| now.lease.token() != token)).await;
            work.under_way.wait().await;
        }
    }

    /// Takes in who leads, as the records say.
    pub(crate) fn hear(&self, view: &ClusterView) {
        let node = view.holder(&self.slot);
        let leader = node.zip(view.slot(&self.slot)).map(|(node, record)| (node, record.token));
        self.state.send_if_modified(|state| {
            let same = state.leader.as_ref().map(|known| (&known.node, known.token)) == leader;
            if !same {
                state.leader = leader.map(|(node, token)| Leader { node: node.clone(), token });
            }
            !same
        });
    }

    /// The node is gone: it knows of nobody.
    pub(crate) fn forget(&self) {
        self.work.send_replace(None);
        self.state.send_if_modified(|state| std::mem::take(state) != ElectionState::default());
    }

    fn sit_down(&self, work: &Work) {
        self.work.send_replace(Some(work.clone()));
        self.state.send_modify(|state| state.leading = true);
    }

    fn get_up(&self) {
        self.work.send_replace(None);
        self.state.send_if_modified(|state| std::mem::replace(&mut state.leading, false));
    }
}

fn holds(work: &Option<Work>) -> Option<&Work> {
    work.as_ref().filter(|work| !work.lease.is_cancelled() && work.lease.check().is_ok())
}

/// Makes the runners of elections' slots; all others are the program's.
pub(crate) struct WithElections {
    pub(crate) seats: Seats,
    pub(crate) others: Arc<dyn RunnerFactory>,
}

#[async_trait]
impl RunnerFactory for WithElections {
    async fn make(&self, ctx: &SlotContext) -> Result<Box<dyn Runner>, BoxError> {
        match self.seats.get(&ctx.slot().workload) {
            Some(seat) => Ok(Box::new(Leading(seat.clone()))),
            None => self.others.make(ctx).await,
        }
    }

    async fn warm_up(&self, slot: &Slot) -> Result<(), BoxError> {
        if self.seats.contains_key(&slot.workload) { Ok(()) } else { self.others.warm_up(slot).await }
    }

    async fn cool_down(&self, slot: &Slot) {
        if !self.seats.contains_key(&slot.workload) {
            self.others.cool_down(slot).await;
        }
    }
}

/// The runner of an election's slot.
struct Leading(Arc<Seat>);

#[async_trait]
impl Runner for Leading {
    async fn run(&mut self, ctx: SlotContext) -> Result<(), BoxError> {
        let work = Work { lease: ctx.lease().clone(), under_way: TaskTracker::new() };
        let seated = Seated::new(&self.0, &work);
        ctx.cancelled().await;
        drop(seated);
        // Work is dropped when the lease is aborted; that it is gone is what this waits for.
        work.under_way.wait().await;
        Ok(())
    }

    /// The work runs in other tasks.
    fn ends_itself(&self) -> bool {
        true
    }
}

/// Leadership, until this is dropped.
struct Seated<'a> {
    seat: &'a Seat,
    work: &'a Work,
}

impl<'a> Seated<'a> {
    fn new(seat: &'a Seat, work: &'a Work) -> Self {
        seat.sit_down(work);
        Self { seat, work }
    }
}

impl Drop for Seated<'_> {
    fn drop(&mut self) {
        self.seat.get_up();
        self.work.under_way.close();
    }
}
