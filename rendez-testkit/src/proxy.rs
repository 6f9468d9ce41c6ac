//! A network that breaks on demand: a TCP proxy in front of any address.
//!
//! Faults are exact: once a call has returned, no byte passes that should not. What it cannot imitate is a lost
//! connection request: while frozen, connections are still made, and then nothing is heard from them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use crate::servers::{PortLease, ServerError};

/// How many connections are open at a time; more wait to be accepted.
pub const CONNECTIONS_MAX: usize = 4096;
const CHUNK_BYTES_MAX: usize = 16 * 1024;
/// How many chunks wait in each direction of a connection when there is a delay.
const CHUNKS_MAX: usize = 256;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server: requests.
    ToServer,
    /// From the server to the client: replies.
    ToClient,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Mode {
    #[default]
    Open,
    Cut,
    Frozen,
}

#[derive(Debug, Clone, Copy, Default)]
struct Faults {
    mode: Mode,
    delay_to_server: Duration,
    delay_to_client: Duration,
    /// The pause after each single byte; zero where bytes pass as they come.
    trickle: Duration,
    drop_requests: bool,
    drop_replies: bool,
    /// Connections with a lower number lead nowhere any more.
    abandoned_below: u64,
    /// Rises whenever all connections must end.
    resets: u64,
}

impl Faults {
    /// Whether what a connection with this number sends this way is lost without a word.
    fn swallows(&self, direction: Direction, connection: u64) -> bool {
        let dropped = match direction {
            Direction::ToServer => self.drop_requests,
            Direction::ToClient => self.drop_replies,
        };
        dropped || connection < self.abandoned_below
    }
}

