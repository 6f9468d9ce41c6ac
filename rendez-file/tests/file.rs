//! The folder and what can happen to it: full, read-only, removed, damaged, cut off, locked.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use rendez_core::*;
use rendez_file::{FileOptions, FileStore};
use support::*;

/// Copies a folder with all that is in it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

async fn refused(folder: &Path) -> StoreError {
    FileStore::open(folder, options()).await.unwrap_err()
}

/// What is in the store, without the stamp's clock.
async fn content(world: &World) -> (Revision, FencingToken, String) {
    let (stamp, items) = world.snapshot(None).await;
    (stamp.revision, stamp.token, format!("{items:?}"))
}

async fn look(world: &World) -> Result<Stamp, StoreError> {
    let request = SnapshotRequest { known: Known::default(), session: None, cursor: None };
    world.store.snapshot(&world.cluster, &request).await.map(|page| page.stamp)
}

#[tokio::test]
async fn a_line_that_is_cut_off_at_any_byte_has_not_happened() {
    let world = World::new().await;
    let session = world.open_for("a", TTL_MAX).await;
    let token = world.acquire(session, &slot("w/0"), FencingToken::NONE).await;
    let before = content(&world).await;
    let first = fs::read(journal(&world.folder())).unwrap();
    let checkpoint = ChangeKind::Release { checkpoint: Some(Bytes::from_static(b"\xff\n\"")), refuse_for: Some(TTL) };
    done(world.change(session, &slot("w/0"), token, checkpoint).await);
    let after = content(&world).await;
    let second = fs::read(journal(&world.folder())).unwrap();
    assert!(second.starts_with(&first) && second.len() > first.len() + 100);
    let lines = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'\n').count();
    assert_eq!(lines(&second), lines(&first) + 1, "one request, one line");

    for length in first.len()..=second.len() {
        let place = tempfile::tempdir().unwrap();
        copy(&world.root, place.path());
        let reread = World::at(place.path(), options()).await;
        let path = journal(&reread.folder());
        fs::write(&path, &second[..length]).unwrap();
        let expected = if length == second.len() { &after } else { &before };
        assert_eq!(content(&reread).await, *expected, "{length} of {}", second.len());
        // And the journal goes on from there.
        let written = reread.acquire(session, &slot("w/1"), FencingToken::NONE).await;
        assert!(written > token);
        let third = reread.other().await;
        assert_eq!(content(&third).await, content(&reread).await);
    }
}

#[tokio::test]
async fn a_damaged_file_is_told_and_left_alone() {
    let world = World::new().await;
    let session = world.open("a").await;
    for unit in 0..3 {
        world.acquire(session, &Slot::new("w".parse().unwrap(), unit), FencingToken::NONE).await;
    }
    let lines = fs::read(journal(&world.folder())).unwrap();
    let snapshot = fs::read(world.folder().join("snapshot.json")).unwrap();
    let ends: Vec<_> = (0..lines.len()).filter(|at| lines[*at] == b'\n').collect();
    assert!(ends.len() >= 4);

    let check = async |file: &str, content: Option<&[u8]>, what: &str| {
        let place = tempfile::tempdir().unwrap();
        copy(&world.root, place.path());
        let reread = World::at(place.path(), options()).await;
        let path = reread.folder().join(file);
        match content {
            Some(content) => fs::write(&path, content).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let error = look(&reread).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Fatal, "{what}: {error}");
        assert!(error.message().contains("damaged") && error.message().contains("backup"), "{what}: {error}");
        let error = reread.try_open(open_request("b")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Fatal, "{what}: {error}");
        assert_eq!(fs::read(&path).ok().as_deref(), content, "{what}");
    };
    // Every byte of a line in the middle, but its end, which is a case of its own.
    for at in ends[0] + 1..ends[1] {
        let mut damaged = lines.clone();
        damaged[at] ^= 1;
        check("journal-1.jsonl", Some(&damaged), &format!("byte {at} of the journal")).await;
    }
    let mut joined = lines.clone();
    joined[ends[1]] = b' ';
    check("journal-1.jsonl", Some(&joined), "two lines become one").await;
    let missing = [&lines[..=ends[0]], &lines[ends[1] + 1..]].concat();
    check("journal-1.jsonl", Some(&missing), "a line is missing").await;
    let doubled = [&lines[..=ends[1]], &lines[ends[0] + 1..]].concat();
    check("journal-1.jsonl", Some(&doubled), "a line is there twice").await;
    check("journal-1.jsonl", None, "no journal").await;
    check("snapshot.json", None, "no snapshot").await;
    check("snapshot.json", Some(b""), "an empty snapshot").await;
    for at in (0..snapshot.len()).step_by(5) {
        let mut damaged = snapshot.clone();
        damaged[at] ^= 1;
        check("snapshot.json", Some(&damaged), &format!("byte {at} of the snapshot")).await;
    }

    // Under a process that has read it already.
    let place = tempfile::tempdir().unwrap();
    copy(&world.root, place.path());
    let reread = World::at(place.path(), options()).await;
    look(&reread).await.unwrap();
    let file = fs::OpenOptions::new().write(true).open(reread.folder().join("journal-1.jsonl")).unwrap();
    file.set_len(ends[1] as u64 + 1).unwrap();
    assert_eq!(look(&reread).await.unwrap_err().kind(), ErrorKind::Fatal, "the journal was shortened");
}

