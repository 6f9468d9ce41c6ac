//! What stands in the keys: JSON, and a slot's checkpoint after it as bytes.

use std::time::Duration;

use bytes::Bytes;
use rendez_core::{
    FencingToken, Lineage, OperationId, Record, Revision, SessionId, SessionRecord, SlotRecord, StoreError, TOKEN_MAX,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::errors::damaged;
use crate::options::fatal;

/// The layout that this release reads and writes.
pub(crate) const LAYOUT: u32 = 1;

/// `meta`: what holds for the whole cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta {
    pub(crate) layout: u32,
    /// The cluster's name, whole.
    pub(crate) cluster: String,
    pub(crate) lineage: Lineage,
    /// A token that is granted is this and the sequence of the granting write.
    pub(crate) base: u64,
    /// The largest token that was set aside: reported by a node, or by a new generation.
    pub(crate) floor: u64,
    /// When the bucket was made, in nanoseconds since 1970.
    pub(crate) bucket: u64,
    /// Whether a session was ever opened.
    pub(crate) opened: bool,
}

/// `session.NODE`: the node's live session, written anew by each heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SessionValue {
    pub(crate) session: SessionId,
    pub(crate) opened_by: OperationId,
    /// The sequence at which the record changed last, if that was not this write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) at: Option<u64>,
    /// The last write of the node's key that the opening took the place of; 0 if there was none.
    pub(crate) after: u64,
    pub(crate) record: SessionRecord,
}

/// `slot.WORKLOAD.UNIT`, before the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SlotValue {
    /// This write has granted the slot: its token is this and the write's sequence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) base: Option<u64>,
    /// The sequence at which the record changed last, if that was not this write, which was for the checkpoint alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) at: Option<u64>,
    pub(crate) record: SlotRecord,
}

/// `quiet`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct QuietValue {
    pub(crate) lasts: Duration,
}

pub(crate) fn json(value: &impl Serialize) -> Result<Bytes, StoreError> {
    let text = serde_json::to_vec(value);
    text.map(Bytes::from).map_err(|error| fatal("a record cannot be written as JSON").with_source(error))
}

fn read<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|error| damaged(what).with_source(error))
}

/// Refuses a layout that this release does not know.
pub(crate) fn meta(bytes: &[u8]) -> Result<Meta, StoreError> {
    #[derive(Deserialize)]
    struct Version {
        layout: u32,
    }
    let Version { layout } = read(bytes, "the cluster's meta record")?;
    if layout != LAYOUT {
        return Err(fatal(format!(
            "the cluster's data in NATS has layout {layout}, this release knows layout {LAYOUT}: use a release that \
             knows it, or another cluster name"
        )));
    }
    read(bytes, "the cluster's meta record")
}

/// A session as its write at a sequence tells it.
pub(crate) fn session(bytes: &[u8], sequence: u64) -> Result<SessionValue, StoreError> {
    let mut value: SessionValue = read(bytes, "a session")?;
    value.record.revision = Revision(value.at.unwrap_or(sequence));
    Ok(value)
}

pub(crate) fn quiet(bytes: &[u8]) -> Result<QuietValue, StoreError> {
    read(bytes, "the quiet time")
}

pub(crate) fn record(bytes: &[u8]) -> Result<Record, StoreError> {
    read(bytes, "an operator's record")
}

/// JSON holds no line break, so the first one ends it.
const BREAK: u8 = b'\n';

pub(crate) fn slot_bytes(value: &SlotValue) -> Result<Bytes, StoreError> {
    let text = json(value)?;
    let Some(checkpoint) = &value.record.checkpoint else { return Ok(text) };
    let mut bytes = Vec::with_capacity(text.len() + 1 + checkpoint.len());
    bytes.extend_from_slice(&text);
    bytes.push(BREAK);
    bytes.extend_from_slice(checkpoint);
    Ok(bytes.into())
}

/// A slot as its write at a sequence tells it.
pub(crate) fn slot(bytes: &Bytes, sequence: u64) -> Result<SlotRecord, StoreError> {
    let end = bytes.iter().position(|byte| *byte == BREAK);
    let SlotValue { base, at, mut record } = read(&bytes[..end.unwrap_or(bytes.len())], "a slot")?;
    record.checkpoint = end.map(|end| Bytes::copy_from_slice(&bytes[end + 1..]));
    written(&mut record, base, at, sequence);
    Ok(record)
}

/// What a record only knows once it is written.
pub(crate) fn written(record: &mut SlotRecord, base: Option<u64>, at: Option<u64>, sequence: u64) {
    if let Some(base) = base {
        record.token = FencingToken::new(base.saturating_add(sequence).min(TOKEN_MAX));
    }
    record.revision = Revision(at.unwrap_or(sequence));
}

#[cfg(test)]
mod tests {
    use super::*;
    use rendez_core::StoreTime;

    fn granted() -> SlotRecord {
        SlotRecord {
            token: FencingToken::NONE,
            granted_by: OperationId::from_bits(1),
            holder: None,
            taken_at: StoreTime::from_micros(1),
            freed_at: None,
            moved_at: None,
            offer: None,
            refusals: Vec::new(),
            force: None,
            checkpoint: Some(Bytes::from_static(b"a\nb\0")),
            revision: Revision(0),
        }
    }

    #[test]
    fn a_slot_has_its_token_from_the_write_that_granted_it_and_its_checkpoint_as_it_was() {
        let bytes = slot_bytes(&SlotValue { base: Some(1000), at: None, record: granted() }).unwrap();
        let record = slot(&bytes, 7).unwrap();
        assert_eq!((record.token, record.revision), (FencingToken::new(1007), Revision(7)));
        assert_eq!(record.checkpoint, granted().checkpoint);
        let bytes = slot_bytes(&SlotValue { base: None, at: Some(7), record }).unwrap();
        let record = slot(&bytes, 9).unwrap();
        assert_eq!((record.token, record.revision), (FencingToken::new(1007), Revision(7)));
        let without = SlotRecord { checkpoint: None, ..record };
        let bytes = slot_bytes(&SlotValue { base: None, at: None, record: without }).unwrap();
        assert_eq!(slot(&bytes, 9).unwrap().checkpoint, None);
    }

    #[test]
    fn another_layout_is_refused_by_its_number() {
        let error = meta(br#"{"layout":7,"of":"a later release"}"#).unwrap_err();
        assert!(error.message().contains("layout 7"), "{error}");
    }
}
