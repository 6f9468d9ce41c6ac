//! Every rule of the contract, one test a rule.

use std::fmt::Write as _;

use bytes::Bytes;

use super::*;
use crate::store::lineage::QUIET_MARGIN;
use crate::{
    CHECKPOINT_BYTES_MAX, Change, ChangeKind, ChangeOutcome, ClusterSettings, Conflict, Declared, Incarnation, NodeId,
    NodeInfo, OperationId, REFUSALS_MAX, SlotChange, UNITS_MAX, WorkloadName, WorkloadRecord,
};

const TTL: Duration = Duration::from_secs(10);
const NONE: FencingToken = FencingToken::NONE;

/// A store, a clock, and what every node reports.
#[derive(Clone)]
struct World {
    store: StoreModel,
    now: StoreTime,
    known: Known,
}

impl World {
    fn new() -> Self {
        let known = Known { session_ttl_max: TTL, ..Known::default() };
        Self { store: StoreModel::new(1, Capabilities::strict("model")), now: at(1000), known }
    }

    /// With two open sessions.
    fn with_two() -> (Self, SessionId, SessionId) {
        let mut world = Self::new();
        let (a, b) = (world.opened("a", 1), world.opened("b", 2));
        world.known.generation = world.store.generation();
        world.store.take_hints();
        (world, a, b)
    }

    fn request(&self, node: &str, operation: u128) -> OpenRequest {
        OpenRequest {
            known: self.known.clone(),
            operation: op(operation),
            incarnation: Incarnation::from_bits(operation),
            replaces: None,
            ttl: TTL,
            info: info(node),
        }
    }

    fn open(&mut self, request: &OpenRequest) -> Result<Opening, StoreError> {
        self.store.open(self.now, request)
    }

    fn opened(&mut self, node: &str, operation: u128) -> SessionId {
        let request = self.request(node, operation);
        opened(self.open(&request).unwrap())
    }

    fn beat(&mut self, session: SessionId) -> Result<Beat, StoreError> {
        self.sync(session, None, 512)
    }

    fn sync(&mut self, session: SessionId, since: Option<u64>, changes_max: u32) -> Result<Beat, StoreError> {
        self.store.heartbeat(
            self.now,
            &HeartbeatRequest {
                known: self.known.clone(),
                session,
                since: since.map(Revision),
                changes_max,
                due_within: TTL,
                info: None,
            },
        )
    }

    fn close(&mut self, session: SessionId) {
        self.store.close(self.now, &CloseRequest { known: self.known.clone(), session }).unwrap();
    }

    fn change(&mut self, session: SessionId, unit: u32, token: FencingToken, kind: ChangeKind) -> ChangeOutcome {
        let changes = vec![SlotChange { slot: slot(unit), token, kind }];
        let request = ChangeRequest { known: self.known.clone(), session, changes };
        self.store.change(self.now, &request).unwrap().outcomes.remove(0)
    }

    fn acquire(&mut self, session: SessionId, unit: u32, token: FencingToken, operation: u128) -> ChangeOutcome {
        self.change(session, unit, token, ChangeKind::Acquire { operation: op(operation) })
    }

    fn acquired(&mut self, session: SessionId, unit: u32) -> FencingToken {
        let token = self.token(unit);
        let outcome = self.acquire(session, unit, token, 1000 + u128::from(unit));
        assert!(matches!(outcome, ChangeOutcome::Done(_)), "{outcome:?}");
        self.token(unit)
    }

    fn token(&self, unit: u32) -> FencingToken {
        self.store.slot(&slot(unit)).map_or(NONE, |slot| slot.token)
    }

    fn record(&self, unit: u32) -> &SlotRecord {
        self.store.slot(&slot(unit)).unwrap()
    }

    fn put(&mut self, key: RecordKey, record: Option<Record>, expect: Option<u64>) -> bool {
        let request = AdminRequest::Put { key, record, expect: expect.map(Revision) };
        matches!(self.store.administer(self.now, &request).unwrap(), AdminOutcome::Done(_))
    }

    fn wait(&mut self, seconds: u64) {
        self.now = self.now + Duration::from_secs(seconds);
    }

    /// Keeps sessions alive over a while.
    fn wait_with(&mut self, seconds: u64, sessions: &[SessionId]) {
        for _ in 0..seconds {
            self.wait(1);
            for session in sessions {
                self.beat(*session).unwrap();
            }
        }
    }
}

fn at(seconds: u64) -> StoreTime {
    StoreTime::from_micros(seconds * 1_000_000)
}

fn op(number: u128) -> OperationId {
    OperationId::from_bits(number)
}

fn slot(unit: u32) -> Slot {
    Slot::new("w".parse().unwrap(), unit)
}

fn info(node: &str) -> Arc<NodeInfo> {
    Arc::new(NodeInfo::new(node.parse().unwrap(), ClusterSettings::new(TTL)))
}

fn opened(opening: Opening) -> SessionId {
    match opening {
        Opening::Opened { session, .. } => session,
        Opening::InUse { .. } => panic!("{opening:?}"),
    }
}

fn is_done(outcome: &ChangeOutcome) -> bool {
    matches!(outcome, ChangeOutcome::Done(_))
}

fn conflict(outcome: &ChangeOutcome) -> Conflict {
    match outcome {
        ChangeOutcome::Refused(conflict, _) => *conflict,
        ChangeOutcome::Done(_) => panic!("{outcome:?}"),
    }
}

fn offer(operation: u128, to: SessionId) -> ChangeKind {
    ChangeKind::Offer {
        operation: op(operation),
        to,
        expires_in: Duration::from_secs(5),
        giver_total: 2,
        giver_of_workload: 1,
        forced: false,
    }
}

fn transfer(operation: u128, offer: u128) -> ChangeKind {
    ChangeKind::Transfer { operation: op(operation), offer: op(offer), checkpoint: None }
}

fn release() -> ChangeKind {
    ChangeKind::Release { checkpoint: None, refuse_for: None }
}

// --- sessions ---

