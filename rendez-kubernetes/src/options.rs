//! Where the Leases are and how to speak to the API server. Nothing here opens a connection.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use rendez_core::{ErrorKind, StoreError};

/// How to speak to the API server. The defaults suit a control plane in the same region.
#[derive(Clone)]
#[non_exhaustive]
pub struct KubernetesOptions {
    /// How long a request may take before its outcome counts as unknown; default 2 s.
    pub operation_timeout: Duration,
    /// How long a connection may take to be made and checked; default 5 s.
    pub connect_timeout: Duration,
    /// The kubeconfig file. If absent: that of `KUBECONFIG`, or `~/.kube/config`, or the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// The context in the kubeconfig file; its current one if absent.
    pub context: Option<String>,
}

impl Default for KubernetesOptions {
    fn default() -> Self {
        Self {
            operation_timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(5),
            kubeconfig: None,
            context: None,
        }
    }
}

impl fmt::Debug for KubernetesOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubernetesOptions")
            .field("operation_timeout", &self.operation_timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("kubeconfig", &self.kubeconfig)
            .field("context", &self.context)
            .finish()
    }
}

/// The options that have a text.
const KEYS: &str = "operation_timeout, connect_timeout, kubeconfig, context";

impl KubernetesOptions {
    /// Sets an option from text: `operation_timeout` from `250ms`, `kubeconfig` from the name of a file.
    ///
    /// # Errors
    /// [`ErrorKind::Fatal`] for an unknown key or a value that cannot be. The value is not repeated: it may be a secret.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), StoreError> {
        let time = || {
            let time: Option<jiff::SignedDuration> = value.parse().ok();
            let time = time.and_then(|time| Duration::try_from(time).ok()).filter(|time| !time.is_zero());
            time.ok_or_else(|| fatal(format!("{key} is no time: write for example 250ms or 2s")))
        };
        match key {
            "operation_timeout" => self.operation_timeout = time()?,
            "connect_timeout" => self.connect_timeout = time()?,
            "kubeconfig" if !value.is_empty() => self.kubeconfig = Some(PathBuf::from(value)),
            "context" if !value.is_empty() => self.context = Some(value.to_owned()),
            "kubeconfig" | "context" => return Err(fatal(format!("{key} must not be empty: leave it out"))),
            _ => return Err(fatal(format!("the Kubernetes store has no option {key:?}: it has {KEYS}"))),
        }
        Ok(())
    }

    pub(crate) fn check(&self) -> Result<(), StoreError> {
        if self.operation_timeout.is_zero() || self.connect_timeout.is_zero() {
            return Err(fatal("the timeouts of the Kubernetes store must not be zero"));
        }
        Ok(())
    }
}

pub(crate) fn fatal(message: impl Into<String>) -> StoreError {
    StoreError::new(ErrorKind::Fatal, message)
}

/// Where the Leases are, as a URL says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) namespace: Namespace,
    pub(crate) kubeconfig: Option<PathBuf>,
    pub(crate) context: Option<String>,
}

const FORMS: &str = "kubernetes:NAMESPACE[?kubeconfig=FILE&context=NAME]";

impl Address {
    /// Reads a URL.
    pub(crate) fn parse(url: &str) -> Result<Self, StoreError> {
        let rest = url
            .strip_prefix("kubernetes:")
            .ok_or_else(|| fatal(format!("no address of the Kubernetes store: write {FORMS}")))?;
        let (namespace, query) = rest.split_once('?').unwrap_or((rest, ""));
        let namespace = Namespace::parse(namespace)?;
        let mut address = Self { namespace, kubeconfig: None, context: None };
        for part in query.split('&').filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                Some(("kubeconfig", file)) if !file.is_empty() => address.kubeconfig = Some(PathBuf::from(file)),
                Some(("context", name)) if !name.is_empty() => address.context = Some(name.to_owned()),
                Some(_) | None => {
                    return Err(fatal(format!("an unknown part of a Kubernetes address: write {FORMS}")));
                }
            }
        }
        Ok(address)
    }
}

/// A name that a namespace can have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Namespace(String);

impl Namespace {
    pub(crate) fn parse(text: &str) -> Result<Self, StoreError> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let ends = [text.bytes().next(), text.bytes().next_back()];
        let valid = text.len() <= 63
            && ends.iter().all(|end| end.is_some_and(plain))
            && text.bytes().all(|byte| plain(byte) || byte == b'-');
        if valid {
            return Ok(Self(text.to_owned()));
        }
        Err(fatal(format!("a Kubernetes namespace has 1 to 63 letters a-z, digits and dashes within: write {FORMS}")))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_name_a_namespace_and_where_its_server_is() {
        let address = Address::parse("kubernetes:team-a").unwrap();
        assert_eq!((address.namespace.as_str(), &address.kubeconfig, &address.context), ("team-a", &None, &None));
        let address = Address::parse("kubernetes:a?kubeconfig=/x/y&context=of me").unwrap();
        assert_eq!((address.kubeconfig, address.context.as_deref()), (Some("/x/y".into()), Some("of me")));
        for url in [
            "kubernetes:",
            "kubernetes",
            "etcd://a",
            "kubernetes:A",
            "kubernetes:-a",
            "kubernetes:a-",
            "kubernetes:a.b",
            "kubernetes:a/b",
            "kubernetes:a?token=hidden",
            "kubernetes:a?context=",
            &format!("kubernetes:{}", "a".repeat(64)),
        ] {
            let error = Address::parse(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Fatal, "{url}");
            assert!(!error.message().contains("hidden"), "{error}");
        }
    }

    #[test]
    fn options_are_set_from_text_and_unknown_ones_are_named() {
        let mut options = KubernetesOptions::default();
        options.set("operation_timeout", "250ms").unwrap();
        options.set("context", "of-me").unwrap();
        options.set("kubeconfig", "/x").unwrap();
        assert_eq!(options.operation_timeout, Duration::from_millis(250));
        options.check().unwrap();
        for (key, value) in [("operation_timeout", "secret"), ("connect_timeout", "0s"), ("no_such", "secret")] {
            let error = options.set(key, value).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Fatal);
            assert!(error.message().contains(key) && !error.message().contains("secret"), "{error}");
        }
        assert!(options.set("context", "").is_err());
        assert!(options.set("no_such", "").unwrap_err().message().contains("connect_timeout"));
    }
}
