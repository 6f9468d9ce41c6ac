//! What only a broken driver does.

use std::sync::Arc;
use std::time::Duration;

use rendez_core::{ClusterSettings, Declared, StopReason};

use super::*;
use crate::MemoryStore;

#[tokio::test]
async fn a_driver_that_panics_ends_its_runners_and_says_so() {
    let told = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = told.clone();
    let runner = move |ctx: SlotContext| {
        let log = log.clone();
        async move {
            ctx.cancelled().await;
            log.lock().unwrap().push(ctx.stop_reason());
        }
    };
    let store = MemoryStore::new();
    let capabilities = store.capabilities();
    let mut info = NodeInfo::new(NodeId::new("a").unwrap(), ClusterSettings::new(Duration::from_secs(5)));
    info.workloads.insert("inbox".parse().unwrap(), Declared::new(1));
    let plan = Plan {
        store: Arc::new(store),
        factory: Arc::new(runner),
        cluster: ClusterName::new("c").unwrap(),
        info,
        capabilities,
        config: EngineConfig::for_ttl(Duration::from_secs(5)),
        connect_timeout: Duration::from_secs(60),
        overrun: OverrunPolicy::Report,
        metrics: Arc::new(crate::NoMetrics),
        on_event: None,
        seats: crate::election::Seats::new(),
    };
    let (orders_sender, orders) = mpsc::channel(ORDERS_MAX);
    let (events, _) = broadcast::channel(EVENTS_KEPT);
    let (opened_sender, opened) = oneshot::channel();
    let published = Arc::new(Published::new(plan.cluster.clone(), plan.info.node.clone(), plan.seats.clone()));
    let handle = Handle::new(published.clone(), orders_sender, events.downgrade(), shutdown_max(&plan.config));
    let mut driver = Driver::new(plan, draw_incarnation().unwrap(), orders, events, opened_sender, published.clone());
    let poison = Arc::new(tokio::sync::Notify::new());
    let poisoned = poison.clone();
    tokio::spawn(async move {
        let _last_word = LastWord(published);
        let end = caught(async {
            tokio::select! {
                end = driver.drive() => end,
                () = poisoned.notified() => panic!("poisoned"),
            }
        });
        let end = end.await;
        driver.wind_down(end).await;
    });
    opened.await.unwrap().unwrap();
    handle.owned_changes().wait_for(|owned| owned.len() == 1).await.unwrap();
    poison.notify_one();
    let error = DriverError::Panicked { node: handle.node().clone(), message: "poisoned".to_owned() };
    assert_eq!(handle.stopped().await, Err(error.clone()));
    assert_eq!(handle.shutdown().await, Err(error));
    handle.owned_changes().wait_for(|owned| owned.is_empty()).await.unwrap();
    assert_eq!(*told.lock().unwrap(), [Some(StopReason::Shutdown)]);
    assert!(handle.set_weight(2).await.is_err());
}