/// A TCP proxy with faults; gone when it is dropped.
///
/// ```no_run
/// # async fn example() -> Result<(), rendez_testkit::servers::ServerError> {
/// use std::time::Duration;
/// use rendez_testkit::proxy::{Direction, Proxy};
/// use rendez_testkit::servers::RedisServer;
///
/// let redis = RedisServer::builder().start().await?;
/// let proxy = Proxy::start(redis.addr()?).await?;
/// let url = format!("redis://{}", proxy.addr());
/// proxy.set_delay(Direction::ToClient, Duration::from_millis(20));
/// proxy.freeze(); // silence, connections stay
/// proxy.cut().await; // connections close, new ones are refused
/// proxy.heal().await?;
/// proxy.lose_replies(1); // the next request is run; its reply is lost with its connection
/// proxy.trickle(Duration::from_millis(1)); // byte by byte
/// proxy.abandon(); // open connections are silent for ever, new ones are good
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Proxy {
    port: Arc<PortLease>,
    shared: Arc<Shared>,
    /// The number of resets that are done, and whether somebody listens.
    applied: watch::Receiver<Applied>,
    task: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    faults: watch::Sender<Faults>,
    replies_to_lose: AtomicU64,
    to_server_bytes: AtomicU64,
    to_client_bytes: AtomicU64,
    accepted: AtomicU64,
    open: AtomicUsize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Applied {
    resets: u64,
    listening: bool,
}

impl Proxy {
    /// Starts a proxy on a free port of 127.0.0.1, in front of `upstream`, which need not be up.
    ///
    /// # Errors
    /// [`ServerError`] if there is no free port.
    pub async fn start(upstream: SocketAddr) -> Result<Self, ServerError> {
        let port = Arc::new(PortLease::take()?);
        let listener = listen(port.addr()).map_err(ServerError::io(format!("listen on {}", port.addr())))?;
        let shared = Arc::new(Shared {
            upstream,
            faults: watch::Sender::new(Faults::default()),
            replies_to_lose: AtomicU64::new(0),
            to_server_bytes: AtomicU64::new(0),
            to_client_bytes: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            open: AtomicUsize::new(0),
        });
        let (apply, applied) = watch::channel(Applied { resets: 0, listening: true });
        let task = tokio::spawn(accept(Arc::clone(&port), listener, Arc::clone(&shared), apply));
        Ok(Self { port, shared, applied, task: task.abort_handle() })
    }

    /// The address for clients; it stays the same.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.port.addr()
    }

    /// Delays bytes of one direction that come in from now on. Order is kept, throughput is not limited.
    pub fn set_delay(&self, direction: Direction, delay: Duration) {
        self.shared.faults.send_modify(|faults| match direction {
            Direction::ToServer => faults.delay_to_server = delay,
            Direction::ToClient => faults.delay_to_client = delay,
        });
    }

    /// Closes all connections and refuses new ones until [`heal`](Self::heal).
    ///
    /// Cancelling it leaves the cut coming.
    pub async fn cut(&self) {
        self.shared.faults.send_modify(|faults| {
            faults.mode = Mode::Cut;
            faults.resets += 1;
        });
        self.wait_applied(false).await;
    }

    /// Closes all connections once; new ones are accepted.
    ///
    /// Cancelling it leaves the reset coming.
    pub async fn reset(&self) {
        self.shared.faults.send_modify(|faults| faults.resets += 1);
        let listening = self.applied.borrow().listening;
        self.wait_applied(listening).await;
    }

    /// Lets nothing pass and closes nothing: requests that are on their way arrive after [`heal`](Self::heal), as
    /// they do after a real interruption, even if their client has gone.
    pub fn freeze(&self) {
        self.shared.faults.send_modify(|faults| faults.mode = Mode::Frozen);
    }

    /// Drops all requests until [`heal`](Self::heal) and lets replies pass; connections are still made. Then those that
    /// missed some are closed, because what follows on them would be taken for something else.
    pub fn drop_requests(&self) {
        self.shared.faults.send_modify(|faults| faults.drop_requests = true);
    }

    /// Lets bytes pass one by one, in both directions, with a pause after each.
    pub fn trickle(&self, pause: Duration) {
        self.shared.faults.send_modify(|faults| faults.trickle = pause);
    }

    /// Leaves the connections that are open now half open: neither side hears from the other again, not even of its end,
    /// as after a firewall has forgotten them. New ones are good. [`heal`](Self::heal) closes what is left of the others.
    pub fn abandon(&self) {
        // Counted before the connection is served: what is accepted after this has at least this number.
        let accepted = self.shared.accepted.load(Ordering::SeqCst);
        self.shared.faults.send_modify(|faults| faults.abandoned_below = accepted);
    }

    /// Lets requests pass and drops all replies until [`heal`](Self::heal); then connections that missed some are
    /// closed, because what follows on them would be taken for something else.
    pub fn drop_replies(&self) {
        self.shared.faults.send_modify(|faults| faults.drop_replies = true);
    }

    /// Drops the next so many replies, each with its connection. A reply is what comes in one piece: it is exact for
    /// clients that send one request at a time.
    pub fn lose_replies(&self, count: u64) {
        self.shared.replies_to_lose.store(count, Ordering::SeqCst);
    }

    /// Ends all faults; returns when new connections are accepted.
    ///
    /// # Errors
    /// [`ServerError::Timeout`] if the port cannot be listened on again.
    pub async fn heal(&self) -> Result<(), ServerError> {
        self.shared.replies_to_lose.store(0, Ordering::SeqCst);
        self.shared.faults.send_modify(|faults| *faults = Faults { resets: faults.resets, ..Faults::default() });
        let bound = Duration::from_secs(10);
        let healed = tokio::time::timeout(bound, self.wait_applied(true)).await;
        healed.map_err(|_| ServerError::Timeout {
            condition: format!("the proxy to listen on {} again", self.addr()),
            waited: bound,
            seen: "nothing".to_owned(),
        })
    }

    /// How many bytes were passed on in a direction.
    #[must_use]
    pub fn bytes(&self, direction: Direction) -> u64 {
        self.shared.counter(direction).load(Ordering::SeqCst)
    }

    /// How many connections were accepted since the start.
    #[must_use]
    pub fn connections_accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// How many connections are open.
    #[must_use]
    pub fn connections_open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    async fn wait_applied(&self, listening: bool) {
        let resets = self.shared.faults.borrow().resets;
        let mut applied = self.applied.clone();
        // An error means that the proxy's task is gone, and with it every connection.
        let _ = applied.wait_for(|applied| applied.resets >= resets && applied.listening == listening).await;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn counter(&self, direction: Direction) -> &AtomicU64 {
        match direction {
            Direction::ToServer => &self.to_server_bytes,
            Direction::ToClient => &self.to_client_bytes,
        }
    }

    /// Whether this reply is to be lost.
    fn loses_reply(&self) -> bool {
        let less = |count: u64| count.checked_sub(1);
        self.replies_to_lose.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok()
    }
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    // The connections of before a cut may linger on this port.
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(1024)
}

async fn accept(port: Arc<PortLease>, listener: TcpListener, shared: Arc<Shared>, apply: watch::Sender<Applied>) {
    const BIND_PAUSE: Duration = Duration::from_millis(10);
    let mut changes = shared.faults.subscribe();
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    let mut resets = 0;
    loop {
        let faults = *changes.borrow_and_update();
        if faults.mode == Mode::Cut {
            listener = None;
        }
        if faults.resets > resets {
            connections.shutdown().await;
            resets = faults.resets;
        }
        if faults.mode != Mode::Cut && listener.is_none() {
            listener = listen(port.addr()).ok();
            if listener.is_none() {
                tokio::time::sleep(BIND_PAUSE).await;
                continue;
            }
        }
        apply.send_replace(Applied { resets, listening: listener.is_some() });
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            Some(_) = connections.join_next() => {}
            accepted = accept_one(listener.as_ref()), if connections.len() < CONNECTIONS_MAX => {
                if let Ok(client) = accepted {
                    let number = shared.accepted.fetch_add(1, Ordering::SeqCst);
                    connections.spawn(connection(number, client, Arc::clone(&shared)));
                }
            }
        }
    }
}

