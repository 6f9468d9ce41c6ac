//! What a store brings to the matrix: one file a store implements this, and `ALL` names it.

use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use fastrand::Rng;
use rendez_testkit::measure::Failure;

use crate::fault::{Fault, NodeFault, ServerFault};
use crate::judge::Promise;
use crate::{etcd, file, kubernetes, memory, nats, postgres, redis};

/// All stores, in the order of the table.
pub(crate) const ALL: &[&dyn Store] = &[
    &redis::Redis,
    &etcd::Etcd,
    &postgres::Postgres,
    &kubernetes::Kubernetes,
    &nats::Nats,
    &file::File,
    &memory::Memory,
];

/// What is said beforehand about a fault on a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expectation {
    /// Every promise holds.
    Kept,
    /// These promises may be broken; all others hold, and the sink accepts nothing stale in any case.
    May {
        /// Which.
        breaks: &'static [Promise],
        /// Why, in words that follow "because".
        because: &'static str,
    },
    /// The fault does not exist here, and why.
    Absent(&'static str),
}

impl Expectation {
    /// Whether nobody has said beforehand that this may be broken.
    pub(crate) fn is_surprised_by(self, promise: Promise) -> bool {
        match self {
            Self::Kept | Self::Absent(_) => true,
            Self::May { breaks, .. } => !breaks.contains(&promise),
        }
    }
}

/// A store in the matrix.
#[async_trait]
pub(crate) trait Store: Sync {
    /// Its name, as in the addresses of stores.
    fn name(&self) -> &'static str;

    /// What is promised when this happens to its server.
    fn expects(&self, fault: ServerFault) -> Expectation;

    /// Why nothing can happen to its nodes, or on the way to it; most stores have both.
    fn lacks(&self, fault: Fault) -> Option<&'static str> {
        let _ = fault;
        None
    }

    /// Whether nobody who comes while it lasts is let in.
    fn refuses_newcomers(&self, fault: Fault) -> bool {
        fault.refuses_newcomers()
    }

    /// Starts a server of its own for one run, as this fault wants it, or a plain one. What can be chosen is chosen by
    /// the dice.
    async fn start(&self, fault: Option<ServerFault>, dice: &mut Rng) -> Result<Box<dyn Server>, Failure>;
}

/// What a server does from the fault's beginning to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Struck {
    /// It answers nobody: no session is extended.
    Silent,
    /// It may answer.
    Answers,
}

/// A store's server in one run; gone when it is dropped.
#[async_trait]
pub(crate) trait Server: Send + Sync {
    /// The address of clients, where they need just one: a proxy stands in front of it when the network fails.
    fn addr(&self) -> Option<SocketAddr>;

    /// The store's address for the agent of a node; nodes may have several servers in different order.
    fn url(&self, node: usize) -> String;

    /// The same through a proxy.
    fn url_through(&self, node: usize, proxy: SocketAddr) -> Result<String, Failure> {
        let addr = self.addr().ok_or("a proxy needs an address to stand before")?;
        Ok(self.url(node).replace(&addr.to_string(), &proxy.to_string()))
    }

    /// The store's options.
    fn options(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// Lets the fault happen that the server was started for; returns when it has.
    async fn strike(&mut self, fault: ServerFault) -> Result<Struck, Failure>;

    /// Lets it happen once more, for faults that come again and again.
    async fn strike_again(&mut self, fault: ServerFault) -> Result<(), Failure> {
        let _ = fault;
        Ok(())
    }

    /// Ends it; returns when the server is good again.
    async fn heal(&mut self, fault: ServerFault) -> Result<(), Failure>;
}

impl dyn Store + '_ {
    /// What is said beforehand about any fault.
    pub(crate) fn expectation(&self, fault: Fault) -> Expectation {
        match (fault, self.lacks(fault)) {
            (_, Some(reason)) => Expectation::Absent(reason),
            (Fault::Server(fault), None) => self.expects(fault),
            (Fault::Node(NodeFault::HostFrozen), None) => Expectation::May {
                breaks: &[Promise::NoOverlap],
                because: "a whole host that pauses for longer than its pause allowance cannot know it before it goes on",
            },
            (Fault::Node(_) | Fault::Network(_), None) => Expectation::Kept,
        }
    }
}

/// A time between two, in milliseconds, that the dice choose.
pub(crate) fn between(dice: &mut Rng, from_ms: u64, to_ms: u64) -> Duration {
    Duration::from_millis(dice.u64(from_ms..=to_ms))
}
