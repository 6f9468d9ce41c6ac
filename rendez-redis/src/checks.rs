//! What no store accepts, found before anything is sent.

use rendez_core::{
    CHECKPOINT_BYTES_MAX, Capabilities, ClusterSettings, NodeInfo, PROTOCOL_VERSION, Record, RecordKey, Slot,
    StoreError, UNITS_MAX,
};

use crate::options::fatal;

pub(crate) fn info(info: &NodeInfo, capabilities: &Capabilities) -> Result<(), StoreError> {
    if !(1..=PROTOCOL_VERSION).contains(&info.protocol) {
        return Err(fatal(format!(
            "node {:?} speaks protocol version {}: this release knows 1 to {PROTOCOL_VERSION}",
            info.node, info.protocol
        )));
    }
    if info.weight == 0 {
        return Err(fatal(format!("node {:?} has weight 0: use 1 or more, or cordon the node", info.node)));
    }
    if let Some((name, declared)) = info.workloads.iter().find(|(_, declared)| declared.units > UNITS_MAX) {
        return Err(fatal(format!("workload {name:?} has {} units: at most {UNITS_MAX} are possible", declared.units)));
    }
    settings(&info.settings, capabilities)
}

pub(crate) fn settings(settings: &ClusterSettings, capabilities: &Capabilities) -> Result<(), StoreError> {
    let (min, max) = (capabilities.ttl_min, capabilities.ttl_max);
    if (min..=max).contains(&settings.session_ttl_max) {
        return Ok(());
    }
    Err(fatal(format!("session_ttl_max of {:?}: {min:?} to {max:?} are possible", settings.session_ttl_max)))
}

pub(crate) fn slot(slot: &Slot) -> Result<(), StoreError> {
    if slot.unit < UNITS_MAX {
        return Ok(());
    }
    Err(fatal(format!("no slot {slot}: units are below {UNITS_MAX}")))
}

pub(crate) fn checkpoint(checkpoint: &[u8]) -> Result<Vec<u8>, StoreError> {
    if checkpoint.len() > CHECKPOINT_BYTES_MAX {
        return Err(fatal(format!("a checkpoint of {} bytes: at most {CHECKPOINT_BYTES_MAX} fit", checkpoint.len())));
    }
    Ok(checkpoint.to_vec())
}

pub(crate) fn record(key: &RecordKey, record: &Record, capabilities: &Capabilities) -> Result<(), StoreError> {
    if !record.fits(key) {
        return Err(fatal("the record does not fit its key"));
    }
    if let RecordKey::Pin(pinned) = key {
        slot(pinned)?;
    }
    match record {
        Record::Settings(changed) => settings(changed, capabilities),
        Record::Workload(workload) if workload.units > UNITS_MAX => {
            Err(fatal(format!("a workload of {} units: at most {UNITS_MAX} are possible", workload.units)))
        }
        Record::Node(wish) if wish.weight == Some(0) => Err(fatal("a weight of 0: use 1 or more, or cordon the node")),
        Record::Workload(_) | Record::Node(_) | Record::Pin(_) => Ok(()),
    }
}
