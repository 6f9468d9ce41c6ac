//! A store and the model side by side: requests go to both, and their answers are compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use rendez_core::*;

use super::names::{Answer, Names};
use super::steps::{Needs, Request, Step};
use super::told::{Reached, Told};
use super::{Comparison, World};

/// The TTL of sessions that live on, compared exactly: short enough for a quiet time to end now and then.
const LONG: Duration = Duration::from_secs(2);
/// The same, compared freely.
const SLOW: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_millis(25);
/// Changes may be told in this many answers: a history writes fewer records.
const ANSWERS_MAX: usize = 200;

pub(super) struct Pair {
    /// Handles of one store, which take turns.
    handles: Vec<Arc<dyn LeaseStore>>,
    turns: u16,
    capabilities: Capabilities,
    pub(super) comparison: Comparison,
    cluster: ClusterName,
    pub(super) model: StoreModel,
    /// The store's, the model's.
    pub(super) names: (Names, Names),
    /// So many tokens are known to rise alike on both sides.
    ordered: usize,
    /// Compared freely: what heartbeats of either side have told.
    pub(super) told: (Told, Told),
    pub(super) revisions: Vec<(Revision, Revision)>,
    /// Of operators' records: the store's revision for each of the model's.
    pub(super) written: BTreeMap<Revision, Revision>,
    pub(super) offers: Vec<OperationId>,
    pub(super) operations: u128,
    pub(super) last: Option<(Request, Request)>,
    now: StoreTime,
    pub(super) times: Times,
    pub(super) writes_settings: bool,
    /// Which changes were made and which conflicts met.
    pub(super) met: BTreeSet<String>,
}

/// The times that the store permits: long ones, and short ones that end in between if it ends them to the moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) long: Duration,
    pub(super) short: Duration,
    /// How long a short offer stands.
    pub(super) moment: Duration,
    /// A settings' longest session TTL that refuses long ones.
    pub(super) low: Duration,
}

impl Times {
    fn of(capabilities: &Capabilities, comparison: Comparison) -> Self {
        let fast = capabilities.ttl_min <= SHORT && capabilities.ttl_granularity <= Duration::from_millis(1);
        let prompt = capabilities.expiry_lateness_max.is_zero() && comparison == Comparison::Exactly;
        // Compared freely, both sides need not see the same moment: then no session may end in between.
        let (long, moment) = match comparison {
            Comparison::Exactly => (LONG, SHORT),
            Comparison::Freely => (SLOW, Duration::ZERO),
        };
        let long = long.clamp(capabilities.ttl_min, capabilities.ttl_max);
        let short = if fast && prompt { SHORT } else { long };
        Self { long, short, moment, low: capabilities.ttl_min.max(SHORT) }
    }
}

type Tested<T = ()> = Result<T, TestCaseError>;

impl Pair {
    pub(super) fn new(
        handles: &[Arc<dyn LeaseStore>],
        capabilities: &Capabilities,
        comparison: Comparison,
        cluster: ClusterName,
        seed: u64,
    ) -> Self {
        Self {
            handles: handles.to_vec(),
            turns: 0,
            capabilities: capabilities.clone(),
            comparison,
            cluster,
            model: StoreModel::new(seed, capabilities.clone()),
            names: Default::default(),
            ordered: 0,
            told: Default::default(),
            revisions: Vec::new(),
            written: BTreeMap::new(),
            offers: Vec::new(),
            operations: 0,
            last: None,
            now: StoreTime::default(),
            times: Times::of(capabilities, comparison),
            writes_settings: true,
            met: BTreeSet::new(),
        }
    }

