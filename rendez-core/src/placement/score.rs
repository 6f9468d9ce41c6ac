//! The score of a (slot, node) pair, exactly.
//!
//! Every node of a cluster computes scores for itself and all must agree bit for bit, on every platform and in
//! every release. So everything here is integer arithmetic on frozen hashes, and nothing here may ever change.
//! What scores are used for belongs elsewhere.

use std::cmp::Ordering;

use xxhash_rust::xxh64::xxh64;

/// Odd multiplier of the mixer.
const MIX: u64 = 0xD6E8_FEB8_6659_FD93;
/// Seed of node hashes, so that a node and a slot of the same text differ.
const NODE_SEED: u64 = 0x9E37_79B9_7F4A_7C15;
/// Steps of the table of logarithms.
const STEPS: usize = 1024;

/// `TABLE[i]` is log2(1 + i/1024) · 2^57, rounded down, with one step past the end.
static TABLE: [u64; STEPS + 1] = table();

const fn table() -> [u64; STEPS + 1] {
    let mut table = [0; STEPS + 1];
    let mut i = 0;
    while i < STEPS {
        let mut mantissa = (1u64 << 63) + ((i as u64) << 53);
        let mut bits = 0u64;
        let mut bit = 0;
        while bit < 57 {
            let square = (mantissa as u128) * (mantissa as u128);
            if square >> 127 == 1 {
                bits = bits << 1 | 1;
                mantissa = (square >> 64) as u64;
            } else {
                bits <<= 1;
                mantissa = (square >> 63) as u64;
            }
            bit += 1;
        }
        table[i] = bits;
        i += 1;
    }
    table[STEPS] = 1 << 57;
    table
}

/// The hash of a unit of a workload.
#[must_use]
pub fn slot_hash(workload: &str, unit: u32) -> u64 {
    let mut digits = [0; 10];
    slot_hash_of_text(workload, decimal(unit, &mut digits))
}

/// The hash of a slot whose unit is given as text. The library's units are numbers; other systems that
/// implement the same score may name theirs.
#[must_use]
pub fn slot_hash_of_text(workload: &str, unit: &[u8]) -> u64 {
    let mut bytes = Vec::with_capacity(workload.len() + 1 + unit.len());
    bytes.extend_from_slice(workload.as_bytes());
    bytes.push(0xFF);
    bytes.extend_from_slice(unit);
    xxh64(&bytes, 0)
}

/// The hash of a node's name.
#[must_use]
pub fn node_hash(node: &str) -> u64 {
    xxh64(node.as_bytes(), NODE_SEED)
}

/// The mixed hash of a pair: `h` of the score. The larger, the better, among nodes of equal weight.
#[inline]
#[must_use]
pub const fn pair_hash(slot: u64, node: u64) -> u64 {
    let x = slot ^ node;
    let x = (x ^ (x >> 32)).wrapping_mul(MIX);
    (x ^ (x >> 32)).wrapping_mul(MIX)
}

/// −log2(h / 2^64) · 2^57, nearly; falls as `h` rises.
#[must_use]
pub fn exponential(h: u64) -> u64 {
    let v = h | 1;
    let zeros = v.leading_zeros();
    let mantissa = v << zeros;
    let step = (mantissa >> 53) as usize & (STEPS - 1);
    let rest = mantissa & ((1 << 53) - 1);
    let slope = TABLE[step + 1] - TABLE[step];
    let part = (u128::from(slope) * u128::from(rest)) >> 53;
    // The part is at most the slope, which is far below 2^57.
    (u64::from(zeros + 1) << 57) - (TABLE[step] + part as u64)
}

/// How well a slot and a node go together: the mixed hash and the node's weight.
///
/// Ordered from worse to better. Two ratings that are equal in this order belong to pairs that only their names
/// can tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rating {
    /// The mixed hash.
    pub h: u64,
    /// The node's weight, at least 1.
    pub weight: u32,
}

impl Rating {
    /// The rating of this pair of hashes at this weight.
    #[inline]
    #[must_use]
    pub const fn of(slot: u64, node: u64, weight: u32) -> Self {
        Self { h: pair_hash(slot, node), weight }
    }

