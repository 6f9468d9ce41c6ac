//! Requests over a real NATS server.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rendez_router::*;
use rendez_testkit::servers::{NatsServer, Restart};
use tokio::sync::Semaphore;

use crate::{LONG, echo, until};

/// A server, which others may use too, and a prefix of the test's own.
pub(crate) struct Place {
    server: NatsServer,
    prefix: String,
}

impl Place {
    pub(crate) async fn new() -> Self {
        Self::on(NatsServer::start().await.unwrap())
    }

    /// With a server that the test may stop.
    async fn own() -> Self {
        Self::on(NatsServer::builder().start().await.unwrap())
    }

    fn on(server: NatsServer) -> Self {
        Self { server, prefix: format!("test.{:016x}", fastrand::u64(..)) }
    }

    /// The server's address, and the prefix.
    #[cfg(feature = "live")]
    pub(crate) fn address(&self) -> (String, String) {
        (self.server.url(), self.prefix.clone())
    }

    async fn connect(&self) -> async_nats::Client {
        // Requests that are sent while the client connects anew wait for it.
        let options = async_nats::ConnectOptions::new().retry_on_initial_connect();
        options.connect(self.server.url()).await.unwrap()
    }

    /// A transport on a connection of its own.
    pub(crate) async fn transport(&self) -> NatsTransport {
        NatsTransport::new(self.connect().await, &*self.prefix).unwrap()
    }

    async fn node(&self, id: &str, handler: impl Handler) -> Node {
        Node::builder(self.transport().await).id(id).shards(0..16).handler(handler).start().await.unwrap()
    }

    async fn client(&self) -> Client {
        Client::builder(self.transport().await, 16).build().unwrap()
    }
}

