//! Requests that are repeated under an idempotency key.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rendez_router::*;
use tokio::sync::Notify;

use crate::{LONG, client, node, until};

/// How often a handler was called.
type Runs = Arc<AtomicUsize>;

/// Answers with the number of its run.
fn numbering(runs: &Runs) -> impl Handler + use<> {
    let runs = runs.clone();
    move |_: RequestContext, request: Envelope| {
        let number = runs.fetch_add(1, Ordering::SeqCst) + 1;
        async move {
            match request.message_type() {
                "Fail" => Err(RequestError::handler("no", format!("run {number}"))),
                "Refuse" => Err(RequestError::Overloaded { what: format!("run {number}"), most: 1 }),
                "Panic" => panic!("run {number}"),
                "Wait" => std::future::pending().await,
                _ => Ok(number.to_string()),
            }
        }
    }
}

#[tokio::test]
async fn a_repeated_request_gets_the_first_answer() {
    let (transport, runs) = (MemoryTransport::new(), Runs::default());
    let _node = node(&transport, numbering(&runs)).await;
    let client = client(&transport);
    let once = client.key("a").with_idempotency_key("k");
    assert_eq!(once.request_as("Add", "1").await.unwrap(), "1");
    assert_eq!(once.request_as("Add", "1").await.unwrap(), "1");
    // By another client, too.
    let other = Client::builder(transport.clone(), 16).build().unwrap().key("a").with_idempotency_key("k");
    assert_eq!(other.request_as("Add", "1").await.unwrap(), "1");
    let reused = RequestError::IdempotencyKeyReused { key: "k".to_owned() };
    assert_eq!(once.request_as("Add", "2").await, Err(reused.clone()));
    assert_eq!(reused.ran(), Ran::No);
    // Other requests: another type, another key, no idempotency key.
    assert_eq!(once.request_as("Put", "1").await.unwrap(), "2");
    assert_eq!(client.key("b").with_idempotency_key("k").request_as("Add", "1").await.unwrap(), "3");
    assert_eq!(client.key("a").with_idempotency_key("l").request_as("Add", "1").await.unwrap(), "4");
    for number in ["5", "6"] {
        assert_eq!(client.request_key("a", "Add", "1").await.unwrap(), number);
    }
}

