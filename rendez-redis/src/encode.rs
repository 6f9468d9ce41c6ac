//! Records as text, and back. The layout is described in `docs/stores/redis.md`; whoever changes it changes the
//! layout's version.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redis::Value;
use rendez_core::{
    Change, ErrorKind, FencingToken, Holder, Offer, Record, Refused, Revision, SessionId, SessionRecord, SlotRecord,
    StoreError, StoreTime, Versioned,
};
use serde::Serialize;

use crate::keys;

/// Something in the store that this crate did not write.
pub(crate) fn damaged(what: &str) -> StoreError {
    StoreError::new(ErrorKind::Fatal, format!("the Redis store holds {what} that cannot be read"))
}

pub(crate) fn json<T: Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value)
        .map_err(|error| StoreError::new(ErrorKind::Fatal, "a record cannot be written as JSON").with_source(error))
}

pub(crate) fn micros_down(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).min(MICROS_MAX)
}

pub(crate) fn micros_up(duration: Duration) -> u64 {
    micros_down(duration.saturating_add(Duration::from_nanos(999)))
}

/// About a century: no sum with the clock leaves what a double holds exactly.
const MICROS_MAX: u64 = 3_000_000_000_000_000;

/// Walks through a reply.
pub(crate) struct Reply(std::vec::IntoIter<Value>);

