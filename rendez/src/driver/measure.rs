//! The metrics hook, guarded: what a program does there must not end the node.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::panic_text;
use crate::metrics::{Measurement, Metric, Metrics};

#[derive(Clone)]
pub(super) struct Meter(Arc<dyn Metrics>);

impl Meter {
    pub(super) fn new(metrics: Arc<dyn Metrics>) -> Self {
        Self(metrics)
    }

    pub(super) fn record(&self, metric: &Metric, labels: &[&str], value: f64) {
        guarded("the metrics hook", || self.0.record(Measurement::new(metric, labels, value)));
    }
}

/// Calls the program's code; its panic is logged and goes no further.
pub(super) fn guarded(what: &str, call: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(call)) {
        tracing::error!(why = panic_text(&*panic), "{what} panicked");
    }
}
