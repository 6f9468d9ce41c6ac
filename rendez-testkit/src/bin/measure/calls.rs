//! What nodes cost the server when nothing happens.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rendez_testkit::measure::{Failure, Measurement, Samples};
use rendez_testkit::servers::{RedisServer, RespClient};

use crate::nodes::Nodes;

const NODES: usize = 10;
const WINDOW: Duration = Duration::from_secs(1);
const WINDOWS: usize = 20;

/// Commands that clients send; all others that are counted run inside of scripts. `info` is called by the
/// scripts, to see the replication id; once a window also by this program, which is taken off.
const SENT: &[&str] =
    &["evalsha", "eval", "script", "subscribe", "unsubscribe", "ping", "wait", "hello", "auth", "client", "select"];

/// Requests of clients when nothing happens.
pub(crate) struct SteadyCalls;

#[async_trait]
impl Measurement for SteadyCalls {
    fn name(&self) -> &'static str {
        "steady-calls"
    }

    fn about(&self) -> &'static str {
        "10 library nodes, 100 slots, nothing happens: commands that clients send, in one second"
    }

    fn is_baseline(&self) -> bool {
        false
    }

    async fn run(&self) -> Result<Samples, Failure> {
        let few = steady(100).await?;
        let more = steady(1000).await?;
        let many = steady(10_000).await?;
        let mut samples = Samples::numbers("calls", few.calls.clone());
        for (slots, steady) in [("100 slots", few), ("1000 slots", more), ("10000 slots", many)] {
            let name = |what: &str| format!("{slots}: {what} in one second");
            samples = samples
                .and(slots, name("commands that clients send"), Samples::numbers("calls", steady.calls))
                .and(
                    "",
                    name("the server's CPU, less what it takes without nodes"),
                    Samples::numbers("ms", steady.cpu_ms),
                )
                .and("", name("bytes to the server"), Samples::numbers("bytes", steady.bytes_in))
                .and("", name("bytes from the server"), Samples::numbers("bytes", steady.bytes_out))
                .note(steady.said);
            if let Some(moved) = steady.moved {
                samples = samples.broken(format!("{slots}: {moved}"));
            }
        }
        Ok(samples.note("goal: nodes / heartbeat interval = 5 calls a second"))
    }
}

struct Steady {
    calls: Vec<f64>,
    cpu_ms: Vec<f64>,
    bytes_in: Vec<f64>,
    bytes_out: Vec<f64>,
    said: String,
    moved: Option<String>,
}

async fn steady(slots: u32) -> Result<Steady, Failure> {
    const IDLE_WINDOWS: usize = 10;
    /// After this nothing happens any more that comes from the start.
    const SETTLE: Duration = Duration::from_secs(8);
    let redis = RedisServer::builder().start().await?;
    let mut control = redis.control().await?;
    let idle = watch(&mut control, IDLE_WINDOWS).await?;
    let idle_cpu = Samples::numbers("ms", idle.iter().map(|seen| seen.cpu_ms)).quantile(0.5).unwrap_or_default();
    let nodes = Nodes::start(&redis.url(), "steady", NODES, slots).await?;
    nodes.own(slots as usize).await?;
    tokio::time::sleep(SETTLE).await;
    let before = nodes.tally.count();
    let seen = watch(&mut control, WINDOWS).await?;
    let after = nodes.tally.count();
    let mut by_name: BTreeMap<String, f64> = BTreeMap::new();
    for (name, calls) in seen.iter().flat_map(|seen| &seen.calls) {
        *by_name.entry(name.clone()).or_default() += calls;
    }
    let kinds = |sent: bool| {
        let names = by_name.iter().filter(|(name, calls)| is_sent(name) == sent && **calls > 0.0);
        let shown = names.map(|(name, calls)| format!("{name} {:.2}", calls / WINDOWS as f64));
        shown.collect::<Vec<_>>().join(", ")
    };
    let said = format!(
        "{slots} slots, spread {:?}: a second on average: {}; inside scripts: {}; the idle server's CPU {idle_cpu:.2} ms",
        nodes.counts(),
        kinds(true),
        kinds(false)
    );
    let moved = (before != after).then(|| format!("something happened: {before:?}, then {after:?}"));
    nodes.shutdown().await?;
    Ok(Steady {
        calls: seen
            .iter()
            .map(|seen| seen.calls.iter().filter(|(name, _)| is_sent(name)).map(|(_, n)| n).sum())
            .collect(),
        cpu_ms: seen.iter().map(|seen| seen.cpu_ms - idle_cpu).collect(),
        bytes_in: seen.iter().map(|seen| seen.bytes_in).collect(),
        bytes_out: seen.iter().map(|seen| seen.bytes_out).collect(),
        said,
        moved,
    })
}

/// What happened in one window.
struct Seen {
    calls: BTreeMap<String, f64>,
    cpu_ms: f64,
    bytes_in: f64,
    bytes_out: f64,
}

/// What this program itself asks, once a window.
const QUESTION: [&str; 2] = ["INFO", "everything"];
/// Its bytes on the wire.
const QUESTION_BYTES: f64 = 32.0;

async fn watch(control: &mut RespClient, windows: usize) -> Result<Vec<Seen>, Failure> {
    let mut seen = Vec::new();
    let mut last = Info::ask(control).await?;
    let mut at = Instant::now();
    for _ in 0..windows {
        at += WINDOW;
        tokio::time::sleep_until(at.into()).await;
        let now = Info::ask(control).await?;
        let mut calls = BTreeMap::new();
        for (name, count) in &now.calls {
            let mine = f64::from(u8::from(name == "info"));
            calls.insert(name.clone(), count - last.calls.get(name).copied().unwrap_or_default() - mine);
        }
        seen.push(Seen {
            calls,
            cpu_ms: (now.cpu_seconds - last.cpu_seconds) * 1e3,
            bytes_in: now.bytes_in - last.bytes_in - QUESTION_BYTES,
            bytes_out: now.bytes_out - last.bytes_out - last.answer_bytes,
        });
        last = now;
    }
    Ok(seen)
}

struct Info {
    calls: BTreeMap<String, f64>,
    cpu_seconds: f64,
    bytes_in: f64,
    bytes_out: f64,
    /// The answer itself, which counts in the next one.
    answer_bytes: f64,
}

impl Info {
    async fn ask(control: &mut RespClient) -> Result<Self, Failure> {
        let text = control.command(&QUESTION).await?.text();
        let field = |name: &str| -> Result<f64, Failure> {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            Ok(value.ok_or_else(|| format!("INFO has no {name}"))?.trim().parse()?)
        };
        let mut calls = BTreeMap::new();
        for line in text.lines() {
            let Some((name, values)) = line.strip_prefix("cmdstat_").and_then(|line| line.split_once(':')) else {
                continue;
            };
            let count = values.strip_prefix("calls=").and_then(|values| values.split(',').next());
            calls.insert(name.to_owned(), count.ok_or("commandstats without calls")?.parse()?);
        }
        // The header `$LENGTH` and two line ends.
        let answer_bytes = (text.len() + text.len().to_string().len() + 5) as f64;
        let cpu_seconds = field("used_cpu_user")? + field("used_cpu_sys")?;
        let (bytes_in, bytes_out) = (field("total_net_input_bytes")?, field("total_net_output_bytes")?);
        Ok(Self { calls, cpu_seconds, bytes_in, bytes_out, answer_bytes })
    }
}

fn is_sent(name: &str) -> bool {
    SENT.contains(&name.split('|').next().unwrap_or(name))
}
