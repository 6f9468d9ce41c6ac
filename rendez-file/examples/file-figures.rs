//! Prints what requests cost: CPU of this process, bytes, fsyncs, and the time they take.
//!
//! `cargo run --release -p rendez-file --example file-figures [FOLDER]`. Give it a folder on the disk that you want to know about;
//! without one it makes its own in the folder for temporary files.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rendez_core::{
    Capabilities, ChangeKind, ChangeOutcome, ChangeRequest, CloseRequest, ClusterName, ClusterSettings, FencingToken,
    HeartbeatRequest, Incarnation, Known, LeaseStore, NodeId, NodeInfo, OpenRequest, Opening, OperationId, SessionId,
    Slot, SlotChange, SnapshotRequest, WorkloadName,
};
use rendez_file::{FileOptions, FileStore};
use rustix::time::{ClockId, clock_gettime};

const TTL: Duration = Duration::from_secs(600);
const BEATS: u32 = 2000;
const SAMPLES: usize = 20;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// The store tells of each fsync.
static FSYNCS: AtomicU64 = AtomicU64::new(0);

struct Counter;

impl tracing::Subscriber for Counter {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("rendez_file")
    }

    fn event(&self, event: &tracing::Event<'_>) {
        struct IsFsync(bool);
        impl tracing::field::Visit for IsFsync {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0 |= field.name() == "message" && format!("{value:?}") == "fsync";
            }
        }
        let mut is_fsync = IsFsync(false);
        event.record(&mut is_fsync);
        FSYNCS.fetch_add(u64::from(is_fsync.0), Ordering::Relaxed);
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// What was spent so far.
#[derive(Clone, Copy)]
struct Spent {
    at: Instant,
    cpu: Duration,
    fsyncs: u64,
    bytes: u64,
}

struct Bench {
    store: FileStore,
    cluster: ClusterName,
    folder: PathBuf,
}

impl Bench {
    fn spent(&self) -> Spent {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        let cpu = Duration::new(u64::try_from(cpu.tv_sec).unwrap_or(0), u32::try_from(cpu.tv_nsec).unwrap_or(0));
        Spent { at: Instant::now(), cpu, fsyncs: FSYNCS.load(Ordering::Relaxed), bytes: journal_bytes(&self.folder) }
    }

    /// The journal is not folded while something is measured, so it tells the bytes.
    fn report(&self, what: &str, per: u32, before: Spent) {
        let after = self.spent();
        println!(
            "{what:46} {:>9.1?} in all, {:>5} fsyncs, {:>9} bytes; each: {:>8.1?} CPU, {:>8.1?}",
            after.at - before.at,
            after.fsyncs - before.fsyncs,
            after.bytes.saturating_sub(before.bytes),
            (after.cpu - before.cpu) / per,
            (after.at - before.at) / per,
        );
    }

    async fn open(&self, node: &str, ttl: Duration) -> Outcome<SessionId> {
        let request = OpenRequest {
            known: Known::default(),
            operation: operation(),
            incarnation: Incarnation::from_bits(fastrand::u128(..)),
            replaces: None,
            ttl,
            info: Arc::new(NodeInfo::new(NodeId::new(node)?, ClusterSettings::new(TTL))),
        };
        match self.store.open(&self.cluster, &request).await? {
            Opening::Opened { session, .. } => Ok(session),
            Opening::InUse { .. } => Err("the node is in use".into()),
        }
    }

    async fn beat(&self, session: SessionId) -> Outcome<rendez_core::Beat> {
        let request = HeartbeatRequest {
            known: Known::default(),
            session,
            since: None,
            changes_max: 512,
            due_within: Duration::from_secs(2),
            info: None,
        };
        Ok(self.store.heartbeat(&self.cluster, &request).await?)
    }

