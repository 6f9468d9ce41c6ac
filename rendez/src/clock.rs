//! The node's clock: monotonic, and going on while the system is suspended.

use rendez_core::Timestamp;

/// The time since the machine was started, suspended times included (`CLOCK_BOOTTIME`; on macOS its monotonic clock,
/// which goes on while the system sleeps). All processes of one machine see the same; two machines' cannot be compared.
#[must_use]
pub fn boot_time() -> Timestamp {
    #[cfg(target_os = "linux")]
    let id = rustix::time::ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    let id = rustix::time::ClockId::Monotonic;
    let time = rustix::time::clock_gettime(id);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    Timestamp::from_nanos(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}
