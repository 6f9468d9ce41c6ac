//! Shares and bands: how many slots each node should have.
//!
//! All of it is exact arithmetic on whole numbers and fractions of them, so that nodes agree. Which slots they
//! are is not decided here.

use super::fair;
use super::spec::{Band, LoadFactor};
use super::world::World;

/// What nodes get of a pool by weight, each within its cap: weight · `slots` / `weights`, or the cap if less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Level {
    slots: u64,
    weights: u64,
}

/// One node's part of a pool: its weight, and the most that it may get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) weight: u64,
    pub(super) cap: u64,
}

impl Level {
    /// Shares a pool out. What a cap keeps from one is shared among the others.
    pub(super) fn of(pool: u64, claims: &[Claim]) -> Self {
        let mut level = Self { slots: pool, weights: claims.iter().map(|claim| claim.weight).sum() };
        if !claims.iter().any(|claim| level.is_above(*claim)) {
            return level;
        }
        let mut tightest = claims.to_vec();
        tightest.sort_unstable_by(|a, b| {
            (u128::from(a.cap) * u128::from(b.weight)).cmp(&(u128::from(b.cap) * u128::from(a.weight)))
        });
        for claim in tightest {
            if !level.is_above(claim) {
                break;
            }
            level.slots -= claim.cap;
            level.weights -= claim.weight;
        }
        level
    }

    /// Whether this claim's cap keeps something from it.
    fn is_above(self, claim: Claim) -> bool {
        u128::from(claim.cap) * u128::from(self.weights) < u128::from(claim.weight) * u128::from(self.slots)
    }

    /// The band of a claim at this level.
    pub(super) fn band(self, claim: Claim, factor: LoadFactor) -> Band {
        if self.weights == 0 || self.is_above(claim) {
            return Self { slots: claim.cap, weights: 1 }.band_uncapped(1, claim.cap, factor);
        }
        self.band_uncapped(claim.weight, claim.cap, factor)
    }

    fn band_uncapped(self, weight: u64, cap: u64, factor: LoadFactor) -> Band {
        let factor = u64::from(factor.permille());
        let (low, high) = match weight.checked_mul(self.slots).and_then(|part| part.checked_mul(factor)) {
            // The common case, in the machine's own words.
            Some(high) if factor == 1000 => {
                let part = high / 1000;
                (part / self.weights, part.div_ceil(self.weights))
            }
            _ => {
                let part = u128::from(weight) * u128::from(self.slots);
                let (weights, factor) = (u128::from(self.weights), u128::from(factor));
                let low = part * 1000 / (weights * factor);
                let high = (part * factor).div_ceil(weights * 1000);
                (u64::try_from(low).unwrap_or(u64::MAX), u64::try_from(high).unwrap_or(u64::MAX))
            }
        };
        Band { low: narrow(low.min(cap)), high: narrow(high.min(cap)) }
    }

    /// What amounts are multiplied by to be whole at this level.
    pub(super) fn denominator(self) -> u64 {
        self.weights.max(1)
    }

    /// The share of a claim, multiplied by the denominator.
    pub(super) fn scaled(self, claim: Claim) -> u128 {
        if self.weights == 0 || self.is_above(claim) {
            return u128::from(claim.cap) * u128::from(self.denominator());
        }
        u128::from(claim.weight) * u128::from(self.slots)
    }

    /// The share of a claim, for display.
    pub(super) fn share(self, claim: Claim) -> f64 {
        let fair = claim.weight as f64 * self.slots as f64 / self.weights as f64;
        if self.weights == 0 || self.is_above(claim) { claim.cap as f64 } else { fair }
    }
}

