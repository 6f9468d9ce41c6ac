//! A timer on the boot-time clock, which fires at once after a suspend.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub(crate) use rendez::boot_time as now;
use rendez_core::Timestamp;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// Becomes readable at a moment of `CLOCK_BOOTTIME`.
pub(crate) struct Timer(OwnedFd);

impl Timer {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self(timerfd_create(TimerfdClockId::Boottime, flags)?))
    }

    /// Replaces what it was set to before, fired or not.
    pub(crate) fn set(&self, at: Timestamp) -> io::Result<()> {
        // All zeros would disarm the timer; a moment beyond the range of the clock is never reached.
        let nanos = at.as_nanos().clamp(1, i64::MAX as u64);
        let it_value = Timespec { tv_sec: (nanos / 1_000_000_000) as i64, tv_nsec: (nanos % 1_000_000_000) as i64 };
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        timerfd_settime(&self.0, TimerfdTimerFlags::ABSTIME, &Itimerspec { it_interval, it_value })?;
        Ok(())
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
