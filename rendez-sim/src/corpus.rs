//! Worlds that broke a promise once, and why. They are run with every change.
//!
//! What a seed of the swarm stands for changes with each new fault; so those worlds are kept as scenario files, each in
//! the folder `corpus`, with a first line that says what was wrong.

use crate::scenario::Kind;

/// A seed that broke a promise once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// Of which worlds.
    pub kind: Kind,
    /// The seed.
    pub seed: u64,
    /// What was wrong, where that is known.
    pub why: &'static str,
}

const fn plain(seed: u64) -> Case {
    Case { kind: Kind::Plain, seed, why: "while the protocol was first built" }
}

const fn minds(seed: u64) -> Case {
    Case { kind: Kind::Minds, seed, why: "while operators' and programs' wishes were first built" }
}

/// Seeds of worlds whose choice does not change any more.
pub const CASES: &[Case] = &[
    plain(2),
    plain(3),
    plain(5),
    plain(8),
    plain(31),
    plain(37),
    plain(71),
    plain(76),
    plain(100),
    plain(112),
    plain(135),
    plain(142),
    plain(211),
    plain(217),
    plain(517),
    plain(901),
    minds(8),
    minds(139),
    minds(447),
    minds(539),
    minds(713),
    minds(875),
    minds(1622),
    minds(2525),
];
