//! Linearizability of what the store answers, a slot at a time: each request takes effect at one moment between its arrival
//! and its answer, in one order that explains all answers. Everything else that is promised rests on this.

use std::collections::{BTreeMap, BTreeSet};

use rendez_core::{Conflict, FencingToken, OperationId, SessionId};
use todc_utils::linearizability::WGLChecker;
use todc_utils::linearizability::history::{Action, History};
use todc_utils::specifications::Specification;

use super::Oracle;
use crate::trace::{Ask, By, Fact, Lease, Shown, SlotNo, Standing};

/// A request that was not answered after this time, in nanoseconds, counts as one that never is: it may take effect at any
/// later time, or not at all. An answer that comes nevertheless, to a process that was frozen, is not looked at.
const OPEN_AFTER: u64 = 3_000_000_000;

/// The most steps that are looked at together: orders are tried, and their number grows with what is under way at once. A
/// slot that is never left alone for so long is not judged until it is.
const STEPS_MAX: usize = 48;

/// The most unanswered requests that are kept for later. The oldest ones give way: a request that has come to a store acts
/// soon or never.
const OPEN_MAX: usize = 6;

/// What is known of a slot at one moment; nothing after a loss of data.
type Place = Option<Known>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Known {
    token: FencingToken,
    /// That is the token; if not, it is a higher one, which nobody was told yet.
    told: bool,
    holder: Option<SessionId>,
    life: Life,
    granted_by: Option<OperationId>,
    offer: Option<Standing>,
}

/// Whether the holder's session lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Life {
    Lives,
    Ended,
    Unknown,
}

impl Known {
    fn of(shown: &Shown, life: Life) -> Self {
        let Shown { lease, offer } = *shown;
        let Lease { token, holder, granted_by } = lease;
        Self { token, told: true, holder, life, granted_by, offer }
    }

    fn may_have(&self, token: FencingToken) -> bool {
        if self.told { token == self.token } else { token > self.token }
    }

    /// Whether this is what an answer shows.
    fn is(&self, shown: &Shown) -> bool {
        let lease = &shown.lease;
        let same = (self.holder, self.granted_by, self.offer) == (lease.holder, lease.granted_by, shown.offer);
        same && self.may_have(lease.token)
    }

    fn granted(self, holder: SessionId, operation: Option<OperationId>) -> Self {
        Self { told: false, holder: Some(holder), life: Life::Lives, granted_by: operation, offer: None, ..self }
    }
}

/// One step of a slot's history.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// What was known before the others.
    Begins(Place),
    /// A session has ended.
    Ends(SessionId),
    /// An operator has changed the record.
    Operator(Lease, Lease),
    /// A request, and its answer if there is one.
    Request(Request, Option<(Option<Conflict>, Shown)>),
}

#[derive(Debug, Clone, Copy)]
struct Request {
    session: Option<SessionId>,
    named: FencingToken,
    what: Ask,
}

impl Request {
    /// Whether the acting session holds the slot, and names its token.
    fn owns(&self, known: &Known) -> bool {
        self.session.is_some() && known.holder == self.session && known.may_have(self.named)
    }

    /// Whether this is the retry of a request that was done.
    fn is_retry(&self, known: &Known) -> bool {
        match self.what {
            Ask::Acquires { operation } => known.granted_by == Some(operation) && known.holder == self.session,
            Ask::Transfers { operation, .. } => known.granted_by == Some(operation),
            Ask::Reads
            | Ask::Releases
            | Ask::Offers { .. }
            | Ask::Withdraws { .. }
            | Ask::Accepts { .. }
            | Ask::Refuses { .. }
            | Ask::Saves
            | Ask::Readopts => false,
        }
    }

