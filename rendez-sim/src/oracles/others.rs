//! L6: a slow, stuck, panicking or flapping slot delays no other. What a node does for one slot, and for its session, keeps
//! its time whatever the runners of its other slots do.

use std::collections::BTreeMap;

use rendez_core::{EngineConfig, FencingToken};

use super::Oracle;
use crate::trace::{By, CallKind, Fact, SlotNo};

/// What is done at once may take this long.
const PROMPT: u64 = 50_000_000;

/// What clocks may make of an interval.
const SLACK: u64 = 100_000_000;

/// What a node is to do for a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Duty {
    /// Start the runner of a lease that was granted early enough.
    Start,
    /// Tell the runner to stop, as is decided.
    Stop,
    /// Notice that the runner has ended.
    Notice,
    /// Give the lease back, as the runner was stopped for that and has ended.
    GiveBack(FencingToken),
}

/// Whether a runner's lease will be given back when it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Returns {
    /// It was not told to stop, or not for that.
    No,
    /// It was told to stop for that.
    Yes,
    /// It may have no lease any more.
    Unknown,
}

/// What a node has to do, and by when.
#[derive(Debug, Default)]
struct Node {
    duties: BTreeMap<(SlotNo, Duty), u64>,
    /// Its session is open.
    open: bool,
    beat_by: Option<u64>,
    /// The session is good until then, or longer.
    deadline: u64,
    /// Its runners, and whether the lease is given back after that, if it was told to stop. What has run on through the
    /// loss of a session or of data may have no lease to give back.
    running: BTreeMap<SlotNo, Returns>,
    frozen: bool,
    /// It shuts down: its session is closed as soon as nothing runs.
    shuts_down: bool,
    /// Its requests were not answered lately.
    trouble: bool,
    /// Its clock has done what is not assumed of it.
    clock_broken: bool,
}

impl Node {
    fn may_have_lost_its_leases(&mut self) {
        self.duties.retain(|(_, duty), _| matches!(duty, Duty::Stop | Duty::Notice));
        self.running.values_mut().for_each(|returns| *returns = Returns::Unknown);
    }
}

/// L6, by what is done in time on the same node: a granted slot's runner starts at once (if the session is good for long
/// enough), a runner that is to stop is told so at once, and its end is noticed at once; the lease is given back after that
/// as soon as the store's answers permit; and heartbeats go on. A process that does not run does nothing, one whose requests
/// are not answered waits, and of one whose clock has jumped nothing is known.
#[derive(Debug)]
pub struct DelaysNoOther {
    stop_lead: u64,
    /// How long a fresh session is good at least, from when its node hears of it.
    opened_for: u64,
    beats_within: u64,
    gives_within: u64,
    nodes: BTreeMap<usize, Node>,
    /// Nothing is due before this time.
    look_at: u64,
}

impl DelaysNoOther {
    /// For nodes with this configuration.
    #[must_use]
    pub fn new(config: &EngineConfig) -> Self {
        let timing = &config.timing;
        let nanos = |duration: std::time::Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let (interval, timeout) = (nanos(timing.heartbeat_interval), nanos(timing.operation_timeout));
        let jitter = interval * u64::from(timing.heartbeat_jitter_permille) / 1000;
        Self {
            stop_lead: nanos(timing.stop_lead()) + SLACK,
            opened_for: nanos(timing.validity(timing.session_ttl)).saturating_sub(timeout + SLACK),
            // One that is not answered, and the longest pause before the next.
            beats_within: interval + jitter + timeout + SLACK,
            // Another change of the slot may have to be answered first, and what was not is sent again after a pause.
            gives_within: 2 * (interval + timeout) + SLACK,
            nodes: BTreeMap::new(),
            look_at: u64::MAX,
        }
    }

    fn owes(&mut self, node: usize, slot: SlotNo, duty: Duty, by: u64) {
        let node = self.nodes.entry(node).or_default();
        if !node.clock_broken {
            node.duties.insert((slot, duty), by);
            self.look_at = self.look_at.min(by);
        }
    }

