//! Moves of held slots that make the spread better, best first, until none is left.
//!
//! Φ is twice the sum over nodes of the distance of the total from its band, and the sum over workloads and
//! nodes of the distance of the count from its band. Every move that is made here lowers it. What a move changes
//! depends on counts alone and is kept in small tables; scores are computed only for slots that may move at all.
//! Chains of moves are found elsewhere.

use std::collections::BTreeMap;

use super::draft::{Bid, Draft};
use super::score::{Rating, pair_hash};
use super::shares::Shares;
use super::world::{NONE, Place};

/// In a table of changes: cannot be.
pub(super) const NEVER: i8 = 100;

/// The changes that one side of a move can make: −3 to 3.
const SIDES: usize = 7;

/// How many candidates are kept at hand for one receiver while there are many of them, and while there are few.
const SHELF: usize = 64;
const SHELF_OF_FEW: usize = 512;

/// A placement on its way to the lowest Φ that can be reached.
#[derive(Debug)]
pub(super) struct Descent<'d, 'w> {
    pub(super) draft: &'d mut Draft<'w>,
    shares: &'d Shares,
    /// The workloads whose slots may move, in order. Tables go by index into this.
    pub(super) loads: &'d [u32],
    /// Nodes that may give and take, in order.
    pub(super) nodes: Vec<u32>,
    /// The slots that may move; all if not said.
    loose: Option<Loose>,
    pub(super) phi: u64,
    /// By workload and node: what the workload's part of Φ changes by if the node loses one.
    loss: Vec<i8>,
    /// The same if it gains one.
    gain: Vec<i8>,
    /// By node: what the total's part of Φ changes by if the node loses one.
    pub(super) total_loss: Vec<i8>,
    /// The same if it gains one.
    pub(super) total_gain: Vec<i8>,
    /// By workload and change: how many nodes can give at that change.
    givers: Vec<[u32; SIDES]>,
    /// By workload and change: the nodes that can take at that change, in no order.
    receivers: Vec<[Vec<u32>; SIDES]>,
    /// By workload and change: nodes in the order in which they became receivers at it.
    entered: Vec<[Vec<u32>; SIDES]>,
    /// By workload and change of the giver: the units that may be given so, in the order in which that came
    /// about. Some can be given no more.
    pools: BTreeMap<(usize, i8), Vec<u32>>,
    /// The best of a pool for one receiver.
    shelves: BTreeMap<(usize, i8, u32), Shelf>,
    /// By workload and both changes: the best move.
    fronts: BTreeMap<(usize, i8, i8), Front>,
}

/// The only slots that may move for now.
#[derive(Debug)]
struct Loose {
    /// By workload and unit.
    slots: Vec<Vec<bool>>,
    /// By index of the workload and node: how many of them it has.
    counts: Vec<u32>,
}

/// The best units of a pool for one receiver.
#[derive(Debug)]
struct Shelf {
    /// Mixed hash and unit in one number, so that the greatest is the best; the very best last.
    matches: Vec<u128>,
    /// What is below this is not on the shelf.
    floor: u128,
    /// How much of the pool has been looked at.
    seen: usize,
}

/// The best of all moves that change Φ alike on either side.
#[derive(Debug)]
struct Front {
    best: Option<(Bid, Place, u32)>,
    /// How much of the pool and of the receivers that came later it is the best of.
    seen: (usize, usize),
}

/// A mixed hash and a unit in one number: the larger hash is better, then the smaller unit.
fn match_of(h: u64, unit: u32) -> u128 {
    u128::from(h) << 32 | u128::from(!unit)
}

fn unit_of(found: u128) -> u32 {
    !(found as u32)
}

