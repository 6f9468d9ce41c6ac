//! The store: requests into scripts, their answers back.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rendez_core::{
    AdminOutcome, AdminRequest, Beat, Capabilities, ChangeKind, ChangeOutcome, ChangeReply, ChangeRequest,
    CloseRequest, ClusterName, Conflict, Cursor, Due, ErrorKind, Fencing, FencingToken, Generation, HeartbeatRequest,
    Held, Known, LeaseStore, OpenRequest, Opening, Record, RecordKey, Revision, Slot, SlotChange, SnapshotPage,
    SnapshotRequest, Stamp, StoreError, StoreTime, Sync, Watch,
};

use crate::connect::Connector;
use crate::encode::{self, Reply, micros_down, micros_up};
use crate::errors::{Stage, explain, timed_out};
use crate::keys::{self, ClusterKeys};
use crate::options::{Endpoint, RedisOptions, fatal};
use crate::scripts::{self, Request};
use crate::watch::Hints;

/// What a double holds exactly stays below this.
const NUMBER_LIMIT: u64 = 1 << 53;

/// A [`LeaseStore`] in Redis. Clones share their connection.
#[derive(Clone)]
pub struct RedisStore {
    connector: Arc<Connector>,
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("server", &self.connector.name)
            .field("options", &self.connector.options)
            .finish_non_exhaustive()
    }
}

impl RedisStore {
    /// Connects to `redis://`, `rediss://` (TLS), `redis-sentinel://` or `redis-cluster://`, and looks whether the
    /// server fits.
    ///
    /// # Errors
    /// [`ErrorKind::Fatal`] for a URL, credentials or a server that cannot work; [`ErrorKind::Transient`] for a server
    /// that does not answer. No message holds the password.
    pub async fn connect(url: &str, options: RedisOptions) -> Result<Self, StoreError> {
        options.check()?;
        let endpoint = Endpoint::parse(url, &options)?;
        Self::with_endpoint(endpoint, options).await
    }

    /// Connects with a client of your own: its address, credentials and certificates.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn from_client(client: redis::Client, options: RedisOptions) -> Result<Self, StoreError> {
        options.check()?;
        Self::with_endpoint(Endpoint::Single(client.get_connection_info().clone()), options).await
    }

    async fn with_endpoint(endpoint: Endpoint, options: RedisOptions) -> Result<Self, StoreError> {
        let store = Self { connector: Connector::new(endpoint, options) };
        store.connector.link().await?;
        Ok(store)
    }

    /// Runs a request's script and takes its answer apart as far as all requests share it.
    async fn run(
        &self,
        request: &Request,
        cluster: &ClusterName,
        known: &Known,
        growing: bool,
        due_within: Option<Duration>,
        arguments: Vec<Vec<u8>>,
    ) -> Result<Reply, StoreError> {
        if known.token.get() >= NUMBER_LIMIT {
            return Err(token_too_large());
        }
        let options = &self.connector.options;
        let keys = ClusterKeys::new(&options.prefix, cluster);
        let mut all = vec![
            format!("{:032x}", fastrand::u128(..)).into_bytes(),
            known.generation.map(|generation| generation.to_string()).unwrap_or_default().into_bytes(),
            number(known.token.get()),
            number(micros_up(known.session_ttl_max)),
            number(micros_up(options.replica_lag_max)),
            keys.channel.into_bytes(),
            flag(growing),
            due_within.map(|within| number(micros_down(within))).unwrap_or_default(),
        ];
        all.extend(arguments);

        let replicas = (options.min_replicas > 0).then_some((options.min_replicas, options.acknowledge_within()));
        let limit = options.operation_timeout;
        // The connection that was in use when time ran out.
        let mut epoch = None;
        let mut stage = Stage::Connecting;
        let outcome = tokio::time::timeout(limit, async {
            let (used, mut link) = self.connector.link().await?;
            epoch = Some(used);
            stage = Stage::Requesting;
            let key = keys.keys[0].as_str();
            let mut answer = link.request(key, request.by_digest(&keys.keys, &all), replicas).await;
            if answer.as_ref().is_err_and(|error| error.code() == Some("NOSCRIPT")) {
                answer = link.request(key, request.by_text(&keys.keys, &all), replicas).await;
            }
            answer.map_err(|error| {
                let (error, unusable) = explain(error, Stage::Requesting, &self.connector.name);
                if unusable {
                    self.connector.discard(used);
                }
                error
            })
        })
        .await;
        let (value, have) = match outcome {
            Ok(answer) => answer?,
            Err(_) => {
                if let Some(epoch) = epoch {
                    self.connector.discard(epoch);
                }
                return Err(timed_out(stage, &self.connector.name, limit));
            }
        };
        if let Some(have) = have.filter(|have| *have < u64::from(options.min_replicas)) {
            return Err(StoreError::new(
                ErrorKind::Ambiguous,
                format!(
                    "Redis at {}: {have} of {} replicas have what was written within {:?}",
                    self.connector.name,
                    options.min_replicas,
                    options.acknowledge_within()
                ),
            ));
        }
        tracing::trace!(request = request.name, "answered");
        Reply::new(value)
    }
}

