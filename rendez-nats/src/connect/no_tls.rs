//! Without the feature `tls` there is no way to say it.

use async_nats::ConnectOptions;
use rendez_core::StoreError;

use crate::options::{NatsOptions, fatal};

pub(super) fn secure(_: ConnectOptions, _: &NatsOptions) -> Result<ConnectOptions, StoreError> {
    Err(fatal("natss:// needs the feature `tls` of rendez-nats"))
}
