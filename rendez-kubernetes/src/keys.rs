//! The names and labels of a cluster's Leases.
//!
//! A Lease is called `rendez.CLUSTER.KIND.NAME`. A name that fits a part of a DNS name stands there as it is; any other
//! as a readable rest and 128 bits of hash. The full name stands in an annotation and is compared whenever a Lease is
//! read, so that two names never share one, whatever their hashes do. Nothing but names belongs here.

use rendez_core::{ClusterName, NodeId, RecordKey, Slot, WorkloadName};
use xxhash_rust::xxh64::xxh64;

/// What a label and an annotation of this store begin with.
macro_rules! own {
    ($name:literal) => {
        concat!("rendez.dev/", $name)
    };
}

/// The label with the cluster's name.
pub(crate) const CLUSTER_LABEL: &str = own!("cluster");
/// The label with what a Lease is.
pub(crate) const KIND_LABEL: &str = own!("kind");
/// The label with a node's session.
pub(crate) const SESSION_LABEL: &str = own!("session");
/// The annotation with the cluster's full name.
pub(crate) const CLUSTER: &str = own!("cluster-name");
/// The annotation with the full name of what a Lease is of.
pub(crate) const NAME: &str = own!("name");
/// The annotation with the record, as JSON.
pub(crate) const RECORD: &str = own!("record");
/// The annotation with a slot's checkpoint, in hexadecimal digits.
pub(crate) const CHECKPOINT: &str = own!("checkpoint");
/// The annotation with the version that has written the record as it stands; absent where this one has.
pub(crate) const REVISION: &str = own!("revision");

/// The longest part of a name that stands as it is, and the longest readable rest before a hash.
const PART_BYTES_MAX: usize = 40;
/// The same for labels, which have 63 bytes: with a dot and 32 digits of hash, this much is left.
const LABEL_BYTES_MAX: usize = 30;
/// Another beginning for the second half of a hash.
const SECOND_SEED: u64 = 0x9E37_79B9_7F4A_7C15;

/// What a Lease is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Name {
    Meta,
    /// The node and its session.
    Node(NodeId),
    Slot(Slot),
    Record(RecordKey),
}

impl Name {
    /// The label, and the part of the Lease's name.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Node(_) => "node",
            Self::Slot(_) => "slot",
            Self::Record(RecordKey::Settings) => "settings",
            Self::Record(RecordKey::Workload(_)) => "workload",
            Self::Record(RecordKey::Node(_)) => "wish",
            Self::Record(RecordKey::Pin(_)) => "pin",
        }
    }

    /// The full name for the annotation.
    pub(crate) fn full(&self) -> String {
        match self {
            Self::Meta | Self::Record(RecordKey::Settings) => String::new(),
            Self::Node(node) | Self::Record(RecordKey::Node(node)) => node.to_string(),
            Self::Slot(slot) | Self::Record(RecordKey::Pin(slot)) => format!("{}/{}", slot.workload, slot.unit),
            Self::Record(RecordKey::Workload(workload)) => workload.to_string(),
        }
    }

    fn parse(kind: &str, full: &str) -> Option<Self> {
        Some(match kind {
            "meta" if full.is_empty() => Self::Meta,
            "settings" if full.is_empty() => Self::Record(RecordKey::Settings),
            "node" => Self::Node(NodeId::new(full).ok()?),
            "wish" => Self::Record(RecordKey::Node(NodeId::new(full).ok()?)),
            "workload" => Self::Record(RecordKey::Workload(WorkloadName::new(full).ok()?)),
            "slot" => Self::Slot(slot(full)?),
            "pin" => Self::Record(RecordKey::Pin(slot(full)?)),
            _ => return None,
        })
    }
}

fn slot(full: &str) -> Option<Slot> {
    let (workload, unit) = full.rsplit_once('/')?;
    Some(Slot::new(WorkloadName::new(workload).ok()?, unit.parse().ok()?))
}

/// The names of one cluster's Leases.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    cluster: ClusterName,
    base: String,
    label: String,
}

impl Keys {
    pub(crate) fn new(cluster: &ClusterName) -> Self {
        Self {
            cluster: cluster.clone(),
            base: format!("rendez.{}", part(cluster.as_str())),
            label: label(cluster.as_str()),
        }
    }

    /// The cluster's full name.
    pub(crate) fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// The value of the cluster's label.
    pub(crate) fn cluster_label(&self) -> &str {
        &self.label
    }

    /// The selector of all of the cluster's Leases.
    pub(crate) fn selector(&self) -> String {
        format!("{CLUSTER_LABEL}={}", self.label)
    }

    /// The name of a Lease.
    pub(crate) fn lease(&self, name: &Name) -> String {
        let (base, kind) = (&self.base, name.kind());
        match name {
            Name::Meta | Name::Record(RecordKey::Settings) => format!("{base}.{kind}"),
            Name::Node(node) | Name::Record(RecordKey::Node(node)) => format!("{base}.{kind}.{}", part(node.as_str())),
            Name::Slot(slot) | Name::Record(RecordKey::Pin(slot)) => {
                format!("{base}.{kind}.{}.{}", part(slot.workload.as_str()), slot.unit)
            }
            Name::Record(RecordKey::Workload(workload)) => format!("{base}.{kind}.{}", part(workload.as_str())),
        }
    }

    pub(crate) fn meta(&self) -> String {
        self.lease(&Name::Meta)
    }

    pub(crate) fn slot(&self, slot: &Slot) -> String {
        self.lease(&Name::Slot(slot.clone()))
    }

    pub(crate) fn record(&self, key: &RecordKey) -> String {
        self.lease(&Name::Record(key.clone()))
    }

