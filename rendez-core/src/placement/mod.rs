//! Placement: who should own what.

use serde::{Deserialize, Serialize};

/// How slots are placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// Even shares, few moves.
    #[default]
    Balanced,
    /// The highest score.
    Rendezvous,
}

/// How far from its share a node may be, in thousandths; at least 1000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LoadFactor(u32);

impl Default for LoadFactor {
    fn default() -> Self {
        Self(1000)
    }
}
