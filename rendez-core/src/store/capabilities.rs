//! What a store can do and promise.

use std::time::Duration;

/// How far the tokens of a store can be trusted to rise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fencing {
    /// They rise for ever.
    Strict,
    /// They rise as long as acknowledged writes survive a failover, which the store waits for but cannot promise.
    Acknowledged,
    /// They may fall if the store loses its data, its clock has gone back, and nobody is left who remembers.
    BestEffort,
}

/// What a store can do and promise. Start from [`Capabilities::strict`] and take away what is not so.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// The store's name, for messages: `redis`.
    pub name: &'static str,
    /// How far tokens can be trusted.
    pub fencing: Fencing,
    /// Whether [`watch`](crate::LeaseStore::watch) works.
    pub watch: bool,
    /// Whether heartbeats name the sessions that are about to end. Where they do not, the watch tells of an end.
    pub due: bool,
    /// Whether the changes of one request are all made at one moment. Where they are not, each still stands or falls alone
    /// and at one moment of its own, a request that was cut off may have made some of them, and its retry makes the rest.
    pub whole_batches: bool,
    /// How long after its end a session may still count as alive.
    pub expiry_lateness_max: Duration,
    /// How far replicas may lag behind what was acknowledged; a part of the quiet time after a loss of data.
    pub replica_lag_max: Duration,
    /// The shortest session TTL.
    pub ttl_min: Duration,
    /// A session TTL is granted as the next multiple of this: the answer to an opening says which.
    pub ttl_granularity: Duration,
    /// The longest session TTL.
    pub ttl_max: Duration,
    /// The most changes in one request.
    pub changes_max: usize,
}

impl Capabilities {
    /// A store that promises everything.
    #[must_use]
    pub fn strict(name: &'static str) -> Self {
        Self {
            name,
            fencing: Fencing::Strict,
            watch: true,
            due: true,
            whole_batches: true,
            expiry_lateness_max: Duration::ZERO,
            replica_lag_max: Duration::ZERO,
            ttl_min: Duration::from_millis(10),
            ttl_granularity: Duration::from_millis(1),
            ttl_max: Duration::from_secs(24 * 3600),
            changes_max: 512,
        }
    }
}
