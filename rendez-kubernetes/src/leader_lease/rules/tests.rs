//! The rules against a server of three lines, in virtual time.

use rendez_core::Timestamp;
use serde_json::{Value, json};

use super::*;

fn at(seconds: f64) -> Timestamp {
    Timestamp::from_nanos(0) + Duration::from_secs_f64(1000.0 + seconds)
}

/// What an API server does with one Lease.
#[derive(Default)]
pub(super) struct Server {
    pub(super) lease: Option<Value>,
    version: u64,
    uids: u64,
    writes: usize,
}

impl Server {
    pub(super) fn get(&self) -> Option<Observed> {
        self.lease.clone().map(|lease| Observed::new(serde_json::from_value(lease).unwrap()).unwrap())
    }

    pub(super) fn put(&mut self, object: &DynamicObject) -> Wrote {
        let mut sent = serde_json::to_value(object).unwrap();
        let named = |key: &str| self.lease.as_ref().map(|lease| lease["metadata"][key].clone()).unwrap_or_default();
        let [uid, version] = ["uid", "resourceVersion"].map(|key| sent["metadata"][key].clone());
        let fits = if uid.is_null() {
            self.lease.is_none()
        } else {
            uid == named("uid") && version == named("resourceVersion")
        };
        if !fits {
            return Wrote::Conflict;
        }
        self.writes += 1;
        self.version += 1;
        if uid.is_null() {
            self.uids += 1;
            sent["metadata"]["uid"] = json!(format!("uid-{}", self.uids));
        }
        sent["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.lease = Some(sent);
        Wrote::Done(Box::new(self.get().unwrap()))
    }

    /// Somebody else writes these fields.
    fn write(&mut self, spec: Value) {
        let before = self.get();
        let object = match &before {
            Some(before) => {
                let mut object = before.with(&before.record);
                spec.as_object().unwrap().iter().for_each(|(key, value)| object.data["spec"][key] = value.clone());
                object
            }
            None => first("a", &Record::default()).data(json!({ "spec": spec })),
        };
        assert!(matches!(self.put(&object), Wrote::Done(_)));
    }

    /// A Go participant holds it, and renews it.
    fn held_by(&mut self, holder: &str, beat: u32) {
        let time = format!("2001-01-01T00:00:00.{beat:06}Z");
        self.write(json!({
            "holderIdentity": holder, "leaseDurationSeconds": 15, "renewTime": time, "leaseTransitions": 7,
        }));
    }

    pub(super) fn annotate(&mut self, note: u32) {
        let mut object = self.get().unwrap().with(&self.get().unwrap().record);
        object.metadata.annotations = Some([("note".to_owned(), note.to_string())].into());
        assert!(matches!(self.put(&object), Wrote::Done(_)));
    }

    fn record(&self) -> Record {
        self.get().unwrap().record
    }
}

fn options() -> LeaderLeaseOptions {
    LeaderLeaseOptions::new("n", "a", "us")
}

fn rules() -> Rules {
    Rules::new(options(), 1)
}

/// Answers everything at once, until there is nothing to do before a moment. Says when something was written.
fn run(rules: &mut Rules, server: &mut Server, mut now: Timestamp, to: Timestamp) -> Vec<Timestamp> {
    let mut written = Vec::new();
    loop {
        match rules.next(now, 0) {
            Step::Read => rules.read(now, server.get()),
            Step::Write(object) => {
                let outcome = server.put(&object);
                if let Wrote::Done(_) = outcome {
                    written.push(now);
                }
                rules.wrote(now, outcome);
            }
            Step::Wait(until) if until > to => return written,
            Step::Wait(until) => {
                assert!(until > now, "it would wait for what is over");
                assert!(rules.changes_at(now) > now, "it would wake without end");
                now = until;
            }
            Step::Over => return written,
        }
    }
}

fn leads(rules: &Rules, now: Timestamp) -> bool {
    rules.view(now).tenure.is_some()
}

fn token(rules: &Rules, now: Timestamp) -> u64 {
    rules.view(now).tenure.map_or(0, |tenure| tenure.token.get())
}

/// A participant that leads since zero seconds.
fn leader() -> (Rules, Server) {
    let (mut rules, mut server) = (rules(), Server::default());
    assert_eq!(run(&mut rules, &mut server, at(0.0), at(0.1)), [at(0.0)]);
    assert!(leads(&rules, at(0.1)));
    (rules, server)
}

/// The next thing to do at a moment must be a write.
fn write(rules: &mut Rules, now: Timestamp) -> DynamicObject {
    match rules.next(now, 0) {
        Step::Write(object) => *object,
        other => panic!("{other:?}"),
    }
}

fn failure(fatal: bool, retry_after: Option<u64>) -> Failure {
    Failure { fatal, retry_after: retry_after.map(Duration::from_secs), message: "trouble".to_owned() }
}

#[test]
fn the_first_one_makes_the_lease_and_renews_it_in_time() {
    let (mut rules, mut server) = leader();
    let made = server.record();
    assert_eq!((made.holder.as_str(), made.duration_seconds, made.transitions), ("us", Some(15), 1));
    assert_eq!(made.acquired, made.renewed);
    assert_eq!(token(&rules, at(0.1)), 1);
    assert_eq!(run(&mut rules, &mut server, at(0.1), at(12.0)), [at(5.0), at(10.0)]);
    let renewed = server.record();
    assert_eq!((renewed.acquired, renewed.transitions), (made.acquired, 1));
    assert!(renewed.renewed > made.renewed, "a wall clock that stands still changes the Lease all the same");
    let view = rules.view(at(12.0));
    assert_eq!(view.tenure.unwrap().deadline, at(20.0));
    assert_eq!(view.leader, Some(Leader { identity: "us".to_owned(), until: at(20.0) }));
}

/// Whatever goes wrong after the last success, leadership ends with the deadline that this success gave.
#[test]
fn no_error_and_no_silence_prolongs_leadership() {
    type Trouble = fn() -> Wrote;
    let troubles: [(&str, Trouble); 5] = [
        ("unknown", || Wrote::Unknown("?".into())),
        ("transient", || Wrote::Failed(failure(false, None))),
        ("fatal", || Wrote::Failed(failure(true, None))),
        ("throttled", || Wrote::Failed(failure(false, Some(600)))),
        ("conflict", || Wrote::Conflict),
    ];
    for (what, trouble) in troubles {
        let (mut rules, _) = leader();
        let (mut now, mut tries) = (at(5.0), 0);
        while now < at(10.0) {
            assert!(leads(&rules, now), "{what}: it is given up at {now:?}");
            match rules.next(now, 0) {
                Step::Read => {
                    tries += 1;
                    rules.read_failed(now, failure(false, None));
                }
                Step::Write(_) => {
                    tries += 1;
                    rules.wrote(now, trouble());
                }
                Step::Wait(until) => now = until,
                Step::Over => panic!("over"),
            }
        }
        assert!(!leads(&rules, at(10.0)), "{what}");
        assert!(tries >= 3, "{what}: it gave up after {tries} tries");
    }
}

#[test]
fn a_transient_error_is_outlived() {
    let (mut rules, mut server) = leader();
    write(&mut rules, at(5.0));
    rules.wrote(at(5.0), Wrote::Failed(failure(false, None)));
    assert_eq!(rules.view(at(5.0)).trouble.as_deref(), Some("trouble"));
    let written = run(&mut rules, &mut server, at(5.0), at(9.0));
    assert!(written.len() == 1 && written[0] >= at(7.0) && written[0] <= at(7.4), "{written:?}");
    assert!(leads(&rules, at(16.0)) && rules.view(at(9.0)).trouble.is_none());
    assert_eq!(token(&rules, at(16.0)), 1, "it is the same tenure");
}

/// The deadline counts from before the write was sent, however late the answer comes.
#[test]
fn a_late_answer_gives_no_more_time() {
    let (mut rules, mut server) = leader();
    let object = write(&mut rules, at(5.0));
    let done = server.put(&object);
    rules.wrote(at(9.9), done);
    assert!(leads(&rules, at(14.9)) && !leads(&rules, at(15.0)));
    // And what comes after the deadline does not bring the tenure back, though the Lease was held all the while.
    let object = write(&mut rules, at(14.0));
    let done = server.put(&object);
    rules.wrote(at(15.1), done);
    assert!(!leads(&rules, at(15.1)));
    run(&mut rules, &mut server, at(15.1), at(15.2));
    assert_eq!((leads(&rules, at(15.2)), token(&rules, at(15.2))), (true, 2), "a new tenure has a new token");
}

#[test]
fn who_was_frozen_does_not_lead_when_it_wakes() {
    let (mut rules, mut server) = leader();
    assert!(!leads(&rules, at(3600.0)), "before it has done anything");
    // Nobody has taken the Lease: it is taken anew.
    run(&mut rules, &mut server, at(3600.0), at(3600.5));
    assert_eq!(token(&rules, at(3600.5)), 2);
    // Somebody has: the first write finds that out, and nobody is disturbed.
    server.held_by("go", 1);
    let writes = server.writes;
    run(&mut rules, &mut server, at(7200.0), at(7201.0));
    assert_eq!((leads(&rules, at(7201.0)), server.writes), (false, writes));
    assert_eq!(rules.view(at(7201.0)).leader.unwrap().identity, "go");
}

#[test]
fn others_are_judged_by_what_is_seen_to_change_and_by_nothing_else() {
    // Their clock is decades ahead, or behind; they say nothing of a duration.
    for renewed in ["2090-01-01T00:00:00.000000Z", "1990-01-01T00:00:00.000000Z"] {
        let (mut rules, mut server) = (rules(), Server::default());
        server.write(json!({ "holderIdentity": "go", "renewTime": renewed }));
        let written = run(&mut rules, &mut server, at(0.0), at(30.0));
        assert!(written[0] >= at(15.15) && written[0] <= at(15.35), "{written:?}");
    }
    // Each change begins a new wait, and an annotation is none.
    let (mut rules, mut server) = (rules(), Server::default());
    server.held_by("go", 0);
    for beat in 1..10 {
        assert!(run(&mut rules, &mut server, at(f64::from(beat) * 8.0 - 8.0), at(f64::from(beat) * 8.0)).is_empty());
        server.held_by("go", beat);
    }
    assert!(run(&mut rules, &mut server, at(72.0), at(76.0)).is_empty());
    server.annotate(1);
    assert!(run(&mut rules, &mut server, at(76.0), at(87.0)).is_empty());
    server.annotate(2);
    let written = run(&mut rules, &mut server, at(87.0), at(91.0));
    assert!(written[0] >= at(87.15) && written[0] < at(90.0), "seen at 72 s or up to 2.4 s later: {written:?}");
    assert_eq!(token(&rules, at(91.0)), 8, "one more than they had");
}

#[test]
fn the_longer_duration_counts() {
    for (seconds, least) in [(60, 60.6), (1, 15.15)] {
        let (mut rules, mut server) = (rules(), Server::default());
        server.write(json!({ "holderIdentity": "go", "leaseDurationSeconds": seconds }));
        let written = run(&mut rules, &mut server, at(0.0), at(90.0));
        assert!(written[0] >= at(least) && written[0] <= at(least + 0.2), "{seconds}: {written:?}");
    }
}

#[test]
fn an_observer_that_stood_still_takes_nothing_from_who_has_renewed() {
    let (mut rules, mut server) = (rules(), Server::default());
    server.held_by("go", 0);
    run(&mut rules, &mut server, at(0.0), at(1.0));
    server.held_by("go", 1);
    let writes = server.writes;
    assert!(run(&mut rules, &mut server, at(600.0), at(610.0)).is_empty());
    assert_eq!(server.writes, writes);
}

#[test]
fn a_release_is_followed_at_once_when_it_is_heard_and_by_polling_when_not() {
    for watching in [true, false] {
        let (mut rules, mut server) = (rules(), Server::default());
        server.held_by("go", 0);
        rules.set_watching(at(0.0), watching);
        run(&mut rules, &mut server, at(0.0), at(1.0));
        server.write(json!({ "holderIdentity": "", "leaseDurationSeconds": 1 }));
        if watching {
            rules.heard(at(1.0), server.get().unwrap());
        }
        let written = run(&mut rules, &mut server, at(1.0), at(5.0));
        let latest = if watching { at(1.0) } else { at(2.5) };
        assert!(written[0] <= latest, "{watching}: {written:?}");
        assert_eq!(server.record().transitions, 8);
    }
}

#[test]
fn giving_up_is_clients_gos_release_and_lets_others_past() {
    let (mut rules, mut server) = leader();
    rules.resign(at(2.0));
    assert!(!leads(&rules, at(2.0)), "before anything is sent");
    let object = write(&mut rules, at(2.0));
    let done = server.put(&object);
    rules.wrote(at(2.1), done);
    let released = server.record();
    assert_eq!((released.holder.as_str(), released.duration_seconds, released.transitions), ("", Some(1), 1));
    assert_eq!(released.acquired, released.renewed);
    // It stands back for a lease duration, and no longer.
    let written = run(&mut rules, &mut server, at(2.1), at(30.0));
    assert_eq!(rules.take_ended(), Some(Ok(())));
    assert!(written[0] >= at(17.1), "{written:?}");
    // What is on its way when it gives up is given back, and is no leadership when its answer comes.
    let (mut other, mut elsewhere) = (super::tests::rules(), Server::default());
    other.read(at(0.0), None);
    let object = write(&mut other, at(0.0));
    other.resign(at(0.1));
    let done = elsewhere.put(&object);
    other.wrote(at(0.2), done);
    assert!(!leads(&other, at(0.2)));
    assert_eq!(run(&mut other, &mut elsewhere, at(0.2), at(5.0)), [at(0.2)]);
    assert_eq!((elsewhere.record().holder.as_str(), other.take_ended()), ("", Some(Ok(()))));
    // If somebody has led meanwhile, it is a candidate like any other.
    rules.resign(at(30.0));
    run(&mut rules, &mut server, at(30.0), at(31.0));
    server.held_by("go", 0);
    run(&mut rules, &mut server, at(31.0), at(34.0));
    server.write(json!({ "holderIdentity": "" }));
    assert!(!run(&mut rules, &mut server, at(34.0), at(37.0)).is_empty());
}

#[test]
fn stopping_ends_it_whether_it_leads_or_not_and_never_hangs() {
    let (mut rules, mut server) = leader();
    rules.stop(at(1.0));
    run(&mut rules, &mut server, at(1.0), at(2.0));
    assert_eq!((rules.next(at(2.0), 0), rules.take_ended()), (Step::Over, Some(Ok(()))));
    assert_eq!(server.record().holder, "");
    // A candidate has nothing to give back, with or without a server.
    let mut candidate = Rules::new(options(), 1);
    candidate.stop(at(0.0));
    assert_eq!((candidate.next(at(0.0), 0), candidate.take_ended()), (Step::Over, Some(Ok(()))));
    // Without a server a leader tries for as long as it might have led, and says that nobody knows.
    let (mut rules, _) = leader();
    rules.stop(at(3.0));
    let mut now = at(3.0);
    loop {
        match rules.next(now, 0) {
            Step::Read => rules.read_failed(now, failure(false, None)),
            Step::Write(_) => rules.wrote(now, Wrote::Unknown("gone".into())),
            Step::Wait(until) => now = until,
            Step::Over => break,
        }
        assert!(!leads(&rules, now));
    }
    assert_eq!(now, at(13.0));
    assert!(matches!(rules.take_ended(), Some(Err(_))));
}

/// (what became of the write, what is read next, whether it leads then)
#[test]
fn a_write_without_an_answer_is_read_again() {
    for happened in [true, false] {
        // An acquisition.
        let (mut rules, mut server) = (rules(), Server::default());
        rules.read(at(0.0), None);
        let object = write(&mut rules, at(0.0));
        if happened {
            server.put(&object);
        }
        rules.wrote(at(2.0), Wrote::Unknown("?".into()));
        assert!(!leads(&rules, at(2.0)), "nobody knows");
        assert_eq!(rules.next(at(2.0), 0), Step::Read);
        rules.read(at(2.0), server.get());
        let written = run(&mut rules, &mut server, at(2.0), at(2.1));
        assert_eq!((leads(&rules, at(2.1)), written.len()), (true, usize::from(!happened)));
        let deadline = if happened { at(10.0) } else { at(12.0) };
        assert_eq!(rules.view(at(2.1)).tenure.unwrap().deadline, deadline);
        assert_eq!(server.record().transitions, 1);
    }
    for happened in [true, false] {
        // A renewal, of which the watch may tell as well.
        let (mut rules, mut server) = leader();
        let object = write(&mut rules, at(5.0));
        if happened {
            server.put(&object);
            rules.heard(at(5.1), server.get().unwrap());
        }
        rules.wrote(at(7.0), Wrote::Unknown("?".into()));
        run(&mut rules, &mut server, at(7.0), at(7.1));
        assert_eq!(token(&rules, at(7.1)), 1);
        let deadline = if happened { at(15.0) } else { at(17.0) };
        assert_eq!(rules.view(at(7.1)).tenure.unwrap().deadline, deadline);
    }
    for happened in [true, false] {
        // A release.
        let (mut rules, mut server) = leader();
        rules.stop(at(1.0));
        let object = write(&mut rules, at(1.0));
        if happened {
            server.put(&object);
        }
        rules.wrote(at(3.0), Wrote::Unknown("?".into()));
        run(&mut rules, &mut server, at(3.0), at(4.0));
        assert_eq!((server.record().holder.as_str(), rules.take_ended()), ("", Some(Ok(()))));
    }
}

/// The first renewal is stuck somewhere, the second goes over the same version: whichever comes first, it is the same
/// tenure.
#[test]
fn a_write_that_comes_late_is_known_again() {
    let (mut rules, mut server) = leader();
    let stuck = write(&mut rules, at(5.0));
    rules.wrote(at(7.0), Wrote::Unknown("?".into()));
    rules.read(at(7.0), server.get());
    let second = write(&mut rules, at(7.0));
    assert!(matches!(server.put(&stuck), Wrote::Done(_)));
    let outcome = server.put(&second);
    assert!(matches!(outcome, Wrote::Conflict));
    rules.wrote(at(7.1), outcome);
    // The second setback in a row waits.
    let Step::Wait(until) = rules.next(at(7.1), 0) else { panic!("a wait") };
    assert!(until <= at(9.5));
    assert_eq!(rules.next(until, 0), Step::Read);
    rules.read(at(9.5), server.get());
    assert_eq!((token(&rules, at(9.5)), rules.view(at(9.5)).tenure.unwrap().deadline), (1, at(15.0)));
    // An acquisition from before a resignation is given back when it appears.
    let (mut rules, mut server) = (super::tests::rules(), Server::default());
    rules.read(at(0.0), None);
    let stuck = write(&mut rules, at(0.0));
    rules.resign(at(1.0));
    rules.wrote(at(2.0), Wrote::Unknown("?".into()));
    run(&mut rules, &mut server, at(2.0), at(3.0));
    assert_eq!(rules.take_ended(), Some(Ok(())));
    assert!(matches!(server.put(&stuck), Wrote::Done(_)));
    let (mut now, mut led) = (at(3.0), false);
    while now < at(12.0) {
        run(&mut rules, &mut server, now, now + Duration::from_millis(100));
        now += Duration::from_millis(100);
        led |= leads(&rules, now);
    }
    assert_eq!((led, server.record().holder.as_str()), (false, ""));
}

#[test]
fn the_own_identity_proves_nothing() {
    // A process before this one, or beside it, has the same.
    let (mut rules, mut server) = (rules(), Server::default());
    server.held_by("us", 0);
    assert!(run(&mut rules, &mut server, at(0.0), at(15.0)).is_empty());
    assert!(rules.is_impersonated() && !leads(&rules, at(15.0)));
    assert_eq!(rules.view(at(15.0)).leader.unwrap().identity, "us");
    // A Go process of the same identity goes on with the Lease of a leader: that is the end of ours.
    let (mut rules, mut server) = leader();
    server.write(json!({ "renewTime": "2026-01-01T00:00:00.000000Z" }));
    run(&mut rules, &mut server, at(5.0), at(6.0));
    assert!(!leads(&rules, at(6.0)));
}

#[test]
fn what_others_write_beside_the_five_fields_costs_a_read_and_nothing_else() {
    let (mut rules, mut server) = leader();
    server.annotate(1);
    assert_eq!(run(&mut rules, &mut server, at(5.0), at(6.0)), [at(5.0)]);
    // Nor do fields of the specification that are not the election's.
    server.write(json!({ "strategy": "OldestEmulationVersion", "preferredHolder": "x" }));
    rules.heard(at(8.0), server.get().unwrap());
    assert_eq!(run(&mut rules, &mut server, at(8.0), at(11.0)), [at(10.0)]);
    assert_eq!(token(&rules, at(19.0)), 1);
    let lease = server.lease.unwrap();
    assert!(lease["metadata"]["annotations"]["note"] == "1" && lease["spec"]["preferredHolder"] == "x");
}

/// (who held the Lease that is deleted, when a new one is made)
#[test]
fn a_deleted_lease_is_made_anew_when_nobody_can_lead_any_more() {
    // Ours: at once, and with a token that is higher all the same.
    let (mut rules, mut server) = leader();
    let (uid, version) = (server.get().unwrap().uid, "100");
    server.lease = None;
    rules.heard_of_end(at(1.0), &uid, version);
    assert!(!leads(&rules, at(1.0)));
    run(&mut rules, &mut server, at(1.0), at(1.1));
    assert_eq!(token(&rules, at(1.1)), 2);
    // Somebody else's: when he would have had to renew it.
    let (mut rules, mut server) = (super::tests::rules(), Server::default());
    server.held_by("go", 0);
    run(&mut rules, &mut server, at(0.0), at(1.0));
    server.lease = None;
    let written = run(&mut rules, &mut server, at(1.0), at(20.0));
    assert!(written[0] >= at(15.15), "{written:?}");
    assert_eq!(token(&rules, at(20.0)), 8);
    // The same if it was made again in between, and is free.
    let (mut rules, mut server) = (super::tests::rules(), Server::default());
    server.held_by("go", 0);
    run(&mut rules, &mut server, at(0.0), at(1.0));
    server.lease = None;
    server.write(json!({}));
    let written = run(&mut rules, &mut server, at(1.0), at(20.0));
    assert!(written[0] >= at(15.15), "{written:?}");
}

#[test]
fn a_lease_that_was_made_anew_is_another_one() {
    // The same holder, the same times, all copied: it is not what this process has written.
    let (mut rules, mut server) = leader();
    let copy = server.lease.take().unwrap()["spec"].clone();
    server.write(copy);
    let writes = server.writes;
    run(&mut rules, &mut server, at(5.0), at(6.0));
    assert_eq!((leads(&rules, at(6.0)), server.writes), (false, writes));
    // Nor is it if a renewal without an answer was copied.
    let (mut rules, mut server) = leader();
    let object = write(&mut rules, at(5.0));
    server.put(&object);
    rules.wrote(at(5.1), Wrote::Unknown("?".into()));
    let copy = server.lease.take().unwrap()["spec"].clone();
    server.write(copy);
    run(&mut rules, &mut server, at(5.1), at(6.0));
    assert!(!leads(&rules, at(6.0)));
}

#[test]
fn what_the_watch_tells_late_is_passed_over() {
    let (mut rules, mut server) = leader();
    let old = server.get().unwrap();
    run(&mut rules, &mut server, at(5.0), at(6.0));
    rules.heard(at(6.0), old);
    assert!(leads(&rules, at(6.0)), "an older version of its own");
    assert!(matches!(rules.next(at(6.0), 0), Step::Wait(_)));
    rules.heard_of_end(at(6.0), "another", "1000");
    assert!(leads(&rules, at(6.0)), "the end of an older Lease");
    // A read that was answered before a renewal without an answer came through, and is heard of after it.
    let object = write(&mut rules, at(10.0));
    rules.wrote(at(10.1), Wrote::Unknown("?".into()));
    assert_eq!(rules.next(at(10.1), 0), Step::Read);
    let old = server.get();
    server.put(&object);
    rules.heard(at(10.2), server.get().unwrap());
    rules.read(at(10.3), old);
    assert_eq!(rules.view(at(10.3)).tenure.unwrap().deadline, at(20.0));
    assert!(matches!(rules.next(at(10.3), 0), Step::Wait(_)));
    // A newer one of another tells the truth at once.
    server.held_by("go", 1);
    rules.heard(at(11.0), server.get().unwrap());
    assert!(!leads(&rules, at(11.0)));
    // And truth stays what it is when the answer to a write comes that was overtaken.
    let (mut rules, mut server) = leader();
    let object = write(&mut rules, at(5.0));
    let done = server.put(&object);
    server.held_by("go", 1);
    rules.heard(at(5.1), server.get().unwrap());
    rules.wrote(at(5.2), done);
    assert_eq!((leads(&rules, at(5.2)), rules.view(at(5.2)).leader.unwrap().identity.as_str()), (false, "go"));
}

#[test]
fn who_may_not_lead_writes_nothing_and_knows_who_does() {
    let mut rules = Rules::new(LeaderLeaseOptions { may_lead: false, ..options() }, 1);
    let mut server = Server::default();
    assert!(run(&mut rules, &mut server, at(0.0), at(60.0)).is_empty());
    server.held_by("go", 0);
    run(&mut rules, &mut server, at(60.0), at(63.0));
    assert_eq!(rules.view(at(63.0)).leader.unwrap().identity, "go");
    assert!(run(&mut rules, &mut server, at(63.0), at(120.0)).is_empty());
    assert_eq!(rules.view(at(120.0)).leader, None, "who is not heard of for so long is not the leader");
}

#[test]
fn a_server_that_is_in_trouble_is_not_pressed() {
    // (what it says, how long a candidate waits at least and at most)
    for (failure, least, most) in
        [(failure(false, None), 2.0, 2.4), (failure(true, None), 15.0, 15.0), (failure(false, Some(9)), 9.0, 9.0)]
    {
        let mut rules = rules();
        assert_eq!(rules.next(at(0.0), 0), Step::Read);
        rules.read_failed(at(0.0), failure);
        let Step::Wait(until) = rules.next(at(0.0), 0) else { panic!("a wait") };
        assert!(until >= at(least) && until <= at(most), "{until:?}");
    }
    // Unknown outcomes and conflicts without end: the first is read again at once, the others are spaced.
    let (mut rules, server) = (rules(), Server::default());
    let (mut now, mut sent) = (at(0.0), 0);
    while now < at(60.0) {
        match rules.next(now, 0) {
            Step::Read => {
                sent += 1;
                rules.read(now, server.get());
            }
            Step::Write(_) => {
                sent += 1;
                rules.wrote(now, Wrote::Unknown("?".into()));
            }
            Step::Wait(until) => now = until,
            Step::Over => panic!("over"),
        }
    }
    assert!(sent < 70, "{sent} in a minute");
    assert!(rules.unresolved.len() <= UNRESOLVED_MAX);
}

#[test]
fn the_last_token_is_the_last() {
    let (mut rules, mut server) = (rules(), Server::default());
    server.write(json!({ "holderIdentity": "", "leaseTransitions": i32::MAX }));
    assert!(run(&mut rules, &mut server, at(0.0), at(60.0)).is_empty());
    assert!(rules.view(at(60.0)).trouble.unwrap().contains("delete the Lease"));
}
