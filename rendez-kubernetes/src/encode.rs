//! What stands in a Lease: the record as JSON in an annotation, and the fields that people and other programs read.
//!
//! Nothing is ever decided by the fields of the specification: they are for `kubectl` and for those who know Leases.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use rendez_core::{
    Lineage, OperationId, Record, Revision, SessionId, SessionRecord, SlotRecord, StoreError, StoreTime, Versioned,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::errors::damaged;
use crate::keys::{self, Keys, Name};
use crate::options::fatal;

/// The layout that this release reads and writes.
pub(crate) const LAYOUT: u32 = 1;

/// How long a held slot's Lease says that it lasts: ten years. It lasts as long as its session, and its node's Lease tells
/// of that; whoever knows Leases and not sessions (client-go's leader election) must not take it for expired.
const HELD_SECONDS: i32 = 10 * 365 * 24 * 3600;

/// The Lease `meta`: what holds for the whole cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta {
    pub(crate) layout: u32,
    pub(crate) lineage: Lineage,
    /// No token up to this one is granted again.
    pub(crate) floor: u64,
    /// Whether a session was ever opened.
    pub(crate) opened: bool,
    /// Nothing is granted until somebody has seen this stand for as long as it lasts, and has taken it away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) quiet: Option<Quiet>,
}

/// A time in which nothing is granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Quiet {
    /// Drawn anew for each: who has observed one has not observed another.
    pub(crate) id: OperationId,
    pub(crate) lasts: Duration,
}

impl Quiet {
    pub(crate) fn new(lasts: Duration) -> Self {
        Self { id: OperationId::from_bits(fastrand::u128(1..)), lasts }
    }
}

/// A node's Lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeValue {
    pub(crate) session: SessionId,
    pub(crate) opened_by: OperationId,
    pub(crate) record: SessionRecord,
}

/// A version of a Lease: what a compare-and-set names, and what the next version goes on from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Base {
    pub(crate) uid: String,
    pub(crate) version: u64,
    pub(crate) transitions: i32,
    /// In microseconds.
    pub(crate) renewed: i64,
}

/// What a Lease holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Meta(Meta),
    Node(Box<NodeValue>),
    /// The record comes without its checkpoint.
    Slot(Box<SlotRecord>, Option<Bytes>),
    Record(Versioned),
}

/// A Lease that was read.
#[derive(Debug, Clone)]
pub(crate) struct Object {
    pub(crate) lease: String,
    pub(crate) base: Base,
    pub(crate) name: Name,
    pub(crate) value: Value,
}

fn json(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| fatal("a record cannot be written as JSON").with_source(error))
}

fn time(at: StoreTime) -> Option<MicroTime> {
    let micros = i64::try_from(at.as_micros()).ok()?;
    Timestamp::from_microsecond(micros).ok().map(MicroTime)
}

/// The next version of a Lease, or its first.
pub(crate) struct Draft<'a> {
    pub(crate) keys: &'a Keys,
    pub(crate) name: &'a Name,
    /// What it replaces.
    pub(crate) base: Option<&'a Base>,
    pub(crate) now: StoreTime,
}

