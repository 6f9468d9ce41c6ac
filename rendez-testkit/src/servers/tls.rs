//! A certificate authority of one test, and the certificates that it signs.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use super::ServerError;

/// Files in PEM: an authority made at run time, a server's certificate for `localhost` and 127.0.0.1, and one for
/// a client. They live as long as the server's folder.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The authority's certificate: what a client must trust.
    pub ca: PathBuf,
    /// The server's certificate.
    pub server_cert: PathBuf,
    /// The server's key.
    pub server_key: PathBuf,
    /// A client's certificate, signed by the same authority.
    pub client_cert: PathBuf,
    /// The client's key.
    pub client_key: PathBuf,
}

impl TlsFiles {
    /// Makes the authority and the certificates and writes them into `folder`.
    ///
    /// # Errors
    /// [`ServerError::Certificate`] or [`ServerError::Io`].
    pub fn create(folder: &Path) -> Result<Self, ServerError> {
        let mut authority = CertificateParams::new(Vec::<String>::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        authority.distinguished_name.push(DnType::CommonName, "authority of one test");
        let authority_key = KeyPair::generate()?;
        let ca = write(folder, "ca.pem", &authority.self_signed(&authority_key)?.pem())?;
        let issuer = Issuer::new(authority, authority_key);
        let sign = |name: &str, alternatives: &[&str]| {
            let names: Vec<String> = alternatives.iter().map(|name| (*name).to_owned()).collect();
            let mut params = CertificateParams::new(names)?;
            params.distinguished_name.push(DnType::CommonName, name);
            let key = KeyPair::generate()?;
            let cert = write(folder, &format!("{name}.pem"), &params.signed_by(&key, &issuer)?.pem())?;
            let key = write(folder, &format!("{name}.key"), &key.serialize_pem())?;
            Ok::<_, ServerError>((cert, key))
        };
        let (server_cert, server_key) = sign("server", &["localhost", "127.0.0.1"])?;
        let (client_cert, client_key) = sign("client", &["client"])?;
        Ok(Self { ca, server_cert, server_key, client_cert, client_key })
    }
}

fn write(folder: &Path, name: &str, text: &str) -> Result<PathBuf, ServerError> {
    let path = folder.join(name);
    fs::write(&path, text).map_err(ServerError::io(format!("write {}", path.display())))?;
    Ok(path)
}
