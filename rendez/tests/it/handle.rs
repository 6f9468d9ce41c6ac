//! What a program can see and set while its node runs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use rendez::{CommandError, Declared, Event, METRICS, Measurement, Metrics, Told};

use crate::store::TestStore;
use crate::support::{PATIENCE, eventually, idle, inbox, node, owns};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workloads_and_capacity_can_change_while_it_runs() {
    let store = TestStore::new();
    let handle = node(&store, "a", 4).runner(idle).start().await.unwrap();
    owns(&handle, 4).await;
    handle.set_capacity(Some(6)).await.unwrap();
    let many = BTreeMap::from([(inbox(0).workload, Declared::new(9))]);
    handle.set_workloads(many).await.unwrap();
    owns(&handle, 6).await;
    handle.set_capacity(None).await.unwrap();
    owns(&handle, 9).await;
    let few = BTreeMap::from([(inbox(0).workload, Declared::new(2))]);
    handle.set_workloads(few).await.unwrap();
    owns(&handle, 2).await;
    handle.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_node_gives_everything_away_and_takes_its_share_again() {
    let store = TestStore::new();
    let a = node(&store, "a", 4).runner(idle).start().await.unwrap();
    owns(&a, 4).await;
    let b = node(&store, "b", 4).runner(idle).start().await.unwrap();
    a.drain(true).await.unwrap();
    owns(&a, 0).await;
    owns(&b, 4).await;
    a.drain(false).await.unwrap();
    b.shutdown().await.unwrap();
    owns(&a, 4).await;
    a.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cordoned_node_keeps_what_it_has_and_takes_nothing() {
    let store = TestStore::new();
    let a = node(&store, "a", 2).runner(idle).start().await.unwrap();
    owns(&a, 2).await;
    a.cordon(true).await.unwrap();
    let many = BTreeMap::from([(inbox(0).workload, Declared::new(5))]);
    a.set_workloads(many.clone()).await.unwrap();
    let b = node(&store, "b", 5).runner(idle).start().await.unwrap();
    owns(&b, 3).await;
    assert_eq!(a.owned().len(), 2);
    b.shutdown().await.unwrap();
    a.cordon(false).await.unwrap();
    owns(&a, 5).await;
    a.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_that_cannot_be_are_refused_also_after_the_end() {
    let store = TestStore::new();
    let handle = node(&store, "a", 1).runner(idle).start().await.unwrap();
    assert!(matches!(handle.set_weight(0).await, Err(CommandError::Invalid { .. })));
    let huge = BTreeMap::from([(inbox(0).workload, Declared::new(2_000_000))]);
    assert!(matches!(handle.set_workloads(huge).await, Err(CommandError::Invalid { .. })));
    handle.set_weight(7).await.unwrap();
    handle.set_health(true).await.unwrap();
    handle.set_dynamic(rendez::DynamicWorkloads::All).await.unwrap();
    handle.shutdown().await.unwrap();
    let stopped = CommandError::Stopped { node: handle.node().clone() };
    assert_eq!(handle.set_weight(7).await, Err(stopped));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_and_changes_can_be_followed_to_the_end() {
    let store = TestStore::new();
    let handle = node(&store, "a", 2).runner(idle).start().await.unwrap();
    let (mut events, mut owned, session) = (handle.events(), handle.owned_changes(), handle.session_changes());
    assert!(session.borrow().is_some());
    let both = tokio::time::timeout(PATIENCE, owned.wait_for(|owned| owned.len() == 2)).await.unwrap().unwrap().clone();
    assert!(both.get(&inbox(1)).is_some() && both.get(&inbox(2)).is_none());
    handle.shutdown().await.unwrap();
    assert!(session.borrow().is_none() && owned.borrow().is_empty());
    let mut released = 0;
    while let Some(told) = tokio::time::timeout(PATIENCE, events.next()).await.expect("they end with the node") {
        released += usize::from(matches!(told, Told::Event(Event::Released { .. })));
    }
    assert_eq!(released, 2);
    assert_eq!(handle.events().next().await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_lags_is_told_so() {
    let store = TestStore::new();
    let handle = node(&store, "a", 1).runner(idle).start().await.unwrap();
    let mut events = handle.events();
    for weight in 1..=rendez::EVENTS_KEPT as u32 + 50 {
        handle.set_weight(1 + weight % 2).await.unwrap();
    }
    handle.shutdown().await.unwrap();
    let told = events.next().await;
    assert!(matches!(told, Some(Told::Missed(1..))), "{told:?}");
}

#[derive(Default)]
struct Numbers(Mutex<BTreeMap<String, f64>>);

impl Metrics for Numbers {
    fn record(&self, measurement: Measurement<'_>) {
        assert!(METRICS.contains(measurement.metric));
        assert_eq!(measurement.metric.labels.len(), measurement.labels.len());
        let name = format!("{}{:?}", measurement.metric.name, measurement.labels);
        self.0.lock().unwrap().insert(name, measurement.value);
        panic!("a metrics hook that panics does no harm");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_arrive_at_the_hook() {
    let store = TestStore::new();
    let numbers = Arc::new(Numbers::default());
    let builder = node(&store, "a", 3).runner(idle).metrics(numbers.clone());
    let handle = builder.on_event(|_| panic!("so does an event hook")).start().await.unwrap();
    owns(&handle, 3).await;
    let value = |name: &str| numbers.0.lock().unwrap_or_else(|p| p.into_inner()).get(name).copied();
    eventually("three run", || value("rendez_slots_running[]") == Some(3.0)).await;
    handle.shutdown().await.unwrap();
    for name in [
        "rendez_store_call_seconds[\"heartbeat\", \"ok\"]",
        "rendez_events_total[\"acquired\"]",
        "rendez_runner_seconds[\"returned\"]",
        "rendez_runner_stop_seconds[]",
        "rendez_watch_openings_total[\"ok\"]",
    ] {
        assert!(value(name).is_some(), "{name} of {:?}", numbers.0);
    }
}
