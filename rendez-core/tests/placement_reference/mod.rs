//! The policies once more, as plainly as can be: no tables, no indices, every pair looked at every time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rendez_core::placement::circle::{unit_position, virtual_node_position};
use rendez_core::placement::{Band, Bands, Planner, Unplaced};
use rendez_core::{NodeId, Slot, WorkloadName};

use crate::placement_support::{PRIORITIES, Plan, World};

pub(crate) type Placed = BTreeMap<Slot, NodeId>;

fn total(placed: &Placed, id: &NodeId) -> u32 {
    placed.values().filter(|owner| *owner == id).count() as u32
}

fn count(placed: &Placed, name: &WorkloadName, id: &NodeId) -> u32 {
    placed.iter().filter(|(slot, owner)| slot.workload == *name && *owner == id).count() as u32
}

pub(crate) fn has_room(world: &World, placed: &Placed, name: &WorkloadName, id: &NodeId) -> bool {
    total(placed, id) < world.capacity(id) && count(placed, name, id) < world.cap(name, id)
}

/// Gives free slots to open nodes, the best pair of all first. Returns what is left.
fn fill(
    world: &World,
    placed: &mut Placed,
    mut free: BTreeSet<Slot>,
    open: impl Fn(&Placed, &WorkloadName, &NodeId) -> bool,
) -> BTreeSet<Slot> {
    loop {
        let mut best: Option<(&Slot, &NodeId)> = None;
        for slot in &free {
            for id in world.nodes.keys() {
                let fits = world.may_take(slot, id)
                    && has_room(world, placed, &slot.workload, id)
                    && open(placed, &slot.workload, id);
                if fits && best.is_none_or(|best| world.is_better((slot, id), best)) {
                    best = Some((slot, id));
                }
            }
        }
        let Some((slot, id)) = best else { return free };
        let slot = slot.clone();
        placed.insert(slot.clone(), id.clone());
        free.remove(&slot);
    }
}

fn plan(world: &World, placed: &Placed) -> Plan {
    let owner = |slot: &Slot| placed.get(slot).or_else(|| world.held_by_live(slot)).cloned();
    world.slots().into_iter().map(|slot| (slot.clone(), owner(&slot))).collect()
}

/// The policy `rendezvous`; nothing where it takes a rescue, which is not described here.
pub(crate) fn rendezvous(world: &World) -> Option<Plan> {
    let mut placed = Placed::new();
    let (mut pinned, mut free) = (BTreeSet::new(), BTreeSet::new());
    for slot in world.slots() {
        if world.is_kept(&slot) && has_room(world, &placed, &slot.workload, &world.holders[&slot]) {
            placed.insert(slot.clone(), world.holders[&slot].clone());
        } else if world.pins.contains_key(&slot) {
            pinned.insert(slot);
        } else {
            free.insert(slot);
        }
    }
    fill(world, &mut placed, pinned, |_, _, _| true);
    let left = fill(world, &mut placed, free, |_, _, _| true);
    left.is_empty().then(|| plan(world, &placed))
}

/// The policy `ring`; nothing where it takes a rescue, which is not described here.
pub(crate) fn ring(world: &World, virtual_nodes: u32) -> Option<Plan> {
    let distance = |slot: &Slot, id: &NodeId| {
        let position = unit_position(slot.workload.as_str(), slot.unit, world.workloads[&slot.workload].units);
        let stands = (0..virtual_nodes * world.nodes[id].weight).map(|at| virtual_node_position(id.as_str(), at));
        stands.map(|stands| stands.wrapping_sub(position)).min()
    };
    let mut placed = Placed::new();
    let mut left = BTreeSet::new();
    for slot in world.slots() {
        if world.is_kept(&slot) && has_room(world, &placed, &slot.workload, &world.holders[&slot]) {
            placed.insert(slot.clone(), world.holders[&slot].clone());
        } else {
            left.insert(slot);
        }
    }
    for pinned in [true, false] {
        loop {
            let free = left.iter().filter(|slot| world.pins.contains_key(*slot) == pinned);
            let pairs = free.flat_map(|slot| world.nodes.keys().map(move |id| (slot, id)));
            let fit =
                pairs.filter(|(slot, id)| world.may_take(slot, id) && has_room(world, &placed, &slot.workload, id));
            let shortest = fit.min_by_key(|(slot, id)| (distance(slot, id), *slot, *id));
            let Some((slot, id)) = shortest.map(|(slot, id)| (slot.clone(), id.clone())) else { break };
            left.remove(&slot);
            placed.insert(slot, id);
        }
    }
    left.iter().all(|slot| world.pins.contains_key(slot)).then(|| plan(world, &placed))
}