    /// Makes one change of each slot, in batches, and answers the tokens after it.
    async fn each(
        &self,
        session: SessionId,
        slots: &[(Slot, FencingToken)],
        kind: impl Fn(usize) -> ChangeKind,
    ) -> Outcome<Vec<(Slot, FencingToken)>> {
        let most = Capabilities::strict("file").changes_max;
        let mut after = Vec::new();
        for (batch, part) in slots.chunks(most).enumerate() {
            let change = |(place, (slot, token)): (usize, &(Slot, FencingToken))| {
                let kind = kind(batch * most + place);
                SlotChange { slot: slot.clone(), token: *token, kind }
            };
            let changes = part.iter().enumerate().map(change).collect();
            let request = ChangeRequest { known: Known::default(), session, changes };
            for (outcome, (slot, _)) in self.store.change(&self.cluster, &request).await?.outcomes.iter().zip(part) {
                match outcome {
                    ChangeOutcome::Done(Some(record)) => after.push((slot.clone(), record.token)),
                    other => return Err(format!("{slot}: {other:?}").into()),
                }
            }
        }
        Ok(after)
    }
}

fn operation() -> OperationId {
    OperationId::from_bits(fastrand::u128(..))
}

fn acquire(_: usize) -> ChangeKind {
    ChangeKind::Acquire { operation: operation() }
}

fn release(_: usize) -> ChangeKind {
    ChangeKind::Release { checkpoint: None, refuse_for: None }
}

fn journal_bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let journals = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("journal-"));
    journals.filter_map(|entry| Some(entry.metadata().ok()?.len())).sum()
}

fn print_samples(what: &str, mut samples: Vec<Duration>) {
    samples.sort();
    let (middle, last) = (samples[samples.len() / 2], samples[samples.len() - 1]);
    println!("{what:46} p50 {middle:>9.1?}, max {last:>9.1?} of {}", samples.len());
}

