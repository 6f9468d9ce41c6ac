//! The way in: what a node is made from, checked, and started.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rendez_core::{
    Capabilities, ClusterName, ClusterSettings, Declared, DynamicWorkloads, EngineConfig, ErrorKind, Event,
    Incarnation, LeaseStore, NameError, NodeId, NodeInfo, TimingError, UNITS_MAX, WorkloadName, ZoneName,
};

use crate::driver::{self, Plan};
use crate::election::{Candidacy, Seat, Seats, WithElections};
use crate::handle::Handle;
use crate::metrics::{Metrics, NoMetrics};
use crate::policy::OverrunPolicy;
use crate::runner::RunnerFactory;

/// Takes part in a cluster: begins with [`Coordinator::builder`], goes on as a [`Handle`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Coordinator;

impl Coordinator {
    /// Begins a node.
    pub fn builder() -> CoordinatorBuilder {
        CoordinatorBuilder {
            store: None,
            factory: None,
            cluster: None,
            node: None,
            weight: 1,
            zone: None,
            labels: BTreeMap::new(),
            capacity: None,
            workloads: BTreeMap::new(),
            dynamic: DynamicWorkloads::None,
            elections: BTreeMap::new(),
            config: EngineConfig::for_ttl(Duration::from_secs(10)),
            settings: None,
            give_up_if_in_use: None,
            connect_timeout: Duration::from_secs(5),
            overrun: OverrunPolicy::default(),
            metrics: Arc::new(NoMetrics),
            on_event: None,
            wrong: None,
        }
    }
}

pub(crate) type OnEvent = Arc<dyn Fn(&Event) + Send + Sync>;

/// What a node is made from. Needed are a store, a cluster, a node id, and, where it shall run anything, a workload
/// and a runner. A wrong name or number is told by [`start`](CoordinatorBuilder::start).
#[must_use = "nothing happens before `start`"]
pub struct CoordinatorBuilder {
    store: Option<Arc<dyn LeaseStore>>,
    factory: Option<Arc<dyn RunnerFactory>>,
    cluster: Option<ClusterName>,
    node: Option<NodeId>,
    weight: u32,
    zone: Option<ZoneName>,
    labels: BTreeMap<String, String>,
    capacity: Option<u32>,
    workloads: BTreeMap<WorkloadName, Declared>,
    dynamic: DynamicWorkloads,
    elections: BTreeMap<WorkloadName, Candidacy>,
    config: EngineConfig,
    settings: Option<ClusterSettings>,
    give_up_if_in_use: Option<bool>,
    connect_timeout: Duration,
    overrun: OverrunPolicy,
    metrics: Arc<dyn Metrics>,
    on_event: Option<OnEvent>,
    /// The first thing that was wrong.
    wrong: Option<StartError>,
}

/// Why a node did not start. Nothing of it runs; if it had opened a session, that ends by itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Something needed was not given.
    #[error("{what} is missing: call `.{what}(...)` before `.start()`")]
    Missing {
        /// The builder's method.
        what: &'static str,
    },
    /// A name is refused.
    #[error("the name of the {what} is refused: {error}")]
    Name {
        /// What it was to name.
        what: &'static str,
        /// Why.
        error: NameError,
    },
    /// A number cannot be.
    #[error("{what}")]
    Invalid {
        /// What is wrong with it, and what would do.
        what: String,
    },
    /// The times cannot work.
    #[error(transparent)]
    Timing(#[from] TimingError),
    /// There is no tokio runtime here.
    #[error("start a node inside of a tokio runtime (with its time driver enabled)")]
    NoRuntime,
    /// The store refuses, and trying again cannot help.
    #[error("the store refuses ({kind}): {message}")]
    Refused {
        /// What kind of error.
        kind: ErrorKind,
        /// What happened.
        message: String,
    },
    /// The store has not answered an opening within [`connect_timeout`](CoordinatorBuilder::connect_timeout).
    #[error("no answer from the store {store} within {timeout:?}: {last}")]
    NoAnswer {
        /// The store's name.
        store: &'static str,
        /// How long it was given.
        timeout: Duration,
        /// The last error.
        last: String,
    },
    /// Another process has the node's id, and waiting was not wanted.
    #[error(
        "another process ({incarnation}) has the node's id, and its session lives for {remaining:?} unless it is \
         extended: use another id, or wait for its end"
    )]
    InUse {
        /// The other process.
        incarnation: Incarnation,
        /// How long its session lives if it is not extended.
        remaining: Duration,
    },
    /// The driver ended before a session was open.
    #[error("the node ended before its session was open: {why}")]
    Ended {
        /// Why.
        why: String,
    },
}

impl CoordinatorBuilder {
    /// The store where the cluster lives.
    pub fn store(self, store: impl LeaseStore) -> Self {
        self.shared_store(Arc::new(store))
    }

    /// The store where the cluster lives, shared with others.
    pub fn shared_store(mut self, store: Arc<dyn LeaseStore>) -> Self {
        self.store = Some(store);
        self
    }