    /// What the slot is after this, if it is done now; nothing if it cannot be.
    fn done(&self, known: &Known) -> Option<Known> {
        let Some(session) = self.session else { return Some(*known) };
        if self.is_retry(known) {
            return Some(*known);
        }
        let current = known.may_have(self.named);
        let now = Known { token: self.named, told: true, ..*known };
        let owned = self.owns(known).then_some(now);
        let standing = |offer: OperationId| known.offer.filter(|standing| standing.offer == offer);
        let to_me = |offer| standing(offer).filter(|standing| current && standing.to == session);
        match self.what {
            Ask::Reads => Some(*known),
            Ask::Saves => owned,
            Ask::Acquires { operation } => {
                let other = known.holder.is_some_and(|holder| holder != session) && known.life == Life::Lives;
                (current && !other).then(|| now.granted(session, Some(operation)))
            }
            Ask::Releases if current && known.holder.is_none() => Some(now),
            Ask::Releases => owned.map(|now| Known { holder: None, offer: None, ..now }),
            Ask::Offers { offer, to } => owned.map(|now| match standing(offer) {
                Some(_) => now,
                None => Known { offer: Some(Standing { offer, to, ready: false }), ..now },
            }),
            Ask::Withdraws { offer } => owned.map(|now| match standing(offer) {
                Some(_) => Known { offer: None, ..now },
                None => now,
            }),
            Ask::Accepts { offer } => {
                to_me(offer).map(|standing| Known { offer: Some(Standing { ready: true, ..standing }), ..now })
            }
            Ask::Refuses { offer } => to_me(offer).map(|_| Known { offer: None, ..now }),
            Ask::Transfers { operation, offer } => {
                let standing = standing(offer).filter(|standing| standing.ready);
                owned.zip(standing).map(|(now, standing)| now.granted(standing.to, Some(operation)))
            }
            Ask::Readopts if current && known.holder == Some(session) => Some(now),
            // It was let go; unless this token is a later one.
            Ask::Readopts if current && known.holder.is_none() => {
                (!known.told).then(|| Known { told: true, ..now.granted(session, None) })
            }
            Ask::Readopts if current => Some(Known { holder: Some(session), life: Life::Lives, offer: None, ..now }),
            Ask::Readopts => (self.named > known.token).then(|| Known { told: true, ..now.granted(session, None) }),
        }
    }

    /// Whether it may be refused for this reason. What hangs on time or on other records may always be.
    fn may_be_refused(&self, known: &Known, conflict: Conflict) -> bool {
        let current = known.may_have(self.named);
        let held_by_other = known.holder.is_some() && known.holder != self.session;
        match (conflict, self.what) {
            (Conflict::Quiet, Ask::Acquires { .. } | Ask::Transfers { .. }) => true,
            (Conflict::Token, Ask::Readopts) => self.named < known.token || self.named == FencingToken::NONE,
            (Conflict::Token, _) => !current && !self.is_retry(known),
            (Conflict::Held, Ask::Acquires { .. }) => current && held_by_other && known.life != Life::Ended,
            (Conflict::Held, Ask::Readopts) => current && held_by_other,
            (Conflict::NotHolder, Ask::Releases) => current && held_by_other,
            (Conflict::NotHolder, Ask::Readopts) => current && known.holder.is_none(),
            (Conflict::NotHolder, Ask::Offers { .. } | Ask::Withdraws { .. } | Ask::Transfers { .. } | Ask::Saves) => {
                current && known.holder != self.session
            }
            (Conflict::ReceiverGone, Ask::Offers { .. } | Ask::Transfers { .. }) => self.owns(known),
            (Conflict::Offer, Ask::Accepts { .. } | Ask::Refuses { .. }) => current,
            (Conflict::Offer, Ask::Transfers { .. }) => self.owns(known),
            (Conflict::NotQuiet, Ask::Readopts) => self.named >= known.token,
            (_, _) => false,
        }
    }

