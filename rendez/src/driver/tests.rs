//! What only a broken driver does.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rendez_core::{
    AdminOutcome, AdminRequest, Beat, Call, ChangeReply, ChangeRequest, CloseRequest, ClusterSettings, Declared,
    HeartbeatRequest, OpenRequest, SnapshotPage, SnapshotRequest, StopReason, StoreError, StoreModel, StoreTime, Watch,
};

use super::*;

/// The model, and no faults: the tests of the whole crate have those.
struct Store(std::sync::Mutex<StoreModel>);

impl Store {
    fn call(&self, call: Call) -> Result<Reply, StoreError> {
        self.0.lock().unwrap().call(StoreTime::from_micros(boot_time().as_nanos() / 1000), &call)
    }
}

macro_rules! forward {
    ($self:ident, $variant:ident, $request:ident) => {
        match $self.call(Call::$variant($request.clone()))? {
            Reply::$variant(reply) => Ok(reply),
            other => panic!("{other:?}"),
        }
    };
}

#[async_trait]
impl LeaseStore for Store {
    fn capabilities(&self) -> Capabilities {
        self.0.lock().unwrap().capabilities().clone()
    }
    async fn open(&self, _: &ClusterName, request: &OpenRequest) -> Result<Opening, StoreError> {
        forward!(self, Open, request)
    }
    async fn heartbeat(&self, _: &ClusterName, request: &HeartbeatRequest) -> Result<Beat, StoreError> {
        forward!(self, Heartbeat, request)
    }
    async fn close(&self, _: &ClusterName, request: &CloseRequest) -> Result<(), StoreError> {
        self.call(Call::Close(request.clone())).map(|_| ())
    }
    async fn change(&self, _: &ClusterName, request: &ChangeRequest) -> Result<ChangeReply, StoreError> {
        forward!(self, Change, request)
    }
    async fn snapshot(&self, _: &ClusterName, request: &SnapshotRequest) -> Result<SnapshotPage, StoreError> {
        forward!(self, Snapshot, request)
    }
    async fn administer(&self, _: &ClusterName, _: &AdminRequest) -> Result<AdminOutcome, StoreError> {
        Err(StoreError::new(ErrorKind::Unsupported, "not here"))
    }
    async fn watch(&self, _: &ClusterName) -> Result<Box<dyn Watch>, StoreError> {
        Err(StoreError::new(ErrorKind::Unsupported, "not here"))
    }
}

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
    let capabilities = Capabilities::strict("test");
    let mut info = NodeInfo::new(NodeId::new("a").unwrap(), ClusterSettings::new(Duration::from_secs(5)));
    info.workloads.insert("inbox".parse().unwrap(), Declared { units: 1, cap: None });
    let plan = Plan {
        store: Arc::new(Store(std::sync::Mutex::new(StoreModel::new(1, capabilities.clone())))),
        factory: Arc::new(runner),
        cluster: ClusterName::new("c").unwrap(),
        info,
        capabilities,
        config: EngineConfig::for_ttl(Duration::from_secs(5)),
        connect_timeout: Duration::from_secs(60),
        overrun: OverrunPolicy::Report,
        metrics: Arc::new(crate::NoMetrics),
        on_event: None,
    };
    let (orders_sender, orders) = mpsc::channel(ORDERS_MAX);
    let (events, _) = broadcast::channel(EVENTS_KEPT);
    let (opened_sender, opened) = oneshot::channel();
    let published = Arc::new(Published::new(plan.cluster.clone(), plan.info.node.clone()));
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
