//! A world of a few nodes and one store in virtual time: one seed decides everything that happens in it.
//!
//! The engines are those that ship, the store is the model of the contract. After each step the promises are checked;
//! what breaks one panics with the time and the words of the promise.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::fmt::Write as _;
use std::time::Duration;

use rendez_core::{
    Action, AdminOutcome, AdminRequest, Call, Capabilities, ChangeKind, CloseRequest, ClusterSettings, Command,
    Declared, DynamicWorkloads, Engine, EngineConfig, EngineSetup, ErrorKind, Event, FencingToken, Incarnation, Input,
    NodeId, NodeInfo, NodeWish, Record, RecordKey, Reply, RequestId, RunnerEnd, SessionId, Slot, Status, StoreError,
    StoreModel, StoreTime, Timestamp, WatchHint, WorkloadName, WorkloadRecord,
};

/// What may go wrong in a world.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Faults {
    /// Processes are killed and started again.
    pub(crate) crashes: bool,
    /// Processes are frozen, for short and for long.
    pub(crate) pauses: bool,
    /// Requests and replies are lost, delayed and doubled.
    pub(crate) messages: bool,
    /// The store does not answer for a while, up to several TTLs.
    pub(crate) outages: bool,
    /// The store loses its data, or restarts.
    pub(crate) losses: bool,
    /// Runners fail, stop slowly, ignore their stop.
    pub(crate) runners: bool,
    /// Nodes shut down and come back.
    pub(crate) shutdowns: bool,
    /// Watch hints are dropped.
    pub(crate) hints: bool,
    /// Clocks run fast and slow, within the bound.
    pub(crate) clocks: bool,
    /// Operators cordon, drain and weigh nodes, pin slots, pause workloads and force leases from their holders.
    pub(crate) wishes: bool,
    /// Programs change what their nodes are and can run, and do not always get ready for an offer.
    pub(crate) programs: bool,
    /// Offers end soon: before the runner has ended, or before the answer has come.
    pub(crate) short_offers: bool,
}

/// What a world is made from.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) seed: u64,
    pub(crate) nodes: usize,
    pub(crate) workloads: Vec<u32>,
    pub(crate) capacity: Option<u32>,
    pub(crate) faults: Faults,
}

impl Default for Scenario {
    /// Three nodes, twelve slots, and nothing that goes wrong.
    fn default() -> Self {
        Self { seed: 1, nodes: 3, workloads: vec![12], capacity: None, faults: Faults::default() }
    }
}

impl Scenario {
    /// The scenario that a seed stands for: few nodes and slots, and a subset of the faults.
    pub(crate) fn from_seed(seed: u64) -> Self {
        let mut dice = Dice::new(seed ^ 0x5EED);
        let nodes = 1 + dice.below(4) as usize;
        let workloads = (0..1 + dice.below(3)).map(|_| 1 + dice.below(5) as u32).collect();
        let capacity = dice.one_in(3).then(|| 2 + dice.below(4) as u32);
        let faults = Faults {
            crashes: dice.one_in(2),
            pauses: dice.one_in(2),
            messages: dice.one_in(2),
            outages: dice.one_in(2),
            losses: dice.one_in(2),
            runners: dice.one_in(2),
            shutdowns: dice.one_in(2),
            hints: dice.one_in(2),
            clocks: dice.one_in(2),
            ..Faults::default()
        };
        Self { seed, nodes, workloads, capacity, faults }
    }

    /// The same scenario with operators and programs that change their minds.
    pub(crate) fn with_changing_minds(seed: u64) -> Self {
        let mut scenario = Self::from_seed(seed);
        let mut dice = Dice::new(seed ^ 0x0DD5);
        scenario.nodes = scenario.nodes.max(2);
        scenario.capacity = dice.one_in(2).then(|| 2 + dice.below(4) as u32);
        scenario.faults.wishes = dice.one_in(2);
        scenario.faults.programs = dice.one_in(2);
        scenario.faults.short_offers = dice.one_in(2);
        scenario
    }
}

/// Numbers from a seed (SplitMix64).
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.roll() % n.max(1)
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

const MS: u64 = 1_000_000;
const S: u64 = 1000 * MS;

#[derive(Debug)]
enum What {
    Wake { node: usize, life: u32 },
    Arrive { node: usize, life: u32, request: RequestId, call: Box<Call>, answer: bool },
    Answer { node: usize, life: u32, request: RequestId, result: Box<Result<Reply, StoreError>> },
    Hint { node: usize, life: u32, hint: WatchHint },
    RunnerEnds { node: usize, life: u32, slot: Slot, token: FencingToken, end: RunnerEnd },
    Warm { node: usize, life: u32, slot: Slot, offer: rendez_core::OperationId, ready: bool },
    Fault,
}

#[derive(Debug, Clone)]
struct Running {
    token: FencingToken,
    deadline: Timestamp,
    stopping: bool,
    aborted: bool,
    /// Ignores its stop, and the abort for a while.
    stuck: bool,
}

struct Process {
    engine: Engine,
    life: u32,
    runners: BTreeMap<Slot, Running>,
    waiting: BTreeMap<RequestId, ()>,
    paused_until: u64,
    /// What came while it was frozen.
    inbox: Vec<Input>,
    /// The highest token that was ended here, by slot.
    ended: BTreeMap<Slot, FencingToken>,
    /// Slots that it has prepared for and that have neither come nor been called off.
    warm: BTreeSet<Slot>,
    wake_at: u64,
}