impl<'d, 'w> Descent<'d, 'w> {
    pub(super) fn new(draft: &'d mut Draft<'w>, shares: &'d Shares, loads: &'d [u32]) -> Self {
        let world = draft.world;
        let nodes = world.live().filter(|node| world.nodes[*node as usize].accepts).collect();
        Self {
            draft,
            shares,
            loads,
            nodes,
            loose: None,
            phi: 0,
            loss: Vec::new(),
            gain: Vec::new(),
            total_loss: Vec::new(),
            total_gain: Vec::new(),
            givers: Vec::new(),
            receivers: Vec::new(),
            entered: Vec::new(),
            pools: BTreeMap::new(),
            shelves: BTreeMap::new(),
            fronts: BTreeMap::new(),
        }
    }

    /// Moves these slots, which have just been given a place and whose moves cost nothing, until no move and no
    /// chain of them lowers Φ; then all slots.
    pub(super) fn run(mut self, placed: &[Place]) {
        self.phi = self.measure();
        if self.phi == 0 {
            return;
        }
        if !placed.is_empty() {
            self.loosen(placed);
            self.descend();
            self.loose = None;
        }
        self.descend();
    }

    fn descend(&mut self) {
        self.tabulate();
        while self.phi > 0 {
            match self.best_move() {
                Some((place, to)) => self.shift(place, to),
                None => {
                    if !self.make_best_chain() {
                        break;
                    }
                }
            }
        }
    }

    /// Lets only these slots move.
    fn loosen(&mut self, places: &[Place]) {
        let width = self.draft.world.nodes.len();
        let slots = self.draft.owners.iter().map(|owners| vec![false; owners.len()]).collect();
        let mut loose = Loose { slots, counts: vec![0; self.loads.len() * width] };
        let mut index_of = vec![usize::MAX; self.draft.owners.len()];
        for (index, load) in self.loads.iter().enumerate() {
            index_of[*load as usize] = index;
        }
        for place in places {
            let owner = self.draft.owner(*place);
            if owner != NONE {
                loose.slots[place.load as usize][place.unit as usize] = true;
                loose.counts[index_of[place.load as usize] * width + owner as usize] += 1;
            }
        }
        self.loose = Some(loose);
    }

    /// Whether a slot may move at all: it is not pinned, and loose if that matters.
    pub(super) fn is_movable(&self, place: Place) -> bool {
        let loose = self.loose.as_ref().is_none_or(|loose| loose.slots[place.load as usize][place.unit as usize]);
        loose && !self.draft.world.loads[place.load as usize].pins.contains_key(&place.unit)
    }

    /// Whether every slot may move that is not pinned.
    pub(super) fn is_free(&self) -> bool {
        self.loose.is_none()
    }

    /// Φ of the draft as it is.
    fn measure(&self) -> u64 {
        let world = self.draft.world;
        let totals = self
            .nodes
            .iter()
            .map(|node| 2 * u64::from(self.shares.total(*node).distance(self.draft.total[*node as usize])));
        let counts = self.loads.iter().flat_map(|load| {
            self.nodes.iter().map(|node| {
                let band = self.shares.of_load(world, *load, *node);
                u64::from(band.distance(self.draft.count(*load, *node)))
            })
        });
        totals.sum::<u64>() + counts.sum::<u64>()
    }

    /// What one node has part in Φ, of other workloads nothing.
    fn part(&self, load: u32, node: u32) -> u64 {
        let total = self.shares.total(node).distance(self.draft.total[node as usize]);
        let band = self.shares.of_load(self.draft.world, load, node);
        2 * u64::from(total) + u64::from(band.distance(self.draft.count(load, node)))
    }

    /// Fills the tables.
    fn tabulate(&mut self) {
        let width = self.draft.world.nodes.len();
        self.loss = vec![NEVER; self.loads.len() * width];
        self.gain = vec![NEVER; self.loads.len() * width];
        self.total_loss = vec![NEVER; width];
        self.total_gain = vec![NEVER; width];
        self.givers = vec![[0; SIDES]; self.loads.len()];
        self.receivers = vec![Default::default(); self.loads.len()];
        self.entered = vec![Default::default(); self.loads.len()];
        self.pools.clear();
        self.shelves.clear();
        self.fronts.clear();
        for node in self.nodes.clone() {
            (self.total_loss[node as usize], self.total_gain[node as usize]) = self.total_changes(node);
            for index in 0..self.loads.len() {
                self.judge(index, node);
                self.register(index, node, true);
            }
        }
    }

