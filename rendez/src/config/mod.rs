//! What a user can set, from code, environment and file; checked before anything is wired.

mod error;
mod keys;
mod raw;
mod read;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::Path;
use std::time::Duration;

pub use error::{ConfigError, ConfigProblem, Place};
use keys::{Chosen, Found, KEYS, Layer, SECRET};
use raw::{Entry, Raw};
use read::Wrong;
use rendez_core::{
    ClusterName, ClusterSettings, Declared, EngineConfig, NodeId, NodeInfo, Stabilizers, Timing, TimingError,
    WorkloadName,
};

use crate::{Coordinator, CoordinatorBuilder};

/// What the environment variables of all keys begin with.
pub const ENVIRONMENT_PREFIX: &str = "RENDEZ_CONFIG_";

/// The largest file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Everything that can be set of a node.
///
/// Of every key, the value set by code counts before the one from the environment, that before the one from a file,
/// and that before the default, in whatever order they are given; of two files, the later. Tables (`labels`,
/// `workloads`, `store_options`) are replaced whole. Nothing is read that was not asked for.
///
/// ```
/// use std::time::Duration;
/// use rendez::Config;
///
/// let config = Config::from_toml(
///     r#"
///     cluster = "orders"
///     store = "redis://localhost"
///     session_ttl = "6s"
///     [workloads]
///     inbox = 16
///     feed = { units = 8, cap = 2 }
///     "#,
/// )?;
/// let resolved = config.node_id("worker-1").session_ttl(Duration::from_secs(3)).resolve()?;
/// assert_eq!(resolved.engine.timing.session_ttl, Duration::from_secs(3));
/// assert_eq!(resolved.info.workloads.len(), 2);
///
/// let error = Config::from_toml("sesion_ttl = '6s'").unwrap_err();
/// assert!(error.to_string().contains("did you mean session_ttl?"));
/// # Ok::<(), rendez::ConfigError>(())
/// ```
#[derive(Clone, PartialEq)]
pub struct Config {
    code: Layer,
    environment: Layer,
    file: Layer,
    /// What was wrong with what code has set.
    wrong: Vec<ConfigProblem>,
    /// What keeps the default node id apart from other processes' on the same host.
    suffix: u32,
}

/// A configuration with every value decided and checked.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct ResolvedConfig {
    /// The cluster to take part in.
    pub cluster: ClusterName,
    /// What the node tells about itself, the cluster's settings among it.
    pub info: NodeInfo,
    /// Times, stabilizers, what happens to runners that end.
    pub engine: EngineConfig,
    /// The store's address; nothing if the program brings the store itself. May hold secrets.
    pub store: Option<String>,
    /// Options of the store, as they were written. May hold secrets.
    pub store_options: BTreeMap<String, String>,
    /// How long to wait for the store's first answer.
    pub connect_timeout: Duration,
}

impl Config {
    /// Nothing is set.
    #[must_use]
    pub fn new() -> Self {
        let mut suffix = [0; 4];
        if getrandom::fill(&mut suffix).is_err() {
            suffix = std::process::id().to_ne_bytes();
        }
        Self {
            code: Layer::default(),
            environment: Layer::default(),
            file: Layer::default(),
            wrong: Vec::new(),
            suffix: u32::from_ne_bytes(suffix),
        }
    }

    // --- where values come from ---

