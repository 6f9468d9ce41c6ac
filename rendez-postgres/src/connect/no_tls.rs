//! Connections without TLS: the feature `tls` is off.

use rendez_core::StoreError;
use tokio_postgres::NoTls;

use crate::options::{PostgresOptions, fatal};

pub(super) type Connect = NoTls;

pub(super) fn connect(_: &PostgresOptions) -> Result<Connect, StoreError> {
    Err(fatal("TLS is wanted: build rendez-postgres with its feature tls"))
}
