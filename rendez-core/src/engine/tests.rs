//! What must hold when answers come in an order that worlds seldom bring about.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::store::{Change, OpenRequest, Opening, SnapshotRequest, Sync};
use crate::{ChangeKind, ClusterSettings, StoreModel, StoreTime};

const TTL: Duration = Duration::from_secs(10);

/// A node with its store: a request is carried out at once, and its answer handed over when the test says so.
struct Stage {
    engine: Engine,
    store: StoreModel,
    now: Timestamp,
    /// What the store has answered and the node not heard.
    answers: Vec<(RequestId, Result<Reply, crate::StoreError>)>,
    told: Vec<Event>,
    runs: Vec<(Slot, FencingToken)>,
    /// How many batches of changes were sent.
    batches: usize,
    /// What others do before the first of them comes to the store.
    meanwhile: Option<fn(&mut Stage)>,
}

impl Stage {
    fn new(units: u32) -> Self {
        let mut info = info("a");
        info.workloads.insert("w".try_into().unwrap(), crate::Declared::new(units));
        let capabilities = Capabilities::strict("model");
        let setup = EngineSetup {
            info,
            incarnation: Incarnation::from_bits(1),
            capabilities: capabilities.clone(),
            config: EngineConfig::for_ttl(TTL),
            seed: 1,
        };
        let now = Timestamp::from_nanos(1);
        let (store, engine) = (StoreModel::new(1, capabilities), Engine::new(now, setup));
        Self {
            engine,
            store,
            now,
            answers: Vec::new(),
            told: Vec::new(),
            runs: Vec::new(),
            batches: 0,
            meanwhile: None,
        }
    }

    fn store_time(&self) -> StoreTime {
        StoreTime::from_micros(1_000_000_000 + self.now.as_nanos() / 1000)
    }

    /// Does what the node wants; runners start and end at once.
    fn act(&mut self) {
        while let Some(action) = self.engine.poll_action(self.now) {
            match action {
                Action::Send { request, call, .. } => {
                    if matches!(call, Call::Change(_)) {
                        self.batches += 1;
                        if let Some(meanwhile) = self.meanwhile.take() {
                            meanwhile(self);
                        }
                    }
                    let answer = self.store.call(self.store_time(), &call);
                    self.answers.push((request, answer));
                }
                Action::Start { slot, token, .. } => self.runs.push((slot, token)),
                Action::Stop { slot, token, .. } => {
                    self.runs.retain(|(running, _)| *running != slot);
                    let ended = Input::RunnerEnded { slot, token, end: RunnerEnd::Returned, checkpoint: None };
                    self.engine.handle(self.now, ended);
                }
                Action::Tell(event) => self.told.push(event),
                Action::WarmUp { slot, offer } => {
                    self.engine.handle(self.now, Input::WarmedUp { slot, offer, ready: true });
                }
                Action::Extend { .. }
                | Action::Abort { .. }
                | Action::CoolDown { .. }
                | Action::CheckpointSaved { .. }
                | Action::Session(_)
                | Action::Terminate { .. }
                | Action::Stopped(_) => {}
            }
        }
    }

    /// Hands over the answers of this kind.
    fn hear(&mut self, which: impl Fn(&Reply) -> bool) {
        self.hear_those(|answer| answer.is_ok_and(&which));
    }

    /// Hands over all answers but those of this kind, errors too.
    fn hear_all_but(&mut self, which: impl Fn(&Reply) -> bool) {
        self.hear_those(|answer| !answer.is_ok_and(&which));
    }

    fn hear_those(&mut self, which: impl Fn(Result<&Reply, &crate::StoreError>) -> bool) {
        let (heard, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.answers).into_iter().partition(|(_, answer)| which(answer.as_ref()));
        self.answers = kept;
        for (request, answer) in heard {
            self.engine.handle(self.now, Input::Reply(request, answer));
        }
        self.act();
    }

    /// Time passes, and every answer comes at once, until something is so.
    fn until(&mut self, what: &str, so: impl Fn(&Self) -> bool) {
        for _ in 0..100_000 {
            self.act();
            if so(self) {
                return;
            }
            self.hear(|_| true);
            self.now += Duration::from_millis(1);
            self.engine.handle_timeout(self.now);
        }
        panic!("not so: {what}; {:?}", self.told);
    }