#[test]
fn an_opening_that_cannot_be_is_refused_with_what_would_do() {
    let world = World::new();
    let long = Duration::from_secs(20);
    let with = |change: &dyn Fn(&mut NodeInfo)| {
        let mut info = (*info("a")).clone();
        change(&mut info);
        Arc::new(info)
    };
    let base = world.request("a", 1);
    for (request, says) in [
        (OpenRequest { ttl: Duration::ZERO, ..base.clone() }, "use 10ms to"),
        (OpenRequest { ttl: Duration::MAX, ..base.clone() }, "to 86400s"),
        (OpenRequest { ttl: long, ..base.clone() }, "use 10s or less"),
        (OpenRequest { info: with(&|i| i.protocol = 2), ..base.clone() }, "knows 1 to 1"),
        (OpenRequest { info: with(&|i| i.protocol = 0), ..base.clone() }, "knows 1 to 1"),
        (OpenRequest { info: with(&|i| i.weight = 0), ..base.clone() }, "use 1 or more"),
        (
            OpenRequest { info: with(&|i| i.settings.session_ttl_max = Duration::ZERO), ..base.clone() },
            "session_ttl_max of 0ns",
        ),
        (
            OpenRequest {
                info: with(&|i| {
                    let _ = i.workloads.insert("w".parse().unwrap(), Declared::new(1_000_001));
                }),
                ..base.clone()
            },
            "1000000 or fewer",
        ),
        (
            OpenRequest { known: Known { token: FencingToken::new(u64::MAX), ..Known::default() }, ..base.clone() },
            "token",
        ),
    ] {
        let mut world = world.clone();
        let error = world.open(&request).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Fatal);
        assert!(error.message().contains(says), "{} / {says}", error.message());
        assert_eq!(world.store.sessions().count(), 0);
    }
}

#[test]
fn the_first_opening_writes_the_settings_and_they_count_for_all_others() {
    let mut world = World::new();
    let a = world.opened("a", 1);
    assert_eq!(world.store.records().count(), 1);
    let mut request = world.request("b", 2);
    let mut other = (*info("b")).clone();
    other.settings.session_ttl_max = Duration::from_secs(60);
    request.info = Arc::new(other);
    request.ttl = Duration::from_secs(60);
    assert_eq!(world.open(&request).unwrap_err().kind(), ErrorKind::Fatal);
    request.ttl = TTL;
    let Opening::Opened { settings, session, .. } = world.open(&request).unwrap() else { panic!() };
    assert_eq!(settings, ClusterSettings::new(TTL));
    assert_ne!(session, a);
    assert_eq!(session.bits() >> 64, world.store.generation().unwrap().bits() >> 64);
}

#[test]
fn a_live_session_of_the_node_stands_in_the_way_except_of_its_own_retry_and_its_named_successor() {
    let (world, a, _) = World::with_two();
    let base = world.request("a", 7);
    let (own, foreign) = (Incarnation::from_bits(1), Incarnation::from_bits(7));
    // (operation, incarnation, replaces, what comes)
    for (operation, incarnation, replaces, expected) in [
        (1, own, None, "same"),
        (1, foreign, None, "same"),
        (7, own, None, "in use"),
        (7, own, Some(SessionId::from_bits(9)), "in use"),
        (7, foreign, Some(a), "in use"),
        (7, own, Some(a), "fresh"),
    ] {
        let mut world = world.clone();
        world.wait(4);
        let request = OpenRequest { operation: op(operation), incarnation, replaces, ..base.clone() };
        let found = match world.open(&request).unwrap() {
            Opening::Opened { session, .. } if session == a => "same",
            Opening::Opened { session, .. } => {
                assert!(world.store.is_alive(world.now, session) && !world.store.is_alive(world.now, a));
                assert_eq!(world.store.take_hints(), [WatchHint::Everyone]);
                "fresh"
            }
            Opening::InUse { session, incarnation, remaining, .. } => {
                assert_eq!((session, incarnation, remaining), (a, own, Duration::from_secs(6)));
                "in use"
            }
        };
        assert_eq!(found, expected, "{request:?}");
        let ends = world.store.sessions().find(|(id, ..)| *id == a).map(|(.., ends)| ends);
        let extended = (expected != "fresh").then_some(at(if expected == "same" { 1014 } else { 1010 }));
        assert_eq!(ends, extended, "{request:?}");
    }
}

#[test]
fn a_session_ends_at_its_ttl_for_ever_and_leaves_its_slots_as_they_are() {
    let (mut world, a, b) = World::with_two();
    let token = world.acquired(a, 0);
    world.now = at(1009);
    world.beat(b).unwrap();
    world.beat(a).unwrap();
    world.now = at(1018);
    world.beat(b).unwrap();
    world.now = at(1019);
    assert_eq!(world.beat(a).unwrap_err().kind(), ErrorKind::Lost);
    world.now = at(1010);
    assert_eq!(world.beat(a).unwrap_err().kind(), ErrorKind::Lost, "a clock that goes back revives nobody");
    let slot = world.record(0);
    assert!(slot.is_held_by(a) && slot.token == token);
    assert_eq!(world.store.owner(world.now, &super::tests::slot(0)), None);
    let sync = world.sync(b, Some(world.store.revision().0 - 1), 512).unwrap().sync;
    assert_eq!(
        sync,
        Sync::Changes { changes: vec![Change::Session(a, None)], up_to: world.store.revision(), more: false }
    );
    world.close(a);
    let request = world.request("a", 1);
    assert_ne!(opened(world.open(&request).unwrap()), a, "not even by the retry of its opening");
}

#[test]
fn a_closed_session_is_gone_at_once_and_closing_again_is_no_error() {
    let (mut world, a, b) = World::with_two();
    let token = world.acquired(a, 0);
    world.close(a);
    assert_eq!(world.store.take_hints(), [WatchHint::Everyone]);
    world.close(a);
    assert_eq!(world.store.take_hints(), []);
    assert!(is_done(&world.acquire(b, 0, token, 9)));
}

