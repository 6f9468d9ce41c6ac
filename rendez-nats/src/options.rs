//! Where the servers are and how to speak to them. Nothing here opens a connection.

use std::fmt;
use std::time::Duration;

use rendez_core::{ErrorKind, StoreError, TlsFiles};

/// How to speak to NATS. The defaults suit servers in one region.
#[derive(Clone)]
#[non_exhaustive]
pub struct NatsOptions {
    /// What the names of all buckets begin with: letters, digits and `-`; default `rendez`.
    pub prefix: String,
    /// How many servers keep a bucket: 1, 3 or 5. By default 3 where the server belongs to a cluster, else 1. It
    /// counts when the bucket is made; one that has fewer is refused.
    pub replicas: Option<u8>,
    /// Say that all servers run with `sync_interval: always`, so that what they acknowledged is on their disks; default
    /// no. A client cannot ask for it. It decides what the store promises about tokens.
    pub synced: bool,
    /// How far the clocks of the servers may be apart; default 500 ms. A new leader judges by its own, so sessions in
    /// buckets with replicas live longer by this, in whole seconds.
    pub clock_skew_max: Duration,
    /// How long a request may take before its outcome counts as unknown; default 500 ms.
    pub operation_timeout: Duration,
    /// How long a connection may take to be made, logged in and checked; default 2 s.
    pub connect_timeout: Duration,
    /// User and password, where they shall not stand in the URL. They win over the URL's.
    pub username: Option<String>,
    /// See `username`.
    pub password: Option<String>,
    /// A token to log in with.
    pub token: Option<String>,
    /// The seed of an nkey to log in with.
    pub nkey: Option<String>,
    /// The text of a credentials file (`.creds`): a JWT and the seed of its nkey.
    pub credentials: Option<String>,
    /// Certificates for `natss`; the system's authorities if absent. Checking cannot be switched off.
    pub tls: Option<TlsFiles>,
}

impl Default for NatsOptions {
    fn default() -> Self {
        Self {
            prefix: "rendez".to_owned(),
            replicas: None,
            synced: false,
            clock_skew_max: Duration::from_millis(500),
            operation_timeout: Duration::from_millis(500),
            connect_timeout: Duration::from_secs(2),
            username: None,
            password: None,
            token: None,
            nkey: None,
            credentials: None,
            tls: None,
        }
    }
}

