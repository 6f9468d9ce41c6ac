//! The store: requests into calls of functions, their answers back.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rendez_core::{
    AdminOutcome, AdminRequest, Beat, Capabilities, ChangeKind, ChangeOutcome, ChangeReply, ChangeRequest,
    CloseRequest, ClusterName, ClusterSettings, Conflict, Cursor, Due, ErrorKind, FencingToken, Generation,
    HeartbeatRequest, Held, Holder, Incarnation, Known, LeaseStore, NodeId, NodeInfo, OpenRequest, Opening, Record,
    Revision, SessionId, Slot, SlotRecord, SnapshotPage, SnapshotRequest, Stamp, StoreError, Sync, Watch,
};
use tokio_postgres::Config;
use tokio_postgres::config::SslMode;
use tokio_postgres::types::Type;

use crate::connect::{Connector, Parameter};
use crate::encode::{self, Answer, Id, Kind, NO_UNIT, micros_down, micros_up, number, unit};
use crate::options::{Endpoint, PostgresOptions, Standbys, fatal, millis};

/// The largest token: what every store can count.
const TOKEN_MAX: u64 = (1 << 53) - 1;

/// The most changes in one request: a thousand slots in one statement.
const CHANGES_MAX: usize = 1024;

/// A [`LeaseStore`] in PostgreSQL. Clones share their connections.
#[derive(Clone)]
pub struct PostgresStore {
    connector: Arc<Connector>,
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore")
            .field("server", &self.connector.name)
            .field("options", &self.connector.options)
            .finish_non_exhaustive()
    }
}

impl PostgresStore {
    /// Connects to `postgres://user:password@host:port/database`, looks whether the server fits, and makes the schema
    /// if it is not there. With several hosts, the one that accepts writes is used.
    ///
    /// # Errors
    /// [`ErrorKind::Fatal`] for a URL, credentials or a server that cannot work; [`ErrorKind::Transient`] for a server
    /// that does not answer or is a standby. No message holds the password.
    pub async fn connect(url: &str, options: PostgresOptions) -> Result<Self, StoreError> {
        options.check()?;
        let endpoint = Endpoint::parse(url, &options, options.pooled)?;
        Ok(Self { connector: Connector::connect(endpoint, options).await? })
    }