impl Draft<'_> {
    fn lease(&self, record: String, spec: LeaseSpec, more: &[(&str, String)], label: Option<(&str, String)>) -> Lease {
        let keys = self.keys;
        let mut annotations = BTreeMap::from([
            (keys::CLUSTER.to_owned(), keys.cluster().to_string()),
            (keys::NAME.to_owned(), self.name.full()),
            (keys::RECORD.to_owned(), record),
        ]);
        annotations.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        let mut labels = BTreeMap::from([
            (keys::CLUSTER_LABEL.to_owned(), keys.cluster_label().to_owned()),
            (keys::KIND_LABEL.to_owned(), self.name.kind().to_owned()),
        ]);
        labels.extend(label.map(|(key, value)| (key.to_owned(), value)));
        let metadata = ObjectMeta {
            name: Some(keys.lease(self.name)),
            labels: Some(labels),
            annotations: Some(annotations),
            // Both, always: a version alone does not keep a deleted Lease from coming back.
            uid: self.base.map(|base| base.uid.clone()),
            resource_version: self.base.map(|base| base.version.to_string()),
            ..ObjectMeta::default()
        };
        Lease { metadata, spec: Some(spec) }
    }

    /// An update that changes nothing has no new version and is seen by nobody, so the time moves on with each, however
    /// fast they follow.
    fn renewed(&self) -> Option<MicroTime> {
        let least = self.base.map_or(0, |base| base.renewed + 1);
        let now = i64::try_from(self.now.as_micros()).unwrap_or(i64::MAX).max(least);
        Timestamp::from_microsecond(now).ok().map(MicroTime)
    }

    pub(crate) fn meta(&self, meta: &Meta) -> Result<Lease, StoreError> {
        let spec = LeaseSpec { renew_time: self.renewed(), ..LeaseSpec::default() };
        Ok(self.lease(json(meta)?, spec, &[], None))
    }

    /// `told` is the version that has written the record, where it stays as it is.
    pub(crate) fn node(&self, value: &NodeValue, fresh: bool, told: Option<Revision>) -> Result<Lease, StoreError> {
        let before = self.base.map_or(0, |base| base.transitions);
        let seconds = i32::try_from(value.record.ttl.as_secs()).unwrap_or(i32::MAX);
        let spec = LeaseSpec {
            holder_identity: Some(value.record.info.node.to_string()),
            acquire_time: time(value.record.opened_at),
            renew_time: self.renewed(),
            lease_duration_seconds: Some(seconds.max(1)),
            lease_transitions: Some(before.saturating_add(i32::from(fresh))),
            ..LeaseSpec::default()
        };
        let told = told.map(|revision| (keys::REVISION, revision.to_string()));
        Ok(self.lease(json(value)?, spec, told.as_slice(), Some((keys::SESSION_LABEL, value.session.to_string()))))
    }

    /// `told` is the version that has written the record, where only the checkpoint changes.
    pub(crate) fn slot(
        &self,
        record: &SlotRecord,
        checkpoint: Option<&Bytes>,
        granted: bool,
        told: Option<Revision>,
    ) -> Result<Lease, StoreError> {
        let before = self.base.map_or(0, |base| base.transitions);
        let spec = LeaseSpec {
            holder_identity: record.holder.as_ref().map(|holder| holder.node.to_string()),
            acquire_time: record.holder.as_ref().and_then(|_| time(record.taken_at)),
            renew_time: self.renewed(),
            lease_duration_seconds: Some(if record.holder.is_some() { HELD_SECONDS } else { 1 }),
            lease_transitions: Some(before.saturating_add(i32::from(granted))),
            ..LeaseSpec::default()
        };
        let told = told.map(|revision| (keys::REVISION, revision.to_string()));
        let checkpoint = checkpoint.map(|bytes| (keys::CHECKPOINT, to_hex(bytes)));
        let more: Vec<(&str, String)> = told.into_iter().chain(checkpoint).collect();
        Ok(self.lease(json(record)?, spec, &more, None))
    }

    pub(crate) fn record(&self, record: &Record) -> Result<Lease, StoreError> {
        let spec = LeaseSpec { renew_time: self.renewed(), ..LeaseSpec::default() };
        Ok(self.lease(json(record)?, spec, &[], None))
    }
}

/// The version of a Lease.
pub(crate) fn version(lease: &Lease) -> Option<u64> {
    lease.metadata.resource_version.as_ref()?.parse().ok()
}

/// Reads a Lease of this cluster. Each that cannot be read is said by its name.
pub(crate) fn read(keys: &Keys, lease: &Lease) -> Result<Object, StoreError> {
    let metadata = &lease.metadata;
    let called = metadata.name.clone().unwrap_or_default();
    let wrong = |what: &str| damaged(&called, what);
    let annotation = |key: &str| metadata.annotations.as_ref().and_then(|all| all.get(key)).map(String::as_str);
    let kind = metadata.labels.as_ref().and_then(|all| all.get(keys::KIND_LABEL)).map_or("", String::as_str);
    let (cluster, full) = (annotation(keys::CLUSTER).unwrap_or(""), annotation(keys::NAME).unwrap_or(""));
    let name = keys.parse(&called, cluster, kind, full).ok_or_else(|| wrong("its names do not belong together"))?;
    let uid = metadata.uid.clone().ok_or_else(|| wrong("it has no uid"))?;
    let version = version(lease).ok_or_else(|| wrong("its version is no number"))?;
    let spec = lease.spec.as_ref();
    let base = Base {
        uid,
        version,
        transitions: spec.and_then(|spec| spec.lease_transitions).unwrap_or(0),
        renewed: spec.and_then(|spec| spec.renew_time.as_ref()).map_or(0, |time| time.0.as_microsecond()),
    };
    let record = annotation(keys::RECORD).ok_or_else(|| wrong("it has no record"))?;
    let revision = match annotation(keys::REVISION) {
        Some(text) => text.parse().map_err(|_| wrong("its revision is no number"))?,
        None => version,
    };
    let value = match &name {
        Name::Meta => Value::Meta(meta(&called, record)?),
        Name::Node(node) => {
            let mut value: NodeValue = parse(&called, record)?;
            value.record.revision = Revision(revision);
            if value.record.info.node != *node {
                return Err(wrong("its session is another node's"));
            }
            Value::Node(Box::new(value))
        }
        Name::Slot(_) => {
            let mut slot: SlotRecord = parse(&called, record)?;
            slot.revision = Revision(revision);
            let checkpoint = annotation(keys::CHECKPOINT);
            let checkpoint =
                checkpoint.map(|text| from_hex(text).ok_or_else(|| wrong("its checkpoint"))).transpose()?;
            Value::Slot(Box::new(slot), checkpoint)
        }
        Name::Record(key) => {
            let record: Record = parse(&called, record)?;
            if !record.fits(key) {
                return Err(wrong("its record is of another kind"));
            }
            Value::Record(Versioned { record, revision: Revision(version) })
        }
    };
    Ok(Object { lease: called, base, name, value })
}

