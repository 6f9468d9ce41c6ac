//! What happens when a runner outlives the lease it runs under.

use std::fmt;
use std::sync::Arc;

use rendez_core::{FencingToken, Slot};

/// The exit code of a process that ends itself because a promise would be broken otherwise.
pub const EXIT_CODE_OVERRUN: i32 = 70;

/// What to do when a runner still runs at the deadline of a lost lease, although it was told to stop and aborted.
/// From then on another node may run the slot too; nothing short of ending the process can prevent that.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum OverrunPolicy {
    /// Log it and end the process with [`EXIT_CODE_OVERRUN`]: the only choice that keeps the promise that two runners
    /// of a slot never run at once.
    #[default]
    ExitProcess,
    /// Only report it, as an event and in the log. **Two nodes may then run the slot at the same time**; choose it
    /// where every sink checks fencing tokens.
    Report,
    /// Call this instead, at least once for each such runner; it must make sure that the runner is gone (kill its
    /// child process). Called on the node's own task or thread: it must not block.
    Call(OverrunHook),
}

/// What [`OverrunPolicy::Call`] calls.
pub type OverrunHook = Arc<dyn Fn(&Slot, FencingToken) + Send + Sync>;

impl OverrunPolicy {
    /// [`OverrunPolicy::Call`] for a closure.
    pub fn call(end: impl Fn(&Slot, FencingToken) + Send + Sync + 'static) -> Self {
        Self::Call(Arc::new(end))
    }
}

impl fmt::Debug for OverrunPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ExitProcess => "ExitProcess",
            Self::Report => "Report",
            Self::Call(_) => "Call",
        })
    }
}
