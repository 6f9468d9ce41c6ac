//! A world of nodes and one store in virtual time: one seed decides everything that happens in it.
//!
//! The engines are those that ship, the store is the model of the contract with the behaviour of a kind of store around
//! it. The world tells facts, and judges nothing itself but that work is bounded.

mod handles;
mod histories;
mod meter;
mod network;
mod node;
mod rest;
mod trouble;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use rendez_core::placement::{Policy, VirtualNodes};
use rendez_core::{
    Call, Capabilities, EngineConfig, FencingToken, Generation, Input, NodeId, OperationId, Reply, RequestId,
    RunnerEnd, SessionId, Slot, StoreError, WatchHint,
};

use crate::dice::Dice;
use crate::faults::{Fault, Faults};
use crate::observers::Observers;
use crate::oracles::{Broken, Oracles, Overlap};
use crate::scenario::{Scenario, Variant};
use crate::store::{Behaviour, SimStore};
use crate::trace::{Fact, Loss, SlotNo, Trace};
use meter::Meter;
pub use meter::Traffic;
use node::Node;

pub(crate) const MS: u64 = 1_000_000;
pub(crate) const S: u64 = 1000 * MS;

/// The most steps at one moment, and in all, for each node.
const STEPS_AT_ONCE_MAX: u64 = 200_000;
const STEPS_MAX: u64 = 100_000;

/// What is going to happen.
#[derive(Debug)]
enum What {
    Wake { node: usize, life: u32 },
    Arrive { node: usize, life: u32, request: RequestId, call: Box<Call>, answer: bool },
    Answer { node: usize, life: u32, request: RequestId, result: Box<Result<Reply, StoreError>> },
    Hint { node: usize, life: u32, hint: WatchHint },
    RunnerEnds { node: usize, life: u32, slot: Slot, token: FencingToken, end: RunnerEnd },
    Warm { node: usize, life: u32, slot: Slot, offer: OperationId, ready: bool },
    Fault,
}

/// The world.
#[derive(Debug)]
pub struct World {
    scenario: Scenario,
    config: EngineConfig,
    dice: Dice,
    /// For what came later than the first worlds, so that those stay as they were.
    more: Dice,
    now: u64,
    sequence: u64,
    events: BinaryHeap<Reverse<(u64, u64)>>,
    what: BTreeMap<u64, What>,

    store: SimStore,
    store_down_until: u64,
    /// While it is down, it refuses at once instead of leaving requests unanswered.
    store_refuses: bool,
    /// The store loses data as soon as it has answered the next change, or at this time.
    doom: Option<(u64, Loss)>,
    /// Those of before the last loss of data.
    old_generations: [Option<Generation>; 2],
    nodes: Vec<Node>,
    session_nodes: BTreeMap<SessionId, usize>,
    /// Those that the facts have told of.
    sessions: BTreeSet<SessionId>,
    sinks: BTreeMap<SlotNo, FencingToken>,
    slot_numbers: BTreeMap<Slot, SlotNo>,
    /// The slots whose histories are judged.
    watched: Vec<Slot>,
    asks: u64,
    trouble: trouble::Trouble,
    calm: bool,

    at_once: u64,
    steps: u64,
    calls: BTreeMap<&'static str, u64>,
    starts: u64,
    moves: u64,
    happened: Faults,

    trace: Trace,
    oracles: Oracles,
    /// Facts are told and judged; without that, a large world is a good deal cheaper and goes the same way.
    judged: bool,
    broken: Option<Broken>,
    traffic: Traffic,
    meter: Meter,
}

