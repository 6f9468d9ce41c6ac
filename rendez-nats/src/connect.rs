//! The connection: made once, checked, kept up by the client, which finds another server by itself.

#[cfg_attr(not(feature = "tls"), path = "connect/no_tls.rs")]
mod tls;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::connection::State;
use async_nats::jetstream::Context;
use async_nats::jetstream::context::ContextBuilder;
use async_nats::{Client, ConnectOptions, Event, ServerError};
use rendez_core::StoreError;

use crate::errors::{Stage, no_connection, timed_out};
use crate::options::{Address, NatsOptions, fatal};

/// How often the server is asked whether it is there.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// How long to wait before a lost connection is tried again, at most.
const RECONNECT_WAIT_MAX: Duration = Duration::from_secs(1);

/// The most writes of one handle that wait for their acknowledgement.
pub(crate) const ACKS_MAX: usize = 4096;

/// How long the client itself waits for an answer: longer than any request of ours, which has its own bound.
const ANSWER_WAIT_FACTOR: u32 = 4;

/// How often is looked whether a lost connection is back.
const RECONNECT_LOOK: Duration = Duration::from_millis(10);

/// The newest complaint of the server about rights.
type Complaint = Arc<Mutex<Option<(Instant, String)>>>;

/// A connection that requests share.
pub(crate) struct Link {
    pub(crate) client: Client,
    pub(crate) context: Context,
    pub(crate) name: String,
    pub(crate) options: NatsOptions,
    complaint: Complaint,
}

impl Link {
    pub(crate) async fn to_servers(address: &Address, options: NatsOptions) -> Result<Self, StoreError> {
        let name = address.servers.join(",");
        let complaint = Complaint::default();
        let connect = login(address, &options)?
            .name("rendez")
            .connection_timeout(options.connect_timeout)
            .request_timeout(Some(options.operation_timeout * ANSWER_WAIT_FACTOR))
            .ping_interval(PING_INTERVAL)
            .reconnect_delay_callback(|attempt| {
                let attempt = u32::try_from(attempt).unwrap_or(u32::MAX);
                (Duration::from_millis(20) * attempt).min(RECONNECT_WAIT_MAX)
            })
            .event_callback({
                let (complaint, server) = (Arc::clone(&complaint), name.clone());
                move |event| note(Arc::clone(&complaint), server.clone(), event)
            });
        let connect = if address.tls { tls::secure(connect, &options)? } else { connect };
        let limit = options.connect_timeout;
        let scheme = if address.tls { "tls" } else { "nats" };
        let servers: Vec<String> = address.servers.iter().map(|server| format!("{scheme}://{server}")).collect();
        let client = tokio::time::timeout(limit, connect.connect(servers)).await;
        let client = client.unwrap_or_else(|_| Err(async_nats::ConnectErrorKind::TimedOut.into()));
        let client = client.map_err(|error| no_connection(error, &name))?;
        Self::new(client, name, options, complaint)
    }

    pub(crate) fn given(client: Client, options: NatsOptions) -> Result<Self, StoreError> {
        Self::new(client, "the given client's address".to_owned(), options, Complaint::default())
    }

    fn new(client: Client, name: String, options: NatsOptions, complaint: Complaint) -> Result<Self, StoreError> {
        let context = ContextBuilder::new()
            .timeout(options.operation_timeout * ANSWER_WAIT_FACTOR)
            .max_ack_inflight(ACKS_MAX)
            .build(client.clone());
        let link = Self { client, context, name, options, complaint };
        link.check()?;
        Ok(link)
    }

    /// Looks whether the server that it is connected to fits.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        let info = self.client.server_info();
        check_version(&info.version, &self.name)?;
        if !info.jetstream {
            return Err(fatal(format!("NATS at {}: JetStream is off: start the server with it", self.name)));
        }
        Ok(())
    }

    /// How many replicas a bucket gets where nobody says.
    pub(crate) fn replicas_by_default(&self) -> u8 {
        if self.client.server_info().cluster.is_some() { 3 } else { 1 }
    }

    /// Waits until there is a connection: what is sent before would be kept and sent late.
    pub(crate) async fn ready(&self) -> Result<(), StoreError> {
        let waited = Instant::now();
        while self.client.connection_state() != State::Connected {
            if waited.elapsed() > self.options.operation_timeout {
                return Err(timed_out(Stage::Connecting, &self.name, self.options.operation_timeout));
            }
            tokio::time::sleep(RECONNECT_LOOK).await;
        }
        Ok(())
    }

    /// What the server has said about rights since then: it does not answer what it does not permit.
    pub(crate) fn denied_since(&self, then: Instant) -> Option<StoreError> {
        let complaint = self.complaint.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, what) = complaint.as_ref().filter(|(at, _)| *at >= then)?;
        Some(fatal(format!("NATS at {}: {what}: give the user the rights that docs/stores/nats.md lists", self.name)))
    }
}

async fn note(complaint: Complaint, server: String, event: Event) {
    match event {
        Event::ServerError(ServerError::Other(what)) if what.to_ascii_lowercase().contains("permissions violation") => {
            *complaint.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), what));
        }
        other => tracing::debug!(server, event = %other, "the connection to NATS"),
    }
}

fn login(address: &Address, options: &NatsOptions) -> Result<ConnectOptions, StoreError> {
    let connect = ConnectOptions::new();
    if let Some(token) = &options.token {
        return Ok(connect.token(token.clone()));
    }
    if let Some(seed) = &options.nkey {
        return Ok(connect.nkey(seed.clone()));
    }
    if let Some(credentials) = &options.credentials {
        let read = connect.credentials(credentials);
        return read.map_err(|_| fatal("the credentials cannot be read: is it a file of `nsc generate creds`?"));
    }
    Ok(match (&options.username, &address.login) {
        (Some(user), _) => connect.user_and_password(user.clone(), options.password.clone().unwrap_or_default()),
        (None, Some((user, password))) => connect.user_and_password(user.clone(), password.clone()),
        (None, None) => connect,
    })
}

/// Servers before 2.11 take the TTL of a key and ignore it.
fn check_version(version: &str, server: &str) -> Result<(), StoreError> {
    let mut parts = version.split(['.', '-', '+']).map(|part| part.parse::<u32>().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    if (next(), next()) < (2, 11) {
        return Err(fatal(format!(
            "NATS at {server}: version {version} ignores the TTLs of keys, so sessions would live for ever: use 2.11 or newer"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_ignore_ttls_are_refused() {
        for version in ["2.10.26", "2.9.0", "1.4", "", "x"] {
            assert!(check_version(version, "s").is_err(), "{version}");
        }
        for version in ["2.11.0", "2.11.0-RC.1", "2.15.1", "3.0.0"] {
            check_version(version, "s").unwrap();
        }
    }
}