impl Reply {
    pub(crate) fn new(value: Value) -> Result<Self, StoreError> {
        match value {
            Value::Array(items) => Ok(Self(items.into_iter())),
            Value::Nil => Ok(Self(Vec::new().into_iter())),
            other => Err(unexpected(&format!("{other:?}"))),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.len() == 0
    }

    fn value(&mut self) -> Result<Value, StoreError> {
        self.0.next().ok_or_else(|| unexpected("too short"))
    }

    pub(crate) fn optional_bytes(&mut self) -> Result<Option<Vec<u8>>, StoreError> {
        match self.value()? {
            Value::Nil => Ok(None),
            Value::BulkString(bytes) => Ok(Some(bytes)),
            Value::SimpleString(text) => Ok(Some(text.into_bytes())),
            Value::Okay => Ok(Some(b"OK".to_vec())),
            Value::Int(number) => Ok(Some(number.to_string().into_bytes())),
            other => Err(unexpected(&format!("{other:?}"))),
        }
    }

    pub(crate) fn optional_text(&mut self) -> Result<Option<String>, StoreError> {
        let text = self.optional_bytes()?.map(String::from_utf8).transpose();
        text.map_err(|_| unexpected("text that is no UTF-8"))
    }

    pub(crate) fn text(&mut self) -> Result<String, StoreError> {
        self.optional_text()?.ok_or_else(|| unexpected("nothing where text is wanted"))
    }

    pub(crate) fn number(&mut self) -> Result<u64, StoreError> {
        self.text()?.parse().map_err(|_| unexpected("text where a number is wanted"))
    }

    pub(crate) fn micros(&mut self) -> Result<Duration, StoreError> {
        Ok(Duration::from_micros(self.number()?))
    }

    pub(crate) fn parse<T: std::str::FromStr>(&mut self) -> Result<T, StoreError> {
        self.text()?.parse().map_err(|_| unexpected("text of another form"))
    }

    pub(crate) fn list(&mut self) -> Result<Self, StoreError> {
        Self::new(self.value()?)
    }

    /// Changes: name, record, checkpoint, and so on.
    pub(crate) fn changes(&mut self) -> Result<Vec<Change>, StoreError> {
        let mut list = self.list()?;
        let mut changes = Vec::with_capacity(list.0.len() / 3);
        while !list.is_empty() {
            let (member, record, checkpoint) = (list.text()?, list.optional_text()?, list.optional_bytes()?);
            let (kind, field) = member.split_once(keys::SEPARATOR).ok_or_else(|| damaged("a name"))?;
            changes.push(match kind {
                "session" => Change::Session(
                    field.parse().map_err(|_| damaged("a session's name"))?,
                    record.as_deref().map(session).transpose()?,
                ),
                "slot" => Change::Slot(
                    keys::parse_slot_field(field).ok_or_else(|| damaged("a slot's name"))?,
                    record.as_deref().map(|record| slot(record, checkpoint)).transpose()?,
                ),
                "record" => Change::Record(
                    keys::parse_record_field(field).ok_or_else(|| damaged("a record's name"))?,
                    record.as_deref().map(versioned).transpose()?,
                ),
                _ => return Err(damaged("a name")),
            });
        }
        Ok(changes)
    }
}

fn unexpected(what: &str) -> StoreError {
    let mut what = what.to_owned();
    what.truncate(200);
    StoreError::new(ErrorKind::Fatal, format!("an answer of Redis that cannot be read: {what}"))
}

/// A session's record.
pub(crate) fn session(record: &str) -> Result<SessionRecord, StoreError> {
    let bad = || damaged("a session");
    let mut parts = record.splitn(9, '\t');
    let mut next = || parts.next().ok_or_else(bad);
    let incarnation = next()?.parse().map_err(|_| bad())?;
    let ttl = Duration::from_micros(next()?.parse().map_err(|_| bad())?);
    let opened_at = StoreTime::from_micros(next()?.parse().map_err(|_| bad())?);
    let _opened_by = next()?;
    let revision = Revision(next()?.parse().map_err(|_| bad())?);
    let (_count, _digest, _node) = (next()?, next()?, next()?);
    let info = serde_json::from_str(next()?).map_err(|error| bad().with_source(error))?;
    Ok(SessionRecord { incarnation, opened_at, ttl, info: Arc::new(info), revision })
}

/// A slot's record.
pub(crate) fn slot(record: &str, checkpoint: Option<Vec<u8>>) -> Result<SlotRecord, StoreError> {
    parse_slot(record, checkpoint).ok_or_else(|| damaged("a slot"))
}

fn parse_slot(record: &str, checkpoint: Option<Vec<u8>>) -> Option<SlotRecord> {
    let mut parts = record.split('\t');
    let token = FencingToken::new(parts.next()?.parse().ok()?);
    let granted_by = parts.next()?.parse().ok()?;
    let (session, node) = (parts.next()?, parts.next()?);
    let holder = if session.is_empty() {
        None
    } else {
        Some(Holder { session: session.parse().ok()?, node: node.try_into().ok()? })
    };
    let taken_at = StoreTime::from_micros(parts.next()?.parse().ok()?);
    let freed_at = moment(parts.next()?)?;
    let moved_at = moment(parts.next()?)?;
    let offer = match parts.next()? {
        "" => None,
        text => Some(offer(text)?),
    };
    let force = match parts.next()? {
        "" => None,
        text => Some(FencingToken::new(text.parse().ok()?)),
    };
    let revision = Revision(parts.next()?.parse().ok()?);
    let _factor = parts.next()?;
    let mut refusals = Vec::new();
    for text in parts {
        let (until, node) = text.split_once(' ')?;
        refusals.push(Refused { node: node.try_into().ok()?, until: StoreTime::from_micros(until.parse().ok()?) });
    }
    let checkpoint = checkpoint.map(Bytes::from);
    Some(SlotRecord {
        token,
        granted_by,
        holder,
        taken_at,
        freed_at,
        moved_at,
        offer,
        refusals,
        force,
        checkpoint,
        revision,
    })
}

fn moment(text: &str) -> Option<Option<StoreTime>> {
    if text.is_empty() {
        return Some(None);
    }
    Some(Some(StoreTime::from_micros(text.parse().ok()?)))
}

fn offer(text: &str) -> Option<Offer> {
    let mut parts = text.split(' ');
    let id = parts.next()?.parse().ok()?;
    let to: SessionId = parts.next()?.parse().ok()?;
    let expires_at = StoreTime::from_micros(parts.next()?.parse().ok()?);
    let giver_total = parts.next()?.parse().ok()?;
    let giver_of_workload = parts.next()?.parse().ok()?;
    let forced = parts.next()? == "1";
    let ready = parts.next()? == "1";
    Some(Offer { id, to, expires_at, giver_total, giver_of_workload, forced, ready })
}

/// An operator's record: its revision and JSON.
pub(crate) fn versioned(record: &str) -> Result<Versioned, StoreError> {
    let (revision, content) = record.split_once('\t').ok_or_else(|| damaged("a record"))?;
    let revision = Revision(revision.parse().map_err(|_| damaged("a record's revision"))?);
    let record: Record = serde_json::from_str(content).map_err(|error| damaged("a record").with_source(error))?;
    Ok(Versioned { record, revision })
}
