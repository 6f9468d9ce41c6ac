//! The planner against plain definitions, on many small worlds.

mod placement_reference;
mod placement_support;

use std::collections::BTreeMap;

use placement_reference as reference;
use placement_support::{Dice, Plan, Trouble, World, node, plan_of, random_node, random_workload, workload};
use proptest::prelude::*;
use rendez_core::placement::{
    Candidate, Cause, Desired, LoadFactor, NodeSpec, Obstacle, Planner, Policy, Reason, Runs, VirtualNodes,
    WorkloadSpec,
};
use rendez_core::{NodeId, Slot};

/// The plan, after looking at everything that must hold of any plan.
fn checked(world: &World, planner: &mut Planner) -> Plan {
    let plan = plan_of(planner);
    assert_eq!(plan.keys().cloned().collect::<Vec<_>>(), world.slots());
    let unplaced: BTreeMap<_, _> = planner.unplaced().into_iter().map(|it| (it.slot, (it.holder, it.reason))).collect();
    let mut totals = BTreeMap::new();
    let mut counts = BTreeMap::new();
    for (slot, owner) in &plan {
        let holder = world.held_by_live(slot);
        match (owner, unplaced.get(slot)) {
            (Some(owner), None) => {
                assert!(world.may_take(slot, owner), "{slot} must not be on {owner}");
                *totals.entry(owner).or_insert(0) += 1;
                *counts.entry((&slot.workload, owner)).or_insert(0) += 1;
            }
            (owner, Some((stuck_at, _))) => {
                assert_eq!(owner.as_ref(), holder, "{slot} has nowhere to go");
                assert_eq!(stuck_at.as_ref(), holder);
            }
            (None, None) => panic!("{slot} has neither an owner nor a reason"),
        }
        assert_eq!(planner.desired(slot).node(), owner.as_ref());
    }
    for (id, total) in totals {
        assert!(total <= world.capacity(id), "{id} has {total}");
    }
    for ((name, id), count) in counts {
        assert!(count <= world.cap(name, id), "{id} has {count} of {name}");
    }
    let by_node = world.nodes.keys().flat_map(|id| {
        let wanted = planner.wanted_by(id);
        wanted.into_iter().map(|slot| (slot, id.clone()))
    });
    let mut by_node: Vec<_> = by_node.collect();
    by_node.sort();
    assert_eq!(planner.wanted(), by_node);
    for id in world.nodes.keys() {
        for slot in planner.wanted_by(id) {
            assert!(world.held_by_live(&slot).is_none() && world.may_take(&slot, id), "{slot}");
            let planned = plan[&slot].as_ref().expect("an orphan that is wanted has its place in the plan");
            if planned != id {
                let mut has: reference::Placed =
                    planner.wanted_by(planned).into_iter().map(|slot| (slot, planned.clone())).collect();
                let held = world.slots().into_iter().filter(|slot| world.held_by_live(slot) == Some(planned));
                has.extend(held.map(|slot| (slot, planned.clone())));
                // What it holds and must not run fills it up as well, and its workload's cap counts no such units.
                let odd = has.keys().any(|slot| !world.may_hold(slot, planned));
                let full = !reference::has_room(world, &has, &slot.workload, planned);
                assert!(full || odd, "{id} stands in for {planned}");
            }
        }
        for it in planner.leaving(id) {
            assert_eq!(world.holders.get(&it.slot), Some(id));
            assert!(world.may_take(&it.slot, &it.to) && it.to != *id);
            // Only for what must leave does another stand in.
            assert!(plan[&it.slot].as_ref() == Some(&it.to) || (!it.cause.is_voluntary() && it.has_room));
            if world.nodes[id].leaving {
                assert!(!it.cause.is_voluntary());
            }
        }
    }
    plan
}

/// The world in which everybody holds what they should.
fn applied(world: &World, plan: &Plan) -> World {
    let holders = plan.iter().filter_map(|(slot, owner)| Some((slot.clone(), owner.clone()?))).collect();
    World { holders, ..world.clone() }
}

fn troubles() -> impl Strategy<Value = Trouble> {
    any::<[bool; 6]>().prop_map(|[caps, rules, cordons, pins, load_factor, mixed]| Trouble {
        caps,
        rules,
        cordons,
        pins,
        load_factor,
        mixed,
    })
}

