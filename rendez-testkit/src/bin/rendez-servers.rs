//! Starts throw-away servers, prints their URL and their process ids, and keeps them until it is ended itself.
//!
//! `rendez-servers redis | redis-sentinel | redis-cluster`

use std::process::ExitCode;

use rendez_testkit::servers::{RedisCluster, RedisSentinelSet, RedisServer, ServerError};
use tokio::signal::unix::{Signal, SignalKind, signal};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    // Before anything runs, so that no signal finds servers and no handler.
    let (interrupt, terminate) = match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(interrupt), Ok(terminate)) => (interrupt, terminate),
        (Err(error), _) | (_, Err(error)) => {
            eprintln!("rendez-servers: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["redis"] => redis(interrupt, terminate).await,
        ["redis-sentinel"] => redis_sentinel(interrupt, terminate).await,
        ["redis-cluster"] => redis_cluster(interrupt, terminate).await,
        _ => {
            eprintln!("usage: rendez-servers redis | redis-sentinel | redis-cluster");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rendez-servers: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn redis(interrupt: Signal, terminate: Signal) -> Result<(), ServerError> {
    let server = RedisServer::builder().start().await?;
    show(&server.url(), std::slice::from_ref(&server))?;
    either(interrupt, terminate).await;
    Ok(())
}

async fn redis_sentinel(interrupt: Signal, terminate: Signal) -> Result<(), ServerError> {
    let set = RedisSentinelSet::builder().start().await?;
    show(&set.url(), &set.servers)?;
    either(interrupt, terminate).await;
    Ok(())
}

async fn redis_cluster(interrupt: Signal, terminate: Signal) -> Result<(), ServerError> {
    let cluster = RedisCluster::builder().start().await?;
    show(&cluster.url(), &cluster.servers)?;
    either(interrupt, terminate).await;
    Ok(())
}

fn show(url: &str, servers: &[RedisServer]) -> Result<(), ServerError> {
    println!("{url}");
    for server in servers {
        println!("{}", server.process_id()?);
    }
    println!();
    Ok(())
}

async fn either(mut one: Signal, mut other: Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}
