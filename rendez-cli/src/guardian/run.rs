//! The guardian: starts keepers, passes deadlines on, and outlives its agent by just as long as it takes.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use rendez_core::Timestamp;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};

use super::clock::{Timer, now};
use super::crash_release;
use super::deadline_file;
use super::protocol::{
    ChildEnd, ChildId, HeldSession, Hello, KeeperOrder, KeeperReport, KeeperRun, Order, Report, Start,
};
use super::signals::ChildSignal;
use super::tree::{self, Reaped};
use super::wire::Wire;

/// A keeper that was told to kill and has not ended its child after this time is killed itself.
const KEEPER_PATIENCE: Duration = Duration::from_millis(500);

/// The pause between two rounds of killing what dead keepers have left.
const STRAYS_PAUSE: Duration = Duration::from_millis(5);

/// So many rounds in a row must find nothing of a dead keeper before it counts as clean: while other keepers live,
/// there is no `ECHILD` to wait for.
const STRAYS_CLEAN_ROUNDS: u32 = 3;

/// Guards the children of one agent: the hidden subcommand `guardian`. Standard input is the socket to the agent.
pub(crate) fn guardian() -> io::Result<()> {
    let signals = ChildSignal::take()?;
    tree::become_subreaper()?;
    let folder = deadline_file::folder()?;
    let mut guardian = Guardian {
        agent: Wire::from_stdin()?,
        signals,
        timer: Timer::new()?,
        folder,
        open_files: allow_many_files(),
        hello: None,
        session: None,
        keepers: BTreeMap::new(),
        strays: None,
        agent_gone: false,
    };
    guardian.agent.say(&Report::Ready { folder: guardian.folder.path().to_owned() });
    guardian.keep()?;
    // Only here, after `ECHILD`: nothing of any child is left.
    let Guardian { hello, session, folder, .. } = guardian;
    drop(folder);
    if let (Some(hello), Some(session)) = (hello, session) {
        crash_release::release(&hello, session);
    }
    Ok(())
}

/// Raises the soft limit of open files, of which each keeper takes one here, and returns what it was.
fn allow_many_files() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let before = limit.current?;
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).ok()?;
    Some(before)
}

struct Guardian {
    agent: Wire<Order, Report>,
    signals: ChildSignal,
    timer: Timer,
    folder: tempfile::TempDir,
    open_files: Option<u64>,
    hello: Option<Hello>,
    session: Option<HeldSession>,
    keepers: BTreeMap<ChildId, Keeper>,
    /// There, while keepers have died before their children.
    strays: Option<Strays>,
    agent_gone: bool,
}

struct Keeper {
    pid: Pid,
    wire: Wire<KeeperReport, KeeperOrder>,
    deadline: Timestamp,
    /// When it must have ended its child because it was told to.
    patience_ends: Timestamp,
    /// It has said that nothing of its child is left.
    done: bool,
}

#[derive(Default)]
struct Strays {
    of: Vec<ChildId>,
    clean_rounds: u32,
}

impl Guardian {
    /// Serves the agent until it is gone, and then until nothing is below this process.
    fn keep(&mut self) -> io::Result<()> {
        loop {
            self.hear_agent();
            self.hear_keepers();
            let now = now();
            self.kill_keepers_that_are_late(now);
            self.signals.clear();
            let nobody_left = self.reap();
            self.kill_strays();
            if self.agent_gone && nobody_left {
                return Ok(());
            }
            self.wait(now)?;
        }
    }

    fn hear_agent(&mut self) {
        if self.agent_gone {
            return;
        }
        for order in self.agent.hear() {
            self.obey(order);
        }
        if self.agent.ended() {
            self.agent_gone = true;
            let patience_ends = now() + KEEPER_PATIENCE;
            for keeper in self.keepers.values_mut() {
                keeper.wire.say(&KeeperOrder::Kill);
                keeper.patience_ends = keeper.patience_ends.min(patience_ends);
            }
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Hello(hello) => self.hello = Some(hello),
            Order::Session(session) => self.session = session,
            Order::Start(start) => {
                let child = start.child;
                if let Err(error) = self.start(start) {
                    let why = format!("it has no keeper: {error}");
                    self.agent.say(&Report::Ended { child, end: ChildEnd::NotStarted { why } });
                }
            }
            Order::Extend { child, deadline_ns } => {
                if let Some(keeper) = self.keepers.get_mut(&child) {
                    keeper.deadline = keeper.deadline.max(Timestamp::from_nanos(deadline_ns));
                    keeper.wire.say(&KeeperOrder::Extend { deadline_ns });
                }
            }
            Order::Stop { child, kill_at_ns } => {
                if let Some(keeper) = self.keepers.get_mut(&child) {
                    keeper.wire.say(&KeeperOrder::Stop { kill_at_ns });
                    keeper.patience_ends =
                        keeper.patience_ends.min(Timestamp::from_nanos(kill_at_ns) + KEEPER_PATIENCE);
                }
            }
            Order::Kill { child } => {
                if let Some(keeper) = self.keepers.get_mut(&child) {
                    keeper.wire.say(&KeeperOrder::Kill);
                    keeper.patience_ends = keeper.patience_ends.min(now() + KEEPER_PATIENCE);
                }
            }
            Order::Ping => self.agent.say(&Report::Pong),
            Order::Bye => self.session = None,
        }
    }

