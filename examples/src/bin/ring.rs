//! A node of a ring as one would deploy it: each partition has its work, `/metrics` is for Prometheus, and `/health` for
//! whoever restarts what is not well.
//!
//! ```sh
//! cargo run -p rendez-examples --bin ring -- postgres://app:word@127.0.0.1/app orders 127.0.0.1:9100
//! curl 127.0.0.1:9100/metrics
//! ```
//!
//! Start more of them with other ports.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rendez::{BoxError, METRICS, Measurement, MetricKind, Metrics, Ring, RingChange, SlotContext, StoreUrl};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

const USAGE: &str = "usage: ring STORE_URL RING ADDRESS";

/// A client that asks for nothing within this time is sent away.
const REQUEST_MAX: Duration = Duration::from_secs(5);

/// The work of one partition.
async fn work(ctx: SlotContext) -> Result<(), BoxError> {
    while !ctx.is_cancelled() {
        ctx.check()?; // before each side effect; and give `ctx.token()` to whatever it writes to
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            () = ctx.cancelled() => {}
        }
    }
    Ok(())
}

/// The node's numbers: by metric and labels the sum of the values, or the last one, and how many there were.
#[derive(Default)]
struct Numbers(Mutex<BTreeMap<Series, (f64, u64)>>);

/// A metric's name, and its labels as they are printed.
type Series = (&'static str, String);

impl Metrics for Numbers {
    fn record(&self, measured: Measurement<'_>) {
        let pairs = measured.metric.labels.iter().zip(measured.labels);
        let labels: Vec<String> = pairs.map(|(name, value)| format!("{name}=\"{value}\"")).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (value, count) = all.entry((measured.metric.name, labels)).or_default();
        *value = if measured.metric.kind == MetricKind::Gauge { measured.value } else { *value + measured.value };
        *count += 1;
    }
}

impl Numbers {
    /// In the text format of Prometheus; a histogram as its sum and its count.
    fn text(&self) -> String {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        for metric in METRICS {
            let kind = match metric.kind {
                MetricKind::Counter => "counter",
                MetricKind::Gauge => "gauge",
                MetricKind::Histogram => "summary",
            };
            let _ = writeln!(text, "# HELP {0} {1}\n# TYPE {0} {kind}", metric.name, metric.help);
            for ((name, labels), (value, count)) in all.iter().filter(|((name, _), _)| *name == metric.name) {
                let _ = match metric.kind {
                    MetricKind::Counter | MetricKind::Gauge => writeln!(text, "{name}{labels} {value}"),
                    MetricKind::Histogram => {
                        writeln!(text, "{name}_sum{labels} {value}\n{name}_count{labels} {count}")
                    }
                };
            }
        }
        text
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [url, ring, address] = &words[..] else { return Err(USAGE.into()) };
    let store = StoreUrl::parse(url)?.connect(Duration::from_millis(500), Duration::from_secs(5)).await?;
    let numbers = Arc::new(Numbers::default());
    let metrics = numbers.clone();
    let ring = Ring::builder()
        .shared_store(store)
        .ring_id(ring)
        .runner(work)
        .configure(move |node| node.metrics(metrics))
        .start()
        .await?;
    println!("{} takes part in the ring {}", ring.node(), ring.id());
    let listener = TcpListener::bind(address).await?;
    let mut changes = ring.changes();
    loop {
        tokio::select! {
            change = changes.next() => match change {
                Some(RingChange::Gained { partition, token }) => println!("{partition} is ours under token {token}"),
                Some(RingChange::Lost { partition, .. }) => println!("{partition} is gone"),
                None => return Err("the node has stopped".into()),
            },
            Ok((client, _)) = listener.accept() => {
                let (ring, numbers) = (ring.clone(), numbers.clone());
                tokio::spawn(tokio::time::timeout(REQUEST_MAX, answer(client, ring, numbers)));
            }
            _ = tokio::signal::ctrl_c() => break,
        }
    }
    println!("{:?}", ring.leave().await?);
    Ok(())
}

/// One request of HTTP, and its answer.
async fn answer(client: TcpStream, ring: Ring, numbers: Arc<Numbers>) -> Result<(), BoxError> {
    let mut client = BufReader::new(client);
    let mut line = String::new();
    client.read_line(&mut line).await?;
    // Well is who has a session: without one it can own nothing, and tries to open another by itself.
    let well = ring.handle().session_changes().borrow().is_some();
    let (status, body) = match line.split(' ').nth(1) {
        Some("/metrics") => ("200 OK", numbers.text()),
        Some("/health") if well => ("200 OK", format!("owns {} partitions\n", ring.owned_partitions().len())),
        Some("/health") => ("503 Service Unavailable", "without a session\n".to_owned()),
        _ => ("404 Not Found", "ask for /metrics or /health\n".to_owned()),
    };
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    client.write_all(format!("{head}{body}").as_bytes()).await?;
    Ok(client.shutdown().await?)
}
