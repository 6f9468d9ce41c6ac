//! Promises about runners: when they start, how long they run, and what must not happen while they do.

use std::collections::{BTreeMap, BTreeSet};

use rendez_core::{FencingToken, Generation, SessionId};

use super::Oracle;
use crate::trace::{By, Fact, Gone, Lease, SlotNo};

/// What rounding from one clock to another may come to, in nanoseconds. Store clocks count microseconds.
const ROUNDING: u64 = 3000;

/// How long after its deadline an overrun may still be there: what clocks make of a grace.
const OVERRUN_SLACK: u64 = 50_000_000;

/// How far runs have overlapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Overlap {
    /// How often.
    pub times: u64,
    /// For how long in all, in nanoseconds.
    pub nanos: u64,
    /// The longest, in nanoseconds.
    pub longest: u64,
}

/// S2: run intervals of different tokens of a slot never overlap. Exempt, and reported as such by the nodes: an overrun,
/// and what an operator took away at once. A frozen process does not run. Once a clock has done what is not assumed of
/// it, overlaps are measured and not judged.
#[derive(Debug, Default)]
pub struct AtMostOneRun {
    runs: BTreeMap<SlotNo, BTreeMap<usize, (FencingToken, bool)>>,
    frozen: BTreeSet<usize>,
    torn: BTreeSet<(SlotNo, FencingToken)>,
    clocks_broken: bool,
    overlapping: BTreeMap<SlotNo, u64>,
    overlap: Overlap,
}

impl AtMostOneRun {
    pub(super) fn overlap(&self) -> Overlap {
        self.overlap
    }

    /// Looks whether a slot runs twice now.
    fn look(&mut self, at: u64, slot: SlotNo) -> Result<(), String> {
        let Some(runs) = self.runs.get(&slot) else { return Ok(()) };
        let counts = |(node, (token, exempt)): &(&usize, &(FencingToken, bool))| {
            !exempt && !self.frozen.contains(node) && !self.torn.contains(&(slot, *token))
        };
        let mut two = runs.iter().filter(counts);
        let twice = two.next().zip(two.next());
        match (twice, self.clocks_broken) {
            (Some(((one, (token, _)), (other, (second, _)))), false) => {
                return Err(format!("n{one} runs {slot} under {token} and n{other} runs it under {second}"));
            }
            (Some(_), true) => {
                self.overlapping.entry(slot).or_insert(at);
            }
            (None, _) => {
                if let Some(since) = self.overlapping.remove(&slot) {
                    self.overlap.times += 1;
                    self.overlap.nanos += at - since;
                    self.overlap.longest = self.overlap.longest.max(at - since);
                }
            }
        }
        Ok(())
    }

    fn look_at_all_of(&mut self, at: u64, node: usize) -> Result<(), String> {
        let slots: Vec<SlotNo> =
            self.runs.iter().filter(|(_, runs)| runs.contains_key(&node)).map(|(slot, _)| *slot).collect();
        slots.into_iter().try_for_each(|slot| self.look(at, slot))
    }
}

impl Oracle for AtMostOneRun {
    fn promise(&self) -> &'static str {
        "S2"
    }

    fn see(&mut self, at: u64, fact: &Fact) -> Result<(), String> {
        match fact {
            Fact::ClockBreaks { .. } => self.clocks_broken = true,
            Fact::Starts { node, slot, token, .. } => {
                self.runs.entry(*slot).or_default().insert(*node, (*token, false));
                return self.look(at, *slot);
            }
            Fact::Ends { node, slot, .. } => {
                if let Some(runs) = self.runs.get_mut(slot) {
                    runs.remove(node);
                }
                return self.look(at, *slot);
            }
            Fact::Aborts { node, slot, obeys: false, .. } => {
                if let Some(run) = self.runs.get_mut(slot).and_then(|runs| runs.get_mut(node)) {
                    run.1 = true;
                }
                return self.look(at, *slot);
            }
            Fact::Goes { node, .. } => {
                self.frozen.remove(node);
                let slots: Vec<SlotNo> =
                    self.runs.iter().filter(|(_, runs)| runs.contains_key(node)).map(|(slot, _)| *slot).collect();
                for slot in slots {
                    if let Some(runs) = self.runs.get_mut(&slot) {
                        runs.remove(node);
                    }
                    self.look(at, slot)?;
                }
            }
            Fact::Freezes { node, .. } => {
                self.frozen.insert(*node);
                return self.look_at_all_of(at, *node);
            }
            Fact::Thaws { node } => {
                self.frozen.remove(node);
                return self.look_at_all_of(at, *node);
            }
            Fact::Tears { slot, token } => {
                self.torn.insert((*slot, *token));
            }
            _ => {}
        }
        Ok(())
    }
}