struct Node {
    id: NodeId,
    offset: u64,
    /// Millionths by which its clock runs fast (or slow).
    rate: i64,
    life: u32,
    process: Option<Process>,
    start_at: u64,
    /// The caps that it had, and until when.
    caps: Vec<(u64, Option<u32>)>,
}

/// The world.
pub(crate) struct World {
    scenario: Scenario,
    dice: Dice,
    now: u64,
    sequence: u64,
    events: BinaryHeap<Reverse<(u64, u64)>>,
    what: BTreeMap<u64, What>,
    model: StoreModel,
    store_down_until: u64,
    lost_at: u64,
    nodes: Vec<Node>,
    config: EngineConfig,
    /// The highest token that a runner of the slot was started with.
    highest: BTreeMap<Slot, FencingToken>,
    /// Leases that an operator took away without waiting: their runners overlap with the next, and that was told.
    torn_away: BTreeSet<(Slot, FencingToken)>,
    calm: bool,
    at_once: u64,
    steps: u64,
    calls: BTreeMap<&'static str, u64>,
    pub(crate) starts: u64,
    pub(crate) moves: u64,
    pub(crate) trace: String,
    trace_on: bool,
}

impl World {
    pub(crate) fn new(scenario: Scenario) -> Self {
        let mut dice = Dice::new(scenario.seed);
        let mut config = EngineConfig::for_ttl(Duration::from_secs(10));
        if scenario.faults.short_offers {
            config.offer_ttl = Duration::from_millis(300 + dice.below(6000));
        }
        let model = StoreModel::new(dice.roll(), Capabilities::strict("model"));
        let mut nodes = Vec::new();
        for index in 0..scenario.nodes {
            let rate = if scenario.faults.clocks { dice.below(1900) as i64 - 950 } else { 0 };
            nodes.push(Node {
                id: NodeId::new(format!("n{index}")).unwrap(),
                offset: dice.below(1_000_000 * S),
                // half of the bound each way: between two nodes it is the whole
                rate: rate / 2,
                life: 0,
                process: None,
                start_at: dice.below(2 * S),
                caps: Vec::new(),
            });
        }
        let mut world = Self {
            dice,
            now: 0,
            sequence: 0,
            events: BinaryHeap::new(),
            what: BTreeMap::new(),
            model,
            store_down_until: 0,
            lost_at: 0,
            nodes,
            config,
            highest: BTreeMap::new(),
            torn_away: BTreeSet::new(),
            calm: false,
            at_once: 0,
            steps: 0,
            calls: BTreeMap::new(),
            starts: 0,
            moves: 0,
            trace: String::new(),
            trace_on: std::env::var_os("RENDEZ_TRACE").is_some(),
            scenario,
        };
        world.at(world.now + 100 * MS, What::Fault);
        world
    }

    /// Keeps what happens as text.
    pub(crate) fn traced(mut self) -> Self {
        self.trace_on = true;
        self
    }

    fn note(&mut self, text: impl FnOnce() -> String) {
        if self.trace_on {
            let text = text();
            let _ = writeln!(self.trace, "{:>12.6} {text}", self.now as f64 / 1e9);
        }
    }

    fn broken(&self, promise: &str, words: String) -> ! {
        panic!("{}\n{promise} broken at {:.6} s in {:?}: {words}", self.trace, self.now as f64 / 1e9, self.scenario);
    }

    fn at(&mut self, time: u64, what: What) {
        self.sequence += 1;
        self.events.push(Reverse((time.max(self.now), self.sequence)));
        self.what.insert(self.sequence, what);
    }

    fn local(&self, node: usize) -> Timestamp {
        let node = &self.nodes[node];
        let gained = i128::from(self.now) * i128::from(node.rate) / 1_000_000;
        Timestamp::from_nanos((node.offset + self.now).saturating_add_signed(gained as i64))
    }

    /// The world's time at which a node's clock shows this.
    fn global(&self, node: usize, local: Timestamp) -> u64 {
        if local == Timestamp::NEVER {
            return u64::MAX;
        }
        let shown = self.local(node);
        let ahead = local.since(shown).as_nanos() as u64;
        let rate = i128::from(1_000_000 + self.nodes[node].rate);
        self.now + (i128::from(ahead) * 1_000_000 / rate) as u64 + 2
    }

    fn store_now(&self) -> StoreTime {
        StoreTime::from_micros(1_700_000_000_000_000 + self.now / 1000)
    }

    fn start(&mut self, index: usize) {
        let ttl = self.config.timing.session_ttl;
        let mut settings = ClusterSettings::new(ttl);
        if self.scenario.faults.losses {
            settings.cold_start_hold = ttl + Duration::from_secs(1);
        }
        let mut info = NodeInfo::new(self.nodes[index].id.clone(), settings);
        info.capacity = self.scenario.capacity;
        info.workloads = self.declared();
        info.dynamic = DynamicWorkloads::All;
        let setup = EngineSetup {
            info,
            incarnation: Incarnation::from_bits(u128::from(self.dice.roll())),
            capabilities: self.model.capabilities().clone(),
            config: self.config.clone(),
            seed: self.dice.roll(),
        };
        let now = self.local(index);
        let node = &mut self.nodes[index];
        node.life += 1;
        let life = node.life;
        node.process = Some(Process {
            engine: Engine::new(now, setup),
            life,
            runners: BTreeMap::new(),
            waiting: BTreeMap::new(),
            paused_until: 0,
            inbox: Vec::new(),
            ended: BTreeMap::new(),
            warm: BTreeSet::new(),
            wake_at: u64::MAX,
        });
        self.note(|| format!("n{index} starts"));
        self.drive(index);
    }

