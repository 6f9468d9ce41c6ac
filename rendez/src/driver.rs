//! The driver: the one task that owns the engine.
use crate::coordinator::OnEvent;
use crate::*;
use rendez_core::*;
use std::sync::Arc;
use std::time::Duration;
pub(crate) struct Plan {
    pub(crate) store: Arc<dyn LeaseStore>,
    pub(crate) factory: Arc<dyn RunnerFactory>,
    pub(crate) cluster: ClusterName,
    pub(crate) info: NodeInfo,
    pub(crate) capabilities: Capabilities,
    pub(crate) config: EngineConfig,
    pub(crate) connect_timeout: Duration,
    pub(crate) overrun: OverrunPolicy,
    pub(crate) metrics: Arc<dyn Metrics>,
    pub(crate) on_event: Option<OnEvent>,
}
pub(crate) async fn start(_plan: Plan) -> Result<Handle, StartError> {
    Err(StartError::NoRuntime)
}