#[test]
fn a_heartbeat_names_the_sessions_that_end_soonest_first() {
    let (mut world, a, _) = World::with_two();
    for node in 0..80 {
        world.now = world.now + Duration::from_millis(10);
        world.opened(&format!("n{node}"), 100 + node);
    }
    let due = world.beat(a).unwrap().due;
    assert_eq!(due.len(), DUE_MAX);
    assert!(due.is_sorted_by_key(|due| due.remaining) && due.iter().all(|due| due.session != a));
    assert_eq!(due[0].remaining, Duration::from_millis(9200));
}

#[test]
fn changed_information_is_told_once() {
    let (mut world, a, _) = World::with_two();
    let mut heavier = (*info("a")).clone();
    heavier.weight = 3;
    let mut request = HeartbeatRequest {
        known: world.known.clone(),
        session: a,
        since: Some(world.store.revision()),
        changes_max: 10,
        due_within: Duration::ZERO,
        info: Some(Arc::new(heavier)),
    };
    let beat = world.store.heartbeat(world.now, &request).unwrap();
    let Sync::Changes { changes, .. } = &beat.sync else { panic!() };
    assert!(matches!(&changes[..], [Change::Session(id, Some(record))] if *id == a && record.info.weight == 3));
    assert_eq!(world.store.take_hints(), [WatchHint::Everyone]);
    let again = world.store.heartbeat(world.now, &request).unwrap();
    assert_eq!(again.stamp.revision, beat.stamp.revision);
    assert_eq!(world.store.take_hints(), []);
    request.info = Some(info("b"));
    assert_eq!(world.store.heartbeat(world.now, &request).unwrap_err().kind(), ErrorKind::Fatal);
}

// --- slots ---

#[test]
fn the_conflicts_of_every_change_come_in_their_order() {
    let (mut base, a, b) = World::with_two();
    let c = base.opened("c", 3);
    let dead = base.opened("d", 4);
    base.acquired(a, 0);
    base.acquired(dead, 1);
    base.close(dead);
    base.acquired(a, 2);
    base.change(a, 2, base.token(2), release());
    let t0 = base.token(0);
    // Slot 0 is a's, 1 an orphan, 2 free, 3 was never granted; an accepted offer of slot 0 stands for b.
    assert!(is_done(&base.change(a, 0, t0, offer(50, b))));
    assert!(is_done(&base.change(b, 0, t0, ChangeKind::Accept { offer: op(50) })));
    let late = FencingToken::new(1);
    let high = FencingToken::new(base.store.token().get() + 5);
    let quiet = {
        let mut world = base.clone();
        world.store.restart();
        world.beat(a).unwrap();
        world
    };
    let quiet_known = {
        let mut world = quiet.clone();
        world.known.generation = world.store.generation();
        world
    };
    let b_gone = {
        let mut world = base.clone();
        world.close(b);
        world
    };
    let expired = {
        let mut world = base.clone();
        world.wait(5);
        world
    };
    let not_ready = {
        let mut world = base.clone();
        world.change(a, 0, t0, offer(51, b));
        world
    };
    let acquire = ChangeKind::Acquire { operation: op(99) };
    let accept = ChangeKind::Accept { offer: op(50) };
    let refuse = ChangeKind::Refuse { offer: op(50), refuse_for: TTL };
    let withdraw = ChangeKind::Withdraw { offer: op(50) };
    let save = ChangeKind::SaveCheckpoint { checkpoint: Bytes::from_static(b"x") };
    let readopt = ChangeKind::Readopt;
    use Conflict::{Held, NotHolder, NotQuiet, Offer, Quiet, ReceiverGone, Token};
    type Case<'a> = (&'a str, &'a World, SessionId, u32, FencingToken, &'a ChangeKind, Option<Conflict>);
    let cases: &[Case<'_>] = &[
        ("acquire", &quiet, b, 0, late, &acquire, Some(Quiet)),
        ("acquire", &base, b, 0, late, &acquire, Some(Token)),
        ("acquire", &base, b, 0, NONE, &acquire, Some(Token)),
        ("acquire", &base, b, 3, late, &acquire, Some(Token)),
        ("acquire", &base, b, 0, t0, &acquire, Some(Held)),
        ("acquire its own", &base, a, 0, t0, &acquire, None),
        ("acquire an orphan", &base, b, 1, base.token(1), &acquire, None),
        ("acquire a free one", &base, b, 2, base.token(2), &acquire, None),
        ("acquire a new one", &base, b, 3, NONE, &acquire, None),
        ("release", &quiet, a, 0, t0, &release(), None),
        ("release", &base, a, 0, late, &release(), Some(Token)),
        ("release", &base, b, 0, t0, &release(), Some(NotHolder)),
        ("release an orphan", &base, b, 1, base.token(1), &release(), Some(NotHolder)),
        ("release a free one", &base, b, 2, base.token(2), &release(), None),
        ("release a new one", &base, b, 3, NONE, &release(), None),
        ("release a new one", &base, b, 3, late, &release(), Some(Token)),
        ("offer", &b_gone, c, 0, late, &offer(60, b), Some(Token)),
        ("offer", &b_gone, c, 0, t0, &offer(60, b), Some(NotHolder)),
        ("offer", &b_gone, a, 0, t0, &offer(60, b), Some(ReceiverGone)),
        ("offer to itself", &base, a, 0, t0, &offer(60, a), Some(ReceiverGone)),
        ("offer to another", &base, a, 0, t0, &offer(60, c), None),
        ("withdraw", &base, b, 0, late, &withdraw, Some(Token)),
        ("withdraw", &base, b, 0, t0, &withdraw, Some(NotHolder)),
        ("withdraw", &base, a, 0, t0, &withdraw, None),
        ("withdraw one that stands no more", &not_ready, a, 0, t0, &withdraw, None),
        ("accept", &base, b, 0, late, &accept, Some(Token)),
        ("accept", &base, c, 0, t0, &accept, Some(Offer)),
        ("accept again", &base, b, 0, t0, &accept, None),
        ("accept another", &not_ready, b, 0, t0, &accept, Some(Offer)),
        ("accept too late", &expired, b, 0, t0, &accept, Some(Offer)),
        ("accept nothing", &base, b, 3, NONE, &accept, Some(Offer)),
        ("refuse", &base, b, 0, late, &refuse, Some(Token)),
        ("refuse", &base, c, 0, t0, &refuse, Some(Offer)),
        ("refuse", &base, b, 0, t0, &refuse, None),
        ("transfer", &quiet, c, 0, late, &transfer(70, 50), Some(Quiet)),
        ("transfer", &b_gone, c, 0, late, &transfer(70, 50), Some(Token)),
        ("transfer", &b_gone, c, 0, t0, &transfer(70, 50), Some(NotHolder)),
        ("transfer", &b_gone, a, 0, t0, &transfer(70, 50), Some(ReceiverGone)),
        ("transfer", &base, a, 0, t0, &transfer(70, 49), Some(Offer)),
        ("transfer", &expired, a, 0, t0, &transfer(70, 50), Some(Offer)),
        ("transfer", &not_ready, a, 0, t0, &transfer(70, 51), Some(Offer)),
        ("transfer", &base, a, 0, t0, &transfer(70, 50), None),
        ("save", &base, b, 0, late, &save, Some(Token)),
        ("save", &base, b, 0, t0, &save, Some(NotHolder)),
        ("save an orphan's", &base, b, 1, base.token(1), &save, Some(NotHolder)),
        ("save", &base, a, 0, t0, &save, None),
        ("readopt", &base, b, 0, late, &readopt, Some(Token)),
        ("readopt", &quiet_known, b, 3, NONE, &readopt, Some(Token)),
        ("readopt", &quiet_known, b, 3, FencingToken::new(TOKEN_MAX + 1), &readopt, Some(Token)),
        ("readopt", &base, b, 0, t0, &readopt, Some(Held)),
        ("readopt an orphan", &quiet_known, b, 1, base.token(1), &readopt, Some(Held)),
        ("readopt what was let go", &base, b, 2, base.token(2), &readopt, Some(NotHolder)),
        ("readopt what was let go", &quiet_known, b, 2, base.token(2), &readopt, Some(NotHolder)),
        ("readopt", &base, a, 0, t0, &readopt, Some(NotQuiet)),
        ("readopt", &quiet, a, 0, t0, &readopt, Some(NotQuiet)),
        ("readopt a higher one", &quiet_known, b, 0, high, &readopt, None),
        ("readopt a forgotten one", &quiet_known, b, 3, high, &readopt, None),
        ("readopt its own", &quiet_known, a, 0, t0, &readopt, None),
    ];
    let mut wrong = String::new();
    for (what, world, session, unit, token, kind, expected) in cases {
        let mut world = (*world).clone();
        let before = world.store.revision();
        let found = match world.change(*session, *unit, *token, (*kind).clone()) {
            ChangeOutcome::Done(_) => None,
            ChangeOutcome::Refused(conflict, _) => Some(conflict),
        };
        if found != *expected {
            writeln!(wrong, "{what}: {found:?} instead of {expected:?}").unwrap();
        }
        if found.is_some() {
            assert_eq!(world.store.revision(), before, "{what}: a refused change changes nothing");
        }
    }
    assert_eq!(wrong, "");
}