    fn crash(&mut self, index: usize, back_after: u64) {
        self.note(|| format!("n{index} crashes"));
        self.nodes[index].process = None;
        self.nodes[index].start_at = self.now + back_after;
    }

    fn input(&mut self, index: usize, life: u32, input: Input) {
        let now = self.local(index);
        let paused = {
            let Some(process) = self.nodes[index].process.as_mut().filter(|process| process.life == life) else {
                return;
            };
            process.paused_until > self.now
        };
        let process = self.nodes[index].process.as_mut().unwrap();
        if paused {
            process.inbox.push(input);
            return;
        }
        process.engine.handle(now, input);
        self.drive(index);
    }

    /// Carries out what a node's engine wants, and checks what it does.
    fn drive(&mut self, index: usize) {
        let now = self.local(index);
        for _ in 0..100_000 {
            let Some(process) = self.nodes[index].process.as_mut() else { return };
            let Some(action) = process.engine.poll_action(now) else {
                let due = process.engine.poll_timeout();
                let life = process.life;
                let before = process.wake_at;
                let at = self.global(index, due).max(self.now + 1);
                if due != Timestamp::NEVER && (at < before || before <= self.now) {
                    self.nodes[index].process.as_mut().unwrap().wake_at = at;
                    self.at(at, What::Wake { node: index, life });
                }
                return;
            };
            self.act(index, action);
        }
        self.broken("bounded work", format!("n{index} never comes to rest"));
    }

    fn act(&mut self, index: usize, action: Action) {
        let life = self.nodes[index].life;
        let now = self.local(index);
        match action {
            Action::Send { request, call, timeout } => {
                let name = match &call {
                    Call::Open(_) => "open",
                    Call::Heartbeat(_) => "heartbeat",
                    Call::Change(_) => "change",
                    Call::Snapshot(_) => "snapshot",
                    Call::Close(_) => "close",
                };
                *self.calls.entry(name).or_default() += 1;
                self.check_readopting(index, &call);
                self.nodes[index].process.as_mut().unwrap().waiting.insert(request, ());
                let faulty = self.scenario.faults.messages && !self.calm;
                let delay = self.delay(faulty);
                if !(faulty && self.dice.one_in(40)) {
                    let answer = !(faulty && self.dice.one_in(30));
                    if faulty && self.dice.one_in(30) {
                        let late = self.dice.below(15 * S);
                        let call = Box::new(call.clone());
                        self.at(self.now + late, What::Arrive { node: index, life, request, call, answer: false });
                    }
                    let call = Box::new(call);
                    self.at(self.now + delay, What::Arrive { node: index, life, request, call, answer });
                }
                let result = Box::new(Err(StoreError::new(ErrorKind::Ambiguous, "no answer in time")));
                let at = self.now + timeout.as_nanos() as u64;
                self.at(at, What::Answer { node: index, life, request, result });
            }
            Action::Start { slot, token, deadline, .. } => self.runner_starts(index, slot, token, deadline),
            Action::Extend { deadline, except } => {
                self.check_deadline(index, deadline);
                for (slot, runner) in &mut self.nodes[index].process.as_mut().unwrap().runners {
                    if !except.contains(slot) {
                        assert!(deadline >= runner.deadline, "a deadline went back");
                        runner.deadline = deadline;
                    }
                }
            }
            Action::Stop { slot, token, why, .. } => {
                self.note(|| format!("n{index} stops {slot} {token}: {why}"));
                let faulty = self.scenario.faults.runners && !self.calm;
                let budget = self.config.timing.stop_budget.as_nanos() as u64;
                let takes = if faulty { self.dice.below(budget * 5 / 4) } else { self.dice.below(50 * MS) };
                let Some(runner) = self.nodes[index].process.as_mut().unwrap().runners.get_mut(&slot) else {
                    self.broken("order", format!("n{index} stops {slot}, which does not run"));
                };
                runner.stopping = true;
                if !runner.stuck {
                    let at = self.now + takes;
                    self.at(at, What::RunnerEnds { node: index, life, slot, token, end: RunnerEnd::Returned });
                }
            }
            Action::Abort { slot, token } => {
                self.note(|| format!("n{index} aborts {slot} {token}"));
                let Some(runner) = self.nodes[index].process.as_mut().unwrap().runners.get_mut(&slot) else {
                    self.broken("order", format!("n{index} aborts {slot}, which does not run"));
                };
                runner.aborted = true;
                let stuck = runner.stuck;
                let takes = if stuck { self.dice.below(20 * S) } else { 0 };
                let at = self.now + takes;
                self.at(at, What::RunnerEnds { node: index, life, slot, token, end: RunnerEnd::Aborted });
            }
            Action::WarmUp { slot, offer } => {
                let faulty = self.scenario.faults.programs && !self.calm;
                let takes = if faulty && self.dice.one_in(4) { 5 * S } else { 20 * MS };
                let ready = !(faulty && self.dice.one_in(10));
                let at = self.now + self.dice.below(takes);
                self.nodes[index].process.as_mut().unwrap().warm.insert(slot.clone());
                self.at(at, What::Warm { node: index, life, slot, offer, ready });
            }
            Action::CoolDown { slot } => {
                self.nodes[index].process.as_mut().unwrap().warm.remove(&slot);
            }
            Action::Terminate { slot, token } => {
                let runner = &self.nodes[index].process.as_ref().unwrap().runners[&slot];
                if !runner.stuck {
                    self.broken("S7", format!("n{index} ends its process although {slot} {token} does as it is told"));
                }
                self.crash(index, S);
            }
            Action::Stopped(reason) => {
                let process = self.nodes[index].process.as_ref().unwrap();
                // After the drain timeout what still runs was aborted, be it at this very moment.
                if process.runners.values().any(|runner| !runner.aborted) {
                    self.broken("L5", format!("n{index} stops with runners: {:?}", process.runners));
                }
                self.note(|| format!("n{index} has stopped: {reason:?}"));
                self.nodes[index].process = None;
                self.nodes[index].start_at = self.now + 500 * MS + self.dice.below(5 * S);
            }
            Action::Tell(event) => {
                self.note(|| format!("n{index}: {event:?}"));
                match event {
                    Event::HandedOver { .. } => self.moves += 1,
                    Event::Received { slot, .. } | Event::Acquired { slot, .. } => {
                        self.nodes[index].process.as_mut().unwrap().warm.remove(&slot);
                    }
                    _ => {}
                }
            }
            Action::CheckpointSaved { .. } | Action::Session(_) => {}
        }
        let _ = now;
    }

