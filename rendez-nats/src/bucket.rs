//! A cluster's bucket: made if it is missing, and refused if it cannot hold leases.
//!
//! Servers answer with the configuration that they go by, not with the one that was asked for: an old server leaves out
//! what it does not know. So what counts is read from the answer.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::stream::{Config, DiscardPolicy, Info, RetentionPolicy, StorageType, Stream};
use rendez_core::StoreError;

use crate::errors::{no_bucket, not_made, timed_out};
use crate::keys::Keys;
use crate::options::fatal;

/// How many writes of one key the bucket keeps: a consumer that lags hears of each unless a key is written this often
/// meanwhile.
pub(crate) const WRITES_KEPT: i64 = 8;

/// How many writes are kept at least: one is not enough, for a key that is overwritten while all are being read would be
/// missing from what was read.
const WRITES_KEPT_MIN: i64 = 2;

/// What a bucket is made as.
fn wanted(keys: &Keys, replicas: usize) -> Config {
    Config {
        name: keys.stream.clone(),
        subjects: vec![keys.all()],
        description: Some("a cluster of rendez".to_owned()),
        max_bytes: -1,
        max_messages: -1,
        max_messages_per_subject: WRITES_KEPT,
        max_consumers: -1,
        max_message_size: -1,
        discard: DiscardPolicy::New,
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        num_replicas: replicas,
        allow_rollup: true,
        deny_delete: true,
        allow_message_ttl: true,
        // A marker that the server leaves when a key expires can end a session whose heartbeat it has just
        // acknowledged: expiry and heartbeat are decided apart there. And it makes TTLs shorter than its own longer.
        subject_delete_marker_ttl: None,
        // Reads of replicas are of no use here.
        allow_direct: false,
        ..Config::default()
    }
}

/// Finds the bucket, or makes it.
pub(crate) async fn ensure(
    context: &Context,
    keys: &Keys,
    replicas: Option<u8>,
    by_default: u8,
    server: &str,
    limit: Duration,
) -> Result<Stream, StoreError> {
    let made = tokio::time::timeout(limit, async {
        loop {
            let stream = match context.get_stream(&keys.stream).await {
                Ok(stream) => stream,
                Err(error) => match no_bucket(error, server) {
                    Some(error) => return Err(error),
                    None => {
                        let replicas = usize::from(replicas.unwrap_or(by_default));
                        match context.create_stream(wanted(keys, replicas)).await {
                            Ok(stream) => stream,
                            Err(error) => match not_made(error, server) {
                                Some(error) => return Err(error),
                                // Another was faster: look at what it made.
                                None => continue,
                            },
                        }
                    }
                },
            };
            check(stream.cached_info(), keys, replicas)?;
            return Ok(stream);
        }
    });
    made.await.unwrap_or_else(|_| Err(timed_out(crate::errors::Stage::Reading, server, limit)))
}

/// Refuses a bucket that would lose slots or sessions, or end sessions too early.
pub(crate) fn check(info: &Info, keys: &Keys, replicas: Option<u8>) -> Result<(), StoreError> {
    let config = &info.config;
    let wrong = [
        (
            !config.allow_message_ttl,
            "it ignores the TTLs of keys (allow_msg_ttl): the server is too old, or it was made so",
        ),
        (
            config.subject_delete_marker_ttl.is_some_and(|ttl| !ttl.is_zero()),
            "it has subject_delete_marker_ttl (limit markers), with which an expiry can end a session just extended",
        ),
        (!config.allow_rollup, "it does not allow rollups (allow_rollup_hdrs)"),
        (!config.max_age.is_zero(), "it has a max_age, which would delete slots"),
        (config.max_messages_per_subject < WRITES_KEPT_MIN, "its history (max_msgs_per_subject) is shorter than 2"),
        (config.discard != DiscardPolicy::New, "it makes room by deleting (discard: old)"),
        (config.discard_new_per_subject, "it refuses to overwrite keys (discard_new_per_subject)"),
        (config.storage != StorageType::File, "it is kept in memory"),
        (config.retention != RetentionPolicy::Limits, "its retention is not by limits"),
        (config.no_ack || config.sealed, "it takes no acknowledged writes (no_ack, sealed)"),
        (config.mirror.is_some() || config.sources.is_some(), "it is a copy of others"),
        (config.subject_transform.is_some(), "it changes subjects"),
        (config.subjects != [keys.all()], "its subjects are not those of its keys"),
        (
            replicas.is_some_and(|replicas| config.num_replicas < usize::from(replicas)),
            "it has fewer replicas than the options ask for",
        ),
    ];
    match wrong.into_iter().find(|(is_wrong, _)| *is_wrong) {
        None => Ok(()),
        Some((_, why)) => Err(fatal(format!(
            "the bucket behind the stream {} cannot hold leases: {why}; delete it or change it as docs/stores/nats.md \
             says, on servers of 2.11 or newer",
            keys.stream
        ))),
    }
}
