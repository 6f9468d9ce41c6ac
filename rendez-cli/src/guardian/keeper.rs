//! A keeper: one slot's process tree, its deadline and its output.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rendez_core::Timestamp;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, WaitStatus, getpid};

use super::clock::{Timer, now};
use super::deadline_file::DeadlineFile;
use super::lines::relay;
use super::protocol::{ChildEnd, KeeperOrder, KeeperReport, KeeperRun, Start};
use super::signals::ChildSignal;
use super::tree::{self, Reaped};
use super::wire::Wire;

/// What a command has left behind when it exits may take this long to end after it was told to.
const LEFTOVER_GRACE: Duration = Duration::from_secs(1);

/// The pauses between two rounds of killing.
const KILL_PAUSE_MIN: Duration = Duration::from_millis(2);
const KILL_PAUSE_MAX: Duration = Duration::from_millis(50);

/// After the last process is gone, its last lines may take this long to be written.
const OUTPUT_GRACE: Duration = Duration::from_secs(1);

/// Keeps one child: the hidden subcommand `keeper`. Standard input is the socket to the guardian.
pub(crate) fn keeper() -> io::Result<()> {
    let mut signals = ChildSignal::take()?;
    tree::become_subreaper()?;
    let timer = Timer::new()?;
    let mut wire: Wire<KeeperOrder, KeeperReport> = Wire::from_stdin()?;
    let Some((run, orders)) = hear_run(&mut wire)? else { return Ok(()) };
    let mut output = Output::default();
    let end = match Keeper::start(run, wire, &mut output) {
        Ok(mut keeper) => {
            orders.into_iter().for_each(|order| keeper.obey(order));
            let end = keeper.keep(&mut signals, &timer)?;
            wire = keeper.wire;
            end
        }
        Err((unused, why)) => {
            wire = unused;
            ChildEnd::NotStarted { why }
        }
    };
    wire.say(&KeeperReport::Ended { end });
    output.wait();
    Ok(())
}

