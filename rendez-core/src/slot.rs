//! A slot: one unit of a workload, the thing that is owned.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::name::{NameError, WorkloadName};

/// The most units that one workload may have.
pub const UNITS_MAX: u32 = 1_000_000;

/// One unit of a workload, written `inbox/3`.
///
/// ```
/// use rendez_core::Slot;
/// let slot: Slot = "inbox/3".parse().unwrap();
/// assert_eq!((slot.workload.as_str(), slot.unit), ("inbox", 3));
/// assert_eq!(slot.to_string(), "inbox/3");
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Slot {
    /// The kind of work.
    pub workload: WorkloadName,
    /// The index of the unit, from 0.
    pub unit: u32,
}

impl Slot {
    /// The slot of this unit of this workload.
    #[must_use]
    pub fn new(workload: WorkloadName, unit: u32) -> Self {
        Self { workload, unit }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.width().is_some() {
            return f.pad(&format!("{}/{}", self.workload, self.unit));
        }
        write!(f, "{}/{}", self.workload, self.unit)
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.workload, self.unit)
    }
}

/// Why a text is no slot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SlotError {
    /// There is no `/` with a unit behind it.
    #[error("{text:?} is no slot: write WORKLOAD/UNIT, for example inbox/3")]
    Form {
        /// The text that was given.
        text: String,
    },
    /// The unit is not a plain decimal number below [`UNITS_MAX`].
    #[error("{unit:?} is no unit: write a number from 0 to {}", UNITS_MAX - 1)]
    Unit {
        /// The text that stands for the unit.
        unit: String,
    },
    /// The workload's name is refused.
    #[error(transparent)]
    Name(#[from] NameError),
}

impl FromStr for Slot {
    type Err = SlotError;

    fn from_str(text: &str) -> Result<Self, SlotError> {
        let (workload, unit) = text.rsplit_once('/').ok_or_else(|| SlotError::Form { text: text.to_owned() })?;
        let plain = unit.bytes().all(|b| b.is_ascii_digit()) && (unit == "0" || !unit.starts_with('0'));
        let index = unit.parse().ok().filter(|index| plain && *index < UNITS_MAX);
        let index = index.ok_or_else(|| SlotError::Unit { unit: unit.to_owned() })?;
        Ok(Self { workload: WorkloadName::new(workload)?, unit: index })
    }
}

impl TryFrom<String> for Slot {
    type Error = SlotError;
    fn try_from(text: String) -> Result<Self, SlotError> {
        text.parse()
    }
}

impl From<Slot> for String {
    fn from(slot: Slot) -> String {
        slot.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_slot_are_one_to_one() {
        for text in ["inbox/3", "a/b/0", "{x}*/999999", "//7"] {
            assert_eq!(text.parse::<Slot>().unwrap().to_string(), text);
        }
        for text in ["", "inbox", "inbox/", "inbox/03", "inbox/+3", "inbox/-1", "inbox/1000000", "/3", "inbox/3 "] {
            assert!(text.parse::<Slot>().is_err(), "{text}");
        }
    }
}