fn number(number: u64) -> Vec<u8> {
    number.to_string().into_bytes()
}

fn flag(flag: bool) -> Vec<u8> {
    if flag { b"1".to_vec() } else { b"0".to_vec() }
}

fn token_too_large() -> StoreError {
    fatal("a fencing token of 2^53 or more: Redis cannot count that far")
}

fn lost() -> StoreError {
    StoreError::new(ErrorKind::Lost, "the session does not live")
}

/// The answers that any request may get.
fn status(reply: &mut Reply) -> Result<String, StoreError> {
    let status = reply.text()?;
    match status.as_str() {
        "LOST" => Err(lost()),
        "TOKEN" => Err(token_too_large()),
        "NODE" => {
            let node = reply.text()?;
            Err(fatal(format!("the session is node {node:?}'s and cannot become another's: open another session")))
        }
        "LAYOUT" => {
            let layout = reply.text()?;
            Err(fatal(format!("the cluster's data in Redis has layout {layout:?}, this release knows layout 1")))
        }
        _ => Ok(status),
    }
}

fn stamp(reply: &mut Reply) -> Result<Stamp, StoreError> {
    Ok(Stamp {
        generation: reply.parse()?,
        revision: Revision(reply.number()?),
        now: StoreTime::from_micros(reply.number()?),
        token: FencingToken::new(reply.number()?),
        quiet: reply.micros()?,
    })
}

fn change_arguments(change: &SlotChange, arguments: &mut Vec<Vec<u8>>) {
    let optional_checkpoint = |checkpoint: &Option<bytes::Bytes>| {
        [flag(checkpoint.is_some()), checkpoint.as_deref().map(<[u8]>::to_vec).unwrap_or_default()]
    };
    let none = Vec::new;
    let id = |id: &rendez_core::OperationId| id.to_string().into_bytes();
    let (kind, [a, b, c, d]): (&str, [Vec<u8>; 4]) = match &change.kind {
        ChangeKind::Acquire { operation } => ("acquire", [id(operation), none(), none(), none()]),
        ChangeKind::Release { checkpoint, refuse_for } => {
            let [present, bytes] = optional_checkpoint(checkpoint);
            let refuse = refuse_for.map(|duration| number(micros_up(duration))).unwrap_or_default();
            ("release", [present, bytes, refuse, none()])
        }
        ChangeKind::Offer { operation, to, expires_in, giver_total, giver_of_workload, forced } => {
            let rest = format!("{giver_total} {giver_of_workload} {}", u8::from(*forced));
            let expires = number(micros_down(*expires_in));
            ("offer", [id(operation), to.to_string().into_bytes(), expires, rest.into_bytes()])
        }
        ChangeKind::Withdraw { offer } => ("withdraw", [id(offer), none(), none(), none()]),
        ChangeKind::Accept { offer } => ("accept", [id(offer), none(), none(), none()]),
        ChangeKind::Refuse { offer, refuse_for } => {
            ("refuse", [id(offer), number(micros_up(*refuse_for)), none(), none()])
        }
        ChangeKind::Transfer { operation, offer, checkpoint } => {
            let [present, bytes] = optional_checkpoint(checkpoint);
            ("transfer", [id(operation), id(offer), present, bytes])
        }
        ChangeKind::SaveCheckpoint { checkpoint } => ("checkpoint", [checkpoint.to_vec(), none(), none(), none()]),
        ChangeKind::Readopt => ("readopt", [none(), none(), none(), none()]),
    };
    arguments.push(kind.into());
    arguments.push(keys::slot_field(&change.slot).into_bytes());
    arguments.push(number(Held::factor(&change.slot).into()));
    // A token that cannot be is no slot's token.
    arguments.push(number(change.token.get().min(NUMBER_LIMIT)));
    arguments.extend([a, b, c, d]);
}