    /// Whether an answer fits what is known of the slot, and what is known after it.
    fn answered(&self, place: Place, refused: Option<Conflict>, shown: &Shown) -> (bool, Place) {
        let Some(known) = place else {
            // The acting session lives.
            let own = self.session.is_some() && shown.lease.holder == self.session;
            return (true, Some(Known::of(shown, if own { Life::Lives } else { Life::Unknown })));
        };
        let after = match refused {
            None => self.done(&known),
            Some(conflict) => {
                let standing = Known { token: shown.lease.token, told: true, ..known };
                (known.may_have(shown.lease.token) && self.may_be_refused(&standing, conflict)).then_some(known)
            }
        };
        match after.filter(|after| after.is(shown)) {
            Some(after) => (true, Some(Known { token: shown.lease.token, told: true, ..after })),
            None => (false, place),
        }
    }
}

/// The rules of the contract for one slot, once more and on their own.
struct OneSlot;

impl Specification for OneSlot {
    type State = Place;
    type Operation = Step;

    fn init() -> Place {
        None
    }

    fn apply(step: &Step, place: &Place) -> (bool, Place) {
        match step {
            Step::Begins(place) => (true, *place),
            Step::Ends(session) => {
                let ended = |known: Known| match known.holder == Some(*session) {
                    true => Known { life: Life::Ended, ..known },
                    false => known,
                };
                (true, place.map(ended))
            }
            Step::Operator(before, after) => {
                let fits = place.is_none_or(|known| known.holder == before.holder && known.may_have(before.token));
                let offer = place.and_then(|known| known.offer).filter(|_| before.holder == after.holder);
                let life = place.map_or(Life::Unknown, |known| known.life);
                (fits, Some(Known { offer, ..Known::of(&Shown { lease: *after, offer: None }, life) }))
            }
            Step::Request(request, Some((refused, shown))) => request.answered(*place, *refused, shown),
            // It can be last, and so have no effect for the others.
            Step::Request(request, None) => (true, place.map(|known| request.done(&known).unwrap_or(known))),
        }
    }
}

/// A request under way.
#[derive(Debug)]
struct Pending {
    since: u64,
    /// Where its call is in the window.
    process: usize,
    request: Request,
    /// Another step was taken meanwhile.
    crowded: bool,
}

/// One slot's history since it was last left alone: what was known then, and all steps since.
#[derive(Debug, Default)]
struct Window {
    place: Place,
    /// Unanswered requests from before.
    open: Vec<Request>,
    steps: Vec<(usize, Action<Step>)>,
    processes: usize,
    pending: BTreeMap<u64, Pending>,
    /// Processes of the window whose request will not be answered.
    unanswered: Vec<(usize, Request)>,
}

impl Window {
    fn call(&mut self, step: Step) -> usize {
        self.processes += 1;
        self.steps.push((self.processes, Action::Call(step)));
        self.processes
    }

    /// Requests that were not answered for too long are waited for no longer.
    fn expire(&mut self, at: u64) {
        let unanswered = &mut self.unanswered;
        self.pending.retain(|_, pending| {
            let waits = at < pending.since + OPEN_AFTER;
            if !waits {
                unanswered.push((pending.process, pending.request));
            }
            waits
        });
    }

    /// A step that is taken at one moment.
    fn takes(&mut self, at: u64, step: Step) -> bool {
        self.expire(at);
        if self.steps.is_empty() && self.open.is_empty() {
            let (fits, place) = OneSlot::apply(&step, &self.place);
            self.place = place;
            return fits;
        }
        self.pending.values_mut().for_each(|pending| pending.crowded = true);
        let process = self.call(step);
        self.steps.push((process, Action::Response(step)));
        true
    }

    fn asks(&mut self, at: u64, ask: u64, request: Request) {
        self.expire(at);
        if self.steps.len() >= 2 * STEPS_MAX {
            *self = Self::default();
        }
        self.pending.values_mut().for_each(|pending| pending.crowded = true);
        let crowded = !self.pending.is_empty();
        let process = self.call(Step::Request(request, None));
        self.pending.insert(ask, Pending { since: at, process, request, crowded });
    }