    fn delay(&mut self, faulty: bool) -> u64 {
        let usual = 200_000 + self.dice.below(2 * MS);
        if faulty && self.dice.one_in(20) { usual + self.dice.below(S) } else { usual }
    }

    fn runner_starts(&mut self, index: usize, slot: Slot, token: FencingToken, deadline: Timestamp) {
        let now = self.local(index);
        self.starts += 1;
        self.note(|| format!("n{index} starts {slot} {token} until {deadline:?} (now {now:?})"));
        let process = self.nodes[index].process.as_ref().unwrap();
        if now >= deadline {
            self.broken("S7", format!("n{index} starts {slot} {token} after its deadline"));
        }
        if process.runners.contains_key(&slot) {
            self.broken("S7", format!("n{index} starts {slot} beside another runner"));
        }
        let session = process.engine.session().map(|(session, _)| session);
        let record = self.model.slot(&slot).filter(|record| record.token == token);
        // What was granted before the data was lost is good until its deadline, as long as the node knows of nothing.
        let unaware = self.now < self.lost_at + 10 * S && process.engine.view().generation() != self.model.generation();
        let unaware = unaware || self.torn_away.contains(&(slot.clone(), token));
        if !unaware && record.is_none_or(|record| session.is_none_or(|session| !record.is_held_by(session))) {
            self.broken("S7", format!("n{index} starts {slot} {token} without the lease: {record:?}"));
        }
        let ended = process.ended.get(&slot).copied().unwrap_or_default();
        if token < ended {
            self.broken("S7", format!("n{index} starts {slot} {token} after it ended {ended}"));
        }
        let highest = self.highest.get(&slot).copied().unwrap_or_default();
        if token < highest {
            self.broken("S4", format!("{slot} starts with {token} after {highest}"));
        }
        self.highest.insert(slot.clone(), token);
        let faulty = self.scenario.faults.runners && !self.calm;
        let stuck = faulty && self.dice.one_in(60);
        let runner = Running { token, deadline, stopping: false, aborted: false, stuck };
        let life = self.nodes[index].life;
        self.nodes[index].process.as_mut().unwrap().runners.insert(slot.clone(), runner);
        if faulty && self.dice.one_in(15) {
            let end = if self.dice.one_in(2) { RunnerEnd::Failed("it did".into()) } else { RunnerEnd::Returned };
            let at = self.now + self.dice.below(5 * S);
            self.at(at, What::RunnerEnds { node: index, life, slot, token, end });
        }
    }

    /// A request arrives at the store.
    fn arrive(&mut self, node: usize, life: u32, request: RequestId, call: &Call, answer: bool) {
        if self.now < self.store_down_until {
            return;
        }
        self.check_giving_back(node, life, call);
        let before = self.owners();
        let store_now = self.store_now();
        let empty = self.model.generation().is_none();
        let result = self.model.call(store_now, call);
        if empty {
            // Lost in full, and who comes first remembers nothing, or has missed the generations with the highest tokens:
            // here they may fall, and the store says so.
            let remembered = self.model.token();
            self.highest.retain(|_, token| *token <= remembered);
        }
        self.check_owners(&before, call);
        self.spread_hints();
        if answer {
            let faulty = self.scenario.faults.messages && !self.calm;
            let at = self.now + self.delay(faulty);
            self.at(at, What::Answer { node, life, request, result: Box::new(result) });
        }
    }

    fn spread_hints(&mut self) {
        for hint in self.model.take_hints() {
            for index in 0..self.nodes.len() {
                let life = self.nodes[index].life;
                let dropped = self.scenario.faults.hints && !self.calm && self.dice.one_in(3);
                if !dropped {
                    let at = self.now + 200_000 + self.dice.below(MS);
                    self.at(at, What::Hint { node: index, life, hint });
                }
            }
        }
    }

