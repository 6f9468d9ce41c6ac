//! What an error of the client or the server means to the caller.

use std::error::Error as _;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::context::{
    CreateStreamError, CreateStreamErrorKind, GetStreamError, GetStreamErrorKind, PublishError, PublishErrorKind,
};
use async_nats::{ConnectError, ConnectErrorKind};
use rendez_core::{ErrorKind, StoreError};

/// What was being done when it went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nothing of the request is on its way.
    Connecting,
    /// What was sent changes nothing.
    Reading,
    /// What was sent may have taken effect.
    Writing,
}

/// The error codes of JetStream that mean something here.
mod code {
    /// Limits of the account or of the servers.
    pub(super) const NO_ROOM: [u64; 8] = [10002, 10023, 10028, 10047, 10067, 10077, 10120, 10122];
    /// Another write of the key is on its way through the replicas.
    pub(super) const IN_PROCESS: u64 = 10164;
    pub(super) const NO_PEERS: u64 = 10005;
    pub(super) const STREAM_NOT_FOUND: u64 = 10059;
    pub(super) const STREAM_NAME_IN_USE: u64 = 10058;
    pub(super) const JETSTREAM_OFF: [u64; 2] = [10039, 10076];
    pub(super) const REPLICAS: [u64; 2] = [10074, 10052];
}

/// What became of a compare-and-set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Put {
    /// It took effect, at this sequence.
    Done(u64),
    /// The key was written last at another sequence than was expected: at this one, if the server says so; 0 is never.
    Missed(Option<u64>),
}

/// Tells a compare-and-set that missed from all else that can go wrong.
pub(crate) fn put(error: &PublishError, stage: Stage, server: &str) -> Result<Put, StoreError> {
    if error.kind() == PublishErrorKind::WrongLastSequence {
        let text = error.source().map(ToString::to_string).unwrap_or_default();
        let last = text.rsplit_once("wrong last sequence: ").map_or("", |(_, rest)| rest);
        let digits = last.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        return Ok(Put::Missed(digits.parse().ok()));
    }
    if inner_of(error).is_some_and(|inner| inner.error_code().0 == code::IN_PROCESS) {
        return Ok(Put::Missed(None));
    }
    Err(published(error, stage, server))
}

fn inner_of(error: &PublishError) -> Option<&jetstream::Error> {
    error.source().and_then(|source| source.downcast_ref())
}

fn published(error: &PublishError, stage: Stage, server: &str) -> StoreError {
    if let Some(inner) = inner_of(error) {
        return refused(inner, server);
    }
    let broken = if stage == Stage::Writing { ErrorKind::Ambiguous } else { ErrorKind::Transient };
    let (kind, advice) = match error.kind() {
        PublishErrorKind::StreamNotFound => {
            (ErrorKind::Transient, ": the bucket has no leader now, or was deleted; nothing was written")
        }
        PublishErrorKind::MaxAckPending => (ErrorKind::Throttled, ": too many requests wait for an answer"),
        PublishErrorKind::MaxPayloadExceeded => {
            (ErrorKind::Fatal, ": raise the servers' max_payload, or let nodes tell less about themselves")
        }
        PublishErrorKind::TimedOut
        | PublishErrorKind::BrokenPipe
        | PublishErrorKind::WrongLastMessageId
        | PublishErrorKind::WrongLastSequence
        | PublishErrorKind::Other => (broken, ""),
    };
    let source = error.source().map(|source| format!(": {source}")).unwrap_or_default();
    StoreError::new(kind, format!("NATS at {server}: {}{source}{advice}", error.kind()))
}

/// The server has refused a request whole: it did not happen.
pub(crate) fn refused(error: &jetstream::Error, server: &str) -> StoreError {
    let number = error.error_code().0;
    let (kind, advice) = if code::NO_ROOM.contains(&number) {
        (ErrorKind::Throttled, ": make room, or raise the limits of the account, the bucket or the servers")
    } else if code::JETSTREAM_OFF.contains(&number) {
        (ErrorKind::Fatal, ": switch JetStream on, for this account too")
    } else if number == code::NO_PEERS || code::REPLICAS.contains(&number) {
        (ErrorKind::Fatal, ": are there as many servers as `replicas` asks for?")
    } else if error.code() >= 500 {
        (ErrorKind::Transient, "")
    } else {
        (ErrorKind::Fatal, "")
    };
    StoreError::new(kind, format!("NATS at {server}: {error}{advice}"))
}