    fn start(&mut self, start: Start) -> io::Result<()> {
        let hello = self.hello.as_ref().ok_or_else(|| io::Error::other("the agent has not said hello"))?;
        if now() + Duration::from_nanos(hello.kill_lead_ns) >= Timestamp::from_nanos(start.deadline_ns) {
            return Err(io::Error::other("its deadline had come before it could be started"));
        }
        let (ours, theirs) = UnixStream::pair()?;
        let mut wire = Wire::new(ours)?;
        let (child, deadline) = (start.child, Timestamp::from_nanos(start.deadline_ns));
        let keeper = Command::new("/proc/self/exe")
            .arg0("rendez")
            .args(["keeper", "--", &start.name])
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .process_group(0)
            .spawn()?;
        wire.say(&KeeperOrder::Run(KeeperRun {
            start,
            stop_lead_ns: hello.stop_lead_ns,
            kill_lead_ns: hello.kill_lead_ns,
            deadline_file: self.folder.path().join(child.to_string()),
            open_files: self.open_files,
        }));
        let pid = Pid::from_child(&keeper);
        let patience_ends = Timestamp::NEVER;
        self.keepers.insert(child, Keeper { pid, wire, deadline, patience_ends, done: false });
        Ok(())
    }

    fn hear_keepers(&mut self) {
        for (&child, keeper) in &mut self.keepers {
            keeper.hear(child, &mut self.agent);
        }
    }

    fn kill_keepers_that_are_late(&mut self, now: Timestamp) {
        let kill_lead = self.kill_lead();
        for keeper in self.keepers.values_mut().filter(|keeper| !keeper.done && now >= keeper.late_at(kill_lead)) {
            // Not reaped yet, so the number is still its own.
            let _ = kill_process(keeper.pid, Signal::KILL);
        }
    }

    fn kill_lead(&self) -> Duration {
        Duration::from_nanos(self.hello.as_ref().map_or(0, |hello| hello.kill_lead_ns))
    }

    /// Takes in what has ended. True if nothing is left.
    fn reap(&mut self) -> bool {
        loop {
            match tree::reap() {
                Reaped::One(pid, _) => self.keeper_is_gone(pid),
                Reaped::NoneYet => return false,
                Reaped::NobodyLeft => {
                    // Certain for all of them, however they have ended.
                    let of = self.strays.take().into_iter().flat_map(|strays| strays.of);
                    let children: Vec<_> = of.chain(std::mem::take(&mut self.keepers).into_keys()).collect();
                    children.into_iter().for_each(|child| self.tell_keeper_died(child));
                    return true;
                }
            }
        }
    }

    fn keeper_is_gone(&mut self, pid: Pid) {
        let Some(child) = self.keepers.iter().find(|(_, keeper)| keeper.pid == pid).map(|(child, _)| *child) else {
            return;
        };
        let Some(mut keeper) = self.keepers.remove(&child) else { return };
        keeper.hear(child, &mut self.agent);
        if !keeper.done {
            let strays = self.strays.get_or_insert_default();
            strays.of.push(child);
            strays.clean_rounds = 0;
        }
    }

    /// Everything directly below this process that is no keeper was left by a dead one.
    fn kill_strays(&mut self) {
        let Some(strays) = &mut self.strays else { return };
        let keepers: HashSet<Pid> = self.keepers.values().map(|keeper| keeper.pid).collect();
        let found = tree::below_me(&keepers);
        strays.clean_rounds = if found.is_empty() { strays.clean_rounds + 1 } else { 0 };
        for process in found {
            tree::signal(process, Signal::KILL);
        }
        if strays.clean_rounds >= STRAYS_CLEAN_ROUNDS {
            let of = self.strays.take().map(|strays| strays.of).unwrap_or_default();
            of.into_iter().for_each(|child| self.tell_keeper_died(child));
        }
    }

    fn tell_keeper_died(&mut self, child: ChildId) {
        self.agent.say(&Report::Ended { child, end: ChildEnd::KeeperDied });
    }

    fn wait(&mut self, now: Timestamp) -> io::Result<()> {
        let kill_lead = self.kill_lead();
        let late_at = |keeper: &Keeper| {
            let at = keeper.late_at(kill_lead);
            // A keeper that was killed is gone in a moment, and the end of a child wakes us.
            if keeper.done || at <= now { Timestamp::NEVER } else { at }
        };
        let next = self.keepers.values().map(late_at).min().unwrap_or(Timestamp::NEVER);
        let pause = if self.strays.is_some() { now + STRAYS_PAUSE } else { Timestamp::NEVER };
        self.timer.set(next.min(pause))?;
        let mut fds = vec![PollFd::new(&self.timer, PollFlags::IN), PollFd::new(&self.signals, PollFlags::IN)];
        if !self.agent_gone {
            fds.push(PollFd::new(&self.agent, interest(&self.agent)));
        }
        for keeper in self.keepers.values().filter(|keeper| !keeper.wire.ended()) {
            fds.push(PollFd::new(&keeper.wire, interest(&keeper.wire)));
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        self.agent.flush();
        self.keepers.values_mut().for_each(|keeper| keeper.wire.flush());
        Ok(())
    }
}

impl Keeper {
    /// Takes in what it says, and passes it on.
    fn hear(&mut self, child: ChildId, agent: &mut Wire<Order, Report>) {
        for report in self.wire.hear() {
            match report {
                KeeperReport::Started { pid } => agent.say(&Report::Started { child, pid }),
                KeeperReport::Ended { end } => {
                    self.done = true;
                    agent.say(&Report::Ended { child, end });
                }
            }
        }
    }

    /// When it cannot be waited for any longer.
    fn late_at(&self, kill_lead: Duration) -> Timestamp {
        self.deadline.saturating_sub(kill_lead / 2).min(self.patience_ends)
    }
}

fn interest<In, Out>(wire: &Wire<In, Out>) -> PollFlags
where
    In: serde::de::DeserializeOwned,
    Out: serde::Serialize,
{
    if wire.has_more_to_say() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN }
}