    fn owners(&self) -> BTreeMap<Slot, (SessionId, bool)> {
        let now = self.store_now();
        let held = self.model.slots().filter_map(|(slot, record)| {
            let session = record.holder.as_ref()?.session;
            Some((slot.clone(), (session, self.model.is_alive(now, session))))
        });
        held.collect()
    }

    fn check_giving_back(&self, node: usize, life: u32, call: &Call) {
        let process = self.nodes[node].process.as_ref().filter(|process| process.life == life);
        let Some(process) = process else { return };
        match call {
            Call::Change(request) => {
                for change in &request.changes {
                    let gives = matches!(change.kind, ChangeKind::Release { .. } | ChangeKind::Transfer { .. });
                    let held = self
                        .model
                        .slot(&change.slot)
                        .is_some_and(|record| record.is_held_by(request.session) && record.token == change.token);
                    if gives && held && process.runners.contains_key(&change.slot) {
                        self.broken("S6", format!("n{node} gives {} back while it runs", change.slot));
                    }
                }
            }
            Call::Close(_) if !process.runners.is_empty() => {
                self.broken("S6", format!("n{node} closes its session while it runs {:?}", process.runners));
            }
            Call::Close(_) | Call::Open(_) | Call::Heartbeat(_) | Call::Snapshot(_) => {}
        }
    }

    /// No node believes in its session for longer than the store does.
    fn check_deadline(&self, index: usize, deadline: Timestamp) {
        let engine = &self.nodes[index].process.as_ref().unwrap().engine;
        let Some((session, _)) = engine.session() else { return };
        let Some((_, _, ends)) = self.model.sessions().find(|(id, _, _)| *id == session) else { return };
        let (believed, left) = (self.global(index, deadline), ends.since(self.store_now()));
        if believed > self.now + left.as_nanos() as u64 + 2000 {
            self.broken(
                "S7",
                format!("n{index} believes in {session} for longer than the store, by {left:?} from now"),
            );
        }
    }

    /// Taken back is only what runs at this moment and may run (rule 4 for lost data).
    fn check_readopting(&self, index: usize, call: &Call) {
        let Call::Change(request) = call else { return };
        let process = self.nodes[index].process.as_ref().unwrap();
        for change in &request.changes {
            if !matches!(change.kind, ChangeKind::Readopt) {
                continue;
            }
            let runner = process.runners.get(&change.slot).filter(|runner| runner.token == change.token);
            if runner.is_none_or(|runner| self.local(index) >= runner.deadline) {
                self.broken(
                    "re-adoption",
                    format!("n{index} takes {} back, which does not run: {runner:?}", change.slot),
                );
            }
        }
    }

    /// The largest cap that a node had lately: what was asked for under it may still come.
    fn cap_of(&self, node: &NodeId) -> Option<u32> {
        let node = self.nodes.iter().find(|it| it.id == *node)?;
        let now = node.process.as_ref().map_or(self.scenario.capacity, |process| process.engine.info().capacity);
        let lately = node.caps.iter().filter(|(until, _)| self.now < until + 40 * S).map(|(_, cap)| *cap);
        lately.chain([now]).map(|cap| cap.unwrap_or(u32::MAX)).max().filter(|cap| *cap < u32::MAX)
    }

    fn check_owners(&self, before: &BTreeMap<Slot, (SessionId, bool)>, call: &Call) {
        for (slot, (session, alive)) in before {
            let now = self.model.slot(slot).and_then(|record| record.holder.as_ref());
            let other = now.is_some_and(|holder| holder.session != *session);
            let by_transfer = matches!(call, Call::Change(request) if request.session == *session
                && request.changes.iter().any(|change| change.slot == *slot
                    && matches!(change.kind, ChangeKind::Transfer { .. })));
            let readopted = matches!(call, Call::Change(request) if
                request.changes.iter().any(|change| change.slot == *slot && matches!(change.kind, ChangeKind::Readopt)));
            if other && *alive && !by_transfer && !readopted && self.model.generation().is_some() {
                self.broken("S5", format!("{slot} was taken from {session} by {call:?}"));
            }
        }
        // Who was given a slot by this request must be within its cap now.
        for (slot, record) in self.model.slots() {
            let Some(holder) = record.holder.as_ref() else { continue };
            if before.get(slot).is_some_and(|(session, _)| *session == holder.session) {
                continue;
            }
            let taken_back =
                |change: &rendez_core::SlotChange| change.slot == *slot && matches!(change.kind, ChangeKind::Readopt);
            if matches!(call, Call::Change(request) if request.changes.iter().any(taken_back)) {
                continue; // it was granted before the loss, perhaps under a higher cap
            }
            let held = self.model.held(holder.session).unwrap_or_default().count;
            if let Some(cap) = self.cap_of(&holder.node).filter(|cap| held > u64::from(*cap)) {
                self.broken("S11", format!("{} holds {held} of {cap} with {slot} by {call:?}", holder.node));
            }
        }
    }

