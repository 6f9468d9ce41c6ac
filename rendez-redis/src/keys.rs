//! The names of a cluster's keys. All bear one hash tag, so that a Redis Cluster keeps them on one node.
//!
//! Nothing but names belongs here; what stands in the keys is `encode.rs`'s business.

use rendez_core::{ClusterName, RecordKey, Slot, WorkloadName};

/// Between the parts of a field's name: names cannot hold a control character.
pub(crate) const SEPARATOR: char = '\u{1f}';

/// How many keys a cluster has.
pub(crate) const KEYS: usize = 7;

const KEY_NAMES: [&str; KEYS] = ["meta", "sessions", "expiry", "slots", "records", "log", "checkpoints"];

/// A cluster's keys, in the order in which scripts take them, and its channel.
pub(crate) struct ClusterKeys {
    pub(crate) keys: [String; KEYS],
    pub(crate) channel: String,
}

impl ClusterKeys {
    pub(crate) fn new(prefix: &str, cluster: &ClusterName) -> Self {
        let base = format!("{}:{{{}}}:", escape(prefix), escape(cluster.as_str()));
        Self { keys: KEY_NAMES.map(|name| format!("{base}{name}")), channel: format!("{base}hints") }
    }
}

/// Everything outside `A-Za-z0-9_.-` becomes `%XX`, so that different names stay different and nothing in them is a
/// brace, a colon or a glob.
fn escape(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-') {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

/// The field of a slot, in `slots` and `checkpoints`.
pub(crate) fn slot_field(slot: &Slot) -> String {
    format!("{}{SEPARATOR}{}", slot.workload, slot.unit)
}

/// The slot of a field.
pub(crate) fn parse_slot_field(field: &str) -> Option<Slot> {
    let (workload, unit) = field.rsplit_once(SEPARATOR)?;
    Some(Slot::new(WorkloadName::new(workload).ok()?, unit.parse().ok()?))
}

/// The field of an operator's record, in `records`.
pub(crate) fn record_field(key: &RecordKey) -> String {
    match key {
        RecordKey::Settings => "settings".to_owned(),
        RecordKey::Workload(workload) => format!("workload{SEPARATOR}{workload}"),
        RecordKey::Node(node) => format!("node{SEPARATOR}{node}"),
        RecordKey::Pin(slot) => format!("pin{SEPARATOR}{}", slot_field(slot)),
    }
}

/// The record's name of a field.
pub(crate) fn parse_record_field(field: &str) -> Option<RecordKey> {
    match field.split_once(SEPARATOR) {
        None if field == "settings" => Some(RecordKey::Settings),
        Some(("workload", name)) => Some(RecordKey::Workload(name.try_into().ok()?)),
        Some(("node", name)) => Some(RecordKey::Node(name.try_into().ok()?)),
        Some(("pin", slot)) => Some(RecordKey::Pin(parse_slot_field(slot)?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name() -> impl Strategy<Value = String> {
        "[^\\p{Cc}]{1,40}".prop_filter("a name's bound", |name| name.len() <= 200)
    }

    #[test]
    fn a_key_has_one_hash_tag_whatever_the_names_are() {
        let keys = ClusterKeys::new("a:{b}", &ClusterName::new("x}:{y é").unwrap());
        assert_eq!(keys.keys[0], "a%3A%7Bb%7D:{x%7D%3A%7By%20%C3%A9}:meta");
        assert_eq!(keys.channel, "a%3A%7Bb%7D:{x%7D%3A%7By%20%C3%A9}:hints");
    }

    proptest! {
        #[test]
        fn different_clusters_and_prefixes_share_no_key(a in name(), b in name(), p in name(), q in name()) {
            let (one, two) = (ClusterName::new(&a).unwrap(), ClusterName::new(&b).unwrap());
            let same = ClusterKeys::new(&p, &one).keys == ClusterKeys::new(&q, &two).keys;
            prop_assert_eq!(same, (a, p) == (b, q));
        }

        #[test]
        fn fields_come_back_as_they_were(workload in name(), node in name(), unit in 0u32..1_000_000) {
            let workload = WorkloadName::new(workload).unwrap();
            let slot = Slot::new(workload.clone(), unit);
            prop_assert_eq!(parse_slot_field(&slot_field(&slot)), Some(slot.clone()));
            for key in [
                RecordKey::Settings,
                RecordKey::Workload(workload.clone()),
                RecordKey::Node(node.as_str().try_into().unwrap()),
                RecordKey::Pin(slot),
            ] {
                prop_assert_eq!(parse_record_field(&record_field(&key)), Some(key));
            }
        }
    }
}
