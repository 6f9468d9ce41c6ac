//! The frame for measurements: what one is, and how a table of them is printed.
//!
//! The program `measure` holds the list; `cargo xtask measure` runs it. Figures depend on the machine, so they are
//! never judged here or in tests: baselines are measured in the same run, and the load of the machine stands in each
//! row, so that a reader can judge.

use std::fmt;
use std::io::{self, Write};
use std::time::Duration;

use async_trait::async_trait;

/// The fewest samples that may stand in a table.
pub const SAMPLES_MIN: usize = 20;

/// What goes wrong in a measurement is told to the reader, nothing else.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// One thing that can be measured.
#[async_trait]
pub trait Measurement: Send + Sync {
    /// A short name without spaces, to ask for it.
    fn name(&self) -> &'static str;

    /// What one sample is, in a few words.
    fn about(&self) -> &'static str;

    /// Whether it is part of every run, because others are compared with it.
    fn is_baseline(&self) -> bool;

    /// Measures.
    ///
    /// Cancelling it loses the samples.
    ///
    /// # Errors
    /// Nothing was measured, with the reason.
    async fn run(&self) -> Result<Samples, Failure>;
}

/// What was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Samples {
    values: Vec<f64>,
    unit: Unit,
    more: Vec<(&'static str, String, Samples)>,
    notes: Vec<String>,
    broken: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Seconds,
    Of(&'static str),
}

impl Samples {
    /// Times.
    #[must_use]
    pub fn times(times: impl IntoIterator<Item = Duration>) -> Self {
        Self::new(Unit::Seconds, times.into_iter().map(|time| time.as_secs_f64()))
    }

    /// Numbers of something, for example `commands` or `ns/pair`.
    #[must_use]
    pub fn numbers(unit: &'static str, values: impl IntoIterator<Item = f64>) -> Self {
        Self::new(Unit::Of(unit), values)
    }

    fn new(unit: Unit, values: impl IntoIterator<Item = f64>) -> Self {
        Self { values: values.into_iter().collect(), unit, more: Vec::new(), notes: Vec::new(), broken: Vec::new() }
    }

    /// Adds a row about another side of the same runs; it may have fewer samples.
    #[must_use]
    pub fn and(mut self, name: &'static str, about: impl Into<String>, samples: Self) -> Self {
        self.more.push((name, about.into(), samples));
        self
    }

    /// Adds a line for the reader.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// Says that a promise was broken while this was measured: the rows are printed, and the run fails.
    #[must_use]
    pub fn broken(mut self, what: impl Into<String>) -> Self {
        self.broken.push(what.into());
        self
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.values.len()
    }

    /// The smallest value that is not below a share of all; `None` without samples.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let mut values = self.values.clone();
        values.sort_by(f64::total_cmp);
        let rank = (share * values.len() as f64).ceil() as usize;
        values.get(rank.clamp(1, values.len().max(1)) - 1).copied()
    }

    fn show(&self, value: Option<f64>) -> String {
        match (value, self.unit) {
            (None, _) => "-".to_owned(),
            (Some(seconds), Unit::Seconds) => {
                format!("{:.3?}", Duration::try_from_secs_f64(seconds).unwrap_or_default())
            }
            (Some(value), Unit::Of(unit)) => format!("{value:.3} {unit}"),
        }
    }
}

/// One line that sets times beside others of the same run: medians, the largest, and how many times as long.
///
/// ```
/// use std::time::Duration;
/// let line = rendez_testkit::measure::beside(("plain", &[Duration::from_millis(2)]), ("fenced", &[Duration::from_millis(3)]));
/// assert_eq!(line, "plain: p50 2.000ms, max 2.000ms; fenced: p50 3.000ms, max 3.000ms; 1.50 times");
/// ```
#[must_use]
pub fn beside(base: (&str, &[Duration]), other: (&str, &[Duration])) -> String {
    let show = |(name, times): (&str, &[Duration])| {
        let samples = Samples::times(times.iter().copied());
        let (median, max) = (samples.quantile(0.5), samples.quantile(1.0));
        (format!("{name}: p50 {}, max {}", samples.show(median), samples.show(max)), median.unwrap_or(f64::NAN))
    };
    let ((base, base_median), (other, other_median)) = (show(base), show(other));
    format!("{base}; {other}; {:.2} times", other_median / base_median)
}

