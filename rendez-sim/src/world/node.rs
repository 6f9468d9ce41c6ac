//! A node: its clock, its process, its runners. What a driver does with an engine's actions is done here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rendez_core::placement::Policy;
use rendez_core::{
    Action, ClusterSettings, Declared, DynamicWorkloads, Engine, EngineSetup, Event, FencingToken, Incarnation, Input,
    NodeId, NodeInfo, OperationId, PROTOCOL_VERSION, Reply, RequestId, RunnerEnd, Slot, StopReason, Sync, Timestamp,
    WorkloadName, ZoneName,
};

use super::{MS, S, What, World, policy};
use crate::faults::Fault;
use crate::scenario::Variant;
use crate::trace::{Fact, Gone, SlotNo};

/// The most actions that follow from one input.
const ACTIONS_MAX: u32 = 100_000;

#[derive(Debug, Clone)]
pub(super) struct Running {
    pub(super) token: FencingToken,
    pub(super) stopping: bool,
    pub(super) aborted: bool,
    /// Ignores its stop, and the abort for a while.
    pub(super) stuck: bool,
}

/// A process, from its start to its end.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) engine: Engine,
    pub(super) life: u32,
    /// It speaks a version of the protocol that nobody knows.
    pub(super) stranger: bool,
    pub(super) runners: BTreeMap<Slot, Running>,
    /// Requests without an answer.
    pub(super) waiting: BTreeSet<RequestId>,
    /// What the answers to requests will say of slots whose history is judged: where in the answer, and the request's number.
    pub(super) asked: BTreeMap<RequestId, Vec<(usize, u64, SlotNo)>>,
    /// When requests were sent whose answers were not taken in.
    sent_at: BTreeMap<RequestId, u64>,
    /// When the request was sent whose answer was taken in last.
    heard_of: u64,
    /// The last answer had no room for all changes.
    pub(super) reads_on: bool,
    pub(super) paused_until: u64,
    /// What came while it was frozen.
    inbox: Vec<Input>,
    /// Slots that it has prepared for and that have neither come nor been called off.
    pub(super) warm: BTreeSet<Slot>,
    pub(super) wake_at: u64,
}

/// A place where one process after the other lives.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) offset: u64,
    /// Millionths by which its clock runs fast (or slow).
    pub(super) rate: i64,
    /// Its clock stands still since then.
    pub(super) clock_stopped_at: Option<u64>,
    pub(super) life: u32,
    pub(super) process: Option<Process>,
    pub(super) start_at: u64,
    /// Nothing that it sends arrives until then.
    pub(super) mute_until: u64,
    /// Nothing that is sent to it arrives until then.
    pub(super) deaf_until: u64,
}

impl Node {
    pub(super) fn new(id: NodeId, offset: u64, rate: i64, start_at: u64) -> Self {
        Self {
            id,
            offset,
            rate,
            clock_stopped_at: None,
            life: 0,
            process: None,
            start_at,
            mute_until: 0,
            deaf_until: 0,
        }
    }
}

impl World {
    /// What a node's clock shows.
    pub(super) fn local(&self, node: usize) -> Timestamp {
        let node = &self.nodes[node];
        let gained = i128::from(self.now) * i128::from(node.rate) / 1_000_000;
        Timestamp::from_nanos((node.offset + self.now).saturating_add_signed(gained as i64))
    }

    /// The world's time at which a node's clock shows this.
    pub(super) fn global(&self, node: usize, local: Timestamp) -> u64 {
        if local == Timestamp::NEVER {
            return u64::MAX;
        }
        let shown = self.local(node);
        let ahead = local.since(shown).as_nanos() as u64;
        let rate = i128::from(1_000_000 + self.nodes[node].rate);
        self.now + (i128::from(ahead) * 1_000_000 / rate) as u64 + 2
    }

    pub(super) fn process(&mut self, index: usize, life: u32) -> Option<&mut Process> {
        self.nodes[index].process.as_mut().filter(|process| process.life == life)
    }

