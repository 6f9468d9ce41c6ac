//! Clients with certificates.

use redis::cluster::ClusterClientBuilder;
use redis::{Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, RedisResult, TlsCertificates};

use crate::options::RedisOptions;

fn certificates(options: &RedisOptions) -> Option<TlsCertificates> {
    options.tls.as_ref().map(|files| TlsCertificates {
        client_tls: files.client.clone().map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key }),
        root_cert: files.authorities.clone(),
    })
}

fn choose_provider() {
    // Fails if the program has chosen one: then that one is used.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

pub(super) fn client(info: ConnectionInfo, options: &RedisOptions) -> RedisResult<Client> {
    match info.addr() {
        ConnectionAddr::TcpTls { tls_params: None, .. } => {
            choose_provider();
            match certificates(options) {
                Some(certificates) => Client::build_with_tls(info, certificates),
                None => Client::open(info),
            }
        }
        _ => Client::open(info),
    }
}

pub(super) fn cluster(
    builder: ClusterClientBuilder,
    nodes: &[ConnectionInfo],
    options: &RedisOptions,
) -> ClusterClientBuilder {
    if !nodes.iter().any(|node| matches!(node.addr(), ConnectionAddr::TcpTls { .. })) {
        return builder;
    }
    choose_provider();
    match certificates(options) {
        Some(certificates) => builder.certs(certificates),
        None => builder,
    }
}
