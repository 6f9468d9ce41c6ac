//! Events for people: their names in metrics, their weight in the log.

use rendez_core::{Event, NodeId};
use tracing::Level;

/// Writes an event to the log.
pub(super) fn log(node: &NodeId, event: &Event) {
    let name = event.name();
    match level(event) {
        Level::ERROR => tracing::error!(%node, ?event, "{name}"),
        Level::WARN => tracing::warn!(%node, ?event, "{name}"),
        Level::INFO => tracing::info!(%node, ?event, "{name}"),
        _ => tracing::debug!(%node, ?event, "{name}"),
    }
}

fn level(event: &Event) -> Level {
    match event {
        Event::SessionOpened { .. } => Level::INFO,
        Event::NodeIdInUse { .. } => Level::WARN,
        Event::SessionLost { .. } => Level::WARN,
        Event::NewGeneration { .. } => Level::WARN,
        Event::Acquired { .. } => Level::DEBUG,
        Event::Received { .. } => Level::DEBUG,
        Event::Readopted { .. } => Level::INFO,
        Event::Started { .. } => Level::INFO,
        Event::Stopping { .. } => Level::INFO,
        Event::Ended { .. } => Level::INFO,
        Event::Restarting { .. } => Level::WARN,
        Event::GaveUp { .. } => Level::WARN,
        Event::Released { .. } => Level::DEBUG,
        Event::Offered { .. } => Level::DEBUG,
        Event::HandedOver { .. } => Level::DEBUG,
        Event::OfferRefused { .. } => Level::DEBUG,
        Event::Overrun { .. } => Level::ERROR,
        Event::StoreTrouble { .. } => Level::WARN,
        Event::StoreBack { .. } => Level::INFO,
        Event::SettingsDiffer { .. } => Level::WARN,
        Event::InfoChanged(_) => Level::DEBUG,
        // The event is newer than this crate.
        _ => Level::INFO,
    }
}
