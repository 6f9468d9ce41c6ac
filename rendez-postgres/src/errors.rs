//! What an error of the client or the server means to the caller.

use std::error::Error as _;
use std::time::Duration;

use deadpool_postgres::PoolError;
use rendez_core::{ErrorKind, StoreError};
use tokio_postgres::Error;

/// Whether the request that failed was on its way, so that it may have happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Connecting,
    Requesting,
}

/// What to do about an error that the server has answered with. A request is one transaction, so an error means that
/// it was rolled back; only the end of the connection leaves that open.
fn of_code(code: &str, stage: Stage) -> ErrorKind {
    match code {
        // The server is being shut down, has crashed, or somebody has ended the connection.
        "57P01" | "57P02" | "57P05" if stage == Stage::Requesting => ErrorKind::Ambiguous,
        // 57P03: it is starting. 57014: a timeout of the server. 55P03: a lock. 25006: a standby. 25P03: idle too long.
        // 55000: a standby, asked for what only a primary has. 0A000: a plan that fits no more.
        "57P01" | "57P02" | "57P03" | "57P05" | "57014" | "55P03" | "25006" | "25P03" | "55000" | "0A000" => {
            ErrorKind::Transient
        }
        // The schema is gone: it is looked for, and made, before the next try.
        "42883" | "42P01" | "3F000" => ErrorKind::Transient,
        code => match code.get(..2).unwrap_or_default() {
            "40" => ErrorKind::Transient,
            "53" => ErrorKind::Throttled,
            // A pooler says so when it has lost its server, and the server for what it cannot understand.
            "08" if stage == Stage::Requesting => ErrorKind::Ambiguous,
            "08" => ErrorKind::Transient,
            "58" => ErrorKind::Transient,
            _ => ErrorKind::Fatal,
        },
    }
}

fn advice(code: &str) -> &'static str {
    match code {
        "28P01" | "28000" => ": check user, password, and what pg_hba.conf wants (TLS is spoken with sslmode=require)",
        "3D000" => ": check the database's name in the URL",
        "42501" => ": give the user the rights that docs/stores/postgres.md lists",
        "42P07" | "42710" => ": the schema holds things that are not rendez's, choose another name",
        "53100" => ": the server's disk is full",
        "53300" => ": raise max_connections, or put a pooler before the server",
        "25006" | "55000" => ": it is a standby or read-only, connect to the primary (name all servers in the URL)",
        _ => "",
    }
}

/// The error for the caller, and whether the connection is of no more use.
pub(crate) fn explain(error: Error, stage: Stage, server: &str) -> (StoreError, bool) {
    if let Some(answer) = error.as_db_error() {
        let code = answer.code().code().to_owned();
        let kind = of_code(&code, stage);
        let message = format!("PostgreSQL at {server}: {} ({code}){}", answer.message(), advice(&code));
        // After these another server, or another schema, may be there.
        let unusable = matches!(kind, ErrorKind::Ambiguous)
            || matches!(code.as_str(), "25006" | "55000" | "42883" | "42P01" | "3F000" | "0A000");
        return (StoreError::new(kind, message).with_source(error), unusable || stage == Stage::Connecting);
    }
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(deeper) = cause {
        if !text.contains(&deeper.to_string()) {
            text = format!("{text}: {deeper}");
        }
        cause = deeper.source();
    }
    let kind = match stage {
        Stage::Connecting if is_hopeless(&text) => ErrorKind::Fatal,
        Stage::Connecting => ErrorKind::Transient,
        Stage::Requesting if text.contains("serializing") || text.contains("encoding message") => ErrorKind::Fatal,
        Stage::Requesting => ErrorKind::Ambiguous,
    };
    let hint = match stage {
        Stage::Connecting if is_stranger(&text) => ": is it a PostgreSQL server?",
        Stage::Connecting if text.contains("does not support TLS") => ": leave sslmode out, or switch ssl on there",
        Stage::Connecting | Stage::Requesting => "",
    };
    (StoreError::new(kind, format!("PostgreSQL at {server}: {text}{hint}")).with_source(error), true)
}

/// The client and the TLS library tell these as text only.
fn is_hopeless(text: &str) -> bool {
    let signs = ["certificate", "received fatal alert", "TLS", "authentication error", "invalid configuration"];
    signs.iter().any(|sign| text.contains(sign)) || text.contains("unexpected message") || text.contains("parsing")
}

fn is_stranger(text: &str) -> bool {
    ["unexpected message", "parsing response", "unexpected EOF", "closed", "communicating"]
        .iter()
        .any(|sign| text.contains(sign))
}

/// No connection from the pool.
pub(crate) fn unpooled(error: PoolError, server: &str, limit: Duration) -> StoreError {
    match error {
        PoolError::Backend(error) => explain(error, Stage::Connecting, server).0,
        PoolError::Timeout(deadpool_postgres::TimeoutType::Wait) => StoreError::new(
            ErrorKind::Throttled,
            format!("PostgreSQL at {server}: all connections are busy: raise connections_max"),
        ),
        PoolError::Timeout(_) => timed_out(Stage::Connecting, server, limit),
        PoolError::Closed => {
            StoreError::new(ErrorKind::Fatal, format!("PostgreSQL at {server}: the pool of connections is closed"))
        }
        error @ (PoolError::NoRuntimeSpecified | PoolError::PostCreateHook(_)) => {
            let message = format!("PostgreSQL at {server}: the pool of connections does not work: {error}");
            StoreError::new(ErrorKind::Fatal, message).with_source(error)
        }
    }
}

/// No answer in time.
pub(crate) fn timed_out(stage: Stage, server: &str, after: Duration) -> StoreError {
    match stage {
        Stage::Connecting => StoreError::new(
            ErrorKind::Transient,
            format!("PostgreSQL at {server}: no connection within {after:?}: is it a PostgreSQL server, and is it up?"),
        ),
        Stage::Requesting => {
            StoreError::new(ErrorKind::Ambiguous, format!("PostgreSQL at {server}: no answer within {after:?}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_say_what_to_do_next() {
        for (code, connecting, requesting) in [
            ("57P01", ErrorKind::Transient, ErrorKind::Ambiguous),
            ("57P03", ErrorKind::Transient, ErrorKind::Transient),
            ("57014", ErrorKind::Transient, ErrorKind::Transient),
            ("55P03", ErrorKind::Transient, ErrorKind::Transient),
            ("40001", ErrorKind::Transient, ErrorKind::Transient),
            ("40P01", ErrorKind::Transient, ErrorKind::Transient),
            ("25006", ErrorKind::Transient, ErrorKind::Transient),
            ("53100", ErrorKind::Throttled, ErrorKind::Throttled),
            ("53300", ErrorKind::Throttled, ErrorKind::Throttled),
            ("08P01", ErrorKind::Transient, ErrorKind::Ambiguous),
            ("28P01", ErrorKind::Fatal, ErrorKind::Fatal),
            ("3D000", ErrorKind::Fatal, ErrorKind::Fatal),
            ("42501", ErrorKind::Fatal, ErrorKind::Fatal),
            ("42883", ErrorKind::Transient, ErrorKind::Transient),
            ("RZ001", ErrorKind::Fatal, ErrorKind::Fatal),
            ("XX001", ErrorKind::Fatal, ErrorKind::Fatal),
        ] {
            assert_eq!(of_code(code, Stage::Connecting), connecting, "{code}");
            assert_eq!(of_code(code, Stage::Requesting), requesting, "{code}");
        }
    }
}