async fn accept_one(listener: Option<&TcpListener>) -> io::Result<TcpStream> {
    match listener {
        Some(listener) => Ok(listener.accept().await?.0),
        None => std::future::pending().await,
    }
}

/// Counts an open connection for as long as it lives, also if its task is aborted.
struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn connection(number: u64, client: TcpStream, shared: Arc<Shared>) -> io::Result<()> {
    shared.open.fetch_add(1, Ordering::SeqCst);
    let _open = Open(Arc::clone(&shared));
    thaw(&mut shared.faults.subscribe()).await;
    let server = TcpStream::connect(shared.upstream).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    // An error in one direction, or a reply that was lost, ends both; an orderly end in one does not.
    tokio::try_join!(
        pass(Direction::ToServer, number, client_read, server_write, &shared),
        pass(Direction::ToClient, number, server_read, client_write, &shared),
    )?;
    Ok(())
}

/// Bytes that came in, and when they may leave; an empty chunk is the end of the stream.
type Chunk = (Instant, Vec<u8>);

async fn pass(
    direction: Direction,
    number: u64,
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    shared: &Shared,
) -> io::Result<()> {
    let (queue, chunks) = mpsc::channel(CHUNKS_MAX);
    tokio::try_join!(read(direction, from, queue, shared), write(direction, number, to, chunks, shared))?;
    Ok(())
}

async fn read(
    direction: Direction,
    mut from: OwnedReadHalf,
    queue: mpsc::Sender<Chunk>,
    shared: &Shared,
) -> io::Result<()> {
    let mut faults = shared.faults.subscribe();
    loop {
        // What is not read waits in the kernel, as it would on a line that is down.
        thaw(&mut faults).await;
        let mut bytes = vec![0; CHUNK_BYTES_MAX];
        let length = from.read(&mut bytes).await?;
        bytes.truncate(length);
        let delay = match direction {
            Direction::ToServer => faults.borrow().delay_to_server,
            Direction::ToClient => faults.borrow().delay_to_client,
        };
        if queue.send((Instant::now() + delay, bytes)).await.is_err() || length == 0 {
            return Ok(());
        }
    }
}

async fn write(
    direction: Direction,
    number: u64,
    mut to: OwnedWriteHalf,
    mut chunks: mpsc::Receiver<Chunk>,
    shared: &Shared,
) -> io::Result<()> {
    let mut faults = shared.faults.subscribe();
    while let Some((due, bytes)) = chunks.recv().await {
        tokio::time::sleep_until(due).await;
        thaw(&mut faults).await;
        if bytes.is_empty() {
            // The end of a stream is as lost as its bytes.
            if faults.borrow().swallows(direction, number) {
                return swallow(direction, number, &mut chunks, &mut faults).await;
            }
            return to.shutdown().await;
        }
        if direction == Direction::ToClient && shared.loses_reply() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            to.writable().await?;
            let (step, pause) = {
                // While this borrow lasts the faults cannot change: once a fault is set, nothing passes against it.
                let faults = faults.borrow();
                let step = match faults.mode {
                    Mode::Open if faults.swallows(direction, number) => Step::Swallow,
                    Mode::Open if faults.trickle.is_zero() => Step::Written(to.try_write(rest)),
                    Mode::Open => Step::Written(to.try_write(&rest[..1])),
                    Mode::Cut | Mode::Frozen => Step::Wait,
                };
                (step, faults.trickle)
            };
            match step {
                Step::Written(Ok(length)) => {
                    shared.counter(direction).fetch_add(length as u64, Ordering::SeqCst);
                    rest = &rest[length..];
                    if !pause.is_zero() {
                        tokio::time::sleep(pause).await;
                    }
                }
                Step::Written(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                Step::Written(Err(error)) => return Err(error),
                Step::Wait => thaw(&mut faults).await,
                Step::Swallow => return swallow(direction, number, &mut chunks, &mut faults).await,
            }
        }
    }
    Ok(())
}

/// What became of the attempt to pass bytes on.
enum Step {
    Written(io::Result<usize>),
    Wait,
    Swallow,
}

/// Takes and forgets what comes until that fault ends, then ends the connection.
async fn swallow(
    direction: Direction,
    number: u64,
    chunks: &mut mpsc::Receiver<Chunk>,
    faults: &mut watch::Receiver<Faults>,
) -> io::Result<()> {
    loop {
        tokio::select! {
            _ = faults.wait_for(|faults| !faults.swallows(direction, number)) => {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            Some(_) = chunks.recv() => {}
        }
    }
}

/// Waits until bytes may pass.
async fn thaw(faults: &mut watch::Receiver<Faults>) {
    // An error means that the proxy is gone; then so is this task, soon.
    let _ = faults.wait_for(|faults| faults.mode == Mode::Open).await;
}
