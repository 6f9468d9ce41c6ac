//! Places for slots that find every node they may go to full: others make room for them.
//!
//! A search over whole chains, shortest first, so no slot stays without a place while any arrangement of the
//! movable slots of the same policy within the rules and caps has one for it. Even counts are not looked at here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::draft::Draft;
use super::world::{Place, World};

/// Places as many of these slots as can be.
pub(super) fn place(draft: &mut Draft<'_>, loads: &[u32], stranded: &[Place]) {
    let mut search = Search::new(draft, loads);
    for place in stranded {
        search.rescue(draft, *place);
    }
}

/// What a search has been through. What a search that failed went through leads nowhere for any later one, so
/// its marks stay.
#[derive(Debug, Default, Clone)]
struct Marks {
    nodes: BTreeSet<u32>,
    pairs: BTreeSet<(u32, u32)>,
    /// By workload: the nodes that are still worth a look for it.
    open: BTreeMap<u32, Vec<u32>>,
}

#[derive(Debug)]
struct Search {
    /// By node: the slots on it that may move, in order.
    movable: Vec<BTreeSet<(u32, u32)>>,
    /// Nodes that take something, in order.
    takers: Vec<u32>,
    dead: Marks,
}

impl Search {
    fn new(draft: &Draft<'_>, loads: &[u32]) -> Self {
        let world = draft.world;
        let takers: Vec<_> = world.live().filter(|node| world.nodes[*node as usize].accepts).collect();
        let mut movable = vec![BTreeSet::new(); world.nodes.len()];
        for load in loads {
            for (unit, owner) in draft.owners[*load as usize].iter().enumerate() {
                let pinned = world.loads[*load as usize].pins.contains_key(&(unit as u32));
                if !pinned && world.nodes.get(*owner as usize).is_some_and(|node| node.accepts) {
                    movable[*owner as usize].insert((world.load_rank[*load as usize], unit as u32));
                }
            }
        }
        Self { movable, takers, dead: Marks::default() }
    }

    /// Finds the shortest chain of moves that ends at a node with room, and makes it.
    fn rescue(&mut self, draft: &mut Draft<'_>, stranded: Place) {
        let world = draft.world;
        let mut marks = self.dead.clone();
        // Each slot that wants a place, with the one whose way it makes.
        let mut chain = vec![(stranded, usize::MAX)];
        let mut queue = VecDeque::from([0]);
        while let Some(at) = queue.pop_front() {
            let place = chain[at].0;
            let mut open = marks.open.remove(&place.load).unwrap_or_else(|| self.takers.clone());
            open.retain(|node| !marks.nodes.contains(node) && !marks.pairs.contains(&(place.load, *node)));
            for node in &open {
                if !world.may_take(place, *node) {
                    continue;
                }
                if draft.has_room(place.load, *node) {
                    return self.make(draft, &chain, at, *node);
                }
                let only_this = !draft.has_room_of(place.load, *node);
                if only_this {
                    marks.pairs.insert((place.load, *node));
                } else {
                    marks.nodes.insert(*node);
                }
                let rank = world.load_rank[place.load as usize];
                let range = if only_this { (rank, 0)..(rank + 1, 0) } else { (0, 0)..(u32::MAX, 0) };
                for (load_rank, unit) in self.movable[*node as usize].range(range) {
                    queue.push_back(chain.len());
                    chain.push((self::place_of(world, *load_rank, *unit), at));
                }
            }
            marks.open.insert(place.load, open);
        }
        self.dead = marks;
    }

    /// Moves the slots of a chain, from its end with room to its start.
    fn make(&mut self, draft: &mut Draft<'_>, chain: &[(Place, usize)], mut at: usize, mut to: u32) {
        let world = draft.world;
        loop {
            let (place, parent) = chain[at];
            let key = (world.load_rank[place.load as usize], place.unit);
            let from = draft.owner(place);
            if parent != usize::MAX {
                draft.take(place);
                self.movable[from as usize].remove(&key);
            }
            draft.put(place, to);
            self.movable[to as usize].insert(key);
            if parent == usize::MAX {
                return;
            }
            (at, to) = (parent, from);
        }
    }
}

fn place_of(world: &World, load_rank: u32, unit: u32) -> Place {
    Place { load: world.loads_by_rank[load_rank as usize], unit }
}
