//! A ring as it is at one moment, as data and as text. Where it came from and how it is shown again and again belongs
//! elsewhere.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::time::Duration;

use rendez::{NodeId, RingId, RingSizes};
use rendez_core::ClusterView;
use rendez_core::status::{NodeState, Status};
use serde::Serialize;

use crate::print::columns;

/// What was taken in this time counts as moved lately.
const LATELY: Duration = Duration::from_secs(60);

/// The signs of nodes in an arc; those of a larger ring share the last one.
const SIGNS: &[u8] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ#";
/// The sign of what nobody holds.
const NOBODY: char = '.';
/// The colours of nodes, one after the other (of the terminal's own palette).
const COLOURS: [u8; 6] = [32, 33, 34, 35, 36, 31];

/// A ring at one moment.
#[derive(Debug, Serialize)]
pub(super) struct Picture {
    pub(super) ring: String,
    pub(super) partitions: u32,
    pub(super) virtual_nodes: u32,
    pub(super) session_ttl_max_ms: u64,
    pub(super) nodes: Vec<Member>,
    /// Partitions that nobody holds.
    pub(super) orphans: u32,
    /// Partitions that are held, and not by the node that should hold them.
    pub(super) misplaced: u32,
    /// By partition: who holds it, and under which token.
    pub(super) owners: Vec<Option<Owner>>,
    /// By partition: who should hold it.
    #[serde(skip)]
    planned: Vec<Option<NodeId>>,
}

/// A node of the ring.
#[derive(Debug, Serialize)]
pub(super) struct Member {
    pub(super) node: NodeId,
    pub(super) state: NodeState,
    /// How many virtual nodes it has, by its weight.
    pub(super) virtual_nodes: u32,
    pub(super) holds: u32,
    pub(super) planned: u32,
    /// In how many pieces of the circle what it holds lies.
    pub(super) arcs: u32,
    /// How many of its leases it got in the last minute.
    pub(super) taken_lately: u32,
    /// How old its session is.
    pub(super) session_age_ms: u64,
    /// How long its session lives after each heartbeat.
    pub(super) session_ttl_ms: u64,
}

/// Who holds a partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Owner {
    pub(super) node: NodeId,
    pub(super) token: u64,
}

impl Picture {
    /// What is seen here, if it is a ring.
    pub(super) fn of(ring: &RingId, view: &mut ClusterView) -> Option<Self> {
        let sizes = RingSizes::of(view)?;
        let session_ttl_max_ms = millis(view.settings()?.session_ttl_max);
        let now = rendez::boot_time();
        let status = Status::of(view, now, &BTreeMap::new());
        let mut owners = vec![None; sizes.partitions as usize];
        let mut planned = vec![None; sizes.partitions as usize];
        let mut lately: BTreeMap<NodeId, u32> = BTreeMap::new();
        let slots = status.slots.iter().filter(|slot| slot.slot.workload.as_str() == rendez::PARTITIONS);
        for slot in slots.filter(|slot| slot.slot.unit < sizes.partitions) {
            let Some(holder) = &slot.holder else {
                planned[slot.slot.unit as usize].clone_from(&slot.desired);
                continue;
            };
            owners[slot.slot.unit as usize] = Some(Owner { node: holder.clone(), token: slot.token.get() });
            planned[slot.slot.unit as usize].clone_from(&slot.desired);
            let taken_at = view.slot(&slot.slot).map(|record| record.taken_at);
            if taken_at.is_some_and(|at| view.store_now(now).since(at) < LATELY) {
                *lately.entry(holder.clone()).or_default() += 1;
            }
        }
        let nodes = status.nodes.iter().filter_map(|node| {
            let session = view.session(node.session)?;
            let is_its = |owner: &Option<Owner>| owner.as_ref().is_some_and(|owner| owner.node == node.node);
            let count = |all: &[Option<NodeId>]| all.iter().flatten().filter(|it| **it == node.node).count() as u32;
            Some(Member {
                node: node.node.clone(),
                state: node.state,
                virtual_nodes: sizes.virtual_nodes.of_weight(node.weight),
                holds: owners.iter().filter(|owner| is_its(owner)).count() as u32,
                planned: count(&planned),
                arcs: pieces(owners.iter().map(is_its)),
                taken_lately: lately.get(&node.node).copied().unwrap_or_default(),
                session_age_ms: millis(view.store_now(now).since(session.opened_at)),
                session_ttl_ms: millis(session.ttl),
            })
        });
        let nodes = nodes.collect();
        let misplaced = |(owner, planned): (&Option<Owner>, &Option<NodeId>)| {
            owner.as_ref().is_some_and(|owner| Some(&owner.node) != planned.as_ref())
        };
        Some(Self {
            ring: ring.to_string(),
            partitions: sizes.partitions,
            virtual_nodes: sizes.virtual_nodes.get(),
            session_ttl_max_ms,
            nodes,
            orphans: owners.iter().filter(|owner| owner.is_none()).count() as u32,
            misplaced: owners.iter().zip(&planned).filter(|pair| misplaced(*pair)).count() as u32,
            owners,
            planned,
        })
    }

