//! All keys: each with its type, how it is read, which values can be, and what it is for.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use rendez_core::placement::{LoadFactor, Policy};
use rendez_core::{ClusterName, Declared, DynamicWorkloads, NodeId, WorkloadName, ZoneName};

use super::Config;
use super::error::Place;
use super::raw::Raw;
use super::read::{self, Wrong};

/// A value and where it comes from.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Found<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

/// The keys whose values may hold secrets, and are never shown.
pub(super) const SECRET: &[&str] = &["store", "store_options"];

/// What some keys are called elsewhere, without underscores.
const ELSEWHERE: &[(&str, &str)] = &[
    ("clusterid", "cluster"),
    ("node", "node_id"),
    ("nodename", "node_id"),
    ("heartbeatttl", "session_ttl"),
    ("leasettl", "session_ttl"),
    ("ttl", "session_ttl"),
    ("leaserenewinterval", "heartbeat_interval"),
    ("reconcileinterval", "heartbeat_interval"),
    ("reconcilejitter", "heartbeat_jitter_permille"),
    ("slotmovecooldown", "cooldown"),
    ("minconsumerruntime", "runtime_min"),
    ("sheddingenabled", "shedding"),
    ("sheddingrelease", "shed_budget"),
    ("maxconsumerspernode", "capacity"),
    ("maxconsumersperworkloadpernode", "workloads (cap)"),
    ("minconsumerspernode", "slots_min"),
    ("redisbackoff", "backoff_min"),
    ("staticworkloads", "workloads"),
    ("configwatchchannel", "cluster (all channels and keys are named after it)"),
    ("workloadconfigkeyprefix", "cluster (all channels and keys are named after it)"),
    ("workloadindexkey", "cluster (all channels and keys are named after it)"),
];

/// What to write instead of an unknown key.
pub(super) fn instead_of(key: &str) -> String {
    let plain = key.to_lowercase().replace(['_', '-'], "");
    match ELSEWHERE.iter().find(|(elsewhere, _)| *elsewhere == plain) {
        Some((_, here)) => format!("here it is called {here}"),
        None => match read::nearest(key, KEYS.iter().copied()) {
            Some(near) => format!("did you mean {near}?"),
            None => "see docs/configuration.md for all keys".to_owned(),
        },
    }
}