    /// Another node opens a session, unheard by the first one.
    fn open_another(&mut self, node: &str, units: u32) -> SessionId {
        let mut info = info(node);
        info.workloads.insert("w".try_into().unwrap(), crate::Declared::new(units));
        let request = OpenRequest {
            known: Known::default(),
            operation: OperationId::from_bits(1),
            incarnation: Incarnation::from_bits(2),
            replaces: None,
            ttl: TTL,
            info: Arc::new(info),
        };
        let at = self.store_time();
        let Opening::Opened { session, .. } = self.store.open(at, &request).unwrap() else { panic!("in use") };
        session
    }

    /// A change by another node's session.
    fn change_as(&mut self, session: SessionId, slot: &Slot, token: FencingToken, kind: ChangeKind) {
        let at = self.store_time();
        let changes = vec![crate::SlotChange { slot: slot.clone(), token, kind }];
        let reply = self.store.change(at, &ChangeRequest { known: Known::default(), session, changes }).unwrap();
        assert!(matches!(reply.outcomes[..], [crate::ChangeOutcome::Done(_)]), "{reply:?}");
    }

    fn is_waiting_for(&self, which: impl Fn(&Reply) -> bool) -> bool {
        self.answers.iter().any(|(_, answer)| answer.as_ref().is_ok_and(&which))
    }
}

fn info(node: &str) -> NodeInfo {
    NodeInfo::new(NodeId::new(node).unwrap(), ClusterSettings::new(TTL))
}

fn is_change(reply: &Reply) -> bool {
    matches!(reply, Reply::Change(_))
}

fn is_beat(reply: &Reply) -> bool {
    matches!(reply, Reply::Heartbeat(_))
}

/// A heartbeat's answer that shows a slot which node `a` does not hold any more.
fn shows_the_loss(reply: &Reply) -> bool {
    let Reply::Heartbeat(beat) = reply else { return false };
    let lost = |change: &Change| match change {
        Change::Slot(_, Some(record)) => record.holder.as_ref().is_none_or(|holder| holder.node.as_str() != "a"),
        _ => false,
    };
    matches!(&beat.sync, Sync::Changes { changes, .. } if changes.iter().any(lost))
}

#[test]
fn a_release_is_told_also_where_a_heartbeat_shows_it_before_it_is_answered() {
    let mut stage = Stage::new(2);
    stage.until("both slots run", |stage| stage.runs.len() == 2);
    stage.until("all is answered", |stage| stage.answers.is_empty());
    stage.engine.handle(stage.now, Input::Command(Command::Shutdown));
    // The answers to the releases are held back until a heartbeat has told of them.
    for _ in 0..100_000 {
        stage.act();
        if stage.is_waiting_for(is_change) && stage.is_waiting_for(shows_the_loss) {
            break;
        }
        stage.hear(|reply| !is_change(reply));
        stage.now += Duration::from_millis(1);
        stage.engine.handle_timeout(stage.now);
    }
    assert!(stage.is_waiting_for(is_change), "the answer to the releases is still on its way");
    stage.hear(is_beat);
    stage.until("the node ends", |stage| stage.engine.poll_timeout() == Timestamp::NEVER);
    let released = stage.told.iter().filter(|event| matches!(event, Event::Released { .. })).count();
    assert_eq!(released, 2, "{:?}", stage.told);
}

#[test]
fn a_handoff_is_told_also_where_a_heartbeat_shows_it_before_it_is_answered() {
    let mut stage = Stage::new(1);
    stage.until("the slot runs", |stage| stage.runs.len() == 1);
    let b = stage.open_another("b", 1);
    stage.until("the node knows of the other", |stage| stage.engine.view().session(b).is_some());
    stage.engine.handle(stage.now, Input::Command(Command::Shutdown));
    let slot: Slot = "w/0".parse().unwrap();
    let mut accepted = false;
    for _ in 0..100_000 {
        stage.act();
        let at = stage.store_time();
        let page = SnapshotRequest { known: Known::default(), session: None, cursor: None };
        let items = stage.store.snapshot(at, &page).unwrap().items;
        let record = items.iter().find_map(|item| match item {
            Change::Slot(shown, Some(record)) if *shown == slot => Some(record.clone()),
            _ => None,
        });
        let record = record.unwrap();
        if let Some(offer) = record.offer.as_ref().filter(|_| !accepted) {
            stage.change_as(b, &slot, record.token, ChangeKind::Accept { offer: offer.id });
            accepted = true;
        }
        let handed_over = record.is_held_by(b);
        if handed_over && stage.is_waiting_for(shows_the_loss) {
            break;
        }
        stage.hear(|reply| !(handed_over && is_change(reply)));
        stage.now += Duration::from_millis(1);
        stage.engine.handle_timeout(stage.now);
    }
    assert!(stage.is_waiting_for(is_change), "the answer to the transfer is still on its way");
    stage.hear(is_beat);
    stage.until("the node ends", |stage| stage.engine.poll_timeout() == Timestamp::NEVER);
    let over = stage.told.iter().filter(|event| matches!(event, Event::HandedOver { to, .. } if to.as_str() == "b"));
    assert_eq!(over.count(), 1, "{:?}", stage.told);
}