/// Runs the measurements with these names, or all if there are none, after the baselines; prints a row as soon as it
/// is known.
///
/// # Errors
/// A name is unknown, a measurement failed or gave fewer than [`SAMPLES_MIN`] samples, or the table cannot be
/// written.
pub async fn run(list: &[Box<dyn Measurement>], names: &[String], out: &mut impl Write) -> Result<(), Failure> {
    if let Some(name) = names.iter().find(|name| !list.iter().any(|measurement| measurement.name() == *name)) {
        let known: Vec<&str> = list.iter().map(|measurement| measurement.name()).collect();
        return Err(format!("there is no measurement {name}; there are: {}", known.join(", ")).into());
    }
    let wanted = |measurement: &&dyn Measurement| {
        measurement.is_baseline() || names.is_empty() || names.iter().any(|name| name == measurement.name())
    };
    row(out, ["name", "samples", "p50", "max", "load", "one sample"])?;
    let (baselines, others): (Vec<_>, Vec<_>) =
        list.iter().map(AsRef::as_ref).filter(wanted).partition(|measurement| measurement.is_baseline());
    let mut failed = Vec::new();
    for measurement in baselines.into_iter().chain(others) {
        let samples = match measurement.run().await {
            Ok(samples) => samples,
            Err(failure) => {
                failed.push(format!("{}: {failure}", measurement.name()));
                continue;
            }
        };
        let load = load();
        show(out, measurement.name(), &samples, &load, measurement.about())?;
        for (name, about, more) in &samples.more {
            show(out, &format!("  {name}"), more, &load, about)?;
        }
        for note in &samples.notes {
            writeln!(out, "  {note}")?;
        }
        failed.extend(samples.broken.iter().map(|what| format!("{}: {what}", measurement.name())));
        let count = samples.count();
        if count < SAMPLES_MIN {
            failed.push(format!("{}: {count} samples, fewer than {SAMPLES_MIN}", measurement.name()));
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(failed.join("\n").into()) }
}

/// Prints what can be measured.
///
/// # Errors
/// The list cannot be written.
pub fn print_list(list: &[Box<dyn Measurement>], out: &mut impl Write) -> io::Result<()> {
    for measurement in list {
        writeln!(out, "{:<24} {}", measurement.name(), measurement.about())?;
    }
    Ok(())
}

fn show(out: &mut impl Write, name: &str, samples: &Samples, load: &str, about: &str) -> io::Result<()> {
    let (p50, max) = (samples.show(samples.quantile(0.5)), samples.show(samples.quantile(1.0)));
    row(out, [name, &samples.count().to_string(), &p50, &max, load, about])
}

fn row(out: &mut impl Write, cells: [impl fmt::Display; 6]) -> io::Result<()> {
    let [name, samples, p50, max, load, about] = cells;
    writeln!(out, "{name:<24} {samples:>8} {p50:>14} {max:>14} {load:>6}  {about}")?;
    out.flush()
}

/// How many processes wanted to run, on average of the last minute.
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or("-").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(&'static str, bool, usize);

    #[async_trait]
    impl Measurement for Fixed {
        fn name(&self) -> &'static str {
            self.0
        }
        fn about(&self) -> &'static str {
            "a fixed number"
        }
        fn is_baseline(&self) -> bool {
            self.1
        }
        async fn run(&self) -> Result<Samples, Failure> {
            if self.2 == 0 {
                return Err("broken on purpose".into());
            }
            Ok(Samples::times((1..=self.2).rev().map(|n| Duration::from_millis(n as u64))))
        }
    }

    async fn table(list: &[Box<dyn Measurement>], names: &[&str]) -> (Vec<String>, Result<(), String>) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut out = Vec::new();
        let done = run(list, &names, &mut out).await.map_err(|failure| failure.to_string());
        let rows = String::from_utf8(out).unwrap();
        (rows.lines().map(|row| row.split_whitespace().take(4).collect::<Vec<_>>().join(" ")).collect(), done)
    }

    #[tokio::test]
    async fn baselines_come_first_and_always() {
        let list: [Box<dyn Measurement>; 3] =
            [Box::new(Fixed("a", false, 20)), Box::new(Fixed("b", false, 20)), Box::new(Fixed("base", true, 21))];
        let (rows, done) = table(&list, &["b"]).await;
        assert_eq!(rows, ["name samples p50 max", "base 21 11.000ms 21.000ms", "b 20 10.000ms 20.000ms"]);
        assert_eq!(done, Ok(()));
        assert_eq!(table(&list, &[]).await.0.len(), 4);
        assert!(table(&list, &["c"]).await.1.unwrap_err().contains("no measurement c; there are: a, b, base"));
    }

    #[tokio::test]
    async fn too_few_samples_and_failures_are_told_and_the_rest_still_runs() {
        let list: [Box<dyn Measurement>; 3] = [
            Box::new(Fixed("broken", false, 0)),
            Box::new(Fixed("few", false, 19)),
            Box::new(Fixed("good", false, 20)),
        ];
        let (rows, done) = table(&list, &[]).await;
        assert_eq!(rows[1..], ["few 19 10.000ms 19.000ms", "good 20 10.000ms 20.000ms"]);
        assert_eq!(done.unwrap_err(), "broken: broken on purpose\nfew: 19 samples, fewer than 20");
    }

    #[tokio::test]
    async fn a_broken_promise_fails_the_run_after_its_rows() {
        struct Broken;
        #[async_trait]
        impl Measurement for Broken {
            fn name(&self) -> &'static str {
                "broken"
            }
            fn about(&self) -> &'static str {
                ""
            }
            fn is_baseline(&self) -> bool {
                false
            }
            async fn run(&self) -> Result<Samples, Failure> {
                let few = Samples::numbers("x", [1.0]);
                Ok(Samples::numbers("x", [2.0; SAMPLES_MIN]).and("few", "", few).note("a note").broken("an overlap"))
            }
        }
        let (rows, done) = table(&[Box::new(Broken)], &[]).await;
        assert_eq!(rows[1..], ["broken 20 2.000 x", "few 1 1.000 x", "a note"]);
        assert_eq!(done.unwrap_err(), "broken: an overlap");
    }

    #[test]
    fn quantiles_of_few_and_none() {
        assert_eq!(Samples::numbers("x", []).quantile(0.5), None);
        assert_eq!(Samples::numbers("x", [3.0]).quantile(0.5), Some(3.0));
        let four = Samples::numbers("x", [4.0, 1.0, 3.0, 2.0]);
        assert_eq!((four.quantile(0.0), four.quantile(0.5), four.quantile(1.0)), (Some(1.0), Some(2.0), Some(4.0)));
    }
}