    /// What has changed hands since an earlier picture: from whom, to whom, which partitions.
    pub(super) fn moves_since(&self, earlier: &Self) -> Vec<Moved> {
        let mut moves: BTreeMap<(Option<NodeId>, Option<NodeId>), Vec<u32>> = BTreeMap::new();
        for (partition, (before, after)) in (0..).zip(earlier.owners.iter().zip(&self.owners)) {
            if before != after {
                let node = |owner: &Option<Owner>| owner.as_ref().map(|owner| owner.node.clone());
                moves.entry((node(before), node(after))).or_default().push(partition);
            }
        }
        moves.into_iter().map(|((from, to), partitions)| Moved { from, to, partitions }).collect()
    }

    /// As text of this width, with colours or without.
    pub(super) fn text(&self, width: usize, colours: bool) -> String {
        let Self { ring, partitions, virtual_nodes, .. } = self;
        let ttl = Duration::from_millis(self.session_ttl_max_ms);
        let nodes = self.nodes.len();
        let mut text = format!("ring {ring}: {partitions} partitions, {virtual_nodes} virtual nodes a node, ");
        let _ = writeln!(text, "sessions of up to {ttl:?}; {nodes} nodes are alive");
        let held = self.owners.iter().map(|owner| owner.as_ref().map(|owner| &owner.node)).collect::<Vec<_>>();
        let planned = self.planned.iter().map(Option::as_ref).collect::<Vec<_>>();
        let _ = writeln!(text, "\nheld  {}", self.arc(&held, width, colours));
        if held != planned {
            let _ = writeln!(text, "plan  {}", self.arc(&planned, width, colours));
        }
        let rows = self.nodes.iter().enumerate().map(|(at, node)| {
            let share = 100.0 * f64::from(node.holds) / f64::from(*partitions);
            [
                self.sign(at).to_string(),
                node.node.to_string(),
                node.state.as_str().to_owned(),
                node.virtual_nodes.to_string(),
                node.holds.to_string(),
                format!("{share:.1}%"),
                node.planned.to_string(),
                node.arcs.to_string(),
                node.taken_lately.to_string(),
                format!("{:?}", Duration::from_secs(node.session_age_ms / 1000)),
                format!("{:?}", Duration::from_millis(node.session_ttl_ms)),
            ]
        });
        let head =
            ["", "NODE", "STATE", "VIRTUAL", "HOLDS", "SHARE", "PLANNED", "ARCS", "LAST 60S", "SESSION", "LIVES FOR"];
        text += &columns(head, rows);
        let _ = writeln!(text, "\n{} partitions have no owner, {} are to move", self.orphans, self.misplaced);
        text
    }

    /// The circle, cut open before partition 0: each sign stands for some partitions, and for who has most of them.
    fn arc(&self, owners: &[Option<&NodeId>], width: usize, colours: bool) -> String {
        let cells = width.saturating_sub("held  ".len()).clamp(1, owners.len().max(1));
        let (mut arc, mut colour) = (String::new(), None);
        for cell in 0..cells {
            let (from, to) = (cell * owners.len() / cells, (cell + 1) * owners.len() / cells);
            let mut counts: BTreeMap<Option<&NodeId>, usize> = BTreeMap::new();
            owners[from..to].iter().for_each(|owner| *counts.entry(*owner).or_default() += 1);
            // Of equal ones the first by name; nobody before anybody.
            let most = counts.iter().max_by_key(|(owner, count)| (**count, std::cmp::Reverse(**owner)));
            let node = most.and_then(|(owner, _)| *owner);
            let at = node.and_then(|node| self.nodes.iter().position(|it| it.node == *node));
            let wanted = at.filter(|_| colours).map(|at| COLOURS[at % COLOURS.len()]);
            if wanted != colour {
                // 39: the terminal's own.
                let _ = write!(arc, "\u{1b}[{}m", wanted.unwrap_or(39));
                colour = wanted;
            }
            arc.push(at.map_or(NOBODY, |at| self.sign(at)));
        }
        if colour.is_some() {
            arc += "\u{1b}[39m";
        }
        arc
    }

    fn sign(&self, at: usize) -> char {
        char::from(SIGNS[at.min(SIGNS.len() - 1)])
    }
}

/// Partitions that went from one to another; nobody, where it was or is an orphan.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Moved {
    pub(super) from: Option<NodeId>,
    pub(super) to: Option<NodeId>,
    pub(super) partitions: Vec<u32>,
}

