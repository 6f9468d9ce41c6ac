//! A case, and how it fails.

use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;

use rendez_core::StoreError;

use super::stage::Stage;
use super::{Fault, Trouble};

/// What a case ends with.
pub(super) type Outcome<T = ()> = Result<T, Failure>;

pub(super) type Run = fn(Stage) -> Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// One thing that the contract says, as a test of any store.
#[derive(Clone, Copy)]
pub struct Case {
    pub(super) group: &'static str,
    pub(super) name: &'static str,
    pub(super) needs: &'static [Fault],
    pub(super) run: Run,
}

impl Case {
    /// `group::case`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}::{}", self.group, self.name)
    }

    /// The faults that it needs; with any, it runs on a server of its own.
    #[must_use]
    pub fn needs(&self) -> &'static [Fault] {
        self.needs
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case").field("name", &self.name()).field("needs", &self.needs).finish_non_exhaustive()
    }
}

/// Why a store does not conform: what was expected and what came, where that stands in the suite, and the last
/// requests with their answers.
#[derive(Debug, Clone)]
pub struct Failure(String);

impl Failure {
    #[track_caller]
    pub(super) fn new(what: impl fmt::Display) -> Self {
        let at = Location::caller();
        Self(format!("{what}\n  at {}:{}", at.file(), at.line()))
    }

    pub(super) fn with(self, more: impl fmt::Display) -> Self {
        Self(format!("{}\n{more}", self.0))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<StoreError> for Failure {
    #[track_caller]
    fn from(error: StoreError) -> Self {
        Self::new(format_args!("unexpected error of kind {}: {error}", error.kind()))
    }
}

impl From<Trouble> for Failure {
    #[track_caller]
    fn from(trouble: Trouble) -> Self {
        Self::new(format_args!("the fixture: {trouble}"))
    }
}

/// Declares the cases of a group: `name` or `name [Fault, ...]`.
macro_rules! cases {
    ($group:literal; $($name:ident $([$($fault:ident),+])?),+ $(,)?) => {
        pub(super) const CASES: &[$crate::conformance::Case] = &[$($crate::conformance::Case {
            group: $group,
            name: stringify!($name),
            needs: &[$($($crate::conformance::Fault::$fault),+)?],
            run: |stage| Box::pin($name(stage)),
        }),+];
    };
}

/// Ends the case unless this holds.
macro_rules! ensure {
    ($holds:expr, $($what:tt)+) => {
        if !$holds {
            return Err($crate::conformance::Failure::new(format_args!($($what)+)));
        }
    };
}

/// Ends the case unless these are equal: what came, what was expected, and what that is.
macro_rules! ensure_eq {
    ($came:expr, $expected:expr, $($what:tt)+) => {
        match (&$came, &$expected) {
            (came, expected) => {
                if *came != *expected {
                    let what = format!($($what)+);
                    return Err($crate::conformance::Failure::new(format_args!(
                        "{what}\n  expected {expected:?}\n  came     {came:?}"
                    )));
                }
            }
        }
    };
}

pub(super) use {cases, ensure, ensure_eq};
