//! Starts throw-away servers, prints where they are, and keeps them until it is ended itself.
//!
//! With one name: the URL, then the process ids, a line each, then an empty line. With several, a line
//! `RENDEZ_TEST_NAME_URL=url` each (`redis-cluster` becomes `REDIS_CLUSTER`), ready for the environment of tests, then
//! an empty line.
//!
//! It is ended by an interrupt or SIGTERM, with `--until-end-of-input` also by the end of its standard input: whoever
//! holds the other end cannot leave servers behind, however it ends itself.

use std::process::ExitCode;

use rendez_testkit::servers::{
    EtcdCluster, EtcdServer, KubernetesServer, NatsCluster, NatsServer, PostgresServer, RedisCluster, RedisSentinelSet,
    RedisServer, ServerError,
};
use tokio::signal::unix::{SignalKind, signal};

const USAGE: &str = "usage: rendez-servers [--until-end-of-input] NAME...\n\
                     names: redis, redis-sentinel, redis-cluster, etcd, etcd-cluster, postgres, nats, nats-cluster,\n\
                     kubernetes (the Lease API alone, in this program)";

#[derive(Debug, Clone, Copy)]
enum Name {
    Redis,
    RedisSentinel,
    RedisCluster,
    Etcd,
    EtcdCluster,
    Postgres,
    Kubernetes,
    Nats,
    NatsCluster,
}

/// Some servers that run.
enum Running {
    Redis(RedisServer),
    RedisSentinel(RedisSentinelSet),
    RedisCluster(RedisCluster),
    Etcd(EtcdServer),
    EtcdCluster(EtcdCluster),
    Postgres(PostgresServer),
    Kubernetes(KubernetesServer),
    Nats(NatsServer),
    NatsCluster(NatsCluster),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    let until_end_of_input = words.first().is_some_and(|word| word == "--until-end-of-input");
    if until_end_of_input {
        words.remove(0);
    }
    let names: Option<Vec<Name>> = words.iter().map(|word| Name::parse(word)).collect();
    let Some(names) = names.filter(|names| !names.is_empty()) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match run(&words, &names, until_end_of_input).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rendez-servers: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(words: &[String], names: &[Name], until_end_of_input: bool) -> Result<(), ServerError> {
    // Before anything runs, so that no signal finds servers and no handler.
    let failed = |source| ServerError::Io { what: "wait for signals".to_owned(), source };
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let (end_of_input, mut input_ended) = tokio::sync::oneshot::channel();
    // Dropped when this function ends, so that without the flag the channel stays silent.
    let _silent = if until_end_of_input {
        // A thread of its own: a read of the terminal cannot be given up.
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            let _ = end_of_input.send(());
        });
        None
    } else {
        Some(end_of_input)
    };
    let keep = async {
        // All at once: most of their start is waiting.
        let starting: Vec<_> = names.iter().map(|name| tokio::spawn(name.start())).collect();
        let mut running = Vec::new();
        for (word, one) in words.iter().zip(starting) {
            let panicked = |error| ServerError::Config(format!("starting {word}: {error}"));
            let one = one.await.map_err(panicked)??;
            show(word, names.len(), &one)?;
            running.push(one);
        }
        println!();
        std::future::pending::<Result<(), ServerError>>().await
    };
    tokio::select! {
        failed = keep => failed,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
        _ = &mut input_ended => Ok(()),
    }
}

fn show(word: &str, names: usize, one: &Running) -> Result<(), ServerError> {
    if names == 1 {
        println!("{}", one.url());
        for id in one.process_ids()? {
            println!("{id}");
        }
    } else {
        println!("RENDEZ_TEST_{}_URL={}", word.replace('-', "_").to_uppercase(), one.url());
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
            "kubernetes" => Some(Self::Kubernetes),
            "nats" => Some(Self::Nats),
            "nats-cluster" => Some(Self::NatsCluster),
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
            Self::Kubernetes => Running::Kubernetes(KubernetesServer::start().await?),
            Self::Nats => Running::Nats(NatsServer::builder().start().await?),
            Self::NatsCluster => Running::NatsCluster(NatsCluster::builder().start().await?),
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
            Self::Kubernetes(server) => server.url(),
            Self::Nats(server) => server.url(),
            Self::NatsCluster(cluster) => cluster.url(),
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
            Self::Kubernetes(_) => Ok(vec![std::process::id()]),
            Self::Nats(server) => Ok(vec![server.process_id()?]),
            Self::NatsCluster(cluster) => cluster.members.iter().map(NatsServer::process_id).collect(),
        }
    }
}