    /// Runners of different tokens of one slot never run at the same time, and none outlives its deadline.
    fn check_runners(&self) {
        let mut seen: BTreeMap<&Slot, (usize, FencingToken)> = BTreeMap::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let Some(process) = node.process.as_ref().filter(|process| process.paused_until <= self.now) else {
                continue;
            };
            let now = self.local(index);
            for (slot, runner) in &process.runners {
                if runner.stuck && runner.aborted {
                    continue; // an overrun, and reported as such
                }
                if now > runner.deadline {
                    self.broken("S7", format!("n{index} runs {slot} {} past its deadline", runner.token));
                }
                if self.torn_away.contains(&(slot.clone(), runner.token)) {
                    continue; // told to be dangerous
                }
                if let Some((other, token)) = seen.insert(slot, (index, runner.token)) {
                    self.broken("S2", format!("n{other} runs {slot} {token} and n{index} runs it {}", runner.token));
                }
            }
        }
    }

    fn fault(&mut self) {
        let faults = self.scenario.faults;
        let index = self.dice.below(self.nodes.len() as u64) as usize;
        for node in 0..self.nodes.len() {
            if self.nodes[node].process.is_none() && self.nodes[node].start_at <= self.now {
                self.start(node);
            }
        }
        if !self.calm && self.now > 20 * S {
            if faults.crashes && self.dice.one_in(60) && self.nodes[index].process.is_some() {
                let back = self.dice.below(20 * S);
                self.crash(index, back);
            }
            if faults.pauses && self.dice.one_in(40) {
                let ttl = self.config.timing.session_ttl.as_nanos() as u64;
                let short = self.config.timing.pause_allowance.as_nanos() as u64 / 2;
                let length = if self.dice.one_in(2) { self.dice.below(short) } else { self.dice.below(3 * ttl) };
                let until = self.now + length;
                if let Some(process) = self.nodes[index].process.as_mut().filter(|p| p.paused_until <= self.now) {
                    process.paused_until = until;
                    let life = process.life;
                    self.note(|| format!("n{index} is frozen for {:.3} s", length as f64 / 1e9));
                    self.at(until, What::Wake { node: index, life });
                }
            }
            if faults.outages && self.dice.one_in(100) {
                let length = self.dice.below(25 * S);
                self.store_down_until = self.now + length;
                self.note(|| format!("the store is away for {:.3} s", length as f64 / 1e9));
            }
            if faults.losses && self.dice.one_in(150) {
                self.lost_at = self.now;
                if self.dice.one_in(2) {
                    self.note(|| "the store loses everything".into());
                    self.model.lose_everything();
                } else {
                    self.note(|| "the store restarts".into());
                    self.model.restart();
                }
            }
            if faults.shutdowns
                && self.dice.one_in(80)
                && let Some(life) = self.nodes[index].process.as_ref().map(|process| process.life)
            {
                self.note(|| format!("n{index} is told to shut down"));
                self.input(index, life, Input::Command(Command::Shutdown));
            }
            if faults.wishes && self.now >= self.store_down_until && self.dice.one_in(40) {
                self.wish();
            }
            if faults.programs && self.dice.one_in(40) {
                self.change_mind(index);
            }
        }
        self.at(self.now + 100 * MS, What::Fault);
    }

    /// An operator writes something.
    fn wish(&mut self) {
        let index = self.dice.below(self.nodes.len() as u64) as usize;
        let node = self.nodes[index].id.clone();
        let number = self.dice.below(self.scenario.workloads.len() as u64) as usize;
        let workload = WorkloadName::new(format!("w{number}")).unwrap();
        let units = self.scenario.workloads[number];
        let slot = Slot::new(workload.clone(), self.dice.below(u64::from(units)) as u32);
        let remove = self.dice.one_in(2);
        let put =
            |key, record: Record| AdminRequest::Put { key, record: Some(record).filter(|_| !remove), expect: None };
        let request = match self.dice.below(4) {
            0 => {
                let mut wish = NodeWish::default();
                wish.cordon = self.dice.one_in(2);
                wish.drain = self.dice.one_in(2);
                wish.weight = self.dice.one_in(2).then(|| 1 + self.dice.below(5) as u32);
                put(RecordKey::Node(node), Record::Node(wish))
            }
            1 => put(RecordKey::Pin(slot), Record::Pin(node)),
            2 => {
                let mut record = WorkloadRecord::new(units);
                record.paused = self.dice.one_in(2);
                record.cap_per_node = self.dice.one_in(2).then(|| self.dice.below(4) as u32);
                put(RecordKey::Workload(workload), Record::Workload(record))
            }
            _ => {
                let Some(token) = self.model.slot(&slot).map(|record| record.token) else { return };
                let now = self.dice.one_in(3);
                if now {
                    self.torn_away.insert((slot.clone(), token));
                }
                AdminRequest::ForceRelease { slot, token, now }
            }
        };
        self.note(|| format!("an operator: {request:?}"));
        self.administer(&request);
    }

    /// A program tells its node something.
    fn change_mind(&mut self, index: usize) {
        let command = match self.dice.below(6) {
            0 => Command::SetWeight(1 + self.dice.below(5) as u32),
            1 => Command::SetHealth(self.dice.one_in(2)),
            2 => Command::SetCapacity(self.dice.one_in(2).then(|| self.dice.below(6) as u32)),
            3 => {
                let mut declared = BTreeMap::new();
                for (number, units) in self.scenario.workloads.iter().enumerate() {
                    let units = self.dice.below(u64::from(*units) + 2) as u32;
                    if units > 0 {
                        let cap = self.dice.one_in(3).then(|| 1 + self.dice.below(3) as u32);
                        declared.insert(WorkloadName::new(format!("w{number}")).unwrap(), Declared { units, cap });
                    }
                }
                Command::SetWorkloads(declared)
            }
            4 => Command::Cordon(self.dice.one_in(2)),
            _ => Command::Drain(self.dice.one_in(2)),
        };
        self.tell(index, command);
    }

    fn tell(&mut self, index: usize, command: Command) {
        let now = self.now;
        let Some(process) = self.nodes[index].process.as_ref() else { return };
        let (life, cap) = (process.life, process.engine.info().capacity);
        self.nodes[index].caps.push((now, cap));
        if let Command::SetCapacity(cap) = command {
            // A frozen node hears of it later, and perhaps of the next one at the same moment.
            let heard = self.nodes[index].process.as_ref().map_or(now, |process| process.paused_until.max(now));
            self.nodes[index].caps.push((heard, cap));
        }
        self.note(|| format!("n{index} is told: {command:?}"));
        self.input(index, life, Input::Command(command));
    }

    /// Operators and programs wish for nothing any more.
    fn settle_minds(&mut self) {
        let keys: Vec<RecordKey> = self.model.records().map(|(key, _)| key.clone()).collect();
        for key in keys.into_iter().filter(|key| *key != RecordKey::Settings) {
            self.administer(&AdminRequest::Put { key, record: None, expect: None });
        }
        let declared = self.declared();
        for index in 0..self.nodes.len() {
            let capacity = self.scenario.capacity;
            self.tell(index, Command::SetWeight(1));
            self.tell(index, Command::SetHealth(true));
            self.tell(index, Command::SetCapacity(capacity));
            self.tell(index, Command::SetWorkloads(declared.clone()));
            self.tell(index, Command::Drain(false));
        }
    }

    fn declared(&self) -> BTreeMap<WorkloadName, Declared> {
        let all = self.scenario.workloads.iter().enumerate();
        all.map(|(number, units)| {
            (WorkloadName::new(format!("w{number}")).unwrap(), Declared { units: *units, cap: None })
        })
        .collect()
    }

    /// Lets the world run until this time.
    pub(crate) fn run_until(&mut self, until: u64) {
        while let Some(Reverse((time, sequence))) = self.events.peek().copied() {
            if time > until {
                break;
            }
            self.events.pop();
            if time == self.now {
                self.at_once += 1;
                if self.at_once > 200_000 {
                    self.broken("bounded work", "time stands still".into());
                }
            } else {
                self.at_once = 0;
            }
            self.steps += 1;
            if self.steps > 300_000 {
                self.broken("bounded work", format!("{} steps, calls {:?}", self.steps, self.calls));
            }
            self.now = time;
            let what = self.what.remove(&sequence).unwrap();
            self.step(what);
            self.check_runners();
        }
        self.now = until;
    }

    fn step(&mut self, what: What) {
        match what {
            What::Fault => self.fault(),
            What::Arrive { node, life, request, call, answer } => self.arrive(node, life, request, &call, answer),
            What::Answer { node, life, request, result } => {
                let Some(process) = self.nodes[node].process.as_mut().filter(|process| process.life == life) else {
                    return;
                };
                if process.waiting.remove(&request).is_some() {
                    self.input(node, life, Input::Reply(request, *result));
                }
            }
            What::Hint { node, life, hint } => self.input(node, life, Input::Hint(hint)),
            What::Warm { node, life, slot, offer, ready } => {
                if !ready && let Some(process) = self.nodes[node].process.as_mut() {
                    process.warm.remove(&slot);
                }
                self.input(node, life, Input::WarmedUp { slot, offer, ready });
            }
            What::RunnerEnds { node, life, slot, token, end } => {
                let now = self.now;
                let Some(process) = self.nodes[node].process.as_mut().filter(|process| process.life == life) else {
                    return;
                };
                if process.paused_until > now {
                    let at = process.paused_until + 1000;
                    self.at(at, What::RunnerEnds { node, life, slot, token, end });
                    return;
                }
                let Some(runner) = process.runners.get(&slot) else { return };
                let by_itself = matches!(end, RunnerEnd::Failed(_)) || (end == RunnerEnd::Returned && !runner.stopping);
                let obeys = !runner.stuck || runner.aborted;
                if runner.token != token || !(obeys || by_itself) {
                    return;
                }
                if runner.stopping {
                    process.ended.insert(slot.clone(), token);
                }
                process.runners.remove(&slot);
                self.input(node, life, Input::RunnerEnded { slot, token, end, checkpoint: None });
            }
            What::Wake { node, life } => {
                *self.calls.entry("wake").or_default() += 1;
                let local = self.local(node);
                let now = self.now;
                let Some(process) = self.nodes[node].process.as_mut().filter(|process| process.life == life) else {
                    return;
                };
                if process.paused_until > now {
                    let until = process.paused_until;
                    process.wake_at = until;
                    self.at(until, What::Wake { node, life });
                    return;
                }
                process.wake_at = u64::MAX;
                process.engine.handle_timeout(local);
                let inbox = std::mem::take(&mut process.inbox);
                // A frozen runner ends at the moment it is aborted: before its process does anything else.
                self.drive_aborts(node);
                for input in inbox {
                    self.input(node, life, input);
                }
                self.drive(node);
            }
        }
    }

    /// Carries out a node's actions, and lets aborted runners that obey end at this very moment.
    fn drive_aborts(&mut self, node: usize) {
        self.drive(node);
        let Some(process) = self.nodes[node].process.as_mut() else { return };
        let life = process.life;
        let aborted: Vec<(Slot, FencingToken)> = process
            .runners
            .iter()
            .filter(|(_, runner)| runner.aborted && !runner.stuck)
            .map(|(slot, runner)| (slot.clone(), runner.token))
            .collect();
        for (slot, token) in aborted {
            let process = self.nodes[node].process.as_mut().unwrap();
            process.runners.remove(&slot);
            process.ended.insert(slot.clone(), token);
            self.input(node, life, Input::RunnerEnded { slot, token, end: RunnerEnd::Aborted, checkpoint: None });
        }
    }

    /// Ends all faults, waits for the bound, and checks that everything is owned and nothing moves any more.
    pub(crate) fn heal_and_check(&mut self) {
        self.calm = true;
        self.store_down_until = self.now;
        for index in 0..self.nodes.len() {
            self.nodes[index].start_at = self.nodes[index].start_at.min(self.now + S);
        }
        if self.scenario.faults.wishes || self.scenario.faults.programs {
            self.settle_minds();
        }
        // The quiet time, stuck runners and drain timeouts end; refusals and cooldowns pass; then it converges.
        self.run_until(self.now + 300 * S);
        self.check_all_run();
        let moves = self.moves;
        let starts = self.starts;
        self.run_until(self.now + 100 * S);
        self.check_all_run();
        if (self.moves, self.starts) != (moves, starts) {
            self.broken(
                "L3",
                format!("{} moves and {} starts after convergence", self.moves - moves, self.starts - starts),
            );
        }
    }

    fn check_all_run(&self) {
        let slots: u32 = self.scenario.workloads.iter().sum();
        let room = self.scenario.capacity.map_or(u32::MAX, |capacity| capacity * self.nodes.len() as u32);
        let running: usize = self.nodes.iter().filter_map(|node| node.process.as_ref()).map(|p| p.runners.len()).sum();
        if running as u32 != slots.min(room) {
            self.broken("L1", format!("{running} of {slots} slots run"));
        }
        for (index, process) in self.nodes.iter().enumerate().filter_map(|(i, node)| Some((i, node.process.as_ref()?)))
        {
            if !process.warm.is_empty() {
                self.broken("L8", format!("n{index} is still prepared for {:?}", process.warm));
            }
        }
    }

    /// Lets this much time pass.
    pub(crate) fn run_for(&mut self, seconds: u64) {
        self.run_until(self.now + seconds * S);
    }

    /// Lets time pass until something is so, in steps of 10 ms; returns how long it took.
    pub(crate) fn run_until_so(&mut self, words: &str, mut so: impl FnMut(&Self) -> bool) -> Duration {
        let begun = self.now;
        while !so(self) {
            if self.now > begun + 120 * S {
                self.broken("liveness", format!("not so after 120 s: {words}; {:?}", self.shares()));
            }
            self.run_until(self.now + 10 * MS);
        }
        Duration::from_nanos(self.now - begun)
    }

    /// An operator writes.
    pub(crate) fn administer(&mut self, request: &AdminRequest) -> AdminOutcome {
        if self.model.generation().is_none() {
            self.highest.clear(); // as in `arrive`: an operator remembers nothing
        }
        let outcome = self.model.administer(self.store_now(), request).expect("the model takes it");
        self.spread_hints();
        outcome
    }

    /// A program says something to its node.
    pub(crate) fn command(&mut self, node: usize, command: Command) {
        let life = self.nodes[node].life;
        self.input(node, life, Input::Command(command));
    }

    /// A node's process is gone, and stays so.
    pub(crate) fn kill(&mut self, node: usize) {
        self.crash(node, u64::MAX / 2);
    }

    /// Somebody who is sure that a killed process is gone closes its session.
    pub(crate) fn close_session_of(&mut self, node: usize) {
        let id = self.nodes[node].id.clone();
        let open = self.model.sessions().find(|(_, record, _)| record.info.node == id).map(|(session, _, _)| session);
        let known = rendez_core::Known { generation: self.model.generation(), ..rendez_core::Known::default() };
        let close = CloseRequest { known, session: open.expect("its session is open") };
        self.model.close(self.store_now(), &close).expect("the model takes it");
        self.spread_hints();
    }

    /// The node that runs a slot.
    pub(crate) fn runs(&self, slot: &Slot) -> Option<(usize, FencingToken)> {
        self.nodes.iter().enumerate().find_map(|(index, node)| {
            let runner = node.process.as_ref()?.runners.get(slot)?;
            Some((index, runner.token))
        })
    }

    /// The status as a node tells it.
    pub(crate) fn status(&mut self, node: usize) -> Status {
        let now = self.local(node);
        self.nodes[node].process.as_mut().expect("it is alive").engine.status(now)
    }

    /// The requests so far, by kind, and the steps that the world has taken.
    pub(crate) fn calls(&self) -> BTreeMap<&'static str, u64> {
        self.calls.clone()
    }

    /// The store answers nobody for a while.
    pub(crate) fn store_away(&mut self, seconds: u64) {
        self.store_down_until = self.now + seconds * S;
    }

    /// How many slots each node runs.
    pub(crate) fn shares(&self) -> Vec<usize> {
        self.nodes.iter().map(|node| node.process.as_ref().map_or(0, |process| process.runners.len())).collect()
    }
}
