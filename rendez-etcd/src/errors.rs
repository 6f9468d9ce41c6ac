//! What an error of the client or the server means to the caller.

use std::error::Error as _;
use std::time::Duration;

use etcd_client::Error;
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

/// The status codes of gRPC that mean something here.
mod code {
    pub(super) const CANCELLED: i32 = 1;
    pub(super) const UNKNOWN: i32 = 2;
    pub(super) const INVALID_ARGUMENT: i32 = 3;
    pub(super) const DEADLINE_EXCEEDED: i32 = 4;
    pub(super) const NOT_FOUND: i32 = 5;
    pub(super) const PERMISSION_DENIED: i32 = 7;
    pub(super) const RESOURCE_EXHAUSTED: i32 = 8;
    pub(super) const FAILED_PRECONDITION: i32 = 9;
    pub(super) const OUT_OF_RANGE: i32 = 11;
    pub(super) const UNIMPLEMENTED: i32 = 12;
    pub(super) const INTERNAL: i32 = 13;
    pub(super) const UNAVAILABLE: i32 = 14;
    pub(super) const UNAUTHENTICATED: i32 = 16;
}

/// What the server or the transport says, with what lies beneath it.
fn text(error: &Error) -> String {
    let (mut text, mut source) = match error {
        Error::GRpcStatus(status) => (status.message().to_owned(), status.source()),
        other => (other.to_string(), other.source()),
    };
    if let Error::TransportError(inner) = error {
        source = inner.source();
    }
    // A chain of causes is short; this keeps it so.
    for _ in 0..8 {
        let Some(cause) = source else { break };
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

fn grpc_code(error: &Error) -> Option<i32> {
    match error {
        Error::GRpcStatus(status) => Some(status.code() as i32),
        _ => None,
    }
}

/// The lease that a request names does not exist.
pub(crate) fn is_no_lease(error: &Error) -> bool {
    grpc_code(error) == Some(code::NOT_FOUND) && text(error).contains("lease not found")
}

/// There is a lease of that name already.
pub(crate) fn is_lease_taken(error: &Error) -> bool {
    grpc_code(error) == Some(code::FAILED_PRECONDITION) && text(error).contains("lease already exists")
}

/// The history before the revision that was asked for is gone.
pub(crate) fn is_compacted(error: &Error) -> bool {
    grpc_code(error) == Some(code::OUT_OF_RANGE)
}

/// Nothing was sent: nobody took the connection.
fn was_not_sent(text: &str) -> bool {
    ["tcp connect error", "dns error", "Connection refused", "no leader", "not capable"]
        .iter()
        .any(|it| text.contains(it))
}

/// The server's certificate, or ours, was not taken.
fn is_certificate(text: &str) -> bool {
    text.contains("certificate") || text.contains("received fatal alert") || text.contains("BadSignature")
}

fn was_closed(text: &str) -> bool {
    ["connection closed", "broken pipe", "Broken pipe", "reset by peer", "unexpected EOF"]
        .iter()
        .any(|it| text.contains(it))
}

fn speaks_no_grpc(text: &str) -> bool {
    ["frame with invalid size", "invalid preface", "mapped from HTTP status", "compression flag", "corrupt"]
        .iter()
        .any(|it| text.contains(it))
}

/// The kind of an error, and what the user can do.
fn classify(error: &Error, text: &str, stage: Stage) -> (ErrorKind, &'static str) {
    let broken = match stage {
        Stage::Connecting | Stage::Reading => ErrorKind::Transient,
        Stage::Writing if was_not_sent(text) => ErrorKind::Transient,
        Stage::Writing => ErrorKind::Ambiguous,
    };
    if is_certificate(text) {
        return (ErrorKind::Fatal, ": check the certificates and the host's name");
    }
    if stage == Stage::Connecting && speaks_no_grpc(text) {
        return (ErrorKind::Fatal, ": is it an etcd server, and its port for clients?");
    }
    if stage == Stage::Connecting && was_closed(text) {
        return (broken, ": is it an etcd server, and does it want TLS or a client's certificate?");
    }
    let Some(code) = grpc_code(error) else {
        return match error {
            Error::InvalidArgs(_) | Error::InvalidUri(_) | Error::InvalidMetadataValue(_) => (ErrorKind::Fatal, ""),
            _ => (broken, ""),
        };
    };
    match code {
        code::RESOURCE_EXHAUSTED if text.contains("space exceeded") => {
            (ErrorKind::Throttled, ": the database has reached its quota; compact, defragment and disarm the alarm")
        }
        code::RESOURCE_EXHAUSTED if text.contains("too many requests") => (ErrorKind::Throttled, ""),
        code::RESOURCE_EXHAUSTED => (ErrorKind::Fatal, ""),
        code::PERMISSION_DENIED => (ErrorKind::Fatal, ": give the user the rights that docs/stores/etcd.md lists"),
        code::UNAUTHENTICATED if stage == Stage::Connecting => (ErrorKind::Fatal, ": check user and password"),
        // The client has logged in again already, and was refused again: another member may know better.
        code::UNAUTHENTICATED => (ErrorKind::Transient, ": the login has expired"),
        code::INVALID_ARGUMENT if text.contains("auth store is old") => (ErrorKind::Transient, ""),
        code::INVALID_ARGUMENT if text.contains("authentication failed") => {
            (ErrorKind::Fatal, ": check user and password")
        }
        code::INVALID_ARGUMENT if text.contains("user name is empty") => {
            (ErrorKind::Fatal, ": the server wants a user and a password")
        }
        code::INVALID_ARGUMENT if text.contains("too many operations") => {
            (ErrorKind::Fatal, ": set the server's --max-txn-ops to 128, its default, or more")
        }
        // A server that was just set up anew may get its users in a moment.
        code::FAILED_PRECONDITION if text.contains("authentication is not enabled") => {
            (ErrorKind::Transient, ": the server has no users; set them up, or leave user and password out")
        }
        code::INVALID_ARGUMENT | code::FAILED_PRECONDITION | code::NOT_FOUND | code::OUT_OF_RANGE => {
            (ErrorKind::Fatal, "")
        }
        code::UNIMPLEMENTED => (ErrorKind::Fatal, ": is it an etcd server of version 3.4 or newer?"),
        code::UNKNOWN | code::INTERNAL if stage == Stage::Connecting && text.contains("protocol error") => {
            (ErrorKind::Fatal, ": is it an etcd server, and its port for clients?")
        }
        code::UNAVAILABLE | code::DEADLINE_EXCEEDED | code::CANCELLED | code::UNKNOWN | code::INTERNAL => (broken, ""),
        _ => (broken, ""),
    }
}

/// The error for the caller.
pub(crate) fn explain(error: Error, stage: Stage, server: &str) -> StoreError {
    let what = text(&error);
    let (kind, advice) = classify(&error, &what, stage);
    StoreError::new(kind, format!("etcd at {server}: {what}{advice}")).with_source(error)
}

/// No answer in time.
pub(crate) fn timed_out(stage: Stage, server: &str, after: Duration) -> StoreError {
    match stage {
        Stage::Connecting => StoreError::new(
            ErrorKind::Transient,
            format!("etcd at {server}: no connection within {after:?}: is it an etcd server, and is it up?"),
        ),
        Stage::Reading => {
            StoreError::new(ErrorKind::Transient, format!("etcd at {server}: no answer within {after:?}"))
        }
        Stage::Writing => StoreError::new(
            ErrorKind::Ambiguous,
            format!("etcd at {server}: no answer within {after:?}: it may have happened"),
        ),
    }
}

/// The session does not live.
pub(crate) fn lost() -> StoreError {
    StoreError::new(ErrorKind::Lost, "the session does not live: open a new one")
}

/// The data cannot be read: not what this release writes.
pub(crate) fn damaged(what: &str) -> StoreError {
    StoreError::new(
        ErrorKind::Fatal,
        format!("{what} in etcd cannot be read: something else has written below this prefix; use another prefix"),
    )
}

/// The same error once more, for another caller.
pub(crate) fn again(error: &StoreError) -> StoreError {
    StoreError::new(error.kind(), error.message())
}
