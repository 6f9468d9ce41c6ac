//! Which store, and which cluster in it: the arguments that all commands share, and the configuration that they come to.
//!
//! The command line counts before the environment (`RENDEZ_CONFIG_<KEY>`), that before the file.

use std::path::PathBuf;
use std::time::Duration;

use rendez::{Config, ConfigError, ConfigProblem, Place, ResolvedConfig};

use crate::exit::{Exit, Failure};

/// Arguments that all commands on a cluster share.
#[derive(Debug, clap::Args)]
pub(crate) struct ClusterArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// The cluster
    #[arg(long)]
    cluster: Option<String>,
}

/// Arguments that all commands on a store share.
#[derive(Debug, clap::Args)]
pub(crate) struct StoreArgs {
    /// The store, for example redis://127.0.0.1:6379. A password in it is seen by all who may list processes
    #[arg(long, value_name = "URL", conflicts_with = "store_file", value_parser = SecretParser)]
    store: Option<Secret>,
    /// A file with the store's URL and nothing else
    #[arg(long, value_name = "PATH")]
    store_file: Option<PathBuf>,
    /// A file in TOML with what the command line does not say; `RENDEZ_CONFIG_KEY` in the environment counts before it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How long to wait for the store at the start; 5s unless given
    #[arg(long, value_name = "TIME", value_parser = crate::duration::parse)]
    connect_timeout: Option<Duration>,
}

/// An argument that is never shown.
#[derive(Clone)]
struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Takes everything: a parser that refuses would have what it refuses repeated in the message.
#[derive(Clone)]
struct SecretParser;

impl clap::builder::TypedValueParser for SecretParser {
    type Value = Secret;

    fn parse_ref(
        &self,
        _command: &clap::Command,
        _argument: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<Secret, clap::Error> {
        Ok(Secret(value.to_string_lossy().into_owned()))
    }
}

impl ClusterArgs {
    /// What file, environment and these arguments say.
    pub(crate) fn config(&self) -> Result<Config, Failure> {
        self.config_over("")
    }

    /// The same, with what a text in TOML says where they say nothing.
    pub(crate) fn config_over(&self, defaults: &str) -> Result<Config, Failure> {
        let config = self.store.config_over(defaults)?;
        Ok(match &self.cluster {
            Some(cluster) => config.cluster(cluster),
            None => config,
        })
    }
}

impl StoreArgs {
    /// What file, environment and these arguments say.
    pub(crate) fn config(&self) -> Result<Config, Failure> {
        self.config_over("")
    }

    fn config_over(&self, defaults: &str) -> Result<Config, Failure> {
        let mut config = Config::from_toml(defaults).map_err(refused)?;
        if let Some(path) = &self.config {
            config = config.merge_file(path).map_err(refused)?;
        }
        config = config.merge_env().map_err(refused)?;
        if let Some(Secret(url)) = &self.store {
            config = config.store(url);
        }
        if let Some(path) = &self.store_file {
            config = config.store_file(path);
        }
        if let Some(timeout) = self.connect_timeout {
            config = config.connect_timeout(timeout);
        }
        Ok(config)
    }
}

/// Decides and checks everything.
pub(crate) fn resolve(config: &Config) -> Result<ResolvedConfig, Failure> {
    config.resolve().map_err(refused)
}

fn refused(error: ConfigError) -> Failure {
    let problems: Vec<String> = error.problems.iter().map(said).collect();
    Failure::new(Exit::Usage, problems.join("\nrendez: "))
}

/// What the program has set stands on the command line.
fn said(problem: &ConfigProblem) -> String {
    let ConfigProblem { key, value, place, wrong, hint, .. } = problem;
    let flag = match key.split('.').next() {
        Some("workloads") => "--workload".to_owned(),
        Some("labels") => "--label".to_owned(),
        Some("node_id") => "--node".to_owned(),
        _ => format!("--{}", key.replace('_', "-")),
    };
    match (place, value) {
        (Place::Code, Some(value)) => format!("{flag} ({key} = {value}): {wrong}; {hint}"),
        (Place::Code, None) => format!("{flag}: {wrong}; {hint}"),
        (Place::Default, _) if key == "cluster" => "which cluster? give --cluster NAME".to_owned(),
        _ => problem.to_string(),
    }
}
