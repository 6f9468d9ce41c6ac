//! One suite for every [`LeaseStore`](rendez_core::LeaseStore), ours and strangers': does it keep the contract?
//!
//! A store's crate brings a [`Fixture`] and a test program without harness:
//!
//! ```no_run
//! use std::process::ExitCode;
//! use rendez_testkit::conformance::{self, Fixture};
//!
//! # fn my_store() -> impl Fixture { NoStore }
//! # struct NoStore;
//! # #[async_trait::async_trait]
//! # impl Fixture for NoStore {
//! #     fn name(&self) -> &str { "none" }
//! #     fn lacks(&self, _: conformance::Fault) -> Option<&'static str> { Some("it is no store") }
//! #     fn patience(&self) -> std::time::Duration { std::time::Duration::ZERO }
//! #     async fn store(&self) -> Result<std::sync::Arc<dyn rendez_core::LeaseStore>, conformance::Trouble> {
//! #         Err("it is no store".into())
//! #     }
//! #     async fn own_server(&self) -> Result<Box<dyn conformance::OwnServer>, conformance::Trouble> {
//! #         Err("it is no store".into())
//! #     }
//! # }
//! fn main() -> ExitCode {
//!     conformance::main(vec![Box::new(my_store())])
//! }
//! ```
//!
//! Every case of every store is then one test, `STORE::group::case`, for `cargo test` and for nextest. A case that
//! needs a fault which a fixture cannot bring about is listed with the reason in brackets, and ignored.
//!
//! Cases use the public contract only. Each runs in a cluster of its own, whose name is as hostile as names may be.

mod case;
mod cases;
pub mod differential;
mod fixture;
mod record;
mod run;
mod stage;

pub use case::{Case, Failure};
pub use fixture::{Access, Fault, Fixture, NotApplicable, OwnServer, Trouble};
pub use run::{CASE_BOUND, check, main};

/// All cases of the suite, group by group.
pub fn cases() -> impl Iterator<Item = &'static Case> {
    cases::GROUPS.iter().copied().flatten()
}
