//! What requests have changed, as data: for stores that keep the model's state somewhere and let others follow it.
//!
//! Effects are records as they are now, not requests: a release that decides differently reads them all the same. The
//! whole state is the effects on an empty store. Where they are kept, and how, is the store's business; nothing here
//! decides anything.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::cluster::{Cluster, Quiet, Session};
use super::{Server, StoreModel};
use crate::change_index::Key;
use crate::{
    FencingToken, Held, Lineage, OperationId, Record, RecordKey, Revision, SessionId, SessionRecord, Slot, SlotRecord,
    StoreTime, Versioned, WatchHint,
};

/// What requests have changed since the effects were last taken. Opaque: write it down, read it, and
/// [apply](StoreModel::apply) it to a model that is where the other one was.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Effects {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revision: Option<Revision>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token: Option<FencingToken>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    era: Option<Era>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    extended: BTreeMap<SessionId, StoreTime>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    sessions: Vec<SessionEffect>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    slots: Vec<SlotEffect>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    records: Vec<RecordEffect>,
}

impl Effects {
    /// Nothing has changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.extended.is_empty() && self.only_extends()
    }

    /// Sessions live longer, and nothing else has changed: what a heartbeat does. It is of no use to anybody once
    /// all sessions have ended.
    #[must_use]
    pub fn only_extends(&self) -> bool {
        let Self { revision, token, era, extended: _, sessions, slots, records } = self;
        let same = revision.is_none() && token.is_none() && era.is_none();
        same && sessions.is_empty() && slots.is_empty() && records.is_empty()
    }
}

/// What changes seldom beside the records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Era {
    #[serde(flatten)]
    lineage: Lineage,
    history: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    quiet: Option<Quiet>,
    opened: bool,
    /// Deletions up to this revision are forgotten.
    floor: Revision,
}

/// What effects say beside the records.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Frame {
    revision: Revision,
    token: FencingToken,
    era: Option<Era>,
}

impl Frame {
    fn of(cluster: &Cluster) -> Self {
        let era = Era {
            lineage: cluster.lineage.clone(),
            history: cluster.history,
            quiet: cluster.quiet,
            opened: cluster.opened,
            floor: cluster.index.floor(),
        };
        Self { revision: cluster.revision, token: cluster.token, era: Some(era) }
    }

    /// What of this is new after `before`.
    fn since(&self, before: &Self) -> Effects {
        Effects {
            revision: Some(self.revision).filter(|revision| *revision != before.revision),
            token: Some(self.token).filter(|token| *token != before.token),
            era: self.era.clone().filter(|_| self.era != before.era),
            ..Effects::default()
        }
    }
}

/// A session as it is now. Without a record it has ended; without a revision that is forgotten, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SessionEffect {
    session: SessionId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revision: Option<Revision>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    state: Option<SessionState>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SessionState {
    expires_at: StoreTime,
    opened_by: OperationId,
    record: SessionRecord,
}

/// A slot as it is now; deleted without a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SlotEffect {
    slot: Slot,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revision: Option<Revision>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    record: Option<SlotRecord>,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "checkpoint_text")]
    checkpoint: Option<Bytes>,
}

/// A record of an operator as it is now; deleted without one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct RecordEffect {
    #[serde(with = "key_text")]
    key: RecordKey,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revision: Option<Revision>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    record: Option<Record>,
}

impl StoreModel {
    /// The same store, empty, which notes from now on what requests change: [`take_effects`](Self::take_effects) tells
    /// it. Who never takes them should not ask for it.
    #[must_use]
    pub fn recording(mut self) -> Self {
        self.server.recording = true;
        self.server.cluster = None;
        self
    }

    /// What has changed since the last time. A store that has forgotten everything cannot say so in effects.
    #[must_use]
    pub fn take_effects(&mut self) -> Effects {
        let Some(cluster) = &mut self.server.cluster else {
            self.taken = Frame::default();
            return Effects::default();
        };
        let touched = cluster.index.take_touched();
        let frame = Frame::of(cluster);
        let mut effects = frame.since(&self.taken);
        fill(&mut effects, cluster, touched.iter(), self.taken.revision);
        self.taken = frame;
        effects
    }

