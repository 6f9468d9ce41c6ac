//! What is done about a runner that has outlived its lease.

use rendez_core::{FencingToken, Slot};

use super::measure::guarded;
use crate::policy::{EXIT_CODE_OVERRUN, OverrunPolicy};

pub(super) fn terminate(policy: &OverrunPolicy, slot: &Slot, token: FencingToken) {
    tracing::error!(%slot, %token, ?policy, "a runner has outlived its lost lease");
    match policy {
        OverrunPolicy::ExitProcess => std::process::exit(EXIT_CODE_OVERRUN),
        OverrunPolicy::Report => {}
        OverrunPolicy::Call(end) => guarded("the overrun policy", || end(slot, token)),
    }
}
