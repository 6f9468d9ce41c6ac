//! Which held slots stay where they are, within the rules and caps: what each policy begins with.
//!
//! What becomes of the slots without a place is the policies' to say.

use super::draft::{Bid, Draft};
use super::world::{NONE, Place};

/// Leaves held slots where they are if they may stay, and sees to the pins. Returns the slots without a place
/// that may go anywhere, in order.
pub(super) fn settle(draft: &mut Draft<'_>, loads: &[u32]) -> Vec<Place> {
    let world = draft.world;
    let (mut free, mut pinned) = (Vec::new(), Vec::new());
    for load in loads {
        let entry = &world.loads[*load as usize];
        draft.owners[*load as usize].fill(NONE);
        for unit in entry.pins.range(..entry.units).map(|(unit, _)| *unit) {
            let place = Place { load: *load, unit };
            let holder = entry.holder(unit);
            if holder != NONE && world.may_hold(place, holder) {
                draft.put(place, holder);
            } else {
                pinned.push(place);
            }
        }
    }
    draft.fill(&pinned, Draft::has_room);
    for load in loads {
        let entry = &world.loads[*load as usize];
        for (unit, holder) in (0..entry.units).zip(&entry.holders) {
            if !entry.pins.is_empty() && entry.pins.contains_key(&unit) {
                continue;
            }
            let place = Place { load: *load, unit };
            if *holder != NONE && entry.pairs.get(*holder as usize).is_some_and(|pair| unit < pair.units) {
                draft.put(place, *holder);
            } else {
                free.push(place);
            }
        }
    }
    if shed(draft, loads, &mut free) {
        free.sort_unstable_by_key(|place| (world.load_rank[place.load as usize], place.unit));
    }
    free
}

/// Takes from nodes what they have beyond their caps: unpinned slots before pinned ones, the worst matches first.
fn shed(draft: &mut Draft<'_>, loads: &[u32], free: &mut Vec<Place>) -> bool {
    let world = draft.world;
    let mut any = false;
    let nodes: Vec<_> = world.live().collect();
    let mut shed_from = |draft: &mut Draft<'_>, loads: &[u32], node: u32, excess: u32| {
        let mut held = Vec::new();
        for load in loads {
            let owners = draft.owners[*load as usize].iter().enumerate().filter(|(_, owner)| **owner == node);
            for unit in owners.map(|(unit, _)| unit as u32) {
                let place = Place { load: *load, unit };
                let pinned = world.loads[*load as usize].pins.contains_key(&unit);
                held.push((pinned, Bid::new(world, place, node), place));
            }
        }
        held.sort_unstable_by_key(|(pinned, bid, _)| (*pinned, *bid));
        for (pinned, _, place) in held.into_iter().take(excess as usize) {
            draft.take(place);
            any = true;
            if !pinned {
                free.push(place);
            }
        }
    };
    for load in loads {
        for node in &nodes {
            let excess =
                draft.count(*load, *node).saturating_sub(world.loads[*load as usize].pairs[*node as usize].cap);
            if excess > 0 {
                shed_from(draft, std::slice::from_ref(load), *node, excess);
            }
        }
    }
    for node in &nodes {
        let excess = draft.total[*node as usize].saturating_sub(world.nodes[*node as usize].capacity);
        if excess > 0 {
            shed_from(draft, loads, *node, excess);
        }
    }
    any
}

/// Leaves only those slots where they are whose holder takes nothing new. Returns the others, in order: those that are pinned, and
/// those that may go anywhere.
pub(super) fn settle_idle(draft: &mut Draft<'_>, loads: &[u32]) -> (Vec<Place>, Vec<Place>) {
    let world = draft.world;
    let (mut pinned, mut free) = (Vec::new(), Vec::new());
    for load in loads {
        let entry = &world.loads[*load as usize];
        for unit in 0..entry.units {
            let place = Place { load: *load, unit };
            draft.owners[*load as usize][unit as usize] = NONE;
            if world.is_kept(place) && draft.has_room(*load, entry.holder(unit)) {
                draft.put(place, entry.holder(unit));
            } else if entry.pins.contains_key(&unit) {
                pinned.push(place);
            } else {
                free.push(place);
            }
        }
    }
    (pinned, free)
}