    /// What makes the runners: an async closure over a [`SlotContext`](crate::SlotContext), or a [`RunnerFactory`].
    pub fn runner(self, factory: impl RunnerFactory) -> Self {
        self.shared_runner(Arc::new(factory))
    }

    /// What makes the runners, shared with others.
    pub fn shared_runner(mut self, factory: Arc<dyn RunnerFactory>) -> Self {
        self.factory = Some(factory);
        self
    }

    /// The cluster to take part in.
    pub fn cluster(mut self, cluster: impl AsRef<str>) -> Self {
        let cluster = ClusterName::new(cluster);
        self.cluster = self.name("cluster", cluster).or(self.cluster);
        self
    }

    /// The node's name, unique in its cluster and best the same after a restart: a second process with the same
    /// one waits until the first one's session ends.
    pub fn node_id(mut self, node: impl AsRef<str>) -> Self {
        let node = NodeId::new(node);
        self.node = self.name("node", node).or(self.node);
        self
    }

    /// The node's part of the work relative to the other nodes, at least 1; 1 unless set.
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// The failure domain that the node is in.
    pub fn zone(mut self, zone: impl AsRef<str>) -> Self {
        let zone = ZoneName::new(zone);
        self.zone = self.name("zone", zone).or(self.zone);
        self
    }

    /// Adds a label that workloads may ask for.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// The most slots of all workloads together; no limit unless set.
    pub fn capacity(mut self, capacity: u32) -> Self {
        self.capacity = Some(capacity);
        self
    }

    /// Adds a workload: its number of units, all of which this node can run, or a [`Declared`] with more to say.
    ///
    /// ```
    /// use rendez::{Coordinator, Declared};
    ///
    /// let node = Coordinator::builder().workload("inbox", 16).workload("feed", Declared::new(8).with_cap(2));
    /// ```
    pub fn workload(mut self, name: impl AsRef<str>, declared: impl Into<Declared>) -> Self {
        let declared = declared.into();
        let workload = WorkloadName::new(name);
        if let Some(workload) = self.name("workload", workload) {
            self.workloads.insert(workload, declared);
        }
        self
    }

    /// Takes part in an election as a candidate like all others: [`Handle::election`] has what comes of it. It needs no
    /// runner, and no session of its own. Its name is that of a workload that must be declared nowhere else.
    pub fn election(self, name: impl AsRef<str>) -> Self {
        self.election_with(name, Candidacy::new())
    }

    /// The same, with a priority or as an observer.
    pub fn election_with(mut self, name: impl AsRef<str>, candidacy: Candidacy) -> Self {
        let election = WorkloadName::new(name);
        if let Some(election) = self.name("election", election) {
            self.elections.insert(election, candidacy);
        }
        self
    }

    /// Which of the workloads that are kept in the store this node can run; none unless set.
    pub fn dynamic_workloads(mut self, dynamic: DynamicWorkloads) -> Self {
        self.dynamic = dynamic;
        self
    }

    /// Times, stabilizers, what happens to runners that end; those of a session TTL of 10 s unless set.
    pub fn engine_config(mut self, config: EngineConfig) -> Self {
        self.config = config;
        self
    }

    /// The settings that all nodes of the cluster share. They count if this is the cluster's first node; otherwise
    /// the cluster's own count, and an event says if these differ.
    pub fn cluster_settings(mut self, settings: ClusterSettings) -> Self {
        self.settings = Some(settings);
        self
    }

    /// How long [`start`](Self::start) waits for the store's first answer; 5 s unless set.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Gives up at once where another process has the node's id, instead of waiting for its end. Counts before what
    /// [`engine_config`](Self::engine_config) says.
    pub fn give_up_if_in_use(mut self, give_up: bool) -> Self {
        self.give_up_if_in_use = Some(give_up);
        self
    }

    /// What to do with a runner that outlives a lost lease; ends the process unless set.
    pub fn overrun_policy(mut self, policy: OverrunPolicy) -> Self {
        self.overrun = policy;
        self
    }

    /// Where the node's numbers go; nowhere unless set.
    pub fn metrics(mut self, metrics: Arc<dyn Metrics>) -> Self {
        self.metrics = metrics;
        self
    }

    /// Called for each event, from the very first on (also while [`start`](Self::start) waits). It must not block.
    pub fn on_event(mut self, hook: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.on_event = Some(Arc::new(hook));
        self
    }

    /// Checks everything, opens the session, and returns when it is open. Slots come afterwards, by themselves.
    ///
    /// Where another process has the node's id this waits until that process's session ends (the event
    /// [`Event::NodeIdInUse`] says so), unless [`give_up_if_in_use`](Self::give_up_if_in_use) is set. Cancelling it
    /// ends the node; a session that was opened meanwhile ends with its TTL.
    ///
    /// Needs a tokio runtime with its time driver; a current-thread one will do, as long as no runner blocks it: a
    /// blocked runtime sends no heartbeats. A thread of its own watches that, and applies the
    /// [`overrun_policy`](Self::overrun_policy) if runners go on after their deadlines because of it.
    ///
    /// # Errors
    /// [`StartError`]. What concerns this builder is told before the store is touched.
    pub async fn start(self) -> Result<Handle, StartError> {
        driver::start(self.plan()?).await
    }