    /// Connects with a configuration of your own. TLS is spoken if it requires that or the options have certificates.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn from_config(config: Config, options: PostgresOptions) -> Result<Self, StoreError> {
        options.check()?;
        let tls = options.tls.is_some() || config.get_ssl_mode() == SslMode::Require;
        let pooled = options.pooled;
        let endpoint = Endpoint::with_config(config, tls, &options, pooled)?;
        Ok(Self { connector: Connector::connect(endpoint, options).await? })
    }

    /// Uses a pool of your own. Of the options, those of the connection do not count; the watch wants `listen_url`. Its
    /// connections should have a `statement_timeout` of about the operation timeout.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn from_pool(pool: deadpool_postgres::Pool, options: PostgresOptions) -> Result<Self, StoreError> {
        options.check()?;
        let listen = match &options.listen_url {
            Some(url) => Some(Endpoint::parse(url, &options, false)?),
            None => None,
        };
        let name = "the given pool".to_owned();
        Ok(Self { connector: Connector::with_pool(pool, listen, name, options).await? })
    }

    /// Calls a request's function. Answers the stamp's row and the others.
    async fn call(
        &self,
        function: &str,
        cluster: &ClusterName,
        known: &Known,
        own: &[Parameter<'_>],
    ) -> Result<(Answer, Vec<Answer>), StoreError> {
        if known.token.get() > TOKEN_MAX {
            return Err(fatal(format!("the reported token {} cannot be: the last one is {TOKEN_MAX}", known.token)));
        }
        let connector = &self.connector;
        let generation = known.generation.map(|generation| Id(generation.bits()));
        let (token, ttl_max) = (number(known.token.get()), micros_up(known.session_ttl_max));
        let (lag, fresh) = (micros_up(self.replica_lag_max()), Id(random()?));
        // A little less than the request's, so that the server's answer comes first.
        let wait = millis(connector.options.operation_timeout * 4 / 5).to_string();
        let channel = connector.schema.channel(cluster);
        let mut parameters: Vec<Parameter<'_>> = Vec::with_capacity(8 + own.len());
        let cluster = cluster.as_str();
        parameters.extend::<[Parameter<'_>; 8]>([
            (&cluster, Type::TEXT),
            (&generation, Type::UUID),
            (&token, Type::INT8),
            (&ttl_max, Type::INT8),
            (&lag, Type::INT8),
            (&fresh, Type::UUID),
            (&wait, Type::TEXT),
            (&channel, Type::TEXT),
        ]);
        parameters.extend_from_slice(own);
        let places: Vec<String> = (1..=parameters.len()).map(|place| format!("${place}")).collect();
        let call = connector.schema.of(&format!("{function}({})", places.join(",")));
        let rows = connector.query(&format!("SELECT * FROM {call}"), &parameters).await?;
        tracing::trace!(request = function, rows = rows.len(), "answered");
        let mut stamp = None;
        let mut others = Vec::with_capacity(rows.len());
        for row in &rows {
            let answer = Answer::new(row)?;
            if answer.kind == Kind::Stamp {
                stamp = Some(answer);
            } else {
                others.push(answer);
            }
        }
        let stamp = stamp.ok_or_else(|| fatal("an answer of PostgreSQL without a stamp"))?;
        match stamp.status.as_str() {
            "lost" => Err(StoreError::new(ErrorKind::Lost, "the session does not live: open a new one")),
            "token" => Err(fatal(
                "tokens of this cluster cannot rise any more (see the server's clock): use another cluster name",
            )),
            "node" => Err(fatal(format!(
                "the session is node {:?}'s and cannot become another's: open another session",
                stamp.text(0)?
            ))),
            _ => Ok((stamp, others)),
        }
    }

    fn replica_lag_max(&self) -> Duration {
        match self.connector.options.standbys {
            Standbys::Asynchronous => self.connector.options.replica_lag_max,
            Standbys::None | Standbys::Synchronous => Duration::ZERO,
        }
    }
}

/// For sessions and generations: never the same twice, on any machine.
fn random() -> Result<u128, StoreError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| fatal(format!("the operating system gives no random numbers: {error}")))?;
    Ok(u128::from_ne_bytes(bytes))
}

fn declared(info: &NodeInfo) -> Vec<&str> {
    info.workloads.keys().map(rendez_core::WorkloadName::as_str).collect()
}

fn settings_of(text: Option<&str>, own: &ClusterSettings) -> Result<ClusterSettings, StoreError> {
    let Some(text) = text else { return Ok(own.clone()) };
    match serde_json::from_str(text) {
        Ok(Record::Settings(settings)) => Ok(settings),
        Ok(Record::Workload(_) | Record::Node(_) | Record::Pin(_)) => Err(encode::damaged("the cluster's settings")),
        Err(error) => Err(encode::damaged("the cluster's settings").with_source(error)),
    }
}

/// The changes of a request, a column each.
#[derive(Default)]
struct Columns<'a> {
    starts: Vec<i32>,
    kinds: Vec<&'static str>,
    workloads: Vec<&'a str>,
    units: Vec<i32>,
    factors: Vec<i64>,
    tokens: Vec<i64>,
    operations: Vec<Option<Id>>,
    offers: Vec<Option<Id>>,
    receivers: Vec<Option<Id>>,
    durations: Vec<Option<i64>>,
    totals: Vec<Option<i64>>,
    of_workloads: Vec<Option<i64>>,
    forced: Vec<Option<bool>>,
    checkpoints: Vec<Option<&'a [u8]>>,
}