    /// An answer has come; says whether some order explains everything up to here, if the slot was left alone by it.
    fn answers(&mut self, at: u64, ask: u64, refused: Option<Conflict>, shown: Shown) -> bool {
        self.expire(at);
        let Some(Pending { process, request, crowded, .. }) = self.pending.remove(&ask) else { return true };
        self.steps.push((process, Action::Response(Step::Request(request, Some((refused, shown))))));
        crowded || self.close(request, refused, shown)
    }

    /// Judges the window, and begins the next one with what the last answer shows.
    fn close(&mut self, last: Request, refused: Option<Conflict>, shown: Shown) -> bool {
        let steps = std::mem::take(&mut self.steps);
        let (_, after) = last.answered(None, refused, &shown);
        let before = std::mem::replace(&mut self.place, after);
        let unanswered = std::mem::take(&mut self.unanswered);
        if steps.len() == 2 && self.open.is_empty() {
            self.processes = 0;
            return last.answered(before, refused, &shown).0;
        }
        // A process of its own for each request: those from before come first, and nobody hears their answers.
        let mut actions = vec![(0, Action::Call(Step::Begins(before))), (0, Action::Response(Step::Begins(before)))];
        let begin = self.processes + 1;
        let open = self.open.iter().enumerate().map(|(at, request)| (begin + at, *request));
        let unheard: Vec<(usize, Request)> = open.collect();
        actions
            .extend(unheard.iter().map(|(process, request)| (*process, Action::Call(Step::Request(*request, None)))));
        actions.extend(steps);
        for (process, request) in unanswered.iter().chain(&unheard) {
            actions.push((*process, Action::Response(Step::Request(*request, None))));
        }
        self.processes = 0;
        self.open.extend(unanswered.into_iter().map(|(_, request)| request));
        // Whoever names a lower token can do nothing any more; nor can who only reads.
        self.open.retain(|open| open.named >= shown.lease.token && open.session.is_some());
        let surplus = self.open.len().saturating_sub(OPEN_MAX);
        self.open.drain(..surplus);
        WGLChecker::<OneSlot>::is_linearizable(History::from_actions(actions))
    }
}

/// Some order of the requests about a slot, each between its arrival at the store and its answer, explains all answers:
/// those to changes, and the records that heartbeats and snapshots bring. Unanswered requests may be done at any time, or
/// never. Ends of sessions and operators' changes are taken from the store's history. A loss of data begins a new history.
#[derive(Debug, Default)]
pub struct Linearizable {
    sessions: BTreeSet<SessionId>,
    windows: BTreeMap<SlotNo, Window>,
}