#[tokio::test]
async fn a_future_layout_is_refused() {
    let world = World::new().await;
    world.open("a").await;
    write_layout(&world.folder(), 2);
    for world in [&world, &world.other().await] {
        let error = look(world).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Fatal);
        assert!(error.message().contains("layout 2") && error.message().contains("layout 1"), "{error}");
    }
    // A whole folder of another release.
    let place = tempfile::tempdir().unwrap();
    fs::create_dir(place.path().join("rendez-7")).unwrap();
    let error = refused(place.path()).await;
    assert!(error.kind() == ErrorKind::Fatal && error.message().contains("layout 7"), "{error}");
    assert!(!place.path().join("rendez-1").exists());
}

#[tokio::test]
async fn a_folder_that_cannot_serve_is_refused_with_the_reason() {
    let place = tempfile::tempdir().unwrap();
    let say = async |path: &Path, word: &str| {
        let error = refused(path).await;
        assert_eq!(error.kind(), ErrorKind::Fatal, "{error}");
        assert!(error.message().contains(word), "{error}");
    };
    say(&place.path().join("none/store"), "make that first").await;
    fs::write(place.path().join("file"), "mine").unwrap();
    say(&place.path().join("file"), "is no folder").await;
    say(&place.path().join("file/store"), "").await;
    say(place.path(), "holds other things (file)").await;
    say(&place.path().join("x".repeat(300)), "").await;
    assert_eq!(fs::read(place.path().join("file")).unwrap(), b"mine");
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);

    FileStore::connect(&format!("file:{}/store", place.path().display()), options()).await.unwrap();
    assert!(place.path().join("store/rendez-1").is_dir());
    // What is there already is taken as it is.
    FileStore::connect(&format!("file://{}/store", place.path().display()), options()).await.unwrap();
    assert_eq!(FileStore::connect("redis://x", options()).await.unwrap_err().kind(), ErrorKind::Fatal);
    let mut options = FileOptions::default();
    options.operation_timeout = Duration::ZERO;
    assert_eq!(FileStore::open(place.path().join("store"), options).await.unwrap_err().kind(), ErrorKind::Fatal);
}