    /// What a Lease is of which these are the name, the cluster's and its own full name, and the kind. Nothing if they do
    /// not belong together.
    pub(crate) fn parse(&self, lease: &str, cluster: &str, kind: &str, full: &str) -> Option<Name> {
        let name = Name::parse(kind, full).filter(|_| cluster == self.cluster.as_str())?;
        (self.lease(&name) == lease).then_some(name)
    }
}

fn hash(name: &str) -> String {
    format!("{:016x}{:016x}", xxh64(name.as_bytes(), 0), xxh64(name.as_bytes(), SECOND_SEED))
}

/// A readable rest: what is kept of a name, with dashes for all other characters, none doubled and none at the ends.
fn rest(name: &str, kept: impl Fn(char) -> bool, most: usize) -> String {
    let mut rest = String::new();
    for character in name.chars() {
        let next = if kept(character) { character } else { '-' };
        if !(next == '-' && (rest.is_empty() || rest.ends_with('-'))) {
            rest.push(next);
        }
        if rest.len() == most {
            break;
        }
    }
    rest.truncate(rest.trim_end_matches('-').len());
    if rest.is_empty() { "x".to_owned() } else { rest }
}

/// A name as a part of a DNS name. No plain part holds two dashes, every other one does.
fn part(name: &str) -> String {
    let plain = |character: char| character.is_ascii_lowercase() || character.is_ascii_digit();
    let is_plain = name.len() <= PART_BYTES_MAX
        && !name.contains("--")
        && name.starts_with(plain)
        && name.ends_with(plain)
        && name.chars().all(|character| plain(character) || character == '-');
    if is_plain { name.to_owned() } else { format!("{}--{}", rest(name, plain, PART_BYTES_MAX), hash(name)) }
}

/// A name as a label's value. No plain one holds a dot, every other one does.
fn label(name: &str) -> String {
    let ends = |character: char| character.is_ascii_alphanumeric();
    let is_plain = name.len() <= PART_BYTES_MAX
        && name.starts_with(ends)
        && name.ends_with(ends)
        && name.chars().all(|character| ends(character) || matches!(character, '-' | '_'));
    if is_plain { name.to_owned() } else { format!("{}.{}", rest(name, ends, LABEL_BYTES_MAX), hash(name)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name() -> impl Strategy<Value = String> {
        let any = "[^\\p{Cc}]{1,40}".prop_filter("a name's bound", |name| name.len() <= 200);
        prop_oneof![any, "[a-z0-9-]{1,60}", "[A-Za-z0-9._-]{1,50}"]
    }

    fn is_subdomain(name: &str) -> bool {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        name.len() <= 253
            && name.split('.').all(|part| {
                part.bytes().next().is_some_and(plain)
                    && part.bytes().next_back().is_some_and(plain)
                    && part.bytes().all(|byte| plain(byte) || byte == b'-')
            })
    }

    #[test]
    fn names_and_labels_are_as_documented() {
        let keys = Keys::new(&ClusterName::new("orders").unwrap());
        assert_eq!(keys.meta(), "rendez.orders.meta");
        assert_eq!(keys.lease(&Name::Node("worker-a".try_into().unwrap())), "rendez.orders.node.worker-a");
        assert_eq!(keys.slot(&"inbox/3".parse().unwrap()), "rendez.orders.slot.inbox.3");
        assert_eq!(keys.selector(), "rendez.dev/cluster=orders");
        let odd = Keys::new(&ClusterName::new("Orders of é/1").unwrap());
        let name = odd.slot(&"a--b/7".parse().unwrap());
        let parts: Vec<&str> = name.split('.').collect();
        assert!(parts[1].starts_with("rders-of-1--") && parts[3].starts_with("a-b--"), "{name}");
        assert!(odd.cluster_label().starts_with("Orders-of-1."), "{}", odd.cluster_label());
    }

    #[test]
    fn what_does_not_belong_together_is_nothing() {
        let keys = Keys::new(&ClusterName::new("c").unwrap());
        let at = "rendez.c.node.a";
        assert_eq!(keys.parse(at, "c", "node", "a"), Some(Name::Node("a".try_into().unwrap())));
        for (cluster, kind, full) in [("d", "node", "a"), ("c", "wish", "a"), ("c", "node", "b"), ("c", "what", "a")] {
            assert_eq!(keys.parse(at, cluster, kind, full), None, "{cluster} {kind} {full}");
        }
    }

    proptest! {
        #[test]
        fn a_names_part_is_valid_and_no_other_names(a in name(), b in name()) {
            prop_assert!(is_subdomain(&part(&a)));
            prop_assert_eq!(part(&a) == part(&b), a == b);
            let value = label(&a);
            let ends = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
            prop_assert!(value.len() <= 63 && ends(value.bytes().next()) && ends(value.bytes().next_back()));
            prop_assert!(value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)));
            prop_assert_eq!(label(&a) == label(&b), a == b);
        }

        #[test]
        fn names_come_back_as_they_were(cluster in name(), workload in name(), node in name(), unit in 0u32..1_000_000) {
            let keys = Keys::new(&ClusterName::new(&cluster).unwrap());
            let slot = Slot::new(WorkloadName::new(workload).unwrap(), unit);
            let node: NodeId = node.as_str().try_into().unwrap();
            for name in [
                Name::Meta,
                Name::Node(node.clone()),
                Name::Slot(slot.clone()),
                Name::Record(RecordKey::Settings),
                Name::Record(RecordKey::Workload(slot.workload.clone())),
                Name::Record(RecordKey::Node(node)),
                Name::Record(RecordKey::Pin(slot)),
            ] {
                let lease = keys.lease(&name);
                prop_assert!(is_subdomain(&lease), "{}", lease);
                prop_assert_eq!(keys.parse(&lease, &cluster, name.kind(), &name.full()), Some(name));
            }
        }
    }
}
