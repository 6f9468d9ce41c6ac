//! Errors of stores: the kind says what to do next.

use std::error::Error;
use std::fmt;
use std::time::Duration;

/// What to do after an error of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// It did not happen, and may if it is tried again.
    Transient,
    /// It may have happened: ask again with the same operation id.
    Ambiguous,
    /// The session does not live. Final: open a new one.
    Lost,
    /// Somebody else was first: look again.
    Conflict,
    /// The store is overloaded or full: wait, then try again.
    Throttled,
    /// Trying again cannot help: credentials, configuration, an unfit server.
    Fatal,
    /// The store cannot do this; nothing has happened.
    Unsupported,
}

impl ErrorKind {
    /// The word used in messages and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Ambiguous => "ambiguous",
            Self::Lost => "lost",
            Self::Conflict => "conflict",
            Self::Throttled => "throttled",
            Self::Fatal => "fatal",
            Self::Unsupported => "unsupported",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// An error of a store: what to do next, what happened, and what it came from. Holds no secrets.
#[derive(Debug)]
pub struct StoreError {
    kind: ErrorKind,
    message: String,
    retry_after: Option<Duration>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl StoreError {
    /// An error of this kind. The message says what happened and, if the user can do something, what.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), retry_after: None, source: None }
    }

    /// Adds what it came from.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Adds how long the store wants to be left alone.
    #[must_use]
    pub fn with_retry_after(mut self, retry_after: Duration) -> Self {
        self.retry_after = Some(retry_after);
        self
    }

    /// What to do next.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What happened.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// How long the store wants to be left alone, if it said so.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| &**source as &(dyn Error + 'static))
    }
}
