//! Who takes an orphan at once.
//!
//! A plan may count on moves that make room, and moves take their time or are held back. An orphan does not wait for them:
//! if the node that should own it is full with what it holds, the best that has room takes it.

use super::draft::{Draft, Owners};
use super::world::{NONE, Place, World};

/// Replaces the takers of orphans that have no room for them, as long as others have.
pub(super) fn choose(world: &World, orphans: &mut [(Place, u32)]) {
    if orphans.is_empty() || !world.order.iter().any(|load| world.is_capped(*load)) {
        return;
    }
    let live = |holder| if world.is_live(holder) { holder } else { NONE };
    let mut holders: Owners =
        world.loads.iter().map(|load| (0..load.units).map(|unit| live(load.holder(unit))).collect()).collect();
    let mut draft = Draft::new(world, &mut holders);
    draft.count_all(&world.order);
    let mut waiting = Vec::new();
    for (place, taker) in orphans.iter() {
        if draft.has_room(place.load, *taker) {
            draft.put(*place, *taker);
        } else {
            waiting.push(*place);
        }
    }
    if waiting.is_empty() {
        return;
    }
    draft.fill(&waiting, Draft::has_room);
    for (place, taker) in orphans {
        let found = draft.owner(*place);
        if found != NONE {
            *taker = found;
        }
    }
}
