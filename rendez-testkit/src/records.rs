//! Run records: what runners write down themselves about when they ran.
//!
//! One line each, appended with a single write, so that any number of processes share a file:
//!
//! ```text
//! begin|alive|end SLOT TOKEN NODE PID NANOSECONDS
//! ```
//!
//! separated by single spaces. In slot and node, bytes other than letters, digits and `-._/` are written `%XX`.
//! The numbers are decimal without leading zeros; the time is that of [`clock::now`](crate::clock::now).
//!
//! A run begins with `begin`. A killed process writes no `end`: therefore it writes `alive` at short intervals,
//! and the last one is a lower bound of its end. Descendants of a runner may write `alive` under its slot and
//! token: the run lasts as long as any of them does.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;
use std::str::FromStr;

use rendez_core::{FencingToken, NodeId, Slot, Timestamp};

use crate::encoding::{decode, encode};

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RecordKind {
    /// The runner begins: nothing of it has happened before.
    Begin,
    /// The runner, or a descendant, still runs.
    Alive,
    /// The runner ends: nothing of it will happen after.
    End,
}

impl RecordKind {
    fn word(self) -> &'static str {
        match self {
            Self::Begin => "begin",
            Self::Alive => "alive",
            Self::End => "end",
        }
    }
}

/// One record.
///
/// ```
/// use rendez_testkit::records::Record;
/// let record: Record = "begin my%20inbox/3 17 node-a 4711 123456789".parse().unwrap();
/// assert_eq!(record.slot.workload.as_str(), "my inbox");
/// assert_eq!(record.to_string(), "begin my%20inbox/3 17 node-a 4711 123456789");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What it says.
    pub kind: RecordKind,
    /// The slot that is run.
    pub slot: Slot,
    /// The token under which it is run.
    pub token: FencingToken,
    /// The node that runs it.
    pub node: NodeId,
    /// The process that wrote this.
    pub pid: u32,
    /// When, on the clock of [`clock::now`](crate::clock::now).
    pub at: Timestamp,
}

/// Why a line is no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {line:?} is no record")]
pub struct RecordError {
    /// What is wrong.
    pub reason: String,
    /// The line.
    pub line: String,
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slot = encode(&self.slot.to_string());
        let node = encode(self.node.as_str());
        let Self { kind, token, pid, at, .. } = self;
        write!(f, "{} {slot} {token} {node} {pid} {}", kind.word(), at.as_nanos())
    }
}

impl FromStr for Record {
    type Err = RecordError;

    fn from_str(line: &str) -> Result<Self, RecordError> {
        let wrong = |reason: String| RecordError { reason, line: line.to_owned() };
        let words: Vec<&str> = line.split(' ').collect();
        let [kind, slot, token, node, pid, at] = words[..] else {
            return Err(wrong(format!("{} words instead of 6", words.len())));
        };
        let kind = [RecordKind::Begin, RecordKind::Alive, RecordKind::End].into_iter().find(|k| k.word() == kind);
        let kind = kind.ok_or_else(|| wrong("neither begin, alive nor end".to_owned()))?;
        let name = |text: &str| decode(text).ok_or_else(|| wrong(format!("{text:?} is no encoded name")));
        let number = |text: &str| {
            let canonical = |number: &u64| number.to_string() == text;
            text.parse().ok().filter(canonical).ok_or_else(|| wrong(format!("{text:?} is no number")))
        };
        Ok(Self {
            kind,
            slot: name(slot)?.parse().map_err(|error| wrong(format!("{error}")))?,
            token: FencingToken::new(number(token)?),
            node: NodeId::new(name(node)?).map_err(|error| wrong(error.to_string()))?,
            pid: u32::try_from(number(pid)?).map_err(|_| wrong(format!("{pid} is no process id")))?,
            at: Timestamp::from_nanos(number(at)?),
        })
    }
}

/// Appends records to a file that others may append to at the same time.
#[derive(Debug)]
pub struct RecordWriter {
    file: File,
}

impl RecordWriter {
    /// Opens the file, and creates it if need be.
    ///
    /// # Errors
    /// The reason of the operating system.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: OpenOptions::new().create(true).append(true).open(path)? })
    }

    /// Appends one record with a single write.
    ///
    /// # Errors
    /// The reason of the operating system; also if only a part could be written.
    pub fn write(&mut self, record: &Record) -> io::Result<()> {
        let line = format!("{record}\n");
        let written = self.file.write(line.as_bytes())?;
        if written == line.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strange_names_survive() {
        for (slot, node) in [("a b/0", "n"), ("%/1", "a b"), ("\u{1f980}{}/2", "%20"), ("a/b c/3", "\u{e9}")] {
            let record = Record {
                kind: RecordKind::Alive,
                slot: slot.parse().unwrap(),
                token: FencingToken::new(u64::MAX),
                node: NodeId::new(node).unwrap(),
                pid: 1,
                at: Timestamp::from_nanos(0),
            };
            let line = record.to_string();
            assert_eq!(line.split(' ').count(), 6);
            assert_eq!(line.parse(), Ok(record));
        }
    }

    #[test]
    fn garbage_is_refused_with_the_reason() {
        for (line, reason) in [
            ("", "1 words"),
            ("begin inbox/0 1 n 1", "5 words"),
            ("begin inbox/0 1 n 1 1 1", "7 words"),
            ("begin  inbox/0 1 n 1 1", "7 words"),
            ("start inbox/0 1 n 1 1", "neither begin"),
            ("begin inbox 1 n 1 1", "is no slot"),
            ("begin inbox/00 1 n 1 1", "is no unit"),
            ("begin %69nbox/0 1 n 1 1", "no encoded name"),
            ("begin inbox/0 01 n 1 1", "\"01\" is no number"),
            ("begin inbox/0 -1 n 1 1", "no number"),
            ("begin inbox/0 18446744073709551616 n 1 1", "no number"),
            ("begin inbox/0 1 %0A 1 1", "control character"),
            ("begin inbox/0 1 n 4294967296 1", "no process id"),
            ("begin inbox/0 1 n 1 1\r", "no number"),
        ] {
            let error = line.parse::<Record>().unwrap_err().to_string();
            assert!(error.contains(reason), "{line:?}: {error}");
        }
    }
}