/// The bands of all pairs, as the planner has them: shares have tests of their own.
struct AllBands(BTreeMap<(NodeId, WorkloadName), Bands>);

impl AllBands {
    fn of(world: &World, planner: &mut Planner) -> Self {
        let pairs =
            world.nodes.keys().flat_map(|id| world.workloads.keys().map(move |name| (id.clone(), name.clone())));
        Self(pairs.filter_map(|(id, name)| Some(((id.clone(), name.clone()), planner.bands(&id, &name)?))).collect())
    }

    fn get(&self, id: &NodeId, name: &WorkloadName) -> Bands {
        let any = Bands { total: Band::ANY, of_workload: Band::ANY };
        self.0.get(&(id.clone(), name.clone())).copied().unwrap_or(any)
    }

    fn phi(&self, world: &World, placed: &Placed) -> u64 {
        let mut phi = 0;
        for id in world.nodes.keys() {
            let mut of_total = 0;
            for (name, _) in world.workloads.iter().filter(|(_, spec)| !spec.paused) {
                let bands = self.get(id, name);
                of_total = of_total.max(bands.total.distance(total(placed, id)));
                phi += u64::from(bands.of_workload.distance(count(placed, name, id)));
            }
            phi += 2 * u64::from(of_total);
        }
        phi
    }
}

/// What is held and may stay, within the caps, and what has no place and no pin.
fn settled(world: &World) -> (Placed, BTreeSet<Slot>) {
    let mut placed = Placed::new();
    let (mut pinned, mut free) = (BTreeSet::new(), BTreeSet::new());
    for slot in world.slots().into_iter().filter(|slot| world.pins.contains_key(slot)) {
        match world.holders.get(&slot).filter(|id| world.may_hold(&slot, id)) {
            Some(holder) => drop(placed.insert(slot, holder.clone())),
            None => drop(pinned.insert(slot)),
        }
    }
    fill(world, &mut placed, pinned, |_, _, _| true);
    for slot in world.slots().into_iter().filter(|slot| !world.pins.contains_key(slot)) {
        match world.holders.get(&slot).filter(|id| world.may_hold(&slot, id)) {
            Some(holder) => drop(placed.insert(slot, holder.clone())),
            None => drop(free.insert(slot)),
        }
    }
    let worst_of = |placed: &Placed, id: &NodeId, name: Option<&WorkloadName>| {
        let mut all: Vec<_> = placed.iter().filter(|(_, owner)| *owner == id).map(|(slot, _)| slot.clone()).collect();
        all.retain(|slot| name.is_none_or(|name| slot.workload == *name));
        all.into_iter().reduce(|worst, slot| {
            let (pinned, worst_pinned) = (world.pins.contains_key(&slot), world.pins.contains_key(&worst));
            let worse = if pinned == worst_pinned { world.is_better((&worst, id), (&slot, id)) } else { worst_pinned };
            if worse { slot } else { worst }
        })
    };
    let mut shed = |placed: &mut Placed, slot: Slot| {
        placed.remove(&slot);
        if !world.pins.contains_key(&slot) {
            free.insert(slot);
        }
    };
    for name in world.workloads.keys() {
        for id in world.nodes.keys() {
            while count(&placed, name, id) > world.cap(name, id) {
                let Some(slot) = worst_of(&placed, id, Some(name)) else { break };
                shed(&mut placed, slot);
            }
        }
    }
    for id in world.nodes.keys() {
        while total(&placed, id) > world.capacity(id) {
            let Some(slot) = worst_of(&placed, id, None) else { break };
            shed(&mut placed, slot);
        }
    }
    (placed, free)
}

