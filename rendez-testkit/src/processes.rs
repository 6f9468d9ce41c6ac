//! Looking at processes from outside, through `/proc`, and sending them signals.

use std::fs;
use std::io;

use rustix::process::{Pid, Signal, kill_process};

/// Whether anything of the process still runs; what has ended and was not reaped does not.
#[must_use]
pub fn runs(pid: i32) -> bool {
    stat(pid).is_some_and(|words| !words.starts_with(['Z', 'X']))
}

/// Whether the process can still do anything: it has not ended, and it is not stopped.
#[must_use]
pub fn moves(pid: i32) -> bool {
    stat(pid).is_some_and(|words| !words.starts_with(['T', 't', 'Z', 'X']))
}

/// The parent of a process, if that is there.
#[must_use]
pub fn parent_of(pid: i32) -> Option<i32> {
    stat(pid)?.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// All that descends from a process and was not left to another parent, nearest first.
///
/// # Errors
/// `/proc` cannot be read.
pub fn descendants_of(pid: i32) -> io::Result<Vec<i32>> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let pid = entry?.file_name().to_str().and_then(|name| name.parse().ok());
        all.extend(pid.and_then(|pid| Some((pid, parent_of(pid)?))));
    }
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(all.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found.remove(0);
    Ok(found)
}

/// Sends a signal to a process.
///
/// # Errors
/// It is not there, or not ours.
pub fn signal(pid: i32, signal: Signal) -> io::Result<()> {
    let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::other(format!("{pid} is no process id")))?;
    kill_process(pid, signal).map_err(Into::into)
}

/// What stands behind the name in `/proc/PID/stat`: state, parent and so on. The name itself may hold anything.
fn stat(pid: i32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(')')?.1.trim_start().to_owned())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_child_and_its_child_are_found_until_they_are_gone() {
        let own = i32::try_from(std::process::id()).unwrap();
        let mut shell = Command::new("sh");
        let mut child = shell.args(["-c", "sleep 60 & wait"]).stdin(Stdio::null()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let below = loop {
            let below = descendants_of(pid).unwrap();
            if !below.is_empty() {
                break below;
            }
        };
        assert!(runs(pid) && parent_of(pid) == Some(own) && parent_of(below[0]) == Some(pid));
        assert!(descendants_of(own).unwrap().contains(&below[0]));
        signal(below[0], Signal::KILL).unwrap();
        child.wait().unwrap();
        assert!(!runs(pid) && parent_of(pid).is_none());
    }
}
