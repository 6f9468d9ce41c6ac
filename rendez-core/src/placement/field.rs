//! The search for the best node of a slot: the inner loop of every plan.
//!
//! The nodes' hashes lie in one array. Among nodes of equal weight the largest mixed hash wins; among others a
//! cheap bound settles nearly all, and the exact comparison decides only between those that come near. Which
//! nodes may be asked is the caller's business.

use super::score::{Rating, exponential, pair_hash};
use super::world::{Load, World};

/// The best node for a slot, and how good it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Best {
    pub(super) node: u32,
    pub(super) rating: Rating,
}

/// The nodes that a search goes over.
#[derive(Debug, Clone, Default)]
pub(super) struct Field {
    nodes: Vec<u32>,
    hashes: Vec<u64>,
    weights: Vec<u32>,
    inverse: Vec<f64>,
    equal: bool,
}

/// A lower bound of `exponential(h)`, in units of its own.
///
/// With K = 2^57 / (2^64 ln 2), `exponential(h) ≥ K · !h` holds for every h: the chords of the table lie below
/// the logarithm, and so does what rounding leaves of them. This is `!h` in steps of 2^11, which a float holds.
#[inline]
pub(super) fn least(h: u64) -> f64 {
    // The shift leaves 53 bits: the signed conversion is exact, and cheaper.
    (!h >> 11) as i64 as f64
}

/// From `exponential` to the units of [`least`], a little too large on purpose: rounding in floating point may
/// then let a pair through to the exact comparison, but never drop one.
const BOUND: f64 = std::f64::consts::LN_2 * 128.0 / 2048.0 * (1.0 + 1e-9);

/// An upper bound of `exponential(h)` in the units of [`least`], without the table.
///
/// −ln(1 − x) ≤ x / (1 − x), and the table is never further than 2·10^−7 from the logarithm.
#[inline]
pub(super) fn most(h: u64) -> f64 {
    const ONE: f64 = (1u64 << 53) as f64;
    let part = (least(h) + 1.0) / ONE;
    (part / (1.0 - part) + 1e-6) * ONE * (1.0 + 1e-9)
}

impl Field {
    /// The nodes that may take something of this workload.
    pub(super) fn takers(world: &World, load: &Load) -> Self {
        let mut field = Self { equal: true, ..Self::default() };
        for node in world.live() {
            let entry = &world.nodes[node as usize];
            if entry.accepts && load.pairs.get(node as usize).is_some_and(|pair| pair.units > 0) {
                field.push(node, entry.hash, entry.weight);
            }
        }
        field
    }

    fn push(&mut self, node: u32, hash: u64, weight: u32) {
        self.equal &= self.weights.first().is_none_or(|first| *first == weight);
        self.nodes.push(node);
        self.hashes.push(hash);
        self.weights.push(weight);
        self.inverse.push(1.0 / f64::from(weight));
    }

    /// Whether all nodes of the field have the same weight.
    pub(super) fn is_equal(&self) -> bool {
        self.equal
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Drops nodes for good.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(u32) -> bool) {
        let mut kept = Self { equal: true, ..Self::default() };
        for at in 0..self.nodes.len() {
            if keep(self.nodes[at]) {
                kept.push(self.nodes[at], self.hashes[at], self.weights[at]);
            }
        }
        *self = kept;
    }

    /// The best node for a slot among those that `allowed` lets through. It is asked only for nodes that are
    /// better than the best so far.
    pub(super) fn best(&self, rank: &[u32], slot: u64, allowed: impl FnMut(u32) -> bool) -> Option<Best> {
        if self.equal { self.best_of_equals(rank, slot, allowed) } else { self.best_weighted(rank, slot, allowed) }
    }

    fn best_of_equals(&self, rank: &[u32], slot: u64, mut allowed: impl FnMut(u32) -> bool) -> Option<Best> {
        let weight = *self.weights.first()?;
        let mut best: Option<Best> = None;
        let mut floor = 0;
        for (at, hash) in self.hashes.iter().enumerate() {
            let h = pair_hash(slot, *hash);
            if h >= floor {
                let node = self.nodes[at];
                let found = Best { node, rating: Rating { h, weight } };
                if beats(rank, found, best) && allowed(node) {
                    floor = h;
                    best = Some(found);
                }
            }
        }
        best
    }

    fn best_weighted(&self, rank: &[u32], slot: u64, mut allowed: impl FnMut(u32) -> bool) -> Option<Best> {
        let mut best: Option<Best> = None;
        let mut limit = f64::INFINITY;
        for (at, (hash, inverse)) in self.hashes.iter().zip(&self.inverse).enumerate() {
            let h = pair_hash(slot, *hash);
            if least(h) * inverse <= limit {
                let node = self.nodes[at];
                let found = Best { node, rating: Rating { h, weight: self.weights[at] } };
                if beats(rank, found, best) && allowed(node) {
                    limit = exponential(h) as f64 * inverse * BOUND;
                    best = Some(found);
                }
            }
        }
        best
    }
}

fn beats(rank: &[u32], found: Best, best: Option<Best>) -> bool {
    best.is_none_or(|best| {
        let order = found.rating.cmp(&best.rating);
        order.then_with(|| rank[best.node as usize].cmp(&rank[found.node as usize])).is_gt()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounds_hold_where_they_are_tightest() {
        let near = (0..64).flat_map(|shift| [u64::MAX >> shift, !(u64::MAX >> shift), 1 << shift, !(1 << shift)]);
        let spread = (0..100_000u64).map(|step| pair_hash(step, 1));
        let high = (0..100_000u64).map(|step| !(pair_hash(step, 2) >> (step % 64)));
        for h in near.chain(spread).chain(high) {
            let exact = exponential(h) as f64 * BOUND;
            assert!(least(h) <= exact, "{h:x}");
            assert!(exact <= most(h), "{h:x}");
        }
    }
}
