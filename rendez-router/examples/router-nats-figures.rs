//! Requests a second and their times over NATS, beside bare requests over the same server, in turns within one run.
//! It starts `nats-server` itself.
//!
//! `cargo run --release -p rendez-router --features nats --example router-nats-figures`

use std::error::Error;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use rendez_router::{BoxError, Client, Envelope, NatsTransport, Node, RequestContext, async_nats};
use rendez_testkit::servers::NatsServer;

/// Many short ones: what else the machine does then falls on both.
const ROUNDS: usize = 41;
const LASTS: Duration = Duration::from_millis(250);
const BYTES: usize = 128;

#[derive(Clone)]
enum Way {
    Bare(async_nats::Client),
    Key(Client),
}

impl Way {
    async fn ask(&self, data: Bytes) -> Result<Bytes, BoxError> {
        match self {
            Self::Bare(nats) => Ok(nats.request("bare", data).await?.payload),
            Self::Key(client) => Ok(client.request_key("user-123", "Get", data).await?),
        }
    }
}

fn median(numbers: impl Iterator<Item = f64>) -> f64 {
    let mut numbers: Vec<f64> = numbers.collect();
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

async fn echo(_: RequestContext, request: Envelope) -> Result<Bytes, BoxError> {
    Ok(request.into_data())
}

/// Requests a second, and all times.
async fn measure(way: &Way, callers: usize) -> Result<(f64, Vec<Duration>), BoxError> {
    let begun = Instant::now();
    let tasks = (0..callers).map(|_| {
        let way = way.clone();
        tokio::spawn(async move {
            let (data, mut times) = (Bytes::from(vec![7; BYTES]), Vec::new());
            while begun.elapsed() < LASTS {
                let one = Instant::now();
                way.ask(data.clone()).await?;
                times.push(one.elapsed());
            }
            Ok::<_, BoxError>(times)
        })
    });
    let mut times = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        times.extend(task.await??);
    }
    times.sort_unstable();
    Ok((times.len() as f64 / begun.elapsed().as_secs_f64(), times))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let server = NatsServer::start().await?;
    let connect = || async_nats::connect(server.url());
    let mut bare = connect().await?.subscribe("bare").await?;
    let answering = connect().await?;
    tokio::spawn(async move {
        while let Some(message) = bare.next().await {
            let answering = answering.clone();
            // As the node does, and as whoever does more than echo must.
            tokio::spawn(async move {
                if let Some(reply) = message.reply {
                    // Whoever asked may have gone.
                    let _ = answering.publish(reply, message.payload).await;
                }
            });
        }
    });
    let serving = NatsTransport::new(connect().await?, "bench")?;
    let node = Node::builder(serving).shards(0..16).handler(echo).start().await?;
    let asking = connect().await?;
    let client = Client::builder(NatsTransport::new(asking.clone(), "bench")?, 16).build()?;
    let ways = [("bare request and reply", Way::Bare(asking)), ("client, by key", Way::Key(client))];
    for (_, way) in &ways {
        while way.ask(Bytes::new()).await.is_err() {}
    }
    for callers in [1, 64] {
        let mut found: [Vec<(f64, Vec<Duration>)>; 2] = Default::default();
        for _ in 0..ROUNDS {
            for (way, found) in ways.iter().zip(&mut found) {
                found.push(measure(&way.1, callers).await?);
            }
        }
        println!("{callers} caller(s), {BYTES} bytes; the medians of {ROUNDS} rounds of {LASTS:?}");
        let [bare, key] = &found;
        let ratios = bare.iter().zip(key).map(|(bare, key)| key.0 / bare.0);
        let ratio = median(ratios);
        for ((name, _), rounds) in ways.iter().zip(&found) {
            let at = |permille: usize| {
                let times = rounds.iter().map(|(_, times)| times[times.len() * permille / 1000].as_secs_f64());
                Duration::from_secs_f64(median(times))
            };
            let rate = median(rounds.iter().map(|round| round.0));
            println!("  {name:<24} {rate:>9.0}/s   p50 {:>8.1?}   p99 {:>8.1?}", at(500), at(990));
        }
        println!("  {ratio:.2} of the bare rate, round by round");
    }
    node.shutdown().await;
    Ok(())
}
