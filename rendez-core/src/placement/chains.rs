//! Chains of two moves, where no single move makes the spread better.
//!
//! A slot goes from a to b and another, of any workload, from b to c; where c is a, the two change places. What
//! a chain changes is a sum of steps along a path giver, workload, middle, workload, receiver, so the best one
//! is found step by step over the tables of [`Descent`], without going through all of them. Exchanges are looked
//! for where no other chain is left. Slots that only some nodes may take are looked at one by one.

use std::collections::BTreeSet;

use super::descent::{Descent, NEVER};
use super::score::pair_hash;
use super::world::{NONE, Place};

/// More than any chain changes.
const FAR: i32 = 1000;

/// The first half of a chain: from whom a workload's slot comes to the middle, and what that changes.
#[derive(Debug, Clone, Copy)]
struct Half {
    change: i32,
    from: u32,
    index: usize,
}

/// A chain of two moves, by workload and node.
#[derive(Debug, Clone, Copy)]
struct Chain {
    change: i32,
    first: usize,
    from: u32,
    middle: u32,
    second: usize,
    to: u32,
}

/// Which slots of a workload any of its nodes may take, and which only some.
#[derive(Debug)]
struct Kinds {
    /// By node: whether it has slots that may go to any node; if not said, all slots may that may move at all.
    free_at: Option<Vec<bool>>,
    /// Units that may go to some nodes only.
    odd: Vec<u32>,
}

impl Descent<'_, '_> {
    /// Makes the chain that lowers Φ most, if there is one.
    pub(super) fn make_best_chain(&mut self) -> bool {
        let kinds: Vec<_> = (0..self.loads.len()).map(|index| self.kinds(index)).collect();
        let Some(chain) = self.best_path(&kinds).or_else(|| self.best_exchange(&kinds)) else { return false };
        let Some(first) = self.best_of(chain.first, chain.from, chain.middle) else { return false };
        let Some(second) = self.best_of(chain.second, chain.middle, chain.to) else { return false };
        let before = self.phi;
        self.shift(second, chain.to);
        self.shift(first, chain.middle);
        if self.phi < before {
            return true;
        }
        self.shift(first, chain.from);
        self.shift(second, chain.middle);
        false
    }

    fn kinds(&self, index: usize) -> Kinds {
        let world = self.draft.world;
        let load = self.loads[index];
        let entry = &world.loads[load as usize];
        let limits = self.nodes.iter().map(|node| entry.pairs[*node as usize].units).filter(|units| *units > 0);
        let least = limits.min().unwrap_or(0);
        if entry.is_plain() && least == entry.units {
            return Kinds { free_at: None, odd: Vec::new() };
        }
        let refused: BTreeSet<_> = entry.refused.iter().map(|(unit, _)| *unit).collect();
        let mut kinds = Kinds { free_at: Some(vec![false; world.nodes.len()]), odd: Vec::new() };
        for (unit, owner) in self.draft.owners[load as usize].iter().enumerate() {
            let unit = unit as u32;
            if *owner == NONE || !world.nodes[*owner as usize].accepts || !self.is_movable(Place { load, unit }) {
                continue;
            }
            if unit >= least || refused.contains(&unit) {
                kinds.odd.push(unit);
            } else if let Some(free_at) = &mut kinds.free_at {
                free_at[*owner as usize] = true;
            }
        }
        kinds
    }

    /// What Φ's part of a workload changes by if a node gives one that any node may take.
    fn free_loss(&self, kinds: &[Kinds], index: usize, node: u32) -> Option<i32> {
        let loss = self.loss(index, node);
        let free = kinds[index].free_at.as_ref().is_none_or(|free_at| free_at[node as usize]);
        (loss != NEVER && free).then_some(i32::from(loss))
    }

    fn middle_gain(&self, index: usize, node: u32) -> Option<i32> {
        let gain = self.gain(index, node);
        (gain != NEVER).then_some(i32::from(gain))
    }