    pub(super) fn loss(&self, index: usize, node: u32) -> i8 {
        self.loss[index * self.total_loss.len() + node as usize]
    }

    pub(super) fn gain(&self, index: usize, node: u32) -> i8 {
        self.gain[index * self.total_loss.len() + node as usize]
    }

    /// What Φ changes by if a node gives one of a workload, the receiver's side left out.
    fn giving(&self, index: usize, node: u32) -> Option<i8> {
        let (loss, total) = (self.loss(index, node), self.total_loss[node as usize]);
        (loss != NEVER && total != NEVER).then(|| loss + total)
    }

    /// What Φ changes by if a node takes one of a workload, the giver's side left out.
    pub(super) fn taking(&self, index: usize, node: u32) -> Option<i8> {
        let (gain, total) = (self.gain(index, node), self.total_gain[node as usize]);
        (gain != NEVER && total != NEVER).then(|| gain + total)
    }

    fn total_changes(&self, node: u32) -> (i8, i8) {
        let (band, total) = (self.shares.total(node), self.draft.total[node as usize]);
        let room = total < self.draft.world.nodes[node as usize].capacity;
        (doubled(band.on_loss(total)), if room { doubled(band.on_gain(total)) } else { NEVER })
    }

    /// Brings the tables of one workload and node up to date with its count.
    fn judge(&mut self, index: usize, node: u32) {
        let load = self.loads[index];
        let count = self.draft.count(load, node);
        let band = self.shares.of_load(self.draft.world, load, node);
        let at = index * self.total_loss.len() + node as usize;
        let movable = self.loose.as_ref().map_or(count, |loose| loose.counts[at]);
        self.loss[at] = if movable > 0 { band.on_loss(count) as i8 } else { NEVER };
        self.gain[at] = if self.draft.has_room_of(load, node) { band.on_gain(count) as i8 } else { NEVER };
    }

    /// Counts a node among the givers and receivers of a workload, or no more.
    fn register(&mut self, index: usize, node: u32, present: bool) {
        if let Some(giving) = self.giving(index, node) {
            let givers = &mut self.givers[index][(giving + 3) as usize];
            *givers = if present { *givers + 1 } else { *givers - 1 };
        }
        if let Some(taking) = self.taking(index, node) {
            let receivers = &mut self.receivers[index][(taking + 3) as usize];
            if present {
                receivers.push(node);
                self.entered[index][(taking + 3) as usize].push(node);
            } else if let Some(at) = receivers.iter().position(|receiver| *receiver == node) {
                receivers.swap_remove(at);
            }
        }
    }

    /// The move that lowers Φ most; among those that do so alike, the best match of slot and receiver.
    fn best_move(&mut self) -> Option<(Place, u32)> {
        for change in -6..0i8 {
            let mut best: Option<(Bid, Place, u32)> = None;
            for index in 0..self.loads.len() {
                for giving in -3..=3i8 {
                    let taking = change - giving;
                    if !(-3..=3).contains(&taking) || self.givers[index][(giving + 3) as usize] == 0 {
                        continue;
                    }
                    if self.receivers[index][(taking + 3) as usize].is_empty() {
                        continue;
                    }
                    let front = self.front(index, giving, taking);
                    best = match (best, front) {
                        (Some(best), Some(front)) => Some(if front.0 > best.0 { front } else { best }),
                        (best, front) => best.or(front),
                    };
                }
            }
            if let Some((_, place, node)) = best {
                return Some((place, node));
            }
        }
        None
    }