    pub(super) async fn take(&mut self, world: &dyn World, step: &Step) -> Tested {
        match step {
            // Compared freely, nothing ends with time.
            Step::Wait if self.comparison == Comparison::Freely => {}
            Step::Wait => tokio::time::sleep(Duration::from_millis(15)).await,
            Step::Restart => {
                if let Some(fault) = world.restart(&self.cluster) {
                    fault.await;
                    self.model.restart();
                }
            }
            Step::LoseEverything => {
                if let Some(fault) = world.lose_everything(&self.cluster) {
                    fault.await;
                    self.model.lose_everything();
                }
            }
            other => {
                if self.comparison == Comparison::Freely {
                    match other.needs() {
                        Needs::View if self.told.0.since().is_none() || self.told.1.since().is_none() => {
                            self.read(true).await?;
                        }
                        Needs::Revisions => self.read(false).await?,
                        Needs::View | Needs::Nothing => {}
                    }
                }
                let Some(requests) = self.requests(other) else { return Ok(()) };
                self.send(world, &requests).await?;
                self.last = Some(requests);
            }
        }
        Ok(())
    }

    /// Sends a request to both and compares the answers.
    async fn send(&mut self, world: &dyn World, requests: &(Request, Request)) -> Tested<Reached> {
        let theirs = self.ask(&requests.0).await;
        let told = theirs.as_ref().ok().and_then(Answer::stamp).map(|stamp| stamp.now);
        let asked = match (told, world.now(&self.cluster, self.now)) {
            (None, Some(asked)) => Some(asked.await),
            (Some(_), _) | (None, None) => None,
        };
        let mut read = None;
        match (told, asked) {
            (Some(now), _) => self.pass(now),
            (None, Some(now)) => self.now = now,
            // Read right after it, on both sides.
            (None, None) => {
                let answer = self.ask(&anonymous()).await;
                if let Some(stamp) = answer.as_ref().ok().and_then(Answer::stamp) {
                    self.pass(stamp.now);
                }
                read = Some(answer);
            }
        }
        let ours = self.answer(&requests.1);
        self.compare(&theirs, &ours, requests)?;
        if let Some(theirs) = read {
            let ours = self.answer(&anonymous());
            self.compare(&theirs, &ours, requests)?;
        }
        let (Ok(Answer::Beat(theirs)), Ok(Answer::Beat(ours))) = (theirs, ours) else { return Ok(Reached::Nothing) };
        let (Request::Call(Call::Heartbeat(first)), Request::Call(Call::Heartbeat(second))) = requests else {
            return Ok(Reached::Nothing);
        };
        if self.comparison == Comparison::Exactly {
            return Ok(Reached::Nothing);
        }
        self.hear((first, &theirs), (second, &ours)).await
    }

    /// Compared freely, one handle may be a little behind the other with its clock, and the model's stands still then.
    fn pass(&mut self, now: StoreTime) {
        self.now = match self.comparison {
            Comparison::Exactly => now,
            Comparison::Freely => now.max(self.now),
        };
    }

    /// Takes in what heartbeats have told of changes, and compares once both sides have told everything.
    async fn hear(&mut self, theirs: (&HeartbeatRequest, &Beat), ours: (&HeartbeatRequest, &Beat)) -> Tested<Reached> {
        let fail = |what: String| TestCaseError::fail(format!("{what}: {theirs:?}"));
        let reached = (self.told.0.hear(theirs.0, theirs.1), self.told.1.hear(ours.0, ours.1));
        let reached = (reached.0.map_err(fail)?, reached.1.map_err(fail)?);
        let all = match reached {
            (Reached::Nothing, Reached::Nothing) => return Ok(Reached::Nothing),
            // A store may forget what changed; the model does not forget so soon.
            (Reached::Anew, Reached::Anew | Reached::All | Reached::Part) => {
                self.read(true).await?;
                true
            }
            (Reached::All, Reached::All) => {
                self.met.insert("Told".to_owned());
                true
            }
            (Reached::All | Reached::Part, Reached::All | Reached::Part) => false,
            (Reached::Nothing | Reached::All | Reached::Part | Reached::Anew, Reached::Nothing | Reached::Anew)
            | (Reached::Nothing, Reached::All | Reached::Part) => {
                return Err(fail(format!("the store tells {:?}, the model {:?}", reached.0, reached.1)));
            }
        };
        if all || reached.0 == Reached::All {
            let held = self.told.0.held(theirs.0.session);
            prop_assert_eq!(held, theirs.1.held, "what the view says that the session holds: {:?}", theirs);
        }
        if !all {
            return Ok(Reached::Part);
        }
        let (theirs, ours) = (self.told.0.text(&mut self.names.0), self.told.1.text(&mut self.names.1));
        prop_assert_eq!(theirs, ours, "what heartbeats of the store, of the model have told");
        Ok(Reached::All)
    }

