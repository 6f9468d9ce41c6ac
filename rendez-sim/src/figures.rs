//! What the protocol costs where nothing goes wrong: a rolling update, with the rules that ship and with others.

use std::collections::BTreeMap;

use rendez_core::Command;

use crate::scenario::{Scenario, Variant};
use crate::trace::{Fact, SlotNo};
use crate::world::World;

/// How long a world is left alone before and after, in seconds: longer than every stabilizer holds.
const REST_S: u64 = 200;

/// What a rolling update did to the slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rolling {
    /// Changes of owner of a slot: median and most.
    pub moves: (u64, u64),
    /// All changes of owner.
    pub moves_in_all: u64,
    /// Time without an owner of a slot, in nanoseconds: median and most.
    pub gap: (u64, u64),
    /// How long it took until nothing moved any more, in nanoseconds, the waiting between nodes counted in.
    pub took: u64,
}

/// Shuts down and starts each node in turn, so many seconds after the one before has come back, and counts what each slot goes through.
///
/// # Errors
/// If a promise is broken on the way, or a node does not end.
pub fn rolling_update(nodes: usize, slots: u32, between_s: u64, variant: Variant) -> Result<Rolling, String> {
    let scenario = Scenario { nodes, workloads: vec![slots], variant, ..Scenario::default() };
    let mut world = World::new(scenario, true);
    world.run_for(REST_S);
    let begun = world.trace().facts().len();
    let begun_at = world.now();
    for node in 0..nodes {
        let life = world.life(node);
        world.command(node, Command::Shutdown);
        for _ in 0..60 {
            if world.life(node) > life {
                break;
            }
            world.run_for(1);
        }
        if world.life(node) == life {
            return Err(format!("n{node} has not ended and come back within a minute"));
        }
        world.run_for(between_s);
    }
    world.run_for(REST_S);
    if let Some(broken) = world.broken() {
        return Err(broken.to_string());
    }
    let mut owners: BTreeMap<SlotNo, usize> = BTreeMap::new();
    let mut ended: BTreeMap<SlotNo, u64> = BTreeMap::new();
    let mut counts: BTreeMap<SlotNo, (u64, u64)> = (0..slots).map(|slot| (SlotNo(slot), (0, 0))).collect();
    let mut last = begun_at;
    for (_, fact) in &world.trace().facts()[..begun] {
        if let Fact::Starts { node, slot, .. } = fact {
            owners.insert(*slot, *node);
        }
    }
    for (at, fact) in &world.trace().facts()[begun..] {
        match fact {
            Fact::Starts { node, slot, .. } => {
                let count = counts.entry(*slot).or_default();
                if owners.insert(*slot, *node) != Some(*node) {
                    count.0 += 1;
                    last = *at;
                }
                count.1 += ended.remove(slot).map_or(0, |ended| at - ended);
            }
            Fact::Ends { slot, .. } => {
                ended.insert(*slot, *at);
            }
            _ => {}
        }
    }
    let spread = |mut values: Vec<u64>| {
        values.sort_unstable();
        (values.get(values.len() / 2).copied().unwrap_or_default(), values.last().copied().unwrap_or_default())
    };
    Ok(Rolling {
        moves: spread(counts.values().map(|(moves, _)| *moves).collect()),
        moves_in_all: counts.values().map(|(moves, _)| moves).sum(),
        gap: spread(counts.values().map(|(_, gap)| *gap).collect()),
        took: last - begun_at,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rolling_update_moves_a_slot_about_once_and_without_stabilizers_more_often() {
        let ships = rolling_update(5, 60, 2, Variant(0)).unwrap();
        let naive = rolling_update(5, 60, 2, Variant(Variant::RENDEZVOUS | Variant::AT_ONCE)).unwrap();
        assert!(ships.moves_in_all >= 60 / 5, "{ships:?}");
        assert!(ships.moves_in_all < naive.moves_in_all && ships.moves.0 <= naive.moves.0, "{ships:?} {naive:?}");
        assert!(ships.gap.1 < 1_000_000_000, "{ships:?}");
    }
}