    /// Whether a unit can be given to a node by one that gives at this change.
    fn can_give(&self, index: usize, giving: i8, unit: u32, to: u32) -> bool {
        let load = self.loads[index];
        let place = Place { load, unit };
        let from = self.draft.owner(place);
        from != to && from != NONE && self.giving(index, from) == Some(giving) && self.may_move(place, to)
    }

    /// Whether the rules let a slot move to a node.
    pub(super) fn may_move(&self, place: Place, to: u32) -> bool {
        self.is_movable(place) && self.draft.world.may_take(place, to)
    }

    /// The best of all moves of a workload that change Φ so on the giver's and on the receiver's side.
    fn front(&mut self, index: usize, giving: i8, taking: i8) -> Option<(Bid, Place, u32)> {
        let side = (taking + 3) as usize;
        self.fill_pool(index, giving);
        let known = self.fronts.remove(&(index, giving, taking)).filter(|front| {
            front.best.is_none_or(|(_, place, node)| {
                self.taking(index, node) == Some(taking) && self.can_give(index, giving, place.unit, node)
            })
        });
        // What has gone since then was not the best, so only what has come matters.
        let mut best = known.as_ref().and_then(|front| front.best);
        let receivers = match &known {
            Some(front) => self.entered[index][side][front.seen.1..].to_vec(),
            None => self.receivers[index][side].clone(),
        };
        for node in receivers {
            if self.taking(index, node) == Some(taking)
                && let Some(unit) = self.best_unit(index, giving, node)
            {
                self.raise(&mut best, index, unit, node);
            }
        }
        if let Some(front) = known {
            for unit in &self.pools[&(index, giving)][front.seen.0..] {
                let slot = self.draft.world.loads[self.loads[index] as usize].hashes[*unit as usize];
                for node in &self.receivers[index][side] {
                    let entry = &self.draft.world.nodes[*node as usize];
                    let rating = Rating::of(slot, entry.hash, entry.weight);
                    let near = best.is_none_or(|(best, ..)| rating >= best.rating());
                    if near && self.can_give(index, giving, *unit, *node) {
                        self.raise(&mut best, index, *unit, *node);
                    }
                }
            }
        }
        let seen = (self.pools[&(index, giving)].len(), self.entered[index][side].len());
        self.fronts.insert((index, giving, taking), Front { best, seen });
        best
    }

    fn raise(&self, best: &mut Option<(Bid, Place, u32)>, index: usize, unit: u32, node: u32) {
        let place = Place { load: self.loads[index], unit };
        let bid = Bid::new(self.draft.world, place, node);
        if best.is_none_or(|(best, ..)| bid > best) {
            *best = Some((bid, place, node));
        }
    }

    /// Collects the units that can be given at this change, if that has not been done.
    fn fill_pool(&mut self, index: usize, giving: i8) {
        if self.pools.contains_key(&(index, giving)) {
            return;
        }
        let load = self.loads[index];
        let owners = self.draft.owners[load as usize].iter().enumerate();
        let units = owners.filter(|(_, owner)| **owner != NONE && self.giving(index, **owner) == Some(giving));
        let units = units.map(|(unit, _)| unit as u32);
        let units = units.filter(|unit| self.is_free() || self.is_movable(Place { load, unit: *unit }));
        let units = units.collect();
        self.pools.insert((index, giving), units);
    }

