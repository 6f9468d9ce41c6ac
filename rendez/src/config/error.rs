//! What is wrong with a configuration, where it stands, and what would do.

use std::fmt;
use std::path::PathBuf;

/// Everything that is wrong with a configuration, each with its key, its value, its place, and what would do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigError {
    /// The problems; at least one.
    pub problems: Vec<ConfigProblem>,
}

/// One thing that is wrong with a configuration. Values that may hold secrets are not shown.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigProblem {
    /// The key, with the names below it: `workloads.inbox.units`. Empty where a text could not be read at all.
    pub key: String,
    /// The value as it was given, shortened.
    pub value: Option<String>,
    /// Where it stands.
    pub place: Place,
    /// What is wrong with it.
    pub wrong: String,
    /// What would do.
    pub hint: String,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// The program's code.
    Code,
    /// An environment variable.
    Environment {
        /// Its name.
        variable: String,
    },
    /// A file, or a text that was given in place of one.
    File {
        /// The file, if it was one.
        path: Option<PathBuf>,
        /// The line, from 1; 0 where it concerns the whole file.
        line: usize,
    },
    /// Nobody has set it.
    Default,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code => f.write_str("set by the program"),
            Self::Environment { variable } => f.write_str(variable),
            Self::File { path, line } => {
                match path {
                    Some(path) => write!(f, "{}", path.display())?,
                    None => f.write_str("configuration text")?,
                }
                if *line > 0 { write!(f, ", line {line}") } else { Ok(()) }
            }
            Self::Default => f.write_str("not set"),
        }
    }
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, value, place, wrong, hint } = self;
        match value {
            _ if key.is_empty() => write!(f, "{place}: {wrong}; {hint}"),
            Some(value) => write!(f, "{key} = {value} ({place}): {wrong}; {hint}"),
            None => write!(f, "{key} ({place}): {wrong}; {hint}"),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.problems.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
