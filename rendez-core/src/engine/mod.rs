//! The engine: one node's side of the protocol, passive and decisive.
//!
//! It has no clock, sends nothing and runs nothing. Whoever drives it says what time it is and what has happened,
//! and carries out the actions that come out; the same inputs give the same actions. Calls that are late, repeated
//! or in another order are harmless.
//!
//! Where to read: `session` opens and extends, `sync` keeps the view, `slots` has one slot's life from grant to
//! return, `moves` decides what to take and what to hand over.

mod api;
mod hints;
mod moves;
mod outbox;
mod session;
mod slots;
mod sync;
mod tenure;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

pub use api::{
    Action, Call, CheckpointError, Command, Event, Input, Reply, RequestId, RunnerEnd, StopReason, StoppedReason,
    Ticket,
};

use crate::stabilizer::HeldBack;
use crate::status::Status;
use crate::store::{ChangeRequest, ErrorKind, Known};
use crate::view::ClusterView;
use crate::{
    CHECKPOINT_BYTES_MAX, Capabilities, EngineConfig, FencingToken, Generation, Incarnation, NodeId, NodeInfo,
    OperationId, SessionId, Slot, Stance, StoreTime, Timestamp,
};
use hints::Bucket;
use outbox::{Lane, Outbox};
use session::Phase;
use sync::Paging;
use tenure::Local;

/// What an engine is made from.
#[derive(Debug, Clone)]
pub struct EngineSetup {
    /// What the node tells about itself.
    pub info: NodeInfo,
    /// This process lifetime.
    pub incarnation: Incarnation,
    /// What the store can do.
    pub capabilities: Capabilities,
    /// Times, stabilizers, runner policy.
    pub config: EngineConfig,
    /// The engine's only source of chance.
    pub seed: u64,
}

/// One node's side of the protocol.
#[derive(Debug)]
pub struct Engine {
    config: EngineConfig,
    capabilities: Capabilities,
    incarnation: Incarnation,
    info: Arc<NodeInfo>,
    chance: Chance,

    phase: Phase,
    /// The last session that this process held: the next opening replaces it.
    last_session: Option<SessionId>,
    /// When the session that was open last came to its end, if it was lost.
    lost: Option<session::LostSession>,
    known: Known,
    /// The first request that was sent by a node that knew the present generation.
    generation_from: RequestId,
    /// Nothing is granted before this time: data may have been lost.
    quiet_until: Timestamp,
    /// The others do not know yet what the node tells about itself.
    info_dirty: bool,
    in_use_told: bool,

    view: ClusterView,
    paging: Option<Paging>,
    /// The view shows all that the store did up to this time of the store's clock.
    synced_at: StoreTime,
    /// Ask the store as soon as can be.
    sync_wanted: bool,
    sync_from: Timestamp,
    hints_everyone: Bucket,
    hints_own: Bucket,
    /// The last answer had no room for all changes, and the plan was not looked at since.
    reads_on: bool,
    /// When sessions that were about to end are due, on this node's clock.
    due_at: Timestamp,

    slots: BTreeMap<Slot, Local>,
    alarms: BTreeSet<(Timestamp, Slot)>,
    outbox: Outbox,
    /// The view or the node has changed since the plan was last looked at.
    plan_dirty: bool,
    /// When to look at the plan again even if nothing changes.
    tick_at: Timestamp,
    /// Orphans that wait for another node to take them: which node, and since when.
    waiting: BTreeMap<Slot, (NodeId, Timestamp)>,
    /// Voluntary offers made in this heartbeat interval, and when it began.
    offered: (Timestamp, u32),
    held_back: BTreeMap<Slot, HeldBack>,
    settings_differ_told: Vec<NodeId>,

    trouble: Option<(Timestamp, ErrorKind)>,
    /// Requests other than heartbeats wait until then.
    backoff_until: Timestamp,
    failures: u32,
    /// Since when the node shuts down, and whether it has stopped waiting for successors.
    shutdown: Option<Timestamp>,
    patience_told: bool,
    next_request: u64,
    actions: VecDeque<Action>,
}

