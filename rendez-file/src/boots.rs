//! What happens to the data when the host is started anew, and when its wall clock is set: with a clock of our own.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rendez_core::{
    ChangeKind, ChangeOutcome, ChangeRequest, ClusterName, ClusterSettings, ErrorKind, FencingToken, HeartbeatRequest,
    Incarnation, Known, LeaseStore, NodeInfo, OpenRequest, Opening, OperationId, SessionId, Slot, SlotChange,
    SlotRecord, SnapshotRequest, Stamp, StoreError, StoreTime,
};

use crate::clock::Clock;
use crate::{FileOptions, FileStore};

const TTL: Duration = Duration::from_secs(10);

/// A host whose clocks are set by hand.
struct Host {
    boot: String,
    times: Mutex<(Duration, StoreTime)>,
}

impl Host {
    fn new(boot: &str, since_boot: u64, wall: u64) -> Arc<Self> {
        let times = Mutex::new((Duration::from_secs(since_boot), seconds(wall)));
        Arc::new(Self { boot: boot.to_owned(), times })
    }

    fn set(&self, since_boot: u64, wall: u64) {
        *self.times.lock().unwrap() = (Duration::from_secs(since_boot), seconds(wall));
    }
}

impl Clock for Host {
    fn boot(&self) -> &str {
        &self.boot
    }

    fn since_boot(&self) -> Duration {
        self.times.lock().unwrap().0
    }

    fn wall(&self) -> StoreTime {
        self.times.lock().unwrap().1
    }
}

fn seconds(seconds: u64) -> StoreTime {
    StoreTime::from_micros(seconds * 1_000_000)
}

struct World {
    store: FileStore,
    cluster: ClusterName,
}

impl World {
    async fn new(root: &Path, host: &Arc<Host>) -> Self {
        let options = FileOptions { operation_timeout: Duration::from_secs(20), ..FileOptions::default() };
        let host: Arc<dyn Clock> = Arc::<Host>::clone(host);
        let store = FileStore::with_clock(root, options, host).await.unwrap();
        Self { store, cluster: "c".parse().unwrap() }
    }

    async fn open(&self, node: &str) -> (SessionId, Stamp) {
        let request = OpenRequest {
            known: Known::default(),
            operation: OperationId::from_bits(fastrand::u128(..)),
            incarnation: Incarnation::from_bits(fastrand::u128(..)),
            replaces: None,
            ttl: TTL,
            info: Arc::new(NodeInfo::new(node.parse().unwrap(), ClusterSettings::new(TTL))),
        };
        match self.store.open(&self.cluster, &request).await.unwrap() {
            Opening::Opened { session, stamp, .. } => (session, stamp),
            in_use @ Opening::InUse { .. } => panic!("{in_use:?}"),
        }
    }

    async fn beat(&self, session: SessionId) -> Result<Stamp, StoreError> {
        let request = HeartbeatRequest {
            known: Known::default(),
            session,
            since: None,
            changes_max: 1,
            due_within: TTL,
            info: None,
        };
        self.store.heartbeat(&self.cluster, &request).await.map(|beat| beat.stamp)
    }

    async fn acquire(&self, session: SessionId, token: FencingToken) -> ChangeOutcome {
        let slot: Slot = "w/0".parse().unwrap();
        let kind = ChangeKind::Acquire { operation: OperationId::from_bits(fastrand::u128(..)) };
        let changes = vec![SlotChange { slot, token, kind }];
        let request = ChangeRequest { known: Known::default(), session, changes };
        self.store.change(&self.cluster, &request).await.unwrap().outcomes.remove(0)
    }

    async fn look(&self) -> Result<Stamp, StoreError> {
        let request = SnapshotRequest { known: Known::default(), session: None, cursor: None };
        self.store.snapshot(&self.cluster, &request).await.map(|page| page.stamp)
    }
}

fn done(outcome: ChangeOutcome) -> SlotRecord {
    match outcome {
        ChangeOutcome::Done(Some(record)) => record,
        other => panic!("{other:?}"),
    }
}

fn journal(root: &Path) -> PathBuf {
    root.join("rendez-1/c/journal-1.jsonl")
}