/// What only some kinds of changes have.
#[derive(Default)]
struct Rest<'a> {
    operation: Option<Id>,
    offer: Option<Id>,
    receiver: Option<Id>,
    duration: Option<i64>,
    total: Option<i64>,
    of_workload: Option<i64>,
    forced: Option<bool>,
    checkpoint: Option<&'a [u8]>,
}

impl<'a> Columns<'a> {
    fn new(request: &'a ChangeRequest) -> Self {
        let mut columns = Self::default();
        let mut seen: HashSet<&Slot> = HashSet::new();
        for (place, change) in request.changes.iter().enumerate() {
            // A part of the request names no slot twice.
            if place == 0 || seen.contains(&change.slot) {
                seen.clear();
                columns.starts.push(i32::try_from(place + 1).unwrap_or(i32::MAX));
            }
            seen.insert(&change.slot);
            let (kind, rest) = rest(&change.kind);
            columns.kinds.push(kind);
            columns.workloads.push(change.slot.workload.as_str());
            columns.units.push(unit(&change.slot));
            columns.factors.push(Held::factor(&change.slot).into());
            columns.tokens.push(number(change.token.get()));
            columns.operations.push(rest.operation);
            columns.offers.push(rest.offer);
            columns.receivers.push(rest.receiver);
            columns.durations.push(rest.duration);
            columns.totals.push(rest.total);
            columns.of_workloads.push(rest.of_workload);
            columns.forced.push(rest.forced);
            columns.checkpoints.push(rest.checkpoint);
        }
        columns
    }
}

fn rest(kind: &ChangeKind) -> (&'static str, Rest<'_>) {
    let id = |operation: &rendez_core::OperationId| Some(Id(operation.bits()));
    let none = Rest::default();
    match kind {
        ChangeKind::Acquire { operation } => ("acquire", Rest { operation: id(operation), ..none }),
        ChangeKind::Release { checkpoint, refuse_for } => {
            ("release", Rest { checkpoint: checkpoint.as_deref(), duration: refuse_for.map(micros_down), ..none })
        }
        ChangeKind::Offer { operation, to, expires_in, giver_total, giver_of_workload, forced } => (
            "offer",
            Rest {
                operation: id(operation),
                receiver: Some(Id(to.bits())),
                duration: Some(micros_down(*expires_in)),
                total: Some((*giver_total).into()),
                of_workload: Some((*giver_of_workload).into()),
                forced: Some(*forced),
                ..none
            },
        ),
        ChangeKind::Withdraw { offer } => ("withdraw", Rest { offer: id(offer), ..none }),
        ChangeKind::Accept { offer } => ("accept", Rest { offer: id(offer), ..none }),
        ChangeKind::Refuse { offer, refuse_for } => {
            ("refuse", Rest { offer: id(offer), duration: Some(micros_down(*refuse_for)), ..none })
        }
        ChangeKind::Transfer { operation, offer, checkpoint } => {
            ("transfer", Rest { operation: id(operation), offer: id(offer), checkpoint: checkpoint.as_deref(), ..none })
        }
        ChangeKind::SaveCheckpoint { checkpoint } => ("checkpoint", Rest { checkpoint: Some(checkpoint), ..none }),
        ChangeKind::Readopt => ("readopt", none),
    }
}

fn conflict(text: &str) -> Result<Option<Conflict>, StoreError> {
    Ok(Some(match text {
        "" => return Ok(None),
        "quiet" => Conflict::Quiet,
        "token" => Conflict::Token,
        "held" => Conflict::Held,
        "not_holder" => Conflict::NotHolder,
        "receiver_gone" => Conflict::ReceiverGone,
        "offer" => Conflict::Offer,
        "not_quiet" => Conflict::NotQuiet,
        _ => return Err(encode::damaged("a conflict")),
    }))
}