/// The policy `sticky`; nothing where it takes a rescue, which is not described here.
pub(crate) fn sticky(world: &World) -> Option<Plan> {
    let (mut placed, mut free) = settled(world);
    for priority in (0..PRIORITIES).rev() {
        free = fill(world, &mut placed, free, |_, name, id| {
            world.nodes[id].runs.get(name).is_some_and(|runs| runs.priority == priority)
        });
    }
    free.is_empty().then(|| plan(world, &placed))
}

/// The policy `balanced`; nothing where it takes a rescue or a chain of moves, which are not described here.
pub(crate) fn balanced(world: &World, planner: &mut Planner) -> Option<Plan> {
    let bands = AllBands::of(world, planner);
    let (mut placed, mut free) = settled(world);
    let homeless = free.clone();
    free = fill(world, &mut placed, free, |placed, name, id| {
        let bands = bands.get(id, name);
        total(placed, id) < bands.total.high && count(placed, name, id) < bands.of_workload.high
    });
    free = fill(world, &mut placed, free, |placed, name, id| {
        count(placed, name, id) < bands.get(id, name).of_workload.high
    });
    free = fill(world, &mut placed, free, |_, _, _| true);
    if !free.is_empty() {
        return None;
    }
    // First those that have just been given a place, whose moves cost nothing; then all.
    for only in [Some(&homeless), None] {
        while let Some((slot, id)) = best_move(world, &bands, &placed, only) {
            placed.insert(slot, id);
        }
        let phi = bands.phi(world, &placed);
        for (first, to) in moves(world, &placed, only) {
            let mut one = placed.clone();
            one.insert(first, to);
            for (second, to) in moves(world, &one, only) {
                let mut two = one.clone();
                two.insert(second, to);
                if bands.phi(world, &two) < phi && within_caps(world, &two) {
                    return None;
                }
            }
        }
    }
    Some(plan(world, &placed))
}

fn within_caps(world: &World, placed: &Placed) -> bool {
    world.nodes.keys().all(|id| {
        total(placed, id) <= world.capacity(id)
            && world.workloads.keys().all(|name| count(placed, name, id) <= world.cap(name, id))
    })
}

/// All single moves that the rules permit, caps aside.
fn moves(world: &World, placed: &Placed, only: Option<&BTreeSet<Slot>>) -> Vec<(Slot, NodeId)> {
    let movable = placed.iter().filter(|(slot, owner)| !world.pins.contains_key(slot) && world.nodes[*owner].accepts);
    let movable = movable.filter(|(slot, _)| only.is_none_or(|only| only.contains(slot)));
    let pairs = movable.flat_map(|(slot, owner)| {
        let others = world.nodes.keys().filter(move |id| *id != owner && world.may_take(slot, id));
        others.map(|id| (slot.clone(), id.clone()))
    });
    pairs.collect()
}

fn best_move(
    world: &World,
    bands: &AllBands,
    placed: &Placed,
    only: Option<&BTreeSet<Slot>>,
) -> Option<(Slot, NodeId)> {
    let mut least = bands.phi(world, placed);
    let mut best: Option<(Slot, NodeId)> = None;
    for (slot, id) in moves(world, placed, only) {
        if !has_room(world, placed, &slot.workload, &id) {
            continue;
        }
        let mut after = placed.clone();
        after.insert(slot.clone(), id.clone());
        let phi = bands.phi(world, &after);
        let better = best.as_ref().is_some_and(|(known, to)| world.is_better((&slot, &id), (known, to)));
        if phi < least || (phi == least && better) {
            least = phi;
            best = Some((slot, id));
        }
    }
    best
}

