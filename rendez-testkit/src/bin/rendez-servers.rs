//! Starts throw-away servers, prints where they are, and keeps them until it is ended itself.
//!
//! With one name: the URL, then the process ids, a line each, then an empty line. With several, a line
//! `RENDEZ_TEST_NAME_URL=url` each (`redis-cluster` becomes `REDIS_CLUSTER`), ready for the environment of tests, then
//! an empty line.

use std::process::ExitCode;

use rendez_testkit::servers::{
    EtcdCluster, EtcdServer, PostgresServer, RedisCluster, RedisSentinelSet, RedisServer, ServerError,
};
use tokio::signal::unix::{SignalKind, signal};

const USAGE: &str = "usage: rendez-servers NAME...\n\
                     names: redis, redis-sentinel, redis-cluster, etcd, etcd-cluster, postgres";

#[derive(Debug, Clone, Copy)]
enum Name {
    Redis,
    RedisSentinel,
    RedisCluster,
    Etcd,
    EtcdCluster,
    Postgres,
}

/// Some servers that run.
enum Running {
    Redis(RedisServer),
    RedisSentinel(RedisSentinelSet),
    RedisCluster(RedisCluster),
    Etcd(EtcdServer),
    EtcdCluster(EtcdCluster),
    Postgres(PostgresServer),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let names: Option<Vec<Name>> = words.iter().map(|word| Name::parse(word)).collect();
    let Some(names) = names.filter(|names| !names.is_empty()) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match run(&words, &names).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rendez-servers: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(words: &[String], names: &[Name]) -> Result<(), ServerError> {
    // Before anything runs, so that no signal finds servers and no handler.
    let handler = |kind| signal(kind).map_err(|source| ServerError::Io { what: "wait for signals".to_owned(), source });
    let (mut interrupt, mut terminate) = (handler(SignalKind::interrupt())?, handler(SignalKind::terminate())?);
    let mut running = Vec::new();
    for (word, name) in words.iter().zip(names) {
        let one = name.start().await?;
        match names {
            [_] => {
                println!("{}", one.url());
                for id in one.process_ids()? {
                    println!("{id}");
                }
            }
            _ => println!("RENDEZ_TEST_{}_URL={}", word.replace('-', "_").to_uppercase(), one.url()),
        }
        running.push(one);
    }
    println!();
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

impl Name {
    fn parse(word: &str) -> Option<Self> {
        match word {
            "redis" => Some(Self::Redis),
            "redis-sentinel" => Some(Self::RedisSentinel),
            "redis-cluster" => Some(Self::RedisCluster),
            "etcd" => Some(Self::Etcd),
            "etcd-cluster" => Some(Self::EtcdCluster),
            "postgres" => Some(Self::Postgres),
            _ => None,
        }
    }

    async fn start(self) -> Result<Running, ServerError> {
        Ok(match self {
            Self::Redis => Running::Redis(RedisServer::builder().start().await?),
            Self::RedisSentinel => Running::RedisSentinel(RedisSentinelSet::builder().start().await?),
            Self::RedisCluster => Running::RedisCluster(RedisCluster::builder().start().await?),
            Self::Etcd => Running::Etcd(EtcdServer::builder().start().await?),
            Self::EtcdCluster => Running::EtcdCluster(EtcdCluster::builder().start().await?),
            Self::Postgres => Running::Postgres(PostgresServer::builder().start().await?),
        })
    }
}

impl Running {
    fn url(&self) -> String {
        match self {
            Self::Redis(server) => server.url(),
            Self::RedisSentinel(set) => set.url(),
            Self::RedisCluster(cluster) => cluster.url(),
            Self::Etcd(server) => server.url(),
            Self::EtcdCluster(cluster) => cluster.url(),
            Self::Postgres(server) => server.url(),
        }
    }

    fn process_ids(&self) -> Result<Vec<u32>, ServerError> {
        match self {
            Self::Redis(server) => Ok(vec![server.process_id()?]),
            Self::RedisSentinel(set) => set.servers.iter().map(RedisServer::process_id).collect(),
            Self::RedisCluster(cluster) => cluster.servers.iter().map(RedisServer::process_id).collect(),
            Self::Etcd(server) => Ok(vec![server.process_id()?]),
            Self::EtcdCluster(cluster) => cluster.members.iter().map(EtcdServer::process_id).collect(),
            Self::Postgres(server) => Ok(vec![server.process_id()?]),
        }
    }
}
