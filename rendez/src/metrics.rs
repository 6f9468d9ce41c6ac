//! The hook for numbers: what is measured, under which names and in which units.

/// What kind of number a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MetricKind {
    /// It only rises: add the value to it.
    Counter,
    /// It has a value: replace it.
    Gauge,
    /// It is observed again and again: put the value into a histogram.
    Histogram,
}

/// A metric: constant, so that exporters can register all of [`METRICS`] at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Metric {
    /// Its name, the unit last where there is one.
    pub name: &'static str,
    /// What kind of number it is.
    pub kind: MetricKind,
    /// What it says.
    pub help: &'static str,
    /// The names of its labels, in the order of [`Measurement::labels`]. All have few values.
    pub labels: &'static [&'static str],
}

macro_rules! metrics {
    ($($(#[$doc:meta])* $id:ident = $name:literal, $kind:ident, [$($label:literal),*], $help:literal;)*) => {
        $(
            #[doc = concat!("`", $name, "`: ", $help)]
            pub const $id: Metric =
                Metric { name: $name, kind: MetricKind::$kind, help: $help, labels: &[$($label),*] };
        )*
        /// All metrics.
        pub const METRICS: &[Metric] = &[$($id),*];
    };
}

metrics! {
    STORE_CALL_SECONDS = "rendez_store_call_seconds", Histogram, ["operation", "outcome"],
        "Time of a store request in seconds; the outcome is ok or the kind of error.";
    EVENTS_TOTAL = "rendez_events_total", Counter, ["event"],
        "Events by kind, such as acquired, session_lost, overrun.";
    SLOTS_RUNNING = "rendez_slots_running", Gauge, [], "Slots whose runners run on this node.";
    RUNNER_SECONDS = "rendez_runner_seconds", Histogram, ["end"],
        "How long runners ran, in seconds; the end is returned, failed, panicked or aborted.";
    RUNNER_STOP_SECONDS = "rendez_runner_stop_seconds", Histogram, [],
        "From telling a runner to stop to its end, in seconds.";
    WATCH_OPENINGS_TOTAL = "rendez_watch_openings_total", Counter, ["outcome"],
        "Openings of the store's watch; the outcome is ok or the kind of error.";
    WAKE_LATENESS_SECONDS = "rendez_wake_lateness_seconds", Histogram, [],
        "How much later than planned the driver looked at its deadlines, in seconds: a busy runtime, or a pause.";
}

/// One measured value.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Measurement<'a> {
    /// Of what.
    pub metric: &'a Metric,
    /// The values of its labels, in the order of [`Metric::labels`].
    pub labels: &'a [&'a str],
    /// The value: what to add, to set or to observe, by the metric's kind.
    pub value: f64,
}

impl<'a> Measurement<'a> {
    /// A value of a metric.
    #[must_use]
    pub fn new(metric: &'a Metric, labels: &'a [&'a str], value: f64) -> Self {
        Self { metric, labels, value }
    }
}

/// Where a node's numbers go. The default goes nowhere.
///
/// Called on the node's own tasks: an implementation must not block. If it panics, the panic is logged.
pub trait Metrics: Send + Sync + 'static {
    /// Takes one value.
    fn record(&self, measurement: Measurement<'_>);
}

/// Drops every value.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoMetrics;

impl Metrics for NoMetrics {
    fn record(&self, _measurement: Measurement<'_>) {}
}
