//! The Lease API of a Kubernetes API server, in this process: `coordination.k8s.io/v1` Leases over HTTP with bearer
//! tokens and roles. No program of Debian brings a real one; this behaves as version 1.36 was seen to.
//!
//! A real one takes its place where `RENDEZ_TEST_KUBERNETES_URL` names a namespace of it.

mod http;
mod lease;
mod objects;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};

pub use objects::Refusal;
use objects::{Objects, Selector, Wanted};

use super::{PortLease, ServerError};

/// What the paths of Leases begin with.
const NAMESPACE_PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/";

/// The namespace that [`KubernetesServer::url`] names.
const NAMESPACE: &str = "rendez-test";

/// The environment variable that names a real server's namespace.
const VARIABLE: &str = "RENDEZ_TEST_KUBERNETES_URL";

/// How often a watch that hears nothing is told how far it is.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);

/// The token of the user who may do everything.
const ADMIN: &str = "admin-token";

/// What a role lets a user do with Leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// Read one.
    Get,
    /// Read many.
    List,
    /// Hear of changes.
    Watch,
    /// Make one.
    Create,
    /// Change one.
    Update,
    /// Delete one.
    Delete,
}

impl Verb {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Get, Self::List, Self::Watch, Self::Create, Self::Update, Self::Delete];

    /// The word in a role.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Delete => "delete",
        }
    }

    /// The verb of a role's word; nothing for one that says nothing about Leases here.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verb| verb.as_str() == word)
    }
}

/// What a user may do in one namespace.
#[derive(Debug, Clone)]
struct Grant {
    namespace: String,
    verbs: Vec<Verb>,
    /// The objects that it is about (a rule's `resourceNames`); none: all.
    names: Vec<String>,
}

impl Grant {
    /// Whether it lets somebody do this, with the object of this name; a creation and a list of all name none.
    fn permits(&self, namespace: &str, verb: Verb, name: Option<&str>) -> bool {
        let names = || name.filter(|_| verb != Verb::Create).is_some_and(|name| self.names.iter().any(|it| it == name));
        self.namespace == namespace && self.verbs.contains(&verb) && (self.names.is_empty() || names())
    }
}

/// What happens to requests instead of being carried out.
#[derive(Debug, Default)]
struct Faults {
    /// The next requests are refused so.
    refusals: Vec<Refusal>,
    /// The next writes are carried out, and answered with 504 after this time.
    lost_answers: usize,
    lost_after: Duration,
}

/// How many requests of which kind there were, and how many bytes they sent.
#[derive(Debug, Default)]
struct Counts {
    requests: [AtomicUsize; Verb::ALL.len()],
    received: AtomicUsize,
    sent: AtomicUsize,
}

struct Shared {
    objects: Mutex<Objects>,
    users: Mutex<BTreeMap<String, Vec<Grant>>>,
    faults: Mutex<Faults>,
    /// The watches that are under way, each to be woken by what it is to be told.
    watches: Mutex<Vec<Weak<Watched>>>,
    stalled: watch::Sender<bool>,
    /// Rises when all connections are to be cut.
    cut: watch::Sender<u64>,
    counts: Counts,
    bookmark_interval: Mutex<Duration>,
}

/// What a watch wants to hear of.
struct Watched {
    namespace: String,
    selector: Selector,
    woken: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn read<T>(&self, read: impl FnOnce(&Objects) -> T) -> T {
        read(&lock(&self.objects))
    }

