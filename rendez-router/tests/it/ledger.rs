//! What became of each request, written down by its handlers and by its callers, and judged when all is over.
//!
//! Nothing of the router is asked here: a handler writes when it began and ended and under which token, a caller what it was
//! told, and both name the request by a number of the caller's own. Shared by the tests and by the example that prints figures.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rendez_router::{Ran, RequestError};

/// How often the ledger looks whether the machine stands still.
const LOOKS: Duration = Duration::from_millis(10);

/// The number of a request, given by its caller.
pub(crate) type Number = u64;

/// Clones are the same ledger.
#[derive(Clone, Default)]
pub(crate) struct Ledger(Arc<Shared>);

#[derive(Default)]
struct Shared {
    numbers: AtomicU64,
    closed: AtomicBool,
    book: Mutex<Book>,
}

/// All that was written down.
#[derive(Default)]
pub(crate) struct Book {
    runs: Vec<Run>,
    requests: Vec<Asked>,
    /// When nothing in this process went on, from and until.
    standstills: Vec<(Instant, Instant)>,
}

/// One run of a handler.
struct Run {
    number: Number,
    slot: u32,
    token: u64,
    node: String,
    began: Instant,
    /// None while it runs.
    ended: Option<Instant>,
    /// To its end; else it was dropped.
    finished: bool,
}

/// One request.
pub(crate) struct Asked {
    pub(crate) number: Number,
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
    pub(crate) outcome: Result<(), RequestError>,
}

impl Asked {
    /// How long the caller waited.
    pub(crate) fn took(&self) -> Duration {
        self.ended - self.began
    }
}

/// How often a request's handler may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Promise {
    /// Once at most.
    Once,
    /// Once at most under one token: what an idempotency key promises.
    OnceATenure,
}

impl Ledger {
    /// Begins to look whether the machine stands still.
    pub(crate) fn open() -> Self {
        let ledger = Self::default();
        let shared = ledger.0.clone();
        thread::spawn(move || {
            let mut before = Instant::now();
            while !shared.closed.load(Ordering::SeqCst) {
                thread::sleep(LOOKS);
                let now = Instant::now();
                if now - before > LOOKS * 10 {
                    shared.book().standstills.push((before, now));
                }
                before = now;
            }
        });
        ledger
    }

    /// For the next request.
    pub(crate) fn number(&self) -> Number {
        self.0.numbers.fetch_add(1, Ordering::SeqCst)
    }

    /// A handler begins.
    pub(crate) fn run(&self, number: Number, slot: u32, token: u64, node: &str) -> Running {
        let node = node.to_owned();
        let mut book = self.0.book();
        // Taken under the lock, so that the order of the records is that of time.
        let run = Run { number, slot, token, node, began: Instant::now(), ended: None, finished: false };
        book.runs.push(run);
        Running { ledger: self.clone(), at: book.runs.len() - 1 }
    }

    /// A caller was told.
    pub(crate) fn told(&self, asked: Asked) {
        self.0.book().requests.push(asked);
    }

    /// How many were answered.
    pub(crate) fn answered(&self) -> usize {
        self.0.book().requests.iter().filter(|asked| asked.outcome.is_ok()).count()
    }

    /// How many handlers run now.
    pub(crate) fn running(&self) -> usize {
        self.0.book().runs.iter().filter(|run| run.ended.is_none()).count()
    }

    /// What was written down, when nothing more is.
    pub(crate) fn close(self) -> Book {
        self.0.closed.store(true, Ordering::SeqCst);
        std::mem::take(&mut *self.0.book())
    }
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A handler that runs: dropped with it.
pub(crate) struct Running {
    ledger: Ledger,
    at: usize,
}

impl Running {
    /// It has come to its end.
    pub(crate) fn finish(self) {
        self.ledger.0.book().runs[self.at].finished = true;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(run) = self.ledger.0.book().runs.get_mut(self.at) {
            run.ended = Some(Instant::now());
        }
    }
}

impl Book {
    /// All requests, in the order in which they ended.
    pub(crate) fn requests(&self) -> &[Asked] {
        &self.requests
    }

    /// How many runs there were.
    pub(crate) fn runs(&self) -> usize {
        self.runs.len()
    }