impl World {
    /// The world of a scenario, in which nothing has happened yet. It keeps its facts, or only their hash.
    #[must_use]
    pub fn new(scenario: Scenario, keep: bool) -> Self {
        let mut dice = Dice::new(scenario.seed);
        let mut more = Dice::new(scenario.seed ^ 0xC0_FFEE);
        let faults = scenario.faults;
        let mut config = EngineConfig::for_ttl(Duration::from_millis(scenario.ttl_ms));
        if faults.has(Fault::ShortOffers) {
            config.offer_ttl = Duration::from_millis(300 + dice.below(6000));
        }
        vary(&mut config, scenario.variant);
        let replica_lag = faults.has(Fault::Failovers).then(|| Duration::from_millis(200 + more.below(2000)));
        let late = match faults.has(Fault::LateExpiry) {
            true => Duration::from_millis(more.below(3000)),
            false => Duration::ZERO,
        };
        let observed = faults.has(Fault::ObservedExpiry);
        let timing = &config.timing;
        let observers = observed.then(|| Observers::new(timing.clock_rate_error_ppm, late));
        // Each node looks with every heartbeat.
        let looks_every = timing.heartbeat_interval * (1000 + timing.heartbeat_jitter_permille) / 1000;
        let behaviour = Behaviour {
            replica_lag,
            lateness: if observed { Duration::ZERO } else { late },
            forgetful: faults.has(Fault::ForgetfulLog),
            rate: 0,
        };
        let mut capabilities = Capabilities::strict("model");
        capabilities.expiry_lateness_max = observers
            .as_ref()
            .map_or(late, |observers| observers.lateness(timing.session_ttl, looks_every + timing.operation_timeout));
        capabilities.replica_lag_max = replica_lag.unwrap_or_default();
        if faults.has(Fault::SmallPages) {
            capabilities.changes_max = 1 + more.below(4) as usize;
        }
        let store = SimStore::new(dice.roll(), capabilities, behaviour, observers);
        let mut nodes = Vec::new();
        for index in 0..scenario.nodes {
            let rate = if faults.has(Fault::Clocks) { dice.below(1900) as i64 - 950 } else { 0 };
            let id = node_id(index);
            // half of the bound each way: between two nodes it is the whole
            nodes.push(Node::new(id, dice.below(1_000_000 * S), rate / 2, dice.below(2 * S)));
        }
        if faults.has(Fault::Twins) {
            let (offset, start_at) = (more.below(1_000_000 * S), more.below(60 * S));
            nodes.push(Node::new(node_id(0), offset, 0, start_at));
        }
        let sticky = scenario.variant.is(Variant::STICKY);
        let oracles = Oracles::new(&config, sticky, scenario.capacity, scenario.strict);
        let mut world = Self {
            config,
            dice,
            more,
            now: 0,
            sequence: 0,
            events: BinaryHeap::new(),
            what: BTreeMap::new(),
            store,
            store_down_until: 0,
            store_refuses: false,
            doom: None,
            old_generations: [None; 2],
            nodes,
            session_nodes: BTreeMap::new(),
            sessions: BTreeSet::new(),
            sinks: BTreeMap::new(),
            slot_numbers: BTreeMap::new(),
            watched: histories::choose(&scenario),
            asks: 0,
            trouble: trouble::Trouble::default(),
            calm: false,
            at_once: 0,
            steps: 0,
            calls: BTreeMap::new(),
            starts: 0,
            moves: 0,
            happened: Faults::NONE,
            trace: Trace::new(keep),
            oracles,
            judged: true,
            broken: None,
            traffic: Traffic::default(),
            meter: Meter::default(),
            scenario,
        };
        world.at(world.now + 100 * MS, What::Fault);
        world
    }

    /// Lets things go wrong for as long as the scenario says, then heals everything and looks whether it comes to rest.
    pub fn run(&mut self) {
        self.run_until(self.scenario.trouble_s * S);
        self.heal_and_check();
    }

    /// What it was made from.
    #[must_use]
    pub fn scenario(&self) -> &Scenario {
        &self.scenario
    }

    /// What has happened.
    #[must_use]
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// What has happened, at the end.
    #[must_use]
    pub fn into_trace(self) -> Trace {
        self.trace
    }

    /// The promise that was broken. Nothing happens any more after that.
    #[must_use]
    pub fn broken(&self) -> Option<&Broken> {
        self.broken.as_ref()
    }

    /// The faults that did happen.
    #[must_use]
    pub fn happened(&self) -> Faults {
        self.happened
    }

    /// The steps that the world has taken, the runners started and the slots handed over.
    #[must_use]
    pub fn counts(&self) -> (u64, u64, u64) {
        (self.steps, self.starts, self.moves)
    }

    /// How far runs have overlapped because an assumption was broken on purpose.
    #[must_use]
    pub fn overlap(&self) -> Overlap {
        self.oracles.overlap()
    }