    pub(super) fn start(&mut self, index: usize) {
        let ttl = self.config.timing.session_ttl;
        let mut settings = ClusterSettings::new(ttl + self.store.model.capabilities().expiry_lateness_max);
        settings.policy = policy(self.scenario.variant);
        if self.scenario.variant.is(Variant::ONE_BY_ONE) {
            settings.move_budget = 1;
        }
        if self.has(Fault::Losses) {
            settings.cold_start_hold = settings.session_ttl_max + Duration::from_secs(1);
        }
        if self.has(Fault::MixedSettings) && index % 2 == 1 && !self.calm {
            settings.move_budget += 1;
            self.trouble(Fault::MixedSettings, index as u64);
        }
        let mut info = NodeInfo::new(self.nodes[index].id.clone(), settings);
        info.capacity = self.scenario.capacity;
        info.workloads = self.declared(index);
        info.dynamic = DynamicWorkloads::All;
        if self.has(Fault::Zones) {
            info.zone = ZoneName::new(format!("z{}", index % 2)).ok();
        }
        if self.suffers(Fault::MixedVersions) && self.more.one_in(4) {
            info.protocol = if self.more.one_in(3) { 0 } else { PROTOCOL_VERSION + 1 };
            self.trouble(Fault::MixedVersions, index as u64);
        }
        let version = info.protocol;
        let stranger = version != PROTOCOL_VERSION;
        let setup = EngineSetup {
            info,
            incarnation: Incarnation::from_bits(u128::from(self.dice.roll())),
            capabilities: self.store.model.capabilities().clone(),
            config: self.config.clone(),
            seed: self.dice.roll(),
        };
        let now = self.local(index);
        let node = &mut self.nodes[index];
        node.life += 1;
        node.process = Some(Process {
            engine: Engine::new(now, setup),
            life: node.life,
            stranger,
            runners: BTreeMap::new(),
            waiting: BTreeSet::new(),
            asked: BTreeMap::new(),
            sent_at: BTreeMap::new(),
            heard_of: 0,
            reads_on: false,
            paused_until: 0,
            inbox: Vec::new(),
            warm: BTreeSet::new(),
            wake_at: u64::MAX,
        });
        self.fact(Fact::Begins { node: index });
        if self.has(Fault::MixedVersions) {
            self.fact(Fact::Speaks { node: index, version, known: !stranger });
        }
        self.drive(index);
    }

    /// The workloads as the program of a node declares them.
    pub(super) fn declared(&self, index: usize) -> BTreeMap<WorkloadName, Declared> {
        let all = self.scenario.workloads.iter().enumerate();
        all.map(|(number, units)| (workload(number), self.declare(index, number, *units))).collect()
    }

    pub(super) fn declare(&self, index: usize, number: usize, units: u32) -> Declared {
        let mut declared = Declared::new(units);
        if self.scenario.variant.is(Variant::STICKY) {
            declared.priority = index as u32 % 3;
            declared.policy = (number % 2 == 1).then_some(Policy::Sticky);
        }
        declared
    }

    pub(super) fn goes(&mut self, index: usize, how: Gone, back_after: u64) {
        let node = &mut self.nodes[index];
        node.process = None;
        node.start_at = self.now.saturating_add(back_after);
        if let Some(since) = node.clock_stopped_at.take() {
            node.offset = node.offset.saturating_sub(self.now - since);
        }
        self.fact(Fact::Goes { node: index, how });
    }

    /// Gives an input to an engine, or keeps it while the process is frozen.
    pub(super) fn input(&mut self, index: usize, life: u32, input: Input) {
        let (now, time) = (self.local(index), self.now);
        let (generation, old) = (self.store.model.generation(), self.old_generations);
        let drain_timeout = self.config.drain_timeout.as_nanos() as u64;
        let Some(process) = self.process(index, life) else { return };
        if process.paused_until > time {
            process.inbox.push(input);
            return;
        }
        let fact = match &input {
            Input::Reply(request, result) => {
                process.heard_of = process.sent_at.remove(request).unwrap_or(time);
                if let Ok(Reply::Heartbeat(beat)) = result {
                    process.reads_on = matches!(beat.sync, Sync::Changes { more: true, .. });
                }
                let stamp = result.as_ref().ok().and_then(super::network::stamp_of);
                stamp.map(|stamp| {
                    let of = Some(stamp.generation);
                    Fact::Hears { node: index, present: of == generation && !old.contains(&of) }
                })
            }
            Input::Command(rendez_core::Command::Shutdown) => {
                Some(Fact::ShutsDown { node: index, within: drain_timeout })
            }
            Input::Command(rendez_core::Command::SetCapacity(cap)) => Some(Fact::Caps { node: index, cap: *cap }),
            Input::Hint(_)
            | Input::RunnerEnded { .. }
            | Input::WarmedUp { .. }
            | Input::SaveCheckpoint { .. }
            | Input::Command(_) => None,
        };
        fact.into_iter().for_each(|fact| self.fact(fact));
        if let Input::Reply(request, result) = &input {
            self.tell_answers(index, life, *request, result);
        }
        let begun = self.meter.begin();
        if let Some(process) = self.process(index, life) {
            process.engine.handle(now, input);
        }
        self.meter.end(begun);
        self.drive(index);
    }