    /// The whole state, as the effects of everything so far on an empty store.
    #[must_use]
    pub fn whole(&self) -> Effects {
        let Some(cluster) = &self.server.cluster else { return Effects::default() };
        let mut effects = Frame::of(cluster).since(&Frame::default());
        fill(&mut effects, cluster, cluster.index.keys(), Revision(0));
        effects
    }

    /// Follows another model: takes over effects that were taken from it, in their order. They are not taken from this
    /// one again.
    pub fn apply(&mut self, effects: Effects) {
        let Server { cluster, history, tombstones_max, recording, .. } = &mut self.server;
        if let (None, Some(era)) = (&cluster, &effects.era) {
            *cluster = Some(Cluster::new(era.lineage.generation(), era.history, *tombstones_max, *recording));
        }
        let Some(cluster) = cluster else { return };
        if let Some(era) = &effects.era {
            *history = era.history;
        }
        put_in(cluster, effects);
        drop(cluster.index.take_touched());
        self.taken = Frame::of(cluster);
    }

    /// Keeps the sessions whose time is over, for a store that does not end them by its clock but closes them for another
    /// reason.
    pub fn keep_sessions(&mut self, now: StoreTime) {
        if let Some(cluster) = &mut self.server.cluster {
            cluster.keep_expired(now);
        }
    }

    /// Ends all sessions, for their processes cannot live any more: the host was started anew.
    pub fn end_sessions(&mut self) {
        let Some(cluster) = &mut self.server.cluster else { return };
        let all: Vec<SessionId> = cluster.sessions.keys().copied().collect();
        for session in &all {
            cluster.remove_session(*session);
        }
        if !all.is_empty() {
            self.hints.push(WatchHint::Everyone);
        }
    }
}

/// Adds these keys as they are now; `seen` is the revision that the reader has.
fn fill<'a>(effects: &mut Effects, cluster: &Cluster, keys: impl Iterator<Item = &'a Key>, seen: Revision) {
    for key in keys {
        let revision = cluster.index.revision_of(key);
        match key {
            Key::Session(id) => match cluster.sessions.get(id) {
                Some(session) if session.record.revision <= seen => {
                    effects.extended.insert(*id, session.expires_at);
                }
                session => {
                    let state = session.map(|session| SessionState {
                        expires_at: session.expires_at,
                        opened_by: session.opened_by,
                        record: SessionRecord { revision: Revision::default(), ..session.record.clone() },
                    });
                    effects.sessions.push(SessionEffect { session: *id, revision, state });
                }
            },
            Key::Slot(slot) => {
                let mut record = cluster.slots.get(slot).cloned();
                // Both stand beside the record.
                let checkpoint = record.as_mut().and_then(|record| {
                    record.revision = Revision::default();
                    record.checkpoint.take()
                });
                effects.slots.push(SlotEffect { slot: slot.clone(), revision, record, checkpoint });
            }
            Key::Record(key) => {
                let record = cluster.records.get(key).map(|versioned| versioned.record.clone());
                effects.records.push(RecordEffect { key: key.clone(), revision, record });
            }
        }
    }
}