impl Engine {
    /// An engine that opens its session as soon as it is polled.
    #[must_use]
    pub fn new(now: Timestamp, setup: EngineSetup) -> Self {
        let EngineSetup { info, incarnation, capabilities, config, seed } = setup;
        let interval = config.timing.heartbeat_interval;
        let known = Known { session_ttl_max: info.settings.session_ttl_max, ..Known::default() };
        Self {
            hints_everyone: Bucket::new(4, interval / 4),
            hints_own: Bucket::new(16, interval / 100),
            info: Arc::new(info),
            config,
            capabilities,
            incarnation,
            chance: Chance(seed),
            phase: Phase::Closed,
            last_session: None,
            lost: None,
            known,
            generation_from: RequestId(0),
            quiet_until: Timestamp::ZERO,
            info_dirty: false,
            in_use_told: false,
            view: ClusterView::new(),
            paging: None,
            synced_at: StoreTime::default(),
            sync_wanted: false,
            sync_from: Timestamp::ZERO,
            reads_on: false,
            due_at: Timestamp::NEVER,
            slots: BTreeMap::new(),
            alarms: BTreeSet::new(),
            outbox: Outbox::default(),
            plan_dirty: false,
            tick_at: now + interval,
            waiting: BTreeMap::new(),
            offered: (now, 0),
            held_back: BTreeMap::new(),
            settings_differ_told: Vec::new(),
            trouble: None,
            backoff_until: now,
            failures: 0,
            shutdown: None,
            patience_told: false,
            next_request: 0,
            actions: VecDeque::new(),
        }
    }

    /// Takes in what has happened.
    pub fn handle(&mut self, now: Timestamp, input: Input) {
        // Whatever came late because this process did not run, the deadlines come first.
        self.handle_timeout(now);
        match input {
            Input::Reply(request, result) => self.on_reply(now, request, result),
            Input::Hint(hint) => self.on_hint(now, hint),
            Input::RunnerEnded { slot, token, end, checkpoint } => self.on_ended(now, &slot, token, end, checkpoint),
            Input::WarmedUp { slot, offer, ready } => self.on_warmed_up(now, &slot, offer, ready),
            Input::SaveCheckpoint { slot, token, checkpoint, ticket } => {
                self.on_save(now, &slot, token, checkpoint, ticket);
            }
            Input::Command(command) => self.on_command(now, command),
        }
    }