    /// What the environment variables `RENDEZ_CONFIG_<KEY>` say.
    ///
    /// # Errors
    /// [`ConfigError`] for variables with this prefix that name no key or hold a value that cannot be.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::new().merge_env()
    }

    /// What a TOML file says.
    ///
    /// # Errors
    /// [`ConfigError`] for a file that cannot be read, unknown keys and values that cannot be.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        Self::new().merge_file(path)
    }

    /// What a text in TOML says.
    ///
    /// # Errors
    /// [`ConfigError`] for a text that is no TOML, unknown keys and values that cannot be.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        Self::new().merge_toml(text)
    }

    /// Adds what the environment variables `RENDEZ_CONFIG_<KEY>` say: `RENDEZ_CONFIG_SESSION_TTL=10s`. Lists and
    /// tables are written as in TOML: `RENDEZ_CONFIG_WORKLOADS={ inbox = 4 }`.
    ///
    /// # Errors
    /// See [`from_env`](Self::from_env).
    pub fn merge_env(self) -> Result<Self, ConfigError> {
        self.merge_variables(std::env::vars_os())
    }

    /// Adds what these environment variables say; those without the prefix are passed over.
    ///
    /// # Errors
    /// See [`from_env`](Self::from_env).
    pub fn merge_variables<K, V>(mut self, variables: impl IntoIterator<Item = (K, V)>) -> Result<Self, ConfigError>
    where
        K: Into<OsString>,
        V: Into<OsString>,
    {
        let (mut layer, mut problems) = (Layer::default(), Vec::new());
        for (variable, value) in variables {
            let (variable, value): (OsString, OsString) = (variable.into(), value.into());
            let variable = variable.to_string_lossy().into_owned();
            let Some(name) = variable.strip_prefix(ENVIRONMENT_PREFIX) else { continue };
            let key = name.to_lowercase();
            let place = Place::Environment { variable: printable(&variable) };
            let written_so = key.to_uppercase() == name;
            let (value, wrong) = match value.into_string() {
                Ok(value) if written_so => {
                    let raw = Raw::Plain(value);
                    (Some(raw.shown()), layer.read(&key, &raw, &place))
                }
                Ok(_) => (None, None),
                Err(_) => (None, Some(Err(vec![Wrong::new("it is not UTF-8", "use UTF-8")]))),
            };
            match wrong {
                Some(Ok(())) => {}
                Some(Err(these)) => {
                    problems.extend(these.into_iter().map(|this| problem(&key, value.clone(), &place, this)));
                }
                None => {
                    let hint = if !written_so && KEYS.contains(&&*key) {
                        format!("write {ENVIRONMENT_PREFIX}{}", key.to_uppercase())
                    } else {
                        keys::instead_of(&key)
                    };
                    problems.push(problem(&printable(&key), None, &place, Wrong::new("there is no such key", hint)));
                }
            }
        }
        fail(problems)?;
        self.environment.take_over(layer);
        Ok(self)
    }

    /// Adds what a TOML file says. Of two files, the later counts.
    ///
    /// # Errors
    /// See [`from_file`](Self::from_file).
    pub fn merge_file(self, path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        let text = read_file(path).map_err(|why| {
            let place = Place::File { path: Some(path.to_owned()), line: 0 };
            let wrong = Wrong::new(why, "use the path of a readable text file in TOML");
            ConfigError { problems: vec![problem("", None, &place, wrong)] }
        })?;
        self.merge_text(&text, Some(path))
    }

    /// Adds what a text in TOML says, as if it stood in a file.
    ///
    /// # Errors
    /// See [`from_toml`](Self::from_toml).
    pub fn merge_toml(self, text: &str) -> Result<Self, ConfigError> {
        self.merge_text(text, None)
    }

    fn merge_text(mut self, text: &str, path: Option<&Path>) -> Result<Self, ConfigError> {
        let place = |line| Place::File { path: path.map(Path::to_owned), line };
        let entries = raw::read_toml(text).map_err(|unreadable| {
            let wrong = Wrong::new(format!("it is no TOML: {}", unreadable.why), "correct this line");
            ConfigError { problems: vec![problem("", None, &place(unreadable.line), wrong)] }
        })?;
        let (mut layer, mut problems) = (Layer::default(), Vec::new());
        for Entry { key, value, line } in &entries {
            let place = place(*line);
            match layer.read(key, value, &place) {
                Some(Ok(())) => {}
                Some(Err(these)) => {
                    problems.extend(these.into_iter().map(|this| problem(key, Some(value.shown()), &place, this)));
                }
                None => {
                    let wrong = Wrong::new("there is no such key", keys::instead_of(key));
                    problems.push(problem(&printable(key), None, &place, wrong));
                }
            }
        }
        fail(problems)?;
        self.file.take_over(layer);
        Ok(self)
    }

    // --- what code sets, beside the setters of single keys ---

    /// Adds a workload: its number of units, all of which this node can run, or a [`Declared`] with more to say.
    #[must_use]
    pub fn workload(mut self, name: impl AsRef<str>, declared: impl Into<Declared>) -> Self {
        let (name, declared) = (name.as_ref(), declared.into());
        let shown = format!("{} units", declared.units);
        self.check(&format!("workloads.{}", printable(name)), &shown, read::check_declared(&declared));
        match WorkloadName::new(name) {
            Ok(workload) => {
                let workloads = set_by_code(&mut self.code.workloads);
                if workloads.insert(workload, declared).is_some() {
                    let twice = Wrong::new("this workload is declared twice", "declare each workload once");
                    self.check(&format!("workloads.{name}"), &shown, Err(twice));
                }
            }
            Err(error) => self.check("workloads", &Raw::Plain(name.to_owned()).shown(), Err(read::name_wrong(&error))),
        }
        self
    }

    /// Adds a label that workloads may ask for.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        let (key, value) = (key.into(), value.into());
        self.check(&format!("labels.{}", printable(&key)), &format!("{value:?}"), read::check_label(&key, &value));
        set_by_code(&mut self.code.labels).insert(key, value);
        self
    }

    /// Adds an option of the store. May hold secrets: it is never shown.
    #[must_use]
    pub fn store_option(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        set_by_code(&mut self.code.store_options).insert(key.into(), value.into());
        self
    }

    fn check(&mut self, key: &str, shown: &str, result: Result<(), Wrong>) {
        self.wrong.retain(|problem| problem.key != key);
        if let Err(wrong) = result {
            self.wrong.push(problem(key, Some(shown.to_owned()), &Place::Code, wrong));
        }
    }

    // --- what comes of it ---

    /// Whether a node can be started with this.
    ///
    /// # Errors
    /// [`ConfigError`] names everything that is wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.resolve().map(drop)
    }

    /// Decides every value and checks them together. Reads the file that `store_file` names.
    ///
    /// # Errors
    /// [`ConfigError`] names everything that is wrong.
    pub fn resolve(&self) -> Result<ResolvedConfig, ConfigError> {
        fail(self.wrong.clone())?;
        let chosen = Chosen::of([&self.code, &self.environment, &self.file]);
        let mut problems = Vec::new();
        let cluster = chosen.cluster.map(|found| found.value.clone());
        if cluster.is_none() {
            let hint = "name the cluster: nodes with the same name and store share its work";
            problems.push(problem("cluster", None, &Place::Default, Wrong::new("it is missing", hint)));
        }
        let node = chosen.node_id.map(|found| Ok(found.value.clone())).unwrap_or_else(|| self.default_node_id());
        let node = node.map_err(|wrong| problems.push(problem("node_id", None, &Place::Default, wrong))).ok();
        let engine = engine_config(&chosen);
        let settings = cluster_settings(&chosen, engine.timing.session_ttl);
        problems.extend(impossible_together(&chosen, &engine, &settings));
        let store = store(&chosen).map_err(|wrong| problems.push(*wrong)).ok().flatten();
        fail(problems.clone())?;
        let (Some(cluster), Some(node)) = (cluster, node) else { return Err(ConfigError { problems }) };
        let mut info = NodeInfo::new(node, settings);
        info.weight = value(chosen.weight, info.weight);
        info.zone = chosen.zone.map(|found| found.value.clone());
        info.labels = value(chosen.labels, info.labels);
        info.capacity = value(chosen.capacity, info.capacity);
        info.workloads = value(chosen.workloads, info.workloads);
        info.dynamic = value(chosen.dynamic_workloads, info.dynamic);
        Ok(ResolvedConfig {
            cluster,
            info,
            engine,
            store,
            store_options: value(chosen.store_options, BTreeMap::new()),
            connect_timeout: value(chosen.connect_timeout, Duration::from_secs(5)),
        })
    }

    /// The builder of a node with all this; what is missing is the store and the runner.
    ///
    /// # Errors
    /// [`ConfigError`] names everything that is wrong.
    pub fn builder(&self) -> Result<CoordinatorBuilder, ConfigError> {
        self.resolve().map(|resolved| resolved.builder())
    }

    /// `POD_NAME` as it is, or else the host's name with the suffix.
    fn default_node_id(&self) -> Result<NodeId, Wrong> {
        if let Some(pod) = std::env::var_os("POD_NAME").filter(|pod| !pod.is_empty()) {
            let refused = |why: String| Wrong::new(format!("POD_NAME is no name: {why}"), "set node_id");
            let pod = pod.into_string().map_err(|_| refused("it is not UTF-8".to_owned()))?;
            return NodeId::new(pod).map_err(|error| refused(error.to_string()));
        }
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let host = if host.is_empty() { "node".to_owned() } else { host };
        NodeId::new(format!("{host}-{:08x}", self.suffix))
            .map_err(|error| Wrong::new(format!("the host's name does not do: {error}"), "set node_id"))
    }
}

