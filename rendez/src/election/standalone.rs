//! An election for a program that has no other slots: a node of its own around it.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use rendez_core::{EngineConfig, LeaseStore, StoppedReason};

use super::{Candidacy, Election};
use crate::coordinator::{Coordinator, CoordinatorBuilder, StartError};
use crate::handle::{DriverError, Handle};

/// The session TTL of an election alone unless set: who leads is renewed each fifth of it, and replaced at most so long
/// after a crash. The same as in Kubernetes' own components.
pub const ELECTION_TTL: Duration = Duration::from_secs(15);

/// The cluster of an election alone unless set.
pub const ELECTION_CLUSTER: &str = "elections";

impl Election {
    /// Begins an election alone, with a node and a session of its own. For several elections in one process, or elections
    /// beside other slots, see [`CoordinatorBuilder::election`].
    ///
    /// ```
    /// use rendez::{Election, MemoryStore};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let election =
    ///     Election::builder("scheduler").store(MemoryStore::new()).node_id("instance-1").start().await?;
    /// election.wait_for_leadership().await?;
    /// while election.is_leader() {
    ///     // What only the leader does.
    /// #   break;
    /// }
    /// election.shutdown().await?; // lets leadership go; so does dropping it, without waiting
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder(name: impl AsRef<str>) -> ElectionBuilder {
        ElectionBuilder {
            name: name.as_ref().to_owned(),
            candidacy: Candidacy::new(),
            node: Coordinator::builder().cluster(ELECTION_CLUSTER).engine_config(EngineConfig::for_ttl(ELECTION_TTL)),
        }
    }
}

/// What an election alone is made from. Needed are a store and a node id.
#[must_use = "nothing happens before `start`"]
#[derive(Debug)]
pub struct ElectionBuilder {
    name: String,
    candidacy: Candidacy,
    node: CoordinatorBuilder,
}

impl ElectionBuilder {
    fn node(mut self, change: impl FnOnce(CoordinatorBuilder) -> CoordinatorBuilder) -> Self {
        self.node = change(self.node);
        self
    }

    /// The store where the election is held.
    pub fn store(self, store: impl LeaseStore) -> Self {
        self.node(|node| node.store(store))
    }

    /// The same, shared with others.
    pub fn shared_store(self, store: Arc<dyn LeaseStore>) -> Self {
        self.node(|node| node.shared_store(store))
    }

    /// The cluster that the election belongs to; [`ELECTION_CLUSTER`] unless set. Elections of the same name in other clusters
    /// are others.
    pub fn cluster(self, cluster: impl AsRef<str>) -> Self {
        self.node(|node| node.cluster(cluster))
    }

    /// This candidate's name, unique in its cluster; what everybody sees as the leader's identity.
    pub fn node_id(self, node: impl AsRef<str>) -> Self {
        self.node(|builder| builder.node_id(node))
    }

    /// How long leadership outlives a leader that is not heard of any more; [`ELECTION_TTL`] unless set. All times follow
    /// from it: renewals come each fifth of it.
    pub fn session_ttl(self, ttl: Duration) -> Self {
        self.node(|node| node.engine_config(EngineConfig::for_ttl(ttl)))
    }

    /// How much this node is preferred when there is no leader; 0 unless set. See [`Candidacy::priority`].
    pub fn priority(mut self, priority: u32) -> Self {
        self.candidacy.priority = priority;
        self
    }

    /// Whether this node may ever lead; yes unless set.
    pub fn may_lead(mut self, may_lead: bool) -> Self {
        self.candidacy.may_lead = may_lead;
        self
    }

    /// Checks everything, opens the session, and returns when it is open: as [`CoordinatorBuilder::start`].
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(self) -> Result<StandaloneElection, StartError> {
        let handle = self.node.election_with(&self.name, self.candidacy).start().await?;
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| StartError::NoRuntime)?;
        let election = handle.election(&self.name);
        let election = election.ok_or_else(|| StartError::Ended { why: "the election is gone".to_owned() })?;
        Ok(StandaloneElection { election, node: Arc::new(ReleasedOnDrop { handle, runtime }) })
    }
}

/// An election with a node of its own. Cheap to clone. **When the last clone is dropped, leadership is let go** in the
/// background, if the runtime still runs; [`shutdown`](Self::shutdown) does so and waits.
#[derive(Clone)]
pub struct StandaloneElection {
    election: Election,
    node: Arc<ReleasedOnDrop>,
}

impl StandaloneElection {
    /// The node, with its events and its status.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.node.handle
    }

    /// Lets leadership go, closes the session, and returns how it ended: see [`Handle::shutdown`].
    ///
    /// # Errors
    /// [`DriverError`] if the node had ended in another way.
    pub async fn shutdown(&self) -> Result<StoppedReason, DriverError> {
        self.node.handle.shutdown().await
    }
}

impl Deref for StandaloneElection {
    type Target = Election;

    fn deref(&self) -> &Election {
        &self.election
    }
}

impl fmt::Debug for StandaloneElection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.election.fmt(f)
    }
}

struct ReleasedOnDrop {
    handle: Handle,
    runtime: tokio::runtime::Handle,
}

impl Drop for ReleasedOnDrop {
    fn drop(&mut self) {
        let handle = self.handle.clone();
        self.runtime.spawn(async move {
            // Nobody is left to hear how it went.
            let _ = handle.shutdown().await;
        });
    }
}