fn narrow(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// The shares of all nodes, of each workload and of all together.
#[derive(Debug, Default)]
pub(super) struct Shares {
    /// By node.
    totals: Vec<Band>,
    /// By node, for display.
    exact: Vec<f64>,
    /// By workload.
    levels: Vec<Level>,
}

impl Shares {
    /// Works the shares out. `pools` says how many slots of each workload are to be shared among nodes that take
    /// slots: those that nodes keep which take nothing new are not among them.
    pub(super) fn of(world: &World, pools: &[u32]) -> Self {
        let mut levels = vec![Level::default(); world.loads.len()];
        for load in &world.order {
            let claims: Vec<_> = world.live().filter_map(|node| claim(world, *load, node)).collect();
            levels[*load as usize] = Level::of(u64::from(pools[*load as usize]), &claims);
        }
        let mut shares =
            Self { totals: vec![Band::ANY; world.nodes.len()], exact: vec![0.0; world.nodes.len()], levels };
        let takers: Vec<_> = world.live().filter(|node| world.nodes[*node as usize].accepts).collect();
        for (node, (claim, level)) in takers.iter().zip(totals(world, pools, &takers, &shares.levels)) {
            shares.totals[*node as usize] = level.band(claim, world.load_factor);
            shares.exact[*node as usize] = level.share(claim);
        }
        shares
    }

    /// How many slots of all workloads a node should have.
    pub(super) fn total(&self, node: u32) -> Band {
        self.totals[node as usize]
    }

    /// A node's share of all slots, for display.
    pub(super) fn exact(&self, node: u32) -> f64 {
        self.exact[node as usize]
    }

    /// How many slots of one workload a node should have.
    pub(super) fn of_load(&self, world: &World, load: u32, node: u32) -> Band {
        match claim(world, load, node) {
            Some(claim) => self.levels[load as usize].band(claim, world.load_factor),
            // It is left alone.
            None => Band::ANY,
        }
    }
}

/// What each node may get of all workloads together, and at which level.
fn totals(world: &World, pools: &[u32], takers: &[u32], levels: &[Level]) -> Vec<(Claim, Level)> {
    let slots = world.order.iter().map(|load| u64::from(pools[*load as usize])).sum();
    let mut alike = true;
    let claims = takers.iter().map(|node| {
        let entry = &world.nodes[*node as usize];
        let mut caps = 0;
        for load in &world.order {
            let pool = u64::from(pools[*load as usize]);
            let cap = claim(world, *load, *node).map_or(0, |claim| claim.cap);
            alike &= cap >= pool;
            caps += cap.min(pool);
        }
        Claim { weight: entry.weight.into(), cap: caps.min(entry.capacity.into()) }
    });
    let claims: Vec<_> = claims.collect();
    // Where each workload alone is shared by weight among all, so is the sum.
    let weights = claims.iter().map(|claim| claim.weight).sum();
    let by_weight = |load: &u32| levels[*load as usize] == Level { slots: pools[*load as usize].into(), weights };
    let level = Level::of(slots, &claims);
    let even = level == Level { slots, weights } && world.order.iter().all(by_weight);
    if even || alike || world.order.len() == 1 {
        return claims.into_iter().map(|claim| (claim, level)).collect();
    }
    let pools = world.order.iter().map(|load| {
        let takers = takers.iter().enumerate().filter_map(|(at, node)| Some((at, claim(world, *load, *node)?.cap)));
        fair::Pool { slots: pools[*load as usize].into(), takers: takers.filter(|(_, cap)| *cap > 0).collect() }
    });
    let whole = takers.iter().zip(&claims).map(|(node, claim)| {
        // What it may have of each pool is said with the pools.
        Claim { cap: world.nodes[*node as usize].capacity.into(), ..*claim }
    });
    let whole: Vec<_> = whole.collect();
    let levels = fair::levels(&whole, &pools.collect::<Vec<_>>());
    whole.into_iter().zip(levels).collect()
}

/// What a node may get of a workload; none if it takes nothing of it.
fn claim(world: &World, load: u32, node: u32) -> Option<Claim> {
    let entry = &world.nodes[node as usize];
    let pair = world.loads[load as usize].pairs.get(node as usize)?;
    let takes = entry.accepts && pair.units > 0;
    takes.then(|| Claim { weight: entry.weight.into(), cap: pair.cap.min(entry.capacity).into() })
}

/// How many slots of each workload are to be shared, given how many of each are kept where they are.
pub(super) fn pools(world: &World, kept: &[u32]) -> Vec<u32> {
    let mut pools = vec![0; world.loads.len()];
    for load in &world.order {
        let entry = &world.loads[*load as usize];
        let takers = world.live().filter(|node| world.nodes[*node as usize].accepts);
        let units = takers.map(|node| entry.pairs[node as usize].units).max().unwrap_or(0);
        let strayed = entry.pins.iter().filter(|(unit, pin)| {
            let place = super::world::Place { load: *load, unit: **unit };
            **unit < units && !world.is_kept(place) && !world.may_take(place, **pin)
        });
        pools[*load as usize] = units.saturating_sub(strayed.count() as u32 + kept[*load as usize]);
    }
    pools
}
