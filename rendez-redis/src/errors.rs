//! What an error of the client or the server means to the caller.

use redis::RedisError;
use rendez_core::{ErrorKind, StoreError};

/// Whether the request that failed was on its way, so that it may have happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Connecting,
    Requesting,
}

/// The codes that servers answer when nothing has happened and it may on another try.
const TRANSIENT: [&str; 11] = [
    "LOADING",
    "READONLY",
    "NOSCRIPT",
    "MASTERDOWN",
    "MOVED",
    "ASK",
    "TRYAGAIN",
    "CLUSTERDOWN",
    "BUSY",
    "NOREPLICAS",
    "UNBLOCKED",
];
const THROTTLED: [&str; 2] = ["OOM", "MISCONF"];
const FATAL: [&str; 5] = ["NOAUTH", "WRONGPASS", "NOPERM", "WRONGTYPE", "CROSSSLOT"];

/// The kind of an error, and whether the connection is of no more use.
pub(crate) fn classify(error: &RedisError, stage: Stage) -> (ErrorKind, bool) {
    use redis::ErrorKind as K;
    let text = error.to_string();
    if let Some(code) = error.code() {
        let code = inner_code(code, &text);
        if TRANSIENT.contains(&code) {
            // Another server may be the right one now.
            return (ErrorKind::Transient, matches!(code, "READONLY" | "MASTERDOWN" | "LOADING"));
        }
        if THROTTLED.contains(&code) {
            return (ErrorKind::Throttled, false);
        }
        if text.contains("max number of clients") {
            return (ErrorKind::Throttled, true);
        }
        return (ErrorKind::Fatal, FATAL.contains(&code));
    }
    let kind = match error.kind() {
        K::AuthenticationFailed | K::InvalidClientConfig | K::EmptySentinelList | K::RESP3NotSupported => {
            ErrorKind::Fatal
        }
        K::Parse | K::UnexpectedReturnType | K::Client if stage == Stage::Connecting => ErrorKind::Fatal,
        K::MasterNameNotFoundBySentinel | K::NoValidReplicasFoundBySentinel | K::ClusterConnectionNotFound => {
            ErrorKind::Transient
        }
        _ if stage == Stage::Connecting && is_certificate(&text) => ErrorKind::Fatal,
        _ if stage == Stage::Connecting || error.is_connection_refusal() => ErrorKind::Transient,
        _ => ErrorKind::Ambiguous,
    };
    (kind, true)
}

/// The TLS library's errors come as text only.
fn is_certificate(text: &str) -> bool {
    text.contains("certificate") || text.contains("received fatal alert")
}

/// Older servers wrap what went wrong inside a script into an `ERR` of their own.
fn inner_code<'a>(code: &'a str, text: &str) -> &'a str {
    if code != "ERR" {
        return code;
    }
    let wrapped = |known: &&&str| text.contains(&format!("-{known} ")) || text.contains(&format!(": {known} "));
    if text.contains("OOM command not allowed") {
        return "OOM";
    }
    if text.contains("Write commands are not allowed after") || !text.contains("script") {
        return code;
    }
    TRANSIENT.iter().chain(&THROTTLED).chain(&FATAL).find(wrapped).copied().unwrap_or(code)
}

/// The error for the caller, and whether the connection is of no more use.
pub(crate) fn explain(error: RedisError, stage: Stage, server: &str) -> (StoreError, bool) {
    let (kind, unusable) = classify(&error, stage);
    let what = match stage {
        Stage::Connecting if error.kind() == redis::ErrorKind::Parse => {
            "the server does not speak the Redis protocol".to_owned()
        }
        Stage::Connecting if error.is_timeout() => "no answer in time: is it a Redis server, and is it up?".to_owned(),
        Stage::Connecting if error.is_connection_dropped() && !error.is_connection_refusal() => {
            format!("it closed the connection ({error}): is it a Redis server, and does it want TLS?")
        }
        Stage::Connecting | Stage::Requesting => error.to_string(),
    };
    let advice = match (kind, error.code().unwrap_or_default()) {
        (ErrorKind::Fatal, "NOAUTH" | "WRONGPASS") => ": check user and password",
        (ErrorKind::Fatal, "NOPERM") => ": give the user the rights that docs/stores/redis.md lists",
        (ErrorKind::Throttled, "OOM") => ": the server's memory is full, raise maxmemory",
        (ErrorKind::Throttled, "MISCONF") => ": the server cannot write to its disk",
        (ErrorKind::Fatal, "WRONGTYPE") => ": a key with the cluster's prefix is not rendez's, choose another prefix",
        _ if error.kind() == redis::ErrorKind::AuthenticationFailed => ": check user and password",
        _ => "",
    };
    let message = format!("Redis at {server}: {what}{advice}");
    (StoreError::new(kind, message).with_source(error), unusable)
}

/// No answer in time.
pub(crate) fn timed_out(stage: Stage, server: &str, after: std::time::Duration) -> StoreError {
    match stage {
        Stage::Connecting => StoreError::new(
            ErrorKind::Transient,
            format!("Redis at {server}: no connection within {after:?}: is it a Redis server, and is it up?"),
        ),
        Stage::Requesting => {
            StoreError::new(ErrorKind::Ambiguous, format!("Redis at {server}: no answer within {after:?}"))
        }
    }
}
