//! The names of buckets and of the keys in them.
//!
//! Nothing but names belongs here; what stands in the keys is `encode.rs`'s business.

use rendez_core::{ClusterName, NodeId, RecordKey, SessionId, Slot, WorkloadName};
use xxhash_rust::xxh64::xxh64;

/// The longest name of a cluster, once escaped, that stands in the bucket's name as it is: file systems and servers
/// permit 255 bytes in all.
const BUCKET_PART_MAX: usize = 160;

/// What is left of a longer one, before its hash.
const BUCKET_START_MAX: usize = 60;

/// One cluster's bucket, and the subjects of its keys.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    /// The stream behind the bucket.
    pub(crate) stream: String,
    /// What all subjects begin with.
    base: String,
}

/// What a key is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Name {
    Meta,
    Sync,
    Quiet,
    Session(NodeId),
    Slot(Slot),
    Record(RecordKey),
}

impl Keys {
    /// The prefix holds no underscore, so it ends at the first one.
    pub(crate) fn new(prefix: &str, cluster: &ClusterName) -> Self {
        let bucket = format!("{prefix}_{}", bucket_part(cluster.as_str()));
        Self { stream: format!("KV_{bucket}"), base: format!("$KV.{bucket}.") }
    }

    /// The subjects of all keys.
    pub(crate) fn all(&self) -> String {
        format!("{}>", self.base)
    }

    pub(crate) fn subject(&self, name: &Name) -> String {
        let base = &self.base;
        match name {
            Name::Meta => format!("{base}meta"),
            Name::Sync => format!("{base}sync"),
            Name::Quiet => format!("{base}quiet"),
            Name::Session(node) => format!("{base}session.{}", escape(node.as_str())),
            Name::Slot(slot) => format!("{base}slot.{}", slot_part(slot)),
            Name::Record(RecordKey::Settings) => format!("{base}record.settings"),
            Name::Record(RecordKey::Workload(name)) => format!("{base}record.workload.{}", escape(name.as_str())),
            Name::Record(RecordKey::Node(name)) => format!("{base}record.node.{}", escape(name.as_str())),
            Name::Record(RecordKey::Pin(slot)) => format!("{base}record.pin.{}", slot_part(slot)),
        }
    }

    /// What a subject of this bucket is; nothing if it is none that this layout knows.
    pub(crate) fn parse(&self, subject: &str) -> Option<Name> {
        let rest = subject.strip_prefix(&self.base)?;
        let (kind, name) = rest.split_once('.').unwrap_or((rest, ""));
        Some(match (kind, name) {
            ("meta", "") => Name::Meta,
            ("sync", "") => Name::Sync,
            ("quiet", "") => Name::Quiet,
            ("session", node) => Name::Session(unescape(node)?.try_into().ok()?),
            ("slot", slot) => Name::Slot(parse_slot(slot)?),
            ("record", "settings") => Name::Record(RecordKey::Settings),
            ("record", name) => {
                let (kind, name) = name.split_once('.')?;
                Name::Record(match kind {
                    "workload" => RecordKey::Workload(unescape(name)?.try_into().ok()?),
                    "node" => RecordKey::Node(unescape(name)?.try_into().ok()?),
                    "pin" => RecordKey::Pin(parse_slot(name)?),
                    _ => return None,
                })
            }
            _ => return None,
        })
    }
}

/// A fresh session's id: the sequence that its opening was decided at, and chance. All that was written to the node's key
/// up to there is older than the session; and later sessions have higher ids.
pub(crate) fn session_id(decided_at: u64) -> SessionId {
    SessionId::from_bits(u128::from(decided_at) << 64 | u128::from(fastrand::u64(..)))
}

/// Everything that a session has written is above this sequence.
pub(crate) fn decided_at(session: SessionId) -> u64 {
    u64::try_from(session.bits() >> 64).unwrap_or(u64::MAX)
}

