//! The output of a child, line by line under its name.
//!
//! Many keepers write to one place, so each line is one `write` of a size that even a pipe takes in one piece.
//! Reading and writing may block, so nothing that keeps a deadline belongs here.

use std::fs::File;
use std::io::{Read, Write};

/// What a pipe takes in one piece (`PIPE_BUF` on Linux).
const WRITE_BYTES_MAX: usize = 4096;

/// Copies lines until the end of the source. A destination that fails is written to no more; the source is read on, so
/// that its writer is never blocked by that.
pub(crate) fn relay(mut source: impl Read, mut destination: File, name: &str) {
    let mut lines = Lines::new(name);
    let mut buffer = vec![0; 16 * 1024];
    let mut writable = true;
    loop {
        let count = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        lines.take(&buffer[..count], |line| writable = writable && destination.write_all(line).is_ok());
    }
    lines.finish(|line| writable = writable && destination.write_all(line).is_ok());
}

/// Cuts bytes into marked lines: `inbox/3 | text`, and `inbox/3 + text` where a long line goes on.
struct Lines {
    first: String,
    more: String,
    pending: Vec<u8>,
    /// The pending bytes go on with a line of which a part is out already.
    continues: bool,
    text_bytes_max: usize,
}

impl Lines {
    fn new(name: &str) -> Self {
        let (first, more) = (format!("{name} | "), format!("{name} + "));
        let text_bytes_max = WRITE_BYTES_MAX.saturating_sub(first.len() + 1).max(16);
        Self { first, more, pending: Vec::new(), continues: false, text_bytes_max }
    }

    fn take(&mut self, bytes: &[u8], mut write: impl FnMut(&[u8])) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let ends = piece.ends_with(b"\n");
            self.pending.extend_from_slice(if ends { &piece[..piece.len() - 1] } else { piece });
            if ends {
                if self.pending.ends_with(b"\r") {
                    self.pending.pop();
                }
                self.put(true, &mut write);
            } else if self.pending.len() > self.text_bytes_max {
                self.put(false, &mut write);
            }
        }
    }

    fn finish(mut self, mut write: impl FnMut(&[u8])) {
        if !self.pending.is_empty() {
            self.put(true, &mut write);
        }
    }

    /// Writes what is pending, all of it or without a character that has not come whole.
    fn put(&mut self, all: bool, write: &mut impl FnMut(&[u8])) {
        let keep = if all { 0 } else { incomplete_at_end(&self.pending) };
        let bytes = self.pending.len() - keep;
        let text = String::from_utf8_lossy(&self.pending[..bytes]).into_owned();
        let mut rest = text.as_str();
        loop {
            let (now, later) = rest.split_at(rest.floor_char_boundary_of(self.text_bytes_max));
            let mark = if self.continues { &self.more } else { &self.first };
            write(format!("{mark}{now}\n").as_bytes());
            self.continues = true;
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        self.continues = !all;
        self.pending.drain(..bytes);
    }
}

/// How many bytes at the end are the beginning of a character.
fn incomplete_at_end(bytes: &[u8]) -> usize {
    match std::str::from_utf8(&bytes[bytes.len().saturating_sub(4)..]) {
        Ok(_) => 0,
        Err(_) => (1..=bytes.len().min(3))
            .find(|count| {
                let tail = &bytes[bytes.len() - count..];
                std::str::from_utf8(tail).is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
            })
            .unwrap_or(0),
    }
}

trait CutAtCharacter {
    /// The largest index up to `max` at which no character is cut.
    fn floor_char_boundary_of(&self, max: usize) -> usize;
}

impl CutAtCharacter for str {
    fn floor_char_boundary_of(&self, max: usize) -> usize {
        let mut at = max.min(self.len());
        while !self.is_char_boundary(at) {
            at -= 1;
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(chunks: &[&[u8]]) -> Vec<String> {
        let mut out = Vec::new();
        let mut lines = Lines::new("inbox/3");
        for chunk in chunks {
            lines.take(chunk, |line| out.push(String::from_utf8(line.to_vec()).unwrap()));
        }
        lines.finish(|line| out.push(String::from_utf8(line.to_vec()).unwrap()));
        out
    }

    #[test]
    fn lines_are_marked_whatever_the_chunks() {
        assert_eq!(
            cut(&[b"a", b"b\nc\r\n", b"\n", b"d"]),
            ["inbox/3 | ab\n", "inbox/3 | c\n", "inbox/3 | \n", "inbox/3 | d\n"]
        );
        assert!(cut(&[]).is_empty());
    }

    #[test]
    fn what_is_no_text_is_replaced() {
        assert_eq!(cut(&[b"a\xFFb\n"]), ["inbox/3 | a\u{fffd}b\n"]);
    }

    #[test]
    fn long_lines_are_cut_between_characters_and_lose_nothing() {
        let long = "é€🦀".repeat(5000);
        for chunk in [1, 7, 4096, 100_000] {
            let chunks: Vec<&[u8]> = long.as_bytes().chunks(chunk).collect();
            let out = cut(&chunks);
            assert!(out.iter().all(|line| line.len() <= WRITE_BYTES_MAX));
            assert!(out[0].starts_with("inbox/3 | ") && out[1..].iter().all(|line| line.starts_with("inbox/3 + ")));
            let text: String = out.iter().map(|line| &line[10..line.len() - 1]).collect();
            assert_eq!(text, long);
        }
        let noise = vec![0xFF; 20_000];
        assert!(cut(&[&noise]).iter().all(|line| line.len() <= WRITE_BYTES_MAX));
    }
}
