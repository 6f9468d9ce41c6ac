//! Many real processes on one folder, some of which are killed or stopped at any moment.
//!
//! The program starts itself again in the parts of writers; so it has a `main` of its own. Its checks run one after another.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rendez_core::*;
use rendez_file::{FileOptions, FileStore};
use rustix::process::{Pid, Signal, kill_process};
use support::*;

const HAMMERED: u32 = 4;
const SHARED: u32 = 6;
const GRANTS_EACH: u32 = 60;

type Checks = &'static [(&'static str, fn(&tokio::runtime::Runtime))];

const CHECKS: Checks = &[
    ("many_processes_take_turns_and_never_hold_a_slot_together", take_turns),
    ("what_a_killed_writer_was_told_is_there_and_the_rest_is_whole", kill_writers),
    ("a_stopped_holder_of_the_lock_delays_others_and_its_death_frees_them", stop_holder),
    ("stopped_writers_lose_nothing", stop_writers),
    ("the_rights_of_the_files_are_all_that_counts", rights),
    ("a_container_with_a_boot_time_of_its_own_has_the_same_time", time_namespace),
];

/// It takes long and has a process of its own: it runs beside the others.
const IDLE: &str = "threads_end_when_they_have_nothing_to_do";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["child", "hammer", root, node] => runtime.block_on(hammer(Path::new(root), node)),
        ["child", "turns", root, node] => runtime.block_on(turns(Path::new(root), node)),
        ["child", "connect", root] => runtime.block_on(connect(Path::new(root))),
        ["child", "idle", root] => idle_threads(&runtime, Path::new(root)),
        ["child", "lock", root] => hold_lock(Path::new(root)),
        ["--list", ..] => {
            CHECKS.iter().for_each(|(name, _)| println!("{name}: test"));
            println!("{IDLE}: test");
        }
        _ => {
            let wanted = |name: &str| {
                let words: Vec<_> = arguments.iter().filter(|word| !word.starts_with("--")).collect();
                words.is_empty() || words.iter().any(|word| name.contains(word.as_str()))
            };
            let (_place, root) = place();
            let idle = wanted(IDLE).then(|| Part::start(&["idle", text(&root)]));
            for (name, check) in CHECKS.iter().filter(|(name, _)| wanted(name)) {
                print!("test {name} ... ");
                std::io::stdout().flush().unwrap();
                check(&runtime);
                println!("ok");
            }
            if let Some(idle) = idle {
                print!("test {IDLE} ... ");
                std::io::stdout().flush().unwrap();
                let (status, _) = idle.end(false);
                assert!(status.success(), "{status}");
                println!("ok");
            }
        }
    }
}

// --- the parts ---

/// Folds often, so that kills meet that too.
fn short() -> FileOptions {
    let mut options = options();
    options.journal_bytes_max = 4096;
    options
}

fn say(words: String) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{words}").unwrap();
    out.flush().unwrap();
}

/// Takes slots of its own and lets them go, and says so each time it was answered.
async fn hammer(root: &Path, node: &str) {
    let world = World::at(root, short()).await;
    let session = world.open_for(node, TTL_MAX).await;
    let mut tokens = BTreeMap::new();
    for round in 0.. {
        let at = Slot::new(format!("own {node}").try_into().unwrap(), round % HAMMERED);
        let before = tokens.get(&at).copied().unwrap_or_default();
        let token = world.acquire(session, &at, before).await;
        say(format!("acquired\t{at}\t{}", token.get()));
        tokens.insert(at.clone(), token);
        world.beat(session).await.unwrap();
        if round % 3 == 0 {
            done(world.change(session, &at, token, release()).await);
            say(format!("released\t{at}\t{}", token.get()));
        }
    }
}

