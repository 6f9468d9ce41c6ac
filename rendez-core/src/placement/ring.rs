//! The policy `ring`: each unit belongs to the first virtual node clockwise whose node may take it.
//!
//! Who holds a slot matters only where its holder takes nothing new and so keeps it. With caps, slots and virtual nodes
//! are matched shortest way first, as if nothing was held, and make room for those that then find every node full: a ring
//! with bounded loads. Where things stand on the circle is frozen, and has a file of its own.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use super::circle;
use super::draft::{Draft, Owners};
use super::rescue;
use super::settle::settle_idle;
use super::spec::{Policy, VirtualNodes};
use super::world::{Load, NONE, Place, World};

/// The circles of all rings, kept as long as the nodes stay as they are.
#[derive(Debug, Default)]
pub(super) struct Circles(BTreeMap<VirtualNodes, Circle>);

/// The virtual nodes of the nodes that take something, clockwise.
#[derive(Debug, Default)]
struct Circle(Vec<Point>);

#[derive(Debug, Clone, Copy)]
struct Point {
    position: u64,
    node: u32,
}

impl Circles {
    /// Makes the circles that these workloads need, anew if nodes have changed.
    pub(super) fn refresh(&mut self, world: &World, loads: &[u32], nodes_changed: bool) {
        let needed: Vec<_> =
            loads.iter().filter_map(|load| virtual_nodes(world, &world.loads[*load as usize])).collect();
        self.0.retain(|virtual_nodes, _| !nodes_changed && needed.contains(virtual_nodes));
        for virtual_nodes in needed {
            self.0.entry(virtual_nodes).or_insert_with(|| Circle::of(world, virtual_nodes));
        }
    }

    fn of(&self, world: &World, load: &Load) -> Option<&Circle> {
        self.0.get(&virtual_nodes(world, load)?)
    }
}

fn virtual_nodes(world: &World, load: &Load) -> Option<VirtualNodes> {
    match world.policy_of(load) {
        Policy::Ring(virtual_nodes) => Some(virtual_nodes),
        Policy::Balanced | Policy::Rendezvous | Policy::Sticky => None,
    }
}

impl Circle {
    fn of(world: &World, virtual_nodes: VirtualNodes) -> Self {
        let mut points = Vec::new();
        for node in world.live().filter(|node| world.nodes[*node as usize].accepts) {
            points.extend(positions(world, virtual_nodes, node).map(|position| Point { position, node }));
        }
        // Of virtual nodes in one place the one whose node comes first by name counts.
        points.sort_by_key(|point| (point.position, world.node_rank[point.node as usize]));
        Self(points)
    }

    /// The virtual nodes from a position on, once around.
    fn clockwise(&self, position: u64) -> impl Iterator<Item = Point> {
        let first = self.0.partition_point(|point| point.position < position);
        self.0[first..].iter().chain(&self.0[..first]).copied()
    }
}

fn positions(world: &World, virtual_nodes: VirtualNodes, node: u32) -> impl Iterator<Item = u64> {
    let id = world.node_id(node).map_or("", |id| id.as_str());
    let count = virtual_nodes.of_weight(world.nodes[node as usize].weight);
    (0..count).map(move |index| circle::virtual_node_position(id, index))
}

/// Where the first unit of a workload stands.
fn first_position(load: &Load) -> u64 {
    circle::first_position(load.name.as_ref().map_or("", |name| name.as_str()))
}

/// Decides all slots of these workloads where no cap can bind.
pub(super) fn place_all(world: &World, circles: &Circles, owners: &mut Owners, loads: &[u32]) {
    for load in loads {
        let entry = &world.loads[*load as usize];
        let Some(circle) = circles.of(world, entry) else { continue };
        let first = first_position(entry);
        for unit in 0..entry.units {
            owners[*load as usize][unit as usize] = choose(world, circle, first, Place { load: *load, unit });
        }
    }
}