#[test]
fn a_slot_whose_holder_is_newer_than_the_view_is_no_orphan() {
    let mut stage = Stage::new(1);
    stage.meanwhile = Some(|stage| {
        let b = stage.open_another("b", 1);
        let acquire = ChangeKind::Acquire { operation: OperationId::from_bits(2) };
        stage.change_as(b, &"w/0".parse().unwrap(), FencingToken::NONE, acquire);
    });
    stage.until("the node knows of the other", |stage| stage.engine.view().sessions().count() == 2);
    assert_eq!(stage.batches, 1, "asked once, and told who holds it");
}

#[test]
fn who_resigns_lets_go_when_its_runner_has_ended_and_leaves_the_slot_to_others_for_a_while() {
    let mut stage = Stage::new(1);
    let slot: Slot = "w/0".parse().unwrap();
    stage.until("the slot runs", |stage| stage.runs.len() == 1);
    let (_, first) = stage.runs[0].clone();
    stage.engine.handle(stage.now, Input::Command(Command::Resign("w/7".parse().unwrap())));
    stage.engine.handle(stage.now, Input::Command(Command::Resign(slot.clone())));
    let stops = |event: &&Event| matches!(event, Event::Stopping { why: StopReason::Resigned, .. });
    stage.until("it is let go", |stage| stage.told.iter().any(|event| matches!(event, Event::Released { .. })));
    assert_eq!(stage.told.iter().filter(stops).count(), 1, "{:?}", stage.told);
    let (resigned_at, record) = (stage.now, stage.engine.view().slot(&slot).unwrap().clone());
    assert_eq!((record.holder, record.refusals.len()), (None, 1));
    // Again, while it holds nothing: nothing comes of it.
    stage.engine.handle(stage.now, Input::Command(Command::Resign(slot.clone())));
    stage.until("nobody else takes it, so it runs here again", |stage| stage.runs.len() == 1);
    let waited = stage.now.since(resigned_at);
    assert!(waited + Duration::from_millis(10) >= TTL && waited < TTL * 2, "after {waited:?}");
    assert!(stage.runs[0].1 > first);
    assert_eq!(stage.told.iter().filter(stops).count(), 1, "{:?}", stage.told);
}

#[test]
fn what_a_readoption_took_that_was_not_answered_is_given_back_when_its_runner_has_ended() {
    let mut stage = Stage::new(1);
    let slot: Slot = "w/0".parse().unwrap();
    stage.until("the slot runs", |stage| stage.runs.len() == 1);
    stage.until("all is answered", |stage| stage.answers.is_empty());
    let (_, token) = stage.runs[0].clone();
    stage.store.lose_everything();
    // The answer to the re-adoption is held back, and a heartbeat shows that it was made.
    let readopted = |stage: &Stage| {
        let session = stage.engine.session().map(|(session, _)| session);
        session.is_some_and(|mine| stage.engine.view().slot(&slot).is_some_and(|record| record.is_held_by(mine)))
    };
    for _ in 0..100_000 {
        stage.act();
        if stage.is_waiting_for(is_change) && readopted(&stage) {
            break;
        }
        stage.hear_all_but(is_change);
        stage.now += Duration::from_millis(1);
        stage.engine.handle_timeout(stage.now);
    }
    assert!(stage.is_waiting_for(is_change) && readopted(&stage), "{:?}", stage.told);
    assert_eq!(stage.runs.len(), 1, "it runs on: {:?}", stage.told);
    stage.runs.clear();
    let ended = Input::RunnerEnded { slot: slot.clone(), token, end: RunnerEnd::Returned, checkpoint: None };
    stage.engine.handle(stage.now, ended);
    let unanswered = std::mem::take(&mut stage.answers);
    for (request, _) in unanswered {
        let lost = Err(crate::StoreError::new(ErrorKind::Ambiguous, "no answer in time"));
        stage.engine.handle(stage.now, Input::Reply(request, lost));
    }
    let again = |stage: &Stage| stage.runs.iter().any(|(_, later)| *later > token);
    stage.until("it is given back, and taken anew after the quiet time", again);
}
