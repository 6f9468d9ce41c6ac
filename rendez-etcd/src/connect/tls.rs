//! Certificates.

use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};
use rendez_core::StoreError;

use crate::options::EtcdOptions;

pub(super) fn secure(connect: ConnectOptions, options: &EtcdOptions) -> Result<ConnectOptions, StoreError> {
    let files = options.tls.clone().unwrap_or_default();
    let mut tls = match files.authorities {
        Some(authorities) => TlsOptions::new().ca_certificate(Certificate::from_pem(authorities)),
        None => TlsOptions::new().with_native_roots(),
    };
    if let Some((certificate, key)) = files.client {
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    Ok(connect.with_tls(tls))
}