#[tokio::test]
async fn strange_names_stay_in_the_folder_and_apart() {
    let mut world = World::new().await;
    let long = "é".repeat(100);
    let longer = "É".repeat(100);
    let names = ["..", ".", "a/b", "a", "A", "/etc", "a+", "%2e.", "^a", "*?[x]", " ", "🦀", &long, &longer, "lock"];
    for name in names {
        world.cluster = ClusterName::new(name).unwrap();
        world.known = Known::default();
        let session = world.open(name).await;
        for odd in ["../../x/0", "{}*/1", "🦀\u{2028}\"\\/2", "//3"] {
            world.acquire(session, &slot(odd), FencingToken::NONE).await;
        }
    }
    for name in names {
        world.cluster = ClusterName::new(name).unwrap();
        let again = World { cluster: world.cluster.clone(), ..world.other().await };
        let (_, items) = again.snapshot(None).await;
        let nodes = items.iter().filter_map(|item| match item {
            Change::Session(_, Some(record)) => Some(record.info.node.as_str()),
            _ => None,
        });
        assert_eq!(nodes.collect::<Vec<_>>(), [name], "its own session and no other");
        assert_eq!(again.slots().await.len(), 4);
    }
    let top: Vec<_> = fs::read_dir(&world.root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(top, ["rendez-1"]);
}

#[tokio::test]
async fn a_removed_folder_is_a_loss_of_data_that_a_node_who_remembers_brings_up() {
    let mut world = World::new().await;
    let session = world.open("a").await;
    let stamp = world.beat(session).await.unwrap().stamp;
    let token = world.acquire(session, &slot("w/0"), FencingToken::NONE).await;
    fs::remove_dir_all(&world.root).unwrap();

    // The root is made again; its parent is there.
    world.known = Known { generation: Some(stamp.generation), token, session_ttl_max: TTL_MAX };
    assert_eq!(kind(world.beat(session).await), ErrorKind::Lost);
    let (session, after) = opened(world.try_open(open_request("a")).await.unwrap());
    assert_ne!(after.generation, stamp.generation);
    assert!(after.quiet > TTL, "{after:?}");
    assert!(after.token > token);
    let outcome = world.change(session, &slot("w/0"), FencingToken::NONE, acquire()).await;
    assert_eq!(conflict(&outcome), Conflict::Quiet);
    world.known.generation = Some(after.generation);
    assert_eq!(done(world.change(session, &slot("w/0"), token, ChangeKind::Readopt).await).token, token);
}

#[tokio::test]
async fn a_lock_that_another_process_keeps_is_transient_and_what_was_given_up_never_happens() {
    let world = World::new().await;
    let session = world.open("a").await;
    let before = content(&world).await;
    let mut hasty = options();
    hasty.operation_timeout = millis(100);
    let hasty = World::at(&world.root, hasty).await;
    {
        let _lock = lock(&world.folder());
        let error = hasty.try_open(open_request("b")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Transient);
        assert!(error.message().contains("lock"), "{error}");
        let changes = vec![SlotChange { slot: slot("w/0"), token: FencingToken::NONE, kind: acquire() }];
        let request = ChangeRequest { known: Known::default(), session, changes };
        // One that nobody waits for any more.
        let call = hasty.store.change(&hasty.cluster, &request);
        assert!(tokio::time::timeout(millis(20), call).await.is_err());
        // More of them than can wait.
        let all = (0..400).map(|_| {
            let (store, cluster, request) = (hasty.store.clone(), hasty.cluster.clone(), request.clone());
            tokio::spawn(async move { store.change(&cluster, &request).await })
        });
        for one in all.collect::<Vec<_>>() {
            assert_eq!(kind(one.await.unwrap()), ErrorKind::Transient);
        }
    }
    // Its thread finds out one after another that nobody waits for these.
    while let Err(error) = look(&hasty).await {
        assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    }
    assert_eq!(content(&hasty).await, before);
    assert_eq!(content(&world).await, before);
    opened(hasty.try_open(open_request("b")).await.unwrap());
}

#[test]
fn waiting_for_the_lock_does_not_block_a_runtime_of_one_thread() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let world = World::new().await;
        let session = world.open("a").await;
        let lock = lock(&world.folder());
        let waiting = {
            let other = world.other().await;
            tokio::spawn(async move { other.beat(session).await })
        };
        // These could not pass if the runtime waited.
        for _ in 0..20 {
            tokio::time::sleep(millis(5)).await;
        }
        assert!(!waiting.is_finished());
        drop(lock);
        waiting.await.unwrap().unwrap();
    });
}