/// The outcomes of a request of which every change was the first grant of its slot: the records follow from the
/// request and the stamp, so the server does not send them.
fn first_grants(request: &ChangeRequest, stamp: &Stamp, node: &str) -> Result<Vec<ChangeOutcome>, StoreError> {
    let node: NodeId = node.try_into().map_err(|_| encode::damaged("a node's name"))?;
    let count = request.changes.len();
    let mut outcomes = Vec::with_capacity(count);
    for (place, change) in request.changes.iter().enumerate() {
        let ChangeKind::Acquire { operation } = &change.kind else { return Err(encode::damaged("an answer")) };
        // The last one has the stamp's token and revision.
        let back = (count - 1 - place) as u64;
        outcomes.push(ChangeOutcome::Done(Some(SlotRecord {
            token: FencingToken::new(stamp.token.get().saturating_sub(back)),
            granted_by: *operation,
            holder: Some(Holder { session: request.session, node: node.clone() }),
            taken_at: stamp.now,
            freed_at: None,
            moved_at: None,
            offer: None,
            refusals: Vec::new(),
            force: None,
            checkpoint: None,
            revision: Revision(stamp.revision.0.saturating_sub(back)),
        })));
    }
    Ok(outcomes)
}

/// A place between two pages: the last thing of the page before.
#[derive(Debug, Default)]
struct Place {
    of: Option<Id>,
    part: i32,
    kind: String,
    name: String,
    unit: i32,
    id: Option<Id>,
}

/// Between the parts of a cursor: names cannot hold a control character.
const SEPARATOR: char = '\u{1f}';

impl Place {
    fn parse(Cursor(text): &Cursor) -> Option<Self> {
        let mut parts = text.split(SEPARATOR);
        let generation: Generation = parts.next()?.parse().ok()?;
        let mut place = Self { of: Some(Id(generation.bits())), unit: NO_UNIT, ..Self::default() };
        match (parts.next()?, parts.next()?, parts.next(), parts.next(), parts.next()) {
            ("session", id, None, None, None) => {
                place.part = 2;
                place.id = Some(Id(id.parse::<SessionId>().ok()?.bits()));
            }
            ("slot", name, Some(unit), None, None) => {
                (place.part, place.name, place.unit) = (3, name.to_owned(), unit.parse().ok()?);
            }
            ("record", kind, Some(name), Some(unit), None) => {
                (place.part, place.kind, place.name) = (1, kind.to_owned(), name.to_owned());
                place.unit = unit.parse().ok()?;
            }
            _ => return None,
        }
        Some(place)
    }

    fn after(generation: Generation, last: &rendez_core::Change) -> Cursor {
        use rendez_core::Change;
        let s = SEPARATOR;
        let place = match last {
            Change::Record(key, _) => {
                let (kind, name, unit) = encode::record_columns(key);
                format!("record{s}{kind}{s}{name}{s}{unit}")
            }
            Change::Session(id, _) => format!("session{s}{id}"),
            Change::Slot(slot, _) => format!("slot{s}{}{s}{}", slot.workload, slot.unit),
        };
        Cursor(format!("{generation}{s}{place}"))
    }
}