impl fmt::Debug for NatsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsOptions")
            .field("prefix", &self.prefix)
            .field("replicas", &self.replicas)
            .field("synced", &self.synced)
            .field("clock_skew_max", &self.clock_skew_max)
            .field("operation_timeout", &self.operation_timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("username", &self.username)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

/// The options that have a text.
const KEYS: &str = "prefix, replicas, synced, clock_skew_max, operation_timeout, connect_timeout, username, password, token, \
                    nkey, nkey_file, credentials_file, tls_authorities_file, tls_certificate_file, tls_key_file";

/// The longest prefix: it stands in the names of folders on the servers.
const PREFIX_BYTES_MAX: usize = 32;

/// More than that is a mistake, and would keep dead sessions for too long.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(60);

impl NatsOptions {
    /// Sets an option from text: `operation_timeout` from `250ms`, `credentials_file` from the name of a file.
    ///
    /// # Errors
    /// [`ErrorKind::Fatal`] for an unknown key or a value that cannot be. The value is not repeated: it may be a secret.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), StoreError> {
        let time = || {
            let time: Option<jiff::SignedDuration> = value.parse().ok();
            let time = time.and_then(|time| Duration::try_from(time).ok());
            time.ok_or_else(|| fatal(format!("{key} is no time: write for example 250ms or 2s")))
        };
        let file = || {
            std::fs::read(value).map_err(|error| fatal(format!("the file of {key} cannot be read")).with_source(error))
        };
        let text = || String::from_utf8(file()?).map_err(|_| fatal(format!("the file of {key} is no text")));
        match key {
            "prefix" => value.clone_into(&mut self.prefix),
            "replicas" => {
                let replicas = value.parse().map_err(|_| fatal("replicas is no number: write 1, 3 or 5"))?;
                self.replicas = Some(replicas);
            }
            "synced" => {
                self.synced = value.parse().map_err(|_| fatal("synced is neither true nor false"))?;
            }
            "clock_skew_max" => self.clock_skew_max = time()?,
            "operation_timeout" => self.operation_timeout = time()?,
            "connect_timeout" => self.connect_timeout = time()?,
            "username" => self.username = Some(value.to_owned()),
            "password" => self.password = Some(value.to_owned()),
            "token" => self.token = Some(value.to_owned()),
            "nkey" => self.nkey = Some(value.to_owned()),
            "nkey_file" => self.nkey = Some(text()?.trim().to_owned()),
            "credentials_file" => self.credentials = Some(text()?),
            "tls_authorities_file" => self.tls.get_or_insert_default().authorities = Some(file()?),
            "tls_certificate_file" => {
                let file = file()?;
                self.tls.get_or_insert_default().client.get_or_insert_default().0 = file;
            }
            "tls_key_file" => {
                let file = file()?;
                self.tls.get_or_insert_default().client.get_or_insert_default().1 = file;
            }
            _ => return Err(fatal(format!("the NATS store has no option {key:?}: it has {KEYS}"))),
        }
        Ok(())
    }

    pub(crate) fn check(&self) -> Result<(), StoreError> {
        let prefix = &self.prefix;
        let plain = prefix.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if prefix.is_empty() || prefix.len() > PREFIX_BYTES_MAX || !plain {
            return Err(fatal(format!(
                "the prefix of NATS buckets must have 1 to {PREFIX_BYTES_MAX} letters, digits and hyphens"
            )));
        }
        if !matches!(self.replicas, None | Some(1 | 3 | 5)) {
            return Err(fatal("replicas must be 1, 3 or 5"));
        }
        if self.operation_timeout.is_zero() || self.connect_timeout.is_zero() {
            return Err(fatal("the timeouts of the NATS store must not be zero"));
        }
        if self.clock_skew_max > CLOCK_SKEW_MAX {
            return Err(fatal(format!("clock_skew_max must be {CLOCK_SKEW_MAX:?} or less: let the servers keep time")));
        }
        let half = |(certificate, key): &(Vec<u8>, Vec<u8>)| certificate.is_empty() || key.is_empty();
        if self.tls.as_ref().and_then(|tls| tls.client.as_ref()).is_some_and(half) {
            return Err(fatal("a client certificate needs its key, and the key its certificate: set both"));
        }
        if self.password.is_some() && self.username.is_none() {
            return Err(fatal("a password without a user: set username too"));
        }
        let ways = [self.username.is_some(), self.token.is_some(), self.nkey.is_some(), self.credentials.is_some()];
        if ways.into_iter().filter(|way| *way).count() > 1 {
            return Err(fatal("more than one way to log in: set one of username, token, nkey and credentials_file"));
        }
        Ok(())
    }
}

pub(crate) fn fatal(message: impl Into<String>) -> StoreError {
    StoreError::new(ErrorKind::Fatal, message)
}

/// Where the servers are, as a URL says it.
#[derive(Clone)]
pub(crate) struct Address {
    /// `host:port` each.
    pub(crate) servers: Vec<String>,
    pub(crate) tls: bool,
    pub(crate) login: Option<(String, String)>,
}

const FORMS: &str = "nats://[user:password@]host[:4222],host2…, natss://… (TLS)";

/// The most servers of one URL.
const SERVERS_MAX: usize = 32;

impl Address {
    /// Reads a URL. No message of an error holds any part of it that may be secret.
    pub(crate) fn parse(url: &str) -> Result<Self, StoreError> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| fatal(format!("no NATS URL: write {FORMS}")))?;
        let tls = match scheme {
            "nats" => false,
            "natss" => true,
            _ => return Err(fatal(format!("unknown scheme of a NATS URL: write {FORMS}"))),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['?', '#', '/']) {
            return Err(fatal(format!("a NATS URL has no path, no query and no fragment: write {FORMS}")));
        }
        let (login, hosts) = match rest.rsplit_once('@') {
            Some((login, hosts)) => {
                let (user, password) = login
                    .split_once(':')
                    .ok_or_else(|| fatal(format!("a NATS URL with a user and no password: write {FORMS}")))?;
                (Some((unescape(user)?, unescape(password)?)), hosts)
            }
            None => (None, rest),
        };
        let hosts: Vec<&str> = hosts.split(',').collect();
        if hosts.len() > SERVERS_MAX {
            return Err(fatal(format!("a NATS URL with more than {SERVERS_MAX} hosts")));
        }
        let servers: Result<Vec<String>, StoreError> = hosts.into_iter().map(server).collect();
        Ok(Self { servers: servers?, tls, login })
    }
}

