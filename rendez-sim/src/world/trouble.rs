//! What goes wrong, and when: ten times a second the dice say.

use rendez_core::{AdminRequest, Command, Input, NodeWish, Record, RecordKey, Slot, WorkloadRecord, ZoneName};

use super::node::workload;
use super::{MS, S, What, World};
use crate::faults::Fault;
use crate::scenario::Variant;
use crate::trace::{Fact, Gone, Loss};

/// Nothing goes wrong before this time: first the world comes to rest.
const BEGINS: u64 = 20 * S;

/// Trouble that goes on for a while.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    /// The node that is updated now, and the life that it had before.
    rolling: Option<(usize, u32)>,
    /// The node that comes and goes, and until when.
    flapping: Option<(usize, u64)>,
}

impl World {
    /// How often something happens that usually happens once in `n` times.
    fn odds(&self, n: u64) -> u64 {
        (n * 100 / self.scenario.rate).max(1)
    }

    pub(super) fn fault(&mut self) {
        let index = self.dice.below(self.nodes.len() as u64) as usize;
        for node in 0..self.nodes.len() {
            if self.nodes[node].process.is_none() && self.nodes[node].start_at <= self.now {
                self.start(node);
            }
        }
        self.store.replicate(self.now);
        self.drip_writes();
        if !self.calm && self.now > BEGINS {
            self.trouble_processes(index);
            self.trouble_store();
            if self.has(Fault::Shutdowns) && self.dice.one_in(self.odds(80)) {
                self.shut_down(index, Fault::Shutdowns);
            }
            if self.has(Fault::Wishes) && self.now >= self.store_down_until && self.dice.one_in(self.odds(40)) {
                self.wish();
            }
            if self.has(Fault::Programs) && self.dice.one_in(self.odds(40)) {
                self.change_mind(index);
            }
            self.trouble_more();
        }
        self.at(self.now + 100 * MS, What::Fault);
    }

    /// One node's runners write: more would cost more than it shows.
    fn drip_writes(&mut self) {
        let node = self.more.below(self.nodes.len() as u64) as usize;
        if self.nodes[node].process.as_ref().is_some_and(|process| process.paused_until <= self.now) {
            self.write_all(node);
        }
    }

    fn trouble_processes(&mut self, index: usize) {
        if self.has(Fault::Crashes) && self.dice.one_in(self.odds(60)) && self.nodes[index].process.is_some() {
            let back = self.dice.below(20 * S);
            self.trouble(Fault::Crashes, index as u64);
            self.goes(index, Gone::Killed, back);
        }
        if self.has(Fault::Pauses) && self.dice.one_in(self.odds(40)) {
            let ttl = self.config.timing.session_ttl.as_nanos() as u64;
            let short = self.config.timing.pause_allowance.as_nanos() as u64 / 2;
            let length = if self.dice.one_in(2) { self.dice.below(short) } else { self.dice.below(3 * ttl) };
            self.trouble(Fault::Pauses, index as u64);
            self.freeze(index, self.now + length);
        }
    }

    fn trouble_store(&mut self) {
        if self.has(Fault::Outages) && self.dice.one_in(self.odds(100)) {
            let length = self.dice.below(25 * S);
            self.trouble(Fault::Outages, length);
            self.store_refuses = false;
            self.store_is_away(self.now + length);
        }
        if self.has(Fault::Refusals) && self.more.one_in(self.odds(150)) {
            let length = self.more.below(20 * S);
            self.trouble(Fault::Refusals, length);
            self.store_refuses = true;
            self.store_is_away(self.now + length);
        }
        if self.has(Fault::Losses) && self.dice.one_in(self.odds(150)) {
            let loss = if self.dice.one_in(2) { Loss::Everything } else { Loss::Restart };
            self.doom_with(loss);
        }
        if self.has(Fault::Failovers) && self.more.one_in(self.odds(120)) {
            self.doom_with(Loss::LastWrites);
        }
        if self.doom.is_some_and(|(at, _)| at <= self.now)
            && let Some((_, loss)) = self.doom.take()
        {
            self.lose(loss);
        }
    }