/// The first order, and what came with it; nothing if the guardian ends before.
fn hear_run(wire: &mut Wire<KeeperOrder, KeeperReport>) -> io::Result<Option<(KeeperRun, Vec<KeeperOrder>)>> {
    loop {
        let mut orders = wire.hear().into_iter();
        match orders.next() {
            Some(KeeperOrder::Run(run)) => return Ok(Some((run, orders.collect()))),
            Some(KeeperOrder::Extend { .. } | KeeperOrder::Stop { .. } | KeeperOrder::Kill) => return Ok(None),
            None if wire.ended() => return Ok(None),
            None => {}
        }
        match poll(&mut [PollFd::new(&*wire, PollFlags::IN)], None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

struct Keeper {
    wire: Wire<KeeperOrder, KeeperReport>,
    file: DeadlineFile,
    deadline: Timestamp,
    stop_lead: Duration,
    kill_lead: Duration,
    leader: Pid,
    leader_status: Option<WaitStatus>,
    stop_asked: bool,
    told_to_stop: bool,
    leftovers_told: bool,
    kill_at: Timestamp,
    killing: Option<Killing>,
}

#[derive(Clone, Copy)]
struct Killing {
    at_deadline: bool,
    pause: Duration,
}

impl Keeper {
    /// Starts the command; gives the wire back if that is impossible.
    #[allow(clippy::type_complexity)]
    fn start(
        run: KeeperRun,
        mut wire: Wire<KeeperOrder, KeeperReport>,
        output: &mut Output,
    ) -> Result<Self, (Wire<KeeperOrder, KeeperReport>, String)> {
        let deadline = Timestamp::from_nanos(run.start.deadline_ns);
        let kill_lead = Duration::from_nanos(run.kill_lead_ns);
        let file = match DeadlineFile::create(run.deadline_file.clone(), deadline) {
            Ok(file) => file,
            Err(error) => return Err((wire, format!("cannot write {}: {error}", run.deadline_file.display()))),
        };
        if now() >= deadline.saturating_sub(kill_lead) {
            return Err((wire, "its deadline had come before it could be started".to_owned()));
        }
        let leader = match spawn(&run, output) {
            Ok(leader) => leader,
            Err(error) => return Err((wire, format!("cannot start a process: {error}"))),
        };
        wire.say(&KeeperReport::Started { pid: leader.as_raw_nonzero().get().unsigned_abs() });
        Ok(Self {
            wire,
            file,
            deadline,
            stop_lead: Duration::from_nanos(run.stop_lead_ns),
            kill_lead,
            leader,
            leader_status: None,
            stop_asked: false,
            told_to_stop: false,
            leftovers_told: false,
            kill_at: Timestamp::NEVER,
            killing: None,
        })
    }

    /// Keeps the child until nothing of it is left.
    fn keep(&mut self, signals: &mut ChildSignal, timer: &Timer) -> io::Result<ChildEnd> {
        loop {
            for order in self.wire.hear() {
                self.obey(order);
            }
            if self.wire.ended() {
                self.kill_at = Timestamp::ZERO;
            }
            let now = now();
            self.end_what_must(now);
            signals.clear();
            if self.reap() {
                return Ok(self.end());
            }
            self.tell_leftovers(now);
            timer.set(self.wakes_at(now))?;
            let writable = if self.wire.has_more_to_say() { PollFlags::OUT } else { PollFlags::empty() };
            // A guardian that is gone stays readable; the timer is enough to go on killing.
            let readable = if self.wire.ended() { PollFlags::empty() } else { PollFlags::IN };
            let mut fds = vec![PollFd::new(timer, PollFlags::IN), PollFd::new(&*signals, PollFlags::IN)];
            if !(writable | readable).is_empty() {
                fds.push(PollFd::new(&self.wire, writable | readable));
            }
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            self.wire.flush();
        }
    }

    fn obey(&mut self, order: KeeperOrder) {
        match order {
            KeeperOrder::Run(_) => {}
            KeeperOrder::Extend { deadline_ns } => self.extend(Timestamp::from_nanos(deadline_ns)),
            KeeperOrder::Stop { kill_at_ns } => {
                self.stop_asked = true;
                self.kill_at = self.kill_at.min(Timestamp::from_nanos(kill_at_ns));
            }
            KeeperOrder::Kill => self.kill_at = Timestamp::ZERO,
        }
    }

    /// A deadline never comes nearer, and none is extended that has passed.
    fn extend(&mut self, deadline: Timestamp) {
        if deadline <= self.deadline || now() >= self.deadline {
            return;
        }
        self.deadline = deadline;
        if let Err(error) = self.file.replace(deadline) {
            eprintln!("rendez keeper: cannot write the deadline file, so it keeps the old deadline: {error}");
        }
    }

    fn end_what_must(&mut self, now: Timestamp) {
        let last_moment = self.deadline.saturating_sub(self.kill_lead);
        if now >= self.kill_at.min(last_moment) {
            let killing =
                self.killing.get_or_insert(Killing { at_deadline: self.kill_at > now, pause: KILL_PAUSE_MIN });
            killing.pause = (killing.pause * 2).min(KILL_PAUSE_MAX);
            for process in tree::below_me(&HashSet::new()) {
                tree::signal(process, Signal::KILL);
            }
        } else if !self.told_to_stop && (self.stop_asked || now >= self.deadline.saturating_sub(self.stop_lead)) {
            self.told_to_stop = true;
            let group = self.leader.as_raw_nonzero().get();
            terminate(|process| process.group == group);
        }
    }

    /// Takes in what has ended. True if nothing is left.
    fn reap(&mut self) -> bool {
        loop {
            match tree::reap() {
                Reaped::One(pid, status) if pid == self.leader && self.leader_status.is_none() => {
                    self.leader_status = Some(status);
                }
                Reaped::One(..) => {}
                Reaped::NoneYet => return false,
                Reaped::NobodyLeft => return true,
            }
        }
    }

    /// The command has exited, and something that it started has not.
    fn tell_leftovers(&mut self, now: Timestamp) {
        if self.leader_status.is_none() || self.leftovers_told {
            return;
        }
        self.leftovers_told = true;
        self.kill_at = self.kill_at.min(now + LEFTOVER_GRACE);
        terminate(|_| true);
    }

    fn wakes_at(&self, now: Timestamp) -> Timestamp {
        if let Some(killing) = self.killing {
            return now + killing.pause;
        }
        let stop_at = if self.told_to_stop { Timestamp::NEVER } else { self.deadline.saturating_sub(self.stop_lead) };
        stop_at.min(self.kill_at).min(self.deadline.saturating_sub(self.kill_lead))
    }

    fn end(&self) -> ChildEnd {
        let Some(status) = self.leader_status else {
            return ChildEnd::NotStarted { why: "its first process has left no status".to_owned() };
        };
        if let Some(code) = status.exit_status() {
            return ChildEnd::Exited { code };
        }
        let signal = status.terminating_signal().unwrap_or(0);
        match self.killing {
            Some(killing) if signal == Signal::KILL.as_raw() => ChildEnd::Killed { at_deadline: killing.at_deadline },
            _ if self.told_to_stop && signal == Signal::TERM.as_raw() => ChildEnd::Terminated,
            _ => ChildEnd::Signalled { signal },
        }
    }
}

/// Asks processes to end, also those that are stopped.
fn terminate(which: impl Fn(&tree::Seen) -> bool) {
    for process in tree::below_me(&HashSet::new()).into_iter().filter(which) {
        tree::signal(process, Signal::TERM);
        tree::signal(process, Signal::CONT);
    }
}

/// Starts the command from this thread, which is the main one: its death is what the command dies of.
fn spawn(run: &KeeperRun, output: &mut Output) -> io::Result<Pid> {
    let Start { name, plain, command, environment, .. } = &run.start;
    let mut helper = Command::new("/proc/self/exe");
    helper.arg0("rendez").args(["exec-child", "--parent", &getpid().as_raw_nonzero().to_string()]);
    if let Some(open_files) = run.open_files {
        helper.args(["--open-files", &open_files.to_string()]);
    }
    helper.arg("--").args(command);
    helper.envs(environment.iter().map(|(key, value)| (key, value)));
    helper.env("RENDEZ_DEADLINE_FILE", &run.deadline_file);
    helper.stdin(Stdio::null()).process_group(0);
    if *plain {
        return Ok(Pid::from_child(&helper.spawn()?));
    }
    // The threads first: a child whose output nobody could take must not exist.
    helper.stdout(output.relay(&io::stdout(), name)?).stderr(output.relay(&io::stderr(), name)?);
    Ok(Pid::from_child(&helper.spawn()?))
}

/// The threads that copy the command's output.
#[derive(Default)]
struct Output {
    ends: Vec<mpsc::Receiver<()>>,
}

impl Output {
    /// The end of a new pipe whose lines are copied to a place.
    fn relay(&mut self, to: &impl AsFd, name: &str) -> io::Result<io::PipeWriter> {
        let (source, pipe) = io::pipe()?;
        let destination = File::from(to.as_fd().try_clone_to_owned()?);
        let name = name.to_owned();
        let (ended, end) = mpsc::channel();
        std::thread::Builder::new().stack_size(128 * 1024).spawn(move || {
            relay(source, destination, &name);
            drop(ended);
        })?;
        self.ends.push(end);
        Ok(pipe)
    }

    fn wait(self) {
        for end in self.ends {
            let _ = end.recv_timeout(OUTPUT_GRACE);
        }
    }
}