    fn plan(mut self) -> Result<Plan, StartError> {
        if let Some(wrong) = self.wrong {
            return Err(wrong);
        }
        let store = self.store.ok_or(StartError::Missing { what: "store" })?;
        let cluster = self.cluster.ok_or(StartError::Missing { what: "cluster" })?;
        let node = self.node.ok_or(StartError::Missing { what: "node_id" })?;
        let capabilities = store.capabilities();
        self.config.give_up_if_in_use = self.give_up_if_in_use.unwrap_or(self.config.give_up_if_in_use);
        self.config.validate()?;
        let settings = self.settings.unwrap_or_else(|| ClusterSettings::new(self.config.timing.session_ttl));
        check_ttl(&self.config, &settings, &capabilities)?;
        check_numbers(self.weight, &self.workloads, self.connect_timeout)?;
        if let Some(name) = self.elections.keys().find(|name| self.workloads.contains_key(*name)) {
            let what = format!("{name} is declared as a workload and as an election: give one of them another name");
            return Err(StartError::Invalid { what });
        }
        let mut factory = match self.factory {
            Some(factory) => factory,
            None if self.workloads.is_empty() && self.dynamic == DynamicWorkloads::None => {
                Arc::new(|_: crate::SlotContext| async {}) as Arc<dyn RunnerFactory>
            }
            None => return Err(StartError::Missing { what: "runner" }),
        };
        let seats = self.elections.into_iter();
        let seats: Seats = seats.map(|(name, how)| (name.clone(), Arc::new(Seat::new(name, how)))).collect();
        if !seats.is_empty() {
            factory = Arc::new(WithElections { seats: seats.clone(), others: factory });
        }
        let mut info = NodeInfo::new(node, settings);
        info.weight = self.weight;
        info.zone = self.zone;
        info.labels = self.labels;
        info.capacity = self.capacity;
        info.workloads = with_elections(self.workloads, &seats);
        info.dynamic = self.dynamic;
        Ok(Plan {
            store,
            factory,
            cluster,
            info,
            capabilities,
            config: self.config,
            connect_timeout: self.connect_timeout,
            overrun: self.overrun,
            metrics: self.metrics,
            on_event: self.on_event,
            seats,
        })
    }

    fn name<T>(&mut self, what: &'static str, name: Result<T, NameError>) -> Option<T> {
        match name {
            Ok(name) => Some(name),
            Err(error) => {
                self.wrong.get_or_insert(StartError::Name { what, error });
                None
            }
        }
    }
}

/// What a node declares, with the elections that it may win.
pub(crate) fn with_elections(
    mut workloads: BTreeMap<WorkloadName, Declared>,
    seats: &Seats,
) -> BTreeMap<WorkloadName, Declared> {
    workloads.extend(seats.iter().filter_map(|(name, seat)| Some((name.clone(), seat.declared()?))));
    workloads
}

fn check_ttl(config: &EngineConfig, settings: &ClusterSettings, capabilities: &Capabilities) -> Result<(), StartError> {
    let ttl = config.timing.session_ttl;
    let (name, shortest, longest) = (capabilities.name, capabilities.ttl_min, capabilities.ttl_max);
    if ttl < shortest || ttl > longest {
        return Err(StartError::Invalid {
            what: format!("the store {name} cannot do a session_ttl of {ttl:?}: use {shortest:?} to {longest:?}"),
        });
    }
    if ttl > settings.session_ttl_max {
        let longest = settings.session_ttl_max;
        return Err(StartError::Invalid {
            what: format!("a session_ttl of {ttl:?} is longer than the cluster's session_ttl_max of {longest:?}"),
        });
    }
    Ok(())
}

fn check_numbers(
    weight: u32,
    workloads: &BTreeMap<WorkloadName, Declared>,
    connect_timeout: Duration,
) -> Result<(), StartError> {
    if weight == 0 {
        return Err(StartError::Invalid { what: "a weight of 0 cannot be: use 1 or more".to_owned() });
    }
    if connect_timeout.is_zero() {
        return Err(StartError::Invalid { what: "a connect_timeout of 0 cannot be: use 1ms or more".to_owned() });
    }
    for (name, declared) in workloads {
        if declared.units > UNITS_MAX {
            let units = declared.units;
            return Err(StartError::Invalid {
                what: format!("{units} units of {name} are too many: use {UNITS_MAX} or less"),
            });
        }
    }
    Ok(())
}

impl fmt::Debug for CoordinatorBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CoordinatorBuilder")
            .field("cluster", &self.cluster)
            .field("node", &self.node)
            .field("workloads", &self.workloads)
            .finish_non_exhaustive()
    }
}
