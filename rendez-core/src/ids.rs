//! Identifiers that machines draw: sessions, incarnations, generations, operations, revisions, fencing tokens.
//!
//! They are plain numbers with a type. None of them is drawn here: the store draws sessions and tokens, the
//! driver brings the randomness for the rest.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A text that is not the 32 hexadecimal digits of an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no identifier: 32 lower-case hexadecimal digits are wanted")]
pub struct IdError {
    /// The text that was given.
    pub text: String,
}

macro_rules! id {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        ///
        /// 128 bits, written as 32 hexadecimal digits.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(u128);

        impl $type {
            /// Takes the bits as they are.
            #[must_use]
            pub const fn from_bits(bits: u128) -> Self {
                Self(bits)
            }

            /// The bits.
            #[must_use]
            pub const fn bits(self) -> u128 {
                self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:032x})", stringify!($type), self.0)
            }
        }

        impl FromStr for $type {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let hex = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
                let bits = u128::from_str_radix(text, 16).ok().filter(|_| hex);
                bits.map(Self).ok_or_else(|| IdError { text: text.to_owned() })
            }
        }

        impl TryFrom<String> for $type {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(id: $type) -> String {
                id.to_string()
            }
        }
    };
}

id! {
    /// What a node holds in the store while it is alive. Drawn by the store, fresh at every opening, never reused.
    SessionId
}
id! {
    /// One process lifetime of a node: drawn at random at every start.
    Incarnation
}
id! {
    /// One life of a store's data. When data may have been lost, a new generation is drawn.
    Generation
}
id! {
    /// One request: its retry bears the same id and has the effect of one.
    OperationId
}

/// A place in the history of a cluster's records; it rises with every change, within one [`Generation`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A number that rises strictly with every grant of a slot, for ever.
///
/// Hand it to whatever the slot's work writes to, and let that refuse a token lower than one it has seen: no
/// lease system can exclude a paused owner in any other way.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FencingToken(u64);

impl FencingToken {
    /// The token of a slot that was never granted; lower than every granted one.
    pub const NONE: Self = Self(0);

    /// Takes the number as it is.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_is_exactly_32_lower_case_digits() {
        let session = SessionId::from_bits(0xab);
        assert_eq!(session.to_string().parse(), Ok(session));
        for text in ["", "ab", &"A".repeat(32), &"0".repeat(33), "+0000000000000000000000000000000"] {
            assert!(text.parse::<SessionId>().is_err(), "{text}");
        }
    }
}