#[test]
fn the_retry_of_an_acquisition_answers_the_same_grant_whatever_token_it_names() {
    let (mut world, a, b) = World::with_two();
    let ChangeOutcome::Done(Some(granted)) = world.acquire(a, 0, NONE, 9) else { panic!() };
    for token in [NONE, granted.token, FencingToken::new(5)] {
        let before = world.store.clone();
        assert_eq!(world.acquire(a, 0, token, 9), ChangeOutcome::Done(Some(granted.clone())));
        assert_eq!(world.store, before);
    }
    assert_eq!(conflict(&world.acquire(b, 0, NONE, 9)), Conflict::Token, "another session's is no retry");
    let ChangeOutcome::Done(Some(again)) = world.acquire(a, 0, granted.token, 10) else { panic!() };
    assert!(again.token > granted.token, "another acquisition raises the token, also by the holder");
}

#[test]
fn tokens_rise_above_everything_that_is_known() {
    let (mut world, a, _) = World::with_two();
    assert_eq!(world.acquired(a, 0).get(), 1_000_000_001, "the clock in microseconds");
    world.now = at(5);
    world.beat(a).unwrap();
    assert_eq!(world.acquired(a, 1).get(), 1_000_000_002, "the cluster's largest");
    world.known.token = FencingToken::new(7_000_000_000);
    world.beat(a).unwrap();
    world.known.token = NONE;
    assert_eq!(world.acquired(a, 2).get(), 7_000_000_001, "the largest that any node ever reported");
    world.known.token = FencingToken::new(TOKEN_MAX - 1);
    world.acquired(a, 3);
    assert_eq!(world.token(3).get(), TOKEN_MAX);
    let changes = vec![SlotChange { slot: slot(4), token: NONE, kind: ChangeKind::Acquire { operation: op(1) } }];
    let request = ChangeRequest { known: Known::default(), session: a, changes };
    let error = world.store.change(world.now, &request).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fatal, "a token that cannot rise is not granted");
}

