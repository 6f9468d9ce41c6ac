//! A certificate authority of one test, and the certificates that it signs.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd};

use super::ServerError;

const AUTHORITY: &str = "authority of one test";
const SERVER_NAMES: [&str; 2] = ["localhost", "127.0.0.1"];
/// The last year of a certificate that has expired.
const LONG_AGO: i32 = 2001;

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
    /// The authority's key, for the server's next certificate.
    ca_key: PathBuf,
}

impl TlsFiles {
    /// Makes the authority and the certificates and writes them into `folder`.
    ///
    /// # Errors
    /// [`ServerError::Certificate`] or [`ServerError::Io`].
    pub fn create(folder: &Path) -> Result<Self, ServerError> {
        let authority = authority()?;
        let authority_key = KeyPair::generate()?;
        let ca = write(folder, "ca.pem", &authority.self_signed(&authority_key)?.pem())?;
        let ca_key = write(folder, "ca.key", &authority_key.serialize_pem())?;
        let issuer = Issuer::new(authority, authority_key);
        let sign = |name: &str, alternatives: &[&str]| {
            let key = KeyPair::generate()?;
            let cert =
                write(folder, &format!("{name}.pem"), &subject(name, alternatives)?.signed_by(&key, &issuer)?.pem())?;
            let key = write(folder, &format!("{name}.key"), &key.serialize_pem())?;
            Ok::<_, ServerError>((cert, key))
        };
        let (server_cert, server_key) = sign("server", &SERVER_NAMES)?;
        let (client_cert, client_key) = sign("client", &["client"])?;
        Ok(Self { ca, server_cert, server_key, client_cert, client_key, ca_key })
    }

    /// Puts a certificate in the place of the server's that expired long ago. It counts when the server reads it: at
    /// the latest after a restart.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn expire_server(&self) -> Result<(), ServerError> {
        let mut params = subject("server", &SERVER_NAMES)?;
        params.not_after = date_time_ymd(LONG_AGO, 1, 1);
        self.sign_server(params)
    }

    /// Puts a good one in its place, for the same key.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn renew_server(&self) -> Result<(), ServerError> {
        self.sign_server(subject("server", &SERVER_NAMES)?)
    }

    fn sign_server(&self, params: CertificateParams) -> Result<(), ServerError> {
        // The same name and the same key make the same issuer.
        let issuer = Issuer::new(authority()?, read_key(&self.ca_key)?);
        let signed = params.signed_by(&read_key(&self.server_key)?, &issuer)?.pem();
        // Written over, so that the file stays the server's.
        fs::write(&self.server_cert, signed).map_err(ServerError::io(format!("write {}", self.server_cert.display())))
    }
}

fn authority() -> Result<CertificateParams, ServerError> {
    let mut authority = CertificateParams::new(Vec::<String>::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    authority.distinguished_name.push(DnType::CommonName, AUTHORITY);
    Ok(authority)
}

fn subject(name: &str, alternatives: &[&str]) -> Result<CertificateParams, ServerError> {
    let mut params = CertificateParams::new(alternatives.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())?;
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}

fn read_key(path: &Path) -> Result<KeyPair, ServerError> {
    let text = fs::read_to_string(path).map_err(ServerError::io(format!("read {}", path.display())))?;
    Ok(KeyPair::from_pem(&text)?)
}

fn write(folder: &Path, name: &str, text: &str) -> Result<PathBuf, ServerError> {
    let path = folder.join(name);
    fs::write(&path, text).map_err(ServerError::io(format!("write {}", path.display())))?;
    Ok(path)
}
