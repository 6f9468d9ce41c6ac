//! A resource that checks fencing tokens (S3): it refuses a token lower than the highest it has seen.
//!
//! In process, [`TokenSink`]; for other processes, [`SinkServer`], which speaks lines over TCP or a Unix socket:
//!
//! ```text
//! SLOT TOKEN PAYLOAD          ok | stale HIGHEST | error REASON
//! ```
//!
//! The slot is encoded as in [run records](crate::records); the payload is the rest of the line.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rendez_core::{FencingToken, Slot, Timestamp};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::{AbortHandle, JoinSet};

use crate::clock;
use crate::encoding::{decode, encode};

/// How many writes a sink remembers; it refuses more.
pub const LOG_ENTRIES_MAX: usize = 1_000_000;
/// The longest line that the server reads.
pub const LINE_BYTES_MAX: u64 = 64 * 1024;

/// One write that was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkEntry {
    /// The slot in whose name it was tried.
    pub slot: Slot,
    /// The token that it showed.
    pub token: FencingToken,
    /// What was to be written.
    pub payload: String,
    /// Whether it was accepted.
    pub accepted: bool,
    /// When, on the clock of [`clock::now`].
    pub at: Timestamp,
}

/// Why a write was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SinkError {
    /// A higher token was seen before. Nothing was written, and with this token nothing ever will be.
    #[error("stale {highest}")]
    Stale {
        /// The highest token that was seen for the slot.
        highest: FencingToken,
    },
    /// The sink remembers [`LOG_ENTRIES_MAX`] writes and takes no more.
    #[error("error the sink is full")]
    Full,
}

/// The sink; clones share one log.
///
/// ```
/// use rendez_core::FencingToken;
/// use rendez_testkit::sink::TokenSink;
/// let sink = TokenSink::new();
/// let slot = "inbox/0".parse().unwrap();
/// assert!(sink.write(&slot, FencingToken::new(2), "new owner").is_ok());
/// assert!(sink.write(&slot, FencingToken::new(1), "paused owner").is_err());
/// assert_eq!(sink.accepted().len(), 1);
/// ```
#[derive(Debug, Clone, Default)]
pub struct TokenSink {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    highest: BTreeMap<Slot, FencingToken>,
    log: Vec<SinkEntry>,
}

impl TokenSink {
    /// A sink that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Tries to write.
    ///
    /// # Errors
    /// [`SinkError`]: nothing was written.
    pub fn write(&self, slot: &Slot, token: FencingToken, payload: &str) -> Result<(), SinkError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.log.len() >= LOG_ENTRIES_MAX {
            return Err(SinkError::Full);
        }
        let highest = state.highest.get(slot).copied().unwrap_or_default();
        let accepted = token >= highest;
        if accepted {
            state.highest.insert(slot.clone(), token);
        }
        state.log.push(SinkEntry {
            slot: slot.clone(),
            token,
            payload: payload.to_owned(),
            accepted,
            at: clock::now(),
        });
        if accepted { Ok(()) } else { Err(SinkError::Stale { highest }) }
    }

    /// All writes that were tried, in order.
    #[must_use]
    pub fn log(&self) -> Vec<SinkEntry> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).log.clone()
    }

    /// The writes that were accepted, in order.
    #[must_use]
    pub fn accepted(&self) -> Vec<SinkEntry> {
        self.log().into_iter().filter(|entry| entry.accepted).collect()
    }

    /// The writes that were refused, in order.
    #[must_use]
    pub fn refused(&self) -> Vec<SinkEntry> {
        self.log().into_iter().filter(|entry| !entry.accepted).collect()
    }

    fn answer(&self, line: &str) -> String {
        let mut words = line.splitn(3, ' ');
        let parsed = (|| {
            let slot = decode(words.next()?)?.parse().ok()?;
            let token = FencingToken::new(words.next()?.parse().ok()?);
            Some((slot, token, words.next()?))
        })();
        match parsed {
            None => "error not SLOT TOKEN PAYLOAD".to_owned(),
            Some((slot, token, payload)) => match self.write(&slot, token, payload) {
                Ok(()) => "ok".to_owned(),
                Err(error) => error.to_string(),
            },
        }
    }
}