impl Moved {
    /// In words.
    pub(super) fn text(&self) -> String {
        let name = |node: &Option<NodeId>| node.as_ref().map_or_else(|| "nobody".to_owned(), ToString::to_string);
        let (from, to, count) = (name(&self.from), name(&self.to), self.partitions.len());
        let which = ranges(self.partitions.iter().copied());
        if from == to {
            return format!("{count} taken anew by {to}: {which}");
        }
        format!("{count} from {from} to {to}: {which}")
    }
}

/// So many ranges are listed; how many partitions are left is said.
const RANGES_SHOWN: usize = 12;

/// Sorted partitions as ranges: `0-3, 7, 9-12`.
pub(super) fn ranges(partitions: impl IntoIterator<Item = u32>) -> String {
    let mut ranges: Vec<RangeInclusive<u32>> = Vec::new();
    for partition in partitions {
        match ranges.last_mut() {
            Some(range) if *range.end() + 1 == partition => *range = *range.start()..=partition,
            _ => ranges.push(partition..=partition),
        }
    }
    let shown = ranges.iter().take(RANGES_SHOWN).map(|range| match (range.start(), range.end()) {
        (start, end) if start == end => start.to_string(),
        (start, end) => format!("{start}-{end}"),
    });
    let text = shown.collect::<Vec<_>>().join(", ");
    match ranges.iter().skip(RANGES_SHOWN).map(|range| range.end() - range.start() + 1).sum::<u32>() {
        0 => text,
        left => format!("{text} and {left} more"),
    }
}

/// In how many pieces of a circle these lie.
fn pieces(marks: impl Iterator<Item = bool>) -> u32 {
    let marks: Vec<bool> = marks.collect();
    let begins =
        (0..marks.len()).filter(|at| marks[*at] && !marks[(at + marks.len() - 1) % marks.len()]).count() as u32;
    if begins == 0 && marks.first() == Some(&true) { 1 } else { begins }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(owners: &str) -> Picture {
        let node = |sign: char| NodeId::new(format!("node-{sign}")).unwrap();
        let owner = |sign| (sign != '.').then(|| Owner { node: node(sign), token: 1 });
        let member = |sign| Member {
            node: node(sign),
            state: NodeState::Active,
            virtual_nodes: 8,
            holds: owners.chars().filter(|it| *it == sign).count() as u32,
            planned: 0,
            arcs: pieces(owners.chars().map(|it| it == sign)),
            taken_lately: 0,
            session_age_ms: 1500,
            session_ttl_ms: 30_000,
        };
        let owners: Vec<_> = owners.chars().map(owner).collect();
        Picture {
            ring: "orders".to_owned(),
            partitions: owners.len() as u32,
            virtual_nodes: 8,
            session_ttl_max_ms: 30_000,
            nodes: vec![member('a'), member('b')],
            orphans: owners.iter().filter(|owner| owner.is_none()).count() as u32,
            misplaced: 0,
            planned: owners.iter().map(|owner| owner.as_ref().map(|owner| owner.node.clone())).collect(),
            owners,
        }
    }

    #[test]
    fn an_arc_shows_who_has_most_of_each_part_and_fits_the_width() {
        let text = picture("aaaabbbb....aabb").text("held  ".len() + 4, false);
        assert!(text.contains("\nheld  ab.a\n"), "{text}");
        let text = picture("aaaabbbb....aabb").text(200, false);
        assert!(text.contains("\nheld  aaaabbbb....aabb\n"), "{text}");
        assert!(!text.contains('\u{1b}') && !text.contains("plan"), "{text}");
        assert!(text.contains("4 partitions have no owner"), "{text}");
        assert!(picture("ab").text(80, true).contains("\u{1b}[32ma\u{1b}[33mb\u{1b}[39m"));
        assert!(picture("ab").text(0, false).contains("\nheld  a\n"));
    }

    #[test]
    fn what_has_moved_is_told_with_its_ranges() {
        let moved = picture("aabb.b").moves_since(&picture("aaab.."));
        let told: Vec<_> = moved.iter().map(Moved::text).collect();
        assert_eq!(told, ["1 from nobody to node-b: 5", "1 from node-a to node-b: 2"]);
        assert_eq!(picture("ab").moves_since(&picture("ab")), []);
    }

    #[test]
    fn ranges_and_pieces() {
        assert_eq!(ranges([0, 1, 2, 7, 9, 10]), "0-2, 7, 9-10");
        assert_eq!(ranges([]), "");
        assert_eq!(ranges((0..40).map(|at| at * 2)), "0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22 and 28 more");
        let pieces = |text: &str| super::pieces(text.chars().map(|it| it == 'x'));
        assert_eq!([pieces("xx.x"), pieces("x.x."), pieces("xx"), pieces(".."), pieces("")], [1, 2, 1, 0, 0]);
    }
}