#[tokio::test]
async fn a_copy_waits_for_the_one_that_runs() {
    let (transport, begun, go) = (MemoryTransport::new(), Runs::default(), Arc::new(Notify::new()));
    let (counted, let_go) = (begun.clone(), go.clone());
    let _node = node(&transport, move |_: RequestContext, request: Envelope| {
        let (begun, go) = (counted.clone(), let_go.clone());
        async move {
            begun.fetch_add(1, Ordering::SeqCst);
            go.notified().await;
            Ok::<_, BoxError>(request.into_data())
        }
    })
    .await;
    let once = client(&transport).key("a").with_idempotency_key("k");
    let copies: Vec<_> = (0..8)
        .map(|_| {
            let once = once.clone();
            tokio::spawn(async move { once.request_as("Get", "x").await })
        })
        .collect();
    until("all have come", || transport.running() == 8).await;
    assert!(copies.iter().all(|copy| !copy.is_finished()));
    go.notify_one();
    for copy in copies {
        assert_eq!(copy.await.unwrap().unwrap(), "x");
    }
    assert_eq!(begun.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn what_the_handler_said_is_said_again_and_what_was_not_begun_is_tried_again() {
    let (transport, runs) = (MemoryTransport::new(), Runs::default());
    let _node = node(&transport, numbering(&runs)).await;
    let once = client(&transport).key("a").with_idempotency_key("k");
    let failed = RequestError::handler("no", "run 1");
    assert_eq!(once.request_as("Fail", "").await, Err(failed.clone()));
    assert_eq!(once.request_as("Fail", "").await, Err(failed));
    for number in 2..4 {
        let refused = RequestError::Overloaded { what: format!("run {number}"), most: 1 };
        assert_eq!(once.request_as("Refuse", "").await, Err(refused));
    }
    let panicked = RequestError::HandlerPanicked { message: "run 4".to_owned() };
    assert_eq!(once.request_as("Panic", "").await, Err(panicked));
    assert_eq!(once.request_as("Panic", "").await, Err(RequestError::Interrupted));
    assert_eq!(RequestError::Interrupted.ran(), Ran::Maybe);
    // A caller that goes takes its handler along: nobody knows how far it came.
    let gone = once.request_as("Wait", "");
    tokio::select! {
        biased;
        _ = gone => unreachable!("it waits"),
        () = until("it runs", || runs.load(Ordering::SeqCst) == 5) => {}
    }
    assert_eq!(once.request_as("Wait", "").await, Err(RequestError::Interrupted));
    assert_eq!(runs.load(Ordering::SeqCst), 5);
}

#[tokio::test(start_paused = true)]
async fn what_is_remembered_has_bounds() {
    let (transport, runs) = (MemoryTransport::new(), Runs::default());
    let mut kept = AnswersKept::default();
    assert_eq!((kept.count, kept.bytes, kept.time), (10_000, 16 << 20, Duration::from_secs(60)));
    kept.count = 2;
    let node = Node::builder(transport.clone()).shards(0..16).handler(numbering(&runs)).answers_kept(kept);
    let _node = node.start().await.unwrap();
    let client = Client::builder(transport.clone(), 16).ttl(Duration::from_secs(90)).build().unwrap();
    let ask = |shard: u32, key: &'static str| {
        let client = client.clone();
        async move { client.shard(shard).with_idempotency_key(key).request_as("Add", "").await }
    };
    let full = |shard| Err(RequestError::MemoryFull { shard });
    assert_eq!(ask(3, "a").await.unwrap(), "1");
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(ask(3, "b").await.unwrap(), "2");
    assert_eq!(ask(3, "c").await, full(3));
    assert_eq!(RequestError::MemoryFull { shard: 3 }.ran(), Ran::No);
    // Each shard has a memory of its own, and none is needed without a key.
    assert_eq!(ask(4, "c").await.unwrap(), "3");
    assert_eq!(client.request_shard(3, "Add", "").await.unwrap(), "4");
    // For a minute, but at least for the request's own time.
    tokio::time::advance(Duration::from_secs(88)).await;
    assert_eq!((ask(3, "a").await.unwrap(), ask(3, "c").await), ("1".into(), full(3)));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(ask(3, "c").await.unwrap(), "5");
    assert_eq!((ask(3, "b").await.unwrap(), ask(3, "a").await), ("2".into(), full(3)));

    let mut kept = AnswersKept::default();
    kept.bytes = 100;
    let large = |_: RequestContext, _: Envelope| async { Ok::<_, BoxError>(vec![1; 100]) };
    let _second = Node::builder(transport).shards(0..16).handler(large).answers_kept(kept).start().await.unwrap();
    assert_eq!(ask(3, "a").await.unwrap().len(), 100);
    assert_eq!(ask(3, "b").await, full(3));
    assert_eq!(ask(3, "a").await.unwrap().len(), 100);
}

/// Loses answers: the handler has run, and the caller hears what the test says; or nothing.
#[derive(Clone)]
struct Lossy {
    through: MemoryTransport,
    /// What becomes of the requests, in their order; then all is well.
    fates: Arc<Vec<Fate>>,
    sent: Arc<AtomicUsize>,
}

#[derive(Clone)]
enum Fate {
    /// Runs, and this is told.
    Ran(RequestError),
    /// Runs, and nothing is told.
    Silent,
    /// Does not run, and this is told.
    Refused(RequestError),
}

#[async_trait]
impl ClientTransport for Lossy {
    async fn request(&self, to: &Address, envelope: Envelope) -> Result<Bytes, RequestError> {
        match self.fates.get(self.sent.fetch_add(1, Ordering::SeqCst)).cloned() {
            None => self.through.request(to, envelope).await,
            Some(Fate::Refused(error)) => Err(error),
            Some(Fate::Ran(error)) => self.through.request(to, envelope).await.and(Err(error)),
            Some(Fate::Silent) => {
                self.through.request(to, envelope).await?;
                std::future::pending().await
            }
        }
    }

    async fn notify(&self, to: &Address, envelope: Envelope) -> Result<(), RequestError> {
        self.through.notify(to, envelope).await
    }

    async fn close(&self) {
        ClientTransport::close(&self.through).await;
    }
}

/// Asks once, with an idempotency key or without: the answer, how often it was sent, and how often it ran.
async fn ask_through(fates: Vec<Fate>, key: Option<&str>) -> (Result<Bytes, RequestError>, usize, usize) {
    let (transport, runs, sent) = (MemoryTransport::new(), Runs::default(), Runs::default());
    let _node = node(&transport, numbering(&runs)).await;
    let lossy = Lossy { through: transport, fates: Arc::new(fates), sent: sent.clone() };
    let client = Client::builder(lossy, 16).ttl(Duration::from_secs(10)).build().unwrap();
    let request = match key {
        Some(key) => client.key("a").with_idempotency_key(key),
        None => client.key("a"),
    };
    let answer = request.request_as("Add", "").await;
    (answer, sent.load(Ordering::SeqCst), runs.load(Ordering::SeqCst))
}

#[tokio::test(start_paused = true)]
async fn only_a_request_with_a_key_is_sent_again_and_it_runs_once() {
    let lost = || RequestError::Disconnected { why: "told to".to_owned() };
    let one = || Ok(Bytes::from("1"));
    assert_eq!(ask_through(vec![Fate::Ran(lost())], None).await, (Err(lost()), 1, 1));
    assert_eq!(ask_through(vec![Fate::Ran(lost())], Some("k")).await, (one(), 2, 1));
    let no_reply = RequestError::NoReply { millis: 9 };
    let fates = vec![Fate::Ran(no_reply), Fate::Ran(RequestError::OwnershipLost { shard: 3 }), Fate::Ran(lost())];
    assert_eq!(ask_through(fates, Some("k")).await, (one(), 4, 1));
    let nobody = || RequestError::NoShardSubscriber { shard: 3 };
    assert_eq!(ask_through(vec![Fate::Ran(lost()), Fate::Refused(nobody())], Some("k")).await, (one(), 3, 1));
    // What did not run is told at once: nothing is open.
    assert_eq!(ask_through(vec![Fate::Refused(nobody())], Some("k")).await, (Err(nobody()), 1, 0));
}

#[tokio::test(start_paused = true)]
async fn without_an_answer_it_is_sent_again_until_its_time_is_over() {
    let begun = tokio::time::Instant::now();
    assert_eq!(ask_through(vec![Fate::Silent; 2], Some("k")).await, (Ok("1".into()), 3, 1));
    // After one second, and after two more.
    assert_eq!(begun.elapsed().as_secs(), 3);
    // It may have run: that the last copy did not is no answer to that.
    let lost = || RequestError::Disconnected { why: "told to".to_owned() };
    let mut fates = vec![Fate::Refused(RequestError::NoShardSubscriber { shard: 3 }); 100];
    fates[0] = Fate::Ran(lost());
    let begun = tokio::time::Instant::now();
    let (answer, sent, ran) = ask_through(fates, Some("k")).await;
    assert_eq!((answer, ran), (Err(lost()), 1));
    assert!((5..30).contains(&sent), "{sent}");
    assert!((8..=10).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
}

/// A handler's own requests fail for reasons of their own: they are none of its caller's.
#[tokio::test]
async fn an_error_that_a_handler_passes_on_is_the_handlers_own() {
    let (transport, runs) = (MemoryTransport::new(), Runs::default());
    let (within, counted) = (client(&transport), runs.clone());
    let _node = Node::builder(transport.clone())
        .shards(0..8)
        .handler(move |_: RequestContext, _: Envelope| {
            let within = within.clone();
            counted.fetch_add(1, Ordering::SeqCst);
            async move { within.request_shard(9, "Get", "").await }
        })
        .start()
        .await
        .unwrap();
    let error = client(&transport).request_shard(3, "Get", "").await.unwrap_err();
    assert_eq!(error.to_string(), "the handler failed: nobody serves shard 9");
    assert_eq!((error.ran(), runs.load(Ordering::SeqCst)), (Ran::Yes, 1));
    let keyed = client(&transport).shard(3).with_idempotency_key("k").with_ttl(LONG);
    assert_eq!(keyed.request_as("Get", "").await, Err(error.clone()));
    assert_eq!(keyed.request_as("Get", "").await, Err(error));
    assert_eq!(runs.load(Ordering::SeqCst), 2);
}
