//! The policy `rendezvous`: each slot belongs to the node with the highest score.
//!
//! Who holds a slot matters only where its holder takes nothing new and so keeps it. With caps, slots and nodes
//! are matched best score first, as if nothing was held, and make room for those that then find every node full.
//! Keeping counts even is the other policy's business.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use super::draft::{Draft, Owners};
use super::field::{Field, least, most};
use super::rescue;
use super::score::{Rating, pair_hash};
use super::settle::settle_idle;
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

/// Decides anew what may have changed with these nodes, where no cap can bind: slots that are or were theirs in
/// some way, and those for which one of them is now the best.
pub(super) fn place_changed(world: &World, owners: &mut Owners, loads: &[u32], nodes: &BTreeSet<u32>) {
    let mut changed = vec![false; world.nodes.len()];
    for node in nodes {
        changed[*node as usize] = true;
    }
    let hashes: Vec<_> = world.nodes.iter().map(|node| node.hash).collect();
    let inverse: Vec<_> = world.nodes.iter().map(|node| 1.0 / f64::from(node.weight)).collect();
    for load in loads {
        let entry = &world.loads[*load as usize];
        let field = Field::takers(world, entry);
        let takers = nodes.iter().copied().filter(|node| world.nodes[*node as usize].accepts);
        let takers = takers.filter(|node| entry.pairs[*node as usize].units > 0);
        let takers: Vec<_> = takers.map(|node| (hashes[node as usize], inverse[node as usize], node)).collect();
        let equal = field.is_equal();
        let slots = owners[*load as usize].iter_mut().zip(&entry.holders).zip(&entry.hashes);
        for (unit, ((owner, holder), slot)) in slots.enumerate() {
            let place = Place { load: *load, unit: unit as u32 };
            let known = *owner as usize;
            if *owner == NONE || changed[known] || (*holder != NONE && changed[*holder as usize]) {
                *owner = choose(world, &field, place);
                continue;
            }
            if takers.is_empty() {
                continue;
            }
            let h = pair_hash(*slot, hashes[known]);
            let near = if equal {
                takers.iter().any(|(hash, ..)| pair_hash(*slot, *hash) >= h)
            } else {
                let limit = most(h) * inverse[known];
                takers.iter().any(|(hash, inverse, _)| least(pair_hash(*slot, *hash)) * inverse <= limit)
            };
            if !near {
                continue;
            }
            *owner = match takers.as_slice() {
                // All others compare as before.
                [(hash, _, node)] if world.may_take(place, *node) && !world.is_kept(place) => {
                    let theirs = Rating::of(*slot, *hash, world.nodes[*node as usize].weight);
                    match theirs.cmp(&Rating { h, weight: world.nodes[known].weight }) {
                        Ordering::Greater => *node,
                        Ordering::Less => *owner,
                        Ordering::Equal => choose(world, &field, place),
                    }
                }
                _ => choose(world, &field, place),
            };
        }
    }
}

/// Decides these slots anew where no cap can bind, if they are of one of these workloads.
pub(super) fn place_some(world: &World, owners: &mut Owners, loads: &[u32], mut places: Vec<Place>) {
    places.sort_unstable();
    places.dedup();
    for places in places.chunk_by(|a, b| a.load == b.load) {
        let load = places[0].load;
        if !loads.contains(&load) {
            continue;
        }
        let field = Field::takers(world, &world.loads[load as usize]);
        for place in places.iter().filter(|place| place.unit < world.loads[load as usize].units) {
            owners[load as usize][place.unit as usize] = choose(world, &field, *place);
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
    let (pinned, free) = settle_idle(draft, loads);
    draft.fill(&pinned, Draft::has_room);
    let left = draft.fill(&free, Draft::has_room);
    if !left.is_empty() {
        rescue::place(draft, loads, &left);
    }
}
