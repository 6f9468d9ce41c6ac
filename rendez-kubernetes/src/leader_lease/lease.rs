//! The Lease of an election as it stands on the server, and the next one to write: the five fields of client-go's leader
//! election are changed, and everything else stays as it was read, known here or not.
//!
//! What follows from a Lease is the business of [`rules`](super::rules).

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject};
use serde_json::{Map, Value, json};

/// What client-go calls a `LeaderElectionRecord`. Times are microseconds since 1970, on whoever's wall clock: they are
/// for people, and for seeing that something has changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Record {
    /// Nobody, if it is empty.
    pub(crate) holder: String,
    pub(crate) duration_seconds: Option<i64>,
    pub(crate) acquired: Option<i64>,
    pub(crate) renewed: Option<i64>,
    pub(crate) transitions: i64,
}

impl Record {
    fn of(spec: &Value) -> Self {
        let time = |key: &str| spec[key].as_str()?.parse::<Timestamp>().ok().map(Timestamp::as_microsecond);
        Self {
            holder: spec["holderIdentity"].as_str().unwrap_or_default().to_owned(),
            duration_seconds: spec["leaseDurationSeconds"].as_i64(),
            acquired: time("acquireTime"),
            renewed: time("renewTime"),
            transitions: spec["leaseTransitions"].as_i64().unwrap_or(0),
        }
    }

    fn write_into(&self, spec: &mut Map<String, Value>) {
        let time = |at: Option<i64>| {
            // Six digits of a fraction, always: the API server reads nothing else.
            let at = at.and_then(|at| Timestamp::from_microsecond(at).ok());
            at.and_then(|at| serde_json::to_value(MicroTime(at)).ok()).unwrap_or(Value::Null)
        };
        spec.insert("holderIdentity".to_owned(), json!(self.holder));
        spec.insert("leaseDurationSeconds".to_owned(), json!(self.duration_seconds));
        spec.insert("acquireTime".to_owned(), time(self.acquired));
        spec.insert("renewTime".to_owned(), time(self.renewed));
        spec.insert("leaseTransitions".to_owned(), json!(self.transitions));
    }
}

/// One version of the Lease, as it was read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Observed {
    object: DynamicObject,
    pub(crate) uid: String,
    pub(crate) version: String,
    pub(crate) record: Record,
}

impl Observed {
    /// Takes an object as the server sent it; nothing if it has no uid or no version, which no server sends.
    pub(crate) fn new(object: DynamicObject) -> Option<Self> {
        let (uid, version) = (object.metadata.uid.clone()?, object.metadata.resource_version.clone()?);
        let record = Record::of(&object.data["spec"]);
        Some(Self { object, uid, version, record })
    }

    /// The whole specification: a change of it is a sign of life, of a label or an annotation it is none.
    pub(crate) fn spec(&self) -> &Value {
        &self.object.data["spec"]
    }

    /// Whether this is a later version of the same object than another. Versions that are no numbers cannot be compared.
    pub(crate) fn is_later_than(&self, uid: &str, version: &str) -> bool {
        self.uid == uid && is_later(&self.version, version)
    }

    /// The object to write over this very version: uid and version stand in it.
    pub(crate) fn with(&self, record: &Record) -> DynamicObject {
        let mut object = self.object.clone();
        if !object.data.is_object() {
            object.data = json!({});
        }
        let spec = &mut object.data["spec"];
        if !spec.is_object() {
            *spec = json!({});
        }
        if let Value::Object(spec) = spec {
            record.write_into(spec);
        }
        object
    }
}

/// Whether a version is later than another.
pub(crate) fn is_later(version: &str, than: &str) -> bool {
    matches!((version.parse::<u64>(), than.parse::<u64>()), (Ok(version), Ok(than)) if version > than)
}

/// The object to make where there is none.
pub(crate) fn first(name: &str, record: &Record) -> DynamicObject {
    let mut spec = Map::new();
    record.write_into(&mut spec);
    DynamicObject::new(name, &resource()).data(json!({ "spec": spec }))
}

/// What kind of object it is.
pub(crate) fn resource() -> ApiResource {
    ApiResource::erase::<k8s_openapi::api::coordination::v1::Lease>(&())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: Value) -> Observed {
        Observed::new(serde_json::from_value(value).unwrap()).unwrap()
    }

    #[test]
    fn what_is_not_ours_stays_as_it_was_known_or_not() {
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {
                "name": "a", "namespace": "n", "uid": "u", "resourceVersion": "7",
                "labels": { "of": "them" }, "annotations": { "note": "theirs" },
            },
            "spec": {
                "holderIdentity": "go", "leaseDurationSeconds": 15, "leaseTransitions": 3,
                "acquireTime": "2026-01-01T00:00:00.000001Z", "renewTime": "2026-01-01T00:00:09.500000Z",
                "preferredHolder": "x", "strategy": "OldestEmulationVersion", "ofTheFuture": { "a": 1 },
            },
        });
        let seen = read(lease.clone());
        assert_eq!((seen.uid.as_str(), seen.version.as_str()), ("u", "7"));
        assert_eq!((seen.record.holder.as_str(), seen.record.transitions), ("go", 3));
        let micros = 1_767_225_600_000_000;
        assert_eq!((seen.record.acquired, seen.record.renewed), (Some(micros + 1), Some(micros + 9_500_000)));
        let record = Record { holder: "us".to_owned(), transitions: 4, renewed: Some(micros), ..seen.record.clone() };
        let mut wanted = lease;
        wanted["spec"]["holderIdentity"] = json!("us");
        wanted["spec"]["leaseTransitions"] = json!(4);
        wanted["spec"]["renewTime"] = json!("2026-01-01T00:00:00.000000Z");
        let written = serde_json::to_value(seen.with(&record)).unwrap();
        assert_eq!(written, wanted);
        assert_eq!(read(written).record, record, "what was written is read back the same");
    }

    #[test]
    fn a_lease_without_a_specification_is_nobodys() {
        for spec in [json!(null), json!({}), json!({ "holderIdentity": null })] {
            let seen = read(json!({ "metadata": { "name": "a", "uid": "u", "resourceVersion": "1" }, "spec": spec }));
            assert_eq!(seen.record, Record::default());
            let record = Record { holder: "us".to_owned(), ..Record::default() };
            assert_eq!(seen.with(&record).data["spec"]["holderIdentity"], "us");
        }
    }

    #[test]
    fn versions_that_are_no_numbers_are_never_later() {
        assert!(is_later("10", "9"));
        for (version, than) in [("9", "9"), ("9", "10"), ("b", "a"), ("10", "a"), ("", "1")] {
            assert!(!is_later(version, than), "{version} {than}");
        }
    }

    #[test]
    fn the_first_one_is_complete() {
        let record = Record { holder: "us".to_owned(), renewed: Some(0), acquired: Some(0), ..Record::default() };
        let lease = serde_json::to_value(first("a", &record)).unwrap();
        assert_eq!((&lease["apiVersion"], &lease["kind"]), (&json!("coordination.k8s.io/v1"), &json!("Lease")));
        assert_eq!(lease["metadata"], json!({ "name": "a" }));
        assert_eq!(lease["spec"]["renewTime"], "1970-01-01T00:00:00.000000Z");
    }
}
