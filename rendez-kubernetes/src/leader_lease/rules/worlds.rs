//! Random worlds in virtual time: participants of this library with clocks of their own, frozen, crashed and resigning, and
//! participants of client-go; a server whose requests and answers are slow, lost, and carried out long after nobody waits
//! for them. At every moment one leads at most, and tokens rise.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;

use super::*;
use crate::leader_lease::rules::tests::Server;

const OURS: usize = 3;
const GO: usize = 2;
/// How long a world lasts, in milliseconds.
const ENDS: u64 = 900_000;
/// How long a request is waited for.
const TIMEOUT: u64 = 2_500;

/// A clock that has its own zero and its own rate, up to four thousandths off.
#[derive(Clone, Copy)]
struct Clock {
    zero: u64,
    per_mille: u64,
}

impl Clock {
    fn draw(random: &mut Rng) -> Self {
        Self { zero: random.u64(..1_000_000), per_mille: random.u64(996..=1004) }
    }

    fn at(self, now: u64) -> Timestamp {
        Timestamp::from_nanos((self.zero * 1000 + now * self.per_mille) * 1000)
    }

    /// The first millisecond at which it shows a moment.
    fn when(self, shown: Timestamp) -> u64 {
        shown.as_nanos().div_ceil(1000).saturating_sub(self.zero * 1000).div_ceil(self.per_mille)
    }
}

struct Ours {
    rules: Rules,
    clock: Clock,
    wall: i64,
    frozen_until: u64,
    /// The request that is waited for.
    waits_for: Option<u64>,
    watches: bool,
    /// Rises with each process.
    life: u64,
}

#[derive(Default)]
struct Go {
    observed: Option<(Record, u64)>,
    /// The last write that succeeded was sent then.
    sent: Option<u64>,
    leads: bool,
    beat: u32,
}

#[derive(Debug, Clone)]
enum Event {
    Wake(usize),
    /// A request arrives at the server: a read, or a write.
    Arrives {
        of: usize,
        life: u64,
        request: u64,
        object: Option<Box<DynamicObject>>,
        answers: bool,
    },
    Read {
        of: usize,
        life: u64,
        request: u64,
        found: Box<Option<Observed>>,
    },
    Wrote {
        of: usize,
        life: u64,
        request: u64,
        done: Option<Box<Observed>>,
    },
    TimesOut {
        of: usize,
        life: u64,
        request: u64,
        writes: bool,
    },
    Told {
        to: usize,
        life: u64,
        told: Box<Observed>,
    },
    GoTries(usize),
    GoWrites {
        of: usize,
        record: Record,
        over: Option<Box<Observed>>,
        sent: u64,
    },
    /// Something happens to somebody.
    Chance,
}

