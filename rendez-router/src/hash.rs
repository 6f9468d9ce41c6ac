//! Which shards a node of a fixed list serves. Which shard a key belongs to, [`shard_of_key`] says: a ring's partitions are found by
//! the same rule.
//!
//! Both are part of the crate's interface: programs that were built years apart must agree. They rest on XXH64, whose
//! output is frozen by its specification.

pub use rendez_core::shard_of_key;
use xxhash_rust::xxh64::xxh64;

/// The most shards.
pub const SHARDS_MAX: u32 = 1 << 20;

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

#[cfg(test)]
mod tests {
    use super::*;

    /// Worked out by another program, from the specification of XXH64. These never change: programs of different versions serve
    /// one cluster.
    #[test]
    fn vectors() {
        assert_eq!(shards_of_node("b", &["a", "b", "c"], 16, ""), [0, 3, 6, 8, 10, 11]);
        assert_eq!(shards_of_node("b", &["a", "b", "c"], 16, "seed"), [0, 13]);
        // The same rule as a ring's, under this crate's name.
        assert_eq!(shard_of_key("user-123", 1024, "my-service"), 214);
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
