//! Rows as records, and values as parameters. The tables are described in `docs/stores/postgres.md`; whoever changes
//! them changes the layout's version.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rendez_core::{
    Change, ErrorKind, FencingToken, Generation, Holder, Offer, OperationId, Record, RecordKey, Revision, SessionId,
    SessionRecord, Slot, SlotRecord, Stamp, StoreError, StoreTime, Versioned, WorkloadName,
};
use serde::Serialize;
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, accepts, to_sql_checked};

/// Something in the store that this crate did not write.
pub(crate) fn damaged(what: &str) -> StoreError {
    StoreError::new(ErrorKind::Fatal, format!("the PostgreSQL store holds {what} that cannot be read"))
}

pub(crate) fn json<T: Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value)
        .map_err(|error| StoreError::new(ErrorKind::Fatal, "a record cannot be written as JSON").with_source(error))
}

/// About a century: no sum with the clock leaves a `bigint`, nor what other stores can count.
const MICROS_MAX: i64 = 3_000_000_000_000_000;

pub(crate) fn micros_down(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX).min(MICROS_MAX)
}

pub(crate) fn micros_up(duration: Duration) -> i64 {
    micros_down(duration.saturating_add(Duration::from_nanos(999)))
}

/// A number as `bigint`. What is too large for one is no number that the store has given out.
pub(crate) fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// 128 bits as `uuid`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Id(pub(crate) u128);

impl ToSql for Id {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.extend_from_slice(&self.0.to_be_bytes());
        Ok(IsNull::No)
    }

    accepts!(UUID);
    to_sql_checked!();
}

impl<'a> FromSql<'a> for Id {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(u128::from_be_bytes(raw.try_into()?)))
    }

    accepts!(UUID);
}

/// What a row of an answer is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Stamp,
    Session,
    Slot,
    Record,
}

/// One row of an answer.
pub(crate) struct Answer {
    pub(crate) kind: Kind,
    pub(crate) status: String,
    ids: Vec<Option<Id>>,
    numbers: Vec<Option<i64>>,
    texts: Vec<Option<String>>,
    bytes: Option<Vec<u8>>,
}

fn unexpected(source: impl Into<Box<dyn Error + Send + Sync>>) -> StoreError {
    StoreError::new(ErrorKind::Fatal, "an answer of PostgreSQL that cannot be read").with_source(source)
}

impl Answer {
    pub(crate) fn new(row: &Row) -> Result<Self, StoreError> {
        let kind: i16 = row.try_get(0).map_err(unexpected)?;
        let kind = match kind {
            0 => Kind::Stamp,
            1 => Kind::Session,
            2 => Kind::Slot,
            3 => Kind::Record,
            _ => return Err(unexpected("a row of an unknown kind")),
        };
        Ok(Self {
            kind,
            status: row.try_get::<_, Option<String>>(1).map_err(unexpected)?.unwrap_or_default(),
            ids: row.try_get::<_, Option<Vec<Option<Id>>>>(2).map_err(unexpected)?.unwrap_or_default(),
            numbers: row.try_get::<_, Option<Vec<Option<i64>>>>(3).map_err(unexpected)?.unwrap_or_default(),
            texts: row.try_get::<_, Option<Vec<Option<String>>>>(4).map_err(unexpected)?.unwrap_or_default(),
            bytes: row.try_get(5).map_err(unexpected)?,
        })
    }

    fn find_id(&self, at: usize) -> Option<u128> {
        self.ids.get(at).copied().flatten().map(|id| id.0)
    }

    pub(crate) fn id(&self, at: usize) -> Result<u128, StoreError> {
        self.find_id(at).ok_or_else(|| unexpected("no id where one is wanted"))
    }

    /// How many ids there are.
    pub(crate) fn ids(&self) -> usize {
        self.ids.len()
    }

    fn find_number(&self, at: usize) -> Option<u64> {
        self.numbers.get(at).copied().flatten().and_then(|number| u64::try_from(number).ok())
    }

    pub(crate) fn number(&self, at: usize) -> Result<u64, StoreError> {
        self.find_number(at).ok_or_else(|| unexpected("no number where one is wanted"))
    }

    pub(crate) fn micros(&self, at: usize) -> Result<Duration, StoreError> {
        self.number(at).map(Duration::from_micros)
    }

    fn narrow(&self, at: usize) -> Result<u32, StoreError> {
        u32::try_from(self.number(at)?).map_err(unexpected)
    }

    pub(crate) fn find_text(&self, at: usize) -> Option<&str> {
        self.texts.get(at).and_then(Option::as_deref)
    }

    pub(crate) fn text(&self, at: usize) -> Result<&str, StoreError> {
        self.find_text(at).ok_or_else(|| unexpected("no text where some is wanted"))
    }

    pub(crate) fn stamp(&self) -> Result<Stamp, StoreError> {
        Ok(Stamp {
            generation: Generation::from_bits(self.id(0)?),
            revision: self.revision()?,
            now: StoreTime::from_micros(self.number(1)?),
            token: FencingToken::new(self.number(2)?),
            quiet: self.micros(3)?,
        })
    }