fn parse<T: DeserializeOwned>(lease: &str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| damaged(lease, "its record").with_source(error))
}

/// Refuses a layout that this release does not know.
fn meta(lease: &str, text: &str) -> Result<Meta, StoreError> {
    #[derive(Deserialize)]
    struct Version {
        layout: u32,
    }
    let Version { layout } = parse(lease, text)?;
    if layout != LAYOUT {
        return Err(fatal(format!(
            "the cluster's data in Kubernetes have layout {layout}, this release knows layout {LAYOUT}: use a release \
             that knows it, or another cluster name"
        )));
    }
    parse(lease, text)
}

fn to_hex(bytes: &Bytes) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

fn from_hex(text: &str) -> Option<Bytes> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let pairs = text.as_bytes().chunks(2);
    let byte = |pair: &[u8]| match pair {
        [high, low] => u8::try_from(digit(*high)? * 16 + digit(*low)?).ok(),
        _ => None,
    };
    pairs.map(byte).collect::<Option<Vec<u8>>>().map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rendez_core::{
        ClusterName, ClusterSettings, FencingToken, Generation, Holder, Incarnation, NodeInfo, RecordKey,
        WorkloadRecord,
    };

    const NOW: StoreTime = StoreTime::from_micros(1_790_000_000_123_456);

    fn keys() -> Keys {
        Keys::new(&ClusterName::new("c é").unwrap())
    }

    fn base() -> Base {
        Base { uid: "u".into(), version: 7, transitions: 3, renewed: 0 }
    }

    fn stored(mut lease: Lease) -> Lease {
        lease.metadata.uid = Some("u".into());
        lease.metadata.resource_version = Some("9".into());
        lease
    }

    fn slot_record() -> SlotRecord {
        SlotRecord {
            token: FencingToken::new(5),
            granted_by: OperationId::from_bits(1),
            holder: Some(Holder { session: SessionId::from_bits(2), node: "a/B".parse().unwrap() }),
            taken_at: NOW,
            freed_at: None,
            moved_at: None,
            offer: None,
            refusals: Vec::new(),
            force: None,
            checkpoint: None,
            revision: Revision(9),
        }
    }

    #[test]
    fn a_slots_lease_reads_well_and_comes_back() {
        let (keys, name) = (keys(), Name::Slot("inbox/3".parse().unwrap()));
        let draft = |base| Draft { keys: &keys, name: &name, base, now: NOW };
        let bytes = Bytes::from_static(b"\0\x7f\xffx");
        let lease = draft(None).slot(&slot_record(), Some(&bytes), true, None).unwrap();
        assert_eq!((&lease.metadata.uid, &lease.metadata.resource_version), (&None, &None));
        let spec = lease.spec.clone().unwrap();
        assert_eq!(spec.holder_identity.as_deref(), Some("a/B"));
        assert_eq!(
            (spec.lease_transitions, spec.acquire_time, spec.renew_time.clone()),
            (Some(1), time(NOW), time(NOW))
        );
        let object = read(&keys, &stored(lease)).unwrap();
        assert_eq!(object.value, Value::Slot(Box::new(slot_record()), Some(bytes.clone())));
        // Free, over a version: both parts of that are named, and nobody holds it.
        let before = base();
        let free = SlotRecord { holder: None, ..slot_record() };
        let lease = draft(Some(&before)).slot(&free, None, false, Some(Revision(4))).unwrap();
        assert_eq!(lease.metadata.uid.as_deref(), Some("u"));
        assert_eq!(lease.metadata.resource_version.as_deref(), Some("7"));
        let spec = lease.spec.clone().unwrap();
        assert_eq!((spec.holder_identity, spec.acquire_time, spec.lease_transitions), (None, None, Some(3)));
        let object = read(&keys, &stored(lease)).unwrap();
        assert_eq!(object.value, Value::Slot(Box::new(SlotRecord { revision: Revision(4), ..free }), None));
    }

    #[test]
    fn each_update_of_a_nodes_lease_changes_it_and_heartbeats_keep_its_revision() {
        let info = NodeInfo::new("n".parse().unwrap(), ClusterSettings::new(Duration::from_secs(9)));
        let record = SessionRecord {
            incarnation: Incarnation::from_bits(1),
            opened_at: NOW,
            ttl: Duration::from_secs(3),
            info: info.into(),
            revision: Revision(9),
        };
        let value = NodeValue { session: SessionId::from_bits(2), opened_by: OperationId::from_bits(3), record };
        let (keys, name) = (keys(), Name::Node("n".parse().unwrap()));
        let lease = Draft { keys: &keys, name: &name, base: None, now: NOW }.node(&value, true, None).unwrap();
        let labels = lease.metadata.labels.clone().unwrap();
        assert_eq!(labels[keys::SESSION_LABEL], value.session.to_string());
        let spec = lease.spec.clone().unwrap();
        assert_eq!((spec.lease_duration_seconds, spec.lease_transitions), (Some(3), Some(1)));
        let first = read(&keys, &stored(lease)).unwrap();
        assert_eq!(first.value, Value::Node(Box::new(value.clone())));
        // Within the same microsecond, and by a clock that is behind.
        let before = first.base;
        for now in [NOW, StoreTime::from_micros(5)] {
            let draft = Draft { keys: &keys, name: &name, base: Some(&before), now };
            let next = read(&keys, &stored(draft.node(&value, false, Some(Revision(4))).unwrap())).unwrap();
            assert!(next.base.renewed > before.renewed);
            let Value::Node(next) = next.value else { panic!() };
            assert_eq!(next.record.revision, Revision(4));
        }
    }

    #[test]
    fn what_others_have_written_is_refused_by_name() {
        let keys = keys();
        let name = Name::Record(RecordKey::Workload("w".parse().unwrap()));
        let draft = Draft { keys: &keys, name: &name, base: None, now: NOW };
        let good = stored(draft.record(&Record::Workload(WorkloadRecord::new(3))).unwrap());
        read(&keys, &good).unwrap();
        let spoil = |spoil: &dyn Fn(&mut Lease)| {
            let mut lease = good.clone();
            spoil(&mut lease);
            read(&keys, &lease).unwrap_err()
        };
        let annotation = |key: &'static str, value: &'static str| {
            move |lease: &mut Lease| {
                lease.metadata.annotations.as_mut().unwrap().insert(key.to_owned(), value.to_owned());
            }
        };
        for error in [
            spoil(&annotation(keys::CLUSTER, "another")),
            spoil(&annotation(keys::NAME, "v")),
            spoil(&annotation(keys::RECORD, "{}")),
            spoil(&annotation(keys::RECORD, r#"{"pin":"a"}"#)),
            spoil(&annotation(keys::REVISION, "x")),
            spoil(&|lease| lease.metadata.annotations = None),
            spoil(&|lease| lease.metadata.labels = None),
        ] {
            assert!(error.message().contains(&keys.lease(&name)), "{error}");
        }
        let meta = Meta {
            layout: LAYOUT,
            lineage: Lineage::new(Generation::from_bits(1)),
            floor: 0,
            opened: true,
            quiet: Some(Quiet::new(Duration::from_millis(1500))),
        };
        let draft = Draft { keys: &keys, name: &Name::Meta, base: None, now: NOW };
        let lease = stored(draft.meta(&meta).unwrap());
        assert_eq!(read(&keys, &lease).unwrap().value, Value::Meta(meta));
        let mut foreign = lease;
        annotation(keys::RECORD, r#"{"layout":7,"of":"a later release"}"#)(&mut foreign);
        assert!(read(&keys, &foreign).unwrap_err().message().contains("layout 7"));
    }
}
