//! What a store brings to the suite: itself, and the faults that it can be put through.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rendez_core::{ClusterName, LeaseStore, StoreError};

/// Why a fixture could not do what it was asked to. It fails the case.
pub type Trouble = Box<dyn Error + Send + Sync>;

/// A store, as the suite meets it.
///
/// Most cases share one server and run beside each other, each in a cluster of its own. Cases with a fault run on a
/// server that is theirs alone.
#[async_trait]
pub trait Fixture: Send + Sync + 'static {
    /// The first part of the names of the cases.
    fn name(&self) -> &str;

    /// Why this fault cannot be brought about, in a few words; nothing if it can. Asked before anything is started,
    /// so it must be known without a server.
    fn lacks(&self, fault: Fault) -> Option<&'static str>;

    /// How long a case waits for an answer of a server that is stalled or down before it gives the request up: a
    /// little longer than the operation timeout that the handles have, or short if they have none and just wait.
    fn patience(&self) -> Duration;

    /// A fresh handle with a connection of its own to the server that the cases share. The first call may start that
    /// server; it lives as long as the fixture.
    async fn store(&self) -> Result<Arc<dyn LeaseStore>, Trouble>;

    /// A fresh server for one case. It is gone when it is dropped. Called only for cases none of whose faults
    /// [`lacks`](Self::lacks) has an answer to.
    async fn own_server(&self) -> Result<Box<dyn OwnServer>, Trouble>;
}

/// What can happen to a server, or to who wants to use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// It ends and comes back with all that it had acknowledged: [`OwnServer::restart`].
    Restart,
    /// It ends and comes back with nothing: [`OwnServer::restart_empty`].
    RestartEmpty,
    /// It stands still and goes on: [`OwnServer::stall`].
    Stall,
    /// Another server takes its place: [`OwnServer::fail_over`].
    FailOver,
    /// It has no room for more: [`OwnServer::fill`].
    Full,
    /// It is set up in a way that cannot hold leases: [`OwnServer::make_unfit`].
    Unfit,
    /// It holds data of a release that this one does not know: [`OwnServer::write_foreign_layout`].
    ForeignLayout,
    /// Nobody listens: [`Access::Unreachable`].
    Unreachable,
    /// The password is wrong: [`Access::WrongCredentials`].
    WrongCredentials,
    /// A user with the rights that the documentation asks for and no other: [`Access::LeastRights`].
    LeastRights,
}

/// How a handle is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// As it should be.
    Full,
    /// With the least rights that do everything.
    LeastRights,
    /// With a password that is wrong.
    WrongCredentials,
    /// At an address where nobody listens.
    Unreachable,
}

/// A server that belongs to one case.
///
/// A fixture overrides what it does not [lack](Fixture::lacks); what is called here was not lacking.
#[async_trait]
pub trait OwnServer: Send + Sync {
    /// A fresh handle with a connection of its own.
    ///
    /// # Errors
    /// Those of the store's own connecting, as its users would get them: cases look at them.
    async fn connect(&self, access: Access) -> Result<Arc<dyn LeaseStore>, StoreError>;

    /// Ends the server and starts it again with its data; returns when it answers.
    async fn restart(&mut self) -> Result<(), Trouble> {
        not_applicable(Fault::Restart)
    }

    /// Ends the server and starts it again without its data; returns when it answers.
    async fn restart_empty(&mut self) -> Result<(), Trouble> {
        not_applicable(Fault::RestartEmpty)
    }

    /// Lets the server stand still: connections stay open, nothing is answered.
    async fn stall(&mut self) -> Result<(), Trouble> {
        not_applicable(Fault::Stall)
    }

    /// Lets a stalled server go on.
    async fn resume(&mut self) -> Result<(), Trouble> {
        not_applicable(Fault::Stall)
    }

    /// Lets another server take the place of the one that answers for this cluster; returns when the new one is
    /// chosen. What was acknowledged before is not lost on purpose.
    async fn fail_over(&mut self, cluster: &ClusterName) -> Result<(), Trouble> {
        let _ = cluster;
        not_applicable(Fault::FailOver)
    }

    /// Leaves the server no room for anything new.
    async fn fill(&mut self) -> Result<(), Trouble> {
        not_applicable(Fault::Full)
    }

    /// Sets the server up in a way that cannot hold leases. Handles that are made afterwards are to be refused.
    async fn make_unfit(&mut self) -> Result<(), Trouble> {
        not_applicable(Fault::Unfit)
    }

    /// Writes into a cluster, which has data, that they have a layout of some later release.
    async fn write_foreign_layout(&mut self, cluster: &ClusterName) -> Result<(), Trouble> {
        let _ = cluster;
        not_applicable(Fault::ForeignLayout)
    }
}

fn not_applicable(fault: Fault) -> Result<(), Trouble> {
    Err(Box::new(NotApplicable { fault }))
}

/// A fault that a fixture neither lacks nor brings about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotApplicable {
    /// The fault.
    pub fault: Fault,
}

impl fmt::Display for NotApplicable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the fixture does not bring {:?} about: say so in Fixture::lacks, with the reason", self.fault)
    }
}

impl Error for NotApplicable {}
