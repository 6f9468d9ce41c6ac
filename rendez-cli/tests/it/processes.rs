//! Looking at processes from outside, and waiting for what shall happen.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_gettime};

/// Longer than anything takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Boot time in nanoseconds.
pub(crate) fn boot_ns() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    u64::try_from(time.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap()
}

/// Whether anything of the process still runs; what has ended and was not reaped does not.
pub(crate) fn runs(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|tail| !tail.trim_start().starts_with(['Z', 'X'])))
}

/// Sends a signal to a process that is there.
pub(crate) fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Waits until something is there.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begin.elapsed() < PATIENCE, "waited in vain for {what}");
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

/// The parent of a process.
pub(crate) fn parent_of(pid: i32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}

/// All that descend from a process, parents before children.
pub(crate) fn descendants_of(pid: i32) -> Vec<i32> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(child) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let parent = stat.rsplit(')').next().and_then(|tail| tail.split_ascii_whitespace().nth(1)?.parse().ok());
        if let Some(parent) = parent {
            children.entry(parent).or_default().push(child);
        }
    }
    let mut found = vec![pid];
    let mut at = 0;
    while let Some(parent) = found.get(at) {
        found.extend(children.get(parent).into_iter().flatten().copied());
        at += 1;
    }
    found.split_off(1)
}

/// Sends a signal to a process that may be gone.
pub(crate) fn signal_if_there(pid: i32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(pid).unwrap(), signal);
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