    /// Carries out what a node's engine wants.
    pub(super) fn drive(&mut self, index: usize) {
        let now = self.local(index);
        for _ in 0..ACTIONS_MAX {
            let begun = self.meter.begin();
            let Some(process) = self.nodes[index].process.as_mut() else { return };
            let action = process.engine.poll_action(now);
            let due = if action.is_none() { process.engine.poll_timeout() } else { Timestamp::NEVER };
            self.meter.end(begun);
            let Some(action) = action else {
                let Some(process) = self.nodes[index].process.as_ref() else { return };
                let (life, before) = (process.life, process.wake_at);
                let at = self.global(index, due).max(self.now + 1);
                if due != Timestamp::NEVER && (at < before || before <= self.now) {
                    if let Some(process) = self.process(index, life) {
                        process.wake_at = at;
                    }
                    self.at(at, What::Wake { node: index, life });
                }
                return;
            };
            self.act(index, action);
        }
        self.unbounded(format!("n{index} never comes to rest"));
    }

    fn act(&mut self, index: usize, action: Action) {
        let life = self.nodes[index].life;
        match action {
            Action::Send { request, call, timeout } => {
                let now = self.now;
                if let Some(process) = self.process(index, life) {
                    process.waiting.insert(request);
                    process.sent_at.insert(request, now);
                }
                self.send(index, life, request, call, timeout);
            }
            Action::Start { slot, token, deadline, .. } => self.runner_starts(index, slot, token, deadline),
            Action::Extend { deadline, except } => {
                let deadline = self.global(index, deadline);
                let except = except.iter().map(|slot| self.slot_no(slot)).collect();
                let Some(process) = self.process(index, life) else { return };
                let sent_at = process.heard_of;
                let session = process.engine.session().map(|(session, _)| session);
                self.fact(Fact::Prolongs { node: index, deadline, except, session, sent_at });
            }
            Action::Stop { slot, token, why, .. } => {
                let number = self.slot_no(&slot);
                let returns = !matches!(why, StopReason::Deadline | StopReason::Lost);
                self.fact(Fact::Stops { node: index, slot: number, token, returns });
                let faulty = self.suffers(Fault::Runners);
                let budget = self.config.timing.stop_budget.as_nanos() as u64;
                let takes = if faulty { self.dice.below(budget * 5 / 4) } else { self.dice.below(50 * MS) };
                let Some(runner) = self.process(index, life).and_then(|process| process.runners.get_mut(&slot)) else {
                    return;
                };
                runner.stopping = true;
                if !runner.stuck {
                    let at = self.now + takes;
                    self.at(at, What::RunnerEnds { node: index, life, slot, token, end: RunnerEnd::Returned });
                }
            }
            Action::Abort { slot, token } => {
                let number = self.slot_no(&slot);
                let runner = self.process(index, life).and_then(|process| process.runners.get_mut(&slot));
                let stuck = runner.is_some_and(|runner| {
                    runner.aborted = true;
                    runner.stuck
                });
                self.fact(Fact::Aborts { node: index, slot: number, token, obeys: !stuck });
                let takes = if stuck { self.dice.below(20 * S) } else { 0 };
                let at = self.now + takes;
                self.at(at, What::RunnerEnds { node: index, life, slot, token, end: RunnerEnd::Aborted });
            }
            Action::WarmUp { slot, offer } => {
                let faulty = self.suffers(Fault::Programs);
                let takes = if faulty && self.dice.one_in(4) { 5 * S } else { 20 * MS };
                let ready = !(faulty && self.dice.one_in(10));
                let at = self.now + self.dice.below(takes);
                if let Some(process) = self.process(index, life) {
                    process.warm.insert(slot.clone());
                }
                self.at(at, What::Warm { node: index, life, slot, offer, ready });
            }
            Action::CoolDown { slot } => {
                if let Some(process) = self.process(index, life) {
                    process.warm.remove(&slot);
                }
            }
            Action::Terminate { slot, .. } => {
                let number = self.slot_no(&slot);
                let runner = self.process(index, life).and_then(|process| process.runners.get(&slot));
                let obeys = runner.is_none_or(|runner| !runner.stuck);
                self.fact(Fact::Terminates { node: index, slot: number, obeys });
                self.goes(index, Gone::Terminated, S);
            }
            Action::Stopped(_) => {
                let back_after = 500 * MS + self.dice.below(5 * S);
                self.goes(index, Gone::Stopped, back_after);
            }
            Action::Tell(event) => self.told(index, &event),
            Action::CheckpointSaved { .. } | Action::Session(_) => {}
        }
    }

