//! What an error of the client or the API server means to the caller.

use std::error::Error as _;
use std::time::Duration;

use kube::Error;
use kube::core::Status;
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

/// The longest that a server's wish to be left alone is heeded.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(10);

/// Why a request was not carried out.
#[derive(Debug)]
pub(crate) enum Wrong {
    /// There is no such object.
    NotFound,
    /// The object is another, or another version, than was named; or it is there already.
    Conflict,
    /// The versions that were asked for are forgotten, or were never reached.
    Gone(StoreError),
    /// What the caller is told.
    Other(StoreError),
}

impl Wrong {
    /// For requests that name no object: the error for the caller.
    pub(crate) fn unexpected(self) -> StoreError {
        match self {
            Self::NotFound => StoreError::new(ErrorKind::Transient, "a Lease is gone that was there just now"),
            Self::Conflict => StoreError::new(ErrorKind::Transient, "a Lease was changed just now"),
            Self::Gone(error) | Self::Other(error) => error,
        }
    }
}

/// What the server or the transport says, with what lies beneath it.
fn text(error: &Error) -> String {
    let mut text = match error {
        Error::Api(status) => return format!("{} ({} {})", status.message, status.code, status.reason),
        other => other.to_string(),
    };
    let mut source = error.source();
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

/// Nothing was sent: nobody took the connection.
fn was_not_sent(text: &str) -> bool {
    ["(Connect)", "tcp connect error", "dns error", "Connection refused"].iter().any(|it| text.contains(it))
}

fn is_certificate(text: &str) -> bool {
    ["certificate", "received fatal alert", "BadSignature"].iter().any(|it| text.contains(it))
}

fn broken(stage: Stage, sent: bool) -> ErrorKind {
    match stage {
        Stage::Connecting | Stage::Reading => ErrorKind::Transient,
        Stage::Writing if !sent => ErrorKind::Transient,
        Stage::Writing => ErrorKind::Ambiguous,
    }
}

const RIGHTS: &str = ": give the user the rights that docs/stores/kubernetes.md lists";

/// The kind of a status that is no answer, and what the user can do.
fn classify(status: &Status, stage: Stage) -> (ErrorKind, &'static str) {
    let message = &status.message;
    match status.code {
        401 => (ErrorKind::Fatal, ": check the credentials"),
        403 if message.contains("exceeded quota") => (ErrorKind::Throttled, ": raise the namespace's quota of Leases"),
        403 => (ErrorKind::Fatal, RIGHTS),
        429 => (ErrorKind::Throttled, ""),
        500 if message.contains("space exceeded") => (ErrorKind::Throttled, ": the API server's etcd is full"),
        // In front of the server, or the server itself before it has asked its storage.
        502 | 503 | 500 | 504 => (broken(stage, true), ""),
        404 => (ErrorKind::Fatal, ": is there such a namespace, and is it a Kubernetes API server?"),
        400 | 405 | 406 | 409 | 410 | 413 | 415 | 422 => (ErrorKind::Fatal, ""),
        code if code >= 500 => (broken(stage, true), ""),
        _ => (ErrorKind::Fatal, ": is it a Kubernetes API server?"),
    }
}

fn retry_after(status: &Status) -> Option<Duration> {
    let seconds = status.details.as_ref().map(|details| details.retry_after_seconds).filter(|seconds| *seconds > 0)?;
    Some(Duration::from_secs(u64::from(seconds)).min(RETRY_AFTER_MAX))
}

/// Sorts an error: what is an answer to a compare-and-set, and what the caller is to be told.
pub(crate) fn sort(error: Error, stage: Stage, server: &str) -> Wrong {
    if let Error::Api(status) = &error {
        let said = |kind, advice: &str| {
            let mut error = StoreError::new(kind, format!("Kubernetes at {server}: {}{advice}", text(&error)));
            if let Some(after) = retry_after(status) {
                error = error.with_retry_after(after);
            }
            error
        };
        return match status.code {
            404 if status.message.contains("namespaces \"") => {
                Wrong::Other(said(ErrorKind::Fatal, ": create the namespace"))
            }
            404 if status.is_not_found() && !status.message.contains("could not find the requested resource") => {
                Wrong::NotFound
            }
            409 => Wrong::Conflict,
            410 => Wrong::Gone(said(ErrorKind::Transient, "")),
            504 if status.message.contains("Too large resource version") => Wrong::Gone(said(ErrorKind::Transient, "")),
            _ => {
                let (kind, advice) = classify(status, stage);
                Wrong::Other(said(kind, advice))
            }
        };
    }
    let what = text(&error);
    let (kind, advice) = match &error {
        Error::Auth(_) | Error::TlsRequired | Error::InferConfig(_) | Error::InferKubeconfig(_) => {
            (ErrorKind::Fatal, ": check the kubeconfig file")
        }
        Error::SerdeError(_) | Error::FromUtf8(_) => (ErrorKind::Fatal, ": is it a Kubernetes API server?"),
        Error::BuildRequest(_) | Error::HttpError(_) => (ErrorKind::Fatal, ""),
        _ if is_certificate(&what) => (ErrorKind::Fatal, ": check the certificates and the host's name"),
        _ => (broken(stage, !was_not_sent(&what)), ""),
    };
    Wrong::Other(StoreError::new(kind, format!("Kubernetes at {server}: {what}{advice}")).with_source(error))
}

/// No answer in time.
pub(crate) fn timed_out(stage: Stage, server: &str, after: Duration) -> StoreError {
    let (kind, more) = match stage {
        Stage::Connecting => (ErrorKind::Transient, ": is it a Kubernetes API server, and is it up?"),
        Stage::Reading => (ErrorKind::Transient, ""),
        Stage::Writing => (ErrorKind::Ambiguous, ": it may have happened"),
    };
    StoreError::new(kind, format!("Kubernetes at {server}: no answer within {after:?}{more}"))
}

/// The session does not live.
pub(crate) fn lost() -> StoreError {
    StoreError::new(ErrorKind::Lost, "the session does not live: open a new one")
}

/// The data cannot be read: not what this release writes.
pub(crate) fn damaged(lease: &str, what: &str) -> StoreError {
    StoreError::new(
        ErrorKind::Fatal,
        format!(
            "the Lease {lease} cannot be read ({what}): something else has written it; delete it, or use another \
             cluster name"
        ),
    )
}

/// The same error once more, for another caller.
pub(crate) fn again(error: &StoreError) -> StoreError {
    let same = StoreError::new(error.kind(), error.message());
    match error.retry_after() {
        Some(after) => same.with_retry_after(after),
        None => same,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(code: u16, message: &str, stage: Stage) -> Option<ErrorKind> {
        let status = Status { code, message: message.to_owned(), ..Status::default() };
        match sort(Error::Api(Box::new(status)), stage, "x") {
            Wrong::Other(error) => Some(error.kind()),
            Wrong::NotFound | Wrong::Conflict | Wrong::Gone(_) => None,
        }
    }

    #[test]
    fn a_status_says_what_to_do_next() {
        for (code, message, reading, writing) in [
            (401, "Unauthorized", ErrorKind::Fatal, ErrorKind::Fatal),
            (403, "forbidden", ErrorKind::Fatal, ErrorKind::Fatal),
            (403, "exceeded quota: x", ErrorKind::Throttled, ErrorKind::Throttled),
            (422, "invalid", ErrorKind::Fatal, ErrorKind::Fatal),
            (429, "too many requests", ErrorKind::Throttled, ErrorKind::Throttled),
            (500, "etcdserver: leader changed", ErrorKind::Transient, ErrorKind::Ambiguous),
            (500, "etcdserver: mvcc: database space exceeded", ErrorKind::Throttled, ErrorKind::Throttled),
            (503, "unavailable", ErrorKind::Transient, ErrorKind::Ambiguous),
            (504, "request did not complete", ErrorKind::Transient, ErrorKind::Ambiguous),
            (404, "namespaces \"x\" not found", ErrorKind::Fatal, ErrorKind::Fatal),
        ] {
            assert_eq!(told(code, message, Stage::Reading), Some(reading), "{code} {message}");
            assert_eq!(told(code, message, Stage::Writing), Some(writing), "{code} {message}");
        }
        for (code, reason) in [(404, "NotFound"), (409, "Conflict"), (410, "Expired")] {
            let status = Status { code, reason: reason.to_owned(), ..Status::default() };
            let sorted = sort(Error::Api(Box::new(status)), Stage::Writing, "x");
            assert!(!matches!(sorted, Wrong::Other(_)), "{code} is an answer");
        }
    }

    #[test]
    fn a_wish_to_be_left_alone_is_passed_on_within_bounds() {
        for (seconds, expected) in [(0, None), (3, Some(Duration::from_secs(3))), (4000, Some(RETRY_AFTER_MAX))] {
            let details = kube::core::response::StatusDetails {
                name: String::new(),
                group: String::new(),
                kind: String::new(),
                uid: String::new(),
                causes: Vec::new(),
                retry_after_seconds: seconds,
            };
            let status = Status { code: 429, details: Some(details), ..Status::default() };
            let Wrong::Other(error) = sort(Error::Api(Box::new(status)), Stage::Reading, "x") else { panic!() };
            assert_eq!(error.retry_after(), expected);
        }
    }
}