fn policies() -> impl Strategy<Value = Policy> {
    let few = VirtualNodes::new(2).unwrap();
    let ring = prop_oneof![Just(VirtualNodes::default()), Just(few)].prop_map(Policy::Ring);
    prop_oneof![Just(Policy::Balanced), Just(Policy::Rendezvous), Just(Policy::Sticky), ring]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rendezvous_is_the_best_pair_first(seed: u64, trouble in troubles()) {
        let dice = &mut Dice::new(seed);
        let world = World::random(dice, Trouble { mixed: false, ..trouble }, Policy::Rendezvous);
        let plan = checked(&world, &mut world.planner(dice));
        if let Some(expected) = reference::rendezvous(&world) {
            prop_assert_eq!(plan, expected);
        }
    }

    #[test]
    fn sticky_leaves_what_is_held_and_prefers_priority(seed: u64, trouble in troubles()) {
        let dice = &mut Dice::new(seed);
        let world = World::random(dice, Trouble { mixed: false, ..trouble }, Policy::Sticky);
        let mut planner = world.planner(dice);
        let plan = checked(&world, &mut planner);
        if let Some(expected) = reference::sticky(&world) {
            prop_assert_eq!(plan, expected);
        }
        let moves: Vec<_> = world.nodes.keys().flat_map(|id| planner.leaving(id)).collect();
        prop_assert!(moves.iter().all(|it| !it.cause.is_voluntary()), "{moves:?}");
    }

    #[test]
    fn ring_is_the_shortest_way_clockwise_first(seed: u64, trouble in troubles(), virtual_nodes in 1u32..20) {
        let dice = &mut Dice::new(seed);
        let ring = Policy::Ring(VirtualNodes::new(virtual_nodes).unwrap());
        let world = World::random(dice, Trouble { mixed: false, ..trouble }, ring);
        let plan = checked(&world, &mut world.planner(dice));
        if let Some(expected) = reference::ring(&world, virtual_nodes) {
            prop_assert_eq!(plan, expected);
        }
    }

    #[test]
    fn balanced_is_what_the_plain_description_says(seed: u64, trouble in troubles()) {
        let dice = &mut Dice::new(seed);
        let world = World::random(dice, Trouble { rules: false, mixed: false, ..trouble }, Policy::Balanced);
        let mut planner = world.planner(dice);
        let plan = checked(&world, &mut planner);
        if let Some(expected) = reference::balanced(&world, &mut planner) {
            prop_assert_eq!(plan, expected);
        }
    }

    #[test]
    fn the_order_of_inputs_does_not_matter(seed: u64, trouble in troubles(), policy in policies()) {
        let dice = &mut Dice::new(seed);
        let world = World::random(dice, trouble, policy);
        let plan = plan_of(&mut world.planner(dice));
        prop_assert_eq!(plan, plan_of(&mut world.planner(dice)));
    }

    #[test]
    fn a_plan_is_its_own_fixed_point(seed: u64, trouble in troubles(), policy in policies()) {
        let dice = &mut Dice::new(seed);
        let world = World::random(dice, trouble, policy);
        let plan = checked(&world, &mut world.planner(dice));
        let world = applied(&world, &plan);
        prop_assert_eq!(checked(&world, &mut world.planner(dice)), plan);
    }

    #[test]
    fn what_speaks_against_a_candidate_agrees_with_the_plan(
        seed: u64,
        trouble in troubles(),
        policy in policies(),
    ) {
        let dice = &mut Dice::new(seed);
        let world = World::random(dice, trouble, policy);
        let mut planner = world.planner(dice);
        let unplaced: BTreeMap<Slot, Reason> =
            planner.unplaced().into_iter().map(|unplaced| (unplaced.slot, unplaced.reason)).collect();
        for slot in world.slots() {
            let desired = planner.desired(&slot).node().cloned();
            let candidates = planner.candidates(&slot);
            prop_assert_eq!(candidates.len(), world.nodes.len());
            let named: Vec<_> = candidates.iter().filter(|it| it.against.is_none()).map(|it| it.node.clone()).collect();
            match unplaced.get(&slot) {
                None => prop_assert_eq!(named, Vec::from_iter(desired)),
                Some(reason) => {
                    prop_assert_eq!(named, Vec::<NodeId>::new());
                    let full = |against: &Option<Obstacle>| {
                        matches!(against, Some(Obstacle::Capacity { .. } | Obstacle::Cap { .. }))
                    };
                    let because = match reason {
                        Reason::Pinned { because, .. } => because,
                        other => other,
                    };
                    // Who holds a slot may keep it where it could not take it, so that caps alone stand in its way.
                    let holder = world.holders.get(&slot);
                    let mut others = candidates.iter().filter(|it| Some(&it.node) != holder);
                    if *because == Reason::AllFull {
                        prop_assert!(candidates.iter().any(|it| full(&it.against)), "{slot}: {candidates:?}");
                    } else {
                        prop_assert!(!others.any(|it| full(&it.against)), "{slot}: {reason}: {candidates:?}");
                    }
                    let open = |it: &Candidate| {
                        matches!(
                            it.against,
                            Some(Obstacle::NoGain | Obstacle::Outranked | Obstacle::FurtherOnTheRing)
                        )
                    };
                    prop_assert!(!candidates.iter().any(open), "{slot}: {candidates:?}");
                }
            }
        }
    }

    #[test]
    fn no_slot_is_stranded_that_any_arrangement_has_a_place_for(
        seed: u64, trouble in troubles(), policy in policies()
    ) {
        let dice = &mut Dice::new(seed);
        // A slot of one policy makes no way for one of another.
        let world = World::random(dice, Trouble { mixed: false, ..trouble }, policy);
        let mut planner = world.planner(dice);
        let plan = plan_of(&mut planner);
        let unplaced = planner.unplaced();
        let most = reference::most_placeable(&world, &plan, &unplaced);
        let placed = world.slots().len() - unplaced.iter().filter(|it| world.slots().contains(&it.slot)).count();
        prop_assert_eq!(placed, most);
    }

    #[test]
    fn no_orphan_waits_for_a_full_node_while_another_has_room(
        seed: u64, trouble in troubles(), policy in policies()
    ) {
        let dice = &mut Dice::new(seed);
        let world = World::random(dice, trouble, policy);
        let mut planner = world.planner(dice);
        let mut after: reference::Placed =
            world.slots().into_iter().filter_map(|slot| Some((slot.clone(), world.held_by_live(&slot)?.clone()))).collect();
        let wanted: Vec<_> = world.nodes.keys().map(|id| (id.clone(), planner.wanted_by(id))).collect();
        let mut waiting = Vec::new();
        for (id, slots) in wanted {
            for slot in slots {
                prop_assert!(world.may_take(&slot, &id) && !after.contains_key(&slot));
                if reference::has_room(&world, &after, &slot.workload, &id) {
                    after.insert(slot, id.clone());
                } else {
                    waiting.push(slot);
                }
            }
        }
        for slot in waiting {
            let odd = |id| after.iter().any(|(slot, on)| on == id && !world.may_hold(slot, id));
            let free = world.nodes.keys().find(|id| {
                world.may_take(&slot, id) && reference::has_room(&world, &after, &slot.workload, id) && !odd(*id)
            });
            prop_assert_eq!(free, None, "{} waits", slot);
        }
    }

    #[test]
    fn all_that_has_room_fits_at_once(seed: u64, trouble in troubles(), policy in policies()) {
        let dice = &mut Dice::new(seed);
        let world = World::random(dice, trouble, policy);
        let mut planner = world.planner(dice);
        let nodes: Vec<_> = world.nodes.keys().cloned().collect();
        let moves: Vec<_> = nodes.iter().flat_map(|id| planner.leaving(id)).filter(|it| it.has_room).collect();
        for id in nodes {
            // What moves counts at both ends, as long as it is under way.
            let held: Vec<_> = world.slots().into_iter().filter(|slot| world.held_by_live(slot) == Some(&id)).collect();
            // What it holds and must not run fills it up as well, and its workload's cap counts no such units.
            if held.iter().any(|slot| !world.may_hold(slot, &id)) {
                continue;
            }
            let mut fits: reference::Placed = held.into_iter().map(|slot| (slot, id.clone())).collect();
            for slot in planner.wanted_by(&id) {
                if reference::has_room(&world, &fits, &slot.workload, &id) {
                    fits.insert(slot, id.clone());
                }
            }
            let mut has: Vec<Slot> = fits.into_keys().collect();
            let coming: Vec<_> = moves.iter().filter(|it| it.to == id).map(|it| it.slot.clone()).collect();
            has.extend(coming.iter().cloned());
            prop_assert!(coming.is_empty() || has.len() as u32 <= world.capacity(&id), "{} has {:?}", id, has);
            for Slot { workload, .. } in coming {
                let count = has.iter().filter(|slot| slot.workload == workload).count() as u32;
                prop_assert!(count <= world.cap(&workload, &id), "{} has {:?}", id, has);
            }
        }
    }

    #[test]
    fn a_changed_planner_agrees_with_a_new_one(seed: u64, trouble in troubles(), policy in policies()) {
        let dice = &mut Dice::new(seed);
        let mut world = World::random(dice, trouble, policy);
        let mut planner = world.planner(dice);
        for _ in 0..12 {
            for _ in 0..=dice.below(2) {
                change(dice, trouble, &mut world, &mut planner);
            }
            let plan = checked(&world, &mut planner);
            prop_assert_eq!(plan, plan_of(&mut world.planner(dice)));
        }
    }

    #[test]
    fn one_workload_on_equals_comes_out_even(units in 1..40u32, nodes in 1..9u32, extra in 0..3u32) {
        let mut world = World::default();
        world.workloads.insert(workload(0), WorkloadSpec { units, ..WorkloadSpec::default() });
        let spec = NodeSpec { runs: [(workload(0), Runs::ALL)].into(), ..NodeSpec::default() };
        world.nodes = (0..nodes).map(|index| (node(index), spec.clone())).collect();
        let plan = checked(&world, &mut world.planner(&mut Dice::new(1)));
        let mut world = applied(&world, &plan);
        world.nodes.extend((0..extra).map(|index| (node(nodes + index), spec.clone())));
        let after = checked(&world, &mut world.planner(&mut Dice::new(2)));
        for id in world.nodes.keys() {
            let count = after.values().filter(|owner| owner.as_ref() == Some(id)).count() as u32;
            prop_assert!(count == units / (nodes + extra) || count == units.div_ceil(nodes + extra));
        }
        let moved = plan.iter().filter(|(slot, owner)| after[*slot] != **owner).count() as u32;
        prop_assert!(moved <= extra * units.div_ceil(nodes + extra));
    }
}