#[test]
fn a_release_keeps_the_token_and_what_was_saved_and_wakes_everybody() {
    let (mut world, a, b) = World::with_two();
    let token = world.acquired(a, 0);
    let save = |text: &'static [u8]| Some(Bytes::from_static(text));
    let revision = world.store.revision();
    let kind = ChangeKind::SaveCheckpoint { checkpoint: Bytes::from_static(b"1") };
    let ChangeOutcome::Done(Some(seen)) = world.change(a, 0, token, kind) else { panic!() };
    assert_eq!((seen.checkpoint, world.store.revision()), (save(b"1"), revision));
    world.change(a, 0, token, offer(5, b));
    world.store.take_hints();
    world.wait(1);
    let refuse_for = Some(Duration::from_secs(3));
    let ChangeOutcome::Done(Some(seen)) =
        world.change(a, 0, token, ChangeKind::Release { checkpoint: None, refuse_for })
    else {
        panic!()
    };
    assert_eq!(world.store.take_hints(), [WatchHint::Everyone]);
    assert_eq!((seen.checkpoint, seen.holder, seen.offer), (None, None, None), "only the holder sees it");
    let record = world.record(0);
    assert_eq!((record.checkpoint.clone(), record.token), (save(b"1"), token));
    assert_eq!((record.freed_at, record.moved_at), (Some(at(1001)), None));
    assert_eq!(record.refusals, [crate::Refused { node: "a".parse().unwrap(), until: at(1004) }]);

    let ChangeOutcome::Done(Some(seen)) = world.acquire(b, 0, token, 7) else { panic!() };
    assert_eq!((seen.checkpoint.clone(), seen.freed_at), (save(b"1"), None));
    world.wait(3);
    let kind = ChangeKind::Release { checkpoint: save(b"2"), refuse_for: None };
    assert!(is_done(&world.change(b, 0, seen.token, kind)));
    assert_eq!(world.record(0).checkpoint, save(b"2"));
    assert_eq!(world.record(0).refusals, [], "those that have ended are dropped");
}

#[test]
fn an_offer_is_accepted_and_transferred_in_one_step_each() {
    let (mut world, a, b) = World::with_two();
    let token = world.acquired(a, 0);
    assert!(is_done(&world.change(a, 0, token, offer(5, b))));
    assert_eq!(world.store.take_hints(), [WatchHint::Session(b)]);
    let before = world.store.clone();
    assert!(is_done(&world.change(a, 0, token, offer(5, b))), "a retry");
    assert_eq!(world.store, before);
    assert!(is_done(&world.change(b, 0, token, ChangeKind::Accept { offer: op(5) })));
    assert_eq!(world.store.take_hints(), [WatchHint::Session(a)]);
    assert!(is_done(&world.change(a, 0, token, offer(5, b))), "a late retry does not take the readiness back");
    assert!(world.record(0).offer.as_ref().unwrap().ready);
    let ChangeOutcome::Done(Some(seen)) = world.change(a, 0, token, transfer(6, 5)) else { panic!() };
    assert_eq!(world.store.take_hints(), [WatchHint::Session(b)]);
    assert!(seen.is_held_by(b) && seen.token > token && seen.offer.is_none());
    assert_eq!((seen.granted_by, seen.moved_at, seen.taken_at), (op(6), Some(world.now), world.now));
    let before = world.store.clone();
    assert!(is_done(&world.change(a, 0, token, transfer(6, 5))), "a retry");
    assert_eq!(world.store, before);
    assert_eq!(world.store.held(a), Some(Held::default()));
    let mut held = Held::default();
    held.add(&slot(0), seen.token);
    assert_eq!(world.store.held(b), Some(held));

    let mut forced = offer(8, a);
    if let ChangeKind::Offer { forced, .. } = &mut forced {
        *forced = true;
    }
    world.wait(1);
    world.change(b, 0, seen.token, forced);
    world.change(a, 0, seen.token, ChangeKind::Accept { offer: op(8) });
    assert!(is_done(&world.change(b, 0, seen.token, transfer(9, 8))));
    assert_eq!(world.record(0).moved_at, seen.moved_at, "a forced one starts no cooldown");
}

#[test]
fn refusals_are_bounded_and_the_one_that_ends_first_gives_way() {
    let (mut world, a, _) = World::with_two();
    let token = world.acquired(a, 0);
    for number in 0..=REFUSALS_MAX as u128 {
        let receiver = world.opened(&format!("r{number}"), 100 + number);
        world.change(a, 0, token, offer(200 + number, receiver));
        world.store.take_hints();
        // The second one's is the shortest.
        let refuse_for = Duration::from_secs(if number == 1 { 1 } else { 100 });
        let refuse = ChangeKind::Refuse { offer: op(200 + number), refuse_for };
        assert!(is_done(&world.change(receiver, 0, token, refuse)));
        assert_eq!(world.store.take_hints(), [WatchHint::Session(a)]);
    }
    let names: Vec<_> = world.record(0).refusals.iter().map(|refused| refused.node.to_string()).collect();
    assert_eq!(names.len(), REFUSALS_MAX);
    assert!(names.contains(&"r0".to_owned()) && !names.contains(&"r1".to_owned()));
    let again = world.opened("r0", 100);
    world.change(a, 0, token, offer(300, again));
    world.change(again, 0, token, ChangeKind::Refuse { offer: op(300), refuse_for: Duration::from_secs(500) });
    assert_eq!(world.record(0).refusals.len(), REFUSALS_MAX, "one entry a node");
}

#[test]
fn what_is_too_large_is_refused_whole() {
    let (mut world, a, _) = World::with_two();
    let token = world.acquired(a, 0);
    let large = Bytes::from(vec![0; CHECKPOINT_BYTES_MAX + 1]);
    let good = SlotChange { slot: slot(0), token, kind: release() };
    let bad = |kind| SlotChange { slot: slot(0), token, kind };
    for last in [
        bad(ChangeKind::SaveCheckpoint { checkpoint: large.clone() }),
        bad(ChangeKind::Release { checkpoint: Some(large.clone()), refuse_for: None }),
        bad(ChangeKind::Transfer { operation: op(1), offer: op(2), checkpoint: Some(large.clone()) }),
        SlotChange { slot: slot(UNITS_MAX), token: NONE, kind: ChangeKind::Acquire { operation: op(1) } },
    ] {
        let request = ChangeRequest { known: world.known.clone(), session: a, changes: vec![good.clone(), last] };
        let error = world.store.change(world.now, &request).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Fatal);
        assert!(error.message().contains("use "), "{error}");
    }
    let request = ChangeRequest { known: world.known.clone(), session: a, changes: vec![good; 513] };
    assert_eq!(world.store.change(world.now, &request).unwrap_err().kind(), ErrorKind::Fatal);
    assert!(world.record(0).is_held_by(a));
}

// --- synchronization ---

