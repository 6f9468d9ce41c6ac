//! `rendez ring join`: a node of a ring that runs nothing, and tells what it owns.

use std::io::Write as _;
use std::time::Duration;

use rendez::{Ring, RingChange, RingChanges, RingError, RingId, StartError};
use tokio::time::{Instant, sleep};

use super::checked;
use super::picture::ranges;
use crate::cluster_args::StoreArgs;
use crate::exit::{Exit, Failure};
use crate::stop::Stop;

/// What changes within this time is told in one line.
const TOGETHER: Duration = Duration::from_millis(200);

/// Arguments of `rendez ring join`.
#[derive(Debug, clap::Args)]
pub(crate) struct JoinArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// The ring: a letter, then letters, digits and underscores
    ring: RingId,
    /// The node's id; one is made up unless given
    #[arg(long)]
    node: Option<String>,
    /// How many partitions the ring has, the same for all of its nodes
    #[arg(long, value_name = "N", default_value_t = 1024)]
    partitions: u32,
    /// How many virtual nodes each node has, the same for all nodes of the ring
    #[arg(long, value_name = "N", default_value_t = 8)]
    virtual_nodes: u32,
    /// How long the node's session lives without a heartbeat
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = crate::duration::parse)]
    session_ttl: Duration,
}

/// Takes part until it is interrupted, then hands everything over.
pub(super) async fn join(args: &JoinArgs) -> Result<(), Failure> {
    let (url, config) = checked(&args.store, &args.ring, Some(args.session_ttl))?;
    let mut stop = Stop::listen()?;
    let store = url.connect(config.connect_timeout, config.engine.timing.operation_timeout).await?;
    let mut builder = Ring::builder()
        .shared_store(store)
        .ring_id(args.ring.as_str())
        .partitions(args.partitions)
        .virtual_nodes(args.virtual_nodes)
        .session_ttl(args.session_ttl)
        .connect_timeout(config.connect_timeout);
    if let Some(node) = &args.node {
        builder = builder.node_id(node);
    }
    let ring = tokio::select! {
        ring = builder.start() => ring.map_err(refused)?,
        () = stop.asked() => return Ok(()),
    };
    let begin = Instant::now();
    say(begin, &format!("{} has joined the ring {} ({})", ring.node(), ring.id(), ring.sizes()));
    let mut changes = ring.changes();
    loop {
        tokio::select! {
            batch = together(&mut changes) => match batch {
                Some(batch) => tell(begin, &ring, &batch),
                None => break,
            },
            () = stop.asked() => {
                say(begin, "leaving: every partition is handed over (again to leave them to the session's end)");
                tokio::select! {
                    ended = ring.leave() => {
                        ended.map_err(|error| Failure::new(Exit::Failure, error))?;
                        say(begin, "has left");
                    }
                    () = stop.asked() => say(begin, "gone without handing over"),
                }
                return Ok(());
            }
        }
    }
    let ended = ring.handle().stopped().await.map_err(|error| Failure::new(Exit::Failure, error))?;
    Err(Failure::new(Exit::Failure, format!("the node has stopped: {ended:?}")))
}

/// What changes in one go; nothing when the node has stopped. Cancelling it loses what has changed: only for the end.
async fn together(changes: &mut RingChanges) -> Option<Vec<RingChange>> {
    let mut batch = vec![changes.next().await?];
    let pause = sleep(TOGETHER);
    tokio::pin!(pause);
    loop {
        tokio::select! {
            change = changes.next() => match change {
                Some(change) => batch.push(change),
                None => return Some(batch),
            },
            () = &mut pause => return Some(batch),
        }
    }
}

fn tell(begin: Instant, ring: &Ring, batch: &[RingChange]) {
    let (mut gained, mut lost) = (Vec::new(), Vec::new());
    for change in batch {
        match change {
            RingChange::Gained { partition, .. } => gained.push(*partition),
            RingChange::Lost { partition, .. } => lost.push(*partition),
        }
    }
    for (word, mut partitions) in [("lost", lost), ("gained", gained)] {
        if !partitions.is_empty() {
            partitions.sort_unstable();
            say(begin, &format!("{word} {}: {}", partitions.len(), ranges(partitions)));
        }
    }
    let owned = ring.owned_partitions();
    let lives = owned.iter().next().and_then(|partition| ring.lease(partition)).map(|lease| lease.remaining());
    let lives = lives.map_or_else(String::new, |lives| format!("; its leases are good for {lives:.1?}"));
    say(begin, &format!("owns {} of {}{lives}", owned.len(), ring.sizes().partitions));
}

/// One line, with the time since the start.
fn say(begin: Instant, text: &str) {
    let line = format!("[{:>8.1}s] {text}\n", begin.elapsed().as_secs_f64());
    let mut out = std::io::stdout().lock();
    // A reader that has seen enough (`| head`) is no failure.
    let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
}

fn refused(error: RingError) -> Failure {
    let exit = match &error {
        RingError::Store { .. }
        | RingError::Start(StartError::NoAnswer { .. } | StartError::Refused { .. } | StartError::Ended { .. }) => {
            Exit::Store
        }
        RingError::Start(StartError::InUse { .. }) => Exit::InUse,
        _ => Exit::Usage,
    };
    Failure::new(exit, error)
}