    /// Reads all records on both sides and compares them. Views begin with them, if they are to.
    async fn read(&mut self, begin: bool) -> Tested {
        let theirs = self.ask(&anonymous()).await;
        if let Some(stamp) = theirs.as_ref().ok().and_then(Answer::stamp) {
            self.pass(stamp.now);
        }
        let ours = self.answer(&anonymous());
        self.compare(&theirs, &ours, &(anonymous(), anonymous()))?;
        if let (true, Ok(Answer::Page(theirs)), Ok(Answer::Page(ours))) = (begin, theirs, ours) {
            self.told = (Told::of(&theirs), Told::of(&ours));
        }
        Ok(())
    }

    /// At the end, all records are compared, and if anybody is left to hear of them, so is what heartbeats tell.
    pub(super) async fn settle(&mut self, world: &dyn World) -> Tested {
        if self.comparison == Comparison::Exactly {
            return Ok(());
        }
        self.read(false).await?;
        let mut both = self.names.0.sessions.iter().copied().zip(self.names.1.sessions.iter().copied());
        let living = both.find(|(_, id)| self.model.sessions().any(|(living, ..)| living == *id));
        let Some((theirs, ours)) = living else { return Ok(()) };
        for _ in 0..ANSWERS_MAX {
            let (Some(since), Some(since_ours)) = (self.told.0.since(), self.told.1.since()) else { return Ok(()) };
            let generations = (self.names.0.generations.last(), self.names.1.generations.last());
            let beat = |session, since, generation: Option<&Generation>| {
                Request::Call(Call::Heartbeat(HeartbeatRequest {
                    known: Known { generation: generation.copied(), ..Known::default() },
                    session,
                    since: Some(since),
                    changes_max: u32::MAX,
                    due_within: Duration::ZERO,
                    info: None,
                }))
            };
            let requests = (beat(theirs, since, generations.0), beat(ours, since_ours, generations.1));
            if self.send(world, &requests).await? == Reached::All {
                return Ok(());
            }
        }
        Err(TestCaseError::fail(format!("after {ANSWERS_MAX} heartbeats there is still more to tell")))
    }

    fn compare(
        &mut self,
        theirs: &Result<Answer, StoreError>,
        ours: &Result<Answer, StoreError>,
        requests: &(Request, Request),
    ) -> Tested {
        if let (Ok(theirs), Ok(ours)) = (theirs, ours) {
            if let (Some(theirs), Some(ours)) = (theirs.stamp(), ours.stamp()) {
                let begins = self.names.1.generations.last() != Some(&ours.generation);
                if begins && self.comparison == Comparison::Freely {
                    self.revisions.clear();
                }
                self.told.0.stay_in(theirs.generation);
                self.told.1.stay_in(ours.generation);
                self.revisions.push((theirs.revision, ours.revision));
            }
            if let (Answer::Page(theirs), Answer::Page(ours)) = (theirs, ours) {
                let theirs: BTreeMap<_, _> = records(&theirs.items).collect();
                let both = records(&ours.items).filter_map(|(key, ours)| Some((ours, *theirs.get(key)?)));
                self.written.extend(both);
            }
        }
        let text = |answer: &Result<Answer, StoreError>, names: &mut Names| match answer {
            Ok(answer) => answer.text(names, self.comparison, &self.capabilities),
            Err(error) => format!("{:?}", error.kind()),
        };
        let said = theirs.as_ref().err().map(ToString::to_string).unwrap_or_default();
        let theirs = text(theirs, &mut self.names.0);
        let ours = text(ours, &mut self.names.1);
        prop_assert_eq!(theirs, ours, "the store, the model: {} {:?}", said, requests);
        self.tokens_rise_alike(requests)
    }

