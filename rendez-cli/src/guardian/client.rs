//! The agent's end: starts the guardian, asks it for children, and hears how they end.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rendez_core::Timestamp;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use super::clock::now;
use super::protocol::{ChildEnd, ChildId, HeldSession, Hello, Order, Report, Start};
use super::tree::{self, Reaped};
use super::wire::LINE_BYTES_MAX;
use crate::store_url::StoreUrl;

/// After so many pings without an answer, a session TTL's worth, the guardian stands still. Its children are gone by
/// then: their keepers hear of no new deadline.
const UNANSWERED_MAX: u32 = 10;

/// Between two pings at least: a busy machine must not look like a guardian that stands still.
const PING_INTERVAL_MIN: Duration = Duration::from_millis(200);

/// What a guardian is told at its start.
#[derive(Debug, Clone)]
pub(crate) struct GuardianSetup {
    /// The store whose session is closed after a crash; no crash release if absent.
    pub(crate) store: Option<StoreUrl>,
    pub(crate) cluster: String,
    /// How long before its deadline a child is told to stop.
    pub(crate) stop_lead: Duration,
    /// How long before its deadline a child is killed.
    pub(crate) kill_lead: Duration,
    pub(crate) session_ttl: Duration,
    pub(crate) session_ttl_max: Duration,
}

/// A child to be started.
#[derive(Debug, Clone)]
pub(crate) struct ChildSpec {
    /// What its lines of output are marked with.
    pub(crate) name: String,
    /// They are not marked, but passed on as they are.
    pub(crate) plain: bool,
    /// The program and its arguments.
    pub(crate) command: Vec<String>,
    /// Added to the environment that the agent passes on.
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) deadline: Timestamp,
}

/// The guardian cannot be asked any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the guardian process is gone")]
pub(crate) struct GuardianGone;

/// A handle to the guardian; clones are the same. It ends with the agent's process, or after the last handle.
#[derive(Clone)]
pub(crate) struct Guardian {
    orders: mpsc::UnboundedSender<Order>,
    children: Arc<Mutex<Children>>,
    gone: watch::Receiver<Option<Aftermath>>,
    pid: Pid,
}

/// What was found after the end of a guardian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Aftermath {
    /// Nothing of any child is left.
    Clean,
    /// Something may still run.
    Uncertain,
}

#[derive(Default)]
struct Children {
    next: ChildId,
    waiting: BTreeMap<ChildId, oneshot::Sender<ChildEnd>>,
}