/// Sessions come before slots, so that those know whose count they belong to.
fn put_in(cluster: &mut Cluster, effects: Effects) {
    let Effects { revision, token, era, extended, sessions, slots, records } = effects;
    cluster.revision = revision.unwrap_or(cluster.revision);
    for SessionEffect { session, revision, state } in sessions {
        match state {
            Some(SessionState { expires_at, opened_by, mut record }) => {
                record.revision = revision.unwrap_or_default();
                cluster.restore_session(session, Session { record, opened_by, expires_at, held: Held::default() });
            }
            None => cluster.forget_session(session, revision),
        }
    }
    for (session, expires_at) in extended {
        cluster.restore_expiry(session, expires_at);
    }
    for SlotEffect { slot, revision, record, checkpoint } in slots {
        cluster.index.restore(Key::Slot(slot.clone()), revision, record.is_some());
        match record {
            Some(mut record) => {
                record.revision = revision.unwrap_or_default();
                record.checkpoint = checkpoint;
                cluster.put_slot(&slot, record);
            }
            None => drop(cluster.slots.remove(&slot)),
        }
    }
    for RecordEffect { key, revision, record } in records {
        cluster.index.restore(Key::Record(key.clone()), revision, record.is_some());
        match record {
            Some(record) => {
                let revision = revision.unwrap_or_default();
                cluster.records.insert(key, Versioned { record, revision });
            }
            None => drop(cluster.records.remove(&key)),
        }
    }
    cluster.token = token.unwrap_or(cluster.token);
    if let Some(Era { lineage, history, quiet, opened, floor }) = era {
        cluster.lineage = lineage;
        cluster.history = history;
        cluster.quiet = quiet;
        cluster.opened = opened;
        cluster.index.forget_up_to(floor);
    }
}

/// The name of an operator's record as text.
mod key_text {
    use super::{Deserialize, Deserializer, Key, RecordKey, Serializer};

    pub(super) fn serialize<S: Serializer>(key: &RecordKey, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Key::Record(key.clone()).to_text())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RecordKey, D::Error> {
        let text = String::deserialize(deserializer)?;
        match Key::parse(&text) {
            Some(Key::Record(key)) => Ok(key),
            Some(Key::Session(_) | Key::Slot(_)) | None => {
                Err(serde::de::Error::custom(format!("{text:?} names no record of an operator")))
            }
        }
    }
}

