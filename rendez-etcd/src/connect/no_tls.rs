//! The feature `tls` is off.

use etcd_client::ConnectOptions;
use rendez_core::StoreError;

use crate::options::{EtcdOptions, fatal};

pub(super) fn secure(_: ConnectOptions, _: &EtcdOptions) -> Result<ConnectOptions, StoreError> {
    Err(fatal("TLS is wanted: build rendez-etcd with its feature tls"))
}