/// What came of asking for a bucket: nothing if there is none.
pub(crate) fn no_bucket(error: GetStreamError, server: &str) -> Option<StoreError> {
    let kind = error.kind();
    Some(match &kind {
        GetStreamErrorKind::JetStream(inner) if inner.error_code().0 == code::STREAM_NOT_FOUND => return None,
        GetStreamErrorKind::JetStream(inner) => refused(inner, server),
        GetStreamErrorKind::Request => unanswered("no answer about the bucket", error, server),
        GetStreamErrorKind::EmptyName | GetStreamErrorKind::InvalidStreamName => {
            StoreError::new(ErrorKind::Fatal, format!("NATS at {server}: {error}"))
        }
    })
}

fn unanswered(what: &str, error: impl std::error::Error, server: &str) -> StoreError {
    let mut text = error.to_string();
    if let Some(source) = error.source() {
        text = format!("{text}: {source}");
    }
    let what = format!("NATS at {server}: {what}: {text}: is JetStream on, and may this user use it?");
    StoreError::new(ErrorKind::Transient, what)
}

/// Why a bucket could not be made; nothing if another one was faster with it.
pub(crate) fn not_made(error: CreateStreamError, server: &str) -> Option<StoreError> {
    let kind = error.kind();
    Some(match &kind {
        CreateStreamErrorKind::JetStream(inner) if inner.error_code().0 == code::STREAM_NAME_IN_USE => return None,
        CreateStreamErrorKind::JetStream(inner) => refused(inner, server),
        CreateStreamErrorKind::TimedOut
        | CreateStreamErrorKind::JetStreamUnavailable
        | CreateStreamErrorKind::Response
        | CreateStreamErrorKind::NotFound
        | CreateStreamErrorKind::ResponseParse => unanswered("the bucket cannot be made", error, server),
        CreateStreamErrorKind::EmptyStreamName
        | CreateStreamErrorKind::InvalidStreamName
        | CreateStreamErrorKind::DomainAndExternalSet => {
            StoreError::new(ErrorKind::Fatal, format!("NATS at {server}: {error}"))
        }
    })
}

/// No connection.
pub(crate) fn no_connection(error: ConnectError, server: &str) -> StoreError {
    let mut text = error.to_string();
    if let Some(source) = error.source() {
        text = format!("{text}: {source}");
    }
    let certificate = ["certificate", "BadSignature", "fatal alert"].iter().any(|it| text.contains(it));
    let (kind, advice) = match error.kind() {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
            (ErrorKind::Fatal, ": check user, password, token, nkey or credentials")
        }
        ConnectErrorKind::ServerParse => (ErrorKind::Fatal, ""),
        ConnectErrorKind::Tls => (ErrorKind::Fatal, ": check the certificates and the host's name"),
        ConnectErrorKind::Io | ConnectErrorKind::Dns | ConnectErrorKind::TimedOut | ConnectErrorKind::MaxReconnects
            if certificate =>
        {
            (ErrorKind::Fatal, ": check the certificates and the host's name")
        }
        ConnectErrorKind::Io | ConnectErrorKind::Dns | ConnectErrorKind::TimedOut | ConnectErrorKind::MaxReconnects => {
            (ErrorKind::Transient, ": is it a NATS server, and is it up?")
        }
    };
    StoreError::new(kind, format!("NATS at {server}: {text}{advice}")).with_source(error)
}

/// No answer in time.
pub(crate) fn timed_out(stage: Stage, server: &str, after: Duration) -> StoreError {
    let (kind, what) = match stage {
        Stage::Connecting => (ErrorKind::Transient, "no connection"),
        Stage::Reading => (ErrorKind::Transient, "no answer"),
        Stage::Writing => (ErrorKind::Ambiguous, "it may have happened: no answer"),
    };
    StoreError::new(kind, format!("NATS at {server}: {what} within {after:?}"))
}

/// The session does not live.
pub(crate) fn lost() -> StoreError {
    StoreError::new(ErrorKind::Lost, "the session does not live: open a new one")
}

/// The data cannot be read: not what this release writes.
pub(crate) fn damaged(what: &str) -> StoreError {
    let what = format!(
        "{what} in NATS cannot be read: something else has written into this bucket; use another cluster name or prefix"
    );
    StoreError::new(ErrorKind::Fatal, what)
}

/// The same error once more, for another caller.
pub(crate) fn again(error: &StoreError) -> StoreError {
    StoreError::new(error.kind(), error.message())
}
