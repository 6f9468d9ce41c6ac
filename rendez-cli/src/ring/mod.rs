//! `rendez ring`: to take part in a ring of virtual nodes, and to watch one.

mod join;
mod picture;
mod show;

use std::time::Duration;

use clap::Subcommand;
use rendez::{ResolvedConfig, RingId};

use crate::cluster_args::{StoreArgs, resolve};
use crate::exit::{Exit, Failure};
use crate::store_url::StoreUrl;

/// What there is to do with a ring.
#[derive(Debug, Subcommand)]
pub(crate) enum RingCommand {
    /// Take part in a ring until interrupted, and tell what this node owns as it changes
    Join(join::JoinArgs),
    /// Show a ring: its arcs, its nodes, and what moves
    Show(show::ShowArgs),
}

/// Does it.
pub(crate) fn ring(command: &RingCommand) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Exit::Failure, format!("cannot start: {error}")))?;
    let result = runtime.block_on(async {
        match command {
            RingCommand::Join(args) => join::join(args).await,
            RingCommand::Show(args) => show::show(args).await,
        }
    });
    // Whatever still runs belongs to a node that has ended.
    runtime.shutdown_background();
    result
}

/// The store that these arguments name, and the rest of what they say. Takes `session_ttl` where that matters.
fn checked(
    store: &StoreArgs,
    ring: &RingId,
    session_ttl: Option<Duration>,
) -> Result<(StoreUrl, ResolvedConfig), Failure> {
    let config = store.config()?.cluster(ring.as_str());
    let config = match session_ttl {
        Some(ttl) => config.session_ttl(ttl),
        None => config,
    };
    let config = resolve(&config)?;
    let url = StoreUrl::of(&config)?;
    if !url.is_shared() {
        let message = "the store memory: lives inside one process, and a ring needs one that others can reach";
        return Err(Failure::new(Exit::Usage, message));
    }
    Ok((url, config))
}