/// One random change, told to both.
fn change(dice: &mut Dice, trouble: Trouble, world: &mut World, planner: &mut Planner) {
    let slots: Vec<_> = (0..4).flat_map(|index| (0..8).map(move |unit| Slot::new(workload(index), unit))).collect();
    let slot = slots[dice.below(slots.len() as u32) as usize].clone();
    let id = node(dice.below(6));
    match dice.below(9) {
        0 | 1 => {
            let spec = random_node(dice, trouble, 4);
            planner.set_node(&id, spec.clone());
            world.nodes.insert(id, spec);
        }
        2 => {
            planner.remove_node(&id);
            world.nodes.remove(&id);
        }
        3 => {
            let spec = random_workload(dice, trouble);
            planner.set_workload(&slot.workload, spec.clone());
            world.workloads.insert(slot.workload, spec);
        }
        4 => {
            planner.remove_workload(&slot.workload);
            world.workloads.remove(&slot.workload);
        }
        5 => {
            planner.set_holder(&slot, Some(&id));
            world.holders.insert(slot, id);
        }
        6 => {
            planner.set_holder(&slot, None);
            world.holders.remove(&slot);
        }
        7 if dice.one_in(2) => {
            planner.set_pin(&slot, Some(&id));
            world.pins.insert(slot, id);
        }
        7 => {
            planner.set_pin(&slot, None);
            world.pins.remove(&slot);
        }
        _ => {
            let refused = dice.one_in(2);
            planner.exclude(&slot, &id, refused);
            if refused {
                world.refused.insert((slot, id));
            } else {
                world.refused.remove(&(slot, id));
            }
        }
    }
}

