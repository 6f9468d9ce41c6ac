//! Real servers for tests: each with its own free port and its own data, gone when its handle is dropped.
//!
//! What belongs here starts, breaks and stops servers. Nothing here knows rendez: a server is spoken to by its
//! own protocol, so that a mistake in a store cannot hide behind the same mistake in its tests.
//!
//! A missing server program is an error that says what to type; it is never a silent pass.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

mod any;
mod etcd;
mod etcd_cluster;
mod guarded;
mod kubernetes;
mod nats;
mod nats_cluster;
mod pgbouncer;
mod port;
mod postgres;
mod postgres_programs;
mod program;
mod redis;
mod redis_cluster;
mod redis_sentinel;
mod resp;
mod small_disk;
mod tls;
mod wait;
mod wrong_clock;

pub use any::{AnyServer, StoreKind};
pub use etcd::{EtcdRight, EtcdServer, EtcdServerBuilder, EtcdVersion};
pub use etcd_cluster::{EtcdCluster, EtcdClusterBuilder};
pub use guarded::GuardedProcess;
pub use kubernetes::{KubernetesServer, Refusal, Verb};
pub use nats::{NatsRights, NatsServer, NatsServerBuilder, NatsVersion};
pub use nats_cluster::{NatsCluster, NatsClusterBuilder};
pub use pgbouncer::PgBouncer;
pub use port::PortLease;
pub use postgres::{PostgresServer, PostgresServerBuilder, Replication};
pub use redis::{RedisServer, RedisServerBuilder, Restart};
pub use redis_cluster::{RedisCluster, RedisClusterBuilder};
pub use redis_sentinel::{RedisSentinelSet, RedisSentinelSetBuilder, Sentinel};
pub use resp::{RespClient, RespValue};
pub use small_disk::SmallDisk;
pub use tls::TlsFiles;
pub use wait::{READY_BOUND, wait_until};

/// What to type where Redis is missing on Debian.
pub const INSTALL_REDIS: &str = "apt-get install -y redis-server redis-sentinel redis-tools";

/// What to type where etcd is missing on Debian.
pub const INSTALL_ETCD: &str = "apt-get install -y etcd-server etcd-client";
/// What to type where the newer etcd is missing: no package of Debian brings it.
pub const INSTALL_NEWER_ETCD: &str = "cargo xtask servers";
/// What to type where NATS is missing: no package of Debian brings a version that fits.
pub const INSTALL_NATS: &str = "cargo xtask servers";
/// What to type where PostgreSQL is missing on Debian.
pub const INSTALL_POSTGRES: &str = "apt-get install -y postgresql";
/// What to type where PgBouncer is missing on Debian.
pub const INSTALL_PGBOUNCER: &str = "apt-get install -y pgbouncer";
/// What to type where the library is missing that gives a server a clock of its own.
pub const INSTALL_FAKETIME: &str = "apt-get install -y faketime";

/// Why a server could not be started, broken or asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The server's program is not installed.
    #[error("the program {program} is missing: type `{install}` (or run `cargo xtask test`, which does)")]
    Missing {
        /// The program that was looked for.
        program: String,
        /// The line that installs it.
        install: &'static str,
    },
    /// The server ended when it should have started.
    #[error("{server} ended instead of starting; the end of its log:\n{log}")]
    Ended {
        /// Which server.
        server: String,
        /// The last lines that it logged.
        log: String,
    },
    /// A condition was waited for and did not come true.
    #[error("waited {waited:?} for {condition}, last seen: {seen}")]
    Timeout {
        /// What was waited for.
        condition: String,
        /// How long.
        waited: Duration,
        /// What was seen at the last look, or the end of a log.
        seen: String,
    },
    /// The server answered with an error, or with something that is no answer.
    #[error("the server answered {answer} to {request}")]
    Answer {
        /// What was asked.
        request: String,
        /// What came back.
        answer: String,
    },
    /// The server comes from the environment, so it is not ours to stop, kill or restart.
    #[error("cannot {action} the server of {variable}: unset the variable, or start an own one with the builder")]
    External {
        /// What was wanted.
        action: &'static str,
        /// The environment variable that names the server.
        variable: &'static str,
    },
    /// The wish makes no sense: the message says which and why.
    #[error("{0}")]
    Config(String),
    /// No certificate could be made.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The operating system refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The reason.
        source: io::Error,
    },
}

impl ServerError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// The full path of a program on `PATH`.
pub(crate) fn find_program(program: &str, install: &'static str) -> Result<PathBuf, ServerError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| is_executable(file))
        .ok_or_else(|| ServerError::Missing { program: program.to_owned(), install })
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// The last lines of a log, for error messages.
pub(crate) fn log_tail(log: &Path) -> String {
    const LINES_MAX: usize = 20;
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES_MAX)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compiling it is the test: everything can be awaited in a task of its own.
    #[allow(dead_code)]
    fn futures_are_send(
        server: &mut RedisServer,
        set: &mut RedisSentinelSet,
        cluster: &RedisCluster,
        etcd: &mut EtcdServer,
        postgres: &mut PostgresServer,
    ) {
        fn is_send<T: Send>(_: T) {}
        is_send(RedisServer::builder().start());
        is_send(RedisSentinelSet::builder().start());
        is_send(RedisCluster::builder().start());
        is_send(EtcdServer::builder().start());
        is_send(EtcdCluster::builder().start());
        is_send(KubernetesServer::start());
        is_send(etcd.restart(Restart::Empty));
        is_send(PostgresServer::builder().start());
        is_send(postgres.restart(Restart::Empty));
        is_send(postgres.start_replica(Replication::Synchronous));
        is_send(server.restart(Restart::Empty));
        is_send(server.start_replica());
        is_send(server.info("role"));
        is_send(set.wait_ready());
        is_send(set.wait_for_failover(0));
        is_send(set.sentinels[0].restart());
        is_send(cluster.wait_ready());
        is_send(cluster.wait_for_failover("key", 0));
    }

    #[test]
    fn a_missing_program_is_an_error_with_the_line_to_type() {
        let error = find_program("redis-server-that-nobody-has", INSTALL_REDIS).unwrap_err().to_string();
        assert!(error.contains("apt-get install -y redis-server redis-sentinel redis-tools"), "{error}");
    }
}