/// S6: a lease is released or transferred only when no runner of that slot, of any token, runs on the node; a session
/// is closed by its node only when nothing runs there.
///
/// A store that has lost its last writes may hold an older lease of the session once more, and a request that arrives
/// late or twice gives that one back again. It was given back at rest, which is judged where it is sent; the newer lease
/// was taken by the loss.
#[derive(Debug, Default)]
pub struct GivenBackAtRest {
    running: BTreeMap<usize, BTreeMap<SlotNo, FencingToken>>,
    nodes: BTreeMap<SessionId, usize>,
    /// The highest token of each slot that was lost.
    lost: BTreeMap<SlotNo, FencingToken>,
}

impl Oracle for GivenBackAtRest {
    fn promise(&self) -> &'static str {
        "S6"
    }

    fn see(&mut self, _at: u64, fact: &Fact) -> Result<(), String> {
        match fact {
            Fact::Starts { node, slot, token, .. } => {
                self.running.entry(*node).or_default().insert(*slot, *token);
            }
            Fact::Ends { node, slot, .. } => {
                if let Some(running) = self.running.get_mut(node) {
                    running.remove(slot);
                }
            }
            Fact::Goes { node, .. } => {
                self.running.remove(node);
            }
            Fact::Opens { node, session, .. } => {
                self.nodes.insert(*session, *node);
            }
            Fact::Changes { slot, by: By::Loss, before, after, .. } if after.token < before.token => {
                let lost = self.lost.entry(*slot).or_default();
                *lost = before.token.max(*lost);
            }
            Fact::Changes {
                slot,
                by: By::Release | By::Transfer,
                session: Some(session),
                named,
                before,
                after,
                ..
            } if before.holder != after.holder => {
                let node = self.nodes.get(session).copied().unwrap_or(usize::MAX);
                let lost = |running: FencingToken| {
                    *named < running && self.lost.get(slot).is_some_and(|lost| *lost >= running)
                };
                let running = self.running.get(&node).and_then(|running| running.get(slot));
                if let Some(token) = running.filter(|token| !lost(**token)) {
                    return Err(format!("n{node} gives {slot} back while it runs it with {token}"));
                }
            }
            Fact::Sends { node, gives, .. } => {
                let running = self.running.get(node);
                if let Some((slot, token)) =
                    gives.iter().find(|(slot, _)| running.is_some_and(|running| running.contains_key(slot)))
                {
                    return Err(format!("n{node} offers to give {slot} {token} back while it runs it"));
                }
            }
            Fact::Closes { by: Some(node), .. } => {
                if let Some(running) = self.running.get(node).filter(|running| !running.is_empty()) {
                    return Err(format!("n{node} closes its session while it runs {running:?}"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Rule 4 for lost data: taken back is only what runs at this moment, before its deadline (of which nothing is known once
/// clocks do what is not assumed of them).
#[derive(Debug, Default)]
pub struct TakenBackWhileRunning {
    running: BTreeMap<(usize, SlotNo), (FencingToken, u64)>,
    clocks_broken: bool,
}

impl Oracle for TakenBackWhileRunning {
    fn promise(&self) -> &'static str {
        "re-adoption"
    }

    fn see(&mut self, at: u64, fact: &Fact) -> Result<(), String> {
        match fact {
            Fact::ClockBreaks { .. } => self.clocks_broken = true,
            Fact::Starts { node, slot, token, deadline, .. } => {
                self.running.insert((*node, *slot), (*token, *deadline));
            }
            Fact::Prolongs { node, deadline, except, .. } => {
                for ((_, slot), run) in self.running.range_mut((*node, SlotNo(0))..=(*node, SlotNo(u32::MAX))) {
                    if !except.contains(slot) {
                        run.1 = *deadline;
                    }
                }
            }
            Fact::Ends { node, slot, .. } => {
                self.running.remove(&(*node, *slot));
            }
            Fact::Goes { node, .. } => self.running.retain(|(of, _), _| of != node),
            Fact::Sends { node, readopts, .. } => {
                for (slot, token) in readopts {
                    let run = self.running.get(&(*node, *slot)).filter(|(running, _)| running == token);
                    if run.is_none_or(|(_, deadline)| at > *deadline + ROUNDING && !self.clocks_broken) {
                        return Err(format!("n{node} takes {slot} {token} back, which does not run: {run:?}"));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Rule 3 for lost data: late replies of an older generation are not used, so no process ever goes back to one.
#[derive(Debug, Default)]
pub struct NeverGoesBack {
    entered: BTreeMap<usize, BTreeSet<Generation>>,
}

impl Oracle for NeverGoesBack {
    fn promise(&self) -> &'static str {
        "generations"
    }

    fn see(&mut self, _at: u64, fact: &Fact) -> Result<(), String> {
        match fact {
            Fact::Goes { node, .. } => {
                self.entered.remove(node);
            }
            Fact::Enters { node, generation } if !self.entered.entry(*node).or_default().insert(*generation) => {
                return Err(format!("n{node} goes back to the generation {generation}"));
            }
            _ => {}
        }
        Ok(())
    }
}

/// A runner, as S7 sees it.
#[derive(Debug, Clone, Copy)]
struct Run {
    token: FencingToken,
    deadline: u64,
    aborted: bool,
    /// It was aborted at this time and goes on: an overrun, which is reported.
    overrun: Option<u64>,
}

impl Run {
    /// When it must be gone: at its deadline; an overrun and its process soon after that.
    fn gone_by(&self, grace: u64) -> u64 {
        self.overrun.map_or(self.deadline, |since| self.deadline.max(since + grace) + OVERRUN_SLACK)
    }
}

/// S7: a runner starts only on a granted lease before its deadline, under the very session that the grant names, only
/// on a token higher than any that this process has ended or offered to give back for the slot, and never beside
/// another runner of the slot; it has ended by its deadline; and a deadline moves only as far as the store extends the
/// session, and only for what that session then held with that token, in the generation in which it was asked.
///
/// Exempt:
/// - a node that has not heard of a loss of data starts what was granted before, for one TTL;
/// - a session may be believed in for as long as was answered before a loss of data;
/// - what an operator took away at once;
/// - overruns, as long as the session lives: at the deadline of a lost one the process ends;
/// - once a clock has done what is not assumed of it, everything that is a matter of deadlines and sessions.
#[derive(Debug)]
pub struct RunsOnLease {
    ttl: u64,
    grace: u64,
    leases: BTreeMap<SlotNo, Lease>,
    /// Until when a session held a slot with a token, where it does no more.
    held_until: BTreeMap<(SlotNo, FencingToken, SessionId), u64>,
    sessions: BTreeMap<SessionId, u64>,
    runs: BTreeMap<usize, BTreeMap<SlotNo, Run>>,
    /// The largest tokens that a process has ended, or offered to give back.
    floors: BTreeMap<(usize, SlotNo), FencingToken>,
    torn: BTreeSet<(SlotNo, FencingToken)>,
    frozen: BTreeSet<usize>,
    lost_at: Option<u64>,
    aware: BTreeSet<usize>,
    clocks_broken: bool,
    /// No deadline of a runner passes before this time.
    look_at: u64,
}

impl RunsOnLease {
    /// For sessions of this TTL, and runners that have this grace after they were aborted, in nanoseconds.
    #[must_use]
    pub fn new(ttl: u64, grace: u64) -> Self {
        Self {
            ttl,
            grace,
            leases: BTreeMap::new(),
            held_until: BTreeMap::new(),
            sessions: BTreeMap::new(),
            runs: BTreeMap::new(),
            floors: BTreeMap::new(),
            torn: BTreeSet::new(),
            frozen: BTreeSet::new(),
            lost_at: None,
            aware: BTreeSet::new(),
            clocks_broken: false,
            look_at: u64::MAX,
        }
    }

    fn is_unaware(&self, at: u64, node: usize) -> bool {
        self.lost_at.is_some_and(|lost_at| at < lost_at + self.ttl) && !self.aware.contains(&node)
    }

    fn started(
        &mut self,
        at: u64,
        node: usize,
        slot: SlotNo,
        run: Run,
        session: Option<SessionId>,
    ) -> Result<(), String> {
        let token = run.token;
        if self.runs.get(&node).is_some_and(|runs| runs.contains_key(&slot)) {
            return Err(format!("n{node} starts {slot} beside another runner of it"));
        }
        let floor = self.floors.get(&(node, slot)).copied().unwrap_or_default();
        if token <= floor {
            return Err(format!("n{node} starts {slot} {token} after it ended or gave back {floor}"));
        }
        if !self.clocks_broken {
            if at >= run.deadline {
                return Err(format!("n{node} starts {slot} {token} after its deadline"));
            }
            let lease = self.leases.get(&slot).copied().unwrap_or_default();
            let ends = session.and_then(|session| self.sessions.get(&session));
            if let Some(ends) = ends.filter(|ends| run.deadline > **ends + ROUNDING && self.lost_at.is_none()) {
                let by = run.deadline - ends;
                return Err(format!("n{node} starts {slot} for {by} ns longer than its session lives"));
            }
            let exempt = self.is_unaware(at, node) || self.torn.contains(&(slot, token));
            if !exempt && (session.is_none() || lease.holder != session || lease.token != token) {
                return Err(format!("n{node} starts {slot} {token} under {session:?} without the lease: {lease:?}"));
            }
        }
        self.look_at = self.look_at.min(run.deadline);
        self.runs.entry(node).or_default().insert(slot, run);
        Ok(())
    }

    fn prolonged(
        &mut self,
        node: usize,
        deadline: u64,
        except: &[SlotNo],
        session: Option<SessionId>,
        sent_at: u64,
    ) -> Result<(), String> {
        // What a failover has undone of a session's extension, the quiet time outlasts.
        let undone = self.lost_at.is_some_and(|lost_at| sent_at <= lost_at);
        if !self.clocks_broken
            && !undone
            && let Some(ends) = session.and_then(|session| self.sessions.get(&session))
            && deadline > ends + ROUNDING
        {
            let by = deadline - ends;
            return Err(format!("n{node} believes in its session for {by} ns longer than the store"));
        }
        let Some(runs) = self.runs.get_mut(&node) else { return Ok(()) };
        for (slot, run) in runs.iter_mut().filter(|(slot, _)| !except.contains(slot)) {
            let lease = self.leases.get(slot).copied().unwrap_or_default();
            let holds = session.is_some_and(|session| {
                let held_until = self.held_until.get(&(*slot, run.token, session)).copied();
                (lease.holder, lease.token) == (Some(session), run.token) || held_until.is_some_and(|t| t >= sent_at)
            });
            if !holds {
                let token = run.token;
                return Err(format!(
                    "n{node} goes on with {slot} {token} under {session:?}, but the record is {lease:?}"
                ));
            }
            if !self.clocks_broken && deadline + ROUNDING < run.deadline {
                return Err(format!("n{node}: the deadline of {slot} goes back from {} to {deadline}", run.deadline));
            }
            run.deadline = deadline;
        }
        Ok(())
    }

    /// Whether all runners have ended by their deadlines.
    fn look(&mut self, at: u64) -> Result<(), String> {
        if at <= self.look_at.saturating_add(ROUNDING) || self.clocks_broken {
            return Ok(());
        }
        self.look_at = u64::MAX;
        for (node, runs) in self.runs.iter().filter(|(node, _)| !self.frozen.contains(node)) {
            for (slot, run) in runs {
                let gone_by = run.gone_by(self.grace);
                if at > gone_by + ROUNDING {
                    return Err(format!("n{node} runs {slot} {} past its deadline", run.token));
                }
                self.look_at = self.look_at.min(gone_by);
            }
        }
        Ok(())
    }
}

impl Oracle for RunsOnLease {
    fn promise(&self) -> &'static str {
        "S7"
    }

    fn see(&mut self, at: u64, fact: &Fact) -> Result<(), String> {
        match fact {
            Fact::ClockBreaks { .. } => self.clocks_broken = true,
            Fact::Opens { session, ends, .. } | Fact::Extends { session, ends } => {
                self.sessions.insert(*session, *ends);
            }
            Fact::Closes { session, .. } => {
                self.sessions.remove(session);
            }
            Fact::Changes { slot, before, after, .. } => {
                if let Some(holder) = before.holder
                    && (before.holder, before.token) != (after.holder, after.token)
                {
                    self.held_until.insert((*slot, before.token, holder), at);
                }
                if let Some(holder) = after.holder {
                    self.held_until.remove(&(*slot, after.token, holder));
                }
                self.leases.insert(*slot, *after);
            }
            Fact::Loses { .. } => {
                self.lost_at = Some(at);
                self.aware.clear();
            }
            Fact::Hears { node, present: true } => {
                self.aware.insert(*node);
            }
            Fact::Tears { slot, token } => {
                self.torn.insert((*slot, *token));
            }
            Fact::Sends { node, gives, .. } => {
                for (slot, token) in gives {
                    let floor = self.floors.entry((*node, *slot)).or_default();
                    *floor = (*floor).max(*token);
                }
            }
            Fact::Starts { node, slot, token, deadline, session } => {
                let run = Run { token: *token, deadline: *deadline, aborted: false, overrun: None };
                self.started(at, *node, *slot, run, *session)?;
            }
            Fact::Prolongs { node, deadline, except, session, sent_at } => {
                self.prolonged(*node, *deadline, except, *session, *sent_at)?;
            }
            Fact::Stops { node, slot, token, .. } => {
                let run = self.runs.get(node).and_then(|runs| runs.get(slot));
                run.filter(|run| run.token == *token)
                    .ok_or_else(|| format!("n{node} stops {slot} {token}, which does not run"))?;
            }
            Fact::Aborts { node, slot, token, obeys } => {
                let run = self.runs.get_mut(node).and_then(|runs| runs.get_mut(slot));
                let Some(run) = run.filter(|run| run.token == *token) else {
                    return Err(format!("n{node} aborts {slot} {token}, which does not run"));
                };
                run.aborted = true;
                run.overrun = (!obeys).then_some(at);
                self.look_at = self.look_at.min(run.gone_by(self.grace));
            }
            Fact::Terminates { node, slot, obeys: true } => {
                return Err(format!("n{node} ends its process for {slot}, which does as it is told"));
            }
            Fact::Ends { node, slot, token, told } => {
                if let Some(runs) = self.runs.get_mut(node) {
                    runs.remove(slot);
                }
                if *told {
                    let floor = self.floors.entry((*node, *slot)).or_default();
                    *floor = (*floor).max(*token);
                }
            }
            Fact::Goes { node, how } => {
                let runs = self.runs.remove(node).unwrap_or_default();
                // After the drain timeout what still runs was aborted, be it at this very moment.
                if *how == Gone::Stopped && runs.values().any(|run| !run.aborted) {
                    return Err(format!("n{node} stops with runners: {runs:?}"));
                }
                self.frozen.remove(node);
                self.aware.remove(node);
                self.floors.retain(|(of, _), _| of != node);
            }
            Fact::Freezes { node, .. } => {
                self.frozen.insert(*node);
            }
            Fact::Thaws { node } => {
                self.frozen.remove(node);
                self.look_at = 0;
            }
            _ => {}
        }
        self.look(at)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::trace::Loss;

    fn frozen(node: usize) -> Fact {
        Fact::Freezes { node, until: 99 * S }
    }

    fn aborts(node: usize, number: u64, obeys: bool) -> Fact {
        Fact::Aborts { node, slot: SLOT, token: token(number), obeys }
    }

    fn tears(number: u64) -> Fact {
        Fact::Tears { slot: SLOT, token: token(number) }
    }

    #[test]
    fn at_most_one_run() {
        let broken = || Fact::ClockBreaks { node: 1 };
        check(
            AtMostOneRun::default,
            &[
                &[starts(1, 5), ends(1, 5), starts(2, 6)],
                &[starts(1, 5), frozen(1), starts(2, 6), ends(2, 6), Fact::Thaws { node: 1 }],
                &[starts(1, 5), aborts(1, 5, false), starts(2, 6)],
                &[starts(1, 5), tears(5), starts(2, 6)],
                &[broken(), starts(1, 5), starts(2, 6), ends(1, 5)],
                &[starts(1, 5), Fact::Goes { node: 1, how: crate::trace::Gone::Killed }, starts(2, 6)],
            ],
            &[
                (&[starts(1, 5), starts(2, 6)], "n1 runs slot 0 under 5 and n2 runs it under 6"),
                (&[starts(1, 5), aborts(1, 5, true), starts(2, 6)], "n1 runs"),
                (&[starts(1, 5), frozen(1), starts(2, 6), Fact::Thaws { node: 1 }], "n1 runs"),
                (&[starts(1, 5), tears(4), starts(2, 6)], "n1 runs"),
            ],
        );
    }

    #[test]
    fn an_overlap_that_an_assumption_allows_is_measured() {
        let mut oracle = AtMostOneRun::default();
        let facts = [Fact::ClockBreaks { node: 1 }, starts(1, 5), starts(2, 6), Fact::Calm, ends(1, 5), starts(1, 7)];
        for (second, fact) in facts.iter().enumerate() {
            oracle.see(second as u64 * S, fact).unwrap();
        }
        oracle.see(6 * S, &ends(2, 6)).unwrap();
        assert_eq!(oracle.overlap(), Overlap { times: 2, nanos: 3 * S, longest: 2 * S });
    }

    #[test]
    fn given_back_at_rest() {
        let release = || changes(By::Release, 1, lease(5, 1), lease(5, 0));
        let sends = || Fact::Sends {
            node: 1,
            call: crate::trace::CallKind::Change,
            session: Some(session(1)),
            gives: vec![(SLOT, token(5))],
            readopts: Vec::new(),
        };
        let closes = || Fact::Closes { session: session(1), why: crate::trace::SessionEnd::Closed, by: Some(1) };
        check(
            GivenBackAtRest::default,
            &[
                &[opens(1), starts(1, 5), ends(1, 5), sends(), release(), closes()],
                // An older lease is there once more, and is given back once more.
                &[
                    opens(1),
                    starts(1, 7),
                    changes(By::Loss, 0, lease(7, 1), lease(5, 1)),
                    changes(By::Release, 1, lease(5, 1), lease(5, 0)),
                ],
                // The refused release of an older session changes nothing.
                &[opens(1), starts(1, 6), changes(By::Release, 1, lease(5, 2), lease(5, 2))],
            ],
            &[
                (&[opens(1), starts(1, 5), release()], "while it runs"),
                (&[opens(1), starts(1, 7), changes(By::Release, 1, lease(5, 1), lease(5, 0))], "with 7"),
                (
                    &[
                        opens(1),
                        starts(1, 5),
                        changes(By::Loss, 0, lease(7, 1), lease(5, 1)),
                        changes(By::Release, 1, lease(5, 1), lease(5, 0)),
                    ],
                    "with 5",
                ),
                (&[opens(1), starts(1, 5), sends()], "offers to give"),
                (&[opens(1), starts(1, 5), closes()], "closes its session"),
                (&[opens(1), starts(1, 7), changes(By::Transfer, 1, lease(5, 1), lease(6, 2))], "with 7"),
            ],
        );
    }

    #[test]
    fn never_goes_back() {
        let enters = |node, bits| Fact::Enters { node, generation: Generation::from_bits(bits) };
        let goes = || Fact::Goes { node: 1, how: Gone::Killed };
        check(
            NeverGoesBack::default,
            &[&[enters(1, 5), enters(1, 6), enters(2, 5)], &[enters(1, 5), goes(), enters(1, 5)]],
            &[(&[enters(1, 5), enters(1, 6), enters(1, 5)], "n1 goes back")],
        );
    }

    #[test]
    fn taken_back_while_running() {
        let readopts = |number| Fact::Sends {
            node: 1,
            call: crate::trace::CallKind::Change,
            session: Some(session(1)),
            gives: Vec::new(),
            readopts: vec![(SLOT, token(number))],
        };
        let short = || Fact::Starts { node: 1, slot: SLOT, token: token(5), deadline: 2 * S, session: None };
        let prolongs = |except| Fact::Prolongs { node: 1, deadline: 9 * S, except, session: None, sent_at: 0 };
        check(
            TakenBackWhileRunning::default,
            &[&[starts(1, 5), readopts(5)], &[short(), prolongs(vec![]), readopts(5)]],
            &[
                (&[readopts(5)], "does not run"),
                (&[starts(1, 5), readopts(4)], "does not run"),
                (&[starts(1, 5), ends(1, 5), readopts(5)], "does not run"),
                (&[short(), prolongs(vec![SLOT]), readopts(5)], "does not run"),
            ],
        );
    }

    #[test]
    fn runs_on_lease() {
        let taken = || acquires(1, lease(0, 0), 5);
        let lost = || Fact::Loses { loss: Loss::LastWrites };
        let undone = || changes(By::Loss, 0, lease(5, 1), lease(0, 0));
        let until = |seconds, number| Fact::Starts {
            node: 1,
            slot: SLOT,
            token: token(number),
            deadline: seconds * S,
            session: Some(session(1)),
        };
        let prolongs = |deadline, except, sent_at| Fact::Prolongs {
            node: 1,
            deadline: deadline * S,
            except,
            session: Some(session(1)),
            sent_at: sent_at * S,
        };
        let hears = || Fact::Hears { node: 1, present: true };
        let by_itself = || Fact::Ends { node: 1, slot: SLOT, token: token(5), told: false };
        let sends = || Fact::Sends {
            node: 1,
            call: crate::trace::CallKind::Change,
            session: Some(session(1)),
            gives: vec![(SLOT, token(5))],
            readopts: Vec::new(),
        };
        check(
            || RunsOnLease::new(10 * S, S),
            &[
                &[opens(1), taken(), starts(1, 5), ends(1, 5)],
                &[opens(1), taken(), starts(1, 5), by_itself(), starts(1, 5)],
                &[opens(1), taken(), lost(), undone(), starts(1, 5)], // it has not heard of it
                &[opens(1), taken(), tears(5), changes(By::Operator, 0, lease(5, 1), lease(5, 0)), starts(1, 5)],
                &[opens(1), taken(), until(4, 5), prolongs(99, vec![], 1), Fact::Calm, Fact::Calm],
                &[opens(1), taken(), until(99, 5), lost(), undone(), hears(), prolongs(99, vec![], 5)],
                &[opens(1), taken(), until(99, 5), lost(), undone(), hears(), prolongs(100, vec![SLOT], 6)],
                &[opens(1), taken(), until(4, 5), frozen(1), Fact::Calm, Fact::Calm],
                &[opens(1), taken(), until(4, 5), aborts(1, 5, false), Fact::Calm],
                &[Fact::ClockBreaks { node: 1 }, opens(1), taken(), until(4, 5), Fact::Calm, Fact::Calm],
            ],
            &[
                (&[opens(1), starts(1, 5)], "without the lease"),
                (&[opens(1), taken(), starts(2, 5)], "without the lease"),
                (&[opens(1), taken(), starts(1, 4)], "without the lease"),
                (&[opens(1), taken(), lost(), undone(), hears(), starts(1, 5)], "without the lease"),
                (&[opens(1), taken(), starts(1, 5), starts(1, 5)], "beside another"),
                (&[opens(1), taken(), starts(1, 5), ends(1, 5), starts(1, 5)], "after it ended or gave back"),
                (&[opens(1), taken(), sends(), starts(1, 5)], "after it ended or gave back"),
                (&[opens(1), taken(), until(3, 5)], "after its deadline"),
                (&[opens(1), taken(), until(1001, 5)], "longer than its session lives"),
                (&[opens(1), taken(), until(4, 5), Fact::Calm, Fact::Calm], "past its deadline"),
                (&[opens(1), taken(), until(4, 5), aborts(1, 5, true), Fact::Calm], "past its deadline"),
                (&[opens(1), taken(), until(4, 5), aborts(1, 5, false), Fact::Calm, Fact::Calm], "past its deadline"),
                (&[opens(1), taken(), until(4, 5), frozen(1), Fact::Thaws { node: 1 }], "past its deadline"),
                (&[opens(1), taken(), until(99, 5), prolongs(1001, vec![], 1)], "longer than the store"),
                (&[opens(1), taken(), until(99, 5), prolongs(98, vec![], 1)], "goes back"),
                (&[opens(1), taken(), until(99, 5), lost(), undone(), prolongs(99, vec![], 6)], "but the record is"),
                (&[opens(1), taken(), aborts(1, 5, true)], "does not run"),
                (&[opens(1), taken(), starts(1, 5), Fact::Goes { node: 1, how: Gone::Stopped }], "stops with runners"),
                (&[Fact::Stops { node: 1, slot: SLOT, token: token(5), returns: false }], "does not run"),
                (&[Fact::Terminates { node: 1, slot: SLOT, obeys: true }], "does as it is told"),
            ],
        );
    }
}
