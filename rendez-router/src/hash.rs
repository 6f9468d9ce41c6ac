//! Which shard a key belongs to, and which shards a node of a fixed list serves.
//!
//! Both are part of the crate's interface: programs that were built years apart must agree. They rest on XXH64, whose
//! output is frozen by its specification.

use xxhash_rust::xxh64::xxh64;

/// The most shards.
pub const SHARDS_MAX: u32 = 1 << 20;

/// The shard of a key, from 0 on.
///
/// `floor(XXH64(key, seed = XXH64(seed, 0)) · shards / 2^64)`, over the bytes of both texts; an empty seed counts as the
/// number 0. This never changes. Keys spread evenly over any number of shards; another number of shards moves most keys.
///
/// ```
/// use rendez_router::shard_of_key;
///
/// assert_eq!(shard_of_key("user-123", 16, ""), 13);
/// assert_eq!(shard_of_key("user-123", 1024, "my-service"), 214);
/// ```
///
/// # Panics
/// Without shards.
#[must_use]
pub fn shard_of_key(key: &str, shards: u32, seed: &str) -> u32 {
    assert!(shards > 0, "there must be a shard at least");
    scale(xxh64(key.as_bytes(), number(seed)), shards)
}

/// The shards that a node serves, of a fixed list of nodes: each shard belongs to the node with the highest
/// `XXH64(node, seed = XXH64(shard as 4 bytes little-endian, seed = XXH64(seed, 0)))`, and of equal ones to the node whose
/// name comes first.
///
/// All who have the same list agree, in whatever order it stands. A node that joins or leaves changes only the shards
/// that it gets or had.
///
/// Nobody notices here that a node is gone: the list is fixed. Leases are what notices.
///
/// ```
/// use rendez_router::shards_of_node;
///
/// let nodes = ["node-1", "node-2", "node-3"];
/// let all: usize = nodes.iter().map(|node| shards_of_node(node, &nodes, 256, "").len()).sum();
/// assert_eq!(all, 256);
/// ```
#[must_use]
pub fn shards_of_node<N: AsRef<str>>(node: &str, nodes: &[N], shards: u32, seed: &str) -> Vec<u32> {
    let seed = number(seed);
    let score = |shard: u32, node: &str| xxh64(node.as_bytes(), xxh64(&shard.to_le_bytes(), seed));
    let serves = |shard: &u32| {
        let best = nodes.iter().map(AsRef::as_ref).max_by_key(|name| (score(*shard, name), std::cmp::Reverse(*name)));
        best == Some(node)
    };
    (0..shards).filter(serves).collect()
}

fn number(seed: &str) -> u64 {
    if seed.is_empty() { 0 } else { xxh64(seed.as_bytes(), 0) }
}

fn scale(hash: u64, shards: u32) -> u32 {
    // Below `shards`, for the hash is below 2^64.
    ((u128::from(hash) * u128::from(shards)) >> 64) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// These never change: programs of different versions serve one cluster.
    #[test]
    fn vectors() {
        let shard = |key, shards, seed| shard_of_key(key, shards, seed);
        assert_eq!(
            [
                shard("", 1024, ""),
                shard("a", 1024, ""),
                shard("user-123", 1024, ""),
                shard("user-123", 16, ""),
                shard("user-123", 1024, "my-service"),
                shard("schlüssel 🔑", 1024, ""),
                shard("user-123", 1, "x"),
                shard("user-123", SHARDS_MAX, ""),
            ],
            VECTORS
        );
        assert_eq!(shards_of_node("b", &["a", "b", "c"], 16, ""), NODE_B);
        assert_eq!(shards_of_node("b", &["a", "b", "c"], 16, "seed"), NODE_B_SEEDED);
    }

    /// Worked out by another program, from the specification of XXH64.
    const VECTORS: [u32; 8] = [957, 841, 882, 13, 214, 711, 0, 903_596];
    const NODE_B: &[u32] = &[0, 3, 6, 8, 10, 11];
    const NODE_B_SEEDED: &[u32] = &[0, 13];

    #[test]
    fn keys_spread_evenly() {
        for shards in [3, 16, 1000] {
            let mut counts = vec![0_u32; shards as usize];
            let keys = 1000 * shards;
            (0..keys).for_each(|key| counts[shard_of_key(&format!("user-{key}"), shards, "") as usize] += 1);
            // Six standard deviations around 1000.
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            assert!(*least > 1000 - 190 && *most < 1000 + 190, "{shards} shards: {least} to {most}");
        }
    }

    #[test]
    fn every_shard_has_one_node_whatever_the_order() {
        let nodes = ["node-2", "node-0", "node-1"];
        let mut owners = vec![0; 256];
        for node in nodes {
            let shards = shards_of_node(node, &nodes, 256, "seed");
            assert_eq!(shards, shards_of_node(node, &["node-0", "node-1", "node-2"], 256, "seed"));
            assert!((60..110).contains(&shards.len()), "{node}: {}", shards.len());
            shards.iter().for_each(|shard| owners[*shard as usize] += 1);
        }
        assert!(owners.iter().all(|count| *count == 1));
        assert_eq!(shards_of_node("stranger", &nodes, 256, ""), [0_u32; 0]);
    }

    #[test]
    fn who_leaves_moves_only_its_own() {
        let before = ["a", "b", "c", "d"];
        for node in &before[..3] {
            let (old, new) = (shards_of_node(node, &before, 512, ""), shards_of_node(node, &before[..3], 512, ""));
            assert!(old.iter().all(|shard| new.contains(shard)), "{node}");
        }
    }
}