#[tokio::test]
async fn hints_go_to_other_handles_and_a_heartbeat_is_none() {
    let (world, other) = {
        let world = World::new().await;
        let other = world.other().await;
        (world, other)
    };
    let session = world.open("a").await;
    let mut watch = other.store.watch(&other.cluster).await.unwrap();
    for _ in 0..20 {
        world.beat(session).await.unwrap();
    }
    let none = tokio::time::timeout(millis(300), watch.next()).await;
    assert!(none.is_err(), "heartbeats wake nobody: {none:?}");
    let token = world.acquire(session, &slot("w/0"), FencingToken::NONE).await;
    for _ in 0..3 {
        // Waiting for a hint and giving it up loses none.
        assert!(tokio::time::timeout(millis(20), watch.next()).await.is_err());
    }
    done(world.change(session, &slot("w/0"), token, release()).await);
    let hint = tokio::time::timeout(Duration::from_secs(20), watch.next()).await.unwrap();
    assert_eq!(hint, Some(WatchHint::Everyone));
    fs::remove_dir_all(world.folder()).unwrap();
    let end = async { while watch.next().await.is_some() {} };
    tokio::time::timeout(Duration::from_secs(20), end).await.expect("the watch ends with its folder");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn folding_the_journal_disturbs_no_reader() {
    let place = tempfile::tempdir().unwrap();
    let mut short = options();
    short.journal_bytes_max = 1024;
    let writer = World::at(&place.path().join("store"), short.clone()).await;
    let session = writer.open_for("a", TTL_MAX).await;
    let stop = tokio_stop();
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (root, short, stop) = (writer.root.clone(), short.clone(), stop.1.clone());
            tokio::spawn(async move {
                let reader = World::at(&root, short).await;
                let (mut seen, mut tokens, mut reads) = (Revision(0), BTreeMap::new(), 0);
                while !*stop.borrow() {
                    let (stamp, items) = reader.snapshot(None).await;
                    assert!(stamp.revision >= seen);
                    seen = stamp.revision;
                    for item in items {
                        if let Change::Slot(slot, Some(record)) = item {
                            let before = tokens.insert(slot, record.token).unwrap_or_default();
                            assert!(record.token >= before);
                        }
                    }
                    reads += 1;
                }
                assert!(reads > 0);
            })
        })
        .collect();
    let mut tokens = BTreeMap::new();
    for round in 0..60 {
        let at = Slot::new("w".parse().unwrap(), round % 8);
        let before = tokens.get(&at).copied().unwrap_or_default();
        let token = writer.acquire(session, &at, before).await;
        assert!(token > before);
        tokens.insert(at, token);
    }
    stop.0.send(true).unwrap();
    for reader in readers {
        reader.await.unwrap();
    }
    let fresh = writer.other().await;
    let slots = fresh.slots().await;
    assert_eq!(slots.into_iter().map(|(slot, record)| (slot, record.token)).collect::<BTreeMap<_, _>>(), tokens);
    let _lock = lock(&writer.folder());
    let name = journal(&writer.folder()).file_name().unwrap().to_string_lossy().into_owned();
    let number: u32 = name.trim_start_matches("journal-").trim_end_matches(".jsonl").parse().unwrap();
    assert!(number > 5, "the journal was folded often: {name}");
    assert!(!writer.folder().join("snapshot.new").exists());
}

fn tokio_stop() -> (tokio::sync::watch::Sender<bool>, tokio::sync::watch::Receiver<bool>) {
    tokio::sync::watch::channel(false)
}

#[tokio::test]
async fn what_a_killed_folding_left_is_cleaned_up() {
    let world = World::new().await;
    world.open("a").await;
    let before = content(&world).await;
    let folder = world.folder();
    fs::write(folder.join("snapshot.new"), "{\"sum\":").unwrap();
    fs::write(folder.join("journal-2.jsonl"), "").unwrap();
    let other = world.other().await;
    assert_eq!(content(&other).await, before);
    assert!(!folder.join("snapshot.new").exists() && !folder.join("journal-2.jsonl").exists());
    // A cluster whose first process was killed before there was a snapshot.
    let fresh = World { cluster: "fresh".parse().unwrap(), ..world.other().await };
    fs::create_dir(fresh.folder()).unwrap();
    fs::write(fresh.folder().join("journal-1.jsonl"), "").unwrap();
    fs::write(fresh.folder().join("snapshot.new"), "{").unwrap();
    fresh.open("a").await;
    assert_eq!(content(&fresh.other().await.named("fresh")).await, content(&fresh).await);
}

fn disk(options: &str) -> Option<Disk> {
    Disk::mount(options)
        .map_err(|error| eprintln!("SKIPPED: no small disk can be mounted, only root may: {error}"))
        .ok()
}

