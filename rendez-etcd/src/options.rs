//! Where the servers are and how to speak to them. Nothing here opens a connection.

use std::fmt;
use std::time::Duration;

use rendez_core::{ErrorKind, StoreError, TlsFiles};

/// How to speak to etcd. The defaults suit a cluster of three in one region.
#[derive(Clone)]
#[non_exhaustive]
pub struct EtcdOptions {
    /// What all keys begin with; default `rendez`. A path in the URL wins over it.
    pub prefix: String,
    /// How long a request may take before its outcome counts as unknown; default 500 ms.
    pub operation_timeout: Duration,
    /// How long a connection may take to be made, logged in and checked; default 2 s.
    pub connect_timeout: Duration,
    /// User and password, where they shall not stand in the URL. They win over the URL's.
    pub username: Option<String>,
    /// See `username`.
    pub password: Option<String>,
    /// Certificates for `etcds`; the system's authorities if absent. Checking cannot be switched off.
    pub tls: Option<TlsFiles>,
}

impl Default for EtcdOptions {
    fn default() -> Self {
        Self {
            prefix: "rendez".to_owned(),
            operation_timeout: Duration::from_millis(500),
            connect_timeout: Duration::from_secs(2),
            username: None,
            password: None,
            tls: None,
        }
    }
}

impl fmt::Debug for EtcdOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdOptions")
            .field("prefix", &self.prefix)
            .field("operation_timeout", &self.operation_timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("username", &self.username)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

/// The options that have a text.
const KEYS: &str = "prefix, operation_timeout, connect_timeout, username, password, tls_authorities_file, tls_certificate_file, \
                    tls_key_file";

impl EtcdOptions {
    /// Sets an option from text: `operation_timeout` from `250ms`, `tls_authorities_file` from the name of a PEM file.
    ///
    /// # Errors
    /// [`ErrorKind::Fatal`] for an unknown key or a value that cannot be. The value is not repeated: it may be a secret.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), StoreError> {
        let time = || {
            let time: Option<jiff::SignedDuration> = value.parse().ok();
            let time = time.and_then(|time| Duration::try_from(time).ok()).filter(|time| !time.is_zero());
            time.ok_or_else(|| fatal(format!("{key} is no time: write for example 250ms or 2s")))
        };
        let file = || {
            std::fs::read(value).map_err(|error| fatal(format!("the file of {key} cannot be read")).with_source(error))
        };
        match key {
            "prefix" => value.clone_into(&mut self.prefix),
            "operation_timeout" => self.operation_timeout = time()?,
            "connect_timeout" => self.connect_timeout = time()?,
            "username" => self.username = Some(value.to_owned()),
            "password" => self.password = Some(value.to_owned()),
            "tls_authorities_file" => self.tls.get_or_insert_default().authorities = Some(file()?),
            "tls_certificate_file" => {
                let file = file()?;
                self.tls.get_or_insert_default().client.get_or_insert_default().0 = file;
            }
            "tls_key_file" => {
                let file = file()?;
                self.tls.get_or_insert_default().client.get_or_insert_default().1 = file;
            }
            _ => return Err(fatal(format!("the etcd store has no option {key:?}: it has {KEYS}"))),
        }
        Ok(())
    }

    pub(crate) fn check(&self) -> Result<(), StoreError> {
        let prefix = &self.prefix;
        let inner = prefix.strip_prefix('/').unwrap_or(prefix);
        if inner.is_empty() || prefix.len() > 200 || inner.split('/').any(str::is_empty) {
            return Err(fatal(
                "the prefix of etcd keys must have 1 to 200 bytes, without an empty part between slashes",
            ));
        }
        if self.operation_timeout.is_zero() || self.connect_timeout.is_zero() {
            return Err(fatal("the timeouts of the etcd store must not be zero"));
        }
        let half = |(certificate, key): &(Vec<u8>, Vec<u8>)| certificate.is_empty() || key.is_empty();
        if self.tls.as_ref().and_then(|tls| tls.client.as_ref()).is_some_and(half) {
            return Err(fatal("a client certificate needs its key, and the key its certificate: set both"));
        }
        if self.password.is_some() && self.username.is_none() {
            return Err(fatal("a password without a user: set username too"));
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
    pub(crate) endpoints: Vec<String>,
    pub(crate) tls: bool,
    pub(crate) login: Option<(String, String)>,
    pub(crate) prefix: Option<String>,
}

const FORMS: &str = "etcd://[user:password@]host[:2379],host2…[/prefix], etcds://… (TLS)";

/// The most endpoints of one URL.
const ENDPOINTS_MAX: usize = 32;

impl Address {
    /// Reads a URL. No message of an error holds any part of it that may be secret.
    pub(crate) fn parse(url: &str) -> Result<Self, StoreError> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| fatal(format!("no etcd URL: write {FORMS}")))?;
        let tls = match scheme {
            "etcd" => false,
            "etcds" => true,
            _ => return Err(fatal(format!("unknown scheme of an etcd URL: write {FORMS}"))),
        };
        if rest.contains(['?', '#']) {
            return Err(fatal(format!("an etcd URL has no query and no fragment: write {FORMS}")));
        }
        let (authority, path) = rest.split_once('/').map_or((rest, None), |(authority, path)| (authority, Some(path)));
        let (login, hosts) = match authority.rsplit_once('@') {
            Some((login, hosts)) => {
                let (user, password) = login
                    .split_once(':')
                    .ok_or_else(|| fatal(format!("an etcd URL with a user and no password: write {FORMS}")))?;
                (Some((unescape(user)?, unescape(password)?)), hosts)
            }
            None => (None, authority),
        };
        let hosts: Vec<&str> = hosts.split(',').collect();
        if hosts.len() > ENDPOINTS_MAX {
            return Err(fatal(format!("an etcd URL with more than {ENDPOINTS_MAX} hosts")));
        }
        let endpoints: Result<Vec<String>, StoreError> = hosts.into_iter().map(endpoint).collect();
        let prefix = path.filter(|path| !path.is_empty()).map(unescape).transpose()?;
        Ok(Self { endpoints: endpoints?, tls, login, prefix })
    }
}