impl ResolvedConfig {
    /// The builder of a node with all this; what is missing is the store and the runner.
    pub fn builder(&self) -> CoordinatorBuilder {
        let info = &self.info;
        let mut builder = Coordinator::builder()
            .cluster(self.cluster.as_str())
            .node_id(info.node.as_str())
            .weight(info.weight)
            .dynamic_workloads(info.dynamic.clone())
            .engine_config(self.engine.clone())
            .cluster_settings(info.settings.clone())
            .connect_timeout(self.connect_timeout);
        if let Some(zone) = &info.zone {
            builder = builder.zone(zone.as_str());
        }
        if let Some(capacity) = info.capacity {
            builder = builder.capacity(capacity);
        }
        for (key, value) in &info.labels {
            builder = builder.label(key, value);
        }
        for (workload, declared) in &info.workloads {
            builder = builder.workload(workload.as_str(), *declared);
        }
        builder
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::new()
    }
}

/// Shows no values: some may be secret.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chosen = Chosen::of([&self.code, &self.environment, &self.file]);
        let mut map = f.debug_map();
        for key in KEYS {
            let place = chosen.place(key);
            if place != Place::Default {
                map.entry(key, &format_args!("{place}"));
            }
        }
        map.finish()
    }
}

/// Shows no secrets.
impl fmt::Debug for ResolvedConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResolvedConfig")
            .field("cluster", &self.cluster)
            .field("info", &self.info)
            .field("engine", &self.engine)
            .field("store", &self.store.as_deref().map(scheme))
            .field("connect_timeout", &self.connect_timeout)
            .finish_non_exhaustive()
    }
}