fn server(host: &str) -> Result<String, StoreError> {
    let wrong = || fatal(format!("a NATS URL with a host that cannot be: write {FORMS}"));
    let after_address = host.rsplit(']').next().unwrap_or_default();
    let (name, port) = match after_address.rsplit_once(':') {
        Some((_, port)) => (host.strip_suffix(port).and_then(|name| name.strip_suffix(':')), port),
        None => (Some(host), "4222"),
    };
    let name = name.filter(|name| !name.is_empty()).ok_or_else(wrong)?;
    let port: u16 = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
    let bracketed = name.starts_with('[') && name.ends_with(']');
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
    if !bracketed && !plain {
        return Err(wrong());
    }
    Ok(format!("{name}:{port}"))
}

/// `%XX` stands for a byte.
fn unescape(text: &str) -> Result<String, StoreError> {
    let wrong = || fatal("a part of the NATS URL cannot be read: write % as %25, and UTF-8 only");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first == b'%' {
            let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok()).ok_or_else(wrong)?;
            bytes.push(u8::from_str_radix(digits, 16).map_err(|_| wrong())?);
            rest = &after[2..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_hosts_and_login() {
        let address = Address::parse("nats://me:a%40b%3Ac@h1:1,[::1],h.3/").unwrap();
        assert_eq!(address.servers, ["h1:1", "[::1]:4222", "h.3:4222"]);
        assert_eq!(address.login, Some(("me".to_owned(), "a@b:c".to_owned())));
        assert!(!address.tls);
        let address = Address::parse("natss://h").unwrap();
        assert_eq!((address.tls, address.login), (true, None));
    }

    #[test]
    fn what_is_wrong_with_a_url_is_said_without_the_password() {
        for url in [
            "redis://h",
            "h:4222",
            "nats://",
            "nats://,",
            "nats://h:0",
            "nats://h:x",
            "nats://h/p",
            "nats://h?p",
            "nats://h#p",
            "nats://hidden@h",
            "nats://u:hidden%@h",
            "nats://u:hidden@h o",
            "nats://u:hidden@h:99999",
        ] {
            let Err(error) = Address::parse(url) else { panic!("{url} was accepted") };
            assert_eq!(error.kind(), ErrorKind::Fatal, "{url}");
            assert!(!error.message().contains("hidden"), "{url}: {error}");
        }
    }

    #[test]
    fn options_are_set_from_text_and_unknown_ones_are_named() {
        let mut options = NatsOptions::default();
        options.set("prefix", "team-a").unwrap();
        options.set("replicas", "5").unwrap();
        options.set("synced", "true").unwrap();
        options.set("operation_timeout", "250ms").unwrap();
        options.set("username", "me").unwrap();
        options.set("password", "hidden").unwrap();
        assert_eq!(options.operation_timeout, Duration::from_millis(250));
        assert_eq!((options.replicas, options.synced), (Some(5), true));
        options.check().unwrap();
        options.set("token", "hidden").unwrap();
        assert!(options.check().unwrap_err().message().contains("more than one way"));
        options.token = None;
        assert!(!format!("{options:?}").contains("hidden"));
        for (key, value) in [
            ("operation_timeout", "secret"),
            ("replicas", "secret"),
            ("synced", "secret"),
            ("credentials_file", "/no/secret"),
            ("no_such", "secret"),
        ] {
            let error = options.set(key, value).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Fatal);
            assert!(error.message().contains(key) && !error.message().contains("secret"), "{error}");
        }
        assert!(options.set("no_such", "").unwrap_err().message().contains("connect_timeout"));
        for prefix in ["", "a_b", "a.b", "a b", &"x".repeat(33)] {
            options.prefix = prefix.to_owned();
            assert!(options.check().is_err(), "{prefix}");
        }
        options.prefix = "rendez".to_owned();
        for wrong in [Some(0), Some(2), Some(4), Some(7)] {
            options.replicas = wrong;
            assert!(options.check().is_err(), "{wrong:?}");
        }
    }
}