#[tokio::main]
async fn main() -> Outcome<()> {
    tracing::subscriber::set_global_default(Counter)?;
    let place = match std::env::args().nth(1) {
        Some(folder) => tempfile::tempdir_in(folder)?,
        None => tempfile::tempdir()?,
    };
    let mut options = FileOptions::default();
    options.operation_timeout = Duration::from_secs(60);
    options.journal_bytes_max = 1 << 30;
    let root = place.path().join("store");
    let store = FileStore::open(&root, options.clone()).await?;
    let bench = Bench { store, cluster: ClusterName::new("figures")?, folder: root.join("rendez-1/figures") };
    println!("in {}", root.display());

    // What a durable line costs on this disk, whatever the store does.
    let file = std::fs::File::create(place.path().join("plain"))?;
    let mut samples = Vec::new();
    for _ in 0..SAMPLES {
        let began = Instant::now();
        std::io::Write::write_all(&mut &file, &[b'x'; 300])?;
        file.sync_data()?;
        samples.push(began.elapsed());
    }
    print_samples("for comparison: 300 bytes and an fdatasync", samples);

    let workload = WorkloadName::new("inbox")?;
    let free = |from: u32, to: u32| -> Vec<_> {
        (from..to).map(|unit| (Slot::new(workload.clone(), unit), FencingToken::NONE)).collect()
    };
    let a = bench.open("a", TTL).await?;
    let b = bench.open("b", TTL).await?;
    let mut held = 0;
    for count in [10, 1000, 10_000] {
        bench.each(a, &free(held, count), acquire).await?;
        held = count;
        let before = bench.spent();
        for _ in 0..BEATS {
            bench.beat(a).await?;
        }
        bench.report(&format!("heartbeat of a node that holds {count}"), BEATS, before);
    }
    let other = Bench {
        store: FileStore::open(&root, options.clone()).await?,
        cluster: bench.cluster.clone(),
        folder: bench.folder.clone(),
    };
    let before = bench.spent();
    other.beat(b).await?;
    bench.report("reading 10 000 slots anew, another handle", 1, before);
    let before = bench.spent();
    for _ in 0..BEATS / 2 {
        bench.beat(a).await?;
        other.beat(b).await?;
    }
    bench.report("heartbeats of two handles in turn", BEATS, before);

    let before = bench.spent();
    let thousand = bench.each(a, &free(10_000, 11_000), acquire).await?;
    bench.report("acquiring 1000 free slots", 1000, before);

    let offers: Vec<_> = (0..1000).map(|_| operation()).collect();
    let before = bench.spent();
    let offer = |at: usize| ChangeKind::Offer {
        operation: offers[at],
        to: b,
        expires_in: TTL,
        giver_total: 1,
        giver_of_workload: 1,
        forced: false,
    };
    bench.each(a, &thousand, offer).await?;
    bench.each(b, &thousand, |at| ChangeKind::Accept { offer: offers[at] }).await?;
    let middle = bench.spent();
    let transfer = |at: usize| ChangeKind::Transfer { operation: operation(), offer: offers[at], checkpoint: None };
    let moved = bench.each(a, &thousand, transfer).await?;
    bench.report("of which transferring", 1000, middle);
    bench.report("offering, accepting, transferring 1000 slots", 1000, before);

    bench.store.close(&bench.cluster, &CloseRequest { known: Known::default(), session: b }).await?;
    let before = bench.spent();
    bench.each(a, &moved, acquire).await?;
    bench.report("taking over 1000 orphans", 1000, before);

    // From the end of a session to the grant of its slot to another node, which knows the end from its heartbeat.
    let mut samples = Vec::new();
    let mut lone = free(999_000, 999_001);
    for sample in 0..SAMPLES {
        let dying = bench.open(&format!("dying {sample}"), Duration::from_millis(200)).await?;
        lone = bench.each(dying, &lone, acquire).await?;
        let due = other.beat(a).await?.due;
        let heard = Instant::now();
        let end = due.iter().find(|due| due.session == dying).ok_or("the session is not due")?;
        tokio::time::sleep_until((heard + end.remaining).into()).await;
        lone = loop {
            match other.each(a, &lone, acquire).await {
                Ok(taken) => break taken,
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        };
        samples.push((heard + end.remaining).elapsed());
        lone = bench.each(a, &lone, release).await?;
    }
    lone = bench.each(a, &lone, acquire).await?;
    print_samples("takeover after a session's end", samples);

    // From a release to the hint in another handle and from there to the grant.
    let mut samples = Vec::new();
    let mut watch = other.store.watch(&other.cluster).await?;
    let c = other.open("c", TTL).await?;
    for _ in 0..SAMPLES {
        while tokio::time::timeout(Duration::from_millis(20), watch.next()).await.is_ok() {}
        let began = Instant::now();
        let released = bench.each(a, &lone, release);
        let taken = async {
            watch.next().await;
            other.each(c, &lone, acquire).await
        };
        let (released, taken) = tokio::join!(released, taken);
        released?;
        samples.push(began.elapsed());
        lone = bench_back(&bench, &other, (a, c), taken?).await?;
    }
    print_samples("a release, the hint, and the grant to another", samples);

    for index in 0..8 {
        let part = free(11_000 + index * 12_000, 11_000 + (index + 1) * 12_000);
        bench.each(a, &part, acquire).await?;
    }
    let before = bench.spent();
    let (mut cursor, mut items, mut longest) = (None, 0, Duration::ZERO);
    loop {
        let page = Instant::now();
        let request = SnapshotRequest { known: Known::default(), session: None, cursor };
        let read = bench.store.snapshot(&bench.cluster, &request).await?;
        longest = longest.max(page.elapsed());
        items += read.items.len();
        cursor = read.next;
        if cursor.is_none() {
            break;
        }
    }
    bench.report(&format!("a snapshot of {items} records"), 1, before);
    println!("{:46} {longest:>9.1?}", "its slowest page");

    // A handle with a short journal folds at its first request.
    options.journal_bytes_max = 1024;
    let folding = FileStore::open(&root, options).await?;
    let folding = Bench { store: folding, cluster: bench.cluster.clone(), folder: bench.folder.clone() };
    let began = Instant::now();
    folding.beat(a).await?;
    println!("{:46} {:>9.1?}", "reading all of it anew", began.elapsed());
    let began = Instant::now();
    folding.beat(a).await?;
    println!("{:46} {:>9.1?}", "folding the journal, as the next request feels it", began.elapsed());
    let began = Instant::now();
    bench.beat(a).await?;
    println!("{:46} {:>9.1?}", "going on with the next one, another handle", began.elapsed());
    println!("{:46} {:>9} bytes", "the snapshot file", std::fs::metadata(bench.folder.join("snapshot.json"))?.len());
    Ok(())
}

/// Lets a slot go back to its first holder.
async fn bench_back(
    bench: &Bench,
    other: &Bench,
    (a, c): (SessionId, SessionId),
    slots: Vec<(Slot, FencingToken)>,
) -> Outcome<Vec<(Slot, FencingToken)>> {
    other.each(c, &slots, release).await?;
    bench.each(a, &slots, acquire).await
}