fn scheme(store: &str) -> &str {
    store.split(':').next().unwrap_or_default()
}

fn value<T: Clone>(found: Option<&Found<T>>, default: T) -> T {
    found.map_or(default, |found| found.value.clone())
}

fn set_by_code<T: Default>(found: &mut Option<Found<T>>) -> &mut T {
    &mut found.get_or_insert_with(|| Found { value: T::default(), place: Place::Code }).value
}

fn fail(problems: Vec<ConfigProblem>) -> Result<(), ConfigError> {
    if problems.is_empty() { Ok(()) } else { Err(ConfigError { problems }) }
}

/// What is wrong with the value of a key. Secrets are not shown.
fn problem(key: &str, value: Option<String>, place: &Place, wrong: Wrong) -> ConfigProblem {
    let Wrong { below, wrong, hint } = wrong;
    let (path, value, place) = match (below, place) {
        (Some((path, value, line)), Place::File { path: file, .. }) => {
            (printable(&path), Some(value), Place::File { path: file.clone(), line })
        }
        (Some((path, value, _)), place) => (printable(&path), Some(value), place.clone()),
        (None, place) => (String::new(), value, place.clone()),
    };
    let secret = SECRET.contains(&key);
    let value = if secret { value.map(|_| "(not shown)".to_owned()) } else { value };
    ConfigProblem { key: format!("{key}{path}"), value, place, wrong, hint }
}

