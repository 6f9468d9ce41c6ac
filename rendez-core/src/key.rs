//! Which of so many parts a key belongs to. Programs that were built years apart must agree, so nothing here may ever change.

use xxhash_rust::xxh64::xxh64;

/// The part of a key, from 0 on: a router's shard, a ring's partition.
///
/// `floor(XXH64(key, seed = XXH64(seed, 0)) · parts / 2^64)`, over the bytes of both texts; an empty seed counts as the
/// number 0. This never changes. Keys spread evenly over any number of parts; another number of parts moves most keys.
///
/// ```
/// use rendez_core::shard_of_key;
///
/// assert_eq!(shard_of_key("user-123", 16, ""), 13);
/// assert_eq!(shard_of_key("user-123", 1024, "my-service"), 214);
/// ```
///
/// # Panics
/// Without parts.
#[must_use]
pub fn shard_of_key(key: &str, parts: u32, seed: &str) -> u32 {
    assert!(parts > 0, "there must be a part at least");
    let seed = if seed.is_empty() { 0 } else { xxh64(seed.as_bytes(), 0) };
    // Below `parts`, for the hash is below 2^64.
    ((u128::from(xxh64(key.as_bytes(), seed)) * u128::from(parts)) >> 64) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Worked out by another program, from the specification of XXH64. These never change: programs of different
    /// versions serve one cluster.
    #[test]
    fn vectors() {
        for (key, parts, seed, part) in [
            ("", 1024, "", 957),
            ("a", 1024, "", 841),
            ("user-123", 1024, "", 882),
            ("user-123", 16, "", 13),
            ("user-123", 1024, "my-service", 214),
            ("schlüssel 🔑", 1024, "", 711),
            ("user-123", 1, "x", 0),
            ("user-123", 1 << 20, "", 903_596),
        ] {
            assert_eq!(shard_of_key(key, parts, seed), part, "{key} of {parts}, {seed:?}");
        }
    }

    #[test]
    fn keys_spread_evenly() {
        for parts in [3, 16, 1000] {
            let mut counts = vec![0_u32; parts as usize];
            (0..1000 * parts).for_each(|key| counts[shard_of_key(&format!("user-{key}"), parts, "") as usize] += 1);
            // Six standard deviations around 1000.
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            assert!(*least > 1000 - 190 && *most < 1000 + 190, "{parts} parts: {least} to {most}");
        }
    }
}