    /// The order of two ratings whose exponentials are known.
    #[inline]
    pub(super) fn cmp_with(&self, mine: u64, other: &Self, theirs: u64) -> Ordering {
        if self.weight == other.weight {
            return self.h.cmp(&other.h);
        }
        let mine = u128::from(mine) * u128::from(other.weight);
        let theirs = u128::from(theirs) * u128::from(self.weight);
        theirs.cmp(&mine).then(self.h.cmp(&other.h))
    }
}

impl Ord for Rating {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        if self.weight == other.weight {
            return self.h.cmp(&other.h);
        }
        self.cmp_with(exponential(self.h), other, exponential(other.h))
    }
}

impl PartialOrd for Rating {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

fn decimal(mut number: u32, digits: &mut [u8; 10]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &digits[at..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_the_one_that_everybody_has() {
        assert_eq!(TABLE[1], 0x0000_b893_29ba_1fa2);
        assert_eq!(TABLE[512], 0x012b_8034_73f7_ad0f);
        assert_eq!(TABLE[1023], 0x01ff_a3a5_1c9e_50f5);
        let fnv = TABLE.iter().fold(0xcbf2_9ce4_8422_2325u64, |sum, word| (sum ^ word).wrapping_mul(0x0100_0000_01b3));
        assert_eq!(fnv, 0x592e_bbf8_6013_bbb6);
        assert_eq!(exponential(0), 1 << 63);
        assert_eq!(exponential(u64::MAX), 1);
    }

    #[test]
    fn golden_vectors() {
        for (workload, unit, node, h, e) in [
            ("orders", "shard-000000", "worker-a", 0x6373_6dcd_c06d_b6e7, 196_585_742_442_730_037),
            ("orders", "shard-000001", "worker-a", 0x2cfd_ccc4_8be6_cc49, 361_501_784_660_837_015),
            ("orders", "shard-000001", "worker-b", 0x80dc_ac6d_9ac6_801e, 142_719_708_379_633_068),
            ("billing", "eu-west-1/17", "node-1", 0xffe3_8ef7_4547_1328, 90_253_387_499_764),
            ("w", "u", "n", 0x1418_2add_f04e_ffdc, 529_086_937_878_843_901),
            ("inbox", "0", "a", 0x49ff_f310_7fd5_2147, 258_045_519_776_767_847),
            ("inbox", "1", "a", 0x39f8_e504_4c37_999c, 308_796_994_433_772_315),
            ("inbox", "11", "worker-2", 0xf3e1_683e_bef9_d8df, 10_083_657_218_605_814),
            ("kafka.topic.A", "2", "host-7f3c", 0x1225_5a3d_8748_4ad5, 550_293_434_616_862_198),
        ] {
            let slot = slot_hash_of_text(workload, unit.as_bytes());
            assert_eq!(pair_hash(slot, node_hash(node)), h, "{workload} {unit} {node}");
            assert_eq!(exponential(h), e, "{workload} {unit} {node}");
            if let Ok(number) = unit.parse() {
                assert_eq!(slot_hash(workload, number), slot, "{workload} {unit}");
            }
        }
    }

    #[test]
    fn numbers_are_hashed_as_decimal_text() {
        for number in [0, 9, 10, 4_294_967_295u32] {
            assert_eq!(slot_hash("w", number), slot_hash_of_text("w", number.to_string().as_bytes()));
        }
    }

    #[test]
    fn the_exponential_falls_as_the_hash_rises() {
        let mut seed = 1u64;
        for _ in 0..20_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let h = pair_hash(seed, 7) >> (seed >> 59);
            assert!(exponential(h) >= exponential(h.saturating_add(1 + (seed >> 40))), "{h:x}");
        }
    }

    #[test]
    fn a_double_weight_wins_two_times_in_three() {
        let (a, b) = (node_hash("a"), node_hash("b"));
        let wins = (0..30_000u32).filter(|unit| {
            let slot = slot_hash("w", *unit);
            Rating::of(slot, a, 2) > Rating::of(slot, b, 1)
        });
        let wins = wins.count();
        assert!((19_700..20_300).contains(&wins), "{wins}");
    }
}
