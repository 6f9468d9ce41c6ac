//! Lines of JSON over a unix socket, without ever blocking.

use std::io::{self, Read, Write};
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest line; a longer one counts as the end of the other side.
pub(crate) const LINE_BYTES_MAX: usize = 1 << 20;

/// One end of a conversation: hears `In`, says `Out`.
pub(crate) struct Wire<In, Out> {
    socket: UnixStream,
    incoming: Vec<u8>,
    /// Bounded by what there is to say: a few messages a child.
    outgoing: Vec<u8>,
    ended: bool,
    messages: PhantomData<fn(Out) -> In>,
}

impl<In: DeserializeOwned, Out: Serialize> Wire<In, Out> {
    pub(crate) fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { socket, incoming: Vec::new(), outgoing: Vec::new(), ended: false, messages: PhantomData })
    }

    /// The end of the conversation that was inherited as standard input.
    pub(crate) fn from_stdin() -> io::Result<Self> {
        Self::new(UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?))
    }

    /// Everything that has come. Look at [`ended`](Self::ended) afterwards.
    pub(crate) fn hear(&mut self) -> Vec<In> {
        let mut buffer = [0; 16 * 1024];
        while !self.ended {
            match self.socket.read(&mut buffer) {
                Ok(0) => self.ended = true,
                Ok(count) => self.incoming.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => self.ended = true,
            }
            if self.incoming.len() > LINE_BYTES_MAX {
                break;
            }
        }
        let Some(last) = self.incoming.iter().rposition(|byte| *byte == b'\n') else {
            self.ended |= self.incoming.len() > LINE_BYTES_MAX;
            return Vec::new();
        };
        let lines: Vec<u8> = self.incoming.drain(..=last).collect();
        let mut messages = Vec::new();
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice(line) {
                Ok(message) => messages.push(message),
                Err(_) => self.ended = true,
            }
        }
        messages
    }

    /// Says something now, or as soon as the other side listens (see [`flush`](Self::flush)).
    pub(crate) fn say(&mut self, message: &Out) {
        // Our own messages are plain data: they always serialize.
        if serde_json::to_writer(&mut self.outgoing, message).is_ok() {
            self.outgoing.push(b'\n');
        }
        self.flush();
    }

    /// Says what could not be said before.
    pub(crate) fn flush(&mut self) {
        while !self.outgoing.is_empty() {
            match self.socket.write(&self.outgoing) {
                Ok(count) => drop(self.outgoing.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Nobody listens any more. What was said before that may still be unheard: the end is told by `hear`.
                Err(_) => self.outgoing.clear(),
            }
        }
    }

    /// Whether something waits to be said.
    pub(crate) fn has_more_to_say(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether the other side is gone, or talks nonsense.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }
}

impl<In, Out> AsFd for Wire<In, Out> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_whole_and_in_order_and_the_end_is_heard() {
        let (left, right) = UnixStream::pair().unwrap();
        let mut left: Wire<String, String> = Wire::new(left).unwrap();
        let mut right: Wire<String, String> = Wire::new(right).unwrap();
        assert!(right.hear().is_empty() && !right.ended());
        let long = "x".repeat(400_000);
        left.say(&"one\ntwo".to_owned());
        left.say(&long);
        assert!(left.has_more_to_say());
        let mut heard = Vec::new();
        while heard.len() < 2 {
            heard.extend(right.hear());
            left.flush();
        }
        assert_eq!(heard, ["one\ntwo".to_owned(), long]);
        drop(left);
        assert!(right.hear().is_empty() && right.ended());
    }

    #[test]
    fn last_words_are_heard_though_nobody_listens_any_more() {
        let (left, right) = UnixStream::pair().unwrap();
        let mut left: Wire<String, String> = Wire::new(left).unwrap();
        let mut right: Wire<String, String> = Wire::new(right).unwrap();
        right.say(&"never read".to_owned());
        left.say(&"farewell".to_owned());
        drop(left);
        right.say(&"too late".to_owned());
        assert_eq!(right.hear(), ["farewell"]);
        assert!(right.ended() && !right.has_more_to_say());
    }

    #[test]
    fn nonsense_and_endless_lines_count_as_the_end() {
        for bytes in [b"nonsense\n".to_vec(), vec![b'x'; LINE_BYTES_MAX + 1]] {
            let (mut left, right) = UnixStream::pair().unwrap();
            let writer = std::thread::spawn(move || left.write_all(&bytes));
            let mut right: Wire<String, String> = Wire::new(right).unwrap();
            while !right.ended() {
                assert!(right.hear().is_empty());
            }
            drop(right);
            let _ = writer.join().unwrap();
        }
    }
}