    fn told(&mut self, index: usize, event: &Event) {
        let life = self.nodes[index].life;
        match event {
            Event::HandedOver { .. } => self.moves += 1,
            Event::Received { slot, .. } | Event::Acquired { slot, .. } => {
                if let Some(process) = self.process(index, life) {
                    process.warm.remove(slot);
                }
            }
            Event::NewGeneration { generation, .. } => {
                self.fact(Fact::Enters { node: index, generation: *generation });
            }
            _ => {}
        }
        let slot = slot_of(event).map(|slot| self.slot_no(slot));
        self.fact(Fact::Tells { node: index, event: event.name(), slot });
    }

    fn runner_starts(&mut self, index: usize, slot: Slot, token: FencingToken, deadline: Timestamp) {
        self.starts += 1;
        let life = self.nodes[index].life;
        let number = self.slot_no(&slot);
        let deadline = self.global(index, deadline);
        let Some(process) = self.process(index, life) else { return };
        let session = process.engine.session().map(|(session, _)| session);
        self.fact(Fact::Starts { node: index, slot: number, token, deadline, session });
        self.write(number, token);
        let faulty = self.suffers(Fault::Runners);
        let stuck = faulty && self.dice.one_in(60);
        let runner = Running { token, stopping: false, aborted: false, stuck };
        if let Some(process) = self.process(index, life) {
            process.runners.insert(slot.clone(), runner);
        }
        if stuck {
            self.happened.add(Fault::Runners);
        }
        if faulty && self.dice.one_in(15) {
            self.happened.add(Fault::Runners);
            let end = if self.dice.one_in(2) { RunnerEnd::Failed("it did".into()) } else { RunnerEnd::Returned };
            let at = self.now + self.dice.below(5 * S);
            self.at(at, What::RunnerEnds { node: index, life, slot, token, end });
        }
    }

    /// A runner writes to a sink that checks tokens.
    fn write(&mut self, slot: SlotNo, token: FencingToken) {
        let seen = self.sinks.entry(slot).or_default();
        let accepted = token >= *seen;
        *seen = token.max(*seen);
        self.fact(Fact::Writes { slot, token, accepted });
    }

    /// All runners of a node write.
    pub(super) fn write_all(&mut self, index: usize) {
        let Some(process) = &self.nodes[index].process else { return };
        let writers: Vec<(Slot, FencingToken)> =
            process.runners.iter().map(|(slot, runner)| (slot.clone(), runner.token)).collect();
        for (slot, token) in writers {
            let number = self.slot_no(&slot);
            self.write(number, token);
        }
    }

    pub(super) fn warm(&mut self, node: usize, life: u32, slot: Slot, offer: OperationId, ready: bool) {
        if !ready && let Some(process) = self.nodes[node].process.as_mut() {
            process.warm.remove(&slot);
        }
        self.input(node, life, Input::WarmedUp { slot, offer, ready });
    }

