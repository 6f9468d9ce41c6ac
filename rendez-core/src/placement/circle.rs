//! The circle of the policy `ring`: where a virtual node and a partition stand on it.
//!
//! Every node of a cluster works these positions out for itself and all must agree bit for bit, on every platform and
//! in every release. So everything here is integer arithmetic on a frozen hash, and nothing here may ever change. Who
//! gets what belongs elsewhere.
//!
//! A circle has 2^64 positions. Units stand at even distances on it, and the whole row is turned by the workload's name,
//! so that the first units of many workloads do not meet on one node. Virtual nodes stand where XXH64 puts them: over all
//! 64 bits, so that no two layouts coincide by chance.

use xxhash_rust::xxh64::xxh64;

/// Seed of the hashes on a circle, so that they have nothing to do with those of scores.
const CIRCLE_SEED: u64 = 0xC2B2_AE3D_27D4_EB4F;

/// The most virtual nodes that one node has, by its weight: bounds what a plan costs.
pub const POINTS_MAX: u32 = 4096;

/// Where a virtual node stands: `XXH64(node ‖ 0xFF ‖ index in decimal, seed = 0xC2B2AE3D27D4EB4F)`.
///
/// ```
/// use rendez_core::placement::circle::virtual_node_position;
/// assert_eq!(virtual_node_position("node-1", 0), 0x2758_7d36_8604_6e84);
/// ```
#[must_use]
pub fn virtual_node_position(node: &str, index: u32) -> u64 {
    let index = index.to_string();
    let mut bytes = Vec::with_capacity(node.len() + 1 + index.len());
    bytes.extend_from_slice(node.as_bytes());
    bytes.push(0xFF);
    bytes.extend_from_slice(index.as_bytes());
    xxh64(&bytes, CIRCLE_SEED)
}

/// Where a workload's first unit stands: `XXH64(workload, seed = 0xC2B2AE3D27D4EB4F)`.
#[must_use]
pub fn first_position(workload: &str) -> u64 {
    xxh64(workload.as_bytes(), CIRCLE_SEED)
}

/// How far clockwise of the first unit of so many another one stands: `floor(unit · 2^64 / units)`.
///
/// # Panics
/// Unless the unit is below the units.
#[must_use]
pub const fn distance_from_first(unit: u32, units: u32) -> u64 {
    assert!(unit < units, "there is no such unit");
    // Below 2^64, for the unit is below the units.
    (((unit as u128) << 64) / units as u128) as u64
}

/// Where a unit stands: the first one's position and the distance, around the circle.
#[must_use]
pub fn unit_position(workload: &str, unit: u32, units: u32) -> u64 {
    first_position(workload).wrapping_add(distance_from_first(unit, units))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// These never change: programs of different versions take part in one ring.
    #[test]
    fn golden_vectors() {
        for (node, index, position) in VIRTUAL_NODES {
            assert_eq!(virtual_node_position(node, *index), *position, "{node} {index}");
        }
        for (workload, unit, units, position) in UNITS {
            assert_eq!(unit_position(workload, *unit, *units), *position, "{workload} {unit} of {units}");
        }
    }

    /// Worked out by another program, from the specification of XXH64.
    const VIRTUAL_NODES: &[(&str, u32, u64)] = &[
        ("a", 0, 0x249f_5346_4c26_30c5),
        ("a", 1, 0xc760_a293_7cad_0a72),
        ("node-1", 0, 0x2758_7d36_8604_6e84),
        ("node-1", 7, 0x64e7_0777_2838_1730),
        ("node-1", 11, 0x6d72_97ad_5549_0efe),
        ("worker-eu-west-1/2.example.internal", 4095, 0x0892_1d80_b291_b559),
        ("knoten-ü🔑", 3, 0xf529_1b3d_61b5_1395),
    ];
    const UNITS: &[(&str, u32, u32, u64)] = &[
        ("partitions", 0, 1024, 0xc1ea_ac34_106b_9f22),
        ("partitions", 1, 1024, 0xc22a_ac34_106b_9f22),
        ("partitions", 1023, 1024, 0xc1aa_ac34_106b_9f22),
        ("inbox", 2, 3, 0xa343_c5dd_1f4d_35a6),
        ("inbox", 0, 1, 0xf899_1b32_74a2_8afc),
        ("inbox", 999_999, 1_000_000, 0xf899_0a6b_7d01_d50e),
    ];

    #[test]
    fn units_stand_at_even_distances() {
        for units in [1, 3, 1024, 1_000_000] {
            let step = u64::MAX / u64::from(units);
            for unit in (1..units).step_by(1 + units as usize / 100) {
                let gap = distance_from_first(unit, units) - distance_from_first(unit - 1, units);
                assert!(gap == step || gap == step + 1, "{unit} of {units}");
            }
        }
    }
}
