//! For tests of programs: a cluster of several nodes in one process.

use std::fmt;
use std::sync::Arc;

use crate::{Client, Handler, MemoryTransport, Node, NodeError, shards_of_node};

/// Several nodes over one [`MemoryTransport`]: `node-0`, `node-1` and so on, which share all shards.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), rendez_router::BoxError> {
/// use rendez_router::testing::TestCluster;
/// use rendez_router::{BoxError, Envelope, MemoryTransport, RequestContext};
///
/// let echo = |_: RequestContext, request: Envelope| async move { Ok::<_, BoxError>(request.into_data()) };
/// let cluster = TestCluster::start(MemoryTransport::new(), 3, 256, "seed", echo).await?;
/// assert_eq!(cluster.client().request_key("user-123", "Echo", "hello").await?, "hello");
/// cluster.shutdown().await;
/// # Ok(())
/// # }
/// ```
pub struct TestCluster {
    nodes: Vec<Node>,
    client: Client,
    handler: Arc<dyn Handler>,
}

impl TestCluster {
    /// Starts so many nodes, which share one handler.
    ///
    /// # Errors
    /// [`NodeError`].
    ///
    /// # Panics
    /// Without shards, or with more than [`SHARDS_MAX`](crate::SHARDS_MAX).
    pub async fn start(
        transport: MemoryTransport,
        nodes: usize,
        shards: u32,
        seed: &str,
        handler: impl Handler,
    ) -> Result<Self, NodeError> {
        let handler: Arc<dyn Handler> = Arc::new(handler);
        let ids: Vec<String> = (0..nodes).map(|number| format!("node-{number}")).collect();
        let mut started = Vec::with_capacity(nodes);
        for id in &ids {
            let own = shards_of_node(id, &ids, shards, seed);
            started.push(
                Node::builder(transport.clone()).id(id).shards(own).shared_handler(handler.clone()).start().await?,
            );
        }
        let client = Client::builder(transport, shards).seed(seed).build();
        #[expect(clippy::expect_used, reason = "a test's own mistake, said in words")]
        let client = client.expect("the number of shards");
        Ok(Self { nodes: started, client, handler })
    }

    /// A client of it, with the same seed.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Its nodes, in the order of their numbers.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Shuts all nodes down, and closes the handler.
    pub async fn shutdown(self) {
        for node in self.nodes {
            node.shutdown().await;
        }
        self.handler.close().await;
    }
}

impl fmt::Debug for TestCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestCluster").field("nodes", &self.nodes).finish_non_exhaustive()
    }
}
