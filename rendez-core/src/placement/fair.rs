//! Shares of all workloads together, where nodes cannot run everything: the weighted max–min fair parts.
//!
//! No node's part, relative to its weight, can be raised without lowering one that is smaller. The tightest
//! group of nodes is found first: those that have the least to share among them, whatever the others take. It
//! gets all that it can, shared out by weight, and is set aside; then the next. All numbers are whole.

use std::collections::{BTreeMap, VecDeque};

use super::shares::{Claim, Level};

/// A pool of slots, and who may have how many of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pool {
    pub(super) slots: u64,
    /// Index of the claim, and the most that it may have of this pool.
    pub(super) takers: Vec<(usize, u64)>,
}

/// The level of each claim.
pub(super) fn levels(claims: &[Claim], pools: &[Pool]) -> Vec<Level> {
    let mut groups = Groups::of(claims, pools);
    let mut of_group = vec![Level::default(); groups.claims.len()];
    let mut left: Vec<usize> = (0..groups.claims.len()).collect();
    while !left.is_empty() {
        let (tight, level) = groups.tightest(&left);
        for at in &tight {
            of_group[*at] = level;
        }
        groups.set_aside(&tight);
        left.retain(|at| !tight.contains(at));
    }
    groups.member_of.iter().map(|at| of_group[*at]).collect()
}

/// Claims and pools with those put together that nothing tells apart.
#[derive(Debug)]
struct Groups {
    claims: Vec<Claim>,
    pools: Vec<Pool>,
    /// By claim as given: its group.
    member_of: Vec<usize>,
}

impl Groups {
    fn of(claims: &[Claim], pools: &[Pool]) -> Self {
        let all: u64 = pools.iter().map(|pool| pool.slots).sum();
        // Pools without caps that the same claims may have are one.
        let mut by_takers: BTreeMap<Vec<usize>, u64> = BTreeMap::new();
        let mut joined = Vec::new();
        for pool in pools.iter().filter(|pool| !pool.takers.is_empty() && pool.slots > 0) {
            if pool.takers.iter().all(|(_, cap)| *cap >= pool.slots) {
                *by_takers.entry(pool.takers.iter().map(|(at, _)| *at).collect()).or_default() += pool.slots;
            } else {
                joined.push(pool.clone());
            }
        }
        joined.extend(
            by_takers
                .into_iter()
                .map(|(takers, slots)| Pool { slots, takers: takers.into_iter().map(|at| (at, slots)).collect() }),
        );
        // Claims without caps that may have of the same pools are one, and so are claims that are all the same:
        // they come out alike.
        let mut rows: Vec<Vec<(usize, u64)>> = vec![Vec::new(); claims.len()];
        for (index, pool) in joined.iter().enumerate() {
            for (at, cap) in &pool.takers {
                rows[*at].push((index, (*cap).min(pool.slots)));
            }
        }
        let mut groups = BTreeMap::new();
        let mut grouped: Vec<Claim> = Vec::new();
        let mut member_of = Vec::with_capacity(claims.len());
        for (claim, row) in claims.iter().zip(&rows) {
            let free = claim.cap >= all && row.iter().all(|(index, cap)| *cap >= joined[*index].slots);
            let same = (!free).then_some((claim.weight, claim.cap));
            let group = *groups.entry((same, row)).or_insert(grouped.len());
            match grouped.get_mut(group) {
                Some(known) => {
                    known.weight += claim.weight;
                    known.cap = known.cap.saturating_add(claim.cap);
                }
                None => grouped.push(*claim),
            }
            member_of.push(group);
        }
        for pool in &mut joined {
            let mut takers: BTreeMap<usize, u64> = BTreeMap::new();
            for (at, cap) in &pool.takers {
                let together = takers.entry(member_of[*at]).or_default();
                *together = together.saturating_add(*cap);
            }
            pool.takers = takers.into_iter().collect();
        }
        Self { claims: grouped, pools: joined, member_of }
    }