macro_rules! keys {
    ($($(#[$doc:meta])* $key:ident: $type:ty, $parse:path, $check:path, $setter:ident;)*) => {
        /// The names of all keys.
        pub(super) const KEYS: &[&str] = &[$(stringify!($key)),*];

        /// What one source says.
        #[derive(Debug, Clone, PartialEq, Default)]
        pub(super) struct Layer {
            $(pub(super) $key: Option<Found<$type>>,)*
        }

        /// What counts: of every key, the value of the strongest source that has one.
        pub(super) struct Chosen<'a> {
            $(pub(super) $key: Option<&'a Found<$type>>,)*
        }

        impl Layer {
            /// Reads the value of a key. Nothing if there is no such key.
            pub(super) fn read(&mut self, key: &str, raw: &Raw, place: &Place) -> Option<Result<(), Vec<Wrong>>> {
                match key {
                    $(stringify!($key) => Some(read::read(raw, $parse, $check).map(|value| {
                        self.$key = Some(Found { value, place: place.clone() });
                    })),)*
                    _ => None,
                }
            }

            /// Takes over what the other one says.
            pub(super) fn take_over(&mut self, other: Self) {
                $(if other.$key.is_some() { self.$key = other.$key; })*
            }
        }

        impl<'a> Chosen<'a> {
            /// The first of the layers that has a value counts.
            pub(super) fn of(layers: [&'a Layer; 3]) -> Self {
                Self { $($key: layers.iter().find_map(|layer| layer.$key.as_ref()),)* }
            }

            /// Where a key's value comes from.
            pub(super) fn place(&self, key: &str) -> Place {
                match key {
                    $(stringify!($key) => self.$key.map_or(Place::Default, |found| found.place.clone()),)*
                    _ => Place::Default,
                }
            }
        }

        $(keys!(@$setter $(#[$doc])* $key: $type, $check);)*
    };
    (@by_hand $(#[$doc:meta])* $key:ident: $type:ty, $check:path) => {};
    (@set $(#[$doc:meta])* $key:ident: $type:ty, $check:path) => {
        impl Config {
            $(#[$doc])*
            #[must_use]
            pub fn $key(mut self, value: $type) -> Self {
                self.check(stringify!($key), &format!("{value:?}"), $check(&value));
                self.code.$key = Some(Found { value, place: Place::Code });
                self
            }
        }
    };
    (@name $(#[$doc:meta])* $key:ident: $type:ty, $check:path) => {
        impl Config {
            $(#[$doc])*
            #[must_use]
            pub fn $key(mut self, name: impl AsRef<str>) -> Self {
                match <$type>::new(name.as_ref()) {
                    Ok(value) => self.code.$key = Some(Found { value, place: Place::Code }),
                    Err(error) => {
                        let shown = Raw::Plain(name.as_ref().to_owned()).shown();
                        self.check(stringify!($key), &shown, Err(read::name_wrong(&error)));
                    }
                }
                self
            }
        }
    };
    (@text $(#[$doc:meta])* $key:ident: $type:ty, $check:path) => {
        impl Config {
            $(#[$doc])*
            #[must_use]
            pub fn $key(mut self, value: impl Into<$type>) -> Self {
                let value: $type = value.into();
                self.check(stringify!($key), &format!("{value:?}"), $check(&value));
                self.code.$key = Some(Found { value, place: Place::Code });
                self
            }
        }
    };
}

keys! {
    /// The cluster to take part in. Needed. All keys and channels in the store are named after it.
    cluster: ClusterName, read::name, read::check_nothing, name;
    /// The node's name, unique in its cluster and best the same after a restart. Unless set, `POD_NAME` from the
    /// environment, or else the host's name with a random suffix, so that two processes on a host differ.
    node_id: NodeId, read::name, read::check_nothing, name;
    /// The node's part of the work relative to the other nodes, at least 1; 1 unless set.
    weight: u32, read::number, read::check_weight, set;
    /// The failure domain that the node is in.
    zone: ZoneName, read::name, read::check_nothing, name;
    labels: BTreeMap<String, String>, read::labels, read::check_nothing, by_hand;
    /// The most slots of all workloads together; no limit unless set.
    capacity: Option<u32>, read::limit, read::check_capacity, set;
    workloads: BTreeMap<WorkloadName, Declared>, read::workloads, read::check_nothing, by_hand;
    /// Which of the workloads that are kept in the store this node can run; none unless set.
    dynamic_workloads: DynamicWorkloads, read::dynamic, read::check_nothing, set;

    /// The address of the store, for example `redis://host:6379`. May hold secrets: it is never shown.
    store: String, read::text, read::check_store, text;
    /// A file whose only content is the address of the store, in place of [`store`](Self::store).
    store_file: PathBuf, read::path, read::check_path, text;
    store_options: BTreeMap<String, String>, read::options, read::check_nothing, by_hand;
    /// How long to wait for the store's first answer; 10 s unless set.
    connect_timeout: Duration, read::duration, read::check_at_least_1ms, set;

    /// How long a session lives in the store after each heartbeat; 10 s unless set. All other times scale with it
    /// unless they are set themselves.
    session_ttl: Duration, read::duration, read::check_session_ttl, set;
    /// From the sending of one heartbeat to the sending of the next; a fifth of `session_ttl` unless set.
    heartbeat_interval: Duration, read::duration, read::check_at_least_1ms, set;
    /// How much earlier or later a heartbeat is sent, in thousandths of the interval; 100 unless set.
    heartbeat_jitter_permille: u32, read::number, read::check_permille, set;
    /// After this time a request counts as unanswered; a twentieth of `session_ttl`, at most 500 ms, unless set.
    operation_timeout: Duration, read::duration, read::check_at_least_1ms, set;
    /// How many tries in a row the deadline leaves room for; 3 unless set.
    heartbeat_attempts: u32, read::number, read::check_at_least_one, set;
    /// The first pause after a failed request, which doubles up to one heartbeat interval; a hundredth of
    /// `session_ttl`, 1 to 100 ms, unless set.
    backoff_min: Duration, read::duration, read::check_at_least_1ms, set;
    /// How long a runner may take to end after it was told to; three tenths of `session_ttl` unless set.
    stop_budget: Duration, read::duration, read::check_duration, set;
    /// How long a process may be paused without any harm; a tenth of `session_ttl` unless set.
    pause_allowance: Duration, read::duration, read::check_duration, set;
    /// How far clock rates of node and store may differ, in millionths; 1000 unless set.
    clock_rate_error_ppm: u32, read::number, read::check_nothing, set;

    /// Whether slots are moved voluntarily at all; true unless set.
    shedding: bool, read::yes_or_no, read::check_nothing, set;
    /// A slot that was moved voluntarily is not moved again for this long; six times `session_ttl` unless set.
    cooldown: Duration, read::duration, read::check_duration, set;
    /// A runner is not shed before it has run this long; `session_ttl` unless set.
    runtime_min: Duration, read::duration, read::check_duration, set;
    /// The most slots that this node offers in one heartbeat interval; 32 unless set.
    shed_budget: u32, read::number, read::check_at_least_one, set;
    /// A node does not shed below this many slots; 0 unless set.
    slots_min: u32, read::number, read::check_nothing, set;
    /// Nothing is shed for this long after a node has come or gone; two heartbeat intervals unless set.
    settling: Duration, read::duration, read::check_duration, set;
    /// The most slots that one batch of acquisitions asks for; 512 unless set.
    acquire_limit: u32, read::number, read::check_at_least_one, set;
    /// How long a fresh node waits before its first acquisition; a fifth of the heartbeat interval, at most 300 ms,
    /// unless set.
    start_delay: Duration, read::duration, read::check_duration, set;
    /// How long a slot's first choice may leave it lying before the next in rank takes it; one heartbeat interval and
    /// two operation timeouts unless set.
    candidate_grace: Duration, read::duration, read::check_at_least_1ms, set;
    /// How much a weight that the program sets must differ, in thousandths, before the others are told; 50 unless set.
    weight_hysteresis_permille: u32, read::number, read::check_permille, set;

    /// The first pause before a runner that ended by itself is started again; it doubles each time; 100 ms unless set.
    restart_backoff_min: Duration, read::duration, read::check_at_least_1ms, set;
    /// The longest such pause; 30 s unless set.
    restart_backoff_max: Duration, read::duration, read::check_at_least_1ms, set;
    /// A runner that has run this long has its pause reset; 60 s unless set.
    restart_reset_after: Duration, read::duration, read::check_duration, set;
    /// After this many failures in a row the slot is given up, so that another node may try; 5 unless set, never if
    /// `None`.
    give_up_after: Option<u32>, read::failures, read::check_failures, set;
    /// How long a node refuses a slot that it gave up; 60 s unless set.
    refuse_for: Duration, read::duration, read::check_duration, set;
    /// How long an aborted runner may take to be gone before it counts as an overrun; half of the pause allowance, at
    /// most 500 ms, unless set.
    abort_grace: Duration, read::duration, read::check_duration, set;

    /// How long an offer stands; two times `session_ttl` and the stop budget unless set.
    offer_ttl: Duration, read::duration, read::check_at_least_1ms, set;
    /// How long a drain or a shutdown may take; 30 s unless set.
    drain_timeout: Duration, read::duration, read::check_at_least_1ms, set;
    /// Gives up at once where another process has the node's id, instead of waiting for its end; false unless set.
    give_up_if_in_use: bool, read::yes_or_no, read::check_nothing, set;

    /// How slots are placed where a workload says nothing else; balanced unless set. A setting of the cluster.
    policy: Policy, read::policy, read::check_nothing, set;
    /// How far from its share a node may be before slots move; 1.0 unless set. A setting of the cluster.
    load_factor: LoadFactor, read::load_factor, read::check_nothing, set;
    /// The longest session TTL of the cluster; `session_ttl` unless set. A setting of the cluster.
    session_ttl_max: Duration, read::duration, read::check_session_ttl, set;
    /// The most voluntary moves under way at once in the whole cluster; 64 unless set. A setting of the cluster.
    move_budget: u32, read::number, read::check_nothing, set;
    /// How long a cluster without a trace in the store waits before its first grant; not at all unless set. A setting
    /// of the cluster.
    cold_start_hold: Duration, read::duration, read::check_duration, set;
}