    /// The store loses data: now, or just when it has answered a change, so that the answer comes after the loss.
    fn doom_with(&mut self, loss: Loss) {
        if self.has(Fault::LateReplies) && self.more.one_in(2) {
            self.doom = Some((self.now + 5 * S, loss));
        } else {
            self.lose(loss);
        }
    }

    pub(super) fn store_is_away(&mut self, until: u64) {
        self.store_down_until = until;
        self.fact(Fact::StoreAway { until, refuses: self.store_refuses });
    }

    fn shut_down(&mut self, index: usize, fault: Fault) {
        if let Some(life) = self.nodes[index].process.as_ref().map(|process| process.life) {
            self.trouble(fault, index as u64);
            self.input(index, life, Input::Command(Command::Shutdown));
        }
    }

    /// What came later than the first worlds: all of it with dice of its own.
    fn trouble_more(&mut self) {
        let index = self.more.below(self.nodes.len() as u64) as usize;
        if self.has(Fault::OneWayCuts) && self.more.one_in(self.odds(60)) {
            let until = self.now + self.more.below(15 * S);
            if self.more.one_in(2) {
                self.nodes[index].mute_until = until;
            } else {
                self.nodes[index].deaf_until = until;
            }
            self.trouble(Fault::OneWayCuts, index as u64);
        }
        if self.has(Fault::RollingUpdates) {
            self.roll_on();
        }
        if self.has(Fault::Flapping) {
            self.flap(index);
        }
        if self.has(Fault::Twins) && self.nodes.last().is_some_and(|twin| twin.life > 0) {
            self.happened.add(Fault::Twins);
        }
        if self.has(Fault::Zones) && self.now >= self.store_down_until && self.more.one_in(self.odds(80)) {
            self.bind_to_zone();
        }
        if self.has(Fault::MixedVersions) && self.more.one_in(self.odds(100)) {
            self.replace_strangers(2 * S);
        }
        if self.has(Fault::ClockJumps) && self.more.one_in(self.odds(100)) {
            self.jump(index);
        }
        for (fault, at_work) in [
            (Fault::SmallPages, self.steps > 0),
            (Fault::LateExpiry, self.steps > 0),
            (Fault::ShortOffers, self.moves > 0),
            (Fault::Clocks, self.steps > 0),
        ] {
            self.happened.add_if(at_work && self.has(fault), fault);
        }
    }

    /// Somebody notices the nodes that are refused for their version, and starts another release in their place.
    pub(super) fn replace_strangers(&mut self, back_after: u64) {
        for index in 0..self.nodes.len() {
            if self.nodes[index].process.as_ref().is_some_and(|process| process.stranger) {
                self.goes(index, Gone::Killed, back_after);
            }
        }
    }

    fn roll_on(&mut self) {
        let next = match self.trouble.rolling {
            None if self.more.one_in(self.odds(200)) => 0,
            None => return,
            Some((node, life)) if self.nodes[node].life == life => return,
            Some((node, _)) => node + 1,
        };
        if next >= self.nodes.len() {
            self.trouble.rolling = None;
            return;
        }
        self.trouble.rolling = Some((next, self.nodes[next].life));
        self.shut_down(next, Fault::RollingUpdates);
    }

    fn flap(&mut self, index: usize) {
        match self.trouble.flapping {
            None if self.more.one_in(self.odds(200)) => self.trouble.flapping = Some((index, self.now + 15 * S)),
            Some((_, until)) if until <= self.now => self.trouble.flapping = None,
            Some((node, _)) if self.nodes[node].process.is_some() && self.more.one_in(20) => {
                self.trouble(Fault::Flapping, node as u64);
                let back = self.more.below(S);
                self.goes(node, Gone::Killed, back);
            }
            Some(_) | None => {}
        }
    }

    fn bind_to_zone(&mut self) {
        let number = self.more.below(self.scenario.workloads.len() as u64) as usize;
        let mut record = WorkloadRecord::new(self.scenario.workloads[number]);
        record.zones = ZoneName::new(format!("z{}", self.more.below(2))).ok().into_iter().collect();
        let record = self.more.one_in(2).then_some(Record::Workload(record));
        self.trouble(Fault::Zones, number as u64);
        self.carry_out(&AdminRequest::Put { key: RecordKey::Workload(workload(number)), record, expect: None });
    }