    /// Takes a fact down, and shows it to the oracles.
    fn fact(&mut self, fact: Fact) {
        if self.broken.is_some() || !self.judged {
            return;
        }
        self.trace.push(self.now, &fact);
        self.broken = self.oracles.see(self.now, &fact).err();
    }

    /// A fault has happened.
    fn trouble(&mut self, fault: Fault, detail: u64) {
        self.happened.add(fault);
        self.fact(Fact::Trouble { fault, detail });
    }

    fn unbounded(&mut self, words: String) {
        if self.broken.is_none() {
            self.broken = Some(Broken { promise: "bounded work", at: self.now, words });
        }
    }

    fn slot_no(&mut self, slot: &Slot) -> SlotNo {
        if let Some(number) = self.slot_numbers.get(slot) {
            return *number;
        }
        let number = self.trace.name(slot);
        self.slot_numbers.insert(slot.clone(), number);
        number
    }

    fn has(&self, fault: Fault) -> bool {
        self.scenario.faults.has(fault)
    }

    /// Whether this fault is at work now.
    fn suffers(&self, fault: Fault) -> bool {
        !self.calm && self.has(fault)
    }

    fn at(&mut self, time: u64, what: What) {
        self.sequence += 1;
        self.events.push(Reverse((time.max(self.now), self.sequence)));
        self.what.insert(self.sequence, what);
    }

    /// Lets the world run until this time.
    pub fn run_until(&mut self, until: u64) {
        while let Some(Reverse((time, sequence))) = self.events.peek().copied() {
            if time > until || self.broken.is_some() {
                break;
            }
            self.events.pop();
            if time == self.now {
                self.at_once += 1;
                if self.at_once > STEPS_AT_ONCE_MAX {
                    self.unbounded("time stands still".into());
                }
            } else {
                self.at_once = 0;
            }
            self.steps += 1;
            if self.steps > STEPS_MAX * (self.nodes.len() as u64 + 3) {
                self.unbounded(format!("{} steps, calls {:?}", self.steps, self.calls));
            }
            self.now = time;
            if let Some(what) = self.what.remove(&sequence) {
                self.step(what);
            }
        }
        self.now = until;
    }

    fn step(&mut self, what: What) {
        match what {
            What::Fault => self.fault(),
            What::Arrive { node, life, request, call, answer } => self.arrive(node, life, request, &call, answer),
            What::Answer { node, life, request, result } => self.answer(node, life, request, *result),
            What::Hint { node, life, hint } => self.input(node, life, Input::Hint(hint)),
            What::Warm { node, life, slot, offer, ready } => self.warm(node, life, slot, offer, ready),
            What::RunnerEnds { node, life, slot, token, end } => self.runner_ends(node, life, slot, token, end),
            What::Wake { node, life } => self.wake(node, life),
        }
    }
}

fn node_id(index: usize) -> NodeId {
    NodeId::new(format!("n{index}")).expect("this is a name")
}

/// A configuration that differs from the defaults.
fn vary(config: &mut EngineConfig, variant: Variant) {
    let interval = config.timing.heartbeat_interval;
    if variant.is(Variant::RESTLESS) {
        config.stabilizers.cooldown = interval * 2;
        config.stabilizers.runtime_min = interval;
        config.stabilizers.settling = interval / 2;
    }
    if variant.is(Variant::STUBBORN) {
        config.runners.give_up_after = None;
    }
    if variant.is(Variant::AT_ONCE) {
        config.stabilizers.cooldown = Duration::ZERO;
        config.stabilizers.runtime_min = Duration::ZERO;
        config.stabilizers.settling = Duration::ZERO;
        config.stabilizers.shed_budget = u32::MAX;
    }
    if variant.is(Variant::HASTY) {
        config.drain_timeout = interval;
    }
    if variant.is(Variant::STILL) {
        config.stabilizers.shedding = false;
    }
}

fn policy(variant: Variant) -> Policy {
    if variant.is(Variant::RING) {
        Policy::Ring(VirtualNodes::default())
    } else if variant.is(Variant::STICKY) {
        Policy::Sticky
    } else if variant.is(Variant::RENDEZVOUS) {
        Policy::Rendezvous
    } else {
        Policy::default()
    }
}