    async fn write<T>(&self, write: impl FnOnce(&mut Objects, &str) -> Result<T, Refusal>) -> Result<T, Refusal> {
        let clock = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second()).unwrap_or_default().to_string();
        let (done, concerned) = {
            let mut objects = lock(&self.objects);
            let before = objects.version();
            let done = write(&mut objects, &clock);
            let mut watches = lock(&self.watches);
            watches.retain(|watch| watch.strong_count() > 0);
            let concerned = |watch: &Weak<Watched>| {
                watch.upgrade().filter(|watch| objects.concerns(before, &watch.namespace, &watch.selector))
            };
            (done, watches.iter().filter_map(concerned).collect::<Vec<_>>())
        };
        concerned.iter().for_each(|watch| watch.woken.notify_one());
        let lost = {
            let mut faults = lock(&self.faults);
            let lost = faults.lost_answers > 0;
            faults.lost_answers = faults.lost_answers.saturating_sub(1);
            lost.then_some(faults.lost_after)
        };
        if let Some(after) = lost {
            tokio::time::sleep(after).await;
            return Err(Refusal::new(504, "Timeout", "request did not complete within requested timeout"));
        }
        done
    }

    /// Makes a watch known, for as long as it is kept.
    fn watched(&self, namespace: &str, selector: &Selector) -> Arc<Watched> {
        let watched = Watched { namespace: namespace.to_owned(), selector: selector.clone(), woken: Notify::new() };
        let watched = Arc::new(watched);
        lock(&self.watches).push(Arc::downgrade(&watched));
        watched
    }

    fn wake_all(&self) {
        lock(&self.watches).iter().filter_map(Weak::upgrade).for_each(|watch| watch.woken.notify_one());
    }

    /// Waits as long as the server stands still.
    async fn go_on(&self) {
        // Its sender lives as long as this.
        let _ = self.stalled.subscribe().wait_for(|stalled| !stalled).await;
    }

    fn user(&self, token: &str) -> Option<Vec<Grant>> {
        if token == ADMIN {
            let grant = |namespace: &str| Grant {
                namespace: namespace.to_owned(),
                verbs: Verb::ALL.to_vec(),
                names: Vec::new(),
            };
            return Some(vec![grant(NAMESPACE), grant("other")]);
        }
        lock(&self.users).get(token).cloned()
    }

    fn refusal_of_the_day(&self) -> Option<Refusal> {
        lock(&self.faults).refusals.pop()
    }

    fn count(&self, verb: Verb, bytes: usize) {
        self.counts.requests[verb as usize].fetch_add(1, Ordering::Relaxed);
        self.counts.received.fetch_add(bytes, Ordering::Relaxed);
    }

    fn count_sent(&self, bytes: usize) {
        self.counts.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    fn bookmark_interval(&self) -> Duration {
        *lock(&self.bookmark_interval)
    }
}

/// A running server, gone when this is dropped; or a namespace of a real one, from the environment.
pub struct KubernetesServer {
    shared: Arc<Shared>,
    port: PortLease,
    folder: tempfile::TempDir,
    /// Ends the server's thread.
    end: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl fmt::Debug for KubernetesServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubernetesServer").field("addr", &self.port.addr()).finish_non_exhaustive()
    }
}

impl KubernetesServer {
    /// The address that the environment gives for a real server: `kubernetes:NAMESPACE`.
    #[must_use]
    pub fn from_environment() -> Option<String> {
        std::env::var(VARIABLE).ok().filter(|url| !url.is_empty())
    }

    /// Starts one, in a thread of its own.
    ///
    /// # Errors
    /// [`ServerError::Io`] where the system refuses a port, a folder or a thread.
    pub async fn start() -> Result<Self, ServerError> {
        let port = PortLease::take()?;
        let folder = tempfile::tempdir().map_err(ServerError::io("make a folder for kubeconfig files"))?;
        let listener = std::net::TcpListener::bind(port.addr()).map_err(ServerError::io("bind a port"))?;
        listener.set_nonblocking(true).map_err(ServerError::io("set a socket up"))?;
        let shared = Arc::new(Shared {
            objects: Mutex::new(Objects::new()),
            users: Mutex::default(),
            faults: Mutex::default(),
            watches: Mutex::default(),
            stalled: watch::Sender::new(false),
            cut: watch::Sender::new(0),
            counts: Counts::default(),
            bookmark_interval: Mutex::new(BOOKMARK_INTERVAL),
        });
        let (end, ended) = tokio::sync::oneshot::channel();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.map_err(ServerError::io("start a runtime"))?;
        let serving = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("kubernetes".to_owned()).spawn(move || {
            let served = Arc::clone(&serving);
            runtime.spawn(async move {
                if let Ok(listener) = TcpListener::from_std(listener) {
                    listen(&served, &listener).await;
                }
            });
            let _ = runtime.block_on(ended);
            runtime.shutdown_background();
        });
        let thread = thread.map_err(ServerError::io("start a thread"))?;
        let server = Self { shared, port, folder, end: Some(end), thread: Some(thread) };
        server.write_kubeconfig(ADMIN)?;
        Ok(server)
    }

