//! What happens on this node, in sentences for the log.

use rendez::{Event, NodeId, RunnerEnd};
use tracing::{debug, error, info, warn};

/// Tells one event.
pub(crate) fn tell(node: &NodeId, event: &Event) {
    match event {
        Event::SessionOpened { session } => info!("node {node} takes part now (session {session})"),
        Event::NodeIdInUse { incarnation, remaining } => warn!(
            "another process ({incarnation}) is node {node}: waiting until its session ends, in {remaining:.1?} unless it is \
             extended; give this one another --node, or --no-wait to give up at once"
        ),
        Event::SessionLost { session, why } => warn!("session {session} is lost: {why}"),
        Event::NewGeneration { quiet, .. } => {
            warn!("the store may have lost data: nothing new starts for {quiet:.1?}");
        }
        Event::Acquired { slot, token } => debug!("{slot} is taken (token {token})"),
        Event::Received { slot, token } => debug!("{slot} was handed over to this node (token {token})"),
        Event::Readopted { slot, token } => info!("{slot} goes on across the store's loss of data (token {token})"),
        Event::Started { slot, token } => info!("{slot} starts (token {token})"),
        Event::Stopping { slot, why, .. } => info!("{slot} is told to stop: {why}"),
        Event::Ended { slot, end: RunnerEnd::Returned, .. } => info!("{slot} has ended"),
        Event::Ended { slot, end, .. } => warn!("{slot} has ended: {end}"),
        Event::Restarting { slot, failures, after } => {
            info!("{slot} starts again in {after:.1?} ({failures} failures in a row)");
        }
        Event::GaveUp { slot, failures } => warn!("{slot} is given up after {failures} failures in a row"),
        Event::Released { slot, .. } => debug!("{slot} is let go"),
        Event::Offered { slot, to, .. } => debug!("{slot} is offered to {to}"),
        Event::HandedOver { slot, to } => info!("{slot} is handed over to {to}"),
        Event::OfferRefused { slot, why } => debug!("an offer of {slot} was refused: {why}"),
        Event::Overrun { slot, age, .. } => error!("{slot} still runs {age:.1?} after it was killed"),
        Event::StoreTrouble { kind, message } => warn!("the store is in trouble ({kind}): {message}"),
        Event::StoreBack { after } => info!("the store answers again, after {after:.1?}"),
        Event::SettingsDiffer { nodes } => {
            let nodes: Vec<&str> = nodes.iter().map(NodeId::as_str).collect();
            warn!("only orphans move, because these nodes were started with other settings: {}", nodes.join(", "));
        }
        Event::InfoChanged(_) => debug!("what node {node} tells about itself has changed"),
        // The event is newer than this crate.
        other => info!(?other, "something new has happened"),
    }
}