    /// The best chain whose giver and receiver differ.
    fn best_path(&self, kinds: &[Kinds]) -> Option<Chain> {
        let width = self.total_loss.len();
        // By middle node: how a slot best comes to it.
        let mut halves = vec![Half { change: FAR, from: NONE, index: 0 }; width];
        for index in 0..self.loads.len() {
            let mut best = Half { change: FAR, from: NONE, index };
            for node in &self.nodes {
                let Some(loss) = self.free_loss(kinds, index, *node) else { continue };
                let change = loss + i32::from(self.total_loss[*node as usize]);
                if change < best.change {
                    best = Half { change, from: *node, index };
                }
            }
            for node in self.nodes.iter().filter(|_| best.from != NONE) {
                let Some(gain) = self.middle_gain(index, *node) else { continue };
                self.offer(&mut halves[*node as usize], Half { change: best.change + gain, ..best });
            }
            for place in self.odd(kinds, index) {
                let from = self.draft.owner(place);
                let loss = i32::from(self.loss(index, from)) + i32::from(self.total_loss[from as usize]);
                for node in self.nodes.iter().filter(|node| **node != from && self.may_move(place, **node)) {
                    let Some(gain) = self.middle_gain(index, *node) else { continue };
                    self.offer(&mut halves[*node as usize], Half { change: loss + gain, from, index });
                }
            }
        }
        let mut best: Option<Chain> = None;
        let mut consider = |chain: Chain| {
            if chain.change < 0 && best.is_none_or(|best| chain.change < best.change) {
                best = Some(chain);
            }
        };
        for index in 0..self.loads.len() {
            let mut middle: Option<(i32, u32)> = None;
            for node in &self.nodes {
                let half = halves[*node as usize];
                let Some(loss) = self.free_loss(kinds, index, *node).filter(|_| half.from != NONE) else { continue };
                let change = half.change + loss;
                if middle.is_none_or(|(least, _)| change < least) {
                    middle = Some((change, *node));
                }
            }
            if let Some((change, middle)) = middle {
                for to in self.nodes.iter().filter(|to| **to != middle) {
                    if let Some(taking) = self.taking(index, *to) {
                        consider(chain(halves[middle as usize], middle, index, *to, change + i32::from(taking)));
                    }
                }
            }
            for place in self.odd(kinds, index) {
                let middle = self.draft.owner(place);
                let half = halves[middle as usize];
                if half.from == NONE {
                    continue;
                }
                let change = half.change + i32::from(self.loss(index, middle));
                for to in self.nodes.iter().filter(|to| **to != middle && self.may_move(place, **to)) {
                    if let Some(taking) = self.taking(index, *to) {
                        consider(chain(half, middle, index, *to, change + i32::from(taking)));
                    }
                }
            }
        }
        best
    }

    /// The best exchange of two slots between the first node that has one to make and another, of slots that any
    /// node may take.
    fn best_exchange(&self, kinds: &[Kinds]) -> Option<Chain> {
        for from in &self.nodes {
            // One of the two has a count outside of its band, or nothing would be won.
            let outside = |index| self.loss(index, *from) == -1 || self.gain(index, *from) == -1;
            if !(0..self.loads.len()).any(outside) {
                continue;
            }
            // By node: which workload's slot best goes there, and which best comes back.
            let mut there = vec![(FAR, 0); self.total_loss.len()];
            let mut back = there.clone();
            for index in 0..self.loads.len() {
                let (loss, gain) = (self.free_loss(kinds, index, *from), self.middle_gain(index, *from));
                for node in &self.nodes {
                    if let Some((loss, gain)) = loss.zip(self.middle_gain(index, *node)) {
                        lower(&mut there[*node as usize], loss + gain, index);
                    }
                    if let Some((gain, loss)) = gain.zip(self.free_loss(kinds, index, *node)) {
                        lower(&mut back[*node as usize], loss + gain, index);
                    }
                }
            }
            let others = self.nodes.iter().filter(|node| *node != from);
            let best = others.min_by_key(|node| there[**node as usize].0 + back[**node as usize].0);
            let Some(middle) = best else { continue };
            let ((there, first), (back, second)) = (there[*middle as usize], back[*middle as usize]);
            if there + back < 0 {
                return Some(Chain { change: there + back, first, from: *from, middle: *middle, second, to: *from });
            }
        }
        None
    }

    fn odd(&self, kinds: &[Kinds], index: usize) -> impl Iterator<Item = Place> {
        let load = self.loads[index];
        kinds[index].odd.iter().map(move |unit| Place { load, unit: *unit })
    }

    fn offer(&self, known: &mut Half, half: Half) {
        if half.change < known.change {
            *known = half;
        }
    }

    /// The slot of a workload that goes best from one node to another.
    fn best_of(&self, index: usize, from: u32, to: u32) -> Option<Place> {
        let world = self.draft.world;
        let load = self.loads[index];
        let owners = self.draft.owners[load as usize].iter().enumerate().filter(|(_, owner)| **owner == from);
        let places = owners.map(|(unit, _)| Place { load, unit: unit as u32 });
        let hash = |place: &Place| {
            pair_hash(world.loads[load as usize].hashes[place.unit as usize], world.nodes[to as usize].hash)
        };
        places
            .filter(|place| self.may_move(*place, to))
            .max_by_key(|place| (hash(place), std::cmp::Reverse(place.unit)))
    }
}

fn lower(known: &mut (i32, usize), change: i32, index: usize) {
    if change < known.0 {
        *known = (change, index);
    }
}

fn chain(half: Half, middle: u32, second: usize, to: u32, change: i32) -> Chain {
    Chain { change, first: half.index, from: half.from, middle, second, to }
}