    /// The longest time in which nothing went on.
    pub(crate) fn standstill_max(&self) -> Duration {
        self.standstills.iter().map(|(from, to)| *to - *from).max().unwrap_or_default()
    }

    /// What should not have been, in words; `issued` requests were begun. A pause as long as `pause_allowance` is beyond what
    /// leases promise: an overlap that has one in it is left out.
    pub(crate) fn faults(&self, issued: u64, promise: Promise, pause_allowance: Duration) -> Vec<String> {
        let mut faults = self.lost(issued);
        faults.extend(self.wrong_answers(promise));
        faults.extend(self.wrong_owners(pause_allowance));
        faults
    }

    /// Requests whose callers were told nothing.
    fn lost(&self, issued: u64) -> Vec<String> {
        let told = self.requests.len() as u64;
        if told == issued { Vec::new() } else { vec![format!("of {issued} requests {told} have an outcome")] }
    }

    /// Outcomes that are not what the handlers wrote.
    fn wrong_answers(&self, promise: Promise) -> Vec<String> {
        let mut runs: BTreeMap<Number, Vec<&Run>> = BTreeMap::new();
        for run in &self.runs {
            runs.entry(run.number).or_default().push(run);
        }
        let mut faults = Vec::new();
        for asked in &self.requests {
            let own = runs.get(&asked.number).map_or(&[][..], |runs| runs);
            let finished = own.iter().filter(|run| run.finished).count();
            let outcome = asked.outcome.as_ref().map_err(RequestError::ran);
            let right = match outcome {
                Ok(()) | Err(Ran::Yes) => finished >= 1,
                Err(Ran::No) => own.is_empty(),
                Err(Ran::Maybe) => true,
            };
            let mut tokens: Vec<u64> = own.iter().map(|run| run.token).collect();
            tokens.sort_unstable();
            tokens.dedup();
            let most = match promise {
                Promise::Once => 1,
                Promise::OnceATenure => tokens.len(),
            };
            if !right || own.len() > most {
                let (number, ran) = (asked.number, own.len());
                faults.push(format!("request {number}: {:?}, and {ran} ran, {finished} to the end", asked.outcome));
            }
        }
        faults
    }

    /// Runs of two owners of a slot at once, or of one after its successor.
    fn wrong_owners(&self, pause_allowance: Duration) -> Vec<String> {
        let mut slots: BTreeMap<u32, BTreeMap<u64, Vec<&Run>>> = BTreeMap::new();
        for run in &self.runs {
            slots.entry(run.slot).or_default().entry(run.token).or_default().push(run);
        }
        let mut faults = Vec::new();
        for (slot, tokens) in &slots {
            let nodes = tokens.iter().filter(|(_, runs)| runs.iter().any(|run| run.node != runs[0].node));
            faults.extend(nodes.map(|(token, _)| format!("slot {slot}: two nodes under token {token}")));
            // Of all that ran under lower tokens, what ended last.
            let mut latest: Option<&Run> = None;
            for (token, runs) in tokens {
                let first = runs.iter().min_by_key(|run| run.began);
                if let (Some(before), Some(first)) = (latest, first)
                    && before.ended.is_none_or(|ended| ended > first.began)
                    && !self.paused(before, first.began, pause_allowance)
                {
                    let late = before.ended.map(|ended| ended - first.began);
                    let (old, old_node, node) = (before.token, &before.node, &first.node);
                    let run = format!("token {old} on {old_node} ran {late:?} into token {token} on {node}");
                    faults.push(format!("slot {slot}: {run}"));
                }
                let end = |run: &&Run| (run.ended.is_none(), run.ended);
                latest = runs.iter().copied().chain(latest).max_by_key(end);
            }
        }
        faults
    }