#[test]
fn phi_comes_close_to_the_best_that_any_arrangement_has() {
    let dice = &mut Dice::new(11);
    let (mut worlds, mut excess) = (0, 0);
    while worlds < 150 {
        let trouble = Trouble { caps: dice.one_in(2), ..Trouble::NONE };
        let world = World::random(dice, trouble, Policy::Balanced);
        let mut planner = world.planner(dice);
        let Some(best) = reference::best_phi(&world, &mut planner) else { continue };
        let plan = plan_of(&mut planner);
        let phi = reference::phi(&world, &mut planner, &plan);
        assert!(phi >= best);
        worlds += 1;
        excess += phi - best;
    }
    assert!(excess * 10 <= worlds, "Φ is {excess} above the optimum in {worlds} worlds");
}

#[test]
fn every_reason_is_told_apart() {
    let name = workload(0);
    let slot = Slot::new(name.clone(), 0);
    let mut planner = Planner::new(Policy::Balanced, LoadFactor::EXACT);
    let reason = |planner: &mut Planner| match planner.desired(&slot) {
        Desired::Nobody(reason) => reason,
        Desired::Node(node) => panic!("{node} should own it"),
    };
    assert_eq!(reason(&mut planner), Reason::NoSuchSlot);
    let mut spec = WorkloadSpec { units: 1, paused: true, ..WorkloadSpec::default() };
    planner.set_workload(&name, spec.clone());
    assert_eq!(reason(&mut planner), Reason::Paused);
    spec.paused = false;
    spec.labels.insert("gpu".into(), "yes".into());
    planner.set_workload(&name, spec.clone());
    assert_eq!(reason(&mut planner), Reason::NoNodes);
    let mut on = NodeSpec { accepts: false, ..NodeSpec::default() };
    planner.set_node(&node(0), on.clone());
    assert_eq!(reason(&mut planner), Reason::NoneRunsIt);
    on.runs.insert(name.clone(), Runs { units: 1, cap: Some(0), ..Runs::ALL });
    planner.set_node(&node(0), on.clone());
    assert_eq!(reason(&mut planner), Reason::ZoneOrLabels);
    on.labels.insert("gpu".into(), "yes".into());
    planner.set_node(&node(0), on.clone());
    assert_eq!(reason(&mut planner), Reason::NoneAccepts);
    on.accepts = true;
    planner.set_node(&node(0), on.clone());
    assert_eq!(reason(&mut planner), Reason::AllFull);
    planner.exclude(&slot, &node(0), true);
    assert_eq!(reason(&mut planner), Reason::AllRefused);
    planner.set_pin(&slot, Some(&node(1)));
    assert_eq!(reason(&mut planner), Reason::PinnedToAbsent(node(1)));
    planner.set_pin(&slot, Some(&node(0)));
    assert_eq!(reason(&mut planner), Reason::Pinned { node: node(0), because: Box::new(Reason::AllRefused) });
    planner.set_pin(&slot, None);
    planner.exclude(&slot, &node(0), false);
    on.runs.insert(name, Runs::ALL);
    planner.set_node(&node(0), on);
    assert_eq!(planner.desired(&slot).node(), Some(&node(0)));
}

