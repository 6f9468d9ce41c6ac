//! Events for people: their names in metrics, their weight in the log.

use rendez_core::{Event, NodeId};
use tracing::Level;

/// The event's name in metrics and in the log.
pub(super) fn name(event: &Event) -> &'static str {
    kind(event).0
}

/// Writes an event to the log.
pub(super) fn log(node: &NodeId, event: &Event) {
    let (name, level) = kind(event);
    match level {
        Level::ERROR => tracing::error!(%node, ?event, "{name}"),
        Level::WARN => tracing::warn!(%node, ?event, "{name}"),
        Level::INFO => tracing::info!(%node, ?event, "{name}"),
        _ => tracing::debug!(%node, ?event, "{name}"),
    }
}

fn kind(event: &Event) -> (&'static str, Level) {
    match event {
        Event::SessionOpened { .. } => ("session_opened", Level::INFO),
        Event::NodeIdInUse { .. } => ("node_id_in_use", Level::WARN),
        Event::SessionLost { .. } => ("session_lost", Level::WARN),
        Event::NewGeneration { .. } => ("new_generation", Level::WARN),
        Event::Acquired { .. } => ("acquired", Level::DEBUG),
        Event::Received { .. } => ("received", Level::DEBUG),
        Event::Readopted { .. } => ("readopted", Level::INFO),
        Event::Started { .. } => ("started", Level::INFO),
        Event::Stopping { .. } => ("stopping", Level::INFO),
        Event::Ended { .. } => ("ended", Level::INFO),
        Event::Restarting { .. } => ("restarting", Level::WARN),
        Event::GaveUp { .. } => ("gave_up", Level::WARN),
        Event::Released { .. } => ("released", Level::DEBUG),
        Event::Offered { .. } => ("offered", Level::DEBUG),
        Event::HandedOver { .. } => ("handed_over", Level::DEBUG),
        Event::OfferRefused { .. } => ("offer_refused", Level::DEBUG),
        Event::Overrun { .. } => ("overrun", Level::ERROR),
        Event::StoreTrouble { .. } => ("store_trouble", Level::WARN),
        Event::StoreBack { .. } => ("store_back", Level::INFO),
        Event::SettingsDiffer { .. } => ("settings_differ", Level::WARN),
        Event::InfoChanged(_) => ("info_changed", Level::DEBUG),
        // The event is newer than this crate.
        _ => ("other", Level::INFO),
    }
}
