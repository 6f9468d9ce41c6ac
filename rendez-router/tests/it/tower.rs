//! Both ends as services of tower, with layers of tower around them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rendez_router::*;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};

use crate::{LONG, client, echo, node, until};

#[tokio::test]
async fn clients_are_services_of_envelopes() {
    let transport = MemoryTransport::new();
    let _node = node(&transport, |ctx: RequestContext, request: Envelope| async move {
        let (key, user, ttl) = (request.key().unwrap_or("-"), request.header("user").unwrap_or("-"), request.ttl());
        let ttl = ttl.map_or(0, |ttl| ttl.as_secs_f64().round() as u64);
        let (node, shard, kind) = (ctx.node(), request.shard(), request.message_type());
        Ok::<_, BoxError>(format!("{node} {shard} {kind} {key} {user} {ttl}"))
    })
    .await;
    let mut service = Client::builder(transport.clone(), 16).header("user", "ada").build().unwrap();
    let shard = service.shard_of("a");
    let mut ask = async |envelope| service.ready().await.unwrap().call(envelope).await;
    // The key says which shard; header and time are the client's unless the envelope has its own.
    let answer = ask(Envelope::new(99, "Get", "").with_key("a")).await.unwrap();
    assert_eq!(answer, format!("node-1 {shard} Get a ada 30"));
    let own = Envelope::new(3, "Get", "").with_header("user", "bob").with_ttl(LONG);
    assert_eq!(ask(own).await.unwrap(), "node-1 3 Get - bob 60");
    assert_eq!(ask(Envelope::new(16, "Get", "")).await, Err(RequestError::NoSuchShard { shard: 16, shards: 16 }));
    assert_eq!(ask(Envelope::new(3, "Get", "").with_key("")).await, Err(RequestError::KeyRequired));
    let reserved = Envelope::new(3, "Get", "").with_header("x-rendez-key", "a");
    assert!(matches!(ask(reserved).await, Err(RequestError::ReservedHeader { .. })));

    let scoped = client(&transport).key("b").with_header("user", "eve").with_ttl(LONG * 2);
    let shard = scoped.shard();
    let answer = scoped.oneshot(Envelope::new(99, "Get", "").with_key("a")).await.unwrap();
    assert_eq!(answer, format!("node-1 {shard} Get b eve 120"));
}

#[derive(Serialize, Deserialize)]
struct Double(u32);
impl Message for Double {}

#[tokio::test]
async fn typed_clients_are_services_of_their_messages() {
    let transport = MemoryTransport::new();
    let handler =
        Dispatch::new().on(|_: RequestContext, Double(number): Double| async move { Ok::<_, BoxError>(number * 2) });
    let _node = node(&transport, handler).await;
    let service = client(&transport).key("a").typed::<Double, u32>();
    assert_eq!(service.oneshot(Double(21)).await, Ok(42));
}

#[tokio::test]
async fn a_service_with_layers_is_a_handler() {
    let (transport, inside, go) = (MemoryTransport::new(), Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let (counted, let_go) = (inside.clone(), go.clone());
    let service = ServiceBuilder::new().concurrency_limit(1).service(service_fn(move |request: ServedRequest| {
        let (inside, go) = (counted.clone(), let_go.clone());
        async move {
            inside.fetch_add(1, Ordering::SeqCst);
            if request.envelope.message_type() == "Fail" {
                return Err(BoxError::from(RequestError::handler("own", request.context.node())));
            }
            go.notified().await;
            Ok(request.envelope.into_data())
        }
    }));
    let _node = node(&transport, ServiceHandler::new(service)).await;
    let client = client(&transport);
    let ask = |data: &'static str| {
        let client = client.clone();
        tokio::spawn(async move { client.request_key("a", "Get", data).await })
    };
    let first = ask("1");
    until("one is inside", || inside.load(Ordering::SeqCst) == 1).await;
    // The limit keeps it out, until the first is done.
    let second = ask("2");
    until("two have come", || transport.running() == 2).await;
    let third = client.key("a").with_ttl(Duration::from_millis(20)).request_as("Get", "3").await;
    assert!(matches!(third, Err(RequestError::HandlerTimeout { .. })), "{third:?}");
    assert_eq!(inside.load(Ordering::SeqCst), 1);
    go.notify_one();
    assert_eq!(first.await.unwrap().unwrap(), "1");
    until("the next is inside", || inside.load(Ordering::SeqCst) == 2).await;
    go.notify_one();
    assert_eq!(second.await.unwrap().unwrap(), "2");
    assert_eq!(client.request_key("a", "Fail", "").await, Err(RequestError::handler("own", "node-1")));
}

#[tokio::test(start_paused = true)]
async fn layers_fit_around_a_client() {
    let transport = MemoryTransport::new();
    let _node = node(&transport, echo).await;
    let wrapped = ServiceBuilder::new().timeout(Duration::from_secs(1)).service(client(&transport));
    assert_eq!(wrapped.oneshot(Envelope::new(3, "Get", "x")).await.unwrap(), "x");
    let never = MemoryTransport::new();
    let _node = node(&never, |_: RequestContext, _: Envelope| std::future::pending::<Result<&str, BoxError>>()).await;
    let wrapped = ServiceBuilder::new().timeout(Duration::from_secs(1)).service(client(&never));
    let error = wrapped.oneshot(Envelope::new(3, "Get", "x")).await.unwrap_err();
    assert!(error.is::<tower::timeout::error::Elapsed>(), "{error}");
}