    /// Whether everything stood still for too long while this ran, before its successor began.
    fn paused(&self, run: &Run, successor_began: Instant, pause_allowance: Duration) -> bool {
        self.standstills
            .iter()
            .any(|(from, to)| *to - *from >= pause_allowance && *to > run.began && *from < successor_began)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn run(number: Number, token: u64, node: &str, from: u64, to: u64, start: Instant) -> Run {
        let at = |second: u64| start + SECOND * u32::try_from(second).unwrap();
        Run { number, slot: 3, token, node: node.to_owned(), began: at(from), ended: Some(at(to)), finished: true }
    }

    fn book(runs: Vec<Run>, outcome: Result<(), RequestError>) -> Book {
        let now = Instant::now();
        let asked = Asked { number: 0, began: now, ended: now, outcome };
        Book { runs, requests: vec![asked], standstills: Vec::new() }
    }

    /// What is found, and nothing else.
    fn finds(book: &Book, what: &str) {
        let faults = book.faults(1, Promise::Once, SECOND);
        assert!(faults.len() == 1 && faults[0].contains(what), "{what}: {faults:?}");
    }

    #[test]
    fn what_is_as_it_should_be_is_no_fault() {
        let start = Instant::now();
        let runs = vec![run(0, 5, "a", 0, 2, start), run(1, 5, "a", 1, 3, start), run(2, 8, "b", 3, 4, start)];
        assert_eq!(book(runs, Ok(())).faults(1, Promise::Once, SECOND), [""; 0]);
        let nobody = RequestError::NoOwner { shard: 3, millis: 9 };
        assert_eq!(book(Vec::new(), Err(nobody)).faults(1, Promise::Once, SECOND), [""; 0]);
    }

    #[test]
    fn each_fault_is_found() {
        let start = Instant::now();
        let one = |number| run(number, 5, "a", 0, 1, start);
        let no = || Err(RequestError::NoOwner { shard: 3, millis: 9 });
        finds(&Book { requests: Vec::new(), ..book(Vec::new(), Ok(())) }, "of 1 requests 0 have an outcome");
        finds(&book(Vec::new(), Ok(())), "0 ran");
        finds(&book(vec![one(0), one(0)], Ok(())), "2 ran");
        finds(&book(vec![one(0)], no()), "1 ran");
        let cut = Run { finished: false, ..one(0) };
        finds(&book(vec![cut], Err(RequestError::handler("own", "error"))), "0 to the end");
        finds(&book(vec![one(0), run(1, 5, "b", 1, 2, start)], Ok(())), "two nodes under token 5");
        finds(&book(vec![run(0, 5, "a", 0, 2, start), run(1, 8, "b", 1, 3, start)], Ok(())), "ran Some(1s) into");
        finds(&book(vec![run(0, 8, "b", 0, 1, start), run(1, 5, "a", 2, 3, start)], Ok(())), "ran Some(3s) into");
        let open = Run { ended: None, ..one(0) };
        finds(&book(vec![open, run(1, 8, "b", 5, 6, start)], Ok(())), "ran None into");
        // Not only by the run just before it.
        let runs = vec![run(0, 5, "a", 0, 9, start), run(1, 6, "b", 10, 11, start), run(2, 7, "a", 8, 9, start)];
        assert_eq!(book(runs, Ok(())).faults(1, Promise::Once, SECOND).len(), 1);
    }

    #[test]
    fn only_a_standstill_in_between_excuses_an_overlap() {
        let start = Instant::now();
        let runs = || vec![run(0, 5, "a", 0, 5, start), run(1, 8, "b", 4, 6, start)];
        let with = |from: u32, to: u32| Book {
            standstills: vec![(start + SECOND * from, start + SECOND * to)],
            ..book(runs(), Ok(()))
        };
        assert_eq!(with(1, 3).faults(1, Promise::Once, SECOND * 2), [""; 0]);
        assert_eq!(with(1, 2).faults(1, Promise::Once, SECOND * 2).len(), 1);
        assert_eq!(with(5, 8).faults(1, Promise::Once, SECOND * 2).len(), 1);
    }

    #[test]
    fn a_key_is_bound_to_a_tenure() {
        let start = Instant::now();
        let twice = |token| vec![run(0, 5, "a", 0, 1, start), run(0, token, "a", 2, 3, start)];
        assert_eq!(book(twice(8), Ok(())).faults(1, Promise::OnceATenure, SECOND), [""; 0]);
        assert_eq!(book(twice(5), Ok(())).faults(1, Promise::OnceATenure, SECOND).len(), 1);
        assert_eq!(book(twice(8), Ok(())).faults(1, Promise::Once, SECOND).len(), 1);
    }
}
