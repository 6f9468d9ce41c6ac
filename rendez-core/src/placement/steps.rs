//! What is to be done about a plan now: who takes orphans, and which held slots move, where to and why.
//!
//! A plan may count on moves that make room, and moves take their time or are held back. What cannot wait does not: if
//! the node that should own an orphan, or a slot that must leave its holder, is full with what it holds, the best that
//! has room takes it. What can wait does: a voluntary move to a full node is told to have no room.

use std::collections::BTreeMap;

use super::draft::{Draft, Owners};
use super::spec::{Cause, Policy};
use super::world::{NONE, Place, World};

/// A held slot that should be elsewhere.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub(super) place: Place,
    pub(super) to: u32,
    pub(super) cause: Cause,
    /// Whether the receiver has room for it now, with all that comes before it.
    pub(super) has_room: bool,
}

/// Where a plan differs from what is, each list in the order of slots.
#[derive(Debug, Default)]
pub(super) struct Steps {
    /// Orphans, with the node that should take each.
    pub(super) orphans: Vec<(Place, u32)>,
    pub(super) moves: Vec<Step>,
    /// Slots that nobody may take, held or not.
    pub(super) unplaced: Vec<Place>,
}

impl Steps {
    pub(super) fn of(world: &World, owners: &Owners) -> Self {
        let mut steps = Self::default();
        for load in &world.loads_by_rank {
            let entry = &world.loads[*load as usize];
            for (unit, (owner, holder)) in owners[*load as usize].iter().zip(&entry.holders).enumerate() {
                let (owner, holder) = (*owner, *holder);
                let place = Place { load: *load, unit: unit as u32 };
                if owner == holder && holder != NONE {
                    continue;
                }
                let held = holder != NONE && world.is_live(holder);
                if owner == NONE {
                    steps.unplaced.push(place);
                } else if held {
                    let cause = cause(world, place, holder);
                    steps.moves.push(Step { place, to: owner, cause, has_room: true });
                } else {
                    steps.orphans.push((place, owner));
                }
            }
            if entry.units == 0 {
                let held = entry.holders.iter().enumerate().filter(|(_, holder)| world.is_live(**holder));
                steps.unplaced.extend(held.map(|(unit, _)| Place { load: *load, unit: unit as u32 }));
            }
        }
        let idle = steps.orphans.is_empty() && steps.moves.is_empty();
        if !idle && world.order.iter().any(|load| world.is_capped(*load)) {
            steps.mind_caps(world);
        }
        steps
    }

    fn mind_caps(&mut self, world: &World) {
        let live = |holder| if world.is_live(holder) { holder } else { NONE };
        let of_load = |load: &super::world::Load| (0..load.units).map(|unit| live(load.holder(unit))).collect();
        let mut holders: Owners = world.loads.iter().map(of_load).collect();
        let mut draft = Draft::new(world, &mut holders);
        draft.count_all(&world.order);
        self.name_caps(&draft);
        self.name_room(world);

        place_now(&mut draft, self.orphans.iter().copied());
        // What must leave its holder counts there, too, until it has left.
        let forced = self.moves.iter().filter(|step| !step.cause.is_voluntary());
        place_now(&mut draft, forced.map(|step| (step.place, step.to)));
        let mut stuck = BTreeMap::new();
        for (place, taker) in &mut self.orphans {
            match draft.owner(*place) {
                NONE => *stuck.entry(*taker).or_insert(0) += 1,
                found => *taker = found,
            }
        }
        for step in &mut self.moves {
            let (place, holder) = (step.place, world.loads[step.place.load as usize].holder(step.place.unit));
            if step.cause.is_voluntary() {
                step.has_room = draft.has_room(place.load, step.to);
                if step.has_room {
                    draft.put(place, step.to);
                    let waits: Option<&mut u32> = stuck.get_mut(&holder).filter(|waits| **waits > 0);
                    if let Some(waits) = waits {
                        *waits -= 1;
                        step.cause = Cause::MakesRoom;
                    }
                }
            } else if draft.owner(place) != holder {
                step.to = draft.owner(place);
            } else {
                step.has_room = false;
            }
        }
    }

    /// Marks as many moves as a node is over its caps. What it holds beyond a cap is told apart from what the policy
    /// would have elsewhere by number only: which of them count as which makes no difference.
    fn name_caps(&mut self, draft: &Draft<'_>) {
        let world = draft.world;
        let holder = |step: &Step| world.loads[step.place.load as usize].holder(step.place.unit);
        let mut of_node: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (at, step) in self.moves.iter().enumerate() {
            of_node.entry(holder(step)).or_default().push(at);
        }
        for (node, steps) in of_node {
            for load in &world.order {
                let cap = world.loads[*load as usize].pairs.get(node as usize).map_or(0, |pair| pair.cap);
                let excess = draft.count(*load, node).saturating_sub(cap);
                let of_load: Vec<_> = steps.iter().copied().filter(|at| self.moves[*at].place.load == *load).collect();
                self.shed(&of_load, excess);
            }
            let excess = draft.total[node as usize].saturating_sub(world.nodes[node as usize].capacity);
            self.shed(&steps, excess);
        }
    }

    /// Where the policy moves nothing by itself, what is left without a cause makes room: for an orphan, or for a pinned slot.
    fn name_room(&mut self, world: &World) {
        let stays = |place: Place| world.policy_of(&world.loads[place.load as usize]) == Policy::Sticky;
        for step in self.moves.iter_mut().filter(|step| step.cause.is_voluntary() && stays(step.place)) {
            step.cause = Cause::MakesRoom;
        }
    }

    /// Marks up to `excess` of these moves as due to a cap; those that leave anyway count.
    fn shed(&mut self, steps: &[usize], excess: u32) {
        let leaving = steps.iter().filter(|at| !self.moves[**at].cause.is_voluntary()).count();
        let missing = (excess as usize).saturating_sub(leaving);
        let voluntary: Vec<_> = steps.iter().copied().filter(|at| self.moves[*at].cause.is_voluntary()).collect();
        for at in voluntary.into_iter().take(missing) {
            self.moves[at].cause = Cause::Cap;
        }
    }
}

/// Gives slots to the nodes that should have them, as long as those have room; then the rest to the best that have.
fn place_now(draft: &mut Draft<'_>, wanted: impl Iterator<Item = (Place, u32)>) {
    let mut waiting = Vec::new();
    for (place, node) in wanted {
        if draft.has_room(place.load, node) {
            draft.put(place, node);
        } else {
            waiting.push(place);
        }
    }
    if !waiting.is_empty() {
        draft.fill(&waiting, Draft::has_room);
    }
}

/// Why a slot should leave its holder, caps aside.
fn cause(world: &World, place: Place, holder: u32) -> Cause {
    let pin = world.loads[place.load as usize].pins.get(&place.unit);
    if pin.is_some_and(|pin| *pin != holder) {
        Cause::Pin
    } else if world.nodes[holder as usize].spec.as_ref().is_some_and(|spec| spec.leaving) {
        Cause::Leaving
    } else if !world.may_hold(place, holder) {
        Cause::Rule
    } else {
        Cause::Policy
    }
}