fn endpoint(host: &str) -> Result<String, StoreError> {
    let wrong = || fatal(format!("an etcd URL with a host that cannot be: write {FORMS}"));
    let after_address = host.rsplit(']').next().unwrap_or_default();
    let (name, port) = match after_address.rsplit_once(':') {
        Some((_, port)) => (host.strip_suffix(port).and_then(|name| name.strip_suffix(':')), port),
        None => (Some(host), "2379"),
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
    let wrong = || fatal("a part of the etcd URL cannot be read: write % as %25, and UTF-8 only");
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
    fn a_url_names_hosts_login_and_prefix() {
        let address = Address::parse("etcds://me:a%40b%3Ac@h1:1,[::1],h.3/one/two").unwrap();
        assert_eq!(address.endpoints, ["h1:1", "[::1]:2379", "h.3:2379"]);
        assert_eq!(address.login, Some(("me".to_owned(), "a@b:c".to_owned())));
        assert_eq!((address.tls, address.prefix.as_deref()), (true, Some("one/two")));
        let address = Address::parse("etcd://h").unwrap();
        assert_eq!((address.tls, address.prefix, address.login), (false, None, None));
    }

    #[test]
    fn what_is_wrong_with_a_url_is_said_without_the_password() {
        for url in [
            "redis://h",
            "h:2379",
            "etcd://",
            "etcd://,",
            "etcd://h:0",
            "etcd://h:x",
            "etcd://h/p?x=1",
            "etcd://h#p",
            "etcd://hidden@h",
            "etcd://u:hidden%@h",
            "etcd://u:hidden@h o",
            "etcd://u:hidden@h:99999",
        ] {
            let Err(error) = Address::parse(url) else { panic!("{url} was accepted") };
            assert_eq!(error.kind(), ErrorKind::Fatal, "{url}");
            assert!(!error.message().contains("hidden"), "{url}: {error}");
        }
    }

    #[test]
    fn options_are_set_from_text_and_unknown_ones_are_named() {
        let mut options = EtcdOptions::default();
        options.set("prefix", "/a/b").unwrap();
        options.set("operation_timeout", "250ms").unwrap();
        options.set("username", "me").unwrap();
        options.set("password", "hidden").unwrap();
        assert_eq!(options.operation_timeout, Duration::from_millis(250));
        options.check().unwrap();
        assert!(!format!("{options:?}").contains("hidden"));
        for (key, value) in
            [("operation_timeout", "secret"), ("tls_authorities_file", "/no/secret"), ("no_such", "secret")]
        {
            let error = options.set(key, value).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Fatal);
            assert!(error.message().contains(key) && !error.message().contains("secret"), "{error}");
        }
        assert!(options.set("no_such", "").unwrap_err().message().contains("connect_timeout"));
        for prefix in ["", "/", "a//b", "a/", "//a", &"x".repeat(201)] {
            options.prefix = prefix.to_owned();
            assert!(options.check().is_err(), "{prefix}");
        }
    }
}
