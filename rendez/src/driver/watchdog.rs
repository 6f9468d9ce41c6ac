//! A thread that sees to it that the driver itself keeps its deadlines.
//!
//! The driver is a task. Where runners block all threads of the runtime (one is enough on a current-thread runtime)
//! it does not run, and nobody tells them that their leases are over. This thread needs no runtime.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rendez_core::Timestamp;

use super::{WAKE_MAX, policy};
use crate::boot_time;
use crate::handle::Published;
use crate::lease::SlotLease;
use crate::policy::OverrunPolicy;

/// The longest sleep of the thread.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The sleep once a deadline has passed that the driver has not looked at.
const TICK: Duration = Duration::from_millis(100);

/// So many ticks in a row the driver is given. Ticks during which the process was paused do not count: after a pause
/// the driver needs a moment too.
const TICKS: u32 = 5;

/// When the driver last looked at its deadlines; and the thread's life.
pub(super) struct Watchdog(Arc<State>);

struct State {
    looked_at: AtomicU64,
    over: Mutex<bool>,
    wake: Condvar,
}

impl Watchdog {
    /// Starts the thread. Where the system gives none, the node goes on without.
    pub(super) fn spawn(published: Arc<Published>, policy: OverrunPolicy) -> Self {
        let state = Arc::new(State {
            looked_at: AtomicU64::new(boot_time().as_nanos()),
            over: Mutex::new(false),
            wake: Condvar::new(),
        });
        let watched = state.clone();
        let thread = std::thread::Builder::new().name("rendez-watchdog".to_owned());
        if let Err(error) = thread.spawn(move || watch(&watched, &published, &policy)) {
            tracing::warn!(%error, "no watchdog: a blocked runtime will not be noticed");
        }
        Self(state)
    }

    /// The driver looks at its deadlines now.
    pub(super) fn looking(&self) {
        self.0.looked_at.store(boot_time().as_nanos(), Ordering::Release);
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        *self.0.over.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.wake.notify_all();
    }
}

fn watch(state: &State, published: &Published, policy: &OverrunPolicy) {
    let mut ticks = 0;
    let mut sleep = LOOK_EVERY;
    loop {
        let slept = Instant::now();
        let over = state.over.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = state.wake.wait_timeout_while(over, sleep, |over| !*over);
        if *waited.unwrap_or_else(PoisonError::into_inner).0 {
            return;
        }
        let owned = published.owned.load_full();
        let looked_at = Timestamp::from_nanos(state.looked_at.load(Ordering::Acquire));
        let now = boot_time();
        // A driver that only sleeps looks every `WAKE_MAX`.
        let stuck = now.since(looked_at) > WAKE_MAX * 2;
        let missed = |lease: &&SlotLease| stuck && lease.deadline() <= now && looked_at < lease.deadline();
        if !owned.iter().any(|lease| missed(&lease)) {
            ticks = 0;
            sleep = LOOK_EVERY;
            continue;
        }
        ticks += u32::from(ticks == 0 || slept.elapsed() < sleep * 2);
        sleep = TICK;
        if ticks == TICKS {
            tracing::error!(node = %published.node, "the runtime is blocked, and leases of running slots are over");
            for lease in owned.iter().filter(missed) {
                policy::terminate(policy, lease.slot(), lease.token());
            }
        }
    }
}
