//! The names of a cluster's keys.
//!
//! Nothing but names belongs here; what stands in the keys is `encode.rs`'s business.

use rendez_core::{ClusterName, NodeId, RecordKey, SessionId, Slot, WorkloadName};

/// One cluster's keys: `PREFIX//CLUSTER/…`. No prefix has an empty part and no escaped name a slash, so the two slashes
/// keep the clusters of one prefix apart from those of another that begins with it.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    base: String,
}

/// What a key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Name {
    Meta,
    Head,
    Quiet,
    Session(SessionId),
    Node,
    Slot(Slot),
    Record(RecordKey),
}

impl Keys {
    pub(crate) fn new(prefix: &str, cluster: &ClusterName) -> Self {
        let prefix: Vec<String> = prefix.split('/').map(escape).collect();
        Self { base: format!("{}//{}/", prefix.join("/"), escape(cluster.as_str())) }
    }

    /// Everything that is mirrored stands in this range; checkpoints stand before it.
    pub(crate) fn range(&self) -> (String, String) {
        // `0` is the byte after `/`.
        (self.key("d"), format!("{}0", &self.base[..self.base.len() - 1]))
    }

    pub(crate) fn sessions(&self) -> (String, String) {
        (self.key("session/"), self.key("session0"))
    }

    fn key(&self, rest: &str) -> String {
        format!("{}{rest}", self.base)
    }

    pub(crate) fn meta(&self) -> String {
        self.key("meta")
    }

    pub(crate) fn head(&self) -> String {
        self.key("head")
    }

    pub(crate) fn quiet(&self) -> String {
        self.key("quiet")
    }

    pub(crate) fn session(&self, id: SessionId) -> String {
        self.key(&format!("session/{id}"))
    }

    pub(crate) fn node(&self, node: &NodeId) -> String {
        self.key(&format!("node/{}", escape(node.as_str())))
    }

    pub(crate) fn slot(&self, slot: &Slot) -> String {
        self.key(&format!("slot/{}", slot_part(slot)))
    }

    pub(crate) fn checkpoint(&self, slot: &Slot) -> String {
        self.key(&format!("checkpoint/{}", slot_part(slot)))
    }

    pub(crate) fn record(&self, key: &RecordKey) -> String {
        match key {
            RecordKey::Settings => self.key("record/settings"),
            RecordKey::Workload(name) => self.key(&format!("record/workload/{}", escape(name.as_str()))),
            RecordKey::Node(name) => self.key(&format!("record/node/{}", escape(name.as_str()))),
            RecordKey::Pin(slot) => self.key(&format!("record/pin/{}", slot_part(slot))),
        }
    }

    /// What a key of this cluster is; nothing if it is none that this layout knows.
    pub(crate) fn parse(&self, key: &[u8]) -> Option<Name> {
        let rest = std::str::from_utf8(key).ok()?.strip_prefix(&self.base)?;
        let (kind, name) = rest.split_once('/').unwrap_or((rest, ""));
        Some(match (kind, name) {
            ("meta", "") => Name::Meta,
            ("head", "") => Name::Head,
            ("quiet", "") => Name::Quiet,
            ("session", id) => Name::Session(id.parse().ok()?),
            ("node", _) => Name::Node,
            ("slot", slot) => Name::Slot(parse_slot(slot)?),
            ("record", "settings") => Name::Record(RecordKey::Settings),
            ("record", name) => {
                let (kind, name) = name.split_once('/')?;
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

fn slot_part(slot: &Slot) -> String {
    format!("{}/{}", escape(slot.workload.as_str()), slot.unit)
}

fn parse_slot(text: &str) -> Option<Slot> {
    let (workload, unit) = text.split_once('/')?;
    Some(Slot::new(WorkloadName::new(unescape(workload)?).ok()?, unit.parse().ok()?))
}

/// Everything outside `A-Za-z0-9_.-` becomes `%XX`, so that different names stay different and none holds a slash.
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

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut parts = text.split('%');
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
        "[^\\p{Cc}]{1,40}".prop_filter("a name's bound", |name| name.len() <= 200)
    }

    #[test]
    fn keys_are_as_documented() {
        let keys = Keys::new("/team a/x", &ClusterName::new("c/d é").unwrap());
        assert_eq!(keys.meta(), "/team%20a/x//c%2Fd%20%C3%A9/meta");
        let slot: Slot = "a/b/7".parse().unwrap();
        assert_eq!(keys.slot(&slot), "/team%20a/x//c%2Fd%20%C3%A9/slot/a%2Fb/7");
        let (from, to) = keys.range();
        assert!(keys.checkpoint(&slot) < from && keys.head() > from && keys.slot(&slot) < to);
    }

    proptest! {
        #[test]
        fn different_clusters_share_no_key(a in name(), b in name()) {
            let (one, two) =
                (Keys::new("p", &ClusterName::new(&a).unwrap()), Keys::new("p", &ClusterName::new(&b).unwrap()));
            prop_assert_eq!(two.meta().starts_with(&one.base), a == b);
        }

        #[test]
        fn a_prefix_that_begins_with_another_has_other_clusters(p in name(), q in name(), a in name(), b in name()) {
            let (p, q) = (p.replace('/', "_"), q.replace('/', "_"));
            let long = Keys::new(&format!("{p}/{q}"), &ClusterName::new(a).unwrap());
            let short = Keys::new(&p, &ClusterName::new(b).unwrap());
            prop_assert!(!long.base.starts_with(&short.base) && !short.base.starts_with(&long.base));
        }

        #[test]
        fn names_come_back_as_they_were(workload in name(), node in name(), unit in 0u32..1_000_000, id in any::<u128>()) {
            let keys = Keys::new("p", &ClusterName::new("c").unwrap());
            let slot = Slot::new(WorkloadName::new(workload).unwrap(), unit);
            let (from, to) = keys.range();
            let mut all = vec![
                (keys.slot(&slot), Name::Slot(slot.clone())),
                (keys.session(SessionId::from_bits(id)), Name::Session(SessionId::from_bits(id))),
                (keys.meta(), Name::Meta),
                (keys.head(), Name::Head),
                (keys.quiet(), Name::Quiet),
                (keys.node(&node.as_str().try_into().unwrap()), Name::Node),
            ];
            for key in [
                RecordKey::Settings,
                RecordKey::Workload(slot.workload.clone()),
                RecordKey::Node(node.as_str().try_into().unwrap()),
                RecordKey::Pin(slot.clone()),
            ] {
                all.push((keys.record(&key), Name::Record(key)));
            }
            for (key, name) in all {
                prop_assert!(key > from && key < to);
                prop_assert_eq!(keys.parse(key.as_bytes()), Some(name));
            }
        }
    }
}