impl Oracle for Linearizable {
    fn promise(&self) -> &'static str {
        "linearizability"
    }

    fn see(&mut self, at: u64, fact: &Fact) -> Result<(), String> {
        let explained = match fact {
            Fact::Asks { ask, slot, session, named, what } => {
                let request = Request { session: *session, named: *named, what: *what };
                self.windows.entry(*slot).or_default().asks(at, *ask, request);
                true
            }
            Fact::Answers { ask, slot, refused, shows } => {
                let window = self.windows.entry(*slot).or_default();
                let explained = window.answers(at, *ask, *refused, *shows);
                if let Some(known) = window.place.as_mut().filter(|_| window.steps.is_empty()) {
                    let lives = known.holder.is_some_and(|holder| self.sessions.contains(&holder));
                    known.life = if lives { Life::Lives } else { Life::Ended };
                }
                explained
            }
            Fact::Opens { session, .. } => {
                self.sessions.insert(*session);
                true
            }
            Fact::Closes { session, .. } => {
                self.sessions.remove(session);
                for window in self.windows.values_mut() {
                    window.takes(at, Step::Ends(*session));
                }
                true
            }
            Fact::Changes { slot, by: By::Operator, before, after, .. } => {
                self.windows.get_mut(slot).is_none_or(|window| window.takes(at, Step::Operator(*before, *after)))
            }
            Fact::Loses { .. } => {
                self.windows.clear();
                true
            }
            _ => true,
        };
        match (explained, fact) {
            (false, Fact::Answers { ask, slot, shows, .. }) => Err(format!(
                "no order of the requests about {slot} explains their answers, of which the last is {ask}: {:?} {:?}",
                shows.lease, shows.offer
            )),
            (false, _) => Err(format!("{fact:?} does not follow on what was answered before")),
            (true, _) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::trace::Loss;

    fn asks(ask: u64, who: u128, named: u64, what: Ask) -> Fact {
        let session = (who > 0).then(|| session(who));
        Fact::Asks { ask, slot: SLOT, session, named: token(named), what }
    }

    fn answers(ask: u64, lease: Lease) -> Fact {
        Fact::Answers { ask, slot: SLOT, refused: None, shows: Shown { lease, offer: None } }
    }

    fn refused(ask: u64, conflict: Conflict, lease: Lease) -> Fact {
        Fact::Answers { ask, slot: SLOT, refused: Some(conflict), shows: Shown { lease, offer: None } }
    }

    fn offered(ask: u64, lease: Lease, ready: bool) -> Fact {
        let offer = Standing { offer: OperationId::from_bits(77), to: session(2), ready };
        Fact::Answers { ask, slot: SLOT, refused: None, shows: Shown { lease, offer: Some(offer) } }
    }

    /// To take the slot with the request that grants this token.
    fn acquire(number: u64) -> Ask {
        Ask::Acquires { operation: OperationId::from_bits(number.into()) }
    }

    #[test]
    fn one_after_the_other() {
        let first = || vec![opens(1), opens(2), asks(1, 1, 0, acquire(5)), answers(1, lease(5, 1))];
        let with = |facts: &[Fact]| [first(), facts.to_vec()].concat();
        let offer = OperationId::from_bits(77);
        let handed = with(&[
            asks(2, 1, 5, Ask::Offers { offer, to: session(2) }),
            offered(2, lease(5, 1), false),
            asks(3, 2, 5, Ask::Accepts { offer }),
            offered(3, lease(5, 1), true),
            asks(4, 1, 5, Ask::Transfers { operation: OperationId::from_bits(6), offer }),
            answers(4, lease(6, 2)),
            asks(5, 0, 0, Ask::Reads),
            answers(5, lease(6, 2)),
        ]);
        let too_soon: Vec<Fact> = handed.iter().take(6).chain(&handed[8..10]).cloned().collect();
        let freed = Lease { holder: None, ..lease(5, 1) };
        let let_go = changes(By::Operator, 0, lease(5, 1), freed);
        check(
            Linearizable::default,
            &[
                &handed,
                &with(&[
                    asks(2, 1, 5, Ask::Releases),
                    answers(2, freed),
                    asks(3, 2, 5, acquire(6)),
                    answers(3, lease(6, 2)),
                ]),
                &with(&[asks(2, 2, 0, acquire(6)), refused(2, Conflict::Token, lease(5, 1))]),
                &with(&[asks(2, 2, 5, acquire(6)), refused(2, Conflict::Held, lease(5, 1))]),
                &with(&[closes(1), asks(2, 2, 5, acquire(6)), answers(2, lease(6, 2))]),
                &with(&[asks(2, 1, 0, acquire(5)), answers(2, lease(5, 1))]),
                &with(&[let_go.clone(), asks(2, 2, 5, acquire(6)), answers(2, lease(6, 2))]),
                &with(&[Fact::Loses { loss: Loss::LastWrites }, asks(2, 0, 0, Ask::Reads), answers(2, lease(3, 2))]),
                &with(&[asks(2, 1, 5, Ask::Readopts), answers(2, lease(5, 1)), asks(3, 2, 5, Ask::Readopts)]),
                &with(&[let_go.clone(), asks(2, 1, 5, Ask::Readopts), refused(2, Conflict::NotHolder, freed)]),
            ],
            &[
                (&with(&[asks(2, 0, 0, Ask::Reads), answers(2, lease(0, 0))]), "no order of the requests"),
                (&with(&[asks(2, 2, 5, acquire(6)), answers(2, lease(6, 2))]), "no order"),
                (&with(&[asks(2, 2, 0, acquire(6)), refused(2, Conflict::Token, lease(0, 0))]), "no order"),
                (&with(&[asks(2, 1, 5, Ask::Releases), refused(2, Conflict::NotHolder, lease(5, 1))]), "no order"),
                (&with(&[asks(2, 1, 5, acquire(5)), answers(2, lease(6, 1))]), "no order"),
                (&with(&[closes(1), asks(2, 2, 5, acquire(6)), refused(2, Conflict::Held, lease(5, 1))]), "no order"),
                (&with(&[changes(By::Operator, 0, lease(4, 1), lease(4, 0))]), "does not follow"),
                (&with(&[let_go.clone(), asks(2, 1, 5, Ask::Readopts), answers(2, lease(5, 1))]), "no order"),
                (&with(&[asks(2, 1, 5, Ask::Readopts), refused(2, Conflict::NotHolder, lease(5, 1))]), "no order"),
                (&too_soon, "no order"),
            ],
        );
    }

    #[test]
    fn at_the_same_time() {
        let begins = || vec![opens(1), opens(2), asks(1, 1, 0, acquire(5)), answers(1, lease(5, 1))];
        let with = |facts: &[Fact]| [begins(), facts.to_vec()].concat();
        let freed = Lease { holder: None, ..lease(5, 1) };
        let (reads, released) = (asks(3, 0, 0, Ask::Reads), answers(2, freed));
        let alone = || [asks(9, 0, 0, Ask::Reads), answers(9, freed)];
        let both = |seen| {
            let facts = [
                vec![asks(2, 1, 5, Ask::Releases), reads.clone(), answers(3, seen), released.clone()],
                alone().to_vec(),
            ];
            with(&facts.concat())
        };
        check(
            Linearizable::default,
            &[&both(lease(5, 1)), &both(freed)],
            &[(&both(lease(4, 1)), "no order"), (&both(lease(6, 2)), "no order")],
        );
    }

    #[test]
    fn what_is_not_answered_stays_open() {
        let begins = || vec![opens(1), opens(2), asks(1, 1, 0, acquire(5)), answers(1, lease(5, 1)), closes(1)];
        // Nobody hears of it for longer than an answer is waited for.
        let silence = || [Fact::Calm, Fact::Calm, Fact::Calm, Fact::Calm];
        let read = |ask, seen| [asks(ask, 0, 0, Ask::Reads), answers(ask, seen)];
        let history = |reads: &[[Fact; 2]]| {
            [begins(), vec![asks(2, 2, 5, acquire(6))], silence().to_vec(), reads.concat()].concat()
        };
        check(
            Linearizable::default,
            &[
                &history(&[read(3, lease(5, 1)), read(4, lease(5, 1))]),
                &history(&[read(3, lease(6, 2)), read(4, lease(6, 2))]),
                &history(&[read(3, lease(5, 1)), read(4, lease(6, 2))]),
                &[history(&[]), vec![answers(2, lease(4, 1))]].concat(),
            ],
            &[
                (&history(&[read(3, lease(6, 2)), read(4, lease(5, 1))]), "no order"),
                (&history(&[read(3, lease(5, 1)), read(4, lease(6, 1))]), "no order"),
                (&history(&[read(3, lease(6, 2)), read(4, lease(7, 2))]), "no order"),
            ],
        );
    }
}