#[test]
fn every_cause_is_told_apart() {
    let (a, b, name) = (node(0), node(1), workload(0));
    let mut planner = Planner::new(Policy::Balanced, LoadFactor::EXACT);
    planner.set_workload(&name, WorkloadSpec { units: 4, ..WorkloadSpec::default() });
    let spec = NodeSpec { runs: [(name.clone(), Runs::ALL)].into(), ..NodeSpec::default() };
    for id in [&a, &b] {
        planner.set_node(id, spec.clone());
    }
    let slot = |unit| Slot::new(name.clone(), unit);
    let causes = |planner: &mut Planner| planner.leaving(&a).into_iter().map(|it| it.cause).collect::<Vec<_>>();
    for unit in 0..4 {
        planner.set_holder(&slot(unit), Some(&a));
    }
    assert_eq!(causes(&mut planner), [Cause::Policy; 2]);
    planner.set_node(&a, NodeSpec { capacity: Some(3), ..spec.clone() });
    assert_eq!(causes(&mut planner), [Cause::Cap, Cause::Policy]);
    planner.set_node(&a, NodeSpec { accepts: false, ..spec.clone() });
    assert_eq!(causes(&mut planner), []);
    planner.set_pin(&slot(2), Some(&b));
    assert_eq!(causes(&mut planner), [Cause::Pin]);
    planner.set_pin(&slot(2), None);
    planner.set_node(&a, NodeSpec { leaving: true, ..spec.clone() });
    assert_eq!(causes(&mut planner), [Cause::Leaving; 4]);
    planner.set_node(
        &a,
        NodeSpec { runs: [(name.clone(), Runs { units: 1, cap: None, ..Runs::ALL })].into(), ..spec.clone() },
    );
    assert_eq!(causes(&mut planner), [Cause::Rule; 3]);

    // An orphan that only `a` may take, which is full, and `b` has room for what `a` holds.
    let full = NodeSpec { capacity: Some(3), ..spec.clone() };
    let first_three = NodeSpec { runs: [(name.clone(), Runs { units: 3, cap: None, ..Runs::ALL })].into(), ..spec };
    planner.set_node(&a, full);
    planner.set_node(&b, first_three);
    planner.set_holder(&slot(3), None);
    assert_eq!(causes(&mut planner), [Cause::MakesRoom, Cause::Policy]);
    assert_eq!(planner.wanted_by(&a), [slot(3)]);
}