    /// The group of claims among `left` that comes out lowest, and the level that it comes out at.
    fn tightest(&self, left: &[usize]) -> (Vec<usize>, Level) {
        let mut tight = left.to_vec();
        let slots = self.pools.iter().map(|pool| pool.slots).sum();
        let mut level = self.level(slots, &tight);
        loop {
            let mut flow = Flow::new(self, left, level);
            let Some((short, pools)) = flow.fall_short() else { return (tight, level) };
            let whole: u64 = pools.iter().map(|index| self.pools[*index].slots).sum();
            let parts = self.pools.iter().enumerate().filter(|(index, _)| !pools.contains(index));
            let parts: u64 = parts
                .flat_map(|(_, pool)| &pool.takers)
                .filter(|(at, _)| short.contains(at))
                .map(|(_, cap)| *cap)
                .sum();
            level = self.level(whole + parts, &short);
            tight = short;
        }
    }

    fn level(&self, slots: u64, claims: &[usize]) -> Level {
        Level::of(slots, &claims.iter().map(|at| self.claims[*at]).collect::<Vec<_>>())
    }

    /// Takes out what the tightest group gets: all of the pools that it exhausts, and its caps of others.
    fn set_aside(&mut self, tight: &[usize]) {
        for pool in &mut self.pools {
            let theirs: u64 = pool.takers.iter().filter(|(at, _)| tight.contains(at)).map(|(_, cap)| *cap).sum();
            pool.slots = pool.slots.saturating_sub(theirs);
            pool.takers.retain(|(at, _)| !tight.contains(at));
        }
    }
}

/// A flow of slots from pools to claims, each of which wants its part at a level.
///
/// All amounts are multiplied by the level's denominator, so that they are whole.
#[derive(Debug)]
struct Flow {
    /// By claim of the round: its index, and what it still wants.
    wants: Vec<(usize, u128)>,
    /// By pool: what it still has.
    has: Vec<u128>,
    /// By pool: claim of the round, what may still go to it, what goes to it.
    arcs: Vec<Vec<(usize, u128, u128)>>,
}

impl Flow {
    fn new(groups: &Groups, left: &[usize], level: Level) -> Self {
        let scale = u128::from(level.denominator());
        let wants: Vec<_> = left.iter().map(|at| (*at, level.scaled(groups.claims[*at]))).collect();
        let place: BTreeMap<_, _> = left.iter().enumerate().map(|(place, at)| (*at, place)).collect();
        let has = groups.pools.iter().map(|pool| u128::from(pool.slots) * scale).collect();
        let arcs = groups.pools.iter().map(|pool| {
            let arcs = pool.takers.iter().filter_map(|(at, cap)| Some((*place.get(at)?, u128::from(*cap) * scale, 0)));
            arcs.collect()
        });
        Self { wants, has, arcs: arcs.collect() }
    }

