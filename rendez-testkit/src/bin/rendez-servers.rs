//! Starts throw-away servers, prints their URL and their process ids, and keeps them until it is ended itself.
//!
//! `rendez-servers redis | redis-sentinel | redis-cluster`

use std::process::ExitCode;

use rendez_testkit::servers::{RedisCluster, RedisSentinelSet, RedisServer, ServerError};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["redis"] => redis().await,
        ["redis-sentinel"] => redis_sentinel().await,
        ["redis-cluster"] => redis_cluster().await,
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

async fn redis() -> Result<(), ServerError> {
    let server = RedisServer::builder().start().await?;
    show(&server.url(), std::slice::from_ref(&server))?;
    until_asked().await;
    Ok(())
}

async fn redis_sentinel() -> Result<(), ServerError> {
    let set = RedisSentinelSet::builder().start().await?;
    show(&set.url(), &set.servers)?;
    until_asked().await;
    Ok(())
}

async fn redis_cluster() -> Result<(), ServerError> {
    let cluster = RedisCluster::builder().start().await?;
    show(&cluster.url(), &cluster.servers)?;
    until_asked().await;
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

async fn until_asked() {
    let terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
    let terminated = async {
        match terminate {
            Ok(mut signal) => signal.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminated => {}
    }
}