struct World {
    random: Rng,
    now: u64,
    queue: BTreeMap<(u64, u64), Event>,
    numbers: u64,
    server: Server,
    ours: Vec<Ours>,
    go: Vec<Go>,
    highest: u64,
    tenures: BTreeSet<(usize, u64)>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        let ours = (0..OURS).map(|_| Ours {
            rules: Rules::new(options(), random.u64(..)),
            clock: Clock::draw(&mut random),
            wall: random.i64(0..4_000_000_000_000_000),
            frozen_until: 0,
            waits_for: None,
            watches: false,
            life: 0,
        });
        let ours = ours.collect();
        let mut world = Self {
            random,
            now: 0,
            queue: BTreeMap::new(),
            numbers: 0,
            server: Server::default(),
            ours,
            go: (0..GO).map(|_| Go::default()).collect(),
            highest: 0,
            tenures: BTreeSet::new(),
        };
        (0..OURS).for_each(|of| world.begin(of));
        (0..GO).for_each(|of| world.after(1, 3_000, Event::GoTries(of)));
        world.after(1, 20_000, Event::Chance);
        world
    }

    /// Something happens after a while.
    fn after(&mut self, least: u64, most: u64, event: Event) {
        let at = self.now + self.random.u64(least..=most);
        self.at(at, event);
    }

    fn at(&mut self, at: u64, event: Event) {
        self.numbers += 1;
        self.queue.insert((at, self.numbers), event);
    }

    /// A process begins.
    fn begin(&mut self, of: usize) {
        let seed = self.random.u64(..);
        let watches = self.random.bool();
        let ours = &mut self.ours[of];
        ours.life += 1;
        let identity = format!("ours-{of}-{}", ours.life);
        ours.rules = Rules::new(LeaderLeaseOptions { identity, ..options() }, seed);
        (ours.waits_for, ours.watches) = (None, watches);
        ours.rules.set_watching(ours.clock.at(self.now), watches);
        self.after(1, 3_000, Event::Wake(of));
    }

    fn run(mut self) -> usize {
        while let Some((&(at, number), _)) = self.queue.first_key_value()
            && at < ENDS
        {
            let event = self.queue.remove(&(at, number)).unwrap();
            self.now = at;
            self.happen(event);
            self.judge();
        }
        self.tenures.len()
    }

    fn happen(&mut self, event: Event) {
        // Who is frozen hears of it later.
        let (Event::Wake(of)
        | Event::Read { of, .. }
        | Event::Wrote { of, .. }
        | Event::TimesOut { of, .. }
        | Event::Told { to: of, .. }) = &event
        else {
            return self.happen_elsewhere(event);
        };
        let of = *of;
        let frozen_until = self.ours[of].frozen_until;
        if frozen_until > self.now {
            return self.at(frozen_until, event);
        }
        let ours = &mut self.ours[of];
        let now = ours.clock.at(self.now);
        match event {
            Event::Read { life, request, found, .. } if life == ours.life && ours.waits_for == Some(request) => {
                ours.waits_for = None;
                ours.rules.read(now, *found);
            }
            Event::Wrote { life, request, done, .. } if life == ours.life && ours.waits_for == Some(request) => {
                ours.waits_for = None;
                ours.rules.wrote(now, done.map_or(Wrote::Conflict, Wrote::Done));
            }
            Event::TimesOut { life, request, writes, .. } if life == ours.life && ours.waits_for == Some(request) => {
                ours.waits_for = None;
                let failure = Failure { fatal: false, retry_after: None, message: "late".to_owned() };
                match writes {
                    true => ours.rules.wrote(now, Wrote::Unknown("late".to_owned())),
                    false => ours.rules.read_failed(now, failure),
                }
            }
            Event::Told { life, told, .. } if life == ours.life => ours.rules.heard(now, *told),
            _ => {}
        }
        self.go_on(of);
    }

    /// One of ours does what it is to do.
    fn go_on(&mut self, of: usize) {
        let (now, request) = (self.now, self.numbers + 1);
        let ours = &mut self.ours[of];
        if ours.waits_for.is_some() {
            return;
        }
        let (clock, life) = (ours.clock, ours.life);
        let object = match ours.rules.next(clock.at(now), ours.wall) {
            Step::Read => None,
            Step::Write(object) => Some(object),
            Step::Wait(until) => return self.at(clock.when(until).max(now + 1), Event::Wake(of)),
            Step::Over => return,
        };
        ours.waits_for = Some(request);
        let writes = object.is_some();
        // Half a minute is what an API server keeps a write whose storage stands still.
        let slowest = if self.random.u8(..20) == 0 { 35_000 } else { 400 };
        let answers = self.random.u8(..20) > 0;
        if self.random.u8(..20) > 0 {
            self.after(1, slowest, Event::Arrives { of, life, request, object, answers });
        }
        self.at(now + TIMEOUT, Event::TimesOut { of, life, request, writes });
    }

    fn happen_elsewhere(&mut self, event: Event) {
        match event {
            Event::Arrives { of, life, request, object: None, answers } => {
                let found = Box::new(self.server.get());
                if answers {
                    self.after(1, 400, Event::Read { of, life, request, found });
                }
            }
            Event::Arrives { of, life, request, object: Some(object), answers } => {
                let done = match self.server.put(&object) {
                    Wrote::Done(seen) => Some(seen),
                    Wrote::Conflict | Wrote::Unknown(_) | Wrote::Failed(_) => None,
                };
                if done.is_some() {
                    self.tell();
                }
                if answers {
                    self.after(1, 400, Event::Wrote { of, life, request, done });
                }
            }
            Event::GoTries(of) => self.go_tries(of),
            Event::GoWrites { of, record, over, sent } => self.go_writes(of, record, over, sent),
            Event::Chance => self.chance(),
            Event::Wake(_) | Event::Read { .. } | Event::Wrote { .. } | Event::TimesOut { .. } | Event::Told { .. } => {
            }
        }
    }

    /// Watches are slow, and not all tell of everything.
    fn tell(&mut self) {
        let Some(told) = self.server.get() else { return };
        for to in 0..OURS {
            if self.ours[to].watches && self.random.u8(..10) > 0 {
                let (life, told) = (self.ours[to].life, Box::new(told.clone()));
                self.after(1, 1_000, Event::Told { to, life, told });
            }
        }
    }

    /// `tryAcquireOrRenew`: the answer to its read is there, and its write goes out.
    fn go_tries(&mut self, of: usize) {
        let (now, go) = (self.now, &mut self.go[of]);
        let identity = format!("go-{of}");
        let found = self.server.get();
        go.beat += 1;
        let mut record = Record {
            holder: identity.clone(),
            duration_seconds: Some(15),
            acquired: Some(0),
            renewed: Some(i64::from(go.beat)),
            transitions: 0,
        };
        if let Some(found) = &found {
            let old = &found.record;
            if go.observed.as_ref().is_none_or(|(known, _)| known != old) {
                go.observed = Some((old.clone(), now));
            }
            let seen_at = go.observed.as_ref().map_or(now, |(_, at)| *at);
            let lasts = u64::try_from(old.duration_seconds.unwrap_or(0)).unwrap() * 1000;
            if !old.holder.is_empty() && old.holder != identity && seen_at + lasts > now {
                go.leads = false;
                return self.after(2_000, 4_400, Event::GoTries(of));
            }
            record.transitions = old.transitions + i64::from(old.holder != identity);
        }
        self.after(1, 400, Event::GoWrites { of, record, over: found.map(Box::new), sent: now });
    }

    fn go_writes(&mut self, of: usize, record: Record, over: Option<Box<Observed>>, sent: u64) {
        let object = match &over {
            Some(over) => over.with(&record),
            None => first("a", &record),
        };
        let done = matches!(self.server.put(&object), Wrote::Done(_));
        if done {
            let now = self.now;
            let token = u64::try_from(record.transitions).unwrap();
            self.highest = self.highest.max(token);
            let go = &mut self.go[of];
            (go.observed, go.sent, go.leads) = (Some((record, now)), Some(sent), true);
            self.tell();
        }
        // Now and then it is away for long, and its process is begun anew by whatever watches over it.
        match self.random.u8(..30) {
            0 => {
                self.go[of].leads = false;
                self.after(5_000, 60_000, Event::GoTries(of));
            }
            1 if self.go[of].leads => {
                // `ReleaseOnCancel`, and another try after a while.
                self.go[of].leads = false;
                if let Some(seen) = self.server.get().filter(|seen| seen.record.holder == format!("go-{of}")) {
                    let released = Record { holder: String::new(), duration_seconds: Some(1), ..seen.record.clone() };
                    assert!(matches!(self.server.put(&seen.with(&released)), Wrote::Done(_)));
                    self.tell();
                }
                self.after(5_000, 30_000, Event::GoTries(of));
            }
            _ => self.after(2_000, 2_200, Event::GoTries(of)),
        }
    }

    fn chance(&mut self) {
        let of = self.random.usize(..OURS);
        match self.random.u8(..6) {
            0 | 1 => self.ours[of].frozen_until = self.now + self.random.u64(1_000..60_000),
            2 => self.begin(of),
            3 => {
                let now = self.ours[of].clock.at(self.now);
                if self.ours[of].frozen_until <= self.now {
                    self.ours[of].rules.resign(now);
                    self.go_on(of);
                }
            }
            4 => self.ours[of].wall = self.random.i64(0..4_000_000_000_000_000),
            _ => {
                if self.server.lease.is_some() {
                    self.server.annotate(self.random.u32(..));
                    self.tell();
                }
            }
        }
        self.after(1, 20_000, Event::Chance);
    }

    fn judge(&mut self) {
        let mut leaders = Vec::new();
        for (of, ours) in self.ours.iter().enumerate() {
            // As a handle sees it: what was published, and the clock. A frozen one's work is asked when it wakes.
            let Some(tenure) = ours.rules.view(ours.clock.at(self.now)).tenure else { continue };
            let token = tenure.token.get();
            leaders.push((format!("ours-{of}"), token));
            if self.tenures.insert((of, token)) {
                assert!(token > self.highest, "ours-{of} has {token}, which is not above {}", self.highest);
                self.highest = token;
            }
        }
        for (of, go) in self.go.iter().enumerate() {
            // It gives up after its renew deadline.
            if go.leads && go.sent.is_some_and(|sent| self.now < sent + 10_000) {
                leaders.push((format!("go-{of}"), self.highest));
            }
        }
        assert!(leaders.len() < 2, "at {} ms: {leaders:?} {:?}", self.now, self.server.get());
    }
}

fn options() -> LeaderLeaseOptions {
    LeaderLeaseOptions::new("n", "a", "us")
}

#[test]
fn one_leads_at_most_in_any_world() {
    let tenures: usize = (0..150).map(|seed| World::new(seed).run()).sum();
    assert!(tenures > 1000, "these worlds are too quiet: {tenures} tenures");
}

/// The judge must see what it is there for: participants whose clocks are far slower than any may be.
#[test]
#[should_panic(expected = "at ")]
fn the_judge_finds_a_leader_that_stays_too_long() {
    for seed in 0..150 {
        let mut world = World::new(seed);
        for ours in &mut world.ours {
            ours.clock = Clock { per_mille: 400, ..ours.clock };
        }
        world.run();
    }
}