    fn has_done(&mut self, node: usize, slot: SlotNo, duty: Duty) {
        if let Some(node) = self.nodes.get_mut(&node) {
            node.duties.remove(&(slot, duty));
        }
    }

    fn beats_on(&mut self, at: u64, node: usize) {
        let node = self.nodes.entry(node).or_default();
        node.beat_by = (node.open && !node.frozen && !node.clock_broken).then_some(at + self.beats_within);
        self.look_at = self.look_at.min(node.beat_by.unwrap_or(u64::MAX));
    }

    /// What waits for the store's answers has its time from now on.
    fn begins_anew(&mut self, at: u64, node: usize) {
        let by = at + self.gives_within;
        let node = self.nodes.entry(node).or_default();
        for ((_, duty), due) in &mut node.duties {
            if let Duty::GiveBack(_) = duty {
                *due = by;
                self.look_at = self.look_at.min(by);
            }
        }
    }

    fn told(&mut self, at: u64, node: usize, event: &str, slot: Option<SlotNo>) {
        match (event, slot) {
            ("session_opened", _) => {
                let of = self.nodes.entry(node).or_default();
                of.open = true;
                of.deadline = at + self.opened_for;
                self.beats_on(at, node);
            }
            ("session_lost", _) => {
                let of = self.nodes.entry(node).or_default();
                (of.open, of.beat_by, of.deadline) = (false, None, 0);
                of.may_have_lost_its_leases();
            }
            ("new_generation", _) => self.nodes.entry(node).or_default().may_have_lost_its_leases(),
            ("store_trouble", _) => self.nodes.entry(node).or_default().trouble = true,
            ("store_back", _) => {
                self.nodes.entry(node).or_default().trouble = false;
                self.begins_anew(at, node);
            }
            ("acquired" | "received", Some(slot)) => {
                let deadline = self.nodes.get(&node).map_or(0, |node| node.deadline);
                if at + self.stop_lead < deadline {
                    self.owes(node, slot, Duty::Start, at + PROMPT);
                }
            }
            ("stopping", Some(slot)) => self.owes(node, slot, Duty::Stop, at + PROMPT),
            ("ended", Some(slot)) => self.has_done(node, slot, Duty::Notice),
            (_, _) => {}
        }
    }

    /// Whether something was not done in time.
    fn look(&mut self, at: u64) -> Result<(), String> {
        if at <= self.look_at {
            return Ok(());
        }
        self.look_at = u64::MAX;
        for (index, node) in self.nodes.iter().filter(|(_, node)| !node.frozen && !node.clock_broken) {
            let closes = node.shuts_down && node.running.is_empty();
            if let Some(by) = node.beat_by.filter(|_| !closes) {
                if at > by {
                    return Err(format!("n{index} should have sent a heartbeat {} ns ago", at - by));
                }
                self.look_at = self.look_at.min(by);
            }
            for ((slot, duty), by) in &node.duties {
                if node.trouble && matches!(duty, Duty::GiveBack(_)) {
                    continue;
                }
                if at > *by {
                    return Err(format!("n{index} is late by {} ns for {slot}: {duty:?}", at - by));
                }
                self.look_at = self.look_at.min(*by);
            }
        }
        Ok(())
    }
}

