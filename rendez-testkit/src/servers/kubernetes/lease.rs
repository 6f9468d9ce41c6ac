//! One Lease: what clients may send, and how it is sent back. Nothing here is kept.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::objects::Refusal;

/// The longest name, in bytes.
const NAME_MAX: usize = 253;
/// The longest value of a label, in bytes.
const LABEL_MAX: usize = 63;
/// The most bytes in all annotations of an object.
const ANNOTATIONS_MAX: usize = 256 * 1024;

/// What of a Lease is compared to see whether an update changes anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) uid: String,
    pub(super) created: String,
    pub(super) labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    spec: Value,
}

impl Lease {
    pub(super) fn to_json(&self, namespace: &str, name: &str, version: u64) -> Value {
        let mut metadata = json!({
            "name": name, "namespace": namespace, "uid": self.uid, "resourceVersion": version.to_string(),
            "creationTimestamp": self.created,
        });
        if !self.labels.is_empty() {
            metadata["labels"] = json!(self.labels);
        }
        if !self.annotations.is_empty() {
            metadata["annotations"] = json!(self.annotations);
        }
        json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": self.spec,
        })
    }
}

/// A Lease as a client sends it.
pub(super) struct Sent {
    pub(super) name: Option<String>,
    pub(super) uid: Option<String>,
    pub(super) version: Option<u64>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    spec: Value,
}

impl Sent {
    pub(super) fn read(body: &Value) -> Result<Self, Refusal> {
        // What the path says already need not be said: some clients leave it out.
        let is = |key: &str, wanted: &str| body[key].is_null() || body[key] == "" || body[key] == wanted;
        if !body.is_object() || !is("kind", "Lease") || !is("apiVersion", "coordination.k8s.io/v1") {
            return Err(Refusal::bad_request("the object provided is unrecognized"));
        }
        let metadata = &body["metadata"];
        let text = |key: &str| metadata[key].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let version = match text("resourceVersion") {
            Some(version) => Some(version.parse().map_err(|_| Refusal::bad_request("invalid resource version"))?),
            None => None,
        };
        Ok(Self {
            name: text("name"),
            uid: text("uid"),
            version,
            labels: texts(&metadata["labels"])?,
            annotations: texts(&metadata["annotations"])?,
            spec: body["spec"].clone(),
        })
    }

    /// The object to keep, if it is valid.
    pub(super) fn lease(self, name: &str, uid: String, created: String) -> Result<Lease, Refusal> {
        if !is_subdomain(name) {
            let why = "metadata.name: Invalid value: a lowercase RFC 1123 subdomain must consist of lower case \
                       alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character";
            return Err(Refusal::invalid(name, why));
        }
        if let Some((key, _)) = self.labels.iter().find(|(_, value)| !is_label(value)) {
            return Err(Refusal::invalid(name, &format!("metadata.labels: Invalid value: of {key}")));
        }
        let bytes: usize = self.annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
        if bytes > ANNOTATIONS_MAX {
            return Err(Refusal::invalid(name, "metadata.annotations: Too long: may not be more than 262144 bytes"));
        }
        let spec = spec(name, &self.spec)?;
        Ok(Lease { uid, created, labels: self.labels, annotations: self.annotations, spec })
    }
}

fn texts(value: &Value) -> Result<BTreeMap<String, String>, Refusal> {
    let wrong = || Refusal::bad_request("labels and annotations are maps from text to text");
    match value {
        Value::Null => Ok(BTreeMap::new()),
        Value::Object(map) => {
            let read = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
            map.iter().map(|entry| read(entry).ok_or_else(wrong)).collect()
        }
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => Err(wrong()),
    }
}