/// The text with its control characters escaped.
fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}

fn read_file(path: &Path) -> Result<String, String> {
    use std::io::Read;
    let cannot = |error: std::io::Error| format!("it cannot be read: {error}");
    let file = std::fs::File::open(path).map_err(cannot)?;
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(cannot)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("it is larger than {FILE_BYTES_MAX} bytes"));
    }
    Ok(text)
}

fn store(chosen: &Chosen<'_>) -> Result<Option<String>, Box<ConfigProblem>> {
    let Some(Found { value: path, place }) = chosen.store_file else {
        return Ok(chosen.store.map(|found| found.value.clone()));
    };
    let wrong = |wrong| Box::new(problem("store_file", Some(format!("{path:?}")), place, wrong));
    if chosen.store.is_some() {
        return Err(wrong(Wrong::new("store is set too", "set one of them")));
    }
    let text =
        read_file(path).map_err(|why| wrong(Wrong::new(why, "write the path of a file with the store's address")))?;
    let address = text.trim().to_owned();
    read::check_store(&address)
        .map_err(|Wrong { hint, .. }| wrong(Wrong::new("it holds no address of a store", hint)))?;
    Ok(Some(address))
}

fn engine_config(chosen: &Chosen<'_>) -> EngineConfig {
    let mut timing = Timing::for_ttl(value(chosen.session_ttl, Duration::from_secs(10)));
    timing.heartbeat_interval = value(chosen.heartbeat_interval, timing.heartbeat_interval);
    timing.heartbeat_jitter_permille = value(chosen.heartbeat_jitter_permille, timing.heartbeat_jitter_permille);
    timing.operation_timeout = value(chosen.operation_timeout, timing.operation_timeout);
    timing.heartbeat_attempts = value(chosen.heartbeat_attempts, timing.heartbeat_attempts);
    timing.backoff_min = value(chosen.backoff_min, timing.backoff_min);
    timing.stop_budget = value(chosen.stop_budget, timing.stop_budget);
    timing.pause_allowance = value(chosen.pause_allowance, timing.pause_allowance);
    timing.clock_rate_error_ppm = value(chosen.clock_rate_error_ppm, timing.clock_rate_error_ppm);

    let mut engine = EngineConfig::for_timing(timing);
    let Stabilizers {
        shedding,
        cooldown,
        runtime_min,
        shed_budget,
        slots_min,
        settling,
        acquire_limit,
        start_delay,
        candidate_grace,
        weight_hysteresis_permille,
        ..
    } = &mut engine.stabilizers;
    set(shedding, chosen.shedding);
    set(cooldown, chosen.cooldown);
    set(runtime_min, chosen.runtime_min);
    set(shed_budget, chosen.shed_budget);
    set(slots_min, chosen.slots_min);
    set(settling, chosen.settling);
    set(acquire_limit, chosen.acquire_limit);
    set(start_delay, chosen.start_delay);
    set(candidate_grace, chosen.candidate_grace);
    set(weight_hysteresis_permille, chosen.weight_hysteresis_permille);

    let runners = &mut engine.runners;
    set(&mut runners.restart_backoff_min, chosen.restart_backoff_min);
    set(&mut runners.restart_backoff_max, chosen.restart_backoff_max);
    set(&mut runners.restart_reset_after, chosen.restart_reset_after);
    set(&mut runners.give_up_after, chosen.give_up_after);
    set(&mut runners.refuse_for, chosen.refuse_for);
    set(&mut runners.abort_grace, chosen.abort_grace);

    set(&mut engine.offer_ttl, chosen.offer_ttl);
    set(&mut engine.drain_timeout, chosen.drain_timeout);
    set(&mut engine.give_up_if_in_use, chosen.give_up_if_in_use);
    engine
}