impl Oracle for DelaysNoOther {
    fn promise(&self) -> &'static str {
        "L6"
    }

    fn see(&mut self, at: u64, fact: &Fact) -> Result<(), String> {
        self.look(at)?;
        match fact {
            Fact::Tells { node, event, slot } => self.told(at, *node, event, *slot),
            Fact::Starts { node, slot, .. } => {
                self.has_done(*node, *slot, Duty::Start);
                self.nodes.entry(*node).or_default().running.insert(*slot, Returns::No);
            }
            Fact::Prolongs { node, deadline, .. } => {
                let node = self.nodes.entry(*node).or_default();
                node.deadline = node.deadline.max(*deadline);
            }
            Fact::Stops { node, slot, token, returns } => {
                self.has_done(*node, *slot, Duty::Stop);
                self.has_done(*node, *slot, Duty::GiveBack(*token));
                let returns = if *returns { Returns::Yes } else { Returns::No };
                let running = self.nodes.entry(*node).or_default().running.get_mut(slot);
                if let Some(before) = running.filter(|before| **before != Returns::Unknown) {
                    *before = returns;
                }
            }
            Fact::Ends { node, slot, token, .. } => {
                self.owes(*node, *slot, Duty::Notice, at + PROMPT);
                if self.nodes.entry(*node).or_default().running.remove(slot) == Some(Returns::Yes) {
                    self.owes(*node, *slot, Duty::GiveBack(*token), at + self.gives_within);
                }
            }
            Fact::Sends { node, call, gives, .. } => {
                for (slot, token) in gives {
                    self.has_done(*node, *slot, Duty::GiveBack(*token));
                }
                match call {
                    CallKind::Heartbeat | CallKind::ReadsOn => self.beats_on(at, *node),
                    CallKind::Close => {
                        let node = self.nodes.entry(*node).or_default();
                        (node.open, node.beat_by) = (false, None);
                    }
                    CallKind::Open | CallKind::Change | CallKind::Snapshot => {}
                }
            }
            // The lease may be gone by that, and there is nothing to give back.
            Fact::Changes { slot, by: By::Operator, .. } | Fact::Tears { slot, .. } => {
                for node in self.nodes.values_mut() {
                    node.duties.retain(|(of, duty), _| of != slot || !matches!(duty, Duty::GiveBack(_)));
                    if let Some(returns) = node.running.get_mut(slot) {
                        *returns = Returns::Unknown;
                    }
                }
            }
            Fact::ShutsDown { node, .. } => self.nodes.entry(*node).or_default().shuts_down = true,
            Fact::Freezes { node, .. } => {
                let node = self.nodes.entry(*node).or_default();
                (node.frozen, node.beat_by) = (true, None);
            }
            Fact::Thaws { node } => {
                self.nodes.entry(*node).or_default().frozen = false;
                self.beats_on(at, *node);
                self.begins_anew(at, *node);
            }
            Fact::ClockBreaks { node } => {
                let node = self.nodes.entry(*node).or_default();
                (node.clock_broken, node.beat_by) = (true, None);
                node.duties.clear();
            }
            Fact::Goes { node, .. } => {
                let clock_broken = self.nodes.remove(node).is_some_and(|node| node.clock_broken);
                self.nodes.insert(*node, Node { clock_broken, ..Node::default() });
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn tells(event: &'static str, slot: Option<SlotNo>) -> Fact {
        Fact::Tells { node: 1, event, slot }
    }

    fn sends(gives: Vec<(SlotNo, FencingToken)>) -> Fact {
        let call = if gives.is_empty() { CallKind::Heartbeat } else { CallKind::Change };
        Fact::Sends { node: 1, call, session: Some(session(1)), gives, readopts: Vec::new() }
    }

    fn stops(slot: SlotNo, returns: bool) -> Fact {
        Fact::Stops { node: 1, slot, token: token(5), returns }
    }

    fn oracle() -> DelaysNoOther {
        DelaysNoOther::new(&EngineConfig::for_ttl(std::time::Duration::from_secs(10)))
    }

    #[test]
    fn heartbeats_go_on() {
        let frozen = |until| Fact::Freezes { node: 1, until };
        let opened = || tells("session_opened", None);
        let wait = || Fact::Calm;
        let shuts_down = || Fact::ShutsDown { node: 1, within: 30 * S };
        check(
            oracle,
            &[
                &[opened(), wait(), sends(vec![]), wait(), sends(vec![]), wait(), wait()],
                &[opened(), frozen(9 * S), wait(), wait(), wait(), wait(), Fact::Thaws { node: 1 }, wait(), wait()],
                &[opened(), tells("session_lost", None), wait(), wait(), wait(), wait()],
                &[opened(), Fact::ClockBreaks { node: 1 }, wait(), wait(), wait(), wait()],
                &[opened(), shuts_down(), wait(), wait(), wait(), wait()],
            ],
            &[
                (&[opened(), starts(1, 5), shuts_down(), wait()], "should have sent a heartbeat"),
                (&[opened(), wait(), wait(), wait()], "should have sent a heartbeat"),
                (&[opened(), sends(vec![]), wait(), wait(), wait()], "should have sent"),
                (&[opened(), frozen(9 * S), wait(), wait(), Fact::Thaws { node: 1 }, wait(), wait(), wait()], "n1"),
            ],
        );
    }

    #[test]
    fn a_stuck_slot_delays_no_start_and_no_stop_of_another() {
        let other = SlotNo(9);
        // One slot does not end; this is about another, and happens at one moment.
        let stuck = [tells("session_opened", None), tells("stopping", Some(other)), stops(other, true)];
        let said = |facts: &[Fact]| {
            let mut oracle = oracle();
            stuck.iter().chain(facts).try_for_each(|fact| oracle.see(S, fact))?;
            oracle.see(2 * S, &Fact::Calm)
        };
        let (granted, stopping) = (tells("acquired", Some(SLOT)), tells("stopping", Some(SLOT)));
        assert_eq!(said(&[granted.clone(), starts(1, 5)]), Ok(()));
        assert!(said(std::slice::from_ref(&granted)).unwrap_err().contains("slot 0: Start"));
        assert_eq!(said(&[tells("session_lost", None), granted.clone()]), Ok(()), "no session to start it under");
        assert_eq!(said(&[granted.clone(), tells("session_lost", None)]), Ok(()));
        assert_eq!(said(&[granted, Fact::Freezes { node: 1, until: 9 * S }]), Ok(()));
        assert_eq!(said(&[starts(1, 5), stopping.clone(), stops(SLOT, true)]), Ok(()));
        assert!(said(&[starts(1, 5), stopping]).unwrap_err().contains("slot 0: Stop"));
        assert_eq!(said(&[starts(1, 5), ends(1, 5), tells("ended", Some(SLOT))]), Ok(()));
        assert!(said(&[starts(1, 5), ends(1, 5)]).unwrap_err().contains("slot 0: Notice"));
    }

    #[test]
    fn a_lease_is_given_back_in_time() {
        let begins = || vec![tells("session_opened", None), starts(1, 5)];
        // What the store's answers take, and longer.
        let beats = || vec![sends(vec![]); 12];
        let ended = |returns| vec![stops(SLOT, returns), ends(1, 5)];
        let noticed = || vec![tells("ended", Some(SLOT))];
        let gives = || vec![sends(vec![(SLOT, token(5))])];
        let said = |parts: &[Vec<Fact>]| {
            let (mut oracle, mut at) = (oracle(), 0);
            parts.concat().iter().try_for_each(|fact| {
                at += if matches!(fact, Fact::Tells { event: "ended", .. }) { 0 } else { S / 2 };
                oracle.see(at, fact)
            })
        };
        let (trouble, back) = (|| vec![tells("store_trouble", None)], || vec![tells("store_back", None)]);
        let late = "slot 0: GiveBack";
        assert_eq!(said(&[begins(), ended(true), noticed(), gives(), beats()]), Ok(()));
        assert!(said(&[begins(), ended(true), noticed(), beats()]).unwrap_err().contains(late));
        assert_eq!(said(&[begins(), ended(false), noticed(), beats()]), Ok(()));
        assert_eq!(said(&[begins(), ended(true), noticed(), trouble(), beats(), back(), gives(), beats()]), Ok(()));
        let after = said(&[begins(), ended(true), noticed(), trouble(), beats(), back(), beats()]);
        assert!(after.unwrap_err().contains(late));
        let lost = || vec![tells("new_generation", None)];
        assert_eq!(said(&[begins(), lost(), ended(true), noticed(), beats()]), Ok(()));
        assert_eq!(said(&[begins(), ended(true), noticed(), lost(), beats()]), Ok(()));
        let torn = || vec![Fact::Tears { slot: SLOT, token: token(5) }];
        assert_eq!(said(&[begins(), torn(), ended(true), noticed(), beats()]), Ok(()));
    }
}
