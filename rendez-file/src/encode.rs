//! The state as text, and back. The layout is described in `docs/stores/file.md`; whoever changes it changes the layout's
//! version.

use std::io;

use rendez_core::{Effects, StoreTime};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh64::xxh64;

use crate::clock::Epoch;

/// One line of the journal: what one request has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Line {
    /// The line's number; it goes on from journal to journal.
    pub(crate) n: u64,
    /// The store's time.
    pub(crate) at: StoreTime,
    /// The store's clock, where it is set anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) clock: Option<Epoch>,
    #[serde(default, skip_serializing_if = "Effects::is_empty")]
    pub(crate) effects: Effects,
}

/// The first line of a snapshot. The whole state of the cluster stands behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    pub(crate) layout: u32,
    /// The cluster's name, for whoever looks into the folder.
    pub(crate) cluster: String,
    /// Drawn when the cluster's data began: data that were removed and begun anew are others.
    pub(crate) data: u64,
    /// The number of the journal that goes on from here.
    pub(crate) journal: u64,
    /// The number of the next line.
    pub(crate) next: u64,
    pub(crate) at: StoreTime,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) clock: Option<Epoch>,
}

/// What can be read of a snapshot of any layout.
#[derive(Deserialize)]
struct Layout {
    layout: u32,
}

/// Why a text cannot be believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Bad {
    /// The checksum is another one.
    Checksum,
    /// The checksum is right and the content is not what this release knows.
    Content(String),
    /// Written by a release with another layout.
    Layout(u32),
}

impl std::fmt::Display for Bad {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Checksum => f.write_str("its checksum is wrong"),
            Self::Content(error) => write!(f, "its content cannot be read ({error})"),
            Self::Layout(layout) => write!(f, "it has layout {layout}"),
        }
    }
}

/// What every text begins with: the checksum of all that follows the comma.
const HEAD: &str = r#"{"sum":""#;
const SUM_DIGITS: usize = 16;
const BEHIND_SUM: &str = r#"","#;

/// `{"a":1}` becomes `{"sum":"…","a":1}`. The seed ties a line to its journal.
fn seal(json: &str, seed: u64) -> String {
    let rest = json.strip_prefix('{').unwrap_or(json);
    format!("{HEAD}{:016x}{BEHIND_SUM}{rest}", xxh64(rest.as_bytes(), seed))
}

/// The JSON of a sealed text, without its checksum.
fn unseal(text: &[u8], seed: u64) -> Result<String, Bad> {
    let rest = text.strip_prefix(HEAD.as_bytes()).ok_or(Bad::Checksum)?;
    let (sum, rest) = rest.split_at_checked(SUM_DIGITS).ok_or(Bad::Checksum)?;
    let rest = rest.strip_prefix(BEHIND_SUM.as_bytes()).ok_or(Bad::Checksum)?;
    if sum != format!("{:016x}", xxh64(rest, seed)).as_bytes() {
        return Err(Bad::Checksum);
    }
    let rest = std::str::from_utf8(rest).map_err(|error| Bad::Content(error.to_string()))?;
    Ok(format!("{{{rest}"))
}

/// A line of a journal, with its end.
pub(crate) fn line(line: &Line, journal: u64) -> Result<String, serde_json::Error> {
    Ok(seal(&serde_json::to_string(line)?, journal) + "\n")
}

/// A line without its end.
pub(crate) fn parse_line(text: &[u8], journal: u64) -> Result<Line, Bad> {
    serde_json::from_str(&unseal(text, journal)?).map_err(|error| Bad::Content(error.to_string()))
}

/// A snapshot: its head in the first line, and the state with one record a line.
pub(crate) fn snapshot(head: &Head, state: &Effects) -> Result<String, serde_json::Error> {
    let mut json = Vec::new();
    state.serialize(&mut serde_json::Serializer::with_formatter(&mut json, OneALine))?;
    let state = seal(&String::from_utf8_lossy(&json), head.journal);
    Ok(seal(&serde_json::to_string(head)?, 0) + "\n" + &state + "\n")
}

/// Short JSON in which every item of a list begins a line.
struct OneALine;

impl serde_json::ser::Formatter for OneALine {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        writer.write_all(if first { b"\n" } else { b",\n" })
    }
}

/// The head of a snapshot, and where the state begins. The layout is looked at before anything else is believed.
pub(crate) fn parse_head(text: &[u8], layout: u32) -> Result<(Head, usize), Bad> {
    let end = text.iter().position(|byte| *byte == b'\n').ok_or(Bad::Checksum)?;
    let json = unseal(&text[..end], 0)?;
    let found: Layout = serde_json::from_str(&json).map_err(|error| Bad::Content(error.to_string()))?;
    if found.layout != layout {
        return Err(Bad::Layout(found.layout));
    }
    let head = serde_json::from_str(&json).map_err(|error| Bad::Content(error.to_string()))?;
    Ok((head, end + 1))
}

/// The state of a snapshot.
pub(crate) fn parse_state(text: &[u8], head: &Head) -> Result<Effects, Bad> {
    let json = unseal(text.strip_suffix(b"\n").ok_or(Bad::Checksum)?, head.journal)?;
    serde_json::from_str(&json).map_err(|error| Bad::Content(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Line {
        let clock = Some(Epoch { boot: "b".to_owned(), offset: -5 });
        Line { n: 7, at: StoreTime::from_micros(9), clock, effects: Effects::default() }
    }

    #[test]
    fn a_line_is_json_with_its_checksum_in_front() {
        let text = line(&example(), 3).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((json["n"].as_u64(), json["at"].as_u64()), (Some(7), Some(9)));
        assert_eq!(json["sum"].as_str().unwrap().len(), SUM_DIGITS);
        assert_eq!(parse_line(text.trim_end().as_bytes(), 3), Ok(example()));
        assert_eq!(parse_line(text.trim_end().as_bytes(), 4), Err(Bad::Checksum), "another journal's line");
    }

    #[test]
    fn no_byte_of_a_line_can_be_missing_or_another_one() {
        let text = line(&example(), 3).unwrap().trim_end().to_owned().into_bytes();
        for at in 0..text.len() {
            assert!(parse_line(&text[..at], 3).is_err(), "cut at {at}");
            let mut flipped = text.clone();
            flipped[at] ^= 1;
            assert!(parse_line(&flipped, 3).is_err(), "flipped at {at}");
        }
    }

    #[test]
    fn a_snapshot_of_another_layout_says_so_and_no_part_of_one_is_believed() {
        let clock = example().clock;
        let head = Head { layout: 2, cluster: "c".to_owned(), data: 5, journal: 1, next: 1, at: example().at, clock };
        let text = snapshot(&head, &Effects::default()).unwrap();
        assert_eq!(parse_head(text.as_bytes(), 1), Err(Bad::Layout(2)));
        let (read, end) = parse_head(text.as_bytes(), 2).unwrap();
        assert_eq!(read, head);
        let state = &text.as_bytes()[end..];
        assert_eq!(parse_state(state, &head), Ok(Effects::default()));
        for length in 0..state.len() {
            assert_eq!(parse_state(&state[..length], &head), Err(Bad::Checksum));
        }
        let other = Head { journal: 2, ..head };
        assert_eq!(parse_state(state, &other), Err(Bad::Checksum), "another snapshot's state");
    }
}