/// Asks until somebody listens: a subscription reaches the server a moment after it was made.
async fn heard(client: &Client) {
    let started = Instant::now();
    while let Err(error) = client.shard(0).node_info().await {
        assert!(started.elapsed() < LONG, "{error}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn everything_of_a_request_arrives() {
    let place = Place::new().await;
    let node = place
        .node("node-1", |ctx: RequestContext, request: Envelope| async move {
            let headers: BTreeSet<_> =
                request.headers().iter().map(|(name, value)| format!("{name}={value}")).collect();
            let ttl = request.ttl().unwrap().as_secs();
            let data = String::from_utf8(request.data().to_vec())?;
            let (node, key) = (ctx.node().to_owned(), request.key().map(str::to_owned));
            Ok::<_, BoxError>(format!(
                "{node} {} {} {key:?} {headers:?} {ttl} {data}",
                request.shard(),
                request.message_type()
            ))
        })
        .await;
    let client = place.client().await;
    heard(&client).await;
    let key = " schlüssel\r\n100% 🔑";
    let shard = client.shard_of(key);
    let scoped = client.key(key).with_header("user", "ada").with_header("traceparent", "00-1").with_ttl(LONG);
    let answer = scoped.request_as("Get % it", "data").await.unwrap();
    let expected = format!("node-1 {shard} Get % it {:?} {:?} 59 data", Some(key), ["traceparent=00-1", "user=ada"])
        .replace('[', "{")
        .replace(']', "}");
    assert_eq!(answer, expected);
    assert_eq!(client.request_shard(3, "Get", "").await.unwrap(), "node-1 3 Get None {} 29 ");
    assert_eq!(client.shard(9).node_info().await.unwrap(), node.info());
    let error = client.shard(3).with_header("user", "a\nb").request_as("Get", "").await.unwrap_err();
    assert!(error.to_string().contains("NATS refuses the header \"user\""), "{error}");
    assert_eq!(error.ran(), Ran::No);
}

#[tokio::test]
async fn errors_arrive_as_they_were() {
    let place = Place::new().await;
    let own = || RequestError::handler("no_such_user", "nobody is called\n\"x\"");
    let _node = place
        .node("node-1", move |_: RequestContext, request: Envelope| async move {
            match request.message_type() {
                "own" => Err(own()),
                "panic" => panic!("told to"),
                "large" => Ok(Bytes::from(vec![1; 2 << 20])),
                _ => Err(RequestError::MissingKeyHeader),
            }
        })
        .await;
    let client = place.client().await;
    heard(&client).await;
    assert_eq!(client.request_key("a", "own", "").await, Err(own()));
    assert_eq!(client.request_key("a", "other", "").await, Err(RequestError::MissingKeyHeader));
    let panicked = RequestError::HandlerPanicked { message: "told to".to_owned() };
    assert_eq!(client.request_key("a", "panic", "").await, Err(panicked));
    let error = client.request_key("a", "large", "").await.unwrap_err();
    assert!(error.to_string().contains("the reply cannot be written: it is too large"), "{error}");
    assert_eq!(error.ran(), Ran::Yes);
    let error = client.request_key("a", "own", vec![1; 2 << 20]).await.unwrap_err();
    assert!(matches!(error, RequestError::Encode { .. }), "{error}");
}

#[tokio::test]
async fn nobody_there_is_said_at_once() {
    let place = Place::new().await;
    let node = place.node("node-1", echo).await;
    let client = place.client().await;
    heard(&client).await;
    node.shutdown().await;
    let wait = async {
        while client.request_shard(5, "Get", "").await != Err(RequestError::NoShardSubscriber { shard: 5 }) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG / 2, wait).await.unwrap();
    // Nobody hears it, and nobody says so.
    client.notify_shard(5, "Tell", "").await.unwrap();
    for prefix in ["", "a b", "a.*", "a..b", ".a", ">"] {
        let error = NatsTransport::new(place.connect().await, prefix).unwrap_err();
        assert!(error.to_string().contains("is no subject of NATS"), "{error}");
    }
}

/// A handler that waits until it may go on.
fn gate(begun: &Arc<AtomicUsize>, go: &Arc<Semaphore>) -> impl Handler + use<> {
    let (begun, go) = (begun.clone(), go.clone());
    move |_: RequestContext, request: Envelope| {
        let (begun, go) = (begun.clone(), go.clone());
        async move {
            begun.fetch_add(1, Ordering::SeqCst);
            go.acquire().await?.forget();
            Ok::<_, BoxError>(request.into_data())
        }
    }
}

#[tokio::test]
async fn time_and_places_are_bounded() {
    let place = Place::new().await;
    let (begun, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let small = NatsTransport::builder(place.connect().await, &*place.prefix)
        .max_concurrent_handlers(1)
        .max_waiting(1)
        .build()
        .unwrap();
    let _node = Node::builder(small).shards(0..16).handler(gate(&begun, &go)).start().await.unwrap();
    let client = place.client().await;
    heard(&client).await;
    let short = client.key("a").with_ttl(Duration::from_millis(300));
    let error = short.request_as("Get", "").await.unwrap_err();
    // Whichever comes first: the node's word that it took too long, or that no word came.
    let late =
        matches!(error, RequestError::NoReply { millis } | RequestError::HandlerTimeout { millis } if millis <= 300);
    assert!(late && error.ran() == Ran::Maybe, "{error}");
    let ask = || {
        tokio::spawn({
            let client = client.clone();
            async move { client.request_key("a", "Get", "x").await }
        })
    };
    let first = ask();
    until("one runs", || begun.load(Ordering::SeqCst) == 2).await;
    // One more waits, a third has no place; which is which is not known.
    let (second, third) = (ask(), ask());
    let full = Err(RequestError::Overloaded { what: "the transport".to_owned(), most: 1 });
    let wait = async {
        while !second.is_finished() && !third.is_finished() {
            tokio::task::yield_now().await
        }
    };
    tokio::time::timeout(LONG, wait).await.unwrap();
    go.add_permits(2);
    assert_eq!(first.await.unwrap().unwrap(), "x");
    let mut rest = [second.await.unwrap(), third.await.unwrap()];
    rest.sort_by_key(Result::is_err);
    assert_eq!(rest, [Ok(Bytes::from("x")), full]);
}

#[tokio::test]
async fn of_two_that_serve_a_shard_one_runs_each_request() {
    let place = Place::new().await;
    let runs = Arc::new(AtomicUsize::new(0));
    let counting = || {
        let runs = runs.clone();
        move |_: RequestContext, request: Envelope| {
            runs.fetch_add(1, Ordering::SeqCst);
            async move { Ok::<_, BoxError>(request.into_data()) }
        }
    };
    let _one = place.node("node-1", counting()).await;
    let _two = place.node("node-2", counting()).await;
    let client = place.client().await;
    heard(&client).await;
    for number in 0..200 {
        let word = number.to_string();
        assert_eq!(client.request_key(&word, "Get", word.clone()).await.unwrap(), word);
    }
    assert_eq!(runs.load(Ordering::SeqCst), 200);
}

/// A node is replaced by another under load: no request is lost, and none fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_shuts_down_answers_all_that_had_come() {
    let place = Place::new().await;
    let client = place.client().await;
    let mut now = place.node("node-0", echo).await;
    heard(&client).await;
    let callers = (0..8).map(|caller| {
        let client = client.clone();
        tokio::spawn(async move {
            for number in 0..400 {
                let word = format!("{caller}:{number}");
                assert_eq!(client.request_key(&word, "Get", word.clone()).await.unwrap(), word);
            }
        })
    });
    let callers: Vec<_> = callers.collect();
    let mut number = 0;
    while callers.iter().any(|caller| !caller.is_finished()) {
        number += 1;
        let id = format!("node-{number}");
        let next = place.node(&id, echo).await;
        // Until it is heard: asked often enough, both answer.
        let started = Instant::now();
        while client.shard(0).node_info().await.unwrap().node_id.as_str() != id {
            assert!(started.elapsed() < LONG);
        }
        std::mem::replace(&mut now, next).shutdown().await;
    }
    for caller in callers {
        caller.await.unwrap();
    }
    assert!(number > 0);
}

#[tokio::test]
async fn a_node_of_many_shards_shuts_down_soon() {
    let place = Place::new().await;
    let many = |id: &'static str| {
        let place = &place;
        async move { Node::builder(place.transport().await).id(id).shards(0..1024).handler(echo).start().await.unwrap() }
    };
    let (one, two) = (many("node-1").await, many("node-2").await);
    let client = Client::builder(place.transport().await, 1024).build().unwrap();
    heard(&client).await;
    tokio::time::timeout(LONG, one.shutdown()).await.unwrap();
    assert_eq!(client.shard(1023).node_info().await.unwrap().node_id.as_str(), "node-2");
    tokio::time::timeout(LONG, two.shutdown()).await.unwrap();
}

#[tokio::test]
async fn a_server_that_stands_still_or_is_gone_is_no_end() {
    let mut place = Place::own().await;
    let _node = place.node("node-1", echo).await;
    let client = place.client().await;
    heard(&client).await;
    place.server.stop().unwrap();
    let error = client.key("a").with_ttl(Duration::from_millis(300)).request_as("Get", "x").await.unwrap_err();
    assert_eq!((&error, error.ran()), (&RequestError::NoReply { millis: 300 }, Ran::Maybe));
    place.server.resume().unwrap();
    heard(&client).await;
    assert_eq!(client.request_key("a", "Get", "x").await.unwrap(), "x");
    place.server.restart(Restart::Saved).await.unwrap();
    heard(&client).await;
    assert_eq!(client.request_key("a", "Get", "x").await.unwrap(), "x");
}

#[tokio::test]
async fn closing_waits_for_what_runs() {
    let place = Place::new().await;
    let (begun, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let serving = place.transport().await;
    let _node = Node::builder(serving.clone()).shards(0..16).handler(gate(&begun, &go)).start().await.unwrap();
    let client = place.client().await;
    heard(&client).await;
    let request = tokio::spawn({
        let client = client.clone();
        async move { client.request_key("a", "Get", "late").await }
    });
    until("it runs", || begun.load(Ordering::SeqCst) == 1).await;
    let closing = tokio::spawn({
        let serving = serving.clone();
        async move { ServerTransport::close(&serving).await }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!closing.is_finished(), "one runs still");
    go.add_permits(1);
    closing.await.unwrap();
    assert_eq!(request.await.unwrap().unwrap(), "late");
    assert_eq!(
        serving.request(&Address::Shard(1), Envelope::new(1, "Get", "")).await,
        Err(RequestError::TransportClosed)
    );
}