    /// The best match for a node among the units of a pool.
    fn best_unit(&mut self, index: usize, giving: i8, to: u32) -> Option<u32> {
        let shelf = self.shelves.remove(&(index, giving, to));
        let mut shelf = shelf.unwrap_or(Shelf { matches: Vec::new(), floor: u128::MAX, seen: usize::MAX });
        let world = self.draft.world;
        let units = &self.pools[&(index, giving)];
        for unit in units.get(shelf.seen..).unwrap_or_default() {
            let hash = world.loads[self.loads[index] as usize].hashes[*unit as usize];
            let found = match_of(pair_hash(hash, world.nodes[to as usize].hash), *unit);
            if found >= shelf.floor
                && let Err(at) = shelf.matches.binary_search(&found)
            {
                shelf.matches.insert(at, found);
            }
        }
        if shelf.matches.len() > 4 * SHELF_OF_FEW {
            shelf.matches.drain(..shelf.matches.len() - SHELF);
            shelf.floor = shelf.matches[0];
        }
        shelf.seen = units.len();
        let found = loop {
            match shelf.matches.last() {
                Some(found) if self.can_give(index, giving, unit_of(*found), to) => break Some(unit_of(*found)),
                Some(_) => drop(shelf.matches.pop()),
                None if shelf.floor == 0 => break None,
                None => self.stock(&mut shelf, index, giving, to),
            }
        };
        self.shelves.insert((index, giving, to), shelf);
        found
    }

    /// Puts the next best units of a pool on an empty shelf.
    fn stock(&self, shelf: &mut Shelf, index: usize, giving: i8, to: u32) {
        let world = self.draft.world;
        let node = world.nodes[to as usize].hash;
        let hashes = &world.loads[self.loads[index] as usize].hashes;
        let below = std::mem::replace(&mut shelf.floor, 0);
        let size = if self.shelves.len() < 16 { SHELF_OF_FEW } else { SHELF };
        let mut least = 0;
        for unit in &self.pools[&(index, giving)] {
            let h = pair_hash(hashes[*unit as usize], node);
            if h < least {
                continue;
            }
            let found = match_of(h, *unit);
            if found < below && self.can_give(index, giving, *unit, to) {
                shelf.matches.push(found);
                if shelf.matches.len() == 2 * size {
                    shelf.matches.select_nth_unstable(size);
                    shelf.matches.drain(..size);
                    shelf.floor = shelf.matches[0];
                    least = (shelf.floor >> 32) as u64;
                }
            }
        }
        shelf.matches.sort_unstable();
        shelf.matches.dedup();
    }

    /// Moves a slot to a node and keeps all tables.
    pub(super) fn shift(&mut self, place: Place, to: u32) {
        let from = self.draft.owner(place);
        let Some(index) = self.loads.iter().position(|load| *load == place.load) else { return };
        self.phi -= self.part(place.load, from) + self.part(place.load, to);
        self.draft.take(place);
        self.draft.put(place, to);
        if let Some(loose) = &mut self.loose {
            let width = self.total_loss.len();
            loose.counts[index * width + from as usize] -= 1;
            loose.counts[index * width + to as usize] += 1;
        }
        self.phi += self.part(place.load, from) + self.part(place.load, to);
        for node in [from, to] {
            let totals = self.total_changes(node);
            let known = (self.total_loss[node as usize], self.total_gain[node as usize]);
            let all = if totals == known { index..index + 1 } else { 0..self.loads.len() };
            let before: Vec<_> = all.clone().map(|index| self.giving(index, node)).collect();
            for index in all.clone() {
                self.register(index, node, false);
            }
            (self.total_loss[node as usize], self.total_gain[node as usize]) = totals;
            self.judge(index, node);
            for (index, before) in all.zip(before) {
                self.register(index, node, true);
                let giving = self.giving(index, node);
                if let Some(giving) = giving.filter(|_| giving != before) {
                    self.add_to_pool(index, giving, node);
                }
            }
        }
        if let Some(giving) = self.giving(index, to)
            && let Some(pool) = self.pools.get_mut(&(index, giving))
        {
            pool.push(place.unit);
        }
    }

    /// Adds what a node has of a workload to a pool that exists.
    fn add_to_pool(&mut self, index: usize, giving: i8, node: u32) {
        let Some(pool) = self.pools.get_mut(&(index, giving)) else { return };
        let owners = self.draft.owners[self.loads[index] as usize].iter().enumerate();
        pool.extend(owners.filter(|(_, owner)| **owner == node).map(|(unit, _)| unit as u32));
    }
}

fn doubled(change: i32) -> i8 {
    2 * change as i8
}