/// The fields of the specification that are known, each of its kind.
fn spec(name: &str, sent: &Value) -> Result<Value, Refusal> {
    let mut spec = serde_json::Map::new();
    for key in ["acquireTime", "renewTime"] {
        if let Some(time) = sent[key].as_str() {
            if time.parse::<jiff::Timestamp>().is_err() || !has_micros(time) {
                let message = format!("{key}: parsing time {time:?} as \"2006-01-02T15:04:05.000000Z07:00\"");
                return Err(Refusal::bad_request(message));
            }
            spec.insert(key.to_owned(), json!(time));
        }
    }
    for key in ["holderIdentity", "preferredHolder", "strategy"] {
        if let Some(text) = sent[key].as_str() {
            spec.insert(key.to_owned(), json!(text));
        }
    }
    if spec.get("preferredHolder").is_some_and(|holder| holder != "") && !spec.contains_key("strategy") {
        let why = "spec.preferredHolder: Forbidden: may only be specified if `strategy` is defined";
        return Err(Refusal::invalid(name, why));
    }
    for (key, least) in [("leaseDurationSeconds", 1), ("leaseTransitions", 0)] {
        if sent[key].is_null() {
            continue;
        }
        let number = sent[key].as_i64().filter(|number| i32::try_from(*number).is_ok());
        let number = number.ok_or_else(|| Refusal::bad_request(format!("{key} is no 32-bit number")))?;
        if number < least {
            return Err(Refusal::invalid(name, &format!("spec.{key}: Invalid value: {number}: must be greater")));
        }
        spec.insert(key.to_owned(), json!(number));
    }
    Ok(Value::Object(spec))
}

/// Go's `MicroTime` is read with just six digits of a fraction.
fn has_micros(time: &str) -> bool {
    let fraction = time.split_once('.').map_or("", |(_, fraction)| fraction);
    fraction.bytes().take_while(u8::is_ascii_digit).count() == 6
}

fn is_subdomain(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.len() <= NAME_MAX
        && name.split('.').all(|part| {
            let bytes = part.as_bytes();
            bytes.first().is_some_and(|byte| plain(*byte))
                && bytes.last().is_some_and(|byte| plain(*byte))
                && bytes.iter().all(|byte| plain(*byte) || *byte == b'-')
        })
}

fn is_label(value: &str) -> bool {
    let bytes = value.as_bytes();
    let ends = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    bytes.len() <= LABEL_MAX
        && ends(bytes.first())
        && ends(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(name: &str, spec: Value, label: &str) -> Result<Lease, Refusal> {
        let body = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": { "name": name, "labels": { "l": label } }, "spec": spec,
        });
        Sent::read(&body)?.lease(name, "u".into(), "c".into())
    }

    #[test]
    fn what_cannot_be_is_refused_as_the_real_server_does() {
        send("a-1.b", json!({ "holderIdentity": "x", "leaseDurationSeconds": 1, "leaseTransitions": 0 }), "A_b.c")
            .unwrap();
        for name in ["a:b", "a_b", "Ab", "a/b", "", ".a", "a.", "-a", "a..b", &"a".repeat(254)] {
            assert_eq!(send(name, json!({}), "").unwrap_err().code, 422, "{name}");
        }
        send(&"a".repeat(253), json!({}), "").unwrap();
        for spec in [json!({ "leaseDurationSeconds": 0 }), json!({ "leaseTransitions": -1 })] {
            assert_eq!(send("a", spec, "").unwrap_err().code, 422);
        }
        let times = ["soon", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00.000Z", "2026-01-01T00:00:00.000000000Z"];
        for spec in times
            .map(|time| json!({ "renewTime": time }))
            .into_iter()
            .chain([json!({ "leaseTransitions": 1_i64 << 31 })])
        {
            assert_eq!(send("a", spec, "").unwrap_err().code, 400);
        }
        send("a", json!({ "renewTime": "2026-01-01T00:00:00.000000Z" }), "").unwrap();
        assert_eq!(send("a", json!({ "preferredHolder": "x" }), "").unwrap_err().code, 422);
        send("a", json!({ "preferredHolder": "x", "strategy": "OldestEmulationVersion" }), "").unwrap();
        for label in ["a b", "-a", "é", &"a".repeat(64)] {
            assert_eq!(send("a", json!({}), label).unwrap_err().code, 422, "{label}");
        }
    }
}