#[test]
fn changes_come_in_pages_each_key_once_and_only_the_own_checkpoints() {
    let (mut world, a, b) = World::with_two();
    let since = world.store.revision().0;
    for unit in 0..5 {
        world.acquired(a, unit);
    }
    let token = world.token(0);
    let checkpoint = Bytes::from_static(b"x");
    world.change(a, 0, token, ChangeKind::SaveCheckpoint { checkpoint: checkpoint.clone() });
    world.change(a, 0, token, offer(1, b));
    let (mut since, mut seen) = (since, Vec::new());
    loop {
        let Sync::Changes { changes, up_to, more } = world.sync(b, Some(since), 2).unwrap().sync else { panic!() };
        assert!(changes.len() <= 2);
        seen.extend(changes);
        since = up_to.0;
        if !more {
            break;
        }
    }
    assert_eq!(Revision(since), world.store.revision());
    let units = seen.iter().map(|change| match change {
        Change::Slot(slot, Some(record)) => (slot.unit, record.checkpoint.clone()),
        other => panic!("{other:?}"),
    });
    assert_eq!(units.collect::<Vec<_>>(), [(1, None), (2, None), (3, None), (4, None), (0, None)]);
    let Sync::Changes { changes, .. } = world.sync(a, Some(since - 1), 2).unwrap().sync else { panic!() };
    assert!(matches!(&changes[..], [Change::Slot(_, Some(record))] if record.checkpoint == Some(checkpoint)));
    let nothing = Sync::Changes { changes: vec![], up_to: Revision(since - 1), more: true };
    assert_eq!(world.sync(a, Some(since - 1), 0).unwrap().sync, nothing);
}

#[test]
fn who_asks_from_before_the_tombstones_or_another_generation_takes_a_snapshot() {
    let mut world = World::new();
    world.store = world.store.with_tombstones_max(2);
    let a = world.opened("a", 1);
    world.known.generation = world.store.generation();
    let since = world.store.revision().0;
    for node in 0..3 {
        let session = world.opened("b", 10 + node);
        world.close(session);
    }
    // The sessions opened at since + 1, 3, 5 were closed at since + 2, 4, 6; the tombstone at since + 2 is forgotten.
    for (asked, expected) in
        [(since, true), (since + 1, true), (since + 2, false), (since + 6, false), (since + 7, true)]
    {
        let sync = world.sync(a, Some(asked), 512).unwrap().sync;
        assert_eq!(sync == Sync::Snapshot, expected, "{asked}: {sync:?}");
    }
    assert_eq!(world.sync(a, None, 512).unwrap().sync, Sync::NotAsked);
    world.known.generation = None;
    assert_eq!(world.sync(a, Some(since + 6), 512).unwrap().sync, Sync::Snapshot);
}

#[test]
fn a_snapshot_comes_in_pages_and_its_cursor_dies_with_the_generation() {
    let mut world = World::new();
    let mut capabilities = Capabilities::strict("model");
    capabilities.changes_max = 3;
    world.store = StoreModel::new(1, capabilities);
    let a = world.opened("a", 1);
    for unit in 0..7 {
        world.acquired(a, unit);
    }
    let mut request = SnapshotRequest { known: world.known.clone(), session: Some(a), cursor: None };
    let mut items = Vec::new();
    loop {
        let page = world.store.snapshot(world.now, &request).unwrap();
        assert!(page.items.len() <= 3);
        items.extend(page.items);
        request.cursor = page.next;
        if request.cursor.is_none() {
            break;
        }
    }
    assert_eq!(items.len(), 9, "settings, session, slots");
    request.cursor =
        world.store.snapshot(world.now, &SnapshotRequest { cursor: None, ..request.clone() }).unwrap().next;
    world.store.restart();
    assert_eq!(world.store.snapshot(world.now, &request).unwrap_err().kind(), ErrorKind::Conflict);
    request.cursor = Some(Cursor("nonsense".to_owned()));
    assert_eq!(world.store.snapshot(world.now, &request).unwrap_err().kind(), ErrorKind::Conflict);
}

// --- operators ---

#[test]
fn an_operators_write_is_a_compare_and_set() {
    let (mut world, _, _) = World::with_two();
    let key = RecordKey::Workload("w".parse().unwrap());
    let record = |units| Some(Record::Workload(WorkloadRecord::new(units)));
    assert!(!world.put(key.clone(), record(1), Some(1)), "it does not exist");
    assert_eq!(world.store.take_hints(), []);
    assert!(world.put(key.clone(), record(1), Some(0)));
    assert_eq!(world.store.take_hints(), [WatchHint::Everyone]);
    assert!(!world.put(key.clone(), record(2), Some(0)), "it exists");
    let revision = world.store.revision().0;
    assert!(world.put(key.clone(), record(1), None), "writing the same changes nothing");
    assert_eq!(world.store.revision().0, revision);
    assert!(world.put(key.clone(), record(2), Some(revision)));
    assert!(!world.put(key.clone(), None, Some(revision)));
    assert!(world.put(key.clone(), None, None) && world.put(key, None, Some(0)));

    let slot: Slot = "w/1".parse().unwrap();
    for (key, record) in [
        (RecordKey::Settings, Record::Pin("a".parse().unwrap())),
        (RecordKey::Settings, Record::Settings(ClusterSettings::new(Duration::ZERO))),
        (RecordKey::Workload("w".parse().unwrap()), Record::Workload(WorkloadRecord::new(UNITS_MAX + 1))),
        (
            RecordKey::Node("a".parse().unwrap()),
            Record::Node(crate::NodeWish { weight: Some(0), ..Default::default() }),
        ),
        (RecordKey::Pin(slot), Record::Settings(ClusterSettings::new(TTL))),
        (RecordKey::Pin(super::tests::slot(UNITS_MAX)), Record::Pin("a".parse().unwrap())),
    ] {
        let request = AdminRequest::Put { key, record: Some(record), expect: None };
        assert_eq!(world.store.administer(world.now, &request).unwrap_err().kind(), ErrorKind::Fatal, "{request:?}");
    }
}