/// Takes slots that others want too; while it has one it makes a file that nobody else may have made.
async fn turns(root: &Path, node: &str) {
    let world = World::at(root, short()).await;
    let session = world.open_for(node, TTL_MAX).await;
    let mut granted = 0;
    while granted < GRANTS_EACH {
        for unit in 0..SHARED {
            let at = Slot::new("shared".try_into().unwrap(), unit);
            let record = match world.change(session, &at, FencingToken::NONE, acquire()).await {
                ChangeOutcome::Done(record) | ChangeOutcome::Refused(_, record) => record,
            };
            let record = record.unwrap();
            let token = if record.is_held_by(session) {
                record.token
            } else {
                match world.change(session, &at, record.token, acquire()).await {
                    ChangeOutcome::Done(record) => record.unwrap().token,
                    ChangeOutcome::Refused(..) => continue,
                }
            };
            let mine = root.parent().unwrap().join(format!("held {unit}"));
            std::fs::OpenOptions::new().write(true).create_new(true).open(&mine).expect("nobody else holds the slot");
            say(format!("acquired\t{at}\t{}", token.get()));
            granted += 1;
            std::fs::remove_file(&mine).unwrap();
            done(world.change(session, &at, token, release()).await);
        }
    }
}

/// Says how far it gets.
async fn connect(root: &Path) {
    let cluster = ClusterName::new("test").unwrap();
    let request = open_request("other");
    let came = match FileStore::open(root, options()).await {
        Ok(store) => store.open(&cluster, &request).await.map(|_| ()),
        Err(error) => Err(error),
    };
    say(match came {
        Ok(()) => "in".to_owned(),
        Err(error) => format!("{:?} {error}", error.kind()),
    });
}