    pub(super) fn runner_ends(&mut self, node: usize, life: u32, slot: Slot, token: FencingToken, end: RunnerEnd) {
        let now = self.now;
        let Some(process) = self.process(node, life) else { return };
        if process.paused_until > now {
            let at = process.paused_until + 1000;
            self.at(at, What::RunnerEnds { node, life, slot, token, end });
            return;
        }
        let Some(runner) = process.runners.get(&slot) else { return };
        let by_itself = matches!(end, RunnerEnd::Failed(_)) || (end == RunnerEnd::Returned && !runner.stopping);
        let obeys = !runner.stuck || runner.aborted;
        if runner.token == token && (obeys || by_itself) {
            self.runner_gone(node, life, slot, end);
        }
    }

    fn runner_gone(&mut self, node: usize, life: u32, slot: Slot, end: RunnerEnd) {
        let Some(runner) = self.process(node, life).and_then(|process| process.runners.remove(&slot)) else { return };
        let (number, token) = (self.slot_no(&slot), runner.token);
        self.fact(Fact::Ends { node, slot: number, token, told: runner.stopping });
        self.input(node, life, Input::RunnerEnded { slot, token, end, checkpoint: None });
    }

    pub(super) fn freeze(&mut self, index: usize, until: u64) {
        let now = self.now;
        let Some(process) = self.nodes[index].process.as_mut().filter(|process| process.paused_until <= now) else {
            return;
        };
        process.paused_until = until;
        let life = process.life;
        self.fact(Fact::Freezes { node: index, until });
        self.at(until, What::Wake { node: index, life });
    }

    /// A timer of a process has come to its end, or the process goes on after it was frozen.
    pub(super) fn wake(&mut self, node: usize, life: u32) {
        *self.calls.entry("wake").or_default() += 1;
        let now = self.now;
        let Some(process) = self.process(node, life) else { return };
        // Whoever has frozen it has set a timer for its end; and only the timer that was set last counts.
        if process.paused_until > now || (process.paused_until == 0 && process.wake_at != now) {
            return;
        }
        let thaws = std::mem::take(&mut process.paused_until) > 0;
        if let Some(since) = self.nodes[node].clock_stopped_at.take() {
            self.nodes[node].offset = self.nodes[node].offset.saturating_sub(now - since);
            self.fact(Fact::ClockBreaks { node });
        }
        if thaws {
            self.write_all(node); // the write that only a fenced sink can refuse
        }
        let local = self.local(node);
        let Some(process) = self.process(node, life) else { return };
        process.wake_at = u64::MAX;
        let inbox = std::mem::take(&mut process.inbox);
        let begun = self.meter.begin();
        if let Some(process) = self.process(node, life) {
            process.engine.handle_timeout(local);
        }
        self.meter.end(begun);
        // A frozen runner ends at the moment it is aborted: before its process does anything else.
        self.drive_aborts(node);
        if thaws && self.process(node, life).is_some() {
            self.fact(Fact::Thaws { node });
        }
        for input in inbox {
            self.input(node, life, input);
        }
        self.drive(node);
    }

    /// Carries out a node's actions, and lets aborted runners that obey end at this very moment.
    fn drive_aborts(&mut self, node: usize) {
        self.drive(node);
        let Some(process) = self.nodes[node].process.as_mut() else { return };
        let life = process.life;
        let aborted: Vec<Slot> = process
            .runners
            .iter()
            .filter(|(_, runner)| runner.aborted && !runner.stuck)
            .map(|(slot, _)| slot.clone())
            .collect();
        for slot in aborted {
            self.runner_gone(node, life, slot, RunnerEnd::Aborted);
        }
    }
}

/// The name of a workload.
pub(super) fn workload(number: usize) -> WorkloadName {
    WorkloadName::new(format!("w{number}")).expect("this is a name")
}

fn slot_of(event: &Event) -> Option<&Slot> {
    match event {
        Event::Acquired { slot, .. }
        | Event::Received { slot, .. }
        | Event::Readopted { slot, .. }
        | Event::Started { slot, .. }
        | Event::Stopping { slot, .. }
        | Event::Ended { slot, .. }
        | Event::Restarting { slot, .. }
        | Event::GaveUp { slot, .. }
        | Event::Released { slot, .. }
        | Event::Offered { slot, .. }
        | Event::HandedOver { slot, .. }
        | Event::OfferRefused { slot, .. }
        | Event::Overrun { slot, .. } => Some(slot),
        _ => None,
    }
}
