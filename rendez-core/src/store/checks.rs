//! What no store accepts, found before anything is sent.

use std::time::Duration;

use super::{AdminRequest, Capabilities, ChangeKind, ChangeRequest, HeartbeatRequest, OpenRequest};
use crate::{
    CHECKPOINT_BYTES_MAX, ClusterSettings, ErrorKind, NodeInfo, PROTOCOL_VERSION, Record, RecordKey, Slot, StoreError,
    UNITS_MAX,
};

/// Each request is checked by the store that gets it, before it takes effect.
impl Capabilities {
    /// Whether an opening can be.
    ///
    /// # Errors
    /// [`ErrorKind::Fatal`] for a TTL, a protocol version, a weight, units or settings that are not permitted.
    pub fn check_open(&self, request: &OpenRequest) -> Result<(), StoreError> {
        self.check_info(&request.info)?;
        self.check_ttl("a session TTL", request.ttl)
    }

    /// Whether a heartbeat can be.
    ///
    /// # Errors
    /// [`ErrorKind::Fatal`] for information about the node that is not permitted.
    pub fn check_heartbeat(&self, request: &HeartbeatRequest) -> Result<(), StoreError> {
        request.info.as_ref().map_or(Ok(()), |info| self.check_info(info))
    }

    /// Whether changes can be.
    ///
    /// # Errors
    /// [`ErrorKind::Fatal`] for too many of them, units that cannot be and checkpoints that are too large.
    pub fn check_change(&self, request: &ChangeRequest) -> Result<(), StoreError> {
        let (count, most) = (request.changes.len(), self.changes_max);
        if count > most {
            return Err(fatal(format!("{count} changes are too many for one request: send {most} or fewer")));
        }
        request.changes.iter().try_for_each(|change| {
            check_unit(&change.slot)?;
            check_checkpoint(&change.kind)
        })
    }

    /// Whether an operator's request can be.
    ///
    /// # Errors
    /// [`ErrorKind::Fatal`] for a record that does not fit its key or holds a value that cannot be.
    pub fn check_admin(&self, request: &AdminRequest) -> Result<(), StoreError> {
        let AdminRequest::Put { key, record: Some(record), .. } = request else { return Ok(()) };
        if let RecordKey::Pin(slot) = key {
            check_unit(slot)?;
        }
        match record {
            _ if !record.fits(key) => {
                Err(fatal(format!("the record does not fit its key {key:?}: write one of its kind")))
            }
            Record::Settings(settings) => self.check_settings(settings),
            Record::Workload(workload) if workload.units > UNITS_MAX => {
                Err(fatal(format!("a workload of {} units is too large: use {UNITS_MAX} or fewer", workload.units)))
            }
            Record::Node(wish) if wish.weight == Some(0) => {
                Err(fatal("a weight of 0 cannot be: use 1 or more, and cordon a node that shall be given nothing"))
            }
            Record::Workload(_) | Record::Node(_) | Record::Pin(_) => Ok(()),
        }
    }

    fn check_info(&self, info: &NodeInfo) -> Result<(), StoreError> {
        if !(1..=PROTOCOL_VERSION).contains(&info.protocol) {
            return Err(fatal(format!(
                "node {:?} speaks version {} of the protocol, which this release does not know: it knows 1 to \
                 {PROTOCOL_VERSION}; use releases that are closer to each other",
                info.node, info.protocol
            )));
        }
        if info.weight == 0 {
            return Err(fatal(format!(
                "node {:?} has weight 0: use 1 or more, and cordon a node that shall be given nothing",
                info.node
            )));
        }
        let too_many = info.workloads.iter().find(|(_, declared)| declared.units > UNITS_MAX);
        if let Some((name, declared)) = too_many {
            return Err(fatal(format!("workload {name:?} has {} units: use {UNITS_MAX} or fewer", declared.units)));
        }
        self.check_settings(&info.settings)
    }

    fn check_settings(&self, settings: &ClusterSettings) -> Result<(), StoreError> {
        self.check_ttl("a session_ttl_max", settings.session_ttl_max)
    }

    fn check_ttl(&self, what: &str, ttl: Duration) -> Result<(), StoreError> {
        let (min, max) = (self.ttl_min, self.ttl_max);
        if (min..=max).contains(&ttl) {
            return Ok(());
        }
        Err(fatal(format!("{what} of {ttl:?} is not possible with {}: use {min:?} to {max:?}", self.name)))
    }
}

fn check_unit(slot: &Slot) -> Result<(), StoreError> {
    if slot.unit < UNITS_MAX {
        return Ok(());
    }
    Err(fatal(format!("the slot {slot} cannot be: use units below {UNITS_MAX}")))
}

fn check_checkpoint(kind: &ChangeKind) -> Result<(), StoreError> {
    let checkpoint = match kind {
        ChangeKind::Release { checkpoint, .. } | ChangeKind::Transfer { checkpoint, .. } => checkpoint.as_ref(),
        ChangeKind::SaveCheckpoint { checkpoint } => Some(checkpoint),
        ChangeKind::Acquire { .. }
        | ChangeKind::Offer { .. }
        | ChangeKind::Withdraw { .. }
        | ChangeKind::Accept { .. }
        | ChangeKind::Refuse { .. }
        | ChangeKind::Readopt => None,
    };
    match checkpoint.map(|checkpoint| checkpoint.len()) {
        Some(bytes) if bytes > CHECKPOINT_BYTES_MAX => {
            Err(fatal(format!("a checkpoint of {bytes} bytes is too large: use {CHECKPOINT_BYTES_MAX} or fewer")))
        }
        Some(_) | None => Ok(()),
    }
}

fn fatal(message: impl Into<String>) -> StoreError {
    StoreError::new(ErrorKind::Fatal, message)
}
