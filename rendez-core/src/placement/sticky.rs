//! The policy `sticky`: who holds a slot keeps it, and an orphan goes to whom the priorities prefer.
//!
//! A held slot moves only because it must: its holder leaves, a pin or a rule says so, or an orphan that nobody else has
//! room for needs its place. Spread is no concern here.

use std::collections::BTreeSet;

use super::draft::Draft;
use super::rescue;
use super::settle::settle;

/// Decides all slots of these workloads.
pub(super) fn place(draft: &mut Draft<'_>, loads: &[u32]) {
    let world = draft.world;
    let mut free = settle(draft, loads);
    let pairs = loads.iter().flat_map(|load| &world.loads[*load as usize].pairs);
    let priorities: BTreeSet<u32> = pairs.filter(|pair| pair.units > 0).map(|pair| pair.priority).collect();
    for least in priorities.into_iter().rev() {
        if free.is_empty() {
            return;
        }
        free = draft.fill(&free, |draft, load, node| {
            let pair = world.loads[load as usize].pairs.get(node as usize);
            draft.has_room(load, node) && pair.is_some_and(|pair| pair.priority >= least)
        });
    }
    if !free.is_empty() {
        rescue::place(draft, loads, &free);
    }
}