    /// Gives all it can. If some get less than they want: they and all that they share pools with, and the
    /// pools that nobody else has anything of.
    fn fall_short(&mut self) -> Option<(Vec<usize>, Vec<usize>)> {
        for (has, arcs) in self.has.iter_mut().zip(&mut self.arcs) {
            for (claim, left, used) in arcs {
                let amount = (*has).min(*left).min(self.wants[*claim].1);
                *has -= amount;
                *left -= amount;
                *used += amount;
                self.wants[*claim].1 -= amount;
            }
        }
        let mut via: Vec<Vec<(usize, usize)>> = vec![Vec::new(); self.wants.len()];
        for (pool, arcs) in self.arcs.iter().enumerate() {
            for (arc, (claim, ..)) in arcs.iter().enumerate() {
                via[*claim].push((pool, arc));
            }
        }
        loop {
            // Backwards from claims that want more to pools that have some.
            let mut claims_seen: Vec<Option<(usize, usize)>> = vec![None; self.wants.len()];
            let mut pools_seen: Vec<Option<(usize, usize)>> = vec![None; self.has.len()];
            let mut reached: Vec<bool> = self.wants.iter().map(|(_, want)| *want > 0).collect();
            let mut queue: VecDeque<usize> = (0..self.wants.len()).filter(|claim| reached[*claim]).collect();
            if queue.is_empty() {
                return None;
            }
            let mut source = None;
            'search: while let Some(claim) = queue.pop_front() {
                for (pool, arc) in &via[claim] {
                    if self.arcs[*pool][*arc].1 == 0 || pools_seen[*pool].is_some() {
                        continue;
                    }
                    pools_seen[*pool] = Some((claim, *arc));
                    if self.has[*pool] > 0 {
                        source = Some(*pool);
                        break 'search;
                    }
                    for (other_arc, (other, _, used)) in self.arcs[*pool].iter().enumerate() {
                        if *used > 0 && !reached[*other] {
                            reached[*other] = true;
                            claims_seen[*other] = Some((*pool, other_arc));
                            queue.push_back(*other);
                        }
                    }
                }
            }
            let Some(mut pool) = source else {
                let short = (0..self.wants.len()).filter(|claim| reached[*claim]);
                let short = short.map(|claim| self.wants[claim].0).collect();
                let pools = (0..self.has.len()).filter(|pool| pools_seen[*pool].is_some()).collect();
                return Some((short, pools));
            };
            // The path runs from the pool to a claim, from there back to a pool that gave to it, and so on.
            let mut path = Vec::new();
            let mut amount = self.has[pool];
            let first = pool;
            let last = loop {
                let (claim, arc) = pools_seen[pool]?;
                amount = amount.min(self.arcs[pool][arc].1);
                path.push((pool, arc, true));
                match claims_seen[claim] {
                    Some((next, back)) => {
                        amount = amount.min(self.arcs[next][back].2);
                        path.push((next, back, false));
                        pool = next;
                    }
                    None => break claim,
                }
            };
            amount = amount.min(self.wants[last].1);
            self.has[first] -= amount;
            self.wants[last].1 -= amount;
            for (pool, arc, forth) in path {
                let (_, left, used) = &mut self.arcs[pool][arc];
                if forth {
                    *left -= amount;
                    *used += amount;
                } else {
                    *left += amount;
                    *used -= amount;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The most that these claims can get together: the least cut, over all ways to cut.
    fn most(claims: &[Claim], pools: &[Pool], set: u32) -> u64 {
        let cuts = (0..1u32 << claims.len()).filter(|cut| cut & !set == 0);
        let amounts = cuts.map(|cut| {
            let own = (0..claims.len()).filter(|at| cut >> at & 1 == 1).map(|at| claims[at].cap);
            let others = set & !cut;
            let pooled = pools.iter().map(|pool| {
                let caps = pool.takers.iter().filter(|(at, _)| others >> at & 1 == 1).map(|(_, cap)| *cap);
                pool.slots.min(caps.sum())
            });
            own.sum::<u64>() + pooled.sum::<u64>()
        });
        amounts.min().unwrap_or(0)
    }

    /// The shares by the definition: the set of claims that can get least for its weight, then the next.
    fn by_definition(claims: &[Claim], pools: &[Pool]) -> Vec<f64> {
        let mut shares = vec![0.0; claims.len()];
        let (mut done, everyone) = (0u32, (1u32 << claims.len()) - 1);
        while done != everyone {
            let sets = (1..=everyone).filter(|set| set & done == 0);
            let rated = sets.map(|set| {
                let gain = most(claims, pools, set | done) - most(claims, pools, done);
                let weight: u64 = (0..claims.len()).filter(|at| set >> at & 1 == 1).map(|at| claims[at].weight).sum();
                (gain, weight, set)
            });
            let least = rated.min_by(|(gain, weight, _), (other, others, _)| (gain * others).cmp(&(other * weight)));
            let Some((gain, weight, set)) = least else { break };
            for at in (0..claims.len()).filter(|at| set >> at & 1 == 1) {
                shares[at] = gain as f64 * claims[at].weight as f64 / weight as f64;
            }
            done |= set;
        }
        shares
    }

    #[test]
    fn shares_are_those_of_the_definition() {
        let mut seed = 7u64;
        let mut below = move |bound: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % bound
        };
        for round in 0..2000 {
            let count = 1 + below(5) as usize;
            let capped = below(2) == 0;
            let mut claim =
                || Claim { weight: 1 + below(4), cap: if capped && below(3) == 0 { below(12) } else { 1 << 40 } };
            let claims: Vec<_> = (0..count).map(|_| claim()).collect();
            let mut pool = || {
                let takers: Vec<_> = (0..count).filter(|_| below(3) > 0).collect();
                let mut cap = |at| (at, if capped && below(3) == 0 { below(6) } else { 1 << 40 });
                let takers = takers.into_iter().map(&mut cap).collect();
                Pool { slots: below(20), takers }
            };
            let pools: Vec<_> = (0..1 + round % 4).map(|_| pool()).collect();
            let expected = by_definition(&claims, &pools);
            for ((level, claim), expected) in levels(&claims, &pools).iter().zip(&claims).zip(expected) {
                assert!((level.share(*claim) - expected).abs() < 1e-9, "{claims:?} {pools:?}: {expected}");
            }
        }
    }
}