    /// A clock jumps ahead, or stands still during a suspend: more than the bound allows.
    fn jump(&mut self, index: usize) {
        let length = self.more.below(20 * S);
        let now = self.now;
        let Some(life) = self.nodes[index].process.as_ref().filter(|it| it.paused_until <= now).map(|it| it.life)
        else {
            return;
        };
        self.trouble(Fault::ClockJumps, length);
        if self.more.one_in(3) {
            self.nodes[index].offset += length;
            self.fact(Fact::ClockBreaks { node: index });
            if let Some(process) = self.process(index, life) {
                process.wake_at = now;
            }
            self.at(now, What::Wake { node: index, life });
        } else {
            self.nodes[index].clock_stopped_at = Some(now);
            self.freeze(index, now + length);
        }
    }

    /// An operator writes something.
    fn wish(&mut self) {
        let index = self.dice.below(self.nodes.len() as u64) as usize;
        let node = self.nodes[index].id.clone();
        let number = self.dice.below(self.scenario.workloads.len() as u64) as usize;
        let workload = workload(number);
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
                let Some(token) = self.store.model.slot(&slot).map(|record| record.token) else { return };
                let now = self.dice.one_in(3);
                if now {
                    let slot = self.slot_no(&slot);
                    self.fact(Fact::Tears { slot, token });
                }
                self.happened.add_if(now && self.has(Fault::ForgetfulLog), Fault::ForgetfulLog);
                AdminRequest::ForceRelease { slot, token, now }
            }
        };
        self.trouble(Fault::Wishes, number as u64);
        self.carry_out(&request);
    }

    /// A program tells its node something.
    fn change_mind(&mut self, index: usize) {
        let runs: Vec<Slot> = self.nodes[index].process.iter().flat_map(|it| it.runners.keys().cloned()).collect();
        if self.scenario.variant.is(Variant::STICKY) && !runs.is_empty() && self.more.one_in(2) {
            let slot = runs[self.more.below(runs.len() as u64) as usize].clone();
            self.trouble(Fault::Programs, index as u64);
            self.tell(index, Command::Resign(slot));
            return;
        }
        let command = match self.dice.below(6) {
            0 => Command::SetWeight(1 + self.dice.below(5) as u32),
            1 => Command::SetHealth(self.dice.one_in(2)),
            2 => Command::SetCapacity(self.dice.one_in(2).then(|| self.dice.below(6) as u32)),
            3 => {
                let units: Vec<u32> = self.scenario.workloads.clone();
                let mut declared = std::collections::BTreeMap::new();
                for (number, units) in units.into_iter().enumerate() {
                    let units = self.dice.below(u64::from(units) + 2) as u32;
                    if units > 0 {
                        let cap = self.dice.one_in(3).then(|| 1 + self.dice.below(3) as u32);
                        let mut mine = self.declare(index, number, units);
                        mine.cap = cap;
                        declared.insert(workload(number), mine);
                    }
                }
                Command::SetWorkloads(declared)
            }
            4 => Command::Cordon(self.dice.one_in(2)),
            _ => Command::Drain(self.dice.one_in(2)),
        };
        self.trouble(Fault::Programs, index as u64);
        self.tell(index, command);
    }

    pub(super) fn tell(&mut self, index: usize, command: Command) {
        if let Some(life) = self.nodes[index].process.as_ref().map(|process| process.life) {
            self.input(index, life, Input::Command(command));
        }
    }

    /// Operators and programs wish for nothing any more.
    pub(super) fn settle_minds(&mut self) {
        let keys: Vec<RecordKey> = self.store.model.records().map(|(key, _)| key.clone()).collect();
        for key in keys.into_iter().filter(|key| *key != RecordKey::Settings) {
            self.carry_out(&AdminRequest::Put { key, record: None, expect: None });
        }
        for index in 0..self.nodes.len() {
            let capacity = self.scenario.capacity;
            self.tell(index, Command::SetWeight(1));
            self.tell(index, Command::SetHealth(true));
            self.tell(index, Command::SetCapacity(capacity));
            self.tell(index, Command::SetWorkloads(self.declared(index)));
            self.tell(index, Command::Drain(false));
        }
    }
}