fn set<T: Clone>(place: &mut T, found: Option<&Found<T>>) {
    if let Some(found) = found {
        place.clone_from(&found.value);
    }
}

fn cluster_settings(chosen: &Chosen<'_>, session_ttl: Duration) -> ClusterSettings {
    let mut settings = ClusterSettings::new(session_ttl);
    set(&mut settings.policy, chosen.policy);
    set(&mut settings.load_factor, chosen.load_factor);
    set(&mut settings.session_ttl_max, chosen.session_ttl_max);
    set(&mut settings.move_budget, chosen.move_budget);
    set(&mut settings.cold_start_hold, chosen.cold_start_hold);
    settings
}

/// Values that can each be, but not together.
fn impossible_together(chosen: &Chosen<'_>, engine: &EngineConfig, settings: &ClusterSettings) -> Vec<ConfigProblem> {
    let mut problems = Vec::new();
    let mut wrong = |key: &str, value: String, wrong: String, hint: String| {
        problems.push(problem(key, Some(value), &chosen.place(key), Wrong::new(wrong, hint)));
    };
    if let Err(error) = engine.validate() {
        let (key, value, what, hint) = timing_problem(&error, engine);
        wrong(key, value, what, hint);
    }
    let (ttl, ttl_max) = (engine.timing.session_ttl, settings.session_ttl_max);
    if ttl > ttl_max {
        let hint = format!("use a session_ttl of {ttl_max:?} or less, or a session_ttl_max of {ttl:?} or more");
        wrong("session_ttl", format!("{ttl:?}"), format!("it is longer than session_ttl_max = {ttl_max:?}"), hint);
    }
    let (min, max) = (engine.runners.restart_backoff_min, engine.runners.restart_backoff_max);
    if min > max {
        let what = format!("it is longer than restart_backoff_max = {max:?}");
        wrong("restart_backoff_min", format!("{min:?}"), what, format!("use {max:?} or less"));
    }
    let capacity = value(chosen.capacity, None).unwrap_or(u32::MAX);
    if engine.stabilizers.slots_min > capacity {
        let what = format!("it is more than capacity = {capacity}");
        wrong("slots_min", engine.stabilizers.slots_min.to_string(), what, format!("use {capacity} or less"));
    }
    problems
}

/// Key, value, what is wrong, what would do.
fn timing_problem(error: &TimingError, engine: &EngineConfig) -> (&'static str, String, String, String) {
    let (short, long, large) = ("it is too short", "it is too long", "it is too large");
    match error {
        TimingError::TooShort { key, value } => (key, format!("{value:?}"), short.into(), "use 1ms or more".into()),
        TimingError::TooLong { key, value } => (key, format!("{value:?}"), long.into(), "use 24h or less".into()),
        TimingError::TooLarge { key, value, max } => {
            (key, value.to_string(), large.into(), format!("use {max} or less"))
        }
        TimingError::Zero { key } => (key, "0".into(), "0 cannot be".into(), "use 1 or more".into()),
        TimingError::Attempts { value } => {
            ("heartbeat_attempts", value.to_string(), "that many cannot be".into(), "use 1 to 100".into())
        }
        other => {
            let whole = other.to_string();
            let (wrong, hint) = whole.rsplit_once("; ").unwrap_or((&whole, "use a longer one"));
            ("session_ttl", format!("{:?}", engine.timing.session_ttl), wrong.to_owned(), hint.to_owned())
        }
    }
}
