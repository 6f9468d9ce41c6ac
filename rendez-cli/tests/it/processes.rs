//! Looking at processes from outside, and waiting for what shall happen.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rendez_testkit::processes;
pub(crate) use rendez_testkit::processes::runs;
use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};

/// Longer than anything takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Boot time in nanoseconds.
pub(crate) fn boot_ns() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    u64::try_from(time.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap()
}

/// Sends a signal to a process that is there.
pub(crate) fn signal(pid: i32, signal: Signal) {
    processes::signal(pid, signal).unwrap();
}

/// The parent of a process that is there.
pub(crate) fn parent_of(pid: i32) -> i32 {
    processes::parent_of(pid).unwrap()
}

/// Waits until something is there.
pub(crate) fn wait_for<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    try_for(look).unwrap_or_else(|| panic!("waited in vain for {what}"))
}

/// Waits until something is there, as long as it makes sense.
pub(crate) fn try_for<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let begin = Instant::now();
    loop {
        let found = look();
        if found.is_some() || begin.elapsed() > PATIENCE {
            return found;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for a file with a number of process ids in it, one a line.
pub(crate) fn pids_in(file: &Path, count: usize) -> Vec<i32> {
    wait_for(&format!("{count} processes in {}", file.display()), || {
        let text = fs::read_to_string(file).ok()?;
        let pids: Vec<i32> = text.lines().filter_map(|line| line.trim().parse().ok()).collect();
        (pids.len() >= count && text.ends_with('\n')).then_some(pids)
    })
}

/// All that descend from a process, parents before children.
pub(crate) fn descendants_of(pid: i32) -> Vec<i32> {
    processes::descendants_of(pid).unwrap()
}

/// Sends a signal to a process that may be gone.
pub(crate) fn signal_if_there(pid: i32, signal: Signal) {
    let _ = processes::signal(pid, signal);
}

/// Freezes a process and all that descend from it; they are told, parents before children.
pub(crate) fn freeze_all(pid: i32) -> Vec<i32> {
    let mut frozen = vec![pid];
    signal(pid, Signal::STOP);
    loop {
        // What was started meanwhile too.
        let new: Vec<i32> = descendants_of(pid).into_iter().filter(|child| !frozen.contains(child)).collect();
        if new.is_empty() {
            return frozen;
        }
        new.iter().for_each(|child| signal_if_there(*child, Signal::STOP));
        frozen.extend(new);
    }
}
