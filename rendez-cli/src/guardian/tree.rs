//! The processes below a subreaper: finding them, signalling them, reaping them.
//!
//! Finding is best effort (processes fork while one looks); whoever wants certainty looks again until
//! [`reap`] says that there are none.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;

use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, getpid, kill_process, pidfd_open, pidfd_send_signal, wait,
};

/// A process as it was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) pid: Pid,
    /// Its process group.
    pub(crate) group: i32,
    parent: i32,
    /// Tells it from a later process of the same number.
    started: u64,
}

/// Signals a process, and never one that has its number by now. A process that is gone is no error.
pub(crate) fn signal(process: Seen, signal: Signal) {
    let pidfd = pidfd_open(process.pid, PidfdFlags::empty());
    // Looked at after the pidfd was opened: if it is still the same process, the pidfd is that process.
    if look_at(process.pid.as_raw_nonzero().get()).is_none_or(|now| now.started != process.started) {
        return;
    }
    let _ = match pidfd {
        Ok(pidfd) => pidfd_send_signal(pidfd, signal),
        Err(Errno::NOSYS) => kill_process(process.pid, signal),
        Err(_) => Ok(()),
    };
}

/// All processes below this one, parents first, but for these children of it and what is below them. What has ended
/// and was not reaped is among them: such a process may still have threads that run.
pub(crate) fn below_me(but: &HashSet<Pid>) -> Vec<Seen> {
    let me = getpid().as_raw_nonzero().get();
    let children_of: Box<dyn Fn(i32) -> Vec<i32>> = match children_by_task(me) {
        Some(_) => Box::new(|pid| children_by_task(pid).unwrap_or_default()),
        // A kernel without that file: look at everybody.
        None => {
            let map = children_by_parent();
            Box::new(move |pid| map.get(&pid).cloned().unwrap_or_default())
        }
    };
    let mut found = Vec::new();
    let mut known = HashSet::from([me]);
    let mut open = vec![me];
    while let Some(parent) = open.pop() {
        for child in children_of(parent) {
            let Some(pid) = Pid::from_raw(child) else { continue };
            if (parent == me && but.contains(&pid)) || !known.insert(child) {
                continue;
            }
            open.push(child);
            found.extend(look_at(child));
        }
    }
    found
}

/// What `wait` has said.
pub(crate) enum Reaped {
    /// A child has ended.
    One(Pid, WaitStatus),
    /// There are children, and none has ended.
    NoneYet,
    /// There are no children, nor anything else below this process.
    NobodyLeft,
}

/// Takes in one child that has ended.
pub(crate) fn reap() -> Reaped {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => return Reaped::One(pid, status),
            Ok(None) => return Reaped::NoneYet,
            Err(Errno::CHILD) => return Reaped::NobodyLeft,
            // Nothing else is documented for it; "not yet" is always safe to say.
            Err(Errno::INTR) => {}
            Err(_) => return Reaped::NoneYet,
        }
    }
}

fn look_at(pid: i32) -> Option<Seen> {
    parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// `pid (name) state parent group session ...`, with the start time as the 22nd field. The name may hold anything.
fn parse(stat: &[u8]) -> Option<Seen> {
    let text = String::from_utf8_lossy(stat);
    let (head, tail) = text.rsplit_once(')')?;
    let pid = Pid::from_raw(head.split_once('(')?.0.trim().parse().ok()?)?;
    let mut fields = tail.split_ascii_whitespace();
    let parent = fields.nth(1)?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    let started = fields.nth(16)?.parse().ok()?;
    Some(Seen { pid, group, parent, started })
}

fn children_by_task(pid: i32) -> Option<Vec<i32>> {
    let mut children = Vec::new();
    let mut readable = false;
    for task in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        if let Ok(text) = fs::read_to_string(task.path().join("children")) {
            readable = true;
            children.extend(text.split_ascii_whitespace().filter_map(|child| child.parse::<i32>().ok()));
        }
    }
    readable.then_some(children)
}

fn children_by_parent() -> BTreeMap<i32, Vec<i32>> {
    let mut map: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some(seen) = pid.and_then(look_at) {
            map.entry(seen.parent).or_default().push(seen.pid.as_raw_nonzero().get());
        }
    }
    map
}

/// Makes this process the one that inherits the orphans among its descendants.
pub(crate) fn become_subreaper() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(getpid()))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_blanks_and_brackets_does_not_confuse() {
        let stat = b"42 (a) R (b c) S 7 8 9 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 11 12";
        let seen = parse(stat).unwrap();
        assert_eq!((seen.pid.as_raw_nonzero().get(), seen.parent, seen.group), (42, 7, 8));
        assert_eq!(seen.started, 987_654);
        assert!(parse(b"42 (a").is_none());
    }

    #[test]
    fn children_are_found_in_both_ways() {
        let mut child = std::process::Command::new("sleep").arg("30").spawn().unwrap();
        let me = getpid().as_raw_nonzero().get();
        let pid = child.id() as i32;
        assert!(children_by_parent()[&me].contains(&pid));
        assert!(below_me(&HashSet::new()).iter().any(|seen| seen.pid.as_raw_nonzero().get() == pid));
        let seen = look_at(pid).unwrap();
        signal(Seen { started: seen.started + 1, ..seen }, Signal::KILL);
        assert!(child.try_wait().unwrap().is_none(), "another process of the same number was killed");
        signal(seen, Signal::KILL);
        child.wait().unwrap();
    }
}
