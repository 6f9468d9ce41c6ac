//! What stores that speak TLS are given; nothing here knows what a certificate is.

use std::fmt;

/// Certificates for stores that speak TLS, as PEM text.
#[derive(Clone, Default)]
pub struct TlsFiles {
    /// The authorities to trust instead of the system's.
    pub authorities: Option<Vec<u8>>,
    /// The client's certificate and its key.
    pub client: Option<(Vec<u8>, Vec<u8>)>,
}

impl fmt::Debug for TlsFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsFiles")
            .field("authorities", &self.authorities.is_some())
            .field("client", &self.client.is_some())
            .finish()
    }
}
