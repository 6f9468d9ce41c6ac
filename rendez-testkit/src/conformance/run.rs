//! The cases as tests of the usual kind: listed, filtered, run beside each other, each within a bound.

use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;

use super::stage::Stage;
use super::{Case, Failure, Fixture, cases};

/// The longest that a case may take.
pub const CASE_BOUND: Duration = Duration::from_secs(90);

/// How many cases run beside each other unless the command line says another number: most of the time they wait.
const THREADS: usize = 8;

/// Runs the suite with the usual command line of a test program, for all cases of all these stores.
#[must_use]
pub fn main(fixtures: Vec<Box<dyn Fixture>>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    // Shared by all cases, since connections of a store's server may be.
    let runtime = Arc::new(OnceLock::new());
    let mut trials = Vec::new();
    for fixture in fixtures {
        let fixture: Arc<dyn Fixture> = Arc::from(fixture);
        trials.extend(cases().map(|case| trial(case, Arc::clone(&fixture), Arc::clone(&runtime))));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trial(case: &'static Case, fixture: Arc<dyn Fixture>, runtime: Arc<OnceLock<Runtime>>) -> Trial {
    let name = format!("{}::{}", fixture.name(), case.name());
    if let Some(reason) = case.needs().iter().find_map(|fault| fixture.lacks(*fault)) {
        // Whoever insists on running it learns why that cannot be; it never passes.
        return Trial::test(name, move || Err(Failed::from(reason))).with_kind(reason).with_ignored_flag(true);
    }
    Trial::test(name, move || {
        let runtime = match runtime.get() {
            Some(runtime) => runtime,
            None => {
                let started = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
                runtime.get_or_init(|| started)
            }
        };
        runtime.block_on(check(case, fixture)).map_err(Failed::from)
    })
}

/// Runs one case against one store.
///
/// # Errors
/// [`Failure`] if the store does not conform, or the fixture does not work.
pub async fn check(case: &Case, fixture: Arc<dyn Fixture>) -> Result<(), Failure> {
    let stage = Stage::set(case, fixture).await?;
    let log = stage.log();
    // A task of its own, so that a panic is a failure like others.
    let running = tokio::spawn((case.run)(stage));
    let abort = running.abort_handle();
    let ended = match tokio::time::timeout(CASE_BOUND, running).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) => Err(Failure::new(format_args!("the case did not end well: {error}"))),
        Err(_) => {
            abort.abort();
            Err(Failure::new(format_args!("the case did not end within {CASE_BOUND:?}")))
        }
    };
    ended.map_err(|failure| failure.with(log))
}
