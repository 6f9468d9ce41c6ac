//! The policy `rendezvous`: each slot belongs to the node with the highest score.
//!
//! Who holds a slot matters only where its holder takes nothing new and so keeps it. With caps, slots and nodes
//! are matched best score first, as if nothing was held. Keeping counts even is the other policy's business.

use super::draft::{Draft, Owners};
use super::field::Field;
use super::world::{NONE, Place, World};

/// Decides all slots of these workloads where no cap can bind.
pub(super) fn place_all(world: &World, owners: &mut Owners, loads: &[u32]) {
    for load in loads {
        let entry = &world.loads[*load as usize];
        let field = Field::takers(world, entry);
        for unit in 0..entry.units {
            owners[*load as usize][unit as usize] = choose(world, &field, Place { load: *load, unit });
        }
    }
}

/// Decides one slot where no cap can bind.
pub(super) fn choose(world: &World, field: &Field, place: Place) -> u32 {
    let load = &world.loads[place.load as usize];
    if world.is_kept(place) {
        return load.holder(place.unit);
    }
    let best = field.best(&world.node_rank, load.hashes[place.unit as usize], |node| world.may_take(place, node));
    best.map_or(NONE, |best| best.node)
}

/// Decides all slots of these workloads within the caps.
pub(super) fn place_within_caps(draft: &mut Draft<'_>, loads: &[u32]) {
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
    draft.fill(&pinned, Draft::has_room);
    draft.fill(&free, Draft::has_room);
}
