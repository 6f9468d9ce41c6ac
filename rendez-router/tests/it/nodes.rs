//! Nodes, clients and who finds whom.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rendez_router::testing::TestCluster;
use rendez_router::*;

use crate::{client, echo, node, node_with};

async fn who(ctx: RequestContext, request: Envelope) -> Result<String, BoxError> {
    Ok(format!("{} {} {}", ctx.node(), request.shard(), request.key().unwrap_or("-")))
}

#[tokio::test]
async fn requests_by_key_and_by_shard_find_the_node() {
    let transport = MemoryTransport::new();
    let _node = node(&transport, who).await;
    let client = client(&transport);
    let shard = client.shard_of("user-123");
    assert_eq!(client.request_key("user-123", "Who", "").await.unwrap(), format!("node-1 {shard} user-123"));
    assert_eq!(client.request_shard(7, "Who", "").await.unwrap(), "node-1 7 -");
    assert_eq!(client.key("user-123").request_as("Who", "").await.unwrap(), format!("node-1 {shard} user-123"));
    assert_eq!(client.shard(7).request_as("Who", "").await.unwrap(), "node-1 7 -");
    assert_eq!((client.key("user-123").shard(), client.shard(7).shard()), (shard, 7));
}

#[tokio::test]
async fn what_cannot_be_sent_is_refused_in_words() {
    let transport = MemoryTransport::new();
    let _node = node(&transport, echo).await;
    let client = client(&transport);
    assert_eq!(client.request_key("", "Get", "").await, Err(RequestError::KeyRequired));
    let error = client.request_shard(16, "Get", "").await.unwrap_err();
    assert_eq!(error, RequestError::NoSuchShard { shard: 16, shards: 16 });
    assert_eq!(error.to_string(), "there is no shard 16: this client knows 16, from 0 on");
    let error = client.key("a").with_header("x-rendez-key", "b").request_as("Get", "").await.unwrap_err();
    assert!(matches!(error, RequestError::ReservedHeader { .. }), "{error}");
    let error = client.request_key("a", "x-rendez-other", "").await.unwrap_err();
    assert!(matches!(error, RequestError::ReservedHeader { .. }), "{error}");

    for shards in [0, SHARDS_MAX + 1] {
        let error = Client::builder(transport.clone(), shards).build().unwrap_err();
        assert_eq!(error, ClientError::Shards { shards });
    }
    let error = Client::builder(transport.clone(), 1).header("X-Rendez-Ttl", "1").build().unwrap_err();
    assert!(matches!(error, ClientError::Header(_)), "{error}");
}

#[tokio::test]
async fn nobody_there_is_said_at_once() {
    let transport = MemoryTransport::new();
    let half = Node::builder(transport.clone()).shards([1, 2]).handler(echo).start().await.unwrap();
    let client = client(&transport);
    assert_eq!(client.request_shard(1, "Get", "a").await.unwrap(), "a");
    let nobody = RequestError::NoShardSubscriber { shard: 3 };
    assert_eq!(client.request_shard(3, "Get", "a").await, Err(nobody.clone()));
    assert_eq!(client.notify_shard(3, "Get", "a").await, Err(nobody));
    drop(half);
    assert_eq!(client.request_shard(1, "Get", "a").await, Err(RequestError::NoShardSubscriber { shard: 1 }));
}

#[tokio::test]
async fn a_node_says_who_it_is() {
    let transport = MemoryTransport::new();
    let unnamed = || Node::builder(transport.clone()).shards([5, 1, 5]).handler(echo).start();
    let (one, two) = (unnamed().await.unwrap(), unnamed().await.unwrap());
    assert_ne!(one.id(), two.id());
    let letters = one.id().as_str().strip_prefix("node-").unwrap();
    assert!(letters.len() == 6 && letters.chars().all(|letter| letter.is_ascii_alphanumeric()), "{}", one.id());
    let info = client(&transport).shard(5).node_info().await.unwrap();
    // Of two that serve a shard, the one that came last answers, and the other one when that has gone.
    assert_eq!((&info.node_id, &info.shards[..]), (two.id(), &[1, 5][..]));
    two.shutdown().await;
    assert_eq!(client(&transport).shard(5).node_info().await.unwrap(), one.info());
}