fn conflict(text: &str) -> Result<Option<Conflict>, StoreError> {
    Ok(Some(match text {
        "done" => return Ok(None),
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

fn parse_cursor(cursor: &Cursor) -> Option<[Vec<u8>; 3]> {
    let mut parts = cursor.0.split('/');
    let generation: Generation = parts.next()?.parse().ok()?;
    let part: u8 = parts.next()?.parse().ok()?;
    let place: u64 = parts.next()?.parse().ok()?;
    if parts.next().is_some() {
        return None;
    }
    Some([generation.to_string().into_bytes(), number(part.into()), number(place)])
}

#[async_trait]
impl LeaseStore for RedisStore {
    fn capabilities(&self) -> Capabilities {
        let options = &self.connector.options;
        let mut capabilities = Capabilities::strict("redis");
        capabilities.fencing = if options.min_replicas > 0 { Fencing::Acknowledged } else { Fencing::BestEffort };
        capabilities.replica_lag_max = options.replica_lag_max;
        capabilities
    }

    async fn open(&self, cluster: &ClusterName, request: &OpenRequest) -> Result<Opening, StoreError> {
        self.capabilities().check_open(request)?;
        let info = &*request.info;
        let arguments = vec![
            request.operation.to_string().into_bytes(),
            request.incarnation.to_string().into_bytes(),
            request.replaces.map(|session| session.to_string()).unwrap_or_default().into_bytes(),
            number(micros_down(request.ttl)),
            info.node.as_str().into(),
            encode::json(info)?.into_bytes(),
            encode::json(&Record::Settings(info.settings.clone()))?.into_bytes(),
            number(micros_up(info.settings.session_ttl_max)),
            number(micros_up(info.settings.cold_start_hold)),
        ];
        let mut reply = self.run(&scripts::OPEN, cluster, &request.known, true, None, arguments).await?;
        match status(&mut reply)?.as_str() {
            "OPENED" => {
                let session = reply.parse()?;
                let ttl = reply.micros()?;
                let settings = match reply.optional_text()? {
                    Some(text) => serde_json::from_str(&text)
                        .map_err(|error| encode::damaged("the cluster's settings").with_source(error))?,
                    None => Record::Settings(info.settings.clone()),
                };
                let Record::Settings(settings) = settings else {
                    return Err(encode::damaged("the cluster's settings"));
                };
                Ok(Opening::Opened { session, ttl, settings, stamp: stamp(&mut reply)? })
            }
            "INUSE" => Ok(Opening::InUse {
                session: reply.parse()?,
                incarnation: reply.parse()?,
                remaining: reply.micros()?,
                stamp: stamp(&mut reply)?,
            }),
            "TTL" => {
                let permitted = reply.micros()?;
                Err(fatal(format!(
                    "a session TTL of {:?}: the cluster's settings permit at most {permitted:?} (session_ttl_max)",
                    request.ttl
                )))
            }
            _ => Err(encode::damaged("an answer")),
        }
    }

    async fn heartbeat(&self, cluster: &ClusterName, request: &HeartbeatRequest) -> Result<Beat, StoreError> {
        let info = request.info.as_deref();
        let capabilities = self.capabilities();
        capabilities.check_heartbeat(request)?;
        let changes_max = request.changes_max.min(u32::try_from(capabilities.changes_max).unwrap_or(u32::MAX));
        let arguments = vec![
            request.session.to_string().into_bytes(),
            request.since.map(|since| number(since.0.min(NUMBER_LIMIT))).unwrap_or_default(),
            number(changes_max.into()),
            info.map(|info| info.node.as_str().into()).unwrap_or_default(),
            info.map(encode::json).transpose()?.unwrap_or_default().into_bytes(),
        ];
        let mut reply =
            self.run(&scripts::HEARTBEAT, cluster, &request.known, false, Some(request.due_within), arguments).await?;
        status(&mut reply)?;
        let ttl = reply.micros()?;
        let held = Held { count: reply.number()?, digest: reply.number()? };
        let kind = reply.text()?;
        let up_to = reply.text()?;
        let more = !reply.text()?.is_empty();
        let changes = reply.changes()?;
        let sync = match kind.as_str() {
            "NONE" => Sync::NotAsked,
            "SNAPSHOT" => Sync::Snapshot,
            _ => {
                let up_to = up_to.parse().map_err(|_| encode::damaged("a revision"))?;
                Sync::Changes { changes, up_to: Revision(up_to), more }
            }
        };
        let mut list = reply.list()?;
        let mut due = Vec::new();
        while !list.is_empty() {
            due.push(Due { session: list.parse()?, remaining: list.micros()? });
        }
        Ok(Beat { ttl, held, sync, due, stamp: stamp(&mut reply)? })
    }

    async fn close(&self, cluster: &ClusterName, request: &CloseRequest) -> Result<(), StoreError> {
        let arguments = vec![request.session.to_string().into_bytes()];
        let mut reply = self.run(&scripts::CLOSE, cluster, &request.known, false, None, arguments).await?;
        status(&mut reply).map(drop)
    }

    async fn change(&self, cluster: &ClusterName, request: &ChangeRequest) -> Result<ChangeReply, StoreError> {
        self.capabilities().check_change(request)?;
        let mut arguments = vec![request.session.to_string().into_bytes()];
        for change in &request.changes {
            change_arguments(change, &mut arguments);
        }
        let mut reply = self.run(&scripts::CHANGE, cluster, &request.known, false, None, arguments).await?;
        status(&mut reply)?;
        let mut list = reply.list()?;
        let mut outcomes = Vec::with_capacity(request.changes.len());
        while !list.is_empty() {
            let conflict = conflict(&list.text()?)?;
            let (record, checkpoint) = (list.optional_text()?, list.optional_bytes()?);
            let record = record.as_deref().map(|record| encode::slot(record, checkpoint)).transpose()?;
            outcomes.push(match conflict {
                None => ChangeOutcome::Done(record),
                Some(conflict) => ChangeOutcome::Refused(conflict, record),
            });
        }
        Ok(ChangeReply { outcomes, stamp: stamp(&mut reply)? })
    }

    async fn snapshot(&self, cluster: &ClusterName, request: &SnapshotRequest) -> Result<SnapshotPage, StoreError> {
        let gone = || StoreError::new(ErrorKind::Conflict, "the place in the snapshot is of another generation");
        let mut arguments = vec![request.session.map(|id| id.to_string()).unwrap_or_default().into_bytes()];
        match &request.cursor {
            Some(cursor) => arguments.extend(parse_cursor(cursor).ok_or_else(gone)?),
            None => arguments.extend([Vec::new(), Vec::new(), Vec::new()]),
        }
        let mut reply = self.run(&scripts::SNAPSHOT, cluster, &request.known, false, None, arguments).await?;
        if status(&mut reply)? == "CURSOR" {
            return Err(gone());
        }
        let items = reply.changes()?;
        let (part, place) = (reply.optional_text()?, reply.optional_text()?);
        let stamp = stamp(&mut reply)?;
        let next = part.zip(place).map(|(part, place)| Cursor(format!("{}/{part}/{place}", stamp.generation)));
        Ok(SnapshotPage { stamp, items, next })
    }

    async fn administer(&self, cluster: &ClusterName, request: &AdminRequest) -> Result<AdminOutcome, StoreError> {
        self.capabilities().check_admin(request)?;
        let (growing, mut arguments) = match request {
            AdminRequest::Put { key, record, expect } => {
                let ttl_max = match record {
                    Some(Record::Settings(settings)) => number(micros_up(settings.session_ttl_max)),
                    _ => Vec::new(),
                };
                let doomed = match (key, record) {
                    (RecordKey::Workload(workload), None) => workload.as_str().to_owned(),
                    _ => String::new(),
                };
                let content = record.as_ref().map(encode::json).transpose()?;
                let arguments = vec![
                    b"put".to_vec(),
                    keys::record_field(key).into_bytes(),
                    flag(content.is_some()),
                    content.unwrap_or_default().into_bytes(),
                    expect.map(|revision| number(revision.0.min(NUMBER_LIMIT))).unwrap_or_default(),
                    ttl_max,
                    doomed.into_bytes(),
                    Vec::new(),
                ];
                (record.is_some(), arguments)
            }
            AdminRequest::ForceRelease { slot, token, now } => {
                let arguments = vec![b"force".to_vec(), field(slot), number(token.get().min(NUMBER_LIMIT)), flag(*now)];
                (false, arguments)
            }
        };
        loop {
            let known = Known::default();
            let mut reply = self.run(&scripts::ADMINISTER, cluster, &known, growing, None, arguments.clone()).await?;
            if status(&mut reply)? == "REFUSED" {
                return Ok(AdminOutcome::Refused(stamp(&mut reply)?));
            }
            match reply.optional_text()? {
                // More slots of a deleted workload.
                Some(place) => {
                    if let Some(last) = arguments.last_mut() {
                        *last = place.into_bytes();
                    }
                }
                None => return Ok(AdminOutcome::Done(stamp(&mut reply)?)),
            }
        }
    }

    async fn watch(&self, cluster: &ClusterName) -> Result<Box<dyn Watch>, StoreError> {
        let keys = ClusterKeys::new(&self.connector.options.prefix, cluster);
        let messages = self.connector.subscribe(&keys.channel).await?;
        Ok(Box::new(Hints::new(messages)))
    }
}

fn field(slot: &Slot) -> Vec<u8> {
    keys::slot_field(slot).into_bytes()
}