fn hold_lock(root: &Path) {
    let _lock = lock(&cluster_folder(root, "test"));
    say("locked".to_owned());
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

// --- their starter ---

/// A part that runs as a process, killed at the end.
struct Part {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Part {
    fn start(words: &[&str]) -> Self {
        Self::start_with(Command::new(std::env::current_exe().unwrap()), words)
    }

    fn start_with(mut command: Command, words: &[&str]) -> Self {
        let mut child = command.arg("child").args(words).stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let lines = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&lines);
        let reader = std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                into.lock().unwrap().push(line);
            }
        });
        Self { child, lines, reader: Some(reader) }
    }

    fn wait_for_lines(&mut self, count: usize) {
        for _ in 0..6000 {
            if self.lines.lock().unwrap().len() >= count {
                return;
            }
            assert_eq!(self.child.try_wait().unwrap(), None, "the process has ended");
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("no {count} lines: {:?}", self.lines.lock().unwrap());
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// All that it said, once it has ended.
    fn end(mut self, kill: bool) -> (ExitStatus, Vec<String>) {
        if kill {
            self.child.kill().unwrap();
        }
        let status = self.child.wait().unwrap();
        self.reader.take().unwrap().join().unwrap();
        let lines = std::mem::take(&mut *self.lines.lock().unwrap());
        (status, lines)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The last whole words about each slot: whether it was acquired, and the token.
fn told(lines: &[String]) -> BTreeMap<Slot, (bool, FencingToken)> {
    let mut told = BTreeMap::new();
    for line in lines {
        let [what, at, token] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line:?}") };
        told.insert(slot(at), (what == "acquired", FencingToken::new(token.parse().unwrap())));
    }
    told
}

fn tokens(lines: &[String]) -> impl Iterator<Item = (Slot, FencingToken)> + '_ {
    lines.iter().filter(|line| line.starts_with("acquired")).map(|line| {
        let parts: Vec<_> = line.split('\t').collect();
        (slot(parts[1]), FencingToken::new(parts[2].parse().unwrap()))
    })
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("store");
    (place, root)
}

// --- the checks ---

fn take_turns(runtime: &tokio::runtime::Runtime) {
    let (_place, root) = place();
    let parts: Vec<_> = (0..4).map(|part| Part::start(&["turns", text(&root), &format!("n{part}")])).collect();
    let (mut seen, mut grants) = (BTreeSet::new(), 0);
    let mut last = BTreeMap::new();
    for part in parts {
        let (status, lines) = part.end(false);
        assert!(status.success(), "{status}");
        let mut before = BTreeMap::new();
        for (slot, token) in tokens(&lines) {
            assert!(before.insert(slot.clone(), token).is_none_or(|before| before < token), "tokens rise");
            assert!(seen.insert(token), "no token is granted twice");
            let most = last.entry(slot).or_insert(token);
            *most = token.max(*most);
            grants += 1;
        }
    }
    assert!(grants >= 4 * GRANTS_EACH);
    let slots = runtime.block_on(async { World::at(&root, options()).await.slots().await });
    assert_eq!(slots.into_iter().map(|(slot, record)| (slot, record.token)).collect::<BTreeMap<_, _>>(), last);
}

fn kill_writers(runtime: &tokio::runtime::Runtime) {
    let (_place, root) = place();
    let world = runtime.block_on(World::at(&root, short()));
    let session = runtime.block_on(world.open_for("observer", TTL_MAX));
    let mut all = BTreeSet::new();
    let mut folded = 0;
    for round in 0..40_u64 {
        let names = [format!("a{round}"), format!("b{round}")];
        let mut parts: Vec<_> = names.iter().map(|name| Part::start(&["hammer", text(&root), name])).collect();
        parts.iter_mut().for_each(|part| part.wait_for_lines(1 + usize::try_from(round % 5).unwrap() * 4));
        std::thread::sleep(Duration::from_micros(fastrand::u64(0..8000)));
        let said: Vec<_> = parts.into_iter().map(|part| part.end(true).1).collect();
        // One handle that has followed all the time, and one that reads anew.
        let (followed, reread) = runtime.block_on(async {
            world.beat(session).await.unwrap();
            (world.slots().await, World::at(&root, short()).await.slots().await)
        });
        assert_eq!(followed, reread, "round {round}");
        for lines in &said {
            for (slot, (acquired, token)) in told(lines) {
                let record = &reread[&slot];
                // One request more may have been on its way.
                assert!(record.token >= token, "round {round}: {slot} was granted {token:?} and has {record:?}");
                assert!(acquired || record.token > token || record.holder.is_none(), "{slot} was released: {record:?}");
            }
            for (slot, token) in tokens(lines) {
                assert!(all.insert(token), "round {round}: {slot} got {token:?} a second time");
            }
        }
        let _lock = lock(&world.folder());
        folded += u32::from(!journal(&world.folder()).ends_with("journal-1.jsonl"));
    }
    assert!(folded > 30, "the kills met folding too: {folded}");
}

fn stop_holder(runtime: &tokio::runtime::Runtime) {
    let (_place, root) = place();
    let mut hasty = options();
    hasty.operation_timeout = Duration::from_millis(150);
    let world = runtime.block_on(World::at(&root, options()));
    let session = runtime.block_on(world.open_for("a", TTL_MAX));
    let mut part = Part::start(&["lock", text(&root)]);
    part.wait_for_lines(1);
    part.signal(Signal::STOP);
    let hasty = runtime.block_on(World::at(&root, hasty));
    for _ in 0..3 {
        assert_eq!(kind(runtime.block_on(hasty.beat(session))), ErrorKind::Transient);
    }
    part.end(true);
    runtime.block_on(world.beat(session)).unwrap();
    // The thread that waited is of use again.
    runtime.block_on(async {
        for _ in 0..200 {
            match hasty.beat(session).await {
                Ok(_) => return,
                Err(error) => assert_eq!(error.kind(), ErrorKind::Transient, "{error}"),
            }
        }
        panic!("no heartbeat after the lock was free");
    });
}

fn stop_writers(runtime: &tokio::runtime::Runtime) {
    let (_place, root) = place();
    let mut hasty = short();
    hasty.operation_timeout = Duration::from_millis(100);
    let hasty = runtime.block_on(World::at(&root, hasty));
    let mut part = Part::start(&["hammer", text(&root), "a"]);
    part.wait_for_lines(1);
    let (mut served, mut delayed) = (0, 0);
    for _ in 0..60 {
        std::thread::sleep(Duration::from_micros(fastrand::u64(0..3000)));
        part.signal(Signal::STOP);
        let request = SnapshotRequest { known: Known::default(), session: None, cursor: None };
        match runtime.block_on(hasty.store.snapshot(&hasty.cluster, &request)) {
            Ok(_) => served += 1,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
                delayed += 1;
            }
        }
        part.signal(Signal::CONT);
    }
    let lines = part.lines.lock().unwrap().len();
    part.wait_for_lines(lines + 20);
    let (_, lines) = part.end(true);
    let slots = runtime.block_on(async { World::at(&root, options()).await.slots().await });
    for (slot, (_, token)) in told(&lines) {
        assert!(slots[&slot].token >= token);
    }
    println!("({served} served, {delayed} delayed by a stopped holder of the lock)");
}