    /// The revision that comes first among the numbers of every row.
    pub(crate) fn revision(&self) -> Result<Revision, StoreError> {
        self.number(0).map(Revision)
    }

    fn is_deleted(&self) -> bool {
        self.status == "deleted"
    }

    fn slot_name(&self) -> Result<Slot, StoreError> {
        let workload = WorkloadName::new(self.text(0)?).map_err(|_| damaged("a workload's name"))?;
        Ok(Slot::new(workload, self.narrow(1)?))
    }

    /// A slot's record; nothing if there is none.
    pub(crate) fn slot(self) -> Result<Option<SlotRecord>, StoreError> {
        let Some(token) = self.find_number(2) else { return Ok(None) };
        let time = |at: usize| self.find_number(at).map(StoreTime::from_micros);
        let holder = match self.find_id(1) {
            None => None,
            Some(session) => Some(Holder {
                session: SessionId::from_bits(session),
                node: self.text(1)?.try_into().map_err(|_| damaged("a node's name"))?,
            }),
        };
        let offer = match self.find_id(2) {
            None => None,
            Some(id) => Some(Offer {
                id: OperationId::from_bits(id),
                to: SessionId::from_bits(self.id(3)?),
                expires_at: StoreTime::from_micros(self.number(6)?),
                giver_total: self.narrow(7)?,
                giver_of_workload: self.narrow(8)?,
                forced: self.number(9)? == 1,
                ready: self.number(10)? == 1,
            }),
        };
        let refusals = match self.find_text(2) {
            None => Vec::new(),
            Some(text) => serde_json::from_str(text).map_err(|error| damaged("refusals").with_source(error))?,
        };
        Ok(Some(SlotRecord {
            token: FencingToken::new(token),
            granted_by: OperationId::from_bits(self.id(0)?),
            holder,
            taken_at: StoreTime::from_micros(self.number(3)?),
            freed_at: time(4),
            moved_at: time(5),
            offer,
            refusals,
            force: self.find_number(11).map(FencingToken::new),
            revision: self.revision()?,
            checkpoint: self.bytes.map(Bytes::from),
        }))
    }

    fn session(&self) -> Result<SessionRecord, StoreError> {
        let info = serde_json::from_str(self.text(0)?).map_err(|error| damaged("a session").with_source(error))?;
        Ok(SessionRecord {
            incarnation: rendez_core::Incarnation::from_bits(self.id(1)?),
            opened_at: StoreTime::from_micros(self.number(2)?),
            ttl: self.micros(1)?,
            info: Arc::new(info),
            revision: self.revision()?,
        })
    }

    fn key(&self) -> Result<RecordKey, StoreError> {
        let bad = || damaged("a record's name");
        let name = self.text(1)?;
        Ok(match self.text(0)? {
            "settings" => RecordKey::Settings,
            "workload" => RecordKey::Workload(name.try_into().map_err(|_| bad())?),
            "node" => RecordKey::Node(name.try_into().map_err(|_| bad())?),
            "pin" => RecordKey::Pin(Slot::new(name.try_into().map_err(|_| bad())?, self.narrow(1)?)),
            _ => return Err(bad()),
        })
    }

    fn record(&self) -> Result<Versioned, StoreError> {
        let record: Record =
            serde_json::from_str(self.text(2)?).map_err(|error| damaged("a record").with_source(error))?;
        Ok(Versioned { record, revision: self.revision()? })
    }

    /// The row as a change; the stamp's is none.
    pub(crate) fn change(self) -> Result<Change, StoreError> {
        let exists = !self.is_deleted();
        Ok(match self.kind {
            Kind::Session => {
                Change::Session(SessionId::from_bits(self.id(0)?), exists.then(|| self.session()).transpose()?)
            }
            Kind::Slot => {
                let name = self.slot_name()?;
                Change::Slot(name, if exists { self.slot()? } else { None })
            }
            Kind::Record => Change::Record(self.key()?, exists.then(|| self.record()).transpose()?),
            Kind::Stamp => return Err(unexpected("a second stamp")),
        })
    }
}

/// The columns that name an operator's record.
pub(crate) fn record_columns(key: &RecordKey) -> (&'static str, &str, i32) {
    match key {
        RecordKey::Settings => ("settings", "", NO_UNIT),
        RecordKey::Workload(workload) => ("workload", workload.as_str(), NO_UNIT),
        RecordKey::Node(node) => ("node", node.as_str(), NO_UNIT),
        RecordKey::Pin(slot) => ("pin", slot.workload.as_str(), unit(slot)),
    }
}

/// Stands in the column of the unit where there is none.
pub(crate) const NO_UNIT: i32 = -1;

/// A unit as `int`: all that can be are small enough.
pub(crate) fn unit(slot: &Slot) -> i32 {
    i32::try_from(slot.unit).unwrap_or(i32::MAX)
}
