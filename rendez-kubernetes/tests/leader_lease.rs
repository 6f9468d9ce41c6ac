//! Elections on one Lease, against a server of the Lease API: among participants of this library, and with participants of client-go and
//! of the client for Python.

mod client_go;
mod python_client;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use client_go::{Elector, Times, Told};
use python_client::Python;
use rendez_core::{ErrorKind, Timestamp};
use rendez_kubernetes::k8s_openapi::api::coordination::v1::Lease;
use rendez_kubernetes::k8s_openapi::jiff;
use rendez_kubernetes::kube::config::{KubeConfigOptions, Kubeconfig};
use rendez_kubernetes::kube::{Api, Client, Config};
use rendez_kubernetes::{KubernetesOptions, LeaderLease, LeaderLeaseOptions};
use rendez_testkit::servers::{KubernetesServer, Verb};
use rendez_testkit::{clock, processes};
use serde_json::{Value, json};
use tokio::sync::watch;

/// Longer than anything here should take, even on a busy machine.
const BOUND: Duration = Duration::from_secs(60);
const NAME: &str = "controller";

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// The kubeconfig file that an address of the server names.
fn file(url: &str) -> PathBuf {
    PathBuf::from(url.split_once("kubeconfig=").unwrap().1)
}

fn access(url: &str) -> KubernetesOptions {
    let mut access = KubernetesOptions::default();
    access.kubeconfig = Some(file(url));
    access
}

/// A participant whose times are so short that a test can wait for them, and so long that a busy machine keeps them.
fn options(server: &KubernetesServer, identity: &str, lease_seconds: u64) -> LeaderLeaseOptions {
    let mut options = LeaderLeaseOptions::new(server.namespace(), NAME, identity);
    options.lease_duration = Duration::from_secs(lease_seconds);
    options.renew_interval = options.lease_duration / 5;
    options.retry_interval = options.lease_duration / 10;
    options
}

async fn start(server: &KubernetesServer, options: LeaderLeaseOptions) -> LeaderLease {
    LeaderLease::connect(&access(&server.url()), options).await.unwrap()
}

async fn ours(server: &KubernetesServer, identity: &str, lease_seconds: u64) -> LeaderLease {
    start(server, options(server, identity, lease_seconds)).await
}

fn times(lease_seconds: u64) -> Times {
    let lease_duration = Duration::from_secs(lease_seconds);
    Times { lease_duration, renew_deadline: lease_duration * 2 / 3, retry_period: lease_duration / 8 }
}

async fn api(server: &KubernetesServer) -> Api<Lease> {
    let kubeconfig = Kubeconfig::read_from(file(&server.url())).unwrap();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    config.default_retry = false;
    Api::namespaced(Client::try_from(config).unwrap(), server.namespace())
}

