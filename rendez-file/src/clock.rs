//! The store's clock: the host's boot-time clock and an offset that is kept with the data, so that it never steps.
//!
//! The wall clock is looked at once in a host's life between two starts; when it is set, nothing happens here.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rendez_core::StoreTime;
use serde::{Deserialize, Serialize};

/// What the store's time is made of.
pub(crate) trait Clock: Send + Sync + 'static {
    /// The name of this run of the host's kernel.
    fn boot(&self) -> &str;
    /// The time since the host was started, suspended times included.
    fn since_boot(&self) -> Duration;
    /// What the wall clock says.
    fn wall(&self) -> StoreTime;
}

/// The store's time in one run of the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Epoch {
    pub(crate) boot: String,
    /// The store's time when the host was started, in microseconds.
    pub(crate) offset: i64,
}

impl Epoch {
    /// From here the store's time goes on from the wall clock, or from the last moment that was seen if that is later.
    pub(crate) fn begin(clock: &dyn Clock, seen: StoreTime) -> Self {
        let start = clock.wall().max(seen);
        let offset = i128::from(start.as_micros()) - micros(clock.since_boot());
        Self { boot: clock.boot().to_owned(), offset: i64::try_from(offset).unwrap_or(i64::MAX) }
    }

    /// The store's time; never before `seen`.
    pub(crate) fn now(&self, clock: &dyn Clock, seen: StoreTime) -> StoreTime {
        let now = i128::from(self.offset) + micros(clock.since_boot());
        StoreTime::from_micros(u64::try_from(now).unwrap_or(0)).max(seen)
    }
}

fn micros(duration: Duration) -> i128 {
    i128::try_from(duration.as_micros()).unwrap_or(i128::MAX / 2)
}

/// The host's clock.
#[derive(Debug)]
pub(crate) struct SystemClock {
    boot: String,
    /// How far this process's boot-time clock is ahead of the host's, in nanoseconds: a time namespace may move it.
    ahead: i128,
}

impl SystemClock {
    /// Reads which run of the kernel this is.
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self { boot: boot_id()?, ahead: namespace_offset() })
    }
}

#[cfg(target_os = "linux")]
fn boot_id() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(not(target_os = "linux"))]
fn boot_id() -> std::io::Result<String> {
    let output = std::process::Command::new("/usr/sbin/sysctl").args(["-n", "kern.bootsessionuuid"]).output()?;
    let id = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if id.is_empty() {
        return Err(std::io::Error::other("sysctl kern.bootsessionuuid tells nothing"));
    }
    Ok(id)
}

/// Linux lets a container have a boot-time clock of its own; the difference is told in a file.
fn namespace_offset() -> i128 {
    // The file is about the namespace of this process's children, which may be another one than its own.
    let namespace = |name: &str| std::fs::read_link(format!("/proc/self/ns/{name}")).ok();
    if namespace("time") != namespace("time_for_children") {
        return 0;
    }
    let text = std::fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
    parse_offset(&text).unwrap_or(0)
}

fn parse_offset(text: &str) -> Option<i128> {
    let line = text.lines().find(|line| line.starts_with("boottime"))?;
    let mut words = line.split_whitespace().skip(1);
    let (seconds, nanos): (i128, i128) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    Some(seconds * 1_000_000_000 + nanos)
}

impl Clock for SystemClock {
    fn boot(&self) -> &str {
        &self.boot
    }

    fn since_boot(&self) -> Duration {
        #[cfg(target_os = "linux")]
        let id = rustix::time::ClockId::Boottime;
        #[cfg(not(target_os = "linux"))]
        let id = rustix::time::ClockId::Monotonic;
        let time = rustix::time::clock_gettime(id);
        let nanos = i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec) - self.ahead;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
    }

    fn wall(&self) -> StoreTime {
        StoreTime::default() + SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_namespace_is_read_from_its_file() {
        assert_eq!(parse_offset("monotonic  5  6\nboottime  -2  500000000\n"), Some(-1_500_000_000));
        assert_eq!(parse_offset("monotonic           0         0\nboottime            0         0\n"), Some(0));
        assert_eq!(parse_offset(""), None);
    }

    #[test]
    fn the_hosts_clock_goes_on_and_knows_its_boot() {
        let clock = SystemClock::new().unwrap();
        assert!(!clock.boot().is_empty());
        let epoch = Epoch::begin(&clock, StoreTime::default());
        let first = epoch.now(&clock, StoreTime::default());
        assert!(clock.wall().since(first) < Duration::from_secs(60), "it began with the wall clock");
        assert!(epoch.now(&clock, first) >= first);
        let later = first + Duration::from_secs(1000);
        assert_eq!(epoch.now(&clock, later), later, "it never goes back");
    }
}