#[tokio::test]
async fn setting_the_wall_clock_moves_no_session() {
    let place = tempfile::tempdir().unwrap();
    let host = Host::new("one", 1000, 50_000);
    let world = World::new(place.path(), &host).await;
    let (session, stamp) = world.open("a").await;
    assert_eq!(stamp.now, seconds(50_000));
    host.set(1005, 9);
    assert_eq!(world.beat(session).await.unwrap().now, seconds(50_005));
    host.set(1014, 900_000);
    assert_eq!(world.beat(session).await.unwrap().now, seconds(50_014));
    // Another process of the same boot has the same time, and the session's end is where it must be.
    let other = World::new(place.path(), &host).await;
    host.set(1023, 1);
    assert_eq!(other.look().await.unwrap().now, seconds(50_023));
    host.set(1024, 1);
    assert_eq!(other.beat(session).await.unwrap_err().kind(), ErrorKind::Lost);
}

#[tokio::test]
async fn a_new_boot_ends_all_sessions_and_time_and_tokens_never_go_back() {
    let place = tempfile::tempdir().unwrap();
    let host = Host::new("one", 1000, 50_000);
    let world = World::new(place.path(), &host).await;
    let (session, stamp) = world.open("a").await;
    let first = done(world.acquire(session, FencingToken::NONE).await).token;
    drop(world);

    // The new kernel's wall clock is an hour behind.
    let host = Host::new("two", 3, 46_400);
    let world = World::new(place.path(), &host).await;
    assert_eq!(world.beat(session).await.unwrap_err().kind(), ErrorKind::Lost);
    let (fresh, after) = world.open("a").await;
    assert_ne!(fresh, session);
    assert!(after.now >= stamp.now && after.revision > stamp.revision, "{stamp:?} {after:?}");
    assert_eq!(after.generation, stamp.generation, "nothing was lost");
    assert!(after.quiet.is_zero());
    let second = done(world.acquire(fresh, first).await).token;
    assert!(second > first);
    drop(world);

    // And the next one's is right again.
    let host = Host::new("three", 3, 60_000);
    let world = World::new(place.path(), &host).await;
    assert_eq!(world.look().await.unwrap().now, seconds(60_000));
}

#[tokio::test]
async fn a_line_that_a_power_cut_left_unfinished_is_cut_off_and_counts_as_a_loss() {
    for garbage in [&b"\0\0\0\0\0\0\0\0"[..], b"\0\0\n\0\0\n", b"{\"sum\":\"0000000000000000\",\"n\":1}\n"] {
        let place = tempfile::tempdir().unwrap();
        let world = World::new(place.path(), &Host::new("one", 1000, 50_000)).await;
        let (session, stamp) = world.open("a").await;
        let token = done(world.acquire(session, FencingToken::NONE).await).token;
        drop(world);
        let whole = std::fs::read(journal(place.path())).unwrap();
        std::fs::write(journal(place.path()), [&whole, garbage].concat()).unwrap();

        let world = World::new(place.path(), &Host::new("two", 3, 50_001)).await;
        let after = world.look().await.unwrap();
        assert_ne!(after.generation, stamp.generation, "{garbage:?}");
        assert!(after.token > token && !after.quiet.is_zero());
        // It is said once: the next process finds nothing wrong.
        let other = World::new(place.path(), &Host::new("two", 4, 50_001)).await;
        assert_eq!(other.look().await.unwrap().generation, after.generation);
    }
}

#[tokio::test]
async fn a_wrong_line_is_damage_unless_a_power_cut_can_have_made_it() {
    let place = tempfile::tempdir().unwrap();
    let world = World::new(place.path(), &Host::new("one", 1000, 50_000)).await;
    let (session, _) = world.open("a").await;
    done(world.acquire(session, FencingToken::NONE).await);
    drop(world);
    let whole = std::fs::read(journal(place.path())).unwrap();
    let mut damaged = whole.clone();
    let middle = whole.iter().position(|byte| *byte == b'\n').unwrap() + 30;
    damaged[middle] ^= 1;
    std::fs::write(journal(place.path()), &damaged).unwrap();
    // A right line stands behind it.
    let world = World::new(place.path(), &Host::new("two", 3, 50_001)).await;
    let error = world.look().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fatal);
    assert_eq!(std::fs::read(journal(place.path())).unwrap(), damaged, "and it is left as it is");
    // At the end of the journal, in the same boot.
    std::fs::write(journal(place.path()), [&whole[..], b"what\n"].concat()).unwrap();
    let world = World::new(place.path(), &Host::new("one", 1001, 50_001)).await;
    assert_eq!(world.look().await.unwrap_err().kind(), ErrorKind::Fatal);
}