/// Decides these slots anew where no cap can bind, if they are of one of these workloads.
pub(super) fn place_some(world: &World, circles: &Circles, owners: &mut Owners, loads: &[u32], places: &[Place]) {
    for place in places.iter().filter(|place| loads.contains(&place.load)) {
        let entry = &world.loads[place.load as usize];
        let Some(circle) = circles.of(world, entry).filter(|_| place.unit < entry.units) else { continue };
        owners[place.load as usize][place.unit as usize] = choose(world, circle, first_position(entry), *place);
    }
}

/// Decides one slot where no cap can bind.
fn choose(world: &World, circle: &Circle, first: u64, place: Place) -> u32 {
    let load = &world.loads[place.load as usize];
    if world.is_kept(place) {
        return load.holder(place.unit);
    }
    let position = first.wrapping_add(circle::distance_from_first(place.unit, load.units));
    circle.clockwise(position).find(|point| world.may_take(place, point.node)).map_or(NONE, |point| point.node)
}

/// Decides all slots of these workloads within the caps. Those that find every node full may make others move, if they are
/// of `movable` workloads.
pub(super) fn place_within_caps(draft: &mut Draft<'_>, circles: &Circles, loads: &[u32], movable: &[u32]) {
    let (pinned, free) = settle_idle(draft, loads);
    fill(draft, circles, &pinned);
    let left = fill(draft, circles, &free);
    if !left.is_empty() {
        rescue::place(draft, movable, &left);
    }
}

/// Gives slots that nobody has to nodes with room, shortest way of all first. Returns those that are left over.
fn fill(draft: &mut Draft<'_>, circles: &Circles, places: &[Place]) -> Vec<Place> {
    let mut left = Vec::new();
    let mut ways = BinaryHeap::with_capacity(places.len());
    let try_from = |draft: &Draft<'_>, place: Place, step: usize| Way::next(draft, circles, place, step);
    for place in places {
        match try_from(draft, *place, 0) {
            Some(way) => ways.push(Reverse(way)),
            None => left.push(*place),
        }
    }
    while let Some(Reverse(way)) = ways.pop() {
        let place = Place { load: draft.world.loads_by_rank[way.load_rank as usize], unit: way.unit };
        if draft.has_room(place.load, way.node) {
            draft.put(place, way.node);
        } else {
            // Who is full stays full: nothing before this step has room.
            match try_from(draft, place, way.step + 1) {
                Some(way) => ways.push(Reverse(way)),
                None => left.push(place),
            }
        }
    }
    left
}

/// From a slot clockwise to a virtual node of a node that may take it and has room. The shortest is the least; names and
/// units decide between equal ones.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    distance: u64,
    load_rank: u32,
    unit: u32,
    /// How many virtual nodes it passes.
    step: usize,
    node: u32,
}

impl Way {
    /// The shortest way that passes at least so many virtual nodes.
    fn next(draft: &Draft<'_>, circles: &Circles, place: Place, step: usize) -> Option<Self> {
        let world = draft.world;
        let load = &world.loads[place.load as usize];
        let position = first_position(load).wrapping_add(circle::distance_from_first(place.unit, load.units));
        let points = circles.of(world, load)?.clockwise(position).enumerate().skip(step);
        let mut open = points.filter(|(_, point)| draft.has_room(place.load, point.node));
        let (step, point) = open.find(|(_, point)| world.may_take(place, point.node))?;
        let distance = point.position.wrapping_sub(position);
        let load_rank = world.load_rank[place.load as usize];
        Some(Self { distance, load_rank, unit: place.unit, step, node: point.node })
    }
}

/// Puts nodes into the order in which they come clockwise from a slot. Those that take nothing have their places, too.
pub(super) fn sort_clockwise(world: &World, virtual_nodes: VirtualNodes, place: Place, nodes: &mut [u32]) {
    let load = &world.loads[place.load as usize];
    let position = first_position(load).wrapping_add(circle::distance_from_first(place.unit, load.units));
    nodes.sort_by_cached_key(|node| {
        let ways = positions(world, virtual_nodes, *node).map(|stands| stands.wrapping_sub(position));
        (ways.min(), world.node_rank[*node as usize])
    });
}