/// What may stand in a bucket's name: letters, digits, `-` and `_`. A long name is cut, with a hash of the whole; should
/// two ever meet, the name that the bucket's `meta` holds tells them apart.
fn bucket_part(cluster: &str) -> String {
    let escaped = escape_with(cluster, b"-", '_');
    if escaped.len() <= BUCKET_PART_MAX {
        return escaped;
    }
    let bytes = cluster.as_bytes();
    // An escaped name has two digits after each underscore: this one cannot be one.
    format!("{}__{:016x}{:016x}", &escaped[..BUCKET_START_MAX], xxh64(bytes, 0), xxh64(bytes, 1))
}

fn slot_part(slot: &Slot) -> String {
    format!("{}.{}", escape(slot.workload.as_str()), slot.unit)
}

fn parse_slot(text: &str) -> Option<Slot> {
    let (workload, unit) = text.split_once('.')?;
    Some(Slot::new(WorkloadName::new(unescape(workload)?).ok()?, unit.parse().ok()?))
}

/// Everything outside `A-Za-z0-9_/-` becomes `=XX`: what keys of buckets may hold, without the dot that parts them.
fn escape(name: &str) -> String {
    escape_with(name, b"_/-", '=')
}

fn escape_with(name: &str, plain: &[u8], mark: char) -> String {
    let mut escaped = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || plain.contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("{mark}{byte:02X}"));
        }
    }
    escaped
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut parts = text.split('=');
    bytes.extend_from_slice(parts.next()?.as_bytes());
    for part in parts {
        bytes.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name() -> impl Strategy<Value = String> {
        "[^\\p{Cc}]{1,60}".prop_filter("a name's bound", |name| name.len() <= 200)
    }

    fn keys(cluster: &str) -> Keys {
        Keys::new("rendez", &ClusterName::new(cluster).unwrap())
    }

    #[test]
    fn keys_are_as_documented() {
        let keys = keys("c/d é");
        assert_eq!(keys.stream, "KV_rendez_c_2Fd_20_C3_A9");
        assert_eq!(keys.subject(&Name::Meta), "$KV.rendez_c_2Fd_20_C3_A9.meta");
        let slot: Slot = "a.b>*/7".parse().unwrap();
        assert_eq!(keys.subject(&Name::Slot(slot)), "$KV.rendez_c_2Fd_20_C3_A9.slot.a=2Eb=3E=2A.7");
    }

    #[test]
    fn what_a_session_wrote_is_above_the_sequence_in_its_id() {
        assert_eq!(decided_at(session_id(7)), 7);
        assert_ne!(session_id(7), session_id(7));
    }

    proptest! {
        #[test]
        fn different_clusters_have_different_buckets(a in name(), b in name()) {
            prop_assert_eq!(keys(&a).stream == keys(&b).stream, a == b);
            let stream = keys(&a).stream;
            prop_assert!(stream.len() <= 255);
            prop_assert!(stream.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')));
        }

        #[test]
        fn a_prefix_has_buckets_of_its_own(a in name(), b in name(), p in "[a-z-]{1,5}", q in "[a-z-]{1,5}") {
            let of = |prefix: &str, name: &str| Keys::new(prefix, &ClusterName::new(name).unwrap()).stream;
            prop_assert_eq!(of(&p, &a) == of(&q, &b), p == q && a == b);
        }

        #[test]
        fn names_come_back_as_they_were(workload in name(), node in name(), unit in 0u32..1_000_000) {
            let keys = keys("c");
            let slot = Slot::new(WorkloadName::new(workload).unwrap(), unit);
            let node: NodeId = node.as_str().try_into().unwrap();
            let all = [
                Name::Meta,
                Name::Sync,
                Name::Quiet,
                Name::Session(node.clone()),
                Name::Slot(slot.clone()),
                Name::Record(RecordKey::Settings),
                Name::Record(RecordKey::Workload(slot.workload.clone())),
                Name::Record(RecordKey::Node(node)),
                Name::Record(RecordKey::Pin(slot)),
            ];
            for name in all {
                let subject = keys.subject(&name);
                let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"$_/=-.".contains(&byte);
                prop_assert!(subject.bytes().all(plain) && !subject.contains(".."));
                prop_assert_eq!(keys.parse(&subject), Some(name));
            }
        }
    }
}
