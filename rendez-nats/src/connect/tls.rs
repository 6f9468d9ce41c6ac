//! Connections with certificates.

use std::sync::Arc;

use async_nats::ConnectOptions;
use async_nats::rustls::pki_types::pem::PemObject;
use async_nats::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use async_nats::rustls::{ClientConfig, RootCertStore, crypto};
use rendez_core::StoreError;

use crate::options::{NatsOptions, fatal};

pub(super) fn secure(connect: ConnectOptions, options: &NatsOptions) -> Result<ConnectOptions, StoreError> {
    let files = options.tls.clone().unwrap_or_default();
    let mut roots = RootCertStore::empty();
    match &files.authorities {
        Some(pem) => {
            for certificate in certificates(pem, "the authorities")? {
                roots.add(certificate).map_err(|error| fatal(format!("an authority that cannot be used: {error}")))?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
        }
    }
    if roots.is_empty() {
        return Err(fatal("no authority to trust: install the system's certificates, or name one in the options"));
    }
    let provider = Arc::new(crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| fatal(format!("TLS cannot be set up: {error}")))?
        .with_root_certificates(roots);
    let config = match &files.client {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| fatal("the client's key is no PEM text"))?;
            builder
                .with_client_auth_cert(certificates(chain, "the client's certificate")?, key)
                .map_err(|error| fatal(format!("the client's certificate and key do not fit: {error}")))?
        }
    };
    Ok(connect.require_tls(true).tls_client_config(config))
}

fn certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, StoreError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    read.ok().filter(|list| !list.is_empty()).ok_or_else(|| fatal(format!("{what}: no PEM text")))
}
