//! The policy `balanced`: even counts, and as few moves as that takes.
//!
//! The order of things: what is held stays where it is, within the rules and caps; pins come first among what
//! does not. Orphans go to the best nodes that have room in their bands. Where those could be placed
//! better they are, as that costs nothing; then held slots move while that makes the spread better. How shares come about and how a better move is found stand in their own files.

use super::descent::Descent;
use super::draft::Draft;
use super::rescue;
use super::settle::settle;
use super::shares::{Shares, pools};

/// Decides all slots of these workloads, given that those of others are counted. Returns the shares.
pub(super) fn place(draft: &mut Draft<'_>, loads: &[u32]) -> Shares {
    let world = draft.world;
    let homeless = settle(draft, loads);
    let shares = Shares::of(world, &pools(world, &kept(draft)));

    let mut free = draft.fill(&homeless, |draft, load, node| {
        draft.has_room(load, node)
            && draft.total[node as usize] < shares.total(node).high
            && draft.count(load, node) < shares.of_load(world, load, node).high
    });
    free = draft.fill(&free, |draft, load, node| {
        draft.has_room(load, node) && draft.count(load, node) < shares.of_load(world, load, node).high
    });
    free = draft.fill(&free, Draft::has_room);
    if !free.is_empty() {
        rescue::place(draft, loads, &free);
    }
    Descent::new(draft, &shares, loads).run(&homeless);
    shares
}

/// By workload: how many slots stay with nodes that take nothing new.
fn kept(draft: &Draft<'_>) -> Vec<u32> {
    let world = draft.world;
    let idle: Vec<_> = world.live().filter(|node| !world.nodes[*node as usize].accepts).collect();
    let mut kept = vec![0; world.loads.len()];
    for load in &world.order {
        kept[*load as usize] = idle.iter().map(|node| draft.count(*load, *node)).sum();
    }
    kept
}