#[async_trait]
impl LeaseStore for PostgresStore {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::strict("postgres");
        capabilities.fencing = self.connector.fencing;
        capabilities.watch = self.connector.has_watch();
        capabilities.replica_lag_max = self.replica_lag_max();
        capabilities.changes_max = CHANGES_MAX;
        capabilities
    }

    async fn open(&self, cluster: &ClusterName, request: &OpenRequest) -> Result<Opening, StoreError> {
        self.capabilities().check_open(request)?;
        let info = &*request.info;
        let (operation, incarnation) = (Id(request.operation.bits()), Id(request.incarnation.bits()));
        let replaces = request.replaces.map(|session| Id(session.bits()));
        let settings = encode::json(&Record::Settings(info.settings.clone()))?;
        let own: [Parameter<'_>; 11] = [
            (&Id(random()?), Type::UUID),
            (&operation, Type::UUID),
            (&incarnation, Type::UUID),
            (&replaces, Type::UUID),
            (&micros_down(request.ttl), Type::INT8),
            (&info.node.as_str(), Type::TEXT),
            (&encode::json(info)?, Type::TEXT),
            (&declared(info), Type::TEXT_ARRAY),
            (&settings, Type::TEXT),
            (&micros_up(info.settings.session_ttl_max), Type::INT8),
            (&micros_up(info.settings.cold_start_hold), Type::INT8),
        ];
        let (answer, _) = self.call("open", cluster, &request.known, &own).await?;
        let stamp = answer.stamp()?;
        match answer.status.as_str() {
            "opened" => Ok(Opening::Opened {
                session: SessionId::from_bits(answer.id(1)?),
                ttl: answer.micros(4)?,
                settings: settings_of(answer.find_text(0), &info.settings)?,
                stamp,
            }),
            "in_use" => Ok(Opening::InUse {
                session: SessionId::from_bits(answer.id(1)?),
                incarnation: Incarnation::from_bits(answer.id(2)?),
                remaining: answer.micros(4)?,
                stamp,
            }),
            "ttl" => Err(fatal(format!(
                "a session TTL of {:?} is longer than the cluster's settings permit: use {:?} or less, or raise \
                 session_ttl_max in the cluster's settings",
                request.ttl,
                answer.micros(4)?
            ))),
            _ => Err(encode::damaged("an answer")),
        }
    }

    async fn heartbeat(&self, cluster: &ClusterName, request: &HeartbeatRequest) -> Result<Beat, StoreError> {
        let capabilities = self.capabilities();
        capabilities.check_heartbeat(request)?;
        let most = capabilities.changes_max.min(usize::try_from(request.changes_max).unwrap_or(usize::MAX));
        let info = request.info.as_deref();
        let since = request.since.map(|since| number(since.0));
        let own: [Parameter<'_>; 7] = [
            (&Id(request.session.bits()), Type::UUID),
            (&since, Type::INT8),
            (&i32::try_from(most).unwrap_or(i32::MAX), Type::INT4),
            (&micros_down(request.due_within), Type::INT8),
            (&info.map(|info| info.node.as_str()), Type::TEXT),
            (&info.map(encode::json).transpose()?, Type::TEXT),
            (&info.map(declared), Type::TEXT_ARRAY),
        ];
        let (answer, mut rows) = self.call("heartbeat", cluster, &request.known, &own).await?;
        let stamp = answer.stamp()?;
        let (ttl, floor) = (answer.micros(4)?, Revision(answer.number(7)?));
        let held = Held { count: answer.number(5)?, digest: answer.number(6)? };
        let mut due = Vec::with_capacity(answer.ids().saturating_sub(1));
        for place in 1..answer.ids() {
            due.push(Due { session: SessionId::from_bits(answer.id(place)?), remaining: answer.micros(7 + place)? });
        }
        let sync = match request.since {
            None => Sync::NotAsked,
            Some(since)
                if request.known.generation != Some(stamp.generation) || since > stamp.revision || since < floor =>
            {
                Sync::Snapshot
            }
            Some(since) => {
                let mut numbered = Vec::with_capacity(rows.len());
                for row in rows.drain(..) {
                    numbered.push((row.revision()?, row));
                }
                numbered.sort_by_key(|(revision, _)| *revision);
                let more = numbered.len() > most;
                numbered.truncate(most);
                let last = numbered.last().map_or(since, |(revision, _)| *revision);
                let changes: Result<Vec<_>, _> = numbered.into_iter().map(|(_, row)| row.change()).collect();
                Sync::Changes { changes: changes?, up_to: if more { last } else { stamp.revision }, more }
            }
        };
        Ok(Beat { stamp, ttl, held, sync, due })
    }

    async fn close(&self, cluster: &ClusterName, request: &CloseRequest) -> Result<(), StoreError> {
        let own: [Parameter<'_>; 1] = [(&Id(request.session.bits()), Type::UUID)];
        self.call("close", cluster, &request.known, &own).await.map(drop)
    }

    async fn change(&self, cluster: &ClusterName, request: &ChangeRequest) -> Result<ChangeReply, StoreError> {
        self.capabilities().check_change(request)?;
        let columns = Columns::new(request);
        let own: [Parameter<'_>; 15] = [
            (&Id(request.session.bits()), Type::UUID),
            (&columns.starts, Type::INT4_ARRAY),
            (&columns.kinds, Type::TEXT_ARRAY),
            (&columns.workloads, Type::TEXT_ARRAY),
            (&columns.units, Type::INT4_ARRAY),
            (&columns.factors, Type::INT8_ARRAY),
            (&columns.tokens, Type::INT8_ARRAY),
            (&columns.operations, Type::UUID_ARRAY),
            (&columns.offers, Type::UUID_ARRAY),
            (&columns.receivers, Type::UUID_ARRAY),
            (&columns.durations, Type::INT8_ARRAY),
            (&columns.totals, Type::INT8_ARRAY),
            (&columns.of_workloads, Type::INT8_ARRAY),
            (&columns.forced, Type::BOOL_ARRAY),
            (&columns.checkpoints, Type::BYTEA_ARRAY),
        ];
        let (answer, rows) = self.call("change", cluster, &request.known, &own).await?;
        let stamp = answer.stamp()?;
        if answer.status == "granted" {
            let outcomes = first_grants(request, &stamp, answer.text(0)?)?;
            return Ok(ChangeReply { stamp, outcomes });
        }
        if rows.len() != request.changes.len() {
            return Err(encode::damaged("an answer"));
        }
        let mut outcomes = Vec::with_capacity(rows.len());
        for row in rows {
            let conflict = conflict(&row.status)?;
            let record = row.slot()?;
            outcomes.push(match conflict {
                None => ChangeOutcome::Done(record),
                Some(conflict) => ChangeOutcome::Refused(conflict, record),
            });
        }
        Ok(ChangeReply { stamp, outcomes })
    }

    async fn snapshot(&self, cluster: &ClusterName, request: &SnapshotRequest) -> Result<SnapshotPage, StoreError> {
        let gone = || {
            let what = "the data may have been lost since this snapshot was begun: begin it again";
            StoreError::new(ErrorKind::Conflict, what)
        };
        let place = match &request.cursor {
            None => Place { unit: NO_UNIT, ..Place::default() },
            Some(cursor) => Place::parse(cursor).ok_or_else(gone)?,
        };
        let most = CHANGES_MAX;
        let own: [Parameter<'_>; 8] = [
            (&request.session.map(|session| Id(session.bits())), Type::UUID),
            (&i32::try_from(most).unwrap_or(i32::MAX), Type::INT4),
            (&place.of, Type::UUID),
            (&place.part, Type::INT4),
            (&place.kind, Type::TEXT),
            (&place.name, Type::TEXT),
            (&place.unit, Type::INT4),
            (&place.id, Type::UUID),
        ];
        let (answer, rows) = self.call("snapshot", cluster, &request.known, &own).await?;
        let stamp = answer.stamp()?;
        if place.of.is_some_and(|of| of != Id(stamp.generation.bits())) {
            return Err(gone());
        }
        let more = rows.len() > most;
        let items: Result<Vec<_>, _> = rows.into_iter().take(most).map(Answer::change).collect();
        let items = items?;
        let next = items.last().filter(|_| more).map(|last| Place::after(stamp.generation, last));
        Ok(SnapshotPage { stamp, items, next })
    }

    async fn administer(&self, cluster: &ClusterName, request: &AdminRequest) -> Result<AdminOutcome, StoreError> {
        self.capabilities().check_admin(request)?;
        let known = Known::default();
        let (key, record, expect) = match request {
            AdminRequest::ForceRelease { slot, token, now } => {
                let own: [Parameter<'_>; 4] = [
                    (&slot.workload.as_str(), Type::TEXT),
                    (&unit(slot), Type::INT4),
                    (&number(token.get()), Type::INT8),
                    (now, Type::BOOL),
                ];
                let (answer, _) = self.call("force", cluster, &known, &own).await?;
                return outcome(&answer);
            }
            AdminRequest::Put { key, record, expect } => (key, record, expect),
        };
        let (kind, name, unit) = encode::record_columns(key);
        let content = record.as_ref().map(encode::json).transpose()?;
        let (ttl_max, cold) = match record {
            Some(Record::Settings(settings)) => {
                (Some(micros_up(settings.session_ttl_max)), Some(micros_up(settings.cold_start_hold)))
            }
            Some(Record::Workload(_) | Record::Node(_) | Record::Pin(_)) | None => (None, None),
        };
        let expect = expect.map(|revision| number(revision.0));
        let mut again = false;
        // Deleting a workload with very many slots takes several calls.
        loop {
            let own: [Parameter<'_>; 8] = [
                (&kind, Type::TEXT),
                (&name, Type::TEXT),
                (&unit, Type::INT4),
                (&content, Type::TEXT),
                (if again { &None::<i64> } else { &expect }, Type::INT8),
                (&ttl_max, Type::INT8),
                (&cold, Type::INT8),
                (&again, Type::BOOL),
            ];
            let (answer, _) = self.call("put", cluster, &known, &own).await?;
            if answer.status != "more" {
                return outcome(&answer);
            }
            again = true;
        }
    }

    async fn watch(&self, cluster: &ClusterName) -> Result<Box<dyn Watch>, StoreError> {
        let channel = self.connector.schema.channel(cluster);
        Ok(Box::new(self.connector.listen(&channel).await?))
    }
}

