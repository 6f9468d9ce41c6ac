//! Names: of clusters, nodes, workloads, zones.
//!
//! A name is 1 to 200 bytes of UTF-8 without control characters. Separators, braces, glob characters and emoji
//! are accepted and mean nothing; whoever encodes a name into a key must do so injectively. Because control
//! characters are refused here, they are safe delimiters everywhere else. Nothing but that rule belongs here.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The longest name, in bytes of UTF-8.
pub const NAME_BYTES_MAX: usize = 200;

/// Why a name was refused.
///
/// ```
/// use rendez_core::{NameError, NodeId};
/// assert_eq!(NodeId::new("").unwrap_err(), NameError::Empty);
/// assert!(NodeId::new("a\nb").unwrap_err().to_string().contains("control character"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// The name has no bytes.
    #[error("a name must not be empty: use 1 to {NAME_BYTES_MAX} bytes of UTF-8")]
    Empty,
    /// The name is longer than [`NAME_BYTES_MAX`] bytes.
    #[error("a name of {bytes} bytes is too long: use 1 to {NAME_BYTES_MAX} bytes of UTF-8")]
    TooLong {
        /// The length that was given.
        bytes: usize,
    },
    /// The name holds a control character (Unicode category Cc).
    #[error("a name must not hold the control character {character:?} (at byte {at}): use printable UTF-8")]
    Control {
        /// The character.
        character: char,
        /// Its place, in bytes from the start.
        at: usize,
    },
}

fn check(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong { bytes: name.len() });
    }
    match name.char_indices().find(|(_, character)| character.is_control()) {
        Some((at, character)) => Err(NameError::Control { character, at }),
        None => Ok(()),
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        ///
        /// 1 to 200 bytes of UTF-8 without control characters; cheap to clone.
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(Arc<str>);

        impl $type {
            /// Checks and takes a name.
            ///
            /// # Errors
            /// [`NameError`] says what is wrong with it; nothing else has happened.
            pub fn new(name: impl AsRef<str>) -> Result<Self, NameError> {
                check(name.as_ref())?;
                Ok(Self(Arc::from(name.as_ref())))
            }

            /// The name as it was given.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;
            fn from_str(name: &str) -> Result<Self, NameError> {
                Self::new(name)
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(name: String) -> Result<Self, NameError> {
                Self::new(name)
            }
        }

        impl TryFrom<&str> for $type {
            type Error = NameError;
            fn try_from(name: &str) -> Result<Self, NameError> {
                Self::new(name)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0.as_ref().to_owned()
            }
        }
    };
}

name! {
    /// A cluster: a namespace in a store. Two clusters never see each other.
    ClusterName
}
name! {
    /// One participant of a cluster, named by its operator.
    NodeId
}
name! {
    /// A named kind of work.
    WorkloadName
}
name! {
    /// A failure domain that nodes are in and that workloads may be confined to.
    ZoneName
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_braces_globs_and_emoji_are_accepted_and_kept() {
        for name in ["a", "a/b:c{d}*?[e]", "..", " ", "\u{1f980}", "\u{e9}", &"x".repeat(200)] {
            assert_eq!(NodeId::new(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn empty_long_and_control_are_refused_with_the_reason() {
        assert_eq!(NodeId::new("x".repeat(201)), Err(NameError::TooLong { bytes: 201 }));
        for control in ['\0', '\n', '\t', '\u{1f}', '\u{7f}', '\u{85}'] {
            let error = NodeId::new(format!("ab{control}")).unwrap_err();
            assert_eq!(error, NameError::Control { character: control, at: 2 });
        }
    }

    #[test]
    fn a_refused_name_is_refused_by_deserialization_too() {
        assert!(serde_json::from_str::<NodeId>("\"a\\u0000\"").is_err());
        assert_eq!(serde_json::from_str::<NodeId>("\"a/b\"").unwrap().as_str(), "a/b");
    }
}
