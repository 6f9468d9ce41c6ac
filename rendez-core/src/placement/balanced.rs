//! The policy `balanced`: even counts, and as few moves as that takes.

use super::draft::Draft;
use super::world::{NONE, Place};

/// Decides all slots of these workloads, given that those of others are counted.
pub(super) fn place(draft: &mut Draft<'_>, loads: &[u32]) {
    let world = draft.world;
    let mut free = Vec::new();
    for load in loads {
        let entry = &world.loads[*load as usize];
        for unit in 0..entry.units {
            let place = Place { load: *load, unit };
            let holder = entry.holder(unit);
            draft.owners[*load as usize][unit as usize] = NONE;
            if holder != NONE && world.may_hold(place, holder) && draft.has_room(*load, holder) {
                draft.put(place, holder);
            } else {
                free.push(place);
            }
        }
    }
    draft.fill(&free, Draft::has_room);
}
