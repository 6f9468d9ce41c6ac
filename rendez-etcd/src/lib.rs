//! Etcd.