#[tokio::test]
async fn a_full_disk_throttles_what_grows_and_sessions_live_on() {
    let Some(disk) = disk("size=4m") else { return };
    let root = disk.path().join("store");
    let mut short = options();
    short.journal_bytes_max = 4096;
    let world = World::at(&root, short).await;
    let session = world.open_for("a", TTL_MAX).await;
    let token = world.acquire(session, &slot("w/0"), FencingToken::NONE).await;
    let filler = disk.path().join("filler");
    fill(&filler);
    // What was set aside may serve for a while; then it is refused before anything is written.
    let mut refused = None;
    let mut done_since = 0;
    for unit in 1..20_000 {
        let at = Slot::new("w".parse().unwrap(), unit);
        match world.changes(session, vec![(at, FencingToken::NONE, acquire())]).await {
            Ok(_) => done_since += 1,
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    let error = refused.expect("the disk is full");
    assert_eq!(error.kind(), ErrorKind::Throttled, "{error}");
    assert!(error.message().contains("full"), "{error}");
    assert_eq!(kind(world.try_open(open_request("b")).await), ErrorKind::Throttled);
    for _ in 0..2000 {
        world.beat(session).await.unwrap();
    }
    // Letting go needs no room.
    done(world.change(session, &slot("w/1"), world.slots().await[&slot("w/1")].token, release()).await);
    // Nothing that was answered is lost, for those who read it anew too; nothing that was refused is there.
    let other = world.other().await;
    other.beat(session).await.unwrap();
    assert_eq!(other.slots().await.len(), 1 + done_since);
    assert_eq!(other.slots().await[&slot("w/0")].token, token);
    assert_eq!(content(&other).await, content(&world).await);
    fs::remove_file(&filler).unwrap();
    world.acquire(session, &slot("w/9999"), FencingToken::NONE).await;
    opened(world.try_open(open_request("b")).await.unwrap());
    assert_eq!(content(&other).await, content(&world).await);
}

#[tokio::test]
async fn a_read_only_disk_is_fatal_and_can_be_made_writable_again() {
    let Some(disk) = disk("size=4m") else { return };
    let root = disk.path().join("store");
    let world = World::at(&root, options()).await;
    let session = world.open("a").await;
    drop(world);
    // The threads have closed their files when they end.
    let mut tries = 0;
    while !disk.remount("ro") {
        tries += 1;
        assert!(tries < 1000, "somebody still writes");
        tokio::time::sleep(millis(10)).await;
    }
    let error = FileStore::open(&root, options()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fatal, "{error}");
    assert!(disk.remount("rw"));
    let world = World::at(&root, options()).await;
    world.beat(session).await.unwrap();
}

/// A file system of our own that can be frozen, as a disk that does not answer.
struct Frozen {
    place: tempfile::TempDir,
}

impl Frozen {
    fn mount() -> Result<Self, String> {
        let place = tempfile::tempdir().unwrap();
        let image = place.path().join("image");
        fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
        let frozen = Self { place };
        fs::create_dir(frozen.path()).unwrap();
        let image = image.to_str().unwrap();
        frozen.run("mkfs.ext4", &["-q", image])?;
        frozen.run("mount", &["-o", "loop", image, frozen.path().to_str().unwrap()])?;
        Ok(frozen)
    }

    fn path(&self) -> std::path::PathBuf {
        self.place.path().join("disk")
    }

    fn run(&self, program: &str, words: &[&str]) -> Result<(), String> {
        let output = std::process::Command::new(program).args(words).output();
        match output {
            Ok(output) if output.status.success() => Ok(()),
            other => Err(format!("{program}: {other:?}")),
        }
    }

    fn freeze(&self, word: &str) -> Result<(), String> {
        self.run("fsfreeze", &[word, self.path().to_str().unwrap()])
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = self.freeze("-u");
        let _ = self.run("umount", &["-l", self.path().to_str().unwrap()]);
    }
}

#[tokio::test]
async fn a_disk_that_does_not_answer_leaves_the_outcome_open() {
    let disk = match Frozen::mount() {
        Ok(disk) => disk,
        Err(error) => return eprintln!("SKIPPED: no disk can be frozen, only root may: {error}"),
    };
    let mut hasty = options();
    hasty.operation_timeout = millis(300);
    let world = World::at(&disk.path().join("store"), options()).await;
    let session = world.open_for("a", TTL_MAX).await;
    let hasty = World::at(&world.root, hasty).await;
    // What is read for the first time may want the disk too.
    while hasty.beat(session).await.is_err() {}
    let take = acquire();
    disk.freeze("-f").unwrap();
    let request = || vec![(slot("w/0"), FencingToken::NONE, take.clone())];
    let first = hasty.changes(session, request()).await;
    // This one waits behind it, and has not been begun.
    let second = hasty.changes(session, vec![(slot("w/1"), FencingToken::NONE, acquire())]).await;
    disk.freeze("-u").unwrap();
    assert_eq!(kind(first), ErrorKind::Ambiguous);
    assert_eq!(kind(second), ErrorKind::Transient);
    // The same request again tells.
    let reply = loop {
        match hasty.changes(session, request()).await {
            Ok(reply) => break reply,
            Err(error) => assert!(matches!(error.kind(), ErrorKind::Transient | ErrorKind::Ambiguous), "{error}"),
        }
    };
    let token = done(reply.outcomes.into_iter().next().unwrap()).token;
    assert_eq!(world.beat(session).await.unwrap().held.count, 1, "done once, and the other never");
    assert_eq!(world.slots().await[&slot("w/0")].token, token);
}