/// The line with which another process asks a [`SinkServer`] to write.
#[must_use]
pub fn request(slot: &Slot, token: FencingToken, payload: &str) -> String {
    format!("{} {token} {}\n", encode(&slot.to_string()), payload.replace(['\n', '\r'], " "))
}

/// A sink for other processes; it is gone when this is dropped.
#[derive(Debug)]
pub struct SinkServer {
    addr: Option<SocketAddr>,
    task: AbortHandle,
}

impl SinkServer {
    /// Listens on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// The reason of the operating system.
    pub async fn tcp(sink: TokenSink) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = Some(listener.local_addr()?);
        let task = tokio::spawn(async move {
            let mut clients = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                clients.spawn(serve(stream, sink.clone()));
                while clients.try_join_next().is_some() {}
            }
        });
        Ok(Self { addr, task: task.abort_handle() })
    }

    /// Listens on a Unix socket, whose file must not exist.
    ///
    /// # Errors
    /// The reason of the operating system.
    pub async fn unix(sink: TokenSink, path: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        let task = tokio::spawn(async move {
            let mut clients = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                clients.spawn(serve(stream, sink.clone()));
                while clients.try_join_next().is_some() {}
            }
        });
        Ok(Self { addr: None, task: task.abort_handle() })
    }

    /// Where it listens, if by TCP.
    #[must_use]
    pub fn addr(&self) -> Option<SocketAddr> {
        self.addr
    }
}

impl Drop for SinkServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, sink: TokenSink) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = String::new();
        (&mut stream).take(LINE_BYTES_MAX).read_line(&mut line).await?;
        // The end, or a line that is too long.
        let Some(line) = line.strip_suffix('\n') else { return Ok(()) };
        stream.write_all(format!("{}\n", sink.answer(line)).as_bytes()).await?;
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpStream, UnixStream};

    use super::*;

    #[test]
    fn lower_tokens_are_refused_for_ever_and_slots_are_apart() {
        let sink = TokenSink::new();
        let (a, b): (Slot, Slot) = ("w/0".parse().unwrap(), "w/1".parse().unwrap());
        let write = |slot: &Slot, token: u64| sink.write(slot, FencingToken::new(token), "x");
        assert_eq!(write(&a, 5), Ok(()));
        assert_eq!(write(&a, 5), Ok(()));
        assert_eq!(write(&a, 4), Err(SinkError::Stale { highest: FencingToken::new(5) }));
        assert_eq!(write(&b, 1), Ok(()));
        assert_eq!(write(&a, 6), Ok(()));
        assert_eq!(write(&a, 5), Err(SinkError::Stale { highest: FencingToken::new(6) }));
        assert_eq!((sink.accepted().len(), sink.refused().len()), (4, 2));
    }

    async fn talk(mut stream: impl AsyncRead + AsyncWrite + Unpin, requests: &str) -> String {
        stream.write_all(requests.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answers = String::new();
        stream.read_to_string(&mut answers).await.unwrap();
        answers
    }

    #[tokio::test]
    async fn other_processes_talk_to_it_in_lines() {
        let sink = TokenSink::new();
        let tcp = SinkServer::tcp(sink.clone()).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sink");
        let _unix = SinkServer::unix(sink.clone(), &path).await.unwrap();
        let slot: Slot = "my inbox/3".parse().unwrap();
        let requests = request(&slot, FencingToken::new(7), "two words") + "garbage\nw/0 x y\nw/0 1 \n";
        let answers = talk(TcpStream::connect(tcp.addr().unwrap()).await.unwrap(), &requests).await;
        assert_eq!(answers, "ok\nerror not SLOT TOKEN PAYLOAD\nerror not SLOT TOKEN PAYLOAD\nok\n");
        let stale = request(&slot, FencingToken::new(6), "late");
        assert_eq!(talk(UnixStream::connect(&path).await.unwrap(), &stale).await, "stale 7\n");
        assert_eq!(sink.log()[0].payload, "two words");
        assert_eq!(sink.log()[0].slot, slot);
    }
}
