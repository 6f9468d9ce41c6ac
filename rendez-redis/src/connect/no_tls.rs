//! Clients without TLS: the feature `tls` is off.

use redis::cluster::ClusterClientBuilder;
use redis::{Client, ConnectionAddr, ConnectionInfo, ErrorKind, RedisResult};

use crate::options::RedisOptions;

pub(super) fn client(info: ConnectionInfo, _: &RedisOptions) -> RedisResult<Client> {
    if matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
        return Err((ErrorKind::InvalidClientConfig, "TLS is wanted: build rendez-redis with its feature tls").into());
    }
    Client::open(info)
}

pub(super) fn cluster(builder: ClusterClientBuilder, _: &[ConnectionInfo], _: &RedisOptions) -> ClusterClientBuilder {
    builder
}