    /// The store's address for a user who may do everything.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of(ADMIN)
    }

    /// The namespace that the addresses name.
    #[must_use]
    pub fn namespace(&self) -> &'static str {
        NAMESPACE
    }

    /// `http://host:port`.
    #[must_use]
    pub fn http_url(&self) -> String {
        format!("http://{}", self.port.addr())
    }

    /// The bearer token of the user who may do everything.
    #[must_use]
    pub fn admin_token(&self) -> &'static str {
        ADMIN
    }

    fn url_of(&self, token: &str) -> String {
        format!("kubernetes:{NAMESPACE}?kubeconfig={}", self.folder.path().join(token).display())
    }

    /// Makes a user with this bearer token who may do just this in the namespace, and answers the address with it.
    ///
    /// # Errors
    /// [`ServerError::Io`] if no kubeconfig file can be written.
    pub fn add_user(&self, token: &str, verbs: &[Verb]) -> Result<String, ServerError> {
        self.add_user_with(token, &[(verbs, &[])])
    }

    /// The same with several rules, each of verbs and the names of the Leases that it is about (`resourceNames`; none:
    /// all of them).
    ///
    /// # Errors
    /// [`ServerError::Io`] if no kubeconfig file can be written.
    pub fn add_user_with(&self, token: &str, rules: &[(&[Verb], &[&str])]) -> Result<String, ServerError> {
        let grant = |(verbs, names): &(&[Verb], &[&str])| Grant {
            namespace: NAMESPACE.to_owned(),
            verbs: verbs.to_vec(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        };
        lock(&self.shared.users).insert(token.to_owned(), rules.iter().map(grant).collect());
        self.url_with_token(token)
    }

    /// The address with this bearer token, whether the server knows it or not.
    ///
    /// # Errors
    /// [`ServerError::Io`] if no kubeconfig file can be written.
    pub fn url_with_token(&self, token: &str) -> Result<String, ServerError> {
        self.write_kubeconfig(token)?;
        Ok(self.url_of(token))
    }

    fn write_kubeconfig(&self, token: &str) -> Result<(), ServerError> {
        write_kubeconfig(&self.folder.path().join(token), &self.http_url(), token)
    }

    /// The store's address for a user who may do everything, by another way: through a proxy, or to where nobody listens.
    ///
    /// # Errors
    /// [`ServerError::Io`] if no kubeconfig file can be written.
    pub fn url_at(&self, addr: std::net::SocketAddr) -> Result<String, ServerError> {
        let file = self.folder.path().join(format!("at-{}", addr.port()));
        write_kubeconfig(&file, &format!("http://{addr}"), ADMIN)?;
        Ok(format!("kubernetes:{NAMESPACE}?kubeconfig={}", file.display()))
    }

    // --- what happens to it ---

    /// Lets it stand still: connections stay open, nothing is answered.
    pub fn stall(&self) {
        self.shared.stalled.send_replace(true);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.shared.stalled.send_replace(false);
    }

    /// Ends all connections, as a restart does.
    pub fn restart(&self) {
        self.shared.cut.send_modify(|count| *count += 1);
    }

    /// Loses everything, and begins to count anew.
    pub fn restart_empty(&self) {
        *lock(&self.shared.objects) = Objects::new();
        self.restart();
    }

    /// Forgets what has happened: watches that are behind end with an error in their stream.
    pub fn compact(&self) {
        lock(&self.shared.objects).compact();
    }

    /// Ends all watches as a server does that has forgotten what they have not been told: with an error of code 410 in
    /// their stream.
    pub fn expire_watches(&self) {
        {
            let mut objects = lock(&self.shared.objects);
            objects.skip(1);
            objects.compact();
        }
        self.shared.wake_all();
    }

    /// Other things than Leases have changed this often: all share one counter.
    pub fn let_others_write(&self, versions: u64) {
        lock(&self.shared.objects).skip(versions);
    }

    /// Refuses this many requests with `429 Too Many Requests`.
    pub fn throttle(&self, requests: usize, retry_after_seconds: u32) {
        let mut refusal = Refusal::new(429, "TooManyRequests", "too many requests, please try again later");
        refusal.retry_after = Some(retry_after_seconds);
        lock(&self.shared.faults).refusals = vec![refusal; requests];
    }

    /// Refuses this many requests with such a status.
    pub fn refuse(&self, requests: usize, code: u16, reason: &'static str) {
        lock(&self.shared.faults).refusals = vec![Refusal::new(code, reason, "refused by the test"); requests];
    }

    /// Carries this many writes out, and answers each with `504` after some time.
    pub fn lose_answers(&self, writes: usize, after: Duration) {
        let mut faults = lock(&self.shared.faults);
        (faults.lost_answers, faults.lost_after) = (writes, after);
    }

    /// How often a watch that hears nothing is told how far it is.
    pub fn set_bookmark_interval(&self, interval: Duration) {
        *lock(&self.shared.bookmark_interval) = interval;
    }

    // --- what is in it ---

    /// All Leases of the namespace, as they would be sent.
    #[must_use]
    pub fn leases(&self) -> Vec<Value> {
        let page = self.shared.read(|all| all.list(NAMESPACE, &Wanted::default()));
        let items = page.map(|page| page.items).unwrap_or_default();
        items.iter().filter_map(|item| serde_json::from_str(&item.json).ok()).collect()
    }

    /// Writes a Lease over whatever is there, as somebody would by hand.
    ///
    /// # Errors
    /// What the API refuses.
    pub async fn replace(&self, lease: &Value) -> Result<(), Refusal> {
        let name = lease["metadata"]["name"].as_str().unwrap_or("").to_owned();
        self.shared.write(|all, clock| all.replace(NAMESPACE, &name, lease, clock)).await.map(drop)
    }

    /// Deletes a Lease, as `kubectl delete lease` does.
    ///
    /// # Errors
    /// What the API refuses.
    pub async fn delete(&self, name: &str) -> Result<(), Refusal> {
        self.shared.write(|all, _| all.delete(NAMESPACE, name, &json!({}))).await.map(drop)
    }

    /// How many requests of a kind were carried out.
    #[must_use]
    pub fn requests(&self, verb: Verb) -> usize {
        self.shared.counts.requests[verb as usize].load(Ordering::Relaxed)
    }

    /// How many bytes of bodies requests have brought, and answers and watches have taken.
    #[must_use]
    pub fn bytes(&self) -> (usize, usize) {
        let counts = &self.shared.counts;
        (counts.received.load(Ordering::Relaxed), counts.sent.load(Ordering::Relaxed))
    }
}

impl Drop for KubernetesServer {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            let _ = end.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn write_kubeconfig(file: &std::path::Path, server: &str, token: &str) -> Result<(), ServerError> {
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
         clusters:\n- name: test\n  cluster:\n    server: {server}\n\
         users:\n- name: test\n  user:\n    token: {token}\n\
         contexts:\n- name: test\n  context:\n    cluster: test\n    user: test\n    namespace: {NAMESPACE}\n"
    );
    std::fs::write(file, text).map_err(ServerError::io(format!("write {}", file.display())))
}

async fn listen(shared: &Arc<Shared>, listener: &TcpListener) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let _ = stream.set_nodelay(true);
        let shared = Arc::clone(shared);
        tokio::spawn(async move {
            let mut cut = shared.cut.subscribe();
            cut.mark_unchanged();
            let served = Arc::clone(&shared);
            let service = hyper::service::service_fn(move |request| http::answer(Arc::clone(&served), request));
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                _ = connection => {}
                _ = cut.changed() => {}
            }
        });
    }
}