#[tokio::test]
async fn a_node_needs_shards_a_handler_and_a_name_that_can_be() {
    let begin = || Node::builder(MemoryTransport::new());
    let error = begin().handler(echo).start().await.unwrap_err();
    assert_eq!(error.to_string(), "shards is missing: call `.shards(...)` before `.start()`");
    let error = begin().shards([1]).start().await.unwrap_err();
    assert_eq!(error, NodeError::Missing { what: "handler" });
    let error = begin().shards([1]).handler(echo).id("a\nb").start().await.unwrap_err();
    assert!(error.to_string().contains("control character"), "{error}");
    let transport = MemoryTransport::new();
    ClientTransport::close(&transport).await;
    let error = Node::builder(transport).shards([4]).handler(echo).start().await.unwrap_err();
    assert_eq!(error, NodeError::Transport { address: Address::Shard(4), error: RequestError::TransportClosed });
}

#[tokio::test]
async fn headers_come_from_the_client_the_task_and_the_request() {
    let transport = MemoryTransport::new();
    let _node = node(&transport, |_: RequestContext, request: Envelope| async move {
        let headers: Vec<String> = request.headers().iter().map(|(name, value)| format!("{name}={value}")).collect();
        Ok::<_, BoxError>(headers.join(" "))
    })
    .await;
    let client = Client::builder(transport, 16)
        .header("service", "billing")
        .header("user", "nobody")
        .propagate(|headers| headers.set("traceparent", "00-1-2-01"))
        .build()
        .unwrap();
    let ada = client.key("a").with_header("user", "ada");
    assert_eq!(ada.request_as("Get", "").await.unwrap(), "service=billing user=ada traceparent=00-1-2-01");
    let plain = client.request_key("a", "Get", "").await.unwrap();
    assert_eq!(plain, "service=billing user=nobody traceparent=00-1-2-01");
}

#[tokio::test]
async fn a_test_cluster_shares_all_shards() {
    let cluster = TestCluster::start(MemoryTransport::new(), 3, 256, "seed", who).await.unwrap();
    let all: Vec<u32> = cluster.nodes().iter().flat_map(|node| node.info().shards.clone()).collect();
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 256);
    assert_eq!(all.len(), 256);
    let mut served = BTreeSet::new();
    for key in 0..100 {
        let key = format!("user-{key}");
        let answer = cluster.client().request_key(&key, "Who", "").await.unwrap();
        let answer = String::from_utf8(answer.to_vec()).unwrap();
        let mut words = answer.split(' ');
        let (name, shard) = (words.next().unwrap(), words.next().unwrap().parse().unwrap());
        let node = cluster.nodes().iter().find(|node| node.id().as_str() == name).unwrap();
        assert!(node.info().shards.contains(&shard) && shard == shard_of_key(&key, 256, "seed"));
        served.insert(name.to_owned());
    }
    assert_eq!(served.into_iter().collect::<Vec<_>>(), ["node-0", "node-1", "node-2"]);
    cluster.shutdown().await;
}

struct Closes(Arc<Mutex<u32>>);

#[async_trait::async_trait]
impl Handler for Closes {
    async fn handle(&self, _: RequestContext, _: Envelope) -> Result<Bytes, RequestError> {
        Ok(Bytes::new())
    }

    async fn close(&self) {
        *self.0.lock().unwrap() += 1;
    }
}

#[tokio::test]
async fn a_handler_is_closed_once_and_a_shared_one_by_nobody_who_shares_it() {
    let transport = MemoryTransport::new();
    let closed = Arc::new(Mutex::new(0));
    node(&transport, Closes(closed.clone())).await.shutdown().await;
    assert_eq!(*closed.lock().unwrap(), 1);
    let shared: Arc<dyn Handler> = Arc::new(Closes(closed.clone()));
    node_with(&transport, shared.clone()).await.shutdown().await;
    node_with(&transport, shared).await.shutdown().await;
    assert_eq!(*closed.lock().unwrap(), 1);
    let cluster = TestCluster::start(transport, 3, 16, "", Closes(closed.clone())).await.unwrap();
    cluster.shutdown().await;
    assert_eq!(*closed.lock().unwrap(), 2);
}