    /// The tokens of each slot have the same order on both sides.
    fn tokens_rise_alike(&mut self, requests: &(Request, Request)) -> Tested {
        let both: Vec<_> = self.names.0.tokens.iter().zip(&self.names.1.tokens).collect();
        for (place, ((slot, theirs), (_, ours))) in both.iter().enumerate().skip(self.ordered) {
            for ((_, before), (_, same)) in both[..place].iter().filter(|((of, _), _)| of == slot) {
                prop_assert_eq!(before.cmp(theirs), same.cmp(ours), "the order of {}'s tokens: {:?}", slot, requests);
            }
        }
        self.ordered = both.len();
        Ok(())
    }

    async fn ask(&mut self, request: &Request) -> Result<Answer, StoreError> {
        // Neither in turn nor by chance: a history that is tried again goes the same ways.
        self.turns = self.turns.wrapping_mul(25_173).wrapping_add(13_849);
        let turn = usize::from(self.turns >> 8) % self.handles.len();
        let (store, cluster) = (&self.handles[turn], &self.cluster);
        match request {
            Request::Call(Call::Open(request)) => store.open(cluster, request).await.map(Answer::Opening),
            Request::Call(Call::Heartbeat(request)) => store.heartbeat(cluster, request).await.map(Answer::Beat),
            Request::Call(Call::Change(request)) => {
                store.change(cluster, request).await.map(|reply| Answer::changed(request, reply))
            }
            Request::Call(Call::Snapshot(request)) => {
                whole_snapshot(&**store, cluster, request).await.map(Answer::Page)
            }
            Request::Call(Call::Close(request)) => store.close(cluster, request).await.map(|()| Answer::Closed),
            Request::Admin(request) => store.administer(cluster, request).await.map(Answer::Administered),
        }
    }

    fn answer(&mut self, request: &Request) -> Result<Answer, StoreError> {
        let now = self.now;
        match request {
            Request::Call(call) => self.model.call(now, call).map(|reply| match reply {
                Reply::Open(opening) => Answer::Opening(opening),
                Reply::Heartbeat(beat) => Answer::Beat(beat),
                Reply::Change(reply) => {
                    let asked = if let Call::Change(request) = call { &request.changes[..] } else { &[] };
                    for (change, outcome) in asked.iter().zip(&reply.outcomes) {
                        self.met.insert(match outcome {
                            ChangeOutcome::Done(_) => word(&change.kind),
                            ChangeOutcome::Refused(conflict, _) => word(conflict),
                        });
                    }
                    Answer::Changed(asked.iter().map(|change| change.slot.clone()).collect(), reply)
                }
                // A history has fewer records than a page.
                Reply::Snapshot(page) => Answer::Page(page),
                Reply::Close => Answer::Closed,
            }),
            Request::Admin(request) => self.model.administer(now, request).map(Answer::Administered),
        }
    }
}

/// All pages in one, with the first one's stamp.
async fn whole_snapshot(
    store: &dyn LeaseStore,
    cluster: &ClusterName,
    request: &SnapshotRequest,
) -> Result<SnapshotPage, StoreError> {
    let mut request = request.clone();
    let mut all = store.snapshot(cluster, &request).await?;
    loop {
        request.cursor = all.next.take();
        if request.cursor.is_none() {
            return Ok(all);
        }
        let page = store.snapshot(cluster, &request).await?;
        all.items.extend(page.items);
        all.next = page.next;
    }
}

fn records(items: &[Change]) -> impl Iterator<Item = (&RecordKey, Revision)> {
    items.iter().filter_map(|item| match item {
        Change::Record(key, Some(record)) => Some((key, record.revision)),
        Change::Record(_, None) | Change::Session(..) | Change::Slot(..) => None,
    })
}

fn anonymous() -> Request {
    Request::Call(Call::Snapshot(SnapshotRequest { known: Known::default(), session: None, cursor: None }))
}

fn word(debug: &impl Debug) -> String {
    format!("{debug:?}").split(|c: char| !c.is_alphabetic()).next().unwrap_or_default().to_owned()
}