#[test]
fn slots_are_deleted_with_their_workload_unless_they_are_held_or_declared() {
    let (mut world, a, b) = World::with_two();
    let workload: WorkloadName = "w".parse().unwrap();
    let key = RecordKey::Workload(workload.clone());
    world.acquired(a, 0);
    let before = world.acquired(b, 1);
    world.close(b);
    assert!(world.put(key.clone(), Some(Record::Workload(WorkloadRecord::new(2))), None));
    let revision = world.store.revision();
    assert!(world.put(key.clone(), None, None));
    assert_eq!(world.store.slots().map(|(slot, _)| slot.unit).collect::<Vec<_>>(), [0]);
    let Sync::Changes { changes, .. } = world.sync(a, Some(revision.0), 512).unwrap().sync else { panic!() };
    assert_eq!(changes, [Change::Record(key.clone(), None), Change::Slot(slot(1), None)]);
    assert!(world.acquired(a, 1) > before, "tokens rise across deletion");

    world.change(a, 0, world.token(0), release());
    let mut declaring = (*info("c")).clone();
    declaring.workloads.insert(workload, Declared::new(1));
    let request = OpenRequest { info: Arc::new(declaring), ..world.request("c", 3) };
    let c = opened(world.open(&request).unwrap());
    assert!(world.put(key.clone(), None, None));
    assert_eq!(world.store.slots().count(), 2);
    world.close(c);
    assert!(world.put(key, None, None), "deleting again deletes what was let go meanwhile");
    assert_eq!(world.store.slots().count(), 1);
}

#[test]
fn force_asks_the_holder_of_that_token_or_does_not_wait() {
    let (mut world, a, _) = World::with_two();
    let token = world.acquired(a, 0);
    let force = |world: &mut World, token, now| {
        let request = AdminRequest::ForceRelease { slot: slot(0), token, now };
        matches!(world.store.administer(world.now, &request).unwrap(), AdminOutcome::Done(_))
    };
    assert!(!force(&mut world, NONE, true));
    assert!(world.record(0).is_held_by(a));
    assert!(force(&mut world, token, false));
    assert_eq!(world.store.take_hints(), [WatchHint::Everyone]);
    let before = world.store.clone();
    assert!(force(&mut world, token, false));
    assert_eq!(world.store, before, "asking again changes nothing");
    assert!(world.record(0).is_held_by(a) && world.record(0).force == Some(token));
    assert!(force(&mut world, token, true));
    assert_eq!((world.record(0).holder.clone(), world.record(0).force), (None, Some(token)));
    assert_eq!(world.store.held(a), Some(Held::default()));
    assert!(is_done(&world.change(a, 0, token, release())));
    world.acquired(a, 0);
    assert_eq!(world.record(0).force, None);
}

// --- lost data ---

#[test]
fn a_cluster_without_a_trace_is_new_unless_somebody_remembers() {
    let (mut world, a, b) = World::with_two();
    let old = world.store.generation();
    let token = world.acquired(a, 0);
    world.store.lose_everything();
    let mut stranger = world.clone();
    stranger.known = Known::default();
    stranger.opened("c", 9);
    assert_eq!(stranger.store.quiet(stranger.now), Duration::ZERO);
    assert_ne!(stranger.store.generation(), old);
    let fresh = stranger.store.generation();
    // A node that remembers comes later.
    stranger.known = world.known.clone();
    assert_eq!(stranger.beat(b).unwrap_err().kind(), ErrorKind::Lost);
    assert_eq!(stranger.store.quiet(stranger.now), TTL + QUIET_MARGIN);
    assert_ne!(stranger.store.generation(), fresh);

    world.known.token = token;
    assert_eq!(world.beat(a).unwrap_err().kind(), ErrorKind::Lost, "the session is gone with the rest");
    assert_eq!(world.store.quiet(world.now), TTL + QUIET_MARGIN);
    assert_eq!(world.store.token().get(), token.get() + TOKEN_FLOOR_STEP);
    let second = world.store.generation();
    assert_eq!(world.beat(b).unwrap_err().kind(), ErrorKind::Lost);
    assert_eq!(world.store.generation(), second, "the next report of the same generation is not news");
    world.known.generation = Some(Generation::from_bits(77));
    let _ = world.beat(b);
    assert_ne!(world.store.generation(), second, "that of another one is");
}

#[test]
fn a_cold_start_waits_where_the_settings_say_so_and_only_once() {
    let mut world = World::new();
    let mut request = world.request("a", 1);
    let mut held = (*info("a")).clone();
    held.settings.cold_start_hold = Duration::from_secs(30);
    request.info = Arc::new(held);
    let a = opened(world.open(&request).unwrap());
    assert_eq!(world.store.quiet(world.now), Duration::from_secs(30));
    assert_eq!(conflict(&world.acquire(a, 0, NONE, 1)), Conflict::Quiet);
    world.wait_with(30, &[a]);
    world.acquired(a, 0);
    world.opened("b", 2);
    assert_eq!(world.store.quiet(world.now), Duration::ZERO);
}

#[test]
fn a_new_history_sets_off_a_quiet_time_and_sessions_live_on() {
    let (mut world, a, b) = World::with_two();
    let token = world.acquired(a, 0);
    let first = world.store.generation().unwrap();
    world.store.restart();
    let beat = world.beat(a).unwrap();
    assert_ne!(beat.stamp.generation, first);
    assert_eq!(beat.stamp.quiet, TTL + QUIET_MARGIN);
    assert_eq!(beat.held.count, 1);
    for (session, unit, token) in [(a, 0, token), (b, 1, NONE)] {
        assert_eq!(conflict(&world.acquire(session, unit, token, 1000)), Conflict::Quiet, "not even a retry");
    }
    world.wait_with(10, &[a, b]);
    assert_eq!(conflict(&world.acquire(b, 1, NONE, 5)), Conflict::Quiet);
    world.wait_with(1, &[a, b]);
    assert!(world.acquired(b, 1).get() > token.get() + TOKEN_FLOOR_STEP);
    assert_eq!(world.beat(a).unwrap().stamp.generation, beat.stamp.generation, "an ancestor is no news");
}