    /// Does what is due at this time: deadlines first.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        self.mind_session(now);
        while let Some((at, slot)) = self.alarms.first().cloned() {
            if at > now {
                break;
            }
            self.alarms.pop_first();
            self.slots.entry(slot.clone()).or_default().alarm = None;
            self.mind(now, &slot);
        }
        if now >= self.tick_at {
            self.tick_at = now + self.config.timing.heartbeat_interval;
            self.view.tick(now);
            self.plan_dirty = true;
        }
    }

    /// The next thing to do, if any. Changes that were decided since the last call leave together.
    pub fn poll_action(&mut self, now: Timestamp) -> Option<Action> {
        if self.actions.is_empty() {
            self.send_due(now);
        }
        self.actions.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) and [`poll_action`](Self::poll_action) next, if nothing
    /// happens before.
    #[must_use]
    pub fn poll_timeout(&self) -> Timestamp {
        if !self.actions.is_empty() {
            return Timestamp::ZERO;
        }
        let alarm = self.alarms.first().map_or(Timestamp::NEVER, |(at, _)| *at);
        let working = match self.phase {
            Phase::Done => return Timestamp::NEVER,
            Phase::Open(_) => self.tick_at.min(self.outbox.next().max(self.backoff_until)),
            Phase::Closed | Phase::Opening(_) | Phase::Closing(_) => Timestamp::NEVER,
        };
        alarm.min(working).min(self.session_due()).min(self.paging_due()).min(self.shutdown_due())
    }

    /// The slots whose runners this node has started and not yet seen ending.
    pub fn running(&self) -> impl Iterator<Item = (&Slot, FencingToken)> {
        self.slots.iter().filter_map(|(slot, local)| {
            let tenure = local.tenure.as_ref()?;
            tenure.run.is_alive().then_some((slot, tenure.token))
        })
    }

    /// What the node tells about itself now.
    #[must_use]
    pub fn info(&self) -> &NodeInfo {
        &self.info
    }

    /// The node's picture of the cluster.
    #[must_use]
    pub fn view(&self) -> &ClusterView {
        &self.view
    }

    /// The open session, and until when it is good.
    #[must_use]
    pub fn session(&self) -> Option<(SessionId, Timestamp)> {
        match &self.phase {
            Phase::Open(open) => Some((open.id, open.deadline)),
            Phase::Closed | Phase::Opening(_) | Phase::Closing(_) | Phase::Done => None,
        }
    }

    /// The cluster as this node sees it, with what holds its own moves back.
    pub fn status(&mut self, now: Timestamp) -> Status {
        Status::of(&mut self.view, now, &self.held_back)
    }

    fn on_command(&mut self, now: Timestamp, command: Command) {
        let mut info = (*self.info).clone();
        match command {
            Command::SetWeight(weight) => {
                let (old, new) = (u64::from(info.weight), u64::from(weight.max(1)));
                let hysteresis = u64::from(self.config.stabilizers.weight_hysteresis_permille);
                if old.abs_diff(new) * 1000 >= hysteresis * old {
                    info.weight = weight.max(1);
                }
            }
            Command::SetHealth(healthy) => info.healthy = healthy,
            Command::SetCapacity(capacity) => info.capacity = capacity,
            Command::SetWorkloads(workloads) => info.workloads = workloads,
            Command::SetDynamic(dynamic) => info.dynamic = dynamic,
            Command::Cordon(_) | Command::Drain(_) if self.shutdown.is_some() => {}
            Command::Cordon(on) => info.stance = if on { Stance::Cordoned } else { Stance::Active },
            Command::Drain(on) => info.stance = if on { Stance::Draining } else { Stance::Active },
            Command::Resign(slot) => {
                self.resign(now, &slot);
                return;
            }
            Command::Shutdown => {
                info.stance = Stance::Draining;
                self.begin_shutdown(now);
            }
        }
        if info != *self.info {
            self.info = Arc::new(info);
            self.info_dirty = true;
            self.want_sync(now);
            self.view.set_own(now, self.info.clone());
            self.plan_dirty = true;
            self.tell(Event::InfoChanged(Box::new((*self.info).clone())));
        }
    }

    fn on_save(&mut self, now: Timestamp, slot: &Slot, token: FencingToken, checkpoint: bytes::Bytes, ticket: Ticket) {
        let runs = self.slots.get(slot).and_then(|local| local.tenure.as_ref()).is_some_and(|tenure| {
            tenure.token == token && !tenure.gone && tenure.run.is_alive() && now < self.deadline_of(tenure)
        });
        let error = if checkpoint.len() > CHECKPOINT_BYTES_MAX {
            Some(CheckpointError::TooLarge { bytes: checkpoint.len() })
        } else if !runs || !matches!(self.phase, Phase::Open(_)) {
            Some(CheckpointError::LeaseGone)
        } else {
            None
        };
        match error {
            Some(error) => self.actions.push_back(Action::CheckpointSaved { ticket, result: Err(error) }),
            None => {
                let kind = crate::ChangeKind::SaveCheckpoint { checkpoint };
                self.outbox.push(slot, Lane::Checkpoint(ticket), token, kind, now);
            }
        }
    }

    fn on_reply(&mut self, now: Timestamp, request: RequestId, result: Result<Reply, crate::StoreError>) {
        match &result {
            Ok(_) => {
                self.failures = 0;
                self.backoff_until = now;
                if let Some((since, _)) = self.trouble.take() {
                    self.tell(Event::StoreBack { after: now.since(since) });
                }
            }
            Err(error) if error.kind() != ErrorKind::Lost => {
                let pause = self.backoff(error.kind()).max(error.retry_after().unwrap_or_default());
                self.backoff_until = now + pause;
                let before = self.trouble.as_ref().map(|(_, kind)| *kind);
                let since = self.trouble.as_ref().map_or(now, |(since, _)| *since);
                self.trouble = Some((since, error.kind()));
                if before.is_none() || (before != Some(ErrorKind::Fatal) && error.kind() == ErrorKind::Fatal) {
                    self.tell(Event::StoreTrouble { kind: error.kind(), message: error.message().to_owned() });
                }
            }
            Err(_) => {}
        }
        match result {
            Ok(Reply::Open(opening)) => self.on_opened(now, request, opening),
            Ok(Reply::Heartbeat(beat)) => self.on_beat(now, request, beat),
            Ok(Reply::Change(reply)) => self.on_changed(now, request, reply),
            Ok(Reply::Snapshot(page)) => self.on_page(now, request, page),
            Ok(Reply::Close) => self.on_closed(request),
            Err(error) => self.on_failed(now, request, &error),
        }
    }

    fn on_failed(&mut self, now: Timestamp, request: RequestId, error: &crate::StoreError) {
        if self.session_request_failed(now, request, error) || self.page_failed(now, request) {
            return;
        }
        if error.kind() == ErrorKind::Lost {
            if self.outbox.unanswered(request, now) {
                self.session_reported_lost(now, error.message());
            }
            return;
        }
        self.outbox.unanswered(request, self.backoff_until);
    }

    /// Sends whatever may be sent now.
    fn send_due(&mut self, now: Timestamp) {
        if self.plan_dirty && matches!(self.phase, Phase::Open(_)) {
            self.plan_dirty = false;
            self.look_at_plan(now);
        }
        self.send_session_request(now);
        self.send_page(now);
        let Phase::Open(open) = &self.phase else { return };
        let session = open.id;
        if now >= self.backoff_until {
            self.drop_idle_readoptions(now);
        }
        while now >= self.backoff_until {
            let changes_max = self.capabilities.changes_max.min(self.config.stabilizers.acquire_limit as usize).max(1);
            let request = RequestId(self.next_request);
            let Some(changes) = self.outbox.batch(now, request, changes_max) else { break };
            let change = ChangeRequest { known: self.known.clone(), session, changes };
            self.send(Call::Change(change));
        }
    }

    fn send(&mut self, call: Call) -> RequestId {
        let request = RequestId(self.next_request);
        self.next_request += 1;
        self.actions.push_back(Action::Send { request, call, timeout: self.config.timing.operation_timeout });
        request
    }

    fn tell(&mut self, event: Event) {
        self.actions.push_back(Action::Tell(event));
    }

    /// The pause after one more failure: doubling, up to a heartbeat interval; that at once where trying again
    /// cannot help.
    fn backoff(&mut self, kind: ErrorKind) -> Duration {
        let max = self.config.timing.heartbeat_interval;
        let doubled = self.config.timing.backoff_min * 2u32.saturating_pow(self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        let pause = if kind == ErrorKind::Fatal { max } else { doubled.min(max) };
        // Between half and the whole of it, so that nodes do not come back in step.
        pause / 2 + self.chance.up_to(pause / 2)
    }

    fn operation(&mut self) -> OperationId {
        OperationId::from_bits(self.chance.bits())
    }

    fn node(&self) -> &NodeId {
        &self.info.node
    }

    fn generation(&self) -> Option<Generation> {
        self.known.generation
    }
}

/// Numbers that look random, from one seed (SplitMix64).
#[derive(Debug)]
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn bits(&mut self) -> u128 {
        u128::from(self.next()) << 64 | u128::from(self.next())
    }

    fn up_to(&mut self, max: Duration) -> Duration {
        let nanos = u64::try_from(max.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.next() % nanos.saturating_add(1).max(1))
    }
}