fn rights(runtime: &tokio::runtime::Runtime) {
    const NOBODY: u32 = 65534;
    let (place, root) = place();
    let open = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    open(place.path(), 0o755);
    // The folder that the program was built in may be closed to others.
    let program = place.path().join("program");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    if std::os::unix::fs::chown(&program, Some(NOBODY), Some(NOBODY)).is_err() {
        println!("SKIPPED: only root may act as another user");
        return;
    }
    let other = || {
        let mut command = Command::new(&program);
        command.uid(NOBODY).gid(NOBODY);
        let (status, lines) = Part::start_with(command, &["connect", text(&root)]).end(false);
        assert!(status.success() && lines.len() == 1, "{status} {lines:?}");
        lines[0].clone()
    };
    let said = other();
    assert!(said.starts_with("Fatal") && said.contains("cannot make"), "a parent that is not its own: {said}");
    std::fs::create_dir(&root).unwrap();
    std::os::unix::fs::chown(&root, Some(NOBODY), Some(NOBODY)).unwrap();
    open(&root, 0o700);
    assert_eq!(other(), "in", "a folder of its own is all it needs");
    // Root's process beside it, and files that it may read only.
    let world = runtime.block_on(World::at(&root, options()));
    assert_eq!(runtime.block_on(world.snapshot(None)).1.len(), 2, "a session and the settings");
    for path in [world.folder().join("lock"), world.folder().join("snapshot.json"), journal(&world.folder())] {
        std::os::unix::fs::chown(&path, Some(0), Some(0)).unwrap();
        open(&path, 0o600);
        let said = other();
        assert!(said.starts_with("Fatal") && said.contains("right to read, write"), "{}: {said}", path.display());
        std::os::unix::fs::chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    open(&root, 0o500);
    let said = other();
    assert!(said.starts_with("Fatal") && said.contains("right to read, write"), "{said}");
}

fn time_namespace(runtime: &tokio::runtime::Runtime) {
    let (_place, root) = place();
    // A day ahead: were it believed, the session would have ended.
    let unshared = ["--time", "--boottime", "86400", "--fork", "--kill-child"];
    let probe = Command::new("unshare").args(unshared).arg("true").output();
    if !probe.as_ref().is_ok_and(|output| output.status.success()) {
        println!("SKIPPED: no time namespace can be made, only root may: {probe:?}");
        return;
    }
    let world = runtime.block_on(World::at(&root, options()));
    let session = runtime.block_on(world.open_for("a", TTL_MAX));
    let before = runtime.block_on(world.beat(session)).unwrap().stamp.now;
    let mut command = Command::new("unshare");
    command.args(unshared).arg(std::env::current_exe().unwrap());
    let mut part = Part::start_with(command, &["hammer", text(&root), "b"]);
    part.wait_for_lines(5);
    drop(part);
    let after = runtime.block_on(world.beat(session)).unwrap().stamp.now;
    assert!(after.since(before) < Duration::from_secs(3600), "{before:?} {after:?}");
}

fn idle_threads(runtime: &tokio::runtime::Runtime, root: &Path) {
    let threads = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
        names.filter(|name| name.trim() == "rendez-file").count()
    };
    let wait_for = |count: usize| {
        for _ in 0..9000 {
            if threads() == count {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{} threads, not {count}", threads());
    };
    wait_for(0);
    let mut world = runtime.block_on(World::at(root, options()));
    let session = runtime.block_on(world.open_for("a", TTL_MAX));
    for name in ["b", "c", "d"] {
        world = world.named(name);
        runtime.block_on(world.open("a"));
    }
    assert_eq!(threads(), 4, "one a cluster");
    world = world.named("test");
    // One of them goes on.
    for _ in 0..35 {
        runtime.block_on(world.beat(session)).unwrap();
        std::thread::sleep(Duration::from_secs(1));
    }
    wait_for(1);
    runtime.block_on(world.beat(session)).unwrap();
    let again = world.store.clone();
    drop(world);
    drop(again);
    wait_for(0);
}