/// A participant of client-go.
struct Go {
    told: Arc<Told>,
    lasts: Duration,
    cancel: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Go {
    async fn start(server: &KubernetesServer, name: &str, identity: &str, lease_seconds: u64) -> Self {
        let (elector, told) = Elector::new(api(server).await, name, identity, times(lease_seconds));
        let (cancel, cancelled) = watch::channel(false);
        let task = tokio::spawn(elector.run(cancelled));
        Self { told, lasts: Duration::from_secs(lease_seconds), cancel, task }
    }

    fn token(&self) -> Option<u64> {
        self.told.token(self.lasts)
    }

    /// Its process dies.
    fn kill(&self) {
        self.task.abort();
    }

    /// Its context is cancelled, with `ReleaseOnCancel`.
    fn cancel(&self) {
        self.cancel.send_replace(true);
    }
}

/// Waits until it is so.
async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is() {
        assert!(started.elapsed() < BOUND, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn led(participant: &LeaderLease) -> u64 {
    tokio::time::timeout(BOUND, participant.wait_for_leadership()).await.expect("it leads").unwrap().get()
}

fn lease(server: &KubernetesServer) -> Value {
    server.leases().into_iter().find(|lease| lease["metadata"]["name"] == NAME).unwrap_or_default()
}

#[tokio::test]
async fn go_leads_and_ours_waits_until_it_has_died_and_its_time_is_over() {
    let server = KubernetesServer::start().await.unwrap();
    let go = Go::start(&server, NAME, "go", 8).await;
    until("Go leads", || go.token() == Some(0)).await;
    let ours = ours(&server, "ours", 8).await;
    until("ours knows who leads", || ours.leader().as_deref() == Some("go")).await;
    // Long enough for the Lease to expire were it not renewed.
    let begun = Instant::now();
    while begun.elapsed() < seconds(12.0) {
        assert!(!ours.is_leader() && ours.token().is_none());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(go.token(), Some(0));
    go.kill();
    let last = go.told.sent(0).unwrap();
    assert_eq!(led(&ours).await, 1, "the holder is another");
    assert!(clock::now() >= last + seconds(8.0), "it was early");
    assert_eq!((ours.leader().as_deref(), &lease(&server)["spec"]["holderIdentity"]), (Some("ours"), &json!("ours")));
}

#[tokio::test]
async fn ours_leads_and_go_waits_until_it_is_released() {
    let server = KubernetesServer::start().await.unwrap();
    let ours = ours(&server, "ours", 8).await;
    assert_eq!(led(&ours).await, 1);
    let made = lease(&server);
    let go = Go::start(&server, NAME, "go", 8).await;
    let begun = Instant::now();
    while begun.elapsed() < seconds(12.0) {
        assert!(go.token().is_none(), "Go takes a Lease that is renewed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let renewed = lease(&server);
    for (key, same) in
        [("holderIdentity", true), ("acquireTime", true), ("leaseTransitions", true), ("renewTime", false)]
    {
        assert_eq!(made["spec"][key] == renewed["spec"][key], same, "{key}: {made} {renewed}");
    }
    // Each releases in its own way, and the other follows.
    ours.resign().await.unwrap();
    assert!(!ours.is_leader() && ours.token().is_none());
    until("Go takes what is free", || go.token() == Some(2)).await;
    until("ours knows", || ours.leader().as_deref() == Some("go")).await;
    assert!(!ours.is_leader());
    go.cancel();
    assert_eq!(led(&ours).await, 3);
    assert!(go.told.has_released());
    ours.stop().await.unwrap();
    ours.stop().await.unwrap();
    let released = lease(&server);
    assert_eq!(
        (&released["spec"]["holderIdentity"], &released["spec"]["leaseDurationSeconds"]),
        (&json!(""), &json!(1)),
        "as client-go leaves it"
    );
    assert_eq!(ours.wait_for_leadership().await.unwrap_err().kind(), ErrorKind::Lost);
}

/// Others have written this participant, by the rules of client-go: one Lease serves both kinds, in both directions.
#[tokio::test]
async fn the_client_for_python_and_ours_lead_one_after_the_other() {
    let server = KubernetesServer::start().await.unwrap();
    let kubeconfig = file(&server.url());
    let python = || Python::start(&server, &kubeconfig, NAME, "python", 8);
    let first = python();
    until("Python leads", || first.leads()).await;
    let ours = ours(&server, "ours", 8).await;
    until("ours knows who leads", || ours.leader().as_deref() == Some("python")).await;
    // Longer than the Lease would live were it not renewed.
    let begun = Instant::now();
    while begun.elapsed() < seconds(12.0) {
        assert!(first.leads() && !ours.is_leader() && ours.token().is_none());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let renewed: jiff::Timestamp = lease(&server)["spec"]["renewTime"].as_str().unwrap().parse().unwrap();
    drop(first);
    let before = led(&ours).await;
    let last: jiff::Timestamp = lease(&server)["spec"]["renewTime"].as_str().unwrap().parse().unwrap();
    assert!(last.duration_since(renewed) >= jiff::SignedDuration::from_secs(8), "it was early: {renewed} {last}");
    // The other way: Python waits while ours renews, and leads when it has released.
    let second = python();
    let begun = Instant::now();
    while begun.elapsed() < seconds(12.0) {
        assert!(!second.leads(), "Python takes a Lease that is renewed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(ours.token().map(|token| token.get()), Some(before));
    ours.resign().await.unwrap();
    until("Python takes what is free", || second.leads()).await;
    until("ours knows", || ours.leader().as_deref() == Some("python")).await;
    assert!(!ours.is_leader());
    drop(second);
    assert!(led(&ours).await > before, "tokens rise, whoever led between");
}

/// With intervals of many seconds, only the watch can tell in time; and it alone does: nothing is read.
#[tokio::test]
async fn who_watches_takes_a_released_lease_without_asking() {
    let server = KubernetesServer::start().await.unwrap();
    let [a, b] = ["a", "b"].map(|identity| {
        let mut options = LeaderLeaseOptions::new(server.namespace(), NAME, identity);
        options.lease_duration = Duration::from_secs(600);
        options.renew_interval = Duration::from_secs(120);
        options.retry_interval = Duration::from_secs(100);
        options
    });
    let a = start(&server, a).await;
    assert_eq!(led(&a).await, 1);
    let b = start(&server, b).await;
    until("b follows", || b.leader().as_deref() == Some("a")).await;
    until("b watches", || server.requests(Verb::Watch) == 2).await;
    let reads = server.requests(Verb::Get);
    a.resign().await.unwrap();
    assert_eq!(led(&b).await, 2);
    assert_eq!(server.requests(Verb::Get), reads);
    until("a hears of it", || a.leader().as_deref() == Some("b")).await;
    // The handles go: that releases, too.
    drop(b);
    until("a takes it back", || a.token().is_some()).await;
    assert_eq!(lease(&server)["spec"]["leaseTransitions"], json!(3));
}

/// What the documentation says about rights: three are enough, and `watch` is for speed.
#[tokio::test]
async fn three_rights_are_enough() {
    let server = KubernetesServer::start().await.unwrap();
    let url = server.add_user_with("least", &[(&[Verb::Create], &[]), (&[Verb::Get, Verb::Update], &[NAME])]).unwrap();
    let connect = async |identity| LeaderLease::connect(&access(&url), options(&server, identity, 6)).await.unwrap();
    let (a, b) = (connect("a").await, connect("b").await);
    until("one leads", || a.is_leader() || b.is_leader()).await;
    let (first, second) = if a.is_leader() { (a, b) } else { (b, a) };
    until("the other knows", || second.leader().as_deref() == Some(first.identity())).await;
    first.stop().await.unwrap();
    led(&second).await;
    assert_eq!(server.requests(Verb::Watch), 0);
    // Without one of the three it says so, and does not press.
    let url = server.add_user("reader", &[Verb::Get, Verb::Watch]).unwrap();
    second.stop().await.unwrap();
    let reader = LeaderLease::connect(&access(&url), options(&server, "reader", 3)).await.unwrap();
    let mut states = reader.states();
    let told = states.wait_for(|state| state.trouble.is_some());
    let trouble = tokio::time::timeout(BOUND, told).await.unwrap().unwrap().trouble.clone().unwrap();
    assert!(trouble.contains("forbidden") && trouble.contains("rights"), "{trouble}");
    assert!(!reader.is_leader());
}

#[tokio::test]
async fn who_may_not_lead_knows_who_does() {
    let server = KubernetesServer::start().await.unwrap();
    let mut looker = options(&server, "looker", 3);
    looker.may_lead = false;
    let url = server.add_user("looker", &[Verb::Get]).unwrap();
    let looker = LeaderLease::connect(&access(&url), looker).await.unwrap();
    tokio::time::sleep(seconds(1.0)).await;
    assert_eq!((server.leases().len(), looker.leader()), (0, None));
    let a = ours(&server, "a", 6).await;
    until("it knows", || looker.leader().as_deref() == Some("a")).await;
    a.stop().await.unwrap();
    until("it knows that nobody does", || looker.leader().is_none()).await;
    assert!(!looker.is_leader());
}

#[tokio::test]
async fn a_server_that_stands_still_ends_leadership_by_the_deadline() {
    let server = KubernetesServer::start().await.unwrap();
    let options = options(&server, "a", 3);
    let a = start(&server, options.clone()).await;
    assert_eq!(led(&a).await, 1);
    server.stall();
    let mut last = Timestamp::ZERO;
    loop {
        let before = clock::now();
        let leads = a.is_leader();
        // A deadline only moves on.
        let Some(leading) = a.states().borrow().leading else { break };
        last = leading.deadline;
        assert!(!leads || before < last, "it leads at {before:?}, after its deadline {last:?}");
        if !leads {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(clock::now() >= last, "trouble ends it early");
    assert!(!a.is_leader() && a.token().is_none() && a.leader().is_none());
    until("it says why", || a.states().borrow().trouble.is_some()).await;
    server.resume();
    assert!(led(&a).await > 1, "a new tenure has a new token");
}

#[tokio::test]
async fn a_server_that_dies_ends_leadership_by_the_deadline_and_stopping_does_not_hang() {
    let server = KubernetesServer::start().await.unwrap();
    let options = options(&server, "a", 3);
    let a = start(&server, options.clone()).await;
    led(&a).await;
    drop(server);
    let deadline = a.states().borrow().leading.unwrap().deadline;
    tokio::time::timeout(BOUND, a.wait_for_loss()).await.unwrap();
    assert!(!a.is_leader() && clock::now() >= deadline, "a failure does not end it early");
    let error = tokio::time::timeout(BOUND, a.stop()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Ambiguous, "{error}");
    assert!(!a.is_leader());
}

/// Writes that happen and are answered with 504: the acquisition, renewals, the release.
#[tokio::test]
async fn lost_answers_are_found_out() {
    let server = KubernetesServer::start().await.unwrap();
    server.lose_answers(1, Duration::ZERO);
    let a = ours(&server, "a", 12).await;
    assert_eq!(led(&a).await, 1);
    assert_eq!(server.requests(Verb::Create), 1);
    let deadline = a.states().borrow().leading.unwrap().deadline;
    server.lose_answers(2, Duration::ZERO);
    until("it is renewed", || a.states().borrow().leading.is_some_and(|leading| leading.deadline > deadline)).await;
    assert_eq!(a.token().map(|token| token.get()), Some(1));
    server.lose_answers(1, Duration::ZERO);
    a.stop().await.unwrap();
    assert_eq!(lease(&server)["spec"]["holderIdentity"], json!(""));
}

#[tokio::test]
async fn a_lease_that_somebody_deletes_or_changes_is_noticed() {
    let server = KubernetesServer::start().await.unwrap();
    let a = ours(&server, "a", 12).await;
    assert_eq!(led(&a).await, 1);
    let uid = lease(&server)["metadata"]["uid"].clone();
    server.delete(NAME).await.unwrap();
    until("it is made again", || lease(&server)["spec"]["leaseTransitions"] == json!(2)).await;
    assert_ne!(lease(&server)["metadata"]["uid"], uid);
    until("it leads again", || a.token().map(|token| token.get()) == Some(2)).await;
    // Labels of others cost nothing and stay.
    let started = Instant::now();
    loop {
        let mut changed = lease(&server);
        changed["metadata"]["annotations"] = json!({ "note": "theirs" });
        changed["spec"]["strategy"] = json!("OldestEmulationVersion");
        if server.replace(&changed).await.is_ok() {
            break;
        }
        assert!(started.elapsed() < BOUND);
    }
    let before = lease(&server)["spec"]["renewTime"].clone();
    until("it is renewed", || lease(&server)["spec"]["renewTime"] != before).await;
    let after = lease(&server);
    assert_eq!(after["metadata"]["annotations"], json!({ "note": "theirs" }));
    assert_eq!(
        (&after["spec"]["strategy"], &after["spec"]["leaseTransitions"]),
        (&json!("OldestEmulationVersion"), &json!(2))
    );
    // Somebody takes it by force: ours is told.
    let started = Instant::now();
    loop {
        let mut taken = lease(&server);
        taken["spec"]["holderIdentity"] = json!("operator");
        if server.replace(&taken).await.is_ok() {
            break;
        }
        assert!(started.elapsed() < BOUND);
    }
    until("it knows", || !a.is_leader() && a.leader().as_deref() == Some("operator")).await;
}

/// The runtime stands, and with it the driver: nobody tells the handle anything, and it knows all the same.
#[test]
fn a_leader_whose_runtime_stood_still_does_not_lead_when_it_wakes() {
    let other = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let server = other.block_on(KubernetesServer::start()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let options = options(&server, "a", 2);
        let a = start(&server, options.clone()).await;
        assert_eq!(led(&a).await, 1);
        std::thread::sleep(options.lease_duration);
        assert!(!a.is_leader() && a.token().is_none() && a.leader().is_none(), "at once, before anything has run");
        assert!(led(&a).await > 1);
    });
}

// --- a process that is stopped ---

/// Tells the child of the test below what it is.
const CHILD: &str = "RENDEZ_TEST_LEADER_LEASE_CHILD";

/// What the child does: it takes part, and writes down when it led, each time with the moment before it asked.
async fn child(kubeconfig: &str, namespace: &str, records: &str) {
    use std::io::Write as _;
    let mut access = KubernetesOptions::default();
    access.kubeconfig = Some(PathBuf::from(kubeconfig));
    let mut options = LeaderLeaseOptions::new(namespace, NAME, "child");
    options.lease_duration = Duration::from_secs(3);
    (options.renew_interval, options.retry_interval) = (seconds(0.6), seconds(0.3));
    let election = LeaderLease::connect(&access, options).await.unwrap();
    let mut records = std::fs::File::options().append(true).create(true).open(records).unwrap();
    let started = Instant::now();
    // The parent ends it long before.
    while started.elapsed() < BOUND * 2 {
        let before = clock::now();
        let leads = election.is_leader();
        writeln!(records, "{} {}", before.as_nanos(), u8::from(leads)).unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// (when, whether it led)
fn read_records(file: &std::path::Path) -> Vec<(Timestamp, bool)> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    let pairs = lines.filter_map(|line| line.split_once(' '));
    pairs.map(|(at, led)| (Timestamp::from_nanos(at.parse().unwrap()), led == "1")).collect()
}

/// A process that is killed when this goes.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_process_that_was_stopped_does_not_lead_when_it_goes_on() {
    if let Ok(told) = std::env::var(CHILD) {
        let words: Vec<&str> = told.split('\t').collect();
        return child(words[0], words[1], words[2]).await;
    }
    let server = KubernetesServer::start().await.unwrap();
    let folder = file(&server.url()).parent().unwrap().to_owned();
    let records = folder.join("records");
    let told = format!("{}\t{}\t{}", file(&server.url()).display(), server.namespace(), records.display());
    let this = std::env::current_exe().unwrap();
    let mut command = std::process::Command::new(this);
    command.args(["--exact", "a_process_that_was_stopped_does_not_lead_when_it_goes_on"]).env(CHILD, told);
    command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    let process = Killed(command.spawn().unwrap());
    let pid = i32::try_from(process.0.id()).unwrap();
    until("the child leads", || read_records(&records).last().is_some_and(|(_, led)| *led)).await;
    let rival = ours(&server, "rival", 3).await;
    until("the rival waits", || rival.leader().as_deref() == Some("child")).await;
    processes::signal(pid, rustix::process::Signal::STOP).unwrap();
    until("it is stopped", || !processes::moves(pid)).await;
    assert!(led(&rival).await > 1);
    let taken_at = clock::now();
    processes::signal(pid, rustix::process::Signal::CONT).unwrap();
    until("it goes on", || read_records(&records).last().is_some_and(|(at, _)| *at > taken_at)).await;
    // For a while, in which it finds out who leads.
    tokio::time::sleep(seconds(2.0)).await;
    let led_after = read_records(&records).into_iter().find(|(at, led)| *led && *at >= taken_at);
    assert_eq!(led_after, None, "it led beside the rival, which took the Lease at {taken_at:?}");
}

// --- many, of both kinds, whose leaders are killed ---

/// Somebody who can be asked whether he leads, and under which token.
type Ask = Arc<dyn Fn() -> Option<u64> + Send + Sync>;

/// What a thread of its own has seen of one tenure.
#[derive(Debug, Clone)]
struct Seen {
    who: String,
    /// When the first answer that told of it was there.
    first: Timestamp,
    /// When the last question was asked that such an answer was to.
    last: Timestamp,
}

/// Asks all participants of one election, again and again, and judges what it has heard.
struct Witness {
    asked: Arc<Mutex<BTreeMap<String, Ask>>>,
    tenures: Arc<Mutex<BTreeMap<u64, Seen>>>,
    wrong: Arc<Mutex<Vec<String>>>,
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Witness {
    fn start() -> Self {
        let witness = Self {
            asked: Arc::default(),
            tenures: Arc::default(),
            wrong: Arc::default(),
            over: Arc::default(),
            thread: None,
        };
        let (asked, tenures) = (Arc::clone(&witness.asked), Arc::clone(&witness.tenures));
        let (wrong, over) = (Arc::clone(&witness.wrong), Arc::clone(&witness.over));
        let thread = std::thread::spawn(move || {
            while !over.load(Ordering::Acquire) {
                let asked: Vec<(String, Ask)> =
                    asked.lock().unwrap().iter().map(|(who, ask)| (who.clone(), Arc::clone(ask))).collect();
                for (who, ask) in asked {
                    let before = clock::now();
                    let Some(token) = ask() else { continue };
                    let after = clock::now();
                    let mut tenures = tenures.lock().unwrap();
                    let seen = Seen { who: who.clone(), first: after, last: before };
                    let seen = tenures.entry(token).and_modify(|known| known.last = before).or_insert(seen).clone();
                    if seen.who != who {
                        wrong.lock().unwrap().push(format!("{} and {who} both have the token {token}", seen.who));
                    }
                    // A later tenure had begun when this question was asked.
                    if let Some((later, other)) = tenures.range(token + 1..).find(|(_, other)| other.first < before) {
                        let what = format!("{who} leads under {token}, {} has led under {later}", other.who);
                        wrong.lock().unwrap().push(what);
                    }
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Self { thread: Some(thread), ..witness }
    }

    fn add(&self, who: &str, ask: Ask) {
        self.asked.lock().unwrap().insert(who.to_owned(), ask);
    }

    /// The dead are not asked.
    fn remove(&self, who: &str) {
        self.asked.lock().unwrap().remove(who);
    }

    fn last(&self) -> Option<(u64, Seen)> {
        self.tenures.lock().unwrap().last_key_value().map(|(token, seen)| (*token, seen.clone()))
    }

    fn end(mut self) -> usize {
        self.over.store(true, Ordering::Release);
        self.thread.take().unwrap().join().unwrap();
        let wrong = self.wrong.lock().unwrap();
        assert!(wrong.is_empty(), "{wrong:#?}");
        self.tenures.lock().unwrap().len()
    }
}

/// A participant that can be killed: ours with its whole runtime.
enum Participant {
    Ours { lease: LeaderLease, options: Box<LeaderLeaseOptions>, runtime: Option<tokio::runtime::Runtime> },
    Go(Go),
}

impl Participant {
    fn ask(&self) -> Ask {
        match self {
            Self::Ours { lease, .. } => {
                let lease = lease.clone();
                Arc::new(move || lease.token().map(|token| token.get()))
            }
            Self::Go(go) => {
                let (told, lasts) = (Arc::clone(&go.told), go.lasts);
                Arc::new(move || told.token(lasts))
            }
        }
    }

    /// When its last write under this token that succeeded was sent, if it still leads under it.
    fn sent(&self, token: u64) -> Option<Timestamp> {
        match self {
            Self::Ours { lease, options, .. } => {
                let leading = lease.states().borrow().leading.filter(|leading| leading.token.get() == token)?;
                Some(leading.deadline.saturating_sub(options.renew_deadline()))
            }
            Self::Go(go) => go.told.sent(token),
        }
    }

    fn kill(&mut self) {
        match self {
            Self::Ours { runtime, .. } => {
                if let Some(runtime) = runtime.take() {
                    runtime.shutdown_background();
                }
            }
            Self::Go(go) => go.kill(),
        }
    }
}

impl Drop for Participant {
    fn drop(&mut self) {
        self.kill();
    }
}

const LEASE_SECONDS: u64 = 2;

async fn join(server: &KubernetesServer, name: &str, who: &str, is_go: bool) -> Participant {
    if is_go {
        return Participant::Go(Go::start(server, name, who, LEASE_SECONDS).await);
    }
    let mut options = options(server, who, LEASE_SECONDS);
    options.name = name.to_owned();
    let access = access(&server.url());
    let (sender, made) = tokio::sync::oneshot::channel();
    let wanted = options.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let lease = runtime.block_on(LeaderLease::connect(&access, wanted)).unwrap();
        assert!(sender.send((lease, runtime)).is_ok());
    });
    let (lease, runtime) = made.await.unwrap();
    Participant::Ours { lease, options: Box::new(options), runtime: Some(runtime) }
}

/// One election of five: its leader is killed again and again, and somebody like it joins. Answers how long after the dead one's
/// time was over the next one led.
async fn kill_leaders(server: &KubernetesServer, name: String, kills: usize) -> Vec<Duration> {
    let witness = Witness::start();
    let mut alive: BTreeMap<String, Participant> = BTreeMap::new();
    // Their handles stay: to drop one is to release.
    let mut dead = Vec::new();
    for number in 0..5 {
        let who = format!("{name}-{number}");
        let participant = join(server, &name, &who, number % 2 == 1).await;
        witness.add(&who, participant.ask());
        alive.insert(who, participant);
    }
    let (mut delays, mut above) = (Vec::new(), None);
    for kill in 0..kills {
        let mut leader = None;
        until("somebody leads", || {
            leader = witness.last().filter(|(token, seen)| Some(*token) > above && alive.contains_key(&seen.who));
            leader.is_some()
        })
        .await;
        let (token, seen) = leader.unwrap();
        witness.remove(&seen.who);
        let mut victim = alive.remove(&seen.who).unwrap();
        let last = victim.sent(token);
        victim.kill();
        let is_go = matches!(victim, Participant::Go(_));
        dead.push(victim);
        let mut next = None;
        until("somebody follows", || {
            next = witness.last().filter(|(later, _)| *later > token);
            next.is_some()
        })
        .await;
        let first = next.unwrap().1.first;
        // It may have lost the Lease before it was killed.
        if let Some(last) = last {
            let over = last + Duration::from_secs(LEASE_SECONDS);
            assert!(first >= over, "{name}: early by {:?}", over.since(first));
            delays.push(first.since(over));
        }
        above = Some(token);
        let who = format!("{name}-{}", kill + 5);
        let participant = join(server, &name, &who, is_go).await;
        witness.add(&who, participant.ask());
        alive.insert(who, participant);
    }
    let tenures = witness.end();
    assert!(tenures > kills, "{tenures}");
    delays
}

/// Fifty leaders, in five elections at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_leads_at_a_time_though_fifty_are_killed() {
    let server = KubernetesServer::start().await.unwrap();
    let elections = (0..5).map(|number| kill_leaders(&server, format!("election-{number}"), 10));
    let mut delays: Vec<Duration> = futures_util::future::join_all(elections).await.concat();
    delays.sort();
    println!("{} takeovers after: p50 {:?}, last {:?}", delays.len(), delays.get(delays.len() / 2), delays.last());
}