fn outcome(answer: &Answer) -> Result<AdminOutcome, StoreError> {
    match answer.status.as_str() {
        "refused" => Ok(AdminOutcome::Refused(answer.stamp()?)),
        _ => Ok(AdminOutcome::Done(answer.stamp()?)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rendez_core::{Change, RecordKey, WorkloadName};

    use super::*;

    proptest! {
        #[test]
        fn a_place_survives_its_cursor(name in "[^\\p{Cc}]{1,40}", number in 0..1_000_000_u32, id: u128) {
            let generation = Generation::from_bits(id);
            let workload = WorkloadName::new(&name).unwrap();
            let slot = Slot::new(workload.clone(), number);
            let session = Change::Session(SessionId::from_bits(id), None);
            let place = Place::parse(&Place::after(generation, &session)).unwrap();
            prop_assert_eq!((place.part, place.id, place.of), (2, Some(Id(id)), Some(Id(id))));
            let place = Place::parse(&Place::after(generation, &Change::Slot(slot.clone(), None))).unwrap();
            prop_assert_eq!((place.part, place.name.as_str(), place.unit), (3, name.as_str(), unit(&slot)));
            for key in [
                RecordKey::Settings,
                RecordKey::Workload(workload),
                RecordKey::Node(NodeId::new(&name).unwrap()),
                RecordKey::Pin(slot),
            ] {
                let place = Place::parse(&Place::after(generation, &Change::Record(key.clone(), None))).unwrap();
                let columns = encode::record_columns(&key);
                prop_assert_eq!((place.part, place.kind.as_str(), place.name.as_str(), place.unit),
                    (1, columns.0, columns.1, columns.2));
            }
        }
    }

    #[test]
    fn nonsense_is_no_place() {
        for text in ["", "x", "00000000000000000000000000000001", "00000000000000000000000000000001\u{1f}slot\u{1f}w"] {
            assert!(Place::parse(&Cursor(text.to_owned())).is_none(), "{text}");
        }
    }

    #[test]
    fn parts_of_a_request_name_no_slot_twice() {
        let change = |unit: u32| rendez_core::SlotChange {
            slot: Slot::new("w".try_into().unwrap(), unit),
            token: FencingToken::NONE,
            kind: ChangeKind::Readopt,
        };
        let changes = [0, 1, 0, 2, 1, 1].map(change).to_vec();
        let request = ChangeRequest { known: Known::default(), session: SessionId::from_bits(1), changes };
        assert_eq!(Columns::new(&request).starts, [1, 3, 6]);
    }
}
