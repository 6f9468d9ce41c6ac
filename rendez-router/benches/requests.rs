//! Requests a second and their times over the transport in memory, beside what a program would do by hand: call the handler,
//! or send it a message and wait for the reply. `cargo bench -p rendez-router --bench requests`
//!
//! Look at the ratios within one run: absolute numbers are the machine's.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rendez_router::{
    Address, BoxError, Client, ClientTransport, Envelope, Handler, MemoryTransport, Node, RequestContext,
};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};

const ROUNDS: usize = 5;
const LASTS: Duration = Duration::from_millis(400);
const BYTES: usize = 128;
/// One request in so many is timed, so that the clock is not what is measured.
const TIMED: u64 = 16;

/// What is measured: one way to make a request.
#[derive(Clone)]
enum Way {
    Call(Arc<dyn Handler>),
    Channel(mpsc::Sender<(Bytes, oneshot::Sender<Bytes>)>),
    Transport(MemoryTransport),
    Shard(Client),
    Key(Client),
}

impl Way {
    async fn ask(&self, data: Bytes, number: u64) -> Bytes {
        const KEYS: [&str; 4] = ["user-1", "user-22", "user-333", "user-4444"];
        let answer = match self {
            Self::Call(handler) => {
                let ctx = RequestContext::new(tokio::time::Instant::now() + Duration::from_secs(30));
                handler.handle(ctx, Envelope::new(3, "Get", data)).await
            }
            Self::Channel(sender) => {
                let (answer, answered) = oneshot::channel();
                sender.send((data, answer)).await.expect("the handler's task lives");
                Ok(answered.await.expect("it answers"))
            }
            Self::Transport(transport) => transport.request(&Address::Shard(3), Envelope::new(3, "Get", data)).await,
            Self::Shard(client) => client.request_shard(3, "Get", data).await,
            Self::Key(client) => client.request_key(KEYS[number as usize % KEYS.len()], "Get", data).await,
        };
        answer.expect("an answer")
    }
}

async fn echo(_: RequestContext, request: Envelope) -> Result<Bytes, BoxError> {
    Ok(request.into_data())
}

/// Requests a second, and the times of some of them.
async fn measure(way: &Way, callers: usize) -> (f64, Vec<Duration>) {
    let begun = Instant::now();
    let tasks = (0..callers).map(|_| {
        let way = way.clone();
        tokio::spawn(async move {
            let data = Bytes::from(vec![7; BYTES]);
            let (mut count, mut times) = (0_u64, Vec::new());
            while begun.elapsed() < LASTS {
                let one = Instant::now();
                black_box(way.ask(data.clone(), count).await);
                times.push(one.elapsed());
                for number in 1..TIMED {
                    black_box(way.ask(data.clone(), count + number).await);
                }
                count += TIMED;
            }
            (count, times)
        })
    });
    let (mut count, mut times) = (0, Vec::new());
    for task in tasks.collect::<Vec<_>>() {
        let (one, its) = task.await.expect("a caller");
        count += one;
        times.extend(its);
    }
    let rate = count as f64 / begun.elapsed().as_secs_f64();
    times.sort_unstable();
    (rate, times)
}

async fn ways() -> (Vec<(&'static str, Way)>, Node) {
    let transport = MemoryTransport::new();
    let node = Node::builder(transport.clone()).shards(0..16).handler(echo).start().await.expect("a node");
    let client = Client::builder(transport.clone(), 16).build().expect("a client");
    let (sender, mut asked) = mpsc::channel::<(Bytes, oneshot::Sender<Bytes>)>(100);
    tokio::spawn(async move {
        while let Some((data, answer)) = asked.recv().await {
            // Whoever asked may have gone.
            let _ = answer.send(data);
        }
    });
    let ways = vec![
        ("the handler, called", Way::Call(Arc::new(echo))),
        ("a channel and a reply, by hand", Way::Channel(sender)),
        ("transport", Way::Transport(transport)),
        ("client, by shard", Way::Shard(client.clone())),
        ("client, by key", Way::Key(client)),
    ];
    (ways, node)
}

fn main() {
    for (threads, callers) in [(1, 1), (1, 64), (2, 64)] {
        let runtime = match threads {
            1 => tokio::runtime::Builder::new_current_thread().enable_all().build(),
            _ => tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build(),
        };
        let runtime: Runtime = runtime.expect("a runtime");
        runtime.block_on(async {
            let (ways, node) = ways().await;
            println!("{threads} thread(s), {callers} caller(s), {BYTES} bytes; best of {ROUNDS}");
            for (name, way) in &ways {
                let mut best = (0.0, Vec::new());
                for _ in 0..ROUNDS {
                    let found = measure(way, callers).await;
                    if found.0 > best.0 {
                        best = found;
                    }
                }
                let at = |permille: usize| best.1[best.1.len() * permille / 1000].as_nanos();
                println!("  {name:<32} {:>10.0}/s   p50 {:>7} ns   p99 {:>8} ns", best.0, at(500), at(990));
            }
            node.shutdown().await;
        });
    }
}
