//! Closing the session of an agent that is gone. Called after `ECHILD`, and never before.

use std::time::Duration;

use rendez_core::{CloseRequest, ClusterName, FencingToken, Known};

use super::protocol::{HeldSession, Hello};
use crate::store_url::StoreUrl;

/// How long one try may take.
const TRY_MAX: Duration = Duration::from_secs(2);

/// The pause after a try that failed.
const PAUSE: Duration = Duration::from_millis(200);

/// Tries until the session would have ended anyway. Failure is no matter: the TTL decides then.
pub(crate) fn release(hello: &Hello, session: HeldSession) {
    let (Some(store), Ok(cluster)) = (&hello.store, ClusterName::new(&hello.cluster)) else { return };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    let request = CloseRequest {
        known: Known {
            generation: Some(session.generation),
            token: FencingToken::NONE,
            session_ttl_max: Duration::from_nanos(hello.session_ttl_max_ns),
        },
        session: session.session,
    };
    let all = Duration::from_nanos(hello.session_ttl_ns);
    let closed = runtime.block_on(async {
        tokio::time::timeout(all, async {
            loop {
                match tokio::time::timeout(TRY_MAX, close(store, &cluster, &request)).await {
                    Ok(true) => return,
                    Ok(false) | Err(_) => tokio::time::sleep(PAUSE).await,
                }
            }
        })
        .await
    });
    match closed {
        Ok(()) => eprintln!("rendez guardian: the agent is gone; nothing of its children is left, its slots are free"),
        Err(_) => eprintln!(
            "rendez guardian: the agent is gone; the store was not reached, its slots stay until its session ends"
        ),
    }
}

async fn close(store: &StoreUrl, cluster: &ClusterName, request: &CloseRequest) -> bool {
    let Ok(store) = store.connect(TRY_MAX, TRY_MAX / 2).await else { return false };
    store.close(cluster, request).await.is_ok()
}