/// Φ of a plan.
pub(crate) fn phi(world: &World, planner: &mut Planner, plan: &Plan) -> u64 {
    let unplaced: BTreeSet<_> = planner.unplaced().into_iter().map(|it| it.slot).collect();
    let placed = plan.iter().filter(|(slot, _)| !unplaced.contains(*slot));
    let placed = placed.filter_map(|(slot, owner)| Some((slot.clone(), owner.clone()?))).collect();
    AllBands::of(world, planner).phi(world, &placed)
}

/// The lowest Φ of all arrangements that place the most slots; nothing where there are too many to try.
pub(crate) fn best_phi(world: &World, planner: &mut Planner) -> Option<u64> {
    let slots = world.slots();
    let choices = world.nodes.len() as u64 + 1;
    if choices.checked_pow(slots.len() as u32).is_none_or(|many| many > 3000) {
        return None;
    }
    let bands = AllBands::of(world, planner);
    let mut best = (usize::MAX, u64::MAX);
    for code in 0..choices.pow(slots.len() as u32) {
        let mut placed = Placed::new();
        let mut code = code;
        let mut fits = true;
        for slot in &slots {
            if let Some(id) = world.nodes.keys().nth((code % choices) as usize) {
                fits &= world.may_take(slot, id);
                placed.insert(slot.clone(), id.clone());
            }
            code /= choices;
        }
        let missing = slots.len() - placed.len();
        if fits && missing <= best.0 && within_caps(world, &placed) {
            best = best.min((missing, bands.phi(world, &placed)));
        }
    }
    Some(best.1)
}

/// How many slots can be placed at most, given where pinned and kept ones are: a maximum flow.
pub(crate) fn most_placeable(world: &World, plan: &Plan, unplaced: &[Unplaced]) -> usize {
    let unplaced: BTreeSet<_> = unplaced.iter().map(|it| &it.slot).collect();
    let is_fixed = |slot: &Slot| world.pins.contains_key(slot) || (world.is_kept(slot) && !unplaced.contains(slot));
    let fixed = plan.iter().filter(|(slot, _)| is_fixed(slot) && !unplaced.contains(*slot));
    let fixed: Placed = fixed.filter_map(|(slot, owner)| Some((slot.clone(), owner.clone()?))).collect();
    let free: Vec<_> = world.slots().into_iter().filter(|slot| !is_fixed(slot)).collect();
    let (nodes, names): (Vec<_>, Vec<_>) = (world.nodes.keys().collect(), world.workloads.keys().collect());
    let pair = |name: usize, at: usize| 2 + free.len() + nodes.len() + name * nodes.len() + at;
    let mut room: BTreeMap<(usize, usize), u32> = BTreeMap::new();
    for (at, id) in nodes.iter().enumerate() {
        room.insert((2 + free.len() + at, 1), world.capacity(id).saturating_sub(total(&fixed, id)));
        for (index, name) in names.iter().enumerate() {
            let left = world.cap(name, id).saturating_sub(count(&fixed, name, id));
            room.insert((pair(index, at), 2 + free.len() + at), left);
        }
    }
    for (index, slot) in free.iter().enumerate() {
        room.insert((0, 2 + index), 1);
        let name = names.iter().position(|name| **name == slot.workload).unwrap();
        for (at, id) in nodes.iter().enumerate().filter(|(_, id)| world.may_take(slot, id)) {
            let _ = id;
            room.insert((2 + index, pair(name, at)), 1);
        }
    }
    let mut flow = 0;
    loop {
        let mut from = BTreeMap::from([(0, 0)]);
        let mut queue = VecDeque::from([0]);
        while let Some(at) = queue.pop_front() {
            for ((_, to), _) in room.range((at, 0)..(at + 1, 0)).filter(|(_, left)| **left > 0) {
                if !from.contains_key(to) {
                    from.insert(*to, at);
                    queue.push_back(*to);
                }
            }
        }
        if !from.contains_key(&1) {
            return fixed.len() + flow;
        }
        let mut at = 1;
        while at != 0 {
            let parent = from[&at];
            *room.entry((parent, at)).or_default() -= 1;
            *room.entry((at, parent)).or_default() += 1;
            at = parent;
        }
        flow += 1;
    }
}
