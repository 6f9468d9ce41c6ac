//! Promises about the history of the store: who holds what, and with which token.

use std::collections::{BTreeMap, BTreeSet};

use rendez_core::{FencingToken, OperationId, SessionId};

use super::Oracle;
use crate::trace::{By, Fact, Lease, SlotNo};

/// S1: at every point of the store's history, a slot has at most one live holder. Judged by what the store has
/// *answered*: who was told that it holds a slot holds it until the record says otherwise or its session ends.
#[derive(Debug, Default)]
pub struct OneHolder {
    sessions: BTreeSet<SessionId>,
    told: BTreeMap<SlotNo, BTreeSet<SessionId>>,
    records: BTreeMap<SlotNo, Lease>,
}

impl Oracle for OneHolder {
    fn promise(&self) -> &'static str {
        "S1"
    }

    fn see(&mut self, _at: u64, fact: &Fact) -> Result<(), String> {
        match fact {
            Fact::Opens { session, .. } => {
                self.sessions.insert(*session);
            }
            Fact::Closes { session, .. } => {
                self.sessions.remove(session);
            }
            // What was answered before the loss does not count any more (the quiet time outlasts it).
            Fact::Loses { .. } => self.told.clear(),
            Fact::Changes { slot, after, .. } => {
                if let Some(told) = self.told.get_mut(slot) {
                    told.retain(|session| Some(*session) == after.holder);
                }
                self.records.insert(*slot, *after);
            }
            Fact::Grants { slot, session, token } => {
                let record = self.records.get(slot).copied().unwrap_or_default();
                if record.holder != Some(*session) || record.token != *token {
                    return Err(format!(
                        "{session} is told that it holds {slot} {token}, but the record is {record:?}"
                    ));
                }
                let told = self.told.entry(*slot).or_default();
                told.retain(|other| self.sessions.contains(other));
                told.insert(*session);
                if told.len() > 1 {
                    return Err(format!("{slot} has the live holders {told:?}"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// S4: tokens rise strictly with every grant of a slot, and runners start with rising ones. Exempt: all data were
/// lost and nobody who remembers is left (the store declares `best_effort`); what was granted before may still start, if
/// the answer was under way. Exempt, too: an operator took the lease away by force, and its holder has not heard of it.
/// Once a clock has done what is not assumed of
/// it, only grants are judged: a node that does not know that its session has ended may start an old runner again.
#[derive(Debug, Default)]
pub struct TokensRise {
    granted: BTreeMap<SlotNo, FencingToken>,
    started: BTreeMap<SlotNo, FencingToken>,
    all: BTreeSet<(SlotNo, FencingToken)>,
    /// Grants from before the loss of everything, higher than what was remembered; and those that an operator took away.
    excused: BTreeSet<(SlotNo, FencingToken)>,
    clocks_broken: bool,
}

impl Oracle for TokensRise {
    fn promise(&self) -> &'static str {
        "S4"
    }

    fn see(&mut self, _at: u64, fact: &Fact) -> Result<(), String> {
        match fact {
            Fact::Changes { slot, by: By::Acquire | By::Transfer, before, after, .. }
                if after.holder.is_some() && (before.holder, before.token) != (after.holder, after.token) =>
            {
                let highest = self.granted.get(slot).copied().unwrap_or_default();
                if after.token <= highest {
                    return Err(format!("{slot} is granted with {} after {highest}", after.token));
                }
                self.granted.insert(*slot, after.token);
                self.all.insert((*slot, after.token));
            }
            Fact::Remembers { token } => {
                self.excused.extend(self.all.iter().filter(|(_, granted)| granted > token));
                self.granted.retain(|_, granted| *granted <= *token);
                self.started.retain(|_, started| *started <= *token);
            }
            Fact::Tears { slot, token } => {
                self.excused.insert((*slot, *token));
            }
            Fact::ClockBreaks { .. } => self.clocks_broken = true,
            Fact::Starts { slot, token, .. } if !self.clocks_broken && !self.excused.contains(&(*slot, *token)) => {
                let highest = self.started.get(slot).copied().unwrap_or_default();
                if *token < highest {
                    return Err(format!("{slot} starts with {token} after {highest}"));
                }
                self.started.insert(*slot, *token);
            }
            _ => {}
        }
        Ok(())
    }
}

/// S5: a healthy lease is never stolen. A grant to another follows the death of the holding session, a release, a
/// transfer, an operator's force, or (re-adoption, failover) a loss of data.
#[derive(Debug, Default)]
pub struct NotStolen {
    sessions: BTreeSet<SessionId>,
}

impl Oracle for NotStolen {
    fn promise(&self) -> &'static str {
        "S5"
    }

    fn see(&mut self, _at: u64, fact: &Fact) -> Result<(), String> {
        match fact {
            Fact::Opens { session, .. } => {
                self.sessions.insert(*session);
            }
            Fact::Closes { session, .. } => {
                self.sessions.remove(session);
            }
            Fact::Changes { slot, by, session, before, after, .. } => {
                let Some(holder) = before.holder.filter(|holder| self.sessions.contains(holder)) else { return Ok(()) };
                let own = *session == Some(holder);
                let other_way = matches!(by, By::Operator | By::Loss | By::Readopt);
                if after.holder != Some(holder) && !own && !other_way {
                    return Err(format!("{slot} was taken from {holder} by {session:?} ({by:?})"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// S8: a stale session or token renews, releases and transfers nothing, however late the request arrives.
#[derive(Debug, Default)]
pub struct StaleDoesNothing {
    sessions: BTreeSet<SessionId>,
}

impl Oracle for StaleDoesNothing {
    fn promise(&self) -> &'static str {
        "S8"
    }

    fn see(&mut self, _at: u64, fact: &Fact) -> Result<(), String> {
        match fact {
            Fact::Opens { session, .. } => {
                self.sessions.insert(*session);
            }
            Fact::Closes { session, .. } => {
                self.sessions.remove(session);
            }
            Fact::Extends { session, .. } if !self.sessions.contains(session) => {
                return Err(format!("{session}, which has ended, is extended"));
            }
            Fact::Changes { slot, by, session: Some(session), named, before, .. } => {
                if !self.sessions.contains(session) {
                    return Err(format!("{session}, which has ended, changes {slot} ({by:?})"));
                }
                let current = match by {
                    By::Release | By::Transfer | By::Checkpoint => {
                        *named == before.token && before.holder == Some(*session)
                    }
                    By::Acquire | By::Offer => *named == before.token,
                    // What was let go is not taken back, though its token is the last one.
                    By::Readopt => *named > before.token || (*named == before.token && before.holder.is_some()),
                    By::Operator | By::Loss => true,
                };
                if !current {
                    return Err(format!("{session} with {named} changes {slot} ({by:?}), which was {before:?}"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// S9: the retry of a request whose first reply was lost has the effect of one. No request grants twice; what was lost
/// with the store's data may be granted anew, and so may what was deleted with its workload: with the record went the
/// memory of the request. The lease is good all the same, for its session lives and its token is higher than any before.
#[derive(Debug, Default)]
pub struct OnceOnly {
    granted: BTreeMap<OperationId, (SlotNo, FencingToken)>,
}

impl Oracle for OnceOnly {
    fn promise(&self) -> &'static str {
        "S9"
    }

    fn see(&mut self, _at: u64, fact: &Fact) -> Result<(), String> {
        match fact {
            Fact::Loses { .. } => self.granted.clear(),
            Fact::Changes { slot, by: By::Operator, after, .. } if after.token == FencingToken::NONE => {
                self.granted.retain(|_, (granted, _)| granted != slot);
            }
            Fact::Changes { slot, by: By::Acquire | By::Transfer, before, after, .. }
                if before.token != after.token =>
            {
                let Some(operation) = after.granted_by else { return Ok(()) };
                if let Some((slot, token)) = self.granted.insert(operation, (*slot, after.token)) {
                    return Err(format!("{operation} has granted {slot} {token} and again {}", after.token));
                }
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
    use crate::trace::Loss;

    fn grants(who: u128, number: u64) -> Fact {
        Fact::Grants { slot: SLOT, session: session(who), token: token(number) }
    }

    #[test]
    fn one_holder() {
        check(
            OneHolder::default,
            &[
                &[opens(1), acquires(1, lease(0, 0), 5), grants(1, 5), grants(1, 5)],
                &[
                    opens(1),
                    opens(2),
                    acquires(1, lease(0, 0), 5),
                    grants(1, 5),
                    closes(1),
                    acquires(2, lease(5, 1), 6),
                    grants(2, 6),
                ],
                &[
                    opens(1),
                    opens(2),
                    acquires(1, lease(0, 0), 5),
                    grants(1, 5),
                    Fact::Loses { loss: Loss::LastWrites },
                    changes(By::Loss, 0, lease(5, 1), lease(0, 0)),
                    acquires(2, lease(0, 0), 6),
                    grants(2, 6),
                ],
            ],
            &[
                (&[opens(1), grants(1, 5)], "but the record is"),
                (&[opens(1), opens(2), acquires(1, lease(0, 0), 5), grants(1, 5), grants(2, 5)], "but the record is"),
                (&[opens(1), acquires(1, lease(0, 0), 5), grants(1, 4)], "but the record is"),
            ],
        );
    }

    #[test]
    fn tokens_rise() {
        let taken = acquires(1, lease(0, 0), 5);
        let release = changes(By::Release, 1, lease(5, 1), lease(5, 0));
        let transfer = |number| changes(By::Transfer, 1, lease(5, 1), lease(number, 2));
        check(
            TokensRise::default,
            &[
                &[taken.clone(), release.clone(), acquires(2, lease(5, 0), 6), starts(2, 6), ends(2, 6), starts(2, 6)],
                &[taken.clone(), transfer(6)],
                &[Fact::ClockBreaks { node: 1 }, starts(1, 6), ends(1, 6), starts(2, 5)],
                &[acquires(1, lease(0, 0), 9), Fact::Remembers { token: token(3) }, acquires(1, lease(0, 0), 4)],
                &[
                    acquires(1, lease(0, 0), 9),
                    Fact::Remembers { token: token(3) },
                    starts(1, 9),
                    acquires(2, lease(0, 0), 4),
                    starts(2, 4),
                ],
                &[starts(1, 5), Fact::Tears { slot: SLOT, token: token(5) }, starts(2, 6), ends(1, 5), starts(1, 5)],
            ],
            &[
                (&[taken.clone(), release, acquires(2, lease(5, 0), 5)], "granted with 5 after 5"),
                (&[taken.clone(), transfer(5)], "granted with 5 after 5"),
                (&[starts(1, 6), ends(1, 6), starts(2, 5)], "starts with 5 after 6"),
                (
                    &[acquires(1, lease(0, 0), 9), Fact::Remembers { token: token(9) }, acquires(1, lease(0, 0), 4)],
                    "4 after 9",
                ),
            ],
        );
    }

    #[test]
    fn not_stolen() {
        let held = lease(5, 1);
        check(
            NotStolen::default,
            &[
                &[opens(1), opens(2), closes(1), acquires(2, held, 6)],
                &[opens(1), opens(2), changes(By::Transfer, 1, held, lease(6, 2))],
                &[opens(1), opens(2), changes(By::Operator, 0, held, lease(5, 0)), acquires(2, lease(5, 0), 6)],
                &[opens(1), changes(By::Offer, 2, held, held)],
            ],
            &[
                (&[opens(1), opens(2), acquires(2, held, 6)], "was taken from"),
                (&[opens(1), opens(2), changes(By::Transfer, 2, held, lease(6, 2))], "Transfer"),
                (&[opens(1), opens(2), changes(By::Release, 2, held, lease(5, 0))], "Release"),
            ],
        );
    }

    #[test]
    fn stale_does_nothing() {
        let extends = Fact::Extends { session: session(1), ends: 99 * S };
        let held = lease(5, 1);
        let stale = |by, who: u128, named| Fact::Changes {
            slot: SLOT,
            by,
            session: Some(session(who)),
            named: token(named),
            before: held,
            after: lease(5, 0),
            holds: None,
            moved: false,
        };
        check(
            StaleDoesNothing::default,
            &[
                &[opens(1), extends.clone(), changes(By::Release, 1, held, lease(5, 0))],
                &[opens(2), changes(By::Offer, 2, held, held)],
                &[opens(2), stale(By::Readopt, 2, 6)],
            ],
            &[
                (&[opens(1), closes(1), extends.clone()], "is extended"),
                (&[opens(1), closes(1), changes(By::Release, 1, held, lease(5, 0))], "which has ended, changes"),
                (&[opens(1), stale(By::Release, 1, 4)], "with 4 changes"),
                (&[opens(2), stale(By::Transfer, 2, 5)], "with 5 changes"),
                (&[opens(2), stale(By::Acquire, 2, 4)], "with 4 changes"),
                (&[opens(2), stale(By::Readopt, 2, 4)], "with 4 changes"),
                (&[opens(1), changes(By::Readopt, 1, lease(5, 0), held)], "which was"),
            ],
        );
    }

    #[test]
    fn once_only() {
        let again = Fact::Changes {
            slot: SLOT,
            by: By::Acquire,
            session: Some(session(1)),
            named: token(5),
            before: lease(5, 1),
            after: Lease { granted_by: lease(5, 1).granted_by, ..lease(6, 1) },
            holds: None,
            moved: false,
        };
        let first = acquires(1, lease(0, 0), 5);
        check(
            OnceOnly::default,
            &[
                &[first.clone(), acquires(1, lease(5, 1), 6)],
                &[first.clone(), Fact::Loses { loss: Loss::LastWrites }, again.clone()],
                &[first.clone(), changes(By::Operator, 0, lease(5, 0), lease(0, 0)), again.clone()],
            ],
            &[
                (&[first.clone(), again.clone()], "has granted"),
                (&[first, changes(By::Operator, 0, lease(5, 1), lease(5, 0)), again], "has granted"),
            ],
        );
    }
}