#[test]
fn the_quiet_time_covers_the_longest_ttl_that_anybody_knows() {
    let (mut world, a, _) = World::with_two();
    world.known.session_ttl_max = Duration::from_secs(60);
    world.store.restart();
    assert_eq!(world.beat(a).unwrap().stamp.quiet.as_secs(), 61);
    world.wait(1);
    world.known.session_ttl_max = Duration::from_secs(90);
    assert_eq!(world.beat(a).unwrap().stamp.quiet.as_secs(), 90, "a later report lengthens it, from the loss on");
    world.known.generation = world.store.generation();
    world.known.session_ttl_max = Duration::from_secs(900);
    assert_eq!(world.beat(a).unwrap().stamp.quiet.as_secs(), 90, "a report of this generation does not");
    world.known = Known { session_ttl_max: Duration::MAX, generation: Some(Generation::from_bits(1)), token: NONE };
    let quiet = world.beat(a).unwrap().stamp.quiet;
    assert_eq!(quiet, world.store.capabilities().ttl_max + QUIET_MARGIN, "nobody can make it last for ever");
    let mut lagging = Capabilities::strict("model");
    lagging.replica_lag_max = Duration::from_secs(3);
    let mut store = StoreModel::new(1, lagging);
    let known = Known { generation: Some(Generation::from_bits(1)), session_ttl_max: TTL, token: NONE };
    let page = store.snapshot(at(5), &SnapshotRequest { known, session: None, cursor: None }).unwrap();
    assert_eq!(page.stamp.quiet.as_secs(), 14);
}

#[test]
fn a_clock_that_goes_back_counts_the_quiet_time_anew_and_never_brings_it_back() {
    let (mut world, a, _) = World::with_two();
    world.store.restart();
    world.beat(a).unwrap();
    world.now = at(500);
    assert_eq!(world.beat(a).unwrap().stamp.quiet, TTL + QUIET_MARGIN);
    world.wait_with(11, &[a]);
    assert_eq!(world.beat(a).unwrap().stamp.quiet, Duration::ZERO);
    world.now = at(100);
    world.acquired(a, 0);
}

#[test]
fn a_failover_that_lost_writes_lets_the_true_holder_readopt() {
    let (mut world, a, b) = World::with_two();
    let old_token = world.acquired(a, 0);
    let replica = world.store.clone();
    world.change(a, 0, old_token, release());
    let token = world.acquired(b, 0);
    let lost_session = world.opened("c", 3);
    let lost_token = world.acquired(lost_session, 1);
    world.store.roll_back(&replica);
    assert!(world.record(0).is_held_by(a));
    world.beat(b).unwrap();
    assert_eq!(world.beat(lost_session).unwrap_err().kind(), ErrorKind::Lost);
    assert_eq!(conflict(&world.change(b, 0, token, ChangeKind::Readopt)), Conflict::NotQuiet, "names the old one");
    world.known.generation = world.store.generation();
    assert!(is_done(&world.change(b, 0, token, ChangeKind::Readopt)));
    assert!(world.record(0).is_held_by(b) && world.record(0).token == token);
    assert_eq!((world.store.held(a).unwrap().count, world.store.held(b).unwrap().count), (0, 1));
    let before = world.store.clone();
    assert!(is_done(&world.change(b, 0, token, ChangeKind::Readopt)), "a retry");
    assert_eq!(world.store, before);
    assert_eq!(conflict(&world.change(a, 0, old_token, ChangeKind::Readopt)), Conflict::Token);
    let again = world.opened("c", 4);
    assert_ne!(again, lost_session);
    assert!(is_done(&world.change(again, 1, lost_token, ChangeKind::Readopt)));
    world.wait_with(12, &[a, b, again]);
    assert_eq!(conflict(&world.change(a, 2, token, ChangeKind::Readopt)), Conflict::NotQuiet);
    assert!(world.acquired(a, 2) > lost_token);
}

#[test]
fn the_same_node_keeps_its_slot_across_sessions_in_the_quiet_time_only() {
    let (mut world, a, _) = World::with_two();
    let token = world.acquired(a, 0);
    world.close(a);
    let again = world.opened("a", 8);
    assert_eq!(conflict(&world.change(again, 0, token, ChangeKind::Readopt)), Conflict::NotQuiet);
    world.store.restart();
    world.beat(again).unwrap();
    world.known.generation = world.store.generation();
    assert!(is_done(&world.change(again, 0, token, ChangeKind::Readopt)));
    assert!(world.record(0).is_held_by(again));
}

#[test]
fn hints_are_bounded() {
    let (mut world, a, _) = World::with_two();
    for number in 0..200 {
        let receiver = world.opened(&format!("r{number}"), 100 + number);
        let token = world.acquired(a, number as u32);
        world.change(a, number as u32, token, offer(500 + number, receiver));
    }
    let hints = world.store.take_hints();
    assert!(hints.len() <= 65 && hints.contains(&WatchHint::Everyone));
}

#[test]
fn every_call_has_its_reply() {
    let (mut world, a, _) = World::with_two();
    let (now, known) = (world.now, world.known.clone());
    let open = world.request("c", 3);
    let beat =
        HeartbeatRequest { known: known.clone(), session: a, since: None, changes_max: 1, due_within: TTL, info: None };
    let change = ChangeRequest { known: known.clone(), session: a, changes: vec![] };
    let snapshot = SnapshotRequest { known: known.clone(), session: None, cursor: None };
    for (call, reply) in [
        (Call::Open(open), "Open"),
        (Call::Heartbeat(beat), "Heartbeat"),
        (Call::Change(change), "Change"),
        (Call::Snapshot(snapshot), "Snapshot"),
        (Call::Close(CloseRequest { known, session: a }), "Close"),
    ] {
        assert!(format!("{:?}", world.store.call(now, &call).unwrap()).starts_with(reply));
    }
    let node: NodeId = "a".parse().unwrap();
    assert!(world.store.sessions().all(|(_, record, _)| record.info.node != node));
}
