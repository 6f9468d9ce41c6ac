//! Redis' protocol, just enough for a harness to ask a server how it is.
//!
//! No client library here: the harness must not share one with the code that it tests.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufStream};
use tokio::net::{TcpStream, UnixStream};

use super::ServerError;

const ANSWER_BOUND: Duration = Duration::from_secs(5);

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// What a Redis server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RespValue {
    /// A status such as `OK`.
    Status(String),
    /// An error, with its code in front.
    Error(String),
    /// A number.
    Integer(i64),
    /// Bytes.
    Bytes(Vec<u8>),
    /// Nothing.
    Nil,
    /// Several values.
    Array(Vec<RespValue>),
}

impl RespValue {
    /// The text of a status, of bytes or of a number; empty for anything else.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Status(text) | Self::Error(text) => text.clone(),
            Self::Integer(number) => number.to_string(),
            Self::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Self::Nil | Self::Array(_) => String::new(),
        }
    }

    /// The members of an array; empty for anything else.
    #[must_use]
    pub fn items(&self) -> &[RespValue] {
        match self {
            Self::Array(items) => items,
            Self::Status(_) | Self::Error(_) | Self::Integer(_) | Self::Bytes(_) | Self::Nil => &[],
        }
    }

    /// The value that follows `name` in a flat list of names and values.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&RespValue> {
        self.items().chunks_exact(2).find(|pair| pair[0].text() == name).map(|pair| &pair[1])
    }
}

impl fmt::Display for RespValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Array(items) => f.debug_list().entries(items.iter().map(RespValue::text)).finish(),
            Self::Nil => f.write_str("nil"),
            Self::Status(_) | Self::Error(_) | Self::Integer(_) | Self::Bytes(_) => f.write_str(&self.text()),
        }
    }
}

/// One connection to a Redis server.
pub struct RespClient {
    stream: BufStream<Box<dyn Stream>>,
}

impl fmt::Debug for RespClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RespClient").finish_non_exhaustive()
    }
}

impl RespClient {
    /// Connects by TCP.
    ///
    /// # Errors
    /// [`ServerError::Io`] if nobody listens there.
    pub async fn connect(addr: SocketAddr) -> Result<Self, ServerError> {
        let stream = TcpStream::connect(addr).await.map_err(ServerError::io(format!("connect to {addr}")))?;
        stream.set_nodelay(true).map_err(ServerError::io("set TCP_NODELAY"))?;
        Ok(Self { stream: BufStream::new(Box::new(stream)) })
    }

    /// Connects to a Unix socket.
    ///
    /// # Errors
    /// [`ServerError::Io`] if nobody listens there.
    pub async fn connect_unix(path: &Path) -> Result<Self, ServerError> {
        let stream = UnixStream::connect(path).await;
        let stream = stream.map_err(ServerError::io(format!("connect to {}", path.display())))?;
        Ok(Self { stream: BufStream::new(Box::new(stream)) })
    }

    /// Sends a command and returns its answer, whatever it is.
    ///
    /// Cancelling it leaves the connection in the middle of an answer: drop the client then.
    ///
    /// # Errors
    /// [`ServerError::Io`] or [`ServerError::Timeout`]; the command may have been run.
    pub async fn send(&mut self, words: &[&str]) -> Result<RespValue, ServerError> {
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            request.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
        }
        let exchange = async {
            self.stream.write_all(&request).await?;
            self.stream.flush().await?;
            read_value(&mut self.stream).await
        };
        match tokio::time::timeout(ANSWER_BOUND, exchange).await {
            Ok(answer) => answer.map_err(ServerError::io(format!("send {}", words.join(" ")))),
            Err(_) => Err(ServerError::Timeout {
                condition: format!("the answer to {}", words.join(" ")),
                waited: ANSWER_BOUND,
                seen: "nothing".to_owned(),
            }),
        }
    }

    /// Sends a command and returns its answer.
    ///
    /// # Errors
    /// As [`send`](Self::send), and [`ServerError::Answer`] if the answer is an error.
    pub async fn command(&mut self, words: &[&str]) -> Result<RespValue, ServerError> {
        match self.send(words).await? {
            RespValue::Error(answer) => Err(ServerError::Answer { request: words.join(" "), answer }),
            value => Ok(value),
        }
    }
}

type Reading<'a> = Pin<Box<dyn Future<Output = io::Result<RespValue>> + Send + 'a>>;

fn read_value(stream: &mut BufStream<Box<dyn Stream>>) -> Reading<'_> {
    Box::pin(async move {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let malformed = || io::Error::other(format!("no answer of Redis: {line:?}"));
        let kind = line.chars().next().ok_or_else(malformed)?;
        let text = line.get(kind.len_utf8()..).ok_or_else(malformed)?.trim_end();
        let number = text.parse::<i64>().map_err(|_| malformed());
        match kind {
            '+' => Ok(RespValue::Status(text.to_owned())),
            '-' => Ok(RespValue::Error(text.to_owned())),
            ':' => Ok(RespValue::Integer(number?)),
            '$' => match usize::try_from(number?) {
                Ok(length) => {
                    let mut bytes = vec![0; length + 2];
                    stream.read_exact(&mut bytes).await?;
                    bytes.truncate(length);
                    Ok(RespValue::Bytes(bytes))
                }
                Err(_) => Ok(RespValue::Nil),
            },
            '*' => match usize::try_from(number?) {
                Ok(length) => {
                    let mut items = Vec::new();
                    for _ in 0..length {
                        items.push(read_value(stream).await?);
                    }
                    Ok(RespValue::Array(items))
                }
                Err(_) => Ok(RespValue::Nil),
            },
            _ => Err(malformed()),
        }
    })
}