fn locked(children: &Mutex<Children>) -> MutexGuard<'_, Children> {
    children.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Guardian {
    /// Starts a guardian. Must be called inside a runtime.
    pub(crate) fn start(setup: GuardianSetup) -> io::Result<Self> {
        // What the guardian leaves if it is killed comes to this process.
        tree::become_subreaper()?;
        let (ours, theirs) = StdUnixStream::pair()?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("rendez").arg("guardian").stdin(Stdio::from(OwnedFd::from(theirs))).process_group(0);
        for (key, _) in std::env::vars_os() {
            if key.to_string_lossy().starts_with("RENDEZ_CONFIG_") {
                command.env_remove(key);
            }
        }
        let process = command.spawn()?;
        drop(command);
        let pid = Pid::from_child(&process);
        ours.set_nonblocking(true)?;
        let (reader, writer) = UnixStream::from_std(ours)?.into_split();
        let (orders, to_write) = mpsc::unbounded_channel();
        let (tell_gone, gone) = watch::channel(None);
        let children = Arc::new(Mutex::new(Children::default()));
        let answered = Arc::new(AtomicBool::new(true));
        tokio::spawn(write(writer, to_write));
        tokio::spawn(read(reader, pid, Arc::clone(&children), Arc::clone(&answered), tell_gone));
        let ping_interval = (setup.session_ttl / UNANSWERED_MAX).max(PING_INTERVAL_MIN);
        tokio::spawn(watch_over(pid, orders.downgrade(), answered, gone.clone(), ping_interval));
        let guardian = Self { orders, children, gone, pid };
        guardian.order(Order::Hello(Hello {
            store: setup.store,
            cluster: setup.cluster,
            stop_lead_ns: nanos(setup.stop_lead),
            kill_lead_ns: nanos(setup.kill_lead),
            session_ttl_ns: nanos(setup.session_ttl),
            session_ttl_max_ns: nanos(setup.session_ttl_max),
        }));
        Ok(guardian)
    }

    /// Asks for a child. Its end arrives after nothing of it is left.
    pub(crate) fn start_child(&self, spec: ChildSpec) -> Result<(ChildId, oneshot::Receiver<ChildEnd>), GuardianGone> {
        let (tell_end, end) = oneshot::channel();
        let child = {
            let mut children = locked(&self.children);
            // Under the lock, so that whoever empties the map at the guardian's end comes before or after.
            if self.gone.borrow().is_some() {
                return Err(GuardianGone);
            }
            children.next += 1;
            let child = children.next;
            children.waiting.insert(child, tell_end);
            child
        };
        let ChildSpec { name, plain, command, environment, deadline } = spec;
        let deadline_ns = deadline.as_nanos();
        self.order(Order::Start(Start { child, name, plain, command, environment, deadline_ns }));
        Ok((child, end))
    }

    /// A child may run until this deadline.
    pub(crate) fn extend(&self, child: ChildId, deadline: Timestamp) {
        self.order(Order::Extend { child, deadline_ns: deadline.as_nanos() });
    }

    /// Tells a child to stop, and kills it at this time.
    pub(crate) fn stop(&self, child: ChildId, kill_at: Timestamp) {
        self.order(Order::Stop { child, kill_at_ns: kill_at.as_nanos() });
    }

    /// Kills a child.
    pub(crate) fn kill(&self, child: ChildId) {
        self.order(Order::Kill { child });
    }

    /// Says which session to close after a crash.
    pub(crate) fn session(&self, session: Option<HeldSession>) {
        self.order(Order::Session(session));
    }

    /// Ends the guardian, with nothing to be released, and waits a little for its end.
    pub(crate) async fn leave(&self) {
        /// It has nothing to do but to exit.
        const PATIENCE: Duration = Duration::from_secs(2);
        self.order(Order::Bye);
        let _ = tokio::time::timeout(PATIENCE, self.gone()).await;
    }

    /// Kills the guardian, which does not do what it should; keepers and this process then kill what it guarded.
    pub(crate) fn kill_guardian(&self) {
        if self.gone.borrow().is_none() {
            let _ = kill_process(self.pid, Signal::KILL);
        }
    }

    /// Waits for the guardian's end, and for what was below it to be killed. Cancelling it changes nothing.
    pub(crate) async fn gone(&self) -> Aftermath {
        let mut gone = self.gone.clone();
        let aftermath = gone.wait_for(Option::is_some).await.ok().and_then(|aftermath| *aftermath);
        aftermath.unwrap_or(Aftermath::Uncertain)
    }

    fn order(&self, order: Order) {
        // A guardian that is gone is noticed by the reader.
        let _ = self.orders.send(order);
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

async fn write(mut writer: OwnedWriteHalf, mut orders: mpsc::UnboundedReceiver<Order>) {
    while let Some(order) = orders.recv().await {
        let Ok(mut line) = serde_json::to_vec(&order) else { continue };
        line.push(b'\n');
        if writer.write_all(&line).await.is_err() || matches!(order, Order::Bye) {
            // Dropped, it tells the guardian that this was all.
            return;
        }
    }
}

/// Kills a guardian that stands still: nobody could say what has become of its children, and their slots would be
/// kept for nothing. Counts pings and not time, so that a pause of this process or of the host is not held against it.
async fn watch_over(
    guardian: Pid,
    orders: mpsc::WeakUnboundedSender<Order>,
    answered: Arc<AtomicBool>,
    gone: watch::Receiver<Option<Aftermath>>,
    interval: Duration,
) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut unanswered = 0;
    loop {
        ticks.tick().await;
        // The last handle is dropped, or the guardian is gone.
        let Some(orders) = orders.upgrade() else { return };
        if orders.is_closed() || gone.borrow().is_some() {
            return;
        }
        if answered.swap(false, Ordering::Relaxed) {
            unanswered = 0;
            let _ = orders.send(Order::Ping);
            continue;
        }
        unanswered += 1;
        if unanswered >= UNANSWERED_MAX {
            tracing::error!("the guardian has not answered for {:?}: killing it", interval * UNANSWERED_MAX);
            let _ = kill_process(guardian, Signal::KILL);
            return;
        }
    }
}

async fn read(
    reader: OwnedReadHalf,
    guardian: Pid,
    children: Arc<Mutex<Children>>,
    answered: Arc<AtomicBool>,
    gone: watch::Sender<Option<Aftermath>>,
) {
    let mut reader = BufReader::new(reader);
    let mut line = String::new();
    let mut folder = None;
    loop {
        line.clear();
        match (&mut reader).take(LINE_BYTES_MAX as u64).read_line(&mut line).await {
            Ok(count) if count > 0 => {}
            Ok(_) | Err(_) => break,
        }
        let Ok(report) = serde_json::from_str(&line) else { break };
        match report {
            Report::Ready { folder: place } => folder = Some(place),
            Report::Pong => answered.store(true, Ordering::Relaxed),
            Report::Started { .. } => {}
            Report::Ended { child, end } => {
                let waiting = locked(&children).waiting.remove(&child);
                if let Some(waiting) = waiting {
                    let _ = waiting.send(end);
                }
            }
        }
    }
    let aftermath = tokio::task::spawn_blocking(move || clean_up_after(guardian)).await;
    let aftermath = aftermath.unwrap_or(Aftermath::Uncertain);
    if let Some(folder) = folder {
        // There, if the guardian was killed.
        let _ = std::fs::remove_dir_all(folder);
    }
    let mut children = locked(&children);
    gone.send_replace(Some(aftermath));
    for (_, waiting) in std::mem::take(&mut children.waiting) {
        // Where it is uncertain, nobody is told: the children keep their leases, which end with the session.
        match aftermath {
            Aftermath::Clean => drop(waiting.send(ChildEnd::KeeperDied)),
            Aftermath::Uncertain => drop(waiting),
        }
    }
}

/// The guardian is gone, or as good as that: kills it and everything that comes to this process from it.
fn clean_up_after(guardian: Pid) -> Aftermath {
    /// Longer than the keepers need to notice the guardian's end and to kill.
    const PATIENCE: Duration = Duration::from_secs(2);
    let _ = kill_process(guardian, Signal::KILL);
    let give_up_at = now() + PATIENCE;
    while now() < give_up_at {
        for process in tree::below_me(&HashSet::new()) {
            tree::signal(process, Signal::KILL);
        }
        loop {
            match tree::reap() {
                Reaped::One(..) => {}
                Reaped::NoneYet => break,
                Reaped::NobodyLeft => return Aftermath::Clean,
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Aftermath::Uncertain
}
