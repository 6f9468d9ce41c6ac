//! Prints what an election on one Lease costs and how long it takes, with the default times, against the test kit's server, which
//! answers at once and writes no disk.
//!
//! `cargo run --release -p rendez-kubernetes --example election-figures`, some two minutes.

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rendez_kubernetes::{KubernetesOptions, LeaderLease, LeaderLeaseOptions};
use rendez_testkit::clock;
use rendez_testkit::servers::{KubernetesServer, Verb};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const MINUTE: Duration = Duration::from_secs(60);
const RELEASES: usize = 100;
const RELEASES_WITHOUT_WATCH: usize = 20;
const KILLS: usize = 20;

fn access(url: &str) -> Outcome<KubernetesOptions> {
    let (_, file) = url.split_once("kubeconfig=").ok_or("no kubeconfig file")?;
    let mut access = KubernetesOptions::default();
    access.kubeconfig = Some(PathBuf::from(file));
    Ok(access)
}

/// A participant, with the right to watch or without.
async fn join(server: &KubernetesServer, name: &str, identity: &str, watches: bool) -> Outcome<LeaderLease> {
    let verbs = [Verb::Get, Verb::Create, Verb::Update, Verb::Watch];
    let url = server.add_user(&format!("{name}-{identity}"), if watches { &verbs } else { &verbs[..3] })?;
    Ok(LeaderLease::connect(&access(&url)?, LeaderLeaseOptions::new(server.namespace(), name, identity)).await?)
}

fn print(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let (p50, max) = (times.get(times.len() / 2), times.last());
    println!("{what:60} {} times: p50 {:.1?}, max {:.1?}", times.len(), p50.unwrap_or(&MINUTE), max.unwrap_or(&MINUTE));
}

/// A minute of a leader and some who wait, in which nothing happens.
async fn minute(what: &str, waiting: usize, watches: bool) -> Outcome<()> {
    let server = KubernetesServer::start().await?;
    let leader = join(&server, "a", "leader", true).await?;
    leader.wait_for_leadership().await?;
    let mut others = Vec::new();
    for number in 0..waiting {
        others.push(join(&server, "a", &format!("waits-{number}"), watches).await?);
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    let asked = || (Verb::ALL.map(|verb| server.requests(verb)), server.bytes());
    let (before, bytes_before) = asked();
    tokio::time::sleep(MINUTE).await;
    let (after, bytes) = asked();
    let counts: Vec<String> = Verb::ALL
        .iter()
        .enumerate()
        .map(|(place, verb)| (after[place] - before[place], verb.as_str()))
        .filter(|(count, _)| *count > 0)
        .map(|(count, verb)| format!("{count} {verb}"))
        .collect();
    println!(
        "{what:60} a minute: {}; {} bytes in, {} out",
        counts.join(", "),
        bytes.0 - bytes_before.0,
        bytes.1 - bytes_before.1
    );
    Ok(())
}

/// Two who hand the Lease to each other; from before the request to the moment that the other knows.
async fn releases(count: usize, watches: bool) -> Outcome<Vec<Duration>> {
    let server = KubernetesServer::start().await?;
    let mut first = join(&server, "a", "first", watches).await?;
    first.wait_for_leadership().await?;
    let mut second = join(&server, "a", "second", watches).await?;
    let mut times = Vec::new();
    for _ in 0..count {
        while second.leader().as_deref() != Some(first.identity()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let started = Instant::now();
        first.resign().await?;
        second.wait_for_leadership().await?;
        times.push(started.elapsed());
        std::mem::swap(&mut first, &mut second);
    }
    Ok(times)
}

/// Leaders that die with their runtimes, each of an election of its own; from their death, and from the end of their Lease's time.
async fn kills() -> Outcome<(Vec<Duration>, Vec<Duration>)> {
    let server = KubernetesServer::start().await?;
    let mut elections = tokio::task::JoinSet::new();
    for number in 0..KILLS {
        let name = format!("election-{number}");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let options = LeaderLeaseOptions::new(server.namespace(), name.as_str(), "leader");
        let (url, wanted) = (access(&server.url())?, options.clone());
        let leader = runtime.spawn(async move { LeaderLease::connect(&url, wanted).await }).await??;
        leader.wait_for_leadership().await?;
        let next = join(&server, &name, "next", true).await?;
        elections.spawn(async move {
            while next.leader().as_deref() != Some("leader") {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::time::sleep(Duration::from_millis(fastrand::u64(..5_000))).await;
            let leading = leader.states().borrow().leading.ok_or("it does not lead")?;
            let killed_at = clock::now();
            runtime.shutdown_background();
            next.wait_for_leadership().await?;
            let over = leading.deadline.saturating_sub(options.renew_deadline()) + options.lease_duration;
            Outcome::Ok((clock::now().since(killed_at), clock::now().since(over)))
        });
    }
    let (mut since_death, mut since_end) = (Vec::new(), Vec::new());
    while let Some(done) = elections.join_next().await {
        let (death, end) = done??;
        since_death.push(death);
        since_end.push(end);
    }
    Ok((since_death, since_end))
}

#[tokio::main]
async fn main() -> Outcome<()> {
    print("released, and taken by who watches", releases(RELEASES, true).await?);
    print("released, and taken by who may not watch", releases(RELEASES_WITHOUT_WATCH, false).await?);
    let (since_death, since_end) = kills().await?;
    print("killed, and taken: from the death", since_death);
    print("killed, and taken: from the end of the Lease's duration", since_end);
    minute("a leader", 0, true).await?;
    minute("a leader and one who waits and watches", 1, true).await?;
    minute("a leader and one who waits and may not watch", 1, false).await
}
