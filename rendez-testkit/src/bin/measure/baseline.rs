//! What the machine can do by itself: nothing that is built on it can be faster.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rendez_testkit::measure::{Failure, Measurement, Samples};
use rendez_testkit::records::{Record, RecordKind};
use rendez_testkit::servers::RedisServer;
use rendez_testkit::{clock, probe};

static CHILD_START: OnceLock<Duration> = OnceLock::new();

/// The median that [`ChildStart`] measured in this run.
pub(crate) fn child_start() -> Result<Duration, Failure> {
    Ok(*CHILD_START.get().ok_or("the bare start of a child was not measured")?)
}

/// From the start of a child process to the first thing that it does.
pub(crate) struct ChildStart;

#[async_trait]
impl Measurement for ChildStart {
    fn name(&self) -> &'static str {
        "child-start"
    }

    fn about(&self) -> &'static str {
        "rendez-probe, from before its start to its begin record"
    }

    fn is_baseline(&self) -> bool {
        true
    }

    async fn run(&self) -> Result<Samples, Failure> {
        let samples = tokio::task::spawn_blocking(child_starts).await??;
        let median = Duration::try_from_secs_f64(samples.quantile(0.5).unwrap_or_default())?;
        CHILD_START.get_or_init(|| median);
        Ok(samples)
    }
}

fn child_starts() -> Result<Samples, Failure> {
    const STARTS: usize = 100;
    let program = probe::path()?;
    let folder = tempfile::tempdir()?;
    let mut times = Vec::new();
    for start in 0..STARTS {
        let file = folder.path().join(start.to_string());
        let mut child = Command::new(&program);
        child.arg(&file).args(["--exit-after-ms", "0"]).stdin(Stdio::null());
        child.env("RENDEZ_SLOT", "measure/0").env("RENDEZ_TOKEN", "1").env("RENDEZ_NODE", "measure");
        let before = clock::now();
        let status = child.status()?;
        if !status.success() {
            return Err(format!("{} ended with {status}", program.display()).into());
        }
        // The record tells its own time, so the end of the child does not count.
        let text = std::fs::read_to_string(&file)?;
        let first: Record = text.lines().next().ok_or("no record")?.parse()?;
        if first.kind != RecordKind::Begin {
            return Err(format!("{first} is no begin").into());
        }
        times.push(first.at.since(before));
    }
    Ok(Samples::times(times))
}

/// One request and its answer, without a client library.
pub(crate) struct RedisRoundTrip;

#[async_trait]
impl Measurement for RedisRoundTrip {
    fn name(&self) -> &'static str {
        "redis-round-trip"
    }

    fn about(&self) -> &'static str {
        "PING through a plain TCP socket, one at a time"
    }

    fn is_baseline(&self) -> bool {
        true
    }

    async fn run(&self) -> Result<Samples, Failure> {
        let server = RedisServer::builder().start().await?;
        let addr = server.addr()?;
        tokio::task::spawn_blocking(move || redis_round_trips(addr)).await?
    }
}

fn redis_round_trips(addr: SocketAddr) -> Result<Samples, Failure> {
    const WARM_UP: usize = 200;
    const ROUND_TRIPS: usize = 2000;
    const ANSWER: &[u8] = b"+PONG\r\n";
    let mut stream = TcpStream::connect(addr)?;
    stream.set_nodelay(true)?;
    let mut times = Vec::new();
    let mut answer = [0; ANSWER.len()];
    for _ in 0..WARM_UP + ROUND_TRIPS {
        let start = Instant::now();
        stream.write_all(b"PING\r\n")?;
        stream.read_exact(&mut answer)?;
        times.push(start.elapsed());
        if answer != ANSWER {
            return Err(format!("answered {:?}", String::from_utf8_lossy(&answer)).into());
        }
    }
    Ok(Samples::times(times.split_off(WARM_UP)))
}
