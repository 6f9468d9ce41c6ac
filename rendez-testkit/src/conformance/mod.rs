//! One suite for every [`LeaseStore`](rendez_core::LeaseStore), ours and strangers': does it keep the contract?
//!
//! A store's crate brings a [`Fixture`] and a test program without harness:
//!
//! ```no_run
//! # struct MyStore;
//! # #[async_trait::async_trait]
//! # impl rendez_testkit::conformance::Fixture for MyStore {
//! #     fn name(&self) -> &str { "mine" }
//! #     fn lacks(&self, _: rendez_testkit::conformance::Fault) -> Option<&'static str> { None }
//! #     fn patience(&self) -> std::time::Duration { std::time::Duration::from_secs(1) }
//! #     async fn store(&self) -> Result<std::sync::Arc<dyn rendez_core::LeaseStore>, rendez_testkit::conformance::Trouble> { todo!() }
//! #     async fn own_server(&self) -> Result<Box<dyn rendez_testkit::conformance::OwnServer>, rendez_testkit::conformance::Trouble> { todo!() }
//! # }
//! fn main() -> std::process::ExitCode {
//!     rendez_testkit::conformance::main(vec![Box::new(MyStore)])
//! }
//! ```
//!
//! Every case of every store is then one test, `STORE::group::case`, for `cargo test` and for nextest. A case that
//! needs a fault which a fixture cannot bring about is listed with the reason in brackets, and ignored.
//!
//! Cases use the public contract only. Each runs in a cluster of its own, whose name is as hostile as names may be.

mod case;
mod cases;
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
