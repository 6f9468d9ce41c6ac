//! The name of a ring: a safe identifier, so that it can stand in a table's name, a file's or a metric's without quoting.

use std::fmt;
use std::str::FromStr;

use rendez_core::ClusterName;

/// The longest name of a ring, in bytes: that of an identifier in PostgreSQL.
pub const RING_ID_BYTES_MAX: usize = 63;

/// The name of a ring: a letter, then letters, digits and underscores, ASCII, at most [`RING_ID_BYTES_MAX`] bytes. On every
/// store, so that a ring can move to another one.
///
/// ```
/// use rendez::RingId;
/// assert!(RingId::new("orders_2").is_ok());
/// assert!(RingId::new("orders-2").unwrap_err().to_string().contains("'-'"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RingId(ClusterName);

/// Why a name is none for a ring.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RingIdError {
    /// It has no bytes.
    #[error("a ring's name must not be empty: use a letter, then letters, digits and underscores")]
    Empty,
    /// It is longer than [`RING_ID_BYTES_MAX`] bytes.
    #[error("a ring's name of {bytes} bytes is too long: use {RING_ID_BYTES_MAX} or fewer")]
    TooLong {
        /// The length that was given.
        bytes: usize,
    },
    /// It holds a character that it must not hold, at the beginning or at all.
    #[error("a ring's name must not {} {character:?}: use a letter, then letters, digits and underscores (ASCII)",
        if *at == 0 { "begin with" } else { "hold" })]
    Character {
        /// The character.
        character: char,
        /// Its place, in bytes from the start.
        at: usize,
    },
}

impl RingId {
    /// Checks and takes a name.
    ///
    /// # Errors
    /// [`RingIdError`] says what is wrong with it.
    pub fn new(name: impl AsRef<str>) -> Result<Self, RingIdError> {
        let name = name.as_ref();
        if name.len() > RING_ID_BYTES_MAX {
            return Err(RingIdError::TooLong { bytes: name.len() });
        }
        let fits = |at: usize, it: char| it.is_ascii_alphabetic() || at > 0 && (it.is_ascii_digit() || it == '_');
        if let Some((at, character)) = name.char_indices().find(|(at, it)| !fits(*at, *it)) {
            return Err(RingIdError::Character { character, at });
        }
        // What is left of a cluster's rules is that it is not empty.
        ClusterName::new(name).map(Self).map_err(|_| RingIdError::Empty)
    }

    /// The name as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The cluster that the ring is.
    #[must_use]
    pub fn cluster(&self) -> &ClusterName {
        &self.0
    }
}

impl fmt::Display for RingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for RingId {
    type Err = RingIdError;
    fn from_str(name: &str) -> Result<Self, RingIdError> {
        Self::new(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_safe_identifier_is_taken_and_nothing_else() {
        for name in ["a", "Orders", "my_ring", "r2_d2", &"x".repeat(63)] {
            assert_eq!(RingId::new(name).unwrap().as_str(), name);
        }
        assert_eq!(RingId::new(""), Err(RingIdError::Empty));
        assert_eq!(RingId::new("x".repeat(64)), Err(RingIdError::TooLong { bytes: 64 }));
        for (name, character, at) in [
            ("2x", '2', 0),
            ("_x", '_', 0),
            ("my-ring", '-', 2),
            ("a b", ' ', 1),
            ("a\"; drop table x", '"', 1),
            ("ringü", 'ü', 4),
            ("a\n", '\n', 1),
        ] {
            assert_eq!(RingId::new(name), Err(RingIdError::Character { character, at }), "{name:?}");
        }
    }
}