/// A checkpoint as text where it is text, else as hexadecimal digits.
mod checkpoint_text {
    use super::{Bytes, Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Text {
        Text(String),
        Hex(String),
    }

    pub(super) fn serialize<S: Serializer>(bytes: &Option<Bytes>, serializer: S) -> Result<S::Ok, S::Error> {
        let text = bytes.as_ref().map(|bytes| match std::str::from_utf8(bytes) {
            Ok(text) => Text::Text(text.to_owned()),
            Err(_) => Text::Hex(bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
        });
        text.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Bytes>, D::Error> {
        match Option::<Text>::deserialize(deserializer)? {
            None => Ok(None),
            Some(Text::Text(text)) => Ok(Some(text.into())),
            Some(Text::Hex(hex)) => match parse_hex(&hex) {
                Some(bytes) => Ok(Some(bytes.into())),
                None => Err(serde::de::Error::custom("a checkpoint's hexadecimal digits are damaged")),
            },
        }
    }

    fn parse_hex(hex: &str) -> Option<Vec<u8>> {
        if !hex.is_ascii() || !hex.len().is_multiple_of(2) {
            return None;
        }
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::{
        Capabilities, ChangeKind, ChangeRequest, ClusterSettings, HeartbeatRequest, Incarnation, Known, NodeInfo,
        OpenRequest, Opening, SlotChange,
    };

    const TTL: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> StoreTime {
        StoreTime::from_micros(seconds * 1_000_000)
    }

    fn store() -> (StoreModel, SessionId) {
        let mut store = StoreModel::new(1, Capabilities::strict("model")).recording();
        let open = OpenRequest {
            known: Known::default(),
            operation: OperationId::from_bits(1),
            incarnation: Incarnation::from_bits(1),
            replaces: None,
            ttl: TTL,
            info: Arc::new(NodeInfo::new("a".parse().unwrap(), ClusterSettings::new(TTL))),
        };
        let Opening::Opened { session, .. } = store.open(at(1), &open).unwrap() else { panic!() };
        (store, session)
    }

    fn change(store: &mut StoreModel, session: SessionId, token: FencingToken, kind: ChangeKind) -> FencingToken {
        let slot: Slot = "w/0".parse().unwrap();
        let changes = vec![SlotChange { slot: slot.clone(), token, kind }];
        store.change(at(2), &ChangeRequest { known: Known::default(), session, changes }).unwrap();
        store.slot(&slot).unwrap().token
    }

    #[test]
    fn a_heartbeat_extends_and_a_checkpoint_does_more() {
        let (mut store, session) = store();
        let opened = store.take_effects();
        assert!(!opened.is_empty() && !opened.only_extends());
        let beat = HeartbeatRequest {
            known: Known::default(),
            session,
            since: None,
            changes_max: 1,
            due_within: TTL,
            info: None,
        };
        store.heartbeat(at(3), &beat).unwrap();
        let extended = store.take_effects();
        assert!(!extended.is_empty() && extended.only_extends());
        assert_eq!(serde_json::to_string(&extended).unwrap(), format!(r#"{{"extended":{{"{session}":13000000}}}}"#));

        let token = change(
            &mut store,
            session,
            FencingToken::NONE,
            ChangeKind::Acquire { operation: OperationId::from_bits(2) },
        );
        assert!(!store.take_effects().only_extends());
        for (checkpoint, text) in [(&b"a line"[..], r#"{"text":"a line"}"#), (&[0xff, 0][..], r#"{"hex":"ff00"}"#)] {
            change(
                &mut store,
                session,
                token,
                ChangeKind::SaveCheckpoint { checkpoint: Bytes::copy_from_slice(checkpoint) },
            );
            let effects = store.take_effects();
            assert!(!effects.only_extends());
            let json = serde_json::to_string(&effects).unwrap();
            assert!(json.contains(text), "{json}");
            assert_eq!(serde_json::from_str::<Effects>(&json).unwrap(), effects);
        }
        for damaged in [r#"{"hex":"f"}"#, r#"{"hex":"zz"}"#] {
            let json = format!(r#"{{"slots":[{{"slot":"w/0","checkpoint":{damaged}}}]}}"#);
            assert!(serde_json::from_str::<Effects>(&json).is_err(), "{json}");
        }
        assert!(serde_json::from_str::<Effects>(r#"{"records":[{"key":"slot w/0"}]}"#).is_err());
    }

    #[test]
    fn after_data_were_lost_or_went_back_everything_is_new_again() {
        let (mut full, session) = store();
        change(&mut full, session, FencingToken::NONE, ChangeKind::Acquire { operation: OperationId::from_bits(2) });
        let _ = full.take_effects();
        let token = full.token();
        let empty = StoreModel::new(1, Capabilities::strict("model")).recording();
        let mut back = full.clone();
        back.roll_back(&empty);
        full.lose_everything();
        for mut store in [full, back] {
            // A node reports the very token that was the largest when effects were last taken.
            let known = Known { token, ..Known::default() };
            let look = crate::SnapshotRequest { known, session: None, cursor: None };
            store.snapshot(at(3), &look).unwrap();
            let mut follower = StoreModel::new(2, Capabilities::strict("model")).recording();
            follower.apply(store.take_effects());
            assert_eq!(follower.server.cluster, store.server.cluster);
        }
    }

    #[test]
    fn ending_all_sessions_makes_orphans_and_is_an_effect() {
        let (mut store, session) = store();
        let token = change(
            &mut store,
            session,
            FencingToken::NONE,
            ChangeKind::Acquire { operation: OperationId::from_bits(2) },
        );
        let mut follower = StoreModel::new(2, Capabilities::strict("model")).recording();
        follower.apply(store.take_effects());
        assert_eq!(follower.held(session).unwrap().count, 1);
        store.end_sessions();
        assert_eq!(store.take_hints(), [WatchHint::Everyone]);
        follower.apply(store.take_effects());
        let slot = "w/0".parse().unwrap();
        assert_eq!((follower.sessions().count(), follower.owner(at(2), &slot)), (0, None));
        assert_eq!(follower.slot(&slot).unwrap().token, token);
        store.end_sessions();
        assert!(store.take_effects().is_empty());
    }
}
